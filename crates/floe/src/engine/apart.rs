//! Layers of an image by themselves: for who stacks them with overlayfs himself.
//!
//! As with stacks, somebody else remembers them. What is not to be had lazily is not had this way at all: nobody who
//! asks for one layer waits for Floe to fetch it whole, which he can do himself.

use std::collections::HashMap;
use std::fs::File;
use std::io::{Seek, Write};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use format::{Digest, DigestHasher};
use store::{Blob, MetaKey, Origin, Priority, RefLayer, Urgency};

use super::Engine;
use super::found::{FoundLayer, Place};
use super::layers::KnownLayers;
use super::live::LiveMount;
use super::open::{Purpose, parse};
use super::record::Shape;
use super::stack;
use crate::daemon::protocol::Event;

/// A blob that has not come by then never will. Stalls are noticed long before, by the client.
const BLOB_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// For how long what a reference means is taken from before: the layers of one image are asked for one after the other.
const LENT: Duration = Duration::from_secs(60);

/// For how long a failure is: its other layers need not wait for the same registry.
const REFUSED: Duration = Duration::from_secs(10);

/// Images that are remembered for so long at most; a node pulls a few at a time.
const REMEMBERED: usize = 256;

/// Images whose layers were just asked for, by canonical reference. Held for a look only.
pub(super) type Lending = Mutex<HashMap<String, (Instant, Result<Arc<LentLayers>, String>)>>;

/// The layers of an image that is open, as far as they are to be had lazily.
pub(crate) struct LentLayers {
    places: Vec<Place>,
    known: KnownLayers,
}

/// Why an image's layer is not to be had by itself.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NotApart {
    /// The image has no such layer.
    #[error("the image has no layer {0}")]
    NoSuchLayer(Digest),
    /// There is no index, or none that is believed.
    #[error("layer {layer}: {why}")]
    NotLazy {
        /// The layer.
        layer: Digest,
        /// Why.
        why: String,
    },
}

impl LentLayers {
    /// Says whether the image has a layer of this blob.
    fn has(&self, blob: &Digest) -> bool {
        self.places.iter().any(|place| place.blob == *blob)
    }

    /// Returns the layer of this blob.
    pub(crate) fn layer(&self, blob: &Digest) -> Result<RefLayer, NotApart> {
        if !self.has(blob) {
            return Err(NotApart::NoSuchLayer(*blob));
        }
        let found = self.known.layers.iter().flatten().find(|layer| layer.place.blob == *blob);
        found
            .map(FoundLayer::as_ref)
            .ok_or_else(|| NotApart::NotLazy { layer: *blob, why: self.known.why_not() })
    }
}

impl Engine {
    /// Finds the layers of an image that are to be had lazily, by whoever names them, unless that was done a moment ago and it has
    /// this one. None is fetched.
    pub(crate) fn lend_layers(&self, image: &str, blob: &Digest) -> anyhow::Result<Arc<LentLayers>> {
        let lending = || self.lending.lock().unwrap_or_else(PoisonError::into_inner);
        let gone: Vec<_> = lending().extract_if(|_, (since, _)| since.elapsed() > LENT).collect();
        drop(gone); // without the lock: it may close layers
        match lending().get(image) {
            Some((_, Ok(lent))) if lent.has(blob) => return Ok(lent.clone()),
            Some((since, Err(why))) if since.elapsed() < REFUSED => bail!("{why}"),
            _ => {}
        }
        let lent = self.look_at_layers(image).map(Arc::new);
        let said = lent.as_ref().map(Arc::clone).map_err(|why| format!("{why:#}"));
        let mut lending = lending();
        if lending.len() < REMEMBERED {
            lending.insert(image.to_owned(), (Instant::now(), said));
        }
        lent
    }

    /// Lets go the layers that nobody remembers yet; who is about to looks them up again.
    pub(super) fn forget_layers(&self) {
        let gone = std::mem::take(&mut *self.lending.lock().unwrap_or_else(PoisonError::into_inner));
        drop(gone);
    }

    fn look_at_layers(&self, image: &str) -> anyhow::Result<LentLayers> {
        // Who looks waits in a system call, and can pull with more patience.
        let going_on = |event| match event {
            Event::Notice { text } => bail!("{text}: not waited for"),
            _ if self.stopping() => bail!("this daemon is ending"),
            _ => Ok(()),
        };
        let reference = parse(image)?;
        let opening = || format!("opening {reference}");
        let mut resolved = self.resolve(&reference, Purpose::Apart, &going_on).with_context(opening)?;
        let known = self.known_layers(&reference, &mut resolved, Purpose::Apart).with_context(opening)?;
        Ok(LentLayers { places: resolved.layers, known })
    }

    /// Returns the mount of a layer by itself, without asking anybody.
    pub(crate) fn mount_apart(&self, reference: &str, layer: &RefLayer) -> anyhow::Result<Arc<LiveMount>> {
        if self.stopping() {
            bail!("this daemon is ending"); // what is mounted now would neither be left nor let go
        }
        let layers = std::slice::from_ref(layer);
        let found = self.recorded(reference, layers)?;
        let [only] = &found[..] else { bail!("a layer that is not one") };
        let meta = self.metadata_apart(only).context("writing its tree")?;
        let of = (MetaKey::apart(layer.index), Shape::Apart);
        self.mounts.live(self.config.mount.path, stack::recipe(reference, of, layers, found, meta))
    }

    /// Returns how long the plain tar of a layer is.
    pub(crate) fn tar_len(&self, layer: &RefLayer) -> anyhow::Result<u64> {
        let index = self.store.index(layer.index)?.context("the index of the layer is gone")?;
        Ok(index.facts().tar_len)
    }

    /// Fetches the blob of a layer whole, into a file without a name. It has the digest that it should have.
    pub(crate) fn blob(&self, reference: &str, layer: &RefLayer) -> anyhow::Result<File> {
        self.check_room(layer.size)?;
        let source = self.net.source(&parse(reference)?)?;
        self.net.know(layer.blob, &source);
        let mut file = self.store.scratch()?;
        let (mut hash, mut written) = (DigestHasher::new(), Ok(()));
        let blob = Blob { digest: layer.blob, size: layer.size };
        let deadline = Instant::now() + BLOB_DEADLINE;
        let fetched =
            self.net.read(&blob, 0..layer.size, &Urgency::new(Priority::Demand), deadline, &mut |piece| {
                hash.update(piece);
                written = file.write_all(piece);
                if written.is_ok() && !self.stopping() {
                    ControlFlow::Continue(())
                } else {
                    ControlFlow::Break(())
                }
            });
        fetched.with_context(|| format!("fetching blob {}", layer.blob))?;
        written.context("writing it to the store")?;
        let digest = hash.finish();
        if digest != layer.blob {
            bail!("what the registry has as blob {} is {digest}", layer.blob);
        }
        file.rewind()?;
        Ok(file)
    }
}
