//! Whether a bootstrap has the tree that it should, as its readers find it, and its files the chunks.

use std::collections::btree_map::Iter;
use std::collections::{HashMap, HashSet};

use format::name::{Name, printable};
use format::nydus::bootstrap::{Bootstrap, Chunk, Listing};
use format::nydus::write::CHUNK_SIZE;
use format::tar::{Member, MemberKind};
use format::tree::{File, InodeNo, Kind, Meta, Tree};

use super::NydusError;

/// Holds a bootstrap against a tree, whose directories in `implied` nobody has described; the first difference is the error.
/// `has` says whether a chunk is that of a file, by its number there.
pub(super) fn hold<B: AsRef<[u8]>>(
    (tree, implied): (&Tree, &HashSet<InodeNo>),
    bootstrap: &Bootstrap<B>,
    has: impl Fn(&File, u64, &Chunk) -> bool,
) -> Result<(), NydusError> {
    let list = bootstrap.list()?;
    let root = &tree.inode(Tree::ROOT);
    if !is_same(&root.meta, &bootstrap.root()?) {
        return Err(NydusError::Differs("/".into()));
    }
    let mut held = Held { tree, implied, list: &list, next: 0, first: HashMap::new(), has };
    let (mut path, mut open) = (Vec::new(), vec![(entries(&root.kind), 0)]);
    while let Some((names, len)) = open.last_mut() {
        path.truncate(*len);
        let Some((name, number)) = names.next() else {
            open.pop();
            continue;
        };
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name.as_bytes());
        if !held.entry(*number, &path)? {
            return Err(NydusError::Differs(printable(&path)));
        }
        let kind = &tree.inode(*number).kind;
        if matches!(kind, Kind::Dir(_)) {
            open.push((entries(kind), path.len()));
        }
    }
    match held.next < list.len() {
        true => Err(NydusError::Differs(printable(&list.member(held.next)?.path))),
        false => Ok(()),
    }
}

/// What is held against what.
struct Held<'a, B, H> {
    tree: &'a Tree,
    implied: &'a HashSet<InodeNo>,
    list: &'a Listing<'a, B>,
    /// The entry of the list that comes next.
    next: usize,
    /// Which entries are the first of what is no directory.
    first: HashMap<InodeNo, usize>,
    has: H,
}

impl<B: AsRef<[u8]>, H: Fn(&File, u64, &Chunk) -> bool> Held<'_, B, H> {
    /// Says whether the next entry is this one.
    fn entry(&mut self, number: InodeNo, path: &[u8]) -> Result<bool, NydusError> {
        let n = self.next;
        if n >= self.list.len() {
            return Ok(false);
        }
        self.next += 1;
        let (inode, member) = (self.tree.inode(number), self.list.member(n)?);
        if *member.path != *path {
            return Ok(false);
        }
        if let Some(first) = self.first.get(&number) {
            let first = self.list.member(*first)?.path;
            return Ok(member.kind == MemberKind::Link(first));
        }
        if !is_same(&inode.meta, &member) {
            return Ok(false);
        }
        let is_same = match (&inode.kind, &member.kind) {
            (Kind::Dir(_), MemberKind::Dir) => {
                return Ok(self.list.is_implied(n)? == self.implied.contains(&number));
            }
            (Kind::File(file), MemberKind::File) => file.size == member.payload && self.chunks(file, n)?,
            (Kind::Symlink(target), MemberKind::Symlink(found)) => target == found,
            (Kind::Char(device), MemberKind::Char(found))
            | (Kind::Block(device), MemberKind::Block(found)) => device == found,
            (Kind::Fifo, MemberKind::Fifo) => true,
            _ => false,
        };
        self.first.insert(number, n);
        Ok(is_same)
    }

    /// Says whether an entry has the chunks of a file.
    fn chunks(&self, file: &File, n: usize) -> Result<bool, NydusError> {
        let mut count = 0;
        for chunk in self.list.chunks(n)? {
            if !(self.has)(file, count, &chunk?) {
                return Ok(false);
            }
            count += 1;
        }
        Ok(count == file.size.div_ceil(CHUNK_SIZE.into()))
    }
}

fn is_same(meta: &Meta, member: &Member) -> bool {
    let Meta { mode, uid, gid, mtime, xattrs } = meta;
    (*mode, *uid, *gid, *mtime) == (member.mode, member.uid, member.gid, member.mtime)
        && *xattrs == member.xattrs
}

fn entries(kind: &Kind) -> Iter<'_, Name, InodeNo> {
    const NONE: &std::collections::BTreeMap<Name, InodeNo> = &std::collections::BTreeMap::new();
    if let Kind::Dir(entries) = kind { entries.iter() } else { NONE.iter() }
}
