//! What a read path tells about reads: who waited for what, how long, and how it ended.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use format::IndexId;
use format::erofs::read::{Corrupt, Nid};
use store::ReadError;

use crate::errno;

/// Why a read failed.
#[derive(Debug, thiserror::Error)]
pub enum Failure {
    /// The segment could not be fetched.
    #[error("fetching a segment")]
    Fetch(#[source] Arc<ReadError>),
    /// The read's deadline passed.
    #[error("the bytes did not arrive in time")]
    Deadline,
    /// The segment's file could not be read, or is shorter than it must be.
    #[error("reading a segment's file")]
    Disk(#[source] std::io::Error),
    /// The metadata image is wrong.
    #[error("reading the metadata image")]
    Corrupt(#[source] Corrupt),
    /// The server is going away.
    #[error("the mount is being taken down")]
    Stopped,
    /// More reads wait than the server keeps in mind.
    #[error("too many reads are waiting")]
    Crowded,
}

impl Failure {
    /// Returns a word for it.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Fetch(_) => "fetch",
            Self::Deadline => "deadline",
            Self::Disk(_) => "disk",
            Self::Corrupt(_) => "corrupt",
            Self::Stopped => "stopped",
            Self::Crowded => "crowded",
        }
    }

    /// Returns the name of the error number that the reader gets.
    pub fn errno(&self) -> &'static str {
        errno::name_of_read(self)
    }
}

/// A read that could not be answered at once.
#[derive(Debug)]
pub struct Wait<'a> {
    /// The file.
    pub nid: Nid,
    /// First byte that was asked for.
    pub offset: u64,
    /// How many bytes were asked for.
    pub len: u64,
    /// The layer and the segment that was missing first.
    pub missing: (IndexId, u32),
    /// From the kernel's request to the answer.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<(), &'a Failure>,
}

/// A read that the kernel did itself and that had to wait for a segment: of which file it does not say.
#[derive(Debug)]
pub struct SegmentWait<'a> {
    /// The layer and the segment.
    pub missing: (IndexId, u32),
    /// First byte that was read, in the segment.
    pub offset: u64,
    /// How many bytes.
    pub len: u64,
    /// From the kernel's question to the answer.
    pub took: Duration,
    /// How it ended.
    pub outcome: Result<(), &'a Failure>,
}

/// Hears of reads. Called on the threads that serve them, so it must be quick and never block.
pub trait Observer: Send + Sync {
    /// A read was answered from what is here.
    fn hit(&self, nid: Nid, bytes: u64) {
        let _ = (nid, bytes); // a default: who does not care
    }
    /// A read failed without waiting.
    fn failed(&self, nid: Nid, why: &Failure) {
        let _ = (nid, why); // a default: who does not care
    }
    /// A read begins to wait for a segment.
    fn waiting(&self, nid: Nid, missing: (IndexId, u32)) {
        let _ = (nid, missing); // a default: who does not care
    }
    /// A read that waited was answered.
    fn waited(&self, wait: &Wait<'_>) {
        let _ = wait; // a default: who does not care
    }
    /// A read of the kernel's was asked about, and its segment was here.
    fn segment_hit(&self) {}
    /// A read of the kernel's begins to wait for a segment.
    fn segment_waiting(&self, missing: (IndexId, u32)) {
        let _ = missing; // a default: who does not care
    }
    /// A read of the kernel's that waited was answered.
    fn segment_waited(&self, wait: &SegmentWait<'_>) {
        let _ = wait; // a default: who does not care
    }
}

/// Hears nothing.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Observer for Silent {}

/// Files that [`Counters`] tells apart; the waits of all others are summed only.
const FILES: usize = 4096;

/// Counts reads, and sums up waits by file.
#[derive(Debug, Default)]
pub struct Counters {
    hits: AtomicU64,
    bytes: AtomicU64,
    failures: AtomicU64,
    waiting: AtomicU64,
    waits: Mutex<Waits>,
}

/// The waits of all files.
#[derive(Debug, Clone, Default)]
pub struct Waits {
    /// All together.
    pub total: FileWaits,
    /// By file, for the first few thousand files that waited.
    pub files: HashMap<Nid, FileWaits>,
    /// By place, for reads that came without the name of a file: layer, segment, offset in the segment.
    pub places: HashMap<(IndexId, u32, u64), FileWaits>,
}

/// The waits for one file.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct FileWaits {
    /// How many reads waited.
    pub count: u64,
    /// How long together; reads that waited side by side count each.
    pub sum: Duration,
    /// The longest one.
    pub longest: Duration,
}

impl FileWaits {
    /// Adds other waits.
    pub fn merge(&mut self, other: &Self) {
        self.count += other.count;
        self.sum += other.sum;
        self.longest = self.longest.max(other.longest);
    }

    fn add(&mut self, took: Duration) {
        self.count += 1;
        self.sum += took;
        self.longest = self.longest.max(took);
    }
}

impl Counters {
    /// Returns how many reads were answered at once.
    pub fn hits(&self) -> u64 {
        self.hits.load(Ordering::Relaxed)
    }
    /// Returns how many reads had to wait, those that still do included.
    pub fn misses(&self) -> u64 {
        self.waits().total.count + self.waiting.load(Ordering::Relaxed)
    }
    /// Returns how many reads wait at this moment.
    pub fn waiting(&self) -> u64 {
        self.waiting.load(Ordering::Relaxed)
    }
    /// Returns how many bytes have been served.
    pub fn bytes(&self) -> u64 {
        self.bytes.load(Ordering::Relaxed)
    }
    /// Returns how many reads ended in an errno.
    pub fn failures(&self) -> u64 {
        self.failures.load(Ordering::Relaxed)
    }
    /// Returns a copy of the waits so far.
    pub fn waits(&self) -> Waits {
        self.waits.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Observer for Counters {
    fn hit(&self, _: Nid, bytes: u64) {
        self.hits.fetch_add(1, Ordering::Relaxed);
        self.bytes.fetch_add(bytes, Ordering::Relaxed);
    }
    fn failed(&self, _: Nid, _: &Failure) {
        self.failures.fetch_add(1, Ordering::Relaxed);
    }
    fn waiting(&self, _: Nid, _: (IndexId, u32)) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }
    fn waited(&self, wait: &Wait<'_>) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        match wait.outcome {
            Ok(()) => self.bytes.fetch_add(wait.len, Ordering::Relaxed),
            Err(_) => self.failures.fetch_add(1, Ordering::Relaxed),
        };
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.total.add(wait.took);
        let room = waits.files.len() < FILES;
        match waits.files.get_mut(&wait.nid) {
            Some(file) => file.add(wait.took),
            None if room => waits.files.entry(wait.nid).or_default().add(wait.took),
            None => {}
        }
    }
    fn segment_hit(&self) {
        self.hits.fetch_add(1, Ordering::Relaxed);
    }
    fn segment_waiting(&self, _: (IndexId, u32)) {
        self.waiting.fetch_add(1, Ordering::Relaxed);
    }
    fn segment_waited(&self, wait: &SegmentWait<'_>) {
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        match wait.outcome {
            Ok(()) => self.bytes.fetch_add(wait.len, Ordering::Relaxed),
            Err(_) => self.failures.fetch_add(1, Ordering::Relaxed),
        };
        let mut waits = self.waits.lock().unwrap_or_else(PoisonError::into_inner);
        waits.total.add(wait.took);
        let (index, segment) = wait.missing;
        if waits.places.len() < FILES {
            waits.places.entry((index, segment, wait.offset)).or_default().add(wait.took);
        }
    }
}
