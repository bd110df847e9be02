//! The tree of one layer by itself, for overlayfs to stack.
//!
//! What the layer hides of those below it is shown as overlayfs knows it: a name that is hidden is a character device 0:0, and a
//! directory whose lower entries are hidden has the attribute `trusted.overlay.opaque`, `y`. A whiteout whose name the
//! layer gives to a directory of its own hides what lies below that directory; so does anything else that the layer had under that name before. One that stands where the layer
//! has no directory makes it, as any other member would.
//!
//! A layer that hides all of those below it cannot be shown so: of the roots that it stacks overlayfs asks none whether it is opaque.
//!
//! Or it is shown as the OCI image spec has it in a tar, for whoever merges layers later: an empty file `.wh.NAME`
//! beside what it hides, `.wh..wh..opq` in a directory whose lower entries are hidden.
//!
//! Nothing below is known: a parent that the layer does not describe is 0755 root:root, and symbolic links of lower layers are
//! not followed. That is what a directory holds into which the layer alone was unpacked.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use super::{Builder, OPAQUE as OPAQUE_FILE, TreeError, TreeProblem, WHITEOUT};
use crate::name::{Name, printable};
use crate::tar::Member;
use crate::tree::{Device, File, InodeNo, Kind, Meta, Runs, Tree};

/// By this overlayfs knows a directory that hides what is below it.
const OPAQUE: (&[u8], &[u8]) = (b"trusted.overlay.opaque", b"y");

/// By this overlayfs knows a name that is hidden.
const HIDDEN: Device = Device { major: 0, minor: 0 };

/// Makes the [`Tree`] of one layer by itself; see the [module](self).
#[derive(Debug, Clone)]
pub struct Apart(Builder);

impl Apart {
    /// Returns one that has seen no member.
    pub fn new() -> Result<Self, TreeError> {
        let mut builder = Builder::new();
        builder.layer()?;
        builder.marks = Some(Marks::default());
        Ok(Self(builder))
    }

    /// Applies the next member; as [`Builder::member`].
    pub fn member(&mut self, member: &Member, runs: Runs) -> Result<(), TreeError> {
        self.0.member(member, runs)
    }

    /// Returns the finished tree.
    pub fn finish(mut self) -> Result<Tree, TreeError> {
        let layer = self.0.current();
        let marks = self.0.marks.take().unwrap_or_default();
        let shown = marks.show(&mut self.0);
        shown.map_err(|problem| TreeError { layer, path: String::new(), problem })?;
        Ok(self.0.finish())
    }

    /// Returns the finished tree, in which what the layer hides is shown as a tar does, and the directories that no
    /// member describes: they are there because something lies below them.
    pub fn finish_as_tar(mut self) -> Result<(Tree, HashSet<InodeNo>), TreeError> {
        let layer = self.0.current();
        let marks = self.0.marks.take().unwrap_or_default();
        let files = marks.names.into_iter().map(|(dir, name)| (dir, [WHITEOUT, name.as_bytes()].concat()));
        let opaque = marks.dirs.into_iter().map(|dir| (dir, OPAQUE_FILE.to_vec()));
        for (dir, name) in files.chain(opaque) {
            let entered = self.0.whiteout(dir, &name);
            entered.map_err(|problem| TreeError { layer, path: printable(&name), problem })?;
        }
        Ok((self.0.finish(), marks.implied))
    }
}

impl Builder {
    fn whiteout(&mut self, dir: InodeNo, name: &[u8]) -> Result<(), TreeProblem> {
        let name = Name::parse(name)?;
        let meta = Meta { xattrs: Arc::clone(&self.no_xattrs), ..Meta::default() };
        let file = File { size: 0, layer: self.current(), runs: Runs::None };
        let new = self.create(meta, Kind::File(file))?;
        self.enter(dir, name, new);
        Ok(())
    }
}

/// What a layer hides: it acts as if it came first, so it is shown when all members are known.
#[derive(Debug, Clone, Default)]
pub(super) struct Marks {
    names: BTreeSet<(InodeNo, Name)>,
    dirs: BTreeSet<InodeNo>,
    /// Directories that no member has described so far.
    implied: HashSet<InodeNo>,
}

impl Marks {
    /// Hides a name of a directory.
    pub(super) fn hide(&mut self, dir: InodeNo, name: Name) {
        self.names.insert((dir, name));
    }

    /// Hides all that lower layers have in a directory.
    pub(super) fn opaque(&mut self, dir: InodeNo) {
        self.dirs.insert(dir);
    }

    /// Makes a directory for what lies below it.
    pub(super) fn imply(&mut self, dir: InodeNo) {
        self.implied.insert(dir);
    }

    /// Says what a directory is like.
    pub(super) fn describe(&mut self, dir: InodeNo) {
        self.implied.remove(&dir);
    }

    fn show(mut self, builder: &mut Builder) -> Result<(), TreeProblem> {
        if self.dirs.contains(&Tree::ROOT) {
            return Err(TreeProblem::OpaqueRoot);
        }
        for (dir, name) in self.names {
            match builder.tree.entry(dir, name.as_bytes()) {
                Some(own) if builder.tree.is_dir(own) => drop(self.dirs.insert(own)),
                Some(_) => {} // overlayfs shows the upper one alone
                None => {
                    let meta = Meta { xattrs: Arc::clone(&builder.no_xattrs), ..Meta::default() };
                    let hidden = builder.create(meta, Kind::Char(HIDDEN))?;
                    builder.enter(dir, name, hidden);
                }
            }
        }
        for dir in self.dirs {
            let mut xattrs = BTreeMap::clone(&builder.tree.inode(dir).meta.xattrs);
            xattrs.insert(OPAQUE.0.into(), OPAQUE.1.into());
            let xattrs = builder.intern(Arc::new(xattrs))?;
            builder.tree.inode_mut(dir).meta.xattrs = xattrs;
        }
        Ok(())
    }
}
