//! Entry points for fuzzers: each takes any bytes and holds what must hold of them.

use std::sync::Arc;

use zerocopy::FromBytes;

use crate::decode::SpanDecoder;
use crate::digest::{ChunkId, DiffId, Digest};
use crate::index::{Codec, Index, Packing, Source};
use crate::layer::Layer;
use crate::nydus;
use crate::nydus::bootstrap::{Blob, Bootstrap, Chunk, Meta};
use crate::nydus::disk::{MetaHeader, features};
use crate::nydus::meta::BlobMeta;
use crate::payload::SegmentSize;
use crate::skeleton::{SkeletonFacts, SkeletonReader, SkeletonWriter, restore};
use crate::soci;
use crate::stargz::index::Whose;
use crate::stargz::table::{Announced, Place};
use crate::tar::{Parser, Placer, Step};
use crate::tree::Builder;

/// Reads bytes as a tar. If they are one: its skeleton says the same as the whole, and with the payload it gives the
/// bytes back.
///
/// # Panics
///
/// On a defect.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
pub fn tar(data: &[u8]) {
    let (mut parser, mut placer, mut builder) =
        (Parser::new(), Placer::new(SegmentSize::DEFAULT), Builder::new());
    let (mut skeleton, mut members, mut at) = (Vec::new(), Vec::new(), 0);
    let mut valid = builder.layer().is_ok();
    while at < data.len() {
        let Ok((taken, step)) = parser.step(&data[at..]) else { return };
        skeleton.extend_from_slice(&data[at..at + taken]);
        at += taken;
        let Step::Member(member) = step else { continue };
        let Some(len) = usize::try_from(member.payload).ok().filter(|len| *len <= data.len() - at) else {
            return;
        };
        at += len;
        let Ok(runs) = placer.member(&member) else { return };
        valid = valid && builder.member(&member, runs).is_ok();
        members.push(member);
    }
    if parser.finish().is_err() {
        return;
    }
    let layout = placer.finish();
    let mut writer = SkeletonWriter::new().expect("zstd");
    writer.write(&skeleton).expect("bounded by the parser");
    let (packed, facts) = writer.finish().expect("zstd");

    let mut found = Parser::new();
    let mut rest = &skeleton[..];
    for member in &members {
        let (taken, step) = found.step(rest).expect("the skeleton is that of a tar");
        rest = &rest[taken..];
        assert!(step == Step::Member(member.clone()), "the skeleton says something else");
    }

    let reader = SkeletonReader::new(&packed, facts).expect("just packed");
    let mut back = Vec::new();
    let read = |payload: u64, buffer: &mut [u8]| {
        let extent = layout.extents().partition_point(|e| e.payload + e.len <= payload);
        let extent = layout.extents().get(extent).ok_or(())?;
        let start = usize::try_from(extent.plain + (payload - extent.payload)).map_err(|_| ())?;
        buffer.copy_from_slice(data.get(start..start + buffer.len()).ok_or(())?);
        Ok(())
    };
    let sink = |bytes: &[u8]| {
        back.extend_from_slice(bytes);
        Ok(())
    };
    restore::<()>(reader, SegmentSize::DEFAULT, 4096, read, sink).expect("skeleton and payload make a tar");
    assert!(back == data, "it is not the tar it was");
}

/// Unpacks bytes as a skeleton of a length that they themselves state.
pub fn skeleton(data: &[u8]) {
    let Some((len, packed)) = data.split_first_chunk::<3>() else { return };
    let len = u64::from(u32::from_le_bytes([len[0], len[1], len[2], 0]));
    let Ok(mut reader) = SkeletonReader::new(packed, SkeletonFacts { len, hash: [0; 32] }) else { return };
    let mut read = 0;
    while let Ok(Some(chunk)) = reader.chunk() {
        read += chunk.len() as u64;
        assert!(read <= len, "more than stated");
    }
}

/// Reads bytes as an index file, and behind a right checksum as its body. What is accepted encodes to itself,
/// and what opens gives no segment from noise.
///
/// # Panics
///
/// On a defect.
pub fn index(data: &[u8]) {
    for file in [data.to_vec(), crate::index::sealed(data)] {
        let Ok(index) = Index::decode(&file) else { continue };
        assert!(index.encode() == file, "it encodes to something else");
        let Ok(layer) = Layer::open(index).map(Arc::new) else { continue };
        let all = 0..layer.segments();
        let Ok(mut decoder) = SpanDecoder::new(Arc::clone(&layer), all) else { continue };
        let mut noise = data;
        while let Ok(Some((segment, verified))) = decoder.push(&mut noise) {
            let right = layer.verify_segment(segment, verified.as_slice()).is_ok();
            assert!(right || !layer.tells(), "an unverified segment");
        }
    }
}

/// Reads bytes as what a layer has for a table of contents: as the JSON, as the end of an eStargz blob, and as a frame of
/// zstd. What makes an index opens, and gives no segment from noise.
///
/// # Panics
///
/// On a defect.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
pub fn contents(data: &[u8]) {
    let (size, table) = (data.len() as u64, Digest::of(data));
    let whose = |codec, segment| Whose {
        blob: table,
        size: 1 << 20,
        codec,
        diff_id: DiffId::new(table),
        table,
        end: 1 << 20,
        ahead: size,
        segment: SegmentSize::from_bits(segment).expect("in range"),
    };
    let (gzip, zstd) = (whose(Codec::Gzip, 16), whose(Codec::Zstd, 19));
    let at = Place::At { offset: 0, packed: size, plain: 1 << 16 };
    for (place, whose) in [(Place::Footer, &gzip), (at, &zstd)] {
        let announced = Announced { digest: table, place, ahead: 0 };
        assert!(announced.elsewhere(data, size).is_none_or(|end| end < size), "it is longer than it is");
        // As a blob that is nothing else, and as the end of one.
        let whole = announced.whole(data, size).unwrap_or(0..size);
        let range = usize::try_from(whole.start).unwrap_or(0)..usize::try_from(whole.end).unwrap_or(0);
        for packed in [data, &data[range]] {
            if let Ok(made) = announced.layer(packed, whose) {
                opens_to_nothing(made, data);
            }
        }
    }
    for whose in [&gzip, &zstd] {
        let Ok(made) = crate::stargz::index::layer(data, whose) else { continue };
        opens_to_nothing(made, data);
    }
}

/// Reads bytes as a bootstrap of Nydus, and as the meta of a blob. What is listed is no more than the bytes can hold, and
/// what makes an index opens.
///
/// # Panics
///
/// On a defect.
pub fn nydus(data: &[u8]) {
    if let Ok(bootstrap) = Bootstrap::open(data)
        && let Ok(list) = bootstrap.list()
    {
        let mut found = 0;
        for n in 0..list.len() {
            let (Ok(_), Ok(chunks)) = (list.member(n), list.chunks(n)) else { return };
            found += chunks.take_while(Result::is_ok).count();
        }
        assert!(list.len() <= data.len() / 12 && found <= data.len() / 8, "more than there can be");
        let table = Digest::of(data);
        let whose = nydus::index::Whose {
            blob: table,
            size: 1 << 20,
            codec: Codec::Gzip,
            diff_id: DiffId::new(table),
            table,
            blobs: &[],
            metas: &[],
            segment: SegmentSize::DEFAULT,
        };
        if let Ok(made) = nydus::index::layer(&bootstrap, &whose) {
            opened(made);
        }
    }
    let Ok((_, header)) = MetaHeader::read_from_suffix(data) else { return };
    let (packed, plain) = (header.units_packed.get(), header.units_plain.get());
    let in_stream = features::UNITS_V2 | features::ZRAN | features::SEPARATE;
    for (packing, features) in [
        (Packing::Plain, features::UNITS_V2),
        (Packing::Zstd, features::UNITS_V2),
        (Packing::Lz4, 0),
        (Packing::Plain, in_stream),
        (Packing::Zstd, in_stream),
    ] {
        let blob = Blob {
            id: Digest::of(b""),
            packing: Packing::Zstd,
            chunks: 1,
            packed_size: 1 << 40,
            plain_size: 1 << 40,
            features,
            meta: Meta { blob: Digest::of(b""), offset: 0, packed, plain, packing },
        };
        let Ok(meta) = BlobMeta::open(&blob, data) else { continue };
        for number in 0..100 {
            let chunk = Chunk { blob: 0, number, len: 1000, id: ChunkId([0; 32]), piece: None };
            let Ok(piece) = meta.piece(&chunk) else { continue };
            if piece.packing == Packing::Inside
                && let Some(entry) = meta.entry(piece.blob, piece.begin)
            {
                assert!(entry.bits < 8 && entry.window.len() <= Source::MAX_WINDOW, "no entry at all");
            }
        }
    }
}

/// Reads bytes as a zTOC of SOCI. What makes an index opens, and gives no segment from noise.
///
/// # Panics
///
/// On a defect.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
pub fn soci(data: &[u8]) {
    let _ = soci::assumes_short_header(data); // whatever they are
    let table = Digest::of(data);
    for (size, segment) in [(1 << 20, 16), (1 << 30, 19)] {
        let segment = SegmentSize::from_bits(segment).expect("in range");
        let whose = soci::index::Whose { blob: table, size, diff_id: DiffId::new(table), table, segment };
        let Ok(made) = soci::index::layer(data, &whose) else { continue };
        opens_to_nothing(made, data);
    }
}

/// Reads bytes as the list of what to fetch first beside a zTOC, of which the layer was made. What it names is there, and once.
///
/// # Panics
///
/// On a defect.
pub fn soci_ahead(list: &[u8], ztoc: &[u8], layer: &Layer) {
    let Ok(mut ahead) = soci::ahead::segments(list, ztoc, layer) else { return };
    let count = ahead.len();
    assert!(ahead.iter().all(|segment| *segment < layer.segments()), "a segment that does not exist");
    ahead.sort_unstable();
    ahead.dedup();
    assert_eq!(ahead.len(), count, "a segment twice");
}

/// A layer that was made of a table is what its index opens to.
///
/// # Panics
///
/// On a defect.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
pub fn opened(made: Layer) -> Arc<Layer> {
    let index = Index::decode(&made.index().encode()).expect("an index that was made of a table");
    assert!(Layer::open(index).expect("the same") == made, "it opens to something else");
    Arc::new(made)
}

/// A layer that was made of a table gives no segment from noise.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
fn opens_to_nothing(made: Layer, noise: &[u8]) {
    let layer = opened(made);
    for first in 0..layer.segments().min(8) {
        let span = layer.span(first).expect("every segment has a span");
        assert!(span.segments.contains(&first), "another span");
        let mut decoder = SpanDecoder::new(Arc::clone(&layer), span.segments).expect("segments that exist");
        let mut noise = noise;
        assert!(!matches!(decoder.push(&mut noise), Ok(Some(_))), "noise has passed");
    }
}

#[cfg(test)]
mod tests {
    use testkit::tar::{Archive, Entry, Kind, Variant};

    #[test]
    fn entry_points_accept_good_and_bad() {
        let entries = [
            Entry::file("d/f", vec![1; 5000]),
            Entry::new("s", Kind::Sparse(9000, vec![(7, vec![2; 100]), (5000, vec![3; 4000])])),
            Entry::link("l", "s"),
        ];
        let tar = Archive::of(&entries, Variant::Pax10).tar;
        super::tar(&tar);
        for at in 0..tar.len() {
            super::tar(&tar[..at]);
        }
        super::tar(&[0xff; 600]);
        super::skeleton(b"\x05\0\0noise");
        super::skeleton(b"");
        super::index(b"");
        super::index(b"noise");
        super::contents(b"noise");
        super::nydus(b"noise");
        super::soci(b"noise");
        let ztoc = zstd::decode_all(&include_bytes!("../tests/ztoc/layer.ztoc.zst")[..]).unwrap();
        let table = crate::Digest::of(&ztoc);
        let whose = crate::soci::index::Whose {
            blob: table,
            size: include_bytes!("../tests/ztoc/layer.gz").len() as u64,
            diff_id: crate::DiffId::new(table),
            table,
            segment: crate::payload::SegmentSize::from_bits(16).unwrap(),
        };
        let layer = crate::soci::index::layer(&ztoc, &whose).unwrap();
        let list = br#"{"version":"1.0","prefetch_spans":[{"start_span":1,"end_span":9},{"start_span":0,"end_span":1}]}"#;
        super::soci_ahead(list, &ztoc, &layer);
        super::soci_ahead(b"noise", &ztoc, &layer);
        super::soci(&testkit::soci::Ztoc::sample(1 << 20).encode());
        super::soci(&zstd::decode_all(&include_bytes!("../tests/ztoc/layer.ztoc.zst")[..]).unwrap());
        let bootstrap = include_bytes!("../tests/nydus/none.boot.zst");
        super::nydus(&zstd::decode_all(&bootstrap[..]).unwrap());
        let bootstrap = include_bytes!("../tests/nydus/none5.boot.zst");
        super::nydus(&zstd::decode_all(&bootstrap[..]).unwrap());
        // What says where a tar.gz can be entered, without the tar headers behind it.
        let meta = zstd::decode_all(&include_bytes!("../tests/nydus/big.ref.zst")[..]).unwrap();
        super::nydus(&meta[..796 + 4096]);
        super::nydus(&[0; 9000]);
        let digest = crate::Digest::of(b"");
        super::contents(
            format!(
                r#"{{"version":1,"entries":[{{"name":"d/","type":"dir","mode":493}},
                {{"name":"d/f","type":"reg","size":70000,"offset":5,"chunkSize":66000,"chunkDigest":"{digest}","xattrs":null}},
                {{"name":"d/f","type":"chunk","offset":900,"chunkOffset":66000,"chunkDigest":"{digest}"}}]}}"#
            )
            .as_bytes(),
        );
    }
}
