//! A tar made of a tree, for layers that are no tars themselves: members in the order in which they are told, headers as
//! [`write_header`] has them, two blocks of zeros at the end. The same members are always the same bytes.
//!
//! Zeros of a hole are said as such: who writes to a file leaves them out.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom, Write};

use format::tar::{Member, write_header};
use format::{Digest, DigestHasher, limits, name};

use super::RecodeError;
use crate::builder::read_all;

/// Block of a tar.
const BLOCK: usize = 512;

/// Zeros that are hashed at once.
const WINDOW: usize = 256 << 10;

/// The next of a tar.
#[derive(Debug, Clone, Copy)]
pub(super) enum Part<'a> {
    Bytes(&'a [u8]),
    /// So many zeros.
    Zeros(u64),
}

impl Part<'_> {
    /// Hands on its bytes, a piece at a time.
    pub(super) fn each(
        self,
        mut take: impl FnMut(&[u8]) -> Result<(), RecodeError>,
    ) -> Result<(), RecodeError> {
        let mut left = match self {
            Self::Bytes(bytes) => return take(bytes),
            Self::Zeros(len) => len,
        };
        while left > 0 {
            let now = left.min(WINDOW as u64);
            take(&[0; WINDOW][..usize::try_from(now).unwrap_or(WINDOW)])?;
            left -= now;
        }
        Ok(())
    }
}

/// A tar on its way; `F` takes its parts.
pub(super) struct TreeTar<F> {
    put: F,
    hasher: DigestHasher,
    len: u64,
    /// Longest that it may become.
    most: u64,
    header: Vec<u8>,
    /// Length of all headers.
    headers: u64,
}

impl<F: FnMut(Part<'_>) -> Result<(), RecodeError>> TreeTar<F> {
    pub(super) fn new(most: u64, put: F) -> Self {
        Self { put, hasher: DigestHasher::new(), len: 0, most, header: Vec::new(), headers: 0 }
    }

    /// Begins a member; as many bytes as it says are to follow.
    pub(super) fn member(&mut self, member: &Member) -> Result<(), RecodeError> {
        if member.xattrs.keys().any(|name| name.contains(&b'=')) {
            return Err(RecodeError::Inexpressible {
                what: name::printable(&member.path),
                why: "an extended attribute with \"=\" in its name",
            });
        }
        self.pad()?;
        let mut header = std::mem::take(&mut self.header);
        header.clear();
        write_header(member, &mut header);
        self.headers += header.len() as u64;
        if self.headers > limits::SKELETON {
            return Err(RecodeError::Limit { what: "the headers of the tar", limit: limits::SKELETON });
        }
        self.write(&header)?;
        self.header = header;
        Ok(())
    }

    /// Writes bytes of the member that was begun.
    pub(super) fn write(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.pass(bytes.len() as u64)?;
        self.hasher.update(bytes);
        (self.put)(Part::Bytes(bytes))
    }

    /// Writes zeros of the member that was begun.
    pub(super) fn zeros(&mut self, len: u64) -> Result<(), RecodeError> {
        self.pass(len)?;
        let zeros = Part::Zeros(len);
        zeros.each(|piece| {
            self.hasher.update(piece);
            Ok(())
        })?;
        (self.put)(zeros)
    }

    fn pass(&mut self, len: u64) -> Result<(), RecodeError> {
        self.len = self.len.saturating_add(len);
        if self.len > self.most {
            return Err(RecodeError::Limit { what: "the tar, for a blob of its length,", limit: self.most });
        }
        Ok(())
    }

    /// Ends the tar; returns its digest and its length.
    pub(super) fn finish(mut self) -> Result<(Digest, u64), RecodeError> {
        self.pad()?;
        self.write(&[0; 2 * BLOCK])?;
        Ok((self.hasher.finish(), self.len))
    }

    fn pad(&mut self) -> Result<(), RecodeError> {
        let part = usize::try_from(self.len % BLOCK as u64).unwrap_or(0); // below a block
        self.write(&[0; BLOCK][..(BLOCK - part) % BLOCK])
    }
}

/// Puts a blob into a file at a place, and compares it with what it should be: what a tar is made of is read in another order.
pub(super) fn keep(
    blob: impl Read,
    expected: Digest,
    size: u64,
    mut file: &File,
    place: u64,
) -> Result<(), RecodeError> {
    let (mut hasher, mut at) = (DigestHasher::new(), 0);
    file.seek(SeekFrom::Start(place)).map_err(RecodeError::Spool)?;
    read_all(blob, RecodeError::Read, |piece| {
        at += piece.len() as u64;
        if at > size {
            return Err(RecodeError::BlobLength { expected: size, found: None });
        }
        hasher.update(piece);
        file.write_all(piece).map_err(RecodeError::Spool)
    })?;
    if at < size {
        return Err(RecodeError::BlobLength { expected: size, found: Some(at) });
    }
    let found = hasher.finish();
    if found == expected { Ok(()) } else { Err(RecodeError::BlobDigest { expected, found }) }
}
