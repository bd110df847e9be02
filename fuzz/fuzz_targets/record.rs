//! Bytes as a file of the store: a record and what is in it.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| store::fuzz::record(data));
