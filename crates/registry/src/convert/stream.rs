//! Blobs on their way between the network, which is asynchronous, and whoever writes layers anew, who blocks.

use std::cell::Cell;
use std::fs::File;
use std::io::{self, BufWriter, Read, Seek, SeekFrom, Write};
use std::ops::Range;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

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
use crate::source::Source;
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

type Pieces = mpsc::Sender<Result<Option<Bytes>, Error>>;

/// Passes a blob on to whoever reads it, and says how far it has come.
async fn feed(mut reader: RangeReader, to: Pieces, mut passed: impl FnMut(u64)) {
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

/// The layers of an image, for a thread that may block: it asks for what it reads.
struct Asking {
    asked: mpsc::Sender<(Digest, Range<u64>, Pieces)>,
    /// Why one of them does not go on.
    failed: Arc<Mutex<Option<Error>>>,
}

/// A range that was asked for.
struct Asked {
    inlet: Inlet,
    failed: Arc<Mutex<Option<Error>>>,
}

impl Read for Asked {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.inlet.read(buf);
        if let Some(error) = self.inlet.failed.take() {
            *self.failed.lock().unwrap_or_else(PoisonError::into_inner) = Some(error);
        }
        read
    }
}

impl Asking {
    fn open(&self, layer: &Digest, range: Range<u64>) -> Box<dyn Read> {
        let (send, inlet) = inlet();
        let _ = self.asked.blocking_send((*layer, range, send)); // who reads it is told that nobody answers
        Box::new(Asked { inlet, failed: self.failed.clone() })
    }

    /// Says why something was not made: what was read may not have come.
    fn why(&self, error: RecodeError, what: String) -> Error {
        let failed = self.failed.lock().unwrap_or_else(PoisonError::into_inner).take();
        failed.unwrap_or_else(|| error.about(what))
    }
}

/// An image's layers, and where they are.
type Of<'a> = (&'a Source, &'a [LayerBlob]);

/// Has something done by a thread that asks for layers, one after another; `passed` is told how many bytes of them have come.
async fn asking<T: Send + 'static>(
    (source, layers): Of<'_>,
    doing: &'static str,
    mut passed: impl FnMut(u64),
    work: impl FnOnce(Asking) -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let (send, mut asked) = mpsc::channel(1);
    let work = blocking(doing, move || work(Asking { asked: send, failed: Arc::default() }));
    let answering = async {
        let mut before = 0;
        while let Some((digest, range, to)) = asked.recv().await {
            let Some(layer) = layers.iter().find(|layer| layer.digest == digest) else { continue };
            let reader = source.read_range(&digest, layer.size, range, PRIORITY);
            let mut now = 0;
            feed(reader, to, |done| {
                now = done;
                passed(before + done);
            })
            .await;
            before += now;
        }
    };
    let (done, ()) = tokio::join!(work, answering);
    done
}

/// Says why an image's layers cannot be written anew one by one, if they cannot.
pub(super) async fn apart(by: Arc<dyn Recode>, of: Of<'_>, what: String) -> Result<Option<String>, Error> {
    let layers = of.1.to_vec();
    asking(
        of,
        "looking at layers",
        |_| (),
        move |asking| {
            let why = by.apart(&layers, &mut |layer, range| asking.open(layer, range));
            why.map_err(|error| match error {
                RecodeError::Inexpressible(why) => Error::Unsupported { what, why },
                error => asking.why(error, what),
            })
        },
    )
    .await
}

/// Writes one layer of all layers of an image into a file of a directory; returns what was made, or why it cannot be.
pub(super) async fn together(
    by: Arc<dyn Recode>,
    of: Of<'_>,
    threads: usize,
    dir: &Path,
    passed: impl FnMut(u64),
) -> Result<Written, Error> {
    let (layers, dir) = (of.1.to_vec(), dir.to_owned());
    asking(of, "making one layer of several", passed, move |asking| {
        let what = format!("the layer that is made of {}", last(&layers));
        let made = |out: &mut Outlet| {
            by.together(&layers, threads, &mut |layer, range| asking.open(layer, range), out)
        };
        write(&what, &dir, made, |error| asking.why(error, what.clone()))
    })
    .await
}

/// Compares what was made of all layers of an image with them.
pub(super) async fn compare_together(
    by: Arc<dyn Recode>,
    of: Of<'_>,
    made: LayerBlob,
    there: RangeReader,
) -> Result<(), Error> {
    let layers = of.1.to_vec();
    let (send, mut inlet) = inlet();
    let work = asking(
        of,
        "comparing layers",
        |_| (),
        move |asking| {
            let what = format!("layer {}, which was made of {}", made.digest, last(&layers));
            let open = &mut |layer: &Digest, range| asking.open(layer, range);
            let same = by.compare_together(&layers, open, (&made, &mut inlet));
            same.map_err(|error| inlet.failed.take().unwrap_or_else(|| asking.why(error, what)))
        },
    );
    let (same, ()) = tokio::join!(work, feed(there, send, |_| ()));
    same
}

/// Names what has the tree of an image's layers.
fn last(layers: &[LayerBlob]) -> String {
    layers.last().map(|layer| layer.digest.to_string()).unwrap_or_default()
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

/// What was made, and the file that it is in, or why it cannot be.
type Written = Result<(Recoded, Arc<File>), String>;

/// Writes a layer anew into a file of a directory; returns what was made, or why it cannot be.
pub(super) async fn recode(
    by: Arc<dyn Recode>,
    layer: &LayerBlob,
    threads: usize,
    reader: RangeReader,
    dir: &Path,
    passed: impl FnMut(u64),
) -> Result<Written, Error> {
    let (send, mut inlet) = inlet();
    let (layer, dir) = (layer.clone(), dir.to_owned());
    let work = blocking("recoding a layer", move || {
        let what = format!("layer {}", layer.digest);
        let failed = Cell::new(None);
        let made = |out: &mut Outlet| {
            let made = by.recode(&layer, threads, &mut inlet, out);
            failed.set(inlet.failed.take());
            made
        };
        write(&what, &dir, made, |error| failed.take().unwrap_or_else(|| error.about(what.clone())))
    });
    let (made, ()) = tokio::join!(work, feed(reader, send, passed));
    made
}

/// Has something written into a file of a directory; `why` says what an error amounts to.
fn write(
    what: &str,
    dir: &Path,
    make: impl FnOnce(&mut Outlet) -> Result<Recoded, RecodeError>,
    why: impl FnOnce(RecodeError) -> Error,
) -> Result<Written, Error> {
    let writing = |error| Error::io(format!("writing {what} anew in {}", dir.display()), error);
    let file = scratch::file(dir).map_err(writing)?;
    let mut out = Outlet::new(file);
    let made = make(&mut out).and_then(|made| match out.flush() {
        Ok(()) => Ok(made),
        Err(error) => Err(RecodeError::Failed(Arc::new(error))),
    });
    let (file, _) = out.file.into_parts(); // what is left in memory is of no use if it failed
    match (made, out.failed) {
        (Ok(made), _) => Ok(Ok((made, Arc::new(file)))),
        (Err(RecodeError::Inexpressible(why)), _) => Ok(Err(why)),
        (Err(_), Some(error)) => Err(writing(error)),
        (Err(error), None) => Err(why(error)),
    }
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
