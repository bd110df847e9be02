//! What the first answers of a registry tell of the line to it.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// So many answers a start waits for one after the other, about, if nothing is fetched before it is read.
const ANSWERS: f64 = 25.0;

/// Answers shorter than this do not tell how fast a line is.
const TELLING: u64 = 64 << 10;

/// The answers that have been seen.
#[derive(Debug, Default)]
pub(super) struct Line(Mutex<Vec<(u64, Duration)>>);

impl Line {
    /// Takes note of an answer: its bytes, and the time from the question to its end.
    pub(super) fn seen(&self, bytes: u64, time: Duration) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push((bytes, time));
    }

    /// Says whether so many bytes take less time than waiting for the answers of a start would: a line that is long for
    /// how fast it is. False where nothing tells.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    pub(super) fn had_better_carry(&self, bytes: u64) -> bool {
        let seen = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if seen.len() < 2 {
            return false; // what of one answer's time was the way, and what its bytes, nobody knows
        }
        let Some(round_trip) = seen.iter().map(|(_, time)| *time).min() else { return false };
        let Some((most, time)) = seen.iter().filter(|(bytes, _)| *bytes >= TELLING).max() else {
            return false;
        };
        let arriving = time.saturating_sub(round_trip).max(Duration::from_millis(1));
        let all = arriving.as_secs_f64() * bytes as f64 / *most as f64;
        all < ANSWERS * round_trip.as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_fetched_at_once_over_a_line_that_is_long_for_how_fast_it_is() {
        let line = |round_trip: u64, rate: u64| {
            let line = Line::default();
            for bytes in [2_000, 40_000, 700_000] {
                line.seen(bytes, Duration::from_millis(round_trip + bytes / rate));
            }
            line
        };
        // Bytes in a millisecond: 1 Gbit/s, and 100 Mbit/s.
        assert!(line(40, 125_000).had_better_carry(70_000_000));
        assert!(!line(40, 125_000).had_better_carry(350_000_000));
        assert!(!line(40, 12_500).had_better_carry(70_000_000));
        assert!(!line(2, 125_000).had_better_carry(70_000_000));
        assert!(!Line::default().had_better_carry(0));
        let short = Line::default();
        short.seen(2_000, Duration::from_millis(40));
        assert!(!short.had_better_carry(1));
        let one = Line::default();
        one.seen(700_000, Duration::from_millis(96));
        assert!(!one.had_better_carry(70_000_000));
    }
}
