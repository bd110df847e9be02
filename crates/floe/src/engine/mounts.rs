//! Mounts: one per image, shared by its containers; what users see are binds of it.
//!
//! An ordinary user has mounts of their own instead: `mounts/direct.rs`.

mod direct;

pub(super) use direct::place;

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use store::MetaKey;
use sys::table::Point;

pub use super::live::LiveMount;
use super::live::{Recipe, Workshop};
use super::metrics::Reads;
use super::names::NAMES;
use super::points::{is_ours, mount_points};
pub use super::read_path::ReadPath;
use super::record::{Holder, Record, Shape};
use super::report::{MountReport, MountTrace};
use crate::exit::Hint;

/// Files of a mount that a trace names at most, those waited for longest.
const TRACED: usize = 500;

/// The mounts of a daemon.
pub struct Mounts {
    shop: Arc<Workshop>,
    /// Held while mounting: two users of one image share one mount. Taken before `binds`.
    live: Mutex<HashMap<MetaKey, Vec<Weak<LiveMount>>>>,
    binds: Mutex<HashMap<PathBuf, Bind>>,
    /// Mounts that were kept for somebody who has not come again yet.
    kept: Mutex<Vec<(MetaKey, Arc<LiveMount>)>>,
    /// Mounts of processes that began under an earlier daemon.
    inherited: Mutex<Vec<(OwnedFd, Arc<LiveMount>)>>,
    /// Why the kernel's own path does not work here, if it was tried and does not.
    trial: OnceLock<Result<(), String>>,
}

struct Bind {
    live: Arc<LiveMount>,
    reference: String,
}

impl Mounts {
    /// Returns no mounts, and what is known of those of an earlier daemon; takes away what nothing is known of.
    pub(super) fn new(shop: Workshop) -> anyhow::Result<(Self, Vec<Record>)> {
        for dir in [&shop.mnt, &shop.watch, &shop.records] {
            std::fs::create_dir_all(dir).with_context(|| format!("making {}", dir.display()))?;
            // Images hold setuid programs and devices that are meant for containers: nobody else gets here.
            std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o700))
                .with_context(|| format!("closing {} to other users", dir.display()))?;
        }
        let points = mount_points()?;
        let mut records = Record::all(&shop.records).context("reading what is known of mounts")?;
        records.retain(|record| {
            let at = direct::place(&shop.mnt.join(&record.name));
            let there = points.iter().any(|point| point.path == at);
            let ours = there && (record.path != ReadPath::Fuse || !record.terms.is_empty());
            if !ours {
                record.remove(&shop.records);
            }
            ours
        });
        for place in [&shop.mnt, &shop.watch] {
            direct::sweep(place, |name| records.iter().any(|record| record.name == name));
        }
        let below = |dir: &Path, place: &Path| records.iter().any(|record| dir == place.join(&record.name));
        let known = |dir: &Path| below(dir, &shop.mnt) || below(dir, &shop.watch);
        detach(points.iter().filter(|point| {
            (point.path.starts_with(&shop.mnt) || point.path.starts_with(&shop.watch)) && !known(&point.path)
        }))?;
        let mounts = Self {
            shop: Arc::new(shop),
            live: Mutex::default(),
            binds: Mutex::default(),
            kept: Mutex::default(),
            inherited: Mutex::default(),
            trial: OnceLock::new(),
        };
        Ok((mounts, records))
    }

    /// Returns the mount of an image, mounting it if nobody has.
    pub(super) fn live(&self, wanted: ReadPath, recipe: Recipe) -> anyhow::Result<Arc<LiveMount>> {
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        let mounts = live.entry(recipe.key).or_default();
        mounts.retain(|mount| mount.strong_count() > 0);
        let fits = |mount: &Arc<LiveMount>| {
            wanted.takes(mount.path()) && mount.can_be_shared() && !direct::is_direct(mount)
        };
        if let Some(mount) = mounts.iter().filter_map(Weak::upgrade).find(fits) {
            return Ok(mount);
        }
        let path = self.choose(wanted, &recipe)?;
        let name = self.fresh_name(recipe.key)?;
        let made = LiveMount::make(&self.shop, &name, path, recipe);
        let mount = made.inspect_err(|_| drop(std::fs::remove_dir(self.shop.mnt.join(&name))))?;
        mounts.push(Arc::downgrade(&mount));
        Ok(mount)
    }

    /// Says by which path an image is mounted.
    fn choose(&self, wanted: ReadPath, recipe: &Recipe) -> anyhow::Result<ReadPath> {
        if matches!(wanted, ReadPath::Fuse | ReadPath::Plain) {
            return Ok(wanted);
        }
        let complete = !recipe.learn && recipe.files.iter().all(|files| files.missing() == 0);
        match (self.trial(), wanted) {
            (Ok(()), _) => Ok(if complete { ReadPath::Plain } else { ReadPath::Erofs }),
            (Err(why), ReadPath::Erofs) => bail!(anyhow::Error::msg(why.clone()).context(Hint::new(
                "mounting by the kernel's own path",
                "`floe doctor` says more; --path fuse works on all kernels"
            ))),
            (Err(_), _) => Ok(ReadPath::Fuse),
        }
    }

    /// Has the kernel's own path tried, and a keeper running, before there is something to mount.
    pub(super) fn prepare(&self, wanted: ReadPath) {
        if matches!(wanted, ReadPath::Auto | ReadPath::Erofs) {
            let _ = self.trial(); // the outcome is kept
        }
        let _ = self.shop.keeping.connection(); // who needs it tries again
    }

    /// Says whether the kernel's own path has been tried, and works.
    pub(super) fn uses_kernel(&self) -> bool {
        self.trial.get().is_some_and(Result::is_ok)
    }

    /// Tries the kernel's own path, once.
    pub(super) fn trial(&self) -> &Result<(), String> {
        self.trial.get_or_init(|| {
            let tmp = self.shop.devices.with_file_name("tmp");
            let tried = mount::erofs::trial(&tmp);
            tried.map_err(|error| {
                let text = format!("{:#}", anyhow::Error::new(error));
                tracing::info!("images are read through FUSE: {text}");
                text
            })
        })
    }

    /// Takes over the mounts of an earlier daemon; `made` are those that could be made sense of.
    pub(super) fn adopt(&self, made: Vec<(MetaKey, Record, Recipe)>, lost: &[(Record, anyhow::Error)]) {
        // The layers are in use: whatever is asked from here on can be answered.
        let joined = self.shop.keeping.join().unwrap_or_else(|error| {
            tracing::error!("{error:#}");
            None
        });
        let mut adopted = Vec::new();
        for (key, record, recipe) in made {
            let (old, binds, holders) = (record.clone(), record.binds.clone(), record.holders.clone());
            match LiveMount::adopt(&self.shop, record, recipe) {
                Ok(mount) => {
                    if old.kept {
                        self.kept.lock().unwrap_or_else(PoisonError::into_inner).push((key, mount.clone()));
                    }
                    adopted.push((key, mount, binds, holders));
                }
                Err(error) => self.give_up(&old, &error),
            }
        }
        lost.iter().for_each(|(record, error)| self.give_up(record, error));
        // What is lost of the kernel's own stays watched: asked about it, we know of no such layer, and deny.
        let lost = |name: &str| lost.iter().any(|(record, _)| record.name == name);
        let known = |name: &str| {
            name == NAMES || lost(name) || adopted.iter().any(|(_, mount, ..)| mount.is_held_as(name))
        };
        if let Some(connection) = joined {
            for name in connection.held.iter().filter(|name| !known(name)) {
                let _ = connection.client.release(name); // nobody knows what it was for
            }
        }
        // Before any is armed: should the keeper die meanwhile, all of them are armed again.
        let mut live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        for (key, mount, ..) in &adopted {
            live.entry(*key).or_default().push(Arc::downgrade(mount));
        }
        drop(live);
        let points = mount_points().unwrap_or_default();
        self.rearm();
        for (_, mount, binds, holders) in adopted {
            for dir in binds {
                if points.iter().any(|point| point.path == dir) {
                    let bind = Bind { live: mount.clone(), reference: mount.reference() };
                    self.binds.lock().unwrap_or_else(PoisonError::into_inner).insert(dir, bind);
                } else {
                    mount.binds(|binds| binds.retain(|other| *other != dir));
                }
            }
            for holder in holders {
                match holder.watch() {
                    Some(process) => {
                        let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
                        inherited.push((process, mount.clone()));
                    }
                    None => mount.let_go(&holder),
                }
            }
        }
    }

    /// Returns the mounts of this shape that an earlier daemon kept for whoever asks.
    pub(crate) fn take_kept(&self, shape: Shape) -> Vec<(MetaKey, Arc<LiveMount>)> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extract_if(.., |(_, mount)| mount.shape() == shape).collect()
    }

    /// Does what can be done for a mount that cannot be served: the kernel's own still shows what is here, and what is
    /// missing is an error; one of FUSE would keep its readers waiting.
    fn give_up(&self, record: &Record, error: &anyhow::Error) {
        tracing::error!(
            mount = record.name,
            image = record.reference,
            "a mount cannot be taken over: {error:#}"
        );
        if record.path == ReadPath::Fuse {
            mount::erofs::remove_point(&self.shop.mnt.join(&record.name));
            for dir in &record.binds {
                let _ = mount::fuse::detach(dir); // it shows the same, or is it
            }
            record.remove(&self.shop.records);
        }
    }

    /// Has the keeper watch what is to be watched; says whether all of it is.
    pub(super) fn rearm(&self) -> bool {
        let mut done = true;
        for mount in self.all() {
            if let Err(error) = mount.rearm() {
                tracing::error!(dir = %mount.dir().display(), "what is missing cannot be read: {error:#}");
                done = false;
            }
        }
        done
    }

    /// Does what is to be done now and then: lets go what ended processes held, and ends watches of what is complete.
    pub(super) fn tidy(&self) {
        let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = inherited.extract_if(.., |(process, _)| has_ended(process)).collect();
        drop(inherited);
        drop(gone);
        self.all().iter().for_each(|mount| mount.release_if_complete());
    }

    pub(super) fn all(&self) -> Vec<Arc<LiveMount>> {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.values().flatten().filter_map(Weak::upgrade).collect()
    }

    /// Shows a mount at a directory of the user's.
    pub fn bind(&self, live: Arc<LiveMount>, dir: &Path, reference: &str) -> anyhow::Result<()> {
        let _gone; // outlives the lock
        let mut binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        _gone = vacated(&mut binds, dir)?;
        mount_bind(live.dir(), dir).with_context(|| format!("mounting at {}", dir.display()))?;
        // As with a disk that somebody plugs in: its programs run, but as whoever runs them.
        let safe = MountFlags::BIND | MountFlags::RDONLY | MountFlags::NOSUID | MountFlags::NODEV;
        if let Err(error) = mount_remount(dir, safe, c"") {
            let _ = unmount(dir, UnmountFlags::DETACH); // just mounted, and nobody's yet
            return Err(error).with_context(|| format!("mounting nosuid,nodev at {}", dir.display()));
        }
        live.binds(|binds| binds.push(dir.to_owned()));
        binds.insert(dir.to_owned(), Bind { live, reference: reference.to_owned() });
        Ok(())
    }

    /// Undoes [`Mounts::bind`]; a mount in use stays.
    pub fn unbind(&self, dir: &Path) -> anyhow::Result<()> {
        let mut binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(bind) = binds.get(dir) else {
            drop(binds);
            return detach_leftover(dir);
        };
        if direct::is_direct(&bind.live) {
            direct::end(bind, dir)?;
            binds.remove(dir);
            return Ok(());
        }
        match unmount(dir, UnmountFlags::empty()) {
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(rustix::io::Errno::BUSY) => return Err(in_use(dir)),
            Err(error) => return Err(error).with_context(|| format!("unmounting {}", dir.display())),
        }
        let bind = binds.remove(dir);
        drop(binds);
        bind.iter().for_each(|bind| bind.live.binds(|binds| binds.retain(|other| other != dir)));
        drop(bind); // the last user takes the mount with it
        Ok(())
    }

    /// Says whether an image is mounted.
    pub fn uses(&self, key: MetaKey) -> bool {
        let live = self.live.lock().unwrap_or_else(PoisonError::into_inner);
        live.get(&key).is_some_and(|mounts| mounts.iter().any(|mount| mount.strong_count() > 0))
    }

    /// Says whether anything is mounted that cannot be read without a daemon.
    pub fn need_us(&self) -> bool {
        self.all().iter().any(|mount| mount.needs_us())
    }

    /// Returns a mount that no successor could take over without losing readers, if there is one.
    pub(super) fn cannot_be_left(&self) -> Option<PathBuf> {
        self.all().iter().find(|mount| !mount.can_be_left()).map(|mount| mount.dir().to_owned())
    }

    /// Leaves mounts to the next daemon: all of them, or those that need none.
    pub(super) fn leave(&self, all: bool) {
        self.all().iter().filter(|mount| all || !mount.needs_us()).for_each(|mount| mount.leave());
    }

    /// Takes every bind away that is not left, also those in use.
    pub(super) fn detach_all(&self) {
        for (dir, bind) in self.binds.lock().unwrap_or_else(PoisonError::into_inner).drain() {
            if bind.live.is_left() {
                continue;
            }
            if direct::is_direct(&bind.live) {
                direct::forget(&bind.live);
                continue;
            }
            if let Err(error) = unmount(&dir, UnmountFlags::DETACH) {
                tracing::warn!(dir = %dir.display(), "unmounting: {error}");
            }
        }
        self.inherited.lock().unwrap_or_else(PoisonError::into_inner).clear();
        self.kept.lock().unwrap_or_else(PoisonError::into_inner).clear();
    }

    /// Returns what is mounted where: what users have mounted, then what containers stand on.
    pub fn report(&self) -> Vec<MountReport> {
        self.shown().iter().map(|(mount, dir, reference)| report(mount, dir, reference)).collect()
    }

    /// Returns the same of the mounts at a directory or of an image, or of all, with the files that were waited for.
    pub fn trace(&self, of: Option<&str>) -> anyhow::Result<Vec<MountTrace>> {
        let mut shown = self.shown();
        if let Some(of) = of {
            shown.retain(|(_, dir, reference)| dir == Path::new(of) || reference == of);
            if shown.is_empty() {
                bail!(anyhow::anyhow!("nothing is mounted by that name").context(Hint::new(
                    format!("looking for mounts of {of}"),
                    "`floe status` lists them; one that images share has the name of the first"
                )));
            }
        }
        let trace = |(mount, dir, reference): &(Arc<LiveMount>, PathBuf, String)| {
            let mut waits = mount.waits().by_file(mount.image());
            waits.truncate(TRACED);
            MountTrace { mount: report(mount, dir, reference), waits }
        };
        Ok(shown.iter().map(trace).collect())
    }

    /// Returns the reads of all mounts since the start.
    pub(super) fn reads(&self) -> &Reads {
        &self.shop.reads
    }

    /// Returns the mounts, where each is shown, and of what.
    fn shown(&self) -> Vec<(Arc<LiveMount>, PathBuf, String)> {
        let binds = self.binds.lock().unwrap_or_else(PoisonError::into_inner);
        let bound = binds.iter().map(|(dir, bind)| (bind.live.clone(), dir.clone(), bind.reference.clone()));
        let mut shown: Vec<_> = bound.collect();
        drop(binds);
        for mount in self.all() {
            if !shown.iter().any(|(bound, ..)| Arc::ptr_eq(bound, &mount)) {
                let (dir, reference) = (mount.dir().to_owned(), mount.reference());
                shown.push((mount, dir, reference));
            }
        }
        shown
    }

    fn fresh_name(&self, key: MetaKey) -> anyhow::Result<String> {
        // A mount that is still being let go may have the plain name: take the first free one.
        for n in 0..1000 {
            let name = format!("{:.12}-{n}", key.to_string());
            let dir = self.shop.mnt.join(&name);
            match std::fs::create_dir(&dir) {
                Ok(()) => return Ok(name),
                Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
                Err(e) => return Err(e).with_context(|| format!("making {}", dir.display())),
            }
        }
        bail!("no free mount point below {}", self.shop.mnt.display())
    }
}

/// A process's hold on a mount, noted for the next daemon.
pub(super) struct Held {
    pub(super) mount: Arc<LiveMount>,
    holder: Option<Holder>,
}

impl Held {
    pub(super) fn new(mount: Arc<LiveMount>, pid: Option<u32>) -> Self {
        let holder = pid.and_then(Holder::of);
        holder.iter().for_each(|holder| mount.hold(holder));
        Self { mount, holder }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.mount.end_start();
        // One that is left is held on, by a process that lives.
        if !self.mount.is_left() {
            self.holder.iter().for_each(|holder| self.mount.let_go(holder));
        }
    }
}

/// Says whether the last daemon of a store has left mounts, by what is noted in its runtime directory.
pub fn are_left(run: &Path) -> bool {
    let notes = std::fs::read_dir(run.join("mounts")).into_iter().flatten().flatten();
    notes.into_iter().any(|note| note.path().extension().is_some_and(|end| end == "json"))
}

/// Says whether anything is mounted below the runtime directory of a store whose daemon has gone, and returns the references
/// of what cannot be read without one.
pub fn left(run: &Path) -> anyhow::Result<(bool, Vec<String>)> {
    let mounted = mount_points()?.iter().any(|point| point.path.starts_with(run));
    let records = match Record::all(&run.join("mounts")) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
        records => records.context("reading what is known of mounts")?,
    };
    let unserved = records.into_iter().filter(|record| record.watched || record.path == ReadPath::Fuse);
    Ok((mounted, unserved.map(|record| record.reference).collect()))
}

/// Takes away everything below the runtime directory of a store whose daemon is gone for good, and its keeper.
pub fn clear(run: &Path) -> anyhow::Result<()> {
    super::names::clear(run)?;
    mount::keeper::end(&run.join("keeper.sock")).context("ending the keeper")?;
    detach(mount_points()?.iter().filter(|point| point.path.starts_with(run)))?;
    match std::fs::remove_dir_all(run.join("mounts")) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error).context("forgetting mounts"),
        _ => Ok(()),
    }
}

fn detach<'a>(points: impl DoubleEndedIterator<Item = &'a Point>) -> anyhow::Result<()> {
    for point in points.rev() {
        let detached = mount::fuse::detach(&point.path);
        detached.with_context(|| format!("taking away the leftover mount {}", point.path.display()))?;
        let _ = std::fs::remove_dir(&point.path); // it is empty; the next mount makes its own
    }
    Ok(())
}

/// Says whether the process of a descriptor has ended.
fn has_ended(process: &OwnedFd) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
    poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0) // an interrupted look has seen nothing
}

/// Says whether a daemon that has ended left a mount at a directory to the next.
pub fn is_left(run: &Path, dir: &Path) -> bool {
    Record::is_at(&run.join("mounts"), dir) && is_mounted(dir)
}

/// Takes away a mount of ours that no daemon knows of any more.
pub fn detach_leftover(dir: &Path) -> anyhow::Result<()> {
    let ours = |point: &Point| point.path == dir && is_ours(point);
    if !mount_points()?.iter().any(ours) {
        bail!("{} is not a mount of floe", dir.display());
    }
    mount::fuse::detach(dir).with_context(|| format!("unmounting {}", dir.display()))
}

/// Says whether something of ours is mounted at a directory.
fn is_mounted(dir: &Path) -> bool {
    mount_points().is_ok_and(|points| points.iter().any(|point| point.path == dir && is_ours(point)))
}

fn report(mount: &LiveMount, dir: &Path, reference: &str) -> MountReport {
    let (waits, counters) = (mount.waits(), mount.waits().counters());
    let (here, segments) = mount.segments();
    MountReport {
        dir: dir.display().to_string(),
        reference: reference.to_owned(),
        here,
        segments,
        path: mount.path(),
        stale: mount.is_stale(),
        reads: counters.hits() + counters.misses(),
        misses: counters.misses(),
        waiting: counters.waiting(),
        failed: counters.failures(),
        waited: waits.waited(),
    }
}

/// Refuses a directory at which an image is mounted; one that somebody else's `umount` has freed is forgotten, and what was there
/// returned.
fn vacated(binds: &mut HashMap<PathBuf, Bind>, dir: &Path) -> anyhow::Result<Option<Bind>> {
    if binds.contains_key(dir) && is_mounted(dir) {
        return Err(occupied(dir));
    }
    let gone = binds.remove(dir);
    if let Some(Bind { live, .. }) = &gone {
        live.binds(|binds| binds.retain(|other| other != dir));
        if direct::is_direct(live) {
            direct::forget(live);
        }
    }
    Ok(gone)
}

fn occupied(dir: &Path) -> anyhow::Error {
    let hint = "choose another directory or `floe umount` it first";
    anyhow::Error::msg("an image is mounted there")
        .context(Hint::new(format!("mounting at {}", dir.display()), hint))
}

fn in_use(dir: &Path) -> anyhow::Error {
    let hint = format!("end what uses it: fuser -vm {}", dir.display());
    anyhow::Error::msg("it is in use").context(Hint::new(format!("unmounting {}", dir.display()), hint))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_our_own_mounts_are_taken_away() {
        assert!(detach_leftover(Path::new("/proc")).is_err());
    }
}
