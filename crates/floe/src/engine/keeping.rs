//! The daemon's keeper: found, started, and found anew should it die.

use std::ffi::OsStr;
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::Duration;

use anyhow::{Context, bail};
use mount::erofs::Events;
use mount::keeper::{Client, KeeperError};
use store::Segments;

use crate::daemon::client::{self, Address};
use crate::daemon::log;

/// A connection to the keeper, and who answers what it asks.
#[derive(Clone)]
pub(super) struct Connection {
    pub(super) client: Arc<Client>,
    pub(super) events: Arc<Events>,
    /// The names of what the keeper held when we came: of no other keeper, should this one die.
    pub(super) held: Arc<[String]>,
}

/// What to do when the keeper has died.
type Lost = Arc<OnceLock<Box<dyn Fn() + Send + Sync>>>;

/// The keeper of a daemon.
pub(super) struct Keeping {
    address: Address,
    /// Where commands find the daemon, if not in the usual place.
    listen: Option<String>,
    socket: PathBuf,
    deadline: Duration,
    segments: Arc<dyn Segments>,
    /// Held while a keeper is started: one is enough.
    now: Mutex<Option<Connection>>,
    /// Set when this daemon needs none any more; looked at with `now` held.
    ended: AtomicBool,
    lost: Lost,
}

impl Keeping {
    /// Returns one that is not looked for yet.
    pub(super) fn new(
        address: &Address,
        listen: Option<&str>,
        run: &Path,
        deadline: Duration,
        segments: Arc<dyn Segments>,
    ) -> Self {
        let socket = run.join("keeper.sock");
        let (now, lost) = (Mutex::default(), Lost::default());
        let listen = listen.map(str::to_owned);
        let ended = AtomicBool::new(false);
        Self { address: address.clone(), listen, socket, deadline, segments, now, ended, lost }
    }

    /// Says what happens when it dies; called on a thread of its own.
    pub(super) fn when_lost(&self, lost: impl Fn() + Send + Sync + 'static) {
        let _ = self.lost.set(Box::new(lost)); // set once, by who makes the engine
    }

    /// Connects to a keeper that runs already, if there is one.
    pub(super) fn join(&self) -> anyhow::Result<Option<Connection>> {
        let mut now = self.lock();
        match self.connect() {
            Ok(connection) => Ok(Some(now.insert(connection).clone())),
            Err(KeeperError::Absent(_)) => Ok(None),
            Err(error) => Err(error).context("connecting to the keeper"),
        }
    }

    /// Returns the connection; starts a keeper if there is none.
    pub(super) fn connection(&self) -> anyhow::Result<Connection> {
        let mut now = self.lock();
        forget_if_gone(&mut now);
        if let Some(connection) = &*now {
            return Ok(connection.clone());
        }
        if self.ended.load(Ordering::Relaxed) {
            bail!("this daemon is ending");
        }
        let connected = match self.connect() {
            Err(KeeperError::Absent(_)) => {
                self.start()?;
                self.connect()
            }
            connected => connected,
        };
        Ok(now.insert(connected.context("connecting to the keeper")?).clone())
    }

    /// Returns the connection if there is one.
    pub(super) fn current(&self) -> Option<Connection> {
        self.lock().clone().filter(|connection| !connection.client.is_gone())
    }

    /// Ends the keeper, whether we are connected to it or not; no other is started after it.
    pub(super) fn end(&self) {
        let mut now = self.lock();
        self.ended.store(true, Ordering::Relaxed);
        forget_if_gone(&mut now);
        match &*now {
            Some(connection) => connection.client.end(),
            None => {
                if let Err(error) = mount::keeper::end(&self.socket) {
                    tracing::warn!(%error, "ending the keeper");
                }
            }
        }
    }

    /// Forgets a keeper that has died, unless another one has taken its place.
    pub(super) fn forget(&self) {
        forget_if_gone(&mut self.lock());
    }

    fn connect(&self) -> Result<Connection, KeeperError> {
        let lost = Arc::clone(&self.lost);
        let lost = Box::new(move || {
            let lost = Arc::clone(&lost);
            let tell = move || lost.get().into_iter().for_each(|lost| lost());
            if let Err(error) = std::thread::Builder::new().name("rearm".into()).spawn(tell) {
                tracing::error!(%error, "the keeper has died and no thread can be started to start another");
            }
        });
        let events = Events::new(self.segments.clone(), self.deadline, lost);
        let (client, held) = Client::connect(&self.socket, self.deadline, self.revive(), events.clone())?;
        let client = Arc::new(client);
        events.answer_to(client.clone());
        Ok(Connection { client, events, held: held.into() })
    }

    /// Returns the command that starts a daemon of this store; empty where a service manager does, or where a path is not
    /// UTF-8: then the next command does.
    fn revive(&self) -> Vec<String> {
        if crate::daemon::manager::is_there() {
            return Vec::new();
        }
        let words = || {
            let mut words = vec![text(&client::exe().ok()?)?, "--root".into(), text(&self.address.root)?];
            if let Some(config) = &self.address.config {
                words.extend(["--config".into(), text(config)?]);
            }
            words.push("daemon".into());
            words.extend(self.listen.iter().flat_map(|listen| ["--listen".into(), listen.clone()]));
            Some(words)
        };
        words().unwrap_or_default()
    }

    fn start(&self) -> anyhow::Result<()> {
        // Nothing of the configuration concerns it.
        let address = Address { root: self.address.root.clone(), config: None };
        let (mut child, mut ready) =
            client::launch(&address, &[OsStr::new("keeper")]).context("starting the keeper")?;
        let mut answers = [rustix::event::PollFd::new(&ready, rustix::event::PollFlags::IN)];
        let limit = rustix::event::Timespec { tv_sec: 10, tv_nsec: 0 };
        if rustix::event::poll(&mut answers, Some(&limit)).context("waiting for the keeper")? == 0 {
            let _ = child.kill(); // it may have ended a moment ago
            let _ = child.wait();
            bail!("the keeper was started and has not answered in 10 s");
        }
        if ready.read(&mut [0]).context("waiting for the keeper")? == 0 {
            let status = child.wait().context("waiting for the keeper")?;
            bail!(
                "the keeper did not start ({status}); {} says why",
                log::path(&self.address.root)?.display()
            );
        }
        // It outlives us; should it end before, nobody wants its dead entry in the table of processes.
        let _ = std::thread::Builder::new().name("reap".into()).spawn(move || child.wait());
        Ok(())
    }

    fn lock(&self) -> MutexGuard<'_, Option<Connection>> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn forget_if_gone(now: &mut Option<Connection>) {
    if let Some(old) = now.take_if(|connection| connection.client.is_gone()) {
        old.events.leave();
    }
}

/// Returns a path as text, for messages that are.
fn text(path: &Path) -> Option<String> {
    path.to_str().map(str::to_owned)
}
