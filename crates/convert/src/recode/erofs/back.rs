//! Back from the image of a layer to a tar of what is in it.
//!
//! It is not the tar that the image was made of: of that there are neither headers nor the order of members. They are in the
//! order of the tree, directories before what is in them, and what overlayfs is told to hide is hidden as a tar says it. So the
//! same image always gives the same bytes.
//!
//! Inodes lie anywhere in an image, so it is in a file first, and has its digest, before anything is made of it. Images that
//! others have written are read, too, as long as nothing in them is compressed.

use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};

use format::erofs::read::{Inode, LayerFiles, Run};
use format::index::most_plain;
use format::{Digest, limits};

use super::super::RecodeError;
use super::super::tree_tar::{Part, TreeTar};
use super::{ErofsError, kept};
use crate::Expected;

/// Bytes that are handed on at once.
const WINDOW: usize = 256 << 10;

/// A tar that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
}

/// Makes a tar of an image, whose blob has this length and may be packed. `file`, which is empty, is where the image goes meanwhile; nobody else changes it. `tar` is
/// empty: where files have holes nothing is written, so that a file has them, too.
pub fn unpack(
    blob: impl Read,
    expected: &Expected,
    size: u64,
    file: &File,
    tar: impl Write + Seek,
) -> Result<Unpacked, RecodeError> {
    let map = kept(blob, expected, size, file)?;
    let files = LayerFiles::open(&map).map_err(ErofsError::from)?;
    let mut out = BufWriter::with_capacity(WINDOW, tar);
    let put = |part: Part<'_>| put(&mut out, part);
    let mut tar = TreeTar::new(most_plain(size).min(limits::LAYER), put);
    files.members(|member, inode| {
        tar.member(member)?;
        inode.map_or(Ok(()), |inode| bytes(&files, inode, &mut tar))
    })?;
    let (digest, size) = tar.finish()?;
    out.flush().map_err(RecodeError::Spool)?;
    Ok(Unpacked { digest, size })
}

/// Writes a part of a tar, or goes on behind it. What is behind a hole is written, for a tar ends with blocks of its own.
fn put(out: &mut (impl Write + Seek), part: Part<'_>) -> Result<(), RecodeError> {
    match part {
        Part::Zeros(len) if len >= limits::BLOCK => {
            let len = i64::try_from(len).unwrap_or(i64::MAX); // a tar is bounded
            out.seek(SeekFrom::Current(len)).map(drop).map_err(RecodeError::Spool)
        }
        part => part.each(|bytes| out.write_all(bytes).map_err(RecodeError::Spool)),
    }
}

/// Writes the bytes of a file.
fn bytes<F>(files: &LayerFiles<'_>, inode: &Inode, tar: &mut TreeTar<F>) -> Result<(), RecodeError>
where
    F: FnMut(Part<'_>) -> Result<(), RecodeError>,
{
    for run in files.runs(inode).map_err(ErofsError::from)? {
        match run.map_err(ErofsError::from)? {
            Run::Hole(len) => tar.zeros(len)?,
            // mkfs.erofs has zeros once, and says that they are everywhere.
            Run::Bytes(_, bytes) => {
                for piece in bytes.chunks(WINDOW) {
                    match piece.iter().all(|byte| *byte == 0) {
                        true => tar.zeros(piece.len() as u64)?,
                        false => tar.write(piece)?,
                    }
                }
            }
        }
    }
    Ok(())
}
