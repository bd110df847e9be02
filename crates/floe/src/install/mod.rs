//! `floe install` and `floe uninstall`: the daemon as a service of this host, and the snapshotter of its containerd.
//!
//! Everything is in files of our own, nothing that is there is edited, and what somebody else has written is not touched.
//! Uninstalling fetches what is mounted whole, so that what runs goes on without us, and leaves nothing.
//!
//! | file | what |
//! |---|---|
//! | `units.rs` | the texts |
//! | `containerd.rs` | how containerd hears of the snapshotter |
//! | `host.rs` | files and systemd |

mod containerd;
mod host;
mod units;

use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use self::containerd::Told;
use self::host::Change;
use crate::commands::{Session, out};
use crate::daemon::client;
use crate::daemon::protocol::{Call, Settled};
use crate::exit::{Code, Hint};

/// Where the program goes, unless a package manager has put it somewhere else.
const PROGRAM: &str = "/usr/local/bin/floe";

/// Where programs are that stay.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

const SERVICE: &str = "/etc/systemd/system/floe.service";
const SOCKET: &str = "/etc/systemd/system/floe.socket";

/// What takes the store away at the next boot, where something still uses it.
const AT_NEXT_BOOT: &str = "/etc/tmpfiles.d/floe-uninstall.conf";

/// Makes the daemon a service; run again, it brings what is there up to date.
pub(crate) fn install(session: &Session) -> anyhow::Result<Code> {
    host::check()?;
    let root = &session.address.root;
    let mut said = String::new();

    let own = client::exe().context("finding this program's own file")?;
    let stays = own.parent().is_some_and(|dir| PLACES.iter().any(|place| dir == Path::new(place)));
    let program = if stays { own.clone() } else { PathBuf::from(PROGRAM) };
    if !stays {
        host::copy(&own, &program)?;
        let _ = writeln!(said, "program     {}", program.display());
    }

    host::write(Path::new(SERVICE), &units::service(&program, &session.address))?;
    host::write(Path::new(SOCKET), &units::socket())?;
    host::remove(Path::new(AT_NEXT_BOOT))?;
    let _ = writeln!(said, "service     {SERVICE}\nsocket      {SOCKET}");

    let told = containerd::tell(root)?;
    host::systemctl(&["daemon-reload"])?;
    host::systemctl(&["enable", "floe.socket", "floe.service"])?;
    host::systemctl(&["start", "floe.socket"])?;
    // One that runs leaves its mounts to the new one.
    host::systemctl(&["restart", "floe.service"]).context(Hint::new(
        "starting the service",
        "systemctl status floe and journalctl --unit floe say more",
    ))?;
    match told {
        Told::Absent => said += "containerd  there is none; install again once there is\n",
        Told::By(files, change) => {
            let restarted = change == Change::Written && host::is_active("containerd.service");
            if restarted {
                host::systemctl(&["restart", "containerd.service"])?; // containers do not notice
            }
            let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            let also = if restarted { " (restarted)" } else { "" };
            let _ = writeln!(said, "containerd  {}{also}", files.join(", "));
        }
        Told::Import(file) => {
            let _ = writeln!(
                said,
                "containerd  is started in an unusual way: have its configuration import {}, and restart it",
                file.display()
            );
        }
    }
    out(said.as_bytes())?;
    Ok(Code::Done)
}

/// Fetches whole what is mounted, and takes everything away that [`install`] and the daemon have made.
pub(crate) fn uninstall(session: &Session, force: bool) -> anyhow::Result<Code> {
    host::check()?;
    let root = &session.address.root;
    let mut said = String::new();
    let mut in_use = false;

    if root.exists() {
        let settled: Settled = session.ask(Call::Settle { force })?;
        if let Some(reference) = settled.served.first() {
            bail!(anyhow::anyhow!("{reference} is read through this daemon").context(Hint::new(
                "uninstalling",
                "end what uses it: an image that is mounted through FUSE ends with its daemon"
            )));
        }
        if settled.mounts > 0 {
            let _ = writeln!(said, "complete    {} mounts go on without a daemon", settled.mounts);
        }
        // Containers write into the snapshots.
        in_use = settled.mounts + settled.snapshots > 0;
    }
    for unit in ["floe.socket", "floe.service"] {
        if Path::new("/etc/systemd/system").join(unit).exists() {
            host::systemctl(&["disable", "--now", unit])?;
        }
    }
    let untold = containerd::untell()?;
    let mut gone: Vec<PathBuf> = untold.clone();
    for file in [SERVICE, SOCKET] {
        if host::remove(Path::new(file))? {
            gone.push(file.into());
        }
    }
    host::systemctl(&["daemon-reload"])?;
    if !untold.is_empty() && host::is_active("containerd.service") {
        host::systemctl(&["restart", "containerd.service"])?;
    }
    for file in gone {
        let _ = writeln!(said, "removed     {}", file.display());
    }
    forget(root, in_use, &mut said)?;
    if std::fs::remove_file(PROGRAM).is_ok() {
        let _ = writeln!(said, "removed     {PROGRAM}");
    }
    out(said.as_bytes())?;
    Ok(Code::Done)
}

/// Takes a store away, at once or, where it is in use, with the next boot.
fn forget(root: &Path, in_use: bool, said: &mut String) -> anyhow::Result<()> {
    if in_use {
        let own = Path::new(AT_NEXT_BOOT);
        host::write(own, &units::at_next_boot(root, own))?;
        let _ = writeln!(said, "in use      {} goes with the next boot ({AT_NEXT_BOOT})", root.display());
        return Ok(());
    }
    let run = crate::daemon::run_dir(root)?;
    for dir in [root, run.as_path()] {
        match std::fs::remove_dir_all(dir) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                return Err(error).with_context(|| format!("removing {}", dir.display()));
            }
            Ok(()) => {
                let _ = writeln!(said, "removed     {}", dir.display());
            }
            Err(_) => {}
        }
    }
    let _ = std::fs::remove_dir(crate::home::run()); // other stores may have theirs there
    Ok(())
}
