//! The store's root: who may open it, which version it has, and the files that are named by their contents.
//!
//! ```text
//! VERSION            "floe store 1\n"; a program refuses a newer one and touches nothing
//! LOCK               one process per store (lock.rs)
//! SESSION            was the last shutdown clean (session.rs)
//! refs/<hash>        image references, one record each (refs.rs)
//! index/<id>         layer indexes as they travel
//! device/<id>/<n>    segments; device/<id>/state says what is known of the layer (segments.rs)
//! meta/<key>         metadata images; meta/<key>.sum is the record of their length and BLAKE3
//! profile/<key>      start-up profiles, one record each
//! known/<id>         the chunks of a layer by their hash, one record each (known.rs)
//! pins/<hash>        images that eviction leaves alone, one record each; made with the first (pinned.rs)
//! snapshots/<n>      snapshots of containerd's, one record each; <n>.d has their files; made with the first (snapshots.rs)
//! tmp/               what has no name yet or no name any more; emptied at every start
//! ```
//!
//! A file gets its name only after its bytes are durable; metadata images are the exception: they are
//! checked whenever they are opened. Removing works the other way round: first the name
//! goes, durably, then the bytes. So a crash leaves things in `tmp/` and nowhere else.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, RwLock};

use format::IndexId;

use crate::error::StoreError;
use crate::fs::{Disk, RealDisk, read_whole, remove_tree};
use crate::guard;
use crate::known::Known;
use crate::lock::Lock;
use crate::open_files::OpenFiles;
use crate::segments::OpenLayer;
use crate::session;

/// The newest layout this program can use.
const VERSION: u32 = 1;

const DIRECTORIES: [&str; 7] = ["refs", "index", "device", "known", "meta", "profile", "tmp"];

/// Entries that may be in the root of a store that has no `VERSION` yet: a creation cut short.
const YOUNG: [&str; 9] = ["refs", "index", "device", "known", "meta", "profile", "tmp", "LOCK", "lost+found"];

/// A directory of images and layers that this process alone uses.
#[derive(Debug)]
pub struct Store {
    root: PathBuf,
    disk: Arc<dyn Disk>,
    _lock: Lock,
    boot: String,
    era: String,
    next_name: AtomicU64,
    pub(crate) files: OpenFiles,
    /// What layers have. Locked for a look only.
    pub(crate) known: Known,
    /// Layers that somebody uses, and how often. Taken after `removal`.
    pins: Mutex<HashMap<IndexId, usize>>,
    /// Layers that are open. Taken after nothing, held while a layer is opened so that it is opened once.
    pub(crate) open: Mutex<HashMap<IndexId, std::sync::Weak<OpenLayer>>>,
    /// Held for writing while `gc` decides and renames, for reading while a reference is written: what is
    /// named by a reference is not garbage. Both hold it across I/O on purpose; neither is on a read path.
    pub(crate) removal: RwLock<()>,
    /// True once closed. Held for reading during each append to a segment, for the sync at the end must
    /// see all of them.
    pub(crate) closed: RwLock<bool>,
}

impl Store {
    /// Opens the store at `root`, making it if there is none.
    pub fn open(root: &Path) -> Result<Arc<Self>, StoreError> {
        std::fs::create_dir_all(root).map_err(|error| StoreError::io("creating", root, error))?;
        let disk = RealDisk::open(root).map_err(|error| StoreError::io("opening", root, error))?;
        Self::open_on(root, Arc::new(disk), session::this_boot())
    }

    /// Opens the store on a given disk, in a given boot of the kernel.
    pub(crate) fn open_on(root: &Path, disk: Arc<dyn Disk>, boot: String) -> Result<Arc<Self>, StoreError> {
        // Before the lock is touched: a newer program's store is left as it is.
        version(root, disk.as_ref())?;
        let lock = Lock::take(root)?;
        let mut store = Self {
            root: root.to_owned(),
            disk,
            _lock: lock,
            boot,
            era: String::new(),
            next_name: AtomicU64::new(0),
            files: OpenFiles::new(),
            known: Known::new(),
            pins: Mutex::default(),
            open: Mutex::default(),
            removal: RwLock::default(),
            closed: RwLock::default(),
        };
        store.lay_out()?;
        store.era = session::begin(&store, &store.boot)?;
        Ok(Arc::new(store))
    }

    /// Returns the version of the store at `root`, nothing for an empty directory, without opening it.
    pub fn version(root: &Path) -> Result<Option<u32>, StoreError> {
        let disk = RealDisk::open(root).map_err(|error| StoreError::io("opening", root, error))?;
        version(root, &disk)
    }

    /// Makes durable what has been written.
    pub fn sync(&self) -> Result<(), StoreError> {
        self.disk.sync_all().map_err(|error| StoreError::io("syncing", &self.root, error))
    }

    /// Closes the store: everything is durable, and the next start need not check anything.
    ///
    /// Segments can no longer be written; the lock is held until the last user has dropped the store. Without
    /// this call the store is what a killed process leaves: consistent, and checked again if the kernel died.
    pub fn close(&self) -> Result<(), StoreError> {
        let mut closed = guard::write(&self.closed);
        if *closed {
            return Ok(());
        }
        *closed = true;
        self.sync()?;
        session::end(self, &self.era, &self.boot)
    }

    /// Returns the directory the store lives in.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Returns the directory of the segments: a file `<layer>/<segment>` for each.
    pub fn devices(&self) -> PathBuf {
        self.root.join("device")
    }

    /// Returns the bytes that may still be written.
    pub fn free(&self) -> Result<u64, StoreError> {
        self.disk.free().map_err(|error| StoreError::io("asking for room on", &self.root, error))
    }

    /// Returns the bytes of the file system it is on.
    pub fn capacity(&self) -> Result<u64, StoreError> {
        self.disk.capacity().map_err(|error| StoreError::io("asking for the size of", &self.root, error))
    }

    pub(crate) fn disk(&self) -> &dyn Disk {
        self.disk.as_ref()
    }

    pub(crate) fn era(&self) -> &str {
        &self.era
    }

    /// Returns the full path of something in the store, for messages.
    pub(crate) fn path(&self, path: &Path) -> PathBuf {
        self.root.join(path)
    }

    /// Returns an unused name in `tmp/`.
    pub(crate) fn temporary(&self) -> PathBuf {
        Path::new("tmp").join(self.next_name.fetch_add(1, Ordering::Relaxed).to_string())
    }

    /// Returns an empty file without a name: it is gone when it is closed.
    pub fn scratch(&self) -> Result<std::fs::File, StoreError> {
        let path = self.temporary();
        let made = self.disk.create(&path).and_then(|file| self.disk.remove_file(&path).map(|()| file));
        made.map_err(|error| StoreError::io("making", &self.path(&path), error))
    }

    /// Makes a file of these parts durable under its name, replacing what was there.
    pub(crate) fn replace(&self, path: &Path, parts: &[&[u8]]) -> Result<(), StoreError> {
        self.put(path, |temporary| {
            let file = self.write_new(temporary, parts)?;
            self.disk.sync(&file)
        })?;
        self.sync_parent(path).map_err(|error| StoreError::io("writing", &self.path(path), error))
    }

    /// Makes a file of these parts under its name without waiting for the disk: a lost kernel may lose it or leave
    /// a part of it, so who reads it checks it.
    pub(crate) fn replace_soon(&self, path: &Path, parts: &[&[u8]]) -> Result<(), StoreError> {
        self.put(path, |temporary| self.write_new(temporary, parts).map(drop))
    }

    fn put(&self, path: &Path, write: impl FnOnce(&Path) -> io::Result<()>) -> Result<(), StoreError> {
        let temporary = self.temporary();
        let written = write(&temporary).and_then(|()| self.disk.rename(&temporary, path));
        written.map_err(|error| {
            // Swept at the next start if it cannot be removed: the first error is what matters.
            let _ = self.disk.remove_file(&temporary);
            StoreError::io("writing", &self.path(path), error)
        })
    }

    /// Removes a file's name durably; one that is not there is no error.
    pub(crate) fn remove_durably(&self, path: &Path) -> Result<(), StoreError> {
        match self.disk.remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => self.sync_parent(path),
        }
        .map_err(|error| StoreError::io("removing", &self.path(path), error))
    }

    /// Frees something in `tmp/`; what cannot be removed is tried again at the next start.
    pub(crate) fn discard(&self, temporary: &Path) {
        if let Err(error) = remove_tree(self.disk(), temporary) {
            tracing::warn!(path = %self.path(temporary).display(), %error, "cannot remove leftovers");
        }
    }

    pub(crate) fn sync_parent(&self, path: &Path) -> io::Result<()> {
        self.disk.sync_dir(parent(path))
    }

    fn write_new(&self, path: &Path, parts: &[&[u8]]) -> io::Result<File> {
        let file: File = self.disk.create(path)?;
        let mut end = 0;
        for part in parts {
            self.disk.append(&file, end, part)?;
            end += part.len() as u64;
        }
        Ok(file)
    }

    /// Makes what a store consists of; `VERSION` last, so a creation cut short is begun again.
    fn lay_out(&self) -> Result<(), StoreError> {
        let fresh = version(&self.root, self.disk())?.is_none();
        for directory in DIRECTORIES {
            match self.disk.create_dir(Path::new(directory)) {
                Err(error) if error.kind() != io::ErrorKind::AlreadyExists => {
                    return Err(StoreError::io("creating", &self.root.join(directory), error));
                }
                _ => {}
            }
        }
        // Before anything is written: names in `tmp/` begin anew with every start.
        self.sweep()?;
        if fresh {
            self.disk
                .sync_dir(parent(Path::new("VERSION")))
                .map_err(|e| StoreError::io("syncing", &self.root, e))?;
            self.replace(Path::new("VERSION"), &[format!("floe store {VERSION}\n").as_bytes()])?;
        }
        Ok(())
    }

    fn sweep(&self) -> Result<(), StoreError> {
        let failed = |error| StoreError::io("sweeping", &self.root.join("tmp"), error);
        for entry in self.disk.list(Path::new("tmp")).map_err(failed)? {
            let path = Path::new("tmp").join(&entry.name);
            match entry.kind {
                crate::fs::EntryKind::Dir => remove_tree(self.disk(), &path),
                _ => self.disk.remove_file(&path),
            }
            .map_err(failed)?;
        }
        Ok(())
    }
}

/// Keeps a layer's files from being removed while it lives.
#[derive(Debug)]
pub struct Pin {
    store: Arc<Store>,
    layer: IndexId,
}

impl Pin {
    pub(crate) fn new(store: &Arc<Store>, layer: IndexId) -> Self {
        // Waits for a running `gc` to have decided: what is pinned afterwards has been made afterwards too.
        let _removal = guard::read(&store.removal);
        *guard::lock(&store.pins).entry(layer).or_default() += 1;
        Self { store: Arc::clone(store), layer }
    }

    /// Returns whether somebody holds a pin on a layer.
    pub(crate) fn holds(store: &Store, layer: &IndexId) -> bool {
        guard::lock(&store.pins).contains_key(layer)
    }
}

impl Drop for Pin {
    fn drop(&mut self) {
        let mut pins = guard::lock(&self.store.pins);
        match pins.get_mut(&self.layer) {
            Some(count) if *count > 1 => *count -= 1,
            _ => {
                pins.remove(&self.layer);
            }
        }
    }
}

/// Returns the directory of a path below the root, as the disk wants it.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    }
}

/// Returns the version of the store, nothing for one that is not finished, or why it cannot be used.
fn version(root: &Path, disk: &dyn Disk) -> Result<Option<u32>, StoreError> {
    let path = root.join("VERSION");
    let text = match read_whole(disk, Path::new("VERSION"), 4096) {
        Ok(text) => text,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let entries =
                disk.list(Path::new(".")).map_err(|error| StoreError::io("listing", root, error))?;
            return match entries.iter().find(|entry| !YOUNG.iter().any(|young| entry.name == *young)) {
                None => Ok(None),
                Some(stranger) => Err(StoreError::damaged(
                    &path,
                    format!(
                        "it is missing, and with {:?} there this is not an empty directory",
                        stranger.name
                    ),
                )),
            };
        }
        Err(error) => return Err(StoreError::io("reading", &path, error)),
    };
    let found = std::str::from_utf8(&text)
        .ok()
        .and_then(|text| text.strip_prefix("floe store "))
        .and_then(|text| text.strip_suffix('\n'))
        .filter(|digits| !digits.starts_with(['0', '+']))
        .and_then(|digits| digits.parse::<u32>().ok())
        .ok_or_else(|| StoreError::damaged(&path, "it does not say \"floe store\" and a number"))?;
    if found > VERSION {
        return Err(StoreError::Newer { root: root.to_owned(), found, known: VERSION });
    }
    Ok(Some(found))
}
