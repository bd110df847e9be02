//! Commands and flags that no other test needs, as a user types them.
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

use format::Digest;
use serde_json::Value;
use support::image;
use support::servers::Embedded;

fn json_of(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

/// `-o` once wanted a layout that was there already, and said so of the directory it was to make.
#[test]
fn an_index_goes_into_a_layout_of_its_own() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    let image = image::simple(60, 1);
    image.push(&reference);
    let layout = node.path("some/layout");
    let command = ["index", "-o", layout.to_str().unwrap(), &reference];
    let artifact = node.json(&command)["artifact"].as_str().unwrap().to_owned();
    let blob =
        |digest: &Value| layout.join("blobs/sha256").join(&digest.as_str().unwrap()["sha256:".len()..]);

    let listed = json_of(&layout.join("index.json"))["manifests"].clone();
    assert_eq!((listed.as_array().unwrap().len(), &listed[0]["digest"]), (1, &artifact.clone().into()));
    let manifest = json_of(&blob(&listed[0]["digest"]));
    assert_eq!(manifest["subject"]["digest"], image.digest().to_string());
    for entry in manifest["layers"].as_array().unwrap() {
        let bytes = fs::read(blob(&entry["digest"])).unwrap();
        assert_eq!(
            (Digest::of(&bytes).to_string().into(), bytes.len().into()),
            (entry["digest"].clone(), entry["size"].clone())
        );
    }

    // Once more, beside the image itself: there it is found.
    node.ok(&command);
    let beside = node.path("image");
    image.layout(&beside, "v1");
    node.ok(&["index", "-o", beside.to_str().unwrap(), &reference]);
    let other = support::Node::new("");
    let report = other.json(&["inspect", &format!("oci:{}:v1", beside.display())]);
    assert_eq!(report["layers"][0]["origin"], "registry", "{report}");
}
