//! Small windows for starts inside gzip members.
//!
//! What follows a place refers to a few KiB of the 32 KiB before it, and a decoder does not say to which. Two
//! test decodes tell: one from window A, one from window B, whose bytes differ everywhere. Output that differs
//! came from the window; the two bytes together spell the position. All other bytes of the window become zero
//! and cost nothing once compressed.
//!
//! The same comparison proves the start. What a decoder does follows from the compressed bytes alone, never from
//! what it copies: each byte that comes out is either in them, the same from A as from B and then the real one, or
//! a copy from a position that A and B spell, at which the window must hold the real one. Only the first 32 KiB
//! after a place can refer to the window.

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
    /// The real window, at the end.
    real: Box<[u8; WINDOW]>,
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
            real: Box::new([0; WINDOW]),
            compressor,
        })
    }

    /// Returns the compressed sparse window of a place, empty if nothing refers to it; or nothing if no decoder
    /// can begin there after all.
    pub(crate) fn prove(&mut self, probe: &Probe<'_>) -> Option<Box<[u8]>> {
        let sparse = if probe.window.is_empty() { self.without(probe)? } else { self.sparse(probe)? };
        if sparse.is_empty() {
            return Some(Box::default());
        }
        self.compressor.compress(&sparse).ok().map(Vec::into_boxed_slice)
    }

    /// A place with nothing before it: returns the empty window if the real output comes out.
    fn without(&mut self, probe: &Probe<'_>) -> Option<Vec<u8>> {
        let out = &mut self.from_a[..probe.output.len()];
        decode(&mut self.unpacker, probe, &[], out)?;
        (*out == *probe.output).then(Vec::new)
    }

    /// Returns the window from the first byte that is referred to, other bytes set to zero, if the real output
    /// comes out of it.
    fn sparse(&mut self, probe: &Probe<'_>) -> Option<Vec<u8>> {
        let len = probe.output.len();
        decode(&mut self.unpacker, probe, &self.a, &mut self.from_a[..len])?;
        decode(&mut self.unpacker, probe, &self.b, &mut self.from_b[..len])?;
        let unknown = WINDOW - probe.window.len();
        self.real[unknown..].copy_from_slice(probe.window);
        let mut sparse = Box::new([0; WINDOW]);
        let mut first = WINDOW;
        // Most bytes do not differ, so compare eight at a time; outputs are whole windows but for the very last.
        let (a, b) = (self.from_a[..len].chunks(LANE), self.from_b[..len].chunks(LANE));
        for ((a, b), real) in a.zip(b).zip(probe.output.chunks(LANE)) {
            let (lane_a, lane_b) = (lane(a), lane(b));
            if lane_a == lane_b {
                // No byte of the window in it.
                if lane_a != lane(real) {
                    return None;
                }
                continue;
            }
            // Whether a byte differs is anybody's guess, so guess nothing: look all eight up, without a branch.
            let mut wrong = 0;
            for ((&a, &b), &real) in a.iter().zip(b).zip(real) {
                let position = usize::from(b & 127) << 8 | usize::from(a);
                let (copied, held) = (a != b, sparse[position]);
                wrong |= real ^ if copied { self.real[position] } else { a };
                sparse[position] = if copied { real } else { held };
                first = first.min(if copied { position } else { WINDOW });
            }
            if wrong != 0 {
                return None;
            }
        }
        // A place that refers to what was never there cannot be used.
        (first >= unknown).then(|| sparse[first..].to_vec())
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

#[cfg(test)]
mod tests {
    use super::*;
    use sys::deflate::compress;
    use sys::inflate::Wrap;

    /// A place inside a gzip member, with everything around it.
    struct Place {
        bits: u8,
        window: Vec<u8>,
        packed: Vec<u8>,
        output: Vec<u8>,
    }

    impl Place {
        fn probe(&self) -> Probe<'_> {
            Probe { bits: self.bits, window: &self.window, packed: &self.packed, output: &self.output }
        }
    }

    /// The places of a text that refers back and forth.
    fn places() -> Vec<Place> {
        let words = |n: u32| format!("{:x} {} ", n.wrapping_mul(n) % 7919, n % 613).into_bytes();
        let plain: Vec<u8> = (0..60_000).flat_map(words).collect();
        let packed = compress(&plain, Wrap::Gzip, 6).unwrap();
        let (mut unpacker, mut room) = (Unpacker::new(Codec::Gzip).unwrap(), vec![0; plain.len()]);
        let (mut read, mut written, mut places) = (0, 0, Vec::new());
        while written < plain.len() {
            let step = unpacker.step(&packed[read..], &mut room, true).unwrap();
            (read, written) = (read + step.read, written + step.written);
            let Some(place) = step.place else { continue };
            let bit = read * 8 - usize::from(place.bits);
            places.push(Place {
                bits: u8::try_from((8 - bit % 8) % 8).unwrap(),
                window: plain[written - place.window..written].to_vec(),
                packed: packed[bit / 8..].to_vec(),
                output: plain[written..plain.len().min(written + WINDOW)].to_vec(),
            });
        }
        places
    }

    #[test]
    fn a_sparse_window_suffices_and_every_byte_of_it_is_needed() {
        let mut prober = Prober::new().unwrap();
        let mut with_window = 0;
        for place in places() {
            let packed = prober.prove(&place.probe()).unwrap();
            if packed.is_empty() {
                continue;
            }
            with_window += 1;
            let sparse = zstd::bulk::decompress(&packed, WINDOW).unwrap();
            let unpacked = |window: &[u8]| {
                let mut out = vec![0; place.output.len()];
                decode(&mut Unpacker::new(Codec::Gzip).unwrap(), &place.probe(), window, &mut out)
                    .map(|()| out)
            };
            assert!(unpacked(&sparse).as_ref() == Some(&place.output));
            let kept: Vec<_> = (0..sparse.len()).filter(|n| sparse[*n] != 0).collect();
            assert!(kept.len() < WINDOW / 2, "{} bytes", kept.len());
            for position in kept.iter().step_by(97) {
                let mut without = sparse.clone();
                without[*position] = 0;
                assert!(
                    unpacked(&without).as_ref() != Some(&place.output),
                    "byte {position} is kept for nothing"
                );
            }
        }
        assert!(with_window > 3);
    }

    #[test]
    fn what_does_not_fit_together_is_refused() {
        let mut prober = Prober::new().unwrap();
        let places = places();
        let place = &places[places.len() / 2];
        assert!(prober.prove(&place.probe()).is_some());
        let refused = |probe: Probe<'_>, prober: &mut Prober| assert!(prober.prove(&probe).is_none());
        refused(Probe { bits: (place.bits + 1) % 8, ..place.probe() }, &mut prober);
        refused(Probe { packed: &place.packed[1..], ..place.probe() }, &mut prober);
        refused(Probe { packed: &place.packed[..100], ..place.probe() }, &mut prober);
        refused(Probe { window: &[], ..place.probe() }, &mut prober);
        refused(Probe { window: &place.window[WINDOW / 2..], ..place.probe() }, &mut prober);
        let shifted: Vec<u8> = place.window.iter().map(|byte| byte ^ 1).collect();
        refused(Probe { window: &shifted, ..place.probe() }, &mut prober);
        for at in [0, 1, 7, 1000, WINDOW - 1] {
            let mut output = place.output.clone();
            output[at] ^= 1;
            refused(Probe { output: &output, ..place.probe() }, &mut prober);
        }
    }
}
