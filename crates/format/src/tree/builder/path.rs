//! Paths: cleaned, then followed through the tree.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::{AUFS, Builder, MAX_LINKS, OPAQUE, TreeProblem, WHITEOUT, too_large};
use crate::limits;
use crate::name::{Name, NameError, printable};
use crate::tree::{InodeNo, Kind, Meta, Tree};

/// A directory that was just looked up.
#[derive(Debug, Clone)]
pub(super) struct Parent {
    /// As written.
    path: Box<[u8]>,
    dir: InodeNo,
    /// Length of the path in the tree that leads there.
    len: usize,
}

impl Builder {
    /// Returns the directory of a path, created if it is missing, and the last component; nothing for a path that
    /// has no place in the tree.
    pub(super) fn locate<'a>(&mut self, path: &'a [u8]) -> Result<Option<(InodeNo, &'a [u8])>, TreeProblem> {
        let (written, last) = split(path);
        if let Some(parent) = &self.parent
            && *parent.path == *written
            && !matches!(last, b"" | b"." | b"..")
            && !last.starts_with(WHITEOUT)
        {
            return fits(parent.len, last).map(|()| Some((parent.dir, last)));
        }
        let clean = clean(path)?;
        let Some((last, parents)) = clean.split_last() else { return Ok(None) };
        if parents.iter().any(|name| name.starts_with(AUFS)) || (last.starts_with(AUFS) && *last != OPAQUE) {
            return Ok(None);
        }
        let resolved = self.resolve(parents)?;
        fits(resolved.len, last.strip_prefix(WHITEOUT).unwrap_or(last))?;
        let mut dir = resolved.dir();
        for name in resolved.missing {
            let meta = Meta { mode: 0o755, xattrs: Arc::clone(&self.no_xattrs), ..Meta::default() };
            let new = self.create(meta, Kind::Dir(BTreeMap::new()))?;
            self.enter(dir, name, new);
            if let Some(marks) = &mut self.marks {
                marks.imply(new);
            }
            dir = new;
        }
        // What a link leads to may change without this directory's knowing.
        self.parent = (!resolved.links).then(|| Parent { path: written.into(), dir, len: resolved.len });
        Ok(Some((dir, last)))
    }

    /// Follows directories and symbolic links from the root; the components are clean.
    pub(super) fn resolve(&mut self, path: &[&[u8]]) -> Result<Resolved, TreeProblem> {
        let mut at = Resolved { dirs: vec![(Tree::ROOT, 0)], missing: Vec::new(), len: 0, links: false };
        let mut followed = 0;
        // Components still to go, the next one last.
        let mut todo: Vec<Box<[u8]>> = Vec::new();
        let mut path = path.iter();
        loop {
            let owned = todo.pop();
            let Some(name) = owned.as_deref().or_else(|| path.next().copied()) else { return Ok(at) };
            self.steps += 1;
            if self.steps > limits::PATH_STEPS {
                return Err(too_large("the length of all paths, links followed,", limits::PATH_STEPS));
            }
            match name {
                b"" | b"." => continue,
                b".." => {
                    at.up();
                    continue;
                }
                _ => {}
            }
            let found = if at.missing.is_empty() { self.tree.entry(at.dir(), name) } else { None };
            match found.map(|inode| (inode, &self.tree.inode(inode).kind)) {
                Some((inode, Kind::Dir(_))) => at.down(name, Some(inode))?,
                None => at.down(name, None)?,
                Some((_, Kind::Symlink(target))) => {
                    followed += 1;
                    at.links = true;
                    if followed > MAX_LINKS {
                        return Err(TreeProblem::Links);
                    }
                    if target.starts_with(b"/") {
                        at.restart();
                    }
                    todo.extend(target.split(|b| *b == b'/').rev().map(Box::from));
                }
                Some(_) => return Err(TreeProblem::NotADirectory(printable(name))),
            }
        }
    }
}

/// A place below the root: directories that exist, then names that do not.
pub(super) struct Resolved {
    /// Each directory with the length of the path to it; the root first.
    dirs: Vec<(InodeNo, usize)>,
    pub(super) missing: Vec<Name>,
    /// Length of the whole path.
    len: usize,
    /// Whether symbolic links were followed.
    links: bool,
}

impl Resolved {
    pub(super) fn dir(&self) -> InodeNo {
        self.dirs.last().map_or(Tree::ROOT, |(dir, _)| *dir)
    }

    fn down(&mut self, name: &[u8], found: Option<InodeNo>) -> Result<(), TreeProblem> {
        // Links can make a path in the tree longer than any written one. The bound also limits how deep
        // directories nest, which whoever walks the tree relies on.
        fits(self.len, name)?;
        self.len += 1 + name.len();
        match found {
            Some(inode) => self.dirs.push((inode, self.len)),
            None => self.missing.push(Name::parse(name)?),
        }
        Ok(())
    }

    fn up(&mut self) {
        match self.missing.pop() {
            Some(name) => self.len -= 1 + name.as_bytes().len(),
            None if self.dirs.len() > 1 => {
                self.dirs.pop();
                self.len = self.dirs.last().map_or(0, |(_, len)| *len);
            }
            None => {}
        }
    }

    fn restart(&mut self) {
        self.dirs.truncate(1);
        self.missing.clear();
        self.len = 0;
    }
}

/// Checks that a name may follow a path of this length.
fn fits(len: usize, name: &[u8]) -> Result<(), TreeProblem> {
    let len = len + 1 + name.len();
    // The leading slash counts in `len` and not in the limit.
    if len > limits::PATH + 1 { Err(NameError::TooLong(len - 1).into()) } else { Ok(()) }
}

/// Splits a path as written at the slash before its last component.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|b| *b != b'/').map_or(0, |last| last + 1);
    let start = path[..end].iter().rposition(|b| *b == b'/').map_or(0, |slash| slash + 1);
    (&path[..start], &path[start..end])
}

/// Returns the components of a path, without those that lead nowhere and those that lead back.
pub(super) fn clean(path: &[u8]) -> Result<Vec<&[u8]>, TreeProblem> {
    let mut names: Vec<&[u8]> = Vec::new();
    for name in path.split(|b| *b == b'/') {
        match name {
            b"" | b"." => {}
            b".." => {
                names.pop().ok_or(TreeProblem::Escape)?;
            }
            _ => names.push(name),
        }
    }
    Ok(names)
}
