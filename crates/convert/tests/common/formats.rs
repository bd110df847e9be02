//! Readers of eStargz and zstd:chunked that know nothing of the writer: every promise of a table is held against the blob.

use std::collections::BTreeMap;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use convert::recode::{RecodeError, Recoded, Recoding, Target, recode};
use format::Digest;
use format::index::Codec;
use format::stargz::toc::{Entry, Toc};
use format::stargz::{
    MANIFEST_CHECKSUM, MANIFEST_POSITION, TARSPLIT_POSITION, TOC_DIGEST, TOC_NAME, UNCOMPRESSED_SIZE,
};
use format::tar::{MemberKind, Parser, Step};
use format::unpack::Unpacker;

use crate::common::expected;

pub(crate) const TARGETS: [Target; 4] = [Target::EStargz, Target::ZstdChunked, Target::Gzip, Target::Zstd];

/// A blob and what was said of it.
pub(crate) struct Made {
    pub(crate) blob: Vec<u8>,
    pub(crate) said: Recoded,
}

pub(crate) fn made(tar: &[u8], blob: &[u8], target: Target, threads: usize) -> Result<Made, RecodeError> {
    let mut out = Vec::new();
    let level = Some(1);
    let recoding = Recoding { target, level, blob_size: blob.len() as u64, threads };
    let said = recode(blob, &expected(tar, blob), &recoding, &mut out)?;
    assert_eq!((said.digest, said.size), (Digest::of(&out), out.len() as u64));
    Ok(Made { blob: out, said })
}

/// Unpacks a blob to its end.
pub(crate) fn unpacked(blob: &[u8]) -> Vec<u8> {
    let codec = match blob {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, ..] | [0x50..=0x5f, 0x2a, ..] => Codec::Zstd,
        _ => Codec::Plain,
    };
    let (plain, left) = decoded(codec, blob, usize::MAX);
    assert!(left.is_empty());
    plain
}

/// Unpacks at most so many bytes from where a member or frame begins.
fn decoded(codec: Codec, mut packed: &[u8], most: usize) -> (Vec<u8>, &[u8]) {
    let (mut unpacker, mut plain, mut room) = (Unpacker::new(codec).unwrap(), Vec::new(), vec![0; 64 << 10]);
    while plain.len() < most {
        let room = &mut room[..(64 << 10).min(most - plain.len())];
        let step = unpacker.step(packed, room, false).unwrap();
        packed = &packed[step.read..];
        plain.extend_from_slice(&room[..step.written]);
        if step.read == 0 && step.written == 0 {
            unpacker.finish().unwrap();
            break;
        }
    }
    (plain, packed)
}

/// The regular files of a tar in its order, and their content.
fn files(tar: &[u8]) -> Vec<(String, Vec<u8>)> {
    let (mut parser, mut rest, mut found) = (Parser::new(), tar, Vec::new());
    while !rest.is_empty() {
        let (taken, step) = parser.step(rest).unwrap();
        rest = &rest[taken..];
        if let Step::Member(member) = step {
            let (content, after) = rest.split_at(usize::try_from(member.payload).unwrap());
            rest = after;
            if member.kind == MemberKind::File {
                found.push((String::from_utf8(member.path.into_vec()).unwrap(), content.to_vec()));
            }
        }
    }
    found
}

fn at(n: i64) -> usize {
    usize::try_from(n).unwrap()
}

/// Returns the table of an eStargz or zstd:chunked as it is.
pub(crate) fn table(made: &Made) -> String {
    let json = match made.said.annotations.get(MANIFEST_POSITION) {
        Some(position) => {
            let position: Vec<usize> = position.split(':').map(|n| n.parse().unwrap()).collect();
            zstd::decode_all(&made.blob[position[0]..][..position[1]]).unwrap()
        }
        None => files(&unpacked(&made.blob)).pop().unwrap().1,
    };
    String::from_utf8(json).unwrap()
}

/// Checks an eStargz against the tar it was made of.
pub(crate) fn check_estargz(made: &Made, tar: &[u8]) {
    let (blob, footer) = made.blob.split_at(made.blob.len() - 51);
    assert_eq!(&footer[..16], b"\x1f\x8b\x08\x04\0\0\0\0\0\xff\x1a\0SG\x16\0");
    assert_eq!(&footer[32..38], b"STARGZ");
    let offset = usize::from_str_radix(std::str::from_utf8(&footer[16..32]).unwrap(), 16).unwrap();
    let written = unpacked(&made.blob);
    assert_eq!(made.said.diff_id.digest(), &Digest::of(&written));
    assert_eq!(made.said.annotations[UNCOMPRESSED_SIZE], written.len().to_string());

    // The table is the first member of the tar that begins there.
    let (end, _) = decoded(Codec::Gzip, &blob[offset..], usize::MAX);
    let (n, Step::Member(member)) = Parser::new().step(&end).unwrap() else { panic!("no table") };
    assert_eq!(&*member.path, TOC_NAME.as_bytes());
    let json = &end[n..][..at(i64::try_from(member.payload).unwrap())];
    assert_eq!(made.said.annotations[TOC_DIGEST], Digest::of(json).to_string());
    assert!(written.ends_with(&end));
    let toc: Toc = serde_json::from_slice(json).unwrap();

    check_fields(&toc.entries, &written);

    let mut all = files(&written);
    assert_eq!(all.pop().unwrap().0, TOC_NAME);
    assert_eq!(all[0], (".no.prefetch.landmark".into(), vec![0xf]));
    let of_source = files(tar);
    assert!(all[1..] == of_source[..]);
    let content = check_pieces(&toc.entries, 512 << 10, |entry, len| {
        let (piece, _) = decoded(Codec::Gzip, &made.blob[at(entry.offset)..], len);
        assert_eq!(entry.chunk_digest, Digest::of(&piece).to_string(), "{}", entry.name);
        piece
    });
    assert!(content == all, "the table's files are those of the tar");
    let data: Vec<i64> =
        toc.entries.iter().filter(|entry| entry.offset != 0).map(|entry| entry.offset).collect();
    assert!(data.is_sorted_by(|a, b| a < b), "no offset twice");
}

/// Checks a zstd:chunked against the tar it was made of.
pub(crate) fn check_chunked(made: &Made, tar: &[u8]) {
    let said = |key: &str| -> Vec<usize> {
        made.said.annotations[key].split(':').map(|n| n.parse().unwrap()).collect()
    };
    assert!(unpacked(&made.blob) == tar);
    assert_eq!(made.said.diff_id.digest(), &Digest::of(tar));
    assert!(!made.said.annotations.contains_key(TOC_DIGEST));
    let (table, split) = (said(MANIFEST_POSITION), said(TARSPLIT_POSITION));
    let footer: Vec<u8> =
        table.iter().chain(&split).flat_map(|n| (*n as u64).to_le_bytes()).chain(*b"GNUlInUx").collect();
    assert!(made.blob.ends_with(&[&b"\x50\x2a\x4d\x18\x40\0\0\0"[..], &footer].concat()));
    let packed = &made.blob[table[0]..][..table[1]];
    assert_eq!(made.said.annotations[MANIFEST_CHECKSUM], Digest::of(packed).to_string());
    let json = zstd::decode_all(packed).unwrap();
    assert_eq!(json.len(), table[2]);
    let toc: Toc = serde_json::from_slice(&json).unwrap();
    let packed = &made.blob[split[0]..][..split[1]];
    assert_eq!(toc.tar_split_digest, Digest::of(packed).to_string());
    let lines = zstd::decode_all(packed).unwrap();
    assert_eq!(lines.len(), split[2]);

    check_fields(&toc.entries, tar);
    let content = check_pieces(&toc.entries, 512 << 10, |entry, len| {
        let frame = &made.blob[at(entry.offset)..];
        let packed = zstd::zstd_safe::find_frame_compressed_size(frame).unwrap();
        let piece = zstd::decode_all(&frame[..packed]).unwrap();
        assert_eq!(piece.len(), len, "a frame holds a piece and nothing else");
        if !entry.chunk_digest.is_empty() {
            assert_eq!(entry.chunk_digest, Digest::of(&piece).to_string());
            assert_eq!(entry.chunk_type == "zeros", piece.iter().all(|byte| *byte == 0));
        }
        if entry.end_offset != 0 && entry.chunk_digest.is_empty() {
            assert_eq!(at(entry.end_offset), at(entry.offset) + packed);
        }
        piece
    });
    assert!(content == files(tar));
    assert!(joined(&lines, content.into_iter().collect()) == tar, "the tar-split and the files are the tar");
}

/// Compares what a table says with the members of the tar, one by one.
fn check_fields(entries: &[Entry], tar: &[u8]) {
    let (mut parser, mut rest, mut members) = (Parser::new(), tar, Vec::new());
    while !rest.is_empty() {
        let (taken, step) = parser.step(rest).unwrap();
        rest = &rest[taken..];
        if let Step::Member(member) = step {
            rest = &rest[usize::try_from(member.payload).unwrap()..];
            members.push(member);
        }
    }
    members.retain(|member| &*member.path != TOC_NAME.as_bytes());
    let entries: Vec<_> = entries.iter().filter(|entry| entry.kind != "chunk").collect();
    assert_eq!(entries.len(), members.len());
    for (entry, member) in entries.into_iter().zip(members) {
        let (kind, link) = match &member.kind {
            MemberKind::Dir => ("dir", None),
            MemberKind::File | MemberKind::Sparse { .. } => ("reg", None),
            MemberKind::Link(link) => ("hardlink", Some(link)),
            MemberKind::Symlink(link) => ("symlink", Some(link)),
            MemberKind::Char(_) => ("char", None),
            MemberKind::Block(_) => ("block", None),
            MemberKind::Fifo => ("fifo", None),
        };
        let device = match &member.kind {
            MemberKind::Char(device) | MemberKind::Block(device) => (device.major, device.minor),
            _ => (0, 0),
        };
        assert_eq!((entry.name.as_bytes(), &*entry.kind), (&*member.path, kind));
        assert_eq!(entry.link_name.as_bytes(), link.map_or(&b""[..], |link| link), "{}", entry.name);
        assert_eq!(entry.mode & 0o7777, i64::from(member.mode));
        assert_eq!((entry.uid, entry.gid), (member.uid.into(), member.gid.into()));
        assert_eq!((entry.dev_major, entry.dev_minor), (device.0.into(), device.1.into()));
        assert_eq!(entry.xattrs.len(), member.xattrs.len());
        for (name, value) in member.xattrs.iter() {
            assert_eq!(entry.xattrs[std::str::from_utf8(name).unwrap()], STANDARD.encode(value));
        }
    }
}

/// Reads every file by its pieces; compares lengths and digests.
fn check_pieces(
    entries: &[Entry],
    most: usize,
    mut read: impl FnMut(&Entry, usize) -> Vec<u8>,
) -> Vec<(String, Vec<u8>)> {
    let mut found: Vec<(String, Vec<u8>)> = Vec::new();
    for (n, entry) in entries.iter().enumerate().filter(|(_, entry)| entry.kind == "reg") {
        let later = entries[n + 1..].iter().take_while(|entry| entry.kind == "chunk");
        let mut content = Vec::new();
        if entry.size > 0 {
            for piece in std::iter::once(entry).chain(later) {
                assert_eq!((&piece.name, at(piece.chunk_offset)), (&entry.name, content.len()));
                let len = most.min(at(entry.size) - content.len());
                assert!(piece.chunk_size == 0 || at(piece.chunk_size) == len);
                content.extend(read(piece, len));
            }
            assert_eq!(entry.digest, Digest::of(&content).to_string(), "{}", entry.name);
        }
        assert_eq!(content.len(), at(entry.size));
        found.push((entry.name.clone(), content));
    }
    found
}

/// Makes the tar again of its tar-split and its files.
fn joined(lines: &[u8], files: BTreeMap<String, Vec<u8>>) -> Vec<u8> {
    let mut tar = Vec::new();
    for (n, line) in lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty()).enumerate() {
        let line: serde_json::Value = serde_json::from_slice(line).unwrap();
        assert_eq!(line["position"], n);
        let payload = line["payload"].as_str().map(|text| STANDARD.decode(text).unwrap());
        match line["type"].as_u64() {
            Some(2) => tar.extend(payload.unwrap()),
            Some(1) if line["size"].is_null() => assert_eq!(payload, None),
            Some(1) => {
                let content = &files[line["name"].as_str().unwrap_or_default()];
                assert_eq!(line["size"], content.len());
                assert_eq!(payload.unwrap(), crc64(content).to_be_bytes());
                tar.extend_from_slice(content);
            }
            _ => panic!("{line}"),
        }
    }
    tar
}

/// The CRC-64 of ISO 3309, bit by bit.
fn crc64(bytes: &[u8]) -> u64 {
    let step = |crc: u64, _| if crc & 1 == 1 { crc >> 1 ^ 0xd800_0000_0000_0000 } else { crc >> 1 };
    !bytes.iter().fold(u64::MAX, |crc, byte| (0..8).fold(crc ^ u64::from(*byte), step))
}
