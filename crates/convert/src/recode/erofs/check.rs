//! Whether the image of a layer holds what the layer does.
//!
//! The layer is laid once more, and instead of its bytes a hash of each block is kept; likewise of the image. Then the image's
//! names are read as any other program would, and held against the tree of the layer.

use std::collections::{BTreeMap, HashMap};
use std::io::{self, Read, Write};

use format::erofs::disk::{BLOCK, encode_device};
use format::erofs::read::{Corrupt, Image, Inode, Kind, LayerHead, Nid, OpenError, Source};
use format::erofs::write::layer::FILES;
use format::name::{Name, printable};
use format::tree::{self, File, InodeNo, Runs, Tree};
use format::{Digest, DigestHasher, limits};

use super::super::{RecodeError, read};
use super::ErofsError;
use super::lay::Lay;
use crate::Expected;
use crate::builder::read_all;

/// An image that is checked.
#[derive(Debug)]
pub struct Made<R> {
    /// Its bytes.
    pub bytes: R,
    /// What they must turn out to be.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
}

/// Compares a layer, whose blob has this length, with the image that was made of it; the first difference is the error.
pub fn compare(
    layer: impl Read,
    expected: &Expected,
    blob_size: u64,
    made: Made<impl Read>,
) -> Result<(), RecodeError> {
    let mut blocks = Blocks::default();
    let mut lay = Lay::new(&mut blocks)?;
    read(layer, expected, blob_size, &mut lay)?;
    let (tree, _) = lay.finish()?;
    let (image, there) = take(made)?;
    Comparison { tree, blocks, image, there, seen: HashMap::new(), back: HashMap::new() }.all()?;
    Ok(())
}

/// Bytes of a hash: nobody gains by two blocks that look alike, for layer and image have their own digests.
const HASH: usize = 16;

/// Hashes of the blocks between [`FILES`] and an image's names.
#[derive(Default)]
struct Blocks {
    hashes: Vec<[u8; HASH]>,
    /// A block that is not whole.
    part: Vec<u8>,
}

impl Blocks {
    fn push(&mut self, block: &[u8]) {
        let mut hash = [0; HASH];
        hash.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH]);
        self.hashes.push(hash);
    }

    /// Returns the hash of the block at an offset of the image.
    fn at(&self, offset: u64) -> Option<&[u8; HASH]> {
        let n = offset.checked_sub(FILES)? / limits::BLOCK;
        self.hashes.get(usize::try_from(n).ok()?)
    }
}

impl Write for &mut Blocks {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let mut rest = bytes;
        if !self.part.is_empty() {
            let (now, later) = rest.split_at((BLOCK - self.part.len()).min(rest.len()));
            self.part.extend_from_slice(now);
            rest = later;
            if self.part.len() < BLOCK {
                return Ok(bytes.len());
            }
            let part = std::mem::take(&mut self.part);
            self.push(&part);
        }
        let (whole, part) = rest.as_chunks::<BLOCK>();
        whole.iter().for_each(|block| self.push(block));
        self.part.extend_from_slice(part);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads an image to its end: its names, and hashes of what is before them.
fn take(mut made: Made<impl Read>) -> Result<(Image<Vec<u8>>, Blocks), RecodeError> {
    let short = |is| ErofsError::from(OpenError::Short { is, must: FILES });
    let mut first = [0; BLOCK];
    made.bytes.read_exact(&mut first).map_err(|error| match error.kind() {
        io::ErrorKind::UnexpectedEof => short(0).into(),
        _ => RecodeError::Read(error),
    })?;
    let mut hasher = DigestHasher::new();
    hasher.update(&first);
    let head = LayerHead::read(&first).map_err(ErofsError::from)?;
    let (meta, size) = (head.meta(), made.size);
    if head.len() != size || meta < FILES || size.saturating_sub(meta) > limits::METADATA {
        return Err(short(size).into());
    }
    let (mut at, mut blocks, mut names) = (FILES, Blocks::default(), Vec::new());
    read_all(made.bytes, RecodeError::Read, |piece| {
        hasher.update(piece);
        let files = usize::try_from(meta.saturating_sub(at)).unwrap_or(usize::MAX).min(piece.len());
        at += piece.len() as u64;
        if at > size {
            return Err(RecodeError::BlobLength { expected: size, found: None });
        }
        (&mut blocks).write_all(&piece[..files]).map_err(RecodeError::Read)?;
        names.extend_from_slice(&piece[files..]);
        Ok(())
    })?;
    if at != size {
        return Err(RecodeError::BlobLength { expected: size, found: Some(at) });
    }
    let found = hasher.finish();
    if found != made.digest {
        return Err(RecodeError::BlobDigest { expected: made.digest, found });
    }
    Ok((head.open(names).map_err(ErofsError::from)?, blocks))
}

/// A name, and what it leads to in the tree and in the image.
type Child = (Name, InodeNo, Nid);

/// A tree and an image that should be the same.
struct Comparison {
    tree: Tree,
    blocks: Blocks,
    image: Image<Vec<u8>>,
    there: Blocks,
    /// Which inode of the image one of the tree is, how many names have led to it, and the other way round.
    seen: HashMap<InodeNo, (Nid, u32)>,
    back: HashMap<Nid, InodeNo>,
}

impl Comparison {
    fn all(mut self) -> Result<(), ErofsError> {
        let mut waiting = vec![(String::new(), Tree::ROOT, self.image.root())];
        while let Some((path, number, nid)) = waiting.pop() {
            let differs = || ErofsError::Differs(path.clone());
            if *self.back.entry(nid).or_insert(number) != number {
                return Err(differs());
            }
            let (first, names) = self.seen.entry(number).or_insert((nid, 0));
            *names += 1;
            if *first != nid {
                return Err(differs());
            }
            if *names > 1 {
                continue;
            }
            let inode = self.image.inode(nid)?;
            let one = self.tree.inode(number);
            if !self.same_meta(&one.meta, &inode)? || !self.same_kind(&one.kind, &inode)? {
                return Err(differs());
            }
            if let tree::Kind::Dir(entries) = &one.kind {
                let children = self.children(entries, &inode)?.ok_or_else(differs)?;
                waiting.extend(children.into_iter().map(|(name, number, nid)| {
                    (format!("{path}/{}", printable(name.as_bytes())), number, nid)
                }));
            }
        }
        self.links()
    }

    /// Holds what inodes say of the number of their names against the names there are.
    fn links(&self) -> Result<(), ErofsError> {
        for (nid, names) in self.seen.values() {
            let inode = self.image.inode(*nid)?;
            if inode.kind != Kind::Dir && inode.links != *names {
                return Err(ErofsError::Differs(format!("the number of names of inode {nid}")));
            }
        }
        Ok(())
    }

    fn same_meta(&self, meta: &tree::Meta, inode: &Inode) -> Result<bool, Corrupt> {
        let said = (meta.mode, meta.uid, meta.gid, meta.mtime);
        if said != (inode.permissions, inode.uid, inode.gid, inode.mtime) {
            return Ok(false);
        }
        let mut found: BTreeMap<Box<[u8]>, Box<[u8]>> = BTreeMap::new();
        for xattr in self.image.xattrs(inode)? {
            let xattr = xattr?;
            if found.insert([xattr.prefix, xattr.suffix].concat().into(), xattr.value.into()).is_some() {
                return Ok(false);
            }
        }
        Ok(found == *meta.xattrs)
    }

    fn same_kind(&self, kind: &tree::Kind, inode: &Inode) -> Result<bool, Corrupt> {
        Ok(match (kind, inode.kind) {
            (tree::Kind::Dir(_), Kind::Dir) | (tree::Kind::Fifo, Kind::Fifo) => true,
            (tree::Kind::Symlink(target), Kind::Symlink) => self.image.readlink(inode)? == &**target,
            (tree::Kind::Char(device), Kind::Char) | (tree::Kind::Block(device), Kind::Block) => {
                encode_device(*device) == Some(inode.device)
            }
            (tree::Kind::File(file), Kind::File) => self.same_file(file, inode)?,
            _ => false,
        })
    }

    /// Compares two files block by block.
    fn same_file(&self, file: &File, inode: &Inode) -> Result<bool, Corrupt> {
        if file.size != inode.size {
            return Ok(false);
        }
        let mut left = held(file);
        let mut at = 0;
        for piece in self.image.pieces(inode, 0, inode.size)? {
            let piece = piece?;
            if let Source::Device { offset, .. } = piece.source {
                for done in (0..piece.len).step_by(BLOCK) {
                    let own = left.next().filter(|(place, _)| *place == at + done);
                    let own = own.and_then(|(_, payload)| self.blocks.at(payload));
                    if own.is_none() || own != self.there.at(offset + done) {
                        return Ok(false);
                    }
                }
            }
            at += piece.len;
        }
        Ok(left.next().is_none())
    }

    /// Returns what two directories have in common, if that is all of both.
    fn children(
        &self,
        entries: &BTreeMap<Name, InodeNo>,
        dir: &Inode,
    ) -> Result<Option<Vec<Child>>, Corrupt> {
        let (mut own, mut children) = (entries.iter(), Vec::new());
        for entry in self.image.entries(dir, 0)? {
            let entry = entry?;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            match own.next() {
                Some((name, number)) if name.as_bytes() == entry.name => {
                    children.push((name.clone(), *number, entry.nid));
                }
                _ => return Ok(None),
            }
        }
        Ok(own.next().is_none().then_some(children))
    }
}

/// Returns the blocks that a file has bytes in: where in the file, and where in payload space.
fn held(file: &File) -> impl Iterator<Item = (u64, u64)> {
    let runs = match &file.runs {
        Runs::None => Vec::new(),
        &Runs::Whole(payload) => vec![(0, payload, file.size)],
        Runs::Sparse(runs) => runs.iter().map(|run| (run.at, run.payload, run.len)).collect(),
    };
    runs.into_iter()
        .flat_map(|(at, payload, len)| (0..len).step_by(BLOCK).map(move |done| (at + done, payload + done)))
}
