//! A layer's blob in one format to a blob in another, in one pass.
//!
//! ```text
//! blob ─► source ── tar ──► members ── events ──► estargz, chunked ── pieces ──► pipe ─► out
//!         hash, inflate     hash, headers,        or flat             pack on threads,
//!                           landmarks taken out   table, tar-split    hash, write in order
//! ```
//!
//! **Lossless.** The bytes of the source's tar stay what and where they are: headers, padding, whatever follows the last
//! member. eStargz has two members more, which are taken out again when such a layer is read; all other targets have
//! the source's tar and nothing else. What a target cannot say of a layer is an error that names the member, and whoever asked
//! keeps the layer as it was.
//!
//! **Deterministic.** Blob, target and level decide about every byte, not threads, nor how the blob came in; for one
//! version of the compressors.
//!
//! **In order.** Where some files are to come first ([`order`]) the tar goes through a file, and is another one: what it unpacks to
//! is the same.
//!
//! **Bounded.** In memory are three jobs of some 1 to 9 MiB for each thread, and the table of contents, which has a limit.
//!
//! What goes to `out` counts only if the result is `Ok`: the source's digests and length are known at its end.

mod chunked;
pub mod erofs;
mod estargz;
mod flat;
mod members;
mod names;
pub mod nydus;
pub(crate) mod order;
mod pack;
mod pipe;
mod source;
mod split;
mod spool;
mod table;
mod tail;
mod tree_tar;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Write};
use std::thread;

use format::tar::TarError;
use format::unpack::UnpackError;
use format::{DiffId, Digest};

use crate::Expected;
use crate::builder::read_all;
use chunked::Chunked;
use estargz::EStargz;
use flat::Flat;
use members::{Ended, Members, Receiver};
pub use order::First;
use pack::Level;
use pipe::Pipe;
use source::Source;
use spool::Spool;

/// Longest table of contents, as JSON and packed: `maxTocSize` of containers/storage, which refuses larger ones. 150 MiB
/// are half a million files.
const MOST_TABLE: u64 = 150 << 20;

/// What to make of a layer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    /// Gzip with a table of contents in the tar.
    EStargz,
    /// Zstd with a table of contents beside the tar.
    ZstdChunked,
    /// Gzip.
    Gzip,
    /// Zstd.
    Zstd,
}

/// How to make it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Recoding {
    /// The format.
    pub target: Target,
    /// How hard to compress: 1 to 9 for gzip, and 10 to 12 harder than gzip can; 1 to 22 for zstd. If not said, as the
    /// format's own tools do.
    pub level: Option<i32>,
    /// The length of the source's blob, from its manifest.
    pub blob_size: u64,
    /// Threads that compress, 1 at least. The result is the same.
    pub threads: usize,
}

impl Recoding {
    /// Says whether the target has the level; otherwise each layer would.
    pub fn check(&self) -> Result<(), RecodeError> {
        Level::of(self.target, self.level).map(drop)
    }
}

/// What comes first in what is made.
#[derive(Debug, Clone, Copy)]
pub struct Order<'a> {
    /// The files.
    pub first: &'a First,
    /// An empty file, for the tar: what comes first is not known before its end.
    pub spool: &'a File,
    /// Whether an ordinary layer is wanted only if something comes first in it.
    pub only: bool,
}

/// What was made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recoded {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// What its descriptor must say for the table to be used.
    pub annotations: BTreeMap<String, String>,
}

/// Why nothing was made of a layer.
#[derive(Debug, thiserror::Error)]
pub enum RecodeError {
    /// The target has no way to say what is in the layer. It can be kept as it is.
    #[error("{what:?} cannot be in the table of contents: {why}")]
    Inexpressible {
        /// The member, printable, or a part of the tar.
        what: String,
        /// What is the matter with it.
        why: &'static str,
    },
    /// More than a limit allows. The layer can be kept as it is.
    #[error("{what} exceeds the limit of {limit}")]
    Limit {
        /// What is too large or too many.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
    /// The target has no such level.
    #[error("level {level} is not one of {least} to {most}")]
    Level {
        /// What was asked for.
        level: i32,
        /// The lowest there is.
        least: i32,
        /// The highest there is.
        most: i32,
    },
    /// The blob could not be read.
    #[error("reading the blob")]
    Read(#[source] io::Error),
    /// None of the files that are to come first is in the layer, or may be moved. It can be kept as it is.
    #[error("nothing in it comes first")]
    NothingFirst,
    /// The layer could not be kept until its end.
    #[error("keeping the layer in a file")]
    Spool(#[source] io::Error),
    /// What was made could not be written.
    #[error("writing the recoded blob")]
    Write(#[source] io::Error),
    /// The blob cannot be decompressed.
    #[error("decompressing the layer")]
    Unpack(#[from] UnpackError),
    /// What comes out is not a tar we accept.
    #[error("reading the layer's tar")]
    Tar(#[from] TarError),
    /// The tar ends inside a file.
    #[error("the layer's tar ends inside a file")]
    TarEnds,
    /// The blob has another length than announced; more, if it is not known how much.
    #[error("the blob should have {expected} bytes, but has {}", found.map_or("more".into(), |n| n.to_string()))]
    BlobLength {
        /// The length announced.
        expected: u64,
        /// The length found.
        found: Option<u64>,
    },
    /// The blob is not the one that was asked for.
    #[error("the blob should be {expected}, but is {found}")]
    BlobDigest {
        /// The digest asked for.
        expected: Digest,
        /// The digest found.
        found: Digest,
    },
    /// The tar is not the one the image's config names.
    #[error("the layer's tar should be {expected}, but is {found}")]
    DiffId {
        /// The digest in the config.
        expected: DiffId,
        /// The digest found.
        found: DiffId,
    },
    /// The compressor failed.
    #[error("compressing the layer: {0}")]
    Pack(String),
    /// The layer makes no tree, or none that Nydus has a form for.
    #[error(transparent)]
    Nydus(#[from] nydus::NydusError),
    /// The layer makes no tree, or none that EROFS has a form for, or an image of it is not that.
    #[error(transparent)]
    Erofs(#[from] erofs::ErofsError),
    /// No thread could be had.
    #[error("starting a thread")]
    Spawn(#[source] io::Error),
    /// A thread ended, or counted otherwise than another, which is a bug.
    #[error("a thread of the conversion ended unexpectedly")]
    Thread,
}

/// Makes another blob of a layer's.
pub fn recode(
    blob: impl Read,
    expected: &Expected,
    recoding: &Recoding,
    out: impl Write + Send,
) -> Result<Recoded, RecodeError> {
    recode_in_order(blob, expected, recoding, None, out)
}

/// Makes another blob of a layer's, with some files first. Then the tar is another one, unless there are none in the layer; for
/// ordinary layers that is an error, if they are wanted [only](Order::only) in order.
pub fn recode_in_order(
    blob: impl Read,
    expected: &Expected,
    recoding: &Recoding,
    order: Option<Order<'_>>,
    out: impl Write + Send,
) -> Result<Recoded, RecodeError> {
    let level = Level::of(recoding.target, recoding.level)?;
    let most = match recoding.target {
        Target::EStargz => estargz::MEMBER,
        Target::ZstdChunked => chunked::FRAME,
        Target::Gzip => flat::GZIP,
        Target::Zstd => flat::ZSTD,
    };
    thread::scope(|scope| {
        let mut pipe = Pipe::start(scope, level, recoding.threads, most, out)?;
        let tar = Tar { blob, expected, size: recoding.blob_size, order };
        let made = match recoding.target {
            Target::EStargz => to_estargz(tar, &mut pipe),
            Target::ZstdChunked => to_chunked(tar, level, &mut pipe),
            Target::Gzip | Target::Zstd => to_flat(tar, &mut pipe),
        };
        let (diff_id, annotations) = match made {
            Ok(made) => made,
            // Another thread stopped, and knows why.
            Err(RecodeError::Thread) => return Err(pipe.end().err().unwrap_or(RecodeError::Thread)),
            Err(error) => return Err(error),
        };
        let written = pipe.finish()?;
        Ok(Recoded { digest: written.digest, size: written.size, diff_id, annotations })
    })
}

/// What a target makes of a tar: its digest, and what the descriptor says.
type Made = Result<(DiffId, BTreeMap<String, String>), RecodeError>;

fn to_estargz(tar: Tar<'_, impl Read>, pipe: &mut Pipe<'_>) -> Made {
    let mut target = EStargz::new(pipe);
    let ended = tar.read(&mut target)?;
    target.finish(ended.missing)
}

fn to_chunked(tar: Tar<'_, impl Read>, level: Level, pipe: &mut Pipe<'_>) -> Made {
    let mut target = Chunked::new(pipe, level)?;
    let ended = tar.read(&mut target)?;
    Ok((ended.left, target.finish(ended.missing)?))
}

fn to_flat(mut tar: Tar<'_, impl Read>, pipe: &mut Pipe<'_>) -> Made {
    let mut target = Flat::new(pipe);
    let order = tar.order.take();
    let ended = match order {
        None => tar.read(&mut target)?,
        Some(order) => {
            let only = order.only;
            let (ended, spooled) = tar.spool(&order)?;
            if only && !spooled.is_reordered() {
                return Err(RecodeError::NothingFirst);
            }
            spooled.emit(ended, &mut target)?
        }
    };
    target.finish()?;
    Ok((ended.left, BTreeMap::new()))
}

/// The tar of a layer, as it is to come.
struct Tar<'a, R> {
    blob: R,
    expected: &'a Expected,
    /// Length of the blob.
    size: u64,
    order: Option<Order<'a>>,
}

impl<'a, R: Read> Tar<'a, R> {
    /// Reads the blob to its end, checks that it is the one expected, and hands on its tar.
    fn read(self, to: &mut impl Receiver) -> Result<Ended, RecodeError> {
        match self.order {
            None => read(self.blob, self.expected, self.size, to),
            Some(order) => {
                let (ended, spooled) = self.spool(&order)?;
                spooled.emit(ended, to)
            }
        }
    }

    fn spool(self, order: &Order<'a>) -> Result<(Ended, spool::Spooled<'a>), RecodeError> {
        let mut spool = Spool::new(order);
        let ended = read(self.blob, self.expected, self.size, &mut spool)?;
        Ok((ended, spool.finish()?))
    }
}

/// Reads a blob to its end and checks that it is the one expected.
fn read(
    blob: impl Read,
    expected: &Expected,
    size: u64,
    to: &mut impl Receiver,
) -> Result<Ended, RecodeError> {
    let (mut source, mut members) = (Source::new(size), Members::new());
    read_all(blob, RecodeError::Read, |piece| source.push(piece, &mut |plain| members.push(plain, to)))?;
    let found = source.finish(&mut |plain| members.push(plain, to))?;
    let ended = members.finish(to)?;
    if found != expected.blob {
        return Err(RecodeError::BlobDigest { expected: expected.blob, found });
    }
    if ended.read != expected.diff_id {
        return Err(RecodeError::DiffId { expected: expected.diff_id, found: ended.read });
    }
    Ok(ended)
}
