//! Conversions that were killed, and what the next one finds of them.
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
use std::path::{Path, PathBuf};

use registry::Pick;
use serde_json::{Value, json};
use support::image::{self, Layer, Pack, TestImage};
use support::servers::{DockerRegistry, Embedded};
use support::{Node, until};
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

const NOTE: &str = "floe-converting-";

/// How each layer came to the destination.
fn hows(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["how"].as_str().unwrap()).collect()
}

/// Three layers, of which the last is begun last: it is the smallest.
fn image(seed: u64) -> TestImage {
    let layer = |n: u64, len| {
        Layer::of(
            &[Entry::dir("data/"), Entry::file(format!("data/{n}"), image::noise(seed + n, len))],
            Pack::Gzip,
        )
    };
    TestImage::new(vec![layer(0, 500_000), layer(1, 400_000), layer(2, 300_000)], &json!({}))
}

/// Where an image is converted to.
enum Place {
    /// A host.
    Registry(String),
    Layout(PathBuf),
}

impl Place {
    fn name(&self, tag: &str) -> String {
        match self {
            Self::Registry(host) => format!("docker://{host}/made:{tag}"),
            Self::Layout(dir) => format!("oci:{}:{tag}", dir.display()),
        }
    }

    /// Returns the names that are there, but for those of notes, and of every note how many layers it has.
    fn names(&self) -> (Vec<String>, Vec<usize>) {
        let (mut names, mut notes) = (Vec::new(), Vec::new());
        for (name, manifest) in self.manifests() {
            match name.starts_with(NOTE) {
                true => notes.push(manifest["layers"].as_array().unwrap().len()),
                false => names.push(name),
            }
        }
        (names, notes)
    }

    fn manifests(&self) -> Vec<(String, Value)> {
        let parsed = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
        match self {
            Self::Registry(host) => {
                let name = image::name(&format!("{host}/made:x"));
                let repository = image::client().repository(name.host(), name.repository());
                let runtime = tokio::runtime::Runtime::new().unwrap();
                // Between the two a note may have become another.
                let manifest = |tag: registry::Tag| {
                    let found = runtime.block_on(repository.manifest(&Pick::Tag(tag.clone()))).ok()?;
                    Some((tag.to_string(), parsed(&found.bytes)))
                };
                let tags = runtime.block_on(repository.tags()).unwrap_or_default();
                tags.into_iter().filter_map(manifest).collect()
            }
            Self::Layout(dir) => {
                let Ok(index) = fs::read(dir.join("index.json")) else { return Vec::new() };
                let named = |entry: &Value| {
                    let hex = entry["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
                    let found = fs::read(dir.join("blobs/sha256").join(hex)).ok()?;
                    let name = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap();
                    Some((name.to_owned(), parsed(&found)))
                };
                parsed(&index)["manifests"].as_array().unwrap().iter().filter_map(named).collect()
            }
        }
    }
}

/// Returns how many files of a layout are notes, or their configs.
fn files_of_notes(layout: &Path) -> usize {
    let is_one = |file: &fs::DirEntry| {
        let bytes = fs::read(file.path()).unwrap_or_default(); // it may just go
        ["\"dev.floe.converting\"", "{\"destination\""]
            .iter()
            .any(|text| bytes.windows(text.len()).any(|window| window == text.as_bytes()))
    };
    fs::read_dir(layout.join("blobs/sha256")).unwrap().flatten().filter(is_one).count()
}

/// Kills a conversion when two of three layers are noted, and has another one go on.
fn goes_on(node: &Node, place: &Place, format: &str, seed: u64) {
    let (server, image) = (Faulty::start(), image(seed));
    image.put(&server, "app", "v1");
    let from = format!("{}/app:v1", server.host());
    let blob = |n: usize| image::blob_path("app", &image.layers[n].digest());
    let convert = |to: &str| node.json(&["convert", &from, to, "--format", format]);
    let to = place.name("v1");
    server.fault(&blob(2), Fault::Stall { after: 100_000 }, u32::MAX);
    let converting = node.spawn(node.command(&["convert", &from, &to, "--format", format]));
    until("two layers are noted", || place.names() == (vec![], vec![2]));
    if let Place::Layout(dir) = place {
        until("the note of one is removed", || files_of_notes(dir) == 2);
    }
    support::kill_and_wait(converting.pid());
    server.heal();

    let before = [0, 1].map(|n| server.count(&blob(n)));
    let report = convert(&to);
    assert_eq!(hows(&report), ["reused", "reused", "recoded"], "{format}: {report}");
    // Those of an image of Nydus lie beside it, and are carried.
    let carried = usize::from(format == "nydus");
    assert_eq!([0, 1].map(|n| server.count(&blob(n))), before.map(|count| count + carried), "{format}");
    assert_eq!(place.names(), (vec!["v1".to_owned()], vec![]), "{format}");
    let apart = convert(&place.name("apart"));
    assert_eq!(hows(&apart), ["recoded"; 3], "another name has no note: {apart}");
    assert_eq!(apart["digest"], report["digest"], "{format}");
}

#[test]
fn what_a_registry_has_of_a_killed_conversion_is_not_made_again() {
    let node = node!("");
    for (n, format) in ["estargz", "zstdchunked", "nydus", "erofs"].into_iter().enumerate() {
        let registry = Embedded::start(&node.path(&format!("to-{format}")));
        goes_on(&node, &Place::Registry(registry.host()), format, 100 * n as u64);
    }
}

#[test]
fn what_a_layout_has_of_a_killed_conversion_is_not_made_again() {
    let node = node!("");
    for (n, format) in ["zstdchunked", "nydus"].into_iter().enumerate() {
        let dir = node.path(&format!("to-{format}"));
        goes_on(&node, &Place::Layout(dir.clone()), format, 1000 + 100 * n as u64);
        assert_eq!(files_of_notes(&dir), 0);
    }
}

#[test]
fn a_registry_that_takes_no_note_has_the_image_all_the_same() {
    let node = node!("");
    let (source, image) = (Embedded::start(&node.path("from")), image(2000));
    let from = format!("{}/app:v1", source.host());
    image.push(&from);
    let server = Faulty::start();
    server.take_uploads();
    let notes = format!("/v2/made/manifests/{NOTE}");
    server.fault(&notes, Fault::Status { code: 400, retry_after: None }, u32::MAX);
    let to = format!("{}/made:v1", server.host());
    let outcome = node.run(&["convert", &from, &to, "--format", "zstdchunked"]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(outcome.stderr.matches("cannot be noted").count(), 1, "{}", outcome.stderr);
    let asked = |method: &str, path: &str| {
        let seen = server.seen();
        seen.iter().filter(|seen| seen.method == method && seen.path.starts_with(path)).count()
    };
    assert_eq!((asked("PUT", &notes), asked("DELETE", "/")), (1, 0));
    assert_eq!(asked("PUT", "/v2/made/manifests/v1"), 1, "it is named");
}

#[test]
fn a_registry_that_removes_nothing_keeps_one_note_that_names_nothing() {
    let node = node!("");
    let Some(registry) = DockerRegistry::start(&node.path("to")) else {
        testkit::skip!("no docker-registry");
    };
    let (source, place) = (Embedded::start(&node.path("from")), Place::Registry(registry.host.clone()));
    let from = format!("{}/app:v1", source.host());
    image(3000).push(&from);
    for expected in ["recoded", "reused"] {
        let report = node.json(&["convert", &from, &place.name("v1"), "--format", "zstdchunked"]);
        assert_eq!(hows(&report), [expected; 3], "{report}");
        assert_eq!(place.names(), (vec!["v1".to_owned()], vec![0]));
    }
}
