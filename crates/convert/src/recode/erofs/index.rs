//! From the image of a layer to an index of it, and to segments that can be kept: no other blob is made, only what a start
//! needs.

use std::fs::File;
use std::io::Read;

use format::erofs::index::{MakeError, Whose, layer as layer_of};
use format::erofs::read::LayerFiles;
use format::layer::Layer;
use format::proof::Proved;
use format::skeleton::MadeError;
use format::{DiffId, Digest};

use super::super::RecodeError;
use super::{ErofsError, kept};
use crate::{Expected, Options, Sink};

/// Makes the index of an image that is not packed, which names this table; `sink` gets every segment. `file` is where the image goes
/// meanwhile; it is empty, and nobody else changes it.
pub fn index(
    blob: impl Read,
    expected: &Expected,
    options: Options,
    table: Digest,
    file: &File,
    mut sink: impl Sink,
) -> Result<(Layer, Proved), RecodeError> {
    if expected.diff_id != DiffId::new(expected.blob) {
        // Its ranges are what is fetched, so it cannot be something else unpacked.
        let found = DiffId::new(expected.blob);
        return Err(RecodeError::DiffId { expected: expected.diff_id, found });
    }
    let map = kept(blob, expected, options.blob_size, file)?;
    // It was hashed as it came. What the file gives back is what the index is made of, and what is kept.
    let found = Digest::of(&map);
    if found != expected.blob {
        return Err(RecodeError::BlobDigest { expected: expected.blob, found });
    }
    let files = LayerFiles::open(&map).map_err(ErofsError::from)?;
    let (blob, size) = (expected.blob, options.blob_size);
    let lacks = |error: &MakeError| matches!(error, MakeError::Made(MadeError::Space(_)));
    let layer =
        options.segment.enough(lacks, |segment| layer_of(&files, &Whose { blob, size, table, segment }));
    let layer = layer.map_err(ErofsError::from)?;
    let proved = Proved::by_digests(layer.index(), blob, blob).map_err(ErofsError::from)?;
    let mut bytes = Vec::new();
    for segment in 0..layer.segments() {
        files.segment(&layer, segment, &mut bytes);
        sink(segment, &bytes).map_err(RecodeError::Write)?;
    }
    Ok((layer, proved))
}
