//! The demo's image for real, pulled whole and run until READY. Takes minutes and a Debian mirror, so it runs only
//! where `FLOE_TEST_DEMO` names a cache directory.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests; the lint's own exception knows #[test] functions only"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};

use floe::demo::{full_pull, image};
use floe::run::{Input, Options, Output, ReadyWhen};

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
