//! Docker and the BuildKit in it: images and bases of builds that are fetched as they are read.
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
use std::process::Command;

use format::Digest;
use serde_json::{Value, json};
use support::containerd::{Containerd, Release};
use support::docker::{Docker, cannot_run};
use support::image::{self, TestImage};
use support::servers::Embedded;
use support::until;
use testkit::faulty::{Faulty, Guard};

macro_rules! needs_docker {
    () => {
        if let Some(why) = cannot_run() {
            testkit::skip!("{why}");
        }
    };
}

fn image() -> Option<TestImage> {
    image::runnable(&json!({ "Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"] }))
}

/// The arguments of a build that keeps its result to itself.
const BUILD: [&str; 4] = ["build", "--network=none", "--provenance=false", "--output"];

/// Returns how many layers of an image a containerd has the blobs of.
fn layers_in(containerd: &Containerd<'_>, image: &TestImage) -> usize {
    let blobs = containerd.ok(&["content", "ls", "-q"]);
    image.layers.iter().filter(|layer| blobs.contains(&layer.digest().to_string())).count()
}

/// Returns the blobs of the layers of the only image of an OCI layout, each of which has its digest.
fn exported(layout: &Path) -> Vec<String> {
    let json = |bytes: &[u8]| serde_json::from_slice::<Value>(bytes).unwrap();
    let blob = |descriptor: &Value| {
        let digest = descriptor["digest"].as_str().unwrap();
        let bytes = fs::read(layout.join("blobs").join(digest.replace(':', "/"))).unwrap();
        assert_eq!(Digest::of(&bytes).to_string(), digest);
        (digest.to_owned(), bytes)
    };
    let index = json(&fs::read(layout.join("index.json")).unwrap());
    let manifest = json(&blob(&index["manifests"][0]).1);
    manifest["layers"].as_array().unwrap().iter().map(|layer| blob(layer).0).collect()
}

#[test]
fn a_build_fetches_no_layer_of_its_base_until_it_is_exported() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_docker!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    let docker = Docker::start(&node, &containerd, "stargz");
    let whole = || {
        let stats = registry.stats();
        stats.blobs - stats.ranges
    };
    let build = |output: &str, context: &Path| {
        docker.ok(&[&BUILD[..], &[output, context.to_str().unwrap()]].concat())
    };

    // What is not read is not fetched.
    let sent = registry.stats().bytes_sent;
    let more: &[_] = &[("added", "more\n")];
    let copied = docker.context("copied", &format!("FROM {reference}\nCOPY added /added\n"), more);
    build("type=cacheonly", &copied);
    let sent = registry.stats().bytes_sent - sent;
    assert!(sent < image.packed() / 100, "manifests, the config and indexes: {sent} of {}", image.packed());
    assert_eq!(layers_in(&containerd, &image), 0);

    // A step reads the base, which is fetched as it is read.
    let steps = format!(
        "FROM {reference}\nCOPY added /added\nRUN cat /etc/name /added >/both; busybox rm /data/0\n\
         COPY --link added /linked\n"
    );
    let ran = docker.context("ran", &steps, more);
    build("type=cacheonly", &ran);
    assert!(node.received() < image.packed() / 4, "{} of {}", node.received(), image.packed());
    assert_eq!(layers_in(&containerd, &image), 0);

    // A registry that has the base's layers is given the rest.
    let to_docker = || registry.stats().bytes_sent - node.received();
    let sent = to_docker();
    let host = registry.host();
    for name in ["app:v2", "other:v2"] {
        build(&format!("type=image,name={host}/{name},push=true,store=false"), &ran);
    }
    let sent = to_docker() - sent;
    assert!(sent < image.packed() / 100, "{sent} of {}", image.packed());
    assert_eq!(layers_in(&containerd, &image), 0);

    // The result has the base's own layers, each fetched once, and was not made by reading them.
    let before = whole();
    let layout = node.path("layout");
    build(&format!("type=oci,tar=false,dest={}", layout.display()), &ran);
    let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest().to_string()).collect();
    let layers = exported(&layout);
    assert_eq!(layers.len(), digests.len() + 3, "{layers:?}");
    assert_eq!(layers[..digests.len()], digests);
    assert_eq!(whole() - before, 2, "the base's layers");
    assert!(node.received() < image.packed() / 4, "{} of {}", node.received(), image.packed());

    // It runs, and nothing of it stays.
    docker.ok(&["build", "--network=none", "--tag", "built", ran.to_str().unwrap()]);
    let pushed = format!("{host}/other:v2");
    for name in ["built", &pushed] {
        let look = "cat /both /linked; echo /data/*";
        let said = docker.ok(&["run", "--rm", "--network=none", name, "sh", "-c", look]);
        assert_eq!(said, "tested\nmore\nmore\n/data/1\n");
        docker.ok(&["image", "rm", name]);
    }
    docker.ok(&["builder", "prune", "--all", "--force"]);
    until("the snapshots are collected", || {
        containerd.ok(&["content", "ls"]);
        node.files("snapshots") == 0
    });
}

#[test]
fn two_builds_share_a_base_that_neither_fetches() {
    let node = kernel_node!("[fetch]\nbackground = false\n");
    needs_docker!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    // Most bases are lists of platforms, by whose digest BuildKit names them.
    let list = format!("{}/app:list", registry.host());
    image.push_list(&list);
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    let docker = Docker::start(&node, &containerd, "stargz");
    let builds = ["one", "two"].map(|name| {
        let steps =
            format!("FROM {list}\nRUN cat /etc/name >/{name}; echo {name} >>/{name}\nRUN cat /{name}\n");
        let context = docker.context(name, &steps, &[]);
        let (output, context) = ("type=cacheonly", context.to_str().unwrap().to_owned());
        node.spawn(docker.command(&[&BUILD[..], &[output, &context]].concat()))
    });
    for (running, name) in builds.into_iter().zip(["one", "two"]) {
        let outcome = running.end();
        assert!(outcome.stderr.contains(&format!(" {name}\n")), "{outcome:?}\n{}", docker.log());
        docker.must(&[name], outcome);
    }
    assert_eq!(layers_in(&containerd, &image), 0);
    assert!(node.received() < image.packed() / 4, "{} of {}", node.received(), image.packed());
}

#[test]
fn a_cache_goes_to_a_registry_and_comes_back_without_the_base() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_docker!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    let docker = Docker::start(&node, &containerd, "stargz");
    let steps = format!("FROM {reference}\nRUN cat /etc/name >/one\nRUN cat /one >/two\n");
    let context = docker.context("cached", &steps, &[]);
    let cache = format!("type=registry,ref={}/cache:v1", registry.host());
    let build = |option: &str, cache: &str| {
        let words = ["type=cacheonly", option, cache, context.to_str().unwrap()];
        let words = [&BUILD[..], &words].concat();
        let outcome = docker.docker(&words);
        let said = outcome.stderr.clone();
        docker.must(&words, outcome);
        said
    };
    let to_docker = || registry.stats().bytes_sent - node.received();
    let sent = to_docker();
    let said = build("--cache-to", &format!("{cache},mode=max"));
    assert_eq!(said.matches(" CACHED\n").count(), 0, "{said}");
    docker.ok(&["builder", "prune", "--all", "--force"]);
    let said = build("--cache-from", &cache);
    assert_eq!(said.matches(" CACHED\n").count(), 2, "{said}");
    assert_eq!(layers_in(&containerd, &image), 0);
    let sent = to_docker() - sent;
    assert!(sent < image.packed() / 100, "{sent} of {}", image.packed());
}

#[test]
fn a_build_from_its_cache_asks_whether_the_base_may_still_be_had() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_docker!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let server = Faulty::start();
    image.put(&server, "app", "v1");
    image::refer_all(&server, &image);
    let reference = format!("{}/app:v1", server.host());
    let registry_wants = |password: &str| server.guard(Guard::Basic(format!("node:{password}")));
    let known_by =
        |dir: &Path, password: &str| support::log_in(dir, &server.host(), &format!("node:{password}"));
    registry_wants("first");
    known_by(&node.path("home/.docker"), "first");
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    let docker = Docker::start(&node, &containerd, "stargz");
    let client = node.path("docker/client");
    known_by(&client, "first");
    let steps = format!("FROM {reference}\nRUN cat /etc/name >/one\n");
    let context = docker.context("private", &steps, &[]);
    let words = [&BUILD[..], &["type=cacheonly", context.to_str().unwrap()]].concat();
    docker.ok(&words);
    let again = docker.docker(&words);
    assert_eq!(again.stderr.matches(" CACHED\n").count(), 1, "{again:?}");

    // Everything is here, and whoever asks may not have it any more.
    registry_wants("second");
    let refused = docker.docker(&words);
    assert!(!refused.status.success() && refused.stderr.contains("401"), "{refused:?}");
    // Who may has it from the cache, whatever the node knows.
    known_by(&client, "second");
    let again = docker.docker(&words);
    assert_eq!(again.stderr.matches(" CACHED\n").count(), 1, "{again:?}");
    docker.must(&words, again);
    assert_eq!(layers_in(&containerd, &image), 0);
}

#[test]
fn docker_runs_and_pushes_an_image_without_its_layers() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_docker!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(Release::Sid, &node, &reference);
    let docker = Docker::start(&node, &containerd, "floe");
    let run = ["run", "--network=none"];
    assert_eq!(docker.ok(&[&run[..], &["--rm", &reference]].concat()), "tested\n");
    assert!(node.received() < image.packed() / 4, "{} of {}", node.received(), image.packed());
    docker.ok(&[&run[..], &["--detach", "--name", "long", &reference, "sleep", "600"]].concat());
    node.replace_daemon();
    let read = docker.docker(&["exec", "long", "cat", "/data/0"]);
    assert!(read.stdout == image::noise(9, 1_500_000), "{} bytes, {}", read.stdout.len(), read.stderr);

    // A registry that has the layers is not sent them.
    let other = format!("{}/other:v1", registry.host());
    docker.ok(&["tag", &reference, &other]);
    docker.ok(&["push", &other]);
    assert_eq!(layers_in(&containerd, &image), 0);
    assert_eq!(client_digest(&other), image.digest());

    // To be saved an image has to be whole: its blobs are what they were.
    containerd.ok(&["content", "fetch", "--plain-http", &reference]);
    let (archive, layout) = (node.path("saved.tar"), node.path("layout"));
    docker.ok(&["image", "save", "--output", archive.to_str().unwrap(), &reference]);
    fs::create_dir(&layout).unwrap();
    support::tool(Command::new("tar").arg("-C").arg(&layout).arg("-xf").arg(&archive));
    let digests: Vec<_> = image.layers.iter().map(|layer| layer.digest().to_string()).collect();
    assert_eq!(exported(&layout), digests);

    // What a container has written becomes a layer, and all that it sees a tar.
    docker.ok(&["exec", "long", "sh", "-c", "echo more >/made"]);
    docker.ok(&["commit", "long", "made"]);
    let said = docker.ok(&[&run[..], &["--rm", "made", "cat", "/made", "/etc/name"]].concat());
    assert_eq!(said, "more\ntested\n");
    let tar = node.path("exported.tar");
    docker.ok(&["export", "--output", tar.to_str().unwrap(), "long"]);
    for (name, text) in [("made", "more\n"), ("etc/name", "tested\n")] {
        let read = Command::new("tar").arg("-xOf").arg(&tar).arg(name).output().unwrap();
        assert_eq!(read.stdout, text.as_bytes(), "{name}");
    }
    docker.ok(&["image", "rm", "made"]);

    docker.ok(&["rm", "--force", "long"]);
    docker.ok(&["image", "rm", &reference, &other]);
    until("the snapshots are collected", || {
        containerd.ok(&["content", "ls"]);
        node.files("snapshots") == 0
    });
}

/// Returns which manifest a registry has by a name.
fn client_digest(reference: &str) -> Digest {
    let name = image::name(reference);
    let repository = image::client().repository(name.host(), name.repository());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    runtime.block_on(repository.manifest(&registry::Pick::of(&name))).unwrap().digest
}
