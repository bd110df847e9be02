//! The blobs of an image's layers, from its registry into a containerd's content store: `floe pull --to containerd --blobs`.
//!
//! Promises: what is there is not fetched; what somebody began to write, containerd's own pull included, goes on where it
//! stopped, or from the beginning where it turns out wrong. Each blob gets its name from containerd, which compares it
//! with its digest first. The image has its name by then, and its manifest the labels that keep what has arrived.

use std::collections::{HashMap, HashSet, VecDeque};
use std::pin::pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context;
use bytes::Bytes;
use containerd::services::content::v1 as content;
use format::{DiffId, Digest};
use registry::{Priority, RangeReader, Source};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Status, Streaming};

use super::register::{Session, source};
use crate::engine::stack::Lent;
use crate::engine::{Talk, say};
use crate::exit::Hint;

/// How long somebody else may be at a blob without an end to it.
const BUSY: Duration = Duration::from_secs(30);

/// How often there is a look whether they are done, and whether anybody still waits for us.
const LOOK: Duration = Duration::from_millis(200);

/// A blob that containerd is to have.
#[derive(Debug, Clone, Copy)]
struct Wanted {
    digest: Digest,
    size: u64,
    diff_id: DiffId,
}

/// A blob that is being written.
struct Ingest {
    wanted: Wanted,
    send: mpsc::Sender<content::WriteContentRequest>,
    answers: Streaming<content::WriteContentResponse>,
}

impl Session<'_> {
    /// Fetches the blobs of an image's layers, a few at once.
    pub(super) async fn blobs(&self, name: &str, image: &Lent, talk: &Talk<'_>) -> anyhow::Result<()> {
        let from = image.source().context(Hint::new(
            "asking the registry",
            "the image was opened without network; try again when the registry can be reached",
        ))?;
        let mut seen = HashSet::new();
        let layers = image.layers().into_iter().zip(image.diff_ids());
        let wanted = layers.map(|(layer, diff_id)| Wanted { digest: layer.blob, size: layer.size, diff_id });
        let waiting: VecDeque<_> = wanted.filter(|wanted| seen.insert(wanted.digest)).collect();
        let waiting = Mutex::new(waiting);
        let some = || async {
            loop {
                let next = waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
                let Some(wanted) = next else { return anyhow::Ok(()) };
                let have = self.have(wanted, name, from, talk).await;
                have.with_context(|| format!("fetching layer {}", wanted.digest))?;
                say(talk, "complete", &wanted.digest, wanted.size, wanted.size)?;
            }
        };
        tokio::try_join!(some(), some(), some()).map(|_| ())
    }

    /// Sees to it that containerd has a blob.
    async fn have(
        &self,
        wanted: Wanted,
        name: &str,
        from: &Arc<Source>,
        talk: &Talk<'_>,
    ) -> anyhow::Result<()> {
        let labels = HashMap::from([
            source(name),
            ("containerd.io/uncompressed".to_owned(), wanted.diff_id.digest().to_string()),
        ]);
        let begun = Instant::now();
        let mut anew = false;
        loop {
            if let Some(there) = self.there(&wanted.digest).await? {
                return self.keep_labels(&wanted.digest, there, labels).await;
            }
            let mut start = 0;
            let Err(error) = self.ingest(wanted, anew, &mut start, &labels, from, talk).await else {
                return Ok(());
            };
            match error.downcast_ref().map(Status::code) {
                // Of another namespace, where those are shared; it is ours too from here on.
                Some(Code::AlreadyExists) => {}
                // Somebody else writes it.
                Some(Code::Unavailable) if begun.elapsed() < BUSY => {
                    say(talk, "waiting", &wanted.digest, 0, wanted.size)?;
                    tokio::time::sleep(LOOK).await;
                }
                Some(Code::FailedPrecondition | Code::OutOfRange) => {
                    self.abort(&wanted).await?;
                    if start == 0 {
                        return Err(error.context(Hint::new(
                            "the registry does not give what the digest says",
                            "push the image there again",
                        )));
                    }
                    anew = true;
                }
                _ => return Err(error),
            }
        }
    }

    /// Fetches a blob and has containerd check and keep it; `start` is told where that began.
    async fn ingest(
        &self,
        wanted: Wanted,
        anew: bool,
        start: &mut u64,
        labels: &HashMap<String, String>,
        from: &Arc<Source>,
        talk: &Talk<'_>,
    ) -> anyhow::Result<()> {
        let (mut ingest, there) = self.begin(wanted).await?;
        let Wanted { digest, size, .. } = wanted;
        *start = if anew { 0 } else { there.min(size) };
        let mut at = *start;
        let mut reader = from.read_range(&digest, size, at..size, Priority::Background);
        while let Some(piece) = next(&mut reader, || say(talk, "fetching", &digest, at, size)).await? {
            let end = at + piece.len() as u64;
            let write = ingest.request(content::WriteAction::Write, at)?;
            ingest.ask(content::WriteContentRequest { data: piece.to_vec(), ..write }).await?;
            at = end;
            say(talk, "fetching", &digest, at, size)?;
        }
        let commit = ingest.request(content::WriteAction::Commit, at)?;
        ingest.ask(content::WriteContentRequest { labels: labels.clone(), ..commit }).await?;
        Ok(())
    }

    /// Begins to write a blob; says how much of it is there.
    async fn begin(&self, wanted: Wanted) -> anyhow::Result<(Ingest, u64)> {
        let (send, receive) = mpsc::channel(1);
        let stat = request(&wanted, content::WriteAction::Stat, 0)?;
        send.send(stat).await.context("asking containerd")?;
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        let mut answers = client.write(self.request(ReceiverStream::new(receive))?).await?.into_inner();
        let there = answers.message().await?.context("containerd does not answer")?;
        let offset = u64::try_from(there.offset).context("reading how much is there")?;
        Ok((Ingest { wanted, send, answers }, offset))
    }

    async fn abort(&self, wanted: &Wanted) -> anyhow::Result<()> {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        match client.abort(self.request(content::AbortRequest { r#ref: reference(wanted) })?).await {
            Err(status) if status.code() != Code::NotFound => {
                Err(status).context("giving up what was written")
            }
            _ => Ok(()),
        }
    }

    /// Returns the labels of what is in the content store, if it is.
    async fn there(&self, digest: &Digest) -> anyhow::Result<Option<HashMap<String, String>>> {
        let mut client = content::content_client::ContentClient::new(self.channel.clone());
        match client.info(self.request(content::InfoRequest { digest: digest.to_string() })?).await {
            Ok(info) => Ok(Some(info.into_inner().info.unwrap_or_default().labels)),
            Err(status) if status.code() == Code::NotFound => Ok(None),
            Err(status) => Err(status).context("looking into the content store"),
        }
    }

    /// Adds our labels; the repositories that a blob is known to be in stay listed.
    async fn keep_labels(
        &self,
        digest: &Digest,
        there: HashMap<String, String>,
        ours: HashMap<String, String>,
    ) -> anyhow::Result<()> {
        let joined = ours.into_iter().map(|(key, value)| {
            let value = match there.get(&key) {
                Some(old) if old.split(',').any(|one| one == value) => old.clone(),
                Some(old) if key.contains("distribution.source") => format!("{old},{value}"),
                _ => value,
            };
            (key, value)
        });
        self.label(digest.to_string(), joined.collect()).await.context("labelling a blob")
    }
}

impl Ingest {
    fn request(
        &self,
        action: content::WriteAction,
        offset: u64,
    ) -> anyhow::Result<content::WriteContentRequest> {
        request(&self.wanted, action, offset)
    }

    /// Asks, and waits for the answer: no more than a piece is on its way.
    async fn ask(&mut self, request: content::WriteContentRequest) -> anyhow::Result<()> {
        // Where it has hung up, its answer says why.
        let _ = self.send.send(request).await;
        self.answers.message().await?.context("containerd has hung up")?;
        Ok(())
    }
}

/// Returns the name under which containerd's own pull writes a layer, so that each goes on with what the other began.
fn reference(wanted: &Wanted) -> String {
    format!("layer-{}", wanted.digest)
}

fn request(
    wanted: &Wanted,
    action: content::WriteAction,
    offset: u64,
) -> anyhow::Result<content::WriteContentRequest> {
    Ok(content::WriteContentRequest {
        action: action.into(),
        r#ref: reference(wanted),
        total: i64::try_from(wanted.size).context("measuring a blob")?,
        expected: wanted.digest.to_string(),
        offset: i64::try_from(offset).context("measuring a blob")?,
        ..Default::default()
    })
}

/// Waits for the next bytes, and calls now and then, which may end it.
async fn next(
    reader: &mut RangeReader,
    mut meanwhile: impl FnMut() -> anyhow::Result<()>,
) -> anyhow::Result<Option<Bytes>> {
    let mut piece = pin!(reader.chunk());
    loop {
        tokio::select! {
            piece = &mut piece => return Ok(piece?),
            () = tokio::time::sleep(LOOK) => meanwhile()?,
        }
    }
}
