//! The structures of RAFS v5. Chunks are [`super::ChunkRow`]s, flags those of [`super::flags`].

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// [`SuperBlock::magic`].
pub const MAGIC: u32 = 0x5241_4653;

/// [`SuperBlock::version`].
pub const VERSION: u32 = 0x500;

/// [`SuperBlock::size`]: nothing else begins before.
pub const SUPER_SIZE: usize = 8192;

/// Everything behind the superblock begins at a multiple of this.
pub const ALIGN: usize = 8;

/// What a bootstrap begins with; zeros up to [`SUPER_SIZE`] follow.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    /// [`MAGIC`].
    pub magic: U32,
    /// [`VERSION`].
    pub version: U32,
    /// [`SUPER_SIZE`].
    pub size: U32,
    /// Plain length of all chunks of a file but the last.
    pub chunk_size: U32,
    /// Bits of [`super::flags`].
    pub flags: U64,
    /// Number of inodes; hard links count once.
    pub inodes: U64,
    /// Where the places of inodes are, by number from 1: 4 bytes each, in units of [`ALIGN`].
    pub inodes_offset: U64,
    /// Where the numbers of inodes are that are to be read first, 4 bytes each.
    pub prefetch_offset: U64,
    /// Where the blobs are: 4 bytes each of what is to be read ahead and how much, the id, and a NUL but after the last.
    pub blobs_offset: U64,
    /// Number of places.
    pub inode_count: U32,
    /// Number of inodes that are to be read first.
    pub prefetch_count: U32,
    /// Length of the blobs in bytes.
    pub blobs_size: U32,
    /// Number of [`BlobRow`]s: that of the blobs, or 0.
    pub rows_count: U32,
    /// Where they are.
    pub rows_offset: U64,
}

/// What else a blob is.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct BlobRow {
    /// Number of chunks.
    pub chunks: U32,
    /// Bits of [`super::features`].
    pub features: U32,
    /// Length of the blob's plain space.
    pub plain_size: U64,
    /// Length of the blob's chunks as they are stored.
    pub packed_size: U64,
    /// 0.
    pub reserved: [u8; 40],
}

/// Bits of [`Inode::flags`].
pub mod inode_flags {
    /// It is a symbolic link.
    pub const SYMLINK: u64 = 0x1;
    /// Others have the same [`super::Inode::number`]: it is one of several names.
    pub const HARDLINK: u64 = 0x2;
    /// It has extended attributes.
    pub const XATTR: u64 = 0x4;
    /// It has fewer chunks than its length takes.
    pub const HOLES: u64 = 0x8;
}

/// An inode with a name. Behind it are, each up to a multiple of [`ALIGN`]: the name; the target, of a symbolic link; the
/// length of all attributes in 8 bytes, and for each the length of what follows in 4, its name, a NUL and its value; the
/// chunks.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Inode {
    /// Digest of the digests of its chunks, or of what is in a directory.
    pub digest: [u8; 32],
    /// Number of the directory that it is in.
    pub parent: U64,
    /// Its number; that of the first of several names.
    pub number: U64,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Project.
    pub project: U32,
    /// Type, and permissions.
    pub mode: U32,
    /// Length in bytes.
    pub size: U64,
    /// Length in blocks of 512 bytes.
    pub blocks: U64,
    /// Bits of [`inode_flags`].
    pub flags: U64,
    /// Number of names.
    pub links: U32,
    /// Number of the first inode in a directory; the others follow, by name.
    pub first_child: U32,
    /// How many are in a directory, or the number of chunks of a file.
    pub children: U32,
    /// Length of the name.
    pub name_size: U16,
    /// Length of a symbolic link's target.
    pub target_size: U16,
    /// Device number, as Linux encodes it.
    pub device: U32,
    /// Last modification, nanoseconds.
    pub mtime_nanos: U32,
    /// Last modification.
    pub mtime: U64,
    /// 0.
    pub reserved: [u8; 8],
}

const _: () = {
    assert!(size_of::<SuperBlock>() == 80);
    assert!(size_of::<BlobRow>() == 64);
    assert!(size_of::<Inode>() == 128);
};
