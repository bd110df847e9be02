//! Indexes, metadata images and start-up profiles: whole files, named by what they describe.
//!
//! All are checked when they are opened, so a changed bit costs the file and is never served. An index carries
//! its own checksum. A metadata image lies beside a record of its length and BLAKE3 (`meta/<key>.sum`) because
//! the kernel mounts the image itself, which must not end in bytes of ours. The sum is written first: an image
//! without one is not used.

use std::fmt;
use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};

use format::index::Index;
use format::{Digest, IndexId, limits};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

use crate::error::StoreError;
use crate::fs::read_whole;
use crate::record::{self, Kind};
use crate::refs::RefLayer;
use crate::store::{Pin, Store};

/// Raised when the writer of metadata images makes other bytes of the same layers.
const META_VERSION: u32 = 2;

/// Profiles: some 100,000 reads of 40 bytes.
const PROFILE: u64 = 4 << 20;

const SUM: u64 = 4096;

/// The identity of the metadata image of a stack of layers.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MetaKey([u8; 32]);

impl MetaKey {
    /// Returns the key of the tree of layers as a reference has them, bottom first.
    pub fn of_layers(layers: &[RefLayer]) -> Self {
        Self::of(&layers.iter().map(|layer| layer.index).collect::<Vec<_>>())
    }

    /// Returns the key for these layers, bottom first.
    pub fn of(layers: &[IndexId]) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("floe metadata image key v1");
        hasher.update(&META_VERSION.to_le_bytes());
        for layer in layers {
            hasher.update(layer.as_bytes());
        }
        Self(*hasher.finalize().as_bytes())
    }

    /// Returns the key of the tree of one layer by itself, its whiteouts shown.
    pub fn apart(layer: IndexId) -> Self {
        let mut hasher = blake3::Hasher::new_derive_key("floe metadata image key v1, of a layer apart");
        hasher.update(&META_VERSION.to_le_bytes());
        hasher.update(layer.as_bytes());
        Self(*hasher.finalize().as_bytes())
    }

    fn path(&self) -> PathBuf {
        Path::new("meta").join(self.to_string())
    }
}

impl fmt::Display for MetaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&IndexId::from_bytes(self.0).hex())
    }
}

impl fmt::Debug for MetaKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "meta:{self}")
    }
}

/// A metadata image whose bytes have just been checked.
#[derive(Debug)]
pub struct MetaImage {
    /// The image, open for reading. Never written again; it may be mapped.
    pub file: File,
    /// Its length in bytes.
    pub len: u64,
    /// Its path, for mounting.
    pub path: PathBuf,
}

#[derive(Serialize, Deserialize)]
struct Sum {
    len: u64,
    blake3: String,
}

impl Store {
    /// Keeps an index; the pin keeps it from `gc` until a reference names it.
    pub fn put_index(self: &Arc<Self>, index: &Index) -> Result<Pin, StoreError> {
        let pin = Pin::new(self, index.id());
        self.replace(&index_path(index.id()), &[&index.encode()])?;
        Ok(pin)
    }

    /// Returns a layer's index, or nothing.
    pub fn index(&self, id: IndexId) -> Result<Option<Index>, StoreError> {
        let path = index_path(id);
        let Some(bytes) = self.whole(&path, limits::INDEX)? else { return Ok(None) };
        let index = Index::decode(&bytes)
            .map_err(|error| StoreError::damaged(&self.path(&path), error.to_string()))?;
        if index.id() != id {
            return Err(StoreError::damaged(&self.path(&path), format!("it is the index {}", index.id())));
        }
        Ok(Some(index))
    }

    /// Keeps a metadata image. It can be made again and is checked when it is opened, so the disk is not waited for.
    pub fn put_meta(&self, key: MetaKey, image: &[u8]) -> Result<(), StoreError> {
        let sum = Sum { len: image.len() as u64, blake3: blake3::hash(image).to_hex().to_string() };
        self.replace_soon(&sum_path(key), &[&record::encode(Kind::Meta, &record::json(&sum))])?;
        self.replace_soon(&key.path(), &[image])
    }

    /// Returns a metadata image, or nothing: one that is damaged is removed, for it can be made again.
    pub fn meta(&self, key: MetaKey) -> Result<Option<MetaImage>, StoreError> {
        let path = key.path();
        let failed = |error| StoreError::io("reading", &self.path(&path), error);
        let file = match self.disk().open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file.map_err(failed)?,
        };
        let len = file.metadata().map_err(failed)?.len();
        let sum = match record::read(self, Kind::Meta, &sum_path(key), SUM) {
            Err(StoreError::Damaged { .. }) => None,
            sum => sum?,
        };
        let sum = sum.and_then(|sum| serde_json::from_slice::<Sum>(&sum).ok());
        let right = match sum {
            Some(sum) if sum.len == len => {
                self.hash(&file, len).map_err(failed)?.to_hex().as_str() == sum.blake3
            }
            _ => false,
        };
        if !right {
            tracing::warn!(path = %self.path(&path).display(), "a metadata image is damaged and will be made again");
            self.remove_durably(&path)?;
            self.remove_durably(&sum_path(key))?;
            return Ok(None);
        }
        Ok(Some(MetaImage { file, len, path: self.path(&path) }))
    }

    /// Keeps the start-up profile of the image with this manifest.
    pub fn put_profile(&self, manifest: Digest, profile: &[u8]) -> Result<(), StoreError> {
        let path = profile_path(manifest);
        if profile.len() as u64 > PROFILE {
            return Err(StoreError::damaged(
                &self.path(&path),
                format!("{} bytes are too many", profile.len()),
            ));
        }
        record::write(self, Kind::Profile, &path, &[manifest.as_bytes(), profile].concat())
    }

    /// Returns the start-up profile of the image with this manifest, or nothing.
    pub fn profile(&self, manifest: Digest) -> Result<Option<Vec<u8>>, StoreError> {
        let path = profile_path(manifest);
        let Some(mut body) = record::read(self, Kind::Profile, &path, 32 + PROFILE)? else { return Ok(None) };
        if body.get(..32) != Some(manifest.as_bytes()) {
            return Err(StoreError::damaged(&self.path(&path), "it belongs to another image"));
        }
        Ok(Some(body.split_off(32)))
    }

    /// Removes the start-up profile of the image with this manifest.
    pub fn remove_profile(&self, manifest: Digest) -> Result<(), StoreError> {
        self.remove_durably(&profile_path(manifest))
    }

    fn whole(&self, path: &Path, limit: u64) -> Result<Option<Vec<u8>>, StoreError> {
        match read_whole(self.disk(), path, limit) {
            Ok(bytes) => Ok(Some(bytes)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) if error.kind() == io::ErrorKind::InvalidData => {
                Err(StoreError::damaged(&self.path(path), error.to_string()))
            }
            Err(error) => Err(StoreError::io("reading", &self.path(path), error)),
        }
    }

    fn hash(&self, file: &File, len: u64) -> io::Result<blake3::Hash> {
        let mut hasher = blake3::Hasher::new();
        let mut buf = vec![0; 256 << 10];
        let mut at = 0;
        while at < len {
            let n = usize::try_from(len - at).map_or(buf.len(), |rest| rest.min(buf.len()));
            crate::fs::read_exact(self.disk(), file, &mut buf[..n], at)?;
            hasher.update(&buf[..n]);
            at += n as u64;
        }
        Ok(hasher.finalize())
    }
}

/// Returns where an index is kept.
pub(crate) fn index_path(id: IndexId) -> PathBuf {
    Path::new("index").join(id.hex())
}

fn sum_path(key: MetaKey) -> PathBuf {
    Path::new("meta").join(format!("{key}.sum"))
}

fn profile_path(manifest: Digest) -> PathBuf {
    Path::new("profile").join(manifest.hex())
}
