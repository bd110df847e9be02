//! Extended attributes: inline ones first, then those shared with other inodes.

use zerocopy::FromBytes;

use super::super::disk::{self, XattrEntry, XattrHeader};
use super::{Corrupt, Image, Inode};

/// One extended attribute; its full name is `prefix` and `suffix` together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Xattr<'a> {
    /// Namespace with its dot; a whole name for POSIX ACLs; empty for a name of no namespace that Linux knows.
    pub prefix: &'static [u8],
    /// Rest of the name.
    pub suffix: &'a [u8],
    /// The value.
    pub value: &'a [u8],
}

impl Xattr<'_> {
    /// Returns the length of the full name.
    pub fn name_len(&self) -> usize {
        self.prefix.len() + self.suffix.len()
    }

    /// Says whether this is the full name.
    pub fn is_named(&self, name: &[u8]) -> bool {
        name.strip_prefix(self.prefix) == Some(self.suffix)
    }
}

/// The extended attributes of an inode; ends at the first error.
#[derive(Debug)]
pub struct Xattrs<'a, B> {
    image: &'a Image<B>,
    inode: Inode,
    /// Ids of shared attributes not yet visited.
    shared: &'a [u8],
    /// Inline entries not yet visited.
    inline: &'a [u8],
}

impl<B: AsRef<[u8]>> Image<B> {
    /// Returns the attributes of an inode.
    pub fn xattrs(&self, inode: &Inode) -> Result<Xattrs<'_, B>, Corrupt> {
        let corrupt = inode.corrupt("extended attributes past the end");
        let mut xattrs = Xattrs { image: self, inode: *inode, shared: &[], inline: &[] };
        if inode.tail == inode.xattrs {
            return Ok(xattrs);
        }
        let len = usize::try_from(inode.tail - inode.xattrs).ok();
        let raw = len.and_then(|len| self.slice(inode.xattrs, len)).ok_or(corrupt.clone())?;
        let (header, rest) = XattrHeader::read_from_prefix(raw).map_err(|_| corrupt.clone())?;
        (xattrs.shared, xattrs.inline) =
            rest.split_at_checked(4 * usize::from(header.shared)).ok_or(corrupt)?;
        Ok(xattrs)
    }

    /// Returns the value of the attribute of this full name.
    pub fn xattr(&self, inode: &Inode, name: &[u8]) -> Result<Option<&[u8]>, Corrupt> {
        for xattr in self.xattrs(inode)? {
            let xattr = xattr?;
            if xattr.is_named(name) {
                return Ok(Some(xattr.value));
            }
        }
        Ok(None)
    }
}

impl<'a, B: AsRef<[u8]>> Xattrs<'a, B> {
    fn step(&mut self) -> Result<Option<Xattr<'a>>, Corrupt> {
        if let Some((xattr, len)) = parse(&self.inode, self.inline)? {
            self.inline = self.inline.get(len..).unwrap_or_default();
            return Ok(Some(xattr));
        }
        let Some((id, rest)) = self.shared.split_first_chunk::<4>() else { return Ok(None) };
        self.shared = rest;
        let at = self.image.xattr + 4 * u64::from(u32::from_le_bytes(*id));
        let raw = self.image.from(at).unwrap_or_default();
        match parse(&self.inode, raw)? {
            Some((xattr, _)) => Ok(Some(xattr)),
            None => Err(self.inode.corrupt("shared attribute past the end")),
        }
    }
}

impl<'a, B: AsRef<[u8]>> Iterator for Xattrs<'a, B> {
    type Item = Result<Xattr<'a>, Corrupt>;
    fn next(&mut self) -> Option<Self::Item> {
        let step = self.step();
        if step.is_err() {
            (self.shared, self.inline) = (&[], &[]);
        }
        step.transpose()
    }
}

/// Takes an entry off the front; returns it and its length with padding, or nothing at the end.
fn parse<'a>(inode: &Inode, raw: &'a [u8]) -> Result<Option<(Xattr<'a>, usize)>, Corrupt> {
    let Ok((entry, rest)) = XattrEntry::read_from_prefix(raw) else { return Ok(None) };
    let (name_len, value_len) = (usize::from(entry.name_len), usize::from(entry.value_len.get()));
    let prefix = disk::xattr_prefix(entry.name_index).ok_or(inode.corrupt("unknown attribute prefix"))?;
    let both = rest.get(..name_len + value_len).ok_or(inode.corrupt("attribute past the end"))?;
    let (suffix, value) = both.split_at(name_len);
    if name_len + prefix.len() == 0 || suffix.contains(&0) {
        return Err(inode.corrupt("name of an attribute"));
    }
    Ok(Some((Xattr { prefix, suffix, value }, disk::xattr_entry_size(name_len, value_len))))
}
