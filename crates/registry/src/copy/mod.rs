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
    /// Something did not go well that nothing else depends on.
    fn noticed(&self, what: &str);
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
        let blobs = plan.blobs.iter().cloned().collect();
        let sums = Blobs::of(&source, &target, &watch, blobs).carry().await?;
        (copied.sent, copied.bytes, copied.mounted, copied.existed) =
            (sums.sent, sums.bytes, sums.mounted, sums.existed);
        target.name(&plan).await?;
        Ok(copied)
    }
}

/// What was put where it goes.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Sums {
    pub(crate) sent: usize,
    pub(crate) bytes: u64,
    pub(crate) mounted: usize,
    pub(crate) existed: usize,
}

impl Sums {
    pub(crate) fn count(&mut self, size: u64, how: Pushed) {
        match how {
            Pushed::Sent => (self.sent, self.bytes) = (self.sent + 1, self.bytes + size),
            Pushed::Mounted => self.mounted += 1,
            Pushed::Existed => self.existed += 1,
        }
    }
}

impl std::ops::AddAssign for Sums {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.bytes += other.bytes;
        self.mounted += other.mounted;
        self.existed += other.existed;
    }
}

/// Blobs that are carried from one place to another.
pub(crate) struct Blobs<'a> {
    source: &'a Source,
    target: &'a Target,
    /// Whether they go to the host they come from.
    back: bool,
    watch: &'a Arc<dyn Watch>,
    /// Held for a look only, as is the next.
    waiting: Mutex<VecDeque<Descriptor>>,
    sums: Mutex<Sums>,
}

impl<'a> Blobs<'a> {
    pub(crate) fn of(
        source: &'a Source,
        target: &'a Target,
        watch: &'a Arc<dyn Watch>,
        blobs: VecDeque<Descriptor>,
    ) -> Self {
        let back = target.shares_host_with(source);
        Self { source, target, back, watch, waiting: Mutex::new(blobs), sums: Mutex::default() }
    }

    /// Carries all of them, a few at once; the first that fails ends it.
    pub(crate) async fn carry(self) -> Result<Sums, Error> {
        let at_once = self.target.takes_at_once();
        let some = |n: usize| {
            let own = &self;
            async move { if n < at_once { own.carry_some().await } else { Ok(()) } }
        };
        const { assert!(limits::COPY_BLOBS == 4, "as many as are joined here") };
        tokio::try_join!(some(0), some(1), some(2), some(3))?;
        Ok(self.sums.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    async fn carry_some(&self) -> Result<(), Error> {
        loop {
            let next = self.waiting.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
            let Some(blob) = next else { return Ok(()) };
            let hears = Arc::new(Hears(self.watch.clone()));
            let content = Content::passing(self.source, &blob, self.back, hears);
            let how = self.target.put(&content, self.source).await?;
            self.watch.arrived(&blob.digest, blob.size, how);
            self.sums.lock().unwrap_or_else(PoisonError::into_inner).count(blob.size, how);
        }
    }
}

/// Passes on what a [`Watch`] wants to know of blobs.
#[derive(Debug)]
struct Hears(Arc<dyn Watch>);

impl Passes for Hears {
    fn passed(&self, blob: &Digest, done: u64, total: u64) {
        self.0.passed(blob, done, total);
    }
}
