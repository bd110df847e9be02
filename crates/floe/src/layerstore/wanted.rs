//! What a path asks for: `base64(IMAGE)/DIGEST`, the image as its user names it.

use std::ffi::OsStr;
use std::fmt;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use format::Digest;
use mount::fuse::names::LayerName;
use store::Snapshot;

use super::{IMAGE, os};

/// A layer of an image.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) struct Wanted {
    /// The image, as its directory names it.
    pub(super) image: String,
    /// The image, as everything here names it.
    pub(super) reference: String,
    /// The layer's blob.
    pub(super) blob: Digest,
}

impl Wanted {
    /// Returns what the names of directories ask for, if they make sense.
    pub(super) fn of(name: &LayerName) -> Option<Self> {
        let blob = name.layer.to_str()?.parse().ok()?;
        Some(Self { image: name.image.to_str()?.to_owned(), reference: reference(&name.image)?, blob })
    }

    /// Returns what a record is of.
    pub(super) fn of_record(record: &Snapshot) -> Option<Self> {
        let lazy = record.lazy.as_ref()?;
        let image = record.labels.get(IMAGE)?.clone();
        Some(Self { image, reference: lazy.reference.clone(), blob: lazy.layer.blob })
    }

    /// Returns the names of its directories.
    pub(super) fn name(&self) -> LayerName {
        LayerName { image: os(&self.image), layer: os(&self.blob.to_string()) }
    }
}

/// What its record is called.
impl fmt::Display for Wanted {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} {}", self.reference, self.blob)
    }
}

/// Returns the image that the name of a directory says, as everything here names it.
pub(super) fn reference(image: &OsStr) -> Option<String> {
    let name = String::from_utf8(BASE64.decode(image.as_encoded_bytes()).ok()?).ok()?;
    // Never a path: a file of this machine is nobody's image.
    let parsed: registry::Reference = format!("docker://{name}").parse().ok()?;
    Some(parsed.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(image: &str, layer: &str) -> LayerName {
        LayerName { image: os(&BASE64.encode(image)), layer: os(layer) }
    }

    #[test]
    fn paths_are_understood_and_nothing_else_is() {
        let blob = Digest::of(b"layer");
        let good = name("registry.example:5000/a/b:v1", &blob.to_string());
        let wanted = Wanted::of(&good).unwrap();
        assert_eq!(wanted.reference, "docker://registry.example:5000/a/b:v1");
        assert_eq!(wanted.blob, blob);
        assert_eq!(wanted.name(), good);
        assert_eq!(wanted.to_string(), format!("docker://registry.example:5000/a/b:v1 {blob}"));
        for (image, layer) in [
            ("registry.example/a:v1", "sha256:1"),
            ("registry.example/a:v1", "diff"),
            ("Not An Image", &*blob.to_string()),
            ("", &*blob.to_string()),
        ] {
            assert_eq!(Wanted::of(&name(image, layer)), None, "{image} {layer}");
        }
        let raw = |image: &str| LayerName { image: os(image), layer: os(&blob.to_string()) };
        assert_eq!(Wanted::of(&raw("registry.example")), None, "no base64");
        assert_eq!(Wanted::of(&raw(".Trash-1000")), None);
    }
}
