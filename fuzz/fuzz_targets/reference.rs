//! Text as an image reference: what is accepted prints as something that means the same.
#![no_main]

use registry::{Platform, Reference};
use store::RefName;

libfuzzer_sys::fuzz_target!(|text: &str| {
    if let Ok(reference) = text.parse::<Reference>() {
        let canonical = reference.to_string();
        let again = canonical.parse::<Reference>().expect("the canonical form is a reference");
        assert!(again == reference && again.to_string() == canonical, "{canonical}");
    }
    if let Some(platform) = Platform::parse(text) {
        assert_eq!(Platform::parse(&platform.to_string()), Some(platform));
    }
    if let Ok(name) = RefName::parse(text) {
        assert_eq!(name.as_str(), text);
    }
});
