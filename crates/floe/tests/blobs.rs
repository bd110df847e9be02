//! Images that containerd has whole although their layers are lazy: what a tag stands for, and blobs to export and push.
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
use std::process::Command;

use format::Digest;
use rustix::process::Signal;
use serde_json::json;
use support::containerd::{Containerd, Release};
use support::image::{self, TestImage};
use support::servers::Embedded;
use support::{Node, Outcome, Running, until};
use testkit::faulty::{Fault, Faulty};

macro_rules! needs_containerd {
    ($release:expr) => {
        if let Some(why) = $release.cannot_run() {
            testkit::skip!("{why}");
        }
    };
}

each_release!(a_lazy_image_is_exported_and_pushed_with_its_own_digests);

fn begin(node: &Node, containerd: &Containerd<'_>, reference: &str) -> Running {
    let to = format!("containerd={}", containerd.socket().display());
    let mut command = node.command(&["pull", "--to", &to, "--blobs", reference]);
    command.env("CONTAINERD_SNAPSHOTTER", "floe").env("CONTAINERD_NAMESPACE", containerd.namespace());
    node.spawn(command)
}

fn pull(node: &Node, containerd: &Containerd<'_>, reference: &str) {
    let outcome = begin(node, containerd, reference).end();
    assert!(outcome.status.success(), "{outcome:?}\n{}", node.log());
}

/// Returns how many of an image's layers containerd has the blobs of.
fn layers_in(containerd: &Containerd<'_>, image: &TestImage) -> usize {
    let blobs = containerd.ok(&["content", "ls", "-q"]);
    image.layers.iter().filter(|layer| blobs.contains(&layer.digest().to_string())).count()
}

fn a_lazy_image_is_exported_and_pushed_with_its_own_digests(release: Release) {
    let node = node!("[fetch]\nbackground = false\n");
    needs_containerd!(release);
    let Some(image) = image::runnable(&json!({ "Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"] })) else {
        testkit::skip!("there is no busybox")
    };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let list = format!("{}/app:list", registry.host());
    image.push_list(&list);
    let meant = {
        let name = image::name(&list);
        let repository = image::client().repository(name.host(), name.repository());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(repository.manifest(&registry::Pick::of(&name))).unwrap().digest
    };
    let containerd = Containerd::start(release, &node, &reference);

    // The name is the tag's, and no layer is fetched.
    containerd.pull(&list);
    let listed = containerd.ok(&["images", "ls", &format!("name=={list}")]);
    assert!(listed.contains(&meant.to_string()), "{meant}: {listed}");
    assert_eq!(containerd.ok(&["content", "ls", "-q"]).lines().count(), 3, "list, manifest and config");
    let run = ["run", "--rm", "--snapshotter", "floe", &list, "one"];
    assert_eq!(containerd.ok(&run), "tested\n");
    assert_eq!(layers_in(&containerd, &image), 0);

    // With the blobs it is whole; what is there is not fetched again.
    pull(&node, &containerd, &list);
    assert_eq!(layers_in(&containerd, &image), image.layers.len());
    let before = registry.stats().bytes_sent;
    pull(&node, &containerd, &list);
    let sent = registry.stats().bytes_sent - before;
    assert!(sent < image.packed() / 100, "what the name means, and the config: {sent}");
    // Nothing is collected of what the name leads to.
    let other = format!("{}/app:v1", registry.host());
    containerd.pull(&other);
    containerd.ok(&["images", "rm", "--sync", &other]);
    assert_eq!(layers_in(&containerd, &image), image.layers.len());

    let (archive, layout) = (node.path("exported.tar"), node.path("exported"));
    containerd.ok(&["images", "export", archive.to_str().unwrap(), &list]);
    fs::create_dir(&layout).unwrap();
    support::tool(Command::new("tar").arg("-C").arg(&layout).arg("-xf").arg(&archive));
    for blob in image.layers.iter().map(|layer| &layer.blob[..]).chain([&image.config[..], &image.manifest]) {
        let exported = fs::read(layout.join("blobs/sha256").join(Digest::of(blob).hex())).unwrap();
        assert!(exported == blob);
    }
    let elsewhere = Embedded::start(&node.path("elsewhere"));
    let pushed = format!("{}/pushed:v1", elsewhere.host());
    containerd.ok(&["images", "tag", &list, &pushed]);
    containerd.ok(&["images", "push", "--plain-http", &pushed]);
    for layer in &image.layers {
        assert!(elsewhere.content(&layer.digest()) == layer.blob);
    }
    assert_eq!(containerd.ok(&run), "tested\n");
}

/// A registry that misbehaves, with an image and its indexes.
struct Scene {
    server: Faulty,
    image: TestImage,
    reference: String,
}

impl Scene {
    fn new(seed: u64) -> Self {
        let (server, image) = (Faulty::start(), image::layered(seed, 3, 2_000_000));
        image.put(&server, "app", "v1");
        image::refer_all(&server, &image);
        let reference = format!("{}/app:v1", server.host());
        Self { server, image, reference }
    }

    fn blob(&self, layer: usize) -> String {
        image::blob_path("app", &self.image.layers[layer].digest())
    }
}

#[test]
fn an_interrupted_fetch_of_blobs_goes_on() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let scene = Scene::new(71);
    let containerd = Containerd::start(Release::Installed, &node, &scene.reference);
    scene.server.fault(&scene.blob(1), Fault::Stall { after: 600_000 }, u32::MAX);
    let running = begin(&node, &containerd, &scene.reference);
    until("part of the layer is there", || {
        let ingests = containerd.ok(&["content", "active"]);
        let layer = scene.image.layers[1].digest().to_string();
        let of_it = ingests.lines().find(|line| line.contains(&layer));
        let size = of_it.and_then(|line| line.split_whitespace().nth(1));
        size.is_some_and(|size| !size.starts_with("0")) && layers_in(&containerd, &scene.image) == 2
    });
    running.signal(Signal::INT);
    let Outcome { status, .. } = running.end();
    assert!(!status.success());
    // It is lazy already, and what has arrived stays.
    assert_eq!(layers_in(&containerd, &scene.image), 2);
    let ranges = || {
        let seen = scene.server.seen();
        seen.iter().filter(|seen| seen.path == scene.blob(1)).filter_map(|seen| seen.range.clone()).count()
    };
    let before = (ranges(), scene.server.count(&scene.blob(0)));
    scene.server.heal();
    pull(&node, &containerd, &scene.reference);
    assert_eq!(layers_in(&containerd, &scene.image), 3);
    assert_eq!(scene.server.count(&scene.blob(0)), before.1, "what is there is not fetched");
    assert!(ranges() > before.0, "the rest of it was asked for");
}

#[test]
fn wrong_blobs_are_refused_and_asked_for_again() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let scene = Scene::new(72);
    let containerd = Containerd::start(Release::Installed, &node, &scene.reference);
    let evil = image::noise(99, scene.image.layers[2].blob.len());
    scene.server.fault(&scene.blob(2), Fault::Swap(evil), u32::MAX);
    let outcome = begin(&node, &containerd, &scene.reference).end();
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    let layer = scene.image.layers[2].digest().to_string();
    assert!(
        outcome.stderr.contains(&layer) && outcome.stderr.contains("push the image there again"),
        "{outcome:?}"
    );
    assert!(!containerd.ok(&["content", "ls", "-q"]).contains(&layer));
    scene.server.heal();
    pull(&node, &containerd, &scene.reference);
    assert_eq!(layers_in(&containerd, &scene.image), 3);
}
