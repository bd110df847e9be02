//! What a request asks for: paths, queries and ranges to types. Nothing here touches the disk.

use format::Digest;

use crate::client::Pick;
use crate::names::{RepositoryName, Tag};

/// A resource of the registry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Resource {
    Root,
    Catalog,
    Manifest(RepositoryName, Pick),
    Blob(RepositoryName, Digest),
    Uploads(RepositoryName),
    Upload(RepositoryName, UploadId),
    Tags(RepositoryName),
    Referrers(RepositoryName, Digest),
}

/// Why a path is no resource.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum BadPath {
    /// No path of the specification.
    Unknown,
    /// The repository's name is malformed.
    Name,
    /// The digest is malformed or of another algorithm.
    Digest,
    /// The tag is malformed.
    Tag,
    /// No such upload can exist.
    Upload,
}

/// The name of an upload: 32 hexadecimal digits that nobody can guess.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct UploadId(String);

impl UploadId {
    pub(super) fn new(random: [u8; 16]) -> Self {
        Self(random.iter().map(|byte| format!("{byte:02x}")).collect())
    }

    fn parse(text: &str) -> Option<Self> {
        let hex = |c: u8| matches!(c, b'0'..=b'9' | b'a'..=b'f');
        (text.len() == 32 && text.bytes().all(hex)).then(|| Self(text.into()))
    }

    pub(super) fn as_str(&self) -> &str {
        &self.0
    }
}

impl Resource {
    /// Reads a path. The name of a repository may itself hold words like `blobs`, so it is read from the end.
    pub(super) fn parse(path: &str) -> Result<Self, BadPath> {
        let path = unescape(path).ok_or(BadPath::Unknown)?;
        let rest = path.strip_prefix("/v2").ok_or(BadPath::Unknown)?;
        match rest {
            "" | "/" => return Ok(Self::Root),
            "/_catalog" => return Ok(Self::Catalog),
            _ => {}
        }
        let parts: Vec<&str> = rest.strip_prefix('/').ok_or(BadPath::Unknown)?.split('/').collect();
        let name = |parts: &[&str]| parts.join("/").parse::<RepositoryName>().map_err(|_| BadPath::Name);
        match &parts[..] {
            [repository @ .., "blobs", "uploads"] | [repository @ .., "blobs", "uploads", ""] => {
                Ok(Self::Uploads(name(repository)?))
            }
            [repository @ .., "blobs", "uploads", id] => {
                Ok(Self::Upload(name(repository)?, UploadId::parse(id).ok_or(BadPath::Upload)?))
            }
            [repository @ .., "blobs", digest] => {
                Ok(Self::Blob(name(repository)?, digest.parse().map_err(|_| BadPath::Digest)?))
            }
            [repository @ .., "manifests", pick] => Ok(Self::Manifest(name(repository)?, parse_pick(pick)?)),
            [repository @ .., "tags", "list"] => Ok(Self::Tags(name(repository)?)),
            [repository @ .., "referrers", digest] => {
                Ok(Self::Referrers(name(repository)?, digest.parse().map_err(|_| BadPath::Digest)?))
            }
            _ => Err(BadPath::Unknown),
        }
    }
}

fn parse_pick(text: &str) -> Result<Pick, BadPath> {
    match text.contains(':') {
        true => text.parse().map(Pick::Digest).map_err(|_| BadPath::Digest),
        false => text.parse::<Tag>().map(Pick::Tag).map_err(|_| BadPath::Tag),
    }
}

/// Returns a parameter of a query.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    let pairs = query?.split('&').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
    let (_, value) = pairs.into_iter().find(|(key, _)| *key == name)?;
    unescape(value)
}

fn unescape(text: &str) -> Option<String> {
    if !text.contains('%') {
        return Some(text.into());
    }
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, after)) = rest.split_first() {
        match (first, after) {
            (b'%', [high, low, after @ ..]) => {
                let digit = |c: &u8| char::from(*c).to_digit(16).and_then(|digit| u8::try_from(digit).ok());
                bytes.push(digit(high)? << 4 | digit(low)?);
                rest = after;
            }
            (b'%', _) => return None,
            _ => {
                bytes.push(first);
                rest = after;
            }
        }
    }
    String::from_utf8(bytes).ok()
}

/// What part of a blob to send.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Part {
    Whole,
    Range {
        start: u64,
        end: u64,
    },
    /// No byte of it exists.
    Unsatisfiable,
}

/// Reads a `Range` header. What is not one range in bytes is ignored, as RFC 9110, 14.2 allows.
pub(super) fn part(header: Option<&str>, len: u64) -> Part {
    let Some((first, last)) = header.and_then(|text| text.strip_prefix("bytes=")?.split_once('-')) else {
        return Part::Whole;
    };
    let digits = |text: &str| text.bytes().all(|c| c.is_ascii_digit());
    if !digits(first) || !digits(last) || (first.is_empty() && last.is_empty()) {
        return Part::Whole;
    }
    // Beyond 64 bits is beyond every blob.
    let number = |text: &str| text.parse::<u64>().unwrap_or(u64::MAX);
    let (start, end) = match (first, last) {
        ("", count) => (len.saturating_sub(number(count)), len),
        (first, "") => (number(first), len),
        (first, last) if number(first) > number(last) => return Part::Whole,
        (first, last) => (number(first), number(last).saturating_add(1).min(len)),
    };
    if start < end { Part::Range { start, end } } else { Part::Unsatisfiable }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn paths() {
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        let digest = Digest::of(b"");
        let id = UploadId::new([0xa5; 16]);
        for (path, resource) in [
            ("/v2".into(), Ok(Resource::Root)),
            ("/v2/".into(), Ok(Resource::Root)),
            ("/v2/_catalog".into(), Ok(Resource::Catalog)),
            ("/v2/a/b/tags/list".into(), Ok(Resource::Tags(name("a/b")))),
            (
                "/v2/a/manifests/v1".into(),
                Ok(Resource::Manifest(name("a"), Pick::Tag("v1".parse().unwrap()))),
            ),
            (format!("/v2/a/manifests/{digest}"), Ok(Resource::Manifest(name("a"), Pick::Digest(digest)))),
            (format!("/v2/blobs/blobs/blobs/{digest}"), Ok(Resource::Blob(name("blobs/blobs"), digest))),
            (format!("/v2/a/blobs/sha256%3A{}", digest.hex()), Ok(Resource::Blob(name("a"), digest))),
            ("/v2/a/blobs/uploads/".into(), Ok(Resource::Uploads(name("a")))),
            ("/v2/a/blobs/uploads".into(), Ok(Resource::Uploads(name("a")))),
            (format!("/v2/a/blobs/uploads/{}", id.as_str()), Ok(Resource::Upload(name("a"), id))),
            (format!("/v2/a/referrers/{digest}"), Ok(Resource::Referrers(name("a"), digest))),
            ("/".into(), Err(BadPath::Unknown)),
            ("/v1/a/tags/list".into(), Err(BadPath::Unknown)),
            ("/v2/a".into(), Err(BadPath::Unknown)),
            ("/v2/a/../manifests/x".into(), Err(BadPath::Name)),
            ("/v2/%2e%2e/manifests/x".into(), Err(BadPath::Name)),
            ("/v2//manifests/x".into(), Err(BadPath::Name)),
            ("/v2/manifests/x".into(), Err(BadPath::Name)),
            ("/v2/a/manifests/..".into(), Err(BadPath::Tag)),
            ("/v2/a/manifests/%2e%2e%2f".into(), Err(BadPath::Unknown)),
            ("/v2/a/manifests/sha256:00".into(), Err(BadPath::Digest)),
            ("/v2/a/blobs/latest".into(), Err(BadPath::Digest)),
            ("/v2/a/blobs/uploads/../x".into(), Err(BadPath::Unknown)),
            ("/v2/a/blobs/uploads/x".into(), Err(BadPath::Upload)),
        ] {
            assert_eq!(Resource::parse(&path), resource, "{path}");
        }
    }

    #[test]
    fn ranges() {
        for (header, part_of_10) in [
            (None, Part::Whole),
            (Some("bytes=0-0"), Part::Range { start: 0, end: 1 }),
            (Some("bytes=3-"), Part::Range { start: 3, end: 10 }),
            (Some("bytes=-3"), Part::Range { start: 7, end: 10 }),
            (Some("bytes=-30"), Part::Range { start: 0, end: 10 }),
            (Some("bytes=9-99999999999999999999"), Part::Range { start: 9, end: 10 }),
            (Some("bytes=10-"), Part::Unsatisfiable),
            (Some("bytes=-0"), Part::Unsatisfiable),
            (Some("bytes=5-4"), Part::Whole),
            (Some("bytes=0-1,3-4"), Part::Whole),
            (Some("bytes=-"), Part::Whole),
            (Some("items=0-1"), Part::Whole),
        ] {
            assert_eq!(part(header, 10), part_of_10, "{header:?}");
        }
        assert_eq!(part(Some("bytes=0-0"), 0), Part::Unsatisfiable);
    }

    #[test]
    fn parameters() {
        let query = Some("n=5&last=a%2Fb&digest=sha256:00&empty");
        assert_eq!(parameter(query, "n").as_deref(), Some("5"));
        assert_eq!(parameter(query, "last").as_deref(), Some("a/b"));
        assert_eq!(parameter(query, "empty").as_deref(), Some(""));
        assert_eq!(parameter(query, "x"), None);
        assert_eq!(parameter(Some("n=%zz"), "n"), None);
        assert_eq!(parameter(Some("n=%2"), "n"), None);
    }

    proptest! {
        #[test]
        fn no_path_leads_out_of_the_directory(path in "/v2/[a-z./%0-9_-]{0,40}/(manifests|blobs|tags/list|blobs/uploads|referrers)/?[a-zA-Z./%0-9:_-]{0,40}") {
            match Resource::parse(&path) {
                Ok(Resource::Manifest(name, pick)) => {
                    prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '_'])));
                    prop_assert!(!pick.to_string().starts_with('.') && !pick.to_string().contains('/'));
                }
                Ok(Resource::Tags(name) | Resource::Uploads(name)) => {
                    prop_assert!(name.as_str().split('/').all(|part| !part.is_empty() && !part.starts_with(['.', '_'])));
                }
                _ => {}
            }
        }

        #[test]
        fn a_range_is_inside(header in "bytes=[0-9]{0,4}-[0-9]{0,4}", len in 0u64..3000) {
            if let Part::Range { start, end } = part(Some(&header), len) {
                prop_assert!(start < end && end <= len);
            }
        }
    }
}
