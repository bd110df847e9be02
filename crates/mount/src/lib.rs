//! Read paths: the FUSE server and the kernel's own EROFS over a metadata image and segments, and the keeper.

pub mod erofs;
pub mod errno;
pub mod fuse;
pub mod keeper;
pub mod observe;
mod parking;
pub mod places;
mod sample;
pub mod stack;
