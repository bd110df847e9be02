//! A long range over several connections at once, in order.
//!
//! Stores behind registries give each connection its share only, and a connection begins slowly: one of them does
//! not fill a wide link. So a long range is asked for in parts, of which the next are on their way while one is
//! read. A server that ignores ranges is noticed at the first part, and then that answer is read to its end.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio::task::AbortHandle;

use super::RemoteRange;
use crate::budget::Priority;
use crate::error::Error;

/// Bytes of one part: at 1 Gbit/s a request takes longer than the way there and back.
pub(super) const PART: u64 = 8 << 20;

/// Parts that are on their way beside those that are read, of all ranges of a client together: what waits in memory
/// is at most 16 MiB.
pub(crate) const AHEAD: usize = 2;

/// Reads a long range, part by part.
#[derive(Debug)]
pub(super) struct Parts {
    /// What is being read, and what parts are made after.
    own: RemoteRange,
    /// A part that was begun ahead goes before `own`.
    current: Option<Part>,
    coming: VecDeque<Part>,
    /// Where the first part begins that nobody has asked for.
    next: u64,
    end: u64,
    /// Whether the server is known to give ranges, or not to.
    known: bool,
}

/// A part that is fetched by a task of its own; ends with it.
#[derive(Debug)]
struct Part {
    pieces: mpsc::UnboundedReceiver<Result<Bytes, Error>>,
    left: u64,
    task: AbortHandle,
    _permit: OwnedSemaphorePermit,
}

impl Parts {
    /// Returns a reader of all that `own` is to read, which is longer than a part.
    pub(super) fn new(mut own: RemoteRange) -> Self {
        let end = own.end;
        own.end = own.next + PART;
        Self { next: own.end, end, own, current: None, coming: VecDeque::new(), known: false }
    }

    /// Returns what is being read, for messages.
    pub(super) fn what(&self) -> &str {
        &self.own.what
    }

    /// Returns the bytes that are left.
    pub(super) fn left(&self) -> u64 {
        let current = self.current.as_ref().map_or(self.own.end - self.own.next, |part| part.left);
        current + self.coming.iter().map(|part| part.left).sum::<u64>() + (self.end - self.next)
    }

    /// Returns the next bytes, or nothing at the end.
    pub(super) async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if !self.known {
            if !self.own.gives_ranges().await? {
                (self.own.end, self.next) = (self.end, self.end);
            }
            self.known = true;
        }
        loop {
            self.go_ahead();
            let piece = match &mut self.current {
                Some(part) => part.chunk(&self.own.what).await?,
                None => self.own.chunk().await?,
            };
            if piece.is_some() {
                return Ok(piece);
            }
            self.current = self.coming.pop_front();
            if self.current.is_none() {
                if self.next == self.end {
                    return Ok(None);
                }
                let range = self.claim();
                self.own = self.own.part(range);
            }
        }
    }

    /// Begins parts as far ahead as there is room for.
    fn go_ahead(&mut self) {
        // Room is for readers: what nobody waits for is in no hurry.
        if self.own.urgency.priority() != Priority::Demand {
            return;
        }
        while self.next < self.end {
            let room = Arc::clone(&self.own.repository.client.0.ahead);
            let Ok(permit) = room.try_acquire_owned() else { return };
            let range = self.claim();
            self.coming.push_back(Part::begin(self.own.part(range), permit));
        }
    }

    /// Takes the next part of what nobody has asked for.
    fn claim(&mut self) -> Range<u64> {
        let start = self.next;
        self.next = self.end.min(start + PART);
        start..self.next
    }
}

impl Part {
    fn begin(mut range: RemoteRange, permit: OwnedSemaphorePermit) -> Self {
        let left = range.end - range.next;
        // Not bounded, but there is no more of it than one part.
        let (send, pieces) = mpsc::unbounded_channel();
        let fetch = async move {
            loop {
                let piece = range.chunk().await.transpose();
                let Some(piece) = piece else { return };
                let failed = piece.is_err();
                if send.send(piece).is_err() || failed {
                    return;
                }
            }
        };
        Self { pieces, left, task: tokio::spawn(fetch).abort_handle(), _permit: permit }
    }

    async fn chunk(&mut self, what: &str) -> Result<Option<Bytes>, Error> {
        match self.pieces.recv().await {
            Some(piece) => {
                let piece = piece?;
                self.left -= piece.len() as u64; // no range gives more than it has
                Ok(Some(piece))
            }
            None if self.left == 0 => Ok(None),
            None => Err(Error::invalid(what, "fetching a part of it ended unexpectedly")),
        }
    }
}

impl Drop for Part {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl RemoteRange {
    /// Asks for the first piece, if that has not been done; returns whether the server gives ranges.
    async fn gives_ranges(&mut self) -> Result<bool, Error> {
        if self.body.is_none() {
            self.body = Some(self.open().await?);
        }
        Ok(self.body.as_ref().is_some_and(|body| !body.whole))
    }

    /// Returns a reader of another part of the same blob.
    fn part(&self, range: Range<u64>) -> Self {
        Self::new(self.repository.clone(), self.blob, self.size, range, self.urgency.clone())
    }
}
