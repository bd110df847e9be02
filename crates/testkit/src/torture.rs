//! An image with every oddity that tars of layers have, each in a layer of its own: so one sees which of them a format cannot hold.
//!
//! All of it is in images of somebody's, or a format allows it; whatever Floe refuses to show at all is left out. The same
//! bytes on every run.

use crate::dice::Dice;
use crate::tar::{Archive, Entry, Header, Kind, Variant};

/// One layer.
#[derive(Debug, Clone)]
pub struct Layer {
    /// What is odd about it.
    pub name: &'static str,
    /// Its tar.
    pub tar: Vec<u8>,
}

/// Returns all layers, bottom first.
pub fn layers() -> Vec<Layer> {
    type Made = (&'static str, fn() -> Vec<u8>);
    let layers: [Made; 27] = [
        ("hidden", || pax(&[Entry::dir("old/"), Entry::file("old/file", "old")])),
        ("opaque root", || pax(&[Entry::file(".wh..wh..opq", ""), Entry::dir("top/")])),
        ("ordinary", || pax(&ordinary())),
        ("sizes", || pax(&sizes())),
        ("many names", || pax(&many_names())),
        ("old headers", old_headers),
        ("gnu headers", gnu_headers),
        ("pax headers", pax_headers),
        ("global headers", global_headers),
        ("odd types", odd_types),
        ("length of nothing", length_of_nothing),
        ("far years", far_years),
        ("long paths", long_paths),
        ("spelled paths", || pax(&spelled_paths())),
        ("bytes for names", bytes_for_names),
        ("attributes", || pax(&attributes())),
        ("sparse files", sparse_files),
        ("twice", || pax(&twice())),
        ("through links", || pax(&through_links())),
        ("whiteouts", || pax(&whiteouts())),
        ("links to lower layers", || pax(&links_to_lower_layers())),
        ("a landmark", || pax(&[Entry::file(".prefetch.landmark", "mine")])),
        ("no member", || vec![0; 1024]),
        ("no byte", Vec::new),
        ("no end", || unended("no-end", 1000, 24)),
        ("no padding", || unended("no-padding", 1000, 0)),
        ("more behind the end", more_behind_the_end),
    ];
    layers.into_iter().map(|(name, tar)| Layer { name, tar: tar() }).collect()
}

fn pax(entries: &[Entry]) -> Vec<u8> {
    Archive::of(entries, Variant::Pax10).tar
}

/// One of each kind.
fn ordinary() -> Vec<Entry> {
    vec![
        Entry::dir("./").mode(0o700).owner(9, 9),
        Entry::dir("d/").mode(0o1777).owner(3, 70_000),
        Entry::file("d/small", "content").xattr("user.a", b"\xff\0"),
        Entry::file("d/none", "").mode(0),
        Entry::file("d/all", "").mode(0o7777),
        Entry::link("d/hard", "d/small").xattr("user.a", b"\xff\0"),
        Entry::symlink("soft", "d/hard").owner(5, 6),
        Entry::symlink("dangling", "/nowhere/\u{e9}"),
        Entry::new("null", Kind::Char(1, 3)).mode(0o666),
        Entry::new("loop", Kind::Block(4095, 1_048_575)),
        Entry::new("fifo", Kind::Fifo).mode(0o600),
        Entry::file("made/of/nothing/before", "parents that nobody describes"),
        Entry::file("goes", "1"),
        Entry::dir("goes-too/"),
        Entry::file("goes-too/file", "1"),
        Entry::dir("comes-again/").mode(0o750),
        Entry::file("comes-again/old", "1"),
        Entry::dir("emptied/"),
        Entry::file("emptied/old", "1"),
        Entry::file("stays", "one inode by two names").xattr("user.b", "1"),
        Entry::link("stays-too", "stays").xattr("user.b", "1"),
    ]
}

/// Files as long as blocks, pieces, chunks and segments of some format, and a byte more or less.
fn sizes() -> Vec<Entry> {
    const LENGTHS: [u64; 12] =
        [1, 511, 512, 513, 4095, 4096, 4097, 524_287, 524_288, 524_289, 1 << 20, (2 << 20) + 1];
    let mut entries = vec![Entry::dir("sizes/")];
    for len in LENGTHS {
        let mut dice = Dice(len);
        let content: Vec<u8> = (0..len).map(|_| u8::try_from(dice.below(256) & 0x3f).unwrap_or(0)).collect();
        entries.push(Entry::file(format!("sizes/{len}"), content));
    }
    entries.push(Entry::file("sizes/zeros", vec![0; (3 << 20) + 5]));
    entries
}

fn many_names() -> Vec<Entry> {
    let names = (0..700).map(|n| Entry::file(format!("many/{n:0100}"), "").mtime(n, 0));
    std::iter::once(Entry::dir("many/")).chain(names).collect()
}

fn finished(build: impl FnOnce(&mut Archive)) -> Vec<u8> {
    let mut archive = Archive::new();
    build(&mut archive);
    archive.finish();
    archive.tar
}

fn header(variant: Variant, kind: u8, name: &[u8], size: i64) -> Header {
    let mut header = Header::new(variant, kind);
    header.put(0, name);
    for (at, len, n) in [(100, 8, 0o644), (108, 8, 1), (116, 8, 2), (124, 12, size), (136, 12, 1000)] {
        header.number(at, len, n);
    }
    header
}

/// As before POSIX, and as POSIX has it: names in two fields, types that say nothing, numbers with spaces around.
fn old_headers() -> Vec<u8> {
    finished(|archive| {
        archive.raw(&header(Variant::V7, 0, b"v7/", 0).seal());
        archive.entry(&Entry::file("v7/file", "v7"), Variant::V7);
        archive.entry(&Entry::link("v7/link", "v7/file"), Variant::V7);
        archive.entry(&Entry::symlink("v7/symlink", "file"), Variant::V7);
        archive.entry(&Entry::dir("ustar/"), Variant::Ustar);
        let long = format!("ustar/{}/{}", "p".repeat(90), "n".repeat(99));
        archive.entry(&Entry::file(long, "in two fields"), Variant::Ustar);
        let mut spaced = header(Variant::Ustar, b'0', b"ustar/spaces", 2);
        spaced.put(100, b"   644 \0");
        spaced.put(124, b"          2 ");
        archive.raw(&spaced.seal());
        archive.payload(b"ab");
        archive.pad();
    })
}

/// Long names as members of their own, and numbers that octal digits cannot say.
fn gnu_headers() -> Vec<u8> {
    finished(|archive| {
        archive.entry(&Entry::dir("gnu/"), Variant::Gnu);
        archive.entry(&Entry::file(format!("gnu/{}", "l".repeat(200)), "long"), Variant::Gnu);
        archive.entry(&Entry::symlink("gnu/symlink", "t".repeat(300)), Variant::Gnu);
        archive.entry(&Entry::file("gnu/early", "").mtime(-86_400 * 365 * 30, 0), Variant::Gnu);
        archive.entry(&Entry::file("gnu/late", "").mtime(20_000_000_000, 0), Variant::Gnu);
        archive.entry(&Entry::file("gnu/far-ids", "").owner(u32::MAX - 1, 1 << 31), Variant::Gnu);
        archive.extension(Variant::Gnu, b'K', b"of-both-kinds\0");
        archive.extension(Variant::Gnu, b'L', b"gnu/both\0");
        archive.raw(&header(Variant::Gnu, b'2', b"short", 0).seal());
    })
}

fn pax_headers() -> Vec<u8> {
    finished(|archive| {
        archive.entry(&Entry::dir("pax/").mtime(-1, 500_000_000), Variant::Pax10);
        archive.entry(&Entry::file(format!("pax/{}", "l".repeat(200)), "long"), Variant::Pax10);
        archive.entry(&Entry::symlink("pax/symlink", "t".repeat(4095)), Variant::Pax10);
        archive.entry(&Entry::file("pax/early", "").mtime(-4_000_000_000, 999_999_999), Variant::Pax10);
        archive.entry(&Entry::file("pax/late", "").mtime(40_000_000_000, 1), Variant::Pax10);
        archive.records(
            b'x',
            &[
                (b"path", b"pax/records"),
                (b"size", b"3"),
                (b"uid", b"4000000000"),
                (b"uname", b"somebody"),
                (b"gname", b"\xd0\xb3\xd1\x80\xd1\x83\xd0\xbf\xd0\xbf\xd0\xb0"),
                (b"atime", b"1.25"),
                (b"ctime", b"-7"),
                (b"comment", b"nobody reads it"),
                (b"LIBARCHIVE.xattr.user.a", b"eA"),
                (b"SCHILY.acl.access", b"user::rw-"),
                (b"VENDOR.any", b"\0\xff"),
            ],
        );
        archive.raw(&header(Variant::Pax10, b'0', b"short", 0).seal());
        archive.payload(b"pax");
        archive.pad();
    })
}

fn global_headers() -> Vec<u8> {
    finished(|archive| {
        archive.records(b'g', &[(b"comment", b"0123456789abcdef"), (b"mtime", b"77.5"), (b"uid", b"77")]);
        archive.entry(&Entry::dir("global/"), Variant::Ustar);
        archive.entry(&Entry::file("global/file", "of 77"), Variant::Ustar);
        archive.records(b'g', &[(b"mtime", b""), (b"uid", b"")]);
        archive.entry(&Entry::file("global/not", "of 0"), Variant::Ustar);
    })
}

/// A file that wants to lie in one piece, and one that is called like a directory.
fn odd_types() -> Vec<u8> {
    finished(|archive| {
        archive.entry(&Entry::dir("types/"), Variant::Ustar);
        archive.raw(&header(Variant::Ustar, b'7', b"types/contiguous", 5).seal());
        archive.payload(b"seven");
        archive.pad();
        archive.raw(&header(Variant::Ustar, b'0', b"types/slash/", 0).seal());
    })
}

fn length_of_nothing() -> Vec<u8> {
    finished(|archive| {
        let mut symlink = header(Variant::Ustar, b'2', b"long-symlink", 1 << 20);
        symlink.put(157, b"a length, and nothing follows");
        archive.raw(&symlink.seal());
    })
}

/// Times that no calendar of four digits has.
fn far_years() -> Vec<u8> {
    pax(&[
        Entry::dir("years/"),
        Entry::file("years/after", "").mtime(300_000_000_000, 5),
        Entry::file("years/before", "").mtime(-70_000_000_000, 7),
    ])
}

/// Names of 255 bytes down to a path of almost 4096.
fn long_paths() -> Vec<u8> {
    let (mut path, mut entries) = (String::from("long"), vec![Entry::dir("long/")]);
    for n in 0..15 {
        path += &format!("/{n:0255}");
        entries.push(Entry::dir(format!("{path}/")).mode(0o711));
    }
    path += "/";
    let file = path.clone() + &"f".repeat(4095 - path.len());
    entries.push(Entry::file(&file, "deep"));
    entries.push(Entry::link("long/short", &file));
    pax(&entries)
}

fn spelled_paths() -> Vec<Entry> {
    vec![
        Entry::dir("./spelled/"),
        Entry::file("/spelled/absolute", "1"),
        Entry::file(".//spelled//doubled", "2"),
        Entry::file("spelled/away/../back", "3"),
        Entry::link("./spelled/link", "/spelled/absolute"),
    ]
}

/// Names that are no text, in every way to write them.
fn bytes_for_names() -> Vec<u8> {
    finished(|archive| {
        archive.entry(&Entry::dir("bytes/"), Variant::Ustar);
        for (n, variant) in Variant::ALL.into_iter().enumerate() {
            let name = [format!("bytes/{n}").as_bytes(), b"\xff\xfe\x80 =\n\t\"\\"].concat();
            archive.entry(&Entry::file(&name, "x"), variant);
            archive.entry(&Entry::symlink([&name[..], b"-link"].concat(), b"\xc3\x28"), variant);
        }
        let long = [&b"bytes/"[..], &[0xe9; 200]].concat();
        archive.entry(&Entry::file(&long, "").xattr(b"security.\xff", "x"), Variant::Pax00);
    })
}

/// Attributes that are kept, and such as Linux or overlayfs would not have.
fn attributes() -> Vec<Entry> {
    // A version 2 capability set with CAP_NET_BIND_SERVICE permitted and effective.
    let capability = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    // Owner, a user, group, mask, all others.
    let rights =
        [(1u16, 6u16, u32::MAX), (2, 6, 1000), (4, 4, u32::MAX), (16, 6, u32::MAX), (32, 4, u32::MAX)];
    let mut acl = vec![2, 0, 0, 0];
    for (tag, may, id) in rights {
        acl.extend([&tag.to_le_bytes()[..], &may.to_le_bytes(), &id.to_le_bytes()].concat());
    }
    vec![
        Entry::dir("attributes/").xattr("trusted.t", "t").xattr("system.posix_acl_default", &acl),
        Entry::file("attributes/capability", "").xattr("security.capability", capability),
        Entry::file("attributes/acl", "").mode(0o664).xattr("system.posix_acl_access", &acl),
        Entry::file("attributes/empty", "").xattr("user.empty", ""),
        Entry::file("attributes/large", "").xattr("user.large", vec![7; 5000]),
        Entry::symlink("attributes/symlink", "x").xattr("security.s", "s").xattr("user.none", "no"),
        Entry::new("attributes/fifo", Kind::Fifo).xattr("trusted.f", "f"),
        Entry::dir("attributes/overlay/").xattr("trusted.overlay.opaque", "y"),
        Entry::file("attributes/other", "").xattr("system.nfs4_acl", "x").xattr("nobody.knows", "x"),
    ]
}

/// Holes at every place, in every way to write them.
fn sparse_files() -> Vec<u8> {
    let shapes = [
        (0, vec![]),
        (3 << 20, vec![]),
        (9_000, vec![(10, vec![1; 20]), (4_000, vec![2; 200]), (8_999, vec![3])]),
        (5 << 20, vec![((2 << 20) + 7, vec![5; 3]), (4 << 20, vec![6; 70_000])]),
        (700_000, (0..30).map(|n| (n * 20_000, vec![9; 100])).collect()),
        (8_192, vec![(0, vec![8; 8_192])]),
    ];
    finished(|archive| {
        archive.entry(&Entry::dir("sparse/"), Variant::Gnu);
        for variant in [Variant::Gnu, Variant::Pax00, Variant::Pax01, Variant::Pax10] {
            for (n, (len, pieces)) in shapes.iter().enumerate() {
                let name = format!("sparse/{n}-{variant:?}");
                archive.entry(&Entry::new(name, Kind::Sparse(*len, pieces.clone())), variant);
            }
        }
    })
}

/// Members that replace others.
fn twice() -> Vec<Entry> {
    vec![
        Entry::dir("twice/").mode(0o700),
        Entry::file("twice/file", "first"),
        Entry::link("twice/kept", "twice/file"),
        Entry::file("twice/file", "second, and longer").owner(1, 2),
        Entry::dir("twice/"),
        Entry::file("twice/now-a-directory", ""),
        Entry::dir("twice/now-a-directory/"),
        Entry::file("twice/now-a-directory/file", ""),
        Entry::dir("twice/now-a-file/"),
        Entry::file("twice/now-a-file/gone", ""),
        Entry::file("twice/now-a-file", "a file"),
        Entry::link("twice/itself", "twice/kept"),
        Entry::link("twice/itself", "twice/itself").mode(0o600),
    ]
}

fn through_links() -> Vec<Entry> {
    vec![
        Entry::dir("through/"),
        Entry::dir("through/there/"),
        Entry::symlink("through/here", "there"),
        Entry::file("through/here/file", "1"),
        Entry::symlink("through/up", "../../../through/here/"),
        Entry::file("through/up/other", "2"),
        Entry::link("through/linked", "through/up/file"),
        Entry::link("through/symlinked", "through/here"),
    ]
}

/// What hides something below, before and behind the members that come instead, and what looks like it.
fn whiteouts() -> Vec<Entry> {
    let empty = |path: &str| Entry::file(path, "");
    vec![
        empty(".wh.goes"),
        empty(".wh.goes-too"),
        empty(".wh.nothing-there"),
        Entry::dir("comes-again/").mode(0o701),
        Entry::file("comes-again/new", "2"),
        empty(".wh.comes-again"),
        Entry::dir("emptied/"),
        Entry::file("emptied/new", "2"),
        empty("emptied/.wh..wh..opq"),
        Entry::dir("d/").mode(0o1777).owner(3, 70_000),
        empty("d/.wh.hard"),
        Entry::new("d/.wh.all", Kind::File(b"with content".to_vec())).mode(0o600),
        Entry::dir("only/"),
        empty("only/.wh.a-whiteout"),
        empty(".wh..wh.aufs"),
        Entry::dir(".wh..wh.plnk/"),
        empty(".wh..wh.plnk/1.2"),
        Entry::file("wh.no-whiteout", ""),
    ]
}

/// Names that this layer gives to files of lower ones, as Docker never writes them.
fn links_to_lower_layers() -> Vec<Entry> {
    vec![
        Entry::link("linked", "stays").mode(0o640),
        Entry::link("linked-symlink", "soft").owner(7, 7),
        Entry::file("stays", "another, as its other names are not"),
    ]
}

/// A tar without zero blocks, whose last padding has so many bytes.
fn unended(name: &str, len: usize, padding: usize) -> Vec<u8> {
    let mut archive = Archive::new();
    archive.entry(&Entry::file(name, vec![b'x'; len]), Variant::Ustar);
    archive.tar.truncate(512 + len + padding);
    archive.tar
}

fn more_behind_the_end() -> Vec<u8> {
    let mut tar = pax(&[Entry::file("more", "behind the end")]);
    tar.resize(10_240, 0);
    tar.extend_from_slice(b"anything at all, \xff\0 and no whole block");
    tar
}
