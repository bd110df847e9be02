//! A tar writer that can also write what no tool writes: the generator behind the tests of the tar reader.
//!
//! Knows nothing of the workspace's own reader, so that both would have to make the same mistake. Not fast and not
//! careful: asked for the impossible, it panics.

use crate::dice::Dice;

/// What a member is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    /// A directory.
    Dir,
    /// A regular file and its content.
    File(Vec<u8>),
    /// A sparse file: its length, and its pieces of data with their offsets, ascending.
    Sparse(u64, Vec<(u64, Vec<u8>)>),
    /// A hard link.
    Link(Vec<u8>),
    /// A symbolic link.
    Symlink(Vec<u8>),
    /// A character device: major, minor.
    Char(u32, u32),
    /// A block device: major, minor.
    Block(u32, u32),
    /// A named pipe.
    Fifo,
}

/// One member.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    /// Path as it is to be written.
    pub path: Vec<u8>,
    /// Type and contents.
    pub kind: Kind,
    /// Permissions and the like.
    pub mode: u32,
    /// Owner.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Last modification: seconds, nanoseconds after them.
    pub mtime: (i64, u32),
    /// Extended attributes: name, value.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// Returns an entry of root's with mode 0755 for directories and 0644 for all else.
    pub fn new(path: impl AsRef<[u8]>, kind: Kind) -> Self {
        let mode = if kind == Kind::Dir { 0o755 } else { 0o644 };
        let path = path.as_ref().to_vec();
        Self { path, kind, mode, uid: 0, gid: 0, mtime: (1_700_000_000, 0), xattrs: Vec::new() }
    }

    /// Returns a directory.
    pub fn dir(path: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Dir)
    }

    /// Returns a regular file.
    pub fn file(path: impl AsRef<[u8]>, content: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::File(content.as_ref().to_vec()))
    }

    /// Returns a hard link.
    pub fn link(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self::new(path, Kind::Link(target.as_ref().to_vec()))
    }

    /// Returns a symbolic link.
    pub fn symlink(path: impl AsRef<[u8]>, target: impl AsRef<[u8]>) -> Self {
        Self { mode: 0o777, ..Self::new(path, Kind::Symlink(target.as_ref().to_vec())) }
    }

    /// Returns the entry with another mode.
    #[must_use]
    pub fn mode(mut self, mode: u32) -> Self {
        self.mode = mode;
        self
    }

    /// Returns the entry with another owner.
    #[must_use]
    pub fn owner(mut self, uid: u32, gid: u32) -> Self {
        (self.uid, self.gid) = (uid, gid);
        self
    }

    /// Returns the entry with another time.
    #[must_use]
    pub fn mtime(mut self, secs: i64, nanos: u32) -> Self {
        self.mtime = (secs, nanos);
        self
    }

    /// Returns the entry with one more extended attribute.
    #[must_use]
    pub fn xattr(mut self, name: impl AsRef<[u8]>, value: impl AsRef<[u8]>) -> Self {
        self.xattrs.push((name.as_ref().to_vec(), value.as_ref().to_vec()));
        self
    }
}

/// How a member is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Variant {
    /// As before POSIX: short names, no devices.
    V7,
    /// POSIX without extensions.
    Ustar,
    /// GNU: long names as members of their own, binary numbers, sparse files in the header.
    Gnu,
    /// pax, sparse files in version 0.0.
    Pax00,
    /// pax, sparse files in version 0.1.
    Pax01,
    /// pax, sparse files in version 1.0.
    Pax10,
}

impl Variant {
    /// All of them.
    pub const ALL: [Self; 6] = [Self::V7, Self::Ustar, Self::Gnu, Self::Pax00, Self::Pax01, Self::Pax10];

    /// Says whether a member can be written this way without loss. pax holds everything.
    pub fn holds(self, entry: &Entry) -> bool {
        let link = match &entry.kind {
            Kind::Link(target) | Kind::Symlink(target) => target.len(),
            _ => 0,
        };
        let plain = entry.xattrs.is_empty() && entry.mtime.1 == 0;
        let small = |n: u32| n < 1 << 21;
        let short =
            small(entry.uid) && small(entry.gid) && (0..1 << 33).contains(&entry.mtime.0) && link <= 100;
        let special = matches!(entry.kind, Kind::Char(..) | Kind::Block(..));
        let sparse = matches!(entry.kind, Kind::Sparse(..));
        match self {
            Self::V7 => plain && short && !sparse && !special && entry.path.len() < 100,
            Self::Ustar => plain && short && !sparse && split(&entry.path).is_some(),
            Self::Gnu => plain,
            _ => true,
        }
    }
}

/// A header block under construction: any field may be set to any bytes.
#[derive(Debug, Clone)]
pub struct Header(pub [u8; 512]);

impl Header {
    /// Returns a header of this type with the magic of a variant and otherwise empty fields.
    pub fn new(variant: Variant, kind: u8) -> Self {
        let mut header = Self([0; 512]);
        header.0[156] = kind;
        match variant {
            Variant::V7 => {}
            Variant::Gnu => header.put(257, b"ustar  \0"),
            _ => header.put(257, b"ustar\x0000"),
        }
        header
    }

    /// Puts bytes at an offset.
    pub fn put(&mut self, at: usize, bytes: &[u8]) {
        self.0[at..at + bytes.len()].copy_from_slice(bytes);
    }

    /// Puts a number in octal, or in base 256 if that does not hold it.
    pub fn number(&mut self, at: usize, len: usize, n: i64) {
        let digits = len - 1;
        if n >= 0 && (digits >= 21 || n < 1 << (3 * digits)) {
            self.put(at, format!("{n:0digits$o}\0").as_bytes());
        } else {
            let mut bytes = vec![if n < 0 { 0xff } else { 0 }; len];
            let low = n.to_be_bytes();
            let take = low.len().min(len);
            bytes[len - take..].copy_from_slice(&low[low.len() - take..]);
            bytes[0] |= 0x80;
            self.put(at, &bytes);
        }
    }

    /// Returns the block with its checksum.
    pub fn seal(mut self) -> [u8; 512] {
        self.put(148, b"        ");
        let sum: u32 = self.0.iter().map(|b| u32::from(*b)).sum();
        self.put(148, format!("{sum:06o}\0 ").as_bytes());
        self.0
    }
}

/// Returns a record of a pax extended header.
pub fn record(key: &[u8], value: &[u8]) -> Vec<u8> {
    let body = 3 + key.len() + value.len();
    let mut len = body;
    while len != body + len.to_string().len() {
        len = body + len.to_string().len();
    }
    [len.to_string().as_bytes(), b" ", key, b"=", value, b"\n"].concat()
}

/// A tar under construction, together with its skeleton.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Archive {
    /// The whole tar.
    pub tar: Vec<u8>,
    /// The tar without payload.
    pub skeleton: Vec<u8>,
}

impl Archive {
    /// Returns an empty one.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the finished tar of these members.
    pub fn of<'a>(entries: impl IntoIterator<Item = &'a Entry>, variant: Variant) -> Self {
        let mut archive = Self::new();
        entries.into_iter().for_each(|entry| archive.entry(entry, variant));
        archive.finish();
        archive
    }

    /// Adds bytes that are no payload.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.tar.extend_from_slice(bytes);
        self.skeleton.extend_from_slice(bytes);
    }

    /// Adds payload.
    pub fn payload(&mut self, bytes: &[u8]) {
        self.tar.extend_from_slice(bytes);
    }

    /// Adds what is missing to a whole block.
    pub fn pad(&mut self) {
        let missing = self.tar.len().next_multiple_of(512) - self.tar.len();
        self.raw(&vec![0; missing]);
    }

    /// Adds an extension: header, data, padding.
    pub fn extension(&mut self, variant: Variant, kind: u8, data: &[u8]) {
        let mut header = Header::new(variant, kind);
        header.put(0, b"././@Extension");
        for (at, len, n) in [(100, 8, 0o644), (108, 8, 0), (116, 8, 0), (136, 12, 0)] {
            header.number(at, len, n);
        }
        header.number(124, 12, signed(data.len()));
        self.raw(&header.seal());
        self.raw(data);
        self.pad();
    }

    /// Adds a pax header, `x` or `g`.
    pub fn records(&mut self, kind: u8, records: &[(&[u8], &[u8])]) {
        let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
        self.extension(Variant::Pax10, kind, &data);
    }

    /// Adds the two zero blocks.
    pub fn finish(&mut self) {
        self.raw(&[0; 1024]);
    }

    /// Adds a member. Parts of it that a variant other than pax cannot hold are lost.
    pub fn entry(&mut self, entry: &Entry, variant: Variant) {
        match variant {
            Variant::V7 | Variant::Ustar | Variant::Gnu => self.classic(entry, variant),
            _ => self.pax(entry, variant),
        }
    }

    fn classic(&mut self, entry: &Entry, variant: Variant) {
        let mut header = base(entry, variant);
        match (variant, split(&entry.path)) {
            (Variant::Gnu, _) if entry.path.len() > 100 => {
                self.extension(variant, b'L', &[&entry.path[..], b"\0"].concat());
                header.put(0, &entry.path[..100]);
            }
            (Variant::Ustar, Some((prefix, name))) => {
                header.put(0, name);
                header.put(345, prefix);
            }
            _ => header.put(0, &entry.path),
        }
        if let Kind::Link(target) | Kind::Symlink(target) = &entry.kind {
            if target.len() > 100 {
                self.extension(variant, b'K', &[&target[..], b"\0"].concat());
            }
            header.put(157, &target[..target.len().min(100)]);
        }
        match &entry.kind {
            Kind::Sparse(size, pieces) => self.old_sparse(header, *size, pieces),
            Kind::File(content) => {
                self.raw(&header.seal());
                self.payload(content);
            }
            _ => self.raw(&header.seal()),
        }
        self.pad();
    }

    /// GNU's sparse format: four pieces in the header, then twenty-one in each extension block.
    fn old_sparse(&mut self, mut header: Header, size: u64, pieces: &[(u64, Vec<u8>)]) {
        let mut left = pieces;
        let mut table = |block: &mut Header, start: usize, room: usize, goes_on: usize| {
            for (n, (at, data)) in left.iter().take(room).enumerate() {
                block.number(start + 24 * n, 12, signed(*at));
                block.number(start + 24 * n + 12, 12, signed(data.len()));
            }
            left = left.get(room..).unwrap_or(&[]);
            block.0[goes_on] = u8::from(!left.is_empty());
            !left.is_empty()
        };
        header.number(483, 12, signed(size));
        let mut more = table(&mut header, 386, 4, 482);
        self.raw(&header.seal());
        while more {
            let mut block = Header([0; 512]);
            more = table(&mut block, 0, 21, 504);
            self.raw(&block.0);
        }
        pieces.iter().for_each(|(_, data)| self.payload(data));
    }

    fn pax(&mut self, entry: &Entry, variant: Variant) {
        let mut records: Vec<(Vec<u8>, Vec<u8>)> = Vec::new();
        let mut add = |key: &[u8], value: &[u8]| records.push((key.to_vec(), value.to_vec()));
        let text = |n: u64| n.to_string().into_bytes();
        let sparse = matches!(entry.kind, Kind::Sparse(..));
        if entry.path.len() > 100 && !sparse {
            add(b"path", &entry.path);
        }
        if let Kind::Link(target) | Kind::Symlink(target) = &entry.kind
            && target.len() > 100
        {
            add(b"linkpath", target);
        }
        if entry.uid >= 1 << 21 {
            add(b"uid", &text(entry.uid.into()));
        }
        if entry.gid >= 1 << 21 {
            add(b"gid", &text(entry.gid.into()));
        }
        if entry.mtime.1 != 0 || !(0..1 << 33).contains(&entry.mtime.0) {
            add(b"mtime", decimal(entry.mtime).as_bytes());
        }
        for (name, value) in &entry.xattrs {
            add(&[b"SCHILY.xattr.", &name[..]].concat(), value);
        }
        let mut header = base(&Entry { mtime: (entry.mtime.0.max(0), 0), ..entry.clone() }, variant);
        header.put(0, &entry.path[..entry.path.len().min(100)]);
        if let Kind::Link(target) | Kind::Symlink(target) = &entry.kind {
            header.put(157, &target[..target.len().min(100)]);
        }
        let mut map = String::new();
        if let Kind::Sparse(size, pieces) = &entry.kind {
            map = sparse_records(variant, *size, pieces, &entry.path, &mut add);
            let stored = map.len() as u64 + pieces.iter().map(|(_, data)| data.len() as u64).sum::<u64>();
            header.number(124, 12, signed(stored));
            header.put(0, b"GNUSparseFile.0/x");
            header.0[17..100].fill(0);
        }
        if !records.is_empty() {
            let data: Vec<u8> = records.iter().flat_map(|(key, value)| record(key, value)).collect();
            self.extension(variant, b'x', &data);
        }
        self.raw(&header.seal());
        self.raw(map.as_bytes());
        match &entry.kind {
            Kind::File(content) => self.payload(content),
            Kind::Sparse(_, pieces) => pieces.iter().for_each(|(_, data)| self.payload(data)),
            _ => {}
        }
        self.pad();
    }
}

/// Adds the records of a sparse file; returns the map that begins the data of version 1.0.
fn sparse_records(
    variant: Variant,
    size: u64,
    pieces: &[(u64, Vec<u8>)],
    path: &[u8],
    add: &mut impl FnMut(&[u8], &[u8]),
) -> String {
    let size = size.to_string();
    let count = pieces.len().to_string();
    add(b"GNU.sparse.name", path);
    match variant {
        Variant::Pax00 => {
            add(b"GNU.sparse.major", b"0");
            add(b"GNU.sparse.minor", b"0");
            add(b"GNU.sparse.size", size.as_bytes());
            add(b"GNU.sparse.numblocks", count.as_bytes());
            for (at, data) in pieces {
                add(b"GNU.sparse.offset", at.to_string().as_bytes());
                add(b"GNU.sparse.numbytes", data.len().to_string().as_bytes());
            }
            String::new()
        }
        Variant::Pax01 => {
            let map: Vec<_> = pieces.iter().map(|(at, data)| format!("{at},{}", data.len())).collect();
            add(b"GNU.sparse.major", b"0");
            add(b"GNU.sparse.minor", b"1");
            add(b"GNU.sparse.size", size.as_bytes());
            add(b"GNU.sparse.numblocks", count.as_bytes());
            add(b"GNU.sparse.map", map.join(",").as_bytes());
            String::new()
        }
        _ => {
            add(b"GNU.sparse.major", b"1");
            add(b"GNU.sparse.minor", b"0");
            add(b"GNU.sparse.realsize", size.as_bytes());
            let mut map = format!("{count}\n");
            for (at, data) in pieces {
                map += &format!("{at}\n{}\n", data.len());
            }
            let room = map.len().next_multiple_of(512) - map.len();
            map + &"\0".repeat(room)
        }
    }
}

fn base(entry: &Entry, variant: Variant) -> Header {
    let kind = match (&entry.kind, variant) {
        (Kind::File(_), Variant::V7) => 0,
        (Kind::Dir, Variant::V7) if entry.path.ends_with(b"/") => 0,
        (Kind::Sparse(..), Variant::Gnu) => b'S',
        (Kind::File(_) | Kind::Sparse(..), _) => b'0',
        (Kind::Link(_), _) => b'1',
        (Kind::Symlink(_), _) => b'2',
        (Kind::Char(..), _) => b'3',
        (Kind::Block(..), _) => b'4',
        (Kind::Dir, _) => b'5',
        (Kind::Fifo, _) => b'6',
    };
    let mut header = Header::new(variant, kind);
    let size = match &entry.kind {
        Kind::File(content) => content.len(),
        Kind::Sparse(_, pieces) => pieces.iter().map(|(_, data)| data.len()).sum(),
        _ => 0,
    };
    header.number(100, 8, i64::from(entry.mode));
    header.number(108, 8, i64::from(entry.uid));
    header.number(116, 8, i64::from(entry.gid));
    header.number(124, 12, signed(size));
    header.number(136, 12, entry.mtime.0);
    if let Kind::Char(major, minor) | Kind::Block(major, minor) = entry.kind {
        header.number(329, 8, i64::from(major));
        header.number(337, 8, i64::from(minor));
    }
    header
}

/// Splits a path for the two fields of ustar.
fn split(path: &[u8]) -> Option<(&[u8], &[u8])> {
    if path.len() <= 100 {
        return Some((b"", path));
    }
    (1..path.len().min(156))
        .filter(|at| path[*at] == b'/' && (1..=100).contains(&(path.len() - at - 1)))
        .map(|at| (&path[..at], &path[at + 1..]))
        .next()
}

/// Returns a time as pax writes it: the fraction counts away from zero with the sign of the whole.
fn decimal((secs, nanos): (i64, u32)) -> String {
    match (secs < 0, nanos) {
        (_, 0) => secs.to_string(),
        (false, _) => format!("{secs}.{nanos:09}"),
        (true, _) => {
            let (whole, fraction) = (-(secs + 1), 1_000_000_000 - nanos);
            format!("-{whole}.{fraction:09}")
        }
    }
}

fn signed<N>(n: N) -> i64
where
    N: TryInto<i64>,
{
    n.try_into().unwrap_or(i64::MAX)
}

/// Returns a tar like that of a large image: `members` members, three directories and one link among twenty,
/// contents mostly small, some names long. The same every time.
pub fn large(members: usize) -> Archive {
    let mut archive = Archive::new();
    let mut dice = Dice(0x9e37_79b9_7f4a_7c15);
    let mut random = |below| dice.below(below);
    let mut dir = "usr/lib/node_modules".to_owned();
    let mut file = String::from("usr/lib/none");
    for n in 0..members {
        let entry = match n % 20 {
            0 | 7 | 14 => {
                dir = format!("usr/lib/node_modules/package-{}/dist/module{}", random(400), n / 20);
                Entry::dir(format!("{dir}/"))
            }
            13 if n > 20 => Entry::symlink(format!("{dir}/link-{n}"), &file),
            _ => {
                file = match random(30) {
                    0 => format!("{dir}/{}-{n}.d.ts", "a-rather-long-name-".repeat(6)),
                    _ => format!("{dir}/index-{n}.js"),
                };
                let len = random(4000);
                let content: Vec<u8> =
                    (0..len).map(|_| b' ' + u8::try_from(random(64)).unwrap_or(0)).collect();
                Entry::file(&file, content)
            }
        };
        let entry = entry.mtime(1_700_000_000 + i64::try_from(random(1000)).unwrap_or(0), 0);
        archive.entry(&entry, Variant::Gnu);
    }
    archive.finish();
    archive
}
