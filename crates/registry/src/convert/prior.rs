//! What the destination's name leads to before it leads to what is made: layers that need not be made again.

use std::collections::HashMap;

use format::{Digest, limits as sizes};

use super::formats::Format;
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
        let mut waiting = vec![(root, 0)];
        let mut count = 0;
        while let Some((manifest, depth)) = waiting.pop() {
            if !manifest.is_index() {
                prior.take(place, format, manifest).await?;
                continue;
            }
            for child in manifest.children().iter().filter(|child| is_manifest(&child.media_type)) {
                count += 1;
                if depth < limits::INDEX_DEPTH && count <= limits::COPY_MANIFESTS {
                    let child = seen(place.manifest(child).await)?;
                    waiting.extend(child.map(|child| (child, depth + 1)));
                }
            }
        }
        Ok(prior)
    }

    /// Returns the layer that was made of a blob.
    pub(super) fn made_of(&self, blob: &Digest) -> Option<&LayerBlob> {
        self.0.get(blob)
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
