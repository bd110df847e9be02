//! Layers packed in every way: one index identity, and every segment comes back from its range of the blob.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;

use std::sync::Arc;

use common::{Dice, PACKINGS, assorted, built, built_from_pieces, decode, expected, options, pack, tar};
use convert::{IndexBuilder, Threads};
use format::decode::SpanDecoder;
use format::index::{Codec, Index};
use format::layer::{Layer, LayerError};
use format::skeleton::restore;
use testkit::tar::{Archive, Entry, Kind, Variant};

/// The payload space of a tar, from its bytes and the layout.
fn payload(layer: &Layer, tar: &[u8], segment: u32) -> Vec<u8> {
    let at = |n: u64| usize::try_from(n).unwrap();
    let mut space = vec![0; at(u64::from(layer.segments()) * layer.facts().segment.bytes())];
    for e in layer.layout().extents() {
        space[at(e.payload)..at(e.payload + e.len)].copy_from_slice(&tar[at(e.plain)..at(e.plain + e.len)]);
    }
    let start = at(layer.facts().segment.start(segment));
    space[start..start + at(layer.segment_len(segment))].to_vec()
}

#[test]
fn every_packing_of_a_tar_has_one_identity_and_gives_every_segment_back() {
    let tar = assorted(1, 100);
    let mut first: Option<common::Built> = None;
    for name in PACKINGS {
        let blob = pack(name, &tar);
        for bits in [16, 20] {
            let layer = built(&tar, &blob, bits, Threads::One);
            if bits == 16 {
                let first = first.get_or_insert_with(|| built(&tar, &blob, bits, Threads::One));
                assert_eq!(layer.layer.id(), first.layer.id(), "{name}");
                assert!(layer.segments == first.segments, "{name}");
            }
            assert_eq!(layer.proved.index(), layer.layer.id());
            assert_eq!(layer.segments.len(), layer.layer.segments() as usize);
            let mut dice = Dice::new(7);
            for (n, segment) in (0..).zip(&layer.segments) {
                assert!(*segment == payload(&layer.layer, &tar, n), "{name}, segment {n}");
                layer.layer.verify_segment(n, segment).unwrap();
                // A span of a hundred segments costs a hundred times as much: not all of them each time.
                if layer.layer.span(n).unwrap().segments.len() > 20 && dice.below(10) > 0 {
                    continue;
                }
                let piece = [1 << 20, 4096, 777][usize::try_from(dice.below(3)).unwrap()];
                let back = decode(&layer.layer, &blob, n..n + 1, piece).unwrap();
                assert!(
                    back.len() == 1 && back[0] == *segment,
                    "{name}, segment {n} of {}",
                    layer.segments.len()
                );
            }
            for _ in 0..3 {
                let from = u32::try_from(dice.below(u64::from(layer.layer.segments()))).unwrap();
                let to =
                    from + 1 + u32::try_from(dice.below(u64::from(layer.layer.segments() - from))).unwrap();
                let back = decode(&layer.layer, &blob, from..to, 10_000).unwrap();
                assert!(back == layer.segments[from as usize..to as usize], "{name}, {from}..{to}");
            }
        }
    }
}

#[test]
fn an_index_depends_neither_on_threads_nor_on_the_pieces_the_blob_comes_in() {
    let tar = assorted(2, 50);
    for name in PACKINGS {
        let blob = pack(name, &tar);
        let one = built(&tar, &blob, 16, Threads::One);
        let two = built(&tar, &blob, 16, Threads::Two);
        let file = one.layer.index().encode();
        assert!(file == two.layer.index().encode(), "{name}");
        assert!(one.segments == two.segments, "{name}");
        for piece in [4095, 70_001, usize::MAX / 2] {
            assert!(built_from_pieces(&tar, &blob, 16, piece).encode() == file, "{name}, pieces of {piece}");
        }
        assert!(Index::decode(&file).unwrap().encode() == file, "{name}");
    }
    let small = assorted(3, 20);
    for name in ["gzip -6", "bgzf", "pigz", "zstd -3", "zstd frames and skippable ones"] {
        let blob = pack(name, &small);
        let file = built(&small, &blob, 16, Threads::One).layer.index().encode();
        assert!(built_from_pieces(&small, &blob, 16, 1).encode() == file, "{name}, byte by byte");
    }
}

/// The identity of a layer must never change by accident: a store and a registry are full of them.
#[test]
fn identities_stay_what_they_were() {
    for (seed, files, bits, golden) in [
        (1, 150, 20, "a15b936f652b24fd00bf5de787b96f065af0696fbc1a9809fd326cd0358d3e0a"),
        (1, 150, 16, "37ffbc52519e349b564736e766dbb85fe55ba4b9d574a8e87514517a7f129a6f"),
        (2, 80, 20, "38d88fd9ea1e8565e3a2522fa866746b014deae99bc3d1306643a9d9fa598c7d"),
        (9, 0, 20, "be28714065a74b7c4810750305a4101e44bad027782a5ffcce87623dc9050a08"),
    ] {
        let tar = assorted(seed, files);
        let layer = built(&tar, &tar, bits, Threads::One).layer;
        assert_eq!(layer.id().hex(), golden, "seed {seed}, {files} files");
    }
}

#[test]
fn starts_are_where_decoders_can_begin() {
    let tar = assorted(1, 150);
    let layer = |way: &str| built(&tar, &pack(way, &tar), 18, Threads::One).layer;
    let windows = |layer: &Layer| layer.source().starts.iter().filter(|s| !s.window.is_empty()).count();

    let gzip = layer("gzip -6");
    assert_eq!(gzip.source().codec, Codec::Gzip);
    assert!(windows(&gzip) > 0);
    let (mut next, mut due, mut spans, mut wide) = (0, 0, 0, 0);
    while let Some(span) = gzip.span(next) {
        let first = |segment| gzip.layout().plain_of(segment).start;
        let start = &gzip.source().starts[gzip.source().reach[next as usize].start as usize];
        spans += 1;
        wide += usize::from(first(span.segments.end - 1) - first(next) >= 1 << 20);
        if next == 0 || first(next) - due >= 1 << 20 {
            due = first(next);
        } else {
            assert!(start.window.len() <= 2560, "and between them those that cost little");
        }
        next = span.segments.end;
    }
    assert_eq!(next, gzip.segments());
    assert!(wide * 5 < spans, "{wide} of {spans}: only blocks that long are passed over");
    let bgzf = layer("bgzf");
    assert!(windows(&bgzf) * 4 < bgzf.source().starts.len(), "most starts are beginnings of members");
    for whole in ["gzip, one block", "zstd -3"] {
        let layer = layer(whole);
        assert_eq!(layer.source().starts.len(), 1, "{whole}");
        assert_eq!(layer.span(3).unwrap().segments, 0..layer.segments());
    }
    let frames = layer("zstd frames");
    assert!(frames.source().starts.len() * 3 > frames.segments() as usize * 2);
    let plain = layer("plain");
    assert_eq!(plain.source().starts.len(), plain.segments() as usize);
    for n in 0..plain.segments() {
        assert_eq!(plain.packed(n..n + 1).unwrap(), plain.layout().plain_of(n));
    }
}

#[test]
fn a_decoder_that_waits_inside_a_span_goes_on_where_it_is() {
    let tar = assorted(6, 60);
    for way in ["gzip -6", "gzip, one block", "pigz", "zstd -3"] {
        let blob = pack(way, &tar);
        let layer = built(&tar, &blob, 16, Threads::One);
        let (mut segment, mut went_on) = (0, 0);
        while segment < layer.layer.segments() {
            let mut decoder = SpanDecoder::new(Arc::clone(&layer.layer), segment..segment + 1).unwrap();
            loop {
                let range = decoder.parts()[0].range.clone();
                let mut part =
                    &blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
                let (number, verified) = decoder.push(&mut part).unwrap().unwrap();
                assert_eq!(number, segment);
                assert!(verified.as_slice() == layer.segments[segment as usize], "{way}, segment {segment}");
                assert!(part.len() < 4096, "what is left over comes again");
                segment += 1;
                decoder.finish().unwrap();
                decoder.shrink();
                let Some(next) = decoder.next() else { break };
                assert_eq!(next, segment);
                assert!(decoder.go_on(next).is_err() && decoder.go_on(layer.layer.segments() + 1).is_err());
                decoder.go_on(next + 1).unwrap();
                assert!(decoder.parts()[0].range.start + 4096 > range.end);
                went_on += 1;
            }
        }
        assert!(went_on > 0, "{way}");
    }
}

#[test]
fn ranges_hold_little_more_than_their_segments() {
    let tar = assorted(4, 200);
    let blob = pack("gzip -6", &tar);
    let layer = built(&tar, &blob, 20, Threads::One).layer;
    let whole: u64 =
        (0..layer.segments()).map(|n| layer.packed(n..n + 1).unwrap()).map(|r| r.end - r.start).sum();
    // Blocks of this encoder put out some 100 KB; a range begins up to a block early, and ends up to 4 KiB late.
    assert!(whole * 100 < blob.len() as u64 * 120, "{whole} for {}", blob.len());
}

#[test]
fn a_layer_without_files_has_no_segments() {
    for tar in [tar(&[]), tar(&[Entry::dir("d/"), Entry::file("empty", b"")]), Vec::new()] {
        for name in PACKINGS {
            let blob = pack(name, &tar);
            if blob.is_empty() && name != "plain" {
                continue; // no piece, no frame
            }
            let layer = built(&tar, &blob, 20, Threads::Two);
            assert_eq!((layer.layer.segments(), layer.segments.len()), (0, 0), "{name}");
            assert_eq!(layer.layer.span(0), None);
            assert!(Layer::open(Index::decode(&layer.layer.index().encode()).unwrap()).is_ok());
        }
    }
}

#[test]
fn segments_arrive_while_the_blob_does() {
    let tar = assorted(5, 100);
    let blob = pack("gzip -6", &tar);
    let seen = std::sync::atomic::AtomicUsize::new(0);
    let mut builder = IndexBuilder::new(options(&blob, 16), |_, _: &[u8]| {
        seen.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    })
    .unwrap();
    builder.push(&blob[..blob.len() / 2]).unwrap();
    let half = seen.load(std::sync::atomic::Ordering::Relaxed);
    builder.push(&blob[blob.len() / 2..]).unwrap();
    let (index, _) = builder.finish(&expected(&tar, &blob)).unwrap();
    let all = seen.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(all, Layer::open(index).unwrap().segments() as usize);
    assert!(half > all / 4, "{half} of {all}");
}

#[test]
fn members_are_shown_while_a_layer_opens() {
    let tar = tar(&[
        Entry::dir("d/"),
        Entry::file("d/a", b"37ffbc52519e349b564736e766dbb85fe55ba4b9d574a8e87514517a7f129a6f"),
        Entry::file("d/b", b"22"),
    ]);
    let index = built(&tar, &tar, 16, Threads::One).layer.index().clone();
    let mut names = Vec::new();
    let layer = Layer::open_with(index, |member, _| {
        names.push(String::from_utf8_lossy(&member.path).into_owned());
        Ok::<_, LayerError>(())
    });
    assert_eq!(names, ["d/", "d/a", "d/b"]);
    assert_eq!(Arc::new(layer.unwrap()).segment_blocks(), [2]);
}

/// What proves a layer that came lazily: its skeleton and its segments are the tar.
#[test]
fn skeleton_and_segments_give_every_kind_of_tar_back() {
    let pieces = vec![(100, vec![1; 10]), (4000, vec![2; 200]), (300_000, Dice::new(1).content(70_000))];
    let long = "long/".repeat(40);
    let entries = [
        Entry::dir("d"),
        Entry::file("d/small", b"x"),
        Entry::new("d/sparse", Kind::Sparse(1 << 30, pieces)),
        Entry::file("d/large", Dice::new(2).content(200_000)),
        Entry::link("d/link", "d/large"),
        Entry::file(&long[..long.len() - 1], b"deep").mtime(1, 5).xattr("user.x", b"y"),
        Entry::symlink("s", "d/small"),
    ];
    for variant in [Variant::V7, Variant::Ustar, Variant::Gnu, Variant::Pax00, Variant::Pax01, Variant::Pax10]
    {
        let held: Vec<_> = entries.iter().filter(|entry| variant.holds(entry)).collect();
        assert!(held.len() > 4);
        let tar = Archive::of(held, variant).tar;
        for way in ["gzip -6", "zstd frames", "plain"] {
            let blob = pack(way, &tar);
            let layer = built(&tar, &blob, 16, Threads::Two);
            let all = decode(&layer.layer, &blob, 0..layer.layer.segments(), 5000).unwrap();
            assert!(all == layer.segments);
            let size = layer.layer.facts().segment;
            let mut back = Vec::new();
            let read = |mut at: u64, mut buffer: &mut [u8]| {
                while !buffer.is_empty() {
                    let within = usize::try_from(at - size.start(size.of(at))).unwrap();
                    let rest = &all[size.of(at) as usize][within..];
                    let (now, later) = buffer.split_at_mut(rest.len().min(buffer.len()));
                    now.copy_from_slice(&rest[..now.len()]);
                    (at, buffer) = (at + now.len() as u64, later);
                }
                Ok::<_, ()>(())
            };
            let sink = |bytes: &[u8]| {
                back.extend_from_slice(bytes);
                Ok(())
            };
            let index = layer.layer.index();
            restore(index.read_skeleton().unwrap(), size, 100_000, read, sink).unwrap();
            assert!(back == tar, "{variant:?}, {way}");
        }
    }
}
