//! The bootstrap of a layer by itself, read back as the members of a tar: for whoever puts layers together.
//!
//! What it hides of lower layers is there as files with the names a tar has for it. Directories that no member of the layer has
//! described are passed over ([`write::IMPLIED`]): where the layers below have a symbolic link there, it stays.
//!
//! Bounded: by the length of the bootstrap, [`limits::ENTRIES`] names and [`disk::CHUNKS`] chunks of all files.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use zerocopy::FromBytes;

use super::disk::{self, BlobRow, ChunkAddress, ChunkRow, Extension};
use super::write::{Blob, CHUNK_SIZE, IMPLIED};
use crate::erofs::disk::decode_device;
use crate::erofs::read::{Corrupt, Image, Inode, Kind, Nid, OpenError};
use crate::limits;
#[cfg(doc)]
use crate::nydus::write;
use crate::tar::{Member, MemberKind};
use crate::tree::Runs;

/// How the names of files begin that hide something of lower layers.
const WHITEOUT: &[u8] = b".wh.";

/// Why bytes are not the bootstrap of a layer.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LayerError {
    /// It does not begin as one.
    #[error("the bootstrap of a layer cannot be read")]
    Open(#[from] OpenError),
    /// Something in it is wrong.
    #[error("the bootstrap of a layer is damaged")]
    Corrupt(#[from] Corrupt),
    /// One of its tables is.
    #[error("the bootstrap of a layer is damaged: {0}")]
    Table(&'static str),
}

/// The bootstrap of a layer.
#[derive(Debug)]
pub struct Layer<'a> {
    image: Image<&'a [u8]>,
    blob: Option<Blob>,
    ahead: HashSet<Nid>,
}

/// What the files of a layer have.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Contents {
    /// The numbers of their chunks: those of a file begin at the place of which is told with it.
    pub chunks: Vec<u32>,
    /// The places of those files that are to be read first.
    pub ahead: HashSet<u64>,
}

impl<'a> Layer<'a> {
    /// Reads its tables.
    pub fn open(bytes: &'a [u8]) -> Result<Self, LayerError> {
        let image = Image::open_rafs(bytes)?;
        let short = LayerError::Table("it ends early");
        let extension =
            bytes.get(disk::EXTENSION_OFFSET..).and_then(|from| Extension::read_from_prefix(from).ok());
        let (extension, _) = extension.ok_or(short.clone())?;
        if extension.chunk_size.get() != CHUNK_SIZE {
            return Err(LayerError::Table("its chunks have another length than those of the image"));
        }
        let table = |offset: u64, len: u64| {
            let range = usize::try_from(offset).ok()?..usize::try_from(offset.checked_add(len)?).ok()?;
            bytes.get(range)
        };
        let blobs = table(extension.blobs_offset.get(), extension.blobs_size.get().into());
        let chunks = table(extension.chunks_offset.get(), extension.chunks_size.get());
        let ahead = table(extension.prefetch_offset.get(), extension.prefetch_size.get().into());
        let (Some(blobs), Some(chunks)) = (blobs, chunks) else { return Err(short) };
        // A hint: of one that cannot be there is none.
        let ahead = ahead.filter(|ahead| ahead.len() as u64 / 4 <= limits::ENTRIES).unwrap_or_default();
        let ahead = ahead.as_chunks::<4>().0.iter().map(|nid| Nid(u32::from_le_bytes(*nid).into())).collect();
        let row = match blobs.len() {
            0 => None,
            _ => {
                Some(BlobRow::read_from_bytes(blobs).map_err(|_| LayerError::Table("it has several blobs"))?)
            }
        };
        if chunks.len() % size_of::<ChunkRow>() != 0 {
            return Err(LayerError::Table("its chunks are cut short"));
        }
        let rows = chunks.chunks_exact(size_of::<ChunkRow>()).map(ChunkRow::read_from_bytes);
        let mut chunks = rows.collect::<Result<Vec<_>, _>>().map_err(|_| short)?;
        chunks.sort_by_key(|chunk| chunk.number.get());
        if row.is_none() && !chunks.is_empty() || chunks.iter().any(|chunk| chunk.blob.get() != 0) {
            return Err(LayerError::Table("a chunk is in none of its blobs"));
        }
        Ok(Self { image, blob: row.map(|row| Blob { row, chunks }), ahead })
    }

    /// Returns the blob of its files, if one of them has any bytes.
    pub fn blob(&self) -> Option<&Blob> {
        self.blob.as_ref()
    }

    /// Shows each member, parents first, and what a directory hides before all else in it; returns what files
    /// have.
    pub fn members<E: From<LayerError>>(
        &self,
        mut each: impl FnMut(&Member, Runs) -> Result<(), E>,
    ) -> Result<Contents, E> {
        let mut walk = Walk { layer: self, files: Contents::default(), seen: HashMap::new() };
        let mut end = walk.hidden(self.image.root(), b"", &mut each);
        let walked = self.image.walk(|step| {
            if end.is_ok() && !step.entry.name.starts_with(WHITEOUT) {
                end = walk.step(step.entry.nid, step.path, &mut each);
            }
            if end.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        end?;
        walked.map_err(LayerError::from)?;
        Ok(walk.files)
    }
}

/// A walk through a layer.
struct Walk<'l, 'a> {
    layer: &'l Layer<'a>,
    files: Contents,
    /// The first paths of what has several.
    seen: HashMap<Nid, Box<[u8]>>,
}

impl Walk<'_, '_> {
    fn step<E: From<LayerError>>(
        &mut self,
        nid: Nid,
        path: &[u8],
        each: &mut impl FnMut(&Member, Runs) -> Result<(), E>,
    ) -> Result<(), E> {
        let image = &self.layer.image;
        let inode = image.inode(nid).map_err(LayerError::from)?;
        let (member, runs) = match self.seen.get(&nid) {
            Some(first) => (self.member(&inode, path, Some(&**first))?, Runs::None),
            None => (self.member(&inode, path, None)?, self.runs(&inode)?),
        };
        if inode.kind == Kind::Dir {
            if image.reserved(&inode) != IMPLIED {
                each(&member, runs)?;
            }
            return self.hidden(nid, path, each);
        }
        if inode.links > 1 {
            self.seen.entry(nid).or_insert_with(|| path.into());
        }
        each(&member, runs)
    }

    /// Shows what a directory hides of lower layers.
    fn hidden<E: From<LayerError>>(
        &self,
        dir: Nid,
        path: &[u8],
        each: &mut impl FnMut(&Member, Runs) -> Result<(), E>,
    ) -> Result<(), E> {
        let image = &self.layer.image;
        let dir = image.inode(dir).map_err(LayerError::from)?;
        for entry in image.entries(&dir, 0).map_err(LayerError::from)? {
            let entry = entry.map_err(LayerError::from)?;
            if entry.name.starts_with(WHITEOUT) {
                let inode = image.inode(entry.nid).map_err(LayerError::from)?;
                let slash = if path.is_empty() { &b""[..] } else { b"/" };
                each(&self.member(&inode, &[path, slash, entry.name].concat(), None)?, Runs::None)?;
            }
        }
        Ok(())
    }

    fn member(&self, inode: &Inode, path: &[u8], first: Option<&[u8]>) -> Result<Member, LayerError> {
        let device = decode_device(inode.device);
        let kind = match (first, inode.kind) {
            (Some(first), _) => MemberKind::Link(first.into()),
            (None, Kind::File) => MemberKind::File,
            (None, Kind::Dir) => MemberKind::Dir,
            (None, Kind::Symlink) => MemberKind::Symlink(self.layer.image.readlink(inode)?.into()),
            (None, Kind::Char) => MemberKind::Char(device),
            (None, Kind::Block) => MemberKind::Block(device),
            (None, Kind::Fifo) => MemberKind::Fifo,
        };
        let mut xattrs = BTreeMap::new();
        for xattr in self.layer.image.xattrs(inode)? {
            let xattr = xattr?;
            xattrs.insert([xattr.prefix, xattr.suffix].concat().into(), xattr.value.into());
        }
        Ok(inode.member(path, kind, Arc::new(xattrs)))
    }

    fn runs(&mut self, inode: &Inode) -> Result<Runs, LayerError> {
        if inode.kind != Kind::File || inode.size == 0 {
            return Ok(Runs::None);
        }
        let first = self.files.chunks.len();
        let many = LayerError::Table("its files have more chunks than a blob may have");
        let count = usize::try_from(inode.size.div_ceil(CHUNK_SIZE.into())).map_err(|_| many.clone())?;
        if first.saturating_add(count) > disk::CHUNKS as usize {
            return Err(many);
        }
        for raw in self.layer.image.raw_indexes(inode, count * size_of::<ChunkAddress>())?.as_chunks::<8>().0
        {
            let address = ChunkAddress::read_from_bytes(raw).map_err(|_| many.clone())?;
            self.files.chunks.push(address.number());
        }
        if self.layer.ahead.contains(&inode.nid) {
            self.files.ahead.insert(first as u64);
        }
        Ok(Runs::Whole(first as u64))
    }
}
