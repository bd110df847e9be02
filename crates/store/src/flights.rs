//! Which spans are being fetched, by whom they are wanted, and what is next: plain data, no lock, no clock.
//!
//! A *flight* is one span on its way, as far as somebody wants it: one fetch, however many want it. A *job* is a
//! run of adjacent spans that one worker reads in one request; it holds a ticket, and each of its flights names
//! the ticket that may run it. A reader who wants a span that is only queued takes it out of its job by giving it
//! a ticket of its own, so nobody waits behind a hint. A job that comes to a span which is no longer its own
//! stops there. A flight that runs goes no further than it was wanted when it began: readers who want more ask
//! again when it has ended, wishes are kept with it and become a flight of their own.
//!
//! A flight that nobody wants any more is abandoned: dropped if it is queued, cut short if it runs. One that
//! has served a reader is finished even if the reader is gone, for the next reader is usually its neighbour.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;
use std::sync::{Arc, Condvar, OnceLock};
use std::time::Instant;

use format::IndexId;

use crate::origin::{Priority, Urgency};
use crate::read_error::ReadError;

/// Jobs per kind of wish that may wait. A full queue refuses: hints are given again, readers wait anyway.
const QUEUE: usize = 4096;

/// A span: the layer and the first of its segments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Key {
    pub(crate) layer: IndexId,
    pub(crate) span: u32,
}

/// How a flight ended.
#[derive(Debug, Clone)]
pub(crate) enum Outcome {
    /// Its segments were written.
    Landed,
    /// Nobody wanted it, or its own deadline came: whoever still waits asks again.
    Abandoned,
    /// It failed; the next reader tries again.
    Failed(ReadError),
}

/// How those who wait for a flight hear from it.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    /// Waited on with the lock of the flights.
    pub(crate) news: Condvar,
    /// Set once, at the end.
    pub(crate) outcome: OnceLock<Outcome>,
}

#[derive(Debug)]
struct Flight {
    ticket: u64,
    /// Set while it runs: how urgent the request is that fetches it.
    running: Option<Arc<Urgency>>,
    /// The queue that it was put into last.
    queue: Priority,
    /// What readers wait for, a segment for each of them.
    waiting: Vec<u32>,
    /// True if a reader has got a segment, or it was hinted: it goes on without readers.
    kept: bool,
    /// The most urgent of the wishes for it.
    wished: Option<Priority>,
    /// The latest deadline of its readers.
    deadline: Instant,
    /// The segments that are wanted end here.
    end: u32,
    /// What was wished for behind that while it ran.
    more: Option<(u32, Priority)>,
    signal: Arc<Signal>,
}

impl Flight {
    /// Returns one that waits behind all others.
    fn new(ticket: u64, end: u32, deadline: Instant) -> Self {
        let signal = Arc::default();
        Self {
            ticket,
            running: None,
            queue: Priority::Background,
            waiting: Vec::new(),
            kept: false,
            wished: None,
            deadline,
            end,
            more: None,
            signal,
        }
    }

    /// Says whether it waits behind what has this priority.
    fn is_queued_behind(&self, priority: Priority) -> bool {
        self.running.is_none() && self.queue > priority
    }

    /// Takes note of a wish.
    fn wish(&mut self, priority: Priority) {
        self.kept = true;
        self.wished = Some(self.wished.map_or(priority, |wished| wished.min(priority)));
    }
}

/// A run of adjacent spans of one layer for one worker.
#[derive(Debug)]
pub(crate) struct Job {
    pub(crate) ticket: u64,
    pub(crate) layer: IndexId,
    /// The spans' segments, ascending and adjacent.
    pub(crate) spans: Vec<Range<u32>>,
    pub(crate) priority: Priority,
    /// The latest deadline of the readers at its start.
    pub(crate) deadline: Instant,
}

impl Job {
    pub(crate) fn key(&self, span: &Range<u32>) -> Key {
        Key { layer: self.layer, span: span.start }
    }
}

/// How much is asked for at a time of what no reader waits for and no profile has told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ahead {
    /// Requests under way at once; 0 asks for nothing more but one thing at a time that a reader comes to next.
    pub requests: usize,
    /// Packed bytes of each; one span at least.
    pub bytes: u64,
}

/// All flights and queues of one read-through.
#[derive(Debug, Default)]
pub(crate) struct Flights {
    flights: HashMap<Key, Flight>,
    queues: [VecDeque<Job>; 4],
    tickets: u64,
    /// Jobs no reader waits for that are running.
    unhurried: usize,
    /// What limits hints and the background further, by whoever wants that.
    limits: HashMap<u64, Ahead>,
    pub(crate) closed: bool,
    /// While true nothing is begun that no reader waits for, and the queues of wishes are empty.
    pub(crate) paused: bool,
}

impl Flights {
    /// Joins the flight of a span as a reader of one of its segments, beginning it if there is none. `span` ends where
    /// the reader's wish does.
    pub(crate) fn join(
        &mut self,
        layer: IndexId,
        span: Range<u32>,
        segment: u32,
        deadline: Instant,
    ) -> Arc<Signal> {
        let key = Key { layer, span: span.start };
        let ticket = self.ticket();
        let flight = self.flights.entry(key).or_insert_with(|| Flight::new(ticket, span.end, deadline));
        flight.waiting.push(segment);
        flight.deadline = flight.deadline.max(deadline);
        // Only the first reader hurries it. If it gives up, a flight that goes on without readers keeps its place:
        // readers that come and go must not fill the queue.
        if let Some(urgency) = &flight.running {
            urgency.hurry();
        }
        let queue = flight.is_queued_behind(Priority::Demand);
        if queue {
            (flight.ticket, flight.queue) = (ticket, Priority::Demand);
        }
        if flight.running.is_none() {
            flight.end = flight.end.max(span.end);
        }
        let signal = Arc::clone(&flight.signal);
        if queue {
            let job = Job { ticket, layer, spans: vec![span], priority: Priority::Demand, deadline };
            self.queues[Priority::Demand as usize].push_back(job);
        }
        signal
    }

    /// Says whether a span is on its way or waiting to be.
    pub(crate) fn has(&self, key: &Key) -> bool {
        self.flights.contains_key(key)
    }

    /// Ends a reader's wait for a segment; `served` if it got that.
    pub(crate) fn leave(&mut self, key: Key, signal: &Arc<Signal>, segment: u32, served: bool) {
        let Entry::Occupied(mut entry) = self.flights.entry(key) else { return };
        let flight = entry.get_mut();
        if !Arc::ptr_eq(&flight.signal, signal) {
            return;
        }
        if let Some(one) = flight.waiting.iter().position(|other| *other == segment) {
            flight.waiting.swap_remove(one);
        }
        flight.kept |= served;
        if flight.waiting.is_empty() && !flight.kept && flight.running.is_none() {
            let ticket = entry.remove().ticket;
            self.queues[Priority::Demand as usize].retain(|job| job.ticket != ticket);
        }
    }

    /// Returns how to hear from a span that is on its way.
    pub(crate) fn signal(&self, key: Key) -> Option<Arc<Signal>> {
        self.flights.get(&key).map(|flight| Arc::clone(&flight.signal))
    }

    /// Begins flights for adjacent spans nobody waits for; returns false if there is no room. Closed or paused, it
    /// begins none: nobody would end them.
    ///
    /// Each ends where the wish does. Spans that are on their way already, or wait where nothing less urgent does, cut the run;
    /// they go further if what is wanted lies behind their end.
    pub(crate) fn want(
        &mut self,
        layer: IndexId,
        spans: &[Range<u32>],
        priority: Priority,
        deadline: Instant,
    ) -> bool {
        let free = |flights: &HashMap<Key, Flight>, span: &Range<u32>| {
            let flight = flights.get(&Key { layer, span: span.start });
            flight.is_none_or(|flight| flight.is_queued_behind(priority))
        };
        if self.closed || self.paused {
            return true;
        }
        for span in spans {
            self.extend(Key { layer, span: span.start }, span.end, priority);
        }
        let mut rest = spans;
        while let Some(first) = rest.iter().position(|span| free(&self.flights, span)) {
            let run = &rest[first..];
            let len = run.iter().position(|span| !free(&self.flights, span)).unwrap_or(run.len());
            if self.queues[priority as usize].len() >= QUEUE {
                return false;
            }
            let ticket = self.ticket();
            for span in &run[..len] {
                let begun = || Flight::new(ticket, span.end, deadline);
                let flight = self.flights.entry(Key { layer, span: span.start }).or_insert_with(begun);
                (flight.ticket, flight.queue) = (ticket, priority);
                flight.wish(priority);
            }
            let job = Job { ticket, layer, spans: run[..len].to_vec(), priority, deadline };
            self.queues[priority as usize].push_back(job);
            rest = &run[len..];
        }
        true
    }

    /// Sets or ends a limit.
    pub(crate) fn limit(&mut self, whose: u64, ahead: Option<Ahead>) {
        match ahead {
            Some(ahead) => drop(self.limits.insert(whose, ahead)),
            None => drop(self.limits.remove(&whose)),
        }
    }

    /// Returns the narrowest of all limits.
    pub(crate) fn ahead(&self) -> Option<Ahead> {
        let narrower =
            |a: Ahead, b: Ahead| Ahead { requests: a.requests.min(b.requests), bytes: a.bytes.min(b.bytes) };
        self.limits.values().copied().reduce(narrower)
    }

    /// Returns how many jobs of a queue may run, of at most so many. What a reader comes to next is fetched, one thing at a
    /// time, even where nothing else is.
    fn most(&self, queue: usize, most: usize) -> usize {
        match self.ahead() {
            Some(ahead) if queue == Priority::Hint as usize => most.min(ahead.requests.max(1)),
            Some(ahead) if queue > Priority::Hint as usize => most.min(ahead.requests),
            _ => most,
        }
    }

    /// Returns the most urgent job; of those no reader waits for, only while fewer than `most` run.
    pub(crate) fn next(&mut self, most: usize) -> Option<Job> {
        for queue in 0..self.queues.len() {
            let most = self.most(queue, most);
            if queue != Priority::Demand as usize && self.unhurried >= most {
                return None;
            }
            while let Some(mut job) = self.queues[queue].pop_front() {
                let mine = |flights: &Self, span: &Range<u32>| {
                    flights.flights.get(&job.key(span)).is_some_and(|flight| flight.ticket == job.ticket)
                };
                // Readers took some spans, or gave up: the first run of what is left, the rest again later.
                let Some(first) = job.spans.iter().position(|span| mine(self, span)) else { continue };
                let run = &job.spans[first..];
                let len = run.iter().position(|span| !mine(self, span)).unwrap_or(run.len());
                let (mut run, rest) = (run[..len].to_vec(), run[len..].to_vec());
                if !rest.is_empty() {
                    self.queues[queue].push_front(Job { spans: rest, ..job });
                }
                if let Some(flight) = self.flights.get(&job.key(&run[0])) {
                    job.deadline = job.deadline.max(flight.deadline);
                }
                // Only the last one can have been wanted further: what lies before another one is wanted whole.
                if let Some(last) = run.last_mut()
                    && let Some(flight) = self.flights.get(&job.key(last))
                {
                    last.end = flight.end;
                }
                job.spans = run;
                self.unhurried += usize::from(job.priority != Priority::Demand);
                return Some(job);
            }
        }
        None
    }

    /// Takes a span of a job for running, as far as the job goes; false if it has been taken out of the job.
    /// Its readers, there or to come, hurry the request.
    pub(crate) fn begin(&mut self, key: Key, ticket: u64, end: u32, urgency: &Arc<Urgency>) -> bool {
        match self.flights.get_mut(&key) {
            Some(flight) if flight.ticket == ticket => {
                flight.running = Some(Arc::clone(urgency));
                if !flight.waiting.is_empty() {
                    urgency.hurry();
                }
                if flight.end > end {
                    // Wanted further since the job was made: readers ask again, and wishes are kept.
                    flight.more = Some((flight.end, flight.wished.unwrap_or(Priority::Background)));
                    flight.end = end;
                }
                true
            }
            _ => false,
        }
    }

    /// Returns whether somebody still wants a running span.
    pub(crate) fn is_wanted(&self, key: Key) -> bool {
        !self.closed && self.flights.get(&key).is_some_and(|flight| !flight.waiting.is_empty() || flight.kept)
    }

    /// Says whether readers wait for a span.
    pub(crate) fn is_awaited(&self, key: Key) -> bool {
        self.flights.get(&key).is_some_and(|flight| !flight.waiting.is_empty())
    }

    /// Returns what readers of a span wait for, as far as its flight goes: those of more ask again when it has ended.
    pub(crate) fn waiting(&self, key: Key) -> Vec<u32> {
        let flight = self.flights.get(&key);
        let within = |flight: &Flight| {
            flight.waiting.iter().copied().filter(|segment| *segment < flight.end).collect()
        };
        flight.map_or_else(Vec::new, within)
    }

    /// Ends a running flight before all of it is here if its readers have what they wait for. What was wished for comes
    /// with another.
    pub(crate) fn serve(&mut self, key: Key, ticket: u64, is_here: impl Fn(u32) -> bool) -> bool {
        let served = self.waiting(key).into_iter().all(is_here);
        if served {
            if let Some(flight) = self.flights.get_mut(&key)
                && let Some(wished) = flight.wished
            {
                flight.more.get_or_insert((flight.end, wished));
            }
            self.finish(key, ticket, Outcome::Landed);
        }
        served
    }

    /// Returns whether a worker may go on with a span without having asked anybody yet: somebody wants it, and if that is no
    /// reader, wishes are not paused.
    pub(crate) fn may_begin(&self, key: Key, priority: Priority) -> bool {
        let paused = self.paused && priority != Priority::Demand && self.waiting(key).is_empty();
        self.is_wanted(key) && !paused
    }

    /// Tells the readers of a span that one of its segments is there.
    pub(crate) fn announce(&self, key: Key) {
        if let Some(flight) = self.flights.get(&key).filter(|flight| !flight.waiting.is_empty()) {
            flight.signal.news.notify_all();
        }
    }

    /// Ends a span's flight, if it is this ticket's.
    pub(crate) fn finish(&mut self, key: Key, ticket: u64, outcome: Outcome) {
        if let Entry::Occupied(entry) = self.flights.entry(key)
            && entry.get().ticket == ticket
        {
            let flight = entry.remove();
            let landed = matches!(outcome, Outcome::Landed);
            // Set nowhere else, and the flight is gone from the map.
            let _ = flight.signal.outcome.set(outcome);
            flight.signal.news.notify_all();
            if let (true, Some((end, priority))) = (landed, flight.more) {
                // A wish: without room it is not granted.
                let rest = key.span..end;
                let _ = self.want(key.layer, std::slice::from_ref(&rest), priority, flight.deadline);
            }
        }
    }

    /// Has a flight go further, or another one follow it.
    fn extend(&mut self, key: Key, end: u32, priority: Priority) {
        let Some(flight) = self.flights.get_mut(&key).filter(|flight| flight.end < end) else { return };
        if flight.running.is_some() {
            let (further, urgency) = flight.more.unwrap_or((end, priority));
            flight.more = Some((further.max(end), urgency.min(priority)));
        } else {
            flight.end = end;
        }
    }

    /// Gives a job's spans that were never begun back to the queue.
    pub(crate) fn put_back(&mut self, job: &Job, spans: &[Range<u32>]) {
        if self.paused && job.priority != Priority::Demand {
            spans.iter().for_each(|span| self.finish(job.key(span), job.ticket, Outcome::Abandoned));
        } else if !spans.is_empty() {
            let job = Job { spans: spans.to_vec(), ..*job };
            self.queues[job.priority as usize].push_front(job);
        }
    }

    /// Forgets what no reader waits for and no worker has begun, and takes no more of it.
    pub(crate) fn pause(&mut self) {
        self.paused = true;
        for priority in [Priority::Profile, Priority::Hint, Priority::Background] {
            for job in std::mem::take(&mut self.queues[priority as usize]) {
                // A span that a reader has taken out of the job is another ticket's.
                job.spans.iter().for_each(|span| self.finish(job.key(span), job.ticket, Outcome::Abandoned));
            }
        }
    }

    /// Tells that a worker is done with a job.
    pub(crate) fn done(&mut self, priority: Priority) {
        self.unhurried -= usize::from(priority != Priority::Demand);
    }

    /// Ends everything: nobody is left waiting.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        self.queues.iter_mut().for_each(VecDeque::clear);
        for (_, flight) in self.flights.drain() {
            let _ = flight.signal.outcome.set(Outcome::Failed(ReadError::Closed)); // set nowhere else
            flight.signal.news.notify_all();
        }
    }

    /// Returns how many spans are on their way or waiting to be.
    pub(crate) fn len(&self) -> usize {
        self.flights.len()
    }

    fn ticket(&mut self) -> u64 {
        self.tickets += 1;
        self.tickets
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn readers_that_come_and_go_queue_a_hinted_span_once() {
        let (mut flights, layer, deadline) =
            (Flights::default(), IndexId::from_bytes([1; 32]), Instant::now());
        assert!(flights.want(layer, &[0..2, 2..4], Priority::Hint, deadline));
        for _ in 0..1000 {
            let signal = flights.join(layer, 2..3, 2, deadline);
            flights.leave(Key { layer, span: 2 }, &signal, 2, false);
        }
        assert_eq!(flights.queues[Priority::Demand as usize].len(), 1);
        // As urgent as one that is still waited for.
        let job = flights.next(1).unwrap();
        assert_eq!((job.priority, job.spans.first()), (Priority::Demand, Some(&(2..4))));
        assert!(flights.begin(Key { layer, span: 2 }, job.ticket, 4, &Arc::new(Urgency::new(job.priority))));
        let job = flights.next(1).unwrap();
        assert_eq!((job.priority, job.spans.first()), (Priority::Hint, Some(&(0..2))));
        assert!(flights.next(1).is_none());
    }

    #[test]
    fn what_a_reader_comes_to_next_is_fetched_where_the_rest_has_to_wait() {
        let (mut flights, layer, deadline) =
            (Flights::default(), IndexId::from_bytes([1; 32]), Instant::now());
        flights.limit(7, Some(Ahead { requests: 0, bytes: 1 }));
        assert!(flights.want(layer, &[0..2, 2..4, 4..6, 6..8, 8..10], Priority::Background, deadline));
        assert!(flights.next(8).is_none());
        for span in [4..6, 8..10] {
            assert!(flights.want(layer, &[span], Priority::Hint, deadline));
        }
        // A lesser wish takes nothing from it.
        assert!(flights.want(layer, &[0..2, 2..4, 4..6, 6..8, 8..10], Priority::Background, deadline));
        let job = flights.next(8).unwrap();
        assert_eq!((job.priority, job.spans.first()), (Priority::Hint, Some(&(4..6))));
        assert!(flights.next(8).is_none(), "one at a time");
        flights.done(job.priority);
        assert_eq!(flights.next(8).unwrap().spans.first(), Some(&(8..10)));
        flights.limit(7, None);
        assert_eq!(flights.next(8).unwrap().spans, [0..2, 2..4]);
        assert_eq!(flights.next(8).unwrap().spans.first(), Some(&(6..8)));
        assert!(flights.next(8).is_none(), "each once");
    }
}
