//! One daemon per store: it owns the network, the fills and the mounts; commands are its clients.
//!
//! The lock file of the store makes it one. A command that finds no daemon starts one, which ends by itself
//! after [`IDLE`] without a client or a mount.

pub mod client;
pub mod log;
pub mod protocol;
pub mod server;

use std::io;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;

/// How long a daemon without clients and mounts stays: long enough for a script's next command.
pub const IDLE: Duration = Duration::from_secs(300);

/// Returns the runtime directory of a store: short, because a socket's path has at most 107 bytes.
pub fn run_dir(root: &Path) -> anyhow::Result<PathBuf> {
    let root = std::path::absolute(root).with_context(|| format!("resolving {}", root.display()))?;
    let digest = format::Digest::of(root.as_os_str().as_encoded_bytes());
    Ok(crate::home::run().join(&digest.hex()[..12]))
}

/// Returns where the daemon of a store listens.
pub fn socket_path(root: &Path) -> anyhow::Result<PathBuf> {
    Ok(run_dir(root)?.join("daemon.sock"))
}

/// Returns who is at the other end, if that is neither root nor our own user: nobody we obey or believe.
fn stranger(stream: &UnixStream) -> io::Result<Option<u32>> {
    let uid = rustix::net::sockopt::socket_peercred(stream)?.uid;
    let ours = uid.is_root() || uid == rustix::process::geteuid();
    Ok((!ours).then(|| uid.as_raw()))
}
