//! Images that are lazy by what is in them or beside them, in every format, started by a real containerd.
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

use convert::recode::Target;
use serde_json::{Value, json};
use support::Node;
use support::containerd::{Containerd, Release};
use support::cri::Cri;
use support::image::{self, TestImage};
use support::servers::Embedded;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Format {
    EStargz,
    ZstdChunked,
    Soci,
    Nydus,
}

const FORMATS: [Format; 4] = [Format::EStargz, Format::ZstdChunked, Format::Soci, Format::Nydus];

/// What is said where nobody vouches for what layers say of themselves.
const SHARED: &str = "no trusted key signed the index; trust = \"registry\" would do for the host";

/// The latest containerd that is here.
fn release() -> Release {
    if Release::Sid.cannot_run().is_none() { Release::Sid } else { Release::Installed }
}

/// Returns an image that can run, the layer with the large files below.
fn runnable() -> Option<TestImage> {
    let config = json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"] });
    let image = image::runnable(&config)?;
    Some(TestImage::new(image.layers.into_iter().rev().collect(), &config))
}

/// Stores an image in one of the formats; returns its reference.
fn publish(format: Format, registry: &Embedded, image: &TestImage) -> String {
    let reference = format!("{}/team/app:{format:?}", registry.host());
    let recoded = |target| {
        let config: Value = serde_json::from_slice(&image.config).unwrap();
        let layers = image.layers.iter().map(|layer| layer.recoded(target)).collect();
        TestImage::new(layers, &config["config"]).push(&reference);
    };
    match format {
        Format::EStargz => recoded(Target::EStargz),
        Format::ZstdChunked => recoded(Target::ZstdChunked),
        Format::Soci => {
            let table = ztoc::ztoc(&image.layers[0].blob, &image.layers[0].tar, 1 << 20);
            support::soci::push_v1(image, &reference, &table.encode());
        }
        Format::Nydus => {
            let plain = format!("{}/team/app:plain", registry.host());
            image.push(&plain);
            Node::new("").ok(&["convert", &plain, &format!("docker://{reference}"), "--format", "nydus"]);
            return format!("{}/team/app@{}", registry.host(), image::nydus_of(&reference));
        }
    }
    reference
}

/// Reads a small file, and then a large one, in containers; returns what had been received between.
fn reads(containerd: &Containerd<'_>, node: &Node, reference: &str) -> u64 {
    let run = |name, words: &[&str]| {
        containerd.ok(&[&["run", "--rm", "--snapshotter", "floe", reference, name], words].concat())
    };
    assert_eq!(run("one", &["cat", "/etc/name"]), "tested\n", "{reference}");
    let between = node.received();
    assert_eq!(run("two", &["wc", "-c", "/data/1"]), "4000000 /data/1\n", "{reference}");
    between
}

fn every_format_is_lazy(path: &str, first: &Node) {
    if let Some(why) = release().cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = runnable() else { testkit::skip!("there is no busybox") };
    let registry = Embedded::start(&first.path("registry"));
    for format in FORMATS {
        let reference = publish(format, &registry, &image);
        let node = Node::reading(path, "[fetch]\nbackground = false\n");
        let containerd = Containerd::start(release(), &node, &reference);
        containerd.pull(&reference);
        let blobs = containerd.ok(&["content", "ls", "-q"]);
        assert_eq!(blobs.lines().count(), 2, "{format:?}, manifest and config: {blobs}");
        let between = reads(&containerd, &node, &reference);
        assert!(between < image.packed() / 3, "{format:?}: {between} of {}", image.packed());
        assert!(node.received() > between + 3_000_000, "{format:?}: the large file comes when it is read");
    }
}

#[test]
fn every_format_is_lazy_where_the_registry_is_trusted_on_the_kernels_own_path() {
    every_format_is_lazy("erofs", &kernel_node!(""));
}

#[test]
fn every_format_is_lazy_where_the_registry_is_trusted_through_fuse() {
    every_format_is_lazy("fuse", &node!());
}

#[test]
fn without_trust_layers_are_streamed_and_nydus_is_refused() {
    let first = node!();
    if let Some(why) = release().cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = runnable() else { testkit::skip!("there is no busybox") };
    let registry = Embedded::start(&first.path("registry"));
    let node = Node::new("[fetch]\nbackground = false\n");
    let containerd = Containerd::start_with(release(), &node, "");
    let unsigned = || node.status()["fallbacks"]["unsigned"].as_u64().unwrap_or(0);
    let streams = |reference: &str, told: u64| {
        let (received, before) = (node.received(), unsigned());
        containerd.pull(reference);
        let came = node.received() - received;
        assert!(came > image.packed() * 9 / 10, "{reference}: {came} of {}", image.packed());
        assert_eq!(unsigned() - before, told, "{reference}");
        reads(&containerd, &node, reference);
    };
    let [estargz, zstd_chunked, soci, nydus] = FORMATS.map(|format| publish(format, &registry, &image));
    streams(&estargz, 2);
    streams(&zstd_chunked, 2);
    streams(&soci, 0); // what nobody will believe is not asked for

    // There is no tar to stream.
    let before = containerd.snapshots("floe");
    let outcome = containerd.try_pull_as("floe", &nydus);
    assert_eq!(outcome.status.code(), Some(1), "{outcome:?}");
    assert!(outcome.stderr.contains("an image of Nydus that cannot be read: layer sha256:"), "{outcome:?}");
    assert!(outcome.stderr.contains(SHARED), "{outcome:?}");
    assert_eq!(containerd.snapshots("floe"), before);
    assert!(!containerd.ok(&["images", "ls", "-q"]).contains(&nydus));
    reads(&containerd, &node, &estargz);
    // By its tag it is the ordinary image that it was made of.
    let tag = format!("{}/team/app:{:?}", registry.host(), Format::Nydus);
    containerd.pull(&tag);
    reads(&containerd, &node, &tag);
}

#[test]
fn every_format_is_lazy_in_pods() {
    let first = node!();
    if let Some(why) = release().cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = runnable() else { testkit::skip!("there is no busybox") };
    let registry = Embedded::start(&first.path("registry"));
    for format in FORMATS {
        let reference = publish(format, &registry, &image);
        let node = Node::new("[fetch]\nbackground = false\n");
        let containerd = Containerd::start_for_pods(release(), &node, &reference);
        let mut cri = Cri::at(&containerd.socket());
        cri.pull(&reference).unwrap_or_else(|status| panic!("{format:?}: {status}: {}", node.log()));
        // The sandbox is of the same image.
        let pod = cri.pod("pod");
        let one = cri.start(&pod, "one", &reference, &["sleep", "1000"]).unwrap();
        assert_eq!(cri.exec(&one, &["cat", "/etc/name"]), b"tested\n", "{format:?}");
        let between = node.received();
        assert!(between < image.packed() / 3, "{format:?}: {between} of {}", image.packed());
        assert!(cri.exec(&one, &["cat", "/data/1"]) == image::noise(10, 4_000_000), "{format:?}");
        cri.remove(&one);
        cri.remove_pod(&pod);
    }
}

#[test]
fn a_pod_of_nydus_is_refused_without_trust_and_others_run() {
    let first = node!();
    if let Some(why) = release().cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = runnable() else { testkit::skip!("there is no busybox") };
    let registry = Embedded::start(&first.path("registry"));
    let [estargz, nydus] = [Format::EStargz, Format::Nydus].map(|format| publish(format, &registry, &image));
    let node = Node::new("");
    let (_elsewhere, pause) = Embedded::with_index(&node, &image); // its registry is trusted, and no other
    let containerd = Containerd::start_for_pods(release(), &node, &pause);
    let mut cri = Cri::at(&containerd.socket());
    let refused = cri.pull(&nydus).unwrap_err();
    let said = "no processor for media-type";
    assert!(refused.message().contains(said), "containerd knows none: {refused}");
    let why = "the layer is not lazy: opening the image: opening docker://";
    assert!(node.log().contains(why) && node.log().contains(SHARED), "{}", node.log());
    assert!(!cri.has(&nydus));
    for reference in [&pause, &estargz] {
        cri.pull(reference).unwrap();
    }
    let pod = cri.pod("pod");
    let one = cri.start(&pod, "one", &estargz, &["sleep", "1000"]).unwrap();
    assert_eq!(cri.exec(&one, &["cat", "/etc/name"]), b"tested\n");
    cri.remove(&one);
    cri.remove_pod(&pod);
}
