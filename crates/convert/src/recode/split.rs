//! Tar-split: all of a tar but the content of its files, from which whoever has these makes the tar again.
//!
//! The format is that of `tar/storage` of vbatts/tar-split (`entry.go`, `packer.go`): a JSON document on each line,
//! numbered from 0, in the order of the tar; what goes into which entry is from its `tar/asm/disassemble.go`, and that
//! headers begin segments after the padding before them from `tar/asm/iterate.go`.
//!
//! ```text
//! {"type":2,"payload":"…","position":0}                      a segment: padding and headers of one member, base64
//! {"type":1,"name":"a","size":5,"payload":"…","position":1}  a member: if it has payload, its length and CRC-64
//! …
//! {"type":2,"payload":"…","position":9}                      padding, and all that follows the members
//! ```

use std::io::Write;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use format::Digest;
use serde::Serialize;
use zstd::stream::write::Encoder;

use super::RecodeError;
use super::table::bounded;

/// A tar-split that grows, packed.
pub(super) struct Split {
    encoder: Encoder<'static, Vec<u8>>,
    plain: u64,
    position: u64,
}

/// A finished one.
pub(super) struct Splitted {
    pub(super) packed: Vec<u8>,
    /// Of what is packed.
    pub(super) digest: Digest,
    /// Length before it was packed.
    pub(super) plain: u64,
}

#[derive(Serialize)]
struct Line<'a> {
    #[serde(rename = "type")]
    kind: u8,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<&'a str>,
    #[serde(skip_serializing_if = "Option::is_none")]
    size: Option<u64>,
    payload: Option<String>,
    position: u64,
}

impl Split {
    pub(super) fn new(level: i32) -> Result<Self, RecodeError> {
        let mut encoder = Encoder::new(Vec::new(), level).map_err(pack)?;
        encoder.include_checksum(true).map_err(pack)?;
        Ok(Self { encoder, plain: 0, position: 0 })
    }

    /// Adds bytes that are no content.
    pub(super) fn segment(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.line(Line {
            kind: 2,
            name: None,
            size: None,
            payload: Some(STANDARD.encode(bytes)),
            position: 0,
        })
    }

    /// Adds a member, and if it has any the length and sum of its content.
    pub(super) fn file(&mut self, name: &str, content: Option<(u64, Crc64)>) -> Result<(), RecodeError> {
        let (size, payload) = content.map(|(size, sum)| (size, STANDARD.encode(sum.finish()))).unzip();
        self.line(Line {
            kind: 1,
            name: Some(name).filter(|name| !name.is_empty()),
            size,
            payload,
            position: 0,
        })
    }

    pub(super) fn finish(self) -> Result<Splitted, RecodeError> {
        let packed = self.encoder.finish().map_err(pack)?;
        Ok(Splitted { digest: Digest::of(&packed), packed, plain: self.plain })
    }

    fn line(&mut self, line: Line<'_>) -> Result<(), RecodeError> {
        let mut json = serde_json::to_vec(&Line { position: self.position, ..line })
            .map_err(|error| RecodeError::Pack(error.to_string()))?;
        json.push(b'\n');
        self.encoder.write_all(&json).map_err(pack)?;
        (self.position, self.plain) = (self.position + 1, self.plain + json.len() as u64);
        bounded(self.encoder.get_ref().len())
    }
}

fn pack(error: std::io::Error) -> RecodeError {
    RecodeError::Pack(error.to_string())
}

/// The CRC-64 of ISO 3309, as Go's `hash/crc64` has it: reflected, all ones before and after.
#[derive(Debug, Clone, Copy)]
pub(super) struct Crc64(u64);

/// Remainders of each byte followed by n zero bytes.
static TABLES: [[u64; 256]; 8] = tables();

#[expect(clippy::cast_possible_truncation, reason = "the lowest byte is what is wanted")]
const fn tables() -> [[u64; 256]; 8] {
    let mut tables = [[0; 256]; 8];
    let mut n = 0;
    while n < 256 {
        let (mut crc, mut bit) = (n as u64, 0);
        while bit < 8 {
            crc = if crc & 1 == 1 { crc >> 1 ^ 0xd800_0000_0000_0000 } else { crc >> 1 };
            bit += 1;
        }
        tables[0][n] = crc;
        n += 1;
    }
    let mut zeros = 1;
    while zeros < 8 {
        n = 0;
        while n < 256 {
            let crc: u64 = tables[zeros - 1][n];
            tables[zeros][n] = crc >> 8 ^ tables[0][crc as u8 as usize];
            n += 1;
        }
        zeros += 1;
    }
    tables
}

impl Crc64 {
    pub(super) fn new() -> Self {
        Self(u64::MAX)
    }

    pub(super) fn update(&mut self, bytes: &[u8]) {
        let (words, rest) = bytes.as_chunks::<8>();
        for word in words {
            let mixed = (self.0 ^ u64::from_le_bytes(*word)).to_le_bytes();
            self.0 = mixed
                .iter()
                .zip(TABLES.iter().rev())
                .fold(0, |crc, (byte, table)| crc ^ table[usize::from(*byte)]);
        }
        for byte in rest {
            self.0 = self.0 >> 8 ^ TABLES[0][usize::from(self.0.to_le_bytes()[0] ^ byte)];
        }
    }

    /// Returns the sum as Go appends it.
    fn finish(self) -> [u8; 8] {
        (!self.0).to_be_bytes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_those_of_iso() {
        let sum = |parts: &[&[u8]]| {
            let mut crc = Crc64::new();
            parts.iter().for_each(|part| crc.update(part));
            u64::from_be_bytes(crc.finish())
        };
        // The check value of CRC-64/GO-ISO in the catalogue of parametrised CRC algorithms.
        assert_eq!(sum(&[b"123456789"]), 0xb909_56c7_75a4_1001);
        assert_eq!(sum(&[]), 0);
        let long: Vec<u8> = (0..100).collect();
        for at in 0..100 {
            assert_eq!(sum(&[&long[..at], &long[at..]]), sum(&[&long]));
        }
    }

    #[test]
    fn lines_are_those_of_the_packer() {
        let mut split = Split::new(3).unwrap();
        split.segment(b"head").unwrap();
        split
            .file(
                "a",
                Some((9, {
                    let mut crc = Crc64::new();
                    crc.update(b"123456789");
                    crc
                })),
            )
            .unwrap();
        split.file("", None).unwrap();
        let split = split.finish().unwrap();
        let plain = zstd::decode_all(&split.packed[..]).unwrap();
        assert_eq!(plain.len() as u64, split.plain);
        assert_eq!(
            String::from_utf8(plain).unwrap(),
            concat!(
                "{\"type\":2,\"payload\":\"aGVhZA==\",\"position\":0}\n",
                "{\"type\":1,\"name\":\"a\",\"size\":9,\"payload\":\"uQlWx3WkEAE=\",\"position\":1}\n",
                "{\"type\":1,\"payload\":null,\"position\":2}\n"
            )
        );
    }
}
