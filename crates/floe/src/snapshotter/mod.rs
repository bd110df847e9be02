//! Snapshots for containerd and for what is built on it: lazy where an image can be, ordinary overlays elsewhere.
//!
//! A committed lazy snapshot is a record: a layer, and what it stands on. What a container is given is an overlay over one mount of
//! the longest lazy stack below it; committed directories of ordinary snapshots lie between. Mounts are made when
//! somebody first asks for them, and end with the last snapshot in use that stands on them.
//!
//! | file | what |
//! |---|---|
//! | `labels.rs` | what clients say of the layer that they want |
//! | `remap.rs` | containers in user namespaces of their own |
//! | `service.rs` | the gRPC service |
//! | `register.rs` | an image made known to a containerd |
//!
//! The contract of a lazy layer: who unpacks an image prepares a snapshot with the label `containerd.io/snapshot.ref`,
//! whose value is the chain ID it would commit. Where the layer is had here, a committed snapshot of that name is made, and the
//! answer is that it exists already; then nobody fetches or unpacks the layer.

mod blobs;
mod labels;
pub mod register;
pub(crate) mod remap;
mod service;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use store::{
    LazyLayer, MetaKey, NewSnapshot, RefLayer, Snapshot, SnapshotError, SnapshotKind, Snapshots, Usage,
};

use self::labels::{SNAPSHOT_REF, Wish};
use self::remap::Remap;
pub use self::service::{Serving, serve};
use crate::engine::Engine;
use crate::engine::mounts::LiveMount;
use crate::engine::record::Shape;
use crate::engine::stack::{Known, Lent};

/// The label by which BuildKit knows that a snapshot is lazy.
const REMOTE: &str = "containerd.io/snapshot/remote";

/// The label of a layer that is had with what a pod's secret says.
const SECRET: &str = "containerd.io/snapshot/floe.secret";

/// Labels that say how a snapshot is mounted: clients do not take them away.
const STAY: [&str; 4] = [SECRET, remap::CHANGED, remap::LABELS[0], remap::LABELS[1]];

/// For how long what a reference means is taken from before: the layers of one image are asked for one after the other.
const LENT: Duration = Duration::from_secs(60);

/// What somebody has to mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    kind: &'static str,
    source: String,
    options: Vec<String>,
}

/// Why something cannot be done.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// With the snapshot.
    #[error(transparent)]
    Snapshot(#[from] SnapshotError),
    /// With what it stands on.
    #[error("mounting what {name:?} stands on")]
    Mount {
        /// The snapshot.
        name: String,
        /// Why.
        source: anyhow::Error,
    },
}

/// The snapshots of one daemon.
pub struct Snapshotter {
    engine: Arc<Engine>,
    /// What each snapshot in use stands on, by its number. Held for a look only.
    uses: Mutex<HashMap<u64, Vec<Arc<LiveMount>>>>,
    /// What an earlier daemon kept, where nobody knows any more for which snapshot.
    _unclaimed: Vec<Arc<LiveMount>>,
    /// Where lower directories are shown with other owners. Held while one is.
    shifted: PathBuf,
    showing: Mutex<()>,
    /// Images whose layers were just asked for.
    lent: Mutex<Vec<(Instant, Known)>>,
}

impl Snapshotter {
    /// Returns the snapshotter of an engine; takes over what snapshots in use stand on.
    pub fn new(engine: &Arc<Engine>, run: &Path) -> anyhow::Result<Arc<Self>> {
        let (snapshots, shifted) = (engine.snapshots(), run.join("shifted"));
        remap::prepare(&shifted)?;
        let kept = engine.take_kept(Shape::Stack);
        let mut uses: HashMap<u64, Vec<_>> = HashMap::new();
        let in_use = snapshots.in_use();
        remap::hide_others(&shifted, |number| in_use.iter().any(|one| one.number() == number));
        for one in in_use {
            let Some(key) = key_below(snapshots, &one) else { continue };
            let of_its = kept.iter().filter(|(kept, _)| *kept == key).map(|(_, mount)| mount.clone());
            uses.entry(one.number()).or_default().extend(of_its);
        }
        // A record that cannot be read may be a container's.
        let _unclaimed = kept.into_iter().filter(|_| !snapshots.is_whole()).map(|(_, mount)| mount).collect();
        Ok(Arc::new(Self {
            engine: engine.clone(),
            uses: uses.into(),
            _unclaimed,
            shifted,
            showing: Mutex::default(),
            lent: Mutex::default(),
        }))
    }

    /// Lets nobody be shown anything any more, unless there will be a successor.
    fn end(&self) {
        if !self.engine.leaves() {
            remap::hide_others(&self.shifted, |_| false);
        }
    }

    fn snapshots(&self) -> &Snapshots {
        self.engine.snapshots()
    }

    /// Makes a snapshot that can be looked at or written to, and returns what to mount. One that somebody would unpack a layer
    /// into exists already where the layer is had lazily.
    fn create(&self, new: &NewSnapshot<'_>, kind: SnapshotKind) -> Result<Vec<Mount>, Failure> {
        let mut not_lazy = None;
        if let (SnapshotKind::Active, Some(target)) = (kind, new.labels.get(SNAPSHOT_REF)) {
            match self.lazily(new, target) {
                Ok(()) => return Err(SnapshotError::Exists(target.clone()).into()),
                Err(why) => {
                    not_lazy = Some(why.word());
                    let target = labels::shortened(target);
                    tracing::info!(target, snapshotter = new.owner, "the layer is not lazy: {why:#}");
                }
            }
        }
        Remap::of(new.labels)?; // before anything is made
        let snapshot = self.snapshots().create(new, kind)?;
        let made = self.shown(&snapshot).and_then(|lowers| {
            self.take_after(&snapshot, &lowers)?;
            Ok(self.over(&snapshot, &lowers))
        });
        match (&made, not_lazy) {
            (Err(_), _) => drop(self.remove(new.owner, new.name)), // nobody has heard of it
            (Ok(_), Some(why)) => self.engine.ordinary.because(why),
            (Ok(_), None) => {}
        }
        made
    }

    /// Makes the committed snapshot that somebody is about to unpack, or says why not.
    fn lazily(&self, new: &NewSnapshot<'_>, target: &str) -> Result<(), labels::NotLazy> {
        let below = match new.parent {
            Some(parent) => stack(&self.snapshots().lineage(new.owner, parent)?),
            None => Some(Vec::new()),
        };
        let below = below.ok_or(labels::NotLazy::Parent)?;
        if self.snapshots().get(new.owner, target).is_ok_and(|there| there.is_lazy_on(new.parent)) {
            return Ok(());
        }
        let wish = Wish::of(new.labels)?;
        let lent = self.borrow(&wish)?;
        let (layers, at) = (lent.layers(), wish.find(target, &lent)?);
        let same = |(below, layer): (&RefLayer, &RefLayer)| below.diff_id == layer.diff_id;
        if below.len() != at || !below.iter().zip(&layers).all(same) {
            return Err(labels::NotLazy::OtherParent);
        }
        let mut noted: BTreeMap<String, String> = new.labels.clone();
        noted.insert(REMOTE.into(), "remote snapshot".into());
        if self.engine.has_secret(lent.reference()) {
            noted.insert(SECRET.into(), "pod".into());
        }
        let lazy = LazyLayer { reference: lent.reference().to_owned(), layer: layers[at].clone() };
        self.snapshots().create_lazy(&NewSnapshot { name: target, labels: &noted, ..*new }, &lazy)?;
        Ok(())
    }

    /// Opens the image whose layer is wished for, unless that was done a moment ago.
    fn borrow(&self, wish: &Wish) -> Result<Lent, labels::NotLazy> {
        let has = |one: &Lent| {
            one.reference() == wish.reference()
                && one.layers().iter().any(|layer| layer.blob == *wish.layer())
        };
        let lent = || self.lent.lock().unwrap_or_else(PoisonError::into_inner);
        lent().retain(|(since, _)| since.elapsed() < LENT);
        if let Some(known) = lent().iter().filter_map(|(_, known)| known.upgrade()).find(has) {
            return Ok(known);
        }
        // It may take as long as a pull.
        let opened = self.engine.lend(wish.reference()).map_err(labels::NotLazy::Image)?;
        lent().push((Instant::now(), opened.downgrade()));
        Ok(opened)
    }

    /// Gives the root of what will be written its owner, for a container sees the upper one's: root of its user namespace, if it has
    /// one of its own, else whose it is below.
    fn take_after(&self, snapshot: &Snapshot, lowers: &[String]) -> Result<(), Failure> {
        use std::os::unix::fs::{MetadataExt, chown};
        let files = self.snapshots().files(snapshot);
        let owner = match (Remap::of(&snapshot.labels)?, lowers.first()) {
            (Some(remap), _) => Ok(remap.root),
            (None, Some(below)) => std::fs::metadata(below).map(|below| [below.uid(), below.gid()]),
            (None, None) => return Ok(()),
        };
        let owned = owner.and_then(|[uid, gid]| chown(files, Some(uid), Some(gid)));
        owned.map_err(|error| Failure::Mount { name: snapshot.name.clone(), source: error.into() })
    }

    /// Returns the same directories as [`Self::lowers`], as the snapshot's user namespace sees them.
    fn shown(&self, snapshot: &Snapshot) -> Result<Vec<String>, Failure> {
        let lowers = self.lowers(snapshot)?;
        let parent = snapshot.parent.as_ref();
        let parent = parent.and_then(|parent| self.snapshots().get(&snapshot.owner, parent).ok());
        let is_changed = parent.is_some_and(|parent| parent.labels.contains_key(remap::CHANGED));
        match Remap::of(&snapshot.labels)? {
            Some(remap) if !is_changed => {
                let below = self.shifted.join(snapshot.number().to_string());
                let _one = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
                let shown = remap.show(&lowers, &below);
                if self.is_removed(snapshot) {
                    remap::hide(&below); // it needs nothing
                }
                shown.map_err(|source| Failure::Mount { name: snapshot.name.clone(), source })
            }
            _ => Ok(lowers),
        }
    }

    /// Returns the directories that a snapshot stands on, topmost first.
    fn lowers(&self, snapshot: &Snapshot) -> Result<Vec<String>, Failure> {
        let lineage = self.snapshots().lineage(&snapshot.owner, &snapshot.name)?;
        let (mut lowers, mut below) = (Vec::new(), &lineage[1..]);
        while let [next, rest @ ..] = below {
            match stack(below) {
                Some(layers) => {
                    lowers.push(self.mount(snapshot, next, &layers)?);
                    break;
                }
                None => lowers.push(text(&self.snapshots().files(next))),
            }
            below = rest;
        }
        Ok(lowers)
    }

    /// Returns what to mount to see a snapshot that is in use.
    fn mounts_of(&self, snapshot: &Snapshot) -> Result<Vec<Mount>, Failure> {
        if snapshot.kind == SnapshotKind::Committed {
            let what = "is committed: only what stands on it can be mounted";
            return Err(SnapshotError::Unfit { name: snapshot.name.clone(), what }.into());
        }
        Ok(self.over(snapshot, &self.shown(snapshot)?))
    }

    /// Returns what to mount to see a snapshot over these directories.
    fn over(&self, snapshot: &Snapshot, lowers: &[String]) -> Vec<Mount> {
        let own = text(&self.snapshots().files(snapshot));
        let writes = snapshot.kind == SnapshotKind::Active;
        let mode = if writes { "rw" } else { "ro" };
        let bound = match lowers {
            [] => Some(&own),
            [only] if !writes => Some(only),
            _ => None,
        };
        if let Some(source) = bound {
            let options = vec![mode.to_owned(), "rbind".to_owned()];
            return vec![Mount { kind: "bind", source: source.clone(), options }];
        }
        // Nothing can be written without an upper directory. BuildKit, told so once more, no longer finds what
        // is new in a layer, and compares all files of both sides instead.
        let mut options = Vec::new();
        if writes {
            let work = text(&self.snapshots().work(snapshot));
            options.extend(["index=off".to_owned(), format!("workdir={work}"), format!("upperdir={own}")]);
        }
        options.push(format!("lowerdir={}", lowers.join(":")));
        vec![Mount { kind: "overlay", source: "overlay".to_owned(), options }]
    }

    /// Returns where a stack is mounted.
    fn mount(&self, snapshot: &Snapshot, top: &Snapshot, layers: &[RefLayer]) -> Result<String, Failure> {
        let mounted = |uses: &Vec<Arc<LiveMount>>| uses.iter().rev().find(|one| one.can_be_shared()).cloned();
        if let Some(mount) = self.uses().get(&snapshot.number()).and_then(mounted) {
            return Ok(text(mount.dir()));
        }
        let reference = top.lazy.as_ref().map_or("", |lazy| &lazy.reference);
        let mount = self.engine.mount_stack(reference, layers);
        let mount = mount.map_err(|source| Failure::Mount { name: snapshot.name.clone(), source })?;
        let dir = text(mount.dir());
        self.uses().entry(snapshot.number()).or_default().push(mount);
        if self.is_removed(snapshot) {
            self.let_go(snapshot); // it needs nothing
        }
        Ok(dir)
    }

    /// Says whether a snapshot was removed meanwhile; another one may have its name.
    fn is_removed(&self, snapshot: &Snapshot) -> bool {
        let now = self.snapshots().get(&snapshot.owner, &snapshot.name);
        now.as_ref().map(Snapshot::number).ok() != Some(snapshot.number())
    }

    fn commit(&self, new: &NewSnapshot<'_>, key: &str) -> Result<(), Failure> {
        let active = self.snapshots().get(new.owner, key)?;
        let usage = tree_usage(&self.snapshots().files(&active));
        let mut labels = new.labels.clone();
        if key.ends_with(remap::CHANGING) {
            labels.insert(remap::CHANGED.into(), "true".into());
        }
        self.snapshots().commit(&NewSnapshot { labels: &labels, ..*new }, key, usage)?;
        self.let_go(&active);
        Ok(())
    }

    fn remove(&self, owner: &str, name: &str) -> Result<(), Failure> {
        let removed = self.snapshots().remove(owner, name)?;
        self.let_go(&removed);
        Ok(())
    }

    /// Lets go what a snapshot stood on; with its last user that is unmounted.
    fn let_go(&self, snapshot: &Snapshot) {
        {
            let _one = self.showing.lock().unwrap_or_else(PoisonError::into_inner);
            remap::hide(&self.shifted.join(snapshot.number().to_string()));
        }
        let gone = self.uses().remove(&snapshot.number());
        drop(gone); // without the lock: unmounting takes its time
    }

    fn usage(&self, owner: &str, name: &str) -> Result<Usage, Failure> {
        let snapshot = self.snapshots().get(owner, name)?;
        Ok(match (&snapshot.lazy, snapshot.usage) {
            (Some(lazy), _) => self.engine.layer_usage(&lazy.layer),
            (None, Some(usage)) => usage,
            (None, None) => tree_usage(&self.snapshots().files(&snapshot)),
        })
    }

    fn uses(&self) -> MutexGuard<'_, HashMap<u64, Vec<Arc<LiveMount>>>> {
        self.uses.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Says whether an image that was had with a pod's secret can be no more: that is not known after a reboot, and not all layers are
/// here. A layer's record names the image that had it first; so what the image's own layers stand on counts too. One that has none
/// of its own, for all are another's, counts as there.
pub(crate) fn lacks_secret(engine: &Engine, image: &registry::ImageName) -> bool {
    if engine.handed().is_some_and(|handed| handed.has(image)) {
        return false;
    }
    let reference = registry::Reference::Registry(image.clone()).to_string();
    let snapshots = engine.snapshots();
    let mut found = snapshots.of_image(&reference);
    found.retain(|one| one.labels.contains_key(SECRET));
    let below = found.iter().flat_map(|one| snapshots.lineage(&one.owner, &one.name).unwrap_or_default());
    let had = below.filter(|one| one.labels.contains_key(SECRET)).filter_map(|one| one.lazy);
    let layers: HashMap<_, _> = had.map(|lazy| (lazy.layer.index, lazy.layer)).collect();
    layers.values().any(|layer| !engine.is_here(layer))
}

/// Returns the key of the lazy stack that a snapshot stands on.
fn key_below(snapshots: &Snapshots, snapshot: &Snapshot) -> Option<MetaKey> {
    let lineage = snapshots.lineage(&snapshot.owner, snapshot.parent.as_ref()?).ok()?;
    let layers = (0..lineage.len()).find_map(|n| stack(&lineage[n..]))?;
    Some(MetaKey::of_layers(&layers))
}

/// Returns the layers of a lineage (topmost first), bottom first, if all of it is lazy.
fn stack(lineage: &[Snapshot]) -> Option<Vec<RefLayer>> {
    lineage.iter().rev().map(|one| one.lazy.as_ref().map(|lazy| lazy.layer.clone())).collect()
}

fn text(path: &Path) -> String {
    path.display().to_string() // ours, and the store's
}

/// Returns what a directory tree takes, each file once. What vanishes meanwhile does not count.
fn tree_usage(dir: &Path) -> Usage {
    use std::os::unix::fs::MetadataExt;
    let (mut usage, mut seen) = (Usage::default(), std::collections::HashSet::new());
    let mut dirs = vec![dir.to_owned()];
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            let Ok(metadata) = entry.metadata() else { continue };
            if metadata.nlink() > 1 && !metadata.is_dir() && !seen.insert(metadata.ino()) {
                continue;
            }
            usage.bytes += metadata.blocks() * 512;
            usage.inodes += 1;
            if metadata.is_dir() {
                dirs.push(entry.path());
            }
        }
    }
    usage
}
