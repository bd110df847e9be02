//! The files of a layer, cut into chunks, and the layer's tree.
//!
//! Every 1 MiB of a file is a chunk; what is left at its end is a shorter one. Holes of sparse files are zeros here, which
//! is what RAFS knows: a chunk of a hole is written once, and only counted after that.

use std::collections::HashSet;

use format::nydus::disk::CHUNKS;
use format::nydus::write::CHUNK_SIZE;
use format::payload::Piece;
use format::tar::{Member, MemberKind};
use format::tree::{Apart, InodeNo, Runs, Tree};

use super::super::RecodeError;
use super::super::members::{Event, Receiver};
use super::super::pipe::Pipe;
use super::NydusError;

/// Most chunks of all files: nydus-image takes one number less than there are.
const MOST: u64 = CHUNKS as u64 - 1;

const SIZE: u64 = CHUNK_SIZE as u64;

/// Zeros to write at a time.
const ZEROS: [u8; 4096] = [0; 4096];

/// Cuts one.
pub(super) struct Cut<'a, 'scope> {
    pipe: &'a mut Pipe<'scope>,
    tree: Apart,
    /// Of all files, which of the pipe's pieces each chunk is.
    pieces: Vec<u32>,
    /// Pieces that went to the pipe.
    sent: u32,
    /// The first of them that was a hole.
    hole: Option<u32>,
    file: Option<File>,
    /// Whether what comes is read first.
    is_ahead: bool,
    ahead: HashSet<u64>,
}

/// What a layer turned out to be.
pub(super) struct Layer {
    pub(super) tree: Tree,
    /// Directories that no member describes.
    pub(super) implied: HashSet<InodeNo>,
    /// Of all files, which of the pipe's pieces each chunk is.
    pub(super) pieces: Vec<u32>,
    /// At which of these the files begin that are read first.
    pub(super) ahead: HashSet<u64>,
}

/// The file whose content is coming.
struct File {
    size: u64,
    done: u64,
    /// Data that is to come, ascending, the next one last. Nothing for a file that is not sparse.
    data: Vec<Piece>,
}

impl<'a, 'scope> Cut<'a, 'scope> {
    pub(super) fn new(pipe: &'a mut Pipe<'scope>) -> Result<Self, RecodeError> {
        let tree = Apart::new().map_err(NydusError::from)?;
        Ok(Self {
            pipe,
            tree,
            pieces: Vec::new(),
            sent: 0,
            hole: None,
            file: None,
            is_ahead: false,
            ahead: HashSet::new(),
        })
    }

    /// Says that nothing follows.
    pub(super) fn finish(mut self) -> Result<Layer, RecodeError> {
        self.end_file()?;
        let (tree, implied) = self.tree.finish_as_tar().map_err(NydusError::from)?;
        Ok(Layer { tree, implied, pieces: self.pieces, ahead: self.ahead })
    }

    fn member(&mut self, member: &Member) -> Result<(), RecodeError> {
        self.end_file()?;
        let (size, first) = (member.size(), self.pieces.len() as u64);
        if first + size.div_ceil(SIZE) > MOST {
            let what = format::name::printable(&member.path);
            let why = "with it the layer has more chunks than a blob of Nydus can";
            return Err(RecodeError::Inexpressible { what, why });
        }
        let is_file = matches!(member.kind, MemberKind::File | MemberKind::Sparse { .. }) && size > 0;
        let runs = if is_file { Runs::Whole(first) } else { Runs::None };
        self.tree.member(member, runs).map_err(NydusError::from)?;
        if is_file {
            if self.is_ahead {
                self.ahead.insert(first);
            }
            let data = match &member.kind {
                MemberKind::Sparse { pieces, .. } => {
                    pieces.iter().rev().filter(|piece| piece.len > 0).copied().collect()
                }
                _ => vec![Piece { at: 0, len: size }],
            };
            self.file = Some(File { size, done: 0, data });
        }
        Ok(())
    }

    fn payload(&mut self, mut bytes: &[u8]) -> Result<(), RecodeError> {
        let Some(mut file) = self.file.take() else { return Err(RecodeError::Thread) };
        while !bytes.is_empty() {
            // The pieces of a sparse file are as long as its payload.
            let Some(mut piece) = file.data.pop() else { return Err(RecodeError::Thread) };
            self.zeros(&mut file, piece.at)?;
            let len = usize::try_from(piece.len).unwrap_or(usize::MAX).min(bytes.len());
            let (now, later) = bytes.split_at(len);
            self.data(&mut file, now)?;
            bytes = later;
            if piece.len > len as u64 {
                piece = Piece { at: piece.at + len as u64, len: piece.len - len as u64 };
                file.data.push(piece);
            }
        }
        self.file = Some(file);
        Ok(())
    }

    fn end_file(&mut self) -> Result<(), RecodeError> {
        match self.file.take() {
            Some(mut file) => {
                let size = file.size;
                self.zeros(&mut file, size)
            }
            None => Ok(()),
        }
    }

    /// Writes zeros up to an offset.
    fn zeros(&mut self, file: &mut File, end: u64) -> Result<(), RecodeError> {
        while file.done < end {
            let whole = file.done.is_multiple_of(SIZE) && end - file.done >= SIZE;
            if whole && let Some(hole) = self.hole {
                self.pieces.push(hole);
                file.done += SIZE;
                continue;
            }
            let hole = whole.then_some(self.sent);
            let mut left = (SIZE - file.done % SIZE).min(end - file.done);
            while left > 0 {
                let now = left.min(ZEROS.len() as u64);
                self.data(file, &ZEROS[..usize::try_from(now).unwrap_or(0)])?;
                left -= now;
            }
            self.hole = self.hole.or(hole);
        }
        Ok(())
    }

    fn data(&mut self, file: &mut File, mut bytes: &[u8]) -> Result<(), RecodeError> {
        while !bytes.is_empty() {
            let of_chunk = file.done % SIZE;
            if of_chunk == 0 {
                self.pipe.cut()?;
            }
            let room = usize::try_from(SIZE - of_chunk).unwrap_or(usize::MAX);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.pipe.write(now)?;
            file.done += now.len() as u64;
            if file.done == file.size || now.len() == room {
                self.pipe.chunk_ends()?;
                self.pieces.push(self.sent);
                self.sent += 1;
            }
            bytes = later;
        }
        Ok(())
    }
}

impl Receiver for Cut<'_, '_> {
    fn event(&mut self, event: Event<'_>) -> Result<(), RecodeError> {
        match event {
            Event::Head(_, member) => self.member(member),
            Event::Payload(bytes) => self.payload(bytes),
            Event::Padding(_) | Event::Tail(_) => Ok(()),
            Event::Ahead => {
                self.is_ahead = true;
                Ok(())
            }
            Event::Rest => {
                self.is_ahead = false;
                Ok(())
            }
        }
    }
}
