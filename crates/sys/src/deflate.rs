//! Deflate, as raw streams and gzip members: what makes layers, in tests and in copies.
//!
//! The counterpart of [`crate::inflate`], over the same zlib-rs. Deterministic for one version of it, so
//! nothing's identity may depend on the bytes that come out.

use std::ffi::c_int;
use std::mem::size_of;

use libz_rs_sys as z;

use crate::inflate::{InflateError, Wrap};

/// What a piece of input ends with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Flush {
    /// Nothing: the encoder may hold bytes back.
    None,
    /// An empty stored block, aligned to a byte; later matches may still refer back.
    Sync,
    /// The same, and later blocks do not refer back.
    Full,
    /// The end of the stream.
    End,
}

/// An encoder of one stream.
pub struct Deflate {
    stream: Box<z::z_stream>,
}

// SAFETY: as for `Inflate`: the state is owned, and pointers into slices are dead after each call.
unsafe impl Send for Deflate {}

impl Deflate {
    /// Returns an encoder; `level` is 0 (stored) to 9.
    pub fn new(wrap: Wrap, level: u8) -> Result<Self, InflateError> {
        let mut stream = Box::new(z::z_stream::default());
        let size = c_int::try_from(size_of::<z::z_stream>()).map_err(|_| InflateError::Misuse)?;
        let bits = match wrap {
            Wrap::Raw => -15,
            Wrap::Gzip => 31,
        };
        // SAFETY: the stream is a valid, initialised `z_stream` with null buffers and the default allocator.
        let code = unsafe {
            z::deflateInit2_(
                &raw mut *stream,
                c_int::from(level.min(9)),
                z::Z_DEFLATED,
                bits,
                8,
                z::Z_DEFAULT_STRATEGY,
                z::zlibVersion(),
                size,
            )
        };
        match code {
            z::Z_OK => Ok(Self { stream }),
            z::Z_MEM_ERROR => Err(InflateError::Memory),
            _ => Err(InflateError::Misuse),
        }
    }

    /// Encodes `input`, appending to `output`.
    pub fn push(&mut self, mut input: &[u8], flush: Flush, output: &mut Vec<u8>) -> Result<(), InflateError> {
        let flush = match flush {
            Flush::None => z::Z_NO_FLUSH,
            Flush::Sync => z::Z_SYNC_FLUSH,
            Flush::Full => z::Z_FULL_FLUSH,
            Flush::End => z::Z_FINISH,
        };
        let mut room = [0; 16 << 10];
        loop {
            let taken = u32::try_from(input.len()).unwrap_or(u32::MAX);
            let whole = taken as usize == input.len();
            self.stream.next_in = input.as_ptr();
            self.stream.avail_in = taken;
            self.stream.next_out = room.as_mut_ptr();
            self.stream.avail_out = 16 << 10;
            // SAFETY: the stream is initialised and ended in `drop` only; input and output are live slices
            // at least as long as said.
            let code =
                unsafe { z::deflate(&raw mut *self.stream, if whole { flush } else { z::Z_NO_FLUSH }) };
            let (left, free) = (self.stream.avail_in, self.stream.avail_out);
            self.stream.next_in = std::ptr::null();
            self.stream.next_out = std::ptr::null_mut();
            output.extend_from_slice(&room[..room.len() - free as usize]);
            input = &input[(taken - left) as usize..];
            match code {
                z::Z_OK | z::Z_BUF_ERROR if free > 0 && input.is_empty() => return Ok(()),
                z::Z_OK => {}
                z::Z_STREAM_END => return Ok(()),
                _ => return Err(InflateError::Misuse),
            }
        }
    }
}

impl Drop for Deflate {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, ended here and nowhere else.
        let _ = unsafe { z::deflateEnd(&raw mut *self.stream) }; // says only that input was left
    }
}

impl std::fmt::Debug for Deflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Deflate").finish_non_exhaustive()
    }
}

/// Returns the whole input as one stream.
pub fn compress(input: &[u8], wrap: Wrap, level: u8) -> Result<Vec<u8>, InflateError> {
    let mut output = Vec::new();
    Deflate::new(wrap, level)?.push(input, Flush::End, &mut output)?;
    Ok(output)
}
