//! From a reference to an image whose every name can be read.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use format::stargz::table::Announced;
use format::{DiffId, Digest, IndexId, limits};
use registry::{Descriptor, Image, Manifest, Reference, Source};
use store::{ImageRef, MetaKey, Proof};

use super::found::{FoundLayer, Place};
use super::live::{Recipe, expose};
use super::record::Shape;
use super::report::{ImageReport, IndexOrigin, LayerReport, Opening};
use super::role::{Role, roles};
use super::room::InUse;
use super::stand_in::LONGEST_TREE;
use super::tables::landmarks;
use super::{Engine, Talk, ref_name};
use crate::daemon::protocol::Event;
use crate::exit::Hint;
use crate::origin::Referring;

/// How an image was opened the last time.
struct LastOpening {
    times: Opening,
    /// Whether it was a start for which everything was open already; anybody else asks where it came from.
    again: bool,
    /// Why what the store knew of the reference was taken for true, if it was.
    unasked: Option<String>,
    /// What led from the reference to the manifest, which may change while that stays.
    indexes: Vec<Manifest>,
}

/// An image that can be mounted.
pub(super) struct OpenImage {
    reference: String,
    manifest: Digest,
    /// What the reference leads to, where this is shown in place of that.
    original: Option<Digest>,
    descriptor: Descriptor,
    manifest_bytes: Vec<u8>,
    /// Whether the store knows what its reference means.
    named: AtomicBool,
    /// Whether its indexes are good enough to be shared with other images.
    lent: bool,
    config: Vec<u8>,
    layers: Vec<FoundLayer>,
    key: MetaKey,
    meta: PathBuf,
    why: String,
    /// Held for a look only.
    last: Mutex<LastOpening>,
    /// Where it came from; nothing where it was opened without network.
    pub(super) source: Option<Arc<Source>>,
    /// What a start of it reads, as far as anybody has told.
    pub(super) profile: Option<Arc<super::Profile>>,
    /// Whether that is nothing, what the layers' landmarks say, or segments without files: a start teaches better.
    guessed: bool,
    /// Whether that tells apart what a start reads: one that reads most of an image is no different from one of which
    /// nothing is known.
    pub(super) tells: bool,
    /// Whether a start had better fetch all of it from the beginning.
    pub(super) at_once: bool,
}

impl OpenImage {
    pub(super) fn reference(&self) -> &str {
        &self.reference
    }

    pub(super) fn manifest(&self) -> Digest {
        self.manifest
    }

    /// Returns what the reference leads to.
    pub(super) fn asked(&self) -> Digest {
        self.original.unwrap_or(self.manifest)
    }

    /// Returns the manifest as an artifact refers to it.
    pub(super) fn manifest_descriptor(&self) -> &Descriptor {
        &self.descriptor
    }

    /// Returns the manifest, byte for byte.
    pub(super) fn manifest_bytes(&self) -> &[u8] {
        &self.manifest_bytes
    }

    /// Returns the config, byte for byte.
    pub(super) fn config(&self) -> &[u8] {
        &self.config
    }

    pub(super) fn layers(&self) -> &[FoundLayer] {
        &self.layers
    }

    pub(super) fn layer_ids(&self) -> Vec<IndexId> {
        self.layers.iter().map(|layer| layer.id()).collect()
    }

    /// Returns whether this image may still be given out for a manifest: nothing of it has been proved false since
    /// it was opened, and its tree has not been collected.
    fn serves(&self, manifest: Digest, purpose: Purpose) -> bool {
        let refused =
            |layer: &FoundLayer| matches!(layer.hold.files().standing().proof, Proof::Refused { .. });
        let believed = purpose != Purpose::Lend || self.lent || self.layers.iter().all(FoundLayer::proved);
        let of_tar = purpose != Purpose::Pull || self.layers.iter().all(|found| found.layer().is_of_tar());
        let wrong = |layer: &FoundLayer| layer.hold.files().doubted().is_some();
        let stands_in = self.original.is_some();
        believed
            && of_tar
            && self.asked() == manifest
            && !(stands_in && (!purpose.takes_others() || self.layers.iter().any(wrong)))
            && self.meta.exists()
            && !self.layers.iter().any(refused)
            && !self.layers.iter().any(|found| found.doubted().is_some())
    }

    pub(super) fn key(&self) -> MetaKey {
        self.key
    }

    pub(super) fn meta_path(&self) -> &Path {
        &self.meta
    }

    pub(super) fn diff_ids(&self) -> Vec<DiffId> {
        self.layers.iter().map(|layer| layer.place.diff_id).collect()
    }

    /// Returns what a mount of it is made from.
    pub(super) fn recipe(self: &Arc<Self>, purpose: Purpose) -> Recipe {
        Recipe {
            reference: self.reference.clone(),
            key: self.key,
            shape: Shape::Stack,
            meta: self.meta.clone(),
            layers: self.layers.iter().map(FoundLayer::as_ref).collect(),
            files: self.layers.iter().map(FoundLayer::files).collect(),
            uses: Arc::new(InUse::new(self.clone())),
            learn: purpose == Purpose::Start && self.guessed,
        }
    }

    /// Returns the config as text: it is JSON, which was parsed when the image was resolved.
    pub(super) fn config_text(&self) -> anyhow::Result<String> {
        String::from_utf8(self.config.clone()).context("the image's config is not UTF-8")
    }

    /// Begins to fetch what a start reads, if one is about to happen.
    fn hurry(&self, engine: &Arc<Engine>, purpose: Purpose) {
        if let (true, false, Some(profile)) = (purpose.is_start(), self.at_once, &self.profile) {
            engine.fetch_profile(profile.clone());
        }
    }

    /// Remembers that the image was used at this moment.
    pub(super) fn touch(&self) {
        self.layers.iter().for_each(|layer| layer.hold.touch());
    }

    pub(super) fn mounted_in(&self, time: Duration) {
        self.last().times.mount += time;
    }

    /// Returns the image indexes that led to it the last time, the outermost first; nothing where nobody was asked.
    pub(super) fn indexes(&self) -> Option<Vec<Manifest>> {
        let last = self.last();
        last.unasked.is_none().then(|| last.indexes.clone())
    }

    fn last(&self) -> MutexGuard<'_, LastOpening> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an image is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// A container is about to start: what a start reads is fetched at once.
    Start,
    /// The same, and somebody else remembers the image: it gets no name here.
    Lend,
    /// Layers are wanted by their blobs, for somebody who keeps them by that digest and shows them to other images.
    Apart,
    /// Somebody asks for what the reference means today: the registry is waited for.
    Pull,
    /// An image is held against what was promised, or others: what the manifest names is looked at, and nothing in its place.
    Compare,
    /// Anything else.
    Look,
}

impl Purpose {
    /// Says whether a container is about to start.
    fn is_start(self) -> bool {
        matches!(self, Self::Start | Self::Lend)
    }

    /// Says whether layers are read by their own tables of contents: not where they are to be proved, or what is said of
    /// their tars has to be true.
    pub(super) fn takes_tables(self) -> bool {
        !matches!(self, Self::Pull | Self::Apart)
    }

    /// Says whether another image may be shown that says it has the same files.
    pub(super) fn takes_others(self) -> bool {
        matches!(self, Self::Start | Self::Look)
    }
}

/// Returns a reference as everything else names it.
pub(super) fn canonical(image: &str) -> anyhow::Result<String> {
    Ok(parse(image)?.to_string())
}

pub(crate) fn parse(image: &str) -> anyhow::Result<Reference> {
    image.parse().with_context(|| {
        Hint::new(
            format!("understanding the image name {image:?}"),
            "names look like docker://host/name:tag or oci:DIR:TAG",
        )
    })
}

/// What is known of an image before its layers are looked at.
pub(super) struct Resolved {
    pub(super) manifest: Digest,
    /// What the reference leads to, where this is shown in place of that.
    original: Option<Digest>,
    pub(super) manifest_bytes: Vec<u8>,
    config: Vec<u8>,
    pub(super) layers: Vec<Place>,
    pub(super) source: Option<Arc<Source>>,
    /// The question for what refers to it, if it was asked already.
    pub(super) referring: Option<Referring>,
    /// Why this is what the store knew, if it is and the registry could know better.
    pub(super) unasked: Option<String>,
    /// The image indexes that led to it, the outermost first.
    indexes: Vec<Manifest>,
}

impl Engine {
    /// Makes an image readable: every layer has an index and the tree is written.
    pub(super) fn open(
        self: &Arc<Self>,
        image: &str,
        purpose: Purpose,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Arc<OpenImage>> {
        let reference = parse(image)?;
        let name = reference.to_string();
        let begun = Instant::now();
        let mut resolved =
            self.resolve(&reference, purpose, talk).with_context(|| format!("opening {name}"))?;
        let resolve = begun.elapsed();

        let known = self.images().get(&name).filter(|known| known.serves(resolved.asked(), purpose)).cloned();
        let is_lost = |known: &OpenImage| {
            known.original.is_some() && resolved.unasked.is_none() && self.lost(&known.layers).is_some()
        };
        if let Some(known) = known.filter(|known| !is_lost(known)) {
            if purpose != Purpose::Lend {
                self.remember(&known)?;
            }
            *known.last() = LastOpening {
                times: Opening { resolve, ..Opening::default() },
                again: purpose == Purpose::Start,
                unasked: resolved.unasked,
                indexes: resolved.indexes,
            };
            known.touch();
            known.hurry(self, purpose);
            return Ok(known);
        }

        let begun = Instant::now();
        let found = self
            .find_layers(&reference, &mut resolved, purpose, talk)
            .with_context(|| format!("opening {name}"))?;
        let index = begun.elapsed();

        let ids: Vec<_> = found.layers.iter().map(|layer| layer.id()).collect();
        // One of files alone is of a start of another image, and tells no order of segments.
        let is_of_it = |profile: &super::Profile| profile.knows(&ids);
        let recorded = self.recorded_profile(resolved.manifest);
        let recorded = recorded.and_then(|bytes| super::Profile::parse(&bytes).ok()).filter(is_of_it);
        // One without files was cut short, or an earlier version recorded it.
        let unfinished = recorded.as_ref().is_some_and(|recorded| recorded.files().is_empty());
        // What was recorded here is nearer the truth than what somebody else recorded.
        let profile = recorded.or(found.profile.filter(is_of_it));
        let guessed = profile.is_none() || unfinished;
        let profile = profile.or(found.ahead).or_else(|| landmarks(&found.layers)).map(Arc::new);
        let missing = found.layers.iter().map(FoundLayer::missing).sum();
        let segments: usize = found.layers.iter().map(|layer| layer.layer().segments() as usize).sum();
        let tells = profile.as_ref().is_some_and(|profile| profile.reads().count() * 2 < segments);
        let at_once = !tells && found.line.had_better_carry(missing);
        if let (true, false, Some(profile)) = (purpose.is_start(), at_once, &profile) {
            self.fetch_profile(profile.clone()); // the link is idle while the tree is written
        }

        let begun = Instant::now();
        let key = MetaKey::of(&ids);
        let meta = std::thread::scope(|scope| {
            if purpose.is_start() && self.mounts.uses_kernel() {
                // The mount does it again, finds it done, and tells what failed.
                scope.spawn(|| expose(&found.layers.iter().map(FoundLayer::files).collect::<Vec<_>>()));
            }
            self.metadata_image(key, &found.layers)
        });
        let meta = meta.with_context(|| format!("writing the tree of {name}"))?;
        let descriptor = resolved.descriptor()?;
        let image = Arc::new(OpenImage {
            reference: name.clone(),
            manifest: resolved.manifest,
            original: resolved.original,
            descriptor,
            manifest_bytes: resolved.manifest_bytes,
            named: false.into(),
            lent: purpose == Purpose::Lend,
            config: resolved.config,
            layers: found.layers,
            key,
            meta,
            why: found.why,
            last: Mutex::new(LastOpening {
                times: Opening { resolve, index, mount: begun.elapsed() },
                again: false,
                unasked: resolved.unasked,
                indexes: resolved.indexes,
            }),
            source: resolved.source,
            profile,
            guessed,
            tells,
            at_once,
        });
        if purpose != Purpose::Lend {
            self.remember(&image)?;
        }
        self.images().insert(name, image.clone());
        Ok(image)
    }

    /// Asks the registry what the reference means today; without network, what it meant the last time.
    ///
    /// A start does not wait for a network that is not there: with the image in the store the registry has seconds.
    pub(super) fn resolve(
        &self,
        reference: &Reference,
        purpose: Purpose,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Resolved> {
        if reference.is_standard() {
            bail!(anyhow::anyhow!("the daemon has no standard input to read").context(Hint::new(
                "opening an archive",
                format!("floe copy {reference} oci:DIR keeps it where it can be read again")
            )));
        }
        let local =
            self.store.refs().get(&ref_name(&reference.to_string())?).context("looking into the store")?;
        let local = local.filter(|local| local.original.is_none() || self.may_stand_in(reference, purpose));
        // A digest means the same for ever: with everything at hand nobody needs to be asked.
        if let (Some(local), Some(digest)) = (&local, reference.digest())
            && local.manifest_digest == *digest
        {
            let source = self.net.source(reference).ok();
            return Ok(Resolved::local(local, source));
        }
        let source = self.net.source(reference)?;
        let far = matches!(reference, Reference::Registry(_));
        let could_go_on = far && local.is_some() && purpose != Purpose::Pull;
        let (mut too_late, mut told) = (None, Ok(()));
        let known = local.as_ref().map(|local| local.original.as_ref().unwrap_or(&local.manifest_digest));
        let image = self.net.image_unless(&source, known, |late| {
            if could_go_on {
                too_late = Some(late);
                return ControlFlow::Break(());
            }
            told = talk(Event::Notice { text: format!("{reference}: {late}; waiting for it") });
            if told.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        });
        told?;
        let error = match image {
            Some(Ok((image, referring))) => return Ok(Resolved::remote(image, referring, source)),
            Some(Err(error)) if error.is_temporary() => anyhow::Error::new(error),
            Some(Err(error)) if far => return Err(refused(error)),
            Some(Err(error)) => return Err(error).with_context(|| format!("looking into {source}")),
            None => anyhow::Error::new(too_late.context("nobody waited for the registry")?),
        };
        let Some(local) = local else {
            return Err(error.context(Hint::new(
                "asking the registry",
                "nothing of this image is in the store, so the network is needed",
            )));
        };
        let unasked = error.to_string();
        tracing::warn!(%reference, "what is here is used, as it was last seen: {error:#}");
        talk(Event::Notice {
            text: format!("{reference}: what is here is used, as it was last seen: {unasked}"),
        })?;
        Ok(Resolved { unasked: Some(unasked), ..Resolved::local(&local, Some(source)) })
    }

    /// Keeps what the reference means, so that the image starts without network.
    fn remember(&self, image: &OpenImage) -> anyhow::Result<()> {
        if image.named.load(Ordering::Relaxed) {
            return Ok(());
        }
        let known = ImageRef {
            name: ref_name(&image.reference)?,
            manifest_digest: image.manifest,
            original: image.original,
            manifest: image.manifest_bytes.clone(),
            config_digest: Digest::of(&image.config),
            config: image.config.clone(),
            layers: image.layers.iter().map(FoundLayer::as_ref).collect(),
        };
        self.store.refs().put(&known).with_context(|| format!("remembering {}", image.reference))?;
        image.named.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the bytes of the profile that was recorded of an image here. One that cannot be read is told, and is none.
    pub(super) fn recorded_profile(&self, manifest: Digest) -> Option<Vec<u8>> {
        self.store.profile(manifest).unwrap_or_else(|error| {
            tracing::warn!("a recorded profile is left aside: {error}");
            None
        })
    }

    pub(super) fn report(&self, image: &OpenImage) -> ImageReport {
        let last = image.last();
        let layer = |found: &FoundLayer| {
            let segments = found.hold.files().segments();
            let missing = u32::try_from(found.hold.files().missing()).unwrap_or(segments);
            LayerReport {
                blob: found.place.blob,
                size: found.place.size,
                diff_id: found.place.diff_id,
                index: found.id(),
                origin: if last.again { IndexOrigin::Local } else { found.origin },
                index_size: found.index_size,
                segments,
                local: segments - missing.min(segments),
                taken: found.hold.files().taken(),
                proved: found.proved(),
            }
        };
        let mut why = if last.again { super::layers::LOCAL.to_owned() } else { image.why.clone() };
        if let Some(unasked) = &last.unasked {
            why += &format!("; the tag is as it was last seen: {unasked}");
        }
        if image.original.is_some() {
            why += &format!("; its files are those of image {} of Nydus, which refers to it", image.manifest);
        }
        ImageReport {
            reference: image.reference.clone(),
            manifest: image.asked(),
            why,
            layers: image.layers.iter().map(layer).collect(),
            opening: last.times,
        }
    }
}

/// Says what can be done about an answer that will be the same the next time.
fn refused(error: registry::Error) -> anyhow::Error {
    let what = "asking the registry";
    let hint = match &error {
        registry::Error::Denied { host, .. } => format!("docker login {host}, as somebody who may read it"),
        registry::Error::NotFound { .. } => {
            "are name and tag right? many registries say so as well of what others may not see".into()
        }
        _ => return anyhow::Error::new(error).context(what),
    };
    anyhow::Error::new(error).context(Hint::new(what, hint))
}

impl Resolved {
    /// The media type is what the manifest itself says; OCI manifests may leave it out.
    fn descriptor(&self) -> anyhow::Result<Descriptor> {
        #[derive(serde::Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Head {
            media_type: Option<String>,
        }
        let head: Head = serde_json::from_slice(&self.manifest_bytes).context("reading the manifest")?;
        let media_type = head.media_type.as_deref().unwrap_or(registry::media_type::MANIFEST);
        Ok(Descriptor::new(media_type, self.manifest, self.manifest_bytes.len() as u64))
    }

    /// Returns another image, to be shown in place of this one, which keeps its config.
    pub(super) fn shows(&self, other: Self) -> Self {
        Self {
            original: Some(self.manifest),
            config: self.config.clone(),
            indexes: self.indexes.clone(),
            ..other
        }
    }

    /// Returns what the reference leads to.
    fn asked(&self) -> Digest {
        self.original.unwrap_or(self.manifest)
    }

    /// Returns how long its bootstrap may be with the tar around it, should it be one of Nydus.
    pub(super) fn longest_bootstrap(&self) -> u64 {
        if self.original.is_some() { LONGEST_TREE } else { limits::BOOTSTRAP }
    }

    pub(super) fn remote(image: Image, referring: Option<Referring>, source: Arc<Source>) -> Self {
        let layers = image.layers.iter().map(|layer| Place {
            blob: layer.digest,
            size: layer.size,
            media_type: layer.media_type.clone(),
            diff_id: layer.diff_id,
            table: Announced::by(&layer.annotations),
            role: Role::of(&layer.media_type, &layer.annotations),
        });
        Self {
            layers: layers.collect(),
            manifest: image.manifest.digest,
            original: None,
            manifest_bytes: image.manifest.bytes.to_vec(),
            config: image.config.to_vec(),
            source: Some(source),
            referring,
            unasked: None,
            indexes: image.indexes,
        }
    }

    pub(super) fn local(image: &ImageRef, source: Option<Arc<Source>>) -> Self {
        let roles = roles(&image.manifest);
        let place = |(n, layer)| Place { role: roles.get(n).copied().flatten(), ..Place::of(layer) };
        Self {
            layers: image.layers.iter().enumerate().map(place).collect(),
            manifest: image.manifest_digest,
            original: image.original,
            manifest_bytes: image.manifest.clone(),
            config: image.config.clone(),
            source,
            referring: None,
            unasked: None,
            indexes: Vec::new(),
        }
    }
}
