//! Images with a SOCI index beside them, as `soci` pushes it.

use bytes::Bytes;
use format::Digest;
use format::soci::{INDEX_V1, LAYER_DIGEST, ZTOC};
use registry::{Content, Manifest, Pick, media_type};
use serde_json::{Value, json};

use super::image::{self, TestImage};

pub fn descriptor(kind: &str, bytes: &[u8]) -> Value {
    json!({ "mediaType": kind, "digest": Digest::of(bytes).to_string(), "size": bytes.len() })
}

/// The manifest of a SOCI index with the zTOC of an image's first layer.
pub fn index(image: &TestImage, kind: &str, ztoc: &[u8]) -> Value {
    let mut table = descriptor(ZTOC, ztoc);
    table["annotations"] = json!({ LAYER_DIGEST: image.layers[0].digest().to_string() });
    json!({
        "schemaVersion": 2, "mediaType": media_type::MANIFEST, "config": descriptor(kind, b"{}"),
        "layers": [table]
    })
}

/// Stores manifests, the last under a tag if there is one, and blobs that they name.
pub fn store(reference: &str, manifests: &[(&str, &[u8])], tag: bool, blobs: &[&[u8]]) {
    let name = image::name(reference);
    tokio::runtime::Runtime::new().unwrap().block_on(async {
        let repository = image::client().repository(name.host(), name.repository());
        for blob in blobs {
            repository.push_blob(&Content::bytes(Bytes::copy_from_slice(blob)), None).await.unwrap();
        }
        for (n, (kind, bytes)) in manifests.iter().enumerate() {
            let digest = Digest::of(bytes);
            let manifest =
                Manifest { digest, media_type: (*kind).into(), bytes: Bytes::copy_from_slice(bytes) };
            let last = tag && n + 1 == manifests.len();
            let pick = if last { Pick::of(&name) } else { Pick::Digest(digest) };
            repository.push_manifest(&manifest, &pick).await.unwrap();
        }
    });
}

/// Stores an image, and a SOCI index that refers to it, as `soci push` does.
pub fn push_v1(image: &TestImage, reference: &str, ztoc: &[u8]) {
    image.push(reference);
    let mut index = index(image, INDEX_V1, ztoc);
    index["subject"] = descriptor(media_type::MANIFEST, &image.manifest);
    store(reference, &[(media_type::MANIFEST, index.to_string().as_bytes())], false, &[ztoc, b"{}"]);
}
