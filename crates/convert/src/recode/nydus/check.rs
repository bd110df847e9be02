//! Whether a blob of Nydus holds the files of the layer it was made of.
//!
//! The layer is packed again, and what comes out is thrown away but for its tree and its chunks: which bytes are which chunk does
//! not depend on how hard they are compressed. Against that the blob's own tree is held, as readers of images find it and as whoever puts
//! layers together does, and every chunk of it is unpacked. All that tells where chunks lie must tell the same.

use std::collections::HashMap;
use std::io::{self, Read};

use format::nydus::bootstrap::Bootstrap;
use format::nydus::disk::{ChunkRow, Unit, UnitV1};
use format::nydus::layer::{Contents, Layer};
use format::nydus::write::CHUNK_SIZE;
use format::tar::Member;
use format::tree::{Apart, File, Runs};
use format::{ChunkId, Digest, Hashed, limits};
use zerocopy::FromBytes;

use super::super::{Order, RecodeError};
use super::hold::hold;
use super::{NydusError, Original, Packing, Parts, packed, parts};
use crate::Expected;

/// A blob that is checked.
#[derive(Debug)]
pub struct Blob<'a, R> {
    /// Its bytes.
    pub bytes: R,
    /// What they must turn out to be.
    pub digest: Digest,
    /// How many there are.
    pub size: u64,
    /// What is at its end.
    pub parts: &'a Parts,
}

/// Compares a layer's blob, of this length, with the one that was made of it in this order; the first difference is the error.
pub fn compare(
    layer: impl Read,
    expected: &Expected,
    size: u64,
    order: Option<Order<'_>>,
    made: Blob<'_, impl Read>,
) -> Result<(), RecodeError> {
    let packing = Packing { level: Some(1), blob_size: size, threads: 1 };
    let (again, original) = packed(layer, expected, &packing, order, io::sink())?;
    trees(&again.parts, made.parts)?;
    read_back(&original, made.parts, made.digest)?;
    chunks(made)
}

/// Holds what a blob says of its layer against the layer; and whoever puts layers together must find in it what other readers do.
fn read_back(original: &Original, parts: &Parts, blob: Digest) -> Result<(), NydusError> {
    let bootstrap = Bootstrap::of_blob(&parts.bootstrap[..], blob)?;
    let Original { layer, ids } = original;
    let nth = |all: &[u32], file: &File, n: u64| match file.runs {
        Runs::Whole(first) => all.get(usize::try_from(first + n).ok()?).copied(),
        _ => None,
    };
    let id = |file: &File, n| ids.get(nth(&layer.pieces, file, n)? as usize);
    hold((&layer.tree, &layer.implied), &bootstrap, |file, n, chunk| id(file, n) == Some(&chunk.id))?;

    let mut tree = Apart::new()?;
    let read = Layer::open(&parts.bootstrap)?;
    let Contents { chunks, .. } =
        read.members::<NydusError>(|member, runs| Ok(tree.member(member, runs)?))?;
    let (tree, implied) = tree.finish_as_tar()?;
    hold((&tree, &implied), &bootstrap, |file, n, chunk| nth(&chunks, file, n) == Some(chunk.number))
}

/// A member, which chunks its bytes are, and whether it is read first.
type Seen = (Member, Vec<u32>, bool);

fn trees(one: &Parts, other: &Parts) -> Result<(), NydusError> {
    let (one, other) = (Layer::open(&one.bootstrap)?, Layer::open(&other.bootstrap)?);
    let mut left = members(&one)?.into_iter();
    for seen in members(&other)? {
        if left.next().is_none_or(|was| was != seen) {
            return Err(NydusError::Differs(format::name::printable(&seen.0.path)));
        }
    }
    if let Some((member, ..)) = left.next() {
        return Err(NydusError::Differs(format::name::printable(&member.path)));
    }
    let rows = |layer: &Layer<'_>| {
        let rows = layer.blob().map_or(&[][..], |blob| &blob.chunks);
        rows.iter().map(|row| (row.number.get(), row.plain_size.get(), row.digest)).collect::<Vec<_>>()
    };
    if rows(&one) == rows(&other) { Ok(()) } else { Err(NydusError::Differs("the list of chunks".into())) }
}

fn members(layer: &Layer<'_>) -> Result<Vec<Seen>, NydusError> {
    let mut seen = Vec::new();
    let Contents { chunks: all, ahead } = layer.members::<NydusError>(|member, runs| {
        seen.push((member.clone(), runs));
        Ok(())
    })?;
    let of = |(member, runs): (Member, Runs)| {
        let mut first_read = false;
        let chunks = match runs {
            Runs::Whole(first) => {
                first_read = ahead.contains(&first);
                let count = member.payload.div_ceil(CHUNK_SIZE.into());
                // In range: they were counted for this member.
                let place = |n: u64| usize::try_from(n).unwrap_or(usize::MAX).min(all.len());
                all[place(first)..place(first + count)].to_vec()
            }
            _ => Vec::new(),
        };
        (member, chunks, first_read)
    };
    Ok(seen.into_iter().map(of).collect())
}

/// Unpacks every chunk of a blob, and looks at all that says where they are.
fn chunks(made: Blob<'_, impl Read>) -> Result<(), RecodeError> {
    let layer = Layer::open(&made.parts.bootstrap).map_err(NydusError::from)?;
    let rows = layer.blob().map_or(&[][..], |blob| &blob.chunks);
    let rows: HashMap<u32, &ChunkRow> = rows.iter().map(|row| (row.number.get(), row)).collect();
    let mut from = Hashed::new(made.bytes);
    let (mut packed, mut plain_space) = (Vec::new(), 0);
    for (number, raw) in (0..).zip(made.parts.meta.as_chunks::<{ size_of::<UnitV1>() }>().0) {
        let differs = || RecodeError::from(NydusError::Differs(format!("chunk {number}")));
        let unit = UnitV1::read_from_bytes(raw).map_err(|_| differs())?.unit();
        let Unit { packed_offset, packed_size, plain_offset, plain_size, .. } = unit;
        let lies = packed_offset == from.at() && plain_offset == plain_space;
        if !lies || plain_size > CHUNK_SIZE || packed_size > plain_size {
            return Err(differs());
        }
        plain_space += u64::from(plain_size).next_multiple_of(limits::BLOCK);
        packed.resize(packed_size as usize, 0);
        from.read_exact(&mut packed).map_err(RecodeError::Read)?;
        let id = match packed_size == plain_size {
            true => ChunkId::of(&packed),
            false => match zstd::bulk::decompress(&packed, plain_size as usize) {
                Ok(plain) if plain.len() == plain_size as usize => ChunkId::of(&plain),
                _ => return Err(differs()),
            },
        };
        // A file that another one of the layer has replaced may have had one that nothing names.
        if rows.get(&number).is_some_and(|row| row.digest != id.0 || !parts::is_at(row, &unit)) {
            return Err(differs());
        }
    }
    made.parts.check_tables(layer.blob().map(|blob| &blob.row), &mut from, plain_space)?;
    let (found, size) = from.finish().map_err(RecodeError::Read)?;
    if size != made.size {
        return Err(RecodeError::BlobLength { expected: made.size, found: Some(size) });
    }
    if found != made.digest {
        return Err(RecodeError::BlobDigest { expected: made.digest, found });
    }
    Ok(())
}
