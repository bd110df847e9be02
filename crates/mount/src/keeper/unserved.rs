//! FUSE mounts for which no daemon has come for as long as a reader may wait.

use std::collections::BTreeMap;
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use super::process::Held;
use crate::fuse::refuse;

/// Since when there is no daemon, and whose requests are refused because of that.
#[derive(Default)]
pub(super) struct Unserved {
    since: Option<Instant>,
    /// Devices, by name, of which something may come; none before the deadline.
    refused: Option<Vec<String>>,
}

impl Unserved {
    pub(super) fn daemon_died(&mut self, now: Instant) {
        self.since = Some(now);
    }

    /// There is one: the devices are its own again.
    pub(super) fn daemon_came(&mut self, held: &BTreeMap<String, Held>) {
        self.since = None;
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
        if self.refused.is_some() { None } else { Some(self.since? + deadline) }
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
