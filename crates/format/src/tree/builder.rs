//! Applies the members of layers, bottom to top.
//!
//! What containerd's `archive.Apply` makes of a stack of layers applied to one directory, without its accidents:
//!
//! - **Paths** are cleaned before anything else: leading `/`, `.`, doubled and trailing slashes vanish, `a/../b` is
//!   `b`. A path that would leave the root is an error (containerd stops at the root). A member that names the root
//!   itself changes nothing, as in containerd: the root stays 0755 root:root.
//! - **Parents** are looked up in the tree so far and symbolic links followed inside the root, at most
//!   [`LINKS`](MAX_LINKS) of them; a `..` in a target stops at the root, as under chroot. A parent that is missing is created as a directory,
//!   0755 root:root, time 0; a parent that is something else than a directory is an error. (containerd's overlayfs
//!   snapshotter sees only the links of the layer at hand, and lets a directory hide a lower layer's link.)
//! - **The last member wins.** A directory over a directory takes the new owner, mode, time and attributes and keeps
//!   the entries. Anything else replaces what was there wholly; other names of a replaced file keep it.
//! - **Hard links** lead to whatever their target's parents and name lead to, in this layer or below, a symbolic
//!   link itself included. Owner, mode and time of the linking member are the file's from then on, its attributes
//!   come on top, as in containerd. No target, or a directory, is an error.
//! - **Whiteouts** (OCI image spec, "Whiteouts"): `.wh.NAME` hides `NAME`, `.wh..wh..opq` all entries of its
//!   directory. Both concern lower layers only, wherever they stand in their layer: they act as if they came first.
//!   Parents they have as all members do: the directory that one stands in is there, and if it is empty. A directory of a
//!   lower layer that stays only because something of this layer lies below it, or hides something in it, becomes a missing
//!   parent. Other `.wh..wh.*` names are aufs' own and skipped with all that lies below them.
//! - **Attributes** left out: those overlayfs would interpret (`trusted.overlay.*`, `user.overlay.*`); those of a namespace
//!   that no image can hold (other than `user.`, `trusted.`, `security.`, `lustre.` and the two POSIX ACLs; a
//!   kernel answers EOPNOTSUPP, which containerd ignores); `user.` on what is neither file nor directory, access ACLs of
//!   symbolic links and default ACLs of what is no directory, which kernels do not keep either. containerd drops `trusted.`
//!   altogether; here it stays.
//! - A symbolic link has mode 0777, as on every Linux file system.

mod apart;
mod attributes;
mod path;
mod whiteout;

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;

pub use apart::Apart;
use apart::Marks;
use attributes::Sort;
use path::{Parent, clean};

use super::{Device, File, Inode, InodeNo, Kind, LayerNo, Meta, Runs, Tree, Xattrs};
use crate::limits;
use crate::name::{Name, NameError, printable};
use crate::tar::{Member, MemberKind};

/// Symbolic links followed on the way to one parent: as many as containerd follows.
pub const MAX_LINKS: usize = 255;

const WHITEOUT: &[u8] = b".wh.";
const AUFS: &[u8] = b".wh..wh.";
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Why members do not make a tree, and which one.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("layer {}, member \"{path}\": {problem}", layer.0)]
pub struct TreeError {
    /// The layer, bottom first.
    pub layer: LayerNo,
    /// The path of the member as written, printable.
    pub path: String,
    /// What is wrong.
    pub problem: TreeProblem,
}

/// What is wrong with a member.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum TreeProblem {
    /// A component that cannot be a file name, or a path too long.
    #[error(transparent)]
    Name(#[from] NameError),
    /// More `..` than there are directories.
    #[error("the path leads out of the root")]
    Escape,
    /// A parent exists and is no directory.
    #[error("\"{0}\" on its path is not a directory")]
    NotADirectory(String),
    /// Symbolic links that lead in circles.
    #[error("more than {MAX_LINKS} symbolic links on its path")]
    Links,
    /// A hard link to nothing.
    #[error("the target of the hard link, \"{0}\", does not exist")]
    NoTarget(String),
    /// A hard link to a directory.
    #[error("the target of the hard link, \"{0}\", is a directory")]
    DirectoryTarget(String),
    /// A symbolic link whose target no kernel accepts.
    #[error("the target of the symbolic link is empty, too long or holds a NUL")]
    SymlinkTarget,
    /// A whiteout of nothing.
    #[error("the whiteout names no file")]
    Whiteout,
    /// A layer by itself that hides everything below it.
    #[error("it hides all lower layers, which an overlay of layers cannot show")]
    OpaqueRoot,
    /// A device number Linux cannot hold.
    #[error("the device number is out of range")]
    Device,
    /// More than a limit.
    #[error("{what} exceeds the limit of {limit}")]
    TooLarge {
        /// What is too large.
        what: &'static str,
        /// How much would have been accepted.
        limit: u64,
    },
}

fn too_large(what: &'static str, limit: u64) -> TreeProblem {
    TreeProblem::TooLarge { what, limit }
}

/// Makes a [`Tree`] of members, layer by layer, bottom first; see the [module](self).
///
/// After an error the tree is of no use.
#[derive(Debug, Clone)]
pub struct Builder {
    tree: Tree,
    layers: u16,
    members: u64,
    /// Components walked on the way to parents.
    steps: u64,
    /// The first inode of this layer: what is below comes from a lower one.
    first: u32,
    /// Directories of lower layers that a member of this layer describes.
    described: HashSet<InodeNo>,
    /// Names this layer gives to inodes of lower ones.
    linked: HashSet<(InodeNo, Name)>,
    /// Directories of lower layers that a whiteout of this layer stands in.
    hiding: HashSet<InodeNo>,
    /// Directories of lower layers whose lower entries are hidden already.
    hidden: HashSet<InodeNo>,
    /// The parent of the latest member: neighbours in a tar mostly share it.
    parent: Option<Parent>,
    /// Whiteouts that are shown instead of resolved.
    marks: Option<Marks>,
    xattrs: HashSet<Xattrs>,
    xattr_bytes: u64,
    no_xattrs: Xattrs,
}

impl Builder {
    /// Returns a builder that has seen no layer.
    pub fn new() -> Self {
        Self {
            tree: Tree::new(),
            layers: 0,
            members: 0,
            steps: 0,
            first: 1,
            described: HashSet::new(),
            linked: HashSet::new(),
            hiding: HashSet::new(),
            hidden: HashSet::new(),
            parent: None,
            marks: None,
            xattrs: HashSet::new(),
            xattr_bytes: 0,
            no_xattrs: Xattrs::default(),
        }
    }

    /// Begins the next layer; returns its number.
    pub fn layer(&mut self) -> Result<LayerNo, TreeError> {
        let layer = LayerNo(self.layers);
        if usize::from(self.layers) >= limits::LAYERS {
            let problem = too_large("the number of layers", limits::LAYERS as u64);
            return Err(TreeError { layer, path: String::new(), problem });
        }
        self.layers += 1;
        self.first = self.tree.next().0;
        self.described.clear();
        self.linked.clear();
        self.hiding.clear();
        self.hidden.clear();
        Ok(layer)
    }

    /// Applies the next member of the layer; `runs` says where its bytes are, see
    /// [`Placer`](crate::tar::Placer).
    pub fn member(&mut self, member: &Member, runs: Runs) -> Result<(), TreeError> {
        self.apply(member, runs).map_err(|problem| TreeError {
            layer: self.current(),
            path: printable(&member.path),
            problem,
        })
    }

    /// Returns the tree of the layers so far.
    pub fn tree(&self) -> &Tree {
        &self.tree
    }

    /// Returns the finished tree.
    pub fn finish(self) -> Tree {
        self.tree
    }

    fn current(&self) -> LayerNo {
        LayerNo(self.layers.saturating_sub(1))
    }

    fn apply(&mut self, member: &Member, runs: Runs) -> Result<(), TreeProblem> {
        self.members += 1;
        if self.members > limits::ENTRIES {
            return Err(too_large("the number of members", limits::ENTRIES));
        }
        let Some((dir, name)) = self.locate(&member.path)? else { return Ok(()) };
        if name.starts_with(WHITEOUT) && dir.0 < self.first {
            self.hiding.insert(dir);
        }
        if name == OPAQUE {
            match &mut self.marks {
                Some(marks) => marks.opaque(dir),
                None => self.hide_entries(dir),
            }
            return Ok(());
        }
        if let Some(name) = name.strip_prefix(WHITEOUT) {
            if matches!(name, b"" | b"." | b"..") {
                return Err(TreeProblem::Whiteout);
            }
            let hidden = Name::parse(name)?;
            match &mut self.marks {
                Some(marks) => marks.hide(dir, hidden),
                None => self.hide(dir, name),
            }
            return Ok(());
        }
        let name = Name::parse(name)?;
        match &member.kind {
            MemberKind::Dir => self.directory(dir, name, member),
            MemberKind::Link(target) => self.link(dir, name, target, member),
            _ => self.other(dir, name, member, runs),
        }
    }

    fn directory(&mut self, dir: InodeNo, name: Name, member: &Member) -> Result<(), TreeProblem> {
        let meta = self.meta(member, Sort::Dir)?;
        match self.tree.entry(dir, name.as_bytes()) {
            Some(old) if self.tree.is_dir(old) => {
                self.tree.inode_mut(old).meta = meta;
                if old.0 < self.first {
                    self.described.insert(old);
                }
                if let Some(marks) = &mut self.marks {
                    marks.describe(old);
                }
            }
            old => {
                let new = self.create(meta, Kind::Dir(BTreeMap::new()))?;
                self.enter(dir, name, new);
                if let (Some(_), Some(marks)) = (old, &mut self.marks) {
                    marks.opaque(new); // what it replaces had replaced what is below
                }
            }
        }
        Ok(())
    }

    fn link(&mut self, dir: InodeNo, name: Name, path: &[u8], member: &Member) -> Result<(), TreeProblem> {
        let target = self.target(path)?;
        let sort = match &self.tree.inode(target).kind {
            Kind::Dir(_) => return Err(TreeProblem::DirectoryTarget(printable(path))),
            Kind::File(_) => Sort::File,
            Kind::Symlink(_) => Sort::Symlink,
            _ => Sort::Special,
        };
        let mut meta = self.meta(member, sort)?;
        let old = &self.tree.inode(target).meta.xattrs;
        if meta.xattrs.is_empty() {
            meta.xattrs = Arc::clone(old);
        } else if !old.is_empty() {
            let mut all = BTreeMap::clone(old);
            all.extend(meta.xattrs.iter().map(|(name, value)| (name.clone(), value.clone())));
            meta.xattrs = self.intern(Arc::new(all))?;
        }
        self.tree.inode_mut(target).meta = meta;
        if target.0 < self.first {
            self.linked.insert((dir, name.clone()));
        }
        self.enter(dir, name, target);
        Ok(())
    }

    /// Looks up the target of a hard link; the last component is not followed.
    fn target(&mut self, path: &[u8]) -> Result<InodeNo, TreeProblem> {
        let missing = || TreeProblem::NoTarget(printable(path));
        let clean = clean(path)?;
        let Some((name, parents)) = clean.split_last() else {
            return Err(TreeProblem::DirectoryTarget(printable(path)));
        };
        let resolved = self.resolve(parents)?;
        if !resolved.missing.is_empty() {
            return Err(missing());
        }
        self.tree.entry(resolved.dir(), name).ok_or_else(missing)
    }

    fn other(&mut self, dir: InodeNo, name: Name, member: &Member, runs: Runs) -> Result<(), TreeProblem> {
        let (sort, kind) = match &member.kind {
            MemberKind::File | MemberKind::Sparse { .. } => {
                (Sort::File, Kind::File(File { size: member.size(), layer: self.current(), runs }))
            }
            MemberKind::Symlink(target) => {
                if target.is_empty() || target.len() > limits::SYMLINK || target.contains(&0) {
                    return Err(TreeProblem::SymlinkTarget);
                }
                (Sort::Symlink, Kind::Symlink(target.clone()))
            }
            MemberKind::Char(device) => (Sort::Special, Kind::Char(checked(*device)?)),
            MemberKind::Block(device) => (Sort::Special, Kind::Block(checked(*device)?)),
            MemberKind::Fifo => (Sort::Special, Kind::Fifo),
            // Both have been told apart before.
            MemberKind::Dir | MemberKind::Link(_) => return Ok(()),
        };
        let meta = self.meta(member, sort)?;
        let new = self.create(meta, kind)?;
        self.enter(dir, name, new);
        Ok(())
    }

    fn create(&mut self, meta: Meta, kind: Kind) -> Result<InodeNo, TreeProblem> {
        // Counts parents nobody described, too: one path can ask for two thousand.
        if self.tree.inodes.len() as u64 > limits::ENTRIES {
            return Err(too_large("the number of inodes", limits::ENTRIES));
        }
        let number = self.tree.next();
        self.tree.inodes.push(Inode { meta, kind });
        Ok(number)
    }

    /// Gives an inode a name, in place of whatever had it.
    fn enter(&mut self, dir: InodeNo, name: Name, inode: InodeNo) {
        let old = self.tree.entries_mut(dir).and_then(|entries| entries.insert(name, inode));
        if old.is_some_and(|old| self.tree.leads_on(old)) {
            self.parent = None;
        }
    }

    fn meta(&mut self, member: &Member, sort: Sort) -> Result<Meta, TreeProblem> {
        Ok(Meta {
            mode: if sort == Sort::Symlink { 0o777 } else { member.mode & 0o7777 },
            uid: member.uid,
            gid: member.gid,
            mtime: member.mtime,
            xattrs: self.xattrs(&member.xattrs, sort)?,
        })
    }
}

impl Default for Builder {
    fn default() -> Self {
        Self::new()
    }
}

impl Tree {
    fn next(&self) -> InodeNo {
        // There are at most ENTRIES of them, see `create`.
        InodeNo(u32::try_from(self.inodes.len()).unwrap_or(u32::MAX))
    }

    fn inode_mut(&mut self, number: InodeNo) -> &mut Inode {
        &mut self.inodes[number.0 as usize]
    }

    fn entry(&self, dir: InodeNo, name: &[u8]) -> Option<InodeNo> {
        match &self.inode(dir).kind {
            Kind::Dir(entries) => entries.get(name).copied(),
            _ => None,
        }
    }

    fn entries_mut(&mut self, dir: InodeNo) -> Option<&mut BTreeMap<Name, InodeNo>> {
        match &mut self.inode_mut(dir).kind {
            Kind::Dir(entries) => Some(entries),
            _ => None,
        }
    }

    fn is_dir(&self, number: InodeNo) -> bool {
        matches!(self.inode(number).kind, Kind::Dir(_))
    }

    /// Says whether a path can lead through an inode.
    fn leads_on(&self, number: InodeNo) -> bool {
        matches!(self.inode(number).kind, Kind::Dir(_) | Kind::Symlink(_))
    }
}

fn checked(device: Device) -> Result<Device, TreeProblem> {
    if device.major < 1 << 12 && device.minor < 1 << 20 { Ok(device) } else { Err(TreeProblem::Device) }
}
