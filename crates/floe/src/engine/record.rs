//! What is known of a mount that must outlive the daemon: one file each in `mounts/` of the runtime directory.
//!
//! It lives as long as mounts do: a reboot takes both. A record that is damaged or of another version costs its mount.

use std::io;
use std::path::{Path, PathBuf};

use format::IndexId;
use serde::{Deserialize, Serialize};
use store::RefLayer;

use super::read_path::ReadPath;

/// Of a stack of layers.
const VERSION: u32 = 1;

/// Of a layer by itself: a program that knows of stacks only must not take it for one.
const APART: u32 = 2;

/// Longest record: 127 layers, and as many users as a node has processes.
const LIMIT: u64 = 16 << 20;

/// A mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    version: u32,
    /// The name of its directories and of the record.
    pub(super) name: String,
    /// The reference it was mounted by.
    pub(super) reference: String,
    /// Bottom first.
    pub(super) layers: Vec<RefLayer>,
    /// The generation of each layer's files that is mounted; one of which none is known is out of date.
    #[serde(default)]
    pub(super) generations: Vec<(IndexId, u64)>,
    /// By which path it is read.
    pub(super) path: ReadPath,
    /// What a successor must know of a FUSE mount.
    #[serde(default)]
    pub(super) terms: Vec<u8>,
    /// Whether the keeper watches it.
    pub(super) watched: bool,
    /// Where users see it.
    pub(super) binds: Vec<PathBuf>,
    /// Whether it is kept for somebody who comes again.
    #[serde(default)]
    pub(super) kept: bool,
    /// Processes that use it.
    pub(super) holders: Vec<Holder>,
}

/// What of layers a mount shows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shape {
    /// What they amount to, one upon the other.
    Stack,
    /// One by itself, with its whiteouts, for overlayfs to stack.
    Apart,
}

/// A process, told apart from a later one of the same number.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Holder {
    pid: u32,
    /// When it began, in ticks since boot: proc_pid_stat(5), field 22.
    began: u64,
}

impl Holder {
    /// Returns the process of this number.
    pub(super) fn of(pid: u32) -> Option<Self> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // Its name, in brackets, may hold anything.
        let began = stat.rsplit_once(')')?.1.split_whitespace().nth(19)?.parse().ok()?;
        Some(Self { pid, began })
    }

    /// Returns a descriptor that tells when the process ends, if it still runs.
    pub(super) fn watch(&self) -> Option<std::os::fd::OwnedFd> {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid).ok()?)?;
        let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()).ok()?;
        // Looked at after it was opened: the number is this process's until it is closed.
        (Self::of(self.pid)? == *self).then_some(fd)
    }
}

impl Record {
    pub(super) fn new(
        name: &str,
        reference: &str,
        layers: Vec<RefLayer>,
        shape: Shape,
        path: ReadPath,
    ) -> Self {
        Self {
            version: if shape == Shape::Apart { APART } else { VERSION },
            name: name.to_owned(),
            reference: reference.to_owned(),
            layers,
            generations: Vec::new(),
            path,
            terms: Vec::new(),
            watched: false,
            binds: Vec::new(),
            kept: false,
            holders: Vec::new(),
        }
    }

    /// Says what of its layers is shown.
    pub(super) fn shape(&self) -> Shape {
        if self.version == APART { Shape::Apart } else { Shape::Stack }
    }

    /// Writes it into a directory.
    pub(super) fn write(&self, dir: &Path) -> io::Result<()> {
        let new = dir.join(format!("{}.new", self.name));
        std::fs::write(&new, serde_json::to_vec(self)?)?;
        std::fs::rename(new, self.path_in(dir))
    }

    /// Removes it.
    pub(super) fn remove(&self, dir: &Path) {
        let _ = std::fs::remove_file(self.path_in(dir)); // without its mount it is passed over
    }

    fn path_in(&self, dir: &Path) -> PathBuf {
        dir.join(format!("{}.json", self.name))
    }

    /// Returns all in a directory; those that cannot be used are removed.
    pub(super) fn all(dir: &Path) -> io::Result<Vec<Self>> {
        let mut records = Vec::new();
        for entry in std::fs::read_dir(dir)? {
            let path = entry?.path();
            match Self::read(&path) {
                Ok(record) if path == record.path_in(dir) => records.push(record),
                Ok(_) => drop(std::fs::remove_file(&path)),
                Err(error) => {
                    tracing::warn!(path = %path.display(), %error, "what is known of a mount cannot be used");
                    let _ = std::fs::remove_file(&path); // nothing else is known of it
                }
            }
        }
        Ok(records)
    }

    /// Says whether a record is of a mount that users see at a directory.
    pub(super) fn is_at(records: &Path, dir: &Path) -> bool {
        let files = std::fs::read_dir(records).into_iter().flatten().flatten();
        let mut known = files.filter_map(|file| Self::read(&file.path()).ok());
        known.any(|record| record.binds.iter().any(|bind| bind == dir))
    }

    fn read(path: &Path) -> io::Result<Self> {
        if std::fs::metadata(path)?.len() > LIMIT {
            return Err(io::Error::other("it is too long"));
        }
        let record: Self = serde_json::from_slice(&std::fs::read(path)?)?;
        if matches!(record.version, VERSION | APART) {
            Ok(record)
        } else {
            Err(io::Error::other("it is of another version"))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_come_back_and_damaged_ones_go() {
        let dir = tempfile::tempdir().unwrap();
        let mut record = Record::new("a-0", "docker://x/y:z", Vec::new(), Shape::Stack, ReadPath::Erofs);
        record.binds.push("/mnt".into());
        record.write(dir.path()).unwrap();
        std::fs::write(dir.path().join("b.json"), "{").unwrap();
        std::fs::write(dir.path().join("c.json"), serde_json::to_vec(&record).unwrap()).unwrap();
        let all = Record::all(dir.path()).unwrap();
        assert_eq!(all.len(), 1);
        assert_eq!((all[0].name.as_str(), all[0].binds.len()), ("a-0", 1));
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
        assert_eq!(all[0].shape(), Shape::Stack);
        all[0].remove(dir.path());
        let apart = Record::new("d-0", "docker://x/y:z", Vec::new(), Shape::Apart, ReadPath::Erofs);
        apart.write(dir.path()).unwrap();
        assert_eq!(Record::all(dir.path()).unwrap()[0].shape(), Shape::Apart);
        apart.remove(dir.path());
        assert!(Record::all(dir.path()).unwrap().is_empty());
    }

    #[test]
    fn a_process_is_known_again_and_a_dead_one_is_not() {
        let me = Holder::of(std::process::id()).unwrap();
        assert!(me.watch().is_some());
        assert!(Holder { began: me.began + 1, ..me }.watch().is_none());
        let mut child = std::process::Command::new("true").spawn().unwrap();
        let holder = Holder::of(child.id());
        child.wait().unwrap();
        assert!(holder.is_none_or(|holder| holder.watch().is_none()));
    }
}
