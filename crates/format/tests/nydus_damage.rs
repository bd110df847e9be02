//! Bootstraps and metas that are damaged, or were made to do harm: an error, or something harmless.

use std::path::Path;

use format::Digest;
use format::erofs::disk::SuperBlock;
use format::nydus::NydusError;
use format::nydus::bootstrap::Bootstrap;
use format::nydus::disk::{BlobRow, ChunkRow, Extension, compressor, features, flags};
use format::nydus::meta::BlobMeta;
use proptest::prelude::*;
use zerocopy::{FromBytes, IntoBytes};

#[cfg(test)]
fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/nydus/{name}.zst"));
    zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap()
}

/// Reads everything there is, and returns how many names and chunks.
#[cfg(test)]
fn read(bytes: &[u8]) -> Result<(usize, usize), NydusError> {
    let bootstrap = Bootstrap::open(bytes)?;
    let list = bootstrap.list()?;
    let mut chunks = 0;
    for n in 0..list.len() {
        list.member(n)?;
        for chunk in list.chunks(n)? {
            chunk?;
            chunks += 1;
        }
    }
    Ok((list.len(), chunks))
}

/// Changes a record of some bytes.
#[cfg(test)]
fn change<T: FromBytes + IntoBytes + zerocopy::Immutable>(
    bytes: &mut [u8],
    at: usize,
    how: impl FnOnce(&mut T),
) {
    let place = &mut bytes[at..at + size_of::<T>()];
    let mut record = T::read_from_bytes(place).unwrap();
    how(&mut record);
    place.copy_from_slice(record.as_bytes());
}

#[cfg(test)]
fn with<T: FromBytes + IntoBytes + zerocopy::Immutable>(at: usize, how: impl FnOnce(&mut T)) -> NydusError {
    let mut bytes = vector("merged.boot");
    change(&mut bytes, at, how);
    read(&bytes).unwrap_err()
}

#[test]
fn what_is_not_supported_is_named() {
    let said = |error: NydusError, word: &str| {
        let NydusError::Unsupported(said) = &error else { panic!("{error}") };
        assert!(said.contains(word), "{said}");
    };
    let ext = |how: fn(&mut Extension)| with(1152, how);
    said(ext(|ext| ext.flags |= flags::AES_128_XTS), "encrypted");
    said(ext(|ext| ext.flags |= flags::TARFS), "tarfs");
    said(ext(|ext| ext.flags |= 1 << 40), "0x10000000000");
    said(with(1024, |sb: &mut SuperBlock| sb.block_bits = 9), "512");
    said(with(1024, |sb: &mut SuperBlock| sb.feature_compat = 0.into()), "Nydus 3");
    said(with(1024, |sb: &mut SuperBlock| sb.feature_incompat |= 1), "features 0xd");
    said(with(1024, |sb: &mut SuperBlock| sb.xattr_block = 1.into()), "shared");
    for (bit, word) in [
        (features::ZRAN, "zran"),
        (features::SEPARATE, "of its own"),
        (features::TARFS, "tarfs"),
        (features::ENCRYPTED, "encrypted"),
        (features::EXTERNAL, "external"),
        (0x1000, "features"),
        (features::INTERNAL, "features"),
    ] {
        said(with(4096, |row: &mut BlobRow| row.features |= bit), word);
    }
    said(with(4096 + 256, |row: &mut BlobRow| row.cipher = 1.into()), "encrypted");
    said(with(4096 + 256, |row: &mut BlobRow| row.digester = 1.into()), "different");
    said(with(4096 + 256, |row: &mut BlobRow| row.digester = 2.into()), "digests");
    said(with(4096 + 256, |row: &mut BlobRow| row.compressor = 4.into()), "compressor 4");
    said(with(0, |magic: &mut [u8; 4]| *magic = *b"SFAR"), "version 5");
    let mut bytes = vector("merged.boot");
    bytes[1024] ^= 1;
    assert_eq!(read(&bytes), Err(NydusError::Magic));
    assert_eq!(read(&[0; 1300]), Err(NydusError::Magic));
}

#[test]
fn tables_that_contradict_each_other_are_refused() {
    let damaged = |error| assert!(matches!(error, NydusError::Damaged(_)), "{error}");
    let ext = |how: fn(&mut Extension)| with(1152, how);
    damaged(ext(|ext| ext.flags |= flags::LZ4_BLOCK));
    damaged(ext(|ext| ext.flags |= flags::SHA256));
    damaged(ext(|ext| ext.chunk_size += 1));
    damaged(ext(|ext| ext.chunk_size = 2048.into()));
    damaged(ext(|ext| ext.chunk_size = 0x8000.into()));
    damaged(ext(|ext| ext.blobs_offset = u64::MAX.into()));
    damaged(ext(|ext| ext.blobs_size -= 256));
    damaged(ext(|ext| ext.chunks_offset = ext.blobs_offset));
    damaged(ext(|ext| ext.chunks_size += 1));
    damaged(ext(|ext| ext.chunks_size = u64::MAX.into()));
    damaged(ext(|ext| ext.prefetch_offset = ext.chunks_offset));
    damaged(ext(|ext| ext.prefetch_offset = 1408.into()));
    damaged(with(1024, |sb: &mut SuperBlock| sb.checksum = 1.into()));
    damaged(with(1024, |sb: &mut SuperBlock| sb.devices = 2.into()));
    damaged(with(1024, |sb: &mut SuperBlock| sb.device_table = 12.into()));
    let blob = |how: fn(&mut BlobRow)| damaged(with(4096, how));
    blob(|row| row.id[0] = b'g');
    blob(|row| row.id[3] ^= 1);
    blob(|row| row.number = 1.into());
    blob(|row| row.chunk_size = 4096.into());
    blob(|row| row.features = 0.into());
    blob(|row| row.packed_size = 100.into());
    blob(|row| row.plain_size = 4096.into());
    blob(|row| row.units_offset = u64::MAX.into());
    let table = usize::try_from(table(&vector("merged.boot"))).unwrap();
    let chunk = |how: fn(&mut ChunkRow)| damaged(with(table, how));
    chunk(|row| row.blob = 3.into());
    chunk(|row| row.plain_size = 0.into());
    chunk(|row| row.plain_size = 0x4001.into());
    chunk(|row| row.plain_offset += 1);
    chunk(|row| row.plain_offset = (1 << 44).into());
    chunk(|row| row.packed_size = 7.into());
    chunk(|row| row.packed_offset = u64::MAX.into());
    chunk(|row| row.number = (1 << 24).into());
    let mut bytes = vector("merged.boot");
    bytes.copy_within(table..table + 80, table + 80);
    damaged(read(&bytes).unwrap_err());
    // What the tree says of chunks is not what the table says.
    let address = |how: fn(&mut ChunkRow)| {
        let error = with(table, how);
        assert!(matches!(error, NydusError::Tree(_)), "{error}");
    };
    address(|row| row.number += 100);
    address(|row| row.plain_offset += 4096);
    address(|row| row.plain_size -= 1);
}

#[cfg(test)]
fn table(bytes: &[u8]) -> u64 {
    Extension::read_from_prefix(&bytes[1152..]).unwrap().0.chunks_offset.get()
}

/// A directory in place of another one is one that has two names.
#[test]
fn a_directory_in_itself_ends() {
    let bytes = vector("zstd.boot");
    let at = |name: &[u8]| bytes.windows(name.len()).position(|window| window == name).unwrap();
    // In "deep/d" and below each directory has three entries: ".", "..", and "d", 12 bytes each before their names.
    let last = at(b"...d") - 12;
    let up = bytes[last - 12..last - 4].to_vec();
    let mut circle = bytes.clone();
    circle[last..last + 8].copy_from_slice(&up);
    let error = read(&circle).unwrap_err();
    assert!(error.to_string().contains("in itself"), "{error}");
    let mut order = bytes.clone();
    let names = at(b"...d");
    order[names..names + 4].copy_from_slice(b"d...");
    assert!(matches!(read(&order), Err(NydusError::Tree(_))));
}

#[test]
fn files_that_share_their_chunk_indexes_end() {
    // A file of 70,000 bytes claims the whole bootstrap for indexes of its chunks, and more.
    let bytes = vector("merged.boot");
    let size = 70_000_u32.to_le_bytes();
    let mut found = 0;
    for at in (4096..bytes.len() - 8).step_by(4) {
        if bytes[at..at + 4] == size {
            let mut more = bytes.clone();
            let many = u32::try_from(bytes.len()).unwrap() / 8 * 0x4000;
            more[at..at + 4].copy_from_slice(&many.to_le_bytes());
            assert!(read(&more).is_err());
            found += 1;
        }
    }
    assert!(found > 0);
}

#[test]
fn a_bit_that_is_wrong_does_no_harm() {
    for name in ["none.boot", "merged.boot"] {
        let bytes = vector(name);
        let (names, chunks) = read(&bytes).unwrap();
        let step = if name == "none.boot" { 1 } else { 97 };
        for at in (0..bytes.len()).step_by(step) {
            let mut wrong = bytes.clone();
            for bits in [1, 0x80, 0xff] {
                wrong[at] = bytes[at] ^ bits;
                if let Ok((n, c)) = read(&wrong) {
                    assert!(n <= names + 2 && c <= chunks + 20, "byte {at}: {n} names, {c} chunks");
                }
            }
        }
        for len in (0..bytes.len()).step_by(512) {
            assert!(read(&bytes[..len]).is_err(), "{len} bytes");
        }
    }
}

#[test]
fn a_meta_that_is_wrong_does_no_harm() {
    let bytes = vector("batch.blob");
    let bootstrap = Bootstrap::open(vector("batch.boot")).unwrap();
    let list = bootstrap.list().unwrap();
    let chunks: Vec<_> = (0..list.len())
        .flat_map(|n| list.chunks(n).unwrap().collect::<Vec<_>>())
        .map(Result::unwrap)
        .collect();
    let range = BlobMeta::range(&bootstrap.blobs()[0]);
    let meta = &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    let right = BlobMeta::open(&bootstrap.blobs()[0], meta).unwrap();
    assert!(chunks.iter().all(|chunk| right.piece(chunk).is_ok()));
    let mut other = chunks[0];
    other.number = 1 << 23;
    assert!(right.piece(&other).is_err());
    for at in 0..meta.len() {
        let mut wrong = meta.to_vec();
        wrong[at] ^= 0x11;
        let Ok(wrong) = BlobMeta::open(&bootstrap.blobs()[0], &wrong) else { continue };
        for chunk in &chunks {
            if let Ok(piece) = wrong.piece(chunk) {
                assert!(piece.end - piece.begin <= 16 << 20 && piece.skip <= 16 << 20);
            }
        }
    }
    for len in 0..meta.len() {
        assert!(BlobMeta::open(&bootstrap.blobs()[0], &meta[..len]).is_err());
    }
    // A length that the packed table cannot have.
    let mut blob = bootstrap.blobs()[0].clone();
    blob.meta.plain = 60 << 20;
    assert!(BlobMeta::open(&blob, meta).is_err());
    blob.meta.plain = u64::MAX;
    assert!(BlobMeta::open(&blob, meta).is_err());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn several_wrong_bytes_do_no_harm(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = vector("merged.boot");
        for (place, byte) in places {
            let at = 1024 + place.index(bytes.len() - 1024);
            bytes[at] = byte;
        }
        let _ = read(&bytes); // whatever it is
    }
}

#[test]
fn compressors_and_ids_of_the_records_are_those_of_the_vectors() {
    let bytes = vector("lz4.boot");
    let (row, _) = BlobRow::read_from_prefix(&bytes[4096..]).unwrap();
    assert_eq!(row.compressor.get(), compressor::LZ4_BLOCK);
    assert_eq!(row.id, Digest::of(&vector("lz4.blob")).hex().as_bytes());
}
