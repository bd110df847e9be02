//! Read paths: the FUSE server over a metadata image and segments.
