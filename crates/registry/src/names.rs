//! The names a registry speaks in: hosts, repositories, tags.
//!
//! Each has one constructor, [`FromStr`], with the grammar of the distribution specification (1.1, "Pulling
//! manifests") and, for hosts, of the reference grammar that docker, containerd and skopeo share. A parsed name
//! is safe in a URL path and, except for the `/` of repositories, as a file name.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::limits;

/// Why a text is not a name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{text:?} is not a {kind}: {why}")]
pub struct NameError {
    kind: &'static str,
    text: String,
    why: &'static str,
}

impl NameError {
    fn new(kind: &'static str, text: &str, why: &'static str) -> Self {
        Self { kind, text: text.chars().take(100).collect(), why }
    }
}

macro_rules! text_type {
    ($name:ident) => {
        impl $name {
            /// Returns the name as text.
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }
        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl fmt::Debug for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }
        impl TryFrom<String> for $name {
            type Error = NameError;
            fn try_from(text: String) -> Result<Self, NameError> {
                text.parse()
            }
        }
        impl From<$name> for String {
            fn from(name: $name) -> Self {
                name.0.into()
            }
        }
    };
}

/// A registry: a host name or address and perhaps a port, in lower case.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Host(Box<str>);
text_type!(Host);

impl Host {
    /// Returns the host without port and brackets.
    pub fn name(&self) -> &str {
        let name = match self.0.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
            Some((address, _)) => return address,
            None => &*self.0,
        };
        name.split_once(':').map_or(name, |(name, _)| name)
    }

    /// Returns the port, if one was given.
    pub fn port(&self) -> Option<u16> {
        let rest = self.0.rsplit_once(']').map_or(&*self.0, |(_, rest)| rest);
        rest.rsplit_once(':')?.1.parse().ok()
    }

    /// Whether this is the machine itself, so that plain HTTP crosses no network.
    pub fn is_loopback(&self) -> bool {
        self.name() == "localhost" || self.name().parse::<IpAddr>().is_ok_and(|address| address.is_loopback())
    }

    /// Returns the registry that names without a host belong to.
    pub fn docker_hub() -> Self {
        Self("docker.io".into())
    }
}

impl FromStr for Host {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new("registry host", text, why);
        if text.len() > limits::HOST {
            return Err(bad("it is too long"));
        }
        let (name, port) = match text.strip_prefix('[') {
            Some(rest) => {
                let (address, rest) = rest.split_once(']').ok_or_else(|| bad("the bracket is not closed"))?;
                let address: Ipv6Addr =
                    address.parse().map_err(|_| bad("the brackets hold no IPv6 address"))?;
                let port = match rest {
                    "" => None,
                    _ => Some(rest.strip_prefix(':').ok_or_else(|| bad("something follows the bracket"))?),
                };
                (format!("[{address}]"), port)
            }
            None => {
                let (name, port) =
                    text.split_once(':').map_or((text, None), |(name, port)| (name, Some(port)));
                let label = |label: &str| {
                    !label.is_empty()
                        && label.bytes().all(|c| c.is_ascii_alphanumeric() || c == b'-')
                        && !label.starts_with('-')
                        && !label.ends_with('-')
                };
                if !name.split('.').all(label) {
                    return Err(bad("labels are letters, digits and inner dashes"));
                }
                (name.to_ascii_lowercase(), port)
            }
        };
        match port {
            None => Ok(Self(name.into())),
            Some(digits) if digits.len() <= 5 && digits.bytes().all(|c| c.is_ascii_digit()) => {
                let port: u16 = digits.parse().map_err(|_| bad("the port is not below 65536"))?;
                Ok(Self(format!("{name}:{port}").into()))
            }
            Some(_) => Err(bad("the port is not a number")),
        }
    }
}

/// A repository of a registry, as in `library/nginx`: no host, no tag.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RepositoryName(Box<str>);
text_type!(RepositoryName);

impl FromStr for RepositoryName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new("repository name", text, why);
        if text.is_empty() || text.len() > limits::REPOSITORY {
            return Err(bad("it must have 1 to 255 characters"));
        }
        if text.bytes().any(|c| c.is_ascii_uppercase()) {
            return Err(bad("it must be in lower case"));
        }
        if !text.split('/').all(is_path_component) {
            return Err(bad("each part is letters and digits, joined by '.', '_', '__' or dashes"));
        }
        Ok(Self(text.into()))
    }
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_path_component(text: &str) -> bool {
    let plain = |c: u8| c.is_ascii_lowercase() || c.is_ascii_digit();
    let bytes = text.as_bytes();
    let (Some(&first), Some(&last)) = (bytes.first(), bytes.last()) else { return false };
    plain(first)
        && plain(last)
        && bytes.split(|&c| plain(c)).all(|separator| {
            matches!(separator, b"" | b"." | b"_" | b"__") || separator.iter().all(|&c| c == b'-')
        })
}

/// What cosign knows of a manifest: signatures, attestations, a list of its parts.
const COSIGN: [&str; 3] = ["sig", "att", "sbom"];

/// A tag: `[a-zA-Z0-9_][a-zA-Z0-9._-]{0,127}`.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Tag(Box<str>);
text_type!(Tag);

impl Tag {
    /// Returns the tag meant where none is given.
    pub fn latest() -> Self {
        Self("latest".into())
    }

    /// Returns the tag under which registries without a referrers API keep the referrers of a manifest.
    pub fn referrers(subject: &format::Digest) -> Self {
        Self(format!("sha256-{}", subject.hex()).into())
    }

    /// Returns the tags under which cosign keeps what it knows of a manifest, where it makes no referrers.
    pub fn cosign(subject: &format::Digest) -> [Self; 3] {
        COSIGN.map(|kind| Self(format!("sha256-{}.{kind}", subject.hex()).into()))
    }

    /// Says whether a name is that of something about a manifest, and no image's.
    pub(crate) fn is_about_a_manifest(name: &str) -> bool {
        let Some((hex, rest)) = name.strip_prefix("sha256-").and_then(|rest| rest.split_at_checked(64))
        else {
            return false;
        };
        let about = rest.is_empty() || rest.strip_prefix('.').is_some_and(|kind| COSIGN.contains(&kind));
        about && hex.bytes().all(|c| c.is_ascii_hexdigit())
    }
}

impl FromStr for Tag {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new("tag", text, why);
        let Some(first) = text.bytes().next() else { return Err(bad("it is empty")) };
        if text.len() > limits::TAG {
            return Err(bad("it has more than 128 characters"));
        }
        if !(first.is_ascii_alphanumeric() || first == b'_') {
            return Err(bad("it begins with something else than a letter, a digit or '_'"));
        }
        if !text.bytes().all(|c| c.is_ascii_alphanumeric() || matches!(c, b'_' | b'.' | b'-')) {
            return Err(bad("it has something else than letters, digits, '_', '.' and '-'"));
        }
        Ok(Self(text.into()))
    }
}

/// The name of an image in an OCI layout: the value of `org.opencontainers.image.ref.name`.
///
/// Its grammar (image spec, annotations) is wider than a tag's: whole references are common.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LayoutName(Box<str>);
text_type!(LayoutName);

impl FromStr for LayoutName {
    type Err = NameError;
    fn from_str(text: &str) -> Result<Self, NameError> {
        let bad = |why| NameError::new("name of an image in a layout", text, why);
        if text.is_empty() || text.len() > limits::LAYOUT_NAME {
            return Err(bad("it must have 1 to 1024 characters"));
        }
        let inner = |c: u8| c.is_ascii_alphanumeric() || b"-._:@+/".contains(&c);
        if !text.bytes().all(inner) || !text.as_bytes()[0].is_ascii_alphanumeric() {
            return Err(bad("it may hold letters, digits and -._:@+/ and begins with a letter or digit"));
        }
        Ok(Self(text.into()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts() {
        for (text, name, port, loopback) in [
            ("docker.io", "docker.io", None, false),
            ("localhost", "localhost", None, true),
            ("LOCALHOST:5000", "localhost", Some(5000), true),
            ("127.8.9.1:80", "127.8.9.1", Some(80), true),
            ("[::1]:5000", "::1", Some(5000), true),
            ("[2001:db8::1]", "2001:db8::1", None, false),
            ("a-b.example:65535", "a-b.example", Some(65535), false),
            ("127.example.org", "127.example.org", None, false),
        ] {
            let host: Host = text.parse().unwrap();
            assert_eq!((host.name(), host.port(), host.is_loopback()), (name, port, loopback), "{text}");
            assert_eq!(host.to_string().parse::<Host>().unwrap(), host);
        }
        for bad in [
            "", ".", "a..b", "-a", "a-", "a_b", "a:", "a:x", "a:65536", "a:+1", "[::1", "[::1]x", "[a]",
            "a/b", "u@h",
        ] {
            assert!(bad.parse::<Host>().is_err(), "{bad}");
        }
    }

    #[test]
    fn repositories() {
        let long = "a".repeat(255);
        for good in ["a", "library/nginx", "a.b/c_d/e__f/g---h", "0/1", &long] {
            assert_eq!(good.parse::<RepositoryName>().unwrap().as_str(), good);
        }
        let longer = "a".repeat(256);
        for bad in [
            "", "/", "a/", "/a", "a//b", "A", "a..b", "a___b", "a._b", "-a", "a-", "_a", "..", "a/../b",
            "a b", "a%2fb", &longer,
        ] {
            assert!(bad.parse::<RepositoryName>().is_err(), "{bad}");
        }
    }

    #[test]
    fn tags() {
        let long = "t".repeat(128);
        for good in ["latest", "_", "1.0-rc_1", "A", &long] {
            assert_eq!(good.parse::<Tag>().unwrap().as_str(), good);
        }
        let longer = "t".repeat(129);
        for bad in ["", ".", "-a", "a/b", "a:b", "ä", "..", &longer] {
            assert!(bad.parse::<Tag>().is_err(), "{bad}");
        }
        let subject = format::Digest::of(b"");
        assert_eq!(Tag::referrers(&subject).as_str().parse::<Tag>().unwrap(), Tag::referrers(&subject));
    }

    #[test]
    fn layout_names() {
        for good in ["latest", "docker.io/library/nginx:1.2@sha256:00", "v1+a"] {
            assert_eq!(good.parse::<LayoutName>().unwrap().as_str(), good);
        }
        for bad in ["", "/a", ":", "a b", "a\0"] {
            assert!(bad.parse::<LayoutName>().is_err(), "{bad}");
        }
    }
}
