//! Under a service manager: systemd, or one that speaks as it does (`sd_notify(3)`, `sd_listen_fds(3)`).
//!
//! The manager starts the daemon, again where it has died, and has the sockets that containerd and kubelet connect to. So the keeper
//! starts none; a daemon that a command has started gives way to the manager's; and one that is told to end (SIGTERM) leaves
//! its mounts to the next.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::Engine;

/// What a manager says to its own child, and nobody hands on.
pub const VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The socket that kubelet connects to; the other one is containerd's.
pub const IMAGES: &str = "/run/floe/images.sock";

/// Says whether a manager has started this process.
pub fn is_there() -> bool {
    std::env::var_os(VARIABLES[0]).is_some()
}

/// The sockets that a manager keeps while no daemon runs.
#[derive(Default)]
pub struct Sockets {
    /// Where containerd connects to.
    pub containerd: Option<UnixListener>,
    /// Where kubelet connects to.
    pub images: Option<UnixListener>,
}

/// Returns the sockets that the manager has. To be called once, before files are opened.
pub fn sockets() -> anyhow::Result<Sockets> {
    let mut sockets = Sockets::default();
    for (_, socket) in sys::inherited::sockets().context("taking the service manager's sockets")? {
        let socket = UnixListener::from(socket);
        let at = socket.local_addr().context("looking at the service manager's sockets")?;
        match at.as_pathname() {
            Some(path) if path == Path::new(IMAGES) => sockets.images = Some(socket),
            _ => sockets.containerd = Some(socket),
        }
    }
    Ok(sockets)
}

/// Tells the manager that commands are answered.
pub fn ready() {
    // Without one nothing is said.
    if let Err(error) = sd_notify::notify(&[sd_notify::NotifyState::Ready]) {
        tracing::warn!(%error, "telling the service manager that the daemon is ready");
    }
}

/// Has SIGTERM end the daemon as its manager means it: mounts stay for the next one.
pub fn leave_when_told(engine: &Arc<Engine>) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build()?;
    let mut told = {
        let _inside = runtime.enter();
        signal(SignalKind::terminate()).context("watching for SIGTERM")?
    };
    let engine = Arc::clone(engine);
    let wait = move || {
        runtime.block_on(told.recv());
        tracing::info!("told to end; mounts stay for the next daemon");
        engine.leave();
    };
    std::thread::Builder::new().name("manager".into()).spawn(wait).context("waiting for SIGTERM")?;
    Ok(())
}
