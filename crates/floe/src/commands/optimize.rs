//! `floe optimize`: a conversion in which the files come first that a start was seen to read.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use ::convert::recode::First;
use anyhow::{Context, bail};
use format::{DiffId, Digest, limits};
use registry::{Conversion, FileOrder, Format, Original, Reference, Source};

use super::run::eprint;
use super::{Session, convert};
use crate::cli;
use crate::daemon::protocol::Call;
use crate::engine::parse;
use crate::engine::profile::{Profile, ReadFile};
use crate::exit::{Code, Hint, misused};
use crate::origin::Net;

/// How to have a profile.
const RECORD: &str =
    "floe run --ready … IMAGE records one; floe index --push --profile IMAGE ships it for other machines";

/// Which files come first, by layer.
#[derive(Debug, Default)]
pub(super) struct Orders {
    /// Of layers that a profile knows: files of theirs, and nothing where none was read.
    known: HashMap<DiffId, First>,
    /// Of all others: another version, or format, of the image that a profile is of may have the same paths.
    others: First,
}

impl Orders {
    /// Returns what these profiles make.
    fn of(profiles: &[Profile]) -> Self {
        let mut known: HashMap<DiffId, Vec<&[u8]>> = HashMap::new();
        let mut others = Vec::new();
        for profile in profiles {
            for layer in profile.diff_ids() {
                known.entry(*layer).or_default();
            }
            for file in profile.files().iter().filter(|file| comes_first(file)) {
                let path = file.path.as_bytes();
                known.entry(profile.diff_ids()[usize::from(file.layer)]).or_default().push(path);
                others.push(path);
            }
        }
        let known = known.into_iter().map(|(layer, paths)| (layer, First::new(paths))).collect();
        Self { known, others: First::new(others) }
    }

    /// Says that nothing comes first anywhere.
    fn is_empty(&self) -> bool {
        self.others.is_empty()
    }

    /// Returns the files that come first in a layer.
    pub(super) fn files(&self, layer: &DiffId) -> Option<&First> {
        Some(self.known.get(layer).unwrap_or(&self.others)).filter(|first| !first.is_empty())
    }
}

/// Most bytes of a file that are fetched although a start does not read them. `node` reads 28 of 47 MB of `libnode`: the rest takes 100
/// Mbit/s half a second, which more requests do not; of 4.7 MB of `libcrypto` 1.2 are not read.
const UNREAD: u64 = 2 << 20;

/// Says whether a file is worth fetching whole: others are fetched as they are read. Of `libicudata` (31 MB) `node` reads a
/// fiftieth.
fn comes_first(file: &ReadFile) -> bool {
    file.read.saturating_mul(2) >= file.size && file.size.saturating_sub(file.read) <= UNREAD
}

/// Why file systems are not ordered.
const WHOLE: &str = "a layer that is a file system is fetched whole, whatever comes first in it";

pub(super) fn optimize(session: &Session, args: &cli::Optimize) -> anyhow::Result<Code> {
    let (from, to) = (parse(&args.made.from)?, parse(&args.made.to)?);
    if args.format == Some(cli::LayerFormat::Erofs) {
        return Err(misused(format!("--format: {WHOLE}")));
    }
    Conversion::check(&to, args.made.verify)?;
    let given = args.profile.as_deref().map(given).transpose()?;
    let net = Net::new(&session.config, None)?;
    let original = convert::looked_at(&net, &from)?;
    let profiles = match given {
        Some(profile) => vec![profile],
        None => recorded(session, &net, &from, &original)?,
    };
    let orders = Orders::of(&profiles);
    if orders.is_empty() {
        let why = match profiles.iter().all(|profile| profile.files().is_empty()) {
            true => "names no files: an earlier version recorded it, or an ordinary user's start",
            false => "names no file most of which was read",
        };
        let what = format!("the profile of {from} {why}");
        bail!(anyhow::Error::msg(what).context(Hint::new("ordering files", RECORD)));
    }
    let format = match args.format {
        Some(format) => format,
        None => kept(&from, original.format()?)?,
    };
    let recoder = convert::recoder(format, args.made.level, Arc::new(orders))?;
    let conversion = convert::conversion(&args.made, format, FileOrder::ByRecoder);
    convert::made(session, &net, &original, (&args.made, &to), conversion, recoder)
}

/// Returns the format that an image has, for one that is to keep it.
fn kept(from: &Reference, format: Format) -> anyhow::Result<cli::LayerFormat> {
    Ok(match format {
        Format::Erofs => bail!(
            "optimizing {from}: {WHOLE}; floe convert makes other layers of it, and these can be ordered"
        ),
        Format::EStargz => cli::LayerFormat::Estargz,
        Format::ZstdChunked => cli::LayerFormat::Zstdchunked,
        Format::Oci => cli::LayerFormat::Oci,
        Format::Nydus => cli::LayerFormat::Nydus,
    })
}

fn given(file: &Path) -> anyhow::Result<Profile> {
    let what = || format!("reading the profile {}", file.display());
    let bytes = std::fs::read(file).with_context(what)?;
    Profile::parse(&bytes).with_context(what)
}

/// Returns the profiles of images: those in the store, else those in the registry. One that is damaged is told, and left aside.
fn recorded(
    session: &Session,
    net: &Net,
    from: &Reference,
    original: &Original,
) -> anyhow::Result<Vec<Profile>> {
    let manifests: Vec<Digest> = original.images().map(|image| image.digest).collect();
    let here: anyhow::Result<Vec<Option<String>>> =
        session.ask(Call::Profiles { manifests: manifests.clone() });
    // Where the store cannot be asked the registry may have one.
    let here = here.context("asking the store for profiles").unwrap_or_else(|error| left_aside(&error));
    let mut here = here.into_iter();
    let mut found = Vec::new();
    for manifest in manifests {
        let recorded = here.next().flatten().and_then(|text| {
            let parsed = Profile::parse(text.as_bytes()).context("reading the recorded profile");
            parsed.map(Some).unwrap_or_else(|error| left_aside(&error))
        });
        found.extend(match recorded {
            Some(profile) => Some(profile),
            None => shipped(net, original.source(), &manifest).unwrap_or_else(|error| left_aside(&error)),
        });
    }
    if found.is_empty() {
        let none = anyhow::anyhow!("neither this store nor the registry has a profile of {from}");
        bail!(none.context(Hint::new("looking for what a start reads", RECORD)));
    }
    Ok(found)
}

/// Says why there is nothing, and returns that.
fn left_aside<T: Default>(error: &anyhow::Error) -> T {
    eprint(&format!("floe: {error:#}\n"));
    T::default()
}

/// Returns the profile that is shipped with an image, if there is one that can be read.
fn shipped(net: &Net, source: &Source, manifest: &Digest) -> anyhow::Result<Option<Profile>> {
    let what = || format!("looking for a profile of {source}");
    let artifacts = net.run(source.index_artifacts(manifest)).with_context(what)?;
    let Some(descriptor) = artifacts.iter().find_map(|artifact| artifact.profile.as_ref()) else {
        return Ok(None);
    };
    let bytes = net.blob(source, descriptor, limits::MANIFEST).with_context(what)?;
    Ok(Some(Profile::parse(&bytes).with_context(what)?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_that_are_known_get_their_own_files_and_all_others_every_path() {
        let layer = |name: &str| DiffId::new(Digest::of(name.as_bytes()));
        let file = |layer, path: &str, read| ReadFile { layer, path: path.into(), size: 10, read };
        let files = vec![file(1, "b", 5), file(0, "a", 10), file(0, "mostly not", 4), file(1, "c", 10)];
        let profile = Profile::new(Vec::new(), &[])
            .of(vec![layer("one"), layer("two"), layer("three")])
            .with_files(files);
        let orders = Orders::of(&[profile]);
        let first = |paths: &str| First::new(paths.split_whitespace().map(str::as_bytes));
        assert_eq!(orders.files(&layer("one")), Some(&first("a")));
        assert_eq!(orders.files(&layer("two")), Some(&first("b c")));
        assert_eq!(orders.files(&layer("three")), None, "nothing of it was read");
        assert_eq!(orders.files(&layer("unknown")), Some(&first("b a c")));
        let large = |read| ReadFile { layer: 0, path: "large".into(), size: 40 << 20, read };
        assert_eq!([37 << 20, 38 << 20].map(|read| comes_first(&large(read))), [false, true]);
        assert_eq!(Orders::default().files(&layer("one")), None, "no order");
    }
}
