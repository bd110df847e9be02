//! What images would take if they shared more than whole layers: an estimate, by reading all of them.
//!
//! Counted is what a store keeps: the contents of every file of every layer, also of those that a layer above replaces.
//! Names and attributes are not counted, nor is compression.

use std::collections::{HashMap, HashSet};
use std::io::{self, Read};
use std::sync::Arc;

use anyhow::Context;
use fastcdc::v2020::StreamCDC;
use format::index::Chunk;
use format::layer::{Layer, LayerError};
use format::payload::{Cut, SegmentSize};
use format::tar::Member;
use format::tree::Runs;
use format::{ChunkId, Digest, IndexId};

use super::contents::Contents;
use super::open::Purpose;
use super::report::{Scheme, Sharing, Unit};
use super::room::InUse;
use super::{Engine, Talk, say};

/// Lengths of content-defined chunks: the least, about the average, the most. Smaller ones find a few percent more, and
/// lose that again where each is compressed by itself.
const LENGTHS: [usize; 3] = [16 << 10, 64 << 10, 256 << 10];

/// Bytes read between two words about the progress.
const SAY: u64 = 1 << 20;

impl Engine {
    /// Fetches images whole and tells what they would take, by what they share.
    pub fn sharing(self: &Arc<Self>, images: &[String], talk: &Talk<'_>) -> anyhow::Result<Sharing> {
        let mut tally = Tally::default();
        let mut references = Vec::new();
        for image in images {
            let image = self.open(image, Purpose::Compare, talk)?;
            let _in_use = InUse::new(image.clone());
            self.complete(&image, talk)?;
            for found in image.layers() {
                if tally.has_layer(found.id()) {
                    continue;
                }
                let blob = found.place.blob;
                self.count(found.layer(), blob, &mut tally, talk)
                    .with_context(|| format!("reading layer {blob} of {}", image.reference()))?;
            }
            references.push(image.reference().to_owned());
        }
        let sharing = tally.finish(references);
        sys::heap::give_back(); // the hashes took some fifty bytes a piece, and are gone
        Ok(sharing)
    }

    /// Counts a layer that has not been seen before.
    fn count(&self, layer: &Layer, blob: Digest, tally: &mut Tally, talk: &Talk<'_>) -> anyhow::Result<()> {
        let files = files_of(layer)?;
        let all = files.iter().flatten().map(|(_, len)| len).sum();
        let mut contents = Contents::new(self);
        let (mut done, mut said) = (0, 0);
        for runs in &files {
            let segment = layer.facts().segment;
            let file = Payload { contents: &mut contents, index: layer.id(), segment, runs, run: 0, at: 0 };
            let len = runs.iter().map(|(_, len)| len).sum();
            tally.file(len, file)?;
            done += len;
            if done >= said + SAY {
                said = done;
                say(talk, "counting", &blob, done, all)?;
            }
        }
        tally.chunks(layer.layout().cuts(), layer.index().chunks(), &files);
        tally.layer(layer.id(), all);
        say(talk, "counted", &blob, all, all)
    }
}

/// Where the bytes of a file are in payload space: start and length of each run.
type Placed = Vec<(u64, u64)>;

/// Returns the files of a layer that have bytes, in payload order.
fn files_of(layer: &Layer) -> Result<Vec<Placed>, LayerError> {
    let mut files = Vec::new();
    layer.members(|member: Member, runs| {
        match runs {
            Runs::None => {}
            Runs::Whole(at) => files.push(vec![(at, member.payload)]),
            Runs::Sparse(runs) => files.push(runs.iter().map(|run| (run.payload, run.len)).collect()),
        }
        Ok::<_, LayerError>(())
    })?;
    Ok(files)
}

/// The bytes of one file.
struct Payload<'a, 'e> {
    contents: &'a mut Contents<'e>,
    index: IndexId,
    segment: SegmentSize,
    runs: &'a [(u64, u64)],
    /// The run that is being read, and how much of it has been.
    run: usize,
    at: u64,
}

impl Read for Payload<'_, '_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some((start, len)) = self.runs.get(self.run) else { return Ok(0) };
        let payload = start + self.at;
        let number = self.segment.of(payload);
        let offset = payload - self.segment.start(number);
        let most = (len - self.at).min(self.segment.bytes() - offset);
        let taken = usize::try_from(most).map_or(buffer.len(), |most| most.min(buffer.len()));
        let read = self.contents.read(self.index, number, offset, &mut buffer[..taken]);
        read.map_err(|error| io::Error::other(format!("{error:#}")))?;
        self.at += taken as u64;
        if self.at == *len {
            (self.run, self.at) = (self.run + 1, 0);
        }
        Ok(taken)
    }
}

/// Pieces of one kind, each counted once.
#[derive(Default)]
struct Seen {
    ids: HashSet<ChunkId>,
    bytes: u64,
}

impl Seen {
    fn add(&mut self, id: ChunkId, bytes: u64) {
        if self.ids.insert(id) {
            self.bytes += bytes;
        }
    }
}

/// What has been counted.
#[derive(Default)]
struct Tally {
    logical: u64,
    /// And how many bytes their files have.
    layers: HashMap<IndexId, u64>,
    files: Seen,
    chunks: Seen,
    defined: Seen,
}

impl Tally {
    /// Counts a layer again that was counted before, if it was.
    fn has_layer(&mut self, index: IndexId) -> bool {
        let known = self.layers.get(&index);
        self.logical += known.unwrap_or(&0);
        known.is_some()
    }

    fn layer(&mut self, index: IndexId, bytes: u64) {
        self.logical += bytes;
        self.layers.insert(index, bytes);
    }

    /// Counts a file of so many bytes, whole and by what its content defines as chunks.
    fn file(&mut self, len: u64, mut file: impl Read) -> io::Result<()> {
        let [least, average, most] = LENGTHS;
        if len <= least as u64 {
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            let id = ChunkId::of(&bytes);
            self.defined.add(id, len);
            self.files.add(id, len);
            return Ok(());
        }
        // The content decides about its chunks, and these about the content.
        let mut ids = Vec::new();
        for chunk in StreamCDC::new(file, least, average, most) {
            let chunk = chunk.map_err(io::Error::other)?;
            let id = ChunkId::of(&chunk.data);
            self.defined.add(id, chunk.data.len() as u64);
            ids.extend_from_slice(&id.0);
        }
        self.files.add(ChunkId::of(&ids), len);
        Ok(())
    }

    /// Counts the chunks of a layer's index; what lies between its files is nobody's and takes no room.
    fn chunks(&mut self, cuts: &[Cut], chunks: &[Chunk], files: &[Placed]) {
        let mut runs = files.iter().flatten().copied().peekable();
        for (cut, chunk) in cuts.iter().zip(chunks) {
            let mut bytes = 0;
            while let Some((start, len)) = runs.peek().copied() {
                let end = start + len;
                bytes += end.min(cut.end()).saturating_sub(start.max(cut.start));
                if end > cut.end() {
                    break; // it goes on in the next
                }
                runs.next();
            }
            self.chunks.add(chunk.id, bytes);
        }
    }

    fn finish(self, images: Vec<String>) -> Sharing {
        let scheme = |unit, pieces: usize, unique| Scheme { unit, pieces: pieces as u64, unique };
        let seen = |unit, seen: &Seen| scheme(unit, seen.ids.len(), seen.bytes);
        let schemes = vec![
            scheme(Unit::Layers, self.layers.len(), self.layers.values().sum()),
            seen(Unit::Files, &self.files),
            seen(Unit::Chunks, &self.chunks),
            seen(Unit::ContentDefinedChunks, &self.defined),
        ];
        Sharing { images, logical: self.logical, schemes }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_counts_what_files_have_of_it() {
        let [a, b, c] = [b"a", b"b", b"c"].map(|bytes| ChunkId::of(bytes));
        let cut = |start, len| Cut { start, len };
        let chunk = |len, id| Chunk { len, id };
        // Two small files that share a chunk, with a gap; one of two chunks; the first two once more.
        let cuts = [cut(0, 4196), cut(8192, 20_000), cut(28_192, 5000), cut(36_864, 4196)];
        let chunks = [chunk(4196, a), chunk(20_000, b), chunk(5000, c), chunk(4196, a)];
        let files =
            [vec![(0, 50)], vec![(4096, 100)], vec![(8192, 25_000)], vec![(36_864, 50)], vec![(40_960, 100)]];
        let mut tally = Tally::default();
        tally.chunks(&cuts, &chunks, &files);
        assert_eq!((tally.chunks.ids.len(), tally.chunks.bytes), (3, 150 + 25_000));
    }

    #[test]
    fn files_are_counted_by_what_they_hold() {
        let bytes: Vec<u8> = (0..300_000_u32).flat_map(|n| n.wrapping_mul(n).to_le_bytes()).collect();
        let mut tally = Tally::default();
        for part in [&bytes[..], &bytes[..100], &bytes[..16_384], &bytes[..16_385], &bytes[..100], &bytes[..]]
        {
            tally.file(part.len() as u64, part).unwrap();
        }
        let all = 1_200_000 + 100 + 16_384 + 16_385;
        assert_eq!((tally.files.ids.len(), tally.files.bytes), (4, all));
        assert!(tally.defined.ids.len() > 1_200_000 / (256 << 10), "{}", tally.defined.ids.len());
        assert!(tally.defined.bytes <= all);
    }

    #[test]
    fn a_layer_that_two_images_have_counts_twice_and_is_there_once() {
        let index = IndexId::from_bytes([1; 32]);
        let mut tally = Tally::default();
        assert!(!tally.has_layer(index));
        tally.layer(index, 10);
        assert!(tally.has_layer(index));
        let sharing = tally.finish(Vec::new());
        assert_eq!((sharing.logical, sharing.schemes[0].unique, sharing.schemes[0].pieces), (20, 10, 1));
    }
}
