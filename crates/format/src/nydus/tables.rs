//! The tables of a bootstrap: blobs, chunks, what is to be read first.

use std::ops::Range;

use zerocopy::FromBytes;

use super::NydusError;
use super::bootstrap::{Blob, Chunk, Meta};
use super::disk::{
    self, BLOBS, BlobRow, ChunkAddress, ChunkRow, DEVICES_OFFSET, DeviceSlot, Extension, chunk_flags,
    compressor, digester, features,
};
use crate::digest::{ChunkId, Digest};
use crate::erofs::disk::SuperBlock;
use crate::index::{Hash, Packing, Piece};
use crate::limits;

/// The tables as bytes, each of whole rows.
pub(super) struct Found<'a> {
    devices: &'a [u8],
    blobs: &'a [u8],
    chunks: &'a [u8],
    pub(super) prefetch: &'a [u8],
}

/// Finds the tables: inside, behind the superblock, apart from each other.
pub(super) fn find<'a>(raw: &'a [u8], block: &SuperBlock, ext: &Extension) -> Result<Found<'a>, NydusError> {
    let count = usize::from(block.devices.get());
    let devices = range(raw, DEVICES_OFFSET as u64, (count * size_of::<DeviceSlot>()) as u64);
    let devices =
        devices.filter(|_| usize::from(block.device_table.get()) * size_of::<DeviceSlot>() == DEVICES_OFFSET);
    let devices = devices.ok_or(NydusError::Damaged("place of the device table"))?;
    let table = |offset: u64, len: u64, row: usize, align: u64, what| {
        let found = range(raw, offset, len).filter(|range| {
            // A table that is empty may be said to be anywhere.
            range.is_empty()
                || range.start >= devices.end && range.len() % row == 0 && offset.is_multiple_of(align)
        });
        found.ok_or(NydusError::Damaged(what))
    };
    let blobs = table(
        ext.blobs_offset.get(),
        ext.blobs_size.get().into(),
        size_of::<BlobRow>(),
        limits::BLOCK,
        "place of the blob table",
    )?;
    let chunks = table(
        ext.chunks_offset.get(),
        ext.chunks_size.get(),
        size_of::<ChunkRow>(),
        limits::BLOCK,
        "place of the chunk table",
    )?;
    // Old writers state a length where there is none.
    let prefetch = match ext.prefetch_offset.get() {
        0 => 0..0,
        offset => table(offset, ext.prefetch_size.get().into(), 4, 1, "place of the prefetch table")?,
    };
    if !apart(&[&blobs, &chunks, &prefetch]) {
        return Err(NydusError::Damaged("its tables overlap"));
    }
    Ok(Found { devices: &raw[devices], blobs: &raw[blobs], chunks: &raw[chunks], prefetch: &raw[prefetch] })
}

/// Says whether tables have no byte in common.
pub(super) fn apart(tables: &[&Range<usize>]) -> bool {
    let two = |a: &Range<usize>, b: &Range<usize>| {
        a.is_empty() || b.is_empty() || a.end <= b.start || b.end <= a.start
    };
    tables.iter().enumerate().all(|(n, a)| tables[n + 1..].iter().all(|b| two(a, b)))
}

/// Returns a range of the bytes, if they have it.
pub(super) fn range(raw: &[u8], offset: u64, len: u64) -> Option<Range<usize>> {
    let start = usize::try_from(offset).ok()?;
    let end = usize::try_from(offset.checked_add(len)?).ok()?;
    if len == 0 { Some(0..0) } else { (end <= raw.len()).then_some(start..end) }
}

/// Reads the blobs.
pub(super) fn blobs(
    found: &Found<'_>,
    chunk_size: u32,
    hash: Hash,
    itself: Option<Digest>,
) -> Result<Vec<Blob>, NydusError> {
    let rows = found.blobs.chunks_exact(size_of::<BlobRow>());
    let devices = found.devices.chunks_exact(size_of::<DeviceSlot>());
    if rows.len() != devices.len() || rows.len() > BLOBS {
        return Err(NydusError::Damaged("number of blobs"));
    }
    let mut blobs: Vec<Blob> = Vec::with_capacity(rows.len());
    for (row, device) in rows.zip(devices) {
        let rows = BlobRow::read_from_bytes(row).ok().zip(DeviceSlot::read_from_bytes(device).ok());
        let Some((row, device)) = rows else { return Err(NydusError::Damaged("blob table")) };
        if row.number.get() as usize != blobs.len() || row.id != device.id {
            return Err(NydusError::Damaged("blob and device tables"));
        }
        let blob = blob(&row, chunk_size, hash, itself)?;
        if blobs.iter().any(|other| other.id == blob.id) {
            return Err(NydusError::Damaged("a blob is listed twice"));
        }
        blobs.push(blob);
    }
    Ok(blobs)
}

/// Reads one blob.
fn blob(row: &BlobRow, chunk_size: u32, hash: Hash, itself: Option<Digest>) -> Result<Blob, NydusError> {
    let wrong = |what| Err(NydusError::Damaged(what));
    let set = row.features.get();
    let id = blob_id(&row.id, itself.filter(|_| set & features::BOOTSTRAP != 0))?;
    known(set, row.cipher.get())?;
    if set & features::ALIGNED == 0 {
        return wrong("a blob's chunks do not begin at blocks");
    }
    if row.chunk_size.get() != chunk_size || row.chunks.get() > disk::CHUNKS {
        return wrong("chunks of a blob");
    }
    let of_row = match row.digester.get() {
        digester::BLAKE3 => Hash::Blake3,
        digester::SHA256 => Hash::Sha256,
        other => return Err(NydusError::Unsupported(format!("digests of kind {other}"))),
    };
    if of_row != hash {
        return Err(NydusError::Unsupported("blobs with different kinds of digests".to_owned()));
    }
    let (packed_size, plain_size) = (row.packed_size.get(), row.plain_size.get());
    if packed_size > limits::LAYER || plain_size > limits::LAYER {
        return Err(NydusError::TooLarge { what: "a blob", limit: limits::LAYER });
    }
    let meta = Meta {
        blob: if set & features::SEPARATE == 0 { id } else { Digest::from_bytes(row.meta_digest) },
        offset: row.units_offset.get(),
        packed: row.units_packed.get(),
        plain: row.units_plain.get(),
        packing: packing(row.units_compressor.get())?,
    };
    if meta.offset.checked_add(meta.packed).is_none() {
        return wrong("place of a blob's meta");
    }
    Ok(Blob {
        id,
        packing: packing(row.compressor.get())?,
        chunks: row.chunks.get(),
        packed_size,
        plain_size,
        features: set,
        meta,
    })
}

/// Returns the digest that a blob's id is, or the one it has if the bootstrap lies in it.
pub(super) fn blob_id(raw: &[u8], itself: Option<Digest>) -> Result<Digest, NydusError> {
    if let Some(itself) = itself {
        return Ok(itself);
    }
    let id = std::str::from_utf8(raw).ok().and_then(|id| format!("sha256:{id}").parse().ok());
    id.ok_or(NydusError::Damaged("a blob's id is not that of SHA-256"))
}

/// Refuses a blob that has to be read otherwise.
pub(super) fn known(set: u32, cipher: u32) -> Result<(), NydusError> {
    const KNOWN: u32 = features::ALIGNED
        | features::BOOTSTRAP
        | features::UNITS_V2
        | features::DIGESTS
        | features::BATCH
        | features::DICTIONARY
        | features::PREFETCH;
    const ZRAN: u32 = features::ZRAN | features::SEPARATE | features::UNITS_V2;
    // Where a tar.gz can be entered is never said in itself.
    let zran = if set & ZRAN == ZRAN { features::ZRAN | features::SEPARATE } else { 0 };
    let unknown = set & features::INCOMPATIBLE & !(KNOWN | zran);
    let what = if unknown & features::ZRAN != 0 {
        "a blob that is a tar.gz (zran) without a blob beside it".to_owned()
    } else if unknown & features::TARFS != 0 {
        "a blob that is a tar (tarfs)".to_owned()
    } else if unknown & features::SEPARATE != 0 {
        "a blob whose table is a blob of its own".to_owned()
    } else if unknown & features::EXTERNAL != 0 {
        "a blob that is not in the registry (external)".to_owned()
    } else if unknown & features::ENCRYPTED != 0 || cipher != 0 {
        "an encrypted blob".to_owned()
    } else if unknown != 0 || set & features::INTERNAL != 0 {
        format!("a blob with features {set:#x}")
    } else {
        return Ok(());
    };
    Err(NydusError::Unsupported(what))
}

fn packing(number: u32) -> Result<Packing, NydusError> {
    match number {
        compressor::NONE => Ok(Packing::Plain),
        compressor::LZ4_BLOCK => Ok(Packing::Lz4),
        compressor::GZIP => Ok(Packing::Gzip),
        compressor::ZSTD => Ok(Packing::Zstd),
        other => Err(NydusError::Unsupported(format!("compressor {other}"))),
    }
}

/// The chunks, to be found by their addresses: blob and number together, for they are what tells chunks apart.
#[derive(Debug, Clone, Default)]
pub(super) struct Rows(Vec<Row>);

#[derive(Debug, Clone, Copy)]
struct Row {
    /// Place in the blob's plain space, in blocks.
    block: u32,
    chunk: Chunk,
}

impl Row {
    fn key(&self) -> (u16, u32) {
        (self.chunk.blob, self.chunk.number)
    }
}

/// Reads the chunks.
pub(super) fn rows(found: &Found<'_>, chunk_size: u32, blobs: &[Blob]) -> Result<Rows, NydusError> {
    let raw = found.chunks.chunks_exact(size_of::<ChunkRow>());
    let mut rows = Vec::with_capacity(raw.len());
    for row in raw {
        let Ok(row) = ChunkRow::read_from_bytes(row) else { return Err(NydusError::Damaged("chunk table")) };
        let chunk = chunk(&row, chunk_size, blobs)?;
        let (blob, plain) = (&blobs[usize::from(chunk.blob)], row.plain_offset.get());
        let ends = plain.checked_add(chunk.len.into());
        let ends = ends.is_some_and(|end| end <= blob.plain_size.next_multiple_of(limits::BLOCK));
        let block = u32::try_from(plain / limits::BLOCK).ok();
        let block =
            block.filter(|_| ends && plain.is_multiple_of(limits::BLOCK) && chunk.number < disk::CHUNKS);
        let block = block.ok_or(NydusError::Damaged("address of a chunk"))?;
        rows.push(Row { block, chunk });
    }
    rows.sort_unstable_by_key(Row::key);
    if rows.windows(2).any(|two| two[0].key() == two[1].key()) {
        return Err(NydusError::Damaged("a chunk is there twice"));
    }
    Ok(Rows(rows))
}

/// Reads one chunk.
pub(super) fn chunk(row: &ChunkRow, chunk_size: u32, blobs: &[Blob]) -> Result<Chunk, NydusError> {
    let wrong = |what| Err(NydusError::Damaged(what));
    let number = u16::try_from(row.blob.get()).ok();
    let Some((number, blob)) = number.and_then(|number| Some((number, blobs.get(usize::from(number))?)))
    else {
        return wrong("a chunk is in a blob that there is not");
    };
    let set = row.flags.get();
    if set & chunk_flags::ENCRYPTED != 0 {
        return Err(NydusError::Unsupported("encrypted chunks".to_owned()));
    }
    if set & !(chunk_flags::PACKED | chunk_flags::BATCH | chunk_flags::CRC32) != 0 {
        return Err(NydusError::Unsupported(format!("chunks with flags {set:#x}")));
    }
    let (len, packed, begin) = (row.plain_size.get(), row.packed_size.get(), row.packed_offset.get());
    if len == 0 || len > chunk_size {
        return wrong("length of a chunk");
    }
    let mut chunk =
        Chunk { blob: number, number: row.number.get(), len, id: ChunkId(row.digest), piece: None };
    if blob.is_tar_gz() {
        return Ok(chunk); // the lengths are of no use: what a decoder reads is not what a chunk is made of
    }
    // The reference leaves all of it empty.
    let batch = set & chunk_flags::BATCH != 0 || blob.has_batches() && packed == 0;
    if batch != (packed == 0) || batch && !blob.has_batches() {
        return wrong("packed length of a chunk");
    }
    if begin.checked_add(packed.into()).is_none_or(|end| end > blob.packed_size) {
        return wrong("a chunk reaches over the end of its blob");
    }
    let packing = if set & chunk_flags::PACKED != 0 { blob.packing } else { Packing::Plain };
    if !batch && packing == Packing::Plain && packed != len || packed > limits::PIECE {
        return wrong("packed length of a chunk");
    }
    let piece = Piece { begin, end: begin + u64::from(packed), skip: 0, blob: number + 1, packing };
    chunk.piece = (!batch).then_some(piece);
    Ok(chunk)
}

impl Rows {
    /// Returns the chunk at an address.
    pub(super) fn chunk(&self, address: &ChunkAddress) -> Option<Chunk> {
        let key = (u16::try_from(address.blob()?).ok()?, address.number());
        let row = &self.0[self.0.binary_search_by_key(&key, Row::key).ok()?];
        (row.block == address.block.get()).then_some(row.chunk)
    }
}
