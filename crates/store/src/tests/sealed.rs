//! Layers that are read by a zTOC: what comes, and for how many bytes of the blob.

#[path = "../../../format/tests/soci/mod.rs"]
mod soci;

use std::sync::Arc;
use std::time::{Duration, Instant};

use format::decode::{Half, SpanDecoder};
use format::layer::Layer;
use format::payload::SegmentSize;
use format::soci::index::{Whose, layer};
use format::{DiffId, Digest};
use sys::deflate::compress;
use sys::inflate::Wrap;

use super::fixture::{Bench, Sample, later, noise, tar};
use crate::flights::Ahead;
use crate::origin::Priority;
use crate::read_error::ReadError;
use crate::read_through::{Segments, Workers};

/// Plain bytes of a span: a segment is a quarter of that.
const SPAN: u64 = 1 << 20;

/// Returns bytes that compress to half of them: of others a blob is one block, and cannot be entered.
fn hex(seed: u64, len: usize) -> Vec<u8> {
    noise(seed, len.div_ceil(2))
        .iter()
        .flat_map(|byte| format!("{byte:02x}").into_bytes())
        .take(len)
        .collect()
}

/// Returns a layer that has a zTOC, of which every fifth segment or so lies in two spans.
fn sample(seed: u64, span: u64, files: usize, len: usize) -> Sample {
    let files: Vec<_> = (0..files as u64).map(|n| hex(seed << 16 | n, len)).collect();
    let tar = tar(&files);
    let blob = compress(&tar, Wrap::Gzip, 6).unwrap();
    let raw = soci::ztoc(&blob, &tar, span).encode();
    let whose = Whose {
        blob: Digest::of(&blob),
        size: blob.len() as u64,
        diff_id: DiffId::new(Digest::of(&tar)),
        table: Digest::of(&raw),
        segment: SegmentSize::from_bits(18).unwrap(),
    };
    let layer = layer(&raw, &whose).unwrap();
    let range = |start: u64, len: u64| usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
    let mut payload = vec![0; usize::try_from(layer.layout().space()).unwrap()];
    let plain = |n: usize| n * (512 + len.next_multiple_of(512)) + 512;
    // Files that are longer than a segment begin with one.
    for extent in layer.layout().extents() {
        payload[range(extent.payload, extent.len)].copy_from_slice(&tar[range(extent.plain, extent.len)]);
    }
    assert!(tar[plain(1)..plain(1) + len] == files[1]);
    let size = layer.layout().segment_size();
    let files = (0..layer.segments())
        .map(|n| {
            payload[range(size.start(n), layer.segment_len(n).min(payload.len() as u64 - size.start(n)))]
                .to_vec()
        })
        .collect();
    Sample { layer: Arc::new(layer), blob, files }
}

/// Returns what every other span of a layer has of segments that lie in the spans between.
pub(crate) fn halves(first: usize) -> (Arc<Layer>, Vec<Half>) {
    let sample = sample(6, SPAN, 8, 1_000_000);
    let mut spans: Vec<_> = sample.layer.source().contents.as_ref().unwrap().pieces.iter().collect();
    spans.dedup_by_key(|piece| piece.begin);
    let mut halves = Vec::new();
    for span in spans.iter().skip(first).step_by(2) {
        let lies_in = |n: &u32| sample.layer.span(*n).unwrap().parts[0].range == (span.begin..span.end);
        let one = (0..sample.layer.segments()).find(lies_in).unwrap();
        let mut decoder =
            SpanDecoder::with_neighbours(sample.layer.clone(), one..one + 1, Vec::new()).unwrap();
        let mut input =
            &sample.blob[usize::try_from(span.begin).unwrap()..usize::try_from(span.end).unwrap()];
        while decoder.push(&mut input).unwrap().is_some() {}
        halves.extend(decoder.halves());
    }
    (sample.layer, halves)
}

impl Bench {
    fn bytes(&self) -> u64 {
        self.origin.asked.lock().unwrap().iter().map(|(range, _)| range.end - range.start).sum()
    }
}

/// Says that what was asked for is the blob but once, give or take a byte that spans share and what precedes the first.
fn assert_once(sample: &Sample, bench: &Bench, what: &str) {
    let (bytes, all) = (bench.bytes(), sample.blob.len() as u64);
    assert!(bytes <= all + 200 && bytes + 200 >= all, "{what}: {bytes} of {all}");
}

#[test]
fn all_of_a_layer_takes_each_span_once() {
    let sample = sample(1, 4 * SPAN, 40, 1_000_000);
    let all = 0..sample.layer.segments();
    // One request after the other, so that it does not matter who is first.
    let bench = Bench::watched(&[&sample], Arc::new(()), Workers { all: 1, unhurried: 1 });
    let _hold = bench.add(&sample);
    bench.read.complete(sample.id(), later()).unwrap();
    assert_once(&sample, &bench, "complete");
    all.clone().for_each(|segment| bench.check(&sample, segment));

    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.read.limit(1, Some(Ahead { requests: 1, bytes: 5 << 20 }));
    assert!(bench.read.want(sample.id(), all.clone(), Priority::Background));
    bench.settle();
    assert_once(&sample, &bench, "limited");
    assert!(bench.origin.count() <= 10, "{} requests", bench.origin.count());
    all.for_each(|segment| bench.check(&sample, segment));
}

#[test]
fn requests_at_the_same_time_take_few_spans_twice() {
    let sample = sample(3, SPAN, 40, 1_000_000);
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    bench.read.complete(sample.id(), later()).unwrap();
    let (bytes, all) = (bench.bytes(), sample.blob.len() as u64);
    // How many depends on who is first: runs of spans, and each can meet the next one's first.
    assert!(bytes <= all + all / 2, "{bytes} of {all}");
    (0..sample.layer.segments()).for_each(|segment| bench.check(&sample, segment));
}

#[test]
fn segments_by_themselves_take_each_span_once_in_any_order() {
    let sample = sample(4, SPAN, 12, 1_000_000);
    let count = sample.layer.segments();
    let mut shared = 0;
    for first in 0..count {
        // The first one costs what it lies in.
        let bench = Bench::new(&[&sample]);
        let _hold = bench.add(&sample);
        bench.check(&sample, first);
        bench.settle();
        let span = sample.layer.span(first).unwrap();
        let parts: u64 = span.parts.iter().map(|part| part.range.end - part.range.start).sum();
        assert_eq!(bench.bytes(), parts);
        shared += u32::from(span.segments.len() == 1);
    }
    assert!(shared > 8, "{shared} lie in two");
    // 37 and the number of segments have no divisor in common.
    assert_ne!(count % 37, 0);
    for step in [1, count - 1, 37] {
        let bench = Bench::new(&[&sample]);
        let _hold = bench.add(&sample);
        for n in 0..count {
            bench.check(&sample, n * step % count);
            bench.settle();
        }
        assert_once(&sample, &bench, &format!("every {step}th"));
    }
}

/// Returns a segment that lies in two spans.
fn in_two(sample: &Sample) -> u32 {
    (1..sample.layer.segments()).find(|n| sample.layer.span(*n).unwrap().segments.len() == 1).unwrap()
}

#[test]
fn halves_that_are_lost_or_wrong_come_again() {
    let sample = sample(5, SPAN, 6, 1_000_000);
    let two = in_two(&sample);
    let range = |n: u32| sample.layer.span(n).unwrap().parts[0].range.clone();
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.check(&sample, two - 1);
    bench.settle();
    // Out of use, nothing is kept.
    drop(hold);
    let _hold = bench.add(&sample);
    bench.origin.answer(|read, _, mut bytes| {
        if read == 1 {
            *bytes.last_mut().unwrap() ^= 1;
        }
        Ok(bytes)
    });
    bench.check(&sample, two);
    bench.settle();
    let asked: Vec<_> = bench.origin.asked.lock().unwrap().iter().map(|(range, _)| range.clone()).collect();
    assert_eq!(asked, [range(two - 1), range(two), range(two)]);
    (0..sample.layer.segments()).for_each(|segment| bench.check(&sample, segment));
}

#[test]
fn a_segment_is_doubted_whose_span_comes_wrong_although_all_else_of_that_is_here() {
    let sample = sample(7, SPAN, 6, 1_000_000);
    let two = in_two(&sample);
    let bench = Bench::new(&[&sample]);
    let hold = bench.add(&sample);
    bench.check(&sample, two - 1);
    bench.settle();
    drop(hold);
    let hold = bench.add(&sample);
    bench.origin.answer(|_, _, mut bytes| {
        *bytes.last_mut().unwrap() ^= 1;
        Ok(bytes)
    });
    let error = bench.read.fetch(sample.id(), two, later()).unwrap_err();
    assert!(matches!(error, ReadError::Corrupt { .. }), "{error}");
    assert_eq!(hold.files().doubted(), Some(two));
    bench.origin.answer(|_, _, bytes| Ok(bytes));
    bench.check(&sample, two);
    assert_eq!(hold.files().doubted(), None);
}

#[test]
fn a_span_is_not_asked_for_while_there_is_no_room_for_it() {
    let sample = sample(2, SPAN, 3, 1_000_000);
    let segments = 0..sample.layer.segments();
    let spans = segments.clone().map(|n| sample.layer.span(n).unwrap());
    let widest =
        spans.flat_map(|span| span.parts).map(|part| part.range.end - part.range.start).max().unwrap();
    let holds = sample.layer.holds(segments);
    assert!(holds > widest / 2 && holds <= widest + SPAN + SPAN / 8, "{holds}");
    let bench = Bench::new(&[&sample]);
    let _hold = bench.add(&sample);
    let room = bench.read.inner.memory.take(u64::MAX / 2, true, later());
    let soon = Instant::now() + Duration::from_millis(50);
    assert!(matches!(bench.read.fetch(sample.id(), 0, soon), Err(ReadError::Timeout { .. })));
    assert_eq!(bench.origin.count(), 0);
    drop(room);
    bench.check(&sample, 0);
}
