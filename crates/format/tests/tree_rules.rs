//! The rules by which layers become a tree, one case each.

#[cfg(test)]
mod support;

use format::limits;
use format::name::NameError;
use format::tree::{Kind, Tree, TreeProblem};
use testkit::dump::{Dump, What};
use testkit::tar::{Archive, Entry, Kind as EntryKind, Variant};

#[cfg(test)]
fn build(layers: &[&[Entry]]) -> Result<(Tree, Dump), TreeProblem> {
    let read: Vec<_> = layers
        .iter()
        .map(|layer| support::read(&Archive::of(*layer, Variant::Pax10).tar, usize::MAX).unwrap())
        .collect();
    let tree = support::tree(&read).map_err(|error| error.problem)?;
    let dump = support::dump(&tree, &read);
    Ok((tree, dump))
}

/// Returns the tree in a form that is short to write down: `d/` directories, `f=content`, `l->target`, `h==first`.
fn list(layers: &[&[Entry]]) -> Vec<String> {
    let show = |(path, node): (Vec<u8>, testkit::dump::Node)| {
        let path = path.escape_ascii().to_string();
        match node.what {
            What::Dir => format!("{path}/"),
            What::File(content) => format!("{path}={}", content.escape_ascii()),
            What::Symlink(target) => format!("{path}->{}", target.escape_ascii()),
            What::SameAs(first) => format!("{path}=={}", first.escape_ascii()),
            other => format!("{path} {other:?}"),
        }
    };
    build(layers)
        .map(|(_, dump)| dump.into_iter().map(show).collect())
        .unwrap_or_else(|problem| vec![problem.to_string()])
}

#[cfg(test)]
fn problem(layers: &[&[Entry]]) -> TreeProblem {
    build(layers).map(|(_, dump)| dump).unwrap_err()
}

fn dir(path: &str) -> Entry {
    Entry::dir(path)
}

fn file(path: &str) -> Entry {
    Entry::file(path, "1")
}

fn file2(path: &str) -> Entry {
    Entry::file(path, "2")
}

fn link(path: &str, target: &str) -> Entry {
    Entry::link(path, target)
}

fn symlink(path: &str, target: &str) -> Entry {
    Entry::symlink(path, target)
}

#[test]
fn paths_are_cleaned() {
    for path in ["a/f", "/a/f", "./a/f", "a//f", "a/./f", "a/x/../f", "x/../a/f/", "//./a/f/."] {
        assert_eq!(list(&[&[file(path)]]), ["a/", "a/f=1"], "{path}");
    }
    for path in ["..", "../f", "/../f", "a/../../f", "./.."] {
        assert_eq!(problem(&[&[file(path)]]), TreeProblem::Escape, "{path}");
        assert_eq!(problem(&[&[file("f"), link("l", path)]]), TreeProblem::Escape, "{path}");
    }
    let root = Entry::dir("./").mode(0o700).owner(5, 5).mtime(7, 0).xattr("user.a", "b");
    let (tree, dump) = build(&[&[root, file(""), file("/")]]).unwrap();
    assert!(dump.is_empty());
    assert_eq!(
        (tree.inode(Tree::ROOT).meta.mode, tree.inode(Tree::ROOT).meta.uid),
        (0o755, 0),
        "as in containerd"
    );
}

#[test]
fn names_and_paths_are_bounded() {
    let name = |n| "n".repeat(n);
    assert_eq!(list(&[&[file(&name(255))]]), [format!("{}=1", name(255))]);
    assert_eq!(problem(&[&[file(&name(256))]]), NameError::TooLong(256).into());
    assert_eq!(problem(&[&[file(&format!("{}/f", name(256)))]]), NameError::TooLong(256).into());
    let path = |len: usize| {
        let mut path = format!("{}/", name(255)).repeat(len / 256);
        path += &name(len - path.len());
        path
    };
    assert_eq!(list(&[&[file(&path(4095))]]).len(), 16);
    assert!(build(&[&[file(&path(4095)[..4095])]]).is_ok());
    // Links make a path in the tree longer than any that is written.
    let long = path(3000);
    let layer = [dir(&long), symlink("s", &long), dir(&format!("s/{long}"))];
    assert!(matches!(problem(&[&layer]), TreeProblem::Name(NameError::TooLong(_))));
}

#[test]
fn missing_parents_are_made_and_late_ones_merge() {
    let layer = [file("d/e/f"), dir("d").mode(0o700).owner(3, 4).mtime(9, 9)];
    let (_, dump) = build(&[&layer]).unwrap();
    let (d, e) = (&dump[&b"d"[..]], &dump[&b"d/e"[..]]);
    assert_eq!((d.mode, d.uid, d.gid, d.mtime), (0o700, 3, 4, (9, 9)));
    assert_eq!((e.mode, e.uid, e.gid, e.mtime), (0o755, 0, 0, (0, 0)));
    assert_eq!(problem(&[&[file("f"), file("f/g")]]), TreeProblem::NotADirectory("f".into()));
    assert_eq!(problem(&[&[file("f")], &[dir("f/g/h")]]), TreeProblem::NotADirectory("f".into()));
}

#[test]
fn symbolic_links_are_followed_on_the_way_but_not_at_the_end() {
    for (layers, want) in [
        (
            &[&[dir("usr/lib"), symlink("lib", "usr/lib")][..], &[file("lib/f")]][..],
            &["lib->usr/lib", "usr/", "usr/lib/", "usr/lib/f=1"][..],
        ),
        (&[&[symlink("s", "/x/y")], &[file("s/f")]], &["s->/x/y", "x/", "x/y/", "x/y/f=1"]),
        (&[&[symlink("s", "x/y")], &[file("s")]], &["s=1"]),
        (&[&[symlink("d/s", "../e")], &[file("d/s/f")]], &["d/", "d/s->../e", "e/", "e/f=1"]),
        (
            &[&[symlink("d/s", "../../../../e")], &[file("d/s/f")]],
            &["d/", "d/s->../../../../e", "e/", "e/f=1"],
        ),
        (&[&[symlink("s", "missing/../e")], &[file("s/f")]], &["e/", "e/f=1", "s->missing/../e"]),
        (&[&[symlink("s", "/")], &[file("s/s/f")]], &["f=1", "s->/"]),
        (&[&[symlink("s", "a"), symlink("a", "b")], &[file("s/f")]], &["a->b", "b/", "b/f=1", "s->a"]),
        (&[&[symlink("s", "d"), file("d/f")], &[link("h", "s/f")]], &["d/", "d/f=1", "h==d/f", "s->d"]),
        (&[&[symlink("s", "d"), file("d/f")], &[file("s/.wh.f")]], &["d/", "s->d"]),
        // A directory member replaces the link itself.
        (&[&[symlink("s", "d"), file("d/f")], &[dir("s"), file("s/g")]], &["d/", "d/f=1", "s/", "s/g=1"]),
        // What a link leads to may change between two members with the same parent.
        (
            &[&[symlink("s", "a"), file("s/f"), symlink("s", "b"), file("s/g")]],
            &["a/", "a/f=1", "b/", "b/g=1", "s->b"],
        ),
        (&[&[file("d/f"), symlink("d", "e"), file("d/g")]], &["d->e", "e/", "e/g=1"]),
        (&[&[file("d/f")], &[file(".wh.d"), file("d/g")]], &["d/", "d/g=1"]),
    ] {
        assert_eq!(list(layers), want, "{layers:?}");
    }
    assert_eq!(problem(&[&[symlink("a", "b"), symlink("b", "a"), file("a/f")]]), TreeProblem::Links);
    assert_eq!(problem(&[&[symlink("a", "a/x"), file("a/f")]]), TreeProblem::Links);
    let chain = |n: usize| -> Vec<Entry> {
        let mut layer: Vec<_> = (0..n).map(|n| symlink(&format!("l{n}"), &format!("l{}", n + 1))).collect();
        layer.push(file("l0/f"));
        layer
    };
    assert!(build(&[&chain(255)]).is_ok());
    assert_eq!(problem(&[&chain(256)]), TreeProblem::Links);
    assert_eq!(
        problem(&[&[file("f"), symlink("s", "f"), file("s/g")]]),
        TreeProblem::NotADirectory("f".into())
    );
}

#[test]
fn the_last_member_wins() {
    for (layers, want) in [
        (&[&[file("f"), file2("f")][..]][..], &["f=2"][..]),
        (&[&[file("f")], &[file2("f")]], &["f=2"]),
        (&[&[dir("d"), file("d/f")], &[file2("d")]], &["d=2"]),
        (&[&[dir("d"), file("d/f")], &[symlink("d", "x")]], &["d->x"]),
        (&[&[file("d")], &[dir("d"), file("d/f")]], &["d/", "d/f=1"]),
        (&[&[dir("d"), file("d/f")], &[file("d")], &[dir("d")]], &["d/"]),
        (&[&[dir("d"), file("d/f")], &[dir("d"), file2("d/g")]], &["d/", "d/f=1", "d/g=2"]),
        (&[&[file("f"), link("g", "f")], &[file2("f")]], &["f=2", "g=1"]),
        (&[&[file("f"), link("g", "f"), file2("f")]], &["f=2", "g=1"]),
    ] {
        assert_eq!(list(layers), want, "{layers:?}");
    }
    let old = dir("d").xattr("user.old", "1").xattr("user.both", "1");
    let new = dir("d").mode(0o1777).owner(1, 2).mtime(3, 4).xattr("user.both", "2");
    let (_, dump) = build(&[&[old, file("d/f")], &[new]]).unwrap();
    let d = &dump[&b"d"[..]];
    assert_eq!((d.mode, d.uid, d.gid, d.mtime), (0o1777, 1, 2, (3, 4)));
    assert_eq!(d.xattrs, [(b"user.both".to_vec(), b"2".to_vec())].into());
}

#[test]
fn hard_links_lead_across_layers() {
    for (layers, want) in [
        (&[&[file("f"), link("g", "f")][..]][..], &["f=1", "g==f"][..]),
        (&[&[file("f")], &[link("g", "./f")]], &["f=1", "g==f"]),
        (&[&[file("f")], &[link("g", "f"), file(".wh.f")]], &["g=1"]),
        (&[&[symlink("s", "x"), link("t", "s")]], &["s->x", "t==s"]),
        (&[&[file("f"), link("f", "f")]], &["f=1"]),
        (&[&[file("f"), file2("g"), link("g", "f")]], &["f=1", "g==f"]),
        (&[&[file("d/f"), link("d", "d/f")]], &["d=1"]),
        (&[&[file("f"), link("g", "f"), link("h", "g"), file2("g")]], &["f=1", "g=2", "h==f"]),
    ] {
        assert_eq!(list(layers), want, "{layers:?}");
    }
    for target in ["x", "d/x", "x/y"] {
        assert_eq!(problem(&[&[dir("d"), link("l", target)]]), TreeProblem::NoTarget(target.into()));
    }
    assert_eq!(problem(&[&[file("f"), link("l", "f/x")]]), TreeProblem::NotADirectory("f".into()));
    assert_eq!(problem(&[&[file("f")], &[file(".wh.f"), link("l", "f")]]), TreeProblem::NoTarget("f".into()));
    assert_eq!(problem(&[&[dir("d"), link("l", "d")]]), TreeProblem::DirectoryTarget("d".into()));
    assert_eq!(problem(&[&[link("l", "/")]]), TreeProblem::DirectoryTarget("/".into()));
    // As in containerd the link's own header counts, and its attributes come on top.
    let linking = link("g", "f").mode(0o600).owner(7, 8).mtime(5, 6).xattr("user.b", "2");
    let (_, dump) = build(&[&[file("f").xattr("user.a", "1"), linking]]).unwrap();
    let f = &dump[&b"f"[..]];
    assert_eq!((f.mode, f.uid, f.gid, f.mtime, f.xattrs.len()), (0o600, 7, 8, (5, 6), 2));
    let (_, dump) = build(&[&[symlink("s", "x"), link("t", "s").mode(0o600)]]).unwrap();
    assert_eq!(dump[&b"s"[..]].mode, 0o777, "a symbolic link keeps its mode");
}

#[test]
fn whiteouts_hide_lower_layers_only() {
    let lower: &[Entry] = &[dir("d"), file("d/a"), file("d/b"), dir("d/e").mode(0o700), file("d/e/x")];
    let rows: &[(&[Entry], &[&str])] = &[
        (&[file("d/.wh.a")], &["d/", "d/b=1", "d/e/", "d/e/x=1"]),
        (&[file(".wh.d")], &[]),
        (&[file(".wh.nothing")], &["d/", "d/a=1", "d/b=1", "d/e/", "d/e/x=1"]),
        // What one stands in is there, as the parents of all members are.
        (&[file("x/.wh.y")], &["d/", "d/a=1", "d/b=1", "d/e/", "d/e/x=1", "x/"]),
        (&[file("x/y/.wh..wh..opq"), file("d/.wh..wh..opq")], &["d/", "x/", "x/y/"]),
        (&[file("d/e/.wh.x"), file(".wh.d")], &["d/", "d/e/"]),
        (&[file(".wh.d"), file("d/e/.wh.x")], &["d/", "d/e/"]),
        (&[file("d/e/.wh.x"), file("d/.wh..wh..opq")], &["d/", "d/e/"]),
        (&[file("x/.wh.y"), file2("x")], &["d/", "d/a=1", "d/b=1", "d/e/", "d/e/x=1", "x=2"]),
        (&[file("d/.wh..wh..opq")], &["d/"]),
        (&[file(".wh..wh..opq")], &[]),
        // Of this layer: stays, wherever the whiteout stands.
        (&[file2("d/a"), file("d/.wh.a")], &["d/", "d/a=2", "d/b=1", "d/e/", "d/e/x=1"]),
        (&[file("d/.wh.a"), file2("d/a")], &["d/", "d/a=2", "d/b=1", "d/e/", "d/e/x=1"]),
        (&[file2("d/c"), file("d/.wh..wh..opq")], &["d/", "d/c=2"]),
        (&[file2("d/e/y"), file("d/.wh..wh..opq")], &["d/", "d/e/", "d/e/y=2"]),
        (&[file("d/.wh..wh..opq"), file2("d/e/y")], &["d/", "d/e/", "d/e/y=2"]),
        (&[dir("d/e"), file("d/.wh..wh..opq")], &["d/", "d/e/"]),
        (&[dir("d"), file2("d/c"), file(".wh.d")], &["d/", "d/c=2"]),
        (&[file2("d/e/y"), file(".wh.d")], &["d/", "d/e/", "d/e/y=2"]),
        (&[link("d/l", "d/a"), file("d/.wh..wh..opq")], &["d/", "d/l=1"]),
        (
            &[file("d/.wh..wh..opq"), file("d/.wh..wh..opq"), file2("d/c"), file("d/.wh..wh..opq")],
            &["d/", "d/c=2"],
        ),
        // aufs kept its own things under such names.
        (
            &[file("d/.wh..wh.aufs"), dir(".wh..wh.plnk"), file(".wh..wh.plnk/1.2"), file("d/.wh.b")],
            &["d/", "d/a=1", "d/e/", "d/e/x=1"],
        ),
    ];
    for (upper, want) in rows {
        assert_eq!(list(&[lower, upper]), *want, "{upper:?}");
    }
    for order in [
        [file("d/e/y"), file("d/.wh..wh..opq")],
        [file("d/.wh..wh..opq"), file("d/e/y")],
        [file("d/e/.wh.x"), file("d/.wh..wh..opq")],
    ] {
        let (_, dump) = build(&[lower, &order]).unwrap();
        assert_eq!(dump[&b"d/e"[..]].mode, 0o755, "what is left of a hidden directory is a missing parent");
    }
    for path in [".wh.", "d/.wh..", "d/.wh..."] {
        assert_eq!(problem(&[lower, &[file(path)]]), TreeProblem::Whiteout, "{path}");
    }
    assert_eq!(list(&[&[file("a")], &[file(&format!(".wh.{}", "n".repeat(255)))]]), ["a=1"]);
    assert_eq!(problem(&[&[], &[file(&format!(".wh.{}", "n".repeat(256)))]]), NameError::TooLong(256).into());
    assert_eq!(problem(&[&[file("f")], &[file("f/.wh.g")]]), TreeProblem::NotADirectory("f".into()));
}

#[test]
fn attributes_nobody_could_read_stay_out() {
    let all = [
        "user.u",
        "trusted.t",
        "security.capability",
        "lustre.l",
        "system.posix_acl_access",
        "system.posix_acl_default",
        "trusted.overlay.opaque",
        "user.overlay.redirect",
        "system.nfs4_acl",
        "com.apple.quarantine",
        "user.",
        "security.",
    ];
    let dressed = |entry: Entry| all.iter().fold(entry, |entry, name| entry.xattr(name, "v"));
    let layer = [
        dressed(dir("d")),
        dressed(file("f")),
        dressed(symlink("s", "x")),
        dressed(Entry::new("p", EntryKind::Fifo)),
    ];
    let (tree, dump) = build(&[&layer]).unwrap();
    let names = |path: &str| -> Vec<String> {
        dump[path.as_bytes()].xattrs.keys().map(|name| String::from_utf8_lossy(name).into_owned()).collect()
    };
    assert_eq!(
        names("d"),
        [
            "lustre.l",
            "security.capability",
            "system.posix_acl_access",
            "system.posix_acl_default",
            "trusted.t",
            "user.u"
        ]
    );
    assert_eq!(
        names("f"),
        ["lustre.l", "security.capability", "system.posix_acl_access", "trusted.t", "user.u"]
    );
    assert_eq!(names("s"), ["lustre.l", "security.capability", "trusted.t"]);
    assert_eq!(names("p"), ["lustre.l", "security.capability", "system.posix_acl_access", "trusted.t"]);
    drop(tree);

    let (tree, _) =
        build(&[&[file("a").xattr("user.a", "1"), file("b").xattr("user.a", "1"), file("c")]]).unwrap();
    let Kind::Dir(entries) = &tree.inode(Tree::ROOT).kind else { unreachable!() };
    let sets: Vec<_> = entries.values().map(|inode| &tree.inode(*inode).meta.xattrs).collect();
    assert!(std::sync::Arc::ptr_eq(sets[0], sets[1]), "equal sets are one");

    let value = |n| file("f").xattr("user.a", vec![0; n]);
    assert!(build(&[&[value(65_530)]]).is_ok());
    assert!(
        matches!(problem(&[&[value(65_531)]]), TreeProblem::TooLarge { .. }),
        "with the name past the total"
    );
    assert!(matches!(problem(&[&[value(65_536)]]), TreeProblem::TooLarge { .. }));
    let named = |n: usize| file("f").xattr(format!("user.{}", "n".repeat(n - 5)), "");
    assert!(build(&[&[named(255)]]).is_ok());
    assert!(matches!(problem(&[&[named(256)]]), TreeProblem::TooLarge { .. }));
    let ignored = file("f").xattr("trusted.overlay.x", vec![0; 70_000]);
    assert!(build(&[&[ignored]]).is_ok(), "what stays out is not measured");
}

#[test]
fn impossible_members_are_refused() {
    let target = |n| symlink("s", &"t".repeat(n));
    assert!(build(&[&[target(4095)]]).is_ok());
    assert_eq!(problem(&[&[target(4096)]]), TreeProblem::SymlinkTarget);
    assert_eq!(problem(&[&[target(0)]]), TreeProblem::SymlinkTarget);
    let layers = vec![&[][..]; limits::LAYERS + 1];
    assert!(build(&layers[1..]).is_ok());
    assert!(matches!(problem(&layers), TreeProblem::TooLarge { .. }));
    let read =
        support::read(&Archive::of(&[file("a/../../etc/passwd")], Variant::Ustar).tar, usize::MAX).unwrap();
    let error = support::tree(&[read]).unwrap_err().to_string();
    assert_eq!(error, "layer 0, member \"a/../../etc/passwd\": the path leads out of the root");
}
