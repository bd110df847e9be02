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
use std::os::unix::fs::FileExt;
use std::thread;

use format::index::Chunk as Row;
use format::nydus::bootstrap::{Blob, Bootstrap, Chunk, Listing};
use format::nydus::disk::names;
use format::nydus::meta::BlobMeta;
use format::{DiffId, Digest, DigestHasher, decode, limits};

use super::super::pack::Level;
use super::super::pipe::Pipe;
use super::super::tree_tar::{Part, TreeTar, keep};
use super::super::{RecodeError, Recoded, Recoding, flat};
use super::{NydusError, PartsError, Toc};
use crate::Expected;
use crate::builder::read_all;

/// Block of a tar.
const BLOCK: usize = 512;

/// Makes a layer in gzip of a blob. `file` is where the blob goes meanwhile.
pub fn unpack(
    blob: impl Read,
    expected: Digest,
    recoding: &Recoding,
    file: &File,
    out: impl Write + Send,
) -> Result<Recoded, RecodeError> {
    let level = Level::of(recoding.target, recoding.level)?;
    keep(blob, expected, recoding.blob_size, file)?;
    let bytes = bootstrap(file, recoding.blob_size)?;
    let bootstrap = Bootstrap::of_blob(&bytes[..], expected).map_err(NydusError::from)?;
    let source = Source { file, size: recoding.blob_size, blobs: bootstrap.blobs(), metas: Vec::new() };
    let source = source.open(expected)?;
    thread::scope(|scope| {
        let mut pipe = Pipe::start(scope, level, recoding.threads, flat::GZIP, out)?;
        let mut tar = TreeTar::new(limits::LAYER, |part: Part<'_>| part.each(|bytes| pipe.write(bytes)));
        let list = bootstrap.list().map_err(NydusError::from)?;
        let made = members(&bootstrap, &list, &source, &mut tar).and_then(|()| tar.finish());
        let diff_id = match made {
            Ok((digest, _)) => DiffId::new(digest),
            // Another thread stopped, and knows why.
            Err(RecodeError::Thread) => return Err(pipe.end().err().unwrap_or(RecodeError::Thread)),
            Err(error) => return Err(error),
        };
        let written = pipe.finish()?;
        Ok(Recoded { digest: written.digest, size: written.size, diff_id, annotations: Default::default() })
    })
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

/// Returns the bootstrap in a blob: where its table of contents says, or right before its end.
fn bootstrap(file: &File, size: u64) -> Result<Vec<u8>, RecodeError> {
    let part = |start: u64, end: u64| read(file, start, end.saturating_sub(start));
    let tail = part(size.saturating_sub(Toc::TAIL), size)?;
    let none = || RecodeError::Inexpressible {
        what: "the layer".into(),
        why: "its blob has no bootstrap of its own",
    };
    let header = tail.last_chunk::<BLOCK>().ok_or_else(none)?;
    if header.starts_with(names::TOC.as_bytes()) {
        let toc = Toc::read(&tail, size).map_err(NydusError::from)?;
        let range = toc.bootstrap_range();
        return Ok(toc.bootstrap(&part(range.start, range.end)?).map_err(NydusError::from)?);
    }
    // Version 5 has no table, and does not pack it.
    let len =
        std::str::from_utf8(&header[124..135]).ok().and_then(|digits| u64::from_str_radix(digits, 8).ok());
    let len = len.filter(|_| header.starts_with(names::BOOTSTRAP.as_bytes())).ok_or_else(none)?;
    let end = size - BLOCK as u64; // there is a header
    if len > end.min(limits::METADATA) {
        return Err(NydusError::from(PartsError::Place("bootstrap")).into());
    }
    part(end - len, end)
}

fn read(file: &File, start: u64, len: u64) -> Result<Vec<u8>, RecodeError> {
    let len =
        usize::try_from(len).map_err(|_| NydusError::from(PartsError::Place("bootstrap or chunk table")))?;
    let mut bytes = vec![0; len];
    file.read_exact_at(&mut bytes, start).map_err(RecodeError::Read)?;
    Ok(bytes)
}

/// The blob, in a file, and where its chunks are.
struct Source<'a> {
    file: &'a File,
    size: u64,
    blobs: &'a [Blob],
    metas: Vec<Option<BlobMeta>>,
}

impl Source<'_> {
    /// Reads the tables of a blob that are needed. There may be no other: its bytes are not here.
    fn open(mut self, itself: Digest) -> Result<Self, RecodeError> {
        for blob in self.blobs {
            let why = match blob {
                blob if blob.is_tar_gz() => {
                    "it is made of a layer of an ordinary image, which is there still"
                }
                blob if blob.id != itself => "it has files with bytes in another blob",
                _ => "",
            };
            if !why.is_empty() {
                return Err(RecodeError::Inexpressible { what: format!("blob {}", blob.id), why });
            }
            let meta = blob.needs_meta().then(|| {
                let range = BlobMeta::range(blob);
                if range.start > range.end
                    || range.end > self.size
                    || range.end - range.start > limits::CONTENTS
                {
                    return Err(RecodeError::from(NydusError::from(PartsError::Place("chunk table"))));
                }
                let bytes = read(self.file, range.start, range.end - range.start)?;
                Ok(BlobMeta::open(blob, &bytes).map_err(NydusError::from)?)
            });
            self.metas.push(meta.transpose()?);
        }
        Ok(self)
    }

    /// Returns the bytes of a chunk.
    fn chunk(&self, chunk: &Chunk, hash: format::index::Hash) -> Result<Option<Vec<u8>>, RecodeError> {
        let meta = self.metas.get(usize::from(chunk.blob)).and_then(Option::as_ref);
        let piece = match (chunk.piece, meta) {
            (Some(piece), _) => piece,
            (None, Some(meta)) => meta.piece(chunk).map_err(NydusError::from)?,
            (None, None) => return Ok(None),
        };
        if piece.begin > piece.end || piece.end > self.size || piece.end - piece.begin > limits::PIECE.into()
        {
            return Ok(None);
        }
        let packed = read(self.file, piece.begin, piece.end - piece.begin)?;
        Ok(decode::chunk(&piece, &packed, &Row { len: chunk.len, id: chunk.id }, hash))
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
            let bytes = source.chunk(&chunk, bootstrap.hash())?;
            let differs = || NydusError::Differs(format::name::printable(&member.path));
            tar.write(&bytes.ok_or_else(differs)?)?;
        }
    }
    Ok(())
}
