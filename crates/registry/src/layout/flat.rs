//! The directories that skopeo, buildah and podman call `dir:` (containers/image, `directory/`), seen as OCI layouts.
//!
//! `manifest.json` is an image's manifest or a list; each other manifest is `<hex>.manifest.json`, each blob `<hex>`.

use std::collections::HashMap;
use std::io::Read;
use std::path::{Path, PathBuf};

use bytes::Bytes;
use format::limits as sizes;

use super::blob_name;
use crate::error::Error;
use crate::manifest::{ImageIndex, Manifest};

/// Returns the list that a layout would have, and the manifest that it names.
pub(super) fn shown(dir: &Path) -> Result<HashMap<String, Bytes>, Error> {
    let what = format!("dir:{}", dir.display());
    let path = dir.join("manifest.json");
    let no_image =
        "no image of skopeo's: it has no manifest.json; the files of a root filesystem are not an image";
    let file = match std::fs::symlink_metadata(&path) {
        // Opening a pipe would block for ever.
        Ok(there) if there.is_file() => std::fs::File::open(&path),
        Ok(_) => return Err(Error::invalid(what, "manifest.json is no file")),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
            return Err(Error::invalid(what, no_image));
        }
        Err(error) => Err(error),
    };
    let mut bytes = Vec::new();
    file.and_then(|file| file.take(sizes::MANIFEST + 1).read_to_end(&mut bytes))
        .map_err(|error| Error::io(format!("reading {}", path.display()), error))?;
    let size = bytes.len() as u64;
    if size > sizes::MANIFEST {
        return Err(Error::TooLarge { what: path.display().to_string(), size, limit: sizes::MANIFEST });
    }
    let manifest = Manifest::verify(bytes.into(), None, None, &what)?;
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
