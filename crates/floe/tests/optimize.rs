//! Images in which what a start reads comes first.
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
use std::process::Command;

use format::stargz::READ_FIRST;
use serde_json::{Value, json};
use support::Node;
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use testkit::tar::Entry;

fn hows(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["how"].as_str().unwrap()).collect()
}

/// Three layers: one of which something is read, one of which nothing is, and one that is not asked about.
fn image() -> TestImage {
    let files = (0..20).map(|n| Entry::file(format!("data/f{n}"), image::noise(n, 300_000)));
    let base: Vec<Entry> = [Entry::dir("data/")].into_iter().chain(files).collect();
    let layers = vec![
        Layer::of(&base, Pack::Gzip),
        Layer::of(&[Entry::file("cold", image::noise(50, 40_000))], Pack::Gzip),
        Layer::of(&[Entry::file("etc", "x"), Entry::file("hot", image::noise(51, 40_000))], Pack::Zstd),
    ];
    TestImage::new(layers, &json!({ "Cmd": ["x"] }))
}

fn profile(image: &TestImage, files: &[(u16, &str)]) -> String {
    let file = |(layer, path): &(u16, &str)| json!({ "layer": layer, "path": path, "size": 10, "read": 9 });
    let diff_ids: Vec<_> = image.layers.iter().map(|layer| layer.diff_id().to_string()).collect();
    let files: Vec<_> = files.iter().map(file).collect();
    json!({ "version": 1, "layers": [], "segments": [], "diff_ids": diff_ids, "files": files }).to_string()
}

#[test]
fn a_profile_orders_every_format() {
    let node = node!("");
    let host = Embedded::start(&node.path("registry"));
    let (image, from) = (image(), format!("{}/team/app:v1", host.host()));
    image.push(&from);
    let place = |name: &str| format!("docker://{}/{name}:v1", host.host());

    let text = node.fails(&["optimize", &from, &place("none"), "--format", "estargz"]);
    assert!(text.contains("neither this store nor the registry has a profile"), "{text}");
    assert!(text.contains("hint: floe run --ready"), "{text}");
    let old = node.path("old.json");
    fs::write(&old, r#"{"version":1,"layers":[],"segments":[]}"#).unwrap();
    let text = node.fails(&["optimize", &from, &place("none"), "--profile", old.to_str().unwrap()]);
    assert!(text.contains("names no files"), "{text}");

    fs::write(&old, profile(&image, &[(0, "data/f1")]).replace("\"read\":9", "\"read\":1")).unwrap();
    let text = node.fails(&["optimize", &from, &place("none"), "--profile", old.to_str().unwrap()]);
    assert!(text.contains("most of which was read"), "{text}");
    let outcome = node.run(&["optimize", &from, &place("none"), "--format", "erofs"]);
    assert!(outcome.status.code() == Some(2) && outcome.stderr.contains("fetched whole"), "{outcome:?}");

    let [one, other] = ["one.json", "other.json"].map(|name| node.path(name));
    fs::write(&one, profile(&image, &[(0, "data/f17"), (2, "hot"), (0, "data/f3")])).unwrap();
    fs::write(&other, profile(&image, &[(0, "data/f3"), (2, "hot")])).unwrap();
    let [one, other] = [&one, &other].map(|path| path.to_str().unwrap());
    for format in ["estargz", "zstdchunked", "nydus", "oci"] {
        let to = place(format);
        let optimize = |profile: &str| {
            node.json(&["optimize", &from, &to, "--format", format, "--profile", profile, "--verify"])
        };
        // An ordinary layer of which nothing is read stays.
        let cold = if format == "oci" { "kept" } else { "recoded" };
        let report = optimize(one);
        assert_eq!(hows(&report), ["recoded", cold, "recoded"], "{report}");
        node.ok(&["check", &from, &to]);
        let again = optimize(one);
        let reused = if format == "oci" { "kept" } else { "reused" };
        assert_eq!(hows(&again), ["reused", reused, "reused"], "{again}");
        assert_eq!(again["digest"], report["digest"]);
        // Another order is another layer, where it is another.
        assert_eq!(hows(&optimize(other)), ["recoded", reused, "reused"]);
        // And none is none.
        if format != "oci" {
            let plain = node.json(&["convert", &from, &to, "--format", format, "--verify"]);
            assert_eq!(hows(&plain), ["recoded", "reused", "recoded"], "{plain}");
        }
    }
    // The format stays; and what has the order stays.
    let to = place("estargz");
    let report = node.json(&["optimize", &from, &to, "--format", "estargz", "--profile", one]);
    assert_eq!(hows(&report), ["recoded", "reused", "recoded"]);
    // Of another image the profile knows no layer: paths count in all of them, and the order is that of the paths.
    let again = node.json(&["optimize", &to, &place("again"), "--profile", other, "--verify"]);
    assert_eq!(hows(&again), ["recoded"; 3], "{again}");
    node.ok(&["check", &from, &place("again")]);
}

/// It is an offset in one blob, and means nothing in another.
#[test]
fn what_zstd_chunked_says_of_the_order_goes_with_the_layer() {
    let node = node!("");
    let host = Embedded::start(&node.path("registry"));
    let (image, from) = (image(), format!("{}/team/app:v1", host.host()));
    image.push(&from);
    let order = node.path("order.json");
    fs::write(&order, profile(&image, &[(0, "data/f17"), (2, "hot"), (0, "data/f3")])).unwrap();
    let to = format!("docker://{}/ordered:v1", host.host());
    node.ok(&["optimize", &from, &to, "--format", "zstdchunked", "--profile", order.to_str().unwrap()]);
    let annotated = |made: &[&str], name: &str| {
        let layout = node.path(name);
        node.ok(&[made, &[&to, &format!("oci:{}:v1", layout.display())]].concat());
        let blobs = fs::read_dir(layout.join("blobs/sha256")).unwrap();
        let text = blobs.map(|blob| fs::read(blob.unwrap().path()).unwrap()).filter(|blob| blob[0] == b'{');
        text.map(|blob| String::from_utf8_lossy(&blob).matches(READ_FIRST).count()).sum::<usize>()
    };
    assert_eq!(annotated(&["copy"], "same"), 2, "two of its layers have an order");
    for (format, count) in [("oci", 0), ("estargz", 0), ("zstdchunked", 2)] {
        assert_eq!(annotated(&["convert", "--format", format], format), count, "{format}");
    }
}

#[test]
fn a_layer_that_is_a_file_system_stays_beside_others_that_are_ordered() {
    let node = node!("");
    let host = Embedded::start(&node.path("registry"));
    let mut layers = image().layers;
    let below =
        Layer::of(&[Entry::file("below", "in a file system"), Entry::file("data/f2", "hidden")], Pack::Plain);
    let mut out = std::io::Cursor::new(Vec::new());
    let expected = convert::Expected { blob: below.digest(), diff_id: format::DiffId::new(below.diff_id()) };
    convert::recode::erofs::image(&below.blob[..], &expected, below.blob.len() as u64, &mut out).unwrap();
    layers.insert(0, Layer::new(out.into_inner(), Pack::Plain));
    let mut mixed = TestImage::new(layers, &json!({}));
    let mut manifest: Value = serde_json::from_slice(&mixed.manifest).unwrap();
    manifest["layers"][0]["mediaType"] = "application/vnd.erofs.layer.v1".into();
    mixed.manifest = manifest.to_string().into();
    let from = format!("{}/team/mixed:v1", host.host());
    mixed.push(&from);
    let order = node.path("order.json");
    fs::write(&order, profile(&mixed, &[(0, "below"), (1, "data/f17"), (3, "hot")])).unwrap();
    let order = order.to_str().unwrap();
    let place = |name: &str| format!("docker://{}/{name}:v1", host.host());
    // The layers of an image of Nydus are all in its format.
    for (more, why) in [(&[][..], "fetched whole"), (&["--format", "nydus"], "order of their names")] {
        let text = node.fails(&[&["optimize", &from, &place("none"), "--profile", order][..], more].concat());
        assert!(text.contains(why), "{text}");
    }
    let to = place("ordered");
    let optimize = ["optimize", &from, &to, "--profile", order, "--format", "estargz", "--verify"];
    let report = node.json(&optimize);
    assert_eq!(hows(&report), ["kept", "recoded", "recoded", "recoded"], "{report}");
    assert!(report["layers"][0]["why"].as_str().unwrap().contains("EROFS file system"), "{report}");
    assert_eq!(hows(&node.json(&optimize)), ["kept", "reused", "reused", "reused"]);
    // What both are as ordinary images is the same.
    let [was, is] = [(&from, "was"), (&to, "is")].map(|(from, name)| {
        node.ok(&["convert", from, &place(name), "--format", "oci"]);
        place(name)
    });
    node.ok(&["check", &was, &is]);
}

#[test]
fn an_archive_on_stdin_is_read_once_and_ordered() {
    let node = node!("");
    let host = Embedded::start(&node.path("registry"));
    let (image, from) = (image(), format!("{}/team/app:v1", host.host()));
    image.push(&from);
    let (archive, order) = (node.path("app.tar"), node.path("order.json"));
    node.ok(&["copy", &from, &format!("oci-archive:{}", archive.display())]);
    fs::write(&order, profile(&image, &[(0, "data/f17"), (2, "hot")])).unwrap();
    let order = order.to_str().unwrap();
    let place = |name: &str| format!("docker://{}/{name}:v1", host.host());
    let (there, piped) = (place("there"), place("piped"));
    let report = node.json(&["optimize", &from, &there, "--format", "estargz", "--profile", order]);
    let arguments = ["--output", "json", "optimize", "oci-archive:-", &piped, "--format", "estargz"];
    let run = |more: &[&str]| {
        let mut command = node.command(&[&arguments[..], more].concat());
        command.stdin(fs::File::open(&archive).unwrap());
        node.spawn(command).end()
    };
    let outcome = run(&["--profile", order, "--verify"]);
    assert!(outcome.status.success(), "{outcome:?}");
    let made: Value = serde_json::from_slice(&outcome.stdout).unwrap();
    assert_eq!((&made["digest"], hows(&made)), (&report["digest"], vec!["recoded"; 3]));
    node.ok(&["check", &from, &piped]);
    // Where nobody names a profile the same archive is asked for one.
    let outcome = run(&[]);
    assert!(outcome.stderr.contains("neither this store nor the registry has a profile"), "{outcome:?}");
}

/// The files that a container has read, and what is made of them.
fn what_a_start_has_read_is_recorded_by_name(node: &Node) {
    let script = "cat /data/f7 >/dev/null; echo READY; sleep 60";
    let config = json!({ "Cmd": ["sh", "-c", script], "Env": ["PATH=/bin"] });
    let Some(mut image) = image::runnable(&config) else { testkit::skip!("there is no busybox") };
    if support::program("runc").is_none() || !rustix::process::geteuid().is_root() {
        testkit::skip!("runc and root");
    }
    let files = (0..20).map(|n| Entry::file(format!("data/f{n}"), image::noise(n, 300_000)));
    let data: Vec<Entry> = [Entry::dir("data/")].into_iter().chain(files).collect();
    image.layers[1] = Layer::of(&data, Pack::Gzip);
    let image = TestImage::new(image.layers, &config);
    let host = Embedded::start(&node.path("registry"));
    let (from, to) =
        (format!("{}/team/app:v1", host.host()), format!("oci:{}:v1", node.path("to").display()));
    image.push(&from);
    node.ok(&["index", &from, "--push"]);
    node.ok(&["run", "--ready", "line:READY", "--exit-when-ready", &from]);
    let report = node.json(&["optimize", &from, &to, "--format", "estargz", "--verify"]);
    assert_eq!(hows(&report), ["recoded", "recoded"], "{report}");
    node.ok(&["check", &from, &to]);
    node.ok(&["index", &from, "--push", "--profile"]);

    // Elsewhere the profile is the registry's.
    let elsewhere = node!("");
    let other = format!("oci:{}:v1", elsewhere.path("to").display());
    let there = elsewhere.json(&["optimize", &from, &other, "--format", "estargz"]);
    assert_eq!(there["digest"], report["digest"], "the same order makes the same");

    // The file that was read is the first, and the one next to it is not.
    let reference: registry::Reference = to.parse().unwrap();
    let made = tokio::runtime::Runtime::new().unwrap().block_on(async {
        let source = image::client().source(&reference).await.unwrap();
        source.image(&registry::Platform::host()).await.unwrap()
    });
    let blob = node.path("to").join("blobs/sha256").join(made.layers[1].digest.hex());
    let listed = support::tool(Command::new("tar").arg("-tzf").arg(blob));
    let names: Vec<&str> = listed.lines().take(4).collect();
    assert_eq!(names, ["data/", "data/f7", ".prefetch.landmark", "data/f0"]);
}

#[test]
fn what_a_start_has_read_is_recorded_by_name_on_the_kernels_own_path() {
    what_a_start_has_read_is_recorded_by_name(&kernel_node!("[mount]\npath = \"erofs\"\n"));
}

#[test]
fn what_a_start_has_read_is_recorded_by_name_through_fuse() {
    what_a_start_has_read_is_recorded_by_name(&node!("[mount]\npath = \"fuse\"\n"));
}
