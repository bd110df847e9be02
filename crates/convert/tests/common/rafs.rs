//! A reader of Nydus blobs and bootstraps that knows nothing of the writer, by the offsets of the reference's structures. What
//! two places say of one thing must be the same.

use std::collections::BTreeMap;

use format::Digest;
use testkit::dump::{Dump, Node, What};

pub(crate) fn n16(bytes: &[u8], at: usize) -> u64 {
    u64::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

pub(crate) fn n32(bytes: &[u8], at: usize) -> u64 {
    u64::from(u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()))
}

pub(crate) fn n64(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}

fn place(n: u64) -> usize {
    usize::try_from(n).unwrap()
}

/// A part of a blob as its table of contents has it.
pub(crate) struct Part {
    pub(crate) name: String,
    pub(crate) offset: u64,
    pub(crate) stored: u64,
    pub(crate) plain: Vec<u8>,
}

/// Returns the parts of a blob, in order; tar headers must say the same as the table.
pub(crate) fn parts(blob: &[u8]) -> Vec<Part> {
    let (rest, header) = blob.split_last_chunk::<512>().unwrap();
    assert_eq!(member(header).0, "rafs.blob.toc");
    let toc = &rest[rest.len() - member(header).1..];
    let mut parts = Vec::new();
    for entry in toc.chunks(128) {
        let name = String::from_utf8(entry[8..24].to_vec()).unwrap().trim_end_matches('\0').to_owned();
        let (offset, stored, plain) = (n64(entry, 56), n64(entry, 64), n64(entry, 72));
        let bytes = &blob[place(offset)..place(offset + stored)];
        let bytes = match n32(entry, 0) {
            1 => bytes.to_vec(),
            2 => zstd::bulk::decompress(bytes, place(plain)).unwrap(),
            other => panic!("{other}"),
        };
        assert_eq!(Digest::of(&bytes).as_bytes(), &entry[24..56], "{name}");
        assert!(name == "image.blob" || bytes.len() as u64 == plain);
        parts.push(Part { name, offset, stored, plain: bytes });
    }
    // From the end: header, then what it is about, and nothing in between.
    let mut end = rest.len() - toc.len();
    let mut headers = Vec::new();
    while end > 0 {
        let (name, len) = member(blob[end - 512..end].try_into().unwrap());
        headers.push((name, end - 512 - len, len));
        end -= 512 + len;
    }
    for (name, start, len) in headers {
        let of = parts.iter().find(|part| part.name == name).unwrap();
        let extra = if name == "blob.meta" { 4096 } else { 0 };
        assert_eq!((start as u64, len as u64), (of.offset, of.stored + extra), "{name}");
    }
    parts
}

/// Returns name and length in a tar header.
fn member(header: &[u8; 512]) -> (String, usize) {
    assert_eq!(&header[257..265], b"ustar  \0");
    let sum: u32 = header
        .iter()
        .enumerate()
        .map(|(n, b)| if (148..156).contains(&n) { 32 } else { u32::from(*b) })
        .sum();
    let octal = |field: &[u8]| {
        usize::from_str_radix(std::str::from_utf8(field).unwrap().trim_end_matches('\0'), 8).unwrap()
    };
    assert_eq!(octal(&header[148..155]), sum as usize);
    (
        String::from_utf8(header[..100].to_vec()).unwrap().trim_end_matches('\0').to_owned(),
        octal(&header[124..136]),
    )
}

/// The blobs of an image, by name.
pub(crate) type Blobs = BTreeMap<String, Vec<u8>>;

/// Name, bytes if it is there, and where its chunks are.
type Blob<'a> = (String, Option<&'a [u8]>, Vec<u8>);

/// A bootstrap that is read.
pub(crate) struct Bootstrap<'a> {
    bytes: &'a [u8],
    blobs: Vec<Blob<'a>>,
    meta: usize,
    /// Digests by blob and number.
    chunks: BTreeMap<(u64, u64), [u8; 32]>,
}

impl<'a> Bootstrap<'a> {
    pub(crate) fn open(bytes: &'a [u8], blobs: &'a Blobs) -> Self {
        assert_eq!(bytes.len() % 4096, 0);
        let sb = &bytes[1024..];
        assert_eq!(
            (n32(sb, 0), n32(sb, 4), n32(sb, 8), sb[12], sb[13]),
            (0xe0f5_e1e2, 0, 0x4000_0000, 12, 0)
        );
        assert_eq!((n32(sb, 44), n32(sb, 80), n16(sb, 84), n16(sb, 88)), (0, 12, 0, 11));
        let ext = &bytes[1152..];
        assert_eq!(n64(ext, 0) & !0x20, 0x100_0194);
        assert_eq!(n32(ext, 20), 1 << 20);
        let (table, size) = (place(n64(ext, 8)), place(n32(ext, 16)));
        assert_eq!(size / 256, place(n16(sb, 86)));
        let mut all = Vec::new();
        let mut blocks = 0;
        for (n, row) in bytes[table..table + size].chunks(256).enumerate() {
            let slot = &bytes[1408 + n * 128..][..128];
            assert_eq!(slot[..64], row[..64]);
            assert_eq!(n32(slot, 64) * 4096, n64(row, 96));
            assert_eq!(n32(slot, 68) % 128, 0);
            blocks += n32(slot, 64);
            assert_eq!(n32(row, 64), n as u64);
            let id = String::from_utf8(row[..64].to_vec()).unwrap();
            let blob = blobs.get(&id).map(Vec::as_slice);
            let mut units = Vec::new();
            if let Some(blob) = blob {
                let parts = parts(blob);
                let find = |name: &str| parts.iter().find(|part| part.name == name).unwrap();
                let (meta, header) = (find("blob.meta"), &find("blob.meta.header").plain);
                assert_eq!((n64(row, 112), n64(row, 120)), (meta.offset, meta.stored));
                assert_eq!(n64(row, 128), meta.plain.len() as u64);
                assert_eq!((n32(header, 0), n32(header, 4092)), (0xb10b_b10b, 0xb10b_b10b));
                assert_eq!((n32(header, 12), n32(row, 72) * 16), (n32(row, 72), meta.plain.len() as u64));
                assert_eq!(n32(header, 4), 0x7000_0023);
                assert_eq!(n32(header, 4) & !2, n32(row, 84));
                units.clone_from(&meta.plain);
            }
            all.push((id, blob, units));
        }
        assert_eq!(n32(sb, 36), blocks);
        let mut bootstrap =
            Self { bytes, blobs: all, meta: place(n32(sb, 40)) * 4096, chunks: BTreeMap::new() };
        bootstrap.read_chunks(&bytes[place(n64(ext, 24))..][..place(n64(ext, 32))]);
        bootstrap
    }

    /// Reads the chunks the bootstrap has, and holds them against those of the blobs.
    fn read_chunks(&mut self, rows: &[u8]) {
        for row in rows.chunks(80) {
            let (blob, number) = (n32(row, 32), n32(row, 72));
            if let (_, Some(bytes), units) = &self.blobs[place(blob)] {
                let unit = unit(units, number);
                assert_eq!(unit, (n64(row, 48), n32(row, 40), n64(row, 56), n32(row, 44)));
                assert_eq!(n32(row, 36), u64::from(unit.1 != unit.3));
                let digests = parts(bytes).into_iter().find(|part| part.name == "blob.digest").unwrap().plain;
                assert_eq!(digests[place(number) * 32..][..32], row[..32]);
            }
            let twice = self.chunks.insert((blob, number), row[..32].try_into().unwrap());
            assert!(twice.is_none());
        }
    }

    pub(crate) fn blobs(&self) -> Vec<&str> {
        self.blobs.iter().map(|(id, ..)| id.as_str()).collect()
    }

    /// Returns the tree.
    pub(crate) fn dump(&self) -> Dump {
        let root = n16(&self.bytes[1024..], 14);
        let (mut nids, mut paths) = (BTreeMap::new(), BTreeMap::new());
        self.list(root, root, &mut Vec::new(), &mut paths);
        let inodes = &self.bytes[1024..];
        let mut links = BTreeMap::new();
        let mut dump = Dump::new();
        for (path, nid) in paths {
            *links.entry(nid).or_insert(0_u64) += 1;
            let first: &Vec<u8> = nids.entry(nid).or_insert_with(|| path.clone());
            let mut node = self.node(nid);
            if *first != path {
                node.what = What::SameAs(first.clone());
            }
            dump.insert(path, node);
        }
        assert_eq!(n64(inodes, 16), nids.len() as u64 + 1, "the number of inodes");
        for (nid, links) in links {
            let inode = self.inode(nid);
            let dir = n16(inode, 4) >> 12 == 4;
            assert!(dir && links == 1 || n32(inode, 44) == links, "links of {nid}");
            assert_eq!(n32(inode, 20), nid);
        }
        dump
    }

    fn inode(&self, nid: u64) -> &[u8] {
        assert_ne!(nid, 0);
        &self.bytes[self.meta + place(nid) * 32..]
    }

    /// Returns the bytes of a directory or of a link.
    fn inner(&self, nid: u64) -> Vec<u8> {
        let inode = self.inode(nid);
        let (layout, size, head) = (n16(inode, 0) >> 1, place(n64(inode, 8)), head(inode));
        let whole = if layout == 2 { size / 4096 * 4096 } else { size };
        let at = place(n32(inode, 16)) * 4096;
        let mut out = self.bytes[at..][..whole].to_vec();
        out.extend_from_slice(&inode[head..][..size - whole]);
        out
    }

    fn list(&self, nid: u64, parent: u64, path: &mut Vec<u8>, paths: &mut BTreeMap<Vec<u8>, u64>) {
        let bytes = self.inner(nid);
        let mut names: Vec<(Vec<u8>, u64)> = Vec::new();
        for block in bytes.chunks(4096) {
            let count = place(n16(block, 8) / 12);
            for n in 0..count {
                let start = place(n16(block, n * 12 + 8));
                let end = if n + 1 == count { block.len() } else { place(n16(block, n * 12 + 20)) };
                let name = block[start..end].split(|byte| *byte == 0).next().unwrap();
                names.push((name.to_vec(), n64(block, n * 12)));
            }
        }
        assert!(names.is_sorted());
        for (name, child) in names {
            match &name[..] {
                b"." => assert_eq!(child, nid),
                b".." => assert_eq!(child, parent),
                _ => {
                    let len = path.len();
                    if len > 0 {
                        path.push(b'/');
                    }
                    path.extend_from_slice(&name);
                    paths.insert(path.clone(), child);
                    if n16(self.inode(child), 4) >> 12 == 4 {
                        self.list(child, nid, path, paths);
                    }
                    path.truncate(len);
                }
            }
        }
    }

    fn node(&self, nid: u64) -> Node {
        let inode = self.inode(nid);
        assert_eq!(n16(inode, 0) & 1, 1, "long");
        let number = u32::try_from(n32(inode, 16)).unwrap();
        let device = (number >> 8 & 0xfff, number & 0xff | number >> 12 & 0xf_ff00);
        let what = match n16(inode, 4) >> 12 {
            1 => What::Fifo,
            2 => What::Char(device.0, device.1),
            4 => What::Dir,
            6 => What::Block(device.0, device.1),
            8 => What::File(self.content(inode)),
            10 => What::Symlink(self.inner(nid)),
            other => panic!("{other}"),
        };
        Node {
            what,
            mode: u32::try_from(n16(inode, 4) & 0o7777).unwrap(),
            uid: u32::try_from(n32(inode, 24)).unwrap(),
            gid: u32::try_from(n32(inode, 28)).unwrap(),
            mtime: (n64(inode, 32).cast_signed(), u32::try_from(n32(inode, 40)).unwrap()),
            xattrs: xattrs(&inode[64..head(inode)]),
        }
    }

    fn content(&self, inode: &[u8]) -> Vec<u8> {
        assert_eq!(n16(inode, 0) >> 1, 4);
        let (size, at) = (n64(inode, 8), head(inode).next_multiple_of(8));
        let (mut out, mut blocks) = (Vec::new(), Vec::new());
        for n in 0..size.div_ceil(1 << 20) {
            let address = &inode[at + place(n) * 8..];
            let (blob, number) = (u64::from(address[2]) - 1, n16(address, 0) | u64::from(address[3]) << 16);
            let (_, Some(bytes), units) = &self.blobs[place(blob)] else { panic!("no such blob") };
            let (offset, stored, plain, len) = unit(units, number);
            assert_eq!(plain, n32(address, 4) * 4096);
            assert_eq!(len, (size - (n << 20)).min(1 << 20));
            blocks.push(plain);
            let chunk = &bytes[place(offset)..place(offset + stored)];
            let chunk = if stored == len {
                chunk.to_vec()
            } else {
                zstd::bulk::decompress(chunk, place(len)).unwrap()
            };
            assert_eq!(blake3::hash(&chunk).as_bytes(), &self.chunks[&(blob, number)]);
            out.extend(chunk);
        }
        let together = blocks.windows(2).all(|pair| pair[0] + (1 << 20) == pair[1]) && size > 1 << 20;
        let chunk: u64 = if together { size.next_power_of_two() } else { 1 << 20 };
        assert_eq!(n32(inode, 16), u64::from(0x20 | (chunk.trailing_zeros() - 12)));
        out
    }
}

/// Returns offset and length of a chunk, both stored and plain.
fn unit(units: &[u8], number: u64) -> (u64, u64, u64, u64) {
    let (plain, stored) = (n64(units, place(number) * 16), n64(units, place(number) * 16 + 8));
    let len = |low: u64, high: u64| (low | high << 20) + 1;
    (
        stored & 0xff_ffff_ffff,
        len(stored >> 44, stored >> 40 & 15),
        plain & 0xfff_ffff_f000,
        len(plain >> 44, plain >> 8 & 15),
    )
}

/// Returns how long an inode is with its attributes.
fn head(inode: &[u8]) -> usize {
    64 + match place(n16(inode, 2)) {
        0 => 0,
        count => 12 + (count - 1) * 4,
    }
}

fn xattrs(bytes: &[u8]) -> BTreeMap<Vec<u8>, Vec<u8>> {
    let mut out = BTreeMap::new();
    let Some((header, mut rest)) = bytes.split_at_checked(12) else { return out };
    assert_eq!(header, [0; 12]);
    while !rest.is_empty() {
        let (name, value) = (usize::from(rest[0]), place(n16(rest, 2)));
        let prefix =
            ["", "user.", "system.posix_acl_access", "system.posix_acl_default", "trusted.", "", "security."]
                [usize::from(rest[1])];
        let full = [prefix.as_bytes(), &rest[4..4 + name]].concat();
        out.insert(full, rest[4 + name..][..value].to_vec());
        rest = &rest[(4 + name + value).next_multiple_of(4)..];
    }
    out
}
