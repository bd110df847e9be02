//! Every bound on data that comes from outside, each with its reason.
//!
//! Code compares with one of these before it allocates, loops, recurses or waits.

/// Block size of metadata images and alignment of payloads, in bytes. The page size of every kernel
/// that can mount what we write, and the alignment `directio` needs on 4 KiB-sector disks.
pub const BLOCK: u64 = 4096;

/// Longest path component, in bytes: `NAME_MAX` of Linux.
pub const NAME: usize = 255;

/// Longest path, in bytes, without the leading slash: `PATH_MAX` of Linux.
pub const PATH: usize = 4096;

/// Longest symbolic link target, in bytes: what `symlink(2)` accepts.
pub const SYMLINK: usize = 4095;

/// Longest value of one extended attribute, in bytes: `e_value_size` of EROFS is 16 bits wide.
pub const XATTR_VALUE: usize = 65_535;

/// Longest name of one extended attribute, in bytes: `XATTR_NAME_MAX` of Linux.
pub const XATTR_NAME: usize = 255;

/// All extended attributes of one inode, in bytes. The kernel's own list limit (`XATTR_LIST_MAX`).
pub const XATTR_TOTAL: usize = 65_536;

/// All different sets of extended attributes of one image, in bytes. A labelled distribution has some hundred
/// sets of 50 bytes; this is what an attacker may keep in memory.
pub const XATTRS: u64 = 64 << 20;

/// Path components walked while an image's tree is built, links followed: 64 for each entry. A member alone
/// could ask for half a million.
pub const PATH_STEPS: u64 = ENTRIES * 64;

/// Tar members of one image. A real monorepo image has under one million.
pub const ENTRIES: u64 = 4_000_000;

/// Layers of one image: what Docker and containerd accept.
pub const LAYERS: usize = 127;

/// Segments of one mount. 16,384 cost 35 ms and 5 MiB of kernel memory; the format ends at 65,535.
pub const SEGMENTS: u32 = 16_384;

/// Smallest and largest segment, as powers of two: 64 KiB and 1 GiB.
pub const SEGMENT_BITS: std::ops::RangeInclusive<u8> = 16..=30;

/// A metadata image, in bytes. Four million entries at the usual 100 bytes each need 400 MB; beyond this it is
/// made of attributes or holes, and whoever mounts it would pay with memory.
pub const METADATA: u64 = 2 << 30;

/// Chunk indexes of one file in a metadata image: 32 MiB of them. A file that changes between data and hole at
/// every block reaches 16 GiB with this; a header of 512 bytes that claims a hole of exbibytes gets no further.
pub const CHUNK_INDEXES: u64 = 4 << 20;

/// Longest chunk, in bytes: what one verification holds in memory.
pub const CHUNK: u32 = 1 << 20;

/// Longest piece of a file in a layer with a table of contents of its own, in bytes: what its verification holds in memory.
/// eStargz writes 4 MiB unless told otherwise, Nydus at most this. And the longest span of SOCI, packed, which is held
/// until it has been hashed: some 4 MiB of the tar unless told otherwise.
pub const PIECE: u32 = 16 << 20;

/// Plain bytes decoded for nothing before such a piece: eStargz may put neighbours into one member until it has so many.
pub const INNER: u32 = 64 << 20;

/// A bootstrap of Nydus with the tar around it, in bytes: 200 a file, so over a million files. It is in memory while it is read.
pub const BOOTSTRAP: u64 = 256 << 20;

/// Blobs beside a layer that has a table of contents: RAFS numbers them in 8 bits.
pub const BLOBS: u16 = 255;

/// Segments that are fetched together because one piece reaches over the end of each: 32 MiB of them for most layers.
pub const GROUP: u32 = 64;

/// A table of contents as JSON, in bytes: 355 a file, so some 190,000 files; or a zTOC: 250 a file, and 8 KB for each MiB of
/// the tar. What has arrived of it is in memory until it has been read; a layer with more is not read by its table.
pub const CONTENTS: u64 = 64 << 20;

/// A file at least this long has chunks of its own.
pub const OWN_CHUNK: u64 = 16 << 10;

/// Longest run of small files that share a chunk, in bytes.
pub const SHARED_CHUNK: u64 = 64 << 10;

/// Largest plain layer, in bytes. 16 TiB is past every registry and keeps all sums far from overflow.
pub const LAYER: u64 = 1 << 44;

/// A whole encoded index, in bytes. 40 GB of layer need some 400 MB.
pub const INDEX: u64 = 512 << 20;

/// Plain skeleton, in bytes: four million members with three blocks of headers each.
pub const SKELETON: u64 = ENTRIES * 3 * 512;

/// One pax extended header or GNU long name, in bytes: one whole set of extended attributes and paths.
pub const TAR_EXTENSION: u64 = 1 << 20;

/// Pieces of one sparse file: a map of a million pieces is 16 MB.
pub const SPARSE_PIECES: usize = 1 << 20;

/// Plain bytes a compressed byte may become. Deflate ends at 1032:1; anything beyond is an attack.
pub const EXPANSION: u64 = 1100;

/// Manifests and image indexes, in bytes: the distribution spec's floor for registries is 4 MiB.
pub const MANIFEST: u64 = 4 << 20;

/// Image configs, in bytes.
pub const CONFIG: u64 = 8 << 20;
