//! Images with a SOCI index beside them: lazy by it, the same files, and what comes of an index that lies.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;
#[path = "../../format/tests/soci/mod.rs"]
mod ztoc;

use std::fs;
use std::path::{Path, PathBuf};

use format::Digest;
use format::soci::ahead::AHEAD;
use format::soci::{INDEX_DIGEST, INDEX_V1, INDEX_V2};
use registry::media_type;
use serde_json::{Value, json};
use support::containerd::{Containerd, Release};
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use support::soci::{descriptor, index, push_v1, store};
use support::{Node, unmount_below};
use testkit::dump::{self, Dump};
use testkit::soci::Ztoc;
use testkit::tar::Entry;

/// A span of the tests' zTOCs: the segments of a small layer are half as long.
const SPAN: u64 = 1 << 20;

/// A layer large enough for a zTOC, and one that is not.
fn image() -> TestImage {
    let below = [
        Entry::dir("data/").owner(5, 6),
        Entry::file("data/long", image::noise(1, 5_000_000)).mode(0o600),
        Entry::file("data/gone", "gone"),
        Entry::file("data/two", image::noise(2, 700_000)).xattr("user.a", "b"),
        Entry::link("data/hard", "data/two"),
        Entry::symlink("data/soft", "long"),
    ];
    let small = (0..300).map(|n| Entry::file(format!("small/{n}"), format!("{n}").repeat(n)));
    let below: Vec<_> = below.into_iter().chain([Entry::dir("small/")]).chain(small).collect();
    let above =
        [Entry::dir("data/").owner(5, 6), Entry::file("data/.wh.gone", ""), Entry::file("data/last", "l")];
    TestImage::new(vec![Layer::of(&below, Pack::Gzip), Layer::of(&above, Pack::Gzip)], &json!({}))
}

/// The zTOC of an image's first layer.
fn table(image: &TestImage) -> Ztoc {
    ztoc::ztoc(&image.layers[0].blob, &image.layers[0].tar, SPAN)
}

/// Stores an image that names its SOCI index, as `soci convert` makes it; returns that.
fn push_v2(image: &TestImage, reference: &str, ztoc: &[u8]) -> TestImage {
    let index = index(image, INDEX_V2, ztoc).to_string();
    let mut converted = image.clone();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    let named = json!({ INDEX_DIGEST: Digest::of(index.as_bytes()).to_string() });
    manifest["annotations"] = named.clone();
    converted.manifest = manifest.to_string().into();
    converted.push(reference);
    let config: Value = serde_json::from_slice(&image.config).unwrap();
    let platform = json!({ "os": config["os"], "architecture": config["architecture"] });
    let mut entries =
        [&converted.manifest[..], index.as_bytes()].map(|bytes| descriptor(media_type::MANIFEST, bytes));
    entries.iter_mut().for_each(|entry| entry["platform"] = platform.clone());
    entries[0]["annotations"] = named;
    entries[1]["artifactType"] = json!(INDEX_V2);
    entries.reverse(); // the index first: it is no image all the same
    let list =
        json!({ "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": entries }).to_string();
    let manifests = [(media_type::MANIFEST, index.as_bytes()), (media_type::INDEX, list.as_bytes())];
    store(reference, &manifests, true, &[ztoc, b"{}"]);
    converted
}

/// Mounts an image; returns where, and where its indexes came from.
fn origins(node: &Node, reference: &str) -> (PathBuf, Vec<String>) {
    let at = node.mount(reference);
    let report = node.json(&["inspect", reference]);
    let origin = |layer: &Value| layer["origin"].as_str().unwrap().to_owned();
    (at, report["layers"].as_array().unwrap().iter().map(origin).collect())
}

fn assert_same(mounted: &Path, wanted: &Dump) {
    let found = dump::disk(mounted).unwrap();
    if let Some(difference) = dump::difference(&found, wanted) {
        panic!("mounted is not extracted\n{difference}");
    }
}

/// Mounts an image that is lazy by its SOCI index, and reads it in parts, whole, after a kill and without network.
fn lazy_by(path: &str, registry: &mut Embedded, reference: &str, image: &TestImage, wanted: &Dump) {
    let node = Node::reading(path, "[fetch]\nbackground = false\n");
    let (at, origins) = origins(&node, reference);
    assert_eq!(origins, ["soci", "streamed"], "{reference}: {}", node.log());
    let before = node.received();
    assert!(before < image.packed() / 3, "{before} of {} bytes were fetched for a mount", image.packed());
    assert_eq!(fs::read(at.join("small/7")).unwrap(), b"7777777");
    assert!(node.received() < before + 3 * SPAN, "more than a span or two");
    fs::read(at.join("data/two")).unwrap();
    node.kill_daemon();
    assert_same(&at, wanted);
    node.umount(&at);
    node.stop();
    registry.down();
    let at = node.mount(reference);
    assert_same(&at, wanted);
    assert_eq!(node.received(), 0);
    node.umount(&at);
    node.stop();
    registry.up();
}

fn an_index_that_refers_to_the_image(path: &str, first: &Node) {
    let mut registry = Embedded::start(&first.path("registry"));
    let image = image();
    let wanted = image.extract(&first.path("extracted"));
    let reference = format!("{}/team/app:v1", registry.host());
    push_v1(&image, &reference, &table(&image).encode());
    lazy_by(path, &mut registry, &reference, &image, &wanted);
    let shown = Node::new("").ok(&["inspect", &reference]);
    assert!(shown.contains(" SOCI "), "{shown}");
}

#[test]
fn an_index_that_refers_to_the_image_on_the_kernels_own_path() {
    an_index_that_refers_to_the_image("erofs", &kernel_node!(""));
}

#[test]
fn an_index_that_refers_to_the_image_through_fuse() {
    an_index_that_refers_to_the_image("fuse", &node!());
}

#[test]
fn an_index_that_the_image_names() {
    let first = kernel_node!("");
    let mut registry = Embedded::start(&first.path("registry"));
    let image = image();
    let wanted = image.extract(&first.path("extracted"));
    let reference = format!("{}/team/app:v2", registry.host());
    let converted = push_v2(&image, &reference, &table(&image).encode());
    // By its digest, too: that covers the digest of the index, and that those of the zTOCs.
    let digest = format!("{}/team/app@{}", registry.host(), converted.digest());
    for (reference, path) in [(&reference, "erofs"), (&digest, "fuse")] {
        lazy_by(path, &mut registry, reference, &converted, &wanted);
    }
    let node = Node::new("");
    assert!(node.json(&["inspect", &reference])["why"].as_str().unwrap().starts_with("full for 1 of 2"));
    node.stop();

    // One that is not there keeps nobody from what refers to the image.
    let mut gone = image.clone();
    let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
    manifest["annotations"] = json!({ INDEX_DIGEST: Digest::of(b"gone").to_string() });
    gone.manifest = manifest.to_string().into();
    let reference = format!("{}/team/app:gone", registry.host());
    push_v1(&gone, &reference, &table(&image).encode());
    let node = Node::new("");
    let (at, origin) = origins(&node, &reference);
    assert_eq!(origin, ["soci", "streamed"], "{}", node.log());
    node.umount(&at);
    let digest = format!("{}/team/app@{}", registry.host(), gone.digest());
    assert_eq!(origins(&Node::new(""), &digest).1, ["streamed"; 2]);
}

#[test]
fn what_an_index_says_to_fetch_first_is_a_profile() {
    let first = node!();
    let runnable = image::runnable(&json!({})).filter(|_| support::program("runc").is_some());
    let Some(runnable) = runnable else { testkit::skip!("there is no busybox, or no runc") };
    let registry = Embedded::start(&first.path("registry"));
    let layers = runnable.layers.iter().rev().cloned().collect(); // the large files below, where the zTOC is
    let image = TestImage::new(layers, &json!({ "Env": ["PATH=/bin"] }));
    let ztoc = table(&image).encode();
    let start = |repository: &str, list: &str| {
        let reference = format!("{}/{repository}:v1", registry.host());
        image.push(&reference);
        let mut index = index(&image, INDEX_V1, &ztoc);
        index["subject"] = descriptor(media_type::MANIFEST, &image.manifest);
        let mut first = descriptor(AHEAD, list.as_bytes());
        first["annotations"] = index["layers"][0]["annotations"].clone();
        index["layers"].as_array_mut().unwrap().push(first);
        let index = index.to_string();
        let manifest = (media_type::MANIFEST, index.as_bytes());
        store(&reference, &[manifest], false, &[&ztoc, b"{}", list.as_bytes()]);
        let node = Node::new("");
        // It reads nothing of the layer below: what comes of it comes because the list says so.
        let run = ["run", "--no-background", "--timings", "--ready", "exit", &reference, "--", "/bin/true"];
        let outcome = node.run(&run);
        assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");
        assert!(outcome.stderr.contains("full for 1 of 2 layers"), "{outcome:?}");
        (node, reference)
    };
    let local = |(node, reference): &(Node, String)| {
        let layer = &node.json(&["inspect", reference])["layers"][0];
        (layer["local"].as_u64().unwrap(), layer["segments"].as_u64().unwrap())
    };
    let spans = json!([{ "start_span": 2, "end_span": 3, "priority": 1 }]);
    let good = start("good", &json!({ "version": "1.0", "prefetch_spans": spans }).to_string());
    support::until("the spans are here", || local(&good).0 > 0);
    let (here, all) = local(&good);
    assert!(here < all, "{here} of {all} segments");
    for (repository, list) in
        [("newer", json!({ "version": "2.0", "prefetch_spans": [] })), ("noise", json!(7))]
    {
        let bad = start(repository, &list.to_string());
        assert_eq!(local(&bad).0, 0);
        assert!(bad.0.log().contains("to fetch first is not used"), "{}", bad.0.log());
    }
}

#[test]
fn an_index_is_a_claim() {
    let first = node!();
    let registry = Embedded::start(&first.path("registry"));
    let image = image();
    let reference = format!("{}/team/app:v1", registry.host());
    push_v1(&image, &reference, &table(&image).encode());
    let digest = format!("{}/team/app@{}", registry.host(), image.digest());

    // Anybody may have added it, so nothing vouches for it by the image's digest; nor does a policy take it.
    assert_eq!(origins(&Node::new(""), &digest).1, ["streamed"; 2]);
    let policy = format!("[trust]\nrequire = [\"{}/team/\"]\n", registry.host());
    assert_eq!(origins(&Node::new(&policy), &reference).1, ["streamed"; 2]);
    let trusted = format!("[registry.\"{}\"]\ntrust = \"registry\"\n", registry.host());
    assert_eq!(origins(&Node::new(&trusted), &digest).1, ["soci", "streamed"]);
    // What was good enough for a tag of the same manifest is not for its digest.
    let node = Node::new("");
    let (by_tag, origin) = origins(&node, &reference);
    assert_eq!(origin, ["soci", "streamed"]);
    let (by_digest, origin) = origins(&node, &digest);
    assert_eq!(origin, ["streamed", "local"]);
    node.umount(&by_tag);
    node.umount(&by_digest);

    // A pull proves the layers, and what is shipped is an index of the tar, which is preferred.
    let node = Node::new("");
    let (at, _) = origins(&node, &reference);
    let pulled = node.json(&["pull", &reference]);
    for layer in pulled["layers"].as_array().unwrap() {
        assert!(layer["proved"] == true, "{pulled}");
    }
    node.umount(&at);
    first.ok(&["index", "--push", &reference]);
    assert_eq!(origins(&Node::new(""), &reference).1, ["registry"; 2]);
}

#[test]
fn an_index_that_lies_spoils_nothing_else() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let good = image();
    let wanted = good.extract(&node.path("extracted"));
    let host = registry.host();
    push_v1(&good, &format!("{host}/good:v1"), &table(&good).encode());

    // What contradicts itself is told, and the layer is streamed.
    let mut files_outside = table(&good);
    files_outside.files[1].size = 1 << 40;
    let mut spans_outside = table(&good);
    spans_outside.checkpoints[12..20].copy_from_slice(&(1_u64 << 40).to_le_bytes());
    let noise = image::noise(7, 100_000);
    let damaged = [noise.clone(), Vec::new(), files_outside.encode(), spans_outside.encode()];
    for (n, ztoc) in damaged.iter().enumerate() {
        let reference = format!("{host}/bad{n}:v1");
        push_v1(&good, &reference, ztoc);
        let node = Node::new("");
        let (at, origin) = origins(&node, &reference);
        assert_eq!(origin, ["streamed"; 2], "{n}");
        assert!(node.log().contains("a zTOC is not used"), "{}", node.log());
        assert_same(&at, &wanted);
        let why = node.json(&["inspect", &reference])["why"].as_str().unwrap().to_owned();
        assert!(why.contains("zTOC") || why == "lazy: the indexes are in the store", "{why}");
        node.umount(&at);
    }

    // A span that is not what its digest says: an error for what lies in it, and for nothing else.
    let mut lies = table(&good);
    lies.digests[1] = Digest::of(b"another").to_string();
    push_v1(&good, &format!("{host}/lies:v1"), &lies.encode());
    let node = Node::new("[fetch]\nbackground = false\n");
    let (at, origin) = origins(&node, &format!("{host}/lies:v1"));
    assert_eq!(origin, ["soci", "streamed"]);
    assert!(fs::read(at.join("data/long")).is_err());
    assert_eq!(fs::read(at.join("small/7")).unwrap(), b"7777777");
    let (beside, origin) = origins(&node, &format!("{host}/good:v1"));
    assert_eq!(origin[0], "soci", "another index altogether");
    assert_same(&beside, &wanted);
    // It is not believed twice, and the layer is read whole.
    node.umount(&at);
    node.stop();
    let (at, origin) = origins(&node, &format!("{host}/lies:v1"));
    assert_eq!(origin, ["streamed", "local"], "{}", node.log());
    assert_same(&at, &wanted);
    unmount_below(&node.path(""));

    // Old writers take a short header for granted; a name in it makes it longer.
    let mut named = good.clone();
    let mut blob = named.layers[0].blob.to_vec();
    blob[3] |= 8;
    blob.splice(10..10, *b"layer.tar\0");
    named.layers[0].blob = blob.into();
    let named = TestImage::new(named.layers, &json!({}));
    let points = ztoc::points(&named.layers[0].blob, &named.layers[0].tar, SPAN);
    let mut old = table(&named);
    old.checkpoints = testkit::soci::checkpoints(&points, SPAN, true);
    push_v1(&named, &format!("{host}/old:v1"), &old.encode());
    let node = Node::new("");
    let (at, origin) = origins(&node, &format!("{host}/old:v1"));
    assert_eq!(origin, ["streamed"; 2]);
    assert_same(&at, &wanted);
    node.umount(&at);
}

#[test]
fn what_soci_itself_makes() {
    let node = node!();
    let Some(soci) = Release::Sid.program("soci") else {
        testkit::skip!("there is no soci (scripts/containerd-versions)");
    };
    if let Some(why) = Release::Installed.cannot_run() {
        testkit::skip!("{why}");
    }
    let registry = Embedded::start(&node.path("registry"));
    let image = image();
    let wanted = image.extract(&node.path("extracted"));
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    let containerd = Containerd::start(Release::Installed, &node, &reference);
    containerd.ok(&["content", "fetch", "--plain-http", &reference]);
    // Where it keeps what it makes no option says: in a namespace of mounts it is a directory of the test's.
    let (home, socket) = (node.path("soci"), containerd.socket());
    fs::create_dir_all(&home).unwrap();
    let script = "mount -t tmpfs none /var/lib && mkdir /var/lib/soci-snapshotter-grpc \
        && mount --bind \"$1\" /var/lib/soci-snapshotter-grpc && shift && soci=$1 && shift \
        && \"$soci\" --address \"$1\" --namespace \"$2\" create --span-size 1048576 --min-layer-size 1000000 \"$3\" \
        && \"$soci\" --address \"$1\" --namespace \"$2\" push --plain-http \"$3\"";
    let mut command = containerd.beside(Path::new("unshare"));
    command.args(["--mount", "sh", "-c", script, "sh"]).arg(&home).arg(&soci).arg(socket);
    support::tool(command.arg(containerd.namespace()).arg(&reference));

    let (at, origin) = origins(&node, &reference);
    assert_eq!(origin, ["soci", "streamed"], "{}", node.log());
    assert_same(&at, &wanted);
    node.umount(&at);
}
