//! The formats of layers, and how a descriptor shows them.

use std::collections::BTreeMap;

use format::stargz::{
    MANIFEST_CHECKSUM, MANIFEST_POSITION, READ_FIRST, TARSPLIT_POSITION, TOC_DIGEST, UNCOMPRESSED_SIZE,
};

use format::{DiffId, Digest};

use super::FileOrder;
use super::image::spares;
use super::rewrite::ORDERED_BY;
use crate::copy::plan::Plan;
use crate::error::Error;
use crate::manifest::media_type::{
    self, EROFS_LAYER as EROFS, LAYER as TAR, LAYER_GZIP as GZIP, LAYER_ZSTD as ZSTD, NYDUS_BLOB as NYDUS,
};
use crate::manifest::{Descriptor, LayerBlob};

/// What of a platform images of EROFS ask for.
pub(super) const EROFS_FEATURE: &str = "erofs";

/// Annotations of Nydus's layers: of a blob, of the layer with the bootstrap, and of its version.
const NYDUS_BLOB: &str = "containerd.io/snapshot/nydus-blob";
const NYDUS_BOOTSTRAP: &str = "containerd.io/snapshot/nydus-bootstrap";
const NYDUS_VERSION: &str = "containerd.io/snapshot/nydus-fs-version";

/// How annotations begin that are about Nydus.
const OF_NYDUS: &str = "containerd.io/snapshot/nydus-";

/// The diffID, as tools of Nydus repeat it.
const UNCOMPRESSED: &str = "containerd.io/uncompressed";

/// What is said of how a layer was written, and holds for no other.
const TABLES: [&str; 7] = [
    TOC_DIGEST,
    UNCOMPRESSED_SIZE,
    MANIFEST_CHECKSUM,
    MANIFEST_POSITION,
    TARSPLIT_POSITION,
    READ_FIRST,
    ORDERED_BY,
];

/// What layers are made into.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    /// Gzip with a table of contents in the tar.
    EStargz,
    /// Zstd with a table of contents beside the tar.
    ZstdChunked,
    /// Ordinary layers: gzip where a table has to go, and what has none stays.
    Oci,
    /// A file system for each layer, for those who mount layers.
    Erofs,
    /// Blobs of chunks, and one more layer with the tree of all: not for those who unpack layers.
    Nydus,
}

impl Format {
    /// Returns the media type of the layers that are made.
    pub(super) fn media_type(self) -> &'static str {
        match self {
            Self::EStargz | Self::Oci => GZIP,
            Self::ZstdChunked => ZSTD,
            Self::Erofs => EROFS,
            Self::Nydus => NYDUS,
        }
    }

    /// Returns what the descriptors of all layers say that are made.
    pub(super) fn annotations(self) -> BTreeMap<String, String> {
        let said = (self == Self::Nydus).then(|| (NYDUS_BLOB.to_owned(), "true".to_owned()));
        said.into_iter().collect()
    }

    /// Says whether an image needs one more layer, and all others to be in the format.
    pub fn has_top(self) -> bool {
        self == Self::Nydus
    }

    /// Says whether a layer is in the format.
    pub(crate) fn has(self, layer: &Descriptor) -> bool {
        let said = |name| layer.annotations.contains_key(name);
        match (self, oci_name(&layer.media_type).unwrap_or(&layer.media_type)) {
            (Self::EStargz, GZIP) => said(TOC_DIGEST),
            (Self::ZstdChunked, ZSTD) => said(MANIFEST_POSITION),
            (Self::Oci, TAR | GZIP | ZSTD) => !said(TOC_DIGEST) && !said(MANIFEST_POSITION),
            (Self::Nydus, NYDUS) => said(NYDUS_BLOB),
            (Self::Erofs, kind) => is_erofs(layer) && !media_type::is_packed(kind),
            _ => false,
        }
    }

    /// Returns the format of an image's layers, if there is one that can be written.
    fn of(layers: &[Descriptor]) -> Self {
        let is = |format: &Self| layers.iter().any(|layer| format.has(layer));
        if are_nydus(layers) {
            return Self::Nydus;
        }
        [Self::EStargz, Self::ZstdChunked, Self::Erofs].into_iter().find(is).unwrap_or(Self::Oci)
    }

    /// Returns why a layer stays as it is, if it does before anybody has looked at it.
    pub(super) fn keeps(self, layer: &Descriptor, order: FileOrder) -> Option<String> {
        if self == Self::Oci && layer.media_type == NYDUS {
            return None;
        }
        if is_erofs(layer) && order == FileOrder::ByRecoder {
            return Some("it is an EROFS file system, whose files come in the order of their names".into());
        }
        if !is_tar(layer) && !is_erofs(layer) {
            let kind: String = layer.media_type.chars().take(100).collect();
            return Some(format!("layers of type {kind:?} are not looked into"));
        }
        if !layer.urls.is_empty() {
            return Some("it is kept outside of registries".into());
        }
        // Where files are ordered, the order decides.
        (order == FileOrder::AsBefore && self.has(layer)).then(|| format!("it is {self} already"))
    }

    /// Returns why a layer need not be written in this order.
    pub(super) fn has_in_order(self, layer: &LayerBlob, order: Option<&Digest>) -> Option<String> {
        if !self.has(&layer.descriptor()) {
            return None;
        }
        match order {
            None if self == Self::Oci => Some("nothing in it comes first".into()),
            order if order == ordered_by(&layer.annotations).as_ref() => {
                Some(format!("it is {self} in this order already"))
            }
            _ => None,
        }
    }

    /// Returns the feature of a platform that images in this format ask for.
    pub(super) fn feature(self) -> Option<&'static str> {
        (self == Self::Erofs).then_some(EROFS_FEATURE)
    }

    /// Says whether a layer that claims to be made of another is what would be made.
    pub(super) fn is_made(self, layer: &Descriptor) -> bool {
        layer.media_type == self.media_type() && self.has(layer)
    }
}

impl std::fmt::Display for Format {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::EStargz => "eStargz",
            Self::ZstdChunked => "zstd:chunked",
            Self::Oci => "an ordinary layer",
            Self::Erofs => "EROFS",
            Self::Nydus => "Nydus",
        })
    }
}

/// Returns the layer on top of an image of Nydus: its blob's digest and length, and the digest of its tar.
pub(super) fn top(digest: Digest, size: u64, diff_id: DiffId) -> LayerBlob {
    let said = [(NYDUS_BOOTSTRAP, "true"), (NYDUS_VERSION, "6")];
    let annotations = said.map(|(name, text)| (name.to_owned(), text.to_owned())).into();
    LayerBlob { digest, size, media_type: GZIP.into(), diff_id, annotations }
}

/// Says whether these are the layers of an image of Nydus: its parts mean nothing one by one.
pub(super) fn are_nydus(layers: &[Descriptor]) -> bool {
    layers.iter().any(|layer| {
        layer.media_type == NYDUS
            || [NYDUS_BLOB, NYDUS_BOOTSTRAP].iter().any(|name| layer.annotations.contains_key(*name))
    })
}

/// Says whether these are the layers of an image of Nydus as far as ordinary ones can be made of them: blobs, and last the
/// tree of all.
pub(super) fn is_stack(layers: &[Descriptor]) -> bool {
    layers.split_last().is_some_and(|(top, blobs)| {
        is_top(&top.annotations) && !blobs.is_empty() && blobs.iter().all(|layer| layer.media_type == NYDUS)
    })
}

/// Says whether a layer has the tree of an image of Nydus, and no more.
pub(crate) fn is_top(annotations: &BTreeMap<String, String>) -> bool {
    annotations.contains_key(NYDUS_BOOTSTRAP)
}

/// Says whether a layer is a file system, which may be packed as a whole.
pub(super) fn is_erofs(layer: &Descriptor) -> bool {
    let kind = &layer.media_type;
    media_type::is_erofs(kind) && (!media_type::is_packed(kind) || kind.ends_with("+zstd"))
}

/// Says whether something is a layer that can be looked into.
pub(super) fn is_tar(layer: &Descriptor) -> bool {
    [TAR, GZIP, ZSTD].contains(&oci_name(&layer.media_type).unwrap_or(&layer.media_type))
}

/// Returns what OCI calls a layer that Docker has a name for.
pub(super) fn oci_name(media_type: &str) -> Option<&'static str> {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar" => Some(TAR),
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => Some(GZIP),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => Some(ZSTD),
        _ => None,
    }
}

/// Returns what the files that come first in a layer were ordered by.
pub(super) fn ordered_by(annotations: &BTreeMap<String, String>) -> Option<Digest> {
    annotations.get(ORDERED_BY).and_then(|text| text.parse().ok())
}

/// Returns the format of what a source has: where an image is there beside one that was made of it, of the latter.
pub(super) fn of_source(plan: &Plan) -> Result<Format, Error> {
    let spare = spares(plan);
    let mut found = Format::Oci;
    for manifest in plan.manifests.iter().filter(|one| !one.is_index()) {
        let parsed = manifest.image(&format!("manifest {}", manifest.digest))?;
        let made = Format::of(&parsed.layers);
        if made != Format::Oci && (found == Format::Oci || spare.contains(&manifest.digest)) {
            found = made;
        }
    }
    Ok(found)
}

/// Returns what a descriptor says that holds for the layer in whatever format.
pub(super) fn lasting(annotations: &BTreeMap<String, String>) -> BTreeMap<String, String> {
    let lasts = |name: &str| !TABLES.contains(&name) && !name.starts_with(OF_NYDUS) && name != UNCOMPRESSED;
    annotations
        .iter()
        .filter(|(name, _)| lasts(name))
        .map(|(name, text)| (name.clone(), text.clone()))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn layer(media_type: &str, annotation: Option<&str>) -> Descriptor {
        let mut layer = Descriptor::of(media_type, b"");
        layer.annotations.extend(annotation.map(|name| (name.to_owned(), "x".to_owned())));
        layer
    }

    #[test]
    fn which_layers_stay() {
        let docker = "application/vnd.docker.image.rootfs.diff.tar.gzip";
        let foreign = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip";
        use Format::{EStargz, Oci, ZstdChunked};
        for (media_type, annotation, stays_in) in [
            (TAR, None, &[Oci][..]),
            (GZIP, None, &[Oci]),
            (docker, None, &[Oci]),
            (ZSTD, None, &[Oci]),
            (GZIP, Some(TOC_DIGEST), &[EStargz]),
            (docker, Some(TOC_DIGEST), &[EStargz]),
            (ZSTD, Some(MANIFEST_POSITION), &[ZstdChunked]),
            (ZSTD, Some(TOC_DIGEST), &[]),
            (GZIP, Some(MANIFEST_POSITION), &[]),
            (foreign, None, &[EStargz, ZstdChunked, Oci]),
            ("application/vnd.in-toto+json", None, &[EStargz, ZstdChunked, Oci]),
        ] {
            for format in [EStargz, ZstdChunked, Oci] {
                let keeps = format.keeps(&layer(media_type, annotation), FileOrder::AsBefore);
                assert_eq!(
                    keeps.is_some(),
                    stays_in.contains(&format),
                    "{media_type} {annotation:?} {format}"
                );
            }
        }
        use FileOrder::AsBefore;
        for kind in [EROFS, "application/vnd.oci.image.layer.v1.erofs"] {
            assert_eq!(Oci.keeps(&layer(kind, None), AsBefore), None);
            assert_eq!(Format::Nydus.keeps(&layer(kind, None), AsBefore), None);
            assert!(Oci.keeps(&layer(kind, None), FileOrder::ByRecoder).unwrap().contains("EROFS"));
            assert!(Format::Erofs.keeps(&layer(kind, None), AsBefore).is_some());
        }
        let packed = layer("application/vnd.erofs.layer.v1+zstd", None);
        for format in [Oci, Format::Erofs, Format::Nydus] {
            assert_eq!(format.keeps(&packed, AsBefore), None);
        }
        assert!(Oci.keeps(&layer("application/vnd.erofs.layer.v1+other", None), AsBefore).is_some());
        assert!(
            Format::Erofs.keeps(&layer(EROFS, None), AsBefore).is_some()
                && Format::Erofs.is_made(&layer(EROFS, None))
        );
        assert_eq!(Format::Erofs.keeps(&layer(GZIP, Some(TOC_DIGEST)), AsBefore), None);
        assert_eq!(Format::Nydus.keeps(&layer(docker, None), AsBefore), None);
        assert!(Format::Nydus.is_made(&layer(NYDUS, Some(NYDUS_BLOB))));
        assert_eq!(Oci.keeps(&layer(NYDUS, None), AsBefore), None);
        assert!(EStargz.keeps(&layer(NYDUS, None), AsBefore).is_some());
        assert!(is_stack(&[layer(NYDUS, None), layer(GZIP, Some(NYDUS_BOOTSTRAP))]));
        assert!(!is_stack(&[layer(GZIP, None), layer(GZIP, Some(NYDUS_BOOTSTRAP))]));
        assert!(!is_stack(&[layer(NYDUS, None)]) && !is_stack(&[layer(GZIP, Some(NYDUS_BOOTSTRAP))]));
        assert!(are_nydus(&[layer(GZIP, Some(NYDUS_BOOTSTRAP))]) && !are_nydus(&[layer(GZIP, None)]));
        let mut elsewhere = layer(GZIP, None);
        elsewhere.urls.push("https://vendor.example".into());
        assert!(EStargz.keeps(&elsewhere, FileOrder::ByRecoder).is_some());
        assert!(
            !EStargz.is_made(&layer(docker, Some(TOC_DIGEST)))
                && EStargz.is_made(&layer(GZIP, Some(TOC_DIGEST)))
        );
    }
}
