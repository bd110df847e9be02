//! The additional layer store: lazy images in Debian's buildah and podman.
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
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::process::Command;

use format::Digest;
use serde_json::{Value, json};
use support::image::{self, Layer, Pack, TestImage, noise};
use support::servers::Embedded;
use support::storage::{Storage, cannot_run};
use support::{mounts_of, until};
use testkit::faulty::Faulty;
use testkit::tar::Entry;

macro_rules! needs_tools {
    () => {
        if let Some(why) = cannot_run() {
            testkit::skip!("{why}");
        }
    };
}

/// Returns an image that can run, in which each layer takes something away of the one below.
fn image() -> Option<TestImage> {
    let mut image = image::runnable(&json!({ "Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"] }))?;
    let above = [
        Entry::file("data/.wh.0", ""),
        Entry::dir("srv/"),
        Entry::file("srv/.wh..wh..opq", ""),
        Entry::file("srv/kept", "kept"),
        Entry::file("etc/name", "above\n"),
        Entry::dir("dev/"),
        Entry::dir("proc/"),
        Entry::dir("sys/"),
        Entry::file("noise", noise(11, 2_500_000)),
    ];
    let mut layers = image.layers.clone();
    layers.insert(1, Layer::of(&[Entry::dir("srv/"), Entry::file("srv/gone", "x")], Pack::Gzip));
    layers.push(Layer::of(&above, Pack::Zstd));
    image = TestImage::new(layers, &json!({ "Cmd": ["cat", "/etc/name"], "Env": ["PATH=/bin"] }));
    Some(image)
}

/// Returns how many bytes of an image's layers Floe has asked a server for; nobody else may have asked for any.
fn asked(server: &Faulty, image: &TestImage) -> u64 {
    let of = |layer: &Layer| {
        let (path, len) = (image::blob_path("app", &layer.digest()), layer.blob.len() as u64);
        let gets = server.seen().into_iter().filter(|seen| seen.path == path && seen.method == "GET");
        let bytes = gets.map(|seen| {
            let agent = seen.headers.get("user-agent").cloned().unwrap_or_default();
            assert!(agent.starts_with("floe/"), "{agent} asked for {path}");
            seen.range.map_or(len, |range| range.end.min(len) - range.start)
        });
        bytes.sum::<u64>()
    };
    image.layers.iter().map(of).sum()
}

/// Builds an image upon another.
fn build(node: &support::Node, storage: &Storage<'_>, reference: &str) {
    storage.file(
        "Containerfile",
        &format!("FROM {reference}\nRUN cat /etc/name >/made; wc -c </noise >>/made\n"),
    );
    let built = storage.buildah(&["bud", "--isolation", "chroot", "-t", "localhost/made", "."]);
    assert!(built.status.success(), "{built:?}\n{}", node.log());
}

#[test]
fn a_base_is_built_upon_without_its_layers() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_tools!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    build_lazily(&node, &image);
}

#[test]
fn a_base_is_built_upon_by_the_kernels_own_path() {
    let node = kernel_node!("[fetch]\nbackground = false\n[mount]\npath = \"erofs\"\n");
    needs_tools!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    build_lazily(&node, &image);
}

fn build_lazily(node: &support::Node, image: &TestImage) {
    let server = Faulty::start();
    server.put("/v2/", "application/json", b"{}");
    image.put(&server, "app", "v1");
    image::refer_all(&server, image);
    let reference = format!("{}/app:v1", server.host());
    let storage = Storage::start(node, &reference);
    build(node, &storage, &reference);
    let bytes = asked(&server, image);
    // What the build reads is one of the large files, and busybox.
    assert!(bytes < image.packed() / 2, "{bytes} of {}", image.packed());
    assert!(storage.layers_taken() < 100_000, "nothing was unpacked: {}", storage.layers_taken());
    eprintln!("a build asked for {bytes} of {} bytes", image.packed());
    assert_eq!(storage.container("localhost/made").run(&["cat", "/made"]), "above\n2500000\n");
}

/// The tools keep layers as plain tars in their books, and compress what they push: a base that one of them has pushed comes out
/// with its digests.
#[test]
fn what_was_built_is_pushed_with_the_blobs_of_its_base() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_tools!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let Some(skopeo) = support::program("skopeo") else { testkit::skip!("there is no skopeo") };
    let plain = image.layers.iter().map(|layer| Layer::new(layer.tar.clone(), Pack::Plain)).collect();
    TestImage::new(plain, &json!({ "Env": ["PATH=/bin"] })).layout(&node.path("layout"), "v1");
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    let mut copy = Command::new(skopeo);
    copy.args(["--insecure-policy", "copy", "--dest-tls-verify=false"]);
    copy.arg(format!("oci:{}:v1", node.path("layout").display())).arg(format!("docker://{reference}"));
    node.isolate(&mut copy);
    support::tool(&mut copy);
    support::Node::new("").ok(&["index", "--push", &reference]);

    let storage = Storage::start(&node, &reference);
    build(&node, &storage, &reference);
    assert!(storage.layers_taken() < 100_000, "nothing was unpacked: {}", storage.layers_taken());
    // Where nothing of the base is: each blob is read.
    let elsewhere = Embedded::start(&node.path("elsewhere"));
    let target = format!("{}/made:v1", elsewhere.host());
    let pushed =
        storage.buildah(&["push", "--tls-verify=false", "localhost/made", &format!("docker://{target}")]);
    assert!(pushed.status.success(), "{pushed:?}\n{}", node.log());
    let (base, made) = (storage.layers_of(&reference), storage.layers_of(&target));
    assert_eq!(made[..base.len()], base);
    assert_eq!(made.len(), base.len() + 1);
    for digest in base {
        assert!(elsewhere.content(&digest) == registry.content(&digest));
    }
}

#[test]
fn a_lazy_image_runs_under_podman_and_its_removal_frees_its_mounts() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_tools!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let storage = Storage::start(&node, &reference);
    let first = "cat /etc/name; cd /srv; echo *; cd /data; echo *; echo new >/etc/name; cat /etc/name";
    assert_eq!(storage.run(&reference, &["sh", "-c", first]), "above\nkept\n1\nnew\n");
    assert!(node.received() < image.packed() / 2, "{}", node.received());
    let second = "cat /etc/name; wc -c </noise; wc -c </data/1";
    assert_eq!(storage.run(&reference, &["sh", "-c", second]), "above\n2500000\n4000000\n");

    let mnt = floe::daemon::run_dir(&node.store()).unwrap().join("mnt");
    assert_eq!(mounts_of(&mnt).len(), image.layers.len());
    assert_eq!(node.files("snapshots"), image.layers.len());
    assert!(storage.podman(&["rmi", &reference]).status.success());
    until("nobody uses the layers", || node.files("snapshots") == 0);
    until("the mounts are gone", || mounts_of(&mnt).is_empty());
    until("nothing is left of the layers", || {
        node.ok(&["gc"]);
        node.files("device") == 0
    });
}

#[test]
fn a_daemon_that_dies_is_followed_by_one_that_knows_the_names() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_tools!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (mut registry, reference) = Embedded::with_index(&node, &image);
    let storage = Storage::start(&node, &reference);
    let container = storage.container(&reference);
    assert_eq!(container.run(&["cat", "/etc/name"]), "above\n");
    for (file, len) in [("/noise", 2_500_000), ("/data/1", 4_000_000)] {
        let before = node.daemon();
        node.kill_daemon();
        // No command starts it: the keeper does.
        until("there is another daemon", || node.locked_by().is_some_and(|pid| Some(pid) != before));
        let read = container.run(&["wc", "-c", file]);
        assert_eq!(read.trim(), format!("{len} {file}"));
    }
    // Told to end, it has unmounted all; the next mounts what is looked at, and asks nobody for what it has.
    node.stop();
    registry.down();
    node.ok(&["gc", "--dry-run"]);
    assert_eq!(container.run(&["sh", "-c", "cat /etc/name; wc -c </noise"]), "above\n2500000\n");
    drop(container);
    assert!(storage.buildah(&["rmi", &reference]).status.success());
    until("nobody uses the layers", || node.files("snapshots") == 0);
}

#[test]
fn what_is_not_lazy_is_pulled_as_ever_and_the_log_says_why() {
    let node = node!("[fetch]\nbackground = false\n");
    needs_tools!();
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    // Its index is unsigned, and nobody trusts the registry.
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let storage = Storage::start_with(&node, &reference, "");
    // That the layers are proved says what their tars are, and not that the blobs are theirs.
    node.ok(&["pull", &reference]);
    assert_eq!(storage.container(&reference).run(&["cat", "/etc/name"]), "above\n");
    assert!(storage.layers_taken() > 5_000_000, "{}", storage.layers_taken());
    assert!(node.log().contains("layers are shared between images"), "{}", node.log());
    assert_eq!(node.files("snapshots"), 0);
}

#[test]
fn names_blobs_and_whiteouts_are_what_containers_storage_expects() {
    let node = node!("[fetch]\nbackground = false\n");
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let storage = Storage::start(&node, &reference);
    let of = |layer: &Layer| storage.layer(&reference, &layer.digest().to_string());
    for (layer, compression) in image.layers.iter().zip([2, 2, 2, 4]) {
        let dir = of(layer);
        let info: Value = serde_json::from_slice(&fs::read(dir.join("info")).unwrap()).unwrap();
        assert_eq!(
            info,
            json!({
                "compressed-diff-digest": layer.digest().to_string(), "compressed-size": layer.blob.len(),
                "diff-digest": layer.diff_id().to_string(), "diff-size": layer.tar.len(), "compression": compression
            })
        );
        assert_eq!(fs::metadata(dir.join("blob")).unwrap().len(), layer.blob.len() as u64);
        assert!(fs::read(dir.join("blob")).unwrap() == layer.blob);
    }
    let top = of(image.layers.last().unwrap()).join("diff");
    let hidden = fs::symlink_metadata(top.join("data/0")).unwrap();
    assert!(hidden.file_type().is_char_device() && hidden.rdev() == 0, "{hidden:?}");
    let mut opaque = [0; 8];
    let len = rustix::fs::getxattr(top.join("srv"), "trusted.overlay.opaque", &mut opaque).unwrap();
    assert_eq!(&opaque[..len], b"y");
    assert!(rustix::fs::getxattr(top.join("data"), "trusted.overlay.opaque", &mut opaque).is_err());
    assert_eq!(fs::read(top.join("noise")).unwrap(), noise(11, 2_500_000));

    // Uses are counted, durably, and seen.
    let (dir, names) = (of(&image.layers[0]), storage.names());
    let errno = |result: std::io::Result<()>| result.unwrap_err().raw_os_error();
    let enoent = Some(rustix::io::Errno::NOENT.raw_os_error());
    for uses in 1..=2 {
        assert_eq!(errno(fs::File::create(dir.join("use")).map(drop)), enoent);
        assert_eq!(node.files("snapshots"), 1, "{uses}");
    }
    assert_eq!(fs::read_dir(&names).unwrap().count(), 1);
    assert_eq!(fs::read_dir(dir.parent().unwrap()).unwrap().count(), 1);
    node.kill_daemon();
    for left in [1, 0] {
        assert_eq!(errno(fs::remove_dir(&dir)), enoent);
        until("the use is counted", || node.files("snapshots") == left);
    }
    assert_eq!(errno(fs::remove_dir(&dir)), enoent);
    assert_eq!(fs::read_dir(&names).unwrap().count(), 0);

    // Nothing else can be done there, and what makes no sense is not there.
    let eperm = Some(rustix::io::Errno::PERM.raw_os_error());
    assert_eq!(errno(fs::write(dir.join("info"), "x")), eperm);
    assert_eq!(errno(fs::create_dir(names.join("x"))), eperm);
    for odd in ["x", "eA==", "Li4vLi4vZXRj"] {
        assert_eq!(
            errno(fs::metadata(names.join(odd).join(image.layers[0].digest().to_string())).map(drop)),
            enoent
        );
    }
    let none = storage.layer(&reference, &Digest::of(b"none").to_string());
    assert_eq!(errno(fs::metadata(none).map(drop)), enoent);
    drop(registry);
}

#[test]
fn a_blob_that_is_not_what_it_should_be_is_an_error() {
    let node = node!("[fetch]\nbackground = false\n");
    let Some(image) = image() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let storage = Storage::start(&node, &reference);
    let layer = image.layers.last().unwrap();
    let blob = storage.layer(&reference, &layer.digest().to_string()).join("blob");
    assert_eq!(fs::metadata(&blob).unwrap().len(), layer.blob.len() as u64);
    let mut wrong = layer.blob.to_vec();
    wrong[layer.blob.len() / 2] ^= 1;
    registry.corrupt(&layer.digest(), &wrong);
    let error = fs::read(&blob).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(rustix::io::Errno::IO.raw_os_error()));
    assert!(node.log().contains("what the registry has as blob"), "{}", node.log());
    registry.corrupt(&layer.digest(), &layer.blob);
    assert!(fs::read(&blob).unwrap() == layer.blob, "an error does not stick");
}
