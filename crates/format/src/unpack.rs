//! The compressed bytes of a blob to plain bytes, and the places on the way where a decoder can begin.
//!
//! One decoder for all codecs and both directions of use: from the beginning of a blob, telling each place
//! (to make an index), and from such a place on (to use one). Goes on over the ends of gzip members and zstd
//! frames. Writes into the caller's slice only, so the caller bounds the output; whatever the input given so
//! far determines comes out as long as there is room.
//!
//! Gzip: members may follow each other, and zeros may follow the last one, as gzip(1) takes it; anything else
//! is an error, because nobody knows what it means. CRC-32 and length of each whole member are checked; of a
//! member entered in the middle they are not: the chunk hashes say more. Zstd: skippable frames are passed
//! over, windows are bounded by zstd's own default of 128 MiB, frame checksums are checked.

mod read;

pub use read::Unpacked;
use sys::inflate::{At, Inflate, InflateError, Stop, WINDOW, Wrap};
use zstd::stream::raw::{Decoder, Operation};

use crate::index::{Codec, Start};

/// Why packed bytes cannot be decoded.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UnpackError {
    /// The deflate or gzip stream is damaged.
    #[error(transparent)]
    Inflate(#[from] InflateError),
    /// The zstd stream is damaged.
    #[error("not a valid zstd stream: {0}")]
    Zstd(String),
    /// Something that is neither a gzip member nor zeros follows a gzip member.
    #[error("something that is not gzip follows the last gzip member")]
    Trailing,
    /// The stream ends inside a member or frame.
    #[error("the compressed bytes end early")]
    Truncated,
    /// The window of a start is not what it should be.
    #[error("the window of a start is damaged")]
    Window,
}

/// What an [`Unpacker::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes of input consumed.
    pub read: usize,
    /// Bytes of output written.
    pub written: usize,
    /// A place to begin at, if there is one right after what was read and written. Only if asked for.
    pub place: Option<Place>,
}

/// A place at which a decoder can begin.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Place {
    /// Number of bits between the place and the end of what has been read.
    pub bits: u8,
    /// Length of the output before the place that what follows may refer to.
    pub window: usize,
}

/// Decodes one blob, or a part of one.
pub struct Unpacker(State);

enum State {
    Plain,
    Gzip { inflate: Inflate, part: Part },
    Zstd { decoder: Decoder<'static>, between: bool, pending: bool },
}

/// Where in a gzip stream we are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// Before the header of the first member.
    First,
    /// Inside a member that began with its header.
    Member,
    /// Before the byte of which this many bits are the first of a raw stream.
    Entry(u8),
    /// Inside a member that was entered between two blocks.
    Entered,
    /// Inside the trailer of such a member.
    Trailer(usize),
    /// After a member.
    Between,
    /// In the zeros after the last member.
    Zeros,
}

impl Unpacker {
    /// Returns a decoder at the beginning of a blob.
    pub fn new(codec: Codec) -> Result<Self, UnpackError> {
        Ok(Self(match codec {
            Codec::Plain => State::Plain,
            Codec::Gzip => State::Gzip { inflate: Inflate::new(Wrap::Gzip)?, part: Part::First },
            Codec::Zstd => {
                State::Zstd { decoder: Decoder::new().map_err(zstd_error)?, between: true, pending: false }
            }
        }))
    }

    /// Returns a decoder whose input begins at a start.
    pub fn at(codec: Codec, start: &Start) -> Result<Self, UnpackError> {
        if codec == Codec::Gzip { Self::inside(start.bits, &start.window) } else { Self::new(codec) }
    }

    /// Returns a decoder whose input begins at a place in a gzip member, with the window as an index has it.
    pub fn inside(bits: u8, window: &[u8]) -> Result<Self, UnpackError> {
        let mut unpacker = Self::new(Codec::Gzip)?;
        unpacker.enter(bits, &open_window(window)?)?;
        Ok(unpacker)
    }

    /// Goes to a place between two blocks of a gzip member: `bits` (0..=7) highest bits of the first byte of
    /// input belong to what follows, or all of it if 0. Does nothing for other codecs.
    pub fn enter(&mut self, bits: u8, window: &[u8]) -> Result<(), UnpackError> {
        if let State::Gzip { inflate, part } = &mut self.0 {
            // The bits come with the first byte of input; until then only the window is known.
            inflate.resume(0, 0, window)?;
            *part = if bits == 0 { Part::Entered } else { Part::Entry(bits) };
        }
        Ok(())
    }

    /// Decodes from `input` into `output`.
    ///
    /// Reads nothing and writes nothing only if there is no input and nothing held back, or no room.
    /// With `places`, stops at each place to begin at and reports it once.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], places: bool) -> Result<Step, UnpackError> {
        match &mut self.0 {
            State::Plain => {
                let n = input.len().min(output.len());
                output[..n].copy_from_slice(&input[..n]);
                Ok(Step { read: n, written: n, place: None })
            }
            State::Gzip { inflate, part } => gzip_step(inflate, part, input, output, places),
            State::Zstd { decoder, between, pending } => {
                if std::mem::take(between) {
                    // A frame begins here; without input it may also be the end of the blob.
                    if input.is_empty() {
                        *between = true;
                        return Ok(Step { read: 0, written: 0, place: None });
                    }
                    if places {
                        return Ok(Step { read: 0, written: 0, place: Some(Place { bits: 0, window: 0 }) });
                    }
                }
                if output.is_empty() || (input.is_empty() && !*pending) {
                    // zstd takes repeated calls that cannot do anything for an error.
                    return Ok(Step { read: 0, written: 0, place: None });
                }
                let status = decoder.run_on_buffers(input, output).map_err(zstd_error)?;
                *between = status.remaining == 0;
                *pending = status.bytes_written == output.len() && !*between;
                Ok(Step { read: status.bytes_read, written: status.bytes_written, place: None })
            }
        }
    }

    /// Says that the blob ends here: an error inside a member or frame.
    pub fn finish(&self) -> Result<(), UnpackError> {
        match &self.0 {
            State::Plain
            | State::Gzip { part: Part::Between | Part::Zeros, .. }
            | State::Zstd { between: true, .. } => Ok(()),
            _ => Err(UnpackError::Truncated),
        }
    }
}

/// Returns all that packed bytes hold, to their end; nothing if that is more than `most` bytes.
pub fn whole(codec: Codec, mut packed: &[u8], most: u64) -> Result<Option<Vec<u8>>, UnpackError> {
    let (mut unpacker, mut plain, mut room) = (Unpacker::new(codec)?, Vec::new(), vec![0; 256 << 10]);
    loop {
        let step = unpacker.step(packed, &mut room, false)?;
        packed = &packed[step.read..];
        plain.extend_from_slice(&room[..step.written]);
        if plain.len() as u64 > most {
            return Ok(None);
        }
        if step.read == 0 && step.written == 0 {
            return unpacker.finish().map(|()| Some(plain));
        }
    }
}

fn gzip_step(
    inflate: &mut Inflate,
    part: &mut Part,
    input: &[u8],
    output: &mut [u8],
    places: bool,
) -> Result<Step, UnpackError> {
    let nothing = Step { read: 0, written: 0, place: None };
    match (*part, input) {
        (Part::First | Part::Member | Part::Entered, _) => {
            let stop = if places { Stop::Blocks } else { Stop::Never };
            let step = inflate.step(input, output, stop)?;
            let window = usize::try_from(inflate.written()).unwrap_or(WINDOW).min(WINDOW);
            let place =
                (step.at == At::Block && places).then(|| Place { bits: inflate.unused_bits(), window });
            *part = match (step.at, *part) {
                (At::End, Part::Entered) => Part::Trailer(8),
                (At::End, _) => Part::Between,
                (_, Part::First) if step.read > 0 => Part::Member,
                (_, part) => part,
            };
            Ok(Step { read: step.read, written: step.written, place })
        }
        (_, []) => Ok(nothing),
        (Part::Entry(bits), [byte, ..]) => {
            inflate.prime(bits, *byte)?;
            *part = Part::Entered;
            Ok(Step { read: 1, ..nothing })
        }
        (Part::Trailer(left), _) => {
            let read = left.min(input.len());
            *part = if read == left { Part::Between } else { Part::Trailer(left - read) };
            Ok(Step { read, ..nothing })
        }
        (Part::Between, [0x1f, ..]) => {
            inflate.reset(Wrap::Gzip)?;
            *part = Part::Member;
            gzip_step(inflate, part, input, output, places)
        }
        (Part::Between | Part::Zeros, _) => {
            *part = Part::Zeros;
            if input.iter().all(|b| *b == 0) {
                Ok(Step { read: input.len(), ..nothing })
            } else {
                Err(UnpackError::Trailing)
            }
        }
    }
}

/// Returns the window a start carries.
/// Returns a window of an index as it was.
pub(crate) fn open_window(stored: &[u8]) -> Result<Vec<u8>, UnpackError> {
    if stored.is_empty() {
        return Ok(Vec::new());
    }
    zstd::bulk::decompress(stored, WINDOW).map_err(|_| UnpackError::Window)
}

/// Returns a window as an index has it; nothing if it is too long.
pub(crate) fn close_window(plain: &[u8]) -> Option<Box<[u8]>> {
    if plain.is_empty() {
        return Some(Box::default());
    }
    let packed = zstd::bulk::compress(plain, 3).ok().filter(|_| plain.len() <= WINDOW);
    packed.map(Vec::into_boxed_slice)
}

fn zstd_error(error: std::io::Error) -> UnpackError {
    UnpackError::Zstd(error.to_string())
}

// Blobs whole, in pieces and from every place are also the subject of `convert`'s tests, which make indexes.
#[cfg(test)]
mod tests {
    use super::*;
    use sys::deflate::compress;

    fn text() -> Vec<u8> {
        (0..40_000u32).flat_map(|n| format!("{:x} ", n.wrapping_mul(n) % 7919).into_bytes()).collect()
    }

    fn unpack(unpacker: &mut Unpacker, mut input: &[u8], room: usize) -> Result<Vec<u8>, UnpackError> {
        let (mut out, mut buffer) = (Vec::new(), vec![0; room]);
        loop {
            let step = unpacker.step(input, &mut buffer, false)?;
            input = &input[step.read..];
            out.extend_from_slice(&buffer[..step.written]);
            if step.read == 0 && step.written == 0 {
                assert!(input.is_empty());
                return Ok(out);
            }
        }
    }

    fn in_pieces(codec: Codec, packed: &[u8]) -> Result<Vec<u8>, UnpackError> {
        let mut unpacker = Unpacker::new(codec)?;
        let out = unpack(&mut unpacker, packed, 1000)?;
        unpacker.finish()?;
        Ok(out)
    }

    #[test]
    fn members_and_frames_follow_each_other() {
        let gzip = |part: &[u8]| compress(part, Wrap::Gzip, 6).unwrap();
        let zstd = |part: &[u8]| zstd::bulk::compress(part, 3).unwrap();
        let skippable = b"\x50\x2a\x4d\x18\x03\0\0\0abc";
        for (codec, packed, plain) in [
            (Codec::Plain, b"as it is".to_vec(), &b"as it is"[..]),
            (Codec::Plain, vec![], b""),
            (Codec::Gzip, gzip(b"one"), b"one"),
            (Codec::Gzip, [gzip(b"one"), gzip(b""), gzip(b"two")].concat(), b"onetwo"),
            (Codec::Gzip, [gzip(b"one"), vec![0; 3000]].concat(), b"one"),
            (Codec::Zstd, zstd(b"one"), b"one"),
            (
                Codec::Zstd,
                [&skippable[..], &zstd(b"one"), skippable, &zstd(b""), &zstd(b"two")].concat(),
                b"onetwo",
            ),
        ] {
            assert_eq!(in_pieces(codec, &packed).as_deref(), Ok(plain));
            let len = plain.len() as u64;
            assert_eq!(whole(codec, &packed, len), Ok(Some(plain.to_vec())));
            assert_eq!(whole(codec, &packed, len.saturating_sub(1)).unwrap().is_some(), len == 0);
        }
        assert_eq!(
            in_pieces(Codec::Gzip, &[gzip(b"one"), b"\0x".to_vec()].concat()),
            Err(UnpackError::Trailing)
        );
        assert_eq!(
            in_pieces(Codec::Gzip, &[gzip(b"one"), b"x".to_vec()].concat()),
            Err(UnpackError::Trailing)
        );
        for (codec, packed) in [(Codec::Gzip, gzip(b"one")), (Codec::Zstd, zstd(b"one"))] {
            for len in 1..packed.len() {
                assert_eq!(in_pieces(codec, &packed[..len]), Err(UnpackError::Truncated), "{codec:?}, {len}");
            }
        }
    }

    #[test]
    fn every_place_reported_can_be_entered() {
        let plain = text();
        let members: Vec<u8> =
            plain.chunks(50_000).flat_map(|part| compress(part, Wrap::Gzip, 6).unwrap()).collect();
        let frames: Vec<u8> =
            plain.chunks(50_000).flat_map(|part| zstd::bulk::compress(part, 3).unwrap()).collect();
        for (codec, packed) in [(Codec::Gzip, members), (Codec::Zstd, frames)] {
            let mut unpacker = Unpacker::new(codec).unwrap();
            let (mut read, mut written, mut places) = (0usize, 0, 0);
            let mut buffer = vec![0; 1 << 20];
            while written < plain.len() {
                let step = unpacker.step(&packed[read..], &mut buffer, true).unwrap();
                read += step.read;
                written += step.written;
                let Some(place) = step.place else { continue };
                places += 1;
                let bit = read * 8 - usize::from(place.bits);
                let window = &plain[written - place.window..written];
                let start = Start {
                    plain: written as u64,
                    packed: (bit / 8) as u64,
                    bits: u8::try_from((8 - bit % 8) % 8).unwrap(),
                    window: match window {
                        [] => Box::default(),
                        _ => zstd::bulk::compress(window, 1).unwrap().into(),
                    },
                };
                let out = unpack(&mut Unpacker::at(codec, &start).unwrap(), &packed[bit / 8..], 777).unwrap();
                assert!(out == plain[written..], "{codec:?} at {written}");
            }
            assert!(places >= plain.len() / 50_000, "{codec:?}: {places}");
        }
    }

    #[test]
    fn a_damaged_window_is_an_error() {
        let start = |window: &[u8]| Start { plain: 0, packed: 0, bits: 0, window: window.into() };
        let long = zstd::bulk::compress(&vec![0; WINDOW + 1], 3).unwrap();
        for window in [&b"noise"[..], &long] {
            assert_eq!(Unpacker::at(Codec::Gzip, &start(window)).err(), Some(UnpackError::Window));
        }
    }
}
