//! One suite for every place images can be: the embedded registry, Debian's docker-registry, an OCI layout, an
//! OCI archive (reading only).

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::process::Command;
use std::time::Duration;

use bytes::Bytes;
use format::{Digest, IndexId};
use registry::*;
use support::*;

/// Larger than a piece of a chunked upload, and not a multiple of one.
const LARGE: usize = (8 << 20) + 12_345;

fn new_artifact(sample: &Sample, profile: Option<&'static [u8]>, created: &str, seed: u64) -> NewArtifact {
    let layers = sample.layers.iter().enumerate().map(|(n, layer)| NewLayerIndex {
        layer: Digest::of(layer),
        diff_id: diff_id(layer),
        index: IndexId::from_bytes([u8::try_from(n).unwrap(); 32]),
        content: Content::bytes(noise(1000 + n, seed)),
    });
    NewArtifact {
        subject: sample.manifest.descriptor(),
        layers: layers.collect(),
        profile: profile.map(Bytes::from_static),
        signatures: vec![Bytes::from_static(b"signature")],
        created: created.into(),
    }
}

async fn read(source: &Source, blob: &Bytes, range: std::ops::Range<u64>) -> Vec<u8> {
    let mut reader = source.read_range(&Digest::of(blob), blob.len() as u64, range, Priority::Demand);
    let mut bytes = Vec::new();
    while let Some(piece) = reader.chunk().await.unwrap() {
        bytes.extend_from_slice(&piece);
    }
    bytes
}

async fn check_image(source: &Source, sample: &Sample, platform: &str) {
    let image = source.image(&Platform::parse(platform).unwrap()).await.unwrap();
    assert_eq!(image.manifest.bytes, sample.manifest.bytes);
    assert_eq!(image.config, sample.config);
    let expected: Vec<_> =
        sample.layers.iter().map(|layer| (Digest::of(layer), layer.len() as u64, diff_id(layer))).collect();
    let found: Vec<_> = image.layers.iter().map(|layer| (layer.digest, layer.size, layer.diff_id)).collect();
    assert_eq!(found, expected);
}

async fn check_reading(source: &Source, sample: &Sample) {
    for layer in &sample.layers {
        let end = layer.len() as u64;
        let middle = end / 2;
        for range in [
            0..0,
            0..1,
            0..end,
            end - 1..end,
            end..end,
            middle..middle,
            middle..(middle + 700_000).min(end),
            1..end,
        ] {
            let from = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            assert!(read(source, layer, range.clone()).await == layer[from], "{range:?} of {end}");
        }
        let mut beyond = source.read_range(&Digest::of(layer), end, 0..end + 1, Priority::Background);
        assert!(matches!(beyond.chunk().await, Err(Error::Invalid { .. })));
    }
    let none = Digest::of(b"not there");
    let error = source.read_range(&none, 5, 0..5, Priority::Demand).chunk().await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(source.index_artifacts(&none).await.unwrap(), []);
}

/// The whole suite for a place that can be written to.
async fn suite(place: &Place) {
    let client = client();
    let amd = sample("amd64", vec![noise(1, 1), noise(LARGE, 2), noise(100_000, 3)]);
    let arm = sample("arm64", vec![noise(1, 1), noise(5000, 4)]);
    for image in [&amd, &arm] {
        place.put_blobs(image).await;
        place.put_blobs(image).await;
    }
    place.put_manifest(&amd.manifest, Some("v1")).await;
    place.put_manifest(&arm.manifest, None).await;
    let entry = |image: &Sample, architecture: &str, variant: Option<&str>| {
        let mut entry = serde_json::to_value(image.manifest.descriptor()).unwrap();
        entry["platform"] = serde_json::json!({"os": "linux", "architecture": architecture});
        if let Some(variant) = variant {
            entry["platform"]["variant"] = variant.into();
        }
        entry
    };
    let mut index = ImageIndex::empty();
    index.manifests = vec![entry(&arm, "arm64", Some("v8")), entry(&amd, "amd64", None)];
    let index = manifest(serde_json::to_vec(&index).unwrap(), media_type::INDEX);
    place.put_manifest(&index, Some("multi")).await;

    let source = place.source(&client, "v1").await;
    assert_eq!(source.resolve().await.unwrap(), amd.manifest.digest);
    check_image(&source, &amd, "linux/amd64").await;
    check_reading(&source, &amd).await;
    let multi = place.source(&client, "multi").await;
    assert_eq!(multi.resolve().await.unwrap(), index.digest);
    check_image(&multi, &amd, "linux/amd64").await;
    check_image(&multi, &arm, "linux/arm64").await;
    let error = multi.image(&Platform::parse("linux/s390x").unwrap()).await.unwrap_err();
    assert!(error.is_not_found() && error.to_string().contains("linux/arm64/v8"), "{error}");
    let error = place.source(&client, "v2").await.image(&Platform::host()).await.unwrap_err();
    assert!(error.is_not_found(), "{error}");

    artifacts(&source, &amd).await;
    check_image(&place.source(&client, "v1").await, &amd, "linux/amd64").await;
}

async fn artifacts(source: &Source, image: &Sample) {
    let subject = image.manifest.digest;
    let plain = new_artifact(image, None, "2026-01-01T00:00:00Z", 1);
    let digest = source.push_index_artifact(&plain).await.unwrap();
    let found = source.index_artifacts(&subject).await.unwrap();
    assert_eq!(found.len(), 1);
    assert_eq!(
        (found[0].digest, found[0].layers.len(), found[0].signatures.len()),
        (digest, image.layers.len(), 1)
    );
    for (there, new) in found[0].layers.iter().zip(&plain.layers) {
        assert_eq!((there.layer, there.diff_id, there.index), (new.layer, new.diff_id, new.index));
        let bytes = source.read_blob(&there.blob, 1 << 20, Priority::Demand).await.unwrap();
        assert_eq!(Digest::of(&bytes), *new.content.digest());
        let error = source.read_blob(&there.blob, 10, Priority::Demand).await.unwrap_err();
        assert!(matches!(error, Error::TooLarge { .. }), "{error}");
    }
    let later = NewArtifact { created: "2026-02-01T00:00:00Z".into(), ..plain.clone() };
    assert_eq!(source.push_index_artifact(&later).await.unwrap(), digest, "a repush keeps what is there");

    // Two writers at once; neither may lose the other's.
    let (a, b) = (
        new_artifact(image, Some(b"{}"), "2026-01-02T00:00:00Z", 2),
        new_artifact(image, None, "2026-01-03T00:00:00Z", 3),
    );
    let (a, b) = tokio::join!(source.push_index_artifact(&a), source.push_index_artifact(&b));
    let found: Vec<Digest> =
        source.index_artifacts(&subject).await.unwrap().iter().map(|one| one.digest).collect();
    assert_eq!(found, [a.unwrap(), b.unwrap(), digest], "with a profile first, then the newest");
}

/// What only registries have.
async fn registry_suite(host: &str) {
    let client = client();
    let host: Host = host.parse().unwrap();
    let place = Place::Registry(client.repository(&host, &"team/app".parse().unwrap()));
    suite(&place).await;

    let Place::Registry(app) = &place else { unreachable!() };
    let mut tags: Vec<String> = app.tags().await.unwrap().iter().map(ToString::to_string).collect();
    tags.retain(|tag| !tag.starts_with("sha256-"));
    tags.sort(); // docker-registry does not
    assert_eq!(tags, ["multi", "v1"]);
    let blob = Content::bytes(noise(100_000, 3));
    assert!(app.blob_exists(blob.digest()).await.unwrap());
    assert!(!app.blob_exists(&Digest::of(b"no")).await.unwrap());
    assert_eq!(app.push_blob(&blob, None).await.unwrap(), Pushed::Existed);

    let other = client.repository(&host, &"other".parse().unwrap());
    assert!(other.tags().await.unwrap_err().is_not_found());
    assert!(!other.blob_exists(blob.digest()).await.unwrap(), "a blob belongs to repositories");
    assert_eq!(other.push_blob(&blob, Some(&app.name().clone())).await.unwrap(), Pushed::Mounted);
    assert!(other.blob_exists(blob.digest()).await.unwrap());
    let fresh = Content::bytes(Bytes::from_static(b"fresh"));
    assert_eq!(
        other.push_blob(&fresh, Some(&app.name().clone())).await.unwrap(),
        Pushed::Sent,
        "a mount that fails is an upload"
    );

    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("empty"), b"").unwrap();
    std::fs::write(dir.path().join("large"), noise(LARGE, 9)).unwrap();
    for name in ["empty", "large"] {
        let content = Content::file(&dir.path().join(name)).await.unwrap();
        assert_eq!(other.push_blob(&content, None).await.unwrap(), Pushed::Sent, "{name}");
        let descriptor = Descriptor::new("x", *content.digest(), content.size());
        assert_eq!(
            other.blob(&descriptor, 1 << 30, Priority::Demand).await.unwrap().len() as u64,
            content.size()
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_embedded_registry() {
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(dir.path()).await;
    registry_suite(&server.address().to_string()).await;
    let stats = server.stats();
    assert!(
        stats.ranges > 5 && stats.bytes_sent > LARGE as u64 && stats.bytes_received > LARGE as u64,
        "{stats:?}"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn debians_docker_registry() {
    let Some(server) = Debian::start(|_| String::new()) else {
        testkit::skip!("docker-registry is not installed")
    };
    registry_suite(&server.host).await;
}

/// Sends a blob of three pieces over connections that are cut in the middle of pieces, one after the other.
async fn broken_upload(host: &str) {
    let proxy = Cutter::start(host, &[3 << 20, 9 << 20, 100]);
    let retry = Budgets {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(20),
        ..Budgets::default()
    };
    let client = Client::new(Config { budgets: retry, ..Config::isolated() });
    let app = client.repository(&proxy.host.parse().unwrap(), &"broken".parse().unwrap());
    let content = Content::bytes(noise(20 << 20, 5));
    assert_eq!(app.push_blob(&content, None).await.unwrap(), Pushed::Sent);
    assert!(client.stats()[&proxy.host].retries >= 2);
    let descriptor = Descriptor::new("x", *content.digest(), content.size());
    app.blob(&descriptor, 1 << 30, Priority::Demand).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn uploads_survive_broken_connections() {
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(dir.path()).await;
    broken_upload(&server.address().to_string()).await;
    let Some(server) = Debian::start(|_| String::new()) else {
        testkit::skip!("docker-registry is not installed")
    };
    broken_upload(&server.host).await;
}

#[tokio::test]
async fn an_oci_layout() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let layout = Layout::create_dir(&path).await.unwrap();
    suite(&Place::Layout(layout, path.clone())).await;
    Layout::create_dir(&path).await.unwrap();
    assert!(
        std::fs::read_dir(path.join("blobs/sha256"))
            .unwrap()
            .flatten()
            .all(|entry| entry.file_name().len() == 64)
    );
}

#[tokio::test]
async fn an_oci_archive() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("layout");
    let layout = Layout::create_dir(&path).await.unwrap();
    let image = sample("amd64", vec![noise(10, 1), noise(700_000, 2)]);
    let place = Place::Layout(layout, path.clone());
    place.put_blobs(&image).await;
    place.put_manifest(&image.manifest, Some("v1")).await;
    let client = client();
    let indexed = new_artifact(&image, None, "2026-01-01T00:00:00Z", 1);
    let digest = place.source(&client, "v1").await.push_index_artifact(&indexed).await.unwrap();

    for format in ["ustar", "gnu", "pax"] {
        let archive = dir.path().join(format!("{format}.tar"));
        let tar = Command::new("tar")
            .arg("-C")
            .arg(&path)
            .arg(format!("--format={format}"))
            .arg("-cf")
            .arg(&archive)
            .arg(".")
            .status();
        if !tar.is_ok_and(|status| status.success()) {
            testkit::skip!("tar is not installed");
        }
        let text = format!("oci-archive:{}:v1", archive.display());
        let source = client.source(&text.parse().unwrap()).await.unwrap();
        check_image(&source, &image, "amd64").await;
        check_reading(&source, &image).await;
        assert_eq!(source.index_artifacts(&image.manifest.digest).await.unwrap()[0].digest, digest);
        assert_eq!(source.push_index_artifact(&indexed).await.unwrap(), digest, "it is there");
        let other = new_artifact(&image, Some(b"{}"), "2026-01-01T00:00:00Z", 1);
        assert!(matches!(source.push_index_artifact(&other).await, Err(Error::Unsupported { .. })));
    }
}

#[tokio::test]
async fn layouts_that_are_wrong_say_so() {
    let dir = tempfile::tempdir().unwrap();
    let client = client();
    let open = async |text: String| {
        let source = client.source(&text.parse().unwrap()).await?;
        source.image(&Platform::parse("amd64").unwrap()).await
    };
    let layout = |name: &str| format!("oci:{}", dir.path().join(name).display());
    let error = open(layout("none")).await.unwrap_err().to_string();
    assert!(error.contains("no OCI layout"), "{error}");

    let path = dir.path().join("two");
    let place = Place::Layout(Layout::create_dir(&path).await.unwrap(), path.clone());
    assert!(open(layout("two")).await.unwrap_err().is_not_found());
    let (a, b) = (sample("amd64", vec![noise(10, 1)]), sample("amd64", vec![noise(10, 2)]));
    for (image, name) in [(&a, "a"), (&b, "b")] {
        place.put_blobs(image).await;
        place.put_manifest(&image.manifest, Some(name)).await;
    }
    let error = open(layout("two")).await.unwrap_err().to_string();
    assert!(error.contains("a, b"), "{error}");
    let error = open(format!("{}:c", layout("two"))).await.unwrap_err().to_string();
    assert!(error.contains("a, b"), "{error}");
    open(format!("{}:a", layout("two"))).await.unwrap();

    // The tag moves; the old image stays readable by nobody's name.
    place.put_manifest(&b.manifest, Some("a")).await;
    assert_eq!(open(format!("{}:a", layout("two"))).await.unwrap().manifest.digest, b.manifest.digest);

    // Damage: a flipped bit in config or manifest is found, one in the length of a layer too.
    for (digest, part) in [(Digest::of(&b.config), "digest"), (b.manifest.digest, "digest")] {
        let file = path.join("blobs/sha256").join(digest.hex());
        let good = std::fs::read(&file).unwrap();
        let mut bad = good.clone();
        bad[10] ^= 1;
        std::fs::write(&file, bad).unwrap();
        let error = open(format!("{}:b", layout("two"))).await.unwrap_err().to_string();
        assert!(error.contains(part), "{error}");
        std::fs::write(&file, good).unwrap();
    }
    std::fs::write(path.join("oci-layout"), br#"{"imageLayoutVersion":"2.0.0"}"#).unwrap();
    assert!(matches!(open(format!("{}:a", layout("two"))).await, Err(Error::Unsupported { .. })));
}
