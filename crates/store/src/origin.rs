//! Where the bytes of blobs come from: the store's view of the network, implemented elsewhere.
//!
//! The store asks for ranges and believes nothing it gets; retries, budgets and credentials are the origin's.

use std::cell::Cell;
use std::fmt;
use std::ops::{ControlFlow, Range};
use std::time::Instant;

use format::Digest;

/// A blob of a registry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Blob {
    /// What its bytes hash to.
    pub digest: Digest,
    /// Its length in bytes.
    pub size: u64,
}

/// Why bytes are wanted, most urgent first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Priority {
    /// A reader waits.
    Demand,
    /// A recorded start-up read it at about this time.
    Profile,
    /// It lies beside what was read.
    Hint,
    /// It is the rest of the image.
    Background,
}

/// Why an origin could not deliver.
#[derive(Debug)]
pub enum OriginError {
    /// The deadline came first.
    Timeout,
    /// No source could be reached or would answer; another time may be better.
    Unavailable(Box<dyn std::error::Error + Send + Sync>),
    /// The blob is not there or not for us; another time will not be better.
    Denied(Box<dyn std::error::Error + Send + Sync>),
}

impl fmt::Display for OriginError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Timeout => "no answer in time",
            Self::Unavailable(_) => "no source answers",
            Self::Denied(_) => "every source refuses",
        })
    }
}

impl std::error::Error for OriginError {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Timeout => None,
            Self::Unavailable(source) | Self::Denied(source) => Some(source.as_ref()),
        }
    }
}

/// A source of unverified bytes.
pub trait Origin: Send + Sync {
    /// Streams a range of a blob into `sink`, in order; stops early and without error when `sink` says so.
    ///
    /// Blocks, at most until the deadline. Called from several threads at once. The priority may rise while it
    /// reads: `sink` hears of readers that have come to wait for what was begun for nobody.
    fn read(
        &self,
        blob: &Blob,
        range: Range<u64>,
        priority: &Cell<Priority>,
        deadline: Instant,
        sink: &mut dyn FnMut(&[u8]) -> ControlFlow<()>,
    ) -> Result<(), OriginError>;
}
