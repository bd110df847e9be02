//! `floe doctor`: looks at the machine, the store and the daemon, and says what is in the way of starting images.
//!
//! Promises: what works is tried, not guessed from a version; every failure comes with a remedy; a daemon that runs
//! is only asked who it is; trials leave nothing (their mounts are in a mount table of their own, their files in one
//! directory that goes with them); nothing is waited for without a limit.
//!
//! | file | what |
//! |---|---|
//! | `report.rs` | what was found, for people and for machines |
//! | `kernel.rs` | the read paths, the overlay on top, and which path is chosen |
//! | `place.rs` | the store's directory, its file system, its room |
//! | `daemon.rs` | the daemon and the keeper |
//! | `limits.rs` | what this process may have |
//! | `runtime.rs` | the OCI runtime and its cgroups |
//! | `network.rs` | proxies, the clock, registries |
//! | `configuration.rs` | the file and what it names |
//! | `scratch.rs` | the directory of the trials |
//! | `patience.rs` | limits on waiting |

mod configuration;
mod daemon;
pub(crate) mod kernel;
mod limits;
mod network;
mod patience;
mod place;
pub mod report;
mod runtime;
mod scratch;

use std::path::{Path, PathBuf};

use registry::Host;

use crate::daemon::client::Address;
use patience::{TRIAL, within};
use report::{Check, Group, Report};
use scratch::Scratch;

pub use kernel::is_linux;

/// What is looked at.
pub struct Subject {
    /// The store, whether it is there or not, and the configuration file that was named.
    pub address: Address,
    /// Whether nothing is installed yet.
    pub pre: bool,
    /// The OCI runtime that was named.
    pub runtime: Option<PathBuf>,
    /// Registries to talk to.
    pub registries: Vec<Host>,
}

/// Looks at everything.
pub fn examine(subject: &Subject) -> Report {
    let root = rustix::process::geteuid().is_root();
    let (address, runtime) = (subject.address.clone(), subject.runtime.clone());
    let file = address.config.clone();
    let (configured, config) = within(TRIAL, move || configuration::check(file.as_deref()))
        .unwrap_or_else(|| (vec![Group::Configuration.stuck("file")], None));
    let config = config.unwrap_or_default();
    // Before there is a directory of ours, which would be a stranger in an empty store.
    let (store, settings) = (address.root.clone(), config.clone());
    let mut checks = limited(Group::Store, "directory", move || place::check(&store, &settings));
    let (tried, direct) = trials(&address.root, root);
    let (kernel, reading) = kernel::judge(&tried, config.mount.path);
    checks.push(kernel::version());
    checks.extend(kernel);
    checks.extend(direct);
    if subject.pre {
        checks.push(Group::Store.skipped("daemon", "nothing is installed yet"));
        checks.push(Group::Keeper.skipped("keeper", "nothing is installed yet"));
    } else {
        let store = address.root.clone();
        checks.extend(limited(Group::Store, "daemon", move || vec![daemon::daemon(&address)]));
        checks.extend(limited(Group::Keeper, "keeper", move || vec![daemon::keeper(&store)]));
    }
    checks.extend(limited(Group::Limits, "open-files", move || limits::check(root)));
    checks.extend(limited(Group::Runtime, "program", move || runtime::check(runtime.as_deref(), root)));
    checks.extend(network::check(&config, &subject.registries));
    checks.extend(configured);
    if root && !subject.pre {
        checks.extend(limited(Group::Configuration, "containerd", || vec![configuration::containerd()]));
    }
    Report::new(subject.pre, checks, reading)
}

/// Makes checks; what is stuck is a failure like any other.
fn limited(
    group: Group,
    name: &'static str,
    work: impl FnOnce() -> Vec<Check> + Send + 'static,
) -> Vec<Check> {
    within(TRIAL, work).unwrap_or_else(|| vec![group.stuck(name)])
}

/// Tries what the kernel can do, in a directory that is gone afterwards.
fn trials(store: &Path, root: bool) -> (kernel::Tried, Option<Check>) {
    let place = store.to_owned();
    let made = within(TRIAL, move || Scratch::make(&place));
    let made = made.unwrap_or_else(|| Err(std::io::ErrorKind::TimedOut.into()));
    let there = made.is_ok();
    // What an ordinary user may mount does not depend on the file system.
    let scratch = if there || root { made } else { Scratch::make(&std::env::temp_dir()) };
    let tried = kernel::Tried::out(scratch.as_ref().map(Scratch::path), root);
    let direct = scratch.as_ref().ok().filter(|_| there).map(|scratch| place::direct(scratch.path()));
    let _ = within(TRIAL, move || drop(scratch)); // what cannot go is swept by the next one
    (tried, direct)
}
