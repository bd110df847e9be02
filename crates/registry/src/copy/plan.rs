//! What belongs to an image: which manifests and blobs there are to copy, in which order.
//!
//! The image's manifest or index, and below an index whatever it lists; what refers to any of these (OCI 1.1, or the
//! fallback list), such as Floe's indexes, signatures and attestations, what refers to that in turn, and so on; and what
//! cosign keeps under the tags `sha256-<hex>.sig`, `.att` and `.sbom`. Manifests are held in memory, within limits; of a
//! blob nothing is read.

use std::collections::HashMap;

use format::Digest;
use format::stargz::{TABLES_TAG, TOC_DIGEST};
use serde::Deserialize;

use super::Watch;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, Manifest, is_manifest};
use crate::names::Tag;
use crate::referrers::referrer;
use crate::source::Source;

/// All that is to be copied.
#[derive(Debug)]
pub(crate) struct Plan {
    /// In the order in which they can be stored: children before parents, what refers to a manifest after it.
    pub(crate) manifests: Vec<Manifest>,
    /// How many of these are the image's own.
    own: usize,
    /// Each once.
    pub(crate) blobs: Vec<Descriptor>,
    /// Tags beside the image, and what they lead to.
    pub(crate) tags: Vec<(Tag, Digest)>,
    /// The image's own manifest or index.
    pub(crate) root: Digest,
}

/// What the walk has seen so far.
struct Walk<'a> {
    source: &'a Source,
    watch: &'a dyn Watch,
    /// How long each is, and whether it is named as a manifest; some name a manifest as a blob.
    seen: HashMap<(Digest, bool), u64>,
    held: u64,
    manifests: Vec<Manifest>,
    blobs: Vec<Descriptor>,
}

/// A step of a walk through an index, its children first.
enum Step {
    Enter(Descriptor, u32),
    Leave(Manifest),
}

/// Returns what somebody else has written, for a line on a terminal.
fn told(text: &str) -> String {
    format!("{:?}", text.chars().take(256).collect::<String>())
}

impl Plan {
    /// Finds out what belongs to an image.
    pub(crate) async fn of(source: &Source, watch: &dyn Watch) -> Result<Self, Error> {
        let (mut walk, root) = Walk::own(source, watch).await?;
        let own = walk.manifests.len();
        let tags = walk.beside(own).await?;
        walk.tables(own).await?;
        Ok(Self { manifests: walk.manifests, own, blobs: walk.blobs, tags, root })
    }

    /// Finds out what an image consists of, without what is about it.
    pub(crate) async fn own_of(source: &Source, watch: &dyn Watch) -> Result<Self, Error> {
        let (walk, root) = Walk::own(source, watch).await?;
        let own = walk.manifests.len();
        Ok(Self { manifests: walk.manifests, own, blobs: walk.blobs, tags: Vec::new(), root })
    }

    /// Returns manifests that were made, children first, whose blobs are there.
    pub(crate) fn made(manifests: Vec<Manifest>, root: Digest) -> Self {
        let own = manifests.len();
        Self { manifests, own, blobs: Vec::new(), tags: Vec::new(), root }
    }

    /// Returns how many of the manifests are the image's own.
    pub(crate) fn own(&self) -> usize {
        self.own
    }

    pub(crate) fn manifest(&self, digest: &Digest) -> Result<&Manifest, Error> {
        let found = self.manifests.iter().find(|manifest| manifest.digest == *digest);
        found.ok_or_else(|| Error::not_found(format!("manifest {digest}"))) // the walk has kept each
    }

    pub(crate) fn root_manifest(&self) -> Result<&Manifest, Error> {
        self.manifest(&self.root)
    }
}

impl<'a> Walk<'a> {
    /// Takes in an image itself.
    async fn own(source: &'a Source, watch: &'a dyn Watch) -> Result<(Self, Digest), Error> {
        let mut walk =
            Self { source, watch, seen: HashMap::new(), held: 0, manifests: Vec::new(), blobs: Vec::new() };
        let root = source.root().await?;
        let digest = root.digest;
        walk.tree(root).await?;
        Ok((walk, digest))
    }

    /// Takes in a manifest, and before it all below it.
    async fn tree(&mut self, root: Manifest) -> Result<(), Error> {
        let mut steps = Vec::new();
        if self.enter(&root.descriptor(), true)? {
            self.below(root, 0, &mut steps)?;
        }
        while let Some(step) = steps.pop() {
            match step {
                Step::Leave(manifest) => self.manifests.push(manifest),
                Step::Enter(descriptor, depth) => {
                    if self.enter(&descriptor, true)? {
                        let manifest = self.source.manifest(&descriptor).await?;
                        self.below(manifest, depth, &mut steps)?;
                    }
                }
            }
        }
        Ok(())
    }

    /// Says whether something has not been seen before, as a manifest or as a blob; whoever names it again must give it
    /// the same length.
    fn enter(&mut self, descriptor: &Descriptor, manifest: bool) -> Result<bool, Error> {
        match self.seen.insert((descriptor.digest, manifest), descriptor.size) {
            None => Ok(true),
            Some(size) if size == descriptor.size => Ok(false),
            Some(size) => Err(Error::invalid(
                format!("{} of {}", descriptor.digest, self.source),
                format!("it is named with {size} bytes and with {}", descriptor.size),
            )),
        }
    }

    /// Takes in what a manifest names: blobs at once, manifests as steps to come.
    fn below(&mut self, manifest: Manifest, depth: u32, steps: &mut Vec<Step>) -> Result<(), Error> {
        let what = format!("manifest {} of {}", manifest.digest, self.source);
        self.held += manifest.bytes.len() as u64;
        let count = self.manifests.len() + steps.len();
        if count >= limits::COPY_MANIFESTS || self.held > limits::COPY_BYTES {
            let why = format!(
                "more than {} manifests, or {} bytes of them, belong to the image",
                limits::COPY_MANIFESTS,
                limits::COPY_BYTES
            );
            return Err(Error::invalid(self.source.to_string(), why));
        }
        let children = if manifest.is_index() {
            let index = manifest.index(&what)?;
            let read = |entry| {
                Descriptor::deserialize(entry).map_err(|error: serde_json::Error| Error::Unsupported {
                    what: what.clone(),
                    why: format!("it lists something that cannot be copied: {error}"),
                })
            };
            index.manifests.iter().map(read).collect::<Result<Vec<_>, _>>()?
        } else {
            let image = manifest.image(&what)?;
            std::iter::once(image.config).chain(image.layers).collect()
        };
        let (lists, own) = (manifest.is_index(), manifest.digest);
        steps.push(Step::Leave(manifest));
        for child in children.into_iter().rev() {
            if lists && is_manifest(&child.media_type) {
                if depth == limits::INDEX_DEPTH {
                    return Err(Error::invalid(what, "image indexes are nested too deep"));
                }
                steps.push(Step::Enter(child, depth + 1));
            } else {
                self.blob(child, &own)?;
            }
        }
        Ok(())
    }

    fn blob(&mut self, blob: Descriptor, of: &Digest) -> Result<(), Error> {
        let elsewhere = ["foreign", "nondistributable"].iter().any(|kind| blob.media_type.contains(kind));
        if elsewhere && !blob.urls.is_empty() {
            let (digest, url) = (blob.digest, told(&blob.urls[0]));
            self.watch.left_out(&format!("layer {digest} of {of} is kept outside of registries, at {url}"));
            return Ok(());
        }
        if blob.size > format::limits::LAYER {
            let (what, size) = (format!("blob {}", blob.digest), blob.size);
            return Err(Error::TooLarge { what, size, limit: format::limits::LAYER });
        }
        if self.enter(&blob, false)? {
            self.blobs.push(blob);
        }
        Ok(())
    }

    /// Takes in what is about the manifests so far, of which so many are the image's own, and about that in turn.
    async fn beside(&mut self, own: usize) -> Result<Vec<(Tag, Digest)>, Error> {
        let known = match self.source.layout() {
            Some(layout) => {
                let skipped = |manifest: &Digest, error: &Error| {
                    self.watch.left_out(&format!("manifest {manifest}, which cannot be read: {error}"));
                };
                let mut known = Vec::new();
                layout.each_referrer(|of, entry, _| known.push((of, entry)), skipped).await?;
                Some(known)
            }
            None => None,
        };
        let mut tags = Vec::new();
        let mut at = 0;
        while let Some(subject) = self.manifests.get(at).map(|manifest| manifest.digest) {
            let source = self.source;
            let listed = async {
                match (&known, source.repository()) {
                    (Some(known), _) => {
                        let about = known.iter().filter(|(of, _)| *of == subject);
                        Ok(about.map(|(_, entry)| entry.clone()).collect())
                    }
                    (None, Some(repository)) => repository.referrers(&subject, None).await,
                    (None, None) => Ok(Vec::new()), // it is in the one or the other
                }
            };
            let [sig, att, sbom] = Tag::cosign(&subject);
            let tagged = async {
                match at < own {
                    true => tokio::try_join!(source.beside(&sig), source.beside(&att), source.beside(&sbom)),
                    false => Ok((None, None, None)),
                }
            };
            let (listed, tagged) = tokio::try_join!(listed, tagged)?;
            self.listed(&subject, listed).await?;
            for (tag, found) in [(&sig, tagged.0), (&att, tagged.1), (&sbom, tagged.2)] {
                if let Some(manifest) = found {
                    tags.push((tag.clone(), manifest.digest));
                    self.tree(manifest).await?;
                }
            }
            at += 1;
        }
        Ok(tags)
    }

    /// Says which tables of contents are not taken in: the tag that they are under is made of the image's, which is another
    /// where it goes.
    async fn tables(&self, own: usize) -> Result<(), Error> {
        let mut named = false;
        for manifest in self.manifests[..own].iter().filter(|one| !one.is_index()) {
            let layers = manifest.image("")?.layers; // it was read before
            named |= layers.iter().any(|layer| layer.annotations.contains_key(TOC_DIGEST));
        }
        if let (true, Some(tag)) = (named, self.source.tables_tag())
            && self.source.beside(&tag).await?.is_some()
        {
            self.watch.left_out(&format!(
                "tables of contents of its layers, which are in the image {tag}; copy it, too, and add {TABLES_TAG} to the tag"
            ));
        }
        Ok(())
    }

    /// Takes in what is listed as being about a manifest. A list is a claim: what turns out to be about something else
    /// does not belong here.
    async fn listed(&mut self, subject: &Digest, listed: Vec<Descriptor>) -> Result<(), Error> {
        if listed.len() >= limits::REFERRERS {
            let why = format!("{} manifests or more refer to it", limits::REFERRERS);
            return Err(Error::invalid(format!("manifest {subject} of {}", self.source), why));
        }
        for entry in listed {
            let digest = entry.digest;
            if self.seen.contains_key(&(digest, true)) {
                continue;
            }
            let left_out = |why: &str| {
                self.watch.left_out(&format!("{digest}, listed as referring to {subject}: {why}"))
            };
            if !is_manifest(&entry.media_type) {
                left_out(&format!("manifests of type {} are not known", told(&entry.media_type)));
                continue;
            }
            let manifest = match self.source.manifest(&entry).await {
                Ok(manifest) => manifest,
                // Deleted, and still in the list.
                Err(error) if error.is_not_found() => {
                    left_out("it is not there");
                    continue;
                }
                Err(error) => return Err(error),
            };
            match referrer(&manifest, "")? {
                Some((of, _)) if of == *subject => self.tree(manifest).await?,
                _ => left_out("it does not"),
            }
        }
        Ok(())
    }
}
