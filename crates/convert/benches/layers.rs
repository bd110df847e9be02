//! What an index costs: its size beside the layers, and the time to build it beside the sum of its parts.
//!
//! `cargo bench -p convert --bench layers -- PATH…` with OCI layouts or single blobs; without a path, a tar of
//! `/usr/share/doc`. The parts are what no build can leave out: inflate, SHA-256 of blob and tar, BLAKE3 of the
//! payload. All are processor time of one thread in the same run, in turns, best of [`ROUNDS`]; `2thr` is wall
//! time on two threads. With `BUILD_ONLY` in the environment builds ten times and stops, for a profiler. Prints a table; proves nothing by itself.
#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a program for people; a broken layer should stop it"
)]

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Instant;

use convert::{Expected, Options, Threads, build};
use format::decode::SpanDecoder;
use format::index::{Codec, Index};
use format::layer::Layer;
use format::payload::SegmentSize;
use format::unpack::{Unpacker, whole};
use format::{DiffId, Digest};

const ROUNDS: usize = 3;

fn main() {
    let bits = std::env::var("SEGMENT_BITS").ok().and_then(|bits| bits.parse().ok()).unwrap_or(20);
    let segment = SegmentSize::from_bits(bits).unwrap();
    // Cargo itself passes --bench.
    let paths: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    println!(
        "{:28} {:>8} {:>8} {:>6} {:>7} {:>7} {:>7} {:>6} | {:>7} {:>6} {:>6} {:>6} {:>6} {:>6} | {:>6} {:>5} {:>6} | {:>7}",
        "layer",
        "blob MB",
        "tar MB",
        "segs",
        "skel %",
        "chunk %",
        "start %",
        "all %",
        "inflate",
        "sha b",
        "sha t",
        "b3",
        "sum",
        "build",
        "ratio",
        "2thr",
        "open",
        "decode"
    );
    let mut all = Totals::default();
    for (name, blob) in blobs(&paths) {
        all.add(&measure(&name, &blob, segment));
    }
    println!(
        "all: index {:.2} % of {:.1} MB; build at {:.2} of the sum of its parts, {:.0} MB/s of tar; on two threads {:.0} MB/s",
        all.index as f64 * 100.0 / all.blob as f64,
        all.blob as f64 / 1e6,
        all.parts / all.build,
        all.tar as f64 / 1e6 / all.build,
        all.tar as f64 / 1e6 / all.build_two,
    );
}

#[derive(Default)]
struct Totals {
    blob: usize,
    tar: usize,
    index: usize,
    parts: f64,
    build: f64,
    build_two: f64,
}

impl Totals {
    fn add(&mut self, one: &Totals) {
        self.blob += one.blob;
        self.tar += one.tar;
        self.index += one.index;
        self.parts += one.parts;
        self.build += one.build;
        self.build_two += one.build_two;
    }
}

fn measure(name: &str, blob: &[u8], segment: SegmentSize) -> Totals {
    let (codec, tar) = unpacked(blob);
    let expected = Expected { blob: Digest::of(blob), diff_id: DiffId::new(Digest::of(&tar)) };
    let options = Options { segment, blob_size: blob.len() as u64 };
    let built = |threads| build(blob, options, &expected, threads, |_, _: &[u8]| Ok(())).unwrap().0;
    let layer = Arc::new(Layer::open(built(Threads::One)).unwrap());

    if std::env::var_os("BUILD_ONLY").is_some() {
        (0..10).for_each(|_| drop(built(Threads::One)));
        std::process::exit(0);
    }
    let mut best = [f64::INFINITY; 8];
    for _ in 0..ROUNDS {
        let mut time = |n: usize, work: &mut dyn FnMut()| {
            let (start, cpu) = (Instant::now(), cpu_seconds());
            work();
            let seconds = match (cpu, cpu_seconds(), n) {
                // Two threads are judged by the clock on the wall.
                (Some(before), Some(after), 0..=4 | 6..) => after - before,
                _ => start.elapsed().as_secs_f64(),
            };
            best[n] = best[n].min(seconds);
        };
        time(0, &mut || inflate(codec, blob));
        time(1, &mut || {
            std::hint::black_box(Digest::of(blob));
        });
        time(2, &mut || {
            std::hint::black_box(Digest::of(&tar));
        });
        time(3, &mut || payload_hashes(&layer, &tar));
        time(4, &mut || drop(built(Threads::One)));
        time(5, &mut || drop(built(Threads::Two)));
        time(6, &mut || drop(Layer::open(layer.index().clone()).unwrap()));
        time(7, &mut || decode_each(&layer, blob));
    }
    let [inflate, sha_blob, sha_tar, b3, one, two, open, decode] = best;
    let parts = inflate + sha_blob + sha_tar + b3;
    let index: Index = layer.index().clone();
    let size = index.encode().len();
    let windows: usize = index.source().starts.iter().map(|s| s.window.len() + 24).sum();
    let percent = |n: usize| n as f64 * 100.0 / blob.len() as f64;
    println!(
        "{:28} {:8.1} {:8.1} {:6} {:7.2} {:7.2} {:7.2} {:6.2} | {inflate:7.3} {sha_blob:6.3} {sha_tar:6.3} {b3:6.3} {parts:6.3} {one:6.3} | {:6.2} {two:5.2} {open:6.3} | {:.0} MB/s",
        name,
        blob.len() as f64 / 1e6,
        tar.len() as f64 / 1e6,
        layer.segments(),
        percent(index.skeleton().len()),
        percent(index.chunks().len() * 36),
        percent(windows + index.source().reach.len() * 12),
        percent(size),
        parts / one,
        tar.len() as f64 / 1e6 / decode,
    );
    Totals { blob: blob.len(), tar: tar.len(), index: size, parts, build: one, build_two: two }
}

/// The time this thread has spent on a processor, so that other work on the machine does not count.
fn cpu_seconds() -> Option<f64> {
    let stat = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    Some(stat.split(' ').next()?.parse::<u64>().ok()? as f64 / 1e9)
}

/// Inflate alone, as fast as the decoder goes, into one buffer.
fn inflate(codec: Codec, blob: &[u8]) {
    let (mut unpacker, mut rest) = (Unpacker::new(codec).unwrap(), blob);
    let mut room = vec![0; 256 << 10];
    loop {
        let step = unpacker.step(rest, &mut room, false).unwrap();
        rest = &rest[step.read..];
        if step.read == 0 && step.written == 0 {
            return;
        }
    }
}

fn payload_hashes(layer: &Layer, tar: &[u8]) {
    for extent in layer.layout().extents() {
        let from = usize::try_from(extent.plain).unwrap();
        let bytes = &tar[from..from + usize::try_from(extent.len).unwrap()];
        std::hint::black_box(blake3::hash(bytes));
    }
}

/// Each segment from its own start.
fn decode_each(layer: &Arc<Layer>, blob: &[u8]) {
    for n in 0..layer.segments() {
        let mut decoder = SpanDecoder::new(Arc::clone(layer), n..n + 1).unwrap();
        let range = decoder.parts()[0].range.clone();
        let mut input = &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
        std::hint::black_box(decoder.push(&mut input).unwrap().unwrap());
    }
}

fn unpacked(blob: &[u8]) -> (Codec, Vec<u8>) {
    let codec = match blob {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, ..] | [0x50..=0x5f, 0x2a, ..] => Codec::Zstd,
        _ => Codec::Plain,
    };
    (codec, whole(codec, blob, u64::MAX).unwrap().unwrap())
}

/// The layers of OCI layouts, single files, or a layer made on the spot.
fn blobs(paths: &[PathBuf]) -> Vec<(String, Vec<u8>)> {
    if paths.is_empty() {
        return vec![("/usr/share/doc".into(), gzipped_tar(Path::new("/usr/share/doc")))];
    }
    let mut found = Vec::new();
    for path in paths {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if path.is_file() {
            found.push((name, std::fs::read(path).unwrap()));
            continue;
        }
        let mut blobs: Vec<_> = std::fs::read_dir(path.join("blobs/sha256"))
            .unwrap()
            .map(|entry| entry.unwrap().path())
            .collect();
        blobs.sort();
        for blob in blobs {
            let bytes = std::fs::read(&blob).unwrap();
            if !bytes.starts_with(b"{") {
                let id = blob
                    .file_name()
                    .unwrap_or_default()
                    .to_string_lossy()
                    .chars()
                    .take(8)
                    .collect::<String>();
                found.push((format!("{name} {id}"), bytes));
            }
        }
    }
    found
}

fn gzipped_tar(dir: &Path) -> Vec<u8> {
    let tar = Command::new("tar").arg("-cC").arg(dir).arg(".").output().unwrap().stdout;
    let mut gzip =
        Command::new("gzip").arg("-6").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = gzip.stdin.take().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || input.write_all(&tar).unwrap());
        gzip.wait_with_output().unwrap().stdout
    })
}
