//! What layers show together, to be compared with what an image shows: as any reader finds both, whoever has written them.

use std::collections::BTreeMap;
use std::collections::HashMap;

use format::name::{Name, printable};
use format::nydus::bootstrap::Bootstrap;
use format::tree::{Builder, File, InodeNo, Kind, Runs, Tree};
use format::{Digest, DigestHasher};

use super::NydusError;

/// The tree of some layers, and what is in its files.
#[derive(Default)]
pub(super) struct Shown {
    tree: Builder,
    /// Of each file of each layer the digest of its chunks' hashes.
    files: Vec<Vec<Digest>>,
}

impl Shown {
    /// Adds the next layer.
    pub(super) fn add<B: AsRef<[u8]>>(&mut self, layer: &Bootstrap<B>) -> Result<(), NydusError> {
        let list = layer.list()?;
        self.tree.layer()?;
        let mut files = Vec::new();
        for n in 0..list.len() {
            if list.is_implied(n)? {
                continue;
            }
            let member = list.member(n)?;
            let mut runs = Runs::None;
            if member.payload > 0 {
                runs = Runs::Whole(files.len() as u64);
                let mut hasher = DigestHasher::new();
                for chunk in list.chunks(n)? {
                    hasher.update(&chunk?.id.0);
                }
                files.push(hasher.finish());
            }
            self.tree.member(&member, runs)?;
        }
        self.files.push(files);
        Ok(())
    }

    /// Returns the first path at which another one shows something else, but for what not every writer keeps: the root, which no
    /// layer shows, and times.
    pub(super) fn difference(&self, other: &Self) -> Option<String> {
        // Which inode of the other one is the same, so that hard links lead to the same files.
        let (mut there, mut back) = (HashMap::new(), HashMap::new());
        let mut open = vec![(Vec::new(), self.entries(Tree::ROOT), other.entries(Tree::ROOT))];
        while let Some((dir, ours, theirs)) = open.pop() {
            let name = ours.keys().chain(theirs.keys()).find(|name| {
                let pair = ours.get(*name).zip(theirs.get(*name));
                pair.is_none_or(|(one, two)| {
                    let first = *there.entry(*one).or_insert(*two) == *two;
                    !first || *back.entry(*two).or_insert(*one) != *one || !self.is_same(*one, other, *two)
                })
            });
            let path = |name: &Name| [&dir[..], b"/", name.as_bytes()].concat();
            if let Some(name) = name {
                return Some(printable(&path(name)));
            }
            for (name, number) in ours {
                if matches!(self.kind(*number), Kind::Dir(_)) {
                    open.push((path(name), self.entries(*number), other.entries(theirs[name])));
                }
            }
        }
        None
    }

    fn is_same(&self, one: InodeNo, other: &Self, two: InodeNo) -> bool {
        let meta = |tree: &Self, number| {
            let meta = &tree.tree.tree().inode(number).meta;
            (meta.mode, meta.uid, meta.gid, meta.xattrs.clone())
        };
        meta(self, one) == meta(other, two)
            && match (self.kind(one), other.kind(two)) {
                (Kind::Dir(_), Kind::Dir(_)) => true,
                (Kind::File(one), Kind::File(two)) => {
                    one.size == two.size && self.digest(one) == other.digest(two)
                }
                (one, two) => one == two,
            }
    }

    fn kind(&self, number: InodeNo) -> &Kind {
        &self.tree.tree().inode(number).kind
    }

    fn entries(&self, dir: InodeNo) -> &BTreeMap<Name, InodeNo> {
        const NONE: &BTreeMap<Name, InodeNo> = &BTreeMap::new();
        if let Kind::Dir(entries) = self.kind(dir) { entries } else { NONE }
    }

    /// Returns the digest of what is in a file, if anything is.
    fn digest(&self, file: &File) -> Option<&Digest> {
        let Runs::Whole(n) = file.runs else { return None };
        self.files.get(usize::from(file.layer.0))?.get(usize::try_from(n).ok()?)
    }
}
