//! Images of Nydus: RAFS version 6.
//!
//! # Sources
//!
//! The records: `rafs/src/metadata/layout/v6.rs`, `layout/v5.rs` (chunks), `storage/src/meta/mod.rs`,
//! `chunk_info_v1.rs`, `chunk_info_v2.rs`, `batch.rs`, `toc.rs` and `storage/src/device.rs` of dragonflyoss/nydus.

pub mod disk;
