//! Layers, origins and stores to test with.

use std::collections::HashMap;
use std::ops::{ControlFlow, Range};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use format::index::{Basis, Chunk, Codec, Facts, Index, Reach, Source, Start, hash_of};
use format::layer::Layer;
use format::payload::SegmentSize;
use format::skeleton::SkeletonWriter;
use format::tar::{Parser, Placer, Step};
use format::unpack::Unpacker;
use format::{ChunkId, DiffId, Digest, IndexId};

use crate::origin::{Blob, Origin, OriginError, Priority, Urgency};
use crate::read_through::{Hold, Observer, ReadThrough, Segments, Workers};
use crate::refs::{ImageRef, RefLayer, RefName};
use crate::segments::Content;
use crate::sim::{Dice, SimDisk};
use crate::store::Store;

/// A deadline no test comes near.
pub(crate) fn later() -> Instant {
    Instant::now() + Duration::from_secs(600)
}

/// Segments of made-up bytes.
#[derive(Debug)]
pub(crate) struct Fake {
    id: IndexId,
    lens: Vec<u64>,
    seed: u64,
}

impl Fake {
    pub(crate) fn new(seed: u64) -> Arc<Self> {
        let mut dice = Dice(seed);
        let lens = (0..1 + dice.below(4)).map(|_| 4096 * (1 + dice.below(3)) as u64).collect();
        Arc::new(Self { id: IndexId::from_bytes(*blake3::hash(&seed.to_le_bytes()).as_bytes()), lens, seed })
    }

    pub(crate) fn bytes(&self, segment: u32) -> Vec<u8> {
        let mut dice = Dice(self.seed << 32 | u64::from(segment));
        (0..Content::len(self, segment) / 8).flat_map(|_| dice.roll().to_le_bytes()).collect()
    }
}

impl Content for Fake {
    fn id(&self) -> IndexId {
        self.id
    }
    fn segments(&self) -> u32 {
        u32::try_from(self.lens.len()).unwrap()
    }
    fn len(&self, segment: u32) -> u64 {
        self.lens[segment as usize]
    }
    fn is(&self, segment: u32, bytes: &[u8]) -> bool {
        assert!(self.tells(), "asked of what it cannot know");
        bytes == self.bytes(segment)
    }
    /// Every other one cannot.
    fn tells(&self) -> bool {
        self.seed.is_multiple_of(2)
    }
    fn packed(&self) -> u64 {
        self.lens.iter().sum()
    }
}

/// Returns a tar of regular files named "0", "1", …
pub(crate) fn tar(files: &[Vec<u8>]) -> Vec<u8> {
    let mut tar = Vec::new();
    for (n, bytes) in files.iter().enumerate() {
        let mut header = [0; 512];
        let mut put = |at: usize, text: &str| header[at..at + text.len()].copy_from_slice(text.as_bytes());
        put(0, &n.to_string());
        put(100, "0000644\0");
        put(108, "0000000\0");
        put(116, "0000000\0");
        put(124, &format!("{:011o}\0", bytes.len()));
        put(136, "00000000000\0");
        put(156, "0");
        put(257, "ustar\x0000");
        put(148, "        ");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        tar.extend(header);
        tar.extend(bytes);
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    tar.extend([0; 1024]);
    tar
}

/// Returns bytes that do not compress.
pub(crate) fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    std::iter::repeat_with(|| dice.roll().to_le_bytes()).flatten().take(len).collect()
}

/// Returns where in a gzip blob so many bytes of the tar are out, at most 512 bytes later.
fn packed_end(blob: &[u8], plain: u64) -> u64 {
    let (mut unpacker, mut room) = (Unpacker::new(Codec::Gzip).unwrap(), vec![0; 1 << 20]);
    let (mut read, mut written) = (0, 0);
    while written < plain {
        let step = unpacker.step(&blob[read..blob.len().min(read + 512)], &mut room, false).unwrap();
        (read, written) = (read + step.read, written + step.written as u64);
    }
    read as u64
}

/// Returns the index of a tar and the blob it describes: the tar itself, one gzip member of it, which is one span,
/// or one zstd frame.
pub(crate) fn index(tar: &[u8], codec: Codec) -> (Index, Vec<u8>) {
    let segment = SegmentSize::from_bits(16).unwrap();
    let (mut parser, mut placer) = (Parser::new(), Placer::new(segment));
    let (mut skeleton, mut at) = (Vec::new(), 0);
    while at < tar.len() {
        let (taken, step) = parser.step(&tar[at..]).unwrap();
        skeleton.extend(&tar[at..at + taken]);
        at += taken;
        if let Step::Member(member) = step {
            placer.member(&member).unwrap();
            at += usize::try_from(member.payload).unwrap();
        }
    }
    parser.finish().unwrap();
    let layout = placer.finish();
    let mut payload = vec![0; usize::try_from(layout.space()).unwrap()];
    let range = |start: u64, len: u64| usize::try_from(start).unwrap()..usize::try_from(start + len).unwrap();
    for extent in layout.extents() {
        payload[range(extent.payload, extent.len)].copy_from_slice(&tar[range(extent.plain, extent.len)]);
    }
    let chunk = |cut: &format::payload::Cut| Chunk {
        len: cut.len,
        id: ChunkId::of(&payload[range(cut.start, u64::from(cut.len))]),
    };
    let chunks: Vec<_> = layout.cuts().iter().map(chunk).collect();
    let blob = match codec {
        Codec::Zstd => zstd::encode_all(tar, 1).unwrap(),
        Codec::Gzip => sys::deflate::compress(tar, sys::inflate::Wrap::Gzip, 6).unwrap(),
        Codec::Plain => tar.to_vec(),
    };
    let start = |plain| Start { plain, packed: plain, bits: 0, window: Box::default() };
    let (starts, reach) = match codec {
        Codec::Zstd if layout.segments() > 0 => (
            vec![start(0)],
            vec![Reach { start: 0, packed_end: blob.len() as u64 }; layout.segments() as usize],
        ),
        Codec::Gzip => {
            let reach = |n| Reach { start: 0, packed_end: packed_end(&blob, layout.plain_of(n).end) };
            // Behind the member's header, which is 10 bytes long.
            let first = Start { packed: 10, ..start(0) };
            (vec![first], (0..layout.segments()).map(reach).collect())
        }
        _ => (0..layout.segments())
            .map(|n| {
                (start(layout.plain_of(n).start), Reach { start: n, packed_end: layout.plain_of(n).end })
            })
            .unzip(),
    };
    let facts = Facts {
        diff_id: DiffId::new(Digest::of(tar)),
        basis: Basis::Tar,
        tar_len: tar.len() as u64,
        segment,
        space: layout.space(),
        skeleton_len: skeleton.len() as u64,
        skeleton_hash: *blake3::hash(&skeleton).as_bytes(),
        chunk_count: u32::try_from(chunks.len()).unwrap(),
        chunks_hash: hash_of(&chunks),
    };
    let source =
        Source { blob: Digest::of(&blob), size: blob.len() as u64, codec, starts, reach, contents: None };
    let mut packed = SkeletonWriter::new().unwrap();
    packed.write(&skeleton).unwrap();
    (Index::new(facts, packed.finish().unwrap().0.into(), chunks, source).unwrap(), blob)
}

/// A layer of `segments` segments of 64 KiB, one file each.
pub(crate) struct Sample {
    pub(crate) layer: Arc<Layer>,
    pub(crate) blob: Vec<u8>,
    pub(crate) files: Vec<Vec<u8>>,
}

impl Sample {
    pub(crate) fn new(seed: u64, segments: usize, codec: Codec) -> Self {
        let files: Vec<_> = (0..segments as u64).map(|n| noise(seed << 16 | n, 60_001)).collect();
        let sample = Self::of(files, codec);
        assert_eq!(sample.layer.segments() as usize, segments);
        sample
    }

    /// Returns a layer of these files.
    pub(crate) fn of(files: Vec<Vec<u8>>, codec: Codec) -> Self {
        let (index, blob) = index(&tar(&files), codec);
        Self { layer: Arc::new(Layer::open(index).unwrap()), blob, files }
    }

    /// Returns a layer of which every two segments are a gzip member, and a span.
    pub(crate) fn members(seed: u64, segments: usize) -> Self {
        let plain = Self::new(seed, segments, Codec::Plain);
        let plain_end = |n: usize| plain.layer.layout().plain_of(u32::try_from(n).unwrap()).end;
        let (mut blob, mut starts, mut reach, mut at) = (Vec::new(), Vec::new(), Vec::new(), 0);
        for first in (0..segments).step_by(2) {
            let next = (first + 2).min(segments);
            let end = if next == segments { plain.blob.len() as u64 } else { plain_end(next - 1) };
            let range = usize::try_from(at).unwrap()..usize::try_from(end).unwrap();
            let member = sys::deflate::compress(&plain.blob[range], sys::inflate::Wrap::Gzip, 6).unwrap();
            let packed = blob.len() as u64;
            let start = u32::try_from(starts.len()).unwrap();
            starts.push(Start { plain: at, packed: packed + 10, bits: 0, window: Box::default() });
            let end_of = |n| packed + packed_end(&member, plain_end(n) - at);
            reach.extend((first..next).map(|n| Reach { start, packed_end: end_of(n) }));
            blob.extend(member);
            at = end;
        }
        let index = plain.layer.index();
        let (facts, chunks) = (index.facts().clone(), index.chunks().to_vec());
        let size = blob.len() as u64;
        let source =
            Source { blob: Digest::of(&blob), size, codec: Codec::Gzip, starts, reach, contents: None };
        let index = Index::new(facts, index.skeleton().into(), chunks, source).unwrap();
        Self { layer: Arc::new(Layer::open(index).unwrap()), blob, files: plain.files }
    }

    pub(crate) fn id(&self) -> IndexId {
        self.layer.id()
    }
}

type Answer = Box<dyn FnMut(usize, Range<u64>, Vec<u8>) -> Result<Vec<u8>, OriginError> + Send>;

/// An origin in memory that counts, and does what a test tells it.
#[derive(Default)]
pub(crate) struct Memory {
    blobs: Mutex<HashMap<Digest, Vec<u8>>>,
    pub(crate) reads: AtomicUsize,
    pub(crate) asked: Mutex<Vec<(Range<u64>, Priority)>>,
    /// How urgent each read was when its first byte came.
    pub(crate) answered: Mutex<Vec<Priority>>,
    answer: Mutex<Option<Answer>>,
    /// Reads stop before their first byte while this is true.
    held: Mutex<bool>,
    changed: Condvar,
    /// Reads that have begun and wait; told through `changed`.
    waiting: AtomicUsize,
}

impl Memory {
    pub(crate) fn of(samples: &[&Sample]) -> Arc<Self> {
        let blobs = samples.iter().map(|sample| (Digest::of(&sample.blob), sample.blob.clone())).collect();
        Arc::new(Self { blobs: Mutex::new(blobs), ..Self::default() })
    }

    /// Sets what later reads return: given their number, range and right bytes.
    pub(crate) fn answer(
        &self,
        answer: impl FnMut(usize, Range<u64>, Vec<u8>) -> Result<Vec<u8>, OriginError> + Send + 'static,
    ) {
        *self.answer.lock().unwrap() = Some(Box::new(answer));
    }

    pub(crate) fn hold(&self) {
        *self.held.lock().unwrap() = true;
    }

    pub(crate) fn release(&self) {
        *self.held.lock().unwrap() = false;
        self.changed.notify_all();
    }

    /// Waits until so many reads are being held.
    pub(crate) fn wait_for_held(&self, reads: usize) {
        let held = self.held.lock().unwrap();
        drop(self.changed.wait_while(held, |_| self.waiting.load(Ordering::SeqCst) < reads).unwrap());
    }

    pub(crate) fn count(&self) -> usize {
        self.reads.load(Ordering::SeqCst)
    }
}

impl Origin for Memory {
    fn read(
        &self,
        blob: &Blob,
        range: Range<u64>,
        urgency: &Urgency,
        _deadline: Instant,
        sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), OriginError> {
        let number = self.reads.fetch_add(1, Ordering::SeqCst);
        self.asked.lock().unwrap().push((range.clone(), urgency.priority()));
        {
            let held = self.held.lock().unwrap();
            self.waiting.fetch_add(1, Ordering::SeqCst);
            self.changed.notify_all();
            drop(self.changed.wait_while(held, |held| *held).unwrap());
            self.waiting.fetch_sub(1, Ordering::SeqCst);
        }
        self.answered.lock().unwrap().push(urgency.priority());
        let bytes = self.blobs.lock().unwrap()[&blob.digest]
            [usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]
            .to_vec();
        let bytes = match self.answer.lock().unwrap().as_mut() {
            Some(answer) => answer(number, range, bytes)?,
            None => bytes,
        };
        for piece in bytes.chunks(10_000) {
            if sink(piece).is_break() {
                return Ok(());
            }
        }
        Ok(())
    }
}

/// A store whose layers come from memory.
pub(crate) struct Bench {
    _home: tempfile::TempDir,
    pub(crate) store: Arc<Store>,
    pub(crate) origin: Arc<Memory>,
    pub(crate) read: ReadThrough,
}

impl Bench {
    pub(crate) fn new(samples: &[&Sample]) -> Self {
        Self::watched(samples, Arc::new(()), Workers::default())
    }

    pub(crate) fn watched(samples: &[&Sample], observer: Arc<dyn Observer>, workers: Workers) -> Self {
        let home = tempfile::tempdir().unwrap();
        let store = store(home.path());
        let origin = Memory::of(samples);
        let read = ReadThrough::start(store.clone(), origin.clone(), observer, workers).unwrap();
        Self { _home: home, store, origin, read }
    }

    pub(crate) fn add(&self, sample: &Sample) -> Hold {
        self.read.add(sample.layer.clone()).unwrap()
    }

    /// Waits until nothing is on its way: a reader has its segment a moment before its flight has ended.
    pub(crate) fn settle(&self) {
        let until = later();
        while self.read.under_way() > 0 {
            assert!(Instant::now() < until);
            std::thread::yield_now();
        }
    }

    pub(crate) fn check(&self, sample: &Sample, segment: u32) {
        let file = self.read.fetch(sample.id(), segment, later()).unwrap();
        let mut bytes = vec![0; sample.files[segment as usize].len()];
        assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
        assert!(bytes == sample.files[segment as usize], "segment {segment}");
        assert!(self.read.local(sample.id(), segment).is_some());
    }
}

pub(crate) fn store(root: &Path) -> Arc<Store> {
    Store::open(root).unwrap()
}

/// Opens a store on a simulated disk.
pub(crate) fn simulated(root: &Path, boot: &str) -> (Arc<SimDisk>, Arc<Store>) {
    let disk = SimDisk::new(root);
    let store = Store::open_on(root, disk.clone(), boot.to_owned()).unwrap();
    (disk, store)
}

pub(crate) fn image(name: &str, layers: &[IndexId], version: u64) -> ImageRef {
    let manifest = format!("{{\"manifest\":{version}}}").into_bytes();
    let config = format!("{{\"config\":{version}}}").into_bytes();
    let layer = |index: &IndexId| RefLayer {
        blob: Digest::of(index.as_bytes()),
        size: version,
        media_type: "application/vnd.oci.image.layer.v1.tar+gzip".to_owned(),
        diff_id: DiffId::new(Digest::of(b"diff")),
        index: *index,
        proved: false,
    };
    ImageRef {
        name: RefName::parse(name).unwrap(),
        manifest_digest: Digest::of(&manifest),
        original: None,
        manifest,
        config_digest: Digest::of(&config),
        config,
        layers: layers.iter().map(layer).collect(),
    }
}
