//! What the destination's name leads to before it leads to what is made: layers that need not be made again.

use std::collections::{HashMap, HashSet};

use format::{Digest, limits as sizes};

use super::formats::{self, Format};
use super::rewrite::CONVERTED_FROM;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, Image, LayerBlob, Manifest, is_manifest};
use crate::source::Source;

/// Layers that were made before, by the digest of the blob that each was made of.
#[derive(Debug, Default)]
pub(super) struct Prior(HashMap<Digest, LayerBlob>);

impl Prior {
    /// Returns nothing.
    pub(super) fn none() -> Self {
        Self::default()
    }

    /// Looks at what a name leads to. What is no image of ours is nothing, and so is what may not be read: it is written
    /// to, and that fails or does not.
    pub(super) async fn of(place: &Source, format: Format) -> Result<Self, Error> {
        let mut prior = Self::default();
        let Some(root) = seen(place.root().await)? else { return Ok(prior) };
        // One manifest is held at a time, and each is asked for once: somebody else may have written them.
        let (mut known, mut held) = (HashSet::from([root.digest]), 0);
        let mut waiting = Vec::new();
        let mut next = Some((root, 0));
        while let Some((manifest, depth)) = next.take() {
            held += manifest.bytes.len() as u64;
            if !manifest.is_index() {
                prior.take(place, format, manifest).await?;
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
        self.0.get(blob).filter(|made| formats::ordered_by(&made.annotations).as_ref() == order)
    }

    /// Takes in the layers of an image.
    async fn take(&mut self, place: &Source, format: Format, manifest: Manifest) -> Result<(), Error> {
        let Some(parsed) = seen(manifest.image(""))? else { return Ok(()) };
        let from = |layer: &Descriptor| {
            let from = layer.annotations.get(CONVERTED_FROM).and_then(|text| text.parse::<Digest>().ok());
            from.filter(|_| format.is_made(layer) && layer.size <= sizes::LAYER)
        };
        let layers = parsed.layers.clone();
        if !layers.iter().any(|layer| from(layer).is_some()) {
            return Ok(());
        }
        let config = place.read_blob(&parsed.config, sizes::CONFIG, super::stream::PRIORITY).await;
        let Some(config) = seen(config)? else { return Ok(()) };
        let Some(image) = seen(Image::new(Vec::new(), manifest, parsed, config, ""))? else { return Ok(()) };
        for (layer, whole) in layers.into_iter().zip(image.layers) {
            if let Some(from) = from(&layer) {
                self.0.insert(from, whole);
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
