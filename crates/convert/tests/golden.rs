//! What may never change by accident: the identities and the files of indexes, of layers with the shape of real ones.
//!
//! Stores and registries are full of them. An identity that changes makes every stored and published index useless,
//! and no commit may do that without a new format version. A file that changes costs less, because readers take any
//! that is true; but two builders of one layer should still publish the same bytes.
//!
//! `golden.txt` has a line for each packing: the digest of the blob, then that of the encoded index. The packers are
//! zlib-rs and zstd of `Cargo.lock`, never programs of the machine. If an update of theirs makes another blob, that is
//! no change of ours, and the test says so; zstd packs the skeleton and windows too, so that its update may also
//! change indexes, but no identity.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::fmt::Write as _;

use common::{PACKINGS, built, built_from_pieces, pack};
use convert::Threads;
use format::Digest;
use testkit::shapes;

/// What most layers get: 512 KiB.
const BITS: u8 = 19;

const GOLDEN: &str = include_str!("golden.txt");

#[test]
fn a_shape_has_one_identity_and_each_packing_one_index_by_any_way_of_building() {
    let mut lines = String::new();
    for (shape, tar) in shapes::all() {
        assert!((1 << 20..10 << 20).contains(&tar.len()), "{shape} has {} bytes", tar.len());
        let mut identity = None;
        for packing in PACKINGS {
            let blob = pack(packing, &tar);
            let layer = built(&tar, &blob, BITS, Threads::Two).layer;
            let file = layer.index().encode();
            if identity.is_none() {
                writeln!(lines, "{shape}: identity {}", layer.id().hex()).unwrap();
            }
            assert_eq!(*identity.get_or_insert(layer.id()), layer.id(), "{shape}, {packing}");
            assert!(
                built(&tar, &blob, BITS, Threads::One).layer.index().encode() == file,
                "{shape}, {packing}"
            );
            for piece in [4093, blob.len()] {
                let pieces = built_from_pieces(&tar, &blob, BITS, piece);
                assert!(pieces.encode() == file, "{shape}, {packing}, pieces of {piece}");
            }
            let [of_blob, of_index] = [Digest::of(&blob), Digest::of(&file)].map(|digest| digest.hex());
            writeln!(lines, "{shape}, {packing}: {of_blob} {of_index}").unwrap();
        }
    }
    for (golden, line) in GOLDEN.lines().zip(lines.lines()) {
        let blob = |line: &str| line.rsplit(' ').nth(1).unwrap().to_owned();
        let why = match golden == line {
            true => continue,
            false if line.contains("identity") => "the identity is another: read the head of this file",
            false if blob(golden) == blob(line) => "the index of the same blob is another",
            false => "the packer makes another blob, or the shape is another",
        };
        panic!("{why}\nwas {golden}\nis  {line}\nall of them:\n{lines}");
    }
    assert_eq!(GOLDEN.lines().count(), lines.lines().count(), "all of them:\n{lines}");
}
