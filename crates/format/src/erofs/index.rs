//! The image of a layer to an index: a skeleton made of its members, and chunks that are ranges of the image as it is.
//!
//! Files are in the order of the tree. A file is cut where its segments end, and where its bytes lie apart. What is zero for long
//! is a hole, whether the image says so or has the zeros: mkfs.erofs has them once, and says that they are everywhere.

use super::disk::BLOCK;
use super::read::{Corrupt, Inode, LayerFiles, MemberError, Run};
use crate::digest::{ChunkId, DiffId, Digest};
use crate::index::{BlobAt, Chunk, Codec, Contents, Hash, IndexError, Packing, Piece, most_plain};
use crate::layer::{Layer, LayerError};
use crate::limits;
use crate::payload::{self, SegmentSize};
use crate::skeleton::{MadeError, SkeletonMaker};
use crate::tar::{Member, MemberKind};

/// What a chunk takes in an index, in bytes.
const CHUNK: u64 = 60;

/// Chunks of an index however short its layer is.
const FEW: u64 = (1 << 20) / CHUNK;

/// How much its files may have to be looked through: what the largest segments of a mount hold.
const MOST: u64 = (limits::SEGMENTS as u64) << 23;

/// Zeros that are a hole, in bytes: shorter ones cost less than the entry of one.
const HOLE: u64 = limits::SHARED_CHUNK;

/// Why an image does not make an index.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// It does not tell its members.
    #[error(transparent)]
    Member(#[from] MemberError),
    /// It begins with something that others may take it for.
    #[error("there is something before the superblock of the file system")]
    Begins,
    /// An attribute that no tar can hold.
    #[error("the file system has an extended attribute with \"=\" in its name")]
    Attribute,
    /// More than a limit allows.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// Its members do not make a skeleton.
    #[error("making a skeleton of the file system")]
    Made(#[from] MadeError),
    /// Its parts do not make an index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its parts contradict each other.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

impl From<Corrupt> for MakeError {
    fn from(corrupt: Corrupt) -> Self {
        MemberError::from(corrupt).into()
    }
}

/// The layer that an image is.
#[derive(Debug, Clone, Copy)]
pub struct Whose {
    /// SHA-256 of the blob, and so of what it is unpacked.
    pub blob: Digest,
    /// Length of the blob.
    pub size: u64,
    /// What the index names as its table.
    pub table: Digest,
    /// Size of a segment of the index.
    pub segment: SegmentSize,
}

/// Returns the layer that the image of one makes.
pub fn layer(files: &LayerFiles<'_>, whose: &Whose) -> Result<Layer, MakeError> {
    if !files.is_nothing_else() {
        return Err(MakeError::Begins);
    }
    let most = most_plain(whose.size).min(limits::LAYER).min(MOST);
    let mut making = Making {
        files,
        segment: whose.segment.bytes(),
        skeleton: SkeletonMaker::new(whose.segment)?,
        chunks: Vec::new(),
        pieces: Vec::new(),
        left: most,
        most,
        // An index may be as long as its layer, as one that is fetched.
        chunk_limit: (FEW + whose.size / CHUNK).min(limits::INDEX / CHUNK),
    };
    files.members(|member, inode| making.member(member, inode))?;
    let contents = Contents {
        table: whose.table,
        ahead: 0,
        hash: Hash::Blake3,
        blobs: Vec::new(),
        pieces: making.pieces,
        entries: Vec::new(),
    };
    let layer = (BlobAt { digest: whose.blob, size: whose.size }, Codec::Plain);
    contents.layer(making.skeleton.finish()?, DiffId::new(whose.blob), layer, making.chunks)
}

impl LayerFiles<'_> {
    /// Returns a segment of the layer that was made of it.
    pub fn segment(&self, layer: &Layer, segment: u32, out: &mut Vec<u8>) {
        let within = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
        let layout = layer.layout();
        out.clear();
        out.resize(within(layer.segment_len(segment)), 0);
        let base = layout.segment_size().start(segment);
        let pieces = layer.pieces().unwrap_or_default();
        for chunk in layout.cuts_of(segment) {
            // No chunk reaches over the end of a segment.
            let (at, piece) = (within(layout.cuts()[chunk].start - base), pieces[chunk]);
            let bytes = self.bytes(piece.begin, piece.end - piece.begin);
            out[at..at + bytes.len()].copy_from_slice(bytes);
        }
    }
}

/// What has been made of the members so far.
struct Making<'a, 'b> {
    files: &'a LayerFiles<'b>,
    segment: u64,
    skeleton: SkeletonMaker,
    chunks: Vec<Chunk>,
    pieces: Vec<Piece>,
    /// How many bytes files may have yet, and how many in all.
    left: u64,
    most: u64,
    /// How many chunks there may be.
    chunk_limit: u64,
}

impl Making<'_, '_> {
    /// Adds a member and its chunks.
    fn member(&mut self, member: &Member, inode: Option<&Inode>) -> Result<(), MakeError> {
        if member.xattrs.keys().any(|name| name.contains(&b'=')) {
            return Err(MakeError::Attribute);
        }
        let Some(inode) = inode else { return Ok(self.skeleton.member(member)?) };
        let data = self.data(inode)?;
        let payload = data.iter().map(|data| data.len).sum();
        if payload == inode.size {
            self.skeleton.member(member)?;
        } else {
            let pieces = pieces(&data);
            if pieces.len() > limits::SPARSE_PIECES {
                let limit = limits::SPARSE_PIECES as u64;
                return Err(MakeError::TooLarge { what: "the number of holes in a file", limit });
            }
            let kind = MemberKind::Sparse { size: inode.size, pieces: pieces.into() };
            self.skeleton.member(&Member { kind, payload, ..member.clone() })?;
        }
        let mut placed = 0;
        data.iter().try_for_each(|data| self.chunks(data, &mut placed))
    }

    /// Says that so many chunks more are too many.
    fn room_for(&self, more: usize) -> Result<(), MakeError> {
        let limit = self.chunk_limit;
        let fits = (self.chunks.len() + more) as u64 <= limit;
        if fits { Ok(()) } else { Err(MakeError::TooLarge { what: "the number of chunks", limit }) }
    }

    /// Returns what of a file is no hole.
    fn data(&mut self, inode: &Inode) -> Result<Vec<Data>, MakeError> {
        let (mut found, mut at) = (Found::default(), 0);
        for run in self.files.runs(inode)? {
            match run? {
                Run::Hole(len) => {
                    found.keep_zeros();
                    at += len;
                }
                Run::Bytes(begin, bytes) => {
                    let limit = self.most;
                    let left = self.left.checked_sub(bytes.len() as u64);
                    self.left = left.ok_or(MakeError::TooLarge { what: "the length of all files", limit })?;
                    let mut data = Data { at, begin, len: 0 };
                    for block in bytes.chunks(BLOCK) {
                        data.len = block.len() as u64;
                        found.block(data, block.iter().all(|byte| *byte == 0));
                        (data.at, data.begin) = (data.at + data.len, data.begin + data.len);
                    }
                    at = data.at;
                }
            }
            self.room_for(found.data.len())?;
        }
        found.keep_zeros();
        Ok(found.data)
    }

    /// Adds the chunks of bytes that lie together; `placed` is how many of their file have been.
    fn chunks(&mut self, data: &Data, placed: &mut u64) -> Result<(), MakeError> {
        let (mut begin, mut rest) = (data.begin, self.files.bytes(data.begin, data.len));
        while !rest.is_empty() {
            self.room_for(1)?;
            let room = self.segment - *placed % self.segment;
            let room = room.min(limits::PIECE.into()).min(rest.len() as u64);
            let len = u32::try_from(room).unwrap_or(limits::PIECE);
            let (now, later) = rest.split_at(len as usize);
            let end = begin + room;
            self.chunks.push(Chunk { len, id: ChunkId::of(now) });
            self.pieces.push(Piece { begin, end, skip: 0, blob: 0, packing: Packing::Plain });
            (begin, rest, *placed) = (end, later, *placed + room);
        }
        Ok(())
    }
}

/// Bytes of a file that lie together in the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Data {
    /// Offset in the file.
    at: u64,
    /// Offset in the image.
    begin: u64,
    len: u64,
}

impl Data {
    /// Adds it to a list, to the last one if it follows that.
    fn push(self, list: &mut Vec<Self>) {
        match list.last_mut() {
            Some(last) if (last.at + last.len, last.begin + last.len) == (self.at, self.begin) => {
                last.len += self.len;
            }
            _ => list.push(self),
        }
    }
}

/// What of a file is no hole.
#[derive(Default)]
struct Found {
    data: Vec<Data>,
    /// Zeros behind it, as long as they are too few for a hole.
    zeros: Vec<Data>,
    /// How many zeros are behind it.
    len: u64,
}

impl Found {
    fn block(&mut self, block: Data, is_zero: bool) {
        if !is_zero {
            self.keep_zeros();
            return block.push(&mut self.data);
        }
        self.len += block.len;
        if self.len < HOLE { block.push(&mut self.zeros) } else { self.zeros.clear() }
    }

    /// Takes zeros for bytes like any, if they are no hole: no more follow.
    fn keep_zeros(&mut self) {
        self.zeros.drain(..).for_each(|zeros| zeros.push(&mut self.data));
        self.len = 0;
    }
}

/// Returns where a sparse file has bytes.
fn pieces(data: &[Data]) -> Vec<payload::Piece> {
    let mut pieces: Vec<payload::Piece> = Vec::new();
    for Data { at, len, .. } in data {
        match pieces.last_mut() {
            Some(last) if last.at + last.len == *at => last.len += len,
            _ => pieces.push(payload::Piece { at: *at, len: *len }),
        }
    }
    pieces
}
