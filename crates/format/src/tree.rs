//! The file tree of a stack of layers, as a pure function of their skeletons.
//!
//! Faithful: names are bytes, ids numeric, times have nanoseconds, nothing is clamped. Whiteouts and opaque
//! directories are resolved. The one thing left out is what a kernel would interpret instead of store: an
//! extended attribute of overlayfs itself (`trusted.overlay.*`, `user.overlay.*`) stays in the skeleton.

pub mod builder;

pub use builder::{Apart, Builder, TreeError, TreeProblem};

use std::collections::BTreeMap;
use std::sync::Arc;

use crate::name::Name;
use crate::payload::Run;

/// A moment: seconds since 1970, which may be negative, and nanoseconds below 1,000,000,000.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time {
    /// Seconds since 1970-01-01 00:00:00 UTC, rounded towards the past.
    pub secs: i64,
    /// Nanoseconds after `secs`.
    pub nanos: u32,
}

/// The number of a layer in its image, bottom first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayerNo(pub u16);

/// The number of an inode in its [`Tree`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct InodeNo(pub u32);

/// Extended attributes: full name (`security.capability`) to value, shared between inodes that have the same.
pub type Xattrs = Arc<BTreeMap<Box<[u8]>, Box<[u8]>>>;

/// What an inode says about itself.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Meta {
    /// Permission, setuid, setgid and sticky bits: `mode & 0o7777`.
    pub mode: u16,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification.
    pub mtime: Time,
    /// Extended attributes.
    pub xattrs: Xattrs,
}

/// A device number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// Major number, 12 bits on Linux.
    pub major: u32,
    /// Minor number, 20 bits on Linux.
    pub minor: u32,
}

/// The contents of a regular file: where its bytes are in the payload space of one layer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// Length in bytes.
    pub size: u64,
    /// The layer whose payload space holds the bytes.
    pub layer: LayerNo,
    /// Ascending runs; what they leave out reads as zeros. An ordinary file has one run, an empty one none.
    pub runs: Runs,
}

/// The runs of a file; almost every file has at most one.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Runs {
    /// No data at all.
    None,
    /// The whole file is one run at this payload offset.
    Whole(u64),
    /// A sparse file.
    Sparse(Box<[Run]>),
}

/// What an inode is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory and its entries.
    Dir(BTreeMap<Name, InodeNo>),
    /// A regular file.
    File(File),
    /// A symbolic link and its target: any bytes but NUL.
    Symlink(Box<[u8]>),
    /// A character device.
    Char(Device),
    /// A block device.
    Block(Device),
    /// A named pipe.
    Fifo,
}

/// One inode. Several names may lead to it unless it is a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Inode {
    /// Owner, mode, time, attributes.
    pub meta: Meta,
    /// Type and contents.
    pub kind: Kind,
}

/// The file tree of an image or of a prefix of its layers.
///
/// Inodes that no name leads to any more may remain in the table: walk from [`Tree::ROOT`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tree {
    pub(crate) inodes: Vec<Inode>,
}

impl Tree {
    /// The root directory.
    pub const ROOT: InodeNo = InodeNo(0);

    /// Returns the tree of an image without layers: an empty root, mode 0755, owned by 0:0.
    pub fn new() -> Self {
        let meta = Meta { mode: 0o755, ..Meta::default() };
        Self { inodes: vec![Inode { meta, kind: Kind::Dir(BTreeMap::new()) }] }
    }

    /// Returns an inode. Numbers come from this tree only, so there is one.
    pub fn inode(&self, number: InodeNo) -> &Inode {
        &self.inodes[number.0 as usize]
    }
}

impl Default for Tree {
    fn default() -> Self {
        Self::new()
    }
}
