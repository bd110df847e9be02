//! Copies an image with all that belongs to it from one place to another.
//!
//! Promises: everything arrives byte for byte, so all digests stay; each blob is compared with its digest while it passes,
//! and nothing is named at the destination before all that it names is there: blobs first, then manifests, children
//! before parents, then what refers to them, the tag last. What is there is not sent again, so a copy that failed goes on
//! where it was when it is begun anew. What belongs to an image is said in [`plan`].

pub(crate) mod plan;
pub(crate) mod target;

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, PoisonError};

use format::Digest;
use serde::Serialize;

use crate::client::Client;
use crate::content::{Content, Passes};
use crate::error::Error;
use crate::limits;
use crate::manifest::Descriptor;
use crate::names::Tag;
use crate::push::Pushed;
use crate::reference::Reference;
use crate::source::Source;
use plan::Plan;
use target::Target;

/// Who is told how a copy goes, or a conversion.
pub trait Watch: std::fmt::Debug + Send + Sync {
    /// So many bytes of a blob have come; fewer than before if it has to be sent anew.
    fn passed(&self, blob: &Digest, done: u64, total: u64);
    /// A blob of so many bytes is at the destination.
    fn arrived(&self, blob: &Digest, total: u64, how: Pushed);
    /// Something is left out, and why.
    fn left_out(&self, what: &str);
}

/// What a copy came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Copied {
    /// The digest of the image's manifest or index, which is the same on both sides.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
    /// Manifests of the image: its own, and those of its platforms.
    pub manifests: usize,
    /// Manifests that refer to one of these, or to one another.
    pub referrers: usize,
    /// Tags of cosign's beside it.
    pub tags: Vec<Tag>,
    /// Blobs that were sent.
    pub sent: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that the registry took from its other repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub existed: usize,
}

impl Client {
    /// Copies an image, all of it, and names it.
    pub async fn copy(
        &self,
        from: &Reference,
        to: &Reference,
        watch: Arc<dyn Watch>,
    ) -> Result<Copied, Error> {
        let source = self.source(from).await?;
        let plan = Plan::of(&source, &*watch).await?;
        if let Some(wanted) = to.digest().filter(|wanted| **wanted != plan.root) {
            let why = format!("{source} is {}, and no copy can be {wanted}", plan.root);
            return Err(Error::invalid(to.to_string(), why));
        }
        let target = Target::open(self, to).await?;
        let mut copied = Copied {
            digest: plan.root,
            media_type: plan.root_manifest()?.media_type.clone(),
            manifests: plan.own(),
            referrers: plan.manifests.len() - plan.own(),
            tags: plan.tags.iter().map(|(tag, _)| tag.clone()).collect(),
            sent: 0,
            bytes: 0,
            mounted: 0,
            existed: 0,
        };
        let blobs = Blobs {
            back: target.shares_host_with(&source),
            waiting: Mutex::new(plan.blobs.iter().cloned().collect()),
            done: Mutex::default(),
            source,
            target: &target,
            watch,
        };
        blobs.carry(target.takes_at_once()).await?;
        for (size, how) in blobs.done.into_inner().unwrap_or_else(PoisonError::into_inner) {
            match how {
                Pushed::Sent => (copied.sent, copied.bytes) = (copied.sent + 1, copied.bytes + size),
                Pushed::Mounted => copied.mounted += 1,
                Pushed::Existed => copied.existed += 1,
            }
        }
        target.name(&plan).await?;
        Ok(copied)
    }
}

/// The blobs of a copy.
struct Blobs<'a> {
    source: Source,
    target: &'a Target,
    /// Whether they go to the host they come from.
    back: bool,
    watch: Arc<dyn Watch>,
    /// Held for a look only, as is the next.
    waiting: Mutex<VecDeque<Descriptor>>,
    done: Mutex<Vec<(u64, Pushed)>>,
}

impl Blobs<'_> {
    /// Carries all of them, a few at once; the first that fails ends it.
    async fn carry(&self, at_once: usize) -> Result<(), Error> {
        let some = |n: usize| async move { if n < at_once { self.carry_some().await } else { Ok(()) } };
        const { assert!(limits::COPY_BLOBS == 4, "as many as are joined here") };
        tokio::try_join!(some(0), some(1), some(2), some(3)).map(|_| ())
    }

    async fn carry_some(&self) -> Result<(), Error> {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(blob) = next else { return Ok(()) };
            let hears = Arc::new(Hears(self.watch.clone()));
            let content = Content::passing(&self.source, &blob, self.back, hears);
            let how = self.target.put(&content, &self.source).await?;
            self.watch.arrived(&blob.digest, blob.size, how);
            self.done.lock().unwrap_or_else(PoisonError::into_inner).push((blob.size, how));
        }
    }
}

/// Passes on what a [`Watch`] wants to know of blobs.
#[derive(Debug)]
pub(crate) struct Hears(pub(crate) Arc<dyn Watch>);

impl Passes for Hears {
    fn passed(&self, blob: &Digest, done: u64, total: u64) {
        self.0.passed(blob, done, total);
    }
}
