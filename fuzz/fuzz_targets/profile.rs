//! Bytes as a start-up profile: what is accepted means the same after another way through JSON.
#![no_main]

use floe::engine::profile::Profile;

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Ok(profile) = Profile::parse(data) else { return };
    let reads = profile.reads().count();
    assert!(reads <= 65_536);
    let json = profile.to_json().expect("plain numbers");
    assert!(Profile::parse(&json).expect("just written") == profile);
});
