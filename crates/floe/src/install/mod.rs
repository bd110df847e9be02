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
use std::sync::Arc;

use anyhow::{Context, bail};

use self::containerd::Told;
use self::units::Installed;
pub use self::units::proxy;
use crate::commands::{Session, out};
use crate::daemon::client::{self, Client};
use crate::daemon::manager::IMAGES;
use crate::daemon::protocol::{Call, Settled};
use crate::exit::{Code, Hint, misused};

/// Where the program goes, unless a package manager has put it somewhere else.
const PROGRAM: &str = "/usr/local/bin/floe";

/// Where programs are that stay.
const PLACES: [&str; 4] = ["/usr/bin", "/usr/sbin", "/usr/local/bin", "/usr/local/sbin"];

const UNIT: &str = "/etc/systemd/system/floe.service";
const SOCKET: &str = "/etc/systemd/system/floe.socket";

/// Where kubelet is told what to do, by itself, by kubeadm, by an administrator: files, and directories of such.
const KUBELET: [&str; 9] = [
    "/var/lib/kubelet/config.yaml",
    "/var/lib/kubelet/kubeadm-flags.env",
    "/etc/kubernetes/kubelet-config.yaml",
    "/etc/kubernetes/kubelet.conf.d",
    "/etc/default/kubelet",
    "/etc/sysconfig/kubelet",
    "/etc/systemd/system/kubelet.service",
    "/etc/systemd/system/kubelet.service.d",
    "/usr/lib/systemd/system/kubelet.service.d",
];

/// What takes the store away at the next boot, where something still uses it.
const AT_NEXT_BOOT: &str = "/etc/tmpfiles.d/floe-uninstall.conf";

/// Returns the file by which containerd hears of the snapshotter, if one of ours does, and what is wrong with it.
pub(crate) fn told() -> Option<(PathBuf, Option<String>)> {
    containerd::told()
}

/// Starts the service of a store, and waits until it answers; false if there is none.
pub(crate) fn start(root: &Path) -> anyhow::Result<bool> {
    // A unit that cannot be read is no reason not to have a daemon.
    let is_for = |installed: Installed| installed.root == root;
    if !installed().ok().flatten().is_some_and(is_for) || !sd_notify::booted().unwrap_or(false) {
        return Ok(false);
    }
    host::systemctl(&["start", "floe.service"])
        .context(Hint::new("starting the service", "journalctl --unit floe says more"))?;
    Ok(true)
}

/// Makes the daemon a service; run again, it brings what is there up to date.
pub(crate) fn install(session: &Session) -> anyhow::Result<Code> {
    host::check()?;
    let root = &session.address.root;
    if root.to_str().is_none_or(|root| root.contains([':', ',', '\\', '\n'])) {
        bail!(misused(format!("{}: no colon, comma or backslash may be in it", root.display())));
    }
    let own = client::exe().context("finding this program's own file")?;
    let stays = own.parent().is_some_and(|dir| PLACES.iter().any(|place| dir == Path::new(place)));
    let program = if stays { own.clone() } else { PathBuf::from(PROGRAM) };
    let installed = installed()?;
    let copied = !stays || installed.as_ref().is_some_and(|unit| unit.copied);
    let unit = units::service(&program, copied, &session.address);
    if let Some(installed) = installed.filter(|installed| installed.root != *root) {
        return Err(another(&installed.root, "install"));
    }
    // One that runs leaves its mounts to the new one, or says why it cannot.
    if let Some(mut running) = Client::connect_running(&session.address)?
        && let Err(error) = running.call::<()>(Call::MayLeave, &mut |_| ())
    {
        // Another version may not understand; only a FUSE mount has anything to lose by a signal.
        let mounts = sys::table::points().context("reading /proc/self/mountinfo")?;
        if mounts.iter().any(|mount| mount.fs_type == "fuse.floe") {
            return Err(error);
        }
    }
    let mut said = String::new();
    if !stays {
        host::copy(&own, &program)?;
        let _ = writeln!(said, "program     {}", program.display());
    }
    host::write(Path::new(UNIT), &unit)?;
    // systemd opens what a unit of sockets has got anew only when that is started again.
    let sockets = units::socket();
    let moved = std::fs::read_to_string(SOCKET).is_ok_and(|there| there != sockets);
    host::write(Path::new(SOCKET), &sockets)?;
    host::remove(Path::new(AT_NEXT_BOOT))?;
    let _ = writeln!(said, "service     {UNIT}\nsocket      {SOCKET}");

    host::systemctl(&["daemon-reload"])?;
    host::systemctl(&["enable", "floe.socket", "floe.service"])?;
    let restarted: &[_] =
        if moved { &["restart", "floe.socket", "floe.service"] } else { &["restart", "floe.service"] };
    host::systemctl(restarted)
        .context(Hint::new("starting the service", "journalctl --unit floe says more; then install again"))?;
    tell(root, &mut said)?;
    // Only kubelet on containerd 1.6 misses it.
    let linked = containerd::link(root).transpose().map(|link| match link {
        Ok(link) => format!("images      {} leads there, for kubelet", link.display()),
        Err(error) => format!("images      kubelet on containerd 1.6 does not see their room: {error:#}"),
    });
    let _ = linked.map(|line| writeln!(said, "{line}"));
    out(said.as_bytes())?;
    Ok(Code::Done)
}

/// Tells containerd, and restarts it if it is one that does not know yet: containers do not notice.
fn tell(root: &Path, said: &mut String) -> anyhow::Result<()> {
    let new = containerd::told().is_none();
    match containerd::tell(root)? {
        Told::Absent => *said += "containerd  systemd starts none; install again once it does\n",
        Told::By(files) => {
            host::systemctl(&["daemon-reload"])?;
            let runs = host::is("active", "containerd.service") || host::is("failed", "containerd.service");
            let restarts = runs && !containerd::knows();
            if restarts && let Err(error) = host::systemctl(&["restart", "containerd.service"]) {
                if new {
                    containerd::untell()?;
                    host::systemctl(&["daemon-reload"])?;
                    let _ = host::systemctl(&["restart", "containerd.service"]); // as it was before
                }
                return Err(error.context("containerd does not start with the snapshotter"));
            }
            let files: Vec<_> = files.iter().map(|file| file.display().to_string()).collect();
            let also = if restarts { " (restarted)" } else { "" };
            let _ = writeln!(said, "containerd  {}{also}", files.join(", "));
        }
        Told::Import(file) => {
            let _ = writeln!(
                said,
                "containerd  is started in an unusual way: have its configuration import {}/*.toml, and restart it",
                file.parent().unwrap_or(&file).display()
            );
        }
    }
    Ok(())
}

/// Fetches whole what is mounted, and takes everything away that [`install`] and the daemon have made.
pub(crate) fn uninstall(session: &Session, force: bool) -> anyhow::Result<Code> {
    host::check()?;
    let root = &session.address.root;
    let installed = installed()?;
    if let Some(installed) = installed.as_ref().filter(|installed| installed.root != *root) {
        return Err(another(&installed.root, "uninstall"));
    }
    if let Some(line) = containerd::wanted()? {
        bail!(anyhow::anyhow!("containerd's configuration wants it: {line}").context(Hint::new(
            "uninstalling",
            "take that line out and restart containerd first: without the snapshotter it would start no pod"
        )));
    }
    if let Some(line) = kubelet_wants()? {
        bail!(anyhow::anyhow!("kubelet's configuration wants it: {line}").context(Hint::new(
            "uninstalling",
            "take that out and restart kubelet first: nobody would answer where it asks for images"
        )));
    }
    if root.exists() {
        let settled: Settled = session.ask(Call::Settle { force })?;
        needs_none(settled.served.first())?;
    }
    // From here on no command starts a daemon, and with the store's lock nobody else does.
    let _one = client::starting(root)?;
    let left = end(session, installed.is_some(), force).inspect_err(|_| {
        if installed.is_some() {
            let _ = host::systemctl(&["enable", "--now", "floe.socket", "floe.service"]); // as it was
        }
    })?;

    let mut said = String::new();
    let unlinked = containerd::unlink(root); // while its configuration still says where
    let untold = containerd::untell()?;
    let mut gone: Vec<PathBuf> = untold.clone();
    gone.extend(unlinked?);
    for file in [UNIT, SOCKET] {
        if host::remove(Path::new(file))? {
            gone.push(file.into());
        }
    }
    host::systemctl(&["daemon-reload"])?;
    if !untold.is_empty() && host::is("active", "containerd.service") {
        host::systemctl(&["restart", "containerd.service"])?;
    }
    if installed.is_some_and(|installed| installed.copied) && std::fs::remove_file(PROGRAM).is_ok() {
        gone.push(PROGRAM.into());
    }
    for file in gone {
        let _ = writeln!(said, "removed     {}", file.display());
    }
    let forgotten = forget(root, left.in_use, &mut said);
    drop(left);
    out(said.as_bytes())?;
    forgotten.map(|()| Code::Done)
}

/// Returns the line by which kubelet asks for images here, if it is told so in one of the usual places.
fn kubelet_wants() -> anyhow::Result<Option<String>> {
    let within = |place: &&str| match std::fs::read_dir(place) {
        Ok(entries) => entries.flatten().map(|entry| entry.path()).filter(|path| path.is_file()).collect(),
        Err(_) => vec![PathBuf::from(place)],
    };
    for file in KUBELET.iter().flat_map(within) {
        match std::fs::read(&file) {
            Ok(text) => {
                let text = String::from_utf8_lossy(&text);
                let names_it = |line: &&str| line.contains(IMAGES) && !line.trim_start().starts_with('#');
                if let Some(line) = text.lines().find(names_it) {
                    return Ok(Some(format!("{}: {}", file.display(), line.trim())));
                }
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(error).with_context(|| format!("reading {}", file.display())),
        }
    }
    Ok(None)
}

/// Returns the unit that is installed, if it is one of ours.
fn installed() -> anyhow::Result<Option<Installed>> {
    match std::fs::read_to_string(UNIT) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(Installed::read(&read.with_context(|| format!("reading {UNIT}"))?)),
    }
}

fn another(root: &Path, what: &str) -> anyhow::Error {
    anyhow::anyhow!("the service that is installed is for {}", root.display())
        .context(Hint::new(format!("looking at {UNIT}"), format!("floe --root {} {what}", root.display())))
}

/// Fails where something cannot be read without a daemon.
fn needs_none(served: Option<&String>) -> anyhow::Result<()> {
    let Some(reference) = served else { return Ok(()) };
    Err(anyhow::anyhow!("{reference} is read through the daemon").context(Hint::new(
        "uninstalling",
        "if it was just started, try again; what is mounted through FUSE has to be ended first",
    )))
}

/// A store whose daemon has gone.
struct Left {
    /// Whether anything uses it.
    in_use: bool,
    /// Keeps daemons away.
    _store: Option<Arc<store::Store>>,
}

/// Ends the daemon, and looks at what is in use; fails where something cannot do without one.
fn end(session: &Session, is_service: bool, force: bool) -> anyhow::Result<Left> {
    let root = &session.address.root;
    if is_service {
        host::systemctl(&["disable", "--now", "floe.socket", "floe.service"])?;
    }
    if let Some(mut running) = Client::connect_running(&session.address)? {
        if running.hello()?.managed {
            bail!("a service that `floe install` has not written runs the daemon: stop that first");
        }
        running.hand_over().context("ending the daemon that a command has started")?;
    }
    if !root.exists() {
        return Ok(Left { in_use: false, _store: None });
    }
    let store = store::Store::open(root)?;
    // Containers write into snapshots, also into those of which nothing more is known.
    let (snapshots, damaged) = store::Snapshots::open(&store)?;
    let count = snapshots.count();
    if count > 0 && !force {
        bail!("{count} snapshots or layers of it are in use meanwhile");
    }
    let (mounted, unserved) = crate::engine::mounts::left(&crate::daemon::run_dir(root)?)?;
    needs_none(unserved.first())?;
    crate::engine::names::clear(&crate::daemon::run_dir(root)?)?;
    Ok(Left { in_use: mounted || count > 0 || !damaged.is_empty(), _store: Some(store) })
}

/// Takes a store away, at once or, where it is in use, with the next boot.
fn forget(root: &Path, in_use: bool, said: &mut String) -> anyhow::Result<()> {
    let shown = root.display();
    if in_use {
        let own = Path::new(AT_NEXT_BOOT);
        match units::at_next_boot(root, own) {
            Some(text) => {
                host::write(own, &text)?;
                let _ = writeln!(said, "in use      {shown} goes with the next boot ({AT_NEXT_BOOT})");
            }
            None => {
                let _ = writeln!(said, "in use      {shown}: remove it after the next boot");
            }
        }
        return Ok(());
    }
    let run = crate::daemon::run_dir(root)?;
    for dir in [root, run.as_path()] {
        if host::clear(dir)? {
            let _ = writeln!(said, "removed     {}", dir.display());
        }
    }
    let _ = std::fs::remove_dir(crate::home::run()); // other stores may have theirs there
    Ok(())
}
