//! Bytes to types and back: digests, names, tar skeletons, layer indexes, EROFS metadata images.
//!
//! No I/O, no clock, no thread: everything here is a function of its input, so it can be fuzzed whole.

pub mod digest;
pub mod limits;
pub mod name;
pub mod payload;
pub mod tree;

pub use digest::{ChainId, ChunkId, DiffId, Digest, DigestHasher, IndexId};
