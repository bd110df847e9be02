//! What a blob says of its own chunks: needed for those that are packed together.
//!
//! Nobody vouches for it but the blob's digest, which is known once all of the blob is here. A lie in it makes chunks
//! fail their digests, no more.

use std::ops::Range;

use zerocopy::FromBytes;

use super::NydusError;
use super::bootstrap::{Blob, Chunk};
use super::disk::{BatchContext, META_MAGIC, MetaHeader, Unit, UnitV1, UnitV2, features, unit_flags};
use crate::index::{Packing, Piece};
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
}

impl BlobMeta {
    /// Returns the range of a blob that has its table and header.
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
            let len = (header.contexts.get() as usize).saturating_mul(size_of::<BatchContext>());
            start..start.saturating_add(len)
        };
        if contexts.end > plain.len() || !contexts.is_empty() && contexts.start < end {
            return Err(wrong);
        }
        Ok(Self { plain, units, second, contexts, packing: blob.packing })
    }

    /// Returns where a chunk is, of the blob that this is the meta of.
    pub fn piece(&self, chunk: &Chunk) -> Result<Piece, NydusError> {
        let wrong = NydusError::Damaged("a blob says something else of a chunk than the bootstrap");
        let unit =
            self.unit(chunk.number).filter(|unit| unit.plain_size == chunk.len).ok_or(wrong.clone())?;
        if unit.flags & (unit_flags::ENCRYPTED | unit_flags::ZRAN) != 0
            || unit.flags & !unit_flags::KNOWN != 0
        {
            return Err(NydusError::Unsupported(format!("chunks with flags {:#x}", unit.flags)));
        }
        let (packed, plain, skip) = if unit.flags & unit_flags::BATCH == 0 {
            (unit.packed_size, unit.plain_size, 0)
        } else {
            let [a, b, c, d, number @ ..] = unit.data.to_le_bytes();
            let context = self.context(u32::from_le_bytes(number)).ok_or(wrong.clone())?;
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

    fn context(&self, number: u32) -> Option<BatchContext> {
        let all = self.plain.get(self.contexts.clone())?;
        let at = (number as usize).checked_mul(size_of::<BatchContext>())?;
        Some(BatchContext::read_from_prefix(all.get(at..)?).ok()?.0)
    }
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
        Packing::Gzip => {
            return Err(NydusError::Unsupported("a blob's meta that is packed by gzip".to_owned()));
        }
    };
    if plain.len() == len { Ok(plain) } else { Err(NydusError::Damaged("length of a blob's meta")) }
}
