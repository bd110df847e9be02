//! The inodes of a bootstrap of either version, for whoever does not want to know which.

use std::collections::BTreeMap;

use super::NydusError;
use super::bootstrap::{Blob, Chunk};
use super::five::Five;
use super::six::Six;
use super::tables::Rows;
use crate::erofs::read::{Corrupt, Kind, Nid};
use crate::tree::{Time, Xattrs};

/// The inodes.
#[derive(Debug)]
pub(super) enum Inodes<B> {
    /// Version 5: a table, with all that belongs to an inode behind it.
    Five(Five<B>),
    /// Version 6: an EROFS image, with chunks in a table.
    Six(Six<B>),
}

/// An inode.
#[derive(Debug, Clone, Copy)]
pub(super) struct Node {
    pub(super) nid: Nid,
    pub(super) kind: Kind,
    pub(super) permissions: u16,
    pub(super) uid: u32,
    pub(super) gid: u32,
    pub(super) mtime: Time,
    pub(super) size: u64,
    /// Device number as `new_encode_dev` of Linux encodes it.
    pub(super) device: u32,
    /// What all its names have in common, if it has several.
    pub(super) several: Option<u64>,
    /// A directory that nobody has described ([`super::write::IMPLIED`]).
    pub(super) implied: bool,
    /// How many bytes of the bootstrap nothing else has for it under this name.
    pub(super) own: u64,
    /// How many nothing else has for it under whatever name: a directory's entries, chunks, attributes.
    pub(super) has: u64,
}

impl Node {
    pub(super) fn corrupt(&self, what: &'static str) -> Corrupt {
        Corrupt { nid: self.nid, what }
    }
}

/// A name in a directory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Child<'a> {
    pub(super) name: &'a [u8],
    pub(super) node: Node,
    /// Where the next one is.
    pub(super) next: u64,
}

impl<B: AsRef<[u8]>> Inodes<B> {
    /// Returns the number of the root.
    pub(super) fn root(&self) -> Nid {
        match self {
            Self::Five(_) => Five::<B>::ROOT,
            Self::Six(six) => six.image.root(),
        }
    }

    /// Returns the length of the bootstrap.
    pub(super) fn len(&self) -> u64 {
        match self {
            Self::Five(five) => five.len(),
            Self::Six(six) => six.image.len(),
        }
    }

    /// Returns an inode.
    pub(super) fn node(&self, nid: Nid) -> Result<Node, NydusError> {
        match self {
            Self::Five(five) => five.node(nid),
            Self::Six(six) => six.node(nid),
        }
    }

    /// Returns a name of a directory: the first for 0, and then where that says; nothing after the last. A name may be `.`
    /// or `..`.
    pub(super) fn child(&self, dir: Nid, at: u64) -> Result<Option<Child<'_>>, NydusError> {
        match self {
            Self::Five(five) => five.child(dir, at),
            Self::Six(six) => six.child(dir, at),
        }
    }

    /// Returns the target of a symbolic link.
    pub(super) fn target(&self, nid: Nid) -> Result<&[u8], NydusError> {
        match self {
            Self::Five(five) => five.target(nid),
            Self::Six(six) => Ok(six.image.readlink(&six.image.inode(nid)?)?),
        }
    }

    /// Returns the extended attributes.
    pub(super) fn xattrs(&self, nid: Nid) -> Result<Xattrs, NydusError> {
        let mut xattrs = BTreeMap::new();
        let mut each = |name: Box<[u8]>, value: &[u8]| {
            xattrs.insert(name, value.into());
        };
        match self {
            Self::Five(five) => five.xattrs(nid, each)?,
            Self::Six(six) => {
                for xattr in six.image.xattrs(&six.image.inode(nid)?)? {
                    let xattr = xattr?;
                    each([xattr.prefix, xattr.suffix].concat().into(), xattr.value);
                }
            }
        }
        Ok(xattrs.into())
    }

    /// Returns the chunks of a file.
    pub(super) fn chunks<'a>(&'a self, node: &Node, blobs: &'a [Blob]) -> Result<Chunks<'a>, NydusError> {
        let (rows, chunk_size, raw) = match self {
            Self::Five(five) => (Table::Here(blobs), five.chunk_size, five.chunks(node)?),
            Self::Six(six) => (Table::Rows(&six.rows), six.chunk_size, six.addresses(node)?),
        };
        Ok(Chunks { node: *node, rows, chunk_size, raw, at: 0 })
    }
}

/// The chunks of a file, in its order; ends at the first error.
pub(super) struct Chunks<'a> {
    node: Node,
    rows: Table<'a>,
    chunk_size: u32,
    raw: &'a [u8],
    /// Bytes of the file that the chunks so far have.
    at: u64,
}

/// Where it is said what a chunk is.
enum Table<'a> {
    /// With the inode: these are the blobs.
    Here(&'a [Blob]),
    /// In a table, by addresses.
    Rows(&'a Rows),
}

impl Chunks<'_> {
    /// Reads the next chunk, and whether it is where it should be.
    fn read(&mut self) -> Result<Option<Chunk>, NydusError> {
        let left = self.node.size - self.at;
        let (found, rest) = match self.rows {
            Table::Here(blobs) => super::five::chunk(self.raw, blobs, self.chunk_size)?,
            Table::Rows(rows) => super::six::chunk(self.raw, rows),
        };
        self.raw = rest;
        let Some((chunk, place)) = found else {
            let whole = left == 0;
            return if whole {
                Ok(None)
            } else {
                Err(self.node.corrupt("a chunk that is in no table").into())
            };
        };
        // Chunks of version 5 say themselves where they are.
        let fits = match place {
            Some(place) => place == self.at && u64::from(chunk.len) <= left,
            None => u64::from(chunk.len) == left.min(self.chunk_size.into()),
        };
        if !fits {
            return Err(self.node.corrupt("a chunk of another length").into());
        }
        self.at += u64::from(chunk.len);
        Ok(Some(chunk))
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<Chunk, NydusError>;

    fn next(&mut self) -> Option<Self::Item> {
        let read = self.read().transpose();
        if matches!(read, Some(Err(_))) {
            (self.raw, self.at) = (&[], self.node.size);
        }
        read
    }
}
