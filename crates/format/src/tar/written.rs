//! The headers of one member, field by field, as Go's `archive/tar` presents them.
//!
//! [`Member`](super::Member) says what a member amounts to; a table of contents says what its headers say, because
//! those who read one hold both against each other (`ensureFileMetadataAttributesMatch` in `pkg/chunked` of
//! containers/storage). So numbers stay as they are written here, of whatever size, and names of owners are there.
//! What Go does not present as one of the seven plain types is refused: see [`NotWritten`].

use std::collections::BTreeMap;

use super::header::{BLOCK, Block, Dialect, Header, number, text};
use super::pax;
use crate::limits;
use crate::tree::Time;

/// What the headers of a member say.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Written {
    /// Type: `b'0'` to `b'6'`.
    pub kind: u8,
    /// Path.
    pub name: Box<[u8]>,
    /// Target of a link; what the field holds for anything else.
    pub link: Box<[u8]>,
    /// Length, also of what has no payload.
    pub size: i64,
    /// Mode, with whatever lies above the permissions.
    pub mode: i64,
    /// Owner.
    pub uid: i64,
    /// Group.
    pub gid: i64,
    /// Name of the owner.
    pub user: Box<[u8]>,
    /// Name of the group.
    pub group: Box<[u8]>,
    /// Last modification.
    pub mtime: Time,
    /// Last access, if said.
    pub atime: Option<Time>,
    /// Last change, if said.
    pub ctime: Option<Time>,
    /// Device number, also of what is no device.
    pub major: i64,
    /// Device number, also of what is no device.
    pub minor: i64,
    /// Extended attributes.
    pub xattrs: BTreeMap<Box<[u8]>, Box<[u8]>>,
}

/// Why Go does not present a member as one of the plain types, or not at all.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum NotWritten {
    /// A global extended header: Go takes it for a member, and applies it to none.
    #[error("a global extended header comes before it")]
    Global,
    /// Its payload is not its content.
    #[error("it is a sparse file")]
    Sparse,
    /// Another type than those of ustar, or one that readers take for different things.
    #[error("its type is not one of POSIX's")]
    Type,
    /// A field that others skip.
    #[error("Go cannot read its header")]
    Header,
}

impl Written {
    /// Reads the headers of one member: all its blocks from the first extension to the header itself.
    pub fn parse(mut raw: &[u8]) -> Result<Self, NotWritten> {
        let (mut records, mut long_name, mut long_link) = (BTreeMap::new(), None, None);
        loop {
            let (block, rest) = raw.split_first_chunk::<BLOCK>().ok_or(NotWritten::Header)?;
            let header = Header::parse(block).map_err(|_| NotWritten::Header)?;
            if !matches!(header.kind(), b'x' | b'g' | b'L' | b'K') {
                // What follows the header of a member is a sparse map.
                let mut written = Self::of_block(block, &header)?;
                written.merge(records)?;
                let replace = |field: &mut Box<[u8]>, long: Option<Box<[u8]>>| {
                    if let Some(long) = long.filter(|long| !long.is_empty()) {
                        *field = long;
                    }
                };
                replace(&mut written.name, long_name);
                replace(&mut written.link, long_link);
                return if rest.is_empty() { written.plain() } else { Err(NotWritten::Sparse) };
            }
            let (data, rest) = extension(&header, rest).ok_or(NotWritten::Header)?;
            match header.kind() {
                b'g' => return Err(NotWritten::Global),
                b'x' => records = records_of(data)?,
                b'L' => long_name = Some(text(data).into()),
                _ => long_link = Some(text(data).into()),
            }
            raw = rest;
        }
    }

    fn of_block(block: &Block, header: &Header<'_>) -> Result<Self, NotWritten> {
        let int = |at: std::ops::Range<usize>| number(&block[at]).ok_or(NotWritten::Header);
        let mut written = Self {
            kind: header.kind(),
            name: header.path().into(),
            link: header.link().into(),
            size: int(124..136)?,
            mode: int(100..108)?,
            uid: int(108..116)?,
            gid: int(116..124)?,
            mtime: at(int(136..148)?),
            ..Self::default()
        };
        if header.dialect() != Dialect::V7 {
            written.user = text(&block[265..297]).into();
            written.group = text(&block[297..329]).into();
            written.major = int(329..337)?;
            written.minor = int(337..345)?;
        }
        match header.dialect() {
            Dialect::Star => {
                (written.atime, written.ctime) = (Some(at(int(476..488)?)), Some(at(int(488..500)?)));
            }
            Dialect::Gnu => {
                // If either is no number, what is there is taken for a prefix: `Header::path` does.
                let times = [345..357, 357..369].map(|range| match &block[range] {
                    [0, ..] => Some(None),
                    field => number(field).map(|secs| Some(at(secs))),
                });
                if let [Some(atime), Some(ctime)] = times {
                    (written.atime, written.ctime) = (atime, ctime);
                }
            }
            Dialect::V7 | Dialect::Ustar => {}
        }
        Ok(written)
    }

    /// Puts what an extended header says in place of what the block says.
    fn merge(&mut self, records: BTreeMap<&[u8], &[u8]>) -> Result<(), NotWritten> {
        let int = |value| pax::integer(value).ok_or(NotWritten::Header);
        let time = |value| pax::time(value).ok_or(NotWritten::Header);
        for (key, value) in records {
            if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                self.xattrs.insert(name.into(), value.into());
                continue;
            }
            if key.starts_with(b"GNU.sparse.") {
                return Err(NotWritten::Sparse);
            }
            if matches!(key, b"path" | b"linkpath" | b"uname" | b"gname") && value.contains(&0) {
                return Err(NotWritten::Header);
            }
            match key {
                _ if value.is_empty() => {}
                b"path" => self.name = value.into(),
                b"linkpath" => self.link = value.into(),
                b"uname" => self.user = value.into(),
                b"gname" => self.group = value.into(),
                b"uid" => self.uid = int(value)?,
                b"gid" => self.gid = int(value)?,
                b"size" => self.size = int(value)?,
                b"mtime" => self.mtime = time(value)?,
                b"atime" => self.atime = Some(time(value)?),
                b"ctime" => self.ctime = Some(time(value)?),
                _ => {}
            }
        }
        Ok(())
    }

    /// Holds the type against those that everybody reads alike.
    fn plain(mut self) -> Result<Self, NotWritten> {
        let slash = self.name.ends_with(b"/");
        self.kind = match self.kind {
            0 if slash => b'5',
            0 => b'0',
            b'0' if slash => return Err(NotWritten::Type),
            kind @ b'0'..=b'6' => kind,
            b'S' => return Err(NotWritten::Sparse),
            _ => return Err(NotWritten::Type),
        };
        Ok(self)
    }
}

/// Splits the data of an extension off what follows its header.
fn extension<'a>(header: &Header<'_>, rest: &'a [u8]) -> Option<(&'a [u8], &'a [u8])> {
    let size = u64::try_from(header.size().ok()?).ok().filter(|size| *size <= limits::TAR_EXTENSION)?;
    let size = usize::try_from(size).ok()?;
    Some((rest.get(..size)?, rest.get(size.next_multiple_of(BLOCK)..)?))
}

/// Returns the records of an extended header, of those with one key the last.
fn records_of(mut data: &[u8]) -> Result<BTreeMap<&[u8], &[u8]>, NotWritten> {
    let mut records = BTreeMap::new();
    while !data.is_empty() {
        let (key, value, rest) = pax::record(data).ok_or(NotWritten::Header)?;
        if key.is_empty() {
            return Err(NotWritten::Header);
        }
        records.insert(key, value);
        data = rest;
    }
    Ok(records)
}

fn at(secs: i64) -> Time {
    Time { secs, nanos: 0 }
}

#[cfg(test)]
mod tests {
    use super::*;
    use testkit::tar::{Archive, Entry, Kind, Variant};

    fn written(entry: &Entry, variant: Variant) -> Result<Written, NotWritten> {
        let mut archive = Archive::new();
        archive.entry(entry, variant);
        Written::parse(&archive.skeleton[..archive.skeleton.len() / BLOCK * BLOCK])
    }

    #[test]
    fn every_dialect_says_the_same() {
        let long = "long/".repeat(18) + "name";
        let entry = Entry::dir(&long).mode(0o1755).owner(7, 8).mtime(12, 0);
        for variant in [Variant::V7, Variant::Ustar, Variant::Gnu, Variant::Pax10] {
            let said = written(&entry, variant).unwrap();
            assert_eq!((said.kind, said.mode, said.uid, said.gid), (b'5', 0o1755, 7, 8), "{variant:?}");
            assert_eq!((&*said.name, said.mtime), (long.as_bytes(), at(12)));
        }
        let longer = "d/".repeat(100) + "f";
        let entry = Entry::symlink(&longer, &longer);
        for variant in [Variant::Gnu, Variant::Pax10] {
            let said = written(&entry, variant).unwrap();
            assert_eq!((said.kind, &*said.name, &*said.link), (b'2', longer.as_bytes(), longer.as_bytes()));
        }
        let said = written(&Entry::file("f", "").mtime(-1, 5).xattr("user.a", "b"), Variant::Pax10).unwrap();
        assert_eq!((said.mtime, said.xattrs.len()), (Time { secs: -1, nanos: 5 }, 1));
    }

    #[test]
    fn what_go_reads_otherwise_is_refused() {
        let sparse = Entry::new("s", Kind::Sparse(9000, vec![(5000, vec![1; 10])]));
        for variant in [Variant::Gnu, Variant::Pax00, Variant::Pax01, Variant::Pax10] {
            assert_eq!(written(&sparse, variant), Err(NotWritten::Sparse), "{variant:?}");
        }
        assert_eq!(written(&Entry::file("f/", ""), Variant::Ustar), Err(NotWritten::Type));
        let mut archive = Archive::new();
        archive.records(b'g', &[(b"comment", b"x")]);
        archive.entry(&Entry::file("f", ""), Variant::Pax10);
        assert_eq!(Written::parse(&archive.tar), Err(NotWritten::Global));
        assert_eq!(Written::parse(&[0; 100]), Err(NotWritten::Header));
    }
}
