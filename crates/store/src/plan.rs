//! What is fetched together: runs of spans, and what of them is left once other layers have been asked.
//!
//! Plain functions of a layer and of what is here, so that what an upgrade would fetch can be told before it does
//! ([`fetched`]).

use std::ops::Range;

use format::index::{Chunk, Codec, Hash, Part};
use format::layer::Layer;

/// Packed bytes that are asked for at once when no reader waits: large enough for a full-speed stream, small
/// enough that a reader's own request is never far behind it.
const COALESCED: u64 = 8 << 20;

/// Most spans in a run: what is packed of them may be next to nothing.
const RUN: usize = 1024;

/// Segments of a span that is fetched in parts.
const SPLIT: usize = 8;

/// Packed bytes of what is here already that are fetched again rather than asked around: at 100 Mbit/s they take 10 ms,
/// as long as a request to a registry nearby. A number, and not what the origin was seen to do, so that it can be told beforehand.
const GAP: u64 = 128 << 10;

/// Returns whether the segments of a span are fetched one after the other as they are wanted: few of them, and of
/// a codec whose decoder can be kept waiting; not where a table of contents ties them, and none is anything without the
/// others. Otherwise whoever comes back after it is gone would fetch the
/// beginning of a long span again and again.
pub(crate) fn splits(layer: &Layer, span: &Range<u32>) -> bool {
    layer.is_of_tar() && layer.source().codec == Codec::Gzip && span.len() <= SPLIT
}

/// Returns the missing spans of some segments, each as far as it is wanted, in runs of adjacent ones that are worth
/// one request.
///
/// `whole` says which segments are here.
pub(crate) fn runs(layer: &Layer, segments: Range<u32>, whole: impl Fn(u32) -> bool) -> Vec<Vec<Range<u32>>> {
    let mut runs: Vec<Vec<Range<u32>>> = Vec::new();
    let mut length = Length::default();
    let mut next = segments.start;
    while next < segments.end {
        let Some(mut span) = layer.span(next) else { break };
        next = span.segments.end;
        if splits(layer, &span.segments) {
            span.segments.end = span.segments.end.min(segments.end);
        }
        if span.segments.clone().all(&whole) {
            continue;
        }
        match runs.last_mut() {
            Some(run)
                // Where a part of a span is there, a decoder waits behind it: the run ends, so that one goes on.
                if run.last().is_some_and(|last| last.end == span.segments.start)
                    && !whole(span.segments.start)
                    && span.parts.first().is_some_and(|part| goes_on(length.last.as_ref(), part))
                    && length.fits(layer, &span.parts, COALESCED)
                    && run.len() < RUN =>
            {
                run.push(span.segments);
            }
            _ => {
                length = Length::default();
                runs.push(vec![span.segments]);
            }
        }
        length.add(span.parts);
    }
    runs
}

/// Returns how many spans, one at least, are as many bytes as may be asked for at a time.
pub(crate) fn fitting(layer: &Layer, spans: &[Range<u32>], most: u64) -> usize {
    let mut length = Length::default();
    let fits = |span: &&Range<u32>| {
        let parts = layer.parts((*span).clone()).unwrap_or_default();
        let fits = length.fits(layer, &parts, most);
        length.add(parts);
        fits
    };
    spans.iter().take_while(fits).count().max(1)
}

/// How many bytes some spans are, one after the other: what two of them have in common counts once.
#[derive(Debug, Default)]
struct Length {
    bytes: u64,
    /// The last of their parts.
    last: Option<Part>,
}

impl Length {
    fn add(&mut self, mut parts: Vec<Part>) {
        self.bytes += further(self.last.as_ref(), &parts);
        self.last = parts.pop().or(self.last.take());
    }

    /// Says whether some parts belong to what is asked for at a time: so many bytes, and behind them what begins in the same
    /// span and ends in another. Half of that is there then; elsewhere the span would come again for it.
    fn fits(&self, layer: &Layer, parts: &[Part], most: u64) -> bool {
        let further = further(self.last.as_ref(), parts);
        self.bytes + further <= most || (self.bytes <= most && self.has_half(layer, parts))
    }

    fn has_half(&self, layer: &Layer, parts: &[Part]) -> bool {
        // Two ranges that are hashed can have one byte in common.
        let begins = |last: &Part, part: &Part| part.range.start + 1 < last.range.end;
        let both = self.last.as_ref().zip(parts.first());
        layer.hash() == Hash::Sealed
            && both.is_some_and(|(last, part)| begins(last, part))
            && further(self.last.as_ref(), parts) > 0
    }
}

/// Says whether some segments lie in what those before them do, and in something else: half of them is there with these.
pub(crate) fn has_half(layer: &Layer, before: Range<u32>, segments: Range<u32>) -> bool {
    let mut length = Length::default();
    length.add(layer.parts(before).unwrap_or_default());
    length.has_half(layer, &layer.parts(segments).unwrap_or_default())
}

/// Says whether a part is worth no request of its own behind another: all that is of one blob and in its order.
fn goes_on(last: Option<&Part>, part: &Part) -> bool {
    last.is_some_and(|last| last.blob == part.blob && last.range.start <= part.range.start)
}

/// Returns how many bytes some parts are beyond those that another one has of them.
fn further(last: Option<&Part>, parts: &[Part]) -> u64 {
    let of = |part: &Part| match last.filter(|last| last.blob == part.blob) {
        Some(last) => part.range.end.saturating_sub(part.range.start.max(last.range.end)),
        None => part.range.end - part.range.start,
    };
    parts.iter().map(of).sum()
}

/// Returns the segments that are looked for together in other layers: one, unless a table of contents ties more.
pub(crate) fn units(layer: &Layer, span: Range<u32>) -> impl DoubleEndedIterator<Item = Range<u32>> {
    let step = if layer.is_of_tar() { 1 } else { span.len().max(1) };
    span.clone().step_by(step).map(move |first| first..span.end.min(first + u32::try_from(step).unwrap_or(1)))
}

/// Returns where the end of a span begins that need not be fetched: all of it is here or known.
///
/// What is known before that is fetched with what is not: a decoder begins where the span does.
pub(crate) fn known_from(
    layer: &Layer,
    span: &Range<u32>,
    whole: impl Fn(u32) -> bool,
    mut known: impl FnMut(Range<u32>) -> bool,
) -> u32 {
    let here = |unit: &Range<u32>| unit.clone().all(&whole) || known(unit.clone());
    units(layer, span.clone()).rev().take_while(here).last().map_or(span.end, |unit| unit.start)
}

/// What is asked for at once.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Request {
    /// The spans it begins in one of and ends before: numbers among those of a run.
    pub(crate) spans: Range<usize>,
    /// The segments.
    pub(crate) segments: Range<u32>,
}

/// Returns what to ask for at once from a span on of which something must be fetched: up to the next ones of which nothing
/// must, if going around these is worth a request.
///
/// `here` says what need not be fetched.
pub(crate) fn request(
    layer: &Layer,
    spans: &[Range<u32>],
    first: usize,
    here: impl Fn(u32) -> bool,
) -> Request {
    let is_here = |span: &Range<u32>| span.clone().all(&here);
    let mut past = first + 1;
    let mut next = past;
    while let Some(found) = spans.iter().skip(next).position(|span| !is_here(span)) {
        let missing = next + found;
        let between = spans[past - 1].end..spans[missing].start;
        if !between.is_empty() && layer.parts(between).is_none_or(|parts| packed_len(&parts) > GAP) {
            break;
        }
        (past, next) = (missing + 1, missing + 1);
    }
    let last = &spans[past - 1];
    // Behind the last one that is missing nobody wants anything.
    let end = last.clone().rev().find(|segment| !here(*segment)).map_or(last.end, |segment| segment + 1);
    Request { spans: first..past, segments: spans[first].start..end }
}

/// Returns the packed bytes that all of a layer takes of which nothing is here and other layers have these chunks.
pub fn fetched(layer: &Layer, has: impl Fn(&Chunk) -> bool) -> u64 {
    let mut known = vec![false; layer.segments() as usize];
    let (mut bytes, mut last) = (0, None);
    for spans in runs(layer, 0..layer.segments(), |_| false) {
        for span in &spans {
            let from = known_from(layer, span, |_| false, |unit| all_of(layer, unit, &has));
            (from..span.end).for_each(|segment| known[segment as usize] = true);
        }
        let here = |segment: u32| known[segment as usize];
        let mut at = 0;
        while at < spans.len() {
            if spans[at].clone().all(here) {
                at += 1;
                continue;
            }
            let request = request(layer, &spans, at, here);
            let mut parts = layer.parts(request.segments).unwrap_or_default();
            // Halves are kept of what only spans are hashed of.
            bytes += further(last.as_ref().filter(|_| layer.hash() == Hash::Sealed), &parts);
            last = parts.pop();
            at = request.spans.end;
        }
    }
    bytes
}

/// Says whether all chunks of some segments are among these.
fn all_of(layer: &Layer, segments: Range<u32>, has: impl Fn(&Chunk) -> bool) -> bool {
    layer.chunks_of(segments).is_some_and(|numbers| layer.index().chunks()[numbers].iter().all(has))
}

/// Returns how many bytes some parts are.
pub(crate) fn packed_len(parts: &[Part]) -> u64 {
    parts.iter().map(|part| part.range.end - part.range.start).sum()
}
