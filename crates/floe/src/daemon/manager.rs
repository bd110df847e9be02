//! Under a service manager: systemd, or one that speaks as it does (`sd_notify(3)`, `sd_listen_fds(3)`).
//!
//! The manager starts the daemon, again where it has died, and has the socket that containerd connects to. So the keeper
//! starts none; a daemon that a command has started gives way to the manager's; and one that is told to end (SIGTERM) leaves
//! its mounts to the next.

use std::os::unix::net::UnixListener;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::Engine;

/// What a manager says to its own child, and nobody hands on.
pub const VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The name of the socket that containerd connects to (`FileDescriptorName=`).
const CONTAINERD: &str = "containerd";

/// Says whether a manager has started this process.
pub fn is_there() -> bool {
    std::env::var_os(VARIABLES[0]).is_some()
}

/// Returns the socket that containerd connects to, where the manager has it. To be called once, before files are opened.
pub fn containerd() -> anyhow::Result<Option<UnixListener>> {
    let given = sys::inherited::sockets().context("taking the service manager's sockets")?;
    let Some((_, socket)) = given.into_iter().find(|(name, _)| name == CONTAINERD) else { return Ok(None) };
    Ok(Some(UnixListener::from(socket)))
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
