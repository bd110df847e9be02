//! A zTOC to an index: a skeleton made of its files, and for chunks what each file has in each span.

use std::sync::Arc;

use super::SociError;
use super::flat::{Flat, Table};
use super::ztoc::{Span, Ztoc};
use crate::digest::{DiffId, Digest};
use crate::index::{BlobAt, Chunk, Codec, Contents, Entry, Hash, Packing, Piece, sealed_chunk};
use crate::layer::Layer;
use crate::limits;
use crate::payload::SegmentSize;
use crate::rfc3339;
use crate::skeleton::SkeletonMaker;
use crate::tar::{Member, MemberKind};
use crate::tree::{Device, Xattrs};

/// Bytes of a name that an error repeats.
const NAME: usize = 200;

/// A tar's header takes at least this, and what follows it begins at a multiple.
const BLOCK: u64 = 512;

/// Numbers of the fields of a file, as `ztoc.fbs` has them.
mod field {
    pub(super) const NAME: usize = 0;
    pub(super) const KIND: usize = 1;
    pub(super) const OFFSET: usize = 2;
    pub(super) const SIZE: usize = 3;
    pub(super) const LINK: usize = 4;
    pub(super) const MODE: usize = 5;
    pub(super) const UID: usize = 6;
    pub(super) const GID: usize = 7;
    pub(super) const TIME: usize = 10;
    pub(super) const MAJOR: usize = 11;
    pub(super) const MINOR: usize = 12;
    pub(super) const RECORDS: usize = 13;

    pub(super) const KEY: usize = 0;
    pub(super) const VALUE: usize = 1;
}

/// The layer that a zTOC is of.
#[derive(Debug, Clone, Copy)]
pub struct Whose {
    /// SHA-256 of the blob.
    pub blob: Digest,
    /// Length of the blob.
    pub size: u64,
    /// What the image says its tar is.
    pub diff_id: DiffId,
    /// SHA-256 of the zTOC, as the SOCI index has it.
    pub table: Digest,
    /// Size of a segment of the index.
    pub segment: SegmentSize,
}

/// Returns the layer that a zTOC makes.
pub fn layer(raw: &[u8], whose: &Whose) -> Result<Layer, SociError> {
    if raw.len() as u64 > limits::CONTENTS {
        return Err(SociError::TooLarge { what: "the length", limit: limits::CONTENTS });
    }
    let flat = Flat::new(raw);
    let ztoc = Ztoc::open(&flat, whose.size)?;
    let mut making = Making {
        spans: &ztoc.spans,
        windows: ztoc.spans.iter().map(|span| Digest::of(span.window)).collect(),
        used: vec![false; ztoc.spans.len()],
        skeleton: SkeletonMaker::new(whose.segment)?,
        chunks: Vec::new(),
        pieces: Vec::new(),
    };
    let mut at = 0; // where the next header can begin
    for file in ztoc.files.tables() {
        let member = member(&file?)?;
        let end = member.plain.checked_add(member.payload).filter(|end| *end <= ztoc.plain);
        let sane = member.plain.is_multiple_of(BLOCK) && member.plain >= at + BLOCK;
        let Some(end) = end.filter(|_| sane) else {
            return Err(at_fault(&member.path, "its bytes are out of order, or not in the tar"));
        };
        at = end.next_multiple_of(BLOCK);
        making.file(&member)?;
    }
    making.finish(whose)
}

/// What has been made of the files so far.
struct Making<'a> {
    spans: &'a [Span<'a>],
    /// Of each span, the hash of its window.
    windows: Vec<Digest>,
    /// The spans that a file has a byte in.
    used: Vec<bool>,
    skeleton: SkeletonMaker,
    chunks: Vec<Chunk>,
    pieces: Vec<Piece>,
}

impl Making<'_> {
    /// Adds a member, and a chunk for what it has in each span.
    fn file(&mut self, member: &Member) -> Result<(), SociError> {
        self.skeleton.member(member)?;
        let (mut at, end) = (member.plain, member.plain + member.payload);
        while at < end {
            let n = self.spans.partition_point(|span| span.plain <= at) - 1; // the first begins at 0
            let past = self.spans.get(n + 1).map_or(u64::MAX, |next| next.plain);
            let len = end.min(past) - at;
            let len = u32::try_from(len).unwrap_or(limits::PIECE).min(limits::PIECE);
            let span = &self.spans[n];
            let skip = u32::try_from(at - span.plain).ok().filter(|skip| *skip <= limits::INNER);
            let skip = skip.ok_or(at_fault(&member.path, "it lies more than 64 MiB deep in a span"))?;
            let place = span.begin..span.end;
            let id = sealed_chunk(&span.digest, place, span.bits, &self.windows[n], skip, len);
            self.chunks.push(Chunk { len, id });
            let (begin, end) = (span.begin, span.end);
            self.pieces.push(Piece { begin, end, skip, blob: 0, packing: Packing::Inside });
            self.used[n] = true;
            at += u64::from(len);
        }
        Ok(())
    }

    fn finish(self, whose: &Whose) -> Result<Layer, SociError> {
        let used = self.spans.iter().zip(&self.used).filter(|(_, used)| **used);
        let entries: Vec<Entry> = used.map(|(span, _)| span.entry()).collect::<Result<_, _>>()?;
        let contents = Contents {
            table: whose.table,
            ahead: 0,
            hash: Hash::Sealed,
            blobs: Vec::new(),
            pieces: self.pieces,
            entries,
        };
        let layer = (BlobAt { digest: whose.blob, size: whose.size }, Codec::Gzip);
        contents.layer(self.skeleton.finish()?, whose.diff_id, layer, self.chunks)
    }
}

/// Names the file at fault, by the beginning of a name that may be anything.
fn at_fault(name: &[u8], why: &'static str) -> SociError {
    SociError::Entry { name: String::from_utf8_lossy(&name[..name.len().min(NAME)]).into_owned(), why }
}

/// Returns what is said of a member of the tar.
fn member(file: &Table<'_, '_>) -> Result<Member, SociError> {
    let path = file.bytes(field::NAME)?;
    let wrong = |why| at_fault(path, why);
    if path.is_empty() || path.len() > limits::PATH || path.contains(&0) {
        return Err(wrong("a name that no file can have"));
    }
    let link = || match file.bytes(field::LINK)? {
        link if link.is_empty() || link.len() > limits::PATH || link.contains(&0) => {
            Err(wrong("a link without a target that can be"))
        }
        link => Ok(link.into()),
    };
    let device = || {
        let part = |n: u64, bits: u32| u32::try_from(n).ok().filter(|n| n >> bits == 0);
        let parts = part(file.long(field::MAJOR)?, 12).zip(part(file.long(field::MINOR)?, 20));
        parts.map(|(major, minor)| Device { major, minor }).ok_or(wrong("a device number out of range"))
    };
    let kind = match file.bytes(field::KIND)? {
        b"dir" => MemberKind::Dir,
        b"reg" => MemberKind::File,
        b"symlink" => MemberKind::Symlink(link()?),
        b"hardlink" => MemberKind::Link(link()?),
        b"char" => MemberKind::Char(device()?),
        b"block" => MemberKind::Block(device()?),
        b"fifo" => MemberKind::Fifo,
        _ => return Err(wrong("a kind of file that nobody has defined")),
    };
    let payload = file.long(field::SIZE)?;
    if payload > 0 && kind != MemberKind::File {
        return Err(wrong("it is no file, and has bytes"));
    }
    let time = std::str::from_utf8(file.bytes(field::TIME)?).ok().filter(|time| !time.is_empty());
    Ok(Member {
        path: path.into(),
        kind,
        mode: u16::try_from(file.long(field::MODE)? & 0o7777).unwrap_or(0),
        uid: u32::from_le_bytes(file.number(field::UID)?.unwrap_or_default()),
        gid: u32::from_le_bytes(file.number(field::GID)?.unwrap_or_default()),
        mtime: time.and_then(rfc3339::read).ok_or(wrong("a time that is none"))?,
        xattrs: xattrs(file, path)?,
        plain: file.long(field::OFFSET)?,
        payload,
    })
}

/// Returns the extended attributes among the records of a member's pax header.
fn xattrs(file: &Table<'_, '_>, path: &[u8]) -> Result<Xattrs, SociError> {
    let mut xattrs = Xattrs::default();
    for record in file.vector(field::RECORDS)?.tables() {
        let record = record?;
        let (key, value) = (record.bytes(field::KEY)?, record.bytes(field::VALUE)?);
        if key.starts_with(b"GNU.sparse.") {
            // Where its pieces are is said in the tar only.
            return Err(at_fault(path, "a sparse file, of which too little is told"));
        }
        let Some(name) = key.strip_prefix(b"SCHILY.xattr.") else { continue };
        if name.is_empty() || name.contains(&b'=') || name.contains(&0) {
            return Err(at_fault(path, "an attribute without a name"));
        }
        Arc::make_mut(&mut xattrs).insert(name.into(), value.into());
    }
    Ok(xattrs)
}
