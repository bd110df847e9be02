//! What is fetched together: runs of spans, and what of them is left once other layers have been asked.
//!
//! Plain functions of a layer and of what is here, so that what an upgrade would fetch can be told before it does
//! ([`fetched`]).

use std::ops::Range;

use format::index::{Chunk, Codec, Part};
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
    // Where the last run is, and how long.
    let (mut last, mut len): (Option<Part>, u64) = (None, 0);
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
                    && span.parts.first().is_some_and(|part| goes_on(last.as_ref(), part))
                    && len + further(last.as_ref(), &span.parts) <= COALESCED
                    && run.len() < RUN =>
            {
                run.push(span.segments);
                len += further(last.as_ref(), &span.parts);
            }
            _ => {
                len = packed_len(&span.parts);
                runs.push(vec![span.segments]);
            }
        }
        last = span.parts.pop();
    }
    runs
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
    let mut bytes = 0;
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
            bytes += layer.parts(request.segments).map_or(0, |parts| packed_len(&parts));
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
