//! Mount namespaces of single threads, and user namespaces of whole processes.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

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

/// A range of IDs, and the one that it stands for outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mapping {
    /// The first inside.
    pub inside: u32,
    /// What it is outside.
    pub outside: u32,
    /// How many follow one another, itself included.
    pub length: u32,
}

/// A user namespace that no process is in. It says which IDs a mount shows for which.
#[derive(Debug)]
pub struct Users(OwnedFd);

impl Users {
    /// Makes one in which users and groups are these (user_namespaces(7)).
    pub fn new(users: &[Mapping], groups: &[Mapping]) -> io::Result<Self> {
        let first = Inhabitant::new()?;
        let proc = |name| format!("/proc/{}/{name}", first.0);
        let text = |map: &[Mapping]| -> String {
            map.iter().map(|one| format!("{} {} {}\n", one.inside, one.outside, one.length)).collect()
        };
        std::fs::write(proc("uid_map"), text(users))?;
        std::fs::write(proc("gid_map"), text(groups))?;
        Ok(Self(File::open(proc("ns/user"))?.into()))
    }
}

impl AsFd for Users {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// The process with which a user namespace begins; it ends when dropped, and by itself should its parent be killed.
struct Inhabitant(libc::pid_t);

impl Inhabitant {
    fn new() -> io::Result<Self> {
        const AT_MOST: libc::c_int = 10_000; // milliseconds
        let flags = libc::CLONE_NEWUSER | libc::SIGCHLD;
        // The order of the numbers behind the flags differs between architectures; all are 0.
        #[cfg(target_arch = "s390x")]
        compile_error!("clone(2) takes its stack before its flags there");
        // SAFETY: without memory or stack that are shared this is fork(2). The child of a process with threads may use nothing that
        // another thread may have held at that moment: it makes three system calls, and never returns.
        let child = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
        if child == 0 {
            // SAFETY: they take numbers, and no memory.
            unsafe {
                // It has copies of its parent's descriptors, and must not hold them longer.
                libc::syscall(libc::SYS_prctl, libc::PR_SET_PDEATHSIG, libc::SIGKILL, 0, 0, 0);
                libc::poll(std::ptr::null_mut(), 0, AT_MOST);
                libc::_exit(0);
            }
        }
        match libc::pid_t::try_from(child) {
            Ok(child) if child > 0 => Ok(Self(child)),
            _ => Err(io::Error::last_os_error()),
        }
    }
}

impl Drop for Inhabitant {
    fn drop(&mut self) {
        // SAFETY: they take numbers, and no memory. It is our child, and nobody else waits for it, so the number is still its own.
        unsafe {
            libc::kill(self.0, libc::SIGKILL);
            libc::waitpid(self.0, std::ptr::null_mut(), 0);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn maps_are_the_kernels_to_judge() {
        let one = |outside, length| [Mapping { inside: 0, outside, length }];
        match Users::new(&one(100_000, 10), &one(200_000, 1)) {
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                testkit::skip!("user namespaces of others need root: {error}")
            }
            made => drop(made.unwrap()),
        }
        for bad in [one(100_000, 0), one(u32::MAX, 10)] {
            assert!(Users::new(&bad, &one(0, 1)).is_err(), "{bad:?}");
        }
        let overlapping = [one(100, 10), one(200, 10)].concat();
        assert!(Users::new(&overlapping, &one(0, 1)).is_err());
    }
}
