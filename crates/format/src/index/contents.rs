//! The decoder table of a layer that has a table of contents of its own: where in the blob each chunk is.
//!
//! Made from that table ([`crate::stargz`]), kept on a node and never sent: whoever wants it has the layer's own. The
//! module page of [`super`] has the byte layout. An accepted table encodes to itself.

use super::{Chunk, Codec, Facts, IndexError, Source, within};
use crate::digest::Digest;
use crate::limits;
use crate::wire::{Fields, put};

const HEAD: usize = 84;
const ROW: usize = 20;

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the blob where a member or frame begins that holds it.
    pub begin: u64,
    /// Offset in the blob behind which nothing of it is.
    pub end: u64,
    /// Plain bytes from there to its first one.
    pub skip: u32,
}

/// Where all chunks of a layer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// SHA-256 of the table this was made from, as the layer's descriptor names it.
    pub table: Digest,
    /// So many segments from the first one on hold what a start reads, as whoever made the layer says; 0 where nobody has.
    pub ahead: u32,
    /// One per chunk.
    pub pieces: Vec<Piece>,
}

impl Contents {
    pub(super) fn encode(&self, source: &Source) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEAD + self.pieces.len() * ROW);
        out.extend_from_slice(source.blob.as_bytes());
        put(&mut out, source.size);
        put(&mut out, source.codec.number());
        out.extend_from_slice(self.table.as_bytes());
        put(&mut out, self.ahead);
        put(&mut out, u32::try_from(self.pieces.len()).unwrap_or(u32::MAX)); // one per chunk, which are counted so
        for piece in &self.pieces {
            put(&mut out, piece.begin);
            put(&mut out, piece.end);
            put(&mut out, piece.skip);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Source, IndexError> {
        let short = IndexError::Corrupt("its table of pieces has the wrong length");
        let (mut fields, rest) = (Fields::new(bytes), bytes.get(HEAD..).ok_or(short.clone())?);
        let mut head = || {
            let (blob, size, codec) = (Digest::from_bytes(fields.bytes()?), fields.u64()?, fields.u32()?);
            Some((blob, size, codec, Digest::from_bytes(fields.bytes()?), fields.u32()?, fields.u32()?))
        };
        let (blob, size, codec, table, ahead, count) = head().ok_or(short.clone())?;
        let (rows, after) = rest.as_chunks::<ROW>();
        if rows.len() as u64 != u64::from(count) || !after.is_empty() {
            return Err(short);
        }
        let row = |row: &[u8; ROW]| {
            let mut fields = Fields::new(row);
            Some(Piece { begin: fields.u64()?, end: fields.u64()?, skip: fields.u32()? })
        };
        let pieces = rows.iter().map(row).collect::<Option<_>>().ok_or(short)?;
        let contents = Some(Self { table, ahead, pieces });
        let codec = Codec::from_number(codec)?;
        Ok(Source { blob, size, codec, starts: Vec::new(), reach: Vec::new(), contents })
    }

    /// Checks that whoever decodes the chunks one after the other never has to go back, nor past the end.
    pub(super) fn check(&self, source: &Source, facts: &Facts, chunks: &[Chunk]) -> Result<(), IndexError> {
        let wrong = |what| Err(IndexError::Corrupt(what));
        if !source.starts.is_empty() || !source.reach.is_empty() {
            return wrong("it has two decoder tables");
        }
        if self.pieces.len() != chunks.len() {
            return wrong("its table of pieces is for another number of chunks");
        }
        if self.ahead > facts.segments() {
            return wrong("more segments are to be read ahead than there are");
        }
        let mut last: Option<(Piece, u32)> = None;
        for (piece, chunk) in self.pieces.iter().zip(chunks) {
            within("the bytes before a piece", piece.skip.into(), limits::INNER.into())?;
            let follows = last.is_none_or(|(before, len)| {
                let further = piece.skip.checked_sub(before.skip).is_some_and(|far| far >= len);
                (piece.begin == before.begin && piece.end == before.end && further)
                    || piece.begin >= before.end
            });
            if piece.begin >= piece.end || piece.end > source.size || !follows {
                return wrong("its pieces are out of order");
            }
            last = Some((*piece, chunk.len));
        }
        Ok(())
    }

    pub(super) fn encoded_len(&self) -> usize {
        HEAD + self.pieces.len() * ROW
    }
}
