//! Under a service manager: systemd, or one that speaks as it does (`sd_notify(3)`, `sd_listen_fds(3)`).
//!
//! The manager starts the daemon, again where it has died, and has the socket that containerd connects to. So the keeper
//! starts none; a daemon that a command has started gives way to the manager's; and one that is told to end (SIGTERM) leaves
//! its mounts to the next.

use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use anyhow::Context;
use tokio::signal::unix::{SignalKind, signal};

use crate::engine::Engine;
use crate::exit::Hint;

/// What a manager says to its own child, and nobody hands on.
pub const VARIABLES: [&str; 4] = ["NOTIFY_SOCKET", "LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"];

/// The name of the socket that containerd connects to (`FileDescriptorName=`).
const CONTAINERD: &str = "containerd";

/// The unit that `floe install` writes.
pub const UNIT: &str = "/etc/systemd/system/floe.service";

/// What its line begins with that names the store.
pub const STORE: &str = "# Store: ";

/// Starts the service of a store, and waits until it answers; false if there is none.
pub fn start(root: &Path) -> anyhow::Result<bool> {
    let unit = std::fs::read_to_string(UNIT).unwrap_or_default();
    let is_ours = |line: &str| line.strip_prefix(STORE).is_some_and(|store| Path::new(store) == root);
    if !unit.lines().any(is_ours) || !sd_notify::booted().unwrap_or(false) {
        return Ok(false);
    }
    let started = Command::new("systemctl").args(["start", "floe.service"]).output();
    let started = started.context("running systemctl")?;
    if !started.status.success() {
        let said = String::from_utf8_lossy(&started.stderr).trim().to_owned();
        return Err(anyhow::anyhow!(said)
            .context(Hint::new("starting the service", "journalctl --unit floe says more")));
    }
    Ok(true)
}

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
