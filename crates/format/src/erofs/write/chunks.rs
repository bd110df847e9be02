//! Chunk indexes: the runs of a file as blocks of segment devices.

use zerocopy::little_endian::{U16, U32};

use super::inode::{Contents, Plan};
use super::{LayerDevices, WriteError};
use crate::erofs::disk::{BLOCK_BITS, CHUNK_BITS, CHUNK_INDEXES, ChunkIndex};
use crate::limits;
use crate::payload::Run;
use crate::tree::{File, Runs};

/// The segments of all layers under their device numbers.
pub(super) struct Devices<'a> {
    layers: &'a [LayerDevices],
    /// Device number of the first segment of each layer.
    first: Vec<u16>,
    count: u16,
}

/// Why a file has no chunk indexes.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// Runs that are unaligned, out of order, or not within segments.
    Runs,
    /// Too many of them.
    Chunks(u64),
}

impl Fault {
    /// Returns the error for a file at a path.
    pub(crate) fn at(self, path: String, file: &File) -> WriteError {
        match self {
            Self::Runs => WriteError::Runs { path, layer: file.layer.0 },
            Self::Chunks(chunks) => WriteError::Chunks { path, size: file.size, chunks },
        }
    }
}

/// The size and the number of the chunks of a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct ChunkPlan {
    /// `log2` of a chunk in blocks.
    pub(crate) bits: u32,
    /// How many indexes there are.
    pub(crate) count: usize,
}

impl ChunkPlan {
    /// Returns the plan with the largest chunks for a file of so many blocks, of which one begins at each bit of
    /// `borders`.
    pub(super) fn largest(blocks: u64, borders: u64) -> Result<Self, Fault> {
        let whole = blocks.next_power_of_two().trailing_zeros();
        // No border at all has 64 trailing zeros.
        let bits = borders.trailing_zeros().min(whole).min(CHUNK_BITS);
        let count = blocks.div_ceil(1 << bits);
        match usize::try_from(count) {
            Ok(n) if count <= limits::CHUNK_INDEXES => Ok(Self { bits, count: n }),
            _ => Err(Fault::Chunks(count)),
        }
    }

    /// Returns the chunk format, as an inode has it.
    pub(crate) fn format(self) -> u32 {
        CHUNK_INDEXES | self.bits
    }

    /// Returns how many bytes the indexes take.
    pub(crate) fn len(self) -> usize {
        self.count * size_of::<ChunkIndex>()
    }
}

/// Blocks of a file that lie next to each other on one device; all counts in blocks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    at: u64,
    count: u64,
    device: u16,
    block: u64,
}

impl<'a> Devices<'a> {
    /// Numbers the segments of layers, bottom first.
    pub(super) fn new(layers: &'a [LayerDevices]) -> Result<Self, WriteError> {
        let total: u64 = layers.iter().map(|layer| layer.lens.len() as u64).sum();
        if total > u64::from(limits::SEGMENTS) {
            return Err(WriteError::Segments(total));
        }
        let mut next = 1_u16;
        let mut first = Vec::with_capacity(layers.len());
        for layer in layers {
            first.push(next);
            next += u16::try_from(layer.lens.len()).map_err(|_| WriteError::Segments(total))?;
        }
        Ok(Self { layers, first, count: next - 1 })
    }

    /// Returns how many devices there are.
    pub(super) fn count(&self) -> u16 {
        self.count
    }

    /// Returns layer, segment number and length in blocks of each device, in order.
    pub(super) fn slots(&self) -> impl Iterator<Item = (&'a LayerDevices, u32, u32)> {
        self.layers.iter().flat_map(|layer| (0..).zip(&layer.lens).map(move |(n, &len)| (layer, n, len)))
    }

    /// Calls `see` with the pieces of a file, ascending, as long as they can be.
    fn pieces(&self, file: &File, mut see: impl FnMut(Piece)) -> Result<(), Fault> {
        // No kernel could tell such a size, and sums stay far from overflow.
        if file.size > i64::MAX.cast_unsigned() {
            return Err(Fault::Runs);
        }
        let whole;
        let runs = match &file.runs {
            Runs::None => &[][..],
            &Runs::Whole(payload) => {
                whole = [Run { at: 0, payload, len: file.size }];
                &whole
            }
            Runs::Sparse(runs) => runs,
        };
        let layer = self.layers.get(usize::from(file.layer.0));
        let mut last: Option<Piece> = None;
        let mut end = 0;
        for run in runs.iter().filter(|run| run.len > 0) {
            if run.at < end || run.at.checked_add(run.len).is_none_or(|end| end > file.size) {
                return Err(Fault::Runs);
            }
            end = (run.at + run.len).next_multiple_of(limits::BLOCK);
            let number = usize::from(file.layer.0);
            let (layer, first) = (layer.ok_or(Fault::Runs)?, self.first[number]);
            cut(layer, first, run, |piece| match &mut last {
                Some(last)
                    if last.device == piece.device
                        && last.at + last.count == piece.at
                        && last.block + last.count == piece.block =>
                {
                    last.count += piece.count;
                }
                _ => {
                    if let Some(done) = last.replace(piece) {
                        see(done);
                    }
                }
            })?;
        }
        if let Some(done) = last {
            see(done);
        }
        Ok(())
    }
}

impl Contents for Devices<'_> {
    const COMPACT: bool = true;

    /// The largest chunks that tell data and holes exactly.
    fn plan(&self, file: &File) -> Result<Plan, Fault> {
        if file.size == 0 {
            return Ok(Plan::Nothing);
        }
        let blocks = file.size.div_ceil(limits::BLOCK);
        // Where one thing ends and another begins, a chunk must begin too.
        let mut borders = 0;
        self.pieces(file, |piece| {
            borders |= piece.at;
            let end = piece.at + piece.count;
            if end < blocks {
                borders |= end;
            }
        })?;
        ChunkPlan::largest(blocks, borders).map(Plan::Chunks)
    }

    fn write(&self, file: &File, plan: ChunkPlan, out: &mut [ChunkIndex]) -> Result<(), Fault> {
        out.fill(ChunkIndex::HOLE);
        self.pieces(file, |piece| {
            for chunk in piece.at >> plan.bits..(piece.at + piece.count).div_ceil(1 << plan.bits) {
                let block = piece.block + ((chunk << plan.bits) - piece.at);
                // In range: the plan was made from the same pieces, and a segment has at most 2^18 blocks.
                if let (Ok(chunk), Ok(block)) = (usize::try_from(chunk), u32::try_from(block)) {
                    let device = U16::new(piece.device);
                    out[chunk] = ChunkIndex { block_high: U16::ZERO, device, block: U32::new(block) };
                }
            }
        })
    }
}

/// Cuts a run where segments end.
fn cut(layer: &LayerDevices, first: u16, run: &Run, mut see: impl FnMut(Piece)) -> Result<(), Fault> {
    let size = layer.segment.bytes();
    let space = layer.lens.len() as u64 * size;
    let aligned = run.at.is_multiple_of(limits::BLOCK) && run.payload.is_multiple_of(limits::BLOCK);
    if !aligned || run.payload.checked_add(run.len).is_none_or(|end| end > space) {
        return Err(Fault::Runs);
    }
    let (mut done, end) = (0, run.len.next_multiple_of(limits::BLOCK));
    while done < end {
        let payload = run.payload + done;
        let segment = layer.segment.of(payload);
        let offset = payload - layer.segment.start(segment);
        let len = (size - offset).min(end - done);
        // There are no more segments than devices, and those are numbered in 16 bits.
        let number = u16::try_from(segment).map_err(|_| Fault::Runs)?;
        let (block, count) = (offset >> BLOCK_BITS, len >> BLOCK_BITS);
        if block + count > u64::from(layer.lens[usize::from(number)]) {
            return Err(Fault::Runs);
        }
        see(Piece { at: (run.at + done) >> BLOCK_BITS, count, device: first + number, block });
        done += len;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::IndexId;
    use crate::payload::{Layout, Piece, SegmentSize};
    use crate::tree::LayerNo;

    const BLOCK: u64 = limits::BLOCK;

    /// Two layers: one segment of 64 KiB, then four of which the last has 3 blocks.
    fn layers() -> [LayerDevices; 2] {
        let index = IndexId::from_bytes([7; 32]);
        let segment = SegmentSize::from_bits(16).unwrap();
        [
            LayerDevices { index, segment, lens: vec![16] },
            LayerDevices { index, segment, lens: vec![16, 16, 16, 3] },
        ]
    }

    fn indexes(size: u64, runs: Runs) -> Result<(u32, Vec<(u16, u32)>), Fault> {
        let layers = layers();
        let devices = Devices::new(&layers).unwrap();
        let file = File { size, layer: LayerNo(1), runs };
        let Plan::Chunks(plan) = devices.plan(&file)? else { panic!("no chunks") };
        let mut out = vec![ChunkIndex::HOLE; plan.count];
        devices.write(&file, plan, &mut out)?;
        Ok((plan.bits, out.iter().map(|i| (i.device.get(), i.block.get())).collect()))
    }

    fn sparse(runs: &[(u64, u64, u64)]) -> Runs {
        Runs::Sparse(
            runs.iter()
                .map(|&(at, payload, len)| Run { at: at * BLOCK, payload: payload * BLOCK, len })
                .collect(),
        )
    }

    const HOLE: (u16, u32) = (0, u32::MAX);

    #[test]
    fn a_file_of_one_run_has_one_index() {
        for (size, bits) in [(1, 0), (4095, 0), (4096, 0), (4097, 1), (8193, 2), (65_535, 4), (65_536, 4)] {
            assert_eq!(indexes(size, Runs::Whole(65_536)), Ok((bits, vec![(3, 0)])), "{size}");
        }
        assert_eq!(indexes(5000, Runs::Whole(3 * 65_536 + 4096)), Ok((1, vec![(5, 1)])));
    }

    #[test]
    fn a_longer_file_has_one_index_per_segment() {
        assert_eq!(indexes(65_537, Runs::Whole(65_536)), Ok((4, vec![(3, 0), (4, 0)])));
        assert_eq!(indexes(3 * 65_536 + 5, Runs::Whole(0)), Ok((4, vec![(2, 0), (3, 0), (4, 0), (5, 0)])));
    }

    #[test]
    fn sparse_files_have_the_largest_chunks_that_tell_the_truth() {
        assert_eq!(indexes(1, Runs::None), Ok((0, vec![HOLE])));
        assert_eq!(indexes(1 << 43, Runs::None), Ok((31, vec![HOLE])), "8 TiB, the largest chunk");
        assert_eq!(indexes((1 << 43) + 1, Runs::None), Ok((31, vec![HOLE, HOLE])));
        // Data at the end: block 8 of 9.
        assert_eq!(indexes(8 * BLOCK + 7, sparse(&[(8, 2, 7)])), Ok((3, vec![HOLE, (2, 2)])));
        // Data, hole to the end.
        assert_eq!(indexes(1 << 20, sparse(&[(0, 5, 4 * BLOCK)])).unwrap().0, 2);
        // Runs that touch in file and payload are one.
        assert_eq!(
            indexes(8 * BLOCK, sparse(&[(0, 0, 3 * BLOCK), (3, 3, 5 * BLOCK)])),
            Ok((3, vec![(2, 0)]))
        );
        // A run across segments at an odd place.
        assert_eq!(
            indexes(7 * BLOCK, sparse(&[(1, 15, 2 * BLOCK), (6, 17, 9)])),
            Ok((0, vec![HOLE, (2, 15), (3, 0), HOLE, HOLE, HOLE, (3, 1)]))
        );
        assert_eq!(
            indexes(8 * BLOCK, sparse(&[(2, 14, 4 * BLOCK)])),
            Ok((1, vec![HOLE, (2, 14), (3, 0), HOLE]))
        );
    }

    #[test]
    fn runs_outside_their_segments_are_refused() {
        let space = 3 * 65_536 + 3 * BLOCK;
        assert!(indexes(3 * BLOCK, Runs::Whole(space - 3 * BLOCK)).is_ok());
        for (size, runs) in [
            (1, Runs::Whole(1)),
            (1, Runs::Whole(space)),
            (3 * BLOCK + 1, Runs::Whole(space - 3 * BLOCK)),
            (1, Runs::Whole(u64::MAX / BLOCK * BLOCK)),
            (u64::MAX, Runs::Whole(0)),
            (BLOCK, sparse(&[(0, 0, BLOCK + 1)])),
            (9 * BLOCK, sparse(&[(3, 0, BLOCK), (3, 1, BLOCK)])),
            (9 * BLOCK, sparse(&[(3, 0, 5), (3, 1, BLOCK)])),
        ] {
            assert_eq!(indexes(size, runs.clone()), Err(Fault::Runs), "{size} {runs:?}");
        }
    }

    #[test]
    fn indexes_have_a_limit() {
        let size = (limits::CHUNK_INDEXES + 1) * BLOCK;
        assert_eq!(indexes(size, sparse(&[(1, 0, 1)])), Err(Fault::Chunks(limits::CHUNK_INDEXES + 1)));
        assert!(indexes(size - 1 - BLOCK, sparse(&[(1, 0, 1)])).is_ok());
    }

    #[test]
    fn devices_have_a_limit() {
        let [mut layer, _] = layers();
        layer.lens = vec![1; limits::SEGMENTS as usize / 2];
        let two = [layer.clone(), layer];
        assert_eq!(Devices::new(&two).map(|d| d.count()).ok(), Some(16_384));
        let mut three = two.to_vec();
        three.push(layers()[0].clone());
        assert_eq!(Devices::new(&three).err(), Some(WriteError::Segments(16_385)));
    }

    proptest! {
        /// Against a map of single blocks, and against the next larger chunk.
        #[test]
        fn every_block_is_where_the_runs_say(pieces in prop::collection::vec((0_u64..40, 1_u64..20_000), 0..8), rest in 0_u64..100_000) {
            let mut layout = Layout::new(SegmentSize::from_bits(16).unwrap());
            layout.file(0, 5000);
            let mut at = 0;
            let pieces: Vec<_> = pieces
                .iter()
                .map(|&(gap, len)| {
                    at += gap * 4096;
                    let piece = Piece { at, len };
                    at += len;
                    piece
                })
                .collect();
            let runs = layout.sparse(10_000, &pieces);
            layout.finish();
            let lens = (0..layout.segments()).map(|n| u32::try_from(layout.segment_len(n) / BLOCK).unwrap());
            let index = IndexId::from_bytes([0; 32]);
            let layers = [LayerDevices { index, segment: layout.segment_size(), lens: lens.collect() }];
            let devices = Devices::new(&layers).unwrap();
            let file = File { size: at + rest + 1, layer: LayerNo(0), runs: Runs::Sparse(runs.clone().into()) };

            let blocks = file.size.div_ceil(BLOCK);
            let mut model = vec![None; usize::try_from(blocks).unwrap()];
            for run in &runs {
                for n in 0..run.len.div_ceil(BLOCK) {
                    let payload = run.payload + n * BLOCK;
                    model[usize::try_from(run.at / BLOCK + n).unwrap()] = Some((payload / 65_536 + 1, payload % 65_536 / BLOCK));
                }
            }
            let Plan::Chunks(plan) = devices.plan(&file).unwrap() else { panic!("no chunks") };
            let mut out = vec![ChunkIndex::HOLE; plan.count];
            devices.write(&file, plan, &mut out).unwrap();
            let mut shown = Vec::new();
            for index in &out {
                for n in 0..1_u64 << plan.bits {
                    let hole = index.block.get() == HOLE.1;
                    shown.push((!hole).then(|| (u64::from(index.device.get()), u64::from(index.block.get()) + n)));
                }
            }
            shown.truncate(model.len());
            prop_assert_eq!(&shown, &model);

            if plan.count > 1 {
                let exact = model.chunks(2 << plan.bits).all(|chunk| {
                    (0..).zip(chunk).all(|(n, block)| *block == chunk[0].map(|(device, first)| (device, first + n)))
                });
                prop_assert!(!exact, "larger chunks would have done");
            }
        }
    }
}
