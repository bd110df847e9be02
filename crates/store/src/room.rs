//! Room: what the segments take, and which layers lose theirs when there is too little.
//!
//! The unit is a layer. One that nobody uses and no pinned image needs loses all its segments at once, the least
//! recently used first; its index, its trees and the references stay, so its images still start, and fetch again.
//! As with `gc` the names go first, durably, then the bytes. That a layer was proved is kept: it is true of the
//! index, wherever the bytes are. A layer whose proof failed is evidence and stays, and so does one whose record
//! cannot be read, for it may be one.
//!
//! When a layer was last used is the time of its directory's last change: each fill of a missing segment changes it, and
//! [`touch`] does. It survives a restart, and a crash that undoes some of it costs a worse choice and nothing
//! else (`docs/decisions/0008-eviction-by-layer.md`).
//!
//! Leaves to others: how much room there should be, and what is done when nothing can go.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, Weak};
use std::time::Duration;

use format::IndexId;

use crate::error::StoreError;
use crate::fs::{Entry, EntryKind};
use crate::guard;
use crate::record::{self, Kind};
use crate::standing::{self, Proof, STATE, Standing, directory};
use crate::store::{Pin, Store};

/// The segments of a store as something that takes room.
#[derive(Debug)]
pub struct Room {
    store: Arc<Store>,
    /// What layers that nobody uses take, and when they last changed. Held across I/O: who asks waits for who
    /// measures.
    sizes: Mutex<HashMap<IndexId, (Duration, u64)>>,
}

/// A layer that has lost its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Evicted {
    /// The layer.
    pub layer: IndexId,
    /// The bytes they had.
    pub bytes: u64,
    /// When it was last used, since 1970.
    pub used: Duration,
}

impl Room {
    /// Returns the room of a store.
    pub fn new(store: Arc<Store>) -> Self {
        Self { store, sizes: Mutex::default() }
    }

    /// Returns the bytes of all segments. The first call lists every layer, later ones those that have changed.
    pub fn held(&self) -> Result<u64, StoreError> {
        let mut sizes = guard::lock(&self.sizes);
        let mut resting = HashMap::new();
        let mut held = 0;
        for (id, modified) in layers(&self.store)? {
            let open = guard::lock(&self.store.open).get(&id).and_then(Weak::upgrade);
            held += match (open, sizes.get(&id)) {
                (Some(open), _) => open.held(),
                (None, Some((then, bytes))) if *then == modified => {
                    resting.insert(id, (modified, *bytes));
                    *bytes
                }
                (None, _) => {
                    let bytes = size(&self.store, id)?;
                    resting.insert(id, (modified, bytes));
                    bytes
                }
            };
        }
        *sizes = resting;
        Ok(held)
    }

    /// Takes the segments of the least recently used layers until so many bytes are freed, or nothing more may go.
    ///
    /// Layers of mounts that outlived an earlier process must have been opened again before. Whoever opens a layer
    /// meanwhile waits for the choice, and then finds all of its segments or none.
    pub fn evict(&self, need: u64) -> Result<Vec<Evicted>, StoreError> {
        if need == 0 {
            return Ok(Vec::new());
        }
        let store = &self.store;
        // Taken in this order by who commits a first pull, too.
        let closed = guard::read(&store.closed);
        if *closed {
            return Ok(Vec::new());
        }
        let removal = guard::write(&store.removal);
        let mut moved = Vec::new();
        let mut freed = 0;
        let mut failed = None;
        for (id, used) in self.resting()? {
            if freed >= need {
                break;
            }
            match self.unname(id, used) {
                Ok(None) => {}
                Ok(Some((temporary, evicted))) => {
                    freed += evicted.bytes;
                    moved.push((temporary, evicted));
                }
                Err(error) => {
                    failed = Some(error);
                    break;
                }
            }
        }
        for dir in ["device", "tmp"].map(Path::new).iter().filter(|_| !moved.is_empty()) {
            // Not durable: nothing may be freed yet. The next start sweeps what has moved.
            let synced = store.disk().sync_dir(dir);
            synced.map_err(|error| StoreError::io("syncing", &store.path(dir), error))?;
        }
        drop((removal, closed));
        moved.iter().for_each(|(temporary, _)| store.discard(temporary));
        match failed {
            Some(error) if moved.is_empty() => Err(error),
            failed => {
                failed.iter().for_each(|error| tracing::warn!(%error, "not all could be evicted"));
                Ok(moved.into_iter().map(|(_, evicted)| evicted).collect())
            }
        }
    }

    /// Returns the layers that nobody uses and no pinned image needs, least recently used first.
    fn resting(&self) -> Result<Vec<(IndexId, Duration)>, StoreError> {
        let pinned = self.store.pinned().layers()?;
        let mut layers = layers(&self.store)?;
        layers.retain(|(id, _)| !pinned.contains(id) && !Pin::holds(&self.store, id));
        layers.sort_by_key(|(id, used)| (*used, *id.as_bytes()));
        Ok(layers)
    }

    /// Moves the directory of a layer to `tmp/`, and puts one in its place that says no more than its proof. Nothing is
    /// done where nothing can be gained, or lost for good.
    fn unname(&self, id: IndexId, used: Duration) -> Result<Option<(PathBuf, Evicted)>, StoreError> {
        let store = &self.store;
        let bytes = size(store, id)?;
        let proof = match standing::of(store, id) {
            Ok(standing) => standing.unwrap_or(Standing::NEW).proof,
            Err(error) => {
                tracing::warn!(%error, "a layer is not evicted: it may be evidence");
                return Ok(None);
            }
        };
        if bytes == 0 || matches!(proof, Proof::Refused { .. }) {
            return Ok(None);
        }
        let (dir, temporary) = (directory(id), store.temporary());
        let rest = (proof == Proof::Proved).then(|| self.rest(proof));
        if let Err(error) = store.disk().rename(&dir, &temporary) {
            rest.flatten().iter().for_each(|rest| store.discard(rest));
            return Err(StoreError::io("evicting", &store.path(&dir), error));
        }
        if let Some(rest) = rest.flatten()
            && let Err(error) = store.disk().rename(&rest, &dir)
        {
            tracing::warn!(layer = %id, %error, "that a layer was proved is forgotten");
            store.discard(&rest);
        }
        Ok(Some((temporary, Evicted { layer: id, bytes, used })))
    }

    /// Makes the directory of a proved layer without segments; nothing if there is no room left even for that: what is
    /// lost is a proof, which can be made again.
    ///
    /// Not synced: a record that a crash has torn is found out, and then it is as lost.
    fn rest(&self, proof: Proof) -> Option<PathBuf> {
        let (store, dir) = (&self.store, self.store.temporary());
        let state =
            standing::state(store.era(), Standing { proof, ..Standing::NEW }, standing::new_generation());
        let disk = store.disk();
        let made = disk
            .create_dir(&dir)
            .and_then(|()| disk.create(&dir.join(STATE)))
            .and_then(|file| disk.append(&file, 0, &record::encode(Kind::Layer, &state)));
        match made {
            Ok(()) => Some(dir),
            Err(error) => {
                tracing::warn!(%error, "that a layer was proved is forgotten");
                store.discard(&dir);
                None
            }
        }
    }
}

/// Remembers that a layer was used at this moment.
pub(crate) fn touch(store: &Store, id: IndexId) {
    if let Err(error) = store.disk().touch(&directory(id)) {
        tracing::debug!(layer = %id, %error, "cannot remember that a layer was used; it may go too soon");
    }
}

/// Returns all layers that have a directory, and when it last changed.
fn layers(store: &Store) -> Result<Vec<(IndexId, Duration)>, StoreError> {
    let dir = Path::new("device");
    let entries = store.disk().list(dir);
    let entries = entries.map_err(|error| StoreError::io("listing", &store.path(dir), error))?;
    let layer = |entry: &Entry| {
        let name = entry.name.to_str().filter(|_| entry.kind == EntryKind::Dir)?;
        Some((format!("blake3:{name}").parse().ok()?, entry.modified))
    };
    Ok(entries.iter().filter_map(layer).collect())
}

/// Returns the bytes of a layer's segments; none of one that has gone meanwhile.
fn size(store: &Store, id: IndexId) -> Result<u64, StoreError> {
    let dir = directory(id);
    match store.disk().list(&dir) {
        Ok(entries) => {
            let segment =
                |entry: &&Entry| entry.name.to_str().is_some_and(|name| name.parse::<u32>().is_ok());
            Ok(entries.iter().filter(segment).map(|entry| entry.len).sum())
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(0),
        Err(error) => Err(StoreError::io("listing", &store.path(&dir), error)),
    }
}
