//! Comparing two images: names by their trees, contents by the indexes of their layers, and the rest by reading it.
//!
//! The trees are walked twice. The first walk finds out what has to be read, so that it can be asked for in large pieces
//! beforehand; the second reads and tells. Neither holds more than it looks at.

use std::collections::HashSet;
use std::fs::File;
use std::ops::Range;
use std::sync::Arc;

use anyhow::{Context, ensure};
use format::compare::{Change, Changes, Found, Pair, Side, Table, compare, lack};
use format::erofs::read::{Image, Inode, Kind, Source};
use format::index::{Chunk, Hash};
use format::layer::Layer;
use format::name::printable;
use format::stargz::is_added;
use format::{Digest, IndexId};
use store::Priority;
use sys::map::Map;

use super::contents::Contents;
use super::open::{OpenImage, Purpose, canonical};
use super::report::{Compared, Difference, IndexOrigin, Sign, Upgrade};
use super::room::InUse;
use super::{Engine, Talk, say};
use crate::daemon::protocol::Event;

/// Bytes of each of two files that are compared at a time.
const PIECE: usize = 128 << 10;

/// Differences told at once: some 30 KB.
const BATCH: usize = 256;

/// Bytes read between two words about the progress.
const SAY: u64 = 1 << 20;

impl Engine {
    /// Compares two images. `told` hears of the differences, some at a time and in order; of a copy in another format,
    /// what that has added does not count.
    pub fn compare(
        self: &Arc<Self>,
        [first, second]: [&str; 2],
        as_copy: bool,
        talk: &Talk<'_>,
    ) -> anyhow::Result<Compared> {
        let images = [self.look_into(first, talk)?, self.look_into(second, talk)?];
        let [a, b] = &images;
        let _in_use = images.clone().map(InUse::new);
        let trees = [tree(a)?, tree(b)?];
        let sides = [side(&trees[0], a), side(&trees[1], b)];
        let work = Work::survey(&sides, as_copy)?;
        work.ask_for(self, &trees);

        let mut comparison = Comparison {
            files: trees.each_ref().map(|image| Files { image, contents: Contents::new(self) }),
            buffers: [vec![0; PIECE], vec![0; PIECE]],
            progress: ReadProgress { talk, what: b.manifest(), total: work.bytes, done: 0, said: 0 },
            found: Vec::new(),
            compared: Compared {
                images: images.each_ref().map(|image| image.reference().to_owned()),
                entries: 0,
                bytes: 0,
                left_out: 0,
                read: work.bytes,
                believed: believed(&images),
                upgrade: (!as_copy).then(|| upgrade(a, b)),
            },
        };
        compare(&sides[0], &sides[1], |step| {
            if as_copy && is_added(step.path) {
                comparison.compared.left_out += 1;
                return Ok(());
            }
            comparison.look_at(step.path, &step.found)
        })
        .with_context(|| format!("comparing {} with {}", a.reference(), b.reference()))?;
        comparison.tell()?;
        comparison.progress.end()?;
        Ok(comparison.compared)
    }

    /// Opens an image, and says so if that has fetched all of it.
    fn look_into(self: &Arc<Self>, image: &str, talk: &Talk<'_>) -> anyhow::Result<Arc<OpenImage>> {
        let known = self.images().get(&canonical(image)?).cloned();
        let opened = self.open(image, Purpose::Compare, talk)?;
        let streamed = opened.layers().iter().any(|layer| layer.origin == IndexOrigin::Streamed);
        if streamed && !known.is_some_and(|known| Arc::ptr_eq(&known, &opened)) {
            let text = format!("{}: {}", opened.reference(), self.report(&opened).why);
            talk(Event::Notice { text })?;
        }
        Ok(opened)
    }
}

/// Returns what is known of an image without any of its contents.
fn side<'a>(tree: &'a Image<Map>, image: &'a OpenImage) -> Side<'a, Map> {
    // Hashes of a layer's own table of contents are of another kind: unequal ones say nothing.
    let comparable =
        |id: &IndexId| image.layers().iter().any(|found| found.id() == *id && found.layer().is_of_tar());
    Side::new(tree, tables(image).filter(|(id, _)| comparable(id)))
}

fn tables(image: &OpenImage) -> impl Iterator<Item = (IndexId, Table<'_>)> {
    image.layers().iter().map(|found| (found.id(), Table::from(&**found.layer())))
}

fn tree(image: &OpenImage) -> anyhow::Result<Image<Map>> {
    let what = || format!("reading the tree of {}", image.reference());
    let file = File::open(image.meta_path()).with_context(what)?;
    Image::open(Map::of(&file).with_context(what)?).with_context(what)
}

/// Returns how many different layers nobody has proved.
fn believed(images: &[Arc<OpenImage>; 2]) -> u64 {
    let layers = images.iter().flat_map(|image| image.layers());
    layers
        .filter(|found| !found.proved() && found.place.role.is_none())
        .map(|found| found.id())
        .collect::<HashSet<_>>()
        .len() as u64
}

/// Returns what a node that has all of one image would fetch for another one.
fn upgrade(from: &OpenImage, to: &OpenImage) -> Upgrade {
    let lacks = lack(tables(from).map(|table| table.1), tables(to).map(|table| table.1));
    let mut known: HashSet<Digest> = from.layers().iter().map(|found| found.place.blob).collect();
    let mut upgrade = Upgrade::default();
    // What is here as each layer's turn comes.
    let mut here: HashSet<IndexId> = from.layers().iter().map(|found| found.id()).collect();
    let mut chunks: HashSet<_> = from.layers().iter().flat_map(|found| chunks(found.layer())).collect();
    for (found, lack) in to.layers().iter().zip(lacks) {
        let size = found.place.size;
        upgrade.layers += 1;
        upgrade.layer_bytes += size;
        let layer = found.layer();
        let fetched = || store::fetched(layer, |chunk| chunks.contains(&(layer.hash(), *chunk)));
        let fetched = if here.insert(found.id()) { fetched() } else { 0 };
        chunks.extend(self::chunks(layer));
        if !known.insert(found.place.blob) {
            continue; // whichever way either reads it
        }
        upgrade.fetched += fetched;
        upgrade.new_layers += 1;
        upgrade.new_layer_bytes += size;
        upgrade.new_chunk_bytes += lack.missing;
        // In 128 bits: a terabyte of a terabyte.
        let packed = found.packed();
        let share = u128::from(packed) * u128::from(lack.missing) / u128::from(lack.all.max(1));
        upgrade.new_chunk_packed += u64::try_from(share).unwrap_or(packed);
    }
    upgrade
}

/// Returns the chunks of a layer, as they are looked for: not where nobody could tell them by their bytes.
fn chunks(layer: &Layer) -> impl Iterator<Item = (Hash, Chunk)> {
    let chunks = if layer.hash() == Hash::Sealed { &[][..] } else { layer.index().chunks() };
    chunks.iter().map(|chunk| (layer.hash(), *chunk))
}

/// What has to be read to compare two images.
struct Work {
    bytes: u64,
    /// By the number of the device, of each image.
    segments: [Vec<bool>; 2],
}

impl Work {
    fn survey(sides: &[Side<'_, Map>; 2], as_copy: bool) -> anyhow::Result<Self> {
        let trees = sides.each_ref().map(|side| side.image());
        let mut work =
            Self { bytes: 0, segments: trees.map(|tree| vec![false; usize::from(tree.devices()) + 1]) };
        compare(&sides[0], &sides[1], |step| {
            if let Found::Both(pair) = &step.found
                && !(as_copy && is_added(step.path))
            {
                for range in &pair.unsure {
                    work.bytes += range.end - range.start;
                    for (side, inode) in [&pair.first, &pair.second].into_iter().enumerate() {
                        mark(trees[side], inode, range, &mut work.segments[side])?;
                    }
                }
            }
            anyhow::Ok(())
        })
        .context("looking for what has to be read")?;
        Ok(work)
    }

    /// Asks for the segments, neighbours together; what finds no room in the queue is asked for when it is read.
    fn ask_for(&self, engine: &Engine, trees: &[Image<Map>; 2]) {
        for (tree, segments) in trees.iter().zip(&self.segments) {
            let wanted = (1..=tree.devices()).filter(|number| segments[usize::from(*number)]);
            let mut run: Option<(IndexId, Range<u32>)> = None;
            for device in wanted.filter_map(|number| tree.device(number)) {
                match &mut run {
                    Some((index, range)) if *index == device.index && range.end == device.segment => {
                        range.end += 1;
                    }
                    run => {
                        let next = (device.index, device.segment..device.segment + 1);
                        if let Some((index, range)) = run.replace(next) {
                            engine.through.want(index, range, Priority::Hint);
                        }
                    }
                }
            }
            if let Some((index, range)) = run {
                engine.through.want(index, range, Priority::Hint);
            }
        }
    }
}

/// Marks the devices that hold a range of a file.
fn mark(tree: &Image<Map>, inode: &Inode, range: &Range<u64>, devices: &mut [bool]) -> anyhow::Result<()> {
    for piece in tree.pieces(inode, range.start, range.end - range.start)? {
        if let Source::Device { number, .. } = piece?.source {
            devices[usize::from(number)] = true;
        }
    }
    Ok(())
}

/// A comparison under way.
struct Comparison<'e> {
    files: [Files<'e>; 2],
    buffers: [Vec<u8>; 2],
    progress: ReadProgress<'e>,
    /// Differences not yet told.
    found: Vec<Difference>,
    compared: Compared,
}

impl Comparison<'_> {
    fn look_at(&mut self, path: &[u8], found: &Found) -> anyhow::Result<()> {
        self.compared.entries += 1;
        let (sign, changes) = match found {
            Found::First(_) => (Sign::Removed, Changes::default()),
            Found::Second(_) => (Sign::Added, Changes::default()),
            Found::Both(pair) => {
                let changes =
                    self.changes(pair).with_context(|| format!("comparing /{}", printable(path)))?;
                if changes.is_empty() {
                    return Ok(());
                }
                (Sign::Changed, changes)
            }
        };
        let path = format!("/{}", printable(path));
        self.found.push(Difference { path, sign, changes: changes.iter().collect() });
        if self.found.len() >= BATCH { self.tell() } else { Ok(()) }
    }

    fn changes(&mut self, pair: &Pair) -> anyhow::Result<Changes> {
        let mut changes = pair.changes;
        if pair.second.kind == Kind::File && !pair.again {
            self.compared.bytes += pair.second.size;
        }
        for range in &pair.unsure {
            if !self.is_equal(pair, range.clone())? {
                changes.add(Change::Content);
                break;
            }
        }
        let unsure = pair.unsure.iter().map(|range| range.end - range.start).sum();
        self.progress.add(unsure)?;
        Ok(changes)
    }

    fn is_equal(&mut self, pair: &Pair, range: Range<u64>) -> anyhow::Result<bool> {
        let mut at = range.start;
        while at < range.end {
            let len = usize::try_from(range.end - at).map_or(PIECE, |left| left.min(PIECE));
            let [a, b] = self.buffers.each_mut().map(|buffer| &mut buffer[..len]);
            self.files[0].read(&pair.first, at, a)?;
            self.files[1].read(&pair.second, at, b)?;
            if a != b {
                return Ok(false);
            }
            at += len as u64;
            self.progress.alive(at - range.start)?;
        }
        Ok(true)
    }

    fn tell(&mut self) -> anyhow::Result<()> {
        let differences = std::mem::take(&mut self.found);
        if differences.is_empty() { Ok(()) } else { (self.progress.talk)(Event::Differences { differences }) }
    }
}

/// How much of what has to be read has been.
struct ReadProgress<'e> {
    talk: &'e Talk<'e>,
    what: Digest,
    total: u64,
    done: u64,
    said: u64,
}

impl ReadProgress<'_> {
    fn add(&mut self, bytes: u64) -> anyhow::Result<()> {
        self.done += bytes;
        self.alive(0)
    }

    /// Says how far it is, now and then; of the file at hand, so many bytes are done.
    fn alive(&mut self, of_this: u64) -> anyhow::Result<()> {
        let done = (self.done + of_this).min(self.total);
        if done < self.said + SAY {
            return Ok(());
        }
        self.said = done;
        say(self.talk, "comparing", &self.what, done, self.total)
    }

    fn end(&self) -> anyhow::Result<()> {
        if self.total == 0 { Ok(()) } else { say(self.talk, "compared", &self.what, self.total, self.total) }
    }
}

/// The contents of an image's files.
struct Files<'e> {
    image: &'e Image<Map>,
    contents: Contents<'e>,
}

impl Files<'_> {
    /// Fills a buffer with what a file holds from an offset on.
    fn read(&mut self, inode: &Inode, at: u64, buffer: &mut [u8]) -> anyhow::Result<()> {
        let mut rest = buffer;
        for piece in self.image.pieces(inode, at, rest.len() as u64)? {
            let piece = piece?;
            let len = usize::try_from(piece.len).map_or(rest.len(), |len| len.min(rest.len()));
            let (part, behind) = rest.split_at_mut(len);
            match piece.source {
                Source::Hole => part.fill(0),
                Source::Device { number, offset } => {
                    let device = self.image.device(number);
                    let device = device.context("a file lies on a device that is not there")?;
                    self.contents.read(device.index, device.segment, offset, part)?;
                }
            }
            rest = behind;
        }
        ensure!(rest.is_empty(), "a file ends before its size");
        Ok(())
    }
}
