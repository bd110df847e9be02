//! The names of a layer: whether a table can say what unpacking its members would make.
//!
//! A table is a set of paths; a tar is a list of steps. They amount to the same if no member replaces another, no path
//! leads through something that is no directory, and links lead to files that are there. `initFields` of
//! stargz-snapshotter takes a table whose links lead nowhere for damaged, and follows one that leads to itself for ever.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

/// What a path is. Those that only lead to others are implied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Implied,
    Dir,
    Other,
}

/// What a member is, as far as names go.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sort<'a> {
    Dir,
    /// And where it leads.
    Link(&'a [u8]),
    Other,
}

/// Whether directories may occur twice: the later one counts, for eStargz. Tar-split takes no path twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Twice {
    Dirs,
    Nothing,
}

/// Most paths, directories that only lead to others included: each member could ask for two thousand of those.
const MOST: usize = 4_000_000;

/// The paths so far, by the first half of their BLAKE3: a million of them take 40 MB.
#[derive(Debug)]
pub(super) struct Names {
    twice: Twice,
    places: HashMap<Key, Place>,
}

impl Names {
    pub(super) fn new(twice: Twice) -> Self {
        Self { twice, places: HashMap::new() }
    }

    /// Adds a member; an error says why a table cannot hold it.
    pub(super) fn add(&mut self, path: &[u8], sort: Sort<'_>) -> Result<(), &'static str> {
        let path = clean(path);
        self.lead(&path)?;
        if self.places.len() > MOST {
            return Err("the layer has too many directories");
        }
        if let Sort::Link(target) = sort {
            match self.places.get(&key(&clean(target))) {
                Some(Place::Other) => {}
                Some(_) => return Err("it is a hard link to a directory"),
                None => return Err("it is a hard link to a file that is not in the layer before it"),
            }
        }
        let place = if matches!(sort, Sort::Dir) { Place::Dir } else { Place::Other };
        match self.places.entry(key(&path)) {
            Entry::Vacant(vacant) => {
                vacant.insert(place);
            }
            Entry::Occupied(mut there) => match (there.get(), place) {
                (Place::Implied, Place::Dir) => {
                    there.insert(Place::Dir);
                }
                (Place::Dir, Place::Dir) if self.twice == Twice::Dirs => {}
                _ => return Err("its path occurs twice"),
            },
        }
        Ok(())
    }

    /// Adds the directories that lead to a path.
    fn lead(&mut self, path: &[u8]) -> Result<(), &'static str> {
        let mut end = path.len();
        while let Some(slash) = path[..end].iter().rposition(|byte| *byte == b'/') {
            end = slash;
            match self.places.entry(key(&path[..end])) {
                Entry::Vacant(vacant) => {
                    vacant.insert(Place::Implied);
                }
                Entry::Occupied(there) if *there.get() == Place::Other => {
                    return Err("its path leads through something that is no directory");
                }
                // Those above it were added with it.
                Entry::Occupied(_) => return Ok(()),
            }
        }
        Ok(())
    }
}

/// What stands for a path or a name.
pub(super) type Key = [u8; 16];

pub(super) fn key(path: &[u8]) -> Key {
    let mut key = [0; 16];
    key.copy_from_slice(&blake3::hash(path).as_bytes()[..16]);
    key
}

/// Returns a path without empty, `.` and `..` names, the last kept inside the root, and without slashes around.
pub(super) fn clean(path: &[u8]) -> Vec<u8> {
    let mut clean: Vec<u8> = Vec::with_capacity(path.len());
    for name in path.split(|byte| *byte == b'/') {
        match name {
            b"" | b"." => {}
            b".." => clean.truncate(clean.iter().rposition(|byte| *byte == b'/').unwrap_or(0)),
            name => {
                if !clean.is_empty() {
                    clean.push(b'/');
                }
                clean.extend_from_slice(name);
            }
        }
    }
    clean
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_cleaned_inside_the_root() {
        for (path, want) in [
            ("", ""),
            ("./", ""),
            ("/", ""),
            ("a", "a"),
            ("./a//b/", "a/b"),
            ("../a", "a"),
            ("a/../b", "b"),
            ("a/b/../../../c", "c"),
            ("..a/.b", "..a/.b"),
        ] {
            assert_eq!(clean(path.as_bytes()), want.as_bytes(), "{path}");
        }
    }

    #[test]
    fn what_a_set_of_paths_cannot_say_is_refused() {
        type Step<'a> = (&'a str, Sort<'a>, bool);
        let steps: [&[Step<'_>]; 9] = [
            &[("a/b", Sort::Other, true), ("a", Sort::Dir, true), ("./a/", Sort::Dir, true)],
            &[("a", Sort::Other, true), ("./a", Sort::Other, false)],
            &[("a", Sort::Dir, true), ("a", Sort::Other, false)],
            &[("a/b", Sort::Other, true), ("a", Sort::Other, false)],
            &[("a", Sort::Other, true), ("a/b", Sort::Other, false)],
            &[("a", Sort::Other, true), ("b", Sort::Link(b"/a"), true), ("c", Sort::Link(b"b"), true)],
            &[("a", Sort::Link(b"a"), false)],
            &[("a", Sort::Dir, true), ("b", Sort::Link(b"a"), false)],
            &[("b", Sort::Link(b"a"), false), ("a", Sort::Other, true)],
        ];
        for steps in steps {
            let mut names = Names::new(Twice::Dirs);
            for (path, sort, good) in steps {
                assert_eq!(names.add(path.as_bytes(), *sort).is_ok(), *good, "{path} of {steps:?}");
            }
        }
        let mut names = Names::new(Twice::Nothing);
        assert!(names.add(b"a", Sort::Dir).is_ok() && names.add(b"a/", Sort::Dir).is_err());
    }
}
