//! One process per store: an advisory lock on `LOCK`, with the holder's process id inside.
//!
//! The kernel drops the lock when its holder dies, however it dies, and only after the last of its threads has
//! left the kernel; so a successor never meets a write of its predecessor.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::Path;

use rustix::fs::{FlockOperation, Mode, OFlags};

use crate::error::StoreError;

/// The right to use a store; ends when dropped.
#[derive(Debug)]
pub(crate) struct Lock {
    _file: File,
}

impl Lock {
    /// Takes the lock of the store at `root` at once, or says who has it.
    pub(crate) fn take(root: &Path) -> Result<Self, StoreError> {
        let path = root.join("LOCK");
        let failed = |error| StoreError::io("locking", &path, error);
        let flags = OFlags::RDWR | OFlags::CREATE | OFlags::CLOEXEC | OFlags::NOFOLLOW;
        let file = File::from(
            rustix::fs::open(&path, flags, Mode::from_raw_mode(0o600)).map_err(|e| failed(e.into()))?,
        );
        match rustix::fs::flock(&file, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => {
                return Err(StoreError::Busy { root: root.to_owned(), pid: holder(file) });
            }
            Err(error) => return Err(failed(error.into())),
        }
        let pid = format!("{}\n", std::process::id());
        file.set_len(0)
            .and_then(|()| file.write_all_at(pid.as_bytes(), 0))
            .or_else(tolerate_full)
            .map_err(failed)?;
        Ok(Self { _file: file })
    }
}

/// The id is a courtesy: a full disk must not keep anybody from running `gc`.
fn tolerate_full(error: io::Error) -> io::Result<()> {
    match error.kind() {
        io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Ok(()),
        _ => Err(error),
    }
}

fn holder(file: File) -> Option<u32> {
    let mut text = String::new();
    file.take(32).read_to_string(&mut text).ok()?;
    text.trim().parse().ok()
}
