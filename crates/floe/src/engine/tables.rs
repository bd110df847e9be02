//! Layers that carry a table of contents of their own, and are lazy by it: eStargz, zstd:chunked.
//!
//! The descriptor of such a layer names the digest of the table, so whoever names a manifest by digest vouches for the
//! table, too. It is a claim all the same: that the table tells what the layer's tar holds nobody knows before the layer has
//! been streamed. So it makes an index of its own ([`format::index::Basis::Contents`]) that is never taken for the layer's,
//! never sent, and not used where layers are to be proved or are shared with images that nobody here is asked about.
//!
//! A layer of eStargz may end by saying that its table is in an image of its own. Then that is asked for, once for all layers,
//! by the tag that it must have; the digest that vouches for the table is the same, so nothing of that image is believed.

use std::io::Read;
use std::sync::OnceLock;

use anyhow::{Context, bail};
use format::index::Codec;
use format::layer::Layer;
use format::stargz::index::Whose;
use format::stargz::table::Place as Where;
use format::stargz::{TABLES_TAG, TableError};
use format::{Digest, IndexId, limits};
use registry::{Descriptor, Error, Source};

use super::Engine;
use super::asker::Question;
use super::found::{FoundLayer, Place};
use super::layers::{NotSigned, segment_size};
use super::line::Line;
use super::parallel::parallel;
use super::part::Part;
use super::pipe::Pipe;
use super::profile::Profile;
use super::report::IndexOrigin;
use super::why_not::WhyNot;
use crate::trust::Verdict;

/// What the image has that holds tables, asked for once.
type Elsewhere = OnceLock<Result<Option<Vec<(Digest, Descriptor)>>, Error>>;

/// Tables read at once: of each 64 MiB may be in memory, packed, and as much for its decoder.
pub(super) const TABLES: usize = 2;

const FETCHING: &str = "fetching the table of contents";

impl Engine {
    /// Opens the layers that have no index by their tables, where they have one; returns why not, for the first that
    /// could not be.
    pub(super) fn read_tables(
        &self,
        source: &Source,
        places: &[Place],
        asked: &Question<'_>,
        line: &Line,
        layers: &mut [Option<FoundLayer>],
    ) -> anyhow::Result<WhyNot> {
        let lacks = |n: &usize| layers[*n].is_none() && places[*n].table.is_some();
        let missing: Vec<usize> = (0..layers.len()).filter(lacks).collect();
        let elsewhere = Elsewhere::default();
        let read = |n: &usize| Ok(self.read_table(source, &places[*n], asked, line, &elsewhere));
        let read = parallel(&missing, TABLES, read)?;
        Ok(Self::take_opened("a table of contents", places, missing.into_iter().zip(read), layers))
    }

    fn read_table(
        &self,
        source: &Source,
        place: &Place,
        asked: &Question<'_>,
        line: &Line,
        elsewhere: &Elsewhere,
    ) -> anyhow::Result<FoundLayer> {
        let table = place.table.as_ref().context("the layer announces no table of contents")?;
        // What nobody will believe is not worth a byte.
        match self.rule.judge_unsigned(asked.asked) {
            verdict if verdict.accepted() || vouched(verdict, asked) => {}
            Verdict::UnsignedForDigest => return Err(NotSigned::Shared.into()),
            _ => return Err(NotSigned::UnderPolicy.into()),
        }
        let first = table.first(place.size)?;
        let whose = |end| Whose {
            blob: place.blob,
            size: place.size,
            codec: match table.place {
                Where::Footer => Codec::Gzip,
                Where::At { .. } => Codec::Zstd,
            },
            diff_id: place.diff_id,
            table: table.digest,
            end,
            ahead: table.ahead,
            segment: segment_size(place.size),
        };
        let part = Part { source, place, line };
        if matches!(table.place, Where::At { .. }) {
            let (end, size) = (first.start, first.end - first.start);
            let made =
                self.read_part(part, first, |packed| table.layer(packed, &whose(end))).context(FETCHING)?;
            return self.take_table(place, made, size);
        }
        let mut tail = Vec::new();
        self.read_part(part, first.clone(), |mut packed| packed.read_to_end(&mut tail))
            .context(FETCHING)??;
        if let Some(end) = table.elsewhere(&tail, place.size) {
            let packed = self.table_elsewhere(source, &place.blob, elsewhere)?;
            return self.take_table(place, table.layer(&packed[..], &whose(end)), packed.len() as u64);
        }
        let whole = table.whole(&tail, place.size)?;
        let begin = whole.start.max(first.start);
        let behind = &tail[within(begin - first.start)..within(whole.end - first.start)];
        let layer = |packed: Pipe| table.layer(packed.chain(behind), &whose(whole.start));
        let made = self.read_part(part, whole.start..begin, layer).context(FETCHING)?;
        self.take_table(place, made, whole.end - whole.start)
    }

    fn take_table(
        &self,
        place: &Place,
        made: Result<Layer, TableError>,
        size: u64,
    ) -> anyhow::Result<FoundLayer> {
        let made = made.context("reading a layer by its table of contents")?;
        tracing::info!(layer = %place.blob, index = %made.id(), "index from the layer's table of contents");
        self.take_made(place, made, IndexOrigin::Contents, size)
    }

    /// Returns a layer's table of contents out of the image that has the tables of all.
    fn table_elsewhere(
        &self,
        source: &Source,
        layer: &Digest,
        elsewhere: &Elsewhere,
    ) -> anyhow::Result<Vec<u8>> {
        let tag = source.tables_tag();
        let name = tag.as_ref().map_or_else(|| format!("TAG{TABLES_TAG}"), ToString::to_string);
        let begin = || format!("the layer's table of contents is in an image of its own, {name}");
        let tables = elsewhere.get_or_init(|| self.net.run(source.tables()));
        let tables = tables.as_ref().map_err(Clone::clone).with_context(begin)?;
        let Some(tables) = tables else {
            bail!(
                "{}, {}",
                begin(),
                if tag.is_some() { "which is not there" } else { "and the image has no tag" }
            )
        };
        let table = tables.iter().find(|(of, _)| of == layer).map(|(_, table)| table);
        let table = table.with_context(|| format!("{}, which has none for it", begin()))?;
        Ok(self.net.blob(source, table, limits::CONTENTS).with_context(begin)?.into())
    }
}

/// Says whether a table is as good as the reference: a digest covers the manifest, and the manifest names the table.
pub(super) fn vouched(verdict: Verdict, asked: &Question<'_>) -> bool {
    verdict == Verdict::UnsignedForDigest && !asked.shared
}

/// Returns what those who made the layers say that a start reads, if they say anything.
pub(super) fn landmarks(layers: &[FoundLayer]) -> Option<Profile> {
    let ids: Vec<IndexId> = layers.iter().map(FoundLayer::id).collect();
    let ahead =
        |layer: &FoundLayer| layer.layer().source().contents.as_ref().map_or(0, |contents| contents.ahead);
    let reads: Vec<(IndexId, u32)> =
        layers.iter().flat_map(|layer| (0..ahead(layer)).map(|segment| (layer.id(), segment))).collect();
    (!reads.is_empty()).then(|| Profile::new(ids, &reads))
}

/// Says whether an index that was made of a table is of the one that is announced today.
pub(super) fn is_of(made_of: &Digest, place: &Place) -> bool {
    place.table.as_ref().is_none_or(|table| table.digest == *made_of)
}

/// Offsets in what has been fetched: at most [`format::limits::CONTENTS`].
fn within(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}
