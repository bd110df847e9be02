//! The file operations the store does, and nothing else.
//!
//! Everything the store changes on disk goes through [`Disk`], so that the tests can log every operation, fail
//! any of them, and build the disk as it may look after power was lost at any moment. Paths are relative to the
//! store's root; the root is held open, so a renamed or over-mounted root cannot send writes elsewhere.
//!
//! Leaves to others: what the files mean.

use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Timespec, Timestamps, UTIME_NOW, UTIME_OMIT};

/// One name in a directory.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    /// The name.
    pub(crate) name: OsString,
    /// What it is.
    pub(crate) kind: EntryKind,
    /// Length in bytes, of a file.
    pub(crate) len: u64,
    /// When it was last changed or [touched](Disk::touch), since 1970.
    pub(crate) modified: Duration,
}

/// What a name in a directory stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum EntryKind {
    /// A regular file.
    File,
    /// A directory.
    Dir,
    /// Anything else; the store makes none.
    Other,
}

/// The disk below one store.
pub(crate) trait Disk: Send + Sync + fmt::Debug {
    /// Makes a directory; an error if the name is taken.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes an empty file and opens it for reading and writing; an error if the name is taken.
    fn create(&self, path: &Path) -> io::Result<File>;

    /// Opens a file for reading.
    fn open(&self, path: &Path) -> io::Result<File>;

    /// Opens a file for reading and appending.
    fn open_append(&self, path: &Path) -> io::Result<File>;

    /// Writes all bytes at `end`, which is the file's length. After an error any prefix may be there.
    fn append(&self, file: &File, end: u64, bytes: &[u8]) -> io::Result<()>;

    /// Reads up to a buffer's length; 0 at the end of the file.
    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize>;

    /// Makes a file's bytes and length durable.
    fn sync(&self, file: &File) -> io::Result<()>;

    /// Makes the names in a directory durable.
    fn sync_dir(&self, path: &Path) -> io::Result<()>;

    /// Makes everything on this file system durable; an error if any write failed since the store was opened.
    fn sync_all(&self) -> io::Result<()>;

    /// Gives a thing another name, replacing a file (or an empty directory) of that name.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file's name.
    fn remove_file(&self, path: &Path) -> io::Result<()>;

    /// Removes an empty directory.
    fn remove_dir(&self, path: &Path) -> io::Result<()>;

    /// Returns the names in a directory, sorted.
    fn list(&self, path: &Path) -> io::Result<Vec<Entry>>;

    /// Sets when a file or directory was last changed to this moment. A crash may undo it.
    fn touch(&self, path: &Path) -> io::Result<()>;

    /// Returns the bytes an ordinary process may still write.
    fn free(&self) -> io::Result<u64>;

    /// Returns the bytes of the whole file system.
    fn capacity(&self) -> io::Result<u64>;
}

/// A directory of this machine.
#[derive(Debug)]
pub(crate) struct RealDisk {
    root: OwnedFd,
}

impl RealDisk {
    /// Returns the disk below an existing directory.
    pub(crate) fn open(root: &Path) -> io::Result<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(Self { root: rustix::fs::open(root, flags, Mode::empty())? })
    }

    fn openat(&self, path: &Path, flags: OFlags) -> io::Result<File> {
        let flags = flags | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        Ok(File::from(rustix::fs::openat(&self.root, path, flags, Mode::from_raw_mode(0o600))?))
    }
}

impl Disk for RealDisk {
    fn create_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::mkdirat(&self.root, path, Mode::from_raw_mode(0o700))?)
    }

    fn create(&self, path: &Path) -> io::Result<File> {
        self.openat(path, OFlags::RDWR | OFlags::CREATE | OFlags::EXCL)
    }

    fn open(&self, path: &Path) -> io::Result<File> {
        self.openat(path, OFlags::RDONLY)
    }

    fn open_append(&self, path: &Path) -> io::Result<File> {
        self.openat(path, OFlags::RDWR)
    }

    fn append(&self, file: &File, end: u64, bytes: &[u8]) -> io::Result<()> {
        file.write_all_at(bytes, end)
    }

    fn read_at(&self, file: &File, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        file.read_at(buf, offset)
    }

    fn sync(&self, file: &File) -> io::Result<()> {
        file.sync_data()
    }

    fn sync_dir(&self, path: &Path) -> io::Result<()> {
        self.openat(path, OFlags::RDONLY | OFlags::DIRECTORY)?.sync_all()
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(rustix::fs::syncfs(&self.root)?)
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        Ok(rustix::fs::renameat(&self.root, from, &self.root, to)?)
    }

    fn remove_file(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::empty())?)
    }

    fn remove_dir(&self, path: &Path) -> io::Result<()> {
        Ok(rustix::fs::unlinkat(&self.root, path, AtFlags::REMOVEDIR)?)
    }

    fn list(&self, path: &Path) -> io::Result<Vec<Entry>> {
        let dir = self.openat(path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut entries = Vec::new();
        for name in Dir::read_from(&dir)? {
            let name = name?;
            let name = OsStr::from_bytes(name.file_name().to_bytes());
            if name == "." || name == ".." {
                continue;
            }
            let stat = rustix::fs::statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?;
            let kind = match FileType::from_raw_mode(stat.st_mode) {
                FileType::RegularFile => EntryKind::File,
                FileType::Directory => EntryKind::Dir,
                _ => EntryKind::Other,
            };
            // A length is never negative; zero claims nothing.
            entries.push(Entry {
                name: name.to_owned(),
                kind,
                len: u64::try_from(stat.st_size).unwrap_or(0),
                // Before 1970 is long ago; there are fewer than 2^32 nanoseconds in a second.
                modified: Duration::new(
                    u64::try_from(stat.st_mtime).unwrap_or(0),
                    u32::try_from(stat.st_mtime_nsec).unwrap_or(0),
                ),
            });
        }
        entries.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(entries)
    }

    fn touch(&self, path: &Path) -> io::Result<()> {
        let at = |tv_nsec| Timespec { tv_sec: 0, tv_nsec };
        let times = Timestamps { last_access: at(UTIME_OMIT), last_modification: at(UTIME_NOW) };
        Ok(rustix::fs::utimensat(&self.root, path, &times, AtFlags::SYMLINK_NOFOLLOW)?)
    }

    fn free(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(stat.f_bavail.saturating_mul(stat.f_frsize))
    }

    fn capacity(&self) -> io::Result<u64> {
        let stat = rustix::fs::fstatvfs(&self.root)?;
        Ok(stat.f_blocks.saturating_mul(stat.f_frsize))
    }
}

/// Fills a buffer from a file; an error if the file ends before.
pub(crate) fn read_exact(
    disk: &dyn Disk,
    file: &File,
    mut buf: &mut [u8],
    mut offset: u64,
) -> io::Result<()> {
    while !buf.is_empty() {
        match disk.read_at(file, buf, offset) {
            Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
            Ok(n) => {
                buf = &mut buf[n..];
                offset += n as u64;
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

/// Returns a small file's bytes; an error if it is longer than `limit`.
pub(crate) fn read_whole(disk: &dyn Disk, path: &Path, limit: u64) -> io::Result<Vec<u8>> {
    let file = disk.open(path)?;
    let len = file.metadata()?.len();
    if len > limit {
        return Err(io::Error::new(
            io::ErrorKind::InvalidData,
            format!("{len} bytes, at most {limit} are allowed"),
        ));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    read_exact(disk, &file, &mut bytes, 0)?;
    Ok(bytes)
}

/// Removes a directory and everything in it; what is gone already is no error.
pub(crate) fn remove_tree(disk: &dyn Disk, path: &Path) -> io::Result<()> {
    let entries = match disk.list(path) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        entries => entries?,
    };
    for entry in entries {
        let path = path.join(&entry.name);
        match entry.kind {
            EntryKind::Dir => remove_tree(disk, &path)?,
            EntryKind::File | EntryKind::Other => disk.remove_file(&path)?,
        }
    }
    disk.remove_dir(path)
}
