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
//! The first block depends on all that follows, and a digest begins with it: so `out` is read once more.
//!
//! **Bounded.** In memory are the layer's tree, what becomes of it, and no bytes of files. Holes of sparse files are no bytes here, either.

mod back;
mod check;
mod lay;

use std::io::{self, Read, Seek, SeekFrom, Write};

use format::erofs::disk::BLOCK;
use format::erofs::read::{Corrupt, OpenError};
use format::erofs::write::WriteError;
use format::erofs::write::layer::{LayerImage, layer};
use format::tree::TreeError;
use format::{DiffId, Digest, DigestHasher};

use super::{RecodeError, Recoded, read};
use crate::Expected;
use crate::builder::read_all;
pub use back::{Unpacked, unpack};
pub use check::{Made, compare};
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
