//! For how long at least one of some things that overlap went on.

use std::time::{Duration, Instant};

/// Adds up time in which something goes on, however many of it at once.
#[derive(Debug, Default)]
pub struct Stretch {
    going_on: u64,
    since: Option<Instant>,
    sum: Duration,
}

impl Stretch {
    /// Says that one begins.
    pub fn begin(&mut self) {
        self.going_on += 1;
        self.since.get_or_insert_with(Instant::now);
    }

    /// Says that one that had begun has ended.
    pub fn end(&mut self) {
        self.going_on -= 1;
        if self.going_on == 0 {
            self.sum = self.time();
            self.since = None;
        }
    }

    /// Returns the time so far.
    pub fn time(&self) -> Duration {
        self.sum + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_in_which_two_go_on_counts_once_and_none_not_at_all() {
        let mut stretch = Stretch::default();
        assert_eq!(stretch.time(), Duration::ZERO);
        stretch.begin();
        stretch.begin();
        let since = stretch.since;
        stretch.end();
        assert_eq!(stretch.since, since, "the other one goes on");
        stretch.end();
        let first = stretch.time();
        assert!(stretch.since.is_none() && stretch.time() == first);
        stretch.begin();
        stretch.end();
        assert!(stretch.time() >= first);
    }
}
