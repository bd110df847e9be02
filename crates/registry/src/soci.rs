//! SOCI indexes: which layers of an image have a zTOC, and where that is.
//!
//! A manifest whose layers are zTOCs and whose config's media type says the version; old writers have an `artifactType`
//! instead. Version 1 has the image as `subject` and is found as what refers to that. Version 2 has none: an annotation of the
//! image's manifest names it, so whoever names that by digest vouches for it.

use format::Digest;
use format::soci::ahead::AHEAD;
use format::soci::{INDEX_DIGEST, INDEX_V1, INDEX_V2, LAYER_DIGEST, ZTOC};

use crate::about::About;
use crate::error::Error;
use crate::manifest::{Descriptor, ImageManifest, Manifest};
use crate::source::Source;

/// A SOCI index that was found; nothing in it has been believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SociIndex {
    /// The digest of its manifest.
    pub digest: Digest,
    /// For each layer that has one, the zTOC.
    pub tables: Vec<(Digest, Descriptor)>,
    /// For each layer of which something is to be fetched first, what says so.
    pub ahead: Vec<(Digest, Descriptor)>,
}

impl SociIndex {
    /// Returns the digest of the SOCI index that an image's manifest names.
    pub fn named_by(manifest: &[u8]) -> Option<Digest> {
        let manifest: ImageManifest = serde_json::from_slice(manifest).ok()?;
        manifest.annotations.get(INDEX_DIGEST)?.parse().ok()
    }

    /// Returns the zTOC of a layer.
    pub fn of(&self, layer: &Digest) -> Option<&Descriptor> {
        named(&self.tables, layer)
    }

    /// Returns what says which spans of a layer are to be fetched first.
    pub fn ahead_of(&self, layer: &Digest) -> Option<&Descriptor> {
        named(&self.ahead, layer)
    }

    /// Reads the manifest of one: about this image, or that one names.
    pub(crate) fn parse(manifest: &Manifest, subject: Option<&Digest>) -> Result<Self, Error> {
        let what = format!("SOCI index {}", manifest.digest);
        let parsed = manifest.image(&what)?;
        let kind = if subject.is_some() { INDEX_V1 } else { INDEX_V2 };
        if parsed.config.media_type != kind && parsed.artifact_type.as_deref() != Some(kind) {
            return Err(Error::invalid(what, format!("its type is {:?}", parsed.config.media_type)));
        }
        if let Some(subject) = subject.filter(|&&of| parsed.subject.as_ref().map(|s| s.digest) != Some(of)) {
            return Err(Error::invalid(what, format!("it is not about {subject}")));
        }
        let (mut tables, mut ahead) = (Vec::new(), Vec::new());
        for blob in parsed.layers {
            let Some(layer) = blob.annotations.get(LAYER_DIGEST).and_then(|of| of.parse().ok()) else {
                continue;
            };
            match &*blob.media_type {
                ZTOC => tables.push((layer, blob)),
                AHEAD => ahead.push((layer, blob)),
                _ => {}
            }
        }
        if tables.len().max(ahead.len()) > format::limits::LAYERS {
            return Err(Error::invalid(what, "it has too many layers"));
        }
        Ok(Self { digest: manifest.digest, tables, ahead })
    }
}

fn named<'a>(blobs: &'a [(Digest, Descriptor)], layer: &Digest) -> Option<&'a Descriptor> {
    blobs.iter().find(|(of, _)| of == layer).map(|(_, blob)| blob)
}

impl Source {
    /// Returns the SOCI index that the image's manifest names.
    pub async fn soci_named(&self, digest: &Digest) -> Result<SociIndex, Error> {
        SociIndex::parse(&self.manifest_at(digest).await?, None)
    }

    /// Returns the SOCI indexes among what refers to an image manifest. Those that cannot be read are left out.
    pub async fn soci_about(&self, about: &About) -> Result<Vec<SociIndex>, Error> {
        let mut indexes = Vec::new();
        for found in self.manifests_of(about, &[INDEX_V1]).await? {
            match SociIndex::parse(&found, Some(&about.image)) {
                Ok(index) => indexes.push(index),
                Err(error) => tracing::warn!(%error, "SOCI index skipped"),
            }
        }
        Ok(indexes)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn read(manifest: &Value, subject: Option<&Digest>) -> Result<SociIndex, Error> {
        let manifest = Manifest::verify(manifest.to_string().into(), None, None, "x")?;
        SociIndex::parse(&manifest, subject)
    }

    #[test]
    fn both_versions_and_what_is_neither() {
        let digest = |text: &str| Digest::of(text.as_bytes());
        let descriptor = |kind: &str, of: &str| json!({ "mediaType": kind, "digest": digest(of), "size": 2 });
        let mut table = descriptor(ZTOC, "ztoc");
        table["annotations"] = json!({ LAYER_DIGEST: digest("layer") });
        let mut prefetch = descriptor(AHEAD, "first");
        prefetch["annotations"] = table["annotations"].clone();
        let mut one = json!({
            "schemaVersion": 2, "config": descriptor(INDEX_V1, "{}"),
            "layers": [prefetch, descriptor(ZTOC, "of nothing"), table],
            "subject": descriptor("application/vnd.oci.image.manifest.v1+json", "image"),
        });
        let found = read(&one, Some(&digest("image"))).unwrap();
        assert_eq!(found.of(&digest("layer")).unwrap().digest, digest("ztoc"));
        assert_eq!(found.ahead_of(&digest("layer")).unwrap().digest, digest("first"));
        assert_eq!((found.tables.len(), found.of(&digest("other"))), (1, None));
        assert_eq!((found.ahead.len(), found.ahead_of(&digest("other"))), (1, None));
        assert!(read(&one, Some(&digest("another image"))).is_err());
        assert!(read(&one, None).is_err(), "not the version that an image names");

        one["config"] = descriptor(INDEX_V2, "{}");
        assert!(read(&one, Some(&digest("image"))).is_err(), "not the version that refers to an image");
        assert_eq!(read(&one, None).unwrap().tables, found.tables);
        one["layers"] = json!(vec![one["layers"][2].clone(); 200]);
        assert!(read(&one, None).is_err(), "more than an image has layers");
        for broken in [json!({}), json!({ "schemaVersion": 2 })] {
            assert!(read(&broken, None).is_err());
        }
    }

    #[test]
    fn an_image_names_its_index() {
        let of = |annotations: Value| {
            let config = json!({ "mediaType": "x", "digest": Digest::of(b"{}"), "size": 2 });
            let manifest =
                json!({ "schemaVersion": 2, "config": config, "layers": [], "annotations": annotations });
            SociIndex::named_by(manifest.to_string().as_bytes())
        };
        assert_eq!(of(json!({ INDEX_DIGEST: Digest::of(b"x") })), Some(Digest::of(b"x")));
        assert_eq!(of(json!({ INDEX_DIGEST: "sha256:1" })), None);
        assert_eq!(of(json!({})), None);
        assert_eq!(SociIndex::named_by(b"noise"), None);
    }
}
