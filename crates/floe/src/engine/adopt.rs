//! The mounts of a daemon that is gone: its successor serves them from what is in the store, without network.

use anyhow::{Context, bail};
use store::MetaKey;

use super::Engine;
use super::live::Recipe;
use super::record::{Record, Shape};
use super::stack;

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
        let shape = record.shape();
        let key = match (shape, &record.layers[..]) {
            (Shape::Apart, [only]) => MetaKey::apart(only.index),
            (Shape::Apart, _) => bail!("it is not of one layer"),
            (Shape::Stack, layers) => MetaKey::of_layers(layers),
        };
        let found = self.recorded(&record.reference, &record.layers)?;
        // One that was made anew would be the same; that it is gone says that more is amiss.
        let meta = self.store.meta(key)?.context("its tree is gone")?.path;
        Ok((key, stack::recipe(&record.reference, (key, shape), &record.layers, found, meta)))
    }
}
