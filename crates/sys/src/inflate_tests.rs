use super::*;
use crate::deflate::{Deflate, Flush, compress};
use proptest::prelude::*;

/// Text that compresses a little, refers far back, and is the same on every run.
fn text(len: usize) -> Vec<u8> {
    let mut x = 0x2545_f491_4f6c_dd1d_u64;
    let mut out = Vec::with_capacity(len + 16);
    while out.len() < len {
        x ^= x << 13;
        x ^= x >> 7;
        x ^= x << 17;
        if x.is_multiple_of(3) && out.len() > 40_000 {
            let from = out.len() - 1 - (x >> 20) as usize % 32_700;
            let n = (3 + (x >> 8) as usize % 60).min(out.len() - from);
            out.extend_from_within(from..from + n);
        } else {
            out.extend(format!("{} ", x % 5000).bytes());
        }
    }
    out.truncate(len);
    out
}

/// A place to start from: bits before the end of `packed`, and output so far.
#[derive(Debug, Clone, Copy)]
struct Place {
    packed: usize,
    bits: u8,
    plain: usize,
}

/// Decodes everything in pieces of the given sizes; returns the output and the places passed.
fn inflate(
    wrap: Wrap,
    packed: &[u8],
    piece: usize,
    room: usize,
    stop: Stop,
) -> Result<(Vec<u8>, Vec<Place>), InflateError> {
    let mut inflate = Inflate::new(wrap)?;
    let (mut out, mut places, mut at) = (Vec::new(), Vec::new(), 0);
    let mut buf = vec![0; room];
    loop {
        let input = &packed[at..(at + piece).min(packed.len())];
        let step = inflate.step(input, &mut buf, stop)?;
        at += step.read;
        out.extend_from_slice(&buf[..step.written]);
        match step.at {
            At::Block => places.push(Place { packed: at, bits: inflate.unused_bits(), plain: out.len() }),
            At::End => return Ok((out, places)),
            At::LastBlock => {}
            At::Inside if step.read == 0 && step.written == 0 => {
                return Err(InflateError::Data("ends early".into()));
            }
            At::Inside => {}
        }
    }
}

#[test]
fn every_block_is_a_place_to_start_from() {
    let plain = text(1_500_000);
    for (wrap, level) in [(Wrap::Gzip, 2), (Wrap::Gzip, 6), (Wrap::Raw, 9), (Wrap::Raw, 0)] {
        let packed = compress(&plain, wrap, level).unwrap();
        let (out, places) = inflate(wrap, &packed, 4096, 1 << 16, Stop::Blocks).unwrap();
        assert!(out == plain);
        assert!(places.len() > 5, "level {level}: {} places", places.len());
        let mut resumed = Inflate::new(Wrap::Raw).unwrap();
        for place in places {
            let window = &plain[place.plain.saturating_sub(WINDOW)..place.plain];
            resumed.resume(place.bits, packed[place.packed - 1], window).unwrap();
            let mut buf = vec![0; 50_000];
            let step = resumed.step(&packed[place.packed..], &mut buf, Stop::Never).unwrap();
            let expected = &plain[place.plain..(place.plain + buf.len()).min(plain.len())];
            assert!(step.written == expected.len() && &buf[..step.written] == expected, "{place:?}");
        }
    }
}

#[test]
fn a_gzip_header_is_a_place_and_the_last_block_is_not() {
    let packed = compress(b"abc", Wrap::Gzip, 6).unwrap();
    let (_, places) = inflate(Wrap::Gzip, &packed, 1, 10, Stop::Blocks).unwrap();
    let places: Vec<_> = places.iter().map(|p| (p.packed, p.bits, p.plain)).collect();
    assert_eq!(places, [(10, 0, 0)]);
}

#[test]
fn header_fields_are_skipped_and_trailers_checked() {
    let raw = compress(b"hello", Wrap::Raw, 6).unwrap();
    let plain = compress(b"hello", Wrap::Gzip, 6).unwrap();
    let trailer = &plain[plain.len() - 8..];
    // FEXTRA, FNAME, FCOMMENT (RFC 1952, 2.3.1).
    let mut packed = b"\x1f\x8b\x08\x1c\0\0\0\0\0\x03\x04\0BCDEname\0comment\0".to_vec();
    packed.extend_from_slice(&raw);
    packed.extend_from_slice(trailer);
    assert_eq!(inflate(Wrap::Gzip, &packed, 3, 2, Stop::Never).unwrap().0, b"hello");
    for n in 1..=8 {
        let mut bad = packed.clone();
        let at = bad.len() - n;
        bad[at] ^= 1;
        assert!(
            matches!(inflate(Wrap::Gzip, &bad, 100, 100, Stop::Never), Err(InflateError::Data(_))),
            "{n}"
        );
    }
}

#[test]
fn pieces_of_any_size_give_the_same_output_and_places() {
    let plain = text(200_000);
    let packed = compress(&plain, Wrap::Gzip, 6).unwrap();
    let whole = inflate(Wrap::Gzip, &packed, usize::MAX / 2, 1 << 20, Stop::Blocks).unwrap();
    for (piece, room) in [(1, 1), (1, 70_000), (7, 300), (5000, 1), (1 << 20, 259)] {
        let (out, places) = inflate(Wrap::Gzip, &packed, piece, room, Stop::Blocks).unwrap();
        assert!(out == whole.0, "{piece} {room}");
        let bits =
            |p: &[Place]| p.iter().map(|p| (p.packed * 8 - usize::from(p.bits), p.plain)).collect::<Vec<_>>();
        assert_eq!(bits(&places), bits(&whole.1), "{piece} {room}");
    }
}

#[test]
fn whatever_the_input_determines_is_written() {
    let plain = text(100_000);
    let packed = compress(&plain, Wrap::Raw, 6).unwrap();
    let mut inflate = Inflate::new(Wrap::Raw).unwrap();
    let mut buf = vec![0; plain.len()];
    let (mut done, mut by_byte) = (0, Vec::new());
    for byte in &packed {
        done += inflate.step(std::slice::from_ref(byte), &mut buf[done..], Stop::Never).unwrap().written;
        by_byte.push(done);
    }
    for cut in [1, 100, 5000, 20_000, packed.len() - 1, packed.len()] {
        inflate.reset(Wrap::Raw).unwrap();
        let step = inflate.step(&packed[..cut], &mut buf, Stop::Never).unwrap();
        assert_eq!(step.written, by_byte[cut - 1], "{cut}");
    }
}

#[test]
fn misuse_is_an_error() {
    let mut inflate = Inflate::new(Wrap::Gzip).unwrap();
    assert_eq!(inflate.resume(8, 0, b""), Err(InflateError::Misuse));
    let raw = compress(b"after a mistake", Wrap::Raw, 6).unwrap();
    inflate.resume(0, 0, b"").unwrap();
    let mut buf = [0; 100];
    let step = inflate.step(&raw, &mut buf, Stop::Never).unwrap();
    assert_eq!(&buf[..step.written], b"after a mistake");
}

#[test]
fn flushes_make_empty_blocks() {
    let mut deflate = Deflate::new(Wrap::Raw, 6).unwrap();
    let mut packed = Vec::new();
    for part in [&b"one"[..], b"", b"two"] {
        deflate.push(part, Flush::Full, &mut packed).unwrap();
    }
    deflate.push(b"", Flush::End, &mut packed).unwrap();
    let (out, places) = inflate(Wrap::Raw, &packed, 100, 100, Stop::Blocks).unwrap();
    assert_eq!(out, b"onetwo");
    assert!(places.windows(2).any(|w| w[0].plain == w[1].plain), "{places:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn any_bytes_give_output_or_an_error(input in prop::collection::vec(any::<u8>(), 0..600), gzip: bool, piece in 1usize..50, room in 1usize..500) {
        let wrap = if gzip { Wrap::Gzip } else { Wrap::Raw };
        let _ = inflate(wrap, &input, piece, room, Stop::Blocks);
    }

    #[test]
    fn any_place_gives_output_or_an_error(bits in 0u8..=7, byte: u8, window in prop::collection::vec(any::<u8>(), 0..40_000), input in prop::collection::vec(any::<u8>(), 0..3000)) {
        let mut inflate = Inflate::new(Wrap::Raw).unwrap();
        inflate.resume(bits, byte, &window).unwrap();
        let mut buf = vec![0; 10_000];
        let _ = inflate.step(&input, &mut buf, Stop::Never);
    }

    #[test]
    fn damage_is_an_error_or_harmless(len in 1usize..3000, at: prop::sample::Index, flip in 1u8..) {
        let plain = text(len);
        let mut packed = compress(&plain, Wrap::Gzip, 6).unwrap();
        let at = at.index(packed.len());
        packed[at] ^= flip;
        if let Ok((out, _)) = inflate(Wrap::Gzip, &packed, 1 << 20, 1 << 16, Stop::Never) {
            // Header fields that mean nothing to the content: flags such as FTEXT, time, level, system; and the bits behind the
            // last block, up to the byte that ends them (RFC 1951, 3.2.3), before the eight of the trailer.
            prop_assert!(out == plain && ((3..10).contains(&at) || at == packed.len() - 9), "{}", at);
        }
    }
}
