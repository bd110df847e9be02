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

/// Zero blocks that end a tar.
const END: usize = 2 * BLOCK;

/// Passes on the tail of a tar.
#[derive(Debug)]
pub(super) struct Tail {
    /// A block that is not whole, or the zeros after a table.
    held: Vec<u8>,
    part: Part,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    /// No table so far.
    Before,
    /// Inside it: so many bytes are to come.
    Table(u64),
    /// In the zeros after it.
    After,
    /// In something else after it.
    Other,
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
        Self { held: Vec::new(), part: Part::Before }
    }

    /// Takes the next bytes; hands on all of them, now or later, in order.
    pub(super) fn push(&mut self, mut bytes: &[u8], each: Each<'_>) -> Result<(), RecodeError> {
        while !bytes.is_empty() {
            let taken = match self.part {
                Part::Before => self.block(bytes, each)?,
                Part::Table(left) => {
                    let n = usize::try_from(left).unwrap_or(usize::MAX).min(bytes.len());
                    each(&bytes[..n], Fate::TakenOut)?;
                    self.part = if n as u64 == left { Part::After } else { Part::Table(left - n as u64) };
                    n
                }
                Part::After => {
                    let n = (END - self.held.len()).min(bytes.len());
                    let zeros = bytes[..n].iter().take_while(|byte| **byte == 0).count();
                    self.held.extend_from_slice(&bytes[..zeros]);
                    if zeros == 0 {
                        // Not the end of the tar.
                        self.part = Part::Other;
                        each(&std::mem::take(&mut self.held), Fate::Kept)?;
                    }
                    zeros
                }
                Part::Other => {
                    each(bytes, Fate::Kept)?;
                    bytes.len()
                }
            };
            bytes = &bytes[taken..];
        }
        Ok(())
    }

    /// Says that nothing follows.
    pub(super) fn finish(&mut self, each: Each<'_>) -> Result<(), RecodeError> {
        let fate = if self.part == Part::After { Fate::TakenOut } else { Fate::Kept };
        if self.held.is_empty() { Ok(()) } else { each(&self.held, fate) }
    }

    /// Looks at whole blocks, or collects one.
    fn block(&mut self, bytes: &[u8], each: Each<'_>) -> Result<usize, RecodeError> {
        if self.held.is_empty() {
            let table = bytes.chunks_exact(BLOCK).position(|block| table(block).is_some());
            let n = table.map_or(bytes.len() / BLOCK, |block| block) * BLOCK;
            if n > 0 {
                each(&bytes[..n], Fate::Kept)?;
                return Ok(n);
            }
        }
        let n = (BLOCK - self.held.len()).min(bytes.len());
        self.held.extend_from_slice(&bytes[..n]);
        if self.held.len() == BLOCK {
            let block = std::mem::take(&mut self.held);
            match table(&block) {
                Some(len) => {
                    self.part = if len > 0 { Part::Table(len) } else { Part::After };
                    each(&block, Fate::TakenOut)?;
                }
                None => each(&block, Fate::Kept)?,
            }
        }
        Ok(n)
    }
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
                // Not where a block begins.
                let shifted = [&before[..], b"x", &table].concat();
                assert_eq!(kept(&shifted, piece), (shifted, 0));
            }
        }
    }
}
