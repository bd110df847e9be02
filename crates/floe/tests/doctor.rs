//! `floe doctor` on this machine: what it says, with which exit code, and that it leaves everything as it was.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;

use serde_json::Value;
use support::image;
use support::servers::Embedded;
use support::{Node, Outcome};

/// Exit code of a machine on which images cannot be started.
const UNABLE: i32 = 3;

/// Runs the doctor and checks what holds for every answer.
fn doctor(node: &Node, flags: &[&str]) -> (Outcome, Value) {
    let outcome = node.run(&[&["--output", "json", "doctor"], flags].concat());
    let report = outcome.json();
    let checks = report["checks"].as_array().unwrap();
    assert!(checks.len() > 10, "{report:#}");
    let failed = checks.iter().any(|check| check["state"] == "failed");
    assert_eq!(outcome.status.code(), Some(if failed { UNABLE } else { 0 }), "{outcome:?}");
    for check in checks {
        let bad = check["state"] == "failed" || check["state"] == "warning";
        assert_eq!(check["hint"].is_string(), bad, "{check}");
        assert!(!check["found"].as_str().unwrap().contains('\n'), "{check}");
    }
    (outcome, report)
}

fn check<'a>(report: &'a Value, name: &str) -> &'a Value {
    let checks = report["checks"].as_array().unwrap();
    checks.iter().find(|check| check["name"] == name).unwrap_or_else(|| panic!("no {name}: {report:#}"))
}

/// Everything below a directory, and the mounts of this machine.
fn seen(dir: &Path) -> (BTreeSet<String>, String) {
    fn walk(dir: &Path, all: &mut BTreeSet<String>) {
        for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
            all.insert(entry.path().display().to_string());
            if entry.path().is_dir() {
                walk(&entry.path(), all);
            }
        }
    }
    let mut all = BTreeSet::new();
    walk(dir, &mut all);
    (all, support::mounts_of(dir).join("\n"))
}

#[test]
fn a_machine_that_can_mount_is_told_so_and_left_as_it_was() {
    let node = node!();
    let before = seen(&node.store());
    let (_, report) = doctor(&node, &[]);
    assert_eq!(seen(&node.store()), before);
    assert_eq!(report["user"], 0);
    assert!(report["reading"]["path"].is_string(), "{report:#}");
    assert_eq!(check(&report, "fuse")["state"], "ok", "{report:#}");
    assert_eq!(check(&report, "daemon")["state"], "ok", "{report:#}");
    assert!(node.daemon().is_none(), "none was started");

    let text = node.run(&["doctor"]);
    for part in ["kernel\n", "store\n", "limits\n", "runtime\n", "network\n", "configuration\n", "keeper\n"] {
        assert!(text.text().contains(part), "{}", text.text());
    }
    assert!(text.text().contains("images are read by: "), "{}", text.text());
}

#[test]
fn a_daemon_and_its_mounts_are_not_disturbed() {
    let node = node!();
    let (_registry, reference) = Embedded::with_index(&node, &image::simple(80, 2));
    let at = node.mount(&reference);
    let (pid, before) = (node.daemon().unwrap(), seen(&node.store()));
    let (_, report) = doctor(&node, &[]);
    let found = check(&report, "daemon")["found"].as_str().unwrap();
    assert!(found.starts_with(&format!("process {}, protocol", pid.as_raw_nonzero())), "{found}");
    assert_eq!(node.daemon(), Some(pid));
    assert_eq!(seen(&node.store()), before);
    assert_eq!(fs::read(at.join("data/1")).unwrap(), image::noise(80_001, 1_500_000));
    node.umount(&at);
}

#[test]
fn nothing_is_made_before_the_installation() {
    if let Some(why) = support::cannot_mount() {
        testkit::skip!("{why}");
    }
    let node = Node::new("");
    let place = node.path("place");
    fs::create_dir(&place).unwrap();
    let root = place.join("lib/floe");
    let mut command = Command::new(env!("CARGO_BIN_EXE_floe"));
    command.arg("--root").arg(&root).args(["--output", "json", "doctor", "--pre"]);
    node.isolate(&mut command);
    let outcome = node.spawn(command).end();
    let report = outcome.json();
    assert_eq!((&report["pre"], &report["user"]), (&true.into(), &0.into()));
    assert_eq!(check(&report, "daemon")["state"], "skipped");
    assert_eq!(check(&report, "directory")["state"], "ok");
    assert_eq!(fs::read_dir(&place).unwrap().count(), 0);
    assert!(!floe::daemon::run_dir(&root).unwrap().exists());
}

#[test]
fn what_is_missing_makes_it_fail_and_comes_with_a_remedy() {
    let node = node!();
    let (outcome, report) = doctor(&node, &["--runtime", "/nonexistent/runc"]);
    assert_eq!(outcome.status.code(), Some(UNABLE));
    assert_eq!(report["verdict"], "unable");
    let program = check(&report, "program");
    assert_eq!(program["state"], "failed");
    assert!(program["hint"].as_str().unwrap().contains("apt-get install runc"), "{program}");
    let text = node.run(&["doctor", "--runtime", "/nonexistent/runc"]);
    assert_eq!(text.status.code(), Some(UNABLE));
    assert!(text.text().contains("images cannot be started here (1 failed"), "{}", text.text());

    // A configuration that other commands refuse is a finding, and the rest is looked at all the same.
    fs::write(node.path("config.toml"), "[fetch]\nbackgruond = true\n").unwrap();
    let (_, report) = doctor(&node, &[]);
    let file = check(&report, "file");
    assert!(file["state"] == "failed" && file["found"].as_str().unwrap().contains("backgruond"), "{file}");
    fs::write(node.path("config.toml"), "").unwrap();

    fs::write(node.store().join("stranger"), "").unwrap();
    let (_, report) = doctor(&node, &[]);
    assert_eq!(check(&report, "directory")["state"], "failed");
    assert_eq!(node.run(&["doctor", "--registry", "no host"]).status.code(), Some(2));
}

#[test]
fn a_registry_is_talked_to_if_it_is_named() {
    let node = node!();
    assert_eq!(check(&doctor(&node, &[]).1, "registry")["state"], "skipped");
    let registry = Embedded::start(&node.path("registry"));
    let report = doctor(&node, &["--registry", &registry.host().to_string()]).1;
    assert_eq!(check(&report, "registry")["state"], "ok", "{report:#}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let report = doctor(&node, &["--registry", &nobody.to_string()]).1;
    assert_eq!(check(&report, "registry")["state"], "failed", "{report:#}");
}

#[test]
fn an_ordinary_user_is_told_what_only_root_can_see() {
    let node = node!();
    let Some(setpriv) = support::program("setpriv") else {
        testkit::skip!("being somebody else needs setpriv");
    };
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o1777)).unwrap();
    // The build's directory may be closed to others.
    let binary = dir.path().join("floe");
    fs::copy(env!("CARGO_BIN_EXE_floe"), &binary).unwrap();
    let root = dir.path().join("store");
    let mut command = Command::new(setpriv);
    command.args(["--reuid", "65534", "--regid", "65534", "--clear-groups"]).arg(&binary);
    command.arg("--root").arg(&root).args(["--output", "json", "doctor"]).current_dir("/");
    node.isolate(&mut command);
    let outcome = node.spawn(command).end();
    let report = outcome.json();
    assert_eq!((&report["user"], &report["verdict"] == "able"), (&65534.into(), false), "{outcome:?}");
    assert_eq!(check(&report, "erofs")["state"], "skipped");
    assert!(check(&report, "erofs")["found"].as_str().unwrap().contains("root"));
    let names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["floe"], "nothing is left");
}
