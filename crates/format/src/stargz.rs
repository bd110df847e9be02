//! Layers with a table of contents of their own: eStargz and zstd:chunked.
//!
//! Both are ordinary compressed tars in which each piece of a file begins a gzip member or zstd frame of its own, and
//! a JSON document at the end says which piece of which file begins where, and what its SHA-256 is. So their files can be
//! read before the layer has arrived, by that table alone. The table is named by a digest in the layer's descriptor.
//!
//! # Sources
//!
//! eStargz: `docs/estargz.md` of stargz-snapshotter; its footer and writer: `estargz/gzip.go`, `estargz/estargz.go`.
//! A table in an image of its own: `estargz/externaltoc/externaltoc.go`, `nativeconverter/estargz/externaltoc/`.
//! zstd:chunked: `pkg/chunked/internal/minimal/compression.go` of containers/storage; the same with stargz-snapshotter's
//! footer: `estargz/zstdchunked/zstdchunked.go`.
//!
//! # Bytes
//!
//! ```text
//! eStargz       members of gzip: tar bytes …  ·  one member: the tar entry "stargz.index.json", and the tar's end  ·  footer
//! footer        51 bytes: an empty gzip member whose extra field is "SG" 22u16 and 16 hexadecimal digits, the offset of
//!               the table's member, and "STARGZ"; 47 bytes without "SG" 22u16 in old ones
//!   or          46 bytes: such a member with "SG" 17u16 "STARGZEXTERNALTOC". The table's member is a blob then, a layer of the
//!               image "TAG-esgztoc" beside the layer's own; its annotation says which layer it is of
//! zstd:chunked  frames of zstd: tar bytes …  ·  skippable frame: table, packed by zstd  ·  [ skippable frame: tar-split ]  ·
//!               skippable frame: footer
//! footer        offset u64 · packed length u64 · plain length u64 · type u64 (1) · [ the same three of the tar-split ] ·
//!               "GNUlInUx"; little-endian. Offsets count from after the 8 bytes of the skippable frame's header
//! ```

mod entries;
pub mod index;
pub mod table;
pub mod toc;

use crate::digest::Digest;
use crate::index::IndexError;
use crate::layer::LayerError;
use crate::skeleton::MadeError;
use crate::tar::TarError;
use crate::unpack::UnpackError;

/// Annotation of a layer's descriptor: the SHA-256 of the table, as plain JSON.
pub const TOC_DIGEST: &str = "containerd.io/snapshot/stargz/toc.digest";

/// Annotation of the descriptor of a table that is a blob of its own: the digest of the layer it is of.
pub const TABLE_OF: &str = "containerd.io/snapshot/stargz/layer.digest";

/// What is added to the tag of an image for the one that has its tables.
pub const TABLES_TAG: &str = "-esgztoc";

/// Annotation of an eStargz layer's descriptor: the length of its tar, in decimal.
pub const UNCOMPRESSED_SIZE: &str = "io.containers.estargz.uncompressed-size";

/// Annotation of a zstd:chunked layer's descriptor: the SHA-256 of the table, as it is packed.
pub const MANIFEST_CHECKSUM: &str = "io.github.containers.zstd-chunked.manifest-checksum";

/// Annotation of a zstd:chunked layer's descriptor: `offset:packed length:plain length:1` of the table.
pub const MANIFEST_POSITION: &str = "io.github.containers.zstd-chunked.manifest-position";

/// The same two as stargz-snapshotter writes them.
const CHECKSUM_OF_OLD: &str = "io.containers.zstd-chunked.manifest-checksum";
const POSITION_OF_OLD: &str = "io.containers.zstd-chunked.manifest-position";

/// Annotation of a zstd:chunked layer's descriptor: `offset:packed length:plain length` of the tar-split.
pub const TARSPLIT_POSITION: &str = "io.github.containers.zstd-chunked.tarsplit-position";

/// Annotation of a zstd:chunked layer's descriptor, Floe's own, for the format has no landmark: the offset in the blob where
/// what a start reads ends, in decimal.
pub const READ_FIRST: &str = "dev.floe.read-first";

/// Name of the tar entry that holds the table of an eStargz layer.
pub const TOC_NAME: &str = "stargz.index.json";

/// Name of a file in the layer's root: what lies before it is read by a start.
pub const PREFETCH: &str = ".prefetch.landmark";

/// Name of a file in the layer's root: nobody has said what is read by a start.
pub const NO_PREFETCH: &str = ".no.prefetch.landmark";

/// The one byte both of these files hold.
pub const LANDMARK: [u8; 1] = [0xf];

/// Returns a path as seen from the root: without leading slashes and "./".
pub fn from_root(mut path: &[u8]) -> &[u8] {
    while let Some(rest) = path.strip_prefix(b"./").or_else(|| path.strip_prefix(b"/")) {
        path = rest;
    }
    path
}

/// Says whether a path is that of something that these formats add to the root of a layer.
pub fn is_added(path: &[u8]) -> bool {
    [TOC_NAME, PREFETCH, NO_PREFETCH].iter().any(|name| name.as_bytes() == from_root(path))
}

impl From<std::io::Error> for TableError {
    fn from(error: std::io::Error) -> Self {
        error.downcast().map_or_else(Self::Read, Self::Unpack)
    }
}

/// Why a layer is not read by its table of contents.
#[derive(Debug, thiserror::Error)]
pub enum TableError {
    /// There is none where it should be.
    #[error("{0}")]
    Missing(&'static str),
    /// It is not the one that the layer's descriptor names.
    #[error("the table of contents should be {expected}, but is {found}")]
    Digest {
        /// What the descriptor says.
        expected: Digest,
        /// What was found.
        found: Digest,
    },
    /// More than is read into memory.
    #[error("a table of contents of {len} exceeds the limit of {limit}")]
    TooLarge {
        /// How much there is.
        len: u64,
        /// The limit.
        limit: u64,
    },
    /// The gzip member or zstd frame around it is damaged.
    #[error("unpacking the table of contents")]
    Unpack(#[from] UnpackError),
    /// It does not arrive.
    #[error("reading the table of contents")]
    Read(#[source] std::io::Error),
    /// The tar around it is damaged.
    #[error("the tar around the table of contents")]
    Tar(#[from] TarError),
    /// Not the JSON it should be.
    #[error("reading the table of contents")]
    Json(#[source] serde_json::Error),
    /// Not even that.
    #[error("the table of contents is no JSON: {0}")]
    Form(&'static str),
    /// Another version.
    #[error("a table of contents of version {0} is not known")]
    Version(u32),
    /// An entry that makes no sense, or that this program does not read.
    #[error("entry {name:?} of the table of contents: {why}")]
    Entry {
        /// The name in the entry.
        name: String,
        /// What is wrong.
        why: &'static str,
    },
    /// Its entries do not make a skeleton.
    #[error("making a skeleton of the table of contents")]
    Made(#[from] MadeError),
    /// Its parts do not make an index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its parts contradict each other.
    #[error(transparent)]
    Layer(#[from] LayerError),
}
