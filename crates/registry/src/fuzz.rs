//! An entry point for fuzzers: takes any bytes and holds what must hold of them.

use std::io::Cursor;
use std::path::Path;

use bytes::Bytes;
use format::Digest;

use crate::artifact::IndexArtifact;
use crate::config::Config;
use crate::manifest::{Image, Manifest, check_image};
use crate::soci::SociIndex;
use crate::{archive, challenge, hosts};

/// Reads bytes as one of the things that come from a registry or in an archive; the first byte says which.
///
/// # Panics
///
/// On a defect.
pub fn answer(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 5 {
        0 => manifest(rest),
        1 => {
            let text = String::from_utf8_lossy(rest);
            let _ = challenge::choose(text.lines());
        }
        2 => {
            let end = rest.len() as u64;
            let Ok(members) = archive::members(&mut Cursor::new(rest)) else { return };
            assert!(members.values().all(|member| member.offset <= end && member.len <= end - member.offset));
        }
        3 => {
            // A manifest and its config, with a NUL between them.
            let at = rest.iter().position(|b| *b == 0).unwrap_or(rest.len());
            let (body, config) =
                (Bytes::copy_from_slice(&rest[..at]), rest.get(at + 1..).unwrap_or_default());
            let Ok(manifest) = Manifest::verify(body, None, None, "fuzz") else { return };
            let Ok(parsed) = manifest.image("fuzz") else { return };
            if check_image(&parsed, "fuzz").is_err() {
                return;
            }
            let layers = parsed.layers.len();
            let image = Image::new(Vec::new(), manifest, parsed, Bytes::copy_from_slice(config), "fuzz");
            assert!(image.is_ok_and(|image| image.layers.len() == layers) || layers < 128);
        }
        _ => {
            // Of a mirror for a host; what comes out has a name and a path.
            let Ok(registry) = "registry.example".parse() else { return };
            let text = String::from_utf8_lossy(rest);
            let config = Config::isolated();
            if let Ok(endpoints) = hosts::from_toml(&config, &registry, Path::new("/none"), &text) {
                assert!(
                    endpoints
                        .iter()
                        .all(|endpoint| endpoint.prefix.is_empty() || endpoint.prefix.starts_with('/'))
                );
            }
        }
    }
}

/// What is understood of a manifest is understood again after having been written.
fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::verify(Bytes::copy_from_slice(bytes), None, None, "fuzz") else { return };
    assert_eq!(manifest.digest, Digest::of(bytes));
    if let Ok(parsed) = manifest.image("fuzz") {
        let again = serde_json::to_vec(&parsed).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        assert_eq!(again, Some(parsed.clone()), "an image manifest");
        if let Some(subject) = parsed.subject {
            let _ = IndexArtifact::parse(&manifest, &subject.digest);
            let _ = SociIndex::parse(&manifest, Some(&subject.digest));
        }
        let _ = SociIndex::parse(&manifest, None);
        let _ = SociIndex::named_by(bytes);
    }
    if let Ok(list) = manifest.index("fuzz") {
        let again = serde_json::to_vec(&list).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        assert_eq!(again, Some(list.clone()), "an image index");
        let _ = list.choose(&crate::Platform::host());
        let _ = list.platforms();
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn the_entry_point_accepts_good_and_bad() {
        let zeros = "0".repeat(64);
        let descriptor = format!(r#"{{"mediaType":"a/b","digest":"sha256:{zeros}","size":1}}"#);
        let image = format!(r#"{{"schemaVersion":2,"config":{descriptor},"layers":[{descriptor}]}}"#);
        let config = format!(r#"{{"rootfs":{{"diff_ids":["sha256:{zeros}"]}}}}"#);
        let list = format!(r#"{{"schemaVersion":2,"manifests":[{descriptor},{{}}]}}"#);
        let odd = r#"{"schemaVersion":2,"manifests":[{"size":7.5555555555555545e+96}]}"#;
        for good in [
            format!("\0{image}"),
            format!("\0{list}"),
            format!("\0{odd}"),
            format!("\u{3}{image}\0{config}"),
            "\u{4}server = \"https://a.example\"\n[host.\"http://b.example/v2\"]\n".into(),
        ] {
            super::answer(good.as_bytes());
        }
        for bad in
            [&b""[..], b"\0", b"\0{", b"\x01Bearer realm=\"", b"\x02ustar", b"\x03{}\0{}", b"\x04[host"]
        {
            super::answer(bad);
        }
    }
}
