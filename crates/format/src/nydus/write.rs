//! Writes a [`Tree`] as a bootstrap of RAFS version 6.
//!
//! Deterministic, as [`erofs::write`](crate::erofs::write) is, of which it has the order and the packing of inodes. What is
//! different: every inode has the long form, attributes are never shared, a file of no bytes has a chunk format as any other, and the number of an inode is its nid.
//! What RAFS cannot say is an error that names the file.
//!
//! ```text
//! 0      superblock, extension, device slots
//! *4096  blobs that a file has chunks in, in the order they were given
//! *4096  32 bytes of nothing, then inodes and directories: no nid is 0
//! *4096  chunks that a file has, by blob and number
//! *4096  nids of files that are read first, in the order of their chunks
//! ```

use std::collections::HashSet;

use zerocopy::little_endian::U32;
use zerocopy::{FromBytes, IntoBytes};

use super::disk::{self, BlobRow, ChunkAddress, ChunkRow, DeviceSlot, Extension, features, flags};
use crate::erofs::disk::{BLOCK, BLOCK_BITS, CHUNK_BITS, ChunkIndex, SLOT, split_xattr_name};
use crate::erofs::write::chunks::{ChunkPlan, Fault};
use crate::erofs::write::inode::{Contents, Place, Plan, Writer};
use crate::erofs::write::place::Space;
use crate::erofs::write::survey::Survey;
use crate::erofs::write::xattrs::XattrPlan;
use crate::erofs::write::{WriteError, put};
use crate::limits;
use crate::name::printable;
use crate::tree::{File, InodeNo, Kind, Runs, Tree};

/// `log2` of the length of a chunk: that of all files but what is at their ends.
pub const CHUNK_SIZE_BITS: u32 = 20;

/// Length of a chunk.
pub const CHUNK_SIZE: u32 = 1 << CHUNK_SIZE_BITS;

/// What the reserved bytes of a directory's inode begin with if nobody has described it: it is there because something lies
/// below it. No other program looks at them.
pub const IMPLIED: u8 = 1;

/// Offset of these bytes in an inode.
pub const IMPLIED_OFFSET: usize = 48;

/// Where bootstraps of a whole device would align blobs.
const FLAT_ALIGN: u64 = 0x8_0000;

/// A blob that files have chunks in.
#[derive(Debug, Clone)]
pub struct Blob {
    /// What is said of it; its number is not looked at.
    pub row: BlobRow,
    /// Its chunks, ascending by number. What they say of blob and file is not looked at.
    pub chunks: Vec<ChunkRow>,
}

/// Where the files of a layer are.
#[derive(Debug, Clone, Default)]
pub struct Files {
    /// Which of the blobs has them.
    pub blob: usize,
    /// Numbers of chunks: those of a file begin at what [`Runs::Whole`] says, one for each [`CHUNK_SIZE`] of it.
    pub chunks: Vec<u32>,
    /// Where in these the files begin that are to be read first.
    pub ahead: HashSet<u64>,
}

/// Why a tree cannot be a bootstrap.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum BootstrapError {
    /// No metadata image holds it.
    #[error(transparent)]
    Tree(#[from] WriteError),
    /// An extended attribute of a namespace that RAFS has no number for.
    #[error("/{path}: RAFS cannot hold the extended attribute {name:?}")]
    Xattr {
        /// The inode.
        path: String,
        /// The attribute.
        name: String,
    },
    /// More blobs than a chunk's address can tell.
    #[error("files in {0} blobs, and a bootstrap has at most {max}", max = disk::BLOBS)]
    Blobs(usize),
    /// More bytes than a device can have.
    #[error("the files of all layers together have too many bytes")]
    Blocks,
}

/// Returns the bootstrap of a tree whose files are there; `files` are those of each layer, bottom first. Directories in
/// `implied` are marked.
pub fn bootstrap(
    tree: &Tree,
    blobs: &[Blob],
    files: &[Files],
    implied: &HashSet<InodeNo>,
) -> Result<Vec<u8>, BootstrapError> {
    let survey = Survey::of(tree)?;
    let plan = XattrPlan::apart(tree, &survey)?;
    let has_xattrs = check_xattrs(tree, &survey)?;
    let chunks = Chunks::new(tree, &survey, blobs, files)?;

    let blobs_at =
        (disk::DEVICES_OFFSET + chunks.used.len() * size_of::<DeviceSlot>()).next_multiple_of(BLOCK);
    let inodes_at = (blobs_at + chunks.used.len() * size_of::<BlobRow>()).next_multiple_of(BLOCK);
    let mut space = Space::after(inodes_at + SLOT)?;
    let writer = Writer { tree, survey: &survey, contents: &chunks, xattrs: &plan, base: 0 };
    let mut places = vec![Place::default(); tree.inodes.len()];
    for &number in &survey.order {
        places[number.0 as usize] = writer.place(number, &mut space)?;
    }

    let mut image = vec![0; space.blocks() as usize * BLOCK];
    for &number in &survey.order {
        let nid = places[number.0 as usize].nid;
        writer.encode(number, nid, &places, space.meta_block(), &mut image)?;
        if implied.contains(&number) {
            let at = space.meta_block() as usize * BLOCK + nid as usize * SLOT + IMPLIED_OFFSET;
            image[at] = IMPLIED;
        }
    }
    let (rows, rows_at) = (chunks.rows(), image.len());
    rows.iter().for_each(|row| image.extend_from_slice(row.as_bytes()));
    image.resize(image.len().next_multiple_of(BLOCK), 0);
    let (ahead, ahead_at) = (chunks.ahead(tree, &survey, &places)?, image.len());
    ahead.iter().for_each(|nid| image.extend_from_slice(nid.as_bytes()));
    image.resize(image.len().next_multiple_of(BLOCK), 0);

    let extension = Extension {
        flags: chunks.flags(has_xattrs).into(),
        blobs_offset: (blobs_at as u64).into(),
        // There are at most `disk::BLOBS`.
        blobs_size: U32::new(u32::try_from(chunks.used.len() * size_of::<BlobRow>()).unwrap_or(0)),
        chunk_size: CHUNK_SIZE.into(),
        chunks_offset: (rows_at as u64).into(),
        chunks_size: ((rows.len() * size_of::<ChunkRow>()) as u64).into(),
        prefetch_offset: if ahead.is_empty() { 0 } else { ahead_at as u64 }.into(),
        // There are no more than names.
        prefetch_size: U32::new(u32::try_from(ahead.len() * 4).unwrap_or(0)),
        reserved: [0; 204],
    };
    put(&mut image, disk::EXTENSION_OFFSET, extension.as_bytes());
    let blocks = put_blobs(&mut image, &chunks, blobs_at)?;

    let mut head = disk::super_block();
    // The root is placed first, so it is in the first blocks, where 16 bits reach.
    let root = u16::try_from(places[Tree::ROOT.0 as usize].nid).map_err(|_| WriteError::TooLarge)?;
    head.root_nid = root.into();
    head.inodes = (survey.order.len() as u64).into();
    head.blocks = blocks.into();
    head.meta_block = space.meta_block().into();
    head.devices = u16::try_from(chunks.used.len()).unwrap_or(0).into();
    put(&mut image, crate::erofs::disk::SUPER_OFFSET, head.as_bytes());
    Ok(image)
}

/// Says whether there are extended attributes.
fn check_xattrs(tree: &Tree, survey: &Survey) -> Result<bool, BootstrapError> {
    let mut any = false;
    for &number in &survey.order {
        for name in tree.inode(number).meta.xattrs.keys() {
            any = true;
            if split_xattr_name(name).0 == 0 {
                let (path, name) = (survey.path(tree, number), printable(name));
                return Err(BootstrapError::Xattr { path, name });
            }
        }
    }
    Ok(any)
}

/// Writes device slots and blobs; returns how many blocks all of them have.
fn put_blobs(image: &mut [u8], chunks: &Chunks<'_>, blobs_at: usize) -> Result<u32, BootstrapError> {
    let number = |n: u64| u32::try_from(n).map_err(|_| BootstrapError::Blocks);
    let (mut flat, mut total) = (image.len() as u64, 0);
    for (n, used) in (0..).zip(&chunks.used) {
        let mut row = chunks.blobs[used.blob].row;
        row.number = U32::new(n);
        let blocks = row.plain_size.get() >> BLOCK_BITS;
        flat = flat.next_multiple_of(FLAT_ALIGN);
        let slot = DeviceSlot {
            id: row.id,
            blocks: number(blocks)?.into(),
            flat_block: number(flat >> BLOCK_BITS)?.into(),
            reserved: [0; 56],
        };
        flat += blocks << BLOCK_BITS;
        total += blocks;
        let n = n as usize;
        put(image, disk::DEVICES_OFFSET + n * size_of::<DeviceSlot>(), slot.as_bytes());
        put(image, blobs_at + n * size_of::<BlobRow>(), row.as_bytes());
    }
    number(total)
}

/// The chunks of files, as addresses.
struct Chunks<'a> {
    blobs: &'a [Blob],
    files: &'a [Files],
    /// Blobs that a file has chunks in, ascending.
    used: Vec<Used>,
    /// Where each of the blobs is among those.
    numbers: Vec<Option<usize>>,
}

/// What of a blob is needed.
struct Used {
    blob: usize,
    /// Of each chunk, where the first file has it that does.
    offsets: Vec<Option<u64>>,
}

impl<'a> Chunks<'a> {
    fn new(
        tree: &Tree,
        survey: &Survey,
        blobs: &'a [Blob],
        files: &'a [Files],
    ) -> Result<Self, BootstrapError> {
        let mut all: Vec<Used> =
            (0..).zip(blobs).map(|(blob, of)| Used { blob, offsets: vec![None; of.chunks.len()] }).collect();
        let mut chunks = Self { blobs, files, used: Vec::new(), numbers: vec![None; blobs.len()] };
        for &number in &survey.order {
            let Kind::File(file) = &tree.inode(number).kind else { continue };
            let fault = |fault: Fault| fault.at(survey.path(tree, number), file);
            let (blob, numbers) = chunks.of(file).map_err(fault)?;
            for (n, chunk) in (0_u64..).zip(numbers) {
                let place = chunks.find(blob, *chunk).map_err(fault)?;
                all[blob].offsets[place].get_or_insert(n << CHUNK_SIZE_BITS);
            }
        }
        all.retain(|used| used.offsets.iter().any(Option::is_some));
        if all.len() > disk::BLOBS {
            return Err(BootstrapError::Blobs(all.len()));
        }
        for (n, used) in all.iter().enumerate() {
            chunks.numbers[used.blob] = Some(n);
        }
        chunks.used = all;
        Ok(chunks)
    }

    /// Returns the blob of a file, and the numbers of its chunks.
    fn of(&self, file: &File) -> Result<(usize, &'a [u32]), Fault> {
        let count = file.size.div_ceil(CHUNK_SIZE.into());
        if count > limits::CHUNK_INDEXES {
            return Err(Fault::Chunks(count));
        }
        if count == 0 {
            return Ok((0, &[]));
        }
        let Runs::Whole(first) = file.runs else { return Err(Fault::Runs) };
        let files = self.files.get(usize::from(file.layer.0)).ok_or(Fault::Runs)?;
        let range = usize::try_from(first).ok().zip(usize::try_from(first.saturating_add(count)).ok());
        let numbers = range.and_then(|(first, end)| files.chunks.get(first..end)).ok_or(Fault::Runs)?;
        Ok((files.blob, numbers))
    }

    /// Returns the place of a chunk among those of a blob.
    fn find(&self, blob: usize, number: u32) -> Result<usize, Fault> {
        let chunks = &self.blobs.get(blob).ok_or(Fault::Runs)?.chunks;
        chunks.binary_search_by_key(&number, |chunk| chunk.number.get()).map_err(|_| Fault::Runs)
    }

    /// Returns the addresses of a file's chunks.
    fn addresses(&self, file: &File) -> Result<Vec<ChunkAddress>, Fault> {
        let (blob, numbers) = self.of(file)?;
        let address = |&number: &u32| {
            let chunk = &self.blobs[blob].chunks[self.find(blob, number)?];
            let block = u32::try_from(chunk.plain_offset.get() >> BLOCK_BITS).map_err(|_| Fault::Runs)?;
            let blob = self.numbers[blob].ok_or(Fault::Runs)?;
            ChunkAddress::new(blob, number, block).ok_or(Fault::Runs)
        };
        numbers.iter().map(address).collect()
    }

    /// Returns the rows of all chunks that files have.
    fn rows(&self) -> Vec<ChunkRow> {
        let mut rows = Vec::new();
        for (number, used) in (0_u32..).zip(&self.used) {
            for (chunk, offset) in self.blobs[used.blob].chunks.iter().zip(&used.offsets) {
                if let Some(offset) = *offset {
                    rows.push(ChunkRow { blob: number.into(), file_offset: offset.into(), ..*chunk });
                }
            }
        }
        rows
    }

    /// Returns the inodes of the files that are read first, in the order of their first chunks.
    fn ahead(&self, tree: &Tree, survey: &Survey, places: &[Place]) -> Result<Vec<U32>, BootstrapError> {
        let mut ahead = Vec::new();
        for &number in &survey.order {
            let Kind::File(file) = &tree.inode(number).kind else { continue };
            let (Runs::Whole(first), Some(files)) = (&file.runs, self.files.get(usize::from(file.layer.0)))
            else {
                continue;
            };
            if files.ahead.contains(first) {
                let (blob, chunks) =
                    self.of(file).map_err(|fault| fault.at(survey.path(tree, number), file))?;
                ahead.push((self.numbers.get(blob), chunks.first(), places[number.0 as usize].nid));
            }
        }
        ahead.sort_unstable();
        Ok(ahead.into_iter().map(|(.., nid)| U32::new(nid)).collect())
    }

    fn flags(&self, xattrs: bool) -> u64 {
        let mut bits = flags::ZSTD | flags::BLAKE3 | flags::OWNERS | flags::NOT_ENCRYPTED;
        if xattrs {
            bits |= flags::XATTRS;
        }
        let digests = |used: &Used| self.blobs[used.blob].row.features.get() & features::DIGESTS != 0;
        if self.used.iter().all(digests) {
            bits |= flags::DIGESTS_IN_BLOB;
        }
        bits
    }
}

impl Contents for Chunks<'_> {
    const COMPACT: bool = false;

    /// One index for each chunk, but chunks that lie together are said to be one: kernels look at the first index
    /// then, and share pages between files.
    fn plan(&self, file: &File) -> Result<Plan, Fault> {
        let addresses = self.addresses(file)?;
        let step = CHUNK_SIZE >> BLOCK_BITS;
        let together = addresses
            .windows(2)
            .all(|pair| pair[0].block.get().checked_add(step) == Some(pair[1].block.get()));
        let size = match together && file.size > CHUNK_SIZE.into() {
            true => file.size.next_power_of_two(),
            false => CHUNK_SIZE.into(),
        };
        let bits = (size.trailing_zeros() - u32::from(BLOCK_BITS)).min(CHUNK_BITS);
        Ok(Plan::Chunks(ChunkPlan { bits, count: addresses.len() }))
    }

    fn write(&self, file: &File, _: ChunkPlan, out: &mut [ChunkIndex]) -> Result<(), Fault> {
        for (out, address) in out.iter_mut().zip(self.addresses(file)?) {
            // Both have eight bytes.
            *out = ChunkIndex::read_from_bytes(address.as_bytes()).map_err(|_| Fault::Runs)?;
        }
        Ok(())
    }
}
