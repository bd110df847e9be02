//! Layers recoded into every format: nothing is lost, every table tells the truth, and the bytes are always the same.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/formats.rs"]
mod formats;

use common::{Dice, PACKINGS, assorted, expected, pack, tar};
use convert::Expected;
use convert::recode::{RecodeError, Recoding, Target, recode};
use format::{DiffId, Digest};
use formats::{Made, TARGETS, check_chunked, check_estargz, made, table, unpacked};
use proptest::prelude::*;
use testkit::shapes;
use testkit::tar::{Archive, Entry, Kind, Variant};

/// Recodes a tar into one format, checks what came of it, and recodes that into ordinary layers and itself.
fn there_and_back(tar: &[u8], blob: &[u8], target: Target) -> Result<Made, RecodeError> {
    let there = made(tar, blob, target, 2)?;
    match target {
        Target::EStargz => check_estargz(&there, tar),
        Target::ZstdChunked => check_chunked(&there, tar),
        Target::Gzip | Target::Zstd => {
            assert!(unpacked(&there.blob) == tar);
            assert!(there.said.annotations.is_empty());
        }
    }
    let written = unpacked(&there.blob);
    for back in [Target::Gzip, Target::Zstd] {
        let back = made(&written, &there.blob, back, 1).unwrap();
        assert_eq!(back.said.diff_id.digest(), &Digest::of(tar), "back from {target:?}");
        assert!(unpacked(&back.blob) == tar);
    }
    let again = made(&written, &there.blob, target, 3).unwrap();
    assert!(again.blob == there.blob && again.said == there.said, "{target:?} of itself");
    Ok(there)
}

/// One member of each kind that a table can hold.
fn everything() -> Vec<Entry> {
    let mut dice = Dice::new(5);
    vec![
        Entry::dir("./"),
        Entry::dir("d/").mode(0o1777).owner(3, 4),
        Entry::file("d/empty", ""),
        Entry::file("d/small", "content").xattr("user.a", b"\xff\0"),
        Entry::file("d/one", [1; 512]),
        Entry::file("implied/large", dice.content((9 << 20) + 5)).mtime(1_700_000_000, 600_000_000),
        Entry::file("four", dice.content(512 << 10)),
        Entry::file("zeros", vec![0; (2 << 20) + 1]),
        Entry::link("d/hard", "d/one"),
        Entry::symlink("soft", "d/hard"),
        Entry::new("null", Kind::Char(1, 3)),
        Entry::new("loop", Kind::Block(7, 200)),
        Entry::new("fifo", Kind::Fifo),
        Entry::file("long/".repeat(60) + "\u{e9}\"\\\n<", "x").mtime(0, 0),
        Entry::file("d/.wh.gone", ""),
        Entry::file("last", "not a whole block"),
    ]
}

#[test]
fn every_target_holds_everything_a_table_can() {
    let tar = Archive::of(&everything(), Variant::Pax10).tar;
    let blob = pack("gzip -6", &tar);
    for target in TARGETS {
        there_and_back(&tar, &blob, target).unwrap();
    }
    let gnu: Vec<_> = everything().into_iter().filter(|entry| Variant::Gnu.holds(entry)).collect();
    let tar = Archive::of(&gnu, Variant::Gnu).tar;
    for target in TARGETS {
        there_and_back(&tar, &tar, target).unwrap();
    }
}

/// What readers compare with headers is what Go would write of them.
#[test]
fn entries_are_those_of_the_reference_writers() {
    let mut archive = Archive::new();
    archive.records(b'x', &[(b"mtime", b"1700000000.6"), (b"atime", b"-1.5"), (b"uname", b"somebody")]);
    archive.entry(&Entry::dir("d/").owner(7, 8), Variant::Ustar);
    archive.records(b'x', &[(b"uname", b"somebody"), (b"SCHILY.xattr.user.a", b"\0")]);
    archive.entry(&Entry::file("d/f", "x").owner(7, 8).mtime(0, 0), Variant::Ustar);
    archive.entry(&Entry::file("e", ""), Variant::Gnu);
    archive.entry(&Entry::symlink("l", "d/f"), Variant::Gnu);
    archive.finish();
    let entries = |target| {
        let made = there_and_back(&archive.tar, &archive.tar, target).unwrap();
        let json: serde_json::Value = serde_json::from_str(&table(&made)).unwrap();
        assert_eq!(json["version"], 1);
        // Where a piece lies is for the checks above.
        let mut entries = json["entries"].as_array().unwrap().clone();
        for key in ["offset", "endOffset"] {
            entries.iter_mut().filter_map(|entry| entry.get_mut(key)).for_each(|offset| *offset = 9.into());
        }
        entries.iter().map(ToString::to_string).collect::<Vec<_>>()
    };
    let x = Digest::of(b"x");
    assert_eq!(
        entries(Target::EStargz)[1..],
        [
            r#"{"gid":8,"mode":493,"modtime":"2023-11-14T22:13:21Z","name":"d/","type":"dir","uid":7,"userName":"somebody"}"#.into(),
            format!(r#"{{"chunkDigest":"{x}","digest":"{x}","gid":8,"mode":420,"name":"d/f","offset":9,"size":1,"type":"reg","uid":7,"xattrs":{{"user.a":"AA=="}}}}"#),
            format!(r#"{{"digest":"{}","mode":420,"modtime":"2023-11-14T22:13:20Z","name":"e","type":"reg"}}"#, Digest::of(b"")),
            r#"{"linkName":"d/f","mode":511,"modtime":"2023-11-14T22:13:20Z","name":"l","type":"symlink"}"#.into(),
        ]
    );
    assert_eq!(
        entries(Target::ZstdChunked),
        [
            r#"{"accesstime":"1969-12-31T23:59:58.5Z","gid":8,"mode":493,"modtime":"2023-11-14T22:13:20.6Z","name":"d/","type":"dir","uid":7}"#.into(),
            format!(r#"{{"digest":"{x}","endOffset":9,"gid":8,"mode":420,"modtime":"1970-01-01T00:00:00Z","name":"d/f","offset":9,"size":1,"type":"reg","uid":7,"xattrs":{{"user.a":"AA=="}}}}"#),
            r#"{"mode":420,"modtime":"2023-11-14T22:13:20Z","name":"e","type":"reg"}"#.to_owned(),
            r#"{"linkName":"d/f","mode":511,"modtime":"2023-11-14T22:13:20Z","name":"l","type":"symlink"}"#.into(),
        ]
    );
}

#[test]
fn every_packing_becomes_the_same() {
    let tar = assorted(1, 40);
    for target in TARGETS {
        let first = made(&tar, &tar, target, 1).unwrap().blob;
        for way in PACKINGS {
            assert!(made(&tar, &pack(way, &tar), target, 2).unwrap().blob == first, "{way}");
        }
    }
    let first = made(&tar, &tar, Target::EStargz, 1).unwrap();
    let over =
        made(&tar, &made(&tar, &tar, Target::ZstdChunked, 1).unwrap().blob, Target::EStargz, 1).unwrap();
    assert!(over.blob == first.blob);
}

#[test]
fn threads_and_reads_change_nothing() {
    /// A reader of odd lengths.
    struct Odd<'a>(&'a [u8], usize);
    impl std::io::Read for Odd<'_> {
        fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
            self.1 = self.1 % 5000 + 7;
            let n = self.1.min(buf.len()).min(self.0.len());
            buf[..n].copy_from_slice(&self.0[..n]);
            self.0 = &self.0[n..];
            Ok(n)
        }
    }
    let tar = assorted(3, 60);
    let blob = pack("gzip -6", &tar);
    for target in TARGETS {
        let one = made(&tar, &blob, target, 1).unwrap();
        for threads in [0, 2, 3, 7] {
            let other = made(&tar, &blob, target, threads).unwrap();
            assert!(other.blob == one.blob && other.said == one.said, "{target:?} on {threads}");
        }
        let mut out = Vec::new();
        let recoding = Recoding { target, level: Some(1), blob_size: blob.len() as u64, threads: 2 };
        recode(Odd(&blob, 0), &expected(&tar, &blob), &recoding, &mut out).unwrap();
        assert!(out == one.blob, "{target:?}");
    }
}

#[test]
fn layers_like_real_ones_come_back() {
    for (name, tar) in shapes::all() {
        let blob = pack("zstd -3", &tar);
        for target in TARGETS {
            match there_and_back(&tar, &blob, target) {
                Ok(_) => {}
                // It has a sparse file.
                Err(RecodeError::Inexpressible { what, .. }) => {
                    assert_eq!((name, &*what), ("base", "var/lastlog"))
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
}

/// The ends a tar may have.
fn ends(tar: &[u8]) -> Vec<Vec<u8>> {
    let body = &tar[..tar.len() - 1024];
    let zeros = |n: usize| vec![0; n];
    let after = |tail: &[u8]| [body, tail].concat();
    let mut ends = vec![
        body.to_vec(),
        after(&zeros(512)),
        after(&zeros(1024)),
        after(&zeros(9728)),
        after(&zeros(1025)),
        after(&[zeros(1024), b"odd bytes that nobody reads".to_vec()].concat()),
        after(&zeros(9 << 20)),
    ];
    // The last file has 17 bytes, so 495 of padding.
    for cut in [1, 2, 255, 494, 495] {
        ends.push(body[..body.len() - cut].to_vec());
    }
    ends
}

#[test]
fn a_tar_comes_back_whatever_its_end_is() {
    let entries =
        [Entry::dir("d/"), Entry::file("a", vec![1; 2000]), Entry::file("last", "not a whole block")];
    for tar in ends(&tar(&entries)).into_iter().chain([Vec::new(), vec![0; 512], vec![0; 1024]]) {
        let whole = tar.len().is_multiple_of(512) || tar.ends_with(&[0; 1025]) || tar.ends_with(b"reads");
        for target in TARGETS {
            let there = there_and_back(&tar, &tar, target);
            match there {
                Ok(_) => {}
                Err(RecodeError::Inexpressible { .. }) => assert!(target == Target::ZstdChunked && !whole),
                Err(error) => panic!("{target:?}: {error}"),
            }
        }
    }
}

#[test]
fn what_a_table_cannot_say_is_named_and_stays_an_ordinary_layer() {
    let pieces = vec![(4096, vec![1; 10])];
    let refused: [(&str, Vec<Entry>, &[Target]); 10] = [
        ("s", vec![Entry::new("s", Kind::Sparse(9000, pieces))], &TARGETS[..2]),
        ("\\xff", vec![Entry::file(b"\xff", "")], &TARGETS[..2]),
        ("l", vec![Entry::symlink("l", b"\xff")], &TARGETS[..2]),
        ("x", vec![Entry::file("x", "").xattr(b"security.\xff", "")], &TARGETS[..2]),
        ("a", vec![Entry::file("a", ""), Entry::file("a", "")], &TARGETS[..2]),
        ("h", vec![Entry::link("h", "nowhere")], &TARGETS[..2]),
        ("t", vec![Entry::file("t", "").mtime(300_000_000_000, 0)], &TARGETS[..2]),
        (".no.prefetch.landmark", vec![Entry::file(".no.prefetch.landmark", "mine")], &TARGETS[..1]),
        ("./.prefetch.landmark", vec![Entry::file("./.prefetch.landmark", "x")], &TARGETS[..1]),
        ("d/", vec![Entry::dir("d/"), Entry::dir("d/")], &TARGETS[1..2]),
    ];
    for (name, entries, targets) in refused {
        let tar = Archive::of(&entries, Variant::Pax10).tar;
        for target in TARGETS {
            match there_and_back(&tar, &tar, target) {
                Ok(_) => assert!(!targets.contains(&target), "{name} in {target:?}"),
                Err(RecodeError::Inexpressible { what, .. }) => {
                    assert_eq!(what, name);
                    assert!(targets.contains(&target), "{name} in {target:?}");
                }
                Err(error) => panic!("{name}: {error}"),
            }
        }
    }
    let mut global = Archive::new();
    global.records(b'g', &[(b"comment", b"0123")]);
    global.entry(&Entry::file("f", "x"), Variant::Ustar);
    global.finish();
    for target in TARGETS {
        let result = there_and_back(&global.tar, &global.tar, target);
        assert_eq!(result.is_err(), TARGETS[..2].contains(&target));
    }
}

#[test]
fn what_other_writers_have_put_in_is_taken_out() {
    let (first, last) = (Entry::file("first", "1"), Entry::file("d/last", "2"));
    let wanted = tar(&[Entry::dir("d/"), first.clone(), last.clone()]);
    let landmark = Entry::file(".prefetch.landmark", [0xf]);
    let table = Entry::file("stargz.index.json", "{\"version\":1,\"entries\":[]}");
    let deep = Entry::file("d/stargz.index.json", "somebody's");
    let source = tar(&[Entry::dir("d/"), first.clone(), landmark, last.clone(), table.clone()]);
    for target in TARGETS {
        let out = made(&source, &pack("gzip -6", &source), target, 1).unwrap();
        assert!(out.blob == made(&wanted, &wanted, target, 1).unwrap().blob, "{target:?}");
    }
    // BuildKit has the table after the end of the tar.
    let source = [wanted.clone(), tar(&[table])].concat();
    for target in TARGETS {
        let out = made(&source, &pack("gzip -6", &source), target, 1).unwrap();
        assert!(out.blob == made(&wanted, &wanted, target, 1).unwrap().blob, "{target:?}");
    }
    let kept = tar(&[first, deep, Entry::file(".no.prefetch.landmark", [0xe]), last]);
    assert!(unpacked(&made(&kept, &kept, Target::Gzip, 1).unwrap().blob) == kept);
}

#[test]
fn a_damaged_source_is_an_error() {
    let tar =
        tar(&[Entry::file("a", Dice::new(1).content(900)), Entry::file("b", Dice::new(2).content(300))]);
    for target in TARGETS {
        for way in ["gzip -6", "zstd -3", "plain"] {
            let blob = pack(way, &tar);
            let expected = expected(&tar, &blob);
            let attempt = |blob: &[u8], size: usize| {
                let recoding = Recoding { target, level: None, blob_size: size as u64, threads: 1 };
                recode(blob, &expected, &recoding, std::io::sink())
            };
            assert!(attempt(&blob, blob.len()).is_ok());
            for at in (0..blob.len()).step_by(17) {
                let mut bad = blob.clone();
                bad[at] ^= 1;
                assert!(attempt(&bad, bad.len()).is_err(), "{way}, byte {at}");
                assert!(attempt(&blob[..at], at).is_err(), "{way}, cut at {at}");
                assert!(matches!(attempt(&blob[..at], blob.len()), Err(RecodeError::BlobLength { .. })));
            }
            let longer = [&blob[..], b"x"].concat();
            let result = attempt(&longer, blob.len());
            assert!(matches!(result, Err(RecodeError::BlobLength { found: None, .. })));
        }
    }
    let other = Expected { diff_id: DiffId::new(Digest::of(b"other")), ..expected(&tar, &tar) };
    let recoding = Recoding { target: Target::EStargz, level: None, blob_size: tar.len() as u64, threads: 1 };
    let result = recode(&tar[..], &other, &recoding, std::io::sink());
    assert!(matches!(result, Err(RecodeError::DiffId { .. })), "{result:?}");
}

#[test]
fn what_cannot_be_written_is_an_error_and_not_a_wait() {
    /// A disk with room for so many bytes.
    struct Full(usize);
    impl std::io::Write for Full {
        fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
            self.0 = self.0.checked_sub(buf.len()).ok_or(std::io::ErrorKind::StorageFull)?;
            Ok(buf.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let tar = assorted(2, 200);
    for target in TARGETS {
        let recoding = Recoding { target, level: Some(1), blob_size: tar.len() as u64, threads: 2 };
        for room in [0, 1000, 1_000_000] {
            let result = recode(&tar[..], &expected(&tar, &tar), &recoding, Full(room));
            assert!(matches!(result, Err(RecodeError::Write(_))), "{target:?}: {result:?}");
        }
        let level = Recoding { level: Some(99), ..recoding };
        let result = recode(&tar[..], &expected(&tar, &tar), &level, std::io::sink());
        assert!(matches!(result, Err(RecodeError::Level { level: 99, .. })), "{result:?}");
    }
}

fn archive(members: &[(Entry, Variant)]) -> Vec<u8> {
    let mut archive = Archive::new();
    members.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
    archive.finish();
    archive.tar
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]

    #[test]
    fn expressible_layers_come_back_from_every_target(
        members in testkit::arbitrary::listed(0..25), tail in prop::collection::vec(any::<u8>(), 0..700), way in 0..PACKINGS.len()
    ) {
        let tar = [archive(&members), tail].concat();
        let blob = pack(PACKINGS[way], &tar);
        for target in TARGETS {
            there_and_back(&tar, &blob, target).unwrap();
        }
    }

    #[test]
    fn any_layer_comes_back_or_is_refused(members in testkit::arbitrary::layer(0..8)) {
        let tar = archive(&members);
        for target in TARGETS {
            match there_and_back(&tar, &tar, target) {
                Ok(_) => {}
                Err(RecodeError::Inexpressible { .. }) => prop_assert!(TARGETS[..2].contains(&target)),
                Err(error) => panic!("{target:?}: {error}"),
            }
        }
    }

    #[test]
    fn any_bytes_are_a_layer_or_an_error(
        mut bytes in prop::collection::vec(any::<u8>(), 0..3000), kind in 0u8..4, at in 0usize..1500
    ) {
        let good = pack(["gzip -6", "zstd -3", "plain", "plain"][usize::from(kind)], &tar(&everything()[..5]));
        if kind < 3 {
            // Noise in a good layer; else noise alone.
            let noise = bytes.first().copied().unwrap_or(1);
            bytes = good;
            let at = at % bytes.len();
            bytes[at] ^= noise;
        }
        for target in TARGETS {
            let recoding = Recoding { target, level: None, blob_size: bytes.len() as u64, threads: 1 };
            let _ = recode(&bytes[..], &expected(&bytes, &bytes), &recoding, std::io::sink());
        }
    }
}
