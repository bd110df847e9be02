//! Images whose layers have tables of contents of their own: lazy by them, the same files, and what comes of tables that lie.
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

use convert::recode::Target;
use format::index::Codec;
use format::payload::SegmentSize;
use format::stargz::index::{Whose, layer as layer_of};
use format::stargz::table::Announced;
use format::stargz::{TABLE_OF, TOC_DIGEST, is_added};
use format::unpack::whole as whole_of;
use format::{DiffId, Digest};
use serde_json::json;
use support::containerd::{Containerd, Release};
use support::image::{self, Layer, Pack, TestImage, blob_path};
use support::servers::Embedded;
use support::{Node, unmount_below};
use testkit::dump::{self, Dump};
use testkit::faulty::Faulty;
use testkit::tar::Entry;

/// Two layers with files of every kind, some longer than a segment, some of a piece.
fn layers() -> Vec<Layer> {
    let below = [
        Entry::dir("data/").owner(5, 6),
        Entry::file("data/long", image::noise(1, 5_000_000)).mode(0o600),
        Entry::file("data/gone", "gone"),
        Entry::file("data/two", image::noise(2, 700_000)).xattr("user.a", "b"),
    ];
    let small = (0..300).map(|n| Entry::file(format!("data/small/{n}"), format!("{n}").repeat(n)));
    let above = [
        Entry::file("data/.wh.gone", ""),
        Entry::link("data/hard", "data/three"),
        Entry::symlink("data/soft", "long"),
        Entry::file("data/last", image::noise(4, 90_000)),
    ];
    let before = [
        Entry::dir("data/").owner(5, 6),
        Entry::file("data/three", image::noise(3, 2_000_000)),
        Entry::dir("data/small/"), // right before what is in it: tar(1) sets its time when it leaves it
    ];
    let above = before.into_iter().chain(small).chain(above);
    vec![Layer::of(&below, Pack::Gzip), Layer::of(&above.collect::<Vec<_>>(), Pack::Zstd)]
}

fn image(target: Target) -> TestImage {
    TestImage::new(layers().iter().map(|layer| layer.recoded(target)).collect(), &json!({}))
}

/// What the image shows: the table of eStargz does not list itself.
fn wanted(image: &TestImage, dir: &Path) -> Dump {
    let mut wanted = image.extract(dir);
    wanted.remove(&b"stargz.index.json"[..]);
    wanted
}

fn assert_same(mounted: &Path, wanted: &Dump) {
    let found = dump::disk(mounted).unwrap();
    if let Some(difference) = dump::difference(&found, wanted) {
        panic!("mounted is not extracted\n{difference}");
    }
}

/// Mounts an image; returns where, and where its indexes came from.
fn origins(node: &Node, reference: &str) -> (std::path::PathBuf, Vec<String>) {
    let at = node.mount(reference);
    let report = node.json(&["inspect", reference]);
    let origin = |layer: &serde_json::Value| layer["origin"].as_str().unwrap().to_owned();
    (at, report["layers"].as_array().unwrap().iter().map(origin).collect())
}

fn lazy_by(path: &str, first: &Node, target: Target) {
    let mut registry = Embedded::start(&first.path("registry"));
    let image = image(target);
    let wanted = wanted(&image, &first.path("extracted"));
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    // By the tag, and by a digest, which covers the digest of the table.
    let digest = format!("{}/team/app@{}", registry.host(), image.digest());
    for reference in [&reference, &digest] {
        let node = Node::reading(path, "");
        let (at, origins) = origins(&node, reference);
        assert_eq!(origins, ["contents"; 2], "{reference}");
        let before = node.received();
        assert!(before < image.packed() / 8, "{before} of {} bytes were fetched for a mount", image.packed());
        assert_eq!(fs::read(at.join("data/small/7")).unwrap(), b"7777777");
        assert!(node.received() < image.packed() / 3);
        assert_same(&at, &wanted);
        node.umount(&at);
    }

    // Killed in the middle, and again without network: what is here is checked, and is enough.
    let node = Node::reading(path, "");
    let at = node.mount(&reference);
    fs::read(at.join("data/two")).unwrap();
    node.kill_daemon();
    assert_same(&at, &wanted);
    node.umount(&at);
    node.stop();
    registry.down();
    let at = node.mount(&reference);
    assert_same(&at, &wanted);
    assert_eq!(node.received(), 0);
}

#[test]
fn estargz_is_lazy_by_its_table_on_the_kernels_own_path() {
    lazy_by("erofs", &kernel_node!(""), Target::EStargz);
}

#[test]
fn estargz_is_lazy_by_its_table_through_fuse() {
    lazy_by("fuse", &node!(), Target::EStargz);
}

#[test]
fn zstd_chunked_is_lazy_by_its_table_on_the_kernels_own_path() {
    lazy_by("erofs", &kernel_node!(""), Target::ZstdChunked);
}

#[test]
fn zstd_chunked_is_lazy_by_its_table_through_fuse() {
    lazy_by("fuse", &node!(), Target::ZstdChunked);
}

#[test]
fn a_table_is_a_claim() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = image(Target::EStargz);
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);

    // A policy wants signatures, and nobody signs tables.
    let node = Node::new(&format!("[trust]\nrequire = [\"{}/team/\"]\n", registry.host()));
    assert_eq!(origins(&node, &reference).1, ["streamed"; 2]);

    // A pull proves the layers, also where their tables were in use; from then on their own indexes are.
    let node = Node::new("");
    let (at, by_table) = origins(&node, &reference);
    assert_eq!(by_table, ["contents"; 2]);
    let pulled = node.json(&["pull", &reference]);
    for layer in pulled["layers"].as_array().unwrap() {
        assert!(layer["proved"] == true && layer["origin"] == "streamed", "{pulled}");
    }
    node.umount(&at);
    node.stop();
    let (at, _) = origins(&node, &reference);
    assert!(at.join("stargz.index.json").exists(), "the layer's own tree");

    // Compared with the image it was made of: the same, but for what the format adds.
    let plain = TestImage::new(layers(), &json!({}));
    let origin = format!("{}/team/plain:v1", registry.host());
    plain.push(&origin);
    let checked = Node::new("").ok(&["check", &origin, &reference]);
    assert!(checked.starts_with("the same: "), "{checked}");

    // What is shipped is an index of the tar.
    first.ok(&["index", "--push", &reference]);
    let node = Node::new("");
    assert_eq!(origins(&node, &reference).1, ["registry"; 2]);
}

/// Returns the layers with their tables apart, and the image of the tables: of each layer in `of` it says that it is its table.
fn apart(of: impl Fn(&Layer) -> Digest) -> (TestImage, TestImage) {
    let layers = layers().into_iter().map(|layer| layer.recoded(Target::EStargz).apart());
    let (layers, tables): (Vec<_>, Vec<_>) = layers.unzip();
    let table = |(layer, blob): (&Layer, &bytes::Bytes)| {
        let tar = format::unpack::whole(Codec::Gzip, blob, u64::MAX).unwrap().unwrap();
        let annotations = [(TABLE_OF.to_owned(), of(layer).to_string())].into();
        Layer { tar, blob: blob.clone(), pack: Pack::Gzip, annotations }
    };
    let tables = layers.iter().zip(&tables).map(table).rev().collect();
    (TestImage::new(layers, &json!({})), TestImage::new(tables, &json!({})))
}

#[test]
fn estargz_is_lazy_by_a_table_in_another_image() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let (image, tables) = apart(Layer::digest);
    let wanted = image.extract(&first.path("extracted"));
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);

    // It is not there, and why the layers are streamed is said.
    let node = Node::new("");
    let (at, streamed) = origins(&node, &reference);
    assert_eq!(streamed, ["streamed"; 2]);
    assert_same(&at, &wanted);
    let why = node.json(&["inspect", &reference])["why"].as_str().unwrap().to_owned();
    assert!(why.contains("in an image of its own, v1-esgztoc, which is not there"), "{why}");

    tables.push(&format!("{reference}-esgztoc"));
    let pinned = format!("{reference}@{}", image.digest());
    for reference in [&reference, &pinned] {
        let node = Node::new("");
        let (at, origins) = origins(&node, reference);
        assert_eq!(origins, ["contents"; 2], "{reference}");
        assert!(node.received() < image.packed() / 8);
        assert_same(&at, &wanted);
        node.umount(&at);
    }
    // A digest alone does not tell the tag.
    let node = Node::new("");
    let digest = format!("{}/team/app@{}", registry.host(), image.digest());
    assert_eq!(origins(&node, &digest).1, ["streamed"; 2]);
    let why = node.json(&["inspect", &digest])["why"].as_str().unwrap().to_owned();
    assert!(why.contains("TAG-esgztoc, and the image has no tag"), "{why}");

    // Converted, also to eStargz, the layers have all they need; a copy says what it leaves behind.
    for format in ["estargz", "oci", "zstdchunked"] {
        let to = format!("{}/team/{format}:v1", registry.host());
        let made = first.json(&["convert", "--format", format, "--verify", &reference, &to]);
        assert!(made["verified"] == 2, "{made}");
        let (at, origins) = origins(&node, &to);
        assert_eq!(origins, [if format == "oci" { "streamed" } else { "contents" }; 2], "{format}");
        let (mut found, mut wanted) = (dump::disk(&at).unwrap(), wanted.clone());
        for dump in [&mut found, &mut wanted] {
            dump.retain(|path, _| !is_added(path));
        }
        assert_eq!(dump::difference(&found, &wanted), None, "{format}");
    }
    // The footer tells it where the name does not.
    let to = format!("{}/team/by-digest:v1", registry.host());
    let made = first.json(&["convert", "--format", "estargz", "--verify", &digest, &to]);
    assert!(made["verified"] == 2, "{made}");
    assert_eq!(origins(&node, &to).1, ["contents"; 2]);
    let copied = first.run(&["copy", &reference, &format!("{}/team/copy:v1", registry.host())]);
    assert!(copied.status.success() && copied.stderr.contains("in the image v1-esgztoc"), "{copied:?}");

    // Tables of other layers, and what is no image of tables.
    let (_, others) = apart(|_| Digest::of(b"another layer"));
    for (tag, beside) in [("v2", others), ("v3", self::image(Target::Gzip))] {
        let reference = format!("{}/team/app:{tag}", registry.host());
        image.push(&reference);
        beside.push(&format!("{reference}-esgztoc"));
        let node = Node::new("");
        assert_eq!(origins(&node, &reference).1, ["streamed"; 2], "{tag}");
        let why = node.json(&["inspect", &reference])["why"].as_str().unwrap().to_owned();
        assert!(why.contains("which has none for it"), "{why}");
    }

    // A table that says that it is the layer's, in which something else is said of a file.
    let reference = format!("{}/team/app:v4", registry.host());
    image.push(&reference);
    let changed = tables.layers.iter().map(|table| {
        let mut tar = table.tar.to_vec();
        let at = tar.windows(7).position(|word| word == b"sha256:").unwrap() + 7;
        tar[at] = if tar[at] == b'0' { b'1' } else { b'0' };
        let changed = Layer::new(tar, Pack::Gzip);
        Layer { annotations: table.annotations.clone(), ..changed }
    });
    TestImage::new(changed.collect(), &json!({})).push(&format!("{reference}-esgztoc"));
    let node = Node::new("");
    let (at, streamed) = origins(&node, &reference);
    assert_eq!(streamed, ["streamed"; 2]);
    assert_same(&at, &wanted);
    let why = node.json(&["inspect", &reference])["why"].as_str().unwrap().to_owned();
    assert!(why.contains("the table of contents should be sha256:"), "{why}");
}

/// Returns Debian's ctr-remote, beside whose containerd it runs, or why there is none.
fn ctr_remote() -> Result<PathBuf, String> {
    let none = || "there is no ctr-remote of sid (scripts/containerd-versions)".to_owned();
    match Release::Sid.cannot_run() {
        Some(why) => Err(why),
        None => Release::Sid.program("ctr-remote").ok_or_else(none),
    }
}

#[test]
fn tables_that_ctr_remote_writes_into_another_image_are_read() {
    let node = node!();
    let program = match ctr_remote() {
        Ok(program) => program,
        Err(why) => testkit::skip!("{why}"),
    };
    let registry = Embedded::start(&node.path("registry"));
    // Where it keeps the tar as it is it reads gzip alone.
    let gzip = layers().into_iter().map(|layer| Layer::new(layer.tar, Pack::Gzip));
    let plain = TestImage::new(gzip.collect(), &json!({}));
    let reference = format!("{}/team/plain:v1", registry.host());
    plain.push(&reference);
    let wanted = plain.extract(&node.path("extracted"));
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    containerd.ok(&["content", "fetch", "--plain-http", &reference]);
    for (tag, more) in [("apart", &[][..]), ("same", &["--estargz-keep-diff-id"])] {
        let made = format!("{}/team/app:{tag}", registry.host());
        let mut command = containerd.beside(&program);
        command.arg("--address").arg(containerd.socket());
        command.args(["images", "convert", "--oci", "--estargz", "--estargz-external-toc"]).args(more);
        command.args([&reference, &made]);
        let outcome = node.spawn(command).end();
        assert!(outcome.status.success(), "{outcome:?}");
        for name in [made.clone(), format!("{made}-esgztoc")] {
            containerd.ok(&["images", "push", "--plain-http", &name]);
        }
        let reader = Node::new("");
        let (at, origins) = origins(&reader, &made);
        assert_eq!(origins, ["contents"; 2], "{tag}");
        let mut found = dump::disk(&at).unwrap();
        found.retain(|path, _| !is_added(path));
        assert_eq!(dump::difference(&found, &wanted), None, "{tag}");
        let oci = format!("{}/team/oci:{tag}", registry.host());
        assert_eq!(reader.json(&["convert", "--format", "oci", "--verify", &made, &oci])["verified"], 2);
    }
}

#[test]
fn ctr_remote_finds_the_tables_that_are_written_here() {
    let node = node!();
    let program = match ctr_remote() {
        Ok(program) => program,
        Err(why) => testkit::skip!("{why}"),
    };
    let registry = Embedded::start(&node.path("registry"));
    let (image, reference) = (image(Target::EStargz), format!("{}/team/app:v1", registry.host()));
    image.push(&reference);
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    containerd.ok(&["content", "fetch", "--plain-http", &reference]);
    for layer in &image.layers {
        let mut command = containerd.beside(&program);
        command.arg("--address").arg(containerd.socket());
        command.args(["images", "get-toc-digest", &layer.digest().to_string()]);
        let outcome = node.spawn(command).end();
        assert!(outcome.status.success(), "{outcome:?}");
        assert_eq!(layer.annotations[TOC_DIGEST], String::from_utf8_lossy(&outcome.stdout).trim());
    }
}

#[test]
fn an_index_of_a_table_is_nobodys_to_send() {
    let node = node!();
    let server = Faulty::start();
    let mut layer = layers().remove(0).recoded(Target::EStargz);
    let announced = Announced::by(&layer.annotations).unwrap();
    let whole = announced.whole(&layer.blob, layer.blob.len() as u64).unwrap();
    let range = usize::try_from(whole.start).unwrap()..usize::try_from(whole.end).unwrap();
    let whose = Whose {
        blob: layer.digest(),
        size: layer.blob.len() as u64,
        codec: Codec::Gzip,
        diff_id: DiffId::new(layer.diff_id()),
        table: announced.digest,
        end: whole.start,
        ahead: 0,
        segment: SegmentSize::DEFAULT,
    };
    let tar = whole_of(Codec::Gzip, &layer.blob[range], u64::MAX).unwrap().unwrap();
    let table = String::from_utf8(tar[512..].to_vec()).unwrap().replace("data/gone", "data/fake");
    let made = layer_of(table.trim_end_matches('\0').as_bytes(), &whose).unwrap();
    layer.annotations.clear();
    let image = TestImage::new(vec![layer], &json!({}));
    image.put(&server, "app", "v1");
    image::refer(&server, &image, &made.index().encode());
    let (at, streamed) = origins(&node, &format!("{}/app:v1", server.host()));
    assert_eq!(streamed, ["streamed"], "somebody else's table is believed");
    assert!(at.join("data/gone").exists() && !at.join("data/fake").exists());
}

#[test]
fn a_long_piece_is_fetched_once() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = image(Target::EStargz);
    let reference = format!("{}/team/app:v1", registry.host());
    image.push(&reference);
    let node = Node::new("[fetch]\nbackground = false\n[mount]\npath = \"fuse\"\n");
    let at = node.mount(&reference);
    let before = node.received();
    // Front to back, a little at a time, as a program does; it does not compress.
    let mut file = fs::File::open(at.join("data/long")).unwrap();
    let mut piece = vec![0; 50_000];
    while std::io::Read::read(&mut file, &mut piece).unwrap() > 0 {}
    let fetched = node.received() - before;
    assert!((5_000_000..6_000_000).contains(&fetched), "{fetched} bytes for 5,000,000");
}

#[test]
fn a_table_that_lies_spoils_nothing_else() {
    let node = node!();
    let server = Faulty::start();
    let good = image(Target::EStargz);
    good.put(&server, "good", "v1");

    // Another table than the announced one: the layer is streamed.
    let mut other = layers().remove(0).recoded(Target::EStargz);
    other.annotations.insert(TOC_DIGEST.into(), Digest::of(b"another").to_string());
    TestImage::new(vec![other], &json!({})).put(&server, "other", "v1");
    let reference = format!("{}/other:v1", server.host());
    let (at, streamed) = origins(&node, &reference);
    assert_eq!(streamed, ["streamed"]);
    assert_eq!(fs::read(at.join("data/gone")).unwrap(), b"gone");
    node.umount(&at);

    // Bytes that are not the table's: an error, for that file alone.
    let node = Node::new("");
    for (target, name) in [(Target::EStargz, "bad"), (Target::ZstdChunked, "worse")] {
        let bad = TestImage::new(vec![layers().remove(0).recoded(target)], &json!({}));
        bad.put(&server, name, "v1");
        let mut blob = bad.layers[0].blob.to_vec();
        blob[100_000] ^= 1; // in data/long
        server.put(&blob_path(name, &bad.layers[0].digest()), "application/octet-stream", &blob);
        let (at, by_table) = origins(&node, &format!("{}/{name}:v1", server.host()));
        assert_eq!(by_table, ["contents"]);
        assert!(fs::read(at.join("data/long")).is_err());
        assert_eq!(fs::read(at.join("data/two")).unwrap(), image::noise(2, 700_000));
        assert!(node.log().contains("wrong bytes"), "{}", node.log());
    }

    // And it harms no other image.
    let (at, by_table) = origins(&node, &format!("{}/good:v1", server.host()));
    assert_eq!(by_table, ["contents"; 2]);
    assert_eq!(fs::read(at.join("data/long")).unwrap(), image::noise(1, 5_000_000));
    unmount_below(&node.path(""));
}
