//! zstd:chunked: zstd in which each piece of a file is a frame of its own, with a table and a tar-split beside the tar.
//!
//! The format is that of containers/storage: `pkg/chunked/compressor/compressor.go` (what is a frame) and
//! `pkg/chunked/internal/minimal/compression.go` (table, footer, annotations). See [`format::stargz`] for the layout.
//!
//! ```text
//! frame      padding, and headers up to the next payload
//! frame      a piece of a file
//! …
//! frame      padding, and all that follows the members
//! skippable  the table, packed
//! skippable  the tar-split, packed: see [`super::split`]
//! skippable  footer, 64 bytes
//! ```
//!
//! Pieces have 512 KiB, what a segment of Floe's takes, counted from the beginning of the file; the reference cuts by
//! content, 64 KiB on average. Who has one version of a file already finds more of the next one by such cuts, but what layers have in common is mostly whole
//! files, which are found in either; and frames of 64 KiB are some per cent longer, and take a rolling sum over all.
//! A piece of nothing but zeros is said to be one, so that nobody fetches it.
//!
//! What a start reads comes first where that is known; how much it is the descriptor says ([`READ_FIRST`]), for the format
//! cannot.
//!
//! The descriptor does not have the annotation of eStargz' tables: containers/storage refuses a layer with both, and
//! stargz-snapshotter does not find the table by a footer of this length.

use std::collections::BTreeMap;

use format::DigestHasher;
use format::stargz::{MANIFEST_CHECKSUM, MANIFEST_POSITION, READ_FIRST, TARSPLIT_POSITION};

use super::RecodeError;
use super::members::{Event, Receiver};
use super::pack::{Level, Packer};
use super::pipe::Pipe;
use super::split::{Crc64, Split};
use super::table::{Style, Table, bounded};

/// Longest piece of a file.
const PIECE: usize = 512 << 10;

/// Longest frame of what is no content, in plain bytes.
pub(super) const FRAME: usize = 8 << 20;

/// Most bytes after the members. They must be in one segment of the tar-split, whose readers look for a header in each.
const TAIL: usize = 16 << 20;

/// Length of the header of a skippable frame.
const SKIP: u64 = 8;

/// The type of the table, in footer and annotation.
const CRFS: u64 = 1;

/// Writes one.
pub(super) struct Chunked<'a, 'scope> {
    pipe: &'a mut Pipe<'scope>,
    level: Level,
    table: Table,
    split: Split,
    /// What the next segment of the tar-split begins with: padding, and what follows the members.
    pending: Vec<u8>,
    file: Option<File>,
    /// Pieces so far, and how many of them are read first.
    pieces: usize,
    ahead: usize,
}

/// The file whose content is coming.
struct File {
    name: String,
    size: u64,
    done: u64,
    sum: Crc64,
    /// Its digest, if it has several pieces.
    hasher: Option<DigestHasher>,
}

impl<'a, 'scope> Chunked<'a, 'scope> {
    pub(super) fn new(pipe: &'a mut Pipe<'scope>, level: Level) -> Result<Self, RecodeError> {
        let Level::Zstd(number) = level else { return Err(RecodeError::Thread) };
        let table = Table::new(Style::ZstdChunked, PIECE);
        let split = Split::new(number)?;
        Ok(Self { pipe, level, table, split, pending: Vec::new(), file: None, pieces: 0, ahead: 0 })
    }

    /// Says that the tar ends, `missing` bytes before the end of a padding; returns what the descriptor says.
    pub(super) fn finish(mut self, missing: usize) -> Result<BTreeMap<String, String>, RecodeError> {
        if missing > 0 {
            return Err(RecodeError::Inexpressible {
                what: "the end of the tar".into(),
                why: "it lies inside a padding, of which a tar-split cannot lack a part",
            });
        }
        if !self.pending.is_empty() {
            self.split.segment(&self.pending)?;
        }
        let split = self.split.finish()?;
        let placed = self.pipe.placed()?;
        let digest = format!(",\"tarSplitDigest\":\"{}\"", split.digest);
        let json = self.table.finish(&placed.places, &digest)?;
        let mut table = Vec::new();
        Packer::new(self.level)?.pack(&json, &mut table)?;
        bounded(table.len())?;

        let table_at = placed.end + SKIP;
        let split_at = table_at + table.len() as u64 + SKIP;
        let of_table = [table_at, table.len() as u64, json.len() as u64, CRFS];
        let of_split = [split_at, split.packed.len() as u64, split.plain];
        let mut footer: Vec<u8> = of_table.iter().chain(&of_split).flat_map(|n| n.to_le_bytes()).collect();
        footer.extend_from_slice(b"GNUlInUx");
        for frame in [&table, &split.packed, &footer] {
            self.pipe.as_is(&skippable(frame))?;
        }
        let numbers = |numbers: &[u64]| numbers.iter().map(u64::to_string).collect::<Vec<_>>().join(":");
        let ahead = self.ahead.checked_sub(1).and_then(|last| placed.places.get(last));
        let ahead = ahead.map(|last| (READ_FIRST.to_owned(), last.end.to_string()));
        let of_table = [
            (MANIFEST_CHECKSUM.to_owned(), format::Digest::of(&table).to_string()),
            (MANIFEST_POSITION.to_owned(), numbers(&of_table)),
            (TARSPLIT_POSITION.to_owned(), numbers(&of_split)),
        ];
        Ok(of_table.into_iter().chain(ahead).collect())
    }

    fn payload(&mut self, mut bytes: &[u8]) -> Result<(), RecodeError> {
        let Some(mut file) = self.file.take() else { return Err(RecodeError::Thread) };
        file.sum.update(bytes);
        if let Some(hasher) = &mut file.hasher {
            hasher.update(bytes);
        }
        while !bytes.is_empty() {
            let of_piece = file.done % PIECE as u64;
            if of_piece == 0 {
                self.pipe.cut()?;
                self.pieces += 1;
            }
            let room = usize::try_from(PIECE as u64 - of_piece).unwrap_or(PIECE);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pipe.write(now)?;
            file.done += now.len() as u64;
            if file.done == file.size || now.len() == room {
                self.pipe.content_ends();
                self.pipe.cut()?;
            }
            bytes = later;
        }
        if file.done < file.size {
            self.file = Some(file);
            return Ok(());
        }
        if let Some(hasher) = file.hasher {
            self.table.file_digest(hasher.finish());
        }
        self.split.file(&file.name, Some((file.size, file.sum)))
    }
}

impl Receiver for Chunked<'_, '_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError> {
        match event {
            Event::Head(head, member) => {
                let written = self.table.member(head, member)?;
                self.pipe.write(head)?;
                self.pending.extend_from_slice(head);
                self.split.segment(&self.pending)?;
                self.pending.clear();
                // The table has checked that.
                let name = String::from_utf8_lossy(&written.name).into_owned();
                if member.payload == 0 {
                    return self.split.file(&name, None);
                }
                let hasher = (member.payload > PIECE as u64).then(DigestHasher::new);
                self.file = Some(File { name, size: member.payload, done: 0, sum: Crc64::new(), hasher });
                Ok(())
            }
            Event::Payload(bytes) => self.payload(bytes),
            Event::Padding(bytes) | Event::Tail(bytes) => {
                if self.pending.len() + bytes.len() > TAIL {
                    return Err(RecodeError::Limit { what: "what follows the members", limit: TAIL as u64 });
                }
                self.pending.extend_from_slice(bytes);
                self.pipe.write(bytes)
            }
            Event::Ahead => Ok(()),
            Event::Rest => {
                self.ahead = self.pieces;
                Ok(())
            }
        }
    }
}

/// Returns a skippable frame, as which decoders pass over it (RFC 8878, 3.1.2). Its content has less than 4 GiB: tables
/// and tar-splits are bounded.
fn skippable(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    [&[0x50, 0x2a, 0x4d, 0x18], &len.to_le_bytes()[..], content].concat()
}
