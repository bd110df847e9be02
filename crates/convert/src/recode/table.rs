//! The table of contents, while it grows: what members say is written at once, where their pieces are at the end.
//!
//! So a member costs the length of its JSON and some 50 bytes, and a piece the same. See [`format::stargz::toc`] for the
//! fields; what each format puts into them is in `appendTar` of stargz-snapshotter's `estargz/estargz.go` and in
//! `NewFileMetadata` and `writeZstdChunkedStream` of containers/storage's `pkg/chunked`.

use std::collections::{BTreeMap, HashMap};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use format::name::printable;
use format::stargz::toc::Entry;
use format::tar::{Member, MemberKind, NotWritten, Written};
use format::tree::Time;
use format::{Digest, rfc3339};

use super::names::{Names, Sort, Twice};
use super::pipe::Place;
use super::{MOST_TABLE, RecodeError};

/// Whose table it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    EStargz,
    ZstdChunked,
}

/// A growing table.
pub(super) struct Table {
    style: Style,
    /// Longest piece of a file.
    most: u64,
    /// The entries one after another, without their last brace.
    json: Vec<u8>,
    rows: Vec<Row>,
    names: Names,
    /// The names eStargz has said last, by id.
    users: HashMap<i64, Box<str>>,
    groups: HashMap<i64, Box<str>>,
    /// Digests of files of several pieces, in order.
    files: Vec<Digest>,
}

/// What an entry still lacks.
struct Row {
    /// Where it ends in the JSON.
    end: usize,
    lacks: Lacks,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Lacks {
    Nothing,
    /// The piece that is the whole file.
    Whole,
    /// The first of several pieces, and the digest of them all.
    First,
    /// One of the others, and in zstd:chunked whether it is the last.
    Later,
}

impl Table {
    pub(super) fn new(style: Style, most: usize) -> Self {
        let twice = if style == Style::EStargz { Twice::Dirs } else { Twice::Nothing };
        Self {
            style,
            most: most as u64,
            json: Vec::new(),
            rows: Vec::new(),
            names: Names::new(twice),
            users: HashMap::new(),
            groups: HashMap::new(),
            files: Vec::new(),
        }
    }

    /// Adds a member by its headers and what they amount to; returns what they say.
    pub(super) fn member(&mut self, head: &[u8], member: &Member) -> Result<Written, RecodeError> {
        let refuse = |why| RecodeError::Inexpressible { what: printable(&member.path), why };
        let written = Written::parse(head).map_err(|why| refuse(reason(why)))?;
        if !agree(&written, member) {
            return Err(refuse("tools do not agree on what its headers say"));
        }
        let sort = match written.kind {
            b'5' => Sort::Dir,
            b'1' => Sort::Link(&written.link),
            _ => Sort::Other,
        };
        self.names.add(&written.name, sort).map_err(refuse)?;
        let entry = match self.style {
            Style::EStargz => self.estargz(&written),
            Style::ZstdChunked => chunked(&written),
        };
        self.file(entry.map_err(refuse)?, member.payload)?;
        Ok(written)
    }

    /// Adds a regular file of the writer's own.
    pub(super) fn own(&mut self, name: &str, size: u64) -> Result<(), RecodeError> {
        let refuse = |why| RecodeError::Inexpressible { what: name.into(), why };
        self.names.add(name.as_bytes(), Sort::Other).map_err(refuse)?;
        let size_field = i64::try_from(size).unwrap_or(i64::MAX);
        self.file(Entry { name: name.into(), kind: "reg".into(), size: size_field, ..Entry::default() }, size)
    }

    /// Says what the whole of the latest file of several pieces is.
    pub(super) fn file_digest(&mut self, digest: Digest) {
        self.files.push(digest);
    }

    /// Returns the JSON, with `tail` before its last brace; `places` are those of all pieces in order.
    pub(super) fn finish(self, places: &[Place], tail: &str) -> Result<Vec<u8>, RecodeError> {
        let mut out = Vec::with_capacity(self.json.len() + 200 * places.len());
        out.extend_from_slice(b"{\"version\":1,\"entries\":[");
        let (mut start, mut at, mut files) = (0, 0, self.files.iter());
        for (n, row) in self.rows.iter().enumerate() {
            if n > 0 {
                out.push(b',');
            }
            out.extend_from_slice(&self.json[start..row.end]);
            start = row.end;
            if row.lacks != Lacks::Nothing {
                let place = places.get(at).ok_or(RecodeError::Thread)?;
                // Zstd:chunked says with the first piece where the last one ends.
                let (file, more) = match row.lacks {
                    Lacks::First => {
                        let later = self.rows[n + 1..].iter().take_while(|row| row.lacks == Lacks::Later);
                        (files.next(), later.count())
                    }
                    _ => (None, 0),
                };
                let end = places.get(at + more).ok_or(RecodeError::Thread)?.end;
                self.place(row.lacks, place, file, end, &mut out);
                at += 1;
            }
            out.push(b'}');
        }
        out.extend_from_slice(b"]");
        out.extend_from_slice(tail.as_bytes());
        out.push(b'}');
        if at != places.len() {
            return Err(RecodeError::Thread);
        }
        bounded(out.len())?;
        Ok(out)
    }

    fn place(&self, lacks: Lacks, place: &Place, file: Option<&Digest>, end: u64, out: &mut Vec<u8>) {
        let digest = file.unwrap_or(&place.digest);
        let said = match (self.style, lacks) {
            (Style::EStargz, Lacks::Later) => {
                format!(",\"offset\":{},\"chunkDigest\":\"{}\"", place.offset, place.digest)
            }
            (Style::EStargz, _) => format!(
                ",\"offset\":{},\"digest\":\"{digest}\",\"chunkDigest\":\"{}\"",
                place.offset, place.digest
            ),
            (Style::ZstdChunked, Lacks::Whole) => {
                format!(",\"digest\":\"{digest}\",\"offset\":{},\"endOffset\":{end}", place.offset)
            }
            (Style::ZstdChunked, lacks) => {
                let whole = match lacks {
                    Lacks::First => format!(",\"digest\":\"{digest}\",\"endOffset\":{end}"),
                    _ => String::new(),
                };
                let zeros = if place.zeros { ",\"chunkType\":\"zeros\"" } else { "" };
                format!("{whole},\"offset\":{},\"chunkDigest\":\"{}\"{zeros}", place.offset, place.digest)
            }
        };
        out.extend_from_slice(said.as_bytes());
    }

    /// Adds the entries of a member: its own, and one for each further piece.
    fn file(&mut self, mut entry: Entry, len: u64) -> Result<(), RecodeError> {
        let name = entry.name.clone();
        let pieces = len.div_ceil(self.most);
        let (style, most) = (self.style, self.most);
        let piece = |at: u64| match (style, len - at) {
            // What goes to the end of the file needs no length in eStargz.
            (Style::EStargz, left) if left < most => 0,
            (Style::ZstdChunked, _) if pieces < 2 => 0,
            (_, left) => i64::try_from(left.min(most)).unwrap_or(i64::MAX),
        };
        if len > 0 {
            entry.chunk_size = piece(0);
        }
        let lacks = match pieces {
            0 => Lacks::Nothing,
            1 => Lacks::Whole,
            _ => Lacks::First,
        };
        self.row(&entry, lacks)?;
        for n in 1..pieces {
            let at = n * self.most;
            let chunk_offset = i64::try_from(at).unwrap_or(i64::MAX);
            let entry = Entry {
                name: name.clone(),
                kind: "chunk".into(),
                chunk_offset,
                chunk_size: piece(at),
                ..Entry::default()
            };
            self.row(&entry, Lacks::Later)?;
        }
        Ok(())
    }

    fn row(&mut self, entry: &Entry, lacks: Lacks) -> Result<(), RecodeError> {
        serde_json::to_writer(&mut self.json, entry).map_err(|error| RecodeError::Pack(error.to_string()))?;
        self.json.pop();
        // What a piece lacks takes at most 300 bytes.
        bounded(self.json.len() + 300 * self.rows.len())?;
        self.rows.push(Row { end: self.json.len(), lacks });
        Ok(())
    }

    fn estargz(&mut self, written: &Written) -> Result<Entry, &'static str> {
        let mut entry = common(written)?;
        entry.modtime = match written.mtime {
            Time { secs: 0, .. } => String::new(),
            Time { secs, nanos } => {
                let secs = secs.saturating_add(i64::from(nanos >= 500_000_000));
                rfc3339::write(Time { secs, nanos: 0 }).ok_or(TIME)?
            }
        };
        entry.user_name = changed(&mut self.users, written.uid, utf8(&written.user)?);
        entry.group_name = changed(&mut self.groups, written.gid, utf8(&written.group)?);
        match written.kind {
            b'0' => {
                entry.size = written.size;
                if entry.size == 0 {
                    entry.digest = Digest::of(b"").to_string();
                }
            }
            b'1' | b'2' => entry.link_name = utf8(&written.link)?.into(),
            b'3' | b'4' => (entry.dev_major, entry.dev_minor) = (written.major, written.minor),
            _ => {}
        }
        Ok(entry)
    }
}

/// Returns an entry as containers/storage makes it of a header, whatever its type.
fn chunked(written: &Written) -> Result<Entry, &'static str> {
    if written.kind != b'0' && written.size != 0 {
        return Err("it has a length, but nothing that could be long");
    }
    let time = |time: Option<Time>| time.map_or(Ok(String::new()), |time| rfc3339::write(time).ok_or(TIME));
    Ok(Entry {
        size: written.size,
        link_name: utf8(&written.link)?.into(),
        modtime: time(Some(written.mtime))?,
        access_time: time(written.atime)?,
        change_time: time(written.ctime)?,
        dev_major: written.major,
        dev_minor: written.minor,
        ..common(written)?
    })
}

const TIME: &str = "its time is not in the years 0 to 9999";

/// Returns what both formats say alike.
fn common(written: &Written) -> Result<Entry, &'static str> {
    let kind = match written.kind {
        b'0' => "reg",
        b'1' => "hardlink",
        b'2' => "symlink",
        b'3' => "char",
        b'4' => "block",
        b'5' => "dir",
        _ => "fifo",
    };
    let mut xattrs = BTreeMap::new();
    for (name, value) in &written.xattrs {
        xattrs.insert(utf8(name)?.to_owned(), STANDARD.encode(value));
    }
    Ok(Entry {
        name: utf8(&written.name)?.into(),
        kind: kind.into(),
        mode: written.mode,
        uid: written.uid,
        gid: written.gid,
        xattrs,
        ..Entry::default()
    })
}

fn utf8(bytes: &[u8]) -> Result<&str, &'static str> {
    std::str::from_utf8(bytes).map_err(|_| "a name of it is not UTF-8")
}

/// Returns a name if it is another than the last one of this id.
fn changed(names: &mut HashMap<i64, Box<str>>, id: i64, name: &str) -> String {
    if name.is_empty() || names.get(&id).is_some_and(|last| &**last == name) {
        return String::new();
    }
    names.insert(id, name.into());
    name.into()
}

/// Says whether headers, read as Go does, say what our own parser made of them.
fn agree(written: &Written, member: &Member) -> bool {
    let kind = match &member.kind {
        MemberKind::File => b'0',
        MemberKind::Link(_) => b'1',
        MemberKind::Symlink(_) => b'2',
        MemberKind::Char(_) => b'3',
        MemberKind::Block(_) => b'4',
        MemberKind::Dir => b'5',
        MemberKind::Fifo => b'6',
        MemberKind::Sparse { .. } => return false,
    };
    let link = match &member.kind {
        MemberKind::Link(link) | MemberKind::Symlink(link) => *link == written.link,
        _ => true,
    };
    let device = match &member.kind {
        MemberKind::Char(device) | MemberKind::Block(device) => {
            (i64::from(device.major), i64::from(device.minor)) == (written.major, written.minor)
        }
        _ => true,
    };
    let ids = [(written.uid, member.uid), (written.gid, member.gid)];
    kind == written.kind
        && link
        && device
        && member.path == written.name
        && (kind != b'0' || u64::try_from(written.size) == Ok(member.payload))
        && i64::from(member.mode) == written.mode & 0o7777
        && ids.iter().all(|(written, member)| *written == i64::from(*member))
        && member.mtime == written.mtime
        && *member.xattrs == written.xattrs
}

fn reason(why: NotWritten) -> &'static str {
    match why {
        NotWritten::Global => {
            "a global extended header comes before it, which Go's archive/tar does not apply"
        }
        NotWritten::Sparse => "it is a sparse file, whose content is not in one piece in the tar",
        NotWritten::Type => "its type is not one of the seven that tables know",
        NotWritten::Header => "Go's archive/tar cannot read its header",
    }
}

/// Checks the length of a table.
pub(super) fn bounded(len: usize) -> Result<(), RecodeError> {
    if len as u64 > MOST_TABLE {
        return Err(RecodeError::Limit { what: "the table of contents", limit: MOST_TABLE });
    }
    Ok(())
}
