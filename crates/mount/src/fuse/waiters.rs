//! Reads that wait for a segment, and the threads that fetch it.
//!
//! Reads are parked by segment: one thread fetches, then answers all that waited for it. So a few threads
//! serve any number of readers, and what they hold is a few hundred bytes per read, no buffer. Threads begin
//! when a segment is wanted and none is idle, and end when there has been nothing to do for a while.
//!
//! The table owns the replies, not the thread that fetches: [`Waiters::stop`] answers all of them at once,
//! however long a fetch still takes.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use format::erofs::read::Inode;
use fuser::ReplyData;

use super::filesystem::with_buffer;
use super::reads::{Core, Outcome};
use crate::errno;
use crate::observe::{Failure, Wait};

/// Segments fetched at a time. The network side has its own, smaller budget; more threads let it choose.
const THREADS: usize = 64;

/// Reads that may wait. Each process that reads has one or two; a read takes some 200 bytes.
const PARKED: usize = 65_536;

/// How long a thread stays with nothing to do.
const IDLE: Duration = Duration::from_secs(10);

/// Stack of a waiter: it decodes and verifies, with buffers on the heap.
const STACK: usize = 512 << 10;

/// A read that waits.
pub(super) struct Parked {
    pub(super) inode: Inode,
    pub(super) offset: u64,
    pub(super) len: u64,
    /// The device that was missing first.
    pub(super) device: u16,
    pub(super) since: Instant,
    pub(super) reply: ReplyData,
}

/// Everything under one lock, which is held neither while fetching nor while answering.
#[derive(Default)]
struct State {
    /// Devices that wait for a thread, first come first served.
    queue: VecDeque<u16>,
    /// Reads by the device they wait for. A device is here from its first read until it is answered.
    parked: HashMap<u16, Vec<Parked>>,
    count: usize,
    threads: usize,
    idle: usize,
    stopped: bool,
}

/// The reads that wait of one mount.
pub(super) struct Waiters<B> {
    core: Arc<Core<B>>,
    state: Mutex<State>,
    work: Condvar,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Waiters<B> {
    pub(super) fn new(core: Arc<Core<B>>) -> Self {
        Self { core, state: Mutex::default(), work: Condvar::new() }
    }

    /// Takes a read that found a device missing.
    pub(super) fn wait(self: &Arc<Self>, device: u16, read: Parked) {
        if let Some(slot) = self.core.image.device(read.device) {
            self.core.observer.waiting(read.inode.nid, (slot.index, slot.segment));
        }
        self.park(device, read);
    }

    fn park(self: &Arc<Self>, device: u16, read: Parked) {
        let mut state = self.lock();
        let refuse = match &*state {
            State { stopped: true, .. } => Some(Failure::Stopped),
            State { count: PARKED.., .. } => Some(Failure::Crowded),
            _ => None,
        };
        if let Some(why) = refuse {
            drop(state);
            return self.fail(read, &why);
        }
        state.count += 1;
        let queue = state.parked.entry(device).or_default();
        queue.push(read);
        if queue.len() > 1 {
            return; // somebody is on it
        }
        state.queue.push_back(device);
        // An idle thread that was called counts as idle until it runs, so it may be called for two.
        if state.queue.len() > state.idle && state.threads < THREADS {
            self.start_thread(state);
        } else {
            self.work.notify_one();
        }
    }

    fn start_thread(self: &Arc<Self>, mut state: MutexGuard<'_, State>) {
        state.threads += 1;
        let this = Arc::clone(self);
        let body = move || this.run();
        let started = thread::Builder::new().name("floe-waiter".into()).stack_size(STACK).spawn(body);
        // With other threads the device gets its turn; without any it would wait forever.
        if let Err(error) = started {
            tracing::warn!(%error, "starting a thread for a read that waits");
            state.threads -= 1;
            if state.threads == 0 {
                let devices = std::mem::take(&mut state.queue);
                let reads: Vec<_> = devices.iter().flat_map(|device| take(&mut state, *device)).collect();
                drop(state);
                reads.into_iter().for_each(|read| self.fail(read, &Failure::Crowded));
            }
        }
    }

    fn run(self: Arc<Self>) {
        loop {
            let mut state = self.lock();
            let device = loop {
                if let Some(device) = state.queue.pop_front() {
                    break device;
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
            let since = state.parked.get(&device).into_iter().flatten().map(|read| read.since).min();
            drop(state);
            let Some(since) = since else { continue }; // stopped in between
            // Whatever the store does, a panic too, the readers get an answer.
            let _guard = Answer { waiters: &self, device };
            self.fetch(device, since + self.core.deadline);
        }
    }

    /// Fetches a device's segment and answers those who wait for it.
    fn fetch(self: &Arc<Self>, device: u16, deadline: Instant) {
        let Some(slot) = self.core.image.device(device) else { return }; // then nobody could have asked
        let fetched = if Instant::now() < deadline {
            self.core
                .segments
                .fetch(slot.index, slot.segment, deadline)
                .map_err(Arc::new)
                .map_err(Failure::Fetch)
        } else {
            Err(Failure::Deadline)
        };
        if let Ok(file) = &fetched {
            self.core.files.put(device, Arc::clone(file));
        }
        let reads = take(&mut self.lock(), device);
        let now = Instant::now();
        for read in reads {
            match &fetched {
                Ok(_) => self.answer(read),
                // The first reader's time was up; whoever came later still has some.
                Err(_) if now >= deadline && now < read.since + self.core.deadline => self.park(device, read),
                Err(why) => self.fail(read, why),
            }
        }
    }

    /// Reads what a read asked for; waits on if another segment is missing.
    fn answer(self: &Arc<Self>, read: Parked) {
        if let Some(bytes) = self.core.in_place(&read.inode, read.offset, read.len) {
            self.tell(&read, Ok(()));
            return read.reply.data(bytes.bytes());
        }
        with_buffer(read.len, |buf| match self.core.read(&read.inode, read.offset, buf) {
            Ok(Outcome::Read) => {
                self.tell(&read, Ok(()));
                read.reply.data(buf);
            }
            Ok(Outcome::Missing(next)) => self.park(next, read),
            Err(why) => self.fail(read, &why),
        });
    }

    fn fail(&self, read: Parked, why: &Failure) {
        self.tell(&read, Err(why));
        read.reply.error(errno::of_read(why));
    }

    fn tell(&self, read: &Parked, outcome: Result<(), &Failure>) {
        let Some(slot) = self.core.image.device(read.device) else { return };
        self.core.observer.waited(&Wait {
            nid: read.inode.nid,
            offset: read.offset,
            len: read.len,
            missing: (slot.index, slot.segment),
            took: read.since.elapsed(),
            outcome,
        });
    }

    /// Answers all that wait with an error, and every one that would wait from here on.
    pub(super) fn stop(&self) {
        let mut state = self.lock();
        state.stopped = true;
        state.queue.clear();
        let devices: Vec<u16> = state.parked.keys().copied().collect();
        let reads: Vec<_> = devices.into_iter().flat_map(|device| take(&mut state, device)).collect();
        drop(state);
        self.work.notify_all();
        reads.into_iter().for_each(|read| self.fail(read, &Failure::Stopped));
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Answers readers for whom a fetch ended without saying how.
struct Answer<'a, B: AsRef<[u8]> + Send + Sync + 'static> {
    waiters: &'a Arc<Waiters<B>>,
    device: u16,
}

impl<B: AsRef<[u8]> + Send + Sync + 'static> Drop for Answer<'_, B> {
    fn drop(&mut self) {
        if !thread::panicking() {
            return;
        }
        let mut state = self.waiters.lock();
        let reads = take(&mut state, self.device);
        state.threads -= 1;
        drop(state);
        let why = Failure::Disk(std::io::Error::other("the thread that fetched failed"));
        reads.into_iter().for_each(|read| self.waiters.fail(read, &why));
    }
}

fn take(state: &mut State, device: u16) -> Vec<Parked> {
    let reads = state.parked.remove(&device).unwrap_or_default();
    state.count -= reads.len();
    reads
}
