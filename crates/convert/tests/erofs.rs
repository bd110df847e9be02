//! Layers made into file systems: our own reader, the kernel and erofs-utils find in them what was in the tar, and the bytes
//! are always the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::collections::HashMap;
use std::fs;
use std::io::Cursor;
use std::ops::ControlFlow;
use std::os::fd::{AsFd as _, AsRawFd as _};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::indexed::{indexed, says_the_same};
use common::{Dice, PACKINGS, assorted, expected, pack as packed_as};
use convert::recode::erofs::{ErofsError, Made, compare, image, unpack};
use convert::recode::{RecodeError, Recoded};
use format::Digest;
use format::erofs::disk::{BLOCK, decode_device};
use format::erofs::read::{Image, Inode, Kind as Found, LayerHead, Source};
use proptest::prelude::*;
use sys::mount::{self, Detached, DeviceReads};
use testkit::dump::{Dump, Node, What, difference, disk};
use testkit::layers::{flatten, sensible};
use testkit::tar::{Archive, Entry, Kind, Variant};
use testkit::{arbitrary, fixture, shapes, skip};

fn made(tar: &[u8], blob: &[u8]) -> Result<(Vec<u8>, Recoded), RecodeError> {
    let mut out = Cursor::new(Vec::new());
    let said = image(blob, &expected(tar, blob), blob.len() as u64, &mut out)?;
    let bytes = out.into_inner();
    assert_eq!((said.digest, said.size), (Digest::of(&bytes), bytes.len() as u64));
    assert_eq!(*said.diff_id.digest(), said.digest);
    check(tar, &bytes).unwrap();
    // A tar that is made of it has the same files, and hides the same.
    let again = unpacked(&bytes).unwrap();
    assert!(unpacked(&bytes).unwrap() == again);
    let mut out = Cursor::new(Vec::new());
    image(&again[..], &expected(&again, &again), again.len() as u64, &mut out).unwrap();
    same(&dump(&out.into_inner()), &dump(&bytes));
    Ok((bytes, said))
}

/// Makes a tar of an image.
fn unpacked(bytes: &[u8]) -> Result<Vec<u8>, RecodeError> {
    let (file, mut tar) = (tempfile::tempfile().unwrap(), Cursor::new(Vec::new()));
    let made = unpack(bytes, &expected(bytes, bytes), bytes.len() as u64, &file, &mut tar)?;
    let tar = tar.into_inner();
    assert_eq!((made.digest, made.size), (Digest::of(&tar), tar.len() as u64));
    // An index of it has the same.
    says_the_same(&indexed(bytes, 16).unwrap(), &tar);
    Ok(tar)
}

fn check(tar: &[u8], bytes: &[u8]) -> Result<(), RecodeError> {
    let made = Made { bytes, digest: Digest::of(bytes), size: bytes.len() as u64 };
    compare(tar, &expected(tar, tar), tar.len() as u64, made)
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    Archive::of(entries, Variant::Pax10).tar
}

/// Returns what our own reader finds in an image.
fn dump(bytes: &[u8]) -> Dump {
    let head = LayerHead::read(bytes.first_chunk::<BLOCK>().unwrap()).unwrap();
    assert_eq!(head.len(), bytes.len() as u64);
    let meta = usize::try_from(head.meta()).unwrap();
    let image = head.open(&bytes[meta..]).unwrap();
    let (mut found, mut names) = (Vec::new(), HashMap::new());
    image
        .walk(|step| {
            found.push((step.path.to_vec(), step.entry.nid, step.entry.kind));
            ControlFlow::Continue(())
        })
        .unwrap();
    found.sort_by(|one, other| one.0.cmp(&other.0));
    found
        .into_iter()
        .map(|(path, nid, kind)| {
            let inode = image.inode(nid).unwrap();
            assert_eq!(inode.kind, kind);
            let first = names.entry(nid).or_insert_with(|| path.clone());
            let what = match what(&image, &inode, bytes) {
                What::Dir => What::Dir,
                _ if *first != path => What::SameAs(first.clone()),
                what => what,
            };
            let xattrs = image.xattrs(&inode).unwrap().map(|xattr| {
                let xattr = xattr.unwrap();
                ([xattr.prefix, xattr.suffix].concat(), xattr.value.to_vec())
            });
            let node = Node {
                what,
                mode: inode.permissions.into(),
                uid: inode.uid,
                gid: inode.gid,
                mtime: (inode.mtime.secs, inode.mtime.nanos),
                xattrs: xattrs.collect(),
            };
            (path, node)
        })
        .collect()
}

fn what(image: &Image<&[u8]>, inode: &Inode, bytes: &[u8]) -> What {
    let device = decode_device(inode.device);
    match inode.kind {
        Found::Dir => What::Dir,
        Found::Symlink => What::Symlink(image.readlink(inode).unwrap().to_vec()),
        Found::Char => What::Char(device.major, device.minor),
        Found::Block => What::Block(device.major, device.minor),
        Found::Fifo => What::Fifo,
        Found::File => {
            let mut content = Vec::new();
            for piece in image.pieces(inode, 0, inode.size).unwrap() {
                let piece = piece.unwrap();
                let len = usize::try_from(piece.len).unwrap();
                match piece.source {
                    Source::Hole => content.resize(content.len() + len, 0),
                    Source::Device { number, offset } => {
                        assert_eq!(number, 0);
                        let offset = usize::try_from(offset).unwrap();
                        content.extend_from_slice(&bytes[offset..offset + len]);
                    }
                }
            }
            What::File(content)
        }
    }
}

/// Takes out what is there for overlayfs to hide what lower layers have.
fn without_marks(mut dump: Dump) -> Dump {
    dump.retain(|_, node| node.what != What::Char(0, 0));
    for node in dump.values_mut() {
        node.xattrs.remove(&b"trusted.overlay.opaque"[..]);
    }
    dump
}

fn same(found: &Dump, wanted: &Dump) {
    if let Some(text) = difference(found, wanted) {
        panic!("{text}");
    }
}

/// One member of each kind, and each that hides something.
fn everything() -> Vec<Entry> {
    let mut dice = Dice::new(9);
    let mut many: Vec<_> = (0..300).map(|n| Entry::file(format!("many/{n:0200}"), format!("{n}"))).collect();
    let mut entries = vec![
        Entry::dir("./"),
        Entry::dir("d/").mode(0o1777).owner(3, 70_000),
        Entry::file("d/empty", "").mtime(-5, 7),
        Entry::file("d/small", "content").xattr("user.a", b"\xff\0").xattr("security.capability", CAPABILITY),
        Entry::file("implied/large", dice.content((3 << 20) + 5)).mtime(1_700_000_000, 600_000_001),
        Entry::file("block", vec![7; 4096]),
        Entry::file("twice", "first"),
        Entry::file("twice", "second").owner(4_000_000_000, 4_000_000_001),
        Entry::link("d/hard", "d/small"),
        Entry::symlink("soft", "d/hard"),
        Entry::symlink("far", "x".repeat(4095)),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::new("loop", Kind::Block(7, 70_000)),
        Entry::new("fifo", Kind::Fifo),
        Entry::new(
            "sparse",
            Kind::Sparse(9 << 20, vec![((2 << 20) + 7, vec![5; 3]), (8 << 20, vec![6; 9999])]),
        ),
        Entry::new(
            "near",
            Kind::Sparse(9000, vec![(10, vec![1; 20]), (4000, vec![2; 200]), (8999, vec![3])]),
        ),
        Entry::new("ends", Kind::Sparse(50_000, vec![(0, vec![1; 20]), (12_288, vec![2; 4096])])),
        Entry::new("hole", Kind::Sparse(5 << 20, vec![])),
        Entry::file(".wh.gone", ""),
        Entry::dir("opaque/"),
        Entry::file("opaque/new", "1"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("only/.wh.here", ""),
        Entry::file("much", "").xattr("user.big", vec![7; 5000]).xattr("trusted.t", ""),
        Entry::file("acl", "").xattr("system.posix_acl_access", acl()),
    ];
    entries.append(&mut many);
    entries
}

/// One that no kernel refuses: revision 2, in effect, for raw sockets.
const CAPABILITY: [u8; 20] = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];

/// An access control list as it is kept: the owner, a user, the group, the mask, all others.
fn acl() -> Vec<u8> {
    let rows: [(u16, u16, u32); 5] =
        [(1, 6, u32::MAX), (2, 6, 1000), (4, 4, u32::MAX), (0x10, 6, u32::MAX), (0x20, 4, u32::MAX)];
    let rows = rows
        .into_iter()
        .flat_map(|(tag, may, id)| [&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat());
    2u32.to_le_bytes().into_iter().chain(rows).collect()
}

#[test]
fn an_image_holds_what_its_layer_does() {
    let entries = everything();
    let (bytes, _) = made(&archive(&entries), &archive(&entries)).unwrap();
    let found = dump(&bytes);
    let mut wanted = flatten(&[entries]).unwrap();
    // What hides something is there, and so is the directory it lies in.
    for path in [&b"gone"[..], b"only/here"] {
        assert_eq!(found[path].what, What::Char(0, 0));
    }
    assert_eq!(found[&b"opaque"[..]].xattrs[&b"trusted.overlay.opaque"[..]], b"y");
    assert_eq!(found[&b"only"[..]].mode, 0o755);
    wanted.insert(b"only".to_vec(), found[&b"only"[..]].clone());
    same(&without_marks(found), &wanted);
}

#[test]
fn layers_of_nothing_and_like_real_ones_are_read_back() {
    for (name, tar) in shapes::all().into_iter().chain([("nothing", archive(&[]))]) {
        let (bytes, said) = made(&tar, &packed_as("zstd -3", &tar)).unwrap();
        let again = made(&tar, &tar).unwrap();
        assert!(again.0 == bytes && again.1 == said, "{name}");
        assert!(name != "nothing" || bytes.len() == 2 * BLOCK, "{}", bytes.len());
    }
}

#[test]
fn every_packing_becomes_the_same() {
    let tar = assorted(11, 30);
    let first = made(&tar, &tar).unwrap().0;
    for way in PACKINGS {
        assert!(made(&tar, &packed_as(way, &tar)).unwrap().0 == first, "{way}");
    }
    // A layer of the same length is another file system.
    let other = made(&assorted(12, 30), &assorted(12, 30)).unwrap().0;
    assert_ne!(first[1024 + 48..1024 + 64], other[1024 + 48..1024 + 64]);
}

#[test]
fn what_no_layer_alone_can_show_is_refused() {
    for entries in [vec![Entry::file(".wh..wh..opq", "")], vec![Entry::link("a", "below")]] {
        let tar = archive(&entries);
        assert!(matches!(made(&tar, &tar), Err(RecodeError::Erofs(ErofsError::Tree(_)))));
    }
    let tar = archive(&[Entry::new("hole", Kind::Sparse(1 << 40, vec![(4096, vec![1])]))]);
    assert!(matches!(made(&tar, &tar), Err(RecodeError::Erofs(ErofsError::Image(_)))));
    let tar = archive(&[Entry::file("a", "content")]);
    let mut out = Cursor::new(Vec::new());
    let error = image(&tar[..], &expected(b"", &tar), tar.len() as u64, &mut out).unwrap_err();
    assert!(matches!(error, RecodeError::DiffId { .. }), "{error}");
}

#[test]
fn an_image_that_holds_something_else_is_told() {
    let mut entries = everything();
    entries.truncate(25);
    // What is much only takes time.
    entries[4] = Entry::file("implied/large", vec![3; 9000]);
    entries[14] =
        Entry::new("sparse", Kind::Sparse(90_000, vec![(20_007, vec![5; 3]), (80_000, vec![6; 9999])]));
    entries[17] = Entry::new("hole", Kind::Sparse(50_000, vec![]));
    entries[23] = Entry::file("much", "").xattr("user.big", vec![7; 50]).xattr("trusted.t", "");
    let tar = archive(&entries);
    let bytes = made(&tar, &tar).unwrap().0;
    // Even if it is what was asked for.
    let said = Made { bytes: &bytes[..], digest: Digest::of(b"x"), size: bytes.len() as u64 };
    let error = compare(&tar[..], &expected(&tar, &tar), tar.len() as u64, said).unwrap_err();
    assert!(matches!(error, RecodeError::BlobDigest { .. }), "{error}");
    for len in [0, 100, BLOCK, bytes.len() - 1, bytes.len() - BLOCK] {
        assert!(check(&tar, &bytes[..len]).is_err(), "{len}");
    }
    assert!(check(&tar, &[&bytes[..], &[0; BLOCK]].concat()).is_err());
    // Whatever is in the tar and not in the image, or otherwise.
    let names = dump(&bytes);
    for n in (1..entries.len()).filter(|n| {
        !["twice", "only/.wh.here", ".wh.gone", "opaque/.wh..wh..opq"]
            .contains(&&*String::from_utf8_lossy(&entries[*n].path))
    }) {
        let mut other = entries.clone();
        other[n].mtime.0 += 1;
        // A link says again what its file is like.
        let linked = n == 3;
        assert_eq!(check(&archive(&other), &bytes).is_ok(), linked, "{:?}", names.keys().nth(n));
    }
    for (n, changed) in [
        (
            3,
            Entry::file("d/small", "Content")
                .xattr("user.a", b"\xff\0")
                .xattr("security.capability", CAPABILITY),
        ),
        (
            8,
            Entry::file("d/hard", "content")
                .xattr("user.a", b"\xff\0")
                .xattr("security.capability", CAPABILITY),
        ),
        (18, Entry::file(".wh.other", "")),
        (21, Entry::file("opaque/other", "")),
    ] {
        let mut other = entries.clone();
        other[n] = changed;
        let error = check(&archive(&other), &bytes).unwrap_err();
        assert!(matches!(error, RecodeError::Erofs(ErofsError::Differs(_))), "{n}: {error}");
    }
    other_bytes(&tar, &bytes);
}

/// Whatever byte is changed, a comparison ends, and does so well only where nobody reads it.
fn other_bytes(tar: &[u8], bytes: &[u8]) {
    let head = LayerHead::read(bytes.first_chunk::<BLOCK>().unwrap()).unwrap();
    let meta = usize::try_from(head.meta()).unwrap();
    for at in (BLOCK..meta).step_by(997) {
        let mut bad = bytes.to_vec();
        bad[at] ^= 1;
        // The first of two files of one name is still there, and nobody's.
        let _ = check(tar, &bad);
    }
    let mut told = 0;
    for at in (meta..bytes.len()).filter(|at| bytes[*at] != 0 && bytes[*at] != b'x').step_by(3) {
        let mut bad = bytes.to_vec();
        bad[at] ^= 0x81;
        told += usize::from(check(tar, &bad).is_err());
    }
    assert!(told > 200, "{told}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]
    #[test]
    fn any_layer_is_read_back(layer in arbitrary::layer(0..24)) {
        let layer = sensible(&[layer], |(entry, _)| entry).remove(0);
        let mut archive = Archive::new();
        layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
        archive.finish();
        let (bytes, _) = match made(&archive.tar, &archive.tar) {
            Ok(made) => made,
            // It hides all, or a name that no file can have.
            Err(RecodeError::Erofs(ErofsError::Tree(_))) => return Ok(()),
            Err(error) => panic!("{error}"),
        };
        let entries: Vec<Entry> = layer.into_iter().map(|(entry, _)| entry).collect();
        let (mut found, mut wanted) = (without_marks(dump(&bytes)), flatten(&[entries]).unwrap());
        // A directory that is there for nothing but what it hides.
        found.retain(|path, node| wanted.contains_key(path) || node.what != What::Dir);
        wanted.retain(|path, node| found.contains_key(path) || node.what != What::Dir);
        let difference = difference(&found, &wanted);
        prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    }
}

#[test]
fn what_is_damaged_is_an_error_or_another_tree_and_ends() {
    let mut entries = everything();
    entries.truncate(14);
    entries[4] = Entry::file("implied/large", vec![3; 9000]);
    let tar = archive(&entries);
    let (bytes, _) = made(&tar, &tar).unwrap();
    let meta = LayerHead::read(bytes.first_chunk::<BLOCK>().unwrap()).unwrap().meta();
    let mut dice = Dice::new(5);
    for _ in 0..3000 {
        let mut bad = bytes.clone();
        let at = usize::try_from(meta + dice.below(bytes.len() as u64 - meta)).unwrap();
        bad[at] = bad[at].wrapping_add(1 + u8::try_from(dice.below(255)).unwrap());
        let _ = unpacked(&bad); // either
    }
    // Too short, not that blob, packed.
    assert!(unpacked(&bytes[..bytes.len() - 1]).is_err() && unpacked(&bytes[..100]).is_err());
    let file = tempfile::tempfile().unwrap();
    let error = unpack(&bytes[..], &expected(b"", b""), bytes.len() as u64, &file, Cursor::new(Vec::new()))
        .unwrap_err();
    assert!(matches!(error, RecodeError::BlobDigest { .. }), "{error}");
    // What follows the file system is none of it.
    assert!(unpacked(&[&bytes[..], &[7; 8192]].concat()).unwrap() == unpacked(&bytes).unwrap());
}

#[test]
fn a_directory_in_itself_is_refused() {
    let tar = archive(&[Entry::dir("outer/"), Entry::dir("outer/inner/"), Entry::file("a", "b")]);
    let (bytes, _) = made(&tar, &tar).unwrap();
    let head = LayerHead::read(bytes.first_chunk::<BLOCK>().unwrap()).unwrap();
    let from = usize::try_from(head.meta()).unwrap();
    let image = head.open(&bytes[from..]).unwrap();
    let nid = |dir, name: &[u8]| image.lookup(&image.inode(dir).unwrap(), name).unwrap().unwrap();
    let outer = nid(image.root(), b"outer");
    let inner = nid(outer, b"inner");
    let mut found = 0;
    for (place, other) in [(inner, outer), (inner, image.root()), (outer, inner)] {
        for at in (from..bytes.len() - 8).filter(|at| bytes[*at..*at + 8] == place.0.to_le_bytes()) {
            let mut bad = bytes.clone();
            bad[at..at + 8].copy_from_slice(&other.0.to_le_bytes());
            match unpacked(&bad) {
                Err(error @ RecodeError::Erofs(ErofsError::Corrupt(_))) => {
                    found += usize::from(format!("{error:?}").contains("in two places"));
                }
                other => assert!(other.is_ok(), "{other:?}"), // of "." and ".." nothing is made
            }
        }
    }
    assert!(found >= 2, "{found}");
}

#[test]
fn images_of_mkfs_erofs_are_read() {
    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        skip!("mkfs.erofs is not installed");
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    if fs::metadata(dir.path()).unwrap().uid() != 0 {
        skip!("devices are root's to make");
    }
    let tree = dir.path().join("tree");
    fixture::populate(&tree, true).unwrap();
    // mkfs.erofs 1.5 takes no name of 255 bytes.
    for entry in
        fs::read_dir(&tree).unwrap().map(Result::unwrap).filter(|entry| entry.file_name().len() > 250)
    {
        fs::remove_dir_all(entry.path()).unwrap();
    }
    let hiding = [
        Entry::dir("hides/").xattr("trusted.overlay.opaque", "y"),
        Entry::new("hides/gone", Kind::Char(0, 0)),
        Entry::link("hides/too", "hides/gone"),
    ];
    let tar = dir.path().join("tar");
    fs::write(&tar, archive(&hiding)).unwrap();
    fixture::gnu_tar(&["-xpf", tar.to_str().unwrap(), "--xattrs", "--xattrs-include=*"], &tree).unwrap();
    let wanted = disk(&tree).unwrap();
    let path = dir.path().join("image");
    let make = |more: &[&str]| {
        let made = Command::new("mkfs.erofs").args(more).arg(&path).arg(&tree).output().unwrap();
        assert!(made.status.success(), "{made:?}");
        fs::read(&path).unwrap()
    };
    for more in [
        &[][..],
        &["-Enoinline_data"],
        &["-Eforce-inode-extended"],
        // Maps of chunks, in the short form and in the long one.
        &["--chunksize=4096"],
        &["--chunksize=65536"],
        &["--chunksize=4096", "-Eforce-chunk-indexes"],
    ] {
        let tar = unpacked(&make(more)).unwrap();
        let mut out = Cursor::new(Vec::new());
        image(&tar[..], &expected(&tar, &tar), tar.len() as u64, &mut out).unwrap();
        let mut found = dump(&out.into_inner());
        // Of what is hidden nothing is there but the name.
        for (path, node) in found.iter_mut().filter(|(_, node)| node.what == What::Char(0, 0)) {
            *node = wanted[path].clone();
        }
        found.insert(b"hides/too".to_vec(), wanted[&b"hides/too"[..]].clone());
        let mut wanted = wanted.clone();
        for (path, node) in &mut wanted {
            // Version 1.9 drops parts of seconds.
            node.mtime.1 = found.get(path).filter(|node| node.mtime.1 == 0).map_or(node.mtime.1, |_| 0);
        }
        same(&found, &wanted);
    }
    // As containerd's differ calls it; 1.6 and later.
    let help = Command::new("mkfs.erofs").arg("--help").output().unwrap();
    if String::from_utf8_lossy(&[help.stdout, help.stderr].concat()).contains("--tar") {
        let mut entries = everything();
        entries.retain(|entry| !matches!(entry.kind, Kind::Sparse(..))); // which it takes for what they are not
        let layer = archive(&entries);
        fs::write(&tar, &layer).unwrap();
        let more = ["--tar=f", "--aufs", "--quiet", "-Enoinline_data"];
        let done = Command::new("mkfs.erofs").args(more).arg(&path).arg(&tar).output().unwrap();
        assert!(done.status.success(), "{done:?}");
        let tar = unpacked(&fs::read(&path).unwrap()).unwrap();
        let (mut found, wanted) =
            (dump(&made(&tar, &tar).unwrap().0), dump(&made(&layer, &layer).unwrap().0));
        // What nobody describes is of the moment.
        for (path, node) in &mut found {
            node.mtime =
                wanted.get(path).filter(|node| node.mtime == (0, 0)).map_or(node.mtime, |node| node.mtime);
        }
        same(&found, &wanted);
    }
    fs::write(tree.join("packed"), vec![b'a'; 1 << 20]).unwrap();
    let error = unpacked(&make(&["-zlz4"])).unwrap_err();
    assert!(
        matches!(&error, RecodeError::Erofs(ErofsError::Open(why)) if why.to_string().contains("features")),
        "{error:?}"
    );
}

/// An image in a file, not in /tmp: the kernel refuses one on tmpfs.
fn on_disk(bytes: &[u8]) -> (tempfile::TempDir, PathBuf) {
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let path = dir.path().join("image");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

fn mounted(image: &Path) -> Result<Detached, mount::MountError> {
    mount::erofs(image, Vec::<PathBuf>::new(), DeviceReads::Buffered)
}

fn shown(mount: &Detached) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}/", mount.as_fd().as_raw_fd()))
}

/// Returns why the kernel cannot be asked, if so.
fn no_kernel() -> Option<String> {
    let (dir, path) = on_disk(&made(&archive(&[]), &archive(&[])).unwrap().0);
    if fs::metadata(dir.path()).unwrap().uid() != 0 {
        return Some("mounting EROFS needs root".into());
    }
    mounted(&path).err().map(|error| format!("no EROFS from files here: {error}"))
}

#[test]
fn the_kernel_shows_what_gnu_tar_extracts() {
    if let Some(why) = no_kernel() {
        skip!("{why}");
    }
    if Command::new("tar").arg("--version").output().is_err() {
        skip!("there is no tar");
    }
    let temp = tempfile::tempdir_in("/var/tmp").unwrap();
    let from = temp.path().join("from");
    fixture::populate(&from, true).unwrap();
    let everything = ["--xattrs", "--xattrs-include=*"];
    for (n, options) in [
        &["--format=gnu", "--sparse"][..],
        &["--format=posix", "--sparse", everything[0], everything[1]],
        &["--format=posix", everything[0], everything[1]],
    ]
    .into_iter()
    .enumerate()
    {
        let (file, to) = (temp.path().join(format!("{n}.tar")), temp.path().join(format!("to{n}")));
        fs::create_dir(&to).unwrap();
        let (file_name, to_name) = (file.to_str().unwrap(), to.to_str().unwrap());
        fixture::gnu_tar(&[options, &["-cf", file_name, "."][..]].concat(), &from).unwrap();
        let extract = ["-xpf", file_name, "--numeric-owner", everything[0], everything[1]];
        fixture::gnu_tar(&extract, &to).unwrap();
        let tar = fs::read(&file).unwrap();
        let (_dir, image) = on_disk(&made(&tar, &tar).unwrap().0);
        let mount = mounted(&image).unwrap();
        let (wanted, found) = (disk(&to).unwrap(), disk(&shown(&mount)).unwrap());
        assert!(wanted.len() > 20, "{to_name}: {} names", wanted.len());
        same(&found, &wanted);
    }
}

#[test]
fn the_kernel_shows_what_our_reader_does() {
    if let Some(why) = no_kernel() {
        skip!("{why}");
    }
    let tar = archive(&everything());
    let bytes = made(&tar, &tar).unwrap().0;
    let (_dir, image) = on_disk(&bytes);
    let mount = mounted(&image).unwrap();
    same(&disk(&shown(&mount)).unwrap(), &dump(&bytes));
    assert_eq!(fs::metadata(shown(&mount)).unwrap().mode(), 0o040_755);
}

#[test]
fn erofs_utils_find_nothing_wrong() {
    let there = |program| Command::new(program).arg("--help").output().is_ok();
    if !there("fsck.erofs") || !there("dump.erofs") {
        skip!("fsck.erofs and dump.erofs are not installed");
    }
    for tar in [archive(&[]), archive(&everything()), shapes::all()[1].1.clone()] {
        let (dir, path) = on_disk(&made(&tar, &tar).unwrap().0);
        let tool = |program: &str, arguments: &[String]| {
            let output = Command::new(program).args(arguments).arg(&path).output().unwrap();
            let said = [output.stdout, output.stderr].concat();
            let said = String::from_utf8_lossy(&said).into_owned();
            assert!(output.status.success(), "{program}: {said}");
            said
        };
        assert!(tool("dump.erofs", &["-s".into()]).contains("sb_csum"));
        tool("fsck.erofs", &["--extract".into()]);
        // Devices and owners.
        if fs::metadata(dir.path()).unwrap().uid() == 0 {
            let root = dir.path().join("out");
            tool("fsck.erofs", &[format!("--extract={}", root.display())]);
            assert!(root.is_dir());
        }
    }
}
