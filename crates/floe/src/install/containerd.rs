//! How this host's containerd hears of the snapshotter, in files of our own.
//!
//! A containerd that imports drop-ins (2.2 by itself, others where their configuration says so) gets one. Another is started with
//! a configuration of ours that imports its own: by a drop-in of its unit, where that starts it in the usual way.
//! Nobody's default snapshotter is changed.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use super::host::{self, Change};
use super::units;

/// Where containerd finds its configuration by itself.
const MAIN: &str = "/etc/containerd/config.toml";

/// What a containerd imports that imports anything.
const IMPORTED: &str = "/etc/containerd/conf.d/floe.toml";

/// What one reads that imports nothing.
const WRAPPER: &str = "/etc/floe/containerd.toml";

/// What has it do so.
const OVERRIDE: &str = "/etc/systemd/system/containerd.service.d/floe.conf";

/// The version of a configuration that all containerds of 1.6 and later read.
const VERSION: i64 = 2;

/// What was done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Told {
    /// There is no containerd.
    Absent,
    /// It knows, by these files; whether they are new.
    By(Vec<PathBuf>, Change),
    /// It is started in an unusual way: its administrator has to import this file.
    Import(PathBuf),
}

/// Tells containerd of the snapshotter.
pub(super) fn tell(root: &Path) -> anyhow::Result<Told> {
    let Some(program) = host::program("containerd") else { return Ok(Told::Absent) };
    let program = program.display().to_string();
    let imported = Path::new(IMPORTED);
    // Before the unit is asked for: a wrapper of an earlier installation shows what it wraps.
    let wrapped = Path::new(OVERRIDE).exists();
    let change = host::write(imported, &units::plugin(root))?;
    if !wrapped && host::run(&program, &["config", "dump"])?.contains(units::SOCKET) {
        return Ok(Told::By(vec![imported.to_owned()], change));
    }
    let usual = command_of(&host::systemctl(&["show", "--property=ExecStart", "containerd.service"])?)
        .filter(|command| !command.contains(' ') || wrapped)
        .and_then(|command| command.split(' ').next().map(str::to_owned));
    let Some(usual) = usual else { return Ok(Told::Import(imported.to_owned())) };
    host::remove(imported)?;
    let main = fs::read_to_string(MAIN).ok();
    let version = main.as_deref().map_or(Some(VERSION), version_of);
    let (wrapper, unit) = (Path::new(WRAPPER), Path::new(OVERRIDE));
    let text = units::wrapper(version, main.as_ref().map(|_| Path::new(MAIN)), root);
    let changes = [host::write(wrapper, &text)?, host::write(unit, &units::override_of(&usual, wrapper))?];
    host::run(&program, &["--config", WRAPPER, "config", "dump"])
        .context("trying containerd's configuration")?;
    let change = if changes.contains(&Change::Written) { Change::Written } else { Change::None };
    Ok(Told::By(vec![wrapper.to_owned(), unit.to_owned()], change))
}

/// Takes away what told it; returns the files.
pub(super) fn untell() -> anyhow::Result<Vec<PathBuf>> {
    let mut gone = Vec::new();
    for path in [IMPORTED, OVERRIDE, WRAPPER] {
        if host::remove(Path::new(path))? {
            gone.push(path.into());
        }
    }
    Ok(gone)
}

/// Returns the command line in what `systemctl show --property=ExecStart` says, if it is one.
fn command_of(shown: &str) -> Option<String> {
    let (_, rest) = shown.split_once("argv[]=")?;
    let command = rest.split(" ;").next()?.trim();
    (!command.is_empty()).then(|| command.to_owned())
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
        assert_eq!(command_of(shown).as_deref(), Some("/usr/bin/containerd"));
        let more = "ExecStart={ path=/usr/bin/containerd ; argv[]=/usr/bin/containerd --config /a ; x }\n";
        assert_eq!(command_of(more).as_deref(), Some("/usr/bin/containerd --config /a"));
        assert_eq!(command_of("ExecStart=\n"), None);
        assert_eq!(version_of("version = 3\n[plugins]\n"), Some(3));
        assert_eq!(version_of("[plugins]\n"), None);
    }
}
