//! `/dev/fuse`: opening it, mounting and unmounting, with and without root.
//!
//! Root uses the system calls. Others ask `fusermount3`, the setuid helper of libfuse, which mounts for them
//! and hands the open device back over a socket (libfuse, `util/fusermount.c`).

use std::ffi::CString;
use std::fs::File;
use std::io::{self, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::process::{Command, Stdio};

use rustix::event::{PollFd, PollFlags};
use rustix::mount::{MountFlags, UnmountFlags};
use rustix::net::{
    self, AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SocketFlags, SocketType,
};
use rustix::thread::CapabilitySet;

use super::{Access, Options, Privileges};

const DEVICE: &str = "/dev/fuse";
const HELPER: &str = "fusermount3";
/// What `mount` shows as source and, after `fuse.`, as type.
const NAME: &str = "floe";

/// Why this process cannot mount by FUSE.
#[derive(Debug, thiserror::Error)]
pub enum Unavailable {
    /// There is no device.
    #[error(
        "there is no /dev/fuse: load the kernel module (modprobe fuse), or give the container the device (--device /dev/fuse)"
    )]
    NoDevice,
    /// The device cannot be opened.
    #[error("/dev/fuse cannot be opened: allow this user or container to use it")]
    Device(#[source] io::Error),
    /// Not root, and no helper.
    #[error("mounting needs root (CAP_SYS_ADMIN) or the program fusermount3 (Debian package fuse3)")]
    NoHelper,
}

/// Says whether this process can mount by FUSE, or what is missing.
pub fn available() -> Result<(), Unavailable> {
    drop(open()?);
    if may_mount() || helper().arg("--version").output().is_ok_and(|out| out.status.success()) {
        Ok(())
    } else {
        Err(Unavailable::NoHelper)
    }
}

fn open() -> Result<File, Unavailable> {
    match File::options().read(true).write(true).open(DEVICE) {
        Ok(file) => Ok(file),
        // ENXIO and ENODEV: the node is there, the module is not.
        Err(error) if matches!(error.raw_os_error(), Some(2 | 6 | 19)) => Err(Unavailable::NoDevice),
        Err(error) => Err(Unavailable::Device(error)),
    }
}

/// Whether mount(2) is worth trying: root of a user namespace has the capability in it, too.
fn may_mount() -> bool {
    rustix::thread::capabilities(None).is_ok_and(|sets| sets.effective.contains(CapabilitySet::SYS_ADMIN))
}

/// Who did the mount, and so has to undo it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum By {
    Us,
    Helper,
}

/// Why a mount did not come about.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// Not possible at all.
    #[error(transparent)]
    Unavailable(#[from] Unavailable),
    /// mount(2) refused.
    #[error("mount(2)")]
    Mount(#[source] io::Error),
    /// The helper could not be run or does not talk as it should.
    #[error("running fusermount3")]
    Helper(#[source] io::Error),
    /// The helper refused.
    #[error("fusermount3: {0}")]
    Refused(String),
}

/// Whether the kernel passes on what would change something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Changes {
    /// It refuses by itself: mounted read-only.
    Refused,
    /// It asks.
    Asked,
}

/// Mounts on a directory; returns the connection with the kernel.
pub(super) fn mount(at: &Path, options: &Options, changes: Changes) -> Result<(OwnedFd, By), DeviceError> {
    let refused = match may_mount().then(|| mount_ourselves(at, options, changes)) {
        Some(Ok(device)) => return Ok((device, By::Us)),
        // A container may have the capability and still not be let: the helper may.
        Some(Err(DeviceError::Mount(error))) if error.kind() == io::ErrorKind::PermissionDenied => {
            Some(error)
        }
        Some(Err(error)) => return Err(error),
        None => None,
    };
    match (mount_by_helper(at, options, changes), refused) {
        (Ok(device), _) => Ok((device, By::Helper)),
        (Err(DeviceError::Unavailable(_)), Some(refused)) => Err(DeviceError::Mount(refused)),
        (Err(error), _) => Err(error),
    }
}

fn mount_ourselves(at: &Path, options: &Options, changes: Changes) -> Result<OwnedFd, DeviceError> {
    let device = open()?;
    let allow = if options.access == Access::Everybody { ",allow_other" } else { "" };
    let data = format!(
        "fd={},rootmode=40000,user_id={},group_id={},default_permissions{allow}",
        device.as_raw_fd(),
        rustix::process::geteuid().as_raw(),
        rustix::process::getegid().as_raw(),
    );
    let data = CString::new(data).map_err(|error| DeviceError::Mount(error.into()))?;
    let mut flags = match changes {
        Changes::Refused => MountFlags::RDONLY,
        Changes::Asked => MountFlags::empty(),
    };
    if options.privileges == Privileges::Dropped {
        flags |= MountFlags::NODEV | MountFlags::NOSUID;
    }
    rustix::mount::mount(NAME, at, format!("fuse.{NAME}"), flags, data.as_c_str())
        .map_err(|error| DeviceError::Mount(error.into()))?;
    Ok(device.into())
}

fn mount_by_helper(at: &Path, options: &Options, changes: Changes) -> Result<OwnedFd, DeviceError> {
    let fail = |error: rustix::io::Errno| DeviceError::Helper(error.into());
    drop(open()?); // the helper cannot do without, and its message has no hint
    let pair = net::socketpair(AddressFamily::UNIX, SocketType::STREAM, SocketFlags::CLOEXEC, None);
    let (ours, theirs) = pair.map_err(fail)?;
    let allow = if options.access == Access::Everybody { ",allow_other" } else { "" };
    let mode = if changes == Changes::Refused { "ro" } else { "rw" };
    let child = helper()
        .arg("-o")
        .arg(format!("{mode},nodev,nosuid,default_permissions,fsname={NAME},subtype={NAME}{allow}"))
        .arg("--")
        .arg(at)
        // The helper sends the device to the descriptor that this names; as standard input it needs no
        // descriptor that other children of ours might inherit.
        .env("_FUSE_COMMFD", "0")
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = match child {
        Ok(child) => child,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Err(Unavailable::NoHelper.into()),
        Err(error) => return Err(DeviceError::Helper(error)),
    };
    // The command, and with it our copy of the other end, is gone: if the helper dies this ends.
    let device = receive(&ours).map_err(fail);
    let done = child.wait_with_output().map_err(DeviceError::Helper)?;
    match device? {
        Some(device) if done.status.success() => Ok(device),
        _ => Err(DeviceError::Refused(String::from_utf8_lossy(&done.stderr).trim().to_owned())),
    }
}

/// Receives a descriptor from a socket, or nothing if the other end hangs up.
fn receive(socket: &OwnedFd) -> rustix::io::Result<Option<OwnedFd>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let mut byte = [0];
    net::recvmsg(socket, &mut [IoSliceMut::new(&mut byte)], &mut control, RecvFlags::CMSG_CLOEXEC)?;
    let mut descriptors = control.drain().filter_map(|message| match message {
        RecvAncillaryMessage::ScmRights(descriptors) => Some(descriptors),
        _ => None,
    });
    Ok(descriptors.next().and_then(|mut descriptors| descriptors.next()))
}

/// How to unmount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum How {
    /// Only if nobody uses it.
    Idle,
    /// Take the name away at once, the rest when the last user is gone.
    Detach,
    /// End the connection, so that users get errors, and take the name away.
    Abort,
}

/// Unmounts what nobody uses, in whichever way this process may; `EBUSY` if somebody does.
pub fn unmount(at: &Path) -> io::Result<()> {
    unmount_by(at, if may_mount() { By::Us } else { By::Helper }, How::Idle)
}

/// Takes the name of a mount away, in whichever way this process may; it ends with its last user.
pub fn detach(at: &Path) -> io::Result<()> {
    unmount_by(at, if may_mount() { By::Us } else { By::Helper }, How::Detach)
}

/// Unmounts; `EBUSY` if somebody uses it and that matters.
pub(super) fn unmount_by(at: &Path, by: By, how: How) -> io::Result<()> {
    if by == By::Us {
        let flags = match how {
            How::Idle => UnmountFlags::NOFOLLOW,
            How::Detach => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH,
            How::Abort => UnmountFlags::NOFOLLOW | UnmountFlags::DETACH | UnmountFlags::FORCE,
        };
        return Ok(rustix::mount::unmount(at, flags)?);
    }
    let mut command = helper();
    command.arg("-u");
    if how != How::Idle {
        command.arg("-z");
    }
    let done = command.arg("--").arg(at).stdin(Stdio::null()).output()?;
    let said = String::from_utf8_lossy(&done.stderr);
    match done.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(rustix::io::Errno::BUSY.into()),
        false => Err(io::Error::other(said.trim().to_owned())),
    }
}

/// Returns the device number of what is mounted at a path, without asking that file system.
pub(super) fn on_top(at: &Path) -> Option<u64> {
    let points = sys::table::points().ok()?;
    points.into_iter().rfind(|point| point.path == at).map(|point| point.device)
}

/// Ends a connection whose mount's device number is known: all users get errors from here on.
///
/// The only way for others than root, and only where the control file system is mounted.
pub(super) fn abort(device: u64) -> io::Result<()> {
    let minor = rustix::fs::minor(device);
    std::fs::write(format!("/sys/fs/fuse/connections/{minor}/abort"), "1")
}

/// Returns how many requests of a connection are queued or unanswered, where the control file system tells.
pub(super) fn waiting(device: u64) -> Option<u64> {
    let minor = rustix::fs::minor(device);
    let count = std::fs::read_to_string(format!("/sys/fs/fuse/connections/{minor}/waiting")).ok()?;
    count.trim().parse().ok()
}

/// Says whether a device still has its file system: not unmounted, not aborted.
pub(super) fn is_connected(device: &OwnedFd) -> bool {
    let mut asked = [PollFd::new(device, PollFlags::IN)];
    let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
    rustix::event::poll(&mut asked, Some(&now)).is_ok() && !asked[0].revents().contains(PollFlags::ERR)
}

/// The helper, with messages in the language that is looked for in them.
fn helper() -> Command {
    let mut command = Command::new(HELPER);
    command.env("LC_ALL", "C");
    command
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_mounted_is_told_by_its_number() {
        assert!(on_top(Path::new("/proc")).is_some() && on_top(Path::new("/nowhere")).is_none());
    }
}
