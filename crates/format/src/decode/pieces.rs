//! The decoder of a layer that has a table of contents: each chunk by itself.
//!
//! What lies between the chunks of a part, headers of the tar for the most part, is fetched and passed over. A chunk that
//! reaches over the end of the last wanted segment is decoded all the same: its hash covers all of it.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use super::assembly::{Assembly, Half};
use super::{DecodeError, PIECE, Verified, small};
use crate::digest::Digest;
use crate::index::{Codec, Contents, Entry, Hash, Packing, Part, Piece, sealed_chunk};
use crate::layer::Layer;
use crate::limits;
use crate::unpack::{self, UnpackError, Unpacker};

/// Decodes a run of consecutive segments chunk by chunk.
pub(super) struct PieceDecoder {
    layer: Arc<Layer>,
    /// What the chunks go into; the one it wants is in hand.
    assembly: Assembly,
    /// Where the chunks are that are still to be decoded; the first is being pushed.
    parts: VecDeque<Part>,
    /// Where in its blob the next byte is that has not been used.
    at: u64,
    open: Option<Open>,
    /// The chunk in hand, as far as it has come: as long as it will be, but for what lies before it.
    chunk: Vec<u8>,
    /// Where goes what lies before a chunk in its member or frame; made when there is something.
    passed: Vec<u8>,
}

/// A member, frame or block that is being decoded.
struct Open {
    unit: Unit,
    /// Where in the blob it begins.
    begin: u64,
    /// Plain bytes that are out.
    out: u64,
    /// Plain bytes before the chunk that is in hand, or was last: a twin of that needs no decoding.
    last: Option<u32>,
}

enum Unit {
    /// Comes out as its bytes arrive.
    Stream(Unpacker),
    /// Comes out when all of it is here: an LZ4 block, as far as it is.
    Block(Vec<u8>),
    /// Such a block, decoded.
    Whole(Vec<u8>),
    /// Is decoded when all of it is here and has been hashed: its chunks have no hash of their own.
    Sealed(Sealed),
}

/// A range of the blob that is held until all of it is here.
struct Sealed {
    packed: Vec<u8>,
    /// How many bytes of it the decoder has read.
    read: usize,
    unpacker: Unpacker,
    bits: u8,
    /// Hash of the window that it is decoded with.
    window: Digest,
    /// Hash of the range, once it is here.
    digest: Option<Digest>,
}

impl PieceDecoder {
    /// Returns a decoder of these segments.
    pub(super) fn new(layer: Arc<Layer>, wanted: Range<u32>) -> Result<Self, DecodeError> {
        Ok(Self::of(Assembly::new(Arc::clone(&layer), wanted)?, layer))
    }

    /// Returns a decoder of all that comes out of whatever holds these segments: [`SpanDecoder::with_neighbours`].
    ///
    /// [`SpanDecoder::with_neighbours`]: super::SpanDecoder::with_neighbours
    pub(super) fn with_neighbours(
        layer: Arc<Layer>,
        wanted: Range<u32>,
        known: Vec<Half>,
    ) -> Result<Self, DecodeError> {
        Ok(Self::of(Assembly::with_neighbours(Arc::clone(&layer), wanted, known)?, layer))
    }

    fn of(assembly: Assembly, layer: Arc<Layer>) -> Self {
        let parts = layer.parts_of(assembly.chunks());
        Self {
            at: parts.first().map_or(0, |part| part.range.start),
            parts: parts.into(),
            assembly,
            open: None,
            chunk: Vec::new(),
            passed: Vec::new(),
            layer,
        }
    }

    /// Returns what has come of segments that lie in other spans as well.
    pub(super) fn halves(&mut self) -> Vec<Half> {
        self.assembly.halves()
    }

    /// Returns what is to be pushed.
    pub(super) fn parts(&self) -> Vec<Part> {
        self.parts.iter().cloned().collect()
    }

    /// Returns the segments that are still to come.
    pub(super) fn wanted(&self) -> Range<u32> {
        self.assembly.wanted()
    }

    /// Takes back the memory of a segment that is done with, for the next one.
    pub(super) fn reuse(&mut self, spent: Verified) {
        self.assembly.reuse(spent);
    }

    /// Decodes from the front of `input`; returns the next wanted segment as soon as it is complete.
    pub(super) fn push(&mut self, input: &mut &[u8]) -> Result<Option<(u32, Verified)>, DecodeError> {
        loop {
            if let Some(segment) = self.assembly.take() {
                return Ok(Some(segment));
            }
            let Some(number) = self.assembly.number() else { break };
            let len = self.layer.layout().cuts()[number].len;
            let Some(piece) = self.contents().map(|contents| contents.pieces[number]) else { break };
            if !self.turn(input) || !self.reach(&piece, input)? {
                break;
            }
            if !self.decode(&piece, len, input)? {
                break;
            }
            match self.layer.hash() {
                Hash::Sealed => self.assembly.place(&self.chunk), // `hold` has looked
                _ => self.assembly.put(&self.chunk)?,
            }
            if let Some(part) = self.parts.front_mut() {
                part.chunks -= 1;
            }
        }
        Ok(None)
    }

    /// Goes on to the next part if this one is done; false if there is not enough input.
    fn turn(&mut self, input: &mut &[u8]) -> bool {
        let Some(end) = self.parts.front().filter(|part| part.chunks == 0).map(|part| part.range.end) else {
            return true;
        };
        self.pass(end, input);
        if self.at < end {
            return false;
        }
        self.parts.pop_front();
        self.open = None;
        self.at = self.parts.front().map_or(self.at, |part| part.range.start);
        true
    }

    /// Passes over input up to a place in the blob.
    fn pass(&mut self, place: u64, input: &mut &[u8]) {
        let skip = small(place.saturating_sub(self.at)).min(input.len());
        *input = &input[skip..];
        self.at += skip as u64;
    }

    /// Goes to where a chunk's member, frame or block begins; false if there is not enough input.
    fn reach(&mut self, piece: &Piece, input: &mut &[u8]) -> Result<bool, DecodeError> {
        if self.open.as_ref().is_some_and(|open| open.begin == piece.begin) {
            return Ok(true);
        }
        let shared = self.shared(piece);
        self.pass(piece.begin, input);
        if self.at < piece.begin {
            return Ok(false);
        }
        if self.layer.hash() == Hash::Sealed {
            let sealed = self.seal(piece, shared)?;
            self.open = Some(Open { unit: Unit::Sealed(sealed), begin: piece.begin, out: 0, last: None });
            return Ok(true);
        }
        let unpacker = match piece.packing {
            Packing::Plain => Unpacker::new(Codec::Plain),
            Packing::Gzip => Unpacker::new(Codec::Gzip),
            Packing::Zstd => Unpacker::new(Codec::Zstd),
            Packing::Inside => {
                self.entry(piece).and_then(|entry| Unpacker::inside(entry.bits, &entry.window))
            }
            Packing::Lz4 => {
                self.open =
                    Some(Open { unit: Unit::Block(Vec::new()), begin: piece.begin, out: 0, last: None });
                return Ok(true);
            }
        };
        let unit = Unit::Stream(unpacker.map_err(|why| self.undecodable(why))?);
        self.open = Some(Open { unit, begin: piece.begin, out: 0, last: None });
        Ok(true)
    }

    /// Returns the byte that a sealed range shares with the one before, which has been used.
    fn shared(&self, piece: &Piece) -> Option<u8> {
        match self.open.as_ref().map(|open| &open.unit) {
            Some(Unit::Sealed(sealed)) if piece.begin + 1 == self.at => sealed.packed.last().copied(),
            _ => None,
        }
    }

    /// Begins with a range that is to be hashed before it is decoded.
    fn seal(&self, piece: &Piece, shared: Option<u8>) -> Result<Sealed, DecodeError> {
        let begin = || {
            let entry = self.entry(piece)?;
            let window = unpack::open_window(&entry.window)?;
            let mut unpacker = Unpacker::new(Codec::Gzip)?;
            unpacker.enter(entry.bits, &window)?;
            Ok((unpacker, entry.bits, Digest::of(&window)))
        };
        let (unpacker, bits, window) = begin().map_err(|why| self.undecodable(why))?;
        let mut packed = Vec::with_capacity(small(piece.end - piece.begin));
        packed.extend(shared);
        Ok(Sealed { packed, read: 0, unpacker, bits, window, digest: None })
    }

    fn entry(&self, piece: &Piece) -> Result<&Entry, UnpackError> {
        // There is one for each piece of an index that has been checked.
        self.contents().and_then(|contents| contents.entry(piece)).ok_or(UnpackError::Window)
    }

    /// Takes up what is sealed, and compares it with what names the chunk in hand; false if there is not enough input.
    fn hold(&mut self, piece: &Piece, len: u32, input: &mut &[u8]) -> Result<bool, DecodeError> {
        let Some(Open { unit: Unit::Sealed(sealed), .. }) = &mut self.open else { return Ok(true) };
        let digest = match sealed.digest {
            Some(digest) => digest,
            None => {
                let (now, _) = input.split_at(input.len().min(small(piece.end.saturating_sub(self.at))));
                sealed.packed.extend_from_slice(now);
                *input = &input[now.len()..];
                self.at += now.len() as u64;
                if self.at < piece.end {
                    return Ok(false);
                }
                *sealed.digest.insert(Digest::of(&sealed.packed))
            }
        };
        let named =
            sealed_chunk(&digest, piece.begin..piece.end, sealed.bits, &sealed.window, piece.skip, len);
        match self.assembly.wants() {
            Some(chunk) if chunk.id == named => Ok(true),
            _ => Err(self.assembly.corrupt().into()),
        }
    }

    /// Decodes the chunk in hand; false if there is not enough input.
    fn decode(&mut self, piece: &Piece, len: u32, input: &mut &[u8]) -> Result<bool, DecodeError> {
        if !self.hold(piece, len, input)? {
            return Ok(false);
        }
        if let Some(open) = &mut self.open {
            if open.last == Some(piece.skip) && open.out == u64::from(piece.skip) + u64::from(len) {
                return Ok(true); // a twin of the one before, which is in hand still
            }
            if let Unit::Block(block) = &mut open.unit {
                let (now, _) = input.split_at(input.len().min(small(piece.end.saturating_sub(self.at))));
                block.extend_from_slice(now);
                *input = &input[now.len()..];
                self.at += now.len() as u64;
                if self.at < piece.end {
                    return Ok(false);
                }
                let block = std::mem::take(block);
                open.unit = Unit::Whole(unblock(&block, piece.skip.saturating_add(len)));
            }
        }
        let ends = u64::from(piece.skip) + u64::from(len);
        self.chunk.resize(small(len.into()), 0);
        while let Some(open) = &self.open
            && open.out < ends
        {
            if !self.step(piece, input)? {
                return Ok(false);
            }
        }
        if let Some(open) = &mut self.open {
            open.last = Some(piece.skip);
        }
        Ok(true)
    }

    /// Decodes some of the chunk in hand, or of what lies before it; false if there is not enough input.
    fn step(&mut self, piece: &Piece, input: &mut &[u8]) -> Result<bool, DecodeError> {
        let begins = u64::from(piece.skip);
        let Some(open) = &mut self.open else { return Ok(false) };
        let (unpacker, held) = match &mut open.unit {
            Unit::Stream(unpacker) => (unpacker, None),
            Unit::Sealed(sealed) => (&mut sealed.unpacker, Some((&sealed.packed, &mut sealed.read))),
            Unit::Block(_) => return Ok(false),
            Unit::Whole(plain) => {
                let begins = small(begins);
                let Some(found) = plain.get(begins..begins + self.chunk.len()) else {
                    return Err(self.undecodable(UnpackError::Truncated));
                };
                self.chunk.copy_from_slice(found);
                open.out = (begins + found.len()) as u64;
                return Ok(true);
            }
        };
        // Never past the chunk, nor past where it is said to have ended.
        let room = if open.out < begins {
            self.passed.resize(PIECE, 0);
            &mut self.passed[..small(begins - open.out).min(PIECE)]
        } else {
            &mut self.chunk[small(open.out - begins)..]
        };
        let now = match &held {
            None => &input[..input.len().min(small(piece.end.saturating_sub(self.at)))],
            Some((packed, read)) => &packed[**read..],
        };
        let step = match unpacker.step(now, room, false) {
            Ok(step) => step,
            Err(why) => return Err(self.undecodable(why)),
        };
        match held {
            None => {
                *input = &input[step.read..];
                self.at += step.read as u64;
            }
            Some((_, read)) => *read += step.read,
        }
        open.out += step.written as u64;
        if step.read == 0 && step.written == 0 {
            if self.at >= piece.end {
                return Err(self.undecodable(UnpackError::Truncated));
            }
            return Ok(false);
        }
        Ok(true)
    }

    fn contents(&self) -> Option<&Contents> {
        self.layer.source().contents.as_ref()
    }

    fn undecodable(&self, why: UnpackError) -> DecodeError {
        DecodeError::Undecodable { segment: self.assembly.wanted().start, why }
    }
}

/// Returns what an LZ4 block becomes, of which at least so much is wanted; nothing if it is damaged, or longer than any piece.
pub(super) fn unblock(block: &[u8], wanted: u32) -> Vec<u8> {
    let mut plain = vec![0; small(wanted.into())];
    loop {
        match lz4_flex::block::decompress_into(block, &mut plain) {
            Ok(len) => {
                plain.truncate(len);
                return plain;
            }
            // A chunk in the middle of several: how long they are together the table does not say.
            Err(lz4_flex::block::DecompressError::OutputTooSmall { .. })
                if plain.len() < small(limits::PIECE.into()) =>
            {
                let longer = (plain.len() * 2).min(small(limits::PIECE.into()));
                plain.resize(longer, 0);
            }
            Err(_) => return Vec::new(),
        }
    }
}
