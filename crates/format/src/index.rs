//! The layer index: what lets a layer's files be read before the layer has arrived.
//!
//! An index states *facts* about the layer's plain bytes (the tar) and says *where* in one compressed blob to
//! find them. Its identity covers the facts alone: a wrong decoder table cannot make wrong bytes pass, for
//! every chunk is hashed, so one layer has one [`IndexId`] however it was compressed.
//!
//! Decoding is bounded: every length is compared with the limits before memory is taken for it, and an
//! accepted file encodes to itself. Whether skeleton and chunk table agree is for [`crate::layer`] to check.
//!
//! # File, version 1
//!
//! Integers are little-endian; nothing is aligned; there is no gap between the parts.
//!
//! ```text
//!  0   8  magic "FLOEIDX\0"
//!  8   4  version: 1
//! 12  32  BLAKE3 of every byte from offset 44 to the end
//! 44   4  number of sections, at most 64
//! 48  32  per section, ascending by kind:
//!           kind u32 · flags u32 (1 critical, 2 packed by zstd) · offset in the file u64 · stored length u64 · plain length u64
//!     ..  the sections' stored bytes, in the same order, back to back up to the end of the file
//! ```
//!
//! A reader refuses a file with a critical section it does not know, and keeps ignorable ones as they are, so
//! that passing an index on strips nothing. `plain length` is that of the section's contents: `stored length`
//! unless the section is packed.
//!
//! | kind | flags | section | contents |
//! |---|---|---|---|
//! | 1 | critical | facts | 128 bytes, below |
//! | 2 | critical, packed | skeleton | see [`crate::skeleton`] |
//! | 3 | critical | chunks | per chunk in payload order: length u32 · hash of its bytes |
//! | 4 | critical | source | decoder table, below |
//! | 5 | critical | contents | in place of 4, where the layer has a table of contents of its own; below |
//! | 6 | critical | entries | where pieces of 5 are inside gzip members; below |
//!
//! ```text
//! facts                                            source
//!   0  32  diffID (SHA-256 of the tar)               0  32  SHA-256 of the blob
//!  32   8  length of the tar                        32   8  length of the blob
//!  40   1  segment size, as a power of two          40   4  codec: 0 plain, 1 gzip, 2 zstd
//!  41   1  basis: 0 the tar, 1 a table of contents
//!  42   2  zero
//!  44   8  length of the payload space              44   4  number of starts
//!  52   8  length of the plain skeleton             48   4  number of segments
//!  60  32  BLAKE3 of the plain skeleton             52  24  per start: plain u64 · packed u64 · bits u32 · window length u32
//!  92   4  number of chunks                         ..  12  per segment: number of its start u32 · packed end u64
//!  96  32  BLAKE3 of the chunks section             ..      the windows, back to back, in order of the starts
//! ```
//!
//! ```text
//! contents
//!   0  32  SHA-256 of the blob          40   4  codec, as above
//!  32   8  length of the blob           44  32  SHA-256 of the table of contents
//!  76   4  segments that a start reads, from the first one on
//!  80   4  hash of the chunks: 0 SHA-256, 1 BLAKE3, 2 of what they are packed in (`sealed_chunk`)
//!  84   4  number of blobs beside the layer's own
//!  88   4  number of pieces: that of the chunks
//!  92  40  per blob: SHA-256 · length u64
//!  ..  24  per chunk: where it begins in its blob u64 · where it has ended u64 · plain bytes to skip u32 ·
//!          number of the blob u16, 0 for the layer's own · packing u16: as codec, or 3 for an LZ4 block, or 4: see entries
//! ```
//!
//! A piece of packing 4 begins where one of the *entries* does, between two deflate blocks. They ascend by blob and offset:
//!
//! ```text
//! ..  16  per entry: offset u64 · number of the blob u16 · bits u16 · length of the window u32
//! ..      and that window, as those of starts
//! ```
//!
//! Of a layer with *contents* the basis is 1: its skeleton is made of the table of contents and is not the tar's, its
//! chunks end where that table says, and are hashed as it has them. The diffID is then what the image says and cannot be
//! proved by this index.
//!
//! Identity: BLAKE3 in key-derivation mode, context "floe layer index facts v1", over the facts section.

mod contents;
mod source;

pub use contents::{BlobAt, Contents, Entry, Hash, Packing, Part, Piece, sealed_chunk};
pub use source::{Codec, Reach, Source, Start, most_plain};

use crate::digest::{ChunkId, DiffId, Digest, IndexId};
use crate::limits;
use crate::payload::SegmentSize;
use crate::skeleton::{SkeletonError, SkeletonFacts, SkeletonReader};
use crate::wire::{Fields, put};

/// The media type of an encoded index in a registry.
pub const MEDIA_TYPE: &str = "application/vnd.floe.layer.index.v1";

const MAGIC: &[u8; 8] = b"FLOEIDX\0";
const VERSION: u32 = 1;
const CONTEXT: &str = "floe layer index facts v1";

/// Where the checksummed part begins.
const BODY: usize = 44;
const ENTRY: usize = 32;
const FACTS: usize = 128;
const CHUNK_ROW: usize = 36;

const CRITICAL: u32 = 1;
const ZSTD: u32 = 2;

/// Why bytes are not an index, or parts do not make one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Does not begin like an index.
    #[error("not a layer index")]
    Foreign,
    /// Made by a newer program, or by one with other ideas.
    #[error("layer index needs a newer program: {what} {number} is unknown")]
    Unsupported {
        /// What is unknown.
        what: &'static str,
        /// Its number.
        number: u32,
    },
    /// Damaged, cut short, or contradicts itself.
    #[error("layer index is corrupt: {0}")]
    Corrupt(&'static str),
    /// More than a limit allows.
    #[error("layer index: {what} of {value} exceeds the limit of {limit}")]
    Limit {
        /// What is too large.
        what: &'static str,
        /// How large it is.
        value: u64,
        /// The limit.
        limit: u64,
    },
}

/// What an index is made of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Basis {
    /// The layer's tar: its skeleton verbatim, chunks cut by [`crate::payload`], BLAKE3.
    Tar,
    /// A table of contents that came with the layer: a skeleton made of that, its pieces, its hashes.
    Contents,
}

/// What an index says about the layer's plain bytes; the only input of its identity.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// SHA-256 of the tar.
    pub diff_id: DiffId,
    /// What the index is made of.
    pub basis: Basis,
    /// Length of the tar.
    pub tar_len: u64,
    /// Size of a segment.
    pub segment: SegmentSize,
    /// Length of the payload space.
    pub space: u64,
    /// Length of the plain skeleton.
    pub skeleton_len: u64,
    /// BLAKE3 of the plain skeleton.
    pub skeleton_hash: [u8; 32],
    /// Number of chunks.
    pub chunk_count: u32,
    /// BLAKE3 of the chunk table as it is stored.
    pub chunks_hash: [u8; 32],
}

impl Facts {
    /// Returns the identity these facts give an index.
    pub fn id(&self) -> IndexId {
        IndexId::from_bytes(blake3::derive_key(CONTEXT, &self.encode()))
    }

    /// Returns how many segments the payload space has.
    pub fn segments(&self) -> u32 {
        let size = self.segment.bytes();
        u32::try_from(self.space.div_ceil(size)).unwrap_or(u32::MAX)
    }

    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(FACTS);
        out.extend_from_slice(self.diff_id.digest().as_bytes());
        put(&mut out, self.tar_len);
        out.extend([self.segment.bits(), u8::from(self.basis == Basis::Contents), 0, 0]);
        put(&mut out, self.space);
        put(&mut out, self.skeleton_len);
        out.extend_from_slice(&self.skeleton_hash);
        put(&mut out, self.chunk_count);
        out.extend_from_slice(&self.chunks_hash);
        out
    }

    fn decode(bytes: &[u8]) -> Result<Self, IndexError> {
        if bytes.len() != FACTS {
            return Err(IndexError::Corrupt("the facts have the wrong length"));
        }
        let mut fields = Fields::new(bytes);
        let short = IndexError::Corrupt("the facts end early");
        let mut read = || -> Option<(Self, [u8; 4])> {
            let diff_id = DiffId::new(Digest::from_bytes(fields.bytes()?));
            let (tar_len, shape, space, skeleton_len) =
                (fields.u64()?, fields.bytes()?, fields.u64()?, fields.u64()?);
            let (skeleton_hash, chunk_count, chunks_hash) = (fields.bytes()?, fields.u32()?, fields.bytes()?);
            let segment = SegmentSize::DEFAULT;
            let facts = Self {
                diff_id,
                basis: Basis::Tar,
                tar_len,
                segment,
                space,
                skeleton_len,
                skeleton_hash,
                chunk_count,
                chunks_hash,
            };
            Some((facts, shape))
        };
        let (facts, [bits, basis, rest @ ..]) = read().ok_or(short)?;
        let basis = match (basis, rest) {
            (0, [0, 0]) => Basis::Tar,
            (1, [0, 0]) => Basis::Contents,
            _ => return Err(IndexError::Unsupported { what: "basis", number: basis.into() }),
        };
        let segment =
            SegmentSize::from_bits(bits).ok_or(IndexError::Corrupt("segment size is out of range"))?;
        Ok(Self { segment, basis, ..facts })
    }

    fn check(&self) -> Result<(), IndexError> {
        within("the tar", self.tar_len, limits::LAYER)?;
        within("the skeleton", self.skeleton_len, limits::SKELETON)?;
        within("the payload space", self.space, 2 * limits::LAYER)?;
        within("the number of segments", u64::from(self.segments()), u64::from(limits::SEGMENTS))
    }
}

/// One chunk of payload, or one piece of a file: its length, and the hash its bytes must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Chunk {
    /// Length in bytes: 1..=[`limits::CHUNK`], of a piece [`limits::PIECE`].
    pub len: u32,
    /// BLAKE3 of its bytes, of a piece SHA-256.
    pub id: ChunkId,
}

/// A section this program does not know and need not know.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Other {
    kind: u32,
    flags: u32,
    plain_len: u64,
    stored: Box<[u8]>,
}

/// A layer index whose parts fit each other.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Index {
    facts: Facts,
    skeleton: Box<[u8]>,
    chunks: Vec<Chunk>,
    source: Source,
    others: Vec<Other>,
}

impl Index {
    /// Returns the index made of these parts, or why they do not fit.
    ///
    /// `skeleton` is the zstd frame; that it holds what the facts say is checked by [`crate::layer`].
    pub fn new(
        facts: Facts,
        skeleton: Box<[u8]>,
        chunks: Vec<Chunk>,
        source: Source,
    ) -> Result<Self, IndexError> {
        facts.check()?;
        if chunks.len() as u64 != u64::from(facts.chunk_count) || hash_of(&chunks) != facts.chunks_hash {
            return Err(IndexError::Corrupt("the chunk table is not the one its hash names"));
        }
        let longest = match facts.basis {
            Basis::Tar => limits::CHUNK,
            Basis::Contents => limits::PIECE,
        };
        if chunks.iter().any(|c| c.len == 0 || c.len > longest) {
            return Err(IndexError::Corrupt("a chunk's length is out of range"));
        }
        source.check(&facts, &chunks)?;
        let index = Self { facts, skeleton, chunks, source, others: Vec::new() };
        within("the index", index.encoded_len(), limits::INDEX)?;
        Ok(index)
    }

    /// Returns the identity: the same for every index of one layer.
    pub fn id(&self) -> IndexId {
        self.facts.id()
    }

    /// Returns what the index says about the layer's plain bytes.
    pub fn facts(&self) -> &Facts {
        &self.facts
    }

    /// Returns the compressed skeleton.
    pub fn skeleton(&self) -> &[u8] {
        &self.skeleton
    }

    /// Returns a reader of the skeleton, which ends well only if it is the one the facts name.
    pub fn read_skeleton(&self) -> Result<SkeletonReader<'_>, SkeletonError> {
        let facts = SkeletonFacts { len: self.facts.skeleton_len, hash: self.facts.skeleton_hash };
        SkeletonReader::new(&self.skeleton, facts)
    }

    /// Returns the chunks, in payload order.
    pub fn chunks(&self) -> &[Chunk] {
        &self.chunks
    }

    /// Returns the decoder table.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the file.
    pub fn encode(&self) -> Vec<u8> {
        let (facts, chunks) = (self.facts.encode(), table_of(&self.chunks));
        let (kind, source) = match &self.source.contents {
            Some(contents) => (5, contents.encode(&self.source)),
            None => (4, self.source.encode()),
        };
        let entries = self.source.contents.as_ref().and_then(Contents::encode_entries);
        let known = [
            (1, CRITICAL, facts.len() as u64, &facts[..]),
            (2, CRITICAL | ZSTD, self.facts.skeleton_len, &self.skeleton),
            (3, CRITICAL, chunks.len() as u64, &chunks),
            (kind, CRITICAL, source.len() as u64, &source),
        ];
        let mut sections: Vec<(u32, u32, u64, &[u8])> = known.to_vec();
        sections.extend(entries.iter().map(|entries| (6, CRITICAL, entries.len() as u64, &entries[..])));
        sections.extend(self.others.iter().map(|o| (o.kind, o.flags, o.plain_len, &o.stored[..])));
        sections.sort_by_key(|s| s.0);

        let mut body = Vec::new();
        put(&mut body, u32::try_from(sections.len()).unwrap_or(u32::MAX)); // at most Sections::MAX
        let mut offset = (BODY + 4 + sections.len() * ENTRY) as u64;
        for (kind, flags, plain, stored) in &sections {
            put(&mut body, *kind);
            put(&mut body, *flags);
            put(&mut body, offset);
            put(&mut body, stored.len() as u64);
            put(&mut body, *plain);
            offset += stored.len() as u64;
        }
        for (.., stored) in sections {
            body.extend_from_slice(stored);
        }
        sealed(&body)
    }

    /// Returns the index in a file, or why there is none.
    pub fn decode(file: &[u8]) -> Result<Self, IndexError> {
        let sections = Sections::decode(file)?;
        let (mut facts, mut skeleton, mut chunks, mut source) = (None, None, None, None);
        let (mut entries, mut others) = (Vec::new(), Vec::new());
        for section in sections.0 {
            match (section.kind, section.flags) {
                (1, CRITICAL) => facts = Some(Facts::decode(section.stored)?),
                (2, flags) if flags == CRITICAL | ZSTD => {
                    skeleton = Some((section.stored, section.plain_len))
                }
                (3, CRITICAL) => chunks = Some(decode_chunks(section.stored)?),
                (4, CRITICAL) => source = Some(Source::decode(section.stored)?),
                (5, CRITICAL) if source.is_none() => source = Some(Contents::decode(section.stored)?),
                (6, CRITICAL) => entries = Contents::decode_entries(section.stored)?,
                (1..=6, _) => return Err(IndexError::Corrupt("a section has the wrong flags")),
                (number, flags) if flags & CRITICAL != 0 => {
                    return Err(IndexError::Unsupported { what: "critical section", number });
                }
                (kind, flags) => {
                    others.push(Other {
                        kind,
                        flags,
                        plain_len: section.plain_len,
                        stored: section.stored.into(),
                    });
                }
            }
        }
        let (Some(facts), Some((skeleton, skeleton_len)), Some(chunks), Some(mut source)) =
            (facts, skeleton, chunks, source)
        else {
            return Err(IndexError::Corrupt("a section is missing"));
        };
        match &mut source.contents {
            Some(contents) => contents.entries = entries,
            None if entries.is_empty() => {}
            None => return Err(IndexError::Corrupt("it has entries, and nothing begins there")),
        }
        if skeleton_len != facts.skeleton_len {
            return Err(IndexError::Corrupt("the skeleton's length is not the one in the facts"));
        }
        Ok(Self { others, ..Self::new(facts, skeleton.into(), chunks, source)? })
    }

    fn encoded_len(&self) -> u64 {
        let source = self.source.encoded_len();
        let entries = self.source.contents.as_ref().is_some_and(|contents| !contents.entries.is_empty());
        (BODY
            + 4
            + (4 + usize::from(entries)) * ENTRY
            + FACTS
            + self.skeleton.len()
            + self.chunks.len() * CHUNK_ROW
            + source) as u64
    }
}

/// A section as it stands in the file.
struct Section<'a> {
    kind: u32,
    flags: u32,
    plain_len: u64,
    stored: &'a [u8],
}

struct Sections<'a>(Vec<Section<'a>>);

impl<'a> Sections<'a> {
    /// More than any version will need; a table of them is 2 KiB.
    const MAX: u32 = 64;

    fn decode(file: &'a [u8]) -> Result<Self, IndexError> {
        let short = IndexError::Corrupt("it ends early");
        let mut fields = Fields::new(file);
        if fields.bytes() != Some(*MAGIC) {
            return Err(IndexError::Foreign);
        }
        match fields.u32() {
            Some(VERSION) => {}
            Some(number) => return Err(IndexError::Unsupported { what: "version", number }),
            None => return Err(short),
        }
        within("the index", file.len() as u64, limits::INDEX)?;
        let checksum: [u8; 32] = fields.bytes().ok_or(short.clone())?;
        if blake3::hash(&file[BODY..]) != checksum {
            return Err(IndexError::Corrupt("its checksum does not match"));
        }
        let count = fields.u32().ok_or(short.clone())?;
        within("the number of sections", u64::from(count), u64::from(Self::MAX))?;
        let mut sections = Vec::with_capacity(count as usize);
        let mut expected = (BODY + 4 + count as usize * ENTRY) as u64;
        let mut rest = file.get(BODY + 4 + count as usize * ENTRY..).ok_or(short.clone())?;
        let mut last = 0;
        for _ in 0..count {
            let mut row =
                || Some((fields.u32()?, fields.u32()?, fields.u64()?, fields.u64()?, fields.u64()?));
            let (kind, flags, offset, stored_len, plain_len) = row().ok_or(short.clone())?;
            if kind <= last || offset != expected {
                return Err(IndexError::Corrupt("its sections are out of order"));
            }
            if flags & !(CRITICAL | ZSTD) != 0 {
                return Err(IndexError::Unsupported { what: "section flag", number: flags });
            }
            if flags & ZSTD == 0 && plain_len != stored_len {
                return Err(IndexError::Corrupt("a section's lengths contradict each other"));
            }
            let (stored, after) = usize::try_from(stored_len)
                .ok()
                .and_then(|n| rest.split_at_checked(n))
                .ok_or(IndexError::Corrupt("a section reaches past the end"))?;
            sections.push(Section { kind, flags, plain_len, stored });
            (rest, last) = (after, kind);
            expected += stored_len;
        }
        if rest.is_empty() {
            Ok(Self(sections))
        } else {
            Err(IndexError::Corrupt("something follows its sections"))
        }
    }
}

/// Returns the file with this body: what the checksum covers.
pub(crate) fn sealed(body: &[u8]) -> Vec<u8> {
    let mut file = Vec::with_capacity(BODY + body.len());
    file.extend_from_slice(MAGIC);
    put(&mut file, VERSION);
    file.extend_from_slice(blake3::hash(body).as_bytes());
    file.extend_from_slice(body);
    file
}

/// Returns the hash of a chunk table, as the facts hold it.
pub fn hash_of(chunks: &[Chunk]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for part in chunks.chunks(1024) {
        hasher.update(&table_of(part));
    }
    *hasher.finalize().as_bytes()
}

fn table_of(chunks: &[Chunk]) -> Vec<u8> {
    let mut table = Vec::with_capacity(chunks.len() * CHUNK_ROW);
    for chunk in chunks {
        put(&mut table, chunk.len);
        table.extend_from_slice(&chunk.id.0);
    }
    table
}

fn decode_chunks(table: &[u8]) -> Result<Vec<Chunk>, IndexError> {
    let (rows, rest) = table.as_chunks::<CHUNK_ROW>();
    if !rest.is_empty() {
        return Err(IndexError::Corrupt("its chunk table ends inside a row"));
    }
    let row = |row: &[u8; CHUNK_ROW]| {
        let mut fields = Fields::new(row);
        Some(Chunk { len: fields.u32()?, id: ChunkId(fields.bytes()?) })
    };
    rows.iter().map(row).collect::<Option<_>>().ok_or(IndexError::Corrupt("its chunk table ends early"))
}

fn within(what: &'static str, value: u64, limit: u64) -> Result<(), IndexError> {
    if value <= limit { Ok(()) } else { Err(IndexError::Limit { what, value, limit }) }
}

#[cfg(test)]
#[path = "index_tests.rs"]
mod tests;
