//! Images converted into other formats and back, from place to place, and past what goes wrong.
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
use std::path::PathBuf;
use std::process::Command;

use bytes::Bytes;
use format::Digest;
use registry::{CONVERTED_FROM, Content, Image, Manifest, Pick, Platform, Reference, media_type};
use rustix::process::Signal;
use serde_json::{Value, json};
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use support::{Node, until};
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

fn run<F: Future>(future: F) -> F::Output {
    tokio::runtime::Runtime::new().unwrap().block_on(future)
}

/// Returns the image for a platform that is at a place.
fn image_at(place: &str, platform: &Platform) -> Image {
    let reference: Reference = place.parse().unwrap();
    run(async { image::client().source(&reference).await.unwrap().image(platform).await.unwrap() })
}

/// Returns what is named at a place, if anything is.
fn root_at(place: &str) -> Option<Manifest> {
    let reference: Reference = place.parse().unwrap();
    match run(async { image::client().source(&reference).await?.root().await }) {
        Ok(root) => Some(root),
        Err(error) if error.is_not_found() => None,
        Err(error) => panic!("{place}: {error}"),
    }
}

fn diff_ids(image: &Image) -> Vec<String> {
    image.layers.iter().map(|layer| layer.diff_id.to_string()).collect()
}

/// How each layer came to the destination.
fn hows(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["how"].as_str().unwrap()).collect()
}

/// An image for this machine's platform and another one, and an attestation about the first.
struct Multi {
    host: Registry,
    here: TestImage,
    list: Manifest,
    from: String,
}

type Registry = Embedded;

const OTHER: &str = "linux/s390x";

impl Multi {
    fn push(node: &Node, seed: u64) -> Self {
        let host = Embedded::start(&node.path("registry"));
        let from = format!("{}/team/app:v1", host.host());
        let base = Layer::of(
            &[
                Entry::dir("etc/"),
                Entry::file("etc/hello", format!("hello {seed}\n")),
                Entry::symlink("etc/link", "hello"),
            ],
            Pack::Gzip,
        );
        let data = |seed: u64| Entry::file("data", image::noise(seed, 700_000));
        let layers = |seed| vec![base.clone(), Layer::of(&[data(seed)], Pack::Zstd)];
        let labels = json!({ "Labels": { "kept": "as it is" }, "Cmd": ["x"] });
        let here = TestImage::new(layers(seed), &labels);
        let mut there = TestImage::new(layers(seed + 1), &labels);
        let config = String::from_utf8(there.config.to_vec()).unwrap();
        let own = Platform::host().architecture;
        there.config = config.replace(&format!("\"{own}\""), "\"s390x\"").into();
        let manifest = String::from_utf8(there.manifest.to_vec()).unwrap();
        let mut manifest: Value = serde_json::from_str(&manifest).unwrap();
        manifest["config"]["digest"] = Digest::of(&there.config).to_string().into();
        manifest["config"]["size"] = there.config.len().into();
        there.manifest = manifest.to_string().into();
        here.push(&from);
        there.push(&from);

        let entry = |image: &TestImage, architecture: &str| {
            json!({
                "mediaType": media_type::MANIFEST, "digest": image.digest().to_string(), "size": image.manifest.len(),
                "platform": { "os": "linux", "architecture": architecture }
            })
        };
        let list = json!({
            "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": [entry(&here, &own), entry(&there, "s390x")]
        });
        let bytes = Bytes::from(list.to_string());
        let list = Manifest { digest: Digest::of(&bytes), media_type: media_type::INDEX.into(), bytes };
        let name = image::name(&from);
        let repository = image::client().repository(name.host(), name.repository());
        run(repository.push_manifest(&list, &Pick::of(&name))).unwrap();
        Self { host, here, list, from }
    }

    fn place(&self, name: &str) -> String {
        format!("docker://{}/{name}", self.host.host())
    }
}

#[test]
fn every_platform_goes_there_and_back() {
    let node = node!("");
    let multi = Multi::push(&node, 70);
    let other = Platform::parse(OTHER).unwrap();
    for format in ["estargz", "zstdchunked"] {
        let to = multi.place(&format!("team/{format}:v1"));
        let convert = || node.json(&["convert", &multi.from, &to, "--format", format, "--verify"]);
        let report = convert();
        // One layer is the same on both platforms.
        assert_eq!((hows(&report), &report["verified"]), (vec!["recoded"; 3], &json!(3)), "{report}");
        assert_eq!(report["manifests"], 3);
        let image = image_at(&to, &Platform::host());
        let kind = if format == "estargz" { "gzip" } else { "zstd" };
        for (layer, was) in image.layers.iter().zip(&multi.here.layers) {
            assert!(layer.media_type.ends_with(kind), "{}", layer.media_type);
            assert_eq!(layer.annotations[CONVERTED_FROM], was.digest().to_string());
        }
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        assert_eq!(config["config"]["Labels"]["kept"], "as it is");
        assert_eq!(image_at(&to, &other).layers[0], image.layers[0]);

        // What is there is used again.
        let again = convert();
        assert_eq!((hows(&again), &again["sent"]), (vec!["reused"; 3], &json!(0)), "{again}");
        assert_eq!(again["digest"], report["digest"]);

        // It holds the same files.
        let at = node.mount(to.strip_prefix("docker://").unwrap());
        assert_eq!(fs::read(at.join("etc/link")).unwrap(), b"hello 70\n");
        assert!(fs::read(at.join("data")).unwrap() == image::noise(70, 700_000));
        node.umount(&at);

        // And back: not the blobs, but the tars, and so the configs, are the same.
        let back = format!("oci:{}:back", node.path(format).display());
        let report = node.json(&["convert", &to, &back, "--format", "oci", "--verify"]);
        assert_eq!(hows(&report), ["recoded"; 3], "{report}");
        for platform in [Platform::host(), other.clone()] {
            let (before, after) = (image_at(&multi.from, &platform), image_at(&back, &platform));
            assert_eq!(diff_ids(&before), diff_ids(&after));
            assert_eq!(before.config_digest, after.config_digest);
            assert!(after.layers.iter().all(|layer| layer.media_type.ends_with("tar+gzip")));
        }
    }
    // What is ordinary stays.
    let to = multi.place("same:v1");
    let report = node.json(&["convert", &multi.from, &to, "--format", "oci"]);
    assert_eq!((hows(&report), &report["digest"]), (vec!["kept"; 3], &json!(multi.list.digest.to_string())));
}

#[test]
fn an_image_of_nydus_lies_beside_its_original() {
    let node = node!("");
    let multi = Multi::push(&node, 75);
    let to = multi.place("nydus:v1");
    let report = node.json(&["convert", &multi.from, &to, "--format", "nydus", "--verify"]);
    assert_eq!((hows(&report), &report["verified"]), (vec!["recoded"; 3], &json!(3)), "{report}");
    assert_eq!(image_at(&to, &Platform::host()).manifest.digest, multi.here.digest());
    let listed = root_at(&to).unwrap().children();
    assert_eq!(listed.len(), 4);
    assert_eq!(listed[2].annotations[CONVERTED_FROM], multi.here.digest().to_string());
    // A second run has of its layers what is at their ends in the registry, and makes the same of it.
    let again = node.json(&["convert", &multi.from, &to, "--format", "nydus", "--verify"]);
    assert_eq!((hows(&again), &again["digest"]), (vec!["reused"; 3], &report["digest"]), "{again}");
    assert_eq!(again["sent"], 0);
    // Made again of both, or into other formats, it begins with the original.
    let again = node.json(&["convert", &to, &to, "--format", "nydus"]);
    assert_eq!((hows(&again), &again["digest"]), (vec!["reused"; 3], &report["digest"]), "{again}");
    let other = node.json(&["convert", &to, &multi.place("other:v1"), "--format", "estargz"]);
    assert_eq!(hows(&other), ["recoded"; 3], "{other}");
    assert_eq!(root_at(&multi.place("other:v1")).unwrap().children().len(), 2);
}

#[test]
fn a_layer_becomes_a_file_system() {
    let node = node!("");
    let multi = Multi::push(&node, 78);
    let to = multi.place("erofs:v1");
    let convert = |more: &[&str]| {
        node.json(&[&["convert", &multi.from, &to, "--format", "erofs", "--verify"][..], more].concat())
    };
    let report = convert(&[]);
    assert_eq!((hows(&report), &report["verified"]), (vec!["recoded"; 3], &json!(3)), "{report}");
    // A layout shows what is in it.
    let layout = node.path("alone");
    node.ok(&["copy", &to, &format!("oci:{}:v1", layout.display())]);
    let blob = |digest: &Value| -> Value {
        let name = digest.as_str().unwrap().strip_prefix("sha256:").unwrap();
        serde_json::from_slice(&fs::read(layout.join("blobs/sha256").join(name)).unwrap()).unwrap()
    };
    let image = blob(&json!(root_at(&to).unwrap().children()[0].digest.to_string()));
    let config = blob(&image["config"]["digest"]);
    assert_eq!(config["os.features"], json!(["erofs"]));
    for (n, was) in multi.here.layers.iter().enumerate() {
        let layer = &image["layers"][n];
        assert_eq!(layer["mediaType"], "application/vnd.erofs.layer.v1");
        assert_eq!(config["rootfs"]["diff_ids"][n], layer["digest"]);
        assert_eq!(layer["annotations"][CONVERTED_FROM], was.digest().to_string());
    }
    // Alone it is for every registry, and so says nothing of it in its index.
    let listed = |place: &str| root_at(place).unwrap().children();
    assert!(listed(&to).iter().all(|entry| entry.platform.as_ref().unwrap().other.is_empty()));
    // It starts as it is.
    let at = node.mount(to.strip_prefix("docker://").unwrap());
    assert!(fs::read(at.join("data")).unwrap() == image::noise(78, 700_000));
    node.umount(&at);

    // Back, and into other formats.
    for format in ["oci", "estargz", "zstdchunked", "nydus"] {
        let there = multi.place(&format!("{format}:v1"));
        let back = node.json(&["convert", &to, &there, "--format", format, "--verify"]);
        assert_eq!((hows(&back), &back["verified"]), (vec!["recoded"; 3], &json!(3)), "{back}");
        if format == "nydus" {
            continue; // beside what it was made of
        }
        let config: Value = serde_json::from_slice(&image_at(&there, &Platform::host()).config).unwrap();
        assert_eq!(config.get("os.features"), None);
        let at = node.mount(there.strip_prefix("docker://").unwrap());
        assert_eq!(fs::read(at.join("etc/link")).unwrap(), b"hello 78\n");
        assert!(fs::read(at.join("data")).unwrap() == image::noise(78, 700_000));
        node.umount(&at);
        let same = node.ok(&["check", &multi.from, &there]);
        assert!(same.starts_with("the same: "), "{same}");
    }

    // Called a tar it is no empty one.
    let mut called: Value = image.clone();
    for layer in called["layers"].as_array_mut().unwrap() {
        layer["mediaType"] = media_type::LAYER.into();
    }
    let name = image::name(multi.place("called:v1").strip_prefix("docker://").unwrap());
    let bytes = Bytes::from(called.to_string());
    let manifest = Manifest { digest: Digest::of(&bytes), media_type: media_type::MANIFEST.into(), bytes };
    let repository = image::client().repository(name.host(), name.repository());
    for layer in image["layers"].as_array().unwrap().iter().chain([&image["config"]]) {
        let file = layer["digest"].as_str().unwrap().strip_prefix("sha256:").unwrap();
        let content = fs::read(layout.join("blobs/sha256").join(file)).unwrap();
        run(repository.push_blob(&Content::bytes(content.into()), None)).unwrap();
    }
    run(repository.push_manifest(&manifest, &Pick::of(&name))).unwrap();
    let called = multi.place("called:v1");
    let called = called.strip_prefix("docker://").unwrap();
    for tried in [&["pull", called][..], &["convert", called, &multi.place("x:v1"), "--format", "estargz"]] {
        let complaint = node.fails(tried);
        assert!(complaint.contains("an EROFS file system and no tar"), "{complaint}");
    }

    let both = convert(&["--keep-original"]);
    assert_eq!((hows(&both), &both["verified"]), (vec!["reused"; 3], &json!(3)), "{both}");
    assert_eq!(image_at(&to, &Platform::host()).manifest.digest, multi.here.digest());
    let all = listed(&to);
    let feature = |n: usize| all[n].platform.as_ref().unwrap().other.get("os.features").cloned();
    assert_eq!([0, 1, 2, 3].map(feature), [None, None, Some(json!(["erofs"])), Some(json!(["erofs"]))]);
    let back = node.json(&["convert", &to, &multi.place("back:v1"), "--format", "oci"]);
    assert_eq!((hows(&back), &back["digest"]), (vec!["kept"; 3], &json!(multi.list.digest.to_string())));
}

#[test]
fn an_original_that_is_kept_is_what_everybody_gets() {
    let node = node!("");
    let multi = Multi::push(&node, 72);
    let to = multi.place("both:v1");
    let report = node.json(&["convert", &multi.from, &to, "--format", "zstdchunked", "--keep-original"]);
    assert_eq!((hows(&report), &report["manifests"]), (vec!["recoded"; 3], &json!(5)), "{report}");
    assert_eq!(image_at(&to, &Platform::host()).manifest.digest, multi.here.digest());
    let listed = root_at(&to).unwrap().children();
    assert_eq!(listed[2].annotations[CONVERTED_FROM], multi.here.digest().to_string());
    assert_eq!(listed[2].annotations["io.github.containers.compression.zstd"], "true");
    // Again, and into another format, each begins with the originals.
    let again = node.json(&["convert", &to, &to, "--format", "zstdchunked", "--keep-original"]);
    assert_eq!((hows(&again), &again["digest"]), (vec!["reused"; 3], &report["digest"]), "{again}");
    let back = node.json(&["convert", &to, &multi.place("back:v1"), "--format", "oci"]);
    assert_eq!(hows(&back), ["kept"; 3], "{back}");
    let listed = root_at(&multi.place("back:v1")).unwrap().children();
    assert_eq!(listed.len(), 2);
    assert_eq!(listed[0].digest, multi.here.digest());
}

#[test]
fn an_archive_on_stdin_goes_straight_to_a_registry() {
    let node = node!("");
    let registry = Embedded::start(&node.path("registry"));
    let image = image::layered(74, 2, 300_000);
    let layout = node.path("built");
    image.layout(&layout, "v1");
    let archive = node.path("built.tar");
    support::tool(Command::new("tar").arg("-cf").arg(&archive).arg("-C").arg(&layout).arg("."));
    let scratch = node.path("scratch");
    fs::create_dir(&scratch).unwrap();
    let convert = |to: &str, more: &[&str]| {
        let args =
            [&["--output", "json", "convert", "oci-archive:-", to, "--format", "estargz"], more].concat();
        let mut command = node.command(&args);
        command.stdin(fs::File::open(&archive).unwrap()).env("TMPDIR", &scratch);
        node.spawn(command).end()
    };
    let to = format!("{}/app:v1", registry.host());
    let outcome = convert(&to, &["--verify"]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert_eq!(hows(&outcome.json()), ["recoded"; 2]);
    let made = image_at(&to, &Platform::host());
    assert_eq!(made.layers[1].annotations[CONVERTED_FROM], image.layers[1].digest().to_string());

    // On to stdout, where the result is told elsewhere.
    let outcome = convert("oci-archive:-:v1", &[]);
    assert!(outcome.status.success(), "{}", outcome.stderr);
    let piped = node.path("piped.tar");
    fs::write(&piped, &outcome.stdout).unwrap();
    let again = image_at(&format!("oci-archive:{}:v1", piped.display()), &Platform::host());
    assert_eq!(again.manifest.digest, made.manifest.digest);
    assert!(outcome.stderr.contains(&made.manifest.digest.to_string()), "{}", outcome.stderr);
    let outcome = convert("oci-archive:-", &["--verify"]);
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("cannot be read again"), "{outcome:?}");
    assert_eq!(fs::read_dir(&scratch).unwrap().count(), 0);
}

#[test]
fn a_layer_that_cannot_be_expressed_stays_and_why_is_told() {
    let node = node!("");
    let registry = Embedded::start(&node.path("registry"));
    let good = Layer::of(&[Entry::file("good", "good\n")], Pack::Gzip);
    let twice = Layer::of(&[Entry::file("twice", "one\n"), Entry::file("twice", "two\n")], Pack::Gzip);
    let image = TestImage::new(vec![good, twice.clone()], &json!({}));
    let (from, to) = (format!("{}/app:v1", registry.host()), format!("{}/app:made", registry.host()));
    image.push(&from);
    let outcome = node.run(&["convert", &from, &to, "--format", "estargz"]);
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(outcome.text().contains("kept: \"twice\" cannot be"), "{}", outcome.text());
    assert!(outcome.text().contains("1 recoded, 0 reused, 1 kept"), "{}", outcome.text());
    let made = image_at(&to, &Platform::host());
    assert_eq!((made.layers[1].digest, made.layers[1].diff_id.digest()), (twice.digest(), &twice.diff_id()));
    let at = node.mount(&to);
    assert_eq!(fs::read(at.join("good")).unwrap(), b"good\n");
    assert_eq!(fs::read(at.join("twice")).unwrap(), b"two\n");
}

/// A registry that has an image and misbehaves, and places to convert it to.
struct Scene {
    server: Faulty,
    image: TestImage,
    from: String,
    registry: Embedded,
    scratch: PathBuf,
    layout: PathBuf,
    archive: PathBuf,
}

impl Scene {
    fn new(node: &Node, seed: u64) -> Self {
        let (server, image) = (Faulty::start(), image::layered(seed, 3, 400_000));
        image.put(&server, "app", "v1");
        let scratch = node.path("scratch");
        fs::create_dir(&scratch).unwrap();
        Self {
            from: format!("{}/app:v1", server.host()),
            registry: Embedded::start(&node.path("registry")),
            server,
            image,
            scratch,
            layout: node.path("layout"),
            archive: node.path("archives").join("image.tar"),
        }
    }

    fn blob(&self, layer: usize) -> String {
        image::blob_path("app", &self.image.layers[layer].digest())
    }

    fn places(&self) -> [String; 3] {
        fs::create_dir_all(self.archive.parent().unwrap()).unwrap();
        [
            format!("docker://{}/app:v1", self.registry.host()),
            format!("oci:{}:v1", self.layout.display()),
            format!("oci-archive:{}:v1", self.archive.display()),
        ]
    }

    fn convert(&self, node: &Node, to: &str) -> Command {
        let mut command = node.command(&["convert", &self.from, to, "--format", "zstdchunked"]);
        command.env("TMPDIR", &self.scratch);
        command
    }

    /// Says that nothing is named anywhere, and that no file that waited to be sent is left.
    fn assert_nothing_is_left(&self) {
        assert!(root_at(&self.places()[0]).is_none());
        if self.layout.exists() {
            assert!(root_at(&self.places()[1]).is_none());
        }
        assert!(!self.archive.exists());
        let blobs = self.layout.join("blobs/sha256");
        for dir in [&self.scratch, &blobs, &self.archive.parent().unwrap().into()] {
            for entry in fs::read_dir(dir).into_iter().flatten().flatten() {
                assert!(!entry.file_name().to_string_lossy().starts_with(".tmp-"), "{entry:?}");
            }
        }
    }
}

#[test]
fn a_damaged_layer_fails_and_names_nothing() {
    let node = node!("");
    let scene = Scene::new(&node, 76);
    let damaged = scene.image.layers[1].digest().to_string();
    let mut evil = scene.image.layers[1].blob.to_vec();
    let middle = evil.len() / 2;
    evil[middle] ^= 1;
    // Another tar in a sound blob: only digests tell.
    let swapped = Layer::new(scene.image.layers[0].tar.clone(), Pack::Gzip).blob.to_vec();
    for evil in [evil, swapped] {
        scene.server.heal();
        scene.server.fault(&scene.blob(1), Fault::Swap(evil), u32::MAX);
        for to in scene.places() {
            let outcome = node.spawn(scene.convert(&node, &to)).end();
            assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
            assert!(outcome.stderr.contains(&damaged), "{}", outcome.stderr);
            assert!(outcome.stderr.contains("hint: "), "{}", outcome.stderr);
            scene.assert_nothing_is_left();
        }
    }
    scene.server.heal();
    for to in scene.places() {
        let outcome = node.spawn(scene.convert(&node, &to)).end();
        assert!(outcome.status.success(), "{outcome:?}");
        assert_eq!(image_at(&to, &Platform::host()).layers.len(), 3);
    }
}

#[test]
fn who_is_interrupted_or_killed_leaves_nothing() {
    let node = node!("");
    let scene = Scene::new(&node, 77);
    scene.server.fault(&scene.blob(2), Fault::Stall { after: 100_000 }, u32::MAX);
    for (n, to) in scene.places().iter().enumerate() {
        let converting = node.spawn(scene.convert(&node, to));
        until("the layer is asked for", || scene.server.count(&scene.blob(2)) > n);
        converting.signal([Signal::INT, Signal::TERM, Signal::INT][n]);
        let outcome = converting.end();
        assert_eq!(outcome.status.code(), Some(130), "{outcome:?}");
        assert!(outcome.stderr.contains("interrupted"), "{outcome:?}");
        scene.assert_nothing_is_left();
    }
    let [registry, ..] = scene.places();
    let converting = node.spawn(scene.convert(&node, &registry));
    until("the layer is asked for", || scene.server.count(&scene.blob(2)) > 3);
    support::kill_and_wait(converting.pid());
    scene.assert_nothing_is_left();

    // What it had sent is not sent again.
    scene.server.heal();
    let outcome = node.spawn(scene.convert(&node, &registry)).end();
    assert!(outcome.status.success(), "{outcome:?}");
    let were_there = |n: &usize| outcome.text().contains(&format!(" {n} were there"));
    assert!((1..6).any(|n| were_there(&n)), "{}", outcome.text());
}

#[test]
fn a_base_is_not_converted_again_and_the_same_image_is_always_made() {
    let node = node!("");
    let registry = Embedded::start(&node.path("registry"));
    let from = |tag: &str| format!("{}/app:{tag}", registry.host());
    let layer = |n: u64| Layer::of(&[Entry::file(format!("data-{n}"), image::noise(n, 300_000))], Pack::Gzip);
    let base = layer(1);
    for (tag, top) in [("v1", 2), ("v2", 3)] {
        TestImage::new(vec![base.clone(), layer(top)], &json!({})).push(&from(tag));
    }
    for format in ["estargz", "zstdchunked", "nydus", "erofs"] {
        let convert = |tag: &str, to: &str| node.json(&["convert", &from(tag), to, "--format", format]);
        let to = format!("docker://{}/made/{format}:latest", registry.host());
        let first = convert("v1", &to);
        assert_eq!(hows(&first), ["recoded"; 2], "{first}");
        let second = convert("v2", &to);
        assert_eq!(hows(&second), ["reused", "recoded"], "{second}");
        let apart = |name: &str| {
            let to = format!("oci:{}:latest", node.path(&format!("{format}-{name}")).display());
            convert("v2", &to)["digest"].clone()
        };
        assert_eq!([apart("one"), apart("other")], [second["digest"].clone(), second["digest"].clone()]);
    }
}

#[test]
fn what_makes_no_sense_is_refused() {
    let node = Node::new("");
    for args in [
        &["convert", "oci:/a", "oci:/b"][..],
        &["convert", "oci:/a", "oci:/b", "--format", "soci"],
        &["convert", "oci:/a", "oci:/b", "--format", "nydus", "--level", "23"],
        &["convert", "oci:/a", "oci:/b", "--format", "erofs", "--level", "1"],
        &["convert", "oci:/a", "oci:/b", "--format", "estargz", "--level", "13"],
        &["convert", "oci:/a", "oci:/b", "--format", "zstdchunked", "--level", "0"],
    ] {
        let outcome = node.run(args);
        assert_eq!(outcome.status.code(), Some(2), "{outcome:?}");
    }
    let place = format!("localhost/a@{}", Digest::of(b""));
    let complaint = node.fails(&["convert", "oci:/a", &place, "--format", "oci"]);
    assert!(complaint.contains("name a tag"), "{complaint}");
}
