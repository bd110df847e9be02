//! No regret: a lazy start must not be slower than fetching everything.
//!
//! On a link that is slow beside what is read, every byte that nobody waits for delays one that somebody does. On one
//! that is long, or fast, readers wait for answers to begin while nothing moves: each miss costs a round trip, and
//! thousands of them cost more than the whole image. So the start is watched, and the time that is lost, in which readers
//! waited for nothing but answers to begin, is held against the time that the whole image would take. The more is lost, the
//! more of the rest is fetched beside what readers want: first one small request at a time, which delays a reader by less
//! than it waits anyway, in the end as much as the link takes. Where a profile told what is read, that begins later. What
//! readers want still goes first, then what those who read in sequence come to next. Where the indexes have told that the line is
//! long for how fast it is (`line.rs`), nobody waits for regret.

use std::ops::RangeInclusive;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use format::IndexId;
use rustix::time::{ClockId, clock_gettime};
use store::{Ahead, Priority, ReadThrough};

use super::Engine;
use super::live::LiveMount;
use super::open::OpenImage;

/// How often there is a look.
const LOOK: Duration = Duration::from_millis(25);

/// The part of the time that everything would take which may be lost for each request of the rest under way.
const PATIENCE: f64 = 0.025;

/// The same where a profile told what the start reads: what it has missed is little, and the rest is hardly wanted.
const PATIENCE_WITH_PROFILE: f64 = 0.1;

/// Requests of the rest under way beyond which they are not counted.
const MOST: usize = 3;

/// Of these, for how many it is no regret if readers wait for their bytes more than for answers to begin.
const GRACE: usize = 2;

/// Bytes that must have arrived before they tell how fast the line is.
const TELLING: f64 = 512.0 * 1024.0;

/// For how long a request of the rest takes the line at least: shorter ones cost more than they spare readers.
const LEAST: Duration = Duration::from_millis(20);

/// Bytes of a request of the rest.
const REQUEST: RangeInclusive<u64> = 256 << 10..=8 << 20;

/// Bytes of the first requests of the rest, more than a burst, and how many must have come since the first of them.
const FIRST: u64 = 512 << 10;
const SHOWING: f64 = 1024.0 * 1024.0;

/// The part of the processors up to which there is room for more.
const BUSY: f64 = 0.5;

/// What is read off now and then.
#[derive(Debug, Clone, Copy)]
struct Gauges {
    at: Instant,
    /// For how long at least one reader has waited.
    waited: Duration,
    /// Bytes received.
    bytes: u64,
    /// For how long at least one answer has been arriving, and at least one to a reader.
    arriving: Duration,
    answering: Duration,
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
    /// Seconds for which answers to readers were.
    answering: f64,
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
        self.answering += now.answering.saturating_sub(before.answering).as_secs_f64();
    }

    /// Says whether more has been lost than it took for what readers wanted to arrive. Where it is less, fetching what nobody
    /// wants yet would cost more than it saves: a link that is full makes each answer begin later. A first burst may hide that
    /// for a while.
    fn is_idle(&self) -> bool {
        self.idle > self.answering
    }

    /// Says whether enough has arrived to tell how fast the line is.
    fn tells(&self) -> bool {
        self.bytes >= TELLING
    }

    /// Bytes that arrive in a second, while any do.
    fn rate(&self) -> f64 {
        self.bytes / self.arriving
    }

    /// Returns how much of the rest may be under way beside what readers want; `all` is what was missing at first, and `before`
    /// what had been seen when the first of the rest was asked for.
    ///
    /// Many lines carry a first burst at once (those behind token buckets), so single answers tell of a faster one than there
    /// is. One request at a time, longer than a burst, shows how fast it is, and may show that there was nothing to regret.
    ///
    /// Each request takes the line for half a round trip, or [`LEAST`]: on a long line it is idle for two thirds of its time
    /// with one of them, full with three, and a reader whose request comes behind one waits that much longer.
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "not negative, and bounded at once"
    )]
    fn ahead(&self, all: f64, patience: f64, delay: Duration, before: Option<&Self>) -> Pace {
        let mut rate = self.rate();
        if let Some(before) = before {
            let (bytes, arriving) = (self.bytes - before.bytes, self.arriving - before.arriving);
            if bytes < SHOWING {
                return Pace::Some(Ahead { requests: 1, bytes: FIRST });
            }
            rate = rate.min(bytes / arriving);
        }
        let lost = self.idle * rate / all;
        match (lost / patience) as usize {
            0 => Pace::Nothing,
            1..=GRACE if !self.is_idle() => Pace::Nothing,
            requests if requests > MOST => Pace::Everything,
            requests => {
                let bytes = rate * LEAST.max(delay / 2).as_secs_f64();
                let bytes = (bytes.round() as u64).clamp(*REQUEST.start(), *REQUEST.end());
                Pace::Some(Ahead { requests, bytes })
            }
        }
    }
}

/// How much is fetched beside what readers want.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Pace {
    Nothing,
    Some(Ahead),
    Everything,
}

/// Limits what is fetched beside what readers want, as long as it lives. Also of other images: they share the line.
struct Limit<'a> {
    through: &'a ReadThrough,
    number: u64,
}

impl<'a> Limit<'a> {
    fn new(through: &'a ReadThrough) -> Self {
        static NUMBERS: AtomicU64 = AtomicU64::new(0);
        Self { through, number: NUMBERS.fetch_add(1, Ordering::Relaxed) }
    }

    fn set(&self, pace: Pace) {
        let ahead = match pace {
            Pace::Nothing => Some(Ahead { requests: 0, bytes: *REQUEST.start() }),
            Pace::Some(ahead) => Some(ahead),
            Pace::Everything => None,
        };
        self.through.limit(self.number, ahead);
    }
}

impl Drop for Limit<'_> {
    fn drop(&mut self) {
        self.through.limit(self.number, None);
    }
}

impl Engine {
    /// Watches a start until the container is ready or everything is here.
    pub(super) fn watch_start(self: &Arc<Self>, image: &Arc<OpenImage>, mount: &Arc<LiveMount>) {
        if mount.missing() == 0 {
            return;
        }
        let at_once = image.at_once;
        let patience = if image.tells { PATIENCE_WITH_PROFILE } else { PATIENCE };
        let (engine, image, mount) = (self.clone(), Arc::downgrade(image), Arc::downgrade(mount));
        self.in_background("start", move || {
            let mut start = Start::new(&engine, mount, patience);
            if at_once || start.regrets() {
                start.hurry_rest(&image, at_once);
            }
        });
    }

    /// Begins to fetch what is missing of layers, behind everything that somebody waits for; keeps those for which there
    /// was no room.
    pub(super) fn want_all(&self, layers: &mut Vec<IndexId>) {
        layers.retain(|index| !self.through.want(*index, 0..u32::MAX, Priority::Background));
    }
}

/// A start that is watched.
struct Start<'a> {
    engine: &'a Engine,
    mount: Weak<LiveMount>,
    patience: f64,
    /// Packed bytes that were missing at first.
    all: f64,
    cores: f64,
    last: Gauges,
    seen: Seen,
    /// What had been seen when the first of the rest was asked for.
    before: Option<Seen>,
}

impl<'a> Start<'a> {
    #[expect(clippy::cast_precision_loss, reason = "an estimate")]
    fn new(engine: &'a Engine, mount: Weak<LiveMount>, patience: f64) -> Self {
        let cores = std::thread::available_parallelism().map_or(1.0, |n| n.get() as f64);
        let all = mount.upgrade().map_or(0, |mount| mount.missing()) as f64;
        let last = gauges(engine, &mount);
        Self { engine, mount, patience, all, cores, last, seen: Seen::default(), before: None }
    }

    /// Takes the next look; nothing if the start is over.
    fn look(&mut self) -> Option<()> {
        std::thread::sleep(LOOK);
        let now = gauges(self.engine, &self.mount);
        self.seen.look(self.last, now, self.cores);
        self.last = now;
        self.is_starting().then_some(())
    }

    fn is_starting(&self) -> bool {
        let starting = |mount: Arc<LiveMount>| !mount.is_ready() && mount.missing() > 0;
        !self.engine.stopping() && self.mount.upgrade().is_some_and(starting)
    }

    fn pace(&self) -> Pace {
        let delay = self.engine.through.delay().unwrap_or_default();
        self.seen.ahead(self.all, self.patience, delay, self.before.as_ref())
    }

    /// Waits until a start had better fetch more than it reads; false if it was over before.
    fn regrets(&mut self) -> bool {
        while self.look().is_some() {
            if self.seen.tells() && self.seen.is_idle() && self.pace() != Pace::Nothing {
                tracing::info!(seen = ?self.seen, all = self.all, "readers wait for answers to begin: fetching the rest");
                return true;
            }
        }
        false
    }

    /// Fetches the rest in the pauses until the container is ready.
    fn hurry_rest(&mut self, image: &Weak<OpenImage>, at_once: bool) {
        let _eager = self.engine.net.eager();
        let limit = Limit::new(&self.engine.through);
        let mut left: Vec<_> = image.upgrade().iter().flat_map(|image| image.layer_ids()).collect();
        self.before = Some(self.seen);
        while self.is_starting() {
            if !at_once {
                limit.set(self.pace());
            }
            // Nothing is proved or synced yet: that is for when nobody waits. Without room it is asked again.
            self.engine.want_all(&mut left);
            if self.look().is_none() {
                return;
            }
        }
    }
}

fn gauges(engine: &Engine, mount: &Weak<LiveMount>) -> Gauges {
    let cpu = Duration::try_from(clock_gettime(ClockId::ProcessCPUTime)).unwrap_or_default();
    let waited = mount.upgrade().map_or(Duration::ZERO, |mount| mount.waits().waited());
    let (bytes, (arriving, answering)) = (engine.net.traffic().bytes, engine.through.arriving());
    Gauges { at: Instant::now(), waited, bytes, arriving, answering, cpu }
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
                answering: ms(arriving) * n,
                bytes: bytes * u64::from(n),
                cpu: ms(cpu) * n,
            };
            seen.look(gauges(n), gauges(n + 1), 2.0);
        }
        seen
    }

    const DELAY: Duration = Duration::from_millis(48);

    #[test]
    fn a_start_that_waits_for_answers_regrets_and_one_that_waits_for_bytes_or_processors_does_not() {
        let pace = |seen: Seen| seen.ahead(150.0 * MB, PATIENCE, DELAY, None);
        let nothing = |seen: Seen| !seen.tells() || !seen.is_idle() || pace(seen) == Pace::Nothing;
        // 100 Mbit/s, answers arrive most of the time.
        assert!(nothing(seen(400, 25, 18, 10, 216_000)));
        // The processors are busy.
        assert!(nothing(seen(400, 25, 5, 40, 500_000)));
        // Nobody waits, nothing has come.
        assert!(nothing(seen(400, 0, 0, 0, 10_000)));
        assert!(nothing(seen(400, 25, 0, 0, 0)));
        // Too little to tell a rate.
        assert!(nothing(seen(8, 25, 2, 2, 60_000)));
        // 2 ms of 25 bring 60 kB, so all takes 5 s.
        assert!(!nothing(seen(20, 25, 2, 2, 60_000)));
    }

    #[test]
    fn the_more_is_lost_the_more_is_fetched_of_the_rest() {
        let pace = |looks, patience| seen(looks, 25, 2, 2, 60_000).ahead(150.0 * MB, patience, DELAY, None);
        // A line of 30 MB/s and 48 ms holds 1.44 MB; all takes 5 s, and 23 ms are lost in a look.
        let some = |requests| Pace::Some(Ahead { requests, bytes: 720_000 });
        assert_eq!(
            [5, 6, 11, 17, 22].map(|looks| pace(looks, PATIENCE)),
            [Pace::Nothing, some(1), some(2), some(3), Pace::Everything]
        );
        // A profile has told most of it.
        assert_eq!([17, 22].map(|looks| pace(looks, PATIENCE_WITH_PROFILE)), [Pace::Nothing, some(1)]);
        // A short line holds less than a request should bring.
        let short = seen(6, 25, 2, 2, 60_000).ahead(150.0 * MB, PATIENCE, Duration::from_millis(1), None);
        assert_eq!(short, Pace::Some(Ahead { requests: 1, bytes: 600_000 }));
    }

    #[test]
    fn what_a_burst_told_is_corrected_by_what_comes_after_it() {
        // 40 ms lost while 700 kB came in 7 ms: a line of 100 MB/s.
        let before = seen(2, 25, 4, 2, 350_000);
        assert_ne!(before.ahead(71.0 * MB, PATIENCE, DELAY, None), Pace::Nothing);
        let pace = |after: Seen| {
            let now = Seen {
                idle: before.idle + after.idle,
                bytes: before.bytes + after.bytes,
                arriving: before.arriving + after.arriving,
                answering: before.answering, // the rest arrives
            };
            now.ahead(71.0 * MB, PATIENCE, DELAY, Some(&before))
        };
        let one = Pace::Some(Ahead { requests: 1, bytes: FIRST });
        assert_eq!(pace(Seen::default()), one);
        assert_eq!(pace(seen(1, 25, 25, 2, 300_000)), one, "too little to tell");
        // It was one of 12.5 MB/s.
        assert_eq!(pace(seen(4, 25, 24, 2, 300_000)), Pace::Nothing);
        // It is as fast as that.
        assert_ne!(pace(seen(2, 25, 24, 2, 2_500_000)), Pace::Nothing);
    }

    #[test]
    fn who_came_to_wait_for_bytes_regrets_no_longer_unless_much_is_lost() {
        let mut start = seen(20, 25, 2, 2, 60_000);
        let before = start;
        assert_ne!(start.ahead(150.0 * MB, PATIENCE, DELAY, None), Pace::Nothing);
        let later = seen(40, 25, 20, 2, 250_000);
        start.idle += later.idle;
        start.bytes += later.bytes;
        start.arriving += later.arriving;
        assert_ne!(start.ahead(150.0 * MB, PATIENCE, DELAY, Some(&before)), Pace::Nothing, "of the rest");
        start.answering += later.answering;
        assert_eq!(start.ahead(150.0 * MB, PATIENCE, DELAY, Some(&before)), Pace::Nothing, "of what is read");
        start.idle *= 2.0;
        assert_eq!(start.ahead(150.0 * MB, PATIENCE, DELAY, Some(&before)), Pace::Everything);
    }
}
