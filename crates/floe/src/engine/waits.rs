//! Who waited for which file: what `--timings` and `status` tell.

use std::collections::HashMap;
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use format::IndexId;
use format::erofs::read::{Image, Nid};
use mount::observe::{Counters, Failure, Observer, SegmentWait, Wait as ReadWait};
use mount::places;
use store::Stretch;

use super::metrics::Reads;
use super::report::Wait;

/// Counts reads, and measures for how long at least one of them waited.
pub struct Waits {
    counters: Counters,
    /// Those of all mounts.
    all: Arc<Reads>,
    clock: Mutex<Stretch>,
}

impl Waits {
    /// Returns none yet; they count among those of all mounts, too.
    pub(super) fn new(all: Arc<Reads>) -> Self {
        Self { counters: Counters::default(), all, clock: Mutex::default() }
    }

    /// Counts how a read that waited has ended.
    fn ended(&self, took: Duration, outcome: Result<(), &Failure>) {
        match outcome {
            Ok(()) => self.all.waited(took),
            Err(why) => self.all.failed(why),
        }
    }

    /// Returns for how long at least one reader has waited.
    pub fn waited(&self) -> Duration {
        self.clock().time()
    }

    fn clock(&self) -> MutexGuard<'_, Stretch> {
        self.clock.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Returns the counts.
    pub fn counters(&self) -> &Counters {
        &self.counters
    }

    /// Returns the files that were waited for, longest first.
    pub fn by_file<B: AsRef<[u8]>>(&self, image: &Image<B>) -> Vec<Wait> {
        let waits = self.counters.waits();
        let mut files = waits.files;
        for (nid, wait) in places::by_file(image, &waits.places) {
            files.entry(nid).or_default().merge(&wait);
        }
        // One walk for all: finding the path of one inode costs as much.
        let mut paths = HashMap::new();
        let walked = image.walk(|step| {
            if files.contains_key(&step.entry.nid) {
                paths
                    .entry(step.entry.nid)
                    .or_insert_with(|| format!("/{}", format::name::printable(step.path)));
            }
            if paths.len() == files.len() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        if let Err(error) = walked {
            tracing::warn!("naming the files that were waited for: {error}");
        }
        let mut waits: Vec<_> = files.iter().collect();
        waits.sort_by_key(|(nid, file)| (std::cmp::Reverse(file.sum), nid.0));
        let mut name = |nid: &Nid| paths.remove(nid).unwrap_or_else(|| format!("inode {nid}"));
        waits
            .into_iter()
            .map(|(nid, file)| Wait { path: name(nid), times: file.count, waited: file.sum })
            .collect()
    }
}

impl Observer for Waits {
    fn hit(&self, nid: Nid, bytes: u64) {
        self.all.hit();
        self.counters.hit(nid, bytes);
    }

    fn failed(&self, nid: Nid, why: &Failure) {
        tracing::warn!(inode = nid.0, "a read failed: {}", causes(why));
        self.all.failed(why);
        self.counters.failed(nid, why);
    }

    fn waiting(&self, nid: Nid, missing: (IndexId, u32)) {
        self.clock().begin();
        Observer::waiting(&self.counters, nid, missing);
    }

    fn segment_waiting(&self, missing: (IndexId, u32)) {
        self.clock().begin();
        self.counters.segment_waiting(missing);
    }

    fn segment_hit(&self) {
        self.all.hit();
        self.counters.segment_hit();
    }

    fn segment_waited(&self, wait: &SegmentWait<'_>) {
        self.clock().end();
        if let Err(why) = wait.outcome {
            let (layer, segment) = wait.missing;
            tracing::warn!(%layer, segment, "a read failed: {}", causes(why));
        }
        self.ended(wait.took, wait.outcome);
        self.counters.segment_waited(wait);
    }

    fn waited(&self, wait: &ReadWait<'_>) {
        self.clock().end();
        if let Err(why) = wait.outcome {
            let (layer, segment) = wait.missing;
            tracing::warn!(inode = wait.nid.0, %layer, segment, "a read failed: {}", causes(why));
        }
        self.ended(wait.took, wait.outcome);
        self.counters.waited(wait);
    }
}

/// Returns an error with all its causes: the last of them names the host and what it did.
fn causes(why: &Failure) -> String {
    anyhow::Chain::new(why).map(ToString::to_string).collect::<Vec<_>>().join(": ")
}
