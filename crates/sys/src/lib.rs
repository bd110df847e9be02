//! Kernel calls, memory maps and resumable inflate behind safe types; the only unsafe code.

pub mod cached;
pub mod deflate;
pub mod descriptor;
pub mod fanotify;
pub mod heap;
pub mod inflate;
pub mod inherited;
pub mod interrupt;
pub mod map;
pub mod mount;
pub mod namespace;
pub mod table;
