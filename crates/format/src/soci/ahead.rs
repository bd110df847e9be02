//! What whoever made a SOCI index says to fetch first: spans, by their numbers in the zTOC.
//!
//! A hint: wrong ones cost bytes and nothing else. Source: awslabs/soci-snapshotter, `soci/prefetch.go`, `docs/prefetch.md`.

use serde::Deserialize;

use super::SociError;
use super::flat::Flat;
use super::ztoc::Ztoc;
use crate::layer::Layer;

/// Media type of such a list.
pub const AHEAD: &str = "application/vnd.amazon.soci.prefetch.v1+json";

/// The version that is read.
const VERSION: &str = "1.0";

#[derive(Deserialize)]
struct List {
    version: String,
    prefetch_spans: Vec<Spans>,
}

/// From one number to another, that included. What is to come earlier has the lower priority.
#[derive(Deserialize)]
struct Spans {
    start_span: usize,
    end_span: usize,
    #[serde(default)]
    priority: i64,
}

/// Returns the segments of a layer that lie in the spans of such a list, in its order, each once; `ztoc` is what the layer's
/// index was made of.
pub fn segments(list: &[u8], ztoc: &[u8], layer: &Layer) -> Result<Vec<u32>, SociError> {
    let mut list: List = serde_json::from_slice(list).map_err(SociError::Ahead)?;
    if list.version != VERSION {
        let version: String = list.version.chars().take(20).collect();
        return Err(SociError::Unsupported(format!("a list of what to fetch first of version {version:?}")));
    }
    list.prefetch_spans.sort_by_key(|spans| spans.priority);
    let flat = Flat::new(ztoc);
    let spans = Ztoc::open(&flat, layer.source().size)?.spans;
    if list.prefetch_spans.len() > spans.len() {
        // Whoever merges what touches has no more.
        let limit = spans.len() as u64;
        return Err(SociError::TooLarge { what: "the list of what to fetch first", limit });
    }
    let mut unread = vec![true; spans.len()];
    let mut ahead = Ahead { layer, absent: vec![true; layer.segments() as usize], segments: Vec::new() };
    for Spans { start_span, end_span, .. } in list.prefetch_spans {
        let end = spans.len().min(end_span.saturating_add(1));
        for n in start_span..end {
            if std::mem::take(&mut unread[n]) {
                ahead.span(spans[n].begin);
            }
        }
    }
    Ok(ahead.segments)
}

struct Ahead<'a> {
    layer: &'a Layer,
    /// Which segments are not among those below.
    absent: Vec<bool>,
    segments: Vec<u32>,
}

impl Ahead<'_> {
    /// Adds what lies in the span that begins here.
    fn span(&mut self, begin: u64) {
        let (layer, size) = (self.layer, self.layer.layout().segment_size());
        let pieces = layer.pieces().unwrap_or_default(); // ascending
        let chunks = pieces.partition_point(|piece| piece.begin < begin)
            ..pieces.partition_point(|piece| piece.begin <= begin);
        for cut in layer.layout().cuts().get(chunks).unwrap_or_default() {
            for segment in size.of(cut.start)..=size.of(cut.end() - 1) {
                if self.absent.get_mut(segment as usize).is_some_and(std::mem::take) {
                    self.segments.push(segment);
                }
            }
        }
    }
}
