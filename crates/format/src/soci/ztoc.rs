//! A zTOC as bytes to its parts: the files that it lists, and the spans of the blob.

use super::SociError;
use super::flat::{Flat, Table, Vector};
use crate::digest::Digest;
use crate::index::{Entry, most_plain};
use crate::limits;
use crate::unpack::close_window;

/// Output before a checkpoint, in bytes.
const WINDOW: usize = 32 << 10;

/// What precedes the checkpoints, and one of them.
const HEAD: usize = 12;
const ROW: usize = 17 + WINDOW;

/// Where the first checkpoint is that old writers leave out: behind a gzip header without name, extra field or comment.
const SHORT_HEADER: u64 = 10;

/// The version that is read.
const VERSION: &[u8] = b"0.9";

/// Numbers of the fields, as `ztoc.fbs` has them.
mod field {
    pub(super) const VERSION: usize = 0;
    pub(super) const PACKED: usize = 2;
    pub(super) const PLAIN: usize = 3;
    pub(super) const TOC: usize = 4;
    pub(super) const COMPRESSION: usize = 5;

    pub(super) const FILES: usize = 0;

    pub(super) const KIND: usize = 0;
    pub(super) const LAST_SPAN: usize = 1;
    pub(super) const DIGESTS: usize = 2;
    pub(super) const CHECKPOINTS: usize = 3;
}

/// The parts of a zTOC.
pub(super) struct Ztoc<'a, 'f> {
    /// Length of the layer's tar, as far as a reader of it goes.
    pub(super) plain: u64,
    /// One for each member of the tar.
    pub(super) files: Vector<'a, 'f>,
    /// In the order of the blob, the last up to its end.
    pub(super) spans: Vec<Span<'a>>,
}

/// A piece of the blob that can be decoded by itself.
pub(super) struct Span<'a> {
    /// The range of the blob.
    pub(super) begin: u64,
    pub(super) end: u64,
    /// How many of its first byte's highest bits are needed; 0 for all.
    pub(super) bits: u8,
    /// Offset in the tar of what comes out.
    pub(super) plain: u64,
    /// The output before it.
    pub(super) window: &'a [u8],
    /// SHA-256 of the range.
    pub(super) digest: Digest,
}

impl Span<'_> {
    /// Returns what it takes to begin here, as an index has it.
    pub(super) fn entry(&self) -> Result<Entry, SociError> {
        let window = close_window(self.window).ok_or(SociError::Damaged("a window of a checkpoint"))?;
        Ok(Entry { blob: 0, begin: self.begin, bits: self.bits, window })
    }
}

impl<'a, 'f> Ztoc<'a, 'f> {
    /// Reads what is a zTOC of a blob of this length.
    pub(super) fn open(flat: &'f Flat<'a>, size: u64) -> Result<Self, SociError> {
        let root = flat.root()?;
        let version = root.bytes(field::VERSION)?;
        if version != VERSION {
            let version = String::from_utf8_lossy(&version[..version.len().min(20)]).into_owned();
            return Err(SociError::Unsupported(format!("version {version:?}")));
        }
        if root.long(field::PACKED)? != size {
            return Err(SociError::Damaged("it is of a blob of another length"));
        }
        let plain = root.long(field::PLAIN)?;
        if plain > most_plain(size) {
            return Err(SociError::TooLarge { what: "the tar", limit: most_plain(size) });
        }
        let files = root.table(field::TOC)?.vector(field::FILES)?;
        if files.len() as u64 > limits::ENTRIES {
            return Err(SociError::TooLarge { what: "the number of files", limit: limits::ENTRIES });
        }
        let compression = root.table(field::COMPRESSION)?;
        match compression.number::<1>(field::KIND)? {
            None | Some([1]) => {}
            Some([2]) => return Err(SociError::Unsupported("a layer that is not compressed".to_owned())),
            Some([kind]) => return Err(SociError::Unsupported(format!("compression of kind {kind}"))),
        }
        Ok(Self { plain, files, spans: spans(&compression, size)? })
    }
}

/// Says whether these checkpoints are those of an old writer, which takes for granted that the blob's gzip header has ten bytes.
///
/// Nothing else of the zTOC is looked at.
pub fn assumes_short_header(raw: &[u8]) -> Result<bool, SociError> {
    let flat = Flat::new(raw);
    let compression = flat.root()?.table(field::COMPRESSION)?;
    Ok(rows(compression.bytes(field::CHECKPOINTS)?)?.0)
}

/// Returns whether the first checkpoint is left out, and the rows of the others.
fn rows(raw: &[u8]) -> Result<(bool, &[[u8; ROW]]), SociError> {
    let wrong = SociError::Damaged("the length of its checkpoints");
    let Some((count, _)) = raw.split_first_chunk() else { return Err(wrong) };
    let count = u32::from_le_bytes(*count) as usize; // below zero is more than there can be
    match raw.get(HEAD..).map(<[u8]>::as_chunks) {
        Some((rows, [])) if rows.len() == count && count > 0 => Ok((false, rows)),
        Some((rows, [])) if rows.len() + 1 == count => Ok((true, rows)),
        _ => Err(wrong),
    }
}

/// Returns the spans: each begins behind the one before, or at its last byte.
fn spans<'a>(compression: &Table<'a, '_>, size: u64) -> Result<Vec<Span<'a>>, SociError> {
    let (first_left_out, rows) = rows(compression.bytes(field::CHECKPOINTS)?)?;
    let digests = compression.vector(field::DIGESTS)?;
    let count = rows.len() + usize::from(first_left_out);
    let last = i32::from_le_bytes(compression.number(field::LAST_SPAN)?.unwrap_or_default());
    if usize::try_from(last).ok() != Some(count - 1) || digests.len() != count {
        return Err(SociError::Damaged("it has digests for another number of spans"));
    }
    let given = rows.iter().map(checkpoint);
    let implied = first_left_out.then_some((SHORT_HEADER, 0, 0, &[][..]));
    let mut spans: Vec<Span<'_>> = Vec::with_capacity(count);
    let mut end = 0; // of the span before
    for ((place, plain, bits, window), digest) in implied.into_iter().chain(given).zip(digests.strings()) {
        let begin = place.checked_sub(u64::from(bits > 0)).filter(|_| bits <= 7);
        let begin = begin.ok_or(SociError::Damaged("the bits of a checkpoint"))?;
        let ascends = spans.last().map_or(plain == 0, |before| plain > before.plain && place > end);
        if !ascends || place >= size || plain > most_plain(size) {
            return Err(SociError::Damaged("its checkpoints are out of order or out of range"));
        }
        if let Some(before) = spans.last_mut() {
            before.end = place;
        }
        let digest = std::str::from_utf8(digest?).ok().and_then(|text| text.parse().ok());
        let digest = digest.ok_or(SociError::Damaged("the digest of a span is no SHA-256"))?;
        // Before the tar has as many bytes the rest of the window is nothing.
        let known = WINDOW.min(usize::try_from(plain).unwrap_or(WINDOW));
        let window = window.get(window.len().saturating_sub(known)..).unwrap_or_default();
        spans.push(Span { begin, end: size, bits, plain, window, digest });
        end = place;
    }
    let long = spans.iter().any(|span| span.end - span.begin > limits::PIECE.into());
    if long { Err(SociError::TooLarge { what: "a span", limit: limits::PIECE.into() }) } else { Ok(spans) }
}

/// Returns the parts of a checkpoint: place in the blob, place in the tar, bits, window.
fn checkpoint(row: &[u8; ROW]) -> (u64, u64, u8, &[u8]) {
    let (head, window) = row.split_at(17);
    let (places, bits) = head.as_chunks::<8>();
    // Below zero is more than any blob is long.
    (u64::from_le_bytes(places[0]), u64::from_le_bytes(places[1]), bits[0], window)
}
