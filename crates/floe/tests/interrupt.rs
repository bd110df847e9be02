//! Ctrl-C, and clients that are killed while the registry makes them wait: they end at once, nothing that was verified is
//! lost, and nothing goes on that nobody waits for.
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
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use support::image::{self, Layer, Pack, TestImage};
use support::{Outcome, Running, until};
use testkit::faulty::{Fault, Faulty};
use testkit::tar::Entry;

/// Longest time between Ctrl-C and the end, with room for a loaded machine. The registry would stall for longer.
const PROMPT: Duration = Duration::from_secs(20);

/// A registry with an image of a small layer and a large one.
struct Scene {
    server: Faulty,
    image: TestImage,
    reference: String,
}

impl Scene {
    fn new() -> Self {
        let small = Layer::of(&[Entry::dir("etc/"), Entry::file("etc/hello", "hello\n")], Pack::Gzip);
        let data = (0..8).map(|n| Entry::file(format!("data/{n}"), image::noise(50 + n, 1_500_000)));
        let large = Layer::of(&data.collect::<Vec<_>>(), Pack::Gzip);
        Self::of(TestImage::new(vec![small, large], &json!({})))
    }

    fn of(image: TestImage) -> Self {
        let server = Faulty::start();
        image.put(&server, "app", "v1");
        let reference = format!("{}/app:v1", server.host());
        Self { server, image, reference }
    }

    /// A node that gives a stalled request up after a second, so that what comes after need not wait for it.
    fn config(&self) -> String {
        format!("[registry.\"{}\".budgets]\nstall = 1\n", self.server.host())
    }

    /// Where a layer's blob is.
    fn blob(&self, layer: usize) -> String {
        image::blob_path("app", &self.image.layers[layer].digest())
    }

    /// Sends so much of the large layer and nothing more, whoever asks.
    fn stall(&self, after: usize) {
        self.server.fault(&self.blob(1), Fault::Stall { after }, u32::MAX);
    }

    fn asked(&self, layer: usize) -> usize {
        self.server.count(&self.blob(layer))
    }

    /// Returns the bytes of the large layer that were asked for.
    fn ranges(&self) -> u64 {
        let len = self.image.layers[1].blob.len() as u64;
        let seen = self.server.seen();
        let of_layer = seen.iter().filter(|seen| seen.path == self.blob(1) && seen.method == "GET");
        of_layer.map(|seen| seen.range.clone().map_or(len, |range| range.end.min(len) - range.start)).sum()
    }
}

/// Sends SIGINT and returns how the command ended, which must be at once and as the manual says: like the shell's own.
fn interrupt(running: Running) -> Outcome {
    let begun = Instant::now();
    running.signal(Signal::INT);
    let outcome = running.end();
    assert!(begun.elapsed() < PROMPT, "{outcome:?}");
    let code = outcome.status.code();
    assert!(support::killed_by(outcome.status) == Some(2) || code == Some(130), "{outcome:?}");
    outcome
}

#[test]
fn what_was_streamed_before_the_interrupt_is_kept() {
    let scene = Scene::new();
    let node = node!(&scene.config());
    scene.stall(1_000_000);
    let pull = node.spawn(node.command(&["pull", &scene.reference]));
    until("the small layer is here", || node.files("device") > 0 && scene.asked(1) > 0);
    interrupt(pull);
    assert_eq!(node.files("refs"), 0);
    scene.server.heal();

    let report = node.json(&["pull", &scene.reference]);
    assert!(report["layers"].as_array().unwrap().iter().all(|layer| layer["proved"] == true), "{report}");
    assert_eq!(scene.asked(0), 1, "the small layer was proved and is not fetched again");
    assert_eq!(node.files("tmp"), 0);
    assert!(node.run(&["cat", &scene.reference, "/data/7"]).stdout == image::noise(57, 1_500_000));
}

/// The daemon once went on with the whole layer, and who had typed Ctrl-C to get the link back did not get it.
#[test]
fn a_lazy_pull_that_is_interrupted_stops_and_goes_on_where_it_was() {
    let scene = Scene::new();
    let node = node!(&scene.config());
    image::refer_all(&scene.server, &scene.image);
    let layer = || node.json(&["inspect", &scene.reference])["layers"][1].clone();
    assert_eq!(layer()["local"], 0);
    scene.stall(1_200_000);
    let pull = node.spawn(node.command(&["pull", &scene.reference]));
    until("some of it is here", || layer()["local"].as_u64() > Some(1));
    interrupt(pull);
    until("the daemon has noticed", || node.log().contains("the client has gone"));
    assert_ne!(layer()["local"], layer()["segments"]);

    scene.server.heal();
    let before = scene.ranges();
    let report = node.json(&["pull", &scene.reference]);
    assert!(report["layers"].as_array().unwrap().iter().all(|layer| layer["proved"] == true), "{report}");
    let again = scene.ranges() - before;
    let size = scene.image.layers[1].blob.len() as u64;
    assert!(again < size - 1_000_000, "{again} bytes of {size} were asked for again");
    node.ok(&["verify", &scene.reference]);
}

#[test]
fn a_run_that_is_interrupted_while_its_image_is_streamed_leaves_nothing() {
    let scene = Scene::new();
    let node = node!(&scene.config());
    scene.stall(1_000_000);
    let run = node.spawn(node.command(&["run", &scene.reference, "--", "/bin/true"]));
    until("the large layer is asked for", || scene.asked(1) > 0);
    interrupt(run);
    assert_eq!(node.files("refs") + node.files("run"), 0);
    assert_eq!(support::mounts_of(&floe::daemon::run_dir(&node.store()).unwrap()), [""; 0]);
    scene.server.heal();
    assert_eq!(node.json(&["pull", &scene.reference])["layers"][1]["proved"], true);
}

/// A container's first process does not hear SIGINT unless it has asked for it, and waits for a file besides.
#[test]
fn a_container_that_waits_for_a_file_ends_when_asked_often_enough() {
    let Some(image) = image::runnable(&json!({ "Env": ["PATH=/bin"] })) else {
        testkit::skip!("there is no busybox");
    };
    if support::program("runc").is_none() {
        testkit::skip!("there is no runc");
    }
    let scene = Scene::of(image);
    let node = node!(&scene.config());
    image::refer_all(&scene.server, &scene.image);
    scene.stall(10);
    let run = ["run", "--no-background", &scene.reference, "--", "wc", "-c", "/data/1"];
    let mut waiting = node.spawn(node.command(&run));
    until("the container reads", || scene.asked(1) > 0);
    let begun = Instant::now();
    until("it ends", || {
        waiting.signal(Signal::INT);
        waiting.child.try_wait().unwrap().is_some()
    });
    assert!(begun.elapsed() < PROMPT);
    let outcome = waiting.end();
    assert_eq!(outcome.status.code(), Some(137), "{outcome:?}");
    assert_eq!(node.files("run"), 0);

    scene.server.heal();
    let outcome = node.run(&run);
    assert_eq!(outcome.text(), "4000000 /data/1\n", "{outcome:?}");
}

/// Nobody would ever have taken it away.
#[test]
fn a_mount_whose_client_was_killed_does_not_stay() {
    let scene = Scene::new();
    let node = node!(&scene.config());
    node.ok(&["pull", &scene.reference]);
    node.stop();
    node.ok(&["gc"]);
    let at = node.mount_point();
    let at = at.to_str().unwrap();
    scene.server.hold();
    let mount = node.spawn(node.command(&["mount", &scene.reference, at]));
    scene.server.wait_for(1);
    support::kill_and_wait(mount.pid());
    scene.server.release();
    until("the daemon has noticed", || node.log().contains("the client has gone"));
    assert_eq!(support::mounts_of(std::path::Path::new(at)), [""; 0]);
    node.ok(&["mount", &scene.reference, at]);
    assert_eq!(fs::read(format!("{at}/etc/hello")).unwrap(), b"hello\n");
    node.ok(&["umount", at]);
}
