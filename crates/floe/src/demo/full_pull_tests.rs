//! A registry of three answers, and what a pull makes of its layers.

use super::*;
use std::collections::HashMap;
use std::net::TcpListener;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::sync::Arc;

use serde_json::json;

/// A tar made by GNU tar of these files; a name that ends in '/' is a directory.
fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let dir = tempfile::tempdir().unwrap();
    for (name, content) in files {
        let path = dir.path().join(name);
        if name.ends_with('/') {
            fs::create_dir_all(path).unwrap();
        } else {
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, content).unwrap();
        }
    }
    Command::new("tar").args(["-c", "--sort=name", "-C"]).arg(dir.path()).arg(".").output().unwrap().stdout
}

fn gzip(plain: &[u8]) -> Vec<u8> {
    let mut child =
        Command::new("gzip").arg("-nc").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let plain = plain.to_vec();
    let writer = std::thread::spawn(move || stdin.write_all(&plain).unwrap());
    let packed = child.wait_with_output().unwrap().stdout;
    writer.join().unwrap();
    packed
}

type Blobs = HashMap<String, Vec<u8>>;

/// Serves these paths for as long as the test lives.
fn serve(blobs: Blobs) -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    let blobs = Arc::new(blobs);
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let (mut stream, blobs) = (stream.unwrap(), Arc::clone(&blobs));
            std::thread::spawn(move || {
                let mut request = String::new();
                let mut reader = BufReader::new(stream.try_clone().unwrap());
                reader.read_line(&mut request).unwrap();
                let mut line = String::new();
                while reader.read_line(&mut line).unwrap() > 2 {
                    line.clear();
                }
                let path = request.split(' ').nth(1).unwrap();
                let _ = match blobs.get(path) {
                    Some(body) => stream
                        .write_all(b"HTTP/1.0 200 OK\r\nX: y\r\n\r\n")
                        .and_then(|()| stream.write_all(body)),
                    None => stream.write_all(b"HTTP/1.0 404 Not Found\r\n\r\n"),
                };
            });
        }
    });
    address
}

/// An image of these plain and packed layers; returns what a registry serves.
fn image(layers: &[(Vec<u8>, Vec<u8>)]) -> Blobs {
    let mut blobs = Blobs::new();
    let mut put = |bytes: Vec<u8>| {
        let (digest, size) = (Digest::of(&bytes).to_string(), bytes.len());
        blobs.insert(format!("/v2/a/b/blobs/{digest}"), bytes);
        (digest, size)
    };
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": { "Cmd": ["sh", "-c", "cat /below /above; echo READY"] },
        "rootfs": { "type": "layers", "diff_ids": layers.iter().map(|(plain, _)| Digest::of(plain).to_string()).collect::<Vec<_>>() }
    });
    let descriptors: Vec<_> = layers
        .iter()
        .map(|(_, packed)| {
            let (digest, size) = put(packed.clone());
            json!({ "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": digest, "size": size })
        })
        .collect();
    let (digest, size) = put(serde_json::to_vec(&config).unwrap());
    let manifest = json!({
        "schemaVersion": 2, "layers": descriptors,
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": digest, "size": size }
    });
    blobs.insert("/v2/a/b/manifests/t".into(), serde_json::to_vec(&manifest).unwrap());
    blobs
}

fn source(registry: SocketAddr) -> Source {
    Source { registry, repository: "a/b".into(), reference: "t".into() }
}

fn packed(files: &[(&str, &str)]) -> (Vec<u8>, Vec<u8>) {
    let plain = tar_of(files);
    (plain.clone(), gzip(&plain))
}

macro_rules! root_only {
    () => {
        if !rustix::process::geteuid().is_root() {
            testkit::skip!("unpacking with owners needs root");
        }
    };
}

#[test]
fn layers_are_unpacked_as_overlayfs_wants_them() {
    root_only!();
    let plain = tar_of(&[("top", "plain")]);
    let layers = [
        packed(&[("gone", "1"), ("kept", "2"), ("dir/old", "3")]),
        packed(&[(".wh.gone", ""), ("dir/.wh..wh..opq", ""), ("dir/new", "4"), ("odd\nna\\me/.wh.ä\n", "")]),
        (plain.clone(), plain),
    ];
    let blobs = image(&layers);
    let total: usize = blobs.values().map(Vec::len).sum();
    let dir = tempfile::tempdir().unwrap();
    let pulled = pull(&source(serve(blobs)), &dir.path().join("pull")).unwrap();
    assert_eq!((pulled.bytes, pulled.requests), (total as u64, 5));
    let [top, middle, bottom] = &pulled.layers[..] else { panic!("three layers") };
    assert_eq!(fs::read_to_string(top.join("top")).unwrap(), "plain");
    assert_eq!(fs::read_to_string(bottom.join("kept")).unwrap(), "2");
    for whiteout in ["gone", "odd\nna\\me/ä\n"] {
        let meta = fs::symlink_metadata(middle.join(whiteout)).unwrap();
        assert!(meta.file_type().is_char_device() && meta.rdev() == 0, "{whiteout:?}");
    }
    assert!(!middle.join(".wh.gone").exists() && !middle.join("dir/.wh..wh..opq").exists());
    let mut value = [0; 8];
    let length = rustix::fs::getxattr(middle.join("dir"), "trusted.overlay.opaque", &mut value[..]).unwrap();
    assert_eq!(&value[..length], b"y");
}

#[test]
fn what_is_not_true_is_refused() {
    root_only!();
    let dir = tempfile::tempdir().unwrap();
    let refused = |name: &str, blobs: Blobs| {
        format!("{:#}", pull(&source(serve(blobs)), &dir.path().join(name)).unwrap_err())
    };
    let good = || image(&[packed(&[("a", "b")])]);
    let layer =
        |blobs: &Blobs| blobs.iter().find(|(_, body)| body.starts_with(&[0x1f, 0x8b])).unwrap().0.clone();

    let mut blobs = good();
    let name = layer(&blobs);
    blobs.get_mut(&name).unwrap()[20] ^= 1;
    assert!(refused("flipped", blobs).contains("with digest"));

    let mut blobs = good();
    blobs.get_mut(&layer(&good())).unwrap().pop();
    assert!(refused("short", blobs).contains("fetching layer"));

    let mut blobs = good();
    blobs.remove(&layer(&good()));
    assert!(refused("missing", blobs).contains("answers 404"));

    let (plain, packed) = packed(&[("a", "b")]);
    let other = [plain, b"more".to_vec()].concat();
    assert!(refused("diff", image(&[(other, packed)])).contains("diffID"));

    assert!(refused("none", Blobs::new()).contains("manifests/t"));
}

#[test]
fn names_are_unescaped() {
    for (escaped, plain) in [
        ("plain/name", &b"plain/name"[..]),
        (r"a\\b", b"a\\b"),
        (r"a\nb\tc", b"a\nb\tc"),
        (r"\303\244", "ä".as_bytes()),
        (r"\377", b"\xff"),
        ("end\\", b"end\\"),
    ] {
        assert_eq!(unescape(escaped.as_bytes()), plain, "{escaped}");
    }
}
