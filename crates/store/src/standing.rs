//! What is known of a layer on this node: the record `device/<id>/state`, and the sizes of the files beside it.
//!
//! It names the era (`session.rs`) in which the layer's segments were last good, whether all of them are synced
//! ([`Stage`]), and whether the index is true ([`Proof`]). Lost or damaged it costs a check of the segments and,
//! for a proved layer, another proof; an older program that cannot read it treats it as lost.

use std::collections::HashMap;
use std::io;
use std::path::{Path, PathBuf};

use format::{DiffId, IndexId};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::fs::Entry;
use crate::record::{self, Kind};
use crate::store::Store;

/// The name of a layer's record beside its segments, whose names are numbers.
pub(crate) const STATE: &str = "state";
const STATE_LIMIT: u64 = 4096;

/// How far a layer has come on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Stage {
    /// Segments arrive one by one.
    Filling,
    /// All segments are whole and synced.
    Sealed,
}

/// Whether a layer's index tells the truth about the diffID; a property of the index, wherever its bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Proof {
    /// Nobody knows.
    Open,
    /// Skeleton and payload together hash to the diffID.
    Proved,
    /// They do not: the index lies. The files are kept as evidence; nothing is mounted or filled.
    Refused {
        /// What the layer hashes to instead.
        found: DiffId,
    },
}

/// What is known of a layer on this node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Standing {
    /// How far its segments have come.
    pub stage: Stage,
    /// Whether its index is true.
    pub proof: Proof,
    /// A segment that came wrong twice ([`crate::OpenLayer::doubted`]); older programs do not tell.
    #[serde(default)]
    pub(crate) doubt: Option<u32>,
}

impl Standing {
    pub(crate) const NEW: Self = Self { stage: Stage::Filling, proof: Proof::Open, doubt: None };
    pub(crate) const PROVED: Self = Self { proof: Proof::Proved, ..Self::NEW };
}

/// A standing and the era in which the segments were last good.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) struct State {
    pub(crate) era: String,
    pub(crate) standing: Standing,
    /// The generation of its files ([`crate::OpenLayer::generation`]); older programs do not tell.
    #[serde(default)]
    pub(crate) generation: u64,
}

/// Returns the directory of a layer's segments.
pub(crate) fn directory(id: IndexId) -> PathBuf {
    Path::new("device").join(id.hex())
}

/// Returns what is known of a layer, nothing if none of it is here or its record is lost.
pub(crate) fn of(store: &Store, id: IndexId) -> Result<Option<Standing>, StoreError> {
    Ok(load(store, &directory(id))?.map(|state| state.standing))
}

/// Returns the body of the record of what is known of a layer whose segments are good in an era.
pub(crate) fn state(era: &str, standing: Standing, generation: u64) -> Vec<u8> {
    record::json(&State { era: era.to_owned(), standing, generation })
}

/// Returns a generation for a layer of which none is known: another one than any before, or a mount that has outlived
/// its record would pass for one of the files that are here.
pub(crate) fn new_generation() -> u64 {
    let since = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_nanos()).unwrap_or_default()
}

/// Returns a layer's record, nothing if there is none.
pub(crate) fn load(store: &Store, dir: &Path) -> Result<Option<State>, StoreError> {
    let path = dir.join(STATE);
    let Some(body) = record::read(store, Kind::Layer, &path, STATE_LIMIT)? else { return Ok(None) };
    let state = serde_json::from_slice(&body);
    state.map(Some).map_err(|error| StoreError::damaged(&store.path(&path), error.to_string()))
}

/// Returns the sizes of the segment files of a layer; makes its directory if there is none.
pub(crate) fn sizes(store: &Store, dir: &Path) -> io::Result<HashMap<u32, u64>> {
    match store.disk().create_dir(dir) {
        Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(error),
        _ => {}
    }
    let number = |entry: &Entry| entry.name.to_str()?.parse().ok();
    Ok(store.disk().list(dir)?.iter().filter_map(|entry| Some((number(entry)?, entry.len))).collect())
}
