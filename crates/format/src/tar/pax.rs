//! Records of pax extended headers (POSIX.1-2017 `pax`, "pax Extended Header"): `"%d %s=%s\n"`.

use std::sync::Arc;

use super::TarProblem;
use crate::limits;
use crate::payload::Piece;
use crate::tree::{Time, Xattrs};

/// What extended headers say in place of a header block.
#[derive(Debug, Clone, Default)]
pub(super) struct Records {
    pub(super) path: Option<Box<[u8]>>,
    pub(super) link: Option<Box<[u8]>>,
    pub(super) size: Option<i64>,
    pub(super) uid: Option<i64>,
    pub(super) gid: Option<i64>,
    pub(super) mtime: Option<Time>,
    pub(super) xattrs: Xattrs,
    pub(super) sparse: SparseRecords,
}

/// What an extended header says about a sparse file (GNU tar manual, "PAX Format, Versions 0.0, 0.1, 1.0").
#[derive(Debug, Clone, Default)]
pub(super) struct SparseRecords {
    pub(super) major: Option<Box<[u8]>>,
    pub(super) minor: Option<Box<[u8]>>,
    pub(super) name: Option<Box<[u8]>>,
    pub(super) size: Option<i64>,
    pub(super) real_size: Option<i64>,
    pub(super) blocks: Option<i64>,
    /// Version 0.1 lists all numbers in one record, version 0.0 has two records per piece.
    pub(super) map: Option<Vec<i64>>,
}

impl Records {
    /// Applies the records of one extended header: a later one wins, an empty one takes the value away.
    ///
    /// Attributes are the exception: their values may be empty.
    pub(super) fn apply(&mut self, mut data: &[u8]) -> Result<(), TarProblem> {
        let mut pairs: Vec<i64> = Vec::new();
        while !data.is_empty() {
            let (key, value, rest) = record(data).ok_or(TarProblem::Pax("a record is malformed"))?;
            data = rest;
            self.set(key, value, &mut pairs)?;
        }
        if pairs.len() % 2 == 1 {
            return Err(TarProblem::Sparse("an offset has no length"));
        }
        if !pairs.is_empty() {
            self.sparse.map = Some(pairs);
        }
        Ok(())
    }

    /// Applies a global header. Its records are copied for each member that has some of its own, so that there
    /// must not be many.
    pub(super) fn apply_global(&mut self, data: &[u8]) -> Result<(), TarProblem> {
        self.apply(data)?;
        self.sparse = SparseRecords::default();
        let cost = self.xattrs.iter().map(|(name, value)| name.len() + value.len() + 64).sum::<usize>();
        if cost > limits::XATTR_TOTAL {
            let limit = limits::XATTR_TOTAL as u64;
            return Err(TarProblem::TooLarge { what: "the global extended attributes", limit });
        }
        Ok(())
    }

    fn set(&mut self, key: &[u8], value: &[u8], pairs: &mut Vec<i64>) -> Result<(), TarProblem> {
        let text = || (!value.is_empty()).then(|| value.into());
        let int = |what| match value {
            [] => Ok(None),
            _ => integer(value).map(Some).ok_or(TarProblem::Number(what)),
        };
        match key {
            b"path" => self.path = path(text())?,
            b"linkpath" => self.link = path(text())?,
            b"size" => self.size = int("pax size")?,
            b"uid" => self.uid = int("pax uid")?,
            b"gid" => self.gid = int("pax gid")?,
            b"mtime" => {
                self.mtime = match value {
                    [] => None,
                    _ => Some(time(value).ok_or(TarProblem::Number("pax mtime"))?),
                }
            }
            b"GNU.sparse.major" => self.sparse.major = text(),
            b"GNU.sparse.minor" => self.sparse.minor = text(),
            b"GNU.sparse.name" => self.sparse.name = path(text())?,
            b"GNU.sparse.size" => self.sparse.size = int("GNU.sparse.size")?,
            b"GNU.sparse.realsize" => self.sparse.real_size = int("GNU.sparse.realsize")?,
            b"GNU.sparse.numblocks" => self.sparse.blocks = int("GNU.sparse.numblocks")?,
            b"GNU.sparse.map" => self.sparse.map = map(value)?,
            b"GNU.sparse.offset" | b"GNU.sparse.numbytes" => {
                if pairs.len().is_multiple_of(2) != (key == b"GNU.sparse.offset") {
                    return Err(TarProblem::Sparse("offsets and lengths do not alternate"));
                }
                pairs.push(integer(value).ok_or(TarProblem::Number(key_name(key)))?);
            }
            _ => {
                if let Some(name) = key.strip_prefix(b"SCHILY.xattr.") {
                    Arc::make_mut(&mut self.xattrs).insert(name.into(), value.into());
                }
            }
        }
        Ok(())
    }
}

fn key_name(key: &[u8]) -> &'static str {
    if key == b"GNU.sparse.offset" { "GNU.sparse.offset" } else { "GNU.sparse.numbytes" }
}

fn path(text: Option<Box<[u8]>>) -> Result<Option<Box<[u8]>>, TarProblem> {
    match text {
        Some(text) if text.contains(&0) => Err(TarProblem::Pax("a path holds a NUL")),
        Some(text) if text.len() > limits::PATH => {
            Err(TarProblem::TooLarge { what: "the length of a path", limit: limits::PATH as u64 })
        }
        text => Ok(text),
    }
}

/// Splits off the first record: its key, its value, and what follows.
pub(super) fn record(data: &[u8]) -> Option<(&[u8], &[u8], &[u8])> {
    let space = data.iter().take(20).position(|b| *b == b' ')?;
    let len = usize::try_from(integer(&data[..space])?).ok()?;
    // The shortest record is "5 a=\n"; Go has the same bound.
    if len < 5 || len > data.len() || len < space + 2 {
        return None;
    }
    let (record, rest) = data.split_at(len);
    let (b'\n', record) = record.split_last()? else { return None };
    let record = &record[space + 1..];
    let equals = record.iter().position(|b| *b == b'=')?;
    let (key, value) = (&record[..equals], &record[equals + 1..]);
    (!key.contains(&0)).then_some((key, value, rest))
}

fn map(value: &[u8]) -> Result<Option<Vec<i64>>, TarProblem> {
    if value.is_empty() {
        return Ok(None);
    }
    let numbers: Option<Vec<i64>> = value.split(|b| *b == b',').map(integer).collect();
    numbers.map(Some).ok_or(TarProblem::Number("GNU.sparse.map"))
}

/// Returns the pieces that a list of offsets and lengths describes.
pub(super) fn pieces(numbers: &[i64]) -> Result<Vec<Piece>, TarProblem> {
    if numbers.len() / 2 > limits::SPARSE_PIECES {
        return Err(TarProblem::TooLarge { what: "a sparse map", limit: limits::SPARSE_PIECES as u64 });
    }
    let (pairs, []) = numbers.as_chunks::<2>() else {
        return Err(TarProblem::Sparse("an offset has no length"));
    };
    let piece =
        |[at, len]: &[i64; 2]| Some(Piece { at: u64::try_from(*at).ok()?, len: u64::try_from(*len).ok()? });
    pairs.iter().map(piece).collect::<Option<_>>().ok_or(TarProblem::Sparse("a number is negative"))
}

/// Returns a decimal number with an optional sign.
pub(super) fn integer(text: &[u8]) -> Option<i64> {
    let (negative, digits) = match text {
        [b'-', rest @ ..] => (true, rest),
        [b'+', rest @ ..] => (false, rest),
        _ => (false, text),
    };
    if digits.is_empty() {
        return None;
    }
    let mut n = 0i64;
    for digit in digits {
        if !digit.is_ascii_digit() {
            return None;
        }
        // Downwards, because i64 reaches further there.
        n = n.checked_mul(10)?.checked_sub(i64::from(digit - b'0'))?;
    }
    if negative { Some(n) } else { n.checked_neg() }
}

/// Returns a decimal time; digits after the ninth are cut off, as Go and Linux tools do.
pub(super) fn time(text: &[u8]) -> Option<Time> {
    let dot = text.iter().position(|b| *b == b'.');
    let (whole, fraction) = dot.map_or((text, &[][..]), |dot| (&text[..dot], &text[dot + 1..]));
    let secs = integer(whole)?;
    if !fraction.iter().all(u8::is_ascii_digit) {
        return None;
    }
    let digits = fraction.iter().chain(std::iter::repeat(&b'0')).take(9);
    let nanos = digits.fold(0u32, |n, digit| n * 10 + u32::from(digit - b'0'));
    match whole {
        [b'-', ..] if nanos > 0 => Some(Time { secs: secs.checked_sub(1)?, nanos: 1_000_000_000 - nanos }),
        _ => Some(Time { secs, nanos }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_have_signs_and_fractions() {
        let t = |secs, nanos| Some(Time { secs, nanos });
        for (text, want) in [
            ("0", t(0, 0)),
            ("1.5", t(1, 500_000_000)),
            ("1.", t(1, 0)),
            ("1.000000001", t(1, 1)),
            ("1.0000000019", t(1, 1)),
            ("-1", t(-1, 0)),
            ("-1.25", t(-2, 750_000_000)),
            ("-0.25", t(-1, 750_000_000)),
            ("-0", t(0, 0)),
            ("+7", t(7, 0)),
            ("9223372036854775807.9", t(i64::MAX, 900_000_000)),
            ("-9223372036854775808", t(i64::MIN, 0)),
            ("-9223372036854775808.1", None),
            ("9223372036854775808", None),
            ("", None),
            (".5", None),
            ("1.-5", None),
            ("1e3", None),
            (" 1", None),
        ] {
            assert_eq!(time(text.as_bytes()), want, "{text:?}");
        }
    }

    #[test]
    fn records_are_split_strictly() {
        for (data, want) in [
            (&b"5 a=\n"[..], Some((&b"a"[..], &b""[..], &b""[..]))),
            (b"6 a=b\nrest", Some((b"a", b"b", b"rest"))),
            (b"10 a=b=\n\n\n", Some((b"a", b"b=\n\n", b""))),
            (b"4 =\n", None),
            (b"6 a=b", None),
            (b"6 a=bc", None),
            (b"x a=b\n", None),
            (b"-6 a=b\n", None),
            (b"6a=b\n", None),
            (b"5 ab\n", None),
            (b"7 a\0=b\n", None),
            (b"", None),
            (b"99999999999999999999 a=b\n", None),
        ] {
            assert_eq!(record(data), want, "{:?}", data.escape_ascii().to_string());
        }
    }

    #[test]
    fn later_records_win_and_empty_ones_delete() {
        let mut records = Records::default();
        records.apply(b"9 path=a\n9 path=b\n16 uid=00000012\n9 gid=-2\n").unwrap();
        records.apply(b"27 SCHILY.xattr.user.a=\xff\0\n\n25 SCHILY.xattr.user.b=\n\n").unwrap();
        assert_eq!(records.path.as_deref(), Some(&b"b"[..]));
        assert_eq!((records.uid, records.gid), (Some(12), Some(-2)));
        let xattrs: Vec<_> = records.xattrs.iter().map(|(k, v)| (&**k, &**v)).collect();
        assert_eq!(xattrs, [(&b"user.a"[..], &b"\xff\0\n"[..]), (b"user.b", b"\n")]);
        records.apply(b"8 path=\n7 uid=\n24 SCHILY.xattr.user.a=\n").unwrap();
        assert_eq!((records.path, records.uid, records.gid), (None, None, Some(-2)));
        assert_eq!(records.xattrs[&b"user.a"[..]].len(), 0, "an attribute may be empty");
    }
}
