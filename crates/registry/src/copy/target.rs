//! Where a copy goes: a registry, an OCI layout, an OCI archive.

use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use format::Digest;

use super::plan::Plan;
use crate::archive::write::Writer;
use crate::blob::RangeReader;
use crate::budget::Priority;
use crate::client::{Client, Pick, Repository};
use crate::content::Content;
use crate::error::Error;
use crate::hosts::Capability;
use crate::layout::{self, Layout};
use crate::manifest::{Descriptor, LayerBlob, Manifest};
use crate::names::{LayoutName, Tag};
use crate::push::Pushed;
use crate::reference::Reference;
use crate::referrers::referrer;
use crate::source::Source;
use crate::{limits, scratch};

/// The destination of a copy.
#[derive(Debug)]
pub(crate) enum Target {
    Registry(Repository, Option<Tag>),
    Layout(Layout, Option<LayoutName>),
    /// Written from its beginning to its end, one thing after the other.
    Archive(Arc<Writer>, Option<LayoutName>),
}

impl Target {
    /// Makes a destination ready; nothing is named there.
    pub(crate) async fn open(client: &Client, to: &Reference) -> Result<Self, Error> {
        Ok(match to {
            Reference::Registry(name) => {
                Self::Registry(client.repository(name.host(), name.repository()), name.tag().cloned())
            }
            Reference::Layout(place) => {
                Self::Layout(Layout::create_dir(place.path()).await?, place.name().cloned())
            }
            Reference::Archive(place) => {
                let path = Some(place.path().to_owned()).filter(|_| !place.is_standard());
                let writer =
                    layout::blocking("creating an OCI archive", move || Writer::create(path)).await?;
                Self::Archive(Arc::new(writer), place.name().cloned())
            }
            Reference::Docker(_) | Reference::Dir(_) => {
                let why =
                    "it is only read; write oci-archive:FILE or oci:DIR, which docker load and skopeo read"
                        .into();
                return Err(Error::Unsupported { what: to.to_string(), why });
            }
        })
    }

    /// Returns how many blobs it takes at once.
    pub(crate) fn takes_at_once(&self) -> usize {
        match self {
            Self::Registry(..) | Self::Layout(..) => limits::COPY_BLOBS,
            Self::Archive(..) => 1,
        }
    }

    /// Says whether it is on the host of a source.
    pub(crate) fn shares_host_with(&self, source: &Source) -> bool {
        match (self, source.repository()) {
            (Self::Registry(to, _), Some(from)) => to.host == from.host,
            _ => false,
        }
    }

    /// Says whether a blob is there, as long as it should be.
    pub(crate) async fn has(&self, blob: &LayerBlob) -> Result<bool, Error> {
        match self {
            Self::Registry(repository, _) => repository.has_blob(&blob.digest, blob.size).await,
            Self::Layout(layout, _) => layout.has(&blob.digest, blob.size).await,
            Self::Archive(..) => Ok(false),
        }
    }

    /// Reads a layer that was stored.
    pub(crate) fn read(&self, layer: &LayerBlob) -> Result<RangeReader, Error> {
        self.read_range(layer, 0..layer.size)
    }

    /// Reads a part of a layer that was stored.
    pub(crate) fn read_range(&self, layer: &LayerBlob, range: Range<u64>) -> Result<RangeReader, Error> {
        let LayerBlob { digest, size, .. } = layer;
        match self {
            Self::Registry(repository, _) => {
                Ok(repository.read_range(digest, *size, range, Priority::Demand))
            }
            Self::Layout(layout, _) => Ok(layout.read_range(digest, *size, range)),
            Self::Archive(..) => Err(Error::Unsupported {
                what: format!("layer {digest}"),
                why: "an archive that is being written cannot be read".into(),
            }),
        }
    }

    /// Returns where there is room for what is on its way there.
    pub(crate) fn scratch(&self) -> PathBuf {
        match self {
            Self::Registry(..) => scratch::dir(),
            Self::Layout(layout, _) => layout.blobs(),
            Self::Archive(writer, _) => writer.dir().unwrap_or_else(scratch::dir),
        }
    }

    /// Stores a blob.
    pub(crate) async fn put(&self, content: &Content, source: &Source) -> Result<Pushed, Error> {
        match self {
            Self::Registry(to, _) => {
                let near = source.repository().filter(|from| from.host == to.host && from.name != to.name);
                to.push_blob(content, near.map(Repository::name)).await
            }
            Self::Layout(layout, _) => layout.store(content).await,
            Self::Archive(writer, _) => {
                write_blob(writer, content).await?;
                Ok(Pushed::Sent)
            }
        }
    }

    /// Returns what a tag beside the image's leads to, as the registry itself has it.
    pub(crate) async fn beside(&self, tag: &Tag) -> Result<Option<Manifest>, Error> {
        let found = match self {
            Self::Registry(repository, _) => {
                repository.manifest_of(&Pick::Tag(tag.clone()), Capability::Push).await
            }
            Self::Layout(layout, _) => match layout.find(Some(&layout_name(tag)?)).await {
                Ok(entry) => layout.manifest(&entry.digest, Some(&entry.media_type)).await,
                Err(error) => Err(error),
            },
            Self::Archive(..) => return Ok(None),
        };
        match found {
            Err(Error::NotFound { .. }) => Ok(None),
            found => found.map(Some),
        }
    }

    /// Stores an artifact of a type under a tag beside the image's, and its config. Its layers are there.
    pub(crate) async fn put_beside(
        &self,
        tag: &Tag,
        kind: &str,
        manifest: &Manifest,
        config: &Content,
    ) -> Result<(), Error> {
        match self {
            Self::Registry(repository, _) => {
                repository.push_blob(config, None).await?;
                let what = format!("tag {repository}:{tag}");
                repository.put_manifest(manifest, &Pick::Tag(tag.clone()), &what).await.map(drop)
            }
            Self::Layout(layout, _) => {
                layout.put_blob(config).await?;
                let entry = Descriptor { artifact_type: Some(kind.into()), ..manifest.descriptor() };
                layout.put_manifest(manifest, entry, Some(&layout_name(tag)?)).await
            }
            Self::Archive(..) => Err(Error::Unsupported {
                what: format!("tag {tag}"),
                why: "an archive is written once".into(),
            }),
        }
    }

    /// Removes a manifest that no tag leads to.
    pub(crate) async fn remove(&self, manifest: &Digest) -> Result<(), Error> {
        match self {
            Self::Registry(repository, _) => repository.delete_manifest(&Pick::Digest(*manifest)).await,
            Self::Layout(layout, _) => layout.remove_blob(manifest).await,
            Self::Archive(..) => Ok(()),
        }
    }

    /// Removes a tag beside the image's, and the manifest and the config that it leads to.
    pub(crate) async fn remove_beside(
        &self,
        tag: &Tag,
        manifest: &Digest,
        config: &Digest,
    ) -> Result<(), Error> {
        match self {
            Self::Registry(repository, _) => {
                // Some remove no manifest that a tag leads to, and some no tags: these go with it.
                let untagged = repository.delete_manifest(&Pick::Tag(tag.clone())).await;
                let removed = self.remove(manifest).await;
                untagged.or(removed)
            }
            Self::Layout(layout, _) => {
                layout.remove_name(&layout_name(tag)?).await?;
                layout.remove_blob(manifest).await?;
                layout.remove_blob(config).await
            }
            Self::Archive(..) => Ok(()),
        }
    }

    /// Stores the manifests, then names them, the image last.
    pub(crate) async fn name(&self, plan: &Plan) -> Result<(), Error> {
        match self {
            Self::Registry(repository, tag) => name_in_registry(repository, tag.as_ref(), plan).await,
            Self::Layout(layout, name) => {
                for manifest in &plan.manifests {
                    layout.put_blob(&Content::bytes(manifest.bytes.clone())).await?;
                    if is_referrer(manifest)? && manifest.digest != plan.root {
                        layout.put_referrer(manifest).await?;
                    }
                }
                for (tag, digest) in &plan.tags {
                    let (manifest, name) = (plan.manifest(digest)?, layout_name(tag)?);
                    layout.put_manifest(manifest, manifest.descriptor(), Some(&name)).await?;
                }
                let root = plan.root_manifest()?;
                layout.put_manifest(root, root.descriptor(), name.as_ref()).await
            }
            Self::Archive(writer, name) => {
                let mut entries = Vec::new();
                for manifest in &plan.manifests {
                    write_blob(writer, &Content::bytes(manifest.bytes.clone())).await?;
                    if manifest.digest != plan.root {
                        entries.extend(referrer(manifest, "")?.map(|(_, entry)| (entry, None)));
                    }
                }
                for (tag, digest) in &plan.tags {
                    entries.push((plan.manifest(digest)?.descriptor(), Some(layout_name(tag)?)));
                }
                entries.push((plan.root_manifest()?.descriptor(), name.clone()));
                let writer = writer.clone();
                layout::blocking("completing an OCI archive", move || writer.finish(entries)).await
            }
        }
    }
}

/// Stores manifests, then moves tags that lead elsewhere.
async fn name_in_registry(repository: &Repository, tag: Option<&Tag>, plan: &Plan) -> Result<(), Error> {
    for manifest in &plan.manifests {
        let pick = Pick::Digest(manifest.digest);
        // What refers to another is always sent: an earlier copy may have ended before it was in the list.
        if is_referrer(manifest)? || !leads_to(repository, &pick, manifest).await? {
            repository.push_manifest(manifest, &pick).await?;
        }
    }
    let image = tag.map(|tag| (tag, &plan.root));
    for (tag, digest) in plan.tags.iter().map(|(tag, digest)| (tag, digest)).chain(image) {
        let (pick, manifest) = (Pick::Tag(tag.clone()), plan.manifest(digest)?);
        // A tag that may not be moved can be copied to all the same, if it is there.
        if !leads_to(repository, &pick, manifest).await? {
            repository.put_manifest(manifest, &pick, &format!("tag {repository}:{tag}")).await?;
        }
    }
    Ok(())
}

/// Says whether the registry itself has a manifest by a name.
async fn leads_to(repository: &Repository, pick: &Pick, manifest: &Manifest) -> Result<bool, Error> {
    Ok(repository.has(pick).await?.is_some_and(|digest| digest == manifest.digest))
}

fn is_referrer(manifest: &Manifest) -> Result<bool, Error> {
    Ok(referrer(manifest, &format!("manifest {}", manifest.digest))?.is_some())
}

fn layout_name(tag: &Tag) -> Result<LayoutName, Error> {
    tag.as_str().parse().map_err(|error| Error::invalid(format!("tag {tag}"), format!("{error}")))
}

/// Writes a blob that is not in an archive yet.
async fn write_blob(writer: &Arc<Writer>, content: &Content) -> Result<(), Error> {
    let (own, blob, size) = (writer.clone(), *content.digest(), content.size());
    if !layout::blocking("writing an OCI archive", move || own.begin(&blob, size)).await? {
        return Ok(());
    }
    let mut pieces = content.pieces();
    while let Some(piece) = pieces.next(limits::PIECE).await? {
        let own = writer.clone();
        layout::blocking("writing an OCI archive", move || own.write(&piece)).await?;
    }
    pieces.verify()?;
    let own = writer.clone();
    layout::blocking("writing an OCI archive", move || own.end(size)).await
}
