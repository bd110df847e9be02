//! The directories that skopeo, buildah and podman call `dir:` (containers/image, `directory/`), seen as OCI layouts.
//!
//! `manifest.json` is an image's manifest or a list; each other manifest is `<hex>.manifest.json`, each blob `<hex>`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::blob_name;
use crate::error::Error;
use crate::manifest::{ImageIndex, Manifest};

/// Returns the list that a layout would have, and the manifest that it names.
pub(crate) fn shown(manifest: Result<Bytes, Error>, what: &str) -> Result<HashMap<String, Bytes>, Error> {
    let no_image =
        "no image of skopeo's: it has no manifest.json; the files of a root filesystem are not an image";
    let bytes = manifest.map_err(|error| match error {
        Error::NotFound { .. } => Error::invalid(what, no_image),
        other => other,
    })?;
    let manifest = Manifest::verify(bytes, None, None, what)?;
    let mut index = ImageIndex::empty();
    index.put(&manifest.descriptor(), |_| false);
    let index = serde_json::to_vec(&index).map_err(|error| Error::invalid(what, error.to_string()))?;
    Ok(HashMap::from([("index.json".into(), index.into()), (blob_name(&manifest.digest), manifest.bytes)]))
}

/// Returns the file that has what a layout has under a name.
pub(super) fn path(dir: &Path, name: &str) -> PathBuf {
    let name = name.strip_prefix("blobs/sha256/").unwrap_or(name);
    let manifest = dir.join(format!("{name}.manifest.json"));
    if manifest.exists() { manifest } else { dir.join(name) }
}
