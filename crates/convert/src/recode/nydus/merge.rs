//! The tree of an image, and the layer that holds it.

use std::collections::{HashMap, HashSet};
use std::io::Read;

use format::nydus::boot_file;
use format::nydus::bootstrap::{Blob as Said, Bootstrap};
use format::nydus::disk::{features, names};
use format::nydus::layer::{Contents, Layer};
use format::nydus::write::{Blob, Files, bootstrap};
use format::tar::{Member, MemberKind, write_header};
use format::tree::{Builder, Runs, Time, Xattrs};
use format::unpack::whole;
use format::{DiffId, Digest, limits};

use super::super::{RecodeError, Recoded, Recoding, Target, recode};
use super::hold::hold;
use super::{NydusError, Parts};
use crate::Expected;
use crate::inflow::Magic;

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
    // Nobody is made to read more than is read here.
    if tar.len() as u64 > limits::BOOTSTRAP {
        return Err(too_long());
    }
    let diff_id = DiffId::new(Digest::of(&tar));
    let mut blob = Vec::new();
    let size = tar.len() as u64;
    let recoding = Recoding { target: Target::Gzip, level: None, blob_size: size, threads: 1 };
    let expected = Expected { blob: Digest::of(&tar), diff_id };
    let Recoded { digest, .. } = recode(&tar[..], &expected, &recoding, &mut blob)?;
    Ok(Merged { blob, digest, diff_id })
}

fn too_long() -> RecodeError {
    RecodeError::Limit { what: "the bootstrap of the image, in bytes,", limit: limits::BOOTSTRAP }
}

const BLOCK: usize = 4096;
const _: () = assert!(BLOCK as u64 == limits::BLOCK);

/// Compares the layer on top of others, of this length, with what their blobs say, as a reader of images finds it: the tree that
/// they amount to, and where each chunk of each file is.
pub fn compare_merged(
    top: impl Read,
    expected: &Expected,
    size: u64,
    layers: &[(Digest, &Parts)],
) -> Result<(), RecodeError> {
    let tar = top_tar(top, expected, size)?;
    Ok(has_layers(boot_file(&tar).map_err(NydusError::from)?, layers)?)
}

/// Returns the tar that the layer on top of others is, of this length and with these digests.
pub(super) fn top_tar(top: impl Read, expected: &Expected, size: u64) -> Result<Vec<u8>, RecodeError> {
    let mut blob = Vec::new();
    top.take(size.min(limits::BOOTSTRAP) + 1).read_to_end(&mut blob).map_err(RecodeError::Read)?;
    let found = Digest::of(&blob);
    if blob.len() as u64 != size || found != expected.blob {
        return Err(RecodeError::BlobDigest { expected: expected.blob, found });
    }
    let tar = whole(Magic::codec(&blob), &blob, limits::BOOTSTRAP)?.ok_or_else(too_long)?;
    let found = DiffId::new(Digest::of(&tar));
    if found != expected.diff_id {
        return Err(RecodeError::DiffId { expected: expected.diff_id, found });
    }
    Ok(tar)
}

/// Holds a bootstrap against what the blobs of its layers say.
fn has_layers(bootstrap: &[u8], layers: &[(Digest, &Parts)]) -> Result<(), NydusError> {
    let bootstrap = Bootstrap::open(bootstrap)?;
    let Together { tree, blobs, files, digests } = together(layers)?;
    // A blob that has a bootstrap in it says so there only. It lists itself if a file is left that has chunks in it: an entry of
    // the tar may take the place of an earlier one.
    let mut own = Vec::new();
    for (digest, parts) in layers {
        let of = Bootstrap::of_blob(&parts.bootstrap[..], *digest)?;
        own.extend(
            of.blobs()
                .first()
                .map(|blob| Said { features: blob.features & !features::BOOTSTRAP, ..blob.clone() }),
        );
    }
    let is_own = |blob: &Said| own.contains(blob);
    if !bootstrap.blobs().iter().all(is_own) {
        return Err(NydusError::Differs("the list of blobs".into()));
    }
    hold((tree.tree(), &HashSet::new()), &bootstrap, |file, n, chunk| {
        let row = || {
            let files = files.get(usize::from(file.layer.0))?;
            let Runs::Whole(first) = file.runs else { return None };
            let number = files.chunks.get(usize::try_from(first.checked_add(n)?).ok()?)?;
            let rows = &blobs.get(files.blob)?.chunks;
            let at = rows.binary_search_by_key(number, |row| row.number.get()).ok()?;
            Some((digests.get(files.blob)?, rows.get(at)?))
        };
        let blob = bootstrap.blobs().get(usize::from(chunk.blob));
        row().zip(blob).zip(chunk.piece).is_some_and(|(((digest, row), blob), piece)| {
            let end = row.packed_offset.get() + u64::from(row.packed_size.get());
            blob.id == *digest
                && (chunk.number, chunk.len, chunk.id.0)
                    == (row.number.get(), row.plain_size.get(), row.digest)
                && (piece.begin, piece.end, piece.skip) == (row.packed_offset.get(), end, 0)
        })
    })
}

fn of_layers(layers: &[(Digest, &Parts)]) -> Result<Vec<u8>, NydusError> {
    let Together { tree, blobs, files, .. } = together(layers)?;
    Ok(bootstrap(tree.tree(), &blobs, &files, &HashSet::new())?)
}

/// What layers amount to.
struct Together {
    tree: Builder,
    /// Each once, and its digest.
    blobs: Vec<Blob>,
    digests: Vec<Digest>,
    /// Of each layer.
    files: Vec<Files>,
}

fn together(layers: &[(Digest, &Parts)]) -> Result<Together, NydusError> {
    let mut tree = Builder::new();
    let (mut blobs, mut digests, mut files) = (Vec::new(), Vec::new(), Vec::new());
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
                digests.push(*digest);
                blobs.len() - 1
            }),
            None => 0, // it has no chunks either
        };
        files.push(Files { blob, chunks, ahead });
    }
    Ok(Together { tree, blobs, digests, files })
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
