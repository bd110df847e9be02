//! The daemon's heart: from a reference to a mounted, growing, in the end proved image.
//!
//! | file | what |
//! |---|---|
//! | `open.rs` | reference -> manifest -> layers with indexes -> metadata image |
//! | `layers.rs`, `tables.rs`, `nydus.rs`, `soci.rs` | where a layer's index comes from: store, registry, the layer itself, or a table beside it |
//! | `stand_in.rs` | an image of Nydus that is shown for the one that it refers to |
//! | `asker.rs` | for whom it is wanted |
//! | `fetch.rs` | what is fetched when nobody waits: the profile, then the rest, then the proof |
//! | `regret.rs`, `line.rs` | when the rest had better come before anybody is ready |
//! | `compare.rs`, `contents.rs` | what differs between two images; reading what their indexes cannot tell |
//! | `dedup.rs` | what images would save by sharing more than layers |
//! | `publish.rs` | the index artifact: sign, push, write |
//! | `stack.rs` | layers of an image that somebody else remembers: containerd's lazy snapshots |
//! | `apart.rs`, `names.rs` | layers of an image by themselves, and the file system in which they are looked up |
//! | `mounts.rs`, `live.rs`, `points.rs` | mounts and who sees them, one mount, the kernel's table of them |
//! | `keeping.rs`, `record.rs`, `adopt.rs` | what outlives this daemon: keeper, records, and taking them over |
//! | `waits.rs`, `profile.rs` | who waited, what a start reads |
//! | `room.rs` | quota and reserve: what is evicted, when the background pauses; pins |
//! | `report.rs` | what is told |
//!
//! Everything here is synchronous; the network is behind [`crate::origin::Net`].

mod adopt;
pub(crate) mod apart;
mod asker;
mod compare;
mod contents;
mod dedup;
mod doubt;
mod fetch;
mod found;
mod hold;
mod keeping;
pub(crate) mod keyed_lock;
mod layers;
mod line;
mod live;
pub mod metrics;
pub mod mounts;
pub(crate) mod names;
mod nydus;
mod open;
mod parallel;
mod part;
mod pipe;
mod places;
mod points;
pub mod profile;
pub mod publish;
pub(crate) mod read_path;
pub(crate) mod record;
mod regret;
pub mod report;
mod role;
pub mod room;
mod soci;
pub(crate) mod stack;
mod stand_in;
mod tables;
mod tree;
mod waits;
mod why_not;

use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use anyhow::{Context, bail};
use format::IndexId;
use store::{GarbageKind, GcMode, MetaKey, ReadThrough, RefName, Segments, Snapshots, Store, Workers};

pub(crate) use self::fetch::say;
use self::hold::Hold;
use self::keeping::Keeping;
use self::live::Workshop;
use self::mounts::{Held, LiveMount, Mounts, ReadPath};
use self::names::NamesMount;
pub(crate) use self::open::parse;
use self::open::{OpenImage, Purpose};
use self::profile::Profile;
use self::record::Shape;
use self::report::{Fallback, ImageReport, MountTrace, Status};
use self::room::{InUse, Room};
use crate::config::Config;
use crate::daemon::client::Address;
use crate::daemon::protocol::{Event, Freed, Indexed, Mounted, Opened, Segment};
use crate::exit::Hint;
use crate::origin::Net;
use crate::trust::Rule;

/// Where progress goes; an error says that nobody listens any more and the work can stop.
pub type Talk<'a> = dyn Fn(Event) -> anyhow::Result<()> + Sync + 'a;

/// How often the daemon does what is to be done now and then.
const TIDY: std::time::Duration = std::time::Duration::from_secs(1);

/// Alerts kept: what comes after the first hundred is more of the same.
const ALERTS: usize = 100;

/// Everything one daemon has.
pub struct Engine {
    config: Config,
    rule: Rule,
    store: Arc<Store>,
    net: Arc<Net>,
    through: Arc<ReadThrough>,
    mounts: Mounts,
    keeping: Arc<Keeping>,
    room: Room,
    /// What containerd has made of layers.
    snapshots: Snapshots,
    /// Where layers are looked up, while that is served. Held while it is arranged.
    names: Mutex<Option<NamesMount>>,
    /// Images that were opened, by canonical reference.
    images: Mutex<BTreeMap<String, Arc<OpenImage>>>,
    /// Layers that somebody else is about to remember.
    lending: apart::Lending,
    /// One builder per layer, so that two runs of one image stream it once.
    building: keyed_lock::KeyedLock<format::Digest>,
    /// Streams under way: half of what may be in flight to one host, so that readers find room beside them.
    streams: places::Places<8>,
    /// The indexes of the layers streamed by this daemon: some hundred bytes for each. Held for a look only.
    built: Mutex<HashMap<(format::Digest, format::DiffId), IndexId>>,
    wrong: doubt::Wrong,
    /// Layers streamed for want of an index, by reason. Held for a look only.
    fallbacks: Mutex<BTreeMap<Fallback, u64>>,
    /// Layers that the snapshotter did not make lazy.
    pub(crate) ordinary: metrics::Ordinary,
    alerts: Arc<Alerts>,
    stopping: AtomicBool,
    /// Whether mounts stay when this ends.
    leaving: AtomicBool,
    /// Whether the next one may come with the next boot: the store is closed then.
    closing: AtomicBool,
}

impl Engine {
    /// Opens the store, takes over what an earlier daemon has mounted, and gets ready to serve; `listen` is where,
    /// should it have to be started again.
    pub fn start(address: &Address, config: &Config, listen: Option<&str>) -> anyhow::Result<Arc<Self>> {
        let root = &*address.root;
        let rule = Rule::new(config)?;
        let store = Store::open(root).map_err(|error| {
            let what = format!("opening the store {}", root.display());
            match error {
                store::StoreError::Denied { .. } => {
                    let hint = "sudo floe …, or have a store of your own with --root DIR";
                    anyhow::Error::new(error).context(Hint::new(what, hint))
                }
                error => anyhow::Error::new(error).context(what),
            }
        })?;
        let run = crate::daemon::run_dir(root)?;
        let net = Arc::new(Net::new(config, Some(registry::Handed::open(&run.join("pods"))))?);
        let alerts = Arc::new(Alerts::default());
        let through = ReadThrough::start(store.clone(), net.clone(), alerts.clone(), Workers::default())?;
        let through = Arc::new(through);
        let segments: Arc<dyn Segments> = through.clone();
        let deadline = config.fetch.deadline();
        let keeping = Arc::new(Keeping::new(address, listen, &run, deadline, segments.clone()));
        let (mounts, records) = Mounts::new(Workshop {
            mnt: run.join("mnt"),
            watch: run.join("watch"),
            records: run.join("mounts"),
            devices: store.devices(),
            keeping: keeping.clone(),
            segments,
            deadline,
            reads: Arc::default(),
        })?;
        for run in crate::run::sweep(root) {
            tracing::info!(run, "removed what a killed run left");
        }
        let room = Room::new(store.clone(), &config.store)?;
        let (snapshots, damaged) = Snapshots::open(&store).context("reading the snapshots")?;
        for error in damaged {
            alerts.raise(format!("a snapshot cannot be used, nor can what stands on it: {error}"));
        }
        let engine = Arc::new(Self {
            config: config.clone(),
            rule,
            store,
            net,
            through,
            mounts,
            keeping,
            room,
            snapshots,
            names: Mutex::default(),
            images: Mutex::default(),
            lending: apart::Lending::default(),
            building: keyed_lock::KeyedLock::default(),
            streams: places::Places::default(),
            built: Mutex::default(),
            wrong: doubt::Wrong::default(),
            fallbacks: Mutex::default(),
            ordinary: metrics::Ordinary::default(),
            alerts,
            stopping: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
            closing: AtomicBool::new(false),
        });
        let weak = Arc::downgrade(&engine);
        engine.keeping.when_lost(move || {
            if let Some(engine) = weak.upgrade() {
                engine.keeper_lost();
            }
        });
        engine.adopt(records);
        let weak = Arc::downgrade(&engine);
        engine.in_background("leftovers", move || {
            weak.upgrade().into_iter().for_each(|engine| engine.snapshots.clean_up());
        });
        engine.keep_tidy();
        engine.keep_room(); // what was taken over is in use
        Ok(engine)
    }

    /// The keeper has died and the kernel asks nobody: what is missing cannot be read until there is another.
    fn keeper_lost(&self) {
        if self.stopping() {
            return;
        }
        tracing::error!("the keeper has died; reads of what is missing failed until now");
        self.keeping.forget();
        self.mounts.rearm();
        self.rearm_names();
    }

    /// Returns the snapshots.
    pub(crate) fn snapshots(&self) -> &Snapshots {
        &self.snapshots
    }

    /// Returns the mounts that an earlier daemon kept for whoever serves the snapshots.
    pub(crate) fn take_kept(&self, shape: Shape) -> Vec<(MetaKey, Arc<LiveMount>)> {
        self.mounts.take_kept(shape)
    }

    /// Returns the directory of the store.
    pub fn root(&self) -> &Path {
        self.store.root()
    }

    /// Makes an image readable, for as long as the answer's second half lives, and tells where its metadata image is.
    pub fn opened(self: &Arc<Self>, image: &str, talk: &Talk<'_>) -> anyhow::Result<(Opened, InUse)> {
        let image = self.open(image, Purpose::Look, talk)?;
        let (config, meta) = (image.config_text()?, image.meta_path().to_owned());
        let opened = Opened { config, report: self.report(&image), meta };
        Ok((opened, InUse::new(image)))
    }

    /// Mounts an image at a directory of the user's.
    pub fn mount_at(
        self: &Arc<Self>,
        image: &str,
        dir: &Path,
        path: Option<ReadPath>,
        background: bool,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Mounted> {
        let path = path.unwrap_or(self.config.mount.path);
        self.prepare_to_mount(path);
        let image = self.open(image, Purpose::Look, talk)?;
        self.mounts.show(path, image.recipe(Purpose::Look), dir, image.reference())?;
        if background {
            self.fetch_rest(&image);
        }
        Ok(Mounted { dir: dir.to_owned(), config: image.config_text()?, report: self.report(&image) })
    }

    /// Begins what the first mount needs, while the registry is asked. What fails is tried again by who needs it.
    fn prepare_to_mount(self: &Arc<Self>, path: ReadPath) {
        if path != ReadPath::Plain && self.keeping.current().is_none() {
            let engine = self.clone();
            self.in_background("prepare", move || engine.mounts.prepare(path));
        }
    }

    /// Undoes [`Engine::mount_at`].
    pub fn umount(&self, dir: &Path) -> anyhow::Result<()> {
        self.mounts.unbind(dir)
    }

    /// Mounts an image for as long as the answer lives, and for a process, should we end before it.
    pub fn hold(
        self: &Arc<Self>,
        image: &str,
        process: Option<u32>,
        path: Option<ReadPath>,
        background: bool,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Hold> {
        let before = self.net.traffic();
        self.prepare_to_mount(path.unwrap_or(self.config.mount.path));
        let image = self.open(image, Purpose::Start, talk)?;
        if background && image.at_once {
            self.want_all(&mut image.layer_ids()); // nobody reads yet
        }
        let mounting = Instant::now();
        let live = Held::new(self.live(&image, Purpose::Start, path)?, process);
        image.mounted_in(mounting.elapsed());
        if background {
            self.watch_start(&image, &live.mount);
        }
        Ok(Hold { engine: self.clone(), image, live, background, before })
    }

    /// Fetches everything and proves it.
    pub fn pull(self: &Arc<Self>, image: &str, talk: &Talk<'_>) -> anyhow::Result<ImageReport> {
        let image = self.open(image, Purpose::Pull, talk)?;
        self.complete(&image, talk)?;
        Ok(self.report(&image))
    }

    /// Makes the index artifact of an image.
    pub fn index(
        self: &Arc<Self>,
        image: &str,
        wanted: &publish::Wanted<'_>,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Indexed> {
        let image = self.open(image, Purpose::Pull, talk)?;
        publish::publish(self, &image, wanted)
    }

    /// Reads everything again; with `rebuild`, fetches the layers and builds their indexes anew as well.
    pub fn verify(
        self: &Arc<Self>,
        image: &str,
        rebuild: bool,
        talk: &Talk<'_>,
    ) -> anyhow::Result<ImageReport> {
        // What was read by a table of contents cannot be compared with the layer, and is streamed.
        let image = self.open(image, if rebuild { Purpose::Pull } else { Purpose::Compare }, talk)?;
        if rebuild {
            self.rebuild(&image, talk)?;
        }
        self.scrub(&image, talk)?;
        self.complete(&image, talk)?;
        Ok(self.report(&image))
    }

    /// Makes a segment whole and tells its file.
    pub fn segment(&self, index: IndexId, number: u32) -> anyhow::Result<Segment> {
        let deadline = Instant::now() + self.config.fetch.deadline();
        self.through
            .fetch(index, number, deadline)
            .with_context(|| format!("fetching segment {number} of {index}"))?;
        let images = self.images();
        let found = images.values().flat_map(|image| image.layers()).find(|found| found.id() == index);
        let found = found.context("the layer has been closed meanwhile")?;
        Ok(Segment { file: found.hold.files().path(number) })
    }

    /// Forgets a reference.
    pub fn rm(&self, image: &str) -> anyhow::Result<()> {
        let name = ref_name(&open::canonical(image)?)?;
        if self.store.pinned().has(&name)? {
            bail!(anyhow::anyhow!("{image} is pinned").context(Hint::new(
                "forgetting an image",
                format!("`floe pin --remove {image}` takes the pin away")
            )));
        }
        if !self.store.refs().remove(&name).with_context(|| format!("forgetting {image}"))? {
            bail!(
                anyhow::anyhow!("{image} is not in the store")
                    .context(Hint::new("forgetting an image", "`floe status` lists what is"))
            );
        }
        self.images().remove(name.as_str());
        Ok(())
    }

    /// Frees what nothing refers to.
    pub fn gc(&self, dry_run: bool) -> anyhow::Result<Freed> {
        let mode = if dry_run { GcMode::DryRun } else { GcMode::Remove };
        if !dry_run {
            // What is open only because it was once asked for does not count as in use.
            self.let_go();
        }
        let garbage = self.store.gc(mode).context("collecting garbage")?;
        Ok(Freed { items: garbage.into_iter().map(|item| (named(&item.kind), item.bytes)).collect() })
    }

    /// Returns everything there is to know.
    pub fn status(&self) -> Status {
        let images = self.images().iter().map(|(name, image)| (name.clone(), self.report(image))).collect();
        Status {
            pid: std::process::id(),
            images,
            mounts: self.mounts.report(),
            traffic: self.net.traffic(),
            taken: self.through.taken(),
            fallbacks: self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner).clone(),
            room: (self.room.report())
                .inspect_err(|error| tracing::warn!("looking at the room of the store: {error:#}"))
                .unwrap_or_default(),
            pinned: (self.pinned())
                .inspect_err(|error| tracing::warn!("listing the pins: {error:#}"))
                .unwrap_or_default(),
            alerts: self.alerts.list(),
        }
    }

    /// Returns who waited for what at the mounts of a directory or an image, or at all of them.
    pub fn trace(&self, of: Option<&str>) -> anyhow::Result<Vec<MountTrace>> {
        let canonical = of.map(|of| open::canonical(of).unwrap_or_else(|_| of.to_owned()));
        self.mounts.trace(canonical.as_deref())
    }

    /// Says whether somebody uses a mount or a fetch runs.
    pub fn busy(&self) -> bool {
        self.mounts.need_us() || self.through.under_way() > 0
    }

    /// Does what is to be done now and then, on a thread of its own: the keeper or a disk may take their time.
    fn keep_tidy(self: &Arc<Self>) {
        let weak = Arc::downgrade(self);
        self.in_background("tidy", move || {
            let (mut failed, mut pause) = (0_u32, 0_u32);
            loop {
                std::thread::sleep(TIDY);
                let Some(engine) = weak.upgrade().filter(|engine| !engine.stopping()) else { return };
                // What could not be done at once when a keeper died, at growing intervals up to a minute.
                match pause.checked_sub(1) {
                    Some(left) => pause = left,
                    None => {
                        failed = if engine.mounts.rearm() & engine.rearm_names() {
                            0
                        } else {
                            (failed + 1).min(6)
                        };
                        pause = (1 << failed) - 1;
                    }
                }
                engine.mounts.tidy();
            }
        });
    }

    /// Asks the daemon to end.
    pub fn stop(&self) {
        // Whoever sees it sees how it is meant.
        self.stopping.store(true, Ordering::Release);
    }

    /// Says why something would be lost if it were left to a successor.
    pub fn may_be_left(&self) -> anyhow::Result<()> {
        if let Some(dir) = self.mounts.cannot_be_left() {
            bail!(
                anyhow::anyhow!(
                    "{} is mounted through FUSE, and this kernel is older than 6.9",
                    dir.display()
                )
                .context(Hint::new(
                    "handing over",
                    "end what uses it; `floe daemon stop` ends its readers with an error"
                ))
            );
        }
        Ok(())
    }

    /// Asks the daemon to end and to leave everything to its successor.
    pub fn hand_over(&self) -> anyhow::Result<()> {
        self.may_be_left()?;
        self.leaving.store(true, Ordering::Relaxed);
        self.stop();
        Ok(())
    }

    /// Asks the daemon to end and to leave everything to the next one, which may come with the next boot only.
    pub fn leave(&self) {
        // While it still serves: little is left for the time in which nobody does.
        if let Err(error) = self.store.sync() {
            tracing::error!("syncing the store: {error}; the next start checks it");
        }
        self.closing.store(true, Ordering::Relaxed);
        self.leaving.store(true, Ordering::Relaxed);
        self.stop();
    }

    /// Says whether the daemon was asked to end.
    pub fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Lets everything go: all mounts if we were asked to stop, none if there will be a successor, and if nobody has
    /// needed us for long, those that do not.
    pub fn shutdown(&self) {
        let (asked, leaving) = (self.stopping(), self.leaving.load(Ordering::Relaxed));
        self.stop();
        if leaving || !asked {
            self.mounts.leave(leaving);
        }
        if leaving && let Some(connection) = self.keeping.current() {
            connection.events.leave();
            connection.client.expect_another();
        }
        self.mounts.detach_all();
        self.images().clear();
        self.forget_layers();
        self.through.close();
        if leaving && !self.closing.load(Ordering::Relaxed) {
            return; // the successor is waited for, and in this boot nothing can have been lost
        }
        if !leaving {
            self.keeping.end();
        }
        if let Err(error) = self.store.close() {
            tracing::error!("closing the store: {error}; the next start checks it");
        }
    }

    fn live(
        &self,
        image: &Arc<OpenImage>,
        purpose: Purpose,
        path: Option<ReadPath>,
    ) -> anyhow::Result<Arc<LiveMount>> {
        self.mounts.live(path.unwrap_or(self.config.mount.path), image.recipe(purpose))
    }

    fn images(&self) -> std::sync::MutexGuard<'_, BTreeMap<String, Arc<OpenImage>>> {
        self.images.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn alert(&self, text: String) {
        self.alerts.raise(text);
    }
}

/// What an administrator has to look at, each thing once.
#[derive(Default)]
struct Alerts(Mutex<Vec<String>>);

impl Alerts {
    fn raise(&self, text: String) {
        tracing::error!("{text}");
        let mut alerts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if !alerts.contains(&text) && alerts.len() < ALERTS {
            alerts.push(text);
        }
    }

    fn list(&self) -> Vec<String> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl store::Observer for Alerts {
    fn corrupt(&self, index: IndexId, segment: u32) {
        self.raise(format!(
            "wrong bytes came twice for segment {segment} of layer index {index}; where the layer can be read whole, \
             the next start asks once more and then does so, which tells whether they or the index are to blame"
        ));
    }
}

fn named(garbage: &GarbageKind) -> String {
    match garbage {
        GarbageKind::Layer(index) => format!("layer {index}"),
        GarbageKind::Index(index) => format!("index {index}"),
        GarbageKind::Meta(name) => format!("tree {name}"),
    }
}

fn ref_name(canonical: &str) -> anyhow::Result<RefName> {
    RefName::parse(canonical).with_context(|| format!("naming {canonical:?}"))
}
