//! A layer of an image: where it is, and once it has an index, what of it is here.

use std::sync::Arc;

use format::layer::Layer;
use format::stargz::table::Announced;
use format::{DiffId, Digest, IndexId};
use store::{Hold, OpenLayer, Proof, RefLayer};

use super::report::IndexOrigin;
use super::role::Role;

/// A layer as manifest and config name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) blob: Digest,
    pub(super) size: u64,
    pub(super) media_type: String,
    pub(super) diff_id: DiffId,
    /// The table of contents it is said to have, where that is known.
    pub(super) table: Option<Announced>,
    /// What it is if it is no tar.
    pub(super) role: Option<Role>,
}

impl Place {
    /// Returns the layer of a reference that is in the store.
    pub(super) fn of(layer: &RefLayer) -> Self {
        Self {
            blob: layer.blob,
            size: layer.size,
            media_type: layer.media_type.clone(),
            diff_id: layer.diff_id,
            table: None,
            role: None,
        }
    }
}

/// A layer that can be read.
pub(super) struct FoundLayer {
    pub(super) place: Place,
    pub(super) hold: Hold,
    pub(super) origin: IndexOrigin,
    pub(super) index_size: u64,
}

impl FoundLayer {
    pub(super) fn id(&self) -> IndexId {
        self.hold.files().id()
    }

    pub(super) fn layer(&self) -> &Arc<Layer> {
        self.hold.layer()
    }

    /// Returns it as a reference names it.
    pub(super) fn as_ref(&self) -> RefLayer {
        RefLayer {
            blob: self.place.blob,
            size: self.place.size,
            media_type: self.place.media_type.clone(),
            diff_id: self.place.diff_id,
            index: self.id(),
            proved: self.proved(),
        }
    }

    pub(super) fn proved(&self) -> bool {
        self.hold.files().standing().proof == Proof::Proved
    }

    /// Returns a segment by which its index has to be doubted, where the layer could be read whole instead.
    pub(super) fn doubted(&self) -> Option<u32> {
        self.hold.files().doubted().filter(|_| self.place.role.is_none())
    }

    pub(super) fn files(&self) -> Arc<OpenLayer> {
        self.hold.files().clone()
    }

    /// Returns how many bytes all that it holds takes on the way.
    pub(super) fn packed(&self) -> u64 {
        self.hold.files().packed()
    }

    /// Returns about how many of these are missing.
    pub(super) fn missing(&self) -> u64 {
        missing(self.hold.files())
    }

    /// Returns about how many of these are here when so many segments are missing.
    pub(super) fn here(&self, missing: usize) -> u64 {
        here(self.hold.files(), missing)
    }
}

/// Returns about how many packed bytes of a layer are here when so many segments are missing.
fn here(files: &OpenLayer, missing: usize) -> u64 {
    let (all, size) = (u64::from(files.segments()).max(1), files.packed());
    // In 128 bits: a blob of a terabyte times a million segments does not fit 64.
    let share = u128::from(size) * u128::from(all.saturating_sub(missing as u64)) / u128::from(all);
    u64::try_from(share).unwrap_or(size)
}

/// Returns about how many packed bytes of a layer are missing.
pub(super) fn missing(files: &OpenLayer) -> u64 {
    files.packed().saturating_sub(here(files, files.missing()))
}
