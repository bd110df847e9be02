//! From a range of a file to bytes: all of them, or which segment is missing, or why it fails.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use format::erofs::read::{Image, Inode, Piece, Source};
use store::Segments;

use super::Server;
use super::ahead::Ahead;
use super::files::{Files, InPlace, OpenSegment};
use crate::observe::{Failure, Observer};

/// What all threads of a mount share.
pub(super) struct Core<B> {
    pub(super) image: Arc<Image<B>>,
    pub(super) segments: Arc<dyn Segments>,
    pub(super) observer: Arc<dyn Observer>,
    pub(super) deadline: Duration,
    pub(super) files: Files,
    ahead: Ahead,
}

/// Whether a range could be read.
#[derive(Debug)]
pub(super) enum Outcome {
    /// The buffer holds all of it.
    Read,
    /// A segment is not here; the first one missing is on this device.
    Missing(u16),
}

impl<B: AsRef<[u8]>> Core<B> {
    pub(super) fn new(server: Server<B>) -> Self {
        Self {
            image: server.image,
            segments: server.segments,
            observer: server.observer,
            deadline: server.options.deadline,
            files: Files::new(),
            ahead: Ahead::new(),
        }
    }

    /// Reads a range of a file that lies inside it.
    pub(super) fn read(&self, inode: &Inode, offset: u64, buf: &mut [u8]) -> Result<Outcome, Failure> {
        let len = buf.len() as u64;
        let mut rest = buf;
        for piece in self.image.pieces(inode, offset, len).map_err(Failure::Corrupt)? {
            let piece = piece.map_err(Failure::Corrupt)?;
            // Pieces are no longer than what was asked for, so this takes them all and leaves nothing.
            let here = usize::try_from(piece.len).unwrap_or(usize::MAX).min(rest.len());
            let (part, next) = std::mem::take(&mut rest).split_at_mut(here);
            rest = next;
            match piece.source {
                Source::Hole => part.fill(0),
                Source::Device { number, offset: at } => match self.segment(number) {
                    Some(segment) => segment.read_exact(part, at).map_err(Failure::Disk)?,
                    None => {
                        // What waits for one segment shall not wait for its next one after that.
                        self.hint(inode, offset, len, number);
                        return Ok(Outcome::Missing(number));
                    }
                },
            }
        }
        if rest.is_empty() {
            return Ok(Outcome::Read);
        }
        // A range inside the file has pieces for all of it.
        Err(Failure::Disk(io::ErrorKind::UnexpectedEof.into()))
    }

    /// Returns a range of a file where it lies, if it is one piece of a segment that is here and mapped.
    ///
    /// So it is for nearly every read: a file, or the part of one that the kernel asks for, is one piece.
    pub(super) fn in_place(&self, inode: &Inode, offset: u64, len: u64) -> Option<InPlace> {
        // Damage is found again, and told, by `read`.
        let piece = self.image.pieces(inode, offset, len).ok()?.next()?.ok()?;
        let Source::Device { number, offset: at } = piece.source else { return None };
        if piece.len != len {
            return None;
        }
        self.segment(number)?.mapped(at..at + len)
    }

    /// Returns a device's segment if it is whole on this node.
    fn segment(&self, device: u16) -> Option<Arc<OpenSegment>> {
        if let Some(open) = self.files.get(device) {
            return Some(open);
        }
        let slot = self.image.device(device)?;
        let file = self.segments.local(slot.index, slot.segment)?;
        Some(self.files.put(device, file))
    }

    /// Notes a read and hints what a sequential reader will want.
    pub(super) fn look_ahead(&self, inode: &Inode, offset: u64, len: u64) {
        // A file within one block or two is read whole at once.
        if inode.size <= 64 << 10 {
            return;
        }
        if let Some(range) = self.ahead.read(inode.nid, offset, len) {
            self.hint(inode, range.start, range.end - range.start, 0);
        }
    }

    /// Hints the segments of a range of a file, but not that of the device `except`.
    fn hint(&self, inode: &Inode, offset: u64, len: u64, except: u16) {
        let Ok(pieces) = self.image.pieces(inode, offset, len) else { return };
        for piece in pieces {
            // A damaged image is told to whoever reads it.
            let Ok(Piece { source: Source::Device { number, .. }, .. }) = piece else { continue };
            if number == except || self.files.get(number).is_some() {
                continue;
            }
            if let Some(slot) = self.image.device(number) {
                self.segments.hint(slot.index, slot.segment..slot.segment.saturating_add(1));
            }
        }
    }
}
