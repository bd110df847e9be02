//! Commands that stay: the daemon, the registry, the demo.

use std::os::unix::net::UnixListener;
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use tokio::signal::unix::{SignalKind, signal};
use tracing_subscriber::fmt::MakeWriter;

use super::{Session, out};
use crate::cli;
use crate::daemon::client::{Address, Client};
use crate::daemon::grpc::At;
use crate::daemon::log::Log;
use crate::daemon::{manager, server};
use crate::engine::Engine;
use crate::exit::Code;

/// How long a daemon waits for one before it that no longer answers: it may have an image's worth to sync.
const PREDECESSOR: Duration = Duration::from_secs(30);

/// How often it looks whether that has ended.
const AGAIN: Duration = Duration::from_millis(20);

pub(super) fn daemon(session: &Session, args: cli::Daemon) -> anyhow::Result<Code> {
    match args.action {
        Some(cli::DaemonAction::Stop) => {
            stop(&session.address)?;
            return Ok(Code::Done);
        }
        Some(cli::DaemonAction::Upgrade) => {
            Client::upgrade(&session.address)?;
            return Ok(Code::Done);
        }
        None => {}
    }
    let socket = match args.listen.as_deref() {
        None => None,
        Some(listen) => match listen.strip_prefix("unix:") {
            Some(path) if path.starts_with('/') => Some(Path::new(path)),
            _ => bail!(crate::exit::misused(format!(
                "--listen {listen}: only unix:/absolute/path is understood"
            ))),
        },
    };
    let given = manager::sockets()?;
    log_to(std::sync::Mutex::new(Log::stderr(&session.address.root)?));
    sys::heap::share_arenas();
    let engine = start(session, args.listen.as_deref())?;
    if manager::is_there() {
        manager::leave_when_told(&engine)?;
    }
    let (root, ours) = (&session.address.root, &session.config.containerd);
    let snapshots = |at: At<'_>| crate::snapshotter::serve(&engine, at);
    let serving = serve_at("containerd", given.containerd, ours.socket_of(root)?, snapshots)?;
    let images = |at: At<'_>| crate::imageservice::serve(&engine, at, ours.address());
    let images = serve_at("kubelet", given.images, ours.image_service_of(root)?, images)?;
    let layers = match session.config.layers.dir_of(&session.address.root)? {
        Some(dir) => crate::layerstore::serve(&engine, dir)
            .inspect_err(|error| tracing::error!("layers are not shown: {error:#}"))
            .ok(),
        None => {
            engine.take_names_away().unwrap_or_else(|error| tracing::warn!("{error:#}"));
            None
        }
    };
    if let Some(address) = session.config.metrics.listen_of(&session.address.root)? {
        crate::daemon::metrics::serve(&engine, address)?;
    }
    let stays = serving.is_some() || images.is_some() || layers.is_some() || manager::is_there();
    let served = server::serve(&engine, socket, stays, || {
        if args.notify {
            notify()
        }
        manager::ready();
    });
    if served.is_err() && manager::is_there() {
        engine.leave(); // the manager starts another
    }
    // No call may come while everything is let go or left; what the snapshots stand on is.
    let snapshotter = serving.map(crate::snapshotter::Serving::stop);
    images.into_iter().for_each(crate::daemon::grpc::Serving::stop);
    engine.end_names();
    engine.shutdown();
    drop((snapshotter, layers));
    served.map(|()| Code::Done)
}

/// Serves whom a socket is for: at the one that a service manager has made, else at the configured one.
fn serve_at<T>(
    whom: &str,
    given: Option<UnixListener>,
    configured: Option<&Path>,
    serve: impl FnOnce(At<'_>) -> anyhow::Result<T>,
) -> anyhow::Result<Option<T>> {
    Ok(match (given, configured) {
        // Nobody else would ever answer there.
        (Some(socket), configured) => {
            if let Some(path) = configured {
                tracing::warn!(path = %path.display(), "the service manager has a socket for {whom}; this one is not made");
            }
            Some(serve(At::Given(socket))?)
        }
        (None, None) => None,
        // An image that somebody runs by hand needs neither.
        (None, Some(path)) => {
            serve(At::Path(path)).inspect_err(|error| tracing::error!("{whom} is not served: {error:#}")).ok()
        }
    })
}

/// Ends the daemon; where it has died, takes away what it left. One that is just starting is waited for.
pub(crate) fn stop(address: &Address) -> anyhow::Result<()> {
    let root = &address.root;
    let _one = crate::daemon::client::starting(root)?;
    let until = Instant::now() + PREDECESSOR;
    loop {
        if let Some(client) = Client::connect_running(address)? {
            return client.stop();
        }
        if !root.exists() {
            return Ok(());
        }
        // Nobody else can begin while we have it, and nobody at all with one that cannot be opened.
        let store = store::Store::open(root);
        if !matches!(store, Err(store::StoreError::Busy { .. })) {
            return crate::engine::mounts::clear(&crate::daemon::run_dir(root)?);
        }
        if Instant::now() > until {
            return store.map(drop).context("waiting for a daemon that starts");
        }
        std::thread::sleep(AGAIN);
    }
}

/// Starts the engine; a daemon that is just ending, or was killed and is being taken apart, is waited for.
fn start(session: &Session, listen: Option<&str>) -> anyhow::Result<std::sync::Arc<Engine>> {
    let until = Instant::now() + PREDECESSOR;
    loop {
        let error = match Engine::start(&session.address, &session.config, listen) {
            Err(error) if is_busy(&error) && Instant::now() < until => error,
            result => return result,
        };
        if let Some(mut running) = Client::connect_running(&session.address)? {
            // One that answers will stay, unless a command has started it and this is the service.
            if !manager::is_there() || running.hello()?.managed {
                return Err(error);
            }
            running.hand_over().context("taking the place of the daemon that runs")?;
        }
        std::thread::sleep(AGAIN);
    }
}

fn is_busy(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(store::StoreError::Busy { .. }))
}

/// Runs the keeper.
pub(super) fn keeper(session: &Session) -> anyhow::Result<Code> {
    let root = &session.address.root;
    log_to(std::sync::Mutex::new(Log::stderr(root)?));
    sys::heap::share_arenas();
    let socket = crate::daemon::run_dir(root)?.join("keeper.sock");
    let mut started: Vec<std::process::Child> = Vec::new();
    let mut revive = |command: &[String]| {
        started.retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        let (program, words) = command.split_first().ok_or(std::io::ErrorKind::NotFound)?;
        tracing::warn!(program, "the daemon has died; starting another");
        let mut command = std::process::Command::new(program);
        command.args(words).current_dir("/").process_group(0);
        command.stdin(Stdio::null()).stdout(Stdio::null());
        let child = command.spawn()?;
        let process = rustix::process::Pid::from_child(&child);
        started.push(child);
        Ok(rustix::process::pidfd_open(process, rustix::process::PidfdFlags::empty())?)
    };
    mount::keeper::run(&socket, &mut revive, notify).context("keeping")?;
    Ok(Code::Done)
}

/// Tells whoever started us, then lets go of its pipe so that it sees the end.
fn notify() {
    let _ = rustix::io::write(rustix::stdio::stdout(), b"+"); // it may be gone; we serve the next client
    if let Ok(null) = std::fs::File::options().write(true).open("/dev/null") {
        let _ = rustix::stdio::dup2_stdout(&null); // at worst the pipe stays open
    }
}

/// `FLOE_LOG` chooses which lines are logged (`info` unless set).
fn log_to<W: for<'a> MakeWriter<'a> + Send + Sync + 'static>(writer: W) {
    let filter = tracing_subscriber::EnvFilter::try_from_env("FLOE_LOG").unwrap_or_else(|_| "info".into());
    // One that cannot be written is nobody's fault, and telling so on the same file would panic.
    let lines = tracing_subscriber::fmt().log_internal_errors(false);
    lines.with_env_filter(filter).with_writer(writer).with_ansi(false).init();
}

pub(super) fn registry(dir: &Path, listen: std::net::SocketAddr, rate: Option<u64>) -> anyhow::Result<Code> {
    log_to(std::io::stderr);
    let runtime = tokio::runtime::Runtime::new().context("starting the network threads")?;
    runtime.block_on(async {
        let config = registry::ServerConfig { dir: dir.to_owned(), listen, rate };
        let server =
            registry::Server::start(config).await.with_context(|| format!("serving {}", dir.display()))?;
        out(format!("serving {} at http://{}\n", dir.display(), server.address()).as_bytes())?;
        let mut end = signal(SignalKind::terminate()).context("watching for SIGTERM")?;
        tokio::select! {
            ended = tokio::signal::ctrl_c() => ended.context("watching for Ctrl-C")?,
            _ = end.recv() => {}
        }
        Ok(Code::Done)
    })
}

pub(super) fn demo(session: &Session, args: &cli::Demo) -> anyhow::Result<Code> {
    crate::demo::show::run(session, args)?;
    Ok(Code::Done)
}
