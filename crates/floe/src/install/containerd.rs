//! How this host's containerd hears of the snapshotter, in files of our own.
//!
//! A containerd that imports drop-ins (2.2 by itself, others where their configuration says so) gets one. Another is started with
//! a configuration of ours that imports its own: by a drop-in of its unit, where that starts it in the usual way.
//! Nobody's default snapshotter is changed.

use std::fs;
use std::os::unix::fs::{DirBuilderExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};

use super::{host, units};
use crate::snapshotter::remap;

/// Where containerd finds its configuration by itself.
const MAIN: &str = "/etc/containerd/config.toml";

/// What a containerd imports that imports anything.
const IMPORTED: &str = "/etc/containerd/conf.d/floe.toml";

/// What one reads that imports nothing.
const WRAPPER: &str = "/etc/floe/containerd.toml";

/// What has it do so.
const OVERRIDE: &str = "/etc/systemd/system/containerd.service.d/floe.conf";

/// Where containerd is if its configuration does not say, and what 1.6, which reads nothing that a plugin exports, tells kubelet is
/// there: the images.
const ROOT: &str = "/var/lib/containerd";
const BESIDE: &str = "io.containerd.snapshotter.v1.floe";

/// The version of a configuration that all containerds of 1.6 and later read.
const VERSION: i64 = 2;

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There is no containerd that systemd starts.
    Absent,
    /// It reads these files when it starts.
    By(Vec<PathBuf>),
    /// It is started in an unusual way: its administrator has to import this file.
    Import(PathBuf),
}

/// Tells containerd of the snapshotter; what it does not understand is taken away again.
pub(super) fn tell(root: &Path) -> anyhow::Result<Told> {
    let Some(command) = command()? else { return Ok(Told::Absent) };
    let told = try_to_tell(root, &command);
    if !matches!(told, Ok(Told::By(_))) && !is_wrapped() {
        take_away(WRAPPER)?;
        if told.is_err() {
            take_away(IMPORTED)?;
        }
    }
    told
}

fn try_to_tell(root: &Path, command: &[String]) -> anyhow::Result<Told> {
    let (imported, wrapper, unit) = (Path::new(IMPORTED), Path::new(WRAPPER), Path::new(OVERRIDE));
    if !is_wrapped() {
        host::write(imported, &units::plugin(root, remap::can(root)))?;
        if dump(command)?.contains(units::SOCKET) {
            return Ok(Told::By(vec![imported.to_owned()]));
        }
        if command.len() > 1 {
            return Ok(Told::Import(imported.to_owned()));
        }
        take_away(IMPORTED)?;
    }
    let main = main()?;
    let version = main.as_deref().map_or(Some(VERSION), version_of);
    let text = units::wrapper(version, root, remap::can(root));
    host::write(wrapper, &text)?;
    let wrapped = [command[0].clone(), "--config".to_owned(), WRAPPER.to_owned()];
    if !dump(&wrapped)?.contains(units::SOCKET) {
        bail!("containerd does not take {WRAPPER}");
    }
    host::write(unit, &units::override_of(&command[0], wrapper))?;
    Ok(Told::By(vec![wrapper.to_owned(), unit.to_owned()]))
}

/// Puts the store where containerd 1.6 says that images are, for kubelet watches the room there; returns the link.
pub(super) fn link(root: &Path) -> anyhow::Result<Option<PathBuf>> {
    let Some(dir) = own_root()? else { return Ok(None) };
    let link = dir.join(BESIDE);
    let make = || {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&dir)?; // as containerd does
        symlink(root, &link)
    };
    match make() {
        Err(_) if is_link(&link, root) => {}
        made => made.with_context(|| format!("making {}", link.display()))?,
    }
    Ok(Some(link))
}

/// Takes the link away, if it is one to this store; also where containerd has gone, or was configured otherwise meanwhile.
pub(super) fn unlink(root: &Path) -> anyhow::Result<Option<PathBuf>> {
    let dirs = [own_root().ok().flatten(), Some(ROOT.into())];
    let links = dirs.into_iter().flatten().map(|dir| dir.join(BESIDE));
    let Some(link) = links.into_iter().find(|link| is_link(link, root)) else { return Ok(None) };
    fs::remove_file(&link).with_context(|| format!("removing {}", link.display()))?;
    Ok(Some(link))
}

fn is_link(link: &Path, root: &Path) -> bool {
    fs::read_link(link).is_ok_and(|to| to == root)
}

/// Returns where containerd has its own directories.
fn own_root() -> anyhow::Result<Option<PathBuf>> {
    let Some(command) = command()? else { return Ok(None) };
    // One that cannot read its configuration is told so elsewhere.
    let config = dump(&command).ok().and_then(|dump| dump.parse::<toml::Table>().ok()).unwrap_or_default();
    Ok(Some(config.get("root").and_then(toml::Value::as_str).unwrap_or(ROOT).into()))
}

/// Says whether the containerd that runs knows the snapshotter.
pub(super) fn knows() -> bool {
    // The type of a plugin, its name, what it is for, and how it is.
    let is_ours = |line: &str| line.split_whitespace().nth(1) == Some("floe");
    host::run("ctr", &["plugins", "ls"]).is_ok_and(|list| list.lines().any(is_ours))
}

/// Returns the line by which something in containerd's configuration wants the snapshotter.
pub(super) fn wanted() -> anyhow::Result<Option<String>> {
    let Some(command) = command()? else { return Ok(None) };
    // What is imported by its name has to be there.
    let file =
        command.iter().position(|word| word == "--config" || word == "-c").and_then(|at| command.get(at + 1));
    let text = fs::read_to_string(file.map_or(MAIN, String::as_str)).unwrap_or_default();
    if let Some(line) = text.lines().find(|line| line.contains(IMPORTED)) {
        return Ok(Some(line.trim().to_owned()));
    }
    let wants = |line: &&str| {
        line.split_once('=').is_some_and(|(key, value)| {
            key.trim() == "snapshotter" && value.trim().trim_matches(['"', '\'']) == "floe"
        })
    };
    Ok(dump(&command)?.lines().find(wants).map(|line| line.trim().to_owned()))
}

/// Returns how systemd starts containerd.
fn command() -> anyhow::Result<Option<Vec<String>>> {
    let shown = host::systemctl(&["show", "--property=ExecStart", "containerd.service"])?;
    Ok(command_of(&shown))
}

/// Returns the configuration that a containerd has that is started so.
fn dump(command: &[String]) -> anyhow::Result<String> {
    let mut words: Vec<_> = command[1..].iter().map(String::as_str).collect();
    words.extend(["config", "dump"]);
    host::run(&command[0], &words).context("reading containerd's configuration")
}

/// Removes one of our files, and its directory if that is empty now: whoever needs it makes it.
fn take_away(file: &str) -> anyhow::Result<bool> {
    let file = Path::new(file);
    let gone = host::remove(file)?;
    if gone && let Some(dir) = file.parent() {
        let _ = fs::remove_dir(dir); // others have files there
    }
    Ok(gone)
}

fn is_wrapped() -> bool {
    Path::new(OVERRIDE).exists()
}

fn main() -> anyhow::Result<Option<String>> {
    match fs::read_to_string(MAIN) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        read => Ok(Some(read.with_context(|| format!("reading {MAIN}"))?)),
    }
}

/// Returns the file by which containerd hears of the snapshotter, if one of ours does, and what is wrong with it.
pub(super) fn told() -> Option<(PathBuf, Option<String>)> {
    let (imported, wrapper) = (Path::new(IMPORTED), Path::new(WRAPPER));
    if imported.exists() {
        return Some((imported.to_owned(), None));
    }
    let ours = fs::read_to_string(wrapper).ok()?;
    let theirs = fs::read_to_string(MAIN).ok();
    Some((wrapper.to_owned(), mismatch(&ours, theirs.as_deref())))
}

/// Says why a wrapper and what it wraps do not fit, if they do not: containerd leaves out what is of a later version.
fn mismatch(wrapper: &str, main: Option<&str>) -> Option<String> {
    let (ours, theirs) = (version_of(wrapper), main.map_or(Some(VERSION), version_of));
    let text =
        |version: Option<i64>| version.map_or_else(|| "none".to_owned(), |version| version.to_string());
    (ours != theirs).then(|| format!("it has version {}, and {MAIN} has {}", text(ours), text(theirs)))
}

/// Takes away what told it; returns the files.
pub(super) fn untell() -> anyhow::Result<Vec<PathBuf>> {
    let mut gone = Vec::new();
    for path in [IMPORTED, OVERRIDE, WRAPPER] {
        if take_away(path)? {
            gone.push(path.into());
        }
    }
    Ok(gone)
}

/// Returns the words of the command line in what `systemctl show --property=ExecStart` says, if it is one.
fn command_of(shown: &str) -> Option<Vec<String>> {
    let (_, rest) = shown.split_once("argv[]=")?;
    let words: Vec<_> = rest.split(" ;").next()?.split_whitespace().map(str::to_owned).collect();
    (!words.is_empty()).then_some(words)
}

/// Returns the version that a configuration says it has.
fn version_of(config: &str) -> Option<i64> {
    config.parse::<toml::Table>().ok()?.get("version")?.as_integer()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_containerd_is_and_how_it_is_started_is_understood() {
        let shown = "ExecStart={ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd ; ignore_errors=no ; start_time=[n/a] }\n";
        assert_eq!(command_of(shown).unwrap(), ["/usr/bin/containerd"]);
        let more = "ExecStart={ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd --config /a ; x }\n";
        assert_eq!(command_of(more).unwrap(), ["/usr/bin/containerd", "--config", "/a"]);
        assert_eq!(command_of("ExecStart=\n"), None);
        assert_eq!(version_of("version = 3\n[plugins]\n"), Some(3));
        assert_eq!(version_of("[plugins]\n"), None);
        let wrapper = units::wrapper(Some(2), Path::new("/var/lib/floe"), false);
        assert_eq!(mismatch(&wrapper, Some("version = 2\n[plugins]\n")), None);
        assert_eq!(mismatch("version = 2\n", None), None);
        assert!(mismatch(&wrapper, Some("version = 3\n")).is_some());
        assert!(mismatch(&wrapper, Some("[plugins]\n")).is_some());
    }
}
