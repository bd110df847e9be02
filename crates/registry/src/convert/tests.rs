//! Whole conversions between layouts, with a recoder that only marks what it is given.

use std::collections::{BTreeMap, HashSet};
use std::io::Read;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use format::stargz::TOC_DIGEST;
use format::{DiffId, Digest};
use serde_json::{Value, json};

use super::*;
use crate::manifest::{Manifest, Platform, media_type};
use crate::push::Pushed;
use crate::{Config, Layout};

mod note;

const GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
const DOCKER_GZIP: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";

/// Puts a word before each layer. One that begins with "stay" it cannot express.
#[derive(Debug, Default)]
struct Marks {
    recoded: AtomicUsize,
    compared: AtomicUsize,
    /// Layers on top that were compared.
    tops: AtomicUsize,
    /// Layers that can be under a top.
    known: Mutex<HashSet<Digest>>,
    /// The order of layers that have one.
    orders: Mutex<BTreeMap<DiffId, Digest>>,
}

const MARK: &str = "made of ";

impl Recode for Marks {
    fn order(&self, layer: &DiffId) -> Option<Digest> {
        self.orders.lock().unwrap().get(layer).copied()
    }

    fn recode(
        &self,
        layer: &LayerBlob,
        threads: usize,
        blob: &mut dyn Read,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        assert!(threads > 0);
        let failed = |error: std::io::Error| RecodeError::Failed(Arc::new(error));
        let mut bytes = Vec::new();
        blob.read_to_end(&mut bytes).map_err(failed)?;
        if bytes.starts_with(b"stay") {
            return Err(RecodeError::Inexpressible("a strange file".into()));
        }
        if Digest::of(&bytes) != layer.digest {
            return Err(failed(std::io::Error::other("the digest is wrong")));
        }
        self.recoded.fetch_add(1, Ordering::Relaxed);
        let made = [MARK.as_bytes(), &bytes].concat();
        out.write_all(&made).map_err(failed)?;
        let digest = Digest::of(&made);
        self.known.lock().unwrap().insert(digest);
        let annotations = BTreeMap::from([(TOC_DIGEST.to_owned(), "x".to_owned())]);
        Ok(Recoded { digest, size: made.len() as u64, diff_id: DiffId::new(digest), annotations })
    }

    fn compare(
        &self,
        (_, one): (&LayerBlob, &mut (dyn Read + Send)),
        (_, other): (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let read = |from: &mut dyn Read| {
            let mut text = String::new();
            from.read_to_string(&mut text).map(|_| text)
        };
        let failed = |error: std::io::Error| RecodeError::Failed(Arc::new(error));
        let (one, other) = (read(one).map_err(failed)?, read(other).map_err(failed)?);
        self.compared.fetch_add(1, Ordering::Relaxed);
        if other == format!("{MARK}{one}") && !one.contains("odd") {
            Ok(())
        } else {
            Err(failed(std::io::Error::other("they differ")))
        }
    }

    fn wants(&self, made: &LayerBlob, tail: &[u8]) -> Result<std::ops::Range<u64>, RecodeError> {
        assert_eq!(tail.len() as u64, made.size.min(LAYER_TAIL));
        Ok(0..made.size - 1)
    }

    fn recall(&self, made: &LayerBlob, part: &[u8]) -> Result<(), RecodeError> {
        assert_eq!(part.len() as u64, made.size - 1);
        if part.ends_with(b"forgotte") {
            return Err(RecodeError::Inexpressible("no table".into()));
        }
        self.known.lock().unwrap().insert(made.digest);
        Ok(())
    }

    fn top(&self, layers: &[Digest]) -> Result<TopLayer, RecodeError> {
        let known = self.known.lock().unwrap();
        assert!(layers.iter().all(|layer| known.contains(layer)));
        let blob = Bytes::from(format!("{layers:?}"));
        let diff_id = DiffId::new(Digest::of(&[&blob[..], b" as a tar"].concat()));
        Ok(TopLayer { blob, diff_id })
    }

    fn compare_top(
        &self,
        layers: &[Digest],
        (top, there): (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let failed = |error: std::io::Error| RecodeError::Failed(Arc::new(error));
        let mut text = String::new();
        there.read_to_string(&mut text).map_err(failed)?;
        assert_eq!(Digest::of(text.as_bytes()), top.digest);
        self.tops.fetch_add(1, Ordering::Relaxed);
        if text == format!("{layers:?}") { Ok(()) } else { Err(failed(std::io::Error::other("they differ"))) }
    }
}

/// Keeps what it is told.
#[derive(Debug, Default)]
struct Heard {
    left_out: Mutex<Vec<String>>,
    noticed: Mutex<Vec<String>>,
    /// Of each blob what was said last.
    passed: Mutex<BTreeMap<Digest, (u64, u64)>>,
}

impl Watch for Heard {
    fn passed(&self, blob: &Digest, done: u64, total: u64) {
        self.passed.lock().unwrap().insert(*blob, (done, total));
    }
    fn arrived(&self, _: &Digest, _: u64, _: Pushed) {}
    fn noticed(&self, what: &str) {
        self.noticed.lock().unwrap().push(what.to_owned());
    }
    fn left_out(&self, what: &str) {
        self.left_out.lock().unwrap().push(what.to_owned());
    }
}

fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

fn manifest(kind: &str, value: &Value) -> Manifest {
    let bytes = Bytes::from(value.to_string());
    Manifest { digest: Digest::of(&bytes), media_type: kind.into(), bytes }
}

/// A layout to convert from, and places to convert to.
struct Scene {
    dir: tempfile::TempDir,
    layout: Layout,
    marks: Arc<Marks>,
    heard: Arc<Heard>,
}

impl Scene {
    async fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let layout = Layout::create_dir(&dir.path().join("from")).await.unwrap();
        Self { dir, layout, marks: Arc::default(), heard: Arc::default() }
    }

    async fn blob(&self, bytes: &str) -> Vec<u8> {
        self.layout.put_blob(&Content::bytes(Bytes::copy_from_slice(bytes.as_bytes()))).await.unwrap();
        bytes.as_bytes().to_vec()
    }

    /// Stores an image whose layers are these bytes, and their own tars.
    async fn image(&self, architecture: &str, docker: bool, layers: &[&str]) -> Manifest {
        let diff_ids: Vec<_> = layers.iter().map(|layer| Digest::of(layer.as_bytes()).to_string()).collect();
        let config = json!({
            "os": "linux", "architecture": architecture, "rootfs": { "type": "layers", "diff_ids": diff_ids }
        });
        let config = self.blob(&config.to_string()).await;
        let [kind, config_kind, layer_kind] = match docker {
            true => [media_type::DOCKER_MANIFEST, media_type::DOCKER_CONFIG, DOCKER_GZIP],
            false => [media_type::MANIFEST, media_type::CONFIG, GZIP],
        };
        let mut list = Vec::new();
        for layer in layers {
            list.push(descriptor(layer_kind, &self.blob(layer).await));
        }
        let value = json!({
            "schemaVersion": 2, "mediaType": kind, "config": descriptor(config_kind, &config), "layers": list
        });
        let made = manifest(kind, &value);
        self.layout.put_blob(&Content::bytes(made.bytes.clone())).await.unwrap();
        made
    }

    /// Names an index of images for `amd64` and `arm64`, and an attestation about the first.
    async fn list(&self, images: [&Manifest; 2]) -> Manifest {
        let statement = self.blob("{\"statement\":1}").await;
        let config = self.blob(r#"{"rootfs":{"type":"layers","diff_ids":[]}}"#).await;
        let about = json!({
            "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": descriptor(media_type::CONFIG, &config),
            "layers": [descriptor("application/vnd.in-toto+json", &statement)]
        });
        let about = manifest(media_type::MANIFEST, &about);
        self.layout.put_blob(&Content::bytes(about.bytes.clone())).await.unwrap();
        let entry = |image: &Manifest, os: &str, architecture: &str| {
            let mut entry = descriptor(&image.media_type, &image.bytes);
            entry["platform"] = json!({ "os": os, "architecture": architecture });
            entry
        };
        let mut attestation = entry(&about, "unknown", "unknown");
        attestation["annotations"] = json!({ "vnd.docker.reference.digest": images[0].digest.to_string() });
        let entries = [entry(images[0], "linux", "amd64"), entry(images[1], "linux", "arm64"), attestation];
        let list = json!({ "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": entries });
        let list = manifest(media_type::INDEX, &list);
        self.name(&list).await;
        list
    }

    async fn name(&self, manifest: &Manifest) {
        let name = "v1".parse().unwrap();
        self.layout.put_manifest(manifest, manifest.descriptor(), Some(&name)).await.unwrap();
    }

    fn to(&self) -> PathBuf {
        self.dir.path().join("to")
    }

    async fn convert(&self, originals: Originals, verify: bool) -> Result<Converted, Error> {
        self.convert_to(Format::EStargz, originals, verify).await
    }

    async fn convert_to(
        &self,
        format: Format,
        originals: Originals,
        verify: bool,
    ) -> Result<Converted, Error> {
        self.converted(format, FileOrder::AsBefore, originals, verify).await
    }

    async fn converted(
        &self,
        format: Format,
        order: FileOrder,
        originals: Originals,
        verify: bool,
    ) -> Result<Converted, Error> {
        let place = |dir: &Path| format!("oci:{}:v1", dir.display()).parse().unwrap();
        let (from, to) = (place(&self.dir.path().join("from")), place(&self.to()));
        let conversion = Conversion { format, order, originals, verify };
        let client = Client::new(Config::isolated());
        let original = client.original(&from, &*self.heard).await?;
        client.convert(&original, &to, conversion, self.marks.clone(), self.heard.clone()).await
    }

    /// Returns what is named at the destination.
    async fn there(&self) -> Source {
        let to = format!("oci:{}:v1", self.to().display()).parse().unwrap();
        Client::new(Config::isolated()).source(&to).await.unwrap()
    }

    fn recoded(&self) -> usize {
        self.marks.recoded.load(Ordering::Relaxed)
    }

    fn assert_no_drafts(&self) {
        for entry in std::fs::read_dir(self.to().join("blobs/sha256")).unwrap().flatten() {
            assert!(!entry.file_name().to_string_lossy().starts_with('.'), "{entry:?}");
        }
    }
}

fn how(converted: &Converted) -> Vec<How> {
    converted.layers.iter().map(|layer| layer.how).collect()
}

#[tokio::test]
async fn every_platform_is_converted_and_each_layer_once() {
    let scene = Scene::new().await;
    let one = scene.image("amd64", false, &["base", "one", "base"]).await;
    let other = scene.image("arm64", true, &["base", "other"]).await;
    scene.list([&one, &other]).await;
    let converted = scene.convert(Originals::LeftOut, true).await.unwrap();
    for layer in ["base", "one", "other"] {
        let (digest, len) = (Digest::of(layer.as_bytes()), layer.len() as u64);
        assert_eq!(
            scene.heard.passed.lock().unwrap().get(&digest),
            Some(&(len, len)),
            "how far {layer} has come"
        );
    }
    assert_eq!(how(&converted), [How::Recoded; 3]);
    assert_eq!((scene.recoded(), converted.verified, converted.manifests), (3, 3, 3));
    // Two configs and three layers.
    assert_eq!((converted.sent, converted.existed), (5, 0));
    assert!(
        scene.heard.left_out.lock().unwrap().iter().any(|line| line.contains("is about")),
        "{:?}",
        scene.heard
    );

    let there = scene.there().await;
    assert_eq!(there.root().await.unwrap().children().len(), 2, "no attestation about what is not there");
    for (platform, layers) in [("amd64", &["base", "one", "base"][..]), ("arm64", &["base", "other"])] {
        let image = there.image(&Platform::parse(platform).unwrap()).await.unwrap();
        assert_eq!(image.manifest.media_type, media_type::MANIFEST);
        assert_eq!(image.layers.len(), layers.len());
        for (layer, was) in image.layers.iter().zip(layers) {
            let made = Digest::of(format!("{MARK}{was}").as_bytes());
            assert_eq!((layer.digest, layer.diff_id, &*layer.media_type), (made, DiffId::new(made), GZIP));
            assert_eq!(layer.annotations[CONVERTED_FROM], Digest::of(was.as_bytes()).to_string());
            assert_eq!(layer.annotations[TOC_DIGEST], "x");
        }
    }
    scene.assert_no_drafts();

    let again = scene.convert(Originals::LeftOut, true).await.unwrap();
    assert_eq!((how(&again), scene.recoded(), again.verified), (vec![How::Reused; 3], 3, 3));
    assert_eq!((again.digest, again.sent), (converted.digest, 0));
    // What was made of a layer is made again where it is gone.
    let gone = Digest::of(format!("{MARK}one").as_bytes());
    std::fs::remove_file(scene.to().join("blobs/sha256").join(gone.hex())).unwrap();
    let mended = scene.convert(Originals::LeftOut, false).await.unwrap();
    assert_eq!((mended.digest, mended.sent, scene.recoded()), (converted.digest, 1, 4));
}

#[tokio::test]
async fn layers_are_used_again_in_the_same_order_only() {
    let scene = Scene::new().await;
    let image = scene.image("amd64", false, &["base", "one"]).await;
    scene.name(&image).await;
    let one = DiffId::new(Digest::of(b"one"));
    let order = |by: Option<&str>| {
        let mut orders = scene.marks.orders.lock().unwrap();
        orders.clear();
        orders.extend(by.map(|by| (one, Digest::of(by.as_bytes()))));
    };
    let convert = async |format, how| scene.converted(format, how, Originals::LeftOut, false).await.unwrap();
    let plain = convert(Format::EStargz, FileOrder::AsBefore).await;
    assert_eq!(how(&plain), [How::Recoded; 2]);
    for (by, expected) in [("a", How::Recoded), ("a", How::Reused), ("b", How::Recoded)] {
        order(Some(by));
        let made = convert(Format::EStargz, FileOrder::ByRecoder).await;
        // The base has no order, and serves as it is.
        assert_eq!(how(&made), [How::Reused, expected], "{by}");
        let there = scene.there().await.image(&Platform::parse("amd64").unwrap()).await.unwrap();
        assert_eq!(there.layers[1].annotations["dev.floe.ordered.by"], Digest::of(by.as_bytes()).to_string());
        assert!(!there.layers[0].annotations.contains_key("dev.floe.ordered.by"));
    }
    order(None);
    assert_eq!(how(&convert(Format::EStargz, FileOrder::AsBefore).await), [How::Reused, How::Recoded]);
    // Ordinary layers stay where nothing comes first.
    order(Some("a"));
    let made = convert(Format::Oci, FileOrder::ByRecoder).await;
    assert_eq!(how(&made), [How::Kept, How::Recoded]);
    assert_eq!(made.layers[0].why.as_deref(), Some("nothing in it comes first"));
}

#[test]
fn what_has_the_order_already_stays() {
    let layer = |annotations: &[(&str, &str)]| {
        let diff_id = DiffId::new(Digest::of(b"tar"));
        let annotations = annotations.iter().map(|(name, text)| ((*name).into(), (*text).into())).collect();
        LayerBlob { digest: Digest::of(b"x"), size: 1, media_type: GZIP.into(), diff_id, annotations }
    };
    let by = Digest::of(b"order");
    let text = by.to_string();
    let ordered = layer(&[(TOC_DIGEST, "x"), ("dev.floe.ordered.by", &text)]);
    let stays = |layer, by: Option<&Digest>| Format::EStargz.has_in_order(layer, by).is_some();
    assert!(
        stays(&ordered, Some(&by))
            && !stays(&ordered, None)
            && !stays(&ordered, Some(&Digest::of(b"another")))
    );
    let plain = layer(&[(TOC_DIGEST, "x")]);
    assert!(stays(&plain, None) && !stays(&plain, Some(&by)));
    assert!(!stays(&layer(&[]), None), "it has no table");
}

#[tokio::test]
async fn originals_come_first_and_keep_their_digests() {
    let scene = Scene::new().await;
    let one = scene.image("amd64", false, &["base", "one"]).await;
    let other = scene.image("arm64", true, &["stay"]).await;
    scene.list([&one, &other]).await;
    let converted = scene.convert(Originals::Kept, false).await.unwrap();
    assert_eq!(how(&converted), [How::Recoded, How::Recoded, How::Kept]);
    assert_eq!(converted.layers[2].why.as_deref(), Some("a strange file"));
    let there = scene.there().await;
    let listed = there.root().await.unwrap().children();
    assert_eq!((listed.len(), listed[0].digest, listed[1].digest), (4, one.digest, other.digest));
    assert_eq!(listed[3].annotations[CONVERTED_FROM], one.digest.to_string());
    let image = there.image(&Platform::parse("amd64").unwrap()).await.unwrap();
    assert_eq!(image.manifest.bytes, one.bytes, "the first is taken");
    // What lists both is made into the same, not into more.
    let again = scene.convert(Originals::Kept, false).await.unwrap();
    assert_eq!((again.digest, scene.recoded()), (converted.digest, 2));
}

#[tokio::test]
async fn a_single_image_is_replaced_or_gets_a_companion() {
    let scene = Scene::new().await;
    let image = scene.image("amd64", true, &["layer", "stay"]).await;
    scene.name(&image).await;
    let converted = scene.convert(Originals::LeftOut, true).await.unwrap();
    assert_eq!((converted.manifests, &*converted.media_type), (1, media_type::MANIFEST));
    let there = scene.there().await.root().await.unwrap();
    let value: Value = serde_json::from_slice(&there.bytes).unwrap();
    assert_eq!(value["layers"][1], descriptor(GZIP, b"stay"), "named as OCI does");
    let pair = scene.convert(Originals::Kept, false).await.unwrap();
    assert_eq!((pair.manifests, &*pair.media_type, scene.recoded()), (3, media_type::INDEX, 1));
    let listed = scene.there().await.root().await.unwrap().children();
    assert_eq!((listed[0].digest, listed[1].digest), (image.digest, converted.digest));
}

#[tokio::test]
async fn an_image_that_stays_is_copied() {
    let scene = Scene::new().await;
    let image = scene.image("amd64", true, &["stay", "stay too"]).await;
    scene.name(&image).await;
    for originals in [Originals::LeftOut, Originals::Kept] {
        let converted = scene.convert(originals, true).await.unwrap();
        assert_eq!((converted.digest, converted.verified), (image.digest, 0));
        assert_eq!(scene.there().await.root().await.unwrap().bytes, image.bytes);
    }
}

#[tokio::test]
async fn what_fails_names_nothing_and_leaves_nothing() {
    let scene = Scene::new().await;
    let good = scene.image("amd64", false, &["good", "odd"]).await;
    scene.name(&good).await;
    let error = scene.convert(Originals::LeftOut, true).await.unwrap_err();
    assert!(error.to_string().contains("they differ"), "{error}");
    assert!(scene.there().await.root().await.unwrap_err().is_not_found());

    let layer = scene.dir.path().join("from/blobs/sha256").join(Digest::of(b"odd").hex());
    std::fs::write(&layer, "ODD").unwrap();
    let error = scene.convert(Originals::LeftOut, false).await.unwrap_err();
    assert!(error.to_string().contains("digest is wrong"), "{error}");
    // A shorter one is not even read.
    std::fs::write(&layer, "od").unwrap();
    let error = scene.convert(Originals::LeftOut, false).await.unwrap_err();
    assert!(error.to_string().contains("the manifest says 3"), "{error}");
    assert!(scene.there().await.root().await.unwrap_err().is_not_found());
    scene.assert_no_drafts();
}

#[tokio::test]
async fn a_layer_whose_table_is_elsewhere_is_not_in_the_format_already() {
    // By whatever name: the image with the tables has a tag, and a digest does not tell that.
    let scene = Scene::new().await;
    let footer =
        b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC\x01\0\0\xff\xff\0\0\0\0\0\0\0\0";
    let elsewhere = [&b"a layer"[..], footer].concat();
    scene.layout.put_blob(&Content::bytes(elsewhere.clone().into())).await.unwrap();
    let image = scene.image("amd64", false, &["with a table of its own", "short"]).await;
    let mut value: Value = serde_json::from_slice(&image.bytes).unwrap();
    value["layers"][1] = descriptor(GZIP, &elsewhere);
    value["annotations"] = json!({ "com.amazon.soci.index-digest": Digest::of(b"soci").to_string() });
    for layer in value["layers"].as_array_mut().unwrap() {
        layer["annotations"] = json!({ TOC_DIGEST: Digest::of(b"a table").to_string() });
    }
    scene.name(&manifest(media_type::MANIFEST, &value)).await;
    let converted = scene.convert(Originals::LeftOut, false).await.unwrap();
    assert_eq!(how(&converted), [How::Kept, How::Recoded], "{converted:?}");
    assert_eq!(converted.layers[0].why.as_deref(), Some("it is eStargz already"));
    assert_eq!(converted.layers[1].from, Digest::of(&elsewhere));
    // Nothing names an index of what was, and that is told.
    let root = scene.there().await.root().await.unwrap();
    let made: Value = serde_json::from_slice(&root.bytes).unwrap();
    assert_eq!(made["annotations"], json!({}));
    let heard = scene.heard.left_out.lock().unwrap();
    assert!(heard.iter().any(|line| line.contains("names the SOCI index")), "{heard:?}");
}

#[tokio::test]
async fn a_tag_that_moves_after_the_first_look_changes_nothing() {
    let scene = Scene::new().await;
    let image = scene.image("amd64", false, &["base", "one"]).await;
    scene.name(&image).await;
    let expected = scene.convert(Originals::LeftOut, false).await.unwrap();
    let client = Client::new(Config::isolated());
    let place = |dir: &str| format!("oci:{}:v1", scene.dir.path().join(dir).display()).parse().unwrap();
    let original = client.original(&place("from"), &*scene.heard).await.unwrap();
    assert_eq!(original.images().map(|image| image.digest).collect::<Vec<_>>(), [image.digest]);
    scene.name(&scene.image("amd64", false, &["another"]).await).await;
    let conversion = Conversion {
        format: Format::EStargz,
        order: FileOrder::AsBefore,
        originals: Originals::LeftOut,
        verify: true,
    };
    let (to, marks) = (place("elsewhere"), scene.marks.clone());
    let made = client.convert(&original, &to, conversion, marks, scene.heard.clone()).await.unwrap();
    assert_eq!(made.digest, expected.digest);
}

#[test]
fn what_cannot_end_well_is_refused_at_once() {
    let convert = |to: &str, verify| Conversion::check(&to.parse().unwrap(), verify).unwrap_err().to_string();
    assert!(convert("oci-archive:-", true).contains("cannot be read again"));
    let digest = Digest::of(b"x");
    assert!(convert(&format!("localhost/a@{digest}"), false).contains("not known before"));
}

#[tokio::test]
async fn an_image_of_nydus_has_a_layer_on_top_and_its_original_beside_it() {
    let scene = Scene::new().await;
    let one = scene.image("amd64", false, &["base", "one", "base"]).await;
    let other = scene.image("arm64", true, &["base", "forgotten"]).await;
    scene.list([&one, &other]).await;
    let converted = scene.convert_to(Format::Nydus, Originals::Kept, false).await.unwrap();
    assert_eq!(how(&converted), [How::Recoded; 3]);
    let there = scene.there().await;
    let root = there.root().await.unwrap();
    let entries: Value = serde_json::from_slice(&root.bytes).unwrap();
    let entries = entries["manifests"].as_array().unwrap();
    assert_eq!(entries.len(), 5, "originals, what is about them, and what was made");
    assert_eq!(entries[0]["digest"], one.digest.to_string());
    for (entry, was) in entries[3..].iter().zip([&one, &other]) {
        assert_eq!(entry["artifactType"], "application/vnd.nydus.image.manifest.v1+json");
        let original = entries.iter().find(|entry| entry["digest"] == was.digest.to_string()).unwrap();
        assert_eq!(entry["platform"], original["platform"]);
        assert_eq!(entry["annotations"][CONVERTED_FROM], was.digest.to_string());
    }
    let made = there.manifest(&root.children()[3]).await.unwrap();
    let image = made.image("").unwrap();
    let config = there.read_blob(&image.config, 1 << 20, stream::PRIORITY).await.unwrap();
    let config: Value = serde_json::from_slice(&config).unwrap();
    let blobs = ["base", "one", "base"].map(|was| Digest::of(format!("{MARK}{was}").as_bytes()));
    let top = format!("{blobs:?}");
    let tar = Digest::of(format!("{top} as a tar").as_bytes());
    let diff_ids: Vec<_> = blobs.iter().chain([&tar]).map(ToString::to_string).collect();
    assert_eq!(config["rootfs"]["diff_ids"], json!(diff_ids));
    for layer in &image.layers[..3] {
        assert_eq!(layer.media_type, "application/vnd.oci.image.layer.nydus.blob.v1");
        assert_eq!(layer.annotations["containerd.io/snapshot/nydus-blob"], "true");
    }
    assert_eq!(image.layers[3].digest, Digest::of(top.as_bytes()));
    assert_eq!(image.layers[3].media_type, GZIP);
    assert_eq!(image.layers[3].annotations["containerd.io/snapshot/nydus-bootstrap"], "true");
    assert_eq!(image.layers[3].annotations["containerd.io/snapshot/nydus-fs-version"], "6");

    // Somebody who knows nothing of the layers finds them, but for one that says nothing.
    scene.marks.known.lock().unwrap().clear();
    let again = scene.convert_to(Format::Nydus, Originals::Kept, false).await.unwrap();
    assert_eq!(how(&again), [How::Reused, How::Reused, How::Recoded]);
    assert_eq!(again.digest, converted.digest);
}

#[tokio::test]
async fn no_layer_stays_in_an_image_of_nydus() {
    let scene = Scene::new().await;
    let good = scene.image("amd64", false, &["base", "one"]).await;
    scene.name(&good).await;
    let converted = scene.convert_to(Format::Nydus, Originals::Kept, true).await.unwrap();
    assert_eq!((how(&converted), converted.verified), (vec![How::Recoded; 2], 2));
    assert_eq!(scene.marks.tops.load(Ordering::Relaxed), 1);
    let image = scene.image("amd64", false, &["base", "stay"]).await;
    scene.name(&image).await;
    let error = scene.convert_to(Format::Nydus, Originals::Kept, false).await.unwrap_err();
    assert!(error.to_string().contains("a strange file"), "{error}");
    assert_eq!(scene.there().await.root().await.unwrap().digest, converted.digest, "what was there stays");
}
