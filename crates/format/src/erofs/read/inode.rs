//! Inodes: attributes and where the rest of an inode begins.

use zerocopy::FromBytes;

use super::super::disk::{self, InodeCompact, InodeExtended, layout, mode};
use super::{Corrupt, Image, Nid};
use crate::limits;
use crate::tar::{Member, MemberKind};
use crate::tree::{Time, Xattrs};

/// What an inode is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Regular file.
    File,
    /// Directory.
    Dir,
    /// Symbolic link.
    Symlink,
    /// Character device.
    Char,
    /// Block device.
    Block,
    /// Named pipe.
    Fifo,
}

/// The attributes of an inode.
#[derive(Debug, Clone, Copy)]
pub struct Inode {
    /// Where it is.
    pub nid: Nid,
    /// What it is.
    pub kind: Kind,
    /// Permission, setuid, setgid and sticky bits.
    pub permissions: u16,
    /// Length in bytes: of the contents, of the directory's blocks, of the link's target.
    pub size: u64,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Number of names.
    pub links: u32,
    /// Last modification.
    pub mtime: Time,
    /// Device number as `new_encode_dev` of Linux encodes it; 0 for what is no device.
    pub device: u32,
    pub(super) layout: u16,
    pub(super) payload: u32,
    /// First byte after the inode: its attributes, then at `tail` chunk indexes or the inline tail.
    pub(super) xattrs: u64,
    pub(super) tail: u64,
}

impl Inode {
    /// Returns it as a member of a tar, of this kind and by this path; a file has its bytes there whole.
    pub fn member(&self, path: &[u8], kind: MemberKind, xattrs: Xattrs) -> Member {
        Member {
            path: path.into(),
            payload: if kind == MemberKind::File { self.size } else { 0 },
            kind,
            mode: self.permissions,
            uid: self.uid,
            gid: self.gid,
            mtime: self.mtime,
            xattrs,
            plain: 0,
        }
    }

    pub(crate) fn corrupt(&self, what: &'static str) -> Corrupt {
        Corrupt { nid: self.nid, what }
    }

    /// Returns how many bytes its extended attributes take.
    pub(crate) fn xattrs_len(&self) -> u64 {
        self.tail - self.xattrs
    }
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Returns the inode at this address.
    pub fn inode(&self, nid: Nid) -> Result<Inode, Corrupt> {
        let corrupt = |what| Corrupt { nid, what };
        let at = (nid.0.checked_mul(disk::SLOT as u64))
            .and_then(|slots| slots.checked_add(self.meta))
            .ok_or(corrupt("address past the end"))?;
        let from = self.from(at).unwrap_or_default();
        let (head, _) = InodeCompact::read_from_prefix(from).map_err(|_| corrupt("address past the end"))?;
        let (extended, layout) =
            disk::split_inode_format(head.format.get()).ok_or(corrupt("unknown inode format"))?;
        let raw_mode = head.mode.get();
        let kind = match raw_mode & mode::TYPE {
            mode::FILE => Kind::File,
            mode::DIR => Kind::Dir,
            mode::SYMLINK => Kind::Symlink,
            mode::CHAR => Kind::Char,
            mode::BLOCK => Kind::Block,
            mode::FIFO => Kind::Fifo,
            _ => return Err(corrupt("unknown file type")),
        };
        let xattr_len = disk::xattr_size(head.xattr_count.get()) as u64;
        let device = if matches!(kind, Kind::Char | Kind::Block) { head.payload.get() } else { 0 };
        let permissions = raw_mode & !mode::TYPE;
        let inode = if extended {
            let (long, _) =
                InodeExtended::read_from_prefix(from).map_err(|_| corrupt("inode past the end"))?;
            let xattrs = at + size_of::<InodeExtended>() as u64;
            Inode {
                nid,
                kind,
                permissions,
                size: long.size.get(),
                uid: long.uid.get(),
                gid: long.gid.get(),
                links: long.links.get(),
                mtime: time(long.mtime.get(), long.mtime_nanos.get()),
                device: if device == 0 { 0 } else { long.payload.get() },
                layout,
                payload: long.payload.get(),
                xattrs,
                tail: xattrs + xattr_len,
            }
        } else {
            let xattrs = at + size_of::<InodeCompact>() as u64;
            Inode {
                nid,
                kind,
                permissions,
                size: head.size.get().into(),
                uid: head.uid.get().into(),
                gid: head.gid.get().into(),
                links: head.links.get().into(),
                mtime: self.time,
                device,
                layout,
                payload: head.payload.get(),
                xattrs,
                tail: xattrs + xattr_len,
            }
        };
        if inode.size > i64::MAX as u64 {
            return Err(corrupt("size is negative"));
        }
        if inode.mtime.nanos >= 1_000_000_000 {
            return Err(corrupt("nanoseconds of a second or more"));
        }
        Ok(inode)
    }

    /// Returns the target of a symbolic link.
    pub fn readlink(&self, inode: &Inode) -> Result<&[u8], Corrupt> {
        if inode.kind != Kind::Symlink {
            return Err(inode.corrupt("not a symbolic link"));
        }
        if inode.size == 0 || inode.size > limits::SYMLINK as u64 {
            return Err(inode.corrupt("length of a symbolic link's target"));
        }
        let target = self.block(inode, 0)?;
        if target.contains(&0) {
            return Err(inode.corrupt("NUL in a symbolic link's target"));
        }
        Ok(target)
    }

    /// Returns the first of the bytes that the long form of an inode reserves; 0 for the short one.
    pub(crate) fn reserved(&self, inode: &Inode) -> u8 {
        let at = inode.nid.0 * disk::SLOT as u64 + self.meta;
        let long = inode.xattrs - at == size_of::<InodeExtended>() as u64;
        let reserved = self.slice(inode.xattrs - 16, 1).filter(|_| long);
        reserved.map_or(0, |bytes| bytes[0])
    }

    /// Returns one block of an inode whose contents are in the image; the last one may be short.
    pub(super) fn block(&self, inode: &Inode, number: u64) -> Result<&[u8], Corrupt> {
        let corrupt = inode.corrupt("contents past the end");
        let start = number.checked_mul(limits::BLOCK).filter(|start| *start < inode.size);
        let start = start.ok_or(corrupt.clone())?;
        let rest = inode.size - start;
        let len = rest.min(limits::BLOCK);
        let at = match inode.layout {
            layout::INLINE if rest <= limits::BLOCK => {
                if inode.tail % limits::BLOCK + len > limits::BLOCK {
                    return Err(inode.corrupt("tail crosses a block"));
                }
                inode.tail
            }
            layout::PLAIN | layout::INLINE => u64::from(inode.payload) * limits::BLOCK + start,
            _ => return Err(inode.corrupt("layout of contents in the image")),
        };
        usize::try_from(len).ok().and_then(|len| self.slice(at, len)).ok_or(corrupt)
    }
}

/// Returns the time of these fields; seconds are signed.
pub(super) fn time(secs: u64, nanos: u32) -> Time {
    Time { secs: secs.cast_signed(), nanos }
}
