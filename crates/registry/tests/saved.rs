//! Images in what docker and skopeo write for one another: `docker-archive:` and `dir:`.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::fs;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use bytes::Bytes;
use format::Digest;
use registry::*;
use support::*;

const GZIP_HEAD: &[u8] = &[0x1f, 0x8b, 8, 0];

/// An archive as `docker save` wrote them until Docker 25: a directory for each layer, links for what is there twice.
struct Saved {
    dir: tempfile::TempDir,
    plain: Bytes,
    packed: Bytes,
}

impl Saved {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let (plain, packed) = (noise(700_000, 7), Bytes::from([GZIP_HEAD, &noise(5000, 8)].concat()));
        let saved = Self { dir, plain, packed };
        for name in ["tree/one", "tree/two", "tree/three"] {
            fs::create_dir_all(saved.path(name)).unwrap();
        }
        fs::write(saved.path("tree/one/layer.tar"), &saved.plain).unwrap();
        std::os::unix::fs::symlink("../one/layer.tar", saved.path("tree/two/layer.tar")).unwrap();
        fs::write(saved.path("tree/three/layer.tar"), &saved.packed).unwrap();
        let ids = |digests: &[Digest]| {
            serde_json::json!({
                "architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": digests},
            })
        };
        let (plain, unpacked) = (Digest::of(&saved.plain), Digest::of(b"whatever the packed one has inside"));
        saved.write("a.json", &ids(&[plain, unpacked, plain]));
        saved.write("b.json", &ids(&[plain]));
        saved.manifest(&[
            ("a.json", &["app:v1", "mirror.example/app:v1"], &["one", "three", "two"]),
            ("b.json", &[], &["two"]),
        ]);
        saved
    }

    fn path(&self, name: &str) -> std::path::PathBuf {
        self.dir.path().join(name)
    }

    fn write(&self, name: &str, value: &serde_json::Value) {
        fs::write(self.path("tree").join(name), value.to_string()).unwrap();
    }

    fn manifest(&self, images: &[(&str, &[&str], &[&str])]) {
        let image = |&(config, tags, layers): &(&str, &[&str], &[&str])| {
            let layers: Vec<_> = layers.iter().map(|layer| format!("{layer}/layer.tar")).collect();
            let tags = (!tags.is_empty()).then_some(tags);
            serde_json::json!({"Config": config, "RepoTags": tags, "Layers": layers})
        };
        self.write("manifest.json", &images.iter().map(image).collect());
    }

    async fn open(&self, name: &str) -> Result<(Source, Image), Error> {
        let (tree, made) = (self.path("tree"), self.path("saved.tar"));
        let tar = Command::new("tar").arg("-C").arg(tree).arg("-cf").arg(made).arg(".").status();
        assert!(tar.unwrap().success());
        open(&format!("docker-archive:{}{name}", self.path("saved.tar").display())).await
    }
}

async fn open(reference: &str) -> Result<(Source, Image), Error> {
    let source = Client::new(Config::isolated()).source(&reference.parse().unwrap()).await?;
    let image = source.image(&Platform::parse("amd64").unwrap()).await?;
    Ok((source, image))
}

async fn bytes(source: &Source, layer: &LayerBlob) -> Bytes {
    let whole = source.read_range(&layer.digest, layer.size, 0..layer.size, Priority::Demand);
    whole.verified(&layer.digest, 1 << 30).await.unwrap()
}

#[tokio::test]
async fn what_docker_saved_is_an_image() {
    let saved = Saved::new();
    for name in [":app:v1", ":mirror.example/app:v1"] {
        let (source, image) = saved.open(name).await.unwrap();
        let kinds: Vec<_> =
            image.layers.iter().map(|layer| layer.media_type.rsplit('.').next().unwrap()).collect();
        assert_eq!(kinds, ["tar", "tar+gzip", "tar"]);
        let mut layers = Vec::new();
        for layer in &image.layers {
            layers.push(bytes(&source, layer).await);
        }
        assert_eq!(layers, [saved.plain.clone(), saved.packed.clone(), saved.plain.clone()]);
        assert_eq!(image.config, fs::read(saved.path("tree/a.json")).unwrap());
        assert_eq!(source.index_artifacts(&image.manifest.digest).await.unwrap(), []);
    }
    let error = saved.open("").await.unwrap_err().to_string();
    assert!(error.contains("app:v1, mirror.example/app:v1"), "{error}");
    saved.manifest(&[("b.json", &[], &["two"])]);
    let (source, image) = saved.open("").await.unwrap();
    assert_eq!(bytes(&source, &image.layers[0]).await, saved.plain);
}

/// A short name in the list stands for a config, and for a manifest that is made here.
#[tokio::test]
async fn what_is_read_of_all_images_of_an_archive_is_bounded() {
    let saved = Saved::new();
    let diff_ids = vec![Digest::of(b"whatever the packed one has inside"); 100];
    let config = serde_json::json!({ "os": "linux", "rootfs": {"type": "layers", "diff_ids": diff_ids} });
    saved.write("a.json", &config);
    fs::write(saved.path("tree/t"), &saved.packed).unwrap();
    let image = serde_json::json!({"Config": "a.json", "Layers": vec!["t"; 100]});
    saved.write("manifest.json", &vec![image.clone(); 1000].into());
    saved.open("").await.unwrap();
    saved.write("manifest.json", &vec![image; 3500].into());
    let error = saved.open("").await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 0x400_0000, .. }), "{error}");
}

#[tokio::test]
async fn what_is_wrong_with_an_archive_is_said() {
    let saved = Saved::new();
    let says = async |part: &str| {
        let error = saved.open("").await.map(drop).unwrap_err().to_string();
        assert!(error.contains(part) && error.contains("saved.tar"), "{error}");
    };
    saved.manifest(&[("b.json", &[], &["missing"])]);
    says("it has no missing/layer.tar").await;
    saved.manifest(&[("b.json", &[], &["one", "two"])]);
    says("1 diffIDs for 2 layers").await;
    saved.manifest(&[("c.json", &[], &["one"])]);
    says("it has no c.json").await;
    saved.write("c.json", &serde_json::json!({"rootfs": 1}));
    says("c.json").await;
    fs::remove_file(saved.path("tree/manifest.json")).unwrap();
    says("nothing that docker saved").await;

    // A layer that is not what the config says is found when it is read.
    saved.manifest(&[("b.json", &[], &["one"])]);
    fs::write(saved.path("tree/one/layer.tar"), noise(700_000, 9)).unwrap();
    let (source, image) = saved.open("").await.unwrap();
    let layer = &image.layers[0];
    let whole = source.read_range(&layer.digest, layer.size, 0..layer.size, Priority::Demand);
    assert!(whole.verified(&layer.digest, 1 << 30).await.is_err());
}

#[tokio::test]
async fn they_are_only_read() {
    let saved = Saved::new();
    saved.open(":app:v1").await.unwrap();
    let from = format!("docker-archive:{}:app:v1", saved.path("saved.tar").display());
    for to in ["docker-archive:", "dir:"] {
        let to = format!("{to}{}", saved.path("made").display());
        let client = Client::new(Config::isolated());
        let copied = client.copy(&from.parse().unwrap(), &to.parse().unwrap(), Arc::new(Unseen)).await;
        let error = copied.unwrap_err().to_string();
        assert!(error.contains("it is only read") && error.contains(&to), "{error}");
        assert!(!saved.path("made").exists());
    }
}

#[derive(Debug)]
struct Unseen;

impl Watch for Unseen {
    fn passed(&self, _: &Digest, _: u64, _: u64) {}
    fn arrived(&self, _: &Digest, _: u64, _: Pushed) {}
    fn left_out(&self, _: &str) {}
    fn noticed(&self, _: &str) {}
}

/// What skopeo writes of one image in each way has the same layers.
#[tokio::test]
async fn what_skopeo_writes_is_read() {
    if !Command::new("skopeo").arg("--version").output().is_ok_and(|output| output.status.success()) {
        testkit::skip!("skopeo is not installed");
    }
    let saved = Saved::new();
    saved.manifest(&[("b.json", &["app:v1"], &["one"])]);
    let (_, wanted) = saved.open("").await.unwrap();
    let skopeo = |from: &str, to: &str| {
        let output = Command::new("skopeo").args(["--insecure-policy", "copy", from, to]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    };
    let from = format!("docker-archive:{}:app:v1", saved.path("saved.tar").display());
    let at = |name: &str| saved.path(name).display().to_string();
    let layout = format!("oci:{}:v1", at("layout"));
    skopeo(&from, &layout);
    for place in [format!("docker-archive:{}", at("again.tar")), format!("dir:{}", at("flat"))] {
        skopeo(&layout, &if place.starts_with("docker") { format!("{place}:app:v1") } else { place.clone() });
        let (source, image) = open(&place).await.unwrap();
        assert_eq!(image.layers.len(), 1, "{place}");
        assert_eq!(image.layers[0].diff_id, wanted.layers[0].diff_id, "{place}");
        bytes(&source, &image.layers[0]).await; // compared with its digest
    }
    let no_image =
        open(&format!("dir:{}", Path::new("/etc").display())).await.map(drop).unwrap_err().to_string();
    assert!(no_image.contains("root filesystem"), "{no_image}");
}
