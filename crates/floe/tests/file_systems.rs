//! Images whose layers are EROFS file systems: they start, show the same files as the tars did, are lazy once they have been
//! here, and are never taken for something else.
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
use std::process::Command;

use format::Digest;
use serde_json::{Value, json};
use support::image::{Layer, Pack, TestImage, blob_path};
use support::servers::Embedded;
use support::{Node, image, program, tool, until};
use testkit::dump::{self, Dump, What};
use testkit::faulty::{Fault, Faulty};
use testkit::tar::{Entry, Kind};

const EROFS: &str = "application/vnd.erofs.layer.v1";
/// As containerd 2.1 and 2.2 know it.
const BEFORE: &str = "application/vnd.oci.image.layer.v1.erofs";

/// A file system with what is in a directory, by erofs-utils.
fn mkfs(tree: &Path, options: &[&str]) -> Vec<u8> {
    let path = tree.with_extension("image");
    tool(Command::new(program("mkfs.erofs").unwrap()).args(options).args([&path, tree]));
    fs::read(path).unwrap()
}

fn image(layers: Vec<(Layer, Option<&str>)>) -> TestImage {
    TestImage::called(layers, &json!({}))
}

/// A layer that is a file system.
fn file_system(bytes: Vec<u8>) -> (Layer, Option<&'static str>) {
    (Layer::new(bytes, Pack::Plain), Some(EROFS))
}

/// An image of one layer that is one, with a large file.
fn simple(seed: u64) -> TestImage {
    image::simple(seed, 2).file_systems(EROFS)
}

fn assert_same(mounted: &Path, wanted: &Dump) {
    if let Some(difference) = dump::difference(&dump::disk(mounted).unwrap(), wanted) {
        panic!("mounted is not extracted\n{difference}");
    }
}

fn layers(node: &Node, reference: &str) -> Vec<Value> {
    node.json(&["inspect", reference])["layers"].as_array().unwrap().clone()
}

/// Mounts what is in a registry, with the daemon killed, and again without network.
fn starts(node: &Node, registry: &mut Embedded, reference: &str, wanted: &Dump) {
    let at = node.mount(reference);
    assert_same(&at, wanted);
    for layer in layers(node, reference) {
        assert_eq!((&layer["origin"], &layer["proved"]), (&json!("streamed"), &json!(true)));
        assert_eq!(layer["local"], layer["segments"]);
    }
    node.kill_daemon();
    assert_same(&at, wanted);
    node.umount(&at);
    node.stop();
    registry.down();
    let at = node.mount(reference);
    assert_same(&at, wanted);
    assert_eq!(node.received(), 0);
    node.umount(&at);
    registry.up();
}

fn rich_ones_start(new: impl Fn() -> Node) {
    let node = new();
    let mut registry = Embedded::start(&node.path("registry"));
    let rich = image::rich(&node.fresh("rich"));
    let wanted = rich.extract(&node.fresh("extracted"));
    let [tars, converted, mixed] =
        ["tars", "v1", "mixed"].map(|tag| format!("{}/app:{tag}", registry.host()));
    rich.push(&tars);
    node.ok(&["convert", &tars, &format!("docker://{converted}"), "--format", "erofs"]);
    starts(&node, &mut registry, &converted, &wanted);
    // The middle one as a tar, and the lowest as older versions of containerd call it.
    let [base, middle, top] = &rich.layers[..] else { panic!() };
    let (base, top) = ((base.file_system(), Some(BEFORE)), (top.file_system(), Some(EROFS)));
    image(vec![base, (middle.clone(), None), top]).push(&mixed);
    starts(&new(), &mut registry, &mixed, &wanted);
    for reference in [&converted, &mixed] {
        let checked = node.ok(&["check", &tars, reference]);
        assert!(checked.starts_with("the same: "), "{checked}");
        let different = node.ok(&["diff", &tars, reference]);
        assert!(different.starts_with("the same: "), "{different}");
    }
}

#[test]
fn an_image_of_file_systems_starts() {
    let config = "[mount]\npath = \"erofs\"\n";
    drop(kernel_node!(config));
    rich_ones_start(|| Node::on(support::disk::Kind::Ext4, 1 << 30, config));
}

#[test]
fn an_image_of_file_systems_starts_through_fuse() {
    drop(node!());
    rich_ones_start(|| Node::new("[mount]\npath = \"fuse\"\n"));
}

/// A tree as `fixture` has it, but for names of 255 bytes, which mkfs.erofs 1.5 does not take.
fn populate(tree: &Path) {
    testkit::fixture::populate(tree, true).unwrap();
    let long = fs::read_dir(tree).unwrap().flatten().filter(|entry| entry.file_name().len() > 250);
    long.for_each(|entry| fs::remove_dir_all(entry.path()).unwrap());
}

#[test]
fn what_mkfs_makes_of_a_tree_shows_the_tree() {
    let node = node!();
    if program("mkfs.erofs").is_none() {
        testkit::skip!("mkfs.erofs is not installed");
    }
    let mut registry = Embedded::start(&node.path("registry"));
    let tree = node.fresh("tree");
    populate(&tree);
    let mut wanted = dump::disk(&tree).unwrap();
    for (n, options) in [
        &[][..],
        &["-Enoinline_data"],
        &["--chunksize=4096"],
        &["--chunksize=65536", "-Eforce-chunk-indexes"],
    ]
    .into_iter()
    .enumerate()
    {
        let reference = format!("{}/app:{n}", registry.host());
        image(vec![file_system(mkfs(&tree, options))]).push(&reference);
        let path = ["fuse", "auto"][n % 2];
        let node = Node::new(&format!("[mount]\npath = {path:?}\n"));
        starts(&node, &mut registry, &reference, &wanted);
    }

    // Over another layer: what it hides is hidden, and what it says of directories is said.
    let upper = node.fresh("upper");
    for dir in ["d/sub", "opaque"] {
        fs::create_dir_all(upper.join(dir)).unwrap();
    }
    fs::write(upper.join("opaque/new"), "new").unwrap();
    let hiding = [
        Entry::new("block", Kind::Char(0, 0)),
        Entry::new("d/sub/file", Kind::Char(0, 0)),
        Entry::dir("opaque/").xattr("trusted.overlay.opaque", "y").mode(0o711),
    ];
    let tar = node.path("hiding.tar");
    fs::write(&tar, testkit::tar::Archive::of(&hiding, testkit::tar::Variant::Pax10).tar).unwrap();
    testkit::fixture::gnu_tar(&["-xpf", tar.to_str().unwrap(), "--xattrs", "--xattrs-include=*"], &upper)
        .unwrap();
    let below = [Entry::dir("opaque/"), Entry::file("opaque/old", "old")];
    let reference = format!("{}/app:over", registry.host());
    let lower = Layer::of(&below, Pack::Gzip);
    let tree = file_system(mkfs(&tree, &[]));
    image(vec![(lower, None), tree, file_system(mkfs(&upper, &["--chunksize=4096"]))]).push(&reference);
    for (path, mut node) in dump::disk(&upper).unwrap() {
        node.xattrs.remove(&b"trusted.overlay.opaque"[..]);
        match node.what {
            What::Char(0, 0) => wanted.remove(&path),
            _ => wanted.insert(path, node),
        };
    }
    // Of the names of the file that was hidden the others are left.
    let at = node.mount(&reference);
    let mut found = dump::disk(&at).unwrap();
    for name in [&b"a-hard-link"[..], b"z-hard-link"] {
        assert_eq!(fs::read(at.join(std::str::from_utf8(name).unwrap())).unwrap(), b"some content\n");
        assert_eq!(found.remove(name).is_some(), wanted.remove(name).is_some());
    }
    if let Some(difference) = dump::difference(&found, &wanted) {
        panic!("{difference}");
    }
    node.umount(&at);
}

#[test]
fn what_was_evicted_is_fetched_by_ranges() {
    let node = node!("[store]\nquota = \"8 MB\"\nreserve = 0\n[fetch]\nbackground = false\n");
    let registry = Embedded::start(&node.path("registry"));
    let references: Vec<_> = (0..3).map(|n| format!("{}/image{n}:v1", registry.host())).collect();
    let noise = (0..3).zip(&references).map(|(seed, reference)| {
        simple(seed).push(reference);
        node.ok(&["pull", reference]);
        image::noise(seed * 1000, 1_500_000)
    });
    let noise: Vec<_> = noise.collect();
    until("one image is evicted", || node.status()["room"]["evicted_layers"] == json!(1));
    let layer = &layers(&node, &references[0])[0];
    assert_eq!((&layer["local"], &layer["proved"]), (&json!(0), &json!(true)), "{layer}");
    let before = node.received();
    let at = node.mount(&references[0]);
    assert_eq!(fs::read_to_string(at.join("etc/hello")).unwrap(), "hello 0\n");
    let of_one = node.received() - before;
    assert!(of_one < 1_200_000, "a file of 8 bytes, and what lies near it: {of_one}");
    assert!(fs::read(at.join("data/0")).unwrap() == noise[0]);
    node.umount(&at);
    // All of it again, as the layer itself has it.
    node.ok(&["pull", &references[0]]);
    let verified = node.ok(&["verify", "--rebuild", &references[0]]);
    assert!(verified.contains(&references[0]), "{verified}");
}

#[test]
fn wrong_bytes_are_an_error_that_names_the_layer() {
    let node = node!("[fetch]\nbackground = false\n");
    let server = Faulty::start();
    let [good, bad] = [1, 2].map(simple);
    good.put(&server, "good", "v1");
    bad.put(&server, "bad", "v1");
    let mut wrong = bad.layers[0].blob.to_vec();
    let at = wrong.len() / 2;
    wrong[at] ^= 1;
    let path = blob_path("bad", &bad.layers[0].digest());
    server.fault(&path, Fault::Swap(wrong.clone()), u32::MAX);
    let failed = node.fails(&["mount", &format!("{}/bad:v1", server.host()), "/mnt"]);
    assert!(failed.contains(&bad.layers[0].digest().to_string()), "{failed}");
    assert!(failed.contains("should be") || failed.contains("digest"), "{failed}");
    let fine = node.mount(&format!("{}/good:v1", server.host()));
    assert_eq!(fs::read_to_string(fine.join("etc/hello")).unwrap(), "hello 1\n");
    node.umount(&fine);

    // The same once it has been here, with nothing of it left but its index.
    server.heal();
    let reference = format!("{}/bad:v1", server.host());
    let at = node.mount(&reference);
    let index = layers(&node, &reference)[0]["index"].as_str().unwrap().to_owned();
    node.umount(&at);
    node.stop();
    let device = node.store().join("device").join(index.trim_start_matches("blake3:"));
    fs::remove_dir_all(&device).unwrap_or_else(|error| panic!("{error}: {}", device.display()));
    server.fault(&path, Fault::Swap(wrong.iter().map(|byte| !byte).collect()), u32::MAX);
    let at = node.mount(&reference);
    assert!(fs::read(at.join("data/0")).is_err());
    server.heal();
    assert!(fs::read(at.join("data/0")).unwrap() == image::noise(2000, 1_500_000));
    node.umount(&at);
}

#[test]
fn a_layer_is_read_as_what_it_is_whatever_others_call_it() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let tag = |tag: &str| format!("{}/team/app:{tag}", registry.host());
    let mut tar = Layer::of(&[Entry::file("a", "of a tar")], Pack::Plain).tar;
    tar.resize(8192, 0);
    let tar = Layer::new(tar, Pack::Plain);
    let bytes = Layer::of(&[Entry::file("b", "of a file system")], Pack::Gzip).file_system().tar;
    let (honest, called) = (file_system(bytes.clone()), (Layer::new(bytes.clone(), Pack::Plain), None));
    let all = [
        ("tar", image(vec![(tar.clone(), None)]), Ok("of a tar")),
        ("tar-called", image(vec![(tar, Some(EROFS))]), Err("not a metadata image")),
        ("fs", image(vec![honest]), Ok("of a file system")),
        ("fs-called", image(vec![called]), Err("an EROFS file system and no tar")),
    ];
    all.iter().for_each(|(name, image, _)| image.push(&tag(name)));
    // In both orders, twice: nothing that one has left behind is taken by the other.
    for order in [[0, 1, 2, 3], [3, 2, 1, 0]] {
        let node = Node::new("");
        for n in order.into_iter().chain(order) {
            let (name, _, wanted) = &all[n];
            match wanted {
                Ok(content) => {
                    let at = node.mount(&tag(name));
                    let file = if n == 0 { "a" } else { "b" };
                    assert_eq!(fs::read_to_string(at.join(file)).unwrap(), *content);
                    assert_eq!(fs::read_dir(&at).unwrap().count(), 1);
                    node.umount(&at);
                }
                Err(why) => {
                    let failed = node.fails(&["mount", &tag(name), "/mnt"]);
                    assert!(failed.contains(why), "{name}: {failed}");
                }
            }
        }
    }

    // It is its own diffID, and its bytes are where it says.
    let mut other = Layer::new(bytes.clone(), Pack::Plain);
    other.tar = b"something else".to_vec();
    image(vec![(other, Some(EROFS))]).push(&tag("other"));
    let failed = node.fails(&["mount", &tag("other"), "/mnt"]);
    assert!(failed.contains(&Digest::of(b"something else").to_string()), "{failed}");
    let mut begins = bytes.clone();
    begins[0] = b'x';
    let sum = format::erofs::disk::super_checksum(begins.first_chunk().unwrap()).to_le_bytes();
    begins[1028..1032].copy_from_slice(&sum);
    image(vec![file_system(begins)]).push(&tag("begins"));
    let failed = node.fails(&["mount", &tag("begins"), "/mnt"]);
    assert!(failed.contains("before the superblock"), "{failed}");
}

#[test]
fn what_is_packed_is_refused_and_can_be_converted() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let tag = |tag: &str| format!("docker://{}/team/app:{tag}", registry.host());
    let tars = image::simple(5, 1);
    tars.push(tag("tars").trim_start_matches("docker://"));
    let packed = Layer::new(tars.layers[0].file_system().tar, Pack::Zstd);
    let packed = image(vec![(packed, Some("application/vnd.erofs.layer.v1+zstd"))]);
    packed.push(tag("packed").trim_start_matches("docker://"));
    let reference = tag("packed");
    for args in [&["pull", &reference][..], &["mount", &reference, "/mnt"], &["inspect", &reference]] {
        let failed = node.fails(args);
        assert!(failed.contains("packed") && failed.contains("floe convert --format oci"), "{failed}");
    }
    for format in ["oci", "erofs", "zstdchunked"] {
        let report = node.json(&["convert", &tag("packed"), &tag(format), "--format", format, "--verify"]);
        assert_eq!((&report["layers"][0]["how"], &report["verified"]), (&json!("recoded"), &json!(1)));
        let same = node.ok(&["check", &tag("tars"), &tag(format)]);
        assert!(same.starts_with("the same: "), "{same}");
    }
    // What is unpacked is what the image says, or nothing is made of it.
    let mut other = packed.layers[0].clone();
    other.tar.push(0);
    let other = image(vec![(other, Some("application/vnd.erofs.layer.v1+zstd"))]);
    other.push(tag("other").trim_start_matches("docker://"));
    let failed = node.fails(&["convert", &tag("other"), &tag("x"), "--format", "oci"]);
    assert!(failed.contains(&other.layers[0].diff_id().to_string()), "{failed}");
}
