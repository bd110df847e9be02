//! Layers and indexes that are not what they should be: an error that names the thing, never other bytes.
#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Dice, PACKINGS, assorted, built, decode, expected, options, pack, tar};
use convert::{BuildError, Expected, IndexBuilder, Options, Threads, build};
use format::decode::{DecodeError, SpanDecoder};
use format::index::{Chunk, Index, IndexError, Reach, Source, Start};
use format::layer::{Layer, LayerError};
use format::payload::SegmentSize;
use format::{DiffId, Digest};
use proptest::prelude::*;
use sys::inflate::Wrap;
use testkit::tar::{Archive, Entry, Variant};

fn nowhere(_: u32, _: &[u8]) -> std::io::Result<()> {
    Ok(())
}

/// Builds from a blob that need not be right; the digests expected are those of the right one.
fn attempt(blob: &[u8], expected: &Expected) -> Result<Index, BuildError> {
    build(blob, options(blob, 16), expected, Threads::One, nowhere).map(|(index, _)| index)
}

fn small() -> Vec<u8> {
    let mut dice = Dice::new(3);
    let file = |(n, len)| Entry::file(format!("f{n}"), dice.content(len));
    tar(&[10, 3000, 0, 70_000, 5000].into_iter().enumerate().map(file).collect::<Vec<_>>())
}

#[test]
fn every_flipped_byte_of_a_blob_is_noticed() {
    let tar =
        tar(&[Entry::file("a", Dice::new(1).content(900)), Entry::file("b", Dice::new(2).content(300))]);
    for way in ["gzip -6", "gzip, members of 300,000", "zstd -3", "plain"] {
        let blob = pack(way, &tar);
        let expected = expected(&tar, &blob);
        for at in 0..blob.len() {
            for flip in [1, 0x80] {
                let mut bad = blob.clone();
                bad[at] ^= flip;
                assert!(attempt(&bad, &expected).is_err(), "{way}, byte {at}");
            }
        }
    }
}

#[test]
fn every_cut_of_a_blob_is_noticed() {
    let tar = tar(&[Entry::file("a", Dice::new(1).content(900))]);
    for way in PACKINGS {
        let blob = pack(way, &tar);
        let expected = expected(&tar, &blob);
        for len in 0..blob.len() {
            assert!(attempt(&blob[..len], &expected).is_err(), "{way}, cut at {len}");
            let known = build(&blob[..len], options(&blob, 16), &expected, Threads::Two, nowhere);
            assert!(matches!(known, Err(BuildError::BlobLength { .. })), "{way}, cut at {len}");
        }
        let longer = [&blob[..], b"x"].concat();
        let known = build(&longer[..], options(&blob, 16), &expected, Threads::Two, nowhere);
        assert!(matches!(known, Err(BuildError::BlobLength { found: None, .. })), "{way}");
    }
}

#[test]
fn wrong_digests_are_named() {
    let tar = small();
    let blob = pack("gzip -6", &tar);
    let right = expected(&tar, &blob);
    let other = Digest::of(b"other");
    match attempt(&blob, &Expected { blob: other, ..right }) {
        Err(BuildError::BlobDigest { expected, found }) => assert_eq!((expected, found), (other, right.blob)),
        result => panic!("{result:?}"),
    }
    match attempt(&blob, &Expected { diff_id: DiffId::new(other), ..right }) {
        Err(BuildError::DiffId { expected, found }) => {
            assert_eq!((expected, found), (DiffId::new(other), right.diff_id))
        }
        result => panic!("{result:?}"),
    }
}

#[test]
fn what_follows_the_last_member_is_an_error_unless_it_is_zeros() {
    let tar = small();
    let mut blob = pack("gzip -6", &tar);
    blob.extend_from_slice(b"\0\0garbage");
    let result = attempt(&blob, &expected(&tar, &blob));
    assert!(matches!(result, Err(BuildError::Unpack(_))), "{result:?}");
}

#[test]
fn things_that_are_no_layer_are_refused() {
    for blob in [&b"hello, world"[..], b"\x1f\x8b", b"\x28\xb5\x2f\xfd\x00", &[0xff; 600], b"x"] {
        assert!(attempt(blob, &expected(blob, blob)).is_err(), "{blob:?}");
    }
    let cut = &tar(&[Entry::file("a", [1; 1000])])[..1200];
    let result = attempt(cut, &expected(cut, cut));
    assert!(matches!(result, Err(BuildError::TarEnds)), "{result:?}");
}

#[test]
fn blobs_that_expand_beyond_reason_are_refused() {
    // 320 MB of zeros in some 10 KB.
    let zeros = vec![0; 32 << 20];
    let mut blob = Vec::new();
    for _ in 0..10 {
        blob.extend_from_slice(&zstd::bulk::compress(&zeros, 3).unwrap());
    }
    assert!(blob.len() < 60_000, "{}", blob.len());
    // An honest header for it, so that only the expansion is at fault.
    let mut header = tar(&[Entry::file("zeros", b"")])[..512].to_vec();
    header[124..135].copy_from_slice(format!("{:011o}", 320 << 20).as_bytes());
    header[148..156].copy_from_slice(b"        ");
    let sum: u32 = header.iter().map(|b| u32::from(*b)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    let blob = [zstd::bulk::compress(&header, 3).unwrap(), blob].concat();
    let result = attempt(&blob, &expected(b"", &blob));
    assert!(matches!(result, Err(BuildError::Limit { .. })), "{result:?}");
}

#[test]
fn a_sink_that_fails_ends_the_build() {
    let tar = assorted(2, 30);
    let blob = pack("gzip -6", &tar);
    for threads in [Threads::One, Threads::Two] {
        let full = |_: u32, _: &[u8]| Err(std::io::Error::from(std::io::ErrorKind::StorageFull));
        let result = build(&blob[..], options(&blob, 16), &expected(&tar, &blob), threads, full);
        assert!(matches!(result, Err(BuildError::Sink { segment: 0, .. })), "{result:?}");
    }
}

#[test]
fn more_segments_than_a_mount_may_have_are_refused() {
    // Files of 40 KiB, each of which takes a segment of 64 KiB.
    let mut archive = Archive::new();
    archive.entry(&Entry::file("f", vec![7; 40 << 10]), Variant::Ustar);
    let one = archive.tar;
    let mut builder = IndexBuilder::new(
        Options { segment: SegmentSize::from_bits(16).unwrap(), blob_size: u64::MAX },
        nowhere,
    )
    .unwrap();
    // A few more, because the last ones wait for a batch to be full.
    let result = (0..16_400).try_for_each(|_| builder.push(&one));
    let refused = matches!(result, Err(BuildError::Limit { what: "segments", .. } | BuildError::Space(_)));
    assert!(refused, "{result:?}");
}

/// An index with another decoder table, chunk table or skeleton.
fn changed(
    layer: &Layer,
    change: impl FnOnce(&mut Source, &mut Vec<Chunk>, &mut Box<[u8]>),
) -> Result<Index, IndexError> {
    let index = layer.index();
    let (mut source, mut chunks, mut skeleton) =
        (index.source().clone(), index.chunks().to_vec(), index.skeleton().into());
    change(&mut source, &mut chunks, &mut skeleton);
    let mut facts = index.facts().clone();
    facts.chunk_count = u32::try_from(chunks.len()).unwrap();
    facts.chunks_hash = format::index::hash_of(&chunks);
    Index::new(facts, skeleton, chunks, source)
}

#[test]
fn a_skeleton_that_does_not_belong_is_refused() {
    let (one, two) = (small(), assorted(4, 10));
    let (one, two) = (built(&one, &one, 16, Threads::One).layer, built(&two, &two, 16, Threads::One).layer);
    let foreign = changed(&one, |_, _, skeleton| *skeleton = two.index().skeleton().into()).unwrap();
    assert!(matches!(Layer::open(foreign), Err(LayerError::Skeleton(_))));
    for at in 0..one.index().skeleton().len() {
        let flipped = changed(&one, |_, _, skeleton| skeleton[at] ^= 4).unwrap();
        match Layer::open(flipped) {
            Err(_) => {}
            // A bit of the frame that changes nothing that comes out.
            Ok(layer) => assert_eq!(layer.layout(), one.layout(), "byte {at}"),
        }
    }
    let cuts = changed(&one, |_, chunks, _| chunks[0].len -= 1).unwrap();
    assert!(matches!(Layer::open(cuts), Err(LayerError::Contradiction("the cuts of its chunks"))));
    let short = changed(&one, |_, chunks, _| chunks.truncate(1)).unwrap();
    assert!(matches!(Layer::open(short), Err(LayerError::Contradiction("the cuts of its chunks"))));
}

#[test]
fn a_start_after_its_segment_is_refused() {
    let tar = small();
    let layer = built(&tar, &tar, 16, Threads::One).layer;
    let late = changed(&layer, |source, _, _| {
        source.starts[0].plain += 1;
        source.starts[0].packed += 1;
    });
    assert!(matches!(Layer::open(late.unwrap()), Err(LayerError::Contradiction(_))));
}

#[test]
fn the_index_of_another_layer_never_gives_bytes() {
    let (one, two) = (assorted(2, 30), assorted(3, 30));
    let (one_blob, two_blob) = (pack("gzip -6", &one), pack("gzip -6", &two));
    let layer = built(&one, &one_blob, 16, Threads::One).layer;
    let mut other = two_blob;
    other.resize(one_blob.len().max(other.len()), 0);
    for n in 0..layer.segments() {
        match decode(&layer, &other, n..n + 1, 5000) {
            Err(DecodeError::Corrupt(corrupt)) => assert_eq!(corrupt.segment, n),
            Err(DecodeError::Undecodable { segment, .. } | DecodeError::Truncated { segment }) => {
                assert_eq!(segment, n)
            }
            result => panic!("segment {n}: {result:?}"),
        }
    }
}

#[test]
fn wrong_decoder_tables_never_give_wrong_bytes() {
    let tar = assorted(2, 40);
    for way in ["gzip -6", "bgzf", "zstd frames"] {
        let blob = pack(way, &tar);
        let right = built(&tar, &blob, 16, Threads::One);
        let mut dice = Dice::new(5);
        let mut tried = 0;
        for _ in 0..300 {
            let wrong = changed(&right.layer, |source, _, _| {
                let n = usize::try_from(dice.below(source.starts.len() as u64)).unwrap();
                let Start { plain, packed, bits, window } = &mut source.starts[n];
                match dice.below(5) {
                    0 => *plain = plain.saturating_sub(1 + dice.below(300)),
                    1 => *packed = packed.saturating_add(1 + dice.below(3)),
                    2 => *bits = (*bits + 1) % 8,
                    3 => *window = Box::default(),
                    _ => {
                        let n = usize::try_from(dice.below(source.reach.len() as u64)).unwrap();
                        let Reach { packed_end, .. } = &mut source.reach[n];
                        *packed_end -= dice.below(30_000).min(*packed_end);
                    }
                }
            });
            let Ok(layer) = wrong.map_err(|_| ()).and_then(|index| Layer::open(index).map_err(|_| ())) else {
                continue;
            };
            assert_eq!(layer.id(), right.layer.id(), "decoder tables are not part of the identity");
            let (layer, n) =
                (Arc::new(layer), u32::try_from(dice.below(u64::from(right.layer.segments()))).unwrap());
            tried += 1;
            if let Ok(segments) = decode(&layer, &blob, n..n + 1, 1 << 20) {
                assert!(segments[0] == right.segments[n as usize], "{way}");
            }
        }
        assert!(tried > 100, "{tried}");
    }
}

#[test]
fn a_start_that_promises_too_little_stops_at_what_the_facts_say() {
    // The blob goes on for ever after what the index knows: nothing of it is decoded.
    let tar = small();
    let blob = pack("gzip -6", &tar);
    let layer = built(&tar, &blob, 16, Threads::One).layer;
    let mut decoder = SpanDecoder::new(Arc::clone(&layer), 0..layer.segments()).unwrap();
    let endless = [&blob[..], &pack("gzip -6", &vec![0; 1 << 24])].concat();
    let mut input = &endless[usize::try_from(decoder.parts()[0].range.start).unwrap()..];
    while let Some((_, verified)) = decoder.push(&mut input).unwrap() {
        decoder.reuse(verified);
    }
    assert!(decoder.is_done());
    assert!(input.len() > 10_000);
    assert!(decoder.push(&mut input).unwrap().is_none());
}

#[test]
fn segments_that_do_not_exist_cannot_be_asked_for() {
    let tar = small();
    let layer = built(&tar, &tar, 16, Threads::One).layer;
    let count = layer.segments();
    #[expect(clippy::reversed_empty_ranges, reason = "that is the point")]
    for range in [0..0, count..count + 1, 0..count + 1, 2..1, u32::MAX..u32::MAX, 0..u32::MAX] {
        let result = SpanDecoder::new(Arc::clone(&layer), range.clone());
        assert!(matches!(result, Err(DecodeError::NoSuchSegment(_))), "{range:?}");
    }
}

#[test]
fn every_flipped_byte_of_a_segment_is_found() {
    let tar = small();
    let layer = built(&tar, &tar, 16, Threads::One);
    for (n, segment) in (0..).zip(&layer.segments) {
        for at in (0..segment.len()).step_by(13) {
            let mut bad = segment.clone();
            bad[at] ^= 1;
            let corrupt = layer.layer.verify_segment(n, &bad).unwrap_err();
            assert_eq!(corrupt.segment, n);
        }
        assert!(layer.layer.verify_segment(n, &segment[..segment.len() - 1]).is_err());
        assert!(layer.layer.verify_segment(n, &[&segment[..], &[0; 4096]].concat()).is_err());
    }
    assert!(layer.layer.verify_segment(layer.layer.segments(), &[]).is_err());
}

#[test]
fn a_stream_of_nothing_but_block_headers_is_harmless() {
    // A million empty stored blocks: 5 bytes each, after the bits of a first one.
    let tar = small();
    let mut raw: Vec<u8> = std::iter::repeat_n([0, 0, 0, 0xff, 0xff], 1 << 20).flatten().collect();
    raw.extend_from_slice(&sys::deflate::compress(&tar, Wrap::Raw, 6).unwrap());
    let gzip = sys::deflate::compress(&tar, Wrap::Gzip, 6).unwrap();
    let blob = [&gzip[..10], &raw, &gzip[gzip.len() - 8..]].concat();
    let layer = built(&tar, &blob, 16, Threads::One);
    let back = decode(&layer.layer, &blob, 0..layer.layer.segments(), 1 << 16).unwrap();
    assert!(back == layer.segments);
    assert!(layer.layer.source().starts[0].packed > 5 << 20, "the last of the places with one output counts");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn any_bytes_are_refused_or_indexed(kind in 0usize..3, bytes in prop::collection::vec(any::<u8>(), 0..2000), cut in 1usize..500) {
        let head: &[u8] = [&b""[..], b"\x1f\x8b\x08\0\0\0\0\0\0\xff", b"\x28\xb5\x2f\xfd"][kind];
        let blob = [head, &bytes].concat();
        let mut builder = IndexBuilder::new(options(&blob, 16), nowhere).unwrap();
        let result = blob.chunks(cut).try_for_each(|piece| builder.push(piece));
        let _ = result.and_then(|()| builder.finish(&expected(&blob, &blob)));
    }

    #[test]
    fn a_damaged_range_gives_an_error_or_the_right_bytes(way in 0..PACKINGS.len(), at: prop::sample::Index, flip in 1u8.., which: prop::sample::Index) {
        let tar = small();
        let mut blob = pack(PACKINGS[way], &tar);
        let right = built(&tar, &blob, 16, Threads::One);
        let n = u32::try_from(which.index(right.segments.len())).unwrap();
        let range = right.layer.packed(n..n + 1).unwrap();
        let start = usize::try_from(range.start).unwrap();
        let at = start + at.index(usize::try_from(range.end).unwrap() - start);
        blob[at] ^= flip;
        if let Ok(segments) = decode(&right.layer, &blob, n..n + 1, 1 << 20) {
            prop_assert!(segments[0] == right.segments[n as usize]);
        }
    }
}
