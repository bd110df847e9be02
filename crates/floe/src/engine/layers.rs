//! Where a layer's index comes from: the store, the registry, or the layer itself.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, anyhow, bail};
use convert::recode::erofs;
use format::index::{Basis, Index};
use format::layer::Layer;
use format::payload::SegmentSize;
use format::{Digest, IndexId, limits};
use registry::{About, IndexArtifact, Reference, Source};
use store::{Blob, Hold, ImageRef, Origin, Pin, Priority, Proof, RefName, Urgency};

use super::asker::{Asker, Question, is_in};
use super::doubt::WRONG;
use super::found::{FoundLayer, Place};
use super::line::Line;
use super::open::{Purpose, Resolved};
use super::parallel::parallel;
use super::pipe::{Pipe, PipeEnd};
use super::profile::Profile;
use super::report::{Fallback, IndexOrigin};
use super::role::Role;
use super::tables::{is_of, vouched};
use super::why_not::WhyNot;
use super::{Engine, Talk, say};
use crate::origin::Referring;
use crate::trust::{Claim, Signature, Verdict};

/// Layers streamed at once: what containerd fetches at once, and enough to keep two cores and a link busy.
const STREAMS: usize = 3;

/// Indexes of the store opened at once: reading and checking one keeps a processor busy.
const OPENED: usize = 4;

/// Index blobs fetched at once: they are small, so round trips are what is saved.
const INDEXES: usize = 8;

/// An index may be as long as its layer, and this much longer: that of a tiny layer is, and one that is not is no
/// reason to fill a node's memory before anybody has looked at it.
pub(super) const SMALL_INDEX: u64 = 1 << 20;

/// Signature blobs looked at for one image: many signers of several artifacts, each a request.
const SIGNATURES: usize = 64;

/// A layer that has not been streamed by then never will be. Stalls are noticed long before, by the client.
const STREAM_DEADLINE: Duration = Duration::from_secs(6 * 3600);

/// Bytes between two words about the progress of a layer.
const SAY: u64 = 1 << 20;

/// Blobs longer than this, 256 MiB, get larger segments.
const LARGE: u64 = 256 << 20;

/// And larger ones still beyond 1 GiB.
const HUGE: u64 = 1 << 30;

/// All layers of an image.
pub(super) struct Found {
    pub(super) layers: Vec<FoundLayer>,
    /// One line: lazy or full, and why.
    pub(super) why: String,
    /// What the artifact says a start reads.
    pub(super) profile: Option<Profile>,
    /// What a SOCI index says.
    pub(super) ahead: Option<Profile>,
    /// What fetching the indexes has told.
    pub(super) line: Line,
}

/// The layers of an image, as far as they have an index.
pub(super) struct KnownLayers {
    pub(super) layers: Vec<Option<FoundLayer>>,
    /// What else refers to the image, where that was asked.
    pub(super) about: Option<About>,
    pub(super) why_not: WhyNot,
    profile: Option<Profile>,
    ahead: Option<Profile>,
    line: Line,
}

impl KnownLayers {
    /// Says why a layer has no index.
    pub(super) fn why_not(&self) -> String {
        self.why_not.text.clone().unwrap_or_else(|| Fallback::NoIndex.to_string())
    }
}

/// What the registry has beside the image.
struct Shipped {
    /// Anybody who may write there can add an index, so the first is not the last word.
    about: About,
    /// Of all of them: a signature names what it covers, wherever it lies.
    signatures: Vec<Signature>,
}

/// An index that is not signed where it must be.
#[derive(Debug, thiserror::Error)]
pub(super) enum NotSigned {
    #[error("the image is named by digest and no trusted key signed the index")]
    ForDigest,
    #[error(
        "layers are shared between images, and no trusted key signed the index; trust = \"registry\" would do for the host"
    )]
    Shared,
    #[error("a policy asks for a signed index and no trusted key signed this one")]
    UnderPolicy,
}

impl Engine {
    /// Finds an index for every layer; where there is none, streams the layer.
    pub(super) fn find_layers(
        &self,
        reference: &Reference,
        resolved: &mut Resolved,
        purpose: Purpose,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Found> {
        let known = match self.remembered(reference, resolved, purpose) {
            Some(known) => known,
            None => {
                let mut known = self.known_layers(reference, resolved, purpose)?;
                self.stand_in(reference, resolved, purpose, &mut known);
                known
            }
        };
        let KnownLayers { mut layers, about: _, why_not, profile, ahead, line } = known;
        let asker = Asker::of(reference, purpose);
        let asked = asker.question();
        let missing: Vec<usize> = (0..layers.len()).filter(|n| layers[*n].is_none()).collect();
        let role = |n: &usize| resolved.layers[*n].role;
        if missing.iter().any(|n| role(n).is_some_and(Role::is_nydus)) {
            // It is no tar, so there is no other way to read it.
            let why = why_not.text.unwrap_or_else(|| "its registry is not reached".into());
            bail!("an image of Nydus that cannot be read: {why}");
        }
        let streamed =
            parallel(&missing, STREAMS, |n| self.stream_layer(&resolved.layers[*n], &asked, talk))?;
        for (n, layer) in missing.iter().zip(streamed) {
            // It may have become local while we waited for whoever streamed it.
            if layer.origin == IndexOrigin::Streamed {
                let reason = role(n).map_or_else(|| why_not.of(*n), |_| Fallback::FileSystem);
                let mut fallbacks = self.fallbacks.lock().unwrap_or_else(PoisonError::into_inner);
                *fallbacks.entry(reason).or_default() += 1;
            }
            layers[*n] = Some(layer);
        }
        let layers: Vec<_> = layers.into_iter().flatten().collect();
        let all = missing.iter().all(|n| role(n).is_some()).then(|| Fallback::FileSystem.to_string());
        Ok(Found { why: why(&layers, why_not.text.or(all)), layers, profile, ahead, line })
    }

    /// Finds the index of every layer that has one, here or in the registry. No layer is fetched.
    pub(super) fn known_layers(
        &self,
        reference: &Reference,
        resolved: &mut Resolved,
        purpose: Purpose,
    ) -> anyhow::Result<KnownLayers> {
        let referring = resolved.referring.take();
        let resolved = &*resolved;
        if resolved.layers.len() > limits::LAYERS {
            bail!("{} layers; at most {} are supported", resolved.layers.len(), limits::LAYERS);
        }
        if let Some(source) = &resolved.source {
            resolved.layers.iter().for_each(|place| self.net.know(place.blob, source));
        }
        let asker = Asker::of(reference, purpose);
        let asked = asker.question();
        let images = self.known_images();
        let alone = resolved.source.is_none() || resolved.unasked.is_some();
        let mut layers =
            parallel(&resolved.layers, OPENED, |place| self.local_layer(place, &images, &asked, alone))?;
        let (mut profile, mut ahead, mut about) = (None, None, None);
        let line = Line::default();
        let mut why_not = WhyNot::default();
        if let Some(source) = &resolved.source {
            why_not.text = self.read_nydus(source, resolved, &asked, &line, &mut layers)?;
        }
        let lacks = |n: usize| layers[n].is_none() && resolved.layers[n].role.is_none();
        if (0..layers.len()).any(lacks)
            && let Some(source) = &resolved.source
        {
            match self.shipped(source, &resolved.manifest, referring) {
                Ok(shipped) => {
                    let untold = why_not.text.take();
                    why_not = self.fetch_layers(source, &shipped, &asked, resolved, &line, &mut layers)?;
                    why_not.text = untold.or(why_not.text);
                    profile = self.shipped_profile(source, &shipped);
                    about = Some(shipped.about);
                }
                Err(error) => {
                    why_not.usual = Fallback::NoAnswer;
                    why_not.text = Some(format!("the registry did not say whether it has an index: {error}"));
                }
            }
            if purpose.takes_tables() {
                let untold = self.read_tables(source, &resolved.layers, &asked, &line, &mut layers)?;
                why_not.then(untold);
                if let Some(about) = &about {
                    let read = self.read_soci(source, resolved, about, &asked, &line, &mut layers)?;
                    why_not.then(read.why_not);
                    ahead = read.profile;
                }
            }
        }
        if let Some(source) = &resolved.source {
            layers.iter().flatten().for_each(|found| self.know_beside(found.layer().index(), source));
        }
        Ok(KnownLayers { layers, about, why_not, profile, ahead, line })
    }

    /// Remembers that a source has what a layer's bytes are in beside the layer's blob: that need be no layer of the image.
    pub(super) fn know_beside(&self, index: &Index, source: &Arc<Source>) {
        let contents = index.source().contents.iter();
        contents.flat_map(|contents| &contents.blobs).for_each(|blob| self.net.know(blob.digest, source));
    }

    /// Returns a layer whose index is in the store and believed for this reference; `alone` if no registry can be asked.
    fn local_layer(
        &self,
        place: &Place,
        images: &[ImageRef],
        asked: &Question<'_>,
        alone: bool,
    ) -> anyhow::Result<Option<FoundLayer>> {
        if place.role.is_some() && asked.by_blob {
            return Ok(None);
        }
        let mut second = None;
        for (id, accepted_by) in self.known_indexes(place, images) {
            let claim = Claim { layer: place.blob, diff_id: place.diff_id, index: id };
            let index = match self.store.index(id) {
                Ok(Some(index)) => index,
                Ok(None) => continue,
                Err(error) => {
                    self.alert(format!(
                        "an index in the store is left aside and will be made again: {error}"
                    ));
                    continue;
                }
            };
            let size = index.encode().len() as u64;
            let made_of = index.source().contents.as_ref().map(|contents| contents.table);
            let role = made_of.and_then(|table| Role::of_table(&table, &place.blob));
            let table = made_of.filter(|_| role.is_none());
            if role != place.role || table.is_some_and(|table| asked.proving || !is_of(&table, place)) {
                continue;
            }
            let hold = match self.open_layer(place, index) {
                Ok(hold) => hold,
                Err(error) => {
                    tracing::warn!(index = %id, "an index in the store is left aside: {error:#}");
                    continue;
                }
            };
            // Of a layer that was completed segment by segment nobody has hashed the blob. That its tar is what the image's
            // configuration says is enough where layers are shared by what their tar is; where they are shared by their blob, an
            // image that calls another's blob by a false diffID would have its tree shown.
            let proved = !asked.by_blob && hold.files().standing().proof == Proof::Proved;
            let verdict = self.rule.judge(asked.asked, &claim, &[]);
            // Believed once for this very reference, with evidence that need not be at hand today. What was
            // good enough for a tag of the same manifest is not good enough for its digest.
            let vouched = place.table.is_some() && made_of.is_some() && vouched(verdict, asked)
                || place.role.is_some_and(|role| role.is_certain(verdict, asked));
            let believed = !asked.shared
                && accepted_by.iter().any(|name| name.as_str() == asked.name)
                && verdict == Verdict::UnsignedForDigest;
            // An unsigned claim is as good as those who may write where it was found: the layer's other users did
            // not ask them.
            let at_home = accepted_by.iter().any(|name| is_in(name, asked.asked.repository));
            if proved || believed || vouched || (at_home && verdict.accepted()) {
                let place = place.clone();
                let found = FoundLayer { place, hold, origin: IndexOrigin::Local, index_size: size };
                if !alone && self.is_wrong(&found) {
                    tracing::warn!(index = %id, "an index in the store is left aside: {WRONG}");
                    continue;
                }
                if proved {
                    return Ok(Some(found));
                }
                // A proved one is better; else one that can be proved.
                if made_of.is_none() || second.is_none() {
                    second = Some(found);
                }
            }
        }
        Ok(second)
    }

    /// Returns the images that references of the store name.
    fn known_images(&self) -> Vec<ImageRef> {
        let (images, damaged) = self.store.refs().list().unwrap_or_else(|error| {
            tracing::warn!("listing the references: {error}");
            Default::default()
        });
        for damaged in damaged {
            self.alert(format!("reference file {} is damaged: {}", damaged.file, damaged.error));
        }
        images
    }

    /// Returns the indexes that references name for a layer, with the references that do.
    fn known_indexes(&self, place: &Place, images: &[ImageRef]) -> HashMap<IndexId, Vec<RefName>> {
        let mut known: HashMap<IndexId, Vec<RefName>> = HashMap::new();
        for image in images {
            let same = |layer: &&store::RefLayer| layer.blob == place.blob && layer.diff_id == place.diff_id;
            for layer in image.layers.iter().filter(same) {
                known.entry(layer.index).or_default().push(image.name.clone());
            }
        }
        for snapshot in self.snapshots.lazy(&place.blob, &place.diff_id) {
            let names = known.entry(snapshot.layer.index).or_default();
            names.extend(RefName::parse(&snapshot.reference));
        }
        // Of an image that is being opened by somebody else no reference speaks yet.
        let built = self
            .built
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&(place.blob, place.diff_id))
            .copied();
        if let Some(index) = built {
            known.entry(index).or_default();
        }
        known
    }

    /// Checks that an index is of this layer, and takes it into use.
    pub(super) fn open_layer(&self, place: &Place, index: Index) -> anyhow::Result<Hold> {
        self.use_layer(place, checked(place, index)?)
    }

    fn use_layer(&self, place: &Place, layer: Layer) -> anyhow::Result<Hold> {
        let (facts, source) = (layer.facts(), layer.source());
        if source.blob != place.blob || source.size != place.size || facts.diff_id != place.diff_id {
            bail!("the index is of layer {} ({}), not of {}", source.blob, facts.diff_id, place.blob);
        }
        Ok(self.through.add(Arc::new(layer))?)
    }

    fn shipped(
        &self,
        source: &Source,
        manifest: &Digest,
        asked: Option<Referring>,
    ) -> Result<Shipped, registry::Error> {
        let about = self.net.about(source, manifest, asked)?;
        let mut signatures = Vec::new();
        for descriptor in about.indexes.iter().flat_map(|artifact| &artifact.signatures).take(SIGNATURES) {
            // Anybody who may write there can add one that cannot be had; it must not spoil the others.
            let fetched = self.net.blob(source, descriptor, limits::MANIFEST).map_err(anyhow::Error::from);
            let parsed = fetched.and_then(|bytes| Ok(serde_json::from_slice::<Vec<Signature>>(&bytes)?));
            match parsed {
                Ok(found) => signatures.extend(found),
                Err(error) => {
                    tracing::warn!(blob = %descriptor.digest, "signatures that cannot be read: {error:#}")
                }
            }
        }
        Ok(Shipped { about, signatures })
    }

    /// Fetches the indexes of the layers that lack one; returns why some are not used, if so.
    fn fetch_layers(
        &self,
        source: &Source,
        shipped: &Shipped,
        asked: &Question<'_>,
        resolved: &Resolved,
        line: &Line,
        layers: &mut [Option<FoundLayer>],
    ) -> anyhow::Result<WhyNot> {
        let why_not = Mutex::new(WhyNot::default());
        for artifact in &shipped.about.indexes {
            let lacks = |n: &usize| layers[*n].is_none() && resolved.layers[*n].role.is_none();
            let missing: Vec<usize> = (0..layers.len()).filter(lacks).collect();
            let fetched = parallel(&missing, INDEXES, |n| {
                let place = &resolved.layers[*n];
                let found = self.fetch_layer(source, artifact, &shipped.signatures, asked, place, line);
                Ok(found.unwrap_or_else(|error| {
                    tracing::warn!(layer = %place.blob, "the fetched index is not used: {error:#}");
                    why_not.lock().unwrap_or_else(PoisonError::into_inner).note(*n, &error);
                    None
                }))
            })?;
            for (n, layer) in missing.iter().zip(fetched) {
                layers[*n] = layer;
            }
        }
        Ok(why_not.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn fetch_layer(
        &self,
        source: &Source,
        artifact: &IndexArtifact,
        signatures: &[Signature],
        asked: &Question<'_>,
        place: &Place,
        line: &Line,
    ) -> anyhow::Result<Option<FoundLayer>> {
        let Some(entry) = artifact.layers.iter().find(|entry| entry.layer == place.blob) else {
            return Ok(None);
        };
        // What nobody will believe is not worth a byte. The descriptor's word is judged first, then the bytes'.
        let claim = Claim { layer: place.blob, diff_id: place.diff_id, index: entry.index };
        let verdict = self.rule.judge(asked.asked, &claim, signatures);
        if !verdict.accepted() {
            bail!(match verdict {
                Verdict::UnsignedForDigest if asked.shared => NotSigned::Shared,
                Verdict::UnsignedForDigest => NotSigned::ForDigest,
                _ => NotSigned::UnderPolicy,
            });
        }
        let limit = limits::INDEX.min(SMALL_INDEX + place.size);
        let begun = Instant::now();
        let bytes = self.net.blob(source, &entry.blob, limit).context("fetching the index")?;
        line.seen(bytes.len() as u64, begun.elapsed());
        let index = Index::decode(&bytes).context("reading the index")?;
        if index.facts().basis != Basis::Tar {
            // Made of a layer's own table, which we read ourselves, and believe for other reasons.
            bail!("an index of a table of contents is nobody's to send");
        }
        if index.id() != claim.index {
            bail!("the index is {}, where {} was announced", index.id(), claim.index);
        }
        tracing::info!(layer = %place.blob, index = %claim.index, ?verdict, "index from the registry");
        self.take_made(place, checked(place, index)?, IndexOrigin::Registry, bytes.len() as u64).map(Some)
    }

    /// Keeps the index of a layer, and takes it into use; `size` is what had to come for it.
    pub(super) fn take_made(
        &self,
        place: &Place,
        layer: Layer,
        origin: IndexOrigin,
        size: u64,
    ) -> anyhow::Result<FoundLayer> {
        let _pin = self.store.put_index(layer.index()).context("keeping the index")?;
        let hold = self.use_layer(place, layer)?;
        let found = FoundLayer { place: place.clone(), hold, origin, index_size: size };
        if self.is_wrong(&found) {
            bail!(WRONG);
        }
        Ok(found)
    }

    /// Takes in the layers that were opened by something, by their numbers; returns why not, for the first that could not be.
    pub(super) fn take_opened(
        by: &str,
        places: &[Place],
        opened: impl IntoIterator<Item = (usize, anyhow::Result<FoundLayer>)>,
        layers: &mut [Option<FoundLayer>],
    ) -> WhyNot {
        let mut why_not = WhyNot::default();
        for (n, opened) in opened {
            match opened {
                Ok(found) => layers[n] = Some(found),
                Err(error) => {
                    tracing::warn!(layer = %places[n].blob, "{by} is not used: {error:#}");
                    why_not.note(n, &error);
                }
            }
        }
        why_not
    }

    fn shipped_profile(&self, source: &Source, shipped: &Shipped) -> Option<Profile> {
        let descriptor = shipped.about.indexes.iter().find_map(|artifact| artifact.profile.as_ref())?;
        let read = || anyhow::Ok(Profile::parse(&self.net.blob(source, descriptor, limits::MANIFEST)?)?);
        read().inspect_err(|error| tracing::warn!("the shipped profile is not used: {error:#}")).ok()
    }

    /// Fetches a layer whole and builds its index on the way. Nothing of it is seen before its digests passed.
    fn stream_layer(
        &self,
        place: &Place,
        asked: &Question<'_>,
        talk: &Talk<'_>,
    ) -> anyhow::Result<FoundLayer> {
        let _one = self.building.hold(place.blob);
        // Somebody else may have streamed it while we waited; then it is proved, whoever asks.
        if let Some(found) = self.local_layer(place, &self.known_images(), asked, false)? {
            return Ok(found);
        }
        let size = segment_size(place.size);
        let (index_size, layer, _pins) =
            self.build_layer(place, size, talk).with_context(|| format!("streaming layer {}", place.blob))?;
        let built = ((place.blob, place.diff_id), layer.id());
        let hold = self.through.add(layer)?;
        self.built.lock().unwrap_or_else(PoisonError::into_inner).extend([built]);
        Ok(FoundLayer { place: place.clone(), hold, origin: IndexOrigin::Streamed, index_size })
    }

    /// Builds the index of a layer from the layer, and keeps both; the pins keep them from `gc` until they are in use.
    pub(super) fn build_layer(
        &self,
        place: &Place,
        segment: SegmentSize,
        talk: &Talk<'_>,
    ) -> anyhow::Result<(u64, Arc<Layer>, [Pin; 2])> {
        let _one_of_few = self.streams.hold();
        let mut staging = self.store.stage()?;
        let options = convert::Options { segment, blob_size: place.size };
        let expected = convert::Expected { blob: place.blob, diff_id: place.diff_id };
        let apart = |role| {
            self.check_room(place.size.saturating_mul(2))?; // the whole blob, and what is made of it
            anyhow::Ok((role, self.store.scratch()?))
        };
        let scratch = place.role.map(apart).transpose()?;
        let (layer, proved) = std::thread::scope(|scope| {
            let (pieces, blob) = Pipe::narrow();
            // The network writes into the pipe, this thread reads from it.
            let streaming = scope.spawn(move || self.stream(place, pieces, talk));
            let write =
                |segment: u32, bytes: &[u8]| staging.write(segment, bytes).map_err(std::io::Error::other);
            let built = match &scratch {
                Some((role, scratch)) => {
                    let table = role.table(&place.blob);
                    erofs::index(blob, &expected, options, table, scratch, write).map_err(anyhow::Error::from)
                }
                None => convert::build(blob, options, &expected, convert::Threads::Two, write)
                    .map_err(anyhow::Error::from)
                    .and_then(|(index, proved)| Ok((Layer::open(index)?, proved))),
            };
            let streamed = streaming.join().map_err(|_| anyhow!("a thread ended unexpectedly"))?;
            // The network's error explains the builder's, which only saw the bytes end.
            streamed.and(built)
        })?;
        let kept = self.store.put_index(layer.index())?;
        let index_size = layer.index().encode().len() as u64;
        let layer = Arc::new(layer);
        let placed = staging.commit(&layer, proved)?;
        Ok((index_size, layer, [kept, placed]))
    }

    /// Streams a blob into a pipe; ends early without error when nobody reads it any more.
    fn stream(&self, place: &Place, pieces: PipeEnd, talk: &Talk<'_>) -> anyhow::Result<()> {
        let blob = Blob { digest: place.blob, size: place.size };
        let deadline = Instant::now() + STREAM_DEADLINE;
        let (mut received, mut said, mut gone) = (0, 0, Ok(()));
        self.net.read(&blob, 0..place.size, &Urgency::new(Priority::Demand), deadline, &mut |piece| {
            received += piece.len() as u64;
            if received - said >= SAY || received == place.size {
                said = received;
                gone = say(talk, "streaming", &place.blob, received, place.size);
            }
            if gone.is_ok() && pieces.send(piece) {
                ControlFlow::Continue(())
            } else {
                ControlFlow::Break(())
            }
        })?;
        gone
    }
}

fn checked(place: &Place, index: Index) -> anyhow::Result<Layer> {
    Layer::open(index).with_context(|| format!("checking the index of layer {}", place.blob))
}

/// Returns the segment size for a layer whose blob has this length: a mount can have
/// [`limits::SEGMENTS`] of them, and one layer should leave room for others. Why 512 KiB: decision 6.
pub(super) fn segment_size(blob: u64) -> SegmentSize {
    let bits = match blob {
        _ if blob > HUGE => 22,
        _ if blob > LARGE => 20,
        _ => 19,
    };
    SegmentSize::from_bits(bits).unwrap_or(SegmentSize::DEFAULT)
}

/// What is said of an image that needed nothing from the registry to be opened.
pub(super) const LOCAL: &str = "lazy: the indexes are in the store";

/// One line for people: lazy or full, and why.
fn why(layers: &[FoundLayer], why_not: Option<String>) -> String {
    let count = |origin| layers.iter().filter(|layer| layer.origin == origin).count();
    let (streamed, fetched) = (count(IndexOrigin::Streamed), count(IndexOrigin::Registry));
    let (tables, soci) = (count(IndexOrigin::Contents), count(IndexOrigin::Soci));
    match (streamed, fetched + tables + soci) {
        (0, 0) => LOCAL.into(),
        (0, _) if fetched + tables == 0 => "lazy: the image has a SOCI index".into(),
        (0, _) if fetched == 0 => "lazy: the layers have tables of contents".into(),
        (0, _) => "lazy: the registry has the index".into(),
        (n, _) => {
            let reason = why_not.unwrap_or_else(|| Fallback::NoIndex.to_string());
            format!(
                "full for {n} of {} layers: {reason}; the index is kept, the next start is lazy",
                layers.len()
            )
        }
    }
}
