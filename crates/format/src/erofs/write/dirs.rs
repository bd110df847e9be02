//! Directory blocks: entries in byte order of their names, "." and ".." among them.

use std::collections::BTreeMap;

use zerocopy::IntoBytes;
use zerocopy::little_endian::{U16, U64};

use crate::erofs::disk::{BLOCK, Dirent};
use crate::name::Name;
use crate::tree::InodeNo;

/// How long a directory is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Len {
    /// Blocks before the last.
    pub(super) full: u32,
    /// Bytes in the last block: at least those of "." and "..".
    pub(super) tail: usize,
}

impl Len {
    /// Returns the size as `stat` tells it.
    pub(super) fn size(self) -> u64 {
        u64::from(self.full) * BLOCK as u64 + self.tail as u64
    }
}

/// Returns how long the directory with these entries is.
pub(super) fn measure(entries: &BTreeMap<Name, InodeNo>) -> Len {
    let mut len = Len { full: 0, tail: 0 };
    for (name, ()) in with_dots(entries.keys().map(|name| (name.as_bytes(), ())), (), ()) {
        let size = size_of::<Dirent>() + name.len();
        if len.tail + size > BLOCK {
            len = Len { full: len.full + 1, tail: 0 };
        }
        len.tail += size;
    }
    len
}

/// An entry to write: nid and file type.
pub(super) type Target = (u32, u8);

/// Writes a directory; `block(n)` gives the room for its block `n`, zeroed.
pub(super) fn write<'a, 'b>(
    entries: impl Iterator<Item = (&'a [u8], Target)>,
    itself: Target,
    parent: Target,
    mut emit: impl FnMut(u32, &[u8]) + 'b,
) {
    let mut block = Block::default();
    let mut number = 0;
    for (name, target) in with_dots(entries, itself, parent) {
        if block.len() + size_of::<Dirent>() + name.len() > BLOCK {
            emit(number, block.finish());
            number += 1;
            block.clear();
        }
        block.push(name, target);
    }
    emit(number, block.finish());
}

/// One block in the making.
#[derive(Default)]
struct Block {
    targets: Vec<(Target, usize)>,
    names: Vec<u8>,
    bytes: Vec<u8>,
}

impl Block {
    fn len(&self) -> usize {
        self.targets.len() * size_of::<Dirent>() + self.names.len()
    }

    fn push(&mut self, name: &[u8], target: Target) {
        self.targets.push((target, self.names.len()));
        self.names.extend_from_slice(name);
    }

    fn finish(&mut self) -> &[u8] {
        let base = self.targets.len() * size_of::<Dirent>();
        for &((nid, file_type), at) in &self.targets {
            // Below the size of a block.
            let name_offset = U16::new(u16::try_from(base + at).unwrap_or(u16::MAX));
            let dirent = Dirent { nid: U64::new(u64::from(nid)), name_offset, file_type, reserved: 0 };
            self.bytes.extend_from_slice(dirent.as_bytes());
        }
        self.bytes.extend_from_slice(&self.names);
        &self.bytes
    }

    fn clear(&mut self) {
        self.targets.clear();
        self.names.clear();
        self.bytes.clear();
    }
}

/// Puts "." and ".." at their places in byte order: "!" comes before them.
fn with_dots<'a, T>(
    entries: impl Iterator<Item = (&'a [u8], T)>,
    itself: T,
    parent: T,
) -> impl Iterator<Item = (&'a [u8], T)> {
    let mut entries = entries.peekable();
    let mut dots = [(&b"."[..], itself), (&b".."[..], parent)].into_iter().peekable();
    std::iter::from_fn(move || match (dots.peek(), entries.peek()) {
        (Some((dot, _)), Some((name, _))) if name < dot => entries.next(),
        (Some(_), _) => dots.next(),
        (None, _) => entries.next(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(names: &[&[u8]]) -> BTreeMap<Name, InodeNo> {
        (7..).zip(names).map(|(n, name)| (Name::parse(name).unwrap(), InodeNo(n))).collect()
    }

    fn blocks(entries: &BTreeMap<Name, InodeNo>) -> Vec<Vec<u8>> {
        let mut blocks = Vec::new();
        let entries = entries.iter().map(|(name, n)| (name.as_bytes(), (n.0, 1)));
        write(entries, (1, 2), (3, 2), |n, bytes| {
            assert_eq!(n as usize, blocks.len());
            blocks.push(bytes.to_vec());
        });
        blocks
    }

    #[test]
    fn an_empty_directory_has_two_entries() {
        let entries = names(&[]);
        assert_eq!(measure(&entries), Len { full: 0, tail: 27 });
        let mut bytes = [0; 27];
        bytes[..12].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0, 24, 0, 2, 0]);
        bytes[12..24].copy_from_slice(&[3, 0, 0, 0, 0, 0, 0, 0, 25, 0, 2, 0]);
        bytes[24..].copy_from_slice(b"...");
        assert_eq!(blocks(&entries), [bytes]);
    }

    #[test]
    fn dots_are_sorted_in() {
        let blocks =
            blocks(&names(&[b"!", b"-", b".a", b"..a", b"...", b"/0".get(1..).unwrap(), b"\xff", b"a"]));
        let sorted = b"!-........a.a0a\xff";
        assert_eq!(&blocks[0][10 * 12..], sorted);
    }

    #[test]
    fn measured_and_written_lengths_agree_around_a_block() {
        for (count, len, expected) in [
            (15, 255, Len { full: 0, tail: 4032 }),
            (16, 255, Len { full: 1, tail: 267 }),
            (339, 3, Len { full: 1, tail: 27 + 339 * 15 - 4092 }),
            (2, 255, Len { full: 0, tail: 27 + 2 * 267 }),
        ] {
            let all: Vec<Vec<u8>> = (0..count).map(|n| format!("{n:0len$}").into_bytes()).collect();
            let entries = names(&all.iter().map(Vec::as_slice).collect::<Vec<_>>());
            let blocks = blocks(&entries);
            assert_eq!(measure(&entries), expected, "{count} names of {len}");
            assert_eq!(blocks.len(), expected.full as usize + 1);
            assert_eq!(blocks.last().map(Vec::len), Some(expected.tail));
            assert!(blocks.iter().all(|b| b.len() <= BLOCK));
        }
    }
}
