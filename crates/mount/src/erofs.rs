//! The kernel's own read path: a metadata image and the segments of its layers as an EROFS mount.
//!
//! What is whole when the mount is made is read by the kernel alone. What is missing is a file of size 0 that the
//! kernel opens through a *watch point*, a bind mount of the segments' directory that the keeper watches: before the
//! first read of such a segment the reader waits, [`Events`] has it filled, and nobody is asked about it again. So
//! if every process of ours dies a read of what is missing is a read past the end of a file, `EIO`, and never zeros.
//!
//! The daemon fills through the store's own path, not through the watch point, so it never waits for itself.
//!
//! | file | what |
//! |---|---|
//! | `ahead.rs` | how far the kernel reads ahead |
//! | `events.rs` | from an event to a whole segment and an answer |
//! | `streams.rs` | who reads a layer in sequence, and what to hint |
//! | `trial.rs` | whether this kernel and file system can do all that |

mod ahead;
mod events;
mod streams;
mod trial;

use std::fs::{self, File};
use std::io;
use std::os::fd::AsRawFd;
use std::path::{Path, PathBuf};

use format::IndexId;
use sys::mount::{Detached, DeviceReads, MountError, Unmount};

pub use events::{Events, Observed};
pub use trial::{TrialError, trial};

/// KiB that the kernel may read ahead where all is here: a segment. Where parts are missing it keeps to its own figure, for at a page
/// fault it reads as much around it, of two segments then. `docs/decisions/0009-*` has the measurements.
const AHEAD: u32 = 512;

/// A segment of an image that is about to be mounted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Device {
    /// The layer.
    pub index: IndexId,
    /// The segment.
    pub segment: u32,
    /// Whether it is whole on this node.
    pub whole: bool,
}

/// Mounts an image; `devices` are its device table, in order, with files `<layer>/<segment>` in `segments`.
///
/// Whole ones are opened in `segments`, which nobody watches, the others at the watch point. Without one all must be
/// whole, and then the page cache holds each byte once.
pub fn mount(
    image: &Path,
    devices: &[Device],
    segments: &File,
    watched: Option<&WatchPoint>,
) -> Result<Detached, MountError> {
    let path = |device: &Device| {
        let dir = match watched {
            Some(point) if !device.whole || point.all => &point.root,
            _ => segments,
        };
        // Short, whatever the store's own path is; resolved while we mount.
        format!("/proc/self/fd/{}/{}/{}", dir.as_raw_fd(), device.index.hex(), device.segment)
    };
    // Past the page cache the kernel would first write out what a fill has just put there: a reader would wait for
    // the disk. `docs/decisions/0009-*` has the figures.
    let reads = if watched.is_none() { DeviceReads::Direct } else { DeviceReads::Buffered };
    let mounted = || sys::mount::erofs(image, devices.iter().map(path), reads);
    if watched.is_some() {
        return mounted();
    }
    // Whoever waits for another mount looks up on the disk meanwhile what the kernel will look up, too.
    let look_up = || {
        for device in devices {
            let _ = fs::metadata(path(device)); // the kernel will say what is missing
        }
    };
    ahead::with(AHEAD, look_up, mounted)
}

/// A bind mount of a directory of segments, through which the kernel asks before it reads.
#[derive(Debug)]
pub struct WatchPoint {
    at: PathBuf,
    root: File,
    /// Whether segments that are whole are opened here too, so that their first read is heard of.
    all: bool,
}

impl WatchPoint {
    /// Makes one at a directory that is made for it. It has to be watched before anything is opened in it.
    pub fn create(segments: &Path, at: &Path, all: bool) -> io::Result<Self> {
        match fs::create_dir(at) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
            _ => {}
        }
        let made = sys::mount::bind(segments).map_err(io::Error::other)?;
        let root = made.root()?;
        made.attach(at).map_err(io::Error::other)?;
        Ok(Self { at: at.to_owned(), root, all })
    }

    /// Finds the one that an earlier process made.
    pub fn find(at: &Path) -> io::Result<Self> {
        Ok(Self { at: at.to_owned(), root: File::open(at)?, all: false })
    }

    /// Returns its root directory, to be watched.
    pub fn root(&self) -> &File {
        &self.root
    }

    /// Takes its name away; who has opened files in it keeps them.
    pub fn remove(self) {
        remove_point(&self.at);
    }
}

/// Takes a mount and its directory away, if they are there.
pub fn remove_point(at: &Path) {
    detach_point(at);
    let _ = fs::remove_dir(at); // whoever comes next makes another one
}

/// Takes a mount away, if there is one.
pub fn detach_point(at: &Path) {
    match sys::mount::unmount(at, Unmount::Lazy) {
        Ok(()) => {}
        Err(error) => tracing::debug!(at = %at.display(), %error, "taking a mount away"),
    }
}
