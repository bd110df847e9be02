//! Compressed bytes of a blob to verified segments.
//!
//! Given an opened [`Layer`] and the bytes of [`SpanDecoder::parts`] from anywhere, in pieces of any size, the
//! decoder returns each wanted segment whole and checked, or an error that names the segment. A segment's bytes
//! are handed out only after every chunk in it has passed its hash, and what no chunk covers is zero because
//! nobody wrote it. Stops by itself once the last wanted byte is out: a blob that expands for ever costs what
//! the index promised and no more.
//!
//! There are two ways. One start for a span ([`stream`]): one segment and 64 KiB in memory, beside the codec's own
//! window. A decoder that is done stands right before the next segment and can go on from there: a span has one start
//! for several segments, and whoever wants the first of them need not fetch the others, nor fetch it again for
//! them. Waiting, it holds what it had decoded already and the codec's state, some 100 KB for gzip. And a beginning for
//! each chunk ([`pieces`]), where the layer has a table of contents: one chunk and the segments it reaches into in memory.

mod assembly;
mod pieces;
mod stream;

use std::ops::Range;
use std::sync::Arc;

pub use self::assembly::{Assembly, Half};
use crate::index::{Chunk, Codec, Hash, Packing, Part, Piece};
use crate::layer::{Corrupt, Layer};
use crate::limits;
use crate::unpack::{self, UnpackError};
use pieces::PieceDecoder;
use stream::StreamDecoder;

/// Plain bytes decoded at a time: fits a second-level cache, and large enough that a call costs nothing.
const PIECE: usize = 64 << 10;

/// The bytes of one whole segment, every chunk of which has passed its hash. Made only in this module.
#[derive(Debug, PartialEq, Eq)]
pub struct Verified(Vec<u8>);

impl Verified {
    /// Returns the bytes: the segment from its start to its last payload byte, filled up to whole blocks.
    pub fn as_slice(&self) -> &[u8] {
        &self.0
    }

    /// Returns the bytes to keep.
    pub fn into_vec(self) -> Vec<u8> {
        self.0
    }
}

/// Why no (more) segment comes out of these bytes.
#[derive(Debug, thiserror::Error)]
pub enum DecodeError {
    /// The segments asked for do not exist.
    #[error("segments {0:?} are not in the layer")]
    NoSuchSegment(Range<u32>),
    /// What came out is not what the index says: the blob, or the index, is wrong.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// The bytes cannot be decompressed from the start the index names.
    #[error("segment {segment} cannot be decompressed")]
    Undecodable {
        /// The segment that was next.
        segment: u32,
        /// What the decompressor said.
        #[source]
        why: UnpackError,
    },
    /// The compressed bytes ended before the segment was complete.
    #[error("the compressed bytes end before segment {segment} is complete")]
    Truncated {
        /// The segment that was next.
        segment: u32,
    },
}

/// Decodes a run of consecutive segments from what is compressed.
///
/// That begins where the first segment's span does; spans that follow are decoded through without starting anew, so
/// neighbours cost nothing extra.
pub struct SpanDecoder(Way);

enum Way {
    Stream(Box<StreamDecoder>),
    Pieces(Box<PieceDecoder>),
}

impl SpanDecoder {
    /// Returns a decoder of these segments.
    pub fn new(layer: Arc<Layer>, wanted: Range<u32>) -> Result<Self, DecodeError> {
        Ok(Self(match layer.pieces() {
            None => Way::Stream(Box::new(StreamDecoder::new(layer, wanted)?)),
            Some(_) => Way::Pieces(Box::new(PieceDecoder::new(layer, wanted)?)),
        }))
    }

    /// Returns a decoder of these segments and, where only what holds them is hashed ([`Hash::Sealed`]), of all else that
    /// comes out of that: segments around them, and halves of those that lie in something else as well. What is `known` of
    /// the first and of the last one need not come again.
    pub fn with_neighbours(
        layer: Arc<Layer>,
        wanted: Range<u32>,
        known: Vec<Half>,
    ) -> Result<Self, DecodeError> {
        if layer.hash() != Hash::Sealed {
            return Self::new(layer, wanted);
        }
        Ok(Self(Way::Pieces(Box::new(PieceDecoder::with_neighbours(layer, wanted, known)?))))
    }

    /// Returns the halves that have come out so far, each once.
    pub fn halves(&mut self) -> Vec<Half> {
        match &mut self.0 {
            Way::Stream(_) => Vec::new(),
            Way::Pieces(pieces) => pieces.halves(),
        }
    }

    /// Returns what is to be pushed, in order and from its beginning.
    pub fn parts(&self) -> Vec<Part> {
        match &self.0 {
            Way::Stream(stream) => vec![Part { blob: 0, range: stream.packed(), chunks: 0 }],
            Way::Pieces(pieces) => pieces.parts(),
        }
    }

    /// Decodes from the front of `input` and takes off what was used.
    ///
    /// Returns the next wanted segment as soon as it is complete: call again with what is left. Nothing means
    /// that all of `input` is used up, or that all segments have been returned. After an error there is nothing
    /// more to be had.
    pub fn push(&mut self, input: &mut &[u8]) -> Result<Option<(u32, Verified)>, DecodeError> {
        match &mut self.0 {
            Way::Stream(stream) => stream.push(input),
            Way::Pieces(pieces) => pieces.push(input),
        }
    }

    /// Takes back the memory of a segment that is done with, for the next one.
    pub fn reuse(&mut self, spent: Verified) {
        match &mut self.0 {
            Way::Stream(stream) => stream.reuse(spent),
            Way::Pieces(pieces) => pieces.reuse(spent),
        }
    }

    /// Returns whether all segments have been returned.
    pub fn is_done(&self) -> bool {
        self.wanted().is_empty()
    }

    /// Says that there are no more bytes: an error unless all segments have been returned.
    pub fn finish(&self) -> Result<(), DecodeError> {
        if self.is_done() { Ok(()) } else { Err(DecodeError::Truncated { segment: self.wanted().start }) }
    }

    /// Returns the segment that comes next, if this decoder is done and another one shares the start of the last.
    pub fn next(&self) -> Option<u32> {
        match &self.0 {
            Way::Stream(stream) => stream.next(),
            Way::Pieces(_) => None,
        }
    }

    /// Goes on with the segments up to `end`: [`SpanDecoder::parts`] is then what is to be pushed for them.
    ///
    /// Only for a decoder that has a [`SpanDecoder::next`] segment, which must be before `end`.
    pub fn go_on(&mut self, end: u32) -> Result<(), DecodeError> {
        match &mut self.0 {
            Way::Stream(stream) => stream.go_on(end),
            Way::Pieces(_) => Err(DecodeError::NoSuchSegment(end..end)),
        }
    }

    /// Gives back memory that is of no use while this decoder waits to go on.
    pub fn shrink(&mut self) {
        if let Way::Stream(stream) = &mut self.0 {
            stream.shrink();
        }
    }

    fn wanted(&self) -> Range<u32> {
        match &self.0 {
            Way::Stream(stream) => stream.wanted(),
            Way::Pieces(pieces) => pieces.wanted(),
        }
    }
}

/// Returns a chunk from all that holds it, if that is what its hash says.
pub fn chunk(piece: &Piece, packed: &[u8], wanted: &Chunk, hash: Hash) -> Option<Vec<u8>> {
    let whole = |codec| unpack::whole(codec, packed, limits::PIECE.into()).ok().flatten();
    let end = piece.skip.checked_add(wanted.len)?;
    let mut plain = match piece.packing {
        Packing::Plain => packed.to_vec(),
        Packing::Gzip => whole(Codec::Gzip)?,
        Packing::Zstd => whole(Codec::Zstd)?,
        Packing::Lz4 => pieces::unblock(packed, end),
        Packing::Inside => return None,
    };
    plain.truncate(small(end.into()));
    plain.drain(..small(piece.skip.into()).min(plain.len()));
    (plain.len() == small(wanted.len.into()) && hash.of(&plain) == Some(wanted.id.0)).then_some(plain)
}

/// Offsets inside a segment or a piece: at most 1 GiB.
fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
