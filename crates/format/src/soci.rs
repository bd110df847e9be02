//! SOCI: tables beside an ordinary gzip layer that say which files it has and where its stream can be entered.
//!
//! A SOCI index is a manifest that lists for each large layer of an image a *zTOC*. Version 1 of it refers to the image
//! (`subject`), version 2 is named by an annotation of the image's manifest. The layer's blob stays as it is.
//!
//! # Sources
//!
//! awslabs/soci-snapshotter: `ztoc/fbs/ztoc.fbs`, `ztoc/ztoc_marshaler.go`, `ztoc/toc_builder.go`,
//! `ztoc/compression/gzip_zinfo.c`; `soci/soci_index.go`, `soci/prefetch.go`, `docs/soci-index-manifest-v2.md`.
//!
//! # Bytes
//!
//! A zTOC is a FlatBuffer ([`flat`]). The fields of its tables, in the order of their numbers:
//!
//! ```text
//! zTOC         version "0.9" · build tool · length of the blob i64 · length of the tar i64 · TOC · compression
//! TOC          [file]
//! file         name · type ("reg", "dir", "symlink", "hardlink", "char", "block", "fifo") · offset of its bytes in the tar i64 ·
//!              length i64 · link · mode i64 · uid u32 · gid u32 · user · group · time (RFC 3339) · major i64 · minor i64 · [record]
//! record       key · value: of the member's pax header
//! compression  kind u8: 1 gzip, if it is not there; 2 none · number of the last span i32 · [SHA-256 of a span, as text] · checkpoints
//! checkpoints  count i32 · span size i64 · per checkpoint: offset in the blob i64 · offset in the tar i64 · bits u8 · 32 KiB of
//!              output before it; little-endian, no padding
//! ```
//!
//! A span is the blob from one checkpoint to the next, with the byte before if `bits` of that are needed; so neighbours
//! can have a byte in common. Old writers leave the first checkpoint out: it is right behind a header of ten bytes.

pub mod ahead;
mod flat;
pub mod index;
mod ztoc;

use crate::index::IndexError;
use crate::layer::LayerError;
use crate::skeleton::MadeError;

pub use ztoc::assumes_short_header;

/// Type of a SOCI index that refers to its image.
pub const INDEX_V1: &str = "application/vnd.amazon.soci.index.v1+json";

/// Type of a SOCI index that the image's manifest names.
pub const INDEX_V2: &str = "application/vnd.amazon.soci.index.v2+json";

/// Annotation of an image's manifest: the digest of its SOCI index.
pub const INDEX_DIGEST: &str = "com.amazon.soci.index-digest";

/// Annotation of a zTOC's descriptor: the digest of the layer that it is of.
pub const LAYER_DIGEST: &str = "com.amazon.soci.image-layer-digest";

/// Media type of a zTOC.
pub const ZTOC: &str = "application/octet-stream";

/// Why a layer is not read by its zTOC.
#[derive(Debug, thiserror::Error)]
pub enum SociError {
    /// It contradicts itself, or the layer.
    #[error("the zTOC is damaged: {0}; making the SOCI index again would help")]
    Damaged(&'static str),
    /// Right as far as can be told, but of a kind that this program does not read.
    #[error("the zTOC has {0}, which is not supported")]
    Unsupported(String),
    /// More than is read.
    #[error("{what} of the zTOC exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How much would have been accepted.
        limit: u64,
    },
    /// A file that makes no sense, or of which too little is told.
    #[error("{name:?} in the zTOC: {why}")]
    Entry {
        /// Its name.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// What is to be fetched first is not the JSON it should be.
    #[error("reading what the SOCI index says to fetch first")]
    Ahead(#[source] serde_json::Error),
    /// Its files do not make a skeleton.
    #[error("making a skeleton of the zTOC")]
    Made(#[from] MadeError),
    /// Its parts do not make an index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its parts contradict each other.
    #[error(transparent)]
    Layer(#[from] LayerError),
}
