//! The demo from its command line to its chart, with an image of busybox. And the demo's own image for real, pulled whole
//! and run until READY: that takes minutes and a Debian mirror, so it runs only where `FLOE_TEST_DEMO` names a cache
//! directory.
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
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use floe::demo::{full_pull, image};
use floe::run::{Input, Options, Output, ReadyWhen};
use rustix::mount::MountFlags;
use serde_json::json;

/// Serves an OCI layout as repository `demo`, for as long as the test lives.
fn serve(layout: PathBuf) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, layout) = (stream.unwrap(), layout.clone());
            std::thread::spawn(move || {
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                let mut request = String::new();
                reader.read_line(&mut request).unwrap();
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                let path = request.split(' ').nth(1).unwrap();
                let digest = match path.strip_prefix("/v2/demo/blobs/sha256:") {
                    Some(digest) => digest.to_owned(),
                    None => manifest(&layout),
                };
                stream.write_all(b"HTTP/1.0 200 OK\r\n\r\n").unwrap();
                let mut blob = fs::File::open(layout.join("blobs/sha256").join(digest)).unwrap();
                let _ = std::io::copy(&mut blob, &mut stream); // the client says what it missed
            });
        }
    });
    address
}

fn manifest(layout: &Path) -> String {
    let index = fs::read(layout.join("index.json")).unwrap();
    let index: serde_json::Value = serde_json::from_slice(&index).unwrap();
    index["manifests"][0]["digest"].as_str().unwrap()["sha256:".len()..].to_owned()
}

/// A recipe once ran apt outside the new system, with mmdebstrap's configuration. That names no directory to
/// install into, so Python went into the machine the demo ran on, and broke its packages.
#[test]
fn the_image_is_made_and_the_machine_stays_as_it_is() {
    let Some(cache) = std::env::var_os("FLOE_TEST_DEMO") else {
        testkit::skip!("FLOE_TEST_DEMO names no directory to make the demo image in");
    };
    let packages = || fs::read("/var/lib/dpkg/status").unwrap_or_default();
    let before = packages();
    let layout = image::ensure(Path::new(&cache), &mut |what| println!("{what}")).unwrap();
    assert!(before == packages(), "the packages of this machine have changed");

    let sizes: Vec<u64> = fs::read_dir(layout.join("blobs/sha256"))
        .unwrap()
        .map(|blob| blob.unwrap().metadata().unwrap().len())
        .collect();
    println!("blobs: {sizes:?}");
    let source = full_pull::Source {
        registry: serve(layout),
        repository: "demo".into(),
        reference: image::TAG.into(),
    };
    let store = tempfile::tempdir_in(&cache).unwrap();
    let mut options = Options::new(store.path());
    options.state = store.path().join("state");
    options.stdin = Input::Null;
    options.stdout = Output::Pass;
    options.ready = Some(ReadyWhen::Line(image::READY.into()));
    let measured = full_pull::measure(&source, &store.path().join("pull"), options).unwrap();
    println!("{measured:?}");
    assert!(measured.ready.is_some() && measured.outcome.code() == 0);
    assert_eq!(measured.requests, 5);
    assert!(!store.path().join("pull").exists());
}

/// Returns the command lines of the processes that name a directory.
fn processes_of(dir: &Path) -> Vec<String> {
    let processes = fs::read_dir("/proc")
        .unwrap()
        .filter_map(|entry| fs::read(entry.unwrap().path().join("cmdline")).ok());
    let mut lines: Vec<_> = processes.map(|line| String::from_utf8_lossy(&line).replace('\0', " ")).collect();
    lines.retain(|line| line.contains(dir.to_str().unwrap()));
    lines
}

#[test]
fn four_ways_are_compared_and_nothing_stays_behind() {
    let node = node!();
    if support::program("runc").is_none() {
        testkit::skip!("there is no runc");
    }
    let script = "cat /etc/name; wc -c </data/0; trap 'exit 0' TERM; echo READY; sleep 600 & wait";
    let config = json!({ "Cmd": ["sh", "-c", script], "Env": ["PATH=/bin"] });
    let Some(image) = support::image::runnable(&config) else {
        testkit::skip!("there is no busybox");
    };
    let (layout, cache, svg) = (node.path("layout"), node.path("cache"), node.path("chart.svg"));
    image.layout(&layout, "v1");
    fs::create_dir(&cache).unwrap();
    rustix::mount::mount("floe-e2e", &cache, "tmpfs", MountFlags::empty(), c"size=1g").unwrap();
    let image = format!("oci:{}:v1", layout.display());
    let demo = |rate: &str| {
        let svg = svg.to_str().unwrap();
        let mut demo = node.command(&["demo", "--image", &image, "--rate", rate, "--svg", svg]);
        demo.env("XDG_CACHE_HOME", &cache);
        let demo = node.spawn(demo);
        let work = cache.join(format!("floe/demo-run-{}", demo.child.id()));
        (demo, work)
    };
    // What one leaves that is killed in the middle, the next takes away.
    let (killed, left) = demo("40mbit");
    support::until("a store is there", || left.join("first/LOCK").exists());
    support::kill_and_wait(killed.pid());
    drop(killed);
    assert!(left.exists() && !svg.exists());

    let (demo, work) = demo("400mbit");
    let outcome = demo.end();
    assert!(outcome.status.success(), "{outcome:?}");

    let (table, chart) = (outcome.text(), fs::read_to_string(&svg).unwrap());
    let rows: Vec<&str> = table.lines().filter(|line| line.contains(" MB")).collect();
    assert_eq!(rows.len(), 4, "{table}");
    for (row, name) in rows.iter().zip(["full pull", "floe, first", "floe, lazy", "floe, profile"]) {
        assert!(row.trim_start().starts_with(name) && row.contains(" s"), "{row}");
        assert!(chart.contains(name), "{chart}");
    }
    assert!(chart.starts_with("<svg") && chart.trim_end().ends_with("</svg>"), "{chart}");
    assert!(table.contains("400 Mbit/s") && table.contains(svg.to_str().unwrap()), "{table}");
    for step in ["1/4 ", "2/4 ", "3/4 ", "4/4 "] {
        assert!(outcome.stderr.contains(step), "{outcome:?}");
    }

    assert_eq!(support::mounts_of(&cache.join("floe")), [""; 0]);
    assert_eq!(fs::read_dir(cache.join("floe")).unwrap().count(), 0, "stores");
    assert_eq!(processes_of(&cache), [""; 0]);
    for store in
        [&left, &work].into_iter().flat_map(|work| ["first", "lazy", "profile"].map(|name| work.join(name)))
    {
        assert!(!floe::daemon::run_dir(&store).unwrap().exists(), "{}", store.display());
    }
}
