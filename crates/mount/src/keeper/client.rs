//! The daemon's end of the connection to the keeper.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::Duration;

use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{
    AddressFamily, SendFlags, Shutdown, SocketAddrUnix, SocketFlags, SocketType, connect, shutdown,
    socket_with,
};

use super::wire::{self, Asked, FromKeeper, ToKeeper, VERSION, Verdict};

/// How long the keeper may take to answer: it does nothing that takes time.
const PATIENCE: Duration = Duration::from_secs(10);

/// Why the keeper could not do something.
#[derive(Debug, thiserror::Error)]
pub enum KeeperError {
    /// Nobody listens there.
    #[error("no keeper runs")]
    Absent(#[source] io::Error),
    /// The connection broke, or the keeper does not answer.
    #[error("the keeper has gone")]
    Gone(#[source] io::Error),
    /// It is of another version.
    #[error("the keeper speaks version {0} and this program {VERSION}: end its mounts first")]
    Version(u32),
    /// The kernel refused what it tried.
    #[error("the keeper cannot {what} {name}")]
    Refused {
        /// What was asked.
        what: &'static str,
        /// Of what.
        name: String,
        /// The system's word.
        source: io::Error,
    },
}

/// Hears what the keeper says. Called on the thread that listens: must be quick and never call the keeper.
pub trait Listener: Send + Sync {
    /// A reader waits; answered with [`Client::answer`].
    fn asked(&self, asked: Asked);
    /// The keeper has gone, and with it every watch.
    fn lost(&self);
}

/// A connection to the keeper.
#[derive(Debug)]
pub struct Client {
    socket: Arc<OwnedFd>,
    /// One call at a time; answers to it come here.
    calls: Mutex<Receiver<(FromKeeper, Option<OwnedFd>)>>,
    pid: u32,
    closing: Arc<AtomicBool>,
    gone: Arc<AtomicBool>,
}

impl Client {
    /// Connects and says hello; returns the names of what is held as well.
    ///
    /// `revive` is how the keeper starts another daemon should this one die; empty, it leaves that to others.
    pub fn connect(
        at: &Path,
        deadline: Duration,
        revive: Vec<String>,
        listener: Arc<dyn Listener>,
    ) -> Result<(Self, Vec<String>), KeeperError> {
        let socket = open(at).map_err(KeeperError::Absent)?;
        let socket = Arc::new(socket);
        let hello = ToKeeper::Hello { version: VERSION, deadline, revive };
        wire::send(&*socket, &hello, None, SendFlags::empty()).map_err(ended)?;
        // One that is stopped or stuck must not take us along.
        set_socket_timeout(&*socket, Timeout::Recv, Some(PATIENCE))
            .map_err(|e| KeeperError::Gone(e.into()))?;
        let mut buffer = Vec::new();
        let (pid, held) = match wire::receive(&*socket, &mut buffer).map_err(ended)? {
            Some((FromKeeper::Welcome { version: VERSION, pid, held }, _)) => (pid, held),
            Some((FromKeeper::Welcome { version, .. }, _)) => return Err(KeeperError::Version(version)),
            Some(_) => return Err(KeeperError::Gone(io::ErrorKind::InvalidData.into())),
            None => return Err(KeeperError::Absent(io::ErrorKind::UnexpectedEof.into())),
        };
        set_socket_timeout(&*socket, Timeout::Recv, None).map_err(|e| KeeperError::Gone(e.into()))?;
        let (sender, calls) = channel();
        let closing = Arc::new(AtomicBool::new(false));
        let gone = Arc::new(AtomicBool::new(false));
        let (heard, over, gone_now) = (Arc::clone(&socket), Arc::clone(&closing), Arc::clone(&gone));
        let listen = move || {
            hear(&heard, &sender, &*listener);
            gone_now.store(true, Ordering::Relaxed);
            if !over.load(Ordering::Relaxed) {
                listener.lost();
            }
        };
        thread::Builder::new().name("keeper".into()).spawn(listen).map_err(KeeperError::Gone)?;
        Ok((Self { socket, calls: Mutex::new(calls), pid, closing, gone }, held))
    }

    /// Says whether the connection has ended.
    pub fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Returns the keeper's process.
    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Answers a reader. One that the keeper has answered itself meanwhile, or that is gone, is no error.
    pub fn answer(&self, id: u64, verdict: Verdict) {
        let sent = wire::send(&*self.socket, &ToKeeper::Answer { id, verdict }, None, SendFlags::empty());
        if let Err(error) = sent {
            tracing::debug!(%error, "answering a reader"); // who listens learns that the keeper has gone
        }
    }

    /// Has reads through a mount asked about: of files that are opened from now on. `root` is its root directory.
    pub fn watch(&self, name: &str, root: impl AsFd) -> Result<(), KeeperError> {
        self.call("watch", name, &ToKeeper::Watch { name: name.to_owned() }, Some(root.as_fd())).map(drop)
    }

    /// Has a descriptor held.
    pub fn keep(&self, name: &str, descriptor: impl AsFd) -> Result<(), KeeperError> {
        self.call("hold", name, &ToKeeper::Keep { name: name.to_owned() }, Some(descriptor.as_fd())).map(drop)
    }

    /// Returns a descriptor that is held.
    pub fn fetch(&self, name: &str) -> Result<OwnedFd, KeeperError> {
        let with = self.call("hand out", name, &ToKeeper::Fetch { name: name.to_owned() }, None)?;
        with.ok_or_else(|| KeeperError::Gone(io::ErrorKind::InvalidData.into()))
    }

    /// Lets go of a watch or a descriptor.
    pub fn release(&self, name: &str) -> Result<(), KeeperError> {
        self.call("release", name, &ToKeeper::Release { name: name.to_owned() }, None).map(drop)
    }

    /// Says that this daemon ends and that another one comes by itself.
    pub fn expect_another(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let _ = wire::send(&*self.socket, &ToKeeper::ExpectAnother, None, SendFlags::empty()); // then one is started
    }

    /// Ends the keeper: all readers that wait, and all later ones of what is missing, get an errno.
    pub fn end(&self) {
        self.closing.store(true, Ordering::Relaxed);
        let _ = wire::send(&*self.socket, &ToKeeper::End, None, SendFlags::empty()); // gone is what we want
    }

    fn call(
        &self,
        what: &'static str,
        name: &str,
        word: &ToKeeper,
        with: Option<BorrowedFd<'_>>,
    ) -> Result<Option<OwnedFd>, KeeperError> {
        let calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        wire::send(&*self.socket, word, with, SendFlags::empty()).map_err(KeeperError::Gone)?;
        match calls.recv_timeout(PATIENCE) {
            Ok((FromKeeper::Done { errno: 0 }, with)) => Ok(with),
            Ok((FromKeeper::Done { errno }, _)) => Err(KeeperError::Refused {
                what,
                name: name.to_owned(),
                source: io::Error::from_raw_os_error(errno),
            }),
            Ok(_) => Err(KeeperError::Gone(io::ErrorKind::InvalidData.into())),
            Err(RecvTimeoutError::Timeout) => {
                // A late answer would be taken for the next call's.
                let _ = shutdown(&*self.socket, Shutdown::Both);
                Err(KeeperError::Gone(io::ErrorKind::TimedOut.into()))
            }
            Err(RecvTimeoutError::Disconnected) => {
                Err(KeeperError::Gone(io::ErrorKind::UnexpectedEof.into()))
            }
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.closing.store(true, Ordering::Relaxed);
        let _ = shutdown(&*self.socket, Shutdown::Both); // ends the thread that listens
    }
}

/// Says what a greeting that failed means: who was just dying is there no more, who does not answer is.
fn ended(error: io::Error) -> KeeperError {
    match error.kind() {
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => KeeperError::Absent(error),
        _ => KeeperError::Gone(error),
    }
}

/// Ends a keeper that nobody is connected to, if one runs.
pub fn end(at: &Path) -> io::Result<()> {
    match open(at) {
        Ok(socket) => wire::send(&socket, &ToKeeper::End, None, SendFlags::empty()),
        Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused) => {
            Ok(())
        }
        Err(error) => Err(error),
    }
}

fn open(at: &Path) -> io::Result<OwnedFd> {
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?;
    connect(&socket, &SocketAddrUnix::new(at)?)?;
    Ok(socket)
}

fn hear(socket: &OwnedFd, answers: &Sender<(FromKeeper, Option<OwnedFd>)>, listener: &dyn Listener) {
    let mut buffer = Vec::new();
    loop {
        match wire::receive(socket, &mut buffer) {
            Ok(Some((FromKeeper::Asked(asked), _))) => listener.asked(asked),
            Ok(Some(answer)) => {
                let _ = answers.send(answer); // nobody waits: the client is being dropped
            }
            Ok(None) => return,
            Err(error) => return tracing::warn!(%error, "listening to the keeper"),
        }
    }
}
