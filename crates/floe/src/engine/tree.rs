//! The tree of an image: from the skeletons of its layers to the metadata image that is mounted.

use std::path::PathBuf;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use anyhow::{Context, anyhow, bail};
use format::erofs::write::{self, LayerDevices};
use format::layer::{Layer, LayerError};
use format::tar::Member;
use format::tree::{Builder, Runs, Tree};
use store::MetaKey;

use super::Engine;
use super::layers::FoundLayer;

/// Members handed on at once: some 50 KB.
const BATCH: usize = 256;

/// Batches that may wait for the one that builds.
const WAITING: usize = 8;

impl Engine {
    /// Returns the path of the metadata image of these layers, writing it if there is none.
    pub(super) fn metadata_image(&self, key: MetaKey, layers: &[FoundLayer]) -> anyhow::Result<PathBuf> {
        if let Some(meta) = self.store.meta(key)? {
            return Ok(meta.path);
        }
        let devices: Vec<_> = layers.iter().map(devices).collect();
        let image = write::image(&tree(layers)?, &devices)?;
        self.store.put_meta(key, &image)?;
        drop(image);
        sys::heap::give_back(); // the tree took some 500 bytes an entry, and is gone
        match self.store.meta(key)? {
            Some(meta) => Ok(meta.path),
            None => bail!("the metadata image that was just written is gone"),
        }
    }
}

fn devices(layer: &FoundLayer) -> LayerDevices {
    let lens = layer.layer().segment_blocks();
    LayerDevices { index: layer.id(), segment: layer.layer().facts().segment, lens }
}

/// Builds the tree of a stack of layers, bottom first.
fn tree(layers: &[FoundLayer]) -> anyhow::Result<Tree> {
    let mut builder = Builder::new();
    for layer in layers {
        add(&mut builder, layer.layer())
            .with_context(|| format!("reading the names of layer {}", layer.place.blob))?;
    }
    Ok(builder.finish())
}

/// Adds a layer. Unpacking its skeleton takes twice as long as building with what it says: another thread does that.
fn add(builder: &mut Builder, layer: &Layer) -> anyhow::Result<()> {
    builder.layer()?;
    let (sender, batches) = mpsc::sync_channel(WAITING);
    thread::scope(|scope| {
        let reading = scope.spawn(move || read(layer, &sender));
        // Consumed, so that after an error nobody waits to hand on more.
        for (member, runs) in batches.into_iter().flatten() {
            builder.member(&member, runs)?;
        }
        reading.join().map_err(|_| anyhow!("a thread ended unexpectedly"))?
    })
}

/// Hands on the members of a layer; ends early, without error, when nobody wants them any more.
fn read(layer: &Layer, to: &SyncSender<Vec<(Member, Runs)>>) -> anyhow::Result<()> {
    let mut batch = Vec::with_capacity(BATCH);
    let all = layer.members(|member, runs| {
        batch.push((member, runs));
        if batch.len() < BATCH {
            return Ok(());
        }
        to.send(std::mem::replace(&mut batch, Vec::with_capacity(BATCH))).map_err(|_| Stop::Unwanted)
    });
    match all {
        Err(Stop::Unwanted) => return Ok(()),
        Err(Stop::Damaged(error)) => return Err(error.into()),
        Ok(()) => {}
    }
    let _ = to.send(batch); // as above
    Ok(())
}

/// Why not all members of a layer were handed on.
enum Stop {
    Unwanted,
    Damaged(LayerError),
}

impl From<LayerError> for Stop {
    fn from(error: LayerError) -> Self {
        Self::Damaged(error)
    }
}
