//! What a layer is that is no tar: a part of an image of Nydus, or a file system.
//!
//! Only the manifest says so, and another manifest may say something else of the same blob. So an index that was made of such a
//! layer tells as what it was read: it names for its table a digest that only this layer in this role has. So it is found
//! again for what it is, and for nothing else.

use std::collections::BTreeMap;

use format::Digest;
use registry::{Descriptor, media_type};

use super::asker::Question;
use crate::trust::Verdict;

/// What a layer is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Bytes of files of an image of Nydus.
    Blob,
    /// The tree of one.
    Bootstrap,
    /// A file system. It is read whole, against its digest, before an index is made of it, as of a tar; and what begins
    /// as one does is never read as a tar. So nobody need be asked whether it is that.
    Erofs,
}

/// `pkg/converter/constant.go` of nydus-snapshotter.
const IS_BLOB: &str = "containerd.io/snapshot/nydus-blob";
const IS_BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
const REFERENCE: &str = "containerd.io/snapshot/nydus-ref";

impl Role {
    /// Returns what a layer is, as its descriptor says.
    pub(super) fn of(kind: &str, annotations: &BTreeMap<String, String>) -> Option<Self> {
        let is = |name| annotations.get(name).is_some_and(|value| value == "true");
        if is(IS_BOOTSTRAP) {
            Some(Self::Bootstrap)
        } else if kind == media_type::NYDUS_BLOB || is(IS_BLOB) || annotations.contains_key(REFERENCE) {
            Some(Self::Blob)
        } else {
            media_type::is_erofs(kind).then_some(Self::Erofs)
        }
    }

    /// Returns what an index, made of this table for this blob, takes the layer for.
    pub(super) fn of_table(table: &Digest, blob: &Digest) -> Option<Self> {
        [Self::Blob, Self::Bootstrap, Self::Erofs].into_iter().find(|role| role.table(blob) == *table)
    }

    /// Returns what the index of a layer names as its table.
    pub(super) fn table(self, blob: &Digest) -> Digest {
        match self {
            Self::Blob => Digest::of(b"a blob of Nydus has no files"),
            Self::Bootstrap => *blob,
            Self::Erofs => Digest::of(format!("{blob} is a file system").as_bytes()),
        }
    }

    /// Says whether it is part of an image of Nydus.
    pub(super) fn is_nydus(self) -> bool {
        self != Self::Erofs
    }

    /// Says whether nobody need be asked whether the layer is that.
    pub(super) fn is_certain(self, verdict: Verdict, asked: &Question<'_>) -> bool {
        self != Self::Blob || !asked.shared || verdict.accepted()
    }
}

/// Returns what the layers of a manifest are.
pub(super) fn roles(manifest: &[u8]) -> Vec<Option<Role>> {
    let role = |layer: &Descriptor| Role::of(&layer.media_type, &layer.annotations);
    serde_json::from_slice::<registry::ImageManifest>(manifest)
        .map_or(Vec::new(), |manifest| manifest.layers.iter().map(role).collect())
}
