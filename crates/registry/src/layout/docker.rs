//! What `docker save` and `podman save` write (`docker-archive:`), seen as the OCI layout that it would be.
//!
//! `manifest.json` lists images: a config, names, a file for each layer (Docker's image spec 1.2, "Combined Image JSON +
//! Filesystem Changeset Format"; docker/docker `image/tarexport`). Layers are plain tars, whose digests the config tells
//! as diffIDs, as claims like any other: they are compared when a layer is read. One that was compressed is hashed here.
//!
//! An image may be listed as often as there is room for its name. So each member is hashed once, and what is read and made of all
//! images is bounded together.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::os::unix::fs::FileExt;

use bytes::Bytes;
use format::{Digest, DigestHasher, limits as sizes};
use serde::Deserialize;
use serde_json::json;

use super::{NAME, blob_name, whole};
use crate::archive::Member;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, ImageIndex, Manifest, media_type};
use crate::reference::Reference;

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

/// What an entry of the list that is made takes in memory, beside its name: a value of a few members.
const ENTRY: u64 = 1024;

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<Digest>,
}

/// Gives configs and layers the names that blobs have in a layout, and returns the manifests and the list that a layout
/// would have beside them.
pub(crate) fn shown(
    file: &File,
    members: &mut HashMap<String, Member>,
    what: &str,
) -> Result<HashMap<String, Bytes>, Error> {
    let mut archive = Archive { file, what, hashed: HashMap::new(), held: 0 };
    let Some(list) = members.get("manifest.json") else {
        return Err(Error::invalid(what, "it is nothing that docker saved: it has no manifest.json"));
    };
    let list = archive.small(list, "manifest.json", sizes::MANIFEST)?;
    let saved: Vec<Saved> = archive.parse(&list, "manifest.json")?;
    let mut index = ImageIndex::empty();
    let (mut made, mut seen) = (HashMap::new(), HashSet::new());
    for image in saved.iter().take(limits::COPY_MANIFESTS) {
        let manifest = archive.manifest(image, members)?;
        let tags = image.repo_tags.as_deref().filter(|tags| !tags.is_empty());
        let names = tags.map_or(vec![None], |tags| tags.iter().map(Some).collect());
        for name in names.into_iter().filter(|name| seen.insert((manifest.digest, *name))) {
            let mut entry = manifest.descriptor();
            entry.annotations.extend(name.map(|name| (NAME.to_owned(), name.clone())));
            archive.hold(ENTRY + name.map_or(0, |name| name.len() as u64))?;
            index.manifests.push(json!(entry));
        }
        made.insert(blob_name(&manifest.digest), manifest.bytes);
    }
    let index = serde_json::to_vec(&index).map_err(|error| Error::invalid(what, error.to_string()))?;
    made.insert("index.json".into(), index.into());
    Ok(made)
}

/// Says whether two names are of one image, as docker takes them: `app` is `docker.io/library/app:latest`.
pub(super) fn same_name(own: &str, name: &str) -> bool {
    let whole = |name: &str| format!("docker://{name}").parse::<Reference>().ok();
    own == name || whole(own).is_some_and(|own| whole(name) == Some(own))
}

struct Archive<'a> {
    file: &'a File,
    what: &'a str,
    /// The digests of members, by where they are.
    hashed: HashMap<Member, Digest>,
    /// Bytes of configs, and of manifests that were made.
    held: u64,
}

impl Archive<'_> {
    /// Returns an image's manifest; what it names is found by its digest afterwards.
    fn manifest(&mut self, image: &Saved, members: &mut HashMap<String, Member>) -> Result<Manifest, Error> {
        let what = self.what;
        let find = |members: &HashMap<String, Member>, name: &str| {
            let missing =
                || Error::invalid(what, format!("it has no {name:.200}, which manifest.json names"));
            members.get(name).copied().ok_or_else(missing)
        };
        let member = find(members, &image.config)?;
        self.hold(member.len)?;
        let bytes = self.small(&member, &image.config, sizes::CONFIG)?;
        let config: Config = self.parse(&bytes, &image.config)?;
        let diff_ids = &config.rootfs.diff_ids;
        if diff_ids.len() != image.layers.len() || diff_ids.len() > sizes::LAYERS {
            let why =
                format!("{} has {} diffIDs for {} layers", image.config, diff_ids.len(), image.layers.len());
            return Err(Error::invalid(self.what, why));
        }
        let mut layers = Vec::new();
        for (name, diff_id) in image.layers.iter().zip(diff_ids) {
            let member = find(members, name)?;
            let (kind, digest) = self.layer(&member, name, diff_id)?;
            members.insert(blob_name(&digest), member);
            layers.push(Descriptor::new(kind, digest, member.len));
        }
        let digest = Digest::of(&bytes);
        members.insert(blob_name(&digest), member);
        let manifest = json!({
            "schemaVersion": 2,
            "mediaType": media_type::MANIFEST,
            "config": Descriptor::new(media_type::CONFIG, digest, member.len),
            "layers": layers,
        });
        let manifest = manifest.to_string();
        self.hold(manifest.len() as u64)?;
        Manifest::verify(manifest.into(), None, Some(media_type::MANIFEST), self.what)
    }

    fn hold(&mut self, more: u64) -> Result<(), Error> {
        self.held = self.held.saturating_add(more);
        if self.held <= limits::COPY_BYTES {
            return Ok(());
        }
        let (what, size) = (format!("all images of {}", self.what), self.held);
        Err(Error::TooLarge { what, size, limit: limits::COPY_BYTES })
    }

    /// Returns what a layer is, and its digest.
    fn layer(
        &mut self,
        member: &Member,
        name: &str,
        diff_id: &Digest,
    ) -> Result<(&'static str, Digest), Error> {
        let mut magic = [0; 4];
        if member.len >= 4 {
            self.file.read_exact_at(&mut magic, member.offset).map_err(|error| self.failed(name, error))?;
        }
        Ok(match magic {
            [0x1f, 0x8b, ..] => (media_type::LAYER_GZIP, self.hashed(member, name)?),
            [0x28, 0xb5, 0x2f, 0xfd] => (media_type::LAYER_ZSTD, self.hashed(member, name)?),
            _ => (media_type::LAYER, *diff_id),
        })
    }

    fn hashed(&mut self, member: &Member, name: &str) -> Result<Digest, Error> {
        if let Some(digest) = self.hashed.get(member) {
            return Ok(*digest);
        }
        let mut hasher = DigestHasher::new();
        let mut piece = vec![0; usize::try_from(limits::PIECE).unwrap_or(usize::MAX)];
        let mut done = 0;
        while done < member.len {
            let len = usize::try_from(member.len - done).unwrap_or(usize::MAX).min(piece.len());
            let piece = &mut piece[..len];
            let read = self.file.read_exact_at(piece, member.offset + done);
            read.map_err(|error| self.failed(name, error))?;
            hasher.update(piece);
            done += len as u64;
        }
        let digest = hasher.finish();
        self.hashed.insert(*member, digest);
        Ok(digest)
    }

    fn small(&self, member: &Member, name: &str, limit: u64) -> Result<Bytes, Error> {
        whole(self.file, member, limit, format!("{name:.200} in {}", self.what))
    }

    fn parse<T: serde::de::DeserializeOwned>(&self, bytes: &[u8], name: &str) -> Result<T, Error> {
        serde_json::from_slice(bytes)
            .map_err(|error| Error::invalid(self.what, format!("{name:.200}: {error}")))
    }

    fn failed(&self, name: &str, error: std::io::Error) -> Error {
        Error::io(format!("reading {name:.200} in {}", self.what), error)
    }
}
