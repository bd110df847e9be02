//! Where the table of contents of a layer is, and its bytes, checked.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Read};

use super::index::{Whose, layer};
use super::{
    CHECKSUM_OF_OLD, MANIFEST_CHECKSUM, MANIFEST_POSITION, POSITION_OF_OLD, READ_FIRST, TOC_DIGEST, TOC_NAME,
    TableError,
};
use crate::digest::{Digest, Hashed};
use crate::index::Codec;
use crate::layer::Layer;
use crate::limits;
use crate::tar::{Parser, Step};
use crate::unpack::Unpacked;

/// Length of the footer of eStargz, and of that of old ones.
const FOOTER: usize = 51;
const OLD_FOOTER: usize = 47;

/// What precedes the offset in the two footers, whose last 13 bytes are an empty block and an empty member's trailer.
const HEADER: &[u8] = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0";
const OLD_HEADER: &[u8] = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x16\0";

/// The footer of a layer whose table is in an image of its own, as a whole.
const ELSEWHERE: &[u8] =
    b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";

/// Length of that footer: enough of a blob's end to tell.
pub const ELSEWHERE_FOOTER: u64 = ELSEWHERE.len() as u64;

/// Most that is fetched from the end of a blob in one go, 1 MiB: the table of some 10,000 files, and the footer.
const MOST_GUESSED: u64 = 1 << 20;

/// Block of a tar.
const BLOCK: usize = 512;

/// Plain bytes before the table in its member: its headers.
const AROUND: usize = 64 << 10;

/// A table of contents as a layer's descriptor announces it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Announced {
    /// The digest by which the descriptor vouches for it.
    pub digest: Digest,
    /// Which format it is, and where it is in the blob.
    pub place: Place,
    /// Offset in the blob where what a start reads ends, if the descriptor says so; else 0. eStargz has a landmark for that.
    pub ahead: u64,
}

/// Where a table of contents is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place {
    /// eStargz: the footer says so. The digest is that of the plain table.
    Footer,
    /// zstd:chunked: the digest is that of the packed table.
    At {
        /// Offset in the blob of the packed table.
        offset: u64,
        /// Length of the packed table.
        packed: u64,
        /// Length of the plain table.
        plain: u64,
    },
}

impl Announced {
    /// Returns what the annotations of a layer's descriptor announce, if anything.
    pub fn by(annotations: &BTreeMap<String, String>) -> Option<Self> {
        let get = |keys: [&str; 2]| keys.iter().find_map(|key| annotations.get(*key));
        let position = get([MANIFEST_POSITION, POSITION_OF_OLD]);
        if let (Some(position), Some(sum)) = (position, get([MANIFEST_CHECKSUM, CHECKSUM_OF_OLD])) {
            let mut numbers = position.split(':').map(|number| number.parse().ok());
            let mut next = || numbers.next().flatten();
            let (offset, packed, plain, kind): (u64, _, _, u64) = (next()?, next()?, next()?, next()?);
            let place = Place::At { offset, packed, plain };
            let ahead = annotations.get(READ_FIRST).and_then(|end| end.parse().ok()).unwrap_or(0);
            return (kind == 1).then_some(Self { digest: sum.parse().ok()?, place, ahead });
        }
        let digest = annotations.get(TOC_DIGEST)?.parse().ok()?;
        Some(Self { digest, place: Place::Footer, ahead: 0 })
    }

    /// Returns the part of a blob of this length to fetch first: the table, or for eStargz what may hold it.
    pub fn first(&self, size: u64) -> Result<std::ops::Range<u64>, TableError> {
        match self.place {
            Place::Footer if size < ELSEWHERE.len() as u64 => {
                Err(TableError::Missing("the layer is too short for a footer"))
            }
            Place::Footer => Ok(size - size.min((size / 64).clamp(64 << 10, MOST_GUESSED))..size),
            Place::At { offset, packed, plain } => {
                bounded(packed.max(plain))?;
                let end = offset.checked_add(packed).filter(|end| *end <= size && packed > 0);
                Ok(offset..end.ok_or(TableError::Missing("its table is announced outside of the layer"))?)
            }
        }
    }

    /// Returns where what is before the footer ends, if that says that the table is in an image of its own; `tail` is what was
    /// fetched first.
    pub fn elsewhere(&self, tail: &[u8], size: u64) -> Option<u64> {
        (self.place == Place::Footer && tail.ends_with(ELSEWHERE))
            .then(|| size.checked_sub(ELSEWHERE.len() as u64))
            .flatten()
    }

    /// Returns the part of the blob that holds the table, given what was fetched first.
    pub fn whole(&self, tail: &[u8], size: u64) -> Result<std::ops::Range<u64>, TableError> {
        match self.place {
            Place::At { .. } => self.first(size),
            Place::Footer => {
                let (offset, footer) = footer(tail)?;
                let end = size - footer;
                if offset >= end {
                    return Err(TableError::Missing("its footer names a place outside of the layer"));
                }
                bounded(end - offset)?;
                Ok(offset..end)
            }
        }
    }

    /// Returns the layer that the table makes, out of the bytes of [`Announced::whole`], or of a blob that is nothing
    /// else. They are looked at as they arrive, and what is made of them is returned once their digest has been found right.
    pub fn layer(&self, packed: impl Read, whose: &Whose) -> Result<Layer, TableError> {
        let (made, found) = match self.place {
            Place::Footer => {
                let (table, len) = out_of_tar(packed)?;
                let mut table = Hashed::new(table);
                let made = layer(&mut table, whose);
                let (found, read) = table.finish()?;
                if read < len {
                    return Err(TableError::Missing("its table ends early"));
                }
                (made, found)
            }
            Place::At { plain, .. } => {
                let mut packed = Hashed::new(packed);
                let mut table = Unpacked::new(Codec::Zstd, &mut packed)?.take(plain); // bounded by `first`
                let made = layer(&mut table, whose);
                let more = table.into_inner().read(&mut [0]);
                let found = packed.finish()?.0;
                if made.is_ok() && found == self.digest && more? > 0 {
                    return Err(TableError::Missing("its table is longer than it is announced"));
                }
                (made, found)
            }
        };
        if found != self.digest {
            return Err(TableError::Digest { expected: self.digest, found });
        }
        made
    }
}

fn bounded(len: u64) -> Result<(), TableError> {
    if len <= limits::CONTENTS { Ok(()) } else { Err(TableError::TooLarge { len, limit: limits::CONTENTS }) }
}

/// Returns the offset that the footer at the end of these bytes names, and the footer's length.
fn footer(tail: &[u8]) -> Result<(u64, u64), TableError> {
    let read = |len: usize, header: &[u8]| {
        let footer = &tail[tail.len().checked_sub(len)?..];
        let rest = footer.strip_prefix(header)?;
        let (digits, magic) = rest.split_at_checked(16)?;
        let text =
            std::str::from_utf8(digits).ok().filter(|text| text.bytes().all(|b| b.is_ascii_hexdigit()))?;
        magic.starts_with(b"STARGZ").then_some((u64::from_str_radix(text, 16).ok()?, len as u64))
    };
    read(FOOTER, HEADER)
        .or_else(|| read(OLD_FOOTER, OLD_HEADER))
        .ok_or(TableError::Missing("the layer does not end like eStargz"))
}

/// Returns the file that is the table out of the gzip member around it, and its length.
fn out_of_tar(packed: impl Read) -> Result<(impl Read, u64), TableError> {
    let none = || TableError::Missing("there is no file where the table should be");
    let mut plain = Unpacked::new(Codec::Gzip, packed)?;
    let mut parser = Parser::new();
    for _ in 0..AROUND / BLOCK {
        let mut block = [0; BLOCK];
        plain.read_exact(&mut block).map_err(|error| match error.kind() {
            ErrorKind::UnexpectedEof => none(),
            _ => error.into(),
        })?;
        let mut headers = &block[..];
        while !headers.is_empty() {
            let (taken, step) = parser.step(headers)?;
            headers = &headers[taken..];
            let Step::Member(member) = step else { continue };
            if &*member.path != TOC_NAME.as_bytes() {
                return Err(TableError::Missing("there is another file where the table should be"));
            }
            bounded(member.payload)?;
            return Ok((plain.take(member.payload), member.payload)); // a header ends with its block
        }
    }
    Err(none())
}
