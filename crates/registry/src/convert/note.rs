//! What has been made of layers so far, noted at the destination: who is killed need not begin anew.
//!
//! An artifact under a tag of its own, `floe-converting-<hash of the destination's name>`, or in a layout an entry of that
//! name. So there is at most one for each name, whatever is converted to it:
//! ```text
//! config        application/vnd.floe.conversion.v1+json, {"destination":"v1"}
//! layers        those that are there, as the image will name them, with one more annotation:
//!                 dev.floe.diffid   digest of the layer's tar
//! ```
//! It is believed as far as what the destination's name leads to, and looked at in the same way ([`Prior`]); and as a tag
//! leads to it, no registry takes what it names for garbage.
//!
//! Promises: it is written beside the work, at most once for each layer that was made, one writing after the other. At the end
//! it is removed, where that is refused it names nothing. What an earlier one names it goes on naming, but for what is gone.
//! What cannot be read, or is something else, is neither replaced nor removed. Whatever happens to it fails no conversion. An
//! archive has none.

use std::collections::{BTreeMap, HashSet};
use std::pin::pin;
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use format::Digest;
use serde_json::json;
use tokio::sync::Notify;
use tokio::time::timeout;

use super::How;
use super::layers::Made;
use super::prior::Prior;
use crate::artifact::DIFF_ID;
use crate::content::Content;
use crate::copy::Watch;
use crate::copy::target::Target;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, ImageManifest, LayerBlob, Manifest, media_type};
use crate::names::Tag;

/// How the names of notes begin.
const TAG: &str = "floe-converting-";

/// Annotation of a note: the name at the destination.
const DESTINATION: &str = "dev.floe.converting";

/// The note of a conversion.
pub(super) struct Note<'a> {
    target: &'a Target,
    watch: &'a dyn Watch,
    /// Nothing where there can be none.
    place: Option<Place>,
    /// The layers that only an earlier note knows of.
    found: HashSet<Digest>,
    /// Held for a look only.
    state: Mutex<State>,
    changed: Notify,
}

/// Where a note is.
struct Place {
    tag: Tag,
    destination: String,
    config: Content,
}

#[derive(Default)]
struct State {
    /// By the blob that each was made of.
    layers: BTreeMap<Digest, Descriptor>,
    /// Whether some of them are not noted.
    is_behind: bool,
    /// Whether no more will come.
    has_ended: bool,
    /// The manifest of ours that is there.
    there: Option<Digest>,
    /// Whether another one may be there, or arrive yet: a write has begun and not ended.
    is_unsure: bool,
    /// Whether the user knows that it cannot be written.
    is_told: bool,
    /// Whether it is written no more.
    is_refused: bool,
}

impl Place {
    fn of(target: &Target) -> Option<Self> {
        let destination = match target {
            Target::Registry(_, tag) => tag.as_ref()?.to_string(),
            Target::Layout(_, name) => name.as_ref().map(ToString::to_string).unwrap_or_default(),
            Target::Archive(..) => return None,
        };
        let hash = Digest::of(destination.as_bytes()).hex();
        let tag = format!("{TAG}{}", &hash[..16]).parse().ok()?;
        let config = Content::bytes(json!({ "destination": destination }).to_string().into());
        Some(Self { tag, destination, config })
    }

    /// Returns the note that these layers are there.
    fn manifest(&self, layers: Vec<Descriptor>) -> Result<Manifest, Error> {
        let what = "the note of what was made";
        let (digest, size) = (*self.config.digest(), self.config.size());
        let note = ImageManifest {
            schema_version: 2,
            media_type: Some(media_type::MANIFEST.into()),
            artifact_type: None,
            config: Descriptor::new(media_type::FLOE_CONVERSION, digest, size),
            layers,
            subject: None,
            annotations: [(DESTINATION.to_owned(), self.destination.clone())].into(),
        };
        let bytes = serde_json::to_vec(&note).map_err(|error| Error::invalid(what, error.to_string()))?;
        Manifest::verify(Bytes::from(bytes), None, Some(media_type::MANIFEST), what)
    }

    /// Returns what a manifest notes, if it is a note of this place.
    fn read(&self, manifest: &Manifest) -> Option<Vec<Descriptor>> {
        let found = manifest.image("").ok()?;
        let is_ours = found.config.media_type == media_type::FLOE_CONVERSION
            && found.annotations.get(DESTINATION) == Some(&self.destination);
        is_ours.then_some(found.layers)
    }
}

impl<'a> Note<'a> {
    /// Looks for what an earlier conversion has noted, and adds it to what is known.
    pub(super) async fn of(target: &'a Target, watch: &'a dyn Watch, prior: &mut Prior) -> Self {
        let mut note = Self {
            target,
            watch,
            place: Place::of(target),
            found: HashSet::new(),
            state: Mutex::default(),
            changed: Notify::new(),
        };
        let Some(place) = &note.place else { return note };
        match target.beside(&place.tag).await {
            Ok(Some(manifest)) => match place.read(&manifest) {
                Some(layers) => {
                    note.state().there = Some(manifest.digest);
                    note.found = prior.noted(layers);
                }
                None => note.refuse(&Error::invalid(format!("tag {}", place.tag), "it is of something else")),
            },
            Ok(None) => {}
            // Who may not read it has never gone on from it.
            Err(error @ (Error::Denied { .. } | Error::Refused { .. })) => {
                tracing::debug!(%error, "nothing is noted");
            }
            Err(error) => note.refuse(&error),
        }
        note
    }

    /// Tells how many layers there are that only an earlier note knows of.
    pub(super) fn tell(&self, made: &BTreeMap<Digest, Made>) {
        let is_found = |made: &&Made| match made {
            Made::Another(layer, How::Reused) => self.found.contains(&layer.digest),
            _ => false,
        };
        let count = made.values().filter(is_found).count();
        if count > 0 {
            self.watch.noticed(&format!(
                "noted layers of an earlier conversion that were taken over: {count}; --verify compares them with the source"
            ));
        }
    }

    /// Notes what there is of a layer.
    pub(super) fn add(&self, from: Digest, layer: &LayerBlob, how: How) {
        let mut entry = layer.descriptor();
        entry.annotations.insert(DIFF_ID.into(), layer.diff_id.to_string());
        let mut state = self.state();
        state.layers.insert(from, entry);
        // What was there before is noted, or its name leads to it.
        if how == How::Recoded && !state.is_refused {
            state.is_behind = true;
            self.changed.notify_one();
        }
    }

    /// Notes a layer no more: it is not there.
    pub(super) fn lacks(&self, from: &Digest) {
        self.state().layers.remove(from);
    }

    /// Works, and writes the note meanwhile; waits for the rest of it, but not for long.
    pub(super) async fn during<T>(&self, work: impl Future<Output = T>) -> T {
        let Some(place) = &self.place else { return work.await };
        let (mut work, mut keeping) = (pin!(work), pin!(self.keep(place)));
        let done = tokio::select! {
            done = &mut work => done,
            () = &mut keeping => work.await, // it does not end before it is told to
        };
        self.state().has_ended = true;
        self.changed.notify_one();
        if timeout(limits::NOTE, keeping).await.is_err() {
            tracing::debug!("the note of what was made has not arrived in time");
        }
        done
    }

    /// Removes it.
    pub(super) async fn forget(&self) {
        let Some(place) = &self.place else { return };
        let (known, is_unsure) = {
            let mut state = self.state();
            (state.there.take(), std::mem::take(&mut state.is_unsure))
        };
        let removing = async {
            let there = if is_unsure { self.look(place).await.unwrap_or(known) } else { known };
            if let Some(known) = known.filter(|_| there != known) {
                let _ = self.target.remove(&known).await; // no tag leads to it
            }
            let Some(there) = there else { return };
            let config = place.config.digest();
            let Err(error) = self.target.remove_beside(&place.tag, &there, config).await else { return };
            tracing::debug!(%error, "the note of what was made stays");
            match place.manifest(Vec::new()) {
                Ok(empty) if empty.digest == there => {}
                Ok(empty) => {
                    let _ = self.put(place, &empty).await; // then it names layers that the image has
                }
                Err(error) => tracing::debug!(%error, "the note of what was made stays"),
            }
        };
        let _ = timeout(limits::NOTE, removing).await; // the next conversion will remove it
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes it whenever there is more, until no more will come.
    async fn keep(&self, place: &Place) {
        loop {
            let (is_behind, has_ended) = {
                let mut state = self.state();
                (std::mem::take(&mut state.is_behind), state.has_ended)
            };
            match (is_behind, has_ended) {
                (true, _) => self.write(place).await,
                (false, true) => return,
                (false, false) => self.changed.notified().await,
            }
        }
    }

    async fn write(&self, place: &Place) {
        let layers = {
            let mut state = self.state();
            state.is_unsure = true;
            state.layers.values().cloned().collect()
        };
        let written = match place.manifest(layers) {
            Ok(manifest) => self.put(place, &manifest).await.map(|()| manifest.digest),
            Err(error) => Err(error),
        };
        self.state().is_unsure = written.as_ref().is_err_and(Error::is_temporary);
        match written {
            Ok(digest) => {
                let before = self.state().there.replace(digest);
                if let Some(before) = before.filter(|before| *before != digest)
                    && let Err(error) = self.target.remove(&before).await
                {
                    tracing::debug!(%error, "an earlier note stays, which no tag leads to");
                }
            }
            Err(error) if error.is_temporary() => self.told(&error),
            Err(error) => self.refuse(&error),
        }
    }

    /// Returns the note that is there.
    async fn look(&self, place: &Place) -> Result<Option<Digest>, Error> {
        let found = self.target.beside(&place.tag).await?;
        Ok(found.filter(|manifest| place.read(manifest).is_some()).map(|manifest| manifest.digest))
    }

    async fn put(&self, place: &Place, manifest: &Manifest) -> Result<(), Error> {
        self.target.put_beside(&place.tag, media_type::FLOE_CONVERSION, manifest, &place.config).await
    }

    /// Writes it no more.
    fn refuse(&self, error: &Error) {
        {
            let mut state = self.state();
            (state.is_refused, state.is_behind) = (true, false);
        }
        self.told(error);
    }

    /// Tells once that it is not written.
    fn told(&self, error: &Error) {
        if !std::mem::replace(&mut self.state().is_told, true) {
            self.watch.noticed(&format!(
                "what is made of layers cannot be noted at the destination, so a conversion that is killed begins anew: {error}"
            ));
        }
    }
}
