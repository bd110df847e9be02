//! What tools wrote over forty years, and what nobody should: one row each.

#[cfg(test)]
mod support;

use format::limits;
use format::payload::Piece;
use format::tar::{Member, MemberKind, TarProblem};
use format::tree::{Device, Time};
use support::read;
use testkit::tar::{Archive, Entry, Header, Kind, Variant, record};

/// A header whose numeric fields are filled in.
fn header(variant: Variant, kind: u8, name: &[u8], size: i64) -> Header {
    let mut header = Header::new(variant, kind);
    header.put(0, name);
    for (at, len, n) in [(100, 8, 0o644), (108, 8, 1), (116, 8, 2), (124, 12, size), (136, 12, 1000)] {
        header.number(at, len, n);
    }
    header
}

/// A finished tar of what `build` adds.
fn tar(build: impl FnOnce(&mut Archive)) -> Vec<u8> {
    let mut archive = Archive::new();
    build(&mut archive);
    archive.finish();
    archive.tar
}

#[cfg(test)]
fn members(tar: &[u8]) -> Vec<Member> {
    let whole = read(tar, usize::MAX).map_err(|error| error.to_string()).unwrap();
    assert_eq!(read(tar, 1).unwrap(), whole, "byte by byte");
    whole.members.into_iter().map(|(member, _)| member).collect()
}

fn one(build: impl FnOnce(&mut Archive)) -> Member {
    let mut all = members(&tar(build));
    assert_eq!(all.len(), 1);
    all.remove(0)
}

#[cfg(test)]
fn problem(build: impl FnOnce(&mut Archive)) -> TarProblem {
    read(&tar(build), usize::MAX).map(|layer| layer.members).unwrap_err().problem
}

fn file(archive: &mut Archive) {
    archive.raw(&header(Variant::Ustar, b'0', b"f", 0).seal());
}

#[test]
fn every_type_is_what_it_says() {
    let device = Device { major: 4095, minor: 1_048_575 };
    for (variant, kind, name, want) in [
        (Variant::V7, 0, &b"f"[..], MemberKind::File),
        (Variant::V7, 0, b"d/", MemberKind::Dir),
        (Variant::Ustar, 0, b"d/", MemberKind::Dir),
        (Variant::Ustar, b'0', b"f", MemberKind::File),
        (Variant::Ustar, b'0', b"f/", MemberKind::File),
        (Variant::Ustar, b'1', b"l", MemberKind::Link(b"target"[..].into())),
        (Variant::Ustar, b'2', b"s", MemberKind::Symlink(b"target"[..].into())),
        (Variant::V7, b'2', b"s", MemberKind::Symlink(b"target"[..].into())),
        (Variant::Ustar, b'3', b"c", MemberKind::Char(device)),
        (Variant::Gnu, b'4', b"b", MemberKind::Block(device)),
        (Variant::Ustar, b'5', b"d", MemberKind::Dir),
        (Variant::Ustar, b'6', b"p", MemberKind::Fifo),
        (Variant::Ustar, b'7', b"f", MemberKind::File),
    ] {
        let member = one(|archive| {
            // Only files have payload, whatever the size says.
            let size = if want == MemberKind::File { 3 } else { 1 << 30 };
            let mut header = header(variant, kind, name, size);
            header.put(157, b"target");
            if variant != Variant::V7 {
                header.number(329, 8, 4095);
                header.number(337, 8, 1_048_575);
            }
            archive.raw(&header.seal());
            if want == MemberKind::File {
                archive.payload(b"abc");
            }
            archive.pad();
        });
        assert_eq!((&member.kind, &*member.path), (&want, name), "{variant:?} {kind}");
        assert_eq!(member.payload, if want == MemberKind::File { 3 } else { 0 });
        assert_eq!((member.mode, member.uid, member.gid), (0o644, 1, 2));
        assert_eq!(member.mtime, Time { secs: 1000, nanos: 0 });
    }
    for kind in [b'8', b'A', b'D', b'M', b'N', b'V', b'X', 0xff, b' '] {
        let found = problem(|archive| archive.raw(&header(Variant::Ustar, kind, b"x/y", 0).seal()));
        assert_eq!(found, TarProblem::Type { kind, path: "x/y".into() });
    }
    let message =
        problem(|archive| archive.raw(&header(Variant::Ustar, b'V', b"label", 0).seal())).to_string();
    assert_eq!(message, "member \"label\" has the unknown type \"V\"");
}

#[test]
fn names_come_from_the_most_specific_place() {
    let prefixed = |magic: &[u8], tail: &[u8]| {
        let mut header = header(Variant::V7, b'0', b"name", 0);
        header.put(257, magic);
        header.put(345, &[b'p'; 150]);
        header.put(508, tail);
        header.seal()
    };
    let prefix = |n| [&vec![b'p'; n][..], b"/name"].concat();
    for (block, want) in [
        (prefixed(b"", b""), b"name".to_vec()),
        (prefixed(b"ustar\x0000", b""), prefix(150)),
        (prefixed(b"ustar\0  ", b""), prefix(150)),
        (prefixed(b"ustar\x0000", b"tar\0"), prefix(131)),
        // Go before 1.8 wrote a prefix where GNU has times.
        (prefixed(b"ustar  \0", b""), prefix(150)),
    ] {
        assert_eq!(*one(|archive| archive.raw(&block)).path, *want);
    }
    let long = |archive: &mut Archive, text: &[u8]| archive.extension(Variant::Gnu, b'L', text);
    let path = |archive: &mut Archive, text: &[u8]| archive.records(b'x', &[(b"path", text)]);
    type Step<'a> = (&'a dyn Fn(&mut Archive, &[u8]), &'a [u8]);
    let rows: [(&[Step<'_>], &[u8]); 8] = [
        (&[], b"f"),
        (&[(&long, b"long\0")], b"long"),
        (&[(&long, b"long without end")], b"long without end"),
        (&[(&path, b"pax")], b"pax"),
        (&[(&path, b"pax"), (&long, b"long\0")], b"long"),
        (&[(&long, b"long\0"), (&path, b"pax")], b"long"),
        (&[(&path, b"one"), (&path, b"two")], b"two"),
        (&[(&long, b"\0"), (&path, b"")], b"f"),
    ];
    for (steps, want) in rows {
        let member = one(|archive| {
            steps.iter().for_each(|(step, text)| step(archive, text));
            file(archive);
        });
        assert_eq!(*member.path, *want);
    }
    let all = members(&tar(|archive| {
        long(archive, b"first\0");
        file(archive);
        file(archive);
    }));
    assert_eq!(*all[1].path, *b"f", "an extension speaks about one member");
    let link = one(|archive| {
        archive.extension(Variant::Gnu, b'K', &[&[b't'; 300][..], b"\0"].concat());
        archive.records(b'x', &[(b"linkpath", b"other")]);
        archive.raw(&header(Variant::Gnu, b'2', b"s", 0).seal());
    });
    assert_eq!(link.kind, MemberKind::Symlink([b't'; 300][..].into()));
}

#[test]
fn pax_records_override_header_and_globals() {
    let all = members(&tar(|archive| {
        archive.records(
            b'g',
            &[(b"uid", b"77"), (b"mtime", b"-1.5"), (b"SCHILY.xattr.user.g", b"G"), (b"comment", b"x")],
        );
        file(archive);
        archive.records(
            b'x',
            &[
                (b"uid", b""),
                (b"gid", b"4000000000"),
                (b"SCHILY.xattr.user.b", b"\0=\n\xff"),
                (b"hdrcharset", b"BINARY"),
            ],
        );
        file(archive);
        archive.records(b'g', &[(b"mtime", b""), (b"path", b"global")]);
        file(archive);
    }));
    let seen: Vec<_> =
        all.iter().map(|m| (m.uid, m.gid, m.mtime.secs, m.mtime.nanos, m.xattrs.len())).collect();
    assert_eq!(
        seen,
        [(77, 2, -2, 500_000_000, 1), (1, 4_000_000_000, -2, 500_000_000, 2), (77, 2, 1000, 0, 1)]
    );
    assert_eq!(*all[2].path, *b"global");
    assert_eq!(*all[1].xattrs[&b"user.b"[..]], *b"\0=\n\xff");
    let sized = one(|archive| {
        archive.records(b'x', &[(b"size", b"5")]);
        archive.raw(&header(Variant::Ustar, b'0', b"f", 0).seal());
        archive.payload(b"12345");
        archive.pad();
    });
    assert_eq!(sized.payload, 5);
}

#[test]
fn malformed_extensions_are_refused() {
    let bad = |records: &[u8]| {
        problem(|archive| {
            archive.extension(Variant::Pax10, b'x', records);
            file(archive);
        })
    };
    for records in [&b"9 path=a"[..], b"path=a\n", b"11 path=a\n", b"0 a=b\n", b"5 abc\n"] {
        assert_eq!(bad(records), TarProblem::Pax("a record is malformed"), "{}", records.escape_ascii());
    }
    assert_eq!(bad(&record(b"path", b"a\0b")), TarProblem::Pax("a path holds a NUL"));
    for (key, value) in
        [(&b"uid"[..], &b"x"[..]), (b"size", b"1.5"), (b"mtime", b"1e9"), (b"gid", b"9999999999999999999")]
    {
        assert!(matches!(bad(&record(key, value)), TarProblem::Number(_)), "{}", key.escape_ascii());
    }
    assert!(matches!(bad(&record(b"size", b"-1")), TarProblem::Number("size")));
    assert!(matches!(bad(&record(b"path", &[b'a'; 4097])), TarProblem::TooLarge { .. }));
    let lonely = problem(|archive| archive.extension(Variant::Gnu, b'L', b"of nobody\0"));
    assert_eq!(lonely, TarProblem::Truncated, "zero blocks where a member should be");
    let long = problem(|archive| archive.extension(Variant::Gnu, b'K', &[b'a'; 4097]));
    assert!(matches!(long, TarProblem::TooLarge { .. }));
    let huge = i64::try_from(limits::TAR_EXTENSION).unwrap() + 1;
    for kind in [b'x', b'g', b'L', b'K'] {
        let found = problem(|archive| archive.raw(&header(Variant::Gnu, kind, b"x", huge).seal()));
        assert!(matches!(found, TarProblem::TooLarge { .. }), "announced, not there: refused at once");
        let found = problem(|archive| archive.raw(&header(Variant::Gnu, kind, b"x", -1).seal()));
        assert_eq!(found, TarProblem::Number("size"));
    }
    // Global attributes go to every member, so that few bytes could become many.
    let found = problem(|archive| {
        (0..70).for_each(|n| {
            let name = format!("SCHILY.xattr.user.{n}");
            archive.records(b'g', &[(name.as_bytes(), &[b'v'; 1000])]);
        });
    });
    assert!(matches!(found, TarProblem::TooLarge { .. }));
}

#[test]
fn numbers_out_of_range_are_refused() {
    let with = |at: usize, len: usize, n: i64| {
        problem(|archive| {
            let mut header = header(Variant::Gnu, b'3', b"c", 0);
            header.number(at, len, n);
            archive.raw(&header.seal());
        })
    };
    assert_eq!(with(329, 8, 4096), TarProblem::Number("device major"));
    assert_eq!(with(337, 8, 1 << 20), TarProblem::Number("device minor"));
    assert_eq!(with(337, 8, -1), TarProblem::Number("device minor"));
    assert_eq!(with(108, 8, 1 << 32), TarProblem::Number("uid"));
    assert_eq!(with(116, 8, -(1 << 31) - 1), TarProblem::Number("gid"));
    let sized = |size| problem(|archive| archive.raw(&header(Variant::Gnu, b'0', b"f", size).seal()));
    assert_eq!(sized(-1), TarProblem::Number("size"));
    assert!(matches!(sized(1 << 44 | 1), TarProblem::TooLarge { .. }));
    assert!(matches!(sized(i64::MAX), TarProblem::TooLarge { .. }));
    for (field, what) in [(100, "mode"), (108, "uid"), (116, "gid"), (124, "size"), (136, "mtime")] {
        let found = problem(|archive| {
            let mut header = header(Variant::Ustar, b'0', b"f", 0);
            header.put(field, b"12x");
            archive.raw(&header.seal());
        });
        assert_eq!(found, TarProblem::Number(what));
    }
    // As chown(2) takes them: -2 is the last but one, -1 asks for no change.
    for (written, want) in [(-2, u32::MAX - 1), (-1, 0), (4_294_967_295, 0), (4_294_967_294, u32::MAX - 1)] {
        let member = one(|archive| {
            let mut header = header(Variant::Gnu, b'0', b"f", 0);
            header.number(108, 8, written);
            archive.raw(&header.seal());
        });
        assert_eq!(member.uid, want);
    }
}

#[test]
fn all_sparse_encodings_say_the_same() {
    let pieces: Vec<(u64, Vec<u8>)> =
        (0..60u8).map(|n| (u64::from(n) * 10_000 + 7, vec![b'x'; 100 + usize::from(n)])).collect();
    let want: Vec<_> = pieces.iter().map(|(at, data)| Piece { at: *at, len: data.len() as u64 }).collect();
    for count in [0, 1, 4, 5, 25, 26, 60] {
        let entry = Entry::new("dir/sparse", Kind::Sparse(1 << 30, pieces[..count].to_vec()));
        for variant in [Variant::Gnu, Variant::Pax00, Variant::Pax01, Variant::Pax10] {
            let member = one(|archive| archive.entry(&entry, variant));
            let want = MemberKind::Sparse { size: 1 << 30, pieces: want[..count].into() };
            assert_eq!((&*member.path, &member.kind), (&b"dir/sparse"[..], &want), "{variant:?} {count}");
            assert_eq!((member.size(), member.mode), (1 << 30, 0o644));
        }
    }
}

#[test]
fn bad_sparse_maps_are_refused() {
    let pax = |records: &[(&[u8], &[u8])], data: &[u8]| {
        problem(|archive| {
            archive.records(b'x', records);
            archive.raw(&header(Variant::Ustar, b'0', b"f", i64::try_from(data.len()).unwrap()).seal());
            archive.raw(data);
        })
    };
    let v01 = |map: &'static [u8], blocks: &'static [u8], data: &[u8]| {
        pax(&[(b"GNU.sparse.map", map), (b"GNU.sparse.numblocks", blocks), (b"GNU.sparse.size", b"20")], data)
    };
    assert!(matches!(v01(b"0,5,4,5", b"2", b"0123456789"), TarProblem::Sparse(_)), "overlap");
    assert!(matches!(v01(b"0,5,18,5", b"2", b"0123456789"), TarProblem::Sparse(_)), "past the end");
    assert!(matches!(v01(b"0,5,8,4", b"2", b"0123456789"), TarProblem::Sparse(_)), "payload left");
    assert!(matches!(v01(b"0,5,8,5", b"3", b"0123456789"), TarProblem::Sparse(_)), "wrong count");
    assert!(matches!(v01(b"0,5,8", b"1", b"01234"), TarProblem::Sparse(_)), "odd");
    assert!(matches!(v01(b"0,-5", b"1", b""), TarProblem::Sparse(_)), "negative");
    assert!(matches!(v01(b"0,x", b"1", b""), TarProblem::Number(_)));
    assert!(matches!(
        pax(&[(b"GNU.sparse.major", b"2"), (b"GNU.sparse.minor", b"0")], b""),
        TarProblem::Sparse(_)
    ));
    assert!(matches!(pax(&[(b"GNU.sparse.numbytes", b"2")], b""), TarProblem::Sparse(_)));
    assert!(matches!(pax(&[(b"GNU.sparse.offset", b"2")], b""), TarProblem::Sparse(_)));
    let v10 = |map: &[u8]| {
        let mut data = map.to_vec();
        data.resize(512, 0);
        pax(
            &[(b"GNU.sparse.major", b"1"), (b"GNU.sparse.minor", b"0"), (b"GNU.sparse.realsize", b"20")],
            &data,
        )
    };
    assert!(matches!(v10(b"1\n0\n"), TarProblem::Sparse(_)), "a NUL where a number should be");
    assert!(matches!(v10(b"1\n0\n5\n"), TarProblem::Sparse(_)), "payload missing");
    assert!(matches!(v10(b"99999999999999999999999\n"), TarProblem::Number(_)));
    assert!(matches!(v10(b"1048577\n"), TarProblem::TooLarge { .. }));
    let star = problem(|archive| archive.raw(&header(Variant::Ustar, b'S', b"f", 0).seal()));
    assert!(matches!(star, TarProblem::Sparse(_)));
    let directory = problem(|archive| {
        archive.records(b'x', &[(b"GNU.sparse.map", b"0,0"), (b"GNU.sparse.numblocks", b"1")]);
        archive.raw(&header(Variant::Ustar, b'5', b"d", 0).seal());
    });
    assert!(matches!(directory, TarProblem::Sparse(_)));
}

#[test]
fn a_tar_ends_at_a_member_or_not_at_all() {
    let entries = [Entry::dir("d/"), Entry::file("d/f", "0123456789"), Entry::file([b'n'; 150], "x")];
    let tar = Archive::of(&entries, Variant::Gnu).tar;
    // d, f with padding, then L with its data, the long-named member, two zero blocks.
    for len in 0..=tar.len() {
        let result = read(&tar[..len], usize::MAX);
        let fine = match len {
            0 | 512 => true,
            1034..=1536 => true, // inside or after the padding of f
            3073..=3584 => true, // the same after the long-named member
            4096 | 4608 => true, // with one zero block and two
            _ => false,
        };
        assert_eq!(result.is_ok(), fine, "cut at {len}: {result:?}");
    }
    let mut trailing = tar.clone();
    trailing.extend_from_slice(b"anything at all, even \xff\0 and no whole block");
    let layer = read(&trailing, usize::MAX).unwrap();
    assert_eq!(layer.members.len(), 3);
    assert!(layer.skeleton.ends_with(b"no whole block"));
    let mut lone = Archive::new();
    lone.raw(&[0; 512]);
    lone.entry(&entries[0], Variant::Gnu);
    let error = read(&lone.tar, usize::MAX).unwrap_err();
    assert_eq!(error.problem, TarProblem::LoneZeroBlock);
    assert_eq!(error.to_string(), "tar header at byte 0: a single zero block is followed by other data");
}

#[test]
fn damage_is_named_with_its_place() {
    let mut tar = Archive::of(&[Entry::dir("d/"), Entry::file("d/f", "0123456789")], Variant::Ustar).tar;
    tar[600] ^= 1;
    let error = read(&tar, usize::MAX).unwrap_err();
    assert_eq!(error.to_string(), "tar header at byte 512: the checksum is wrong");
    let mut parser = format::tar::Parser::new();
    assert!(parser.step(&[b'x'; 512]).is_err());
    assert!(parser.step(&[0; 1024]).is_err(), "and it stays so");
    assert!(parser.finish().is_err());
}

#[test]
fn no_byte_of_a_small_tar_panics() {
    let entries = [
        Entry::dir("d/").xattr("user.a", "b").mtime(-5, 7),
        Entry::new("d/s", Kind::Sparse(20_000, vec![(5, vec![1; 9]), (9000, vec![2; 9])])),
        Entry::link("d/l", "d/s"),
        Entry::symlink("d/y", [b't'; 120]),
        Entry::new("d/c", Kind::Char(1, 2)),
    ];
    for variant in [Variant::Gnu, Variant::Pax00, Variant::Pax01, Variant::Pax10] {
        let tar = Archive::of(&entries, variant).tar;
        let skeleton = Archive::of(&entries, variant).skeleton;
        for (bytes, whole) in [(&tar, true), (&skeleton, false)] {
            for at in 0..bytes.len() {
                for flip in [1, 0x80, 0xff] {
                    let mut bytes = bytes.clone();
                    bytes[at] ^= flip;
                    if whole {
                        if let Ok(layer) = read(&bytes, usize::MAX) {
                            let _ = support::tree(&[layer]);
                        }
                    } else {
                        let _ = support::read_skeleton(&bytes, usize::MAX);
                    }
                }
            }
        }
    }
}

#[test]
fn a_file_system_is_no_tar_of_nothing() {
    let magic = 0xe0f5_e1e2_u32.to_le_bytes();
    let image = [&[0; 1024][..], &magic, &[7; 3068]].concat();
    for step in [1, 3, 1026, usize::MAX] {
        for len in [1028, image.len()] {
            assert_eq!(read(&image[..len], step).unwrap_err().problem, TarProblem::FileSystem, "{step}");
        }
        // Shorter, or later: it says nothing.
        assert!(read(&image[..1027], step).is_ok());
        let member = tar(file);
        assert!(read(&[&member[..], &magic].concat(), step).is_ok());
        assert!(read(&[&[0; 1536][..], &magic].concat(), step).is_ok());
    }
}
