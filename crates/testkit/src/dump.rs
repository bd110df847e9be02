//! What a file tree looks like from outside: the form in which trees, models and real directories are compared.

use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum What {
    /// A directory.
    Dir,
    /// A regular file: its content.
    File(Vec<u8>),
    /// A symbolic link: its target.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
    /// A socket; no tar holds one.
    Socket,
    /// The same inode as the first path, in order of bytes, that leads to it.
    SameAs(Vec<u8>),
}

/// One path of a tree.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    /// Type and contents.
    pub what: What,
    /// Permissions and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification: seconds and the nanoseconds after them.
    pub mtime: (i64, u32),
    /// Extended attributes.
    pub xattrs: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// A tree: paths without leading slash; the root, the empty path, is left out.
pub type Dump = BTreeMap<Vec<u8>, Node>;

/// Returns the first difference between two trees in words, or nothing.
pub fn difference(left: &Dump, right: &Dump) -> Option<String> {
    let show = |path: &[u8], node: Option<&Node>| match node {
        None => format!("{} is missing", path.escape_ascii()),
        Some(node) => {
            let mut text =
                format!("{} is {:?}", path.escape_ascii(), Node { what: What::Dir, ..node.clone() });
            let what = format!("{:?}", node.what);
            text += &format!(" and {}", what.chars().take(300).collect::<String>());
            text
        }
    };
    let paths: std::collections::BTreeSet<_> = left.keys().chain(right.keys()).collect();
    let path = paths.into_iter().find(|path| left.get(*path) != right.get(*path))?;
    Some(format!("left: {}\nright: {}", show(path, left.get(path)), show(path, right.get(path))))
}

/// Returns what is in a directory.
pub fn disk(root: &Path) -> io::Result<Dump> {
    let mut dump = Dump::new();
    let mut seen = BTreeMap::new();
    let mut paths: Vec<PathBuf> = Vec::new();
    walk(root, &mut paths)?;
    let relative =
        |path: &Path| path.strip_prefix(root).map_or(vec![], |p| p.as_os_str().as_bytes().to_vec());
    paths.sort_by_key(|path| relative(path));
    for path in paths {
        let meta = fs::symlink_metadata(&path)?;
        let (major, minor) = (rustix::fs::major(meta.rdev()), rustix::fs::minor(meta.rdev()));
        let kind = meta.file_type();
        let name = relative(&path);
        let first = seen.entry((meta.dev(), meta.ino())).or_insert_with(|| name.clone());
        let what = match () {
            () if kind.is_dir() => What::Dir,
            () if *first != name => What::SameAs(first.clone()),
            () if kind.is_file() => What::File(fs::read(&path)?),
            () if kind.is_symlink() => What::Symlink(fs::read_link(&path)?.into_os_string().into_vec()),
            () if kind.is_char_device() => What::Char(major, minor),
            () if kind.is_block_device() => What::Block(major, minor),
            () if kind.is_fifo() => What::Fifo,
            () => What::Socket,
        };
        let node = Node {
            what,
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            mtime: (meta.mtime(), u32::try_from(meta.mtime_nsec()).unwrap_or(0)),
            xattrs: xattrs(&path)?,
        };
        dump.insert(name, node);
    }
    Ok(dump)
}

fn walk(dir: &Path, paths: &mut Vec<PathBuf>) -> io::Result<()> {
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let path = entry.path();
        paths.push(path.clone());
        if entry.file_type()?.is_dir() {
            walk(&path, paths)?;
        }
    }
    Ok(())
}

fn xattrs(path: &Path) -> io::Result<BTreeMap<Vec<u8>, Vec<u8>>> {
    let mut names = vec![0; 65_536];
    let len = match rustix::fs::llistxattr(path, &mut names) {
        Ok(len) => len,
        Err(rustix::io::Errno::NOTSUP) => 0,
        Err(error) => return Err(error.into()),
    };
    let mut found = BTreeMap::new();
    for name in names[..len].split(|b| *b == 0).filter(|name| !name.is_empty()) {
        let mut value = vec![0; 65_536];
        let len = rustix::fs::lgetxattr(path, OsStr::from_bytes(name), &mut value)?;
        value.truncate(len);
        found.insert(name.to_vec(), value);
    }
    Ok(found)
}
