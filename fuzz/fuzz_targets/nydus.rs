//! Bytes as a bootstrap of Nydus, or as what a blob says of its chunks.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::fuzz::nydus(data));
