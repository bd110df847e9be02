//! What goes wrong around containerd's snapshots: registries that refuse, images that are removed under a container, disks that are
//! full, names and labels that somebody made up, records of another version. Each is a clear error of one thing, or none.
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

use format::{ChainId, DiffId};
use serde_json::json;
use support::containerd::{Containerd, Release};
use support::cri::Cri;
use support::image::{self, Layer, Pack, TestImage};
use support::servers::Embedded;
use support::{Node, Outcome, until};
use testkit::faulty::{Faulty, Guard};
use testkit::tar::Entry;
use tonic::Code;

macro_rules! needs_containerd {
    ($release:expr) => {
        if let Some(why) = $release.cannot_run() {
            testkit::skip!("{why}");
        }
    };
}

each_release!(
    one_layer_that_two_images_pull_at_once_is_fetched_once,
    a_container_goes_on_when_its_image_is_removed,
    a_password_may_change_and_go_under_a_container,
    a_disk_without_room_is_an_error_until_there_is_room,
);

const LAZY: &str = "[fetch]\nbackground = false\n";

/// Starts a container that does nothing.
fn start(containerd: &Containerd<'_>, reference: &str, name: &str) {
    containerd.ok(&["run", "-d", "--snapshotter", "floe", reference, name, "sleep", "1000"]);
}

fn exec(containerd: &Containerd<'_>, name: &str, words: &[&str]) -> Outcome {
    containerd.ctr(&[&["tasks", "exec", "--exec-id", "look", name], words].concat())
}

/// Asserts that a container reads the n-th of the files of [`runnable`]. It sums it up itself: who runs `ctr` under load may miss the
/// end of what is long.
fn assert_reads(containerd: &Containerd<'_>, name: &str, n: usize) {
    let path = format!("/data/{n}");
    let read = exec(containerd, name, &["busybox", "sha256sum", &path]);
    let wanted = [image::noise(9, 1_500_000), image::noise(10, 4_000_000)];
    assert_eq!(read.text(), format!("{}  {path}\n", format::Digest::of(&wanted[n]).hex()), "{read:?}");
}

fn remove(containerd: &Containerd<'_>, name: &str) {
    containerd.ok(&["tasks", "rm", "-f", name]);
    containerd.ok(&["containers", "rm", name]);
}

fn assert_nothing_left(node: &Node) {
    until("the snapshots are collected", || node.files("snapshots") == 0);
    until("nothing is left of the layers", || {
        node.ok(&["gc"]);
        node.files("device") == 0
    });
    assert!(node.status()["alerts"].as_array().unwrap().is_empty(), "{}", node.status());
}

fn one_layer_that_two_images_pull_at_once_is_fetched_once(release: Release) {
    let node = node!("");
    needs_containerd!(release);
    let Some(one) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let more = Layer::of(&[Entry::file("more", "more\n")], Pack::Gzip);
    let config = json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"] });
    let two = TestImage::new(one.layers.iter().cloned().chain([more]).collect(), &config);
    let server = Faulty::start();
    let references = [("one", &one), ("two", &two)].map(|(name, image)| {
        image.put(&server, name, "v1");
        format!("{}/{name}:v1", server.host())
    });
    let containerd = Containerd::start_for_pods(release, &node, &references[0]);
    let mut cri = Cri::at(&containerd.socket());
    std::thread::scope(|scope| {
        for reference in &references {
            let mut cri = Cri::at(&containerd.socket());
            scope.spawn(move || cri.pull(reference).unwrap());
        }
    });
    for layer in &one.layers {
        let paths = ["one", "two"].map(|name| image::blob_path(name, &layer.digest()));
        let seen =
            server.seen().into_iter().filter(|seen| seen.method == "GET" && paths.contains(&seen.path));
        let all = layer.blob.len() as u64;
        let asked: u64 =
            seen.map(|seen| seen.range.map_or(all, |range| range.end.min(all) - range.start)).sum();
        assert_eq!(asked, all, "each byte is asked for once, by whomever");
    }
    assert_eq!(node.files("snapshots"), 3, "records of layers, and no files");

    // Each is whole without the other.
    let pod = cri.pod("pod");
    let container = cri.start(&pod, "two", &references[1], &["sleep", "1000"]).unwrap();
    assert_eq!(cri.exec(&container, &["cat", "/more"]), b"more\n");
    assert!(cri.exec(&container, &["cat", "/data/0"]) == image::noise(9, 1_500_000));
    cri.remove(&container);
    cri.remove_pod(&pod);
    cri.remove_image(&references[0]);
    let pod = cri.pod("again"); // pulls what it is made of
    let container = cri.start(&pod, "two", &references[1], &["sleep", "1000"]).unwrap();
    assert!(cri.exec(&container, &["cat", "/data/1"]) == image::noise(10, 4_000_000));
    cri.remove(&container);
    cri.remove_pod(&pod);
    references.iter().for_each(|reference| cri.remove_image(reference));
    assert_nothing_left(&node);
}

fn a_container_goes_on_when_its_image_is_removed(release: Release) {
    let node = node!(LAZY);
    needs_containerd!(release);
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let containerd = Containerd::start(release, &node, &reference);
    containerd.pull(&reference);
    start(&containerd, &reference, "long");
    containerd.ok(&["images", "rm", "--sync", &reference]);
    node.ok(&["gc"]);
    assert!(node.received() < image.packed() / 4, "{} of {}", node.received(), image.packed());
    assert_reads(&containerd, "long", 0);
    // Not even the next daemon needs more than what the container stands on.
    node.kill_daemon();
    containerd.revive();
    node.ok(&["gc"]);
    assert_reads(&containerd, "long", 1);
    remove(&containerd, "long");
    containerd.collect();
    assert_nothing_left(&node);
}

fn a_password_may_change_and_go_under_a_container(release: Release) {
    let node = node!(LAZY);
    needs_containerd!(release);
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let server = Faulty::start();
    image.put(&server, "app", "v1");
    image::refer_all(&server, &image);
    let reference = format!("{}/app:v1", server.host());
    let registry_wants = |password: &str| server.guard(Guard::Basic(format!("node:{password}")));
    let docker = node.path("home/.docker");
    let node_knows = |password: &str| support::log_in(&docker, &server.host(), &format!("node:{password}"));
    registry_wants("first");
    node_knows("first");
    let containerd = Containerd::start(release, &node, &reference);
    containerd.pull(&reference);
    start(&containerd, &reference, "long");
    exec(&containerd, "long", &["cat", "/bin/busybox", "/etc/name"]); // what runs is here

    // Nobody knows the second one: what is missing is an error, what is here is not, and another container starts from that.
    registry_wants("second");
    let read = exec(&containerd, "long", &["cat", "/data/0"]);
    assert!(!read.status.success() && read.stderr.contains("nput/output error"), "{:?}", read.stderr);
    assert!(node.log().contains(&server.host()), "{}", node.log());
    assert_eq!(exec(&containerd, "long", &["cat", "/etc/name"]).text(), "tested\n");
    start(&containerd, &reference, "other");
    node.kill_daemon();
    containerd.revive();
    assert_eq!(exec(&containerd, "other", &["cat", "/etc/name"]).text(), "tested\n");
    // Once it is known, nothing has to be started again.
    node_knows("second");
    assert_reads(&containerd, "long", 0);
    registry_wants("third");
    node_knows("third");
    assert_reads(&containerd, "other", 1);
    ["long", "other"].iter().for_each(|name| remove(&containerd, name));
    containerd.ok(&["images", "rm", "--sync", &reference]);
    assert_nothing_left(&node);
}

/// Fills a store's disk, but for so many bytes; returns the file that does.
fn fill(node: &Node, but: u64) -> PathBuf {
    let ballast = node.store().join("of-somebody-else");
    let mut file = File::create(&ballast).unwrap();
    let all = std::io::copy(&mut std::io::repeat(1), &mut file).unwrap_err();
    assert_eq!(all.kind(), std::io::ErrorKind::StorageFull);
    file.set_len(file.metadata().unwrap().len() - but).unwrap();
    ballast
}

fn a_disk_without_room_is_an_error_until_there_is_room(release: Release) {
    let node = node!(&format!("{LAZY}[store]\nreserve = \"100 MiB\"\n"));
    needs_containerd!(release);
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let other = format!("{}/other:v1", registry.host());
    image::simple(78, 1).push(&other);
    let containerd = Containerd::start(release, &node, &reference);
    containerd.pull(&reference);
    start(&containerd, &reference, "long");
    let run = ["run", "--rm", "--snapshotter", "floe", &reference, "one", "cat", "/etc/name"];
    let written = "echo written >/tmp/written; cat /tmp/written";

    // Below the reserve only what nobody waits for pauses.
    let ballast = fill(&node, 50 << 20);
    until("the background pauses", || node.status()["room"]["paused"].is_string());
    assert_reads(&containerd, "long", 0);
    assert_eq!(exec(&containerd, "long", &["sh", "-c", written]).text(), "written\n");
    assert_eq!(containerd.ok(&run), "tested\n");
    containerd.pull(&other);
    fs::remove_file(&ballast).unwrap();
    containerd.ok(&["images", "rm", "--sync", &other]);
    node.ok(&["gc"]);

    // On a full disk everything that takes room says so, and takes nothing from anybody.
    let mut service = containerd.service();
    service.prepare("spare", "", &[]).unwrap();
    let ballast = fill(&node, 0);
    let full = |outcome: &Outcome| {
        let words = ["disk is full", "o space left", "nput/output error"];
        !outcome.status.success() && words.iter().any(|word| outcome.stderr.contains(word))
    };
    let refused = containerd.ctr(&run);
    assert!(full(&refused) && refused.stderr.contains("disk is full"), "{refused:?}");
    let read = exec(&containerd, "long", &["cat", "/data/1"]);
    assert!(full(&read), "{:?}", read.stderr);
    let write =
        exec(&containerd, "long", &["busybox", "dd", "if=/dev/zero", "of=/tmp/more", "bs=1M", "count=1"]);
    assert!(full(&write), "{:?}", write.stderr);
    assert_eq!(exec(&containerd, "long", &["cat", "/etc/name", "/tmp/written"]).text(), "tested\nwritten\n");
    // Room can be made.
    service.remove("spare").unwrap();
    service.clean_up().unwrap();
    fs::remove_file(&ballast).unwrap();

    until("what was missing can be read", || exec(&containerd, "long", &["cat", "/data/1"]).status.success());
    assert_reads(&containerd, "long", 1);
    assert_eq!(exec(&containerd, "long", &["sh", "-c", written]).text(), "written\n");
    containerd.ctr(&["containers", "rm", "one"]);
    assert_eq!(containerd.ok(&run), "tested\n");
    containerd.pull(&other);
    containerd.ok(&["images", "rm", "--sync", &other]);
    remove(&containerd, "long");
    containerd.ok(&["images", "rm", "--sync", &reference]);
    assert_nothing_left(&node);
}

#[test]
fn odd_names_are_names_and_nothing_else() {
    let node = node!("");
    needs_containerd!(Release::Installed);
    let containerd = Containerd::start_with(Release::Installed, &node, "");
    let mut service = containerd.service();
    let long = "l".repeat(4096);
    let names = [
        "../../../../etc/passwd",
        "/",
        ".",
        "..",
        "a/b",
        " ",
        "a b",
        "\n",
        "a\nb",
        "\t\r\u{7}\u{1b}[31m",
        "ünïcode/名前/🐻",
        "\u{202e}odd",
        "0",
        "0.d",
        "*",
        "a\",b",
        "a\\",
        "%s%n",
        "-rf",
        &long,
    ];
    let before = entries(&node.store());
    for name in names {
        service.prepare(name, "", &[]).unwrap_or_else(|code| panic!("{name:?}: {code:?}"));
        assert_eq!(service.prepare(name, "", &[]), Err(Code::AlreadyExists));
    }
    for name in ["", "a\0b", &"l".repeat(4097)] {
        assert_eq!(service.prepare(name, "", &[]), Err(Code::InvalidArgument));
        assert_eq!(service.commit(name, "a b", ""), Err(Code::InvalidArgument));
        assert_eq!(service.remove(name), Err(Code::NotFound));
    }
    // Numbered, whatever they are called.
    let mut wanted = before;
    wanted.push("snapshots".into());
    wanted.sort();
    assert_eq!(entries(&node.store()), wanted);
    let numbered = |name: &String| name.trim_end_matches(".d").parse::<u64>().is_ok();
    assert!(entries(&node.store().join("snapshots")).iter().all(numbered));
    node.stop();
    node.ok(&["gc", "--dry-run"]);
    let mut service = containerd.service();
    let mut sorted = names;
    sorted.sort_unstable();
    assert_eq!(service.list(&[]).unwrap(), sorted);
    for name in names {
        service.mounts(name).unwrap();
        let committed = format!("of {name}");
        match committed.len() {
            ..=4096 => service.commit(&committed, name, "").unwrap(),
            _ => assert_eq!(service.commit(&committed, name, ""), Err(Code::InvalidArgument)),
        }
    }
    for name in service.list(&[]).unwrap() {
        service.remove(&name).unwrap();
    }
    // containerd puts something before; what is too long by that says so.
    containerd.collect(); // connected again
    let ctr = |verb, name| containerd.ctr(&["snapshots", "--snapshotter", "floe", verb, name]);
    for name in names {
        if name.starts_with('-') {
            continue; // an option of ctr's
        }
        let prepared = ctr("prepare", name);
        if name == long {
            let clear = prepared.stderr.contains("a name has 1 to 4096 bytes");
            assert!(!prepared.status.success() && clear, "{prepared:?}");
        } else {
            assert!(prepared.status.success(), "{name:?}: {prepared:?}");
            assert!(ctr("rm", name).status.success(), "{name:?}");
        }
    }
    containerd.collect();
    assert_eq!(entries(&node.store().join("snapshots")), [""; 0]);
}

/// Returns the names in a directory, sorted.
fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<_> = names.collect();
    names.sort();
    names
}

#[test]
fn labels_that_somebody_made_up_reach_nothing() {
    let node = node!(LAZY);
    needs_containerd!(Release::Installed);
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (_registry, reference) = Embedded::with_index(&node, &image);
    let layout = node.path("layout");
    image.layout(&layout, "v1");
    let containerd = Containerd::start(Release::Installed, &node, &reference);
    let mut service = containerd.service();
    let (target, name, layer) = (
        "containerd.io/snapshot.ref",
        "containerd.io/snapshot/cri.image-ref",
        "containerd.io/snapshot/cri.layer-digest",
    );
    let chain = ChainId::of(&[DiffId::new(image.layers[0].diff_id())]).unwrap().to_string();
    let blob = image.layers[0].digest().to_string();
    let forged = format!("{chain}\n2026-01-01T00:00:00Z ERROR forged: by a label");
    let in_layout = format!("oci:{}:v1", layout.display());
    let long = "l".repeat(60_000);
    let cases: [&[(&str, &str)]; 10] = [
        &[(target, &forged), (name, &reference), (layer, &blob)],
        &[(target, "../../../etc"), (name, &reference), (layer, &blob)],
        &[(target, ""), (name, &reference), (layer, &blob)],
        &[(target, &chain), (name, &in_layout), (layer, &blob)],
        &[(target, &chain), (name, "../../../etc/passwd"), (layer, &blob)],
        &[(target, &chain), (name, "http://127.0.0.1:1/x:y"), (layer, &blob)],
        &[(target, &chain), (name, &forged), (layer, &forged)],
        &[(target, &chain), (name, &reference), (layer, "sha256:../../../../etc/passwd")],
        &[(target, &chain), (name, &long), (layer, &blob)],
        &[(target, &long), (name, &reference), (layer, &blob)],
    ];
    for (n, labels) in cases.iter().enumerate() {
        let mounts = service.prepare(&format!("key {n}"), "", labels);
        let mounts = mounts.unwrap_or_else(|code| panic!("{code:?} for {:?}", labels[0]));
        assert!(mounts.len() == 1 && mounts[0].starts_with("bind "), "{n}: {mounts:?}");
    }
    let big = "b".repeat(128 << 10);
    assert_eq!(service.prepare("big", "", &[("a", &big)]), Err(Code::InvalidArgument));
    assert_eq!(service.label("key 0", "a", &big), Err(Code::InvalidArgument));
    assert!(node.received() < image.packed() / 4, "{}", node.received());
    let log = node.log();
    assert!(!log.lines().any(|line| line.contains("forged") && line.starts_with("2026-01-01")), "{log}");
    assert!(log.lines().all(|line| line.len() < 2000), "{log}");
    // None of it is in the way of the right ones, nor of a snapshot that says what it is not.
    let right = [(target, &*chain), (name, &*reference), (layer, &*blob)];
    assert_eq!(service.prepare("right", "", &right), Err(Code::AlreadyExists));
    assert_eq!(service.list(&[&format!("labels.\"{target}\"=={chain}")]).unwrap(), [&*chain]);
}

/// Returns the file of a snapshot's record.
fn record_of(node: &Node, name: &str) -> PathBuf {
    let dir = node.store().join("snapshots");
    let files = entries(&dir).into_iter().map(|name| dir.join(name)).filter(|path| path.is_file());
    let is_its = |path: &PathBuf| {
        let text = String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned();
        text.contains(&format!("\"name\":\"{name}\""))
    };
    files.into_iter().find(is_its).unwrap()
}

#[test]
fn what_a_later_version_has_written_is_refused_by_name_and_stays() {
    let node = node!(LAZY);
    needs_containerd!(Release::Installed);
    let Some(image) = image::sleeper() else { testkit::skip!("there is no busybox") };
    let (registry, reference) = Embedded::with_index(&node, &image);
    let more = Layer::of(&[Entry::file("more", "more\n")], Pack::Gzip);
    let diff_ids = image.layers.iter().chain([&more]).map(|layer| DiffId::new(layer.diff_id()));
    let top = ChainId::of(&diff_ids.collect::<Vec<_>>()).unwrap().to_string();
    let other = TestImage::new(image.layers.iter().cloned().chain([more]).collect(), &json!({}));
    let later = format!("{}/later:v1", registry.host());
    other.push(&later);
    let containerd = Containerd::start(Release::Installed, &node, &reference);
    [&reference, &later].iter().for_each(|reference| containerd.pull(reference));
    let run = |reference| {
        containerd.ctr(&["run", "--rm", "--snapshotter", "floe", reference, "one", "/bin/cat", "/etc/name"])
    };

    // One record: it, and nothing else, is out of reach.
    let record = record_of(&node, &top);
    let ours = fs::read(&record).unwrap();
    let mut theirs = ours.clone();
    theirs[8..12].copy_from_slice(&2_u32.to_le_bytes());
    node.stop();
    fs::write(&record, &theirs).unwrap();
    containerd.revive();
    let names_it = |text: &str| text.contains(record.to_str().unwrap()) && text.contains("version 2");
    let status = node.status()["alerts"].to_string();
    assert!(names_it(&status), "{status}");
    let complaint = node.fails(&["gc"]);
    assert!(names_it(&complaint), "{complaint}");
    let refused = run(&later);
    assert!(!refused.status.success(), "{refused:?}");
    containerd.ctr(&["containers", "rm", "one"]);
    let ran = run(&reference);
    assert_eq!(ran.text(), "tested\n", "{ran:?}");
    assert_eq!(fs::read(&record).unwrap(), theirs);
    node.stop();
    fs::write(&record, &ours).unwrap();
    containerd.revive();
    let ran = run(&later);
    assert_eq!(ran.text(), "tested\n", "{ran:?}");

    // The store: nothing of it is touched.
    node.stop();
    let version = node.store().join("VERSION");
    let known = fs::read_to_string(&version).unwrap();
    fs::write(&version, "floe store 2\n").unwrap();
    let files = node.files(".");
    let complaint = node.fails(&["gc"]);
    assert!(
        complaint.contains(node.store().to_str().unwrap()) && complaint.contains("version 2"),
        "{complaint}"
    );
    assert!(!run(&reference).status.success());
    containerd.ctr(&["containers", "rm", "one"]);
    assert_eq!(node.files("."), files);
    fs::write(&version, known).unwrap();
    containerd.revive();
    [&reference, &later].iter().for_each(|reference| assert_eq!(run(reference).text(), "tested\n"));
    [&reference, &later]
        .iter()
        .for_each(|reference| drop(containerd.ok(&["images", "rm", "--sync", reference])));
    assert_nothing_left(&node);
}
