//! The embedded registry's directory. Everything here blocks.
//!
//! ```text
//! VERSION                                            "1\n"; a program that does not know it must not write
//! blobs/sha256/<hex>                                 content, shared by all repositories, as in an OCI layout
//! repositories/<name>/_blobs/<hex>                   empty: the repository has this blob
//! repositories/<name>/_manifests/<hex>               media type of the manifest
//! repositories/<name>/_tags/<tag>                    digest of the manifest
//! repositories/<name>/_referrers/<subject>/<hex>     descriptor of a manifest with that subject
//! uploads/<id>                                       blobs on their way; emptied at the start
//! ```
//! No part of a repository's name begins with `_`, so names and our directories cannot meet. Every file is
//! written under another name, made durable, then renamed. Deletion removes names; content stays, because others
//! may have it too.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Read};
use std::path::{Path, PathBuf};

use bytes::Bytes;
use format::{Digest, limits as sizes};

use crate::client::Pick;
use crate::error::Error;
use crate::layout::replace;
use crate::manifest::{Descriptor, ImageIndex, Manifest};
use crate::names::{RepositoryName, Tag};
use crate::referrers::referrer;

const VERSION: &str = "1\n";

/// An opened directory.
#[derive(Debug)]
pub(super) struct Storage {
    root: PathBuf,
}

/// Why a request cannot be met.
#[derive(Debug)]
pub(super) enum Refusal {
    BlobUnknown,
    ManifestUnknown,
    NameUnknown,
    ManifestInvalid(String),
    /// The manifest names something that the repository lacks.
    ManifestBlobUnknown(Digest),
    DigestInvalid(String),
    Failed(Error),
}

impl From<Error> for Refusal {
    fn from(error: Error) -> Self {
        Self::Failed(error)
    }
}

impl Storage {
    pub(super) fn open(root: &Path) -> Result<Self, Error> {
        let doing = |error| Error::io(format!("opening the registry directory {}", root.display()), error);
        fs::create_dir_all(root).map_err(doing)?;
        match fs::read_to_string(root.join("VERSION")) {
            Ok(text) if text == VERSION => {}
            Ok(text) => {
                let why = format!("version {:.20}, this program knows 1", text.trim());
                return Err(Error::Unsupported { what: root.display().to_string(), why });
            }
            Err(error) if error.kind() == ErrorKind::NotFound => {
                replace(root, "VERSION", VERSION.as_bytes())?
            }
            Err(error) => return Err(doing(error)),
        }
        let uploads = root.join("uploads");
        match fs::remove_dir_all(&uploads) {
            Err(error) if error.kind() != ErrorKind::NotFound => return Err(doing(error)),
            _ => {}
        }
        for dir in [uploads, root.join("blobs/sha256"), root.join("repositories")] {
            fs::create_dir_all(dir).map_err(doing)?;
        }
        Ok(Self { root: root.into() })
    }

    pub(super) fn uploads(&self) -> PathBuf {
        self.root.join("uploads")
    }

    fn repository(&self, name: &RepositoryName) -> PathBuf {
        self.root.join("repositories").join(name.as_str())
    }

    fn content(&self, digest: &Digest) -> PathBuf {
        self.root.join("blobs/sha256").join(digest.hex())
    }

    /// Opens a blob of a repository.
    pub(super) fn blob(&self, name: &RepositoryName, digest: &Digest) -> Result<(File, u64), Refusal> {
        if !exists(&self.repository(name).join("_blobs").join(digest.hex()))? {
            return Err(Refusal::BlobUnknown);
        }
        let doing = |error| Error::io(format!("opening blob {digest}"), error);
        let file = File::open(self.content(digest)).map_err(doing)?;
        let len = file.metadata().map_err(doing)?.len();
        Ok((file, len))
    }

    /// Gives a finished upload its name. Its digest was checked and its bytes are durable.
    pub(super) fn adopt(&self, name: &RepositoryName, digest: &Digest, upload: &Path) -> Result<(), Error> {
        let doing = |error| Error::io(format!("storing blob {digest}"), error);
        let target = self.content(digest);
        fs::rename(upload, &target).map_err(doing)?;
        sync_dir(&self.root.join("blobs/sha256")).map_err(doing)?;
        self.link(name, digest)
    }

    /// Takes a blob over from another repository, if that has it.
    pub(super) fn mount(
        &self,
        name: &RepositoryName,
        digest: &Digest,
        from: &RepositoryName,
    ) -> Result<bool, Refusal> {
        match self.blob(from, digest) {
            Ok(_) => Ok(self.link(name, digest).map(|()| true)?),
            Err(Refusal::BlobUnknown) => Ok(false),
            Err(other) => Err(other),
        }
    }

    fn link(&self, name: &RepositoryName, digest: &Digest) -> Result<(), Error> {
        let dir = self.repository(name).join("_blobs");
        self.create(&dir)?;
        replace(&dir, &digest.hex(), b"")
    }

    fn create(&self, dir: &Path) -> Result<(), Error> {
        fs::create_dir_all(dir).map_err(|error| Error::io(format!("creating {}", dir.display()), error))
    }

    /// Returns a manifest.
    pub(super) fn manifest(&self, name: &RepositoryName, pick: &Pick) -> Result<Manifest, Refusal> {
        let dir = self.repository(name);
        let digest = match pick {
            Pick::Digest(digest) => *digest,
            Pick::Tag(tag) => {
                let text = text(&dir.join("_tags").join(tag.as_str()))?.ok_or(Refusal::ManifestUnknown)?;
                text.trim()
                    .parse()
                    .map_err(|_| Error::invalid(format!("tag {name}:{tag}"), "damaged on disk"))?
            }
        };
        let media_type = text(&dir.join("_manifests").join(digest.hex()))?.ok_or(Refusal::ManifestUnknown)?;
        let doing = |error| Error::io(format!("reading manifest {digest}"), error);
        let mut bytes = Vec::new();
        let file = File::open(self.content(&digest)).map_err(doing)?;
        file.take(sizes::MANIFEST).read_to_end(&mut bytes).map_err(doing)?;
        // Checked on the way out too: a damaged disk must not be passed on.
        Ok(Manifest::verify(
            bytes.into(),
            Some(&digest),
            Some(media_type.trim()),
            &format!("manifest {digest}"),
        )?)
    }

    /// Stores a manifest. Returns it, and the digest of its subject.
    pub(super) fn put_manifest(
        &self,
        name: &RepositoryName,
        pick: &Pick,
        media_type: Option<&str>,
        bytes: Bytes,
    ) -> Result<(Manifest, Option<Digest>), Refusal> {
        let invalid = |error: Error| Refusal::ManifestInvalid(error.to_string());
        let digest = Digest::of(&bytes);
        if pick.digest().is_some_and(|wanted| *wanted != digest) {
            return Err(Refusal::DigestInvalid(format!("the manifest has digest {digest}")));
        }
        let manifest = Manifest::verify(bytes, None, media_type, "manifest").map_err(invalid)?;
        if media_type.is_some_and(|said| said != manifest.media_type) {
            return Err(Refusal::ManifestInvalid(format!("its media type is {}", manifest.media_type)));
        }
        let dir = self.repository(name);
        if manifest.is_index() {
            for entry in manifest.index("manifest").map_err(invalid)?.descriptors() {
                if !exists(&dir.join("_manifests").join(entry.digest.hex()))? {
                    return Err(Refusal::ManifestBlobUnknown(entry.digest));
                }
            }
        } else {
            let parsed = manifest.image("manifest").map_err(invalid)?;
            for part in
                std::iter::once(&parsed.config).chain(&parsed.layers).filter(|part| part.urls.is_empty())
            {
                if !exists(&dir.join("_blobs").join(part.digest.hex()))? {
                    return Err(Refusal::ManifestBlobUnknown(part.digest));
                }
            }
        }
        let referrer = referrer(&manifest, "manifest").map_err(invalid)?;
        replace(&self.root.join("blobs/sha256"), &digest.hex(), &manifest.bytes)?;
        self.create(&dir.join("_manifests"))?;
        replace(&dir.join("_manifests"), &digest.hex(), manifest.media_type.as_bytes())?;
        if let Some((subject, entry)) = &referrer {
            let list = dir.join("_referrers").join(subject.hex());
            self.create(&list)?;
            let text =
                serde_json::to_vec(entry).map_err(|error| Error::io("writing a referrer", error.into()))?;
            replace(&list, &digest.hex(), &text)?;
        }
        if let Pick::Tag(tag) = pick {
            self.create(&dir.join("_tags"))?;
            replace(&dir.join("_tags"), tag.as_str(), digest.to_string().as_bytes())?;
        }
        Ok((manifest, referrer.map(|(subject, _)| subject)))
    }

    /// Removes a tag, or a manifest with all its tags.
    pub(super) fn delete_manifest(&self, name: &RepositoryName, pick: &Pick) -> Result<(), Refusal> {
        let dir = self.repository(name);
        let digest = match pick {
            Pick::Tag(tag) => return remove(&dir.join("_tags").join(tag.as_str()), Refusal::ManifestUnknown),
            Pick::Digest(digest) => digest,
        };
        let subject = match self.manifest(name, pick) {
            Ok(manifest) => referrer(&manifest, "manifest").ok().flatten().map(|(subject, _)| subject),
            Err(Refusal::Failed(_)) => None, // damaged; it can be removed all the same
            Err(other) => return Err(other),
        };
        for tag in self.tags(name)? {
            let path = dir.join("_tags").join(tag.as_str());
            if text(&path)?.is_some_and(|text| text.trim() == digest.to_string()) {
                remove(&path, Refusal::ManifestUnknown)?;
            }
        }
        if let Some(subject) = subject {
            let entry = dir.join("_referrers").join(subject.hex()).join(digest.hex());
            match remove(&entry, Refusal::ManifestUnknown) {
                Ok(()) | Err(Refusal::ManifestUnknown) => {}
                Err(other) => return Err(other),
            }
        }
        remove(&dir.join("_manifests").join(digest.hex()), Refusal::ManifestUnknown)
    }

    /// Removes a blob from a repository.
    pub(super) fn delete_blob(&self, name: &RepositoryName, digest: &Digest) -> Result<(), Refusal> {
        remove(&self.repository(name).join("_blobs").join(digest.hex()), Refusal::BlobUnknown)
    }

    /// Returns the tags of a repository, sorted.
    pub(super) fn tags(&self, name: &RepositoryName) -> Result<Vec<Tag>, Refusal> {
        let dir = self.repository(name);
        if !exists(&dir.join("_manifests"))? && !exists(&dir.join("_blobs"))? {
            return Err(Refusal::NameUnknown);
        }
        let mut tags: Vec<Tag> =
            names(&dir.join("_tags"))?.iter().filter_map(|tag| tag.parse().ok()).collect();
        tags.sort();
        Ok(tags)
    }

    /// Returns the manifests whose subject is this one.
    pub(super) fn referrers(
        &self,
        name: &RepositoryName,
        subject: &Digest,
        kind: Option<&str>,
    ) -> Result<ImageIndex, Refusal> {
        let dir = self.repository(name).join("_referrers").join(subject.hex());
        let mut list = ImageIndex::empty();
        let mut entries = names(&dir)?;
        entries.sort();
        for entry in entries {
            let Some(text) = text(&dir.join(&entry))? else { continue };
            let Ok(descriptor) = serde_json::from_str::<Descriptor>(&text) else { continue };
            if kind.is_none_or(|kind| descriptor.artifact_type.as_deref() == Some(kind)) {
                list.put(&descriptor, |_| false);
            }
        }
        Ok(list)
    }

    /// Returns all repositories that hold a manifest, sorted.
    pub(super) fn repositories(&self) -> Result<Vec<RepositoryName>, Error> {
        let mut found = Vec::new();
        let mut open = vec![String::new()];
        while let Some(prefix) = open.pop() {
            for part in names(&self.root.join("repositories").join(&prefix))? {
                let name = if prefix.is_empty() { part.clone() } else { format!("{prefix}/{part}") };
                match name.parse::<RepositoryName>() {
                    Ok(_) => open.push(name),
                    Err(_) if part == "_manifests" => found.extend(prefix.parse::<RepositoryName>().ok()),
                    Err(_) => {}
                }
            }
        }
        found.sort();
        Ok(found)
    }
}

fn exists(path: &Path) -> Result<bool, Error> {
    path.try_exists().map_err(|error| Error::io(format!("looking for {}", path.display()), error))
}

/// Reads a small file of ours.
fn text(path: &Path) -> Result<Option<String>, Error> {
    crate::hosts::read(path)
}

/// The names in a directory; none if it does not exist. Drafts of files being written are left out.
fn names(dir: &Path) -> Result<Vec<String>, Error> {
    let doing = |error| Error::io(format!("listing {}", dir.display()), error);
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            return Ok(Vec::new());
        }
        Err(error) => return Err(doing(error)),
    };
    let names: io::Result<Vec<_>> = entries.map(|entry| Ok(entry?.file_name().into_string())).collect();
    let names = names.map_err(doing)?.into_iter().filter_map(Result::ok);
    Ok(names.filter(|name| !name.starts_with('.')).collect())
}

fn remove(path: &Path, missing: Refusal) -> Result<(), Refusal> {
    match fs::remove_file(path) {
        Ok(()) => {
            let dir = path.parent().unwrap_or(path);
            Ok(sync_dir(dir).map_err(|error| Error::io(format!("removing {}", path.display()), error))?)
        }
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Err(missing),
        Err(error) => Err(Error::io(format!("removing {}", path.display()), error).into()),
    }
}

fn sync_dir(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}
