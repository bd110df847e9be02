//! The table of contents as JSON: what eStargz and zstd:chunked have in common, and where they differ.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// A table of contents.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Toc {
    /// 1.
    pub version: u32,
    /// In the order of the tar; the pieces of a file follow it.
    pub entries: Vec<Entry>,
    /// zstd:chunked: SHA-256 of the tar-split, as it is packed.
    #[serde(rename = "tarSplitDigest", default, skip_serializing_if = "String::is_empty")]
    pub tar_split_digest: String,
}

/// A member of the tar, or a piece of the regular file before it.
///
/// Fields that are zero or empty are left out of the JSON. Numbers are signed there, as Go has them.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Entry {
    /// Path as the tar has it.
    pub name: String,
    /// `dir`, `reg`, `symlink`, `hardlink`, `char`, `block`, `fifo`, or `chunk`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Length of a regular file.
    #[serde(skip_serializing_if = "is_zero")]
    pub size: i64,
    /// Last modification, RFC 3339; eStargz has whole seconds in UTC.
    #[serde(rename = "modtime", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub modtime: String,
    /// zstd:chunked: last access, where the tar says it.
    #[serde(rename = "accesstime", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub access_time: String,
    /// zstd:chunked: last change, where the tar says it.
    #[serde(rename = "changetime", skip_serializing_if = "String::is_empty", deserialize_with = "nullable")]
    pub change_time: String,
    /// Target of a link.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub link_name: String,
    /// Permission bits, as the tar has them.
    #[serde(skip_serializing_if = "is_zero")]
    pub mode: i64,
    /// Owner.
    #[serde(skip_serializing_if = "is_zero")]
    pub uid: i64,
    /// Group.
    #[serde(skip_serializing_if = "is_zero")]
    pub gid: i64,
    /// eStargz: name of the owner, where it is another than that of the last entry with this owner.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub user_name: String,
    /// eStargz: name of the group, likewise.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group_name: String,
    /// Where in the blob the member or frame with the piece begins.
    #[serde(skip_serializing_if = "is_zero")]
    pub offset: i64,
    /// zstd:chunked: where in the blob the last frame of the file ends.
    #[serde(skip_serializing_if = "is_zero")]
    pub end_offset: i64,
    /// eStargz: plain bytes from there to the piece.
    #[serde(skip_serializing_if = "is_zero")]
    pub inner_offset: i64,
    /// Of a device.
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_major: i64,
    /// Of a device.
    #[serde(skip_serializing_if = "is_zero")]
    pub dev_minor: i64,
    /// Extended attributes, base64.
    #[serde(skip_serializing_if = "BTreeMap::is_empty", deserialize_with = "nullable")]
    pub xattrs: BTreeMap<String, String>,
    /// SHA-256 of the whole file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub digest: String,
    /// Where in the file the piece begins.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_offset: i64,
    /// Length of the piece; 0 where it goes to the end of the file.
    #[serde(skip_serializing_if = "is_zero")]
    pub chunk_size: i64,
    /// SHA-256 of the piece; in zstd:chunked empty where it is the whole file.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chunk_digest: String,
    /// zstd:chunked: `zeros` for a piece of nothing but zeros, which is stored all the same.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub chunk_type: String,
}

#[allow(clippy::trivially_copy_pass_by_ref)] // serde wants a reference
fn is_zero(n: &i64) -> bool {
    *n == 0
}

/// Go writes `null` for what is not there.
fn nullable<'de, D: serde::Deserializer<'de>, T: Default + Deserialize<'de>>(from: D) -> Result<T, D::Error> {
    Ok(Option::deserialize(from)?.unwrap_or_default())
}
