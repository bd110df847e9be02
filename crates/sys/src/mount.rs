//! Mounts of EROFS images in files, and of overlays, through `fsopen`, `fsconfig`, `fsmount` and `move_mount`.
//!
//! Never a loop device: `mount(8)` would set one up silently, and then the kernel refuses regular files as further
//! devices. Here the kernel gets the paths themselves (Linux 6.12 or later, `CONFIG_EROFS_FS_BACKED_BY_FILE`).
//!
//! A mount is made [`Detached`] and becomes visible with [`Detached::attach`]; dropped before, it is gone.
//! Everything here needs `CAP_SYS_ADMIN` in the user namespace of the mount namespace.

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, Mode, OFlags};
use rustix::mount::{
    self, FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, UnmountFlags,
};

use crate::namespace::Users;

/// Longest value that `fsconfig` takes as a string, in bytes (256 with the terminator, in `fs/fsopen.c`).
pub const VALUE: usize = 255;

/// A step that the kernel refused, and what it said about it.
#[derive(Debug, thiserror::Error)]
#[error("{step}: {source}{said}")]
pub struct MountError {
    /// What was being done, to which thing.
    step: String,
    #[source]
    source: io::Error,
    said: Said,
}

impl MountError {
    /// Returns the errno of the failed step, if it came from the kernel.
    pub fn errno(&self) -> Option<i32> {
        self.source.raw_os_error()
    }

    /// Returns the kernel's own messages, as it logged them for this mount.
    pub fn messages(&self) -> &[String] {
        &self.said.0
    }

    fn new(step: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self { step: step.into(), source: source.into(), said: Said(Vec::new()) }
    }
}

/// Messages of the kernel, as the end of an error message.
#[derive(Debug)]
struct Said(Vec<String>);

impl fmt::Display for Said {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.is_empty() { Ok(()) } else { write!(f, " (kernel: {})", self.0.join("; ")) }
    }
}

/// A mount that is nowhere yet.
#[derive(Debug)]
pub struct Detached(OwnedFd);

impl Detached {
    /// Puts the mount on a directory.
    pub fn attach(self, target: &Path) -> Result<(), MountError> {
        let moved = mount::move_mount(&self.0, "", CWD, target, MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH);
        moved.map_err(|e| MountError::new(format!("attaching the mount to {}", target.display()), e))
    }
}

impl Detached {
    /// Opens the root directory for reading; the mount itself is open as a path only.
    pub fn root(&self) -> io::Result<File> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        Ok(File::from(rustix::fs::openat(&self.0, ".", flags, Mode::empty())?))
    }

    /// Opens a file below it for reading, before anybody else can.
    pub fn open(&self, path: &str) -> Result<File, MountError> {
        let opened = rustix::fs::openat(&self.0, path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty());
        opened.map(File::from).map_err(|e| MountError::new(format!("opening {path} in the mount"), e))
    }
}

impl AsFd for Detached {
    /// Returns the root directory of the mount, which can be opened from and marked before anybody sees it.
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// How an EROFS image reads its devices.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceReads {
    /// Through the page cache of the device files: every byte is cached twice.
    Buffered,
    /// Past it (`directio`). Needs a file system under the devices whose blocks are at most 4 KiB.
    Direct,
}

/// Mounts an EROFS image; `devices` are its device table's files, in order. All are regular files.
///
/// The kernel checks the number of devices but not their sizes: bytes past the end of a device are `EIO`. Without
/// any device it would take all of them to be part of the image; images of ours answer that with `EIO` too.
pub fn erofs<P: AsRef<Path>>(
    image: &Path,
    devices: impl IntoIterator<Item = P>,
    reads: DeviceReads,
) -> Result<Detached, MountError> {
    let context = Context::open("erofs")?;
    regular(image)?;
    context.string("source", image)?;
    context.flag("ro")?;
    let mut count = 0;
    for device in devices {
        context.string("device", device.as_ref())?;
        count += 1;
    }
    if reads == DeviceReads::Direct {
        context.flag("directio")?;
    }
    // The kernel's complaint about a wrong number of devices goes to its log only, so tell the number here.
    context.create(&format!("mounting EROFS image {} with {count} devices", image.display()))
}

/// An overlay over read-only layers.
#[derive(Debug, Clone)]
pub struct Overlay {
    /// Lower directories, topmost first; at least one.
    pub lower: Vec<PathBuf>,
    /// Where changes go: upper directory and work directory, both on one file system. Read-only without.
    pub upper: Option<(PathBuf, PathBuf)>,
    /// Further parameters as `fsconfig` takes them, such as `("metacopy", "off")`.
    pub parameters: Vec<(String, String)>,
}

/// Mounts an overlay.
pub fn overlay(overlay: &Overlay) -> Result<Detached, MountError> {
    let context = Context::open("overlay")?;
    // What `findmnt` shows.
    context.string("source", Path::new("overlay"))?;
    for lower in &overlay.lower {
        context.string("lowerdir+", lower)?;
    }
    if let Some((upper, work)) = &overlay.upper {
        context.string("upperdir", upper)?;
        context.string("workdir", work)?;
    } else {
        context.flag("ro")?;
    }
    for (key, value) in &overlay.parameters {
        context.string(key, Path::new(value))?;
    }
    context.create("mounting an overlay")
}

/// Returns a private copy of the mount at a directory, without the mounts below it.
pub fn bind(source: &Path) -> Result<Detached, MountError> {
    let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    let tree = mount::open_tree(CWD, source, flags);
    tree.map(Detached).map_err(|e| MountError::new(format!("binding {}", source.display()), e))
}

impl Detached {
    /// Shows owners as they are in a user namespace, read-only (mount_setattr(2), `MOUNT_ATTR_IDMAP`): EROFS and most others can since
    /// Linux 5.19, our FUSE mounts cannot. To be called once, and before it is attached.
    pub fn shift(&self, users: &Users) -> Result<(), MountError> {
        let number = |fd: BorrowedFd<'_>| fd.as_raw_fd().unsigned_abs();
        let attributes = libc::mount_attr {
            attr_set: libc::MOUNT_ATTR_IDMAP | libc::MOUNT_ATTR_RDONLY,
            attr_clr: 0,
            propagation: 0,
            userns_fd: number(users.as_fd()).into(),
        };
        // SAFETY: the path is an empty string that ends with a zero, the attributes are a struct of the kernel's for which its size is
        // said, and both live for the call. The descriptors are open, and stay their owners'.
        let done = unsafe {
            libc::syscall(
                libc::SYS_mount_setattr,
                self.0.as_raw_fd(),
                c"".as_ptr(),
                libc::AT_EMPTY_PATH,
                &raw const attributes,
                size_of_val(&attributes),
            )
        };
        match done {
            0 => Ok(()),
            _ => Err(MountError::new("showing its owners shifted", io::Error::last_os_error())),
        }
    }
}

/// How a mount is taken away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unmount {
    /// Only if nobody uses it, else `EBUSY`.
    Idle,
    /// Out of sight at once; it ends when its last user has gone.
    Lazy,
}

/// Takes away the topmost mount at a directory; symbolic links are not followed.
pub fn unmount(target: &Path, how: Unmount) -> Result<(), MountError> {
    let lazy = if how == Unmount::Lazy { UnmountFlags::DETACH } else { UnmountFlags::empty() };
    let done = mount::unmount(target, UnmountFlags::NOFOLLOW | lazy);
    done.map_err(|e| MountError::new(format!("unmounting {}", target.display()), e))
}

/// A file system being configured.
struct Context(OwnedFd);

impl Context {
    fn open(kind: &str) -> Result<Self, MountError> {
        let context = mount::fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC);
        context.map(Self).map_err(|e| MountError::new(format!("opening file system type {kind}"), e))
    }

    fn string(&self, key: &str, value: &Path) -> Result<(), MountError> {
        let step = || format!("setting {key}={}", value.display());
        if value.as_os_str().len() > VALUE {
            let long = io::Error::new(io::ErrorKind::InvalidInput, format!("longer than {VALUE} bytes"));
            return Err(MountError::new(step(), long));
        }
        let done = mount::fsconfig_set_string(&self.0, key, value.as_os_str().as_bytes());
        done.map_err(|e| self.error(step(), e))
    }

    fn flag(&self, key: &str) -> Result<(), MountError> {
        mount::fsconfig_set_flag(&self.0, key).map_err(|e| self.error(format!("setting {key}"), e))
    }

    fn create(self, what: &str) -> Result<Detached, MountError> {
        mount::fsconfig_create(&self.0).map_err(|e| self.error(what, e))?;
        let mounted = mount::fsmount(&self.0, FsMountFlags::FSMOUNT_CLOEXEC, MountAttrFlags::empty());
        mounted.map(Detached).map_err(|e| self.error(what, e))
    }

    /// Collects what the kernel logged in the context: one message per read, `ENODATA` after the last.
    fn error(&self, step: impl Into<String>, errno: rustix::io::Errno) -> MountError {
        // The kernel keeps the last eight messages.
        const MESSAGES: usize = 8;
        let mut error = MountError::new(step, errno);
        let mut buffer = [0; 4096];
        while error.said.0.len() < MESSAGES {
            let Ok(len @ 1..) = rustix::io::read(&self.0, &mut buffer) else { break };
            // "e erofs: text": level, then text.
            let text = String::from_utf8_lossy(&buffer[..len]);
            error.said.0.push(text.split_once(' ').map_or(&*text, |(_, text)| text).trim_end().to_owned());
        }
        error
    }
}

/// A block device would mount too, and then refuse regular files as further devices with a riddle.
fn regular(image: &Path) -> Result<(), MountError> {
    let step = || format!("looking at {}", image.display());
    let found = std::fs::metadata(image).map_err(|e| MountError::new(step(), e))?;
    if found.is_file() {
        return Ok(());
    }
    Err(MountError::new(step(), io::Error::new(io::ErrorKind::InvalidInput, "not a regular file")))
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn assert_errno(errno: Option<i32>, wanted: rustix::io::Errno) {
        assert_eq!(errno, Some(wanted.raw_os_error()));
    }

    #[test]
    fn what_can_be_seen_without_the_kernel_is_refused_with_its_name() {
        let dir = tempfile::tempdir().unwrap();
        let long = dir.path().join("x".repeat(VALUE - 10));
        fs::write(&long, "").unwrap();
        let none: [&Path; 0] = [];
        for (image, why) in [
            (dir.path(), "not a regular file"),
            (&dir.path().join("none"), "No such file"),
            (&long, "longer than 255"),
        ] {
            let error = erofs(image, none, DeviceReads::Buffered).unwrap_err().to_string();
            if error.contains("opening file system type") {
                testkit::skip!("no EROFS here: {error}");
            }
            assert!(error.contains(why) && error.contains(&*image.to_string_lossy()), "{error}");
        }
    }

    #[test]
    fn errors_tell_the_step_and_what_the_kernel_says() {
        let Ok(context) = Context::open("overlay") else { testkit::skip!("fsopen needs root and overlayfs") };
        let error = context.string("lowerdir+", Path::new("/nonexistent")).unwrap_err();
        assert!(error.to_string().starts_with("setting lowerdir+=/nonexistent: No such file"), "{error}");
        let error = context.flag("no_such_flag").unwrap_err();
        assert!(error.messages().iter().any(|m| m.contains("no_such_flag")), "{error}");
        assert!(error.to_string().contains("(kernel: overlay: Unknown parameter 'no_such_flag')"), "{error}");
    }

    #[test]
    fn an_overlay_comes_and_goes() {
        if Context::open("overlay").is_err() {
            testkit::skip!("fsopen needs root and overlayfs");
        }
        // An overlay cannot be the upper layer of another: not in a directory that may be one.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let [a, b, up, work, at] =
            ["a", "b, with comma", "up", "work", "at"].map(|name| dir.path().join(name));
        for made in [&a, &b, &up, &work, &at] {
            fs::create_dir(made).unwrap();
        }
        fs::write(a.join("who"), "a").unwrap();
        fs::write(b.join("who"), "b").unwrap();
        fs::write(b.join("only"), "b").unwrap();
        let mut spec = Overlay { lower: vec![a, b], upper: Some((up.clone(), work)), parameters: Vec::new() };
        overlay(&spec).unwrap().attach(&at).unwrap();
        assert_eq!(fs::read(at.join("who")).unwrap(), b"a");
        assert_eq!(fs::read(at.join("only")).unwrap(), b"b");
        fs::write(at.join("made"), "new").unwrap();
        assert_eq!(fs::read(up.join("made")).unwrap(), b"new");

        let open = fs::File::open(at.join("who")).unwrap();
        assert_errno(unmount(&at, Unmount::Idle).unwrap_err().errno(), rustix::io::Errno::BUSY);
        unmount(&at, Unmount::Lazy).unwrap();
        assert!(!at.join("who").exists());
        drop(open);
        assert_errno(unmount(&at, Unmount::Idle).unwrap_err().errno(), rustix::io::Errno::INVAL);

        spec.upper = None;
        spec.parameters = vec![("metacopy".into(), "off".into())];
        overlay(&spec).unwrap().attach(&at).unwrap();
        assert_errno(fs::write(at.join("made"), "new").unwrap_err().raw_os_error(), rustix::io::Errno::ROFS);
        unmount(&at, Unmount::Idle).unwrap();
    }

    #[test]
    fn owners_are_shifted_and_what_is_below_is_not() {
        use std::os::unix::fs::{MetadataExt, chown};

        use crate::namespace::Mapping;
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let file = dir.path().join("file");
        fs::write(&file, "x").unwrap();
        let Ok(bound) = bind(dir.path()) else { testkit::skip!("open_tree needs root") };
        chown(&file, Some(3), Some(0)).unwrap();
        let map = |outside| [Mapping { inside: 0, outside, length: 10 }];
        bound.shift(&Users::new(&map(100_000), &map(200_000)).unwrap()).unwrap();
        let found = bound.open("file").unwrap().metadata().unwrap();
        assert_eq!((found.uid(), found.gid()), (100_003, 200_000));
        let below = fs::metadata(&file).unwrap();
        assert_eq!((below.uid(), below.gid()), (3, 0));
        let refused =
            rustix::fs::openat(&bound, "new", OFlags::WRONLY | OFlags::CREATE, Mode::RUSR).unwrap_err();
        assert_eq!(refused, rustix::io::Errno::ROFS);
        assert!(bound.shift(&Users::new(&map(1), &map(1)).unwrap()).is_err(), "once only");
    }

    #[test]
    fn a_bind_mount_shows_the_directory_until_it_is_dropped() {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("file"), "x").unwrap();
        let Ok(bound) = bind(dir.path()) else { testkit::skip!("open_tree needs root") };
        let file = rustix::fs::openat(&bound, "file", rustix::fs::OFlags::RDONLY, rustix::fs::Mode::empty());
        assert!(file.is_ok());
    }
}
