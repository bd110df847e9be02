//! Who reads a layer in sequence, and what to hint.
//!
//! Here only the first read of each segment is seen. What is hinted grows with what was read in a row: one segment, and of more than eight
//! a quarter, so that is what a wrong guess costs. Programs read several files at a time, so several readers of a layer are told apart: node's start,
//! which reads 133 segments, waits for 79 of them so, with 9 hinted in vain; for 105, with 12, where there is one reader, who has
//! to read three in a row and is then believed to read as many again.

use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use format::IndexId;

/// Segments in a row after which hints begin.
const RUN: u32 = 2;

/// Most segments that are hinted ahead of a reader: with segments of 512 KiB what a link of 1 Gbit/s and 60 ms holds.
const DISTANCE: u32 = 16;

/// Segments that one reader may be out of order by: the kernel reads ahead.
const JITTER: u32 = 1;

/// Readers of a layer, and layers, that are told apart.
const READERS: usize = 8;
const LAYERS: usize = 1024;

#[derive(Debug)]
struct Reader {
    /// The furthest segment of this run.
    last: u32,
    run: u32,
    /// What has been hinted ends here.
    hinted: u32,
}

/// The readers of all layers; of one those that read last come last.
#[derive(Debug, Default)]
pub(super) struct Streams(Mutex<HashMap<IndexId, VecDeque<Reader>>>);

impl Streams {
    /// Takes note of the first read of a segment; returns what to hint.
    pub(super) fn read(&self, layer: IndexId, segment: u32) -> Option<Range<u32>> {
        let mut layers = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if layers.len() >= LAYERS && !layers.contains_key(&layer) {
            layers.clear();
        }
        let readers = layers.entry(layer).or_default();
        let off = |reader: &Reader| segment.abs_diff(reader.last.saturating_add(1));
        let nearest = (0..readers.len()).min_by_key(|n| off(&readers[*n]));
        let found = nearest.filter(|n| off(&readers[*n]) <= JITTER).and_then(|n| readers.remove(n));
        let mut reader = found.unwrap_or(Reader { last: segment, run: 0, hinted: segment + 1 });
        let ahead = reader.read(segment);
        if readers.len() >= READERS {
            readers.pop_front();
        }
        readers.push_back(reader);
        ahead
    }
}

impl Reader {
    /// Goes on; returns what to hint.
    fn read(&mut self, segment: u32) -> Option<Range<u32>> {
        self.last = self.last.max(segment);
        self.run = self.run.saturating_add(1);
        if self.run < RUN {
            return None;
        }
        let window = (self.run / 4).clamp(1, DISTANCE);
        let to = self.last.saturating_add(1 + window);
        let from = self.hinted.max(self.last + 1);
        // A few at a time: neighbours share a request.
        if to < from + window.div_ceil(2) {
            return None;
        }
        self.hinted = to;
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
        assert!(hinted.len() > 180 && hinted[0] <= 3, "{hinted:?}");
    }

    #[test]
    fn readers_of_several_files_are_told_apart() {
        let (streams, layer) = (Streams::default(), IndexId::from_bytes([1; 32]));
        let hints = |segment| streams.read(layer, segment);
        assert_eq!([0, 100, 200, 50].map(hints), [const { None }; 4]);
        assert_eq!([1, 101, 201].map(hints), [Some(2..3), Some(102..103), Some(202..203)]);
        assert_eq!(hints(2), Some(3..4));
        assert_eq!((3..8).filter_map(hints).last(), Some(8..10), "two ahead of eight");
        // Whoever has not read for long is forgotten.
        (0..8).for_each(|n| assert_eq!(hints(1000 + 10 * n), None));
        assert_eq!(hints(102), None);
    }

    #[test]
    fn jumps_are_hinted_nothing() {
        let (streams, layer) = (Streams::default(), IndexId::from_bytes([1; 32]));
        for n in 0..1000 {
            assert_eq!(streams.read(layer, n * 7919 % 1000), None);
        }
    }
}
