//! Bytes as a zTOC of SOCI.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| format::fuzz::soci(data));
