//! Layers of which a SOCI index beside the image says where their files are and where their streams can be entered.
//!
//! Version 2 of such an index is named by the image's manifest, so whoever names that by digest vouches for it, as for a table of
//! contents that a layer's descriptor names. Version 1 only refers to the image: anybody who may write to the
//! repository can add one, so it is believed where an unsigned index of ours would be. Both are claims: what they make is an
//! index of a table ([`format::index::Basis::Contents`]).
//!
//! Beside a zTOC there may be a list of what a start reads, which is taken for a profile until a start has been recorded, as landmarks are.
//!
//! Looked at last: who has an index of ours or a table needs none.

use std::panic::resume_unwind;
use std::thread::ScopedJoinHandle;
use std::time::Instant;

use anyhow::{Context, bail};
use bytes::Bytes;
use format::limits;
use format::soci::index::{Whose, layer as layer_of};
use format::soci::{ahead, assumes_short_header};
use registry::{About, Descriptor, Priority, SociIndex, Source};

use super::Engine;
use super::asker::Question;
use super::found::{FoundLayer, Place};
use super::layers::{NotSigned, SMALL_INDEX, segment_size};
use super::line::Line;
use super::open::Resolved;
use super::parallel::parallel;
use super::profile::Profile;
use super::report::IndexOrigin;
use super::tables::{TABLES, vouched};
use super::why_not::WhyNot;
use crate::trust::Verdict;

/// How a gzip header of ten bytes begins: no name, no extra field, no comment.
const SHORT: &[u8] = b"\x1f\x8b\x08\0";

/// What has come of a SOCI index beside layers.
#[derive(Default)]
pub(super) struct ReadSoci {
    /// Why not all that could be are.
    pub(super) why_not: WhyNot,
    /// What it says that a start reads.
    pub(super) profile: Option<Profile>,
}

impl Engine {
    /// Opens the layers that have no index by their zTOCs, where the image has a SOCI index.
    pub(super) fn read_soci(
        &self,
        source: &Source,
        resolved: &Resolved,
        about: &About,
        asked: &Question<'_>,
        line: &Line,
        layers: &mut [Option<FoundLayer>],
    ) -> anyhow::Result<ReadSoci> {
        let places = &resolved.layers;
        let could = |n: &usize| {
            layers[*n].is_none() && places[*n].role.is_none() && places[*n].media_type.ends_with("gzip")
        };
        let candidates: Vec<usize> = (0..layers.len()).filter(could).collect();
        if candidates.is_empty() {
            return Ok(ReadSoci::default());
        }
        let indexes = match self.soci_indexes(source, resolved, about, asked) {
            Ok(indexes) => indexes,
            Err(error) => {
                tracing::warn!(manifest = %resolved.manifest, "a SOCI index is not used: {error:#}");
                let mut why_not = WhyNot::default();
                candidates.iter().for_each(|n| why_not.note(*n, &error));
                return Ok(ReadSoci { why_not, profile: None });
            }
        };
        let (mut why_not, mut ahead) = (WhyNot::default(), Vec::new());
        for found in &indexes {
            let listed = |n: &usize| Some((*n, found.of(&places[*n].blob)?));
            let missing = candidates.iter().filter(|n| layers[**n].is_none());
            let missing: Vec<_> = missing.filter_map(listed).collect();
            let read = parallel(&missing, TABLES, |(n, table)| {
                let list = found.ahead_of(&places[*n].blob);
                Ok(self.read_ztoc(source, &places[*n], table, list, line))
            })?;
            let opened = missing.into_iter().zip(read).map(|((n, _), read)| {
                let layer = read.map(|(layer, segments)| {
                    ahead.extend(segments.into_iter().map(|segment| (layer.id(), segment)));
                    layer
                });
                (n, layer)
            });
            why_not.then(Self::take_opened("a zTOC", places, opened, layers));
        }
        let ids = || layers.iter().flatten().map(FoundLayer::id).collect();
        let profile = (!ahead.is_empty()).then(|| Profile::new(ids(), &ahead));
        Ok(ReadSoci { why_not, profile })
    }

    /// Returns the SOCI indexes of an image that are believed for whoever asks. What nobody will believe is not asked for.
    fn soci_indexes(
        &self,
        source: &Source,
        resolved: &Resolved,
        about: &About,
        asked: &Question<'_>,
    ) -> anyhow::Result<Vec<SociIndex>> {
        let verdict = self.rule.judge_unsigned(asked.asked);
        let named = SociIndex::named_by(&resolved.manifest_bytes);
        if let Some(named) = &named {
            match verdict {
                _ if verdict.accepted() || vouched(verdict, asked) => {}
                Verdict::UnsignedForDigest => bail!(NotSigned::Shared),
                _ => bail!(NotSigned::UnderPolicy),
            }
            let found = self.net.run(source.soci_named(named));
            match found.context("fetching the SOCI index that the image names") {
                Ok(found) => return Ok(vec![found]),
                Err(error) if !verdict.accepted() => return Err(error),
                Err(error) => tracing::warn!(manifest = %resolved.manifest, "{error:#}"),
            }
        }
        if !verdict.accepted() {
            return Ok(Vec::new());
        }
        let found = self.net.run(source.soci_about(about));
        found.context("fetching the SOCI indexes that refer to the image")
    }

    /// Opens a layer by its zTOC; returns with it the segments that are to be fetched first.
    fn read_ztoc(
        &self,
        source: &Source,
        place: &Place,
        table: &Descriptor,
        list: Option<&Descriptor>,
        line: &Line,
    ) -> anyhow::Result<(FoundLayer, Vec<u32>)> {
        let begun = Instant::now();
        let limit = limits::CONTENTS.min(SMALL_INDEX + place.size); // the layer itself would be here sooner
        let (ztoc, list) = std::thread::scope(|scope| {
            let list = list.map(|list| scope.spawn(|| self.net.blob(source, list, limits::MANIFEST)));
            let ztoc = self.net.blob(source, table, limit);
            if let Ok(ztoc) = &ztoc {
                line.seen(ztoc.len() as u64, begun.elapsed());
            }
            let join =
                |list: ScopedJoinHandle<'_, _>| list.join().unwrap_or_else(|panic| resume_unwind(panic));
            (ztoc, list.map(join))
        });
        let ztoc = ztoc.context("fetching the zTOC")?;
        if assumes_short_header(&ztoc)? {
            let head = self.net.part(source, &place.blob, place.size, 0..4.min(place.size), Priority::Demand);
            if head.context("looking at the layer's header")? != SHORT {
                bail!("the zTOC takes a header of ten bytes for granted, which the layer has not");
            }
        }
        let whose = Whose {
            blob: place.blob,
            size: place.size,
            diff_id: place.diff_id,
            table: table.digest,
            segment: segment_size(place.size),
        };
        let made = layer_of(&ztoc, &whose).context("reading a layer by its zTOC")?;
        tracing::info!(layer = %place.blob, index = %made.id(), "index from the layer's zTOC");
        let found = self.take_made(place, made, IndexOrigin::Soci, ztoc.len() as u64)?;
        let read =
            |list: Result<Bytes, registry::Error>| anyhow::Ok(ahead::segments(&list?, &ztoc, found.layer())?);
        let segments = list.map(read).transpose().unwrap_or_else(|error| {
            tracing::warn!(layer = %place.blob, "what a SOCI index says to fetch first is not used: {error:#}");
            None
        });
        Ok((found, segments.unwrap_or_default()))
    }
}
