//! Where synchronous threads and the asynchronous network meet; the only such place.
//!
//! The engine and the store call in from their own threads and block; the requests run on one small runtime.
//! Budgets, retries, tokens and redirects are the registry client's. Which source has a blob is remembered
//! here: a layer may be had from every image that names it, and one that refuses is not the last word.

use std::collections::HashMap;
use std::io::Write;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use format::Digest;
use registry::{About, Client, Descriptor, Error, Handed, HostConfig, Image, Platform, Reference, Source};
use store::{Blob, Origin, OriginError, Urgency};

use crate::config::Config;
use crate::engine::report::Traffic;

/// Sources remembered per blob: more than any sane number of repositories holding one base layer.
const SOURCES: usize = 8;

/// Threads of the network side. TLS and HTTP of a 10 Gbit/s link need little more than one core.
const THREADS: usize = 2;

/// How long a registry may be silent before somebody who could go on without it does. A request that is lost on the
/// way is repeated by the kernel after one second; an answer from the far side of the earth takes a third of one.
const SILENCE: Duration = Duration::from_secs(2);

/// How long a registry that has begun to answer may take to say what a name means: four or five requests.
const SLOWNESS: Duration = Duration::from_secs(10);

/// What a registry does that does not say in time what a name means.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Late {
    /// It has not answered at all.
    #[error("the registry has not answered in {} s", SILENCE.as_secs())]
    Silent,
    /// It answers, and is not done.
    #[error("the registry has not said in {} s what the name means", SLOWNESS.as_secs())]
    Slow,
}

/// The question for what refers to a manifest, under way. Dropped, nobody waits for it any more.
pub struct Referring {
    manifest: Digest,
    question: tokio::task::JoinSet<Result<About, Error>>,
}

impl Referring {
    fn ask(source: Arc<Source>, manifest: Digest) -> Self {
        let mut question = tokio::task::JoinSet::new();
        question.spawn(async move { source.about(&manifest).await });
        Self { manifest, question }
    }

    async fn answer(mut self) -> Result<About, Error> {
        match self.question.join_next().await {
            Some(Ok(answer)) => answer,
            // It has panicked, which was told; an image without indexes is streamed.
            Some(Err(_)) | None => Ok(About::nothing(self.manifest)),
        }
    }
}

/// The network, as blocking calls.
pub struct Net {
    runtime: tokio::runtime::Runtime,
    client: Client,
    /// The credentials of pods, where somebody hands them over.
    handed: Option<Arc<Handed>>,
    /// Who has a blob, the latest first. Held for a look only.
    sources: Mutex<HashMap<Digest, Vec<Arc<Source>>>>,
}

impl Net {
    /// Returns the network with the hosts of a configuration, and with what pods hand over.
    pub fn new(config: &Config, handed: Option<Arc<Handed>>) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("net")
            .enable_all()
            .build()
            .context("starting the network threads")?;
        let mut settings = registry::Config {
            kubelet: config.kubelet.clone(),
            handed: handed.clone(),
            ..registry::Config::default()
        };
        for (name, host) in &config.registry {
            let parsed = name.parse().with_context(|| format!("registry {name:?} of the configuration"))?;
            let plain_http = host.plain_http.then_some(true);
            let ca = host.ca.iter().cloned().collect();
            settings.hosts.insert(parsed, HostConfig { plain_http, ca, budgets: Some(host.budgets.clone()) });
        }
        Ok(Self { runtime, client: Client::new(settings), handed, sources: Mutex::default() })
    }

    /// Returns what pods hand over, if anybody hears it.
    pub fn handed(&self) -> Option<&Arc<Handed>> {
        self.handed.as_ref()
    }

    /// Returns where an image is; nothing is sent to a registry.
    pub fn source(&self, reference: &Reference) -> Result<Arc<Source>, Error> {
        self.runtime.block_on(self.client.source(reference)).map(Arc::new)
    }

    /// Returns manifest, config and layers of the image for this machine's platform, checked.
    pub fn image(&self, source: &Source) -> Result<Image, Error> {
        self.runtime.block_on(source.image(&Platform::host()))
    }

    /// Returns the same, and the question for what refers to it, which is asked beside the config's unless the manifest
    /// is one that is known. Where it takes its time `late` is told, and says whether to wait on; nothing is returned
    /// if not.
    pub fn image_unless(
        &self,
        source: &Arc<Source>,
        known: Option<&Digest>,
        mut late: impl FnMut(Late) -> ControlFlow<()>,
    ) -> Option<Result<(Image, Option<Referring>), Error>> {
        let platform = Platform::host();
        self.runtime.block_on(async {
            let before = source.answers();
            let mut asked = pin!(async {
                let mut referring = None;
                let seen = |manifest: &Digest| {
                    if known != Some(manifest) {
                        referring = Some(Referring::ask(source.clone(), *manifest));
                    }
                };
                let image = source.image_seen(&platform, seen).await;
                image.map(|image| (image, referring))
            });
            if let Ok(image) = tokio::time::timeout(SILENCE, &mut asked).await {
                return Some(image);
            }
            if source.answers() == before && late(Late::Silent).is_break() {
                return None;
            }
            if let Ok(image) = tokio::time::timeout(SLOWNESS.saturating_sub(SILENCE), &mut asked).await {
                return Some(image);
            }
            if late(Late::Slow).is_break() {
                return None;
            }
            Some(asked.await)
        })
    }

    /// Returns what refers to a manifest; `asked` is the question, if it was asked before.
    pub fn about(
        &self,
        source: &Source,
        manifest: &Digest,
        asked: Option<Referring>,
    ) -> Result<About, Error> {
        self.runtime.block_on(async {
            match asked {
                Some(asked) => asked.answer().await,
                None => source.about(manifest).await,
            }
        })
    }

    /// Returns a whole small blob, checked.
    pub fn blob(&self, source: &Source, descriptor: &Descriptor, limit: u64) -> Result<bytes::Bytes, Error> {
        self.runtime.block_on(source.read_blob(descriptor, limit, registry::Priority::Demand))
    }

    /// Returns a part of a blob, unchecked; whoever asks has bounded it.
    pub fn part(
        &self,
        source: &Source,
        blob: &Digest,
        size: u64,
        range: Range<u64>,
        priority: registry::Priority,
    ) -> Result<Vec<u8>, Error> {
        let mut part = Vec::new();
        self.hand_on(source, blob, size, range, priority, |piece| {
            part.extend_from_slice(piece);
            true
        })?;
        Ok(part)
    }

    /// Hands on a part of a blob as it arrives, unchecked; ends early once nobody takes it.
    pub fn hand_on(
        &self,
        source: &Source,
        blob: &Digest,
        size: u64,
        range: Range<u64>,
        priority: registry::Priority,
        mut take: impl FnMut(&[u8]) -> bool,
    ) -> Result<(), Error> {
        self.runtime.block_on(async {
            let mut left = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
            let mut reader = source.read_range(blob, size, range, priority);
            while let Some(piece) = reader.chunk().await? {
                let piece = &piece[..piece.len().min(left)];
                left -= piece.len();
                if !take(piece) {
                    break;
                }
            }
            Ok(())
        })
    }

    /// Returns why one of these blobs cannot be had, if all who should have it refuse it for good. Who does not say so in time may
    /// have it. Of each the first byte is asked for, so whoever reads it next knows the way.
    pub fn refused(&self, blobs: impl IntoIterator<Item = Blob>, patience: Duration) -> Option<Error> {
        let _context = self.runtime.enter();
        let mut asked = tokio::task::JoinSet::new();
        for blob in blobs {
            let sources = self.known(&blob.digest);
            asked.spawn(async move { Self::refusal(&sources, &blob).await });
        }
        let first = async {
            while let Some(answer) = asked.join_next().await {
                if let Ok(Some(refusal)) = answer {
                    return Some(refusal);
                }
            }
            None
        };
        self.runtime.block_on(async { tokio::time::timeout(patience, first).await.ok().flatten() })
    }

    /// Returns the client itself, for what has no blocking form here.
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// Writes a whole blob to a file, unchecked.
    pub fn save(&self, source: &Source, blob: &Digest, size: u64, file: &Path) -> anyhow::Result<()> {
        let mut out = std::fs::File::create(file).with_context(|| format!("creating {}", file.display()))?;
        let mut reader = source.read_range(blob, size, 0..size, registry::Priority::Demand);
        while let Some(piece) = self.runtime.block_on(reader.chunk())? {
            out.write_all(&piece).with_context(|| format!("writing {}", file.display()))?;
        }
        Ok(())
    }

    /// Runs something on the network side.
    pub fn run<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    /// Remembers that a source has a blob.
    pub fn know(&self, blob: Digest, source: &Arc<Source>) {
        let mut sources = self.sources.lock().unwrap_or_else(PoisonError::into_inner);
        let known = sources.entry(blob).or_default();
        known.retain(|one| !Arc::ptr_eq(one, source));
        known.insert(0, source.clone());
        known.truncate(SOURCES);
    }

    /// Lets what nobody waits for use the time in which readers wait for answers, for as long as the result lives.
    pub fn eager(&self) -> registry::Eager {
        self.client.eager()
    }

    /// Returns what has gone over the network since the start.
    pub fn traffic(&self) -> Traffic {
        let mut sum = Traffic::default();
        for stats in self.client.stats().into_values() {
            sum.bytes += stats.bytes;
            sum.requests += stats.requests;
            sum.retries += stats.retries;
        }
        sum
    }

    fn known(&self, blob: &Digest) -> Vec<Arc<Source>> {
        self.sources.lock().unwrap_or_else(PoisonError::into_inner).get(blob).cloned().unwrap_or_default()
    }

    /// Returns the last word of these sources of a blob, if each refuses it for good.
    async fn refusal(sources: &[Arc<Source>], blob: &Blob) -> Option<Error> {
        let mut last = None;
        for source in sources {
            let first = 0..blob.size.min(1);
            let mut reader = source.read_range(&blob.digest, blob.size, first, registry::Priority::Demand);
            last = Some(reader.chunk().await.err().filter(|error| !error.is_temporary())?);
        }
        last
    }

    /// Streams from one source; `at` is where the next byte goes, and stays right when this fails midway.
    async fn stream(
        source: &Source,
        blob: &Blob,
        at: &mut u64,
        end: u64,
        urgency: &registry::Urgency,
        sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), Error> {
        let mut reader = source.read_range(&blob.digest, blob.size, *at..end, urgency.clone());
        while let Some(piece) = reader.chunk().await? {
            *at += piece.len() as u64;
            if sink(&piece).is_break() {
                break;
            }
        }
        Ok(())
    }
}

impl Origin for Net {
    fn read(
        &self,
        blob: &Blob,
        range: Range<u64>,
        urgency: &Urgency,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), OriginError> {
        let mut last = OriginError::Unavailable("no image that is open has this blob".into());
        let mut at = range.start;
        let there = registry::Urgency::from(registry::Priority::Background);
        urgency.on_hurry({
            let there = there.clone();
            move || there.hurry()
        });
        for source in self.known(&blob.digest) {
            // Stopped by the sink counts as done: `stream` returns early and without error.
            let limit = tokio::time::Instant::from_std(deadline);
            let streamed = self.runtime.block_on(async {
                let work = Self::stream(&source, blob, &mut at, range.end, &there, sink);
                tokio::time::timeout_at(limit, work).await
            });
            match streamed {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(error)) if error.is_temporary() => last = OriginError::Unavailable(Box::new(error)),
                Ok(Err(error)) => last = OriginError::Denied(Box::new(error)),
                Err(_) => return Err(OriginError::Timeout),
            }
        }
        Err(last)
    }
}
