//! The files of a layer, laid in blocks, and the layer's tree.
//!
//! A file begins at a block; so does each run of one with holes, which are left out where they are whole blocks. Of a
//! block that is partly hole the rest are zeros.

use std::io::Write;

use format::erofs::disk;
use format::erofs::write::layer::FILES;
use format::limits::BLOCK;
use format::payload::{Piece, Run};
use format::tar::{Member, MemberKind};
use format::tree::{Apart, Runs, Tree};

use super::super::RecodeError;
use super::super::members::{Event, Receiver};
use super::ErofsError;

const ZEROS: [u8; disk::BLOCK] = [0; disk::BLOCK];

/// Lays them.
pub(super) struct Lay<W> {
    out: W,
    /// Offset in the image.
    at: u64,
    tree: Apart,
    file: Option<File>,
}

/// The file whose bytes are coming.
struct File {
    /// Offset in the file up to which there are bytes.
    done: u64,
    /// Data that is to come, ascending, the next one last.
    data: Vec<Piece>,
}

impl<W: Write> Lay<W> {
    /// Returns one that writes to `out` what is behind the first block.
    pub(super) fn new(out: W) -> Result<Self, RecodeError> {
        Ok(Self { out, at: FILES, tree: Apart::new().map_err(ErofsError::from)?, file: None })
    }

    /// Says that nothing follows; returns the tree, in which payload space is the image, and where the files end.
    pub(super) fn finish(mut self) -> Result<(Tree, u64), RecodeError> {
        self.end_file()?;
        Ok((self.tree.finish().map_err(ErofsError::from)?, self.at))
    }

    fn member(&mut self, member: &Member) -> Result<(), RecodeError> {
        self.end_file()?;
        let size = member.size();
        let (data, runs) = match &member.kind {
            MemberKind::File if size > 0 => (vec![Piece { at: 0, len: size }], Runs::Whole(self.at)),
            MemberKind::Sparse { pieces, .. } => {
                let data: Vec<_> = pieces.iter().filter(|piece| piece.len > 0).copied().collect();
                let runs = runs(&data, size, self.at);
                (data.into_iter().rev().collect(), runs)
            }
            _ => (Vec::new(), Runs::None),
        };
        self.tree.member(member, runs).map_err(ErofsError::from)?;
        if !data.is_empty() {
            self.file = Some(File { done: 0, data });
        }
        Ok(())
    }

    fn payload(&mut self, mut bytes: &[u8]) -> Result<(), RecodeError> {
        let Some(mut file) = self.file.take() else { return Err(RecodeError::Thread) };
        while !bytes.is_empty() {
            // The pieces of a sparse file are as long as its payload.
            let Some(mut piece) = file.data.pop() else { return Err(RecodeError::Thread) };
            self.reach(&mut file, piece.at)?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            self.write(now)?;
            bytes = later;
            file.done += len as u64;
            if piece.len > len as u64 {
                piece = Piece { at: piece.at + len as u64, len: piece.len - len as u64 };
                file.data.push(piece);
            }
        }
        self.file = Some(file);
        Ok(())
    }

    /// Goes on to where the next data of a file is: past whole blocks of a hole, and through the parts of others.
    fn reach(&mut self, file: &mut File, at: u64) -> Result<(), RecodeError> {
        let (block, end) = (at / BLOCK * BLOCK, file.done.next_multiple_of(BLOCK));
        if block > file.done {
            self.zeros(end - file.done)?;
            file.done = block;
        }
        self.zeros(at - file.done)?;
        file.done = at;
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), RecodeError> {
        match self.file.take() {
            Some(file) if file.data.is_empty() => self.zeros(self.at.next_multiple_of(BLOCK) - self.at),
            Some(_) => Err(RecodeError::TarEnds),
            None => Ok(()),
        }
    }

    /// Writes zeros, of which there are less than a block.
    fn zeros(&mut self, len: u64) -> Result<(), RecodeError> {
        let len = usize::try_from(len).unwrap_or(ZEROS.len()).min(ZEROS.len());
        self.write(&ZEROS[..len])
    }

    fn write(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.at += bytes.len() as u64;
        self.out.write_all(bytes).map_err(RecodeError::Write)
    }
}

impl<W: Write> Receiver for Lay<W> {
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError> {
        match event {
            Event::Head(_, member) => self.member(member),
            Event::Payload(bytes) => self.payload(bytes),
            Event::Padding(_) | Event::Tail(_) | Event::Ahead | Event::Rest => Ok(()),
        }
    }
}

/// Returns the runs of a sparse file whose data comes in these pieces and is laid from `at` on.
fn runs(data: &[Piece], size: u64, at: u64) -> Runs {
    let mut runs: Vec<Run> = Vec::new();
    for piece in data {
        let (first, end) = (piece.at / BLOCK * BLOCK, piece.at + piece.len);
        match runs.last_mut() {
            // They meet in a block, or side by side.
            Some(last) if first <= (last.at + last.len).next_multiple_of(BLOCK) => last.len = end - last.at,
            last => {
                let payload = last.map_or(at, |last| (last.payload + last.len).next_multiple_of(BLOCK));
                runs.push(Run { at: first, payload, len: end - first });
            }
        }
    }
    match runs[..] {
        [] => Runs::None,
        // What lacks at the end of the last block is zeros there.
        [Run { at: 0, payload, len }] if len.next_multiple_of(BLOCK) >= size => Runs::Whole(payload),
        _ => Runs::Sparse(runs.into()),
    }
}
