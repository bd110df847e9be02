//! What a blob says of its own chunks: needed for those that are packed together, or lie in a tar.gz.
//!
//! Nobody vouches for it but the blob's digest, which is known once all of the blob is here. A lie in it makes chunks
//! fail their digests, no more.

use std::collections::BTreeMap;
use std::ops::Range;

use zerocopy::FromBytes;

use super::NydusError;
use super::bootstrap::{Blob, Chunk};
use super::disk::{
    BatchContext, META_MAGIC, MetaHeader, Unit, UnitV1, UnitV2, ZranContext, features, unit_flags,
};
use crate::index::{Entry, Packing, Piece};
use crate::limits;

/// The table of a blob's chunks.
#[derive(Debug, Clone)]
pub struct BlobMeta {
    plain: Vec<u8>,
    /// Chunks in it, and whether they are [`UnitV2`]s.
    units: u32,
    second: bool,
    contexts: Range<usize>,
    packing: Packing,
    /// For a tar.gz, where each context begins, and its number.
    entries: BTreeMap<u64, u32>,
}

/// Length of a context of either kind.
const CONTEXT: usize = size_of::<BatchContext>();
const _: () = assert!(size_of::<ZranContext>() == CONTEXT);

impl BlobMeta {
    /// Returns the range of [`super::bootstrap::Meta::blob`] that has its table and header.
    pub fn range(blob: &Blob) -> Range<u64> {
        let end = blob.meta.offset.saturating_add(blob.meta.packed);
        blob.meta.offset..end.saturating_add(size_of::<MetaHeader>() as u64)
    }

    /// Reads the bytes of that range.
    pub fn open(blob: &Blob, bytes: &[u8]) -> Result<Self, NydusError> {
        let wrong = NydusError::Damaged("meta of a blob");
        let packed = usize::try_from(blob.meta.packed).map_err(|_| wrong.clone())?;
        let (packed, header) = bytes.split_at_checked(packed).ok_or(wrong.clone())?;
        let header = MetaHeader::read_from_bytes(header).map_err(|_| wrong.clone())?;
        if header.magic.get() != META_MAGIC
            || header.magic2.get() != META_MAGIC
            || header.units_plain.get() != blob.meta.plain
            || header.units_packed.get() != blob.meta.packed
        {
            return Err(wrong);
        }
        let plain = unpack(packed, blob)?;
        let second = blob.features & features::UNITS_V2 != 0;
        let unit = if second { size_of::<UnitV2>() } else { size_of::<UnitV1>() };
        let units = header.units.get();
        let end =
            (units as usize).checked_mul(unit).filter(|end| *end <= plain.len()).ok_or(wrong.clone())?;
        let contexts = if header.contexts.get() == 0 {
            0..0
        } else {
            let start = usize::try_from(header.contexts_offset.get()).map_err(|_| wrong.clone())?;
            let len = (header.contexts.get() as usize).saturating_mul(CONTEXT);
            start..start.saturating_add(len)
        };
        if contexts.end > plain.len() || !contexts.is_empty() && contexts.start < end {
            return Err(wrong);
        }
        let (packing, entries) = (blob.packing, BTreeMap::new());
        let mut meta = Self { plain, units, second, contexts, packing, entries };
        if blob.is_tar_gz() {
            for (number, context) in (0..).zip(meta.contexts.clone().step_by(CONTEXT)) {
                let context = meta.record::<ZranContext>(context).ok_or(wrong.clone())?;
                if context.bits > 7
                    || meta.entries.insert(begin(&context).ok_or(wrong.clone())?, number).is_some()
                {
                    return Err(wrong);
                }
            }
        }
        Ok(meta)
    }

    /// Returns where a chunk is, of the blob that this is the meta of.
    pub fn piece(&self, chunk: &Chunk) -> Result<Piece, NydusError> {
        let wrong = NydusError::Damaged("a blob says something else of a chunk than the bootstrap");
        let unit =
            self.unit(chunk.number).filter(|unit| unit.plain_size == chunk.len).ok_or(wrong.clone())?;
        let otherwise = if self.entries.is_empty() { unit_flags::ZRAN } else { unit_flags::BATCH };
        if unit.flags & (unit_flags::ENCRYPTED | otherwise) != 0 || unit.flags & !unit_flags::KNOWN != 0 {
            return Err(NydusError::Unsupported(format!("chunks with flags {:#x}", unit.flags)));
        }
        if !self.entries.is_empty() {
            return self.in_stream(chunk, &unit).ok_or(wrong);
        }
        let (packed, plain, skip) = if unit.flags & unit_flags::BATCH == 0 {
            (unit.packed_size, unit.plain_size, 0)
        } else {
            let [a, b, c, d, number @ ..] = unit.data.to_le_bytes();
            let context = self.context::<BatchContext>(u32::from_le_bytes(number)).ok_or(wrong.clone())?;
            (context.packed_size.get(), context.plain_size.get(), u32::from_le_bytes([a, b, c, d]))
        };
        let plainly = unit.flags & unit_flags::PACKED == 0 || packed == plain;
        let fits = skip.checked_add(chunk.len).is_some_and(|end| end <= plain);
        let sane = packed > 0 && packed <= plain && plain <= limits::PIECE && (packed == plain || !plainly);
        if !fits || !sane {
            return Err(wrong);
        }
        Ok(Piece {
            begin: unit.packed_offset,
            end: unit.packed_offset + u64::from(packed),
            skip,
            blob: chunk.blob + 1,
            packing: if plainly { Packing::Plain } else { self.packing },
        })
    }

    fn unit(&self, number: u32) -> Option<Unit> {
        let rest = |size: usize| self.plain.get(number as usize * size..).filter(|_| number < self.units);
        if self.second {
            Some(UnitV2::read_from_prefix(rest(size_of::<UnitV2>())?).ok()?.0.unit())
        } else {
            Some(UnitV1::read_from_prefix(rest(size_of::<UnitV1>())?).ok()?.0.unit())
        }
    }

    /// Returns where a chunk of a tar.gz is: so much of what comes out of its context is before it.
    fn in_stream(&self, chunk: &Chunk, unit: &Unit) -> Option<Piece> {
        let [a, b, c, d, number @ ..] = unit.data.to_le_bytes();
        let context = self.context::<ZranContext>(u32::from_le_bytes(number))?;
        let skip = u32::from_le_bytes([a, b, c, d]);
        let end = context.packed_offset.get().checked_add(context.packed_size.get().into())?;
        let fits = skip.checked_add(chunk.len).is_some_and(|end| end <= context.plain_size.get());
        let (begin, packing) = (begin(&context)?, Packing::Inside);
        (fits && unit.flags & unit_flags::ZRAN != 0).then_some(Piece {
            begin,
            end,
            skip,
            blob: chunk.blob + 1,
            packing,
        })
    }

    /// Returns what it takes to begin at the place where such a piece does.
    pub fn entry(&self, blob: u16, begin: u64) -> Option<Entry> {
        let context = self.context::<ZranContext>(*self.entries.get(&begin)?)?;
        let at = self.contexts.end.checked_add(usize::try_from(context.window_offset.get()).ok()?)?;
        let window = self.plain.get(at..at.checked_add(context.window_size.get() as usize)?)?;
        Some(Entry { blob, begin, bits: context.bits, window: crate::unpack::close_window(window)? })
    }

    fn context<T: FromBytes>(&self, number: u32) -> Option<T> {
        let at = self.contexts.start.checked_add((number as usize).checked_mul(CONTEXT)?)?;
        self.record(at).filter(|_| at < self.contexts.end)
    }

    fn record<T: FromBytes>(&self, at: usize) -> Option<T> {
        Some(T::read_from_prefix(self.plain.get(at..)?).ok()?.0)
    }
}

/// Returns where the first byte is that somebody needs who enters at a context.
fn begin(context: &ZranContext) -> Option<u64> {
    context.packed_offset.get().checked_sub(u64::from(context.bits > 0))
}

/// Unpacks a table to the length that the bootstrap says.
fn unpack(packed: &[u8], blob: &Blob) -> Result<Vec<u8>, NydusError> {
    let limit = limits::CONTENTS;
    let len = usize::try_from(blob.meta.plain).ok().filter(|len| *len as u64 <= limit);
    let len = len.ok_or(NydusError::TooLarge { what: "the meta of a blob", limit })?;
    if len as u64 > (packed.len() as u64).saturating_mul(limits::EXPANSION) {
        return Err(NydusError::Damaged("length of a blob's meta"));
    }
    let plain = match blob.meta.packing {
        Packing::Plain => packed.to_vec(),
        Packing::Zstd => zstd::bulk::decompress(packed, len).map_err(|_| NydusError::Unpack)?,
        Packing::Lz4 => lz4_flex::block::decompress(packed, len).map_err(|_| NydusError::Unpack)?,
        Packing::Gzip | Packing::Inside => {
            return Err(NydusError::Unsupported("a blob's meta that is packed by gzip".to_owned()));
        }
    };
    if plain.len() == len { Ok(plain) } else { Err(NydusError::Damaged("length of a blob's meta")) }
}
