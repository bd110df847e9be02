//! Read paths: the FUSE server over a metadata image and segments.

pub mod errno;
pub mod fuse;
pub mod observe;
