//! Image references as users type them.
//!
//! ```text
//! [docker://][host[:port]/]name[:tag][@digest]     a registry; the default
//! oci:DIR[:NAME]                                    an OCI layout
//! oci-archive:FILE[:NAME]                           an OCI layout in a tar file; `-` is standard input or output
//! docker-archive:FILE[:NAME]                        what `docker save` writes; `-` is standard input. Only read
//! dir:DIR                                           what skopeo writes into a directory. Only read
//! ```
//! The transports are skopeo's, the shorthand is docker's: `nginx` is `docker://docker.io/library/nginx:latest`.
//! A path ends at the first colon, as in skopeo. An image that is called like a transport needs `docker://`.
//! `Display` is canonical: it parses to the same value.

use std::fmt;
use std::path::{Path, PathBuf};
use std::str::FromStr;

use format::{Digest, digest::DigestError};

use crate::limits;
use crate::names::{Host, LayoutName, NameError, RepositoryName, Tag};

/// Why a text is not a reference.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ReferenceError {
    /// The transport is known but not served.
    #[error("images in {0} are not supported yet; copy the image with skopeo to oci: or to a registry")]
    NotSupported(&'static str),
    /// Something that looks like a path.
    #[error("{0:?} looks like a path; an OCI layout is written oci:{0}")]
    Path(String),
    /// The path of a layout or archive is missing.
    #[error("{0:?} names no path")]
    NoPath(String),
    /// A part is not well-formed.
    #[error("image reference {text:?}")]
    Name {
        /// The whole reference.
        text: String,
        /// What is wrong with it.
        source: NameError,
    },
    /// The digest is not well-formed.
    #[error("image reference {text:?}")]
    Digest {
        /// The whole reference.
        text: String,
        /// What is wrong with it.
        source: DigestError,
    },
    /// Longer than any image's name.
    #[error("an image reference has at most {} bytes", limits::REFERENCE)]
    TooLong,
}

/// Where an image is.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Reference {
    /// In a registry.
    Registry(ImageName),
    /// In an OCI layout: a directory.
    Layout(LayoutPath),
    /// In an OCI layout inside a plain tar file.
    Archive(LayoutPath),
    /// In a tar file that `docker save` wrote; its names are those that images have there, `app:v1`.
    Docker(LayoutPath),
    /// In a directory that skopeo wrote: one image.
    Dir(PathBuf),
}

/// An image in a registry. It has a tag or a digest or both; the digest decides.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct ImageName {
    host: Host,
    repository: RepositoryName,
    tag: Option<Tag>,
    digest: Option<Digest>,
}

impl ImageName {
    /// Returns the registry.
    pub fn host(&self) -> &Host {
        &self.host
    }

    /// Returns the repository.
    pub fn repository(&self) -> &RepositoryName {
        &self.repository
    }

    /// Returns the tag, `latest` where nothing was said.
    pub fn tag(&self) -> Option<&Tag> {
        self.tag.as_ref()
    }

    /// Returns the digest, where one was given: such a reference can never come to mean another image.
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    fn parse(text: &str) -> Result<Self, ReferenceError> {
        let name = |source| ReferenceError::Name { text: text.into(), source };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => {
                let digest =
                    digest.parse().map_err(|source| ReferenceError::Digest { text: text.into(), source })?;
                (rest, Some(digest))
            }
            None => (text, None),
        };
        // A colon after the last slash begins a tag; one before it, a port.
        let path = rest.rfind('/').map_or(0, |slash| slash + 1);
        let (rest, tag) = match rest[path..].split_once(':') {
            Some((last, tag)) => (&rest[..path + last.len()], Some(tag.parse().map_err(name)?)),
            None => (rest, None),
        };
        // A first part is a host if it could not be a user's name. Docker also takes one in upper case for a host;
        // hosts are kept in lower case here, so `A/b` would come back from `Display` as the user a's image.
        let is_host = |first: &str| first.contains(['.', ':']) || first.eq_ignore_ascii_case("localhost");
        let (host, path) = match rest.split_once('/') {
            Some((first, path)) if is_host(first) => (first.parse().map_err(name)?, path.to_owned()),
            _ => (Host::docker_hub(), rest.to_owned()),
        };
        let (host, path) = match host.as_str() {
            "docker.io" | "index.docker.io" | "registry-1.docker.io" => {
                let official = !path.is_empty() && !path.contains('/');
                (Host::docker_hub(), if official { format!("library/{path}") } else { path })
            }
            _ => (host, path),
        };
        let repository = path.parse().map_err(name)?;
        let tag = tag.or_else(|| digest.is_none().then(Tag::latest));
        Ok(Self { host, repository, tag, digest })
    }
}

impl fmt::Display for ImageName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.host, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

/// A layout and the name of an image in it; without one, the layout's only image is meant.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct LayoutPath {
    path: PathBuf,
    name: Option<LayoutName>,
}

impl LayoutPath {
    /// Returns the directory or file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Says whether it is no file but standard input or output, for an archive.
    pub fn is_standard(&self) -> bool {
        self.path == Path::new("-")
    }

    /// Returns the name of the image inside.
    pub fn name(&self) -> Option<&LayoutName> {
        self.name.as_ref()
    }

    fn parse(text: &str, rest: &str) -> Result<Self, ReferenceError> {
        let (path, name) = rest.split_once(':').map_or((rest, None), |(path, name)| (path, Some(name)));
        if path.is_empty() {
            return Err(ReferenceError::NoPath(text.into()));
        }
        let name = name.map(str::parse).transpose();
        let name = name.map_err(|source| ReferenceError::Name { text: text.into(), source })?;
        Ok(Self { path: path.into(), name })
    }
}

impl fmt::Display for LayoutPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.path.display())?;
        match &self.name {
            Some(name) => write!(f, ":{name}"),
            None => Ok(()),
        }
    }
}

impl Reference {
    /// Returns the digest where the reference has one.
    pub fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Registry(image) => image.digest(),
            _ => None,
        }
    }

    /// Returns the file or directory, if that is where the image is.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Registry(_) => None,
            Self::Layout(place) | Self::Archive(place) | Self::Docker(place) => Some(place.path()),
            Self::Dir(path) => Some(path),
        }
    }

    /// Says whether the image comes from standard input, or goes to standard output.
    pub fn is_standard(&self) -> bool {
        matches!(self, Self::Archive(place) | Self::Docker(place) if place.is_standard())
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;
    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        if text.len() > limits::REFERENCE {
            return Err(ReferenceError::TooLong);
        }
        if let Some(image) = text.strip_prefix("docker://") {
            return ImageName::parse(image).map(Self::Registry);
        }
        match text.split_once(':') {
            Some(("oci", rest)) => return LayoutPath::parse(text, rest).map(Self::Layout),
            Some(("oci-archive", rest)) => return LayoutPath::parse(text, rest).map(Self::Archive),
            Some(("docker-archive", rest)) => return LayoutPath::parse(text, rest).map(Self::Docker),
            Some(("docker-daemon", _)) => return Err(ReferenceError::NotSupported("docker-daemon:")),
            Some(("containers-storage", _)) => {
                return Err(ReferenceError::NotSupported("containers-storage:"));
            }
            Some(("dir", "")) => return Err(ReferenceError::NoPath(text.into())),
            Some(("dir", rest)) => return Ok(Self::Dir(rest.into())),
            _ => {}
        }
        if text.starts_with(['.', '/', '~']) {
            return Err(ReferenceError::Path(text.into()));
        }
        ImageName::parse(text).map(Self::Registry)
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Registry(image) => write!(f, "docker://{image}"),
            Self::Layout(layout) => write!(f, "oci:{layout}"),
            Self::Archive(layout) => write!(f, "oci-archive:{layout}"),
            Self::Docker(layout) => write!(f, "docker-archive:{layout}"),
            Self::Dir(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEX: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";

    #[test]
    fn what_users_type() {
        for (typed, canonical) in [
            ("nginx", "docker://docker.io/library/nginx:latest"),
            ("docker://nginx", "docker://docker.io/library/nginx:latest"),
            ("nginx:1.27", "docker://docker.io/library/nginx:1.27"),
            ("docker.io/nginx", "docker://docker.io/library/nginx:latest"),
            ("index.docker.io/library/nginx", "docker://docker.io/library/nginx:latest"),
            ("registry-1.docker.io/a/b", "docker://docker.io/a/b:latest"),
            ("user/app", "docker://docker.io/user/app:latest"),
            ("localhost/app", "docker://localhost/app:latest"),
            ("localhost:5000/app:v1", "docker://localhost:5000/app:v1"),
            ("127.0.0.1:5000/a/b/c", "docker://127.0.0.1:5000/a/b/c:latest"),
            ("[::1]:5000/a", "docker://[::1]:5000/a:latest"),
            ("Example.ORG/a", "docker://example.org/a:latest"),
            ("LOCALHOST/a", "docker://localhost/a:latest"),
            ("oci/app", "docker://docker.io/oci/app:latest"),
            ("docker://oci:x", "docker://docker.io/library/oci:x"),
            ("oci:dir", "oci:dir"),
            ("oci:/a/b:tag", "oci:/a/b:tag"),
            ("oci:./b:docker.io/library/nginx:1", "oci:./b:docker.io/library/nginx:1"),
            ("oci-archive:f.tar", "oci-archive:f.tar"),
            ("oci-archive:f.tar:v1", "oci-archive:f.tar:v1"),
            ("docker-archive:f.tar:a/b:v1", "docker-archive:f.tar:a/b:v1"),
            ("dir:a:b", "dir:a:b"),
        ] {
            assert_eq!(typed.parse::<Reference>().unwrap().to_string(), canonical, "{typed}");
        }
        let Reference::Registry(both) = format!("a.example/b:c@{HEX}").parse().unwrap() else { panic!() };
        assert_eq!((both.tag().unwrap().as_str(), both.digest().unwrap()), ("c", &Digest::of(b"")));
        let Reference::Registry(pinned) = format!("nginx@{HEX}").parse().unwrap() else { panic!() };
        assert_eq!(pinned.tag(), None, "a digest needs no tag");
        assert_eq!(pinned.to_string(), format!("docker.io/library/nginx@{HEX}"));
    }

    #[test]
    fn what_is_refused_says_why() {
        for (typed, part) in [
            ("docker-daemon:x", "docker-daemon: are not supported yet"),
            ("dir:", "names no path"),
            ("./app", "oci:./app"),
            ("/srv/app", "oci:/srv/app"),
            ("oci:", "names no path"),
            ("oci::tag", "names no path"),
        ] {
            let error = typed.parse::<Reference>().unwrap_err().to_string();
            assert!(error.contains(part), "{typed}: {error}");
        }
        let long = "a/".repeat(5000);
        for typed in [
            "",
            "Nginx",
            "A/0",
            "a b",
            "a:",
            ":a",
            "a@",
            "a@sha256:00",
            "a@sha512:00",
            "localhost:5000",
            "localhost/",
            "a/b:c/d",
            "a:b:c",
            "docker://",
            "http://a.example/b",
            "docker://docker.io/",
            "oci:d:",
            "oci:d:/x",
            &long,
        ] {
            match typed.parse::<Reference>() {
                Err(_) => {}
                Ok(reference) => assert_eq!(typed, "localhost:5000", "{typed}: {reference}"),
            }
        }
    }

    proptest! {
        #[test]
        fn canonical_form_is_a_fixed_point(
            host in "([a-z]{1,8}\\.[a-z]{2,3}|localhost)(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,4}){0,2}(/[a-z0-9]{1,6}){0,3}",
            tag in prop::option::of("[A-Za-z0-9_][A-Za-z0-9._-]{0,20}"),
            digest in any::<Option<[u8; 32]>>(),
        ) {
            let mut text = format!("{host}/{path}");
            if let Some(tag) = &tag { text += &format!(":{tag}"); }
            if let Some(raw) = digest { text += &format!("@{}", Digest::from_bytes(raw)); }
            let reference: Reference = text.parse().unwrap();
            prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference.clone());
            let Reference::Registry(image) = &reference else { panic!() };
            prop_assert_eq!(image.host().as_str(), host);
            prop_assert_eq!(image.digest().copied(), digest.map(Digest::from_bytes));
        }

        #[test]
        fn any_text_is_refused_or_stable(text in "\\PC{0,40}|[a-z:/@.\\[\\]-]{0,30}|(oci|docker|dir|oci-archive|docker-archive):[a-z:/@.]{0,20}") {
            if let Ok(reference) = text.parse::<Reference>() {
                prop_assert_eq!(reference.to_string().parse::<Reference>().unwrap(), reference);
            }
        }
    }
}
