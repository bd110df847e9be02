//! The image of one layer by itself, with the bytes of its files in it.
//!
//! ```text
//! 0      superblock, in a block of its own
//! 4096   files, in the order in which their bytes came; each begins at a block
//! end    as in a metadata image: shared extended attributes, inodes, directories
//! ```
//!
//! So bytes of files can be written as they come, and nothing is kept of them. A file is one run of blocks, as Linux 5.4 reads
//! it; one with holes has chunk indexes, for which Linux 5.15 is needed. Here an offset in payload space is an offset in the image.

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32};

use super::chunks::{ChunkPlan, Fault};
use super::inode::{Contents, Place, Plan, Writer};
use super::place::Space;
use super::survey::Survey;
use super::xattrs::XattrPlan;
use super::{WriteError, put, seal, super_block};
use crate::erofs::disk::{self, BLOCK, BLOCK_BITS, ChunkIndex, SLOT};
use crate::payload::Run;
use crate::tree::{File, InodeNo, Kind, Runs, Tree};
use crate::{DiffId, limits};

/// Where the bytes of files begin: behind the superblock.
pub const FILES: u64 = limits::BLOCK;

/// What of a layer's image is not the bytes of files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerImage {
    /// The first block.
    pub head: Vec<u8>,
    /// Whole blocks, which follow the bytes of files.
    pub meta: Vec<u8>,
}

/// Returns the image around files that lie between [`FILES`] and `end`, which is a whole number of blocks. `of` is the layer,
/// for what makes an image one and no other.
pub fn layer(tree: &Tree, end: u64, of: &DiffId) -> Result<LayerImage, WriteError> {
    let base = u32::try_from(end >> BLOCK_BITS).map_err(|_| WriteError::TooLarge)?;
    let survey = Survey::of(tree)?;
    let xattrs = XattrPlan::new(tree, &survey, 0)?;
    let mut taken = xattrs.shared.len();
    if taken.next_multiple_of(SLOT).is_multiple_of(BLOCK) {
        taken += SLOT; // no number of an inode is 0: programs pass over such names
    }
    let mut space = Space::after(taken)?;
    let contents = Inside { end };
    let writer = Writer { tree, survey: &survey, contents: &contents, xattrs: &xattrs, base };
    let mut places = vec![Place::default(); tree.inodes.len()];
    for &number in &survey.order {
        places[number.0 as usize] = writer.place(number, &mut space)?;
    }

    let mut meta = vec![0; space.blocks() as usize * BLOCK];
    put(&mut meta, 0, &xattrs.shared);
    for (ino, &number) in (1..).zip(&survey.order) {
        writer.encode(number, ino, &places, space.meta_block(), &mut meta)?;
    }
    let root = places[Tree::ROOT.0 as usize].nid;
    // The root is placed first, so it is in the first blocks, where 16 bits reach.
    let root = u16::try_from(root).map_err(|_| WriteError::TooLarge)?;
    let mut head = super_block(&survey, &xattrs, &space, root);
    for block in [&mut head.blocks, &mut head.meta_block, &mut head.xattr_block] {
        *block = U32::new(base.checked_add(block.get()).ok_or(WriteError::TooLarge)?);
    }
    head.device_table = U16::ZERO;
    let has_holes = survey.order.iter().any(|number| contents.has_chunks(tree, *number));
    head.feature_incompat = U32::new(if has_holes { disk::incompat::CHUNKED_FILE } else { 0 });

    let mut first = vec![0; BLOCK];
    let content = blake3::Hasher::new()
        .update(of.digest().to_string().as_bytes())
        .update(head.as_bytes())
        .update(&meta)
        .finalize();
    seal(&mut first, head, &content);
    Ok(LayerImage { head: first, meta })
}

/// Files in the image itself.
struct Inside {
    /// Where the last of them ends.
    end: u64,
}

impl Inside {
    fn has_chunks(&self, tree: &Tree, number: InodeNo) -> bool {
        match &tree.inode(number).kind {
            Kind::File(file) => matches!(self.plan(file), Ok(Plan::Chunks(_))),
            _ => false,
        }
    }

    /// Returns the blocks of the image in which a run is: the first one's number, and how many.
    fn blocks(&self, payload: u64, len: u64) -> Result<(u32, u64), Fault> {
        let end = payload.checked_add(len).ok_or(Fault::Runs)?;
        if payload < FILES || end > self.end || !payload.is_multiple_of(limits::BLOCK) {
            return Err(Fault::Runs);
        }
        let first = u32::try_from(payload >> BLOCK_BITS).map_err(|_| Fault::Runs)?;
        Ok((first, len.div_ceil(limits::BLOCK)))
    }

    /// Calls with each run of a sparse file in blocks: where in the file, where in the image, how many.
    fn runs(&self, size: u64, runs: &[Run], mut see: impl FnMut(u64, u32, u64)) -> Result<(), Fault> {
        let mut end = 0;
        for run in runs.iter().filter(|run| run.len > 0) {
            let fits = run.at.checked_add(run.len).is_some_and(|end| end <= size);
            if run.at < end || !fits || !run.at.is_multiple_of(limits::BLOCK) {
                return Err(Fault::Runs);
            }
            end = (run.at + run.len).next_multiple_of(limits::BLOCK);
            let (block, count) = self.blocks(run.payload, run.len)?;
            see(run.at >> BLOCK_BITS, block, count);
        }
        Ok(())
    }
}

impl Contents for Inside {
    const COMPACT: bool = true;

    fn plan(&self, file: &File) -> Result<Plan, Fault> {
        if file.size > i64::MAX.cast_unsigned() {
            return Err(Fault::Runs);
        }
        let blocks = file.size.div_ceil(limits::BLOCK);
        let runs = match &file.runs {
            _ if file.size == 0 => return Ok(Plan::Nothing),
            &Runs::Whole(payload) => return Ok(Plan::Here(self.blocks(payload, file.size)?.0)),
            Runs::None => &[][..],
            Runs::Sparse(runs) => runs,
        };
        let mut borders = 0;
        self.runs(file.size, runs, |at, _, count| {
            borders |= at;
            if at + count < blocks {
                borders |= at + count;
            }
        })?;
        ChunkPlan::largest(blocks, borders).map(Plan::Chunks)
    }

    fn write(&self, file: &File, plan: ChunkPlan, out: &mut [ChunkIndex]) -> Result<(), Fault> {
        out.fill(ChunkIndex::HOLE);
        let Runs::Sparse(runs) = &file.runs else { return Ok(()) };
        self.runs(file.size, runs, |at, first, count| {
            for chunk in at >> plan.bits..(at + count).div_ceil(1 << plan.bits) {
                let block = u64::from(first) + ((chunk << plan.bits) - at);
                // In range: the plan was made from the same runs.
                if let (Ok(chunk), Ok(block)) = (usize::try_from(chunk), u32::try_from(block)) {
                    out[chunk] =
                        ChunkIndex { block_high: U16::ZERO, device: U16::ZERO, block: U32::new(block) };
                }
            }
        })
    }
}
