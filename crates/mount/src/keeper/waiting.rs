//! The events that have no answer yet: plain data, no system call, no clock.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

/// How much longer than its deadline a reader is left to a daemon that lives: it has the better answer.
const GRACE: Duration = Duration::from_secs(10);

/// An event and since when somebody waits.
#[derive(Debug)]
struct Entry<E> {
    event: E,
    since: Instant,
    /// Whether the daemon that is connected has been told.
    told: bool,
}

/// Events by number, oldest first.
#[derive(Debug)]
pub(super) struct Waiting<E> {
    entries: BTreeMap<u64, Entry<E>>,
    next: u64,
    /// All before this one have been told.
    untold: u64,
}

impl<E> Default for Waiting<E> {
    fn default() -> Self {
        Self { entries: BTreeMap::new(), next: 0, untold: 0 }
    }
}

impl<E> Waiting<E> {
    /// Takes note of an event.
    pub(super) fn add(&mut self, event: E, now: Instant) {
        self.entries.insert(self.next, Entry { event, since: now, told: false });
        self.next += 1;
    }

    /// Takes an event out, if it still waits.
    pub(super) fn take(&mut self, id: u64) -> Option<E> {
        Some(self.entries.remove(&id)?.event)
    }

    /// Returns the oldest event that the daemon does not know of.
    pub(super) fn untold(&self) -> Option<(u64, &E, Instant)> {
        let (id, entry) = self.entries.range(self.untold..).find(|(_, entry)| !entry.told)?;
        Some((*id, &entry.event, entry.since))
    }

    /// Takes note that the daemon knows.
    pub(super) fn tell(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.told = true;
            self.untold = id + 1;
        }
    }

    /// Forgets what was told: there is another daemon.
    pub(super) fn untell(&mut self) {
        self.entries.values_mut().for_each(|entry| entry.told = false);
        self.untold = 0;
    }

    /// Takes out what has waited too long.
    pub(super) fn overdue(&mut self, now: Instant, deadline: Duration, served: bool) -> Vec<E> {
        let limit = limit(deadline, served);
        let late: Vec<u64> =
            self.entries.iter().filter(|(_, e)| now >= e.since + limit).map(|(id, _)| *id).collect();
        late.into_iter().filter_map(|id| self.take(id)).collect()
    }

    /// Returns when the next event has waited too long.
    pub(super) fn next_overdue(&self, deadline: Duration, served: bool) -> Option<Instant> {
        // In the order of their numbers they are in the order of time.
        self.entries.values().next().map(|entry| entry.since + limit(deadline, served))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }
}

fn limit(deadline: Duration, served: bool) -> Duration {
    if served { deadline + GRACE } else { deadline }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_daemon_is_told_of_every_event_once_and_the_oldest_first() {
        let (mut waiting, now) = (Waiting::default(), Instant::now());
        waiting.add("a", now);
        waiting.add("b", now);
        let told = |waiting: &mut Waiting<&'static str>| {
            let mut told = Vec::new();
            while let Some((id, event, _)) = waiting.untold() {
                told.push(*event);
                waiting.tell(id);
            }
            told
        };
        assert_eq!(told(&mut waiting), ["a", "b"]);
        waiting.add("c", now);
        assert_eq!(told(&mut waiting), ["c"]);
        assert_eq!(waiting.take(1), Some("b"));
        assert_eq!(waiting.take(1), None);
        waiting.untell();
        assert_eq!(told(&mut waiting), ["a", "c"]);
    }

    #[test]
    fn what_waits_too_long_comes_out_later_where_a_daemon_lives() {
        let (mut waiting, now, second) = (Waiting::default(), Instant::now(), Duration::from_secs(1));
        waiting.add("a", now);
        waiting.add("b", now + second);
        assert_eq!(waiting.next_overdue(5 * second, false), Some(now + 5 * second));
        assert_eq!(waiting.overdue(now + 5 * second, 5 * second, true), Vec::<&str>::new());
        assert_eq!(waiting.overdue(now + 5 * second, 5 * second, false), ["a"]);
        assert_eq!(waiting.overdue(now + 6 * second + GRACE, 5 * second, true), ["b"]);
        assert!(waiting.is_empty());
    }
}
