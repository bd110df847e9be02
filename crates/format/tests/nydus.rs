//! Bootstraps that the reference has written: their trees are those of the tars they were made of, and every chunk is where
//! they say. `nydus/README.md` has the commands.

#[cfg(test)]
mod support;

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use format::decode::SpanDecoder;
use format::fuzz::opened;
use format::index::{BlobAt, Codec, Hash, Index, IndexError, Packing, Part, Piece};
use format::layer::{Layer, LayerError};
use format::nydus::bootstrap::{Blob, Bootstrap};
use format::nydus::disk::{ChunkRow, chunk_flags, five, flags};
use format::nydus::index::{MakeError, Whose, layer};
use format::nydus::meta::BlobMeta;
use format::nydus::{NydusError, boot_file};
use format::payload::SegmentSize;
use format::tar::{MemberKind, write_header};
use format::unpack::Unpacker;
use format::{DiffId, Digest};
use sys::deflate::compress;
use sys::inflate::Wrap;
use testkit::dump::{Dump, difference};
use testkit::tar::{Archive, Entry, Variant};
use zerocopy::{FromBytes, IntoBytes};

/// One of the files beside this one.
#[cfg(test)]
fn vector(name: &str) -> Vec<u8> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/nydus/{name}.zst"));
    zstd::decode_all(&std::fs::read(path).unwrap()[..]).unwrap()
}

type Names = &'static [&'static str];

/// Each bootstrap with its blobs, the blobs that say where in those something is, and the tars of its layers.
const VECTORS: [(&str, Names, Names, Names); 10] = [
    ("zstd", &["zstd.blob"], &["zstd.blob"], &["base.tar"]),
    ("lz4", &["lz4.blob"], &["lz4.blob"], &["base.tar"]),
    ("none", &["none.blob"], &["none.blob"], &["top.tar"]),
    ("batch", &["batch.blob"], &["batch.blob"], &["base.tar"]),
    ("merged", &MERGED, &MERGED, &["base.tar", "middle.tar", "top.tar"]),
    ("zstd5", &["zstd5.blob"], &[], &["base.tar"]),
    ("lz45", &["lz45.blob"], &[], &["base.tar"]),
    ("none5", &["none5.blob"], &[], &["top.tar"]),
    ("merged5", &["base5.blob", "top5.blob", "middle5.blob"], &[], &["base.tar", "middle.tar", "top.tar"]),
    ("refs", &["base.gz", "big.gz"], &["base.ref", "big.ref"], &["base.tar", "big.gz"]),
];

const MERGED: [&str; 3] = ["base.blob", "top.blob", "middle.blob"];

#[cfg(test)]
fn vectors(names: &[&str]) -> Vec<Vec<u8>> {
    names.iter().map(|name| vector(name)).collect()
}

/// The tars of some layers.
#[cfg(test)]
fn tars(names: &[&str]) -> Vec<Vec<u8>> {
    let plain = |name: &str, bytes: Vec<u8>| match name.ends_with(".gz") {
        true => format::unpack::whole(Codec::Gzip, &bytes, 1 << 24).unwrap().unwrap(),
        false => bytes,
    };
    names.iter().map(|name| plain(name, vector(name))).collect()
}

/// What the blobs say of themselves.
#[cfg(test)]
fn metas(bootstrap: &Bootstrap<Vec<u8>>, names: &[&str]) -> Vec<Option<BlobMeta>> {
    let bytes = vectors(names).into_iter().map(Some).chain(std::iter::repeat(None));
    let meta = |(blob, bytes): (&Blob, Option<Vec<u8>>)| Some(meta(blob, &bytes?).unwrap());
    bootstrap.blobs().iter().zip(bytes).map(meta).collect()
}

#[cfg(test)]
fn unpack(piece: &Piece, meta: Option<&BlobMeta>, blobs: &[Vec<u8>], len: usize) -> Vec<u8> {
    let blob = &blobs[usize::from(piece.blob) - 1];
    let packed = &blob[usize::try_from(piece.begin).unwrap()..usize::try_from(piece.end).unwrap()];
    let plain = match piece.packing {
        Packing::Plain => packed.to_vec(),
        Packing::Zstd => zstd::bulk::decompress(packed, 1 << 24).unwrap(),
        Packing::Lz4 => lz4_flex::block::decompress(packed, 1 << 24).unwrap(),
        Packing::Gzip => unreachable!(),
        Packing::Inside => {
            let entry = meta.unwrap().entry(piece.blob, piece.begin).unwrap();
            let mut unpacker = Unpacker::inside(entry.bits, &entry.window).unwrap();
            let (mut input, mut plain) = (packed, vec![0; 1 << 22]);
            let mut written = 0;
            loop {
                let step = unpacker.step(input, &mut plain[written..], false).unwrap();
                (input, written) = (&input[step.read..], written + step.written);
                if step.read == 0 && step.written == 0 {
                    break plain;
                }
            }
        }
    };
    let skip = usize::try_from(piece.skip).unwrap();
    plain[skip..skip + len].to_vec()
}

#[cfg(test)]
fn meta(blob: &Blob, bytes: &[u8]) -> Result<BlobMeta, NydusError> {
    let range = BlobMeta::range(blob);
    BlobMeta::open(blob, &bytes[usize::try_from(range.start).unwrap()..usize::try_from(range.end).unwrap()])
}

/// Makes a tar of a bootstrap and its blobs.
#[cfg(test)]
fn tar(bootstrap: &Bootstrap<Vec<u8>>, metas: &[Option<BlobMeta>], blobs: &[Vec<u8>]) -> Vec<u8> {
    let list = bootstrap.list().unwrap();
    let (mut tar, mut elsewhere) = (Vec::new(), 0);
    for n in 0..list.len() {
        let member = list.member(n).unwrap();
        write_header(&member, &mut tar);
        let begin = tar.len();
        for chunk in list.chunks(n).unwrap() {
            let chunk = chunk.unwrap();
            let meta = metas[usize::from(chunk.blob)].as_ref();
            let of_blob = meta.map(|meta| meta.piece(&chunk).unwrap());
            elsewhere += usize::from(chunk.piece.is_none());
            let piece = chunk.piece.or(of_blob).unwrap();
            assert_eq!(of_blob.unwrap_or(piece), piece, "bootstrap and blob say the same");
            let plain = unpack(&piece, meta, blobs, usize::try_from(chunk.len).unwrap());
            let hash = match bootstrap.hash() {
                Hash::Blake3 => *blake3::hash(&plain).as_bytes(),
                Hash::Sha256 => *Digest::of(&plain).as_bytes(),
                Hash::Sealed => panic!("chunks of Nydus have hashes of their own"),
            };
            assert_eq!(hash, chunk.id.0);
            tar.extend(plain);
        }
        assert_eq!(tar.len() - begin, usize::try_from(member.payload).unwrap());
        tar.resize(tar.len().next_multiple_of(512), 0);
    }
    assert_eq!(elsewhere > 0, bootstrap.blobs().iter().any(Blob::needs_meta));
    tar.extend([0; 1024]);
    tar
}

#[cfg(test)]
fn dump(tars: &[Vec<u8>]) -> Dump {
    let layers: Vec<_> = tars.iter().map(|tar| support::read(tar, usize::MAX).unwrap()).collect();
    support::dump(&support::tree(&layers).unwrap(), &layers)
}

#[test]
fn trees_and_files_are_those_of_the_tars() {
    for (name, of_blobs, of_metas, of_tars) in VECTORS {
        let bootstrap = Bootstrap::open(vector(&format!("{name}.boot"))).unwrap();
        let (blobs, metas) = (vectors(of_blobs), metas(&bootstrap, of_metas));
        let ids: Vec<_> = bootstrap.blobs().iter().map(|blob| blob.id).collect();
        assert_eq!(ids, blobs.iter().map(|blob| Digest::of(blob)).collect::<Vec<_>>());
        let found = dump(&[tar(&bootstrap, &metas, &blobs)]);
        let mut wanted = dump(&tars(of_tars));
        for (path, node) in &mut wanted {
            let long = node.uid > 0xffff || node.gid > 0xffff || path.ends_with(b".pyc");
            if !long && found.get(path).is_some_and(|found| found.mtime == (0, 0)) {
                node.mtime = (0, 0);
            }
        }
        let difference = difference(&found, &wanted);
        assert!(difference.is_none(), "{name}: {}", difference.unwrap_or_default());
        assert!(found.len() > 3 && (name.starts_with("none") || found.len() > 270), "{}", found.len());
    }
}

#[test]
fn what_a_bootstrap_says_of_its_blobs() {
    let open = |name: &str| Bootstrap::open(vector(&format!("{name}.boot"))).unwrap();
    let merged = open("merged");
    assert_eq!((merged.hash(), merged.chunk_size()), (Hash::Blake3, 0x4000));
    let packings: Vec<_> = merged.blobs().iter().map(|blob| blob.packing).collect();
    assert_eq!(packings, [Packing::Zstd, Packing::Zstd, Packing::Lz4]);
    assert!(merged.blobs()[0].needs_meta() && !merged.blobs()[1].needs_meta());
    assert_eq!(merged.prefetch().len(), 1);
    assert_eq!(open("lz4").hash(), Hash::Sha256);
    assert_eq!(open("none").blobs()[0].packing, Packing::Plain);
}

#[test]
fn names_of_one_file_are_links_to_the_first() {
    let bootstrap = Bootstrap::open(vector("zstd.boot")).unwrap();
    let list = bootstrap.list().unwrap();
    let members: Vec<_> = (0..list.len()).map(|n| list.member(n).unwrap()).collect();
    let kinds: HashMap<_, _> = members.iter().map(|member| (&member.path[..], &member.kind)).collect();
    assert_eq!(kinds[&b"another hard"[..]], &MemberKind::File);
    for link in ["files/hard 1", "files/hard 2"] {
        assert_eq!(kinds[link.as_bytes()], &MemberKind::Link((*b"another hard").into()));
    }
    let at = members.iter().position(|member| &*member.path == b"files/hard 1").unwrap();
    assert_eq!(list.chunks(at).unwrap().count(), 0);
    // Directories come before what is in them.
    let mut seen = vec![&b""[..]];
    for member in &members {
        let dir = member.path.iter().rposition(|b| *b == b'/').map_or(0, |slash| slash);
        assert!(seen.contains(&&member.path[..dir]), "{}", member.path.escape_ascii());
        if member.kind == MemberKind::Dir {
            seen.push(&member.path);
        }
    }
}

#[cfg(test)]
fn whose<'a>(metas: &'a [Option<BlobMeta>], blobs: &'a [BlobAt]) -> Whose<'a> {
    let layer = Digest::of(b"the layer that has the bootstrap");
    Whose {
        blob: layer,
        size: 100_000,
        codec: Codec::Gzip,
        diff_id: DiffId::new(layer),
        table: layer,
        blobs,
        metas,
        segment: SegmentSize::from_bits(16).unwrap(),
    }
}

/// Reads an index and what its segments are in the blobs as a layer of which all has arrived.
#[cfg(test)]
fn arrived(index: Index, blobs: &[Vec<u8>]) -> support::Layer {
    let mut members = Vec::new();
    let layer = Layer::open_with(index, |member, runs| {
        members.push((member, runs));
        Ok::<_, LayerError>(())
    });
    let layer = Arc::new(layer.unwrap());
    let mut space = Vec::new();
    for first in 0..layer.segments() {
        let mut decoder = SpanDecoder::new(Arc::clone(&layer), first..first + 1).unwrap();
        for part in decoder.parts() {
            let range = usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap();
            let mut bytes = &blobs[usize::from(part.blob) - 1][range];
            while let Some((segment, verified)) = decoder.push(&mut bytes).unwrap() {
                space.resize(usize::try_from(segment).unwrap() << 16, 0);
                space.extend(verified.into_vec());
            }
        }
        decoder.finish().unwrap();
    }
    support::Layer { members, skeleton: Vec::new(), layout: layer.layout().clone(), space }
}

/// Returns the index of a layer that was made of a table.
#[cfg(test)]
fn index_of(made: Layer) -> Index {
    opened(made).index().clone()
}

#[test]
fn an_index_of_a_bootstrap_gives_the_same_files() {
    for (name, of_blobs, of_metas, _) in VECTORS {
        let bootstrap = Bootstrap::open(vector(&format!("{name}.boot"))).unwrap();
        let (blobs, metas) = (vectors(of_blobs), metas(&bootstrap, of_metas));
        let at: Vec<_> =
            blobs.iter().map(|blob| BlobAt { digest: Digest::of(blob), size: blob.len() as u64 }).collect();
        let made = index_of(layer(&bootstrap, &whose(&metas, &at)).unwrap());
        assert_eq!(Index::decode(&made.encode()).as_ref(), Ok(&made));
        let contents = made.source().contents.as_ref().unwrap();
        assert_eq!((&contents.blobs, contents.hash), (&at, bootstrap.hash()));
        let back = contents
            .pieces
            .windows(2)
            .filter(|two| two[0].blob == two[1].blob && two[1].begin < two[0].begin);
        assert!(back.count() < 5, "files are in the order of the blobs");
        let layers = [arrived(made, &blobs)];
        let found = support::dump(&support::tree(&layers).unwrap(), &layers);
        let difference = difference(&found, &dump(&[tar(&bootstrap, &metas, &blobs)]));
        assert!(difference.is_none(), "{name}: {}", difference.unwrap_or_default());
    }
}

#[test]
fn an_index_needs_what_is_missing() {
    let bootstrap = Bootstrap::open(vector("batch.boot")).unwrap();
    let error = layer(&bootstrap, &whose(&[], &[])).unwrap_err();
    assert!(matches!(error, MakeError::Meta(blob) if blob == bootstrap.blobs()[0].id), "{error}");
    let bootstrap = Bootstrap::open(vector("zstd.boot")).unwrap();
    assert!(layer(&bootstrap, &whose(&[], &[])).is_ok(), "the bootstrap itself says how long its blobs are");
    let short = [BlobAt { digest: bootstrap.blobs()[0].id, size: 10_000 }];
    let error = layer(&bootstrap, &whose(&[], &short)).unwrap_err();
    assert!(matches!(error, MakeError::Index(IndexError::Corrupt(_))), "{error}");
}

/// Makes an index without knowing of any blob; returns it, and how many segments come first.
#[cfg(test)]
fn ahead(bytes: &[u8]) -> (Index, u32) {
    let made = index_of(layer(&Bootstrap::open(bytes.to_vec()).unwrap(), &whose(&[], &[])).unwrap());
    let ahead = made.source().contents.as_ref().unwrap().ahead;
    (made, ahead)
}

/// Says that the directory of many small files comes first, and nothing else.
#[cfg(test)]
fn assert_many_come_first(bytes: &[u8]) {
    let ((index, ahead), mut first) = (ahead(bytes), 0);
    // Its files that are not empty take 4 KiB each; no others come before the last of them.
    assert_eq!(ahead, 243_u32.div_ceil(16));
    let layer = Layer::open_with(index, |member, _| {
        assert!(member.payload == 0 || member.path.starts_with(b"many/") == (first < 243));
        first += u32::from(member.payload > 0);
        Ok::<_, LayerError>(())
    });
    assert!(layer.is_ok() && first > 243);
}

#[test]
fn files_that_are_to_be_read_first_come_first() {
    let mut bytes = vector("zstd.boot");
    let root = bytes[4096 + 256..4096 + 260].to_vec();
    assert_eq!((&root[1..], ahead(&bytes).1), (&[0, 0, 0][..], 0), "all of it is none of it");
    // The directory of many small files instead: the seventh of ten entries of the root, 12 bytes each.
    let name = b"...another harddeepfileslinksmanynames";
    let names = bytes.windows(name.len()).position(|window| window == name).unwrap();
    bytes.copy_within(names - 10 * 12 + 6 * 12..names - 10 * 12 + 6 * 12 + 4, 4096 + 256);
    assert_many_come_first(&bytes);
}

#[test]
fn files_that_are_to_be_read_first_come_first_in_version_5() {
    let mut bytes = vector("zstd5.boot");
    let place = |at: u64| usize::try_from(at).unwrap();
    let block = five::SuperBlock::read_from_bytes(&bytes[..80]).unwrap();
    assert_eq!((block.prefetch_count.get(), ahead(&bytes).1), (1, 0), "all of it is none of it");
    // The directory in the root instead, by its number: its name lies behind its inode.
    let table = place(block.inodes_offset.get());
    let named = |number: &u32| {
        let at = &bytes[table + 4 * (*number as usize - 1)..];
        let at = 8 * u32::from_le_bytes(*at.first_chunk().unwrap()) as usize;
        let (inode, rest) = five::Inode::read_from_prefix(&bytes[at..]).unwrap();
        inode.parent.get() == 1 && rest.starts_with(b"many\0")
    };
    let many: Vec<_> = (1..=block.inode_count.get()).filter(named).collect();
    assert_eq!(many.len(), 1);
    let at = place(block.prefetch_offset.get());
    bytes[at..at + 4].copy_from_slice(&many[0].to_le_bytes());
    assert_many_come_first(&bytes);
}

/// Older versions of the reference could pack chunks by gzip.
#[test]
fn version_5_with_chunks_packed_by_gzip() {
    let (mut bytes, plain) = (vector("none5.boot"), vector("none5.blob"));
    let before = Bootstrap::open(bytes.clone()).unwrap();
    let list = before.list().unwrap();
    let chunks = (0..list.len()).flat_map(|n| list.chunks(n).unwrap().collect::<Vec<_>>());
    let (mut blob, mut count) = (Vec::new(), 0);
    for chunk in chunks.map(Result::unwrap) {
        let at = bytes.windows(32).position(|window| *window == chunk.id.0).unwrap();
        let mut row = ChunkRow::read_from_bytes(&bytes[at..at + 80]).unwrap();
        let begin = usize::try_from(row.packed_offset.get()).unwrap();
        let packed = compress(&plain[begin..begin + chunk.len as usize], Wrap::Gzip, 6).unwrap();
        row.flags |= chunk_flags::PACKED;
        row.packed_offset = (blob.len() as u64).into();
        row.packed_size = u32::try_from(packed.len()).unwrap().into();
        bytes[at..at + 80].copy_from_slice(row.as_bytes());
        blob.extend(packed);
        count += 1;
    }
    assert!(count > 5);
    let mut block = five::SuperBlock::read_from_bytes(&bytes[..80]).unwrap();
    block.flags = (block.flags.get() & !flags::PLAIN | flags::GZIP).into();
    bytes[..80].copy_from_slice(block.as_bytes());
    let id = usize::try_from(block.blobs_offset.get()).unwrap() + 8;
    bytes[id..id + 64].copy_from_slice(Digest::of(&blob).hex().as_bytes());

    let after = Bootstrap::open(bytes).unwrap();
    let at = [BlobAt { digest: Digest::of(&blob), size: blob.len() as u64 }];
    let layers = [arrived(index_of(layer(&after, &whose(&[], &at)).unwrap()), &[blob])];
    let found = support::dump(&support::tree(&layers).unwrap(), &layers);
    let difference = difference(&found, &dump(&[tar(&before, &[None], &[plain])]));
    assert!(difference.is_none(), "{}", difference.unwrap_or_default());
}

/// A wrong place of entry gives other bytes, or none; never those of a chunk.
#[test]
fn entries_that_are_wrong_fail_the_hashes() {
    let bootstrap = Bootstrap::open(vector("refs.boot")).unwrap();
    let blobs = vectors(&["base.gz", "big.gz"]);
    let at: Vec<_> =
        blobs.iter().map(|blob| BlobAt { digest: Digest::of(blob), size: blob.len() as u64 }).collect();
    let metas = metas(&bootstrap, &["base.ref", "big.ref"]);
    let made = index_of(layer(&bootstrap, &whose(&metas, &at)).unwrap());
    let contents = made.source().contents.as_ref().unwrap();
    let places: Vec<_> = contents.entries.iter().map(|entry| (entry.blob, entry.bits)).collect();
    assert_eq!(places, [(1, 0), (2, 0), (2, 0), (2, 3), (2, 0), (2, 0)]);
    assert!(contents.entries[3].window.len() > 100);
    // Bytes of an entry in the file, as they are there: offset, blob, bits, length, window.
    let file = made.encode();
    let entry = [&contents.entries[3].begin.to_le_bytes()[..], &[2, 0, 3, 0]].concat();
    let place = file.windows(entry.len()).position(|window| *window == entry[..]).unwrap();
    for (offset, byte) in [(0, 1), (10, 1), (10, 7), (17, 3), (40, 0xff)] {
        let mut wrong = file.clone();
        wrong[place + offset] ^= byte;
        let body = blake3::hash(&wrong[44..]);
        wrong[12..44].copy_from_slice(body.as_bytes());
        let Ok(index) = Index::decode(&wrong) else { continue };
        assert_eq!(index.id(), made.id(), "where things are is no fact");
        let layer = Arc::new(Layer::open(index).unwrap());
        let mut failed = 0;
        for segment in 0..layer.segments() {
            let mut decoder = SpanDecoder::new(Arc::clone(&layer), segment..segment + 1).unwrap();
            let parts = decoder.parts();
            let push = |part: Part| {
                let range =
                    usize::try_from(part.range.start).unwrap()..usize::try_from(part.range.end).unwrap();
                decoder.push(&mut &blobs[usize::from(part.blob) - 1][range]).is_err()
            };
            failed += usize::from(parts.into_iter().any(push));
        }
        assert!(failed > 0, "byte {offset}");
    }
}

#[test]
fn a_bootstrap_in_a_tar_that_cannot_be_read_says_where() {
    let mut tar = Archive::of(&[Entry::file("image/image.boot", "tree")], Variant::Pax10).tar;
    assert_eq!(boot_file(&tar), Ok(&b"tree"[..]));
    tar[0] ^= 1;
    assert!(matches!(boot_file(&tar), Err(NydusError::Tar(error)) if error.offset == 0));
}
