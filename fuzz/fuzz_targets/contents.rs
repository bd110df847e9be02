//! Bytes as a layer's own table of contents, or as what should hold one.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::fuzz::contents(data));
