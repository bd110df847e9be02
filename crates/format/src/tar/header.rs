//! Fields of a header block.

use super::TarProblem;
use crate::tree::Device;

/// Length of a block.
pub(super) const BLOCK: usize = 512;

/// One block.
pub(super) type Block = [u8; BLOCK];

/// Who wrote a header, as far as that decides about the bytes after the link name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Dialect {
    V7,
    Ustar,
    Star,
    Gnu,
}

/// A header block whose checksum is right.
pub(super) struct Header<'a> {
    block: &'a Block,
    dialect: Dialect,
}

impl<'a> Header<'a> {
    /// Checks the checksum: POSIX sums the bytes unsigned, some old systems summed them signed.
    pub(super) fn parse(block: &'a Block) -> Result<Self, TarProblem> {
        let stated = octal(&block[148..156]).ok_or(TarProblem::Checksum)?;
        // The checksum field itself counts as eight spaces.
        let others = [&block[..148], &block[156..]];
        let unsigned = i64::from(others.iter().map(|part| byte_sum(part)).sum::<u32>() + 8 * u32::from(b' '));
        let high = || others.iter().flat_map(|part| part.iter()).filter(|b| **b >= 0x80).count();
        let signed = || unsigned - 256 * i64::try_from(high()).unwrap_or(0);
        if stated != unsigned && stated != signed() {
            return Err(TarProblem::Checksum);
        }
        let dialect = match (&block[257..263], &block[263..265], &block[508..512]) {
            (b"ustar\0", _, b"tar\0") => Dialect::Star,
            (b"ustar\0", _, _) => Dialect::Ustar,
            (b"ustar ", b" \0", _) => Dialect::Gnu,
            _ => Dialect::V7,
        };
        Ok(Self { block, dialect })
    }

    pub(super) fn dialect(&self) -> Dialect {
        self.dialect
    }

    pub(super) fn kind(&self) -> u8 {
        self.block[156]
    }

    /// Returns the path: prefix and name.
    pub(super) fn path(&self) -> Vec<u8> {
        let (name, prefix) = (text(&self.block[..100]), self.prefix());
        let mut path = Vec::with_capacity(prefix.len() + 1 + name.len());
        if !prefix.is_empty() {
            path.extend_from_slice(prefix);
            path.push(b'/');
        }
        path.extend_from_slice(name);
        path
    }

    fn prefix(&self) -> &'a [u8] {
        match self.dialect {
            Dialect::V7 => &[],
            Dialect::Ustar => text(&self.block[345..500]),
            Dialect::Star => text(&self.block[345..476]),
            Dialect::Gnu => {
                // GNU headers have times there. Go before 1.8 wrote a prefix all the same; like its later
                // versions, take what is no number but ASCII for a prefix.
                let time = |field: &[u8]| field[0] == 0 || number(field).is_some();
                let prefix = text(&self.block[345..500]);
                let a_prefix = !time(&self.block[345..357]) || !time(&self.block[357..369]);
                if a_prefix && prefix.is_ascii() { prefix } else { &[] }
            }
        }
    }

    pub(super) fn link(&self) -> &'a [u8] {
        text(&self.block[157..257])
    }

    pub(super) fn mode(&self) -> Result<u16, TarProblem> {
        let mode = number(&self.block[100..108]).ok_or(TarProblem::Number("mode"))?;
        Ok(u16::try_from(mode & 0o7777).unwrap_or(0))
    }

    pub(super) fn uid(&self) -> Result<i64, TarProblem> {
        number(&self.block[108..116]).ok_or(TarProblem::Number("uid"))
    }

    pub(super) fn gid(&self) -> Result<i64, TarProblem> {
        number(&self.block[116..124]).ok_or(TarProblem::Number("gid"))
    }

    pub(super) fn size(&self) -> Result<i64, TarProblem> {
        number(&self.block[124..136]).ok_or(TarProblem::Number("size"))
    }

    pub(super) fn mtime(&self) -> Result<i64, TarProblem> {
        number(&self.block[136..148]).ok_or(TarProblem::Number("mtime"))
    }

    /// Returns the device number: as many bits as Linux has for it.
    pub(super) fn device(&self) -> Result<Device, TarProblem> {
        if self.dialect == Dialect::V7 {
            return Ok(Device { major: 0, minor: 0 });
        }
        let part = |range: std::ops::Range<usize>, bits: u32, what| match number(&self.block[range]) {
            Some(n) if (0..1 << bits).contains(&n) => Ok(u32::try_from(n).unwrap_or(0)),
            _ => Err(TarProblem::Number(what)),
        };
        Ok(Device { major: part(329..337, 12, "device major")?, minor: part(337..345, 20, "device minor")? })
    }
}

/// Returns the sum of some bytes of a block.
pub(crate) fn byte_sum(bytes: &[u8]) -> u32 {
    // 256 of them fit 16 bits, and a compiler adds many of those at a time.
    let sums = bytes.chunks(256).map(|part| part.iter().map(|b| u16::from(*b)).sum::<u16>());
    sums.map(u32::from).sum()
}

/// Returns a field up to its first NUL.
pub(super) fn text(field: &[u8]) -> &[u8] {
    let end = field.iter().position(|b| *b == 0).unwrap_or(field.len());
    &field[..end]
}

/// Returns the number in a field: base 256 if the top bit is set, else octal.
pub(super) fn number(field: &[u8]) -> Option<i64> {
    let (first, rest) = field.split_first()?;
    if first & 0x80 == 0 {
        return octal(field);
    }
    // Two's complement whose sign is the second bit; the top bit only says that it is binary.
    let negative = first & 0x40 != 0;
    let flip = if negative { 0xff } else { 0 };
    let mut n = i64::from((first ^ flip) & 0x7f);
    for byte in rest {
        n = n.checked_mul(256)?.checked_add(i64::from(byte ^ flip))?;
    }
    Some(if negative { !n } else { n })
}

/// Returns the octal number in a field padded with spaces and NULs; an empty field is 0.
fn octal(field: &[u8]) -> Option<i64> {
    let pad = |b: &u8| matches!(b, b' ' | 0);
    let start = field.iter().position(|b| !pad(b)).unwrap_or(field.len());
    let end = field.iter().rposition(|b| !pad(b)).map_or(start, |last| last + 1);
    let mut n = 0i64;
    for digit in text(&field[start..end]) {
        if !matches!(digit, b'0'..=b'7') {
            return None;
        }
        n = n.checked_mul(8)?.checked_add(i64::from(digit - b'0'))?;
    }
    Some(n)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_octal_or_base_256() {
        for (field, want) in [
            (&b"0000644\0"[..], Some(0o644)),
            (b"   644 \0", Some(0o644)),
            (b"\0\x00644\0\0\0", Some(0o644)),
            (b"644\0junk", Some(0o644)),
            (b"\0\0\0\0\0\0\0\0", Some(0)),
            (b"        ", Some(0)),
            (b"77777777", Some(0o77_777_777)),
            (b"0000648\0", None),
            (b"-000644\0", None),
            (b"6 4\0\0\0\0\0", None),
            (b"\x80\0\0\0\0\0\x01\x02", Some(258)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff", Some(-1)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xfe", Some(-2)),
            (b"\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\xff\0", Some(-256)),
            (b"\x80\0\0\0\x7f\xff\xff\xff\xff\xff\xff\xff", Some(i64::MAX)),
            (b"\x80\0\0\0\x80\0\0\0\0\0\0\0", None),
            (b"\xff\xff\xff\xff\x80\0\0\0\0\0\0\0", Some(i64::MIN)),
            (b"\xff\xff\xff\xff\x7f\xff\xff\xff\xff\xff\xff\xff", None),
        ] {
            assert_eq!(number(field), want, "{:?}", field.escape_ascii().to_string());
        }
    }

    #[test]
    fn both_checksums_are_accepted_and_others_not() {
        let mut block = [0; BLOCK];
        block[..4].copy_from_slice(b"\xffabc");
        let unsigned: u32 = block.iter().map(|b| u32::from(*b)).sum::<u32>() + 8 * 32;
        for (sum, good) in
            [(unsigned, true), (unsigned - 256, true), (unsigned + 1, false), (unsigned - 255, false)]
        {
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            assert_eq!(Header::parse(&block).is_ok(), good, "{sum}");
        }
        block[148] = 0x80;
        assert!(Header::parse(&block).is_err(), "a checksum is octal");
    }
}
