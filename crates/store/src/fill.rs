//! One job of a worker: a run of adjacent spans, read in one request, decoded, verified and written.
//!
//! Bytes that are wrong are asked for once more; the second time the flight fails and names the segment. A
//! span that a reader has taken out of the job, or that nobody wants any more, ends the request.

use std::collections::HashSet;
use std::ops::{ControlFlow, Range};
use std::sync::Arc;
use std::time::Instant;

use format::decode::{DecodeError, Half, SpanDecoder, Verified};
use format::index::{Codec, Hash};

use crate::claim::{Claim, FillError};
use crate::flights::{Job, Outcome};
use crate::guard;
use crate::known::Asker;
use crate::niceness::Niceness;
use crate::origin::{Blob, OriginError, Priority, Urgency};
use crate::pace::Clock;
use crate::plan::{Request, fitting, has_half, known_from, request, units};
use crate::read_error::ReadError;
use crate::read_through::{Held, Inner};
use crate::stretch::Stretch;

/// Does a job; every flight of it has ended, is another's or was put back when this returns.
pub(crate) fn run(inner: &Inner, job: Job, niceness: &mut Niceness) {
    let urgency = Arc::new(Urgency::new(job.priority));
    let mut fill = Fill { inner, job, urgency, niceness, at: 0, known: HashSet::new(), retried: None };
    match inner.held(fill.job.layer) {
        Err(error) => fill.finish_rest(&Outcome::Failed(error)),
        Ok(held) => {
            fill.shorten(&held);
            let hurried = fill.job.priority == Priority::Demand;
            // Before its flights begin: a reader who comes meanwhile takes one out of the job.
            match inner.memory.take(fill.holds(&held), hurried, fill.job.deadline) {
                // It may have waited for long, and for what is no longer to be fetched.
                Some(_room) if hurried || !guard::lock(&inner.flights).paused => fill.run(&held),
                _ => fill.finish_rest(&Outcome::Abandoned),
            }
        }
    }
}

struct Fill<'a> {
    inner: &'a Inner,
    job: Job,
    /// Of its request; shared with the flight that runs.
    urgency: Arc<Urgency>,
    /// Of the thread that does it.
    niceness: &'a mut Niceness,
    /// The span that is next, in `job.spans`.
    at: usize,
    /// What need not be fetched: other layers seem to have it.
    known: HashSet<u32>,
    /// The span whose bytes were wrong once.
    retried: Option<usize>,
}

/// Why an attempt ended.
enum Stop {
    /// What was to be done is done.
    Complete,
    /// The next span is not ours any more, or nobody wants it.
    Unwanted,
    /// The bytes are wrong, or too few.
    Corrupt(DecodeError),
    /// A segment could not be written.
    Unwritten(u32, FillError),
    /// The origin failed.
    Origin(OriginError),
}

impl<'a> Fill<'a> {
    /// Leaves to the next job what is more than may be asked for at a time.
    fn shorten(&mut self, held: &Held) {
        let Some(ahead) = guard::lock(&self.inner.flights).ahead() else { return };
        if self.job.priority < Priority::Hint {
            return;
        }
        let count = fitting(&held.layer, &self.job.spans, ahead.bytes);
        let rest = self.job.spans.split_off(count);
        guard::lock(&self.inner.flights).put_back(&self.job, &rest);
        self.inner.work.notify_one();
    }

    /// Returns how much of its spans a decoder holds at most.
    fn holds(&self, held: &Held) -> u64 {
        let all = self.job.spans.first().zip(self.job.spans.last());
        all.map_or(0, |(first, last)| held.layer.holds(first.start..last.end))
    }

    fn run(&mut self, held: &Held) {
        self.settle(held);
        let mut asker = self.ask(held);
        while self.at < self.job.spans.len() {
            if !self.begin() {
                // Its reader's own job has it; ours goes on behind it later.
                self.put_back(self.at + 1);
                return;
            }
            if self.span().clone().all(|segment| is_whole(held, segment)) {
                self.land();
                continue;
            }
            match self.copy(held, &mut asker).unwrap_or_else(|| self.attempt(held)) {
                Stop::Complete => {}
                Stop::Unwanted => {
                    self.finish(Outcome::Abandoned);
                    self.put_back(self.at + 1);
                    return;
                }
                Stop::Corrupt(error) if self.retried != Some(self.at) => {
                    tracing::warn!(layer = %held.open.id(), %error, "wrong bytes from the origin, asking once more");
                    self.retried = Some(self.at);
                }
                Stop::Corrupt(error) => {
                    let error = self.corrupt(held, error);
                    self.finish(Outcome::Failed(error));
                    self.at += 1;
                }
                Stop::Unwritten(segment, error) => {
                    let error = unwritten(held, segment, error);
                    self.finish_rest(&Outcome::Failed(error));
                }
                Stop::Origin(OriginError::Timeout) if Instant::now() >= self.job.deadline => {
                    self.finish_rest(&Outcome::Abandoned);
                }
                Stop::Origin(error) => {
                    let source = Arc::new(error);
                    let error =
                        ReadError::Origin { index: held.open.id(), segment: self.span().start, source };
                    self.finish_rest(&Outcome::Failed(error));
                }
            }
        }
    }

    /// Checks what a crash may have harmed; what passes need not be fetched.
    fn settle(&self, held: &Held) {
        for segment in self.job.spans.iter().cloned().flatten() {
            if matches!(held.open.claim(segment), Some(Claim::Suspect | Claim::Busy)) {
                match held.open.settle(segment) {
                    Ok(true) => self.announce(held, segment),
                    Ok(false) => {}
                    Err(error) => {
                        tracing::warn!(layer = %held.open.id(), segment, %error, "cannot check a segment")
                    }
                }
            }
        }
    }

    /// Asks other layers for all that is missing; nothing of them is read.
    fn ask(&mut self, held: &Held) -> Asker<'a> {
        let known = &self.inner.store.known;
        if self.job.priority >= Priority::Hint {
            known.wait();
        }
        let hurried = self.job.priority == Priority::Demand;
        let mut asker = Asker::new(&self.inner.store, &held.layer, hurried);
        for span in &self.job.spans {
            let from =
                known_from(&held.layer, span, |segment| is_whole(held, segment), |unit| asker.has(unit));
            self.known.extend(from..span.end);
        }
        asker
    }

    /// Copies what is missing of the next span, unit by unit: for readers what they wait for, and for nobody in particular all
    /// of it, once what has to be fetched is there. Nothing if there is nothing to do but to fetch.
    fn copy(&mut self, held: &Held, asker: &mut Asker<'_>) -> Option<Stop> {
        let span = self.span().clone();
        let fetches = span.clone().any(|segment| !self.is_here(held, segment));
        let hurried = self.job.priority == Priority::Demand;
        if fetches && !hurried {
            return None;
        }
        let waiting = guard::lock(&self.inner.flights).waiting(self.key());
        let mut copied = false;
        for unit in units(&held.layer, span.clone()) {
            let wanted = !hurried || unit.clone().any(|segment| waiting.contains(&segment));
            let here = |segment| self.known.contains(&segment);
            if !wanted || !unit.clone().all(here) || unit.clone().all(|segment| is_whole(held, segment)) {
                continue;
            }
            if !guard::lock(&self.inner.flights).may_begin(self.key(), self.job.priority) {
                return Some(Stop::Unwanted);
            }
            match self.copy_unit(held, asker, unit) {
                Ok(true) => copied = true,
                Ok(false) => {
                    // Gone or wrong since it was asked for: of this span nothing is believed any more.
                    self.known.retain(|segment| !span.contains(segment));
                    return Some(Stop::Complete);
                }
                Err((segment, error)) => return Some(Stop::Unwritten(segment, error)),
            }
        }
        if !hurried {
            return Some(Stop::Complete);
        }
        let is_whole = |segment| is_whole(held, segment);
        // Who has come meanwhile is looked after next.
        let served = (copied || !fetches)
            && guard::lock(&self.inner.flights).serve(self.key(), self.job.ticket, is_whole);
        self.at += usize::from(served);
        (served || !fetches).then_some(Stop::Complete)
    }

    /// Copies segments that belong together; false if other layers do not have them after all.
    fn copy_unit(
        &self,
        held: &Held,
        asker: &mut Asker<'_>,
        unit: Range<u32>,
    ) -> Result<bool, (u32, FillError)> {
        let mut taken = 0;
        let all = asker.copy(unit, |segment, verified| {
            let new = self.write(held, segment, verified).map_err(|error| (segment, error))?;
            taken += if new { verified.as_slice().len() as u64 } else { 0 };
            Ok(())
        })?;
        if all {
            held.open.took(taken);
            self.inner.took(taken);
        }
        Ok(all)
    }

    /// Reads the run of missing spans that begins here, as far as it goes.
    fn attempt(&mut self, held: &Held) -> Stop {
        let mut request =
            request(&held.layer, &self.job.spans, self.at, |segment| self.is_here(held, segment));
        self.leave_half(held, &mut request);
        let past = request.spans.end;
        let mut decoder = match self.decoder(held, request.segments.end) {
            Ok(decoder) => decoder,
            Err(error) => return Stop::Corrupt(error),
        };
        let (parts, priority, deadline) = (decoder.parts(), self.job.priority, self.job.deadline);
        let (inner, urgency) = (self.inner, Arc::clone(&self.urgency));
        // A decoder that goes on may hold all it needs; then nobody is asked.
        let mut stop = self.take(held, &mut decoder, past, &[]);
        let mut read = Ok(());
        for part in parts.iter().filter(|part| !part.range.is_empty()) {
            if stop.is_some() {
                break;
            }
            let Some(blob) = held.layer.source().blob_at(part.blob) else { break };
            let blob = Blob { digest: blob.digest, size: blob.size };
            let mut left = part.range.end - part.range.start;
            let (mut clock, mut arriving) = (Clock::start(), None);
            let mut sink = |piece: &[u8]| {
                clock.took(piece.len());
                arriving.get_or_insert_with(|| Arrives::begin(inner)).to(urgency.priority());
                // An origin that sends too much is cut off: nothing behind the range was asked for.
                let piece = &piece[..usize::try_from(left).map_or(piece.len(), |left| left.min(piece.len()))];
                left -= piece.len() as u64;
                inner.observer.received(held.open.id(), piece.len() as u64, priority);
                match self.take(held, &mut decoder, past, piece) {
                    None if left > 0 => ControlFlow::Continue(()),
                    ended => {
                        stop = ended;
                        ControlFlow::Break(())
                    }
                }
            };
            read = inner.origin.read(&blob, part.range.clone(), &urgency, deadline, &mut sink);
            drop(arriving);
            guard::lock(&inner.pace).learn(&clock);
            if read.is_err() || left > 0 {
                break;
            }
        }
        if let Err((segment, error)) = self.keep(held, decoder.halves()) {
            return Stop::Unwritten(segment, error);
        }
        match (stop, read) {
            (Some(Stop::Complete), _) if decoder.is_done() => {
                // What other layers have of its end is yet to be copied.
                if self.span().clone().all(|segment| is_whole(held, segment)) {
                    self.park(held, decoder);
                    self.land();
                }
                Stop::Complete
            }
            (Some(stop), _) => stop,
            (None, Err(error)) => Stop::Origin(error),
            (None, Ok(())) => match decoder.finish() {
                Ok(()) => Stop::Complete,
                Err(error) => Stop::Corrupt(error),
            },
        }
    }

    /// Returns a decoder of the span that is next, and of what follows up to `end`: one that waits in it before what is
    /// missing, or a new one.
    fn decoder(&self, held: &Held, end: u32) -> Result<SpanDecoder, DecodeError> {
        let missing = self.span().clone().find(|segment| !is_whole(held, *segment));
        let parked = missing
            .and_then(|next| guard::lock(&self.inner.parked).take(&held.layer, self.span().start..next + 1));
        if let Some(mut decoder) = parked
            && decoder.go_on(end).is_ok()
        {
            return Ok(decoder);
        }
        let wanted = self.span().start..end;
        if self.retried == Some(self.at) {
            // A neighbour may be what was wrong, and it is not what is waited for.
            return SpanDecoder::new(Arc::clone(&held.layer), wanted);
        }
        let known = if held.layer.hash() == Hash::Sealed {
            let mut halves = guard::lock(&self.inner.halves);
            let edges = [wanted.start, wanted.end - 1];
            edges.into_iter().filter_map(|segment| halves.take(held.open.id(), segment)).collect()
        } else {
            Vec::new()
        };
        SpanDecoder::with_neighbours(Arc::clone(&held.layer), wanted, known)
    }

    /// Leaves the last segment of a request for later that lies in a span of another flight's as well: that brings the other
    /// half of it.
    fn leave_half(&self, held: &Held, request: &mut Request) {
        let Some([.., before, last]) = self.job.spans.get(request.spans.clone()) else { return };
        if !has_half(&held.layer, before.clone(), last.clone()) {
            return;
        }
        let Some(other) = held.layer.span(last.end).map(|span| self.job.key(&span.segments)) else { return };
        // In the background that is begun sooner or later, if it has not been.
        if self.job.priority == Priority::Background
            || guard::lock(&self.inner.flights).signal(other).is_some()
        {
            request.segments.end = before.end;
            request.spans.end -= 1;
        }
    }

    /// Keeps halves of segments, or writes those whose other half is here.
    fn keep(&self, held: &Held, halves: Vec<Half>) -> Result<(), (u32, FillError)> {
        for half in halves {
            let segment = half.segment();
            if !is_whole(held, segment)
                && let Some(verified) = self.inner.keep(held, half)
            {
                self.write(held, segment, &verified).map_err(|error| (segment, error))?;
            }
        }
        Ok(())
    }

    /// Writes a segment, and tells whoever waits for it; returns whether it was missing.
    fn write(&self, held: &Held, segment: u32, verified: &Verified) -> Result<bool, FillError> {
        let bytes = verified.as_slice();
        let known = is_whole(held, segment);
        held.open.fill(segment, bytes)?;
        if !known {
            self.inner.observer.filled(held.open.id(), segment, bytes.len() as u64, self.job.priority);
        }
        if held.layer.hash() == Hash::Sealed {
            guard::lock(&self.inner.halves).forget(held.open.id(), segment);
        }
        self.announce(held, segment);
        Ok(!known)
    }

    /// Keeps a decoder that can go on, if anybody may yet want what comes next.
    fn park(&self, held: &Held, mut decoder: SpanDecoder) {
        if held.layer.source().codec == Codec::Gzip
            && let Some(next) = decoder.next()
            && let Some(span) = held.layer.span(next)
            && (next..span.segments.end).any(|segment| !is_whole(held, segment))
        {
            decoder.shrink();
            self.inner.park(held, next, decoder);
        }
    }

    /// Takes one piece of compressed bytes; nicely, if no reader waits for it.
    fn take(&mut self, held: &Held, decoder: &mut SpanDecoder, past: usize, piece: &[u8]) -> Option<Stop> {
        let awaited = guard::lock(&self.inner.flights).is_awaited(self.key());
        self.niceness.suit(if awaited { Priority::Demand } else { self.job.priority });
        let stop = self.decode(held, decoder, past, piece);
        self.niceness.suit(Priority::Demand); // what asks and waits is the same thread
        stop
    }

    fn decode(
        &mut self,
        held: &Held,
        decoder: &mut SpanDecoder,
        past: usize,
        mut piece: &[u8],
    ) -> Option<Stop> {
        loop {
            let (segment, verified) = match decoder.push(&mut piece) {
                Ok(Some(found)) => found,
                Ok(None) if decoder.is_done() => return Some(Stop::Complete),
                Ok(None) if guard::lock(&self.inner.flights).is_wanted(self.key()) => return None,
                Ok(None) => return Some(Stop::Unwanted),
                Err(error) => return Some(Stop::Corrupt(error)),
            };
            // Somebody may be about to ask for the other half of what this lot begins with.
            let kept = self.keep(held, decoder.halves());
            let write = |()| self.write(held, segment, &verified).map_err(|error| (segment, error));
            if let Err((segment, error)) = kept.and_then(write) {
                return Some(Stop::Unwritten(segment, error));
            }
            decoder.reuse(verified);
            if decoder.is_done() {
                // Its flight ends when the decoder waits for whoever comes next.
                return Some(Stop::Complete);
            }
            // Around what is wanted more may come out: of the spans before the first flight, or behind the last.
            if segment + 1 != self.span().end || self.at + 1 == past {
                continue;
            }
            self.land();
            if !self.begin() {
                // Seen again, and put back, by `run`.
                return Some(Stop::Complete);
            }
        }
    }

    fn span(&self) -> &Range<u32> {
        &self.job.spans[self.at]
    }

    fn key(&self) -> crate::flights::Key {
        self.job.key(self.span())
    }

    /// Returns whether a segment need not be fetched.
    fn is_here(&self, held: &Held, segment: u32) -> bool {
        is_whole(held, segment) || self.known.contains(&segment)
    }

    fn begin(&self) -> bool {
        guard::lock(&self.inner.flights).begin(self.key(), self.job.ticket, self.span().end, &self.urgency)
    }

    /// Ends the flight of a span that is whole.
    fn land(&mut self) {
        self.finish(Outcome::Landed);
        self.at += 1;
    }

    fn finish(&self, outcome: Outcome) {
        guard::lock(&self.inner.flights).finish(self.key(), self.job.ticket, outcome);
    }

    fn finish_rest(&mut self, outcome: &Outcome) {
        while self.at < self.job.spans.len() {
            self.finish(outcome.clone());
            self.at += 1;
        }
    }

    fn put_back(&mut self, from: usize) {
        guard::lock(&self.inner.flights)
            .put_back(&self.job, &self.job.spans[from.min(self.job.spans.len())..]);
        self.at = self.job.spans.len();
        // Another worker may be idle.
        self.inner.work.notify_one();
    }

    fn announce(&self, held: &Held, segment: u32) {
        let mine = self.job.spans.iter().find(|span| span.contains(&segment)).cloned();
        let span = mine.or_else(|| Some(held.layer.span(segment)?.segments));
        if let Some(span) = span {
            guard::lock(&self.inner.flights).announce(self.job.key(&span));
        }
    }

    fn corrupt(&self, held: &Held, error: DecodeError) -> ReadError {
        let segment = match &error {
            DecodeError::Corrupt(corrupt) => corrupt.segment,
            DecodeError::Undecodable { segment, .. } | DecodeError::Truncated { segment } => *segment,
            _ => self.span().start,
        };
        // What is told may be of a neighbour that is here.
        let missing = self.span().clone().find(|segment| !is_whole(held, *segment));
        held.open.doubt(if is_whole(held, segment) { missing.unwrap_or(segment) } else { segment });
        self.inner.observer.corrupt(held.open.id(), segment);
        let chunk = if let DecodeError::Corrupt(corrupt) = &error { Some(corrupt.chunk) } else { None };
        let blob = held.layer.blob_of(segment, chunk);
        ReadError::Corrupt { index: held.open.id(), segment, blob, source: Arc::new(error) }
    }
}

/// For how long answers have been arriving.
#[derive(Debug, Default)]
pub(crate) struct Arriving {
    pub(crate) all: Stretch,
    /// Those that readers wait for.
    pub(crate) demand: Stretch,
}

/// An answer that is arriving; also while a piece of it is worked on, which holds up the next.
struct Arrives<'a> {
    inner: &'a Inner,
    /// Whether a reader waits for it.
    demand: bool,
}

impl<'a> Arrives<'a> {
    fn begin(inner: &'a Inner) -> Self {
        guard::lock(&inner.arriving).all.begin();
        Self { inner, demand: false }
    }

    /// Says how urgent it is now.
    fn to(&mut self, priority: Priority) {
        if priority == Priority::Demand && !self.demand {
            guard::lock(&self.inner.arriving).demand.begin();
            self.demand = true;
        }
    }
}

impl Drop for Arrives<'_> {
    fn drop(&mut self) {
        let mut arriving = guard::lock(&self.inner.arriving);
        arriving.all.end();
        if self.demand {
            arriving.demand.end();
        }
    }
}

impl Drop for Fill<'_> {
    /// A decoder that panics must not leave its readers waiting.
    fn drop(&mut self) {
        if self.at < self.job.spans.len() {
            self.finish_rest(&Outcome::Failed(ReadError::Internal));
        }
        guard::lock(&self.inner.flights).done(self.job.priority);
        if self.job.priority != Priority::Demand {
            self.inner.work.notify_one();
        }
    }
}

fn is_whole(held: &Held, segment: u32) -> bool {
    held.open.claim(segment) == Some(Claim::Whole)
}

fn unwritten(held: &Held, segment: u32, error: FillError) -> ReadError {
    let index = held.open.id();
    match error {
        FillError::Refused => ReadError::Refused { index },
        FillError::Closed => ReadError::Closed,
        FillError::Io(error) => ReadError::disk(index, segment, error),
    }
}
