//! Bytes as a zTOC of SOCI, and as the list of what to fetch first beside a known one.
#![no_main]

use std::sync::LazyLock;

use format::layer::Layer;
use format::payload::SegmentSize;
use format::soci::index::{Whose, layer};
use format::{DiffId, Digest};

/// A zTOC that SOCI's own program has written, and the layer that it is of.
static KNOWN: LazyLock<(Vec<u8>, Layer)> = LazyLock::new(|| {
    let ztoc = zstd::decode_all(&include_bytes!("../../crates/format/tests/ztoc/layer.ztoc.zst")[..]);
    let ztoc = ztoc.expect("a file of the tests");
    let table = Digest::of(&ztoc);
    let whose = Whose {
        blob: table,
        size: include_bytes!("../../crates/format/tests/ztoc/layer.gz").len() as u64,
        diff_id: DiffId::new(table),
        table,
        segment: SegmentSize::from_bits(16).expect("in range"),
    };
    let layer = layer(&ztoc, &whose).expect("a zTOC");
    (ztoc, layer)
});

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    format::fuzz::soci(data);
    let (ztoc, layer) = &*KNOWN;
    format::fuzz::soci_ahead(data, ztoc, layer);
});
