//! Looks for the chunks of one layer in the segments of others.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use format::decode::{Assembly, Verified};
use format::index::Chunk;
use format::layer::Layer;

use super::table::{Place, Table};
use crate::segments::SegmentFile;
use crate::standing::directory;
use crate::store::Store;

/// Files that are kept open while neighbours are looked for, by each worker, beside those that readers have open.
const FILES: usize = 8;

/// Tables that are asked while a reader waits, the latest ones: of each, a page may have to come from a disk.
const HURRIED: usize = 256;

/// Somebody who looks for chunks of a layer.
pub(crate) struct Asker<'a> {
    store: &'a Store,
    layer: Arc<Layer>,
    /// Those whose chunks are hashed alike, without the layer's own.
    tables: Vec<Arc<Table>>,
    /// The one that had the last chunk: it will have the next.
    last: usize,
    /// By table and segment.
    files: HashMap<(usize, u32), SegmentFile>,
    /// Of which there is no file.
    gone: HashSet<(usize, u32)>,
}

impl<'a> Asker<'a> {
    /// Begins to look for chunks of a layer.
    pub(crate) fn new(store: &'a Store, layer: &Arc<Layer>, hurried: bool) -> Self {
        let alike = |table: &&Arc<Table>| table.hash() == layer.hash() && table.id() != layer.id();
        let most = if hurried { HURRIED } else { usize::MAX };
        let tables = store.known.tables().iter().rev().filter(alike).take(most).cloned().collect();
        let (files, gone) = (HashMap::new(), HashSet::new());
        Self { store, layer: Arc::clone(layer), tables, last: 0, files, gone }
    }

    /// Says whether all chunks of some segments are in tables, and there is something where these say; reads nothing of it.
    ///
    /// The first unknown chunk ends the search.
    pub(crate) fn has(&mut self, segments: Range<u32>) -> bool {
        let layer = Arc::clone(&self.layer);
        let has = |chunk| self.find(chunk, |asker, table, place| asker.is_there(table, place));
        layer.chunks_of(segments).is_some_and(|numbers| layer.index().chunks()[numbers].iter().all(has))
    }

    /// Puts segments together and gives them on as they come; false if a chunk is not there after all.
    pub(crate) fn copy<E>(
        &mut self,
        segments: Range<u32>,
        mut give: impl FnMut(u32, &Verified) -> Result<(), E>,
    ) -> Result<bool, E> {
        let Ok(mut assembly) = Assembly::new(Arc::clone(&self.layer), segments) else { return Ok(false) };
        let mut bytes = Vec::new();
        while let Some(chunk) = assembly.wants() {
            if !self.put(&chunk, &mut bytes, &mut assembly) {
                return Ok(false);
            }
            while let Some((segment, verified)) = assembly.take() {
                give(segment, &verified)?;
                assembly.reuse(verified);
            }
        }
        Ok(true)
    }

    /// Reads a chunk and puts it where it belongs; false if no layer has it after all.
    fn put(&mut self, chunk: &Chunk, bytes: &mut Vec<u8>, assembly: &mut Assembly) -> bool {
        bytes.resize(usize::try_from(chunk.len).unwrap_or(usize::MAX), 0);
        self.find(chunk, |asker, table, place| {
            if asker.read(table, place, bytes).is_none() {
                return false;
            }
            let right = assembly.put(bytes).is_ok();
            if !right && asker.tables[table].is_first_doubt(place) {
                let layer = asker.tables[table].id();
                tracing::warn!(%layer, at = place.start, "a chunk is not what it is said to be: it is fetched");
            }
            right
        })
    }

    /// Looks into the tables until a place will do; that of the last chunk comes first.
    fn find(&mut self, chunk: &Chunk, mut will_do: impl FnMut(&mut Self, usize, Place) -> bool) -> bool {
        let all = self.tables.len();
        for table in (self.last..all).chain(0..self.last.min(all)) {
            if let Some(place) = self.tables[table].find(chunk)
                && will_do(self, table, place)
            {
                self.last = table;
                return true;
            }
        }
        false
    }

    fn is_there(&mut self, table: usize, place: Place) -> bool {
        self.pieces(table, place)
            .all(|(segment, piece)| self.file(table, segment).is_some_and(|file| piece.end <= file.len))
    }

    fn read(&mut self, table: usize, place: Place, bytes: &mut [u8]) -> Option<()> {
        let mut rest = bytes;
        for (segment, piece) in self.pieces(table, place) {
            let (now, later) = rest.split_at_mut_checked(usize::try_from(piece.end - piece.start).ok()?)?;
            let disk = self.store.disk();
            let file = self.file(table, segment)?;
            crate::fs::read_exact(disk, &file.file, now, piece.start).ok()?;
            rest = later;
        }
        Some(())
    }

    /// Returns the segments a place is in, and where in each.
    fn pieces(&self, table: usize, place: Place) -> impl Iterator<Item = (u32, Range<u64>)> + use<> {
        let (size, end) = (self.tables[table].segment(), place.start + u64::from(place.len));
        (size.of(place.start)..=size.of(end - 1)).map(move |segment| {
            let base = size.start(segment);
            (segment, place.start.max(base) - base..end.min(base + size.bytes()) - base)
        })
    }

    /// Returns the file of a segment, if there is one. What it is for is not asked: its bytes are hashed, and it is only read.
    fn file(&mut self, table: usize, segment: u32) -> Option<&SegmentFile> {
        let key = (table, segment);
        if !self.files.contains_key(&key) && !self.gone.contains(&key) {
            if self.files.len() >= FILES {
                self.files.clear();
            }
            let path = directory(self.tables[table].id()).join(segment.to_string());
            let open = |file: File| {
                let len = file.metadata().ok()?.len();
                Some(SegmentFile::new(file, len))
            };
            match self.store.disk().open(&path).ok().and_then(open) {
                Some(file) => drop(self.files.insert(key, file)),
                None => drop(self.gone.insert(key)),
            }
        }
        self.files.get(&key)
    }
}
