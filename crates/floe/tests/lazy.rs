//! The whole way of an image: streamed once, indexed, shipped, lazy elsewhere, complete, offline, removed.
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

use serde_json::Value;
use support::image::{self, TestImage};
use support::servers::{DockerRegistry, Embedded};
use support::{Node, tool, until};
use testkit::dump::{self, Dump};

fn assert_same(mounted: &Path, wanted: &Dump) {
    let found = dump::disk(mounted).unwrap();
    assert!(wanted.len() > 30 || wanted.len() == found.len());
    if let Some(difference) = dump::difference(&found, wanted) {
        panic!("mounted is not extracted\n{difference}");
    }
}

fn origins(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["origin"].as_str().unwrap()).collect()
}

fn all_proved(report: &Value) -> bool {
    report["layers"]
        .as_array()
        .unwrap()
        .iter()
        .all(|layer| layer["proved"] == true && layer["local"] == layer["segments"])
}

/// From a first pull to a lazy start on another node, a proof, a start without network.
fn whole_way(first: &Node, image: &TestImage, wanted: &Dump, reference: &str, down: impl FnOnce()) {
    image.push(reference);

    // Nobody has an index: streamed, and then all of it is here and proved.
    let at = first.mount(reference);
    let report = first.json(&["inspect", reference]);
    assert_eq!(origins(&report), ["streamed"; 3], "{report}");
    assert!(report["why"].as_str().unwrap().contains("no index anywhere"), "{report}");
    assert!(all_proved(&report), "{report}");
    assert_same(&at, wanted);
    let indexed = first.json(&["index", "--push", reference]);
    assert!(indexed["artifact"].as_str().unwrap().starts_with("sha256:"), "{indexed}");
    first.umount(&at);

    // Somebody else: lazy, and hardly anything is fetched before somebody reads.
    let second = Node::new("");
    let at = second.mount(reference);
    let report = second.json(&["inspect", reference]);
    assert_eq!(origins(&report), ["registry"; 3], "{report}");
    assert!(report["why"].as_str().unwrap().starts_with("lazy"), "{report}");
    let before = second.received();
    assert!(before < image.packed() / 4, "{before} of {} bytes were fetched for a mount", image.packed());
    assert_eq!(fs::read(at.join("d/sub/file")).unwrap(), b"some content\n");
    let one = second.received();
    assert!(one > before && one < image.packed(), "{before}, {one} of {}", image.packed());
    assert_same(&at, wanted);
    let report = second.json(&["pull", reference]);
    assert!(all_proved(&report), "{report}");

    // Without network what is here is enough.
    second.umount(&at);
    second.stop();
    down();
    let at = second.mount(reference);
    assert_same(&at, wanted);
    assert_eq!(second.received(), 0);

    // And where nothing is here, that is said.
    let third = Node::new("");
    let complaint = third.fails(&["mount", reference, third.mount_point().to_str().unwrap()]);
    assert!(complaint.contains("hint: ") && complaint.contains("network"), "{complaint}");
    assert_eq!(third.files("refs") + third.files("index") + third.files("device"), 0);
}

#[test]
fn an_image_in_docker_registry() {
    let node = node!();
    let Some(registry) = DockerRegistry::start(&node.path("registry")) else {
        testkit::skip!("there is no docker-registry");
    };
    let image = image::rich(&node.path("made"));
    let wanted = image.extract(&node.path("extracted"));
    let reference = format!("{}/team/app:v1", registry.host);
    whole_way(&node, &image, &wanted, &reference, || drop(registry));
}

#[test]
fn an_image_in_the_embedded_registry() {
    let node = node!();
    let mut registry = Embedded::start(&node.path("registry"));
    let image = image::rich(&node.path("made"));
    let wanted = image.extract(&node.path("extracted"));
    let reference = format!("{}/team/app:v1", registry.host());
    whole_way(&node, &image, &wanted, &reference, || registry.down());
}

#[test]
fn layouts_and_archives_are_images_too() {
    let node = node!();
    let image = image::rich(&node.path("made"));
    let wanted = image.extract(&node.path("extracted"));
    let layout = node.path("layout");
    image.layout(&layout, "v1");
    let archive = node.path("image.tar");
    tool(std::process::Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg("."));
    for reference in [format!("oci:{}:v1", layout.display()), format!("oci-archive:{}:v1", archive.display())]
    {
        let at = node.mount(&reference);
        assert_same(&at, &wanted);
        let link = node.path("link");
        std::os::unix::fs::symlink(&at, &link).unwrap();
        node.ok(&["umount", link.to_str().unwrap()]);
        assert_eq!(fs::read_dir(&at).unwrap().count(), 0, "a link to where it is mounted is that directory");
        fs::remove_file(&link).unwrap();
        assert!(all_proved(&node.json(&["pull", &reference])));
    }
    // The index goes into a layout as it goes into a registry, and is found there.
    let reference = format!("oci:{}:v1", layout.display());
    node.ok(&["index", "--push", &reference]);
    let other = Node::new("");
    let at = other.mount(&reference);
    assert_eq!(origins(&other.json(&["inspect", &reference])), ["registry"; 3]);
    assert_same(&at, &wanted);
}

#[test]
fn a_directory_that_somebody_has_unmounted_by_hand_is_free() {
    let node = node!();
    let image = image::layered(80, 2, 90_000);
    let wanted = image.extract(&node.path("extracted"));
    let layout = node.path("layout");
    image.layout(&layout, "v1");
    let reference = format!("oci:{}:v1", layout.display());
    let at = node.mount(&reference);
    let mount = ["mount", &reference, at.to_str().unwrap()];
    let complaint = node.fails(&mount);
    assert!(complaint.contains("an image is mounted there"), "{complaint}");
    tool(std::process::Command::new("umount").arg(&at));
    node.ok(&mount);
    assert_same(&at, &wanted);
    node.umount(&at);
    assert_eq!(node.status()["mounts"].as_array().map(Vec::len), Some(0));
}

/// Docker's archives, and directories of one image.
#[test]
fn what_skopeo_writes_is_an_image_too() {
    let node = node!();
    if support::program("skopeo").is_none() {
        testkit::skip!("there is no skopeo");
    }
    let image = image::layered(79, 4, 90_000);
    let wanted = image.extract(&node.path("extracted"));
    let layout = node.path("layout");
    image.layout(&layout, "v1");
    let [archive, dir] = ["saved.tar", "dir"].map(|name| node.path(name).display().to_string());
    for place in [format!("docker-archive:{archive}:app:v1"), format!("dir:{dir}")] {
        let from = format!("oci:{}:v1", layout.display());
        tool(std::process::Command::new("skopeo").args(["copy", "--insecure-policy", "-q", &from, &place]));
        let at = node.mount(&place);
        assert_same(&at, &wanted);
        node.umount(&at);
        assert!(all_proved(&node.json(&["pull", &place])));
        let complaint =
            node.fails(&["mount", &format!("docker-archive:{archive}:other"), at.to_str().unwrap()]);
        assert!(complaint.contains("(there is: docker.io/library/app:v1): not found"), "{complaint}");
        let made = format!("oci:{}:v1", node.fresh("made").display());
        node.ok(&["convert", &place, &made, "--format", "zstdchunked", "--verify"]);
        let same = node.ok(&["check", &place, &made]);
        assert!(same.starts_with("the same: "), "{same}");
    }
}

#[test]
fn looking_into_an_image_and_letting_it_go() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = image::simple(1, 2);
    let reference = format!("{}/simple:v1", registry.host());
    image.push(&reference);

    let names: Vec<String> = node.ok(&["ls", &reference, "/etc"]).lines().map(str::to_owned).collect();
    assert_eq!(names.len(), 2);
    assert!(names[0].starts_with("-rw-r--r--") && names[0].ends_with(" hello"), "{names:?}");
    assert!(names[1].ends_with(" link -> hello"), "{names:?}");
    let listed = node.json(&["ls", &reference, "/data"]);
    assert_eq!(listed[1]["size"], 1_500_000);
    assert_eq!(node.ok(&["cat", &reference, "/etc/link"]), "hello 1\n");
    assert_eq!(node.run(&["cat", &reference, "/data/1"]).stdout, image::noise(1001, 1_500_000));
    assert!(node.fails(&["cat", &reference, "/data/9"]).contains("/data/9 is not in the image"));
    assert!(node.fails(&["cat", &reference, "/data"]).contains("not a regular file"));

    let inspected = node.json(&["inspect", &reference]);
    assert_eq!(inspected["manifest"], image.digest().to_string());
    assert_eq!(inspected["layers"][0]["diff_id"], image.layers[0].diff_id().to_string());
    let status = node.status();
    assert_eq!(status["images"].as_object().unwrap().len(), 1, "{status}");
    assert!(status["alerts"].as_array().unwrap().is_empty(), "{status}");
    assert!(node.ok(&["status"]).contains("simple:v1"));

    // What is mounted stays, whatever is said; what is not goes, but only when asked for in earnest.
    let at = node.mount(&reference);
    let nothing = node.json(&["gc"]);
    assert_eq!(nothing["items"].as_array().unwrap().len(), 0, "{nothing}");
    node.ok(&["rm", &reference]);
    assert!(node.fails(&["rm", &reference]).contains("is not in the store"));
    node.ok(&["gc"]);
    assert_eq!(fs::read(at.join("data/1")).unwrap(), image::noise(1001, 1_500_000));
    node.umount(&at);
    let would = node.json(&["gc", "--dry-run"]);
    assert!(!would["items"].as_array().unwrap().is_empty(), "{would}");
    assert!(node.files("device") > 0 && node.files("index") > 0);
    let freed = node.json(&["gc"]);
    assert_eq!(freed, would);
    assert_eq!((node.files("device"), node.files("index"), node.files("meta")), (0, 0, 0));
    // And it comes back.
    assert_eq!(node.ok(&["cat", &reference, "/etc/hello"]), "hello 1\n");
}

#[test]
fn the_rest_comes_in_the_background_and_is_proved() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = image::simple(31, 2);
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    first.ok(&["index", "--push", &reference]);
    let node = Node::new("");
    let dir = node.mount_point();
    node.ok(&["mount", &reference, dir.to_str().unwrap()]);
    until("everything is here and proved", || {
        let report = node.json(&["inspect", &reference]);
        let layers = report["layers"].as_array().unwrap();
        layers.iter().all(|layer| layer["local"] == layer["segments"]) && all_proved(&report)
    });
    // Only what the layers and their indexes hold: nothing came twice.
    let least = image.packed();
    assert!((least..least + least / 4).contains(&node.received()), "{} of {least}", node.received());
}

#[test]
fn verify_reads_everything_again_and_mends_it() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = image::simple(2, 2);
    let reference = format!("{}/simple:v1", registry.host());
    image.push(&reference);
    node.ok(&["pull", &reference]);
    node.ok(&["verify", "--rebuild", &reference]);
    node.stop();

    // One byte of a segment, changed behind everybody's back.
    let device = fs::read_dir(node.store().join("device")).unwrap().next().unwrap().unwrap().path();
    let segment = device.join("1");
    let mut bytes = fs::read(&segment).unwrap();
    bytes[1000] ^= 1;
    fs::write(&segment, &bytes).unwrap();
    node.ok(&["verify", &reference]);
    assert!(node.status()["alerts"][0].as_str().unwrap().contains("damaged"), "{}", node.status());
    bytes[1000] ^= 1;
    assert_eq!(fs::read(&segment).unwrap(), bytes);
    let at = node.mount(&reference);
    assert_eq!(fs::read(at.join("data/0")).unwrap(), image::noise(2000, 1_500_000));
}
