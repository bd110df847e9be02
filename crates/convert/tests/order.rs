//! Layers in which some files come first: they unpack to the same, and all tables tell of it.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/formats.rs"]
#[allow(dead_code, reason = "its part")]
mod formats;
#[path = "common/rafs.rs"]
#[allow(dead_code, reason = "its part")]
mod rafs;

use std::collections::HashSet;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::process::Command;
use std::time::UNIX_EPOCH;

use common::{Dice, expected, pack as packed_as};
use convert::Expected;
use convert::compare::{CompareError, Side, compare};
use convert::recode::nydus::{Packing, Parts, merge, pack_in_order};
use convert::recode::{self, First, Order, RecodeError, Recoded, Recoding, Target, recode_in_order};
use format::Digest;
use format::index::Codec;
use format::nydus::bootstrap::Bootstrap;
use format::payload::SegmentSize;
use format::stargz::index::{Whose, layer};
use format::stargz::table::Announced;
use format::stargz::{PREFETCH, TOC_NAME};
use format::tar::{MemberKind, Parser, Step};
use formats::{check_chunked, table, unpacked};
use proptest::prelude::*;
use testkit::dump::{self, Dump, Node, What, difference};
use testkit::layers::{flatten, sensible};
use testkit::tar::{Archive, Entry, Kind, Variant};
use testkit::{arbitrary, fixture, shapes};

struct Made {
    blob: Vec<u8>,
    said: Recoded,
}

fn made(tar: &[u8], first: &First, target: Target, threads: usize) -> Result<Made, RecodeError> {
    let (mut blob, spool) = (Vec::new(), tempfile::tempfile().unwrap());
    let recoding = Recoding { target, level: Some(1), blob_size: tar.len() as u64, threads };
    let order = Order { first, spool: &spool, only: true };
    let said = recode_in_order(tar, &expected(tar, tar), &recoding, Some(order), &mut blob)?;
    assert_eq!((said.digest, said.size), (Digest::of(&blob), blob.len() as u64));
    Ok(Made { blob, said })
}

/// Returns the tar in its new order: the same, if nothing can be moved.
fn reordered(tar: &[u8], first: &First) -> Vec<u8> {
    match made(tar, first, Target::Gzip, 2) {
        Ok(made) => {
            let plain = unpacked(&made.blob);
            assert_eq!(made.said.diff_id.digest(), &Digest::of(&plain));
            plain
        }
        Err(RecodeError::NothingFirst) => tar.to_vec(),
        Err(error) => panic!("{error}"),
    }
}

fn names(tar: &[u8]) -> Vec<String> {
    let (mut parser, mut rest, mut found) = (Parser::new(), tar, Vec::new());
    while !rest.is_empty() {
        let (taken, step) = parser.step(rest).unwrap();
        rest = &rest[taken..];
        if let Step::Member(member) = step {
            rest = &rest[usize::try_from(member.payload).unwrap()..];
            found.push(String::from_utf8_lossy(&member.path).into_owned());
        }
    }
    found
}

fn first(paths: &str) -> First {
    First::new(paths.split_whitespace().map(str::as_bytes))
}

/// One of every oddity that can be in a layer with files that come first.
fn everything() -> Vec<Entry> {
    let mut dice = Dice::new(5);
    vec![
        Entry::dir("./"),
        Entry::dir("usr/").mode(0o751).owner(3, 4).mtime(11, 0),
        Entry::dir("usr/bin/").mtime(12, 0),
        Entry::file("usr/bin/cold", dice.content(70_000)),
        Entry::symlink("bin", "usr/bin"),
        Entry::file("usr/bin/hot", dice.content((9 << 20) + 5)).xattr("user.a", b"\xff\0"),
        Entry::link("usr/bin/alias", "usr/bin/hot"),
        Entry::file("usr/bin/odd", [1; 513]).mtime(1_700_000_000, 600_000_000),
        Entry::link("other", "./usr/bin/odd"),
        Entry::dir("twice/"),
        Entry::file("twice/x", "in a directory that is described twice"),
        Entry::dir("twice/").mode(0o700),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::new("fifo", Kind::Fifo),
        Entry::file("usr/bin/last", "not a whole block"),
        Entry::file("implied/y", "a directory that nobody has described"),
        Entry::file("usr/.wh.gone", ""),
        Entry::dir("opaque/"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/z", "z"),
        Entry::file("long/".repeat(60) + "\u{e9}\"\\\n<", "x").mtime(0, 0),
        Entry::file("empty", ""),
    ]
}

#[test]
fn what_is_read_first_comes_first_in_every_format() {
    let tar = Archive::of(&everything(), Variant::Pax10).tar;
    // One by a link, one that a link leads to, and what cannot be moved.
    let wanted = first("usr/bin/last other usr/bin/hot twice/x implied/y opaque/z /bin/hot nobody");
    let plain = reordered(&tar, &wanted);
    let moved = ["./", "usr/", "usr/bin/", "usr/bin/last", "usr/bin/odd", "usr/bin/hot"];
    assert_eq!(names(&plain)[..7], [&moved[..], &["usr/bin/cold"]].concat());
    let stay =
        |tar: &[u8]| names(tar).into_iter().filter(|name| !moved.contains(&&**name)).collect::<Vec<_>>();
    assert_eq!(stay(&plain), stay(&tar), "all others in the order they had");
    assert_eq!(plain.len(), tar.len());

    // eStargz refuses a path twice where it is no directory; there is none here.
    let stargz = made(&tar, &wanted, Target::EStargz, 2).unwrap();
    let written = names(&unpacked(&stargz.blob));
    assert_eq!(written[..7], [&moved[..], &[PREFETCH]].concat());
    assert_eq!(written.last().unwrap(), TOC_NAME);
    // Taken out again, the order stays.
    let back = recode_again(&stargz, Target::Gzip);
    assert!(unpacked(&back.blob) == plain);

    let chunked: Vec<Entry> =
        everything().into_iter().filter(|entry| !entry.path.starts_with(b"twice")).collect();
    let tar = Archive::of(&chunked, Variant::Pax10).tar;
    let chunked = made(&tar, &wanted, Target::ZstdChunked, 2).unwrap();
    let (blob, said) = (chunked.blob, chunked.said);
    check_chunked(&formats::Made { blob, said }, &reordered(&tar, &wanted));
}

fn recode_again(made: &Made, target: Target) -> Made {
    let recoding = Recoding { target, level: Some(1), blob_size: made.said.size, threads: 1 };
    let expected = Expected { blob: made.said.digest, diff_id: made.said.diff_id };
    let mut blob = Vec::new();
    let said = recode::recode(&made.blob[..], &expected, &recoding, &mut blob).unwrap();
    Made { blob, said }
}

/// The landmark says how far a reader of the table should read at once, or the descriptor does.
#[test]
fn it_is_said_how_much_comes_first() {
    let mut dice = Dice::new(6);
    let files: Vec<Entry> = (0..40).map(|n| Entry::file(format!("f{n}"), dice.content(300_000))).collect();
    let tar = Archive::of(&files, Variant::Ustar).tar;
    for (target, codec) in [(Target::EStargz, Codec::Gzip), (Target::ZstdChunked, Codec::Zstd)] {
        let made = made(&tar, &first("f31 f7 f22 f13"), target, 2).unwrap();
        let announced = Announced::by(&made.said.annotations).unwrap();
        let json = table(&formats::Made { blob: made.blob.clone(), said: made.said.clone() });
        let whose = Whose {
            blob: made.said.digest,
            size: made.said.size,
            codec,
            diff_id: made.said.diff_id,
            table: Digest::of(json.as_bytes()),
            end: made.said.size - 51,
            ahead: announced.ahead,
            segment: SegmentSize::from_bits(16).unwrap(),
        };
        let layer = layer(json.as_bytes(), &whose).unwrap();
        let contents = layer.source().contents.as_ref().unwrap();
        // Five segments of 64 KiB each.
        assert_eq!(contents.ahead, 20, "{target:?}");
        let begins: Vec<u64> = contents.pieces.iter().take(4).map(|piece| piece.begin).collect();
        assert!(begins.is_sorted() && begins[3] < made.said.size / 8, "they lie side by side: {begins:?}");
    }
    let all = made(&tar, &first(""), Target::ZstdChunked, 2).unwrap();
    assert_eq!(Announced::by(&all.said.annotations).unwrap().ahead, 0, "nobody said what comes first");
}

#[test]
fn where_nothing_comes_first_all_is_as_without_an_order() {
    let tar = Archive::of(&everything(), Variant::Pax10).tar;
    for wanted in ["", "nobody", "opaque/z implied/y"] {
        let ordered = made(&tar, &first(wanted), Target::EStargz, 1).unwrap();
        let mut blob = Vec::new();
        let size = tar.len() as u64;
        let recoding = Recoding { target: Target::EStargz, level: Some(1), blob_size: size, threads: 3 };
        let said = recode::recode(&tar[..], &expected(&tar, &tar), &recoding, &mut blob).unwrap();
        assert!(blob == ordered.blob && said == ordered.said);
        for target in [Target::Gzip, Target::Zstd] {
            assert!(matches!(made(&tar, &first(wanted), target, 1), Err(RecodeError::NothingFirst)));
        }
    }
    // A global header speaks of all that follow.
    let mut archive = Archive::new();
    archive.entry(&Entry::file("a", "1"), Variant::Ustar);
    archive.records(b'g', &[(b"uid", b"7")]);
    archive.entry(&Entry::file("b", "2"), Variant::Ustar);
    archive.finish();
    assert!(matches!(made(&archive.tar, &first("b"), Target::Gzip, 1), Err(RecodeError::NothingFirst)));
}

#[test]
fn orders_are_deterministic_and_ends_are_whole() {
    let (last, mut entries): (Vec<_>, Vec<_>) =
        everything().into_iter().partition(|entry| entry.path == b"usr/bin/last");
    entries.retain(|entry| ![&b"implied/"[..], b"long/"].iter().any(|dir| entry.path.starts_with(dir)));
    let tar = Archive::of(&[entries, last].concat(), Variant::Gnu).tar;
    let wanted = first("usr/bin/last usr/bin/odd");
    for target in [Target::EStargz, Target::Gzip] {
        let one = made(&tar, &wanted, target, 1).unwrap();
        let other = made(&tar, &wanted, target, 5).unwrap();
        assert!(one.blob == other.blob && one.said == other.said);
    }
    // The last file has 17 bytes: 495 of padding, some of which may be missing, and the zero blocks.
    let whole = reordered(&tar, &wanted);
    let end = tar.len() - 1024;
    for cut in [1, 300, 495] {
        let plain = reordered(&tar[..end - cut], &wanted);
        assert!(plain == whole[..end], "{cut}");
    }
    let odd = [&tar[..], b"odd bytes that nobody reads"].concat();
    assert!(reordered(&odd, &wanted) == [&whole[..], b"odd bytes that nobody reads"].concat());
}

fn side<'a>(tar: &[u8], blob: &'a [u8]) -> Side<&'a [u8]> {
    Side { blob, expected: expected(tar, blob), size: blob.len() as u64 }
}

#[test]
fn comparing_knows_the_order() {
    let tar = Archive::of(&everything(), Variant::Pax10).tar;
    let wanted = first("usr/bin/last other usr/bin/hot");
    let made = made(&tar, &wanted, Target::EStargz, 2).unwrap();
    let expected = Expected { blob: made.said.digest, diff_id: made.said.diff_id };
    let there = || Side { blob: &made.blob[..], expected, size: made.said.size };
    let blob = packed_as("gzip -6", &tar);
    compare(side(&tar, &blob), Some(&wanted), there()).unwrap();
    for other in [None, Some(&first("usr/bin/last")), Some(&first("usr/bin/hot other usr/bin/last"))] {
        assert!(matches!(compare(side(&tar, &blob), other, there()), Err(CompareError::Differs(_))));
    }
    let mut changed = everything();
    changed[7] = changed[7].clone().mode(0o600);
    let other = Archive::of(&changed, Variant::Pax10).tar;
    let error = compare(side(&other, &other), Some(&wanted), there()).unwrap_err();
    assert_eq!(error.to_string(), "\"usr/bin/odd\" differs");
}

/// Layers as parts of an image of Nydus, and their blobs.
fn nydus(tars: &[Vec<u8>], first: &First) -> Result<(Vec<(Digest, Parts)>, rafs::Blobs), RecodeError> {
    let (mut layers, mut blobs) = (Vec::new(), rafs::Blobs::new());
    for tar in tars {
        let (mut blob, spool) = (Vec::new(), tempfile::tempfile().unwrap());
        let packing = Packing { level: Some(1), blob_size: tar.len() as u64, threads: 2 };
        let order = Order { first, spool: &spool, only: true };
        let packed = pack_in_order(&tar[..], &expected(tar, tar), &packing, Some(order), &mut blob)?;
        blobs.insert(packed.digest.hex(), blob);
        layers.push((packed.digest, packed.parts));
    }
    Ok((layers, blobs))
}

fn bootstrap(layers: &[(Digest, Parts)]) -> Result<Vec<u8>, RecodeError> {
    let layers: Vec<_> = layers.iter().map(|(digest, parts)| (*digest, parts)).collect();
    let merged = merge(&layers)?;
    let tar = format::unpack::whole(format::index::Codec::Gzip, &merged.blob, u64::MAX).unwrap().unwrap();
    let (mut parser, mut rest) = (Parser::new(), &tar[..]);
    loop {
        let (taken, step) = parser.step(rest).unwrap();
        rest = &rest[taken..];
        let Step::Member(member) = step else { continue };
        if member.kind == MemberKind::File {
            return Ok(rest[..usize::try_from(member.payload).unwrap()].to_vec());
        }
    }
}

/// Returns the tree of layers, as a reader of images of Nydus has it that knows nothing of the writer.
fn tree(tars: &[Vec<u8>], first: &First) -> Result<Dump, RecodeError> {
    let (layers, blobs) = nydus(tars, first)?;
    Ok(rafs::Bootstrap::open(&bootstrap(&layers)?, &blobs).dump())
}

#[test]
fn bootstraps_name_what_is_read_first() {
    let upper = [Entry::file("hidden", "upper"), Entry::file("etc", "x")];
    let lower = [
        Entry::file("cold", vec![3; 3 << 20]),
        Entry::file("hidden", "lower"),
        Entry::file("hot", Dice::new(1).content(5 << 20)),
        Entry::file("empty", ""),
        Entry::file("warm", "warm"),
    ];
    let tars = [&lower[..], &upper[..]].map(|entries| Archive::of(entries, Variant::Ustar).tar);
    let wanted = first("warm empty hidden hot");
    let (layers, blobs) = nydus(&tars, &wanted).unwrap();
    let boot = bootstrap(&layers).unwrap();
    let opened = Bootstrap::open(&boot[..]).unwrap();
    // Of each blob those that the tree has, as they lie there: nothing of a file of no bytes.
    let (list, ahead) = (opened.list().unwrap(), opened.prefetch());
    let mut begins = Vec::new();
    for n in 0..list.len() {
        let chunk = list.chunks(n).unwrap().next().map(Result::unwrap);
        begins.extend(
            chunk.and_then(|chunk| Some((chunk.blob, chunk.piece?.begin, list.member(n).unwrap().path))),
        );
    }
    begins.sort();
    let names: Vec<_> = begins.iter().map(|(.., path)| String::from_utf8_lossy(path)).collect();
    assert_eq!(names, ["warm", "hot", "cold", "hidden", "etc"]);
    assert_eq!(ahead.len(), 3, "warm, hot, and hidden of the upper layer");
    let dump = rafs::Bootstrap::open(&boot, &blobs).dump();
    assert!(difference(&dump, &flatten(&[lower.to_vec(), upper.to_vec()]).unwrap()).is_none());
    assert!(nydus(&tars, &first("")).unwrap().0 != layers);

    let Some(program) = std::env::var_os("FLOE_TEST_NYDUS_IMAGE") else {
        testkit::skip!("FLOE_TEST_NYDUS_IMAGE does not say where nydus-image is");
    };
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("boot"), &boot).unwrap();
    let said =
        Command::new(program).arg("check").arg("-B").arg(dir.path().join("boot")).arg("-v").output().unwrap();
    let text = [said.stdout, said.stderr].map(|text| String::from_utf8_lossy(&text).into_owned()).concat();
    assert!(said.status.success() && text.contains("RAFS filesystem metadata is valid"), "{text}");
}

#[test]
fn where_a_header_may_speak_of_more_than_one_file_nothing_is_moved() {
    let wanted = first("late");
    let mut global = Archive::new();
    global.records(b'g', &[(b"comment", b"of all that follow")]);
    let mut looks_so = Archive::new();
    looks_so.entry(&Entry::symlink("link", [&[b'x'; 156][..], b"g"].concat()), Variant::Gnu);
    for mut archive in [global, looks_so] {
        for name in ["early", "late"] {
            archive.entry(&Entry::file(name, name), Variant::Ustar);
        }
        archive.finish();
        let tar = &archive.tar;
        assert!(matches!(made(tar, &wanted, Target::Gzip, 1), Err(RecodeError::NothingFirst)));
        compare(side(tar, tar), Some(&wanted), side(tar, tar)).unwrap();
    }
}

/// Returns a layer in which more can be moved: with its directories before all, or without what replaces something.
fn tidied(layer: &[(Entry, Variant)], how: u8) -> Vec<(Entry, Variant)> {
    let mut members = layer.to_vec();
    if how > 0 {
        let dirs =
            ["d/", "e/", "d/d/", "d/e/", "e/d/", "e/e/"].map(|path| (Entry::dir(path), Variant::Ustar));
        members.splice(0..0, dirs);
    }
    if how > 1 {
        let mut seen = HashSet::new();
        let clean = |path: &[u8]| {
            path.split(|byte| *byte == b'/')
                .filter(|name| !matches!(*name, b"" | b"."))
                .map(<[u8]>::to_vec)
                .collect::<Vec<_>>()
        };
        members.retain(|(entry, _)| seen.insert(clean(&entry.path)));
    }
    members
}

fn written(layer: &[(Entry, Variant)]) -> Vec<u8> {
    let mut archive = Archive::new();
    layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
    archive.finish();
    archive.tar
}

/// Blocks of a tar, sorted: an order changes nothing but their places.
fn blocks(tar: &[u8]) -> Vec<&[u8]> {
    let mut blocks: Vec<_> = tar.chunks(512).collect();
    blocks.sort_unstable();
    blocks
}

type Stack = Vec<Vec<(Entry, Variant)>>;

fn stacks(layers: std::ops::Range<usize>) -> impl Strategy<Value = (Stack, First)> {
    let layers = prop::collection::vec((arbitrary::layer(0..14), 0u8..3), layers);
    (layers, prop::collection::vec(any::<prop::sample::Index>(), 0..12)).prop_map(|(layers, picks)| {
        let layers: Vec<_> = layers.iter().map(|(layer, how)| tidied(layer, *how)).collect();
        let layers = sensible(&layers, |(entry, _)| entry);
        let all: Vec<_> = layers.iter().flatten().map(|(entry, _)| entry.path.clone()).collect();
        let paths: Vec<_> =
            picks.iter().filter(|_| !all.is_empty()).map(|pick| pick.get(&all).clone()).collect();
        (layers, First::new(paths.iter().map(Vec::as_slice)))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(192))]
    #[test]
    fn any_order_of_any_layers_makes_the_same_tree((layers, wanted) in stacks(1..4)) {
        let tars: Vec<_> = layers.iter().map(|layer| written(layer)).collect();
        // Alone a layer may make no tree.
        let Ok(before) = tree(&tars, &First::default()) else { return Ok(()) };
        let after: Vec<_> = tars.iter().map(|tar| reordered(tar, &wanted)).collect();
        for (tar, after) in tars.iter().zip(&after) {
            prop_assert_eq!(blocks(tar), blocks(after));
            compare(side(tar, tar), Some(&wanted), side(after, after)).unwrap();
        }
        let found = difference(&tree(&after, &First::default()).unwrap(), &before);
        prop_assert!(found.is_none(), "{}", found.unwrap_or_default());
        let found = difference(&tree(&tars, &wanted).unwrap(), &before);
        prop_assert!(found.is_none(), "{}", found.unwrap_or_default());
    }
}

/// Returns what GNU tar extracts. Directories get their times at the end, as container runtimes do it; those that nobody has
/// described have the time at which they were made, and none here.
fn extracted(tar: &[u8]) -> Option<Dump> {
    let now = || i64::try_from(UNIX_EPOCH.elapsed().unwrap().as_secs()).unwrap();
    let begun = now();
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("tar"), tar).unwrap();
    let out = dir.path().join("out");
    fs::create_dir(&out).unwrap();
    let options =
        ["-xpf", "../tar", "--delay-directory-restore", "--numeric-owner", "--xattrs", "--xattrs-include=*"];
    fixture::gnu_tar(&options, &out).ok()?;
    let mut found = dump::disk(&out).ok()?; // attributes may be none that a disk has
    let made = |node: &&mut Node| node.what == What::Dir && (begun - 1..=now()).contains(&node.mtime.0);
    found.values_mut().filter(made).for_each(|node| node.mtime = (0, 0));
    Some(found)
}

fn needs_root() -> bool {
    let dir = tempfile::tempdir().unwrap();
    fs::metadata(dir.path()).unwrap().uid() != 0 || Command::new("tar").arg("--version").output().is_err()
}

#[test]
fn gnu_tar_extracts_the_same() {
    if needs_root() {
        testkit::skip!("GNU tar, and root for owners and devices");
    }
    let mut tars =
        vec![(Archive::of(&everything(), Variant::Gnu).tar, first("usr/bin/last other usr/bin/hot"))];
    for (_, tar) in shapes::all() {
        let names = names(&tar);
        // Every seventh, from behind.
        let paths: Vec<_> = names.iter().rev().step_by(7).map(|name| name.as_bytes()).collect();
        let wanted = First::new(paths);
        tars.push((tar, wanted));
    }
    let mut moved = 0;
    for (tar, wanted) in &tars {
        let after = reordered(tar, wanted);
        moved += usize::from(after != *tar);
        let found = difference(&extracted(&after).unwrap(), &extracted(tar).unwrap());
        assert!(found.is_none(), "{}", found.unwrap_or_default());
    }
    assert!(moved > tars.len() / 2, "{moved} of {}", tars.len());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn gnu_tar_extracts_the_same_of_any_layer((layers, wanted) in stacks(1..2)) {
        if needs_root() {
            return Ok(());
        }
        for layer in layers {
            // Pieces of sparse files that are no whole blocks GNU tar reads wrongly, and only where something follows. What it will
            // not extract is for others to judge.
            let whole = |(entry, _): &(Entry, Variant)| !matches!(entry.kind, Kind::Sparse(..));
            let tar = written(&layer.into_iter().filter(whole).collect::<Vec<_>>());
            let Some(before) = extracted(&tar) else { continue };
            let after = extracted(&reordered(&tar, &wanted)).unwrap();
            let found = difference(&after, &before);
            prop_assert!(found.is_none(), "{}", found.unwrap_or_default());
        }
    }
}
