//! Nydus: layers to blobs of RAFS version 6, and of the blobs of all layers an image's bootstrap.
//!
//! As `Pack` and `Merge` of nydus-snapshotter's `pkg/converter` have it: a blob has its layer's chunks, where each of them is, and the
//! layer's own tree, whiteouts as the files they are in a tar. A last layer, a tar.gz, has the tree of all of them. Unlike
//! other targets this one has no tar any more: a blob's diffID is its own digest.
//!
//! ```text
//! blob ─► source ─► members ─► cut ─── chunks ───► pipe ─► out        [`pack`]
//!                              └ tree of the layer ─► parts ─┘
//! parts of each layer ─► members ─► tree of the image ─► bootstrap ─► tar.gz        [`merge()`]
//! blob ─► file ─► its bootstrap ─► members, chunks ─► pipe ─► out        [`unpack()`]
//! blobs ─► file ─► the image's bootstrap ─► members, chunks ─► pipe ─► out        [`together()`]
//! ```
//!
//! **Only blobs tell.** [`merge()`] knows of a layer what is at the end of its blob, whether that was made just now or found in
//! a registry. So the bootstrap depends on the blobs alone, and a blob made before serves as one made now.
//!
//! **Bounded** as other targets are; beside that in memory are the layer's tree and some 300 bytes for each
//! chunk.

mod back;
mod check;
mod cut;
mod hold;
mod merge;
mod parts;
mod shown;
mod together;

use std::io::{Read, Write};
use std::thread;

use format::nydus::layer::LayerError;
use format::nydus::write::BootstrapError;
use format::tree::TreeError;
use format::{ChunkId, Digest};

use super::pack::Level;
use super::pipe::Pipe;
use super::{Order, RecodeError, Tar};
use crate::Expected;
pub use back::{compare_unpacked, unpack};
pub use check::{Blob, compare};
use cut::Cut;
pub use merge::{Merged, compare_merged, merge};
pub use parts::{Parts, PartsError, Toc};
pub use together::{Open, Stored, apart, compare_together, together};

/// What a chunk's bytes, and a piece of the pipe, may be: a chunk is shorter, so the pipe never ends one by itself.
const PIECE: usize = 2 << 20;

/// How to make blobs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Packing {
    /// How hard to compress: 1 to 22. If not said, as nydus-image does.
    pub level: Option<i32>,
    /// The length of the source's blob, from its manifest.
    pub blob_size: u64,
    /// Threads that compress, 1 at least. The result is the same.
    pub threads: usize,
}

impl Packing {
    /// Says whether there is such a level.
    pub fn check(&self) -> Result<(), RecodeError> {
        Level::bare(self.level).map(drop)
    }
}

/// What was made of a layer.
#[derive(Debug, Clone)]
pub struct Packed {
    /// The digest of the blob, and its diffID.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// What the image's bootstrap is made of.
    pub parts: Parts,
}

/// Why there is no bootstrap of an image, or of a layer.
#[derive(Debug, thiserror::Error)]
pub enum NydusError {
    /// The members of the layers do not make a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// RAFS cannot hold it.
    #[error(transparent)]
    Bootstrap(#[from] BootstrapError),
    /// A layer's own bootstrap is not to be understood.
    #[error("reading what a blob says of its layer")]
    Layer(#[from] LayerError),
    /// A blob does not hold what its layer does.
    #[error("{0:?} differs")]
    Differs(String),
    /// A chunk is not what the tree says, or not where.
    #[error("{path:?} has a chunk in blob {blob} that is another one")]
    Chunk {
        /// The file.
        path: String,
        /// Where its bytes should be.
        blob: Digest,
    },
    /// Files have bytes in a blob that the image does not name.
    #[error("files of it have bytes in blob {0}, which is not among its layers")]
    Missing(Digest),
    /// A blob's tables contradict each other, or are not where it says.
    #[error("a blob's {0} is not what it should be")]
    Table(&'static str),
    /// A layer is not what is made of its blob.
    #[error("layer {layer} is not what blob {blob} becomes")]
    Other {
        /// What there is.
        layer: Digest,
        /// What it should have been made of.
        blob: Digest,
    },
    /// A bootstrap that is in a blob is not.
    #[error("reading the bootstrap of a blob")]
    Read(#[from] format::nydus::NydusError),
    /// A blob's end is not.
    #[error("reading the end of a blob")]
    Parts(#[from] PartsError),
}

/// Makes a blob of a layer's.
pub fn pack(
    blob: impl Read,
    expected: &Expected,
    packing: &Packing,
    out: impl Write + Send,
) -> Result<Packed, RecodeError> {
    pack_in_order(blob, expected, packing, None, out)
}

/// Makes a blob of a layer's, in which the chunks of some files lie first, and says that these are read first.
pub fn pack_in_order(
    blob: impl Read,
    expected: &Expected,
    packing: &Packing,
    order: Option<Order<'_>>,
    out: impl Write + Send,
) -> Result<Packed, RecodeError> {
    packed(blob, expected, packing, order, out).map(|(packed, _)| packed)
}

/// What a layer is, before anything is made of it.
struct Original {
    layer: cut::Layer,
    /// What the pipe's pieces are.
    ids: Vec<ChunkId>,
}

fn packed(
    blob: impl Read,
    expected: &Expected,
    packing: &Packing,
    order: Option<Order<'_>>,
    out: impl Write + Send,
) -> Result<(Packed, Original), RecodeError> {
    let level = Level::bare(packing.level)?;
    thread::scope(|scope| {
        let mut pipe = Pipe::start(scope, level, packing.threads, PIECE, out)?;
        let tar = Tar { blob, expected, size: packing.blob_size, order };
        let (parts, original) = match to_blob(tar, &mut pipe) {
            Ok(made) => made,
            // Another thread stopped, and knows why.
            Err(RecodeError::Thread) => return Err(pipe.end().err().unwrap_or(RecodeError::Thread)),
            Err(error) => return Err(error),
        };
        let written = pipe.finish()?;
        Ok((Packed { digest: written.digest, size: written.size, parts }, original))
    })
}

fn to_blob(tar: Tar<'_, impl Read>, pipe: &mut Pipe<'_>) -> Result<(Parts, Original), RecodeError> {
    let mut cut = Cut::new(pipe)?;
    tar.read(&mut cut)?;
    let layer = cut.finish()?;
    let placed = pipe.placed()?;
    let ids = placed.copies.iter().map(|chunk| placed.chunks.get(*chunk as usize).map(|chunk| chunk.id));
    let ids = ids.collect::<Option<_>>().ok_or(RecodeError::Thread)?;
    let (parts, tail) = parts::write(&layer, placed)?;
    pipe.as_is(&tail)?;
    Ok((parts, Original { layer, ids }))
}
