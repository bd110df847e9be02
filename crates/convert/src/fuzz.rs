//! Entry points for fuzzers: each takes any bytes and holds what must hold of them.

use std::sync::{Arc, LazyLock};

use format::decode::SpanDecoder;
use format::index::Index;
use format::layer::Layer;
use format::payload::SegmentSize;
use format::{DiffId, Digest, limits};
use sys::deflate::compress;
use sys::inflate::Wrap;

use crate::{BuildError, Expected, IndexBuilder, Options, Threads, build};

/// Builds an index from any bytes, in one piece and in many: the outcome is the same, and an index opens.
///
/// # Panics
///
/// On a defect.
pub fn blob(data: &[u8]) {
    let whole = attempt(data, data.len().max(1));
    let pieces = attempt(data, 7);
    match (whole, pieces) {
        (Ok(whole), Ok(pieces)) => {
            let file = whole.encode();
            assert!(file == pieces.encode(), "pieces make another index");
            assert!(Index::decode(&file).as_ref() == Ok(&whole), "it does not decode to itself");
            assert!(Layer::open(whole).is_ok(), "an index of ours does not open");
        }
        (Err(_), Err(_)) => {}
        _ => unreachable!("pieces decide whether it is a layer"),
    }
}

/// Decodes the segments of a known layer from damaged bytes: an error, or what they are.
///
/// The first byte chooses the packing and the second a segment; the rest replaces bytes of its range, from a place
/// that the next two say.
///
/// # Panics
///
/// On a defect.
pub fn range(data: &[u8]) {
    let Some(([way, segment, at, far], noise)) = data.split_first_chunk() else { return };
    let Known { layer, blob, segments } = &KNOWN[usize::from(*way) % KNOWN.len()];
    let n = u32::from(*segment) % layer.segments();
    let Ok(mut decoder) = SpanDecoder::new(Arc::clone(layer), n..n + 1) else { return };
    let packed = decoder.parts()[0].range.clone();
    let mut bytes: Vec<u8> =
        blob.iter().copied().skip(small(packed.start)).take(small(packed.end - packed.start)).collect();
    let at = usize::from(u16::from_le_bytes([*at, *far])) % bytes.len();
    for (byte, noise) in bytes.iter_mut().skip(at).zip(noise) {
        *byte ^= noise;
    }
    let mut input = &bytes[..];
    if let Ok(Some((number, verified))) = decoder.push(&mut input) {
        assert!(number == n && verified.as_slice() == segments[n as usize], "wrong bytes passed");
    }
}

fn attempt(data: &[u8], piece: usize) -> Result<Index, BuildError> {
    let options = Options { segment: *SMALL, blob_size: data.len() as u64 };
    let mut builder = IndexBuilder::new(options, |_, _: &[u8]| Ok(()))?;
    data.chunks(piece).try_for_each(|piece| builder.push(piece))?;
    builder.finish_unproved()
}

/// 64 KiB, so that a little layer has several.
static SMALL: LazyLock<SegmentSize> =
    LazyLock::new(|| SegmentSize::from_bits(*limits::SEGMENT_BITS.start()).unwrap_or(SegmentSize::DEFAULT));

struct Known {
    layer: Arc<Layer>,
    blob: Vec<u8>,
    segments: Vec<Vec<u8>>,
}

#[expect(clippy::expect_used, reason = "made here from a constant")]
static KNOWN: LazyLock<Vec<Known>> = LazyLock::new(|| {
    // One file of lines that refer to each other, longer than three segments.
    let mut content: Vec<u8> =
        (0..30_000u32).flat_map(|n| format!("{:x} ", n.wrapping_mul(n) % 5003).into_bytes()).collect();
    content.truncate(230_000);
    let mut tar = vec![0; 512];
    tar[0] = b'f';
    tar[124..135].copy_from_slice(format!("{:011o}", content.len()).as_bytes());
    tar[148..156].copy_from_slice(b"        ");
    tar[156] = b'0';
    let sum: u32 = tar.iter().map(|b| u32::from(*b)).sum();
    tar[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    tar.extend_from_slice(&content);
    tar.resize(tar.len().next_multiple_of(512) + 1024, 0);
    let known = |blob: Vec<u8>| {
        let expected = Expected { blob: Digest::of(&blob), diff_id: DiffId::new(Digest::of(&tar)) };
        let options = Options { segment: *SMALL, blob_size: blob.len() as u64 };
        let mut segments = Vec::new();
        let keep = |_, bytes: &[u8]| {
            segments.push(bytes.to_vec());
            Ok(())
        };
        let (index, _) = build(&blob[..], options, &expected, Threads::One, keep).expect("a good layer");
        Known { layer: Arc::new(Layer::open(index).expect("our own index")), blob, segments }
    };
    let members =
        tar.chunks(50_000).flat_map(|part| compress(part, Wrap::Gzip, 6).expect("memory")).collect();
    let frames = tar.chunks(50_000).flat_map(|part| zstd::bulk::compress(part, 3).expect("memory")).collect();
    vec![
        known(compress(&tar, Wrap::Gzip, 6).expect("memory")),
        known(members),
        known(frames),
        known(zstd::bulk::compress(&tar, 3).expect("memory")),
        known(tar.clone()),
    ]
});

/// Offsets inside a blob of 200 KB.
fn small(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::KNOWN;
    use proptest::prelude::*;

    #[test]
    fn entry_points_accept_good_and_bad() {
        for known in &*KNOWN {
            super::blob(&known.blob);
            super::blob(&known.blob[..1000]);
        }
        for way in 0..5 {
            for segment in 0..4 {
                super::range(&[way, segment, 0, 0]);
                super::range(&[way, segment, 0, 0, 1]);
            }
        }
        super::blob(b"");
        super::range(b"");
    }

    proptest! {
        #[test]
        fn damaged_ranges_never_give_wrong_bytes(data in prop::collection::vec(any::<u8>(), 4..40)) {
            super::range(&data);
        }
    }
}
