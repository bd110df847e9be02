//! Whether two layers hold the same files, whatever the formats of their blobs.
//!
//! Both are read at the same time, each as when its index is built: so both blobs and both tars are compared with their
//! digests, too. Of the one a hash per member and one per block of 4 KiB is kept, and the other is held against
//! it member by member, in the order of the tars, or that in which the other was written: paths, kinds, owners, times,
//! attributes, contents. What eStargz writers put into a tar is passed over in both.

use std::io::{Read, Write};
use std::thread;

use format::index::Index;
use format::layer::{Layer, LayerError};
use format::limits::BLOCK;
use format::payload::{Run, SegmentSize};
use format::stargz::is_added;
use format::tar::Member;
use format::tree::Runs;

use crate::recode::First;
use crate::recode::order::Survey;
use crate::{BuildError, Expected, Options, Threads, build};

/// Segments of 16 MiB: one is in memory, and a tar may have 16,384.
const SEGMENT_BITS: u8 = 24;

/// A block of payload space.
const WHOLE: usize = 4096;
const _: () = assert!(WHOLE as u64 == BLOCK);

/// Bytes of the hash of a block. Nobody gains by two blocks that look alike here: both tars have their own digests.
const HASH: usize = 16;

/// Why layers are not the same, or not known to be.
#[derive(Debug, thiserror::Error)]
pub enum CompareError {
    /// The one is not what it should be.
    #[error("reading the one")]
    One(#[source] BuildError),
    /// The other is not what it should be.
    #[error("reading the other")]
    Other(#[source] BuildError),
    /// The members of a layer cannot be told, which is a bug.
    #[error(transparent)]
    Layer(#[from] LayerError),
    /// A member is not the same in both, or not in the same place.
    #[error("{0:?} differs")]
    Differs(String),
    /// The one has more.
    #[error("{0} files of the one are not in the other")]
    Missing(usize),
    /// A thread ended, which is a bug.
    #[error("a thread of the comparison ended unexpectedly")]
    Thread,
}

/// A layer to compare.
#[derive(Debug)]
pub struct Side<R> {
    /// Its bytes.
    pub blob: R,
    /// What they must turn out to be.
    pub expected: Expected,
    /// How many there are.
    pub size: u64,
}

/// Compares two layers; the first difference is the error. The other has the order that these files make of the one's, or the
/// one's own: who writes it moves nothing where a header may speak of more than one member.
pub fn compare(
    one: Side<impl Read + Send>,
    first: Option<&First>,
    other: Side<impl Read>,
) -> Result<(), CompareError> {
    let (one, other) = thread::scope(|scope| {
        let reading = scope.spawn(|| Contents::read(one));
        let other = Contents::read(other).map_err(CompareError::Other);
        let one = reading.join().map_err(|_| CompareError::Thread)?.map_err(CompareError::One);
        // Where both failed, the source is what is mended first.
        Ok::<_, CompareError>((one?, other?))
    })?;
    let (mut sums, mut survey) = (Vec::new(), first.map(Survey::new));
    one.members(|member, sum| {
        sums.push(sum);
        if let Some(survey) = &mut survey {
            survey.member(&member.path, &member.kind);
        }
        Ok(())
    })?;
    let mut orders: Vec<_> =
        survey.map(|survey| ordered(&sums, survey.finish()).into_iter()).into_iter().collect();
    orders.push(sums.into_iter());
    other.members(|member, sum| {
        orders.retain_mut(|left| left.next() == Some(sum));
        match orders.is_empty() {
            true => Err(CompareError::Differs(String::from_utf8_lossy(&member.path).into_owned())),
            false => Ok(()),
        }
    })?;
    match orders.first().map_or(0, ExactSizeIterator::len) {
        0 => Ok(()),
        more => Err(CompareError::Missing(more)),
    }
}

/// Returns sums in another order: those of these members first.
fn ordered(sums: &[blake3::Hash], first: Vec<u32>) -> Vec<blake3::Hash> {
    let mut left: Vec<_> = sums.iter().copied().map(Some).collect();
    let mut ordered: Vec<_> = first.into_iter().filter_map(|number| left[number as usize].take()).collect();
    ordered.extend(left.into_iter().flatten());
    ordered
}

/// What a layer holds.
struct Contents {
    index: Index,
    /// Of each block of payload space.
    blocks: Vec<[u8; HASH]>,
}

impl Contents {
    fn read(side: Side<impl Read>) -> Result<Self, BuildError> {
        let segment = SegmentSize::from_bits(SEGMENT_BITS).unwrap_or(SegmentSize::DEFAULT);
        let mut blocks: Vec<[u8; HASH]> = Vec::new();
        let options = Options { segment, blob_size: side.size };
        let sink = |number: u32, bytes: &[u8]| {
            // What a segment does not fill is nobody's.
            blocks.resize(place(u64::from(number) * segment.bytes()), [0; HASH]);
            blocks.extend(bytes.chunks(WHOLE).map(|block| {
                let mut hash = [0; HASH];
                hash.copy_from_slice(&blake3::hash(block).as_bytes()[..HASH]);
                hash
            }));
            Ok(())
        };
        let (index, _) = build(side.blob, options, &side.expected, Threads::One, sink)?;
        Ok(Self { index, blocks })
    }

    /// Calls for each member with a hash of all there is to it.
    fn members(
        self,
        mut each: impl FnMut(&Member, blake3::Hash) -> Result<(), CompareError>,
    ) -> Result<(), CompareError> {
        let Self { index, blocks } = self;
        Layer::open_with(index, |mut member, runs| {
            if is_added(&member.path) {
                return Ok(());
            }
            // Where it is in the tar is no matter.
            member.plain = 0;
            let mut sum = blake3::Hasher::new();
            let _ = write!(sum, "{member:?}"); // a hasher takes everything
            let whole = |payload| vec![Run { at: 0, payload, len: member.size() }];
            let runs = match runs {
                Runs::None => Vec::new(),
                Runs::Whole(payload) => whole(payload),
                Runs::Sparse(runs) => runs.into_vec(),
            };
            for run in runs {
                let _ = write!(sum, "{}+{}", run.at, run.len); // as above
                let own =
                    blocks.get(place(run.payload)..place(run.payload + run.len.next_multiple_of(BLOCK)));
                own.into_iter().flatten().for_each(|block| {
                    sum.update(block);
                });
            }
            each(&member, sum.finalize())
        })
        .map(drop)
    }
}

/// Returns which block an offset in payload space is in.
fn place(offset: u64) -> usize {
    usize::try_from(offset / BLOCK).unwrap_or(usize::MAX)
}
