//! Makes layers with a table of contents, plainly: the generator behind the tests of their reader.

use std::collections::BTreeMap;

use format::Digest;
use format::stargz::table::Announced;
use format::stargz::toc::{Entry as Row, Toc};
use format::stargz::{MANIFEST_CHECKSUM, MANIFEST_POSITION, TOC_DIGEST, TOC_NAME};
use sys::deflate::compress;
use sys::inflate::Wrap;
use testkit::tar::{Archive, Entry, Kind, Variant};

/// What is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Form {
    EStargz,
    /// The same with the footer of before.
    Old,
    /// The same with the table in a blob of its own.
    Elsewhere,
    /// zstd:chunked.
    Chunked,
}

/// A layer.
pub(crate) struct Made {
    pub(crate) form: Form,
    pub(crate) blob: Vec<u8>,
    /// The table, where it is a blob of its own.
    pub(crate) table: Vec<u8>,
    pub(crate) announced: Announced,
    pub(crate) toc: Toc,
}

struct Maker {
    form: Form,
    blob: Vec<u8>,
    /// Plain bytes of the member or frame in hand.
    open: Vec<u8>,
}

impl Maker {
    fn close(&mut self) {
        if !self.open.is_empty() {
            self.blob.extend(match self.form {
                Form::Chunked => zstd::bulk::compress(&self.open, 3).unwrap(),
                _ => compress(&self.open, Wrap::Gzip, 6).unwrap(),
            });
            self.open.clear();
        }
    }

    fn skippable(&mut self, bytes: &[u8]) {
        self.blob.extend(b"\x50\x2a\x4d\x18");
        self.blob.extend(u32::try_from(bytes.len()).unwrap().to_le_bytes());
        self.blob.extend(bytes);
    }
}

fn tar(entry: &Entry) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.entry(entry, Variant::Pax10);
    archive.tar
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn row(entry: &Entry) -> Row {
    let (kind, link, (major, minor)) = match &entry.kind {
        Kind::Dir => ("dir", String::new(), (0, 0)),
        Kind::File(_) => ("reg", String::new(), (0, 0)),
        Kind::Link(to) => ("hardlink", text(to), (0, 0)),
        Kind::Symlink(to) => ("symlink", text(to), (0, 0)),
        Kind::Char(major, minor) => ("char", String::new(), (*major, *minor)),
        Kind::Block(major, minor) => ("block", String::new(), (*major, *minor)),
        Kind::Fifo => ("fifo", String::new(), (0, 0)),
        Kind::Sparse(..) => panic!("no table has sparse files"),
    };
    let modtime = match entry.mtime.0 {
        1_700_000_000 => "2023-11-14T22:13:20Z",
        -5 => "1969-12-31T23:59:55Z",
        other => panic!("{other} is not written here"),
    };
    let xattr = |(name, value): &(Vec<u8>, Vec<u8>)| (text(name), testkit::base64::encode(value));
    Row {
        name: text(&entry.path),
        kind: kind.into(),
        modtime: modtime.into(),
        link_name: link,
        mode: entry.mode.into(),
        uid: entry.uid.into(),
        gid: entry.gid.into(),
        dev_major: major.into(),
        dev_minor: minor.into(),
        xattrs: entry.xattrs.iter().map(xattr).collect(),
        ..Row::default()
    }
}

/// Returns a layer of these entries in pieces of at most `chunk` bytes, members of at least `least` plain ones.
pub(crate) fn make(entries: &[Entry], form: Form, chunk: usize, least: usize) -> Made {
    let mut maker = Maker { form, blob: Vec::new(), open: Vec::new() };
    let mut rows = Vec::new();
    for entry in entries {
        let bytes = tar(entry);
        let mut first = row(entry);
        let Kind::File(content) = &entry.kind else {
            maker.open.extend(bytes);
            rows.push(first);
            continue;
        };
        let begins = bytes.len() - content.len().next_multiple_of(512);
        maker.open.extend(&bytes[..begins]);
        first.size = content.len().try_into().unwrap();
        if !content.is_empty() {
            first.digest = Digest::of(content).to_string();
        }
        let pieces = content.chunks(chunk).count();
        for (n, piece) in content.chunks(chunk).enumerate() {
            if maker.open.len() >= least {
                maker.close();
            }
            let mut row = match n {
                0 => first.clone(),
                _ => Row { name: first.name.clone(), kind: "chunk".into(), ..Row::default() },
            };
            row.offset = maker.blob.len().try_into().unwrap();
            row.inner_offset = maker.open.len().try_into().unwrap();
            row.chunk_offset = (n * chunk).try_into().unwrap();
            if form != Form::Chunked || pieces > 1 {
                row.chunk_digest = Digest::of(piece).to_string();
            }
            if pieces > 1 && (piece.len() == chunk || form == Form::Chunked) {
                row.chunk_size = piece.len().try_into().unwrap();
            }
            rows.push(row);
            maker.open.extend(piece);
        }
        if content.is_empty() {
            rows.push(first);
        } else if form == Form::Chunked {
            maker.close();
            let end = maker.blob.len().try_into().unwrap();
            rows.iter_mut().rev().find(|row| row.kind == "reg").unwrap().end_offset = end;
        }
        maker.open.resize(maker.open.len() + content.len().next_multiple_of(512) - content.len(), 0);
    }
    let toc = Toc { version: 1, entries: rows, tar_split_digest: String::new() };
    finish(maker, toc)
}

fn finish(mut maker: Maker, toc: Toc) -> Made {
    let json = serde_json::to_vec(&toc).unwrap();
    let (mut notes, mut table) = (BTreeMap::new(), Vec::new());
    if maker.form == Form::Chunked {
        maker.open.extend([0; 1024]);
        maker.close();
        let packed = zstd::bulk::compress(&json, 3).unwrap();
        let offset = maker.blob.len() + 8;
        maker.skippable(&packed);
        let mut footer = Vec::new();
        for number in [offset, packed.len(), json.len(), 1] {
            footer.extend((number as u64).to_le_bytes());
        }
        footer.extend(b"GNUlInUx");
        maker.skippable(&footer);
        let position = format!("{offset}:{}:{}:1", packed.len(), json.len());
        notes.insert(MANIFEST_POSITION.into(), position);
        notes.insert(MANIFEST_CHECKSUM.into(), Digest::of(&packed).to_string());
    } else {
        maker.close();
        let offset = maker.blob.len();
        maker.open.extend(tar(&Entry::file(TOC_NAME, &json)));
        maker.open.extend([0; 1024]);
        maker.close();
        let (header, said): (&[u8], _) = match maker.form {
            Form::Old => (b"\x16\0", format!("{offset:016x}STARGZ")),
            Form::Elsewhere => (b"\x15\0SG\x11\0", "STARGZEXTERNALTOC".to_owned()),
            _ => (b"\x1a\0SG\x16\0", format!("{offset:016x}STARGZ")),
        };
        if maker.form == Form::Elsewhere {
            table = maker.blob.split_off(offset);
        }
        maker.blob.extend(b"\x1f\x8b\x08\x04\0\0\0\0\0\xff");
        maker.blob.extend(header);
        maker.blob.extend(said.as_bytes());
        maker.blob.extend(b"\x01\0\0\xff\xff\0\0\0\0\0\0\0\0");
        notes.insert(TOC_DIGEST.into(), Digest::of(&json).to_string());
    }
    let announced = Announced::by(&notes).unwrap();
    Made { form: maker.form, blob: maker.blob, table, announced, toc }
}
