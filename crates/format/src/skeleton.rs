//! The skeleton of a layer: every byte of its tar that is no payload, in order, as one zstd frame.
//!
//! Headers repeat each other, so a skeleton packs to some ten bytes a member. What it is, [`Parser`] decides;
//! this file packs it, gives it back within stated bounds, and with the payload makes the tar again, byte for
//! byte, which is how a lazily completed layer is proved against its diffID.
//!
//! Packed form: one zstd frame without checksum over the [lean form](lean) of the plain bytes. The same plain bytes give the same packed bytes, however they were cut into writes. The identity of an index
//! rests on the BLAKE3 of the plain bytes alone.

mod beside;
mod lean;
mod made;

use zstd::stream::raw::{CParameter, DParameter, Decoder, Encoder, InBuffer, Operation, OutBuffer};

use lean::{PIECE, Unpack};

use crate::limits;
use crate::payload::SegmentSize;
use crate::tar::{Parser, Placer, SpaceError, Step, TarError};

pub use made::MadeError;
pub(crate) use made::{Made, SkeletonMaker};

/// Compression level. The skeleton of 80,000 members (67 MB plain) packs, in CPU time of one core, to 1.26 MB in 0.11 s at
/// level 3, 1.11 MB in 0.22 s at 6, 1.06 MB in 0.26 s at 8 and 1.05 MB in 0.48 s at 12; without the lean form to 1.71 MB in 0.07 s
/// at 3 and 1.44 MB in 0.39 s at 9. Level 3 costs 6 % of inflating and hashing such a layer, level 8 would
/// cost 13 % for a tenth of a percent of the layer's size.
const LEVEL: i32 = 3;

/// Window of packing and unpacking, as a power of two: 8 MiB hold the headers of some 10,000 members, and a reader need
/// not hold more, whatever a frame asks for.
const WINDOW: u32 = 23;

/// Why a skeleton cannot be packed or unpacked.
#[derive(Debug, thiserror::Error)]
pub enum SkeletonError {
    /// Longer than a limit.
    #[error("a skeleton of more than {0} bytes is too long")]
    TooLong(u64),
    /// The codec reports damage, or has no memory.
    #[error("zstd")]
    Codec(#[source] std::io::Error),
    /// The packed bytes end too early, go on too long, or give another length than stated.
    #[error("the packed skeleton is not one frame of {stated} bytes")]
    Length {
        /// The length it should have.
        stated: u64,
    },
    /// Other bytes than stated.
    #[error("the skeleton does not match its hash")]
    Hash,
}

/// What identifies a plain skeleton.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SkeletonFacts {
    /// Length in bytes.
    pub len: u64,
    /// BLAKE3.
    pub hash: [u8; 32],
}

/// Packs a skeleton piece by piece.
pub struct SkeletonWriter {
    encoder: Encoder<'static>,
    hasher: blake3::Hasher,
    len: u64,
    /// Less than a piece: so the codec sees the same pieces however the bytes come.
    waiting: Vec<u8>,
    lean: Vec<u8>,
    packed: Vec<u8>,
    out: Vec<u8>,
}

impl SkeletonWriter {
    /// Returns a writer of a skeleton of which nothing is known yet.
    pub fn new() -> Result<Self, SkeletonError> {
        let mut encoder = Encoder::new(LEVEL).map_err(SkeletonError::Codec)?;
        for parameter in [CParameter::WindowLog(WINDOW), CParameter::ChecksumFlag(false)] {
            encoder.set_parameter(parameter).map_err(SkeletonError::Codec)?;
        }
        Ok(Self {
            encoder,
            hasher: blake3::Hasher::new(),
            len: 0,
            waiting: Vec::with_capacity(PIECE),
            lean: Vec::new(),
            packed: Vec::new(),
            out: vec![0; PIECE],
        })
    }

    /// Adds bytes.
    pub fn write(&mut self, mut bytes: &[u8]) -> Result<(), SkeletonError> {
        self.len += bytes.len() as u64;
        if self.len > limits::SKELETON {
            return Err(SkeletonError::TooLong(limits::SKELETON));
        }
        while !bytes.is_empty() {
            let (now, later) = bytes.split_at(bytes.len().min(PIECE - self.waiting.len()));
            self.waiting.extend_from_slice(now);
            bytes = later;
            if self.waiting.len() == PIECE {
                self.pack()?;
            }
        }
        Ok(())
    }

    /// Returns how many bytes were added.
    pub fn len(&self) -> u64 {
        self.len
    }

    /// Says whether nothing was added.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the packed bytes and what identifies the plain ones.
    pub fn finish(mut self) -> Result<(Vec<u8>, SkeletonFacts), SkeletonError> {
        self.pack()?;
        loop {
            let mut out = OutBuffer::around(&mut self.out[..]);
            let left = self.encoder.finish(&mut out, true).map_err(SkeletonError::Codec)?;
            self.packed.extend_from_slice(out.as_slice());
            if left == 0 {
                break;
            }
        }
        let facts = SkeletonFacts { len: self.len, hash: *self.hasher.finalize().as_bytes() };
        Ok((self.packed, facts))
    }

    fn pack(&mut self) -> Result<(), SkeletonError> {
        self.hasher.update(&self.waiting);
        self.lean.clear();
        lean::pack(&mut self.waiting, &mut self.lean);
        let mut input = InBuffer::around(&self.lean);
        while input.pos() < self.lean.len() {
            let mut out = OutBuffer::around(&mut self.out[..]);
            self.encoder.run(&mut input, &mut out).map_err(SkeletonError::Codec)?;
            self.packed.extend_from_slice(out.as_slice());
        }
        self.waiting.clear();
        if self.packed.len() as u64 > limits::INDEX {
            return Err(SkeletonError::TooLong(limits::INDEX));
        }
        Ok(())
    }
}

/// Unpacks a skeleton piece by piece: never more bytes than stated, in bounded memory.
///
/// Nothing the pieces say may be trusted before the last one was read: only then is the hash known.
pub struct SkeletonReader<'a> {
    decoder: Decoder<'static>,
    packed: &'a [u8],
    facts: SkeletonFacts,
    /// None if these bytes have been found right before.
    hasher: Option<blake3::Hasher>,
    read: u64,
    ended: bool,
    /// Lean bytes, of which those before `taken` are used up.
    lean: Vec<u8>,
    taken: usize,
    filled: usize,
    unpack: Unpack,
    plain: Vec<u8>,
}

impl<'a> SkeletonReader<'a> {
    /// Returns a reader of packed bytes that should give what `facts` state.
    pub fn new(packed: &'a [u8], facts: SkeletonFacts) -> Result<Self, SkeletonError> {
        if facts.len > limits::SKELETON {
            return Err(SkeletonError::TooLong(limits::SKELETON));
        }
        let mut decoder = Decoder::new().map_err(SkeletonError::Codec)?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW)).map_err(SkeletonError::Codec)?;
        Ok(Self {
            decoder,
            packed,
            facts,
            hasher: Some(blake3::Hasher::new()),
            read: 0,
            ended: false,
            lean: vec![0; PIECE],
            taken: 0,
            filled: 0,
            unpack: Unpack::default(),
            plain: Vec::new(),
        })
    }

    /// Does not hash: another reader of the very same bytes has, and found them right.
    pub fn known(mut self) -> Self {
        self.hasher = None;
        self
    }

    /// Returns the next bytes, or nothing at the end, when length and hash have been found right.
    pub fn chunk(&mut self) -> Result<Option<&[u8]>, SkeletonError> {
        let stated = self.facts.len;
        let malformed = |_| SkeletonError::Length { stated };
        while !self.unpack.is_whole() {
            if self.taken < self.filled {
                self.taken += self.unpack.take(&self.lean[self.taken..self.filled]).map_err(malformed)?;
            } else if self.ended {
                break;
            } else {
                self.decode()?;
            }
        }
        self.unpack.piece(&mut self.plain).map_err(malformed)?;
        if self.plain.is_empty() {
            return self.check().map(|()| None);
        }
        self.read += self.plain.len() as u64;
        if self.read > self.facts.len {
            return Err(SkeletonError::Length { stated: self.facts.len });
        }
        if let Some(hasher) = &mut self.hasher {
            hasher.update(&self.plain);
        }
        Ok(Some(&self.plain))
    }

    fn decode(&mut self) -> Result<(), SkeletonError> {
        let mut input = InBuffer::around(self.packed);
        let mut out = OutBuffer::around(&mut self.lean[..]);
        let more = self.decoder.run(&mut input, &mut out).map_err(SkeletonError::Codec)?;
        let used = input.pos();
        (self.taken, self.filled) = (0, out.pos());
        self.packed = &self.packed[used..];
        self.ended = more == 0;
        if used == 0 && self.filled == 0 && !self.ended {
            return Err(SkeletonError::Length { stated: self.facts.len });
        }
        Ok(())
    }

    fn check(&self) -> Result<(), SkeletonError> {
        if self.read != self.facts.len || !self.packed.is_empty() {
            return Err(SkeletonError::Length { stated: self.facts.len });
        }
        match &self.hasher {
            Some(hasher) if hasher.finalize() != self.facts.hash => Err(SkeletonError::Hash),
            _ => Ok(()),
        }
    }
}

/// Why a tar cannot be made of its skeleton and payload.
#[derive(Debug, thiserror::Error)]
pub enum RestoreError<E> {
    /// The skeleton cannot be unpacked.
    #[error(transparent)]
    Skeleton(#[from] SkeletonError),
    /// The skeleton is not that of a tar.
    #[error(transparent)]
    Tar(#[from] TarError),
    /// The skeleton is that of an impossible tar.
    #[error(transparent)]
    Space(#[from] SpaceError),
    /// Reading payload or handing on the tar failed.
    #[error("reading payload or writing the tar")]
    Caller(#[source] E),
}

/// Gives the tar back: `read` fills a buffer from an offset in payload space, `sink` takes the tar in order.
///
/// Buffers have at most `buffer` bytes. Returns the length of the tar. What `sink` took is the tar only if this
/// returns `Ok`.
pub fn restore<E>(
    mut skeleton: SkeletonReader<'_>,
    segment: SegmentSize,
    buffer: usize,
    mut read: impl FnMut(u64, &mut [u8]) -> Result<(), E>,
    mut sink: impl FnMut(&[u8]) -> Result<(), E>,
) -> Result<u64, RestoreError<E>> {
    let (mut parser, mut placer) = (Parser::new(), Placer::new(segment));
    let mut bytes = vec![0; buffer.max(1)];
    while let Some(mut chunk) = skeleton.chunk()? {
        while !chunk.is_empty() {
            let (taken, step) = parser.step(chunk)?;
            sink(&chunk[..taken]).map_err(RestoreError::Caller)?;
            chunk = &chunk[taken..];
            let Step::Member(member) = step else { continue };
            let placed = placer.layout().extents().len();
            placer.member(&member)?;
            for extent in &placer.layout().extents()[placed..] {
                let (mut at, end) = (extent.payload, extent.payload + extent.len);
                while at < end {
                    let n = usize::try_from(end - at).map_or(bytes.len(), |left| left.min(bytes.len()));
                    read(at, &mut bytes[..n]).map_err(RestoreError::Caller)?;
                    sink(&bytes[..n]).map_err(RestoreError::Caller)?;
                    at += n as u64;
                }
            }
        }
    }
    parser.finish()?;
    Ok(parser.plain())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn packed(plain: &[u8], step: usize) -> (Vec<u8>, SkeletonFacts) {
        let mut writer = SkeletonWriter::new().unwrap();
        plain.chunks(step).for_each(|part| writer.write(part).unwrap());
        assert_eq!(writer.len(), plain.len() as u64);
        writer.finish().unwrap()
    }

    fn unpacked(packed: &[u8], facts: SkeletonFacts) -> Result<Vec<u8>, SkeletonError> {
        all(SkeletonReader::new(packed, facts)?)
    }

    fn all(mut reader: SkeletonReader<'_>) -> Result<Vec<u8>, SkeletonError> {
        let mut plain = Vec::new();
        while let Some(chunk) = reader.chunk()? {
            plain.extend_from_slice(chunk);
        }
        Ok(plain)
    }

    #[test]
    fn large_skeletons_come_back_however_they_were_written() {
        let plain = testkit::tar::large(5000).skeleton;
        assert!(plain.len() > 10 * PIECE);
        let whole = packed(&plain, plain.len());
        for step in [1, 511, 4096, PIECE - 1, PIECE, PIECE + 1] {
            assert!(packed(&plain, step) == whole, "written in steps of {step}");
        }
        assert!(unpacked(&whole.0, whole.1).unwrap() == plain);
        assert_eq!(whole.1.hash, *blake3::hash(&plain).as_bytes());
    }

    #[test]
    fn lies_about_a_skeleton_are_found() {
        let plain = testkit::tar::large(30).skeleton;
        let (bytes, facts) = packed(&plain, PIECE);
        for len in [0, 1, facts.len - 1, facts.len + 1, facts.len + (1 << 30)] {
            let result = unpacked(&bytes, SkeletonFacts { len, ..facts });
            assert!(matches!(result, Err(SkeletonError::Length { .. })), "{len}");
        }
        let too_long = unpacked(&bytes, SkeletonFacts { len: limits::SKELETON + 1, ..facts });
        assert!(matches!(too_long, Err(SkeletonError::TooLong(_))));
        assert!(matches!(
            unpacked(&bytes, SkeletonFacts { hash: [0; 32], ..facts }),
            Err(SkeletonError::Hash)
        ));
        for cut in 0..bytes.len() {
            assert!(unpacked(&bytes[..cut], facts).is_err(), "cut at {cut}");
        }
        assert!(unpacked(&[&bytes[..], b"x"].concat(), facts).is_err());
        assert!(unpacked(&[&bytes[..], &bytes[..]].concat(), facts).is_err(), "a second frame");
        for at in 0..bytes.len() {
            let mut bytes = bytes.clone();
            bytes[at] ^= 0x10;
            // A bit the codec does not care about may change; the plain bytes may not.
            assert!(unpacked(&bytes, facts).map_or(true, |found| found == plain), "flipped at {at}");
        }
    }

    #[test]
    fn what_is_known_is_not_hashed_again_and_has_the_same_bounds() {
        let plain = testkit::tar::large(30).skeleton;
        let (bytes, facts) = packed(&plain, PIECE);
        let known = |facts| all(SkeletonReader::new(&bytes, facts).unwrap().known());
        assert!(known(facts).unwrap() == plain);
        assert!(known(SkeletonFacts { hash: [0; 32], ..facts }).unwrap() == plain, "it was hashed");
        for len in [facts.len - 1, facts.len + 1] {
            assert!(matches!(known(SkeletonFacts { len, ..facts }), Err(SkeletonError::Length { .. })));
        }
    }

    #[test]
    fn a_frame_cannot_ask_for_more_memory_than_the_window() {
        let mut encoder = Encoder::new(1).unwrap();
        encoder.set_parameter(CParameter::WindowLog(WINDOW + 1)).unwrap();
        let mut frame = vec![0; 1 << 16];
        let mut out = OutBuffer::around(&mut frame[..]);
        let mut input = InBuffer::around(b"\x02a\x00");
        encoder.run(&mut input, &mut out).unwrap();
        encoder.finish(&mut out, true).unwrap();
        let len = out.pos();
        let facts = SkeletonFacts { len: 1, hash: *blake3::hash(b"a").as_bytes() };
        assert!(matches!(unpacked(&frame[..len], facts), Err(SkeletonError::Codec(_))));
    }

    proptest! {
        #[test]
        fn anything_comes_back(plain in prop::collection::vec(any::<u8>(), 0..5000), step in 1usize..999) {
            let (bytes, facts) = packed(&plain, step);
            prop_assert_eq!(unpacked(&bytes, facts).unwrap(), plain);
        }
    }
}
