//! The chunks of one layer by their hash: a record (`record.rs`) of this body, mapped, little-endian.
//!
//! ```text
//!  0  32  identity of the index
//! 32   1  hash of the chunks: 0 SHA-256, 1 BLAKE3
//! 33   1  segment size, as a power of two
//! 34   6  zero
//! 40   8  per chunk: the first 8 bytes of its hash as a big-endian number; ascending, no two equal
//! ..  12  per chunk, in the same order: where it is in payload space u64 · its length u32
//! ```
//!
//! A function of the index and nothing else, so it is never changed: lost or damaged, it is made again. It is read and checked
//! before it is mapped: of a disk that cannot be read a map tells nothing but the end of the process. Hashes are evenly
//! spread, so where one would be is where it is, but for some rows; whoever makes an index whose hashes are not costs a
//! binary search.

use std::collections::BTreeSet;
use std::io;
use std::path::Path;
use std::sync::Mutex;

use format::IndexId;
use format::index::{Chunk, Hash};
use format::layer::Layer;
use format::limits;
use format::payload::SegmentSize;
use sys::map::Map;

use crate::fs::{Disk, read_exact};
use crate::guard;
use crate::record::{self, Kind};

const HEAD: usize = 40;
const KEY: usize = 8;
const PLACE: usize = 12;

/// The longest table, in bytes: a chunk takes more in an index.
const MOST: u64 = limits::INDEX;

/// Rows that are passed over at first: half the width of where a hash may be among some hundred.
const STEP: usize = 8;

/// A chunk's place in a layer's payload space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) start: u64,
    pub(crate) len: u32,
}

/// The chunks of a layer.
#[derive(Debug)]
pub(crate) struct Table {
    map: Map,
    id: IndexId,
    hash: Hash,
    segment: SegmentSize,
    /// Where in the map the body begins.
    body: usize,
    rows: usize,
    /// Segments that chunks were looked for in which were not these. Held for a look only.
    doubted: Mutex<BTreeSet<u32>>,
}

/// What the head of a body says.
struct Head {
    id: IndexId,
    hash: Hash,
    segment: SegmentSize,
    rows: usize,
}

impl Table {
    /// Returns the body of the table of a layer.
    pub(super) fn body(layer: &Layer) -> Vec<u8> {
        // Where chunks have no hash of their own nobody could tell that what is here is right.
        let chunks = if layer.hash() == Hash::Sealed { &[][..] } else { layer.index().chunks() };
        let chunks = chunks.iter().zip(layer.layout().cuts());
        let rows = chunks.map(|(chunk, cut)| (key(chunk), cut.start, cut.len)).collect();
        Self::body_of(layer.id(), layer.hash(), layer.facts().segment, rows)
    }

    /// Returns the body of a table of these keys and places.
    pub(crate) fn body_of(
        id: IndexId,
        hash: Hash,
        segment: SegmentSize,
        mut rows: Vec<(u64, u64, u32)>,
    ) -> Vec<u8> {
        rows.sort_unstable();
        rows.dedup_by_key(|row| row.0);
        let mut body = Vec::with_capacity(HEAD + rows.len() * (KEY + PLACE));
        body.extend_from_slice(id.as_bytes());
        body.extend([u8::from(hash == Hash::Blake3), segment.bits()]);
        body.resize(HEAD, 0);
        rows.iter().for_each(|(key, ..)| body.extend(key.to_le_bytes()));
        for (_, start, len) in rows {
            body.extend(start.to_le_bytes());
            body.extend(len.to_le_bytes());
        }
        body
    }

    /// Opens the table of a layer, or says what is wrong with it.
    pub(crate) fn open(disk: &dyn Disk, path: &Path, id: IndexId) -> Result<Self, String> {
        let (map, bytes) = read(disk, path).map_err(|error| error.to_string())?;
        let body = record::decode(Kind::Known, &bytes)?;
        let head = check(body).filter(|head| head.id == id).ok_or("it is not the table of this layer")?;
        let body = bytes.len() - body.len();
        let doubted = Mutex::default();
        Ok(Self { id, hash: head.hash, segment: head.segment, rows: head.rows, body, map, doubted })
    }

    /// Returns whether a chunk is the first of its segment that was not at its place.
    pub(super) fn is_first_doubt(&self, place: Place) -> bool {
        guard::lock(&self.doubted).insert(self.segment.of(place.start))
    }

    pub(crate) fn id(&self) -> IndexId {
        self.id
    }

    /// Returns what its chunks are hashed by.
    pub(crate) fn hash(&self) -> Hash {
        self.hash
    }

    /// Returns the size of the layer's segments.
    pub(crate) fn segment(&self) -> SegmentSize {
        self.segment
    }

    /// Returns where the layer is said to have a chunk.
    pub(crate) fn find(&self, chunk: &Chunk) -> Option<Place> {
        let keys = self.map.get(self.body + HEAD..)?.get(..self.rows * KEY)?;
        let row = search(keys.as_chunks().0, key(chunk))?;
        let places = self.map.get(self.body + HEAD + self.rows * KEY..)?;
        place(places.as_chunks().0.get(row)?).filter(|place| place.len == chunk.len)
    }
}

/// Returns a table's file, mapped, and what could be read of it.
fn read(disk: &dyn Disk, path: &Path) -> io::Result<(Map, Vec<u8>)> {
    let file = disk.open(path)?;
    let len = file.metadata()?.len();
    if len > MOST {
        return Err(io::Error::other(format!("{len} bytes, at most {MOST} are allowed")));
    }
    let mut bytes = vec![0; usize::try_from(len).map_err(io::Error::other)?];
    read_exact(disk, &file, &mut bytes, 0)?;
    Ok((Map::of(&file)?, bytes))
}

/// Returns what a body says of itself, if it is one: then no number in it is more than there may be.
fn check(body: &[u8]) -> Option<Head> {
    let (head, rest) = body.split_first_chunk::<HEAD>()?;
    let id = IndexId::from_bytes(head[..32].try_into().ok()?);
    let hash = match head[32] {
        0 => Hash::Sha256,
        1 => Hash::Blake3,
        _ => return None,
    };
    let segment = SegmentSize::from_bits(head[33])?;
    let rows = rest.len() / (KEY + PLACE);
    let (keys, places) = rest.split_at(rows * KEY);
    let (places, over) = places.as_chunks::<PLACE>();
    let ascending = keys.as_chunks::<KEY>().0.is_sorted_by(|a, b| number(a) < number(b));
    let possible = |row| place(row).is_some_and(|place| place.start <= 2 * limits::LAYER && place.len > 0);
    let good = head[34..] == [0; 6] && over.is_empty() && places.len() == rows;
    (good && ascending && places.iter().all(possible)).then_some(Head { id, hash, segment, rows })
}

/// Reads any bytes as a body; for fuzzers.
pub(crate) fn is_table(body: &[u8]) -> bool {
    check(body).is_some()
}

fn place(row: &[u8; PLACE]) -> Option<Place> {
    let (start, len) = row.split_first_chunk()?;
    Some(Place { start: u64::from_le_bytes(*start), len: u32::from_le_bytes(len.try_into().ok()?) })
}

fn key(chunk: &Chunk) -> u64 {
    chunk.id.0.first_chunk().map_or(0, |first| u64::from_be_bytes(*first))
}

fn number(key: &[u8; KEY]) -> u64 {
    u64::from_le_bytes(*key)
}

/// Returns the row of a key among ascending ones: begins where it would be if they were spread evenly.
fn search(keys: &[[u8; KEY]], wanted: u64) -> Option<usize> {
    let below = |row: usize| number(&keys[row]) < wanted;
    let guess = usize::try_from((u128::from(wanted) * keys.len() as u128) >> 64).ok()?;
    // The first row that is not below lies in `low..=high`.
    let (mut low, mut high, mut step) = (0, keys.len(), STEP);
    if guess < keys.len() && below(guess) {
        low = guess + 1;
        while low + step < keys.len() {
            if !below(low + step) {
                high = low + step;
                break;
            }
            low += step + 1;
            step *= 2;
        }
    } else {
        high = guess;
        while let Some(row) = high.checked_sub(step) {
            if below(row) {
                low = row + 1;
                break;
            }
            high = row;
            step *= 2;
        }
    }
    let row = low + keys[low..high].partition_point(|key| number(key) < wanted);
    (number(keys.get(row)?) == wanted).then_some(row)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::sim::Dice;

    /// Whatever the keys are, a search finds what is there and nothing else.
    #[test]
    fn keys_are_found_however_they_are_spread() {
        let mut dice = Dice(1);
        for rows in [0, 1, 2, 7, 8, 9, 10, 100, 1000, 5000] {
            for shift in [0, 20, 40, 56, 63] {
                for high in [0, u64::MAX << 63] {
                    let mut keys: Vec<u64> = (0..rows).map(|_| dice.roll() >> shift | high).collect();
                    keys.extend([0, u64::MAX].iter().filter(|_| rows > 0));
                    keys.sort_unstable();
                    keys.dedup();
                    let table: Vec<_> = keys.iter().map(|key| key.to_le_bytes()).collect();
                    for (row, key) in keys.iter().enumerate() {
                        assert_eq!(search(&table, *key), Some(row));
                        for other in [key.wrapping_sub(1), key.wrapping_add(1), dice.roll()] {
                            assert_eq!(search(&table, other), keys.binary_search(&other).ok());
                        }
                    }
                }
            }
        }
    }
}
