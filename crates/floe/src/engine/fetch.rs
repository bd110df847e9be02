//! What is fetched when nobody waits: the profile in its order, then the rest, then the proof.

use std::collections::BTreeSet;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use format::IndexId;
use store::{CompleteError, Priority};

use super::found::FoundLayer;
use super::open::OpenImage;
use super::role::Role;
use super::{Engine, Talk};
use crate::daemon::protocol::{Event, Progress, Settled};
use crate::exit::Hint;

/// How long a whole image may take in the background; then the rest stays lazy.
const COMPLETE_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// How often a full queue is tried again.
const AGAIN: Duration = Duration::from_millis(20);

/// How long the link is left to readers before the rest is fetched.
const PAUSE: Duration = Duration::from_secs(1);

/// Reads of a profile that are looked at together.
const BATCH: usize = 64;

/// Damaged segments that are named; a disk that has lost more than that has lost them all.
const NAMED: usize = 8;

impl Engine {
    /// Begins to fetch what a start reads, in its order. What is here already costs nothing.
    pub(super) fn fetch_profile(self: &Arc<Self>, profile: Arc<super::Profile>) {
        let engine = self.clone();
        self.in_background("profile", move || {
            for (index, segments) in batches(profile.reads()) {
                while !engine.through.want(index, segments.clone(), Priority::Profile) {
                    if engine.stopping() {
                        return;
                    }
                    std::thread::sleep(AGAIN);
                }
            }
        });
    }

    /// Begins to fetch all that is missing, and proves it when it is here.
    pub(super) fn fetch_rest(self: &Arc<Self>, image: &Arc<OpenImage>) {
        let report = self.report(image);
        let provable = |found: &FoundLayer| !found.proved() && found.layer().is_of_tar();
        if report.complete() && !image.layers().iter().any(provable) {
            return;
        }
        let (engine, image) = (self.clone(), image.clone());
        self.in_background("rest", move || {
            // Ready is seldom the last moment that somebody waits: the first request reads something more.
            std::thread::sleep(PAUSE);
            if engine.stopping() {
                return;
            }
            engine.rest(image);
        });
    }

    /// Fetches all that is missing as there is room for it. While it waits for room, the image is not kept in use: it may
    /// be what makes room.
    fn rest(&self, image: Arc<OpenImage>) {
        let known = Arc::downgrade(&image);
        let mut wanted = Some(image);
        while let Some(image) = wanted {
            match self.complete(&image, &|_| Ok(())) {
                Ok(()) => return,
                Err(error) if matches!(error.downcast_ref(), Some(CompleteError::Paused)) => {
                    tracing::info!(image = image.reference(), "fetching the rest waits until there is room");
                }
                Err(error) => {
                    tracing::warn!(image = image.reference(), "fetching the rest: {error:#}");
                    return;
                }
            }
            drop(image);
            if !self.wait_for_room() {
                return;
            }
            wanted = known.upgrade();
        }
    }

    /// Fetches all that is missing and proves every layer against the config.
    pub(super) fn complete(&self, image: &OpenImage, talk: &Talk<'_>) -> anyhow::Result<()> {
        let deadline = Instant::now() + COMPLETE_DEADLINE;
        for found in image.layers() {
            let blob = found.place.blob;
            say(talk, "fetching", &blob, 0, found.packed())?;
            let mut gone = Ok(());
            let completed = self.through.complete_while(found.id(), deadline, &mut |missing| {
                gone = say(talk, "fetching", &blob, found.here(missing), found.packed());
                gone.is_ok()
            });
            gone?;
            completed
                .map_err(|error| self.for_want_of_room(error))
                .with_context(|| format!("completing layer {blob}"))?;
            if !found.proved() && found.layer().is_of_tar() {
                say(talk, "proving", &blob, found.place.size, found.place.size)?;
                self.prove(found)?;
            }
            say(talk, "complete", &blob, found.packed(), found.packed())?;
        }
        Ok(())
    }

    /// Fetches whole what is mounted, so that the kernel serves it alone.
    pub(crate) fn settle(&self, force: bool, talk: &Talk<'_>) -> anyhow::Result<Settled> {
        let snapshots = self.snapshots.count();
        if snapshots > 0 && !force {
            bail!(anyhow::anyhow!("{snapshots} snapshots or layers of it are in use").context(Hint::new(
                "doing without the daemon",
                "remove their containers and images first; with --force what runs goes on until it ends, and cannot be \
                 started again"
            )));
        }
        let deadline = Instant::now() + COMPLETE_DEADLINE;
        let mounts = self.mounts.all();
        for mount in &mounts {
            mount.end_start();
            for layer in mount.layers() {
                let mut gone = Ok(());
                let completed = self.through.complete_while(layer.index, deadline, &mut |_| {
                    gone = say(talk, "fetching", &layer.blob, 0, layer.size);
                    gone.is_ok()
                });
                gone?;
                completed
                    .map_err(|error| self.for_want_of_room(error))
                    .with_context(|| format!("completing layer {} of {}", layer.blob, mount.reference()))?;
            }
            mount.release_if_complete();
        }
        let served = mounts.iter().filter(|mount| mount.needs_us()).map(|mount| mount.reference()).collect();
        Ok(Settled { mounts: mounts.len(), served, snapshots })
    }

    fn prove(&self, found: &FoundLayer) -> anyhow::Result<()> {
        match self.through.prove(found.id()) {
            Ok(_) => Ok(()),
            Err(CompleteError::Refused { index, source }) => {
                let refused = format!(
                    "layer {} is not what its image says ({source}): the index {index} lied. Affected: {}. \
                     Its bytes are kept as evidence; nothing more of it is mounted or fetched",
                    found.place.blob,
                    self.affected(index).join(", ")
                );
                self.alert(refused.clone());
                self.images().retain(|_, other| !other.layer_ids().contains(&index));
                bail!(refused)
            }
            Err(error) => Err(error).with_context(|| format!("proving layer {}", found.place.blob)),
        }
    }

    /// Returns the images that read a layer through this index, open or not.
    fn affected(&self, index: IndexId) -> Vec<String> {
        let uses = |image: &&Arc<OpenImage>| image.layer_ids().contains(&index);
        let mut affected: BTreeSet<String> =
            self.images().values().filter(uses).map(|image| image.reference().to_owned()).collect();
        match self.store.refs().list() {
            Ok((known, _)) => {
                let named =
                    known.iter().filter(|image| image.layers.iter().any(|layer| layer.index == index));
                affected.extend(named.map(|image| image.name.as_str().to_owned()));
            }
            Err(error) => tracing::warn!("listing the references: {error}"),
        }
        affected.into_iter().collect()
    }

    /// Re-hashes what is here; what is wrong is fetched again with the next read. What others may take from it is listed anew.
    pub(super) fn scrub(&self, image: &OpenImage, talk: &Talk<'_>) -> anyhow::Result<()> {
        for found in image.layers() {
            let blob = found.place.blob;
            say(talk, "reading", &blob, 0, found.place.size)?;
            let wrong = self.through.scrub(found.id()).with_context(|| format!("reading layer {blob}"))?;
            if !wrong.is_empty() {
                let text = format!(
                    "layer {blob}: segments damaged on disk: {}; they are fetched again, and mounts that have shown them \
                     must be made anew",
                    numbers(&wrong)
                );
                self.alert(text.clone());
                talk(Event::Notice { text })?;
            }
            if let Err(error) = self.store.make_known(found.layer()) {
                tracing::warn!(%blob, %error, "listing the chunks of a layer: what others have in common with it is fetched");
            }
        }
        Ok(())
    }

    /// Builds every index anew from the layer itself and compares: equal identity is equal bytes.
    pub(super) fn rebuild(&self, image: &OpenImage, talk: &Talk<'_>) -> anyhow::Result<()> {
        // A layer of Nydus was read whole when its index was made, or is nothing that an index could be made of.
        let is_nydus = |found: &FoundLayer| found.place.role.is_some_and(Role::is_nydus);
        for found in image.layers().iter().filter(|found| !is_nydus(found)) {
            let segment = found.layer().facts().segment;
            let (_, layer, _pins) = self.build_layer(&found.place, segment, talk)?;
            if layer.id() != found.id() {
                let text = format!(
                    "layer {}: the index in use is {}, the layer itself gives {}",
                    found.place.blob,
                    found.id(),
                    layer.id()
                );
                self.alert(text.clone());
                // The proof says so too, and then nobody mounts it any more.
                self.images().retain(|_, image| !image.layer_ids().contains(&found.id()));
                let proof = self.complete(image, talk);
                return proof.and(Err(anyhow::Error::msg(text)));
            }
        }
        Ok(())
    }

    pub(super) fn in_background(self: &Arc<Self>, name: &str, work: impl FnOnce() + Send + 'static) {
        if let Err(error) = std::thread::Builder::new().name(name.into()).spawn(work) {
            tracing::warn!("starting a background thread: {error}; the image stays lazy");
        }
    }
}

/// Puts neighbours among reads together, so that they share a request: a few of the first, for somebody waits for them,
/// and more and more of those that follow.
fn batches(reads: impl Iterator<Item = (IndexId, u32)>) -> Vec<(IndexId, Range<u32>)> {
    let mut batches: Vec<(IndexId, Range<u32>)> = Vec::new();
    let mut reads = reads.peekable();
    let mut size = 4;
    while reads.peek().is_some() {
        let mut batch: Vec<_> = reads.by_ref().take(size).collect();
        size = (size * 2).min(BATCH);
        // Layers in the order in which they are first read, segments as they lie.
        let order: Vec<IndexId> = batch.iter().map(|(index, _)| *index).collect();
        batch.sort_by_key(|(index, segment)| (order.iter().position(|other| other == index), *segment));
        for (index, segment) in batch {
            match batches.last_mut() {
                Some((last, range)) if *last == index && range.end == segment => range.end += 1,
                _ => batches.push((index, segment..segment + 1)),
            }
        }
    }
    batches
}

/// Names the first few.
fn numbers(segments: &[u32]) -> String {
    let mut text = segments.iter().take(NAMED).map(u32::to_string).collect::<Vec<_>>().join(", ");
    if let Some(rest) = segments.len().checked_sub(NAMED).filter(|rest| *rest > 0) {
        text += &format!(" and {rest} more");
    }
    text
}

/// Says how far a step is; stops it where nobody listens any more.
pub(crate) fn say(
    talk: &Talk<'_>,
    step: &str,
    what: &format::Digest,
    done: u64,
    total: u64,
) -> anyhow::Result<()> {
    let what = what.hex()[..12].to_owned();
    talk(Event::Progress(Progress { step: step.to_owned(), what, done, total }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_that_lie_together_share_a_request_and_the_first_ones_come_first() {
        let [a, b] = [1, 2].map(|n| IndexId::from_bytes([n; 32]));
        let reads = [(a, 5), (b, 1), (a, 4), (b, 2), (a, 9), (a, 8), (a, 6), (b, 3)];
        let batches = batches(reads.into_iter());
        assert_eq!(batches, [(a, 4..6), (b, 1..3), (a, 6..7), (a, 8..10), (b, 3..4)]);
    }
}
