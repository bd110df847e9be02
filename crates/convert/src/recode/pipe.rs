//! From plain pieces to the blob: packed on several threads, written in order on one more.
//!
//! ```text
//! caller ── jobs, dealt in turn ──► packers ── taken in turn ──► writer
//!        ◄─ emptied jobs ─────────
//! ```
//!
//! A job is some pieces, a little more than [`JOB`] of them together, so that small ones cost no message each. Jobs go
//! to the packers in turn and the writer takes what they made in the same turn: the order needs no numbers. Each queue
//! holds one job, so a packer has at most three at hand. What a piece becomes depends on nothing but the piece.
//!
//! A chunk is a piece of which the blob holds one copy only. Which of them is the first the writer knows, for it sees them in
//! order; packers look up what it has written so far to pack no copy of that, and what they pack in vain is not written.
//!
//! If one of the threads fails, its ends of the queues go away and the others stop; the error is told at the end.

use std::collections::HashMap;
use std::io::Write;
use std::sync::mpsc::{self, Receiver, Sender, SyncSender};
use std::sync::{Arc, PoisonError, RwLock};
use std::thread::{self, Scope, ScopedJoinHandle};

use format::{ChunkId, Digest, DigestHasher};

use super::RecodeError;
use super::pack::{Level, Packer};

/// Plain bytes after which a job is handed on.
const JOB: usize = 1 << 20;

/// Most packers: beyond this it is the caller's thread that all wait for.
const THREADS: usize = 64;

/// Pieces on their way.
#[derive(Default)]
struct Job {
    bytes: Vec<u8>,
    pieces: Vec<Piece>,
    /// Who wants to know where all pieces so far are.
    asked: Option<Sender<Placed>>,
}

/// A piece of a job: from `start` to the start of the next.
#[derive(Debug, Clone, Copy)]
struct Piece {
    start: usize,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// To be packed.
    Plain,
    /// To be packed; its first so many bytes are content of a file, and hashed.
    Content(usize),
    /// To be packed if that makes it shorter, and to be there once.
    Chunk,
    /// To be written as it is.
    AsIs,
}

/// What a packer made of a job.
struct Packed {
    bytes: Vec<u8>,
    /// Lengths of the pieces in it, and what is known of their content.
    pieces: Vec<(usize, Found)>,
    asked: Option<Sender<Placed>>,
}

/// What is known of a piece.
#[derive(Debug, Clone, Copy)]
enum Found {
    Nothing,
    /// A digest, and whether there was nothing but zeros.
    Content(Digest, bool),
    /// Its hash and its length.
    Chunk(ChunkId, u32),
}

/// Chunks that have been written, and their numbers.
type Known = Arc<RwLock<HashMap<ChunkId, u32>>>;

/// Where a piece with content is in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Place {
    /// Offset of its member or frame.
    pub(super) offset: u64,
    /// Offset after it.
    pub(super) end: u64,
    /// SHA-256 of the content.
    pub(super) digest: Digest,
    /// Whether that is zeros only.
    pub(super) zeros: bool,
}

/// Where a chunk is in the blob.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// BLAKE3 of its bytes.
    pub(crate) id: ChunkId,
    /// Its offset.
    pub(crate) offset: u64,
    /// Its length there; that of its bytes, if they are not packed.
    pub(crate) packed: u32,
    /// Its length.
    pub(crate) plain: u32,
}

/// Where all pieces so far are.
#[derive(Debug, Default)]
pub(crate) struct Placed {
    /// Those with content, in order.
    pub(crate) places: Vec<Place>,
    /// Chunks, in order, each once.
    pub(crate) chunks: Vec<Chunk>,
    /// Which of them each piece is that was to be one.
    pub(crate) copies: Vec<u32>,
    /// Offset after all of them.
    pub(crate) end: u64,
    /// SHA-256 of all up to there.
    pub(crate) digest: Option<Digest>,
}

/// What was written.
#[derive(Debug)]
pub(super) struct Written {
    pub(super) digest: Digest,
    pub(super) size: u64,
}

/// The caller's end.
pub(super) struct Pipe<'scope> {
    packers: Vec<SyncSender<Job>>,
    turn: usize,
    emptied: Receiver<Job>,
    job: Job,
    /// Longest piece.
    most: usize,
    /// Whether a piece is open.
    open: bool,
    threads: Vec<ScopedJoinHandle<'scope, Result<(), RecodeError>>>,
    writer: ScopedJoinHandle<'scope, Result<Written, RecodeError>>,
}

impl<'scope> Pipe<'scope> {
    /// Starts the threads. A piece that has grown to `most` bytes is followed by another.
    pub(super) fn start(
        scope: &'scope Scope<'scope, '_>,
        level: Level,
        threads: usize,
        most: usize,
        out: impl Write + Send + 'scope,
    ) -> Result<Self, RecodeError> {
        let (give_back, emptied) = mpsc::channel();
        let known = Known::default();
        let (mut packers, mut packed, mut handles) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..threads.clamp(1, THREADS) {
            let (to_packer, jobs) = mpsc::sync_channel(1);
            let (to_writer, done) = mpsc::sync_channel(1);
            let (packer, give_back, known) = (Packer::new(level)?, give_back.clone(), known.clone());
            handles.push(spawn(scope, "pack", move || pack(packer, &jobs, &to_writer, &give_back, &known))?);
            packers.push(to_packer);
            packed.push(done);
        }
        let writer = spawn(scope, "write", move || write(&packed, out, &known))?;
        Ok(Self {
            packers,
            turn: 0,
            emptied,
            job: Job::default(),
            most,
            open: false,
            threads: handles,
            writer,
        })
    }

    /// Ends the open piece. The next byte begins another.
    pub(super) fn cut(&mut self) -> Result<(), RecodeError> {
        self.open = false;
        if self.job.bytes.len() >= JOB { self.send() } else { Ok(()) }
    }

    /// Adds to the open piece.
    pub(super) fn write(&mut self, mut bytes: &[u8]) -> Result<(), RecodeError> {
        while !bytes.is_empty() {
            if !self.open {
                self.begin(Kind::Plain);
            }
            let start = self.job.pieces.last().map_or(0, |piece| piece.start);
            let room = self.most - (self.job.bytes.len() - start);
            let (now, later) = bytes.split_at(room.min(bytes.len()));
            self.job.bytes.extend_from_slice(now);
            bytes = later;
            if now.len() == room {
                self.cut()?;
            }
        }
        Ok(())
    }

    /// Says that all that the open piece holds so far is content.
    pub(super) fn content_ends(&mut self) {
        if let Some(piece) = self.job.pieces.last_mut()
            && self.open
        {
            piece.kind = Kind::Content(self.job.bytes.len() - piece.start);
        }
    }

    /// Ends the open piece, which is a chunk.
    pub(super) fn chunk_ends(&mut self) -> Result<(), RecodeError> {
        if let Some(piece) = self.job.pieces.last_mut()
            && self.open
        {
            piece.kind = Kind::Chunk;
        }
        self.cut()
    }

    /// Writes a piece of its own, packed although it may be empty.
    pub(super) fn whole(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.piece(Kind::Plain, bytes)
    }

    /// Writes bytes as they are.
    pub(super) fn as_is(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.piece(Kind::AsIs, bytes)
    }

    fn piece(&mut self, kind: Kind, bytes: &[u8]) -> Result<(), RecodeError> {
        self.cut()?;
        self.begin(kind);
        self.job.bytes.extend_from_slice(bytes);
        self.cut()
    }

    /// Ends the open piece, waits until all is written, and returns where it is.
    pub(super) fn placed(&mut self) -> Result<Placed, RecodeError> {
        let (asked, answer) = mpsc::channel();
        self.open = false;
        self.job.asked = Some(asked);
        self.send()?;
        answer.recv().map_err(|_| RecodeError::Thread)
    }

    /// Says that nothing follows; returns what was written, or why it was not.
    pub(super) fn finish(mut self) -> Result<Written, RecodeError> {
        let sent = if self.job.pieces.is_empty() { Ok(()) } else { self.send() };
        let written = self.end();
        sent.and(written)
    }

    /// Stops everything; returns the error that came first: the others are its consequences.
    pub(super) fn end(self) -> Result<Written, RecodeError> {
        drop(self.packers);
        let written = self.writer.join().map_err(|_| RecodeError::Thread)?;
        for thread in self.threads {
            thread.join().map_err(|_| RecodeError::Thread)??;
        }
        written
    }

    fn begin(&mut self, kind: Kind) {
        self.job.pieces.push(Piece { start: self.job.bytes.len(), kind });
        self.open = true;
    }

    fn send(&mut self) -> Result<(), RecodeError> {
        let empty = self.emptied.try_recv().unwrap_or_default();
        let job = std::mem::replace(&mut self.job, empty);
        self.packers[self.turn].send(job).map_err(|_| RecodeError::Thread)?;
        self.turn = (self.turn + 1) % self.packers.len();
        Ok(())
    }
}

fn spawn<'scope, T: Send + 'scope>(
    scope: &'scope Scope<'scope, '_>,
    name: &str,
    work: impl FnOnce() -> T + Send + 'scope,
) -> Result<ScopedJoinHandle<'scope, T>, RecodeError> {
    thread::Builder::new().name(name.into()).spawn_scoped(scope, work).map_err(RecodeError::Spawn)
}

/// Packs jobs until there are no more, or nobody wants them.
fn pack(
    mut packer: Packer,
    jobs: &Receiver<Job>,
    to_writer: &SyncSender<Packed>,
    give_back: &Sender<Job>,
    known: &Known,
) -> Result<(), RecodeError> {
    for mut job in jobs {
        let mut packed = Packed { bytes: Vec::new(), pieces: Vec::new(), asked: job.asked.take() };
        let ends = job.pieces.iter().skip(1).map(|piece| piece.start).chain([job.bytes.len()]);
        for (piece, end) in job.pieces.iter().zip(ends) {
            let made =
                piece_of(piece.kind, &job.bytes[piece.start..end], &mut packer, &mut packed.bytes, known)?;
            packed.pieces.push(made);
        }
        job.bytes.clear();
        job.pieces.clear();
        let _ = give_back.send(job); // nobody needs it in the end
        if to_writer.send(packed).is_err() {
            break;
        }
    }
    Ok(())
}

/// Packs a piece; returns its length and what is known of it.
fn piece_of(
    kind: Kind,
    plain: &[u8],
    packer: &mut Packer,
    out: &mut Vec<u8>,
    known: &Known,
) -> Result<(usize, Found), RecodeError> {
    match kind {
        Kind::Plain => Ok((packer.pack(plain, out)?, Found::Nothing)),
        Kind::Content(len) => {
            let content = &plain[..len];
            let found = Found::Content(Digest::of(content), content.iter().all(|byte| *byte == 0));
            Ok((packer.pack(plain, out)?, found))
        }
        Kind::AsIs => {
            out.extend_from_slice(plain);
            Ok((plain.len(), Found::Nothing))
        }
        Kind::Chunk => {
            let id = ChunkId::of(plain);
            // A piece is at most as long as the pipe was told.
            let found = Found::Chunk(id, u32::try_from(plain.len()).map_err(|_| RecodeError::Thread)?);
            if known.read().unwrap_or_else(PoisonError::into_inner).contains_key(&id) {
                return Ok((0, found));
            }
            let start = out.len();
            let mut len = packer.pack(plain, out)?;
            if len >= plain.len() {
                out.truncate(start);
                out.extend_from_slice(plain);
                len = plain.len();
            }
            Ok((len, found))
        }
    }
}

/// Writes what the packers made, in turn, until the one whose turn it is has ended.
fn write(packers: &[Receiver<Packed>], out: impl Write, known: &Known) -> Result<Written, RecodeError> {
    let mut writer = Writer { out, hasher: DigestHasher::new(), placed: Placed::default() };
    for packer in packers.iter().cycle() {
        let Ok(packed) = packer.recv() else { break };
        writer.take(&packed, known)?;
        if let Some(asked) = packed.asked {
            let end = writer.placed.end;
            let mut placed = std::mem::replace(&mut writer.placed, Placed { end, ..Placed::default() });
            placed.digest = Some(writer.hasher.clone().finish());
            // Whoever asked and is gone has ended.
            let _ = asked.send(placed);
        }
    }
    writer.out.flush().map_err(RecodeError::Write)?;
    Ok(Written { digest: writer.hasher.finish(), size: writer.placed.end })
}

struct Writer<W> {
    out: W,
    hasher: DigestHasher,
    placed: Placed,
}

impl<W: Write> Writer<W> {
    fn take(&mut self, packed: &Packed, known: &Known) -> Result<(), RecodeError> {
        // Pieces that follow each other are written together.
        let (mut from, mut to) = (0, 0);
        for (len, found) in &packed.pieces {
            let len = *len;
            if self.piece(len, *found, known)? {
                to += len;
            } else {
                self.put(&packed.bytes[from..to])?;
                (from, to) = (to + len, to + len);
            }
        }
        self.put(&packed.bytes[from..to])
    }

    /// Notes where a piece will be; says whether it is to be written.
    fn piece(&mut self, len: usize, found: Found, known: &Known) -> Result<bool, RecodeError> {
        let placed = &mut self.placed;
        let (offset, end) = (placed.end, placed.end + len as u64);
        match found {
            Found::Nothing => {}
            Found::Content(digest, zeros) => placed.places.push(Place { offset, end, digest, zeros }),
            Found::Chunk(id, plain) => {
                let mut known = known.write().unwrap_or_else(PoisonError::into_inner);
                if let Some(number) = known.get(&id) {
                    placed.copies.push(*number);
                    return Ok(false);
                }
                let number = u32::try_from(placed.chunks.len()).map_err(|_| RecodeError::Thread)?;
                let packed = u32::try_from(len).map_err(|_| RecodeError::Thread)?;
                known.insert(id, number);
                placed.copies.push(number);
                placed.chunks.push(Chunk { id, offset, packed, plain });
            }
        }
        placed.end = end;
        Ok(true)
    }

    fn put(&mut self, bytes: &[u8]) -> Result<(), RecodeError> {
        self.hasher.update(bytes);
        self.out.write_all(bytes).map_err(RecodeError::Write)
    }
}
