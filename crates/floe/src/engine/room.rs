//! Room: how much the store may hold, how much of its disk stays free, and what happens when there is too little.
//!
//! A thread looks once a second. If there is too little room, layers that nobody uses and nobody has pinned lose
//! their segments, the least recently used first (`store::Room`). If that is not enough, what no reader waits for
//! pauses until there is room again; readers go on as long as the disk takes what they read. Both limits have some
//! slack, so that neither happens for every layer.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::bail;
use store::{CompleteError, Evicted, Store};

use super::open::{OpenImage, canonical};
use super::report::RoomReport;
use super::{Engine, ref_name};
use crate::config;
use crate::exit::Hint;
use crate::size::shown;

/// How often there is a look.
const TICK: Duration = Duration::from_secs(1);

/// A look costs at most one part in so many of the time, for a store may have a hundred thousand layers; but whatever
/// the last one took, the next comes within half a minute.
const IDLE: u32 = 50;
const RAREST: Duration = Duration::from_secs(30);

/// How long it takes some file systems to tell of room that was freed (btrfs commits every 30 s). What is missing
/// meanwhile is no reason to evict more.
const SETTLING: Duration = Duration::from_secs(30);

/// The reserve unless it is configured: 5 % of the disk, and not more than 10 GiB.
const RESERVE_SHARE: u64 = 20;
const RESERVE_MOST: u64 = 10 << 30;

/// A sixteenth of a limit is freed beyond it.
const SLACK: u64 = 16;

/// What the store may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Limits {
    /// The most that segments may have, in bytes.
    quota: Option<u64>,
    /// The least that stays free on the disk, in bytes.
    reserve: u64,
    /// The bytes of the disk.
    capacity: u64,
}

/// What it takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Taken {
    /// The bytes of all segments.
    held: u64,
    /// The bytes free on the disk.
    free: u64,
}

/// Returns what is kept free on a disk of this many bytes.
pub(crate) fn reserve(config: &config::Store, capacity: u64) -> u64 {
    let usual = (capacity / RESERVE_SHARE).min(RESERVE_MOST);
    config.reserve.map_or(usual, |reserve| reserve.bytes())
}

impl Limits {
    fn new(config: &config::Store, capacity: u64) -> Self {
        let quota = config.quota.map(|quota| quota.bytes());
        Self { quota, reserve: reserve(config, capacity), capacity }
    }

    /// Returns how far the quota is exceeded and how much the reserve lacks.
    fn lack(&self, taken: Taken) -> (u64, u64) {
        let over = self.quota.map_or(0, |quota| taken.held.saturating_sub(quota));
        (over, self.reserve.saturating_sub(taken.free))
    }

    /// Returns how much more or less would be enough, with slack: for the quota and for the reserve.
    fn wanted(&self, taken: Taken) -> (u64, u64) {
        let quota = self.quota.map(|quota| quota - quota / SLACK);
        // A reserve of nearly all of the disk must be within reach, too.
        let slack = self.reserve.min(self.capacity.saturating_sub(self.reserve)) / SLACK;
        Self { quota, reserve: self.reserve + slack, ..*self }.lack(taken)
    }

    /// Says why there is too little room.
    fn why(&self, taken: Taken) -> Option<String> {
        match (self.lack(taken), self.quota) {
            ((1.., _), Some(quota)) => {
                Some(format!("the store holds {}, its quota is {}", shown(taken.held), shown(quota)))
            }
            ((_, 1..), _) => Some(format!(
                "the store's disk has {} free, {} are kept free",
                shown(taken.free),
                shown(self.reserve)
            )),
            _ => None,
        }
    }
}

/// The room of a daemon's store.
pub(super) struct Room {
    segments: store::Room,
    store: Arc<Store>,
    limits: Limits,
    /// Held for a look only.
    state: Mutex<State>,
    /// Told when `paused` ends.
    resumed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// Why what no reader waits for is paused, if it is.
    paused: Option<String>,
    /// Layers evicted since the daemon started, and their bytes.
    evicted: (u64, u64),
    /// Until when the reserve alone is no reason to evict again.
    settling: Option<Instant>,
}

impl Room {
    pub(super) fn new(store: Arc<Store>, config: &config::Store) -> anyhow::Result<Self> {
        let limits = Limits::new(config, store.capacity()?);
        let segments = store::Room::new(store.clone());
        Ok(Self { segments, store, limits, state: Mutex::default(), resumed: Condvar::new() })
    }

    /// Returns what there is to know; an error if the store cannot be looked at.
    pub(super) fn report(&self) -> anyhow::Result<RoomReport> {
        let held = self.segments.held()?;
        let free = self.store.free()?;
        let state = self.state();
        let (evicted_layers, evicted_bytes) = state.evicted;
        Ok(RoomReport {
            held,
            quota: self.limits.quota,
            free,
            reserve: self.limits.reserve,
            evicted_layers,
            evicted_bytes,
            paused: state.paused.clone(),
        })
    }

    /// Returns why what no reader waits for is paused, if it is.
    fn paused(&self) -> Option<String> {
        self.state().paused.clone()
    }

    /// Without a quota nobody needs to know what is held.
    fn taken(&self) -> Result<Taken, store::StoreError> {
        let held = if self.limits.quota.is_some() { self.segments.held()? } else { 0 };
        Ok(Taken { held, free: self.store.free()? })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes the segments of layers that may go, as far as is wanted. `let_go` is called before.
    fn evict(&self, taken: Taken, let_go: impl FnOnce()) -> Result<(), store::StoreError> {
        let (over, lacking) = self.limits.wanted(taken);
        let settled = self.state().settling.is_none_or(|until| until <= Instant::now());
        let wanted = if settled { over.max(lacking) } else { over };
        if wanted == 0 {
            return Ok(());
        }
        let_go();
        let evicted = self.segments.evict(wanted)?;
        for Evicted { layer, bytes, used } in &evicted {
            let ago = std::time::SystemTime::UNIX_EPOCH + *used;
            let seconds = ago.elapsed().unwrap_or_default().as_secs(); // used in the future: just now
            tracing::info!(index = %layer, bytes, seconds, "a layer that nobody uses was evicted");
        }
        if !evicted.is_empty() {
            let mut state = self.state();
            state.evicted.0 += evicted.len() as u64;
            state.evicted.1 += evicted.iter().map(|evicted| evicted.bytes).sum::<u64>();
            state.settling = Some(Instant::now() + SETTLING);
        }
        Ok(())
    }
}

impl Engine {
    /// Begins to look after the room. What outlived an earlier daemon must be in use again.
    pub(super) fn keep_room(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        let work = move || {
            while let Some(engine) = weak.upgrade().filter(|engine| !engine.stopping()) {
                let begun = Instant::now();
                engine.look_for_room();
                drop(engine); // the daemon must be able to end
                std::thread::sleep((begun.elapsed() * IDLE).clamp(TICK, RAREST));
            }
        };
        if let Err(error) = std::thread::Builder::new().name("room".into()).spawn(work) {
            self.alert(format!("starting a thread: {error}; nobody looks after the room of the store"));
        }
    }

    /// Evicts, pauses and resumes as the room asks for it.
    fn look_for_room(&self) {
        let looked = self.room.taken().and_then(|taken| {
            if self.room.limits.why(taken).is_none() && self.room.paused().is_none() {
                return Ok(taken);
            }
            // What is open only because it was once asked for does not count as in use.
            self.room.evict(taken, || self.let_go())?;
            self.room.taken()
        });
        match looked {
            Ok(taken) => match self.room.limits.why(taken) {
                Some(why) => self.pause(format!("{why}, and nothing can be evicted")),
                None if self.room.limits.wanted(taken) == (0, 0) => self.resume(),
                None => {}
            },
            Err(error) => self.pause(format!("making room: {:#}", anyhow::Error::new(error))),
        }
    }

    fn pause(&self, why: String) {
        let mut state = self.room.state();
        if state.paused.is_none() {
            tracing::warn!("room is short: {why}; what no reader waits for pauses");
            self.through.pause();
        }
        // Its numbers change as long as it lasts.
        state.paused = Some(why);
    }

    fn resume(&self) {
        let mut state = self.room.state();
        if state.paused.take().is_some() {
            tracing::info!("there is room again: what no reader waits for goes on");
            self.through.resume();
            self.room.resumed.notify_all();
        }
    }

    /// Waits until there is room; false if the daemon ends first.
    pub(super) fn wait_for_room(&self) -> bool {
        let mut state = self.room.state();
        while state.paused.is_some() && !self.stopping() {
            state = match self.room.resumed.wait_timeout(state, TICK) {
                Ok((state, _)) => state,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        !self.stopping()
    }

    /// Says that there is no room for so many bytes, if there is none.
    pub(super) fn check_room(&self, wanted: u64) -> anyhow::Result<()> {
        let room = self.room.report()?;
        if room.free < wanted.saturating_add(room.reserve) {
            bail!(
                "{} are free on the store's disk, and {} of them kept",
                shown(room.free),
                shown(room.reserve)
            );
        }
        Ok(())
    }

    /// Says why a layer could not be completed, and what helps if it is for want of room.
    pub(super) fn for_want_of_room(&self, error: CompleteError) -> anyhow::Error {
        let CompleteError::Paused = error else { return error.into() };
        let why = self.room.paused().unwrap_or_else(|| "room was short a moment ago".to_owned());
        let hint = "free some room, or change quota or reserve in [store] of the configuration; \
                    what is mounted goes on fetching what is read";
        anyhow::Error::new(error).context(Hint::new(why, hint))
    }

    /// Lets go what is open only because it was once asked for.
    pub(super) fn let_go(&self) {
        self.images().retain(|_, image| Arc::strong_count(image) > 1 || self.mounts.uses(image.key()));
        self.forget_layers();
    }

    /// Keeps an image that is in the store from being evicted; it fetches nothing.
    pub fn pin(&self, image: &str) -> anyhow::Result<()> {
        let name = ref_name(&canonical(image)?)?;
        if self.store.refs().get(&name)?.is_none() {
            bail!(
                anyhow::anyhow!("{image} is not in the store")
                    .context(Hint::new("pinning an image", format!("`floe pull {image}` fetches it")))
            );
        }
        Ok(self.store.pinned().put(&name)?)
    }

    /// Takes a pin away.
    pub fn unpin(&self, image: &str) -> anyhow::Result<()> {
        if !self.store.pinned().remove(&ref_name(&canonical(image)?)?)? {
            bail!(
                anyhow::anyhow!("{image} is not pinned")
                    .context(Hint::new("taking a pin away", "`floe pin` lists what is"))
            );
        }
        Ok(())
    }

    /// Returns the references that are pinned.
    pub fn pinned(&self) -> anyhow::Result<Vec<String>> {
        Ok(self.store.pinned().list()?.iter().map(ToString::to_string).collect())
    }
}

/// Keeps an image in use; its end is when it was last used.
pub struct InUse(Arc<OpenImage>);

impl InUse {
    pub(super) fn new(image: Arc<OpenImage>) -> Self {
        Self(image)
    }
}

impl Drop for InUse {
    fn drop(&mut self) {
        self.0.touch();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MIB: u64 = 1 << 20;

    #[test]
    fn quota_and_reserve_are_kept_with_slack() {
        let limits = Limits { quota: Some(16 * MIB), reserve: 32 * MIB, capacity: u64::MAX };
        let plenty = 100 * MIB;
        for (held, free, lack, wanted) in [
            (0, plenty, (0, 0), (0, 0)),
            (15 * MIB, plenty, (0, 0), (0, 0)),
            (15 * MIB + 1, plenty, (0, 0), (1, 0)),
            (16 * MIB, plenty, (0, 0), (MIB, 0)),
            (16 * MIB + 1, plenty, (1, 0), (MIB + 1, 0)),
            (0, 34 * MIB, (0, 0), (0, 0)),
            (0, 34 * MIB - 1, (0, 0), (0, 1)),
            (0, 32 * MIB, (0, 0), (0, 2 * MIB)),
            (0, 32 * MIB - 1, (0, 1), (0, 2 * MIB + 1)),
            (u64::MAX, 0, (u64::MAX - 16 * MIB, 32 * MIB), (u64::MAX - 15 * MIB, 34 * MIB)),
        ] {
            let taken = Taken { held, free };
            assert_eq!((limits.lack(taken), limits.wanted(taken)), (lack, wanted), "{taken:?}");
            assert_eq!(limits.why(taken).is_some(), lack != (0, 0));
        }
        let nearly_all = Limits { quota: None, reserve: 84 * MIB, capacity: plenty };
        assert_eq!(nearly_all.wanted(Taken { held: 0, free: 85 * MIB - 1 }), (0, 1));
        let none = Limits { quota: None, reserve: 0, capacity: plenty };
        assert_eq!(none.wanted(Taken { held: u64::MAX, free: 0 }), (0, 0));
    }

    #[test]
    fn the_usual_reserve_is_a_share_of_a_small_disk_and_10_gib_of_a_large_one() {
        let reserve = |capacity| Limits::new(&config::Store::default(), capacity).reserve;
        assert_eq!(reserve(1 << 30), (1 << 30) / 20);
        assert_eq!(reserve(200 << 30), 10 << 30);
        assert_eq!(reserve(u64::MAX), 10 << 30);
        assert_eq!(reserve(0), 0);
    }
}
