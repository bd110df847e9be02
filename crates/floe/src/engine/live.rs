//! One mounted image: made by the best path there is, kept over the daemon's end, taken down with its last user.

use std::collections::HashMap;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, bail};
use format::IndexId;
use format::erofs::read::Image;
use mount::erofs::{Device, Observed, WatchPoint, detach_point, remove_point};
use mount::fuse::{self, Mounted, Server, Terms, Unanswered};
use mount::keeper::Client;
use store::{MetaKey, OpenLayer, RefLayer, Segments};
use sys::map::Map;

use super::found;
use super::keeping::{Connection, Keeping};
use super::metrics::Reads;
use super::mounts::place;
use super::profile::Recorder;
use super::read_path::ReadPath;
use super::record::{Holder, Record, Shape};
use super::waits::Waits;
use crate::exit::Hint;

/// How often a mount is made anew because a segment was replaced meanwhile.
const ATTEMPTS: usize = 3;

/// What an image is mounted from.
pub(super) struct Recipe {
    pub(super) reference: String,
    pub(super) key: MetaKey,
    pub(super) shape: Shape,
    /// The metadata image.
    pub(super) meta: PathBuf,
    /// Bottom first, as the record has them.
    pub(super) layers: Vec<RefLayer>,
    /// The segments of the same layers.
    pub(super) files: Vec<Arc<OpenLayer>>,
    /// Keeps the layers in use, whatever becomes of the reference they were mounted by.
    pub(super) uses: Arc<dyn Send + Sync>,
    /// Whether the first read of every segment is to be heard of: a container starts, and nobody knows what it reads.
    pub(super) learn: bool,
}

/// What mounts share.
pub(super) struct Workshop {
    /// Of the mounts themselves.
    pub(super) mnt: PathBuf,
    /// Of watch points.
    pub(super) watch: PathBuf,
    /// Of records.
    pub(super) records: PathBuf,
    /// Of the segments of all layers.
    pub(super) devices: PathBuf,
    pub(super) keeping: Arc<Keeping>,
    pub(super) segments: Arc<dyn Segments>,
    pub(super) deadline: Duration,
    /// The reads of all mounts.
    pub(super) reads: Arc<Reads>,
}

impl Workshop {
    /// Has the keeper hold what a FUSE mount lives by.
    fn keep(&self, name: &str, server: &Mounted) -> anyhow::Result<Arc<Client>> {
        let device = server.device().context("sharing the FUSE device")?;
        let client = self.keeping.connection()?.client;
        client.keep(&fuse_name(name), device)?;
        Ok(client)
    }

    /// Ends the watch of a mount, as far as it has come, and takes its watch point away.
    fn unwatch(&self, name: &str) {
        if let Some(connection) = self.keeping.current() {
            connection.events.forget(name);
            if let Err(error) = connection.client.release(name) {
                tracing::debug!(mount = name, %error, "ending a watch");
            }
        }
        remove_point(&self.watch.join(name));
    }
}

/// By which name the keeper holds the device of a FUSE mount.
pub(super) fn fuse_name(mount: &str) -> String {
    format!("fuse:{mount}")
}

/// The files of layers, and the generation of each that is mounted.
pub(super) type Files = Vec<(Arc<OpenLayer>, u64)>;

/// One mounted image.
pub struct LiveMount {
    dir: PathBuf,
    parts: Parts,
    files: Files,
    /// Whether the first read of every segment is heard of, and somebody wants to know.
    learns: AtomicBool,
    /// Whether the start that it was mounted for is over.
    ready: AtomicBool,
    /// Held for a look, or while it is left.
    server: Mutex<Option<Mounted>>,
    /// Who watches it or holds its device; held while that is arranged.
    keeper: Mutex<Weak<Client>>,
    record: Mutex<Record>,
    shop: Arc<Workshop>,
    /// Set when the mount is to outlive this process.
    left: AtomicBool,
    /// Let go after the mount.
    _uses: Arc<dyn Send + Sync>,
}

/// What is common to all ways of making one.
struct Parts {
    image: Arc<Image<Map>>,
    waits: Arc<Waits>,
    recorder: Arc<Recorder>,
}

impl Parts {
    fn of(meta: &Path, shop: &Workshop) -> anyhow::Result<Self> {
        let file = File::open(meta).with_context(|| format!("opening {}", meta.display()))?;
        let map = Map::of(&file).with_context(|| format!("mapping {}", meta.display()))?;
        let image =
            Image::open(map).with_context(|| format!("reading the metadata image {}", meta.display()))?;
        let recorder = Arc::new(Recorder::new(shop.segments.clone()));
        let waits = Arc::new(Waits::new(shop.reads.clone()));
        Ok(Self { image: Arc::new(image), waits, recorder })
    }

    fn server(&self, shop: &Workshop) -> Server<Map> {
        let options = fuse::Options { deadline: shop.deadline, ..Default::default() };
        Server::new(self.image.clone(), self.recorder.clone()).observed_by(self.waits.clone()).with(options)
    }

    fn observed(&self) -> Observed {
        Observed { segments: self.recorder.clone(), observer: self.waits.clone() }
    }
}

impl LiveMount {
    /// Mounts an image at a directory that is made for it, named as the record.
    pub(super) fn make(
        shop: &Arc<Workshop>,
        name: &str,
        path: ReadPath,
        recipe: Recipe,
    ) -> anyhow::Result<Arc<Self>> {
        let dir = shop.mnt.join(name);
        let parts = Parts::of(&recipe.meta, shop)?;
        let mut record = Record::new(name, &recipe.reference, recipe.layers, recipe.shape, path);
        let (mut server, mut files) = (None, recipe.files.iter().map(|files| (files.clone(), 0)).collect());
        let mut keeper = Weak::new();
        if path == ReadPath::Fuse {
            if let Err(why) = fuse::available() {
                let hint = "load the fuse module (modprobe fuse) and give this container or user /dev/fuse";
                return Err(anyhow::Error::new(why).context(Hint::new("looking for FUSE", hint)));
            }
            let made = parts.server(shop).mount(&dir);
            let made = made.with_context(|| format!("mounting at {}", dir.display()))?;
            record.terms = made.terms().to_bytes().to_vec();
            match shop.keep(name, &made) {
                Ok(client) => keeper = Arc::downgrade(&client),
                Err(error) => {
                    tracing::warn!(mount = name, "nobody keeps this mount should the daemon die: {error:#}");
                }
            }
            server = Some(made);
        } else {
            let kernel =
                Kernel { shop, record: &mut record, parts: &parts, meta: &recipe.meta, learn: recipe.learn };
            (files, keeper) = kernel.mount(&dir, &recipe.files)?;
        }
        record.generations = files.iter().map(|(layer, mounted)| (layer.id(), *mounted)).collect();
        let learns = server.is_some() || (recipe.learn && record.watched);
        let made = Arc::new(Self {
            dir,
            parts,
            files,
            learns: learns.into(),
            ready: false.into(),
            server: server.into(),
            keeper: keeper.into(),
            record: record.into(),
            shop: shop.clone(),
            left: false.into(),
            _uses: recipe.uses,
        });
        made.record().write(&shop.records).context("noting the mount")?; // dropped, it takes the mount along
        Ok(made)
    }

    /// Takes over a mount that an earlier process made.
    pub(super) fn adopt(shop: &Arc<Workshop>, record: Record, recipe: Recipe) -> anyhow::Result<Arc<Self>> {
        let parts = Parts::of(&recipe.meta, shop)?;
        let dir = shop.mnt.join(&record.name);
        let (mut server, mut files) = (None, Vec::new());
        if record.path == ReadPath::Fuse {
            let terms = Terms::from_bytes(&record.terms).context("a program of another version made it")?;
            let device = shop.keeping.connection()?.client.fetch(&fuse_name(&record.name))?;
            let (resumed, unanswered) = parts.server(shop).resume(device, terms, &place(&dir))?;
            if let Unanswered::Lost { at_most } = unanswered {
                drop(resumed); // ends those who would wait for ever, and with them all others
                bail!(
                    "readers waited ({at_most:?} at most), and this kernel cannot ask for them again (Linux 6.9)"
                );
            }
            server = Some(resumed);
            files.extend(recipe.files.into_iter().map(|layer| (layer, 0)));
        } else {
            for layer in recipe.files {
                layer.expose().context("looking at the segments")?;
                let mounted = record.generations.iter().find(|(id, _)| *id == layer.id());
                files.push((layer, mounted.map_or(u64::MAX, |mounted| mounted.1)));
            }
        }
        Ok(Arc::new(Self {
            dir,
            parts,
            files,
            learns: false.into(),
            ready: false.into(),
            server: server.into(),
            keeper: Mutex::default(),
            record: record.into(),
            shop: shop.clone(),
            left: false.into(),
            _uses: recipe.uses,
        }))
    }

    /// Has the keeper that runs now watch it, or hold its device, unless it does.
    pub(super) fn rearm(&self) -> anyhow::Result<()> {
        let mut keeper = self.keeper.lock().unwrap_or_else(PoisonError::into_inner);
        let (name, watched) = {
            let record = self.record();
            (record.name.clone(), record.watched)
        };
        let server = self.server();
        if server.is_none() && !watched {
            return Ok(());
        }
        let connection = self.shop.keeping.connection()?;
        if std::ptr::eq(keeper.as_ptr(), Arc::as_ptr(&connection.client)) {
            return Ok(());
        }
        if let Some(server) = &*server {
            if !connection.held.contains(&fuse_name(&name)) {
                self.shop.keep(&name, server)?;
            }
        } else {
            connection.events.observe(&name, self.parts.observed());
            if !connection.held.contains(&name) {
                let point =
                    WatchPoint::find(&self.shop.watch.join(&name)).context("finding the watch point")?;
                connection.client.watch(&name, point.root())?;
            }
            if !self.record().watched {
                let _ = connection.client.release(&name); // complete meanwhile
            }
        }
        *keeper = Arc::downgrade(&connection.client);
        Ok(())
    }

    /// Returns where the image is mounted.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// Returns who waited for what.
    pub fn waits(&self) -> &Waits {
        &self.parts.waits
    }

    /// Returns the tree.
    pub fn image(&self) -> &Image<Map> {
        &self.parts.image
    }

    /// Returns what has been read, in order, if all of it was heard of.
    pub fn reads(&self) -> Option<Vec<(IndexId, u32)>> {
        self.learns.load(Ordering::Relaxed).then(|| self.parts.recorder.reads())
    }

    /// Says whether the start that it was mounted for is over.
    pub(super) fn is_ready(&self) -> bool {
        self.ready.load(Ordering::Relaxed)
    }

    /// Says that the container is ready, or gone: nobody wants to know any more what a start reads.
    pub(super) fn end_start(&self) {
        self.ready.store(true, Ordering::Relaxed);
        // A server of ours hears of everything anyway.
        let served = self.server().is_some();
        self.learns.fetch_and(served, Ordering::Relaxed);
    }

    /// Returns how many segments are here, and how many there are.
    pub(super) fn segments(&self) -> (u64, u64) {
        let all = self.files.iter().map(|(files, _)| u64::from(files.segments())).sum();
        let missing: u64 = self.files.iter().map(|(files, _)| files.missing() as u64).sum();
        (u64::saturating_sub(all, missing), all)
    }

    /// Returns how many packed bytes are missing, about.
    pub(super) fn missing(&self) -> u64 {
        let missing = |layer: &RefLayer| {
            let found = self.files.iter().find(|(files, _)| files.id() == layer.index);
            found.map_or(0, |(files, _)| found::missing(files))
        };
        self.record().layers.iter().map(missing).sum()
    }

    /// Returns by which path it is read at this moment.
    pub(super) fn path(&self) -> ReadPath {
        let record = self.record();
        if record.path == ReadPath::Erofs && !record.watched { ReadPath::Plain } else { record.path }
    }

    /// Says whether it cannot be read without this process or the next.
    pub(super) fn needs_us(&self) -> bool {
        self.path() != ReadPath::Plain
    }

    /// Says whether it still answers: a user may have unmounted it by hand, or aborted its connection.
    pub(super) fn is_served(&self) -> bool {
        self.server().as_ref().is_none_or(Mounted::is_served)
    }

    /// Says whether whoever comes next can use it too.
    pub(crate) fn can_be_shared(&self) -> bool {
        self.is_served() && !self.is_stale()
    }

    /// Says whether a successor can take it over without losing a reader.
    pub(super) fn can_be_left(&self) -> bool {
        self.server().as_ref().is_none_or(|server| server.terms().resends())
    }

    /// Says whether a segment has been replaced since it was mounted: whoever comes next needs another mount.
    pub(super) fn is_stale(&self) -> bool {
        // FUSE opens what is there now.
        self.server().is_none() && self.files.iter().any(|(files, mounted)| files.generation() != *mounted)
    }

    /// Ends the watch if everything is here: then the kernel needs nobody.
    pub(super) fn release_if_complete(&self) {
        let mut record = self.record();
        if record.watched
            && !self.learns.load(Ordering::Relaxed)
            && self.files.iter().all(|(files, _)| files.missing() == 0)
        {
            record.watched = false;
            self.shop.unwatch(&record.name);
            self.note(&record);
            tracing::info!(
                mount = record.name,
                image = record.reference,
                "complete: the kernel serves it alone"
            );
        }
    }

    /// Notes that it lives until somebody lets it go who comes again after this daemon's end.
    pub(crate) fn keep(&self) {
        let mut record = self.record();
        if !std::mem::replace(&mut record.kept, true) {
            self.note(&record);
        }
    }

    /// Notes a process that uses it.
    pub(super) fn hold(&self, holder: &Holder) {
        let mut record = self.record();
        record.holders.push(holder.clone());
        self.note(&record);
    }

    /// Notes that it uses it no more.
    pub(super) fn let_go(&self, holder: &Holder) {
        let mut record = self.record();
        if let Some(at) = record.holders.iter().position(|other| other == holder) {
            record.holders.swap_remove(at);
        }
        self.note(&record);
    }

    /// Notes where users see it.
    pub(super) fn binds(&self, change: impl FnOnce(&mut Vec<PathBuf>)) {
        let mut record = self.record();
        change(&mut record.binds);
        self.note(&record);
    }

    fn note(&self, record: &Record) {
        if let Err(error) = record.write(&self.shop.records) {
            tracing::warn!(mount = record.name, %error, "noting what became of a mount");
        }
    }

    /// Says what of its layers it shows.
    pub(super) fn shape(&self) -> Shape {
        self.record().shape()
    }

    /// Returns its layers, bottom first.
    pub(super) fn layers(&self) -> Vec<RefLayer> {
        self.record().layers.clone()
    }

    /// Returns the reference it was mounted by.
    pub(super) fn reference(&self) -> String {
        self.record().reference.clone()
    }

    /// Says whether the keeper holds something of it by this name.
    pub(super) fn is_held_as(&self, name: &str) -> bool {
        let record = self.record();
        record.name == name || fuse_name(&record.name) == name
    }

    pub(super) fn is_left(&self) -> bool {
        self.left.load(Ordering::Relaxed)
    }

    /// Leaves the mount to the next daemon.
    pub(super) fn leave(&self) {
        self.left.store(true, Ordering::Relaxed);
        if let Some(server) = &mut *self.server()
            && let Err(error) = server.leave()
        {
            tracing::error!(dir = %self.dir.display(), "leaving a mount: {:#}", anyhow::Error::new(error));
        }
    }

    fn server(&self) -> MutexGuard<'_, Option<Mounted>> {
        self.server.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn record(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for LiveMount {
    fn drop(&mut self) {
        if self.is_left() {
            return;
        }
        // Somebody may still have a file open: the mount leaves the tree at once and ends with its last user.
        let server = self.server().take();
        let record = self.record();
        match server {
            Some(server) => {
                drop(server);
                if let Some(connection) = self.shop.keeping.current() {
                    let _ = connection.client.release(&fuse_name(&record.name)); // it may have gone
                }
            }
            None => detach_point(&self.dir),
        }
        if record.watched {
            self.shop.unwatch(&record.name);
        }
        record.remove(&self.shop.records);
        // Last of all: with its directory the name is free, and the next mount may take it.
        let _ = std::fs::remove_dir(&self.dir); // an empty directory below /run
    }
}

/// The making of a mount of the kernel's.
struct Kernel<'a> {
    shop: &'a Workshop,
    record: &'a mut Record,
    parts: &'a Parts,
    meta: &'a Path,
    learn: bool,
}

impl Kernel<'_> {
    /// Mounts; returns the files and who watches.
    fn mount(mut self, dir: &Path, layers: &[Arc<OpenLayer>]) -> anyhow::Result<(Files, Weak<Client>)> {
        for _ in 0..ATTEMPTS {
            let files = expose(layers)?;
            let (mounted, keeper) = self.open(layers).inspect_err(|_| self.clean_up())?;
            if files.iter().all(|(files, mounted)| files.generation() == *mounted) {
                let attached = mounted.attach(dir);
                attached.inspect_err(|_| self.clean_up()).context("showing the mount")?;
                return Ok((files, keeper));
            }
            self.clean_up();
        }
        bail!("segments are found damaged faster than they can be mounted")
    }

    fn open(&mut self, layers: &[Arc<OpenLayer>]) -> anyhow::Result<(sys::mount::Detached, Weak<Client>)> {
        let by_id: HashMap<_, _> = layers.iter().map(|layer| (layer.id(), layer)).collect();
        let devices =
            (1..=self.parts.image.devices()).filter_map(|n| self.parts.image.device(n)).map(|slot| {
                let whole = by_id.get(&slot.index).is_some_and(|layer| layer.is_whole(slot.segment));
                Device { index: slot.index, segment: slot.segment, whole }
            });
        let devices: Vec<_> = devices.collect();
        let complete = devices.iter().all(|device| device.whole);
        if self.record.path == ReadPath::Plain && !complete {
            bail!(anyhow::anyhow!("parts of it are missing").context(Hint::new(
                "mounting by the plain path",
                "`floe pull` fetches the rest; --path auto does without"
            )));
        }
        let segments = File::open(&self.shop.devices).context("opening the segments")?;
        let learn = self.learn && self.record.path != ReadPath::Plain;
        let watch = if complete && !learn { None } else { Some(self.watch()?) };
        let point = watch.as_ref().map(|(point, _)| point);
        let mounted = mount::erofs::mount(self.meta, &devices, &segments, point);
        let mounted = mounted.context("mounting by the kernel's own path")?;
        if let Some((point, connection)) = &watch {
            // Whether a file is watched is settled when it is opened: the keeper must have lived until now.
            connection
                .client
                .watch(&self.record.name, point.root())
                .context("watching what was just mounted")?;
        }
        let keeper = watch.map_or_else(Weak::new, |(_, connection)| Arc::downgrade(&connection.client));
        Ok((mounted, keeper))
    }

    fn watch(&mut self) -> anyhow::Result<(WatchPoint, Connection)> {
        let connection = self.shop.keeping.connection()?;
        let name = &self.record.name;
        let at = self.shop.watch.join(name);
        let point = WatchPoint::create(&self.shop.devices, &at, self.learn);
        let point = point.with_context(|| format!("making the watch point {}", at.display()))?;
        connection.events.observe(name, self.parts.observed());
        self.record.watched = true; // from here on there is something to undo
        connection.client.watch(name, point.root())?;
        Ok((point, connection))
    }

    /// Undoes what a failed attempt has made.
    fn clean_up(&mut self) {
        if std::mem::take(&mut self.record.watched) {
            self.shop.unwatch(&self.record.name);
        }
    }
}

/// Makes the files of all layers ready for the kernel: two at a time, for making a file waits for the disk's journal.
pub(super) fn expose(layers: &[Arc<OpenLayer>]) -> anyhow::Result<Files> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let work = || {
        let mut done = Vec::new();
        while let Some(layer) = layers.get(next.fetch_add(1, Ordering::Relaxed)) {
            let generation = layer.expose().context("making the segments ready")?;
            done.push((layer.clone(), generation));
        }
        anyhow::Ok(done)
    };
    std::thread::scope(|scope| {
        let other = scope.spawn(work);
        let mut mine = work()?;
        let theirs = other.join().unwrap_or_else(|_| bail!("making segments ready panicked"));
        mine.extend(theirs?);
        Ok(mine)
    })
}
