//! The tree of a bootstrap as a list, and what each entry says as a member of a tar.

use std::collections::hash_map::Entry as Slot;
use std::collections::{HashMap, HashSet};

use super::NydusError;
use super::bootstrap::{Bootstrap, Chunk};
use super::inodes::Node;
use crate::erofs::disk::decode_device;
use crate::erofs::read::{Kind, Nid};
use crate::limits;
use crate::tar::{Member, MemberKind};
use crate::tree::Xattrs;

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
struct Open<'a> {
    node: Node,
    /// Where its next name is, and the one before.
    at: u64,
    before: &'a [u8],
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
            left: self.inodes.len(),
        };
        lister.run()?;
        Ok(Listing { bootstrap: self, entries: lister.entries })
    }
}

impl<B: AsRef<[u8]>> Bootstrap<B> {
    /// Returns the root as a member of a tar, with an empty path.
    pub fn root(&self) -> Result<Member, NydusError> {
        let nid = self.inodes.root();
        Ok(member(Box::default(), MemberKind::Dir, &self.inodes.node(nid)?, self.inodes.xattrs(nid)?))
    }
}

struct Lister<'a, B> {
    bootstrap: &'a Bootstrap<B>,
    entries: Vec<Entry<'a>>,
    /// Directories that have been met.
    seen: HashSet<Nid>,
    /// First entries of inodes that have several names.
    linked: HashMap<u64, u32>,
    /// Bytes of the bootstrap that no inode has had.
    left: u64,
}

impl<'a, B: AsRef<[u8]>> Lister<'a, B> {
    fn run(&mut self) -> Result<(), NydusError> {
        let inodes = &self.bootstrap.inodes;
        let mut open = vec![self.enter(inodes.node(inodes.root())?, 0, 0)?];
        while let Some(dir) = open.last_mut() {
            let Some(child) = inodes.child(dir.node.nid, dir.at)? else {
                open.pop();
                continue;
            };
            dir.at = child.next;
            if child.name <= dir.before {
                return Err(dir.node.corrupt("names out of order").into());
            }
            dir.before = child.name;
            if matches!(child.name, b"." | b"..") {
                continue;
            }
            let path = dir.path + usize::from(dir.path > 0) + child.name.len();
            if path > limits::PATH {
                return Err(NydusError::TooLarge { what: "a path", limit: limits::PATH as u64 });
            }
            let number = self.add(dir.number, child.name, &child.node)?;
            if child.node.kind == Kind::Dir {
                open.push(self.enter(child.node, number, path)?);
            }
        }
        Ok(())
    }

    /// Adds a name, and returns its number and 1.
    fn add(&mut self, dir: u32, name: &'a [u8], node: &Node) -> Result<u32, NydusError> {
        if self.entries.len() as u64 >= limits::ENTRIES {
            return Err(NydusError::TooLarge { what: "the number of names", limit: limits::ENTRIES });
        }
        let number = u32::try_from(self.entries.len()).unwrap_or(u32::MAX); // see above
        let mut first = None;
        if let Some(id) = node.several.filter(|_| node.kind != Kind::Dir) {
            match self.linked.entry(id) {
                Slot::Occupied(slot) => first = Some(*slot.get()),
                Slot::Vacant(slot) => drop(slot.insert(number)),
            }
        }
        self.entries.push(Entry { dir, name, nid: node.nid, first });
        let has = if first.is_none() && node.kind != Kind::Dir { node.has } else { 0 };
        self.spend(node, has.saturating_add(node.own))?;
        Ok(number + 1)
    }

    /// Opens a directory, which nobody may have done before.
    fn enter(&mut self, node: Node, number: u32, path: usize) -> Result<Open<'a>, NydusError> {
        if !self.seen.insert(node.nid) {
            return Err(node.corrupt("a directory with two names, or in itself").into());
        }
        self.spend(&node, node.has)?;
        Ok(Open { node, at: 0, before: &[], number, path })
    }

    /// Notes how much of the bootstrap an inode has.
    fn spend(&mut self, node: &Node, has: u64) -> Result<(), NydusError> {
        self.left = self.left.checked_sub(has).ok_or(node.corrupt("contents that others have"))?;
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

    /// Says whether the nth entry is a directory that nobody has described: it is there because of what is in it.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn is_implied(&self, n: usize) -> Result<bool, NydusError> {
        Ok(self.bootstrap.inodes.node(self.entries[n].nid)?.implied)
    }

    /// Returns what is to be read first, unless that is everything.
    pub(super) fn prefetched(&self) -> Prefetched {
        let nids: HashSet<_> = self.bootstrap.prefetch().iter().map(|nid| Nid((*nid).into())).collect();
        if nids.is_empty() || nids.contains(&self.bootstrap.inodes.root()) {
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
        let inodes = &self.bootstrap.inodes;
        let node = inodes.node(entry.nid)?;
        let device = || decode_device(node.device);
        let kind = match (entry.first, node.kind) {
            (Some(first), _) => MemberKind::Link(self.path(first as usize).into()),
            (None, Kind::Dir) => MemberKind::Dir,
            (None, Kind::File) => MemberKind::File,
            (None, Kind::Symlink) => MemberKind::Symlink(inodes.target(entry.nid)?.into()),
            (None, Kind::Char) => MemberKind::Char(device()),
            (None, Kind::Block) => MemberKind::Block(device()),
            (None, Kind::Fifo) => MemberKind::Fifo,
        };
        let payload = if kind == MemberKind::File { node.size } else { 0 };
        if payload > limits::LAYER {
            return Err(NydusError::TooLarge { what: "a file", limit: limits::LAYER });
        }
        Ok(Member { payload, ..member(self.path(n).into(), kind, &node, inodes.xattrs(entry.nid)?) })
    }

    /// Returns the chunks of the nth entry; none for what is no regular file, or a further name of one.
    ///
    /// # Panics
    ///
    /// If there are not so many.
    pub fn chunks(&self, n: usize) -> Result<impl Iterator<Item = Result<Chunk, NydusError>>, NydusError> {
        let entry = &self.entries[n];
        let node = self.bootstrap.inodes.node(entry.nid)?;
        let has = entry.first.is_none() && node.kind == Kind::File;
        let chunks = has.then(|| self.bootstrap.inodes.chunks(&node, &self.bootstrap.blobs)).transpose()?;
        Ok(chunks.into_iter().flatten())
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

/// Returns an inode as a member of a tar that has no bytes.
fn member(path: Box<[u8]>, kind: MemberKind, node: &Node, xattrs: Xattrs) -> Member {
    Member {
        path,
        kind,
        mode: node.permissions,
        uid: node.uid,
        gid: node.gid,
        mtime: node.mtime,
        xattrs,
        plain: 0,
        payload: 0,
    }
}
