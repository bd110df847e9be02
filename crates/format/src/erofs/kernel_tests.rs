//! Images against the kernel and against erofs-utils: the writer's claims, checked by others.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::os::unix::fs::{FileExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use proptest::prelude::*;
use sys::mount::{self, Detached, DeviceReads};

use super::disk;
use super::fixture::{Fixture, xattrs};
use super::write;
use crate::tree::{Device, File, InodeNo, Kind, Meta, Runs, Time, Tree};

/// An image and its segments in files.
struct OnDisk {
    dir: tempfile::TempDir,
    segments: Vec<PathBuf>,
}

impl OnDisk {
    fn of(fixture: &Fixture) -> Self {
        let image = write::image(&fixture.tree, &fixture.devices()).unwrap();
        assert_eq!(image.len() % 4096, 0);
        // Not in /tmp: the kernel refuses an image on tmpfs.
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        fs::write(dir.path().join("image"), image).unwrap();
        let segments = (0..).zip(fixture.segments()).map(|(n, bytes): (u32, _)| {
            let path = dir.path().join(n.to_string());
            fs::write(&path, bytes).unwrap();
            path
        });
        Self { segments: segments.collect(), dir }
    }

    fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    fn mount(&self, reads: DeviceReads) -> Result<Detached, mount::MountError> {
        mount::erofs(&self.image(), &self.segments, reads)
    }

    fn tool(&self, program: &str, args: &[&str]) -> String {
        let devices = self.segments.iter().map(|path| format!("--device={}", path.display()));
        let out = Command::new(program).args(devices).args(args).arg(self.image()).output().unwrap();
        let said =
            format!("{}{}", String::from_utf8_lossy(&out.stdout), String::from_utf8_lossy(&out.stderr));
        assert!(out.status.success(), "{program}: {said}");
        said
    }
}

/// Why the kernel cannot be asked here, if so. Everything else is a failure.
fn kernel_missing() -> Option<String> {
    static MISSING: std::sync::OnceLock<Option<String>> = std::sync::OnceLock::new();
    let probe = || {
        if !rustix::process::geteuid().is_root() {
            return Some("mounting EROFS needs root".to_owned());
        }
        let ready = OnDisk::of(&Fixture::new(&[]).finish());
        ready.mount(DeviceReads::Buffered).err().map(|e| format!("no EROFS from files here: {e}"))
    };
    MISSING.get_or_init(probe).clone()
}

fn tools_missing() -> Option<&'static str> {
    let there = |program| Command::new(program).arg("--help").output().is_ok();
    (!there("fsck.erofs") || !there("dump.erofs")).then_some("fsck.erofs and dump.erofs are not installed")
}

/// Mounts a fixture and compares everything the kernel shows with its tree.
fn check(fixture: &Fixture) {
    let disk = OnDisk::of(fixture);
    for reads in [DeviceReads::Buffered, DeviceReads::Direct] {
        let mounted = disk.mount(reads).unwrap();
        compare(fixture, Path::new(&format!("/proc/self/fd/{}", mounted.as_fd().as_raw_fd())));
    }
}

fn compare(fixture: &Fixture, root: &Path) {
    let mut inodes: HashMap<InodeNo, u64> = HashMap::new();
    let mut names: HashMap<InodeNo, u64> = HashMap::new();
    let mut stack = vec![(Tree::ROOT, root.join("."), 0)];
    let mut nlinks = Vec::new();
    while let Some((number, path, depth)) = stack.pop() {
        let inode = fixture.tree.inode(number);
        let seen = fs::symlink_metadata(&path).unwrap();
        let what = path.display();
        assert!(depth < 5000);
        let known = inodes.insert(number, seen.ino());
        assert!(known.is_none_or(|ino| ino == seen.ino()), "{what}: not the same inode under every name");
        *names.entry(number).or_default() += 1;
        let (mode, size, rdev) = expected(fixture, number);
        assert_eq!(seen.mode(), mode, "{what}: mode");
        assert_eq!((seen.uid(), seen.gid()), (inode.meta.uid, inode.meta.gid), "{what}: owner");
        let time = Time { secs: seen.mtime(), nanos: u32::try_from(seen.mtime_nsec()).unwrap() };
        assert_eq!(time, inode.meta.mtime, "{what}: mtime");
        assert_eq!(seen.rdev(), rdev, "{what}: rdev");
        if let Some(size) = size {
            assert_eq!(seen.len(), size, "{what}: size");
        }
        compare_xattrs(&inode.meta, &path, seen.is_symlink());
        match &inode.kind {
            Kind::Dir(entries) => {
                let listed: Vec<_> = fs::read_dir(&path).unwrap().map(|e| e.unwrap()).collect();
                let shown: BTreeMap<Vec<u8>, u32> = listed
                    .iter()
                    .map(|e| (e.file_name().into_vec(), fs_type(e.file_type().unwrap())))
                    .collect();
                let wanted: BTreeMap<Vec<u8>, u32> = entries
                    .iter()
                    .map(|(name, &n)| (name.as_bytes().to_vec(), expected(fixture, n).0 & 0o170_000))
                    .collect();
                assert_eq!(listed.len(), shown.len(), "{what}: a name twice");
                assert!(shown == wanted, "{what}: names");
                let subdirs = wanted.values().filter(|t| **t == 0o040_000).count() as u64;
                assert_eq!(seen.nlink(), 2 + subdirs, "{what}: nlink");
                for (name, &child) in entries {
                    stack.push((child, path.join(std::ffi::OsStr::from_bytes(name.as_bytes())), depth + 1));
                }
            }
            Kind::Symlink(target) => {
                assert_eq!(fs::read_link(&path).unwrap().as_os_str().as_bytes(), &**target, "{what}");
            }
            Kind::File(file) => compare_contents(fixture, file, &path),
            _ => {}
        }
        if !seen.is_dir() {
            nlinks.push((number, seen.nlink()));
        }
    }
    for (number, nlink) in nlinks {
        assert_eq!(nlink, names[&number], "nlink of inode {number:?}");
    }
    let distinct: std::collections::HashSet<_> = inodes.values().collect();
    assert_eq!(distinct.len(), inodes.len(), "inodes that names do not share are distinct");
}

fn fs_type(kind: fs::FileType) -> u32 {
    use std::os::unix::fs::FileTypeExt as _;
    match kind {
        k if k.is_dir() => 0o040_000,
        k if k.is_file() => 0o100_000,
        k if k.is_symlink() => 0o120_000,
        k if k.is_char_device() => 0o020_000,
        k if k.is_block_device() => 0o060_000,
        k if k.is_fifo() => 0o010_000,
        _ => 0,
    }
}

/// `st_mode`, `st_size` where it follows from the tree, `st_rdev`.
fn expected(fixture: &Fixture, number: InodeNo) -> (u32, Option<u64>, u64) {
    let inode = fixture.tree.inode(number);
    let makedev = |d: Device| rustix::fs::makedev(d.major, d.minor);
    let (kind, size, rdev) = match &inode.kind {
        Kind::Dir(entries) => {
            // Only a lower bound is plain: names, entries, and what blocks leave over.
            let least: usize = entries.keys().map(|n| n.as_bytes().len() + 12).sum::<usize>() + 27;
            (0o040_000, (least <= 4096).then_some(least as u64), 0)
        }
        Kind::File(file) => (0o100_000, Some(file.size), 0),
        Kind::Symlink(target) => (0o120_000, Some(target.len() as u64), 0),
        Kind::Char(d) => (0o020_000, Some(0), makedev(*d)),
        Kind::Block(d) => (0o060_000, Some(0), makedev(*d)),
        Kind::Fifo => (0o010_000, Some(0), 0),
    };
    (kind | u32::from(inode.meta.mode), size, rdev)
}

fn compare_xattrs(meta: &Meta, path: &Path, link: bool) {
    let what = path.display();
    let mut list = vec![0; 1 << 16];
    let len = rustix::fs::llistxattr(path, &mut list[..]).unwrap();
    let mut listed: Vec<&[u8]> =
        list[..len].split_inclusive(|&b| b == 0).map(|n| &n[..n.len() - 1]).collect();
    listed.sort_unstable();
    let known = |name: &&[u8]| disk::split_xattr_name(name).0 != 0;
    let wanted: Vec<&[u8]> = meta.xattrs.keys().map(|name| &**name).filter(known).collect();
    assert_eq!(listed, wanted, "{what}: attribute names");
    for (name, value) in meta.xattrs.iter().filter(|(name, _)| known(&&***name)) {
        // The VFS hides user attributes of symbolic links.
        if link && name.starts_with(b"user.") {
            continue;
        }
        let mut shown = vec![0; 1 << 16];
        let len = rustix::fs::lgetxattr(path, &**name, &mut shown[..]).unwrap();
        assert!(shown[..len] == **value, "{what}: value of {}", name.escape_ascii());
    }
}

fn compare_contents(fixture: &Fixture, file: &File, path: &Path) {
    const WHOLE: u64 = 32 << 20;
    let opened = fs::File::open(path).unwrap();
    let look = |at: u64, len: u64| {
        let len = usize::try_from(len.min(file.size - at)).unwrap();
        let mut shown = vec![0; len];
        opened.read_exact_at(&mut shown, at).unwrap();
        assert!(shown == fixture.contents(file, at, len), "{}: {len} bytes at {at}", path.display());
    };
    if file.size <= WHOLE {
        look(0, file.size);
    } else if let Runs::Sparse(runs) = &file.runs {
        for run in runs {
            // With the zeros around it.
            look(run.at.saturating_sub(8192), run.len + 16_384);
        }
    }
    look(file.size - file.size.min(5000), 5000);
    assert_eq!(opened.read_at(&mut [0], file.size).unwrap(), 0, "end of file");
}

/// Every kind of inode there is.
pub(super) fn zoo() -> Fixture {
    let mut f = Fixture::new(&[16, 20]);
    const MIB: u64 = 1 << 20;
    for size in [0, 1, 4095, 4096, 4097, 65_535, 65_536, 65_537, 3 * 65_536 + 5] {
        f.file(format!("sizes/small segments {size}").as_bytes(), 0, size);
    }
    for size in [0, 1, 4095, 4096, 4097, MIB - 1, MIB, MIB + 1, 3 * MIB + 5] {
        f.file(format!("sizes/large segments {size}").as_bytes(), 1, size);
    }
    f.sparse(b"sparse/hole", 0, 10_000, &[]);
    f.sparse(b"sparse/huge hole", 0, 1 << 50, &[]);
    f.sparse(b"sparse/data, hole", 0, 1_000_000, &[(0, 10)]);
    f.sparse(b"sparse/hole, data", 0, 1_000_000, &[(999_990, 10)]);
    f.sparse(b"sparse/mixed", 0, 300_000, &[(100, 10), (4000, 200), (40_960, 4096), (200_000, 70_000)]);
    f.sparse(b"sparse/larger than a segment", 0, 900_000, &[(8192, 100_000), (400_000, 200_000)]);
    // Chunks of 1 MiB: an index of 8 MiB.
    f.sparse(b"sparse/far", 1, 1 << 40, &[(1 << 39, MIB), ((1 << 40) - MIB, MIB)]);
    f.dir(b"empty");
    f.dir(b"!before dots");
    f.dir(b"...");
    f.add(&[b'n'; 255], Kind::Fifo);
    f.add(b"\xff\xfe not \x01 text \n", Kind::Fifo);
    f.add(b"dev/null", Kind::Char(Device { major: 1, minor: 3 }));
    f.add(b"dev/whiteout", Kind::Char(Device { major: 0, minor: 0 }));
    f.add(b"dev/large", Kind::Block(Device { major: 4095, minor: 0xf_ffff }));
    f.add(b"dev/259:70000", Kind::Block(Device { major: 259, minor: 70_000 }));
    for len in [1, 59, 60, 3000, 4063, 4064, 4065, 4095] {
        f.add(format!("links/{len}").as_bytes(), Kind::Symlink(vec![b'x'; len].into()));
    }
    let shared = f.file(b"hard/a", 1, 5);
    f.link(b"hard/b", shared);
    f.link(b"c", shared);
    let fifo = f.add(b"hard/fifo", Kind::Fifo);
    f.link(b"hard/fifo too", fifo);
    f.push(Kind::Fifo);
    let mut deep = b"deep".to_vec();
    for _ in 0..200 {
        deep.extend_from_slice(b"/d");
    }
    f.file(&deep, 1, 77);
    for n in 0..2000 {
        f.file(format!("many/{n}").as_bytes(), 1, n % 3);
    }
    for n in 0..50 {
        f.file(format!("long/{n:0255}").as_bytes(), 1, 1);
    }
    f
}

pub(super) fn with_odd_attributes(mut f: Fixture) -> Fixture {
    let mut odd = |name: &[u8], change: &dyn Fn(&mut Meta)| {
        let number = f.file(&[b"odd/", name].concat(), 1, 10);
        change(f.meta(number));
    };
    odd(b"suid", &|m| m.mode = 0o6755);
    odd(b"sticky", &|m| m.mode = 0o1777);
    odd(b"none", &|m| m.mode = 0);
    odd(b"uid 65535", &|m| m.uid = 65_535);
    odd(b"uid 65536", &|m| m.uid = 65_536);
    odd(b"gid 4294967294", &|m| m.gid = u32::MAX - 1);
    for (secs, nanos) in
        [(-1, 999_999_999), (-(1 << 40), 0), (0, 1), (1 << 31, 0), (1 << 32, 5), (1 << 40, 123_456_789)]
    {
        odd(format!("time {secs}.{nanos}").as_bytes(), &|m| m.mtime = Time { secs, nanos });
    }
    odd(b"own value", &|m| m.xattrs = xattrs(&[(b"user.x", b"only here")]));
    let label: &[(&[u8], &[u8])] = &[(b"security.selinux", b"system_u:object_r:usr_t:s0\0")];
    odd(b"labelled", &|m| m.xattrs = xattrs(label));
    odd(b"labelled too", &|m| m.xattrs = xattrs(label));
    odd(b"labelled and more", &|m| {
        m.xattrs = xattrs(&[label[0], (b"user.", b"no name"), (b"trusted.t", b""), (b"user.1", b"1234567")]);
    });
    let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    odd(b"capability", &|m| m.xattrs = xattrs(&[(b"security.capability", &capability)]));
    let acl = acl(&[(1, 6, u32::MAX), (2, 4, 1000), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 0, u32::MAX)]);
    odd(b"acl", &|m| m.xattrs = xattrs(&[(b"system.posix_acl_access", &acl)]));
    odd(b"of nobody", &|m| m.xattrs = xattrs(&[(b"btrfs.compression", b"zstd"), (b"user.known", b"v")]));
    odd(b"long value", &|m| m.xattrs = xattrs(&[(b"user.v", &[b'v'; 65_535])]));
    odd(b"long value too", &|m| m.xattrs = xattrs(&[(b"user.v", &[b'v'; 65_535])]));
    odd(b"own long value", &|m| m.xattrs = xattrs(&[(b"user.w", &[b'w'; 65_535])]));
    odd(b"long name", &|m| m.xattrs = xattrs(&[(&[b"user.", &[b'n'; 250][..]].concat(), b"v")]));
    let many: Vec<_> = (0..4000).map(|n| format!("user.{n}").into_bytes()).collect();
    let many: Vec<_> = many.iter().map(|name| (&name[..], &b"value"[..])).collect();
    odd(b"many", &|m| m.xattrs = xattrs(&many));
    odd(b"more than 255 shared", &|m| m.xattrs = xattrs(&many[..300]));
    let dir = f.dir(b"odd/dir");
    f.meta(dir).xattrs = xattrs(&[(b"system.posix_acl_default", &acl), label[0]]);
    f.meta(dir).uid = 100_000;
    let wide = f.dir(b"odd/dir with much");
    f.meta(wide).xattrs = xattrs(&[(b"user.v", &[b'v'; 5000])]);
    f.file(b"odd/dir with much/file", 1, 3);
    for len in [3000, 4095] {
        let link = f.add(format!("odd/link {len}").as_bytes(), Kind::Symlink(vec![b'y'; len].into()));
        f.meta(link).xattrs = xattrs(&[(b"trusted.long", &[b't'; 2000])]);
    }
    f.meta(Tree::ROOT).mtime = Time { secs: 1_700_000_000, nanos: 42 };
    f
}

/// A POSIX ACL as `setxattr` takes it: version 2, then tag, permissions, id.
fn acl(entries: &[(u16, u16, u32)]) -> Vec<u8> {
    let mut raw = 2_u32.to_le_bytes().to_vec();
    for (tag, perm, id) in entries {
        raw.extend_from_slice(&tag.to_le_bytes());
        raw.extend_from_slice(&perm.to_le_bytes());
        raw.extend_from_slice(&id.to_le_bytes());
    }
    raw
}

#[test]
fn the_kernel_shows_what_the_tree_says() {
    if let Some(why) = kernel_missing() {
        testkit::skip!("{why}");
    }
    check(&with_odd_attributes(zoo()).finish());
}

#[test]
fn fsck_and_dump_agree() {
    if let Some(why) = tools_missing() {
        testkit::skip!("{why}");
    }
    let fixture = with_odd_attributes(zoo()).finish();
    let disk = OnDisk::of(&fixture);
    let said = disk.tool("fsck.erofs", &["-d3", "--extract"]);
    assert!(said.contains("No errors found"), "{said}");
    let said = disk.tool("dump.erofs", &["-s"]);
    let features = "Filesystem features: sb_csum mtime chunked_file device_table";
    assert!(said.lines().any(|line| line.split_whitespace().eq(features.split_whitespace())), "{said}");
    let said = disk.tool("dump.erofs", &["-e", "--path=/sizes/small segments 196613"]);
    assert!(said.contains("196613"), "{said}");
}

#[test]
fn images_of_no_layer_one_device_and_many() {
    if let Some(why) = kernel_missing() {
        testkit::skip!("{why}");
    }
    check(&Fixture::new(&[]).finish());
    for devices in [1, 2, 100] {
        let mut f = Fixture::new(&[16]);
        for n in 0..devices {
            f.file(format!("{n}").as_bytes(), 0, 65_536);
        }
        let f = f.finish();
        assert_eq!(f.segments().len(), devices);
        check(&f);
    }
    let mut f = Fixture::new(&[16; 127]);
    for n in 0..127 {
        f.file(format!("{n}").as_bytes(), n, u64::from(n));
    }
    check(&f.finish());
}

#[test]
fn a_huge_directory() {
    if let Some(why) = kernel_missing() {
        testkit::skip!("{why}");
    }
    let mut f = Fixture::new(&[20]);
    let one = f.push(Kind::Fifo);
    for n in 0..50_000 {
        // Links of one inode: what is to be seen is the directory. 50,000 is below 65,536 names, 70,000 is not.
        f.link(format!("huge/{n}").as_bytes(), one);
    }
    for n in 0..20_000 {
        f.link(format!("more/{n}").as_bytes(), one);
    }
    check(&f.finish());
}

#[test]
fn without_its_devices_an_image_has_no_bytes_to_show() {
    // The kernel mounts an image of several devices without any, and then takes the devices to be part of the
    // image itself. Its metadata must not turn up as the contents of files.
    if let Some(why) = kernel_missing() {
        testkit::skip!("{why}");
    }
    let mut f = Fixture::new(&[16]);
    for n in 0..20 {
        f.file(format!("{n}").as_bytes(), 0, 30_000);
    }
    let disk = OnDisk::of(&f.finish());
    let mounted = mount::erofs(&disk.image(), std::iter::empty::<PathBuf>(), DeviceReads::Buffered).unwrap();
    let root = PathBuf::from(format!("/proc/self/fd/{}", mounted.as_fd().as_raw_fd()));
    for n in 0..20 {
        let read = fs::read(root.join(n.to_string()));
        assert_eq!(
            read.err().and_then(|e| e.raw_os_error()),
            Some(rustix::io::Errno::IO.raw_os_error()),
            "{n}"
        );
    }
    // One too few is refused.
    let error = mount::erofs(&disk.image(), &disk.segments[1..], DeviceReads::Buffered).unwrap_err();
    assert_eq!(error.errno(), Some(rustix::io::Errno::INVAL.raw_os_error()), "{error}");
}

#[test]
fn same_tree_same_bytes_whatever_the_inode_numbers() {
    let build = |names: &[&str]| {
        let mut f = Fixture::new(&[16]);
        let file = f.file(b"z/file", 0, 9);
        for name in names {
            let number = f.dir(name.as_bytes());
            f.meta(number).xattrs = xattrs(&[(b"user.a", b"1"), (b"user.b", name.as_bytes())]);
            f.meta(number).mtime.secs = i64::from(name.as_bytes()[0]);
        }
        f.link(b"linked", file);
        let f = f.finish();
        write::image(&f.tree, &f.devices()).unwrap()
    };
    let image = build(&["a", "b", "c"]);
    assert_eq!(image, build(&["c", "b", "a"]));
    assert_ne!(image, build(&["c", "b", "d"]));
}

#[test]
fn an_image_is_the_same_in_every_release() {
    // Images are kept by the identity of their layers. If this fails on purpose, stored ones must get another name.
    let f = with_odd_attributes(zoo()).finish();
    let image = write::image(&f.tree, &f.devices()).unwrap();
    assert_eq!(
        blake3::hash(&image).to_hex().as_str(),
        "0a7cf5bb26e09e38cb028b97da558aa1f9c8871ce938d38921e55d181de94601"
    );
}

/// A random tree: operations on a small set of names.
pub(super) fn trees() -> impl Strategy<Value = Fixture> {
    let name = prop_oneof![
        4 => "[a-c]",
        1 => "[!-.]{1,3}".prop_filter("a name", |n| n != "." && n != ".."),
        1 => prop::collection::vec(prop::sample::select(vec![1_u8, b' ', b'x', 0xff]), 1..=255)
            .prop_map(|raw| raw.iter().map(|&b| char::from(b)).collect()),
    ];
    let path = prop::collection::vec(name, 1..5);
    let time = (prop::sample::select(vec![0, 1_700_000_000, -5, 1 << 33]), prop::sample::select(vec![0, 7]));
    let value = prop::sample::select(vec![0_usize, 1, 30, 3900, 9000]);
    let attrs = prop::collection::btree_map(
        prop::sample::select(vec!["trusted.a", "security.b", "trusted.c"]),
        value,
        0..3,
    );
    let meta = (prop::sample::select(vec![0_u32, 65_535, 65_536]), time, 0_u16..0o10000, attrs);
    let step = (
        path,
        0_u8..8,
        prop::collection::vec((0_u64..3, 1_u64..30_000), 0..5),
        meta,
        any::<prop::sample::Index>(),
    );
    prop::collection::vec(step, 0..60).prop_map(|steps| {
        let mut f = Fixture::new(&[16, 17]);
        for (names, kind, gaps, (uid, (secs, nanos), mode, attrs), pick) in steps {
            let raw: Vec<Vec<u8>> = names
                .iter()
                .map(|n| n.chars().map(|c| u8::try_from(u32::from(c)).unwrap()).collect())
                .collect();
            // Nothing below what is not a directory, and no name twice.
            let taken = (1..=raw.len()).any(|n| {
                let found = find(&f.tree, &raw[..n]);
                found.is_some_and(|i| n == raw.len() || !matches!(f.tree.inode(i).kind, Kind::Dir(_)))
            });
            if taken {
                continue;
            }
            let path = raw.join(&b'/');
            let len: u64 = gaps.iter().map(|(_, len)| len).sum();
            let number = match kind {
                0 => f.dir(&path),
                1 => f.add(&path, Kind::Symlink(vec![b's'; usize::try_from(len % 4095 + 1).unwrap()].into())),
                2 => f.add(&path, Kind::Char(Device { major: 7, minor: u32::try_from(len).unwrap() })),
                3 => {
                    let mut at = 0;
                    let pieces: Vec<_> = gaps
                        .iter()
                        .map(|&(gap, len)| {
                            at += gap * 7000;
                            let piece = (at, len);
                            at += len;
                            piece
                        })
                        .collect();
                    f.sparse(&path, 1, at + 5000, &pieces)
                }
                4 => {
                    let other = InodeNo(u32::try_from(pick.index(f.tree.inodes.len())).unwrap());
                    if matches!(f.tree.inode(other).kind, Kind::Dir(_)) {
                        continue;
                    }
                    f.link(&path, other);
                    other
                }
                _ => f.file(&path, 0, len),
            };
            let xattrs = attrs
                .into_iter()
                .map(|(name, len)| (name.as_bytes().into(), vec![b'v'; len].into()))
                .collect();
            *f.meta(number) =
                Meta { mode, uid, gid: 5, mtime: Time { secs, nanos }, xattrs: Arc::new(xattrs) };
        }
        f.finish()
    })
}

fn find(tree: &Tree, names: &[Vec<u8>]) -> Option<InodeNo> {
    names.iter().try_fold(Tree::ROOT, |at, name| match &tree.inode(at).kind {
        Kind::Dir(entries) => entries.get(&name[..]).copied(),
        _ => None,
    })
}

#[test]
fn random_trees_come_back_from_the_kernel() {
    if let Some(why) = kernel_missing() {
        testkit::skip!("{why}");
    }
    let config = ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() };
    proptest!(config, |(fixture in trees())| check(&fixture));
}

impl std::fmt::Debug for Fixture {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:#?}", self.tree)
    }
}
