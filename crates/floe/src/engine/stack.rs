//! Stacks of layers: the bottom of an image, or all of it, mounted for somebody who remembers it himself.
//!
//! containerd's lazy snapshots are such layers. Each stack that a container stands on is one mount, which lives from the
//! first use to the last, also over the end of a daemon.

use std::path::PathBuf;
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use format::DiffId;
use registry::{Manifest, Source};
use store::{MetaKey, RefLayer, Usage};

use super::found::{FoundLayer, Place};
use super::live::{LiveMount, Recipe};
use super::open::{OpenImage, Purpose};
use super::record::Shape;
use super::report::{ImageReport, IndexOrigin};
use super::{Engine, Talk};
use crate::snapshotter::register::Target;

/// How often there is a look whether a start is over.
const LOOK: Duration = Duration::from_millis(250);

/// A start is over when nobody has waited for so long.
const QUIET: Duration = Duration::from_secs(3);

/// Or when it has taken so long.
const LONG: Duration = Duration::from_secs(600);

/// An image that is open, and remembered by nobody but who has this.
pub(crate) struct Lent(Arc<OpenImage>);

impl Lent {
    /// Returns what leads to it for as long as it is open.
    pub(crate) fn downgrade(&self) -> Known {
        Known(Arc::downgrade(&self.0))
    }

    /// Returns the layers, bottom first.
    pub(crate) fn layers(&self) -> Vec<RefLayer> {
        self.0.layers().iter().map(FoundLayer::as_ref).collect()
    }

    /// Returns what the layers are in the config, bottom first.
    pub(crate) fn diff_ids(&self) -> Vec<DiffId> {
        self.0.layers().iter().map(|layer| layer.place.diff_id).collect()
    }

    /// Returns the manifest, byte for byte.
    pub(crate) fn manifest_bytes(&self) -> &[u8] {
        self.0.manifest_bytes()
    }

    /// Returns the config, byte for byte.
    pub(crate) fn config(&self) -> &[u8] {
        self.0.config()
    }

    /// Returns the manifest's descriptor.
    pub(crate) fn manifest_descriptor(&self) -> &registry::Descriptor {
        self.0.manifest_descriptor()
    }

    /// Returns the image indexes that led to it, the outermost first; nothing where its registry could not be asked.
    pub(crate) fn indexes(&self) -> Option<Vec<Manifest>> {
        self.0.indexes()
    }

    /// Returns where its blobs are.
    pub(crate) fn source(&self) -> Option<&Arc<Source>> {
        self.0.source.as_ref()
    }

    /// Returns the reference it was opened by, as everything here names it.
    pub(crate) fn reference(&self) -> &str {
        self.0.reference()
    }
}

/// An image that was open a moment ago.
pub(crate) struct Known(Weak<OpenImage>);

impl Known {
    /// Returns it if it is still open.
    pub(crate) fn upgrade(&self) -> Option<Lent> {
        self.0.upgrade().map(Lent)
    }
}

impl Engine {
    /// Makes an image readable for a container that is about to start.
    pub(crate) fn lend(self: &Arc<Self>, image: &str) -> anyhow::Result<Lent> {
        self.prepare_to_mount(self.config.mount.path);
        let going_on = |_| if self.stopping() { bail!("this daemon is ending") } else { Ok(()) };
        self.open(image, Purpose::Lend, &going_on).map(Lent)
    }

    /// Makes an image known to a containerd that has this daemon as a snapshotter.
    pub(crate) fn register(
        self: &Arc<Self>,
        image: &str,
        target: &Target,
        talk: &Talk<'_>,
    ) -> anyhow::Result<ImageReport> {
        let lent = self.lend(image)?;
        self.net.run(crate::snapshotter::register::register(target, &lent, talk))?;
        Ok(self.report(&lent.0))
    }

    /// Returns the mount of a stack of layers, bottom first, without asking anybody.
    pub(crate) fn mount_stack(
        self: &Arc<Self>,
        reference: &str,
        layers: &[RefLayer],
    ) -> anyhow::Result<Arc<LiveMount>> {
        if self.stopping() {
            bail!("this daemon is ending"); // what is mounted now would neither be left nor let go
        }
        let key = MetaKey::of_layers(layers);
        let image =
            self.images().values().find(|image| image.key() == key && image.meta_path().exists()).cloned();
        let background = self.config.fetch.background;
        let mount = match &image {
            Some(image) => {
                if background && image.at_once {
                    self.want_all(&mut image.layer_ids()); // nobody reads yet
                }
                self.live(image, Purpose::Lend, None)?
            }
            None => {
                let found = self.recorded(reference, layers)?;
                let meta = self.metadata_image(key, &found).context("writing its tree")?;
                let recipe = recipe(reference, (key, Shape::Stack), layers, found, meta);
                self.mounts.live(self.config.mount.path, recipe)?
            }
        };
        mount.keep();
        if let Some(image) = image.filter(|_| !mount.is_ready()) {
            if background {
                self.watch_start(&image, &mount);
            }
            self.follow(image, &mount);
        }
        Ok(mount)
    }

    /// Takes layers into use as a record has them. Where to ask for what is missing is what their reference says.
    pub(super) fn recorded(&self, reference: &str, layers: &[RefLayer]) -> anyhow::Result<Vec<FoundLayer>> {
        let source =
            reference.parse().context("understanding its name").map(|name| self.net.source(&name))?;
        let take = |layer: &RefLayer| {
            let place = Place::of(layer);
            let index = self.store.index(layer.index)?.context("the index of a layer is gone")?;
            match &source {
                Ok(source) => {
                    self.net.know(place.blob, source);
                    self.know_beside(&index, source);
                }
                Err(error) => tracing::warn!(image = reference, %error, "nothing can be fetched"),
            }
            let hold = self.open_layer(&place, index)?;
            Ok(FoundLayer { place, hold, origin: IndexOrigin::Local, index_size: 0 })
        };
        layers.iter().map(take).collect()
    }

    /// Says whether all of a recorded layer is here; what cannot be opened is not.
    pub(crate) fn is_here(&self, layer: &RefLayer) -> bool {
        let index = self.store.index(layer.index).ok().flatten();
        let hold = index.and_then(|index| self.open_layer(&Place::of(layer), index).ok());
        hold.is_some_and(|hold| hold.files().missing() == 0)
    }

    /// Says whether mounts stay when this daemon ends.
    pub(crate) fn leaves(&self) -> bool {
        self.leaving.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// Returns where the credentials of pods are noted.
    pub(crate) fn handed(&self) -> Option<&Arc<registry::Handed>> {
        self.net.handed()
    }

    /// Says whether a pod has said how to have an image.
    pub(crate) fn has_secret(&self, reference: &str) -> bool {
        match reference.parse() {
            Ok(registry::Reference::Registry(image)) => self.handed().is_some_and(|all| all.has(&image)),
            _ => false,
        }
    }

    /// Waits until a start seems to be over, then fetches the rest.
    fn follow(self: &Arc<Self>, image: Arc<OpenImage>, mount: &Arc<LiveMount>) {
        let (engine, mount) = (self.clone(), Arc::downgrade(mount));
        self.in_background("follow", move || {
            let (begun, mut quiet, mut waited) = (Instant::now(), Instant::now(), Duration::MAX);
            while quiet.elapsed() < QUIET && begun.elapsed() < LONG {
                std::thread::sleep(LOOK);
                let Some(mount) = mount.upgrade().filter(|_| !engine.stopping()) else { return };
                if mount.waits().waited() != waited {
                    (waited, quiet) = (mount.waits().waited(), Instant::now());
                }
            }
            let Some(mount) = mount.upgrade() else { return };
            mount.end_start();
            if engine.config.fetch.background {
                engine.fetch_rest(&image);
            }
        });
    }

    /// Returns what the segments of a layer take at the moment.
    pub(crate) fn layer_usage(&self, layer: &RefLayer) -> Usage {
        let dir = self.store.devices().join(layer.index.hex());
        let files = std::fs::read_dir(dir).into_iter().flatten().flatten();
        let taken = files.filter_map(|file| file.metadata().ok()).filter(|file| file.len() > 0);
        taken.fold(Usage::default(), |sum, file| Usage {
            bytes: sum.bytes + file.len(),
            inodes: sum.inodes + 1,
        })
    }
}

/// Returns what recorded layers are mounted from.
pub(super) fn recipe(
    reference: &str,
    (key, shape): (MetaKey, Shape),
    layers: &[RefLayer],
    found: Vec<FoundLayer>,
    meta: PathBuf,
) -> Recipe {
    Recipe {
        reference: reference.to_owned(),
        key,
        shape,
        meta,
        layers: layers.to_vec(),
        files: found.iter().map(FoundLayer::files).collect(),
        uses: Arc::new(found),
        learn: false,
    }
}
