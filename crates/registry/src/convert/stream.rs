//! Blobs on their way between the network, which is asynchronous, and whoever writes layers anew, who blocks.

use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use bytes::{Buf, Bytes};
use format::Digest;
use tokio::sync::mpsc;

use super::{LAYER_TAIL, Recode, RecodeError, Recoded, TopLayer};
use crate::blob::RangeReader;
use crate::budget::Priority;
use crate::copy::target::Target;
use crate::error::{Cause, Error};
use crate::layout::blocking;
use crate::manifest::LayerBlob;
use crate::{limits, scratch};

/// Pieces of a blob that wait for whoever reads them.
const PIECES: usize = 8;

/// Whoever converts waits for it.
pub(super) const PRIORITY: Priority = Priority::Demand;

/// A blob as it comes, for a thread that may block.
struct Inlet {
    pieces: mpsc::Receiver<Result<Option<Bytes>, Error>>,
    piece: Bytes,
    /// Whether its end has come.
    ended: bool,
    /// Why it does not go on.
    failed: Option<Error>,
}

impl Read for Inlet {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        while self.piece.is_empty() && !self.ended {
            match self.pieces.blocking_recv() {
                Some(Ok(Some(piece))) => self.piece = piece,
                Some(Ok(None)) => self.ended = true,
                Some(Err(error)) => {
                    self.failed = Some(error.clone());
                    return Err(io::Error::other(error));
                }
                None => return Err(io::Error::other("it was given up")),
            }
        }
        let n = buf.len().min(self.piece.len());
        buf[..n].copy_from_slice(&self.piece[..n]);
        self.piece.advance(n);
        Ok(n)
    }
}

fn inlet() -> (mpsc::Sender<Result<Option<Bytes>, Error>>, Inlet) {
    let (send, pieces) = mpsc::channel(PIECES);
    (send, Inlet { pieces, piece: Bytes::new(), ended: false, failed: None })
}

/// Passes a blob on to whoever reads it, and says how far it has come.
async fn feed(
    mut reader: RangeReader,
    to: mpsc::Sender<Result<Option<Bytes>, Error>>,
    mut passed: impl FnMut(u64),
) {
    let mut at = 0;
    loop {
        let piece = reader.chunk().await;
        if let Ok(Some(piece)) = &piece {
            at += piece.len() as u64;
            passed(at);
        }
        let more = matches!(piece, Ok(Some(_)));
        if to.send(piece).await.is_err() || !more {
            return; // a reader that has gone says itself why
        }
    }
}

/// A file that remembers why it could not be written.
struct Outlet {
    file: BufWriter<File>,
    failed: Option<io::Error>,
}

impl Outlet {
    fn new(file: File) -> Self {
        Self { file: BufWriter::with_capacity(piece_len(), file), failed: None }
    }

    fn told<T>(&mut self, result: io::Result<T>) -> io::Result<T> {
        result.map_err(|error| {
            let again =
                error.raw_os_error().map_or_else(|| error.kind().into(), io::Error::from_raw_os_error);
            self.failed = Some(error);
            again
        })
    }
}

impl Write for Outlet {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let written = self.file.write(bytes);
        self.told(written)
    }

    fn flush(&mut self) -> io::Result<()> {
        let flushed = self.file.flush();
        self.told(flushed)
    }
}

impl Seek for Outlet {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = self.file.seek(to);
        self.told(at)
    }
}

impl Read for Outlet {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        self.flush()?;
        let read = self.file.get_mut().read(buf);
        self.told(read)
    }
}

/// Writes a layer anew into a file of a directory; returns what was made, or why it cannot be.
pub(super) async fn recode(
    by: Arc<dyn Recode>,
    layer: &LayerBlob,
    threads: usize,
    reader: RangeReader,
    dir: &Path,
    passed: impl FnMut(u64),
) -> Result<Result<(Recoded, Arc<File>), String>, Error> {
    let (send, mut inlet) = inlet();
    let (layer, dir) = (layer.clone(), dir.to_owned());
    let work = blocking("recoding a layer", move || {
        let what = format!("layer {}", layer.digest);
        let writing = |error| Error::io(format!("writing {what} anew in {}", dir.display()), error);
        let file = scratch::file(&dir).map_err(writing)?;
        let mut out = Outlet::new(file);
        let made = by.recode(&layer, threads, &mut inlet, &mut out);
        let made = made.and_then(|made| match out.flush() {
            Ok(()) => Ok(made),
            Err(error) => Err(RecodeError::Failed(Arc::new(error))),
        });
        let (file, _) = out.file.into_parts(); // what is left in memory is of no use if it failed
        match made {
            Ok(made) => Ok(Ok((made, Arc::new(file)))),
            Err(RecodeError::Inexpressible(why)) => Ok(Err(why)),
            Err(error) => Err(match (inlet.failed, out.failed) {
                (Some(error), _) => error,
                (None, Some(error)) => writing(error),
                (None, None) => error.about(what),
            }),
        }
    });
    let (made, ()) = tokio::join!(work, feed(reader, send, passed));
    made
}

/// Has a layer looked at that was made before; says whether it is understood.
pub(super) async fn recall(by: &Arc<dyn Recode>, target: &Target, made: &LayerBlob) -> Result<bool, Error> {
    let not = |error: &RecodeError| {
        tracing::debug!(%error, layer = %made.digest, "it is not what it says");
        false
    };
    let tail = part(target, made, made.size.saturating_sub(LAYER_TAIL)..made.size).await?;
    let wanted = match by.wants(made, &tail) {
        Ok(wanted) => wanted,
        Err(error) => return Ok(not(&error)),
    };
    if wanted.end > made.size || wanted.end.saturating_sub(wanted.start) > limits::TREE_BYTES {
        return Ok(false);
    }
    let bytes = part(target, made, wanted).await?;
    let (by, layer) = (by.clone(), made.clone());
    let taken = blocking("reading what a layer says", move || Ok(by.recall(&layer, &bytes))).await?;
    Ok(taken.map_or_else(|error| not(&error), |()| true))
}

/// Reads a part of a layer that was stored.
async fn part(target: &Target, layer: &LayerBlob, range: Range<u64>) -> Result<Vec<u8>, Error> {
    let mut bytes = Vec::new();
    if !range.is_empty() {
        let mut reader = target.read_range(layer, range)?;
        while let Some(piece) = reader.chunk().await? {
            bytes.extend_from_slice(&piece);
        }
    }
    Ok(bytes)
}

/// Makes the layer that goes on top of others.
pub(super) async fn top(by: Arc<dyn Recode>, layers: Vec<Digest>, what: String) -> Result<TopLayer, Error> {
    blocking("making the layer on top", move || {
        by.top(&layers).map_err(|error| match error {
            RecodeError::Inexpressible(why) => Error::Unsupported { what, why },
            error => error.about(what),
        })
    })
    .await
}

/// Compares a layer with what was made of it.
pub(super) async fn compare(
    by: Arc<dyn Recode>,
    [layer, made]: [LayerBlob; 2],
    [from, there]: [RangeReader; 2],
) -> Result<(), Error> {
    let ((to_one, mut one), (to_other, mut other)) = (inlet(), inlet());
    let work = blocking("comparing layers", move || {
        let same = by.compare((&layer, &mut one), (&made, &mut other));
        same.map_err(|error| match one.failed.or(other.failed) {
            Some(error) => error,
            None => error.about(format!("layer {} and {}, which was made of it", layer.digest, made.digest)),
        })
    });
    let (same, (), ()) = tokio::join!(work, feed(from, to_one, |_| ()), feed(there, to_other, |_| ()));
    same
}

/// Compares the layer that goes on top of others with these.
pub(super) async fn compare_top(
    by: Arc<dyn Recode>,
    layers: Vec<Digest>,
    top: LayerBlob,
    there: RangeReader,
) -> Result<(), Error> {
    let (send, mut inlet) = inlet();
    let work = blocking("comparing the layer on top", move || {
        let same = by.compare_top(&layers, (&top, &mut inlet));
        same.map_err(|error| match inlet.failed {
            Some(error) => error,
            None => error.about(format!("layer {}, which has the tree of the others", top.digest)),
        })
    });
    let (same, ()) = tokio::join!(work, feed(there, send, |_| ()));
    same
}

fn piece_len() -> usize {
    usize::try_from(limits::PIECE).unwrap_or(usize::MAX)
}

/// Returns an error and its causes in one line.
pub(super) fn because(cause: &Cause) -> String {
    let mut text = cause.to_string();
    let mut next = cause.source();
    while let Some(cause) = next {
        text += &format!(": {cause}");
        next = cause.source();
    }
    text
}
