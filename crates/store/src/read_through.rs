//! Segments on demand: here already, or fetched, verified, written, and then here.
//!
//! Promises: a reader gets a whole verified segment or an error, at its deadline at the latest. However many
//! want a span, it is fetched once; a reader that gives up takes nothing from the others. No error is
//! remembered: the next read tries again. What is here needs no network and no lock that is held across I/O.
//!
//! Leaves to others: retries and budgets of the network ([`Origin`]), which errno a [`ReadError`] is, and what
//! to fetch before it is wanted (whoever calls [`ReadThrough::want`]).

use std::collections::HashMap;
use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, RwLock};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use format::IndexId;
use format::decode::{Half, SpanDecoder, Verified};
use format::layer::Layer;
use format::proof::Mismatch;

use crate::claim::Claim;
use crate::error::StoreError;
use crate::fill;
use crate::flights::{Ahead, Flights, Key, Outcome, Signal};
use crate::guard;
use crate::halves::Halves;
use crate::held::Memory;
use crate::known::learn;
use crate::niceness::Niceness;
use crate::origin::{Origin, Priority};
use crate::pace::Pace;
use crate::parked::Parked;
use crate::plan::{packed_len, runs, splits};
use crate::read_error::{AddError, ReadError};
use crate::room;
use crate::segments::{OpenLayer, SegmentFile};
use crate::standing::Proof;
use crate::store::Store;

/// How long a reader waits unless it says otherwise.
pub const DEADLINE: Duration = Duration::from_secs(300);

/// How long the end of the threads is waited for.
const ENDING: Duration = Duration::from_secs(2);

/// Layers whose tables are yet to be made; of more, the next start makes them.
const TO_KNOW: usize = 1024;

/// Segments as a read path sees them.
pub trait Segments: Send + Sync {
    /// Returns the segment if it is whole on this node; never blocks on the network.
    fn local(&self, index: IndexId, segment: u32) -> Option<Arc<SegmentFile>>;

    /// Returns the segment, fetching and verifying it first; blocks at most until the deadline.
    fn fetch(&self, index: IndexId, segment: u32, deadline: Instant) -> Result<Arc<SegmentFile>, ReadError>;

    /// Says that a reader wants this soon; never blocks.
    fn hint(&self, index: IndexId, segments: Range<u32>);
}

/// Hears what happens, for status and profiles. Called on the reader's or a worker's thread: return quickly.
pub trait Observer: Send + Sync {
    /// A reader waited for a segment that was not here.
    fn waited(&self, _index: IndexId, _segment: u32, _took: Duration, _result: Result<(), &ReadError>) {}
    /// A segment was written.
    fn filled(&self, _index: IndexId, _segment: u32, _bytes: u64, _priority: Priority) {}
    /// Packed bytes came from the origin.
    fn received(&self, _index: IndexId, _bytes: u64, _priority: Priority) {}
    /// A blob was wrong at a segment, twice.
    fn corrupt(&self, _index: IndexId, _segment: u32) {}
    /// A layer's proof failed.
    fn refused(&self, _index: IndexId, _mismatch: &Mismatch) {}
}

impl Observer for () {}

/// How many threads fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Workers {
    /// All of them: the fills under way at once.
    pub all: usize,
    /// How many of them may do what no reader waits for; fewer than all, so that readers find one free.
    pub unhurried: usize,
}

impl Default for Workers {
    /// As many as requests may be in flight to one host (16), half of them for readers alone.
    fn default() -> Self {
        Self { all: 16, unhurried: 8 }
    }
}

/// The read path from segment to origin.
pub struct ReadThrough {
    pub(crate) inner: Arc<Inner>,
    workers: Mutex<Vec<JoinHandle<()>>>,
    /// Layers whose chunks are to be known. Dropped, the thread that makes their tables ends.
    to_know: SyncSender<Arc<Layer>>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) origin: Arc<dyn Origin>,
    pub(crate) observer: Arc<dyn Observer>,
    /// Layers in use and how often. Not held across I/O; `parked` and `halves` are locked under it.
    layers: RwLock<HashMap<IndexId, (Arc<Held>, usize)>>,
    /// Not held across I/O. Under it only what an [`Urgency`](crate::Urgency) tells is locked, for a look.
    pub(crate) flights: Mutex<Flights>,
    /// Decoders that stand inside a span. Held for a look only.
    pub(crate) parked: Mutex<Parked>,
    /// What spans had of segments that lie in another one, too. Held for a look, and to copy one.
    pub(crate) halves: Mutex<Halves>,
    /// What decoders hold of what comes out whole or not at all.
    pub(crate) memory: Memory,
    /// How fast the origin has been. Held for a look only.
    pub(crate) pace: Mutex<Pace>,
    /// How long answers have been arriving. Held for a look only.
    pub(crate) arriving: Mutex<fill::Arriving>,
    /// Told, with the lock of the flights, when there is work.
    pub(crate) work: Condvar,
    /// Bytes that came from other layers.
    taken: AtomicU64,
    /// Readers that joined a flight.
    joined: AtomicU64,
}

/// A layer in use.
#[derive(Debug)]
pub(crate) struct Held {
    pub(crate) layer: Arc<Layer>,
    pub(crate) open: Arc<OpenLayer>,
}

/// Keeps a layer in use; dropping it ends that.
pub struct Hold {
    inner: Arc<Inner>,
    held: Arc<Held>,
}

impl Hold {
    /// Returns the layer's files.
    pub fn files(&self) -> &Arc<OpenLayer> {
        &self.held.open
    }

    /// Returns the layer.
    pub fn layer(&self) -> &Arc<Layer> {
        &self.held.layer
    }

    /// Remembers that the layer was used at this moment.
    pub fn touch(&self) {
        room::touch(&self.inner.store, self.held.open.id());
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        let mut layers = guard::write(&self.inner.layers);
        if let Some((_, count)) = layers.get_mut(&self.held.open.id()) {
            *count -= 1;
            if *count == 0 {
                layers.remove(&self.held.open.id());
                guard::lock(&self.inner.parked).forget(&self.held.layer);
                guard::lock(&self.inner.halves).forget_layer(self.held.open.id());
            }
        }
    }
}

impl std::fmt::Debug for Hold {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("Hold").field(&self.held.open).finish()
    }
}

impl ReadThrough {
    /// Starts the workers of a store.
    pub fn start(
        store: Arc<Store>,
        origin: Arc<dyn Origin>,
        observer: Arc<dyn Observer>,
        workers: Workers,
    ) -> Result<Self, StoreError> {
        let inner = Arc::new(Inner {
            store,
            origin,
            observer,
            layers: RwLock::default(),
            flights: Mutex::default(),
            parked: Mutex::default(),
            halves: Mutex::default(),
            memory: Memory::default(),
            pace: Mutex::default(),
            arriving: Mutex::default(),
            work: Condvar::new(),
            taken: AtomicU64::new(0),
            joined: AtomicU64::new(0),
        });
        let (to_know, layers) = sync_channel(TO_KNOW);
        let started = Self { inner, workers: Mutex::default(), to_know };
        let failed = |error| StoreError::io("starting threads for", started.inner.store.root(), error);
        let store = Arc::downgrade(&started.inner.store);
        let know = std::thread::Builder::new().name("known".into()).spawn(move || learn(&store, &layers));
        know.map_err(failed)?;
        for number in 0..workers.all.max(1) {
            let inner = Arc::clone(&started.inner);
            let work = move || inner.work(workers.unhurried);
            let thread = std::thread::Builder::new().name(format!("fill-{number}")).spawn(work);
            guard::lock(&started.workers).push(thread.map_err(failed)?);
        }
        Ok(started)
    }

    /// Takes a layer into use, looking at its files. If the same index is in use already, its decoder table stays the
    /// one in use.
    pub fn add(&self, layer: Arc<Layer>) -> Result<Hold, AddError> {
        let open = OpenLayer::open(&self.inner.store, Arc::<Layer>::clone(&layer))?;
        if let Proof::Refused { .. } = open.standing().proof {
            return Err(AddError::Refused { index: open.id() });
        }
        room::touch(&self.inner.store, open.id());
        let _ = self.to_know.try_send(Arc::clone(&layer)); // full, or closed: see `TO_KNOW`
        let mut layers = guard::write(&self.inner.layers);
        let (held, count) = layers.entry(open.id()).or_insert_with(|| (Arc::new(Held { layer, open }), 0));
        *count += 1;
        Ok(Hold { inner: Arc::clone(&self.inner), held: Arc::clone(held) })
    }

    /// Begins to wait for a segment. Dropping the waiter ends its wait and nobody else's.
    pub fn begin(&self, index: IndexId, segment: u32, deadline: Instant) -> Result<Waiter<'_>, ReadError> {
        let held = self.inner.held(index)?;
        if held.open.claim(segment).is_none() {
            return Err(ReadError::Unknown { index, segment });
        }
        let mut waiter =
            Waiter { inner: &self.inner, held, segment, deadline, since: Instant::now(), flight: None };
        let joined = waiter.join()?;
        self.inner.joined.fetch_add(joined.into(), Ordering::Relaxed);
        Ok(waiter)
    }

    /// Asks for segments that nobody waits for yet; never blocks. False if the queue is full: ask again later. While
    /// wishes are [paused](ReadThrough::pause) they are dropped.
    pub fn want(&self, index: IndexId, segments: Range<u32>, priority: Priority) -> bool {
        let Ok(held) = self.inner.held(index) else { return true };
        let mut room = true;
        for spans in runs(&held.layer, segments, |segment| held.open.is_whole(segment)) {
            room &= guard::lock(&self.inner.flights).want(index, &spans, priority, Instant::now() + DEADLINE);
        }
        self.inner.work.notify_all();
        room
    }

    /// Limits what is asked for at a time of hints and the background, of whatever layer, from their next request on; `None`
    /// ends that. Whoever limits has a number; of several the narrowest counts.
    pub fn limit(&self, whose: u64, ahead: Option<Ahead>) {
        guard::lock(&self.inner.flights).limit(whose, ahead);
        self.inner.work.notify_all();
    }

    /// Returns the time from a request to the first byte of its answer, by the shortest of the latest ones.
    pub fn delay(&self) -> Option<Duration> {
        guard::lock(&self.inner.pace).delay()
    }

    /// Returns about how long it takes to fetch the span of a segment, by the latest requests; nothing where these do not tell.
    pub fn time(&self, index: IndexId, segment: u32) -> Option<Duration> {
        let held = self.inner.held(index).ok()?;
        let parts = held.layer.parts(held.layer.span(segment)?.segments)?;
        guard::lock(&self.inner.pace).time(packed_len(&parts))
    }

    /// Stops what no reader waits for: what has been asked for still comes, what has not is forgotten. Until
    /// [`ReadThrough::resume`], wishes are not taken and [`ReadThrough::complete`] fails.
    pub fn pause(&self) {
        guard::lock(&self.inner.flights).pause();
    }

    /// Takes wishes again.
    pub fn resume(&self) {
        guard::lock(&self.inner.flights).paused = false;
    }

    /// Returns for how long at least one answer of an origin has been arriving since the start, and at least one to a reader.
    pub fn arriving(&self) -> (Duration, Duration) {
        let arriving = guard::lock(&self.inner.arriving);
        (arriving.all.time(), arriving.demand.time())
    }

    /// Returns the bytes that were copied from other layers and not fetched, since the start.
    pub fn taken(&self) -> u64 {
        self.inner.taken.load(Ordering::Relaxed)
    }

    /// Returns how many readers joined a fetch that was under way or asked for already, since the start.
    pub fn joined(&self) -> u64 {
        self.inner.joined.load(Ordering::Relaxed)
    }

    /// Returns how many spans are on their way.
    pub fn under_way(&self) -> usize {
        guard::lock(&self.inner.flights).len()
    }

    /// Stops: readers that wait get [`ReadError::Closed`], fills end at their next piece. Waits for the threads, but
    /// not for an origin that does not answer: what it brings after this is not written.
    pub fn close(&self) {
        self.inner.close();
        let until = Instant::now() + ENDING;
        for worker in guard::lock(&self.workers).drain(..) {
            while !worker.is_finished() && Instant::now() < until {
                std::thread::sleep(Duration::from_millis(1));
            }
            if worker.is_finished() {
                // It catches what it runs: there is no panic to pass on.
                let _ = worker.join();
            }
        }
    }
}

impl Drop for ReadThrough {
    fn drop(&mut self) {
        // Not waited for: an origin may take until its deadline to return.
        self.inner.close();
    }
}

impl Segments for ReadThrough {
    fn local(&self, index: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        let held = self.inner.held(index).ok()?;
        // A file that cannot be opened is for `fetch` to explain.
        held.open.file(segment).ok().flatten()
    }

    fn fetch(&self, index: IndexId, segment: u32, deadline: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        let held = self.inner.held(index)?;
        match held.open.file(segment) {
            Ok(Some(file)) => Ok(file),
            Ok(None) => self.begin(index, segment, deadline)?.wait(),
            Err(error) => Err(ReadError::disk(index, segment, error)),
        }
    }

    fn hint(&self, index: IndexId, segments: Range<u32>) {
        // A hint that finds no room is no loss.
        let _ = self.want(index, segments, Priority::Hint);
    }
}

/// A reader that waits for a segment.
pub struct Waiter<'a> {
    inner: &'a Inner,
    held: Arc<Held>,
    segment: u32,
    deadline: Instant,
    since: Instant,
    flight: Option<(Key, Arc<Signal>)>,
}

impl Waiter<'_> {
    /// Waits, at most until the deadline.
    pub fn wait(mut self) -> Result<Arc<SegmentFile>, ReadError> {
        let result = self.wait_for_file();
        let index = self.held.open.id();
        self.inner.observer.waited(index, self.segment, self.since.elapsed(), result.as_ref().map(|_| ()));
        result
    }

    fn wait_for_file(&mut self) -> Result<Arc<SegmentFile>, ReadError> {
        let (index, segment) = (self.held.open.id(), self.segment);
        loop {
            self.wait_for_news()?;
            match self.held.open.file(segment) {
                Ok(Some(file)) => return Ok(file),
                // Gone again (`scrub`), or its flight was abandoned: ask anew.
                Ok(None) => drop(self.join()?),
                Err(error) => return Err(ReadError::disk(index, segment, error)),
            }
        }
    }

    /// Waits until the segment is whole or its flight has ended otherwise than by failing.
    fn wait_for_news(&mut self) -> Result<(), ReadError> {
        let Some((key, signal)) = self.flight.take() else { return Ok(()) };
        let mut flights = guard::lock(&self.inner.flights);
        loop {
            if self.held.open.claim(self.segment) == Some(Claim::Whole) {
                flights.leave(key, &signal, self.segment, true);
                return Ok(());
            }
            match signal.outcome.get() {
                Some(Outcome::Failed(error)) => return Err(error.clone()),
                Some(Outcome::Landed | Outcome::Abandoned) => return Ok(()),
                None => {}
            }
            let left = self.deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                flights.leave(key, &signal, self.segment, false);
                return Err(ReadError::Timeout { index: key.layer, segment: self.segment });
            }
            flights = guard::wait_at_most(&signal.news, flights, left);
        }
    }

    /// Says whether the flight was there before.
    fn join(&mut self) -> Result<bool, ReadError> {
        let index = self.held.open.id();
        let Some(span) = self.held.layer.span(self.segment) else {
            return Err(ReadError::Unknown { index, segment: self.segment });
        };
        let key = Key { layer: index, span: span.segments.start };
        let wanted = self.inner.wanted(&self.held, span.segments, self.segment);
        let mut flights = guard::lock(&self.inner.flights);
        if flights.closed {
            return Err(ReadError::Closed);
        }
        let is_there = flights.has(&key);
        self.flight = Some((key, flights.join(index, wanted, self.segment, self.deadline)));
        drop(flights);
        self.inner.work.notify_one();
        Ok(is_there)
    }
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        if let Some((key, signal)) = self.flight.take() {
            guard::lock(&self.inner.flights).leave(key, &signal, self.segment, false);
        }
    }
}

impl Inner {
    pub(crate) fn held(&self, index: IndexId) -> Result<Arc<Held>, ReadError> {
        let layers = guard::read(&self.layers);
        let held = layers.get(&index).map(|(held, _)| Arc::clone(held));
        held.ok_or(ReadError::Unknown { index, segment: 0 })
    }

    pub(crate) fn took(&self, bytes: u64) {
        self.taken.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Returns how much of a span to fetch for a reader of one of its segments: up to that, or all of it where
    /// asking again would cost more time than the rest, or where nobody could go on in the middle.
    fn wanted(&self, held: &Held, span: Range<u32>, segment: u32) -> Range<u32> {
        let end = (segment + 1).clamp(span.start, span.end);
        if end == span.end || !splits(&held.layer, &span) {
            return span;
        }
        let (all, part) = (held.layer.packed(span.clone()), held.layer.packed(span.start..end));
        let rest = all.zip(part).map_or(0, |(all, part)| all.end - part.end);
        if guard::lock(&self.pace).is_worth_a_request(rest) { span.start..end } else { span }
    }

    /// Keeps a decoder that stands before a segment, unless its layer is out of use, or in use with another table.
    pub(crate) fn park(&self, held: &Held, next: u32, decoder: SpanDecoder) {
        let layers = guard::read(&self.layers);
        if layers.get(&held.open.id()).is_some_and(|(now, _)| Arc::ptr_eq(&now.layer, &held.layer)) {
            guard::lock(&self.parked).put(&held.layer, next, decoder);
        }
    }

    /// Keeps a half of a segment, unless its layer is out of use; returns the segment if the other half was here.
    pub(crate) fn keep(&self, held: &Held, half: Half) -> Option<Verified> {
        let layers = guard::read(&self.layers);
        layers.get(&held.open.id())?;
        guard::lock(&self.halves).put(&held.layer, half)
    }

    /// What a worker thread does.
    fn work(&self, unhurried: usize) {
        let mut niceness = Niceness::of_this_thread();
        loop {
            let job = {
                let mut flights = guard::lock(&self.flights);
                loop {
                    if flights.closed {
                        return;
                    }
                    if let Some(job) = flights.next(unhurried) {
                        break job;
                    }
                    flights = guard::wait(&self.work, flights);
                }
            };
            // A panic has failed its flights on the way (`fill::Fill::drop`); the thread goes on.
            let run = std::panic::AssertUnwindSafe(|| fill::run(self, job, &mut niceness));
            let ran = std::panic::catch_unwind(run);
            if ran.is_err() {
                tracing::error!("a fill panicked");
            }
        }
    }

    fn close(&self) {
        guard::lock(&self.flights).close();
        self.memory.close();
        self.work.notify_all();
    }
}
