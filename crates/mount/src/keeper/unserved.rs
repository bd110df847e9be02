//! FUSE mounts for which no daemon has come for as long as a reader may wait.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::process::Held;
use crate::fuse::refuse;

/// A daemon that lived so long has taken its mounts over, and answers; one that dies before may have served nobody.
const LIVED: Duration = Duration::from_secs(1);

/// Since when there is no daemon, and whose requests are refused because of that.
#[derive(Default)]
pub(super) struct Unserved {
    /// When the last one that lived has died.
    since: Option<Instant>,
    /// When the one that is there has come.
    came: Option<Instant>,
    /// Devices, by name, of which something may come; none before the deadline.
    refused: Option<Vec<String>>,
}

impl Unserved {
    /// There is none. Readers have waited since before one came that died young.
    pub(super) fn daemon_died(&mut self, now: Instant) {
        let lived = self.came.take().is_none_or(|came| now >= came + LIVED);
        if lived || self.since.is_none() {
            self.since = Some(now);
        }
    }

    /// There is one: the devices are its own again.
    pub(super) fn daemon_came(&mut self, now: Instant, held: &BTreeMap<String, Held>) {
        if self.came.is_some() {
            self.daemon_died(now); // the one before, and nobody has heard of it
        }
        self.came = Some(now);
        if self.refused.take().is_none() {
            return;
        }
        // All of them: one of which nothing more was to come was begun with as well.
        for name in held.keys() {
            if let Some(Err(error)) = device(held, name).map(refuse::end) {
                tracing::error!(%error, "handing a FUSE device on");
            }
        }
    }

    /// Returns when readers have waited long enough, unless they are refused already.
    pub(super) fn due(&self, deadline: Duration) -> Option<Instant> {
        if self.came.is_some() || self.refused.is_some() { None } else { Some(self.since? + deadline) }
    }

    /// Returns what is to be listened to.
    pub(super) fn devices<'a>(
        &'a self,
        held: &'a BTreeMap<String, Held>,
    ) -> impl Iterator<Item = BorrowedFd<'a>> {
        self.refused.iter().flatten().filter_map(|name| device(held, name))
    }

    /// Refuses what waits, once it is time to.
    pub(super) fn refuse(&mut self, now: Instant, deadline: Duration, held: &BTreeMap<String, Held>) {
        if self.due(deadline).is_some_and(|due| now >= due) {
            let begins =
                |name: &&String| device(held, name).is_some_and(|device| refuse::begin(device).is_ok());
            let refused: Vec<_> = held.keys().filter(begins).cloned().collect();
            if !refused.is_empty() {
                tracing::warn!(mounts = refused.len(), "no daemon has come: FUSE mounts fail until one does");
            }
            self.refused = Some(refused);
        }
        if let Some(refused) = &mut self.refused {
            let mut buffer = Vec::new(); // a mebibyte, for this while only
            refused.retain(|name| {
                device(held, name).is_some_and(|device| refuse::refuse(device, &mut buffer).is_ok())
            });
        }
    }
}

fn device<'a>(held: &'a BTreeMap<String, Held>, name: &str) -> Option<BorrowedFd<'a>> {
    match held.get(name)? {
        Held::Other(device) => Some(device.as_fd()),
        Held::Mount(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEADLINE: Duration = Duration::from_secs(300);

    fn after(begun: Instant, seconds: u64) -> Instant {
        begun + Duration::from_secs(seconds)
    }

    /// Just too early to have lived.
    fn young(came: Instant) -> Instant {
        came + LIVED - Duration::from_millis(1)
    }

    /// A daemon that says hello and dies of what it finds, again and again, had readers wait without end.
    #[test]
    fn the_time_goes_on_until_a_daemon_has_lived() {
        let (mut unserved, held, begun) = (Unserved::default(), BTreeMap::new(), Instant::now());
        assert_eq!(unserved.due(DEADLINE), None);
        unserved.daemon_came(begun, &held);
        unserved.daemon_died(young(begun));
        let due = young(begun) + DEADLINE;
        assert_eq!(unserved.due(DEADLINE), Some(due), "the first of all");
        for n in 1..30 {
            unserved.daemon_came(after(begun, 10 * n), &held);
            assert_eq!(unserved.due(DEADLINE), None, "it may answer");
            unserved.daemon_died(young(after(begun, 10 * n)));
            assert_eq!(unserved.due(DEADLINE), Some(due));
        }
        unserved.refuse(due, DEADLINE, &held);
        assert!(unserved.refused.is_some());
        // The next one is given its time, and no more.
        unserved.daemon_came(after(begun, 400), &held);
        assert!(unserved.refused.is_none());
        unserved.daemon_died(young(after(begun, 400)));
        assert_eq!(unserved.due(DEADLINE), Some(due));

        unserved.daemon_came(after(begun, 500), &held);
        unserved.daemon_died(after(begun, 510));
        assert_eq!(unserved.due(DEADLINE), Some(after(begun, 810)), "it has lived");
        // One whose end nobody has heard of has lived as well.
        unserved.daemon_came(after(begun, 600), &held);
        unserved.daemon_came(after(begun, 700), &held);
        unserved.daemon_died(young(after(begun, 700)));
        assert_eq!(unserved.due(DEADLINE), Some(after(begun, 1000)));
    }
}
