//! Bytes to types and back: digests, names, tar skeletons, layer indexes, EROFS metadata images.
//!
//! No I/O, no clock: everything here is a function of its input, so it can be fuzzed whole. One thread there is, which packs
//! skeletons beside whoever makes them of a table; what it makes does not depend on it.

pub mod compare;
pub mod decode;
pub mod digest;
pub mod erofs;
#[doc(hidden)]
pub mod fuzz;
pub mod index;
pub mod layer;
pub mod limits;
pub mod name;
pub mod nydus;
pub mod payload;
pub mod proof;
pub mod rfc3339;
pub mod skeleton;
pub mod soci;
pub mod stargz;
pub mod tar;
pub mod tree;
pub mod unpack;
mod wire;

pub use digest::{ChainId, ChunkId, DiffId, Digest, DigestHasher, Hashed, IndexId};
