//! Removes what no reference or snapshot names and nobody uses.
//!
//! First everything loses its name, durably, then the bytes are freed: a crash in between leaves leftovers in
//! `tmp/` and never half a layer. While any of them is damaged nothing is removed, for nobody knows what it
//! named. A layer whose proof failed is evidence and stays. Profiles stay: they cannot be made again.

use std::collections::HashSet;
use std::path::{Path, PathBuf};

use format::IndexId;

use crate::contents::MetaKey;
use crate::error::StoreError;
use crate::fs::{Entry, EntryKind};
use crate::guard;
use crate::snapshots;
use crate::standing::{self, Proof};
use crate::store::{Pin, Store};

/// Something that can be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Garbage {
    /// What it is.
    pub kind: GarbageKind,
    /// The bytes its files claim.
    pub bytes: u64,
}

/// What can be removed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GarbageKind {
    /// The segments of a layer.
    Layer(IndexId),
    /// The index of a layer.
    Index(IndexId),
    /// A metadata image or its sum, by file name.
    Meta(String),
}

/// Whether to remove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GcMode {
    /// Tell what would be removed.
    DryRun,
    /// Remove it.
    Remove,
}

impl Store {
    /// Removes what nothing needs, or tells what that is.
    ///
    /// Layers of mounts that outlived an earlier process must have been opened again before.
    pub fn gc(&self, mode: GcMode) -> Result<Vec<Garbage>, StoreError> {
        let removal = guard::write(&self.removal);
        let (images, damaged) = self.refs().list()?;
        if let Some(damaged) = damaged.into_iter().next() {
            return Err(damaged.error);
        }
        let mut layers = HashSet::new();
        let mut metas = HashSet::new();
        let named =
            images.iter().map(|image| image.layers.iter().map(|layer| layer.index).collect::<Vec<_>>());
        for ids in named.chain(snapshots::stacks(self)?) {
            metas.extend((1..=ids.len()).map(|n| MetaKey::of(&ids[..n]).to_string()));
            metas.extend(ids.iter().map(|id| MetaKey::apart(*id).to_string()));
            layers.extend(ids);
        }
        let needed = |id: &IndexId| layers.contains(id) || Pin::holds(self, id) || self.is_evidence(*id);

        let mut garbage = Vec::new();
        for (dir, kind) in [("device", EntryKind::Dir), ("index", EntryKind::File), ("meta", EntryKind::File)]
        {
            for entry in self.entries(Path::new(dir))?.iter().filter(|entry| entry.kind == kind) {
                let Some(name) = entry.name.to_str() else { continue };
                let kind = match dir {
                    "meta" if metas.contains(name.strip_suffix(".sum").unwrap_or(name)) => continue,
                    "meta" => GarbageKind::Meta(name.to_owned()),
                    _ => match format!("blake3:{name}").parse() {
                        Ok(id) if needed(&id) => continue,
                        Ok(id) if dir == "device" => GarbageKind::Layer(id),
                        Ok(id) => GarbageKind::Index(id),
                        Err(_) => continue, // not ours: leave it alone
                    },
                };
                let path = Path::new(dir).join(name);
                let bytes = match kind {
                    GarbageKind::Layer(_) => self.entries(&path)?.iter().map(|entry| entry.len).sum(),
                    _ => entry.len,
                };
                garbage.push((Garbage { kind, bytes }, path));
            }
        }
        if mode == GcMode::Remove {
            self.forget_known(needed);
            let unnamed = self.unname_all(garbage.iter().map(|(_, path)| path.as_path()));
            drop(removal);
            let (unnamed, result) = unnamed;
            for path in unnamed {
                match path {
                    (path, EntryKind::Dir) => self.discard(&path),
                    (path, _) => {
                        // Swept at the next start if it fails.
                        let _ = self.disk().remove_file(&path);
                    }
                }
            }
            result?;
        }
        Ok(garbage.into_iter().map(|(garbage, _)| garbage).collect())
    }

    /// Moves things to `tmp/`, durably; returns what was moved even if something could not be.
    fn unname_all<'a>(
        &self,
        paths: impl Iterator<Item = &'a Path>,
    ) -> (Vec<(PathBuf, EntryKind)>, Result<(), StoreError>) {
        let (mut moved, mut result) = (Vec::new(), Ok(()));
        for path in paths {
            let temporary = self.temporary();
            if let Err(error) = self.disk().rename(path, &temporary) {
                // What has moved before is freed, but not before that is durable.
                result = Err(StoreError::io("removing", &self.path(path), error));
                break;
            }
            let kind = if path.starts_with("device") { EntryKind::Dir } else { EntryKind::File };
            moved.push((temporary, kind));
        }
        for dir in ["device", "index", "meta", "tmp"] {
            if let Err(error) = self.disk().sync_dir(Path::new(dir)) {
                // Not durable: nothing may be freed yet. The next start sweeps what has moved.
                return (Vec::new(), Err(StoreError::io("syncing", &self.path(Path::new(dir)), error)));
            }
        }
        (moved, result)
    }

    fn entries(&self, dir: &Path) -> Result<Vec<Entry>, StoreError> {
        self.disk().list(dir).map_err(|error| StoreError::io("listing", &self.path(dir), error))
    }

    fn is_evidence(&self, id: IndexId) -> bool {
        let standing = standing::of(self, id);
        matches!(standing, Ok(Some(standing)) if matches!(standing.proof, Proof::Refused { .. }))
    }
}
