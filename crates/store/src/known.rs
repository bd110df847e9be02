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
//! Leaves to others: when to ask (`fill.rs`), and who makes tables beside what readers wait for (`read_through.rs`).

mod ask;
mod table;

use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::time::Duration;

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

/// The tables of all layers.
#[derive(Debug, Default)]
pub(crate) struct Known {
    tables: RwLock<Arc<Vec<Arc<Table>>>>,
    /// Whether the tables that were there at the start have been read.
    loaded: (Mutex<bool>, Condvar),
}

impl Known {
    /// Returns the tables that are there at this moment.
    pub(crate) fn tables(&self) -> Arc<Vec<Arc<Table>>> {
        Arc::clone(&guard::read(&self.tables))
    }

    /// Waits until what was there at the start has been read, but not for long.
    pub(crate) fn wait(&self, at_most: Duration) {
        let loaded = guard::lock(&self.loaded.0);
        if !*loaded {
            drop(guard::wait_at_most(&self.loaded.1, loaded, at_most));
        }
    }

    fn has(&self, id: IndexId) -> bool {
        guard::read(&self.tables).iter().any(|table| table.id() == id)
    }

    fn add(&self, table: Table) {
        let mut tables = guard::write(&self.tables);
        let mut next: Vec<_> = tables.iter().filter(|other| other.id() != table.id()).cloned().collect();
        if next.len() < TABLES {
            next.push(Arc::new(table));
        }
        *tables = Arc::new(next);
    }

    fn forget(&self, gone: &IndexId) {
        let mut tables = guard::write(&self.tables);
        let next = tables.iter().filter(|table| table.id() != *gone).cloned().collect();
        *tables = Arc::new(next);
    }

    pub(crate) fn is_loaded(&self) {
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
        self.known.add(table.map_err(|why| StoreError::damaged(&self.path(&path), why))?);
        Ok(())
    }

    /// Makes sure that there is a table of a layer's chunks.
    pub(crate) fn know(&self, layer: &Layer) {
        if !self.known.has(layer.id())
            && !self.load_known(layer.id())
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
        ids.filter(|id| !self.known.has(*id) && !self.load_known(*id)).collect()
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

    /// Reads the table of a layer; false if there is none, or one that is damaged.
    fn load_known(&self, id: IndexId) -> bool {
        match Table::open(self.disk(), &path(id), id) {
            Ok(table) => self.known.add(table),
            Err(why) => {
                tracing::debug!(layer = %id, why, "no table of its chunks; it is made");
                return false;
            }
        }
        true
    }
}

fn path(id: IndexId) -> PathBuf {
    Path::new(DIR).join(id.hex())
}
