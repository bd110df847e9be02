//! The daemon and the keeper die, one, the other or both, at chosen moments: a reader waits or gets an errno, and never
//! other bytes; then everything can be read on the same mount.
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
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;

use rustix::process::{Pid, Signal, kill_process};
use support::image::{self, TestImage};
use support::readers::{self, OnError, Readers, pread};
use support::servers::Embedded;
use support::{Node, until};
use testkit::faulty::Faulty;

const CONFIG: &str = "[fetch]\ndeadline_seconds = 60\n[mount]\npath = \"erofs\"\n";

const EIO: i32 = 5;

/// Length of a file: three segments.
const LEN: usize = 1_200_000;

/// A mounted image of some large files, of which nothing is here, on a registry that can be made to wait. Each file is
/// a layer, so that one is not fetched with another.
struct Scene {
    node: Node,
    server: Faulty,
    image: TestImage,
    at: PathBuf,
    seed: u64,
}

impl Scene {
    fn new(node: Node, seed: u64, files: u64) -> Self {
        let image = image::layered(seed, files, LEN);
        let server = Faulty::start();
        image.put(&server, "app", "v1");
        image::refer_all(&server, &image);
        let at = node.mount(&format!("{}/app:v1", server.host()));
        assert_eq!(node.status()["mounts"][0]["path"], "erofs");
        Self { node, server, image, at, seed }
    }

    fn path(&self, n: u64) -> PathBuf {
        self.at.join(format!("data/{n}"))
    }

    /// Reads one of the files; what can be read is right.
    fn read(&self, n: u64) -> std::io::Result<()> {
        check(&self.path(n), self.seed, n)
    }

    /// Starts to read one of the files, and waits until that has come as far as the registry.
    fn reader(&self, n: u64) -> JoinHandle<std::io::Result<()>> {
        let (path, seed, asked) = (self.path(n), self.seed, self.asked());
        let reader = std::thread::spawn(move || check(&path, seed, n));
        self.wait_for(asked + 1);
        reader
    }

    /// Returns how often the registry was asked: a daemon's first question is not yet for content.
    fn asked(&self) -> usize {
        self.server.count("/")
    }

    fn wait_for(&self, asked: usize) {
        until("the registry is asked", || self.asked() >= asked);
    }

    /// Kills the daemon and the keeper, so that neither can start the other.
    fn kill_both(&self) {
        let (daemon, keeper) = (self.node.locked_by().unwrap(), self.node.keeper().unwrap());
        kill_process(daemon, Signal::STOP).unwrap();
        support::kill_and_wait(keeper);
        support::kill_and_wait(daemon);
        assert_eq!((self.node.locked_by(), self.node.keeper()), (None, None));
    }
}

fn check(path: &Path, seed: u64, n: u64) -> std::io::Result<()> {
    let found = pread(path, 0, LEN)?;
    assert!(found == image::noise(seed * 1000 + n, LEN), "other bytes in {}", path.display());
    Ok(())
}

fn assert_eio(read: std::io::Result<()>) {
    assert_eq!(read.unwrap_err().raw_os_error(), Some(EIO));
}

/// Waits until a store has another daemon than this one.
fn another(node: &Node, than: Pid) -> Pid {
    until("there is another daemon", || node.locked_by().is_some_and(|pid| pid != than));
    node.locked_by().unwrap()
}

/// Not a test of its own: what a reader process does.
#[test]
fn reader() {
    readers::act();
}

#[test]
fn a_reader_waits_while_daemon_after_daemon_is_killed() {
    let scene = Scene::new(kernel_node!(CONFIG), 80, 2);
    let keeper = scene.node.keeper().unwrap();
    scene.read(0).unwrap();
    scene.server.hold();
    let reader = scene.reader(1);
    let mut daemon = scene.node.locked_by().unwrap();
    for _ in 0..4 {
        let asked = scene.asked();
        support::kill_and_wait(daemon);
        // Nobody but the keeper starts another, and that one asks for what the reader waits for.
        daemon = another(&scene.node, daemon);
        scene.wait_for(asked + 1);
        assert!(!reader.is_finished());
        scene.read(0).unwrap();
    }
    scene.server.release();
    reader.join().unwrap().unwrap();
    assert_eq!(scene.node.keeper(), Some(keeper));
    let status = scene.node.status();
    assert_eq!(status["mounts"].as_array().unwrap().len(), 1, "{status}");
    assert!(status["alerts"].as_array().unwrap().is_empty(), "{status}");
    // The last of them knows the mount as well as who made it.
    scene.node.umount(&scene.at);
    assert_eq!(support::mounts_of(&floe::daemon::run_dir(&scene.node.store()).unwrap()), [""; 0]);
}

/// One that the keeper had started and that died before it came to the keeper was missed only after ten seconds.
#[test]
fn daemons_killed_before_they_serve_are_followed_by_others() {
    let scene = Scene::new(kernel_node!(&CONFIG.replace("60", "30")), 85, 1);
    let reader = {
        let (path, seed) = (scene.path(0), scene.seed);
        scene.server.hold();
        std::thread::spawn(move || check(&path, seed, 0))
    };
    let mut daemon = scene.node.locked_by().unwrap();
    for _ in 0..6 {
        support::kill_and_wait(daemon);
        daemon = another(&scene.node, daemon);
    }
    scene.server.release();
    reader.join().unwrap().unwrap_or_else(|error| panic!("{error}: {}", scene.node.log()));
}

#[test]
fn a_killed_keeper_is_an_errno_for_who_waits_and_is_replaced() {
    let scene = Scene::new(kernel_node!(CONFIG), 81, 3);
    scene.read(0).unwrap();
    let daemon = scene.node.locked_by();
    for n in 1..3 {
        scene.server.hold();
        let reader = scene.reader(n);
        let keeper = scene.node.keeper().unwrap();
        support::kill_and_wait(keeper);
        assert_eio(reader.join().unwrap());
        scene.read(0).unwrap();
        scene.server.release();
        until("what was missing can be read", || scene.read(n).is_ok());
        assert!(scene.node.keeper().is_some_and(|other| other != keeper), "{}", scene.node.log());
    }
    assert_eq!(scene.node.locked_by(), daemon);
    assert!(scene.node.log().contains("the keeper has died"), "{}", scene.node.log());
}

/// Says whether a store's keeper has a FUSE mount.
fn keeps_fuse(node: &Node) -> bool {
    let Some(keeper) = node.keeper() else { return false };
    let held = fs::read_dir(format!("/proc/{keeper}/fd")).into_iter().flatten().flatten();
    held.filter_map(|entry| fs::read_link(entry.path()).ok()).any(|file| file == Path::new("/dev/fuse"))
}

#[test]
fn a_fuse_mount_outlives_its_keeper_then_its_daemon_and_an_upgrade() {
    let node = node!("[fetch]\nbackground = false\n");
    let (seed, image) = (86, image::layered(86, 4, LEN));
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let at = node.mount_point();
    node.ok(&["mount", "--path", "fuse", &reference, at.to_str().unwrap()]);
    let read = |n: u64| check(&at.join(format!("data/{n}")), seed, n);
    read(0).unwrap();
    let keeper = node.keeper().unwrap();
    support::kill_and_wait(keeper);
    read(1).unwrap();
    until("another keeper has the mount", || keeps_fuse(&node));
    assert_ne!(node.keeper(), Some(keeper));
    let daemon = node.locked_by().unwrap();
    support::kill_and_wait(daemon);
    read(2).unwrap();
    another(&node, daemon);
    node.ok(&["daemon", "upgrade"]);
    read(3).unwrap();
    let status = node.status();
    assert_eq!(
        (status["mounts"].as_array().unwrap().len(), &status["mounts"][0]["path"]),
        (1, &"fuse".into())
    );
    assert!(status["alerts"].as_array().unwrap().is_empty(), "{status}");
    node.umount(&at);
}

#[test]
fn readers_of_a_fuse_mount_to_which_no_daemon_comes_are_told_so_and_the_mount_stays() {
    let node = node!("[fetch]\nbackground = false\ndeadline_seconds = 3\n");
    let (seed, image, server) = (87, image::layered(87, 3, LEN), Faulty::start());
    image.put(&server, "app", "v1");
    image::refer_all(&server, &image);
    let at = node.mount_point();
    let reference = format!("{}/app:v1", server.host());
    node.ok(&["mount", "--path", "fuse", &reference, at.to_str().unwrap()]);
    let path = |n: u64| at.join(format!("data/{n}"));
    check(&path(0), seed, 0).unwrap();
    server.hold();
    let reader = {
        let path = path(1);
        std::thread::spawn(move || check(&path, seed, 1))
    };
    server.wait_for(1);

    // No daemon can be started with this.
    let file = node.path("config.toml");
    let config = fs::read_to_string(&file).unwrap();
    fs::write(&file, "nonsense").unwrap();
    support::kill_and_wait(node.locked_by().unwrap());
    assert_eio(reader.join().unwrap());
    assert_eio(check(&path(2), seed, 2));

    fs::write(&file, config).unwrap();
    server.release();
    until("it is served again", || check(&path(1), seed, 1).is_ok());
    check(&path(2), seed, 2).unwrap();
    node.umount(&at);
}

#[test]
fn without_daemon_and_keeper_what_is_here_is_right_and_the_next_command_brings_the_rest() {
    let scene = Scene::new(kernel_node!(CONFIG), 82, 4);
    scene.read(0).unwrap();
    scene.server.hold();
    let reader = scene.reader(1);
    scene.kill_both();
    assert_eio(reader.join().unwrap());
    scene.read(0).unwrap();
    for n in 1..4 {
        assert_eio(scene.read(n));
    }
    scene.server.release();
    let status = scene.node.status();
    assert_eq!(status["mounts"][0]["path"], "erofs", "{status}");
    scene.read(1).unwrap();

    // What is here needs no registry, not even to be taken over.
    scene.kill_both();
    scene.server.hold();
    let status = scene.node.status();
    assert_eq!(status["mounts"][0]["dir"], scene.at.to_str().unwrap(), "{status}");
    scene.read(0).unwrap();
    scene.read(1).unwrap();
    let reader = scene.reader(2);
    assert!(!reader.is_finished());
    scene.server.release();
    reader.join().unwrap().unwrap();
    scene.read(3).unwrap();

    // What is whole needs nobody.
    until("it is complete", || scene.node.status()["mounts"][0]["path"] == "plain");
    scene.kill_both();
    for n in 0..4 {
        scene.read(n).unwrap();
    }
    scene.node.umount(&scene.at);
}

#[test]
fn an_upgrade_is_not_noticed_by_readers() {
    let scene = Scene::new(kernel_node!(CONFIG), 83, 24);
    let truth = scene.node.path("truth");
    scene.image.extract(&truth);
    let mut dice = readers::dice();
    let data = scene.at.join("data");
    let readers = Readers::start(8, &data, &truth.join("root/data"), OnError::GoOn, &mut dice);
    readers.see(1);
    for _ in 0..4 {
        let before = scene.node.locked_by().unwrap();
        scene.node.ok(&["daemon", "upgrade"]);
        assert_ne!(scene.node.locked_by(), Some(before));
        readers.see(dice.below(20));
    }
    let seen = readers.finish();
    assert_eq!(seen.errors, 0, "{}", scene.node.log());
    assert!(scene.node.status()["alerts"].as_array().unwrap().is_empty());
    scene.node.umount(&scene.at);
}

#[test]
fn an_upgrade_leaves_who_waits_to_the_next_daemon() {
    let scene = Scene::new(kernel_node!(CONFIG), 84, 6);
    scene.server.hold();
    let readers: Vec<_> = (0..6).map(|n| scene.reader(n)).collect();
    for _ in 0..2 {
        let asked = scene.asked();
        scene.node.ok(&["daemon", "upgrade"]);
        scene.wait_for(asked + 1);
        assert!(readers.iter().all(|reader| !reader.is_finished()), "{}", scene.node.log());
    }
    scene.server.release();
    for reader in readers {
        reader.join().unwrap().unwrap();
    }
}

#[test]
fn a_complete_mount_that_no_daemon_serves_any_more_is_taken_away_whole() {
    let node = kernel_node!(CONFIG);
    let image = image::layered(9, 1, LEN);
    let server = Faulty::start();
    image.put(&server, "app", "v1");
    let reference = format!("{}/app:v1", server.host());
    node.ok(&["pull", &reference]);
    let at = node.mount(&reference);
    assert_eq!(node.status()["mounts"][0]["path"], "plain");
    node.keeper().into_iter().for_each(support::kill_and_wait);
    node.kill_daemon();
    node.umount(&at);
    let run = floe::daemon::run_dir(&node.store()).unwrap();
    assert_eq!(support::mounts_of(&run.join("mnt")), [""; 0]);
    assert_eq!(std::fs::read_dir(run.join("mounts")).unwrap().count(), 0);
}
