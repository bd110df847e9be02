//! Why a segment, or a whole layer, could not be had: by what the caller can do about it.
//!
//! A [`ReadError`] goes to everybody who waited, so it can be cloned. Which errno it is, is decided where reads
//! are answered.

use std::io;
use std::sync::Arc;

use format::proof::Mismatch;
use format::{Digest, IndexId};

use crate::error::StoreError;
use crate::origin::OriginError;

/// Why a segment could not be had. All but [`ReadError::Unknown`] may be different next time.
#[derive(Debug, Clone, thiserror::Error)]
pub enum ReadError {
    /// No such layer is in use, or it has no such segment.
    #[error("segment {segment} of layer {index} is not in use")]
    Unknown {
        /// The layer.
        index: IndexId,
        /// The segment.
        segment: u32,
    },
    /// The deadline came first.
    #[error("segment {segment} of layer {index} did not arrive in time")]
    Timeout {
        /// The layer.
        index: IndexId,
        /// The segment.
        segment: u32,
    },
    /// The network failed.
    #[error("fetching segment {segment} of layer {index}")]
    Origin {
        /// The layer.
        index: IndexId,
        /// The segment.
        segment: u32,
        /// How.
        source: Arc<OriginError>,
    },
    /// The blob is not what its index says, twice.
    #[error("segment {segment} of layer {index} is corrupt in blob {blob}")]
    Corrupt {
        /// The layer.
        index: IndexId,
        /// The segment.
        segment: u32,
        /// The blob the bytes came from.
        blob: Digest,
        /// What is wrong.
        source: Arc<format::decode::DecodeError>,
    },
    /// No room is left; the next read tries again.
    #[error("no room for segment {segment} of layer {index}")]
    Full {
        /// The layer.
        index: IndexId,
        /// The segment.
        segment: u32,
        /// The system's word.
        source: Arc<io::Error>,
    },
    /// The disk failed.
    #[error("storing segment {segment} of layer {index}")]
    Disk {
        /// The layer.
        index: IndexId,
        /// The segment.
        segment: u32,
        /// The system's word.
        source: Arc<io::Error>,
    },
    /// The index of the layer was proved wrong.
    #[error("layer {index} is not what its image says; nothing more of it is fetched")]
    Refused {
        /// The layer.
        index: IndexId,
    },
    /// The store is being closed.
    #[error("the store is closed")]
    Closed,
    /// A bug: the fill panicked.
    #[error("filling a segment failed unexpectedly")]
    Internal,
}

/// Why a layer could not be completed or proved.
#[derive(Debug, thiserror::Error)]
pub enum CompleteError {
    /// A segment could not be had.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The store could not record it.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Whoever wanted it does not any more.
    #[error("it is no longer wanted")]
    Stopped,
    /// What no reader waits for is paused, and something is missing.
    #[error("what no reader waits for is paused")]
    Paused,
    /// The layer is not what its image says. Recorded: it is neither mounted nor filled any more.
    #[error("layer {index}")]
    Refused {
        /// The layer.
        index: IndexId,
        /// What does not match.
        source: Mismatch,
    },
}

impl ReadError {
    /// Returns the error for a segment's file, told apart by what can be done about it.
    pub(crate) fn disk(index: IndexId, segment: u32, error: io::Error) -> Self {
        let source = Arc::new(error);
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                Self::Full { index, segment, source }
            }
            _ => Self::Disk { index, segment, source },
        }
    }
}

/// Why a layer could not be taken into use.
#[derive(Debug, thiserror::Error)]
pub enum AddError {
    /// Its files could not be made or checked.
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Its proof has failed before.
    #[error("layer {index} is not what its image says and is kept as evidence only")]
    Refused {
        /// The layer.
        index: IndexId,
    },
}
