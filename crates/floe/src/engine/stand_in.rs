//! An image of Nydus in place of the ordinary one that it refers to.
//!
//! Its makers leave the original as it is and push beside it an image whose `subject` is the original's manifest
//! (`nydusify convert --with-referrer`). That it shows the same files nobody can know before all of both is here; and anybody who may
//! write to the repository can add one. So it is taken where an unsigned index of ours would be, by a bare tag under no policy
//! or where the host is trusted, and only by those who start an image or look at it: a pull, a comparison, and whoever
//! shares layers have the original. Of that the config stays, so what runs is what the name says.
//!
//! Looked at after all else, where most of the original would have to be streamed. It is an image of its own: none of its layers is
//! ever taken for one of the original's. The name remembers both ([`store::ImageRef::original`]).

use anyhow::{Context, bail};
use registry::Reference;

use super::asker::Asker;
use super::doubt::WRONG;
use super::found::FoundLayer;
use super::layers::KnownLayers;
use super::open::{Purpose, Resolved};
use super::report::IndexOrigin;
use super::role::Role;
use super::{Engine, ref_name};

impl Engine {
    /// Says whether an image may be shown in place of the one that a reference means.
    pub(super) fn may_stand_in(&self, reference: &Reference, purpose: Purpose) -> bool {
        let asker = Asker::of(reference, purpose);
        let asked = asker.question();
        purpose.takes_others() && !asked.shared && self.rule.judge_unsigned(asked.asked).accepted()
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
        let taken = self.take(reference, resolved.shows(other), u64::MAX, purpose);
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
        let missing: Vec<usize> = (0..known.layers.len()).filter(|n| known.layers[*n].is_none()).collect();
        let lacks = missing.iter().map(|n| resolved.layers[*n].size).fold(0, u64::saturating_add);
        let all = resolved.layers.iter().map(|place| place.size).fold(0, u64::saturating_add);
        let is_lazy = known.layers.iter().flatten().any(|found| found.origin != IndexOrigin::Local);
        let is_nydus = resolved.layers.iter().any(|place| place.role.is_some_and(Role::is_nydus));
        if lacks <= all / 2 || is_lazy || is_nydus || !self.may_stand_in(reference, purpose) {
            return;
        }
        let mut not_used = |error: anyhow::Error| {
            tracing::warn!(manifest = %resolved.manifest, "{error:#}");
            missing.iter().for_each(|n| known.why_not.note(*n, &error));
        };
        let images = match self.net.run(source.nydus_about(&about)) {
            Ok(images) => images,
            Err(error) => {
                return not_used(anyhow::Error::new(error).context("an image of Nydus that refers to it"));
            }
        };
        for image in images {
            let what = format!("image {} of Nydus, which refers to it, is not used", image.manifest.digest);
            let other = resolved.shows(Resolved::remote(image, None, source.clone()));
            match self.take(reference, other, lacks, purpose).context(what) {
                Ok((other, layers)) => {
                    tracing::info!(original = %resolved.manifest, manifest = %other.manifest, "an image of Nydus is shown");
                    (*resolved, *known) = (other, layers);
                    return;
                }
                Err(error) => not_used(error),
            }
        }
    }

    /// Opens an image of Nydus whose tree is no longer than what would be streamed for want of it.
    fn take(
        &self,
        reference: &Reference,
        mut other: Resolved,
        longest: u64,
        purpose: Purpose,
    ) -> anyhow::Result<(Resolved, KnownLayers)> {
        if !other.layers.iter().all(|place| place.role.is_some_and(Role::is_nydus)) {
            bail!("not all of its layers are Nydus's");
        }
        if other.layers.last().is_some_and(|tree| tree.size > longest) {
            bail!("its tree is longer than all that is missing of the original");
        }
        let known = self.known_layers(reference, &mut other, purpose)?;
        if known.layers.iter().any(Option::is_none) {
            bail!(known.why_not());
        }
        // A layer of Nydus is never doubted, for it cannot be read in another way; here there is one.
        let is_wrong = |found: &FoundLayer| found.hold.files().doubted().is_some();
        if known.layers.iter().flatten().any(is_wrong) {
            bail!(WRONG);
        }
        Ok((other, known))
    }
}
