//! What the destination's name leads to before it leads to what is made, and what a conversion has noted there that did not come to
//! its end: layers that need not be made again.

use std::collections::{HashMap, HashSet};

use format::{DiffId, Digest, limits as sizes};

use super::formats::{self, Format};
use super::rewrite::CONVERTED_FROM;
use crate::artifact::DIFF_ID;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, Image, LayerBlob, Manifest, is_manifest};
use crate::source::Source;

/// Layers of a format that were made before.
#[derive(Debug)]
pub(super) struct Prior {
    format: Format,
    /// By the digests of the blob that each was made of, and of its order.
    layers: HashMap<(Digest, Option<Digest>), LayerBlob>,
}

impl Prior {
    /// Returns nothing.
    pub(super) fn none(format: Format) -> Self {
        Self { format, layers: HashMap::new() }
    }

    /// Looks at what a name leads to. What is no image of ours is nothing, and so is what may not be read: it is written
    /// to, and that fails or does not.
    pub(super) async fn of(place: &Source, format: Format) -> Result<Self, Error> {
        let mut prior = Self::none(format);
        let Some(root) = seen(place.root().await)? else { return Ok(prior) };
        // One manifest is held at a time, and each is asked for once: somebody else may have written them.
        let (mut known, mut held) = (HashSet::from([root.digest]), 0);
        let mut waiting = Vec::new();
        let mut next = Some((root, 0));
        while let Some((manifest, depth)) = next.take() {
            held += manifest.bytes.len() as u64;
            if !manifest.is_index() {
                prior.take(place, manifest).await?;
            } else if depth < limits::INDEX_DEPTH {
                let children = manifest.children().into_iter();
                let fresh =
                    children.filter(|child| is_manifest(&child.media_type) && known.insert(child.digest));
                waiting.extend(fresh.map(|child| (child, depth + 1)));
            }
            while next.is_none() && known.len() <= limits::COPY_MANIFESTS && held <= limits::COPY_BYTES {
                let Some((child, depth)) = waiting.pop() else { break };
                next = seen(place.manifest(&child).await)?.map(|child| (child, depth));
            }
        }
        Ok(prior)
    }

    /// Returns the layer that was made of a blob in this order.
    pub(super) fn made_of(&self, blob: &Digest, order: Option<&Digest>) -> Option<&LayerBlob> {
        self.layers.get(&(*blob, order.copied()))
    }

    /// Takes in the layers of a note, whose diffIDs it has itself; returns those that were not known.
    pub(super) fn noted(&mut self, layers: Vec<Descriptor>) -> HashSet<Digest> {
        let mut fresh = HashSet::new();
        for mut layer in layers {
            let diff_id =
                layer.annotations.remove(DIFF_ID).and_then(|text| text.parse().ok()).map(DiffId::new);
            let (Some(from), Some(diff_id)) = (self.from(&layer), diff_id) else { continue };
            let Descriptor { digest, size, media_type, annotations, .. } = layer;
            if self.put(from, LayerBlob { digest, size, media_type, diff_id, annotations }) {
                fresh.insert(digest);
            }
        }
        fresh
    }

    /// Returns what a layer was made of, if it is one that would be made.
    fn from(&self, layer: &Descriptor) -> Option<Digest> {
        let from = layer.annotations.get(CONVERTED_FROM).and_then(|text| text.parse::<Digest>().ok());
        from.filter(|_| self.format.is_made(layer) && layer.size <= sizes::LAYER)
    }

    /// Keeps a layer, of two that are the same the first; says whether it was that.
    fn put(&mut self, from: Digest, made: LayerBlob) -> bool {
        let known = self.layers.len();
        self.layers.entry((from, formats::ordered_by(&made.annotations))).or_insert(made);
        self.layers.len() > known
    }

    /// Takes in the layers of an image.
    async fn take(&mut self, place: &Source, manifest: Manifest) -> Result<(), Error> {
        let Some(parsed) = seen(manifest.image(""))? else { return Ok(()) };
        let layers = parsed.layers.clone();
        if !layers.iter().any(|layer| self.from(layer).is_some()) {
            return Ok(());
        }
        let config = place.read_blob(&parsed.config, sizes::CONFIG, super::stream::PRIORITY).await;
        let Some(config) = seen(config)? else { return Ok(()) };
        let Some(image) = seen(Image::new(Vec::new(), manifest, parsed, config, ""))? else { return Ok(()) };
        for (layer, whole) in layers.into_iter().zip(image.layers) {
            if let Some(from) = self.from(&layer) {
                self.put(from, whole);
            }
        }
        Ok(())
    }
}

/// Takes what is there; a registry that fails may have something.
fn seen<T>(found: Result<T, Error>) -> Result<Option<T>, Error> {
    match found {
        Ok(found) => Ok(Some(found)),
        Err(error) if error.is_temporary() => Err(error),
        Err(error) => {
            tracing::debug!(%error, "nothing to reuse");
            Ok(None)
        }
    }
}
