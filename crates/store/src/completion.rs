//! A layer as a whole: completed, proved against its diffID, re-hashed.
//!
//! Leaves to others: single segments (`read_through.rs`), and what becomes of images whose layer was refused.

use std::collections::VecDeque;
use std::io;
use std::ops::Range;
use std::sync::Arc;
use std::time::{Duration, Instant};

use format::IndexId;
use format::proof::Proved;

use crate::flights::{Key, Outcome, Signal};
use crate::guard;
use crate::origin::Priority;
use crate::plan::runs;
use crate::read_error::{CompleteError, ReadError};
use crate::read_through::{Held, Inner, ReadThrough};
use crate::standing::Proof;

/// Requests that `complete` keeps under way: one is decoded while the others travel.
const AHEAD: usize = 4;

/// How often who waits for a whole layer hears of it.
const TELL: Duration = Duration::from_secs(1);

impl ReadThrough {
    /// Fetches all of a layer that is missing, and makes it durable.
    pub fn complete(&self, index: IndexId, deadline: Instant) -> Result<(), CompleteError> {
        self.complete_while(index, deadline, &mut |_| true)
    }

    /// The same for as long as it is wanted: `go_on` hears how many segments are missing, at least every second.
    ///
    /// After a no, or once wishes are [paused](ReadThrough::pause), what has been asked for still comes; nothing more is
    /// asked for.
    pub fn complete_while(
        &self,
        index: IndexId,
        deadline: Instant,
        go_on: &mut dyn FnMut(usize) -> bool,
    ) -> Result<(), CompleteError> {
        let held = self.inner.held(index)?;
        let mut go_on = || go_on(held.open.missing());
        while held.open.missing() > 0 {
            if Instant::now() >= deadline {
                return Err(ReadError::Timeout { index, segment: 0 }.into());
            }
            let mut under_way = VecDeque::new();
            for spans in runs(&held.layer, 0..held.open.segments(), |segment| held.open.is_whole(segment)) {
                let signals = self.inner.watch(index, &spans, deadline);
                if guard::lock(&self.inner.flights).paused {
                    return Err(CompleteError::Paused);
                }
                if signals.is_empty() {
                    // No room in the queue: one at a time, as a reader.
                    self.begin(index, spans[0].start, deadline)?.wait()?;
                }
                under_way.push_back(signals);
                if under_way.len() > AHEAD {
                    self.inner.landed(index, under_way.pop_front(), deadline, &mut go_on)?;
                }
            }
            while let Some(signals) = under_way.pop_front() {
                self.inner.landed(index, Some(signals), deadline, &mut go_on)?;
            }
        }
        let _one = guard::lock(&held.open.completing);
        held.open.seal()?;
        Ok(())
    }

    /// Proves a complete layer against its diffID, and records the verdict.
    ///
    /// Returns nothing if segments are missing, or if the layer is read by a table of contents: no tar can be made of that.
    pub fn prove(&self, index: IndexId) -> Result<Option<Proved>, CompleteError> {
        let held = self.inner.held(index)?;
        let _one = guard::lock(&held.open.completing);
        if held.open.missing() > 0 || !held.layer.is_of_tar() {
            return Ok(None);
        }
        let size = held.layer.layout().segment_size();
        let verdict = Proved::by_payload(&held.layer, |mut buf, mut at| {
            while !buf.is_empty() {
                let segment = size.of(at);
                let room = usize::try_from(size.start(segment) + size.bytes() - at).unwrap_or(usize::MAX);
                let (now, later) = buf.split_at_mut(room.min(buf.len()));
                held.open.read(segment, now, at - size.start(segment))?;
                at += now.len() as u64;
                buf = later;
            }
            Ok::<(), io::Error>(())
        });
        let verdict = verdict.map_err(|error| ReadError::disk(index, 0, error))?;
        match verdict {
            Ok(proved) => {
                if held.open.standing().proof != Proof::Proved {
                    held.open.update(|standing| standing.proof = Proof::Proved)?;
                }
                Ok(Some(proved))
            }
            Err(source) => {
                // Only if every chunk is what the index says, it is the index that lies, and not the disk.
                let wrong = Self::check(&held)?;
                if let Some(segment) = wrong.first() {
                    let damaged = io::Error::other(format!("{} segments were damaged on disk", wrong.len()));
                    return Err(ReadError::disk(index, *segment, damaged).into());
                }
                tracing::error!(layer = %index, %source, "a layer is not what its image says");
                let found = format::DiffId::new(source.found);
                let saved = held.open.update(|standing| standing.proof = Proof::Refused { found });
                self.inner.observer.refused(index, &source);
                saved?;
                Err(CompleteError::Refused { index, source })
            }
        }
    }

    /// Re-hashes every whole segment of a layer; returns those that were wrong.
    ///
    /// They are fetched again when they are next read, unless the layer is mounted.
    pub fn scrub(&self, index: IndexId) -> Result<Vec<u32>, CompleteError> {
        let held = self.inner.held(index)?;
        let _one = guard::lock(&held.open.completing);
        Self::check(&held)
    }

    fn check(held: &Held) -> Result<Vec<u32>, CompleteError> {
        let mut wrong = Vec::new();
        for segment in 0..held.open.segments() {
            if held.open.scrub(segment)? == Some(false) {
                wrong.push(segment);
            }
        }
        Ok(wrong)
    }
}

impl Inner {
    /// Makes sure that spans are on their way; returns their signals.
    fn watch(&self, index: IndexId, spans: &[Range<u32>], deadline: Instant) -> Vec<Arc<Signal>> {
        let mut flights = guard::lock(&self.flights);
        // Without room some are not on their way: `complete` looks again.
        let _ = flights.want(index, spans, Priority::Background, deadline);
        let signals =
            spans.iter().filter_map(|span| flights.signal(Key { layer: index, span: span.start })).collect();
        drop(flights);
        self.work.notify_all();
        signals
    }

    /// Waits for flights to end well, as long as it is wanted.
    fn landed(
        &self,
        index: IndexId,
        signals: Option<Vec<Arc<Signal>>>,
        deadline: Instant,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<(), CompleteError> {
        for signal in signals.into_iter().flatten() {
            while !self.has_landed(index, &signal, deadline)? {
                if !go_on() {
                    return Err(CompleteError::Stopped);
                }
            }
        }
        if go_on() { Ok(()) } else { Err(CompleteError::Stopped) }
    }

    /// Waits for a flight to end well, but not for long; returns whether it has.
    fn has_landed(&self, index: IndexId, signal: &Signal, deadline: Instant) -> Result<bool, ReadError> {
        let until = deadline.min(Instant::now() + TELL);
        let mut flights = guard::lock(&self.flights);
        loop {
            match signal.outcome.get() {
                Some(Outcome::Failed(error)) => return Err(error.clone()),
                Some(Outcome::Landed | Outcome::Abandoned) => return Ok(true),
                None => {}
            }
            let now = Instant::now();
            if now >= deadline {
                return Err(ReadError::Timeout { index, segment: 0 });
            }
            if now >= until {
                return Ok(false);
            }
            flights = guard::wait_at_most(&signal.news, flights, until - now);
        }
    }
}
