//! Layers that were recoded, read by their tables of contents: the same files as by an index of the tar.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/formats.rs"]
#[allow(dead_code, reason = "shared with the tests of the writers")]
mod formats;

use std::ops::Range;
use std::sync::Arc;

use common::{Dice, assorted};
use convert::recode::{RecodeError, Target};
use convert::{Expected, Options, Threads, build};
use format::decode::SpanDecoder;
use format::index::Codec;
use format::layer::{Layer, LayerError};
use format::payload::SegmentSize;
use format::stargz::TOC_NAME;
use format::stargz::index::Whose;
use format::stargz::table::{Announced, Place};
use format::tar::Member;
use format::tree::Runs;
use format::{DiffId, Digest};
use formats::{Made, made, unpacked};
use proptest::prelude::*;
use testkit::arbitrary;
use testkit::tar::{Archive, Entry, Variant};

fn at(range: Range<u64>) -> Range<usize> {
    usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()
}

/// Opens a layer by its table, fetching what a node would.
fn by_table(made: &Made, segment: SegmentSize) -> Arc<Layer> {
    let (announced, size) = (Announced::by(&made.said.annotations).unwrap(), made.blob.len() as u64);
    let first = announced.first(size).unwrap();
    let whole = announced.whole(&made.blob[at(first)], size).unwrap();
    let codec = if announced.place == Place::Footer { Codec::Gzip } else { Codec::Zstd };
    let whose = Whose {
        blob: made.said.digest,
        size,
        codec,
        diff_id: made.said.diff_id,
        table: announced.digest,
        end: whole.start,
        ahead: announced.ahead,
        segment,
    };
    Arc::new(announced.layer(&made.blob[at(whole)], &whose).unwrap())
}

fn by_tar(blob: &[u8], segment: SegmentSize) -> Arc<Layer> {
    let tar = unpacked(blob);
    let expected = Expected { blob: Digest::of(blob), diff_id: DiffId::new(Digest::of(&tar)) };
    let options = Options { segment, blob_size: blob.len() as u64 };
    let (index, _) = build(blob, options, &expected, Threads::One, |_, _: &[u8]| Ok(())).unwrap();
    Arc::new(Layer::open(index).unwrap())
}

/// Returns each member with what it holds, decoded span by span from the blob.
fn shown(layer: &Arc<Layer>, blob: &[u8]) -> Vec<(Member, Vec<u8>)> {
    let (mut space, mut next) = (Vec::new(), 0);
    while next < layer.segments() {
        let span = layer.span(next).unwrap();
        let mut decoder = SpanDecoder::new(Arc::clone(layer), span.segments.clone()).unwrap();
        let mut packed = &blob[at(decoder.parts()[0].range.clone())];
        while let Some((number, verified)) = decoder.push(&mut packed).unwrap() {
            space.resize(at(0..layer.layout().segment_size().start(number)).end, 0);
            space.extend(verified.into_vec());
        }
        decoder.finish().unwrap();
        next = span.segments.end;
    }
    let mut shown = Vec::new();
    let content = |runs: &Runs, len: u64| match runs {
        Runs::None => Vec::new(),
        Runs::Whole(from) => space[at(*from..from + len)].to_vec(),
        Runs::Sparse(runs) => {
            runs.iter().flat_map(|run| space[at(run.payload..run.payload + run.len)].to_vec()).collect()
        }
    };
    let each = |member: Member, runs: Runs| {
        let bytes = content(&runs, member.payload);
        shown.push((Member { plain: 0, ..member }, bytes));
        Ok::<_, LayerError>(())
    };
    layer.members(each).unwrap();
    shown
}

/// Compares the two ways to read what a tar becomes.
fn agree(tar: &[u8], target: Target, bits: u8) -> Result<(), RecodeError> {
    let made = made(tar, tar, target, 1)?;
    let segment = SegmentSize::from_bits(bits).unwrap();
    let table = shown(&by_table(&made, segment), &made.blob);
    let mut tar = shown(&by_tar(&made.blob, segment), &made.blob);
    tar.retain(|(member, _)| &*member.path != TOC_NAME.as_bytes());
    if target == Target::EStargz {
        // Whole seconds, rounded as Go does.
        tar.iter_mut().for_each(|(member, _)| {
            member.mtime.secs += i64::from(member.mtime.nanos >= 500_000_000);
            member.mtime.nanos = 0;
        });
    }
    assert_eq!(table.len(), tar.len());
    for (by_table, by_tar) in table.iter().zip(&tar) {
        assert_eq!(by_table.0, by_tar.0);
        assert!(by_table.1 == by_tar.1, "{}", String::from_utf8_lossy(&by_tar.0.path));
    }
    Ok(())
}

#[test]
fn a_table_shows_what_the_tar_holds() {
    for target in [Target::EStargz, Target::ZstdChunked] {
        for bits in [16, 19, 22] {
            agree(&assorted(3, 60), target, bits).unwrap();
        }
        let mut dice = Dice::new(9);
        let long = [
            Entry::file("a", dice.content(9_000_001)),
            Entry::file("b", dice.content(5_300_000)),
            Entry::file("c", "c"),
        ];
        agree(&Archive::of(&long, Variant::Ustar).tar, target, 19).unwrap();
        for (name, tar) in testkit::shapes::all() {
            let read = agree(&tar, target, 19);
            // It has a sparse file, which no table can hold.
            assert_eq!(read.is_ok(), name != "base", "{name}: {read:?}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn any_layer_is_the_same_by_its_table(layer in arbitrary::layer(0..12), chunked in any::<bool>()) {
        let mut archive = Archive::new();
        layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
        archive.finish();
        let target = if chunked { Target::ZstdChunked } else { Target::EStargz };
        match agree(&archive.tar, target, 16) {
            // Some members no table can hold; they are told.
            Ok(()) | Err(RecodeError::Inexpressible { .. }) => {}
            Err(error) => panic!("{target:?}: {error}"),
        }
    }
}
