//! Parts of a layer that are read while they arrive: what is made of them is done about when their last byte is here.

use std::ops::Range;
use std::time::Instant;

use anyhow::anyhow;
use registry::{Priority, Source};

use super::Engine;
use super::found::Place;
use super::line::Line;
use super::pipe::Pipe;

/// Where a part of a layer is, and who hears how long it took.
#[derive(Clone, Copy)]
pub(super) struct Part<'a> {
    pub(super) source: &'a Source,
    pub(super) place: &'a Place,
    pub(super) line: &'a Line,
}

impl Engine {
    /// Reads a part of a layer as it arrives, unchecked; whoever reads has bounded it, and knows a digest.
    pub(super) fn read_part<T>(
        &self,
        Part { source, place, line }: Part<'_>,
        range: Range<u64>,
        read: impl FnOnce(Pipe) -> T,
    ) -> anyhow::Result<T> {
        let (end, pipe) = Pipe::wide(); // how long the bytes took is told, and not how long it took to read them
        let is_empty = range.is_empty();
        let receive = move || {
            let (begun, mut received) = (Instant::now(), 0);
            self.net.hand_on(source, &place.blob, place.size, range, Priority::Demand, |piece| {
                received += piece.len() as u64;
                end.send(piece)
            })?;
            line.seen(received, begun.elapsed());
            anyhow::Ok(())
        };
        std::thread::scope(|scope| {
            let receiving = (!is_empty).then(|| scope.spawn(receive));
            let made = read(pipe);
            // The network's error explains the reader's, which only saw the bytes end.
            let received = receiving.map_or(Ok(Ok(())), |receiving| receiving.join());
            received.map_err(|_| anyhow!("a thread ended unexpectedly"))??;
            Ok(made)
        })
    }
}
