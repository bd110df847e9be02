//! One pass over a layer's blob: from compressed bytes to an index, and to segments that can be kept.

use std::io::{self, Read};
use std::sync::mpsc;
use std::thread;

use format::index::{Index, IndexError, Source};
use format::payload::SegmentSize;
use format::proof::{Mismatch, Proved};
use format::skeleton::SkeletonError;
use format::tar::{SpaceError, TarError};
use format::unpack::UnpackError;
use format::{DiffId, Digest};

use crate::inflow::{Batch, Blob, Inflow};
use crate::scan::{Scan, Scanned, Sink};

/// Compressed bytes read at a time.
const READ: usize = 128 << 10;

/// Batches on their way between the two threads. Some 400 KB each; enough that neither waits for the other's
/// hiccups.
const BATCHES: usize = 4;

/// Why no index comes out of a layer's blob.
#[derive(Debug, thiserror::Error)]
pub enum BuildError {
    /// The blob could not be read.
    #[error("reading the blob")]
    Read(#[source] io::Error),
    /// The blob cannot be decompressed.
    #[error("decompressing the layer")]
    Unpack(#[from] UnpackError),
    /// What comes out is not a tar we accept.
    #[error("reading the layer's tar")]
    Tar(#[from] TarError),
    /// The tar ends inside a file.
    #[error("the layer's tar ends inside a file")]
    TarEnds,
    /// The files take more room than any layer may.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// What is no payload exceeds its limit, or its compressor failed.
    #[error("packing the skeleton")]
    Skeleton(#[from] SkeletonError),
    /// More than a limit allows.
    #[error("{what} of the layer exceed the limit of {limit}")]
    Limit {
        /// What is too large or too many.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The blob has another length than announced; more, if it is not known how much.
    #[error("the blob should have {expected} bytes, but has {}", found.map_or("more".into(), |n| n.to_string()))]
    BlobLength {
        /// The length announced.
        expected: u64,
        /// The length found.
        found: Option<u64>,
    },
    /// The blob is not the one that was asked for.
    #[error("the blob should be {expected}, but is {found}")]
    BlobDigest {
        /// The digest asked for.
        expected: Digest,
        /// The digest found.
        found: Digest,
    },
    /// The tar is not the one the image's config names.
    #[error("the layer's tar should be {expected}, but is {found}")]
    DiffId {
        /// The digest in the config.
        expected: DiffId,
        /// The digest found.
        found: DiffId,
    },
    /// The parts do not make an index.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A segment could not be handed on.
    #[error("handing on segment {segment}")]
    Sink {
        /// The segment.
        segment: u32,
        /// Why.
        source: io::Error,
    },
    /// The index that was built does not state the digests that were computed, which is a bug.
    #[error(transparent)]
    Proof(#[from] Mismatch),
    /// A thread of the build panicked, which is a bug.
    #[error("a thread of the build ended unexpectedly")]
    Thread,
}

/// What the layer must turn out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Expected {
    /// The digest of the blob, from the manifest.
    pub blob: Digest,
    /// The digest of the tar, from the image's config.
    pub diff_id: DiffId,
}

/// How to build.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Options {
    /// The size of a segment.
    pub segment: SegmentSize,
    /// The length of the blob, from the manifest.
    pub blob_size: u64,
}

/// The threads one build may use. The index is the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Threads {
    /// The caller's only.
    One,
    /// The caller's for the compressed half, one more for the plain half.
    Two,
}

/// Builds an index from the bytes of a blob, in pieces of any size, on the caller's thread.
///
/// Memory is bounded: a segment, a few hundred KiB, the codec's window, and what the index itself will hold.
/// After an error a builder is of no use.
pub struct IndexBuilder<S> {
    inflow: Inflow,
    scan: Scan<S>,
}

impl<S: Sink> IndexBuilder<S> {
    /// Returns a builder that has seen nothing; `sink` gets every segment as soon as it is whole.
    pub fn new(options: Options, sink: S) -> Result<Self, BuildError> {
        Ok(Self { inflow: Inflow::new(options.blob_size), scan: Scan::new(options.segment, sink)? })
    }

    /// Takes the next bytes of the blob.
    pub fn push(&mut self, packed: &[u8]) -> Result<(), BuildError> {
        self.inflow.push(packed, &mut |batch| self.scan.batch(&batch).map(|()| batch))
    }

    /// Says that the blob ends here. The index comes only if both digests are right.
    pub fn finish(self, expected: &Expected) -> Result<(Index, Proved), BuildError> {
        let (blob, scanned) = self.end()?;
        prove(blob, scanned, expected)
    }

    /// Returns the index of whatever it was: for fuzzers, which know no digests.
    pub(crate) fn finish_unproved(self) -> Result<Index, BuildError> {
        let (blob, scanned) = self.end()?;
        let found = Expected { blob: blob.digest, diff_id: scanned.facts.diff_id };
        prove(blob, scanned, &found).map(|(index, _)| index)
    }

    fn end(mut self) -> Result<(Blob, Scanned), BuildError> {
        let blob = self.inflow.finish(&mut |batch| self.scan.batch(&batch).map(|()| batch))?;
        Ok((blob, self.scan.finish(blob.codec)?))
    }
}

/// Builds an index from a blob that can be read.
pub fn build<S: Sink>(
    blob: impl Read,
    options: Options,
    expected: &Expected,
    threads: Threads,
    sink: S,
) -> Result<(Index, Proved), BuildError> {
    match threads {
        Threads::One => {
            let mut builder = IndexBuilder::new(options, sink)?;
            read_all(blob, BuildError::Read, |piece| builder.push(piece))?;
            builder.finish(expected)
        }
        Threads::Two => {
            let scan = Scan::new(options.segment, sink)?;
            let (blob, scanned) = side_by_side(blob, Inflow::new(options.blob_size), scan)?;
            prove(blob, scanned, expected)
        }
    }
}

/// Reads a blob to its end, piece by piece.
pub(crate) fn read_all<E>(
    mut blob: impl Read,
    failed: impl FnOnce(io::Error) -> E,
    mut push: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<(), E> {
    let mut piece = vec![0; READ];
    loop {
        match blob.read(&mut piece) {
            Ok(0) => return Ok(()),
            Ok(n) => push(&piece[..n])?,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(failed(error)),
        }
    }
}

/// Runs the compressed half here and the plain half on a thread of its own.
///
/// Full batches go there and empty ones come back, so memory is taken once. If the plain half fails, its end of
/// the channels goes away and the compressed half stops; the plain half's error is the one that came first.
fn side_by_side<S: Sink>(
    blob: impl Read,
    mut inflow: Inflow,
    mut scan: Scan<S>,
) -> Result<(Blob, Scanned), BuildError> {
    let (to_scan, batches) = mpsc::sync_channel::<Batch>(BATCHES);
    let (give_back, spent) = mpsc::channel::<Batch>();
    thread::scope(|scope| {
        let scanning = scope.spawn(move || {
            for batch in batches {
                scan.batch(&batch)?;
                let _ = give_back.send(batch); // nobody needs it in the end
            }
            Ok::<_, BuildError>(scan)
        });
        let mut emit = |batch: Batch| match to_scan.send(batch) {
            Ok(()) => Ok(spent.try_recv().unwrap_or_else(|_| Batch::empty())),
            Err(_) => Err(BuildError::Thread),
        };
        let blob = read_all(blob, BuildError::Read, |piece| inflow.push(piece, &mut emit))
            .and_then(|()| inflow.finish(&mut emit));
        drop(to_scan);
        let scan = scanning.join().map_err(|_| BuildError::Thread)??;
        let blob = blob?;
        Ok((blob, scan.finish(blob.codec)?))
    })
}

fn prove(blob: Blob, scanned: Scanned, expected: &Expected) -> Result<(Index, Proved), BuildError> {
    if blob.digest != expected.blob {
        return Err(BuildError::BlobDigest { expected: expected.blob, found: blob.digest });
    }
    if scanned.facts.diff_id != expected.diff_id {
        return Err(BuildError::DiffId { expected: expected.diff_id, found: scanned.facts.diff_id });
    }
    let source = Source {
        blob: blob.digest,
        size: blob.size,
        codec: blob.codec,
        starts: scanned.starts,
        reach: scanned.reach,
        contents: None,
    };
    let index = Index::new(scanned.facts, scanned.skeleton, scanned.chunks, source)?;
    let proved = Proved::by_digests(&index, blob.digest, *expected.diff_id.digest())?;
    Ok((index, proved))
}
