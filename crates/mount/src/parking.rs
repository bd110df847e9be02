//! Reads that wait for a segment, and the threads that fetch it.
//!
//! Reads are parked by segment: one thread fetches, then answers all that waited for it. So a few threads
//! serve any number of readers, and what they hold is a few hundred bytes per read, no buffer. Threads begin
//! when a segment is wanted and none is idle, and end when there has been nothing to do for a while.
//!
//! The table owns the reads, not the thread that fetches: [`Parking::stop`] answers all of them at once,
//! however long a fetch still takes.

use std::collections::{HashMap, VecDeque};
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use crate::observe::Failure;

/// Segments fetched at a time. The network side has its own, smaller budget; more threads let it choose.
const THREADS: usize = 64;

/// Reads that may wait. Each process that reads has one or two; a read takes some 200 bytes.
const PARKED: usize = 65_536;

/// How long a thread stays with nothing to do.
const IDLE: Duration = Duration::from_secs(10);

/// Stack of a thread: it decodes and verifies, with buffers on the heap.
const STACK: usize = 512 << 10;

/// What is done with reads that wait.
pub(crate) trait Serve: Send + Sync + 'static {
    /// Names a segment.
    type Key: Copy + Eq + Hash + Send;
    /// A read that waits; dropped it is never answered.
    type Read: Send;

    /// Makes a segment whole, by the deadline at the latest.
    fn fetch(&self, key: Self::Key, deadline: Instant) -> Result<(), Failure>;
    /// Answers a read whose segment is whole; returns it if it waits for another one too.
    fn answer(&self, read: Self::Read) -> Option<(Self::Key, Self::Read)>;
    /// Answers a read with an error.
    fn fail(&self, read: Self::Read, why: &Failure);
    /// Returns when a read is to be answered at the latest.
    fn deadline(&self, read: &Self::Read) -> Instant;
}

/// Everything under one lock, which is held neither while fetching nor while answering.
struct State<S: Serve> {
    /// Segments that wait for a thread, first come first served.
    queue: VecDeque<S::Key>,
    /// Reads by the segment they wait for. A segment is here from its first read until it is answered.
    parked: HashMap<S::Key, Vec<S::Read>>,
    count: usize,
    threads: usize,
    idle: usize,
    stopped: bool,
}

/// The reads that wait.
pub(crate) struct Parking<S: Serve> {
    server: S,
    state: Mutex<State<S>>,
    work: Condvar,
}

impl<S: Serve> Parking<S> {
    /// Returns an empty one.
    pub(crate) fn new(server: S) -> Self {
        let state = State {
            queue: VecDeque::new(),
            parked: HashMap::new(),
            count: 0,
            threads: 0,
            idle: 0,
            stopped: false,
        };
        Self { server, state: Mutex::new(state), work: Condvar::new() }
    }

    /// Returns who serves.
    pub(crate) fn server(&self) -> &S {
        &self.server
    }

    /// Takes a read that waits for a segment.
    pub(crate) fn park(self: &Arc<Self>, key: S::Key, read: S::Read) {
        let mut state = self.lock();
        let refuse = match &*state {
            State { stopped: true, .. } => Some(Failure::Stopped),
            State { count: PARKED.., .. } => Some(Failure::Crowded),
            _ => None,
        };
        if let Some(why) = refuse {
            drop(state);
            return self.server.fail(read, &why);
        }
        state.count += 1;
        let queue = state.parked.entry(key).or_default();
        queue.push(read);
        if queue.len() > 1 {
            return; // somebody is on it
        }
        state.queue.push_back(key);
        // An idle thread that was called counts as idle until it runs, so it may be called for two.
        if state.queue.len() > state.idle && state.threads < THREADS {
            self.start_thread(state);
        } else {
            self.work.notify_one();
        }
    }

    fn start_thread(self: &Arc<Self>, mut state: MutexGuard<'_, State<S>>) {
        state.threads += 1;
        let this = Arc::clone(self);
        let body = move || this.run();
        let started = thread::Builder::new().name("floe-waiter".into()).stack_size(STACK).spawn(body);
        // With other threads the segment gets its turn; without any it would wait forever.
        if let Err(error) = started {
            tracing::warn!(%error, "starting a thread for a read that waits");
            state.threads -= 1;
            if state.threads == 0 {
                let keys = std::mem::take(&mut state.queue);
                let reads: Vec<_> = keys.iter().flat_map(|key| take(&mut state, *key)).collect();
                drop(state);
                reads.into_iter().for_each(|read| self.server.fail(read, &Failure::Crowded));
            }
        }
    }

    fn run(self: Arc<Self>) {
        loop {
            let mut state = self.lock();
            let key = loop {
                if let Some(key) = state.queue.pop_front() {
                    break key;
                }
                if state.stopped {
                    state.threads -= 1;
                    return;
                }
                state.idle += 1;
                let timeout;
                (state, timeout) =
                    self.work.wait_timeout(state, IDLE).unwrap_or_else(PoisonError::into_inner);
                state.idle -= 1;
                if timeout.timed_out() && state.queue.is_empty() {
                    state.threads -= 1;
                    return;
                }
            };
            let waiting = state.parked.get(&key).into_iter().flatten();
            let deadline = waiting.map(|read| self.server.deadline(read)).min();
            drop(state);
            let Some(deadline) = deadline else { continue }; // stopped in between
            // Whatever the store does, a panic too, the readers get an answer.
            let _guard = Answer { parking: &self, key };
            self.fetch(key, deadline);
        }
    }

    /// Makes a segment whole and answers those who wait for it.
    fn fetch(self: &Arc<Self>, key: S::Key, deadline: Instant) {
        let fetched =
            if Instant::now() < deadline { self.server.fetch(key, deadline) } else { Err(Failure::Deadline) };
        let reads = take(&mut self.lock(), key);
        let now = Instant::now();
        for read in reads {
            match &fetched {
                Ok(()) => {
                    if let Some((next, read)) = self.server.answer(read) {
                        self.park(next, read);
                    }
                }
                // The first reader's time was up; whoever came later still has some.
                Err(_) if now >= deadline && now < self.server.deadline(&read) => self.park(key, read),
                Err(why) => self.server.fail(read, why),
            }
        }
    }

    /// Answers all that wait with an error, and every one that would wait from here on.
    pub(crate) fn stop(&self) {
        self.end().into_iter().for_each(|read| self.server.fail(read, &Failure::Stopped));
    }

    /// Ends; returns the reads that wait, unanswered.
    pub(crate) fn end(&self) -> Vec<S::Read> {
        let mut state = self.lock();
        state.stopped = true;
        state.queue.clear();
        let keys: Vec<_> = state.parked.keys().copied().collect();
        let reads = keys.into_iter().flat_map(|key| take(&mut state, key)).collect();
        drop(state);
        self.work.notify_all();
        reads
    }

    fn lock(&self) -> MutexGuard<'_, State<S>> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers readers for whom a fetch ended without saying how.
struct Answer<'a, S: Serve> {
    parking: &'a Arc<Parking<S>>,
    key: S::Key,
}

impl<S: Serve> Drop for Answer<'_, S> {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let mut state = self.parking.lock();
        let reads = take(&mut state, self.key);
        state.threads -= 1;
        drop(state);
        let why = Failure::Disk(std::io::Error::other("the thread that fetched failed"));
        reads.into_iter().for_each(|read| self.parking.server.fail(read, &why));
    }
}

fn take<S: Serve>(state: &mut State<S>, key: S::Key) -> Vec<S::Read> {
    let reads = state.parked.remove(&key).unwrap_or_default();
    state.count -= reads.len();
    reads
}
