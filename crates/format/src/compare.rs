//! What differs between the trees of two images, as far as it can be told without their bytes.
//!
//! Both metadata images are walked side by side, so nothing is held but the way to where the walk is and the inodes
//! that have several names. Contents are compared through what the layers' indexes say of them: the same place in the same
//! layer, or the same place in chunks of the same hash. Where that does not tell, the walk says which ranges somebody has to read.
//!
//! The root's own attributes are left out: every image has the same ([`crate::tree`]).

mod contents;

use std::cmp::Ordering;
use std::collections::{HashMap, HashSet};
use std::iter::Peekable;
use std::ops::Range;

use serde::{Deserialize, Serialize};

pub use self::contents::Table;
use crate::digest::{ChunkId, IndexId};
use crate::erofs::read::{Corrupt, Entries, Entry, Image, Inode, Kind, Nid};
use crate::limits;

/// One image that is compared with another.
pub struct Side<'a, B> {
    image: &'a Image<B>,
    tables: HashMap<IndexId, Table<'a>>,
}

impl<'a, B: AsRef<[u8]>> Side<'a, B> {
    /// Returns an image and what its layers' indexes say of contents; of a layer without a table nothing is told.
    pub fn new(image: &'a Image<B>, tables: impl IntoIterator<Item = (IndexId, Table<'a>)>) -> Self {
        Self { image, tables: tables.into_iter().collect() }
    }

    /// Returns the metadata image.
    pub fn image(&self) -> &'a Image<B> {
        self.image
    }
}

/// Something in which two files of one path differ.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Change {
    /// What they are, a directory or a file; then nothing else is compared.
    Kind,
    /// The bytes of regular files.
    Content,
    /// Where symbolic links lead.
    Target,
    /// The numbers of devices.
    Device,
    /// Permission, setuid, setgid and sticky bits.
    Mode,
    /// Owner or group.
    Owner,
    /// The last modification.
    Time,
    /// Extended attributes.
    Xattrs,
    /// Which other paths are names of the same file; told at the later one of two paths.
    Links,
}

impl Change {
    const ALL: [Self; 9] = [
        Self::Kind,
        Self::Content,
        Self::Target,
        Self::Device,
        Self::Mode,
        Self::Owner,
        Self::Time,
        Self::Xattrs,
        Self::Links,
    ];

    /// Returns a word for it.
    pub const fn word(self) -> &'static str {
        match self {
            Self::Kind => "kind",
            Self::Content => "content",
            Self::Target => "target",
            Self::Device => "device",
            Self::Mode => "mode",
            Self::Owner => "owner",
            Self::Time => "time",
            Self::Xattrs => "xattrs",
            Self::Links => "links",
        }
    }
}

/// Everything in which two files of one path differ.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Changes(u16);

impl Changes {
    /// Adds one.
    pub fn add(&mut self, change: Change) {
        self.0 |= 1 << change as u16;
    }

    /// Says whether there is none.
    pub fn is_empty(self) -> bool {
        self.0 == 0
    }

    /// Returns them, in the order of [`Change`].
    pub fn iter(self) -> impl Iterator<Item = Change> {
        Change::ALL.into_iter().filter(move |change| self.0 & 1 << *change as u16 != 0)
    }

    fn add_if(&mut self, differs: bool, change: Change) {
        if differs {
            self.add(change);
        }
    }
}

/// A path that is in one image or in both.
#[derive(Debug)]
pub struct Step<'p> {
    /// From the root, without a leading slash.
    pub path: &'p [u8],
    /// What is there.
    pub found: Found,
}

/// What is at a path.
#[derive(Debug)]
pub enum Found {
    /// Something in the first image only.
    First(Inode),
    /// Something in the second image only.
    Second(Inode),
    /// Something in both.
    Both(Pair),
}

/// What is at a path that both images have.
#[derive(Debug)]
pub struct Pair {
    /// The inode in the first image.
    pub first: Inode,
    /// The inode in the second image.
    pub second: Inode,
    /// In what they differ, as far as it is known.
    pub changes: Changes,
    /// The ranges of their contents that have to be read to know: ascending, and empty where all is known.
    pub unsure: Vec<Range<u64>>,
    /// Whether the two have met under an earlier path.
    pub again: bool,
}

/// Shows every path of two images, in the order of its components; a directory comes before what is in it.
///
/// Ends with the first error, of the visitor or of an image.
pub fn compare<B: AsRef<[u8]>, E: From<Corrupt>>(
    first: &Side<'_, B>,
    second: &Side<'_, B>,
    mut each: impl FnMut(Step<'_>) -> Result<(), E>,
) -> Result<(), E> {
    let mut path = Vec::new();
    let mut links = Links::default();
    let roots = [first, second].map(|side| Some(side.image.root()));
    let mut open = vec![Frame::open([first.image, second.image], roots, 0)?];
    let mut budget = 2 * limits::ENTRIES;
    while let Some(frame) = open.last_mut() {
        path.truncate(frame.base);
        let Some(Named { name, nids }) = frame.next()? else {
            open.pop();
            continue;
        };
        let nid = nids[0].or(nids[1]).unwrap_or(first.image.root());
        budget = budget.checked_sub(1).ok_or(Corrupt { nid, what: "more names than an image may have" })?;
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        if path.len() > limits::PATH {
            return Err(Corrupt { nid, what: "path too long: a directory in itself?" }.into());
        }
        let inodes = [
            nids[0].map(|nid| first.image.inode(nid)).transpose()?,
            nids[1].map(|nid| second.image.inode(nid)).transpose()?,
        ];
        let found = match inodes {
            [Some(a), Some(b)] => Found::Both(pair(first, a, second, b, &mut links)?),
            [Some(a), None] => Found::First(a),
            [None, Some(b)] => Found::Second(b),
            [None, None] => continue, // a name comes from somewhere
        };
        each(Step { path: &path, found })?;
        let dirs = inodes.map(|inode| inode.filter(|inode| inode.kind == Kind::Dir).map(|inode| inode.nid));
        if dirs != [None, None] {
            open.push(Frame::open([first.image, second.image], dirs, path.len())?);
        }
    }
    Ok(())
}

/// Compares two inodes of one path.
fn pair<B: AsRef<[u8]>>(
    first: &Side<'_, B>,
    a: Inode,
    second: &Side<'_, B>,
    b: Inode,
    links: &mut Links,
) -> Result<Pair, Corrupt> {
    let mut pair =
        Pair { first: a, second: b, changes: Changes::default(), unsure: Vec::new(), again: false };
    let changes = &mut pair.changes;
    if a.kind != b.kind {
        changes.add(Change::Kind);
        return Ok(pair);
    }
    match a.kind {
        Kind::File => match contents::unsure(first, &a, second, &b)? {
            Some(unsure) => pair.unsure = unsure,
            None => changes.add(Change::Content),
        },
        Kind::Symlink => {
            changes.add_if(first.image.readlink(&a)? != second.image.readlink(&b)?, Change::Target);
        }
        Kind::Char | Kind::Block => changes.add_if(a.device != b.device, Change::Device),
        Kind::Dir | Kind::Fifo => {}
    }
    changes.add_if(a.permissions != b.permissions, Change::Mode);
    changes.add_if((a.uid, a.gid) != (b.uid, b.gid), Change::Owner);
    changes.add_if(a.mtime != b.mtime, Change::Time);
    changes.add_if(attributes(first.image, &a)? != attributes(second.image, &b)?, Change::Xattrs);
    if a.kind != Kind::Dir && (a.links > 1 || b.links > 1) {
        match links.meet(a.nid, b.nid) {
            Meeting::First => {}
            Meeting::Again => pair.again = true,
            Meeting::Apart => changes.add(Change::Links),
        }
    }
    Ok(pair)
}

/// Full name and value of each attribute: the order in which an image keeps them is its writer's.
type Attributes<'a> = HashSet<(Vec<u8>, &'a [u8])>;

fn attributes<'a, B: AsRef<[u8]>>(image: &'a Image<B>, inode: &Inode) -> Result<Attributes<'a>, Corrupt> {
    let full = |xattr: crate::erofs::read::Xattr<'a>| ([xattr.prefix, xattr.suffix].concat(), xattr.value);
    image.xattrs(inode)?.map(|xattr| xattr.map(full)).collect()
}

/// Which inodes of several names have met: each has one partner on the other side, or the names of files differ.
#[derive(Default)]
struct Links {
    partners: [HashMap<Nid, Nid>; 2],
}

enum Meeting {
    First,
    Again,
    Apart,
}

impl Links {
    fn meet(&mut self, a: Nid, b: Nid) -> Meeting {
        let [firsts, seconds] = &mut self.partners;
        match (firsts.get(&a), seconds.get(&b)) {
            (None, None) => {
                firsts.insert(a, b);
                seconds.insert(b, a);
                Meeting::First
            }
            (Some(partner), _) if *partner == b => Meeting::Again,
            _ => Meeting::Apart,
        }
    }
}

/// A name, and where it leads in each image.
struct Named<'a> {
    name: &'a [u8],
    nids: [Option<Nid>; 2],
}

/// A directory that is open, in one image or in both.
struct Frame<'a, B: AsRef<[u8]>> {
    names: [Option<Names<'a, B>>; 2],
    /// Length of its path.
    base: usize,
}

impl<'a, B: AsRef<[u8]>> Frame<'a, B> {
    fn open(images: [&'a Image<B>; 2], dirs: [Option<Nid>; 2], base: usize) -> Result<Self, Corrupt> {
        let [a, b] = dirs;
        let open = |image, dir: Option<Nid>| dir.map(|dir| Names::open(image, dir)).transpose();
        Ok(Self { names: [open(images[0], a)?, open(images[1], b)?], base })
    }

    /// Returns the next name.
    fn next(&mut self) -> Result<Option<Named<'a>>, Corrupt> {
        let [a, b] = &mut self.names;
        let peek = |names: &mut Option<Names<'a, B>>| names.as_mut().map_or(Ok(None), Names::peek);
        let order = match (peek(a)?, peek(b)?) {
            (None, None) => return Ok(None),
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some(a), Some(b)) => a.cmp(b),
        };
        let mut take = |side: usize, wanted: bool| match &mut self.names[side] {
            Some(names) if wanted => names.take(),
            _ => Ok(None),
        };
        let (a, b) = (take(0, order.is_le())?, take(1, order.is_ge())?);
        let name = a.or(b).map(|entry| entry.name);
        Ok(name.map(|name| Named { name, nids: [a, b].map(|entry| entry.map(|entry| entry.nid)) }))
    }
}

/// The names in a directory, in order.
struct Names<'a, B: AsRef<[u8]>> {
    nid: Nid,
    entries: Peekable<Entries<'a, B>>,
    last: &'a [u8],
}

impl<'a, B: AsRef<[u8]>> Names<'a, B> {
    fn open(image: &'a Image<B>, dir: Nid) -> Result<Self, Corrupt> {
        let entries = image.entries(&image.inode(dir)?, 0)?.peekable();
        Ok(Self { nid: dir, entries, last: &[] })
    }

    fn peek(&mut self) -> Result<Option<&'a [u8]>, Corrupt> {
        let dots = |entry: &Result<Entry<'a>, Corrupt>| matches!(entry, Ok(Entry { name: b"." | b"..", .. }));
        while self.entries.next_if(dots).is_some() {}
        match self.entries.peek() {
            None => Ok(None),
            Some(Ok(entry)) => Ok(Some(entry.name)),
            Some(Err(corrupt)) => Err(corrupt.clone()),
        }
    }

    /// Returns the name that was peeked at; out of order, names of one image would be missed in the other.
    fn take(&mut self) -> Result<Option<Entry<'a>>, Corrupt> {
        let entry = self.entries.next().transpose()?;
        if let Some(entry) = &entry
            && std::mem::replace(&mut self.last, entry.name) >= entry.name
        {
            return Err(Corrupt { nid: self.nid, what: "names out of order" });
        }
        Ok(entry)
    }
}

/// What of one layer's chunks somebody lacks, in bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Lack {
    /// Of the chunks that are not there; one that several layers have counts with the first of them.
    pub missing: u64,
    /// Of all chunks.
    pub all: u64,
}

/// Returns what of each layer is in none of the layers at hand.
pub fn lack<'a>(
    at_hand: impl IntoIterator<Item = Table<'a>>,
    wanted: impl IntoIterator<Item = Table<'a>>,
) -> Vec<Lack> {
    let mut known: HashSet<ChunkId> =
        at_hand.into_iter().flat_map(Table::chunks).map(|chunk| chunk.id).collect();
    let mut of = |table: Table<'a>| {
        table.chunks().iter().fold(Lack::default(), |mut sum, chunk| {
            let len = u64::from(chunk.len);
            sum.all += len;
            sum.missing += if known.insert(chunk.id) { len } else { 0 };
            sum
        })
    };
    wanted.into_iter().map(&mut of).collect()
}
