//! Local truth: segments, references, recovery, read-through.
//!
//! Synchronous threads, no network: what is not here comes through [`Origin`]. What the disk looks like is in
//! `store.rs`, what survives a crash in `session.rs` and `segments.rs`.
//!
//! A read path takes layers into use with [`ReadThrough::add`] and reads through [`Segments`]. A first pull
//! writes into a [`Staging`]. References ([`Refs`]) keep what they name from [`Store::gc`]; a user's pins
//! ([`PinnedImages`]) keep it from eviction as well ([`Room`]).

mod claim;
mod completion;
mod contents;
mod error;
mod fill;
mod flights;
mod fs;
#[doc(hidden)]
pub mod fuzz;
mod gc;
mod guard;
mod halves;
mod held;
mod known;
mod lock;
mod niceness;
mod open_files;
mod origin;
mod pace;
mod parked;
mod pinned;
mod plan;
mod read_error;
mod read_through;
mod record;
mod refs;
mod room;
mod segments;
mod session;
mod snapshots;
mod stage;
mod standing;
mod store;
mod stretch;

#[cfg(test)]
mod sim;
#[cfg(test)]
mod tests;

pub use contents::{MetaImage, MetaKey};
pub use error::StoreError;
pub use flights::Ahead;
pub use gc::{Garbage, GarbageKind, GcMode};
pub use origin::{Blob, Origin, OriginError, Priority, Urgency};
pub use pinned::PinnedImages;
pub use plan::fetched;
pub use read_error::{AddError, CompleteError, ReadError};
pub use read_through::{DEADLINE, Hold, Observer, ReadThrough, Segments, Waiter, Workers};
pub use refs::{DamagedRef, ImageRef, RefLayer, RefName, RefNameError, Refs};
pub use room::{Evicted, Room};
pub use segments::{OpenLayer, SegmentFile};
pub use snapshots::{LazyLayer, NewSnapshot, Snapshot, SnapshotError, SnapshotKind, Snapshots, Usage};
pub use stage::Staging;
pub use standing::{Proof, Stage, Standing};
pub use store::{Pin, Store};
pub use stretch::Stretch;
