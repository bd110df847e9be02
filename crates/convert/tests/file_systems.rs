//! Layers that are file systems: what tells them from tars, and that the tar which is made of one has holes where its files do.

#![allow(clippy::unwrap_used, reason = "tests")]

mod common;

use std::fs;
use std::io::Cursor;
use std::os::unix::fs::MetadataExt as _;
use std::process::Command;

use common::{Dice, PACKINGS, expected, options, pack as packed_as};
use convert::recode::erofs::{image, unpack};
use convert::recode::{RecodeError, Recoding, Target, recode};
use convert::{BuildError, Threads, build};
use format::tar::{TarError, TarProblem};
use testkit::skip;
use testkit::tar::{Archive, Entry, Kind, Variant};

fn archive(entries: &[Entry]) -> Vec<u8> {
    Archive::of(entries, Variant::Pax10).tar
}

/// Makes an image of a tar.
fn made(tar: &[u8]) -> Vec<u8> {
    let mut out = Cursor::new(Vec::new());
    image(tar, &expected(tar, tar), tar.len() as u64, &mut out).unwrap();
    out.into_inner()
}

#[test]
fn what_is_no_tar_is_told_by_its_first_bytes() {
    let tar = archive(&[Entry::file("a", "content")]);
    let bytes = made(&tar);
    let is_told = |error: &TarError| error.problem == TarProblem::FileSystem;
    // Not packed, and in what a tar is packed in, where an empty layer came out of it.
    let packed = PACKINGS.map(|packing| packed_as(packing, &bytes));
    for blob in packed.iter().map(|blob| &blob[..]).chain([&bytes[..], &bytes[..1028]]) {
        let size = blob.len() as u64;
        let recoding = Recoding { target: Target::Gzip, level: None, blob_size: size, threads: 1 };
        let error = recode(blob, &expected(&bytes, blob), &recoding, std::io::sink()).unwrap_err();
        assert!(matches!(&error, RecodeError::Tar(error) if is_told(error)), "{error:?}");
        let nowhere = |_: u32, _: &[u8]| Ok(());
        for threads in [Threads::One, Threads::Two] {
            let error =
                build(blob, options(blob, 16), &expected(&bytes, blob), threads, nowhere).unwrap_err();
            assert!(matches!(&error, BuildError::Tar(error) if is_told(error)), "{error:?}");
        }
    }
    // A tar that is shorter than that, and one that has such a file.
    let mut inside = vec![0; 512];
    inside.extend(0xe0f5_e1e2_u32.to_le_bytes());
    let nearly = [&[0; 1024][..], &0xe0f5_e1e2_u32.to_le_bytes()[..3], &[7; 509]].concat();
    for tar in [vec![0; 1024], nearly, archive(&[Entry::file("a", inside)])] {
        made(&tar);
    }
}

/// Makes a tar of an image in a file, and says how long that is and how much room it takes.
fn unpacked_on_disk(bytes: &[u8]) -> (fs::File, u64, u64) {
    let [file, tar] = [(); 2].map(|()| tempfile::tempfile_in("/var/tmp").unwrap());
    let made = unpack(bytes, &expected(bytes, bytes), bytes.len() as u64, &file, &tar).unwrap();
    let there = tar.metadata().unwrap();
    assert_eq!(there.len(), made.size);
    (tar, there.len(), there.blocks() * 512)
}

#[test]
fn a_file_of_holes_takes_no_room_while_a_tar_is_made() {
    const LONG: u64 = 10 << 30;
    // A blob may become so many times longer, and no more.
    let noise = Dice::new(21).content(11 << 20);
    let pieces = vec![(5 << 30, b"middle".to_vec()), (LONG - 3, b"end".to_vec())];
    let tar = archive(&[
        Entry::file("noise", &noise),
        Entry::new("long", Kind::Sparse(LONG, pieces)),
        Entry::file("z", "z"),
    ]);
    let (file, len, room) = unpacked_on_disk(&made(&tar));
    assert!(len > LONG && room < 64 << 20, "{room} bytes of {len}");
    // Behind the headers of the long one and its middle.
    let at = |from: u64, len: usize| {
        let mut bytes = vec![1; len];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut bytes, from).unwrap();
        bytes
    };
    let begins = (0..len).step_by(512).find(|block| at(*block, 5) == b"long\0").unwrap() + 512;
    for (offset, wanted) in [(0, &[0; 9][..]), ((5 << 30) - 2, b"\0\0middle\0"), (LONG - 5, b"\0\0end")] {
        assert_eq!(at(begins + offset, wanted.len()), wanted, "{offset}");
    }

    if Command::new("mkfs.erofs").arg("--help").output().is_err() {
        skip!("mkfs.erofs is not installed");
    }
    let dir = tempfile::tempdir_in("/var/tmp").unwrap();
    let [tree, path] = ["tree", "image"].map(|name| dir.path().join(name));
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("noise"), &noise[..2 << 20]).unwrap();
    // mkfs.erofs reads every byte of it.
    let hole = fs::File::create(tree.join("hole")).unwrap();
    hole.set_len(512 << 20).unwrap();
    let made = Command::new("mkfs.erofs")
        .args(["--chunksize=1048576", "-Eforce-chunk-indexes"])
        .args([&path, &tree])
        .output()
        .unwrap();
    assert!(made.status.success(), "{made:?}");
    let (_, len, room) = unpacked_on_disk(&fs::read(&path).unwrap());
    assert!(len > 512 << 20 && room < 16 << 20, "{room} bytes of {len}");
}
