//! Contents of layers, read through the store: what is missing is fetched first.

use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use format::IndexId;
use store::{SegmentFile, Segments};

use super::Engine;

/// Reads segments of layers that are in use, mostly one after the other.
pub(super) struct Contents<'e> {
    engine: &'e Engine,
    /// The segment that was read last: neighbours share it.
    last: Option<((IndexId, u32), Arc<SegmentFile>)>,
}

impl<'e> Contents<'e> {
    pub(super) fn new(engine: &'e Engine) -> Self {
        Self { engine, last: None }
    }

    /// Fills a buffer with what a segment holds from an offset on.
    pub(super) fn read(
        &mut self,
        index: IndexId,
        segment: u32,
        offset: u64,
        buffer: &mut [u8],
    ) -> anyhow::Result<()> {
        let file =
            self.segment(index, segment).with_context(|| format!("fetching segment {segment} of {index}"))?;
        let read = file.file.read_exact_at(buffer, offset);
        read.with_context(|| format!("reading segment {segment} of {index}"))
    }

    fn segment(&mut self, index: IndexId, segment: u32) -> anyhow::Result<Arc<SegmentFile>> {
        if let Some((last, file)) = &self.last
            && *last == (index, segment)
            && !file.is_withdrawn()
        {
            return Ok(file.clone());
        }
        let deadline = Instant::now() + self.engine.config.fetch.deadline();
        let file = self.engine.through.fetch(index, segment, deadline)?;
        self.last = Some(((index, segment), file.clone()));
        Ok(file)
    }
}
