//! No regret: a lazy start must not be slower than fetching everything.
//!
//! On a link that is slow beside what is read, every byte that nobody waits for delays one that somebody does. On one
//! that is long, or fast, readers wait for answers to begin while nothing moves: each miss costs a round trip, and
//! thousands of them cost more than the whole image. So the start is watched: when readers have waited, for nothing but
//! answers to begin, longer than for answers to arrive, and a twentieth of the time that all the rest would take (half of it
//! where a profile told what is read), the rest is fetched at once, and it uses the pauses. What readers want still goes
//! first, then what lies behind what they wanted. Where the indexes have told that the line is long for how fast it is
//! (`line.rs`), nobody waits for regret.

use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use format::IndexId;
use rustix::time::{ClockId, clock_gettime};
use store::Priority;

use super::Engine;
use super::live::LiveMount;
use super::open::OpenImage;

/// How often there is a look.
const LOOK: Duration = Duration::from_millis(25);

/// The part of the time that the rest would take after which it is fetched.
const PATIENCE: f64 = 0.05;

/// The same where a profile told what the start reads: what it has missed is little, and the rest is hardly wanted.
const PATIENCE_WITH_PROFILE: f64 = 0.5;

/// The part of the processors up to which there is room for more.
const BUSY: f64 = 0.5;

/// Segments behind one that was missing which are fetched before others.
const BEHIND: u32 = 16;

/// What is read off now and then.
#[derive(Debug, Clone, Copy)]
struct Gauges {
    at: Instant,
    /// For how long at least one reader has waited.
    waited: Duration,
    /// Bytes received.
    bytes: u64,
    /// For how long at least one answer has been arriving.
    arriving: Duration,
    /// Processor time of this process.
    cpu: Duration,
}

/// What has been seen of a start.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
struct Seen {
    /// Seconds for which readers waited, no answer was arriving, and the processors were not busy.
    idle: f64,
    /// Bytes received, and the seconds for which answers were arriving.
    bytes: f64,
    arriving: f64,
}

impl Seen {
    /// Takes a look into account.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn look(&mut self, before: Gauges, now: Gauges, cores: f64) {
        let time = now.at.duration_since(before.at).as_secs_f64();
        let waited = now.waited.saturating_sub(before.waited).as_secs_f64();
        let arriving = now.arriving.saturating_sub(before.arriving).as_secs_f64();
        let cpu = now.cpu.saturating_sub(before.cpu).as_secs_f64();
        if cpu < BUSY * cores * time {
            self.idle += (waited - arriving).max(0.0);
        }
        self.bytes += now.bytes.saturating_sub(before.bytes) as f64;
        self.arriving += arriving;
    }

    /// Says whether what is missing had better be fetched now. It would take about as long as what has arrived has.
    ///
    /// Where pauses are less than half of it, fetching what nobody wants yet would cost more than it saves: a link that is
    /// full makes each answer begin later.
    fn regrets(&self, missing: f64, patience: f64) -> bool {
        let rest = missing * self.arriving / self.bytes;
        self.bytes > 0.0 && self.idle > self.arriving && self.idle > patience * rest
    }
}

impl Engine {
    /// Watches a start until the container is ready or everything is here.
    pub(super) fn watch_start(self: &Arc<Self>, image: &Arc<OpenImage>, mount: &Arc<LiveMount>) {
        if mount.missing() == 0 {
            return;
        }
        let at_once = image.at_once;
        let patience = if image.profile.is_some() { PATIENCE_WITH_PROFILE } else { PATIENCE };
        let (engine, image, mount) = (self.clone(), Arc::downgrade(image), Arc::downgrade(mount));
        self.in_background("start", move || {
            if at_once || engine.regrets(&mount, patience) {
                engine.hurry_rest(&image, &mount);
            }
        });
    }

    /// Waits until a start had better fetch everything; false if it was over before.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn regrets(&self, mount: &Weak<LiveMount>, patience: f64) -> bool {
        let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        let (mut last, mut seen) = (self.gauges(mount), Seen::default());
        loop {
            std::thread::sleep(LOOK);
            let now = self.gauges(mount);
            let Some(missing) = self.missing_of(mount) else { return false };
            seen.look(last, now, cores);
            if seen.regrets(missing, patience) {
                tracing::info!(?seen, missing, "readers wait for answers to begin: fetching the rest");
                return true;
            }
            last = now;
        }
    }

    /// Begins to fetch what is missing of layers, behind everything that somebody waits for; keeps those for which there
    /// was no room.
    pub(super) fn want_all(&self, layers: &mut Vec<IndexId>) {
        layers.retain(|index| !self.through.want(*index, 0..u32::MAX, Priority::Background));
    }

    fn gauges(&self, mount: &Weak<LiveMount>) -> Gauges {
        let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
        let waited = mount.upgrade().map_or(Duration::ZERO, |mount| mount.waits().waited());
        Gauges {
            at: Instant::now(),
            waited,
            bytes: self.net.traffic().bytes,
            arriving: self.through.arriving(),
            cpu,
        }
    }

    /// Returns how many packed bytes a start still lacks, nothing if it is over.
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn missing_of(&self, mount: &Weak<LiveMount>) -> Option<f64> {
        let mount = mount.upgrade().filter(|mount| !self.stopping() && !mount.is_ready())?;
        Some(mount.missing() as f64).filter(|missing| *missing > 0.0)
    }

    /// Fetches the rest in the pauses, what lies behind missing segments first, until the container is ready.
    fn hurry_rest(self: &Arc<Self>, image: &Weak<OpenImage>, mount: &Weak<LiveMount>) {
        let _eager = self.net.eager();
        let mut left: Vec<_> = image.upgrade().iter().flat_map(|image| image.layer_ids()).collect();
        while self.missing_of(mount).is_some() {
            let Some(mount) = mount.upgrade() else { return };
            for (index, segment) in mount.waits().take_missed() {
                // Without room they come with the rest.
                let _ =
                    self.through.want(index, segment + 1..segment.saturating_add(1 + BEHIND), Priority::Hint);
            }
            drop(mount);
            // Nothing is proved or synced yet: that is for when nobody waits. Without room it is asked again.
            self.want_all(&mut left);
            std::thread::sleep(LOOK);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MB: f64 = 1e6;

    /// What is seen of so many looks that are all the same: milliseconds waited, arriving, and of processor; bytes.
    fn seen(looks: u32, waited: u64, arriving: u64, cpu: u64, bytes: u64) -> Seen {
        let mut seen = Seen::default();
        let at = Instant::now();
        let ms = Duration::from_millis;
        for n in 0..looks {
            let gauges = |n: u32| Gauges {
                at: at + LOOK * n,
                waited: ms(waited) * n,
                arriving: ms(arriving) * n,
                bytes: bytes * u64::from(n),
                cpu: ms(cpu) * n,
            };
            seen.look(gauges(n), gauges(n + 1), 2.0);
        }
        seen
    }

    #[test]
    fn a_start_that_waits_for_answers_regrets_and_one_that_waits_for_bytes_or_processors_does_not() {
        // 100 Mbit/s, answers arrive most of the time.
        assert!(!seen(400, 25, 18, 10, 216_000).regrets(150.0 * MB, PATIENCE));
        // The processors are busy.
        assert!(!seen(400, 25, 5, 40, 500_000).regrets(150.0 * MB, PATIENCE));
        // Nobody waits, nothing has come.
        assert!(!seen(400, 0, 0, 0, 10_000).regrets(150.0 * MB, PATIENCE));
        assert!(!seen(400, 25, 0, 0, 0).regrets(150.0 * MB, PATIENCE));
        // A long line: 2 ms of 25 bring 60 kB, so the rest takes 5 s, and a quarter of a second of pauses is enough.
        assert!(!seen(10, 25, 2, 2, 60_000).regrets(150.0 * MB, PATIENCE));
        assert!(seen(12, 25, 2, 2, 60_000).regrets(150.0 * MB, PATIENCE));
        // A profile has told most of it.
        assert!(!seen(12, 25, 2, 2, 60_000).regrets(150.0 * MB, PATIENCE_WITH_PROFILE));
    }
}
