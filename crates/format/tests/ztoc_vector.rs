//! A zTOC that SOCI's own program has written ([README](ztoc/README.md)): the tree and the bytes are those of the tar.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(clippy::unwrap_used, reason = "helpers of tests fail the test")]

use std::path::Path;
use std::sync::Arc;

use format::decode::SpanDecoder;
use format::index::Codec;
use format::layer::LayerError;
use format::payload::SegmentSize;
use format::soci::assumes_short_header;
use format::soci::index::{Whose, layer};
use format::tar::{Member, MemberKind, Parser, Step};
use format::tree::Runs;
use format::{DiffId, Digest, unpack};

fn vector(name: &str) -> Vec<u8> {
    std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/ztoc").join(name)).unwrap()
}

/// Returns the members of a tar, and the bytes of each.
fn members(tar: &[u8]) -> Vec<(Member, Vec<u8>)> {
    let (mut parser, mut at, mut members) = (Parser::new(), 0, Vec::new());
    while at < tar.len() {
        let (taken, step) = parser.step(&tar[at..]).unwrap();
        at += taken;
        if let Step::Member(member) = step {
            let end = at + usize::try_from(member.payload).unwrap();
            members.push((member, tar[at..end].to_vec()));
            at = end;
        }
    }
    members
}

#[test]
fn what_soci_wrote_is_read_as_the_tar_is() {
    let blob = vector("layer.gz");
    let raw = zstd::decode_all(&vector("layer.ztoc.zst")[..]).unwrap();
    let tar = unpack::whole(Codec::Gzip, &blob, 1 << 20).unwrap().unwrap();
    let whose = Whose {
        blob: Digest::of(&blob),
        size: blob.len() as u64,
        diff_id: DiffId::new(Digest::of(&tar)),
        table: Digest::of(&raw),
        segment: SegmentSize::from_bits(16).unwrap(),
    };
    assert!(!assumes_short_header(&raw).unwrap());
    let layer = Arc::new(layer(&raw, &whose).unwrap());
    let entries = &layer.source().contents.as_ref().unwrap().entries;
    let places: Vec<_> = entries.iter().map(|entry| (entry.begin, entry.bits)).collect();
    assert_eq!(places.len(), 2);
    assert!(places[0] == (10, 0) && places[1].1 > 0, "{places:?}");

    let mut space = Vec::new();
    let mut decoder = SpanDecoder::new(Arc::clone(&layer), 0..layer.segments()).unwrap();
    for part in decoder.parts() {
        let range = usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap();
        let mut input = &blob[range];
        while let Some((_, verified)) = decoder.push(&mut input).unwrap() {
            space.extend_from_slice(verified.as_slice());
        }
    }
    decoder.finish().unwrap();

    let mut left = members(&tar).into_iter();
    let same = |member: Member, runs: Runs| {
        let (wanted, bytes) = left.next().expect("no more members than the tar has");
        // Headers are made anew, so what follows them is elsewhere.
        assert_eq!(Member { plain: 0, ..member.clone() }, Member { plain: 0, ..wanted });
        if let (MemberKind::File, Runs::Whole(at)) = (&member.kind, runs) {
            let at = usize::try_from(at).unwrap();
            assert!(space[at..at + bytes.len()] == bytes, "{member:?}");
        }
        Ok::<_, LayerError>(())
    };
    layer.members(same).unwrap();
    assert!(left.next().is_none(), "a member of the tar is missing");
}
