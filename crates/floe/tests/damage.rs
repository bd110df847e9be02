//! Files of the store that a disk has changed: cut short, or with another bit. What is read is right or an error, it is
//! told, and it heals. Small records are in `machine.rs`, every byte of the others in the store's own tests.
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

use support::image::{self, TestImage};
use support::servers::Embedded;
use support::{Node, until};

/// What happens to a file.
#[derive(Debug, Clone, Copy)]
enum Damage {
    Cut(u64),
    Flip(u64),
}

impl Damage {
    /// Returns some of each for a file of this length.
    fn some(len: u64) -> Vec<Self> {
        let mut cuts = vec![0, 1, len / 2 / 4096 * 4096, len - 1];
        cuts.dedup();
        let cuts = cuts.into_iter().map(Self::Cut);
        cuts.chain([0, len / 3, len - 1].map(Self::Flip)).collect()
    }

    fn strike(self, path: &Path) {
        let file = File::options().read(true).write(true).open(path).unwrap();
        match self {
            Self::Cut(len) => file.set_len(len).unwrap(),
            Self::Flip(at) => {
                let mut byte = [0];
                file.read_exact_at(&mut byte, at).unwrap();
                file.write_all_at(&[byte[0] ^ 0x20], at).unwrap();
            }
        }
    }
}

/// A node with one whole image, and what its store must look like.
struct Scene {
    node: Node,
    registry: Embedded,
    reference: String,
    image: TestImage,
    wanted: Vec<u8>,
}

impl Scene {
    fn new(node: Node, seed: u64, big: usize) -> Self {
        let registry = Embedded::start(&node.path("registry"));
        let reference = format!("{}/app:v1", registry.host());
        let image = image::simple(seed, big);
        image.push(&reference);
        node.ok(&["pull", &reference]);
        Self { node, registry, reference, image, wanted: image::noise(seed * 1000, 1_500_000) }
    }

    /// Returns the files below a directory of the store, without the records.
    fn files(&self, dir: &str) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.node.store().join(dir)).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.retain(|path| path.extension().is_none() && !path.ends_with("state"));
        files.sort();
        files
    }

    /// Returns the segments of the one layer.
    fn segments(&self) -> Vec<PathBuf> {
        let layer = self.files("device").remove(0);
        self.files(layer.strip_prefix(self.node.store()).unwrap().to_str().unwrap())
    }

    fn alerts(&self) -> String {
        self.node.status()["alerts"].to_string()
    }

    /// Asserts that the big file can be read and is right.
    fn assert_right(&self, what: &str) {
        let outcome = self.node.run(&["cat", &self.reference, "/data/0"]);
        assert!(outcome.stdout == self.wanted, "{what}: {} {}", outcome.status, outcome.stderr);
    }
}

#[test]
fn damaged_segments_are_found_named_and_fetched_again() {
    let scene = Scene::new(node!(), 70, 1);
    let (node, layer) = (&scene.node, scene.image.layers[0].digest().to_string());
    let segments = scene.segments();
    assert!(segments.len() > 2, "{segments:?}");
    for segment in &segments {
        let whole = fs::read(segment).unwrap();
        for damage in Damage::some(whole.len() as u64) {
            node.stop();
            damage.strike(segment);
            let what = format!("{damage:?} of {}", segment.display());
            // The size of a segment is its claim, so what is cut is missed without being asked.
            if let Damage::Cut(_) = damage {
                scene.assert_right(&what);
            }
            let outcome = node.run(&["verify", &scene.reference]);
            assert!(outcome.status.success(), "{what}: {outcome:?}");
            if let Damage::Flip(_) = damage {
                let number = segment.file_name().unwrap().to_str().unwrap();
                for told in [&outcome.stderr, &scene.alerts()] {
                    let named = told.contains(&layer) && told.contains(&format!("damaged on disk: {number}"));
                    assert!(named, "{what}: {told}");
                }
            }
            assert!(fs::read(segment).unwrap() == whole, "{what}: not healed");
            scene.assert_right(&what);
        }
    }
}

/// The mount once kept the cut file open, and what had long been mended stayed an error until it was mounted again.
#[test]
fn segments_that_are_cut_under_a_mount_are_an_error_until_they_are_mended() {
    let scene = Scene::new(node!(), 71, 3);
    let node = &scene.node;
    let at = node.mount(&scene.reference);
    let right = |n: u64| image::noise(71_000 + n, 1_500_000);
    assert!(fs::read(at.join("data/0")).unwrap() == right(0));
    let segments = scene.segments();
    let whole: Vec<_> = segments.iter().map(|segment| fs::read(segment).unwrap()).collect();
    for (segment, whole) in segments.iter().zip(&whole) {
        Damage::Cut(whole.len() as u64 / 2).strike(segment);
    }
    let mut failed = 0;
    for n in 0..3 {
        match support::read(&at.join(format!("data/{n}"))) {
            Ok(read) => assert!(read == right(n), "other bytes"),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(5), "{error}");
                failed += 1;
            }
        }
    }
    assert!(failed > 0);
    assert!(node.log().contains("a read failed: reading a segment's file"), "{}", node.log());
    let outcome = node.run(&["verify", &scene.reference]);
    assert!(outcome.status.success() && outcome.stderr.contains("damaged on disk"), "{outcome:?}");
    for n in 0..3 {
        let path = at.join(format!("data/{n}"));
        until("the file can be read", || support::read(&path).is_ok());
        assert!(fs::read(path).unwrap() == right(n));
    }
    assert!(segments.iter().zip(&whole).all(|(segment, whole)| fs::read(segment).unwrap() == *whole));
}

/// Not that anybody should, under a daemon; but verify once ended at the first of them, and mended nothing.
#[test]
fn segments_that_are_removed_under_a_mount_come_back() {
    let scene = Scene::new(node!(), 75, 1);
    let node = &scene.node;
    let at = node.mount(&scene.reference);
    let segments = scene.segments();
    segments.iter().for_each(|segment| fs::remove_file(segment).unwrap());
    let outcome = node.run(&["verify", &scene.reference]);
    assert!(outcome.status.success() && outcome.stderr.contains("damaged on disk: 0, 1, "), "{outcome:?}");
    assert_eq!(scene.segments(), segments);
    assert!(fs::read(at.join("data/0")).unwrap() == scene.wanted);
    scene.assert_right("removed");
}

#[test]
fn a_damaged_index_is_named_and_made_again() {
    let mut scene = Scene::new(node!(), 72, 1);
    let index = scene.files("index").remove(0);
    let whole = fs::read(&index).unwrap();
    let damages = Damage::some(whole.len() as u64);
    for damage in &damages {
        scene.node.stop();
        damage.strike(&index);
        let what = format!("{damage:?}");
        scene.assert_right(&what);
        let name = index.file_name().unwrap().to_str().unwrap();
        assert!(scene.alerts().contains(name), "{what}: {}", scene.alerts());
        assert!(fs::read(&index).unwrap() == whole, "{what}: not healed");
    }
    // Where it cannot be made again, that is an error and no other bytes, and it is over when the registry is back.
    scene.node.stop();
    damages[0].strike(&index);
    scene.registry.down();
    let complaint = scene.node.fails(&["cat", &scene.reference, "/data/0"]);
    assert!(complaint.contains("127.0.0.1"), "{complaint}");
    scene.registry.up();
    scene.assert_right("back");
}

#[test]
fn a_damaged_metadata_image_is_made_again_without_the_registry() {
    let mut scene = Scene::new(node!(), 73, 1);
    let meta = scene.files("meta").remove(0);
    let sum = meta.with_extension("sum");
    scene.registry.down();
    let names = scene.node.ok(&["ls", &scene.reference, "/data"]);
    for file in [&meta, &sum] {
        let whole = fs::read(file).unwrap();
        for damage in Damage::some(whole.len() as u64) {
            scene.node.stop();
            damage.strike(file);
            let what = format!("{damage:?} of {}", file.display());
            assert_eq!(scene.node.ok(&["ls", &scene.reference, "/data"]), names, "{what}");
            scene.assert_right(&what);
            assert!(fs::read(file).unwrap() == whole, "{what}: not healed");
        }
    }
    assert!(scene.node.log().contains(meta.to_str().unwrap()), "{}", scene.node.log());
}
