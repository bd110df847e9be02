//! Images of Nydus: RAFS version 6.
//!
//! The last layer of such an image is a tar with one file, `image/image.boot`, the *bootstrap*: the tree of the whole image,
//! and where each chunk of each file is. The other layers are *blobs*: chunks, each packed by itself or a few small ones
//! together, and behind them tables that repeat what the bootstrap says. Who has the bootstrap needs no other table of a
//! blob but for chunks that are packed together.
//!
//! [`bootstrap`] reads the first, [`meta`] the second, [`disk`] has the records of both; [`index`] makes an index of them.
//!
//! # Sources
//!
//! All of dragonflyoss/nydus, version 2. The records: `rafs/src/metadata/layout/v6.rs`, `layout/v5.rs` (chunks), `layout/mod.rs`
//! (flags: `metadata/mod.rs`), `storage/src/meta/mod.rs`, `chunk_info_v1.rs`, `chunk_info_v2.rs`, `batch.rs`, `toc.rs` and
//! `storage/src/device.rs`. How a file's chunk is found: `rafs/src/metadata/direct_v6.rs`. What a writer makes:
//! `builder/src/core/v6.rs`, `core/node.rs`, `core/blob.rs`, `builder/src/merge.rs`.
//!
//! # What RAFS does not keep
//!
//! Times: most inodes have the short form of EROFS, whose time is that of the superblock, 0. Only files whose ids, links
//! or length need the long one, and those named `*.pyc`, have theirs; nanoseconds of a tar nobody has.

pub mod bootstrap;
pub mod disk;
pub mod index;
pub mod layer;
pub mod meta;
mod tables;
mod tree;
pub mod write;

use crate::erofs::read::Corrupt;

/// Why bytes are not a bootstrap, or not the meta of a blob, that we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NydusError {
    /// Something else altogether.
    #[error("this is not a bootstrap of Nydus")]
    Magic,
    /// Right as far as can be told, but of a kind that this program does not read.
    #[error("the Nydus image has {0}, which is not supported")]
    Unsupported(String),
    /// A table contradicts itself or another one.
    #[error("the Nydus image is damaged: {0}")]
    Damaged(&'static str),
    /// The tree is damaged.
    #[error(transparent)]
    Tree(#[from] Corrupt),
    /// More than is read.
    #[error("{what} of the Nydus image exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How much would have been accepted.
        limit: u64,
    },
    /// The meta of a blob cannot be unpacked.
    #[error("the meta of a Nydus blob cannot be unpacked")]
    Unpack,
}
