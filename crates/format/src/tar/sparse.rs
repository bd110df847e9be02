//! Maps of sparse files: old GNU headers and the text that begins the data of version 1.0.

use super::TarProblem;
use super::header::{BLOCK, Block, number};
use crate::limits;
use crate::payload::Piece;

/// Adds the pieces of an old GNU sparse table of `room` places at `start`.
///
/// The table ends at the first offset that begins with a NUL, as in GNU tar, libarchive and Go.
pub(super) fn old_pieces(
    block: &Block,
    start: usize,
    room: usize,
    pieces: &mut Vec<Piece>,
) -> Result<(), TarProblem> {
    for entry in block[start..start + 24 * room].chunks_exact(24) {
        if entry[0] == 0 {
            break;
        }
        let part = |field| {
            number(field).and_then(|n| u64::try_from(n).ok()).ok_or(TarProblem::Number("sparse piece"))
        };
        push(pieces, Piece { at: part(&entry[..12])?, len: part(&entry[12..])? })?;
    }
    Ok(())
}

fn push(pieces: &mut Vec<Piece>, piece: Piece) -> Result<(), TarProblem> {
    if pieces.len() >= limits::SPARSE_PIECES {
        return Err(TarProblem::TooLarge { what: "a sparse map", limit: limits::SPARSE_PIECES as u64 });
    }
    pieces.push(piece);
    Ok(())
}

/// Checks a map against the length of its file and of its payload.
pub(super) fn check(pieces: &[Piece], size: u64, payload: u64) -> Result<(), TarProblem> {
    let (mut end, mut sum) = (0u64, 0u64);
    for piece in pieces {
        if piece.at < end {
            return Err(TarProblem::Sparse("pieces overlap or are out of order"));
        }
        end = piece.at.saturating_add(piece.len);
        if end > size {
            return Err(TarProblem::Sparse("a piece lies past the end of the file"));
        }
        // Disjoint and below `size`, so the sum is, too.
        sum += piece.len;
    }
    if sum != payload {
        return Err(TarProblem::Sparse("the pieces are not as long as the payload"));
    }
    Ok(())
}

/// A sparse map of version 1.0: decimal numbers, each ended by a newline: how many pieces, then offset and
/// length of each. It fills whole blocks.
#[derive(Debug, Default)]
pub(super) struct TextMap {
    /// The digits of a number that is not ended yet.
    digits: Option<u64>,
    /// How many pieces there will be; unknown before the first number.
    count: Option<u64>,
    offset: Option<u64>,
    pieces: Vec<Piece>,
}

impl TextMap {
    /// Takes a block; returns the pieces once they are complete.
    pub(super) fn block(&mut self, block: &Block) -> Result<Option<Vec<Piece>>, TarProblem> {
        debug_assert_eq!(block.len(), BLOCK);
        for byte in block {
            match byte {
                b'0'..=b'9' => {
                    let digit = u64::from(byte - b'0');
                    let n = self.digits.unwrap_or(0).checked_mul(10).and_then(|n| n.checked_add(digit));
                    self.digits = Some(n.ok_or(TarProblem::Number("sparse map"))?);
                }
                b'\n' => {
                    let n = self.digits.take().ok_or(TarProblem::Sparse("a line is empty"))?;
                    if self.number(n)? {
                        return Ok(Some(std::mem::take(&mut self.pieces)));
                    }
                }
                _ => return Err(TarProblem::Sparse("it holds something else than numbers")),
            }
        }
        Ok(None)
    }

    /// Takes a number; says whether it was the last.
    fn number(&mut self, n: u64) -> Result<bool, TarProblem> {
        let Some(count) = self.count else {
            if n > limits::SPARSE_PIECES as u64 {
                return Err(TarProblem::TooLarge {
                    what: "a sparse map",
                    limit: limits::SPARSE_PIECES as u64,
                });
            }
            self.count = Some(n);
            return Ok(n == 0);
        };
        match self.offset.take() {
            None => self.offset = Some(n),
            Some(at) => push(&mut self.pieces, Piece { at, len: n })?,
        }
        Ok(self.pieces.len() as u64 == count)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn block(text: &[u8]) -> Block {
        let mut block = [0; BLOCK];
        block[..text.len()].copy_from_slice(text);
        block
    }

    #[test]
    fn text_maps_end_with_their_last_number() {
        let mut map = TextMap::default();
        let pieces = map.block(&block(b"2\n0\n5\n4096\n0\nnoise")).unwrap().unwrap();
        assert_eq!(pieces, [Piece { at: 0, len: 5 }, Piece { at: 4096, len: 0 }]);
        assert_eq!(TextMap::default().block(&block(b"0\n")), Ok(Some(vec![])));
        for bad in
            [&b"\n"[..], b"2\n0\n\n", b"-1\n", b"1 \n", b"1048577\n", b"18446744073709551616\n", b"2\n0\n5\n"]
        {
            assert!(TextMap::default().block(&block(bad)).is_err(), "{:?}", bad.escape_ascii().to_string());
        }
    }

    #[test]
    fn text_maps_span_blocks() {
        let text: Vec<u8> = std::iter::once("100\n".to_owned())
            .chain((0..100).map(|n| format!("{}\n7\n", n * 4096)))
            .collect::<String>()
            .into_bytes();
        let mut map = TextMap::default();
        let mut found = None;
        for chunk in text.chunks(BLOCK) {
            assert!(found.is_none());
            found = map.block(&block(chunk)).unwrap();
        }
        assert_eq!(found.map(|p| p.len()), Some(100));
    }

    #[test]
    fn maps_must_fit_their_file_and_payload() {
        let p = |at, len| Piece { at, len };
        assert_eq!(check(&[p(0, 5), p(5, 5), p(20, 0)], 20, 10), Ok(()));
        assert_eq!(check(&[], 1 << 40, 0), Ok(()));
        for (pieces, size, payload) in [
            (&[p(0, 5), p(4, 5)][..], 20, 10),
            (&[p(5, 5), p(0, 5)], 20, 10),
            (&[p(0, 5), p(16, 5)], 20, 10),
            (&[p(u64::MAX, 5)], 20, 5),
            (&[p(0, 5)], 20, 6),
            (&[], 20, 1),
        ] {
            assert!(check(pieces, size, payload).is_err(), "{pieces:?} {size} {payload}");
        }
    }
}
