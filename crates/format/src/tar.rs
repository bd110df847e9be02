//! The bytes of a tar, told apart: what is file payload and what is not, and what each member says.
//!
//! [`Parser`] is fed bytes and asks for nothing: it works alike on a whole tar, whose payload the caller
//! takes aside, and on a skeleton, where the payload simply is not there. It keeps at most one extension
//! ([`limits::TAR_EXTENSION`](crate::limits::TAR_EXTENSION)) and one sparse map in memory. What the members
//! amount to as a file tree is left to [`tree::Builder`](crate::tree::Builder); names come out as written.
//!
//! # Layout
//!
//! A tar is a sequence of blocks of 512 bytes (POSIX.1-2017 `pax`, section "ustar Interchange Format", and the
//! GNU tar manual, "Basic Tar Format" and "Storing Sparse Files"). Each member is a header block, then for
//! regular files the payload, padded with anything to a whole block. Extensions are members of their own that
//! speak about the next one. Two zero blocks are the end; whatever follows them means nothing and is kept.
//!
//! ```text
//!   0 name 100   100 mode 8   108 uid 8   116 gid 8   124 size 12   136 mtime 12   148 checksum 8
//! 156 type 1     157 link name 100        257 magic 6, version 2: "ustar\0" "00" or "ustar " " \0"
//! 265 owner 32   297 group 32  329 major 8  337 minor 8
//! ustar: 345 prefix 155     star: 345 prefix 131, 508 "tar\0"
//! GNU:   345 atime 12, 357 ctime 12, 386 four sparse pieces (offset 12, length 12), 482 goes on, 483 real size 12
//! GNU sparse extension block: 0 twenty-one pieces, 504 goes on
//! ```
//!
//! Numbers are octal text or, with the top bit set, big-endian two's complement.
//!
//! # Where readers differ
//!
//! The reference is what containerd makes of a layer, that is Go's `archive/tar`. Like it, and unlike GNU tar:
//!
//! - a GNU long name (`L`, `K`) wins over a pax `path` or `linkpath`; an `x` header replaces one before it;
//! - only a member of type NUL is a directory because of a trailing slash, not one of type `0`;
//! - links, devices, directories and fifos have no payload, whatever their size says;
//! - a prefix written into a GNU header by Go before 1.8 is honoured;
//! - `%3D` in the name of an attribute stays as it is; `RHT.security.selinux`, `SCHILY.acl.*` and
//!   `LIBARCHIVE.xattr.*` are not attributes;
//! - a tar may end inside the padding after its last payload, or without the zero blocks.
//!
//! Unlike containerd, and like GNU tar and POSIX: global pax headers (`g`) apply to the members after them, old GNU
//! sparse files (`S`) and contiguous files (`7`) are regular files, times before 1970 stay. An `x`, `L` or `K`
//! without a member after it, a sparse version that nobody defined and a number out of range are errors.

mod header;
mod parser;
mod pax;
mod place;
mod sparse;
mod write;
mod written;

pub(crate) use header::byte_sum;
pub use parser::{Parser, Step};
pub use place::{Placer, SpaceError};
pub use write::write_header;
pub(crate) use write::write_sparse_header;
pub use written::{NotWritten, Written};

use crate::name::printable;
use crate::payload::Piece;
use crate::tree::{Device, Time, Xattrs};

/// One member of a tar as its headers describe it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Member {
    /// Path as written: any bytes but NUL, perhaps absolute, perhaps with `..`.
    pub path: Box<[u8]>,
    /// Type and what goes with it.
    pub kind: MemberKind,
    /// Permission, setuid, setgid and sticky bits.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes as written, of any name.
    pub xattrs: Xattrs,
    /// Where the payload begins in the tar, and the place after the headers for members without one.
    pub plain: u64,
    /// How many bytes of payload follow in the tar.
    pub payload: u64,
}

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum MemberKind {
    /// A directory.
    Dir,
    /// A regular file: its payload is its content.
    File,
    /// A regular file of `size` bytes: its payload is the pieces, back to back; the rest is zeros.
    Sparse {
        /// Length of the file.
        size: u64,
        /// Ascending, disjoint, inside the file; empty ones may occur.
        pieces: Box<[Piece]>,
    },
    /// A hard link and the path it leads to, as written.
    Link(Box<[u8]>),
    /// A symbolic link and its target.
    Symlink(Box<[u8]>),
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
}

impl Member {
    /// Returns the length of the file, or 0 for what is no regular file.
    pub fn size(&self) -> u64 {
        match self.kind {
            MemberKind::Sparse { size, .. } => size,
            _ => self.payload,
        }
    }
}

/// Why bytes are not a tar we accept, and where.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("tar header at byte {offset}: {problem}")]
pub struct TarError {
    /// Offset in the tar of the header block at fault.
    pub offset: u64,
    /// What is wrong.
    pub problem: TarProblem,
}

/// What is wrong with a tar.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TarProblem {
    /// Damage, or no tar at all.
    #[error("the checksum is wrong")]
    Checksum,
    /// A field that should hold a number does not, or one out of range.
    #[error("{0} is not a number in range")]
    Number(&'static str),
    /// A kind of member that cannot be extracted.
    #[error("member {path:?} has the unknown type {:?}", printable(&[*.kind]))]
    Type {
        /// The type byte.
        kind: u8,
        /// The member, printable.
        path: String,
    },
    /// A malformed pax extended header.
    #[error("pax extended header: {0}")]
    Pax(&'static str),
    /// A malformed sparse map.
    #[error("sparse map: {0}")]
    Sparse(&'static str),
    /// The archive ends inside a member.
    #[error("the tar ends inside this member")]
    Truncated,
    /// One zero block with something else after it.
    #[error("a single zero block is followed by other data")]
    LoneZeroBlock,
    /// It begins as a file system does, and as a tar of nothing.
    #[error("it is an EROFS file system and no tar, and its media type does not say so")]
    FileSystem,
    /// Larger than a limit.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How much would have been accepted.
        limit: u64,
    },
}
