//! What a miss costs on the processor: a segment from its start, and the check of one that is there.
//!
//! `cargo bench -p convert --bench decode`
#![allow(clippy::unwrap_used, missing_docs, reason = "a program for people")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::hint::black_box;
use std::sync::Arc;

use common::{assorted, built, expected, options, pack};
use convert::{Threads, build};
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use format::decode::SpanDecoder;
use format::layer::Layer;

fn decoding(criterion: &mut Criterion) {
    let tar = assorted(1, 200);
    let mut group = criterion.benchmark_group("segment");
    for way in ["gzip -6", "bgzf", "zstd frames", "plain"] {
        let layer = built(&tar, &pack(way, &tar), 20, Threads::One);
        let n = layer.layer.segments() / 2;
        group.throughput(Throughput::Bytes(layer.layer.segment_len(n)));
        group.bench_function(way, |bencher| {
            bencher.iter(|| {
                let mut decoder = SpanDecoder::new(Arc::clone(&layer.layer), n..n + 1).unwrap();
                let range = decoder.parts()[0].range.clone();
                let mut input =
                    &layer.blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
                black_box(decoder.push(&mut input).unwrap().unwrap());
            });
        });
    }
    let layer = built(&tar, &tar, 20, Threads::One);
    let n = layer.layer.segments() / 2;
    group.throughput(Throughput::Bytes(layer.layer.segment_len(n)));
    group.bench_function("verify", |bencher| {
        bencher.iter(|| layer.layer.verify_segment(n, black_box(&layer.segments[n as usize])).unwrap());
    });
    group.finish();
}

fn building(criterion: &mut Criterion) {
    let tar = assorted(1, 200);
    let mut group = criterion.benchmark_group("layer");
    group.sample_size(10).throughput(Throughput::Bytes(tar.len() as u64));
    for way in ["gzip -6", "zstd -3", "plain"] {
        let blob = pack(way, &tar);
        for threads in [Threads::One, Threads::Two] {
            group.bench_function(format!("build, {way}, {threads:?}"), |bencher| {
                let (options, expected) = (options(&blob, 20), expected(&tar, &blob));
                bencher.iter(|| build(&blob[..], options, &expected, threads, |_, _: &[u8]| Ok(())).unwrap());
            });
        }
    }
    let index = built(&tar, &tar, 20, Threads::One).layer.index().clone();
    group.bench_function("open", |bencher| bencher.iter(|| Layer::open(index.clone()).unwrap()));
    group.finish();
}

criterion_group!(benches, decoding, building);
criterion_main!(benches);
