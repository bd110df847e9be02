//! An entry point for fuzzers: takes any bytes and holds what must hold of them.

use crate::known;
use crate::record::{self, Kind};
use crate::refs;

/// Reads bytes as a record file, and as the body of one.
///
/// # Panics
///
/// On a defect.
pub fn record(data: &[u8]) {
    for kind in [Kind::Session, Kind::Ref, Kind::Layer, Kind::Meta, Kind::Profile, Kind::Pin, Kind::Known] {
        if let Ok(body) = record::decode(kind, data) {
            assert!(record::encode(kind, body) == data, "an accepted record encodes to itself");
        }
    }
    let _ = known::is_table(data); // it may be none; it must not panic
    // A newer program may have written more into the JSON, so it is the meaning that comes back.
    if let Ok(image) = refs::decode(data)
        && let Ok(bytes) = refs::encode(&image)
    {
        assert_eq!(refs::decode(&bytes), Ok(image));
    }
}

#[cfg(test)]
mod tests {
    use format::Digest;

    use super::*;
    use crate::{ImageRef, RefName};

    #[test]
    fn the_entry_point_accepts_good_and_bad() {
        let (manifest, config) = (b"manifest".to_vec(), b"config".to_vec());
        let image = ImageRef {
            name: RefName::parse("a").unwrap(),
            manifest_digest: Digest::of(&manifest),
            original: None,
            manifest,
            config_digest: Digest::of(&config),
            config,
            layers: Vec::new(),
        };
        let body = refs::encode(&image).unwrap();
        record(&body);
        record(&record::encode(Kind::Ref, &body));
        record(b"");
        record(b"\xff\xff\xff\xff{}");
    }
}
