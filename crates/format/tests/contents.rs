//! Layers that are read by a table of contents of their own: what comes out is what went in, or an error.

#[cfg(test)]
mod pieces;
#[cfg(test)]
mod stargz;

use std::sync::Arc;

use format::decode::{DecodeError, SpanDecoder};
use format::fuzz::opened;
use format::index::{Codec, Index};
use format::layer::{Layer, LayerError};
use format::payload::SegmentSize;
use format::stargz::TableError;
use format::stargz::index::{Whose, layer};
use format::tar::MemberKind;
use format::tree::Runs;
use format::{DiffId, Digest};
use proptest::prelude::*;
use stargz::{Form, Made, make};
use testkit::tar::{Entry, Kind};

const SEGMENT: u64 = 1 << 16;

#[cfg(test)]
fn noise(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|n| u8::try_from((n * 31 + n / 251 * (seed + 7) + seed) % 256).unwrap()).collect()
}

/// Returns the index of a layer that was made of a table.
#[cfg(test)]
fn index_of(made: Layer) -> Index {
    opened(made).index().clone()
}

#[cfg(test)]
fn read(made: &Made) -> Result<Index, TableError> {
    let size = made.blob.len() as u64;
    let part = |range: std::ops::Range<u64>| {
        made.blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    };
    let tail = part(made.announced.first(size)?);
    let elsewhere = made.announced.elsewhere(&tail, size);
    assert_eq!(elsewhere.is_some(), made.form == Form::Elsewhere);
    if let Some(end) = elsewhere {
        assert!(made.announced.whole(&tail, size).is_err(), "it is not there");
        return made.announced.layer(&made.table[..], &whose(made, end)).map(index_of);
    }
    let whole = made.announced.whole(&tail, size)?;
    made.announced.layer(&part(whole.clone())[..], &whose(made, whole.start)).map(index_of)
}

#[cfg(test)]
fn whose(made: &Made, end: u64) -> Whose {
    Whose {
        blob: Digest::of(&made.blob),
        size: made.blob.len() as u64,
        codec: if made.form == Form::Chunked { Codec::Zstd } else { Codec::Gzip },
        diff_id: DiffId::new(Digest::of(b"the tar")),
        table: made.announced.digest,
        end,
        ahead: 0,
        segment: SegmentSize::from_bits(16).unwrap(),
    }
}

#[cfg(test)]
fn open(made: &Made) -> Arc<Layer> {
    let index = read(made).unwrap();
    assert_eq!(Index::decode(&index.encode()).as_ref(), Ok(&index), "it encodes to itself");
    Arc::new(Layer::open(index).unwrap())
}

/// Returns these segments, decoded from just what is asked for, in pieces.
#[cfg(test)]
fn decode(
    layer: &Arc<Layer>,
    blob: &[u8],
    wanted: std::ops::Range<u32>,
    step: usize,
) -> Result<Vec<Vec<u8>>, DecodeError> {
    let mut decoder = SpanDecoder::new(Arc::clone(layer), wanted.clone())?;
    let packed = decoder.parts()[0].range.clone();
    let packed = &blob[usize::try_from(packed.start).unwrap()..usize::try_from(packed.end).unwrap()];
    let mut out = Vec::new();
    for mut piece in packed.chunks(step) {
        while let Some((number, verified)) = decoder.push(&mut piece)? {
            assert_eq!(number, wanted.start + u32::try_from(out.len()).unwrap());
            out.push(verified.into_vec());
        }
    }
    decoder.finish()?;
    Ok(out)
}

/// Returns the whole payload space, span by span, as a store fetches it.
#[cfg(test)]
fn space(layer: &Arc<Layer>, blob: &[u8]) -> Vec<u8> {
    let (mut space, mut next) = (Vec::new(), 0);
    while next < layer.segments() {
        let span = layer.span(next).unwrap();
        assert_eq!(span.segments.start, next);
        assert_eq!(layer.span(span.segments.end - 1).as_ref(), Some(&span));
        for segment in decode(layer, blob, span.segments.clone(), 1000).unwrap() {
            assert_eq!(segment.len() as u64, layer.segment_len(next));
            space.resize(usize::try_from(u64::from(next) * SEGMENT).unwrap(), 0);
            space.extend(segment);
            next += 1;
        }
    }
    space
}

/// Compares what a layer shows with what it was made of, but for fractions of seconds, which eStargz does not keep.
#[cfg(test)]
fn same(layer: &Arc<Layer>, made: &Made, entries: &[Entry]) {
    let space = space(layer, &made.blob);
    let mut left = entries.iter();
    layer
        .members::<LayerError>(|member, runs| {
            let entry = left.next().expect("no more members than entries");
            assert_eq!((&*member.path, u32::from(member.mode)), (&entry.path[..], entry.mode));
            assert_eq!((member.uid, member.gid, member.mtime.secs), (entry.uid, entry.gid, entry.mtime.0));
            let xattrs: Vec<_> = member.xattrs.iter().map(|(n, v)| (n.to_vec(), v.to_vec())).collect();
            assert_eq!(xattrs, entry.xattrs);
            match (&member.kind, &entry.kind, runs) {
                (MemberKind::File, Kind::File(bytes), Runs::Whole(at)) => {
                    let at = usize::try_from(at).unwrap();
                    assert!(
                        space[at..at + bytes.len()] == bytes[..],
                        "{:?}",
                        String::from_utf8_lossy(&entry.path)
                    );
                }
                (MemberKind::File, Kind::File(bytes), Runs::None) => assert!(bytes.is_empty()),
                (MemberKind::Dir, Kind::Dir, _) | (MemberKind::Fifo, Kind::Fifo, _) => {}
                (MemberKind::Link(a), Kind::Link(b), _) | (MemberKind::Symlink(a), Kind::Symlink(b), _) => {
                    assert_eq!(**a, **b);
                }
                (MemberKind::Char(device), Kind::Char(major, minor), _)
                | (MemberKind::Block(device), Kind::Block(major, minor), _) => {
                    assert_eq!((device.major, device.minor), (*major, *minor));
                }
                other => panic!("{other:?}"),
            }
            Ok(())
        })
        .unwrap();
    assert!(left.next().is_none());
}

#[cfg(test)]
fn some() -> Vec<Entry> {
    vec![
        Entry::dir("./").owner(7, 8),
        Entry::dir("a/").mode(0o1777),
        Entry::file("a/small", b"small"),
        Entry::file("a/empty", b""),
        Entry::file("big", noise(1, 300_000)).owner(70_000, 3_000_000).xattr("user.a", b"\0\xff"),
        Entry::file("b", noise(2, 70_000)),
        Entry::file("c", noise(3, 9000)).mtime(-5, 0),
        Entry::link("d", "big"),
        Entry::symlink("e", "x".repeat(300)),
        Entry::new("f", Kind::Char(4, 300)),
        Entry::new("g", Kind::Block(8, 1)),
        Entry::new("h", Kind::Fifo),
        Entry::file("y".repeat(200), noise(4, 65_536)),
    ]
}

#[test]
fn every_form_shows_what_it_was_made_of() {
    for form in [Form::EStargz, Form::Old, Form::Elsewhere, Form::Chunked] {
        for (chunk, least) in
            [(4 << 20, 0), (131_072, 0), (100_000, 0), (5000, 0), (5000, 20_000), (4 << 20, 1 << 20)]
        {
            if form == Form::Chunked && least > 0 {
                continue;
            }
            let made = make(&some(), form, chunk, least);
            same(&open(&made), &made, &some());
        }
    }
}

#[test]
fn segments_that_a_long_piece_ties_together_are_one_span() {
    let entries = [
        Entry::file("a", noise(1, 400_000)),
        Entry::file("b", noise(2, 10)),
        Entry::file("c", noise(3, 66_000)),
    ];
    let whole = open(&make(&entries, Form::EStargz, 4 << 20, 0));
    // 400,000 bytes are seven segments, the last of which b shares; c has two, and a piece that is longer than one.
    let spans = |layer: &Layer| -> Vec<_> {
        (0..layer.segments()).map(|n| layer.span(n).unwrap().segments).collect::<Vec<_>>()
    };
    assert_eq!(spans(&whole), [vec![0..7; 7], vec![7..9; 2]].concat());
    let small = open(&make(&entries, Form::EStargz, 30_000, 0));
    assert_eq!(spans(&small), (0..9).map(|n| n..n + 1).collect::<Vec<_>>());
    assert!(
        small.span(0).unwrap().parts[0].range.end > small.span(1).unwrap().parts[0].range.start,
        "a piece crosses the border"
    );
    assert_eq!(whole.span(9), None);
    let long = open(&make(&[Entry::file("a", noise(1, 5_000_000))], Form::EStargz, 70_000, 0));
    assert_eq!(long.span(63).unwrap().segments, 0..64, "a chain has an end");
    assert_eq!(long.span(64).unwrap().segments.start, 64);
}

#[test]
fn the_landmark_says_what_a_start_reads() {
    let ahead = |entries: &[Entry]| {
        let layer = open(&make(entries, Form::EStargz, 4 << 20, 0));
        layer.source().contents.as_ref().unwrap().ahead
    };
    let mark = |name: &str| Entry::file(name, [0xf]);
    let (one, two) = (Entry::file("a", noise(1, 70_000)), Entry::file("b", noise(2, 200_000)));
    assert_eq!(ahead(&[one.clone(), mark(".prefetch.landmark"), two.clone()]), 2);
    assert_eq!(ahead(&[one.clone(), two.clone(), mark("./.prefetch.landmark")]), 6);
    assert_eq!(ahead(&[mark(".no.prefetch.landmark"), one.clone(), two.clone()]), 0);
    assert_eq!(ahead(&[one, mark("dir/.prefetch.landmark"), two]), 0);
}

#[test]
fn a_table_that_is_not_the_announced_one_is_refused() {
    for form in [Form::EStargz, Form::Chunked] {
        let mut made = make(&some(), form, 4 << 20, 0);
        made.announced.digest = Digest::of(b"another");
        assert!(matches!(read(&made), Err(TableError::Digest { .. })), "{form:?}");
    }
    let mut made = make(&some(), Form::EStargz, 4 << 20, 0);
    made.blob.truncate(made.blob.len() - 1);
    assert!(matches!(read(&made), Err(TableError::Missing(_))));
}

#[test]
fn a_table_that_makes_no_sense_is_refused() {
    let made = make(&some(), Form::EStargz, 100_000, 0);
    let refused = |what: &str, change: &dyn Fn(&mut Vec<format::stargz::toc::Entry>)| {
        let mut toc = made.toc.clone();
        change(&mut toc.entries);
        let json = serde_json::to_vec(&toc).unwrap();
        let error = layer(&json[..], &whose(&made, made.blob.len() as u64));
        assert!(error.is_err(), "{what}");
    };
    let big = made.toc.entries.iter().position(|entry| entry.name == "big").unwrap();
    refused("nothing said of anything", &|entries| entries.fill(format::stargz::toc::Entry::default()));
    refused("shorter", &|entries| entries[big].size = 299_999);
    refused("longer", &|entries| entries[big].size = 300_001);
    refused("huge", &|entries| entries[big].size = i64::MAX);
    refused("negative", &|entries| entries[big].size = -1);
    refused("a gap", &|entries| entries[big + 1].chunk_offset += 1);
    refused("a piece before its file", &|entries| entries.swap(big, big + 1));
    refused("a piece of 1 GiB", &|entries| {
        entries[big].size = 1 << 30;
        entries[big].chunk_size = 0;
        entries.drain(big + 1..big + 3);
    });
    refused("backwards", &|entries| entries[big].offset = 1 << 40);
    refused("before the beginning", &|entries| entries[big].offset = -1);
    refused("no digest", &|entries| entries[big].chunk_digest.clear());
    refused("deep", &|entries| entries[big].inner_offset = 1 << 40);
    refused("no name", &|entries| entries[big].name.clear());
    refused("NUL", &|entries| entries[big].name = "a\0b".into());
    refused("owner", &|entries| entries[big].uid = -1);
    refused("kind", &|entries| entries[big].kind = "door".into());
    refused("time", &|entries| entries[big].modtime = "soon".into());
    refused("attribute", &|entries| drop(entries[big].xattrs.insert("user.x".into(), "?".into())));
    refused("attribute name", &|entries| drop(entries[big].xattrs.insert("user.x=y".into(), String::new())));
    refused("too many pieces", &|entries| entries.insert(big + 1, entries[big + 1].clone()));
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn any_run_of_segments_comes_out_of_what_is_asked_for(
        sizes in prop::collection::vec(prop_oneof![0usize..20_000, 0usize..300_000], 1..12),
        chunk in prop_oneof![3000usize..40_000, 50_000usize..300_000],
        least in prop_oneof![Just(0usize), 1000usize..100_000],
        chunked in any::<bool>(),
        runs in prop::collection::vec((any::<u32>(), 1u32..6, 1usize..70_000), 1..8),
    ) {
        let form = if chunked { Form::Chunked } else { Form::EStargz };
        let entries: Vec<_> =
            sizes.iter().enumerate().map(|(n, len)| Entry::file(n.to_string(), noise(n, *len))).collect();
        let made = make(&entries, form, chunk, if chunked { 0 } else { least });
        let layer = open(&made);
        let space = space(&layer, &made.blob);
        for (first, count, step) in runs {
            if layer.segments() == 0 {
                break;
            }
            let first = first % layer.segments();
            let wanted = first..(first + count).min(layer.segments());
            let out = decode(&layer, &made.blob, wanted.clone(), step).unwrap();
            for (segment, bytes) in wanted.zip(out) {
                let at = usize::try_from(u64::from(segment) * SEGMENT).unwrap();
                prop_assert!(space[at..at + bytes.len()] == bytes[..]);
            }
        }
    }

    #[test]
    fn a_changed_byte_is_found_or_does_not_matter(at in any::<prop::sample::Index>(), bit in 0u8..8, chunked in any::<bool>()) {
        let form = if chunked { Form::Chunked } else { Form::EStargz };
        let entries = [Entry::file("a", noise(1, 90_000)), Entry::file("b", noise(2, 3000)), Entry::file("c", noise(3, 200_000))];
        let made = make(&entries, form, 40_000, 0);
        let layer = open(&made);
        let right = space(&layer, &made.blob);
        let mut blob = made.blob.clone();
        let at = at.index(blob.len());
        blob[at] ^= 1 << bit;
        for segment in 0..layer.segments() {
            if let Ok(bytes) = decode(&layer, &blob, segment..segment + 1, 777) {
                let at = usize::try_from(u64::from(segment) * SEGMENT).unwrap();
                prop_assert!(right[at..at + bytes[0].len()] == bytes[0][..], "wrong bytes passed");
            }
        }
    }
}
