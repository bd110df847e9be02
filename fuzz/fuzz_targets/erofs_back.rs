//! Bytes as a layer that is a file system: a tar is made of it, always the same, or it is refused.
#![no_main]

use std::fs::File;
use std::io::{Read, Seek, SeekFrom};

use convert::Expected;
use convert::recode::erofs::{image, unpack};
use format::erofs::disk;
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
    let Ok(made) = unpack(&bytes[..], Digest::of(&bytes), size, &file, &out) else { return };
    let mut tar = Vec::new();
    out.seek(SeekFrom::Start(0)).expect("a file");
    out.read_to_end(&mut tar).expect("a file");
    assert!(made.size == tar.len() as u64 && made.digest == Digest::of(&tar) && tar.len() % 512 == 0);
    let again = unpack(&bytes[..], Digest::of(&bytes), size, &file, scratch()).expect("the same once more");
    assert_eq!(again, made);
    if tar.len() <= 1 << 20 {
        // Whether a file system can be made of it or not.
        let expected = Expected { blob: made.digest, diff_id: DiffId::new(made.digest) };
        let mut out = scratch();
        out.seek(SeekFrom::Start(0)).expect("a file");
        let _ = image(&tar[..], &expected, made.size, out);
    }
});

/// A file without a name.
fn scratch() -> File {
    let path = std::env::temp_dir().join(format!("fuzz-erofs-{}", std::process::id()));
    let file = File::options().read(true).write(true).create(true).truncate(true).open(&path);
    std::fs::remove_file(&path).expect("it is there");
    file.expect("a file")
}
