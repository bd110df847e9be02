//! SIGKILL of the daemon, of the keeper, of both, and upgrades, at random moments under readers that check every byte:
//! an errno only where the keeper died, and then everything can be read on the same mount.
//!
//! `FLOE_ROUNDS` says how many rounds (12 unless set). What a killed daemon costs a reader is printed.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::path::Path;
use std::time::Instant;

use rustix::process::{Signal, kill_process};
use support::image::{self, Layer, Pack, TestImage};
use support::readers::{self, OnError, Readers, pread};
use support::servers::Embedded;
use support::{Node, until};
use testkit::tar::Entry;

/// Readers at once: half read, half map.
const READERS: u64 = 16;

/// Files that are read at random, and their length.
const FILES: u64 = 24;
const LEN: usize = 1_500_000;

/// Bytes per second of the registry: the readers of a round have something to wait for.
const SLOW: u64 = 30 << 20;

/// Length of the file by which the wait for another daemon is measured: one segment, in a layer of its own.
const PROBE: usize = 100_000;

fn rounds() -> u64 {
    std::env::var("FLOE_ROUNDS").ok().and_then(|text| text.parse().ok()).unwrap_or(12)
}

/// What happens to a round's readers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fate {
    Daemon,
    Keeper,
    Both,
    Upgrade,
}

impl Fate {
    fn strike(self, node: &Node) {
        match self {
            Self::Daemon => support::kill_and_wait(node.locked_by().unwrap()),
            Self::Keeper => support::kill_and_wait(node.keeper().unwrap()),
            Self::Both => {
                let (daemon, keeper) = (node.locked_by().unwrap(), node.keeper().unwrap());
                kill_process(daemon, Signal::STOP).unwrap(); // else it starts another keeper
                support::kill_and_wait(keeper);
                support::kill_and_wait(daemon);
            }
            Self::Upgrade => drop(node.ok(&["daemon", "upgrade"])),
        }
    }
}

/// Returns an image of the files that are read, and a small layer.
fn image() -> TestImage {
    let mut entries = vec![Entry::dir("data/")];
    entries.extend((0..FILES).map(|n| Entry::file(format!("data/{n}"), image::noise(n, LEN))));
    let probe = [Entry::file("probe", image::noise(99, PROBE))];
    let layers = [&entries[..], &probe].map(|entries| Layer::of(entries, Pack::Gzip));
    TestImage::new(layers.into(), &serde_json::json!({}))
}

/// Asserts that every file of a mount can be read, and is right.
fn assert_right(node: &Node, at: &Path) {
    for n in 0..FILES {
        let path = at.join(format!("data/{n}"));
        let read = pread(&path, 0, LEN).unwrap_or_else(|error| panic!("{error}: {}", node.log()));
        assert!(read == image::noise(n, LEN), "other bytes in {}", path.display());
    }
}

/// Not a test of its own: what a reader process does.
#[test]
fn reader() {
    readers::act();
}

#[test]
fn daemon_and_keeper_die_at_any_moment_under_readers() {
    let node = kernel_node!("[fetch]\ndeadline_seconds = 60\n[mount]\npath = \"erofs\"\n");
    let image = image();
    let (registry, reference) = Embedded::with_index(&node, &image);
    let truth = node.path("truth");
    image.extract(&truth);
    let truth = truth.join("root/data");
    registry.rate(Some(SLOW));

    let mut dice = readers::dice();
    let (mut waits, mut fates) = (Vec::new(), [0_u64; 4]);
    for round in 0..rounds() {
        let at = node.mount(&reference);
        let readers = Readers::start(READERS, &at.join("data"), &truth, OnError::GoOn, &mut dice);
        readers.see(dice.below(300));
        // One after the other: a few rounds have all of them.
        let fate =
            [Fate::Daemon, Fate::Keeper, Fate::Both, Fate::Upgrade][usize::try_from(round % 4).unwrap()];
        fates[fate as usize] += 1;
        let begun = Instant::now();
        fate.strike(&node);
        match fate {
            Fate::Daemon => {
                let probe = pread(&at.join("probe"), 0, PROBE).unwrap();
                waits.push(begun.elapsed());
                assert!(probe == image::noise(99, PROBE), "round {round}: other bytes");
            }
            // Until a command comes.
            Fate::Both => drop(node.status()),
            Fate::Keeper | Fate::Upgrade => {}
        }
        if fate == Fate::Keeper {
            until("there is another keeper", || pread(&at.join("probe"), 0, PROBE).is_ok());
        } else {
            readers.see(1 + dice.below(300));
        }
        let seen = readers.finish();
        if matches!(fate, Fate::Daemon | Fate::Upgrade) {
            assert_eq!(seen.errors, 0, "round {round}, {fate:?}: {}", node.log());
        }
        assert_right(&node, &at);
        node.umount(&at);
        assert!(node.status()["alerts"].as_array().unwrap().is_empty(), "{}", node.status());
        // Begins anew, so that the next round has something to fetch.
        node.ok(&["rm", &reference]);
        node.ok(&["gc"]);
        assert_eq!(node.files("device") + node.files("tmp"), 0);
    }
    node.stop();
    assert_eq!(support::mounts_of(&floe::daemon::run_dir(&node.store()).unwrap()), [""; 0]);
    assert_eq!(node.keeper(), None);

    waits.sort();
    let at = |share: usize| waits.get((waits.len() * share / 100).min(waits.len().saturating_sub(1)));
    eprintln!(
        "{fates:?} rounds of daemon, keeper, both, upgrade; from the daemon's death to a read by the next: median {:?}, p99 {:?}, most {:?}",
        at(50),
        at(99),
        waits.last()
    );
}
