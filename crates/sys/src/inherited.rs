//! Sockets that a service manager has opened for this process (`sd_listen_fds(3)`).

use std::io;
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};

/// Returns the sockets and their names, closed on exec. The first call has them, for each has one owner; make it before
/// this process opens files of its own.
pub fn sockets() -> io::Result<Vec<(String, OwnedFd)>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::Relaxed) {
        return Ok(Vec::new());
    }
    let given = sd_notify::listen_fds_with_names()?;
    // SAFETY: `LISTEN_PID` is this process, so they were opened for it before it began, and the library has found each
    // open; this is the only place that makes an owner of them, and it does so once.
    Ok(given.map(|(fd, name)| (name, unsafe { OwnedFd::from_raw_fd(fd) })).collect())
}
