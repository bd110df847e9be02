//! A decoder table and a blob that lie: a segment comes out right or not at all.
#![no_main]

use std::sync::Arc;

use format::decode::SpanDecoder;
use format::index::Index;
use format::layer::Layer;
use sys::inflate::Wrap;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let mut dice = fuzz::Dice(data);
    let (mode, piece, edits) = (dice.byte(), dice.word(), dice.byte() % 8);
    let mut edits: Vec<_> =
        (0..edits).map(|_| (dice.byte(), dice.word(), dice.byte(), dice.byte())).collect();
    let mut tar = dice.0.to_vec();
    fuzz::seal(&mut tar);
    let mut blob = match mode & 3 {
        0 => sys::deflate::compress(&tar, Wrap::Gzip, mode >> 4).expect("deflate"),
        1 => tar
            .chunks(3000)
            .flat_map(|part| sys::deflate::compress(part, Wrap::Gzip, 6).expect("deflate"))
            .collect(),
        2 => tar.chunks(3000).flat_map(|part| zstd::bulk::compress(part, 1).expect("zstd")).collect(),
        _ => tar,
    };
    let Ok(built) = fuzz::build(&blob, None, |_| blob.len()) else { return };
    let mut source = built.index.source().clone();
    edits.retain(|(what, at, xor, number)| {
        let n = usize::from(*number);
        let starts = source.starts.len().max(1);
        match (what, source.starts.get_mut(n % starts)) {
            (0, Some(start)) => start.bits ^= xor & 7,
            (1, Some(start)) => start.packed = start.packed.wrapping_add_signed(i64::from(at.cast_signed())),
            (2, Some(start)) => start.plain = start.plain.wrapping_add_signed(i64::from(at.cast_signed())),
            (3, Some(start)) => {
                let window = zstd::bulk::decompress(&start.window, 32 << 10).unwrap_or_default();
                let keep = window.len().min(usize::from(*at));
                start.window = zstd::bulk::compress(&window[keep..], 1).expect("zstd").into();
            }
            (4, Some(start)) if !start.window.is_empty() => {
                let at = usize::from(*at) % start.window.len();
                start.window[at] ^= xor;
            }
            (5, _) if !source.reach.is_empty() => {
                let reach = &mut source.reach;
                let n = n % reach.len();
                reach[n].packed_end = reach[n].packed_end.wrapping_add_signed(i64::from(at.cast_signed()));
            }
            _ => return true,
        }
        false
    });
    for (_, at, xor, number) in edits {
        let at = (usize::from(number) << 16 | usize::from(at)) % blob.len().max(1);
        if let Some(byte) = blob.get_mut(at) {
            *byte ^= xor;
        }
    }
    let index = built.index;
    let lie = Index::new(index.facts().clone(), index.skeleton().into(), index.chunks().to_vec(), source);
    let Ok(lie) = lie else { return };
    assert_eq!(lie.id(), index.id(), "the identity does not cover the decoder table");
    let Ok(layer) = Layer::open(lie).map(Arc::new) else { return };
    for n in 0..layer.segments() {
        let Ok(mut decoder) = SpanDecoder::new(Arc::clone(&layer), n..layer.segments()) else { continue };
        let range = decoder.parts()[0].range.clone();
        let packed = &blob[range.start as usize..range.end as usize];
        'decode: for mut part in packed.chunks(usize::from(piece).max(1)) {
            loop {
                match decoder.push(&mut part) {
                    Ok(Some((n, verified))) => {
                        assert!(verified.as_slice() == built.segments[n as usize], "a lie")
                    }
                    Ok(None) => break,
                    Err(_) => break 'decode,
                }
            }
        }
    }
});
