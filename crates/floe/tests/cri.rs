//! Pods: what kubelet asks of containerd, with images that are fetched as they are read.
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

use support::containerd::{Containerd, Puller, Release};
use support::cri::Cri;
use support::image;
use support::servers::Embedded;
use support::until;

each_release!(
    a_pod_runs_without_the_layers_of_its_images_and_leaves_nothing,
    images_that_overlayfs_unpacked_run_when_pods_become_lazy,
);

fn a_pod_runs_without_the_layers_of_its_images_and_leaves_nothing(release: Release) {
    let node = node!("[fetch]\nbackground = false\n");
    if let Some(why) = release.cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start_for_pods(release, &node, &reference);
    let mut cri = Cri::at(&containerd.socket());

    cri.pull(&reference).unwrap();
    let pulled = node.received();
    assert!(pulled < image.packed() / 4, "{pulled} of {}", image.packed());
    let snapshots = || containerd.ok(&["--namespace", "k8s.io", "snapshots", "--snapshotter", "floe", "ls"]);
    assert_eq!(snapshots().lines().skip(1).count(), 2, "its layers");
    // The sandbox is of the same image: nothing is pulled for it.
    let pod = cri.pod("pod");
    let one = cri.start(&pod, "one", &reference, &["sh", "-c", "echo 1 >/tmp/written; sleep 1000"]).unwrap();
    let two = cri.start(&pod, "two", &reference, &["sleep", "1000"]).unwrap();
    assert!(cri.exec(&one, &["cat", "/data/0"]) == image::noise(9, 1_500_000));
    assert!(cri.exec(&two, &["cat", "/data/1"]) == image::noise(10, 4_000_000));
    assert_eq!(cri.exec(&two, &["sh", "-c", "cat /tmp/written 2>/dev/null || echo none"]), b"none\n");

    // What kubelet sees of the disk is true: where it is, and what is taken of it.
    until("containerd has looked at the snapshots", || {
        cri.written(&one).used_bytes.is_some_and(|used| used.value > 0)
    });
    let taken = bytes_below(&node.store().join("device"));
    assert!(taken >= 5_500_000, "{taken}: two files have been read");
    until("it has looked once more", || {
        let used = cri.image_fs().used_bytes.unwrap().value;
        (taken..taken + (1 << 20)).contains(&used)
    });
    // 1.6 does not read what a plugin exports, and says where one of its own would be.
    let place = PathBuf::from(cri.image_fs().fs_id.unwrap().mountpoint);
    match release {
        Release::Installed => assert!(place.ends_with("io.containerd.snapshotter.v1.floe"), "{place:?}"),
        Release::Trixie | Release::Sid => assert_eq!(place, node.store()),
    }

    // The daemon dies under the pod; the next one serves it, and another container.
    node.replace_daemon();
    assert_eq!(cri.exec(&one, &["cat", "/etc/name"]), b"tested\n");
    // containerd connects again after a while; kubelet tries again as well.
    let mut three = None;
    until("another container starts", || {
        three = cri.start(&pod, "three", &reference, &["sleep", "1000"]).ok();
        three.is_some()
    });

    for container in [one, two].into_iter().chain(three) {
        cri.remove(&container);
    }
    cri.remove_pod(&pod);
    cri.remove_image(&reference);
    until("the snapshots are collected", || node.files("snapshots") == 0);
}

/// Returns what the files in the directories of a directory take.
fn bytes_below(dir: &Path) -> u64 {
    let dirs = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    dirs.flat_map(|dir| fs::read_dir(dir).unwrap()).map(|file| file.unwrap().metadata().unwrap().len()).sum()
}

fn images_that_overlayfs_unpacked_run_when_pods_become_lazy(release: Release) {
    let node = node!("[fetch]\nbackground = false\n");
    if let Some(why) = release.cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let mut containerd = Containerd::start_for_pods(release, &node, &reference);
    containerd.images_by("floe", "overlayfs");
    let mut cri = Cri::at(&containerd.socket());
    cri.pull(&reference).unwrap();
    let old = cri.pod("old");
    let one = cri.start(&old, "one", &reference, &["sleep", "1000"]).unwrap();

    // As a node is told of Floe: its images, the sandbox's among them, are there and are not pulled again.
    containerd.images_by("overlayfs", "floe");
    let mut cri = Cri::at(&containerd.socket());
    assert_eq!(cri.exec(&one, &["cat", "/etc/name"]), b"tested\n", "what runs goes on");
    let new = cri.pod("new");
    let two = cri.start(&new, "two", &reference, &["sleep", "1000"]).unwrap();
    assert!(cri.exec(&two, &["cat", "/data/0"]) == image::noise(9, 1_500_000));
    let three = cri.start(&old, "three", &reference, &["sleep", "1000"]).unwrap();
    assert_eq!(cri.exec(&three, &["cat", "/etc/name"]), b"tested\n");
    for container in [one, two, three] {
        cri.remove(&container);
    }
    for pod in [old, new] {
        cri.remove_pod(&pod);
    }
}

#[test]
fn containerd_2_asks_for_no_layer_whoever_pulls() {
    for puller in [Puller::Cri, Puller::Transfer] {
        let node = node!("[fetch]\nbackground = false\n");
        if let Some(why) = Release::Sid.cannot_run() {
            testkit::skip!("{why}");
        }
        let image = image::layered(5, 3, 500_000);
        let (_registry, reference) = Embedded::with_index(&node, &image);
        let containerd = Containerd::start_for_pods_of(Release::Sid, puller, &node, &reference);
        let blobs =
            |namespace| containerd.ok(&["--namespace", namespace, "content", "ls", "-q"]).lines().count();
        Cri::at(&containerd.socket()).pull(&reference).unwrap();
        assert_eq!(blobs("k8s.io"), 2, "manifest and config, by {puller:?}");
        if puller == Puller::Transfer {
            let pull = ["images", "pull", "--plain-http", "--snapshotter"];
            containerd.ok(&[&["--namespace", "lazy"], &pull[..], &["floe", &reference]].concat());
            assert_eq!(blobs("lazy"), 2);
            containerd.ok(&[&["--namespace", "whole"], &pull[..], &["overlayfs", &reference]].concat());
            assert_eq!(blobs("whole"), 2 + image.layers.len());
        }
        assert!(node.received() < image.packed() / 4, "{} of {}", node.received(), image.packed());
    }
}

/// containerd 2.1 and 2.2 ask the snapshotter for layers whose types begin as OCI's do.
#[test]
fn containerd_2_asks_for_no_layer_that_is_a_file_system() {
    let node = node!("");
    if let Some(why) = Release::Sid.cannot_run() {
        testkit::skip!("{why}");
    }
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image.file_systems("application/vnd.oci.image.layer.v1.erofs").push(&reference);
    let containerd = Containerd::start_for_pods_of(Release::Sid, Puller::Cri, &node, &reference);
    let mut cri = Cri::at(&containerd.socket());
    cri.pull(&reference).unwrap();
    let blobs = containerd.ok(&["--namespace", "k8s.io", "content", "ls", "-q"]);
    assert_eq!(blobs.lines().count(), 2, "manifest and config: {blobs}");
    let pod = cri.pod("pod");
    let one = cri.start(&pod, "one", &reference, &["sleep", "1000"]).unwrap();
    assert!(cri.exec(&one, &["cat", "/data/0"]) == image::noise(9, 1_500_000));
    cri.remove(&one);
    cri.remove_pod(&pod);
}
