//! Strategies for random members, layers and images.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;

use crate::tar::{Entry, Kind, Variant};

/// Names of what mostly are directories; few, so that paths meet.
fn dir_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => select(vec![b"d".to_vec(), b"e".to_vec()]),
        1 => Just(b"\xff\xfe =\n".to_vec()),
        1 => Just(vec![b'l'; 255]),
        1 => Just(vec![b'm'; 90]),
    ]
}

/// Names of what mostly are leaves.
fn leaf_name() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![
        12 => select(vec![b"a".to_vec(), b"b".to_vec(), b"c".to_vec()]),
        1 => Just(b"\x80".to_vec()),
        1 => Just(vec![b'n'; 254]),
        1 => Just(vec![b'o'; 95]),
    ]
}

/// A path ending in one of these names, sometimes with the decorations tools write.
fn path(last: impl Strategy<Value = Vec<u8>>) -> impl Strategy<Value = Vec<u8>> {
    (vec(dir_name(), 0..=3), last, select(vec!["", "", "", "./", "/", ".//./"])).prop_map(
        |(mut names, last, prefix)| {
            names.push(last);
            [prefix.as_bytes(), &names.join(&b'/')[..]].concat()
        },
    )
}

fn content() -> impl Strategy<Value = Vec<u8>> {
    prop_oneof![4 => vec(any::<u8>(), 0..40), 1 => vec(any::<u8>(), 500..530), 1 => vec(any::<u8>(), 4000..9000)]
}

fn sparse() -> impl Strategy<Value = Kind> {
    let piece = (0u64..9000, vec(any::<u8>(), 1..5000));
    (prop_oneof![5 => vec(piece.clone(), 0..5), 1 => vec(piece, 20..40)], 0u64..9000).prop_map(
        |(gaps, tail)| {
            let mut at = 0;
            let pieces: Vec<_> = gaps
                .into_iter()
                .map(|(gap, data)| {
                    let start = at + gap;
                    at = start + data.len() as u64;
                    (start, data)
                })
                .collect();
            Kind::Sparse(at + tail, pieces)
        },
    )
}

/// Everything but directories.
fn leaf() -> impl Strategy<Value = Kind> {
    prop_oneof![
        6 => content().prop_map(Kind::File),
        2 => sparse(),
        3 => path(leaf_name()).prop_map(Kind::Link),
        2 => prop_oneof![path(leaf_name()), vec(b'a'..=b'z', 101..300)].prop_map(Kind::Symlink),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::Char(major, minor)),
        1 => (0u32..4096, 0u32..1 << 20).prop_map(|(major, minor)| Kind::Block(major, minor)),
        1 => Just(Kind::Fifo),
    ]
}

/// A path and what is there: mostly directories and leaves keep to their names, so that most layers make sense.
fn place() -> impl Strategy<Value = (Vec<u8>, Kind)> {
    let dir = |mut path: Vec<u8>| {
        path.push(b'/');
        (path, Kind::Dir)
    };
    prop_oneof![
        10 => path(dir_name()).prop_map(dir),
        14 => (path(leaf_name()), leaf()),
        1 => path(leaf_name()).prop_map(dir),
        1 => (path(dir_name()), leaf()),
    ]
}

fn xattrs() -> impl Strategy<Value = Vec<(Vec<u8>, Vec<u8>)>> {
    // Only names that every kind of inode keeps.
    let name =
        select(vec![b"security.capability".to_vec(), b"trusted.t".to_vec(), b"security.\xff".to_vec()]);
    prop_oneof![6 => Just(vec![]), 1 => vec((name, vec(any::<u8>(), 0..40)), 1..3)]
}

/// Members that are no whiteouts.
pub fn entry() -> impl Strategy<Value = Entry> {
    let id = || prop_oneof![3 => Just(0u32), 1 => 0u32..70_000, 1 => 1u32..u32::MAX];
    let secs = prop_oneof![4 => 0i64..2_000_000_000, 1 => -4_000_000_000i64..40_000_000_000];
    let nanos = prop_oneof![2 => Just(0u32), 1 => 0u32..1_000_000_000];
    (place(), 0u32..0o10000, id(), id(), (secs, nanos), xattrs()).prop_map(
        |((path, kind), mode, uid, gid, mtime, xattrs)| Entry { path, kind, mode, uid, gid, mtime, xattrs },
    )
}

/// Whiteouts, plain and opaque, and names aufs kept for itself.
pub fn whiteout() -> impl Strategy<Value = Entry> {
    let hidden = prop_oneof![3 => leaf_name(), 3 => dir_name(), 2 => Just(b".wh..opq".to_vec()), 1 => Just(b".wh.aufs".to_vec())];
    (vec(dir_name(), 0..3), hidden).prop_map(|(mut names, hidden)| {
        names.push([b".wh.", &hidden[..]].concat());
        Entry::file(names.join(&b'/'), "")
    })
}

/// A variant that loses nothing of an entry; `wish` says which of them.
pub fn variant(entry: &Entry, wish: usize) -> Variant {
    let fit: Vec<_> = Variant::ALL.into_iter().filter(|variant| variant.holds(entry)).collect();
    fit[wish % fit.len()]
}

/// Members with the variant each is to be written in.
pub fn layer(members: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(Entry, Variant)>> {
    let entry = prop_oneof![8 => entry(), 1 => whiteout()];
    vec((entry, 0usize..6), members).prop_map(|entries| {
        entries
            .into_iter()
            .map(|(entry, wish)| {
                let variant = variant(&entry, wish);
                (entry, variant)
            })
            .collect()
    })
}

/// Members that every format can hold, with their variants: each with a name of its own, links behind their targets.
pub fn listed(members: std::ops::Range<usize>) -> impl Strategy<Value = Vec<(Entry, Variant)>> {
    let content = prop_oneof![
        3 => vec(any::<u8>(), 0..600),
        1 => (0usize..3000).prop_map(|n| vec![0; n]),
    ];
    let member = (0u8..9, content, 0usize..6, 0u32..0o10000, 0u32..70_000, 0u32..1_000_000_000);
    vec(member, members).prop_map(|members| {
        let mut files = Vec::new();
        let place = |n: usize, prefix: &str| format!("d{}/{prefix}{}{n}", n % 3, "x".repeat(n * 7 % 120));
        let members = members.into_iter().enumerate().map(|(n, (kind, content, wish, mode, id, nanos))| {
            let path = place(n, "");
            let entry = match (kind, files.last()) {
                (0, _) => Entry::dir(path + "/"),
                (1, Some(file)) => Entry::link(path, file),
                (2, _) => Entry::symlink(path, "elsewhere"),
                (3, _) => Entry::new(path, Kind::Char(id % 4096, 7)),
                (4, _) => Entry::file(place(n + 1, ".wh."), ""),
                _ => {
                    files.push(path.clone());
                    Entry::file(path, content).xattr("user.n", n.to_string())
                }
            };
            let entry =
                if nanos % 3 == 0 { Entry { xattrs: vec![], ..entry } } else { entry.mtime(-5, nanos) };
            let entry = entry.mode(mode).owner(id, id / 2);
            let variant = variant(&entry, wish);
            (entry, variant)
        });
        members.collect()
    })
}
