//! Layers to indexes, and to layers of other formats, deterministically, in one pass.
//!
//! ```text
//! blob ─► inflow ── batches of plain bytes ──► scan ─► segments to the sink, unproved
//!         hash, inflate, places, marks         hash, tar, chunks, skeleton
//!                                              starts ─► probe (test decodes)
//! ```
//!
//! [`IndexBuilder`] takes a blob piece by piece; [`build`] reads one, on one thread or two. The index depends on
//! the blob alone, and its identity on the tar alone. [`recode`] makes another blob of one, [`compare`]
//! says whether two hold the same files. Knows nothing of networks, stores or images.

mod builder;
pub mod compare;
#[doc(hidden)]
pub mod fuzz;
mod inflow;
mod probe;
pub mod recode;
mod scan;
mod starts;

pub use builder::{BuildError, Expected, IndexBuilder, Options, Threads, build};
pub use scan::Sink;
