//! Bytes as a tar: the parser, the skeleton's way there and back, the tree.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, tar)) = data.split_first() else { return };
    let mut tar = tar.to_vec();
    if mode & 1 == 1 {
        fuzz::seal(&mut tar);
    }
    format::fuzz::tar(&tar);
});
