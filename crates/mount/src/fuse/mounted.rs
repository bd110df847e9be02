//! The life of a mount: made, watched, taken down.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use super::Options;
use super::device::{self, By, Changes, DeviceError, How};
use super::session::{self, Gate, Greeting, Last, Link, Running};
use super::terms::Terms;
use super::{refuse, wire};

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

/// Why this process still serves a mount that it was to leave.
#[derive(Debug, thiserror::Error)]
pub enum LeaveError {
    /// Whoever waits for a segment would never be answered.
    #[error("the kernel cannot ask a successor for what is unanswered: that needs Linux 6.9")]
    Unsupported,
    /// There is nothing to leave: unmounted, or left before.
    #[error("{} is no longer served", .0.display())]
    Ended(PathBuf),
    /// Anything else. If its kind is `TimedOut`, this process answers no more, and must end before a successor begins.
    #[error("leaving {}", at.display())]
    Io {
        /// The mount.
        at: PathBuf,
        /// The system's word.
        source: io::Error,
    },
}

/// What becomes of requests that a predecessor had read and not answered.
#[must_use]
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unanswered {
    /// The kernel asks for them again.
    Resent,
    /// There were none.
    None,
    /// Nobody will ever answer them, as the kernel is older than 6.9.
    ///
    /// Those who asked hang, deaf to SIGKILL, until the mount is taken down, which ends them with an errno, and all
    /// others with them. Which of the two is the lesser evil the caller decides; dropping the mount takes it down.
    Lost {
        /// How many at most, where the system tells: requests that nobody had read yet are among them.
        at_most: Option<u64>,
    },
}

/// A mount that is being served.
///
/// Dropping it takes the mount down whoever uses it: reads that wait get an errno, and so do all later ones.
#[derive(Debug)]
pub struct Mounted {
    at: PathBuf,
    terms: Terms,
    running: Running,
    link: Arc<Link>,
    stop: Stop,
    left: bool,
}

/// What ends all waiting: with errors, or for a successor.
pub(super) struct Stop {
    pub(super) stop: Box<dyn Fn() + Send + Sync>,
    pub(super) leave: Box<dyn Fn() + Send + Sync>,
}

/// What a mount can be served by.
pub(super) trait Serve {
    /// Whether the kernel passes on what would change something, or refuses it by itself.
    const CHANGES: Changes;

    /// Who answers the kernel.
    type Fs: fuser::Filesystem + Send + Sync + 'static;

    /// Returns how to mount and serve.
    fn options(&self) -> &Options;

    /// Gets ready; what is returned keeps `last` as long as it lives.
    fn begin(self, gate: Arc<Gate>, last: Last) -> (Self::Fs, Stop);
}

impl std::fmt::Debug for Stop {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Stop")
    }
}

pub(super) fn mount<S: Serve>(server: S, at: &Path) -> Result<Mounted, MountError> {
    let target = |source| MountError::Target { at: at.to_owned(), source };
    let path = at.canonicalize().map_err(target)?;
    if !fs::metadata(&path).map_err(target)?.is_dir() {
        return Err(target(io::ErrorKind::NotADirectory.into()));
    }
    let (device, by) = device::mount(&path, server.options(), S::CHANGES)
        .map_err(|source| MountError::Device { at: path.clone(), source })?;
    let link = Link::new(device);
    let fail = |source| {
        if let Err(error) = device::unmount_by(&path, by, How::Abort) {
            tracing::warn!(at = %path.display(), %error, "unmounting");
        }
        MountError::Session { at: at.to_owned(), source }
    };
    let (offer, unique) = session::offered(&link.device).map_err(fail)?;
    let read_ahead_kib = server.options().read_ahead_kib;
    let begun = begin(server, &link, &offer, Greeting::Awaited(unique));
    let (running, stop) = begun.map_err(fail)?;
    // Served by the threads that have just begun.
    let number = fs::metadata(&path).map_err(fail)?.dev();
    let terms = Terms { offer, number, by };
    Ok(Mounted::new(path, terms, running, link, stop, read_ahead_kib))
}

pub(super) fn resume<S: Serve>(
    server: S,
    device: OwnedFd,
    terms: Terms,
    at: &Path,
) -> Result<(Mounted, Unanswered), MountError> {
    let fail = |source| MountError::Session { at: at.to_owned(), source };
    if !device::is_connected(&device) {
        return Err(fail(io::ErrorKind::NotConnected.into()));
    }
    refuse::end(&device).map_err(fail)?; // whatever became of who kept it
    let link = Link::new(device);
    // If we fail after this they are in the queue for whoever comes next.
    let unanswered = unanswered(&link, &terms).map_err(fail)?;
    let read_ahead_kib = server.options().read_ahead_kib;
    let (running, stop) = begin(server, &link, &terms.offer, Greeting::Done).map_err(fail)?;
    // Not made canonical: that would ask the mount.
    let mounted = Mounted::new(at.to_owned(), terms, running, link, stop, read_ahead_kib);
    Ok((mounted, unanswered))
}

fn begin<S: Serve>(
    server: S,
    link: &Arc<Link>,
    offer: &wire::Offer,
    greeting: Greeting,
) -> io::Result<(Running, Stop)> {
    let threads = server.options().threads;
    let gate = Arc::new(Gate::default());
    let (fs, stop) = server.begin(Arc::clone(&gate), Last(Arc::clone(link)));
    let running = session::begin(fs, &gate, link, offer, greeting, threads)?;
    Ok((running, stop))
}

/// Has the kernel ask again for what is unanswered, or says what is lost.
fn unanswered(link: &Link, terms: &Terms) -> io::Result<Unanswered> {
    if terms.resends() {
        rustix::io::write(&link.device, &wire::resend())?;
        return Ok(Unanswered::Resent);
    }
    Ok(match device::waiting(terms.number) {
        Some(0) => Unanswered::None,
        at_most => Unanswered::Lost { at_most },
    })
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
    fn new(
        at: PathBuf,
        terms: Terms,
        running: Running,
        link: Arc<Link>,
        stop: Stop,
        read_ahead_kib: Option<u32>,
    ) -> Self {
        let _ = link.number.set(terms.number); // nobody else does
        if let Some(kib) = read_ahead_kib {
            read_ahead(terms.number, kib);
        }
        Self { at, terms, running, link, stop, left: false }
    }

    /// Returns where it is mounted.
    pub fn path(&self) -> &Path {
        &self.at
    }

    /// Returns another descriptor of the connection with the kernel.
    ///
    /// While anybody holds one, the death of this process ends nothing: readers wait for a successor
    /// ([`super::Server::resume`]). When the last one is closed they get an errno.
    pub fn device(&self) -> io::Result<OwnedFd> {
        self.link.device.try_clone()
    }

    /// Returns what a successor must know beside the device.
    pub fn terms(&self) -> Terms {
        self.terms
    }

    /// Says whether it is still served: a user may have unmounted it by hand.
    pub fn is_served(&self) -> bool {
        self.running.is_served()
    }

    /// Ends the serving by this process and leaves the mount to a successor, which may begin when this returns.
    ///
    /// Whoever waits goes on waiting; the successor answers. Somebody else must hold a [`Mounted::device`] beyond
    /// the life of this value, or readers get an errno as it is dropped, which otherwise does nothing from here on.
    pub fn leave(&mut self) -> Result<(), LeaveError> {
        if self.left || !device::is_connected(&self.link.device) {
            return Err(LeaveError::Ended(self.at.clone()));
        }
        if !self.terms.resends() {
            return Err(LeaveError::Unsupported);
        }
        let ended = self.running.leave(&self.link);
        let gone = ended.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::TimedOut);
        if gone {
            self.left = true;
            // Answers reach nobody any more; this only ends the threads.
            (self.stop.leave)();
        }
        ended.map_err(|source| LeaveError::Io { at: self.at.clone(), source })
    }

    /// Takes the mount down if nobody uses it; otherwise it stays as it is.
    pub fn unmount(&mut self) -> Result<(), UnmountError> {
        let settled = Instant::now() + SETTLES;
        loop {
            match self.take_name(How::Idle) {
                Err(UnmountError::Busy { by, .. }) if by.is_empty() && Instant::now() < settled => {
                    thread::sleep(Duration::from_millis(5));
                }
                taken => break taken?,
            }
        }
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
        self.running.wait()
    }

    fn take_name(&self, how: How) -> Result<(), UnmountError> {
        // Who unmounted it by hand may have mounted something else there.
        if self.left || !self.has_name() {
            return Ok(());
        }
        device::unmount_by(&self.at, self.terms.by, how).map_err(|source| self.failed(source))
    }

    /// Says whether what is on top at our place is ours.
    fn has_name(&self) -> bool {
        // Numbers are given out again, but not while a mount lives, and a dead one serves nobody. One that lives
        // and is not served is not asked: it would not answer.
        let dead = || {
            let looked = fs::metadata(&self.at).err().and_then(|error| error.raw_os_error());
            looked == Some(rustix::io::Errno::NOTCONN.raw_os_error())
        };
        device::on_top(&self.at) == Some(self.terms.number)
            && (device::is_connected(&self.link.device) || dead())
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
        if self.left {
            return;
        }
        // First those who wait, then those who would: an unmount must not wait for a network.
        (self.stop.stop)();
        let named = self.has_name();
        if let Err(error) = self.take_name(How::Abort) {
            tracing::warn!(at = %self.at.display(), error = &error as &dyn std::error::Error, "unmounting");
        }
        if !self.is_served() {
            return;
        }
        // Root has ended the connection together with the name. Otherwise there is one more way, and if it is
        // closed the threads go on until the last user is gone; nobody need wait for that.
        let aborted = (named && self.terms.by == By::Us) || device::abort(self.terms.number).is_ok();
        if aborted {
            let _ = self.wait(); // its error is that the connection has ended
        }
    }
}

/// How long a mount that nobody uses may be busy: a page that was read ahead holds its file when that is closed.
const SETTLES: Duration = Duration::from_millis(500);

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
