//! The skeleton of a layer that has a table of contents: headers made of its members, as if they were a tar's.

use super::beside::Beside;
use super::{SkeletonError, SkeletonFacts};
use crate::payload::{Layout, SegmentSize};
use crate::tar::{Member, Parser, Placer, SpaceError, Step, TarError, write_sparse_header};

/// Why members do not make a skeleton.
#[derive(Debug, thiserror::Error)]
pub enum MadeError {
    /// A member that no tar can hold.
    #[error("a tar made of the entries")]
    Tar(#[from] TarError),
    /// Their files take more room than any layer may.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// It cannot be packed.
    #[error("packing the skeleton")]
    Skeleton(#[from] SkeletonError),
}

/// Makes a skeleton, member by member.
///
/// What is written is read back at once: so members are placed as they will be whenever the skeleton is opened.
pub(crate) struct SkeletonMaker {
    parser: Parser,
    placer: Placer,
    writer: Beside,
    headers: Vec<u8>,
}

/// What has been made.
pub(crate) struct Made {
    pub(crate) packed: Box<[u8]>,
    pub(crate) facts: SkeletonFacts,
    /// Length of the tar that this is the skeleton of.
    pub(crate) tar_len: u64,
    pub(crate) layout: Layout,
}

impl SkeletonMaker {
    /// Returns a maker that has no member.
    pub(crate) fn new(segment: SegmentSize) -> Result<Self, MadeError> {
        Ok(Self {
            parser: Parser::new(),
            placer: Placer::uncut(segment),
            writer: Beside::new()?,
            headers: Vec::new(),
        })
    }

    /// Adds a member.
    pub(crate) fn member(&mut self, member: &Member) -> Result<(), MadeError> {
        let padding = usize::try_from(member.payload.next_multiple_of(512) - member.payload).unwrap_or(0);
        let mut headers = std::mem::take(&mut self.headers);
        headers.clear();
        write_sparse_header(member, &mut headers);
        headers.resize(headers.len() + padding, 0);
        self.write(&headers)?;
        self.headers = headers;
        Ok(())
    }

    /// Returns where the members are so far.
    pub(crate) fn layout(&self) -> &Layout {
        self.placer.layout()
    }

    /// Returns how many segments the members take so far.
    pub(crate) fn segments(&self) -> u32 {
        let size = self.layout().segment_size();
        size.of(self.layout().space().next_multiple_of(size.bytes()))
    }

    /// Returns the skeleton: there are no more members.
    pub(crate) fn finish(mut self) -> Result<Made, MadeError> {
        self.write(&[0; 1024])?;
        self.parser.finish()?;
        let (packed, facts) = self.writer.finish()?;
        Ok(Made { packed: packed.into(), facts, tar_len: self.parser.plain(), layout: self.placer.finish() })
    }

    /// Adds bytes that are no payload.
    fn write(&mut self, mut bytes: &[u8]) -> Result<(), MadeError> {
        self.writer.write(bytes)?;
        while !bytes.is_empty() {
            let (taken, step) = self.parser.step(bytes)?;
            bytes = &bytes[taken..];
            if let Step::Member(member) = step {
                self.placer.member(&member)?;
            }
        }
        Ok(())
    }
}
