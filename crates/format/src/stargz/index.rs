//! A table of contents to an index: a skeleton made of its entries, and its pieces for chunks.

use std::io::Read;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;

use super::toc::Entry;
use super::{PREFETCH, TableError, entries, from_root};
use crate::digest::{ChunkId, DiffId, Digest};
use crate::index::{BlobAt, Chunk, Codec, Contents, Hash, Piece};
use crate::layer::Layer;
use crate::limits;
use crate::payload::SegmentSize;
use crate::rfc3339;
use crate::skeleton::SkeletonMaker;
use crate::tar::{Member, MemberKind};
use crate::tree::{Device, Xattrs};

/// Characters of a name that an error repeats.
const NAME: usize = 200;

/// The layer that a table is of.
#[derive(Debug, Clone, Copy)]
pub struct Whose {
    /// SHA-256 of the blob.
    pub blob: Digest,
    /// Length of the blob.
    pub size: u64,
    /// How it is compressed.
    pub codec: Codec,
    /// What the image says its tar is.
    pub diff_id: DiffId,
    /// Digest of the table, as the layer's descriptor has it.
    pub table: Digest,
    /// Offset in the blob where the table begins, and so what is before it ends.
    pub end: u64,
    /// Offset in the blob up to which a start reads, or 0; [`PREFETCH`] says the same in the table.
    pub ahead: u64,
    /// Size of a segment of the index.
    pub segment: SegmentSize,
}

/// Returns the layer that a table of contents makes. Entries are taken as they arrive, so what is held is the index.
pub fn layer(json: impl Read, whose: &Whose) -> Result<Layer, TableError> {
    let mut made = Made::new(whose)?;
    entries::each(json, |entry| made.entry(entry))?;
    made.finish(whose)
}

/// A piece as the table has it: where it begins, and plain bytes before it.
struct Begins {
    offset: u64,
    skip: u32,
    /// Where the table says that the file has ended, if it does.
    end: Option<u64>,
}

/// A file whose pieces are being read.
struct File {
    name: String,
    size: u64,
    /// Bytes of the pieces so far.
    at: u64,
    /// Of the whole file, as the table has it.
    digest: String,
    /// Where in the blob it has ended, if the table says so.
    end: Option<u64>,
}

/// What has been made of the entries so far.
struct Made {
    skeleton: SkeletonMaker,
    file: Option<File>,
    chunks: Vec<Chunk>,
    begins: Vec<Begins>,
    entries: u64,
    /// Where in the blob what is read first ends, and so many segments that is.
    read_first: u64,
    ahead: u32,
}

impl Made {
    fn new(whose: &Whose) -> Result<Self, TableError> {
        Ok(Self {
            skeleton: SkeletonMaker::new(whose.segment)?,
            file: None,
            chunks: Vec::new(),
            begins: Vec::new(),
            entries: 0,
            read_first: whose.ahead,
            ahead: 0,
        })
    }

    /// Adds an entry: a member of the tar, or a further piece of the one before.
    fn entry(&mut self, entry: &Entry) -> Result<(), TableError> {
        self.entries += 1;
        if self.entries > limits::ENTRIES {
            return Err(TableError::TooLarge { len: self.entries, limit: limits::ENTRIES });
        }
        if entry.kind == "chunk" {
            return self.piece(entry);
        }
        self.close()?;
        let member = self.member(entry)?;
        if member.payload == 0 {
            return Ok(());
        }
        self.file = Some(File {
            name: entry.name.clone(),
            size: member.payload,
            at: 0,
            digest: entry.digest.clone(),
            end: natural(entry.end_offset).filter(|end| *end > 0),
        });
        self.piece(entry)
    }

    /// Adds a member; its bytes are what the pieces say.
    fn member(&mut self, entry: &Entry) -> Result<Member, TableError> {
        let member = member(entry)?;
        if from_root(entry.name.as_bytes()) == PREFETCH.as_bytes() {
            self.ahead = self.skeleton.segments();
        }
        self.skeleton.member(&member)?;
        Ok(member)
    }

    /// Adds a piece of a file, which begins where the one before has ended.
    fn piece(&mut self, piece: &Entry) -> Result<(), TableError> {
        let Some(file) = &mut self.file else { return Err(at_fault(piece, "a piece without a file")) };
        let wrong = |why| TableError::Entry { name: beginning(&file.name), why };
        if natural(piece.chunk_offset) != Some(file.at) {
            return Err(wrong("its pieces do not follow each other"));
        }
        let left = file.size - file.at;
        let stated = natural(piece.chunk_size).ok_or_else(|| wrong("a piece of less than nothing"))?;
        let len = if stated == 0 { left } else { stated };
        if len == 0 || len > left {
            return Err(wrong("its pieces are longer than it is"));
        }
        let short = u32::try_from(len).ok().filter(|len| *len <= limits::PIECE);
        let short = short.ok_or_else(|| wrong("a piece of more than 16 MiB"))?;
        // Where a file is one piece, zstd:chunked names only the file's digest.
        let whole = piece.chunk_digest.is_empty() && len == file.size;
        let digest = if whole { &file.digest } else { &piece.chunk_digest };
        let digest: Digest = digest.parse().map_err(|_| wrong("a piece without SHA-256"))?;
        let offset = natural(piece.offset).ok_or_else(|| wrong("a piece before the layer"))?;
        let skip = natural(piece.inner_offset).and_then(|skip| u32::try_from(skip).ok());
        let skip = skip
            .filter(|skip| *skip <= limits::INNER)
            .ok_or_else(|| wrong("a piece too deep in its member"))?;
        if offset < self.read_first {
            self.ahead = self.skeleton.segments();
        }
        self.chunks.push(Chunk { len: short, id: ChunkId(*digest.as_bytes()) });
        self.begins.push(Begins { offset, skip, end: file.end.filter(|_| len == left) });
        file.at += len;
        Ok(())
    }

    /// Says that the pieces of a file have been read.
    fn close(&mut self) -> Result<(), TableError> {
        match self.file.take() {
            Some(file) if file.at < file.size => Err(TableError::Entry {
                name: beginning(&file.name),
                why: "its pieces are shorter than it is",
            }),
            _ => Ok(()),
        }
    }

    fn finish(mut self, whose: &Whose) -> Result<Layer, TableError> {
        self.close()?;
        let made = self.skeleton.finish()?;
        let mut pieces = Vec::with_capacity(self.begins.len());
        let mut next = whose.end; // where the member or frame after the one in hand begins
        for (n, begins) in self.begins.iter().enumerate().rev() {
            if let Some(after) = self.begins.get(n + 1).filter(|after| after.offset != begins.offset) {
                next = after.offset;
            }
            let end = begins.end.map_or(next, |end| end.min(next));
            let packing = whose.codec.into();
            pieces.push(Piece { begin: begins.offset, end, skip: begins.skip, blob: 0, packing });
        }
        pieces.reverse();
        let (table, ahead) = (whose.table, self.ahead);
        let contents =
            Contents { table, ahead, hash: Hash::Sha256, blobs: Vec::new(), pieces, entries: Vec::new() };
        let layer = (BlobAt { digest: whose.blob, size: whose.size }, whose.codec);
        contents.layer(made, whose.diff_id, layer, self.chunks)
    }
}

/// Names the entry at fault, by the beginning of a name that may be anything.
fn at_fault(entry: &Entry, why: &'static str) -> TableError {
    TableError::Entry { name: beginning(&entry.name), why }
}

/// Returns as much of a name as an error repeats.
fn beginning(name: &str) -> String {
    let end = name.char_indices().nth(NAME).map_or(name.len(), |(end, _)| end);
    name[..end].to_owned()
}

/// Returns what an entry says of a member.
fn member(entry: &Entry) -> Result<Member, TableError> {
    let wrong = |why| at_fault(entry, why);
    let link = || match entry.link_name.as_bytes() {
        link if link.is_empty() || link.contains(&0) => Err(wrong("a link without target")),
        link => Ok(link.into()),
    };
    let device = || {
        let part = |n: i64, bits: u32| u32::try_from(n).ok().filter(|n| n >> bits == 0);
        let device = part(entry.dev_major, 12).zip(part(entry.dev_minor, 20));
        device
            .map(|(major, minor)| Device { major, minor })
            .ok_or_else(|| wrong("a device number out of range"))
    };
    let kind = match &entry.kind[..] {
        "dir" => MemberKind::Dir,
        "reg" => MemberKind::File,
        "symlink" => MemberKind::Symlink(link()?),
        "hardlink" => MemberKind::Link(link()?),
        "char" => MemberKind::Char(device()?),
        "block" => MemberKind::Block(device()?),
        "fifo" => MemberKind::Fifo,
        _ => return Err(wrong("a kind of entry that nobody has defined")),
    };
    if entry.name.is_empty() || entry.name.len() > limits::PATH || entry.name.contains('\0') {
        return Err(wrong("a name that no file can have"));
    }
    let id = |n: i64| u32::try_from(n).map_err(|_| wrong("an owner out of range"));
    let payload = match kind {
        MemberKind::File => natural(entry.size).ok_or_else(|| wrong("a length below zero"))?,
        _ => 0,
    };
    if payload > limits::LAYER {
        return Err(wrong("a length no layer can have"));
    }
    Ok(Member {
        path: entry.name.as_bytes().into(),
        kind,
        mode: u16::try_from(entry.mode & 0o7777).unwrap_or(0),
        uid: id(entry.uid)?,
        gid: id(entry.gid)?,
        mtime: rfc3339::read(&entry.modtime).ok_or_else(|| wrong("a time that is none"))?,
        xattrs: xattrs(entry)?,
        plain: 0,
        payload,
    })
}

fn xattrs(entry: &Entry) -> Result<Xattrs, TableError> {
    let wrong = |why| at_fault(entry, why);
    let read = |(name, value): (&String, &String)| {
        if name.is_empty() || name.contains(['=', '\0']) {
            return Err(wrong("an attribute without a name"));
        }
        let value = BASE64.decode(value).map_err(|_| wrong("an attribute that is not base64"))?;
        Ok((name.as_bytes().into(), value.into()))
    };
    Ok(Arc::new(entry.xattrs.iter().map(read).collect::<Result<_, _>>()?))
}

fn natural(n: i64) -> Option<u64> {
    u64::try_from(n).ok()
}
