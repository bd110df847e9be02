//! A reader of metadata images that works in place: over a memory map, without a second copy of anything.
//!
//! [`Image::open`] checks what concerns the image as a whole; every other method checks what it touches. No
//! bytes, however hostile, make it panic, loop or allocate: a wrong structure is [`Corrupt`]. What this module
//! does not know it refuses: compression, data of files inside the image and 32-bit block maps (but of a layer's image, see
//! [`LayerHead`]), long prefixes.
//!
//! Names that come out of [`Image::entries`] are valid file names, so they can go to a kernel as they are.

mod chunks;
mod dir;
mod inode;
mod layer;
mod members;
mod walk;
mod xattr;

#[cfg(test)]
mod tests;

use std::fmt;

use zerocopy::FromBytes;
use zerocopy::little_endian::U16;

use super::disk::{self, BLOCK, DeviceSlot, SuperBlock, compat, incompat};
use crate::nydus::disk::COMPAT_RAFS;
use crate::tree::Time;
use crate::{IndexId, limits};

pub use chunks::{Piece, Pieces, Source};
pub use dir::{Entries, Entry};
pub use inode::{Inode, Kind};
pub use layer::LayerHead;
pub use members::{LayerFiles, MemberError, Run};
pub use walk::Step;
pub use xattr::{Xattr, Xattrs};

/// The address of an inode in its image.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Nid(pub u64);

impl fmt::Display for Nid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why bytes are not a metadata image that we read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum OpenError {
    /// Shorter than the first block or than the superblock says.
    #[error("a metadata image of {is} bytes is cut short: {must} expected")]
    Short {
        /// Length of the bytes.
        is: u64,
        /// Length it should have at least.
        must: u64,
    },
    /// No EROFS superblock.
    #[error("this is not a metadata image (wrong magic)")]
    Magic,
    /// The superblock's checksum is wrong or there is none.
    #[error("the superblock of the metadata image is damaged (wrong checksum)")]
    Checksum,
    /// Made with features that this reader does not know.
    #[error("the metadata image uses features unknown to this version: {0}")]
    Unknown(String),
    /// The device table does not lie in the image, or has more devices than one mount may have.
    #[error("the device table of the metadata image is damaged")]
    Devices,
    /// The root is not a directory.
    #[error("the metadata image has no root directory")]
    Root(#[source] Corrupt),
}

/// A structure inside an image is wrong.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("metadata image damaged at inode {nid}: {what}")]
pub struct Corrupt {
    /// The inode that was being read.
    pub nid: Nid,
    /// What is wrong.
    pub what: &'static str,
}

/// One segment that the image's files have bytes in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The layer's index.
    pub index: IndexId,
    /// The segment in that layer.
    pub segment: u32,
    /// Length of the whole segment in bytes.
    pub len: u64,
}

/// A metadata image.
pub struct Image<B> {
    bytes: B,
    /// Length that the superblock states: nothing past it is looked at.
    len: usize,
    /// Byte from which nids count.
    meta: u64,
    /// Byte from which ids of shared attributes count.
    xattr: u64,
    root: Nid,
    inodes: u64,
    time: Time,
    devices: u16,
    device_table: usize,
    /// Offset in the image of the first of the bytes.
    origin: u64,
    /// Length of an image that has the bytes of its files in itself.
    whole: Option<u64>,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Checks the superblock and the extent of the device table.
    pub fn open(bytes: B) -> Result<Self, OpenError> {
        let raw = bytes.as_ref();
        let is = raw.len() as u64;
        let Some((block0, _)) = raw.split_first_chunk::<BLOCK>() else {
            return Err(OpenError::Short { is, must: limits::BLOCK });
        };
        let sb = super_block(block0)?;
        let must = u64::from(sb.blocks.get()) * limits::BLOCK;
        let Some(len) = usize::try_from(must).ok().filter(|len| *len <= raw.len() && *len >= BLOCK) else {
            return Err(OpenError::Short { is, must });
        };
        let device_table = usize::from(sb.device_table.get()) * size_of::<DeviceSlot>();
        if device_table + usize::from(sb.devices.get()) * size_of::<DeviceSlot>() > len
            || u32::from(sb.devices.get()) > limits::SEGMENTS
        {
            return Err(OpenError::Devices);
        }
        Self::with(bytes, &sb, len).map_err(OpenError::Root)
    }

    /// Takes an image of RAFS, whose superblock has no checksum and whose devices are none that we know: only what is
    /// beside the contents of files can be read of it.
    pub(crate) fn open_rafs(bytes: B) -> Result<Self, OpenError> {
        let raw = bytes.as_ref();
        let is = raw.len() as u64;
        let Some((block0, _)) = raw.split_first_chunk::<BLOCK>() else {
            return Err(OpenError::Short { is, must: limits::BLOCK });
        };
        let Ok((sb, _)) = SuperBlock::read_from_prefix(&block0[disk::SUPER_OFFSET..]) else {
            return Err(OpenError::Magic); // cannot be: the block is long enough
        };
        if sb.magic.get() != disk::MAGIC || sb.feature_compat.get() & COMPAT_RAFS == 0 {
            return Err(OpenError::Magic);
        }
        known(&sb)?;
        let len = raw.len();
        Self::with(bytes, &SuperBlock { devices: U16::ZERO, ..sb }, len).map_err(OpenError::Root)
    }

    /// Returns the image of this length and superblock, whose rules are the caller's; it has a root directory.
    pub(crate) fn with(bytes: B, sb: &SuperBlock, len: usize) -> Result<Self, Corrupt> {
        Self::of(bytes, sb, len).rooted()
    }

    fn of(bytes: B, sb: &SuperBlock, len: usize) -> Self {
        Self {
            len,
            meta: u64::from(sb.meta_block.get()) * limits::BLOCK,
            xattr: u64::from(sb.xattr_block.get()) * limits::BLOCK,
            root: Nid(sb.root_nid.get().into()),
            inodes: sb.inodes.get(),
            time: inode::time(sb.time_secs.get(), sb.time_nanos.get()),
            devices: sb.devices.get(),
            device_table: usize::from(sb.device_table.get()) * size_of::<DeviceSlot>(),
            origin: 0,
            whole: None,
            bytes,
        }
    }

    /// Returns the image if it has a root directory.
    fn rooted(self) -> Result<Self, Corrupt> {
        let root = self.inode(self.root)?;
        if root.kind != Kind::Dir {
            return Err(root.corrupt("not a directory"));
        }
        Ok(self)
    }

    /// Returns the root directory.
    pub fn root(&self) -> Nid {
        self.root
    }

    /// Returns the number of inodes that the image says it has.
    pub fn inodes(&self) -> u64 {
        self.inodes
    }

    /// Returns the length of the image in bytes.
    pub fn len(&self) -> u64 {
        self.len as u64
    }

    /// Says that there is nothing in it: never so, the superblock is.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns how many devices there are; they are numbered from 1.
    pub fn devices(&self) -> u16 {
        self.devices
    }

    /// Returns the device of this number, or nothing if there is none.
    pub fn device(&self, number: u16) -> Option<Device> {
        let slot = usize::from(number).checked_sub(1).filter(|_| number <= self.devices)?;
        let at = self.device_table + slot * size_of::<DeviceSlot>();
        let (slot, _) = DeviceSlot::read_from_prefix(self.bytes().get(at..)?).ok()?;
        Some(Device {
            index: IndexId::from_bytes(slot.index),
            segment: slot.segment.get(),
            len: u64::from(slot.blocks.get()) * limits::BLOCK,
        })
    }

    /// Returns the bytes of the image.
    fn bytes(&self) -> &[u8] {
        // `len` was checked at open; a map does not shrink. `AsRef` of a stranger might, hence no indexing.
        self.bytes.as_ref().get(..self.len).unwrap_or_default()
    }

    /// Returns `len` bytes of the image from `at`, if it has them.
    pub(crate) fn slice(&self, at: u64, len: usize) -> Option<&[u8]> {
        self.from(at)?.get(..len)
    }

    /// Returns the bytes of the image from `at`.
    fn from(&self, at: u64) -> Option<&[u8]> {
        let at = usize::try_from(at.checked_sub(self.origin)?).ok()?;
        self.bytes().get(at..)
    }
}

impl<B> fmt::Debug for Image<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Image")
            .field("len", &self.len)
            .field("inodes", &self.inodes)
            .field("devices", &self.devices)
            .finish_non_exhaustive()
    }
}

/// Returns the superblock of a first block, if its checksum is right and there is nothing in it that we do not know.
fn super_block(block0: &[u8; BLOCK]) -> Result<SuperBlock, OpenError> {
    let Ok((sb, _)) = SuperBlock::read_from_prefix(&block0[disk::SUPER_OFFSET..]) else {
        return Err(OpenError::Magic); // cannot be: the block is long enough
    };
    if sb.magic.get() != disk::MAGIC {
        return Err(OpenError::Magic);
    }
    if sb.feature_compat.get() & compat::SB_CHECKSUM == 0 || sb.checksum.get() != disk::super_checksum(block0)
    {
        return Err(OpenError::Checksum);
    }
    known(&sb)?;
    Ok(sb)
}

/// Refuses every feature that changes how an image is to be read and that this reader does not implement.
fn known(sb: &SuperBlock) -> Result<(), OpenError> {
    let unknown = sb.feature_incompat.get() & !(incompat::CHUNKED_FILE | incompat::DEVICE_TABLE);
    let what = if unknown != 0 {
        format!("incompatible feature bits {unknown:#x}")
    } else if sb.block_bits != disk::BLOCK_BITS {
        format!("blocks of 2^{} bytes", sb.block_bits)
    } else if sb.dir_block_bits != 0 {
        "directory blocks of other size than blocks".to_owned()
    } else if sb.extension_slots != 0 {
        "an extended superblock".to_owned()
    } else if sb.xattr_prefixes != 0 {
        "long prefixes of extended attributes".to_owned()
    } else {
        return Ok(());
    };
    Err(OpenError::Unknown(what))
}
