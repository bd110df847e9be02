//! The kernel's own read path beside others and under load: another process that watches the same files, a registry that
//! goes, containers that come and go, a daemon short of memory, two hundred images at once.
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
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Resource, Rlimit, prlimit};
use serde_json::json;
use support::image::{self, Layer, Pack, TestImage};
use support::readers::pread;
use support::servers::Embedded;
use support::{Node, until};
use sys::fanotify::{Group, Verdict};
use testkit::faulty::Faulty;
use testkit::tar::Entry;

const CONFIG: &str = "[fetch]\ndeadline_seconds = 60\n[mount]\npath = \"erofs\"\n";

const EIO: i32 = 5;

const LEN: usize = 1_500_000;

/// Images that are mounted at once.
const IMAGES: usize = 200;

fn read(at: &Path, seed: u64, n: u64) -> std::io::Result<()> {
    let found = pread(&at.join(format!("data/{n}")), 0, LEN)?;
    assert!(found == image::noise(seed * 1000 + n, LEN), "other bytes");
    Ok(())
}

/// Returns a lazily mounted image of some large files, and its registry.
fn mounted(node: &Node, seed: u64, files: u64) -> (Embedded, PathBuf) {
    let (registry, reference) = Embedded::with_index(node, &image::layered(seed, files, LEN));
    let at = node.mount(&reference);
    assert_eq!(node.status()["mounts"][0]["path"], "erofs");
    (registry, at)
}

/// Returns the watch points of a node.
fn watch_points(node: &Node) -> Vec<PathBuf> {
    let dir = floe::daemon::run_dir(&node.store()).unwrap().join("watch");
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}

#[test]
fn a_second_group_on_the_same_files_is_asked_too_and_disturbs_nobody() {
    let node = kernel_node!(CONFIG);
    let (_registry, at) = mounted(&node, 110, 4);
    let group = Group::new().unwrap();
    for point in watch_points(&node) {
        group.watch_mount(File::open(point).unwrap()).unwrap();
    }
    let (asked, over) = (AtomicU64::new(0), AtomicBool::new(false));
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                poll(&mut [PollFd::new(&group, PollFlags::IN)], Some(&tick)).unwrap();
                for event in group.read().unwrap() {
                    asked.fetch_add(1, Ordering::Relaxed);
                    group.answer(event, Verdict::Allow).unwrap();
                }
            }
        });
        let right = std::panic::catch_unwind(|| {
            read(&at, 110, 0).unwrap();
            support::kill_and_wait(node.locked_by().unwrap());
            read(&at, 110, 1).unwrap();
            support::kill_and_wait(node.keeper().unwrap());
            until("what is missing can be read", || read(&at, 110, 2).is_ok());
        });
        over.store(true, Ordering::Relaxed);
        right.unwrap();
    });
    assert!(asked.load(Ordering::Relaxed) > 0);
    drop(group);
    read(&at, 110, 3).unwrap_or_else(|error| panic!("{error}: {}", node.log()));
    node.umount(&at);
}

#[test]
fn a_registry_goes_and_comes_back_under_a_mount() {
    let node = kernel_node!(CONFIG);
    let (mut registry, at) = mounted(&node, 111, 4);
    read(&at, 111, 0).unwrap();
    for n in 1..4 {
        registry.down();
        read(&at, 111, 0).unwrap();
        assert_eq!(read(&at, 111, n).unwrap_err().raw_os_error(), Some(EIO));
        // A daemon that has never seen it there either.
        support::kill_and_wait(node.locked_by().unwrap());
        assert_eq!(read(&at, 111, n).unwrap_err().raw_os_error(), Some(EIO));
        registry.up();
        until("what is missing can be read", || read(&at, 111, n).is_ok());
    }
    node.umount(&at);
}

#[test]
fn containers_come_and_go_while_the_daemon_is_killed() {
    let node = kernel_node!(CONFIG);
    if support::program("runc").is_none() {
        testkit::skip!("there is no runc");
    }
    let Some(image) = image::runnable(&json!({ "Env": ["PATH=/bin"] })) else {
        testkit::skip!("there is no busybox");
    };
    let server = Faulty::start();
    image.put(&server, "app", "v1");
    image::refer_all(&server, &image);
    let reference = format!("{}/app:v1", server.host());
    // Lives until it is told to end, over the death of the daemon that mounted its image.
    let gate = node.path("gate");
    fs::create_dir(&gate).unwrap();
    let volume = format!("{}:/gate", gate.display());
    let script = "echo up >/gate/up; until [ -e /gate/end ]; do sleep 0.1; done; wc -c </data/1; exit 7";
    let long = node.spawn(node.command(&["run", "--volume", &volume, &reference, "--", "sh", "-c", script]));
    until("the container runs", || gate.join("up").exists());
    for n in 0..5 {
        let line = format!("wc -c </data/0; exit {n}");
        let short = node.spawn(node.command(&["run", &reference, "--", "sh", "-c", &line]));
        if n % 2 == 1 {
            support::kill_and_wait(node.locked_by().unwrap());
        }
        let outcome = short.end();
        // One whose daemon dies before it has started cannot start.
        let started = outcome.status.code() == Some(n) && outcome.text() == "1500000\n";
        let orphan = n % 2 == 1 && outcome.status.code() == Some(125);
        assert!(started || orphan && outcome.stderr.contains("the daemon"), "{outcome:?}");
    }
    fs::write(gate.join("end"), "").unwrap();
    let outcome = long.end();
    assert_eq!((outcome.status.code(), outcome.text().as_str()), (Some(7), "4000000\n"), "{outcome:?}");
    // The mount goes with the last container, whoever made it.
    let run = floe::daemon::run_dir(&node.store()).unwrap();
    until("the mounts are gone", || {
        node.locked_by().is_some() && support::mounts_of(&run).is_empty() && watch_points(&node).is_empty()
    });
}

#[test]
fn a_daemon_without_memory_is_an_errno_or_right_and_is_replaced() {
    let node = kernel_node!(CONFIG);
    let (_registry, at) = mounted(&node, 112, 8);
    read(&at, 112, 0).unwrap();
    let daemon = node.locked_by().unwrap();
    // It may have no more than it has.
    let none = Rlimit { current: Some(1 << 20), maximum: None };
    prlimit(Some(daemon), Resource::As, none).unwrap();
    for n in 0..4 {
        if let Err(error) = read(&at, 112, n) {
            assert_eq!(error.raw_os_error(), Some(EIO), "{error}");
        }
    }
    if let Some(same) = node.locked_by().filter(|now| *now == daemon) {
        prlimit(Some(same), Resource::As, Rlimit { current: None, maximum: None }).unwrap();
    }
    for n in 0..8 {
        until("it can be read", || read(&at, 112, n).is_ok());
    }
    node.umount(&at);
}

/// Returns the sum of a line of `/proc/meminfo`, in KiB.
fn memory(line: &str) -> u64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let found = text.lines().find_map(|found| found.strip_prefix(line)).unwrap();
    found.trim_start_matches(':').trim().trim_end_matches(" kB").parse().unwrap()
}

fn descriptors(pid: Pid) -> usize {
    fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count()
}

/// Returns how many marks a process's fanotify groups have.
fn marks(pid: Pid) -> usize {
    let infos = fs::read_dir(format!("/proc/{pid}/fdinfo")).unwrap();
    let text = infos.map(|info| fs::read_to_string(info.unwrap().path()).unwrap_or_default());
    text.map(|text| {
        text.lines().filter(|line| line.starts_with("fanotify ") && line.contains("mflags")).count()
    })
    .sum()
}

fn anonymous(pid: Pid) -> String {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    text.lines().find(|line| line.starts_with("RssAnon")).unwrap_or_default().replace('\t', " ")
}

/// What makes a keeper the last process to go: little memory, which stays, and a low score for whoever looks for some.
fn assert_keeper(pid: Pid) {
    let read = |what| fs::read_to_string(format!("/proc/{pid}/{what}")).unwrap();
    let status = read("status");
    let kib = |key: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(key)).unwrap();
        line.trim().trim_end_matches(" kB").parse::<u64>().unwrap()
    };
    assert!(kib("RssAnon:") < 4096, "{status}");
    assert!(kib("VmLck:") > 0, "{status}");
    let capabilities = status.lines().find_map(|line| line.strip_prefix("CapEff:")).unwrap();
    let may_lower = u64::from_str_radix(capabilities.trim(), 16).unwrap() & 1 << 24 != 0; // CAP_SYS_RESOURCE
    assert_eq!(read("oom_score_adj").trim() == "-1000", may_lower);
}

#[test]
fn two_hundred_images_are_mounted_at_once() {
    let node = kernel_node!(CONFIG);
    let server = Faulty::start();
    let base: Vec<_> = (0..4).map(|n| Entry::file(format!("base{n}"), image::noise(n, LEN))).collect();
    let base = Layer::of(&base, Pack::Gzip);
    let mut mounts = Vec::new();
    let (slab, before) = (memory("Slab"), memory("KernelStack"));
    for n in 0..IMAGES {
        let own = Layer::of(&[Entry::file("own", image::noise(1000 + n as u64, 20_000))], Pack::Gzip);
        let image = TestImage::new(vec![base.clone(), own], &json!({}));
        image.put(&server, "app", &format!("v{n}"));
        image::refer_all(&server, &image);
        mounts.push(node.mount(&format!("{}/app:v{n}", server.host())));
    }
    let reads_its_own = |n: usize| {
        let right = image::noise(1000 + n as u64, 20_000);
        pread(&mounts[n].join("own"), 0, 20_000).is_ok_and(|read| read == right)
    };
    for n in (0..IMAGES).step_by(2) {
        assert!(reads_its_own(n), "image {n}");
    }
    assert!(pread(&mounts[0].join("base3"), 0, LEN).unwrap() == image::noise(3, LEN));
    let (daemon, keeper) = (node.locked_by().unwrap(), node.keeper().unwrap());
    eprintln!(
        "{IMAGES} images: descriptors daemon {} keeper {}; marks {}; daemon {}, keeper {}; slab +{} KiB, stacks +{} KiB",
        descriptors(daemon),
        descriptors(keeper),
        marks(keeper),
        anonymous(daemon),
        anonymous(keeper),
        memory("Slab").saturating_sub(slab),
        memory("KernelStack").saturating_sub(before),
    );
    assert_keeper(keeper);
    assert_eq!(node.status()["mounts"].as_array().unwrap().len(), IMAGES);
    // All of them are taken over.
    let begun = std::time::Instant::now();
    support::kill_and_wait(daemon);
    assert!(pread(&mounts[IMAGES - 1].join("base1"), 0, LEN).unwrap() == image::noise(1, LEN));
    eprintln!("{IMAGES} images: {:?} from the daemon's death to a read by the next", begun.elapsed());
    // While they are: the next keeper watches each of them all the same.
    support::kill_and_wait(keeper);
    for n in (1..IMAGES).step_by(2) {
        until(&format!("what is missing of image {n} can be read"), || reads_its_own(n));
    }
    assert_eq!(node.status()["mounts"].as_array().unwrap().len(), IMAGES);
    node.stop();
    assert_eq!(support::mounts_of(&floe::daemon::run_dir(&node.store()).unwrap()), [""; 0]);
}
