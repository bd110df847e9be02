//! The tree of an image, and the layer that holds it.

use std::collections::{HashMap, HashSet};

use format::nydus::disk::{features, names};
use format::nydus::layer::{Contents, Layer};
use format::nydus::write::{Blob, Files, bootstrap};
use format::tar::{Member, MemberKind, write_header};
use format::tree::{Builder, Time, Xattrs};
use format::{DiffId, Digest, limits};

use super::super::{RecodeError, Recoded, Recoding, Target, recode};
use super::{NydusError, Parts};
use crate::Expected;

/// The layer that holds the bootstrap of an image.
#[derive(Debug, Clone)]
pub struct Merged {
    /// The tar.gz.
    pub blob: Vec<u8>,
    /// Its digest.
    pub digest: Digest,
    /// The digest of the tar.
    pub diff_id: DiffId,
}

/// Makes the bootstrap of an image of what its blobs say of its layers, bottom first.
pub fn merge(layers: &[(Digest, &Parts)]) -> Result<Merged, RecodeError> {
    let bootstrap = of_layers(layers)?;
    let mut tar = Vec::new();
    member(&mut tar, "image", None);
    member(&mut tar, &format!("image/{}", names::BOOTSTRAP), Some(&bootstrap));
    let mut there = HashSet::new();
    for (digest, parts) in layers {
        if !parts.meta.is_empty() && there.insert(digest) {
            // As nydusd has it in its cache.
            let mut meta = parts.meta.clone();
            meta.resize(meta.len().next_multiple_of(BLOCK), 0);
            meta.extend_from_slice(&parts.meta_header);
            member(&mut tar, &format!("image/{}.{}", digest.hex(), names::META), Some(&meta));
        }
    }
    tar.resize(tar.len() + 1024, 0);
    let diff_id = DiffId::new(Digest::of(&tar));
    let mut blob = Vec::new();
    let size = tar.len() as u64;
    let recoding = Recoding { target: Target::Gzip, level: None, blob_size: size, threads: 1 };
    let expected = Expected { blob: Digest::of(&tar), diff_id };
    let Recoded { digest, .. } = recode(&tar[..], &expected, &recoding, &mut blob)?;
    Ok(Merged { blob, digest, diff_id })
}

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == limits::BLOCK);

fn of_layers(layers: &[(Digest, &Parts)]) -> Result<Vec<u8>, NydusError> {
    let mut tree = Builder::new();
    let (mut blobs, mut files) = (Vec::new(), Vec::new());
    // A layer may be there twice, and two layers may have the same files.
    let mut numbers = HashMap::new();
    for (digest, parts) in layers {
        tree.layer()?;
        let layer = Layer::open(&parts.bootstrap)?;
        let Contents { chunks, ahead } =
            layer.members::<NydusError>(|member, runs| Ok(tree.member(member, runs)?))?;
        let blob = match layer.blob() {
            Some(blob) => *numbers.entry(*digest).or_insert_with(|| {
                blobs.push(named(blob, digest));
                blobs.len() - 1
            }),
            None => 0, // it has no chunks either
        };
        files.push(Files { blob, chunks, ahead });
    }
    Ok(bootstrap(tree.tree(), &blobs, &files, &HashSet::new())?)
}

/// Returns a blob under its name: in its own bootstrap it has none.
fn named(blob: &Blob, digest: &Digest) -> Blob {
    let mut blob = blob.clone();
    // A digest has 64 digits.
    blob.row.id.iter_mut().zip(digest.hex().bytes()).for_each(|(out, digit)| *out = digit);
    blob.row.features = (blob.row.features.get() & !features::BOOTSTRAP).into();
    blob
}

/// Appends a directory, or a file with these bytes.
fn member(tar: &mut Vec<u8>, path: &str, bytes: Option<&[u8]>) {
    let member = Member {
        path: path.as_bytes().into(),
        kind: if bytes.is_some() { MemberKind::File } else { MemberKind::Dir },
        mode: if bytes.is_some() { 0o444 } else { 0o755 },
        uid: 0,
        gid: 0,
        mtime: Time::default(),
        xattrs: Xattrs::default(),
        plain: 0,
        payload: bytes.map_or(0, |bytes| bytes.len() as u64),
    };
    write_header(&member, tar);
    tar.extend_from_slice(bytes.unwrap_or_default());
    tar.resize(tar.len().next_multiple_of(512), 0);
}
