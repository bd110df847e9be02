//! The compressed half of a build: blob bytes in; plain bytes, and what the decoder passed on the way, out.
//!
//! Hashes the blob, tells the codec by its first bytes as containers/image and containerd do, and decodes.
//! Cuts the output into batches of [`BATCH`] plain bytes. What is in a batch, and so in the index, depends on
//! the blob alone: not on the sizes of the pieces it came in, nor on threads.

use format::index::{Codec, most_plain};
use format::unpack::{UnpackError, Unpacker};
use format::{Digest, DigestHasher, limits};

use crate::BuildError;

/// Plain bytes in a batch: fits a second-level cache together with its compressed bytes.
pub(crate) const BATCH: usize = 256 << 10;

/// Distance of marks in the blob. A segment's range ends at a mark, so this is the most that is fetched for
/// nothing, 2 KiB on average of some 350. The decoder pays for each mark with a call: with marks every 32 KiB the
/// whole build takes 0.93 to 0.96 of the time, every 8 KiB 0.98 to 1.0; those who start pay for each byte, always.
const MARK: u64 = 4096;

/// Compressed bytes after which a batch is sent although it is not full: a blob may hold any amount of blocks
/// that put out nothing.
const MAX_PACKED: usize = 1 << 20;

/// A place in the blob at which a decoder can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    /// Offset of the first byte that comes out.
    pub(crate) plain: u64,
    /// Offset of the first byte that is needed.
    pub(crate) packed: u64,
    /// How many of that byte's highest bits are needed; 0 for all of it.
    pub(crate) bits: u8,
    /// How much of the output before it may be referred to.
    pub(crate) window: usize,
}

/// So much comes out of so much of the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Mark {
    pub(crate) plain: u64,
    pub(crate) packed: u64,
}

/// A piece of the tar, and what it came from.
#[derive(Debug)]
pub(crate) struct Batch {
    pub(crate) codec: Codec,
    /// Offset in the blob of the first compressed byte.
    pub(crate) packed_at: u64,
    /// The compressed bytes consumed for this batch. Empty where nobody needs them: for all codecs but gzip.
    pub(crate) packed: Vec<u8>,
    /// Offset in the tar of the first plain byte.
    pub(crate) plain_at: u64,
    /// Memory for [`BATCH`] plain bytes, of which `len` are there: cleared once and never again.
    plain: Vec<u8>,
    len: usize,
    /// The places in it, ascending; of those with the same output only the last.
    pub(crate) places: Vec<Place>,
    /// The marks in it, ascending.
    pub(crate) marks: Vec<Mark>,
}

impl Batch {
    /// Returns a batch without memory.
    pub(crate) fn empty() -> Self {
        Self {
            codec: Codec::Plain,
            packed_at: 0,
            packed: Vec::new(),
            plain_at: 0,
            plain: Vec::new(),
            len: 0,
            places: Vec::new(),
            marks: Vec::new(),
        }
    }

    fn clear(&mut self, packed_at: u64, plain_at: u64) {
        self.packed.clear();
        self.plain.resize(BATCH, 0);
        self.len = 0;
        self.places.clear();
        self.marks.clear();
        (self.packed_at, self.plain_at) = (packed_at, plain_at);
    }

    /// Returns the plain bytes.
    pub(crate) fn plain(&self) -> &[u8] {
        &self.plain[..self.len]
    }
}

/// What the blob turned out to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Blob {
    pub(crate) digest: Digest,
    pub(crate) size: u64,
    pub(crate) codec: Codec,
    pub(crate) plain: u64,
}

/// Decodes a blob into batches.
pub(crate) struct Inflow {
    /// Length the blob must have.
    size: u64,
    hasher: DigestHasher,
    /// The first bytes, until there are enough to tell the codec.
    head: Vec<u8>,
    unpacker: Option<(Codec, Unpacker)>,
    packed: u64,
    plain: u64,
    /// The batch being filled.
    batch: Batch,
}

/// Where full batches go; gives one back to be filled.
type Emit<'a> = &'a mut dyn FnMut(Batch) -> Result<Batch, BuildError>;

impl Inflow {
    pub(crate) fn new(size: u64) -> Self {
        let mut batch = Batch::empty();
        batch.clear(0, 0);
        Self {
            size,
            hasher: DigestHasher::new(),
            head: Vec::new(),
            unpacker: None,
            packed: 0,
            plain: 0,
            batch,
        }
    }

    /// Takes the next bytes of the blob.
    pub(crate) fn push(&mut self, mut input: &[u8], emit: Emit<'_>) -> Result<(), BuildError> {
        let seen = self.packed + self.head.len() as u64;
        if seen + input.len() as u64 > self.size {
            return Err(BuildError::BlobLength { expected: self.size, found: None });
        }
        self.hasher.update(input);
        if self.unpacker.is_none() {
            let missing = Magic::LEN.saturating_sub(self.head.len()).min(input.len());
            let (head, rest) = input.split_at(missing);
            self.head.extend_from_slice(head);
            input = rest;
            if self.head.len() < Magic::LEN {
                return Ok(());
            }
            self.begin(emit)?;
        }
        self.decode(input, emit)
    }

    /// Says that the blob ends here; returns what it was.
    pub(crate) fn finish(mut self, emit: Emit<'_>) -> Result<Blob, BuildError> {
        if self.unpacker.is_none() {
            self.begin(emit)?;
        }
        if self.packed != self.size {
            return Err(BuildError::BlobLength { expected: self.size, found: Some(self.packed) });
        }
        self.batch.marks.push(Mark { plain: self.plain, packed: self.packed });
        self.send(emit)?;
        let Some((codec, unpacker)) = self.unpacker else { return Err(UnpackError::Truncated.into()) };
        unpacker.finish()?;
        Ok(Blob { digest: self.hasher.finish(), size: self.packed, codec, plain: self.plain })
    }

    fn begin(&mut self, emit: Emit<'_>) -> Result<(), BuildError> {
        let codec = Magic::codec(&self.head);
        self.unpacker = Some((codec, Unpacker::new(codec)?));
        self.batch.codec = codec;
        let head = std::mem::take(&mut self.head);
        self.decode(&head, emit)
    }

    fn decode(&mut self, mut input: &[u8], emit: Emit<'_>) -> Result<(), BuildError> {
        let Some((codec, mut unpacker)) = self.unpacker.take() else { return Ok(()) };
        let mut full = true;
        loop {
            // After a full batch first what is held back: otherwise it would depend on the pieces of input
            // whether a mark comes before or after it.
            let part = if full { &[] } else { &input[..input.len().min(self.to_mark(codec))] };
            let room = &mut self.batch.plain[self.batch.len..];
            let step = unpacker.step(part, room, codec != Codec::Plain)?;
            if codec == Codec::Gzip {
                self.batch.packed.extend_from_slice(&part[..step.read]);
            }
            input = &input[step.read..];
            self.packed += step.read as u64;
            self.plain += step.written as u64;
            self.batch.len += step.written;
            if let Some(place) = step.place {
                self.place(place);
            }
            let idle = step.read == 0 && step.written == 0 && step.place.is_none();
            if idle && !full {
                break;
            }
            full = self.batch.len == BATCH;
            if full {
                self.check_expansion()?;
                self.send(emit)?;
            } else if self.packed.is_multiple_of(MARK) {
                // There was room left, so all that these bytes determine is out.
                self.batch.marks.push(Mark { plain: self.plain, packed: self.packed });
                if self.batch.packed.len() >= MAX_PACKED {
                    self.send(emit)?;
                }
            }
        }
        self.unpacker = Some((codec, unpacker));
        Ok(())
    }

    /// Returns how much input to decode at once.
    fn to_mark(&self, codec: Codec) -> usize {
        match codec {
            Codec::Plain => BATCH,
            _ => usize::try_from(MARK - self.packed % MARK).unwrap_or(0),
        }
    }

    /// Notes that a decoder can begin here. `place.bits` may exceed 7: count in bits.
    fn place(&mut self, place: format::unpack::Place) {
        let bit = self.packed * 8 - u64::from(place.bits);
        let bits = u8::try_from((8 - bit % 8) % 8).unwrap_or(0);
        let place = Place { plain: self.plain, packed: bit / 8, bits, window: place.window };
        match self.batch.places.last_mut() {
            Some(last) if last.plain == place.plain => *last = place,
            _ => self.batch.places.push(place),
        }
    }

    fn send(&mut self, emit: Emit<'_>) -> Result<(), BuildError> {
        let codec = self.batch.codec;
        let mut batch = emit(std::mem::replace(&mut self.batch, Batch::empty()))?;
        batch.codec = codec;
        batch.clear(self.packed, self.plain);
        self.batch = batch;
        Ok(())
    }

    fn check_expansion(&self) -> Result<(), BuildError> {
        if self.plain > most_plain(self.size) {
            return Err(BuildError::Limit {
                what: "the tar, for a blob of its length,",
                limit: most_plain(self.size),
            });
        }
        if self.plain > limits::LAYER {
            return Err(BuildError::Limit { what: "the tar", limit: limits::LAYER });
        }
        Ok(())
    }
}

/// What the first bytes of a blob say.
pub(crate) struct Magic;

impl Magic {
    /// Bytes that are enough to tell.
    pub(crate) const LEN: usize = 4;

    /// Anything that is neither gzip nor zstd is taken for a tar: the tar parser has the last word.
    pub(crate) fn codec(head: &[u8]) -> Codec {
        match head {
            [0x1f, 0x8b, ..] => Codec::Gzip,
            // A frame, or a skippable frame before the first one (RFC 8878, 3.1).
            [0x28, 0xb5, 0x2f, 0xfd, ..] | [0x50..=0x5f, 0x2a, 0x4d, 0x18, ..] => Codec::Zstd,
            _ => Codec::Plain,
        }
    }
}
