//! What it costs to recode layers, and what compressors make of them.
//!
//! `cargo bench -p convert --bench recode -- PATH…`: OCI layouts or blobs. Without a path, and in `cargo test`, nothing is
//! measured. `LEVEL` is the level, if not the target's own. `COMPRESSORS=1` also packs the tars in pieces of 4 MiB with every compressor that was weighed.

#![allow(
    clippy::print_stdout,
    clippy::unwrap_used,
    clippy::cast_precision_loss,
    missing_docs,
    reason = "a benchmark on known data"
)]

use std::path::{Path, PathBuf};
use std::time::Instant;

use convert::Expected;
use convert::recode::nydus::{Packing, pack};
use convert::recode::{Recoding, Target, recode};
use format::index::Codec;
use format::unpack::whole;
use format::{ChunkId, DiffId, Digest};
use sys::deflate::compress;
use sys::inflate::Wrap;

fn main() {
    let paths: Vec<PathBuf> =
        std::env::args().skip(1).filter(|a| !a.starts_with("--")).map(PathBuf::from).collect();
    for (name, blob) in paths.iter().flat_map(|path| blobs(path)) {
        let tar = unpacked(&blob);
        println!("{name}: {:.1} MB, tar {:.1} MB", blob.len() as f64 / 1e6, tar.len() as f64 / 1e6);
        if std::env::var_os("COMPRESSORS").is_some() {
            compressors(&tar);
        }
        recodings(&blob, &tar);
        nydus(&blob, &tar);
    }
}

fn recodings(blob: &[u8], tar: &[u8]) {
    let expected = Expected { blob: Digest::of(blob), diff_id: DiffId::new(Digest::of(tar)) };
    for target in [Target::EStargz, Target::ZstdChunked, Target::Gzip, Target::Zstd] {
        for threads in [1, 2] {
            let level = std::env::var("LEVEL").ok().map(|level| level.parse().unwrap());
            let recoding = Recoding { target, level, blob_size: blob.len() as u64, threads };
            let mut said = None;
            let (cpu, wall) =
                timed(|| said = Some(recode(blob, &expected, &recoding, std::io::sink()).unwrap()));
            let size = said.map_or(0, |said| said.size);
            println!(
                "  {:<12} {threads} threads  {:9.2} MB  {:6.3} of the source  cpu {cpu:6.2} s  wall {wall:6.2} s",
                format!("{target:?}"),
                size as f64 / 1e6,
                size as f64 / blob.len() as f64,
            );
        }
    }
}

/// A blob of Nydus, and what the libraries take for it by themselves: whatever is above that is ours.
fn nydus(blob: &[u8], tar: &[u8]) {
    let expected = Expected { blob: Digest::of(blob), diff_id: DiffId::new(Digest::of(tar)) };
    let level: Option<i32> = std::env::var("LEVEL").ok().map(|level| level.parse().unwrap());
    let say = |name: &str, (cpu, wall): (f64, f64), size: u64| {
        println!(
            "  {name:<23}  {:9.2} MB  {:6.3} of the source  cpu {cpu:6.2} s  wall {wall:6.2} s",
            size as f64 / 1e6,
            size as f64 / blob.len() as f64,
        );
    };
    for threads in [1, 2] {
        let packing = Packing { level, blob_size: blob.len() as u64, threads };
        let mut size = 0;
        let time = timed(|| size = pack(blob, &expected, &packing, std::io::sink()).unwrap().size);
        say(&format!("Nydus        {threads} threads"), time, size);
    }
    let mut size = 0;
    let time = timed(|| {
        let mut zstd = zstd::bulk::Compressor::new(level.unwrap_or(3)).unwrap();
        let tar = unpacked(blob);
        std::hint::black_box((Digest::of(blob), Digest::of(&tar)));
        for chunk in tar.chunks(1 << 20) {
            std::hint::black_box(ChunkId::of(chunk));
            let packed = zstd.compress(chunk).unwrap();
            std::hint::black_box(Digest::of(&packed));
            size += packed.len() as u64;
        }
    });
    say("inflate, hashes, zstd", time, size);
}

fn compressors(tar: &[u8]) {
    let whole = compress(tar, Wrap::Gzip, 9).unwrap().len();
    println!("  zlib-rs -9, one member: {:.2} MB", whole as f64 / 1e6);
    let say = |name: String, (cpu, _): (f64, f64), size: usize| {
        println!(
            "  {name:<26} {:9.2} MB  {:6.4}  cpu {cpu:6.2} s",
            size as f64 / 1e6,
            size as f64 / whole as f64
        );
    };
    for level in 1..=9 {
        let mut size = 0;
        let time =
            timed(|| size = tar.chunks(4 << 20).map(|p| compress(p, Wrap::Gzip, level).unwrap().len()).sum());
        say(format!("zlib-rs -{level}, 4 MiB"), time, size);
    }
    for (level, piece) in
        [(1, 4), (2, 4), (3, 4), (4, 4), (5, 1), (5, 4), (5, 16), (6, 4), (7, 4), (8, 4), (9, 4), (10, 4)]
    {
        let mut packer = libdeflater::Compressor::new(libdeflater::CompressionLvl::new(level).unwrap());
        let mut room = vec![0; packer.gzip_compress_bound(piece << 20)];
        let mut size = 0;
        let time = timed(|| {
            size = tar.chunks(piece << 20).map(|p| packer.gzip_compress(p, &mut room).unwrap()).sum()
        });
        say(format!("libdeflate -{level}, {piece} MiB"), time, size);
    }
    for (level, piece) in [(3, 1), (3, 4), (3, 8), (3, 1024), (5, 1), (7, 1), (10, 1)] {
        let mut packer = zstd::bulk::Compressor::new(level).unwrap();
        let mut size = 0;
        let time = timed(|| size = tar.chunks(piece << 20).map(|p| packer.compress(p).unwrap().len()).sum());
        say(format!("zstd -{level}, {piece} MiB"), time, size);
    }
}

/// Runs something; returns the processor time of all threads, and the time on the wall.
fn timed(work: impl FnOnce()) -> (f64, f64) {
    let (cpu, start) = (cpu_seconds(), Instant::now());
    work();
    (cpu_seconds() - cpu, start.elapsed().as_secs_f64())
}

/// The time this process has spent on processors, in hundredths of a second.
fn cpu_seconds() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let after_name = stat.rsplit(") ").next().unwrap();
    let field = |n: usize| after_name.split(' ').nth(n).unwrap().parse::<f64>().unwrap();
    (field(11) + field(12)) / 100.0
}

fn unpacked(blob: &[u8]) -> Vec<u8> {
    let codec = match blob {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, ..] => Codec::Zstd,
        _ => Codec::Plain,
    };
    whole(codec, blob, u64::MAX).unwrap().unwrap()
}

/// A blob, or the layers of an OCI layout.
fn blobs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let name =
        |path: &Path| path.file_name().unwrap_or_default().to_string_lossy().chars().take(12).collect();
    if path.is_file() {
        return vec![(name(path), std::fs::read(path).unwrap())];
    }
    let mut files: Vec<_> =
        std::fs::read_dir(path.join("blobs/sha256")).unwrap().map(|entry| entry.unwrap().path()).collect();
    files.sort();
    let layers = files.iter().map(|file| (name(file), std::fs::read(file).unwrap()));
    layers.filter(|(_, bytes)| !bytes.starts_with(b"{")).collect()
}
