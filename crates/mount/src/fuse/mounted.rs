//! The life of a mount: made, watched, taken down.

use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Config, Session, SessionACL};

use super::Server;
use super::device::{self, By, DeviceError, How};
use super::filesystem::Fs;
use super::reads::Core;
use super::waiters::Waiters;

/// Why an image could not be mounted.
#[derive(Debug, thiserror::Error)]
pub enum MountError {
    /// The directory to mount on.
    #[error("mounting on {}", at.display())]
    Target {
        /// The directory.
        at: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// FUSE.
    #[error("mounting on {}", at.display())]
    Device {
        /// The directory.
        at: PathBuf,
        /// What FUSE or its helper says.
        source: DeviceError,
    },
    /// The kernel and we did not come to terms.
    #[error("speaking with the kernel for {}", at.display())]
    Session {
        /// The directory.
        at: PathBuf,
        /// What went wrong.
        source: io::Error,
    },
}

/// A process that keeps a mount busy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct User {
    /// Its id.
    pub pid: u32,
    /// The first 15 bytes of its name.
    pub name: String,
}

/// Why a mount could not be taken down.
#[derive(Debug, thiserror::Error)]
pub enum UnmountError {
    /// Somebody uses it.
    #[error("{} is in use{}", at.display(), users(by))]
    Busy {
        /// The mount.
        at: PathBuf,
        /// Who, as far as `/proc` tells: an overlay on top of it, for one, is no process.
        by: Vec<User>,
    },
    /// Anything else.
    #[error("unmounting {}", at.display())]
    Io {
        /// The mount.
        at: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// A mount that is being served.
///
/// Dropping it takes the mount down whoever uses it: reads that wait get an errno, and so do all later ones.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    by: By,
    /// Device number of the mount; by it a connection is found.
    number: Option<u64>,
    session: Option<JoinHandle<io::Result<()>>>,
    stop: Stop,
}

/// What ends all waiting.
struct Stop(Box<dyn Fn() + Send + Sync>);

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stop")
    }
}

pub(super) fn mount<B>(server: Server<B>, at: &Path) -> Result<Mounted, MountError>
where
    B: AsRef<[u8]> + Send + Sync + 'static,
{
    let target = |source| MountError::Target { at: at.to_owned(), source };
    let path = at.canonicalize().map_err(target)?;
    if !fs::metadata(&path).map_err(target)?.is_dir() {
        return Err(target(io::ErrorKind::NotADirectory.into()));
    }
    let options = server.options.clone();
    let core = Arc::new(Core::new(server));
    let waiters = Arc::new(Waiters::new(Arc::clone(&core)));

    let (fd, by) =
        device::mount(&path, &options).map_err(|source| MountError::Device { at: path.clone(), source })?;
    let stop = Arc::clone(&waiters);
    let stop = Stop(Box::new(move || stop.stop()));
    // From here on a failure drops it, which unmounts.
    let mut mounted = Mounted { at: path, by, number: None, session: None, stop };
    let session = |source| MountError::Session { at: at.to_owned(), source };
    let mut config = Config::default();
    config.n_threads = Some(options.threads.max(1));
    config.clone_fd = true;
    let fs = Fs::new(core, waiters);
    // The kernel checks who may come in; there is no need to do it again.
    let made = Session::from_fd(fs, fd, SessionACL::All, config).map_err(session)?;
    // The threads of the session alone hold the device: should all of them end, so does the connection, and
    // readers get errors.
    let run = thread::Builder::new().name("floe-fuse".into()).spawn(move || made.run());
    mounted.session = Some(run.map_err(session)?);
    // Served by the threads that have just begun.
    let number = fs::metadata(&mounted.at).map_err(session)?.dev();
    mounted.number = Some(number);
    if let Some(kib) = options.read_ahead_kib {
        read_ahead(number, kib);
    }
    Ok(mounted)
}

/// Tells the kernel how far to read ahead; it goes on with its default where we may not.
fn read_ahead(number: u64, kib: u32) {
    let (major, minor) = (rustix::fs::major(number), rustix::fs::minor(number));
    let path = format!("/sys/class/bdi/{major}:{minor}/read_ahead_kb");
    if let Err(error) = fs::write(&path, kib.to_string()) {
        tracing::debug!(%path, %error, "setting the readahead of the mount");
    }
}

impl Mounted {
    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Says whether it is still served: a user may have unmounted it by hand.
    pub fn is_served(&self) -> bool {
        self.session.as_ref().is_some_and(|session| !session.is_finished())
    }

    /// Takes the mount down if nobody uses it; otherwise it stays as it is.
    pub fn unmount(&mut self) -> Result<(), UnmountError> {
        self.take_name(How::Idle)?;
        // An overlay holds the file system itself, not its name: then it is served until the overlay goes.
        let limit = Instant::now() + ENDING;
        while self.is_served() && Instant::now() < limit {
            thread::sleep(Duration::from_millis(1));
        }
        if self.is_served() {
            return Ok(());
        }
        self.wait().map_err(|source| self.failed(source))
    }

    /// Takes the mount's name away; who uses it still is served, and it ends with the last of them.
    pub fn detach(&mut self) -> Result<(), UnmountError> {
        self.take_name(How::Detach)
    }

    /// Waits until the mount has ended: unmounted by anybody, and the last user gone.
    pub fn wait(&mut self) -> io::Result<()> {
        let ended = self.session.take().map_or(Ok(Ok(())), JoinHandle::join);
        ended.unwrap_or_else(|_| Err(io::Error::other("the thread that serves the mount failed")))
    }

    fn take_name(&self, how: How) -> Result<(), UnmountError> {
        // Who unmounted it by hand may have mounted something else there.
        if !self.has_name() {
            return Ok(());
        }
        device::unmount_by(&self.at, self.by, how).map_err(|source| self.failed(source))
    }

    /// Says whether what is on top at our place is ours.
    fn has_name(&self) -> bool {
        let Some(number) = self.number else { return true }; // hardly mounted yet
        // Numbers are given out again, but not while a mount lives, and a dead one serves nobody.
        let dead = || {
            let looked = fs::metadata(&self.at).err().and_then(|error| error.raw_os_error());
            looked == Some(rustix::io::Errno::NOTCONN.raw_os_error())
        };
        device::on_top(&self.at) == Some(number) && (self.is_served() || dead())
    }

    fn failed(&self, source: io::Error) -> UnmountError {
        let at = self.at.clone();
        if source.raw_os_error() == Some(rustix::io::Errno::BUSY.raw_os_error()) {
            let by = users_of(&self.at);
            return UnmountError::Busy { at, by };
        }
        UnmountError::Io { at, source }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        // First those who wait, then those who would: an unmount must not wait for a network.
        (self.stop.0)();
        let named = self.has_name();
        if let Err(error) = self.take_name(How::Abort) {
            tracing::warn!(at = %self.at.display(), error = &error as &dyn std::error::Error, "unmounting");
        }
        if !self.is_served() {
            return;
        }
        // Root has ended the connection together with the name. Otherwise there is one more way, and if it is
        // closed the threads go on until the last user is gone; nobody need wait for that.
        let aborted = (named && self.by == By::Us) || self.number.is_some_and(|n| device::abort(n).is_ok());
        if aborted {
            let _ = self.wait(); // its error is that the connection has ended
        }
    }
}

/// How long the end of an unmounted file system is waited for. The kernel ends an idle one at once.
const ENDING: Duration = Duration::from_secs(1);

/// How many users a message names.
const NAMED: usize = 5;

fn users(by: &[User]) -> String {
    if by.is_empty() {
        return String::new();
    }
    let named: Vec<_> = by.iter().take(NAMED).map(|user| format!("{} ({})", user.name, user.pid)).collect();
    let more = if by.len() > NAMED { " and others" } else { "" };
    format!(" by {}{more}", named.join(", "))
}

/// Returns the processes that have a file of the mount open or stand in it, as far as we may see.
fn users_of(at: &Path) -> Vec<User> {
    let Ok(processes) = fs::read_dir("/proc") else { return Vec::new() };
    let mut found = Vec::new();
    for process in processes.flatten() {
        let Some(pid) = process.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let path = process.path();
        // Links are only read, never followed: following one could ask the very mount.
        let inside = |link: PathBuf| fs::read_link(link).is_ok_and(|to| to.starts_with(at));
        let descriptors = fs::read_dir(path.join("fd")).into_iter().flatten().flatten();
        let uses = ["cwd", "root", "exe"].iter().any(|link| inside(path.join(link)))
            || descriptors.map(|fd| fd.path()).any(inside);
        if uses {
            let name = fs::read_to_string(path.join("comm")).unwrap_or_default();
            found.push(User { pid, name: name.trim().to_owned() });
        }
    }
    found
}
