//! A disk for tests: a real directory whose every change is logged and can be made to fail.
//!
//! [`Log::crash`] builds the disk as a power loss after any number of operations may leave it:
//! - what was synced is there;
//! - of the unsynced changes to directories any subset is there, except that a rename is never half done while
//!   neither of its directories was synced ([`Model::Any`]), or exactly the first few ([`Model::Journal`],
//!   as ext4 does it);
//! - a file whose last bytes were not synced has any length between the old and the present one. The bytes
//!   below it are right ([`Model::Journal`]), or blocks of them are zeros or garbage ([`Model::Any`]).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::File;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use crate::fs::{Disk, Entry, RealDisk};

/// A number of a file or directory that is never used again.
type Node = usize;

/// Splitmix64: tests repeat from a seed.
#[derive(Debug, Clone)]
pub(crate) struct Dice(pub(crate) u64);

impl Dice {
    pub(crate) fn roll(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    pub(crate) fn below(&mut self, n: usize) -> usize {
        usize::try_from(self.roll() % n.max(1) as u64).unwrap()
    }
    pub(crate) fn coin(&mut self) -> bool {
        self.roll() & 1 == 1
    }
}

/// What a crash may do to what was not synced.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Model {
    Journal,
    Any,
}

/// One change to one name of one directory.
#[derive(Debug, Clone)]
struct Edit {
    dir: Node,
    name: String,
    to: Option<Node>,
}

#[derive(Debug, Clone)]
enum Op {
    /// Changes that belong together: two for a rename.
    Names(Vec<Edit>),
    Append(Node, Vec<u8>),
    Sync(Node),
    SyncDir(Node),
    SyncAll,
}

/// The operations of a disk, in order.
#[derive(Debug, Clone, Default)]
pub(crate) struct Log {
    begin: usize,
    ops: Vec<Op>,
    dirs: HashSet<Node>,
}

#[derive(Debug, Default)]
struct Inner {
    log: Log,
    nodes: usize,
    /// Directories as they are now: node to names.
    live: BTreeMap<Node, BTreeMap<String, Node>>,
    inodes: HashMap<u64, Node>,
    fault: Option<Fault>,
}

/// A failure to come: the operation after `after` others fails, and all later ones if `lasting`.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Fault {
    pub(crate) after: usize,
    pub(crate) errno: i32,
    pub(crate) lasting: bool,
    pub(crate) on: FaultOn,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum FaultOn {
    Writes,
    Appends,
    Syncs,
    Reads,
}

#[derive(Debug)]
pub(crate) struct SimDisk {
    real: RealDisk,
    inner: Mutex<Inner>,
}

impl SimDisk {
    /// Returns the disk below a directory; what is there already is durable.
    pub(crate) fn new(root: &Path) -> Arc<Self> {
        let mut inner = Inner { nodes: 1, live: [(0, BTreeMap::new())].into(), ..Inner::default() };
        inner.log.dirs.insert(0);
        inner.adopt(root, 0);
        inner.log.ops.push(Op::SyncAll);
        inner.log.begin = inner.log.ops.len();
        Arc::new(Self { real: RealDisk::open(root).unwrap(), inner: Mutex::new(inner) })
    }

    pub(crate) fn log(&self) -> Log {
        self.inner.lock().unwrap().log.clone()
    }

    /// Returns how many operations have been logged.
    pub(crate) fn now(&self) -> usize {
        self.inner.lock().unwrap().log.ops.len()
    }

    pub(crate) fn fail(&self, fault: Fault) {
        self.inner.lock().unwrap().fault = Some(fault);
    }

    pub(crate) fn heal(&self) {
        self.inner.lock().unwrap().fault = None;
    }

    fn check(&self, on: FaultOn) -> io::Result<()> {
        let mut inner = self.inner.lock().unwrap();
        let Some(fault) = &mut inner.fault else { return Ok(()) };
        let hit = fault.on == on || (fault.on == FaultOn::Writes && on != FaultOn::Reads);
        if !hit {
            return Ok(());
        }
        if fault.after > 0 {
            fault.after -= 1;
            return Ok(());
        }
        let error = io::Error::from_raw_os_error(fault.errno);
        if !fault.lasting {
            inner.fault = None;
        }
        Err(error)
    }
}

impl Inner {
    fn adopt(&mut self, at: &Path, dir: Node) {
        for entry in
            std::fs::read_dir(at).unwrap().map(Result::unwrap).filter(|entry| entry.file_name() != "LOCK")
        {
            let node = self.new_node();
            let name = entry.file_name().into_string().unwrap();
            let meta = entry.metadata().unwrap();
            if meta.is_dir() {
                self.live.insert(node, BTreeMap::new());
                self.log.dirs.insert(node);
            }
            self.names(vec![Edit { dir, name, to: Some(node) }]);
            if meta.is_dir() {
                self.adopt(&entry.path(), node);
            } else {
                self.inodes.insert(meta.ino(), node);
                self.log.ops.push(Op::Append(node, std::fs::read(entry.path()).unwrap()));
            }
        }
    }

    fn dir(&self, path: &Path) -> Node {
        path.components()
            .filter(|c| matches!(c, std::path::Component::Normal(_)))
            .fold(0, |dir, name| self.live[&dir][name.as_os_str().to_str().unwrap()])
    }

    fn split(&self, path: &Path) -> (Node, String) {
        let dir = self.dir(path.parent().unwrap_or(Path::new("")));
        (dir, path.file_name().unwrap().to_str().unwrap().to_owned())
    }

    fn names(&mut self, edits: Vec<Edit>) {
        for edit in &edits {
            let dir = self.live.get_mut(&edit.dir).unwrap();
            match edit.to {
                Some(node) => dir.insert(edit.name.clone(), node),
                None => dir.remove(&edit.name),
            };
        }
        self.log.ops.push(Op::Names(edits));
    }

    fn new_node(&mut self) -> Node {
        self.nodes += 1;
        self.nodes - 1
    }

    fn node(&self, file: &File) -> Node {
        self.inodes[&file.metadata().unwrap().ino()]
    }
}

impl Disk for SimDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.check(FaultOn::Writes)?;
        self.real.create_dir(path)?;
        let mut inner = self.inner.lock().unwrap();
        let (dir, name) = inner.split(path);
        let node = inner.new_node();
        inner.live.insert(node, BTreeMap::new());
        inner.log.dirs.insert(node);
        inner.names(vec![Edit { dir, name, to: Some(node) }]);
        Ok(())
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.check(FaultOn::Writes)?;
        let file = self.real.create(path)?;
        let mut inner = self.inner.lock().unwrap();
        let (dir, name) = inner.split(path);
        let node = inner.new_node();
        inner.inodes.insert(file.metadata()?.ino(), node);
        inner.names(vec![Edit { dir, name, to: Some(node) }]);
        Ok(file)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.check(FaultOn::Reads)?;
        self.real.open(path)
    }

    fn open_append(&self, path: &Path) -> io::Result<File> {
        self.real.open_append(path)
    }

    fn append(&self, file: &File, end: u64, bytes: &[u8]) -> io::Result<()> {
        assert_eq!(file.metadata()?.len(), end, "a file is only ever appended to");
        // A write that fails has often done a part.
        let failed = self.check(FaultOn::Appends);
        let bytes = if failed.is_err() { &bytes[..bytes.len() / 2] } else { bytes };
        self.real.append(file, end, bytes)?;
        let mut inner = self.inner.lock().unwrap();
        let node = inner.node(file);
        inner.log.ops.push(Op::Append(node, bytes.to_vec()));
        failed
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.check(FaultOn::Reads)?;
        self.real.read_at(file, buf, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        self.check(FaultOn::Syncs)?;
        let mut inner = self.inner.lock().unwrap();
        let node = inner.node(file);
        inner.log.ops.push(Op::Sync(node));
        Ok(())
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.check(FaultOn::Syncs)?;
        let mut inner = self.inner.lock().unwrap();
        let node = inner.dir(path);
        inner.log.ops.push(Op::SyncDir(node));
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        self.check(FaultOn::Syncs)?;
        self.inner.lock().unwrap().log.ops.push(Op::SyncAll);
        Ok(())
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.check(FaultOn::Writes)?;
        self.real.rename(from, to)?;
        let mut inner = self.inner.lock().unwrap();
        let (from, to) = (inner.split(from), inner.split(to));
        let node = inner.live[&from.0][&from.1];
        let gone = Edit { dir: from.0, name: from.1, to: None };
        inner.names(vec![gone, Edit { dir: to.0, name: to.1, to: Some(node) }]);
        Ok(())
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        self.check(FaultOn::Writes)?;
        self.real.remove_file(path)?;
        let mut inner = self.inner.lock().unwrap();
        let (dir, name) = inner.split(path);
        inner.names(vec![Edit { dir, name, to: None }]);
        Ok(())
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        self.check(FaultOn::Writes)?;
        self.real.remove_dir(path)?;
        let mut inner = self.inner.lock().unwrap();
        let (dir, name) = inner.split(path);
        inner.names(vec![Edit { dir, name, to: None }]);
        Ok(())
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        self.check(FaultOn::Reads)?;
        let mut entries = self.real.list(path)?;
        // LOCK is not the disk's business.
        entries.retain(|entry| entry.name != "LOCK");
        Ok(entries)
    }

    /// Not logged: a crash may undo it, and nothing but a choice depends on it.
    fn touch(&self, path: &Path) -> io::Result<()> {
        self.real.touch(path)
    }

    fn free(&self) -> io::Result<u64> {
        self.real.free()
    }

    fn capacity(&self) -> io::Result<u64> {
        self.real.capacity()
    }
}

/// A file's bytes and how many of them are durable.
#[derive(Debug, Clone, Default)]
struct Bytes {
    all: Vec<u8>,
    durable: usize,
}

impl Log {
    pub(crate) fn len(&self) -> usize {
        self.ops.len()
    }

    /// Returns where the log begins, behind what was there already.
    pub(crate) fn begin(&self) -> usize {
        self.begin
    }

    /// Builds the disk, below an empty directory, as it may be after the first `prefix` operations and a crash.
    pub(crate) fn crash(&self, prefix: usize, model: Model, dice: &mut Dice, root: &Path) {
        let ops = &self.ops[..prefix];
        let kept = match model {
            Model::Journal => self.journal(ops, dice),
            Model::Any => self.any(ops, dice),
        };
        let mut dirs: HashMap<Node, BTreeMap<&str, Node>> = HashMap::new();
        for edit in kept {
            let dir = dirs.entry(edit.dir).or_default();
            match edit.to {
                Some(node) => dir.insert(&edit.name, node),
                None => dir.remove(edit.name.as_str()),
            };
        }
        let files = files(ops);
        self.build(0, &dirs, &files, model, dice, root);
    }

    fn build(
        &self,
        dir: Node,
        dirs: &HashMap<Node, BTreeMap<&str, Node>>,
        files: &HashMap<Node, Bytes>,
        model: Model,
        dice: &mut Dice,
        at: &Path,
    ) {
        for (name, node) in dirs.get(&dir).into_iter().flatten() {
            let path: PathBuf = at.join(name);
            if self.dirs.contains(node) {
                std::fs::create_dir(&path).unwrap();
                self.build(*node, dirs, files, model, dice, &path);
            } else {
                let bytes = files.get(node).cloned().unwrap_or_default();
                std::fs::write(&path, torn(bytes, model, dice)).unwrap();
            }
        }
    }

    /// Returns the first changes to directories: at least up to the last sync of anything.
    fn journal<'a>(&self, ops: &'a [Op], dice: &mut Dice) -> Vec<&'a Edit> {
        let barrier =
            ops.iter().rposition(|op| !matches!(op, Op::Names(_) | Op::Append(..))).map_or(0, |n| n + 1);
        let cut = barrier + dice.below(ops.len() - barrier + 1);
        ops[..cut]
            .iter()
            .filter_map(|op| if let Op::Names(edits) = op { Some(edits) } else { None })
            .flatten()
            .collect()
    }

    /// Returns the synced changes to directories and any of the others.
    fn any<'a>(&self, ops: &'a [Op], dice: &mut Dice) -> Vec<&'a Edit> {
        let mut kept = Vec::new();
        for (n, op) in ops.iter().enumerate() {
            let Op::Names(edits) = op else { continue };
            let synced = |edit: &Edit| {
                ops[n..].iter().any(|op| match op {
                    Op::SyncDir(dir) => *dir == edit.dir,
                    Op::SyncAll => true,
                    _ => false,
                })
            };
            let together = dice.coin();
            let any_synced = edits.iter().any(synced);
            for edit in edits {
                if synced(edit) || if any_synced { dice.coin() } else { together } {
                    kept.push(edit);
                }
            }
        }
        kept
    }
}

fn files(ops: &[Op]) -> HashMap<Node, Bytes> {
    let mut files: HashMap<Node, Bytes> = HashMap::new();
    for op in ops {
        match op {
            Op::Append(node, bytes) => files.entry(*node).or_default().all.extend(bytes),
            Op::Sync(node) => {
                let file = files.entry(*node).or_default();
                file.durable = file.all.len();
            }
            Op::SyncAll => files.values_mut().for_each(|file| file.durable = file.all.len()),
            Op::Names(_) | Op::SyncDir(_) => {}
        }
    }
    files
}

fn torn(mut file: Bytes, model: Model, dice: &mut Dice) -> Vec<u8> {
    let unsynced = file.all.len() - file.durable;
    let len = match dice.below(3) {
        0 => file.durable,
        1 => file.all.len(),
        _ => file.durable + dice.below(unsynced + 1),
    };
    file.all.truncate(len);
    if model == Model::Any {
        let (mut at, block) = (file.durable, 4096);
        while at < len {
            let end = ((at / block + 1) * block).min(len);
            match dice.below(3) {
                0 => file.all[at..end].fill(0),
                1 => file.all[at..end].iter_mut().for_each(|byte| *byte ^= 0x5a),
                _ => {}
            }
            at = end;
        }
    }
    file.all
}
