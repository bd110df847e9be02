//! Image references: what a name stood for when it was last resolved, and all that is needed to start it.
//!
//! One record per reference, `refs/<BLAKE3 of the name>` (`record.rs` has the frame):
//!
//! ```text
//! length    u32 LE    of the JSON that follows
//! JSON                name, digests and lengths, layers
//! manifest            byte for byte, checked against its digest
//! config              likewise
//! ```
//!
//! A file each, so that damage to one costs one image (`docs/decisions/0003-refs-are-files.md`). Unlike all else
//! in the store these cannot be made again without the registry. A reference that [`Refs::put`] has returned
//! for survives any crash; one being put is there as a whole or not at all.

use std::fmt;
use std::path::{Path, PathBuf};

use format::{DiffId, Digest, IndexId, limits};
use serde::{Deserialize, Serialize};

use crate::error::StoreError;
use crate::guard;
use crate::record::{self, Kind};
use crate::store::Store;

/// Longest name: a repository of 255 bytes, a tag of 128, a digest, a platform, and as much again.
const NAME: usize = 1024;

/// JSON of a reference: 127 layers of some 400 bytes each, and as much again.
const HEADER: u64 = 128 << 10;

/// The name of an image as its user knows it: 1..=1024 bytes of text without control characters.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct RefName(String);

/// Why a text is no name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("an image's name has 1 to 1024 bytes and no control characters")]
pub struct RefNameError;

impl RefName {
    /// Returns the name with this text.
    pub fn parse(text: &str) -> Result<Self, RefNameError> {
        let good = (1..=NAME).contains(&text.len()) && !text.contains(char::is_control);
        if good { Ok(Self(text.to_owned())) } else { Err(RefNameError) }
    }

    /// Returns the text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for RefName {
    type Error = RefNameError;
    fn try_from(text: String) -> Result<Self, RefNameError> {
        Self::parse(&text)
    }
}

impl From<RefName> for String {
    fn from(name: RefName) -> Self {
        name.0
    }
}

impl fmt::Display for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl fmt::Debug for RefName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&self.0, f)
    }
}

/// A layer of a referenced image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RefLayer {
    /// The compressed blob.
    pub blob: Digest,
    /// Its length in bytes.
    pub size: u64,
    /// Its media type, as the manifest has it.
    pub media_type: String,
    /// The layer's identity in the config.
    pub diff_id: DiffId,
    /// The index it is read by.
    pub index: IndexId,
    /// True if that index had been proved against the diffID when the reference was written.
    pub proved: bool,
}

/// What an image's name stands for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ImageRef {
    /// The name.
    pub name: RefName,
    /// The digest of the manifest.
    pub manifest_digest: Digest,
    /// The digest of the manifest that the name leads to, where this image is shown in place of that one. The config is then
    /// that one's, too.
    pub original: Option<Digest>,
    /// The manifest, byte for byte.
    pub manifest: Vec<u8>,
    /// The digest of the config.
    pub config_digest: Digest,
    /// The config, byte for byte.
    pub config: Vec<u8>,
    /// The layers, bottom first.
    pub layers: Vec<RefLayer>,
}

#[derive(Serialize, Deserialize)]
struct Header {
    name: RefName,
    manifest: Part,
    /// Earlier versions pass over it, and find another manifest where they ask.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    original: Option<Digest>,
    config: Part,
    layers: Vec<RefLayer>,
}

#[derive(Serialize, Deserialize)]
struct Part {
    digest: Digest,
    len: u64,
}

/// A reference that is there and cannot be read.
#[derive(Debug)]
pub struct DamagedRef {
    /// The file's name in `refs/`, for [`Refs::remove_damaged`].
    pub file: String,
    /// What is wrong with it.
    pub error: StoreError,
}

/// The references of a store.
#[derive(Debug, Clone, Copy)]
pub struct Refs<'a> {
    store: &'a Store,
}

impl Store {
    /// Returns the references.
    pub fn refs(&self) -> Refs<'_> {
        Refs { store: self }
    }
}

impl Refs<'_> {
    /// Makes a name stand for an image, durably.
    pub fn put(&self, image: &ImageRef) -> Result<(), StoreError> {
        let path = path_of(&image.name);
        let body = encode(image).map_err(|what| StoreError::damaged(&self.store.path(&path), what))?;
        let _named = guard::read(&self.store.removal);
        record::write(self.store, Kind::Ref, &path, &body)
    }

    /// Returns what a name stands for, or nothing.
    pub fn get(&self, name: &RefName) -> Result<Option<ImageRef>, StoreError> {
        let path = path_of(name);
        let Some(image) = self.read(&path)? else { return Ok(None) };
        if image.name != *name {
            return Err(StoreError::damaged(
                &self.store.path(&path),
                format!("it is the record of {}", image.name),
            ));
        }
        Ok(Some(image))
    }

    /// Removes a name, durably; returns whether it was there. What it held is removed by `gc`.
    pub fn remove(&self, name: &RefName) -> Result<bool, StoreError> {
        self.remove_file(&path_of(name))
    }

    /// Removes a reference that cannot be read, by its file's name.
    pub fn remove_damaged(&self, damaged: &DamagedRef) -> Result<bool, StoreError> {
        self.remove_file(&Path::new("refs").join(&damaged.file))
    }

    /// Returns all references by name, and those that cannot be read.
    pub fn list(&self) -> Result<(Vec<ImageRef>, Vec<DamagedRef>), StoreError> {
        let refs = Path::new("refs");
        let entries = self.store.disk().list(refs);
        let entries = entries.map_err(|error| StoreError::io("listing", &self.store.path(refs), error))?;
        let (mut images, mut damaged) = (Vec::new(), Vec::new());
        for entry in entries {
            let path = refs.join(&entry.name);
            let read = self.read(&path).and_then(|image| match image {
                Some(image) if path_of(&image.name) != path => Err(StoreError::damaged(
                    &self.store.path(&path),
                    format!("it is the record of {}", image.name),
                )),
                image => Ok(image),
            });
            match read {
                Ok(image) => images.extend(image),
                Err(error) => {
                    damaged.push(DamagedRef { file: entry.name.to_string_lossy().into_owned(), error });
                }
            }
        }
        images.sort_by(|a, b| a.name.cmp(&b.name));
        Ok((images, damaged))
    }

    pub(crate) fn read(&self, path: &Path) -> Result<Option<ImageRef>, StoreError> {
        let limit = HEADER + 4 + limits::MANIFEST + limits::CONFIG;
        let Some(body) = record::read(self.store, Kind::Ref, path, limit)? else { return Ok(None) };
        decode(&body).map(Some).map_err(|what| StoreError::damaged(&self.store.path(path), what))
    }

    fn remove_file(&self, path: &Path) -> Result<bool, StoreError> {
        let there = match self.store.disk().open(path) {
            Ok(_) => true,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => false,
            Err(error) => return Err(StoreError::io("removing", &self.store.path(path), error)),
        };
        self.store.remove_durably(path)?;
        Ok(there)
    }
}

fn path_of(name: &RefName) -> PathBuf {
    Path::new("refs").join(file_of(name))
}

/// Returns the name of the file that is kept of a name, here and in `pins/`.
pub(crate) fn file_of(name: &RefName) -> String {
    blake3::hash(name.0.as_bytes()).to_hex().to_string()
}

pub(crate) fn encode(image: &ImageRef) -> Result<Vec<u8>, String> {
    let part = |digest: Digest, bytes: &[u8], limit: u64, what: &str| {
        let len = bytes.len() as u64;
        match Digest::of(bytes) {
            _ if len > limit => Err(format!("its {what} has {len} bytes, at most {limit} are allowed")),
            found if found != digest => Err(format!("its {what} is {found}, not {digest}")),
            _ => Ok(Part { digest, len }),
        }
    };
    let header = record::json(&Header {
        name: image.name.clone(),
        manifest: part(image.manifest_digest, &image.manifest, limits::MANIFEST, "manifest")?,
        original: image.original,
        config: part(image.config_digest, &image.config, limits::CONFIG, "config")?,
        layers: image.layers.clone(),
    });
    let len = u32::try_from(header.len())
        .ok()
        .filter(|len| u64::from(*len) <= HEADER && image.layers.len() <= limits::LAYERS);
    let len = len.ok_or_else(|| format!("its {} layers are too many", image.layers.len()))?;
    Ok([&len.to_le_bytes()[..], &header, &image.manifest, &image.config].concat())
}

pub(crate) fn decode(body: &[u8]) -> Result<ImageRef, String> {
    let (len, rest) = body.split_first_chunk().ok_or("it is too short")?;
    let len = usize::try_from(u32::from_le_bytes(*len)).map_err(|error| error.to_string())?;
    let (header, rest) = rest.split_at_checked(len).ok_or("it is too short")?;
    let header: Header = serde_json::from_slice(header).map_err(|error| error.to_string())?;
    let parts = usize::try_from(header.manifest.len).ok().and_then(|len| rest.split_at_checked(len));
    let (manifest, config) = parts.ok_or("it is too short")?;
    if Digest::of(manifest) != header.manifest.digest || Digest::of(config) != header.config.digest {
        return Err("its manifest or config does not match its digest".to_owned());
    }
    Ok(ImageRef {
        name: header.name,
        manifest_digest: header.manifest.digest,
        original: header.original,
        manifest: manifest.to_vec(),
        config_digest: header.config.digest,
        config: config.to_vec(),
        layers: header.layers,
    })
}
