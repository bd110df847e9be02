//! A bootstrap to an index: a skeleton made of its entries, and the chunks as the blobs have them.
//!
//! Files are in the order of their first chunks: what are neighbours in a blob, so that they come with one request, are neighbours
//! in the index's segments. Those that the writer wants read first come before the others. Directories and
//! whatever has no bytes come before files, hard links after what they lead to.

use std::collections::BTreeSet;

use super::NydusError;
use super::bootstrap::{Bootstrap, Chunk, Listing};
use super::meta::BlobMeta;
use crate::digest::{DiffId, Digest};
use crate::index::{BlobAt, Chunk as Row, Codec, Contents, Entry, Hash, IndexError, Packing, Piece};
use crate::layer::{Layer, LayerError};
use crate::limits;
use crate::payload::SegmentSize;
use crate::skeleton::{MadeError, SkeletonMaker};

/// Chunks of an index: 60 bytes each, as long together as an index may be.
const CHUNKS: usize = (limits::INDEX / 60) as usize;

/// Why a bootstrap does not make an index.
#[derive(Debug, thiserror::Error)]
pub enum MakeError {
    /// It is damaged.
    #[error(transparent)]
    Nydus(#[from] NydusError),
    /// Only the meta of a blob says where its chunks are, and it is not there.
    #[error("what blob {0} says of its chunks is missing")]
    Meta(Digest),
    /// An attribute that no tar can hold.
    #[error("the Nydus image has an extended attribute with \"=\" in its name")]
    Attribute,
    /// Its entries do not make a skeleton.
    #[error("making a skeleton of the bootstrap")]
    Made(#[from] MadeError),
    /// Its parts do not make an index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// Its parts contradict each other.
    #[error(transparent)]
    Layer(#[from] LayerError),
}

/// The image that a bootstrap is of.
#[derive(Debug, Clone, Copy)]
pub struct Whose<'a> {
    /// SHA-256 of the layer that has the bootstrap.
    pub blob: Digest,
    /// Length of that layer.
    pub size: u64,
    /// How it is compressed.
    pub codec: Codec,
    /// What the image says its tar is.
    pub diff_id: DiffId,
    /// SHA-256 of the bootstrap.
    pub table: Digest,
    /// The blobs as the image's manifest has them; of one that is not here the bootstrap itself says how long it is.
    pub blobs: &'a [BlobAt],
    /// For each of [`Bootstrap::blobs`] its meta, where
    /// [`Blob::needs_meta`](super::bootstrap::Blob::needs_meta) asks for one.
    pub metas: &'a [Option<BlobMeta>],
    /// Size of a segment of the index.
    pub segment: SegmentSize,
}

impl Whose<'_> {
    fn layer(&self) -> (BlobAt, Codec) {
        (BlobAt { digest: self.blob, size: self.size }, self.codec)
    }
}

/// Returns the layer that a bootstrap makes.
pub fn layer<B: AsRef<[u8]>>(bootstrap: &Bootstrap<B>, whose: &Whose<'_>) -> Result<Layer, MakeError> {
    let list = bootstrap.list()?;
    let order = Order::of(bootstrap, &list, whose)?;
    let mut making = Making {
        bootstrap,
        list: &list,
        whose,
        skeleton: SkeletonMaker::new(whose.segment)?,
        chunks: Vec::new(),
        pieces: Vec::new(),
    };
    for n in order.others {
        making.member(n)?;
    }
    let mut ahead = 0;
    for (place, n) in order.files {
        making.member(n)?;
        if place.first == First::Yes {
            ahead = making.skeleton.segments();
        }
    }
    for n in order.links {
        making.member(n)?;
    }
    making.finish(ahead)
}

/// Returns the layer that a blob is: of itself it has no files.
pub fn nothing(whose: &Whose<'_>) -> Result<Layer, MakeError> {
    let contents = Contents {
        table: whose.table,
        ahead: 0,
        hash: Hash::Blake3,
        blobs: Vec::new(),
        pieces: Vec::new(),
        entries: Vec::new(),
    };
    let made = SkeletonMaker::new(whose.segment)?.finish()?;
    contents.layer(made, whose.diff_id, whose.layer(), Vec::new())
}

/// The entries in the order in which they are taken.
#[derive(Default)]
struct Order {
    /// Directories, and what else has no bytes.
    others: Vec<usize>,
    files: Vec<(Place, usize)>,
    links: Vec<usize>,
}

/// What files are ordered by.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Place {
    first: First,
    blob: u16,
    begin: u64,
    skip: u32,
}

/// Whether a file is to be read first.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
enum First {
    Yes,
    No,
}

impl Order {
    fn of<B: AsRef<[u8]>>(
        bootstrap: &Bootstrap<B>,
        list: &Listing<'_, B>,
        whose: &Whose<'_>,
    ) -> Result<Self, MakeError> {
        let mut order = Self::default();
        let ahead = list.prefetched();
        for n in 0..list.len() {
            if list.is_link(n) {
                order.links.push(n);
                continue;
            }
            let Some(chunk) = list.chunks(n)?.next().transpose()? else {
                order.others.push(n);
                continue;
            };
            let piece = piece(bootstrap, whose, &chunk)?;
            let first = if ahead.contains(n) { First::Yes } else { First::No };
            order.files.push((Place { first, blob: piece.blob, begin: piece.begin, skip: piece.skip }, n));
        }
        order.files.sort_unstable();
        Ok(order)
    }
}

/// Returns where a chunk is.
fn piece<B: AsRef<[u8]>>(
    bootstrap: &Bootstrap<B>,
    whose: &Whose<'_>,
    chunk: &Chunk,
) -> Result<Piece, MakeError> {
    if let Some(piece) = chunk.piece {
        return Ok(piece);
    }
    let number = usize::from(chunk.blob);
    match whose.metas.get(number) {
        Some(Some(meta)) => Ok(meta.piece(chunk)?),
        _ => Err(MakeError::Meta(bootstrap.blobs()[number].id)),
    }
}

/// What has been made of the entries so far.
struct Making<'a, B> {
    bootstrap: &'a Bootstrap<B>,
    list: &'a Listing<'a, B>,
    whose: &'a Whose<'a>,
    skeleton: SkeletonMaker,
    chunks: Vec<Row>,
    pieces: Vec<Piece>,
}

impl<B: AsRef<[u8]>> Making<'_, B> {
    /// Adds the nth entry and its chunks.
    fn member(&mut self, n: usize) -> Result<(), MakeError> {
        let member = self.list.member(n)?;
        if member.xattrs.keys().any(|name| name.contains(&b'=')) {
            return Err(MakeError::Attribute);
        }
        self.skeleton.member(&member)?;
        for chunk in self.list.chunks(n)? {
            let chunk = chunk?;
            if self.chunks.len() >= CHUNKS {
                return Err(NydusError::TooLarge { what: "number of chunks", limit: CHUNKS as u64 }.into());
            }
            self.pieces.push(piece(self.bootstrap, self.whose, &chunk)?);
            self.chunks.push(Row { len: chunk.len, id: chunk.id });
        }
        Ok(())
    }

    /// Returns where pieces begin that are inside gzip members.
    fn entries(&self) -> Result<Vec<Entry>, MakeError> {
        let inside = self.pieces.iter().filter(|piece| piece.packing == Packing::Inside);
        let places: BTreeSet<_> = inside.map(|piece| (piece.blob, piece.begin)).collect();
        let entry = |(blob, begin): (u16, u64)| {
            let meta = self.whose.metas.get(usize::from(blob) - 1).and_then(Option::as_ref);
            let entry = meta.and_then(|meta| meta.entry(blob, begin));
            entry.ok_or(NydusError::Damaged("a window of a tar.gz").into())
        };
        places.into_iter().map(entry).collect()
    }

    fn finish(self, ahead: u32) -> Result<Layer, MakeError> {
        let whose = self.whose;
        let blobs = self.bootstrap.blobs().iter().map(|blob| {
            let known = whose.blobs.iter().find(|known| known.digest == blob.id).copied();
            known.unwrap_or(BlobAt { digest: blob.id, size: blob.packed_size })
        });
        let contents = Contents {
            table: whose.table,
            ahead,
            hash: self.bootstrap.hash(),
            blobs: blobs.collect(),
            entries: self.entries()?,
            pieces: self.pieces,
        };
        contents.layer(self.skeleton.finish()?, whose.diff_id, whose.layer(), self.chunks)
    }
}
