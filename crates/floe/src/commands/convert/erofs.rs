//! Layers that are file systems.

use std::io::Read;
use std::sync::Arc;

use convert::recode::erofs::{ErofsError, Made, compare, image};
use convert::recode::{self};
use registry::{Draft, LayerBlob, Recode, RecodeError, Recoded};

use super::expected;
use crate::exit::misused;

/// Makes images of layers.
#[derive(Debug, Clone, Copy)]
pub(super) struct Mapper;

impl Mapper {
    pub(super) fn new(level: Option<i32>) -> anyhow::Result<Self> {
        match level {
            None => Ok(Self),
            Some(_) => Err(misused("--level: file systems are not compressed".to_owned())),
        }
    }
}

impl Recode for Mapper {
    fn recode(
        &self,
        layer: &LayerBlob,
        _threads: usize,
        blob: &mut dyn Read,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        let made = image(blob, &expected(layer), layer.size, out).map_err(told)?;
        let recode::Recoded { digest, size, diff_id, annotations } = made;
        Ok(Recoded { digest, size, diff_id, annotations })
    }

    fn compare(
        &self,
        (layer, one): (&LayerBlob, &mut (dyn Read + Send)),
        (made, other): (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let there = Made { bytes: other, digest: made.digest, size: made.size };
        compare(one, &expected(layer), layer.size, there).map_err(told)
    }
}

/// Says which errors are about what is in a layer.
fn told(error: recode::RecodeError) -> RecodeError {
    match error {
        recode::RecodeError::Limit { .. }
        | recode::RecodeError::Erofs(ErofsError::Tree(_) | ErofsError::Image(_)) => {
            RecodeError::Inexpressible(error.to_string())
        }
        error => RecodeError::Failed(Arc::new(error)),
    }
}
