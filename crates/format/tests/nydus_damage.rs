//! Bootstraps and metas that are damaged, or were made to do harm: an error, or something harmless.

use std::path::Path;

use format::Digest;
use format::erofs::disk::SuperBlock;
use format::index::Packing;
use format::nydus::NydusError;
use format::nydus::bootstrap::{Bootstrap, Meta};
use format::nydus::disk::{BlobRow, ChunkRow, Extension, MetaHeader, compressor, features, five, flags};
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
    said(with(0, |begin: &mut [u8; 8]| *begin = *b"SFAR\0\x04\0\0"), "version 4");
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

/// The place of an inode of version 5 by its number.
#[cfg(test)]
fn place(bytes: &[u8], number: usize) -> usize {
    let at = 8192 + 4 * (number - 1);
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize * 8
}

#[test]
fn version_5_is_refused_where_it_contradicts_itself() {
    let bytes = vector("none5.boot");
    let (all, names) = (five::SuperBlock::read_from_prefix(&bytes).unwrap().0, read(&bytes).unwrap().0);
    assert_eq!((names, all.inode_count.get(), all.rows_count.get()), (5, 6, 1));
    let head = |how: fn(&mut five::SuperBlock)| {
        let mut wrong = bytes.clone();
        change(&mut wrong, 0, how);
        assert!(
            matches!(read(&wrong), Err(NydusError::Damaged(_) | NydusError::Tree(_))),
            "{:?}",
            read(&wrong)
        );
    };
    head(|block| block.size = 80.into());
    head(|block| block.chunk_size = 0x4001.into());
    head(|block| block.flags |= flags::LZ4_BLOCK);
    head(|block| block.flags |= flags::SHA256);
    head(|block| block.inodes_offset = 8.into());
    head(|block| block.inodes_offset = u64::MAX.into());
    head(|block| block.inode_count = 3.into());
    head(|block| block.inode_count = u32::MAX.into());
    head(|block| block.prefetch_offset = block.inodes_offset);
    head(|block| block.prefetch_count = u32::MAX.into());
    head(|block| block.blobs_offset = block.inodes_offset);
    head(|block| block.blobs_size -= 1);
    head(|block| block.rows_offset = block.blobs_offset);
    let inode = |number: usize, how: fn(&mut five::Inode)| {
        let mut wrong = bytes.clone();
        change(&mut wrong, place(&bytes, number), how);
        read(&wrong).unwrap_err()
    };
    let tree = |error: NydusError| assert!(matches!(error, NydusError::Tree(_)), "{error}");
    // The root, "added" in it, and in that the file "a", which has an attribute and two chunks.
    tree(inode(1, |root| root.mode = 0o100_755.into()));
    tree(inode(1, |root| root.first_child = 1.into()));
    tree(inode(1, |root| root.children = 6.into()));
    tree(inode(1, |root| root.children = u32::MAX.into()));
    tree(inode(3, |added| added.name_size = 0.into()));
    tree(inode(3, |added| added.first_child = 2.into()));
    tree(inode(5, |file| file.mode = 0o140_755.into()));
    tree(inode(5, |file| file.mtime_nanos = 1_000_000_000.into()));
    tree(inode(5, |file| file.size += 1));
    tree(inode(5, |file| file.size -= 1));
    tree(inode(5, |file| file.children = 1.into()));
    tree(inode(5, |file| file.children = u32::MAX.into()));
    let error = inode(5, |file| file.flags |= five::inode_flags::HOLES);
    assert!(error.to_string().contains("holes"), "{error}");
    let attributes = place(&bytes, 5) + 128 + 8;
    for (at, byte) in [(0, 0x0f), (0, 0x11), (7, 1), (8, 0xff), (11, 1)] {
        let mut wrong = bytes.clone();
        wrong[attributes + at] = byte;
        assert!(read(&wrong).is_err(), "{at}: {byte}");
    }
    let chunk = attributes + 24;
    let error = {
        let mut wrong = bytes.clone();
        change(&mut wrong, chunk + 80, |row: &mut ChunkRow| row.file_offset += 1);
        read(&wrong).unwrap_err()
    };
    tree(error);
}

/// What old writers leave out: how long blobs are.
#[test]
fn blobs_of_version_5_may_have_no_rows() {
    let mut bytes = vector("none5.boot");
    let right = read(&bytes).unwrap();
    change(&mut bytes, 0, |block: &mut five::SuperBlock| block.rows_count = 0.into());
    assert_eq!(read(&bytes).unwrap(), right);
}

#[test]
fn a_bit_that_is_wrong_does_no_harm() {
    for name in ["none.boot", "none5.boot", "merged.boot", "merged5.boot", "refs.boot"] {
        let bytes = vector(name);
        let (names, chunks) = read(&bytes).unwrap();
        let step = if name.starts_with("none") { 1 } else { 97 };
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

#[test]
fn a_meta_of_a_tar_gz_that_is_wrong_does_no_harm() {
    let bytes = vector("big.ref");
    let bootstrap = Bootstrap::open(vector("refs.boot")).unwrap();
    let blob = &bootstrap.blobs()[1];
    assert_eq!((blob.id, blob.meta.blob), (Digest::of(&vector("big.gz")), Digest::of(&bytes)));
    let list = bootstrap.list().unwrap();
    let chunks: Vec<_> = (0..list.len())
        .flat_map(|n| list.chunks(n).unwrap().collect::<Vec<_>>())
        .map(Result::unwrap)
        .filter(|chunk| chunk.blob == 1)
        .collect();
    assert!(chunks.len() > 7);
    // The table is packed: what is changed is inside.
    let range = BlobMeta::range(blob);
    let meta = &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()];
    let (packed, header) = meta.split_at(meta.len() - 4096);
    let plain = zstd::bulk::decompress(packed, 1 << 20).unwrap();
    let open = |plain: &[u8]| {
        let (mut blob, mut header) = (blob.clone(), MetaHeader::read_from_bytes(header).unwrap());
        blob.meta = Meta { packed: plain.len() as u64, packing: Packing::Plain, ..blob.meta };
        header.units_packed = (plain.len() as u64).into();
        BlobMeta::open(&blob, &[plain, header.as_bytes()].concat())
    };
    let right = open(&plain).unwrap();
    let entries = |meta: &BlobMeta| {
        let mut found = 0;
        for chunk in &chunks {
            let Ok(piece) = meta.piece(chunk) else { continue };
            assert_eq!(piece.packing, Packing::Inside);
            found += usize::from(meta.entry(piece.blob, piece.begin).is_some());
        }
        found
    };
    assert_eq!(entries(&right), chunks.len());
    let table = plain.len() - (32 << 10);
    for at in 0..table {
        for bits in [1, 0x80, 0xff] {
            let mut wrong = plain.clone();
            wrong[at] ^= bits;
            let _ = open(&wrong).map(|wrong| entries(&wrong)); // none, or others
        }
    }
    for len in 0..table {
        assert!(open(&plain[..len]).is_err());
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn several_wrong_bytes_do_no_harm(places in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..20)) {
        let mut bytes = vector("merged.boot");
        for (place, byte) in &places {
            let at = 1024 + place.index(bytes.len() - 1024);
            bytes[at] = *byte;
        }
        let _ = read(&bytes); // whatever it is
        // Of the superblock most is empty.
        let mut bytes = vector("merged5.boot");
        for (place, byte) in &places {
            let at = place.index(bytes.len() - 8192 + 80);
            bytes[if at < 80 { at } else { at + 8192 - 80 }] = *byte;
        }
        let _ = read(&bytes);
    }
}

#[test]
fn compressors_and_ids_of_the_records_are_those_of_the_vectors() {
    let bytes = vector("lz4.boot");
    let (row, _) = BlobRow::read_from_prefix(&bytes[4096..]).unwrap();
    assert_eq!(row.compressor.get(), compressor::LZ4_BLOCK);
    assert_eq!(row.id, Digest::of(&vector("lz4.blob")).hex().as_bytes());
}
