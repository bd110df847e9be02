//! The decoder of a span that has one start: plain bytes in the order of the tar.

use std::ops::Range;
use std::sync::Arc;

use super::{DecodeError, PIECE, Verified, small};
use crate::layer::Layer;
use crate::payload::Extent;
use crate::unpack::Unpacker;

/// Decodes a run of consecutive segments, one after the other.
///
/// The range begins at the start of the first segment's span; spans that follow are decoded through without
/// starting anew, so neighbours cost nothing extra.
pub(super) struct StreamDecoder {
    layer: Arc<Layer>,
    unpacker: Unpacker,
    /// The segments still to come; the first is being filled.
    wanted: Range<u32>,
    packed: Range<u64>,
    filling: Filling,
    /// Decoded bytes not looked at yet: a part of `piece`, which begins at `plain` in the tar.
    piece: Box<[u8]>,
    ready: Range<usize>,
    plain: u64,
    /// Where the next byte of the blob is that has not been used.
    at: u64,
    spent: Vec<u8>,
}

impl StreamDecoder {
    /// Returns a decoder of these segments.
    pub(super) fn new(layer: Arc<Layer>, wanted: Range<u32>) -> Result<Self, DecodeError> {
        let reach = layer.source().reach.get(wanted.start as usize);
        let (Some(reach), Some(packed)) = (reach, layer.packed(wanted.clone())) else {
            return Err(DecodeError::NoSuchSegment(wanted));
        };
        let start = &layer.source().starts[reach.start as usize];
        let unpacker = Unpacker::at(layer.source().codec, start)
            .map_err(|why| DecodeError::Undecodable { segment: wanted.start, why })?;
        Ok(Self {
            filling: Filling::new(&layer, wanted.start, Vec::new()),
            plain: start.plain,
            unpacker,
            wanted,
            at: packed.start,
            packed,
            piece: Box::default(),
            ready: 0..0,
            spent: Vec::new(),
            layer,
        })
    }

    /// Returns the range of the blob to push, in order and from its beginning.
    pub(super) fn packed(&self) -> Range<u64> {
        self.packed.clone()
    }

    /// Decodes from the front of `input` and takes off what was used.
    ///
    /// Returns the next wanted segment as soon as it is complete: call again with what is left. Nothing means
    /// that all of `input` is used up, or that all segments have been returned. After an error there is nothing
    /// more to be had.
    pub(super) fn push(&mut self, input: &mut &[u8]) -> Result<Option<(u32, Verified)>, DecodeError> {
        while !self.is_done() {
            let ready = &self.piece[self.ready.clone()];
            let used = self.filling.take(self.plain, ready);
            self.ready.start += used;
            self.plain += used as u64;
            if self.filling.left == 0 {
                return self.complete().map(Some);
            }
            if self.piece.len() < PIECE {
                self.piece = vec![0; PIECE].into();
            }
            let step = self.unpacker.step(input, &mut self.piece, false);
            let step = step.map_err(|why| DecodeError::Undecodable { segment: self.wanted.start, why })?;
            *input = &input[step.read..];
            self.at += step.read as u64;
            self.ready = 0..step.written;
            if step.read == 0 && step.written == 0 {
                break;
            }
        }
        Ok(None)
    }

    /// Takes back the memory of a segment that is done with, for the next one.
    pub(super) fn reuse(&mut self, spent: Verified) {
        self.spent = spent.0;
    }

    /// Returns the segments that are still to come.
    pub(super) fn wanted(&self) -> Range<u32> {
        self.wanted.clone()
    }

    fn is_done(&self) -> bool {
        self.wanted.is_empty()
    }

    /// Returns the segment that comes next, if this decoder is done and another one shares the start of the last.
    pub(super) fn next(&self) -> Option<u32> {
        let next = self.wanted.end;
        let reach = &self.layer.source().reach;
        let last = reach.get(next.checked_sub(1)? as usize)?;
        (self.is_done() && reach.get(next as usize)?.start == last.start).then_some(next)
    }

    /// Goes on with the segments up to `end`: [`super::SpanDecoder::parts`] is then what is to be pushed for them.
    ///
    /// Only for a decoder that has a [`super::SpanDecoder::next`] segment, which must be before `end`.
    pub(super) fn go_on(&mut self, end: u32) -> Result<(), DecodeError> {
        let next = self.next().filter(|next| *next < end).ok_or(DecodeError::NoSuchSegment(end..end))?;
        let packed = self.layer.packed(next..end).ok_or(DecodeError::NoSuchSegment(next..end))?;
        self.wanted = next..end;
        self.packed = self.at.min(packed.end)..packed.end;
        self.filling = Filling::new(&self.layer, next, std::mem::take(&mut self.spent));
        Ok(())
    }

    /// Gives back memory that is of no use while this decoder waits to go on.
    pub(super) fn shrink(&mut self) {
        self.piece = self.piece[self.ready.clone()].into();
        self.ready = 0..self.piece.len();
        self.spent = Vec::new();
    }

    fn complete(&mut self) -> Result<(u32, Verified), DecodeError> {
        let segment = self.wanted.start;
        self.layer.verify_segment(segment, &self.filling.bytes)?;
        self.wanted.start += 1;
        let next = if self.is_done() {
            Filling::default()
        } else {
            Filling::new(&self.layer, self.wanted.start, std::mem::take(&mut self.spent))
        };
        Ok((segment, Verified(std::mem::replace(&mut self.filling, next).bytes)))
    }
}

/// A segment on its way.
#[derive(Default)]
struct Filling {
    bytes: Vec<u8>,
    /// Its extents, cut to it: `payload` counts from its beginning.
    extents: Vec<Extent>,
    /// The first extent that is not complete.
    next: usize,
    /// Bytes that are missing.
    left: u64,
}

impl Filling {
    fn new(layer: &Layer, segment: u32, mut memory: Vec<u8>) -> Self {
        let (base, size) =
            (layer.layout().segment_size().start(segment), layer.layout().segment_size().bytes());
        let cut = |e: &Extent| {
            let from = e.payload.max(base);
            let to = (e.payload + e.len).min(base + size);
            Extent { payload: from - base, plain: e.plain + (from - e.payload), len: to - from }
        };
        let extents: Vec<_> = layer.layout().extents_of(segment).iter().map(cut).collect();
        memory.clear();
        memory.resize(small(layer.segment_len(segment)), 0);
        Self { bytes: memory, left: extents.iter().map(|e| e.len).sum(), extents, next: 0 }
    }

    /// Takes what belongs to the segment from bytes that begin at `plain` in the tar; says how many are done
    /// with. Stops after the last byte of the segment.
    fn take(&mut self, plain: u64, bytes: &[u8]) -> usize {
        let end = plain + bytes.len() as u64;
        let mut done = plain;
        while let Some(extent) = self.extents.get(self.next) {
            let (from, to) = (extent.plain.max(done), (extent.plain + extent.len).min(end));
            if from >= to {
                return bytes.len();
            }
            let at = small(extent.payload + (from - extent.plain));
            let part = &bytes[small(from - plain)..small(to - plain)];
            self.bytes[at..at + part.len()].copy_from_slice(part);
            self.left -= part.len() as u64;
            done = to;
            if to < extent.plain + extent.len {
                break;
            }
            self.next += 1;
        }
        small(done - plain)
    }
}
