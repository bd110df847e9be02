//! One layer of all layers of an image: what its bootstrap says, with the chunks that are in all of its blobs.
//!
//! For images whose blobs do not each become a layer again ([`apart`]): blobs without a bootstrap of their own, files with
//! bytes in other blobs than their layer's (chunk dictionaries), layers whose blob the image lacks because it has no bytes. The bootstrap
//! decides about every byte, and so does its digest.
//!
//! All blobs that the bootstrap names are in a file first, one after the other, each with its digest.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read, Write};
use std::ops::Range;

use format::index::BlobAt;
use format::name::printable;
use format::nydus::boot_file;
use format::nydus::bootstrap::Bootstrap;
use format::{DiffId, Digest, DigestHasher, limits};

use super::super::tree_tar::keep;
use super::super::{RecodeError, Recoded, Recoding, source};
use super::back::{self, Source, alone, layer, refuse_ordinary};
use super::merge::top_tar;
use super::shown::Shown;
use super::{NydusError, PartsError};
use crate::Expected;
use crate::builder::read_all;

/// Opens a range of one of an image's layers; what was opened before is not read any more.
pub type Open<'a> = dyn FnMut(&Digest, Range<u64>) -> Box<dyn Read> + 'a;

/// The layers of an image of Nydus, where they are.
pub struct Stored<'a, 'o> {
    /// What the layer with the tree must turn out to be.
    pub top: Expected,
    /// Its length.
    pub top_size: u64,
    /// The other ones.
    pub blobs: &'a [BlobAt],
    /// Reads them.
    pub open: &'a mut Open<'o>,
}

/// Says why the layers of an image cannot be made of its blobs one by one, if they cannot: together they must show what
/// the image does.
pub fn apart(mut stored: Stored<'_, '_>) -> Result<Option<String>, RecodeError> {
    let tar = stored.tree()?;
    let image = Bootstrap::open(boot_file(&tar).map_err(NydusError::from)?).map_err(NydusError::from)?;
    image.blobs().iter().try_for_each(refuse_ordinary)?;
    let (mut whole, mut layers) = (Shown::default(), Shown::default());
    whole.add(&image)?;
    for blob in stored.blobs {
        match add(&mut layers, blob, &mut *stored.open) {
            Ok(()) => {}
            Err(RecodeError::Nydus(error)) => return Ok(Some(format!("layer {}: {error}", blob.digest))),
            Err(RecodeError::Inexpressible { why, .. }) => {
                return Ok(Some(format!("layer {}: {why}", blob.digest)));
            }
            Err(error) => return Err(error),
        }
    }
    let differs = |path| format!("the layers of its blobs do not show what the image does: {path}");
    Ok(layers.difference(&whole).map(differs))
}

/// Adds the layer that a blob says it is.
fn add(layers: &mut Shown, at: &BlobAt, open: &mut Open<'_>) -> Result<(), RecodeError> {
    let bytes = back::bootstrap(at.size, limits::BOOTSTRAP, |range| {
        let len = range.end.saturating_sub(range.start);
        let mut bytes = Vec::new();
        open(&at.digest, range).take(len).read_to_end(&mut bytes).map_err(RecodeError::Read)?;
        match bytes.len() as u64 == len {
            true => Ok(bytes),
            false => Err(NydusError::from(PartsError::Place("bootstrap")).into()),
        }
    })?;
    let layer = Bootstrap::of_blob(&bytes[..], at.digest).map_err(NydusError::from)?;
    alone(&layer, &at.digest)?;
    Ok(layers.add(&layer)?)
}

/// Makes one layer of an image. `file` is where the blobs go meanwhile.
pub fn together(
    stored: Stored<'_, '_>,
    recoding: &Recoding,
    file: &File,
    out: impl Write + Send,
) -> Result<Recoded, RecodeError> {
    stored.brought(file, |image, source| layer(image, source, recoding, out))
}

/// Makes the tar of an image again, and compares it with the layer that is there. `made` is what that must turn out to be, its
/// length, and its bytes.
pub fn compare_together(
    stored: Stored<'_, '_>,
    file: &File,
    (made, size, there): (Expected, u64, impl Read),
) -> Result<(), RecodeError> {
    let top = stored.top.blob;
    let again = stored.brought(file, |image, source| back::tar(image, source, |_| Ok(())))?;
    let (mut source, mut hasher) = (source::Source::new(size), DigestHasher::new());
    let mut each = |plain: &[u8]| {
        hasher.update(plain);
        Ok(())
    };
    read_all(there, RecodeError::Read, |piece| source.push(piece, &mut each))?;
    let found = source.finish(&mut each)?;
    if found != made.blob {
        return Err(RecodeError::BlobDigest { expected: made.blob, found });
    }
    let tar = hasher.finish();
    if tar == again && made.diff_id == DiffId::new(again) {
        return Ok(());
    }
    Err(NydusError::Other { layer: found, blob: top }.into())
}

impl Stored<'_, '_> {
    /// Returns the tar with the tree.
    fn tree(&mut self) -> Result<Vec<u8>, RecodeError> {
        let top = (self.open)(&self.top.blob, 0..self.top_size);
        top_tar(top, &self.top, self.top_size)
    }

    /// Does something with the tree once all blobs that it names are in the file.
    fn brought<T>(
        mut self,
        file: &File,
        work: impl FnOnce(&Bootstrap<&[u8]>, &Source<'_>) -> Result<T, RecodeError>,
    ) -> Result<T, RecodeError> {
        let tar = self.tree()?;
        let image = Bootstrap::open(boot_file(&tar).map_err(NydusError::from)?).map_err(NydusError::from)?;
        image.blobs().iter().try_for_each(refuse_ordinary)?;
        let needed = image.blobs().iter().filter(|blob| blob.needs_meta()).map(|blob| blob.meta.plain);
        if needed.fold(0, u64::saturating_add) > limits::CONTENTS {
            return Err(RecodeError::Limit { what: "the tables of its blobs", limit: limits::CONTENTS });
        }
        let used = used(&image)?;
        let (mut source, mut at) = (Source::new(file), 0_u64);
        for (n, blob) in (0..).zip(image.blobs()) {
            if !used.contains(&n) {
                source.add_none(blob);
                continue;
            }
            let there = self.blobs.iter().find(|there| there.digest == blob.id);
            let BlobAt { digest, size } = *there.ok_or(NydusError::Missing(blob.id))?;
            let end = at.saturating_add(size);
            if end > limits::LAYER {
                return Err(RecodeError::Limit { what: "the blobs of the image", limit: limits::LAYER });
            }
            keep((self.open)(&digest, 0..size), digest, size, file, at)?;
            source.add(blob, at..end)?;
            at = end;
        }
        work(&image, &source)
    }
}

/// Returns the numbers of the blobs that files have chunks in: before any is fetched, the whole tree is read. A name that readers of
/// layers take for a whiteout is a file here, and no layer can have it.
fn used<B: AsRef<[u8]>>(image: &Bootstrap<B>) -> Result<BTreeSet<u16>, RecodeError> {
    let list = image.list().map_err(NydusError::from)?;
    let mut used = BTreeSet::new();
    for n in 0..list.len() {
        let path = list.member(n).map_err(NydusError::from)?.path;
        if path.rsplit(|byte| *byte == b'/').next().is_some_and(|name| name.starts_with(b".wh.")) {
            let why = "it has the name of a whiteout, and is none";
            return Err(RecodeError::Inexpressible { what: printable(&path), why });
        }
        for chunk in list.chunks(n).map_err(NydusError::from)? {
            used.insert(chunk.map_err(NydusError::from)?.blob);
        }
    }
    Ok(used)
}
