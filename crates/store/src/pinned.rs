//! Images that eviction leaves alone, because their user said so: one record each, `pins/<BLAKE3 of the name>`.
//!
//! The body of a record (`record.rs`) is the name; the file has the name of the reference's in `refs/`. That it is
//! there is the pin, so a damaged record still holds. A pin is of a name: where the name comes to stand for another
//! image, that one is pinned. An older program knows no eviction and leaves the directory alone.
//!
//! Leaves to others: what keeps the files of a layer that is in use ([`crate::Pin`]).

use std::collections::HashSet;
use std::io;
use std::path::{Path, PathBuf};

use format::IndexId;

use crate::error::StoreError;
use crate::guard;
use crate::record::{self, Kind};
use crate::refs::{RefName, file_of};
use crate::store::Store;

const DIR: &str = "pins";

/// Longest body: the longest name.
const LIMIT: u64 = 1024;

/// The pinned images of a store.
#[derive(Debug, Clone, Copy)]
pub struct PinnedImages<'a> {
    store: &'a Store,
}

impl Store {
    /// Returns the images that eviction leaves alone.
    pub fn pinned(&self) -> PinnedImages<'_> {
        PinnedImages { store: self }
    }
}

impl PinnedImages<'_> {
    /// Pins the image with this name, durably.
    pub fn put(&self, name: &RefName) -> Result<(), StoreError> {
        // What is being evicted has been chosen without knowing of this pin.
        let _removal = guard::read(&self.store.removal);
        match self.store.disk().create_dir(Path::new(DIR)) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
            made => made.and_then(|()| self.store.sync_parent(Path::new(DIR))),
        }
        .map_err(|error| StoreError::io("creating", &self.store.path(Path::new(DIR)), error))?;
        record::write(self.store, Kind::Pin, &path_of(name), name.as_str().as_bytes())
    }

    /// Takes a pin away, durably; returns whether there was one.
    pub fn remove(&self, name: &RefName) -> Result<bool, StoreError> {
        let there = self.has(name)?;
        if there {
            self.store.remove_durably(&path_of(name))?;
        }
        Ok(there)
    }

    /// Returns whether an image is pinned.
    pub fn has(&self, name: &RefName) -> Result<bool, StoreError> {
        Ok(self.files()?.contains(&file_of(name)))
    }

    /// Returns the names of all pinned images, sorted. One that nobody can read any more is left out, and logged.
    pub fn list(&self) -> Result<Vec<RefName>, StoreError> {
        let mut names = Vec::new();
        for file in self.files()? {
            match self.name(&file) {
                Ok(name) => names.extend(name),
                Err(error) => tracing::warn!(%error, "the name of a pinned image is lost"),
            }
        }
        names.sort();
        Ok(names)
    }

    /// Returns the layers of all pinned images; an error if it cannot be known which they are.
    pub(crate) fn layers(&self) -> Result<HashSet<IndexId>, StoreError> {
        let mut layers = HashSet::new();
        for file in self.files()? {
            let image = self.store.refs().read(&Path::new("refs").join(file))?;
            layers.extend(image.iter().flat_map(|image| &image.layers).map(|layer| layer.index));
        }
        Ok(layers)
    }

    fn name(&self, file: &str) -> Result<Option<RefName>, StoreError> {
        let path = Path::new(DIR).join(file);
        let read = record::read(self.store, Kind::Pin, &path, LIMIT).and_then(|body| {
            let Some(body) = body else { return Ok(None) };
            let name = std::str::from_utf8(&body).ok().and_then(|text| RefName::parse(text).ok());
            name.filter(|name| file_of(name) == file)
                .map(Some)
                .ok_or_else(|| StoreError::damaged(&self.store.path(&path), "it is the pin of another image"))
        });
        read.or_else(|error| match self.store.refs().read(&Path::new("refs").join(file)) {
            Ok(Some(image)) => Ok(Some(image.name)),
            _ => Err(error),
        })
    }

    fn files(&self) -> Result<Vec<String>, StoreError> {
        match self.store.disk().list(Path::new(DIR)) {
            Ok(entries) => {
                Ok(entries.iter().filter_map(|entry| entry.name.to_str().map(str::to_owned)).collect())
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(StoreError::io("listing", &self.store.path(Path::new(DIR)), error)),
        }
    }
}

fn path_of(name: &RefName) -> PathBuf {
    Path::new(DIR).join(file_of(name))
}
