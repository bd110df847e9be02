//! The decoder table of a layer that has a table of contents of its own: where each chunk is.
//!
//! Made from that table ([`crate::stargz`]), kept on a node and never sent: whoever wants it has the layer's own. The
//! module page of [`super`] has the byte layout. An accepted table encodes to itself.
//!
//! The chunks of an eStargz or zstd:chunked layer are in its own blob, in the order of the files. Those of a Nydus image are
//! in blobs beside the layer that has the table, and a file that has twins or was put together from several versions
//! has them anywhere. So what a run of segments needs is a list of parts ([`Part`]), one for most.

use std::ops::Range;

use super::{Basis, Chunk, Codec, Facts, Index, IndexError, Source, hash_of, within};
use crate::digest::{ChunkId, DiffId, Digest};
use crate::layer::{Layer, LayerError};
use crate::limits;
use crate::skeleton::Made;
use crate::wire::{Fields, put};

const HEAD: usize = 92;
const BLOB_ROW: usize = 40;
const ROW: usize = 24;
const ENTRY_HEAD: usize = 16;

/// Bytes between two pieces that are fetched and passed over rather than asked around: at 100 Mbit/s they take 10 ms, as
/// long as a request to a registry nearby.
const GAP: u64 = 128 << 10;

/// How what holds a chunk is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Packing {
    /// Not at all.
    Plain,
    /// A gzip member.
    Gzip,
    /// A zstd frame.
    Zstd,
    /// An LZ4 block, without a frame.
    Lz4,
    /// A gzip stream that is entered in the middle, as an [`Entry`] says.
    Inside,
}

impl From<Codec> for Packing {
    fn from(codec: Codec) -> Self {
        match codec {
            Codec::Plain => Self::Plain,
            Codec::Gzip => Self::Gzip,
            Codec::Zstd => Self::Zstd,
        }
    }
}

/// What the chunks are hashed by.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Hash {
    /// SHA-256.
    Sha256,
    /// BLAKE3.
    Blake3,
    /// Not by themselves: what they are decoded from is ([`sealed_chunk`]).
    Sealed,
}

impl Hash {
    /// Returns the hash of a chunk by its bytes; nothing where these alone do not tell.
    pub fn of(self, bytes: &[u8]) -> Option<[u8; 32]> {
        match self {
            Self::Sha256 => Some(*Digest::of(bytes).as_bytes()),
            Self::Blake3 => Some(*blake3::hash(bytes).as_bytes()),
            Self::Sealed => None,
        }
    }

    const fn number(self) -> u32 {
        match self {
            Self::Sha256 => 0,
            Self::Blake3 => 1,
            Self::Sealed => 2,
        }
    }
}

/// Returns what names a chunk of which nothing is hashed but the range of the blob that it comes out of.
///
/// Decoding is a function of the range, of the bits of its first byte and of the window, so these are in it, too: otherwise a
/// window that lies would make other bytes under the same name, and so an index of the same identity. Where the range is
/// belongs to it as well: an index that says another place, where nothing of it can be, would be taken for this one.
pub fn sealed_chunk(
    packed: &Digest,
    place: Range<u64>,
    bits: u8,
    window: &Digest,
    skip: u32,
    len: u32,
) -> ChunkId {
    let mut hasher = blake3::Hasher::new_derive_key("floe sealed chunk v1");
    hasher.update(packed.as_bytes()).update(&place.start.to_le_bytes()).update(&place.end.to_le_bytes());
    hasher.update(&[bits]).update(window.as_bytes());
    hasher.update(&skip.to_le_bytes()).update(&len.to_le_bytes());
    ChunkId(*hasher.finalize().as_bytes())
}

/// Where a chunk is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the blob where a member, frame or block begins that holds it.
    pub begin: u64,
    /// Offset in the blob behind which nothing of it is.
    pub end: u64,
    /// Plain bytes from there to its first one.
    pub skip: u32,
    /// The blob: 0 the layer's own, n the nth of [`Contents::blobs`].
    pub blob: u16,
    /// How that is packed.
    pub packing: Packing,
}

impl Piece {
    /// Says whether whoever has decoded `before` gets to this one by going on.
    fn follows(&self, len: u32, before: &Self, len_before: u32, hash: Hash) -> bool {
        if self.blob != before.blob {
            return false;
        }
        if (self.begin, self.end, self.packing) != (before.begin, before.end, before.packing) {
            // Of what is sealed the last byte is kept, for the bits that the next one needs.
            return self.begin + u64::from(hash == Hash::Sealed) >= before.end && self.begin > before.begin;
        }
        let twin = self.skip == before.skip && len == len_before;
        twin || self.skip.checked_sub(before.skip).is_some_and(|further| further >= len_before)
    }
}

/// What it takes to begin inside a gzip member, between two blocks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// The blob, as a piece has it.
    pub blob: u16,
    /// Offset of the first byte that is needed.
    pub begin: u64,
    /// How many of that byte's highest bits are needed: 1..=7, or 0 for all of it.
    pub bits: u8,
    /// The output before the place, as [`Start`](super::Start) has it.
    pub window: Box<[u8]>,
}

impl Entry {
    fn place(&self) -> (u16, u64) {
        (self.blob, self.begin)
    }
}

/// A range of a blob that holds consecutive chunks, one after the other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// The blob: 0 the layer's own, n the nth of [`Contents::blobs`].
    pub blob: u16,
    /// The range.
    pub range: Range<u64>,
    /// How many chunks; 0 of a layer that has starts.
    pub(crate) chunks: usize,
}

/// A blob beside the layer that has the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobAt {
    /// SHA-256 of the blob.
    pub digest: Digest,
    /// Length of the blob.
    pub size: u64,
}

/// Where all chunks of a layer are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Contents {
    /// SHA-256 of the table this was made from, as the layer's descriptor names it.
    pub table: Digest,
    /// So many segments from the first one on hold what a start reads, as whoever made the layer says; 0 where nobody has.
    pub ahead: u32,
    /// What the chunks are hashed by.
    pub hash: Hash,
    /// Blobs beside the layer's own.
    pub blobs: Vec<BlobAt>,
    /// One per chunk.
    pub pieces: Vec<Piece>,
    /// Where pieces begin that are [`Packing::Inside`]: ascending by blob and offset, each used by one at least.
    pub entries: Vec<Entry>,
}

impl Contents {
    /// Returns the layer that has such a table: of this blob, and with this skeleton.
    pub(crate) fn layer<E: From<IndexError> + From<LayerError>>(
        self,
        made: Made,
        diff_id: DiffId,
        (blob, codec): (BlobAt, Codec),
        chunks: Vec<Chunk>,
    ) -> Result<Layer, E> {
        let facts = Facts {
            diff_id,
            basis: Basis::Contents,
            tar_len: made.tar_len,
            segment: made.layout.segment_size(),
            space: made.layout.space(),
            skeleton_len: made.facts.len,
            skeleton_hash: made.facts.hash,
            chunk_count: u32::try_from(chunks.len()).unwrap_or(u32::MAX), // `Index::new` compares
            chunks_hash: hash_of(&chunks),
        };
        let (starts, reach) = (Vec::new(), Vec::new());
        let source =
            Source { blob: blob.digest, size: blob.size, codec, starts, reach, contents: Some(self) };
        let index = Index::new(facts, made.packed, chunks, source)?;
        Ok(Layer::made(index, made.layout, made.tar_len)?)
    }

    /// Returns the parts that hold these chunks, in their order.
    pub(crate) fn parts(&self, chunks: Range<usize>, table: &[Chunk]) -> Vec<Part> {
        let mut parts: Vec<Part> = Vec::new();
        let mut last: Option<(&Piece, u32)> = None;
        for (piece, chunk) in self.pieces[chunks.clone()].iter().zip(&table[chunks]) {
            let goes_on = last.is_some_and(|(before, len)| {
                piece.follows(chunk.len, before, len, self.hash)
                    && piece.begin.saturating_sub(before.end) <= GAP
            });
            match parts.last_mut() {
                Some(part) if goes_on => {
                    part.range.end = piece.end;
                    part.chunks += 1;
                }
                _ => parts.push(Part { blob: piece.blob, range: piece.begin..piece.end, chunks: 1 }),
            }
            last = Some((piece, chunk.len));
        }
        parts
    }

    pub(super) fn encode(&self, source: &Source) -> Vec<u8> {
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX); // see `check`
        let mut out = Vec::with_capacity(self.encoded_len());
        out.extend_from_slice(source.blob.as_bytes());
        put(&mut out, source.size);
        put(&mut out, source.codec.number());
        out.extend_from_slice(self.table.as_bytes());
        put(&mut out, self.ahead);
        put(&mut out, self.hash.number());
        put(&mut out, count(self.blobs.len()));
        put(&mut out, count(self.pieces.len()));
        for blob in &self.blobs {
            out.extend_from_slice(blob.digest.as_bytes());
            put(&mut out, blob.size);
        }
        for piece in &self.pieces {
            put(&mut out, piece.begin);
            put(&mut out, piece.end);
            put(&mut out, piece.skip);
            let packing = match piece.packing {
                Packing::Plain => 0,
                Packing::Gzip => 1,
                Packing::Zstd => 2,
                Packing::Lz4 => 3,
                Packing::Inside => 4,
            };
            put(&mut out, u32::from(piece.blob) | packing << 16);
        }
        out
    }

    pub(super) fn decode(bytes: &[u8]) -> Result<Source, IndexError> {
        let short = IndexError::Corrupt("its table of pieces has the wrong length");
        let (mut fields, rest) = (Fields::new(bytes), bytes.get(HEAD..).ok_or(short.clone())?);
        let mut head = || {
            let (blob, size, codec) = (Digest::from_bytes(fields.bytes()?), fields.u64()?, fields.u32()?);
            let (table, ahead, hash) = (Digest::from_bytes(fields.bytes()?), fields.u32()?, fields.u32()?);
            Some((blob, size, codec, table, ahead, hash, fields.u32()?, fields.u32()?))
        };
        let (blob, size, codec, table, ahead, hash, blobs, count) = head().ok_or(short.clone())?;
        within("the number of blobs", blobs.into(), limits::BLOBS.into())?;
        let rows = rest.split_at_checked(blobs as usize * BLOB_ROW).ok_or(short.clone())?;
        let (blob_rows, _) = rows.0.as_chunks::<BLOB_ROW>();
        let (rows, after) = rows.1.as_chunks::<ROW>();
        if rows.len() as u64 != u64::from(count) || !after.is_empty() {
            return Err(short);
        }
        let hash = match hash {
            0 => Hash::Sha256,
            1 => Hash::Blake3,
            2 => Hash::Sealed,
            number => return Err(IndexError::Unsupported { what: "hash", number }),
        };
        let blob_at = |row: &[u8; BLOB_ROW]| {
            let mut fields = Fields::new(row);
            Some(BlobAt { digest: Digest::from_bytes(fields.bytes()?), size: fields.u64()? })
        };
        let blobs = blob_rows.iter().map(blob_at).collect::<Option<_>>().ok_or(short)?;
        let pieces = rows.iter().map(decode_piece).collect::<Result<_, _>>()?;
        let contents = Some(Self { table, ahead, hash, blobs, pieces, entries: Vec::new() });
        let codec = Codec::from_number(codec)?;
        Ok(Source { blob, size, codec, starts: Vec::new(), reach: Vec::new(), contents })
    }

    /// Returns where a piece begins that is inside a gzip member.
    pub(crate) fn entry(&self, piece: &Piece) -> Option<&Entry> {
        let found = self.entries.binary_search_by_key(&(piece.blob, piece.begin), Entry::place);
        found.ok().map(|n| &self.entries[n])
    }

    /// Returns the section of the entries; nothing where there are none.
    pub(super) fn encode_entries(&self) -> Option<Vec<u8>> {
        let mut out = Vec::with_capacity(self.entries_len());
        for entry in &self.entries {
            put(&mut out, entry.begin);
            put(&mut out, u32::from(entry.blob) | u32::from(entry.bits) << 16);
            put(&mut out, u32::try_from(entry.window.len()).unwrap_or(u32::MAX)); // see `check`
            out.extend_from_slice(&entry.window);
        }
        (!out.is_empty()).then_some(out)
    }

    pub(super) fn decode_entries(bytes: &[u8]) -> Result<Vec<Entry>, IndexError> {
        let (mut fields, mut entries) = (Fields::new(bytes), Vec::new());
        while let Some(begin) = fields.u64() {
            let mut read = || {
                let (of, len) = (fields.u32()?, fields.u32()?);
                let bits = u8::try_from(of >> 16).ok()?;
                let window = fields.slice(len as usize)?.into();
                Some(Entry { blob: (of & 0xffff) as u16, begin, bits, window })
            };
            entries.push(read().ok_or(IndexError::Corrupt("an entry ends early"))?);
        }
        if fields.is_empty() && !entries.is_empty() {
            Ok(entries)
        } else {
            Err(IndexError::Corrupt("its entries"))
        }
    }

    /// Checks that there is an entry for each piece that needs one, and no other.
    fn check_entries(&self) -> Result<(), IndexError> {
        let mut used = vec![false; self.entries.len()];
        for piece in self.pieces.iter().filter(|piece| piece.packing == Packing::Inside) {
            let found = self.entries.binary_search_by_key(&(piece.blob, piece.begin), Entry::place);
            used[found.map_err(|_| IndexError::Corrupt("a piece begins where nothing can"))?] = true;
        }
        let sane = |entry: &Entry| entry.bits <= 7 && entry.window.len() <= Source::MAX_WINDOW;
        let order = self.entries.is_sorted_by(|a, b| a.place() < b.place());
        if order && used.iter().all(|used| *used) && self.entries.iter().all(sane) {
            Ok(())
        } else {
            Err(IndexError::Corrupt("its entries"))
        }
    }

    /// Checks that every piece is in its blob, and that whoever decodes the chunks one after the other does not go
    /// back; or where they are in other blobs, or not packed, not so often that it is an attack.
    pub(super) fn check(&self, source: &Source, facts: &Facts, chunks: &[Chunk]) -> Result<(), IndexError> {
        let wrong = |what| Err(IndexError::Corrupt(what));
        if !source.starts.is_empty() || !source.reach.is_empty() {
            return wrong("it has two decoder tables");
        }
        if self.pieces.len() != chunks.len() {
            return wrong("its table of pieces is for another number of chunks");
        }
        if self.ahead > facts.segments() {
            return wrong("more segments are to be read ahead than there are");
        }
        within("the number of blobs", self.blobs.len() as u64, limits::BLOBS.into())?;
        self.check_entries()?;
        let sealed = |piece: &Piece| {
            piece.packing == Packing::Inside && piece.end.saturating_sub(piece.begin) <= limits::PIECE.into()
        };
        if self.hash == Hash::Sealed && !(self.blobs.is_empty() && self.pieces.iter().all(sealed)) {
            return wrong("its pieces cannot be hashed as they are packed");
        }
        // Twins are fetched as often as they are there, and are as long plain; small ones share what is packed as one.
        let mut budget = facts.space.saturating_mul(4).saturating_add(limits::INNER.into());
        let mut last: Option<(&Piece, u32)> = None;
        for (piece, chunk) in self.pieces.iter().zip(chunks) {
            within("the bytes before a piece", piece.skip.into(), limits::INNER.into())?;
            let Some(size) = source.blob_at(piece.blob).map(|blob| blob.size) else {
                return wrong("a piece is in a blob that it does not name");
            };
            if piece.begin >= piece.end || piece.end > size {
                return wrong("its pieces are out of range");
            }
            if last.is_some_and(|(before, len)| !piece.follows(chunk.len, before, len, self.hash)) {
                let cost = (piece.end - piece.begin).saturating_add(piece.skip.into());
                let may = !self.blobs.is_empty() || piece.packing == Packing::Plain;
                match budget.checked_sub(cost).filter(|_| may) {
                    Some(left) => budget = left,
                    None => return wrong("its pieces are out of order"),
                }
            }
            last = Some((piece, chunk.len));
        }
        Ok(())
    }

    pub(super) fn encoded_len(&self) -> usize {
        HEAD + self.blobs.len() * BLOB_ROW + self.pieces.len() * ROW + self.entries_len()
    }

    fn entries_len(&self) -> usize {
        self.entries.iter().map(|entry| ENTRY_HEAD + entry.window.len()).sum()
    }
}

fn decode_piece(row: &[u8; ROW]) -> Result<Piece, IndexError> {
    let mut fields = Fields::new(row);
    let mut read = || Some((fields.u64()?, fields.u64()?, fields.u32()?, fields.u32()?));
    let (begin, end, skip, of) = read().ok_or(IndexError::Corrupt("a piece ends early"))?;
    let packing = match of >> 16 {
        0 => Packing::Plain,
        1 => Packing::Gzip,
        2 => Packing::Zstd,
        3 => Packing::Lz4,
        4 => Packing::Inside,
        number => return Err(IndexError::Unsupported { what: "packing", number }),
    };
    Ok(Piece { begin, end, skip, blob: (of & 0xffff) as u16, packing })
}
