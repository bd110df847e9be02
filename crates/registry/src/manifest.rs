//! Manifests, image indexes and configs: OCI image spec 1.1 and Docker's schema 2, which differ in media types.
//!
//! Only what is needed is typed; what is not known is kept, so that a list which we read, extend and write back
//! (an `index.json`, a list of referrers) loses nothing of others. Maps are sorted: equal content, equal bytes.

pub mod media_type;

use std::collections::BTreeMap;

use bytes::Bytes;
use format::{DiffId, Digest, limits::LAYERS};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::convert::Format;
use crate::error::Error;

/// A reference to content by its digest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the content is.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Where else it may be: set for layers that registries do not keep.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub urls: Vec<String>,
    /// What a manifest is about, if not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// For what machine an image is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<DescriptorPlatform>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

impl Descriptor {
    /// Returns the descriptor of bytes in memory.
    pub fn of(media_type: &str, bytes: &[u8]) -> Self {
        Self::new(media_type, Digest::of(bytes), bytes.len() as u64)
    }

    /// Returns a descriptor without notes.
    pub fn new(media_type: &str, digest: Digest, size: u64) -> Self {
        Self {
            media_type: media_type.into(),
            digest,
            size,
            urls: Vec::new(),
            artifact_type: None,
            platform: None,
            annotations: BTreeMap::new(),
        }
    }

    /// Says whether an entry of an image index is a SOCI index: no image, although it has the platform of one.
    pub fn is_soci(&self) -> bool {
        self.artifact_type.as_deref() == Some(format::soci::INDEX_V2)
    }

    /// Says whether an entry of an image index is for clients of Nydus: by its type, or as they had it before there was
    /// one, by a feature of its platform.
    pub fn needs_nydus(&self) -> bool {
        let features =
            self.platform.as_ref().and_then(|platform| platform.other.get("os.features")?.as_array());
        self.artifact_type.as_deref() == Some(media_type::NYDUS_IMAGE)
            || features.is_some_and(|features| features.iter().any(|one| one == media_type::NYDUS_FEATURE))
    }
}

/// The platform of a descriptor in an image index.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DescriptorPlatform {
    /// `GOARCH`.
    pub architecture: String,
    /// `GOOS`.
    pub os: String,
    /// As in `v8`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
    /// What is not looked at.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

/// A machine that runs images.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Platform {
    /// `GOARCH`: `amd64`, `arm64`.
    pub architecture: String,
    /// `GOOS`.
    pub os: String,
    /// As in `v8`.
    pub variant: Option<String>,
}

impl Platform {
    /// Returns the platform of this machine.
    pub fn host() -> Self {
        let architecture = match std::env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            "x86" => "386",
            "powerpc64" if cfg!(target_endian = "little") => "ppc64le",
            other => other,
        };
        Self { architecture: architecture.into(), os: "linux".into(), variant: None }
    }

    /// Reads `linux/arm64/v8`, or `arm64` alone.
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.split('/').collect();
        let (os, architecture, variant) = match parts[..] {
            [architecture] => ("linux", architecture, None),
            [os, architecture] => (os, architecture, None),
            [os, architecture, variant] => (os, architecture, Some(variant)),
            _ => return None,
        };
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|c| c.is_ascii_alphanumeric() || b"._-".contains(&c))
        };
        (plain(os) && plain(architecture) && variant.is_none_or(plain)).then(|| Self {
            architecture: architecture.into(),
            os: os.into(),
            variant: variant.map(Into::into),
        })
    }

    /// How well an image fits: the best is largest, `None` does not run.
    fn fit(&self, image: &DescriptorPlatform) -> Option<u32> {
        if image.os != self.os || image.architecture != self.architecture {
            return None;
        }
        // What goes without saying (containerd's platforms package): arm64 is v8, amd64 v1, arm v7.
        let implied = match &*self.architecture {
            "arm64" => 8,
            "arm" => 7,
            _ => 1,
        };
        let level = |variant: &Option<String>| match variant.as_deref() {
            None | Some("") => Some(implied),
            Some(text) => text.strip_prefix('v').and_then(|number| number.split('.').next()?.parse().ok()),
        };
        if self.variant.as_deref().unwrap_or_default() == image.variant.as_deref().unwrap_or_default() {
            return Some(u32::MAX);
        }
        let (ours, theirs): (u32, u32) = (level(&self.variant)?, level(&image.variant)?);
        (theirs <= ours).then_some(theirs)
    }
}

impl std::fmt::Display for Platform {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.os, self.architecture)?;
        self.variant.iter().try_for_each(|variant| write!(f, "/{variant}"))
    }
}

/// A manifest whose bytes have its digest.
#[derive(Debug, Clone)]
pub struct Manifest {
    /// The SHA-256 of the bytes.
    pub digest: Digest,
    /// What it is, as the registry and the manifest itself say.
    pub media_type: String,
    /// Its bytes.
    pub bytes: Bytes,
}

impl Manifest {
    /// Returns the descriptor to name it by, as the `subject` of an artifact.
    pub fn descriptor(&self) -> Descriptor {
        Descriptor::new(&self.media_type, self.digest, self.bytes.len() as u64)
    }

    /// Checks the bytes and finds out what they are.
    pub(crate) fn verify(
        bytes: Bytes,
        wanted: Option<&Digest>,
        media_type: Option<&str>,
        what: &str,
    ) -> Result<Self, Error> {
        let digest = Digest::of(&bytes);
        if let Some(wanted) = wanted.filter(|&&wanted| wanted != digest) {
            return Err(Error::invalid(what, format!("what came has digest {digest}, not {wanted}")));
        }
        let head: Head = serde_json::from_slice(&bytes)
            .map_err(|error| Error::invalid(what, format!("not a manifest: {error}")))?;
        let said = media_type.map(|text| text.split(';').next().unwrap_or_default().trim());
        let guess = if head.manifests.is_some() { media_type::INDEX } else { media_type::MANIFEST };
        let media_type =
            head.media_type.as_deref().or(said.filter(|said| is_manifest(said))).unwrap_or(guess).to_owned();
        if head.schema_version != Some(2) {
            return Err(Error::Unsupported {
                what: what.into(),
                why: "manifests of schema 1; push the image again with a current tool".into(),
            });
        }
        // One body read as both kinds would let a registry show different images to different clients.
        if head.manifests.is_some() && (head.layers.is_some() || head.config.is_some()) {
            return Err(Error::invalid(what, "the manifest is both an image and an index"));
        }
        Ok(Self { digest, media_type, bytes })
    }

    /// Whether it lists other manifests.
    pub fn is_index(&self) -> bool {
        matches!(&*self.media_type, media_type::INDEX | media_type::DOCKER_LIST)
    }

    /// Returns what an image index lists, as far as it is understood; of an image nothing.
    pub fn children(&self) -> Vec<Descriptor> {
        let index = self.is_index().then(|| self.index("").ok()).flatten();
        index.map_or(Vec::new(), |index| index.descriptors().collect())
    }

    pub(crate) fn index(&self, what: &str) -> Result<ImageIndex, Error> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| Error::invalid(what, format!("not an image index: {error}")))
    }

    pub(crate) fn image(&self, what: &str) -> Result<ImageManifest, Error> {
        serde_json::from_slice(&self.bytes)
            .map_err(|error| Error::invalid(what, format!("not an image manifest: {error}")))
    }
}

pub(crate) fn is_manifest(text: &str) -> bool {
    use media_type::{DOCKER_LIST, DOCKER_MANIFEST, INDEX, MANIFEST};
    [MANIFEST, INDEX, DOCKER_MANIFEST, DOCKER_LIST].contains(&text)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Head {
    schema_version: Option<u32>,
    media_type: Option<String>,
    manifests: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    config: Option<serde::de::IgnoredAny>,
}

/// An image or artifact manifest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageManifest {
    /// Always 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// What it is about, if not an image.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub artifact_type: Option<String>,
    /// The config.
    pub config: Descriptor,
    /// The layers, bottom first.
    pub layers: Vec<Descriptor>,
    /// The manifest that this one says something about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub subject: Option<Descriptor>,
    /// Notes.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
}

/// A list of manifests. Its entries stay as they are, whatever they hold.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ImageIndex {
    /// Always 2.
    pub schema_version: u32,
    /// What it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// The entries, not looked at.
    pub manifests: Vec<Value>,
    /// What is not looked at.
    #[serde(flatten)]
    pub other: Map<String, Value>,
}

impl ImageIndex {
    /// Returns a list without entries.
    pub fn empty() -> Self {
        let media_type = Some(media_type::INDEX.into());
        Self { schema_version: 2, media_type, manifests: Vec::new(), other: Map::new() }
    }

    /// Returns the entries that we understand; one with another hash is none of them.
    pub fn descriptors(&self) -> impl Iterator<Item = Descriptor> + '_ {
        self.manifests.iter().filter_map(|entry| Descriptor::deserialize(entry).ok())
    }

    /// Adds or replaces the entry with this digest; returns whether that changed anything.
    pub(crate) fn put(&mut self, descriptor: &Descriptor, same: impl Fn(&Descriptor) -> bool) -> bool {
        let Ok(value) = serde_json::to_value(descriptor) else { return false };
        let same = |entry: &Value| Descriptor::deserialize(entry).is_ok_and(|entry| same(&entry));
        if self.manifests.contains(&value) {
            return false;
        }
        self.manifests.retain(|entry| !same(entry));
        self.manifests.push(value);
        true
    }

    /// Removes entries; returns whether there were any.
    pub(crate) fn remove(&mut self, which: impl Fn(&Descriptor) -> bool) -> bool {
        let before = self.manifests.len();
        self.manifests.retain(|entry| !Descriptor::deserialize(entry).is_ok_and(|entry| which(&entry)));
        self.manifests.len() < before
    }

    /// Returns the best image for a platform: one that every client can read, of these an exact variant, else the highest
    /// that runs, else the first.
    pub(crate) fn choose(&self, platform: &Platform) -> Option<Descriptor> {
        let fit = |image: &Descriptor| {
            let fit = platform.fit(image.platform.as_ref()?)?;
            Some((!image.needs_nydus(), fit))
        };
        let images = self.descriptors().filter(|entry| !entry.is_soci());
        let best = images.filter_map(|image| Some((fit(&image)?, image)));
        best.reduce(|best, next| if next.0 > best.0 { next } else { best }).map(|(_, image)| image)
    }

    /// Returns the platforms offered, for an error message.
    pub(crate) fn platforms(&self) -> String {
        let known =
            self.descriptors().filter_map(|image| image.platform).filter(|platform| platform.os != "unknown");
        let names: Vec<String> = known
            .map(|DescriptorPlatform { architecture, os, variant, .. }| {
                Platform { architecture, os, variant }.to_string()
            })
            .take(20)
            .collect();
        names.join(", ")
    }
}

/// One layer of an image, as the manifest and the config name it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerBlob {
    /// The SHA-256 of the blob.
    pub digest: Digest,
    /// The blob's length in bytes.
    pub size: u64,
    /// Tar, and how it is compressed.
    pub media_type: String,
    /// The SHA-256 of the plain tar.
    pub diff_id: DiffId,
    /// Notes of the descriptor; other formats keep their tables' places here.
    pub annotations: BTreeMap<String, String>,
}

impl LayerBlob {
    /// Says whether this is a blob of Nydus and no tar.
    pub fn is_nydus(&self) -> bool {
        self.media_type == media_type::NYDUS_BLOB
    }

    /// Says whether this is a tar that has no table of its files beside it, as most do.
    pub fn is_ordinary(&self) -> bool {
        Format::Oci.has(&self.descriptor())
    }

    /// Says whether this is a file system and no tar.
    pub fn is_erofs(&self) -> bool {
        media_type::is_erofs(&self.media_type)
    }

    /// Returns the descriptor by which a manifest names it.
    pub(crate) fn descriptor(&self) -> Descriptor {
        let annotations = self.annotations.clone();
        Descriptor { annotations, ..Descriptor::new(&self.media_type, self.digest, self.size) }
    }
}

/// An image: manifest and config, both checked, and its layers, bottom first.
#[derive(Debug, Clone)]
pub struct Image {
    /// The image manifest.
    pub manifest: Manifest,
    /// The image indexes that led from the reference to it, the outermost first; none where it led to the manifest.
    pub indexes: Vec<Manifest>,
    /// The digest of the config, which is Docker's image id.
    pub config_digest: Digest,
    /// The bytes of the config.
    pub config: Bytes,
    /// The layers.
    pub layers: Vec<LayerBlob>,
}

impl Image {
    /// Puts together what was fetched; manifest and config must say the same.
    pub(crate) fn new(
        indexes: Vec<Manifest>,
        manifest: Manifest,
        parsed: ImageManifest,
        config: Bytes,
        what: &str,
    ) -> Result<Self, Error> {
        #[derive(Deserialize)]
        struct Config {
            rootfs: RootFs,
        }
        #[derive(Deserialize)]
        struct RootFs {
            diff_ids: Vec<DiffId>,
        }
        let parsed_config: Config = serde_json::from_slice(&config)
            .map_err(|error| Error::invalid(what, format!("config {}: {error}", parsed.config.digest)))?;
        let diff_ids = parsed_config.rootfs.diff_ids;
        if diff_ids.len() != parsed.layers.len() {
            let why =
                format!("the manifest has {} layers, the config {}", parsed.layers.len(), diff_ids.len());
            return Err(Error::invalid(what, why));
        }
        let layers = parsed.layers.into_iter().zip(diff_ids).map(|(layer, diff_id)| LayerBlob {
            digest: layer.digest,
            size: layer.size,
            media_type: layer.media_type,
            diff_id,
            annotations: layer.annotations,
        });
        Ok(Self { manifest, indexes, config_digest: parsed.config.digest, config, layers: layers.collect() })
    }
}

/// Checks that a manifest is an image of which all parts can be fetched.
pub(crate) fn check_image(manifest: &ImageManifest, what: &str) -> Result<(), Error> {
    let image = [media_type::CONFIG, media_type::NYDUS_IMAGE];
    let artifact = manifest.artifact_type.as_deref().filter(|kind| !image.contains(kind));
    if artifact.is_some() || manifest.config.media_type == media_type::EMPTY {
        let kind = artifact.unwrap_or("an unnamed type");
        return Err(Error::Unsupported {
            what: what.into(),
            why: format!("it is no image but an artifact of {kind}"),
        });
    }
    if manifest.layers.len() > LAYERS {
        return Err(Error::invalid(what, format!("{} layers, the limit is {LAYERS}", manifest.layers.len())));
    }
    for layer in &manifest.layers {
        if layer.size > format::limits::LAYER {
            return Err(Error::TooLarge {
                what: format!("layer {}", layer.digest),
                size: layer.size,
                limit: format::limits::LAYER,
            });
        }
        if media_type::is_erofs(&layer.media_type) && media_type::is_packed(&layer.media_type) {
            let why = format!(
                "layer {} is an EROFS file system that is packed, of which no part can be had; take the image it was made \
                 of, or make an ordinary one with floe convert --format oci",
                layer.digest
            );
            return Err(Error::Unsupported { what: what.into(), why });
        }
        if !layer.urls.is_empty() || layer.media_type.contains("foreign") {
            return Err(Error::Unsupported {
                what: what.into(),
                why: format!("layer {} is kept outside of registries", layer.digest),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn entry(name: &str, os: &str, architecture: &str, variant: Option<&str>) -> Value {
        let mut entry = Descriptor::of(media_type::MANIFEST, name.as_bytes());
        let variant = variant.map(String::from);
        let platform = DescriptorPlatform {
            architecture: architecture.into(),
            os: os.into(),
            variant,
            other: Map::new(),
        };
        entry.platform = Some(platform);
        serde_json::to_value(entry).unwrap()
    }

    #[test]
    fn an_image_of_nydus_is_chosen_where_there_is_no_other() {
        let mut by_type = entry("by type", "linux", "arm64", Some("v8"));
        by_type["artifactType"] = json!(media_type::NYDUS_IMAGE);
        let mut by_feature = entry("by feature", "linux", "arm64", Some("v8"));
        by_feature["platform"]["os.features"] = json!(["x", "nydus.remoteimage.v1"]);
        let ordinary = entry("ordinary", "linux", "arm64", None);
        let platform = Platform::parse("linux/arm64/v8").unwrap();
        let chosen = |entries: &[&Value]| {
            let manifests = entries.iter().copied().cloned().collect();
            ImageIndex { manifests, ..ImageIndex::empty() }.choose(&platform).unwrap().digest
        };
        let digest = |name: &str| Digest::of(name.as_bytes());
        assert_eq!(chosen(&[&by_type, &ordinary, &by_feature]), digest("ordinary"));
        assert_eq!(chosen(&[&by_feature, &by_type]), digest("by feature"));
        // The platform fits it better than the image that it is about, and it is none.
        let mut soci = entry("soci", "linux", "arm64", Some("v8"));
        soci["artifactType"] = json!("application/vnd.amazon.soci.index.v2+json");
        assert_eq!(chosen(&[&soci, &ordinary]), digest("ordinary"));
    }

    #[test]
    fn the_best_platform_is_chosen() {
        let mut index = ImageIndex::empty();
        index.manifests = vec![
            json!({"mediaType": "x", "digest": "sha512:00", "size": 1, "platform": {"os": "linux", "architecture": "amd64"}}),
            entry("unknown", "unknown", "unknown", None),
            entry("win", "windows", "amd64", None),
            entry("amd", "linux", "amd64", None),
            entry("amd-again", "linux", "amd64", None),
            entry("amd-v2", "linux", "amd64", Some("v2")),
            entry("amd-v3", "linux", "amd64", Some("v3")),
            entry("arm64-v8", "linux", "arm64", Some("v8")),
            entry("arm-v6", "linux", "arm", Some("v6")),
            entry("arm-v7", "linux", "arm", Some("v7")),
        ];
        for (platform, best) in [
            ("linux/amd64", Some("amd")),
            ("linux/amd64/v2", Some("amd-v2")),
            ("linux/amd64/v4", Some("amd-v3")),
            ("arm64", Some("arm64-v8")),
            ("linux/arm64/v9", Some("arm64-v8")),
            ("linux/arm", Some("arm-v7")),
            ("linux/arm/v6", Some("arm-v6")),
            ("linux/arm/v5", None),
            ("linux/s390x", None),
            ("windows/amd64", Some("win")),
        ] {
            let chosen = index.choose(&Platform::parse(platform).unwrap()).map(|image| image.digest);
            assert_eq!(chosen, best.map(|name| Digest::of(name.as_bytes())), "{platform}");
        }
        assert!(index.platforms().contains("linux/arm64/v8") && !index.platforms().contains("unknown"));
        for bad in ["", "a/b/c/d", "linux/", "linux/a b"] {
            assert_eq!(Platform::parse(bad), None, "{bad}");
        }
    }

    #[test]
    fn lists_keep_what_they_do_not_know() {
        let text = r#"{"schemaVersion":2,"manifests":[{"digest":"sha512:aa","size":1,"mediaType":"m","x":[1]}],"subject":{"a":1}}"#;
        let mut index: ImageIndex = serde_json::from_str(text).unwrap();
        let new = Descriptor::of(media_type::MANIFEST, b"new");
        assert!(index.put(&new, |entry| entry.digest == new.digest));
        assert!(!index.put(&new, |entry| entry.digest == new.digest), "a second time changes nothing");
        let back = serde_json::to_value(&index).unwrap();
        assert_eq!(back["manifests"][0]["x"], json!([1]));
        assert_eq!(back["subject"], json!({"a": 1}));
        assert_eq!(index.descriptors().collect::<Vec<_>>(), [new]);
    }

    #[test]
    fn manifests_are_checked() {
        let verify =
            |text: &str, said: Option<&str>| Manifest::verify(Bytes::from(text.to_owned()), None, said, "x");
        let plain = r#"{"schemaVersion":2,"config":{},"layers":[]}"#;
        assert_eq!(verify(plain, None).unwrap().media_type, media_type::MANIFEST);
        assert_eq!(
            verify(plain, Some(media_type::DOCKER_MANIFEST)).unwrap().media_type,
            media_type::DOCKER_MANIFEST
        );
        assert_eq!(verify(plain, Some("text/html; charset=utf-8")).unwrap().media_type, media_type::MANIFEST);
        assert!(verify(r#"{"schemaVersion":2,"manifests":[]}"#, None).unwrap().is_index());
        assert!(matches!(verify(r#"{"schemaVersion":1}"#, None), Err(Error::Unsupported { .. })));
        for bad in [r#"{"schemaVersion":2,"manifests":[],"layers":[]}"#, "", "[]", "<html>"] {
            assert!(matches!(verify(bad, None), Err(Error::Invalid { .. })), "{bad}");
        }
        let other =
            Manifest::verify(Bytes::from_static(plain.as_bytes()), Some(&Digest::of(b"")), None, "app");
        assert!(other.unwrap_err().to_string().contains("e3b0c442"));
    }

    proptest! {
        #[test]
        fn any_manifest_is_read_or_refused(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            if let Ok(manifest) = Manifest::verify(bytes.into(), None, None, "x") {
                let _ = (manifest.index("x"), manifest.image("x"));
            }
        }
    }
}
