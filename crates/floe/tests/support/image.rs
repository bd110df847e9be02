//! Small images, the same on every run: as blobs, in a registry, as an OCI layout, and as GNU tar extracts them.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::process::Command;

use bytes::Bytes;
use convert::recode::{Recoding, Target, recode};
use format::index::{Codec, Index};
use format::payload::SegmentSize;
use format::stargz::table::Announced;
use format::unpack::whole;
use format::{DiffId, Digest};
use registry::{Client, Content, ImageName, Manifest, Pick, Reference, media_type};
use serde_json::{Value, json};
use sys::inflate::Wrap;
use testkit::dump::{self, Dump};
use testkit::faulty::Faulty;
use testkit::tar::{Archive, Entry, Variant};

use super::tool;

/// How a layer is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pack {
    Plain,
    Gzip,
    Zstd,
}

/// One layer.
#[derive(Clone)]
pub struct Layer {
    pub tar: Vec<u8>,
    pub blob: Bytes,
    pub pack: Pack,
    /// Of its descriptor.
    pub annotations: BTreeMap<String, String>,
}

impl Layer {
    pub fn new(tar: Vec<u8>, pack: Pack) -> Self {
        let blob = match pack {
            Pack::Plain => tar.clone(),
            Pack::Gzip => sys::deflate::compress(&tar, Wrap::Gzip, 6).unwrap(),
            Pack::Zstd => zstd::encode_all(&tar[..], 3).unwrap(),
        };
        Self { tar, blob: blob.into(), pack, annotations: BTreeMap::new() }
    }

    /// Returns the same layer in another format.
    pub fn recoded(&self, target: Target) -> Self {
        let expected = convert::Expected { blob: self.digest(), diff_id: DiffId::new(self.diff_id()) };
        let recoding = Recoding { target, level: None, blob_size: self.blob.len() as u64, threads: 1 };
        let mut blob = Vec::new();
        let said = recode(&self.blob[..], &expected, &recoding, &mut blob).unwrap();
        let (codec, pack) = match target {
            Target::EStargz | Target::Gzip => (Codec::Gzip, Pack::Gzip),
            Target::ZstdChunked | Target::Zstd => (Codec::Zstd, Pack::Zstd),
        };
        let tar = whole(codec, &blob, u64::MAX).unwrap().unwrap();
        assert_eq!(Digest::of(&tar), *said.diff_id.digest());
        Self { tar, blob: blob.into(), pack, annotations: said.annotations }
    }

    /// Returns the same layer of eStargz with its table in a blob of its own, and that.
    pub fn apart(&self) -> (Self, Bytes) {
        let (announced, size) = (Announced::by(&self.annotations).unwrap(), self.blob.len() as u64);
        let begin = usize::try_from(announced.whole(&self.blob, size).unwrap().start).unwrap();
        let mut blob = self.blob[..begin].to_vec();
        let table = self.blob.slice(begin..self.blob.len() - 51);
        blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x15\0SG\x11\0STARGZEXTERNALTOC");
        blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        let tar = whole(Codec::Gzip, &blob, u64::MAX).unwrap().unwrap();
        (Self { tar, blob: blob.into(), pack: self.pack, annotations: self.annotations.clone() }, table)
    }

    /// Returns a layer that is a file system with what is in this one.
    pub fn file_system(&self) -> Self {
        let expected = convert::Expected { blob: self.digest(), diff_id: DiffId::new(self.diff_id()) };
        let mut out = std::io::Cursor::new(Vec::new());
        convert::recode::erofs::image(&self.blob[..], &expected, self.blob.len() as u64, &mut out).unwrap();
        Self::new(out.into_inner(), Pack::Plain)
    }

    pub fn of(entries: &[Entry], pack: Pack) -> Self {
        let archive = Archive::of(entries, Variant::Pax10);

        Self::new(archive.tar, pack)
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.blob)
    }

    pub fn diff_id(&self) -> Digest {
        Digest::of(&self.tar)
    }

    fn media_type(&self) -> &'static str {
        match self.pack {
            Pack::Plain => "application/vnd.oci.image.layer.v1.tar",
            Pack::Gzip => "application/vnd.oci.image.layer.v1.tar+gzip",
            Pack::Zstd => "application/vnd.oci.image.layer.v1.tar+zstd",
        }
    }
}

/// An image.
#[derive(Clone)]
pub struct TestImage {
    pub layers: Vec<Layer>,
    pub config: Bytes,
    pub manifest: Bytes,
}

impl TestImage {
    /// Returns the image of these layers, bottom first, with this `config` part of its configuration.
    pub fn new(layers: Vec<Layer>, config: &Value) -> Self {
        let arch = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        };
        let diff_ids: Vec<_> = layers.iter().map(|layer| layer.diff_id().to_string()).collect();
        let config = json!({
            "architecture": arch, "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids }
        });
        let config = Bytes::from(config.to_string());
        let descriptor = |media_type: &str, blob: &[u8]| json!({ "mediaType": media_type, "digest": Digest::of(blob).to_string(), "size": blob.len() });
        let entry = |layer: &Layer| {
            let mut entry = descriptor(layer.media_type(), &layer.blob);
            if !layer.annotations.is_empty() {
                entry["annotations"] = json!(layer.annotations);
            }
            entry
        };
        let manifest = json!({
            "schemaVersion": 2, "mediaType": media_type::MANIFEST,
            "config": descriptor(media_type::CONFIG, &config),
            "layers": layers.iter().map(entry).collect::<Vec<_>>()
        });
        Self { layers, config, manifest: Bytes::from(manifest.to_string()) }
    }

    /// Returns the image of these layers; those of which a type is said are called that.
    pub fn called(layers: Vec<(Layer, Option<&str>)>, config: &Value) -> Self {
        let (layers, types): (Vec<_>, Vec<_>) = layers.into_iter().unzip();
        let image = Self::new(layers, config);
        let mut manifest: Value = serde_json::from_slice(&image.manifest).unwrap();
        for (layer, kind) in manifest["layers"].as_array_mut().unwrap().iter_mut().zip(types) {
            if let Some(kind) = kind {
                layer["mediaType"] = json!(kind);
            }
        }
        Self { manifest: manifest.to_string().into(), ..image }
    }

    /// Returns an image of the same files in layers that are file systems, called by this type.
    pub fn file_systems(&self, kind: &str) -> Self {
        let layers = self.layers.iter().map(|layer| (layer.file_system(), Some(kind))).collect();
        let config: Value = serde_json::from_slice(&self.config).unwrap();
        Self::called(layers, &config["config"])
    }

    pub fn digest(&self) -> Digest {
        Digest::of(&self.manifest)
    }

    /// Returns the bytes of all compressed layers.
    pub fn packed(&self) -> u64 {
        self.layers.iter().map(|layer| layer.blob.len() as u64).sum()
    }

    fn blobs(&self) -> impl Iterator<Item = &Bytes> {
        self.layers.iter().map(|layer| &layer.blob).chain([&self.config])
    }

    /// Stores the image in a registry.
    pub fn push(&self, reference: &str) {
        let name = name(reference);
        tokio::runtime::Runtime::new().unwrap().block_on(async {
            let repository = client().repository(name.host(), name.repository());
            for blob in self.blobs() {
                repository.push_blob(&Content::bytes(blob.clone()), None).await.unwrap();
            }
            let (digest, media_type) = (self.digest(), media_type::MANIFEST.into());
            let manifest = Manifest { digest, media_type, bytes: self.manifest.clone() };
            repository.push_manifest(&manifest, &Pick::of(&name)).await.unwrap();
        });
    }

    /// Stores a list of platforms in a registry that has the image, which is the only one in it.
    pub fn push_list(&self, reference: &str) {
        let name = name(reference);
        let config: Value = serde_json::from_slice(&self.config).unwrap();
        let list = json!({
            "schemaVersion": 2, "mediaType": media_type::INDEX,
            "manifests": [{
                "mediaType": media_type::MANIFEST, "digest": self.digest().to_string(), "size": self.manifest.len(),
                "platform": { "os": config["os"], "architecture": config["architecture"] }
            }]
        });
        let bytes = Bytes::from(list.to_string());
        let list = Manifest { digest: Digest::of(&bytes), media_type: media_type::INDEX.into(), bytes };
        let repository = client().repository(name.host(), name.repository());
        let runtime = tokio::runtime::Runtime::new().unwrap();
        runtime.block_on(repository.push_manifest(&list, &Pick::of(&name))).unwrap();
    }

    /// Puts the image on the misbehaving server.
    pub fn put(&self, server: &Faulty, repository: &str, tag: &str) {
        for name in [tag.to_owned(), self.digest().to_string()] {
            server.put(&format!("/v2/{repository}/manifests/{name}"), media_type::MANIFEST, &self.manifest);
        }
        for blob in self.blobs() {
            server.put(&blob_path(repository, &Digest::of(blob)), "application/octet-stream", blob);
        }
    }

    /// Writes the image as an OCI layout.
    pub fn layout(&self, dir: &Path, tag: &str) {
        let blobs = dir.join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        for blob in self.blobs().chain([&self.manifest]) {
            fs::write(blobs.join(Digest::of(blob).hex()), blob).unwrap();
        }
        fs::write(dir.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let index = json!({ "schemaVersion": 2, "manifests": [{
            "mediaType": media_type::MANIFEST, "digest": self.digest().to_string(), "size": self.manifest.len(),
            "annotations": { "org.opencontainers.image.ref.name": tag }
        }]});
        fs::write(dir.join("index.json"), index.to_string()).unwrap();
    }

    /// Extracts the layers with GNU tar, bottom first, with the whiteouts of each applied before its files.
    pub fn extract(&self, dir: &Path) -> Dump {
        let root = dir.join("root");
        fs::create_dir_all(&root).unwrap();
        for layer in &self.layers {
            let archive = dir.join("layer.tar");
            fs::write(&archive, &layer.tar).unwrap();
            let names = tool(Command::new("tar").arg("-tf").arg(&archive));
            names.lines().for_each(|name| whiteout(&root, Path::new(name)));
            let mut extract = Command::new("tar");
            extract.args([
                "-xpf",
                archive.to_str().unwrap(),
                "--numeric-owner",
                "--xattrs",
                "--xattrs-include=*",
            ]);
            tool(extract.arg("--exclude=.wh.*").current_dir(&root));
        }
        dump::disk(&root).unwrap()
    }
}

fn whiteout(root: &Path, name: &Path) {
    let Some(hidden) = name.file_name().and_then(|last| last.as_bytes().strip_prefix(b".wh.")) else {
        return;
    };
    let dir = root.join(name.parent().unwrap());
    if hidden == b".wh..opq" {
        for entry in fs::read_dir(&dir).into_iter().flatten().flatten() {
            remove(&entry.path());
        }
    } else {
        remove(&dir.join(std::ffi::OsStr::from_bytes(hidden)));
    }
}

fn remove(path: &Path) {
    match fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path).unwrap(),
        Ok(_) => fs::remove_file(path).unwrap(),
        Err(_) => {}
    }
}

/// Builds the index of a layer as it is.
pub fn index_of(layer: &Layer) -> Index {
    let expected = convert::Expected { blob: layer.digest(), diff_id: DiffId::new(layer.diff_id()) };
    let options = convert::Options { segment: SegmentSize::DEFAULT, blob_size: layer.blob.len() as u64 };
    let ignore = |_: u32, _: &[u8]| Ok::<(), std::io::Error>(());
    convert::build(&layer.blob[..], options, &expected, convert::Threads::One, ignore).unwrap().0
}

/// Puts an index artifact with any bytes for the index of the first layer beside an image on the misbehaving server.
pub fn refer(server: &Faulty, image: &TestImage, index: &[u8]) {
    ship(server, image, &[(&image.layers[0], index.to_vec())]);
}

/// Puts an index artifact with the indexes of all layers beside an image on the misbehaving server.
pub fn refer_all(server: &Faulty, image: &TestImage) {
    let indexes: Vec<_> = image.layers.iter().map(|layer| (layer, index_of(layer).encode())).collect();
    ship(server, image, &indexes);
}

fn ship(server: &Faulty, image: &TestImage, indexes: &[(&Layer, Vec<u8>)]) {
    let descriptor = |kind: &str, bytes: &[u8]| json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() });
    let entry = |(layer, index): &(&Layer, Vec<u8>)| {
        let mut entry = descriptor(media_type::FLOE_LAYER_INDEX, index);
        // What cannot be read is announced as what it should be.
        let id = Index::decode(index).unwrap_or_else(|_| index_of(layer)).id();
        entry["annotations"] = json!({
            "dev.floe.layer": layer.digest().to_string(), "dev.floe.diffid": layer.diff_id().to_string(),
            "dev.floe.index": id.to_string()
        });
        entry
    };
    let manifest: Value = json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "artifactType": media_type::FLOE_INDEX,
        "config": descriptor(media_type::EMPTY, b"{}"), "layers": indexes.iter().map(entry).collect::<Vec<_>>(),
        "subject": descriptor(media_type::MANIFEST, &image.manifest),
        "annotations": { "org.opencontainers.image.created": "2026-01-31T12:00:00Z" }
    });
    let manifest = manifest.to_string();
    let mut listed = descriptor(media_type::MANIFEST, manifest.as_bytes());
    listed["artifactType"] = json!(media_type::FLOE_INDEX);
    let list =
        json!({ "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": [listed] }).to_string();
    server.put(&format!("/v2/app/referrers/{}", image.digest()), media_type::INDEX, list.as_bytes());
    server.put(
        &format!("/v2/app/manifests/{}", Digest::of(manifest.as_bytes())),
        media_type::MANIFEST,
        manifest.as_bytes(),
    );
    for bytes in indexes.iter().map(|(_, index)| &index[..]).chain([&b"{}"[..]]) {
        server.put(&blob_path("app", &Digest::of(bytes)), "application/octet-stream", bytes);
    }
}

/// Returns where a blob is on a registry.
pub fn blob_path(repository: &str, digest: &Digest) -> String {
    format!("/v2/{repository}/blobs/{digest}")
}

/// Returns a client that knows nothing of this machine.
pub fn client() -> Client {
    Client::new(registry::Config::isolated())
}

pub fn name(reference: &str) -> ImageName {
    match reference.parse().unwrap() {
        Reference::Registry(name) => name,
        other => panic!("{other} is not in a registry"),
    }
}

/// Returns the digest of the one image of Nydus in an index of a registry.
pub fn nydus_of(reference: &str) -> Digest {
    let name = name(reference);
    let repository = client().repository(name.host(), name.repository());
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let index = runtime.block_on(repository.manifest(&Pick::of(&name))).unwrap();
    let index: Value = serde_json::from_slice(&index.bytes).unwrap();
    let mut entries = index["manifests"].as_array().unwrap().iter();
    let found = entries.find(|entry| entry["artifactType"] == media_type::NYDUS_IMAGE).unwrap();
    found["digest"].as_str().unwrap().parse().unwrap()
}

/// Returns bytes that do not compress and are the same on every run (Marsaglia's xorshift64).
pub fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

/// Returns an image of one gzip layer: a few small files and `big` ones of 1.5 MB that do not compress.
pub fn simple(seed: u64, big: usize) -> TestImage {
    let mut entries = vec![
        Entry::dir("etc/"),
        Entry::file("etc/hello", format!("hello {seed}\n")),
        Entry::symlink("etc/link", "hello"),
        Entry::dir("data/"),
    ];
    for n in 0..big {
        let content = noise(seed * 1000 + n as u64, 1_500_000);
        entries.push(Entry::file(format!("data/{n}"), content));
    }
    TestImage::new(vec![Layer::of(&entries, Pack::Gzip)], &json!({}))
}

/// Returns an image of files `data/0`, … that do not compress, each in a layer of its own: none is fetched with another.
pub fn layered(seed: u64, files: u64, len: usize) -> TestImage {
    let layer = |n| {
        let file = Entry::file(format!("data/{n}"), noise(seed * 1000 + n, len));
        Layer::of(&[Entry::dir("data/"), file], Pack::Gzip)
    };
    TestImage::new((0..files).map(layer).collect(), &json!({}))
}

/// Returns an image with one of everything: three layers in three packings, whiteouts, all that GNU tar can tell.
pub fn rich(dir: &Path) -> TestImage {
    let from = dir.join("from");
    fs::create_dir_all(&from).unwrap();
    testkit::fixture::populate(&from, true).unwrap();
    fs::write(from.join("noise"), noise(1, 3_000_000)).unwrap();
    let archive = dir.join("base.tar");
    let mut tar = Command::new("tar");
    tar.args(["--format=posix", "--xattrs", "--xattrs-include=*", "-cf"]).arg(&archive).arg(".");
    tool(tar.current_dir(&from));
    let base = Layer::new(fs::read(&archive).unwrap(), Pack::Gzip);
    let second = [
        // With the attribute that it has below: to GNU tar, not to say one is to keep it.
        Entry::dir("d/").mode(0o700).owner(7, 8).mtime(1_650_000_000, 0).xattr("trusted.t", "trust"),
        Entry::file("d/.wh.nothing", ""),
        Entry::file(".wh.large", ""),
        Entry::file("block", "a file over a file").mtime(1_650_000_001, 42),
        Entry::dir("opaque/"),
        Entry::file("opaque/noise", noise(2, 2_500_000)),
        Entry::file("caps", "x").xattr("user.second", "layer").mode(0o4711),
    ];
    let third = [
        Entry::dir("opaque/").mtime(5, 0),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/instead", noise(3, 70_000)),
        Entry::dir("late/"),
        Entry::file("late/plain", noise(4, 1_200_000)),
        Entry::link("late/same", "late/plain"),
    ];
    TestImage::new(vec![base, Layer::of(&second, Pack::Zstd), Layer::of(&third, Pack::Plain)], &json!({}))
}

/// Returns an image that can run, and does nothing.
pub fn sleeper() -> Option<TestImage> {
    runnable(&json!({ "Cmd": ["sleep", "1000"], "Env": ["PATH=/bin"] }))
}

/// Returns an image that can run: busybox with its usual names, a large file, and what `config` says.
pub fn runnable(config: &Value) -> Option<TestImage> {
    let busybox = fs::read("/bin/busybox").ok()?;
    let mut entries = vec![Entry::dir("bin/"), Entry::file("bin/busybox", busybox).mode(0o755)];
    for applet in ["sh", "cat", "echo", "sleep", "true", "wc", "sync", "kill", "head"] {
        entries.push(Entry::symlink(format!("bin/{applet}"), "busybox"));
    }
    entries.extend([
        Entry::dir("tmp/").mode(0o1777),
        Entry::dir("etc/"),
        Entry::file("etc/name", "tested\n"),
    ]);
    let data = [
        Entry::dir("data/"),
        Entry::file("data/0", noise(9, 1_500_000)),
        Entry::file("data/1", noise(10, 4_000_000)),
    ];
    Some(TestImage::new(vec![Layer::of(&entries, Pack::Gzip), Layer::of(&data, Pack::Gzip)], config))
}
