//! Where the bytes of a file are: ranges of devices, and holes.

use zerocopy::FromBytes;
use zerocopy::little_endian::{U16, U32};

use super::super::disk::{self, ChunkIndex, layout};
use super::{Corrupt, Image, Inode, Kind};
use crate::limits;

/// Where a run of a file's bytes is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Source {
    /// Nowhere: zeros.
    Hole,
    /// On a device; the range lies inside it.
    Device {
        /// Number of the device, from 1; 0 is the image of a layer itself, if it is one.
        number: u16,
        /// First byte.
        offset: u64,
    },
}

/// A run of a file's bytes that lie together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Piece {
    /// Length in bytes, not 0.
    pub len: u64,
    /// Where they are.
    pub source: Source,
}

/// The pieces of a range of a file, in order; ends at the first error.
#[derive(Debug)]
pub struct Pieces<'a, B> {
    image: &'a Image<B>,
    inode: Inode,
    at: u64,
    end: u64,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Returns where a range of a file is; what is past the file's end is left out.
    ///
    /// Neighbouring chunks that lie together on their device are one piece.
    pub fn pieces(&self, inode: &Inode, offset: u64, len: u64) -> Result<Pieces<'_, B>, Corrupt> {
        if inode.kind != Kind::File {
            return Err(inode.corrupt("not a regular file"));
        }
        let end = offset.saturating_add(len).min(inode.size);
        let here = matches!(inode.layout, layout::PLAIN | layout::INLINE) && self.whole.is_some();
        if offset < end && !here {
            if matches!(inode.layout, layout::PACKED | layout::PACKED_COMPACT) {
                return Err(inode.corrupt("compressed file, which is not read"));
            }
            if inode.layout != layout::CHUNKED {
                return Err(inode.corrupt("file whose bytes are in the image"));
            }
            // Of the 16 bits of the chunk format the upper ones are reserved and the lower ones hold the size. The short form knows
            // no devices.
            match inode.payload & !disk::CHUNK_BITS {
                disk::CHUNK_INDEXES => {}
                0 if self.whole.is_some() => {}
                _ => return Err(inode.corrupt("unknown chunk format")),
            }
        }
        Ok(Pieces { image: self, inode: *inode, at: offset.min(end), end })
    }

    /// Returns the first `count` chunk indexes of a file as they are in the image.
    pub(crate) fn chunk_indexes(&self, inode: &Inode, count: u64) -> Result<&[u8], Corrupt> {
        if inode.layout != layout::CHUNKED {
            return Err(inode.corrupt("file whose bytes are in the image"));
        }
        let index_size = size_of::<ChunkIndex>() as u64;
        let len = count.checked_mul(index_size).and_then(|len| usize::try_from(len).ok());
        let all = len.and_then(|len| self.slice(inode.tail.next_multiple_of(index_size), len));
        all.ok_or(inode.corrupt("chunk index past the end"))
    }
}

impl Inode {
    /// Returns how long its chunks are, as a power of two.
    fn chunk_bits(&self) -> u32 {
        u32::from(disk::BLOCK_BITS) + (self.payload & disk::CHUNK_BITS)
    }

    /// Returns how many entries its map of chunks has; none if it has no map.
    pub(super) fn chunks(&self) -> u64 {
        if self.layout == layout::CHUNKED { self.size.div_ceil(1 << self.chunk_bits()) } else { 0 }
    }
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Returns as many bytes of a file's chunk indexes as asked for.
    pub(crate) fn raw_indexes(&self, inode: &Inode, len: usize) -> Result<&[u8], Corrupt> {
        if inode.kind != Kind::File || inode.layout != layout::CHUNKED {
            return Err(inode.corrupt("file whose bytes are in the image"));
        }
        let at = inode.tail.next_multiple_of(size_of::<ChunkIndex>() as u64);
        self.slice(at, len).ok_or(inode.corrupt("chunk index past the end"))
    }
}

impl<B: AsRef<[u8]>> Pieces<'_, B> {
    /// Returns the piece at `at` within its chunk.
    fn chunk(&self, at: u64) -> Result<Piece, Corrupt> {
        if self.inode.layout == layout::PLAIN {
            let offset = u64::from(self.inode.payload) * limits::BLOCK + at;
            return self.on(0, offset, self.end - at);
        }
        if self.inode.layout == layout::INLINE {
            let tail = (self.inode.size - 1) / limits::BLOCK * limits::BLOCK; // `at` is below the size
            if at < tail {
                let offset = u64::from(self.inode.payload) * limits::BLOCK + at;
                return self.on(0, offset, self.end.min(tail) - at);
            }
            if self.inode.tail % limits::BLOCK + (self.inode.size - tail) > limits::BLOCK {
                return Err(self.inode.corrupt("tail crosses a block"));
            }
            return self.on(0, self.inode.tail + (at - tail), self.end - at);
        }
        let bits = self.inode.chunk_bits();
        let (number, within) = (at >> bits, at & ((1 << bits) - 1));
        let index = self.index(number).ok_or(self.inode.corrupt("chunk index past the end"))?;
        let len = ((1 << bits) - within).min(self.end - at);
        if index.block.get() == disk::HOLE {
            return Ok(Piece { len, source: Source::Hole });
        }
        if index.block_high.get() != 0 {
            return Err(self.inode.corrupt("chunk past the end of its device"));
        }
        self.on(index.device.get(), u64::from(index.block.get()) * limits::BLOCK + within, len)
    }

    /// Returns the entry of a chunk, in the long form if the image has the short one: the number of a block, and nothing else.
    fn index(&self, number: u64) -> Option<ChunkIndex> {
        let is_long = self.inode.payload & disk::CHUNK_INDEXES != 0;
        let size = if is_long { size_of::<ChunkIndex>() } else { size_of::<U32>() } as u64;
        let place = number.checked_mul(size)?.checked_add(self.inode.tail.next_multiple_of(size))?;
        if is_long {
            return ChunkIndex::read_from_bytes(self.image.slice(place, size_of::<ChunkIndex>())?).ok();
        }
        let block = U32::read_from_bytes(self.image.slice(place, size_of::<U32>())?).ok()?;
        Some(ChunkIndex { block_high: U16::ZERO, device: U16::ZERO, block })
    }

    /// Returns the piece that is on a device.
    fn on(&self, number: u16, offset: u64, len: u64) -> Result<Piece, Corrupt> {
        let room = match number {
            0 => self.image.whole,
            _ => self.image.device(number).map(|device| device.len),
        };
        let room = room.ok_or(self.inode.corrupt("chunk on an unknown device"))?;
        if offset.checked_add(len).is_none_or(|end| end > room) {
            return Err(self.inode.corrupt("chunk past the end of its device"));
        }
        Ok(Piece { len, source: Source::Device { number, offset } })
    }
}

impl<B: AsRef<[u8]>> Iterator for Pieces<'_, B> {
    type Item = Result<Piece, Corrupt>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.at >= self.end {
            return None;
        }
        let mut piece = match self.chunk(self.at) {
            Ok(piece) => piece,
            Err(corrupt) => {
                self.at = self.end;
                return Some(Err(corrupt));
            }
        };
        self.at += piece.len;
        while self.at < self.end {
            match self.chunk(self.at) {
                Ok(next) if follows(&piece, &next.source) => {
                    piece.len += next.len;
                    self.at += next.len;
                }
                // Another piece, or an error that the next call meets again.
                _ => break,
            }
        }
        Some(Ok(piece))
    }
}

fn follows(piece: &Piece, next: &Source) -> bool {
    match (piece.source, next) {
        (Source::Hole, Source::Hole) => true,
        (Source::Device { number, offset }, Source::Device { number: n, offset: o }) => {
            number == *n && offset + piece.len == *o
        }
        _ => false,
    }
}
