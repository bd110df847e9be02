//! Tests of the store as a whole.

mod crash;
mod faults;
mod files;
mod fixture;
mod flight;
mod known;
mod locking;
mod room;
pub(crate) mod sealed;
mod snapshots;
mod spans;
