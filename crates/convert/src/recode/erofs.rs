//! EROFS: a layer as a file system that a kernel mounts, as containerd's erofs snapshotter takes it.
//!
//! What is in the layer, and nothing of other ones: what it hides is shown as overlayfs knows it ([`format::tree::Apart`]). The blob is the
//! image itself, so its digest is its diffID.
//!
//! ```text
//! blob ─► source ─► members ─► lay ── bytes of files ──► out, from the second block on
//!                              └─ tree ─► names and attributes ─► out, behind them
//!                                       └ superblock ─► out, the first block;  then all of it is read, and hashed
//! ```
//!
//! The other way it is in a file first, for what its names lead to is anywhere in it: a tar is made of that ([`unpack`]), or an index
//! by which the image is read as it is ([`index()`]).
//!
//! The first block depends on all that follows, and a digest begins with it: so `out` is read once more.
//!
//! **Bounded.** In memory are the layer's tree, what becomes of it, and no bytes of files. Holes of sparse files are no bytes here, either.

mod back;
mod check;
mod index;
mod lay;

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};

use format::erofs::disk::BLOCK;
use format::erofs::index::MakeError;
use format::erofs::read::{Corrupt, MemberError, OpenError};
use format::erofs::write::WriteError;
use format::erofs::write::layer::{LayerImage, layer};
use format::layer::LayerError;
use format::proof::Mismatch;
use format::tree::TreeError;
use format::{DiffId, Digest, DigestHasher};
use sys::map::Map;

use super::source::Source;
use super::tree_tar::keep;
use super::{RecodeError, Recoded, read};
use crate::Expected;
use crate::builder::read_all;
pub use back::{Unpacked, unpack};
pub use check::{Made, compare};
pub use index::index;
use lay::Lay;

/// Why there is no image of a layer, or another one.
#[derive(Debug, thiserror::Error)]
pub enum ErofsError {
    /// The members of the layer do not make a tree.
    #[error(transparent)]
    Tree(#[from] TreeError),
    /// EROFS cannot hold it.
    #[error(transparent)]
    Image(#[from] WriteError),
    /// What should be an image is none of a layer.
    #[error("reading the image of a layer")]
    Open(#[from] OpenError),
    /// An image is damaged.
    #[error("reading the image of a layer")]
    Corrupt(#[from] Corrupt),
    /// An image has what no tar can say.
    #[error("{what:?} cannot be in a tar: {why}")]
    NoTar {
        /// What it is.
        what: String,
        /// What is the matter with it.
        why: &'static str,
    },
    /// An image does not hold what its layer does.
    #[error("{0:?} differs")]
    Differs(String),
    /// No index can be made of an image.
    #[error("reading the image of a layer")]
    Make(#[from] MakeError),
    /// The index that was made contradicts itself, or does not state the digests that were computed: a bug.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// See [`ErofsError::Layer`].
    #[error(transparent)]
    Proof(#[from] Mismatch),
}

impl From<MemberError> for RecodeError {
    fn from(error: MemberError) -> Self {
        match error {
            MemberError::Corrupt(corrupt) => ErofsError::Corrupt(corrupt).into(),
            MemberError::NoTar { what, why } => ErofsError::NoTar { what, why }.into(),
            MemberError::Paths { limit } => {
                Self::Limit { what: "the names of files that have several", limit }
            }
        }
    }
}

/// Makes the image of a layer, whose blob has this length. What was in `out` is of no matter, if nothing was.
pub fn image(
    blob: impl Read,
    expected: &Expected,
    blob_size: u64,
    mut out: impl Read + Write + Seek,
) -> Result<Recoded, RecodeError> {
    // A file is written from front to back, and what is read of its beginning are zeros until all is there.
    out.write_all(&[0; BLOCK]).map_err(RecodeError::Write)?;
    let mut lay = Lay::new(&mut out)?;
    let ended = read(blob, expected, blob_size, &mut lay)?;
    let (tree, end) = lay.finish()?;
    let LayerImage { head, meta } = layer(&tree, end, &ended.left).map_err(ErofsError::from)?;
    out.write_all(&meta).map_err(RecodeError::Write)?;
    out.seek(SeekFrom::Start(0)).map_err(RecodeError::Write)?;
    out.write_all(&head).map_err(RecodeError::Write)?;
    out.seek(SeekFrom::Start(0)).map_err(RecodeError::Write)?;
    let size = end + meta.len() as u64;
    let digest = digest(out, size)?;
    Ok(Recoded { digest, size, diff_id: DiffId::new(digest), annotations: Default::default() })
}

/// Hashes what was written.
fn digest(out: impl Read, size: u64) -> Result<Digest, RecodeError> {
    let (mut hasher, mut len) = (DigestHasher::new(), 0);
    read_all(out.take(size), RecodeError::Write, |piece| {
        hasher.update(piece);
        len += piece.len() as u64;
        Ok(())
    })?;
    if len == size {
        Ok(hasher.finish())
    } else {
        Err(RecodeError::Write(io::ErrorKind::UnexpectedEof.into()))
    }
}

/// Puts an image into an empty file, as it is unpacked, and maps it. It is what both digests say before anything is made of it.
fn kept(blob: impl Read, expected: &Expected, size: u64, mut file: &File) -> Result<Map, RecodeError> {
    if *expected.diff_id.digest() == expected.blob {
        keep(blob, expected.blob, size, file, 0)?;
        return Map::of(file).map_err(RecodeError::Read);
    }
    let (mut source, mut hasher) = (Source::new(size), DigestHasher::new());
    let mut each = |plain: &[u8]| {
        hasher.update(plain);
        file.write_all(plain).map_err(RecodeError::Spool)
    };
    read_all(blob, RecodeError::Read, |piece| source.push(piece, &mut each))?;
    let found = source.finish(&mut each)?;
    if found != expected.blob {
        return Err(RecodeError::BlobDigest { expected: expected.blob, found });
    }
    let found = DiffId::new(hasher.finish());
    if found != expected.diff_id {
        return Err(RecodeError::DiffId { expected: expected.diff_id, found });
    }
    Map::of(file).map_err(RecodeError::Read)
}
