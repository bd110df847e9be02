//! Whose index is believed, and what comes of it when it lies: a hostile writer of the repository, strangers' keys,
//! wrong blobs.
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

use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use format::digest::ChunkId;
use format::index::Index;
use format::{DiffId, Digest};
use registry::{Content, Descriptor, NewArtifact, NewLayerIndex, media_type};
use ring::signature::{Ed25519KeyPair, KeyPair};
use serde_json::json;
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use support::{Node, unmount_below};
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

const EVIL: &str = "data/evil";
const GOOD: &str = "data/good";

fn entries(name: &str) -> Vec<Entry> {
    vec![
        Entry::dir("data/"),
        Entry::file(name, image::noise(5, 1_500_000)),
        Entry::file("data/other", image::noise(6, 700_000)),
    ]
}

fn honest() -> TestImage {
    TestImage::new(vec![Layer::of(&entries(GOOD), Pack::Gzip)], &json!({}))
}

/// Returns an index of the honest layer that gives one of its files another name.
fn renamed(image: &TestImage) -> Index {
    let truth = image::index_of(&image.layers[0]);
    let lie = image::index_of(&Layer::of(&entries(EVIL), Pack::Gzip));
    let mut facts = lie.facts().clone();
    facts.diff_id = truth.facts().diff_id;
    Index::new(facts, lie.skeleton().into(), lie.chunks().to_vec(), truth.source().clone()).unwrap()
}

/// Returns an index of the honest layer that says another hash of one chunk.
fn rehashed(image: &TestImage) -> Index {
    let truth = image::index_of(&image.layers[0]);
    let mut chunks = truth.chunks().to_vec();
    chunks[0].id = ChunkId([7; 32]);
    let mut facts = truth.facts().clone();
    facts.chunks_hash = format::index::hash_of(&chunks);
    Index::new(facts, truth.skeleton().into(), chunks, truth.source().clone()).unwrap()
}

/// Stores an index beside an image, as anybody can who may write to the repository.
fn plant(reference: &str, image: &TestImage, index: &Index) {
    let layer = &image.layers[0];
    let artifact = NewArtifact {
        subject: Descriptor::new(media_type::MANIFEST, image.digest(), image.manifest.len() as u64),
        layers: vec![NewLayerIndex {
            layer: layer.digest(),
            diff_id: DiffId::new(layer.diff_id()),
            index: index.id(),
            content: Content::bytes(index.encode().into()),
        }],
        profile: None,
        signatures: Vec::new(),
        created: "2026-01-31T12:00:00Z".into(),
    };
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let source = image::client().source(&reference.parse().unwrap()).await.unwrap();
        source.push_index_artifact(&artifact).await.unwrap();
    });
}

fn by_digest(reference: &str, image: &TestImage) -> String {
    let (repository, _tag) = reference.rsplit_once(':').unwrap();
    format!("{repository}@{}", image.digest())
}

fn why(node: &Node, reference: &str) -> (String, String) {
    let report = node.json(&["inspect", reference]);
    (report["layers"][0]["origin"].as_str().unwrap().to_owned(), report["why"].as_str().unwrap().to_owned())
}

/// Writes a fresh key pair as openssl would; returns the public file's path.
fn key_pair(dir: &Path, name: &str) -> (String, String) {
    let pkcs8 = Ed25519KeyPair::generate_pkcs8(&ring::rand::SystemRandom::new()).unwrap();
    let pair = Ed25519KeyPair::from_pkcs8(pkcs8.as_ref()).unwrap();
    let spki = [
        &[0x30, 0x2a, 0x30, 0x05, 0x06, 0x03, 0x2b, 0x65, 0x70, 0x03, 0x21, 0x00][..],
        pair.public_key().as_ref(),
    ];
    let write = |file: String, label: &str, der: &[u8]| {
        let path = dir.join(file);
        fs::write(&path, format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", BASE64.encode(der)))
            .unwrap();
        path.to_str().unwrap().to_owned()
    };
    (
        write(format!("{name}.pem"), "PRIVATE KEY", pkcs8.as_ref()),
        write(format!("{name}.pub"), "PUBLIC KEY", &spki.concat()),
    )
}

fn trusting(key: &str) -> String {
    format!("[trust]\nkeys = [{key:?}]\n")
}

#[test]
fn a_digest_wants_a_signature_by_a_key_we_know() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    let digest = by_digest(&reference, &image);
    first.ok(&["index", "--push", &reference]);

    // Unsigned: good enough for the tag, not for the digest.
    let (ours, ours_public) = key_pair(&first.path("home"), "ours");
    let (stranger, _) = key_pair(&first.path("home"), "stranger");
    let node = Node::new(&trusting(&ours_public));
    assert_eq!(why(&node, &reference).0, "registry");
    let node = Node::new(&trusting(&ours_public));
    let (origin, reason) = why(&node, &digest);
    assert_eq!(origin, "streamed");
    assert!(reason.contains("digest") && reason.contains("signed"), "{reason}");

    first.ok(&["index", "--push", "--sign", &stranger, &reference]);
    let node = Node::new(&trusting(&ours_public));
    assert_eq!(why(&node, &digest).0, "streamed");

    first.ok(&["index", "--push", "--sign", &ours, &reference]);
    let node = Node::new(&trusting(&ours_public));
    let (origin, reason) = why(&node, &digest);
    assert_eq!(origin, "registry", "{reason}");
    assert!(reason.starts_with("lazy"), "{reason}");
    let node = Node::new("");
    assert_eq!(why(&node, &digest).0, "streamed", "without the key it is a stranger's");

    // A policy asks more of the tag, a trusted host less of the digest.
    let host = registry.host();
    let policy = format!("[trust]\nrequire = [\"{host}/team/\"]\n");
    assert_eq!(why(&Node::new(&policy), &reference).0, "streamed");
    let trusted = format!("[registry.\"{host}\"]\ntrust = \"registry\"\n");
    assert_eq!(why(&Node::new(&trusted), &digest).0, "registry");
}

#[test]
fn what_was_believed_for_a_tag_is_not_believed_for_a_digest() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    plant(&reference, &image, &renamed(&image));
    let tag = node.mount(&reference);
    assert!(tag.join(EVIL).exists(), "the tag's writer may say what the tag is");
    let digest = by_digest(&reference, &image);
    let at = node.mount(&digest);
    assert_eq!(why(&node, &digest).0, "streamed");
    assert!(at.join(GOOD).exists() && !at.join(EVIL).exists());
    // And the same after a start, when both are in the store.
    node.umount(&tag);
    node.umount(&at);
    node.stop();
    let at = node.mount(&digest);
    assert!(at.join(GOOD).exists() && !at.join(EVIL).exists());
}

#[test]
fn a_lie_about_a_name_is_found_when_the_layer_is_complete() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    plant(&reference, &image, &renamed(&image));

    let at = node.mount(&reference);
    assert_eq!(why(&node, &reference).0, "registry");
    // The bytes are the layer's, whatever they are called.
    assert_eq!(fs::read(at.join(EVIL)).unwrap(), image::noise(5, 1_500_000));
    let complaint = node.fails(&["pull", &reference]);
    assert!(
        complaint.contains(&image.layers[0].digest().to_string()) && complaint.contains("lied"),
        "{complaint}"
    );
    let alerts = node.status()["alerts"].to_string();
    assert!(
        alerts.contains(&reference) && alerts.contains(&image.layers[0].digest().to_string()),
        "{alerts}"
    );

    // No further mount by that index: the layer itself is asked.
    let again = node.mount(&reference);
    assert_eq!(why(&node, &reference).0, "streamed");
    assert!(again.join(GOOD).exists() && !again.join(EVIL).exists());
    node.umount(&again);
    node.umount(&at);
    // The verdict outlives the daemon.
    node.stop();
    let again = node.mount(&reference);
    assert!(again.join(GOOD).exists() && !again.join(EVIL).exists());
}

#[test]
fn a_lie_in_one_repository_is_not_carried_into_another() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let theirs = format!("{}/theirs/app:v1", registry.host());
    let ours = format!("{}/ours/app:v1", registry.host());
    image.push(&theirs);
    image.push(&ours);
    plant(&theirs, &image, &renamed(&image));
    let evil = node.mount(&theirs);
    assert!(evil.join(EVIL).exists());
    // The same layer, and another who may say what it is.
    let good = node.mount(&ours);
    assert_eq!(why(&node, &ours).0, "streamed");
    assert!(good.join(GOOD).exists() && !good.join(EVIL).exists());
    // Proved, it is everybody's.
    node.umount(&evil);
    node.umount(&good);
    node.stop();
    let again = node.mount(&theirs);
    assert!(again.join(GOOD).exists() && !again.join(EVIL).exists());
}

#[test]
fn a_layer_proved_false_is_mounted_by_no_other_name() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let [one, two] = ["v1", "v2"].map(|tag| format!("{}/team/app:{tag}", registry.host()));
    image.push(&one);
    image.push(&two);
    plant(&one, &image, &renamed(&image));
    assert!(node.mount(&one).join(EVIL).exists());
    assert_eq!(why(&node, &two).0, "local", "open, and not mounted");
    let complaint = node.fails(&["pull", &one]);
    assert!(complaint.contains(&one) && complaint.contains(&two), "{complaint}");
    let at = node.mount(&two);
    assert!(at.join(GOOD).exists() && !at.join(EVIL).exists());
}

#[test]
fn building_an_index_anew_finds_a_lie_and_ends_its_use() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    plant(&reference, &image, &renamed(&image));
    let complaint = node.fails(&["verify", "--rebuild", &reference]);
    assert!(complaint.contains(&image.layers[0].digest().to_string()), "{complaint}");
    let at = node.mount(&reference);
    assert!(at.join(GOOD).exists() && !at.join(EVIL).exists());
    // And an honest one passes, whatever the size of its segments.
    let fresh = Node::new("");
    let honest = format!("{}/team/honest:v1", registry.host());
    image.push(&honest);
    plant(&honest, &image, &image::index_of(&image.layers[0]));
    assert_eq!(why(&fresh, &honest).0, "registry");
    fresh.ok(&["verify", "--rebuild", &honest]);
}

#[test]
fn a_lie_about_a_hash_denies_and_never_deceives() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    plant(&reference, &image, &rehashed(&image));
    let other = image::simple(3, 1);
    let bystander = format!("{}/team/bystander:v1", registry.host());
    other.push(&bystander);

    let at = node.mount(&reference);
    let beside = node.mount(&bystander);
    let error = support::read(&at.join(GOOD)).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(5), "EIO: {error}");
    let status = node.status();
    let alerts = status["alerts"].to_string();
    assert!(alerts.contains(&rehashed(&image).id().to_string()), "{status}");
    assert_eq!(fs::read(beside.join("data/0")).unwrap(), image::noise(3000, 1_500_000));
    assert_eq!(
        fs::read(at.join("data/other")).unwrap_or_else(|_| image::noise(6, 700_000)),
        image::noise(6, 700_000)
    );

    // It is believed once: the layer itself knows better, and what it says is kept.
    let pulled = node.json(&["pull", &reference]);
    assert_eq!(pulled["layers"][0]["proved"], true, "{pulled}");
    node.umount(&at);
    let at = node.mount(&reference);
    assert_ne!(why(&node, &reference).0, "registry");
    assert_eq!(fs::read(at.join(GOOD)).unwrap(), image::noise(5, 1_500_000));
}

/// Returns an index of the honest layer, of the same identity, that says another place where its stream is entered.
fn misplaced(image: &TestImage) -> Index {
    let truth = image::index_of(&image.layers[0]);
    let mut source = truth.source().clone();
    let start = source.starts.last_mut().unwrap();
    start.packed += 1;
    let index =
        Index::new(truth.facts().clone(), truth.skeleton().into(), truth.chunks().to_vec(), source).unwrap();
    assert_eq!(index.id(), truth.id());
    index
}

#[test]
fn an_index_that_says_wrong_places_is_used_once() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    plant(&reference, &image, &misplaced(&image));

    let node = Node::new("[fetch]\nbackground = false\n");
    let at = node.mount(&reference);
    assert_eq!(why(&node, &reference).0, "registry");
    let wrong = [GOOD, "data/other"].map(|name| fs::read(at.join(name)).is_err());
    assert!(wrong.contains(&true), "{}", node.log());
    node.umount(&at);
    // Nor is it taken again from the registry, which has not changed; what the layer gives has the same identity.
    node.kill_daemon();
    for origin in ["streamed", "local"] {
        let at = node.mount(&reference);
        assert_eq!(why(&node, &reference).0, origin, "{}", node.log());
        assert_eq!(fs::read(at.join(GOOD)).unwrap(), image::noise(5, 1_500_000));
        assert_eq!(fs::read(at.join("data/other")).unwrap(), image::noise(6, 700_000));
        node.umount(&at);
        node.stop();
    }
}

#[test]
fn an_index_of_another_layer_is_not_used() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let image = honest();
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    let other = image::simple(4, 1);
    plant(&reference, &image, &image::index_of(&other.layers[0]));
    let at = node.mount(&reference);
    let (origin, reason) = why(&node, &reference);
    assert_eq!(origin, "streamed");
    assert!(reason.contains(&other.layers[0].digest().to_string()), "{reason}");
    assert!(at.join(GOOD).exists() && !at.join("etc/hello").exists());

    // Nor one that is no index at all, or a broken one.
    for broken in [b"no index".to_vec(), broken(&image::index_of(&image.layers[0]).encode())] {
        let server = Faulty::start();
        image.put(&server, "app", "v1");
        image::refer(&server, &image, &broken);
        let node = Node::new("");
        let at = node.mount(&format!("{}/app:v1", server.host()));
        assert!(at.join(GOOD).exists());
    }
}

fn broken(index: &[u8]) -> Vec<u8> {
    let mut bytes = index.to_vec();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 0x10;
    bytes
}

#[test]
fn a_wrong_blob_shows_nothing_and_leaves_nothing() {
    let node = node!();
    let server = Faulty::start();
    let image = honest();
    image.put(&server, "app", "v1");
    let layer = &image.layers[0];
    // As long as it should be and a good gzip stream at that, but not what the manifest names.
    let mut other = Layer::of(&entries(EVIL), Pack::Gzip).blob.to_vec();
    other.resize(layer.blob.len(), 0);
    server.fault(&image::blob_path("app", &layer.digest()), Fault::Swap(other), u32::MAX);
    let reference = format!("{}/app:v1", server.host());
    let dir = node.mount_point();
    for _ in 0..2 {
        let complaint = node.fails(&["mount", &reference, dir.to_str().unwrap()]);
        assert!(complaint.contains(&layer.digest().to_string()), "{complaint}");
        assert_eq!(fs::read_dir(&dir).unwrap().count(), 0);
        assert_eq!(
            node.files("refs")
                + node.files("index")
                + node.files("device")
                + node.files("meta")
                + node.files("tmp"),
            0
        );
    }
    assert!(node.status()["mounts"].as_array().unwrap().is_empty());

    // The blob is right and the config says another plain tar.
    let mut lie = honest();
    let config = String::from_utf8(lie.config.to_vec()).unwrap();
    let (truth, wrong) = (layer.diff_id().to_string(), Digest::of(b"another tar").to_string());
    let config = bytes::Bytes::from(config.replace(&truth, &wrong));
    let manifest = String::from_utf8(lie.manifest.to_vec()).unwrap();
    let manifest = manifest.replace(&Digest::of(&lie.config).to_string(), &Digest::of(&config).to_string());
    (lie.config, lie.manifest) = (config, manifest.into());
    let server = Faulty::start();
    lie.put(&server, "app", "v1");
    let complaint = node.fails(&["mount", &format!("{}/app:v1", server.host()), dir.to_str().unwrap()]);
    assert!(complaint.contains(&layer.digest().to_string()) && complaint.contains(&wrong), "{complaint}");
    assert_eq!(node.files("refs") + node.files("index") + node.files("device"), 0);
    unmount_below(&dir);
}

#[test]
fn status_counts_what_was_streamed_by_reason() {
    let node = node!();
    let count = || node.status()["fallbacks"].clone();
    let scene = |seed: u64, index: Option<&[u8]>| {
        let (server, image) = (Faulty::start(), image::simple(seed, 1));
        image.put(&server, "app", "v1");
        let truth = image::index_of(&image.layers[0]).encode();
        image::refer(&server, &image, index.unwrap_or(&truth));
        let reference = format!("{}/app:v1", server.host());
        (server, image, reference)
    };

    let registry = Embedded::start(&node.path("registry"));
    let nobodys = format!("{}/app:v1", registry.host());
    image::simple(50, 1).push(&nobodys);
    assert_eq!(why(&node, &nobodys).0, "streamed");
    assert_eq!(count(), json!({ "no-index": 1 }));

    let (_first, image, reference) = scene(51, None);
    assert_eq!(why(&node, &by_digest(&reference, &image)).0, "streamed");
    assert_eq!(count(), json!({ "no-index": 1, "unsigned": 1 }));

    // What cannot be read, and the index of another layer.
    let (_second, _, reference) = scene(52, Some(b"no index"));
    assert_eq!(why(&node, &reference).0, "streamed");
    let (_of_another, _, reference) = scene(53, Some(&image::index_of(&image.layers[0]).encode()));
    assert_eq!(why(&node, &reference).0, "streamed");
    assert_eq!(count(), json!({ "no-index": 1, "unsigned": 1, "unusable": 2 }));
    assert!(node.ok(&["status"]).contains("2 layers streamed whole: the index cannot be used"));

    // One that is used is none.
    let (_third, _, reference) = scene(54, None);
    assert_eq!(why(&node, &reference).0, "registry");
    // And a registry that does not say so.
    let (third, _, reference) = scene(55, None);
    third.fault("/v2/app/referrers/", Fault::Status { code: 403, retry_after: None }, u32::MAX);
    assert_eq!(why(&node, &reference).0, "streamed");
    assert_eq!(count(), json!({ "no-index": 1, "unsigned": 1, "unusable": 2, "no-answer": 1 }));
}
