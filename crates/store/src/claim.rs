//! What is known of a segment, and why it cannot be written.

use std::io;

/// What is known of one segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Claim {
    /// Not whole: empty or torn.
    Missing = 0,
    /// Of full size, but not to be trusted before it has been hashed.
    Suspect = 1,
    /// Somebody writes or checks it.
    Busy = 2,
    /// Whole and right.
    Whole = 3,
}

impl Claim {
    pub(crate) const ALL: [Self; 4] = [Self::Missing, Self::Suspect, Self::Busy, Self::Whole];
}

/// Why a segment could not be written.
#[derive(Debug)]
pub(crate) enum FillError {
    /// The layer's proof has failed.
    Refused,
    /// The store is closed.
    Closed,
    /// The disk.
    Io(io::Error),
}

impl From<io::Error> for FillError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}
