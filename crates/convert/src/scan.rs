//! The plain half of a build: the tar in; segments, chunks, skeleton and starts out.
//!
//! Follows the tar with the one parser that everybody uses, so payload lands where every reader of the index
//! will look for it. One segment is in memory; it goes to the sink when it is whole, that is, as soon as the tar
//! has moved on to the next one. What the sink gets is *unproved*: nobody may see it before the digests of blob
//! and tar have been compared.

use std::io;

use format::digest::DigestHasher;
use format::index::{Basis, Chunk, Codec, Facts, Reach, Start, hash_of};
use format::payload::{Extent, Layout, SegmentSize};
use format::skeleton::SkeletonWriter;
use format::tar::{Parser, Placer, Step};
use format::{ChunkId, DiffId, limits};

use crate::BuildError;
use crate::inflow::Batch;
use crate::starts::Starts;

/// Where segments go while they are not proved: the number of a segment, and its bytes in whole blocks.
///
/// Numbers ascend without gaps.
pub trait Sink: FnMut(u32, &[u8]) -> io::Result<()> + Send {}
impl<F: FnMut(u32, &[u8]) -> io::Result<()> + Send> Sink for F {}

/// What a layer's tar turned out to be.
pub(crate) struct Scanned {
    pub(crate) facts: Facts,
    pub(crate) skeleton: Box<[u8]>,
    pub(crate) chunks: Vec<Chunk>,
    pub(crate) starts: Vec<Start>,
    pub(crate) reach: Vec<Reach>,
}

/// Follows one tar.
pub(crate) struct Scan<S> {
    hasher: DigestHasher,
    parser: Parser,
    placer: Placer,
    skeleton: SkeletonWriter,
    starts: Starts,
    /// Bytes of payload before the parser goes on.
    payload: u64,
    /// How many extents of the layout have their bytes.
    extents: usize,
    segment: Segment,
    chunks: Vec<Chunk>,
    sink: S,
}

/// The segment being filled.
struct Segment {
    number: u32,
    /// Its bytes so far; the rest is zeros.
    bytes: Vec<u8>,
    /// Whether it has a byte.
    begun: bool,
}

impl<S: Sink> Scan<S> {
    pub(crate) fn new(segment: SegmentSize, sink: S) -> Result<Self, BuildError> {
        Ok(Self {
            hasher: DigestHasher::new(),
            parser: Parser::new(),
            placer: Placer::new(segment),
            skeleton: SkeletonWriter::new()?,
            starts: Starts::new()?,
            payload: 0,
            extents: 0,
            segment: Segment { number: 0, bytes: Vec::new(), begun: false },
            chunks: Vec::new(),
            sink,
        })
    }

    /// Takes the next batch.
    pub(crate) fn batch(&mut self, batch: &Batch) -> Result<(), BuildError> {
        self.hasher.update(batch.plain());
        let (mut rest, mut plain) = (batch.plain(), batch.plain_at);
        while !rest.is_empty() {
            let taken = if self.payload > 0 {
                let n = small(self.payload.min(rest.len() as u64));
                self.payload(plain, &rest[..n], batch)?;
                self.payload -= n as u64;
                n
            } else {
                let (n, step) = self.parser.step(rest)?;
                self.skeleton.write(&rest[..n])?;
                if let Step::Member(member) = step {
                    self.placer.member(&member)?;
                    self.payload = member.payload;
                    self.moved_on()?;
                }
                n
            };
            (rest, plain) = (&rest[taken..], plain + taken as u64);
        }
        self.starts.end_batch(batch);
        Ok(())
    }

    /// Says that the tar ends here; returns what it was.
    pub(crate) fn finish(mut self, codec: Codec) -> Result<Scanned, BuildError> {
        self.parser.finish()?;
        if self.payload > 0 {
            return Err(BuildError::TarEnds);
        }
        let diff_id = DiffId::new(self.hasher.finish());
        let tar_len = self.parser.plain();
        let layout = self.placer.finish();
        if self.segment.begun {
            self.segment.deliver(&layout, &mut self.chunks, &mut self.sink)?;
        }
        let (skeleton, of_skeleton) = self.skeleton.finish()?;
        let (starts, reach) = self.starts.finish(codec);
        let facts = Facts {
            diff_id,
            basis: Basis::Tar,
            tar_len,
            segment: layout.segment_size(),
            space: layout.space(),
            skeleton_len: of_skeleton.len,
            skeleton_hash: of_skeleton.hash,
            chunk_count: u32::try_from(self.chunks.len()).unwrap_or(u32::MAX), // bounded by the space
            chunks_hash: hash_of(&self.chunks),
        };
        Ok(Scanned { facts, skeleton: skeleton.into(), chunks: self.chunks, starts, reach })
    }

    /// Puts payload that begins at `plain` where it belongs.
    fn payload(&mut self, mut plain: u64, mut bytes: &[u8], batch: &Batch) -> Result<(), BuildError> {
        let size = self.placer.layout().segment_size();
        while !bytes.is_empty() {
            // Members announce as much payload as their extents hold.
            let Some(&Extent { payload, plain: begin, len }) =
                self.placer.layout().extents().get(self.extents)
            else {
                return Err(BuildError::TarEnds);
            };
            let done = plain - begin;
            let at = payload + done;
            self.move_to(size.of(at))?;
            let number = self.segment.number;
            if !self.segment.begun {
                if number >= limits::SEGMENTS {
                    return Err(BuildError::Limit { what: "segments", limit: u64::from(limits::SEGMENTS) });
                }
                self.segment.begun = true;
                self.starts.begin(plain, batch);
            }
            let room = size.start(number) + size.bytes() - at;
            let n = small((len - done).min(room).min(bytes.len() as u64));
            self.segment.bytes.resize(small(at - size.start(number)), 0);
            self.segment.bytes.extend_from_slice(&bytes[..n]);
            (plain, bytes) = (plain + n as u64, &bytes[n..]);
            self.starts.extend(plain);
            if done + n as u64 == len {
                self.extents += 1;
            }
        }
        Ok(())
    }

    /// Hands on the current segment if the latest member lies behind it: its cuts are known from here on.
    fn moved_on(&mut self) -> Result<(), BuildError> {
        let layout = self.placer.layout();
        match layout.extents().get(self.extents) {
            Some(extent) => self.move_to(layout.segment_size().of(extent.payload)),
            None => Ok(()),
        }
    }

    fn move_to(&mut self, number: u32) -> Result<(), BuildError> {
        if number > self.segment.number {
            self.segment.deliver(self.placer.layout(), &mut self.chunks, &mut self.sink)?;
            self.segment = Segment { number, bytes: std::mem::take(&mut self.segment.bytes), begun: false };
        }
        Ok(())
    }
}

impl Segment {
    /// Hashes the chunks of a segment whose bytes and cuts are all there, and hands it on.
    fn deliver(
        &mut self,
        layout: &Layout,
        chunks: &mut Vec<Chunk>,
        sink: &mut impl Sink,
    ) -> Result<(), BuildError> {
        let base = layout.segment_size().start(self.number);
        self.bytes.resize(small(layout.segment_len(self.number)), 0);
        for cut in &layout.cuts()[layout.cuts_of(self.number)] {
            let bytes = &self.bytes[small(cut.start - base)..small(cut.end() - base)];
            chunks.push(Chunk { len: cut.len, id: ChunkId::of(bytes) });
        }
        sink(self.number, &self.bytes).map_err(|source| BuildError::Sink { segment: self.number, source })?;
        self.bytes.clear();
        Ok(())
    }
}

/// Offsets inside a segment or a batch: at most 1 GiB.
fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
