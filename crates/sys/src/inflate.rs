//! Resumable inflate: raw deflate and gzip members, with stops between blocks.
//!
//! A thin, safe skin over zlib-rs, for two uses that ordinary decoders do not offer: to learn where each
//! deflate block begins while decoding (a place to start from later), and to begin at such a place, which is
//! a bit position, the byte it lies in and the 32 KiB of output before it.
//!
//! Promises: reads and writes the caller's slices only; any input gives output or an error, never undefined
//! behaviour; output is complete, that is, whatever the input given so far determines is written as long as
//! there is room. Checks CRC-32 and length of gzip members. Knows nothing of members that follow each other:
//! at [`At::End`] the caller decides whether to [`Inflate::reset`] and go on.

use std::ffi::{CStr, c_int};
use std::mem::size_of;

use libz_rs_sys as z;

/// Bytes of earlier output that a deflate stream can refer to.
pub const WINDOW: usize = 32 << 10;

/// What surrounds the deflate stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Wrap {
    /// Nothing (RFC 1951).
    Raw,
    /// The header and trailer of one gzip member (RFC 1952).
    Gzip,
}

impl Wrap {
    /// Returns zlib's `windowBits`: negative for raw, 16 more for gzip; always the largest window.
    const fn window_bits(self) -> c_int {
        match self {
            Self::Raw => -15,
            Self::Gzip => 31,
        }
    }
}

/// When a [`Inflate::step`] returns although there is input and room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Only at the end of the stream.
    Never,
    /// Before the first block of a gzip member, and after each block.
    Blocks,
}

/// Where a [`Inflate::step`] stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum At {
    /// Out of input or out of room.
    Inside,
    /// Between two blocks, or before the first one. Reported once for each such place.
    Block,
    /// After the last block, before the trailer of a gzip member. Reported once.
    LastBlock,
    /// At the end of the stream; a gzip member's checksum and length were right.
    End,
}

/// What a [`Inflate::step`] did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Step {
    /// Bytes of input consumed.
    pub read: usize,
    /// Bytes of output written.
    pub written: usize,
    /// Where it stopped.
    pub at: At,
}

/// Why input cannot be inflated.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InflateError {
    /// The bytes are not what was announced; holds zlib's words for it.
    #[error("not a valid deflate stream: {0}")]
    Data(String),
    /// The call does not fit the state: a dictionary for gzip, more than 7 bits to begin with.
    #[error("inflate was used out of order")]
    Misuse,
    /// No memory for the decoder's state (some 40 KiB).
    #[error("out of memory for inflate")]
    Memory,
}

/// A decoder that can begin, stop and go on between any two deflate blocks.
pub struct Inflate {
    /// Boxed: zlib takes its address, so it must not move while in use.
    stream: Box<z::z_stream>,
    wrap: Wrap,
}

// SAFETY: the stream owns its state, which came from Rust's global allocator and refers to nothing of the
// thread that made it; pointers into callers' slices are dead once `step` has returned.
unsafe impl Send for Inflate {}

impl Inflate {
    /// Returns a decoder at the beginning of a stream.
    pub fn new(wrap: Wrap) -> Result<Self, InflateError> {
        let mut stream = Box::new(z::z_stream::default());
        // A struct of some 110 bytes.
        let size = c_int::try_from(size_of::<z::z_stream>()).map_err(|_| InflateError::Misuse)?;
        // SAFETY: the stream is a valid, initialised `z_stream` with null buffers and the default allocator;
        // version and size are those of the very crate that is called.
        let code = unsafe { z::inflateInit2_(&raw mut *stream, wrap.window_bits(), z::zlibVersion(), size) };
        match code {
            z::Z_OK => Ok(Self { stream, wrap }),
            z::Z_MEM_ERROR => Err(InflateError::Memory),
            _ => Err(InflateError::Misuse),
        }
    }

    /// Forgets everything and stands at the beginning of a stream again, keeping the memory.
    pub fn reset(&mut self, wrap: Wrap) -> Result<(), InflateError> {
        // SAFETY: `self.stream` was initialised by `inflateInit2_` in `new` and is ended in `drop` only.
        let code = unsafe { z::inflateReset2(&raw mut *self.stream, wrap.window_bits()) };
        self.wrap = wrap;
        self.done(code)
    }

    /// Stands at a place inside a raw deflate stream, between two blocks.
    ///
    /// `bits` (0..=7) highest bits of `byte` belong to what follows; the input of the next step begins with
    /// the byte after it. `window` is the output before that place: its last [`WINDOW`] bytes count.
    pub fn resume(&mut self, bits: u8, byte: u8, window: &[u8]) -> Result<(), InflateError> {
        self.reset(Wrap::Raw)?;
        self.prime(bits, byte)?;
        self.set_dictionary(window)
    }

    /// Puts the `bits` (0..=7) highest bits of `byte` before the input.
    ///
    /// Makes sense only right after a raw [`Inflate::reset`], or [`Inflate::resume`] without bits for those who
    /// get the byte later than the window.
    pub fn prime(&mut self, bits: u8, byte: u8) -> Result<(), InflateError> {
        match bits {
            0 => return Ok(()),
            1..=7 => {}
            _ => return Err(InflateError::Misuse),
        }
        let value = c_int::from(byte >> (8 - bits));
        // SAFETY: `self.stream` was initialised by `inflateInit2_` in `new` and is ended in `drop` only.
        let code = unsafe { z::inflatePrime(&raw mut *self.stream, c_int::from(bits), value) };
        self.done(code)
    }

    /// Gives a raw stream the output before it; right after a raw reset only.
    fn set_dictionary(&mut self, window: &[u8]) -> Result<(), InflateError> {
        let window = &window[window.len().saturating_sub(WINDOW)..];
        let len = u32::try_from(window.len()).map_err(|_| InflateError::Misuse)?;
        if len == 0 {
            return Ok(());
        }
        // SAFETY: the stream is initialised (as above); pointer and length are those of a live slice, which
        // zlib copies.
        let code = unsafe { z::inflateSetDictionary(&raw mut *self.stream, window.as_ptr(), len) };
        self.done(code)
    }

    /// Decodes from `input` into `output` until one is used up, a block ends (if asked), or the stream ends.
    ///
    /// A step may consume all input although output is still to come: call again with room until it writes
    /// nothing. After an error the decoder is good for [`Inflate::reset`] and [`Inflate::resume`] only.
    pub fn step(&mut self, input: &[u8], output: &mut [u8], stop: Stop) -> Result<Step, InflateError> {
        // zlib counts in 32 bits. A longer slice is simply used in part: the result says how much.
        let (avail_in, avail_out) = (clamp(input.len()), clamp(output.len()));
        let flush = match stop {
            Stop::Never => z::Z_NO_FLUSH,
            Stop::Blocks => z::Z_BLOCK,
        };
        self.stream.next_in = input.as_ptr();
        self.stream.avail_in = avail_in;
        self.stream.next_out = output.as_mut_ptr();
        self.stream.avail_out = avail_out;
        // SAFETY: the stream is initialised (as above); `next_in` and `next_out` are the starts of live
        // slices, exclusively borrowed in the case of the output, and at least `avail_*` bytes long.
        let code = unsafe { z::inflate(&raw mut *self.stream, flush) };
        let step = Step {
            read: used(avail_in, self.stream.avail_in),
            written: used(avail_out, self.stream.avail_out),
            at: self.place(code),
        };
        // The slices end with this call, so their addresses must not outlive it.
        self.stream.next_in = std::ptr::null();
        self.stream.avail_in = 0;
        self.stream.next_out = std::ptr::null_mut();
        self.stream.avail_out = 0;
        match code {
            // A buffer error only says that nothing could be done.
            z::Z_OK | z::Z_STREAM_END | z::Z_BUF_ERROR => Ok(step),
            z::Z_NEED_DICT => Err(InflateError::Data("needs a preset dictionary".into())),
            z::Z_DATA_ERROR => Err(InflateError::Data(self.message())),
            z::Z_MEM_ERROR => Err(InflateError::Memory),
            _ => Err(InflateError::Misuse),
        }
    }

    /// Returns how many bits were taken from the input but not used.
    ///
    /// At [`At::Block`] the place is this many bits before the end of the input consumed so far. zlib says
    /// fewer than 8 there; count in bits and it does not matter.
    pub fn unused_bits(&self) -> u8 {
        (self.stream.data_type & 63).unsigned_abs().try_into().unwrap_or(0)
    }

    /// Returns how many bytes have been written since the last reset.
    pub fn written(&self) -> u64 {
        self.stream.total_out
    }

    /// Reads the stop from zlib's `data_type`: 128 is set right after a block or header, 64 in the last block.
    fn place(&self, code: c_int) -> At {
        match (code, self.stream.data_type & 128 != 0, self.stream.data_type & 64 != 0) {
            (z::Z_STREAM_END, _, _) => At::End,
            (_, true, false) => At::Block,
            (_, true, true) => At::LastBlock,
            (_, false, _) => At::Inside,
        }
    }

    fn done(&self, code: c_int) -> Result<(), InflateError> {
        match code {
            z::Z_OK => Ok(()),
            z::Z_MEM_ERROR => Err(InflateError::Memory),
            _ => Err(InflateError::Misuse),
        }
    }

    fn message(&self) -> String {
        if self.stream.msg.is_null() {
            return "corrupt".into();
        }
        // SAFETY: zlib-rs points `msg` at a NUL-terminated string constant whenever it is not null.
        unsafe { CStr::from_ptr(self.stream.msg) }.to_string_lossy().into_owned()
    }
}

impl Drop for Inflate {
    fn drop(&mut self) {
        // SAFETY: initialised in `new`, ended here and nowhere else.
        let _ = unsafe { z::inflateEnd(&raw mut *self.stream) }; // fails for a foreign stream only
    }
}

impl std::fmt::Debug for Inflate {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inflate").field("wrap", &self.wrap).finish_non_exhaustive()
    }
}

fn clamp(len: usize) -> u32 {
    u32::try_from(len).unwrap_or(u32::MAX)
}

/// Difference of two counts of one buffer's bytes, of which the second is never larger.
fn used(before: u32, after: u32) -> usize {
    before.saturating_sub(after) as usize
}

#[cfg(test)]
#[path = "inflate_tests.rs"]
mod tests;
