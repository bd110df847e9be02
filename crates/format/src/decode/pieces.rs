//! The decoder of a layer that has a table of contents: each chunk by itself.
//!
//! What lies between the chunks, headers of the tar for the most part, is fetched and passed over. A chunk that reaches
//! over the end of the last wanted segment is decoded all the same: its hash covers all of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::{DecodeError, PIECE, Verified, small};
use crate::digest::Digest;
use crate::index::{Codec, Piece};
use crate::layer::{Corrupt, Layer};
use crate::payload::Cut;
use crate::unpack::{UnpackError, Unpacker};

/// Decodes a run of consecutive segments chunk by chunk.
pub(super) struct PieceDecoder {
    layer: Arc<Layer>,
    /// The segments still to be returned.
    wanted: Range<u32>,
    /// The chunks still to be decoded; the first is in hand.
    chunks: Range<usize>,
    packed: Range<u64>,
    /// Where the next byte of the blob is that has not been used.
    at: u64,
    open: Option<Open>,
    /// The chunk in hand, as far as it has come: as long as it will be, but for what lies before it.
    chunk: Vec<u8>,
    /// Where goes what lies before a chunk in its member or frame; made when there is something.
    passed: Vec<u8>,
    /// The first of the wanted segments, as far as they have been reached.
    filling: VecDeque<Vec<u8>>,
    spent: Vec<u8>,
}

/// A member or frame that is being decoded.
struct Open {
    unpacker: Unpacker,
    /// Where in the blob it begins.
    begin: u64,
    /// Plain bytes that are out.
    out: u64,
}

impl PieceDecoder {
    /// Returns a decoder of these segments.
    pub(super) fn new(layer: Arc<Layer>, wanted: Range<u32>) -> Result<Self, DecodeError> {
        let (Some(chunks), Some(packed)) = (layer.chunks_of(wanted.clone()), layer.packed(wanted.clone()))
        else {
            return Err(DecodeError::NoSuchSegment(wanted));
        };
        Ok(Self {
            at: packed.start,
            packed,
            chunks,
            wanted,
            open: None,
            chunk: Vec::new(),
            passed: Vec::new(),
            filling: VecDeque::new(),
            spent: Vec::new(),
            layer,
        })
    }

    /// Returns the range of the blob to push.
    pub(super) fn packed(&self) -> Range<u64> {
        self.packed.clone()
    }

    /// Returns the segments that are still to come.
    pub(super) fn wanted(&self) -> Range<u32> {
        self.wanted.clone()
    }

    /// Takes back the memory of a segment that is done with, for the next one.
    pub(super) fn reuse(&mut self, spent: Verified) {
        self.spent = spent.0;
    }

    /// Decodes from the front of `input`; returns the next wanted segment as soon as it is complete.
    pub(super) fn push(&mut self, input: &mut &[u8]) -> Result<Option<(u32, Verified)>, DecodeError> {
        while !self.wanted.is_empty() {
            if self.layer.layout().cuts_of(self.wanted.start).end <= self.chunks.start {
                let segment = self.wanted.start;
                self.wanted.start += 1;
                let bytes = self.filling.pop_front().unwrap_or_default(); // there, since a chunk of it is
                return Ok(Some((segment, Verified(bytes))));
            }
            let (number, cut) = (self.chunks.start, self.layer.layout().cuts()[self.chunks.start]);
            let Some(piece) = self.layer.pieces().map(|pieces| pieces[number]) else { break };
            if !self.reach(&piece, input)? {
                break;
            }
            if !self.decode(&piece, cut.len, input)? {
                break;
            }
            self.place(number, cut)?;
            self.chunks.start += 1;
        }
        Ok(None)
    }

    /// Goes to where a chunk's member or frame begins; false if there is not enough input.
    fn reach(&mut self, piece: &Piece, input: &mut &[u8]) -> Result<bool, DecodeError> {
        if self.open.as_ref().is_some_and(|open| open.begin == piece.begin) {
            return Ok(true);
        }
        let skip = small(piece.begin.saturating_sub(self.at)).min(input.len());
        *input = &input[skip..];
        self.at += skip as u64;
        if self.at < piece.begin {
            return Ok(false);
        }
        let unpacker = Unpacker::new(self.codec()).map_err(|why| self.undecodable(why))?;
        self.open = Some(Open { unpacker, begin: piece.begin, out: 0 });
        Ok(true)
    }

    /// Decodes the chunk in hand; false if there is not enough input.
    fn decode(&mut self, piece: &Piece, len: u32, input: &mut &[u8]) -> Result<bool, DecodeError> {
        let begins = u64::from(piece.skip);
        let ends = begins + u64::from(len);
        self.chunk.resize(small(len.into()), 0);
        while let Some(open) = &mut self.open
            && open.out < ends
        {
            // Never past the chunk, nor past where it is said to have ended.
            let room = if open.out < begins {
                self.passed.resize(PIECE, 0);
                &mut self.passed[..small(begins - open.out).min(PIECE)]
            } else {
                &mut self.chunk[small(open.out - begins)..]
            };
            let (now, _) = input.split_at(input.len().min(small(piece.end.saturating_sub(self.at))));
            let step = match open.unpacker.step(now, room, false) {
                Ok(step) => step,
                Err(why) => return Err(self.undecodable(why)),
            };
            *input = &input[step.read..];
            self.at += step.read as u64;
            open.out += step.written as u64;
            if step.read == 0 && step.written == 0 {
                if self.at >= piece.end {
                    return Err(self.undecodable(UnpackError::Truncated));
                }
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Checks the chunk in hand and copies it into the wanted segments that it reaches into.
    fn place(&mut self, number: usize, cut: Cut) -> Result<(), DecodeError> {
        let size = self.layer.layout().segment_size();
        let first = size.of(cut.start);
        if Digest::of(&self.chunk).as_bytes() != &self.layer.index().chunks()[number].id.0 {
            let segment = first.max(self.wanted.start);
            return Err(Corrupt { segment, chunk: u32::try_from(number).unwrap_or(u32::MAX) }.into());
        }
        for segment in first.max(self.wanted.start)..(size.of(cut.end() - 1) + 1).min(self.wanted.end) {
            while self.filling.len() <= (segment - self.wanted.start) as usize {
                let next = self.wanted.start + u32::try_from(self.filling.len()).unwrap_or(u32::MAX);
                let mut bytes = std::mem::take(&mut self.spent);
                bytes.clear();
                bytes.resize(small(self.layer.segment_len(next)), 0);
                self.filling.push_back(bytes);
            }
            let (start, end) = (size.start(segment), size.start(segment) + size.bytes());
            let (from, to) = (cut.start.max(start), cut.end().min(end));
            let part = &self.chunk[small(from - cut.start)..small(to - cut.start)];
            let segment = &mut self.filling[(segment - self.wanted.start) as usize];
            segment[small(from - start)..small(to - start)].copy_from_slice(part);
        }
        Ok(())
    }

    fn codec(&self) -> Codec {
        self.layer.source().codec
    }

    fn undecodable(&self, why: UnpackError) -> DecodeError {
        DecodeError::Undecodable { segment: self.wanted.start, why }
    }
}
