//! The daemon dies in the middle of what containerd asks: each call has happened or it has not, containerd goes on, and
//! nothing is left over. Likewise where there is no daemon yet, and where containerd dies.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::collections::BTreeMap;
use std::fs;
use std::path::PathBuf;

use format::{ChainId, DiffId};
use rustix::process::Pid;
use support::containerd::{Containerd, Release, Service};
use support::cri::Cri;
use support::image::{self, TestImage};
use support::readers;
use support::servers::Embedded;
use support::strike::{STEPS, Strike, cannot_strike};
use support::{Node, mounts_of, until};
use testkit::faulty::{Fault, Faulty};
use tonic::Code;

macro_rules! needs {
    ($why:expr) => {
        if let Some(why) = $why {
            testkit::skip!("{why}");
        }
    };
}

each_release!(
    containerd_goes_on_after_a_daemon_that_died_at_any_step,
    whoever_dies_while_a_registry_is_waited_for_is_followed_by_one_that_goes_on,
    a_containerd_that_starts_before_its_daemon_goes_on_when_there_is_one,
);

const LAZY: &str = "[fetch]\nbackground = false\n";

/// What may be asked of the service.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Call {
    /// A snapshot that stands on nothing.
    Prepare,
    /// One that stands on a lazy layer, which is mounted for it.
    Container,
    Label,
    Commit,
    Remove,
    /// Of one for which a layer is mounted.
    RemoveContainer,
    CleanUp,
}

const CALLS: [Call; 7] = [
    Call::Prepare,
    Call::Container,
    Call::Label,
    Call::Commit,
    Call::Remove,
    Call::RemoveContainer,
    Call::CleanUp,
];

impl Call {
    /// Makes what the call is about, if it does not make it itself.
    fn set_up(self, service: &mut Service, key: &str, layer: &str) {
        let parent = if self == Self::RemoveContainer { layer } else { "" };
        if !matches!(self, Self::Prepare | Self::Container) {
            let own = own_files(&service.prepare(key, parent, &[]).unwrap());
            fs::write(own.join("file"), key).unwrap();
        }
        if self == Self::CleanUp {
            service.remove(key).unwrap();
        }
    }

    fn make(self, service: &mut Service, key: &str, layer: &str) -> Result<(), Code> {
        match self {
            Self::Prepare => service.prepare(key, "", &[]).map(drop),
            Self::Container => service.prepare(key, layer, &[]).map(drop),
            Self::Label => service.label(key, "label", "set").map(drop),
            Self::Commit => service.commit(&format!("{key} committed"), key, ""),
            Self::Remove | Self::RemoveContainer => service.remove(key),
            Self::CleanUp => service.clean_up(),
        }
    }

    /// Says whether the call has happened, and makes sure that what it is about is whole either way.
    fn has_happened(self, service: &mut Service, key: &str) -> bool {
        let committed = format!("{key} committed");
        let found = service.list(&[&format!("name~={key}")]).unwrap();
        match self {
            Self::Prepare | Self::Container if found.is_empty() => false,
            Self::Prepare => own_files(&service.mounts(key).unwrap()).is_dir(),
            Self::Container => {
                let below = lower(&service.mounts(key).unwrap());
                fs::read_to_string(below.join("etc/name")).unwrap() == "tested\n"
            }
            Self::Label => !service.list(&[&format!("name~={key},labels.label==set")]).unwrap().is_empty(),
            Self::Commit if found == [&*committed] => {
                let above = format!("{key} above");
                let below = lower(&service.prepare(&above, &committed, &[]).unwrap());
                assert_eq!(fs::read_to_string(below.join("file")).unwrap(), key);
                service.remove(&above).unwrap();
                true
            }
            Self::CleanUp => true, // whatever is left is taken away at the next start
            Self::Commit | Self::Remove | Self::RemoveContainer => {
                if found.is_empty() && self != Self::Commit {
                    return true;
                }
                assert_eq!(found, [key]);
                let own = own_files(&service.mounts(key).unwrap());
                assert_eq!(fs::read_to_string(own.join("file")).unwrap(), key);
                false
            }
        }
    }

    /// Returns what a call is answered that has happened before.
    fn again(self) -> Result<(), Code> {
        match self {
            Self::Prepare | Self::Container => Err(Code::AlreadyExists),
            Self::Commit | Self::Remove | Self::RemoveContainer => Err(Code::NotFound),
            Self::Label | Self::CleanUp => Ok(()),
        }
    }
}

/// Returns the directory that a snapshot's own files are in.
fn own_files(mounts: &[String]) -> PathBuf {
    let mut words = mounts[0].split(' ');
    let (kind, source, options) = (words.next().unwrap(), words.next().unwrap(), words.next().unwrap());
    let upper = options.split(',').find_map(|option| option.strip_prefix("upperdir="));
    if kind == "bind" { source.into() } else { upper.unwrap().into() }
}

/// Returns the topmost directory that a snapshot stands on.
fn lower(mounts: &[String]) -> PathBuf {
    mounts[0].split("lowerdir=").nth(1).unwrap().split([',', ':']).next().unwrap().into()
}

/// Returns the daemon that has the store; there is one.
fn daemon(node: &Node) -> Pid {
    until("a daemon runs", || node.locked_by().is_some());
    node.locked_by().unwrap()
}

/// Asserts that nothing is left of snapshots, mounts and layers.
fn assert_nothing_left(node: &Node) {
    until("the snapshots are collected", || node.files("snapshots") == 0);
    let run = floe::daemon::run_dir(&node.store()).unwrap();
    until("no mount is left", || mounts_of(&run.join("mnt")).is_empty());
    until("nothing is left of the layers", || {
        node.ok(&["gc"]);
        node.files("device") + node.files("tmp") == 0
    });
    let left = fs::read_dir(node.store().join("snapshots")).into_iter().flatten();
    assert_eq!(left.count(), 0);
    assert!(node.status()["alerts"].as_array().unwrap().is_empty(), "{}", node.status());
}

#[test]
fn a_call_that_a_daemon_dies_in_has_happened_or_not() {
    dies_in_every_step_of_every_call(&node!(LAZY));
}

/// Where the kernel reads images, mounting takes other steps.
#[test]
fn a_call_that_a_daemon_dies_in_has_happened_or_not_where_the_kernel_reads() {
    dies_in_every_step_of_every_call(&kernel_node!(LAZY));
}

fn dies_in_every_step_of_every_call(node: &Node) {
    needs!(Release::Installed.cannot_run());
    needs!(cannot_strike());
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(node, &image);
    let containerd = Containerd::start(Release::Installed, node, &reference);
    let mut service = containerd.service();
    // What is kept stands on another stack than what comes and goes, which is mounted anew each time.
    let (mut ids, mut chain) = (Vec::new(), vec![String::new()]);
    for layer in &image.layers {
        ids.push(DiffId::new(layer.diff_id()));
        let target = ChainId::of(&ids).unwrap().to_string();
        let labels = [
            ("containerd.io/snapshot.ref", &*target),
            ("containerd.io/snapshot/cri.image-ref", &*reference),
            ("containerd.io/snapshot/cri.layer-digest", &*layer.digest().to_string()),
        ];
        let prepared = service.prepare("lazy", chain.last().unwrap(), &labels);
        assert_eq!(prepared, Err(Code::AlreadyExists));
        chain.push(target);
    }
    let [_, bottom, chain] = &chain[..] else { panic!("{chain:?}") };
    let kept = own_files(&service.prepare("kept", bottom, &[]).unwrap()).join("file");
    fs::write(&kept, "kept").unwrap();

    let mut struck = BTreeMap::new();
    for (call, kind) in CALLS.into_iter().flat_map(|call| STEPS.map(|kind| (call, kind))) {
        for count in 1.. {
            let key = format!("{call:?}-{kind}-{count}-");
            call.set_up(&mut service, &key, chain);
            let victim = daemon(node);
            let strike = Strike::at(node, victim, &[kind], count);
            let answer = call.make(&mut service, &key, chain);
            drop(strike);
            // It may be the next one already that answers.
            let lives = service.list(&[]).is_ok() && node.locked_by() == Some(victim);
            if !lives {
                *struck.entry(format!("{call:?}")).or_insert(0) += 1;
                support::kill_and_wait(victim);
                node.ok(&["gc", "--dry-run"]);
                service = containerd.service();
            }
            let happened = call.has_happened(&mut service, &key);
            assert!(happened || answer.is_err(), "{key} was answered");
            assert!(answer.is_ok() || !lives, "{key}: {answer:?}");
            let wanted = if happened { call.again() } else { Ok(()) };
            assert_eq!(call.make(&mut service, &key, chain), wanted, "{key}, {happened}");
            assert!(call.has_happened(&mut service, &key));
            assert_eq!(fs::read_to_string(&kept).unwrap(), "kept");
            for left in service.list(&[&format!("name~={key}")]).unwrap() {
                service.remove(&left).unwrap();
            }
            if lives {
                break;
            }
        }
    }
    eprintln!("deaths: {struck:?}");
    assert_eq!(struck.len(), CALLS.len());
    service.clean_up().unwrap();
    assert_eq!(service.list(&[]).unwrap().len(), 3);
    let dirs = fs::read_dir(node.store().join("snapshots")).unwrap().count();
    assert_eq!(dirs, 4, "three records, and the files of one");
    let run = floe::daemon::run_dir(&node.store()).unwrap();
    until("only what is kept is mounted", || fs::read_dir(run.join("mounts")).unwrap().count() == 1);
    // containerd knows none of them.
    containerd.revive();
    assert_nothing_left(node);
}

fn containerd_goes_on_after_a_daemon_that_died_at_any_step(release: Release) {
    let node = node!("");
    needs!(release.cannot_run());
    needs!(cannot_strike());
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(release, &node, &reference);
    // Without labels containerd unpacks the layers itself. Its later clients leave that to it, unless told not to.
    let local: &[&str] = if release == Release::Sid { &["--local"] } else { &[] };
    let pull = [&["images", "pull"], local, &["--plain-http", "--snapshotter", "floe", &*reference]].concat();
    let remove = ["images", "rm", "--sync", &*reference];
    let run = ["run", "--rm", "--snapshotter", "floe", &*reference, "one", "busybox", "sha256sum", "/data/0"];
    let sum = format!("{}  /data/0\n", format::Digest::of(&image::noise(9, 1_500_000)).hex());
    let mut dice = readers::dice();
    for (words, most) in [(&pull[..], 6), (&run, 3), (&remove, 3)].repeat(2) {
        let strike = Strike::at(&node, daemon(&node), &STEPS, 1 + dice.below(most));
        containerd.ctr(words);
        drop(strike);
        containerd.revive();
        // Whatever has become of that.
        containerd.ctr(&["containers", "rm", "one"]);
        until("the image can be pulled", || containerd.ctr(&pull).status.success());
        let read = containerd.ctr(&run);
        assert_eq!(read.text(), sum, "after {words:?}: {read:?}\n{}", node.log());
    }
    containerd.ok(&remove);
    until("everything is collected", || {
        containerd.collect();
        containerd.snapshots("floe").is_empty() && node.files("snapshots") == 0
    });
    assert_nothing_left(&node);
}

/// A containerd with kubelet's interface on a registry that can stall, and an image there without index: it is streamed when a
/// snapshot of it is prepared.
struct Stalling<'a> {
    node: &'a Node,
    server: Faulty,
    containerd: Containerd<'a>,
    reference: String,
    blob: String,
}

impl<'a> Stalling<'a> {
    fn new(release: Release, node: &'a Node, image: &TestImage) -> Self {
        let server = Faulty::start();
        image.put(&server, "app", "v1");
        let reference = format!("{}/app:v1", server.host());
        let blob = image::blob_path("app", &image.layers[1].digest());
        let budgets =
            format!("[registry.{:?}.budgets]\nstall = 1\nretries = 10\nretry_min = 0.01\n", server.host());
        fs::write(node.path("config.toml"), budgets).unwrap();
        let containerd = Containerd::start_for_pods(release, node, &reference);
        Self { node, server, containerd, reference, blob }
    }

    fn cri(&self) -> Cri {
        Cri::at(&self.containerd.socket())
    }

    /// Ends the leases of pulls that containerd died in; it would itself, a day later.
    fn end_leases(&self) {
        let ctr =
            |words: &[&str]| self.containerd.ok(&[&["--namespace", "k8s.io", "leases"], words].concat());
        for lease in ctr(&["ls", "-q"]).lines() {
            ctr(&["rm", lease]);
        }
    }

    /// Runs the image in a pod, reads what it has, and removes all.
    fn assert_runs_and_leaves_nothing(&self) {
        let mut cri = self.cri();
        until("the image is pulled", || cri.pull(&self.reference).is_ok());
        let pod = cri.pod("pod");
        let one = cri.start(&pod, "one", &self.reference, &["sleep", "1000"]).unwrap();
        assert!(cri.exec(&one, &["cat", "/data/0"]) == image::noise(9, 1_500_000));
        assert!(cri.exec(&one, &["cat", "/data/1"]) == image::noise(10, 4_000_000));
        cri.remove(&one);
        cri.remove_pod(&pod);
        cri.remove_image(&self.reference);
        self.containerd.collect();
        assert_nothing_left(self.node);
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Victim {
    Daemon,
    Containerd,
    /// Nobody: everything is collected that nobody uses.
    Garbage,
}

fn whoever_dies_while_a_registry_is_waited_for_is_followed_by_one_that_goes_on(release: Release) {
    let node = node!("");
    needs!(release.cannot_run());
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let mut scene = Stalling::new(release, &node, &image);
    let other = image::simple(77, 1);
    other.put(&scene.server, "other", "v1");
    let other = format!("{}/other:v1", scene.server.host());
    for victim in [Victim::Daemon, Victim::Containerd, Victim::Garbage] {
        scene.containerd.pull(&other);
        scene.server.fault(&scene.blob, Fault::Pause { after: 1000 }, u32::MAX);
        let asked = scene.server.count(&scene.blob);
        let (mut cri, reference) = (scene.cri(), scene.reference.clone());
        let pull = std::thread::spawn(move || cri.pull(&reference));
        until("a layer is waited for", || scene.server.count(&scene.blob) > asked);
        match victim {
            Victim::Daemon => {
                support::kill_and_wait(daemon(&node));
                pull.join().unwrap().unwrap_err();
                scene.server.heal();
                scene.containerd.revive();
            }
            Victim::Containerd => {
                scene.containerd.kill();
                pull.join().unwrap().unwrap_err();
                scene.server.heal();
                scene.containerd.up();
                scene.end_leases();
            }
            Victim::Garbage => std::thread::scope(|scope| {
                // containerd waits for the call that it has under way before it collects.
                let removed = scope.spawn(|| scene.containerd.ctr(&["images", "rm", "--sync", &other]));
                node.ok(&["gc"]);
                assert!(!pull.is_finished());
                scene.server.heal();
                pull.join().unwrap().unwrap();
                assert!(removed.join().unwrap().status.success());
            }),
        }
        scene.containerd.ctr(&["images", "rm", &other]);
        scene.assert_runs_and_leaves_nothing();
    }
}

fn a_containerd_that_starts_before_its_daemon_goes_on_when_there_is_one(release: Release) {
    let node = node!("");
    needs!(release.cannot_run());
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let mut scene = Stalling::new(release, &node, &image);
    scene.containerd.kill();
    node.stop();
    scene.containerd.up();
    let prepare =
        |snapshotter| scene.containerd.ctr(&["snapshots", "--snapshotter", snapshotter, "prepare", "early"]);
    let refused = prepare("floe");
    assert!(!refused.status.success() && refused.stderr.contains("floe.sock"), "{refused:?}");
    let others = prepare("native");
    assert!(others.status.success(), "others are not concerned: {others:?}");
    scene.containerd.revive();
    scene.assert_runs_and_leaves_nothing();
}
