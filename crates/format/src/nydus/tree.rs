//! The tree of a bootstrap as a list, and what each entry says as a member of a tar.

use std::collections::hash_map::Entry as Slot;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use zerocopy::FromBytes;

use super::NydusError;
use super::bootstrap::{Bootstrap, Chunk};
use super::disk::ChunkAddress;
use crate::erofs::disk::decode_device;
use crate::erofs::read::{Inode, Kind, Nid};
use crate::limits;
use crate::tar::{Member, MemberKind};

/// All names of a bootstrap but the root's: directories before what is in them, names in order.
///
/// What is in it is a few words for each name; members are made when they are asked for.
#[derive(Debug)]
pub struct Listing<'a, B> {
    bootstrap: &'a Bootstrap<B>,
    entries: Vec<Entry<'a>>,
}

/// Which entries are to be read first: as the writer has it, or because of a directory above them.
pub(super) struct Prefetched(Vec<bool>);

impl Prefetched {
    pub(super) fn contains(&self, n: usize) -> bool {
        self.0.get(n).is_some_and(|first| *first)
    }
}

#[derive(Debug, Clone, Copy)]
struct Entry<'a> {
    /// Number of the entry of its directory and 1; 0 for the root.
    dir: u32,
    name: &'a [u8],
    nid: Nid,
    /// Number of the first entry of the same inode, if this is not the first.
    first: Option<u32>,
}

/// A directory that is being listed.
struct Open {
    inode: Inode,
    cookie: u64,
    /// As [`Entry::dir`] of what is in it.
    number: u32,
    /// Length of its path.
    path: usize,
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Lists the tree.
    ///
    /// Bounded by [`limits::ENTRIES`] and [`limits::PATH`], and by the length of the bootstrap: what inodes have in it does not
    /// overlap, so it cannot be longer together.
    pub fn list(&self) -> Result<Listing<'_, B>, NydusError> {
        let mut lister = Lister {
            bootstrap: self,
            entries: Vec::new(),
            seen: HashSet::new(),
            linked: HashMap::new(),
            left: self.image.len(),
        };
        lister.run()?;
        Ok(Listing { bootstrap: self, entries: lister.entries })
    }

    /// Returns the number of chunks of a file.
    fn chunk_count(&self, inode: &Inode) -> u64 {
        if inode.kind == Kind::File { inode.size.div_ceil(self.chunk_size.into()) } else { 0 }
    }
}

struct Lister<'a, B> {
    bootstrap: &'a Bootstrap<B>,
    entries: Vec<Entry<'a>>,
    /// Directories that have been met.
    seen: HashSet<Nid>,
    /// First entries of inodes that have several names.
    linked: HashMap<Nid, u32>,
    /// Bytes of the bootstrap that no inode has had.
    left: u64,
}

impl<'a, B: AsRef<[u8]>> Lister<'a, B> {
    fn run(&mut self) -> Result<(), NydusError> {
        let image = &self.bootstrap.image;
        let root = image.inode(image.root())?;
        let mut open = vec![self.enter(root, 0, 0)?];
        let mut before: Vec<&'a [u8]> = vec![&[]]; // the name before, in each of them
        while let (Some(dir), Some(last)) = (open.last_mut(), before.last_mut()) {
            let Some(entry) = image.entries(&dir.inode, dir.cookie)?.next().transpose()? else {
                open.pop();
                before.pop();
                continue;
            };
            dir.cookie = entry.next;
            if entry.name <= *last {
                return Err(dir.inode.corrupt("names out of order").into());
            }
            *last = entry.name;
            if matches!(entry.name, b"." | b"..") {
                continue;
            }
            let path = dir.path + usize::from(dir.path > 0) + entry.name.len();
            if path > limits::PATH {
                return Err(NydusError::TooLarge { what: "a path", limit: limits::PATH as u64 });
            }
            let inode = image.inode(entry.nid)?;
            if inode.kind != entry.kind {
                return Err(inode.corrupt("its entry says that it is something else").into());
            }
            let number = self.add(dir.number, entry.name, &inode)?;
            if inode.kind == Kind::Dir {
                open.push(self.enter(inode, number, path)?);
                before.push(&[]);
            }
        }
        Ok(())
    }

    /// Adds a name, and returns its number and 1.
    fn add(&mut self, dir: u32, name: &'a [u8], inode: &Inode) -> Result<u32, NydusError> {
        if self.entries.len() as u64 >= limits::ENTRIES {
            return Err(NydusError::TooLarge { what: "the number of names", limit: limits::ENTRIES });
        }
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX); // see above
        let mut first = None;
        if inode.kind != Kind::Dir && inode.links > 1 {
            match self.linked.entry(inode.nid) {
                Slot::Occupied(slot) => first = Some(*slot.get()),
                Slot::Vacant(slot) => drop(slot.insert(number)),
            }
        }
        self.entries.push(Entry { dir, name, nid: inode.nid, first });
        if first.is_none() && inode.kind != Kind::Dir {
            let inside = if inode.kind == Kind::Symlink { inode.size } else { 0 };
            let chunks = self.bootstrap.chunk_count(inode).saturating_mul(size_of::<ChunkAddress>() as u64);
            self.spend(inode, inside.saturating_add(chunks))?;
        }
        Ok(number + 1)
    }

    /// Opens a directory, which nobody may have done before.
    fn enter(&mut self, inode: Inode, number: u32, path: usize) -> Result<Open, NydusError> {
        if !self.seen.insert(inode.nid) {
            return Err(inode.corrupt("a directory with two names, or in itself").into());
        }
        self.spend(&inode, inode.size)?;
        Ok(Open { inode, cookie: 0, number, path })
    }

    /// Notes how much of the bootstrap an inode has.
    fn spend(&mut self, inode: &Inode, has: u64) -> Result<(), NydusError> {
        let all = has.saturating_add(inode.xattrs_len());
        self.left = self.left.checked_sub(all).ok_or(inode.corrupt("contents that others have"))?;
        Ok(())
    }
}

impl<B: AsRef<[u8]>> Listing<'_, B> {
    /// Returns the number of names.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Says that there is nothing but the root.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Says whether the nth entry is a further name of an inode that an entry before it has.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn is_link(&self, n: usize) -> bool {
        self.entries[n].first.is_some()
    }

    /// Returns what is to be read first, unless that is everything.
    pub(super) fn prefetched(&self) -> Prefetched {
        let nids: HashSet<_> = self.bootstrap.prefetch().iter().map(|nid| Nid((*nid).into())).collect();
        if nids.is_empty() || nids.contains(&self.bootstrap.image.root()) {
            return Prefetched(Vec::new());
        }
        let mut first: Vec<bool> = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            // A directory comes before what is in it.
            let by_dir = (entry.dir as usize).checked_sub(1).is_some_and(|dir| first[dir]);
            first.push(by_dir || nids.contains(&entry.nid));
        }
        Prefetched(first)
    }

    /// Returns the nth entry as a member of a tar. A name of an inode that an entry before has is a hard link to that.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn member(&self, n: usize) -> Result<Member, NydusError> {
        let entry = &self.entries[n];
        let image = &self.bootstrap.image;
        let inode = image.inode(entry.nid)?;
        let device = || decode_device(inode.device);
        let kind = match (entry.first, inode.kind) {
            (Some(first), _) => MemberKind::Link(self.path(first as usize).into()),
            (None, Kind::Dir) => MemberKind::Dir,
            (None, Kind::File) => MemberKind::File,
            (None, Kind::Symlink) => MemberKind::Symlink(image.readlink(&inode)?.into()),
            (None, Kind::Char) => MemberKind::Char(device()),
            (None, Kind::Block) => MemberKind::Block(device()),
            (None, Kind::Fifo) => MemberKind::Fifo,
        };
        let mut xattrs = BTreeMap::new();
        for xattr in image.xattrs(&inode)? {
            let xattr = xattr?;
            xattrs.insert([xattr.prefix, xattr.suffix].concat().into(), xattr.value.into());
        }
        let payload = if kind == MemberKind::File { inode.size } else { 0 };
        if payload > limits::LAYER {
            return Err(NydusError::TooLarge { what: "a file", limit: limits::LAYER });
        }
        Ok(Member {
            path: self.path(n).into(),
            kind,
            mode: inode.permissions,
            uid: inode.uid,
            gid: inode.gid,
            mtime: inode.mtime,
            xattrs: Arc::new(xattrs),
            plain: 0,
            payload,
        })
    }

    /// Returns the chunks of the nth entry; none for what is no regular file, or a further name of one.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn chunks(&self, n: usize) -> Result<impl Iterator<Item = Result<Chunk, NydusError>>, NydusError> {
        let entry = &self.entries[n];
        let (image, rows) = (&self.bootstrap.image, &self.bootstrap.rows);
        let inode = image.inode(entry.nid)?;
        let count = if entry.first.is_none() { self.bootstrap.chunk_count(&inode) } else { 0 };
        let raw = if count > 0 { image.chunk_indexes(&inode, count)? } else { &[] };
        let (size, mut left) = (u64::from(self.bootstrap.chunk_size), inode.size);
        Ok(raw.chunks_exact(size_of::<ChunkAddress>()).map(move |raw| {
            let found = ChunkAddress::read_from_bytes(raw).ok().and_then(|address| rows.chunk(&address));
            let chunk = found.ok_or(inode.corrupt("a chunk that is in no table"))?;
            if u64::from(chunk.len) != left.min(size) {
                return Err(inode.corrupt("a chunk of another length").into());
            }
            left -= u64::from(chunk.len);
            Ok(chunk)
        }))
    }

    /// Returns the path of the nth entry, without a leading slash.
    fn path(&self, n: usize) -> Vec<u8> {
        let mut names = Vec::new();
        let mut at = Some(n);
        while let Some(entry) = at.map(|n| &self.entries[n]) {
            names.push(entry.name);
            at = (entry.dir as usize).checked_sub(1);
        }
        names.reverse();
        names.join(&b'/')
    }
}
