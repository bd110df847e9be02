//! The lean form of a skeleton, which is what zstd gets to see: without long runs of zeros and without checksums.
//!
//! Nine tenths of a skeleton are zeros, and a header's checksum follows from its other bytes but looks random. Leaving
//! both out takes a quarter off the packed size and more than half off the time it takes to pack.
//!
//! Layout: the plain bytes are cut into pieces of [`PIECE`] bytes, and each piece is a sequence of records:
//!
//! ```text
//! varint  literals << 1 | sealed
//! bytes   the literals
//! varint  zeros that follow them
//! ```
//!
//! A sealed record begins a header block: 512 bytes, all in this piece, whose checksum field (148..156) is given as zeros
//! and stands for the sum in six octal digits, NUL, space. Varints are little-endian groups of seven bits; the top bit
//! says that more follow. A record never crosses a piece and is never empty.

use crate::tar::byte_sum;

/// Bytes of a piece: the largest block of zstd.
pub(super) const PIECE: usize = 128 << 10;

/// Shorter runs of zeros stay literals: a record costs two bytes and its literals their context.
const RUN: usize = 8;

const BLOCK: usize = 512;
const SUM: std::ops::Range<usize> = 148..156;

/// Adds the lean form of a piece to `out`.
pub(super) fn pack(piece: &mut [u8], out: &mut Vec<u8>) {
    let headers = headers(piece);
    for header in &headers {
        piece[header + SUM.start..header + SUM.end].fill(0);
    }
    let mut start = 0;
    let mut sealed = false;
    for header in headers {
        records(&piece[start..header], sealed, out);
        (start, sealed) = (header, true);
    }
    records(&piece[start..], sealed, out);
}

fn records(mut plain: &[u8], mut sealed: bool, out: &mut Vec<u8>) {
    while !plain.is_empty() {
        let (literals, zeros) = next_run(plain);
        varint(literals << 1 | usize::from(std::mem::take(&mut sealed)), out);
        out.extend_from_slice(&plain[..literals]);
        varint(zeros, out);
        plain = &plain[literals + zeros..];
    }
}

/// Returns how many bytes come before the next long run of zeros, and how long that is.
fn next_run(plain: &[u8]) -> (usize, usize) {
    let mut at = 0;
    while let Some(zero) = plain[at..].iter().position(|b| *b == 0) {
        let start = at + zero;
        let zeros = zeros(&plain[start..]);
        if zeros >= RUN {
            return (start, zeros);
        }
        at = start + zeros;
    }
    (plain.len(), 0)
}

/// Returns how many zeros come first. By far most bytes of a skeleton pass here, so it looks at many at a time.
fn zeros(bytes: &[u8]) -> usize {
    const STEP: usize = 64;
    let steps = bytes.chunks_exact(STEP).take_while(|step| step.iter().fold(0, |all, b| all | b) == 0);
    let start = steps.count() * STEP;
    bytes[start..].iter().position(|b| *b != 0).map_or(bytes.len(), |at| start + at)
}

/// Returns where blocks begin whose checksum can be left out, ascending and disjoint.
///
/// Missing one costs a few bytes. What merely looks like a header is as good as one.
fn headers(piece: &[u8]) -> Vec<usize> {
    const MAGIC: &[u8] = b"ustar";
    let mut found = Vec::new();
    let mut at = 257;
    while at < piece.len() {
        at += zeros(&piece[at..]);
        let Some(next) = piece[at..].iter().position(|b| *b == MAGIC[0] || *b == 0) else { break };
        at += next;
        if piece[at] == 0 {
            continue;
        }
        let start = at - 257;
        at += 1;
        let Some(block) = piece.get(start..start + BLOCK) else { break };
        if block[257..].starts_with(MAGIC) && block[SUM] == sum(block) {
            found.push(start);
            at = start + BLOCK + 257;
        }
    }
    found
}

/// Returns the checksum field of a block as nearly everybody writes it.
fn sum(block: &[u8]) -> [u8; 8] {
    let mut sum = byte_sum(&block[..SUM.start]) + byte_sum(&block[SUM.end..]) + 8 * u32::from(b' ');
    let mut field = *b"000000\0 ";
    for digit in field[..6].iter_mut().rev() {
        // Three bits.
        *digit += u8::try_from(sum & 7).unwrap_or(0);
        sum >>= 3;
    }
    field
}

fn varint(mut n: usize, out: &mut Vec<u8>) {
    while n >= 0x80 {
        // Seven bits.
        out.push(u8::try_from(n & 0x7f).unwrap_or(0) | 0x80);
        n >>= 7;
    }
    out.push(u8::try_from(n).unwrap_or(0));
}

/// The lean form is malformed.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Malformed;

/// Gives plain bytes back, piece by piece.
#[derive(Debug, Default)]
pub(super) struct Unpack {
    state: State,
    /// The piece, as far as it goes.
    plain: Vec<u8>,
    /// Where in it the current record begins.
    record: usize,
    /// Where sealed blocks begin in it.
    sealed: Vec<usize>,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// Before or inside the first varint of a record: its bits so far and how many.
    #[default]
    Start,
    Head(usize, u32),
    Literals(usize),
    /// Before or inside the second.
    Zeros(usize, u32),
}

impl Unpack {
    /// Takes lean bytes until they are used up or the piece is whole; says how many.
    pub(super) fn take(&mut self, lean: &[u8]) -> Result<usize, Malformed> {
        let mut rest = lean;
        while self.plain.len() < PIECE || !matches!(self.state, State::Start) {
            let Some((&byte, after)) = rest.split_first() else { break };
            self.state = match self.state {
                State::Start => self.head(0, 0, byte, &mut rest, after)?,
                State::Head(n, bits) => self.head(n, bits, byte, &mut rest, after)?,
                State::Literals(left) => {
                    let (now, later) = rest.split_at(left.min(rest.len()));
                    self.plain.extend_from_slice(now);
                    rest = later;
                    if now.len() == left { State::Zeros(0, 0) } else { State::Literals(left - now.len()) }
                }
                State::Zeros(n, bits) => {
                    rest = after;
                    match group(n, bits, byte)? {
                        (n, Some(bits)) => State::Zeros(n, bits),
                        (n, None) => {
                            self.fits(n)?;
                            self.plain.resize(self.plain.len() + n, 0);
                            // Or a few packed bytes could keep a reader busy for hours.
                            if self.plain.len() == self.record {
                                return Err(Malformed);
                            }
                            self.record = self.plain.len();
                            State::Start
                        }
                    }
                }
            };
        }
        Ok(lean.len() - rest.len())
    }

    fn head<'a>(
        &mut self,
        n: usize,
        bits: u32,
        byte: u8,
        rest: &mut &'a [u8],
        after: &'a [u8],
    ) -> Result<State, Malformed> {
        *rest = after;
        let n = match group(n, bits, byte)? {
            (n, Some(bits)) => return Ok(State::Head(n, bits)),
            (n, None) => n,
        };
        if n & 1 == 1 {
            self.sealed.push(self.plain.len());
        }
        let literals = n >> 1;
        self.fits(literals)?;
        Ok(if literals == 0 { State::Zeros(0, 0) } else { State::Literals(literals) })
    }

    fn fits(&self, n: usize) -> Result<(), Malformed> {
        if n > PIECE - self.plain.len() { Err(Malformed) } else { Ok(()) }
    }

    /// Says whether a whole piece is there.
    pub(super) fn is_whole(&self) -> bool {
        self.plain.len() == PIECE && matches!(self.state, State::Start)
    }

    /// Moves the piece to `out`: when it is whole, or after the last byte.
    pub(super) fn piece(&mut self, out: &mut Vec<u8>) -> Result<(), Malformed> {
        if !matches!(self.state, State::Start) {
            return Err(Malformed);
        }
        for start in self.sealed.drain(..) {
            let block = self.plain.get_mut(start..start + BLOCK).ok_or(Malformed)?;
            let sum = sum(block);
            block[SUM].copy_from_slice(&sum);
        }
        self.record = 0;
        out.clear();
        std::mem::swap(out, &mut self.plain);
        Ok(())
    }
}

/// Adds a group of seven bits to a varint; returns the number of bits if more follow.
fn group(n: usize, bits: u32, byte: u8) -> Result<(usize, Option<u32>), Malformed> {
    // Four groups hold more than a piece times two.
    if bits > 21 {
        return Err(Malformed);
    }
    let n = n | usize::from(byte & 0x7f) << bits;
    Ok((n, (byte & 0x80 != 0).then_some(bits + 7)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use testkit::tar::{Archive, Entry, Variant};

    fn there_and_back(plain: &[u8], step: usize) -> (usize, Vec<u8>) {
        let mut lean = Vec::new();
        plain.chunks(PIECE).for_each(|piece| pack(&mut piece.to_vec(), &mut lean));
        let (mut unpack, mut back, mut out) = (Unpack::default(), Vec::new(), Vec::new());
        for mut part in lean.chunks(step) {
            while !part.is_empty() {
                let taken = unpack.take(part).unwrap();
                part = &part[taken..];
                if unpack.is_whole() {
                    unpack.piece(&mut out).unwrap();
                    back.extend_from_slice(&out);
                }
            }
        }
        unpack.piece(&mut out).unwrap();
        back.extend_from_slice(&out);
        (lean.len(), back)
    }

    #[test]
    fn headers_lose_zeros_and_checksum() {
        let entries: Vec<_> = (0..2000).map(|n| Entry::dir(format!("directory-{n}/"))).collect();
        for variant in [Variant::Ustar, Variant::Gnu, Variant::Pax10, Variant::V7] {
            let plain = Archive::of(&entries, variant).skeleton;
            let (len, back) = there_and_back(&plain, 1000);
            assert!(back == plain);
            assert!(len < entries.len() * 110, "{variant:?} {len}");
        }
        let mut out = Vec::new();
        let mut piece = Archive::of(&entries[..1], Variant::Ustar).skeleton;
        let sum = piece[SUM].to_vec();
        pack(&mut piece, &mut out);
        assert!(!out.windows(6).any(|w| w == &sum[..6]), "the checksum is gone");
    }

    #[test]
    fn malformed_input_is_refused() {
        for bad in [
            &b"\x00\x00"[..], // nothing
            b"\x01\x00",
            b"\xff\xff\xff\xff\x01", // a number too long
            b"\xff\xff\xff\x01",     // more literals than a piece
            b"\x00\x81\x80\x08",     // more zeros than a piece
        ] {
            assert_eq!(Unpack::default().take(bad), Err(Malformed), "{bad:?}");
        }
        for cut in [&b"\x80"[..], b"\x04a", b"\x04ab", b"\x04ab\x80", b"\x05ab\x05"] {
            let mut unpack = Unpack::default();
            assert_eq!(unpack.take(cut), Ok(cut.len()));
            assert_eq!(unpack.piece(&mut Vec::new()), Err(Malformed), "{cut:?}");
        }
    }

    proptest! {
        #[test]
        fn anything_comes_back(parts in prop::collection::vec((prop::collection::vec(any::<u8>(), 0..600), 0usize..1200), 0..60), long in 0usize..300_000, step in 1usize..5000) {
            let mut plain: Vec<u8> = Vec::new();
            for (bytes, zeros) in parts {
                plain.extend_from_slice(&bytes);
                plain.resize(plain.len() + zeros, 0);
                // A header in the middle of nowhere.
                if zeros % 3 == 0 {
                    plain.extend_from_slice(&Archive::of(&[Entry::file(&bytes[..bytes.len().min(90)], "")], Variant::Ustar).tar[..512]);
                }
            }
            plain.resize(plain.len() + long, 0);
            prop_assert!(there_and_back(&plain, step).1 == plain);
        }

        #[test]
        fn noise_never_panics(lean in prop::collection::vec(any::<u8>(), 0..2000)) {
            let (mut unpack, mut out, mut rest) = (Unpack::default(), Vec::new(), &lean[..]);
            while !rest.is_empty() {
                let Ok(taken) = unpack.take(rest) else { return Ok(()) };
                rest = &rest[taken..];
                if unpack.is_whole() && unpack.piece(&mut out).is_err() { return Ok(()) }
            }
            let _ = unpack.piece(&mut out);
        }
    }
}
