//! What other layers have of a layer: asked before anything is fetched.
//!
//! Of each index in the store there is a small table of its chunks (`table.rs`), mapped. A segment all of whose chunks are
//! in segments of other layers is copied from there and not fetched. What a table says is a hint and no claim: each chunk is
//! hashed when it has been read, so a table, or a file, that is wrong, torn, evicted or gone costs a fetch. Segments of
//! others are only read; a descriptor that is open outlives an eviction.
//!
//! A chunk is known by its hash, of one kind, and its length: equal bytes that are cut otherwise are not found, nor are
//! those of layers whose chunks are hashed otherwise. Of equal chunks of one layer the first is remembered.
//!
//! A table is made again wherever it does not read as one, so one of a newer program's is replaced, although other records of
//! newer programs are left alone: nothing is lost with it.
//!
//! Leaves to others: when to ask (`fill.rs`).

mod ask;
mod table;

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::mpsc::Receiver;
use std::sync::{Arc, Condvar, Mutex, RwLock, Weak};
use std::time::{Duration, Instant};

use format::IndexId;
use format::layer::Layer;

pub(crate) use self::ask::Asker;
pub(crate) use self::table::{Table, is_table};
use crate::error::StoreError;
use crate::fs::EntryKind;
use crate::guard;
use crate::record::{self, Kind};
use crate::store::Store;

/// The directory of the tables.
pub(crate) const DIR: &str = "known";

/// Tables that are asked: a mapping each, of which a process may have 65,530.
const TABLES: usize = 4096;

/// How long after the start what no reader waits for waits until the tables are read: some hundred files.
const SOON: Duration = Duration::from_secs(1);

/// The tables of all layers.
#[derive(Debug)]
pub(crate) struct Known {
    /// The latest last.
    tables: RwLock<Arc<Vec<Arc<Table>>>>,
    since: Instant,
    /// Whether the tables that were there at the start have been read.
    loaded: (Mutex<bool>, Condvar),
}

impl Known {
    pub(crate) fn new() -> Self {
        Self { tables: RwLock::default(), since: Instant::now(), loaded: Default::default() }
    }

    /// Returns the tables that are there at this moment.
    pub(crate) fn tables(&self) -> Arc<Vec<Arc<Table>>> {
        Arc::clone(&guard::read(&self.tables))
    }

    /// Waits until what was there at the start has been read, or that has taken too long.
    pub(crate) fn wait(&self) {
        let mut loaded = guard::lock(&self.loaded.0);
        while !*loaded && let Some(left) = SOON.checked_sub(self.since.elapsed()) {
            loaded = guard::wait_at_most(&self.loaded.1, loaded, left);
        }
    }

    fn has(&self, id: IndexId) -> bool {
        guard::read(&self.tables).iter().any(|table| table.id() == id)
    }

    /// Takes tables into use, in place of others of their layers; false if there are too many.
    fn add(&self, added: Vec<Table>) -> bool {
        let ids: HashSet<_> = added.iter().map(Table::id).collect();
        let mut tables = guard::write(&self.tables);
        let mut next: Vec<_> = tables.iter().filter(|other| !ids.contains(&other.id())).cloned().collect();
        let room = TABLES.saturating_sub(next.len());
        let all = added.len() <= room;
        next.extend(added.into_iter().take(room).map(Arc::new));
        *tables = Arc::new(next);
        all
    }

    fn forget(&self, gone: &IndexId) {
        let mut tables = guard::write(&self.tables);
        let next = tables.iter().filter(|table| table.id() != *gone).cloned().collect();
        *tables = Arc::new(next);
    }

    /// Says that what was there at the start has been read, as far as it can be.
    fn loaded(&self) {
        *guard::lock(&self.loaded.0) = true;
        self.loaded.1.notify_all();
    }
}

impl Store {
    /// Makes the table of a layer's chunks anew.
    ///
    /// The disk is not waited for: it is checked when it is read.
    pub fn make_known(&self, layer: &Layer) -> Result<(), StoreError> {
        let path = path(layer.id());
        let bytes = record::encode(Kind::Known, &Table::body(layer));
        self.replace_soon(&path, &[&bytes])?;
        let table = Table::open(self.disk(), &path, layer.id());
        let table = table.map_err(|why| StoreError::damaged(&self.path(&path), why))?;
        if !self.known.add(vec![table]) {
            tracing::debug!(layer = %layer.id(), "more tables than are asked");
        }
        Ok(())
    }

    /// Makes sure that there is a table of a layer's chunks.
    pub(crate) fn know(&self, layer: &Layer) {
        if !self.known.has(layer.id())
            && self.load_known([layer.id()]).len() == 1
            && let Err(error) = self.make_known(layer)
        {
            tracing::warn!(layer = %layer.id(), %error, "what it has is fetched again for others");
        }
    }

    /// Reads the tables that are there; returns the layers that have an index and no table.
    pub(crate) fn load_all_known(&self) -> Vec<IndexId> {
        let listed = self.disk().list(Path::new("index"));
        let entries = listed.unwrap_or_else(|error| {
            tracing::warn!(%error, "what layers have is not known: their indexes cannot be listed");
            Vec::new()
        });
        let files = entries.iter().filter(|entry| entry.kind == EntryKind::File);
        let ids = files.filter_map(|entry| format!("blake3:{}", entry.name.to_str()?).parse().ok());
        self.load_known(ids.filter(|id| !self.known.has(*id)))
    }

    /// Makes the table of a layer that is not in use.
    pub(crate) fn make_known_of(&self, id: IndexId) {
        // What is wrong with an index is told when somebody wants it.
        if let Ok(Some(index)) = self.index(id)
            && let Ok(layer) = Layer::open(index)
        {
            self.know(&layer);
        }
    }

    /// Removes the tables of layers that are not needed. That is not garbage to be told of, and one that stays is removed with
    /// the next.
    pub(crate) fn forget_known(&self, needed: impl Fn(&IndexId) -> bool) {
        for entry in self.disk().list(Path::new(DIR)).unwrap_or_default() {
            let id = entry.name.to_str().and_then(|name| format!("blake3:{name}").parse().ok());
            if let Some(id) = id.filter(|id| !needed(id)) {
                self.known.forget(&id);
                if let Err(error) = self.disk().remove_file(&path(id)) {
                    tracing::debug!(layer = %id, %error, "cannot remove the table of its chunks");
                }
            }
        }
    }

    /// Reads the tables of layers; returns those that have none, or one that is damaged.
    fn load_known(&self, ids: impl IntoIterator<Item = IndexId>) -> Vec<IndexId> {
        let (mut tables, mut missing) = (Vec::new(), Vec::new());
        for id in ids {
            let open = || Table::open(self.disk(), &path(id), id);
            let opened = catch_unwind(AssertUnwindSafe(open));
            match opened.unwrap_or_else(|_| Err("reading it panicked".to_owned())) {
                Ok(table) => tables.push(table),
                Err(why) => {
                    tracing::debug!(layer = %id, why, "no table of its chunks; it is made");
                    missing.push(id);
                }
            }
        }
        if !self.known.add(tables) {
            tracing::debug!("more tables than are asked");
        }
        missing
    }
}

/// What the thread does that makes tables of chunks: reads those that are there, makes what is missing, then those of
/// layers that come into use. It keeps no store open.
///
/// A defect that one index brings to light costs that one's table, and neither the others nor who waits for them.
pub(crate) fn learn(store: &Weak<Store>, layers: &Receiver<Arc<Layer>>) {
    let Some(missing) = attempt(store, |store| {
        let _told = Told(&store.known);
        store.load_all_known()
    }) else {
        return;
    };
    for id in missing.unwrap_or_default() {
        if attempt(store, |store| store.make_known_of(id)).is_none() {
            return;
        }
        // Who came into use meanwhile waits no longer than for this one.
        for layer in layers.try_iter() {
            attempt(store, |store| store.know(&layer));
        }
    }
    for layer in layers {
        if attempt(store, |store| store.know(&layer)).is_none() {
            return;
        }
    }
}

/// Does something with a store that is open yet; of what panics there is no result.
fn attempt<T>(store: &Weak<Store>, work: impl FnOnce(&Store) -> T) -> Option<Option<T>> {
    let store = store.upgrade()?;
    let done = catch_unwind(AssertUnwindSafe(|| work(&store)));
    Some(done.inspect_err(|_| tracing::error!("listing the chunks of a layer panicked")).ok())
}

/// Tells, whatever happens, that nobody need wait for tables any more.
struct Told<'a>(&'a Known);

impl Drop for Told<'_> {
    fn drop(&mut self) {
        self.0.loaded();
    }
}

fn path(id: IndexId) -> PathBuf {
    Path::new(DIR).join(id.hex())
}
