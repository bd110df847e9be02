//! Payload space: where the bytes of a layer's files live, and how they are cut into segments and chunks.
//!
//! A pure function of the layer's tar. File payloads are placed in tar order, each at the next
//! [`limits::BLOCK`]; one that would straddle a segment begins the next segment, one longer than a segment
//! begins a segment. So a file of at most a segment is contiguous in one segment, and chunk cuts depend on
//! content alone: a file of [`limits::OWN_CHUNK`] or more has chunks of its own, cut every
//! [`limits::CHUNK`] (or segment, if that is smaller) from its start; smaller neighbours share chunks of at
//! most [`limits::SHARED_CHUNK`]. Everything between payloads reads as zeros.
//!
//! A sparse file occupies its blocks that hold data, packed in file order; the rest of such a block is zeros.

use crate::limits;

/// The size of a segment: a power of two in [`limits::SEGMENT_BITS`].
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SegmentSize(u8);

impl SegmentSize {
    /// 1 MiB.
    pub const DEFAULT: Self = Self(20);

    /// 8 MiB.
    const LARGEST: Self = Self(23);

    /// Returns the segment size of `1 << bits` bytes, or nothing where a limit forbids it.
    pub fn from_bits(bits: u8) -> Option<Self> {
        limits::SEGMENT_BITS.contains(&bits).then_some(Self(bits))
    }

    /// Returns the exponent.
    pub const fn bits(self) -> u8 {
        self.0
    }

    /// Returns the size in bytes.
    pub const fn bytes(self) -> u64 {
        1 << self.0
    }

    /// Makes something with segments of this size, or of larger ones while it `lacks` room: how much room the files of a layer
    /// take is known when all are placed. 8 MiB are enough for 128 GiB of files.
    pub fn enough<T, E>(
        self,
        lacks: impl Fn(&E) -> bool,
        make: impl Fn(Self) -> Result<T, E>,
    ) -> Result<T, E> {
        match make(self) {
            Err(error) if lacks(&error) && self < Self::LARGEST => {
                Self(self.0 + 2).min(Self::LARGEST).enough(lacks, make)
            }
            made => made,
        }
    }

    /// Returns the number of the segment that holds this payload offset.
    ///
    /// Fits: an offset is below [`limits::LAYER`] times two and a segment is at least 64 KiB.
    pub fn of(self, payload: u64) -> u32 {
        u32::try_from(payload >> self.0).unwrap_or(u32::MAX)
    }

    /// Returns the payload offset at which a segment begins.
    pub fn start(self, segment: u32) -> u64 {
        u64::from(segment) << self.0
    }
}

/// A run of payload that is contiguous in the tar and in payload space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// Offset in payload space.
    pub payload: u64,
    /// Offset in the layer's tar.
    pub plain: u64,
    /// Length in bytes, never zero.
    pub len: u64,
}

/// A run of a file that is contiguous in payload space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run {
    /// Offset in the file; a multiple of [`limits::BLOCK`].
    pub at: u64,
    /// Offset in payload space; a multiple of [`limits::BLOCK`].
    pub payload: u64,
    /// Length in bytes; only the last run of a file may end inside a block.
    pub len: u64,
}

/// A piece of data of a sparse file: `len` bytes at `at`, stored back to back in the tar.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Offset in the file.
    pub at: u64,
    /// Length in bytes.
    pub len: u64,
}

/// Where a chunk lies in payload space. Crosses the end of a segment only where [`Layout::cut_as`] has cut.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cut {
    /// Offset in payload space.
    pub start: u64,
    /// Length in bytes: 1..=[`limits::CHUNK`], or what [`Layout::cut_as`] was told. Trailing padding does not belong to a chunk.
    pub len: u32,
}

impl Cut {
    /// Returns the payload offset just after the chunk.
    pub fn end(&self) -> u64 {
        self.start + u64::from(self.len)
    }
}

/// The layout of a layer's payload space, built file by file in tar order.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    segment: SegmentSize,
    end: u64,
    extents: Vec<Extent>,
    cuts: Vec<Cut>,
    /// A run of small files that may still grow.
    open: Option<Cut>,
    /// Whether somebody else says where chunks end ([`Layout::cut_as`]).
    uncut: bool,
}

impl Layout {
    /// Returns the layout of a layer without files.
    pub fn new(segment: SegmentSize) -> Self {
        Self { segment, end: 0, extents: Vec::new(), cuts: Vec::new(), open: None, uncut: false }
    }

    /// Returns the layout of a layer without files whose chunks are not cut by their content: [`Layout::cut_as`] does.
    pub fn uncut(segment: SegmentSize) -> Self {
        Self { uncut: true, ..Self::new(segment) }
    }

    /// Places a file whose `len` payload bytes begin at `plain` in the tar; returns its payload offset.
    ///
    /// An empty file takes no room; its offset means nothing.
    pub fn file(&mut self, plain: u64, len: u64) -> u64 {
        if len == 0 {
            return self.end;
        }
        let start = self.claim(len);
        self.extents.push(Extent { payload: start, plain, len });
        start
    }

    /// Places a sparse file; its pieces are ascending and disjoint. Returns its runs in payload space.
    pub fn sparse(&mut self, plain: u64, pieces: &[Piece]) -> Vec<Run> {
        let mut runs: Vec<Run> = Vec::new();
        let mut packed = 0;
        // First in packed coordinates: a block that two pieces share is stored once.
        for piece in pieces.iter().filter(|p| p.len > 0) {
            let first = piece.at / limits::BLOCK * limits::BLOCK;
            let end = piece.at + piece.len;
            match runs.last_mut() {
                Some(run) if first <= round_up(run.at + run.len, limits::BLOCK) => run.len = end - run.at,
                last => {
                    if let Some(run) = last {
                        run.len = round_up(run.len, limits::BLOCK);
                        packed = run.payload + run.len;
                    }
                    runs.push(Run { at: first, payload: packed, len: end - first });
                }
            }
        }
        let Some(last) = runs.last() else { return runs };
        let start = self.claim(last.payload + last.len);
        runs.iter_mut().for_each(|run| run.payload += start);

        let (mut plain, mut run) = (plain, 0);
        for piece in pieces.iter().filter(|p| p.len > 0) {
            while runs[run].at + runs[run].len <= piece.at {
                run += 1;
            }
            let payload = runs[run].payload + (piece.at - runs[run].at);
            self.extents.push(Extent { payload, plain, len: piece.len });
            plain += piece.len;
        }
        runs
    }

    /// Returns the layout after the last file: from here on, [`Layout::cuts`] is complete.
    pub fn finish(&mut self) {
        self.cuts.extend(self.open.take());
    }

    /// Cuts the files into chunks of these lengths, one after the other; says whether each file ends with one and all are used.
    ///
    /// Unlike others such a chunk may cross the end of a segment.
    pub fn cut_as(&mut self, lens: impl IntoIterator<Item = u32>) -> bool {
        let mut lens = lens.into_iter();
        self.cuts.clear();
        for extent in &self.extents {
            let (mut start, end) = (extent.payload, extent.payload + extent.len);
            while start < end {
                match lens.next() {
                    Some(len) if len > 0 && u64::from(len) <= end - start => {
                        self.cuts.push(Cut { start, len });
                        start += u64::from(len);
                    }
                    _ => return false,
                }
            }
        }
        lens.next().is_none()
    }

    /// Returns the size of a segment.
    pub fn segment_size(&self) -> SegmentSize {
        self.segment
    }

    /// Returns how many bytes of payload space are taken.
    pub fn space(&self) -> u64 {
        self.end
    }

    /// Returns how many segments the layer has.
    pub fn segments(&self) -> u32 {
        self.segment.of(round_up(self.end, self.segment.bytes()))
    }

    /// Returns all extents, ascending in both coordinates.
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Returns the chunks that are complete, ascending.
    pub fn cuts(&self) -> &[Cut] {
        &self.cuts
    }

    /// Returns the extents that have a byte in a segment.
    pub fn extents_of(&self, segment: u32) -> &[Extent] {
        let (start, end) = (self.segment.start(segment), self.segment.start(segment) + self.segment.bytes());
        let first = self.extents.partition_point(|e| e.payload + e.len <= start);
        let past = self.extents.partition_point(|e| e.payload < end);
        &self.extents[first..past.max(first)]
    }

    /// Returns the range of chunk numbers that have a byte in a segment.
    pub fn cuts_of(&self, segment: u32) -> std::ops::Range<usize> {
        let (start, end) = (self.segment.start(segment), self.segment.start(segment) + self.segment.bytes());
        let first = self.cuts.partition_point(|c| c.end() <= start);
        first..self.cuts.partition_point(|c| c.start < end).max(first)
    }

    /// Returns the length of a whole segment's file: up to its last payload byte, in whole blocks.
    pub fn segment_len(&self, segment: u32) -> u64 {
        let start = self.segment.start(segment);
        let last = self.cuts[self.cuts_of(segment)].last();
        last.map_or(0, |cut| (round_up(cut.end(), limits::BLOCK) - start).min(self.segment.bytes()))
    }

    /// Returns the range of the tar that a segment needs: from its first payload byte to past its last.
    pub fn plain_of(&self, segment: u32) -> std::ops::Range<u64> {
        let (start, end) = (self.segment.start(segment), self.segment.start(segment) + self.segment.bytes());
        match self.extents_of(segment) {
            [] => 0..0,
            extents @ [first, ..] => {
                let last = &extents[extents.len() - 1];
                first.plain + start.saturating_sub(first.payload)
                    ..last.plain + (end - last.payload).min(last.len)
            }
        }
    }

    fn claim(&mut self, len: u64) -> u64 {
        let size = self.segment.bytes();
        let mut start = round_up(self.end, limits::BLOCK);
        if len > size || self.segment.of(start) != self.segment.of(start + len - 1) {
            start = round_up(start, size);
        }
        self.end = start + len;
        self.cut(start, len);
        start
    }

    fn cut(&mut self, start: u64, len: u64) {
        if self.uncut {
            return;
        }
        if len >= limits::OWN_CHUNK {
            self.cuts.extend(self.open.take());
            let step = u64::from(limits::CHUNK).min(self.segment.bytes());
            let mut at = start;
            while at < start + len {
                let n = step.min(start + len - at);
                self.cuts.push(Cut { start: at, len: small(n) });
                at += n;
            }
            return;
        }
        if let Some(open) = &mut self.open {
            let joined = start + len - open.start;
            if joined <= limits::SHARED_CHUNK
                && start == round_up(open.end(), limits::BLOCK)
                && self.segment.of(open.start) == self.segment.of(start)
            {
                open.len = small(joined);
                return;
            }
        }
        self.cuts.extend(self.open.replace(Cut { start, len: small(len) }));
    }
}

/// Returns the least multiple of a power of two that is not below `n`.
pub fn round_up(n: u64, power_of_two: u64) -> u64 {
    (n + power_of_two - 1) & !(power_of_two - 1)
}

/// A chunk's length: at most [`limits::CHUNK`] by construction.
fn small(n: u64) -> u32 {
    u32::try_from(n).unwrap_or(limits::CHUNK)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const SIZE: SegmentSize = SegmentSize(16);

    #[test]
    fn a_file_never_straddles_a_segment_unless_it_is_longer() {
        let mut layout = Layout::new(SIZE);
        assert_eq!(layout.file(512, 1), 0);
        assert_eq!(layout.file(1536, 60_000), 4096, "fits: ends at 64,096");
        assert_eq!(layout.file(70_000, 4096), 65_536, "would straddle");
        assert_eq!(layout.file(80_000, 65_537), 131_072, "longer: begins a segment");
        assert_eq!(layout.file(200_000, 10), 200_704, "goes on in the tail's segment");
        layout.finish();
        assert_eq!(layout.segments(), 4);
        assert_eq!(layout.segment_len(2), 65_536);
        assert_eq!(layout.segment_len(3), 8192);
        assert_eq!(layout.plain_of(2), 80_000..145_536);
        assert_eq!(layout.plain_of(3), 145_536..200_010);
    }

    #[test]
    fn small_neighbours_share_chunks_and_large_files_do_not() {
        let mut layout = Layout::new(SegmentSize::DEFAULT);
        layout.file(0, 100);
        layout.file(1024, 16_383);
        layout.file(20_000, 16_384);
        layout.file(40_000, 5);
        layout.finish();
        let cuts: Vec<_> = layout.cuts().iter().map(|c| (c.start, c.len)).collect();
        assert_eq!(cuts, [(0, 4096 + 16_383), (20_480, 16_384), (36_864, 5)]);
    }

    #[test]
    fn a_sparse_file_keeps_only_its_blocks() {
        let mut layout = Layout::new(SIZE);
        let pieces = [
            Piece { at: 100, len: 10 },
            Piece { at: 4000, len: 200 },
            Piece { at: 40_960, len: 4096 },
            Piece { at: 1 << 40, len: 7 },
        ];
        let runs = layout.sparse(1000, &pieces);
        assert_eq!(
            runs,
            [
                Run { at: 0, payload: 0, len: 8192 },
                Run { at: 40_960, payload: 8192, len: 4096 },
                Run { at: 1 << 40, payload: 12_288, len: 7 }
            ]
        );
        let extents: Vec<_> = layout.extents().iter().map(|e| (e.payload, e.plain, e.len)).collect();
        assert_eq!(extents, [(100, 1000, 10), (4000, 1010, 200), (8192, 1210, 4096), (12_288, 5306, 7)]);
    }

    proptest! {
        #[test]
        fn layouts_hold_their_invariants(files in prop::collection::vec((0u64..200_000, any::<bool>(), prop::collection::vec((0u64..9000, 1u64..9000), 0..6)), 0..60), bits in 16u8..=21) {
            let size = SegmentSize(bits);
            let mut layout = Layout::new(size);
            let mut plain = 0;
            for (len, sparse, gaps) in files {
                plain += 512;
                if sparse {
                    let mut at = 0;
                    let pieces: Vec<_> = gaps.iter().map(|&(gap, len)| { at += gap; let p = Piece { at, len }; at += len; p }).collect();
                    let stored: u64 = pieces.iter().map(|p| p.len).sum();
                    let runs = layout.sparse(plain, &pieces);
                    prop_assert!(runs.iter().all(|r| r.at % 4096 == 0 && r.payload % 4096 == 0));
                    for p in &pieces {
                        prop_assert!(runs.iter().any(|r| r.at <= p.at && p.at + p.len <= r.at + r.len));
                    }
                    plain += stored;
                } else {
                    layout.file(plain, len);
                    plain += len;
                }
                plain = round_up(plain, 512);
            }
            layout.finish();
            let mut end = 0;
            for e in layout.extents() {
                prop_assert!(e.payload >= end && e.len > 0);
                end = e.payload + e.len;
            }
            let mut covered = 0;
            for c in layout.cuts() {
                prop_assert!(c.start >= covered && c.len > 0 && c.len <= limits::CHUNK);
                prop_assert_eq!(size.of(c.start), size.of(c.end() - 1));
                covered = c.end();
            }
            for e in layout.extents() {
                let first = layout.cuts().partition_point(|c| c.end() <= e.payload);
                prop_assert!(layout.cuts()[first].start <= e.payload);
            }
            for n in 0..layout.segments() {
                prop_assert!(!layout.cuts_of(n).is_empty());
                prop_assert!(layout.segment_len(n) <= size.bytes());
                let plain = layout.plain_of(n);
                prop_assert!(plain.start < plain.end);
            }
        }
    }
}
