//! A build takes no more memory for a long layer than for a short one, but for the index itself; and so does recoding,
//! but for the table.
//!
//! Each runs in a process of its own, because what an allocator has kept would hide what the next one takes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::io::{self, Read};

use convert::recode::nydus::{self, Packing};
use convert::recode::{Recoding, Target, erofs, recode};
use convert::{Expected, Options, Threads, build};
use format::payload::SegmentSize;
use format::{DiffId, DigestHasher};
use sys::deflate::{Deflate, Flush};
use sys::inflate::Wrap;
use testkit::dice::Dice;
use testkit::tar::{Header, Variant};

/// Bytes of one file.
const FILE: usize = 1 << 20;

/// Files of the layer.
const FILES: u32 = 160;

/// What a build may hold beside its index: four batches of 400 KB between the threads, the places that wait for
/// their proof with 100 KB each, a segment, zstd's tables for the skeleton. 5.4 MB were seen.
const MOST: u64 = 12 << 20;

/// The layer as gzip, made while it is read.
struct Blob {
    deflate: Deflate,
    content: Vec<u8>,
    files: u32,
    ready: Vec<u8>,
    at: usize,
    ended: bool,
}

impl Blob {
    fn new() -> Self {
        // Half of it noise: what compresses to nothing would be no load for the compressed half.
        let mut dice = Dice(1);
        let mut content = Vec::with_capacity(FILE + 8);
        while content.len() < FILE {
            content.extend_from_slice(format!("{:x} ", dice.below(1 << 31)).as_bytes());
        }
        content.truncate(FILE);
        let deflate = Deflate::new(Wrap::Gzip, 1).unwrap();
        Self { deflate, content, files: 0, ready: Vec::new(), at: 0, ended: false }
    }

    /// Returns the next piece of the tar, or nothing at its end.
    fn piece(&mut self) -> Option<Vec<u8>> {
        if self.ended {
            return None;
        }
        if self.files == FILES {
            self.ended = true;
            return Some(vec![0; 1024]);
        }
        let mut header = Header::new(Variant::Ustar, b'0');
        header.put(0, format!("data/{}", self.files).as_bytes());
        header.number(100, 8, 0o644);
        header.number(124, 12, i64::try_from(FILE).unwrap());
        // Each file is another.
        self.content.rotate_left(977);
        self.files += 1;
        Some([&header.seal()[..], &self.content].concat())
    }
}

impl Read for Blob {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.at == self.ready.len() {
            (self.at, self.ready) = (0, std::mem::take(&mut self.ready));
            self.ready.clear();
            let Some(piece) = self.piece() else { return Ok(0) };
            let flush = if self.ended { Flush::End } else { Flush::None };
            self.deflate.push(&piece, flush, &mut self.ready).map_err(io::Error::other)?;
        }
        let n = buf.len().min(self.ready.len() - self.at);
        buf[..n].copy_from_slice(&self.ready[self.at..self.at + n]);
        self.at += n;
        Ok(n)
    }
}

/// Returns the most memory this process has had at once since the last [`forget_peak`], in bytes.
fn peak() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Says to a process of this test on how many threads it builds.
const THREADS: &str = "FLOE_TEST_THREADS";

#[test]
fn memory_is_bounded_however_long_the_layer_is() {
    match std::env::var(THREADS).as_deref() {
        Ok("1") => return build_within_bounds(Threads::One),
        Ok(_) => return build_within_bounds(Threads::Two),
        Err(_) if !forget_peak() => testkit::skip!("/proc/self/clear_refs cannot be written"),
        Err(_) => {}
    }
    for threads in ["1", "2"] {
        alone("memory_is_bounded_however_long_the_layer_is", THREADS, threads);
    }
}

/// Says to a process of this test what it makes of the layer.
const TARGET: &str = "FLOE_TEST_TARGET";

/// What recoding on two threads may hold: three jobs for each packer, which for gzip have 4 MiB, what came of them, and
/// two compressors. 30 MB were seen, and 10 MB for the formats with tables.
const RECODING: u64 = 48 << 20;

#[test]
fn recoding_is_bounded_however_long_the_layer_is() {
    match std::env::var(TARGET).as_deref() {
        Ok("estargz") => return recode_within_bounds(Target::EStargz),
        Ok("zstd:chunked") => return recode_within_bounds(Target::ZstdChunked),
        Ok("nydus") => return pack_within_bounds(),
        Ok("erofs") => return lay_within_bounds(),
        Ok(_) => return recode_within_bounds(Target::Gzip),
        Err(_) if !forget_peak() => testkit::skip!("/proc/self/clear_refs cannot be written"),
        Err(_) => {}
    }
    for target in ["estargz", "zstd:chunked", "gzip", "nydus", "erofs"] {
        alone("recoding_is_bounded_however_long_the_layer_is", TARGET, target);
    }
}

/// Runs a test in a process of its own.
fn alone(test: &str, variable: &str, value: &str) {
    let mut child = std::process::Command::new(std::env::current_exe().unwrap());
    let output = child.args(["--exact", test, "--nocapture"]).env(variable, value).output().unwrap();
    let said = [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
    assert!(output.status.success() && said.contains("1 passed"), "{variable}={value}: {said}");
}

fn recode_within_bounds(target: Target) {
    within_bounds(&format!("{target:?}"), RECODING, |expected, size| {
        let recoding = Recoding { target, level: Some(1), blob_size: size, threads: 2 };
        recode(Blob::new(), expected, &recoding, io::sink()).unwrap().size
    });
}

fn pack_within_bounds() {
    within_bounds("Nydus", RECODING, |expected, size| {
        let packing = Packing { level: Some(1), blob_size: size, threads: 2 };
        nydus::pack(Blob::new(), expected, &packing, io::sink()).unwrap().size
    });
}

fn lay_within_bounds() {
    within_bounds("EROFS", MOST, |expected, size| {
        erofs::image(Blob::new(), expected, size, tempfile::tempfile().unwrap()).unwrap().size
    });
}

/// Makes something of the layer, which is told what it is and how long its blob is, and returns how long that has become.
fn within_bounds(what: &str, bound: u64, make: impl FnOnce(&Expected, u64) -> u64) {
    let (expected, size) = measured();
    assert!(size > 2 * bound, "{size} bytes prove nothing");
    assert!(forget_peak());
    let before = peak();
    let made = make(&expected, size);
    let grown = peak().saturating_sub(before);
    assert!(made > size / 2);
    assert!(grown < bound, "{what}: {grown} bytes");
}

fn build_within_bounds(threads: Threads) {
    let (expected, size) = measured();
    let options = Options { segment: SegmentSize::from_bits(19).unwrap(), blob_size: size };
    assert!(size > 10 * MOST, "{size} bytes prove nothing");

    assert!(forget_peak());
    let before = peak();
    let mut segments = 0;
    let built = build(Blob::new(), options, &expected, threads, |_, bytes: &[u8]| {
        segments += bytes.len() as u64;
        Ok(())
    });
    let grown = peak().saturating_sub(before);
    let index = built.unwrap().0.encode().len() as u64;
    assert_eq!(segments, u64::from(FILES) * FILE as u64);
    assert!(grown < MOST + 3 * index, "{threads:?}: {grown} bytes, of which the index is {index}");
}

/// Returns what the layer is, and the length of its blob.
fn measured() -> (Expected, u64) {
    let (mut tar, mut blob) = (DigestHasher::new(), DigestHasher::new());
    let mut source = Blob::new();
    while let Some(piece) = source.piece() {
        tar.update(&piece);
    }
    let (mut source, mut size, mut buf) = (Blob::new(), 0, vec![0; 1 << 16]);
    loop {
        let n = source.read(&mut buf).unwrap();
        if n == 0 {
            break;
        }
        blob.update(&buf[..n]);
        size += n as u64;
    }
    drop(source);
    (Expected { blob: blob.finish(), diff_id: DiffId::new(tar.finish()) }, size)
}
