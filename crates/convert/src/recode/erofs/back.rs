//! Back from the image of a layer to a tar of what is in it.
//!
//! It is not the tar that the image was made of: of that there are neither headers nor the order of members. They are in the
//! order of the tree, directories before what is in them, and what overlayfs is told to hide is hidden as a tar says it. So the
//! same image always gives the same bytes.
//!
//! Inodes lie anywhere in an image, so it is in a file first, and has its digest, before anything is made of it. Images that
//! others have written are read, too, as long as nothing in them is compressed.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io::{BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::ControlFlow;
use std::sync::Arc;

use format::erofs::disk::{BLOCK, decode_device};
use format::erofs::read::{Corrupt, Entry, Image, Inode, Kind, LayerHead, Nid, OpenError, Source, Step};
use format::index::most_plain;
use format::name::printable;
use format::tar::{Member, MemberKind};
use format::tree::{Time, Xattrs};
use format::{Digest, limits};
use sys::map::Map;

use super::super::RecodeError;
use super::super::tree_tar::{Part, TreeTar, keep};
use super::ErofsError;

/// Bytes that are handed on at once.
const WINDOW: usize = 256 << 10;

/// How names begin that hide others, and the one that hides all.
const WHITEOUT: &[u8] = b".wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// What overlayfs reads of attributes, and what makes a directory opaque. Of `user.overlay.` it reads nothing where containerd
/// mounts it.
const OVERLAY: &[u8] = b"trusted.overlay.";
const OPAQUE_DIR: &[u8] = b"trusted.overlay.opaque";

/// Most bytes of the first paths of what says that it has several: of a million files, 64 each.
const MOST_PATHS: usize = 64 << 20;

/// What mkfs.erofs writes where a directory has something hidden in it: by this overlayfs numbers inodes, and shows nothing else.
const ORIGIN: &[u8] = b"trusted.overlay.origin";

/// A tar that was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Unpacked {
    /// Its digest.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
}

/// Makes a tar of an image of this digest and length. `file` is where the image goes meanwhile; nobody else changes it. `tar` is
/// empty: where files have holes nothing is written, so that a file has them, too.
pub fn unpack(
    blob: impl Read,
    expected: Digest,
    size: u64,
    file: &File,
    tar: impl Write + Seek,
) -> Result<Unpacked, RecodeError> {
    keep(blob, expected, size, file)?;
    let map = Map::of(file).map_err(RecodeError::Read)?;
    let short = |must| ErofsError::from(OpenError::Short { is: size, must });
    let map = usize::try_from(size).ok().and_then(|size| map.get(..size)).ok_or_else(|| short(size))?;
    let first = map.first_chunk::<BLOCK>().ok_or_else(|| short(limits::BLOCK))?;
    let head = LayerHead::read(first).map_err(ErofsError::from)?;
    // What follows the file system, such as hashes of its blocks, is none of it.
    let bytes = usize::try_from(head.len()).ok().and_then(|len| map.get(..len));
    let bytes = bytes.ok_or_else(|| short(head.len()))?;
    let meta = usize::try_from(head.meta()).ok().and_then(|meta| bytes.get(meta..));
    let meta = meta.ok_or_else(|| short(head.meta()))?;
    let image = head.open(meta).map_err(ErofsError::from)?;
    let mut out = BufWriter::with_capacity(WINDOW, tar);
    let put = |part: Part<'_>| put(&mut out, part);
    let mut back = Back {
        image: &image,
        bytes,
        tar: TreeTar::new(most_plain(size).min(limits::LAYER), put),
        first: HashMap::new(),
        paths: 0,
        dirs: HashSet::new(),
    };
    back.all()?;
    let (digest, size) = back.tar.finish()?;
    out.flush().map_err(RecodeError::Spool)?;
    Ok(Unpacked { digest, size })
}

/// Writes a part of a tar, or goes on behind it. What is behind a hole is written, for a tar ends with blocks of its own.
fn put(out: &mut (impl Write + Seek), part: Part<'_>) -> Result<(), RecodeError> {
    match part {
        Part::Zeros(len) if len >= limits::BLOCK => {
            let len = i64::try_from(len).unwrap_or(i64::MAX); // a tar is bounded
            out.seek(SeekFrom::Current(len)).map(drop).map_err(RecodeError::Spool)
        }
        part => part.each(|bytes| out.write_all(bytes).map_err(RecodeError::Spool)),
    }
}

/// A walk through an image.
struct Back<'a, F> {
    image: &'a Image<&'a [u8]>,
    /// All of it.
    bytes: &'a [u8],
    tar: TreeTar<F>,
    /// The first paths of what has several, and how long they are together.
    first: HashMap<Nid, Box<[u8]>>,
    paths: usize,
    /// Directories that were entered: none may be in two places, nor in itself.
    dirs: HashSet<Nid>,
}

impl<F: FnMut(Part<'_>) -> Result<(), RecodeError>> Back<'_, F> {
    fn all(&mut self) -> Result<(), RecodeError> {
        let image = self.image;
        let mut ended = self.root();
        let walked = image.walk(|step| {
            if ended.is_ok() {
                ended = self.step(step);
            }
            if ended.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        ended?;
        Ok(walked.map_err(ErofsError::from)?)
    }

    /// Writes the root where it says more than that it is there.
    fn root(&mut self) -> Result<(), RecodeError> {
        let root = self.image.inode(self.image.root()).map_err(ErofsError::from)?;
        self.dirs.insert(root.nid);
        let (xattrs, opaque) = self.xattrs(b"", &root)?;
        let usual = (root.permissions, root.uid, root.gid) == (0o755, 0, 0) && xattrs.is_empty();
        if !usual {
            self.tar.member(&root.member(b"./", MemberKind::Dir, xattrs))?;
        }
        if opaque { self.hides(OPAQUE) } else { Ok(()) }
    }

    fn step(&mut self, Step { path, entry }: Step<'_>) -> Result<(), RecodeError> {
        let Entry { nid, kind, name, .. } = entry;
        let inode = self.image.inode(nid).map_err(ErofsError::from)?;
        let wrong = |what| Err(ErofsError::from(Corrupt { nid, what }).into());
        if inode.kind != kind {
            return wrong("its name says that it is something else");
        }
        if name.starts_with(WHITEOUT) {
            return Err(no_tar(path, "its name is that of a whiteout"));
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
            self.tar.member(&inode.member(path, MemberKind::Dir, xattrs))?;
            return if opaque { self.hides(&[path, b"/", OPAQUE].concat()) } else { Ok(()) };
        }
        if let Some(first) = self.first.get(&nid) {
            let link = inode.member(path, MemberKind::Link(first.clone()), Xattrs::default());
            return self.tar.member(&link);
        }
        if inode.links > 1 {
            self.paths += path.len();
            if self.paths > MOST_PATHS {
                let limit = MOST_PATHS as u64;
                return Err(RecodeError::Limit { what: "the names of files that have several", limit });
            }
            self.first.insert(nid, path.into());
        }
        let device = decode_device(inode.device);
        let kind = match kind {
            Kind::Symlink => {
                MemberKind::Symlink(self.image.readlink(&inode).map_err(ErofsError::from)?.into())
            }
            Kind::Char => MemberKind::Char(device),
            Kind::Block => MemberKind::Block(device),
            Kind::Fifo => MemberKind::Fifo,
            Kind::File | Kind::Dir => MemberKind::File,
        };
        let is_file = kind == MemberKind::File;
        self.tar.member(&inode.member(path, kind, xattrs))?;
        if is_file { self.file(&inode) } else { Ok(()) }
    }

    /// Writes the bytes of a file.
    fn file(&mut self, inode: &Inode) -> Result<(), RecodeError> {
        for piece in self.image.pieces(inode, 0, inode.size).map_err(ErofsError::from)? {
            let piece = piece.map_err(ErofsError::from)?;
            match piece.source {
                Source::Hole => self.tar.zeros(piece.len)?,
                Source::Device { offset, .. } => {
                    let range = usize::try_from(offset).ok().zip(usize::try_from(offset + piece.len).ok());
                    let bytes = range.and_then(|(from, to)| self.bytes.get(from..to));
                    let corrupt = Corrupt { nid: inode.nid, what: "bytes past the end" };
                    let bytes = bytes.ok_or(ErofsError::from(corrupt))?;
                    // mkfs.erofs has zeros once, and says that they are everywhere.
                    for piece in bytes.chunks(WINDOW) {
                        match piece.iter().all(|byte| *byte == 0) {
                            true => self.tar.zeros(piece.len() as u64)?,
                            false => self.tar.write(piece)?,
                        }
                    }
                }
            }
        }
        Ok(())
    }

    /// Writes an empty file whose name says what is hidden.
    fn hides(&mut self, path: &[u8]) -> Result<(), RecodeError> {
        self.tar.member(&Member {
            path: path.into(),
            kind: MemberKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime: Time::default(),
            xattrs: Xattrs::default(),
            plain: 0,
            payload: 0,
        })
    }

    /// Returns what attributes an inode has for others than overlayfs, and whether it hides what is below it.
    fn xattrs(&self, path: &[u8], inode: &Inode) -> Result<(Xattrs, bool), RecodeError> {
        let (mut found, mut opaque, mut len) = (BTreeMap::new(), false, 0);
        let corrupt = |what| ErofsError::from(Corrupt { nid: inode.nid, what });
        for xattr in self.image.xattrs(inode).map_err(ErofsError::from)? {
            let xattr = xattr.map_err(ErofsError::from)?;
            let name = [xattr.prefix, xattr.suffix].concat();
            len += name.len() + xattr.value.len();
            if len > limits::XATTR_TOTAL {
                return Err(corrupt("more in extended attributes than a file may have").into());
            }
            if inode.kind == Kind::Dir && xattr.value == b"y" && name == OPAQUE_DIR {
                opaque = true;
            } else if name == ORIGIN {
            } else if name.starts_with(OVERLAY) {
                return Err(no_tar(path, "an attribute by which overlayfs shows something else"));
            } else if found.insert(name.into(), xattr.value.into()).is_some() {
                return Err(corrupt("an extended attribute that is there twice").into());
            }
        }
        Ok((Arc::new(found), opaque))
    }
}

fn no_tar(path: &[u8], why: &'static str) -> RecodeError {
    ErofsError::NoTar { what: printable(path), why }.into()
}
