//! Headers of members, written anew: for layers whose own are not at hand.
//!
//! As `pax` of POSIX.1-2017 has them. What a plain header cannot say is in an extended one before it: long paths and
//! targets, ids and sizes beyond the octal fields, times with fractions or before 1970, extended attributes.

use super::header::{BLOCK, byte_sum};
use super::{Member, MemberKind};

/// Longest path or target in a plain header.
const PATH: usize = 100;

/// Largest numbers of seven and eleven octal digits.
const SEVEN: u64 = 0o777_7777;
const ELEVEN: u64 = 0o777_7777_7777;

/// Appends the headers of a member to a tar. Its payload, padded to whole blocks, is to follow.
///
/// `plain` and `payload` of the member are not looked at, but for the size of a [`MemberKind::File`]; sparse files are
/// written as what they are not, whole ones.
pub fn write_header(member: &Member, out: &mut Vec<u8>) {
    headers(member, member.payload, None, out);
}

/// The same, but of a sparse file with its map, as version 1.0 of GNU tar's has it. Its payload, which is to follow, is the pieces.
pub(crate) fn write_sparse_header(member: &Member, out: &mut Vec<u8>) {
    let MemberKind::Sparse { size, pieces } = &member.kind else { return write_header(member, out) };
    let mut map = format!("{}\n", pieces.len());
    for piece in pieces {
        map.push_str(&format!("{}\n{}\n", piece.at, piece.len));
    }
    let len = map.len().next_multiple_of(BLOCK);
    headers(member, len as u64 + member.payload, Some(*size), out);
    let end = out.len() + len;
    out.extend_from_slice(map.as_bytes());
    out.resize(end, 0);
}

/// Writes headers of a member that takes so much room if it is a file, and of a sparse one says how long that is.
fn headers(member: &Member, size: u64, sparse: Option<u64>, out: &mut Vec<u8>) {
    let (kind, link) = match &member.kind {
        MemberKind::File | MemberKind::Sparse { .. } => (b'0', &[][..]),
        MemberKind::Link(to) => (b'1', &to[..]),
        MemberKind::Symlink(to) => (b'2', &to[..]),
        MemberKind::Char(_) => (b'3', &[][..]),
        MemberKind::Block(_) => (b'4', &[][..]),
        MemberKind::Dir => (b'5', &[][..]),
        MemberKind::Fifo => (b'6', &[][..]),
    };
    let size = if kind == b'0' { size } else { 0 };
    let mut records = records(member, link, size);
    if let Some(real) = sparse {
        record(&mut records, b"GNU.sparse.major", b"1");
        record(&mut records, b"GNU.sparse.minor", b"0");
        record(&mut records, b"GNU.sparse.realsize", real.to_string().as_bytes());
    }
    if !records.is_empty() {
        let mut header = block(b"pax", b'x', &[]);
        octal(&mut header, 124, 11, records.len() as u64);
        seal(&mut header);
        out.extend_from_slice(&header);
        out.extend_from_slice(&records);
        out.resize(out.len().next_multiple_of(BLOCK), 0);
    }
    let mut header = block(&member.path, kind, link);
    octal(&mut header, 100, 7, member.mode.into());
    octal(&mut header, 108, 7, u64::from(member.uid).min(SEVEN));
    octal(&mut header, 116, 7, u64::from(member.gid).min(SEVEN));
    octal(&mut header, 124, 11, size.min(ELEVEN));
    octal(&mut header, 136, 11, u64::try_from(member.mtime.secs).unwrap_or(0).min(ELEVEN));
    if let MemberKind::Char(device) | MemberKind::Block(device) = &member.kind {
        octal(&mut header, 329, 7, device.major.into());
        octal(&mut header, 337, 7, device.minor.into());
    }
    seal(&mut header);
    out.extend_from_slice(&header);
}

/// Returns what the plain header cannot say.
fn records(member: &Member, link: &[u8], size: u64) -> Vec<u8> {
    let mut out = Vec::new();
    if member.path.len() > PATH {
        record(&mut out, b"path", &member.path);
    }
    if link.len() > PATH {
        record(&mut out, b"linkpath", link);
    }
    for (key, number, most) in [
        (&b"uid"[..], u64::from(member.uid), SEVEN),
        (b"gid", member.gid.into(), SEVEN),
        (b"size", size, ELEVEN),
    ] {
        if number > most {
            record(&mut out, key, number.to_string().as_bytes());
        }
    }
    let time = member.mtime;
    if time.nanos != 0 || !u64::try_from(time.secs).is_ok_and(|secs| secs <= ELEVEN) {
        record(&mut out, b"mtime", decimal(time.secs, time.nanos).as_bytes());
    }
    for (name, value) in member.xattrs.iter() {
        record(&mut out, &[b"SCHILY.xattr.", &name[..]].concat(), value);
    }
    out
}

/// Returns a time as a decimal number: before 1970 the fraction counts towards the past.
fn decimal(secs: i64, nanos: u32) -> String {
    match (secs, nanos) {
        (secs, 0) => secs.to_string(),
        (0.., _) => format!("{secs}.{nanos:09}"),
        _ => format!("-{}.{:09}", (secs + 1).unsigned_abs(), 1_000_000_000 - nanos),
    }
}

/// Appends "length key=value\n", where the length counts itself.
fn record(out: &mut Vec<u8>, key: &[u8], value: &[u8]) {
    let rest = key.len() + value.len() + 3;
    let mut len = rest + 1;
    while rest + len.to_string().len() != len {
        len = rest + len.to_string().len();
    }
    out.extend_from_slice(len.to_string().as_bytes());
    out.push(b' ');
    out.extend_from_slice(key);
    out.push(b'=');
    out.extend_from_slice(value);
    out.push(b'\n');
}

fn block(path: &[u8], kind: u8, link: &[u8]) -> [u8; BLOCK] {
    let mut header = [0; BLOCK];
    let (path, link) = (&path[..path.len().min(PATH)], &link[..link.len().min(PATH)]);
    header[..path.len()].copy_from_slice(path);
    header[157..157 + link.len()].copy_from_slice(link);
    header[156] = kind;
    header[257..265].copy_from_slice(b"ustar\x0000");
    for (at, digits) in [(100, 7), (108, 7), (116, 7), (329, 7), (337, 7), (124, 11), (136, 11)] {
        header[at..at + digits].fill(b'0');
    }
    header
}

/// Writes a number that has so many digits at most. By hand: a table of contents makes ten numbers of each of its files, and
/// Rust's formatting took a tenth of the time that making an index of one does.
fn octal(header: &mut [u8; BLOCK], at: usize, digits: usize, mut number: u64) {
    for digit in header[at..at + digits].iter_mut().rev() {
        *digit = b'0' + number.to_le_bytes()[0] % 8;
        number /= 8;
    }
}

fn seal(header: &mut [u8; BLOCK]) {
    header[148..156].fill(b' ');
    let sum = byte_sum(&header[..]);
    octal(header, 148, 6, sum.into());
    header[154..156].copy_from_slice(b"\0 ");
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::payload::Piece;
    use crate::tar::{Parser, Step};
    use crate::tree::Time;

    #[test]
    fn maps_of_sparse_files_are_read_back() {
        for (path, size, count) in [("a", 1 << 40, 0), ("b", 4097, 1), ("c", 1 << 30, 5000)] {
            let pieces: Vec<_> =
                (0..count).map(|n| Piece { at: n * 8192 + 4096, len: 1 + n % 4096 }).collect();
            let payload = pieces.iter().map(|piece| piece.len).sum();
            let member = Member {
                path: path.repeat(101).into_bytes().into(),
                kind: MemberKind::Sparse { size, pieces: pieces.into() },
                mode: 0o640,
                uid: 1,
                gid: 2,
                mtime: Time { secs: 3, nanos: 4 },
                xattrs: Default::default(),
                plain: 0,
                payload,
            };
            let mut out = Vec::new();
            write_sparse_header(&member, &mut out);
            let (taken, step) = Parser::new().step(&out).unwrap();
            assert_eq!((taken, out.len() % BLOCK), (out.len(), 0));
            assert_eq!(step, Step::Member(Member { plain: out.len() as u64, ..member }));
        }
    }
}
