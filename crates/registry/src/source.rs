//! One interface to where images are: a registry, an OCI layout, an archive, a directory.
//!
//! What it returns as manifest or config has its digest. What it returns as ranges of blobs has not been
//! checked, and what it returns as index artifacts are claims.

use std::ops::Range;

use bytes::Bytes;
use format::stargz::{TABLE_OF, TABLES_TAG};
use format::{Digest, limits as sizes};

use crate::artifact::NewArtifact;
use crate::blob::RangeReader;
use crate::budget::Priority;
use crate::client::{Client, Pick, Repository};
use crate::error::Error;
use crate::layout::Layout;
use crate::limits;
use crate::manifest::{self, Descriptor, Image, ImageManifest, Manifest, Platform};
use crate::names::{LayoutName, Tag};
use crate::reference::Reference;
use crate::urgency::Urgency;

/// Where one image is. Clones are cheap.
#[derive(Debug, Clone)]
pub struct Source(Place);

#[derive(Debug, Clone)]
enum Place {
    /// The tag stays known where a digest decides.
    Registry(Repository, Pick, Option<Tag>),
    Layout(Layout, Option<LayoutName>),
}

impl Client {
    /// Returns where a reference leads. For a registry nothing is sent; a layout is opened.
    pub async fn source(&self, reference: &Reference) -> Result<Source, Error> {
        Ok(Source(match reference {
            Reference::Registry(image) => {
                let repository = self.repository(image.host(), image.repository());
                Place::Registry(repository, Pick::of(image), image.tag().cloned())
            }
            Reference::Layout(place) => {
                Place::Layout(Layout::open_dir(place.path()).await?, place.name().cloned())
            }
            Reference::Archive(place) => {
                Place::Layout(Layout::open_archive(place).await?, place.name().cloned())
            }
            Reference::Docker(place) => {
                Place::Layout(Layout::open_docker(place).await?, place.name().cloned())
            }
            Reference::Dir(path) => Place::Layout(Layout::open_flat(path).await?, None),
        }))
    }
}

impl Source {
    /// Returns the digest that the reference leads to now: of an image index or an image manifest.
    pub async fn resolve(&self) -> Result<Digest, Error> {
        match &self.0 {
            Place::Registry(_, Pick::Digest(digest), _) => Ok(*digest),
            Place::Registry(repository, pick, _) => Ok(repository.resolve(pick).await?.digest),
            Place::Layout(layout, name) => Ok(layout.find(name.as_ref()).await?.digest),
        }
    }

    /// Returns how many answers the registry and its mirrors have given since the start: whether it grows tells a
    /// slow registry from one that is out of reach.
    pub fn answers(&self) -> u64 {
        match &self.0 {
            Place::Registry(repository, ..) => repository.answers(),
            Place::Layout(..) => 0,
        }
    }

    /// Returns the image for a platform: manifest, config and layers.
    pub async fn image(&self, platform: &Platform) -> Result<Image, Error> {
        self.image_seen(platform, |_| ()).await
    }

    /// Returns the same; `seen` is told the manifest's digest before the config is asked for.
    pub async fn image_seen(&self, platform: &Platform, seen: impl FnOnce(&Digest)) -> Result<Image, Error> {
        let what = self.to_string();
        let mut manifest = self.root().await?;
        let mut indexes = Vec::new();
        for _ in 0..limits::INDEX_DEPTH {
            if !manifest.is_index() {
                let parsed = manifest.image(&what)?;
                manifest::check_image(&parsed, &what)?;
                seen(&manifest.digest);
                let config = self.read_blob(&parsed.config, sizes::CONFIG, Priority::Demand).await?;
                return Image::new(indexes, manifest, parsed, config, &what);
            }
            let index = manifest.index(&what)?;
            let chosen = match index.choose(platform) {
                Some(chosen) => chosen,
                // A list of one without a platform, as buildah writes: its config will tell.
                None => match &index.descriptors().collect::<Vec<_>>()[..] {
                    [only] if only.platform.is_none() && manifest::is_manifest(&only.media_type) => {
                        only.clone()
                    }
                    _ => {
                        return Err(Error::not_found(format!(
                            "{what} for {platform} (there is: {})",
                            index.platforms()
                        )));
                    }
                },
            };
            let outer = std::mem::replace(&mut manifest, self.manifest(&chosen).await?);
            indexes.push(outer);
        }
        Err(Error::invalid(what, "image indexes are nested too deep"))
    }

    /// Returns the manifest that the reference leads to: of an image index or an image.
    pub async fn root(&self) -> Result<Manifest, Error> {
        match &self.0 {
            Place::Registry(repository, pick, _) => repository.manifest(pick).await,
            Place::Layout(layout, name) => {
                let entry = layout.find(name.as_ref()).await?;
                layout.manifest(&entry.digest, Some(&entry.media_type)).await
            }
        }
    }

    /// Returns a manifest by descriptor, checked.
    pub async fn manifest(&self, descriptor: &Descriptor) -> Result<Manifest, Error> {
        let manifest = match &self.0 {
            Place::Registry(..) => self.manifest_at(&descriptor.digest).await?,
            Place::Layout(layout, _) => {
                layout.manifest(&descriptor.digest, Some(&descriptor.media_type)).await?
            }
        };
        match manifest.bytes.len() as u64 {
            size if size == descriptor.size => Ok(manifest),
            size => Err(Error::invalid(
                format!("manifest {}", descriptor.digest),
                format!("{size} bytes, not {}", descriptor.size),
            )),
        }
    }

    /// Returns a manifest by its digest alone, checked.
    pub(crate) async fn manifest_at(&self, digest: &Digest) -> Result<Manifest, Error> {
        match &self.0 {
            Place::Registry(repository, ..) => repository.manifest(&Pick::Digest(*digest)).await,
            Place::Layout(layout, _) => layout.manifest(digest, None).await,
        }
    }

    /// Returns what a tag beside the image leads to, if there is such a tag.
    pub(crate) async fn beside(&self, tag: &Tag) -> Result<Option<Manifest>, Error> {
        let found = match &self.0 {
            Place::Registry(repository, ..) => repository.manifest(&Pick::Tag(tag.clone())).await,
            Place::Layout(layout, _) => match tag.as_str().parse::<LayoutName>() {
                Ok(name) => match layout.find(Some(&name)).await {
                    Ok(entry) => layout.manifest(&entry.digest, Some(&entry.media_type)).await,
                    Err(error) => Err(error),
                },
                Err(_) => return Ok(None), // no name, and so nobody's
            },
        };
        match found {
            Ok(manifest) => Ok(Some(manifest)),
            Err(Error::NotFound { .. }) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Returns the tag beside the image's own under which tables of contents of its layers may be; nothing where it has no tag, or
    /// one that cannot be longer.
    pub fn tables_tag(&self) -> Option<Tag> {
        let name = match &self.0 {
            Place::Registry(_, _, tag) => tag.as_ref()?.as_str(),
            Place::Layout(_, name) => name.as_ref()?.as_str(),
        };
        format!("{name}{TABLES_TAG}").parse().ok()
    }

    /// Returns the tables of contents that are there, and the layers they are of; nothing where there is no such tag.
    pub async fn tables(&self) -> Result<Option<Vec<(Digest, Descriptor)>>, Error> {
        let Some(tag) = self.tables_tag() else { return Ok(None) };
        let Some(manifest) = self.beside(&tag).await? else { return Ok(None) };
        let image = manifest.image(&format!("image {tag} beside {self}"))?;
        Ok(Some(tables_in(image)))
    }

    /// Returns the registry and repository that it is in, if it is in one.
    pub(crate) fn repository(&self) -> Option<&Repository> {
        match &self.0 {
            Place::Registry(repository, ..) => Some(repository),
            Place::Layout(..) => None,
        }
    }

    /// Returns the layout that it is in, if it is in one.
    pub(crate) fn layout(&self) -> Option<&Layout> {
        match &self.0 {
            Place::Registry(..) => None,
            Place::Layout(layout, _) => Some(layout),
        }
    }

    /// Reads a range of a blob, unchecked. Nothing is sent before the first piece is asked for.
    pub fn read_range(
        &self,
        blob: &Digest,
        size: u64,
        range: Range<u64>,
        urgency: impl Into<Urgency>,
    ) -> RangeReader {
        match &self.0 {
            Place::Registry(repository, ..) => repository.read_range(blob, size, range, urgency),
            Place::Layout(layout, _) => layout.read_range(blob, size, range),
        }
    }

    /// Returns a small blob whole, checked.
    pub async fn read_blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
        priority: Priority,
    ) -> Result<Bytes, Error> {
        if descriptor.size > limit {
            let what = format!("blob {} of {self}", descriptor.digest);
            return Err(Error::TooLarge { what, size: descriptor.size, limit });
        }
        let range = self.read_range(&descriptor.digest, descriptor.size, 0..descriptor.size, priority);
        range.verified(&descriptor.digest, limit).await
    }

    /// Stores an index artifact beside its image; returns its digest. If the same is there already, under
    /// whatever date, nothing is written.
    pub async fn push_index_artifact(&self, new: &NewArtifact) -> Result<Digest, Error> {
        let there = self.index_artifacts(&new.subject.digest).await?;
        if let Some(same) = there.iter().find(|there| new.is(there)) {
            return Ok(same.digest);
        }
        let (manifest, blobs) = new.build()?;
        match &self.0 {
            Place::Registry(repository, ..) => {
                for blob in &blobs {
                    repository.push_blob(blob, None).await?;
                }
                repository.push_manifest(&manifest, &Pick::Digest(manifest.digest)).await?;
            }
            Place::Layout(layout, _) => {
                for blob in &blobs {
                    layout.put_blob(blob).await?;
                }
                layout.put_referrer(&manifest).await?;
            }
        }
        Ok(manifest.digest)
    }
}

/// Returns the tables of contents that an image has, and the layers they are of. It is of all platforms, so that there may be more
/// of them than an image has layers.
pub(crate) fn tables_in(image: ImageManifest) -> Vec<(Digest, Descriptor)> {
    let of = |table: Descriptor| Some((table.annotations.get(TABLE_OF)?.parse().ok()?, table));
    image.layers.into_iter().filter_map(of).collect()
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Place::Registry(repository, pick @ Pick::Tag(_), _) => write!(f, "{repository}:{pick}"),
            Place::Registry(repository, pick @ Pick::Digest(_), _) => write!(f, "{repository}@{pick}"),
            Place::Layout(layout, None) => layout.fmt(f),
            Place::Layout(layout, Some(name)) => write!(f, "{layout}:{name}"),
        }
    }
}
