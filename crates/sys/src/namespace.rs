//! Mount namespaces of single threads.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::thread::{UnshareFlags, unshare_unsafe};

/// Gives the calling thread, and every process it starts later, a mount table of their own.
///
/// Mounts made there are seen by nobody else and vanish with the last process that uses them, also after
/// SIGKILL. The thread's working directory and root stop being shared with other threads: use a thread that
/// does nothing else and ends soon.
pub fn own_mounts() -> io::Result<()> {
    // SAFETY: the call is unsafe because of `UnshareFlags::FILES`, which would hide descriptors from other
    // threads. NEWNS leaves the descriptor table shared.
    unsafe { unshare_unsafe(UnshareFlags::NEWNS) }?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}
