//! The reader against the writer, against mkfs.erofs, and against damage.

use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::ops::ControlFlow;
use std::path::Path;
use std::process::Command;

use proptest::prelude::*;

use super::*;
use crate::erofs::fixture::{Fixture, xattrs};
use crate::erofs::kernel_tests::{trees, with_odd_attributes, zoo};
use crate::erofs::write;
use crate::tar::Member;
use crate::tree::{self, InodeNo, Runs, Tree};

/// Writes a fixture and compares everything that the reader shows with its tree.
fn check(fixture: &Fixture) {
    let bytes = write::image(&fixture.tree, &fixture.devices()).unwrap();
    let image = Image::open(&bytes[..]).unwrap();
    let mut number = 0;
    for layer in fixture.devices() {
        for (segment, blocks) in layer.lens.iter().enumerate() {
            number += 1;
            let device = image.device(number).unwrap();
            let (segment, len) = (u32::try_from(segment).unwrap(), u64::from(*blocks) * 4096);
            assert_eq!(device, Device { index: layer.index, segment, len });
        }
    }
    assert_eq!(image.devices(), number);
    assert_eq!((image.device(0), image.device(number + 1)), (None, None));

    let segments = fixture.segments();
    let mut known = HashMap::new();
    let mut names: HashMap<InodeNo, u32> = HashMap::new();
    let mut stack = vec![(Tree::ROOT, image.root())];
    while let Some((number, nid)) = stack.pop() {
        *names.entry(number).or_default() += 1;
        if let Some(before) = known.insert(number, nid) {
            assert_eq!(before, nid, "one inode under all its names");
            continue;
        }
        let inode = image.inode(nid).unwrap();
        compare(&image, fixture, number, &inode, &segments);
        if let tree::Kind::Dir(entries) = &fixture.tree.inode(number).kind {
            stack.extend(entries.iter().map(|(name, child)| {
                let found = image.lookup(&inode, name.as_bytes()).unwrap();
                (*child, found.unwrap_or_else(|| panic!("{name} is missing")))
            }));
        }
    }
    for (number, nid) in &known {
        if !matches!(fixture.tree.inode(*number).kind, tree::Kind::Dir(_)) {
            assert_eq!(image.inode(*nid).unwrap().links, names[number], "links of {number:?}");
        }
    }
    assert_eq!(image.inodes(), known.len() as u64);
}

fn compare(image: &Image<&[u8]>, fixture: &Fixture, number: InodeNo, inode: &Inode, segments: &[Vec<u8>]) {
    let source = fixture.tree.inode(number);
    let meta = &source.meta;
    assert_eq!(
        (inode.permissions, inode.uid, inode.gid, inode.mtime),
        (meta.mode, meta.uid, meta.gid, meta.mtime)
    );
    let mut shown = BTreeMap::new();
    for xattr in image.xattrs(inode).unwrap() {
        let xattr = xattr.unwrap();
        let name = [xattr.prefix, xattr.suffix].concat();
        assert_eq!(name.len(), xattr.name_len());
        assert_eq!(image.xattr(inode, &name).unwrap(), Some(xattr.value));
        assert_eq!(shown.insert(name.into_boxed_slice(), xattr.value.into()), None);
    }
    assert_eq!(shown, *meta.xattrs);
    for absent in [&b"user.none"[..], b"user.", b"", b"trusted", b"x"] {
        assert_eq!(image.xattr(inode, absent).unwrap(), meta.xattrs.get(absent).map(|value| &**value));
    }
    let device = |d: tree::Device| disk::encode_device(d).unwrap();
    match &source.kind {
        tree::Kind::Dir(entries) => compare_dir(image, fixture, entries, inode),
        tree::Kind::File(file) => {
            assert_eq!((inode.kind, inode.size), (Kind::File, file.size));
            compare_contents(image, fixture, file, inode, segments);
        }
        tree::Kind::Symlink(target) => {
            assert_eq!(inode.kind, Kind::Symlink);
            assert_eq!(image.readlink(inode).unwrap(), &**target);
        }
        tree::Kind::Char(d) => assert_eq!((inode.kind, inode.device), (Kind::Char, device(*d))),
        tree::Kind::Block(d) => assert_eq!((inode.kind, inode.device), (Kind::Block, device(*d))),
        tree::Kind::Fifo => assert_eq!((inode.kind, inode.device), (Kind::Fifo, 0)),
    }
}

fn compare_dir(
    image: &Image<&[u8]>,
    fixture: &Fixture,
    entries: &BTreeMap<crate::name::Name, InodeNo>,
    dir: &Inode,
) {
    assert_eq!(dir.kind, Kind::Dir);
    let all: Vec<_> = image.entries(dir, 0).unwrap().map(Result::unwrap).collect();
    let mut listed: Vec<_> = all.iter().map(|e| (e.name.to_vec(), e.kind)).collect();
    let mut wanted: Vec<_> =
        entries.iter().map(|(name, n)| (name.as_bytes().to_vec(), kind_of(fixture, *n))).collect();
    wanted.extend([(b".".to_vec(), Kind::Dir), (b"..".to_vec(), Kind::Dir)]);
    listed.sort_by(|a, b| a.0.cmp(&b.0));
    wanted.sort_by(|a, b| a.0.cmp(&b.0));
    assert!(listed == wanted);
    // A listing goes on from any cookie as if it had never stopped. All pairs in small directories.
    let step = all.len() / 50 + 1;
    for at in (0..all.len()).step_by(step) {
        let rest = image.entries(dir, all[at].next).unwrap().map(Result::unwrap);
        assert!(rest.eq(all[at + 1..].iter().copied()));
        let entry = &all[at];
        assert_eq!(image.lookup(dir, entry.name).unwrap(), Some(entry.nid));
        // Names next to one that is there.
        for absent in [[entry.name, b"!"].concat(), entry.name[..entry.name.len() - 1].to_vec()] {
            let there = all.iter().find(|e| e.name == absent).map(|e| e.nid);
            assert_eq!(image.lookup(dir, &absent).unwrap(), there);
        }
    }
    for absent in [&b""[..], b"\0", &[0xff; 255], &[b'x'; 300]] {
        assert_eq!(image.lookup(dir, absent).unwrap(), None);
    }
    assert_eq!(image.entries(dir, u64::MAX).unwrap().count(), 0);
}

fn kind_of(fixture: &Fixture, number: InodeNo) -> Kind {
    match fixture.tree.inode(number).kind {
        tree::Kind::Dir(_) => Kind::Dir,
        tree::Kind::File(_) => Kind::File,
        tree::Kind::Symlink(_) => Kind::Symlink,
        tree::Kind::Char(_) => Kind::Char,
        tree::Kind::Block(_) => Kind::Block,
        tree::Kind::Fifo => Kind::Fifo,
    }
}

fn compare_contents(
    image: &Image<&[u8]>,
    fixture: &Fixture,
    file: &tree::File,
    inode: &Inode,
    segments: &[Vec<u8>],
) {
    let look = |at: u64, len: u64| {
        let mut shown = Vec::new();
        for piece in image.pieces(inode, at, len).unwrap() {
            let piece = piece.unwrap();
            let len = usize::try_from(piece.len).unwrap();
            assert!(len > 0);
            match piece.source {
                Source::Hole => shown.resize(shown.len() + len, 0),
                Source::Device { number, offset } => {
                    let at = usize::try_from(offset).unwrap();
                    shown.extend_from_slice(&segments[usize::from(number) - 1][at..at + len]);
                }
            }
        }
        let len = usize::try_from(len.min(file.size.saturating_sub(at))).unwrap();
        assert!(shown == fixture.contents(file, at, len), "{len} bytes at {at}");
    };
    look(0, file.size.min(8 << 20));
    look(file.size, 1);
    look(u64::MAX, u64::MAX);
    for at in [1, 4095, 4096, 65_535, 65_536, 1 << 20, file.size / 2, file.size.saturating_sub(9)] {
        look(at, 1);
        look(at, 9000);
        look(at.saturating_sub(5000), 10_001);
    }
    if let Runs::Sparse(runs) = &file.runs {
        for run in runs {
            look(run.at.saturating_sub(100), 200);
            look((run.at + run.len).saturating_sub(100), 200);
        }
    }
    if let Runs::Whole(_) = file.runs {
        let bound = file.size.div_ceil(65_536).max(1);
        let pieces = image.pieces(inode, 0, file.size).unwrap().count() as u64;
        assert!(pieces <= bound, "{pieces} pieces for {} bytes", file.size);
    }
}

#[test]
fn the_reader_shows_what_the_tree_says() {
    check(&with_odd_attributes(zoo()).finish());
    check(&Fixture::new(&[]).finish());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 64, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn random_trees_come_back(fixture in trees()) {
        check(&fixture);
    }

    #[test]
    fn damage_is_an_error_or_other_values_but_never_a_panic(
        fixture in trees(),
        hits in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..8),
        cut in prop::option::of(any::<prop::sample::Index>()),
    ) {
        let mut bytes = write::image(&fixture.tree, &fixture.devices()).unwrap();
        for (at, value) in hits {
            let at = at.index(bytes.len());
            bytes[at] = value;
        }
        seal(&mut bytes);
        exercise(&bytes);
        if let Some(cut) = cut {
            bytes.truncate(cut.index(bytes.len()));
            exercise(&bytes);
        }
    }

    #[test]
    fn noise_behind_a_good_superblock_is_survived(noise in prop::collection::vec(any::<u8>(), 3 * BLOCK), pattern in any::<u8>()) {
        let f = Fixture::new(&[16]).finish();
        let mut bytes = write::image(&f.tree, &f.devices()).unwrap();
        bytes.resize(4 * BLOCK, 0);
        bytes[BLOCK..].copy_from_slice(&noise);
        bytes[disk::SUPER_OFFSET + 36..][..4].copy_from_slice(&4_u32.to_le_bytes());
        seal(&mut bytes);
        exercise(&bytes);
        bytes[BLOCK..].fill(pattern);
        exercise(&bytes);
    }
}

/// Makes the superblock's checksum right, so that damage gets past it.
fn seal(bytes: &mut [u8]) {
    if let Some(block0) = bytes.first_chunk_mut::<BLOCK>() {
        let sum = disk::super_checksum(block0);
        block0[disk::SUPER_OFFSET + 4..][..4].copy_from_slice(&sum.to_le_bytes());
    }
}

/// Calls everything on every inode there could be. Ends, and does not panic.
fn exercise(bytes: &[u8]) {
    let Ok(image) = Image::open(bytes) else { return };
    let slots = image.len() / disk::SLOT as u64 + 2;
    for nid in (0..slots).map(Nid).chain([Nid(u64::MAX), Nid(u64::MAX / 32), Nid(1 << 58)]) {
        let Ok(inode) = image.inode(nid) else { continue };
        let _ = image.readlink(&inode);
        let _ = image.lookup(&inode, b"a");
        let _ = image.lookup(&inode, &[0xff; 255]);
        let _ = image.xattr(&inode, b"user.a");
        if let Ok(xattrs) = image.xattrs(&inode) {
            assert!(xattrs.count() <= 1 << 18);
        }
        for cookie in [0, 1, 4095, 4096, inode.size, u64::MAX, u64::MAX - 4096] {
            if let Ok(entries) = image.entries(&inode, cookie) {
                for entry in entries.flatten() {
                    assert!(!entry.name.contains(&b'/') && entry.next > cookie);
                }
            }
        }
        for at in [0, 4096, inode.size / 2, inode.size.saturating_sub(1), u64::MAX] {
            if let Ok(pieces) = image.pieces(&inode, at, 1 << 20) {
                let len: u64 = pieces.flatten().map(|piece| piece.len).sum();
                assert!(len <= 1 << 20);
            }
        }
    }
    let mut steps = 0_u64;
    let _ = image.walk(|_| {
        steps += 1;
        // Directories in each other make many paths; what is bounded by a limit need not be waited for.
        if steps < 100_000 { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
    });
}

#[test]
fn every_byte_of_the_superblock_counts() {
    let f = with_odd_attributes(zoo()).finish();
    let image = write::image(&f.tree, &f.devices()).unwrap();
    for at in disk::SUPER_OFFSET..BLOCK {
        let mut bad = image[..].to_vec();
        bad[at] ^= 0x10;
        let error = Image::open(&bad[..]).unwrap_err();
        let magic = at < disk::SUPER_OFFSET + 4;
        assert_eq!(error, if magic { OpenError::Magic } else { OpenError::Checksum }, "byte {at}");
    }
    for len in [0, 1, 1023, 1024, 4095, 4096, image.len() - 4096, image.len() - 1] {
        assert!(matches!(Image::open(&image[..len]), Err(OpenError::Short { .. })), "{len}");
    }
    let more = [&image[..], &[7; 100]].concat();
    assert_eq!(Image::open(more).unwrap().len(), image.len() as u64);
}

#[test]
fn what_the_reader_does_not_know_it_refuses() {
    let mut f = Fixture::new(&[16]);
    f.file(b"file", 0, 9);
    let f = f.finish();
    let image = write::image(&f.tree, &f.devices()).unwrap();
    let with = |at: usize, value: u8| {
        let mut bytes = image.clone();
        bytes[disk::SUPER_OFFSET + at] = value;
        seal(&mut bytes);
        Image::open(bytes).map(|_| ())
    };
    for (at, value, word) in [
        (80, 0x0c | 0x02, "feature bits 0x2"),
        (83, 0x80, "feature bits 0x80000000"),
        (12, 9, "blocks of 2^9"),
        (13, 1, "extended superblock"),
        (90, 1, "directory blocks"),
        (91, 1, "prefixes"),
    ] {
        let Err(OpenError::Unknown(said)) = with(at, value) else { panic!("byte {at} taken") };
        assert!(said.contains(word), "{said}");
    }
    assert_eq!(with(8, 0), Err(OpenError::Checksum), "an image without a checksum");
    assert_eq!(with(87, 0xff), Err(OpenError::Devices), "65,000 devices");
    assert_eq!(with(89, 0xff), Err(OpenError::Devices), "a table past the end");
    assert!(matches!(with(14, 255), Err(OpenError::Root(_))), "a root that is none");
    assert_eq!(with(8, 0xff), Ok(()), "a feature that may be ignored");
}

#[test]
fn paths_lead_back_to_inodes() {
    let f = zoo().finish();
    let bytes = write::image(&f.tree, &f.devices()).unwrap();
    let image = Image::open(bytes).unwrap();
    assert_eq!(image.path_of(image.root()), Some(b"/".to_vec()));
    assert_eq!(image.path_of(Nid(1)), None);
    let mut deepest = Vec::new();
    let mut count = 0;
    image
        .walk(|step| {
            count += 1;
            if step.path.len() > deepest.len() {
                deepest = step.path.to_vec();
            }
            ControlFlow::Continue(())
        })
        .unwrap();
    let nid = deepest
        .split(|b| *b == b'/')
        .fold(image.root(), |at, name| image.lookup(&image.inode(at).unwrap(), name).unwrap().unwrap());
    assert!(deepest.len() > 400 && count > 2000);
    assert_eq!(image.path_of(nid), Some([b"/", &deepest[..]].concat()));
}

#[test]
fn lists_of_access_are_found_wherever_they_are() {
    let with = |path: Option<&[u8]>| {
        let mut f = zoo();
        let mut set =
            |number, name: &[u8]| f.meta(number).xattrs = xattrs(&[(b"user.a", b""), (name, b"\x02\0\0\0")]);
        set(Tree::ROOT, b"security.selinux");
        match path {
            None => {}
            Some(b"/") => set(Tree::ROOT, b"system.posix_acl_default"),
            Some(path) => {
                let number = f.dir(path);
                f.meta(number).xattrs = xattrs(&[(b"system.posix_acl_access", b"\x02\0\0\0")]);
            }
        }
        let f = f.finish();
        Image::open(write::image(&f.tree, &f.devices()).unwrap()).unwrap().has_acls()
    };
    assert!(!with(None));
    assert!(with(Some(b"/")) && with(Some(b"a/b/c")) && with(Some(b"zz")));
}

#[test]
fn a_directory_in_itself_ends() {
    let mut f = Fixture::new(&[]);
    f.dir(b"inner");
    let f = f.finish();
    let mut bytes = write::image(&f.tree, &f.devices()).unwrap();
    let image = Image::open(&bytes[..]).unwrap();
    let root = image.root();
    let inner = image.lookup(&image.inode(root).unwrap(), b"inner").unwrap().unwrap();
    // The entry of the inner directory becomes one of the root.
    let at = bytes.windows(8).position(|window| window == inner.0.to_le_bytes()).unwrap();
    bytes[at..at + 8].copy_from_slice(&root.0.to_le_bytes());
    seal(&mut bytes);
    let image = Image::open(&bytes[..]).unwrap();
    let error = image.walk(|_| ControlFlow::Continue(())).unwrap_err();
    assert!(error.to_string().contains("in itself"), "{error}");
    assert_eq!(image.path_of(Nid(0)), None);
}

/// An image by erofs-utils, with the device slot's length that version 1.5 leaves out.
fn mkfs(source: &Path, dir: &Path, options: &[&str]) -> Vec<u8> {
    let (image, blob) = (dir.join("image"), dir.join("blob"));
    let _ = (fs::remove_file(&image), fs::remove_file(&blob)); // may not be there
    let out = Command::new("mkfs.erofs")
        .args(options)
        .arg(format!("--blobdev={}", blob.display()))
        .args([&image, source])
        .output()
        .unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    let mut bytes = fs::read(&image).unwrap();
    let table = usize::from(u16::from_le_bytes([bytes[1024 + 88], bytes[1024 + 89]])) * 128;
    let blocks = u32::try_from(fs::metadata(&blob).unwrap().len() / 4096).unwrap();
    bytes[table + 64..table + 68].copy_from_slice(&blocks.to_le_bytes());
    seal(&mut bytes);
    bytes
}

#[test]
fn images_by_mkfs_are_read_too() {
    use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _, symlink};
    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        testkit::skip!("mkfs.erofs is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let source = dir.path().join("source");
    fs::create_dir_all(source.join("sub/dir")).unwrap();
    for n in 0..300_usize {
        let bytes: Vec<u8> = (0..n * 997).map(|at| (at * 31 + n).to_le_bytes()[0]).collect();
        fs::write(source.join(format!("sub/file {n:03}")), bytes).unwrap();
    }
    fs::hard_link(source.join("sub/file 299"), source.join("again")).unwrap();
    fs::set_permissions(source.join("again"), fs::Permissions::from_mode(0o4711)).unwrap();
    symlink("sub/file 001", source.join("link")).unwrap();
    symlink("x".repeat(4000), source.join("long link")).unwrap();
    for options in [
        &["--chunksize=4096"][..],
        &["--chunksize=65536", "-Enoinline_data"],
        &["--chunksize=1048576", "-Eforce-inode-compact", "-T1700000000"],
        &["--chunksize=65536", "-Eforce-inode-extended"],
    ] {
        let bytes = mkfs(&source, dir.path(), options);
        let blob = fs::read(dir.path().join("blob")).unwrap();
        let image = Image::open(&bytes[..]).unwrap();
        let mut count = 0;
        let walked = image.walk(|step| {
            count += 1;
            let path = source.join(std::str::from_utf8(step.path).unwrap());
            let (real, inode) = (fs::symlink_metadata(&path).unwrap(), image.inode(step.entry.nid).unwrap());
            assert_eq!(u32::from(inode.permissions), real.mode() & 0o7777);
            assert_eq!((inode.uid, inode.gid), (real.uid(), real.gid()));
            let mtime = if options.contains(&"-T1700000000") { 1_700_000_000 } else { real.mtime() };
            assert_eq!(inode.mtime.secs, mtime);
            if real.is_dir() {
                assert_eq!(inode.kind, Kind::Dir);
                return ControlFlow::Continue(());
            }
            assert_eq!((inode.size, u64::from(inode.links)), (real.len(), real.nlink()));
            if real.is_symlink() {
                let target = fs::read_link(&path).unwrap();
                assert_eq!(image.readlink(&inode).unwrap(), target.as_os_str().as_encoded_bytes());
                return ControlFlow::Continue(());
            }
            let mut shown = Vec::new();
            for piece in image.pieces(&inode, 0, u64::MAX).unwrap() {
                let Piece { len, source: Source::Device { number: 1, offset } } = piece.unwrap() else {
                    panic!("{piece:?}", piece = image.pieces(&inode, 0, u64::MAX).unwrap().next())
                };
                let at = usize::try_from(offset).unwrap();
                shown.extend_from_slice(&blob[at..at + usize::try_from(len).unwrap()]);
            }
            assert!(shown == fs::read(&path).unwrap(), "{}", path.display());
            ControlFlow::Continue(())
        });
        walked.unwrap();
        assert_eq!(count, 305, "{options:?}");
    }
}

#[test]
fn short_maps_are_read_of_a_layer_and_of_nothing_else() {
    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        testkit::skip!("mkfs.erofs is not installed");
    }
    let dir = tempfile::tempdir().unwrap();
    let [source, path] = ["source", "image"].map(|name| dir.path().join(name));
    fs::create_dir(&source).unwrap();
    let content: Vec<u8> = (0..100_001_u32).flat_map(|n| (n / 1024 % 7).to_le_bytes()).collect();
    fs::write(source.join("file"), &content).unwrap();
    let out = Command::new("mkfs.erofs").arg("--chunksize=4096").args([&path, &source]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let bytes = fs::read(&path).unwrap();
    let files = LayerFiles::open(&bytes).unwrap();
    let mut shown = Vec::new();
    let each = |member: &Member, inode: Option<&Inode>| {
        if let Some(inode) = inode {
            assert_eq!((inode.layout, inode.payload & disk::CHUNK_INDEXES), (disk::layout::CHUNKED, 0));
            for run in files.runs(inode)? {
                match run? {
                    Run::Bytes(_, bytes) => shown.extend_from_slice(bytes),
                    Run::Hole(len) => shown.resize(shown.len() + usize::try_from(len).unwrap(), 0),
                }
            }
            assert_eq!(&*member.path, b"file");
        }
        Ok::<_, MemberError>(())
    };
    files.members(each).unwrap();
    assert!(shown == content);
    // A metadata image has its bytes on devices, which a short map does not name.
    let image = Image::open(&bytes[..]).unwrap();
    let nid = image.lookup(&image.inode(image.root()).unwrap(), b"file").unwrap().unwrap();
    let inode = image.inode(nid).unwrap();
    assert_eq!(image.pieces(&inode, 0, 1).unwrap_err().what, "unknown chunk format");
    // No block, and one past the end.
    let at = usize::try_from(inode.tail).unwrap();
    for (block, wanted) in [(disk::HOLE, None), (u32::MAX - 1, Some("past the end of its device"))] {
        let mut other = bytes.clone();
        other[at..at + 4].copy_from_slice(&block.to_le_bytes());
        seal(&mut other); // inodes may be in the first block
        let files = LayerFiles::open(&other).unwrap();
        let first = files.runs(&inode).unwrap().next().unwrap();
        match wanted {
            None => assert_eq!(first, Ok(Run::Hole(4096))),
            Some(what) => assert!(first.unwrap_err().what.contains(what)),
        }
    }
}
