//! A bootstrap: what a Nydus image says of all its files, checked.
//!
//! [`Bootstrap::open`] checks all tables, [`Bootstrap::list`] the whole tree. Neither looks at more bytes than the bootstrap
//! has, nor keeps more than a few times its length, whatever is in it.

use zerocopy::FromBytes;

use super::NydusError;
use super::disk::{self, EXTENSION_OFFSET, Extension, flags};
use super::five::{self, Five};
use super::inodes::Inodes;
use super::six::Six;
use super::tables;
use crate::digest::{ChunkId, Digest};
use crate::erofs::disk::{BLOCK, BLOCK_BITS, MAGIC, SUPER_OFFSET, SuperBlock};
use crate::erofs::read::Image;
use crate::index::{Hash, Packing, Piece};
use crate::limits;

pub use super::tree::Listing;

/// A blob that files of the image have chunks in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Blob {
    /// SHA-256 of the whole blob.
    pub id: Digest,
    /// How chunks are packed that are.
    pub packing: Packing,
    /// Number of its chunks.
    pub chunks: u32,
    /// Length of its chunks as they are stored, or of the whole blob: the reference writes either.
    pub packed_size: u64,
    /// Length of its chunks with each at a multiple of 4096.
    pub plain_size: u64,
    /// Bits of [`disk::features`].
    pub features: u32,
    /// Where the blob's own table of its chunks is.
    pub meta: Meta,
}

/// Where a blob's own table of its chunks is; [`disk::MetaHeader`] comes after it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Meta {
    /// SHA-256 of the blob that has it: itself, but for one that is a tar.gz.
    pub blob: Digest,
    /// Where it begins.
    pub offset: u64,
    /// Its length as it is stored.
    pub packed: u64,
    /// Its length.
    pub plain: u64,
    /// How it is packed.
    pub packing: Packing,
}

impl Blob {
    /// Says whether only [`super::meta::BlobMeta`] knows where some chunks are.
    pub fn needs_meta(&self) -> bool {
        self.has_batches() || self.is_tar_gz()
    }

    /// Says whether some chunks are packed together.
    pub(super) fn has_batches(&self) -> bool {
        self.features & disk::features::BATCH != 0
    }

    /// Says whether the blob is the layer of an ordinary image, whose chunks are wherever they are in its stream.
    pub fn is_tar_gz(&self) -> bool {
        self.features & disk::features::ZRAN != 0
    }
}

/// A chunk of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chunk {
    /// The blob: number in [`Bootstrap::blobs`].
    pub blob: u16,
    /// Number of the chunk in the blob.
    pub number: u32,
    /// Plain length.
    pub len: u32,
    /// [`Bootstrap::hash`] of the plain bytes.
    pub id: ChunkId,
    /// Where it is; nothing for one that is packed together with others, or lies in a tar.gz. Its blob's number is that in [`Bootstrap::blobs`]
    /// and 1, as an index has it.
    pub piece: Option<Piece>,
}

/// A bootstrap.
#[derive(Debug)]
pub struct Bootstrap<B> {
    pub(super) inodes: Inodes<B>,
    pub(super) blobs: Vec<Blob>,
    chunk_size: u32,
    hash: Hash,
    prefetch: Vec<u32>,
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Checks everything but the tree.
    pub fn open(bytes: B) -> Result<Self, NydusError> {
        Self::open_in(bytes, None)
    }

    /// Checks everything but the tree of a bootstrap that lies in a blob: it cannot know that one's digest.
    pub fn of_blob(bytes: B, blob: Digest) -> Result<Self, NydusError> {
        Self::open_in(bytes, Some(blob))
    }

    fn open_in(bytes: B, itself: Option<Digest>) -> Result<Self, NydusError> {
        let raw = bytes.as_ref();
        if raw.len() as u64 > limits::METADATA {
            return Err(NydusError::TooLarge { what: "the bootstrap", limit: limits::METADATA });
        }
        if five::is_five(raw) { Self::open_five(bytes, itself) } else { Self::open_six(bytes, itself) }
    }

    fn open_five(bytes: B, itself: Option<Digest>) -> Result<Self, NydusError> {
        let raw = bytes.as_ref();
        let block = five::superblock(raw)?;
        let hash = hash(block.flags.get())?;
        let chunk_size = chunk_size(block.chunk_size.get())?;
        let tables = five::tables(raw, &block, itself)?;
        let inodes = Inodes::Five(Five::new(bytes, &tables, chunk_size)?);
        Ok(Self { inodes, blobs: tables.blobs, chunk_size, hash, prefetch: tables.prefetch })
    }

    fn open_six(bytes: B, itself: Option<Digest>) -> Result<Self, NydusError> {
        let raw = bytes.as_ref();
        let Some(Ok((block, _))) = raw.get(SUPER_OFFSET..).map(SuperBlock::read_from_prefix) else {
            return Err(NydusError::Magic);
        };
        let Some(Ok((ext, _))) = raw.get(EXTENSION_OFFSET..).map(Extension::read_from_prefix) else {
            return Err(NydusError::Magic);
        };
        superblock(&block)?;
        if raw.len() % BLOCK != 0 {
            return Err(NydusError::Damaged("it is cut short"));
        }
        let hash = hash(ext.flags.get())?;
        let chunk_size = chunk_size(ext.chunk_size.get())?;
        let found = tables::find(raw, &block, &ext)?;
        let blobs = tables::blobs(&found, chunk_size, hash, itself)?;
        let rows = tables::rows(&found, chunk_size, &blobs)?;
        let prefetch =
            found.prefetch.chunks_exact(4).map(|nid| u32::from_le_bytes([nid[0], nid[1], nid[2], nid[3]]));
        let prefetch = prefetch.collect();
        let len = raw.len();
        let image = Image::with(bytes, &block, len)?;
        Ok(Self { inodes: Inodes::Six(Six { image, chunk_size, rows }), chunk_size, blobs, hash, prefetch })
    }

    /// Returns the blobs; chunks have their numbers.
    pub fn blobs(&self) -> &[Blob] {
        &self.blobs
    }

    /// Returns what chunks are hashed by.
    pub fn hash(&self) -> Hash {
        self.hash
    }

    /// Returns the plain length of all chunks of a file but the last.
    pub fn chunk_size(&self) -> u32 {
        self.chunk_size
    }

    /// Returns the inodes that are to be read first, as the writer has them: mostly the root alone, which says nothing.
    pub fn prefetch(&self) -> &[u32] {
        &self.prefetch
    }
}

/// Checks the length of chunks.
fn chunk_size(size: u32) -> Result<u32, NydusError> {
    let possible = size.is_power_of_two() && disk::CHUNK_BITS.contains(&size.trailing_zeros());
    if possible { Ok(size) } else { Err(NydusError::Damaged("chunk size")) }
}

/// Checks a superblock by the rules of RAFS.
fn superblock(block: &SuperBlock) -> Result<(), NydusError> {
    let unsupported = |what: &str| Err(NydusError::Unsupported(what.to_owned()));
    let wrong = |what| Err(NydusError::Damaged(what));
    if block.magic.get() != MAGIC {
        return Err(NydusError::Magic);
    }
    if block.feature_compat.get() & disk::COMPAT_RAFS == 0 {
        return unsupported("a bootstrap that is EROFS and not RAFS, as Nydus 3 writes it");
    }
    if block.block_bits == 9 {
        return unsupported("blocks of 512 bytes (tarfs)");
    }
    if block.block_bits != BLOCK_BITS {
        return wrong("size of a block");
    }
    if block.feature_incompat.get() != disk::INCOMPAT {
        return Err(NydusError::Unsupported(format!("features {:#x}", block.feature_incompat.get())));
    }
    if block.checksum.get() != 0 || block.extension_slots != 0 || block.compression.get() != 0 {
        return wrong("superblock");
    }
    if block.xattr_block.get() != 0 {
        return unsupported("shared extended attributes");
    }
    Ok(())
}

/// Checks the flags, and returns what chunks are hashed by.
fn hash(set: u64) -> Result<Hash, NydusError> {
    const PACKINGS: u64 = flags::PLAIN | flags::LZ4_BLOCK | flags::GZIP | flags::ZSTD;
    const OTHERS: u64 =
        flags::OWNERS | flags::XATTRS | flags::DIGESTS_IN_BLOB | flags::NOT_ENCRYPTED | flags::IGNORABLE;
    let unsupported = |what: &str| Err(NydusError::Unsupported(what.to_owned()));
    if set & flags::AES_128_XTS != 0 {
        return unsupported("encrypted chunks");
    }
    if set & flags::TARFS != 0 {
        return unsupported("tars for blobs (tarfs)");
    }
    let unknown = set & !(PACKINGS | OTHERS | flags::BLAKE3 | flags::SHA256);
    if unknown != 0 {
        return Err(NydusError::Unsupported(format!("flags {unknown:#x}")));
    }
    if (set & PACKINGS).count_ones() != 1 {
        return Err(NydusError::Damaged("its flags name no compressor, or several"));
    }
    match (set & flags::BLAKE3 != 0, set & flags::SHA256 != 0) {
        (true, false) => Ok(Hash::Blake3),
        (false, true) => Ok(Hash::Sha256),
        _ => Err(NydusError::Damaged("its flags name no hash, or several")),
    }
}
