//! The OCI runtime and its cgroups.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::fs::{Access, access};

use super::patience::output;
use super::report::{Check, Group};
use crate::exit;

const GROUP: Group = Group::Runtime;

/// Where cgroups are.
const CGROUPS: &str = "/sys/fs/cgroup";

/// How long the runtime may take to say its version.
const PATIENCE: Duration = Duration::from_secs(5);

/// Looks at both.
pub(super) fn check(wanted: Option<&Path>, root: bool) -> Vec<Check> {
    let cgroups = match root {
        true => cgroups(Path::new(CGROUPS)),
        false => GROUP.skipped("cgroups", "without root containers have none of their own"),
    };
    vec![program(wanted), cgroups]
}

fn program(wanted: Option<&Path>) -> Check {
    let file = match crate::run::runtime(wanted) {
        Ok(file) => file,
        Err(error) => {
            let hint = exit::hint_of(&error).unwrap_or("apt-get install runc").to_owned();
            return GROUP.failed("program", format!("{error:#}"), hint);
        }
    };
    let here = file.display();
    let hint = "install it anew (apt-get install --reinstall runc), or name another with --runtime PATH";
    match output(Command::new(&file).arg("--version"), PATIENCE) {
        Ok((true, said)) => {
            GROUP.ok("program", format!("{}, {here}", said.lines().next().unwrap_or("no version")))
        }
        Ok((false, _)) => GROUP.failed("program", format!("{here} --version fails"), hint),
        Err(error) => GROUP.failed("program", format!("running {here}: {error}"), hint),
    }
}

fn cgroups(at: &Path) -> Check {
    let second = at.join("cgroup.controllers").exists();
    let hierarchies = ["memory", "cpu", "devices", "systemd", "pids"].map(|name| at.join(name));
    let first = hierarchies.iter().find(|dir| dir.is_dir());
    let (version, place) = match (second, first) {
        (true, _) => (2, at),
        // The directory that holds them may be closed: systemd mounts it read-only.
        (false, Some(hierarchy)) => (1, hierarchy.as_path()),
        (false, None) => {
            let hint = "mount -t cgroup2 cgroup2 /sys/fs/cgroup; in a container that takes --privileged";
            return GROUP.failed("cgroups", format!("there are none at {}", at.display()), hint);
        }
    };
    match access(place, Access::WRITE_OK) {
        Ok(()) => GROUP.ok("cgroups", format!("version {version}")),
        Err(error) => GROUP.failed(
            "cgroups",
            format!("version {version}, not to be written to: {}", std::io::Error::from(error)),
            "the runtime makes a cgroup for each container: in a container that takes --privileged",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use std::fs;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_runtime_must_be_there_and_run() {
        let dir = tempfile::tempdir().unwrap();
        let script = |text: &str| {
            let file = dir.path().join(format!("runtime-{}", text.len()));
            fs::write(&file, format!("#!/bin/sh\n{text}\n")).unwrap();
            fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
            file
        };
        let good = program(Some(&script("echo runc version 1.1")));
        assert_eq!(good.state, State::Ok, "{good:?}");
        assert!(good.found.starts_with("runc version 1.1, /"), "{good:?}");
        assert_eq!(program(Some(&script("exit 1"))).state, State::Failed);
        let none = program(Some(&dir.path().join("none")));
        assert_eq!(none.state, State::Failed);
        assert!(none.hint.unwrap().contains("apt-get install runc"));
    }

    #[test]
    fn cgroups_of_both_versions_are_known() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(cgroups(dir.path()).state, State::Failed);
        fs::create_dir(dir.path().join("memory")).unwrap();
        assert_eq!(cgroups(dir.path()).found, "version 1");
        fs::write(dir.path().join("cgroup.controllers"), "").unwrap();
        assert_eq!(cgroups(dir.path()).found, "version 2");
    }
}
