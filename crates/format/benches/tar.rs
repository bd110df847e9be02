//! Speed of everything between the bytes of a tar and its tree, on a generated image layer of 80,000 members.
//!
//! `cargo bench -p format --bench tar`

use std::hint::black_box;

use criterion::{BatchSize, Criterion, Throughput, criterion_group, criterion_main};
use format::payload::SegmentSize;
use format::skeleton::{SkeletonReader, SkeletonWriter};
use format::tar::{Member, Parser, Placer, Step};
use format::tree::{Builder, Runs};

const MEMBERS: usize = 80_000;

/// Returns how many members there are; payload is passed over.
fn scan(bytes: &[u8], whole: bool) -> u64 {
    let mut parser = Parser::new();
    let mut at = 0;
    while let Some(rest) = bytes.get(at..).filter(|rest| !rest.is_empty()) {
        let Ok((taken, step)) = parser.step(rest) else { break };
        at += taken;
        if let (Step::Member(member), true) = (step, whole) {
            at += usize::try_from(member.payload).unwrap_or(0);
        }
    }
    parser.members()
}

fn members(skeleton: &[u8]) -> Vec<(Member, Runs)> {
    let (mut parser, mut placer) = (Parser::new(), Placer::new(SegmentSize::DEFAULT));
    let (mut members, mut rest) = (Vec::new(), skeleton);
    while let Ok((taken, Step::Member(member))) = parser.step(rest) {
        rest = &rest[taken..];
        if let Ok(runs) = placer.member(&member) {
            members.push((member, runs));
        }
    }
    members
}

fn tree(members: &[(Member, Runs)]) -> Builder {
    let mut builder = Builder::new();
    let _ = builder.layer(); // the first of 127
    for (member, runs) in members {
        let _ = black_box(builder.member(member, runs.clone())); // the generator writes no impossible member
    }
    builder
}

fn bench(c: &mut Criterion) {
    let archive = testkit::tar::large(MEMBERS);
    let members = members(&archive.skeleton);
    assert_eq!(members.len(), MEMBERS);

    let mut group = c.benchmark_group("tar");
    group.sample_size(20).throughput(Throughput::Elements(MEMBERS as u64));
    group.bench_function("scan whole tar", |b| b.iter(|| scan(black_box(&archive.tar), true)));
    group.bench_function("scan skeleton", |b| b.iter(|| scan(black_box(&archive.skeleton), false)));
    group.bench_function("build tree", |b| {
        b.iter_batched(|| (), |()| tree(&members), BatchSize::PerIteration)
    });
    group.finish();

    let pack = || {
        let mut writer = SkeletonWriter::new().ok()?;
        writer.write(&archive.skeleton).ok()?;
        writer.finish().ok()
    };
    let mut group = c.benchmark_group("skeleton");
    group.sample_size(10).throughput(Throughput::Bytes(archive.skeleton.len() as u64));
    group.bench_function("pack", |b| b.iter(pack));
    if let Some((packed, facts)) = pack() {
        group.bench_function("unpack", |b| {
            b.iter(|| {
                let mut reader = SkeletonReader::new(&packed, facts).ok()?;
                while reader.chunk().ok()?.is_some() {}
                Some(())
            });
        });
    }
    group.finish();
}

criterion_group!(benches, bench);
criterion_main!(benches);
