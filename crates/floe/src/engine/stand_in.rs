//! An image of Nydus in place of the ordinary one that it refers to.
//!
//! Its makers leave the original as it is and push beside it an image whose `subject` is the original's manifest
//! (`nydusify convert --with-referrer`). That it shows the same files nobody can know before all of both is here; and anybody who may
//! write to the repository can add one. So it is taken by a bare tag under no policy, for whoever could add it could have moved
//! the tag, and only by those who start an image or look at it: a digest, a policy, a pull, a comparison, and whoever shares
//! layers have the original, on a trusted host as well: its word is good for indexes, each of which is proved once its
//! layer is complete. Of the original the config stays, so what runs is what the name says.
//!
//! Whether its blobs can be had is asked at each opening, as what the name means is: a registry that collects garbage may know of
//! tags alone. One that is gone counts as bytes that came wrong do: the original is shown. Nothing of that is remembered.
//!
//! Looked at after all else, where most of the original would have to be streamed. It is an image of its own: none of its layers is
//! ever taken for one of the original's. The name remembers both ([`store::ImageRef::original`]).

use std::time::Duration;

use anyhow::{Context, bail, ensure};
use format::limits;
use registry::Reference;
use store::Blob;

use super::asker::Asker;
use super::doubt::WRONG;
use super::found::{FoundLayer, Place};
use super::layers::KnownLayers;
use super::open::{Purpose, Resolved};
use super::report::IndexOrigin;
use super::role::Role;
use super::{Engine, ref_name};

/// A bootstrap of an image that stands in for another, with the tar around it, in bytes: 300,000 files. Nobody asked for this
/// image, and the other can be streamed.
pub(super) const LONGEST_TREE: u64 = 64 << 20;

/// A tree that is always short enough, in bytes: it is here about as soon as an answer without one.
const SHORT_TREE: u64 = 64 << 10;

/// How long manifests and configs are waited for of what refers to an image: meanwhile nothing of that is fetched.
const ASKING: Duration = Duration::from_secs(10);

/// How long those are waited for who should have the blobs: who does not answer may be right again when they are read.
const SEEKING: Duration = Duration::from_secs(5);

/// What is known of a layer before anything is streamed: its length, what it is, and where its index is from.
type Seen = (u64, Option<Role>, Option<IndexOrigin>);

/// Returns how long a tree may be that is fetched for want of indexes: an eighth of what would be streamed. None is of an
/// image of which half is here, or anything is lazy, or that is one of Nydus itself.
fn longest_tree(layers: &[Seen]) -> Option<u64> {
    let sum = |sizes: &mut dyn Iterator<Item = u64>| sizes.fold(0, u64::saturating_add);
    let all = sum(&mut layers.iter().map(|(size, ..)| *size));
    let lacks = sum(&mut layers.iter().filter(|(.., from)| from.is_none()).map(|(size, ..)| *size));
    let is_lazy = layers.iter().any(|(.., from)| from.is_some_and(|from| from != IndexOrigin::Local));
    let is_nydus = layers.iter().any(|(_, role, _)| role.is_some_and(Role::is_nydus));
    (lacks > all / 2 && !is_lazy && !is_nydus).then(|| SHORT_TREE.max(lacks / 8))
}

impl Engine {
    /// Says whether an image may be shown in place of the one that a reference means.
    pub(super) fn may_stand_in(&self, reference: &Reference, purpose: Purpose) -> bool {
        purpose.takes_others() && self.rule.is_bare(Asker::of(reference, purpose).question().asked)
    }

    /// Opens what was shown in place of an image before, and puts it there, if all its indexes are to be had.
    pub(super) fn remembered(
        &self,
        reference: &Reference,
        resolved: &mut Resolved,
        purpose: Purpose,
    ) -> Option<KnownLayers> {
        let known = self.store.refs().get(&ref_name(&reference.to_string()).ok()?).ok()??;
        if known.original != Some(resolved.manifest) || !self.may_stand_in(reference, purpose) {
            return None;
        }
        let other = Resolved::local(&known, resolved.source.clone());
        let taken = self.take(reference, resolved.shows(other), purpose);
        let taken = taken.inspect_err(|error| tracing::warn!(%reference, "what stood in for it: {error:#}"));
        let (other, layers) = taken.ok()?;
        *resolved = other;
        Some(layers)
    }

    /// Opens an image of Nydus that refers to an image of which most would be streamed, and puts it in its place.
    pub(super) fn stand_in(
        &self,
        reference: &Reference,
        resolved: &mut Resolved,
        purpose: Purpose,
        known: &mut KnownLayers,
    ) {
        let (Some(source), Some(about)) = (resolved.source.clone(), known.about.take()) else { return };
        let found = known.layers.iter().map(|layer| layer.as_ref().map(|found| found.origin));
        let seen = |(place, from): (&Place, _)| (place.size, place.role, from);
        let seen: Vec<Seen> = resolved.layers.iter().zip(found).map(seen).collect();
        let Some(longest) = longest_tree(&seen).filter(|_| self.may_stand_in(reference, purpose)) else {
            return;
        };
        let missing: Vec<usize> = (0..known.layers.len()).filter(|n| known.layers[*n].is_none()).collect();
        let mut not_used = |error: anyhow::Error| {
            tracing::warn!(manifest = %resolved.manifest, "{error:#}");
            missing.iter().for_each(|n| known.why_not.note(*n, &error));
        };
        let asked = self.net.run(async { tokio::time::timeout(ASKING, source.nydus_about(&about)).await });
        let images = asked.map_err(anyhow::Error::new).and_then(|images| Ok(images?));
        let images = match images.context("an image of Nydus that refers to it") {
            Ok(images) => images,
            Err(error) => return not_used(error),
        };
        for image in images {
            let what = format!("image {} of Nydus, which refers to it, is not used", image.manifest.digest);
            let other = resolved.shows(Resolved::remote(image, None, source.clone()));
            if let Err(error) = is_worth_it(&other.layers, longest).context(what.clone()) {
                not_used(error);
                continue;
            }
            match self.take(reference, other, purpose).context(what) {
                Ok((other, layers)) => {
                    tracing::info!(original = %resolved.manifest, manifest = %other.manifest, "an image of Nydus is shown");
                    (*resolved, *known) = (other, layers);
                }
                Err(error) => not_used(error),
            }
            return; // one tree is fetched, and no other if that is none
        }
    }

    /// Opens an image of Nydus.
    fn take(
        &self,
        reference: &Reference,
        mut other: Resolved,
        purpose: Purpose,
    ) -> anyhow::Result<(Resolved, KnownLayers)> {
        let known = self.known_layers(reference, &mut other, purpose)?;
        if known.layers.iter().any(Option::is_none) {
            bail!(known.why_not());
        }
        // A layer of Nydus is never doubted, for it cannot be read in another way; here there is one.
        let is_wrong = |found: &FoundLayer| found.hold.files().doubted().is_some();
        if known.layers.iter().flatten().any(is_wrong) {
            bail!(WRONG);
        }
        match self.lost(known.layers.iter().flatten()) {
            Some(refusal) => Err(anyhow::Error::new(refusal).context("a blob cannot be had")),
            None => Ok((other, known)),
        }
    }

    /// Returns why a blob cannot be had of layers that are not complete, if it is refused for good.
    pub(super) fn lost<'a>(
        &self,
        layers: impl IntoIterator<Item = &'a FoundLayer>,
    ) -> Option<registry::Error> {
        let lacking = layers.into_iter().filter(|found| found.hold.files().missing() > 0);
        let tables = lacking.filter_map(|found| found.layer().source().contents.as_ref());
        let blobs = tables.flat_map(|contents| &contents.blobs).take(limits::BLOBS.into());
        self.net.refused(blobs.map(|blob| Blob { digest: blob.digest, size: blob.size }), SEEKING)
    }
}

/// Says why an image is not worth fetching its tree, if so.
fn is_worth_it(layers: &[Place], longest: u64) -> anyhow::Result<()> {
    let are_nydus = layers.iter().all(|place| place.role.is_some_and(Role::is_nydus));
    ensure!(are_nydus, "not all of its layers are Nydus's");
    let fits = layers.last().is_none_or(|tree| tree.size <= longest);
    ensure!(fits, "its tree is longer than an eighth of what is missing of the original");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_image_is_sought_where_most_would_be_streamed() {
        const MIB: u64 = 1 << 20;
        let (none, local) = (None, Some(IndexOrigin::Local));
        let lazy = [IndexOrigin::Registry, IndexOrigin::Contents, IndexOrigin::Soci, IndexOrigin::Streamed];
        let of = |missing, here, from| longest_tree(&[(missing, None, None), (here, None, from)]);
        // Of 16 MiB: less than half, half, and a byte more.
        let cases = [8 * MIB - 1, 8 * MIB, 8 * MIB + 1, 8 * MIB + 8];
        let found = cases.map(|missing| of(missing, 16 * MIB - missing, local));
        assert_eq!(found, [None, None, Some(MIB), Some(MIB + 1)]);
        assert_eq!(of(0, 16 * MIB, local), None);
        assert_eq!(of(8 * MIB, 8 * MIB, none), Some(2 * MIB));
        assert_eq!(of(MIB, 0, none), Some(MIB / 8));
        // One that is lazy in part.
        assert_eq!(lazy.map(|from| of(16 * MIB, 1, Some(from))), [None; 4]);
        // An eighth of little is not worth being counted; and nothing is missing of nothing.
        let short = [8 * SHORT_TREE - 8, 8 * SHORT_TREE + 7, 8 * SHORT_TREE + 8];
        let found = short.map(|missing| of(missing, 0, local));
        assert_eq!(found, [Some(SHORT_TREE), Some(SHORT_TREE), Some(SHORT_TREE + 1)]);
        assert_eq!(longest_tree(&[]), None);
        // What a manifest says of lengths adds up to more than a number holds.
        assert_eq!(of(u64::MAX, u64::MAX, none), Some(u64::MAX / 8));
        for (role, sought) in [(Role::Blob, None), (Role::Bootstrap, None), (Role::Erofs, Some(MIB))] {
            assert_eq!(longest_tree(&[(8 * MIB, None, None), (0, Some(role), None)]), sought);
        }
    }
}
