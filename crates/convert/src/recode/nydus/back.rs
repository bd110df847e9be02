//! Back from a blob of Nydus to a tar: what the blob's own bootstrap says, with the chunks that are in the blob.
//!
//! It is not the tar that the blob was made of. Of that there are neither the headers nor the order of members, nor times where RAFS
//! does not keep them. Members are in the order of the tree, directories before what is in them, whiteouts as the files that
//! they are in a layer. So the same blob always gives the same bytes.
//!
//! Chunks are taken in the order of files, which is that of blobs for the most part and not always. So the blob is in
//! a file first, and has its digest, before anything is made of it.

use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::thread;

use format::index::{Chunk as Row, Piece};
use format::nydus::bootstrap::{Blob, Bootstrap, Chunk, Listing};
use format::nydus::disk::names;
use format::nydus::meta::BlobMeta;
use format::{DiffId, Digest, DigestHasher, decode, limits};

use super::super::pack::Level;
use super::super::pipe::Pipe;
use super::super::tree_tar::{Part, TreeTar, keep};
use super::super::{RecodeError, Recoded, Recoding, Target, flat};
use super::{NydusError, PartsError, Toc};
use crate::Expected;
use crate::builder::read_all;

/// Block of a tar.
const BLOCK: usize = 512;

/// Makes an ordinary layer of a blob. `file` is where the blob goes meanwhile.
pub fn unpack(
    blob: impl Read,
    expected: Digest,
    recoding: &Recoding,
    file: &File,
    out: impl Write + Send,
) -> Result<Recoded, RecodeError> {
    let size = recoding.blob_size;
    keep(blob, expected, size, file, 0)?;
    let bytes = bootstrap(size, limits::METADATA, |range| read(file, range))?;
    let bootstrap = Bootstrap::of_blob(&bytes[..], expected).map_err(NydusError::from)?;
    alone(&bootstrap, &expected)?;
    let mut source = Source::new(file);
    for blob in bootstrap.blobs() {
        source.add(blob, 0..size)?;
    }
    layer(&bootstrap, &source, recoding, out)
}

/// Makes a layer of a tree.
pub(super) fn layer<B: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    source: &Source<'_>,
    recoding: &Recoding,
    out: impl Write + Send,
) -> Result<Recoded, RecodeError> {
    let level = Level::of(recoding.target, recoding.level)?;
    let piece = if recoding.target == Target::Zstd { flat::ZSTD } else { flat::GZIP };
    thread::scope(|scope| {
        let mut pipe = Pipe::start(scope, level, recoding.threads, piece, out)?;
        let diff_id = match tar(bootstrap, source, |part| part.each(|bytes| pipe.write(bytes))) {
            Ok(digest) => DiffId::new(digest),
            // Another thread stopped, and knows why.
            Err(RecodeError::Thread) => return Err(pipe.end().err().unwrap_or(RecodeError::Thread)),
            Err(error) => return Err(error),
        };
        let written = pipe.finish()?;
        Ok(Recoded { digest: written.digest, size: written.size, diff_id, annotations: Default::default() })
    })
}

/// Makes the tar of a tree; returns its digest.
pub(super) fn tar<B: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    source: &Source<'_>,
    put: impl FnMut(Part<'_>) -> Result<(), RecodeError>,
) -> Result<Digest, RecodeError> {
    let mut tar = TreeTar::new(limits::LAYER, put);
    let list = bootstrap.list().map_err(NydusError::from)?;
    members(bootstrap, &list, source, &mut tar)?;
    Ok(tar.finish()?.0)
}

/// Refuses a blob whose bytes are not all in itself, by what its own bootstrap says.
pub(super) fn alone<B: AsRef<[u8]>>(bootstrap: &Bootstrap<B>, itself: &Digest) -> Result<(), RecodeError> {
    for blob in bootstrap.blobs() {
        refuse_ordinary(blob)?;
        if blob.id != *itself {
            let why = "it has files with bytes in another blob";
            return Err(RecodeError::Inexpressible { what: format!("blob {itself}"), why });
        }
    }
    Ok(())
}

/// Refuses a blob that is a layer of an ordinary image.
pub(super) fn refuse_ordinary(blob: &Blob) -> Result<(), RecodeError> {
    let why = "it is made of a layer of an ordinary image, which is there still";
    match blob.is_tar_gz() {
        true => Err(RecodeError::Inexpressible { what: format!("blob {}", blob.id), why }),
        false => Ok(()),
    }
}

/// Makes the layer of a blob again, and compares it with one that is there: its bytes are those of the tree alone, so they are the
/// same. `made` is what that must turn out to be, and its bytes.
pub fn compare_unpacked(
    blob: impl Read,
    expected: Digest,
    recoding: &Recoding,
    file: &File,
    (made, there): (Expected, impl Read),
) -> Result<(), RecodeError> {
    let again = unpack(blob, expected, recoding, file, std::io::sink())?;
    let mut hasher = DigestHasher::new();
    read_all(there, RecodeError::Read, |piece| {
        hasher.update(piece);
        Ok(())
    })?;
    let found = hasher.finish();
    if found == made.blob && (again.digest, again.diff_id) == (made.blob, made.diff_id) {
        return Ok(());
    }
    Err(NydusError::Other { layer: found, blob: expected }.into())
}

/// Returns the bootstrap in a blob, of so many bytes at most: where its table of contents says, or right before its end. `part` reads a
/// range of the blob.
pub(super) fn bootstrap(
    size: u64,
    most: u64,
    mut part: impl FnMut(Range<u64>) -> Result<Vec<u8>, RecodeError>,
) -> Result<Vec<u8>, RecodeError> {
    let tail = part(size.saturating_sub(Toc::TAIL)..size)?;
    let none = || RecodeError::Inexpressible {
        what: "the layer".into(),
        why: "its blob has no bootstrap of its own",
    };
    let header = tail.last_chunk::<BLOCK>().ok_or_else(none)?;
    if header.starts_with(names::TOC.as_bytes()) {
        let toc = Toc::read(&tail, size).map_err(NydusError::from)?;
        if toc.bootstrap_len() > most {
            return Err(NydusError::from(PartsError::Place("bootstrap")).into());
        }
        return Ok(toc.bootstrap(&part(toc.bootstrap_range())?).map_err(NydusError::from)?);
    }
    // Version 5 has no table, and does not pack it.
    let len =
        std::str::from_utf8(&header[124..135]).ok().and_then(|digits| u64::from_str_radix(digits, 8).ok());
    let len = len.filter(|_| header.starts_with(names::BOOTSTRAP.as_bytes())).ok_or_else(none)?;
    let end = size - BLOCK as u64; // there is a header
    if len > end.min(most) {
        return Err(NydusError::from(PartsError::Place("bootstrap")).into());
    }
    part(end - len..end)
}

fn read(file: &File, range: Range<u64>) -> Result<Vec<u8>, RecodeError> {
    let len = usize::try_from(range.end.saturating_sub(range.start))
        .map_err(|_| NydusError::from(PartsError::Place("bootstrap or chunk table")))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, range.start).map_err(RecodeError::Read)?;
    Ok(bytes)
}

/// Blobs, in a file, and where their chunks are. They have the order of the bootstrap.
pub(super) struct Source<'a> {
    file: &'a File,
    blobs: Vec<Kept>,
}

/// A blob in the file.
struct Kept {
    id: Digest,
    place: Range<u64>,
    meta: Option<BlobMeta>,
}

impl Kept {
    /// Returns where in the file a range of the blob is, if it has it.
    fn range(&self, range: Range<u64>) -> Option<Range<u64>> {
        let size = self.place.end - self.place.start;
        let fits = range.start <= range.end && range.end <= size;
        fits.then(|| self.place.start + range.start..self.place.start + range.end)
    }
}

impl<'a> Source<'a> {
    pub(super) fn new(file: &'a File) -> Self {
        Self { file, blobs: Vec::new() }
    }

    /// Adds the next blob, which is here in the file, and reads its tables if they are needed.
    pub(super) fn add(&mut self, blob: &Blob, place: Range<u64>) -> Result<(), RecodeError> {
        let mut kept = Kept { id: blob.id, place, meta: None };
        if blob.needs_meta() {
            let range = BlobMeta::range(blob);
            let long = range.end.saturating_sub(range.start) > limits::CONTENTS;
            let range = kept.range(range).filter(|_| !long);
            let range = range.ok_or(NydusError::from(PartsError::Place("chunk table")))?;
            kept.meta = Some(BlobMeta::open(blob, &read(self.file, range)?).map_err(NydusError::from)?);
        }
        self.blobs.push(kept);
        Ok(())
    }

    /// Adds the next blob, in which no file has a chunk.
    pub(super) fn add_none(&mut self, blob: &Blob) {
        self.blobs.push(Kept { id: blob.id, place: 0..0, meta: None });
    }

    /// Returns the bytes of a chunk of a file.
    fn chunk(&self, chunk: &Chunk, hash: format::index::Hash, path: &[u8]) -> Result<Vec<u8>, RecodeError> {
        // Numbers of blobs were checked when the bootstrap was read.
        let blob = self.blobs.get(usize::from(chunk.blob)).ok_or(RecodeError::Thread)?;
        let found = match (chunk.piece, &blob.meta) {
            (Some(piece), _) => Some(piece),
            (None, Some(meta)) => Some(meta.piece(chunk).map_err(NydusError::from)?),
            (None, None) => None,
        };
        let short = |piece: &Piece| piece.end.saturating_sub(piece.begin) <= limits::PIECE.into();
        let place = found.filter(short).and_then(|piece| Some((piece, blob.range(piece.begin..piece.end)?)));
        let bytes = match place {
            Some((piece, range)) => {
                let packed = read(self.file, range)?;
                decode::chunk(&piece, &packed, &Row { len: chunk.len, id: chunk.id }, hash)
            }
            None => None,
        };
        let differs = || NydusError::Chunk { path: format::name::printable(path), blob: blob.id };
        Ok(bytes.ok_or_else(differs)?)
    }
}

/// Writes all members of a layer.
fn members<B: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    list: &Listing<'_, B>,
    source: &Source<'_>,
    tar: &mut TreeTar<impl FnMut(Part<'_>) -> Result<(), RecodeError>>,
) -> Result<(), RecodeError> {
    for n in 0..list.len() {
        if list.is_implied(n).map_err(NydusError::from)? {
            continue;
        }
        let member = list.member(n).map_err(NydusError::from)?;
        tar.member(&member)?;
        for chunk in list.chunks(n).map_err(NydusError::from)? {
            let chunk = chunk.map_err(NydusError::from)?;
            tar.write(&source.chunk(&chunk, bootstrap.hash(), &member.path)?)?;
        }
    }
    Ok(())
}
