//! Names and paths as they come out of archives: bytes, not text.

use std::fmt;

use crate::limits;

/// A file name as one path component: 1..=255 bytes, no '/', no NUL, not "." or "..".
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Name(Box<[u8]>);

/// Why bytes are not a name or a path.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NameError {
    /// No byte at all.
    #[error("a name is empty")]
    Empty,
    /// Longer than [`limits::NAME`] or [`limits::PATH`].
    #[error("a name or path of {0} bytes is too long")]
    TooLong(usize),
    /// Holds a NUL, a slash, or is "." or "..".
    #[error("{0:?} cannot be a file name")]
    Forbidden(String),
}

impl Name {
    /// Returns the name made of these bytes; the only constructor.
    pub fn parse(raw: &[u8]) -> Result<Self, NameError> {
        match raw {
            [] => Err(NameError::Empty),
            _ if raw.len() > limits::NAME => Err(NameError::TooLong(raw.len())),
            b"." | b".." => Err(NameError::Forbidden(printable(raw))),
            _ if raw.iter().any(|b| matches!(b, 0 | b'/')) => Err(NameError::Forbidden(printable(raw))),
            _ => Ok(Self(raw.into())),
        }
    }

    /// Returns the bytes of the name.
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::borrow::Borrow<[u8]> for Name {
    fn borrow(&self) -> &[u8] {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&printable(&self.0))
    }
}

impl fmt::Debug for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// Returns bytes from outside in a form that is safe to print on a terminal or in a log line.
pub fn printable(raw: &[u8]) -> String {
    raw.escape_ascii().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_parsed_at_the_door() {
        assert!(Name::parse(b"a").is_ok());
        assert!(Name::parse(b"\xff\xfe").is_ok(), "names are bytes");
        assert!(Name::parse(&[b'x'; 255]).is_ok());
        assert_eq!(Name::parse(&[b'x'; 256]), Err(NameError::TooLong(256)));
        assert_eq!(Name::parse(b""), Err(NameError::Empty));
        for bad in [&b"."[..], b"..", b"a/b", b"a\0"] {
            assert!(matches!(Name::parse(bad), Err(NameError::Forbidden(_))), "{bad:?}");
        }
        assert!(Name::parse(b"...").is_ok());
    }
}
