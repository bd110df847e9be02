//! Segments put together of whole chunks, wherever these are from.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::{DecodeError, Verified, small};
use crate::digest::IndexId;
use crate::index::Chunk;
use crate::layer::{Corrupt, Layer};

/// What has come out of one of the two spans that a segment lies in: the bytes of its first chunks, or of its last ones.
///
/// As good as a segment: made only of chunks that are what the index says.
#[derive(Debug)]
pub struct Half {
    layer: IndexId,
    segment: u32,
    /// The chunks, up to the last one that has a byte in the segment or from the first one.
    chunks: Range<usize>,
    /// Where in the segment the first byte is.
    at: usize,
    bytes: Vec<u8>,
}

impl Half {
    /// Returns the segment.
    pub fn segment(&self) -> u32 {
        self.segment
    }

    /// Returns the memory that it takes.
    #[allow(clippy::len_without_is_empty, reason = "there is no empty one")]
    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    /// Says whether it is of the first chunks of its segment.
    pub fn begins(&self, layer: &Layer) -> bool {
        layer.layout().cuts_of(self.segment).start == self.chunks.start
    }

    /// Returns the segment, if the two are all of it.
    pub fn join(&self, other: &Self, layer: &Layer) -> Option<Verified> {
        let (first, last) =
            if self.chunks.start <= other.chunks.start { (self, other) } else { (other, self) };
        let whole = layer.layout().cuts_of(first.segment);
        let same = [first, last].map(|half| (half.layer, half.segment)) == [(layer.id(), last.segment); 2];
        let all = first.chunks.start == whole.start && last.chunks.end == whole.end;
        if !same || !all || last.chunks.start > first.chunks.end {
            return None;
        }
        let mut bytes = vec![0; small(layer.segment_len(first.segment))];
        first.put_into(&mut bytes);
        last.put_into(&mut bytes);
        Some(Verified(bytes))
    }

    fn put_into(&self, segment: &mut [u8]) {
        if let Some(room) = segment.get_mut(self.at..self.at + self.bytes.len()) {
            room.copy_from_slice(&self.bytes);
        }
    }
}

/// Puts a run of consecutive segments together, chunk by chunk in payload order.
///
/// A chunk that reaches over the end of the last segment is needed all the same: its hash covers all of it.
pub struct Assembly {
    layer: Arc<Layer>,
    /// The segments still to be returned.
    wanted: Range<u32>,
    /// The chunks still to come; the first is next.
    chunks: Range<usize>,
    /// The first chunk that has come or was there already.
    from: usize,
    /// The last chunks of the last segment, where they are there already.
    tail: Option<Half>,
    /// What is left of segments that lie in other spans as well.
    halves: Vec<Half>,
    /// The first of the wanted segments, as far as they have been reached.
    filling: VecDeque<Vec<u8>>,
    spent: Vec<u8>,
}

impl Assembly {
    /// Begins to put these segments together.
    pub fn new(layer: Arc<Layer>, wanted: Range<u32>) -> Result<Self, DecodeError> {
        match layer.chunks_of(wanted.clone()) {
            Some(chunks) => Ok(Self {
                layer,
                wanted,
                from: chunks.start,
                chunks,
                tail: None,
                halves: Vec::new(),
                filling: VecDeque::new(),
                spent: Vec::new(),
            }),
            None => Err(DecodeError::NoSuchSegment(wanted)),
        }
    }

    /// Begins to put all segments together that have a byte in whole spans: what holds these segments, but for what `known`
    /// has of the first and of the last.
    pub(super) fn with_neighbours(
        layer: Arc<Layer>,
        wanted: Range<u32>,
        known: Vec<Half>,
    ) -> Result<Self, DecodeError> {
        let Some(needed) = layer.chunks_of(wanted.clone()) else {
            return Err(DecodeError::NoSuchSegment(wanted));
        };
        let (mut head, mut tail) = (None, None);
        for half in known.into_iter().filter(|half| half.layer == layer.id()) {
            if half.segment == wanted.start && half.chunks.start == needed.start {
                head = Some(half);
            } else if half.segment + 1 == wanted.end && half.chunks.end == needed.end {
                tail = Some(half);
            }
        }
        let start = head.as_ref().map_or(needed.start, |half| half.chunks.end);
        let end = tail.as_ref().map_or(needed.end, |half| half.chunks.start);
        let chunks = if start < end { layer.of_spans(start..end) } else { layer.of_spans(needed) };
        let (layout, size) = (layer.layout(), layer.layout().segment_size());
        let (first, last) = (layout.cuts()[chunks.start], layout.cuts()[chunks.end - 1]);
        let segments = size.of(first.start)..size.of(last.end() - 1) + 1;
        // Of use only where it is of the segment that is cut.
        let head = head.filter(|half| half.segment == segments.start && half.chunks.end >= chunks.start);
        let tail = tail.filter(|half| half.segment + 1 == segments.end && half.chunks.start <= chunks.end);
        let mut filling = VecDeque::new();
        let from = head.as_ref().map_or(chunks.start, |half| half.chunks.start);
        if let Some(half) = head {
            let mut bytes = vec![0; small(layer.segment_len(half.segment))];
            half.put_into(&mut bytes);
            filling.push_back(bytes);
        }
        let (halves, spent) = (Vec::new(), Vec::new());
        Ok(Self { layer, wanted: segments, chunks, from, tail, halves, filling, spent })
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
        while !self.wanted.is_empty() {
            let segment = self.wanted.start;
            let whole = self.layer.layout().cuts_of(segment);
            if whole.end > self.chunks.start && !self.chunks.is_empty() {
                break;
            }
            self.wanted.start += 1;
            let mut bytes = self.filling.pop_front().unwrap_or_default(); // there, since a chunk of it is
            let mut end = self.chunks.start;
            if let Some(tail) = self.tail.take_if(|tail| tail.segment == segment) {
                tail.put_into(&mut bytes);
                end = tail.chunks.end;
            }
            if whole.start >= self.from && whole.end <= end {
                return Some((segment, Verified(bytes)));
            }
            let came = self.from.max(whole.start)..end.min(whole.end);
            // What is neither the first nor the last of it lies between two that are yet to come.
            if came.start == whole.start || came.end == whole.end {
                self.keep(segment, came, bytes);
            }
        }
        None
    }

    /// Keeps what there is of a segment that also lies in a span nobody has asked for.
    fn keep(&mut self, segment: u32, chunks: Range<usize>, mut bytes: Vec<u8>) {
        let (layout, start) = (self.layer.layout(), self.layer.layout().segment_size().start(segment));
        let (Some(first), Some(last)) = (layout.cuts().get(chunks.start), layout.cuts()[..chunks.end].last())
        else {
            return;
        };
        let (at, end) =
            (small(first.start.saturating_sub(start)), small(last.end() - start).min(bytes.len()));
        bytes.truncate(end);
        bytes.drain(..at.min(end));
        bytes.shrink_to_fit();
        self.halves.push(Half { layer: self.layer.id(), segment, chunks, at, bytes });
    }

    /// Returns what has come of segments that lie in other spans as well.
    pub(super) fn halves(&mut self) -> Vec<Half> {
        std::mem::take(&mut self.halves)
    }

    /// Returns the chunks that are still to come.
    pub(super) fn chunks(&self) -> Range<usize> {
        self.chunks.clone()
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
