//! Who reads a layer in sequence, and what to hint.
//!
//! Here only the first read of each segment is seen. Two that follow each other are a coincidence, three a reader;
//! then what is hinted grows with what was read, so a wrong guess costs at most as much again.

use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use format::IndexId;

/// Segments in a row after which hints begin.
const RUN: u32 = 3;

/// Most segments that are hinted ahead of a reader: with segments of 512 KiB what a link of 1 Gbit/s and 60 ms holds.
const DISTANCE: u32 = 16;

/// Segments that one reader may be out of order by: the kernel reads ahead.
const JITTER: u32 = 1;

/// Layers whose readers are told apart; one reader of each.
const LAYERS: usize = 1024;

#[derive(Debug, Default)]
struct Reader {
    /// The furthest segment of this run.
    last: u32,
    run: u32,
    /// What has been hinted ends here.
    hinted: u32,
}

/// The readers of all layers.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<IndexId, Reader>>);

impl Streams {
    /// Takes note of the first read of a segment; returns what to hint.
    pub(super) fn read(&self, layer: IndexId, segment: u32) -> Option<Range<u32>> {
        let mut readers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if readers.len() >= LAYERS && !readers.contains_key(&layer) {
            readers.clear();
        }
        let reader = readers.entry(layer).or_default();
        let next = reader.last.saturating_add(1);
        if reader.run == 0 || segment.abs_diff(next) > JITTER {
            *reader = Reader { last: segment, run: 1, hinted: segment + 1 };
            return None;
        }
        reader.last = reader.last.max(segment);
        reader.run += 1;
        if reader.run < RUN {
            return None;
        }
        let to = reader.last + 1 + reader.run.min(DISTANCE);
        let from = reader.hinted.max(reader.last + 1);
        // A few at a time: neighbours share a request.
        if to < from + reader.run.min(DISTANCE).div_ceil(2) {
            return None;
        }
        reader.hinted = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sequential_reader_is_hinted_each_segment_once_and_never_the_one_it_reads() {
        let (streams, layer) = (Streams::default(), IndexId::from_bytes([1; 32]));
        let mut hinted = Vec::new();
        for segment in 0..200 {
            if let Some(range) = streams.read(layer, segment) {
                assert!(range.start > segment, "{range:?} at {segment}");
                hinted.extend(range);
            }
        }
        assert!(hinted.windows(2).all(|pair| pair[0] < pair[1]));
        assert!(hinted.len() > 180 && hinted[0] <= 4, "{hinted:?}");
    }

    #[test]
    fn jumps_are_hinted_nothing() {
        let (streams, layer) = (Streams::default(), IndexId::from_bytes([1; 32]));
        for n in 0..1000 {
            assert_eq!(streams.read(layer, n * 7919 % 1000), None);
        }
    }
}
