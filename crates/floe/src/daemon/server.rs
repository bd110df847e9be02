//! The daemon side of the socket: accepts clients, a thread each, and lets the engine answer.

use std::io::BufReader;
use std::net::Shutdown;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use serde::Serialize;

use super::protocol::{self, Call, Event, Failure, Hello, Learned, Pinned, Ready, Request};
use crate::engine::Engine;
use crate::engine::publish::Wanted;
use crate::engine::room::InUse;

/// Clients served at once. A client that waits for a pull costs one thread.
const CLIENTS: usize = 512;

/// How long a client may leave what it is told unread.
const PATIENCE: Duration = Duration::from_secs(30);

/// How often the daemon looks whether it is idle or asked to stop.
const TICK: Duration = Duration::from_millis(200);

/// Serves until stopped or, unless it `stays`, idle, at the usual socket of the store or at another one; calls `ready` once it answers.
pub fn serve(
    engine: &Arc<Engine>,
    at: Option<&Path>,
    stays: bool,
    ready: impl FnOnce(),
) -> anyhow::Result<()> {
    let usual = super::socket_path(engine.root())?;
    let dir = usual.parent().context("a socket has a directory")?;
    crate::home::make_run(dir)?;
    std::fs::set_permissions(dir, std::fs::Permissions::from_mode(0o711))
        .with_context(|| format!("opening {}", dir.display()))?;
    // The usual place may be written in another way: /var/run is a link.
    let socket = match at {
        Some(at) if resolved(at)? != resolved(&usual)? => at,
        _ => &usual,
    };
    if socket != usual {
        is_free(socket)?;
    }
    let listener = listen(socket)?;
    let made = identity(socket);
    if socket != usual {
        // Commands look in one place, and connecting follows a link.
        give_way(&usual)?;
        std::os::unix::fs::symlink(socket, &usual).with_context(|| format!("linking {}", usual.display()))?;
    }
    let server = Arc::new(Server {
        engine: engine.clone(),
        stays,
        clients: AtomicUsize::new(0),
        last: Mutex::new(Instant::now()),
    });
    ready();
    tracing::info!(socket = %socket.display(), "serving");
    let outcome = server.accept(&listener);
    // They would only refuse connections; what somebody else has put in their place is theirs.
    if identity(socket) == made {
        let _ = std::fs::remove_file(socket);
    }
    if socket != usual && std::fs::read_link(&usual).is_ok_and(|to| to == socket) {
        let _ = std::fs::remove_file(&usual);
    }
    outcome
}

/// Returns the path of a socket without links in its directory.
fn resolved(socket: &Path) -> anyhow::Result<PathBuf> {
    let (Some(dir), Some(name)) = (socket.parent(), socket.file_name()) else {
        bail!("{} is no path of a socket", socket.display());
    };
    let dir = dir.canonicalize().with_context(|| format!("looking for {}", dir.display()))?;
    Ok(dir.join(name))
}

/// Makes sure that nobody serves a socket of the user's choice: it may be any program's.
pub(crate) fn is_free(socket: &Path) -> anyhow::Result<()> {
    if std::fs::symlink_metadata(socket).is_ok_and(|found| found.file_type().is_symlink()) {
        bail!("{} is there and no socket", socket.display());
    }
    match UnixStream::connect(socket) {
        Ok(_) => bail!("somebody listens at {} already", socket.display()),
        Err(_) => Ok(()), // whatever is there is looked at by who makes room
    }
}

/// Says which file a socket is.
pub(crate) fn identity(socket: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(socket).ok().map(|found| (found.dev(), found.ino()))
}

/// Listens at a socket that nobody serves: in the usual place we hold the store's lock, so what is found there belongs to
/// a daemon that is gone; elsewhere [`is_free`] was asked.
pub(crate) fn listen(socket: &Path) -> anyhow::Result<UnixListener> {
    give_way(socket)?;
    let listener =
        UnixListener::bind(socket).with_context(|| format!("listening on {}", socket.display()))?;
    std::fs::set_permissions(socket, std::fs::Permissions::from_mode(0o600))
        .with_context(|| format!("closing {} to other users", socket.display()))?;
    listener.set_nonblocking(true).context("preparing the socket")?;
    Ok(listener)
}

/// Removes a socket, or a link to one, that nobody serves any more; whatever else is there is somebody's file.
fn give_way(socket: &Path) -> anyhow::Result<()> {
    let removed = match std::fs::symlink_metadata(socket) {
        Ok(found) if found.file_type().is_socket() || found.file_type().is_symlink() => {
            std::fs::remove_file(socket)
        }
        Ok(_) => bail!("{} is there and no socket", socket.display()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    };
    removed.with_context(|| format!("making room for the socket {}", socket.display()))
}

struct Server {
    engine: Arc<Engine>,
    /// Whether it ends only when told.
    stays: bool,
    clients: AtomicUsize,
    /// When the last client left.
    last: Mutex<Instant>,
}

impl Server {
    fn accept(self: &Arc<Self>, listener: &UnixListener) -> anyhow::Result<()> {
        loop {
            match listener.accept() {
                Ok((stream, _)) => self.admit(stream),
                Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => {
                    let mut fds = [PollFd::new(listener, PollFlags::IN)];
                    let tick = Timespec { tv_sec: 0, tv_nsec: i64::from(TICK.subsec_nanos()) };
                    let _ = poll(&mut fds, Some(&tick)); // an interrupted wait is a short one
                }
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                // Out of descriptors or memory: that passes, and mounts depend on us.
                Err(error) => {
                    tracing::error!(%error, "accepting a client");
                    std::thread::sleep(TICK);
                }
            }
            if self.engine.stopping() || self.idle() {
                return Ok(());
            }
        }
    }

    fn idle(&self) -> bool {
        if self.stays || self.clients.load(Ordering::Relaxed) > 0 || self.engine.busy() {
            self.touch();
        }
        self.last.lock().map_or(true, |last| last.elapsed() > super::IDLE)
    }

    fn touch(&self) {
        if let Ok(mut last) = self.last.lock() {
            *last = Instant::now();
        }
    }

    fn admit(self: &Arc<Self>, stream: UnixStream) {
        if self.clients.fetch_add(1, Ordering::Relaxed) >= CLIENTS {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            tracing::warn!(limit = CLIENTS, "too many clients at once; one was refused");
            return;
        }
        let server = self.clone();
        let spawned = std::thread::Builder::new().name("client".into()).spawn(move || {
            // A panic must cost its client, and not a place for others.
            let served = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| server.client(&stream)));
            match served {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("client: {error:#}"),
                Err(_) => tracing::error!("serving a client panicked"),
            }
            let _ = stream.shutdown(Shutdown::Both); // it may have closed first
            server.clients.fetch_sub(1, Ordering::Relaxed);
            server.touch();
        });
        if let Err(error) = spawned {
            self.clients.fetch_sub(1, Ordering::Relaxed);
            tracing::error!("starting a thread for a client: {error}");
        }
    }

    fn client(&self, stream: &UnixStream) -> anyhow::Result<()> {
        stream.set_nonblocking(false)?;
        // One that is stopped must not hold up what others wait for.
        stream.set_write_timeout(Some(PATIENCE))?;
        if let Some(uid) = super::stranger(stream).context("asking who the client is")? {
            bail!("uid {uid} is not allowed to use this daemon");
        }
        let mut reader = BufReader::new(stream.try_clone()?);
        // What a client looks into stays in use until it has gone, or looks into something else.
        let mut looking = None;
        while let Some(request) = protocol::receive::<Request>(&mut reader)? {
            if request.version != protocol::VERSION {
                let failure = Failure {
                    chain: vec![format!(
                        "the running daemon speaks protocol {} and this command {}",
                        protocol::VERSION,
                        request.version
                    )],
                    hint: Some("end that daemon; the next command starts a new one".into()),
                };
                return Ok(protocol::send(&mut &*stream, &Event::Failed(failure))?);
            }
            let talk = Talk { stream };
            match self.answer(request.call, &talk, &mut reader, &mut looking) {
                Ok(reply) => protocol::send(&mut &*stream, &Event::Done { reply })?,
                Err(error) => {
                    tracing::warn!("{error:#}");
                    protocol::send(&mut &*stream, &Event::Failed(Failure::of(&error)))?;
                }
            }
        }
        Ok(())
    }

    fn answer(
        &self,
        call: Call,
        talk: &Talk<'_>,
        reader: &mut BufReader<UnixStream>,
        looking: &mut Option<InUse>,
    ) -> anyhow::Result<serde_json::Value> {
        let engine = &self.engine;
        let client = talk;
        let talk = &|event| client.say(event);
        match call {
            Call::Ping => {
                let managed = super::manager::is_there();
                reply(&Hello { version: protocol::VERSION, pid: std::process::id(), managed })
            }
            Call::Stop => {
                engine.stop();
                reply(&())
            }
            Call::Settle { force } => reply(&engine.settle(force, talk)?),
            Call::Status => reply(&engine.status()),
            Call::Trace { of } => reply(&engine.trace(of.as_deref())?),
            Call::Open { image } => {
                let (opened, in_use) = engine.opened(&image, talk)?;
                *looking = Some(in_use);
                reply(&opened)
            }
            Call::MayLeave => reply(&engine.may_be_left()?),
            Call::HandOver => {
                engine.hand_over()?;
                reply(&())
            }
            Call::Mount { image, dir, path, background } => {
                let mounted = reply(&engine.mount_at(&image, &dir, path, background, talk)?)?;
                // Whoever was killed meanwhile does not know of a mount to take away.
                if client.has_gone() {
                    engine.umount(&dir)?;
                    bail!("the client has gone; {} was unmounted again", dir.display());
                }
                Ok(mounted)
            }
            Call::Umount { dir } => reply(&engine.umount(&dir)?),
            Call::Pull { image, to: None } => reply(&engine.pull(&image, talk)?),
            Call::Pull { image, to: Some(target) } => reply(&engine.register(&image, &target, talk)?),
            Call::Index { image, push, out, sign, profile } => {
                let wanted =
                    Wanted { push, out: out.as_deref(), sign: sign.as_deref(), profile: profile.as_deref() };
                reply(&engine.index(&image, &wanted, talk)?)
            }
            Call::Profiles { manifests } => reply(&engine.profiles(&manifests)?),
            Call::Verify { image, rebuild } => reply(&engine.verify(&image, rebuild, talk)?),
            Call::Compare { images, as_copy } => {
                let [first, second] = &images;
                reply(&engine.compare([first, second], as_copy, talk)?)
            }
            Call::Sharing { images } => reply(&engine.sharing(&images, talk)?),
            Call::Segment { index, number } => reply(&engine.segment(index, number)?),
            Call::Rm { image } => reply(&engine.rm(&image)?),
            Call::Pin { image } => reply(&engine.pin(&image)?),
            Call::Unpin { image } => reply(&engine.unpin(&image)?),
            Call::Pinned => reply(&Pinned { images: engine.pinned()? }),
            Call::Gc { dry_run } => reply(&engine.gc(dry_run)?),
            Call::Hold { image, path, background } => {
                let hold = engine.hold(&image, client.process(), path, background, talk)?;
                talk(Event::Done { reply: reply(&hold.mounted()?)? })?;
                // Until the client says ready or goes away; either way the mount is let go when it goes.
                let Some(ready) = protocol::receive::<Ready>(reader)? else { return reply(&()) };
                talk(Event::Done { reply: reply(&hold.ready(&ready))? })?;
                if let Some(learned) = protocol::receive::<Learned>(reader)? {
                    // Whatever comes of it, the container goes on.
                    let event = match hold.learned(&learned) {
                        Ok(()) => Event::Done { reply: reply(&())? },
                        Err(error) => Event::Failed(Failure::of(&error)),
                    };
                    talk(event)?;
                    let _gone = protocol::receive::<Learned>(reader)?;
                }
                drop(hold);
                reply(&())
            }
        }
    }
}

fn reply(value: &impl Serialize) -> anyhow::Result<serde_json::Value> {
    serde_json::to_value(value).context("writing the reply")
}

/// Where progress goes. A client that has closed makes the call it waits for stop.
struct Talk<'a> {
    stream: &'a UnixStream,
}

impl Talk<'_> {
    fn say(&self, event: Event) -> anyhow::Result<()> {
        protocol::send(&mut &*self.stream, &event).context("the client has gone")
    }

    /// Returns the number of the client's process.
    fn process(&self) -> Option<u32> {
        let peer = rustix::net::sockopt::socket_peercred(self.stream).ok()?;
        u32::try_from(peer.pid.as_raw_nonzero().get()).ok()
    }

    /// Returns whether the other side has closed.
    fn has_gone(&self) -> bool {
        let mut fds = [PollFd::new(self.stream, PollFlags::empty())];
        let at_once = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Only HUP and ERR can be reported; an interrupted look has seen nothing.
        poll(&mut fds, Some(&at_once)).is_ok_and(|ready| ready > 0)
    }
}
