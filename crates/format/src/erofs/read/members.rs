//! What is in the image of a layer, as members of a tar: in the order of the tree, directories before what is in them, and
//! what overlayfs is told to hide is hidden as a tar says it. The same image always has the same members.
//!
//! Images that others have written are read, too, as long as nothing in them is compressed. Nobody says what size a file
//! with holes may have; all maps of chunks together are no longer than the image.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::Arc;

use super::super::disk::{BLOCK, decode_device};
use super::{Corrupt, Entry, Image, Inode, Kind, LayerHead, Nid, OpenError, Source, Step};
use crate::limits;
use crate::name::printable;
use crate::tar::{Member, MemberKind};
use crate::tree::{Time, Xattrs};

/// How names begin that hide others, and the one that hides all.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What overlayfs reads of attributes, and what makes a directory opaque. Of `user.overlay.` it reads nothing where containerd
/// mounts it.
const OVERLAY: &[u8] = b"trusted.overlay.";
const OPAQUE_DIR: &[u8] = b"trusted.overlay.opaque";

/// What mkfs.erofs writes where a directory has something hidden in it: by this overlayfs numbers inodes, and shows nothing else.
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// Most bytes of the first paths of what says that it has several: of a million files, 64 each.
const MOST_PATHS: usize = 64 << 20;

/// Shortest entry of a map of chunks, in bytes.
const SHORTEST_ENTRY: u64 = 4;

/// Why an image does not tell its members.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MemberError {
    /// It is damaged.
    #[error(transparent)]
    Corrupt(#[from] Corrupt),
    /// It has what no tar can say.
    #[error("{what:?} cannot be in a tar: {why}")]
    NoTar {
        /// What it is.
        what: String,
        /// What is the matter with it.
        why: &'static str,
    },
    /// The names of files that have several are longer than a limit.
    #[error("the names of files that have several exceed the limit of {limit}")]
    Paths {
        /// The limit.
        limit: u64,
    },
}

/// The image of a layer, with all bytes of its files.
pub struct LayerFiles<'a> {
    image: Image<&'a [u8]>,
    bytes: &'a [u8],
}

/// A run of a file's bytes. Each begins at a whole block of the file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Run<'a> {
    /// So many zeros, which are nowhere.
    Hole(u64),
    /// Bytes, and their offset in the image.
    Bytes(u64, &'a [u8]),
}

impl<'a> LayerFiles<'a> {
    /// Opens an image. What follows the file system, such as hashes of its blocks, is none of it.
    pub fn open(blob: &'a [u8]) -> Result<Self, OpenError> {
        let short = |must| OpenError::Short { is: blob.len() as u64, must };
        let first = blob.first_chunk::<BLOCK>().ok_or(short(limits::BLOCK))?;
        let head = LayerHead::read(first)?;
        let bytes = usize::try_from(head.len()).ok().and_then(|len| blob.get(..len));
        let bytes = bytes.ok_or(short(head.len()))?;
        let meta = usize::try_from(head.meta()).ok().and_then(|meta| bytes.get(meta..));
        let meta = meta.ok_or(short(head.meta()))?;
        Ok(Self { image: head.open(meta)?, bytes })
    }

    /// Says whether nothing else begins as it does: before the superblock there are zeros, which as a tar are one of nothing.
    pub(crate) fn is_nothing_else(&self) -> bool {
        self.bytes[..super::super::disk::SUPER_OFFSET].iter().all(|byte| *byte == 0)
    }

    /// Returns bytes of it, if it has them.
    pub(crate) fn bytes(&self, begin: u64, len: u64) -> &'a [u8] {
        let range = usize::try_from(begin).ok().zip(usize::try_from(begin.saturating_add(len)).ok());
        range.and_then(|(from, to)| self.bytes.get(from..to)).unwrap_or_default()
    }

    /// Returns how many bytes it has.
    pub(crate) fn len(&self) -> u64 {
        self.bytes.len() as u64
    }

    /// Shows each member, and of a file that has bytes where these are.
    pub fn members<E: From<MemberError>>(
        &self,
        each: impl FnMut(&Member, Option<&Inode>) -> Result<(), E>,
    ) -> Result<(), E> {
        let chunks = self.len() / SHORTEST_ENTRY;
        let walk = Walk { files: self, each, first: HashMap::new(), paths: 0, dirs: HashSet::new(), chunks };
        walk.all()
    }

    /// Returns the bytes of a file, in its order.
    pub fn runs(
        &self,
        inode: &Inode,
    ) -> Result<impl Iterator<Item = Result<Run<'a>, Corrupt>> + use<'a, '_>, Corrupt> {
        let past = inode.corrupt("bytes past the end");
        let pieces = self.image.pieces(inode, 0, inode.size)?;
        Ok(pieces.map(move |piece| {
            let piece = piece?;
            let Source::Device { offset, .. } = piece.source else { return Ok(Run::Hole(piece.len)) };
            match self.bytes(offset, piece.len) {
                [] => Err(past.clone()),
                bytes => Ok(Run::Bytes(offset, bytes)),
            }
        }))
    }
}

/// A walk through an image.
struct Walk<'a, 'b, F> {
    files: &'a LayerFiles<'b>,
    each: F,
    /// The first paths of what has several, and how long they are together.
    first: HashMap<Nid, Box<[u8]>>,
    paths: usize,
    /// Directories that were entered: none may be in two places, nor in itself.
    dirs: HashSet<Nid>,
    /// How many chunks there can be in the maps that have not been seen.
    chunks: u64,
}

impl<E: From<MemberError>, F: FnMut(&Member, Option<&Inode>) -> Result<(), E>> Walk<'_, '_, F> {
    fn all(mut self) -> Result<(), E> {
        let image = &self.files.image;
        let mut ended = self.root();
        let walked = image.walk(|step| {
            if ended.is_ok() {
                ended = self.step(step);
            }
            if ended.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        ended?;
        walked.map_err(|corrupt| MemberError::from(corrupt).into())
    }

    /// Shows the root where it says more than that it is there.
    fn root(&mut self) -> Result<(), E> {
        let image = &self.files.image;
        let root = image.inode(image.root()).map_err(MemberError::from)?;
        self.dirs.insert(root.nid);
        let (xattrs, opaque) = self.xattrs(b"", &root)?;
        let usual = (root.permissions, root.uid, root.gid) == (0o755, 0, 0) && xattrs.is_empty();
        if !usual {
            (self.each)(&root.member(b"./", MemberKind::Dir, xattrs), None)?;
        }
        if opaque { self.hides(OPAQUE) } else { Ok(()) }
    }

    fn step(&mut self, Step { path, entry }: Step<'_>) -> Result<(), E> {
        let Entry { nid, kind, name, .. } = entry;
        let image = &self.files.image;
        let inode = image.inode(nid).map_err(MemberError::from)?;
        let wrong = |what| Err(MemberError::from(Corrupt { nid, what }).into());
        if inode.kind != kind {
            return wrong("its name says that it is something else");
        }
        if name.starts_with(WHITEOUT) {
            return Err(no_tar(path, "its name is that of a whiteout").into());
        }
        let dir = &path[..path.len() - name.len()];
        if kind == Kind::Char && inode.device == 0 {
            return self.hides(&[dir, WHITEOUT, name].concat());
        }
        let (xattrs, opaque) = self.xattrs(path, &inode)?;
        if kind == Kind::Dir {
            if !self.dirs.insert(nid) {
                return wrong("a directory in two places");
            }
            (self.each)(&inode.member(path, MemberKind::Dir, xattrs), None)?;
            return if opaque { self.hides(&[path, b"/", OPAQUE].concat()) } else { Ok(()) };
        }
        if let Some(first) = self.first.get(&nid) {
            let link = inode.member(path, MemberKind::Link(first.clone()), Xattrs::default());
            return (self.each)(&link, None);
        }
        if inode.links > 1 {
            self.paths += path.len();
            if self.paths > MOST_PATHS {
                return Err(MemberError::Paths { limit: MOST_PATHS as u64 }.into());
            }
            self.first.insert(nid, path.into());
        }
        let device = decode_device(inode.device);
        let kind = match kind {
            Kind::Symlink => MemberKind::Symlink(image.readlink(&inode).map_err(MemberError::from)?.into()),
            Kind::Char => MemberKind::Char(device),
            Kind::Block => MemberKind::Block(device),
            Kind::Fifo => MemberKind::Fifo,
            Kind::File | Kind::Dir => MemberKind::File,
        };
        let has_bytes = kind == MemberKind::File && inode.size > 0;
        if has_bytes {
            match self.chunks.checked_sub(inode.chunks()) {
                Some(left) => self.chunks = left,
                None => return wrong("maps of chunks that are longer than the image"),
            }
        }
        (self.each)(&inode.member(path, kind, xattrs), has_bytes.then_some(&inode))
    }

    /// Shows an empty file whose name says what is hidden.
    fn hides(&mut self, path: &[u8]) -> Result<(), E> {
        let member = Member {
            path: path.into(),
            kind: MemberKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Xattrs::default(),
            plain: 0,
            payload: 0,
        };
        (self.each)(&member, None)
    }

    /// Returns what attributes an inode has for others than overlayfs, and whether it hides what is below it.
    fn xattrs(&self, path: &[u8], inode: &Inode) -> Result<(Xattrs, bool), MemberError> {
        let (mut found, mut opaque, mut len) = (BTreeMap::new(), false, 0);
        for xattr in self.files.image.xattrs(inode)? {
            let xattr = xattr?;
            let name = [xattr.prefix, xattr.suffix].concat();
            len += name.len() + xattr.value.len();
            if len > limits::XATTR_TOTAL {
                return Err(inode.corrupt("more in extended attributes than a file may have").into());
            }
            if inode.kind == Kind::Dir && xattr.value == b"y" && name == OPAQUE_DIR {
                opaque = true;
            } else if name == ORIGIN {
            } else if name.starts_with(OVERLAY) {
                return Err(no_tar(path, "an attribute by which overlayfs shows something else"));
            } else if found.insert(name.into(), xattr.value.into()).is_some() {
                return Err(inode.corrupt("an extended attribute that is there twice").into());
            }
        }
        Ok((Arc::new(found), opaque))
    }
}

fn no_tar(path: &[u8], why: &'static str) -> MemberError {
    MemberError::NoTar { what: printable(path), why }
}
