//! Which members of a layer come first, and which of those can without anything else coming out.
//!
//! A tar is a list of steps, so another order may make another tree. A file is moved to the front, behind the directories
//! that lead to it, only if no step between could tell:
//!
//! - its path, and that of each directory above, occurs once in the layer, and these directories come before all in them:
//!   where one of them is not in the layer, the layers below may have a symbolic link there;
//! - nothing in the layer hides its path or one above: tools differ in whether a whiteout also takes what its own layer
//!   has put there before;
//! - no member that comes by a way nobody here can follow (below something that is no such directory) has a last name that
//!   is also on its path: it may be the same place;
//! - no member before it comes by such a way: it may go through what this file, or a directory above it, replaces;
//! - no hard link before it leads to what is not in the layer so far: it might be to the file that this one replaces.
//!
//! What stays lies in the order it had. Hard links stay; where one is wanted, the file comes that it leads to.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, HashSet};

use format::tar::MemberKind;
use format::{Digest, DigestHasher};

use super::names::{Key, clean, key};

/// How names begin that hide something.
const WHITEOUT: &[u8] = b".wh.";

/// Such names that are not about one file: opaque directories, and what AUFS kept for itself.
const WHITEOUTS: &[u8] = b".wh..wh.";

/// Files that are to come first, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct First(Vec<Vec<u8>>);

impl First {
    /// Returns these paths, each once.
    pub fn new<'a>(paths: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut seen = HashSet::new();
        let paths = paths.into_iter().map(clean);
        Self(paths.filter(|path| !path.is_empty() && seen.insert(path.clone())).collect())
    }

    /// Says that there are none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Returns what tells one order from another.
    pub fn digest(&self) -> Digest {
        let mut hasher = DigestHasher::new();
        hasher.update(RULES);
        for path in &self.0 {
            hasher.update(path);
            hasher.update(&[0]); // which no path has
        }
        hasher.finish()
    }
}

/// Stands for the rules below in the digest of an order: by others another layer would come out.
const RULES: &[u8] = b"1\0";

/// Most paths that are looked at: each member could ask for two thousand. In a layer with more nothing is moved.
const MOST: usize = 4_000_000;

/// What is known of a path.
#[derive(Debug, Clone, Copy)]
struct Place {
    /// The first member that has it.
    number: u32,
    sort: Sort,
    /// Whether a member lies below it, and whether one hides it.
    leads: bool,
    hidden: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Sort {
    /// No member has it so far.
    Nothing,
    /// A directory that came before all in it, in one like this or in the root.
    Dir,
    File,
    /// A hard link, or what else can have one.
    Other,
    /// Several members have it, or a directory that is none of the above.
    Odd,
}

impl Place {
    const NOTHING: Self = Self { number: 0, sort: Sort::Nothing, leads: false, hidden: false };
}

/// What the members of a layer are, as far as their order goes: some 50 bytes for each path.
#[derive(Debug)]
pub(crate) struct Survey<'a> {
    first: &'a First,
    ranks: HashMap<Key, usize>,
    places: HashMap<Key, Place>,
    /// Files that wanted links lead to, by the links' ranks.
    targets: HashMap<usize, Vec<u8>>,
    /// Last names of members whose place nobody here knows.
    elsewhere: HashSet<Key>,
    /// The first member that may go through what is not in the layer: by its way, or as a hard link.
    barrier: u32,
    count: u32,
    /// Whether there are too many paths.
    full: bool,
}

impl<'a> Survey<'a> {
    pub(crate) fn new(first: &'a First) -> Self {
        let ranks = first.0.iter().enumerate().map(|(rank, path)| (key(path), rank)).collect();
        Self {
            first,
            ranks,
            places: HashMap::new(),
            targets: HashMap::new(),
            elsewhere: HashSet::new(),
            barrier: u32::MAX,
            count: 0,
            full: false,
        }
    }

    /// Takes the next member.
    pub(crate) fn member(&mut self, path: &[u8], kind: &MemberKind) {
        let number = self.count;
        self.count = number.saturating_add(1);
        if self.full || self.places.len() > MOST {
            (self.full, self.places, self.elsewhere) = (true, HashMap::new(), HashSet::new());
            return;
        }
        let path_is_plain = !climbs(path);
        let path = clean(path);
        let (dir, name) = split(&path);
        if let Some(hidden) = name.strip_prefix(WHITEOUT) {
            let below = [dir, if dir.is_empty() { b"" } else { b"/" }, hidden].concat();
            let hidden = if name.starts_with(WHITEOUTS) { dir } else { &below[..] };
            self.places.entry(key(hidden)).or_insert(Place::NOTHING).hidden = true;
        }
        let known = self.lead(dir) && path_is_plain;
        if !known {
            self.barrier = self.barrier.min(number);
            self.elsewhere.insert(key(name.strip_prefix(WHITEOUT).unwrap_or(name)));
        }
        if let MemberKind::Link(target) = kind {
            self.link(number, &path, target);
        }
        let sort = match kind {
            MemberKind::Dir if known => Sort::Dir,
            MemberKind::Dir => Sort::Odd,
            MemberKind::File | MemberKind::Sparse { .. } => Sort::File,
            _ => Sort::Other,
        };
        match self.places.entry(key(&path)) {
            Entry::Vacant(vacant) => drop(vacant.insert(Place { number, sort, ..Place::NOTHING })),
            Entry::Occupied(mut there) => {
                let there = there.get_mut();
                let fresh = there.sort == Sort::Nothing;
                let sort = if fresh && !there.leads { sort } else { Sort::Odd };
                *there = Place { number: if fresh { number } else { there.number }, sort, ..*there };
            }
        }
    }

    /// Returns the members that come first, in order: files, and before each the directories that lead to it.
    pub(crate) fn finish(self) -> Vec<u32> {
        let (mut order, mut there) = (Vec::new(), HashSet::new());
        if self.full {
            return order;
        }
        for (rank, path) in self.first.0.iter().enumerate() {
            let path = self.targets.get(&rank).unwrap_or(path);
            let Some(way) = self.way(path) else { continue };
            order.extend(way.into_iter().filter(|number| there.insert(*number)));
        }
        order
    }

    /// Returns the members that make a path, if they may be moved.
    fn way(&self, path: &[u8]) -> Option<Vec<u32>> {
        let file = self.places.get(&key(path))?;
        if file.sort != Sort::File || file.leads || file.number > self.barrier {
            return None;
        }
        let slashes = path.iter().enumerate().filter(|(_, byte)| **byte == b'/').map(|(at, _)| at);
        let mut way = self.root(file)?;
        for end in slashes.chain([path.len()]) {
            let place = self.places.get(&key(&path[..end]))?;
            let fits = if end < path.len() { place.sort == Sort::Dir } else { true };
            if !fits || place.hidden || self.elsewhere.contains(&key(split(&path[..end]).1)) {
                return None;
            }
            way.push(place.number);
        }
        Some(way)
    }

    /// Returns the member that is the root, if it comes before a file: what it is set to may be passed on to what is made in it.
    /// Nothing, if the root hides what is there.
    fn root(&self, file: &Place) -> Option<Vec<u32>> {
        match self.places.get(&key(b"")) {
            Some(root) if root.hidden || matches!(root.sort, Sort::Odd | Sort::Other | Sort::File) => None,
            Some(root) if root.sort == Sort::Dir && root.number < file.number => Some(vec![root.number]),
            _ => Some(Vec::new()),
        }
    }

    /// Notes that there is something in a directory; says whether it is known which one that is.
    fn lead(&mut self, dir: &[u8]) -> bool {
        let mut end = dir.len();
        while end > 0 {
            let place = self.places.entry(key(&dir[..end])).or_insert(Place::NOTHING);
            if std::mem::replace(&mut place.leads, true) {
                break; // and so do those above
            }
            end = dir[..end].iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        }
        dir.is_empty() || self.places.get(&key(dir)).is_some_and(|place| place.sort == Sort::Dir)
    }

    fn link(&mut self, number: u32, path: &[u8], target: &[u8]) {
        let plain = !climbs(target);
        let target = clean(target);
        match self.places.get(&key(&target)).map(|place| place.sort) {
            Some(Sort::File) if plain => {
                if let Some(rank) = self.ranks.get(&key(path)) {
                    self.targets.insert(*rank, target);
                }
            }
            Some(Sort::Other) if plain => {}
            _ => self.barrier = self.barrier.min(number),
        }
    }
}

/// Says whether a path goes up.
fn climbs(path: &[u8]) -> bool {
    path.split(|byte| *byte == b'/').any(|name| name == b"..")
}

/// Returns the directory and the last name of a clean path.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    match path.iter().rposition(|byte| *byte == b'/') {
        Some(slash) => (&path[..slash], &path[slash + 1..]),
        None => (b"", path),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members as words: `d/` is a directory, `a=b` a hard link, `a>b` a symbolic one, all else a file.
    fn order(first: &str, members: &str) -> Vec<u32> {
        let first = First::new(first.split_whitespace().map(str::as_bytes));
        let mut survey = Survey::new(&first);
        for word in members.split_whitespace() {
            let (path, kind) = match (word.split_once('='), word.split_once('>')) {
                (Some((path, target)), _) => (path, MemberKind::Link(target.as_bytes().into())),
                (_, Some((path, target))) => (path, MemberKind::Symlink(target.as_bytes().into())),
                _ if word.ends_with('/') => (word, MemberKind::Dir),
                _ => (word, MemberKind::File),
            };
            survey.member(path.as_bytes(), &kind);
        }
        survey.finish()
    }

    #[test]
    fn files_come_with_their_directories() {
        let members = "./ a/ a/x a/b/ a/b/y c/ c/z";
        assert_eq!(order("c/z a/b/y", members), [0, 5, 6, 1, 3, 4]);
        assert_eq!(order("/a/b/y ./a/x nobody a a/b/y", members), [0, 1, 3, 4, 2]);
        assert_eq!(order("a/x", "a/ a/x ./"), [0, 1]);
        assert_eq!(order("", members), [0_u32; 0]);
        assert_eq!(order("x", "x y=x"), [0]);
        assert_eq!(order("y", "x y=x z=y"), [0], "what a link leads to");
    }

    #[test]
    fn what_could_come_out_otherwise_stays() {
        for (first, members, why) in [
            ("x", "x x", "twice"),
            ("x", "x a ./x", "twice, written in two ways"),
            ("d/x", "d/ d/x d/", "a directory described twice"),
            ("d/x", "d/ d/x d", "which something replaces"),
            ("d/x", "d/x d/", "described later"),
            ("d/x", "d/x", "not described: below may be a symbolic link"),
            ("d/e/x", "d/e/ d/e/x", "above it one that is not described"),
            ("d/x", "e/ d>e d/x", "by way of a symbolic link"),
            ("e/x", "e/ d>e e/x d/x", "perhaps the same place"),
            ("e/x", "e/ e/x d/x", "perhaps the same place"),
            ("e/x", "e/ e/x d/.wh.x", "perhaps hidden"),
            ("e/d/x", "e/ e/d/ e/d/x s/d", "perhaps its directory"),
            ("x", "x x/y", "something lies below"),
            ("x", "x .wh.x", "hidden"),
            ("d/x", ".wh.d d/ d/x", "hidden with its directory"),
            ("d/x", "d/ d/.wh..wh..opq d/x", "in a directory that hides"),
            ("x", ".wh..wh..opq x", "in a root that hides"),
            ("x", "l=x x", "a link to what it replaces"),
            ("x", "l=d/../x x", "a link by another way"),
            ("x", "d/ d/../x", "a path that goes up"),
            ("d/x", "s/y d/ d/x", "what is below may lead s through d"),
            ("x", "s/y x", "what is below may lead s through x"),
            ("d/x", "s/.wh..wh..opq d/ d/x", "perhaps hidden with all else there"),
            ("x", "./ ./ x", "a root described twice"),
            ("d", "d/", "no file"),
            ("s", "x s>x", "no file"),
        ] {
            assert_eq!(order(first, members), [0_u32; 0], "{why}: {members}");
        }
        // And what has nothing to do with it does not matter.
        assert_eq!(order("x", "x l=gone"), [0]);
        assert_eq!(order("e/x", "e/ e/x d/y .wh.z q/ q/.wh..wh..opq"), [0, 1]);
    }

    #[test]
    fn orders_are_told_apart() {
        let of = |paths: &str| First::new(paths.split_whitespace().map(str::as_bytes)).digest();
        assert_eq!(of("a b a"), of("/a ./b"));
        assert_ne!(of("a b"), of("b a"));
        assert_ne!(of("ab"), of("a b"));
    }
}
