//! The mounts of a daemon that is gone: its successor serves them from what is in the store, without network.

use std::sync::Arc;

use anyhow::Context;
use store::{Hold, MetaKey};

use super::Engine;
use super::layers::Place;
use super::live::Recipe;
use super::record::Record;

impl Engine {
    /// Takes over what an earlier daemon has mounted. What cannot be made sense of is left as it is, and told.
    pub(super) fn adopt(&self, records: Vec<Record>) {
        let (mut made, mut lost) = (Vec::new(), Vec::new());
        for record in records {
            match self.recipe_of(&record) {
                Ok((key, recipe)) => made.push((key, record, recipe)),
                Err(error) => {
                    self.alert(format!(
                        "the mount of {} that an earlier daemon made is not served: {error:#}",
                        record.reference
                    ));
                    lost.push((record, error));
                }
            }
        }
        self.mounts.adopt(made, &lost);
    }

    fn recipe_of(&self, record: &Record) -> anyhow::Result<(MetaKey, Recipe)> {
        // Nobody is asked: a source is where to ask, should a reader need something.
        let reference = record.reference.parse().context("understanding its name")?;
        let source = self.net.source(&reference);
        let mut holds: Vec<Hold> = Vec::new();
        for layer in &record.layers {
            let place = Place::of(layer);
            match &source {
                Ok(source) => self.net.know(place.blob, source),
                Err(error) => tracing::warn!(image = record.reference, %error, "nothing can be fetched"),
            }
            let index = self.store.index(layer.index)?.context("the index of a layer is gone")?;
            holds.push(self.open_layer(&place, index)?);
        }
        let ids: Vec<_> = record.layers.iter().map(|layer| layer.index).collect();
        let key = MetaKey::of(&ids);
        let meta = self.store.meta(key)?.context("its tree is gone")?.path;
        let recipe = Recipe {
            reference: record.reference.clone(),
            key,
            meta,
            layers: record.layers.clone(),
            files: holds.iter().map(|hold| hold.files().clone()).collect(),
            uses: Arc::new(holds),
            learn: false,
        };
        Ok((key, recipe))
    }
}
