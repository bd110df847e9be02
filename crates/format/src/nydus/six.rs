//! Inodes of RAFS v6: an EROFS image, and a table of chunks.

use zerocopy::FromBytes;

use super::NydusError;
use super::bootstrap::Chunk;
use super::disk::ChunkAddress;
use super::inodes::{Child, Node};
use super::tables::Rows;
use super::write::IMPLIED;
use crate::erofs::read::{Image, Inode, Kind, Nid};

/// The image, and its chunks.
#[derive(Debug)]
pub(super) struct Six<B> {
    pub(super) image: Image<B>,
    pub(super) chunk_size: u32,
    pub(super) rows: Rows,
}

impl<B: AsRef<[u8]>> Six<B> {
    /// Returns an inode.
    pub(super) fn node(&self, nid: Nid) -> Result<Node, NydusError> {
        let inode = self.image.inode(nid)?;
        let has = match inode.kind {
            Kind::Dir | Kind::Symlink => inode.size,
            Kind::File => self.count(&inode).saturating_mul(size_of::<ChunkAddress>() as u64),
            Kind::Char | Kind::Block | Kind::Fifo => 0,
        };
        Ok(Node {
            nid,
            kind: inode.kind,
            permissions: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            size: inode.size,
            device: inode.device,
            several: (inode.links > 1).then_some(nid.0),
            implied: inode.kind == Kind::Dir && self.image.reserved(&inode) == IMPLIED,
            own: 0,
            has: has.saturating_add(inode.xattrs_len()),
        })
    }

    /// Returns the name of a directory that is there.
    pub(super) fn child(&self, dir: Nid, at: u64) -> Result<Option<Child<'_>>, NydusError> {
        let dir = self.image.inode(dir)?;
        let Some(entry) = self.image.entries(&dir, at)?.next().transpose()? else { return Ok(None) };
        let node = self.node(entry.nid)?;
        if node.kind != entry.kind {
            return Err(node.corrupt("its entry says that it is something else").into());
        }
        Ok(Some(Child { name: entry.name, node, next: entry.next }))
    }

    /// Returns the addresses of a file's chunks.
    pub(super) fn addresses(&self, node: &Node) -> Result<&[u8], NydusError> {
        let inode = self.image.inode(node.nid)?;
        match self.count(&inode) {
            0 => Ok(&[]),
            count => Ok(self.image.chunk_indexes(&inode, count)?),
        }
    }

    fn count(&self, inode: &Inode) -> u64 {
        if inode.kind == Kind::File { inode.size.div_ceil(self.chunk_size.into()) } else { 0 }
    }
}

/// Returns the chunk that the first of some addresses leads to, and the others.
pub(super) fn chunk<'a>(raw: &'a [u8], rows: &Rows) -> (Option<(Chunk, Option<u64>)>, &'a [u8]) {
    let Ok((address, rest)) = ChunkAddress::read_from_prefix(raw) else { return (None, raw) };
    (rows.chunk(&address).map(|chunk| (chunk, None)), rest)
}
