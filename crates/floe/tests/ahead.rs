//! What whoever made an image says that a start reads: eStargz's landmark, Nydus' prefetch table, and what Floe
//! says of zstd:chunked. SOCI's list is in `soci.rs`.
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
use std::time::Duration;

use format::Digest;
use serde_json::{Value, json};
use support::Node;
use support::image::{self, Layer, Pack, TestImage, blob_path, noise};
use support::servers::Embedded;
use testkit::faulty::Faulty;
use testkit::tar::Entry;

/// Bytes of each of the large files, and how many there are.
const FILE: u64 = 700_000;
const FILES: u64 = 11;

/// The two that are read first: neither the first of the layer, nor neighbours.
const FIRST: [u64; 2] = [9, 4];

fn content(file: u64) -> Vec<u8> {
    noise(file, usize::try_from(FILE).unwrap())
}

/// Returns an image that can run and needs nothing of its lower layer for that.
fn image() -> Option<TestImage> {
    let runnable = image::runnable(&json!({})).filter(|_| support::program("runc").is_some())?;
    let files = (0..FILES).map(|n| Entry::file(format!("data/f{n}"), content(n)));
    let below: Vec<_> = [Entry::dir("data/")].into_iter().chain(files).collect();
    let layers = vec![Layer::of(&below, Pack::Gzip), runnable.layers[0].clone()];
    Some(TestImage::new(layers, &json!({ "Env": ["PATH=/bin"] })))
}

/// Makes an image in which some files come first, at a server that keeps what it is asked for; returns what its lower layer became.
fn ordered(node: &Node, image: &TestImage, server: &Faulty, format: &str) -> Digest {
    let registry = Embedded::start(&node.path("registry"));
    let from = format!("{}/app:v1", registry.host());
    image.push(&from);
    let file = |n: u64| json!({ "layer": 0, "path": format!("data/f{n}"), "size": FILE, "read": FILE });
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id().to_string()).collect();
    let files = FIRST.map(file);
    let profile = json!({ "version": 1, "layers": [], "segments": [], "diff_ids": diff_ids, "files": files });
    let order = node.fresh("order");
    fs::write(&order, profile.to_string()).unwrap();
    let (to, order) = (format!("docker://{}/app:v1", server.host()), order.to_str().unwrap());
    let report = node.json(&["optimize", &from, &to, "--format", format, "--profile", order]);
    let of = |layer: &&Value| layer["from"] == image.layers[0].digest().to_string();
    let found = report["layers"].as_array().unwrap().iter().find(of).unwrap();
    found["to"].as_str().unwrap().parse().unwrap()
}

/// Starts an image that reads nothing of its lower layer, and looks what has come of that.
fn what_is_listed_comes_by_itself(format: &str) {
    let first = node!();
    let Some(image) = image() else { testkit::skip!("there is no busybox, or no runc") };
    let server = Faulty::start();
    server.take_uploads();
    let layer = blob_path("app", &ordered(&first, &image, &server, format));
    let reference = match format {
        "nydus" => {
            format!("{}/app@{}", server.host(), image::nydus_of(&format!("{}/app:v1", server.host())))
        }
        _ => format!("{}/app:v1", server.host()),
    };
    let before = server.seen().len();
    let node = Node::new("");
    let run = ["run", "--no-background", "--timings", "--ready", "exit", &reference, "--", "/bin/true"];
    let outcome = node.run(&run);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}\n{}", node.log());
    // The table of a layer of eStargz is behind all files.
    let end = FILE * FIRST.len() as u64 + (1 << 20);
    let ranges = || -> Vec<_> {
        let seen = server.seen().split_off(before);
        let of = seen.into_iter().filter(|seen| seen.path == layer && seen.method == "GET");
        of.map(|seen| seen.range.unwrap()).filter(|range| range.start < FILE * (FILES - 1)).collect()
    };
    support::until("what is listed is here", || {
        ranges().iter().map(|range| range.end - range.start).sum::<u64>() >= FILE * FIRST.len() as u64
    });
    support::until("all that was asked for is here", || {
        let received = node.received();
        std::thread::sleep(Duration::from_millis(500));
        node.received() == received
    });
    assert!(ranges().iter().all(|range| range.end < end), "no more than is listed: {:?}", ranges());

    let at = node.mount(&reference);
    let received = node.received();
    for n in FIRST {
        assert!(fs::read(at.join(format!("data/f{n}"))).unwrap() == content(n), "{n}");
    }
    assert_eq!(node.received(), received, "it was here before it was read");
    assert!(fs::read(at.join("data/f10")).unwrap() == content(10));
    assert!(node.received() > received + FILE / 2, "and nothing else was");
    node.umount(&at);
}

#[test]
fn what_comes_before_a_landmark_is_fetched_when_an_image_starts() {
    what_is_listed_comes_by_itself("estargz");
}

#[test]
fn what_a_descriptor_says_is_fetched_when_an_image_starts() {
    what_is_listed_comes_by_itself("zstdchunked");
}

#[test]
fn what_is_in_a_prefetch_table_is_fetched_when_an_image_starts() {
    what_is_listed_comes_by_itself("nydus");
}
