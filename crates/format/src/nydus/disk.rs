//! The on-disk structures of RAFS v6: of a bootstrap, beside those that it shares with EROFS, and of a blob. What v5 has
//! instead is in [`five`].
//!
//! Each record is written by `as_bytes` and read by `read_from_prefix` or `read_from_bytes` of `zerocopy`; fields with
//! several things in them have a function for either way. Everything is little-endian.
//!
//! A bootstrap is an EROFS image ([`erofs::disk`](crate::erofs::disk)) of which RAFS uses a part:
//!
//! ```text
//! 0      1024 bytes of zeros
//! 1024   SuperBlock, as `super_block` returns it: no checksum, no attributes shared
//! 1152   Extension, 256 bytes
//! 1408   DeviceSlot, 128 bytes each, one a blob
//! *4096  BlobRow, 256 bytes each, one a blob
//!        prefetch table: nids, 4 bytes each
//! *4096  inodes and directories, from the block after `SuperBlock::meta_block` on, so that no nid is 0
//! *4096  ChunkRow, 80 bytes each, in any order
//! ```
//!
//! The chunk indexes of a file are [`ChunkAddress`]es, one per [`Extension::chunk_size`] bytes of the file,
//! whatever chunk size the inode states: for a file whose chunks lie together in plain space that is the file's own
//! length as a power of two, so that a kernel looks at the first address only.
//!
//! A blob, from its beginning; in tars that are read from their ends each header comes after what it is about:
//!
//! ```text
//! chunks                                image.blob
//! UnitV1 or UnitV2 of each chunk, then BatchContexts or
//! ZranContexts; packed by zstd or not   blob.meta
//! MetaHeader, 4096 bytes                blob.meta.header
//! 32 bytes of each chunk's digest       blob.digest
//! bootstrap                             image.boot
//! TocEntry, 128 bytes each              rafs.blob.toc
//! ```

mod blob;
pub mod five;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::erofs::disk::{BLOCK_BITS, MAGIC, SuperBlock, incompat};

pub use blob::{
    BatchContext, META_MAGIC, MetaHeader, TocEntry, Unit, UnitV1, UnitV2, ZranContext, names, toc_flags,
    unit_flags,
};

/// Bit of [`SuperBlock::feature_compat`]: the image is RAFS.
pub const COMPAT_RAFS: u32 = 0x4000_0000;

/// All that [`SuperBlock::feature_incompat`] may and must say.
pub const INCOMPAT: u32 = incompat::CHUNKED_FILE | incompat::DEVICE_TABLE;

/// Offset of the [`Extension`].
pub const EXTENSION_OFFSET: usize = 1152;

/// Offset of the first [`DeviceSlot`].
pub const DEVICES_OFFSET: usize = 1408;

/// Most blobs of a bootstrap: a [`ChunkAddress`] has 8 bits, and 0 is the bootstrap itself.
pub const BLOBS: usize = 254;

/// Most chunks of a blob: a [`ChunkAddress`] has 24 bits.
pub const CHUNKS: u32 = 1 << 24;

/// Smallest and largest chunk size, as powers of two.
pub const CHUNK_BITS: std::ops::RangeInclusive<u32> = 12..=24;

/// Returns a superblock as RAFS wants it; still to be filled are `root_nid`, `inodes`, `blocks`, `meta_block` and
/// `devices`.
pub fn super_block() -> SuperBlock {
    let mut block = SuperBlock::new_zeroed();
    block.magic = MAGIC.into();
    block.feature_compat = COMPAT_RAFS.into();
    block.block_bits = BLOCK_BITS;
    block.feature_incompat = INCOMPAT.into();
    block.device_table = U16::new(11); // DEVICES_OFFSET / 128
    block
}

/// Bits of [`Extension::flags`].
pub mod flags {
    /// Chunks are not packed.
    pub const PLAIN: u64 = 0x1;
    /// Chunks are packed by lz4.
    pub const LZ4_BLOCK: u64 = 0x2;
    /// Digests are BLAKE3.
    pub const BLAKE3: u64 = 0x4;
    /// Digests are SHA-256.
    pub const SHA256: u64 = 0x8;
    /// Inodes have owners.
    pub const OWNERS: u64 = 0x10;
    /// There are extended attributes.
    pub const XATTRS: u64 = 0x20;
    /// Chunks are packed by gzip.
    pub const GZIP: u64 = 0x40;
    /// Chunks are packed by zstd.
    pub const ZSTD: u64 = 0x80;
    /// Digests of chunks are in the blobs, too.
    pub const DIGESTS_IN_BLOB: u64 = 0x100;
    /// Blobs are tars, and blocks are 512 bytes.
    pub const TARFS: u64 = 0x200;
    /// Chunks are not encrypted.
    pub const NOT_ENCRYPTED: u64 = 0x0100_0000;
    /// Chunks are encrypted by AES-128-XTS.
    pub const AES_128_XTS: u64 = 0x0200_0000;
    /// Bits that whoever does not know them may pass over.
    pub const IGNORABLE: u64 = 0xfc00_0000;
}

/// What RAFS has beside the superblock, at [`EXTENSION_OFFSET`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Extension {
    /// Bits of [`flags`].
    pub flags: U64,
    /// Where the [`BlobRow`]s are: a multiple of 4096.
    pub blobs_offset: U64,
    /// Their length in bytes.
    pub blobs_size: U32,
    /// Plain length of all chunks of a file but the last.
    pub chunk_size: U32,
    /// Where the [`ChunkRow`]s are: a multiple of 4096.
    pub chunks_offset: U64,
    /// Their length in bytes.
    pub chunks_size: U64,
    /// Where the nids are that are to be read first.
    pub prefetch_offset: U64,
    /// Their length in bytes.
    pub prefetch_size: U32,
    /// 0.
    pub reserved: [u8; 204],
}

/// A slot of the device table: one blob.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceSlot {
    /// [`BlobRow::id`].
    pub id: [u8; 64],
    /// Length of the blob's plain space in blocks.
    pub blocks: U32,
    /// Where it would begin if bootstrap and blobs were one device.
    pub flat_block: U32,
    /// 0.
    pub reserved: [u8; 56],
}

/// Bits of [`BlobRow::features`] and [`MetaHeader::features`].
pub mod features {
    /// Chunks begin at multiples of 4096 in plain space.
    pub const ALIGNED: u32 = 0x1;
    /// The blob has a bootstrap in it.
    pub const BOOTSTRAP: u32 = 0x2;
    /// The blob's meta has [`super::UnitV2`]s.
    pub const UNITS_V2: u32 = 0x4;
    /// The blob is a tar.gz, and its meta says where it can be entered.
    pub const ZRAN: u32 = 0x8;
    /// Chunks and meta are blobs of their own.
    pub const SEPARATE: u32 = 0x10;
    /// The blob has the digests of its chunks.
    pub const DIGESTS: u32 = 0x20;
    /// The blob is a plain tar.
    pub const TARFS: u32 = 0x40;
    /// Small chunks are packed together.
    pub const BATCH: u32 = 0x80;
    /// Chunks are encrypted.
    pub const ENCRYPTED: u32 = 0x100;
    /// The blob is one that chunks are shared with.
    pub const DICTIONARY: u32 = 0x200;
    /// The blob has the files that are read first.
    pub const PREFETCH: u32 = 0x400;
    /// The blob is at another place than the image.
    pub const EXTERNAL: u32 = 0x800;
    /// There are tar headers in the blob.
    pub const TAR_HEADERS: u32 = 0x1000_0000;
    /// The blob ends with a table of contents.
    pub const TOC: u32 = 0x2000_0000;
    /// The blob's writer is one that can write the two before.
    pub const CAN_TOC: u32 = 0x4000_0000;
    /// Only in memory, never on disk.
    pub const INTERNAL: u32 = 0x8000_0000;
    /// Of these bits all must be known.
    pub const INCOMPATIBLE: u32 = 0xffff;
}

/// Values of the fields that name a compressor.
pub mod compressor {
    /// Not packed.
    pub const NONE: u32 = 0;
    /// A block of lz4, without a length before it.
    pub const LZ4_BLOCK: u32 = 1;
    /// A member of gzip.
    pub const GZIP: u32 = 2;
    /// A frame of zstd.
    pub const ZSTD: u32 = 3;
}

/// Values of [`BlobRow::digester`].
pub mod digester {
    /// BLAKE3.
    pub const BLAKE3: u32 = 0;
    /// SHA-256.
    pub const SHA256: u32 = 1;
}

/// A blob as the bootstrap has it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlobRow {
    /// SHA-256 of the whole blob, in hexadecimal.
    pub id: [u8; 64],
    /// Number of this row, from 0.
    pub number: U32,
    /// [`Extension::chunk_size`].
    pub chunk_size: U32,
    /// Number of chunks in the blob.
    pub chunks: U32,
    /// One of [`compressor`].
    pub compressor: U32,
    /// One of [`digester`].
    pub digester: U32,
    /// Bits of [`features`].
    pub features: U32,
    /// Length of the blob's chunks as they are stored; not of what comes after them.
    pub packed_size: U64,
    /// Length of the blob's plain space.
    pub plain_size: U64,
    /// Length of the table of contents with its tar header; 0 if the blob has a bootstrap in it.
    pub toc_size: U32,
    /// How the units are packed: one of [`compressor`].
    pub units_compressor: U32,
    /// Where in the blob the units begin.
    pub units_offset: U64,
    /// Their length as they are stored.
    pub units_packed: U64,
    /// Their length, with what follows them.
    pub units_plain: U64,
    /// SHA-256 of the table of contents with its tar header; zeros if the blob has a bootstrap in it.
    pub toc_digest: [u8; 32],
    /// SHA-256 of a separate blob of meta; the key, if chunks are encrypted.
    pub meta_digest: [u8; 32],
    /// Length of that blob; part of an initial vector, if chunks are encrypted.
    pub meta_size: U64,
    /// Part of an initial vector.
    pub cipher_iv: [u8; 8],
    /// 0: no cipher.
    pub cipher: U32,
    /// 0.
    pub reserved: [u8; 36],
}

/// Bits of [`ChunkRow::flags`].
pub mod chunk_flags {
    /// The chunk is packed.
    pub const PACKED: u32 = 0x1;
    /// The chunk is zeros.
    pub const HOLE: u32 = 0x2;
    /// The chunk is encrypted.
    pub const ENCRYPTED: u32 = 0x4;
    /// The chunk is packed together with others.
    pub const BATCH: u32 = 0x8;
    /// [`super::ChunkRow::crc32`] is filled.
    pub const CRC32: u32 = 0x10;
}

/// A chunk as the bootstrap has it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkRow {
    /// Digest of the plain bytes.
    pub digest: [u8; 32],
    /// Number of the blob, from 0.
    pub blob: U32,
    /// Bits of [`chunk_flags`].
    pub flags: U32,
    /// Length as it is stored; 0 for one of a batch.
    pub packed_size: U32,
    /// Plain length.
    pub plain_size: U32,
    /// Where it is in the blob; for one of a batch, where the batch is.
    pub packed_offset: U64,
    /// Where it is in the blob's plain space.
    pub plain_offset: U64,
    /// Where it is in the first file that has it.
    pub file_offset: U64,
    /// Number of the chunk in its blob.
    pub number: U32,
    /// CRC-32 of the plain bytes, if a flag says so.
    pub crc32: U32,
}

/// Where a chunk of a file is: in the place of EROFS's
/// [`ChunkIndex`](crate::erofs::disk::ChunkIndex).
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkAddress {
    low: U16,
    high: U16,
    /// Place in the blob's plain space, in blocks of 4096 bytes.
    pub block: U32,
}

impl ChunkAddress {
    /// Returns the address of a chunk by blob, from 0, and number; nothing if one of them is too large.
    pub fn new(blob: usize, number: u32, block: u32) -> Option<Self> {
        let device = u8::try_from(blob + 1).ok().filter(|_| blob < BLOBS)?;
        let [low, high, top, 0] = number.to_le_bytes() else { return None };
        Some(Self {
            low: U16::from_bytes([low, high]),
            high: U16::from_bytes([device, top]),
            block: block.into(),
        })
    }

    /// Returns the number of the blob, from 0; nothing for the bootstrap itself.
    pub fn blob(&self) -> Option<usize> {
        usize::from(self.high.to_bytes()[0]).checked_sub(1)
    }

    /// Returns the number of the chunk in its blob.
    pub fn number(&self) -> u32 {
        let ([low, high], [_, top]) = (self.low.to_bytes(), self.high.to_bytes());
        u32::from_le_bytes([low, high, top, 0])
    }
}

const _: () = {
    assert!(size_of::<Extension>() == 256);
    assert!(size_of::<DeviceSlot>() == 128);
    assert!(size_of::<BlobRow>() == 256);
    assert!(size_of::<ChunkRow>() == 80);
    assert!(size_of::<ChunkAddress>() == 8);
};

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_has_its_bits_where_the_reference_has_them() {
        let address = ChunkAddress::new(253, 0x12_3456, 7).unwrap();
        assert_eq!(address.as_bytes(), [0x56, 0x34, 254, 0x12, 7, 0, 0, 0]);
        assert_eq!((address.blob(), address.number()), (Some(253), 0x12_3456));
        assert_eq!(ChunkAddress::new(254, 0, 0), None);
        assert_eq!(ChunkAddress::new(0, CHUNKS, 0), None);
        assert_eq!(ChunkAddress::read_from_bytes(&[0; 8]).unwrap().blob(), None);
    }
}
