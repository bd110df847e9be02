//! The body of an answer: bytes in memory, or a range of a file sent at the shared rate.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};

use bytes::Bytes;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;

use super::handle::Registry;

/// Pieces read ahead of the network.
const AHEAD: usize = 2;

/// What is sent.
#[derive(Debug)]
pub(super) struct ReplyBody {
    pieces: mpsc::Receiver<io::Result<Bytes>>,
    left: u64,
}

impl ReplyBody {
    /// Sends bytes; if the registry has a rate, at that rate.
    pub(super) fn bytes(registry: &Arc<Registry>, bytes: Bytes) -> Self {
        if bytes.is_empty() {
            return Self { pieces: mpsc::channel(1).1, left: 0 };
        }
        let left = bytes.len() as u64;
        let (sender, pieces) = mpsc::channel(AHEAD);
        let registry = Arc::clone(registry);
        tokio::spawn(async move {
            let mut rest = bytes;
            while !rest.is_empty() {
                let len = usize::try_from(registry.shaper().piece()).unwrap_or(usize::MAX).min(rest.len());
                registry.shaper().take(len as u64).await;
                registry.counters().bytes_sent.fetch_add(len as u64, Relaxed);
                if sender.send(Ok(rest.split_to(len))).await.is_err() {
                    return;
                }
            }
        });
        Self { pieces, left }
    }

    /// Sends a range of a file.
    pub(super) fn file(registry: &Arc<Registry>, file: File, start: u64, end: u64) -> Self {
        let (sender, pieces) = mpsc::channel(AHEAD);
        let registry = Arc::clone(registry);
        tokio::spawn(async move {
            let file = Arc::new(file);
            let mut at = start;
            while at < end {
                let len = registry.shaper().piece().min(end - at);
                registry.shaper().take(len).await;
                let file = Arc::clone(&file);
                let read = tokio::task::spawn_blocking(move || {
                    let mut piece = vec![0; usize::try_from(len).unwrap_or(usize::MAX)];
                    file.read_exact_at(&mut piece, at).map(|()| Bytes::from(piece))
                });
                let piece = read.await.unwrap_or_else(|error| Err(io::Error::other(error)));
                let failed = piece.is_err();
                if !failed {
                    registry.counters().bytes_sent.fetch_add(len, Relaxed);
                }
                // A receiver that is gone is a client that is gone.
                if sender.send(piece).await.is_err() || failed {
                    return;
                }
                at += len;
            }
        });
        Self { pieces, left: end - start }
    }
}

impl Body for ReplyBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let piece = std::task::ready!(self.pieces.poll_recv(context));
        Poll::Ready(piece.map(|piece| {
            let piece = piece?;
            self.left = self.left.saturating_sub(piece.len() as u64);
            Ok(Frame::data(piece))
        }))
    }

    fn is_end_stream(&self) -> bool {
        self.left == 0
    }

    fn size_hint(&self) -> SizeHint {
        SizeHint::with_exact(self.left)
    }
}
