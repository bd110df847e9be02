//! Writes a [`Tree`] as an EROFS metadata image.
//!
//! Deterministic: the bytes follow from names, attributes and payload positions alone, not from inode numbers or
//! the order in which the tree was built. Lossless: an inode that does not fit the short form gets the long one,
//! and what neither can hold is an error, never clamped. Checked against the devices: no chunk index leaves its
//! segment.
//!
//! Order: a directory's inode with its last entries, its other blocks, the inodes of its files, then its
//! subdirectories in turn, likewise. So a walk reads the image nearly from front to end.

pub(crate) mod chunks;
mod dirs;
pub(crate) mod inode;
pub mod layer;
pub(crate) mod place;
pub(crate) mod survey;
pub(crate) mod xattrs;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U32, U64};

use self::chunks::Devices;
use self::inode::{Place, Writer};
use self::place::Space;
use self::survey::Survey;
use self::xattrs::XattrPlan;
use super::disk::{self, BLOCK, DeviceSlot, SuperBlock};
use crate::payload::SegmentSize;
use crate::tree::Tree;
use crate::{IndexId, limits};

/// The segments of one layer, as devices of an image.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct LayerDevices {
    /// The index they belong to.
    pub index: IndexId,
    /// Size of a segment.
    pub segment: SegmentSize,
    /// Length of each whole segment, in 4 KiB blocks.
    pub lens: Vec<u32>,
}

/// Why a tree cannot be an image.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum WriteError {
    /// More segments than [`limits::SEGMENTS`].
    #[error("{0} segments are more than the {max} of one mount", max = limits::SEGMENTS)]
    Segments(u64),
    /// Larger than [`limits::METADATA`].
    #[error("the metadata image would be larger than {max} bytes", max = limits::METADATA)]
    TooLarge,
    /// A directory has two names or contains itself.
    #[error("/{path}: a second name for a directory")]
    DirectoryTwice {
        /// The second name.
        path: String,
    },
    /// A device number of more than 12 + 20 bits.
    #[error("/{path}: device number {major}:{minor} is beyond 4095:1048575")]
    Device {
        /// The device node.
        path: String,
        /// Its major number.
        major: u32,
        /// Its minor number.
        minor: u32,
    },
    /// A symbolic link to nothing or with more than [`limits::SYMLINK`] bytes.
    #[error("/{path}: a symbolic link of {len} bytes")]
    Symlink {
        /// The link.
        path: String,
        /// Length of its target.
        len: usize,
    },
    /// A name beyond [`limits::XATTR_NAME`] or a value beyond [`limits::XATTR_VALUE`].
    #[error("/{path}: extended attribute {name:?} has a bad name or too long a value")]
    Xattr {
        /// The inode.
        path: String,
        /// The attribute.
        name: String,
    },
    /// More extended attributes than an inode can have: 262,148 bytes of them.
    #[error("/{path}: too many extended attributes")]
    Xattrs {
        /// The inode.
        path: String,
    },
    /// More than [`limits::CHUNK_INDEXES`].
    #[error("/{path}: a sparse file of {size} bytes would need {chunks} chunk indexes")]
    Chunks {
        /// The file.
        path: String,
        /// Its size.
        size: u64,
        /// How many indexes it would need.
        chunks: u64,
    },
    /// A file whose runs are not where payload can be.
    #[error("/{path}: contents are not inside the segments of layer {layer}")]
    Runs {
        /// The file.
        path: String,
        /// Number of the layer, bottom first.
        layer: u16,
    },
}

/// Offset of the device table.
const DEVICE_TABLE: usize = disk::SUPER_OFFSET + size_of::<SuperBlock>();

/// Returns the metadata image of a tree whose layers have these segments, bottom first.
pub fn image(tree: &Tree, layers: &[LayerDevices]) -> Result<Vec<u8>, WriteError> {
    let devices = Devices::new(layers)?;
    let survey = Survey::of(tree)?;
    let shared = DEVICE_TABLE + usize::from(devices.count()) * size_of::<DeviceSlot>();
    let xattrs = XattrPlan::new(tree, &survey, shared)?;
    let mut space = Space::after(shared + xattrs.shared.len())?;

    let writer = Writer { tree, survey: &survey, contents: &devices, xattrs: &xattrs, base: 0 };
    let mut places = vec![Place::default(); tree.inodes.len()];
    for &number in &survey.order {
        places[number.0 as usize] = writer.place(number, &mut space)?;
    }

    let mut image = vec![0; space.blocks() as usize * BLOCK];
    put_devices(&mut image, &devices, space.blocks());
    put(&mut image, shared, &xattrs.shared);
    for (ino, &number) in (1..).zip(&survey.order) {
        writer.encode(number, ino, &places, space.meta_block(), &mut image)?;
    }
    let root = places[Tree::ROOT.0 as usize].nid;
    // The root is placed first, so it is in the first blocks, where 16 bits reach.
    let root = u16::try_from(root).map_err(|_| WriteError::TooLarge)?;
    let mut head = super_block(&survey, &xattrs, &space, root);
    if devices.count() > 0 {
        head.feature_incompat = U32::new(disk::incompat::CHUNKED_FILE | disk::incompat::DEVICE_TABLE);
        head.devices = U16::new(devices.count());
    }
    put(&mut image, disk::SUPER_OFFSET, head.as_bytes());
    let content = blake3::hash(&image);
    seal(&mut image, head, &content);
    Ok(image)
}

fn put_devices(image: &mut [u8], devices: &Devices<'_>, blocks: u32) {
    let mut at = DEVICE_TABLE;
    for (layer, segment, len) in devices.slots() {
        let slot = DeviceSlot {
            index: *layer.index.as_bytes(),
            segment: U32::new(segment),
            tag_rest: [0; 28],
            blocks: U32::new(len),
            flat_block: U32::new(blocks),
            reserved: [0; 56],
        };
        put(image, at, slot.as_bytes());
        at += size_of::<DeviceSlot>();
    }
}

/// Returns the superblock of an image without devices, whose inodes begin with the image.
fn super_block(survey: &Survey, xattrs: &XattrPlan<'_>, space: &Space, root: u16) -> SuperBlock {
    const SLOT: u16 = 9;
    const { assert!(DEVICE_TABLE == SLOT as usize * size_of::<DeviceSlot>()) };
    SuperBlock {
        magic: U32::new(disk::MAGIC),
        checksum: U32::ZERO,
        feature_compat: U32::new(disk::compat::SB_CHECKSUM | disk::compat::MTIME),
        block_bits: disk::BLOCK_BITS,
        extension_slots: 0,
        root_nid: U16::new(root),
        inodes: U64::new(survey.order.len() as u64),
        time_secs: U64::new(survey.time.secs.cast_unsigned()),
        time_nanos: U32::new(survey.time.nanos),
        blocks: U32::new(space.blocks()),
        meta_block: U32::new(space.meta_block()),
        xattr_block: U32::new(xattrs.block),
        uuid: [0; 16],
        label: [0; 16],
        feature_incompat: U32::new(disk::incompat::CHUNKED_FILE),
        compression: U16::ZERO,
        devices: U16::ZERO,
        device_table: U16::new(SLOT),
        dir_block_bits: 0,
        xattr_prefixes: 0,
        xattr_prefix_start: U32::ZERO,
        packed_nid: U64::ZERO,
        xattr_filter: 0,
        reserved: [0; 23],
    }
}

/// Puts the superblock in: a UUID made from the content, then the checksum.
fn seal(image: &mut [u8], mut head: SuperBlock, content: &blake3::Hash) {
    head.uuid.copy_from_slice(&content.as_bytes()[..16]);
    // RFC 9562, version 8: made in the writer's own way.
    head.uuid[6] = head.uuid[6] & 0x0f | 0x80;
    head.uuid[8] = head.uuid[8] & 0x3f | 0x80;
    put(image, disk::SUPER_OFFSET, head.as_bytes());
    let mut first = [0; BLOCK];
    first.copy_from_slice(&image[..BLOCK]);
    head.checksum = U32::new(disk::super_checksum(&first));
    put(image, disk::SUPER_OFFSET, head.as_bytes());
}

pub(crate) fn put(image: &mut [u8], at: usize, bytes: &[u8]) {
    image[at..at + bytes.len()].copy_from_slice(bytes);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::erofs::fixture::{Fixture, xattrs};
    use crate::tree::{Device, InodeNo, Kind, Meta};

    fn error(build: impl FnOnce(&mut Fixture)) -> String {
        let mut fixture = Fixture::new(&[16]);
        build(&mut fixture);
        let fixture = fixture.finish();
        image(&fixture.tree, &fixture.devices()).unwrap_err().to_string()
    }

    /// Reads a structure of a finished image.
    fn at<T: zerocopy::FromBytes>(image: &[u8], offset: usize) -> T {
        T::read_from_bytes(&image[offset..offset + size_of::<T>()]).unwrap()
    }

    #[test]
    fn what_an_image_cannot_hold_is_an_error_that_names_it() {
        let with = |change: fn(&mut Meta)| {
            move |f: &mut Fixture| {
                let number = f.file(b"a/b", 0, 1);
                change(f.meta(number));
            }
        };
        let device = Kind::Char(Device { major: 4096, minor: 0 });
        assert_eq!(
            error(|f| _ = f.add(b"dev/x\n", device)),
            r"/dev/x\n: device number 4096:0 is beyond 4095:1048575"
        );
        for len in [0, 4096] {
            let link = Kind::Symlink(vec![b'x'; len].into());
            assert_eq!(error(|f| _ = f.add(b"l", link)), format!("/l: a symbolic link of {len} bytes"));
        }
        let said = "/a/b: extended attribute \"\" has a bad name or too long a value";
        assert_eq!(error(with(|m| m.xattrs = xattrs(&[(b"", b"")]))), said);
        for bad in [
            with(|m| m.xattrs = xattrs(&[(b"user.\0", b"")])),
            with(|m| m.xattrs = xattrs(&[(&[b'n'; 256], b"")])),
            with(|m| m.xattrs = xattrs(&[(b"user.x", &[0; 65_536])])),
        ] {
            assert!(error(bad).starts_with("/a/b: extended attribute"));
        }
        let many = with(|m| {
            let values: Vec<_> = (0..5).map(|n| (vec![b'n', b'0' + n], vec![n; 60_000])).collect();
            m.xattrs = xattrs(&values.iter().map(|(n, v)| (&n[..], &v[..])).collect::<Vec<_>>());
        });
        assert_eq!(error(many), "/a/b: too many extended attributes");
        let sparse = |f: &mut Fixture| _ = f.sparse(b"s", 0, 1 << 40, &[(4096, 1)]);
        assert_eq!(
            error(sparse),
            "/s: a sparse file of 1099511627776 bytes would need 268435456 chunk indexes"
        );
        let twice = |f: &mut Fixture| {
            let dir = f.dir(b"a/b");
            f.link(b"a/b/c", dir);
        };
        assert_eq!(error(twice), "/a/b/c: a second name for a directory");
        assert_eq!(error(|f| f.link(b"self", Tree::ROOT)), "/self: a second name for a directory");
    }

    #[test]
    fn a_file_of_a_layer_that_is_not_there_is_refused() {
        let mut fixture = Fixture::new(&[16]);
        fixture.file(b"f", 0, 1);
        let said = image(&fixture.finish().tree, &[]).unwrap_err().to_string();
        assert_eq!(said, "/f: contents are not inside the segments of layer 0");
    }

    #[test]
    fn inodes_are_compact_only_where_nothing_is_lost() {
        let compact = |change: fn(&mut Meta)| {
            let mut f = Fixture::new(&[16]);
            // Most of them set the time; the one in question is the only one in the root.
            for n in 0..3 {
                f.file(format!("d/{n}").as_bytes(), 0, 1);
            }
            let number = f.file(b"f", 0, 1);
            change(f.meta(number));
            let f = f.finish();
            let image = image(&f.tree, &f.devices()).unwrap();
            let head: SuperBlock = at(&image, disk::SUPER_OFFSET);
            let base = head.meta_block.get() as usize * BLOCK;
            // The root comes first, then the file of the root.
            let root = base + usize::from(head.root_nid.get()) * disk::SLOT;
            let file: disk::InodeCompact = at(&image, root + 96);
            assert_eq!(file.mode.get() & disk::mode::TYPE, disk::mode::FILE);
            !disk::split_inode_format(file.format.get()).unwrap().0
        };
        assert!(compact(|_| ()));
        assert!(compact(|m| (m.uid, m.gid) = (65_535, 65_535)));
        assert!(!compact(|m| m.uid = 65_536));
        assert!(!compact(|m| m.gid = 65_536));
        assert!(!compact(|m| m.mtime.secs = 1));
        assert!(!compact(|m| m.mtime.nanos = 1));
    }

    #[test]
    fn the_superblock_tells_about_the_whole() {
        let mut f = Fixture::new(&[16, 17]);
        f.file(b"a", 0, 65_537);
        let b = f.file(b"b", 1, 10);
        f.push(Kind::Fifo);
        for number in [InodeNo(1), b] {
            f.meta(number).mtime = crate::tree::Time { secs: -7, nanos: 5 };
        }
        let f = f.finish();
        let image = image(&f.tree, &f.devices()).unwrap();
        let head: SuperBlock = at(&image, disk::SUPER_OFFSET);
        assert_eq!(head.inodes.get(), 3, "not the one without a name");
        assert_eq!((head.time_secs.get().cast_signed(), head.time_nanos.get()), (-7, 5));
        assert_eq!(head.blocks.get() as usize * BLOCK, image.len());
        assert_eq!(head.checksum.get(), disk::super_checksum(image.first_chunk().unwrap()));
        assert_eq!(head.devices.get(), 3);
        let table = usize::from(head.device_table.get()) * size_of::<DeviceSlot>();
        let slots: Vec<_> = (0..3)
            .map(|n| at::<DeviceSlot>(&image, table + n * size_of::<DeviceSlot>()))
            .map(|s| (s.index[0], s.segment.get(), s.blocks.get(), s.flat_block.get() as usize * BLOCK))
            .collect();
        let end = image.len();
        assert_eq!(slots, [(0, 0, 16, end), (0, 1, 1, end), (1, 0, 1, end)]);
    }
}
