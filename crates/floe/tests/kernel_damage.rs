//! Somebody else changes the files that the kernel reads an image from: it is found, told, fetched again, and the next
//! mount is right; and so it is after the daemon has died. A disk that is full is an errno, and over when it is over.
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
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use rustix::process::{Signal, kill_process};
use support::disk::Kind;
use support::image::{self, TestImage};
use support::readers::pread;
use support::servers::Embedded;
use support::{Node, until};

const CONFIG: &str = "[fetch]\ndeadline_seconds = 60\n[mount]\npath = \"erofs\"\n[store]\nreserve = 0\n";

const EIO: i32 = 5;

const LEN: usize = 1_500_000;

/// A node with an image of four large files that is mounted lazily or not at all.
struct Scene {
    node: Node,
    registry: Embedded,
    reference: String,
    seed: u64,
}

impl Scene {
    fn new(node: Node, seed: u64) -> Self {
        Self::of(node, seed, &image::simple(seed, 4))
    }

    fn of(node: Node, seed: u64, image: &TestImage) -> Self {
        let (registry, reference) = Embedded::with_index(&node, image);
        Self { node, registry, reference, seed }
    }

    fn mount(&self) -> PathBuf {
        self.node.mount(&self.reference)
    }

    /// Reads one of the files through a mount; tells whether it is right.
    fn read(&self, at: &Path, n: u64) -> std::io::Result<bool> {
        let found = pread(&at.join(format!("data/{n}")), 0, LEN)?;
        Ok(found == image::noise(self.seed * 1000 + n, LEN))
    }

    fn assert_right(&self, at: &Path) {
        for n in 0..4 {
            let read = self.read(at, n).unwrap_or_else(|error| panic!("{n}: {error}: {}", self.node.log()));
            assert!(read, "file {n} has other bytes");
        }
    }

    /// Returns the segments of the one layer that are here.
    fn segments(&self) -> Vec<PathBuf> {
        let layer = fs::read_dir(self.node.store().join("device")).unwrap().next().unwrap().unwrap().path();
        let mut files: Vec<_> = fs::read_dir(layer).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| !path.ends_with("state") && fs::metadata(path).unwrap().len() > 0);
        files.sort();
        files
    }

    /// Returns what status says of the mount at a place.
    fn status_of(&self, at: &Path) -> serde_json::Value {
        let status = self.node.status();
        let mounts = status["mounts"].as_array().unwrap();
        mounts.iter().find(|mount| mount["dir"] == at.to_str().unwrap()).cloned().unwrap_or_default()
    }

    fn kill_all(&self) {
        let (daemon, keeper) = (self.node.locked_by(), self.node.keeper());
        daemon.iter().for_each(|pid| kill_process(*pid, Signal::STOP).unwrap());
        keeper.into_iter().chain(daemon).for_each(support::kill_and_wait);
    }
}

fn scribble(path: &Path) {
    let file = File::options().read(true).write(true).open(path).unwrap();
    let middle = file.metadata().unwrap().len() / 2;
    let mut bytes = [0; 64];
    file.read_exact_at(&mut bytes, middle).unwrap();
    bytes.iter_mut().for_each(|byte| *byte ^= 0x20);
    file.write_all_at(&bytes, middle).unwrap();
}

fn cut(path: &Path) {
    let file = File::options().write(true).open(path).unwrap();
    file.set_len(file.metadata().unwrap().len() / 2).unwrap();
}

/// After the daemon's death the old mount once passed for one of the files that had replaced the damaged ones.
fn damaged_under_a_mount(damage: fn(&Path), seed: u64, all: bool) {
    let scene = Scene::new(kernel_node!(CONFIG), seed);
    let node = &scene.node;
    if all {
        node.ok(&["pull", &scene.reference]);
    }
    let old = scene.mount();
    assert_eq!(scene.status_of(&old)["path"], if all { "plain" } else { "erofs" });
    assert!(scene.read(&old, 1).unwrap());
    let segments = scene.segments();
    let whole: Vec<_> = segments.iter().map(|path| fs::read(path).unwrap()).collect();
    segments.iter().for_each(|path| damage(path));
    let outcome = node.run(&["verify", &scene.reference]);
    assert!(outcome.status.success() && outcome.stderr.contains("must be made anew"), "{outcome:?}");
    for (path, whole) in segments.iter().zip(&whole) {
        assert!(fs::read(path).unwrap() == *whole, "{} is not healed", path.display());
    }
    assert_eq!(scene.status_of(&old)["stale"], true);
    assert!(node.ok(&["status"]).contains("mount it anew"));
    let new = scene.mount();
    scene.assert_right(&new);
    assert_eq!(scene.status_of(&new)["stale"], false);
    node.umount(&new);

    // Whoever takes the mounts over knows which are out of date.
    scene.kill_all();
    let new = scene.mount();
    scene.assert_right(&new);
    assert_eq!(scene.status_of(&old)["stale"], true, "{}", node.status());
    assert_eq!(scene.status_of(&new)["stale"], false);
    // Nothing but the damage can be seen in the old one.
    for n in 0..4 {
        match scene.read(&old, n) {
            Ok(_) => {}
            Err(error) => assert_eq!(error.raw_os_error(), Some(EIO), "{error}"),
        }
    }
    node.umount(&old);
    node.umount(&new);
}

#[test]
fn segments_scribbled_under_a_complete_mount() {
    damaged_under_a_mount(scribble, 90, true);
}

#[test]
fn segments_scribbled_under_a_lazy_mount() {
    damaged_under_a_mount(scribble, 91, false);
}

#[test]
fn segments_cut_under_a_complete_mount() {
    damaged_under_a_mount(cut, 92, true);
}

#[test]
fn segments_cut_under_a_lazy_mount() {
    damaged_under_a_mount(cut, 93, false);
}

/// What somebody cuts is an errno at once, and never zeros: the size of a file is its claim.
#[test]
fn what_is_cut_is_an_errno_on_the_mount_that_has_it() {
    let scene = Scene::new(kernel_node!(CONFIG), 94);
    let at = scene.mount();
    scene.assert_right(&at);
    scene.segments().iter().for_each(|path| cut(path));
    for n in 0..4 {
        match scene.read(&at, n) {
            Ok(right) => assert!(right),
            Err(error) => assert_eq!(error.raw_os_error(), Some(EIO)),
        }
    }
    scene.node.umount(&at);
}

#[test]
fn after_an_unclean_shutdown_a_scribbled_segment_is_found_by_the_next_mount() {
    let scene = Scene::new(kernel_node!(CONFIG), 95);
    let node = &scene.node;
    let at = scene.mount();
    assert!(scene.read(&at, 1).unwrap());
    node.umount(&at);
    let damaged = |at: Option<&Path>| {
        scene.kill_all();
        // As after a power loss: nobody knows what the disk has. A lost session alone would be forgiven in this boot.
        fs::remove_file(node.store().join("SESSION")).unwrap();
        let segments = scene.segments();
        fs::remove_file(segments[0].with_file_name("state")).unwrap();
        assert!(!segments.is_empty());
        segments.iter().for_each(|path| scribble(path));
        let new = scene.mount();
        for n in 0..2 {
            assert!(scene.read(&new, n).unwrap(), "other bytes");
        }
        assert!(node.log().contains("a segment was lost in a crash"), "{}", node.log());
        if let Some(at) = at {
            assert_eq!(scene.status_of(at)["stale"], true, "{}", node.status());
        }
        new
    };
    let at = damaged(None);
    // Under a mount as well: a record can be lost while the kernel lives.
    let new = damaged(Some(&at));
    node.umount(&at);
    scene.assert_right(&new);
    node.umount(&new);
}

#[test]
fn a_metadata_image_damaged_under_a_mount_is_made_again_for_the_next() {
    let scene = Scene::new(kernel_node!(CONFIG), 96);
    let node = &scene.node;
    let meta = || {
        let files = fs::read_dir(node.store().join("meta")).unwrap().map(|entry| entry.unwrap().path());
        files.into_iter().find(|path| path.extension().is_none()).unwrap()
    };
    let old = scene.mount();
    assert!(scene.read(&old, 0).unwrap());
    let whole = fs::read(meta()).unwrap();
    // While it is not mounted.
    node.umount(&old);
    node.stop();
    scribble(&meta());
    let old = scene.mount();
    assert!(fs::read(meta()).unwrap() == whole, "not healed");
    assert!(scene.read(&old, 1).unwrap());
    // While it is mounted, and whoever mounted it dies.
    scribble(&meta());
    scene.kill_all();
    let new = scene.mount();
    assert!(fs::read(meta()).unwrap() == whole, "not healed");
    scene.assert_right(&new);
    assert!(node.status()["alerts"].to_string().contains("not served"), "{}", node.status());
    node.umount(&new);
    node.umount(&old);
}

#[test]
fn a_full_disk_is_an_errno_and_over_when_there_is_room_again() {
    // Just to know that such disks can be made.
    drop(kernel_node!(CONFIG));
    // A layer for each file: none is fetched ahead of the reader of another.
    let node = Node::on(Kind::Ext4, 32 << 20, CONFIG);
    let scene = Scene::of(node, 97, &image::layered(97, 4, LEN));
    let node = &scene.node;
    let at = scene.mount();
    assert!(scene.read(&at, 0).unwrap());
    for round in 1..3 {
        let filler = node.store().join("filler");
        let file = File::create(&filler).unwrap();
        // Twice: blocks that were freed a moment ago can be had only after the journal was written.
        for _ in 0..2 {
            let mut left = 1 << 20;
            while left > 0 {
                // Ends with the last block.
                if std::io::Write::write_all(&mut &file, &vec![7; left]).is_err() {
                    left /= 2;
                }
            }
            let _ = file.sync_all(); // what could be written, is
        }
        drop(file);
        let error = scene.read(&at, round + 1).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
        fs::remove_file(filler).unwrap();
        until("what was missing can be read", || scene.read(&at, round + 1).is_ok());
        assert!(scene.read(&at, round + 1).unwrap(), "other bytes");
        assert!(scene.read(&at, 0).unwrap());
    }
    scene.assert_right(&at);
    assert_eq!(scene.node.files("tmp"), 0);
    scene.node.umount(&at);
}

fn stands_on(kind: Kind, size: u64, seed: u64) {
    drop(kernel_node!(CONFIG));
    if !kind.can_be_made() {
        testkit::skip!("there is no mkfs for {kind:?}");
    }
    let mut scene = Scene::new(Node::on(kind, size, CONFIG), seed);
    mount::erofs::trial(&scene.node.store()).unwrap();
    let at = scene.mount();
    assert_eq!(scene.status_of(&at)["path"], "erofs");
    assert!(scene.read(&at, 0).unwrap());
    // It is as lazy, and as safe, as on ext4.
    scene.kill_all();
    scene.registry.down();
    assert!(scene.read(&at, 0).unwrap());
    assert_eq!(scene.read(&at, 2).unwrap_err().raw_os_error(), Some(EIO));
    scene.registry.up();
    scene.node.status();
    scene.assert_right(&at);
    until("it is complete", || scene.status_of(&at)["path"] == "plain");
    scene.node.umount(&at);
    // Past the page cache, too.
    let at = scene.mount();
    scene.assert_right(&at);
    scene.node.umount(&at);
}

#[test]
fn a_store_on_xfs_is_read_by_the_kernel() {
    stands_on(Kind::Xfs, 400 << 20, 98);
}

#[test]
fn a_store_on_btrfs_is_read_by_the_kernel() {
    stands_on(Kind::Btrfs, 400 << 20, 99);
}
