//! Bytes as a layer that is a file system: a tar is made of it, always the same, and an index whose segments pass by it, or it is
//! refused.
#![no_main]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::sync::Arc;

use convert::recode::erofs::{image, index, unpack};
use convert::{Expected, Options};
use format::decode::SpanDecoder;
use format::erofs::disk;
use format::payload::SegmentSize;
use format::{DiffId, Digest};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        bytes.resize(bytes.len().next_multiple_of(disk::BLOCK), 0);
        if let Some(block) = bytes.first_chunk::<{ disk::BLOCK }>() {
            let sum = disk::super_checksum(block).to_le_bytes();
            bytes[disk::SUPER_OFFSET + 4..disk::SUPER_OFFSET + 8].copy_from_slice(&sum);
        }
    }
    let (size, file) = (bytes.len() as u64, scratch());
    let mut out = scratch();
    let whole = Expected { blob: Digest::of(&bytes), diff_id: DiffId::new(Digest::of(&bytes)) };
    indexed(&bytes, &whole);
    let Ok(made) = unpack(&bytes[..], &whole, size, &file, &out) else { return };
    let mut tar = Vec::new();
    out.seek(SeekFrom::Start(0)).expect("a file");
    out.read_to_end(&mut tar).expect("a file");
    assert!(made.size == tar.len() as u64 && made.digest == Digest::of(&tar) && tar.len() % 512 == 0);
    let again = unpack(&bytes[..], &whole, size, &file, scratch()).expect("the same once more");
    assert_eq!(again, made);
    if tar.len() <= 1 << 20 {
        // Whether a file system can be made of it or not.
        let expected = Expected { blob: made.digest, diff_id: DiffId::new(made.digest) };
        let mut out = scratch();
        out.seek(SeekFrom::Start(0)).expect("a file");
        let _ = image(&tar[..], &expected, made.size, out);
    }
});

/// What makes an index gives the segments that come out of the image by it.
fn indexed(bytes: &[u8], whole: &Expected) {
    let options = Options { segment: SegmentSize::DEFAULT, blob_size: bytes.len() as u64 };
    let (mut segments, mut len) = (Vec::new(), 0);
    let keep = |_: u32, segment: &[u8]| {
        len += segment.len();
        if len > 64 << 20 {
            return Err(std::io::ErrorKind::FileTooLarge.into());
        }
        segments.push(segment.to_vec());
        Ok(())
    };
    let Ok((layer, _)) = index(bytes, whole, options, whole.blob, &scratch(), keep) else { return };
    let layer = Arc::new(layer);
    for (n, wanted) in (0..).zip(&segments) {
        let span = layer.span(n).expect("every segment has a span");
        let mut decoder = SpanDecoder::new(Arc::clone(&layer), span.segments).expect("segments that exist");
        let mut found = false;
        for part in decoder.parts() {
            let range = usize::try_from(part.range.start).expect("small")
                ..usize::try_from(part.range.end).expect("small");
            let mut rest = &bytes[range];
            while let Some((number, segment)) = decoder.push(&mut rest).expect("its own bytes") {
                found |= number == n && segment.as_slice() == &wanted[..];
            }
        }
        assert!(found, "another segment");
    }
}

/// A file without a name.
fn scratch() -> File {
    let path = std::env::temp_dir().join(format!("fuzz-erofs-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    std::fs::remove_file(&path).expect("it is there");
    file.expect("a file")
}
