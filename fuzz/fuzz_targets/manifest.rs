//! What a registry answers: manifests, artifacts, challenges, links.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| registry::fuzz::answer(data));
