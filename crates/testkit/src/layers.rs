//! A model of what a stack of layers amounts to, written for plainness: whole paths in maps, each layer in two passes.
//!
//! Whiteouts come first, whatever their place in the layer, then the members in order, and the directories that
//! whiteouts stand in. Symbolic links are not
//! followed: a path through one is refused.

use std::collections::{BTreeMap, BTreeSet};

use crate::dump::{Dump, Node, What};
use crate::tar::{Entry, Kind};

#[derive(Debug, Clone, Default)]
struct Model {
    nodes: Vec<Node>,
    paths: BTreeMap<Vec<u8>, usize>,
}

/// Returns the tree of the layers, bottom first, or says why there is none. `.wh.` members are whiteouts.
pub fn flatten(layers: &[Vec<Entry>]) -> Result<Dump, String> {
    let mut model = Model::default();
    for layer in layers {
        for entry in layer {
            model.hide(&tidy(&entry.path))?;
        }
        for entry in layer {
            let path = tidy(&entry.path);
            match name(&path) {
                b"" => {}
                b".wh..wh..opq" => model.parents(&path)?,
                name if name.starts_with(b".wh..wh.") => {} // aufs' own
                name if name.starts_with(b".wh.") => model.parents(&path)?,
                _ => model.put(&path, entry)?,
            }
        }
    }
    Ok(model.dump())
}

/// Returns the layers without the members that keep them from having a tree. `entry` finds the entry in a `T`.
pub fn sensible<T: Clone>(layers: &[Vec<T>], entry: impl Fn(&T) -> &Entry) -> Vec<Vec<T>> {
    let mut kept: Vec<Vec<T>> = Vec::new();
    let mut plain: Vec<Vec<Entry>> = Vec::new();
    for layer in layers {
        kept.push(Vec::new());
        plain.push(Vec::new());
        let last = kept.len() - 1;
        for item in layer {
            plain[last].push(entry(item).clone());
            if flatten(&plain).is_ok() {
                kept[last].push(item.clone());
            } else {
                plain[last].pop();
            }
        }
    }
    kept
}

/// Returns a layer with members for the directories that only lead to others: 0755 root:root, time 0.
pub fn described(layer: &[Entry]) -> Vec<Entry> {
    let (mut out, mut there) = (Vec::new(), BTreeSet::new());
    for entry in layer {
        let path = tidy(&entry.path);
        if name(&path).starts_with(b".wh..wh.") && name(&path) != b".wh..wh..opq" {
            out.push(entry.clone());
            continue;
        }
        for end in (0..path.len()).filter(|at| path[*at] == b'/') {
            if there.insert(path[..end].to_vec()) {
                out.push(Entry::dir(&path[..end]).mtime(0, 0));
            }
        }
        if entry.kind == Kind::Dir {
            there.insert(path);
        } else {
            there.retain(|other| *other != path && !below(other, &path));
        }
        out.push(entry.clone());
    }
    out
}

impl Model {
    fn hide(&mut self, path: &[u8]) -> Result<(), String> {
        let name = name(path);
        let Some(hidden) = name.strip_prefix(b".wh.") else { return Ok(()) };
        let dir = parent(path);
        if hidden == b".wh..opq" {
            self.paths.retain(|path, _| !below(path, dir));
        } else if !hidden.starts_with(b".wh.") {
            let gone = join(dir, hidden);
            self.paths.retain(|path, _| *path != gone && !below(path, &gone));
        }
        Ok(())
    }

    fn put(&mut self, path: &[u8], entry: &Entry) -> Result<(), String> {
        self.parents(path)?;
        let what = match &entry.kind {
            Kind::Dir => What::Dir,
            Kind::File(content) => What::File(content.clone()),
            Kind::Sparse(size, pieces) => What::File(expand(*size, pieces)),
            Kind::Symlink(target) => What::Symlink(target.clone()),
            Kind::Char(major, minor) => What::Char(*major, *minor),
            Kind::Block(major, minor) => What::Block(*major, *minor),
            Kind::Fifo => What::Fifo,
            Kind::Link(target) => return self.link(path, &tidy(target), entry),
        };
        let node = Node {
            mode: if matches!(what, What::Symlink(_)) { 0o777 } else { entry.mode & 0o7777 },
            what,
            uid: entry.uid,
            gid: entry.gid,
            mtime: entry.mtime,
            xattrs: entry.xattrs.iter().cloned().collect(),
        };
        match self.paths.get(path) {
            Some(&old) if self.nodes[old].what == What::Dir && node.what == What::Dir => {
                self.nodes[old] = node
            }
            _ => {
                self.paths.retain(|other, _| !below(other, path));
                self.nodes.push(node);
                self.paths.insert(path.to_vec(), self.nodes.len() - 1);
            }
        }
        Ok(())
    }

    fn link(&mut self, path: &[u8], target: &[u8], entry: &Entry) -> Result<(), String> {
        let target = *self.paths.get(target).ok_or("no target")?;
        let node = &mut self.nodes[target];
        match node.what {
            What::Dir => return Err("link to a directory".into()),
            What::Symlink(_) => {}
            _ => node.mode = entry.mode & 0o7777,
        }
        (node.uid, node.gid, node.mtime) = (entry.uid, entry.gid, entry.mtime);
        node.xattrs.extend(entry.xattrs.iter().cloned());
        self.paths.retain(|other, _| !below(other, path));
        self.paths.insert(path.to_vec(), target);
        Ok(())
    }

    fn parents(&mut self, path: &[u8]) -> Result<(), String> {
        for end in (0..path.len()).filter(|at| path[*at] == b'/') {
            let dir = &path[..end];
            match self.paths.get(dir) {
                Some(&old) if self.nodes[old].what == What::Dir => {}
                Some(_) => return Err(format!("{} is no directory", dir.escape_ascii())),
                None => {
                    let (uid, gid, mtime) = (0, 0, (0, 0));
                    self.nodes.push(Node {
                        what: What::Dir,
                        mode: 0o755,
                        uid,
                        gid,
                        mtime,
                        xattrs: BTreeMap::new(),
                    });
                    self.paths.insert(dir.to_vec(), self.nodes.len() - 1);
                }
            }
        }
        Ok(())
    }

    fn dump(self) -> Dump {
        let mut first = BTreeMap::new();
        let mut dump = Dump::new();
        for (path, number) in self.paths {
            let mut node = self.nodes[number].clone();
            let first: &Vec<u8> = first.entry(number).or_insert_with(|| path.clone());
            if *first != path {
                node.what = What::SameAs(first.clone());
            }
            dump.insert(path, node);
        }
        dump
    }
}

/// Returns the content of a sparse file.
pub fn expand(size: u64, pieces: &[(u64, Vec<u8>)]) -> Vec<u8> {
    let index = |n: u64| usize::try_from(n).unwrap_or(usize::MAX);
    let mut content = vec![0; index(size)];
    for (at, data) in pieces {
        content[index(*at)..][..data.len()].copy_from_slice(data);
    }
    content
}

/// Returns a member's path without what says nothing: slashes at either end or doubled, and single dots.
pub fn tidy(path: &[u8]) -> Vec<u8> {
    let names: Vec<&[u8]> = path.split(|b| *b == b'/').filter(|name| !matches!(name, [] | [b'.'])).collect();
    names.join(&b'/')
}

fn name(path: &[u8]) -> &[u8] {
    path.rsplit(|b| *b == b'/').next().unwrap_or(path)
}

fn parent(path: &[u8]) -> &[u8] {
    path.iter().rposition(|b| *b == b'/').map_or(&[], |slash| &path[..slash])
}

fn join(dir: &[u8], name: &[u8]) -> Vec<u8> {
    if dir.is_empty() { name.to_vec() } else { [dir, b"/", name].concat() }
}

fn below(path: &[u8], dir: &[u8]) -> bool {
    dir.is_empty() || (path.len() > dir.len() && path.starts_with(dir) && path[dir.len()] == b'/')
}
