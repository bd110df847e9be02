//! What follows the members of a tar, without a table that lies there.
//!
//! BuildKit writes a layer's tar to its end, zero blocks included, and then the table as one more member with zero
//! blocks of its own (`AppendTarLossLess` and `WriteTOCAndFooter` of stargz-snapshotter): readers of the tar stop before
//! it. It is known by its header, at the beginning of a block, and what goes with it is its padding and, if nothing else
//! follows, two zero blocks.

use format::stargz::TOC_NAME;
use format::tar::{MemberKind, Parser, Step};

use super::RecodeError;
use super::members::BLOCK;
use super::names::clean;

/// What ends a tar.
const END: [u8; 2 * BLOCK] = [0; 2 * BLOCK];

/// Passes on the tail of a tar.
#[derive(Debug)]
pub(super) struct Tail {
    /// A block that is not whole.
    block: Vec<u8>,
    /// Bytes of a table that are to come.
    table: u64,
    /// After a table: how many zeros have come that may be its end.
    zeros: Option<usize>,
}

/// What became of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Kept,
    TakenOut,
}

/// Where bytes go.
pub(super) type Each<'a> = &'a mut dyn FnMut(&[u8], Fate) -> Result<(), RecodeError>;

impl Tail {
    pub(super) fn new() -> Self {
        Self { block: Vec::new(), table: 0, zeros: None }
    }

    /// Takes the next bytes; hands on all of them, now or later, in order.
    pub(super) fn push(&mut self, mut bytes: &[u8], each: Each<'_>) -> Result<(), RecodeError> {
        while !bytes.is_empty() {
            let taken = if self.table > 0 {
                let n = usize::try_from(self.table).unwrap_or(usize::MAX).min(bytes.len());
                each(&bytes[..n], Fate::TakenOut)?;
                self.table -= n as u64;
                n
            } else {
                let n = (BLOCK - self.block.len()).min(bytes.len());
                self.block.extend_from_slice(&bytes[..n]);
                if self.block.len() == BLOCK {
                    let block = std::mem::take(&mut self.block);
                    self.whole(&block, each)?;
                    self.block = block;
                    self.block.clear();
                }
                n
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub(super) fn finish(&mut self, each: Each<'_>) -> Result<(), RecodeError> {
        let block = std::mem::take(&mut self.block);
        match self.zeros.take() {
            Some(zeros) if zeros + block.len() <= END.len() && is_zero(&block) => {
                each(&END[..zeros + block.len()], Fate::TakenOut)
            }
            zeros => {
                each(&END[..zeros.unwrap_or(0)], Fate::Kept)?;
                each(&block, Fate::Kept)
            }
        }
    }

    fn whole(&mut self, block: &[u8], each: Each<'_>) -> Result<(), RecodeError> {
        match self.zeros {
            Some(zeros) if zeros < END.len() && is_zero(block) => {
                self.zeros = Some(zeros + BLOCK);
                return Ok(());
            }
            // Something else follows, so they were not the end.
            Some(zeros) => each(&END[..zeros], Fate::Kept)?,
            None => {}
        }
        match table(block) {
            Some(len) => {
                (self.table, self.zeros) = (len, Some(0));
                each(block, Fate::TakenOut)
            }
            None => {
                self.zeros = None;
                each(block, Fate::Kept)
            }
        }
    }
}

fn is_zero(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}

/// Returns how many bytes follow a block that is the header of a table.
fn table(block: &[u8]) -> Option<u64> {
    // Most of a tail is zeros.
    if !block.starts_with(TOC_NAME.as_bytes()) {
        return None;
    }
    match Parser::new().step(block) {
        Ok((_, Step::Member(member)))
            if member.kind == MemberKind::File && clean(&member.path) == TOC_NAME.as_bytes() =>
        {
            Some(member.payload.next_multiple_of(BLOCK as u64))
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::tar::{Archive, Entry, Variant};

    fn kept(bytes: &[u8], piece: usize) -> (Vec<u8>, usize) {
        let (mut tail, mut kept, mut gone) = (Tail::new(), Vec::new(), 0);
        let mut each = |bytes: &[u8], fate| {
            match fate {
                Fate::Kept => kept.extend_from_slice(bytes),
                Fate::TakenOut => gone += bytes.len(),
            }
            Ok(())
        };
        bytes.chunks(piece).for_each(|piece| tail.push(piece, &mut each).unwrap());
        tail.finish(&mut each).unwrap();
        (kept, gone)
    }

    #[test]
    fn a_table_goes_with_its_end_and_nothing_else_does() {
        let table = Archive::of(&[Entry::file(TOC_NAME, "{}")], Variant::Ustar).tar;
        let zeros = |n: usize| vec![0; n];
        for piece in [1, 100, 512, 700, 100_000] {
            for before in [zeros(1024), zeros(10_240), [zeros(1024), vec![7; 512]].concat()] {
                assert_eq!(kept(&before, piece), (before.clone(), 0));
                let odd = [&before[..], b"odd"].concat();
                assert_eq!(kept(&odd, piece), (odd, 0));
                let whole = [&before[..], &table].concat();
                assert_eq!(kept(&whole, piece), (before.clone(), table.len()));
                let cut = [&before[..], &table[..700]].concat();
                assert_eq!(kept(&cut, piece), (before.clone(), 700));
                let more = [&whole[..], b"x"].concat();
                let end = [&before[..], &zeros(1024), b"x"].concat();
                assert_eq!(kept(&more, piece).0, end);
                let twice = [&whole[..], &[7; 512], &table].concat();
                let between = [&before[..], &zeros(1024), &[7; 512]].concat();
                assert_eq!(
                    kept(&twice, piece),
                    (between, 2 * table.len() - 1024),
                    "and one after it as well"
                );
                // Not where a block begins.
                let shifted = [&before[..], b"x", &table].concat();
                assert_eq!(kept(&shifted, piece), (shifted, 0));
            }
        }
    }
}
