//! The layers of lazy images for containers/storage, and so for buildah, podman and CRI-O: an "additional layer store".
//!
//! Who pulls an image looks each of its layers up below a directory that the daemon shows ([`mount::fuse::names`]), by the image's name and
//! the layer's digest. Where the layer is to be had lazily he finds it there, and fetches and unpacks nothing; else there is no
//! such name, and he does as ever. The user keeps layers by the digest of their blob, and shows them to every image that has them. So a layer's
//! index is signed, or its registry trusted; that its tar is proved says nothing of its blob.
//!
//! How a byte travels: a process reads a file of an overlay that its tool has put together of the layers' mounts; each is the tree of one
//! layer, and what is missing of it comes from the registry in ranges, as in every mount. `blob` is fetched whole when it is opened,
//! and checked before the first byte is given away.
//!
//! | file | what |
//! |---|---|
//! | `wanted.rs` | what a path asks for |
//!
//! A layer in use is a record among the snapshots, which counts its uses; so it is kept from `gc`, and shown again after a restart
//! without asking anybody. Its mount is made when somebody looks at it, and ends a moment after its last use. A user who was killed
//! between use and release leaves a count that is too high: `rmdir` of the layer's directory is how anybody lowers it.

mod wanted;

use std::collections::{BTreeMap, HashMap};
use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use mount::fuse::names::{LayerName, Layers, Refused};
use serde::Serialize;
use store::{LazyLayer, MetaKey, NewSnapshot, RefLayer, Snapshot, SnapshotError, Snapshots};

use self::wanted::Wanted;
use crate::engine::Engine;
use crate::engine::keyed_lock::KeyedLock;
use crate::engine::mounts::LiveMount;
use crate::engine::record::Shape;

/// To whom the records belong; no snapshotter of containerd's can have this name.
const OWNER: &str = "containers/storage";

/// The label that counts uses.
const USES: &str = "uses";

/// The label that says by which name the image was asked for.
const IMAGE: &str = "image";

/// How long a layer stays mounted that nobody uses: who has looked at it is about to.
const IDLE: Duration = Duration::from_secs(10);

/// The layers that one daemon shows.
pub struct LayerStore {
    engine: Arc<Engine>,
    /// One look-up of an image at a time, and one mount of a layer.
    asking: KeyedLock<String>,
    /// What is mounted. Held for a look only.
    mounts: Mutex<HashMap<Wanted, Shown>>,
    /// Held while uses are counted.
    counting: Mutex<()>,
}

/// A layer that is mounted.
struct Shown {
    /// When somebody looked at it, or let it go.
    since: Instant,
    /// Where it is shown now, and before that where it was: somebody may stand on each.
    mounts: Vec<Arc<LiveMount>>,
    /// Whether a use of it could not be noted: then it stays, for its user may go on all the same.
    unnoted: bool,
}

/// What containers/storage wants to know of a layer.
#[derive(Serialize)]
#[serde(rename_all = "kebab-case")]
struct Info {
    compressed_diff_digest: String,
    compressed_size: u64,
    diff_digest: String,
    diff_size: u64,
    /// As it numbers them.
    compression: u8,
}

/// Shows the layers of an engine at a directory, until [`Engine::end_names`].
pub fn serve(engine: &Arc<Engine>, at: &Path) -> anyhow::Result<Arc<LayerStore>> {
    let store = LayerStore::new(engine);
    let layers: Arc<dyn Layers> = store.clone();
    engine.show_names(at, &layers)?;
    tracing::info!(dir = %at.display(), "showing layers");
    let weak = Arc::downgrade(&store);
    let tidy = move || {
        while let Some(store) = weak.upgrade() {
            store.forget();
            drop(store);
            std::thread::sleep(IDLE / 2);
        }
    };
    std::thread::Builder::new().name("layers".into()).spawn(tidy).context("starting a thread")?;
    Ok(store)
}

impl LayerStore {
    /// Returns the layers of an engine; takes over the mounts of those in use.
    fn new(engine: &Arc<Engine>) -> Arc<Self> {
        let kept = engine.take_kept(Shape::Apart);
        let mut mounts = HashMap::new();
        for record in engine.snapshots().list(OWNER) {
            let (Some(lazy), Some(wanted)) = (&record.lazy, Wanted::of_record(&record)) else { continue };
            let key = MetaKey::apart(lazy.layer.index);
            let of = kept.iter().filter(|(kept, _)| *kept == key).map(|(_, mount)| mount.clone());
            mounts.insert(wanted, Shown { since: Instant::now(), mounts: of.collect(), unnoted: false });
        }
        Arc::new(Self {
            engine: engine.clone(),
            asking: KeyedLock::default(),
            mounts: mounts.into(),
            counting: Mutex::default(),
        })
    }

    fn snapshots(&self) -> &Snapshots {
        self.engine.snapshots()
    }

    /// Returns the record of a layer in use.
    fn record(&self, wanted: &Wanted) -> Option<Snapshot> {
        self.snapshots().get(OWNER, &wanted.to_string()).ok()
    }

    /// Returns a layer: as it is remembered, or as its image says.
    fn find(&self, wanted: &Wanted) -> anyhow::Result<RefLayer> {
        if let Some(lazy) = self.record(wanted).and_then(|record| record.lazy) {
            return Ok(lazy.layer);
        }
        let _one = self.asking.hold(wanted.reference.clone());
        Ok(self.engine.lend_layers(&wanted.reference, &wanted.blob)?.layer(&wanted.blob)?)
    }

    /// Lets go what somebody has looked at a while ago and does not use.
    fn forget(&self) {
        let idle = |wanted: &Wanted, shown: &Shown| {
            shown.since.elapsed() > IDLE && !shown.unnoted && self.record(wanted).is_none()
        };
        let gone: Vec<_> = self.mounts().extract_if(|wanted, shown| idle(wanted, shown)).collect();
        drop(gone); // without the lock: unmounting takes its time
    }

    /// Returns the mount of a layer.
    fn mount(&self, wanted: &Wanted) -> anyhow::Result<Arc<LiveMount>> {
        let layer = self.find(wanted)?;
        let _one = self.asking.hold(wanted.to_string());
        let there = self.mounts().get_mut(wanted).and_then(|shown| {
            shown.since = Instant::now();
            shown.mounts.last().cloned()
        });
        if let Some(mount) = there.filter(|mount| mount.can_be_shared()) {
            return Ok(mount);
        }
        let mount = self.engine.mount_apart(&wanted.reference, &layer)?;
        if self.record(wanted).is_some() {
            mount.keep();
        }
        let new = || Shown { since: Instant::now(), mounts: Vec::new(), unnoted: false };
        self.mounts().entry(wanted.clone()).or_insert_with(new).mounts.push(mount.clone());
        Ok(mount)
    }

    fn describe(&self, wanted: &Wanted) -> anyhow::Result<Vec<u8>> {
        let layer = self.find(wanted)?;
        let info = Info {
            compressed_diff_digest: layer.blob.to_string(),
            compressed_size: layer.size,
            diff_digest: layer.diff_id.to_string(),
            diff_size: self.engine.tar_len(&layer)?,
            compression: match layer.media_type.rsplit(['+', '.']).next() {
                Some("gzip") => 2,
                Some("zstd") => 4,
                _ => 0,
            },
        };
        Ok(serde_json::to_vec(&info)?)
    }

    /// Counts a use more, durably; returns how many there are.
    fn count(&self, wanted: &Wanted) -> anyhow::Result<u64> {
        let layer = self.find(wanted)?;
        let _counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let uses = self.record(wanted).map_or(0, |record| uses(&record)) + 1;
        let name = wanted.to_string();
        if uses == 1 {
            let labels =
                BTreeMap::from([(USES.into(), uses.to_string()), (IMAGE.into(), wanted.image.clone())]);
            let lazy = LazyLayer { reference: wanted.reference.clone(), layer };
            let new = NewSnapshot { owner: OWNER, name: &name, parent: None, labels: &labels };
            self.snapshots().create_lazy(&new, &lazy)?;
        } else {
            let note = |labels: &mut BTreeMap<_, _>| drop(labels.insert(USES.into(), uses.to_string()));
            self.snapshots().label(OWNER, &name, note)?;
        }
        drop(_counting);
        let mounted = self.mounts().get(wanted).map(|shown| shown.mounts.clone()).unwrap_or_default();
        mounted.iter().for_each(|mount| mount.keep());
        Ok(uses)
    }

    /// Counts a use less; after the last one the mount goes soon. Returns how many are left, if there was one.
    fn discount(&self, wanted: &Wanted) -> Result<Option<u64>, SnapshotError> {
        let counting = self.counting.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(record) = self.record(wanted) else { return Ok(None) };
        let left = uses(&record).saturating_sub(1);
        if left > 0 {
            let note = |labels: &mut BTreeMap<_, _>| drop(labels.insert(USES.into(), left.to_string()));
            self.snapshots().label(OWNER, &record.name, note)?;
            return Ok(Some(left));
        }
        // Somebody else may just have looked at it, and use it next.
        if let Some(shown) = self.mounts().get_mut(wanted) {
            shown.since = Instant::now();
        }
        self.snapshots().remove(OWNER, &record.name)?;
        drop(counting);
        Ok(Some(0))
    }

    fn mounts(&self) -> MutexGuard<'_, HashMap<Wanted, Shown>> {
        self.mounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Returns how often a layer is used.
fn uses(record: &Snapshot) -> u64 {
    record.labels.get(USES).and_then(|uses| uses.parse().ok()).unwrap_or(1)
}

/// Answers what can be answered only with yes or no: who is told that there is nothing pulls in the ordinary way.
fn absent<T>(wanted: &Wanted, found: anyhow::Result<T>) -> Result<T, Refused> {
    found.map_err(|why| {
        tracing::info!(image = wanted.reference, layer = %wanted.blob, "the layer is not lazy: {why:#}");
        Refused::Absent
    })
}

/// Answers for a layer that is there.
fn failed<T>(wanted: &Wanted, what: &str, done: anyhow::Result<T>) -> Result<T, Refused> {
    done.map_err(|why| {
        tracing::error!(image = wanted.reference, layer = %wanted.blob, "{what}: {why:#}");
        Refused::Failed
    })
}

impl Layers for LayerStore {
    fn is_image(&self, image: &OsStr) -> bool {
        wanted::reference(image).is_some()
    }

    fn look(&self, layer: &LayerName) -> Result<(), Refused> {
        let wanted = Wanted::of(layer).ok_or(Refused::Absent)?;
        absent(&wanted, self.find(&wanted)).map(drop)
    }

    fn diff(&self, layer: &LayerName) -> Result<PathBuf, Refused> {
        let wanted = Wanted::of(layer).ok_or(Refused::Absent)?;
        let mount = self.mount(&wanted);
        let mount = match self.record(&wanted) {
            // Its user has nothing else.
            Some(_) => failed(&wanted, "mounting a layer", mount)?,
            None => absent(&wanted, mount)?,
        };
        Ok(mount.dir().to_owned())
    }

    fn info(&self, layer: &LayerName) -> Result<Vec<u8>, Refused> {
        let wanted = Wanted::of(layer).ok_or(Refused::Absent)?;
        absent(&wanted, self.describe(&wanted))
    }

    fn blob_len(&self, layer: &LayerName) -> Result<u64, Refused> {
        let wanted = Wanted::of(layer).ok_or(Refused::Absent)?;
        absent(&wanted, self.find(&wanted)).map(|layer| layer.size)
    }

    fn blob(&self, layer: &LayerName) -> Result<File, Refused> {
        let wanted = Wanted::of(layer).ok_or(Refused::Absent)?;
        let blob = self.find(&wanted).and_then(|layer| self.engine.blob(&wanted.reference, &layer));
        failed(&wanted, "fetching the blob of a layer", blob)
    }

    fn hold(&self, layer: &LayerName) -> Result<(), Refused> {
        let wanted = Wanted::of(layer).ok_or(Refused::Absent)?;
        let uses = self.count(&wanted).inspect_err(|_| {
            if let Some(shown) = self.mounts().get_mut(&wanted) {
                shown.unnoted = true;
            }
        });
        let uses = failed(&wanted, "noting that a layer is used", uses)?;
        tracing::debug!(image = wanted.reference, layer = %wanted.blob, uses, "a layer is used");
        Ok(())
    }

    fn release(&self, layer: &LayerName) {
        let Some(wanted) = Wanted::of(layer) else { return };
        let left = self.discount(&wanted).context("changing its record");
        if let Ok(Some(left)) = failed(&wanted, "noting that a layer is used no more", left) {
            tracing::debug!(image = wanted.reference, layer = %wanted.blob, left, "a layer is used once less");
        }
    }

    fn held(&self) -> Vec<LayerName> {
        let records = self.snapshots().list(OWNER);
        let name = |record: &Snapshot| Wanted::of_record(record).map(|wanted| wanted.name());
        records.iter().filter_map(name).collect()
    }
}

/// Returns bytes as a name.
fn os(text: &str) -> OsString {
    OsString::from(text)
}
