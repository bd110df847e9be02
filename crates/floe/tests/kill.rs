//! SIGKILL at random moments, of the daemon and of its clients, under checking readers: right bytes or an errno, and
//! the next command goes on.
//!
//! `FLOE_ROUNDS` says how many rounds (200 unless set; what takes longer gets a share of them).
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::fs::{self, File};
use std::io::Read;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::json;
use support::image::{self, Layer, Pack, TestImage};
use support::readers::{self, OnError, Readers};
use support::servers::Embedded;
use support::{Node, PATIENCE, until};
use testkit::tar::Entry;

/// Readers at once: half read, half map.
const READERS: u64 = 16;

/// Bytes per second of a registry whose transfers are to be cut: a layer takes some tenths of a second.
const SLOW: u64 = 30 << 20;

fn rounds() -> u64 {
    std::env::var("FLOE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(200)
}

/// Not a test of its own: what a reader process does.
#[test]
fn reader() {
    readers::act();
}

#[test]
fn the_daemon_dies_under_readers() {
    let node = node!("[fetch]\ndeadline_seconds = 60\n");
    let image = image::simple(40, 4);
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let truth = node.path("truth");
    image.extract(&truth);
    let truth = truth.join("root/data");

    // What a dead daemon had read of a FUSE mount, Linux asks the next one about since 6.9.
    let asks_again = floe::doctor::is_linux((6, 9));
    let mut dice = readers::dice();
    for round in 0..rounds() {
        let at = node.mount_point();
        let target = at.to_str().unwrap();
        match dice.below(2) {
            0 => node.ok(&["mount", &reference, target]),
            _ => node.ok(&["mount", "--no-background", &reference, target]),
        };
        let pid = node.daemon().unwrap();
        let on_error = if asks_again { OnError::GoOn } else { OnError::End };
        let readers = Readers::start(READERS, &at.join("data"), &truth, on_error, &mut dice);
        readers.see(dice.below(60));
        support::kill_and_wait(pid);
        if asks_again {
            // They wait for the next one, which serves the same mount.
            readers.see(1 + dice.below(60));
            assert_eq!(readers.finish().errors, 0, "round {round}: {}", node.log());
        } else {
            readers.finish();
        }

        // The next daemon knows what is here already.
        node.umount(&at);
        let before = node.files("device");
        let at = node.mount(&reference);
        assert!(fs::read(at.join("data/3")).unwrap() == image::noise(40_003, 1_500_000), "round {round}");
        assert!(node.files("device") >= before);
        assert!(node.status()["alerts"].as_array().unwrap().is_empty(), "{}", node.status());
        node.umount(&at);
        if dice.below(4) == 0 {
            // Begins anew, so that later rounds have something to fetch.
            node.ok(&["rm", &reference]);
            node.ok(&["gc"]);
        }
        assert_eq!(node.files("tmp"), 0);
    }
    let report = node.json(&["pull", &reference]);
    assert_eq!(report["layers"][0]["proved"], true);
    node.ok(&["verify", &reference]);
}

/// Returns an image of two layers, the upper one some megabytes long.
fn two_layers() -> TestImage {
    let small = [Entry::dir("etc/"), Entry::file("etc/hello", "hello\n")];
    let large = [Entry::dir("data/"), Entry::file("data/0", image::noise(43_000, 6_000_000))];
    let layers = [&small[..], &large].map(|entries| Layer::of(entries, Pack::Gzip));
    TestImage::new(layers.into(), &json!({}))
}

/// Asserts that an image of [`two_layers`] can be had whole, proved and right, and that nothing else is left of it.
fn assert_whole(node: &Node, reference: &str) {
    let report = node.json(&["pull", reference]);
    assert!(report["layers"].as_array().unwrap().iter().all(|layer| layer["proved"] == true), "{report}");
    assert!(node.run(&["cat", reference, "/data/0"]).stdout == image::noise(43_000, 6_000_000));
    assert_eq!(node.files("tmp"), 0, "{}", node.log());
    assert!(node.status()["alerts"].as_array().unwrap().is_empty(), "{}", node.status());
}

#[test]
fn the_daemon_dies_in_a_first_pull_under_readers() {
    let node = node!("[fetch]\ndeadline_seconds = 60\n");
    let registry = Embedded::start(&node.path("registry"));
    let [mounted, pulled] = ["mounted", "pulled"].map(|name| format!("{}/{name}:v1", registry.host()));
    let other = image::simple(42, 4);
    other.push(&mounted);
    Node::new("").ok(&["index", "--push", &mounted]);
    let image = two_layers();
    image.push(&pulled);
    let truth = node.path("truth");
    other.extract(&truth);
    let truth = truth.join("root/data");

    let mut dice = readers::dice();
    for _ in 0..rounds().div_ceil(16) {
        let at = node.mount(&mounted);
        let pid = node.daemon().unwrap();
        let readers = Readers::start(4, &at.join("data"), &truth, OnError::End, &mut dice);
        readers.see(dice.below(8));
        registry.rate(Some(SLOW));
        let enough = registry.stats().bytes_sent + dice.below(image.packed());
        let pull = node.spawn(node.command(&["pull", &pulled]));
        until("so much is on its way", || registry.stats().bytes_sent >= enough);
        support::kill_and_wait(pid);
        let outcome = pull.end();
        let told = outcome.stderr.lines().any(|line| line.starts_with("floe: "));
        assert!(outcome.status.success() || (outcome.status.code() == Some(1) && told), "{outcome:?}");
        readers.finish();
        registry.rate(None);

        node.umount(&at);
        assert_whole(&node, &pulled);
        let forgotten = if dice.below(3) == 0 { &[&pulled, &mounted][..] } else { &[&pulled] };
        forgotten.iter().for_each(|reference| drop(node.ok(&["rm", reference])));
        node.ok(&["gc"]);
    }
}

#[test]
fn clients_die_at_any_moment() {
    let node = node!();
    let registry = Embedded::start(&node.path("registry"));
    let [streamed, lazy] = ["streamed", "lazy"].map(|name| format!("{}/{name}:v1", registry.host()));
    let image = two_layers();
    [&streamed, &lazy].iter().for_each(|reference| image.push(reference));
    Node::new("").ok(&["index", "--push", &lazy]);

    let mut dice = readers::dice();
    node.ok(&["gc"]); // and with it a daemon
    for _ in 0..rounds().div_ceil(10) {
        let reference = if dice.below(3) == 0 { &lazy } else { &streamed };
        let (at, layout) = (node.mount_point(), node.fresh("layout"));
        let (at, layout) = (at.to_str().unwrap(), layout.to_str().unwrap());
        let command = match dice.below(4) {
            0 => &["mount", reference, at][..],
            1 => &["mount", "--no-background", reference, at],
            2 => &["index", "-o", layout, reference],
            _ => &["pull", reference],
        };
        registry.rate(Some(SLOW));
        let enough = registry.stats().bytes_sent + dice.below(image.packed());
        let mut client = node.spawn(node.command(command));
        until("so much is on its way", || {
            registry.stats().bytes_sent >= enough || client.child.try_wait().unwrap().is_some()
        });
        support::kill_and_wait(client.pid());
        drop(client);
        registry.rate(None);

        assert_whole(&node, reference);
        // It was told so late that the image is mounted, or it is not.
        if !support::mounts_of(Path::new(at)).is_empty() {
            assert_eq!(fs::read(Path::new(at).join("etc/hello")).unwrap(), b"hello\n");
            node.ok(&["umount", at]);
        }
        node.ok(command);
        if command[0] == "mount" {
            assert_eq!(fs::read(Path::new(at).join("etc/hello")).unwrap(), b"hello\n");
            node.ok(&["umount", at]);
        }
        node.ok(&["rm", reference]);
        node.ok(&["gc"]);
        assert!(node.status()["mounts"].as_array().unwrap().is_empty(), "{}", node.status());
    }
    node.stop();
    for dir in [node.path("mnt"), floe::daemon::run_dir(&node.store()).unwrap()] {
        assert_eq!(support::mounts_of(&dir), [""; 0]);
    }
}

#[test]
fn a_killed_run_leaves_nothing() {
    let node = node!();
    if support::program("runc").is_none() {
        testkit::skip!("there is no runc");
    }
    let Some(image) = image::runnable(&json!({ "Env": ["PATH=/bin"] })) else {
        testkit::skip!("there is no busybox");
    };
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    node.ok(&["pull", &reference]);
    let mut dice = readers::dice();
    for _ in 0..rounds().div_ceil(5) {
        let script = "while true; do wc -c </data/0; done";
        let mut command = node.command(&["run", &reference, "--", "sh", "-c", script]);
        let (mut seen, said) = std::io::pipe().unwrap();
        let err = File::create(node.fresh("err")).unwrap();
        let mut run = command.stdout(said).stderr(err).spawn().unwrap();
        drop(command);
        see(&mut seen, dice.below(40));
        kill_process(Pid::from_child(&run), Signal::KILL).unwrap();
        run.wait().unwrap();
        drop(seen);
        // The next run clears away what this one left, and is not disturbed by it.
        let outcome = node.run(&["run", &reference, "--", "sh", "-c", "wc -c </data/1; exit 5"]);
        assert_eq!((outcome.status.code(), outcome.text().as_str()), (Some(5), "4000000\n"), "{outcome:?}");
        assert_eq!(node.files("run"), 0);
        let mut left = support::mounts_of(&node.store());
        left.retain(|line| line.contains(" - overlay "));
        assert_eq!(left, [""; 0]);
    }
}

/// Waits for so many bytes, or the end of a pipe.
fn see(pipe: &mut std::io::PipeReader, reads: u64) {
    for _ in 0..reads {
        let mut fds = [PollFd::new(&*pipe, PollFlags::IN)];
        let patience: Timespec = PATIENCE.try_into().unwrap();
        assert_eq!(poll(&mut fds, Some(&patience)), Ok(1), "nothing has come in {PATIENCE:?}");
        if pipe.read(&mut [0]).unwrap() == 0 {
            return;
        }
    }
}
