//! What can go wrong with a store, by what the caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

/// Why the store could not do what was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Another process has the store open.
    #[error("the store {} is in use by {}", root.display(), holder(*pid))]
    Busy {
        /// The store.
        root: PathBuf,
        /// The process, where it could be read.
        pid: Option<u32>,
    },
    /// A newer program wrote the store.
    #[error("the store {} has version {found}, this program knows versions up to {known}", root.display())]
    Newer {
        /// The store.
        root: PathBuf,
        /// What `VERSION` says.
        found: u32,
        /// The newest version this program can use.
        known: u32,
    },
    /// A file of the store is not what was written.
    #[error("{} is damaged: {what}", path.display())]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        what: String,
    },
    /// The store cannot be written.
    #[error("{doing} {}: the store is read-only", path.display())]
    ReadOnly {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// This user may not touch the store.
    #[error("{doing} {}: no permission", path.display())]
    Denied {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// No room is left; the store goes on when there is room again.
    #[error("{doing} {}: the disk is full", path.display())]
    Full {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// Anything else the system refused.
    #[error("{doing} {}", path.display())]
    Io {
        /// What was being done.
        doing: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The store has been closed.
    #[error("the store {} is closed", root.display())]
    Closed {
        /// The store.
        root: PathBuf,
    },
}

impl StoreError {
    /// Returns the error for a file operation, told apart by what can be done about it.
    pub(crate) fn io(doing: &'static str, path: &Path, source: io::Error) -> Self {
        let path = path.to_owned();
        match source.kind() {
            io::ErrorKind::ReadOnlyFilesystem => Self::ReadOnly { doing, path, source },
            io::ErrorKind::PermissionDenied => Self::Denied { doing, path, source },
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Self::Full { doing, path, source },
            _ => Self::Io { doing, path, source },
        }
    }

    pub(crate) fn damaged(path: &Path, what: impl Into<String>) -> Self {
        Self::Damaged { path: path.to_owned(), what: what.into() }
    }
}

fn holder(pid: Option<u32>) -> String {
    pid.map_or_else(|| "another process".to_owned(), |pid| format!("process {pid}"))
}
