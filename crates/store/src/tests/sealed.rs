//! Layers that are read by a zTOC: what comes, and for how many bytes of the blob.

#[path = "../../../format/tests/soci/mod.rs"]
mod soci;

use std::sync::Arc;
use std::time::{Duration, Instant};

use format::layer::Layer;
use format::payload::SegmentSize;
use format::soci::index::{Whose, index};
use format::{DiffId, Digest};
use sys::deflate::compress;
use sys::inflate::Wrap;

use super::fixture::{Bench, Sample, later, noise, tar};
use crate::read_error::ReadError;
use crate::read_through::Segments;

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
fn sample(seed: u64, files: usize, len: usize) -> Sample {
    let files: Vec<_> = (0..files as u64).map(|n| hex(seed << 16 | n, len)).collect();
    let tar = tar(&files);
    let blob = compress(&tar, Wrap::Gzip, 6).unwrap();
    let raw = soci::ztoc(&blob, &tar, SPAN).encode();
    let whose = Whose {
        blob: Digest::of(&blob),
        size: blob.len() as u64,
        diff_id: DiffId::new(Digest::of(&tar)),
        table: Digest::of(&raw),
        segment: SegmentSize::from_bits(18).unwrap(),
    };
    let layer = Layer::open(index(&raw, &whose).unwrap()).unwrap();
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

#[test]
fn a_span_is_not_asked_for_while_there_is_no_room_for_it() {
    let sample = sample(2, 3, 1_000_000);
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
