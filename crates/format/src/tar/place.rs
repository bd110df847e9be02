//! Members to payload space.

use super::{Member, MemberKind};
use crate::limits;
use crate::payload::{Layout, SegmentSize};
use crate::tree::Runs;

/// The payload of a layer takes more room than any layer may.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the files of the layer take more than {limit} bytes")]
pub struct SpaceError {
    /// What one layer may take: no more than one mount's segments hold.
    pub limit: u64,
}

/// Gives every regular file of a layer its place in payload space, in tar order, also those that a later
/// member replaces: the layout is a function of the layer alone.
#[derive(Debug, Clone)]
pub struct Placer {
    layout: Layout,
}

impl Placer {
    /// Returns a placer for a layer of which nothing is known yet.
    pub fn new(segment: SegmentSize) -> Self {
        Self { layout: Layout::new(segment) }
    }

    /// Returns a placer for a layer whose chunks somebody else cuts.
    pub fn uncut(segment: SegmentSize) -> Self {
        Self { layout: Layout::uncut(segment) }
    }

    /// Places a member, and returns where its bytes are: [`Runs::None`] if it has none.
    pub fn member(&mut self, member: &Member) -> Result<Runs, SpaceError> {
        if member.payload == 0 {
            return Ok(Runs::None);
        }
        // What it takes at most: each sparse piece begins and ends inside a block of its own, and the whole
        // may begin at the next segment.
        let pieces = match &member.kind {
            MemberKind::Sparse { pieces, .. } => pieces.len() as u64,
            _ => 1,
        };
        let most = member.payload + (pieces + 1) * 2 * limits::BLOCK + self.layout.segment_size().bytes();
        // At least its payload: what cannot be mounted is refused before a cut is made for each MiB of it, or a
        // header of 512 bytes that claims tebibytes would take gibibytes of memory.
        let mountable = u64::from(limits::SEGMENTS) << self.layout.segment_size().bits();
        let least = self.layout.space() + member.payload;
        if self.layout.space() + most > 2 * limits::LAYER || least > mountable {
            return Err(SpaceError { limit: mountable.min(2 * limits::LAYER) });
        }
        Ok(match &member.kind {
            MemberKind::Sparse { pieces, .. } => {
                Runs::Sparse(self.layout.sparse(member.plain, pieces).into())
            }
            _ => Runs::Whole(self.layout.file(member.plain, member.payload)),
        })
    }

    /// Returns the layout of what has been placed.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the complete layout: there are no more members.
    pub fn finish(mut self) -> Layout {
        self.layout.finish();
        self.layout
    }
}
