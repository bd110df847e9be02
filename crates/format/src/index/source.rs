//! The decoder table of an index: where in a blob a decoder can begin, and how far each segment reaches.
//!
//! The module page of [`super`] has the byte layout. A table has one form only: starts ascend, each is used, and
//! segments use them in order. So an accepted table encodes to itself, and a run of segments with one start is a
//! contiguous span. A table that lies makes a decoder fail or its output fail the chunk hashes, nothing else.

use super::{Basis, BlobAt, Chunk, Contents, Facts, IndexError, within};
use crate::digest::Digest;
use crate::limits;
use crate::wire::{Fields, put};

const HEAD: usize = 52;
const START_ROW: usize = 24;
const REACH_ROW: usize = 12;

/// How a blob is compressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Codec {
    /// Not at all: the blob is the tar.
    Plain,
    /// Gzip, of one or more members (RFC 1952).
    Gzip,
    /// Zstandard, of one or more frames (RFC 8878).
    Zstd,
}

impl Codec {
    pub(super) const fn number(self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Gzip => 1,
            Self::Zstd => 2,
        }
    }

    pub(super) fn from_number(number: u32) -> Result<Self, IndexError> {
        match number {
            0 => Ok(Self::Plain),
            1 => Ok(Self::Gzip),
            2 => Ok(Self::Zstd),
            _ => Err(IndexError::Unsupported { what: "codec", number }),
        }
    }
}

/// A place at which a decoder can begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Start {
    /// Offset in the tar of the first byte that comes out.
    pub plain: u64,
    /// Offset in the blob of the first byte that is needed.
    pub packed: u64,
    /// How many of that byte's highest bits are needed: 1..=7, or 0 for all of it. Gzip only.
    pub bits: u8,
    /// The output before the place with unreferenced bytes set to zero, as a zstd frame; empty for none.
    ///
    /// Gzip: the place is inside a member, before a deflate block. Zstd: a frame begins there.
    pub window: Box<[u8]>,
}

/// What it takes to decode one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reach {
    /// Number of the start to begin at.
    pub start: u32,
    /// Offset in the blob after which the segment's last byte is out.
    pub packed_end: u64,
}

/// The decoder table: how to get the tar out of one blob. Not part of the identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Source {
    /// SHA-256 of the blob.
    pub blob: Digest,
    /// Length of the blob.
    pub size: u64,
    /// How it is compressed.
    pub codec: Codec,
    /// Ascending in both coordinates; each is used by a segment.
    pub starts: Vec<Start>,
    /// One per segment.
    pub reach: Vec<Reach>,
    /// Where the layer has a table of contents, in place of both.
    pub contents: Option<Contents>,
}

impl Source {
    /// Longest compressed window: zstd adds at most a few dozen bytes to the 32 KiB.
    pub const MAX_WINDOW: usize = (32 << 10) + 256;

    /// Returns the blob of this number: 0 the layer's own, others those of a table of contents.
    pub fn blob_at(&self, number: u16) -> Option<BlobAt> {
        match number.checked_sub(1) {
            None => Some(BlobAt { digest: self.blob, size: self.size }),
            Some(n) => self.contents.as_ref()?.blobs.get(usize::from(n)).copied(),
        }
    }

    /// Returns how long all is that its chunks are in: the blob, or those beside it.
    pub fn packed(&self) -> u64 {
        match &self.contents {
            Some(contents) if contents.pieces.is_empty() => 0,
            Some(contents) if !contents.blobs.is_empty() => contents.blobs.iter().map(|blob| blob.size).sum(),
            _ => self.size,
        }
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX); // at most SEGMENTS, see `check`
        let mut out = Vec::new();
        out.extend_from_slice(self.blob.as_bytes());
        put(&mut out, self.size);
        put(&mut out, self.codec.number());
        put(&mut out, count(self.starts.len()));
        put(&mut out, count(self.reach.len()));
        for start in &self.starts {
            put(&mut out, start.plain);
            put(&mut out, start.packed);
            put(&mut out, u32::from(start.bits));
            put(&mut out, count(start.window.len()));
        }
        for reach in &self.reach {
            put(&mut out, reach.start);
            put(&mut out, reach.packed_end);
        }
        for start in &self.starts {
            out.extend_from_slice(&start.window);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        let short = IndexError::Corrupt("its decoder table has the wrong length");
        let mut fields = Fields::new(bytes);
        let mut head = || {
            Some((
                Digest::from_bytes(fields.bytes()?),
                fields.u64()?,
                fields.u32()?,
                fields.u32()?,
                fields.u32()?,
            ))
        };
        let (blob, size, codec, starts_count, reach_count) = head().ok_or(short.clone())?;
        within("the number of starts", u64::from(starts_count), u64::from(limits::SEGMENTS))?;
        within("the number of segments", u64::from(reach_count), u64::from(limits::SEGMENTS))?;
        let (starts_count, reach_count) = (starts_count as usize, reach_count as usize);
        let rows = HEAD + starts_count * START_ROW + reach_count * REACH_ROW;
        let mut windows = bytes.get(rows..).ok_or(short.clone())?;

        let mut starts = Vec::with_capacity(starts_count);
        for _ in 0..starts_count {
            let mut row = || Some((fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?));
            let (plain, packed, bits, window_len) = row().ok_or(short.clone())?;
            let (window, rest) = windows.split_at_checked(window_len as usize).ok_or(short.clone())?;
            let bits =
                u8::try_from(bits).map_err(|_| IndexError::Corrupt("a start's bits are out of range"))?;
            starts.push(Start { plain, packed, bits, window: window.into() });
            windows = rest;
        }
        let mut reach = Vec::with_capacity(reach_count);
        for _ in 0..reach_count {
            let mut row = || Some(Reach { start: fields.u32()?, packed_end: fields.u64()? });
            reach.push(row().ok_or(short.clone())?);
        }
        if !windows.is_empty() {
            return Err(short);
        }
        Ok(Self { blob, size, codec: Codec::from_number(codec)?, starts, reach, contents: None })
    }

    pub(super) fn check(&self, facts: &Facts, chunks: &[Chunk]) -> Result<(), IndexError> {
        match (facts.basis, &self.contents) {
            (Basis::Tar, None) => self.check_starts(facts),
            (Basis::Contents, Some(contents)) => contents.check(self, facts, chunks),
            _ => Err(IndexError::Corrupt("its decoder table is of another kind than its facts")),
        }
    }

    fn check_starts(&self, facts: &Facts) -> Result<(), IndexError> {
        if self.reach.len() as u64 != u64::from(facts.segments()) {
            return Err(IndexError::Corrupt("its decoder table is for another number of segments"));
        }
        within("the tar, for a blob of its length,", facts.tar_len, most_plain(self.size))?;
        if !self.starts.iter().all(|s| self.start_is_sane(s, facts)) {
            return Err(IndexError::Corrupt("a start is out of range"));
        }
        if !self.starts.windows(2).all(|w| w[0].plain < w[1].plain && w[0].packed < w[1].packed) {
            return Err(IndexError::Corrupt("its starts are out of order"));
        }
        // Each start in turn, none left out: the only form one table can have.
        let (mut next, mut end) = (0, 0);
        for reach in &self.reach {
            match usize::try_from(reach.start) {
                Ok(n) if n == next && n < self.starts.len() => next += 1,
                Ok(n) if n + 1 == next => {}
                _ => return Err(IndexError::Corrupt("its segments and starts do not match")),
            }
            let begin = self.starts[next - 1].packed;
            if reach.packed_end <= begin || reach.packed_end < end || reach.packed_end > self.size {
                return Err(IndexError::Corrupt("a segment's end in the blob is out of range"));
            }
            end = reach.packed_end;
        }
        if next == self.starts.len() {
            Ok(())
        } else {
            Err(IndexError::Corrupt("a start belongs to no segment"))
        }
    }

    pub(super) fn encoded_len(&self) -> usize {
        if let Some(contents) = &self.contents {
            return contents.encoded_len();
        }
        let windows: usize = self.starts.iter().map(|start| start.window.len()).sum();
        HEAD + self.starts.len() * START_ROW + self.reach.len() * REACH_ROW + windows
    }

    fn start_is_sane(&self, start: &Start, facts: &Facts) -> bool {
        let shape = match self.codec {
            Codec::Gzip => start.bits <= 7 && start.window.len() <= Self::MAX_WINDOW,
            Codec::Zstd => start.bits == 0 && start.window.is_empty(),
            Codec::Plain => start.bits == 0 && start.window.is_empty() && start.packed == start.plain,
        };
        shape && start.plain < facts.tar_len && start.packed < self.size
    }
}

/// Returns the most plain bytes a blob of this length may become.
///
/// Deflate ends near [`limits::EXPANSION`]; zstd does not, so a short blob may become 64 MiB, a layer with one
/// file of zeros, before the ratio counts.
pub fn most_plain(packed: u64) -> u64 {
    packed.saturating_mul(limits::EXPANSION).max(64 << 20)
}
