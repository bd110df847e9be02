//! One layer by itself: the rules, and random stacks put together again as overlayfs does it.

#[cfg(test)]
mod support;

use std::collections::BTreeMap;

use format::tree::{Tree, TreeProblem};
use proptest::prelude::*;
use testkit::arbitrary;
use testkit::dump::{Dump, Node, What, difference};
use testkit::layers::{flatten, sensible};
use testkit::tar::{Archive, Entry, Variant};

const OPAQUE: &[u8] = b"trusted.overlay.opaque";

/// Returns the tree of a layer by itself, the root as the empty path.
#[cfg(test)]
fn apart(layer: &[Entry]) -> Result<Dump, TreeProblem> {
    let read = support::read(&Archive::of(layer, Variant::Pax10).tar, usize::MAX).unwrap();
    let tree = support::apart(&read).map_err(|error| error.problem)?;
    let mut dump = support::dump(&tree, &[read]);
    let xattrs =
        tree.inode(Tree::ROOT).meta.xattrs.iter().map(|(name, value)| (name.to_vec(), value.to_vec()));
    dump.insert(Vec::new(), Node { xattrs: xattrs.collect(), ..directory() });
    Ok(dump)
}

#[cfg(test)]
fn directory() -> Node {
    Node { what: What::Dir, mode: 0o755, uid: 0, gid: 0, mtime: (0, 0), xattrs: BTreeMap::new() }
}

/// Returns a tree in a form that is short to write down: `d/` directories, `o//` opaque ones, `-w` whiteouts, `f=content`.
#[cfg(test)]
fn list(layer: &[Entry]) -> Vec<String> {
    let show = |(path, node): (Vec<u8>, Node)| {
        let path = path.escape_ascii().to_string();
        match node.what {
            What::Dir if is_opaque(&node) => format!("{path}//"),
            What::Dir => format!("{path}/"),
            What::Char(0, 0) => format!("-{path}"),
            What::File(content) => format!("{path}={}", content.escape_ascii()),
            other => format!("{path} {other:?}"),
        }
    };
    let shown = apart(layer).map(|dump| dump.into_iter().map(show).collect::<Vec<_>>());
    // The root is no news.
    shown
        .map(|all| all.into_iter().filter(|line| line != "/").collect())
        .unwrap_or_else(|problem| vec![problem.to_string()])
}

#[cfg(test)]
fn is_opaque(node: &Node) -> bool {
    node.xattrs.get(OPAQUE).is_some_and(|value| value == b"y")
}

#[test]
fn whiteouts_are_shown_as_overlayfs_knows_them() {
    let file = |path: &str| Entry::file(path, "1");
    let cases: [(&[Entry], &[&str]); 12] = [
        (&[file(".wh.a")], &["-a"]),
        (&[file("d/e/.wh.a")], &["d/", "d/e/", "-d/e/a"]),
        (&[file("d/.wh..wh..opq")], &["d//"]),
        (&[file("d/.wh..wh..opq"), Entry::dir("d")], &["d//"]),
        // What the layer has itself wins, wherever the whiteout stands, and nothing from below shows through.
        (&[file(".wh.a"), file("a")], &["a=1"]),
        (&[file("a"), file(".wh.a")], &["a=1"]),
        (&[file(".wh.d"), file("d/f")], &["d//", "d/f=1"]),
        (&[file("d/f"), file(".wh.d")], &["d//", "d/f=1"]),
        // So does what had the name before.
        (&[file("d"), Entry::dir("d"), file("d/f")], &["d//", "d/f=1"]),
        // A directory that is no more hides nothing.
        (&[file("d/.wh.a"), file("d")], &["d=1"]),
        (&[file("d/.wh..wh..opq"), file("d")], &["d=1"]),
        (&[file(".wh..wh.aufs"), file(".wh..wh.plnk/1"), file("d/.wh.a"), file("d/.wh.a")], &["d/", "-d/a"]),
    ];
    for (layer, wanted) in cases {
        let mut found = list(layer);
        found.sort();
        let mut wanted = wanted.to_vec();
        wanted.sort_unstable();
        assert_eq!(found, wanted, "{layer:?}");
    }
}

#[test]
fn attributes_of_a_layer_stay_and_those_of_overlayfs_are_ours_alone() {
    let layer = [
        Entry::dir("d")
            .mode(0o700)
            .owner(3, 4)
            .mtime(9, 9)
            .xattr("user.a", "b")
            .xattr("trusted.overlay.opaque", "x"),
        Entry::dir("e").xattr("trusted.overlay.opaque", "y").xattr("user.overlay.opaque", "y"),
        Entry::file("d/.wh..wh..opq", ""),
    ];
    let dump = apart(&layer).unwrap();
    let xattrs = BTreeMap::from([(b"user.a".to_vec(), b"b".to_vec()), (OPAQUE.to_vec(), b"y".to_vec())]);
    let wanted = Node { mode: 0o700, uid: 3, gid: 4, mtime: (9, 9), xattrs, ..directory() };
    assert_eq!(dump[&b"d"[..]], wanted);
    assert!(dump[&b"e"[..]].xattrs.is_empty());
}

#[test]
fn what_needs_the_layers_below_is_refused() {
    assert_eq!(apart(&[Entry::link("l", "below")]).unwrap_err(), TreeProblem::NoTarget("below".into()));
    assert_eq!(apart(&[Entry::file(".wh.", "")]).unwrap_err(), TreeProblem::Whiteout);
    assert_eq!(apart(&[Entry::file(".wh..wh..opq", "")]).unwrap_err(), TreeProblem::OpaqueRoot);
}

/// Puts a layer on a tree as overlayfs does.
#[cfg(test)]
fn stack(lower: &mut Dump, upper: &Dump) {
    let below = |path: &[u8], dir: &[u8]| {
        dir.is_empty() || path.strip_prefix(dir).is_some_and(|rest| rest.starts_with(b"/"))
    };
    for (path, node) in upper {
        let both =
            [Some(node), lower.get(path)].into_iter().all(|node| node.is_some_and(|n| n.what == What::Dir));
        if !path.is_empty() && !both {
            lower.remove(path);
        }
        if is_opaque(node) || !(both || path.is_empty()) {
            lower.retain(|other, _| !below(other, path) || other == path);
        }
        if node.what != What::Char(0, 0) && !path.is_empty() {
            lower.insert(path.clone(), node.clone());
        }
    }
}

/// Leaves out what layers by themselves cannot have: which names share an inode over layers, and what a directory is like that
/// a layer does not describe. A device 0:0 hides itself.
#[cfg(test)]
fn comparable(dump: &Dump) -> Dump {
    let plain = |node: &Node| match &node.what {
        What::SameAs(first) => dump[first].clone(),
        What::Dir => directory(),
        _ => node.clone(),
    };
    let all = dump.iter().map(|(path, node)| (path.clone(), plain(node)));
    all.filter(|(_, node)| node.what != What::Char(0, 0)).collect()
}

/// Returns what overlayfs shows of layers.
#[cfg(test)]
fn stacked(layers: &[Dump]) -> Dump {
    let mut stacked = Dump::new();
    for layer in layers {
        let mut shared = layer.clone();
        for node in shared.values_mut() {
            if let What::SameAs(first) = &node.what {
                *node = layer[first].clone();
            }
        }
        stack(&mut stacked, &shared);
    }
    stacked
}

/// Leaves out of a stack what only overlayfs reads.
#[cfg(test)]
fn without_opaque(mut stack: Dump) -> Dump {
    stack.values_mut().for_each(|node| drop(node.xattrs.remove(OPAQUE)));
    stack
}

#[test]
fn a_whiteout_that_a_link_leads_to_nothing_makes_the_directory_by_itself_and_in_the_image() {
    // A random layer was shown with the directory by itself, and without it in the image. containerd and Docker make the parents of
    // whiteouts as of all members.
    let layer =
        [Entry::symlink("e", "a"), Entry::file("e/.wh.a", ""), Entry::dir("e"), Entry::file("d/a", "1")];
    let read = support::read(&Archive::of(&layer, Variant::Pax10).tar, usize::MAX).unwrap();
    let image = support::dump(&support::tree(std::slice::from_ref(&read)).unwrap(), &[read]);
    assert_eq!(list(&layer), ["a/", "-a/a", "d/", "d/a=1", "e//"]);
    assert_eq!(
        image.keys().map(|path| path.escape_ascii().to_string()).collect::<Vec<_>>(),
        ["a", "d", "d/a", "e"]
    );
    assert!(difference(&without_opaque(stacked(&[apart(&layer).unwrap()])), &image).is_none());
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn a_stack_of_layers_by_themselves_is_the_image(layers in prop::collection::vec(arbitrary::layer(0..30), 1..4)) {
        let plain: Vec<Vec<Entry>> = layers.into_iter().map(|layer| layer.into_iter().map(|(entry, _)| entry).collect()).collect();
        let plain = sensible(&plain, |entry| entry);
        let wanted = flatten(&plain);
        let layers: Result<Vec<Dump>, _> = plain.iter().map(|layer| apart(layer)).collect();
        // A hard link to a lower layer's file is refused, and what hides all layers.
        if let (Ok(layers), Ok(wanted)) = (layers, wanted) {
            let stacked = stacked(&layers);
            let difference = difference(&comparable(&stacked), &comparable(&wanted));
            prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
        }
    }
    // The model knows no links on a path, so what they lead to is held against the image's own rules.
    #[test]
    fn one_layer_by_itself_is_the_image_of_it(layer in arbitrary::layer(0..30)) {
        let entries: Vec<Entry> = layer.into_iter().map(|(entry, _)| entry).collect();
        let read = support::read(&Archive::of(&entries, Variant::Pax10).tar, usize::MAX).unwrap();
        if let (Ok(alone), Ok(image)) = (apart(&entries), support::tree(std::slice::from_ref(&read))) {
            let image = support::dump(&image, &[read]);
            let difference = difference(&comparable(&without_opaque(stacked(&[alone]))), &comparable(&image));
            prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
        }
    }
}
