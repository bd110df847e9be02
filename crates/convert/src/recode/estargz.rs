//! eStargz: gzip in which each piece of a file begins a member, with a table at the end.
//!
//! The format is that of stargz-snapshotter: `estargz/estargz.go` (`appendTar`, lossless), `estargz/gzip.go` (table and
//! footer), `estargz/build.go` (the landmark). See [`format::stargz`] for the layout.
//!
//! ```text
//! member     header of ".no.prefetch.landmark"
//! member     its payload, its padding; headers of the first members of the source …
//!            (or, where it is known what is read first: that, and behind it ".prefetch.landmark")
//! member     a piece of a file, at most 512 KiB; after the last one padding, and headers up to the next payload
//! …
//! member     header of "stargz.index.json", the table, padding; the tail of the source
//! footer
//! ```
//!
//! Where there is no payload for 8 MiB a member ends as well; nobody counts on what is not at a piece.
//!
//! # The end of the tar
//!
//! The table is the last member: it lies before the zero blocks and whatever else the source ends with, so that readers
//! of the tar come upon it, and what it must look like is said by nobody else. If the source ends inside the padding of
//! its last payload, that padding is made whole, and the table lacks as many bytes of its own instead: spaces make it
//! so long that its padding would be just those. So the tar ends inside a padding as the source did, which Go's
//! archive/tar accepts, and a reader that takes the table out knows what to cut ([`super::members`]).

use std::collections::BTreeMap;

use format::name::printable;
use format::stargz::{LANDMARK, NO_PREFETCH, PREFETCH, TOC_DIGEST, TOC_NAME, UNCOMPRESSED_SIZE};
use format::tar::{Member, MemberKind, write_header};
use format::tree::{Time, Xattrs};
use format::{DiffId, Digest, DigestHasher};

use super::RecodeError;
use super::members::{BLOCK, Event, Receiver};
use super::names::clean;
use super::pipe::Pipe;
use super::table::{Style, Table};

/// Longest piece of a file: what a segment of Floe's takes, or a part of it in large layers, so that who reads a segment
/// fetches no more. The reference takes 4 MiB unless told otherwise, of which every reader has to have the whole.
pub(super) const PIECE: usize = 512 << 10;

/// Longest member, in plain bytes.
pub(super) const MEMBER: usize = 8 << 20;

const ZEROS: [u8; BLOCK] = [0; BLOCK];

/// Writes one.
pub(super) struct EStargz<'a, 'scope> {
    pipe: &'a mut Pipe<'scope>,
    table: Option<Table>,
    /// The tar that is written.
    hasher: DigestHasher,
    size: u64,
    /// Payload of the current file: what is to come, and how much there was.
    left: u64,
    done: u64,
    /// The digest of the current file, if it has several pieces.
    file: Option<DigestHasher>,
    toc: Option<Toc>,
    landmark: Landmark,
}

/// Which landmark there is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Landmark {
    /// It is not known yet: that depends on what comes first.
    Open,
    /// The one that comes behind what is read first, and that is still to come.
    Later,
    Written,
}

/// The table, written.
struct Toc {
    /// Where its member begins in the blob.
    offset: u64,
    digest: Digest,
}

impl<'a, 'scope> EStargz<'a, 'scope> {
    pub(super) fn new(pipe: &'a mut Pipe<'scope>) -> Self {
        Self {
            pipe,
            table: Some(Table::new(Style::EStargz, PIECE)),
            hasher: DigestHasher::new(),
            size: 0,
            left: 0,
            done: 0,
            file: None,
            toc: None,
            landmark: Landmark::Open,
        }
    }

    /// Says that something comes; if nobody has said that it is read first, nobody knows what is.
    fn begin(&mut self) -> Result<(), RecodeError> {
        if self.landmark == Landmark::Open { self.mark(NO_PREFETCH) } else { Ok(()) }
    }

    /// Writes a landmark.
    fn mark(&mut self, name: &str) -> Result<(), RecodeError> {
        self.landmark = Landmark::Written;
        if let Some(table) = &mut self.table {
            table.own(name, LANDMARK.len() as u64)?;
        }
        self.write(&header(name, LANDMARK.len()))?;
        self.begin_payload(LANDMARK.len() as u64);
        self.payload(&LANDMARK)?;
        self.write(&[0; BLOCK - LANDMARK.len()])
    }

    /// Says that the tar ends, `missing` bytes before the end of a padding; returns what was written, and what its
    /// descriptor says.
    pub(super) fn finish(
        mut self,
        missing: usize,
    ) -> Result<(DiffId, BTreeMap<String, String>), RecodeError> {
        self.begin()?;
        self.write(&ZEROS[..missing])?;
        self.write_table(missing)?;
        let toc = self.toc.ok_or(RecodeError::Thread)?;
        self.pipe.as_is(&footer(toc.offset))?;
        let annotations = BTreeMap::from([
            (TOC_DIGEST.to_owned(), toc.digest.to_string()),
            (UNCOMPRESSED_SIZE.to_owned(), self.size.to_string()),
        ]);
        Ok((DiffId::new(self.hasher.finish()), annotations))
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.hasher.update(bytes);
        self.size += bytes.len() as u64;
        self.pipe.write(bytes)
    }

    fn begin_payload(&mut self, len: u64) {
        (self.left, self.done) = (len, 0);
        self.file = (len > PIECE as u64).then(DigestHasher::new);
    }

    fn payload(&mut self, mut bytes: &[u8]) -> Result<(), RecodeError> {
        if let Some(file) = &mut self.file {
            file.update(bytes);
        }
        while !bytes.is_empty() {
            let of_piece = self.done % PIECE as u64;
            if of_piece == 0 {
                self.pipe.cut()?;
            }
            let room = usize::try_from(PIECE as u64 - of_piece).unwrap_or(PIECE);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.write(now)?;
            self.done += now.len() as u64;
            self.left = self.left.saturating_sub(now.len() as u64);
            if self.left == 0 || now.len() == room {
                self.pipe.content_ends();
            }
            bytes = later;
        }
        if self.left == 0
            && let (Some(file), Some(table)) = (self.file.take(), &mut self.table)
        {
            table.file_digest(file.finish());
        }
        Ok(())
    }

    /// Writes the table, unless it is written: all members are in it.
    fn write_table(&mut self, missing: usize) -> Result<(), RecodeError> {
        let Some(table) = self.table.take() else { return Ok(()) };
        let placed = self.pipe.placed()?;
        let mut json = table.finish(&placed.places, "")?;
        if missing > 0 {
            // Before the last brace: a decoder that stops there has hashed it all.
            let spaces = (2 * BLOCK - missing - json.len() % BLOCK) % BLOCK;
            let brace = json.len() - 1;
            json.splice(brace..brace, std::iter::repeat_n(b' ', spaces));
        }
        self.toc = Some(Toc { offset: placed.end, digest: Digest::of(&json) });
        self.write(&header(TOC_NAME, json.len()))?;
        self.write(&json)?;
        let padding = (json.len().wrapping_neg() % BLOCK).saturating_sub(missing);
        self.write(&ZEROS[..padding])
    }
}

impl Receiver for EStargz<'_, '_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError> {
        match event {
            Event::Ahead => {
                self.landmark = Landmark::Later;
                Ok(())
            }
            Event::Rest => self.mark(PREFETCH),
            Event::Head(head, member) => {
                self.begin()?;
                if [TOC_NAME, PREFETCH, NO_PREFETCH]
                    .map(str::as_bytes)
                    .contains(&clean(&member.path).as_slice())
                {
                    return Err(RecodeError::Inexpressible {
                        what: printable(&member.path),
                        why: "eStargz keeps this name for itself",
                    });
                }
                if let Some(table) = &mut self.table {
                    table.member(head, member)?;
                }
                self.write(head)?;
                self.begin_payload(member.payload);
                Ok(())
            }
            Event::Payload(bytes) => self.payload(bytes),
            Event::Padding(bytes) => self.write(bytes),
            Event::Tail(bytes) => {
                self.begin()?;
                self.write_table(0)?;
                self.write(bytes)
            }
        }
    }
}

/// Returns the header of a regular file in the root, as Go's archive/tar writes it of a name and a length.
fn header(name: &str, len: usize) -> Vec<u8> {
    let member = Member {
        path: name.as_bytes().into(),
        kind: MemberKind::File,
        mode: 0,
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        xattrs: Xattrs::default(),
        plain: 0,
        payload: len as u64,
    };
    let mut header = Vec::with_capacity(BLOCK);
    write_header(&member, &mut header);
    header
}

/// Returns the footer: an empty gzip member that says where the table's begins.
fn footer(offset: u64) -> Vec<u8> {
    let mut footer = vec![0x1f, 0x8b, 8, 4, 0, 0, 0, 0, 0, 0xff, 26, 0, b'S', b'G', 22, 0];
    footer.extend_from_slice(format!("{offset:016x}STARGZ").as_bytes());
    // One stored block of nothing, which is the last; no CRC, no length.
    footer.extend_from_slice(&[1, 0, 0, 0xff, 0xff, 0, 0, 0, 0, 0, 0, 0, 0]);
    footer
}

#[cfg(test)]
mod tests {
    use super::*;
    use format::tar::{Parser, Step};

    #[test]
    fn footers_have_51_bytes() {
        let footer = footer(0x1234);
        assert_eq!(footer.len(), 51);
        assert_eq!(&footer[16..38], b"0000000000001234STARGZ");
    }

    #[test]
    fn headers_are_those_of_files() {
        let (n, step) = Parser::new().step(&header(TOC_NAME, 1234)).unwrap();
        let Step::Member(member) = step else { unreachable!("a whole header") };
        assert_eq!((n, &*member.path, member.payload, member.mode), (512, TOC_NAME.as_bytes(), 1234, 0));
        assert_eq!(header(TOC_NAME, 1234)[257..345].iter().filter(|byte| **byte == b'0').count(), 2 + 14);
    }
}
