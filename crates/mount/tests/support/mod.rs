//! Images made of real directories by GNU tar, and segments that arrive, fail and stay away as a test wants.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use format::IndexId;
use format::erofs::read::Image;
use format::erofs::write::{self, LayerDevices};
use format::payload::SegmentSize;
use format::tar::{Parser, Placer, Step};
use format::tree::Builder;
use mount::fuse::{Options, Server};
use mount::observe::Counters;
use store::{ReadError, SegmentFile, Segments};

/// Segments small enough that a few MiB are many.
pub(crate) const SEGMENT: u64 = 65_536;

/// An image with its segments in files, and the directory it was made of.
pub(crate) struct Packed {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) metadata: Vec<u8>,
    pub(crate) segments: Arc<Arriving>,
}

/// Returns an image of one layer that holds what `fill` puts into a directory.
pub(crate) fn pack(fill: impl FnOnce(&Path)) -> Packed {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let source = dir.path().join("source");
    fs::create_dir(&source).unwrap();
    fill(&source);
    let archive = dir.path().join("tar");
    let options = ["--format=posix", "--xattrs", "--xattrs-include=*", "--sparse", "--numeric-owner"];
    let made =
        Command::new("tar").arg("-cf").arg(&archive).args(options).arg("-C").arg(&source).arg(".").status();
    assert!(made.unwrap().success());

    let tar = fs::read(&archive).unwrap();
    let size = SegmentSize::from_bits(16).unwrap();
    let (mut parser, mut placer, mut builder) = (Parser::new(), Placer::new(size), Builder::new());
    builder.layer().unwrap();
    let (mut space, mut at) = (Vec::new(), 0);
    while at < tar.len() {
        let (taken, step) = parser.step(&tar[at..]).map_err(|e| e.to_string()).unwrap();
        at += taken;
        let Step::Member(member) = step else { continue };
        let first = placer.layout().extents().len();
        let runs = placer.member(&member).unwrap();
        for extent in &placer.layout().extents()[first..] {
            let (len, place) =
                (usize::try_from(extent.len).unwrap(), usize::try_from(extent.payload).unwrap());
            space.resize(place + len, 0);
            space[place..].copy_from_slice(&tar[at..at + len]);
            at += len;
        }
        builder.member(&member, runs).map_err(|e| e.to_string()).unwrap();
    }
    let layout = placer.finish();
    let index = IndexId::from_bytes([1; 32]);
    let lens: Vec<u32> =
        (0..layout.segments()).map(|n| u32::try_from(layout.segment_len(n) / 4096).unwrap()).collect();
    let mut paths = BTreeMap::new();
    fs::create_dir(dir.path().join("segments")).unwrap();
    for (n, blocks) in (0..).zip(&lens) {
        let start = usize::try_from(u64::from(n) * SEGMENT).unwrap();
        let end = start + usize::try_from(*blocks).unwrap() * 4096;
        let mut bytes = space[start..space.len().min(end)].to_vec();
        bytes.resize(end - start, 0);
        let path = dir.path().join("segments").join(n.to_string());
        fs::write(&path, bytes).unwrap();
        paths.insert(n, path);
    }
    let metadata = write::image(&builder.finish(), &[LayerDevices { index, segment: size, lens }]).unwrap();
    fs::create_dir(dir.path().join("mnt")).unwrap();
    Packed { dir, metadata, segments: Arc::new(Arriving::new(paths)) }
}

impl Packed {
    pub(crate) fn source(&self) -> PathBuf {
        self.dir.path().join("source")
    }

    pub(crate) fn mount_point(&self) -> PathBuf {
        self.dir.path().join("mnt")
    }

    pub(crate) fn image(&self) -> Arc<Image<Vec<u8>>> {
        Arc::new(Image::open(self.metadata.clone()).unwrap())
    }

    /// Mounts it; the counters come along.
    pub(crate) fn mount(&self, options: Options) -> (mount::fuse::Mounted, Arc<Counters>) {
        let counters = Arc::new(Counters::default());
        let server = Server::new(self.image(), self.segments.clone()).observed_by(counters.clone());
        (server.with(options).mount(&self.mount_point()).unwrap(), counters)
    }

    /// Returns the segments of a file, by the image.
    pub(crate) fn segments_of(&self, path: &str) -> Vec<u32> {
        let image = self.image();
        let nid = path.split('/').fold(image.root(), |at, name| {
            image.lookup(&image.inode(at).unwrap(), name.as_bytes()).unwrap().unwrap()
        });
        let inode = image.inode(nid).unwrap();
        let pieces = image.pieces(&inode, 0, u64::MAX).unwrap();
        let devices = pieces.filter_map(|piece| match piece.unwrap().source {
            format::erofs::read::Source::Device { number, .. } => Some(image.device(number).unwrap().segment),
            format::erofs::read::Source::Hole => None,
        });
        devices.collect()
    }
}

/// How it stands with a segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Is {
    Here,
    /// Asking for it waits.
    Away,
    /// Asking for it fails.
    Failing,
    /// Fetching it panics.
    Panicking,
    /// Even asking whether it is here panics.
    Untouchable,
}

#[derive(Default)]
struct State {
    is: HashMap<u32, Is>,
    fetching: Vec<u32>,
    hinted: Vec<u32>,
}

/// Segments under a test's control; all are here at first.
pub(crate) struct Arriving {
    paths: BTreeMap<u32, PathBuf>,
    state: Mutex<State>,
    changed: Condvar,
}

impl Arriving {
    fn new(paths: BTreeMap<u32, PathBuf>) -> Self {
        Self { paths, state: Mutex::default(), changed: Condvar::new() }
    }

    pub(crate) fn count(&self) -> u32 {
        u32::try_from(self.paths.len()).unwrap()
    }

    pub(crate) fn path(&self, segment: u32) -> &Path {
        &self.paths[&segment]
    }

    pub(crate) fn set(&self, segments: impl IntoIterator<Item = u32>, is: Is) {
        self.state.lock().unwrap().is.extend(segments.into_iter().map(|segment| (segment, is)));
        self.changed.notify_all();
    }

    pub(crate) fn set_all(&self, is: Is) {
        self.set(self.paths.keys().copied(), is);
    }

    pub(crate) fn hinted(&self) -> Vec<u32> {
        self.state.lock().unwrap().hinted.clone()
    }

    /// Waits until so many different segments have been asked for and are waited for.
    pub(crate) fn until_fetching(&self, count: usize) {
        let state = self.state.lock().unwrap();
        drop(self.changed.wait_while(state, |state| state.fetching.len() < count).unwrap());
    }

    fn open(&self, segment: u32) -> Arc<SegmentFile> {
        let file = File::open(self.path(segment)).unwrap();
        let len = file.metadata().unwrap().len();
        Arc::new(SegmentFile::new(file, len))
    }
}

impl State {
    fn is(&self, segment: u32) -> Is {
        self.is.get(&segment).copied().unwrap_or(Is::Here)
    }
}

impl Segments for Arriving {
    fn local(&self, _: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        let is = self.state.lock().unwrap().is(segment);
        assert_ne!(is, Is::Untouchable, "as the test wants");
        // A damaged image may ask for any.
        (is == Is::Here && self.paths.contains_key(&segment)).then(|| self.open(segment))
    }

    fn fetch(&self, index: IndexId, segment: u32, deadline: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        let mut state = self.state.lock().unwrap();
        state.fetching.push(segment);
        self.changed.notify_all();
        while state.is(segment) == Is::Away && Instant::now() < deadline {
            let left = deadline.saturating_duration_since(Instant::now());
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
        state.fetching.retain(|fetching| *fetching != segment);
        let is = state.is(segment);
        drop(state);
        match is {
            Is::Here if self.paths.contains_key(&segment) => Ok(self.open(segment)),
            Is::Here => Err(ReadError::Unknown { index, segment }),
            Is::Away => Err(ReadError::Timeout { index, segment }),
            Is::Failing => Err(ReadError::Unknown { index, segment }),
            Is::Panicking | Is::Untouchable => panic!("as the test wants"),
        }
    }

    fn hint(&self, _: IndexId, segments: Range<u32>) {
        self.state.lock().unwrap().hinted.extend(segments);
    }
}

/// Returns bytes that differ from file to file and from place to place.
pub(crate) fn bytes(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state.to_le_bytes()[3] | 1
    };
    (0..len).map(|_| next()).collect()
}

/// Why FUSE cannot be tested here, if so.
pub(crate) fn missing() -> Option<String> {
    mount::fuse::available().err().map(|why| why.to_string())
}
