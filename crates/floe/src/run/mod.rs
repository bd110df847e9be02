//! Runs a container: overlayfs over a read-only root, an OCI runtime, streams, signals, readiness, exit code.
//!
//! Nothing here knows where the root comes from. Promises: the lower directories are never written; nothing
//! stays behind after any exit, and what a killed run left is removed by the next one; the exit code is the
//! container's own.

mod dir;
mod options;
mod overlay;
mod ready;
mod runc;
mod signal_names;
mod signals;
mod spec;
mod stdio;
mod supervise;
mod tty;
mod user;

use std::collections::BTreeMap;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result, anyhow};
use oci_spec::image::ImageConfiguration;

pub use options::{Input, Net, Options, Output, Volume};
pub use ready::{Ready, ReadyWhen};
pub use runc::Exit;
pub use signals::Listening;

use crate::exit::{Code, Coded, Hint};
use dir::RunDir;
use runc::Runtime;

/// How a run went.
#[derive(Debug)]
pub struct Outcome {
    /// How the container's first process ended.
    pub exit: Exit,
    /// When the runtime was called.
    pub started: Instant,
    /// When the container became ready, if it was asked and did.
    pub ready: Option<Ready>,
    /// When the first process was seen to have ended.
    pub ended: Instant,
    /// We stopped it because it was ready.
    pub stopped: bool,
    /// While it lives, signals end nothing: a container that was asked to end has its own exit code to tell.
    pub listening: Arc<Listening>,
}

impl Outcome {
    /// Returns the code to exit with: the container's own, or 0 if it was stopped because it was ready.
    pub fn code(&self) -> u8 {
        if self.stopped { 0 } else { self.exit.code() }
    }
}

/// Runs a container over the merged root `rootfs_lower` and returns when it has ended.
///
/// `on_ready` is called on this thread when the container becomes ready; never if it ends before that.
/// Errors from before the container ran carry exit code 125, 126 or 127.
pub fn run(
    rootfs_lower: &Path,
    image_config: &ImageConfiguration,
    options: Options,
    on_ready: impl FnOnce(Ready),
) -> Result<Outcome> {
    run_over(&[rootfs_lower], image_config, options, on_ready)
}

/// Runs a container over several directories, the topmost first, as overlayfs merges them.
pub fn run_over(
    lowers: &[&Path],
    image_config: &ImageConfiguration,
    options: Options,
    on_ready: impl FnOnce(Ready),
) -> Result<Outcome> {
    // Held to the very end: a signal that comes while we clean up must not keep us from it.
    let (listening, signals) = signals::listen().map_err(not_started)?;
    let listening = Arc::new(listening);
    let prepared = prepare(lowers, image_config, &options).map_err(not_started)?;
    supervise::run(prepared, (&listening, signals), options, image_config, on_ready)
}

/// Removes what killed runs left behind: their containers, their directories. Returns their ids.
pub fn sweep(store: &Path) -> Vec<String> {
    dir::sweep(store, |id, path| match std::fs::read(path.join(RUNTIME)) {
        Ok(record) => Runtime::recall(&record).map_or(Ok(()), |runtime| runtime.delete(id)),
        Err(_) => Ok(()), // it never came as far as a container
    })
}

/// Returns the program of the runtime that the user named, or of the first one installed.
pub fn runtime(wanted: Option<&Path>) -> Result<PathBuf> {
    Ok(Runtime::find(wanted, Path::new("/"))?.program().to_owned())
}

/// In a run's directory: which runtime knows its container.
const RUNTIME: &str = "runtime";

/// Everything that can be done before a process of the container exists.
struct Prepared {
    runtime: Runtime,
    root: OwnedFd,
    dir: RunDir,
}

fn prepare(lowers: &[&Path], image: &ImageConfiguration, options: &Options) -> Result<Prepared> {
    options.check()?;
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!("this is user {}", rustix::process::geteuid())
            .context(Hint::new("running a container needs root", "sudo floe run …")));
    }
    let runtime = Runtime::find(options.runtime.as_deref(), &options.state)?;
    for id in sweep(&options.store) {
        tracing::info!(run = id, "removed what a killed run left");
    }
    let volumes = options.volumes.iter().map(Volume::check).collect::<Result<Vec<_>>>()?;
    let top = lowers.first().context("a container needs a root")?;
    let dir = RunDir::create(&options.store, top).map_err(|error| {
        error.context(Hint::new(
            "making a place for the container's own files",
            "choose another store with --root DIR",
        ))
    })?;
    let root = overlay::mount(lowers, &dir.upper(), &dir.work())?;
    let wanted = image.config().as_ref().and_then(|config| config.user().as_deref());
    let user = user::identify(root.as_fd(), options.user.as_deref().or(wanted).unwrap_or_default())
        .context("finding the user to run as")?;
    let host = host();
    if host.inside && (user.uid, user.gid) != (0, 0) {
        let hint = "sudo floe run …: without root there is one user in a container, its root";
        return Err(anyhow!("the image runs as {}:{}", user.uid, user.gid)
            .context(Hint::new("finding the user to run as", hint)));
    }
    let place = spec::Place { id: dir.id().to_owned(), rootfs: dir.rootfs(), etc: dir.etc() };
    let spec = spec::build(image, options, &volumes, &user, &host, &place)?;
    write_etc(&dir, options.net, &spec::hostname(options, &host, dir.id()))?;
    dir.write(Path::new("config.json"), &serde_json::to_vec(&spec)?)?;
    dir.write(Path::new(RUNTIME), &runtime.record())?;
    Ok(Prepared { runtime, root, dir })
}

/// The container gets copies: it may write to its `/etc/hosts`, not to ours.
fn write_etc(dir: &RunDir, net: Net, hostname: &str) -> Result<()> {
    let own = |name: &str| std::fs::read(Path::new("/etc").join(name)).unwrap_or_default();
    let (hosts, resolver) = match net {
        Net::Host => (own("hosts"), own("resolv.conf")),
        Net::None => (format!("127.0.0.1\tlocalhost {hostname}\n::1\tlocalhost\n").into_bytes(), Vec::new()),
    };
    dir.write(Path::new("etc/hosts"), &hosts)?;
    dir.write(Path::new("etc/resolv.conf"), &resolver)?;
    dir.write(Path::new("etc/hostname"), format!("{hostname}\n").as_bytes())
}

fn host() -> spec::Host {
    let env: BTreeMap<String, String> = std::env::vars_os()
        .filter_map(|(name, value)| Some((name.into_string().ok()?, value.into_string().ok()?)))
        .collect();
    let hostname = rustix::system::uname().nodename().to_string_lossy().into_owned();
    let cgroup2 = std::fs::exists("/sys/fs/cgroup/cgroup.controllers").unwrap_or(false);
    spec::Host { hostname, env, cgroup2, inside: crate::home::is_inside() }
}

/// Errors that do not choose an exit code themselves happened before the container ran.
fn not_started(error: anyhow::Error) -> anyhow::Error {
    if error.is::<Coded>() {
        error
    } else {
        error.context(Coded::new(Code::NotStarted, "the container was not started"))
    }
}
