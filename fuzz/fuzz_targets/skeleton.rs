//! Bytes as a packed skeleton, and bytes as a plain one: whatever is packed comes back.
#![no_main]

use format::skeleton::{SkeletonReader, SkeletonWriter};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    match data.split_first() {
        Some((0, packed)) => format::fuzz::skeleton(packed),
        // The lean form inside a good frame.
        Some((1, rest)) => {
            let Some((len, lean)) = rest.split_first_chunk::<3>() else { return };
            format::fuzz::skeleton(&[&len[..], &zstd::bulk::compress(lean, 1).expect("zstd")].concat());
        }
        Some((step, plain)) => {
            let mut writer = SkeletonWriter::new().expect("zstd");
            plain.chunks(usize::from(*step)).for_each(|part| writer.write(part).expect("short"));
            let (packed, facts) = writer.finish().expect("short");
            let mut reader = SkeletonReader::new(&packed, facts).expect("just packed");
            let mut back = Vec::new();
            while let Some(chunk) = reader.chunk().expect("just packed") {
                back.extend_from_slice(chunk);
            }
            assert!(back == plain);
        }
        None => {}
    }
});
