//! How fast an origin answers, learned from what it did: enough to tell what is dearer, a request or some bytes.
//!
//! Of the last few requests. The delay is the shortest one: what queued behind others says less about the way. The
//! rate is the median: a link that was idle may give the first bytes at a rate it cannot keep.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

/// Requests remembered.
const REQUESTS: usize = 16;

/// Shorter answers say nothing about a rate: they come in one piece.
const LEAST: u64 = 64 << 10;

/// The latest requests.
#[derive(Debug, Default)]
pub(crate) struct Pace {
    delays: VecDeque<Duration>,
    /// Bytes per second.
    rates: VecDeque<f64>,
}

impl Pace {
    /// Takes a request into account.
    pub(crate) fn learn(&mut self, clock: &Clock) {
        let Some(first) = clock.first else { return };
        keep(&mut self.delays, first.duration_since(clock.start));
        let took = clock.last.duration_since(first).as_secs_f64();
        if clock.bytes >= LEAST && took > 0.0 {
            // The first piece was on its way before the clock of the others began.
            #[allow(clippy::cast_precision_loss, reason = "an estimate")]
            keep(&mut self.rates, (clock.bytes - clock.in_first) as f64 / took);
        }
    }

    /// Returns the shortest time to the first byte of an answer.
    pub(crate) fn delay(&self) -> Option<Duration> {
        self.delays.iter().min().copied()
    }

    /// Returns how long an answer of so many bytes takes.
    pub(crate) fn time(&self, bytes: u64) -> Option<Duration> {
        #[allow(clippy::cast_precision_loss, reason = "an estimate")]
        let arriving = Duration::try_from_secs_f64(bytes as f64 / self.rate()?).ok()?;
        self.delay()?.checked_add(arriving)
    }

    fn rate(&self) -> Option<f64> {
        let mut rates: Vec<f64> = self.rates.iter().copied().collect();
        rates.sort_by(f64::total_cmp);
        rates.get(rates.len() / 2).copied()
    }

    /// Returns whether leaving out some bytes, to ask for them if they are wanted, is likely to save time. Where
    /// nothing is known yet it is: a first guess that costs one round trip.
    pub(crate) fn is_worth_a_request(&self, bytes: u64) -> bool {
        match (self.delay(), self.rate()) {
            #[allow(clippy::cast_precision_loss, reason = "an estimate")]
            (Some(delay), Some(rate)) => bytes as f64 / rate > delay.as_secs_f64(),
            _ => true,
        }
    }
}

fn keep<T>(latest: &mut VecDeque<T>, value: T) {
    if latest.len() == REQUESTS {
        latest.pop_front();
    }
    latest.push_back(value);
}

/// The times of one request.
#[derive(Debug)]
pub(crate) struct Clock {
    start: Instant,
    first: Option<Instant>,
    last: Instant,
    in_first: u64,
    bytes: u64,
}

impl Clock {
    /// Says that a request is sent.
    pub(crate) fn start() -> Self {
        let start = Instant::now();
        Self { start, first: None, last: start, in_first: 0, bytes: 0 }
    }

    /// Says that some bytes of its answer are here. None are no answer: nothing was asked for.
    pub(crate) fn took(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        self.last = Instant::now();
        self.bytes += bytes as u64;
        if self.first.is_none() {
            self.first = Some(self.last);
            self.in_first = self.bytes;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A request that waited, and then got pieces of 16 KiB at a distance.
    fn request(delay: u64, apart: u64, pieces: u32) -> Clock {
        let start = Instant::now();
        let first = start + Duration::from_millis(delay);
        let last = first + Duration::from_millis(apart) * (pieces - 1);
        Clock { start, first: Some(first), last, in_first: 16 << 10, bytes: u64::from(pieces) * (16 << 10) }
    }

    #[test]
    fn a_request_is_weighed_against_the_bytes_it_may_save() {
        let mut pace = Pace::default();
        assert!(pace.is_worth_a_request(1));
        pace.learn(&Clock::start());
        pace.learn(&request(80, 1, 2));
        assert!(pace.is_worth_a_request(1), "two pieces tell no rate");
        assert_eq!(pace.time(1), None);
        // 16 MiB/s and 40 ms: worth 640 KiB.
        pace.learn(&request(40, 1, 65));
        assert!(!pace.is_worth_a_request(600 << 10));
        assert!(pace.is_worth_a_request(700 << 10));
        assert_eq!(pace.time(2 << 20).map(|time| time.as_millis()), Some(168));
        // Neither a slow answer nor a burst changes that.
        pace.learn(&request(400, 1, 65));
        pace.learn(&request(400, 20, 65));
        pace.learn(&request(400, 1, 65));
        assert!(!pace.is_worth_a_request(600 << 10));
        assert!(pace.is_worth_a_request(700 << 10));
        // Nor does a decoder that went on without a request.
        let mut none = Clock::start();
        none.took(0);
        pace.learn(&none);
        assert!(!pace.is_worth_a_request(600 << 10));
        for _ in 0..REQUESTS {
            pace.learn(&request(1, 1, 65));
        }
        assert!(pace.is_worth_a_request(20 << 10));
        assert!(!pace.is_worth_a_request(10 << 10));
    }
}
