//! Room in an image: inodes are packed into blocks, whole blocks go between them.

use super::WriteError;
use crate::erofs::disk::{BLOCK, SLOT};
use crate::limits;

/// How many blocks with room left are kept in mind. A few make good use of the gaps beside large directory tails
/// and still keep neighbours near each other.
const OPEN: usize = 8;

/// The inode area of an image, growing.
pub(crate) struct Space {
    /// Block from which nids count.
    meta_block: u32,
    /// First block nobody has.
    next: u32,
    /// Blocks with room, oldest first: block, bytes taken.
    open: Vec<(u32, usize)>,
}

impl Space {
    /// Returns the area that begins after `taken` bytes of other things.
    pub(crate) fn after(taken: usize) -> Result<Self, WriteError> {
        let block = u32::try_from(taken / BLOCK).map_err(|_| WriteError::TooLarge)?;
        let used = (taken % BLOCK).next_multiple_of(SLOT);
        let mut space = Self { meta_block: block, next: block + 1, open: vec![(block, used)] };
        if used == BLOCK {
            space.open.clear();
        }
        Ok(space)
    }

    /// Returns the block from which nids count.
    pub(crate) fn meta_block(&self) -> u32 {
        self.meta_block
    }

    /// Returns the length of the image in blocks.
    pub(crate) fn blocks(&self) -> u32 {
        self.next
    }

    /// Takes room for an inode and what must follow it; returns its nid.
    ///
    /// Up to a block, it is all in one block.
    pub(crate) fn inode(&mut self, len: usize) -> Result<u32, WriteError> {
        let (block, at) = match self.open.iter().position(|&(_, used)| used + len <= BLOCK) {
            Some(n) => {
                let (block, used) = &mut self.open[n];
                let at = (*block, *used);
                *used = (*used + len).next_multiple_of(SLOT);
                if *used >= BLOCK {
                    self.open.remove(n);
                }
                at
            }
            None => {
                let block = self.take(len.div_ceil(BLOCK))?;
                let used = len.next_multiple_of(SLOT) % BLOCK;
                if used != 0 {
                    self.keep(self.next - 1, used);
                }
                (block, 0)
            }
        };
        // Below `limits::METADATA`, so it fits.
        let slots = u64::from(block - self.meta_block) * (BLOCK / SLOT) as u64 + (at / SLOT) as u64;
        u32::try_from(slots).map_err(|_| WriteError::TooLarge)
    }

    /// Takes whole blocks; returns the first.
    pub(crate) fn take(&mut self, blocks: usize) -> Result<u32, WriteError> {
        let first = self.next;
        let end = u64::from(first) + blocks as u64;
        if end * BLOCK as u64 > limits::METADATA {
            return Err(WriteError::TooLarge);
        }
        self.next = u32::try_from(end).map_err(|_| WriteError::TooLarge)?;
        Ok(first)
    }

    fn keep(&mut self, block: u32, used: usize) {
        if self.open.len() == OPEN {
            let fullest = (0..OPEN).max_by_key(|&n| (self.open[n].1, OPEN - n));
            self.open.remove(fullest.unwrap_or(0));
        }
        self.open.push((block, used));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Nid to block and offset.
    fn at(space: &Space, nid: u32) -> (u32, usize) {
        (space.meta_block + nid / 128, nid as usize % 128 * SLOT)
    }

    #[test]
    fn inodes_share_blocks_and_never_cross_one_without_need() {
        let mut space = Space::after(1300).unwrap();
        let mut seen = Vec::new();
        for len in [32, 2700, 64, 4096, 40, 4097, 32] {
            let nid = space.inode(len).unwrap();
            seen.push(at(&space, nid));
        }
        assert_eq!(
            seen,
            [
                (0, 1312),
                (0, 1344),
                (1, 0), // 32 bytes are left in block 0
                (2, 0),
                (1, 64),
                (3, 0),
                (0, 4064),
            ]
        );
        assert_eq!(space.blocks(), 5);
        assert_eq!(space.take(3), Ok(5));
        let nid = space.inode(3900).unwrap();
        assert_eq!(at(&space, nid), (1, 128), "blocks in between do not close the open ones");
    }

    #[test]
    fn areas_begin_where_other_things_end() {
        for (taken, block, first) in [(4096, 1, 0), (4065, 1, 0), (4064, 0, 4064), (8193, 2, 32)] {
            let mut space = Space::after(taken).unwrap();
            let nid = space.inode(32).unwrap();
            assert_eq!(at(&space, nid), (block, first), "{taken}");
        }
    }

    #[test]
    fn images_have_a_limit() {
        let mut space = Space::after(1).unwrap();
        let blocks = usize::try_from(limits::METADATA).unwrap() / BLOCK;
        assert_eq!(space.take(blocks), Err(WriteError::TooLarge));
        assert_eq!(space.take(blocks - 1), Ok(1));
        assert_eq!(space.inode(4096), Err(WriteError::TooLarge));
        assert_eq!(space.inode(32), Ok(1), "what is open may still be filled");
    }
}
