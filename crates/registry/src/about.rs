//! What refers to an image: asked for once, and told apart here.
//!
//! A list of referrers says of each its type, as its manifest has it: an index of Floe's, a SOCI index, an image. Only Floe's
//! are fetched at once; of the others, and of those of which a registry says no type, whoever wants one asks.

use format::Digest;
use format::soci::INDEX_V1;

use crate::artifact::{self, IndexArtifact};
use crate::error::Error;
use crate::manifest::{Descriptor, Image, Manifest, check_image, media_type};
use crate::referrers::referrer;
use crate::source::Source;
use crate::{Priority, convert, limits};

/// Types under which images of Nydus are listed that refer to their originals. nydusify gives its own none, so the type is
/// that of the config, as of any image.
const NYDUS: [&str; 3] = [media_type::CONFIG, media_type::NYDUS_IMAGE, media_type::NYDUS_CONFIG];

/// What refers to an image's manifest. Nothing in it has been believed yet.
#[derive(Debug)]
pub struct About {
    /// The manifest.
    pub image: Digest,
    /// Floe's index artifacts, best first.
    pub indexes: Vec<IndexArtifact>,
    /// Others, which have not been fetched.
    listed: Vec<Descriptor>,
    /// Those of which only they themselves say what they are, and that.
    untold: Vec<(String, Manifest)>,
}

impl About {
    /// Returns it of an image that nothing refers to.
    pub fn nothing(image: Digest) -> Self {
        Self { image, indexes: Vec::new(), listed: Vec::new(), untold: Vec::new() }
    }
}

impl Source {
    /// Returns what refers to an image manifest.
    pub async fn about(&self, image: &Digest) -> Result<About, Error> {
        let kinds: Vec<&str> = [media_type::FLOE_INDEX, INDEX_V1].into_iter().chain(NYDUS).collect();
        self.told_apart(image, self.referrers(image, &kinds).await?).await
    }

    /// Returns the index artifacts of an image manifest, best first. Those that cannot be read are left out.
    pub async fn index_artifacts(&self, image: &Digest) -> Result<Vec<IndexArtifact>, Error> {
        let listed = self.referrers(image, &[media_type::FLOE_INDEX]).await?;
        Ok(self.told_apart(image, listed).await?.indexes)
    }

    /// Returns the images of Nydus among them, as many as are tried. Those that cannot be read are left out.
    pub async fn nydus_about(&self, about: &About) -> Result<Vec<Image>, Error> {
        let mut images = Vec::new();
        for found in self.manifests_of(about, &NYDUS).await? {
            if images.len() == limits::NYDUS_IMAGES {
                break;
            }
            match self.nydus(&found, &about.image).await {
                Ok(image) => images.extend(image),
                Err(error) if error.is_temporary() => return Err(error),
                Err(error) => tracing::warn!(manifest = %found.digest, %error, "an image of Nydus skipped"),
            }
        }
        Ok(images)
    }

    /// Reads an image that is one of Nydus and refers to this one; any other is none.
    async fn nydus(&self, manifest: &Manifest, original: &Digest) -> Result<Option<Image>, Error> {
        let what = format!("image {} of Nydus", manifest.digest);
        if manifest.is_index() {
            return Ok(None);
        }
        let parsed = manifest.image(&what)?;
        let refers = parsed.subject.as_ref().is_some_and(|subject| subject.digest == *original);
        if !refers || !parsed.layers.last().is_some_and(|layer| convert::is_top(&layer.annotations)) {
            return Ok(None);
        }
        check_image(&parsed, &what)?;
        let config = self.read_blob(&parsed.config, format::limits::CONFIG, Priority::Demand).await?;
        Image::new(Vec::new(), manifest.clone(), parsed, config, &what).map(Some)
    }

    /// Returns the manifests of these types among what refers to an image, as many as are looked at; those that are not there are
    /// left out.
    pub(crate) async fn manifests_of(&self, about: &About, kinds: &[&str]) -> Result<Vec<Manifest>, Error> {
        let is_one =
            |entry: &&Descriptor| entry.artifact_type.as_deref().is_some_and(|own| kinds.contains(&own));
        let mut found = self.fetched(about.listed.iter().filter(is_one).cloned().collect()).await?;
        let untold = about.untold.iter().filter(|(kind, _)| kinds.contains(&kind.as_str()));
        found.extend(untold.map(|(_, manifest)| manifest.clone()));
        Ok(found)
    }

    async fn told_apart(&self, image: &Digest, listed: Vec<Descriptor>) -> Result<About, Error> {
        let is_ours = |entry: &Descriptor| {
            entry.artifact_type.as_deref().is_none_or(|kind| kind == media_type::FLOE_INDEX)
        };
        let (ours, listed) = listed.into_iter().partition(is_ours);
        let (mut indexes, mut untold) = (Vec::new(), Vec::new());
        for found in self.fetched(ours).await? {
            // One that cannot be read is told of where it is parsed as an index.
            let own = referrer(&found, "what refers to an image").ok().flatten();
            match own.and_then(|(_, entry)| entry.artifact_type) {
                Some(kind) if kind != media_type::FLOE_INDEX => untold.push((kind, found)),
                _ => match IndexArtifact::parse(&found, image) {
                    Ok(index) => indexes.push(index),
                    Err(error) => tracing::warn!(%error, "index artifact skipped"),
                },
            }
        }
        artifact::sort(&mut indexes);
        Ok(About { image: *image, indexes, listed, untold })
    }

    /// Fetches the manifests of a list, as many as are looked at; those that are not there are left out.
    async fn fetched(&self, listed: Vec<Descriptor>) -> Result<Vec<Manifest>, Error> {
        let mut found = Vec::new();
        for entry in artifact::shortlist(listed) {
            match self.manifest(&entry).await {
                Ok(manifest) => found.push(manifest),
                Err(error) if error.is_temporary() => return Err(error),
                Err(error) => tracing::warn!(artifact = %entry.digest, %error, "a referrer is skipped"),
            }
        }
        Ok(found)
    }

    /// Returns what refers to a manifest and is of one of these types, or of none that anybody says.
    async fn referrers(&self, image: &Digest, kinds: &[&str]) -> Result<Vec<Descriptor>, Error> {
        if let Some(repository) = self.repository() {
            return repository.referrers_of(image, kinds).await;
        }
        let Some(layout) = self.layout() else { return Ok(Vec::new()) }; // it is in the one or the other
        let fits = |entry: &Descriptor| entry.artifact_type.as_deref().is_none_or(|own| kinds.contains(&own));
        let listed = layout.referrers(image).await?.into_iter().map(|(entry, _)| entry);
        Ok(listed.filter(fits).collect())
    }
}
