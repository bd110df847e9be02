//! Layers that hold the same files, and layers that do not.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use common::{Dice, expected, pack};
use convert::Expected;
use convert::compare::{CompareError, Side, compare};
use convert::recode::{Recoding, Target, recode};
use format::{DiffId, Digest};
use testkit::tar::{Archive, Entry, Kind, Variant};

fn tar(entries: &[Entry]) -> Vec<u8> {
    Archive::of(entries, Variant::Pax10).tar
}

fn side<'a>(tar: &[u8], blob: &'a [u8]) -> Side<&'a [u8]> {
    Side { blob, expected: expected(tar, blob), size: blob.len() as u64 }
}

type Change<'a> = &'a dyn Fn(&mut Vec<Entry>);

fn entries() -> Vec<Entry> {
    let mut dice = Dice::new(8);
    vec![
        Entry::dir("d/").mode(0o1777).owner(3, 4),
        Entry::file("d/empty", ""),
        Entry::file("d/small", "content").xattr("user.a", b"\xff\0").mtime(5, 0),
        Entry::file("d/large", dice.content((3 << 20) + 5)),
        Entry::link("d/hard", "d/small"),
        Entry::symlink("soft", "d/hard"),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::file("d/.wh.gone", ""),
        Entry::file("last", "not a whole block"),
    ]
}

#[test]
fn what_was_made_of_a_layer_holds_the_same() {
    let tar = tar(&entries());
    for target in [Target::EStargz, Target::ZstdChunked, Target::Gzip, Target::Zstd] {
        let blob = pack("gzip -6", &tar);
        let recoding = Recoding { target, level: Some(1), blob_size: blob.len() as u64, threads: 1 };
        let mut made = Vec::new();
        let said = recode(&blob[..], &expected(&tar, &blob), &recoding, &mut made).unwrap();
        let expected = Expected { blob: said.digest, diff_id: said.diff_id };
        let other = || Side { blob: &made[..], expected, size: said.size };
        compare(side(&tar, &blob), None, other()).unwrap();
        compare(other(), None, side(&tar, &blob)).unwrap();
    }
}

#[test]
fn every_difference_is_found_and_named() {
    let before = tar(&entries());
    let differs = |change: Change<'_>| {
        let mut changed = entries();
        change(&mut changed);
        let after = tar(&changed);
        let error = compare(side(&before, &before), None, side(&after, &after)).unwrap_err();
        assert!(compare(side(&after, &after), None, side(&before, &before)).is_err());
        error
    };
    let mut large = Dice::new(8).content((3 << 20) + 5);
    *large.last_mut().unwrap() ^= 1;
    let changes: [(&str, Change<'_>); 9] = [
        ("d/", &|all| all[0] = Entry::dir("d/").mode(0o777).owner(3, 4)),
        ("d/small", &|all| all[2] = Entry::file("d/small", "content").xattr("user.a", b"\xff").mtime(5, 0)),
        ("d/small", &|all| all[2] = Entry::file("d/small", "Content").xattr("user.a", b"\xff\0").mtime(5, 0)),
        ("d/large", &|all| all[3] = Entry::file("d/large", large.clone())),
        ("d/hard", &|all| all[4] = Entry::link("d/hard", "d/empty")),
        ("null", &|all| all[6] = Entry::new("null", Kind::Block(1, 3))),
        ("another", &|all| all[7] = Entry::file("another", "")),
        ("d/large", &|all| all.swap(2, 3)),
        ("more", &|all| all.push(Entry::file("more", ""))),
    ];
    for (name, change) in changes {
        match differs(change) {
            CompareError::Differs(path) => assert_eq!(path, name),
            other => panic!("{name}: {other}"),
        }
    }
    assert!(matches!(differs(&|all| drop(all.pop())), CompareError::Missing(1)));
}

#[test]
fn holes_and_the_padding_behind_files_are_told_apart() {
    let sparse = |content: &[u8]| {
        let holes = Entry::new("sparse", Kind::Sparse(1 << 20, vec![(8192, content.to_vec())]));
        Archive::of(&[holes, Entry::file("next", "x")], Variant::Pax10).tar
    };
    let (one, other) = (sparse(&[1; 5000]), sparse(&[[1; 4999].as_slice(), &[2]].concat()));
    compare(side(&one, &one), None, side(&one, &one)).unwrap();
    assert!(matches!(
        compare(side(&one, &one), None, side(&other, &other)).unwrap_err(),
        CompareError::Differs(path) if path == "sparse"
    ));
}

#[test]
fn a_layer_that_is_another_is_an_error() {
    let tar = tar(&entries());
    let wrong = |blob, diff_id| Side {
        blob: &tar[..],
        expected: Expected { blob, diff_id: DiffId::new(diff_id) },
        size: tar.len() as u64,
    };
    let (right, other) = (Digest::of(&tar), Digest::of(b""));
    assert!(matches!(compare(wrong(other, right), None, wrong(right, right)), Err(CompareError::One(_))));
    assert!(matches!(compare(wrong(right, right), None, wrong(right, other)), Err(CompareError::Other(_))));
}
