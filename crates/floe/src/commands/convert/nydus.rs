//! Layers of Nydus, and the one on top of them.

use std::collections::{BTreeMap, HashMap};
use std::io::Read;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};

use convert::recode::nydus::{Blob, Packing, Parts, Toc, compare, compare_merged, merge, pack_in_order};
use convert::recode::{self, First};
use format::{DiffId, Digest};
use registry::{Draft, LAYER_TAIL, LayerBlob, Recode, RecodeError, Recoded, TopLayer};

use super::super::optimize::Orders;
use super::{expected, in_order};

const _: () = assert!(LAYER_TAIL == Toc::TAIL);

/// Makes blobs of layers, and remembers what the layer on top is made of.
#[derive(Debug)]
pub(super) struct Packer {
    level: Option<i32>,
    orders: Arc<Orders>,
    /// By the digests of blobs. Held for a look only.
    parts: Mutex<HashMap<Digest, Arc<Parts>>>,
    /// Where the parts are of layers that are looked at. Likewise.
    tables: Mutex<HashMap<Digest, Toc>>,
}

impl Packer {
    pub(super) fn new(level: Option<i32>, orders: Arc<Orders>) -> Result<Self, recode::RecodeError> {
        let packer = Self { level, orders, parts: Mutex::default(), tables: Mutex::default() };
        packer.packing(0, 1).check()?;
        Ok(packer)
    }

    fn packing(&self, blob_size: u64, threads: usize) -> Packing {
        Packing { level: self.level, blob_size, threads }
    }

    fn keep(&self, blob: Digest, parts: Parts) {
        self.parts.lock().unwrap_or_else(PoisonError::into_inner).insert(blob, Arc::new(parts));
    }

    fn parts(&self, blob: &Digest) -> Result<Arc<Parts>, RecodeError> {
        let parts = self.parts.lock().unwrap_or_else(PoisonError::into_inner).get(blob).cloned();
        parts.ok_or_else(|| failed(std::io::Error::other(format!("nothing is known of layer {blob}"))))
    }

    /// Does something with what is known of layers.
    fn stack<T>(
        &self,
        layers: &[Digest],
        work: impl FnOnce(&[(Digest, &Parts)]) -> Result<T, recode::RecodeError>,
    ) -> Result<T, RecodeError> {
        let parts = layers.iter().map(|layer| self.parts(layer)).collect::<Result<Vec<_>, _>>()?;
        let stack: Vec<_> = layers.iter().zip(&parts).map(|(layer, parts)| (*layer, &**parts)).collect();
        work(&stack).map_err(told)
    }
}

impl Recode for Packer {
    fn order(&self, layer: &DiffId) -> Option<Digest> {
        self.orders.files(layer).map(First::digest)
    }

    fn recode(
        &self,
        layer: &LayerBlob,
        threads: usize,
        blob: &mut dyn Read,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        let packing = self.packing(layer.size, threads);
        let made = in_order(self.orders.files(&layer.diff_id), false, |order| {
            pack_in_order(blob, &expected(layer), &packing, order, out)
        })?;
        let made = made.map_err(told)?;
        self.keep(made.digest, made.parts);
        let (digest, size) = (made.digest, made.size);
        Ok(Recoded { digest, size, diff_id: DiffId::new(digest), annotations: BTreeMap::new() })
    }

    fn compare(
        &self,
        (layer, one): (&LayerBlob, &mut (dyn Read + Send)),
        (made, other): (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let parts = self.parts(&made.digest)?;
        let blob = Blob { bytes: other, digest: made.digest, size: made.size, parts: &parts };
        let compared = in_order(self.orders.files(&layer.diff_id), false, |order| {
            compare(one, &expected(layer), layer.size, order, blob)
        })?;
        compared.map_err(told)
    }

    fn wants(&self, made: &LayerBlob, tail: &[u8]) -> Result<Range<u64>, RecodeError> {
        let toc = Toc::read(tail, made.size).map_err(failed)?;
        let range = toc.range();
        self.tables.lock().unwrap_or_else(PoisonError::into_inner).insert(made.digest, toc);
        Ok(range)
    }

    fn recall(&self, made: &LayerBlob, part: &[u8]) -> Result<(), RecodeError> {
        let toc = self.tables.lock().unwrap_or_else(PoisonError::into_inner).get(&made.digest).cloned();
        let toc = toc.ok_or_else(|| failed(std::io::Error::other("its table was not read")))?;
        let parts = toc.parts(part).map_err(failed)?;
        parts.check().map_err(failed)?;
        self.keep(made.digest, parts);
        Ok(())
    }

    fn top(&self, layers: &[Digest]) -> Result<TopLayer, RecodeError> {
        let merged = self.stack(layers, merge)?;
        Ok(TopLayer { blob: merged.blob.into(), diff_id: merged.diff_id })
    }

    fn compare_top(
        &self,
        layers: &[Digest],
        (top, there): (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        self.stack(layers, |stack| compare_merged(there, &expected(top), top.size, stack))
    }
}

/// Says which errors are about what is in a layer.
fn told(error: recode::RecodeError) -> RecodeError {
    use recode::nydus::NydusError::{Bootstrap, Tree};
    match error {
        recode::RecodeError::Nydus(Tree(_) | Bootstrap(_)) => RecodeError::Inexpressible(error.to_string()),
        error => super::told(error),
    }
}

fn failed(error: impl std::error::Error + Send + Sync + 'static) -> RecodeError {
    RecodeError::Failed(Arc::new(error))
}
