//! Comparisons of random images, held against what their trees look like with all their bytes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

#[cfg(test)]
mod support;

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;

use format::compare::{Change, Found, Lack, Side, Table, compare, lack};
use format::erofs::read::{Corrupt, Image};
use format::erofs::write::{self, LayerDevices};
use format::index::Chunk;
use format::tree::Tree;
use format::{ChunkId, IndexId, limits};
use proptest::prelude::*;
use testkit::dump::{Dump, What};
use testkit::layers::sensible;
use testkit::tar::{Archive, Entry, Kind, Variant};
use testkit::{arbitrary, dice::Dice};

/// An image with all that a comparison may know, and all bytes.
struct Made {
    layers: Vec<support::Layer>,
    chunks: Vec<Vec<Chunk>>,
    image: Image<Vec<u8>>,
    dump: Dump,
}

/// Makes an image of archives; the indexes of two layers are one if their tars are.
fn made(tars: &[Vec<u8>]) -> Option<Made> {
    let layers: Vec<_> = tars.iter().map(|tar| support::read(tar, usize::MAX).unwrap()).collect();
    let tree: Tree = support::tree(&layers).ok()?;
    let devices: Vec<_> = layers
        .iter()
        .zip(tars)
        .map(|(layer, tar)| LayerDevices {
            index: id(tar),
            segment: support::segment(),
            lens: (0..layer.layout.segments())
                .map(|n| u32::try_from(layer.layout.segment_len(n) / limits::BLOCK).unwrap())
                .collect(),
        })
        .collect();
    let chunks = layers.iter().map(chunks).collect();
    let image = Image::open(write::image(&tree, &devices).unwrap()).unwrap();
    let dump = support::dump(&tree, &layers);
    Some(Made { layers, chunks, image, dump })
}

fn id(tar: &[u8]) -> IndexId {
    IndexId::from_bytes(*blake3::hash(tar).as_bytes())
}

fn chunks(layer: &support::Layer) -> Vec<Chunk> {
    let mut space = layer.space.clone();
    space.resize(usize::try_from(layer.layout.space()).unwrap(), 0);
    let bytes = |start: u64, len: u32| &space[usize::try_from(start).unwrap()..][..len as usize];
    let cuts = layer.layout.cuts().iter();
    cuts.map(|cut| Chunk { len: cut.len, id: ChunkId::of(bytes(cut.start, cut.len)) }).collect()
}

impl Made {
    fn tables(&self) -> impl Iterator<Item = Table<'_>> {
        let parts = self.layers.iter().zip(&self.chunks);
        parts.map(|(layer, chunks)| Table::new(support::segment(), layer.layout.cuts(), chunks))
    }

    fn side(&self, tars: &[Vec<u8>]) -> Side<'_, Vec<u8>> {
        Side::new(&self.image, tars.iter().map(|tar| id(tar)).zip(self.tables()))
    }

    /// Returns the content of a file, whatever name of it this is.
    fn content(&self, path: &[u8]) -> &[u8] {
        match &self.dump[path].what {
            What::File(content) => content,
            What::SameAs(first) => self.content(first),
            other => panic!("{other:?} is no file"),
        }
    }

    /// Returns the first name of what is at a path.
    fn first<'a>(&'a self, path: &'a [u8]) -> &'a [u8] {
        match &self.dump[path].what {
            What::SameAs(first) => first,
            _ => path,
        }
    }

    fn what(&self, path: &[u8]) -> &What {
        &self.dump[self.first(path)].what
    }
}

/// What differs: the paths of the first only, of the second only, and of both with what differs.
#[derive(Debug, Default, PartialEq, Eq)]
struct Differences {
    first: BTreeSet<Vec<u8>>,
    second: BTreeSet<Vec<u8>>,
    both: BTreeMap<Vec<u8>, BTreeSet<&'static str>>,
}

impl Differences {
    fn without_links(mut self) -> Self {
        self.both.values_mut().for_each(|words| words.retain(|word| *word != "links"));
        self.both.retain(|_, words| !words.is_empty());
        self
    }

    fn swapped(self) -> Self {
        Self { first: self.second, second: self.first, both: self.both }
    }
}

fn is_equal(a: &[u8], b: &[u8], ranges: &[Range<u64>]) -> bool {
    ranges.iter().all(|range| {
        let range = usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap();
        a[range.clone()] == b[range]
    })
}

/// Compares, and reads what is said to have to be read. Also returns how many bytes that was.
fn compared(a: &Made, a_tars: &[Vec<u8>], b: &Made, b_tars: &[Vec<u8>]) -> (Differences, u64) {
    let (mut found, mut read) = (Differences::default(), 0);
    let mut last: Option<Vec<Vec<u8>>> = None;
    compare(&a.side(a_tars), &b.side(b_tars), |step| {
        let path = step.path.to_vec();
        let parts: Vec<_> = path.split(|b| *b == b'/').map(<[u8]>::to_vec).collect();
        assert!(last.as_ref().is_none_or(|last| *last < parts), "paths come in order");
        last = Some(parts);
        match step.found {
            Found::First(_) => assert!(found.first.insert(path), "each path comes once"),
            Found::Second(_) => assert!(found.second.insert(path), "each path comes once"),
            Found::Both(pair) => {
                let mut words: BTreeSet<_> = pair.changes.iter().map(Change::word).collect();
                read += pair.unsure.iter().map(|range| range.end - range.start).sum::<u64>();
                if !pair.unsure.is_empty() && !is_equal(a.content(&path), b.content(&path), &pair.unsure) {
                    words.insert("content");
                }
                if !words.is_empty() {
                    found.both.insert(path, words);
                }
            }
        }
        Ok::<_, Corrupt>(())
    })
    .unwrap();
    (found, read)
}

/// Returns the same by looking at everything; but not which links differ.
fn expected(a: &Made, b: &Made) -> Differences {
    let mut differences = Differences::default();
    differences.first.extend(a.dump.keys().filter(|path| !b.dump.contains_key(*path)).cloned());
    differences.second.extend(b.dump.keys().filter(|path| !a.dump.contains_key(*path)).cloned());
    for path in a.dump.keys().filter(|path| b.dump.contains_key(*path)) {
        let words = changes(a, b, path);
        if !words.is_empty() {
            differences.both.insert(path.clone(), words);
        }
    }
    differences
}

fn changes(a: &Made, b: &Made, path: &[u8]) -> BTreeSet<&'static str> {
    let (left, right) = (a.what(path), b.what(path));
    let mut words = BTreeSet::new();
    if std::mem::discriminant(left) != std::mem::discriminant(right) {
        return ["kind"].into();
    }
    if left != right {
        words.insert(match left {
            What::File(_) => "content",
            What::Symlink(_) => "target",
            _ => "device",
        });
    }
    let (left, right) = (&a.dump[a.first(path)], &b.dump[b.first(path)]);
    for (differs, word) in [
        (left.mode != right.mode, "mode"),
        ((left.uid, left.gid) != (right.uid, right.gid), "owner"),
        (left.mtime != right.mtime, "time"),
        (left.xattrs != right.xattrs, "xattrs"),
    ] {
        if differs {
            words.insert(word);
        }
    }
    words
}

/// Says whether the paths that both have are names of the same files in both.
fn links_agree(a: &Made, b: &Made) -> bool {
    let same = |path: &&Vec<u8>| {
        let kinds = [a, b].map(|made| made.dump.get(*path).map(|_| std::mem::discriminant(made.what(path))));
        kinds[0].is_some() && kinds[0] == kinds[1]
    };
    let common: Vec<_> = a.dump.keys().filter(same).collect();
    let (mut firsts, mut seconds) = (HashMap::new(), HashMap::new());
    common.iter().all(|path| {
        let (left, right) = (a.first(path), b.first(path));
        *firsts.entry(left).or_insert(right) == right && *seconds.entry(right).or_insert(left) == left
    })
}

fn archive(layer: &[(Entry, Variant)]) -> Vec<u8> {
    let mut archive = Archive::new();
    layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
    archive.finish();
    archive.tar
}

fn tars(layers: &[Vec<(Entry, Variant)>]) -> Vec<Vec<u8>> {
    sensible(layers, |(entry, _)| entry).iter().map(|layer| archive(layer)).collect()
}

/// One layer of entries, an image.
fn image(entries: &[Entry]) -> (Made, Vec<Vec<u8>>) {
    let tars = vec![Archive::of(entries, Variant::Pax10).tar];
    (made(&tars).unwrap(), tars)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_comparison_finds_what_looking_at_everything_finds(
        common in prop::collection::vec(arbitrary::layer(0..30), 1..3),
        own in prop::collection::vec(arbitrary::layer(0..8), 2),
        apart in any::<bool>(),
    ) {
        let mut second = common.clone();
        if apart {
            // The same files in layers of another identity.
            second[0].push((Entry::file("zz", "z"), Variant::Pax10));
        }
        let [first, second] = [(common, own[0].clone()), (second, own[1].clone())].map(|(mut layers, own)| { layers.push(own); tars(&layers) });
        if let (Some(a), Some(b)) = (made(&first), made(&second)) {
            let (found, _) = compared(&a, &first, &b, &second);
            let (back, _) = compared(&b, &second, &a, &first);
            prop_assert_eq!(&found, &back.swapped(), "it does not matter which is the first");
            let told = found.both.values().any(|words| words.contains("links"));
            prop_assert_eq!(told, !links_agree(&a, &b));
            prop_assert_eq!(found.without_links(), expected(&a, &b));
        }
    }

    #[test]
    fn an_image_is_like_itself_and_nothing_is_read(layers in prop::collection::vec(arbitrary::layer(0..30), 1..4)) {
        let tars = tars(&layers);
        if let Some(made) = made(&tars) {
            prop_assert_eq!(compared(&made, &tars, &made, &tars), (Differences::default(), 0));
            let all = made.chunks.iter().flatten().map(|chunk| u64::from(chunk.len)).sum::<u64>();
            let lacks = lack(made.tables(), made.tables());
            prop_assert_eq!(lacks.iter().map(|lack| (lack.missing, lack.all)).fold((0, 0), |a, b| (a.0 + b.0, a.1 + b.1)), (0, all));
        }
    }
}

fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut dice = Dice(seed);
    (0..len).map(|_| u8::try_from(dice.below(256)).unwrap()).collect()
}

#[test]
fn a_single_change_is_found_for_what_it_is() {
    let file = || Entry::file("d/f", noise(1, 50_000)).xattr("security.a", "v");
    let other = |kind| Entry { kind, ..file() };
    let special = |minor| Entry::new("d/f", Kind::Char(1, minor));
    let link = |target: &str| Entry::symlink("d/f", target);
    for (before, after, word) in [
        (file(), other(Kind::File(noise(2, 50_000))), "content"),
        (file(), other(Kind::File(noise(1, 49_999))), "content"),
        (file(), file().mode(0o4755), "mode"),
        (file(), file().owner(0, 1), "owner"),
        (file(), file().mtime(1_700_000_000, 1), "time"),
        (file(), file().xattr("security.a", "w"), "xattrs"),
        (file(), file().xattr("security.b", ""), "xattrs"),
        (file(), link("x"), "kind"),
        (link("x"), link("y"), "target"),
        (special(1), special(2), "device"),
        (special(1), Entry::new("d/f", Kind::Block(1, 1)), "kind"),
    ] {
        let around = [Entry::dir("d"), Entry::file("d/e", "before"), Entry::file("d/g", "after")];
        let [(a, a_tars), (b, b_tars)] = [before, after].map(|entry| {
            let mut all = around.to_vec();
            all.insert(2, entry);
            image(&all)
        });
        let (found, _) = compared(&a, &a_tars, &b, &b_tars);
        let both = BTreeMap::from([(b"d/f".to_vec(), BTreeSet::from([word]))]);
        assert_eq!(found, Differences { both, ..Differences::default() }, "{word}");
    }
}

#[test]
fn a_path_of_one_image_only_comes_with_all_below_it() {
    let (a, a_tars) = image(&[Entry::dir("d"), Entry::file("d/x", "1"), Entry::file("e", "2")]);
    let (b, b_tars) =
        image(&[Entry::file("d", "1"), Entry::dir("f"), Entry::dir("f/g"), Entry::file("f/g/h", "2")]);
    let (found, _) = compared(&a, &a_tars, &b, &b_tars);
    let set = |paths: &[&str]| paths.iter().map(|path| path.as_bytes().to_vec()).collect();
    assert_eq!(found.first, set(&["d/x", "e"]));
    assert_eq!(found.second, set(&["f", "f/g", "f/g/h"]));
    assert_eq!(found.both, BTreeMap::from([(b"d".to_vec(), BTreeSet::from(["kind"]))]));
}

#[test]
fn names_of_one_file_are_told_from_files_of_equal_content() {
    let two = [Entry::file("a", "x"), Entry::file("b", "x"), Entry::link("c", "b")];
    let three = [Entry::file("a", "x"), Entry::link("b", "a"), Entry::link("c", "a")];
    let (a, a_tars) = image(&two);
    let (b, b_tars) = image(&three);
    let both = |path: &str| BTreeMap::from([(path.as_bytes().to_vec(), BTreeSet::from(["links"]))]);
    let (found, _) = compared(&a, &a_tars, &b, &b_tars);
    assert_eq!(found.both.keys().map(|path| path[0]).collect::<Vec<_>>(), [b'b', b'c']);
    // A name that only one has is told as that, and not again as a link.
    let (c, c_tars) = image(&two[..2]);
    let (found, _) = compared(&a, &a_tars, &c, &c_tars);
    assert_eq!((found.first.len(), found.both), (1, BTreeMap::new()));
    let (d, d_tars) = image(&three[..2]);
    assert_eq!(compared(&c, &c_tars, &d, &d_tars).0.both, both("b"));
}

/// What the chunks tell is not read: large files by themselves, small ones with their neighbours.
#[test]
fn only_what_the_indexes_cannot_tell_is_read() {
    let large = Entry::file("large", noise(1, 200_000));
    let small: Vec<_> = (0..20).map(|n| Entry::file(format!("small-{n:02}"), noise(100 + n, 3000))).collect();
    let all = |first: &str, changed: Option<usize>| {
        let mut entries = vec![Entry::file("first", noise(first.len() as u64, 70_000)), large.clone()];
        entries.extend(small.clone());
        if let Some(changed) = changed {
            entries[2 + changed] = Entry::file(format!("small-{changed:02}"), noise(999, 3000));
        }
        image(&entries)
    };
    let (a, a_tars) = all("x", None);
    let (b, b_tars) = all("xy", None);
    let words = |path: &str| BTreeMap::from([(path.as_bytes().to_vec(), BTreeSet::from(["content"]))]);
    let (found, read) = compared(&a, &a_tars, &b, &b_tars);
    assert_eq!((found.both, read), (words("first"), 0), "every chunk tells");

    // The last five share a chunk, as what remains of them behind the end of a segment.
    let (c, c_tars) = all("x", Some(18));
    let (found, read) = compared(&a, &a_tars, &c, &c_tars);
    assert_eq!((found.both, read), (words("small-18"), 5 * 3000));
}

#[test]
fn holes_are_zeros_whether_somebody_wrote_them_or_not() {
    let len = 100_000;
    let mut bytes = noise(1, len);
    bytes[8192..90_112].fill(0);
    let pieces = vec![(0, bytes[..8192].to_vec()), (90_112, bytes[90_112..].to_vec())];
    let (a, a_tars) = image(&[Entry::file("f", &bytes)]);
    let (b, b_tars) = image(&[Entry::new("f", Kind::Sparse(len as u64, pieces))]);
    assert_eq!(compared(&a, &a_tars, &b, &b_tars).0, Differences::default());
}

#[test]
fn what_is_lacking_is_counted_once() {
    let (a, _) = image(&[Entry::file("f", noise(1, 20_000)), Entry::file("g", noise(2, 30_000))]);
    let tars: Vec<_> = [
        [Entry::file("f", noise(1, 20_000)), Entry::file("h", noise(3, 40_000))],
        [Entry::file("i", noise(3, 40_000)), Entry::file("j", noise(4, 50_000))],
    ]
    .iter()
    .map(|entries| Archive::of(entries, Variant::Pax10).tar)
    .collect();
    let b = made(&tars).unwrap();
    let lacks = lack(a.tables(), b.tables());
    assert_eq!(lacks, [Lack { missing: 40_000, all: 60_000 }, Lack { missing: 50_000, all: 90_000 }]);
}
