//! The blob that is read: hashed, measured, decompressed.

use format::index::most_plain;
use format::unpack::{UnpackError, Unpacker};
use format::{Digest, DigestHasher, limits};

use super::RecodeError;
use crate::inflow::Magic;

/// Plain bytes decoded at a time: they stay in a second-level cache until they are hashed and copied.
const ROOM: usize = 128 << 10;

/// Decodes a blob of any codec.
pub(super) struct Source {
    /// Length the blob must have.
    size: u64,
    hasher: DigestHasher,
    /// The first bytes, until there are enough to tell the codec.
    head: Vec<u8>,
    unpacker: Option<Unpacker>,
    seen: u64,
    plain: u64,
    room: Vec<u8>,
}

/// Where plain bytes go.
type Each<'a> = &'a mut dyn FnMut(&[u8]) -> Result<(), RecodeError>;

impl Source {
    pub(super) fn new(size: u64) -> Self {
        Self {
            size,
            hasher: DigestHasher::new(),
            head: Vec::new(),
            unpacker: None,
            seen: 0,
            plain: 0,
            room: vec![0; ROOM],
        }
    }

    /// Takes the next bytes of the blob.
    pub(super) fn push(&mut self, mut input: &[u8], each: Each<'_>) -> Result<(), RecodeError> {
        self.seen += input.len() as u64;
        if self.seen > self.size {
            return Err(RecodeError::BlobLength { expected: self.size, found: None });
        }
        self.hasher.update(input);
        if self.unpacker.is_none() {
            let (head, rest) = input.split_at(Magic::LEN.saturating_sub(self.head.len()).min(input.len()));
            self.head.extend_from_slice(head);
            input = rest;
            if self.head.len() < Magic::LEN {
                return Ok(());
            }
            self.begin(each)?;
        }
        self.decode(input, each)
    }

    /// Says that the blob ends here; returns its digest.
    pub(super) fn finish(mut self, each: Each<'_>) -> Result<Digest, RecodeError> {
        if self.seen != self.size {
            return Err(RecodeError::BlobLength { expected: self.size, found: Some(self.seen) });
        }
        if self.unpacker.is_none() {
            self.begin(each)?;
        }
        self.unpacker.as_ref().ok_or(UnpackError::Truncated)?.finish()?;
        Ok(self.hasher.finish())
    }

    fn begin(&mut self, each: Each<'_>) -> Result<(), RecodeError> {
        self.unpacker = Some(Unpacker::new(Magic::codec(&self.head))?);
        let head = std::mem::take(&mut self.head);
        self.decode(&head, each)
    }

    fn decode(&mut self, mut input: &[u8], each: Each<'_>) -> Result<(), RecodeError> {
        let Some(unpacker) = &mut self.unpacker else { return Ok(()) };
        loop {
            let step = unpacker.step(input, &mut self.room, false)?;
            if step.read == 0 && step.written == 0 {
                return Ok(());
            }
            input = &input[step.read..];
            self.plain += step.written as u64;
            let most = most_plain(self.size).min(limits::LAYER);
            if self.plain > most {
                return Err(RecodeError::Limit { what: "the tar, for a blob of its length,", limit: most });
            }
            each(&self.room[..step.written])?;
        }
    }
}
