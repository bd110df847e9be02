//! Layers for the tests: tars that are the same on every run, packed in every way a registry may hold them.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test crate uses its part")]

pub mod indexed;

use std::sync::Arc;

use convert::{Expected, IndexBuilder, Options, Threads, build};
use format::decode::{DecodeError, SpanDecoder};
use format::index::Index;
use format::layer::Layer;
use format::payload::SegmentSize;
use format::proof::Proved;
use format::{DiffId, Digest};
use sys::deflate::{Deflate, Flush, compress};
use sys::inflate::Wrap;
use testkit::tar::{Archive, Entry, Variant};

/// Numbers that are the same on every run (Marsaglia's xorshift64).
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    pub fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    pub fn below(&mut self, n: u64) -> u64 {
        (self.next() >> 11) % n
    }

    /// Bytes such as files hold: words that come again, far back or near, or noise, or one byte.
    pub fn content(&mut self, len: usize) -> Vec<u8> {
        let kind = self.below(8);
        let mut out = Vec::with_capacity(len + 64);
        while out.len() < len {
            match kind {
                0 => out.extend_from_slice(&self.next().to_le_bytes()),
                1 => out.resize(out.len() + 64, b'z'),
                _ if out.len() > 100 && self.below(2) == 0 => {
                    let back = usize::try_from(self.below(out.len().min(32_768) as u64)).unwrap() + 1;
                    let n = back.min(3 + usize::try_from(self.below(90)).unwrap());
                    out.extend_from_within(out.len() - back..out.len() - back + n);
                }
                _ => out.extend_from_slice(format!("{:x} ", self.next() >> 48).as_bytes()),
            }
        }
        out.truncate(len);
        out
    }
}

/// The tar of these members.
pub fn tar(entries: &[Entry]) -> Vec<u8> {
    Archive::of(entries, Variant::Ustar).tar
}

/// A tar with files of every awkward length, and runs of small ones.
pub fn assorted(seed: u64, files: usize) -> Vec<u8> {
    const LENGTHS: [usize; 14] = [
        0,
        1,
        511,
        4096,
        4097,
        16_383,
        16_384,
        65_535,
        65_536,
        65_537,
        200_000,
        1 << 20,
        (1 << 20) + 1,
        2_500_000,
    ];
    let (mut dice, mut entries) = (Dice::new(seed), Vec::new());
    for n in 0..files {
        let len = match dice.below(4) {
            0 => LENGTHS[usize::try_from(dice.below(LENGTHS.len() as u64)).unwrap()],
            _ => usize::try_from(dice.below(9000)).unwrap(),
        };
        if n % 20 == 0 {
            entries.push(Entry::dir(format!("dir{n}/")));
        }
        entries.push(Entry::file(format!("dir{}/file{n}", n / 20 * 20), dice.content(len)));
    }
    tar(&entries)
}

/// All the ways to pack a tar.
pub const PACKINGS: [&str; 14] = [
    "plain",
    "gzip -0",
    "gzip, one block",
    "gzip -6",
    "gzip -9",
    "gzip, members of 300,000",
    "bgzf",
    "pigz",
    "pigz -i",
    "gzip and zeros",
    "zstd -3",
    "zstd with checksum",
    "zstd frames",
    "zstd frames and skippable ones",
];

/// Packs a tar in one of the [`PACKINGS`].
pub fn pack(way: &str, tar: &[u8]) -> Vec<u8> {
    let gzip = |level| compress(tar, Wrap::Gzip, level).unwrap();
    let pieces = |size: usize, pack: &dyn Fn(&[u8]) -> Vec<u8>| tar.chunks(size).flat_map(pack).collect();
    let zstd = |part: &[u8], level: i32| zstd::bulk::compress(part, level).unwrap();
    match way {
        "plain" => tar.to_vec(),
        "gzip -0" => gzip(0),
        // This encoder's level 1 makes one block of everything.
        "gzip, one block" => gzip(1),
        "gzip -6" => gzip(6),
        "gzip -9" => gzip(9),
        "gzip, members of 300,000" => pieces(300_000, &|p| compress(p, Wrap::Gzip, 6).unwrap()),
        "bgzf" => pieces(65_280, &bgzf),
        "pigz" => pigz(tar, Flush::Sync),
        "pigz -i" => pigz(tar, Flush::Full),
        "gzip and zeros" => [gzip(6), vec![0; 1000]].concat(),
        "zstd -3" => zstd(tar, 3),
        "zstd with checksum" => {
            let mut encoder = zstd::bulk::Compressor::new(3).unwrap();
            encoder.set_parameter(zstd::zstd_safe::CParameter::ChecksumFlag(true)).unwrap();
            encoder.compress(tar).unwrap()
        }
        "zstd frames" => pieces(100_000, &|p| zstd(p, 3)),
        "zstd frames and skippable ones" => {
            let skip = b"\x50\x2a\x4d\x18\0\0\0\0";
            let first = b"\x5a\x2a\x4d\x18\x05\0\0\0\x01\x02\x03\x04\x05";
            [first.to_vec(), pieces(150_000, &|p| [&zstd(p, 1)[..], skip].concat())].concat()
        }
        _ => unreachable!("{way}"),
    }
}

/// A member with its length in an extra field (SAM/BAM format specification, 4.1).
fn bgzf(part: &[u8]) -> Vec<u8> {
    let plain = compress(part, Wrap::Gzip, 6).unwrap();
    let raw = compress(part, Wrap::Raw, 6).unwrap();
    let mut out = b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x06\0BC\x02\0".to_vec();
    out.extend_from_slice(&u16::try_from(raw.len() + 25).unwrap().to_le_bytes());
    out.extend_from_slice(&raw);
    out.extend_from_slice(&plain[plain.len() - 8..]);
    out
}

/// One member whose blocks are aligned every 128 KiB by empty ones, as pigz writes it.
fn pigz(tar: &[u8], flush: Flush) -> Vec<u8> {
    let (mut deflate, mut out) = (Deflate::new(Wrap::Gzip, 6).unwrap(), Vec::new());
    for part in tar.chunks(128 << 10) {
        deflate.push(part, flush, &mut out).unwrap();
        deflate.push(b"", flush, &mut out).unwrap();
    }
    deflate.push(b"", Flush::End, &mut out).unwrap();
    out
}

/// A built layer: its index, its blob, and the segments that came by.
pub struct Built {
    pub layer: Arc<Layer>,
    pub blob: Vec<u8>,
    pub segments: Vec<Vec<u8>>,
    pub proved: Proved,
}

pub fn expected(tar: &[u8], blob: &[u8]) -> Expected {
    Expected { blob: Digest::of(blob), diff_id: DiffId::new(Digest::of(tar)) }
}

pub fn options(blob: &[u8], bits: u8) -> Options {
    Options { segment: SegmentSize::from_bits(bits).unwrap(), blob_size: blob.len() as u64 }
}

pub fn built(tar: &[u8], blob: &[u8], bits: u8, threads: Threads) -> Built {
    let mut segments = Vec::new();
    let keep = |number: u32, bytes: &[u8]| {
        assert_eq!(number as usize, segments.len());
        segments.push(bytes.to_vec());
        Ok(())
    };
    let (index, proved) = build(blob, options(blob, bits), &expected(tar, blob), threads, keep).unwrap();
    let layer = Arc::new(Layer::open(index).unwrap());
    Built { layer, blob: blob.to_vec(), segments, proved }
}

/// Builds from pieces of `piece` bytes.
pub fn built_from_pieces(tar: &[u8], blob: &[u8], bits: u8, piece: usize) -> Index {
    let mut builder = IndexBuilder::new(options(blob, bits), |_, _: &[u8]| Ok(())).unwrap();
    blob.chunks(piece).for_each(|p| builder.push(p).unwrap());
    builder.finish(&expected(tar, blob)).unwrap().0
}

/// Decodes segments from exactly the range the layer names, in pieces of `piece` bytes.
pub fn decode(
    layer: &Arc<Layer>,
    blob: &[u8],
    segments: std::ops::Range<u32>,
    piece: usize,
) -> Result<Vec<Vec<u8>>, DecodeError> {
    let mut decoder = SpanDecoder::new(Arc::clone(layer), segments)?;
    let range = decoder.parts()[0].range.clone();
    let mut out = Vec::new();
    for mut part in
        blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].chunks(piece)
    {
        while let Some((_, verified)) = decoder.push(&mut part)? {
            out.push(verified.as_slice().to_vec());
            decoder.reuse(verified);
        }
        assert!(part.is_empty() || decoder.is_done());
    }
    decoder.finish()?;
    Ok(out)
}
