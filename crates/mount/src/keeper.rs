//! The keeper: a tiny process that outlives the daemon and holds what readers wait on.
//!
//! The kernel asks a fanotify group before it reads a segment that is missing; the last descriptor of that group
//! must not close with the daemon, nor that of a FUSE connection. So both are the keeper's: it alone reads the
//! group, passes each event on to the daemon that is connected, and writes the answer back. What a daemon was told
//! and did not answer is told to the next one. Between daemons readers wait, at most until their deadline. Those of a FUSE mount wait for a daemon as long, and
//! then all are refused until one comes: the keeper does not know since when each of them waits.
//!
//! It knows no layers, no network and no image: events are paths and ranges, descriptors have names. Its memory is
//! locked and it is the last that the kernel kills for want of memory, for if it dies the group dies with it: then
//! reads of what is missing end in `EIO` (a missing segment is a file of size 0) until the next keeper has armed the
//! same mounts again.
//!
//! | file | what |
//! |---|---|
//! | `wire.rs` | what daemon and keeper say to each other |
//! | `waiting.rs` | the events that have no answer yet |
//! | `unserved.rs` | FUSE mounts for which no daemon comes |
//! | `process.rs` | the keeper's loop |
//! | `client.rs` | the daemon's end |

mod client;
mod process;
mod unserved;
mod waiting;
mod wire;

pub use client::{Client, KeeperError, Listener, end};
pub use process::{Revive, run};
pub use wire::{Asked, Verdict};
