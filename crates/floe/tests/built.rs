//! What builders write, on its way into a conversion: nothing is in a registry or a file before, and a base is converted once.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::fs::File;
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use support::Node;
use support::containerd::{Containerd, Release};
use support::docker::{self, Docker};
use support::image::{self, TestImage};
use support::servers::Embedded;
use support::storage::{self, Storage};

const FORMATS: [&str; 4] = ["estargz", "zstdchunked", "nydus", "erofs"];

fn image() -> Option<TestImage> {
    let image = image::runnable(&json!({ "Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"] }));
    image.filter(|_| support::program("runc").is_some())
}

/// Converts what a builder writes to its standard output.
fn converted(node: &Node, mut builder: Command, from: &str, to: &str, format: &str) -> Value {
    let said = node.fresh("said");
    builder.stdout(Stdio::piped()).stderr(File::create(&said).unwrap());
    let mut building = builder.spawn().unwrap();
    let words = ["--output", "json", "convert", from, to, "--format", format, "--verify"];
    let mut command = node.command(&words);
    command.stdin(building.stdout.take().unwrap());
    drop(builder);
    let outcome = node.spawn(command).end();
    let built = building.wait().unwrap();
    assert!(outcome.status.success(), "{outcome:?}");
    assert!(built.success(), "{built}: {}", std::fs::read_to_string(said).unwrap());
    outcome.json()
}

/// How often each thing was done with the layers.
fn hows(report: &Value) -> Vec<&str> {
    report["layers"].as_array().unwrap().iter().map(|layer| layer["how"].as_str().unwrap()).collect()
}

/// Runs what was made, which reads a word of the base and one of what was built, and neither of the large files.
fn runs(reference: &str, format: &str, built: &str, image: &TestImage) {
    let by_digest = || format!("{}@{}", reference.rsplit_once(':').unwrap().0, image::nydus_of(reference));
    let reference = if format == "nydus" { by_digest() } else { reference.to_owned() };
    let node = Node::new("[fetch]\nbackground = false\n");
    let said = node.ok(&["run", &reference, "--", "cat", "/etc/name", "/added"]);
    assert_eq!(said, format!("tested\n{built}\n"), "{format}");
    let received = node.received();
    // A file system is fetched whole.
    assert!(received < image.packed() / 2 || format == "erofs", "{format}: {received} of {}", image.packed());
}

/// Converts two builds upon one base, each straight into a registry.
fn two_builds(node: &Node, image: &TestImage, from: &str, builder: impl Fn(&str, &str) -> Command) {
    let registry = Embedded::start(&node.path("made"));
    for format in FORMATS {
        let to = format!("{}/made/{format}:latest", registry.host());
        let convert = |added: &str| {
            let report = converted(node, builder(format, added), from, &format!("docker://{to}"), format);
            runs(&to, format, added, image);
            report
        };
        let report = convert("first");
        assert_eq!(hows(&report), ["recoded"; 3], "{report}");
        let report = convert("second");
        assert_eq!(hows(&report), ["reused", "reused", "recoded"], "{format}: {report}");
    }
}

fn built_by_buildah(node: &Node, from: &str, push: impl Fn(&Storage<'_>) -> Command) {
    if let Some(why) = storage::cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image() else { testkit::skip!("there is no busybox, or no runc") };
    let (_registry, reference) = Embedded::with_index(node, &image);
    let storage = Storage::start(node, &reference);
    two_builds(node, &image, from, |_, added| {
        storage.file("added", &format!("{added}\n"));
        storage.file("Containerfile", &format!("FROM {reference}\nCOPY added /added\n"));
        let built = storage.buildah(&["bud", "--isolation", "chroot", "-t", "localhost/made", "."]);
        assert!(built.status.success(), "{built:?}\n{}", node.log());
        push(&storage)
    });
}

#[test]
fn what_buildah_saves_as_docker_does_is_converted_on_its_way() {
    built_by_buildah(&node!(""), "docker-archive:-", |storage| {
        storage.command("buildah", &["push", "localhost/made", "docker-archive:/dev/stdout"])
    });
}

/// Its OCI archives it writes to no pipe that has no name.
#[test]
fn an_archive_of_buildah_is_converted_on_its_way() {
    let node = node!("");
    let pipe = node.path("pipe");
    support::tool(Command::new("mkfifo").arg(&pipe));
    built_by_buildah(&node, "oci-archive:-", |storage| {
        let to = format!("oci-archive:{}", pipe.display());
        let push = storage.command("buildah", &["push", "localhost/made", &to]);
        let mut both = Command::new("sh");
        both.args(["-c", "cat \"$0\" & \"$@\" || { kill $!; exit 1; }; wait"]).arg(&pipe);
        both.arg(push.get_program()).args(push.get_args()).current_dir(push.get_current_dir().unwrap());
        for (name, value) in push.get_envs() {
            match value {
                Some(value) => both.env(name, value),
                None => both.env_remove(name),
            };
        }
        both
    });
}

#[test]
fn what_docker_builds_is_converted_on_its_way() {
    let node = node!("[fetch]\nbackground = false\n");
    if let Some(why) = docker::cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image() else { testkit::skip!("there is no busybox, or no runc") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    let docker = Docker::start(&node, &containerd, "stargz");
    two_builds(&node, &image, "oci-archive:-", |format, added| {
        let file = format!("FROM {reference}\nCOPY added /added\n");
        let context =
            docker.context(&format!("{format}-{added}"), &file, &[("added", &format!("{added}\n"))]);
        docker.command(&["buildx", "build", "--output", "type=oci,dest=-", context.to_str().unwrap()])
    });
}
