//! Images of Nydus of which one ordinary layer is made: their blobs say too little of themselves.

use std::collections::HashSet;

use convert::recode::nydus::{Packing, pack};
use format::DiffId;
use format::nydus::disk::features;
use format::nydus::layer::Layer as Own;
use format::nydus::write::{Blob, Files, bootstrap};
use format::tar::{Member, MemberKind};
use format::tree::{Builder, Runs, Time, Xattrs};
use testkit::tar::{Archive, Variant};

use super::*;

/// Length of a chunk, and of what is behind the first in the files here.
const CHUNK: usize = 1 << 20;
const REST: usize = 100_000;

fn content(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|n| (n / 3).to_le_bytes()[0] ^ (n >> 9).to_le_bytes()[0] ^ seed).collect()
}

/// Returns a blob of a layer with these files, and what an image's bootstrap says of it.
fn blob(entries: &[Entry]) -> (Vec<u8>, Blob) {
    let tar = Archive::of(entries, Variant::Pax10).tar;
    let expected = convert::Expected { blob: Digest::of(&tar), diff_id: DiffId::new(Digest::of(&tar)) };
    let packing = Packing { level: None, blob_size: tar.len() as u64, threads: 1 };
    let mut bytes = Vec::new();
    let digest = pack(&tar[..], &expected, &packing, &mut bytes).unwrap().digest;
    let mut blob = Own::open(&own(&bytes)).unwrap().blob().unwrap().clone();
    named(&mut blob, &digest);
    (bytes, blob)
}

fn named(blob: &mut Blob, digest: &Digest) {
    blob.row.id.copy_from_slice(digest.hex().as_bytes());
    blob.row.features = (blob.row.features.get() & !features::BOOTSTRAP).into();
}

/// Returns the bootstrap in a blob of ours.
fn own(blob: &[u8]) -> Vec<u8> {
    let number = |bytes: &[u8]| usize::try_from(u64::from_le_bytes(bytes.try_into().unwrap())).unwrap();
    let len =
        usize::from_str_radix(std::str::from_utf8(&blob[blob.len() - 388..][..11]).unwrap(), 8).unwrap();
    let toc = &blob[blob.len() - 512 - len..][..len];
    let entry = toc.chunks(128).find(|entry| entry[8..].starts_with(b"image.boot\0")).unwrap();
    let [at, packed, plain] = [56, 64, 72].map(|at| number(&entry[at..at + 8]));
    let bytes = &blob[at..at + packed];
    if packed == plain { bytes.to_vec() } else { zstd::bulk::decompress(bytes, plain).unwrap() }
}

/// Adds a file to a tree, whose chunks are its layer's from this one on.
fn file(tree: &mut Builder, path: &str, payload: usize, first: u64) {
    let member = Member {
        path: path.as_bytes().into(),
        kind: MemberKind::File,
        mode: 0o644,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        xattrs: Xattrs::default(),
        plain: 0,
        payload: payload as u64,
    };
    tree.member(&member, Runs::Whole(first)).unwrap();
}

/// What the blob of the upper layer has beside its chunks.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Says {
    /// Nothing.
    Nothing,
    /// A bootstrap that lists the dictionary, too.
    Both,
    /// One that knows of no file whose bytes are in the dictionary.
    Less,
}

/// An image whose upper layer has files with chunks in the blob of the lower one, and the same files in a tar. `harm` is
/// done to what the tree says of both blobs.
fn dictionary(says: Says, harm: impl FnOnce(&mut Blob)) -> (TestImage, TestImage) {
    let (first, rest, other) = (content(1, CHUNK), content(2, REST), content(3, REST));
    let shared = [&first[..], &rest].concat();
    let lower = [Entry::file("a shared", &shared), Entry::file("b small", "small")];
    let upper = [Entry::file("c own", &other)];
    let ((lower_bytes, mut lower_blob), (mut upper_bytes, mut upper_blob)) = (blob(&lower), blob(&upper));
    let chunks = upper_blob.chunks[0].packed_size.get() as usize;
    if says != Says::Less {
        upper_bytes.truncate(chunks);
    }
    let files = [
        Files { blob: 0, chunks: vec![0, 1, 2], ahead: HashSet::new() },
        Files { blob: 1, chunks: vec![0], ahead: HashSet::new() },
        Files { blob: 0, chunks: vec![0, 1], ahead: HashSet::new() },
    ];
    let mut tree = Builder::new();
    tree.layer().unwrap();
    file(&mut tree, "a shared", shared.len(), 0);
    file(&mut tree, "b small", 5, 2);
    tree.layer().unwrap();
    file(&mut tree, "c own", REST, 0);
    tree.layer().unwrap();
    file(&mut tree, "d copy", shared.len(), 0);
    file(&mut tree, "e mixed", shared.len(), 0);
    if says == Says::Both {
        let blobs = [lower_blob.clone(), upper_blob.clone()];
        let boot = bootstrap(tree.tree(), &blobs, &files, &HashSet::new()).unwrap();
        upper_bytes.extend_from_slice(&boot);
        let mut header = [0; 512];
        header[..10].copy_from_slice(b"image.boot");
        header[124..135].copy_from_slice(format!("{:011o}", boot.len()).as_bytes());
        upper_bytes.extend_from_slice(&header);
    }
    named(&mut upper_blob, &Digest::of(&upper_bytes));
    harm(&mut lower_blob);
    let mut boot = bootstrap(tree.tree(), &[lower_blob, upper_blob], &files, &HashSet::new()).unwrap();
    // The second chunk of the last file is the only one of the other blob: number, blob and 1, block.
    let two = [[0, 0, 1, 0, 0, 0, 0, 0], [1, 0, 1, 0, 0, 1, 0, 0]].concat();
    let places: Vec<_> = (0..boot.len() - 16).filter(|at| boot[*at..*at + 16] == two).collect();
    assert_eq!(places.len(), 3);
    boot[places[2] + 8..places[2] + 16].copy_from_slice(&[0, 0, 2, 0, 0, 0, 0, 0]);

    let mixed = [&first[..], &other].concat();
    let all = [
        Entry::file("a shared", &shared),
        Entry::file("b small", "small"),
        Entry::file("c own", &other),
        Entry::file("d copy", &shared),
        Entry::file("e mixed", &mixed),
    ];
    let all = all.map(|entry| entry.mode(0o644).mtime(0, 0));
    (nydus(&[lower_bytes, upper_bytes], &boot), TestImage::new(vec![Layer::of(&all, Pack::Gzip)], &json!({})))
}

/// Converts an image that is in a registry to one layer, to a registry and to a layout, twice each.
fn becomes_one(node: &Node, from: &str, why: &str, same_as: &str) {
    let dir = tempfile::tempdir().unwrap();
    let name = format!("{}-oci", from.trim_start_matches("docker://"));
    let mut digests = HashSet::new();
    for to in [format!("docker://{name}"), format!("oci:{}:v1", dir.path().display())] {
        let args = ["--output", "json", "convert", from, &to, "--format", "oci", "--verify"];
        let outcome = node.run(&args);
        assert!(outcome.stderr.contains("one layer is made of the tree"), "{}", outcome.stderr);
        assert!(outcome.stderr.contains(why), "{}", outcome.stderr);
        let report = outcome.json();
        let layers = report["layers"].as_array().unwrap();
        let hows: Vec<_> = layers.iter().map(|layer| layer["how"].as_str().unwrap()).collect();
        let (last, others) = hows.split_last().unwrap();
        assert!(*last == "recoded" && others.iter().all(|how| *how == "kept"), "{report}");
        assert_eq!(report["verified"], 1);
        digests.insert(report["digest"].as_str().unwrap().to_owned());
        // Again nothing is made, but all is compared.
        let again = node.json(&["convert", from, &to, "--format", "oci", "--verify"]);
        assert_eq!(
            (&again["digest"], &again["sent"], &again["verified"]),
            (&report["digest"], &json!(0), &json!(1))
        );
        assert!(again["layers"].as_array().unwrap().iter().any(|layer| layer["how"] == "reused"));
    }
    assert_eq!(digests.len(), 1, "the same image, wherever it is");
    assert!(node.ok(&["check", same_as, &name]).starts_with("the same: "));
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let image = runtime.block_on(async {
        let source = image::client().source(&name.parse().unwrap()).await.unwrap();
        source.image(&registry::Platform::host()).await.unwrap()
    });
    assert_eq!((image.layers.len(), &*image.layers[0].media_type), (1, media_type::LAYER_GZIP));
    let config: Value = serde_json::from_slice(&image.config).unwrap();
    assert_eq!(config["rootfs"]["diff_ids"], json!([image.layers[0].diff_id.digest().to_string()]));
}

#[test]
fn of_an_image_with_a_dictionary_one_layer_is_made() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let tag = |tag: &str| format!("{}/team/app:{tag}", registry.host());
    for (name, says, why) in [
        ("nothing", Says::Nothing, "no bootstrap of its own"),
        ("both", Says::Both, "bytes in another blob"),
        ("less", Says::Less, "do not show what the image does"),
    ] {
        let (image, tars) = dictionary(says, |_| ());
        let (from, tars_at) = (tag(name), tag("tars"));
        image.push(&from);
        tars.push(&tars_at);
        assert!(node.ok(&["check", &tars_at, &from]).starts_with("the same: "), "the test's own image");
        becomes_one(&node, &format!("docker://{from}"), why, &tars_at);
    }
}

#[test]
fn of_an_image_whose_blobs_have_no_bootstrap_one_layer_is_made() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    for name in ["zstd", "lz4", "batch", "zstd5", "lz45"] {
        let from = format!("{}/team/app:{name}", registry.host());
        nydus(&[vector(&format!("{name}.blob"))], &vector(&format!("{name}.boot"))).push(&from);
        becomes_one(&node, &format!("docker://{from}"), "no bootstrap of its own", &from);
    }
}

#[test]
fn of_an_image_that_is_not_what_its_blobs_say_one_layer_is_made() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let tag = |tag: &str| format!("{}/team/app:{tag}", registry.host());
    // Blobs in another order than the layers.
    let blobs = ["top", "middle", "base"].map(|name| vector(&format!("{name}.blob")));
    nydus(&blobs, &vector("merged.boot")).push(&tag("order"));
    becomes_one(
        &node,
        &format!("docker://{}", tag("order")),
        "do not show what the image does",
        &tag("order"),
    );
    // A layer that only deletes has no blob in the image.
    let (bytes, lower) = blob(&[Entry::file("gone", "gone"), Entry::file("left", "left")]);
    let mut tree = Builder::new();
    tree.layer().unwrap();
    file(&mut tree, "gone", 4, 0);
    file(&mut tree, "left", 4, 1);
    tree.layer().unwrap();
    file(&mut tree, ".wh.gone", 0, 0);
    let files = [
        Files { blob: 0, chunks: vec![0, 1], ahead: HashSet::new() },
        Files { blob: 0, chunks: vec![], ahead: HashSet::new() },
    ];
    let boot = bootstrap(tree.tree(), &[lower], &files, &HashSet::new()).unwrap();
    nydus(&[bytes], &boot).push(&tag("gone"));
    let left = [Entry::file("left", "left").mode(0o644).mtime(0, 0)];
    TestImage::new(vec![Layer::of(&left, Pack::Gzip)], &json!({})).push(&tag("left"));
    becomes_one(&node, &format!("docker://{}", tag("gone")), "do not show what the image does", &tag("left"));
}

#[test]
fn what_is_wrong_with_one_of_the_blobs_is_an_error_that_names_it() {
    let node = node!();
    let server = Faulty::start();
    let to = format!("oci:{}", node.path("made").display());
    let fails = |image: &TestImage, tag: &str| {
        image.put(&server, "team/app", tag);
        let from = format!("docker://{}/team/app:{tag}", server.host());
        node.fails(&["convert", &from, &to, "--format", "oci"])
    };
    // The tree says of a chunk what it is not.
    let (image, _) = dictionary(Says::Nothing, |lower| lower.chunks[1].digest[7] ^= 1);
    let failed = fails(&image, "chunk");
    let blob = image.layers[0].digest().to_string();
    assert!(failed.contains("has a chunk in blob") && failed.contains(&blob), "{failed}");

    // A blob that the tree names is no layer of the image.
    let names = ["base.blob", "middle.blob"].map(vector);
    let failed = fails(&lacking(&names), "lacking");
    let blob = Digest::of(&vector("top.blob")).to_string();
    assert!(failed.contains(&blob) && failed.contains("not among its layers"), "{failed}");

    // One that the image names is not in the registry.
    let (image, _) = dictionary(Says::Nothing, |_| ());
    let blob = image.layers[0].digest();
    image.put(&server, "team/app", "gone");
    server.fault(&blob_path("team/app", &blob), Fault::Status { code: 404, retry_after: None }, u32::MAX);
    let failed = fails(&image, "gone");
    assert!(failed.contains(&blob.to_string()) && failed.contains("not found"), "{failed}");
    server.heal();

    // It has other bytes.
    let wrong = image.layers[0].blob.iter().map(|byte| !byte).collect();
    server.fault(&blob_path("team/app", &blob), Fault::Swap(wrong), u32::MAX);
    let failed = fails(&image, "wrong");
    assert!(failed.contains(&format!("should be {blob}")), "{failed}");
}
