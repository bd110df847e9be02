//! The index artifact of an image: made, signed, stored beside the image or in a layout of its own.

use std::path::Path;

use anyhow::{Context, bail};
use format::tree::Time;
use format::{Digest, rfc3339};
use registry::{Content, Layout, NewArtifact, NewLayerIndex};

use super::Engine;
use super::open::OpenImage;
use super::profile::Profile;
use crate::daemon::protocol::Indexed;
use crate::exit::Hint;
use crate::trust::{Claim, SigningKey};

/// What `floe index` was asked for.
#[derive(Debug, Clone, Copy)]
pub struct Wanted<'a> {
    /// Store it beside the image.
    pub push: bool,
    /// Write it to this OCI layout.
    pub out: Option<&'a Path>,
    /// Sign it with this key.
    pub sign: Option<&'a Path>,
    /// Ship a profile: `recorded` or a file.
    pub profile: Option<&'a Path>,
}

pub(super) fn publish(engine: &Engine, image: &OpenImage, wanted: &Wanted<'_>) -> anyhow::Result<Indexed> {
    if let Some(found) = image.layers().iter().find(|found| !found.layer().is_of_tar()) {
        let what = match found.place.role {
            Some(_) => "is no tar, and its index is not one to send",
            None => "was read by its own table of contents, which is no index to send",
        };
        bail!("layer {} {what}", found.place.blob);
    }
    let mut layers = Vec::new();
    let mut bytes = 0;
    for found in image.layers() {
        let index = engine
            .store
            .index(found.id())?
            .context("an index that is in use is gone from the store")?
            .encode();
        bytes += index.len() as u64;
        let (layer, diff_id) = (found.place.blob, found.place.diff_id);
        layers.push(NewLayerIndex {
            layer,
            diff_id,
            index: found.id(),
            content: Content::bytes(index.into()),
        });
    }
    let signatures = wanted.sign.map(|key| sign(image, key)).transpose()?;
    let profile = wanted.profile.map(|path| profile(engine, image, path)).transpose()?;
    let artifact = NewArtifact {
        subject: image.manifest_descriptor().clone(),
        layers,
        profile: profile.map(Into::into),
        signatures: signatures.into_iter().map(Into::into).collect(),
        created: moment(std::time::SystemTime::now()),
    };
    let mut digest: Option<Digest> = None;
    if wanted.push {
        let source = image.source.as_deref().context(Hint::new(
            "storing the index beside the image",
            "the image was opened without network; try again when the registry can be reached",
        ))?;
        let pushed = engine.net.run(source.push_index_artifact(&artifact));
        digest = Some(pushed.with_context(|| format!("storing the index beside {}", image.reference()))?);
    }
    if let Some(dir) = wanted.out {
        let reference = format!("oci:{}", dir.display()).parse().context("naming the layout")?;
        let written = engine
            .net
            .run(Layout::create_dir(dir))
            .and_then(|_| engine.net.source(&reference))
            .and_then(|layout| engine.net.run(layout.push_index_artifact(&artifact)));
        digest = Some(written.with_context(|| format!("writing the index to {}", dir.display()))?);
    }
    Ok(Indexed { report: engine.report(image), artifact: digest, bytes })
}

/// A signature says that we know what the layers are, so they must have been proved here.
fn sign(image: &OpenImage, key: &Path) -> anyhow::Result<Vec<u8>> {
    let key = SigningKey::load(key)?;
    let mut signatures = Vec::new();
    for found in image.layers() {
        if !found.proved() {
            bail!(anyhow::anyhow!("layer {} has not been proved on this machine", found.place.blob).context(
                Hint::new(
                    "signing an index",
                    format!("floe pull {} fetches and proves it", image.reference())
                )
            ));
        }
        let claim = Claim { layer: found.place.blob, diff_id: found.place.diff_id, index: found.id() };
        signatures.push(key.sign(claim));
    }
    Ok(serde_json::to_vec(&signatures)?)
}

impl Engine {
    /// Returns what was recorded of starts of these images.
    pub(crate) fn profiles(&self, manifests: &[Digest]) -> anyhow::Result<Vec<Option<String>>> {
        let recorded = |manifest: &Digest| {
            self.recorded_profile(*manifest)
                .map(String::from_utf8)
                .transpose()
                .context("a recorded profile is no text")
        };
        manifests.iter().map(recorded).collect()
    }
}

fn profile(engine: &Engine, image: &OpenImage, path: &Path) -> anyhow::Result<Vec<u8>> {
    let bytes = if path == Path::new("recorded") {
        // Of a start of another image in its place only the files are known.
        let is_own = |bytes: &Vec<u8>| Profile::parse(bytes).is_ok_and(|profile| profile.has_layers());
        let recorded = engine.store.profile(image.manifest())?.filter(is_own);
        recorded.context(Hint::new(
            "looking for a recorded profile",
            "run the image once with --ready to record one",
        ))?
    } else {
        std::fs::read(path).with_context(|| format!("reading the profile {}", path.display()))?
    };
    Profile::parse(&bytes).context("reading the profile")?;
    Ok(bytes)
}

/// Returns a moment as OCI annotations write it: RFC 3339 in UTC.
pub(crate) fn moment(at: std::time::SystemTime) -> String {
    civil(at.duration_since(std::time::UNIX_EPOCH).unwrap_or_default().as_secs())
}

/// Returns a moment given in seconds since 1970; past the year 9999, the last one that can be written.
fn civil(seconds: u64) -> String {
    let secs = i64::try_from(seconds).unwrap_or(i64::MAX);
    rfc3339::write(Time { secs, nanos: 0 }).unwrap_or_else(|| "9999-12-31T23:59:59Z".into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_right_around_leap_days() {
        let table = [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (1_709_251_199, "2024-02-29T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
        ];
        for (seconds, text) in table {
            assert_eq!(civil(seconds), text);
        }
    }
}
