//! Whether two files hold the same bytes, by what the indexes of their layers say.

use std::ops::Range;

use super::Side;
use crate::digest::{ChunkId, IndexId};
use crate::erofs::read::{Corrupt, Inode, Piece, Pieces, Source};
use crate::index::Chunk;
use crate::layer::Layer;
use crate::payload::{Cut, SegmentSize};

/// What the index of a layer says of its payload.
#[derive(Debug, Clone, Copy)]
pub struct Table<'a> {
    segment: SegmentSize,
    cuts: &'a [Cut],
    chunks: &'a [Chunk],
}

impl<'a> Table<'a> {
    /// Returns the table of these parts: the chunks, and where each of them is.
    pub fn new(segment: SegmentSize, cuts: &'a [Cut], chunks: &'a [Chunk]) -> Self {
        Self { segment, cuts, chunks }
    }

    /// Returns the chunks, in payload order.
    pub fn chunks(self) -> &'a [Chunk] {
        self.chunks
    }

    /// Returns the chunk that covers a place in a segment.
    fn at(&self, segment: u32, offset: u64) -> Option<Spot> {
        let payload = self.segment.start(segment) + offset;
        let number = self.cuts.partition_point(|cut| cut.end() <= payload);
        let cut = self.cuts.get(number)?;
        let into = payload.checked_sub(cut.start)?;
        let id = self.chunks.get(number)?.id;
        Some(Spot { id, into, left: u64::from(cut.len) - into })
    }
}

impl<'a> From<&'a Layer> for Table<'a> {
    fn from(layer: &'a Layer) -> Self {
        Self::new(layer.facts().segment, layer.layout().cuts(), layer.index().chunks())
    }
}

/// A place in a chunk.
#[derive(Debug, Clone, Copy)]
struct Spot {
    id: ChunkId,
    /// Bytes of the chunk before it.
    into: u64,
    /// Bytes of the chunk from it on.
    left: u64,
}

/// What the next bytes of a file are.
#[derive(Debug, Clone, Copy)]
enum Next {
    /// Zeros that nobody keeps.
    Hole,
    /// What is there in a segment of a layer, and the chunk it belongs to.
    Place((IndexId, u32, u64), Option<Spot>),
}

/// Returns the ranges that may differ, neighbours joined; nothing if the files differ for certain.
pub(super) fn unsure<B: AsRef<[u8]>>(
    first: &Side<'_, B>,
    a: &Inode,
    second: &Side<'_, B>,
    b: &Inode,
) -> Result<Option<Vec<Range<u64>>>, Corrupt> {
    if a.size != b.size {
        return Ok(None);
    }
    let (mut left, mut right) = (Reader::new(first, a)?, Reader::new(second, b)?);
    let mut unsure: Vec<Range<u64>> = Vec::new();
    let mut at = 0;
    while at < a.size {
        let ((a_len, a_next), (b_len, b_next)) = (left.next()?, right.next()?);
        let most = a_len.min(b_len);
        let (len, verdict) = judge(a_next, b_next, most);
        match verdict {
            Verdict::Same => {}
            Verdict::Different => return Ok(None),
            Verdict::Unsure => match unsure.last_mut() {
                Some(last) if last.end == at => last.end += len,
                _ => unsure.push(at..at + len),
            },
        }
        left.skip(len);
        right.skip(len);
        at += len;
    }
    Ok(Some(unsure))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Same,
    Different,
    Unsure,
}

/// Returns what is known of the next bytes of two files, and of how many; of at most `most`, which is not 0.
fn judge(a: Next, b: Next, most: u64) -> (u64, Verdict) {
    let (a, b) = match (a, b) {
        (Next::Hole, Next::Hole) => return (most, Verdict::Same),
        (Next::Place(a, _), Next::Place(b, _)) if a == b => return (most, Verdict::Same),
        (Next::Place(_, Some(a)), Next::Place(_, Some(b))) => (a, b),
        // Zeros that were written and zeros that were not are equal.
        _ => return (most, Verdict::Unsure),
    };
    let len = most.min(a.left).min(b.left);
    if a.id == b.id && a.into == b.into {
        return (len, Verdict::Same);
    }
    // Both files hold the chunk whole: bytes of one length whose hashes differ.
    let whole = a.into == 0 && b.into == 0 && a.left == b.left && a.left == len;
    (len, if whole { Verdict::Different } else { Verdict::Unsure })
}

/// Goes through a file piece by piece.
struct Reader<'s, 'a, B> {
    side: &'s Side<'a, B>,
    inode: Inode,
    pieces: Pieces<'a, B>,
    piece: Option<Piece>,
}

impl<'s, 'a, B: AsRef<[u8]>> Reader<'s, 'a, B> {
    fn new(side: &'s Side<'a, B>, inode: &Inode) -> Result<Self, Corrupt> {
        let pieces = side.image.pieces(inode, 0, inode.size)?;
        Ok(Self { side, inode: *inode, pieces, piece: None })
    }

    /// Returns how many bytes come from one place, and which.
    fn next(&mut self) -> Result<(u64, Next), Corrupt> {
        let damaged = |what| Corrupt { nid: self.inode.nid, what };
        let piece = match self.piece {
            Some(piece) => piece,
            None => self.pieces.next().ok_or(damaged("contents that end early"))??,
        };
        self.piece = Some(piece);
        let Source::Device { number, offset } = piece.source else { return Ok((piece.len, Next::Hole)) };
        let device = self.side.image.device(number).ok_or(damaged("contents on an unknown device"))?;
        let spot = self.side.tables.get(&device.index).and_then(|table| table.at(device.segment, offset));
        Ok((piece.len, Next::Place((device.index, device.segment, offset), spot)))
    }

    fn skip(&mut self, len: u64) {
        if let Some(piece) = &mut self.piece {
            piece.len -= len.min(piece.len);
            if let Source::Device { offset, .. } = &mut piece.source {
                *offset += len;
            }
        }
        self.piece = self.piece.filter(|piece| piece.len > 0);
    }
}
