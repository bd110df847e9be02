//! A store that is short of room: what goes, what stays, what pauses, and that readers notice nothing.
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
use std::io::Read;
use std::process::Stdio;

use serde_json::Value;
use support::servers::Embedded;
use support::{Node, image, until};

/// Pushes images of about 3 MB under names "image0:v1", …
fn push(registry: &Embedded, seeds: std::ops::Range<u64>) -> Vec<String> {
    let push = |seed| {
        let reference = format!("{}/image{seed}:v1", registry.host());
        image::simple(seed, 2).push(&reference);
        reference
    };
    seeds.map(push).collect()
}

/// Returns how many segments of an image the store has; asking is a use of the image.
fn local(node: &Node, reference: &str) -> u64 {
    node.json(&["inspect", reference])["layers"][0]["local"].as_u64().unwrap()
}

fn evicted(node: &Node) -> u64 {
    node.status()["room"]["evicted_layers"].as_u64().unwrap()
}

fn paused(status: &Value) -> Option<&str> {
    status["room"]["paused"].as_str()
}

#[test]
fn a_quota_is_kept_by_evicting_what_was_used_the_longest_ago() {
    let node = node!("[store]\nquota = \"8 MB\"\nreserve = 0\n");
    let registry = Embedded::start(&node.path("registry"));
    let images = push(&registry, 0..4);
    node.ok(&["pull", &images[0]]);
    node.ok(&["pull", &images[1]]);
    // The order of use survives the daemon.
    node.ok(&["ls", &images[0], "/"]);
    node.stop();
    node.ok(&["pull", &images[2]]);
    until("one image is evicted", || evicted(&node) == 1);
    let status = node.status();
    assert_eq!((paused(&status), &status["room"]["quota"]), (None, &Value::from(8_000_000)), "{status}");
    assert!(status["room"]["held"].as_u64().unwrap() <= 8_000_000, "{status}");
    assert!(local(&node, &images[0]) > 0 && local(&node, &images[2]) > 0);
    assert_eq!(local(&node, &images[1]), 0);

    // It starts as before, without being streamed anew, and its proof still stands.
    let report = node.json(&["inspect", &images[1]]);
    assert!(report["why"].as_str().unwrap().starts_with("lazy"), "{report}");
    assert_eq!(report["layers"][0]["proved"], true, "{report}");
    // What is mounted stays, even where it was used the longest ago.
    let at = node.mount(&images[1]);
    assert_eq!(fs::read(at.join("data/1")).unwrap(), image::noise(1001, 1_500_000));
    node.ok(&["pull", &images[0]]);
    node.ok(&["pull", &images[3]]);
    until("more is evicted", || evicted(&node) >= 2);
    assert_eq!(fs::read(at.join("data/1")).unwrap(), image::noise(1001, 1_500_000));
    assert!(node.status()["alerts"].as_array().unwrap().is_empty());
    node.umount(&at);
}

#[test]
fn a_pinned_image_stays_and_is_not_forgotten_by_accident() {
    let node = node!("[store]\nquota = \"8 MB\"\nreserve = 0\n");
    let registry = Embedded::start(&node.path("registry"));
    let images = push(&registry, 0..3);
    let complaint = node.fails(&["pin", &images[0]]);
    assert!(complaint.contains("is not in the store") && complaint.contains("floe pull"), "{complaint}");
    node.ok(&["pull", &images[0]]);
    node.ok(&["pin", &images[0]]);
    node.ok(&["pin", &images[0]]);
    let canonical = node.ok(&["pin"]);
    assert_eq!(canonical.lines().count(), 1);
    assert!(canonical.contains("image0:v1"), "{canonical}");
    let complaint = node.fails(&["rm", &images[0]]);
    assert!(complaint.contains("is pinned") && complaint.contains("floe pin --remove"), "{complaint}");
    assert!(node.ok(&["status"]).contains(&format!("pinned {canonical}")));

    // A kill loses neither the pin nor the order.
    node.kill_daemon();
    node.ok(&["pull", &images[1]]);
    node.ok(&["pull", &images[2]]);
    until("another image is evicted", || evicted(&node) == 1);
    assert!(local(&node, &images[0]) > 0);
    assert_eq!(local(&node, &images[1]), 0);
    assert_eq!(node.json(&["pin"])["images"][0], canonical.trim());

    node.ok(&["pin", "--remove", &images[0]]);
    assert!(node.fails(&["pin", "--remove", &images[0]]).contains("is not pinned"));
    assert_eq!(node.ok(&["pin"]), "");
    node.ok(&["rm", &images[0]]);
    node.ok(&["gc"]);
}

#[test]
fn an_image_larger_than_the_quota_is_read_to_its_end_while_the_background_waits() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = image::simple(7, 6);
    let reference = format!("{}/large:v1", registry.host());
    image.push(&reference);
    first.ok(&["index", "--push", &reference]);

    let node = Node::new("[store]\nquota = \"2 MiB\"\nreserve = 0\n");
    let at = node.mount(&reference);
    // Readers get everything, whatever the quota.
    for n in 0..3 {
        assert_eq!(fs::read(at.join(format!("data/{n}"))).unwrap(), image::noise(7000 + n, 1_500_000));
    }
    until("the background pauses", || paused(&node.status()).is_some());
    let status = node.status();
    let why = paused(&status).unwrap();
    assert!(why.contains("quota is 2.0 MB") && why.contains("nothing can be evicted"), "{why}");
    assert!(node.ok(&["status"]).contains(&format!("PAUSED what no reader waits for: {why}")));
    let complaint = node.fails(&["pull", &reference]);
    assert!(complaint.contains("its quota is 2.0 MB") && complaint.contains("[store]"), "{complaint}");

    // The rest is asked for from here on, and nothing more comes than what is read.
    let again = node.mount_point();
    node.ok(&["mount", &reference, again.to_str().unwrap()]);
    for n in 3..5 {
        assert_eq!(fs::read(again.join(format!("data/{n}"))).unwrap(), image::noise(7000 + n, 1_500_000));
    }
    until("the rest waits", || node.log().contains("fetching the rest waits until there is room"));
    assert!(node.received() < image.packed() * 95 / 100, "{} of {}", node.received(), image.packed());

    // Once nobody uses it, it makes room itself, and the pause is over.
    node.umount(&at);
    assert_eq!(evicted(&node), 0);
    node.umount(&again);
    until("there is room again", || paused(&node.status()).is_none());
    assert_eq!(evicted(&node), 1);
    let log = node.log();
    assert!(log.contains("room is short") && log.contains("there is room again"), "{log}");
    let at = node.mount(&reference);
    assert_eq!(fs::read(at.join("data/5")).unwrap(), image::noise(7005, 1_500_000));
}

#[test]
fn a_disk_that_others_fill_takes_its_reserve_back_and_the_rest_comes_when_there_is_room() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = image::simple(8, 4);
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    first.ok(&["index", "--push", &reference]);
    let others = push(&registry, 0..1);

    // The node's disk has 1 GiB.
    let node = Node::new("[store]\nreserve = \"1000 MiB\"\n");
    node.ok(&["pull", &others[0]]);
    assert_eq!(evicted(&node), 0);
    fs::write(node.store().join("of-somebody-else"), vec![1; 40 << 20]).unwrap();
    until("the background pauses", || paused(&node.status()).is_some());
    let status = node.status();
    assert!(paused(&status).unwrap().contains("are kept free"), "{status}");
    assert_eq!(status["room"]["evicted_layers"], 1, "{status}");
    assert_eq!(status["room"]["held"], 0, "{status}");

    let dir = node.mount_point();
    node.ok(&["mount", &reference, dir.to_str().unwrap()]);
    assert_eq!(fs::read(dir.join("data/0")).unwrap(), image::noise(8000, 1_500_000));
    fs::remove_file(node.store().join("of-somebody-else")).unwrap();
    until("the rest is here", || {
        let report = node.json(&["inspect", &reference]);
        report["layers"][0]["local"] == report["layers"][0]["segments"]
    });
    assert_eq!(paused(&node.status()), None);
}

#[test]
fn what_somebody_looks_into_is_not_evicted_before_its_end() {
    let node = node!("[store]\nquota = \"2 MiB\"\nreserve = 0\n");
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/large:v1", registry.host());
    image::simple(9, 4).push(&reference);

    let mut cat = node.command(&["cat", &reference, "/data/3"]);
    let mut cat = cat.stdout(Stdio::piped()).spawn().unwrap();
    let mut bytes = vec![0];
    let out = cat.stdout.as_mut().unwrap();
    out.read_exact(&mut bytes).unwrap();
    // It waits for us to read on, and too much is here meanwhile.
    until("nothing can be evicted", || paused(&node.status()).is_some());
    assert_eq!(evicted(&node), 0);
    out.read_to_end(&mut bytes).unwrap();
    assert!(cat.wait().unwrap().success());
    assert!(bytes == image::noise(9003, 1_500_000));
    until("it is evicted", || evicted(&node) == 1);
}
