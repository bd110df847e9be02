//! A tar in another order: written to a file as it comes, and read from there once it is known what comes first.
//!
//! Nothing is handed on before the blob has its digests. The file holds the tar without what another writer has put into
//! it ([`super::members`]); for each member it is known where it begins.
//!
//! What is reordered ends as a tar should: a last padding that was cut is made whole.

use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::os::unix::fs::FileExt;

use format::tar::{Member, Parser, Step};
use format::{DiffId, DigestHasher};

use super::members::{BLOCK, Ended, Event, Receiver, holds_global};
use super::order::Survey;
use super::{Order, RecodeError};

/// Bytes that are read at once.
const WINDOW: usize = 256 << 10;

/// Where a member is in the file.
#[derive(Debug, Clone, Copy)]
struct Span {
    start: u64,
    /// Length of its headers.
    head: u64,
    payload: u64,
}

/// A tar on its way into the file.
pub(super) struct Spool<'a> {
    file: BufWriter<&'a File>,
    survey: Survey<'a>,
    spans: Vec<Span>,
    at: u64,
    /// Where the last member ends.
    tail: Option<u64>,
    global: bool,
}

/// A tar that is in the file.
pub(super) struct Spooled<'a> {
    file: &'a File,
    spans: Vec<Span>,
    /// Members that come first.
    first: Vec<u32>,
    tail: u64,
    end: u64,
}

impl<'a> Spool<'a> {
    pub(super) fn new(order: &Order<'a>) -> Self {
        Self {
            file: BufWriter::with_capacity(WINDOW, order.spool),
            survey: Survey::new(order.first),
            spans: Vec::new(),
            at: 0,
            tail: None,
            global: false,
        }
    }

    /// Says that nothing follows.
    pub(super) fn finish(self) -> Result<Spooled<'a>, RecodeError> {
        let file = self.file.into_inner().map_err(|error| RecodeError::Spool(error.into_error()))?;
        // A global header speaks of all that follow it, so nothing may be moved.
        let first = if self.global { Vec::new() } else { self.survey.finish() };
        let tail = self.tail.unwrap_or(self.at);
        Ok(Spooled { file, spans: self.spans, first, tail, end: self.at })
    }
}

impl Receiver for Spool<'_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError> {
        match &event {
            Event::Head(head, member) => {
                self.global |= holds_global(head);
                self.survey.member(&member.path, &member.kind);
                self.spans.push(Span { start: self.at, head: head.len() as u64, payload: member.payload });
            }
            Event::Tail(_) => drop(self.tail.get_or_insert(self.at)),
            _ => {}
        }
        let bytes = event.bytes();
        self.at += bytes.len() as u64;
        self.file.write_all(bytes).map_err(RecodeError::Spool)
    }
}

impl Spooled<'_> {
    /// Says whether anything comes first that would not anyway.
    pub(super) fn is_reordered(&self) -> bool {
        !self.first.is_empty()
    }

    /// Hands on the tar; `ended` is what it was.
    pub(super) fn emit(self, ended: Ended, to: &mut impl Receiver) -> Result<Ended, RecodeError> {
        let mut reading = Reading { file: self.file, window: Vec::new(), start: 0, hasher: None };
        let mut parser = Parser::new();
        if !self.is_reordered() {
            for n in 0..self.spans.len() {
                self.member(n, &mut parser, &mut reading, to)?;
            }
            reading.pass(self.tail..self.end, to, |bytes| Event::Tail(bytes))?;
            return Ok(ended);
        }
        reading.hasher = Some(DigestHasher::new());
        let mut moved = vec![false; self.spans.len()];
        to.event(Event::Ahead)?;
        for n in self.first.iter().map(|n| *n as usize) {
            moved[n] = true;
            self.member(n, &mut Parser::new(), &mut reading, to)?;
        }
        to.event(Event::Rest)?;
        for n in (0..self.spans.len()).filter(|n| !moved[*n]) {
            self.member(n, &mut Parser::new(), &mut reading, to)?;
        }
        reading.pass(self.tail..self.end, to, |bytes| Event::Tail(bytes))?;
        let left = reading.hasher.map_or(ended.left, |hasher| DiffId::new(hasher.finish()));
        Ok(Ended { left, missing: 0, ..ended })
    }

    /// Hands on the nth member.
    fn member(
        &self,
        n: usize,
        parser: &mut Parser,
        reading: &mut Reading<'_>,
        to: &mut impl Receiver,
    ) -> Result<(), RecodeError> {
        let span = self.spans[n];
        let payload = span.start + span.head;
        let end = self.spans.get(n + 1).map_or(self.tail, |next| next.start);
        let member = reading.head(span.start..payload, parser, to)?;
        debug_assert_eq!(member.payload, span.payload);
        reading.pass(payload..payload + span.payload, to, |bytes| Event::Payload(bytes))?;
        let whole = span.payload.wrapping_neg() % BLOCK as u64;
        let padding = payload + span.payload..end;
        let there = padding.end - padding.start;
        if whole > 0 && (there > 0 || reading.hasher.is_some()) {
            let mut bytes = reading.at(padding)?.to_vec();
            parser.step(&bytes)?;
            if reading.hasher.is_some() {
                bytes.resize(usize::try_from(whole).unwrap_or(BLOCK), 0);
            }
            reading.emit(Event::Padding(&bytes), to)?;
        }
        Ok(())
    }
}

/// Reads the file, a piece ahead.
struct Reading<'a> {
    file: &'a File,
    window: Vec<u8>,
    /// Where the window begins.
    start: u64,
    /// Of what is handed on, if that is another tar than the one that was read.
    hasher: Option<DigestHasher>,
}

impl Reading<'_> {
    /// Returns a range of the file.
    fn at(&mut self, range: std::ops::Range<u64>) -> Result<&[u8], RecodeError> {
        let len = usize::try_from(range.end - range.start).unwrap_or(usize::MAX);
        let held = self.start..self.start + self.window.len() as u64;
        if range.start < held.start || range.end > held.end {
            self.window.resize(len.max(WINDOW), 0);
            self.start = range.start;
            let mut read = 0;
            while read < self.window.len() {
                match self.file.read_at(&mut self.window[read..], range.start + read as u64) {
                    Ok(0) => break,
                    Ok(n) => read += n,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(RecodeError::Spool(error)),
                }
            }
            self.window.truncate(read);
        }
        let from = usize::try_from(range.start - self.start).unwrap_or(usize::MAX);
        let bytes = self.window.get(from..).and_then(|bytes| bytes.get(..len));
        bytes.ok_or_else(|| RecodeError::Spool(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Hands on the headers of a member.
    fn head(
        &mut self,
        range: std::ops::Range<u64>,
        parser: &mut Parser,
        to: &mut impl Receiver,
    ) -> Result<Member, RecodeError> {
        let head = self.at(range)?.to_vec();
        let mut left = &head[..];
        while !left.is_empty() {
            let (taken, step) = parser.step(&left[..BLOCK.min(left.len())])?;
            left = &left[taken..];
            if let Step::Member(member) = step {
                self.emit(Event::Head(&head, &member), to)?;
                return Ok(member);
            }
        }
        Err(RecodeError::Thread) // they were read before
    }

    /// Hands on a range of the file.
    fn pass(
        &mut self,
        range: std::ops::Range<u64>,
        to: &mut impl Receiver,
        as_event: impl for<'b> Fn(&'b [u8]) -> Event<'b>,
    ) -> Result<(), RecodeError> {
        let mut at = range.start;
        while at < range.end {
            let end = range.end.min(at + WINDOW as u64);
            let mut hasher = self.hasher.take();
            let bytes = self.at(at..end)?;
            if let Some(hasher) = &mut hasher {
                hasher.update(bytes);
            }
            to.event(as_event(bytes))?;
            self.hasher = hasher;
            at = end;
        }
        Ok(())
    }

    fn emit(&mut self, event: Event<'_>, to: &mut impl Receiver) -> Result<(), RecodeError> {
        if let Some(hasher) = &mut self.hasher {
            hasher.update(event.bytes());
        }
        to.event(event)
    }
}
