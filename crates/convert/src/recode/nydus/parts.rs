//! What follows the chunks in a blob, written and found again.
//!
//! It is laid out as [`format::nydus::disk`] shows; each tar header says what lies before it. A layer without a byte in its
//! files has a bootstrap and a table of contents only.

use std::io::Read;
use std::ops::Range;

use format::nydus::disk::{
    BlobRow, ChunkRow, META_MAGIC, MetaHeader, TocEntry, Unit, UnitV1, chunk_flags, compressor, digester,
    features, names, toc_flags,
};
use format::nydus::write::{Blob, CHUNK_SIZE, Files, bootstrap};
use format::{Digest, Hashed, limits};
use zerocopy::{FromBytes, FromZeros, IntoBytes};

use super::super::RecodeError;
use super::super::pack::{Level, Packer};
use super::super::pipe::{Chunk, Placed};
use super::NydusError;
use super::cut::Layer;

/// Block of a tar.
const BLOCK: usize = 512;

/// How the blob that a bootstrap lies in is called there: nobody can know its digest.
const ITSELF: [u8; 64] = [b'x'; 64];

/// What the blobs made here have.
const FEATURES: u32 = features::ALIGNED
    | features::BOOTSTRAP
    | features::DIGESTS
    | features::TAR_HEADERS
    | features::TOC
    | features::CAN_TOC;

/// The level of what is not a file's content, as nydus-image has it.
const LEVEL: Level = Level::Bare(3);

/// What of a blob the image's bootstrap is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Parts {
    /// The layer's own bootstrap.
    pub(super) bootstrap: Vec<u8>,
    /// Where its chunks are, and the header that goes with that; empty without chunks.
    pub(super) meta: Vec<u8>,
    pub(super) meta_header: Vec<u8>,
}

impl Parts {
    /// Says whether an image can be made of them.
    pub fn check(&self) -> Result<(), NydusError> {
        let layer = format::nydus::layer::Layer::open(&self.bootstrap)?;
        layer.members::<NydusError>(|_, _| Ok(())).map(drop)
    }
}

impl Parts {
    /// Reads what follows the chunks of a blob, and compares it with what is known of it; and with both what the layer's bootstrap says of
    /// the blob, if a file is left there that has chunks. `plain_size` is the length of plain space.
    pub(super) fn check_tables(
        &self,
        said: Option<&BlobRow>,
        blob: &mut Hashed<impl Read>,
        plain_size: u64,
    ) -> Result<(), RecodeError> {
        let wrong = |what| Err(RecodeError::from(NydusError::Table(what)));
        if said.is_none() && self.meta.is_empty() {
            return Ok(());
        }
        let chunks = self.meta.len() / size_of::<UnitV1>();
        let Ok(header) = MetaHeader::read_from_bytes(&self.meta_header) else { return wrong("header") };
        part(blob, BLOCK as u64)?; // the chunks' tar header
        let (start, len) = (header.units_offset.get(), header.units_packed.get());
        if start != blob.at() || len > self.meta.len() as u64 {
            return wrong("chunk table");
        }
        let packed = part(blob, len)?;
        let plain = match header.units_compressor.get() {
            compressor::NONE => packed,
            _ => zstd::bulk::decompress(&packed, self.meta.len()).unwrap_or_default(),
        };
        if plain != self.meta || part(blob, self.meta_header.len() as u64)? != self.meta_header {
            return wrong("chunk table");
        }
        let end = blob.at() + (2 * BLOCK + chunks * size_of::<[u8; 32]>()) as u64;
        let row = row(&header, chunks, end, plain_size)?;
        match said.is_none_or(|said| said.as_bytes() == row.as_bytes()) {
            true => Ok(()),
            false => wrong("row in its bootstrap"),
        }
    }
}

/// Returns the next bytes, of which whoever asks has bounded the number.
fn part(blob: &mut impl Read, len: u64) -> Result<Vec<u8>, RecodeError> {
    let mut bytes = Vec::new();
    blob.take(len).read_to_end(&mut bytes).map_err(RecodeError::Read)?;
    Ok(bytes)
}

/// Says whether a chunk is where a blob's own table has it.
pub(super) fn is_at(row: &ChunkRow, unit: &Unit) -> bool {
    let flags = if unit.packed_size == unit.plain_size { 0 } else { chunk_flags::PACKED };
    (row.packed_offset.get(), row.packed_size.get()) == (unit.packed_offset, unit.packed_size)
        && (row.plain_offset.get(), row.plain_size.get()) == (unit.plain_offset, unit.plain_size)
        && row.flags.get() == flags
}

/// Why the end of a blob tells nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PartsError {
    /// It does not end as blobs made here do.
    #[error("it has no table of contents")]
    Toc,
    /// A part lies elsewhere than where it should, or is larger than a limit.
    #[error("its {0} has no possible place")]
    Place(&'static str),
    /// A part is not what the table says.
    #[error("its {0} is damaged")]
    Damaged(&'static str),
}

/// Returns the parts of a layer's blob, and all that follows the chunks.
pub(super) fn write(layer: &Layer, placed: Placed) -> Result<(Parts, Vec<u8>), RecodeError> {
    let mut tail = Tail::new(placed.end)?;
    let (chunks, plain_size) = rows(&placed.chunks)?;
    let (mut meta, mut meta_header) = (Vec::new(), Vec::new());
    let mut blobs = Vec::new();
    if !chunks.is_empty() {
        let data = placed.digest.ok_or(RecodeError::Thread)?;
        tail.entry(names::CHUNKS, toc_flags::PLAIN, &data, 0, [placed.end, plain_size])?;
        tail.header(names::CHUNKS, placed.end);
        meta = units(&chunks)?;
        let header = tail.meta(&meta, chunks.len())?;
        meta_header = header.as_bytes().to_vec();
        tail.digests(&chunks)?;
        let row = row(&header, chunks.len(), tail.at(), plain_size)?;
        blobs.push(Blob { row, chunks });
    }
    let numbers = layer.pieces.iter().map(|piece| placed.copies.get(*piece as usize).copied());
    let chunks = numbers.collect::<Option<_>>().ok_or(RecodeError::Thread)?;
    let bootstrap = bootstrap(
        &layer.tree,
        &blobs,
        &[Files { blob: 0, chunks, ahead: layer.ahead.clone() }],
        &layer.implied,
    );
    let bootstrap = bootstrap.map_err(NydusError::from)?;
    tail.bootstrap(&bootstrap)?;
    Ok((Parts { bootstrap, meta, meta_header }, tail.finish()))
}

/// Returns chunks as a bootstrap has them, and the length of plain space.
fn rows(chunks: &[Chunk]) -> Result<(Vec<ChunkRow>, u64), RecodeError> {
    let mut plain_offset = 0;
    let mut rows = Vec::with_capacity(chunks.len());
    for (number, chunk) in (0_u32..).zip(chunks) {
        let mut row = ChunkRow::new_zeroed();
        row.digest = chunk.id.0;
        row.flags = if chunk.packed == chunk.plain { 0 } else { chunk_flags::PACKED }.into();
        row.packed_size = chunk.packed.into();
        row.plain_size = chunk.plain.into();
        row.packed_offset = chunk.offset.into();
        row.plain_offset = plain_offset.into();
        row.number = number.into();
        plain_offset += u64::from(chunk.plain).next_multiple_of(limits::BLOCK);
        rows.push(row);
    }
    Ok((rows, plain_offset))
}

fn units(chunks: &[ChunkRow]) -> Result<Vec<u8>, RecodeError> {
    let mut units = Vec::with_capacity(chunks.len() * size_of::<UnitV1>());
    for chunk in chunks {
        let unit = Unit {
            packed_offset: chunk.packed_offset.get(),
            packed_size: chunk.packed_size.get(),
            plain_offset: chunk.plain_offset.get(),
            plain_size: chunk.plain_size.get(),
            flags: 0,
            data: 0,
        };
        // Not a blob of 2^40 bytes, nor of 2^44 plain ones.
        let unit =
            UnitV1::new(&unit).ok_or(RecodeError::Limit { what: "a blob of Nydus", limit: 1 << 40 })?;
        units.extend_from_slice(unit.as_bytes());
    }
    Ok(units)
}

fn row(header: &MetaHeader, chunks: usize, end: u64, plain_size: u64) -> Result<BlobRow, RecodeError> {
    let mut row = BlobRow::new_zeroed();
    row.id = ITSELF;
    row.chunk_size = CHUNK_SIZE.into();
    row.chunks = u32::try_from(chunks).map_err(|_| RecodeError::Thread)?.into();
    row.compressor = compressor::ZSTD.into();
    row.digester = digester::BLAKE3.into();
    row.features = FEATURES.into();
    row.packed_size = end.into();
    row.plain_size = plain_size.into();
    row.units_compressor = header.units_compressor;
    row.units_offset = header.units_offset;
    row.units_packed = header.units_packed;
    row.units_plain = header.units_plain;
    Ok(row)
}

/// The end of a blob, growing.
struct Tail {
    /// Where in the blob it begins.
    start: u64,
    bytes: Vec<u8>,
    toc: Vec<u8>,
    packer: Packer,
}

impl Tail {
    fn new(start: u64) -> Result<Self, RecodeError> {
        Ok(Self { start, bytes: Vec::new(), toc: Vec::new(), packer: Packer::new(LEVEL)? })
    }

    fn at(&self) -> u64 {
        self.start + self.bytes.len() as u64
    }

    fn meta(&mut self, units: &[u8], count: usize) -> Result<MetaHeader, RecodeError> {
        let start = self.at();
        let (flag, kind, packed) = self.packed(units)?;
        let plain = units.len() as u64;
        let mut header = MetaHeader::new_zeroed();
        header.magic = META_MAGIC.into();
        header.features = FEATURES.into();
        header.units_compressor = kind.into();
        header.units = u32::try_from(count).map_err(|_| RecodeError::Thread)?.into();
        header.units_offset = start.into();
        header.units_packed = packed.into();
        header.units_plain = plain.into();
        header.magic2 = META_MAGIC.into();
        let bytes = header.as_bytes();
        self.bytes.extend_from_slice(bytes);
        let len = bytes.len() as u64;
        self.header(names::META, packed + len);
        self.entry(names::META, flag, &Digest::of(units), start, [packed, plain])?;
        let digest = Digest::of(bytes);
        self.entry(names::META_HEADER, toc_flags::PLAIN, &digest, start + packed, [len, len])?;
        Ok(header)
    }

    fn digests(&mut self, chunks: &[ChunkRow]) -> Result<(), RecodeError> {
        let (start, before) = (self.at(), self.bytes.len());
        chunks.iter().for_each(|chunk| self.bytes.extend_from_slice(&chunk.digest));
        let len = (self.bytes.len() - before) as u64;
        let digest = Digest::of(&self.bytes[before..]);
        self.header(names::DIGESTS, len);
        self.entry(names::DIGESTS, toc_flags::PLAIN, &digest, start, [len, len])
    }

    fn bootstrap(&mut self, bootstrap: &[u8]) -> Result<(), RecodeError> {
        let start = self.at();
        let (flag, _, packed) = self.packed(bootstrap)?;
        self.header(names::BOOTSTRAP, packed);
        let digest = Digest::of(bootstrap);
        self.entry(names::BOOTSTRAP, flag, &digest, start, [packed, bootstrap.len() as u64])
    }

    fn finish(mut self) -> Vec<u8> {
        let toc = std::mem::take(&mut self.toc);
        self.bytes.extend_from_slice(&toc);
        self.header(names::TOC, toc.len() as u64);
        self.bytes
    }

    /// Appends bytes, packed if that makes them shorter; says how, in both ways to say it, and how many there are.
    fn packed(&mut self, plain: &[u8]) -> Result<(u32, u32, u64), RecodeError> {
        let before = self.bytes.len();
        let len = self.packer.pack(plain, &mut self.bytes)?;
        if len < plain.len() {
            return Ok((toc_flags::ZSTD, compressor::ZSTD, len as u64));
        }
        self.bytes.truncate(before);
        self.bytes.extend_from_slice(plain);
        Ok((toc_flags::PLAIN, compressor::NONE, plain.len() as u64))
    }

    fn entry(
        &mut self,
        name: &str,
        flags: u32,
        digest: &Digest,
        offset: u64,
        [packed, plain]: [u64; 2],
    ) -> Result<(), RecodeError> {
        let mut entry = TocEntry::new_zeroed();
        entry.flags = flags.into();
        entry.name.get_mut(..name.len()).ok_or(RecodeError::Thread)?.copy_from_slice(name.as_bytes());
        entry.digest = *digest.as_bytes();
        entry.packed_offset = offset.into();
        entry.packed_size = packed.into();
        entry.plain_size = plain.into();
        self.toc.extend_from_slice(entry.as_bytes());
        Ok(())
    }

    /// Appends the header of the part before it. Readers want one of GNU's.
    fn header(&mut self, name: &str, size: u64) {
        let mut header = [0; BLOCK];
        header[..name.len()].copy_from_slice(name.as_bytes());
        // Eleven octal digits, or a number of eight bytes.
        if size < 1 << 33 {
            header[124..135].copy_from_slice(format!("{size:011o}").as_bytes());
        } else {
            header[124] = 0x80;
            header[128..136].copy_from_slice(&size.to_be_bytes());
        }
        header[136..147].fill(b'0');
        header[156] = b'0';
        header[257..265].copy_from_slice(b"ustar  \0");
        header[148..156].fill(b' ');
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..156].copy_from_slice(format!("{sum:07o}\0").as_bytes());
        self.bytes.extend_from_slice(&header);
    }
}

/// The table of contents of a blob: where its parts are.
#[derive(Debug, Clone)]
pub struct Toc {
    meta: Option<[TocEntry; 2]>,
    bootstrap: TocEntry,
}

impl Toc {
    /// The end of a blob, as far as the table may reach.
    pub const TAIL: u64 = 4096;

    /// Reads the table in the last bytes of a blob: at most [`Toc::TAIL`] of them, or the whole blob.
    pub fn read(tail: &[u8], blob_size: u64) -> Result<Self, PartsError> {
        let (rest, header) = tail.split_last_chunk::<BLOCK>().ok_or(PartsError::Toc)?;
        let len = octal(&header[124..135]).filter(|_| header.starts_with(names::TOC.as_bytes()));
        let start = len.and_then(|len| rest.len().checked_sub(len)).ok_or(PartsError::Toc)?;
        let entries = rest[start..].chunks(size_of::<TocEntry>()).map(TocEntry::read_from_bytes);
        let entries: Vec<_> = entries.collect::<Result<_, _>>().map_err(|_| PartsError::Toc)?;
        let find = |name: &str| {
            let named = |entry: &&TocEntry| entry.name.strip_prefix(name.as_bytes()).is_some_and(zeros);
            entries.iter().find(named).copied()
        };
        let bootstrap = find(names::BOOTSTRAP).ok_or(PartsError::Toc)?;
        let meta = find(names::META).zip(find(names::META_HEADER)).map(|(meta, header)| [meta, header]);
        for entry in meta.iter().flatten().chain([&bootstrap]) {
            let (packed, plain) = (entry.packed_size.get(), entry.plain_size.get());
            let end = entry.packed_offset.get().checked_add(packed).filter(|end| *end <= blob_size);
            if end.is_none() || plain > limits::METADATA || packed > plain {
                return Err(PartsError::Place("bootstrap or chunk table"));
            }
        }
        let toc = Self { meta, bootstrap };
        let range = toc.range();
        if range.end - range.start > limits::METADATA {
            return Err(PartsError::Place("bootstrap or chunk table"));
        }
        Ok(toc)
    }

    /// Returns which part of the blob [`Toc::parts`] wants.
    pub fn range(&self) -> Range<u64> {
        let of = |entry: &TocEntry| {
            let start = entry.packed_offset.get();
            start..start + entry.packed_size.get()
        };
        let wider = |range: Range<u64>, entry: &TocEntry| {
            let more = of(entry);
            range.start.min(more.start)..range.end.max(more.end)
        };
        self.meta.iter().flatten().fold(of(&self.bootstrap), wider)
    }

    /// Returns where the bootstrap is.
    pub(super) fn bootstrap_range(&self) -> Range<u64> {
        let start = self.bootstrap.packed_offset.get();
        start..start + self.bootstrap.packed_size.get()
    }

    /// Returns how long the bootstrap is, plain; packed it is no longer.
    pub(super) fn bootstrap_len(&self) -> u64 {
        self.bootstrap.plain_size.get()
    }

    /// Unpacks the bootstrap, and compares it with what the table says.
    pub(super) fn bootstrap(&self, bytes: &[u8]) -> Result<Vec<u8>, PartsError> {
        let start = self.bootstrap.packed_offset.get();
        unpack(&self.bootstrap, bytes, start).ok_or(PartsError::Damaged(names::BOOTSTRAP))
    }

    /// Unpacks the parts, and compares them with what the table says.
    pub fn parts(&self, bytes: &[u8]) -> Result<Parts, PartsError> {
        let start = self.range().start;
        let part = |entry: &TocEntry, what| unpack(entry, bytes, start).ok_or(PartsError::Damaged(what));
        let bootstrap = part(&self.bootstrap, names::BOOTSTRAP)?;
        let [meta, meta_header] = match &self.meta {
            Some([meta, header]) => [part(meta, names::META)?, part(header, names::META_HEADER)?],
            None => [Vec::new(), Vec::new()],
        };
        Ok(Parts { bootstrap, meta, meta_header })
    }
}

/// Returns the plain bytes of an entry; `bytes` are those of the blob from `start` on.
fn unpack(entry: &TocEntry, bytes: &[u8], start: u64) -> Option<Vec<u8>> {
    let from = usize::try_from(entry.packed_offset.get().checked_sub(start)?).ok()?;
    let len = usize::try_from(entry.packed_size.get()).ok()?;
    let (packed, plain) =
        (bytes.get(from..from.checked_add(len)?)?, usize::try_from(entry.plain_size.get()).ok()?);
    let unpacked = match entry.flags.get() {
        toc_flags::PLAIN => packed.to_vec(),
        toc_flags::ZSTD => zstd::bulk::decompress(packed, plain).ok()?,
        _ => return None,
    };
    (unpacked.len() == plain && Digest::of(&unpacked).as_bytes() == &entry.digest).then_some(unpacked)
}

fn octal(digits: &[u8]) -> Option<usize> {
    usize::from_str_radix(std::str::from_utf8(digits).ok()?, 8).ok()
}

fn zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
