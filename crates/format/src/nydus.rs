//! Images of Nydus: RAFS versions 5 and 6.
//!
//! The last layer of such an image is a tar with one file, `image/image.boot`, the *bootstrap*: the tree of the whole image,
//! and where each chunk of each file is. The other layers are *blobs*: chunks, each packed by itself or a few small ones
//! together, and behind them tables that repeat what the bootstrap says. Who has the bootstrap needs no other table of a
//! blob but for chunks that are packed together, and those of a tar.gz.
//!
//! Such a blob is a layer of an ordinary image, as it was (zran). The layer of the image of Nydus says where its gzip stream
//! can be entered: places between two deflate blocks, and the output before them.
//!
//! [`bootstrap`] reads the first, [`meta`] the second, [`disk`] has the records of both; [`index`] makes an index of them.
//! What is different in version 5 is in one place, and nobody above knows which version an image has.
//!
//! # Sources
//!
//! All of dragonflyoss/nydus, version 2. The records: `rafs/src/metadata/layout/v6.rs`, `layout/v5.rs` (chunks), `layout/mod.rs`
//! (flags: `metadata/mod.rs`), `storage/src/meta/mod.rs`, `chunk_info_v1.rs`, `chunk_info_v2.rs`, `batch.rs`, `zran.rs`, `toc.rs` and
//! `storage/src/device.rs`. Entering a tar.gz: `utils/src/compress/zlib_random.rs`. How a file's
//! chunk is found: `rafs/src/metadata/direct_v5.rs`, `direct_v6.rs`. What a writer makes:
//! `builder/src/core/v6.rs`, `core/node.rs`, `core/blob.rs`, `builder/src/merge.rs`.
//!
//! # What RAFS does not keep
//!
//! Times: most inodes have the short form of EROFS, whose time is that of the superblock, 0. Only files whose ids, links
//! or length need the long one, and those named `*.pyc`, have theirs; nanoseconds of a tar nobody has. Version 5 has all.

pub mod bootstrap;
pub mod disk;
mod five;
pub mod index;
mod inodes;
pub mod layer;
pub mod meta;
mod six;
mod tables;
mod tree;
pub mod write;

use crate::erofs::read::Corrupt;
use crate::tar::{MemberKind, Parser, Step, TarError};

/// Returns the bootstrap in the tar of its layer.
pub fn boot_file(tar: &[u8]) -> Result<&[u8], NydusError> {
    let (mut parser, mut rest) = (Parser::new(), tar);
    loop {
        let (taken, step) = parser.step(rest)?;
        rest = &rest[taken..];
        let Step::Member(member) = step else {
            return Err(NydusError::Damaged("there is no image/image.boot in the bootstrap layer"));
        };
        let payload = usize::try_from(member.payload).ok().and_then(|len| rest.split_at_checked(len));
        let (bytes, after) = payload.ok_or(NydusError::Damaged("the tar around its bootstrap ends early"))?;
        let name = member.path.strip_prefix(b"./").unwrap_or(&member.path);
        if name == b"image/image.boot" && matches!(member.kind, MemberKind::File) {
            return Ok(bytes);
        }
        rest = after;
    }
}

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
    /// The tar around a bootstrap cannot be read.
    #[error("reading the tar around the bootstrap")]
    Tar(#[from] TarError),
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
