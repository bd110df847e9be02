//! Who reads a file in sequence, and what to hint.
//!
//! A table of fixed size: a file has one place in it, which it may lose to another file. Being wrong costs a
//! hint too many or too few, never a byte.

use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use format::erofs::read::Nid;

/// Files watched at a time.
const PLACES: usize = 128;

/// A reader is sequential after this many bytes in a row: four of the kernel's default readahead windows. Page
/// faults in a shared library often touch two or three in a row and then jump.
const RUN: u64 = 512 << 10;

/// How far before a sequential reader hints go at most: four segments of the default size, which at 100 Mbit/s
/// is a third of a second. Never further than the reader has come, so a wrong guess costs what was read.
const DISTANCE: u64 = 4 << 20;

/// The kernel's requests for one reader arrive on several threads, so a little out of order.
const JITTER: u64 = 256 << 10;

#[derive(Debug, Default)]
struct Reader {
    nid: u64,
    /// End of the furthest read of this run.
    end: u64,
    /// Bytes in this run.
    run: u64,
    /// What has been hinted ends here.
    hinted: u64,
}

/// The table.
#[derive(Debug)]
pub(super) struct Ahead(Box<[Mutex<Reader>]>);

impl Ahead {
    pub(super) fn new() -> Self {
        Self((0..PLACES).map(|_| Mutex::default()).collect())
    }

    /// Notes a read; returns the range of the file to hint, if there is one.
    pub(super) fn read(&self, nid: Nid, offset: u64, len: u64) -> Option<Range<u64>> {
        // Nids of neighbours differ by small numbers: their low bits are hash enough.
        let place = usize::try_from(nid.0 % PLACES as u64).unwrap_or_default();
        let mut reader = self.0[place].lock().unwrap_or_else(PoisonError::into_inner);
        let end = offset + len;
        if reader.nid != nid.0 || offset > reader.end + JITTER || end + JITTER < reader.end {
            *reader = Reader { nid: nid.0, end, run: len, hinted: end };
            return None;
        }
        reader.end = reader.end.max(end);
        reader.run += len;
        let window = reader.run.min(DISTANCE);
        let (from, to) = (reader.hinted.max(reader.end), reader.end + window);
        // Half the distance at a time: a hint per segment or two, not one per read.
        if reader.run < RUN || to < from + window / 2 {
            return None;
        }
        reader.hinted = to;
        Some(from..to)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STEP: u64 = 128 << 10;

    #[test]
    fn a_sequential_reader_is_hinted_every_byte_ahead_once() {
        let ahead = Ahead::new();
        let mut hinted = Vec::new();
        for n in 0..256 {
            hinted.extend(ahead.read(Nid(7), n * STEP, STEP));
        }
        assert!(hinted.len() > 8 && hinted.len() < 32, "{hinted:?}");
        assert_eq!(hinted[0].start, 4 * STEP);
        for pair in hinted.windows(2) {
            assert_eq!(pair[0].end, pair[1].start);
        }
        assert!(hinted.last().is_some_and(|last| last.end >= 255 * STEP + DISTANCE / 2));
    }

    #[test]
    fn order_within_the_window_does_not_matter_and_jumps_do() {
        let ahead = Ahead::new();
        for n in [1, 0, 3, 2, 5, 4] {
            ahead.read(Nid(7), n * STEP, STEP);
        }
        let place = &ahead.0[7].lock().unwrap();
        assert_eq!((place.run, place.end), (6 * STEP, 6 * STEP));
        assert!(place.hinted > place.end);

        let ahead = Ahead::new();
        for n in 0..100 {
            let random = (n * 7919) % 1000 * (4 << 20);
            assert_eq!(ahead.read(Nid(7), random, 4096), None);
        }
    }
}
