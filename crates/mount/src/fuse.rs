//! The FUSE read path: a thin adapter over a metadata image and the segments of its layers.
//!
//! Promises: what a reader gets is the file's bytes or an errno, never zeros or other bytes in their place,
//! whatever happens to this process. A read whose segments are here is answered by the thread that received
//! it and never queues behind one that waits. Inodes never change, so there is no state per inode and the
//! kernel may keep names, attributes and pages for as long as it likes; an error is kept nowhere.
//!
//! Leaves to others: where segments come from (`store`), what the numbers mean ([`crate::observe`]).
//!
//! | file | what |
//! |---|---|
//! | `device.rs` | `/dev/fuse`, mount and unmount, with and without root |
//! | `mounted.rs` | the life of a mount |
//! | `session.rs` | fuser's threads: begun on any device, ended without ending the mount |
//! | `terms.rs` | what a successor must know |
//! | `wire.rs` | messages of the protocol beside fuser's |
//! | `refuse.rs` | requests that nobody serves |
//! | `filesystem.rs` | the kernel's requests |
//! | `reads.rs` | from a range of a file to bytes |
//! | `files.rs` | segments kept open |
//! | `waiters.rs` | reads that wait for a segment |
//! | `ahead.rs` | who reads in sequence, and what to hint |
//! | `names.rs` | a second file system, of names: the layers that containers/storage looks up |

mod ahead;
mod device;
mod files;
mod filesystem;
mod mounted;
pub mod names;
mod reads;
pub(crate) mod refuse;
mod session;
mod terms;
mod waiters;
mod wire;

use std::os::fd::OwnedFd;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use format::erofs::read::Image;
use store::Segments;

use self::device::Changes;
use self::filesystem::Fs;
use self::mounted::{Serve, Stop};
use self::reads::Core;
use self::session::{Gate, Last};
use self::waiters::Waiters;
use crate::observe::{Observer, Silent};

pub use device::{DeviceError, Unavailable, available, detach, unmount};
pub use mounted::{LeaveError, MountError, Mounted, Unanswered, UnmountError, User};
pub use terms::Terms;

/// Who may look into the mount.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// Everybody, as the files' modes allow. Others than root need `user_allow_other` in `/etc/fuse.conf`.
    Everybody,
    /// Only the user who mounts; not even root.
    Owner,
}

/// Whether device nodes and setuid programs work as such. Without root they never do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Privileges {
    /// As the image says: what a container's root file system needs.
    Kept,
    /// Mounted `nodev,nosuid`.
    Dropped,
}

/// How to mount and serve.
#[derive(Debug, Clone)]
pub struct Options {
    /// Who may look into the mount.
    pub access: Access,
    /// Whether device nodes and setuid programs work.
    pub privileges: Privileges,
    /// How long a read waits before it fails.
    pub deadline: Duration,
    /// Threads that receive requests and answer what is here.
    pub threads: usize,
    /// How many kilobytes the kernel reads ahead; its default if not given. Only root can set it.
    pub read_ahead_kib: Option<u32>,
}

impl Default for Options {
    fn default() -> Self {
        let root = rustix::process::geteuid().is_root();
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        Self {
            access: if root { Access::Everybody } else { Access::Owner },
            privileges: if root { Privileges::Kept } else { Privileges::Dropped },
            deadline: Duration::from_secs(300),
            // A thread that answers a hit may have to wait for the disk, so more than one per core.
            threads: (2 * cores).clamp(4, 16),
            read_ahead_kib: None,
        }
    }
}

/// A metadata image and its segments, ready to be mounted.
pub struct Server<B> {
    image: Arc<Image<B>>,
    segments: Arc<dyn Segments>,
    observer: Arc<dyn Observer>,
    options: Options,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Server<B> {
    /// Returns a server with default options that nobody observes.
    pub fn new(image: Arc<Image<B>>, segments: Arc<dyn Segments>) -> Self {
        Self { image, segments, observer: Arc::new(Silent), options: Options::default() }
    }

    /// Says who hears of reads.
    #[must_use]
    pub fn observed_by(mut self, observer: Arc<dyn Observer>) -> Self {
        self.observer = observer;
        self
    }

    /// Sets the options.
    #[must_use]
    pub fn with(mut self, options: Options) -> Self {
        self.options = options;
        self
    }

    /// Mounts on a directory and serves until unmounted or dropped.
    pub fn mount(self, at: &Path) -> Result<Mounted, MountError> {
        mounted::mount(self, at)
    }

    /// Serves a mount that another process has made and left, or died of serving.
    ///
    /// `device` and `terms` are those that process gave away, `at` is its [`Mounted::path`]. It must serve no more:
    /// waited for if it died, returned from [`Mounted::leave`] otherwise. Readers notice nothing but the time it took,
    /// as far as [`Unanswered`] says. If this fails the mount is as it was, for another try.
    pub fn resume(
        self,
        device: OwnedFd,
        terms: Terms,
        at: &Path,
    ) -> Result<(Mounted, Unanswered), MountError> {
        mounted::resume(self, device, terms, at)
    }
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Serve for Server<B> {
    const CHANGES: Changes = Changes::Refused;

    type Fs = Fs<B>;

    fn options(&self) -> &Options {
        &self.options
    }

    fn begin(self, gate: Arc<Gate>, last: Last) -> (Fs<B>, Stop) {
        let core = Arc::new(Core::new(self));
        let waiters = Arc::new(Waiters::new(Arc::clone(&core)));
        let (stop, leave) = (Arc::clone(&waiters), Arc::clone(&waiters));
        let stop = Stop { stop: Box::new(move || stop.stop()), leave: Box::new(move || leave.leave()) };
        (Fs::new(core, waiters, gate, last), stop)
    }
}
