//! The snapshotter: images started by a real containerd without their layers, and the service asked by hand.
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

use containerd::services::snapshots::v1 as api;
use format::{ChainId, DiffId, Digest};
use serde_json::json;
use support::containerd::{Containerd, Release};
use support::image::{self, TestImage};
use support::metrics::{address, ask, tells, value};
use support::servers::Embedded;
use support::{mounts_of, until};
use tonic::Code;

macro_rules! needs_containerd {
    ($release:expr) => {
        if let Some(why) = $release.cannot_run() {
            testkit::skip!("{why}");
        }
    };
}

fn image() -> Option<TestImage> {
    image::runnable(&json!({ "Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"] }))
}

/// Returns the chain IDs of an image's layers.
fn chain(image: &TestImage) -> Vec<String> {
    let ids: Vec<_> = image.layers.iter().map(|layer| DiffId::new(Digest::of(&layer.tar))).collect();
    (1..=ids.len()).map(|n| ChainId::of(&ids[..n]).unwrap().to_string()).collect()
}

fn sorted(mut names: Vec<String>) -> Vec<String> {
    names.sort();
    names
}

each_release!(
    an_image_runs_under_containerd_without_its_layers,
    an_image_of_file_systems_runs_under_containerd,
    two_snapshotters_of_one_daemon_do_not_touch_each_other,
);

fn an_image_runs_under_containerd_without_its_layers(release: Release) {
    let node = node!("[fetch]\nbackground = false\n");
    needs_containerd!(release);
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let mut containerd = Containerd::start(release, &node, &reference);
    containerd.pull(&reference);
    assert!(node.received() < image.packed() / 4, "{}", node.received());
    let blobs = containerd.ok(&["content", "ls", "-q"]);
    assert_eq!(blobs.lines().count(), 2, "manifest and config: {blobs}");
    let run = |name, words: &[&str]| {
        let base = ["run", "--rm", "--snapshotter", "floe", &reference, name];
        containerd.ok(&[&base[..], words].concat())
    };
    assert_eq!(run("one", &[]), "tested\n");
    assert_eq!(run("two", &["sh", "-c", "echo new >/etc/name; cat /etc/name"]), "new\n");
    assert_eq!(run("three", &["cat", "/etc/name"]), "tested\n", "what was written was another container's");

    // The daemon dies under a container, and another one after it, under a container that was started in between: what is
    // missing comes from the next.
    for (n, name) in ["long", "longer"].into_iter().enumerate() {
        until("a daemon serves containerd", || {
            containerd.ctr(&["snapshots", "--snapshotter", "floe", "ls"]).status.success()
        });
        containerd.ok(&["run", "-d", "--snapshotter", "floe", &reference, name, "sleep", "600"]);
        let mounts = node.status()["mounts"].clone();
        let seen = |mount: &serde_json::Value| mount["reference"] == format!("docker://{reference}");
        assert_eq!(mounts.as_array().unwrap().iter().filter(|mount| seen(mount)).count(), 1, "{mounts}");
        node.replace_daemon();
        let path = format!("/data/{n}");
        let read = containerd.ctr(&["tasks", "exec", "--exec-id", "x", name, "cat", &path]);
        let wanted = [image::noise(9, 1_500_000), image::noise(10, 4_000_000)];
        assert!(read.stdout == wanted[n], "{path} in {name}: {} bytes, {}", read.stdout.len(), read.stderr);
    }

    // containerd dies as well; its container goes on, and it finds everything again.
    containerd.kill();
    containerd.up();
    assert_eq!(containerd.ok(&["tasks", "exec", "--exec-id", "y", "long", "cat", "/etc/name"]), "tested\n");
    assert_eq!(containerd.snapshots("floe").len(), 4, "two layers and two containers");

    // Everything goes with the image.
    for name in ["long", "longer"] {
        containerd.ok(&["tasks", "rm", "-f", name]);
        containerd.ok(&["containers", "rm", name]);
    }
    containerd.ok(&["images", "rm", "--sync", &reference]);
    until("the snapshots are collected", || node.files("snapshots") == 0);
    let run = floe::daemon::run_dir(&node.store()).unwrap();
    until("the mount has gone", || mounts_of(&run.join("mnt")).is_empty());
    until("nothing is left of the layers", || {
        node.ok(&["gc"]);
        node.files("device") == 0
    });
}

fn an_image_of_file_systems_runs_under_containerd(release: Release) {
    let node = node!("");
    needs_containerd!(release);
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let image = image.file_systems("application/vnd.erofs.layer.v1");
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    // No host need be trusted: nothing of it is a claim.
    let containerd = Containerd::start_with(release, &node, "");
    containerd.pull(&reference);
    let blobs = containerd.ok(&["content", "ls", "-q"]);
    assert_eq!(blobs.lines().count(), 2, "manifest and config: {blobs}");
    assert_eq!(containerd.snapshots("floe"), sorted(chain(&image)));
    let run = |name, words: &[&str]| {
        let base = ["run", "--rm", "--snapshotter", "floe", &reference, name];
        containerd.ok(&[&base[..], words].concat())
    };
    assert_eq!(run("one", &[]), "tested\n");
    assert_eq!(run("two", &["wc", "-c", "/data/1"]), "4000000 /data/1\n");
}

fn two_snapshotters_of_one_daemon_do_not_touch_each_other(release: Release) {
    let node = node!("");
    needs_containerd!(release);
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(release, &node, &reference);
    for name in support::containerd::NAMES {
        containerd.pull_as(name, &reference);
        assert_eq!(containerd.snapshots(name), sorted(chain(&image)));
    }
    // The config's label is of the last one only, so collecting takes the other's.
    let run = |name| containerd.ctr(&["run", "--rm", "--snapshotter", name, &reference, "one"]);
    containerd.ok(&["content", "ls"]);
    assert_eq!(run("stargz").text(), "tested\n");
    for top in chain(&image).iter().rev() {
        containerd.ctr(&["snapshots", "--snapshotter", "floe", "rm", top]);
    }
    until("the first is empty", || containerd.snapshots("floe").is_empty());
    assert_eq!(containerd.snapshots("stargz"), sorted(chain(&image)));
    assert_eq!(run("stargz").text(), "tested\n");
}

#[test]
fn labels_that_are_missing_wrong_or_hostile_give_an_ordinary_snapshot() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    tells(&node, "127.0.0.1:0");
    let containerd = Containerd::start(Release::Installed, &node, &reference);
    let mut service = containerd.service();
    let blobs: Vec<_> = image.layers.iter().map(|layer| Digest::of(&layer.blob).to_string()).collect();
    let chain = chain(&image);
    let (target, name, layer) = (
        "containerd.io/snapshot.ref",
        "containerd.io/snapshot/cri.image-ref",
        "containerd.io/snapshot/cri.layer-digest",
    );
    let wrong = Digest::of(b"wrong").to_string();
    let cases: [&[(&str, &str)]; 7] = [
        &[(target, &chain[0])],
        &[(target, &chain[0]), (name, &reference)],
        &[(target, &chain[0]), (name, "not an image"), (layer, &blobs[0])],
        &[(target, &chain[0]), (name, "127.0.0.1:1/nobody:there"), (layer, &blobs[0])],
        &[(target, &wrong), (name, &reference), (layer, &blobs[0])],
        &[(target, &chain[0]), (name, &reference), (layer, &blobs[1])],
        &[(target, &chain[1]), (name, &reference), (layer, &blobs[1])], // what it stands on is missing
    ];
    for (n, labels) in cases.iter().enumerate() {
        let mounts = service.prepare(&format!("key {n}"), "", labels).unwrap();
        assert!(mounts.len() == 1 && mounts[0].starts_with("bind "), "{labels:?}: {mounts:?}");
    }
    let (_, page) = ask(address(&node), "GET /metrics");
    let reasons = [("unlabelled", 2.0), ("label", 1.0), ("image", 1.0), ("no-layer", 2.0), ("parent", 1.0)];
    for (reason, count) in reasons {
        assert_eq!(
            value(&page, &format!("floe_layers_ordinary_total{{reason=\"{reason}\"}}")),
            count,
            "{page}"
        );
    }
    // The right ones, as CRI sends them and, upon that, as BuildKit does.
    let right = [(target, &*chain[0]), (name, &reference), (layer, &blobs[0])];
    assert_eq!(service.prepare("right", "", &right), Err(Code::AlreadyExists));
    assert_eq!(service.prepare("right", "", &right), Err(Code::AlreadyExists));
    let pinned = reference.replace(":v1", &format!(":v1@{}", Digest::of(&image.manifest)));
    let next = [
        (target, &*chain[1]),
        ("containerd.io/snapshot/remote/stargz.reference.q1", &*pinned),
        ("containerd.io/snapshot/remote/stargz.digest.q1", &blobs[1]),
    ];
    assert_eq!(service.prepare("next", &chain[0], &next), Err(Code::AlreadyExists));
    let found = service.list(&[&format!("labels.\"{target}\"=={},kind==committed", chain[0])]).unwrap();
    assert_eq!(found, [chain[0].clone()]);
    assert_eq!(service.list(&["kind=="]), Ok(vec![]));
    assert_eq!(service.list(&["="]), Err(Code::InvalidArgument));
    let labels = service.label(&chain[0], "a", "b").unwrap();
    assert!(labels.contains(&"a=b".to_owned()), "{labels:?}");
    assert!(!service.label(&chain[0], "a", "").unwrap().contains(&"a=b".to_owned()));
    assert_eq!(service.label("nobody", "a", "b"), Err(Code::NotFound));
    assert_eq!(service.commit(&chain[0], "key 0", ""), Err(Code::AlreadyExists));
    assert_eq!(service.commit("x", "nobody", ""), Err(Code::NotFound));
    assert_eq!(service.prepare("", "", &[]), Err(Code::InvalidArgument));
    assert_eq!(service.prepare("child", "key 0", &[]), Err(Code::FailedPrecondition));
    assert_eq!(service.remove("nobody"), Err(Code::NotFound));
    assert_eq!(service.stat("nobody"), Err(Code::NotFound));
    assert_eq!(service.mounts("nobody"), Err(Code::NotFound));
    assert_eq!(service.usage("nobody"), Err(Code::NotFound));
    assert_eq!(service.mounts(&chain[0]), Err(Code::FailedPrecondition), "it is committed");
    assert_eq!(service.stat(&chain[1]), Ok((api::Kind::Committed, chain[0].clone())));

    // What is looked at is the mount itself, and nothing of it can be written.
    let view = service.view("view", &chain[1]).unwrap();
    assert!(
        view.len() == 1 && view[0].starts_with("bind /run/floe/") && view[0].ends_with(" ro,rbind"),
        "{view:?}"
    );
    assert_eq!(service.mounts("view"), Ok(view));
    assert_eq!(service.stat("view"), Ok((api::Kind::View, chain[1].clone())));
    assert_eq!(service.commit("x", "view", ""), Err(Code::FailedPrecondition), "it was only looked at");

    // What a container wrote is counted, and an unpacked layer takes its place between.
    let mounts = service.prepare("over", &chain[0], &[]).unwrap();
    let upper = mounts[0].split("upperdir=").nth(1).unwrap().split(',').next().unwrap().to_owned();
    fs::write(std::path::Path::new(&upper).join("file"), [1; 100_000]).unwrap();
    let used = service.usage("over").unwrap();
    assert!((100_000..200_000).contains(&used), "{used}");
    assert_eq!(service.commit("unpacked", "over", "elsewhere"), Err(Code::InvalidArgument));
    service.commit("unpacked", "over", &chain[0]).unwrap();
    assert_eq!(service.usage("unpacked"), Ok(used));
    let mounts = service.prepare("container", "unpacked", &[]).unwrap();
    assert!(mounts[0].contains(&format!("lowerdir={upper}:/run/floe/")), "{mounts:?}");
    let view = service.view("view of it", "unpacked").unwrap();
    assert!(
        view[0].contains(&format!(" lowerdir={upper}:/run/floe/")) && !view[0].contains("upperdir"),
        "{view:?}"
    );
    assert_eq!(service.remove(&chain[0]), Err(Code::FailedPrecondition));
}

#[test]
fn an_index_that_nobody_signed_is_not_shared_between_images() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start_with(Release::Installed, &node, "");
    // Good enough for this tag, and no more.
    node.ok(&["run", "--no-background", &reference, "--", "true"]);
    assert!(node.received() < image.packed());
    containerd.pull(&reference);
    let status = node.status();
    assert!(status["fallbacks"]["unsigned"].as_u64().is_some_and(|layers| layers > 0), "{status}");
    assert!(node.received() > image.packed(), "the layers were streamed, and proved");
    assert_eq!(containerd.ok(&["run", "--rm", "--snapshotter", "floe", &reference, "one"]), "tested\n");
}

#[test]
fn a_socket_that_is_served_stays_whose_it_is() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let containerd = Containerd::start_with(Release::Installed, &node, "");
    containerd.service().prepare("mine", "", &[]).unwrap();
    let other = support::Node::new(&std::fs::read_to_string(node.path("config.toml")).unwrap());
    other.ok(&["gc", "--dry-run"]);
    assert_eq!(containerd.service().list(&[]).unwrap(), ["mine"]);
    other.stop();
    assert_eq!(containerd.service().list(&[]).unwrap(), ["mine"]);
}

#[test]
fn ten_thousand_snapshots_are_listed() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let containerd = Containerd::start_with(Release::Installed, &node, "");
    let mut service = containerd.service();
    for n in 0..10_000 {
        service.prepare(&format!("k8s.io/{n}/odd key ü:,\"{n}"), "", &[]).unwrap();
    }
    assert_eq!(service.list(&[]).unwrap().len(), 10_000);
    assert_eq!(service.list(&["name==\"k8s.io/77/odd key ü:,\\\"77\""]).unwrap().len(), 1);
    node.stop();
    node.ok(&["gc", "--dry-run"]);
    let mut service = containerd.service();
    assert_eq!(service.list(&["name~=/1234/"]).unwrap().len(), 1);
    // containerd lists them as well, and takes what it does not know.
    containerd.collect();
    assert_eq!(service.list(&[]).unwrap(), [""; 0]);
    assert_eq!(node.files("snapshots"), 0);
}
