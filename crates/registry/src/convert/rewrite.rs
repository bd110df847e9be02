//! Configs, manifests and image indexes, written anew around layers that were: pure functions of JSON.
//!
//! A config keeps every byte but the list of diffIDs. Of manifests and indexes all fields stay, known or not; only the
//! order of keys is ours.

use std::borrow::Cow;
use std::collections::HashMap;
use std::ops::Range;

use bytes::Bytes;
use format::soci::INDEX_DIGEST;
use format::{DiffId, Digest};
use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::formats::{self, Format};
use crate::error::Error;
use crate::manifest::{Descriptor, ImageManifest, Manifest, media_type};

/// Annotation: the digest of the blob or manifest that this one was made of.
pub const CONVERTED_FROM: &str = "dev.floe.converted.from";

/// Annotation of a layer: what the files were ordered by that come first in it.
pub(super) const ORDERED_BY: &str = "dev.floe.ordered.by";

/// Annotation of a manifest in an index: podman, buildah, skopeo and CRI-O take it before one that lacks it.
const PREFERRED_ZSTD: &str = "io.github.containers.compression.zstd";

/// Annotation of a manifest in an index: which other one it is about. BuildKit's attestations have it.
const ABOUT: &str = "vnd.docker.reference.digest";

/// The same of a SOCI index of version 2.
const ABOUT_SOCI: &str = "com.amazon.soci.image-manifest-digest";

/// Returns a config with other diffIDs, and nothing else of it changed.
pub(super) fn config(bytes: &Bytes, diff_ids: &[DiffId], what: &str) -> Result<Bytes, Error> {
    let bad = |error: serde_json::Error| Error::invalid(what, format!("its config: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|error| Error::invalid(what, error.to_string()))?;
    let place = diff_ids_in(text).map_err(bad)?;
    let list = serde_json::to_string(diff_ids).map_err(bad)?;
    Ok([&text[..place.start], &list, &text[place.end..]].concat().into())
}

/// Returns where in a config the list of diffIDs is.
fn diff_ids_in(text: &str) -> Result<Range<usize>, serde_json::Error> {
    #[derive(Deserialize)]
    struct Config<'a> {
        #[serde(borrow)]
        rootfs: &'a RawValue,
    }
    #[derive(Deserialize)]
    struct RootFs<'a> {
        #[serde(borrow)]
        diff_ids: &'a RawValue,
    }
    let config: Config<'_> = serde_json::from_str(text)?;
    let rootfs: RootFs<'_> = serde_json::from_str(config.rootfs.get())?;
    // What was borrowed lies in the text it was borrowed from.
    let list = rootfs.diff_ids.get();
    let start = list.as_ptr() as usize - text.as_ptr() as usize;
    Ok(start..start + list.len())
}

/// Returns a config whose history has one more layer, and nothing else of it changed; the same, if it has no history.
pub(super) fn history(bytes: &Bytes, what: &str) -> Result<Bytes, Error> {
    const STEP: &str = r#"{"created_by":"floe convert --format nydus","comment":"the tree of all layers"}"#;
    history_with(bytes, STEP, what)
}

fn history_with(bytes: &Bytes, step: &str, what: &str) -> Result<Bytes, Error> {
    #[derive(Deserialize)]
    struct Config<'a> {
        #[serde(borrow)]
        history: Option<&'a RawValue>,
    }
    let bad = |error: serde_json::Error| Error::invalid(what, format!("its config: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|error| Error::invalid(what, error.to_string()))?;
    let config: Config<'_> = serde_json::from_str(text).map_err(bad)?;
    let Some(list) = config.history.map(RawValue::get) else { return Ok(bytes.clone()) };
    let inside = list.strip_prefix('[').and_then(|list| list.strip_suffix(']'));
    let inside = inside.ok_or_else(|| Error::invalid(what, "its config: the history is no list"))?;
    // What was borrowed lies in the text it was borrowed from.
    let end = inside.as_ptr() as usize - text.as_ptr() as usize + inside.len();
    let comma = if inside.trim().is_empty() { "" } else { "," };
    Ok([&text[..end], comma, step, &text[end..]].concat().into())
}

/// Returns a config that asks for a feature of its platform, or does not, and nothing else of it changed.
pub(super) fn feature(bytes: &Bytes, feature: &str, asks: bool, what: &str) -> Result<Bytes, Error> {
    #[derive(Deserialize)]
    struct Config<'a> {
        #[serde(borrow, rename = "os.features")]
        features: Option<&'a RawValue>,
    }
    let bad = |error: serde_json::Error| Error::invalid(what, format!("its config: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|error| Error::invalid(what, error.to_string()))?;
    let config: Config<'_> = serde_json::from_str(text).map_err(bad)?;
    let list = match config.features.map(RawValue::get) {
        Some(list) => list,
        None if !asks => return Ok(bytes.clone()),
        None => {
            let brace = text.find('{').map_or(text.len(), |at| at + 1); // it is an object, and begins with one
            let said = format!("\"os.features\":[\"{feature}\"],");
            return Ok([&text[..brace], &said, &text[brace..]].concat().into());
        }
    };
    let mut features: Vec<String> = serde_json::from_str::<Option<_>>(list).map_err(bad)?.unwrap_or_default();
    features.retain(|one| one != feature);
    let features = if asks { with(features, feature) } else { features };
    let list_with = serde_json::to_string(&features).map_err(bad)?;
    // What was borrowed lies in the text it was borrowed from.
    let start = list.as_ptr() as usize - text.as_ptr() as usize;
    let (before, after) = (&text[..start], &text[start + list.len()..]);
    let added = before.strip_suffix("\"os.features\":").zip(after.strip_prefix(','));
    Ok(match added.filter(|_| features.is_empty()) {
        Some((before, after)) => [before, after].concat().into(), // as it was before it asked
        None => [before, &list_with, after].concat().into(),
    })
}

/// Returns features in their order, with one more.
fn with(mut features: Vec<String>, feature: &str) -> Vec<String> {
    features.push(feature.to_owned());
    features.sort();
    features.dedup();
    features
}

/// Returns a config whose history lacks the last of so many layers, and nothing else of it changed; the same, if the history
/// has another number of layers.
pub(super) fn history_below(bytes: &Bytes, layers: usize, what: &str) -> Result<Bytes, Error> {
    #[derive(Deserialize)]
    struct Config<'a> {
        #[serde(borrow)]
        history: Option<Vec<&'a RawValue>>,
    }
    #[derive(Deserialize)]
    struct Step {
        #[serde(default)]
        empty_layer: bool,
    }
    let bad = |error: serde_json::Error| Error::invalid(what, format!("its config: {error}"));
    let text = std::str::from_utf8(bytes).map_err(|error| Error::invalid(what, error.to_string()))?;
    let steps = serde_json::from_str::<Config<'_>>(text).map_err(bad)?.history.unwrap_or_default();
    let has_layer =
        |step: &&&RawValue| serde_json::from_str(step.get()).is_ok_and(|step: Step| !step.empty_layer);
    if layers == 0 || steps.iter().filter(has_layer).count() != layers {
        return Ok(bytes.clone());
    }
    let Some(last) = steps.iter().rposition(|step| has_layer(&step)) else { return Ok(bytes.clone()) };
    // What was borrowed lies in the text it was borrowed from.
    let place = |step: &RawValue| step.get().as_ptr() as usize - text.as_ptr() as usize;
    let end = |step: &RawValue| place(step) + step.get().len();
    let cut = match (last.checked_sub(1), steps.get(last + 1)) {
        (_, Some(next)) => place(steps[last])..place(next),
        (Some(before), None) => end(steps[before])..end(steps[last]),
        (None, None) => place(steps[last])..end(steps[last]),
    };
    Ok([&text[..cut.start], &text[cut.end..]].concat().into())
}

/// Returns a config whose history has one layer, the last step, and nothing else of it changed: what was done before has none
/// any more. The same, if it has no history.
pub(super) fn history_of_one(bytes: &Bytes, layers: usize, what: &str) -> Result<Bytes, Error> {
    #[derive(Deserialize)]
    struct Config<'a> {
        #[serde(borrow)]
        history: Option<Vec<&'a RawValue>>,
    }
    const EMPTY: &str = "\"empty_layer\":true";
    const STEP: &str =
        r#"{"created_by":"floe convert --format oci","comment":"one layer of the tree of all layers"}"#;
    let bad = |error: serde_json::Error| Error::invalid(what, format!("its config: {error}"));
    let bytes = history_below(bytes, layers, what)?;
    let text = std::str::from_utf8(&bytes).map_err(|error| Error::invalid(what, error.to_string()))?;
    let Some(steps) = serde_json::from_str::<Config<'_>>(text).map_err(bad)?.history else {
        return Ok(bytes.clone());
    };
    // What was borrowed lies in the text it was borrowed from.
    let place = |part: &RawValue| part.get().as_ptr() as usize - text.as_ptr() as usize;
    let (mut made, mut at) = (String::new(), 0);
    for step in &steps {
        let said: HashMap<Cow<'_, str>, &RawValue> = serde_json::from_str(step.get()).map_err(bad)?;
        let said = said.get("empty_layer"); // null as well
        let (from, to, put) = match said {
            Some(said) => (place(said), place(said) + said.get().len(), "true".to_owned()),
            None => {
                let first = place(step) + 1; // it is an object
                let comma = if step.get()[1..].trim_start().starts_with('}') { "" } else { "," };
                (first, first, format!("{EMPTY}{comma}"))
            }
        };
        made += &text[at..from];
        made += &put;
        at = to;
    }
    made += &text[at..];
    history_with(&made.into(), STEP, what)
}

/// What becomes of the layer that has the tree of all others.
pub(super) enum Top {
    /// There is none.
    Absent,
    /// There is one more.
    More(Box<Descriptor>),
    /// The last one goes.
    Less,
    /// The last one becomes what all of them are together.
    All,
}

/// Returns an OCI manifest with another config and other layers; one for each that the manifest has but for what becomes of
/// the top, or nothing where it stays.
pub(super) fn manifest(
    of: &Manifest,
    config: &Descriptor,
    layers: &[Option<Descriptor>],
    top: Top,
    what: &str,
) -> Result<Manifest, Error> {
    let mut value = object(of, what)?;
    let bad = |why: &str| Error::invalid(what, why);
    value.insert("mediaType".into(), media_type::MANIFEST.into());
    unname(value.get_mut("annotations"));
    let old = value.get_mut("config").ok_or_else(|| bad("it has no config"))?;
    replace(old, config, what)?;
    let old = value.get_mut("layers").and_then(Value::as_array_mut);
    let old = old.ok_or_else(|| bad("its layers are no list"))?;
    match top {
        Top::Less => drop(old.pop()),
        Top::All => drop(old.drain(..old.len().saturating_sub(1))),
        Top::Absent | Top::More(_) => {}
    }
    if old.len() != layers.len() {
        return Err(bad("its layers are others"));
    }
    for (old, new) in old.iter_mut().zip(layers) {
        match new {
            Some(new) => replace(old, new, what)?,
            // An OCI manifest names them as OCI does.
            None => {
                if let Some(oci) = old["mediaType"].as_str().and_then(formats::oci_name) {
                    old["mediaType"] = oci.into();
                }
            }
        }
    }
    if let Top::More(top) = top {
        old.push(json!(top));
    }
    made(media_type::MANIFEST, &Value::Object(value), what)
}

/// Takes from annotations the name of a SOCI index, which is about the layers that were.
fn unname(annotations: Option<&mut Value>) {
    if let Some(annotations) = annotations.and_then(Value::as_object_mut) {
        annotations.remove(INDEX_DIGEST);
    }
}

/// What has become of a manifest that an index lists.
pub(super) enum Child<'a> {
    /// It stays, or it is none that we look at.
    Same,
    /// It was made anew.
    Made(&'a Manifest),
    /// It was made of another one in the list, which was looked at instead.
    Spare,
}

/// Returns an index in which manifests have been replaced, or to which they have been added; nothing if none has
/// changed. What was about a manifest that is gone goes, too, and is told.
pub(super) fn index<'a>(
    of: &Manifest,
    format: Format,
    keep: bool,
    child: impl Fn(&Digest) -> Child<'a>,
    mut gone: impl FnMut(&Digest, &Digest),
    what: &str,
) -> Result<Option<Manifest>, Error> {
    let mut value = object(of, what)?;
    let listed = value.get_mut("manifests").and_then(Value::as_array_mut);
    let listed = std::mem::take(listed.ok_or_else(|| Error::invalid(what, "it lists no manifests"))?);
    let digest_of = |entry: &Value| entry["digest"].as_str()?.parse::<Digest>().ok();
    let (mut entries, mut added, mut changed) = (Vec::new(), Vec::new(), false);
    for entry in listed {
        let Some(digest) = digest_of(&entry) else {
            entries.push(entry);
            continue;
        };
        match child(&digest) {
            Child::Made(new) => {
                changed = true;
                let mut made = entry.clone();
                replace(&mut made, &new.descriptor(), what)?;
                let is_erofs = |layer: &Descriptor| media_type::is_erofs(&layer.media_type);
                let has_erofs = new.image(what).is_ok_and(|image| image.layers.iter().any(is_erofs));
                unmark(&mut made, has_erofs);
                unname(made.get_mut("annotations"));
                // What an earlier conversion said is not so any more.
                if let Some(notes) = made.get_mut("annotations").and_then(Value::as_object_mut) {
                    notes.remove(CONVERTED_FROM);
                    notes.remove(PREFERRED_ZSTD);
                }
                // Of an index no more is replaced than what it lists.
                if keep && !new.is_index() {
                    entries.push(entry);
                    mark(&mut made, &digest, format);
                    added.push(made);
                } else {
                    entries.push(made);
                }
            }
            Child::Spare => changed = true,
            Child::Same => {
                let said = |key: &str| entry["annotations"][key].as_str().and_then(|text| text.parse().ok());
                let about = said(ABOUT).or_else(|| said(ABOUT_SOCI));
                match about {
                    Some(about) if !keep && matches!(child(&about), Child::Made(_)) => {
                        changed = true;
                        gone(&digest, &about);
                    }
                    _ => entries.push(entry),
                }
            }
        }
    }
    if !changed {
        return Ok(None);
    }
    entries.append(&mut added);
    value.insert("mediaType".into(), media_type::INDEX.into());
    value.insert("manifests".into(), entries.into());
    made(media_type::INDEX, &Value::Object(value), what).map(Some)
}

/// Returns an index of an image and of what was made of it. The original comes first, for most take the first that fits.
pub(super) fn pair(
    original: &Manifest,
    new: &Manifest,
    config: &[u8],
    format: Format,
    what: &str,
) -> Result<Manifest, Error> {
    let platform = platform(config, what)?;
    let entry = |manifest: &Manifest| {
        json!({
            "mediaType": manifest.media_type, "digest": manifest.digest.to_string(), "size": manifest.bytes.len(),
            "platform": platform
        })
    };
    let mut converted = entry(new);
    mark(&mut converted, &original.digest, format);
    let index = json!({
        "schemaVersion": 2, "mediaType": media_type::INDEX, "manifests": [entry(original), converted]
    });
    made(media_type::INDEX, &index, what)
}

/// Returns the digests of manifests in an index that were made of others in it.
pub(super) fn spares(index: &Manifest) -> Vec<Digest> {
    let children = index.children();
    let from = |child: &Descriptor| {
        child.annotations.get(CONVERTED_FROM).and_then(|text| text.parse::<Digest>().ok())
    };
    let is_spare = |child: &&Descriptor| {
        from(child)
            .is_some_and(|from| from != child.digest && children.iter().any(|other| other.digest == from))
    };
    children.iter().filter(is_spare).map(|child| child.digest).collect()
}

/// Says of an entry what it was made of, so that it is found and not made again.
fn mark(entry: &mut Value, from: &Digest, format: Format) {
    if !entry["annotations"].is_object() {
        entry["annotations"] = json!({});
    }
    entry["annotations"][CONVERTED_FROM] = from.to_string().into();
    if format == Format::ZstdChunked {
        entry["annotations"][PREFERRED_ZSTD] = "true".into();
    }
    // An entry without a platform is one for whatever its config says.
    if let (Some(feature), Value::Object(platform)) = (format.feature(), &mut entry["platform"]) {
        let said = platform.get("os.features").and_then(|list| Vec::deserialize(list).ok());
        platform.insert("os.features".into(), with(said.unwrap_or_default(), feature).into());
    }
    if format == Format::Nydus {
        entry["artifactType"] = media_type::NYDUS_IMAGE.into();
    }
}

/// Takes from an entry what says that a client of Nydus is needed, or of EROFS, unless there are such layers.
fn unmark(entry: &mut Value, has_erofs: bool) {
    if entry["artifactType"] == media_type::NYDUS_IMAGE
        && let Some(entry) = entry.as_object_mut()
    {
        entry.remove("artifactType");
    }
    if let Some(features) = entry.pointer_mut("/platform/os.features").and_then(Value::as_array_mut) {
        features.retain(|feature| {
            feature != media_type::NYDUS_FEATURE && (feature != formats::EROFS_FEATURE || has_erofs)
        });
    }
}

/// Returns what a config says about where it runs, as an index says it.
fn platform(config: &[u8], what: &str) -> Result<Value, Error> {
    let config: Map<String, Value> = serde_json::from_slice(config)
        .map_err(|error| Error::invalid(what, format!("its config: {error}")))?;
    let fields = ["architecture", "os", "os.version", "os.features", "variant"];
    let said = fields.iter().filter_map(|field| Some(((*field).to_owned(), config.get(*field)?.clone())));
    let said = Value::Object(said.collect());
    // An entry without these is none that anybody finds again, ourselves included.
    if !said["architecture"].is_string() || !said["os"].is_string() {
        return Err(Error::invalid(what, "its config names no platform, so no index can list it"));
    }
    Ok(said)
}

/// Puts another descriptor in the place of one. What the old one said beyond its content stays, but not its content
/// itself, nor where else that may be.
fn replace(old: &mut Value, new: &Descriptor, what: &str) -> Result<(), Error> {
    let Value::Object(entry) = old else { return Err(Error::invalid(what, "it lists something strange")) };
    entry.remove("data");
    entry.remove("urls");
    entry.insert("mediaType".into(), new.media_type.clone().into());
    entry.insert("digest".into(), new.digest.to_string().into());
    entry.insert("size".into(), new.size.into());
    if !new.annotations.is_empty() {
        entry.insert("annotations".into(), json!(new.annotations));
    }
    Ok(())
}

fn object(manifest: &Manifest, what: &str) -> Result<Map<String, Value>, Error> {
    serde_json::from_slice(&manifest.bytes).map_err(|error| Error::invalid(what, error.to_string()))
}

fn made(media_type: &str, value: &Value, what: &str) -> Result<Manifest, Error> {
    let bytes = serde_json::to_vec(value).map_err(|error| Error::invalid(what, error.to_string()))?;
    let (size, limit) = (bytes.len() as u64, format::limits::MANIFEST);
    if size > limit {
        return Err(Error::TooLarge { what: format!("what {what} becomes"), size, limit });
    }
    Ok(Manifest { digest: Digest::of(&bytes), media_type: media_type.into(), bytes: bytes.into() })
}

/// Says whether a manifest is an image of which layers may be written anew.
pub(super) fn is_image(manifest: &ImageManifest) -> bool {
    let configs = [media_type::CONFIG, media_type::DOCKER_CONFIG];
    manifest.artifact_type.as_deref().is_none_or(|kind| kind == media_type::CONFIG)
        && configs.contains(&&*manifest.config.media_type)
}

#[cfg(test)]
mod tests;
