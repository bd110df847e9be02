//! Layers made into blobs of Nydus and blobs into images: read back, they hold the same files, and the bytes are always the
//! same. Where nydus-image is at hand (`FLOE_TEST_NYDUS_IMAGE`), it says so, too.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/rafs.rs"]
mod rafs;

use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::process::Command;

use common::{Dice, PACKINGS, assorted, expected, pack as packed_as};
use convert::Expected;
use convert::recode::RecodeError;
use convert::recode::nydus::{
    Blob, NydusError, Packed, Packing, Parts, Toc, compare, compare_merged, merge, pack,
};
use format::nydus::layer::{Contents, Layer};
use format::nydus::write::{Files, bootstrap};
use format::tar::{Parser, Step};
use format::tree::{Builder, Runs};
use format::{DiffId, Digest};
use proptest::prelude::*;
use rafs::{Blobs, Bootstrap, parts};
use testkit::dump::{Dump, What, difference};
use testkit::layers::{flatten, sensible};
use testkit::tar::{Archive, Entry, Kind, Variant};
use testkit::{arbitrary, shapes};

/// A layer's blob, and what was said of it.
struct Made {
    blob: Vec<u8>,
    said: Packed,
}

fn packing(blob: &[u8], threads: usize) -> Packing {
    Packing { level: Some(1), blob_size: blob.len() as u64, threads }
}

fn made(tar: &[u8], blob: &[u8], threads: usize) -> Result<Made, RecodeError> {
    let mut out = Vec::new();
    let said = pack(blob, &expected(tar, blob), &packing(blob, threads), &mut out)?;
    assert_eq!((said.digest, said.size), (Digest::of(&out), out.len() as u64));
    assert!(read_again(&out) == said.parts, "what is found at the end of a blob is what was told");
    Ok(Made { blob: out, said })
}

/// Finds at the end of a blob what goes into an image.
fn read_again(blob: &[u8]) -> Parts {
    let tail = &blob[blob.len().saturating_sub(usize::try_from(Toc::TAIL).unwrap())..];
    let toc = Toc::read(tail, blob.len() as u64).unwrap();
    let range = toc.range();
    toc.parts(&blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()]).unwrap()
}

/// An image of these tars, bottom first.
struct Image {
    layers: Vec<Made>,
    blobs: Blobs,
    /// Files in its last layer.
    files: Vec<(String, Vec<u8>)>,
}

fn image(tars: &[Vec<u8>]) -> Result<Image, RecodeError> {
    let layers = tars.iter().map(|tar| made(tar, tar, 2)).collect::<Result<Vec<_>, _>>()?;
    let listed: Vec<_> = layers.iter().map(|layer| (layer.said.digest, &layer.said.parts)).collect();
    let merged = merge(&listed)?;
    assert_eq!(merged.digest, Digest::of(&merged.blob));
    let top = Expected { blob: merged.digest, diff_id: merged.diff_id };
    compare_merged(&merged.blob[..], &top, merged.blob.len() as u64, &listed)?;
    for (tar, Made { blob, said }) in tars.iter().zip(&layers) {
        let (size, made) = (
            tar.len() as u64,
            Blob { bytes: &blob[..], digest: said.digest, size: said.size, parts: &said.parts },
        );
        compare(&tar[..], &expected(tar, tar), size, None, made)?;
    }
    let tar = format::unpack::whole(format::index::Codec::Gzip, &merged.blob, u64::MAX).unwrap().unwrap();
    assert_eq!(*merged.diff_id.digest(), Digest::of(&tar));
    let blobs = layers.iter().map(|layer| (layer.said.digest.hex(), layer.blob.clone())).collect();
    Ok(Image { layers, blobs, files: untar(&tar) })
}

impl Image {
    fn bootstrap(&self) -> &[u8] {
        assert_eq!(self.files[1].0, "image/image.boot");
        &self.files[1].1
    }

    fn dump(&self) -> Dump {
        Bootstrap::open(self.bootstrap(), &self.blobs).dump()
    }
}

/// Returns names and bytes of the members of a simple tar, which has what the converter's has.
fn untar(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut at, mut out) = (0, Vec::new());
    while tar[at] != 0 {
        let text = |from: usize, to: usize| {
            std::str::from_utf8(&tar[at + from..at + to]).unwrap().trim_end_matches('\0').to_owned()
        };
        let len = usize::from_str_radix(&text(124, 136), 8).unwrap();
        let is_dir = tar[at + 156] == b'5';
        assert_eq!(text(100, 108), if is_dir { "0000755" } else { "0000444" });
        out.push((text(0, 100), tar[at + 512..at + 512 + len].to_vec()));
        at += 512 + len.next_multiple_of(512);
    }
    assert_eq!(tar.len(), at + 1024);
    out
}

fn archive(entries: &[Entry]) -> Vec<u8> {
    Archive::of(entries, Variant::Pax10).tar
}

fn same(found: &Dump, wanted: &Dump) {
    if let Some(text) = difference(found, wanted) {
        panic!("{text}");
    }
}

/// One member of each kind, and what lower layers have that upper ones hide.
fn stack() -> [Vec<Entry>; 3] {
    let mut dice = Dice::new(7);
    let large = dice.content((3 << 20) + 5);
    let noise: Vec<u8> = (0..3000).map(|_| dice.next().to_le_bytes()[3]).collect();
    let lower = vec![
        Entry::dir("./"),
        Entry::dir("d/").mode(0o1777).owner(3, 70_000),
        Entry::file("d/empty", ""),
        Entry::file("d/small", "content").xattr("user.a", b"\xff\0").xattr("security.capability", [1; 20]),
        Entry::file("large", &large),
        Entry::file("copy of large", &large),
        Entry::file("zeros", vec![0; (2 << 20) + 1]),
        Entry::file("noise", noise),
        Entry::file("replaced", "first").mtime(5, 0),
        Entry::link("d/hard", "d/small"),
        Entry::symlink("soft", "d/hard"),
        Entry::symlink("far", "x".repeat(4000)),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::new("loop", Kind::Block(7, 70_000)),
        Entry::new("fifo", Kind::Fifo),
        Entry::new(
            "sparse",
            Kind::Sparse(9 << 20, vec![((2 << 20) + 7, vec![5; 3]), (8 << 20, vec![6; 99])]),
        ),
        Entry::new("hole", Kind::Sparse(5 << 20, vec![])),
        Entry::file("gone/a", "1"),
        Entry::file("opaque/old", "1"),
        Entry::file("tree/a/b", "1"),
        Entry::file("old times", "").mtime(-5, 7),
        Entry::file("many", "").xattr("user.big", vec![7; 5000]).xattr("trusted.t", ""),
    ];
    let middle = vec![
        Entry::file(".wh.gone", ""),
        Entry::dir("opaque/"),
        Entry::file("opaque/.wh..wh..opq", ""),
        Entry::file("opaque/new", "2"),
        Entry::file("replaced", "second"),
        Entry::file("d/.wh.empty", ""),
        Entry::file("tree/.wh.a", ""),
        Entry::file("tree/a/c", "2"),
        Entry::dir("d/").mode(0o700),
        Entry::link("linked", "replaced"),
    ];
    let upper = vec![
        Entry::file("gone", "it is a file"),
        Entry::file("only/directories/.wh.here", ""),
        Entry::dir("d/e/"),
        Entry::file(".wh.null", ""),
        Entry::symlink("opaque", "d"),
    ];
    [lower, middle, upper]
}

#[test]
fn an_image_holds_what_its_layers_amount_to() {
    let stack = stack();
    let image = image(&stack.clone().map(|entries| archive(&entries))).unwrap();
    let wanted = flatten(&stack).unwrap();
    assert!(wanted.contains_key(&b"only/directories"[..]), "what hides a name there makes them");
    same(&image.dump(), &wanted);
    let names: Vec<_> = image.files.iter().map(|(name, _)| name.clone()).collect();
    let mut expected = vec!["image".to_owned(), "image/image.boot".into()];
    // The third has no byte in its files but those of one.
    expected.extend(image.layers.iter().map(|layer| format!("image/{}.blob.meta", layer.said.digest.hex())));
    assert_eq!(names, expected);
    for ((_, bytes), layer) in image.files[2..].iter().zip(&image.layers) {
        let parts = parts(&layer.blob);
        let (meta, header) = (&parts[1].plain, &parts[2].plain);
        assert_eq!(bytes.len(), meta.len().next_multiple_of(4096) + 4096);
        assert!(bytes.starts_with(meta) && bytes.ends_with(header));
    }
}

#[test]
fn a_chunk_is_in_a_blob_once() {
    let content = Dice::new(3).content(5 << 20);
    let once = archive(&[Entry::file("a", &content)]);
    let thrice = archive(&["a", "b", "c"].map(|name| Entry::file(name, &content)));
    let data = |tar: &[u8]| parts(&made(tar, tar, 2).unwrap().blob)[0].plain.clone();
    assert!(data(&once) == data(&thrice));
    let holes = archive(&[Entry::new("hole", Kind::Sparse(1 << 40, vec![(1 << 39, vec![1])]))]);
    let blob = made(&holes, &holes, 2).unwrap().blob;
    assert_eq!(parts(&blob)[1].plain.len(), 2 * 16, "a hole, and the chunk with a byte in it");
}

#[test]
fn a_layers_own_bootstrap_keeps_what_it_hides() {
    let layer = vec![
        Entry::file("a/.wh.gone", ""),
        Entry::file("a/.wh..wh..opq", ""),
        Entry::file("f", ""),
        Entry::dir("f/"),
        Entry::file(".wh.f", ""),
        Entry::file("content", "x"),
    ];
    let tar = archive(&layer);
    let made = made(&tar, &tar, 1).unwrap();
    let parts = parts(&made.blob);
    let boot = &parts.iter().find(|part| part.name == "image.boot").unwrap().plain;
    let itself = [("x".repeat(64), made.blob.clone())].into();
    // The features of a blob with a bootstrap in it are others, which the reader does not expect.
    let mut named = boot.clone();
    let table = usize::try_from(rafs::n64(&named, 1152 + 8)).unwrap();
    assert_eq!(named[table + 84] & 2, 2);
    named[table + 84] &= !2;
    let dump = Bootstrap::open(&named, &itself).dump();
    let paths: Vec<_> = dump.keys().map(|path| String::from_utf8(path.clone()).unwrap()).collect();
    let expected = [".wh.f", "a", "a/.wh..wh..opq", "a/.wh.gone", "content", "f", "f/.wh..wh..opq"];
    assert_eq!(paths, expected);
}

#[test]
fn links_of_lower_layers_are_followed() {
    let lower = archive(&[Entry::dir("usr/"), Entry::dir("usr/lib/"), Entry::symlink("lib", "usr/lib")]);
    let upper = archive(&[Entry::file("lib/f", "1"), Entry::file("lib/.wh.g", "")]);
    let dump = image(&[lower, upper]).unwrap().dump();
    assert_eq!(dump[&b"lib"[..]].what, What::Symlink(b"usr/lib".to_vec()));
    assert_eq!(dump[&b"usr/lib/f"[..]].what, What::File(b"1".to_vec()));
    // What a layer says of a directory counts, even if that is what an unsaid one is like.
    let lower = archive(&[Entry::dir("d/").mode(0o700).owner(5, 5)]);
    let upper = archive(&[Entry::dir("d/").mtime(0, 0)]);
    assert_eq!(image(&[lower.clone(), upper]).unwrap().dump()[&b"d"[..]].mode, 0o755);
    let upper = archive(&[Entry::file("d/f", "")]);
    assert_eq!(image(&[lower, upper]).unwrap().dump()[&b"d"[..]].mode, 0o700);
}

#[test]
fn layers_without_bytes_and_layers_that_are_there_twice() {
    let (empty, bytes) = (archive(&[Entry::dir("d/")]), archive(&[Entry::file("d/f", "x")]));
    let image = image(&[empty.clone(), bytes.clone(), empty, bytes]).unwrap();
    let bootstrap = Bootstrap::open(image.bootstrap(), &image.blobs);
    assert_eq!(bootstrap.blobs(), [image.layers[1].said.digest.hex()]);
    assert_eq!(image.files.len(), 3);
    assert_eq!(parts(&image.layers[0].blob).len(), 1, "a bootstrap alone");
    let nothing = self::image(&[archive(&[])]).unwrap();
    assert!(nothing.dump().is_empty());
    // All that a layer has is hidden.
    let hidden =
        self::image(&[archive(&[Entry::file("f", "x")]), archive(&[Entry::file(".wh.f", "")])]).unwrap();
    assert!(Bootstrap::open(hidden.bootstrap(), &hidden.blobs).blobs().is_empty());
}

#[test]
fn every_packing_and_number_of_threads_becomes_the_same() {
    for tar in [assorted(1, 300), shapes::modules(), shapes::base()] {
        let first = made(&tar, &tar, 1).unwrap().blob;
        for threads in [2, 3, 7] {
            assert!(made(&tar, &tar, threads).unwrap().blob == first, "{threads} threads");
        }
        for way in PACKINGS {
            assert!(made(&tar, &packed_as(way, &tar), 2).unwrap().blob == first, "{way}");
        }
    }
}

#[test]
fn what_nydus_cannot_hold_is_named() {
    for (entry, says) in [
        (Entry::link("h", "nowhere"), "\"h\": the target of the hard link, \"nowhere\""),
        (
            Entry::file("x", "").xattr("lustre.lov", "1"),
            "/x: RAFS cannot hold the extended attribute \"lustre.lov\"",
        ),
        (Entry::file([b".wh.".to_vec(), vec![b'n'; 253]].concat(), ""), ".wh.nnn"),
        (Entry::new("huge", Kind::Sparse(1 << 44, vec![])), "\"huge\" cannot be"),
    ] {
        let tar = archive(&[entry]);
        let error = made(&tar, &tar, 1).err().unwrap();
        assert!(error.to_string().contains(says), "{error}");
    }
    let distinct = |n: u32| archive(&[Entry::file(format!("f{n}"), n.to_le_bytes())]);
    let layers: Vec<_> = (0..127).map(distinct).collect();
    assert!(image(&layers).is_ok(), "as many layers as an image may have");
}

#[test]
fn a_damaged_source_is_an_error() {
    let tar = archive(&[Entry::file("a", Dice::new(1).content(900)), Entry::file("b", vec![7; 300])]);
    for way in ["gzip -6", "zstd -3", "plain"] {
        let blob = packed_as(way, &tar);
        let expected = expected(&tar, &blob);
        let attempt = |blob: &[u8]| pack(blob, &expected, &packing(blob, 2), std::io::sink());
        assert!(attempt(&blob).is_ok());
        for at in (0..blob.len()).step_by(17) {
            let mut bad = blob.clone();
            bad[at] ^= 1;
            assert!(attempt(&bad).is_err(), "{way}, byte {at}");
            assert!(attempt(&blob[..at]).is_err(), "{way}, cut at {at}");
        }
    }
    let other = Expected { diff_id: DiffId::new(Digest::of(b"other")), ..expected(&tar, &tar) };
    let result = pack(&tar[..], &other, &packing(&tar, 1), std::io::sink());
    assert!(matches!(result, Err(RecodeError::DiffId { .. })), "{result:?}");
    let level = Packing { level: Some(23), ..packing(&tar, 1) };
    assert!(matches!(level.check(), Err(RecodeError::Level { .. })));
}

/// Whoever holds the destination may say anything at the end of a blob: it is an error, or an image.
#[test]
fn a_damaged_end_of_a_blob_is_no_panic() {
    let tar = archive(&stack()[0]);
    let blob = made(&tar, &tar, 2).unwrap().blob;
    let tail = &blob[blob.len() - 4096..];
    for at in (0..4096).filter(|at| at % 7 == 0 || *at > 2500) {
        let mut bad = tail.to_vec();
        bad[at] ^= 0x41;
        if let Ok(toc) = Toc::read(&bad, blob.len() as u64) {
            let range = toc.range();
            let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
            let _ = blob.get(range).map(|bytes| toc.parts(bytes)); // an error, or what it should be
        }
    }
    for len in [0, 1, 511, 512, 513, 1000] {
        assert!(Toc::read(&blob[..len], len as u64).is_err());
    }
}

#[test]
fn a_damaged_bootstrap_is_no_panic() {
    let tar = archive(&stack()[1]);
    let blob = made(&tar, &tar, 2).unwrap().blob;
    let boot = parts(&blob).into_iter().find(|part| part.name == "image.boot").unwrap().plain;
    let attempt = |boot: &[u8]| -> Result<(), NydusError> {
        let (layer, mut tree) = (Layer::open(boot)?, Builder::new());
        tree.layer()?;
        let Contents { chunks, ahead } =
            layer.members::<NydusError>(|member, runs| Ok(tree.member(member, runs)?))?;
        let blobs: Vec<_> = layer.blob().cloned().into_iter().collect();
        bootstrap(tree.tree(), &blobs, &[Files { blob: 0, chunks, ahead }], &HashSet::new())?;
        Ok(())
    };
    attempt(&boot).unwrap();
    let mut refused = 0;
    for at in (1024..boot.len()).filter(|at| boot[*at] != 0 || at % 13 == 0) {
        for flip in [1, 0x80, 0xff] {
            let mut bad = boot.clone();
            bad[at] ^= flip;
            refused += usize::from(attempt(&bad).is_err());
        }
    }
    assert!(refused > 100, "{refused}");
    for len in (0..boot.len() - 4096).step_by(500) {
        assert!(attempt(&boot[..len]).is_err(), "{len}");
    }
}

/// Says whether whoever reads the layers themselves finds a tree.
fn makes_a_tree(tars: &[Vec<u8>]) -> bool {
    let mut tree = Builder::new();
    tars.iter().all(|tar| {
        tree.layer().unwrap();
        let (mut parser, mut rest) = (Parser::new(), &tar[..]);
        while !rest.is_empty() {
            let (taken, step) = parser.step(rest).unwrap();
            rest = &rest[taken..];
            if let Step::Member(member) = step {
                if tree.member(&member, Runs::None).is_err() {
                    return false;
                }
                let payload = usize::try_from(member.payload).unwrap();
                rest = &rest[payload..];
            }
        }
        true
    })
}

#[test]
fn a_blob_that_holds_something_else_is_told() {
    let mut entries = stack()[0].clone();
    let tar = archive(&entries);
    let said = made(&tar, &tar, 2).unwrap();
    let check = |tar: &[u8], made: &Made, blob: &[u8]| {
        let (digest, size, parts) = (made.said.digest, made.said.size, &made.said.parts);
        compare(tar, &expected(tar, tar), tar.len() as u64, None, Blob { bytes: blob, digest, size, parts })
    };
    // Made at another level, it holds the same.
    let packing = Packing { level: Some(19), ..packing(&tar, 2) };
    let mut blob = Vec::new();
    let other = pack(&tar[..], &expected(&tar, &tar), &packing, &mut blob).unwrap();
    assert_ne!(other.digest, said.said.digest);
    check(&tar, &Made { said: other, blob: Vec::new() }, &blob).unwrap();
    check(&tar, &said, &said.blob).unwrap();
    for at in (0..said.blob.len()).step_by(said.blob.len() / 16) {
        let mut bad = said.blob.clone();
        bad[at] ^= 1;
        assert!(check(&tar, &said, &bad).is_err(), "byte {at}");
        assert!(check(&tar, &said, &said.blob[..at]).is_err(), "cut at {at}");
    }
    // A link says again what its file is like.
    for n in (1..entries.len()).filter(|n| *n != 3) {
        let kept = entries.clone();
        entries[n].mtime.0 += 1;
        let tar = archive(&entries);
        let error = check(&tar, &said, &said.blob).unwrap_err();
        assert!(matches!(error, RecodeError::Nydus(NydusError::Differs(_))), "{error}");
        entries = kept;
    }
    entries[3] =
        Entry::file("d/small", "Content").xattr("user.a", b"\xff\0").xattr("security.capability", [1; 20]);
    let tar = archive(&entries);
    let error = check(&tar, &said, &said.blob).unwrap_err();
    assert_eq!(error.to_string(), "\"the list of chunks\" differs");
}

/// Bytes of a bootstrap that say something, and what becomes of them.
type Change = fn(&mut [u8]);

/// The mode of a directory, which file has which bytes, and where these are.
const CHANGES: [(&str, Change); 5] = [
    ("mode", |boot| {
        // The layer says the one, the image the other.
        let modes = [0o041_777_u16, 0o040_700].map(u16::to_le_bytes);
        let is_it = |at: &usize| modes.iter().any(|mode| boot[at + 4..at + 6] == *mode);
        let at = (4096..boot.len()).step_by(32).find(is_it).unwrap();
        boot[at + 4] ^= 0o1;
    }),
    ("digests", |boot| swap_rows(boot, 0..32)),
    ("places", |boot| swap_rows(boot, 48..56)),
    ("lengths", |boot| swap_rows(boot, 40..44)),
    ("table of chunks", |boot| {
        let table = usize::try_from(rafs::n64(boot, 1152 + 8)).unwrap();
        boot[table + 112] ^= 1; // where the blob has it
    }),
];

/// Lets two chunks change these bytes of their rows.
fn swap_rows(boot: &mut [u8], range: std::ops::Range<usize>) {
    let rows = usize::try_from(rafs::n64(boot, 1152 + 24)).unwrap();
    for n in range {
        boot.swap(rows + n, rows + 80 + n);
    }
}

/// Returns a blob with another bootstrap in it, of which its table of contents speaks.
fn with_bootstrap(blob: &[u8], change: Change) -> Vec<u8> {
    let parts = parts(blob);
    let boot = parts.iter().find(|part| part.name == "image.boot").unwrap();
    let (at, end) =
        (usize::try_from(boot.offset).unwrap(), usize::try_from(boot.offset + boot.stored).unwrap());
    let mut plain = boot.plain.clone();
    change(&mut plain);
    let packed = zstd::bulk::compress(&plain, 3).unwrap();
    let (mut header, mut toc) = (blob[end..end + 512].to_vec(), blob[end + 512..].to_vec());
    header[124..135].copy_from_slice(format!("{:011o}", packed.len()).as_bytes());
    header[148..156].fill(b' ');
    let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
    let entry = toc.chunks_mut(128).find(|entry| entry[8..].starts_with(b"image.boot")).unwrap();
    entry[24..56].copy_from_slice(Digest::of(&plain).as_bytes());
    entry[64..72].copy_from_slice(&(packed.len() as u64).to_le_bytes());
    [&blob[..at], &packed, &header, &toc].concat()
}

#[test]
fn a_blob_whose_own_bootstrap_says_something_else_is_told() {
    let tar = archive(&stack()[0]);
    let blob = made(&tar, &tar, 2).unwrap().blob;
    let check = |blob: &[u8]| {
        let (digest, size, parts) = (Digest::of(blob), blob.len() as u64, &read_again(blob));
        compare(
            &tar[..],
            &expected(&tar, &tar),
            tar.len() as u64,
            None,
            Blob { bytes: blob, digest, size, parts },
        )
    };
    check(&with_bootstrap(&blob, |_| ())).unwrap();
    for (what, change) in CHANGES {
        let error = check(&with_bootstrap(&blob, change)).err();
        assert!(matches!(error, Some(RecodeError::Nydus(_))), "{what}: {error:?}");
    }
}

#[test]
fn a_tree_on_top_that_is_not_that_of_the_layers_is_told() {
    let image = image(&stack().map(|entries| archive(&entries))).unwrap();
    let listed: Vec<_> = image.layers.iter().map(|layer| (layer.said.digest, &layer.said.parts)).collect();
    let check = |boot: &[u8], layers: &[(Digest, &Parts)]| {
        let tar = archive(&[Entry::dir("image"), Entry::file("image/image.boot", boot)]);
        let top = packed_as("gzip -6", &tar);
        compare_merged(&top[..], &expected(&tar, &top), top.len() as u64, layers)
    };
    check(image.bootstrap(), &listed).unwrap();
    for (what, change) in CHANGES {
        let mut boot = image.bootstrap().to_vec();
        change(&mut boot);
        let error = check(&boot, &listed).err();
        assert!(matches!(error, Some(RecodeError::Nydus(_))), "{what}: {error:?}");
    }
    // A layer less, or in another place.
    for layers in [&listed[..2], &[listed[1], listed[0], listed[2]]] {
        let error = check(image.bootstrap(), layers).err();
        assert!(matches!(error, Some(RecodeError::Nydus(NydusError::Differs(_)))), "{error:?}");
    }
    let tar = archive(&[Entry::file("image/other", "")]);
    let error = compare_merged(&tar[..], &expected(&tar, &tar), tar.len() as u64, &listed);
    assert!(error.is_err());
}

#[test]
fn a_blob_that_no_file_is_left_in_is_in_no_list() {
    let replaced = vec![Entry::file("f", "bytes"), Entry::symlink("f", "a")];
    let top = vec![Entry::file("g", "others")];
    for layers in [vec![replaced.clone()], vec![replaced.clone(), top.clone()], vec![top, replaced]] {
        let image = image(&layers.iter().map(|entries| archive(entries)).collect::<Vec<_>>()).unwrap();
        let difference = difference(&image.dump(), &flatten(&layers).unwrap());
        assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]
    #[test]
    fn any_stack_of_layers_is_read_back(
        layers in prop::collection::vec(arbitrary::layer(0..12), 1..4),
    ) {
        let layers = sensible(&layers, |(entry, _)| entry);
        let tars: Vec<_> = layers.iter().map(|layer| {
            let mut archive = Archive::new();
            layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
            archive.finish();
            archive.tar
        }).collect();
        let plain: Vec<Vec<Entry>> =
            layers.iter().map(|layer| layer.iter().map(|(entry, _)| entry.clone()).collect()).collect();
        // Alone a layer may make no tree: a link leads to a lower one, what hides a name has a name too long, or lies in what is
        // no directory.
        let alone = |tar: &Vec<u8>| !matches!(made(tar, tar, 1), Err(RecodeError::Nydus(NydusError::Tree(_))));
        if !tars.iter().all(alone) || !makes_a_tree(&tars) {
            return Ok(());
        }
        let found = image(&tars).unwrap().dump();
        let difference = difference(&found, &flatten(&plain).unwrap());
        prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
    }
}

/// Returns nydus-image, if somebody says where it is.
fn nydus_image() -> Option<PathBuf> {
    std::env::var_os("FLOE_TEST_NYDUS_IMAGE").map(PathBuf::from)
}

fn run(program: &Path, arguments: &[&str]) -> String {
    let output = Command::new(program).args(arguments).output().unwrap();
    let text =
        [output.stdout, output.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
    assert!(output.status.success(), "{arguments:?}: {text}");
    text
}

#[test]
fn nydus_image_accepts_images_and_unpacks_what_was_packed() {
    let Some(program) = nydus_image() else {
        testkit::skip!("FLOE_TEST_NYDUS_IMAGE does not say where nydus-image is");
    };
    let shapes: Vec<_> = shapes::all().into_iter().map(|(_, tar)| tar).collect();
    for tars in [shapes, stack().map(|entries| archive(&entries)).to_vec(), vec![archive(&[])]] {
        let dir = tempfile::tempdir().unwrap();
        let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
        let image = image(&tars).unwrap();
        std::fs::write(at("boot"), image.bootstrap()).unwrap();
        std::fs::create_dir(at("blobs")).unwrap();
        for (name, blob) in &image.blobs {
            std::fs::write(at(&format!("blobs/{name}")), blob).unwrap();
        }
        let said = run(&program, &["check", "-B", &at("boot"), "-v"]);
        assert!(said.contains("RAFS filesystem metadata is valid"), "{said}");
        // Their own merge takes our layers, and makes of them what we make.
        let mut arguments = vec!["merge".to_owned(), "--bootstrap".into(), at("merged")];
        for layer in &image.layers {
            let boot = parts(&layer.blob).into_iter().find(|part| part.name == "image.boot").unwrap();
            // A layer that is there twice has one name.
            let name = at(&layer.said.digest.hex());
            std::fs::write(&name, boot.plain).unwrap();
            arguments.push(name);
        }
        run(&program, &arguments.iter().map(String::as_str).collect::<Vec<_>>());
        run(&program, &["check", "-B", &at("merged")]);
    }
}
