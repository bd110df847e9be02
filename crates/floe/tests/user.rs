//! Floe for an ordinary user: a store, a daemon and mounts of their own.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::{Path, PathBuf};
use std::process::Command;

use serde_json::Value;
use support::servers::Embedded;
use support::{Node, Outcome, Running, image, tool};

/// `nobody`, whom `fusermount3` wants to know by name.
const UID: u32 = 65_534;

/// A user of a node, and what is theirs.
struct User<'a> {
    node: &'a Node,
    binary: PathBuf,
}

impl<'a> User<'a> {
    fn new(node: &'a Node) -> Self {
        let user = Self { node, binary: node.path("floe") };
        fs::set_permissions(node.path(""), fs::Permissions::from_mode(0o755)).unwrap();
        // The build's directory may be closed to others.
        fs::copy(env!("CARGO_BIN_EXE_floe"), &user.binary).unwrap();
        for dir in ["home", "store"] {
            chown(node.path(dir), Some(UID), Some(UID)).unwrap();
        }
        user.dir("runtime");
        user
    }

    /// Makes a directory of theirs.
    fn dir(&self, name: &str) -> PathBuf {
        let dir = self.node.path(name);
        fs::create_dir(&dir).unwrap();
        fs::set_permissions(&dir, fs::Permissions::from_mode(0o700)).unwrap();
        chown(&dir, Some(UID), Some(UID)).unwrap();
        dir
    }

    fn start(&self, program: &Path, args: &[&str]) -> Running {
        let mut command = Command::new(support::program("setpriv").unwrap());
        let id = UID.to_string();
        command.args(["--reuid", &id, "--regid", &id, "--clear-groups"]).arg(program).args(args);
        self.node.isolate(&mut command);
        command.env("XDG_RUNTIME_DIR", self.node.path("runtime")).env("XDG_DATA_HOME", self.node.store());
        command.current_dir("/");
        self.node.spawn(command)
    }

    fn run(&self, args: &[&str]) -> Outcome {
        self.start(&self.binary, args).end()
    }

    fn ok(&self, args: &[&str]) -> Vec<u8> {
        let outcome = self.run(args);
        assert!(outcome.status.success(), "floe {args:?}: {}\n{}", outcome.status, outcome.stderr);
        outcome.stdout
    }

    fn json(&self, args: &[&str]) -> Value {
        serde_json::from_slice(&self.ok(&[&["--output", "json"], args].concat())).unwrap()
    }

    /// Reads a file as the user does: root may not.
    fn read(&self, file: &Path) -> Outcome {
        self.start(Path::new("/bin/cat"), &[file.to_str().unwrap()]).end()
    }
}

impl Drop for User<'_> {
    fn drop(&mut self) {
        let _ = self.start(&self.binary, &["daemon", "stop"]).end(); // after a failed test
        support::unmount_below(&self.node.path(""));
    }
}

/// Runs a test in a mount table of its own, where everybody may use FUSE.
fn as_user(test: impl FnOnce(&User<'_>) + Send + 'static) {
    if let Some(why) = support::cannot_mount() {
        testkit::skip!("{why}");
    }
    if ["setpriv", "fusermount3"].iter().any(|name| support::program(name).is_none()) {
        testkit::skip!("mounting as somebody else needs setpriv and fusermount3");
    }
    let work = move || {
        sys::namespace::own_mounts().unwrap();
        let node = Node::new("");
        let device = node.path("fuse");
        tool(Command::new("mknod").arg(&device).args(["c", "10", "229"]));
        fs::set_permissions(&device, fs::Permissions::from_mode(0o666)).unwrap();
        tool(Command::new("mount").arg("--bind").arg(&device).arg("/dev/fuse"));
        test(&User::new(&node));
    };
    std::thread::spawn(work).join().unwrap();
}

#[test]
fn an_image_is_mounted_read_and_unmounted_by_its_user() {
    as_user(|user| {
        let (_registry, reference) = Embedded::with_index(user.node, &image::simple(90, 2));
        let big = |n: u64| image::noise(90_000 + n, 1_500_000);

        assert_eq!(user.ok(&["cat", &reference, "/data/0"]), big(0));
        let (at, other) = (user.dir("at"), user.dir("other"));
        user.ok(&["mount", "--no-background", &reference, at.to_str().unwrap()]);
        assert_eq!(user.read(&at.join("data/1")).stdout, big(1));
        assert!(support::mounts_of(&at)[0].contains("fuse.floe"));
        assert!(support::mounts_of(&at)[0].contains("nosuid,nodev"));
        assert!(user.run(&["mount", &reference, at.to_str().unwrap()]).stderr.contains("mounted there"));
        user.ok(&["mount", &reference, other.to_str().unwrap()]);
        let status = user.json(&["status"]);
        let mounts = status["mounts"].as_array().unwrap();
        assert_eq!((mounts.len(), &mounts[0]["path"]), (2, &"fuse".into()), "{status:#}");
        assert!(user.node.store().join("floe/VERSION").exists(), "the store is below XDG_DATA_HOME");
        let pid = status["pid"].as_u64().unwrap();
        assert_eq!(fs::metadata(format!("/proc/{pid}")).unwrap().uid(), UID);

        let busy = user.start(Path::new("/usr/bin/env"), &["-C", at.to_str().unwrap(), "sleep", "600"]);
        let cwd = format!("/proc/{}/cwd", busy.child.id());
        support::until("it is used", || fs::read_link(&cwd).is_ok_and(|cwd| cwd == at));
        let complaint = user.run(&["umount", at.to_str().unwrap()]).stderr;
        assert!(complaint.contains("in use"), "{complaint}");
        drop(busy);
        user.ok(&["umount", at.to_str().unwrap()]);
        assert!(support::mounts_of(&at).is_empty() && at.is_dir());
        assert_eq!(user.json(&["status"])["mounts"].as_array().unwrap().len(), 1);
        assert_eq!(user.read(&other.join("data/0")).stdout, big(0), "the other one stays");
        user.ok(&["pull", &reference]);
        user.ok(&["mount", &reference, at.to_str().unwrap()]);
        user.ok(&["daemon", "stop"]);
        assert!(support::mounts_of(&at).is_empty() && support::mounts_of(&other).is_empty());
        assert!(other.is_dir());
    });
}

#[test]
fn a_mount_whose_daemon_was_killed_goes_on_and_is_taken_away_by_its_user() {
    as_user(|user| {
        let registry = Embedded::start(&user.node.path("registry"));
        let reference = format!("{}/app:v1", registry.host());
        image::simple(91, 1).push(&reference);
        let at = user.dir("at");
        user.ok(&["mount", &reference, at.to_str().unwrap()]);
        let pid = i32::try_from(user.json(&["status"])["pid"].as_i64().unwrap()).unwrap();
        support::kill_and_wait(rustix::process::Pid::from_raw(pid).unwrap());
        assert_eq!(user.read(&at.join("data/0")).stdout, image::noise(91_000, 1_500_000));
        assert_eq!(user.json(&["status"])["mounts"].as_array().unwrap().len(), 1, "the next daemon has it");
        user.ok(&["umount", at.to_str().unwrap()]);
        assert!(support::mounts_of(&at).is_empty());
        user.ok(&["mount", &reference, at.to_str().unwrap()]);
        assert_eq!(user.read(&at.join("data/0")).stdout, image::noise(91_000, 1_500_000));
        user.ok(&["umount", at.to_str().unwrap()]);
    });
}

#[test]
fn a_container_runs_as_its_user_and_leaves_nothing() {
    as_user(|user| {
        if support::program("runc").is_none() {
            testkit::skip!("running containers needs runc");
        }
        let Some(image) = image::runnable(&serde_json::json!({ "Env": ["PATH=/bin"] })) else {
            testkit::skip!("running containers needs a static busybox");
        };
        let registry = Embedded::start(&user.node.path("registry"));
        let reference = format!("{}/app:v1", registry.host());
        image.push(&reference);
        let run = |script: &str| user.run(&["run", &reference, "--", "sh", "-c", script]);
        let outcome =
            run("id -u; wc -c </data/1; echo x >/made; rm -r /data; ls / | grep -c data; cat /made; exit 7");
        assert_eq!((outcome.status.code(), &*outcome.text()), (Some(7), "0\n4000000\n0\nx\n"), "{outcome:?}");
        assert_eq!(run("test -e /made").status.code(), Some(1), "it was the other container's");
        assert_eq!(user.run(&["run", &reference, "--", "/nothing"]).status.code(), Some(127));
        let runs = fs::read_dir(user.node.store().join("floe/run")).unwrap().count();
        assert_eq!(runs, 0, "nothing is left");
        assert!(support::mounts_of(&user.node.path("runtime")).is_empty());
        assert_eq!(user.run(&["run", "--path", "erofs", &reference]).status.code(), Some(2));
    });
}

#[test]
fn what_needs_root_says_so() {
    as_user(|user| {
        let report = user.run(&["--output", "json", "doctor"]).json();
        let fuse = report["checks"].as_array().unwrap().iter().find(|check| check["name"] == "fuse").unwrap();
        assert_eq!(
            (&fuse["state"], &report["reading"]["path"]),
            (&"ok".into(), &"fuse".into()),
            "{report:#}"
        );
        assert_eq!(user.run(&["--root", "/proc/none", "gc"]).status.code(), Some(1));
    });
}
