//! fuser's session, on a device that others hold as well.
//!
//! fuser wants to meet the kernel itself, and keeps the device until the connection ends. A successor comes when
//! the kernel was met long ago, and whoever leaves does so while the connection lives. So fuser is handed a socket,
//! meets us there in the kernel's words ([`wire`]), and only then finds the device behind the socket's number; and
//! when it is to go, it finds another socket there, with its dismissal.
//!
//! All threads read one open file, which the descriptors of others keep alive. With a clone for each thread
//! (`FUSE_DEV_IOC_CLONE`) what was read through a clone would be answered with an error as that process dies.
//!
//! A thread begins by passing the [`Gate`]. So when the device comes, none waits at the socket, and all have taken a
//! first message into their buffers: a page that is touched first by the kernel, for a process being killed, is an
//! error to the reader whose request would have gone there.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use fuser::{Config, Filesystem, Notifier, Session, SessionACL};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType};
use sys::descriptor::Number;
use sys::interrupt::Interruptible;

use super::device;
use super::wire::{self, Offer};

/// Threads of a session. Their dismissals must fit into a socket, which by default holds some two hundred.
const THREADS: usize = 128;

/// How long the threads may take to leave: each ends what it is at, which at worst is a read from a slow disk.
const LEAVING: Duration = Duration::from_secs(10);

/// The protocol's major version; another one begins in another way.
const MAJOR: u32 = 7;

/// The least buffer that the kernel takes (`FUSE_MIN_READ_BUFFER`).
const READ_BUFFER: usize = 8192;

/// The connection with the kernel.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) device: OwnedFd,
    /// Device number of the mount; by it a connection is found.
    pub(super) number: OnceLock<u64>,
    /// Whether this process serves it, and so has to end it when it no longer can.
    serving: AtomicBool,
}

impl Link {
    pub(super) fn new(device: OwnedFd) -> Arc<Self> {
        Arc::new(Self { device, number: OnceLock::new(), serving: AtomicBool::new(false) })
    }
}

/// Ends the connection as it is dropped: with the last thread that serves it.
///
/// Others may hold the device, so its readers would wait for ever.
pub(super) struct Last(pub(super) Arc<Link>);

impl Drop for Last {
    fn drop(&mut self) {
        let link = &self.0;
        if !link.serving.load(Ordering::SeqCst) || !device::is_connected(&link.device) {
            return;
        }
        let aborted = link.number.get().map_or(Err(io::ErrorKind::NotFound.into()), |n| device::abort(*n));
        tracing::error!(?aborted, "no thread is left to serve a mount");
    }
}

/// A thread at the gate; without a name to call it by if the system gives none.
type Arrived = io::Result<Interruptible>;

/// Where threads wait until the device is in its place.
#[derive(Default)]
pub(super) struct Gate {
    state: Mutex<Passing>,
    changed: Condvar,
}

#[derive(Default)]
struct Passing {
    arrived: Vec<Arrived>,
    open: bool,
    ended: bool,
}

impl Gate {
    /// Waits until the gate opens. Called by a thread of fuser's for its first message.
    pub(super) fn pass(&self) {
        let arrived = Interruptible::current();
        let mut state = self.lock();
        state.arrived.push(arrived);
        self.changed.notify_all();
        drop(self.changed.wait_while(state, |state| !state.open).unwrap_or_else(PoisonError::into_inner));
    }

    /// Waits until so many threads are at the gate and returns them, or why they are not.
    fn until(&self, threads: usize) -> io::Result<Vec<Interruptible>> {
        let waits = |state: &mut Passing| state.arrived.len() < threads && !state.ended;
        let mut state = self.changed.wait_while(self.lock(), waits).unwrap_or_else(PoisonError::into_inner);
        if state.ended {
            return Err(io::Error::other("the threads that serve the mount ended at once"));
        }
        state.arrived.drain(..).collect()
    }

    fn set(&self, change: impl FnOnce(&mut Passing)) {
        change(&mut self.lock());
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, Passing> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Reads the kernel's offer from a device that has just been mounted, and the number to answer it by.
pub(super) fn offered(device: &OwnedFd) -> io::Result<(Offer, u64)> {
    let mut buffer = vec![0; READ_BUFFER];
    let len = loop {
        match rustix::io::read(device, &mut buffer) {
            // As for any request: an interruption, of us or of who asked.
            Err(Errno::INTR | Errno::NOENT | Errno::AGAIN) => {}
            read => break read?,
        }
    };
    match wire::read_init(&buffer[..len]) {
        Some((offer, unique)) if offer.major == MAJOR => Ok((offer, unique)),
        Some((offer, _)) => Err(io::Error::other(format!("the kernel speaks FUSE {}", offer.major))),
        None => Err(io::Error::other("the kernel did not begin with FUSE_INIT")),
    }
}

/// Whether the kernel waits for an answer to its offer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Greeting {
    /// It does, by this number.
    Awaited(u64),
    /// It has had one from the first server of the mount.
    Done,
}

/// Threads that serve a connection.
#[derive(Debug)]
pub(super) struct Running {
    thread: Option<JoinHandle<io::Result<()>>>,
    threads: Vec<Interruptible>,
    number: Number,
    /// Keeps the number open, whatever of fuser has ended.
    _open: Notifier,
}

/// Begins to serve; `fs` has the gate, which it passes when told to forget [`wire::NO_NODE`], and the link.
pub(super) fn begin<F>(
    fs: F,
    gate: &Arc<Gate>,
    link: &Link,
    offer: &Offer,
    greeting: Greeting,
    threads: usize,
) -> io::Result<Running>
where
    F: Filesystem + Send + Sync + 'static,
{
    let (ours, theirs) = pair(SocketFlags::CLOEXEC)?;
    let unique = if let Greeting::Awaited(unique) = greeting { unique } else { 2 };
    send(&ours, &wire::init(offer, unique))?;
    let threads = threads.clamp(1, THREADS);
    let mut config = Config::default();
    config.n_threads = Some(threads);
    // The kernel checks who may come in; there is no need to do it again.
    let made = Session::from_fd(fs, theirs, SessionACL::All, config)?;
    let mut answer = [0; 256];
    let (len, _) = net::recv(&ours, &mut answer[..], RecvFlags::DONTWAIT)?;
    if greeting != Greeting::Done {
        rustix::io::write(&link.device, &answer[..len])?;
    }

    let (number, open) = (Number::of(&made), made.notifier());
    let ends = Arc::clone(gate);
    let run = move || {
        let ended = made.run();
        ends.set(|state| state.ended = true);
        ended
    };
    let thread = thread::Builder::new().name("floe-fuse".into()).spawn(run)?;
    // Whatever fails from here on: the socket goes, and who waits at it ends.
    let placed = (|| {
        for _ in 0..threads {
            send(&ours, &wire::forget())?;
        }
        let threads = gate.until(threads)?;
        number.redirect(&link.device)?;
        link.serving.store(true, Ordering::SeqCst);
        io::Result::Ok(threads)
    })();
    drop(ours);
    gate.set(|state| state.open = true);
    match placed {
        Ok(threads) => Ok(Running { thread: Some(thread), threads, number, _open: open }),
        // What the threads say of it comes first.
        Err(error) => joined(thread).and(Err(error)),
    }
}

impl Running {
    /// Says whether it still serves.
    pub(super) fn is_served(&self) -> bool {
        self.thread.as_ref().is_some_and(|thread| !thread.is_finished())
    }

    /// Waits for the end.
    pub(super) fn wait(&mut self) -> io::Result<()> {
        self.thread.take().map_or(Ok(()), joined)
    }

    /// Ends the threads and leaves the connection as it is.
    ///
    /// From the moment the number is redirected no answer of this process reaches the kernel, so that whoever asks
    /// it to send again what is unanswered gets all of it. An error of kind `TimedOut` comes after that.
    pub(super) fn leave(&mut self, link: &Link) -> io::Result<()> {
        let (ours, theirs) = pair(SocketFlags::CLOEXEC | SocketFlags::NONBLOCK)?;
        for _ in &self.threads {
            send(&ours, &wire::destroy())?;
        }
        let nothing = File::options().read(true).write(true).open("/dev/null")?;
        link.serving.store(false, Ordering::SeqCst);
        if let Err(error) = self.number.redirect(&theirs) {
            link.serving.store(true, Ordering::SeqCst);
            return Err(error);
        }
        drop(theirs);
        // Whoever reads the device turns to the number again; whoever does not is about to.
        for thread in &self.threads {
            let _ = thread.interrupt(); // it may have ended, with the connection
        }
        let limit = Instant::now() + LEAVING;
        while self.is_served() && Instant::now() < limit {
            thread::sleep(Duration::from_millis(1));
        }
        if self.is_served() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        // What waits for a segment answers there.
        self.number.redirect(&nothing)?;
        self.wait()
    }
}

fn joined(thread: JoinHandle<io::Result<()>>) -> io::Result<()> {
    thread.join().unwrap_or_else(|_| Err(io::Error::other("the thread that serves the mount failed")))
}

/// Two ends of a socket that keeps messages apart, as the device does.
fn pair(flags: SocketFlags) -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(net::socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?)
}

fn send(to: &OwnedFd, message: &[u8]) -> io::Result<()> {
    net::send(to, message, SendFlags::NOSIGNAL)?;
    Ok(())
}
