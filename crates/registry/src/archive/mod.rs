//! Finds the members of a plain tar file, so that they can be read in place.
//!
//! For OCI archives and what docker saves, whose members are few and have short names: ustar and GNU headers (POSIX.1-2001
//! `ustar`, GNU tar's `tar.h`), pax `path` and `size`, GNU long names. Payload is skipped, never read. A link is another
//! name of a member (docker made some for layers that are there twice), if its target is one; holes are in none.

pub(crate) mod stdin;
pub(crate) mod write;

use std::collections::HashMap;
use std::io::{self, Read, Seek, SeekFrom};

use crate::limits;

const BLOCK: u64 = 512;

/// Where a member's bytes are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Member {
    pub(crate) offset: u64,
    pub(crate) len: u64,
}

/// Returns the regular files of an archive by name; of two with one name, the last.
pub(crate) fn members(file: &mut (impl Read + Seek)) -> io::Result<HashMap<String, Member>> {
    let end = file.seek(SeekFrom::End(0))?;
    let (mut found, mut links) = (HashMap::new(), Vec::new());
    let mut at = 0;
    let (mut path, mut size) = (None, None);
    for _ in 0..limits::ARCHIVE_MEMBERS {
        // A file that ends without the two empty blocks is accepted, as GNU tar does, if it ends between members.
        if at == end {
            return Ok(linked(found, links));
        }
        let mut header = [0; 512];
        file.seek(SeekFrom::Start(at))?;
        file.read_exact(&mut header)?;
        if header == [0; 512] {
            return Ok(linked(found, links));
        }
        check(&header, at)?;
        let own = number(&header[124..136]).ok_or_else(|| bad("a length that cannot be read"))?;
        let kind = header[156];
        let len = match kind {
            b'0' | 0 => size.take().unwrap_or(own),
            // Links, directories and devices have no payload, whatever they say.
            b'1'..=b'6' => 0,
            _ => own,
        };
        let offset = at + BLOCK;
        let next = offset.checked_add(len).and_then(|end| end.checked_next_multiple_of(BLOCK));
        at = next
            .filter(|_| len <= end.saturating_sub(offset))
            .ok_or_else(|| bad("the file ends inside a member"))?
            .min(end);
        match kind {
            b'x' => extended(&read(file, offset, len)?, &mut path, &mut size)?,
            b'L' => {
                path = Some(text(&read(file, offset, len)?));
            }
            b'g' | b'K' => {}
            b'0' | 0 => {
                let name = path.take().unwrap_or_else(|| own_name(&header));
                let name = name.trim_start_matches("./").to_owned();
                found.insert(name, Member { offset, len });
            }
            _ => {
                if let b'1' | b'2' = kind {
                    let name = path.take().unwrap_or_else(|| own_name(&header));
                    links.push((name, kind == b'2', text(&header[157..257])));
                }
                (path, size) = (None, None);
            }
        }
    }
    Err(bad("too many members"))
}

/// Adds the links to members under their own names.
fn linked(mut found: HashMap<String, Member>, links: Vec<(String, bool, String)>) -> HashMap<String, Member> {
    for (name, symbolic, to) in links {
        let name = name.trim_start_matches("./");
        // A symbolic link leads from its own directory, a hard one from the archive's root.
        let mut way: Vec<&str> = name.split('/').filter(|_| symbolic).collect();
        way.pop();
        for part in to.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(way.pop()),
                part => way.push(part),
            }
        }
        if let Some(&member) = found.get(&way.join("/")) {
            found.entry(name.to_owned()).or_insert(member);
        }
    }
    found
}

fn bad(why: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

fn check(header: &[u8; 512], at: u64) -> io::Result<()> {
    let sum: u64 = header
        .iter()
        .enumerate()
        .map(|(n, &byte)| if (148..156).contains(&n) { 32 } else { u64::from(byte) })
        .sum();
    if number(&header[148..156]) == Some(sum) {
        return Ok(());
    }
    if at == 0 && (header.starts_with(&[0x1f, 0x8b]) || header.starts_with(&[0x28, 0xb5, 0x2f, 0xfd])) {
        return Err(bad("it is compressed; unpack it with gunzip or unzstd first"));
    }
    Err(bad(if at == 0 { "it is no tar file" } else { "a member's header is damaged" }))
}

/// Octal digits, or base 256 where the first bit is set (GNU).
fn number(field: &[u8]) -> Option<u64> {
    if field[0] & 0x80 != 0 {
        let (first, rest) = (field[0] & 0x7f, &field[1..]);
        return rest.iter().try_fold(u64::from(first), |n, &byte| {
            n.checked_mul(256).map(|n| n | u64::from(byte)).filter(|&n| n <= i64::MAX as u64)
        });
    }
    let text = std::str::from_utf8(field).ok()?.trim_matches(|c| c == ' ' || c == '\0');
    if text.is_empty() { Some(0) } else { u64::from_str_radix(text, 8).ok() }
}

fn text(raw: &[u8]) -> String {
    String::from_utf8_lossy(raw.split(|&c| c == 0).next().unwrap_or_default()).into_owned()
}

fn own_name(header: &[u8; 512]) -> String {
    let name = text(&header[..100]);
    let prefix = if header[257..262] == *b"ustar" && header[263..265] == *b"00" {
        text(&header[345..500])
    } else {
        String::new()
    };
    if prefix.is_empty() { name } else { format!("{prefix}/{name}") }
}

fn read(file: &mut (impl Read + Seek), offset: u64, len: u64) -> io::Result<Vec<u8>> {
    if len > limits::ARCHIVE_HEADER {
        return Err(bad("a header of a member is too long"));
    }
    file.seek(SeekFrom::Start(offset))?;
    let mut raw = Vec::new();
    file.take(len).read_to_end(&mut raw)?;
    Ok(raw)
}

/// Records `<length> <key>=<value>\n`.
fn extended(mut raw: &[u8], path: &mut Option<String>, size: &mut Option<u64>) -> io::Result<()> {
    let broken = || bad("a pax header is damaged");
    while !raw.is_empty() {
        let space = raw.iter().position(|&c| c == b' ').ok_or_else(broken)?;
        let len: usize =
            std::str::from_utf8(&raw[..space]).ok().and_then(|text| text.parse().ok()).ok_or_else(broken)?;
        if len <= space + 1 || len > raw.len() || raw[len - 1] != b'\n' {
            return Err(broken());
        }
        let record = &raw[space + 1..len - 1];
        let equals = record.iter().position(|&c| c == b'=').ok_or_else(broken)?;
        let value = String::from_utf8_lossy(&record[equals + 1..]);
        match &record[..equals] {
            b"path" => *path = Some(value.into_owned()),
            b"size" => *size = Some(value.parse().map_err(|_| broken())?),
            _ => {}
        }
        raw = &raw[len..];
    }
    Ok(())
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    pub(crate) fn member(name: &str, kind: u8, body: &[u8]) -> Vec<u8> {
        let mut header = [0u8; 512];
        header[..name.len()].copy_from_slice(name.as_bytes());
        header[124..136].copy_from_slice(format!("{:011o}\0", body.len()).as_bytes());
        header[156] = kind;
        header[257..265].copy_from_slice(b"ustar\x0000");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|&byte| u32::from(byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        let mut raw = header.to_vec();
        raw.extend_from_slice(body);
        raw.resize(raw.len().next_multiple_of(512), 0);
        raw
    }

    fn scan(raw: &[u8]) -> io::Result<HashMap<String, Member>> {
        members(&mut Cursor::new(raw))
    }

    fn sample() -> Vec<u8> {
        let mut raw = member("./index.json", b'0', b"{}");
        raw.extend(member("blobs", b'5', b""));
        raw.extend(member("pax", b'x', b"12 path=a/b\n10 size=3\n"));
        raw.extend(member("short", b'0', b"abc"));
        raw.extend(member("././@LongLink", b'L', b"long/name\0"));
        raw.extend(member("cut", 0, b"xyz1"));
        raw.extend(member("link", b'2', b""));
        raw.extend([0; 1024]);
        raw
    }

    #[test]
    fn members_are_found_where_they_are() {
        let raw = sample();
        let found = scan(&raw).unwrap();
        let bytes = |name: &str| {
            let Member { offset, len } = found[name];
            let index = |n: u64| usize::try_from(n).unwrap();
            &raw[index(offset)..index(offset + len)]
        };
        assert_eq!(found.len(), 3);
        assert_eq!(
            (bytes("index.json"), bytes("a/b"), bytes("long/name")),
            (&b"{}"[..], &b"abc"[..], &b"xyz1"[..])
        );
    }

    #[test]
    fn what_is_no_archive_says_so() {
        for (raw, part) in [
            (vec![b'x'; 600], "no tar file"),
            ([&[0x1f, 0x8b][..], &[1; 600]].concat(), "gunzip"),
            (member("a", b'0', b"abc")[..514].to_vec(), "ends inside"),
            ([member("a", b'0', b"abc"), vec![1; 512]].concat(), "damaged"),
            (member("p", b'x', b"9 path=a\n"), ""),
            (member("p", b'x', b"99 path=a\n"), "pax"),
        ] {
            match scan(&raw) {
                Ok(found) => assert!(part.is_empty() && found.is_empty()),
                Err(error) => assert!(!part.is_empty() && error.to_string().contains(part), "{error}"),
            }
        }
        assert!(scan(&[]).unwrap().is_empty());
        assert!(scan(&sample()[..100]).is_err());
    }

    proptest! {
        #[test]
        fn damage_is_an_error_or_keeps_members_inside(at in 0usize..4608, value in any::<u8>()) {
            let mut raw = sample();
            let at = at % raw.len();
            raw[at] = value;
            if let Ok(found) = scan(&raw) {
                for member in found.values() {
                    prop_assert!(member.offset + member.len <= raw.len() as u64);
                }
            }
        }
    }
}
