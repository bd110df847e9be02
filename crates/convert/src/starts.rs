//! Chooses where the decoding of each segment begins, in one pass.
//!
//! A segment's start is the last usable place at or before its first byte. Which place that is turns out only
//! when the tar is read up to there, so the latest place is always kept at hand, with the window before it and
//! what follows until 32 KiB are out. Places of gzip are proved before they are stored ([`crate::probe`]); one
//! that fails gives way to the start before it. The place at the very beginning needs no proof, so there
//! always is one. A place with a window costs kilobytes that travel before the first read, so one is chosen every
//! [`SPACING`] only, and between those where the window turns out to be cheap; the other segments share the start
//! before them. Segments with one start are a span: that is also what becomes of blocks longer than a segment.

use std::collections::VecDeque;

use format::index::{Codec, Reach, Start};
use format::unpack::UnpackError;
use sys::inflate::WINDOW;

use crate::inflow::{Batch, Place};
use crate::probe::{Probe, Prober};

/// Most compressed bytes that 32 KiB of output may take after a usable place. Stored, they are 33 KB; more than
/// this is a stream of next to nothing but block headers.
const MAX_PACKED: usize = 256 << 10;

/// Least distance in the tar of the first bytes of two segments that have a start each whatever its window costs.
/// Half of it would double the windows, which are most of an index.
const SPACING: u64 = 1 << 20;

/// Least distance of any two starts with a window.
const NEAR: u64 = 384 << 10;

/// Longest packed window of a start that is nearer than [`SPACING`] to the one before it. It saves a reader of its
/// segment some 100 KB, but is fetched by all: two thirds of them are that small, and have a third of the bytes.
const CHEAP: usize = 2560;

/// Compressed bytes kept from the batch before: a place can lie some bits before its own batch.
const TAIL: usize = 16;

/// A place with what surrounds it, as far as it has come.
#[derive(Debug, Clone)]
struct Candidate {
    place: Place,
    window: Vec<u8>,
    packed: Vec<u8>,
    output: Vec<u8>,
}

/// A place that was chosen for a segment.
#[derive(Debug)]
enum Chosen {
    /// Waiting for what follows it; with the longest window it may have.
    Pending(Box<Candidate>, usize),
    Proved(Start),
    /// The start before it serves instead.
    Failed,
}

/// What is known about one segment.
#[derive(Debug, Clone, Copy)]
struct Segment {
    /// Offset in the tar of its first byte.
    plain_start: u64,
    /// Number of the chosen place.
    chosen: usize,
    /// Offset in the tar after its last byte so far.
    plain_end: u64,
    /// Offset in the blob where that byte is out.
    packed_end: u64,
}

/// Chooses and proves starts; see the [module](self).
pub(crate) struct Starts {
    prober: Prober,
    /// The last bytes before the current batch.
    history: Vec<u8>,
    tail: Vec<u8>,
    /// The last place before the current batch.
    latest: Option<Candidate>,
    chosen: Vec<Chosen>,
    /// How many of them are not pending any more: they ripen in order.
    settled: usize,
    /// The first place of the blob, and the one chosen last.
    first: Option<Place>,
    last: Option<Place>,
    /// Offsets in the tar of the first bytes of the latest segment that has a start whatever it costs, and of the
    /// latest one that may have one.
    due: u64,
    tried: u64,
    segments: Vec<Segment>,
    /// Segments with bytes whose mark has not come, ascending.
    open: VecDeque<usize>,
}

impl Starts {
    pub(crate) fn new() -> Result<Self, UnpackError> {
        Ok(Self {
            prober: Prober::new()?,
            history: Vec::with_capacity(2 * WINDOW),
            tail: Vec::with_capacity(2 * TAIL),
            latest: None,
            chosen: Vec::new(),
            settled: 0,
            first: None,
            last: None,
            due: 0,
            tried: 0,
            segments: Vec::new(),
            open: VecDeque::new(),
        })
    }

    /// Says that the next segment begins with the byte at `plain`, which is in this batch.
    pub(crate) fn begin(&mut self, plain: u64, batch: &Batch) {
        let before = batch.places.partition_point(|place| place.plain <= plain);
        let place = match before.checked_sub(1) {
            Some(n) => Some(batch.places[n]),
            None => self.latest.as_ref().map(|candidate| candidate.place),
        };
        // The first start, and one without a window, cost nothing.
        let free = self.chosen.is_empty() || place.is_some_and(|place| place.window == 0);
        let whatever_it_costs = free || plain - self.due >= SPACING;
        if let Some(place) = place
            && self.last != Some(place)
            && (whatever_it_costs || plain - self.tried >= NEAR)
        {
            self.tried = plain;
            if whatever_it_costs {
                self.due = plain;
            }
            let most = if whatever_it_costs { usize::MAX } else { CHEAP };
            self.chosen.push(match &self.latest {
                _ if batch.codec == Codec::Zstd => Chosen::Proved(start(place, Box::default())),
                Some(latest) if latest.place == place => Chosen::Pending(Box::new(latest.clone()), most),
                _ => Chosen::Pending(Box::new(self.candidate(place, batch)), most),
            });
            self.last = Some(place);
        }
        // A plain tar has no places; its starts are made in the end.
        let chosen = self.chosen.len().saturating_sub(1);
        self.segments.push(Segment { chosen, plain_start: plain, plain_end: plain, packed_end: 0 });
    }

    /// Says that the latest segment has its bytes up to `plain_end`.
    pub(crate) fn extend(&mut self, plain_end: u64) {
        let Some(n) = self.segments.len().checked_sub(1) else { return };
        self.segments[n].plain_end = plain_end;
        if self.open.back() != Some(&n) {
            self.open.push_back(n);
        }
    }

    /// Says that all of a batch has been looked at.
    pub(crate) fn end_batch(&mut self, batch: &Batch) {
        if self.first.is_none() {
            self.first = batch.places.first().copied();
        }
        self.settle(batch);
        while let Some(Chosen::Pending(candidate, _)) = self.chosen.get_mut(self.settled) {
            candidate.absorb(batch);
            if !candidate.is_ripe() {
                break;
            }
            self.prove(self.settled);
            self.settled += 1;
        }
        for chosen in self.chosen.iter_mut().skip(self.settled + 1) {
            if let Chosen::Pending(candidate, _) = chosen {
                candidate.absorb(batch);
            }
        }
        match (batch.places.last(), &mut self.latest) {
            (Some(place), _) => self.latest = Some(self.candidate(*place, batch)),
            (None, Some(latest)) => latest.absorb(batch),
            (None, None) => {}
        }
        keep_last(&mut self.history, batch.plain(), WINDOW);
        keep_last(&mut self.tail, &batch.packed, TAIL);
    }

    /// Returns the starts and what each segment takes: the blob is complete.
    pub(crate) fn finish(mut self, codec: Codec) -> (Vec<Start>, Vec<Reach>) {
        if codec == Codec::Plain {
            return self.plain();
        }
        (self.settled..self.chosen.len()).for_each(|n| self.prove(n));
        let mut starts: Vec<Start> = Vec::new();
        let mut number_of = Vec::with_capacity(self.chosen.len());
        for chosen in self.chosen {
            match (chosen, self.first) {
                (Chosen::Proved(start), _) => starts.push(start),
                (_, Some(first)) if starts.is_empty() => starts.push(start(first, Box::default())),
                _ => {}
            }
            number_of.push(starts.len().saturating_sub(1));
        }
        let reach = |segment: &Segment| Reach {
            start: count(number_of.get(segment.chosen).copied().unwrap_or(0)),
            packed_end: segment.packed_end,
        };
        let reach = self.segments.iter().map(reach).collect();
        (starts, reach)
    }

    /// A tar that is its own blob: each segment begins and ends where its bytes do.
    fn plain(self) -> (Vec<Start>, Vec<Reach>) {
        let start = |s: &Segment| Start {
            plain: s.plain_start,
            packed: s.plain_start,
            bits: 0,
            window: Box::default(),
        };
        let reach = |(n, s): (usize, &Segment)| Reach { start: count(n), packed_end: s.plain_end };
        (self.segments.iter().map(start).collect(), self.segments.iter().enumerate().map(reach).collect())
    }

    fn candidate(&self, place: Place, batch: &Batch) -> Candidate {
        // Before the place: the batch up to it, and as much of the history as is missing.
        let in_batch = offset(place.plain, batch.plain_at);
        let from_batch = &batch.plain()[in_batch.saturating_sub(place.window)..in_batch];
        let missing = place.window - from_batch.len();
        let from_history = &self.history[self.history.len().saturating_sub(missing)..];
        // The bits before the batch's first byte were read with the batch before.
        let early = offset(batch.packed_at, place.packed).min(self.tail.len());
        let from_tail = &self.tail[self.tail.len() - early..];
        let mut candidate = Candidate {
            place,
            window: [from_history, from_batch].concat(),
            packed: from_tail.to_vec(),
            output: Vec::new(),
        };
        candidate.absorb(batch);
        candidate
    }

    /// Gives segments whose last byte is out by a mark of this batch their end in the blob.
    fn settle(&mut self, batch: &Batch) {
        while let Some(&n) = self.open.front() {
            let segment = &mut self.segments[n];
            let Some(mark) = batch.marks.iter().find(|mark| mark.plain >= segment.plain_end) else { break };
            segment.packed_end = mark.packed;
            self.open.pop_front();
        }
    }

    fn prove(&mut self, n: usize) {
        let Chosen::Pending(candidate, most) = &self.chosen[n] else { return };
        if candidate.is_ripe() && candidate.output.len() < WINDOW && !candidate.window.is_empty() {
            // Given up: what has not come out yet may refer to bytes of the window that nothing has named so far.
            self.chosen[n] = Chosen::Failed;
            return;
        }
        let probe = Probe {
            bits: candidate.place.bits,
            window: &candidate.window,
            packed: &candidate.packed,
            output: &candidate.output,
        };
        self.chosen[n] = match self.prober.prove(&probe) {
            Some(window) if window.len() <= *most => Chosen::Proved(start(candidate.place, window)),
            _ => Chosen::Failed,
        };
    }
}

impl Candidate {
    /// Takes what this batch has of the bytes that follow the place.
    fn absorb(&mut self, batch: &Batch) {
        if self.output.len() == WINDOW {
            return;
        }
        let plain = offset(self.place.plain + self.output.len() as u64, batch.plain_at);
        let plain = &batch.plain()[plain.min(batch.plain().len())..];
        self.output.extend_from_slice(&plain[..plain.len().min(WINDOW - self.output.len())]);
        let packed = offset(self.place.packed + self.packed.len() as u64, batch.packed_at);
        self.packed.extend_from_slice(&batch.packed[packed.min(batch.packed.len())..]);
    }

    /// Returns whether there is enough to prove the place, or too much to go on.
    fn is_ripe(&self) -> bool {
        self.output.len() == WINDOW || self.packed.len() > MAX_PACKED
    }
}

fn start(place: Place, window: Box<[u8]>) -> Start {
    Start { plain: place.plain, packed: place.packed, bits: place.bits, window }
}

/// Returns the distance of two offsets that are at most a batch apart; 0 if the first one is not larger.
fn offset(at: u64, base: u64) -> usize {
    usize::try_from(at.saturating_sub(base)).unwrap_or(usize::MAX)
}

/// Starts and segments are at most [`format::limits::SEGMENTS`].
fn count(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Appends to a buffer of which only the last `n` bytes matter.
fn keep_last(buffer: &mut Vec<u8>, more: &[u8], n: usize) {
    let more = &more[more.len().saturating_sub(n)..];
    let keep = n - more.len();
    buffer.drain(..buffer.len().saturating_sub(keep));
    buffer.extend_from_slice(more);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_place_whose_window_is_not_known_to_the_end_is_refused() {
        let place = Place { plain: WINDOW as u64, packed: 100, bits: 0, window: WINDOW };
        // A block for each byte, and two that put out nothing: 16 packed bytes for one.
        let block = |byte| {
            [&[0, 1, 0, 0xfe, 0xff, byte][..], &[0, 0, 0, 0xff, 0xff], &[0, 0, 0, 0xff, 0xff]].concat()
        };
        let candidate = |len: usize| Candidate {
            place,
            window: vec![1; WINDOW],
            packed: (0..len).flat_map(|_| block(7)).collect(),
            output: vec![7; len],
        };
        let proved = |len| {
            let mut starts = Starts::new().unwrap();
            starts.chosen.push(Chosen::Pending(Box::new(candidate(len)), usize::MAX));
            assert!(len < MAX_PACKED / 16 || candidate(len).is_ripe());
            starts.prove(0);
            matches!(starts.chosen[0], Chosen::Proved(_))
        };
        assert!(proved(WINDOW), "all that can refer to the window is there");
        assert!(proved(1000), "the blob ends here");
        assert!(!proved(WINDOW / 2 + 1), "what follows may refer to it as well");
    }
}
