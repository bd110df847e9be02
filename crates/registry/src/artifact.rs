//! The index artifact: what an image's lazy start needs, kept beside the image in its registry.
//!
//! One OCI manifest (image spec 1.1) of `artifactType` `application/vnd.floe.index.v1`, with the empty config and
//! the image manifest as `subject`. Its layers are, in this order:
//! ```text
//! application/vnd.floe.layer.index.v1    one per layer, in the image's order; annotations:
//!                                          dev.floe.layer   digest of the layer's blob
//!                                          dev.floe.diffid  digest of the layer's tar
//!                                          dev.floe.index   identity of the index
//! application/vnd.floe.profile.v1+json   at most one: what a start reads
//! application/vnd.floe.signature.v1      any number; what they hold is not looked at here
//! ```
//! Everything in an artifact is a claim by whoever can write to the repository. This file reads and writes it;
//! whether to believe it is decided elsewhere.
//!
//! Several artifacts may refer to one image. All are candidates, in an order that every node computes alike:
//! those with a profile first, then by `org.opencontainers.image.created`, newest first, then by digest.

use std::cmp::Reverse;
use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use format::{DiffId, Digest, IndexId};

use crate::content::Content;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, ImageManifest, Manifest, media_type};

const CREATED: &str = "org.opencontainers.image.created";
const LAYER: &str = "dev.floe.layer";
/// Annotation of a layer: the digest of its tar.
pub(crate) const DIFF_ID: &str = "dev.floe.diffid";
const INDEX: &str = "dev.floe.index";

/// The config of an artifact without one.
pub(crate) const EMPTY: &[u8] = b"{}";

/// A layer's index in an artifact.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerIndexBlob {
    /// The layer's blob.
    pub layer: Digest,
    /// The layer's tar.
    pub diff_id: DiffId,
    /// What the index calls itself.
    pub index: IndexId,
    /// The blob that holds the encoded index.
    pub blob: Descriptor,
}

/// An index artifact that was found; nothing in it has been believed yet.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct IndexArtifact {
    /// The digest of the artifact's manifest.
    pub digest: Digest,
    /// When it says it was made; empty if it does not say it well.
    pub created: String,
    /// The layers' indexes.
    pub layers: Vec<LayerIndexBlob>,
    /// The start-up profile.
    pub profile: Option<Descriptor>,
    /// The signatures.
    pub signatures: Vec<Descriptor>,
}

/// An index artifact to be stored.
#[derive(Debug, Clone)]
pub struct NewArtifact {
    /// The image manifest.
    pub subject: Descriptor,
    /// The encoded indexes, in the image's order.
    pub layers: Vec<NewLayerIndex>,
    /// The start-up profile.
    pub profile: Option<Bytes>,
    /// The signatures.
    pub signatures: Vec<Bytes>,
    /// The moment, as in `2026-01-31T12:00:00Z`. Not part of the content: a repush keeps the first.
    pub created: String,
}

/// The index of one layer to be stored.
#[derive(Debug, Clone)]
pub struct NewLayerIndex {
    /// The layer's blob.
    pub layer: Digest,
    /// The layer's tar.
    pub diff_id: DiffId,
    /// The index's identity.
    pub index: IndexId,
    /// The encoded index.
    pub content: Content,
}

impl NewArtifact {
    /// Returns the manifest and the blobs it names, the empty config first.
    pub(crate) fn build(&self) -> Result<(Manifest, Vec<Content>), Error> {
        let what = format!("index artifact of {}", self.subject.digest);
        if !is_moment(&self.created) {
            return Err(Error::invalid(
                what,
                format!("{:?} is no moment like 2026-01-31T12:00:00Z", self.created),
            ));
        }
        if self.signatures.len() > limits::SIGNATURES {
            return Err(Error::invalid(what, format!("more than {} signatures", limits::SIGNATURES)));
        }
        let mut blobs = vec![Content::bytes(Bytes::from_static(EMPTY))];
        let mut layers = Vec::new();
        for layer in &self.layers {
            let content = &layer.content;
            let mut descriptor =
                Descriptor::new(media_type::FLOE_LAYER_INDEX, *content.digest(), content.size());
            descriptor.annotations = [
                (LAYER.into(), layer.layer.to_string()),
                (DIFF_ID.into(), layer.diff_id.to_string()),
                (INDEX.into(), layer.index.to_string()),
            ]
            .into();
            layers.push(descriptor);
            blobs.push(content.clone());
        }
        let profile = self.profile.iter().map(|bytes| (media_type::FLOE_PROFILE, bytes));
        let signatures = self.signatures.iter().map(|bytes| (media_type::FLOE_SIGNATURE, bytes));
        for (kind, bytes) in profile.chain(signatures) {
            layers.push(Descriptor::of(kind, bytes));
            blobs.push(Content::bytes(bytes.clone()));
        }
        let mut subject = self.subject.clone();
        (subject.annotations, subject.platform, subject.artifact_type) = (BTreeMap::new(), None, None);
        let parsed = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::MANIFEST.into()),
            artifact_type: Some(media_type::FLOE_INDEX.into()),
            config: Descriptor::of(media_type::EMPTY, EMPTY),
            layers,
            subject: Some(subject),
            annotations: [(CREATED.into(), self.created.clone())].into(),
        };
        let bytes = serde_json::to_vec(&parsed).map_err(|error| Error::invalid(&what, error.to_string()))?;
        let manifest = Manifest::verify(bytes.into(), None, Some(media_type::MANIFEST), &what)?;
        Ok((manifest, blobs))
    }

    /// Whether an artifact that is there already holds the same.
    pub(crate) fn is(&self, there: &IndexArtifact) -> bool {
        let layers = self
            .layers
            .iter()
            .map(|layer| (layer.layer, layer.diff_id, layer.index, *layer.content.digest()));
        let theirs =
            there.layers.iter().map(|layer| (layer.layer, layer.diff_id, layer.index, layer.blob.digest));
        layers.eq(theirs)
            && self.profile.as_deref().map(Digest::of) == there.profile.as_ref().map(|profile| profile.digest)
            && self
                .signatures
                .iter()
                .map(|bytes| Digest::of(bytes))
                .eq(there.signatures.iter().map(|one| one.digest))
    }
}

impl IndexArtifact {
    /// Reads an artifact's manifest; `subject` is the image it must be about.
    pub(crate) fn parse(manifest: &Manifest, subject: &Digest) -> Result<Self, Error> {
        let what = format!("index artifact {}", manifest.digest);
        let bad = |why: String| Error::invalid(&what, why);
        let parsed = manifest.image(&what)?;
        if parsed.artifact_type.as_deref() != Some(media_type::FLOE_INDEX) {
            return Err(bad(format!("its type is {:?}", parsed.artifact_type.unwrap_or_default())));
        }
        if parsed.subject.as_ref().map(|of| &of.digest) != Some(subject) {
            return Err(bad(format!("it is not about {subject}")));
        }
        let created =
            parsed.annotations.get(CREATED).filter(|text| is_moment(text)).cloned().unwrap_or_default();
        let mut artifact = Self {
            digest: manifest.digest,
            created,
            layers: Vec::new(),
            profile: None,
            signatures: Vec::new(),
        };
        for blob in parsed.layers {
            match &*blob.media_type {
                media_type::FLOE_LAYER_INDEX => {
                    let get = |key: &str| blob.annotations.get(key).map(String::as_str).unwrap_or_default();
                    let digest =
                        |key| get(key).parse::<Digest>().map_err(|error| bad(format!("{key}: {error}")));
                    let index = get(INDEX).parse().map_err(|error| bad(format!("{INDEX}: {error}")))?;
                    let (layer, diff_id) = (digest(LAYER)?, DiffId::new(digest(DIFF_ID)?));
                    artifact.layers.push(LayerIndexBlob { layer, diff_id, index, blob });
                }
                media_type::FLOE_PROFILE if artifact.profile.is_none() => artifact.profile = Some(blob),
                media_type::FLOE_PROFILE => return Err(bad("it has two profiles".into())),
                media_type::FLOE_SIGNATURE => artifact.signatures.push(blob),
                _ => {} // room for what later versions add
            }
        }
        if artifact.layers.len() > format::limits::LAYERS || artifact.signatures.len() > limits::SIGNATURES {
            return Err(bad("it has too many layers or signatures".into()));
        }
        Ok(artifact)
    }
}

/// Puts candidates in the order in which they are tried.
pub(crate) fn sort(candidates: &mut [IndexArtifact]) {
    candidates.sort_by(|a, b| {
        let profile = b.profile.is_some().cmp(&a.profile.is_some());
        profile.then_with(|| b.created.cmp(&a.created)).then_with(|| a.digest.cmp(&b.digest))
    });
}

/// Chooses from a list whose manifests to fetch: those that are of a type, which whoever asks has looked at, and then the
/// newest, in the same order for all.
pub(crate) fn shortlist(mut listed: Vec<Descriptor>) -> Vec<Descriptor> {
    let created = |entry: &Descriptor| entry.annotations.get(CREATED).filter(|text| is_moment(text)).cloned();
    let untyped = |entry: &Descriptor| entry.artifact_type.is_none();
    let rank = |entry: &Descriptor| (untyped(entry), Reverse(created(entry)), entry.digest);
    listed.sort_by_cached_key(rank);
    let mut seen = HashSet::new();
    listed.retain(|entry| seen.insert(entry.digest));
    listed.truncate(limits::CANDIDATES);
    listed
}

/// `2026-01-31T12:00:00Z`: the one form whose order as text is the order in time.
fn is_moment(text: &str) -> bool {
    text.len() == 20
        && text
            .bytes()
            .zip(b"dddd-dd-ddTdd:dd:ddZ")
            .all(|(c, &form)| if form == b'd' { c.is_ascii_digit() } else { c == form })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(created: &str, profile: Option<&'static [u8]>) -> NewArtifact {
        let layer = |n: u8| NewLayerIndex {
            layer: Digest::of(&[n]),
            diff_id: DiffId::new(Digest::of(&[n, n])),
            index: IndexId::from_bytes([n; 32]),
            content: Content::bytes(Bytes::from(vec![n; 10])),
        };
        NewArtifact {
            subject: Descriptor::of(media_type::MANIFEST, b"image"),
            layers: vec![layer(1), layer(2)],
            profile: profile.map(Bytes::from_static),
            signatures: vec![Bytes::from_static(b"sig")],
            created: created.into(),
        }
    }

    const T: &str = "2026-01-31T12:00:00Z";

    #[test]
    fn what_is_built_is_read_back() {
        let new = sample(T, Some(b"{}"));
        let (manifest, blobs) = new.build().unwrap();
        assert_eq!(blobs.len(), 5);
        let read = IndexArtifact::parse(&manifest, &new.subject.digest).unwrap();
        assert!(new.is(&read));
        assert_eq!((read.layers[1].index, &*read.created), (IndexId::from_bytes([2; 32]), T));
        assert!(!sample(T, None).is(&read), "another profile");
        assert!(sample("2027-01-31T12:00:00Z", Some(b"{}")).is(&read), "the moment is not content");
        assert_eq!(manifest.digest, new.build().unwrap().0.digest, "equal content, equal bytes");
        assert!(IndexArtifact::parse(&manifest, &Digest::of(b"other")).is_err());
        assert!(sample("yesterday", None).build().is_err());
    }

    #[test]
    fn every_node_tries_candidates_in_the_same_order() {
        let read = |created: &str, profile| {
            let new = sample(created, profile);
            IndexArtifact::parse(&new.build().unwrap().0, &new.subject.digest).unwrap()
        };
        let newest = read("2026-03-01T00:00:00Z", None);
        let profiled = read("2026-01-01T00:00:00Z", Some(b"p"));
        let older = read("2026-02-01T00:00:00Z", None);
        let (mut low, mut high) = (older.clone(), older.clone());
        (low.digest, high.digest) = (Digest::from_bytes([0; 32]), Digest::from_bytes([255; 32]));
        let mut candidates = vec![high.clone(), older.clone(), newest.clone(), profiled.clone(), low.clone()];
        sort(&mut candidates);
        assert_eq!(candidates, [profiled, newest, low, older, high]);
    }

    #[test]
    fn what_has_no_type_comes_behind_what_has_one() {
        let entry = |n: u8, kind: Option<&str>, created: &str| {
            let mut entry = Descriptor::of(media_type::MANIFEST, &[n]);
            entry.artifact_type = kind.map(Into::into);
            entry.annotations = [(CREATED.into(), created.into())].into();
            entry
        };
        let ours = [1, 2].map(|n| entry(n, Some(media_type::FLOE_INDEX), &format!("202{n}-01-01T00:00:00Z")));
        let untyped = (10..40).map(|n| entry(n, None, T));
        let listed: Vec<Descriptor> = untyped.chain(ours.clone()).collect();
        let chosen = shortlist(listed);
        assert_eq!(chosen.len(), limits::CANDIDATES);
        assert_eq!(chosen[..2], [ours[1].clone(), ours[0].clone()]);
    }

    #[test]
    fn hostile_artifacts_are_refused_and_never_panic() {
        let new = sample(T, Some(b"{}"));
        let (manifest, ..) = new.build().unwrap();
        let text = String::from_utf8(manifest.bytes.to_vec()).unwrap();
        for (from, to) in [
            ("dev.floe.layer\"", "dev.floe.layers\""),
            ("blake3:0101", "blake3:01"),
            ("vnd.floe.index.v1", "vnd.floe.index.v2"),
            ("vnd.floe.signature.v1", "vnd.floe.profile.v1+json"),
        ] {
            let changed = text.replace(from, to);
            assert_ne!(changed, text);
            let changed = Manifest::verify(changed.into(), None, None, "x").unwrap();
            assert!(IndexArtifact::parse(&changed, &new.subject.digest).is_err(), "{from}");
        }
        for at in 0..text.len() {
            let mut bytes = text.clone().into_bytes();
            bytes[at] ^= 0x15;
            if let Ok(manifest) = Manifest::verify(bytes.into(), None, None, "x") {
                let _ = IndexArtifact::parse(&manifest, &new.subject.digest);
            }
        }
    }

    #[test]
    fn moments() {
        assert!(is_moment(T));
        for bad in
            ["", "2026-01-31", "2026-01-31T12:00:00+01:00", "2026-01-31t12:00:00Z", "x026-01-31T12:00:00Z"]
        {
            assert!(!is_moment(bad), "{bad}");
        }
    }
}
