//! Small files that are whole or not there: one record each, under a checksum.
//!
//! ```text
//! magic     8 bytes   "FLOEREC\0"
//! version   u32 LE    1; an older program that meets a newer one reports the file and leaves it alone
//! kind      u32 LE    what the body is, so that a file under another's name is found out
//! length    u64 LE    of the body
//! checksum  32 bytes  BLAKE3 of the four fields above and the body
//! body
//! ```
//!
//! Written to `tmp/`, synced, renamed, and the directory synced: after a crash the old record or the next one
//! is there, never a mixture. Any changed byte is found when it is read.

use std::path::Path;

use crate::error::StoreError;
use crate::fs::read_whole;
use crate::store::Store;

const MAGIC: &[u8; 8] = b"FLOEREC\0";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 4 + 8 + 32;

/// What a record's body is. The numbers are on disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    Session = 1,
    Ref = 2,
    Layer = 3,
    Meta = 4,
    Profile = 5,
    Pin = 6,
    Snapshot = 7,
    Known = 8,
}

/// Returns the bytes of a record file.
pub(crate) fn encode(kind: Kind, body: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((kind as u32).to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    let checksum = checksum(&bytes, body);
    bytes.extend(checksum.as_bytes());
    bytes.extend(body);
    bytes
}

/// Returns the body of a record file, or what is wrong with it.
pub(crate) fn decode(kind: Kind, bytes: &[u8]) -> Result<&[u8], String> {
    if bytes.len() < HEADER {
        return Err(format!("{} bytes are too few for a record", bytes.len()));
    }
    let (header, body) = bytes.split_at(HEADER);
    let (fields, sum) = header.split_at(HEADER - 32);
    if &fields[..8] != MAGIC {
        return Err("it is not a record of a store".to_owned());
    }
    if checksum(fields, body).as_bytes() != sum {
        // Said first if it may be true: a newer layout may have its checksum elsewhere.
        let version = word(&fields[8..12]);
        return Err(if version > VERSION {
            format!(
                "its checksum does not match, or it has version {version} and this program knows {VERSION}"
            )
        } else {
            "its checksum does not match".to_owned()
        });
    }
    if word(&fields[8..12]) != VERSION {
        return Err(format!("it has version {}, this program knows {VERSION}", word(&fields[8..12])));
    }
    if word(&fields[12..16]) != kind as u32 {
        return Err("it is a record of another kind".to_owned());
    }
    if fields[16..24] != (body.len() as u64).to_le_bytes() {
        return Err("its length does not match".to_owned());
    }
    Ok(body)
}

/// Returns a record's body, or nothing if there is no such file.
pub(crate) fn read(
    store: &Store,
    kind: Kind,
    path: &Path,
    limit: u64,
) -> Result<Option<Vec<u8>>, StoreError> {
    let bytes = match read_whole(store.disk(), path, limit + HEADER as u64) {
        Ok(bytes) => bytes,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == std::io::ErrorKind::InvalidData => {
            return Err(StoreError::damaged(&store.path(path), error.to_string()));
        }
        Err(error) => return Err(StoreError::io("reading", &store.path(path), error)),
    };
    let body = decode(kind, &bytes).map_err(|what| StoreError::damaged(&store.path(path), what))?;
    Ok(Some(body.to_vec()))
}

/// Makes a record durable under its name; before that, the name means what it meant.
pub(crate) fn write(store: &Store, kind: Kind, path: &Path, body: &[u8]) -> Result<(), StoreError> {
    store.replace(path, &[&encode(kind, body)])
}

/// Returns a value as JSON; the store's own types have string keys only and cannot fail.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> Vec<u8> {
    #[expect(clippy::expect_used, reason = "plain structs with string keys always have a JSON form")]
    serde_json::to_vec(value).expect("a plain struct has a JSON form")
}

fn checksum(fields: &[u8], body: &[u8]) -> blake3::Hash {
    blake3::Hasher::new().update(fields).update(body).finalize()
}

fn word(bytes: &[u8]) -> u32 {
    bytes.iter().rev().fold(0, |word, byte| word << 8 | u32::from(*byte))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_changed_byte_of_a_record_is_found() {
        let good = encode(Kind::Ref, b"body");
        assert_eq!(decode(Kind::Ref, &good), Ok(&b"body"[..]));
        assert!(decode(Kind::Layer, &good).is_err());
        for at in 0..good.len() {
            for flip in [1, 0x80, 0xff] {
                let mut bad = good.clone();
                bad[at] ^= flip;
                assert!(decode(Kind::Ref, &bad).is_err(), "byte {at}");
            }
            assert!(decode(Kind::Ref, &good[..at]).is_err(), "cut at {at}");
        }
        assert!(decode(Kind::Ref, &[&good[..], b"x"].concat()).is_err());
        assert_eq!(decode(Kind::Profile, &encode(Kind::Profile, b"")), Ok(&b""[..]));
    }
}
