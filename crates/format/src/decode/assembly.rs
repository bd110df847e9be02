//! Segments put together of whole chunks, wherever these are from.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::{DecodeError, Verified, small};
use crate::index::Chunk;
use crate::layer::{Corrupt, Layer};

/// Puts a run of consecutive segments together, chunk by chunk in payload order.
///
/// A chunk that reaches over the end of the last segment is needed all the same: its hash covers all of it.
pub struct Assembly {
    layer: Arc<Layer>,
    /// The segments still to be returned.
    wanted: Range<u32>,
    /// The chunks still to come; the first is next.
    chunks: Range<usize>,
    /// The first of the wanted segments, as far as they have been reached.
    filling: VecDeque<Vec<u8>>,
    spent: Vec<u8>,
}

impl Assembly {
    /// Begins to put these segments together.
    pub fn new(layer: Arc<Layer>, wanted: Range<u32>) -> Result<Self, DecodeError> {
        match layer.chunks_of(wanted.clone()) {
            Some(chunks) => Ok(Self { layer, wanted, chunks, filling: VecDeque::new(), spent: Vec::new() }),
            None => Err(DecodeError::NoSuchSegment(wanted)),
        }
    }

    /// Returns the chunk that has to come next, if any is wanted yet.
    pub fn wants(&self) -> Option<Chunk> {
        Some(self.layer.index().chunks()[self.number()?])
    }

    /// Takes the chunk that has to come next, if these are its bytes.
    pub fn put(&mut self, bytes: &[u8]) -> Result<(), Corrupt> {
        let Some(chunk) = self.wants() else { return Ok(()) };
        if bytes.len() as u64 != u64::from(chunk.len) || self.layer.hash().of(bytes) != Some(chunk.id.0) {
            return Err(self.corrupt());
        }
        self.place(bytes);
        Ok(())
    }

    /// Returns the error that the chunk which has to come next is wrong.
    pub(super) fn corrupt(&self) -> Corrupt {
        let number = self.number().unwrap_or_default();
        let cut = self.layer.layout().cuts().get(number);
        let first = cut.map_or(0, |cut| self.layer.layout().segment_size().of(cut.start));
        let segment = first.max(self.wanted.start);
        Corrupt { segment, chunk: u32::try_from(number).unwrap_or(u32::MAX) }
    }

    /// Takes the chunk that has to come next: these are its bytes, and as many as it is long.
    pub(super) fn place(&mut self, bytes: &[u8]) {
        let Some(number) = self.number() else { return };
        let size = self.layer.layout().segment_size();
        let cut = self.layer.layout().cuts()[number];
        let first = size.of(cut.start).max(self.wanted.start);
        for segment in first..(size.of(cut.end() - 1) + 1).min(self.wanted.end) {
            while self.filling.len() <= (segment - self.wanted.start) as usize {
                let next = self.wanted.start + u32::try_from(self.filling.len()).unwrap_or(u32::MAX);
                let mut memory = std::mem::take(&mut self.spent);
                memory.clear();
                memory.resize(small(self.layer.segment_len(next)), 0);
                self.filling.push_back(memory);
            }
            let (start, end) = (size.start(segment), size.start(segment) + size.bytes());
            let (from, to) = (cut.start.max(start), cut.end().min(end));
            let part = &bytes[small(from - cut.start)..small(to - cut.start)];
            let segment = &mut self.filling[(segment - self.wanted.start) as usize];
            segment[small(from - start)..small(to - start)].copy_from_slice(part);
        }
        self.chunks.start += 1;
    }

    /// Returns the next segment once all of its chunks have come.
    pub fn take(&mut self) -> Option<(u32, Verified)> {
        let segment = self.wanted.start;
        if self.wanted.is_empty() || self.layer.layout().cuts_of(segment).end > self.chunks.start {
            return None;
        }
        self.wanted.start += 1;
        let bytes = self.filling.pop_front().unwrap_or_default(); // there, since a chunk of it is
        Some((segment, Verified(bytes)))
    }

    /// Takes back the memory of a segment that is done with, for the next one.
    pub fn reuse(&mut self, spent: Verified) {
        self.spent = spent.0;
    }

    /// Returns the segments that are still to come.
    pub(super) fn wanted(&self) -> Range<u32> {
        self.wanted.clone()
    }

    /// Returns the number of the chunk that has to come next.
    pub(super) fn number(&self) -> Option<usize> {
        (!self.wanted.is_empty() && !self.chunks.is_empty()).then_some(self.chunks.start)
    }
}
