//! Whether what is in a segment's file is right.

use std::fs::File;
use std::io;
use std::sync::atomic::{AtomicU32, Ordering};

use super::OpenLayer;
use crate::claim::Claim;
use crate::error::StoreError;

/// Bytes of a torn segment that are compared at once.
const COMPARE: usize = 256 << 10;

impl OpenLayer {
    /// Returns a segment that came wrong twice, and is missing to this day: either whoever sends it is to blame, or the
    /// index, whose word of where bytes lie nobody has hashed. Read whole the layer tells which.
    pub fn doubted(&self) -> Option<u32> {
        self.standing().doubt.filter(|segment| !self.is_whole(*segment))
    }

    /// Notes that a segment came wrong twice.
    pub(crate) fn doubt(&self, segment: u32) {
        if self.doubted().is_some() {
            return;
        }
        if let Err(error) = self.update(|standing| standing.doubt = Some(segment)) {
            tracing::warn!(layer = %self.id, %error, "cannot note that a segment came wrong twice");
        }
    }

    /// Forgets that a segment came wrong twice.
    pub(super) fn came_right(&self, segment: u32) {
        if self.standing().doubt == Some(segment)
            && let Err(error) = self.update(|standing| standing.doubt = None)
        {
            tracing::warn!(layer = %self.id, %error, "cannot note that a segment has come right");
        }
    }

    /// Checks a segment if it is suspect; one that is wrong is emptied. Returns whether it is whole.
    pub(crate) fn settle(&self, segment: u32) -> io::Result<bool> {
        let Some(owned) = self.own(segment) else { return Ok(self.claim(segment) == Some(Claim::Whole)) };
        if owned.was != Claim::Suspect {
            return Ok(false);
        }
        let right = self.readable_and_right(segment, false)?;
        if !right {
            tracing::warn!(layer = %self.id, segment, "a segment was lost in a crash and will be fetched again");
            self.empty(segment)?;
        }
        owned.becomes(if right { Claim::Whole } else { Claim::Missing });
        Ok(right)
    }

    /// Checks every suspect segment.
    pub(crate) fn settle_all(&self) -> io::Result<()> {
        if self.suspects.load(Ordering::Acquire) == 0 {
            return Ok(());
        }
        // Two threads: hashing is faster than most disks, and a mount waits for this.
        let next = AtomicU32::new(0);
        let work = || {
            loop {
                let segment = next.fetch_add(1, Ordering::Relaxed);
                match self.claim(segment) {
                    None => return Ok(()),
                    Some(Claim::Suspect | Claim::Busy) => self.settle(segment).map(|_| ())?,
                    Some(Claim::Missing | Claim::Whole) => {}
                }
            }
        };
        std::thread::scope(|scope| {
            let other = scope.spawn(work);
            let mine = work();
            let theirs = other.join().unwrap_or_else(|_| Err(io::Error::other("a check panicked")));
            mine.and(theirs)
        })
    }

    /// Hashes a segment that is whole. One that is wrong or gone is replaced by an empty one, to be fetched again.
    ///
    /// Returns whether it was right, nothing if it was not whole to begin with.
    pub(crate) fn scrub(&self, segment: u32) -> Result<Option<bool>, StoreError> {
        if self.claim(segment) != Some(Claim::Whole) {
            return Ok(None);
        }
        let right = self
            .readable_and_right(segment, true)
            .map_err(|error| StoreError::io("checking", &self.path(segment), error))?;
        if !right {
            self.unclaim(segment)?;
        }
        Ok(Some(right))
    }

    /// Returns whether the `there` bytes of a torn file are the first of these.
    pub(super) fn is_prefix(&self, file: &File, there: u64, bytes: &[u8]) -> io::Result<bool> {
        let Some(bytes) = usize::try_from(there).ok().and_then(|there| bytes.get(..there)) else {
            return Ok(false);
        };
        let mut buf = vec![0; COMPARE.min(bytes.len())];
        let mut offset = 0;
        for piece in bytes.chunks(COMPARE) {
            let buf = &mut buf[..piece.len()];
            crate::fs::read_exact(self.store.disk(), file, buf, offset)?;
            if buf != piece {
                return Ok(false);
            }
            offset += piece.len() as u64;
        }
        Ok(true)
    }

    /// Returns whether a segment is right, `unknown` if nobody knows what it should be; what cannot be read is as good as wrong: it can be fetched. That we have
    /// no descriptor or memory left says nothing about it.
    fn readable_and_right(&self, segment: u32, unknown: bool) -> io::Result<bool> {
        use rustix::io::Errno;
        self.right(segment).map(|right| right.unwrap_or(unknown)).or_else(|error| match Errno::from_io_error(
            &error,
        ) {
            Some(Errno::MFILE | Errno::NFILE | Errno::NOMEM) => Err(error),
            _ => {
                tracing::warn!(layer = %self.id, segment, %error, "cannot read a segment");
                Ok(false)
            }
        })
    }

    fn right(&self, segment: u32) -> io::Result<Option<bool>> {
        let disk = self.store.disk();
        let file = disk.open(&self.file_of(segment))?;
        let len = self.content.len(segment);
        if file.metadata()?.len() != len {
            return Ok(Some(false));
        }
        let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
        crate::fs::read_exact(disk, &file, &mut bytes, 0)?;
        Ok(match &self.sums {
            Some(sums) => sums.is(segment, &bytes),
            None => Some(self.content.is(segment, &bytes)),
        })
    }
}
