//! Bytes as the blob of a layer: the same index or the same refusal however it is cut, and every segment is read
//! back from its range of the blob.
#![no_main]

use std::sync::Arc;

use format::decode::SpanDecoder;
use format::index::Index;
use format::layer::Layer;
use sys::inflate::Wrap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut dice = fuzz::Dice(data);
    let (mode, cuts) = (dice.byte(), [dice.word(), dice.word(), dice.word()]);
    let mut blob = dice.0.to_vec();
    if mode & 1 == 1 {
        fuzz::seal(&mut blob);
    }
    blob = match mode >> 1 & 7 {
        1 => sys::deflate::compress(&blob, Wrap::Gzip, mode >> 4).expect("deflate"),
        2 => zstd::bulk::compress(&blob, 1).expect("zstd"),
        3 => blob
            .chunks(3000)
            .flat_map(|part| sys::deflate::compress(part, Wrap::Gzip, 6).expect("deflate"))
            .collect(),
        4 => blob.chunks(3000).flat_map(|part| zstd::bulk::compress(part, 1).expect("zstd")).collect(),
        _ => blob,
    };
    let whole = fuzz::build(&blob, None, |_| blob.len());
    let diff_id = whole.as_ref().ok().map(|built| built.index.facts().diff_id);
    let pieces = fuzz::build(&blob, diff_id, |n| usize::from(cuts[n % 3]));
    let (whole, pieces) = match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => (whole, pieces),
        (Err(whole), Err(pieces)) => return assert_eq!(whole, pieces),
        (whole, pieces) => panic!("whole {:?}, in pieces {:?}", whole.map(|_| ()), pieces.map(|_| ())),
    };
    let file = whole.index.encode();
    assert!(file == pieces.index.encode(), "another index when cut");
    assert!(whole.segments == pieces.segments, "other segments when cut");
    assert!(Index::decode(&file).expect("just encoded").encode() == file);

    let layer = Arc::new(Layer::open(whole.index).expect("an index that was built is true"));
    assert_eq!(layer.segments() as usize, whole.segments.len());
    for (n, segment) in (0..).zip(&whole.segments) {
        layer.verify_segment(n, segment).expect("what was handed on is right");
        let mut decoder = SpanDecoder::new(Arc::clone(&layer), n..n + 1).expect("a segment of the layer");
        let range = decoder.parts()[0].range.clone();
        let packed = &blob[range.start as usize..range.end as usize];
        let mut found = None;
        for mut part in packed.chunks(usize::from(cuts[0]).max(1)) {
            while let Some((_, verified)) = decoder.push(&mut part).expect("decodes") {
                found = Some(verified);
            }
        }
        assert!(found.is_some_and(|found| found.as_slice() == segment), "segment {n} comes back");
    }
});
