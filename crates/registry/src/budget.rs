//! The budget of one host: requests in flight and per second, and who goes first.
//!
//! Promises: never more than [`Budgets::in_flight`] permits exist, of them never more than
//! [`Budgets::background`] for background work; in any window of one second at most [`Budgets::per_second`] are
//! given; a reader's request goes before every background one; after [`Limiter::hold`] none is given until that
//! moment. Dropping a waiter or a permit gives its place to the next. Background work that already has its permit
//! gives way to readers' between the pieces of its answer: while they have a request in flight, or, where the client is
//! [`Eager`], while an answer to them is arriving.

use std::collections::VecDeque;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, oneshot};
use tokio::time::Instant;

use crate::config::Budgets;
use crate::urgency::Urgency;

/// Who waits for a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Priority {
    /// A process, right now.
    Demand,
    /// Nobody yet: prefetch, the rest of a layer.
    Background,
}

const WINDOW: Duration = Duration::from_secs(1);

/// How long background work stands still for readers before it takes one more piece. Less than any server's
/// patience with a client that does not read, and an end to waiting if a reader forgets an open answer.
const GIVE_WAY: Duration = Duration::from_secs(2);

/// Gives permits for requests to one host.
#[derive(Debug)]
pub(crate) struct Limiter {
    budgets: Budgets,
    /// Held for a few instructions, never across `.await`; no other lock is taken under it.
    state: Mutex<State>,
    /// How many want the background to use the time in which readers wait for the first byte of an answer.
    eager: Arc<AtomicUsize>,
    /// Woken when waiters must look at the clock again.
    changed: Notify,
    pub(crate) counters: Counters,
}

#[derive(Debug, Default)]
struct State {
    demand: u32,
    /// Of these, how many whose answer is arriving.
    arriving: u32,
    background: u32,
    peak: u32,
    /// When the last `per_second` permits were given, oldest first.
    given: VecDeque<Instant>,
    held: Option<Instant>,
    waiting: [VecDeque<oneshot::Sender<Permit>>; 2],
}

/// Counts since the start of the process.
#[derive(Debug, Default)]
pub(crate) struct Counters {
    pub(crate) requests: AtomicU64,
    pub(crate) retries: AtomicU64,
    pub(crate) throttled: AtomicU64,
    pub(crate) bytes: AtomicU64,
    pub(crate) ranges_ignored: AtomicU64,
    pub(crate) redirects: AtomicU64,
    pub(crate) tokens: AtomicU64,
}

/// What one host was asked and gave, and what waits for it.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct HostStats {
    /// Requests in flight.
    pub in_flight: u32,
    /// Most requests that ever were in flight at once.
    pub peak_in_flight: u32,
    /// Requests that wait for the budget: those of readers, then those in the background.
    pub waiting: [usize; 2],
    /// Requests sent.
    pub requests: u64,
    /// Requests that were repetitions after a failure.
    pub retries: u64,
    /// Answers that asked us to slow down (429 and 503).
    pub throttled: u64,
    /// Bytes of content received.
    pub bytes: u64,
    /// Ranges that were answered with the whole blob.
    pub ranges_ignored: u64,
    /// Redirects resolved.
    pub redirects: u64,
    /// Tokens fetched.
    pub tokens: u64,
    /// How long the host asked us to stay away from now on.
    pub held_for: Option<Duration>,
}

/// The right to have one request in flight; ends when dropped.
#[derive(Debug)]
pub(crate) struct Permit {
    limiter: Arc<Limiter>,
    priority: Priority,
    /// Whether the answer is arriving.
    arriving: bool,
}

/// While it lives, background work of a client uses what its readers leave of the link, also while they wait for the
/// first byte of an answer: for a link that is long, or fast beside what is read.
#[derive(Debug)]
pub struct Eager(Arc<AtomicUsize>);

impl Eager {
    pub(crate) fn new(count: &Arc<AtomicUsize>) -> Self {
        count.fetch_add(1, Relaxed);
        Self(Arc::clone(count))
    }
}

impl Drop for Eager {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Relaxed);
    }
}

impl Permit {
    /// Tells that a piece of the answer is here.
    pub(crate) fn arrives(&mut self) {
        if self.priority == Priority::Demand && !self.arriving {
            self.arriving = true;
            self.limiter.lock().arriving += 1;
        }
    }

    pub(crate) fn priority(&self) -> Priority {
        self.priority
    }

    /// Makes a permit of the background a reader's; its place there is another's.
    pub(crate) fn hurry(&mut self) {
        if self.priority == Priority::Background {
            {
                let mut state = self.limiter.lock();
                state.background -= 1;
                state.demand += 1;
            }
            self.priority = Priority::Demand;
            if self.limiter.pump().is_some() {
                self.limiter.changed.notify_waiters();
            }
        }
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        let quiet = {
            let mut state = self.limiter.lock();
            match self.priority {
                Priority::Demand => state.demand -= 1,
                Priority::Background => state.background -= 1,
            }
            state.arriving -= u32::from(self.arriving);
            self.priority == Priority::Demand && (state.demand == 0 || state.arriving == 0)
        };
        // Whoever waited for a free place may have to wait for the clock from here on, and whoever gave way may
        // go on. Only here, not where waiters pump: they would wake each other for ever.
        if self.limiter.pump().is_some() || quiet {
            self.limiter.changed.notify_waiters();
        }
    }
}

impl Limiter {
    pub(crate) fn new(budgets: Budgets, eager: Arc<AtomicUsize>) -> Arc<Self> {
        Arc::new(Self {
            budgets: budgets.sane(),
            eager,
            state: Mutex::default(),
            changed: Notify::new(),
            counters: Counters::default(),
        })
    }

    pub(crate) fn budgets(&self) -> &Budgets {
        &self.budgets
    }

    /// Waits for the right to send a request.
    pub(crate) async fn acquire(self: &Arc<Self>, priority: Priority) -> Permit {
        let (sender, receiver) = oneshot::channel();
        self.lock().waiting[priority as usize].push_back(sender);
        let mut receiver = pin!(receiver);
        loop {
            // Registered before looking, so that no change in between is missed.
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            let wait = self.pump();
            let clock = async {
                match wait {
                    Some(moment) => tokio::time::sleep_until(moment).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                granted = receiver.as_mut() => match granted {
                    Ok(permit) => return permit,
                    // The sender lives in the queue until it is used, so this cannot happen; waiting on is harmless.
                    Err(_) => std::future::pending().await,
                },
                () = changed => {}
                () = clock => {}
            }
        }
    }

    /// The same for something that may become urgent while it waits.
    pub(crate) async fn acquire_for(self: &Arc<Self>, urgency: &Urgency) -> Permit {
        if urgency.priority() == Priority::Background {
            tokio::select! {
                biased;
                permit = self.acquire(Priority::Background) => return permit,
                () = urgency.hurried() => {}
            }
        }
        self.acquire(Priority::Demand).await
    }

    /// Waits, but not long, until no reader has or wants a permit, or none gets anything.
    pub(crate) async fn give_way(&self) {
        let end = Instant::now() + GIVE_WAY;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            {
                let state = self.lock();
                let idle = state.demand == 0 && state.waiting[0].iter().all(oneshot::Sender::is_closed);
                if idle || (state.arriving == 0 && self.eager.load(Relaxed) > 0) {
                    return;
                }
            }
            tokio::select! {
                () = changed => {}
                () = tokio::time::sleep_until(end) => return,
            }
        }
    }

    /// Gives no permit before this much time has passed.
    pub(crate) fn hold(&self, time: Duration) {
        let until = Instant::now() + time;
        let mut state = self.lock();
        state.held = state.held.max(Some(until));
        drop(state);
        self.changed.notify_waiters();
    }

    pub(crate) fn stats(&self) -> HostStats {
        let state = self.lock();
        let now = Instant::now();
        let count = |n: &AtomicU64| n.load(Relaxed);
        HostStats {
            in_flight: state.demand + state.background,
            peak_in_flight: state.peak,
            waiting: [0, 1].map(|n: usize| state.waiting[n].iter().filter(|w| !w.is_closed()).count()),
            requests: count(&self.counters.requests),
            retries: count(&self.counters.retries),
            throttled: count(&self.counters.throttled),
            bytes: count(&self.counters.bytes),
            ranges_ignored: count(&self.counters.ranges_ignored),
            redirects: count(&self.counters.redirects),
            tokens: count(&self.counters.tokens),
            held_for: state
                .held
                .and_then(|until| until.checked_duration_since(now))
                .filter(|time| !time.is_zero()),
        }
    }

    /// Gives what can be given; returns when the clock will allow more, if that is what stands in the way.
    fn pump(self: &Arc<Self>) -> Option<Instant> {
        loop {
            let (sender, priority) = {
                let mut state = self.lock();
                match state.next(&self.budgets) {
                    Next::Give(sender, priority) => (sender, priority),
                    Next::Nothing => return None,
                    Next::NotBefore(moment) => return Some(moment),
                }
            };
            // Outside the lock: a waiter that has gone gives the permit back by dropping it, which locks.
            let _ = sender.send(Permit { limiter: Arc::clone(self), priority, arriving: false });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // The state is a few counters, changed together; a panic in between is impossible.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

enum Next {
    Give(oneshot::Sender<Permit>, Priority),
    Nothing,
    NotBefore(Instant),
}

impl State {
    fn next(&mut self, budgets: &Budgets) -> Next {
        for queue in &mut self.waiting {
            while queue.front().is_some_and(oneshot::Sender::is_closed) {
                queue.pop_front();
            }
        }
        let priority = match (&self.waiting[0].is_empty(), &self.waiting[1].is_empty()) {
            (false, _) => Priority::Demand,
            (true, false) if self.background < budgets.background => Priority::Background,
            _ => return Next::Nothing,
        };
        if self.demand + self.background >= budgets.in_flight {
            return Next::Nothing;
        }
        let now = Instant::now();
        if let Some(until) = self.held {
            if now < until {
                return Next::NotBefore(until);
            }
            self.held = None;
        }
        while self.given.front().is_some_and(|&then| now >= then + WINDOW) {
            self.given.pop_front();
        }
        if self.given.len() >= budgets.per_second as usize {
            return Next::NotBefore(self.given[0] + WINDOW);
        }
        let Some(sender) = self.waiting[priority as usize].pop_front() else { return Next::Nothing };
        self.given.push_back(now);
        match priority {
            Priority::Demand => self.demand += 1,
            Priority::Background => self.background += 1,
        }
        self.peak = self.peak.max(self.demand + self.background);
        Next::Give(sender, priority)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::Future;
    use std::task::{Context, Poll, Waker};

    fn limiter(in_flight: u32, background: u32, per_second: u32) -> Arc<Limiter> {
        let budgets = Budgets { in_flight, background, per_second, ..Budgets::default() };
        Limiter::new(budgets, Arc::default())
    }

    #[tokio::test]
    async fn an_eager_client_uses_the_time_in_which_readers_wait_for_an_answer() {
        let limiter = limiter(4, 2, 100);
        let mut reader = limiter.acquire(Priority::Demand).await;
        assert!(poll(pin!(limiter.give_way())).is_none());
        let eager = Eager::new(&limiter.eager);
        assert!(poll(pin!(limiter.give_way())).is_some());
        reader.arrives();
        assert!(poll(pin!(limiter.give_way())).is_none(), "the link is the reader's");
        let mut waiting = pin!(limiter.give_way());
        assert!(poll(waiting.as_mut()).is_none());
        drop(reader);
        waiting.await;
        let _reader = limiter.acquire(Priority::Demand).await;
        drop(eager);
        assert!(poll(pin!(limiter.give_way())).is_none());
    }

    /// Polls once; the pinned future keeps its place in the queue.
    fn poll<F: Future>(future: std::pin::Pin<&mut F>) -> Option<F::Output> {
        match future.poll(&mut Context::from_waker(Waker::noop())) {
            Poll::Ready(done) => Some(done),
            Poll::Pending => None,
        }
    }

    #[tokio::test(start_paused = true)]
    async fn never_more_in_flight_than_allowed() {
        let limiter = limiter(3, 3, 1000);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..64u64 {
            let limiter = Arc::clone(&limiter);
            tasks.spawn(async move {
                let priority = if n % 3 == 0 { Priority::Demand } else { Priority::Background };
                let _permit = limiter.acquire(priority).await;
                assert!(limiter.stats().in_flight <= 3);
                tokio::time::sleep(Duration::from_millis(n % 7)).await;
            });
        }
        while let Some(done) = tasks.join_next().await {
            done.unwrap();
        }
        let stats = limiter.stats();
        assert_eq!((stats.in_flight, stats.peak_in_flight, stats.waiting), (0, 3, [0, 0]));
    }

    #[tokio::test(start_paused = true)]
    async fn a_permit_that_is_hurried_gives_way_no_more_and_frees_its_place() {
        let limiter = limiter(4, 1, 1000);
        let _reader = limiter.acquire(Priority::Demand).await;
        let mut first = limiter.acquire(Priority::Background).await;
        let mut second = pin!(limiter.acquire(Priority::Background));
        assert!(poll(second.as_mut()).is_none());
        first.hurry();
        first.hurry();
        assert_eq!(first.priority(), Priority::Demand);
        let second = poll(second.as_mut()).unwrap();
        assert_eq!(limiter.stats().in_flight, 3);
        drop((first, second));
        assert_eq!(limiter.stats().in_flight, 1);
    }

    #[tokio::test(start_paused = true)]
    async fn no_window_of_a_second_has_more_than_the_rate() {
        let limiter = limiter(50, 50, 10);
        let mut tasks = tokio::task::JoinSet::new();
        for n in 0..95u64 {
            let limiter = Arc::clone(&limiter);
            tasks.spawn(async move {
                let _permit = limiter.acquire(Priority::Background).await;
                let begun = Instant::now();
                tokio::time::sleep(Duration::from_millis(n * 13 % 400)).await;
                begun
            });
        }
        let mut begun = tasks.join_all().await;
        begun.sort();
        for (n, pair) in begun.windows(11).enumerate() {
            assert!(pair[10] - pair[0] >= WINDOW, "{n}");
        }
        assert!(begun[94] - begun[0] < Duration::from_secs(10), "and the rate is used");
    }

    #[tokio::test(start_paused = true)]
    async fn readers_go_first_and_find_room() {
        let limiter = limiter(2, 1, 1000);
        let first = limiter.acquire(Priority::Background).await;
        let mut background = pin!(limiter.acquire(Priority::Background));
        assert!(poll(background.as_mut()).is_none(), "the background has its own bound");
        let second = poll(pin!(limiter.acquire(Priority::Demand))).unwrap();
        let mut demand = pin!(limiter.acquire(Priority::Demand));
        assert!(poll(demand.as_mut()).is_none());
        drop(first);
        let _third = poll(demand.as_mut()).unwrap();
        assert!(poll(background.as_mut()).is_none());
        drop(second);
        assert!(poll(background.as_mut()).is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn who_becomes_urgent_while_waiting_is_let_through() {
        let limiter = limiter(3, 1, 1000);
        let _background = limiter.acquire(Priority::Background).await;
        let urgency = Urgency::from(Priority::Background);
        let mut waiting = pin!(limiter.acquire_for(&urgency));
        assert!(poll(waiting.as_mut()).is_none());
        urgency.clone().hurry();
        let permit = poll(waiting.as_mut()).unwrap();
        assert_eq!(permit.priority(), Priority::Demand);
        assert_eq!((limiter.stats().in_flight, limiter.stats().waiting), (2, [0, 0]));
    }

    #[tokio::test(start_paused = true)]
    async fn background_answers_give_way_to_readers() {
        let limiter = limiter(4, 4, 1000);
        let _background = limiter.acquire(Priority::Background).await;
        let start = Instant::now();
        limiter.give_way().await;
        assert_eq!(start.elapsed(), Duration::ZERO, "nobody reads");
        let reader = limiter.acquire(Priority::Demand).await;
        let mut way = Box::pin(limiter.give_way());
        assert!(poll(way.as_mut()).is_none());
        drop(reader);
        assert!(poll(way.as_mut()).is_some());
        let _forgotten = limiter.acquire(Priority::Demand).await;
        limiter.give_way().await;
        assert_eq!(start.elapsed(), GIVE_WAY);
    }

    #[tokio::test(start_paused = true)]
    async fn a_waiter_that_leaves_blocks_nobody() {
        let limiter = limiter(1, 1, 1000);
        let permit = limiter.acquire(Priority::Demand).await;
        {
            let mut gone = Box::pin(limiter.acquire(Priority::Demand));
            assert!(poll(gone.as_mut()).is_none());
        }
        let mut next = pin!(limiter.acquire(Priority::Demand));
        assert!(poll(next.as_mut()).is_none());
        // Granted, but dropped before it learned of it.
        let mut granted = Box::pin(limiter.acquire(Priority::Demand));
        assert!(poll(granted.as_mut()).is_none());
        drop(permit);
        drop(poll(next.as_mut()).unwrap());
        drop(granted);
        assert!(poll(pin!(limiter.acquire(Priority::Demand))).is_some());
        assert_eq!(limiter.stats().in_flight, 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hold_stops_all_until_it_is_over() {
        let limiter = limiter(4, 4, 1000);
        let start = Instant::now();
        let waiting = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.acquire(Priority::Demand).await }
        });
        drop(waiting.await.unwrap());
        limiter.hold(Duration::from_secs(7));
        assert_eq!(limiter.stats().held_for, Some(Duration::from_secs(7)));
        let _permit = limiter.acquire(Priority::Demand).await;
        assert_eq!(start.elapsed(), Duration::from_secs(7));
        assert_eq!(limiter.stats().held_for, None);
    }

    #[tokio::test(start_paused = true)]
    async fn waiters_for_a_place_learn_of_the_clock() {
        // The place becomes free while the window is full: only a look at the clock helps from then on.
        let limiter = limiter(1, 1, 1);
        let permit = limiter.acquire(Priority::Demand).await;
        let waiting = tokio::spawn({
            let limiter = Arc::clone(&limiter);
            async move { limiter.acquire(Priority::Demand).await }
        });
        tokio::task::yield_now().await;
        drop(permit);
        waiting.await.unwrap();
    }
}
