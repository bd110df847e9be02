//! Memory for what cannot be decoded piece by piece: one sum for all workers.
//!
//! A chunk of a table of contents is handed out when all of it has passed its hash, and what is hashed packed is not even
//! decoded before all of it is here. A worker takes room for the largest of its job before it begins with that, so whoever
//! has room is never held up by whoever waits for it. Those that wait get in one after the other, or small jobs would keep a
//! large one out for ever.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex};
use std::time::Instant;

use crate::guard;

/// Bytes for all workers: 64 MiB are sixteen chunks of 4 MiB, as eStargz writes them, or two of the largest spans of SOCI
/// (16 MiB) with chunks as long.
const ALL: u64 = 64 << 20;

/// Of these, for what no reader waits for: the largest job fits.
const UNHURRIED: u64 = ALL / 2;

/// How much is in use.
#[derive(Debug, Default)]
pub(crate) struct Memory {
    /// Held for a look only.
    used: Mutex<Used>,
    changed: Condvar,
}

#[derive(Debug, Default)]
struct Used {
    all: u64,
    unhurried: u64,
    closed: bool,
    /// Who waits, by number: readers, and what no reader waits for.
    lines: [VecDeque<u64>; 2],
    numbers: u64,
}

impl Used {
    fn has(&self, bytes: u64, hurried: bool) -> bool {
        // Whoever is alone gets in, however much it is.
        let fits = |used: u64, most: u64| used == 0 || used + bytes <= most;
        fits(self.all, ALL) && (hurried || fits(self.unhurried, UNHURRIED))
    }
}

impl Memory {
    /// Waits until there is room; nothing if the deadline comes first, or the end. Who needs none, as all do whose layers have
    /// starts, does not wait.
    pub(crate) fn take(&self, bytes: u64, hurried: bool, deadline: Instant) -> Option<Room<'_>> {
        if bytes == 0 {
            return Some(Room { of: self, bytes, hurried });
        }
        let (mut used, line) = (guard::lock(&self.used), usize::from(!hurried));
        let number = used.numbers;
        used.numbers += 1;
        used.lines[line].push_back(number);
        let mut left = deadline.saturating_duration_since(Instant::now());
        let may = |used: &Used| used.lines[line].front() == Some(&number) && used.has(bytes, hurried);
        while !used.closed && !may(&used) && !left.is_zero() {
            used = guard::wait_at_most(&self.changed, used, left);
            left = deadline.saturating_duration_since(Instant::now());
        }
        let had = !used.closed && may(&used);
        used.lines[line].retain(|other| *other != number);
        self.changed.notify_all();
        if !had {
            return None;
        }
        used.all += bytes;
        used.unhurried += if hurried { 0 } else { bytes };
        Some(Room { of: self, bytes, hurried })
    }

    /// Ends all waiting.
    pub(crate) fn close(&self) {
        guard::lock(&self.used).closed = true;
        self.changed.notify_all();
    }
}

/// Room that has been taken; dropping it gives it back.
#[derive(Debug)]
pub(crate) struct Room<'a> {
    of: &'a Memory,
    bytes: u64,
    hurried: bool,
}

impl Drop for Room<'_> {
    fn drop(&mut self) {
        if self.bytes == 0 {
            return;
        }
        let mut used = guard::lock(&self.of.used);
        used.all -= self.bytes;
        used.unhurried -= if self.hurried { 0 } else { self.bytes };
        self.of.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn the_sum_is_bounded_and_readers_find_half_of_it_free() {
        let (memory, now) = (Memory::default(), Instant::now());
        let take = |bytes, hurried| memory.take(bytes, hurried, now);
        let first = take(UNHURRIED, false).unwrap();
        assert!(take(1, false).is_none(), "half of it is for readers");
        let second = take(ALL - UNHURRIED, true).unwrap();
        assert!(take(1, true).is_none());
        drop(first);
        let third = take(UNHURRIED - 1, false).unwrap();
        assert!(take(2, true).is_none());
        drop((second, third));
        // What is larger than all comes alone.
        let alone = take(ALL + 1, false).unwrap();
        assert!(take(1, true).is_none());
        drop(alone);
        let used = guard::lock(&memory.used);
        assert_eq!((used.all, used.unhurried), (0, 0));
    }

    #[test]
    fn whoever_waits_hears_of_room_and_of_the_end() {
        let (memory, later) = (Memory::default(), Instant::now() + Duration::from_secs(600));
        let all = memory.take(ALL, true, later).unwrap();
        std::thread::scope(|scope| {
            let in_line = |count| {
                while guard::lock(&memory.used).lines[0].len() < count {
                    std::thread::yield_now();
                }
            };
            let waits = scope.spawn(|| memory.take(ALL / 2, true, later));
            in_line(1);
            // There would be room for it, but somebody came before.
            let small = scope.spawn(|| memory.take(ALL / 2 + 1, true, later).is_none());
            in_line(2);
            drop(all);
            let half = waits.join().unwrap().unwrap();
            in_line(1);
            assert!(memory.take(1, true, Instant::now()).is_none(), "it would come before whoever waits");
            assert!(memory.take(0, true, Instant::now()).is_some(), "it takes nothing from anybody");
            memory.close();
            assert!(small.join().unwrap());
            drop(half);
        });
    }
}
