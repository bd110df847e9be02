//! The on-disk structures of EROFS, as far as a metadata image uses them.
//!
//! Source: Linux, `fs/erofs/erofs_fs.h`. Everything is little-endian. Blocks are 4 KiB.
//!
//! ```text
//! 0      1024 bytes of zeros
//! 1024   SuperBlock, 128 bytes; its checksum covers bytes 1024..4096
//! 1152   device table: one DeviceSlot of 128 bytes per segment device, device number 1 first
//!        shared extended attributes: entries of which several inodes have the same (4-byte aligned)
//!        inodes (32-byte slots), each followed by its extended attributes and then by either its chunk
//!        indexes or its inline tail; whole blocks of directories between them
//! ```
//!
//! An inode is addressed by its *nid*: its byte offset is `meta_block * 4096 + nid * 32`.
//!
//! | part of an inode | where |
//! |---|---|
//! | [`InodeCompact`] (32 bytes) or [`InodeExtended`] (64 bytes) | at the nid |
//! | [`XattrHeader`], ids of shared attributes, then inline [`XattrEntry`]s; `12 + 4 * (icount - 1)` bytes if `icount > 0` | directly after |
//! | [`layout::CHUNKED`]: array of [`ChunkIndex`], one per `4096 << bits` bytes of the file | next multiple of 8 |
//! | [`layout::INLINE`]: the last, incomplete block; the whole blocks before them are at block `payload` | directly after |
//!
//! The inode, its attributes and its inline tail never cross a block boundary together. A directory is an array of
//! blocks; a block is an array of [`Dirent`], then the names without terminators, then zeros.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::tree::Device;

/// Size of a block in bytes.
pub const BLOCK: usize = 4096;

/// `log2` of [`BLOCK`].
pub const BLOCK_BITS: u8 = 12;

/// Offset of the [`SuperBlock`] in the image.
pub const SUPER_OFFSET: usize = 1024;

/// [`SuperBlock::magic`].
pub const MAGIC: u32 = 0xE0F5_E1E2;

/// Size of an inode slot; nids count in these.
pub const SLOT: usize = 32;

/// Bits of [`SuperBlock::feature_compat`]: a kernel that does not know one can mount all the same.
pub mod compat {
    /// [`super::SuperBlock::checksum`] is filled.
    pub const SB_CHECKSUM: u32 = 1;
    /// Times of inodes are their modification times.
    pub const MTIME: u32 = 2;
}

/// Bits of [`SuperBlock::feature_incompat`]: whoever does not know one must refuse the image.
pub mod incompat {
    /// There are inodes of layout [`super::layout::CHUNKED`].
    pub const CHUNKED_FILE: u32 = 4;
    /// There is a device table.
    pub const DEVICE_TABLE: u32 = 8;
}

/// The superblock, at [`SUPER_OFFSET`].
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct SuperBlock {
    /// [`MAGIC`].
    pub magic: U32,
    /// CRC-32C of the rest of the first block with this field 0, see [`crc32c`].
    pub checksum: U32,
    /// Bits of [`compat`].
    pub feature_compat: U32,
    /// [`BLOCK_BITS`].
    pub block_bits: u8,
    /// Further 16-byte slots of the superblock: 0.
    pub extension_slots: u8,
    /// Nid of the root directory.
    pub root_nid: U16,
    /// Number of inodes.
    pub inodes: U64,
    /// Seconds (signed) of the time of all compact inodes.
    pub time_secs: U64,
    /// Nanoseconds of the time of all compact inodes.
    pub time_nanos: U32,
    /// Length of the image in blocks.
    pub blocks: U32,
    /// Block from which nids count.
    pub meta_block: U32,
    /// Block from which ids of shared attributes count, in units of 4 bytes.
    pub xattr_block: U32,
    /// UUID; made from the content.
    pub uuid: [u8; 16],
    /// Label, NUL-terminated.
    pub label: [u8; 16],
    /// Bits of [`incompat`].
    pub feature_incompat: U32,
    /// Compression algorithms: 0.
    pub compression: U16,
    /// Number of device slots.
    pub devices: U16,
    /// Offset of the device table in units of 128 bytes.
    pub device_table: U16,
    /// `log2` of the size of a directory block over [`BLOCK_BITS`]: 0.
    pub dir_block_bits: u8,
    /// Number of long attribute name prefixes: 0.
    pub xattr_prefixes: u8,
    /// Where these prefixes are: 0.
    pub xattr_prefix_start: U32,
    /// Nid of an inode for packed data: 0.
    pub packed_nid: U64,
    /// Reserved for attribute name filters: 0.
    pub xattr_filter: u8,
    /// 0.
    pub reserved: [u8; 23],
}

/// A slot of the device table: one segment.
///
/// The tag is ours to define; the kernel does not look at it.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct DeviceSlot {
    /// Raw [`crate::IndexId`] of the layer's index.
    pub index: [u8; 32],
    /// Number of the segment in its layer.
    pub segment: U32,
    /// Rest of the tag: 0.
    pub tag_rest: [u8; 28],
    /// Length of the whole segment in blocks.
    pub blocks: U32,
    /// Where the device would begin if all devices were one: past the end of the image, so that a mount that was
    /// given no devices gets errors instead of bytes of the image.
    pub flat_block: U32,
    /// 0.
    pub reserved: [u8; 56],
}

/// Values of the layout bits of [`InodeCompact::format`].
pub mod layout {
    /// All data in whole blocks at `payload`.
    pub const PLAIN: u16 = 0;
    /// Compressed; not read.
    pub const PACKED: u16 = 1;
    /// Compressed, with a shorter index; not read.
    pub const PACKED_COMPACT: u16 = 3;
    /// Whole blocks at `payload`, the tail after the inode.
    pub const INLINE: u16 = 2;
    /// Chunk indexes after the inode.
    pub const CHUNKED: u16 = 4;
}

/// Returns the `format` field of an inode.
pub const fn inode_format(extended: bool, layout: u16) -> u16 {
    layout << 1 | extended as u16
}

/// Splits the `format` field of an inode into: extended?, layout. Nothing for bits nobody defined.
pub const fn split_inode_format(format: u16) -> Option<(bool, u16)> {
    if format >> 4 != 0 { None } else { Some((format & 1 == 1, format >> 1)) }
}

/// The short form of an inode: time of the superblock, 16-bit ids and link count, 32-bit size.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeCompact {
    /// See [`inode_format`].
    pub format: U16,
    /// Size of the extended attributes, see [`xattr_size`].
    pub xattr_count: U16,
    /// `st_mode`, with the type.
    pub mode: U16,
    /// Number of names.
    pub links: U16,
    /// Size in bytes.
    pub size: U32,
    /// Seconds after the time of the superblock, which old kernels ignore: 0.
    pub mtime: U32,
    /// [`layout::PLAIN`], [`layout::INLINE`]: first block; [`layout::CHUNKED`]: [`CHUNK_INDEXES`] and [`CHUNK_BITS`]; devices: [`encode_device`].
    pub payload: U32,
    /// Inode number for 32-bit systems.
    pub ino: U32,
    /// Owner.
    pub uid: U16,
    /// Group.
    pub gid: U16,
    /// 0.
    pub reserved: U32,
}

/// The long form of an inode.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct InodeExtended {
    /// See [`inode_format`].
    pub format: U16,
    /// Size of the extended attributes, see [`xattr_size`].
    pub xattr_count: U16,
    /// `st_mode`, with the type.
    pub mode: U16,
    /// 0.
    pub reserved: U16,
    /// Size in bytes.
    pub size: U64,
    /// As in [`InodeCompact::payload`].
    pub payload: U32,
    /// Inode number for 32-bit systems.
    pub ino: U32,
    /// Owner.
    pub uid: U32,
    /// Group.
    pub gid: U32,
    /// Modification time: seconds (signed).
    pub mtime: U64,
    /// Modification time: nanoseconds.
    pub mtime_nanos: U32,
    /// Number of names.
    pub links: U32,
    /// 0.
    pub reserved2: [u8; 16],
}

/// Type bits of `mode` (`S_IFMT`).
pub mod mode {
    /// Mask of the type bits.
    pub const TYPE: u16 = 0o170_000;
    /// Named pipe.
    pub const FIFO: u16 = 0o010_000;
    /// Character device.
    pub const CHAR: u16 = 0o020_000;
    /// Directory.
    pub const DIR: u16 = 0o040_000;
    /// Block device.
    pub const BLOCK: u16 = 0o060_000;
    /// Regular file.
    pub const FILE: u16 = 0o100_000;
    /// Symbolic link.
    pub const SYMLINK: u16 = 0o120_000;
}

/// [`layout::CHUNKED`]: bit of the chunk format that says that indexes are [`ChunkIndex`]es.
pub const CHUNK_INDEXES: u32 = 0x20;

/// [`layout::CHUNKED`]: bits of the chunk format that hold `log2(chunk size / 4096)`.
pub const CHUNK_BITS: u32 = 0x1f;

/// Where a chunk of a file is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct ChunkIndex {
    /// High bits of the block in images of over 2^32 blocks: 0.
    pub block_high: U16,
    /// Device number; device slot `n` is device `n + 1`, and 0 the image itself.
    pub device: U16,
    /// First block on that device, or [`HOLE`].
    pub block: U32,
}

/// [`ChunkIndex::block`] of a chunk of zeros.
pub const HOLE: u32 = u32::MAX;

impl ChunkIndex {
    /// A chunk of zeros.
    pub const HOLE: Self =
        Self { block_high: U16::ZERO, device: U16::ZERO, block: U32::from_bytes([0xff; 4]) };
}

/// A directory entry: followed, after the last one of its block, by the names of all of them.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct Dirent {
    /// Nid of the inode.
    pub nid: U64,
    /// Offset of the name in the block. That of the first entry also tells the number of entries, times 12.
    pub name_offset: U16,
    /// One of [`file_type`].
    pub file_type: u8,
    /// 0.
    pub reserved: u8,
}

/// Values of [`Dirent::file_type`].
pub mod file_type {
    /// Regular file.
    pub const FILE: u8 = 1;
    /// Directory.
    pub const DIR: u8 = 2;
    /// Character device.
    pub const CHAR: u8 = 3;
    /// Block device.
    pub const BLOCK: u8 = 4;
    /// Named pipe.
    pub const FIFO: u8 = 5;
    /// Symbolic link.
    pub const SYMLINK: u8 = 7;
}

/// Head of the extended attributes of an inode; `shared` ids of 4 bytes follow, then inline [`XattrEntry`]s.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrHeader {
    /// Filter of names; 0 without its feature bit.
    pub name_filter: U32,
    /// Number of ids of shared attributes.
    pub shared: u8,
    /// 0.
    pub reserved: [u8; 7],
}

/// Head of one extended attribute; the name without its prefix follows, then the value, then zeros up to a
/// multiple of 4.
#[derive(Debug, Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
pub struct XattrEntry {
    /// Length of the name without its prefix.
    pub name_len: u8,
    /// Which prefix, see [`split_xattr_name`].
    pub name_index: u8,
    /// Length of the value.
    pub value_len: U16,
}

/// Returns how many bytes the extended attributes of an inode take.
pub const fn xattr_size(xattr_count: u16) -> usize {
    if xattr_count == 0 { 0 } else { size_of::<XattrHeader>() + 4 * (xattr_count as usize - 1) }
}

/// Returns how many bytes one attribute takes.
pub const fn xattr_entry_size(name_len: usize, value_len: usize) -> usize {
    (size_of::<XattrEntry>() + name_len + value_len).next_multiple_of(4)
}

/// Prefixes of attribute names by [`XattrEntry::name_index`].
///
/// Index 0 is no prefix: the entry holds the full name of an attribute of no namespace that Linux knows. Kernels
/// pass over such entries; nothing could have been set under that name on a disk file system either.
const XATTR_PREFIXES: [(u8, &[u8]); 5] = [
    (1, b"user."),
    (2, b"system.posix_acl_access"),
    (3, b"system.posix_acl_default"),
    (4, b"trusted."),
    (6, b"security."),
];

/// Splits the full name of an attribute into prefix index and rest.
pub fn split_xattr_name(full: &[u8]) -> (u8, &[u8]) {
    for (index, prefix) in XATTR_PREFIXES {
        match full.strip_prefix(prefix) {
            // The two ACL names are whole names.
            Some(rest) if prefix.ends_with(b".") == rest.is_empty() => {}
            Some(rest) => return (index, rest),
            None => {}
        }
    }
    (0, full)
}

/// Returns the prefix that an index stands for, or nothing for an unknown index.
pub fn xattr_prefix(index: u8) -> Option<&'static [u8]> {
    if index == 0 {
        return Some(b"");
    }
    XATTR_PREFIXES.iter().find(|(i, _)| *i == index).map(|(_, prefix)| *prefix)
}

/// Encodes a device number as `new_encode_dev` of Linux does; nothing if it has more than 12 + 20 bits.
pub const fn encode_device(device: Device) -> Option<u32> {
    let Device { major, minor } = device;
    if major >> 12 != 0 || minor >> 20 != 0 {
        return None;
    }
    Some(minor & 0xff | major << 8 | (minor & !0xff) << 12)
}

/// Decodes a device number.
pub const fn decode_device(raw: u32) -> Device {
    Device { major: raw >> 8 & 0xfff, minor: raw & 0xff | raw >> 12 & 0xf_ff00 }
}

const _: () = {
    assert!(size_of::<SuperBlock>() == 128);
    assert!(size_of::<DeviceSlot>() == 128);
    assert!(size_of::<InodeCompact>() == 32);
    assert!(size_of::<InodeExtended>() == 64);
    assert!(size_of::<ChunkIndex>() == 8);
    assert!(size_of::<Dirent>() == 12);
    assert!(size_of::<XattrHeader>() == 12);
    assert!(size_of::<XattrEntry>() == 4);
};

/// Returns the CRC-32C that the kernel stores: polynomial 0x82f63b78 reflected, initial value all ones, no final
/// inversion.
pub fn crc32c(bytes: &[u8]) -> u32 {
    const TABLE: [u32; 256] = {
        let mut table = [0; 256];
        let mut i: u32 = 0;
        while i < 256 {
            let mut crc = i;
            let mut bit = 0;
            while bit < 8 {
                crc = if crc & 1 == 1 { crc >> 1 ^ 0x82f6_3b78 } else { crc >> 1 };
                bit += 1;
            }
            table[i as usize] = crc;
            i += 1;
        }
        table
    };
    bytes.iter().fold(!0, |crc, &byte| crc >> 8 ^ TABLE[usize::from(crc.to_le_bytes()[0] ^ byte)])
}

/// Returns the checksum of a superblock whose block is `block0`, whatever its checksum field holds.
pub fn super_checksum(block0: &[u8; BLOCK]) -> u32 {
    let mut covered = [0; BLOCK - SUPER_OFFSET];
    covered.copy_from_slice(&block0[SUPER_OFFSET..]);
    covered[4..8].fill(0);
    crc32c(&covered)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn crc32c_is_the_standard_one_before_its_last_step() {
        assert_eq!(!crc32c(b"123456789"), 0xe306_9283);
    }

    #[test]
    fn attribute_names_split_and_join() {
        for (full, index, rest) in [
            (&b"user.a"[..], 1, &b"a"[..]),
            (b"security.capability", 6, b"capability"),
            (b"trusted.x.y", 4, b"x.y"),
            (b"system.posix_acl_access", 2, b""),
            (b"system.posix_acl_default", 3, b""),
            (b"system.posix_acl_accessible", 0, b"system.posix_acl_accessible"),
            (b"user.", 0, b"user."),
            (b"btrfs.compression", 0, b"btrfs.compression"),
        ] {
            assert_eq!(split_xattr_name(full), (index, rest));
            assert_eq!([xattr_prefix(index).unwrap(), rest].concat(), full);
        }
        assert_eq!(xattr_prefix(5), None);
    }

    #[test]
    fn device_numbers_are_exact_or_refused() {
        for (major, minor, raw) in
            [(0, 0, 0), (1, 3, 0x103), (8, 256, 0x0010_0800), (4095, 0xf_ffff, 0xffff_ffff)]
        {
            assert_eq!(encode_device(Device { major, minor }), Some(raw));
            assert_eq!(decode_device(raw), Device { major, minor });
        }
        assert_eq!(encode_device(Device { major: 4096, minor: 0 }), None);
        assert_eq!(encode_device(Device { major: 0, minor: 1 << 20 }), None);
    }
}
