//! A layer index that has been checked against its own skeleton.
//!
//! An [`Index`] is a claim whose parts have the right lengths. [`Layer::open`] reads the skeleton once and holds
//! the claim against it: the tar's length, the layout of its files and the cut positions of every chunk must be
//! those the facts state, and every start must lie before what it is to decode. From then on numbers of
//! segments and chunks can be used without doubt. What the bytes are is for [`crate::decode`] to check.
//!
//! A layer that is read by a table of contents of its own ([`Basis::Contents`]) is the same but for two things. Its
//! chunks are pieces of files, so one can reach over the end of a segment: the segments that a piece longer than a
//! segment ties together are one span. And the tar it is held against is one that was made of the table, so no diffID
//! comes of it.

use std::ops::Range;

use crate::digest::{ChunkId, Digest, IndexId};
use crate::index::{Basis, Chunk, Contents, Facts, Hash, Index, Packing, Part, Piece, Source};
use crate::limits;
use crate::payload::Layout;
use crate::skeleton::{SkeletonError, SkeletonReader};
use crate::tar::{Member, Parser, Placer, SpaceError, Step, TarError};
use crate::tree::Runs;

/// Why an index contradicts itself.
#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    /// The skeleton is not the one the facts name.
    #[error("reading the skeleton of a layer index")]
    Skeleton(#[from] SkeletonError),
    /// The skeleton is not that of a tar we accept.
    #[error("the skeleton of a layer index is not a tar's")]
    Tar(#[from] TarError),
    /// The files take more room than any layer may.
    #[error("the skeleton of a layer index describes too much")]
    Space(#[from] SpaceError),
    /// Skeleton and tables describe different layers.
    #[error("a layer index contradicts its skeleton: {0}")]
    Contradiction(&'static str),
}

/// Segment `segment` is not what the index says: chunk `chunk`, or the padding after it, is wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("segment {segment} is corrupt at chunk {chunk}")]
pub struct Corrupt {
    /// The segment.
    pub segment: u32,
    /// The number of the chunk in the layer.
    pub chunk: u32,
}

/// The segments that share a start: the unit of decoding.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Span {
    /// The segments.
    pub segments: Range<u32>,
    /// What holds them all, from the start on.
    pub parts: Vec<Part>,
}

/// A layer index checked against its own skeleton.
#[derive(Debug, PartialEq, Eq)]
pub struct Layer {
    index: Index,
    id: IndexId,
    layout: Layout,
    /// The first segment of each group that is fetched together; empty if the table of starts says so.
    groups: Vec<u32>,
    /// Whether each segment can be checked by itself.
    tells: bool,
}

impl Layer {
    /// Returns the checked layer.
    pub fn open(index: Index) -> Result<Self, LayerError> {
        Self::open_with(index, |_, _| Ok(()))
    }

    /// Returns the checked layer and shows each member and the place of its bytes on the way, in tar order.
    ///
    /// What was shown counts only if this succeeds.
    pub fn open_with<E: From<LayerError>>(
        index: Index,
        each: impl FnMut(Member, Runs) -> Result<(), E>,
    ) -> Result<Self, E> {
        let reader = index.read_skeleton().map_err(LayerError::from)?;
        let (layout, tar_len) = read_skeleton(&index, reader, each)?;
        Ok(Self::made(index, layout, tar_len)?)
    }

    /// Returns the checked layer of an index whose skeleton has this layout, and is that of a tar of this length.
    pub(crate) fn made(index: Index, mut layout: Layout, tar_len: u64) -> Result<Self, LayerError> {
        let mut groups = Vec::new();
        if index.facts().basis == Basis::Contents {
            if !layout.cut_as(index.chunks().iter().map(|chunk| chunk.len)) {
                return Err(LayerError::Contradiction("the pieces of its files"));
            }
            groups = match &index.source().contents {
                Some(Contents { hash: Hash::Sealed, pieces, .. }) => together(&layout, pieces),
                _ => tied(&layout),
            };
        }
        let mut layer = Self { id: index.id(), layout, index, groups, tells: true };
        layer.tells = layer.is_of_tar() || layer.hash() == Hash::Blake3 && ends_with_segments(&layer.layout);
        layer.check(tar_len)?;
        Ok(layer)
    }

    /// Returns the identity of the index.
    pub fn id(&self) -> IndexId {
        self.id
    }

    /// Returns the index.
    pub fn index(&self) -> &Index {
        &self.index
    }

    /// Returns what the index says about the layer's plain bytes.
    pub fn facts(&self) -> &Facts {
        self.index.facts()
    }

    /// Returns the decoder table.
    pub fn source(&self) -> &Source {
        self.index.source()
    }

    /// Returns where the files lie in payload space.
    pub fn layout(&self) -> &Layout {
        &self.layout
    }

    /// Returns the number of segments.
    pub fn segments(&self) -> u32 {
        self.layout.segments()
    }

    /// Returns the length of a whole segment, in whole blocks; 0 for a segment that does not exist.
    pub fn segment_len(&self, segment: u32) -> u64 {
        if segment < self.segments() { self.layout.segment_len(segment) } else { 0 }
    }

    /// Returns the lengths of all segments in blocks: what a metadata image says of its devices.
    pub fn segment_blocks(&self) -> Vec<u32> {
        // A segment is at most 1 GiB.
        let blocks = |n| u32::try_from(self.layout.segment_len(n) / limits::BLOCK).unwrap_or(u32::MAX);
        (0..self.segments()).map(blocks).collect()
    }

    /// Returns where its pieces are, of a layer that is read by a table of contents.
    pub(crate) fn pieces(&self) -> Option<&[Piece]> {
        self.source().contents.as_ref().map(|contents| &contents.pieces[..])
    }

    /// Returns whether the layer can be proved: not where a table of contents tells.
    pub fn is_of_tar(&self) -> bool {
        self.facts().basis == Basis::Tar
    }

    /// Returns whether a segment can be checked by itself: not where chunks reach over the ends of segments, or are hashed otherwise.
    pub fn tells(&self) -> bool {
        self.tells
    }

    /// Returns what its chunks are hashed by.
    pub fn hash(&self) -> Hash {
        self.source().contents.as_ref().map_or(Hash::Blake3, |contents| contents.hash)
    }

    /// Returns the span a segment belongs to, or nothing for a segment that does not exist.
    pub fn span(&self, segment: u32) -> Option<Span> {
        if self.pieces().is_some() {
            let after = self.groups.partition_point(|first| *first <= segment);
            let first = *self.groups.get(after.checked_sub(1)?)?;
            let past = self.groups.get(after).copied().unwrap_or(self.segments());
            let parts = (segment < past).then(|| self.parts(first..past))??;
            return Some(Span { segments: first..past, parts });
        }
        let reach = &self.source().reach;
        let start = reach.get(segment as usize)?.start;
        let first = reach.partition_point(|r| r.start < start);
        let past = reach.partition_point(|r| r.start <= start);
        let parts = self.parts(number(first)..number(past))?;
        Some(Span { segments: number(first)..number(past), parts })
    }

    /// Returns what is needed to decode these segments, in the order in which it is needed: one part but where a table
    /// of contents has them in several places. Nothing for no segment, or one that does not exist.
    pub fn parts(&self, segments: Range<u32>) -> Option<Vec<Part>> {
        match &self.source().contents {
            Some(contents) => Some(contents.parts(self.chunks_of(segments)?, self.index.chunks())),
            None => Some(vec![Part { blob: 0, range: self.packed(segments)?, chunks: 0 }]),
        }
    }

    /// Returns how many bytes a decoder of these segments holds at most of what comes out whole or not at all: the longest
    /// chunk, and beside it what it comes out of where that is held, too. 0 of a layer that has starts.
    pub fn holds(&self, segments: Range<u32>) -> u64 {
        let Some((pieces, mut chunks)) = self.pieces().zip(self.chunks_of(segments)) else { return 0 };
        if self.hash() == Hash::Sealed {
            chunks = self.of_spans(chunks);
        }
        let of = |(piece, chunk): (&Piece, &Chunk)| {
            let whole = self.hash() == Hash::Sealed || piece.packing == Packing::Lz4;
            u64::from(chunk.len) + if whole { piece.end - piece.begin } else { 0 }
        };
        pieces[chunks.clone()].iter().zip(&self.index.chunks()[chunks]).map(of).max().unwrap_or(0)
    }

    /// Returns what is needed to decode these chunks of a layer that has a table of contents.
    pub(crate) fn parts_of(&self, chunks: Range<usize>) -> Vec<Part> {
        let contents = self.source().contents.as_ref();
        contents.map_or_else(Vec::new, |contents| contents.parts(chunks, self.index.chunks()))
    }

    /// Returns these chunks, and all others of the ranges of the blob that they come out of.
    pub(crate) fn of_spans(&self, chunks: Range<usize>) -> Range<usize> {
        let Some(pieces) = self.pieces().filter(|pieces| chunks.end <= pieces.len()) else { return chunks };
        let same = |a: &Piece, b: &Piece| (a.blob, a.begin) == (b.blob, b.begin);
        let (before, from) = pieces.split_at(chunks.start);
        let first =
            from.first().map_or(0, |first| before.iter().rev().take_while(|p| same(p, first)).count());
        let (until, behind) = pieces.split_at(chunks.end);
        let last = until.last().map_or(0, |last| behind.iter().take_while(|p| same(p, last)).count());
        chunks.start - first..chunks.end + last
    }

    /// Returns the blob that a segment's bytes are in, or those of one of its chunks.
    pub fn blob_of(&self, segment: u32, chunk: Option<u32>) -> Digest {
        let piece = chunk.and_then(|chunk| self.pieces()?.get(chunk as usize));
        let part = || self.parts(segment..segment.saturating_add(1))?.first().map(|part| part.blob);
        let number = piece.map(|piece| piece.blob).or_else(part);
        number.and_then(|number| self.source().blob_at(number)).map_or(self.source().blob, |blob| blob.digest)
    }

    /// Returns the part of the blob needed to decode these segments of a layer that has starts: from the start of the
    /// first one's span to where the last byte of the last one is out. Nothing for no segment, or one that does not exist.
    pub fn packed(&self, segments: Range<u32>) -> Option<Range<u64>> {
        let source = self.source();
        let first = source.reach.get(segments.start as usize)?;
        let last = source.reach.get(segments.end.checked_sub(1)? as usize)?;
        let begin = source.starts.get(first.start as usize)?.packed;
        (segments.start < segments.end).then_some(begin..last.packed_end)
    }

    /// Returns the chunks that have a byte in these segments, at least one; nothing for no segment, or one that does
    /// not exist.
    pub fn chunks_of(&self, segments: Range<u32>) -> Option<Range<usize>> {
        let last = segments.end.checked_sub(1).filter(|last| *last < self.segments())?;
        let chunks = self.layout.cuts_of(segments.start).start..self.layout.cuts_of(last).end;
        (segments.start <= last && !chunks.is_empty()).then_some(chunks)
    }

    /// Checks a segment that is on this node already: every chunk, and that all else in it is zero.
    ///
    /// Nothing passes of a layer that does not [tell](Self::tells).
    pub fn verify_segment(&self, segment: u32, bytes: &[u8]) -> Result<(), Corrupt> {
        let there = segment < self.segments() && self.tells;
        let chunks = if there { self.layout.cuts_of(segment) } else { 0..0 };
        let base = self.layout.segment_size().start(segment);
        let mut at = 0;
        for chunk in chunks.clone() {
            let corrupt = Corrupt { segment, chunk: number(chunk) };
            let cut = self.layout.cuts()[chunk];
            let (start, end) = (within(cut.start - base), within(cut.end() - base));
            let gap = bytes.get(at..start).ok_or(corrupt)?;
            let body = bytes.get(start..end).ok_or(corrupt)?;
            if gap.iter().any(|b| *b != 0) || ChunkId::of(body) != self.index.chunks()[chunk].id {
                return Err(corrupt);
            }
            at = end;
        }
        let tail = Corrupt { segment, chunk: number(chunks.end.saturating_sub(1)) };
        let whole = bytes.len() as u64 == self.segment_len(segment) && !chunks.is_empty();
        if whole && bytes[at..].iter().all(|b| *b == 0) { Ok(()) } else { Err(tail) }
    }

    /// Shows each member and the place of its bytes, in tar order, as [`Layer::open_with`] does.
    pub fn members<E: From<LayerError>>(
        &self,
        each: impl FnMut(Member, Runs) -> Result<(), E>,
    ) -> Result<(), E> {
        let reader = self.index.read_skeleton().map_err(LayerError::from)?;
        read_skeleton(&self.index, reader.known(), each).map(drop)
    }

    fn check(&self, tar_len: u64) -> Result<(), LayerError> {
        let facts = self.facts();
        let wrong = |what| Err(LayerError::Contradiction(what));
        if tar_len != facts.tar_len {
            return wrong("the length of the tar");
        }
        if self.layout.space() != facts.space {
            return wrong("the length of the payload space");
        }
        let (cuts, chunks) = (self.layout.cuts(), self.index.chunks());
        if cuts.len() != chunks.len() || cuts.iter().zip(chunks).any(|(cut, chunk)| cut.len != chunk.len) {
            return wrong("the cuts of its chunks");
        }
        let source = self.source();
        if source.contents.is_some() {
            return Ok(()); // `tied` and `Contents::check` have looked
        }
        for segment in 0..self.segments() {
            // As many entries as segments, each naming a start: checked when the index was made.
            let reach = source.reach[segment as usize];
            if source.starts[reach.start as usize].plain > self.layout.plain_of(segment).start {
                return wrong("a segment's start lies after its first byte");
            }
        }
        Ok(())
    }
}

/// Reads the whole skeleton; returns the layout of the files and the length of the tar.
fn read_skeleton<E: From<LayerError>>(
    index: &Index,
    mut reader: SkeletonReader<'_>,
    mut each: impl FnMut(Member, Runs) -> Result<(), E>,
) -> Result<(Layout, u64), E> {
    let mut parser = Parser::new();
    let segment = index.facts().segment;
    let (mut placer, longest) = match index.facts().basis {
        Basis::Tar => (Placer::new(segment), segment.bytes().min(limits::CHUNK.into())),
        Basis::Contents => (Placer::uncut(segment), limits::PIECE.into()),
    };
    while let Some(mut piece) = reader.chunk().map_err(LayerError::from)? {
        while !piece.is_empty() {
            let (taken, step) = parser.step(piece).map_err(LayerError::from)?;
            piece = &piece[taken..];
            if let Step::Member(member) = step {
                // Before there is a cut for each of its chunks: there must be as many in the table.
                let cuts = placer.layout().cuts().len() as u64 + member.payload / longest;
                if cuts > u64::from(index.facts().chunk_count) {
                    return Err(LayerError::Contradiction("the cuts of its chunks").into());
                }
                let runs = placer.member(&member).map_err(LayerError::from)?;
                each(member, runs)?;
            }
        }
    }
    parser.finish().map_err(LayerError::from)?;
    let tar_len = parser.plain();
    Ok((placer.finish(), tar_len))
}

/// Says whether no chunk reaches over the end of a segment.
fn ends_with_segments(layout: &Layout) -> bool {
    let size = layout.segment_size();
    layout.cuts().iter().all(|cut| size.of(cut.start) == size.of(cut.end() - 1))
}

/// Returns the first segment of each group: those that a chunk longer than a segment reaches into stay together, up to
/// [`limits::GROUP`]. Shorter ones that cross an end are decoded for either segment.
fn tied(layout: &Layout) -> Vec<u32> {
    let (size, cuts) = (layout.segment_size(), layout.cuts());
    let mut groups: Vec<u32> = Vec::new();
    for segment in 0..layout.segments() {
        let start = size.start(segment);
        // The last chunk that begins before the segment.
        let before = cuts.partition_point(|cut| cut.start < start).checked_sub(1).map(|n| cuts[n]);
        let ties = before.is_some_and(|cut| cut.end() > start && u64::from(cut.len) > size.bytes());
        match groups.last() {
            Some(first) if ties && segment - first < limits::GROUP => {}
            _ => groups.push(segment),
        }
    }
    groups
}

/// Returns the first segment of each group where ranges of the blob are hashed and not chunks: whoever has one of those has
/// all segments that lie in it, up to [`limits::GROUP`]. A segment that lies in several is a group of its own.
fn together(layout: &Layout, pieces: &[Piece]) -> Vec<u32> {
    let mut groups: Vec<u32> = Vec::new();
    let mut last = None;
    for segment in 0..layout.segments() {
        let pieces = &pieces[layout.cuts_of(segment)];
        let one = pieces.first().zip(pieces.last()).filter(|(first, last)| first.begin == last.begin);
        let lies_in = one.map(|(piece, _)| piece.begin);
        match groups.last() {
            Some(first) if lies_in.is_some() && lies_in == last && segment - first < limits::GROUP => {}
            _ => groups.push(segment),
        }
        last = lies_in;
    }
    groups
}

/// Chunks and segments are counted in 32 bits: the index's tables were bounded when it was made.
fn number(n: usize) -> u32 {
    u32::try_from(n).unwrap_or(u32::MAX)
}

/// Offsets inside a segment: at most 1 GiB.
fn within(offset: u64) -> usize {
    usize::try_from(offset).unwrap_or(usize::MAX)
}
