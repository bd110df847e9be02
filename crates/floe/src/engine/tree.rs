//! The tree of an image: from the skeletons of its layers to the metadata image that is mounted.

use std::path::PathBuf;
use std::sync::mpsc::{self, SyncSender};
use std::thread;

use anyhow::{Context, anyhow, bail};
use format::erofs::write::{self, LayerDevices};
use format::layer::{Layer, LayerError};
use format::tar::Member;
use format::tree::{Apart, Builder, Runs, Tree, TreeError};
use store::MetaKey;

use super::Engine;
use super::found::FoundLayer;

/// Members handed on at once: some 50 KB.
const BATCH: usize = 256;

/// Batches that may wait for the one that builds.
const WAITING: usize = 8;

impl Engine {
    /// Returns the path of the metadata image of these layers, writing it if there is none.
    pub(super) fn metadata_image(&self, key: MetaKey, layers: &[FoundLayer]) -> anyhow::Result<PathBuf> {
        self.meta_of(key, layers, || {
            let mut builder = Builder::new();
            for layer in layers {
                builder.layer()?;
                each_name(layer, |member, runs| builder.member(member, runs))?;
            }
            Ok(builder.finish())
        })
    }

    /// Returns the path of the metadata image of one layer by itself, writing it if there is none.
    pub(super) fn metadata_apart(&self, layer: &FoundLayer) -> anyhow::Result<PathBuf> {
        self.meta_of(MetaKey::apart(layer.id()), std::slice::from_ref(layer), || {
            let mut tree = Apart::new()?;
            each_name(layer, |member, runs| tree.member(member, runs))?;
            Ok(tree.finish()?)
        })
    }

    fn meta_of(
        &self,
        key: MetaKey,
        layers: &[FoundLayer],
        tree: impl FnOnce() -> anyhow::Result<Tree>,
    ) -> anyhow::Result<PathBuf> {
        if let Some(meta) = self.store.meta(key)? {
            return Ok(meta.path);
        }
        let devices: Vec<_> = layers.iter().map(devices).collect();
        let image = write::image(&tree()?, &devices)?;
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

/// Shows each name of a layer and where its bytes are.
///
/// Unpacking a skeleton takes twice as long as building with what it says: another thread does that.
fn each_name(
    layer: &FoundLayer,
    mut each: impl FnMut(&Member, Runs) -> Result<(), TreeError>,
) -> anyhow::Result<()> {
    let (sender, batches) = mpsc::sync_channel(WAITING);
    let read = thread::scope(|scope| {
        let reading = scope.spawn(move || read(layer.layer(), &sender));
        // Consumed, so that after an error nobody waits to hand on more.
        for (member, runs) in batches.into_iter().flatten() {
            each(&member, runs)?;
        }
        reading.join().map_err(|_| anyhow!("a thread ended unexpectedly"))?
    });
    read.with_context(|| format!("reading the names of layer {}", layer.place.blob))
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
