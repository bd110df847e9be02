//! `floe convert --verify` and a destination that has other bytes than it was sent: the layer is named, and nothing else is.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use format::Digest;
use registry::Pick;
use serde_json::{Value, json};
use support::Node;
use support::image::{self, Layer, Pack, TestImage, blob_path, noise};
use support::servers::Embedded;
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

const FORMATS: [&str; 5] = ["estargz", "zstdchunked", "nydus", "erofs", "oci"];

/// A registry with an image that each format makes something else of.
struct Scene {
    node: Node,
    registry: Embedded,
}

impl Scene {
    fn new(node: Node) -> Self {
        let scene = Self { registry: Embedded::start(&node.path("registry")), node };
        let below = [Entry::dir("etc/"), Entry::file("etc/hello", "hello\n")];
        let above = [Entry::file("data", noise(1, 200_000)), Entry::symlink("etc/link", "hello")];
        let layers = vec![Layer::of(&below, Pack::Gzip), Layer::of(&above, Pack::Zstd)];
        TestImage::new(layers, &json!({})).push(&scene.from("estargz"));
        scene.convert("estargz", &scene.from("oci"));
        scene
    }

    /// Returns what is converted into a format: an ordinary image, or one that becomes ordinary.
    fn from(&self, format: &str) -> String {
        let tag = if format == "oci" { "made" } else { "plain" };
        format!("{}/team/app:{tag}", self.registry.host())
    }

    fn convert(&self, format: &str, to: &str) -> Value {
        self.node.json(&["convert", &self.from(format), &format!("docker://{to}"), "--format", format])
    }

    /// Converts into a format, without looking whether it worked; returns the layers that are there.
    fn made(&self, format: &str, to: &str) -> Vec<Digest> {
        let report = self.convert(format, to);
        let of = |layer: &Value| layer["to"].as_str().unwrap().parse().unwrap();
        let mut layers: Vec<Digest> = report["layers"].as_array().unwrap().iter().map(of).collect();
        if format == "nydus" {
            layers.push(self.top(to));
        }
        layers
    }

    /// Returns the layer with the tree of all others.
    fn top(&self, to: &str) -> Digest {
        let image: Value = serde_json::from_slice(&self.registry.content(&image::nydus_of(to))).unwrap();
        image["layers"].as_array().unwrap().last().unwrap()["digest"].as_str().unwrap().parse().unwrap()
    }

    /// Converts and verifies, which must fail because of a layer.
    fn finds(&self, format: &str, to: &str, layer: &Digest) {
        let to = format!("docker://{to}");
        let words = ["convert", &self.from(format), &to, "--format", format, "--verify"];
        let complaint = self.node.fails(&words);
        assert!(complaint.contains(&layer.to_string()), "{format}, {layer}: {complaint}");
    }

    /// Converts and verifies.
    fn verified(&self, format: &str, to: &str) -> Value {
        let to = format!("docker://{to}");
        let words = ["convert", &self.from(format), &to, "--format", format, "--verify"];
        let report = self.node.json(&words);
        assert_eq!(report["verified"], 2, "{report}");
        report
    }
}

/// Returns what a registry has by a name.
fn named(reference: &str) -> Option<Digest> {
    let name = image::name(reference);
    let repository = image::client().repository(name.host(), name.repository());
    let found = tokio::runtime::Runtime::new().unwrap().block_on(repository.manifest(&Pick::of(&name)));
    match found {
        Ok(manifest) => Some(manifest.digest),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("{reference}: {error}"),
    }
}

/// Returns bytes of which one is another.
fn altered(bytes: &[u8], at: usize) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    bytes[at] ^= 0x10;
    bytes
}

#[test]
fn a_byte_that_changes_when_it_is_stored_is_found_in_every_format() {
    let scene = Scene::new(node!(""));
    for format in FORMATS {
        let layers = scene.made(format, &format!("{}/made/{format}:v1", scene.registry.host()));
        assert_eq!(layers.len(), if format == "nydus" { 3 } else { 2 });
        for layer in layers {
            let right = scene.registry.content(&layer);
            for at in [0, right.len() / 2, right.len() - 1] {
                let server = Faulty::start();
                server.take_uploads();
                let wrong = Fault::Swap(altered(&right, at));
                server.fault(&blob_path("app", &layer), wrong, u32::MAX);
                let to = format!("{}/app:v1", server.host());
                scene.finds(format, &to, &layer);
                let put = |part: &str| {
                    // What is noted of layers that are there is no name of the image.
                    let put = |path: &str| path.contains(part) && !path.contains("/floe-converting-");
                    server.seen().iter().any(|seen| seen.method == "PUT" && put(&seen.path))
                };
                assert!(put("/blobs/") && !put("/manifests/"), "{format}: {:?}", server.seen());
                server.heal();
                scene.verified(format, &to);
                assert!(put("/manifests/v1"));
            }
        }
    }
}

#[test]
fn a_byte_that_changed_in_what_is_used_again_is_found_in_every_format() {
    let scene = Scene::new(node!(""));
    for format in FORMATS {
        let [first, second] =
            ["v1", "v2"].map(|tag| format!("{}/made/{format}:{tag}", scene.registry.host()));
        let layers = scene.made(format, &first);
        let before = named(&first);
        assert!(before.is_some());
        for layer in layers {
            let right = scene.registry.content(&layer);
            for at in [0, right.len() / 2, right.len() - 1] {
                scene.registry.corrupt(&layer, &altered(&right, at));
                scene.finds(format, &first, &layer); // there by that name
                scene.finds(format, &second, &layer); // made anew, and not sent
                assert_eq!((named(&first), named(&second)), (before, None), "{format}");
            }
            scene.registry.corrupt(&layer, &right);
        }
        let report = scene.verified(format, &first);
        assert!(report["layers"].as_array().unwrap().iter().all(|layer| layer["how"] == "reused"));
        scene.verified(format, &second);
        assert_eq!(named(&second), before);
    }
}
