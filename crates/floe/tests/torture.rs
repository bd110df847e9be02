//! An image with every oddity of tars through each format and back: the same tars come out where a format keeps tars, the same
//! files from all, and what a format cannot hold stays and is told.
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

use serde_json::{Value, json};
use support::Node;
use support::image::{Layer, Pack, TestImage};
use testkit::tar::Entry;
use testkit::torture;

/// A layer that stays as it was, and a part of what is said of why.
type Kept<'a> = (&'a str, &'a str);

/// What no table of contents can hold.
const NO_TABLE: [Kept<'_>; 8] = [
    ("global headers", "a global extended header comes before it"),
    (
        "odd types",
        "\"types/contiguous\" cannot be in the table of contents: its type is not one of the seven",
    ),
    (
        "far years",
        "\"years/after\" cannot be in the table of contents: its time is not in the years 0 to 9999",
    ),
    ("bytes for names", "a name of it is not UTF-8"),
    ("sparse files", "it is a sparse file"),
    ("twice", "\"twice/file\" cannot be in the table of contents: its path occurs twice"),
    ("through links", "its path leads through something that is no directory"),
    ("links to lower layers", "a hard link to a file that is not in the layer before it"),
];

/// Returns the image with the names of its layers, but for some of them.
fn tortured(without: &[&str]) -> (TestImage, Vec<&'static str>) {
    let packs = [Pack::Gzip, Pack::Zstd, Pack::Plain].into_iter().cycle();
    let layers = torture::layers().into_iter().zip(packs).filter(|(layer, _)| !without.contains(&layer.name));
    let (layers, names) = layers.map(|(layer, pack)| (Layer::new(layer.tar, pack), layer.name)).unzip();
    (TestImage::new(layers, &json!({})), names)
}

fn read(layout: &Path, file: &str) -> Value {
    serde_json::from_slice(&fs::read(layout.join(file)).unwrap()).unwrap()
}

fn blob(layout: &Path, named: &Value) -> Value {
    let digest = named["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
    read(layout, &format!("blobs/sha256/{digest}"))
}

/// An image in a layout, and others made of it.
struct Scene {
    node: Node,
    from: String,
    names: Vec<&'static str>,
    image: TestImage,
}

impl Scene {
    fn new(node: Node, without: &[&str]) -> Self {
        let (image, names) = tortured(without);
        let dir = node.path("original");
        image.layout(&dir, "v1");
        Self { from: format!("oci:{}:v1", dir.display()), node, names, image }
    }

    fn place(&self, name: &str) -> String {
        format!("oci:{}:v1", self.node.path(name).display())
    }

    /// Converts; these layers stay, and no others.
    fn convert(&self, from: &str, to: &str, format: &str, kept: &[Kept<'_>]) {
        let report = self.node.json(&["convert", from, to, "--format", format, "--verify"]);
        let layers = report["layers"].as_array().unwrap();
        assert_eq!(layers.len(), self.names.len(), "{report}");
        for (layer, name) in layers.iter().zip(&self.names) {
            let why = kept.iter().find(|(kept, _)| kept == name).map(|(_, why)| *why);
            assert_eq!(layer["how"], if why.is_some() { "kept" } else { "recoded" }, "{name}: {layer}");
            let said = layer["why"].as_str().unwrap_or_default();
            assert!(said.contains(why.unwrap_or_default()), "{name}: {said}");
        }
    }

    fn diff_ids(&self, layout: &str) -> Vec<String> {
        let dir = self.node.path(layout);
        let mut manifest = read(&dir, "index.json");
        while manifest["manifests"].is_array() {
            manifest = blob(&dir, &manifest["manifests"][0]);
        }
        let config = blob(&dir, &manifest["config"]);
        let ids = config["rootfs"]["diff_ids"].as_array().unwrap();
        ids.iter().map(|id| id.as_str().unwrap().to_owned()).collect()
    }

    /// Names what was made alone, where it lies beside what it was made of.
    fn leave_original_out(&self, layout: &str) {
        let dir = self.node.path(layout);
        let named = &read(&dir, "index.json")["manifests"][0];
        let mut made = blob(&dir, named)["manifests"][1].clone();
        assert_eq!(made["artifactType"], registry::media_type::NYDUS_IMAGE);
        made["annotations"] = named["annotations"].clone();
        let index = json!({ "schemaVersion": 2, "manifests": [made] });
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
    }

    fn assert_same(&self, other: &str) {
        let text = self.node.ok(&["check", &self.from, other]);
        assert!(text.starts_with("the same: "), "{other}: {text}");
    }

    /// Goes there and back, and shows the same files in both places but for what these lines say of the first.
    fn there_and_back(&self, format: &str, kept: &[Kept<'_>], differs: &str) {
        let (there, back) = (self.place(format), format!("{format}-back"));
        self.convert(&self.from, &there, format, kept);
        if differs.is_empty() {
            self.assert_same(&there);
        } else {
            let outcome = self.node.run(&["check", &self.from, &there]);
            assert_eq!(outcome.status.code(), Some(4), "{outcome:?}");
            assert!(outcome.text().starts_with(differs), "{outcome:?}");
        }
        let kept: Vec<_> = kept.iter().map(|(name, _)| (*name, "")).collect();
        self.convert(&there, &self.place(&back), "oci", &kept);
        self.assert_same(&self.place(&back));
        let (found, original) = (self.diff_ids(&back), self.image.layers.iter());
        for ((found, layer), name) in found.iter().zip(original).zip(&self.names) {
            // Of a file system the tar is made anew, and of nothing there is but one.
            let is_kept = kept.iter().any(|(kept, _)| kept == name);
            let comes_back = format != "erofs" || is_kept || *name == "no member";
            assert_eq!(*found == layer.diff_id().to_string(), comes_back, "{name} by {format}");
        }
    }
}

#[test]
fn every_oddity_comes_back_from_estargz() {
    let kept = [&NO_TABLE[..], &[("a landmark", "eStargz keeps this name for itself")]].concat();
    // Its table has whole seconds.
    let times = "~ /pax  time\n~ /pax/early  time\n~ /pax/late  time\n3 of ";
    Scene::new(node!(""), &[]).there_and_back("estargz", &kept, times);
}

#[test]
fn every_oddity_comes_back_from_zstd_chunked() {
    let own = [
        ("length of nothing", "it has a length, but nothing that could be long"),
        ("no padding", "\"the end of the tar\" cannot be in the table of contents: it lies inside a padding"),
    ];
    let kept = [&NO_TABLE[..], &own].concat();
    Scene::new(node!(""), &[]).there_and_back("zstdchunked", &kept, "");
}

#[test]
fn every_oddity_is_the_same_in_file_systems() {
    let kept = [
        ("opaque root", "it hides all lower layers, which an overlay of layers cannot show"),
        ("links to lower layers", "\"linked\": the target of the hard link, \"stays\", does not exist"),
    ];
    Scene::new(node!(""), &[]).there_and_back("erofs", &kept, "");
}

/// Of an image of Nydus the original is beside it; without that, ordinary layers are made of the blobs.
#[test]
fn every_oddity_is_the_same_in_nydus() {
    let scene = Scene::new(node!(""), &["links to lower layers"]);
    let there = scene.place("nydus");
    scene.convert(&scene.from, &there, "nydus", &[]);
    let all: Vec<_> = scene.names.iter().map(|name| (*name, "")).collect();
    scene.convert(&there, &scene.place("back"), "oci", &all);
    let original = scene.image.layers.iter().map(|layer| layer.diff_id().to_string());
    assert!(scene.diff_ids("back").into_iter().eq(original));
    scene.leave_original_out("nydus");
    scene.assert_same(&there);
    scene.node.ok(&["convert", &there, &scene.place("made"), "--format", "oci", "--verify"]);
    scene.assert_same(&scene.place("made"));
}

#[test]
fn what_nydus_cannot_hold_is_named() {
    let scene = Scene::new(node!(""), &[]);
    let complaint = scene.node.fails(&["convert", &scene.from, &scene.place("nydus"), "--format", "nydus"]);
    let n = scene.names.iter().position(|name| *name == "links to lower layers").unwrap();
    let layer = format!("layer {}", scene.image.layers[n].digest());
    let why = "the target of the hard link, \"stays\", does not exist";
    assert!(complaint.contains(&layer) && complaint.contains(why), "{complaint}");
}

/// A file system shows a layer by itself and describes each directory in it: what lower layers say of one is hidden, and so is a
/// link that a path leads through.
#[test]
fn what_only_lower_layers_say_of_a_path_is_lost_in_file_systems() {
    let node = node!("");
    let lower = [Entry::dir("d/").mode(0o700), Entry::file("d/f", "1"), Entry::symlink("l", "d")];
    let upper = [Entry::file("d/g", "2"), Entry::file("l/h", "3")];
    let layers = [&lower[..], &upper].map(|entries| Layer::of(entries, Pack::Gzip));
    let original = node.path("original");
    TestImage::new(layers.to_vec(), &json!({})).layout(&original, "v1");
    let [from, there] = [original, node.path("there")].map(|dir| format!("oci:{}:v1", dir.display()));
    node.ok(&["convert", &from, &there, "--format", "erofs", "--verify"]);
    let outcome = node.run(&["check", &from, &there]);
    assert_eq!(outcome.status.code(), Some(4), "{outcome:?}");
    let text = outcome.text();
    assert!(text.starts_with("~ /d  mode, time\n- /d/h\n~ /l  kind\n+ /l/h\n"), "{text}");
}
