//! Small windows for starts inside gzip members.
//!
//! What follows a place refers to a few KiB of the 32 KiB before it, and a decoder does not say to which. Two
//! test decodes tell: one from window A, one from window B, whose bytes differ everywhere. Output that differs
//! came from the window; the two bytes together spell the position. All other bytes of the window become zero
//! and cost nothing once compressed. Only the first 32 KiB after a place can refer to the window, so a decode
//! of as much from the sparse window, compared with the real output, proves the start for good.

use format::index::Codec;
use format::unpack::{UnpackError, Unpacker};
use sys::inflate::WINDOW;

/// Compression level of windows. On a Debian base and 70,000 small files, windows at level 3 are 1.06 times as
/// large as at 9 and 1.09 times as large as at 19, and the whole build takes 0.88 and 0.35 of the time.
const LEVEL: i32 = 3;

/// A place and what surrounds it, as much as a test decode needs.
#[derive(Debug, Clone)]
pub(crate) struct Probe<'a> {
    /// How many highest bits of the first packed byte are needed; 0 for all of it.
    pub(crate) bits: u8,
    /// The output before the place that may be referred to.
    pub(crate) window: &'a [u8],
    /// The compressed bytes from the place on.
    pub(crate) packed: &'a [u8],
    /// The output after the place: up to [`WINDOW`] bytes, fewer only at the end of the blob.
    pub(crate) output: &'a [u8],
}

/// Test decodes, with their memory.
pub(crate) struct Prober {
    unpacker: Unpacker,
    a: Box<[u8]>,
    b: Box<[u8]>,
    from_a: Vec<u8>,
    from_b: Vec<u8>,
    compressor: zstd::bulk::Compressor<'static>,
}

impl Prober {
    pub(crate) fn new() -> Result<Self, UnpackError> {
        let compressor =
            zstd::bulk::Compressor::new(LEVEL).map_err(|error| UnpackError::Zstd(error.to_string()))?;
        // Position i as two bytes: A holds its low eight bits; B the high seven, with the top bit set to the
        // opposite of A's, so that A and B differ everywhere.
        let low = |i: usize| i.to_le_bytes()[0];
        let high = |i: usize| (i >> 8).to_le_bytes()[0];
        Ok(Self {
            unpacker: Unpacker::new(Codec::Gzip)?,
            a: (0..WINDOW).map(low).collect(),
            b: (0..WINDOW).map(|i| if low(i) < 128 { high(i) | 128 } else { high(i) }).collect(),
            from_a: vec![0; WINDOW],
            from_b: vec![0; WINDOW],
            compressor,
        })
    }

    /// Returns the compressed sparse window of a place, empty if nothing refers to it; or nothing if no decoder
    /// can begin there after all.
    pub(crate) fn prove(&mut self, probe: &Probe<'_>) -> Option<Box<[u8]>> {
        let sparse = if probe.window.is_empty() { Vec::new() } else { self.sparse(probe)? };
        let out = &mut self.from_a[..probe.output.len()];
        decode(&mut self.unpacker, probe, &sparse, out)?;
        if *out != *probe.output {
            return None;
        }
        if sparse.is_empty() {
            return Some(Box::default());
        }
        self.compressor.compress(&sparse).ok().map(Vec::into_boxed_slice)
    }

    /// Returns the window from the first byte that is referred to, other bytes set to zero.
    fn sparse(&mut self, probe: &Probe<'_>) -> Option<Vec<u8>> {
        let len = probe.output.len();
        decode(&mut self.unpacker, probe, &self.a, &mut self.from_a[..len])?;
        decode(&mut self.unpacker, probe, &self.b, &mut self.from_b[..len])?;
        let unknown = WINDOW - probe.window.len();
        let mut sparse = vec![0; probe.window.len()];
        let mut first = sparse.len();
        // Most bytes do not differ, so compare eight at a time; outputs are whole windows but for the very last.
        let (a, b) = (self.from_a[..len].chunks(LANE), self.from_b[..len].chunks(LANE));
        for (a, b) in a.zip(b).filter(|(a, b)| lane(a) != lane(b)) {
            for (&a, &b) in a.iter().zip(b).filter(|(a, b)| a != b) {
                let position = usize::from(b & 127) << 8 | usize::from(a);
                // A place that refers to what was never there cannot be used.
                let position = position.checked_sub(unknown)?;
                sparse[position] = probe.window[position];
                first = first.min(position);
            }
        }
        Some(sparse.split_off(first))
    }
}

/// Bytes compared at once.
const LANE: usize = 8;

/// Returns up to eight bytes as a number.
fn lane(bytes: &[u8]) -> u64 {
    match bytes.try_into() {
        Ok(whole) => u64::from_ne_bytes(whole),
        Err(_) => bytes.iter().fold(1, |n, b| n << 8 | u64::from(*b)),
    }
}

/// Fills `out` from a place; nothing if that much does not come out.
fn decode(unpacker: &mut Unpacker, probe: &Probe<'_>, window: &[u8], out: &mut [u8]) -> Option<()> {
    unpacker.enter(probe.bits, window).ok()?;
    let (mut packed, mut filled) = (probe.packed, 0);
    while filled < out.len() {
        let step = unpacker.step(packed, &mut out[filled..], false).ok()?;
        if step.read == 0 && step.written == 0 {
            return None;
        }
        packed = &packed[step.read..];
        filled += step.written;
    }
    Some(())
}
