//! Mount namespaces of single threads, and user namespaces of whole processes.

use std::io;

use rustix::mount::{MountPropagationFlags, mount_change};
use rustix::process::{getegid, geteuid};
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

/// Makes this process root of a user namespace of its own, with no other user in it, and gives it a mount table.
///
/// Fails with `EINVAL` if it has more than one thread.
pub fn own_users() -> io::Result<()> {
    let (user, group) = (geteuid(), getegid());
    // SAFETY: as above; NEWUSER leaves the descriptor table shared too.
    unsafe { unshare_unsafe(UnshareFlags::NEWUSER | UnshareFlags::NEWNS) }?;
    // Who could change groups could get rid of one that is kept out of a file; so the kernel wants this first.
    std::fs::write("/proc/self/setgroups", "deny")?;
    std::fs::write("/proc/self/uid_map", format!("0 {user} 1"))?;
    std::fs::write("/proc/self/gid_map", format!("0 {group} 1"))?;
    mount_change("/", MountPropagationFlags::PRIVATE | MountPropagationFlags::REC)?;
    Ok(())
}
