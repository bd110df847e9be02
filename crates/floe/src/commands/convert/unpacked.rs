//! Layers that are file systems, on their way to formats that are made of tars.

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::ops::Range;

use convert::recode::erofs::{ErofsError, unpack};
use convert::recode::{self};
use format::{DiffId, Digest};
use registry::{Draft, LayerBlob, Open, Recode, RecodeError, Recoded, TopLayer};

use super::{expected, spool};

/// Makes a tar of each layer that is a file system, in a file, and has that written anew.
#[derive(Debug)]
pub(super) struct Unpacked<R>(pub(super) R);

impl<R: Recode> Recode for Unpacked<R> {
    fn order(&self, layer: &DiffId) -> Option<Digest> {
        self.0.order(layer)
    }

    fn recode(
        &self,
        layer: &LayerBlob,
        threads: usize,
        blob: &mut dyn Read,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        if !layer.is_erofs() {
            return self.0.recode(layer, threads, blob, out);
        }
        let (layer, mut tar) = tar(layer, blob)?;
        self.0.recode(&layer, threads, &mut tar, out)
    }

    fn compare(
        &self,
        (layer, blob): (&LayerBlob, &mut (dyn Read + Send)),
        made: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        if !layer.is_erofs() {
            return self.0.compare((layer, blob), made);
        }
        let (layer, mut tar) = tar(layer, blob)?;
        self.0.compare((&layer, &mut tar), made)
    }

    fn wants(&self, made: &LayerBlob, tail: &[u8]) -> Result<Range<u64>, RecodeError> {
        self.0.wants(made, tail)
    }

    fn recall(&self, made: &LayerBlob, part: &[u8]) -> Result<(), RecodeError> {
        self.0.recall(made, part)
    }

    fn top(&self, layers: &[Digest]) -> Result<TopLayer, RecodeError> {
        self.0.top(layers)
    }

    fn compare_top(
        &self,
        layers: &[Digest],
        top: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        self.0.compare_top(layers, top)
    }

    fn apart(&self, layers: &[LayerBlob], open: &mut Open<'_>) -> Result<Option<String>, RecodeError> {
        self.0.apart(layers, open)
    }

    fn together(
        &self,
        layers: &[LayerBlob],
        threads: usize,
        open: &mut Open<'_>,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        self.0.together(layers, threads, open, out)
    }

    fn compare_together(
        &self,
        layers: &[LayerBlob],
        open: &mut Open<'_>,
        made: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        self.0.compare_together(layers, open, made)
    }
}

/// Returns the tar of what is in a file system, as a layer that is not packed.
fn tar(layer: &LayerBlob, blob: &mut dyn Read) -> Result<(LayerBlob, File), RecodeError> {
    let mut tar = spool()?;
    let made = unpack(blob, &expected(layer), layer.size, &spool()?, &tar).map_err(told)?;
    tar.seek(SeekFrom::Start(0)).map_err(RecodeError::Kept)?;
    let plain = LayerBlob {
        digest: made.digest,
        size: made.size,
        media_type: registry::media_type::LAYER.into(),
        diff_id: DiffId::new(made.digest),
        annotations: layer.annotations.clone(),
    };
    Ok((plain, tar))
}

/// Says which errors are about what is in a layer.
fn told(error: recode::RecodeError) -> RecodeError {
    match error {
        recode::RecodeError::Erofs(ErofsError::NoTar { .. }) => RecodeError::Inexpressible(error.to_string()),
        error => super::told(error),
    }
}
