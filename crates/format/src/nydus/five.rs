//! Inodes of RAFS v5, and what else is different there.
//!
//! Everything that belongs to an inode lies behind it, the chunks, too; names in a directory are inodes that follow each
//! other in the table of their places. So nothing is looked for, and there is nothing to be kept but that table's place.

use zerocopy::FromBytes;

use super::NydusError;
use super::bootstrap::{Blob, Chunk, Meta};
use super::disk::five::{ALIGN, BlobRow, Inode, SUPER_SIZE, SuperBlock, VERSION, inode_flags};
use super::disk::{self, ChunkRow, flags};
use super::inodes::{Child, Node};
use super::tables::{self, range};
use crate::digest::Digest;
use crate::erofs::disk::mode;
use crate::erofs::read::{Corrupt, Kind, Nid};
use crate::index::Packing;
use crate::limits;
use crate::name::Name;
use crate::tree::Time;

/// Length of a blob in the table but for its id.
const BLOB_HEAD: usize = 8;

/// The table of inodes.
#[derive(Debug)]
pub(super) struct Five<B> {
    bytes: B,
    table: std::ops::Range<usize>,
    pub(super) chunk_size: u32,
}

/// The tables of a bootstrap.
pub(super) struct Tables {
    inodes: std::ops::Range<usize>,
    pub(super) blobs: Vec<Blob>,
    pub(super) prefetch: Vec<u32>,
}

/// Says whether a bootstrap is of this version, or an older one.
pub(super) fn is_five(raw: &[u8]) -> bool {
    raw.starts_with(&disk::five::MAGIC.to_le_bytes())
}

/// Reads the superblock.
pub(super) fn superblock(raw: &[u8]) -> Result<SuperBlock, NydusError> {
    let Ok((block, _)) = SuperBlock::read_from_prefix(raw) else { return Err(NydusError::Magic) };
    if block.version.get() != VERSION {
        let version = block.version.get() >> 8;
        return Err(NydusError::Unsupported(format!("a bootstrap of RAFS version {version}")));
    }
    if block.size.get() as usize != SUPER_SIZE || raw.len() < SUPER_SIZE || !raw.len().is_multiple_of(ALIGN) {
        return Err(NydusError::Damaged("it is cut short"));
    }
    Ok(block)
}

/// Reads the tables: inside, behind the superblock, apart from each other.
pub(super) fn tables(raw: &[u8], block: &SuperBlock, itself: Option<Digest>) -> Result<Tables, NydusError> {
    let table = |offset: u64, count: u32, row: usize, what| {
        let len = u64::from(count) * row as u64;
        let found = range(raw, offset, len).filter(|found| found.is_empty() || found.start >= SUPER_SIZE);
        found.ok_or(NydusError::Damaged(what))
    };
    let inodes = table(block.inodes_offset.get(), block.inode_count.get(), 4, "place of the inode table")?;
    let blobs = table(block.blobs_offset.get(), block.blobs_size.get(), 1, "place of the blob table")?;
    let rows = table(
        block.rows_offset.get(),
        block.rows_count.get(),
        size_of::<BlobRow>(),
        "place of the blob table",
    )?;
    let prefetch =
        table(block.prefetch_offset.get(), block.prefetch_count.get(), 4, "place of the prefetch table")?;
    if !tables::apart(&[&inodes, &blobs, &rows, &prefetch]) {
        return Err(NydusError::Damaged("its tables overlap"));
    }
    let prefetch =
        raw[prefetch].as_chunks::<4>().0.iter().map(|number| u32::from_le_bytes(*number)).collect();
    let blobs = self::blobs(&raw[blobs], &raw[rows], packing(block.flags.get())?, itself)?;
    Ok(Tables { inodes, blobs, prefetch })
}

/// Returns how chunks are packed that are: all blobs have one way. That there is one has been looked at.
fn packing(set: u64) -> Result<Packing, NydusError> {
    let ways = [
        (flags::PLAIN, Packing::Plain),
        (flags::LZ4_BLOCK, Packing::Lz4),
        (flags::GZIP, Packing::Gzip),
        (flags::ZSTD, Packing::Zstd),
    ];
    let way = ways.iter().find(|(bit, _)| set & bit != 0);
    way.map(|(_, packing)| *packing).ok_or(NydusError::Damaged("its flags name no compressor, or several"))
}

/// Reads the blobs. Old writers have no rows: then nobody says how long they are.
fn blobs(
    mut raw: &[u8],
    rows: &[u8],
    packing: Packing,
    itself: Option<Digest>,
) -> Result<Vec<Blob>, NydusError> {
    let mut rows = rows.chunks_exact(size_of::<BlobRow>());
    let has_rows = rows.len() > 0;
    let mut blobs: Vec<Blob> = Vec::new();
    while raw.len() > BLOB_HEAD {
        let rest = &raw[BLOB_HEAD..];
        let len = rest.iter().position(|byte| *byte == 0).unwrap_or(rest.len());
        raw = rest.get(len + 1..).unwrap_or_default();
        let row = match rows.next().map(BlobRow::read_from_bytes) {
            Some(Ok(row)) => Some(row),
            None if !has_rows => None,
            _ => return Err(NydusError::Damaged("number of blobs")),
        };
        let blob = blob(&rest[..len], row, packing, itself)?;
        if blobs.len() >= disk::BLOBS || blobs.iter().any(|other| other.id == blob.id) {
            return Err(NydusError::Damaged("a blob is listed twice, or there are too many"));
        }
        blobs.push(blob);
    }
    Ok(blobs)
}

fn blob(
    id: &[u8],
    row: Option<BlobRow>,
    packing: Packing,
    itself: Option<Digest>,
) -> Result<Blob, NydusError> {
    let features = row.map_or(0, |row| row.features.get());
    let id = tables::blob_id(id, itself.filter(|_| features & disk::features::BOOTSTRAP != 0))?;
    tables::known(features, 0)?;
    let (packed_size, plain_size) =
        row.map_or((limits::LAYER, limits::LAYER), |row| (row.packed_size.get(), row.plain_size.get()));
    if packed_size > limits::LAYER || plain_size > limits::LAYER {
        return Err(NydusError::TooLarge { what: "a blob", limit: limits::LAYER });
    }
    let meta = Meta { blob: id, offset: 0, packed: 0, plain: 0, packing: Packing::Plain };
    let chunks = row.map_or(0, |row| row.chunks.get());
    Ok(Blob { id, packing, chunks, packed_size, plain_size, features, meta })
}

/// An inode with its place.
struct Found<'a> {
    inode: Inode,
    /// What lies behind it.
    rest: &'a [u8],
}

impl<B: AsRef<[u8]>> Five<B> {
    pub(super) const ROOT: Nid = Nid(1);

    pub(super) fn new(bytes: B, tables: &Tables, chunk_size: u32) -> Result<Self, NydusError> {
        let five = Self { bytes, table: tables.inodes.clone(), chunk_size };
        let root = five.node(Self::ROOT)?;
        if root.kind != Kind::Dir {
            return Err(root.corrupt("not a directory").into());
        }
        Ok(five)
    }

    pub(super) fn len(&self) -> u64 {
        self.bytes.as_ref().len() as u64
    }

    /// Returns an inode.
    pub(super) fn node(&self, nid: Nid) -> Result<Node, NydusError> {
        let found = self.find(nid)?;
        let (inode, corrupt) = (found.inode, |what| Corrupt { nid, what });
        let bits = u16::try_from(inode.mode.get()).unwrap_or(0);
        let kind = match bits & mode::TYPE {
            mode::FILE => Kind::File,
            mode::DIR => Kind::Dir,
            mode::SYMLINK => Kind::Symlink,
            mode::CHAR => Kind::Char,
            mode::BLOCK => Kind::Block,
            mode::FIFO => Kind::Fifo,
            _ => return Err(corrupt("a type that no layer has").into()),
        };
        if inode.flags.get() & inode_flags::HOLES != 0 {
            return Err(NydusError::Unsupported("files with holes".to_owned()));
        }
        let mtime = Time { secs: inode.mtime.get().cast_signed(), nanos: inode.mtime_nanos.get() };
        if mtime.nanos >= 1_000_000_000 {
            return Err(corrupt("nanoseconds of a second or more").into());
        }
        let (names, attributes) = (found.names(), found.attributes(nid)?.len());
        let chunks = if kind == Kind::File { inode.children.get() as usize } else { 0 };
        Ok(Node {
            nid,
            kind,
            permissions: bits & !mode::TYPE,
            uid: inode.uid.get(),
            gid: inode.gid.get(),
            mtime,
            size: if kind == Kind::Symlink { inode.target_size.get().into() } else { inode.size.get() },
            device: inode.device.get(),
            several: (inode.links.get() > 1).then_some(inode.number.get()),
            implied: false,
            own: (size_of::<Inode>() + names) as u64,
            has: (attributes as u64)
                .saturating_add((chunks as u64).saturating_mul(size_of::<ChunkRow>() as u64)),
        })
    }

    /// Returns the name of a directory that is there: so many after the first.
    pub(super) fn child(&self, dir: Nid, at: u64) -> Result<Option<Child<'_>>, NydusError> {
        let parent = self.find(dir)?.inode;
        if at >= parent.children.get().into() {
            return Ok(None);
        }
        let nid = Nid(u64::from(parent.first_child.get()) + at);
        let (found, node) = (self.find(nid)?, self.node(nid)?);
        let name = found.rest.get(..found.inode.name_size.get().into());
        let name = name.filter(|name| Name::parse(name).is_ok());
        let name = name.ok_or(node.corrupt("a name that no file can have"))?;
        Ok(Some(Child { name, node, next: at + 1 }))
    }

    /// Returns the target of a symbolic link.
    pub(super) fn target(&self, nid: Nid) -> Result<&[u8], NydusError> {
        let found = self.find(nid)?;
        let at = usize::from(found.inode.name_size.get()).next_multiple_of(ALIGN);
        let len = usize::from(found.inode.target_size.get());
        let target = found
            .rest
            .get(at..at + len)
            .filter(|target| (1..=limits::SYMLINK).contains(&target.len()) && !target.contains(&0));
        target.ok_or(Corrupt { nid, what: "target of a symbolic link" }.into())
    }

    /// Shows the extended attributes.
    pub(super) fn xattrs(&self, nid: Nid, mut each: impl FnMut(Box<[u8]>, &[u8])) -> Result<(), NydusError> {
        let wrong = Corrupt { nid, what: "extended attributes" };
        let mut rest = self.find(nid)?.attributes(nid)?;
        while let Some((len, after)) = rest.split_first_chunk() {
            let pair = after.split_at_checked(u32::from_le_bytes(*len) as usize);
            let (pair, after) = pair.ok_or(wrong.clone())?;
            let nul = pair.iter().position(|byte| *byte == 0).ok_or(wrong.clone())?;
            let (name, value) = (&pair[..nul], &pair[nul + 1..]);
            if name.is_empty() || name.len() > limits::XATTR_NAME || value.len() > limits::XATTR_VALUE {
                return Err(wrong.into());
            }
            each(name.into(), value);
            rest = after;
        }
        if rest.is_empty() { Ok(()) } else { Err(wrong.into()) }
    }

    /// Returns the chunks of a file as they are in the bootstrap.
    pub(super) fn chunks(&self, node: &Node) -> Result<&[u8], NydusError> {
        let found = self.find(node.nid)?;
        let attributes = match found.attributes(node.nid)?.len() {
            0 if found.inode.flags.get() & inode_flags::XATTR == 0 => 0,
            len => 8 + len.next_multiple_of(ALIGN),
        };
        let at = found.names() + attributes;
        let len = (found.inode.children.get() as usize).checked_mul(size_of::<ChunkRow>());
        let rows = len.and_then(|len| found.rest.get(at..at.checked_add(len)?));
        let rows = rows.filter(|_| node.kind == Kind::File);
        rows.ok_or(node.corrupt("chunks past the end").into())
    }

    fn find(&self, nid: Nid) -> Result<Found<'_>, NydusError> {
        let bytes = self.bytes.as_ref();
        let place = || {
            let table = bytes.get(self.table.clone())?;
            let row = usize::try_from(nid.0.checked_sub(1)?).ok()?.checked_mul(4)?;
            let at = u32::from_le_bytes(*table.get(row..)?.first_chunk()?) as usize * ALIGN;
            let (inode, rest) = Inode::read_from_prefix(bytes.get(at..)?).ok()?;
            (at >= SUPER_SIZE).then_some(Found { inode, rest })
        };
        place().ok_or(Corrupt { nid, what: "an inode that there is not" }.into())
    }
}

impl<'a> Found<'a> {
    /// Returns how long name and target are together.
    fn names(&self) -> usize {
        let aligned = |len: u16| usize::from(len).next_multiple_of(ALIGN);
        aligned(self.inode.name_size.get()) + aligned(self.inode.target_size.get())
    }

    /// Returns all extended attributes.
    fn attributes(&self, nid: Nid) -> Result<&'a [u8], NydusError> {
        if self.inode.flags.get() & inode_flags::XATTR == 0 {
            return Ok(&[]);
        }
        let read = || {
            let (len, rest) = self.rest.get(self.names()..)?.split_first_chunk()?;
            rest.get(..usize::try_from(u64::from_le_bytes(*len)).ok()?)
        };
        read().ok_or(Corrupt { nid, what: "extended attributes" }.into())
    }
}

/// A chunk, and where in its file it says to be.
type Placed = (Chunk, Option<u64>);

/// Returns the first of some chunks, and the others.
pub(super) fn chunk<'a>(
    raw: &'a [u8],
    blobs: &[Blob],
    chunk_size: u32,
) -> Result<(Option<Placed>, &'a [u8]), NydusError> {
    let Ok((row, rest)) = ChunkRow::read_from_prefix(raw) else { return Ok((None, raw)) };
    let chunk = tables::chunk(&row, chunk_size, blobs)?;
    Ok((Some((chunk, Some(row.file_offset.get()))), rest))
}
