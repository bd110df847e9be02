//! Content identities. Outside text becomes one of these types at the door.

use std::fmt;
use std::io::{self, Read};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// The algorithm is one we cannot compute.
    #[error("digest {0:?} is not sha256, the only algorithm supported")]
    Algorithm(String),
    /// The hexadecimal part has the wrong length or characters.
    #[error("digest {0:?} is not \"sha256:\" and 64 lower-case hexadecimal digits")]
    Malformed(String),
}

/// The SHA-256 of a blob, as OCI writes it: `sha256:<64 hex digits>`.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Digest([u8; 32]);

impl Digest {
    /// Returns the digest of bytes in memory.
    pub fn of(bytes: &[u8]) -> Self {
        let mut hasher = DigestHasher::new();
        hasher.update(bytes);
        hasher.finish()
    }

    /// Returns the digest whose 32 raw bytes are given.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }

    /// Returns the 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }

    /// Returns the 64 hexadecimal digits without the algorithm: a safe file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl FromStr for Digest {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some(digits) = text.strip_prefix("sha256:") else {
            return Err(DigestError::Algorithm(abbreviated(text)));
        };
        unhex(digits).map(Self).ok_or_else(|| DigestError::Malformed(abbreviated(text)))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "sha256:{}", self.hex())
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl TryFrom<String> for Digest {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

/// Computes a [`Digest`] piece by piece.
#[derive(Clone)]
pub struct DigestHasher(ring::digest::Context);

impl DigestHasher {
    /// Returns a hasher that has seen nothing.
    pub fn new() -> Self {
        Self(ring::digest::Context::new(&ring::digest::SHA256))
    }

    /// Adds bytes.
    pub fn update(&mut self, bytes: &[u8]) {
        self.0.update(bytes);
    }

    /// Returns the digest of everything added.
    pub fn finish(self) -> Digest {
        let mut raw = [0; 32];
        raw.copy_from_slice(self.0.finish().as_ref());
        Digest(raw)
    }
}

impl Default for DigestHasher {
    fn default() -> Self {
        Self::new()
    }
}

/// Hashes and counts what is read.
pub struct Hashed<R> {
    from: R,
    hasher: DigestHasher,
    at: u64,
}

impl<R: Read> Hashed<R> {
    /// Returns a reader of which nothing has been read.
    pub fn new(from: R) -> Self {
        Self { from, hasher: DigestHasher::new(), at: 0 }
    }

    /// Returns how many bytes have been read.
    pub fn at(&self) -> u64 {
        self.at
    }

    /// Reads to the end; returns the digest of all, and how many bytes they are.
    pub fn finish(mut self) -> io::Result<(Digest, u64)> {
        io::copy(&mut self, &mut io::sink())?;
        Ok((self.hasher.finish(), self.at))
    }
}

impl<R: Read> Read for Hashed<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let n = self.from.read(buf)?;
        self.hasher.update(&buf[..n]);
        self.at += n as u64;
        Ok(n)
    }
}

macro_rules! identity {
    ($(#[$doc:meta])* $name:ident) => {
        $(#[$doc])*
        #[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
        #[serde(transparent)]
        pub struct $name(Digest);
        impl $name {
            /// Returns the identity with this digest.
            pub const fn new(digest: Digest) -> Self {
                Self(digest)
            }
            /// Returns the digest.
            pub const fn digest(&self) -> &Digest {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                fmt::Display::fmt(self, f)
            }
        }
    };
}

identity! {
    /// The SHA-256 of a layer's uncompressed tar (OCI image spec, config, `rootfs.diff_ids`).
    DiffId
}
identity! {
    /// The identity of a stack of layers (OCI image spec, config, "Layer ChainID").
    ChainId
}

impl ChainId {
    /// Returns the chain ID of the layers, bottom first, or nothing for no layer.
    pub fn of(layers: &[DiffId]) -> Option<Self> {
        let (first, rest) = layers.split_first()?;
        Some(rest.iter().fold(Self(*first.digest()), |chain, layer| {
            Self(Digest::of(format!("{chain} {layer}").as_bytes()))
        }))
    }
}

/// The BLAKE3 of one chunk of payload.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ChunkId(pub [u8; 32]);

impl ChunkId {
    /// Returns the identity of these bytes.
    pub fn of(bytes: &[u8]) -> Self {
        Self(*blake3::hash(bytes).as_bytes())
    }
}

impl fmt::Debug for ChunkId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", hex(&self.0))
    }
}

/// The identity of a layer index: BLAKE3 over the facts it states about the layer's plain bytes.
///
/// Two indexes of one layer have the same identity however they were compressed and whichever decoder
/// table they carry.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct IndexId([u8; 32]);

impl IndexId {
    /// Returns the identity whose 32 raw bytes are given.
    pub const fn from_bytes(raw: [u8; 32]) -> Self {
        Self(raw)
    }
    /// Returns the 32 raw bytes.
    pub const fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
    /// Returns the 64 hexadecimal digits: a safe file name.
    pub fn hex(&self) -> String {
        hex(&self.0)
    }
}

impl fmt::Display for IndexId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "blake3:{}", self.hex())
    }
}

impl fmt::Debug for IndexId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for IndexId {
    type Err = DigestError;
    fn from_str(text: &str) -> Result<Self, DigestError> {
        let Some(digits) = text.strip_prefix("blake3:") else {
            return Err(DigestError::Algorithm(abbreviated(text)));
        };
        unhex(digits).map(Self).ok_or_else(|| DigestError::Malformed(abbreviated(text)))
    }
}

impl TryFrom<String> for IndexId {
    type Error = DigestError;
    fn try_from(text: String) -> Result<Self, DigestError> {
        text.parse()
    }
}

impl From<IndexId> for String {
    fn from(id: IndexId) -> Self {
        id.to_string()
    }
}

fn hex(raw: &[u8; 32]) -> String {
    const DIGITS: &[u8; 16] = b"0123456789abcdef";
    raw.iter()
        .flat_map(|b| [DIGITS[usize::from(b >> 4)], DIGITS[usize::from(b & 15)]])
        .map(char::from)
        .collect()
}

fn unhex(digits: &str) -> Option<[u8; 32]> {
    let nibble = |c: u8| match c {
        b'0'..=b'9' => Some(c - b'0'),
        b'a'..=b'f' => Some(c - b'a' + 10),
        _ => None,
    };
    let digits: &[u8; 64] = digits.as_bytes().try_into().ok()?;
    let mut raw = [0; 32];
    for (byte, pair) in raw.iter_mut().zip(digits.chunks_exact(2)) {
        *byte = nibble(pair[0])? << 4 | nibble(pair[1])?;
    }
    Some(raw)
}

/// An outside text in an error message stays short.
fn abbreviated(text: &str) -> String {
    text.chars().take(100).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn digests_are_parsed_strictly() {
        let empty = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
        assert_eq!(Digest::of(b"").to_string(), empty);
        assert_eq!(empty.parse::<Digest>(), Ok(Digest::of(b"")));
        assert!(matches!("sha512:00".parse::<Digest>(), Err(DigestError::Algorithm(_))));
        for bad in
            [&empty[..70], &format!("{empty}0"), &empty.to_uppercase().replace("SHA", "sha"), "sha256:"]
        {
            assert!(matches!(bad.parse::<Digest>(), Err(DigestError::Malformed(_))), "{bad}");
        }
    }

    #[test]
    fn chain_ids_follow_the_image_spec() {
        let [a, b] = [DiffId::new(Digest::of(b"a")), DiffId::new(Digest::of(b"b"))];
        assert_eq!(ChainId::of(&[]), None);
        assert_eq!(ChainId::of(&[a]), Some(ChainId::new(*a.digest())));
        let both = Digest::of(format!("{a} {b}").as_bytes());
        assert_eq!(ChainId::of(&[a, b]), Some(ChainId::new(both)));
    }
}
