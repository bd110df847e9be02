//! Decoders that stand inside a span, waiting for somebody to want what comes next.
//!
//! Losing one costs a reader the beginning of the span once more, never a byte.

use std::collections::VecDeque;
use std::ops::Range;
use std::sync::Arc;

use format::decode::SpanDecoder;
use format::layer::Layer;

/// Decoders that wait at most: some 100 KB each. A start reads on in what it has begun, or never comes back.
const PLACES: usize = 64;

/// The decoders, the one that has waited longest first. Each goes on in the blob of its own layer's table: one
/// identity may come with several, so the layer counts and not its name.
#[derive(Default)]
pub(crate) struct Parked(VecDeque<(Arc<Layer>, u32, SpanDecoder)>);

impl Parked {
    /// Keeps a decoder that stands before a segment.
    pub(crate) fn put(&mut self, layer: &Arc<Layer>, next: u32, decoder: SpanDecoder) {
        self.0.retain(|(of, segment, _)| !(Arc::ptr_eq(of, layer) && *segment == next));
        if self.0.len() == PLACES {
            self.0.pop_front();
        }
        self.0.push_back((Arc::clone(layer), next, decoder));
    }

    /// Returns the decoder that stands before one of these segments, as far on as there is one.
    pub(crate) fn take(&mut self, layer: &Arc<Layer>, next: Range<u32>) -> Option<SpanDecoder> {
        let stands =
            |(of, segment, _): &&(Arc<Layer>, u32, _)| Arc::ptr_eq(of, layer) && next.contains(segment);
        let furthest = self.0.iter().filter(stands).map(|(_, segment, _)| *segment).max()?;
        let at = self.0.iter().position(|(of, segment, _)| Arc::ptr_eq(of, layer) && *segment == furthest)?;
        self.0.remove(at).map(|(_, _, decoder)| decoder)
    }

    /// Forgets the decoders of a layer that is out of use.
    pub(crate) fn forget(&mut self, layer: &Arc<Layer>) {
        self.0.retain(|(of, _, _)| !Arc::ptr_eq(of, layer));
    }
}
