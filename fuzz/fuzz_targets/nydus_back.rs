//! Bytes as a blob of Nydus that ends with its own bootstrap and tables: a tar is made of it, always the same, and it goes into an
//! image whose bootstrap can be read; or it is refused.
#![no_main]

use std::fs::File;

use convert::Expected;
use convert::recode::nydus::{Packing, Toc, merge, pack, unpack};
use convert::recode::{Recoding, Target};
use format::index::Codec;
use format::nydus::bootstrap::Bootstrap;
use format::{DiffId, Digest};

/// Block of a tar, and an entry of a table of contents.
const BLOCK: usize = 512;
const ENTRY: usize = 128;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, bytes)) = data.split_first() else { return };
    let mut bytes = bytes.to_vec();
    if mode & 1 == 1 {
        seal(&mut bytes);
    }
    unpacked(&bytes);
    merged(&bytes);
});

fn unpacked(bytes: &[u8]) {
    let digest = Digest::of(bytes);
    let size = bytes.len() as u64;
    let recoding = Recoding { target: Target::Gzip, level: Some(1), blob_size: size, threads: 1 };
    let mut out = Vec::new();
    let Ok(made) = unpack(bytes, digest, &recoding, &scratch(), &mut out) else { return };
    assert!(made.size == out.len() as u64 && made.digest == Digest::of(&out));
    let again = unpack(bytes, digest, &recoding, &scratch(), std::io::sink()).expect("the same once more");
    assert_eq!(again, made);
    let expected = Expected { blob: made.digest, diff_id: made.diff_id };
    let packing = Packing { level: Some(1), blob_size: made.size, threads: 1 };
    // Whether a blob can be made of it or not.
    let _ = pack(&out[..], &expected, &packing, std::io::sink());
}

fn merged(bytes: &[u8]) {
    let (size, tail) = (bytes.len() as u64, bytes.len().saturating_sub(Toc::TAIL as usize));
    let Ok(toc) = Toc::read(&bytes[tail..], size) else { return };
    let range = toc.range();
    assert!(range.start <= range.end && range.end <= size, "parts outside of the blob");
    let Ok(parts) = toc.parts(&bytes[range.start as usize..range.end as usize]) else { return };
    let Ok(()) = parts.check() else { return };
    let digest = Digest::of(bytes);
    for layers in [&[(digest, &parts)][..], &[(digest, &parts), (digest, &parts)]] {
        let Ok(made) = merge(layers) else { return };
        let tar = format::unpack::whole(Codec::Gzip, &made.blob, 1 << 28).expect("gzip").expect("short");
        assert_eq!(made.diff_id, DiffId::new(Digest::of(&tar)));
        // What it takes over of the blob may be wrong; what it makes is not.
        let len = std::str::from_utf8(&tar[BLOCK + 124..BLOCK + 135]).expect("digits");
        let len = usize::from_str_radix(len, 8).expect("a length");
        let Ok(bootstrap) = Bootstrap::open(&tar[2 * BLOCK..2 * BLOCK + len]) else { continue };
        let list = bootstrap.list().expect("a tree of ours");
        (0..list.len()).for_each(|n| drop(list.member(n).expect("a member of ours")));
    }
}

/// Makes the table of contents say the digests that its parts have.
fn seal(bytes: &mut [u8]) {
    let number = |at: usize, bytes: &[u8]| {
        u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight")).try_into().unwrap_or(usize::MAX)
    };
    let Some((rest, header)) = bytes.split_last_chunk::<BLOCK>() else { return };
    let len = std::str::from_utf8(&header[124..135]).ok();
    let len = len.and_then(|digits| usize::from_str_radix(digits, 8).ok());
    let Some(start) = len.filter(|len| len % ENTRY == 0).and_then(|len| rest.len().checked_sub(len)) else { return };
    for entry in (start..rest.len()).step_by(ENTRY) {
        let [offset, packed, plain] = [56, 64, 72].map(|at| number(entry + at, bytes));
        let Some(part) = offset.checked_add(packed).and_then(|end| bytes.get(offset..end)) else { continue };
        let part = match bytes[entry] & 2 {
            2 => zstd::bulk::decompress(part, plain.min(1 << 20)).unwrap_or_default(),
            _ => part.to_vec(),
        };
        let digest = *Digest::of(&part).as_bytes();
        bytes[entry + 24..entry + 56].copy_from_slice(&digest);
    }
}

/// A file without a name.
fn scratch() -> File {
    let path = std::env::temp_dir().join(format!("fuzz-nydus-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    std::fs::remove_file(&path).expect("it is there");
    file.expect("a file")
}
