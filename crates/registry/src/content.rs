//! Bytes to be stored somewhere: in memory, in a file, or on their way from another place.
//!
//! Promises: what is read to its end has the digest it was announced with, or there is an error; of content that is on
//! its way no more is in memory than the piece that was read last.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use format::{Digest, DigestHasher};

use crate::blob::RangeReader;
use crate::budget::Priority;
use crate::error::Error;
use crate::layout::blocking;
use crate::limits;
use crate::manifest::Descriptor;
use crate::source::Source;

/// Bytes to be stored as a blob.
#[derive(Debug, Clone)]
pub struct Content {
    digest: Digest,
    size: u64,
    from: From,
}

#[derive(Debug, Clone)]
enum From {
    Memory(Bytes),
    File(Arc<File>),
    Source(Arc<Passing>),
}

/// Who hears how much of a blob has come.
pub(crate) trait Passes: std::fmt::Debug + Send + Sync {
    /// So many bytes of a blob have come.
    fn passed(&self, blob: &Digest, done: u64, total: u64);
}

#[derive(Debug)]
struct Passing {
    source: Source,
    /// Whether it goes to the host it comes from. Then no answer is left open while a piece is sent: a request that
    /// waits for its place in the host's budget must not wait for one that waits for it.
    back: bool,
    hears: Arc<dyn Passes>,
}

impl Content {
    /// Returns bytes in memory as content.
    pub fn bytes(bytes: Bytes) -> Self {
        Self { digest: Digest::of(&bytes), size: bytes.len() as u64, from: From::Memory(bytes) }
    }

    /// Returns a file as content; reads it once for its digest.
    pub async fn file(path: &Path) -> Result<Self, Error> {
        let target = path.to_owned();
        let (file, size) = blocking("opening a file to push", move || {
            let doing = |error| Error::io(format!("reading {}", target.display()), error);
            let file = File::open(&target).map_err(doing)?;
            let size = file.metadata().map_err(doing)?.len();
            Ok((file, size))
        })
        .await?;
        let mut content = Self { digest: Digest::of(b""), size, from: From::File(Arc::new(file)) };
        let mut pieces = content.pieces();
        while pieces.next(limits::PIECE).await?.is_some() {}
        content.digest = pieces.hasher.finish();
        Ok(content)
    }

    /// Returns a file as content whose digest and length are known.
    pub(crate) fn of_file(file: Arc<File>, digest: Digest, size: u64) -> Self {
        Self { digest, size, from: From::File(file) }
    }

    /// Returns a blob of another place as content. Nothing is asked for before it is read.
    pub(crate) fn passing(source: &Source, blob: &Descriptor, back: bool, hears: Arc<dyn Passes>) -> Self {
        let from = From::Source(Arc::new(Passing { source: source.clone(), back, hears }));
        Self { digest: blob.digest, size: blob.size, from }
    }

    /// Returns the digest.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    /// Returns the length in bytes.
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Begins to read it.
    pub(crate) fn pieces(&self) -> Pieces {
        Pieces {
            content: self.clone(),
            hasher: DigestHasher::new(),
            at: 0,
            last: Bytes::new(),
            reader: None,
            rest: Bytes::new(),
        }
    }
}

/// Content that is being read, from its beginning to its end.
pub(crate) struct Pieces {
    content: Content,
    hasher: DigestHasher,
    /// Where the piece begins that was read last.
    at: u64,
    last: Bytes,
    reader: Option<RangeReader>,
    /// What the reader gave beyond that piece.
    rest: Bytes,
}

impl Pieces {
    /// Returns the next bytes, as many as asked for unless the content ends; nothing at its end, where all of it is
    /// compared with the digest.
    pub(crate) async fn next(&mut self, len: u64) -> Result<Option<Bytes>, Error> {
        let at = self.end();
        let len = len.min(self.content.size - at);
        if len == 0 {
            return Ok(None);
        }
        let piece = match &self.content.from {
            From::Memory(bytes) => bytes.slice(index(at)..index(at + len)),
            From::File(file) => {
                let (file, digest) = (file.clone(), self.content.digest);
                blocking("reading a blob to push", move || {
                    let mut piece = vec![0; index(len)];
                    file.read_exact_at(&mut piece, at)
                        .map_err(|error| Error::io(format!("reading blob {digest}"), error))?;
                    Ok(piece.into())
                })
                .await?
            }
            From::Source(passing) => {
                let passing = passing.clone();
                let piece = self.gather(&passing, at, len).await?;
                passing.hears.passed(&self.content.digest, at + len, self.content.size);
                piece
            }
        };
        self.hasher.update(&piece);
        (self.at, self.last) = (at, piece.clone());
        Ok(Some(piece))
    }

    /// Returns bytes from a place on, at most so many: the next, or the end of what came last. Nothing where they were
    /// given away before.
    pub(crate) async fn from(&mut self, at: u64, len: u64) -> Result<Option<Bytes>, Error> {
        if at == self.end() {
            return self.next(len).await;
        }
        let skip = at.checked_sub(self.at).map(index);
        Ok(skip.filter(|skip| *skip < self.last.len()).map(|skip| self.last.slice(skip..)))
    }

    /// Compares what was read, which must be all, with the digest.
    pub(crate) fn verify(&self) -> Result<(), Error> {
        let found = self.hasher.clone().finish();
        let (digest, size) = (self.content.digest, self.content.size);
        if found == digest && self.end() == size {
            return Ok(());
        }
        Err(match &self.content.from {
            From::Source(passing) => Error::invalid(
                format!("blob {digest} of {}", passing.source),
                format!("what came has digest {found}"),
            ),
            _ => Error::invalid(format!("blob {digest}"), "it changed while it was read"),
        })
    }

    fn end(&self) -> u64 {
        self.at + self.last.len() as u64
    }

    async fn gather(&mut self, passing: &Passing, at: u64, len: u64) -> Result<Bytes, Error> {
        let (blob, size) = (self.content.digest, self.content.size);
        let mut reader = self.reader.take().unwrap_or_else(|| {
            let end = if passing.back { at + len } else { size };
            passing.source.read_range(&blob, size, at..end, Priority::Demand)
        });
        let mut piece = BytesMut::with_capacity(index(len));
        while (piece.len() as u64) < len {
            if self.rest.is_empty() {
                // A reader gives as many bytes as its range has, or fails.
                self.rest = reader.chunk().await?.ok_or_else(|| {
                    Error::invalid(format!("blob {blob} of {}", passing.source), "it ended early")
                })?;
            }
            let wanted = index(len) - piece.len();
            piece.extend_from_slice(&self.rest.split_to(wanted.min(self.rest.len())));
        }
        self.reader = Some(reader).filter(|_| !passing.back);
        Ok(piece.freeze())
    }
}

/// Lengths here are those of pieces in memory.
fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn pieces_go_on_and_back_within_the_last() {
        let content = Content::bytes(Bytes::from_static(b"0123456789"));
        let mut pieces = content.pieces();
        assert_eq!(pieces.from(0, 4).await.unwrap().as_deref(), Some(&b"0123"[..]));
        assert_eq!(pieces.from(2, 4).await.unwrap().as_deref(), Some(&b"23"[..]));
        assert_eq!(pieces.from(4, 4).await.unwrap().as_deref(), Some(&b"4567"[..]));
        assert_eq!(pieces.from(3, 4).await.unwrap(), None, "given away");
        assert_eq!(pieces.from(9, 4).await.unwrap(), None, "not read yet");
        assert!(pieces.verify().is_err(), "not all of it");
        assert_eq!(pieces.next(4).await.unwrap().as_deref(), Some(&b"89"[..]));
        assert_eq!(pieces.next(4).await.unwrap(), None);
        pieces.verify().unwrap();
        Content::bytes(Bytes::new()).pieces().verify().unwrap();
    }

    #[tokio::test]
    async fn a_file_that_changes_is_noticed() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), b"before").unwrap();
        let content = Content::file(file.path()).await.unwrap();
        assert_eq!((*content.digest(), content.size()), (Digest::of(b"before"), 6));
        std::fs::write(file.path(), b"behind").unwrap();
        let mut pieces = content.pieces();
        while pieces.next(4).await.unwrap().is_some() {}
        let error = pieces.verify().unwrap_err();
        assert!(error.to_string().contains("changed"), "{error}");
    }
}
