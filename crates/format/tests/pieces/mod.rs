//! Chunks that lie anywhere in several blobs, packed in any way: what comes out is what went in, or an error.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

use crate::stargz::{Form, make};
use format::decode::{DecodeError, SpanDecoder};
use format::index::{BlobAt, Chunk, Codec, Contents, Facts, Hash, Index, IndexError, Packing, Piece, Source};
use format::layer::Layer;
use format::payload::SegmentSize;
use format::stargz::index::Whose;
use format::{ChunkId, DiffId, Digest};
use proptest::prelude::*;
use sys::deflate::compress;
use sys::inflate::Wrap;
use testkit::tar::Entry;

/// Some files, as a layer whose chunks are in its own blob in order, and their bytes.
#[cfg(test)]
fn in_order(files: &[Vec<u8>], chunk: usize) -> (Index, Vec<Vec<u8>>) {
    let entries: Vec<_> =
        files.iter().enumerate().map(|(n, b)| Entry::file(format!("{n}"), &b[..])).collect();
    let made = make(&entries, Form::EStargz, chunk, 0);
    let size = made.blob.len() as u64;
    let part = |range: std::ops::Range<u64>| {
        made.blob[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()].to_vec()
    };
    let first = made.announced.first(size).unwrap();
    let whole = made.announced.whole(&part(first), size).unwrap();
    let whose = Whose {
        blob: Digest::of(&made.blob),
        size,
        codec: Codec::Gzip,
        diff_id: DiffId::new(Digest::of(b"the tar")),
        table: made.announced.digest,
        end: whole.start,
        ahead: 0,
        segment: SegmentSize::from_bits(16).unwrap(),
    };
    let index = made.announced.layer(&part(whole)[..], &whose).unwrap().index().clone();
    (index, files.iter().flat_map(|file| file.chunks(chunk).map(<[u8]>::to_vec)).collect())
}

/// Where chunks are put.
#[cfg(test)]
struct Store {
    blobs: Vec<Vec<u8>>,
    pieces: Vec<Piece>,
}

#[cfg(test)]
fn pack(packing: Packing, plain: &[u8]) -> Vec<u8> {
    match packing {
        Packing::Plain => plain.to_vec(),
        Packing::Zstd => zstd::bulk::compress(plain, 3).unwrap(),
        Packing::Lz4 => lz4_flex::block::compress(plain),
        Packing::Gzip | Packing::Inside => compress(plain, Wrap::Gzip, 1).unwrap(),
    }
}

/// Puts chunks into blobs as the dice say: alone, or several in one; twins once.
#[cfg(test)]
fn put(chunks: &[Vec<u8>], mut dice: impl FnMut() -> usize) -> Store {
    let mut store = Store { blobs: vec![b"nothing is here".to_vec(); 4], pieces: Vec::new() };
    let mut there: HashMap<&[u8], Piece> = HashMap::new();
    let mut left = chunks;
    while let Some((chunk, _)) = left.split_first() {
        if let Some(twin) = there.get(&chunk[..]).filter(|_| !dice().is_multiple_of(4)) {
            store.pieces.push(*twin);
            left = &left[1..];
            continue;
        }
        let (together, rest) = left.split_at((dice() % 3 + 1).min(left.len()));
        let packings = [Packing::Plain, Packing::Gzip, Packing::Zstd, Packing::Lz4, Packing::Inside];
        let packing = packings[dice() % packings.len()];
        let blob = dice() % 4;
        let bytes = &mut store.blobs[blob];
        bytes.extend(std::iter::repeat_n(7, dice() % 3));
        let header = if packing == Packing::Inside { 10 } else { 0 };
        let begin = bytes.len() as u64 + header;
        bytes.extend(pack(packing, &together.concat()));
        let (end, mut skip) = (bytes.len() as u64, 0);
        for chunk in together {
            let piece = Piece { begin, end, skip, blob: u16::try_from(blob).unwrap(), packing };
            store.pieces.push(piece);
            there.insert(chunk, piece);
            skip += u32::try_from(chunk.len()).unwrap();
        }
        left = rest;
    }
    store
}

/// Returns the same layer with its chunks elsewhere.
#[cfg(test)]
fn moved(index: &Index, chunks: &[Vec<u8>], store: &Store, hash: Hash) -> Result<Index, IndexError> {
    let id = |bytes: &Vec<u8>| match hash {
        Hash::Sha256 => ChunkId(*Digest::of(bytes).as_bytes()),
        Hash::Blake3 => ChunkId(*blake3::hash(bytes).as_bytes()),
        Hash::Sealed => panic!("chunks of these have no hash of their own"),
    };
    let table: Vec<_> =
        chunks.iter().map(|c| Chunk { len: u32::try_from(c.len()).unwrap(), id: id(c) }).collect();
    let facts = Facts { chunks_hash: format::index::hash_of(&table), ..index.facts().clone() };
    let at = |bytes: &Vec<u8>| BlobAt { digest: Digest::of(bytes), size: bytes.len() as u64 };
    let inside = store.pieces.iter().filter(|piece| piece.packing == Packing::Inside);
    let entries: BTreeSet<_> = inside.map(|piece| (piece.blob, piece.begin)).collect();
    // Behind the header of a member there is no output that anything could refer to.
    let entry = |(blob, begin)| format::index::Entry { blob, begin, bits: 0, window: Box::default() };
    let contents = Contents {
        table: Digest::of(b"the table"),
        ahead: 0,
        hash,
        blobs: store.blobs[1..].iter().map(at).collect(),
        pieces: store.pieces.clone(),
        entries: entries.into_iter().map(entry).collect(),
    };
    let own = at(&store.blobs[0]);
    let source = Source {
        blob: own.digest,
        size: own.size,
        codec: Codec::Gzip,
        starts: Vec::new(),
        reach: Vec::new(),
        contents: Some(contents),
    };
    Index::new(facts, index.skeleton().into(), table, source)
}

/// Returns a run of segments, from just the parts that are asked for.
#[cfg(test)]
fn decode(
    layer: &Arc<Layer>,
    blobs: &[Vec<u8>],
    wanted: std::ops::Range<u32>,
    step: usize,
) -> Result<Vec<u8>, DecodeError> {
    let mut decoder = SpanDecoder::new(Arc::clone(layer), wanted)?;
    let mut out = Vec::new();
    for part in decoder.parts() {
        let bytes = &blobs[usize::from(part.blob)];
        let bytes =
            &bytes[usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap()];
        for mut piece in bytes.chunks(step) {
            while let Some((number, verified)) = decoder.push(&mut piece)? {
                out.resize(usize::try_from(u64::from(number) << 16).unwrap().max(out.len()), 0);
                out.extend(verified.into_vec());
            }
        }
    }
    decoder.finish()?;
    Ok(out)
}

/// Compares the files of a layer with what they should be.
#[cfg(test)]
fn same(layer: &Arc<Layer>, blobs: &[Vec<u8>], chunks: &[Vec<u8>], step: usize) {
    let all = decode(layer, blobs, 0..layer.segments(), step).unwrap();
    for (cut, chunk) in layer.layout().cuts().iter().zip(chunks) {
        let at = usize::try_from(cut.start).unwrap();
        assert!(all[at..at + chunk.len()] == chunk[..], "at {at}");
    }
    for segment in 0..layer.segments() {
        let one = decode(layer, blobs, segment..segment + 1, step).unwrap();
        let at = usize::try_from(u64::from(segment) << 16).unwrap();
        let len = usize::try_from(layer.segment_len(segment)).unwrap();
        assert!(one[at..at + len] == all[at..at + len], "segment {segment}");
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 96, ..ProptestConfig::default() })]

    #[test]
    fn chunks_come_from_wherever_they_are(
        files in prop::collection::vec((0..6_usize, 1..120_000_usize), 1..14),
        chunk in 1000..50_000_usize,
        dice in prop::collection::vec(any::<usize>(), 64),
        step in 1..20_000_usize,
        hash in prop::bool::ANY,
    ) {
        let bytes = |(seed, len): &(usize, usize)| -> Vec<u8> {
            (0..*len).map(|n| u8::try_from((n * (seed + 3) + n / 251 * 7) % 256).unwrap()).collect()
        };
        let files: Vec<_> = files.iter().map(bytes).collect();
        let (index, chunks) = in_order(&files, chunk);
        let mut dice = dice.into_iter().cycle();
        let store = put(&chunks, || dice.next().unwrap());
        let hash = if hash { Hash::Sha256 } else { Hash::Blake3 };
        let index = moved(&index, &chunks, &store, hash).unwrap();
        prop_assert!(Index::decode(&index.encode()) == Ok(index.clone()), "it encodes to itself");
        let layer = Arc::new(Layer::open(index).unwrap());
        same(&layer, &store.blobs, &chunks, step);
        // A bit that is wrong anywhere is an error, or of no chunk.
        let mut wrong = store.blobs.clone();
        let blob = dice.next().unwrap() % 4;
        let at = dice.next().unwrap() % wrong[blob].len();
        wrong[blob][at] ^= 1;
        if let Ok(all) = decode(&layer, &wrong, 0..layer.segments(), step) {
            prop_assert!(all == decode(&layer, &store.blobs, 0..layer.segments(), step).unwrap());
        }
    }
}

#[test]
fn a_twin_that_follows_costs_no_byte() {
    let file: Vec<u8> = (0..9000_u32).map(|n| (n * n % 251) as u8).collect();
    let files = [file.clone(), file.clone(), file];
    let (index, chunks) = in_order(&files, 10_000);
    let packed = pack(Packing::Zstd, &chunks[0]);
    let end = packed.len() as u64;
    let piece = Piece { begin: 0, end, skip: 0, blob: 1, packing: Packing::Zstd };
    let store = Store { blobs: vec![b"own".to_vec(), packed], pieces: vec![piece; 3] };
    let layer = Arc::new(Layer::open(moved(&index, &chunks, &store, Hash::Blake3).unwrap()).unwrap());
    let parts = layer.parts(0..1).unwrap();
    assert_eq!((parts.len(), parts[0].blob, parts[0].range.clone()), (1, 1, 0..end));
    same(&layer, &store.blobs, &chunks, 100);
}

#[test]
fn a_table_that_would_have_one_frame_decoded_again_and_again_is_refused() {
    let files: Vec<Vec<u8>> = (0..40_u8).map(|n| vec![n; 10]).collect();
    let (index, chunks) = in_order(&files, 1000);
    let many = |skip: u32, blobs: usize| {
        let piece = |n: usize| Piece {
            begin: (n % 2) as u64,
            end: 20,
            skip,
            blob: u16::try_from(n % (blobs + 1)).unwrap(),
            packing: Packing::Zstd,
        };
        let pieces = (0..chunks.len()).map(piece).collect();
        moved(&index, &chunks, &Store { blobs: vec![vec![0; 30]; blobs + 1], pieces }, Hash::Blake3)
    };
    assert!(many(100, 3).is_ok());
    assert_eq!(many(60 << 20, 3), Err(IndexError::Corrupt("its pieces are out of order")));
    assert_eq!(many(100, 0), Err(IndexError::Corrupt("its pieces are out of order")));
}

#[test]
fn a_piece_outside_its_blob_is_refused() {
    let (index, chunks) = in_order(&[vec![1; 100]], 1000);
    let one = |piece| {
        moved(&index, &chunks, &Store { blobs: vec![vec![0; 30]; 3], pieces: vec![piece] }, Hash::Blake3)
    };
    let right = Piece { begin: 3, end: 30, skip: 0, blob: 2, packing: Packing::Lz4 };
    assert!(one(right).is_ok());
    assert!(one(Piece { packing: Packing::Inside, ..right }).is_ok());
    for wrong in [Piece { end: 31, ..right }, Piece { begin: 30, ..right }, Piece { blob: 3, ..right }] {
        assert!(matches!(one(wrong), Err(IndexError::Corrupt(_))), "{wrong:?}");
    }
}
