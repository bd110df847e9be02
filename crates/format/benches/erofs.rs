//! Writing the metadata image of an image with 80,000 files, and looking things up in it.
//!
//! `cargo bench -p format --bench erofs`
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a benchmark has nobody to report to")]

use std::hint::black_box;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use format::IndexId;
use format::erofs::read::{Image, Nid};
use format::erofs::write::{self, LayerDevices};
use format::payload::{Layout, SegmentSize};
use format::tar::{Member, MemberKind};
use format::tree::{Builder, Runs, Time, Tree, Xattrs};

const FILES: u32 = 80_000;

fn path(n: u32) -> String {
    let (package, part) = (n / 100, n / 10 % 10);
    format!("app/node_modules/package-{package}/lib/part-{part}/module-{n}.js")
}

/// A tree like a `node_modules`: 8,000 directories of ten files, packages of two sizes and many times.
fn tree() -> (Tree, Vec<LayerDevices>) {
    let mut layout = Layout::new(SegmentSize::DEFAULT);
    let mut builder = Builder::new();
    builder.layer().unwrap();
    let mut plain = 0;
    for n in 0..FILES {
        let package = n / 100;
        let payload = u64::from(n * 7919 % 20_000);
        let runs = if payload == 0 { Runs::None } else { Runs::Whole(layout.file(plain, payload)) };
        let mtime = Time { secs: 1_700_000_000 + i64::from(package % 3 * package), nanos: 0 };
        let member = Member {
            path: path(n).into_bytes().into(),
            kind: MemberKind::File,
            mode: 0o644,
            uid: 0,
            gid: 0,
            mtime,
            xattrs: Xattrs::default(),
            plain,
            payload,
        };
        builder.member(&member, runs).unwrap();
        plain += payload.next_multiple_of(512) + 512;
    }
    layout.finish();
    let lens = (0..layout.segments()).map(|n| u32::try_from(layout.segment_len(n) / 4096).unwrap());
    let index = IndexId::from_bytes([1; 32]);
    (builder.finish(), vec![LayerDevices { index, segment: layout.segment_size(), lens: lens.collect() }])
}

fn write(c: &mut Criterion) {
    let (tree, layers) = tree();
    let image = write::image(&tree, &layers).unwrap();
    eprintln!("{} bytes of metadata, {} per file", image.len(), image.len() / FILES as usize);
    let mut group = c.benchmark_group("erofs");
    group.sample_size(20).throughput(Throughput::Elements(u64::from(FILES)));
    group.bench_function("write 80,000 files", |b| {
        b.iter(|| write::image(black_box(&tree), &layers).unwrap())
    });

    // What the FUSE path does for a path that the kernel does not know: seven names, one after the other.
    let image = Image::open(image).unwrap();
    let paths: Vec<_> = (0..FILES).step_by(997).map(path).collect();
    group.throughput(Throughput::Elements(paths.len() as u64));
    group.bench_function("look up paths", |b| {
        b.iter(|| paths.iter().map(|path| find(&image, black_box(path))).fold(0, |sum, nid| sum ^ nid.0))
    });
    let packages = find(&image, "app/node_modules");
    let packages = image.inode(packages).unwrap();
    group.throughput(Throughput::Elements(u64::from(FILES / 100)));
    group.bench_function("list a directory of 800", |b| {
        b.iter(|| {
            image
                .entries(black_box(&packages), 0)
                .unwrap()
                .map(|entry| entry.unwrap().name.len())
                .sum::<usize>()
        })
    });
    group.finish();
}

fn find(image: &Image<Vec<u8>>, path: &str) -> Nid {
    path.split('/').fold(image.root(), |dir, name| {
        let dir = image.inode(dir).unwrap();
        image.lookup(&dir, name.as_bytes()).unwrap().unwrap()
    })
}

criterion_group!(benches, write);
criterion_main!(benches);
