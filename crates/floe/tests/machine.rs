//! What is wrong with the machine: no room, read-only, not root, no FUSE, busy mounts, files of the store that were
//! damaged. Each a clear error that names the thing, or healed, and nobody else's loss.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::fs::{self, File};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use rustix::mount::{MountFlags, UnmountFlags, mount_bind, mount_remount, unmount};
use store::{RefName, Store};
use support::Node;
use support::image;
use support::servers::Embedded;

/// A registry with an image and its index.
fn shipped(node: &Node, seed: u64, big: usize) -> (Embedded, String) {
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image::simple(seed, big).push(&reference);
    let helper = Node::new("");
    helper.ok(&["index", "--push", &reference]);
    (registry, reference)
}

fn big(seed: u64, n: u64) -> Vec<u8> {
    image::noise(seed * 1000 + n, 1_500_000)
}

#[test]
fn a_full_store_is_an_error_until_there_is_room() {
    let node = node!();
    let (_registry, reference) = shipped(&node, 30, 3);
    let at = node.mount(&reference);
    assert!(fs::read(at.join("data/0")).unwrap() == big(30, 0));
    let ballast = node.store().join("tmp/ballast");
    let mut file = File::create(&ballast).unwrap();
    let error = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::StorageFull);
    drop(file);

    for path in ["data/1", "data/2"] {
        let error = support::read(&at.join(path)).unwrap_err();
        assert!(matches!(error.raw_os_error(), Some(5 | 28)), "{error}");
    }
    assert!(fs::read(at.join("data/0")).unwrap() == big(30, 0), "what is here stays readable");
    let complaint = node.fails(&["pull", &reference]);
    assert!(complaint.contains("room") || complaint.contains("full"), "{complaint}");
    assert!(node.run(&["status"]).status.success());
    assert!(node.run(&["gc"]).status.success(), "room can be made when there is none");

    fs::remove_file(&ballast).unwrap();
    for n in 1..3 {
        // What was begun before may still fail; what is begun now does not.
        let path = at.join(format!("data/{n}"));
        support::until("the file can be read", || support::read(&path).is_ok());
        assert!(fs::read(path).unwrap() == big(30, n));
    }
    node.ok(&["pull", &reference]);
}

#[test]
fn a_first_pull_into_a_full_store_says_so() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image::simple(31, 1).push(&reference);
    node.ok(&["status"]);
    node.ok(&["gc"]);
    let ballast = node.store().join("ballast");
    let _ = std::io::copy(&mut std::io::repeat(1), &mut File::create(&ballast).unwrap());
    let complaint = node.fails(&["pull", &reference]);
    assert!(complaint.contains("full"), "{complaint}");
    fs::remove_file(&ballast).unwrap();
    assert_eq!(node.files("tmp") + node.files("device") + node.files("refs"), 0);
    node.ok(&["pull", &reference]);
}

#[test]
fn a_read_only_store_is_named() {
    let node = node!();
    node.ok(&["gc"]);
    node.stop();
    mount_remount(node.store(), MountFlags::RDONLY, "").unwrap();
    let complaint = node.fails(&["gc"]);
    assert!(
        complaint.contains("read-only") && complaint.contains(node.store().to_str().unwrap()),
        "{complaint}"
    );
    mount_remount(node.store(), MountFlags::empty(), "").unwrap();
    node.ok(&["gc"]);
}

/// As when a disk fails and its file system goes read-only under everybody.
#[test]
fn a_store_that_turns_read_only_serves_what_is_here() {
    let node = node!();
    let (_registry, reference) = shipped(&node, 38, 3);
    let at = node.mount(&reference);
    assert!(fs::read(at.join("data/0")).unwrap() == big(38, 0));
    let dirs = ["refs", "index", "device", "meta", "profile", "tmp"].map(|dir| node.store().join(dir));
    for dir in &dirs {
        mount_bind(dir, dir).unwrap();
        mount_remount(dir, MountFlags::BIND | MountFlags::RDONLY, "").unwrap();
    }

    assert!(fs::read(at.join("data/0")).unwrap() == big(38, 0), "what is here stays readable");
    for path in ["data/1", "data/2"] {
        let error = support::read(&at.join(path)).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(5), "{error}");
    }
    assert!(node.log().contains("Read-only file system"), "{}", node.log());
    assert!(node.run(&["cat", &reference, "/data/0"]).stdout == big(38, 0));
    assert!(node.ok(&["ls", &reference, "/data"]).contains(" 2\n"));
    let second = node.mount(&reference);
    assert!(fs::read(second.join("data/0")).unwrap() == big(38, 0));
    for command in [&["pull", &reference][..], &["cat", &reference, "/data/1"], &["rm", &reference]] {
        let complaint = node.fails(command);
        assert!(complaint.contains("Read-only file system"), "{command:?}: {complaint}");
        assert!(
            !complaint.contains("127.0.0.1") || command[0] == "rm",
            "not the registry's fault: {complaint}"
        );
    }
    assert!(node.run(&["status"]).status.success());

    dirs.iter().for_each(|dir| unmount(dir, UnmountFlags::empty()).unwrap());
    for n in 0..3 {
        let path = at.join(format!("data/{n}"));
        support::until("the file can be read", || support::read(&path).is_ok());
        assert!(fs::read(path).unwrap() == big(38, n));
    }
    node.ok(&["pull", &reference]);
    node.ok(&["rm", &reference]);
}

#[test]
fn a_mount_in_use_stays() {
    let node = node!();
    let (_registry, reference) = shipped(&node, 32, 1);
    let at = node.mount(&reference);
    let held = File::open(at.join("etc/hello")).unwrap();
    let complaint = node.fails(&["umount", at.to_str().unwrap()]);
    assert!(complaint.contains("in use") && complaint.contains("hint: "), "{complaint}");
    assert!(fs::read(at.join("data/0")).unwrap() == big(32, 0));
    let complaint = node.fails(&["mount", &reference, at.to_str().unwrap()]);
    assert!(complaint.contains(at.to_str().unwrap()), "{complaint}");
    drop(held);
    node.umount(&at);
    assert_eq!(fs::read_dir(&at).unwrap().count(), 0);
    assert!(node.fails(&["umount", at.to_str().unwrap()]).contains("is not a mount of floe"));
    assert!(node.fails(&["mount", &reference, "/nonexistent/dir"]).contains("/nonexistent/dir"));
    // One mount for all who want the image; the last takes it away.
    let (one, two) = (node.mount(&reference), node.mount(&reference));
    node.umount(&one);
    assert!(fs::read(two.join("data/0")).unwrap() == big(32, 0));
    node.umount(&two);
    assert!(node.status()["mounts"].as_array().unwrap().is_empty());
}

#[test]
fn who_is_not_root_is_told() {
    let node = node!();
    if support::program("setpriv").is_none() {
        testkit::skip!("there is no setpriv");
    }
    // Where nobody can reach it.
    let binary = node.path("floe");
    fs::copy(env!("CARGO_BIN_EXE_floe"), &binary).unwrap();
    fs::set_permissions(node.path("."), fs::Permissions::from_mode(0o755)).unwrap();
    let config = node.path("config.toml");
    let mut command = Command::new("setpriv");
    command.args(["--reuid=65534", "--regid=65534", "--clear-groups"]).arg(&binary);
    command.arg("--root").arg(node.store()).arg("--config").arg(&config);
    command.args(["mount", "registry.invalid/app:v1", "/tmp"]);
    node.isolate(&mut command);
    let runtime = node.path("runtime");
    fs::create_dir(&runtime).unwrap();
    std::os::unix::fs::chown(&runtime, Some(65534), Some(65534)).unwrap();
    command.env("XDG_RUNTIME_DIR", &runtime);
    let outcome = node.spawn(command).end();
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("root") || outcome.stderr.contains("ermission"), "{outcome:?}");
    assert!(outcome.stderr.contains("hint: "), "{outcome:?}");
}

#[test]
fn a_machine_without_fuse_is_told() {
    let node = node!();
    if support::program("unshare").is_none() {
        testkit::skip!("there is no unshare");
    }
    let (_registry, reference) = shipped(&node, 33, 1);
    let dev = node.path("dev");
    fs::create_dir(&dev).unwrap();
    fs::write(dev.join("null"), "").unwrap();
    let at = node.mount_point();
    let script = "mount --bind /dev/null $DEV/null && mount --rbind $DEV /dev && exec \"$@\"";
    let mut command = Command::new("unshare");
    command
        .args(["--mount", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_floe"), "--root"])
        .arg(node.store());
    command
        .arg("--config")
        .arg(node.path("config.toml"))
        .args(["mount", &reference])
        .arg(&at)
        .env("DEV", &dev);
    node.isolate(&mut command);
    let outcome = node.spawn(command).end();
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("FUSE") && outcome.stderr.contains("hint: "), "{outcome:?}");
    // What needs no mount works there; and the same store elsewhere has all of it.
    assert_eq!(node.ok(&["cat", &reference, "/etc/hello"]), "hello 33\n");
}

/// Returns the files of a store up to some size, without those that are rewritten at every start.
fn small_files(root: &Path, dirs: &[&str]) -> Vec<PathBuf> {
    fn walk(dir: &Path, found: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(dir).unwrap() {
            let path = entry.unwrap().path();
            match path.is_dir() {
                true => walk(&path, found),
                false if fs::metadata(&path).unwrap().len() < 4096 => found.push(path),
                false => {}
            }
        }
    }
    let mut found = Vec::new();
    dirs.iter().for_each(|dir| walk(&root.join(dir), &mut found));
    found.retain(|path| fs::metadata(path).unwrap().len() > 0);
    found.sort();
    found
}

#[test]
fn every_flipped_byte_of_a_reference_is_found() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let references = ["one", "two"].map(|name| format!("{}/{name}:v1", registry.host()));
    for (seed, reference) in (34..).zip(&references) {
        image::simple(seed, 1).push(reference);
        node.ok(&["pull", reference]);
    }
    node.stop();
    let store = Store::open(&node.store()).unwrap();
    let names = references.each_ref().map(|name| {
        store
            .refs()
            .list()
            .unwrap()
            .0
            .into_iter()
            .map(|image| image.name)
            .find(|known| known.as_str().contains(&**name))
            .unwrap()
    });
    let files = small_files(&node.store(), &["refs"]);
    assert_eq!(files.len(), 2);
    let right = names.each_ref().map(|name| store.refs().get(name).unwrap().unwrap());
    for file in &files {
        let whole = fs::read(file).unwrap();
        for at in 0..whole.len() {
            let mut bytes = whole.clone();
            bytes[at] ^= 1 << (at % 8);
            fs::write(file, &bytes).unwrap();
            let read = names.each_ref().map(|name: &RefName| store.refs().get(name));
            let wrong = read
                .iter()
                .zip(&right)
                .filter(|(read, right)| !matches!(read, Ok(Some(image)) if image == *right))
                .count();
            assert_eq!(wrong, 1, "byte {at} of {}: {read:?}", file.display());
            let error = read.iter().find_map(|read| read.as_ref().err()).expect("damage is not absence");
            assert!(error.to_string().contains(file.file_name().unwrap().to_str().unwrap()), "{error}");
        }
        fs::write(file, &whole).unwrap();
    }
}

#[test]
fn damage_to_small_files_is_named_or_healed() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let (damaged, bystander) = (format!("{}/one:v1", registry.host()), format!("{}/two:v1", registry.host()));
    for (seed, reference) in [(36, &damaged), (37, &bystander)] {
        image::simple(seed, 1).push(reference);
    }
    node.ok(&["pull", &damaged]);
    let files = small_files(&node.store(), &["refs", "index", "device", "meta"]);
    node.ok(&["pull", &bystander]);
    node.stop();
    assert!(files.len() >= 4, "{files:?}");
    for file in files.iter().chain([&node.store().join("SESSION"), &node.store().join("VERSION")]) {
        let whole = fs::read(file).unwrap();
        for at in [0, whole.len() / 3, whole.len() - 1] {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x10;
            fs::write(file, &bytes).unwrap();
            let what = format!("byte {at} of {}", file.display());
            let version = file.ends_with("VERSION");
            let outcome = node.run(&["cat", &bystander, "/etc/hello"]);
            assert!(version || outcome.text() == "hello 37\n", "{what}: {outcome:?}");
            let outcome = node.run(&["cat", &damaged, "/data/0"]);
            let healed = outcome.status.success() && outcome.stdout == big(36, 0);
            let named = file
                .file_name()
                .and_then(|name| name.to_str())
                .is_some_and(|name| outcome.stderr.contains(name));
            assert!(
                healed || (outcome.status.code() == Some(1) && named),
                "{what}: {} {}",
                outcome.status,
                outcome.stderr
            );
            node.stop();
            fs::write(file, &whole).unwrap();
            assert!(node.run(&["cat", &damaged, "/data/0"]).stdout == big(36, 0), "{what}: mended by hand");
            node.stop();
        }
    }
}

#[test]
fn the_log_is_turned_over_before_it_fills_anything() {
    let node = node!();
    let dir = floe::daemon::run_dir(&node.store()).unwrap();
    let (log, older) = (dir.join("daemon.log"), dir.join("daemon.log.1"));
    let grow = || File::options().write(true).open(&log).unwrap().set_len(floe::daemon::log::LIMIT).unwrap();
    let complain =
        |name: &str| assert!(node.fails(&["rm", &format!("{name}.example/app:v1")]).contains(name));
    complain("first");
    let pid = node.daemon();
    grow();
    // The line that finds it long is its last.
    complain("second");
    complain("third");
    let text = node.log();
    assert!(text.contains("third") && !text.contains("second"), "{text}");
    assert!(fs::metadata(&older).unwrap().len() > floe::daemon::log::LIMIT);
    assert_eq!(node.daemon(), pid, "by the daemon that runs");

    // And by whoever starts one.
    node.stop();
    grow();
    complain("fourth");
    let text = node.log();
    assert!(text.contains("fourth") && !text.contains("third"), "{} bytes", text.len());
    assert_eq!(fs::metadata(&older).unwrap().len(), floe::daemon::log::LIMIT);
}
