//! Indexes of layers that are file systems: what is long zero is a hole, what is packed or something else has none, and no image
//! makes more of itself than it is. That they say what is in the layer `erofs.rs` has.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fs;
use std::io::Cursor;
use std::process::Command;

use common::indexed::{indexed, says_the_same};
use common::{Dice, expected, options, pack};
use convert::recode::RecodeError;
use convert::recode::erofs::{ErofsError, image, index, unpack};
use format::Digest;
use format::erofs::disk::{BLOCK, super_checksum};
use format::erofs::index::MakeError;
use format::erofs::read::LayerHead;
use testkit::skip;
use testkit::tar::{Archive, Entry, Kind, Variant};

/// Makes an image of these members.
fn made(entries: &[Entry]) -> Vec<u8> {
    let tar = Archive::of(entries, Variant::Pax10).tar;
    let mut out = Cursor::new(Vec::new());
    image(&tar[..], &expected(&tar, &tar), tar.len() as u64, &mut out).unwrap();
    out.into_inner()
}

fn seal(bytes: &mut [u8]) {
    let sum = super_checksum(bytes.first_chunk::<BLOCK>().unwrap()).to_le_bytes();
    bytes[1028..1032].copy_from_slice(&sum);
}

#[test]
fn what_is_zero_for_long_is_a_hole() {
    let noise = Dice::new(3).next().to_le_bytes().repeat(512);
    let zeros = |len: usize| [&noise[..], &vec![0; len], &noise].concat();
    let space = |entry: Entry| indexed(&made(&[entry]), 19).unwrap().layer.facts().space;
    // 64 KiB are, and what is shorter, or does not fill its blocks, is not.
    assert_eq!(space(Entry::file("a", zeros(65_536))), 8192);
    assert_eq!(space(Entry::file("a", zeros(61_440))), 8192 + 61_440);
    assert_eq!(space(Entry::file("a", zeros(65_535))), 8192 + 65_535);
    assert_eq!(space(Entry::file("a", vec![0; 4096])), 4096);
    assert_eq!(space(Entry::file("a", vec![0; 1 << 20])), 0);
    // And what the image says is one, however short.
    let sparse = Kind::Sparse(12_288, vec![(0, vec![1]), (8192, vec![2; 4096])]);
    assert_eq!(space(Entry::new("a", sparse)), 8192);
    let long = Kind::Sparse(5 << 30, vec![(4 << 30, noise.clone())]);
    // A blob may become so many times longer, and no more.
    let bytes = made(&[Entry::file("noise", Dice::new(21).content(8 << 20)), Entry::new("z", long)]);
    assert_eq!(indexed(&bytes, 19).unwrap().layer.facts().space, (8 << 20) + 4096);
}

#[test]
fn files_that_share_their_bytes_have_them_each() {
    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        skip!("mkfs.erofs is not installed");
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let [tree, path] = ["tree", "image"].map(|name| dir.path().join(name));
    fs::create_dir(&tree).unwrap();
    let mut dice = Dice::new(8);
    let parts: Vec<Vec<u8>> = (0..40).map(|_| dice.next().to_le_bytes().repeat(512)).collect();
    for n in 0..12_usize {
        let order: Vec<u8> = (0..40).flat_map(|part| parts[(part * (n * 2 + 1)) % 40].clone()).collect();
        fs::write(tree.join(format!("{n}")), order).unwrap();
    }
    let out = Command::new("mkfs.erofs").arg("--chunksize=4096").args([&path, &tree]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let bytes = fs::read(&path).unwrap();
    assert!(bytes.len() < 300_000, "mkfs.erofs has each chunk once: {}", bytes.len());
    let found = indexed(&bytes, 16).unwrap();
    let pieces = &found.layer.source().contents.as_ref().unwrap().pieces;
    assert!(!pieces.is_sorted_by_key(|piece| piece.begin), "later files have what earlier ones have");
    let (file, mut tar) = (tempfile::tempfile().unwrap(), Cursor::new(Vec::new()));
    unpack(&bytes[..], &expected(&bytes, &bytes), bytes.len() as u64, &file, &mut tar).unwrap();
    says_the_same(&found, &tar.into_inner());

    // One block again and again: no index is made that is so much longer than its layer.
    let [tree, path] = ["again", "longer"].map(|name| dir.path().join(name));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("file"), parts[0].repeat(25_000)).unwrap();
    let out = Command::new("mkfs.erofs").arg("--chunksize=4096").args([&path, &tree]).output().unwrap();
    assert!(out.status.success(), "{out:?}");
    let bytes = fs::read(&path).unwrap();
    let error = format!("{:?}", indexed(&bytes, 16).map(|_| ()).unwrap_err());
    assert!(error.contains("the number of chunks"), "{} bytes: {error}", bytes.len());
}

#[test]
fn what_is_packed_or_begins_with_something_else_has_no_index() {
    let bytes = made(&[Entry::file("a", "content")]);
    let of = |bytes: &[u8], expected: convert::Expected| {
        let (file, nowhere) = (tempfile::tempfile().unwrap(), |_: u32, _: &[u8]| Ok(()));
        index(bytes, &expected, options(bytes, 19), Digest::of(b""), &file, nowhere).map(drop)
    };
    of(&bytes, expected(&bytes, &bytes)).unwrap();
    let packed = pack("zstd -3", &bytes);
    let error = of(&packed, expected(&bytes, &packed)).unwrap_err();
    assert!(matches!(error, RecodeError::DiffId { .. }), "{error}");
    let error = of(&bytes, expected(b"", b"")).unwrap_err();
    assert!(matches!(error, RecodeError::BlobDigest { .. }), "{error}");
    for at in [0, 257, 1023] {
        let mut other = bytes.clone();
        other[at] = 1;
        seal(&mut other);
        let error = of(&other, expected(&other, &other)).unwrap_err();
        let begins =
            |error: &RecodeError| matches!(error, RecodeError::Erofs(ErofsError::Make(MakeError::Begins)));
        assert!(begins(&error), "{error}");
    }
}

#[test]
fn what_is_packed_is_unpacked_first() {
    let bytes = made(&[Entry::file("a", "content"), Entry::dir("d/")]);
    let unpacked = |blob: &[u8], of: &[u8]| {
        let (file, mut tar) = (tempfile::tempfile().unwrap(), Cursor::new(Vec::new()));
        let made = unpack(blob, &expected(of, blob), blob.len() as u64, &file, &mut tar)?;
        assert_eq!(made.size, tar.get_ref().len() as u64);
        Ok::<_, RecodeError>(tar.into_inner())
    };
    let plain = unpacked(&bytes, &bytes).unwrap();
    for way in ["zstd -3", "zstd frames", "gzip -6"] {
        let packed = pack(way, &bytes);
        assert!(unpacked(&packed, &bytes).unwrap() == plain, "{way}");
        let error = unpacked(&packed, b"another").unwrap_err();
        assert!(matches!(error, RecodeError::DiffId { .. }), "{error}");
        assert!(unpacked(&packed[..packed.len() - 1], &bytes).is_err());
        let mut bad = packed.clone();
        let at = bad.len() / 2;
        bad[at] ^= 1;
        let (file, out) = (tempfile::tempfile().unwrap(), Cursor::new(Vec::new()));
        assert!(unpack(&bad[..], &expected(&bytes, &packed), bad.len() as u64, &file, out).is_err());
    }
}

#[test]
fn an_image_that_says_it_has_more_than_it_can_is_refused() {
    let sparse = Kind::Sparse(1 << 30, vec![(1 << 29, vec![1; 4096])]);
    // A time of its own makes an inode that has 64 bits for a size.
    let bytes = made(&[Entry::new("a", sparse).mtime(1, 7), Entry::file("b", "b")]);
    let meta = usize::try_from(LayerHead::read(bytes.first_chunk().unwrap()).unwrap().meta()).unwrap();
    // The size of the file grows until its map is longer than the image.
    let size = (1u64 << 30).to_le_bytes();
    let at = meta + bytes[meta..].windows(8).position(|window| window == size).unwrap();
    let mut bad = bytes.clone();
    bad[at..at + 8].copy_from_slice(&(1u64 << 62).to_le_bytes());
    let error = format!("{:?}", indexed(&bad, 19).map(|_| ()).unwrap_err());
    assert!(error.contains("longer than the image"), "{error}");
    indexed(&bytes, 19).unwrap();
}
