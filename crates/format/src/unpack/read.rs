//! What packed bytes hold, as they arrive.

use std::io::{self, Read};
use std::ops::Range;

use super::{UnpackError, Unpacker};
use crate::index::Codec;

/// Packed bytes that are looked at together.
const PACKED: usize = 64 << 10;

/// The plain bytes of a blob; an error tells [`UnpackError`].
pub struct Unpacked<R> {
    from: R,
    unpacker: Unpacker,
    packed: Box<[u8]>,
    /// What has been read and not unpacked.
    left: Range<usize>,
}

impl<R: Read> Unpacked<R> {
    /// Returns what comes out of a whole blob.
    pub fn new(codec: Codec, from: R) -> Result<Self, UnpackError> {
        Ok(Self { from, unpacker: Unpacker::new(codec)?, packed: vec![0; PACKED].into(), left: 0..0 })
    }
}

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        loop {
            let step = self.unpacker.step(&self.packed[self.left.clone()], buf, false);
            let step = step.map_err(io::Error::other)?;
            self.left.start += step.read;
            if step.written > 0 || buf.is_empty() {
                return Ok(step.written);
            }
            if step.read > 0 {
                continue;
            }
            debug_assert!(self.left.is_empty(), "with input and room it does something");
            self.left = 0..self.from.read(&mut self.packed)?;
            if self.left.is_empty() {
                return self.unpacker.finish().map(|()| 0).map_err(io::Error::other);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use sys::deflate::compress;
    use sys::inflate::Wrap;

    /// Comes in pieces of a byte.
    struct Slow<'a>(&'a [u8]);

    impl Read for Slow<'_> {
        fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
            let len = buf.len().min(1);
            self.0.read(&mut buf[..len])
        }
    }

    fn all(from: impl Read, codec: Codec) -> Result<Vec<u8>, UnpackError> {
        let mut plain = Vec::new();
        let read = Unpacked::new(codec, from)?.read_to_end(&mut plain);
        read.map(|_| plain).map_err(|error| error.downcast().unwrap())
    }

    #[test]
    fn what_comes_out_does_not_depend_on_how_it_comes_in() {
        let plain: Vec<u8> = (0..3 * PACKED).map(|n| u8::try_from(n * n % 251).unwrap()).collect();
        let gzip = compress(&plain, Wrap::Gzip, 6).unwrap();
        let zstd = zstd::bulk::compress(&plain, 3).unwrap();
        for (codec, packed) in [(Codec::Gzip, gzip), (Codec::Zstd, zstd), (Codec::Plain, plain.clone())] {
            assert!(all(&packed[..], codec).unwrap() == plain && all(Slow(&packed), codec).unwrap() == plain);
            if codec != Codec::Plain {
                let cut = &packed[..packed.len() - 1];
                assert_eq!(all(cut, codec), Err(UnpackError::Truncated), "{codec:?}");
                assert!(all(&plain[..], codec).is_err(), "{codec:?}");
            }
        }
    }
}
