//! An entry point for fuzzers: takes any bytes and holds what must hold of them.

use std::collections::HashMap;
use std::io::Cursor;
use std::os::unix::fs::FileExt;
use std::path::Path;

use bytes::Bytes;
use format::Digest;
use format::stargz::table::Announced;

use crate::artifact::IndexArtifact;
use crate::config::Config;
use crate::error::Error;
use crate::layout::{blob_name, docker, flat};
use crate::manifest::{Image, ImageIndex, Manifest, check_image};
use crate::soci::SociIndex;
use crate::source::tables_in;
use crate::{archive, challenge, hosts, scratch};

/// Reads bytes as one of the things that come from a registry or in an archive; the first byte says which.
///
/// # Panics
///
/// On a defect.
pub fn answer(data: &[u8]) {
    let Some((kind, rest)) = data.split_first() else { return };
    match kind % 7 {
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
        4 => {
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
        5 => saved(rest),
        _ => {
            let made = flat::shown(Ok(Bytes::copy_from_slice(rest)), "fuzz");
            shown(made, |_| true);
        }
    }
}

/// Reads parts with a NUL between them as the members of what docker saves: `manifest.json`, and others whose names are
/// their numbers.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
fn saved(bytes: &[u8]) {
    let file = scratch().expect("a file");
    file.write_all_at(bytes, 0).expect("room");
    let (mut members, mut at) = (HashMap::new(), 0);
    for (n, part) in bytes.split(|byte| *byte == 0).enumerate() {
        let name = if n == 0 { "manifest.json".to_owned() } else { n.to_string() };
        members.insert(name, archive::Member { offset: at, len: part.len() as u64 });
        at += part.len() as u64 + 1;
    }
    let made = docker::shown(&file, &mut members, "fuzz");
    shown(made, |blob| members.contains_key(blob));
}

/// What an archive or a directory is shown as leads to what is there.
#[expect(clippy::expect_used, reason = "a defect must end the fuzzer")]
fn shown(made: Result<HashMap<String, Bytes>, Error>, has: impl Fn(&str) -> bool) {
    let Ok(made) = made else { return };
    let index: ImageIndex = serde_json::from_slice(&made["index.json"]).expect("an index");
    for entry in index.descriptors() {
        let bytes = &made[&blob_name(&entry.digest)];
        let manifest = Manifest::verify(bytes.clone(), Some(&entry.digest), None, "fuzz").expect("made here");
        let Ok(image) = manifest.image("fuzz") else { continue };
        let blobs = image.layers.iter().chain([&image.config]);
        assert!(blobs.map(|blob| blob_name(&blob.digest)).all(|blob| has(&blob)), "a blob is missing");
    }
}

/// What is understood of a manifest is understood again after having been written.
fn manifest(bytes: &[u8]) {
    let Ok(manifest) = Manifest::verify(Bytes::copy_from_slice(bytes), None, None, "fuzz") else { return };
    assert_eq!(manifest.digest, Digest::of(bytes));
    if let Ok(parsed) = manifest.image("fuzz") {
        let again = serde_json::to_vec(&parsed).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        assert_eq!(again, Some(parsed.clone()), "an image manifest");
        if let Some(subject) = &parsed.subject {
            let _ = IndexArtifact::parse(&manifest, &subject.digest);
            let _ = SociIndex::parse(&manifest, Some(&subject.digest));
        }
        let _ = SociIndex::parse(&manifest, None);
        let _ = SociIndex::named_by(bytes);
        for layer in &parsed.layers {
            let Some(table) = Announced::by(&layer.annotations) else { continue };
            let Ok(first) = table.first(layer.size) else { continue };
            assert!(first.start < first.end && first.end <= layer.size, "a table outside of its layer");
            // The end of the layer is that of these bytes.
            let most = usize::try_from(first.end - first.start).unwrap_or(usize::MAX);
            let tail = &bytes[bytes.len() - bytes.len().min(most)..];
            let Ok(whole) = table.whole(tail, layer.size) else { continue };
            assert!(whole.start < whole.end && whole.end <= layer.size, "a table outside of its layer");
        }
        let _ = tables_in(parsed);
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
        let saved = r#"[{"Config":"1","RepoTags":["a:b","c"],"Layers":["2"]},{"Config":"1","Layers":["2"]}]"#;
        let odd = r#"{"schemaVersion":2,"manifests":[{"size":7.5555555555555545e+96}]}"#;
        for good in [
            format!("\0{image}"),
            format!("\0{list}"),
            format!("\0{odd}"),
            format!("\u{3}{image}\0{config}"),
            "\u{4}server = \"https://a.example\"\n[host.\"http://b.example/v2\"]\n".into(),
            format!("\u{5}{saved}\0{config}\0tar"),
            format!("\u{6}{image}"),
        ] {
            super::answer(good.as_bytes());
        }
        for bad in [
            &b""[..],
            b"\0",
            b"\0{",
            b"\x01Bearer realm=\"",
            b"\x02ustar",
            b"\x03{}\0{}",
            b"\x04[host",
            b"\x05[{\"Config\":1}]",
            b"\x06{",
        ] {
            super::answer(bad);
        }
    }
}
