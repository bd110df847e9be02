//! Inodes: which form each takes, where it goes, and its bytes.
//!
//! Two passes see the same [`Draft`] of an inode: [`Writer::place`] needs its length, [`Writer::encode`] its bytes.

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, IntoBytes};

use super::chunks::{ChunkPlan, Fault};
use super::place::Space;
use super::survey::Survey;
use super::xattrs::XattrPlan;
use super::{WriteError, dirs, put};
use crate::erofs::disk::{
    self, BLOCK, ChunkIndex, InodeCompact, InodeExtended, SLOT, file_type, layout, mode,
};
use crate::limits;
use crate::tree::{Device, File, Inode, InodeNo, Kind, Tree};

/// Where an inode is and where its whole blocks begin.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Place {
    pub(crate) nid: u32,
    block: u32,
}

/// How an inode tells where the bytes of its file are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Plan {
    /// There are none.
    Nothing,
    /// By chunk indexes.
    Chunks(ChunkPlan),
    /// In the image, from this block on.
    Here(u32),
}

/// Where the bytes of files are.
pub(crate) trait Contents {
    /// Whether inodes may have the short form.
    const COMPACT: bool;

    /// Decides how an inode tells where they are.
    fn plan(&self, file: &File) -> Result<Plan, Fault>;

    /// Writes the indexes of a file; `out` has exactly their length.
    fn write(&self, file: &File, plan: ChunkPlan, out: &mut [ChunkIndex]) -> Result<(), Fault>;
}

/// What both passes need.
pub(crate) struct Writer<'a, C> {
    pub(crate) tree: &'a Tree,
    pub(crate) survey: &'a Survey,
    pub(crate) contents: &'a C,
    pub(crate) xattrs: &'a XattrPlan<'a>,
    /// Blocks of the whole image before the one that places are counted from.
    pub(crate) base: u32,
}

/// An inode whose form is decided.
struct Draft {
    extended: bool,
    xattr_count: u16,
    /// Bytes of the inode and its extended attributes.
    head: usize,
    /// Size as `stat` tells it.
    size: u64,
    body: Body,
}

/// What holds the contents of an inode.
enum Body {
    /// Nothing: an empty file, a device, a pipe.
    None,
    /// Chunk indexes after the attributes.
    Chunks(ChunkPlan),
    /// Whole blocks from this one on, beside the places of inodes.
    Here(u32),
    /// Whole blocks elsewhere, then a tail after the attributes.
    Inline { blocks: u32, tail: usize },
    /// Blocks elsewhere.
    Blocks(u32),
}

impl Draft {
    /// Returns how many bytes there are from the inode to the end of what follows it.
    fn len(&self) -> usize {
        match &self.body {
            Body::None | Body::Here(_) | Body::Blocks(_) => self.head,
            Body::Chunks(plan) => self.head.next_multiple_of(size_of::<ChunkIndex>()) + plan.len(),
            Body::Inline { tail, .. } => self.head + tail,
        }
    }

    /// Returns the layout of the contents and the number of blocks elsewhere.
    fn layout(&self) -> (u16, u32) {
        match self.body {
            Body::None | Body::Here(_) => (layout::PLAIN, 0),
            Body::Chunks(_) => (layout::CHUNKED, 0),
            Body::Inline { blocks, .. } => (layout::INLINE, blocks),
            Body::Blocks(blocks) => (layout::PLAIN, blocks),
        }
    }
}

impl<C: Contents> Writer<'_, C> {
    /// Takes room for an inode.
    pub(crate) fn place(&self, number: InodeNo, space: &mut Space) -> Result<Place, WriteError> {
        let draft = self.draft(number)?;
        let nid = space.inode(draft.len())?;
        let (_, blocks) = draft.layout();
        let block = if blocks == 0 { 0 } else { space.take(blocks as usize)? };
        Ok(Place { nid, block })
    }

    /// Writes an inode and everything that belongs to it.
    pub(crate) fn encode(
        &self,
        number: InodeNo,
        ino: u32,
        places: &[Place],
        meta_block: u32,
        image: &mut [u8],
    ) -> Result<(), WriteError> {
        let draft = self.draft(number)?;
        let inode = self.tree.inode(number);
        let place = places[number.0 as usize];
        let at = meta_block as usize * BLOCK + place.nid as usize * SLOT;
        let payload = match (&draft.body, &inode.kind) {
            (Body::Chunks(plan), _) => plan.format(),
            (&Body::Here(block), _) => block,
            (_, &(Kind::Char(device) | Kind::Block(device))) => self.device(number, device)?,
            _ if place.block == 0 => 0,
            _ => self.base.checked_add(place.block).ok_or(WriteError::TooLarge)?,
        };
        if draft.extended {
            put(image, at, self.extended(number, ino, inode, &draft, payload).as_bytes());
        } else {
            put(image, at, self.compact(number, ino, inode, &draft, payload)?.as_bytes());
        }
        if draft.xattr_count > 0 {
            let xattrs = self.xattrs.body(&inode.meta.xattrs);
            put(image, at + draft.head - xattrs.len(), &xattrs);
        }
        let after = at + draft.head;
        match (&inode.kind, &draft.body) {
            (Kind::File(file), &Body::Chunks(plan)) => {
                let start = after.next_multiple_of(size_of::<ChunkIndex>());
                // Rightly long and without alignment, so there is no way to fail.
                if let Ok(out) = <[ChunkIndex]>::mut_from_bytes(&mut image[start..start + plan.len()]) {
                    let done = self.contents.write(file, plan, out);
                    done.map_err(|fault| fault.at(self.survey.path(self.tree, number), file))?;
                }
            }
            (Kind::Dir(entries), body) => {
                let targets =
                    entries.iter().map(|(name, &child)| (name.as_bytes(), self.target(child, places)));
                let itself = self.target(number, places);
                let parent = self.target(self.survey.parent(number), places);
                dirs::write(targets, itself, parent, |n, bytes| match *body {
                    Body::Inline { blocks, .. } if n == blocks => put(image, after, bytes),
                    _ => put(image, (place.block + n) as usize * BLOCK, bytes),
                });
            }
            (Kind::Symlink(target), Body::Inline { .. }) => put(image, after, target),
            (Kind::Symlink(target), _) => put(image, place.block as usize * BLOCK, target),
            _ => {}
        }
        Ok(())
    }

    fn draft(&self, number: InodeNo) -> Result<Draft, WriteError> {
        let inode = self.tree.inode(number);
        let path = || self.survey.path(self.tree, number);
        let (size, inline) = match &inode.kind {
            Kind::Dir(entries) => {
                let len = dirs::measure(entries);
                (len.size(), Some((len.full, len.tail)))
            }
            Kind::Symlink(target) if target.is_empty() || target.len() > limits::SYMLINK => {
                return Err(WriteError::Symlink { path: path(), len: target.len() });
            }
            Kind::Symlink(target) => (target.len() as u64, Some((0, target.len()))),
            Kind::File(file) => (file.size, None),
            Kind::Char(_) | Kind::Block(_) | Kind::Fifo => (0, None),
        };
        let meta = &inode.meta;
        let compact = C::COMPACT
            && self.survey.small(number, meta)
            && meta.mtime == self.survey.time
            && size <= u32::MAX.into();
        let base = if compact { size_of::<InodeCompact>() } else { size_of::<InodeExtended>() };
        let xattr_count = self.xattrs.count(&meta.xattrs);
        let xattr_count = xattr_count.ok_or_else(|| WriteError::Xattrs { path: path() })?;
        let head = base + disk::xattr_size(xattr_count);
        let body = match (&inode.kind, inline) {
            // Kernels want a symbolic link's inode, attributes and target in one block.
            (_, Some((blocks, tail))) if head + tail <= BLOCK => Body::Inline { blocks, tail },
            (_, Some((blocks, _))) => Body::Blocks(blocks + 1),
            (Kind::File(file), None) => {
                match self.contents.plan(file).map_err(|fault| fault.at(path(), file))? {
                    Plan::Nothing => Body::None,
                    Plan::Chunks(plan) => Body::Chunks(plan),
                    Plan::Here(block) => Body::Here(block),
                }
            }
            _ => Body::None,
        };
        Ok(Draft { extended: !compact, xattr_count, head, size, body })
    }

    fn compact(
        &self,
        number: InodeNo,
        ino: u32,
        inode: &Inode,
        draft: &Draft,
        payload: u32,
    ) -> Result<InodeCompact, WriteError> {
        // `draft` chose this form because all of it fits.
        let narrow = |n: u32| u16::try_from(n).map(U16::new).map_err(|_| WriteError::TooLarge);
        Ok(InodeCompact {
            format: U16::new(disk::inode_format(false, draft.layout().0)),
            xattr_count: U16::new(draft.xattr_count),
            mode: U16::new(mode_of(inode)),
            links: narrow(self.survey.links(number))?,
            size: U32::new(u32::try_from(draft.size).map_err(|_| WriteError::TooLarge)?),
            mtime: U32::ZERO,
            payload: U32::new(payload),
            ino: U32::new(ino),
            uid: narrow(inode.meta.uid)?,
            gid: narrow(inode.meta.gid)?,
            reserved: U32::ZERO,
        })
    }

    fn extended(
        &self,
        number: InodeNo,
        ino: u32,
        inode: &Inode,
        draft: &Draft,
        payload: u32,
    ) -> InodeExtended {
        InodeExtended {
            format: U16::new(disk::inode_format(true, draft.layout().0)),
            xattr_count: U16::new(draft.xattr_count),
            mode: U16::new(mode_of(inode)),
            reserved: U16::ZERO,
            size: U64::new(draft.size),
            payload: U32::new(payload),
            ino: U32::new(ino),
            uid: U32::new(inode.meta.uid),
            gid: U32::new(inode.meta.gid),
            mtime: U64::new(inode.meta.mtime.secs.cast_unsigned()),
            mtime_nanos: U32::new(inode.meta.mtime.nanos),
            links: U32::new(self.survey.links(number)),
            reserved2: [0; 16],
        }
    }

    fn device(&self, number: InodeNo, device: Device) -> Result<u32, WriteError> {
        disk::encode_device(device).ok_or_else(|| WriteError::Device {
            path: self.survey.path(self.tree, number),
            major: device.major,
            minor: device.minor,
        })
    }

    fn target(&self, number: InodeNo, places: &[Place]) -> dirs::Target {
        let file_type = match self.tree.inode(number).kind {
            Kind::Dir(_) => file_type::DIR,
            Kind::File(_) => file_type::FILE,
            Kind::Symlink(_) => file_type::SYMLINK,
            Kind::Char(_) => file_type::CHAR,
            Kind::Block(_) => file_type::BLOCK,
            Kind::Fifo => file_type::FIFO,
        };
        (places[number.0 as usize].nid, file_type)
    }
}

fn mode_of(inode: &Inode) -> u16 {
    let kind = match inode.kind {
        Kind::Dir(_) => mode::DIR,
        Kind::File(_) => mode::FILE,
        Kind::Symlink(_) => mode::SYMLINK,
        Kind::Char(_) => mode::CHAR,
        Kind::Block(_) => mode::BLOCK,
        Kind::Fifo => mode::FIFO,
    };
    kind | inode.meta.mode & !mode::TYPE
}
