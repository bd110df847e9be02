//! Images of Nydus, as its own tools make them: lazy, the same files, and never taken for something else.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

#[path = "nydus/stand_in.rs"]
mod stand_in;
mod support;
#[path = "nydus/together.rs"]
mod together;

use std::fs;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use format::Digest;
use registry::{Manifest, Pick, media_type};
use serde_json::{Value, json};
use support::Node;
use support::image::{self, Layer, Pack, TestImage, blob_path};
use support::servers::Embedded;
use testkit::dump::{self, Dump};
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

const NAMES: [&str; 3] = ["base", "middle", "top"];
const BLOB: &str = "application/vnd.oci.image.layer.nydus.blob.v1";

/// What `nydus-image` made: see the vectors' own page.
fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../format/tests/nydus").join(name);
    zstd::decode_all(&fs::read(format!("{}.zst", path.display())).unwrap()[..]).unwrap()
}

/// An image of these blobs and a bootstrap, with the media types and annotations of nydus-snapshotter's converter.
fn nydus(blobs: &[Vec<u8>], boot: &[u8]) -> TestImage {
    nydus_around(blobs, &[Entry::dir("image"), Entry::file("image/image.boot", boot)])
}

/// The same with this in the last layer.
fn nydus_around(blobs: &[Vec<u8>], entries: &[Entry]) -> TestImage {
    let note = |layer: &mut Layer, name: &str, value: &str| {
        layer.annotations.insert(format!("containerd.io/snapshot/{name}"), value.into());
    };
    let mut layers: Vec<Layer> = blobs.iter().map(|blob| Layer::new(blob.clone(), Pack::Plain)).collect();
    layers.iter_mut().for_each(|layer| note(layer, "nydus-blob", "true"));
    let mut bootstrap = Layer::of(entries, Pack::Gzip);
    note(&mut bootstrap, "nydus-bootstrap", "true");
    note(&mut bootstrap, "nydus-fs-version", "6");
    layers.push(bootstrap);
    let mut image = TestImage::new(layers, &json!({}));
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    for layer in manifest["layers"].as_array_mut().unwrap().iter_mut().take(blobs.len()) {
        layer["mediaType"] = json!(BLOB);
    }
    image.manifest = serde_json::to_vec(&manifest).unwrap().into();
    image
}

/// An image of three layers.
fn merged() -> TestImage {
    let blobs: Vec<_> = NAMES.iter().map(|name| vector(&format!("{name}.blob"))).collect();
    nydus(&blobs, &vector("merged.boot"))
}

/// The same in version 5.
fn merged_5() -> TestImage {
    let blobs: Vec<_> = NAMES.iter().map(|name| vector(&format!("{name}5.blob"))).collect();
    nydus(&blobs, &vector("merged5.boot"))
}

/// An ordinary image, and one of Nydus that says where its layers can be entered.
fn references() -> (TestImage, TestImage) {
    let names = ["base", "big"];
    let gzip = |name: &&str| {
        let blob = vector(&format!("{name}.gz"));
        let tar = format::unpack::whole(format::index::Codec::Gzip, &blob, 1 << 24).unwrap().unwrap();
        Layer { blob: blob.into(), ..Layer::new(tar, Pack::Gzip) }
    };
    let original = TestImage::new(names.iter().map(gzip).collect(), &json!({}));
    let blobs = names.map(|name| vector(&format!("{name}.ref")));
    let mut image = nydus(&blobs, &vector("refs.boot"));
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    for (layer, of) in manifest["layers"].as_array_mut().unwrap().iter_mut().zip(&original.layers) {
        layer["annotations"]["containerd.io/snapshot/nydus-ref"] = json!(of.digest().to_string());
    }
    image.manifest = serde_json::to_vec(&manifest).unwrap().into();
    (original, image)
}

/// What it shows: that which the image shows that it was made of. Layers of it turn directories into files, which GNU tar
/// does not.
fn wanted(host: &str) -> Dump {
    let tars = NAMES.iter().map(|name| Layer::new(vector(&format!("{name}.tar")), Pack::Gzip)).collect();
    let reference = format!("{host}/team/app:tars");
    TestImage::new(tars, &json!({})).push(&reference);
    shown(&reference)
}

/// Compares all but times, which RAFS does not keep.
fn assert_same(mounted: &Path, wanted: &Dump) {
    let timeless = |dump: Dump| -> Dump {
        dump.into_iter().map(|(path, node)| (path, dump::Node { mtime: (0, 0), ..node })).collect()
    };
    let (found, wanted) = (timeless(dump::disk(mounted).unwrap()), timeless(wanted.clone()));
    if let Some(difference) = dump::difference(&found, &wanted) {
        panic!("mounted is not extracted\n{difference}");
    }
}

/// Mounts an image; returns where, and where its indexes came from.
fn origins(node: &Node, reference: &str) -> (PathBuf, Vec<String>) {
    let at = node.mount(reference);
    let report = node.json(&["inspect", reference]);
    let origin = |layer: &Value| layer["origin"].as_str().unwrap().to_owned();
    (at, report["layers"].as_array().unwrap().iter().map(origin).collect())
}

/// Returns what an image shows.
fn shown(reference: &str) -> Dump {
    let node = Node::new("");
    let at = node.mount(reference);
    let dump = dump::disk(&at).unwrap();
    node.umount(&at);
    dump
}

/// Mounts what is in a registry, with the daemon killed, and again without network.
fn is_lazy(path: &str, registry: &mut Embedded, reference: &str, layers: usize, wanted: &Dump) {
    let node = Node::reading(path, "");
    let (at, origins) = origins(&node, reference);
    assert_eq!(origins, vec!["contents"; layers]);
    assert_same(&at, wanted);

    // Killed, and again; then without network.
    node.kill_daemon();
    assert_same(&at, wanted);
    node.umount(&at);
    node.stop();
    registry.down();
    let at = node.mount(reference);
    assert_same(&at, wanted);
    assert_eq!(node.received(), 0);
}

fn is_lazy_in_both_versions(path: &str, first: &Node) {
    for (image, dir) in [(merged(), "six"), (merged_5(), "five")] {
        let mut registry = Embedded::start(&first.path(dir));
        let wanted = wanted(&registry.host());
        let reference = format!("{}/team/app:nydus", registry.host());
        image.push(&reference);
        is_lazy(path, &mut registry, &reference, 4, &wanted);
    }
}

#[test]
fn an_image_of_nydus_is_lazy_on_the_kernels_own_path() {
    is_lazy_in_both_versions("erofs", &kernel_node!(""));
}

#[test]
fn an_image_of_nydus_is_lazy_through_fuse() {
    is_lazy_in_both_versions("fuse", &node!());
}

fn references_are_lazy(path: &str, first: &Node) {
    let mut registry = Embedded::start(&first.path("registry"));
    let [tars, reference] = ["tars", "nydus"].map(|tag| format!("{}/team/app:{tag}", registry.host()));
    let (original, image) = references();
    original.push(&tars);
    image.push(&reference);
    let wanted = shown(&tars);
    is_lazy(path, &mut registry, &reference, 3, &wanted);
}

#[test]
fn an_image_that_refers_to_ordinary_layers_is_lazy_on_the_kernels_own_path() {
    references_are_lazy("erofs", &kernel_node!(""));
}

#[test]
fn an_image_that_refers_to_ordinary_layers_is_lazy_through_fuse() {
    references_are_lazy("fuse", &node!());
}

/// What `floe convert` has made, by its digest, and by an index that lists nothing else.
fn what_is_converted_is_lazy(path: &str, first: &Node) {
    let mut registry = Embedded::start(&first.path("registry"));
    let [from, made, alone] =
        ["v1", "made", "alone"].map(|tag| format!("{}/team/app:{tag}", registry.host()));
    let original = image::layered(77, 40, 60_000);
    original.push(&from);
    let wanted = shown(&from);
    first.ok(&["convert", &from, &format!("docker://{made}"), "--format", "nydus"]);
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let digest = runtime.block_on(async {
        let root = image::client().source(&made.parse().unwrap()).await.unwrap().root().await.unwrap();
        let mut index: Value = serde_json::from_slice(&root.bytes).unwrap();
        let entries = index["manifests"].as_array_mut().unwrap();
        entries.retain(|entry| entry["artifactType"] == media_type::NYDUS_IMAGE);
        assert_eq!(entries.len(), 1);
        let digest = entries[0]["digest"].as_str().unwrap().to_owned();
        let (bytes, name) = (Bytes::from(index.to_string()), image::name(&alone));
        let index = Manifest { digest: Digest::of(&bytes), media_type: media_type::INDEX.into(), bytes };
        let repository = image::client().repository(name.host(), name.repository());
        repository.push_manifest(&index, &Pick::of(&name)).await.unwrap();
        format!("{}/team/app@{digest}", registry.host())
    });
    let same = first.ok(&["check", &from, &digest]);
    assert!(same.starts_with("the same"), "{same}");
    for reference in [&digest, &alone] {
        is_lazy(path, &mut registry, reference, original.layers.len() + 1, &wanted);
        registry.up();
    }
}

#[test]
fn what_is_converted_is_lazy_on_the_kernels_own_path() {
    what_is_converted_is_lazy("erofs", &kernel_node!(""));
}

#[test]
fn what_is_converted_is_lazy_through_fuse() {
    what_is_converted_is_lazy("fuse", &node!());
}

/// A file in the last of several members: what is fetched is that of the last place to enter, not all before it.
#[test]
fn of_an_ordinary_layer_no_more_is_fetched_than_a_file_takes() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let (original, image) = references();
    original.push(&format!("{}/team/app:tars", registry.host()));
    let reference = format!("{}/team/app:nydus", registry.host());
    image.push(&reference);
    let node = Node::new("[fetch]\nbackground = false\n");
    let at = node.mount(&reference);
    let before = node.received();
    assert_eq!(
        fs::read(at.join("last")).unwrap_or_else(|error| panic!("{error}: {}", node.log())),
        b"the end"
    );
    assert!(node.received() - before < 20_000, "{}", node.received() - before);
    assert!(original.layers[1].blob.len() > 40_000);
    node.umount(&at);
}

#[test]
fn checks_find_the_files_of_the_original() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let tag = |tag: &str| format!("{}/team/app:{tag}", registry.host());
    // Version 5 keeps times, too.
    wanted(&registry.host());
    merged_5().push(&tag("five"));
    assert!(node.ok(&["check", &tag("tars"), &tag("five")]).starts_with("the same: "));
    let (original, image) = references();
    original.push(&tag("gzip"));
    image.push(&tag("refs"));
    // The reference keeps times of these.
    assert!(node.ok(&["check", &tag("gzip"), &tag("refs")]).starts_with("the same: "));
}

/// Ordinary layers are made of blobs, in their order and with whiteouts; all of them together show the same.
#[test]
fn ordinary_layers_are_made_of_blobs_that_have_no_original_beside_them() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let tag = |tag: &str| format!("docker://{}/team/app:{tag}", registry.host());
    for (name, image) in [("six", merged()), ("five", merged_5())] {
        let (from, to) = (tag(name), tag(&format!("{name}-oci")));
        image.push(from.trim_start_matches("docker://"));
        let args = ["--output", "json", "convert", &from, &to, "--format", "oci", "--verify"];
        let outcome = node.run(&args);
        assert!(outcome.stderr.contains("made anew"), "what is lost is told: {}", outcome.stderr);
        let report = outcome.json();
        let hows: Vec<_> = report["layers"].as_array().unwrap().iter().map(|layer| &layer["how"]).collect();
        assert_eq!(hows, ["recoded", "recoded", "recoded", "kept"], "{report}");
        assert_eq!(report["verified"], 3);
        let [from, to] = [&from, &to].map(|place| place.trim_start_matches("docker://"));
        assert!(node.ok(&["check", from, to]).starts_with("the same: "));
        // Again it is the same, and nothing is sent.
        let again = node.json(&["convert", &tag(name), &tag(&format!("{name}-oci")), "--format", "oci"]);
        assert_eq!((&again["digest"], &again["sent"]), (&report["digest"], &json!(0)));
    }
    let (original, image) = references();
    original.push(tag("tars").trim_start_matches("docker://"));
    image.push(tag("refs").trim_start_matches("docker://"));
    let failed = node.fails(&["convert", &tag("refs"), &tag("refs-oci"), "--format", "oci"]);
    assert!(failed.contains("a layer of an ordinary image"), "{failed}");
}

#[test]
fn every_packing_is_read() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    for (name, tar) in [
        ("zstd", "base"),
        ("lz4", "base"),
        ("batch", "base"),
        ("zstd5", "base"),
        ("lz45", "base"),
        ("none5", "top"),
    ] {
        let layer = Layer::new(vector(&format!("{tar}.tar")), Pack::Plain);
        let wanted = TestImage::new(vec![layer], &json!({})).extract(&first.path(name));
        let reference = format!("{}/team/app:{name}", registry.host());
        nydus(&[vector(&format!("{name}.blob"))], &vector(&format!("{name}.boot"))).push(&reference);
        let node = Node::new("");
        let at = node.mount(&reference);
        assert_same(&at, &wanted);
        node.umount(&at);
    }
}

#[test]
fn a_pull_brings_all_of_it_and_a_policy_on_indexes_is_not_about_it() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let (image, wanted) = (merged(), wanted(&registry.host()));
    let reference = format!("{}/team/app:nydus", registry.host());
    image.push(&reference);
    // The tree is in a layer, which is read whole: there is nothing for anybody to sign.
    let node = Node::new(&format!("[trust]\nrequire = [\"{}/team/\"]\n", registry.host()));
    let pulled = node.json(&["pull", &reference]);
    for layer in pulled["layers"].as_array().unwrap() {
        assert_eq!(layer["local"], layer["segments"]);
    }
    drop(registry);
    let at = node.mount(&reference);
    assert_same(&at, &wanted);
}

#[test]
fn a_bootstrap_that_is_another_or_damaged_is_an_error_that_says_so() {
    let node = node!();
    let server = Faulty::start();
    let image = merged();
    let fails = |image: &TestImage, tag: &str, what: &str| {
        image.put(&server, "team/app", tag);
        let failed = node.fails(&["mount", &format!("{}/team/app:{tag}", server.host()), "/mnt"]);
        assert!(failed.contains(what), "{failed}");
    };
    // A blob that the bootstrap needs is not in the manifest.
    let names = ["base.blob", "middle.blob"].map(vector);
    fails(&lacking(&names), "lacking", "is not among the image's layers");
    // Something else where the tree should be.
    let mut wrong = vector("zstd.boot");
    wrong[1024] ^= 1;
    fails(&nydus(&[vector("zstd.blob")], &wrong), "wrong", "this is not a bootstrap of Nydus");
    // No bootstrap in it.
    let mut none = image;
    let last = none.layers.len() - 1;
    let mut layer = Layer::of(&[Entry::file("image/other", "x")], Pack::Gzip);
    layer.annotations = none.layers[last].annotations.clone();
    none.layers[last] = layer;
    let none = TestImage::new(none.layers, &json!({}));
    fails(&none, "none", "no image/image.boot");
}

/// An image that lacks a blob of its tree.
fn lacking(blobs: &[Vec<u8>]) -> TestImage {
    nydus(blobs, &vector("merged.boot"))
}

#[test]
fn a_bootstrap_that_was_called_a_blob_still_has_its_tree_for_others() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let honest = merged();
    let wanted = wanted(&registry.host());
    let last = honest.layers.len() - 1;
    let mut layer = honest.layers[last].clone();
    layer.annotations = [("containerd.io/snapshot/nydus-blob".to_owned(), "true".to_owned())].into();
    let lying = TestImage::new(vec![layer], &json!({}));
    let [lie, truth] = ["lie", "truth"].map(|tag| format!("{}/team/app:{tag}", registry.host()));
    lying.push(&lie);
    honest.push(&truth);
    for _ in 0..2 {
        let empty = node.mount(&lie);
        assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
        let at = node.mount(&truth);
        assert_same(&at, &wanted);
        node.umount(&at);
        node.umount(&empty);
    }
}

#[test]
fn bytes_of_a_blob_that_are_wrong_never_reach_a_reader() {
    let node = node!();
    let server = Faulty::start();
    let image = merged();
    image.put(&server, "team/app", "v1");
    let at = node.mount(&format!("{}/team/app:v1", server.host()));
    let blob = blob_path("team/app", &image.layers[0].digest());
    let wrong = image.layers[0].blob.iter().map(|byte| !byte).collect();
    server.fault(&blob, Fault::Swap(wrong), u32::MAX);
    let failing = fs::read_dir(&at).unwrap().flatten().filter(|entry| {
        let is_file = entry.file_type().is_ok_and(|kind| kind.is_file());
        is_file && entry.metadata().is_ok_and(|meta| meta.len() > 0) && fs::read(entry.path()).is_err()
    });
    assert!(failing.count() > 0);
    server.heal();
}
