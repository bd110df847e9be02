//! Snapshots in containerd's sense: what each is called, what it stands on, and where its own files are.
//!
//! One record each, `snapshots/<n>` (`record.rs` has the frame), its body JSON. What containers write, or an unpacked
//! layer holds, is below `snapshots/<n>.d`: `fs`, and for one that is active `work`. A lazy snapshot has no files: it
//! is a layer of an image that is mounted as a whole, and its record keeps the layer from `gc`.
//!
//! Every change is one record that appears, is replaced or goes: after a crash a change has happened or it has not.
//! Directories are made before their record and removed after it; one without record is removed at the next start. A record
//! that cannot be read costs its snapshot and what stands on it; its files stay.
//!
//! Several snapshotters, and who shows layers to containers/storage, keep theirs here, told apart by name; no call sees those of another.
//!
//! Leaves to others: mounts, and what the labels mean.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use format::{DiffId, Digest, IndexId};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::guard;
use crate::record::{self, Kind as RecordKind};
use crate::refs::RefLayer;
use crate::store::Store;

const DIR: &str = "snapshots";

/// Longest record, in bytes: its labels, of which JSON may take six bytes for one, and as much again.
const LIMIT: u64 = 2 << 20;

/// Bytes of all labels of a snapshot. containerd allows 4096 for each, and 16 MiB for a list of a hundred snapshots.
const LABELS: usize = 128 << 10;

/// Longest name. containerd's are a namespace, a number and a key of a client's choice.
const NAME: usize = 4096;

/// What a snapshot is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum SnapshotKind {
    /// Can be looked at.
    View,
    /// Can be written to.
    Active,
    /// Others may stand on it.
    Committed,
}

/// What files take.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Usage {
    /// Bytes on disk.
    pub bytes: u64,
    /// Files and directories.
    pub inodes: u64,
}

/// The layer that a lazy snapshot is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LazyLayer {
    /// The image it came with, as its user knows it: where its bytes are had from.
    pub reference: String,
    /// The layer.
    pub layer: RefLayer,
}

/// A snapshot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Snapshot {
    /// The snapshotter it belongs to.
    pub owner: String,
    /// What it is called there: a key while active, then a name.
    pub name: String,
    /// The committed snapshot it stands on, if any.
    pub parent: Option<String>,
    /// What it is.
    pub kind: SnapshotKind,
    /// When it was made, since 1970.
    pub created: Duration,
    /// When its labels were last changed, since 1970.
    pub updated: Duration,
    /// What its users note about it.
    pub labels: BTreeMap<String, String>,
    /// The layer it is, if it is lazy.
    pub lazy: Option<LazyLayer>,
    /// What a committed one takes, where that does not change.
    pub usage: Option<Usage>,
    /// The number of its files.
    #[serde(skip)]
    number: u64,
}

impl Snapshot {
    /// Returns a number that no other snapshot has had since the store was opened.
    pub fn number(&self) -> u64 {
        self.number
    }

    /// Says whether it is a lazy layer that stands on this.
    pub fn is_lazy_on(&self, parent: Option<&str>) -> bool {
        self.lazy.is_some() && self.parent.as_deref() == parent
    }

    fn key(&self) -> Key {
        (self.owner.clone(), self.name.clone())
    }
}

/// Why something cannot be done with a snapshot.
#[derive(Debug, thiserror::Error)]
pub enum SnapshotError {
    /// There is none of this name.
    #[error("there is no snapshot {0:?}")]
    NotFound(String),
    /// There is one already.
    #[error("there is a snapshot {0:?} already")]
    Exists(String),
    /// It is not in a state for that.
    #[error("snapshot {name:?} {what}")]
    Unfit {
        /// The snapshot.
        name: String,
        /// Why not.
        what: &'static str,
    },
    /// What was asked makes no sense.
    #[error("{0}")]
    Invalid(String),
    /// The store could not.
    #[error(transparent)]
    Store(#[from] StoreError),
}

type Key = (String, String);

/// The snapshots of a store.
#[derive(Debug)]
pub struct Snapshots {
    store: Arc<Store>,
    /// Held while a record is written: they are changed one after the other.
    all: Mutex<All>,
    /// Whether every record could be read.
    whole: bool,
}

#[derive(Debug, Default)]
struct All {
    snapshots: BTreeMap<Key, Snapshot>,
    /// How many stand on one.
    children: HashMap<Key, usize>,
    /// Directories of snapshots that are gone.
    leftovers: Vec<PathBuf>,
    next: u64,
}

impl All {
    fn put(&mut self, snapshot: Snapshot) {
        if let Some(parent) = &snapshot.parent {
            *self.children.entry((snapshot.owner.clone(), parent.clone())).or_default() += 1;
        }
        self.snapshots.insert(snapshot.key(), snapshot);
    }

    fn take(&mut self, key: &Key) {
        let Some(parent) = self.snapshots.remove(key).and_then(|snapshot| snapshot.parent) else { return };
        let parent = (key.0.clone(), parent);
        match self.children.get_mut(&parent) {
            Some(count) if *count > 1 => *count -= 1,
            _ => drop(self.children.remove(&parent)),
        }
    }

    fn get(&self, owner: &str, name: &str) -> Result<&Snapshot, SnapshotError> {
        let found = self.snapshots.get(&(owner.to_owned(), name.to_owned()));
        found.ok_or_else(|| SnapshotError::NotFound(name.to_owned()))
    }

    /// Makes sure that a new snapshot may be called so, with these labels, and stand on that.
    fn admit(&self, new: &NewSnapshot<'_>) -> Result<(), SnapshotError> {
        for name in [Some(new.name), new.parent, Some(new.owner)].into_iter().flatten() {
            if name.is_empty() || name.len() > NAME || name.contains('\0') {
                return Err(SnapshotError::Invalid(format!("a name has 1 to {NAME} bytes and no NUL")));
            }
        }
        check_labels(new.labels)?;
        if self.get(new.owner, new.name).is_ok() {
            return Err(SnapshotError::Exists(new.name.to_owned()));
        }
        let Some(parent) = new.parent else { return Ok(()) };
        match self.get(new.owner, parent)?.kind {
            SnapshotKind::Committed => Ok(()),
            _ => Err(SnapshotError::Unfit { name: parent.to_owned(), what: "is not committed" }),
        }
    }
}

/// What a snapshot is made from.
#[derive(Debug, Clone, Copy)]
pub struct NewSnapshot<'a> {
    /// The snapshotter.
    pub owner: &'a str,
    /// The name.
    pub name: &'a str,
    /// What it stands on, if anything.
    pub parent: Option<&'a str>,
    /// What its users note about it.
    pub labels: &'a BTreeMap<String, String>,
}

impl Snapshots {
    /// Reads the snapshots of a store; returns those that cannot be read as well. What is left of removed ones goes with
    /// [`Snapshots::clean_up`].
    pub fn open(store: &Arc<Store>) -> Result<(Self, Vec<StoreError>), StoreError> {
        let (found, damaged) = read_all(store)?;
        let mut all = All { next: found.next, ..All::default() };
        found.snapshots.into_iter().for_each(|snapshot| all.put(snapshot));
        all.leftovers = found.leftovers;
        let snapshots = Self { store: store.clone(), all: Mutex::new(all), whole: damaged.is_empty() };
        Ok((snapshots, damaged))
    }

    /// Makes one that can be looked at or written to.
    pub fn create(&self, new: &NewSnapshot<'_>, kind: SnapshotKind) -> Result<Snapshot, SnapshotError> {
        let mut all = self.lock();
        all.admit(new)?;
        self.lay_out()?;
        let snapshot = self.make(&mut all, new, kind, None);
        let dir = self.dir_of(snapshot.number);
        let made = make_dirs(&dir, kind).map_err(|error| StoreError::io("making", &dir, error));
        if let Err(error) = made.and_then(|()| self.write(&snapshot)) {
            all.leftovers.push(dir);
            return Err(error.into());
        }
        all.put(snapshot.clone());
        Ok(snapshot)
    }

    /// Makes a committed one that is a layer. One that is there already and stands on the same stays as it is.
    pub fn create_lazy(&self, new: &NewSnapshot<'_>, lazy: &LazyLayer) -> Result<Snapshot, SnapshotError> {
        // Before the lock: `gc` takes its time, and others need not wait for it.
        let _named = guard::read(&self.store.removal);
        let mut all = self.lock();
        if let Ok(there) = all.get(new.owner, new.name)
            && there.is_lazy_on(new.parent)
        {
            return Ok(there.clone());
        }
        all.admit(new)?;
        self.lay_out()?;
        let snapshot = self.make(&mut all, new, SnapshotKind::Committed, Some(lazy.clone()));
        self.write(&snapshot)?;
        all.put(snapshot.clone());
        Ok(snapshot)
    }

    /// Commits an active one as a new snapshot. Its labels go; one that stood on nothing may be put on something now.
    pub fn commit(&self, new: &NewSnapshot<'_>, key: &str, usage: Usage) -> Result<Snapshot, SnapshotError> {
        let mut all = self.lock();
        let active = all.get(new.owner, key)?.clone();
        if active.kind != SnapshotKind::Active {
            return Err(SnapshotError::Unfit { name: key.to_owned(), what: "is not active" });
        }
        let parent = match (&active.parent, new.parent) {
            (Some(parent), Some(other)) if parent != other => {
                return Err(SnapshotError::Invalid(format!(
                    "{key:?} stands on {parent:?}, not on {other:?}"
                )));
            }
            (Some(parent), _) => Some(parent.as_str()),
            (None, other) => other,
        };
        let new = NewSnapshot { parent, ..*new };
        all.admit(&new)?;
        let now = now();
        let committed = Snapshot {
            name: new.name.to_owned(),
            parent: parent.map(str::to_owned),
            kind: SnapshotKind::Committed,
            created: now,
            updated: now,
            labels: new.labels.clone(),
            usage: Some(usage),
            ..active.clone()
        };
        self.write(&committed)?;
        all.take(&active.key());
        all.put(committed.clone());
        Ok(committed)
    }

    /// Removes one on which no other stands. Its files go with [`Snapshots::clean_up`].
    pub fn remove(&self, owner: &str, name: &str) -> Result<Snapshot, SnapshotError> {
        let mut all = self.lock();
        let snapshot = all.get(owner, name)?.clone();
        if all.children.contains_key(&snapshot.key()) {
            return Err(SnapshotError::Unfit { name: name.to_owned(), what: "has others standing on it" });
        }
        self.store.remove_durably(&path_of(snapshot.number))?;
        all.take(&snapshot.key());
        all.leftovers.push(self.dir_of(snapshot.number));
        Ok(snapshot)
    }

    /// Removes the files of those that are gone; what cannot be removed is tried again.
    pub fn clean_up(&self) {
        let leftovers = std::mem::take(&mut self.lock().leftovers);
        let removed = |dir: &PathBuf| match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                tracing::warn!(dir = %dir.display(), %error, "what is left of a snapshot cannot be removed yet");
                false
            }
            _ => true,
        };
        let left: Vec<_> = leftovers.into_iter().filter(|dir| !removed(dir)).collect();
        self.lock().leftovers.extend(left);
    }

    /// Changes the labels of one.
    pub fn label(
        &self,
        owner: &str,
        name: &str,
        change: impl FnOnce(&mut BTreeMap<String, String>),
    ) -> Result<Snapshot, SnapshotError> {
        let mut all = self.lock();
        let mut snapshot = all.get(owner, name)?.clone();
        change(&mut snapshot.labels);
        check_labels(&snapshot.labels)?;
        snapshot.updated = now();
        self.write(&snapshot)?;
        all.snapshots.insert(snapshot.key(), snapshot.clone());
        Ok(snapshot)
    }

    /// Says whether every record could be read.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// Returns one.
    pub fn get(&self, owner: &str, name: &str) -> Result<Snapshot, SnapshotError> {
        self.lock().get(owner, name).cloned()
    }

    /// Returns all of a snapshotter's, by name.
    pub fn list(&self, owner: &str) -> Vec<Snapshot> {
        let first = (owner.to_owned(), String::new());
        self.lock()
            .snapshots
            .range(first..)
            .map(|(_, snapshot)| snapshot)
            .take_while(|snapshot| snapshot.owner == owner)
            .cloned()
            .collect()
    }

    /// Returns how many there are, of all snapshotters.
    pub fn count(&self) -> usize {
        self.lock().snapshots.len()
    }

    /// Returns one and all it stands on, itself first.
    pub fn lineage(&self, owner: &str, name: &str) -> Result<Vec<Snapshot>, SnapshotError> {
        let all = self.lock();
        let mut lineage = vec![all.get(owner, name)?.clone()];
        while let Some(parent) = lineage.last().and_then(|snapshot| snapshot.parent.clone()) {
            lineage.push(all.get(owner, &parent)?.clone());
        }
        Ok(lineage)
    }

    /// Returns what is known of a layer that some snapshot is.
    pub fn lazy(&self, blob: &Digest, diff_id: &DiffId) -> Vec<LazyLayer> {
        let all = self.lock();
        let lazy = all.snapshots.values().filter_map(|snapshot| snapshot.lazy.as_ref());
        lazy.filter(|lazy| lazy.layer.blob == *blob && lazy.layer.diff_id == *diff_id).cloned().collect()
    }

    /// Returns the lazy ones that were made of an image.
    pub fn of_image(&self, reference: &str) -> Vec<Snapshot> {
        let is_its = |one: &&Snapshot| one.lazy.as_ref().is_some_and(|lazy| lazy.reference == reference);
        self.lock().snapshots.values().filter(is_its).cloned().collect()
    }

    /// Returns those that are in use, of all snapshotters: active ones and views.
    pub fn in_use(&self) -> Vec<Snapshot> {
        let all = self.lock();
        let in_use = all.snapshots.values().filter(|snapshot| snapshot.kind != SnapshotKind::Committed);
        in_use.cloned().collect()
    }

    /// Returns the directory of a snapshot's own files.
    pub fn files(&self, snapshot: &Snapshot) -> PathBuf {
        self.dir_of(snapshot.number).join("fs")
    }

    /// Returns the directory that overlayfs works in beside them.
    pub fn work(&self, snapshot: &Snapshot) -> PathBuf {
        self.dir_of(snapshot.number).join("work")
    }

    /// Returns the directory on whose file system all files are.
    pub fn root(&self) -> PathBuf {
        self.store.path(Path::new(DIR))
    }

    fn make(
        &self,
        all: &mut All,
        new: &NewSnapshot<'_>,
        kind: SnapshotKind,
        lazy: Option<LazyLayer>,
    ) -> Snapshot {
        let (number, now) = (all.next, now());
        all.next += 1;
        Snapshot {
            owner: new.owner.to_owned(),
            name: new.name.to_owned(),
            parent: new.parent.map(str::to_owned),
            kind,
            created: now,
            updated: now,
            labels: new.labels.clone(),
            lazy,
            usage: None,
            number,
        }
    }

    /// Makes the directory of all of them, once there is one.
    fn lay_out(&self) -> Result<(), StoreError> {
        match self.store.disk().create_dir(Path::new(DIR)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.and_then(|()| self.store.sync_parent(Path::new(DIR))),
        }
        .map_err(|error| StoreError::io("creating", &self.root(), error))
    }

    fn write(&self, snapshot: &Snapshot) -> Result<(), StoreError> {
        record::write(&self.store, RecordKind::Snapshot, &path_of(snapshot.number), &record::json(snapshot))
    }

    fn dir_of(&self, number: u64) -> PathBuf {
        self.store.path(&Path::new(DIR).join(format!("{number}.d")))
    }

    fn lock(&self) -> MutexGuard<'_, All> {
        guard::lock(&self.all)
    }
}

/// Returns the stacks of layers that snapshots keep, bottom first, each with all it stands on.
pub(crate) fn stacks(store: &Store) -> Result<Vec<Vec<IndexId>>, StoreError> {
    let (found, damaged) = read_all(store)?;
    if let Some(error) = damaged.into_iter().next() {
        return Err(error); // nobody knows what it kept
    }
    let by_key: HashMap<Key, &Snapshot> = found.snapshots.iter().map(|one| (one.key(), one)).collect();
    let stack = |top: &Snapshot| {
        let (mut ids, mut next) = (Vec::new(), Some(top));
        while let Some(snapshot) = next {
            ids.extend(snapshot.lazy.as_ref().map(|lazy| lazy.layer.index));
            let parent = snapshot.parent.clone().map(|parent| (snapshot.owner.clone(), parent));
            next = parent
                .and_then(|parent| by_key.get(&parent).copied())
                .filter(|_| ids.len() < by_key.len() + 1);
        }
        ids.reverse();
        ids
    };
    Ok(found.snapshots.iter().filter(|one| one.lazy.is_some()).map(stack).collect())
}

#[derive(Default)]
struct Found {
    snapshots: Vec<Snapshot>,
    leftovers: Vec<PathBuf>,
    next: u64,
}

fn read_all(store: &Store) -> Result<(Found, Vec<StoreError>), StoreError> {
    let (mut found, mut damaged) = (Found::default(), Vec::new());
    let entries = match store.disk().list(Path::new(DIR)) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok((found, damaged)),
        entries => entries.map_err(|error| StoreError::io("listing", &store.path(Path::new(DIR)), error))?,
    };
    let numbers = entries.iter().filter_map(|entry| entry.name.to_str()).filter_map(|name| name.parse().ok());
    let records: HashSet<u64> = numbers.collect();
    for entry in &entries {
        let name = entry.name.to_str().unwrap_or_default();
        if let Some(number) = name.strip_suffix(".d").and_then(|name| name.parse::<u64>().ok()) {
            found.next = found.next.max(number + 1);
            if !records.contains(&number) {
                found.leftovers.push(store.path(&Path::new(DIR).join(name)));
            }
        }
    }
    let mut names = HashSet::new();
    for number in records {
        found.next = found.next.max(number + 1);
        match read(store, number) {
            Ok(Some(snapshot)) if !names.insert(snapshot.key()) => {
                let what = format!("{:?} has another record", snapshot.name);
                damaged.push(StoreError::damaged(&store.path(&path_of(number)), what));
            }
            Ok(snapshot) => found.snapshots.extend(snapshot),
            Err(error) => damaged.push(error),
        }
    }
    Ok((found, damaged))
}

fn read(store: &Store, number: u64) -> Result<Option<Snapshot>, StoreError> {
    let path = path_of(number);
    let Some(body) = record::read(store, RecordKind::Snapshot, &path, LIMIT)? else { return Ok(None) };
    let snapshot: Snapshot = serde_json::from_slice(&body)
        .map_err(|error| StoreError::damaged(&store.path(&path), error.to_string()))?;
    Ok(Some(Snapshot { number, ..snapshot }))
}

fn path_of(number: u64) -> PathBuf {
    Path::new(DIR).join(number.to_string())
}

fn make_dirs(dir: &Path, kind: SnapshotKind) -> io::Result<()> {
    use std::os::unix::fs::DirBuilderExt;
    let make = |path: &Path, mode| std::fs::DirBuilder::new().mode(mode).create(path);
    make(dir, 0o700)?;
    make(&dir.join("fs"), 0o755)?;
    // Whatever the umask took away: it is the root directory of a container.
    std::fs::set_permissions(dir.join("fs"), std::os::unix::fs::PermissionsExt::from_mode(0o755))?;
    if kind == SnapshotKind::Active { make(&dir.join("work"), 0o711) } else { Ok(()) }
}

fn check_labels(labels: &BTreeMap<String, String>) -> Result<(), SnapshotError> {
    let bytes: usize = labels.iter().map(|(key, value)| key.len() + value.len()).sum();
    if bytes > LABELS {
        return Err(SnapshotError::Invalid(format!("labels of {bytes} bytes; at most {LABELS} are kept")));
    }
    Ok(())
}

fn now() -> Duration {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
}
