//! Directories: finding a name and listing from any place.
//!
//! A listing's place is a *cookie*: block number times 4096 plus the number of the entry in its block. It stays
//! valid for as long as the image exists and needs no state in between.

use std::cmp::Ordering;

use zerocopy::FromBytes;

use super::super::disk::{Dirent, file_type};
use super::{Corrupt, Image, Inode, Kind, Nid};
use crate::limits;

/// One name in a directory. "." and ".." are among them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Entry<'a> {
    /// The inode.
    pub nid: Nid,
    /// What the entry says the inode is.
    pub kind: Kind,
    /// The name: a valid one, or "." or "..".
    pub name: &'a [u8],
    /// Where a listing goes on after this entry.
    pub next: u64,
}

/// A listing of a directory in the order of the image; ends at the first error.
#[derive(Debug)]
pub struct Entries<'a, B> {
    image: &'a Image<B>,
    dir: Inode,
    number: u64,
    entry: usize,
    block: Option<Block<'a>>,
    failed: bool,
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Returns the inode that a name in a directory leads to.
    pub fn lookup(&self, dir: &Inode, name: &[u8]) -> Result<Option<Nid>, Corrupt> {
        is_dir(dir)?;
        // The last block whose first name is not after `name` is the only one that can have it.
        let (mut low, mut high) = (0, dir.size.div_ceil(limits::BLOCK));
        let mut found = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let block = Block::parse(dir, self.block(dir, middle)?)?;
            match block.name(0)?.cmp(name) {
                Ordering::Equal => return block.dirent(0).map(|dirent| Some(Nid(dirent.nid.get()))),
                Ordering::Less => {
                    found = Some(block);
                    low = middle + 1;
                }
                Ordering::Greater => high = middle,
            }
        }
        found.map_or(Ok(None), |block| block.find(name))
    }

    /// Lists a directory from a cookie on; 0 is the beginning.
    pub fn entries(&self, dir: &Inode, cookie: u64) -> Result<Entries<'_, B>, Corrupt> {
        is_dir(dir)?;
        let (number, entry) = (cookie / limits::BLOCK, cookie % limits::BLOCK);
        let entry = usize::try_from(entry).unwrap_or_default(); // below 4096
        Ok(Entries { image: self, dir: *dir, number, entry, block: None, failed: false })
    }
}

impl<'a, B: AsRef<[u8]>> Entries<'a, B> {
    fn step(&mut self) -> Result<Option<Entry<'a>>, Corrupt> {
        loop {
            let block = match &self.block {
                Some(block) => block,
                // A cookie is any number that a caller likes, so no multiplication here.
                None if self.number >= self.dir.size.div_ceil(limits::BLOCK) => return Ok(None),
                None => {
                    let bytes = self.image.block(&self.dir, self.number)?;
                    self.block.insert(Block::parse(&self.dir, bytes)?)
                }
            };
            let at = self.entry;
            if at < block.count {
                let dirent = block.dirent(at)?;
                let name = block.name(at)?;
                if !valid(name) {
                    return Err(self.dir.corrupt("a name that no file can have"));
                }
                let kind = kind(dirent.file_type).ok_or(self.dir.corrupt("unknown file type in an entry"))?;
                self.entry += 1;
                let last = self.entry == block.count;
                let next = if last {
                    (self.number + 1) * limits::BLOCK
                } else {
                    self.number * limits::BLOCK + self.entry as u64
                };
                return Ok(Some(Entry { nid: Nid(dirent.nid.get()), kind, name, next }));
            }
            self.block = None;
            self.entry = 0;
            self.number += 1;
        }
    }
}

impl<'a, B: AsRef<[u8]>> Iterator for Entries<'a, B> {
    type Item = Result<Entry<'a>, Corrupt>;
    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let step = self.step();
        self.failed = step.is_err();
        step.transpose()
    }
}

/// One block of a directory whose table of entries lies inside it.
#[derive(Debug)]
struct Block<'a> {
    nid: Nid,
    bytes: &'a [u8],
    count: usize,
}

impl<'a> Block<'a> {
    fn parse(dir: &Inode, bytes: &'a [u8]) -> Result<Self, Corrupt> {
        let mut block = Self { nid: dir.nid, bytes, count: 1 };
        let names = usize::from(block.dirent(0)?.name_offset.get());
        block.count = names / size_of::<Dirent>();
        if block.count == 0 || names % size_of::<Dirent>() != 0 || names > bytes.len() {
            return Err(dir.corrupt("table of entries"));
        }
        Ok(block)
    }

    fn dirent(&self, number: usize) -> Result<Dirent, Corrupt> {
        let raw = self.bytes.get(number * size_of::<Dirent>()..).unwrap_or_default();
        match Dirent::read_from_prefix(raw) {
            Ok((dirent, _)) => Ok(dirent),
            Err(_) => Err(Corrupt { nid: self.nid, what: "entry past the block" }),
        }
    }

    fn name(&self, number: usize) -> Result<&'a [u8], Corrupt> {
        let corrupt = Corrupt { nid: self.nid, what: "name past the block" };
        let start = usize::from(self.dirent(number)?.name_offset.get());
        let end = if number + 1 < self.count {
            usize::from(self.dirent(number + 1)?.name_offset.get())
        } else {
            let rest = self.bytes.get(start..).unwrap_or_default();
            start + rest.iter().position(|b| *b == 0).unwrap_or(rest.len())
        };
        self.bytes.get(start..end).filter(|name| !name.is_empty()).ok_or(corrupt)
    }

    fn find(&self, name: &[u8]) -> Result<Option<Nid>, Corrupt> {
        let (mut low, mut high) = (0, self.count);
        while low < high {
            let middle = low + (high - low) / 2;
            match self.name(middle)?.cmp(name) {
                Ordering::Equal => return self.dirent(middle).map(|dirent| Some(Nid(dirent.nid.get()))),
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
            }
        }
        Ok(None)
    }
}

fn is_dir(inode: &Inode) -> Result<(), Corrupt> {
    if inode.kind == Kind::Dir { Ok(()) } else { Err(inode.corrupt("not a directory")) }
}

/// The rules of [`crate::name::Name`], but "." and ".." are in every directory.
fn valid(name: &[u8]) -> bool {
    name.len() <= limits::NAME && !name.iter().any(|b| matches!(b, 0 | b'/'))
}

fn kind(raw: u8) -> Option<Kind> {
    Some(match raw {
        file_type::FILE => Kind::File,
        file_type::DIR => Kind::Dir,
        file_type::CHAR => Kind::Char,
        file_type::BLOCK => Kind::Block,
        file_type::FIFO => Kind::Fifo,
        file_type::SYMLINK => Kind::Symlink,
        _ => return None,
    })
}
