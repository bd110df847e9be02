//! Upgrades: of another image only those chunks are fetched that nothing on the node has.
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
use std::path::Path;

use convert::recode::Target;
use serde_json::{Value, json};
use support::image::{Layer, Pack, TestImage, noise};
use support::servers::Embedded;
use support::{Node, until};
use testkit::dump;
use testkit::tar::Entry;

/// Files of 600 kB, each in segments of its own.
fn data(files: impl IntoIterator<Item = u64>) -> Vec<Entry> {
    let file = |n| Entry::file(format!("data/{n}"), noise(5000 + n, 600_000));
    [Entry::dir("data/")].into_iter().chain(files.into_iter().map(file)).collect()
}

fn image(layers: &[&[Entry]]) -> TestImage {
    TestImage::new(layers.iter().map(|entries| Layer::of(entries, Pack::Gzip)).collect(), &json!({}))
}

fn push(registry: &Embedded, tag: &str, image: &TestImage) -> String {
    let reference = format!("{}/app:{tag}", registry.host());
    image.push(&reference);
    reference
}

/// Stores an image under a tag, with its index, made by another node; returns the reference.
fn indexed(registry: &Embedded, tag: &str, image: &TestImage) -> String {
    let reference = push(registry, tag, image);
    Node::new("").ok(&["index", "--push", &reference]);
    reference
}

fn taken(report: &Value) -> u64 {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["taken"].as_u64().unwrap()).sum()
}

fn proved(report: &Value) -> bool {
    report["layers"].as_array().unwrap().iter().all(|layer| layer["proved"] == true)
}

fn assert_same(node: &Node, mounted: &Path, image: &TestImage) {
    let wanted = image.extract(&node.fresh("extracted"));
    if let Some(difference) = dump::difference(&dump::disk(mounted).unwrap(), &wanted) {
        panic!("mounted is not extracted\n{difference}");
    }
}

/// Returns the bytes that a command makes the daemon receive.
fn cost(node: &Node, args: &[&str]) -> u64 {
    let before = node.received();
    node.ok(args);
    node.received() - before
}

/// What `diff` tells of an upgrade is what `pull` then fetches, in another layer, packed anew, in another order.
#[test]
fn an_upgrade_fetches_what_diff_tells() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let first = image(&[&data(0..4), &data(4..12)]);
    // Some are gone, some new, and what was below is above.
    let second = image(&[&data([7, 20, 4, 5, 6, 21]), &data([0, 1, 22, 2, 8, 23, 24, 9]), &data(0..4)]);
    let (v1, v2) = (indexed(&registry, "v1", &first), indexed(&registry, "v2", &second));
    let report = node.json(&["pull", &v1]);
    assert_eq!(taken(&report), 0, "{report}");

    let upgrade = node.run(&["--output", "json", "diff", &v1, &v2]).json()["upgrade"].clone();
    let told = upgrade["fetched"].as_u64().unwrap();
    assert_eq!(upgrade["new_chunk_bytes"], 5 * 600_000, "{upgrade}");
    let before = node.received();
    let report = node.json(&["pull", &v2]);
    let received = node.received() - before;
    assert!(proved(&report), "{report}");
    // What it takes to ask the registry what the tag means is no content.
    let asking = cost(&node, &["pull", &v2]);
    assert_eq!(received - asking, told, "{upgrade}");
    // A decoder may have to begin up to a mebibyte before what is wanted.
    assert!((5 * 600_000..6_000_000).contains(&told), "{told} of {}", second.packed());

    let taken = taken(&report);
    assert!(taken > 8 * 500_000, "{taken}");
    let status = node.status();
    assert_eq!(status["taken"].as_u64(), Some(taken), "{status}");
    assert!(node.ok(&["status"]).contains("taken from other layers "));
    assert!(node.ok(&["inspect", &v2]).contains(" taken from other layers\n"));
    let at = node.mount(&v2);
    assert_same(&node, &at, &second);
}

/// Where nothing is new, nobody has to be asked, by whichever path the image is read.
fn needs_no_network(node: &Node) {
    let mut registry = Embedded::start(&node.path("registry"));
    let second = image(&[&data([3, 1]), &data([5, 2])]);
    let v1 = indexed(&registry, "v1", &image(&[&data(0..6)]));
    let v2 = indexed(&registry, "v2", &second);
    node.ok(&["pull", &v1]);
    let at = node.mount(&v2);
    registry.down();
    let before = node.received();
    assert_same(node, &at, &second);
    assert_eq!(node.received(), before);
    // Nor does a daemon that has just begun, and has to read first what layers have.
    node.umount(&at);
    let v3 = {
        registry.up();
        let third = image(&[&data([4, 0])]);
        let v3 = indexed(&registry, "v3", &third);
        node.stop();
        let at = node.mount(&v3);
        registry.down();
        let before = node.received();
        node.ok(&["pull", &v3]);
        assert_same(node, &at, &third);
        assert_eq!(node.received(), before);
        node.umount(&at);
        v3
    };
    // Made anew whenever it is missing.
    fs::read_dir(node.store().join("known"))
        .unwrap()
        .for_each(|file| fs::remove_file(file.unwrap().path()).unwrap());
    node.ok(&["verify", &v3]);
    assert_eq!(node.files("known"), 1);
}

#[test]
fn what_is_known_needs_no_network_through_fuse() {
    needs_no_network(&node!("[mount]\npath = \"fuse\"\n"));
}

#[test]
fn what_is_known_needs_no_network_on_the_kernels_own_path() {
    needs_no_network(&kernel_node!("[mount]\npath = \"erofs\"\n"));
}

/// Formats that hash alike know each other's pieces: SHA-256 here.
#[test]
fn tables_of_contents_know_each_others_pieces() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let recoded = |files: &[u64], target| {
        let layer = Layer::of(&data(files.iter().copied()), Pack::Gzip);
        TestImage::new(vec![layer.recoded(target)], &json!({}))
    };
    let first = push(&registry, "v1", &recoded(&[0, 1, 2], Target::EStargz));
    let second = push(&registry, "v2", &recoded(&[2, 9, 1], Target::EStargz));
    let at = node.mount(&first);
    (0..3).for_each(|n| assert!(fs::read(at.join(format!("data/{n}"))).unwrap() == noise(5000 + n, 600_000)));
    let second_at = node.mount(&second);
    for (n, most) in [(1, 0), (2, 0), (9, 700_000)] {
        let before = node.received();
        let read = fs::read(second_at.join(format!("data/{n}"))).unwrap();
        assert!(read == noise(5000 + n, 600_000));
        assert!(node.received() - before <= most, "file {n}");
    }
}

/// Of a piece that reaches over several segments one has rotted: the whole piece comes from the registry.
#[test]
fn a_piece_whose_end_is_rotten_is_fetched() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let recoded = |files: &[u64]| {
        let layer = Layer::of(&data(files.iter().copied()), Pack::Gzip);
        TestImage::new(vec![layer.recoded(Target::EStargz)], &json!({}))
    };
    let first = push(&registry, "v1", &recoded(&[0, 1]));
    let upgrade = push(&registry, "v2", &recoded(&[1, 0]));
    let report = node.json(&["pull", &first]);
    let id = report["layers"][0]["index"].as_str().unwrap().trim_start_matches("blake3:").to_owned();
    let device = node.store().join("device").join(id);
    let numbers = fs::read_dir(&device)
        .unwrap()
        .filter_map(|file| file.unwrap().file_name().to_str()?.parse::<u32>().ok());
    let last = device.join(numbers.max().unwrap().to_string());
    let mut bytes = fs::read(&last).unwrap();
    bytes[0] ^= 1;
    fs::write(&last, &bytes).unwrap();
    let before = node.received();
    let at = node.mount(&upgrade);
    (0..2).for_each(|n| assert!(fs::read(at.join(format!("data/{n}"))).unwrap() == noise(5000 + n, 600_000)));
    assert!(node.received() - before > 600_000, "{}", node.received() - before);
}

/// A segment that has rotted is not believed, and what was fetched in its place is right.
#[test]
fn a_rotten_source_is_not_believed() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let second = image(&[&data([1, 0])]);
    let v1 = indexed(&registry, "v1", &image(&[&data(0..2)]));
    let v2 = indexed(&registry, "v2", &second);
    let report = node.json(&["pull", &v1]);
    let id = report["layers"][0]["index"].as_str().unwrap().trim_start_matches("blake3:").to_owned();
    let rotten = node.store().join("device").join(id).join("0");
    let mut bytes = fs::read(&rotten).unwrap();
    bytes[1000] ^= 1;
    fs::write(&rotten, &bytes).unwrap();
    let report = node.json(&["pull", &v2]);
    assert!(proved(&report) && taken(&report) > 0, "{report}");
    assert!(node.received() > 600_000, "{}", node.received());
    let at = node.mount(&v2);
    assert_same(&node, &at, &second);
    assert!(fs::read(&rotten).unwrap() == bytes, "left for `verify` to find");
}

/// Killed while segments are copied and fetched: the next one goes on, and the proof holds.
#[test]
fn a_daemon_that_dies_in_an_upgrade_costs_nothing_but_time() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let v1 = indexed(&registry, "v1", &image(&[&data(0..16)]));
    node.ok(&["pull", &v1]);
    for round in 0..6 {
        let files = (0..16).map(|n| if n % 3 == 0 { 100 * (round + 1) + n } else { 15 - n });
        let next = image(&[&data(files)]);
        let tag = indexed(&registry, &format!("next{round}"), &next);
        let before = node.files("device") + 3 * usize::try_from(round).unwrap();
        let mut pull = node.spawn(node.command(&["pull", &tag]));
        until("some of it is here", || {
            node.files("device") > before || pull.child.try_wait().unwrap().is_some()
        });
        node.kill_daemon();
        pull.end();
        let report = node.json(&["pull", &tag]);
        assert!(proved(&report), "{report}");
        assert!(node.status()["alerts"].as_array().unwrap().is_empty(), "{}", node.status());
        let at = node.mount(&tag);
        assert_same(&node, &at, &next);
        node.umount(&at);
    }
}
