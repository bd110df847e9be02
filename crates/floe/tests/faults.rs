//! What registries and networks do wrong while an image is mounted or pulled. Never wrong bytes, never a fault that
//! sticks, always a word about what it was.
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

use format::Digest;
use rustix::process::Signal;
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use support::{Node, until};
use testkit::faulty::{Fault, Faulty, Guard};
use testkit::tar::{Archive, Entry, Variant};

/// Nothing here needs more; what must fail, fails before.
const QUICK: &str = "[fetch]\ndeadline_seconds = 60\n";

/// A misbehaving registry with one image and its index.
struct Scene {
    server: Faulty,
    image: TestImage,
    blob: String,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let (server, image) = (Faulty::start(), image::simple(seed, 2));
        image.put(&server, "app", "v1");
        let blob = image::blob_path("app", &image.layers[0].digest());
        Self { server, image, blob }
    }

    fn indexed(seed: u64) -> Self {
        let scene = Self::new(seed);
        image::refer(&scene.server, &scene.image, &image::index_of(&scene.image.layers[0]).encode());
        scene
    }

    fn reference(&self) -> String {
        format!("{}/app:v1", self.server.host())
    }
}

fn big(seed: u64, n: u64) -> Vec<u8> {
    image::noise(seed * 1000 + n, 1_500_000)
}

fn status(code: u16, retry_after: &str) -> Fault {
    Fault::Status { code, retry_after: Some(retry_after.into()) }
}

/// Returns the errno of a read that must fail.
fn errno(path: &Path) -> i32 {
    match support::read(path) {
        Ok(bytes) => panic!("{} could be read: {} bytes", path.display(), bytes.len()),
        Err(error) => error.raw_os_error().unwrap_or_else(|| panic!("{error}")),
    }
}

const EIO: i32 = 5;

#[test]
fn a_reader_does_not_notice_passing_faults() {
    let node = node!(QUICK);
    let scene = Scene::indexed(20);
    let evil = image::noise(99, scene.image.layers[0].blob.len());
    for (fault, times) in [
        (Fault::Close { after: 70_000 }, 2),
        (Fault::Hangup, 1),
        (Fault::IgnoreRange, 3),
        (Fault::ShiftRange { by: 77 }, 1),
        (Fault::ShortRange { len: 10_000 }, 4),
        (Fault::Length { says: 1 << 40 }, 1),
        (Fault::Length { says: 12 }, 1),
        (Fault::Swap(evil), 1),
        (status(429, "1"), 1),
        (status(503, "0"), 2),
        (Fault::Status { code: 500, retry_after: None }, 1),
    ] {
        let at = node.mount(&scene.reference());
        let before = scene.server.count(&scene.blob);
        scene.server.fault(&scene.blob, fault.clone(), times);
        for n in 0..2 {
            let read = support::read(&at.join(format!("data/{n}")));
            let read = read.unwrap_or_else(|error| panic!("{fault:?}: {error}\n{}", node.log()));
            assert!(read == big(20, n), "wrong bytes after {fault:?}");
        }
        assert!(scene.server.count(&scene.blob) > before, "{fault:?}: nothing was asked");
        scene.server.heal();
        // The next fault needs something that is not here.
        node.umount(&at);
        node.ok(&["rm", &scene.reference()]);
        node.ok(&["gc"]);
        assert_eq!(node.files("device"), 0);
    }
}

#[test]
fn lasting_faults_are_an_errno_and_are_over_when_they_are_over() {
    let node = node!(QUICK);
    let scene = Scene::indexed(21);
    let at = node.mount(&scene.reference());
    let path = |n: u64| at.join(format!("data/{n}"));
    let evil = image::noise(98, scene.image.layers[0].blob.len());
    for fault in [Fault::Swap(evil), status(404, "0"), status(403, "0"), Fault::ShiftRange { by: 5 }] {
        scene.server.fault(&scene.blob, fault.clone(), u32::MAX);
        assert_eq!(errno(&path(0)), EIO, "{fault:?}");
        scene.server.heal();
    }
    for n in 0..2 {
        // What was begun before may still fail; what is begun now does not.
        until("the file can be read", || support::read(&path(n)).is_ok());
        assert!(fs::read(path(n)).unwrap() == big(21, n));
    }
}

#[test]
fn a_registry_goes_and_comes_back() {
    let node = node!(QUICK);
    let mut registry = Embedded::start(&node.path("registry"));
    let image = image::simple(22, 3);
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    node.ok(&["index", "--push", &reference]);

    let second = Node::new(QUICK);
    let at = second.mount(&reference);
    assert!(fs::read(at.join("data/0")).unwrap() == big(22, 0));
    registry.down();
    assert!(fs::read(at.join("data/0")).unwrap() == big(22, 0), "what is here stays readable");
    assert_eq!(errno(&at.join("data/2")), EIO);
    let complaint = second.fails(&["pull", &reference]);
    assert!(complaint.contains("127.0.0.1"), "{complaint}");
    registry.up();
    let read = support::read(&at.join("data/2"));
    let read = read.unwrap_or_else(|error| {
        panic!("{error}: {}\n{}", fs::read_to_string("/proc/self/mountinfo").unwrap(), second.log())
    });
    assert!(read == big(22, 2), "errors do not stick");
    second.ok(&["pull", &reference]);
}

#[test]
fn a_first_pull_survives_what_passes_and_names_what_lasts() {
    let node = node!(QUICK);
    let scene = Scene::new(23);
    let layer = scene.image.layers[0].digest().to_string();
    let mount_point = node.mount_point();
    let reference = scene.reference();
    let mount = ["mount", "--no-background", &reference, mount_point.to_str().unwrap()];
    scene.server.fault(&scene.blob, status(404, "0"), u32::MAX);
    let complaint = node.fails(&mount);
    assert!(complaint.contains(&layer) && complaint.contains("not found"), "{complaint}");
    scene.server.heal();
    let locked = Scene::new(23);
    locked.server.guard(Guard::Basic("user:secret".into()));
    let complaint = node.fails(&["mount", &locked.reference(), mount_point.to_str().unwrap()]);
    assert!(complaint.contains(&locked.server.host()) && complaint.contains("login"), "{complaint}");
    assert_eq!(node.files("refs") + node.files("index") + node.files("device"), 0);

    scene.server.fault(&scene.blob, Fault::Close { after: 500_000 }, 1);
    scene.server.fault(&scene.blob, status(503, "1"), 1);
    scene.server.fault(&scene.blob, Fault::IgnoreRange, 1);
    node.ok(&mount);
    for n in 0..2 {
        assert!(fs::read(mount_point.join(format!("data/{n}"))).unwrap() == big(23, n));
    }
}

#[test]
fn an_interrupted_pull_leaves_a_store_that_works() {
    let scene = Scene::new(24);
    let node = node!(&format!("{QUICK}[registry.\"{}\".budgets]\nstall = 2\n", scene.server.host()));
    let reference = scene.reference();
    node.ok(&["status"]);
    // A third of the layer at a time and then nothing for two seconds, so that the interrupt comes first.
    scene.server.fault(&scene.blob, Fault::Stall { after: 1_000_000 }, u32::MAX);
    for n in 1..=3 {
        let pull = node.spawn(node.command(&["pull", &reference]));
        until("the layer is asked for", || scene.server.count(&scene.blob) >= n);
        pull.signal(Signal::INT);
        let outcome = pull.end();
        assert!(
            support::killed_by(outcome.status) == Some(2) || outcome.status.code() == Some(130),
            "{outcome:?}"
        );
        assert_eq!(node.files("refs"), 0);
    }
    scene.server.heal();
    let report = node.json(&["pull", &reference]);
    assert_eq!(report["layers"][0]["proved"], true);
    node.ok(&["verify", &reference]);
    node.stop();
    assert_eq!(node.files("tmp"), 0);
}

/// A registry that takes the connection, sends some bytes and then nothing, first now and then, then for good.
#[test]
fn a_registry_that_stalls_is_given_up_named_and_asked_again() {
    let scene = Scene::indexed(28);
    let host = scene.server.host();
    let node = node!(&format!("[registry.\"{host}\".budgets]\nstall = 0.5\nretries = 2\nretry_min = 0.01\n"));
    let layer = scene.image.layers[0].digest().to_string();
    let reference = scene.reference();
    let at = node.mount(&reference);
    let path = |n: u64| at.join(format!("data/{n}"));
    for after in [0, 1, 70_000] {
        scene.server.fault(&scene.blob, Fault::Stall { after }, 1);
    }
    assert!(fs::read(path(0)).unwrap() == big(28, 0), "a stall that passes is not noticed");

    scene.server.fault(&scene.blob, Fault::Stall { after: 1000 }, u32::MAX);
    assert_eq!(errno(&path(1)), EIO);
    let words = [&*host, &*layer, "nothing came for 0.5 s"];
    let named = |text: &str| words.iter().all(|word| text.contains(word));
    assert!(named(&node.log()), "{}", node.log());
    let complaint = node.fails(&["pull", &reference]);
    assert!(named(&complaint), "{complaint}");
    assert!(fs::read(path(0)).unwrap() == big(28, 0), "what is here stays readable");
    scene.server.heal();
    until("the file can be read", || support::read(&path(1)).is_ok());
    assert!(fs::read(path(1)).unwrap() == big(28, 1));

    // Before there is an image nothing can be read, but all can be told.
    let fresh = Node::new(&fs::read_to_string(node.path("config.toml")).unwrap());
    let image = image::simple(29, 1);
    image.put(&scene.server, "app", "v2");
    let reference = format!("{host}/app:v2");
    let (blob, config) = (image.layers[0].digest(), Digest::of(&image.config));
    for (path, word) in [
        ("/v2/app/manifests/v2".to_owned(), "app:v2".to_owned()),
        (image::blob_path("app", &config), config.to_string()),
        (image::blob_path("app", &blob), blob.to_string()),
    ] {
        scene.server.fault(&path, Fault::Stall { after: 10 }, u32::MAX);
        let complaint = fresh.fails(&["pull", &reference]);
        for word in [&*host, &*word, "nothing came for 0.5 s"] {
            assert!(complaint.contains(word), "{word}: {complaint}");
        }
        scene.server.heal();
    }
    assert_eq!(fresh.json(&["pull", &reference])["layers"][0]["proved"], true);
    assert_eq!(fresh.files("tmp"), 0);
}

#[test]
fn thirty_two_readers_of_one_range_are_one_request() {
    let node = node!(QUICK);
    let scene = Scene::indexed(26);
    let at = node.mount(&scene.reference());
    let path: PathBuf = at.join("data/1");
    scene.server.hold();
    let readers: Vec<_> = (0..32)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || {
                let mut page = vec![0; 4096];
                let file = fs::File::open(path).unwrap();
                std::os::unix::fs::FileExt::read_exact_at(&file, &mut page, 8192).unwrap();
                page
            })
        })
        .collect();
    scene.server.wait_for(1);
    scene.server.release();
    for reader in readers {
        assert!(reader.join().unwrap() == big(26, 1)[8192..12_288]);
    }
    assert_eq!(scene.server.seen().iter().filter(|seen| seen.path == scene.blob).count(), 1);
}

/// What no image may hold, each with the word that has to be in the complaint.
#[test]
fn layers_that_reach_out_of_their_tree_are_refused_by_name_and_harm_nobody_else() {
    let node = node!(QUICK);
    let good = Scene::new(27);
    let at = node.mount(&good.reference());
    let long = "n".repeat(256);
    let bad: [(Vec<Entry>, &str); 5] = [
        (vec![Entry::file("../../etc/passwd", b"x")], "../../etc/passwd"),
        (vec![Entry::file(format!("dir/{long}"), b"x")], &long[..200]),
        (vec![Entry::symlink("a", "b"), Entry::symlink("b", "a"), Entry::file("a/file", b"x")], "a/file"),
        (vec![Entry::file("file", b"x"), Entry::file("file/below", b"x")], "file/below"),
        (vec![Entry::link("name", "../outside")], "name"),
    ];
    for (entries, word) in bad {
        let image = TestImage::new(vec![Layer::of(&entries, Pack::Gzip)], &serde_json::json!({}));
        let server = Faulty::start();
        image.put(&server, "app", "v1");
        let point = node.mount_point();
        let complaint = node.fails(&["mount", &format!("{}/app:v1", server.host()), point.to_str().unwrap()]);
        assert!(complaint.contains(word), "{word}: {complaint}");
        assert!(complaint.contains(&image.layers[0].digest().to_string()), "{complaint}");
        assert_eq!(fs::read_dir(&point).unwrap().count(), 0);
    }
    assert_eq!(node.files("refs"), 1, "of the good one");
    assert!(fs::read(at.join("data/0")).unwrap() == big(27, 0));
}

#[test]
fn a_gzip_bomb_is_refused_before_it_fills_anything() {
    let node = node!(QUICK);
    // A gibibyte of zeros out of a megabyte, as tight as deflate can pack it.
    let bomb = Archive::of(&[Entry::file("zeros", vec![0; 64 << 20])], Variant::Gnu).tar;
    let once = sys::deflate::compress(&bomb, sys::inflate::Wrap::Gzip, 9).unwrap();
    let mut layer = Layer::new(bomb, Pack::Gzip);
    // Sixteen members of it: what comes out is no tar of one file, and its digest is another.
    layer.blob = once.repeat(16).into();
    let image = TestImage::new(vec![layer], &serde_json::json!({}));
    let server = Faulty::start();
    image.put(&server, "app", "v1");
    let complaint = node.fails(&["pull", &format!("{}/app:v1", server.host())]);
    assert!(complaint.contains(&image.layers[0].digest().to_string()), "{complaint}");
    for dir in ["tmp", "device", "index", "refs"] {
        assert_eq!(node.files(dir), 0, "{dir}");
    }
}

#[test]
fn many_readers_of_one_file_are_one_request() {
    let node = node!(QUICK);
    let scene = Scene::indexed(25);
    let at = node.mount(&scene.reference());
    let path: PathBuf = at.join("data/1");
    scene.server.hold();
    let readers: Vec<_> = (0..16)
        .map(|_| {
            let path = path.clone();
            std::thread::spawn(move || fs::read(path).unwrap())
        })
        .collect();
    scene.server.wait_for(1);
    scene.server.release();
    for reader in readers {
        assert!(reader.join().unwrap() == big(25, 1));
    }
    let mut ranges: Vec<_> = scene
        .server
        .seen()
        .into_iter()
        .filter(|seen| seen.path == scene.blob)
        .map(|seen| seen.range.unwrap())
        .collect();
    let asked = ranges.len();
    ranges.sort_by_key(|range| range.start);
    ranges.dedup();
    assert_eq!(ranges.len(), asked, "a range was asked for twice");
    assert!(asked <= 4, "{ranges:?}");
}

#[test]
fn a_registry_gets_no_more_requests_than_its_section_says() {
    let scene = Scene { image: image::simple(28, 6), ..Scene::new(28) };
    scene.image.put(&scene.server, "app", "v1");
    image::refer(&scene.server, &scene.image, &image::index_of(&scene.image.layers[0]).encode());
    let blob = image::blob_path("app", &scene.image.layers[0].digest());
    let node =
        node!(&format!("{QUICK}[registry.{:?}.budgets]\nin_flight = 2\nretries = 0\n", scene.server.host()));
    let at = node.mount(&scene.reference());

    // A fault that passes is one to the reader all the same, because nothing is asked twice.
    scene.server.fault(&blob, status(500, "0"), u32::MAX);
    assert_eq!(errno(&at.join("data/0")), EIO);
    assert_eq!(node.status()["traffic"]["retries"], 0);
    scene.server.heal();

    scene.server.hold();
    let readers: Vec<_> = (0..6)
        .map(|n| {
            let path = at.join(format!("data/{n}"));
            std::thread::spawn(move || {
                until("the file can be read", || support::read(&path).is_ok()); // the fault may still be told
                assert!(fs::read(path).unwrap() == big(28, n));
            })
        })
        .collect();
    scene.server.wait_for(2);
    scene.server.release();
    readers.into_iter().for_each(|reader| reader.join().unwrap());
    assert_eq!(scene.server.peak(), 2);

    // What makes no sense is said before anything is done.
    let host = scene.server.host();
    for (line, key) in
        [("in_flight = 0", "in_flight"), ("per_second = 10001", "per_second"), ("burst = 1", "burst")]
    {
        let node = Node::new(&format!("[registry.{host:?}.budgets]\n{line}\n"));
        let outcome = node.run(&["status"]);
        assert!(!outcome.status.success() && outcome.stderr.contains(key), "{line}: {outcome:?}");
    }
}
