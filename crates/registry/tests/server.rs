//! The embedded registry beyond what our own client asks of it: raw requests, other clients, restarts.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::{Command, Output};

use format::Digest;
use registry::*;
use support::*;

/// One raw exchange: status line and headers, and the body.
fn raw(server: &Server, method: &str, path: &str, headers: &str, body: &[u8]) -> (String, Vec<u8>) {
    let mut stream = TcpStream::connect(server.address()).unwrap();
    let head = format!(
        "{method} {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: {}\r\n{headers}\r\n",
        body.len()
    );
    stream.write_all(head.as_bytes()).unwrap();
    let _ = stream.write_all(body); // it may refuse before it has read all
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let cut =
        answer.windows(4).position(|four| four == b"\r\n\r\n").unwrap_or(answer.len().saturating_sub(4));
    (String::from_utf8_lossy(&answer[..cut]).to_lowercase(), answer[cut + 4..].to_vec())
}

fn header<'a>(head: &'a str, name: &str) -> Option<&'a str> {
    head.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(": "))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_as_the_specification_says() {
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(dir.path()).await;
    let blob = b"0123456789";
    let digest = Digest::of(blob);
    let begin = || {
        let (head, _) = raw(&server, "POST", "/v2/app/blobs/uploads/", "", b"");
        assert!(head.starts_with("http/1.1 202"), "{head}");
        header(&head, "location").unwrap().to_owned()
    };
    // In pieces, with one that comes at the wrong place.
    let place = begin();
    let (head, _) = raw(&server, "PATCH", &place, "Content-Range: 0-3\r\n", &blob[..4]);
    assert!(head.starts_with("http/1.1 202") && head.contains("range: 0-3"), "{head}");
    let (head, _) = raw(&server, "PATCH", &place, "Content-Range: 5-9\r\n", &blob[5..]);
    assert!(head.starts_with("http/1.1 416"), "{head}");
    let (head, _) = raw(&server, "GET", &place, "", b"");
    assert!(head.starts_with("http/1.1 204") && head.contains("range: 0-3"), "{head}");
    let (head, _) = raw(&server, "PATCH", &place, "", &blob[4..]);
    assert!(head.contains("range: 0-9"), "{head}");
    let (head, _) = raw(&server, "PUT", &format!("{place}?digest={digest}"), "", b"");
    assert!(head.starts_with("http/1.1 201") && head.contains(&digest.to_string()), "{head}");
    let (head, body) = raw(&server, "GET", &format!("/v2/app/blobs/{digest}"), "Range: bytes=2-4\r\n", b"");
    assert!(head.starts_with("http/1.1 206") && head.contains("content-range: bytes 2-4/10"), "{head}");
    assert_eq!(body, b"234");
    let before = server.stats();
    let (head, body) = raw(&server, "HEAD", &format!("/v2/app/blobs/{digest}"), "", b"");
    assert!(head.contains("content-length: 10") && body.is_empty(), "{head}");
    let after = server.stats();
    assert_eq!((after.blobs, after.bytes_sent), (before.blobs, before.bytes_sent), "only asked for");
    let (head, _) = raw(&server, "GET", &format!("/v2/app/blobs/{digest}"), "Range: bytes=10-\r\n", b"");
    assert!(head.starts_with("http/1.1 416") && head.contains("bytes */10"), "{head}");

    // A wrong digest gives no name, and the upload is gone.
    let place = begin();
    let wrong = Digest::of(b"other");
    let (head, body) = raw(&server, "PUT", &format!("{place}?digest={wrong}"), "", blob);
    assert!(
        head.starts_with("http/1.1 400") && String::from_utf8_lossy(&body).contains("DIGEST_INVALID"),
        "{head}"
    );
    assert!(raw(&server, "GET", &format!("/v2/app/blobs/{wrong}"), "", b"").0.starts_with("http/1.1 404"));
    assert!(raw(&server, "GET", &place, "", b"").0.starts_with("http/1.1 404"));
    // In one request, cancelled, of another repository.
    let (head, _) =
        raw(&server, "POST", &format!("/v2/app/blobs/uploads/?digest={}", Digest::of(b"one")), "", b"one");
    assert!(head.starts_with("http/1.1 201"), "{head}");
    let place = begin();
    assert!(
        raw(&server, "PATCH", &place.replace("/app/", "/other/"), "", b"x").0.starts_with("http/1.1 404")
    );
    assert!(raw(&server, "DELETE", &place, "", b"").0.starts_with("http/1.1 204"));
    assert!(raw(&server, "PATCH", &place, "", b"x").0.starts_with("http/1.1 404"));
    assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn manifests_tags_referrers_and_deletion() {
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(dir.path()).await;
    let image = sample("amd64", vec![noise(10, 1)]);
    let put = |path: &str, kind: &str, body: &[u8]| {
        raw(&server, "PUT", path, &format!("Content-Type: {kind}\r\n"), body).0
    };
    let (head, body) = raw(
        &server,
        "PUT",
        "/v2/app/manifests/v1",
        &format!("Content-Type: {}\r\n", media_type::MANIFEST),
        &image.manifest.bytes,
    );
    assert!(
        head.starts_with("http/1.1 400") && String::from_utf8_lossy(&body).contains("MANIFEST_BLOB_UNKNOWN"),
        "{head}"
    );

    let client = client();
    let host: Host = server.address().to_string().parse().unwrap();
    let place = Place::Registry(client.repository(&host, &"app".parse().unwrap()));
    place.put_blobs(&image).await;
    for tag in ["c", "a", "b"] {
        assert!(
            put(&format!("/v2/app/manifests/{tag}"), media_type::MANIFEST, &image.manifest.bytes)
                .starts_with("http/1.1 201")
        );
    }
    for (body, kind) in [
        (&b"{}"[..], media_type::MANIFEST),
        (b"", media_type::MANIFEST),
        (&image.manifest.bytes, media_type::INDEX),
    ] {
        assert!(put("/v2/app/manifests/x", kind, body).starts_with("http/1.1 400"));
    }
    let wrong = format!("/v2/app/manifests/{}", Digest::of(b"other"));
    assert!(put(&wrong, media_type::MANIFEST, &image.manifest.bytes).starts_with("http/1.1 400"));
    assert!(
        put("/v2/app/manifests/x", media_type::MANIFEST, &vec![b' '; (4 << 20) + 1])
            .starts_with("http/1.1 413")
    );

    let list = |path: &str| {
        let (head, body) = raw(&server, "GET", path, "", b"");
        (header(&head, "link").map(String::from), String::from_utf8(body).unwrap())
    };
    assert_eq!(
        list("/v2/app/tags/list?n=2"),
        (
            Some("</v2/app/tags/list?n=2&last=b>; rel=\"next\"".into()),
            r#"{"name":"app","tags":["a","b"]}"#.into()
        )
    );
    assert_eq!(list("/v2/app/tags/list?n=2&last=b").1, r#"{"name":"app","tags":["c"]}"#);
    assert_eq!(list("/v2/_catalog").1, r#"{"repositories":["app"]}"#);

    let artifact = NewArtifact {
        subject: image.manifest.descriptor(),
        layers: Vec::new(),
        profile: None,
        signatures: Vec::new(),
        created: "2026-01-01T00:00:00Z".into(),
    };
    let digest = place.source(&client, "a").await.push_index_artifact(&artifact).await.unwrap();
    let referrers = format!("/v2/app/referrers/{}", image.manifest.digest);
    assert!(list(&referrers).1.contains(&digest.to_string()));
    let (head, body) = raw(&server, "GET", &format!("{referrers}?artifactType=x"), "", b"");
    assert!(
        head.contains("oci-filters-applied: artifacttype")
            && String::from_utf8(body).unwrap().contains("\"manifests\":[]")
    );
    assert!(!list("/v2/app/tags/list").1.contains("sha256-"), "a registry with the API needs no fallback");

    assert!(raw(&server, "DELETE", "/v2/app/manifests/c", "", b"").0.starts_with("http/1.1 202"));
    assert_eq!(list("/v2/app/tags/list").1, r#"{"name":"app","tags":["a","b"]}"#);
    assert!(
        raw(&server, "DELETE", &format!("/v2/app/manifests/{digest}"), "", b"").0.starts_with("http/1.1 202")
    );
    assert!(list(&referrers).1.contains("\"manifests\":[]"));
    assert!(
        raw(&server, "DELETE", &format!("/v2/app/manifests/{}", image.manifest.digest), "", b"")
            .0
            .starts_with("http/1.1 202")
    );
    assert_eq!(list("/v2/app/tags/list").1, r#"{"name":"app","tags":[]}"#, "its tags go with it");
    let layer = format!("/v2/app/blobs/{}", Digest::of(&image.layers[0]));
    assert!(raw(&server, "DELETE", &layer, "", b"").0.starts_with("http/1.1 202"));
    assert!(raw(&server, "DELETE", &layer, "", b"").0.starts_with("http/1.1 404"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restart_keeps_all_but_uploads_and_damage_is_not_served() {
    let dir = tempfile::tempdir().unwrap();
    let image = sample("amd64", vec![noise(10, 1)]);
    let client = client();
    {
        let server = embedded(dir.path()).await;
        let host: Host = server.address().to_string().parse().unwrap();
        let place = Place::Registry(client.repository(&host, &"app".parse().unwrap()));
        place.put_blobs(&image).await;
        place.put_manifest(&image.manifest, Some("v1")).await;
        raw(&server, "POST", "/v2/app/blobs/uploads/", "", b"");
        assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 1);
    }
    let server = embedded(dir.path()).await;
    assert_eq!(std::fs::read_dir(dir.path().join("uploads")).unwrap().count(), 0);
    assert_eq!(raw(&server, "GET", "/v2/app/manifests/v1", "", b"").1, image.manifest.bytes);
    let file = dir.path().join("blobs/sha256").join(image.manifest.digest.hex());
    std::fs::write(file, b"{}").unwrap();
    let (head, body) = raw(&server, "GET", "/v2/app/manifests/v1", "", b"");
    assert!(
        head.starts_with("http/1.1 500")
            && !String::from_utf8(body).unwrap().contains(dir.path().to_str().unwrap()),
        "{head}"
    );
    drop(server);
    std::fs::write(dir.path().join("VERSION"), "2\n").unwrap();
    let config = ServerConfig { dir: dir.path().into(), listen: "127.0.0.1:0".parse().unwrap(), rate: None };
    assert!(matches!(Server::start(config).await, Err(Error::Unsupported { .. })));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn strange_requests_get_an_answer() {
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(dir.path()).await;
    for (method, path, status) in [
        ("GET", "/", "404"),
        ("GET", "/v2/", "200"),
        ("DELETE", "/v2/", "405"),
        ("GET", "/v2/../../etc/passwd/manifests/x", "400"),
        ("GET", "/v2/A/manifests/x", "400"),
        ("GET", "/v2/app/manifests/..", "400"),
        ("GET", "/v2/app/manifests/x", "404"),
        ("GET", "/v2/app/tags/list", "404"),
        ("POST", "/v2/app/blobs/uploads/?digest=md5:00", "400"),
        ("POST", "/v2/app/blobs/uploads/?mount=x&from=y", "400"),
        ("PUT", "/v2/app/blobs/uploads/00000000000000000000000000000000?digest=x", "400"),
    ] {
        let (head, _) = raw(&server, method, path, "", b"");
        assert!(head.starts_with(&format!("http/1.1 {status}")), "{method} {path}: {head}");
        assert!(head.contains("docker-distribution-api-version: registry/2.0"), "{head}");
    }
    assert_eq!(server.stats().requests, 11);
}

fn skopeo(arguments: &[&str]) -> Output {
    Command::new("skopeo").args(["--insecure-policy"]).args(arguments).output().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn skopeo_copies_both_ways() {
    if !have("skopeo") {
        testkit::skip!("skopeo is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(&dir.path().join("registry")).await;
    let path = dir.path().join("from");
    let from = Place::Layout(Layout::create_dir(&path).await.unwrap(), path.clone());
    // skopeo looks into layers, so these are real: empty tars, one of them compressed by nothing at all.
    let image = real_sample();
    from.put_blobs(&image).await;
    from.put_manifest(&image.manifest, Some("v1")).await;
    let remote = format!("docker://{}/team/app:v1", server.address());
    let (first, second) =
        (format!("oci:{}:v1", path.display()), format!("oci:{}:v1", dir.path().join("to").display()));
    for arguments in [
        &["copy", "--dest-tls-verify=false", &first, &remote][..],
        &["copy", "--src-tls-verify=false", &remote, &second],
        &[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            &remote,
            &remote.replace("team/app", "other"),
        ],
        &[
            "copy",
            "--src-tls-verify=false",
            "--dest-tls-verify=false",
            "--format=v2s2",
            &remote,
            &remote.replace("v1", "docker"),
        ],
        &["inspect", "--tls-verify=false", &remote],
        &["list-tags", "--tls-verify=false", remote.trim_end_matches(":v1")],
    ] {
        let output = skopeo(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    let client = client();
    let platform = Platform::parse("amd64").unwrap();
    for text in [&remote, &second, &remote.replace("team/app", "other")] {
        let source = client.source(&text.parse().unwrap()).await.unwrap();
        assert_eq!(source.image(&platform).await.unwrap().manifest.digest, image.manifest.digest, "{text}");
    }
    // Docker's schema 2 of the same image.
    let source = client.source(&remote.replace("v1", "docker").parse().unwrap()).await.unwrap();
    let docker = source.image(&platform).await.unwrap();
    assert_eq!((&*docker.manifest.media_type, docker.layers.len()), (media_type::DOCKER_MANIFEST, 1));
    assert_eq!(docker.layers[0].digest, Digest::of(&image.layers[0]));

    let output = skopeo(&["delete", "--tls-verify=false", &remote]);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let source = client.source(&remote.parse().unwrap()).await.unwrap();
    assert!(source.image(&platform).await.unwrap_err().is_not_found());
}

/// An image that other tools accept: one layer, an empty tar as it is compressed by gzip.
fn real_sample() -> Sample {
    let tar = [0u8; 1024];
    // gzip with one stored block: header, block of 1024 zeros, CRC-32 of them, length.
    let mut gzip = vec![0x1f, 0x8b, 8, 0, 0, 0, 0, 0, 0, 255, 1, 0x00, 0x04, 0xff, 0xfb];
    gzip.extend_from_slice(&tar);
    gzip.extend_from_slice(&crc32(&tar).to_le_bytes());
    gzip.extend_from_slice(&1024u32.to_le_bytes());
    let mut image = sample("amd64", vec![gzip.into()]);
    let wrong = diff_id(&image.layers[0]).to_string();
    let right = Digest::of(&tar).to_string();
    let config = String::from_utf8(image.config.to_vec()).unwrap().replace(&wrong, &right);
    let old = Descriptor::of(media_type::CONFIG, &image.config);
    image.config = config.into_bytes().into();
    let new = Descriptor::of(media_type::CONFIG, &image.config);
    let text = String::from_utf8(image.manifest.bytes.to_vec()).unwrap();
    let text = text.replace(&old.digest.to_string(), &new.digest.to_string());
    image.manifest = manifest(text.into_bytes(), media_type::MANIFEST);
    image
}

fn crc32(bytes: &[u8]) -> u32 {
    !bytes.iter().fold(!0u32, |crc, &byte| {
        (0..8).fold(
            crc ^ u32::from(byte),
            |crc, _| if crc & 1 == 1 { crc >> 1 ^ 0xedb8_8320 } else { crc >> 1 },
        )
    })
}
