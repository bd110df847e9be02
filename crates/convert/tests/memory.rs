//! A build takes no more memory for a long layer than for a short one, but for the index itself; and so does recoding,
//! but for the table, and going back from what is no tar.
//!
//! Each runs in a process of its own, because what an allocator has kept would hide what the next one takes. The layer is made
//! once, in a file.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use convert::recode::nydus::{self, Packing};
use convert::recode::{Recoding, Target, erofs, recode};
use convert::{Expected, Options, Threads, build};
use format::index::BlobAt;
use format::payload::SegmentSize;
use format::{DiffId, Digest, DigestHasher};
use sys::deflate::{Deflate, Flush};
use sys::inflate::Wrap;
use testkit::dice::Dice;
use testkit::tar::{Header, Variant};

/// Bytes of one file.
const FILE: usize = 1 << 20;

/// Files of the layer.
const FILES: u32 = 132;

/// Bytes of all of them.
const PLAIN: u64 = FILES as u64 * FILE as u64;

/// What a build may hold beside its index: four batches of 400 KB between the threads, the places that wait for
/// their proof with 100 KB each, a segment, zstd's tables for the skeleton. 5.4 MB were seen.
const MOST: u64 = 10 << 20;

/// The layer, made piece by piece.
struct Blob {
    deflate: Deflate,
    content: Vec<u8>,
    files: u32,
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
        Self { deflate, content, files: 0, ended: false }
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

/// Returns the most memory this process has had at once since the last [`forget_peak`], in bytes.
fn peak() -> u64 {
    status("VmHWM:")
}

fn status(name: &str) -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with(name)).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() << 10
}

fn forget_peak() -> bool {
    std::fs::write("/proc/self/clear_refs", "5").is_ok()
}

/// Says to a process of this test on how many threads it builds, what it makes of the layer, or what it makes a layer of.
const WORK: &str = "FLOE_TEST_WORK";

/// Says to it what the layer on its standard input is: the digests of blob and tar.
const LAYER: &str = "FLOE_TEST_LAYER";

#[test]
fn memory_is_bounded_however_long_the_layer_is() {
    match std::env::var(WORK).as_deref() {
        Ok("1") => return build_within_bounds(Threads::One),
        Ok(_) => return build_within_bounds(Threads::Two),
        Err(_) if !forget_peak() => testkit::skip!("/proc/self/clear_refs cannot be written"),
        Err(_) => {}
    }
    for threads in ["1", "2"] {
        Made::gzip().alone("memory_is_bounded_however_long_the_layer_is", threads);
    }
}

/// What recoding on two threads may hold: three jobs for each packer, which for gzip have 4 MiB, what came of them, and
/// two compressors. 36 MB were seen.
const RECODING: u64 = 48 << 20;

/// The same for the formats with tables, whose pieces have 512 KiB. 12 MB were seen.
const TABLES: u64 = 20 << 20;

/// What making a layer of Nydus's may hold: as any that is made into gzip, and chunks on their way there. 51 MB were seen.
const BACK: u64 = 64 << 20;

#[test]
fn recoding_is_bounded_however_long_the_layer_is() {
    match std::env::var(WORK).as_deref() {
        Ok("estargz") => return recode_within_bounds(Target::EStargz, TABLES),
        Ok("zstd:chunked") => return recode_within_bounds(Target::ZstdChunked, TABLES),
        Ok("nydus") => return pack_within_bounds(),
        Ok("erofs") => return lay_within_bounds(),
        Ok(_) => return recode_within_bounds(Target::Gzip, RECODING),
        Err(_) if !forget_peak() => testkit::skip!("/proc/self/clear_refs cannot be written"),
        Err(_) => {}
    }
    for target in ["estargz", "zstd:chunked", "gzip", "nydus", "erofs"] {
        Made::gzip().alone("recoding_is_bounded_however_long_the_layer_is", target);
    }
}

#[test]
fn going_back_is_bounded_however_long_the_layer_is() {
    const TEST: &str = "going_back_is_bounded_however_long_the_layer_is";
    match std::env::var(WORK).as_deref() {
        Ok("nydus") => return unpack_within_bounds(),
        Ok("nydus, all") => return make_one_within_bounds(),
        Ok(_) => return read_within_bounds(),
        Err(_) if !forget_peak() => testkit::skip!("/proc/self/clear_refs cannot be written"),
        Err(_) => {}
    }
    let layer = Made::gzip();
    let (file, packing) =
        (tempfile::tempfile().unwrap(), Packing { level: Some(1), blob_size: layer.size, threads: 2 });
    let made = nydus::pack(layer.open(), &layer.expected, &packing, &file).unwrap();
    let blob = Made::of(file, made.digest, DiffId::new(made.digest));
    for work in ["nydus", "nydus, all"] {
        blob.alone(TEST, work);
    }
    let file = tempfile::tempfile().unwrap();
    let made = erofs::image(layer.open(), &layer.expected, layer.size, &file).unwrap();
    Made::of(file, made.digest, made.diff_id).alone(TEST, "erofs");
}

/// A layer in a file.
struct Made {
    file: File,
    expected: Expected,
    size: u64,
}

impl Made {
    fn of(file: File, blob: Digest, diff_id: DiffId) -> Self {
        let size = file.metadata().unwrap().len();
        Self { file, expected: Expected { blob, diff_id }, size }
    }

    /// Returns the layer as gzip.
    fn gzip() -> &'static Self {
        static MADE: OnceLock<Made> = OnceLock::new();
        MADE.get_or_init(|| {
            let (mut tar, mut blob, mut file) =
                (DigestHasher::new(), DigestHasher::new(), tempfile::tempfile().unwrap());
            let (mut source, mut ready) = (Blob::new(), Vec::new());
            while let Some(piece) = source.piece() {
                tar.update(&piece);
                let flush = if source.ended { Flush::End } else { Flush::None };
                source.deflate.push(&piece, flush, &mut ready).unwrap();
                blob.update(&ready);
                file.write_all(&ready).unwrap();
                ready.clear();
            }
            Self::of(file, blob.finish(), DiffId::new(tar.finish()))
        })
    }

    /// Returns what a process of a test was given.
    fn given() -> Self {
        let said = std::env::var(LAYER).unwrap();
        let (blob, tar) = said.split_once(' ').unwrap();
        Self::of(File::open("/dev/stdin").unwrap(), blob.parse().unwrap(), DiffId::new(tar.parse().unwrap()))
    }

    fn open(&self) -> &File {
        (&self.file).seek(SeekFrom::Start(0)).unwrap();
        &self.file
    }

    /// Runs a test in a process of its own.
    fn alone(&self, test: &str, work: &str) {
        let Expected { blob, diff_id } = self.expected;
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["--exact", test, "--nocapture"]).stdin(self.file.try_clone().unwrap());
        let output = child.env(WORK, work).env(LAYER, format!("{blob} {diff_id}")).output().unwrap();
        let said =
            [String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr)].concat();
        assert!(output.status.success() && said.contains("1 passed"), "{work}: {said}");
    }
}

fn recode_within_bounds(target: Target, bound: u64) {
    let layer = Made::given();
    within_bounds(&format!("{target:?}"), layer.size, bound, || {
        let recoding = Recoding { target, level: Some(1), blob_size: layer.size, threads: 2 };
        recode(layer.open(), &layer.expected, &recoding, io::sink()).unwrap().size
    });
}

fn pack_within_bounds() {
    let layer = Made::given();
    within_bounds("Nydus", layer.size, TABLES, || {
        let packing = Packing { level: Some(1), blob_size: layer.size, threads: 2 };
        nydus::pack(layer.open(), &layer.expected, &packing, io::sink()).unwrap().size
    });
}

fn lay_within_bounds() {
    let layer = Made::given();
    within_bounds("EROFS", layer.size, MOST, || {
        let file = tempfile::tempfile().unwrap();
        erofs::image(layer.open(), &layer.expected, layer.size, file).unwrap().size
    });
}

fn unpack_within_bounds() {
    let layer = Made::given();
    within_bounds("back from Nydus", PLAIN, BACK, || {
        let recoding = Recoding { target: Target::Gzip, level: Some(1), blob_size: layer.size, threads: 2 };
        let file = tempfile::tempfile().unwrap();
        nydus::unpack(layer.open(), layer.expected.blob, &recoding, &file, io::sink()).unwrap().size
    });
}

/// One layer is made of an image with one blob.
fn make_one_within_bounds() {
    let blob = Made::given();
    let part = |range: Range<u64>| {
        let mut bytes = vec![0; usize::try_from(range.end - range.start).unwrap()];
        blob.file.read_exact_at(&mut bytes, range.start).unwrap();
        bytes
    };
    let toc = nydus::Toc::read(&part(blob.size - nydus::Toc::TAIL..blob.size), blob.size).unwrap();
    let parts = toc.parts(&part(toc.range())).unwrap();
    let top = nydus::merge(&[(blob.expected.blob, &parts)]).unwrap();
    let mut open = |digest: &Digest, range: Range<u64>| -> Box<dyn Read> {
        if *digest == top.digest {
            return Box::new(io::Cursor::new(top.blob.clone()));
        }
        let mut file = blob.file.try_clone().unwrap();
        file.seek(SeekFrom::Start(range.start)).unwrap();
        Box::new(file.take(range.end - range.start))
    };
    let stored = nydus::Stored {
        top: Expected { blob: top.digest, diff_id: top.diff_id },
        top_size: top.blob.len() as u64,
        blobs: &[BlobAt { digest: blob.expected.blob, size: blob.size }],
        open: &mut open,
    };
    within_bounds("one layer of Nydus", PLAIN, BACK, || {
        let recoding = Recoding { target: Target::Gzip, level: Some(1), blob_size: 0, threads: 2 };
        let file = tempfile::tempfile().unwrap();
        nydus::together(stored, &recoding, &file, io::sink()).unwrap().size
    });
}

/// Makes something of so many bytes, and returns how long that has become.
fn within_bounds(what: &str, long: u64, bound: u64, make: impl FnOnce() -> u64) {
    assert!(long > 2 * bound, "{long} bytes prove nothing");
    assert!(forget_peak());
    let before = peak();
    let made = make();
    let grown = peak().saturating_sub(before);
    assert!(made > long / 2);
    assert!(grown < bound, "{what}: {grown} bytes");
}

/// What a tar of an EROFS image is made of may hold: a window of it, and the tree. 0.2 MB were seen.
const READING: u64 = 2 << 20;

/// The most anonymous memory that was seen.
static SEEN: AtomicU64 = AtomicU64::new(0);

/// Looks at the memory whenever something is written, or read.
///
/// A file system is a map of a file, which the kernel takes back as it likes and counts with all else in the peak.
struct Looking<T>(T);

impl<T> Looking<T> {
    fn look(&self) {
        SEEN.fetch_max(status("RssAnon:"), Ordering::Relaxed);
    }
}

impl<T: Read> Read for Looking<T> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.look();
        self.0.read(buf)
    }
}

impl<T: Write> Write for Looking<T> {
    fn write(&mut self, buf: &[u8]) -> io::Result<usize> {
        self.look();
        self.0.write(buf)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}

impl<T: Seek> Seek for Looking<T> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.0.seek(to)
    }
}

fn read_within_bounds() {
    let layer = Made::given();
    const { assert!(PLAIN > 10 * READING, "so few bytes prove nothing") };
    let (file, tar) = (tempfile::tempfile().unwrap(), tempfile::tempfile().unwrap());
    let before = status("RssAnon:");
    let made =
        erofs::unpack(Looking(layer.open()), &layer.expected, layer.size, &file, Looking(&tar)).unwrap();
    let grown = SEEN.load(Ordering::Relaxed).saturating_sub(before);
    assert!(made.size > PLAIN);
    assert!(grown < READING, "back from EROFS: {grown} bytes");
}

fn build_within_bounds(threads: Threads) {
    let layer = Made::given();
    let options = Options { segment: SegmentSize::from_bits(19).unwrap(), blob_size: layer.size };
    assert!(layer.size > 10 * MOST, "{} bytes prove nothing", layer.size);

    assert!(forget_peak());
    let before = peak();
    let mut segments = 0;
    let built = build(layer.open(), options, &layer.expected, threads, |_, bytes: &[u8]| {
        segments += bytes.len() as u64;
        Ok(())
    });
    let grown = peak().saturating_sub(before);
    let index = built.unwrap().0.encode().len() as u64;
    assert_eq!(segments, PLAIN);
    assert!(grown < MOST + 3 * index, "{threads:?}: {grown} bytes, of which the index is {index}");
}
