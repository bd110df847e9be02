//! A tiny root made of busybox, a store and a state directory: what the tests of `floe run` run in.

#![allow(dead_code, reason = "each test program uses a part of it")]
#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; the lint's own exception knows #[test] functions only"
)]

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use floe::exit::{Code, code_of, write_error};
use floe::run::{Exit, Input, Options, Outcome};
use oci_spec::image::ImageConfiguration;
use serde_json::json;
use tempfile::TempDir;

/// Applets of busybox the tests call by name.
const APPLETS: [&str; 17] = [
    "sh", "cat", "echo", "env", "id", "ls", "nc", "pwd", "sleep", "true", "touch", "hostname", "ifconfig",
    "mkdir", "stat", "stty", "kill",
];

/// A place with a lower directory, a store and a state directory of its own.
pub(crate) struct Place {
    pub(crate) dir: TempDir,
}

impl Place {
    /// Returns nothing, loudly, where containers cannot run.
    pub(crate) fn new() -> Option<Self> {
        let busybox = Path::new("/bin/busybox");
        let installed = |name: &str| {
            std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default())
                .chain(["/usr/sbin".into()])
                .any(|dir| dir.join(name).exists())
        };
        if !rustix::process::geteuid().is_root() || !busybox.exists() || !installed("runc") {
            return None;
        }
        let place = Self { dir: TempDir::new().unwrap() };
        let lower = place.lower();
        for dir in ["bin", "etc", "tmp", "srv/www"] {
            fs::create_dir_all(lower.join(dir)).unwrap();
        }
        fs::copy(busybox, lower.join("bin/busybox")).unwrap();
        for applet in APPLETS {
            symlink("busybox", lower.join("bin").join(applet)).unwrap();
        }
        fs::set_permissions(lower.join("tmp"), fs::Permissions::from_mode(0o1777)).unwrap();
        fs::write(lower.join("etc/passwd"), "root:x:0:0::/root:/bin/sh\nweb:x:33:34::/srv/www:/bin/sh\n")
            .unwrap();
        fs::write(lower.join("etc/group"), "root:x:0:\nweb:x:34:\nvideo:x:44:web\n").unwrap();
        Some(place)
    }

    pub(crate) fn lower(&self) -> PathBuf {
        self.dir.path().join("lower")
    }

    pub(crate) fn store(&self) -> PathBuf {
        self.dir.path().join("store")
    }

    pub(crate) fn options(&self, command: &[&str]) -> Options {
        let mut options = Options::new(self.store());
        options.state = self.dir.path().join("state");
        options.args = command.iter().map(ToString::to_string).collect();
        options.stdin = Input::Null;
        options
    }

    /// Runs with this image config; returns the outcome and both outputs.
    pub(crate) fn run_image(
        &self,
        config: serde_json::Value,
        mut options: Options,
    ) -> anyhow::Result<(Outcome, String, String)> {
        let (out, err) = (self.dir.path().join("out"), self.dir.path().join("err"));
        options.stdout = fs::File::create(&out).unwrap().into();
        options.stderr = fs::File::create(&err).unwrap().into();
        let outcome = floe::run::run(&self.lower(), &image(config), options, |_| {})?;
        Ok((outcome, fs::read_to_string(out).unwrap(), fs::read_to_string(err).unwrap()))
    }

    pub(crate) fn run(&self, options: Options) -> (Outcome, String) {
        let (outcome, out, err) = self.run_image(json!({}), options).unwrap();
        assert_eq!(err, "");
        (outcome, out)
    }

    /// Runs a shell script and returns what it printed.
    pub(crate) fn sh(&self, script: &str) -> String {
        let (outcome, out) = self.run(self.options(&["sh", "-c", script]));
        assert_eq!(outcome.exit, Exit::Returned(0), "{out}");
        out
    }

    pub(crate) fn fails(&self, options: Options) -> (Code, String) {
        let error = floe::run::run(&self.lower(), &image(json!({})), options, |_| {}).unwrap_err();
        let mut shown = Vec::new();
        write_error(&error, &mut shown).unwrap();
        (code_of(&error), String::from_utf8(shown).unwrap())
    }

    /// Nothing of any run is left: no directory, no lock, no mount, no container.
    pub(crate) fn assert_clean(&self) {
        assert_eq!(fs::read_dir(self.store().join("run")).unwrap().count(), 0, "run directories");
        if let Ok(containers) = fs::read_dir(self.dir.path().join("state/runtime")) {
            assert_eq!(containers.count(), 0, "containers");
        }
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        assert!(!mounts.contains(self.dir.path().to_str().unwrap()), "mounts");
    }
}

pub(crate) fn image(config: serde_json::Value) -> ImageConfiguration {
    serde_json::from_value(json!({
        "architecture": "amd64", "os": "linux", "config": config,
        "rootfs": { "type": "layers", "diff_ids": [] }
    }))
    .unwrap()
}

/// Returns a place from the calling test, or ends that with a word.
#[macro_export]
macro_rules! place {
    () => {
        match $crate::place::Place::new() {
            Some(place) => place,
            None => testkit::skip!("running containers needs root, runc and a static busybox"),
        }
    };
}
