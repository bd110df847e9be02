//! From an event of the kernel to a whole segment and an answer.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, OnceLock, PoisonError, RwLock};
use std::time::{Duration, Instant};

use format::IndexId;
use store::Segments;

use super::streams::Streams;
use crate::keeper::{Asked, Client, Listener, Verdict};
use crate::observe::{Failure, Observer, SegmentWait};
use crate::parking::{Parking, Serve};

/// A mount whose events are told to somebody.
#[derive(Clone)]
pub struct Observed {
    /// Where its segments come from.
    pub segments: Arc<dyn Segments>,
    /// Who hears of its reads.
    pub observer: Arc<dyn Observer>,
}

/// Called when the keeper has gone.
type Lost = Box<dyn Fn() + Send + Sync>;

/// Answers the kernel's questions about segments, of all mounts of a daemon.
pub struct Events {
    parking: Arc<Parking<Fills>>,
    streams: Streams,
    deadline: Duration,
    lost: Lost,
}

/// What the threads that fetch need.
struct Fills {
    segments: Arc<dyn Segments>,
    keeper: OnceLock<Arc<Client>>,
    /// By name of the watch point.
    mounts: RwLock<HashMap<String, Observed>>,
}

/// A reader that waits.
struct Read {
    id: u64,
    /// The segment.
    at: (IndexId, u32),
    offset: u64,
    count: u64,
    since: Instant,
    deadline: Instant,
    mount: Option<Observed>,
}

impl Events {
    /// Returns who answers with these segments; `lost` is called should the keeper die.
    pub fn new(segments: Arc<dyn Segments>, deadline: Duration, lost: Lost) -> Arc<Self> {
        let fills = Fills { segments, keeper: OnceLock::new(), mounts: RwLock::default() };
        Arc::new(Self { parking: Arc::new(Parking::new(fills)), streams: Streams::default(), deadline, lost })
    }

    /// Says to whom answers go. What has been asked before is answered then.
    pub fn answer_to(&self, keeper: Arc<Client>) {
        let _ = self.parking.server().keeper.set(keeper); // one for the life of this
    }

    /// Tells somebody of the reads of a mount, by the name of its watch point.
    pub fn observe(&self, name: &str, mount: Observed) {
        self.mounts_mut(|mounts| mounts.insert(name.to_owned(), mount));
    }

    /// Ends that.
    pub fn forget(&self, name: &str) {
        self.mounts_mut(|mounts| mounts.remove(name));
    }

    /// Ends: who waits, and who comes from here on, is left to the next daemon.
    pub fn leave(&self) {
        drop(self.parking.end());
    }

    fn mounts_mut<T>(&self, change: impl FnOnce(&mut HashMap<String, Observed>) -> T) {
        let mounts = &self.parking.server().mounts;
        change(&mut mounts.write().unwrap_or_else(PoisonError::into_inner));
    }
}

impl Listener for Events {
    fn asked(&self, asked: Asked) {
        let fills = self.parking.server();
        let Some((name, index, segment)) = parse(&asked.path) else {
            // A file that was replaced, or none of ours: what is read there is not what the image says.
            tracing::error!(path = asked.path, "a mount reads a file that is no segment any more");
            return fills.answer_with(asked.id, Verdict::Failed);
        };
        let mounts = fills.mounts.read().unwrap_or_else(PoisonError::into_inner);
        let mount = mounts.get(name).cloned();
        drop(mounts);
        let segments = mount.as_ref().map_or(&fills.segments, |mount| &mount.segments);
        if segments.local(index, segment).is_some() {
            if let Some(mount) = &mount {
                mount.observer.segment_hit();
            }
            fills.answer_with(asked.id, Verdict::Whole);
        } else {
            let since = Instant::now().checked_sub(asked.waited).unwrap_or_else(Instant::now);
            if let Some(mount) = &mount {
                mount.observer.segment_waiting((index, segment));
            }
            let read = Read {
                id: asked.id,
                at: (index, segment),
                offset: asked.offset,
                count: asked.count,
                since,
                deadline: since + self.deadline,
                mount,
            };
            self.parking.park((index, segment), read);
        }
        if let Some(ahead) = self.streams.read(index, segment) {
            fills.segments.hint(index, ahead);
        }
    }

    fn lost(&self) {
        (self.lost)();
    }
}

impl Fills {
    fn answer_with(&self, id: u64, verdict: Verdict) {
        // Events come after the greeting, and who connects sets this next: they are told again to whoever follows.
        self.keeper.wait().answer(id, verdict);
    }

    fn done(&self, read: Read, outcome: Result<(), &Failure>) {
        if let Some(mount) = &read.mount {
            let Read { at, offset, count, since, .. } = read;
            let wait = SegmentWait { missing: at, offset, len: count, took: since.elapsed(), outcome };
            mount.observer.segment_waited(&wait);
        }
        let verdict = if outcome.is_ok() { Verdict::Whole } else { Verdict::Failed };
        self.answer_with(read.id, verdict);
    }
}

impl Serve for Fills {
    type Key = (IndexId, u32);
    type Read = Read;

    fn fetch(&self, (index, segment): Self::Key, deadline: Instant) -> Result<(), Failure> {
        let fetched = self.segments.fetch(index, segment, deadline);
        fetched.map(drop).map_err(|error| Failure::Fetch(Arc::new(error)))
    }

    fn answer(&self, read: Read) -> Option<(Self::Key, Read)> {
        self.done(read, Ok(()));
        None
    }

    fn fail(&self, read: Read, why: &Failure) {
        // We end: the keeper tells the next daemon of it.
        if !matches!(why, Failure::Stopped) {
            self.done(read, Err(why));
        }
    }

    fn deadline(&self, read: &Read) -> Instant {
        read.deadline
    }
}

/// Takes a path apart: the name of the watch point (empty if that has lost its place), the layer and the segment.
fn parse(path: &str) -> Option<(&str, IndexId, u32)> {
    let path = Path::new(path);
    let segment = path.file_name()?.to_str()?;
    let segment = segment.parse().ok().filter(|n: &u32| n.to_string() == segment)?;
    let layer = path.parent()?;
    let index = format!("blake3:{}", layer.file_name()?.to_str()?).parse().ok()?;
    let name = layer.parent().and_then(Path::file_name).and_then(|name| name.to_str());
    Some((name.unwrap_or_default(), index, segment))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_of_segments_are_understood_and_others_are_not() {
        let layer = IndexId::from_bytes([0xab; 32]);
        let hex = layer.hex();
        assert_eq!(parse(&format!("/run/floe/x/watch/m-0/{hex}/17")), Some(("m-0", layer, 17)));
        assert_eq!(parse(&format!("/{hex}/17")), Some(("", layer, 17)));
        for bad in
            [format!("/{hex}/17 (deleted)"), format!("/{hex}/017"), "/17".into(), format!("/{hex}/state")]
        {
            assert_eq!(parse(&bad), None, "{bad}");
        }
    }
}
