//! One daemon per store: it owns the network, the fills and the mounts; commands are its clients.
//!
//! The lock file of the store makes it one. A command that finds no daemon starts one, which ends by itself
//! after [`IDLE`] without a client or a mount.

pub mod client;
pub mod grpc;
pub mod log;
pub mod manager;
pub mod metrics;
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
    let root = real(root).with_context(|| format!("resolving {}", root.display()))?;
    let digest = format::Digest::of(root.as_os_str().as_encoded_bytes());
    Ok(crate::home::run().join(&digest.hex()[..12]))
}

/// Returns a path without links, as far as it is there: a store has one runtime directory, however it is named.
fn real(path: &Path) -> io::Result<PathBuf> {
    let path = std::path::absolute(path)?;
    for there in path.ancestors() {
        if let Ok(real) = there.canonicalize() {
            // Joined with nothing it would end in a slash.
            let rest = path.strip_prefix(there).ok().filter(|rest| !rest.as_os_str().is_empty());
            return Ok(rest.map_or_else(|| real.clone(), |rest| real.join(rest)));
        }
    }
    Ok(path)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_store_has_one_runtime_directory_however_it_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let (real, link) = (dir.path().join("real"), dir.path().join("link"));
        std::fs::create_dir(&real).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        for name in ["", "store", "a/store"] {
            assert_eq!(run_dir(&real.join(name)).unwrap(), run_dir(&link.join(name)).unwrap(), "{name:?}");
        }
        let before = run_dir(&real.join("store")).unwrap();
        std::fs::create_dir(real.join("store")).unwrap();
        assert_eq!(run_dir(&real.join("store")).unwrap(), before, "it is there now");
        assert_ne!(run_dir(&real).unwrap(), before);
    }
}
