//! The images of a source, which of their layers are to be written anew, and what images come out of it.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use format::stargz::table::{Announced, ELSEWHERE_FOOTER};
use format::{Digest, limits as sizes};

use super::formats::{self, EROFS_FEATURE, Format};
use super::layers::Made;
use super::rewrite::{self, Child, Top};
use super::{Conversion, ConvertedLayer, FileOrder, How, Originals, Recode, Tops, stream};
use crate::copy::Watch;
use crate::copy::plan::Plan;
use crate::error::Error;
use crate::limits;
use crate::manifest::{Descriptor, Image, LayerBlob, Manifest, is_manifest, media_type};
use crate::soci::SociIndex;
use crate::source::Source;

/// The images of a source.
#[derive(Default)]
pub(super) struct Images {
    /// Those that have a layer to be written anew.
    images: HashMap<Digest, Image>,
    /// Layers to be written anew, each once.
    wanted: Vec<LayerBlob>,
    /// The layers of those of which one is made, by the digest of the last, which stands for them among the wanted.
    together: HashMap<Digest, Vec<LayerBlob>>,
    /// All layers, each once, in the order of manifests, and why one stays.
    layers: Vec<(Digest, u64, Option<String>)>,
}

/// What comes out.
pub(super) struct Outcome {
    /// Children first.
    pub(super) manifests: Vec<Manifest>,
    /// Configs that were not there before.
    pub(super) configs: Vec<Bytes>,
    pub(super) root: Digest,
}

impl Images {
    /// Looks at the images of a source.
    pub(super) async fn of(
        source: &Source,
        plan: &Plan,
        conversion: Conversion,
        recode: &Arc<dyn Recode>,
        watch: &dyn Watch,
    ) -> Result<Self, Error> {
        let Conversion { format, order, .. } = conversion;
        let keeps = |layer: &Descriptor| format.keeps(layer, order);
        let mut found = Self::default();
        let is_layer = |layer: &Descriptor| formats::is_tar(layer) || formats::is_erofs(layer);
        let is_estargz =
            |layer: &Descriptor| format == Format::EStargz && format.has(layer) && layer.urls.is_empty();
        let mut footers = HashMap::new();
        let (spare, mut held, mut seen) = (spares(plan), 0, HashSet::new());
        let back = format == Format::Oci && are_all_nydus(source, plan)?;
        if back && order == FileOrder::ByRecoder {
            return Err(Error::Unsupported {
                what: source.to_string(),
                why: "ordinary layers are made of Nydus's in the order of their trees; convert it, and order what comes out".into(),
            });
        }
        for manifest in plan.manifests.iter().filter(|one| !one.is_index() && !spare.contains(&one.digest)) {
            let what = format!("manifest {} of {source}", manifest.digest);
            let mut parsed = manifest.image(&what)?;
            // BuildKit's attestations look like images, with statements for layers.
            if !rewrite::is_image(&parsed) || !parsed.layers.iter().any(is_layer) {
                continue;
            }
            let is_nydus = formats::are_nydus(&parsed.layers);
            if is_nydus && !(back && formats::is_stack(&parsed.layers)) {
                let why = "it is part of an image of Nydus";
                let all = parsed.layers.iter().map(|layer| (layer.digest, layer.size, Some(why.into())));
                found.layers.extend(all.filter(|(digest, ..)| seen.insert(*digest)));
                continue;
            }
            if parsed.layers.len() > sizes::LAYERS {
                let why = format!("{} layers, the limit is {}", parsed.layers.len(), sizes::LAYERS);
                return Err(Error::invalid(what, why));
            }
            // What has its table elsewhere would have none at the destination.
            for layer in parsed.layers.iter_mut().filter(|layer| is_estargz(layer)) {
                if is_elsewhere(source, layer, &mut footers).await? {
                    layer.annotations = formats::lasting(&layer.annotations);
                }
            }
            for layer in parsed.layers.iter().filter(|_| !is_nydus) {
                if seen.insert(layer.digest) {
                    found.layers.push((layer.digest, layer.size, keeps(layer)));
                }
            }
            if parsed.layers.iter().all(|layer| keeps(layer).is_some()) {
                continue;
            }
            if format.has_top()
                && let Some((layer, why)) =
                    parsed.layers.iter().find_map(|layer| Some((layer.digest, keeps(layer)?)))
            {
                return Err(stays(&layer, why));
            }
            let wanted: Vec<_> = parsed.layers.iter().map(|layer| keeps(layer).is_none()).collect();
            let config = source.read_blob(&parsed.config, sizes::CONFIG, stream::PRIORITY).await?;
            held += config.len() as u64;
            if held > limits::COPY_BYTES {
                return Err(Error::TooLarge {
                    what: "configs".into(),
                    size: held,
                    limit: limits::COPY_BYTES,
                });
            }
            let image = Image::new(Vec::new(), manifest.clone(), parsed, config, &what)?;
            if is_nydus {
                found.nydus(source, &image, recode, watch).await?;
            } else {
                for (layer, _) in image.layers.iter().zip(wanted).filter(|(_, wanted)| *wanted) {
                    found.want(layer, &what)?;
                }
            }
            found.images.insert(manifest.digest, image);
        }
        if order == FileOrder::ByRecoder && found.images.is_empty() {
            let why = "none of its images has layers whose files can be ordered";
            return Err(Error::Unsupported { what: source.to_string(), why: why.into() });
        }
        Ok(found)
    }

    /// Looks at what becomes of an image of Nydus: layers of its blobs, or one of all.
    async fn nydus(
        &mut self,
        source: &Source,
        image: &Image,
        recode: &Arc<dyn Recode>,
        watch: &dyn Watch,
    ) -> Result<(), Error> {
        let Some((top, blobs)) = image.layers.split_last() else { return Ok(()) };
        let (digest, layers) = (image.manifest.digest, &image.layers[..]);
        let what = format!("image {digest} of {source}");
        let apart = stream::apart(recode.clone(), (source, layers), what.clone()).await?;
        let anew = "neither diffIDs nor digests are those of the image it was made of";
        let (made, gone, why) = match &apart {
            None => {
                watch.left_out(&format!(
                    "the tree that image {digest} of Nydus has in a layer of its own; the tars of the others are made anew, \
                     so {anew}"
                ));
                (
                    blobs,
                    std::slice::from_ref(top),
                    "it has the tree of the others, which have theirs themselves",
                )
            }
            Some(why) => {
                watch.left_out(&format!(
                    "the layers of image {digest} of Nydus; one layer is made of the tree of all, so {anew} ({why})"
                ));
                self.together.insert(top.digest, layers.to_vec());
                (std::slice::from_ref(top), blobs, "its bytes are in the layer that is made of the tree")
            }
        };
        for layer in made {
            self.want(layer, &what)?;
        }
        let known: HashSet<_> = self.layers.iter().map(|(digest, ..)| *digest).collect();
        for layer in layers.iter().filter(|layer| !known.contains(&layer.digest)) {
            let stays = gone.iter().any(|one| one.digest == layer.digest).then(|| why.to_owned());
            self.layers.push((layer.digest, layer.size, stays));
        }
        Ok(())
    }

    fn want(&mut self, layer: &LayerBlob, what: &str) -> Result<(), Error> {
        match self.wanted.iter().find(|known| known.digest == layer.digest) {
            None => self.wanted.push(layer.clone()),
            Some(known) if known.diff_id == layer.diff_id => {}
            Some(known) => {
                let (one, other) = (known.diff_id, layer.diff_id);
                let why = format!("layer {} cannot be the tar {one} and {other}", layer.digest);
                return Err(Error::invalid(what, why));
            }
        }
        Ok(())
    }

    /// Returns images of which only this is known.
    #[cfg(test)]
    pub(super) fn wanting(wanted: Vec<LayerBlob>) -> Self {
        Self { wanted, ..Self::default() }
    }

    /// Returns the layers that are to be written anew.
    pub(super) fn wanted(&self) -> &[LayerBlob] {
        &self.wanted
    }

    /// Returns the layers of which one is made that stands for all, if that is this one.
    pub(super) fn below(&self, layer: &LayerBlob) -> Option<&[LayerBlob]> {
        self.together.get(&layer.digest).map(Vec::as_slice)
    }

    /// Returns what the layers of each image have become, bottom first. All of them must be in the format.
    pub(super) fn stacks(&self, made: &BTreeMap<Digest, Made>) -> Result<Vec<(Digest, Vec<Digest>)>, Error> {
        let mut stacks = Vec::new();
        for (digest, image) in &self.images {
            let mut stack = Vec::new();
            for layer in &image.layers {
                match made.get(&layer.digest) {
                    Some(Made::Another(layer, _)) => stack.push(layer.digest),
                    Some(Made::Same(why)) => return Err(stays(&layer.digest, why.clone())),
                    None => return Err(stays(&layer.digest, "nothing was made of it".into())),
                }
            }
            stacks.push((*digest, stack));
        }
        stacks.sort();
        Ok(stacks)
    }

    /// Puts manifests together around what has become of the layers.
    pub(super) fn assemble(
        &self,
        plan: &Plan,
        made: &BTreeMap<Digest, Made>,
        tops: &Tops,
        conversion: Conversion,
        watch: &dyn Watch,
    ) -> Result<Outcome, Error> {
        let keep = conversion.originals == Originals::Kept;
        let spare = spares(plan);
        let (mut manifests, mut configs) = (Vec::new(), Vec::new());
        let mut new: HashMap<Digest, Manifest> = HashMap::new();
        for old in &plan.manifests {
            let what = format!("manifest {}", old.digest);
            let mut become_of = None;
            if old.is_index() {
                let child = |digest: &Digest| match new.get(digest) {
                    Some(new) => Child::Made(new),
                    None if spare.contains(digest) => Child::Spare,
                    None => Child::Same,
                };
                let gone = |digest: &Digest, about: &Digest| {
                    watch.left_out(&format!("manifest {digest} is about {about}, which is replaced"));
                };
                become_of = rewrite::index(old, conversion.format, keep, child, gone, &what)?;
            } else if let Some(image) = self.images.get(&old.digest)
                && let Some((config, manifest)) =
                    rewritten(image, made, tops.get(&old.digest), conversion.format, &what)?
            {
                configs.push(config);
                if let Some(index) = SociIndex::named_by(&old.bytes) {
                    watch.left_out(&format!(
                        "that manifest {} names the SOCI index {index}: it is about layers that are replaced",
                        old.digest
                    ));
                }
                become_of = Some(manifest);
            }
            manifests.push(old.clone());
            if let Some(manifest) = become_of {
                manifests.push(manifest.clone());
                new.insert(old.digest, manifest);
            }
        }
        let mut root = plan.root;
        if let Some(manifest) = new.get(&root) {
            root = manifest.digest;
            if let (true, Some(image)) = (keep, self.images.get(&plan.root)) {
                let what = format!("manifest {}", plan.root);
                let pair = rewrite::pair(&image.manifest, manifest, &image.config, conversion.format, &what)?;
                root = pair.digest;
                manifests.push(pair);
            }
        }
        let manifests = reachable(manifests, &root);
        Ok(Outcome { manifests, configs, root })
    }

    /// Says what has become of every layer.
    pub(super) fn report(&self, made: &BTreeMap<Digest, Made>) -> Vec<ConvertedLayer> {
        let of = |(from, from_size, kept): &(Digest, u64, Option<String>)| {
            let (from, from_size) = (*from, *from_size);
            let same = |why: &str| ConvertedLayer {
                from,
                from_size,
                to: from,
                to_size: from_size,
                how: How::Kept,
                why: Some(why.to_owned()),
            };
            match (kept, made.get(&from)) {
                (None, Some(Made::Another(layer, how))) => ConvertedLayer {
                    from,
                    from_size,
                    to: layer.digest,
                    to_size: layer.size,
                    how: *how,
                    why: None,
                },
                (None, Some(Made::Same(why))) => same(why),
                (why, _) => same(why.as_deref().unwrap_or_default()),
            }
        };
        self.layers.iter().map(of).collect()
    }
}

impl Outcome {
    /// Returns those of the source's blobs that manifests name.
    pub(super) fn carried<'a>(&self, plan: &'a Plan) -> Result<Vec<&'a Descriptor>, Error> {
        let mut named = HashSet::new();
        for manifest in &self.manifests {
            if manifest.is_index() {
                named.extend(manifest.children().into_iter().map(|child| child.digest));
            } else {
                let image = manifest.image("")?;
                named.extend(std::iter::once(image.config).chain(image.layers).map(|blob| blob.digest));
            }
        }
        Ok(plan.blobs.iter().filter(|blob| named.contains(&blob.digest)).collect())
    }
}

/// Says that an image cannot be made because one of its layers would stay.
pub(super) fn stays(layer: &Digest, why: String) -> Error {
    Error::Unsupported { what: format!("layer {layer}"), why }
}

/// Says whether no image of a source is an ordinary one.
fn are_all_nydus(source: &Source, plan: &Plan) -> Result<bool, Error> {
    let mut all = true;
    for manifest in plan.manifests.iter().filter(|one| !one.is_index()) {
        let parsed = manifest.image(&format!("manifest {} of {source}", manifest.digest))?;
        let is_image = rewrite::is_image(&parsed) && parsed.layers.iter().any(formats::is_tar);
        all &= !is_image || formats::are_nydus(&parsed.layers);
    }
    Ok(all)
}

/// Says whether a layer's footer has its table in an image of its own. That image is found by a tag, and the footer by whoever has
/// the layer; `known` is what was seen.
async fn is_elsewhere(
    source: &Source,
    layer: &Descriptor,
    known: &mut HashMap<Digest, bool>,
) -> Result<bool, Error> {
    let Some(announced) = Announced::by(&layer.annotations) else { return Ok(false) };
    if let Some(elsewhere) = known.get(&layer.digest) {
        return Ok(*elsewhere);
    }
    let start = layer.size.saturating_sub(ELSEWHERE_FOOTER);
    let mut reader = source.read_range(&layer.digest, layer.size, start..layer.size, stream::PRIORITY);
    let mut tail = Vec::new();
    while let Some(piece) = reader.chunk().await? {
        tail.extend_from_slice(&piece); // a reader hands on no more than was asked for
    }
    let elsewhere = announced.elsewhere(&tail, layer.size).is_some();
    known.insert(layer.digest, elsewhere);
    Ok(elsewhere)
}

/// Returns the manifests that were made of others beside them: those are looked at instead.
pub(super) fn spares(plan: &Plan) -> HashSet<Digest> {
    plan.manifests.iter().filter(|one| one.is_index()).flat_map(rewrite::spares).collect()
}

/// Returns config and manifest of an image around other layers; nothing if all of them stay.
fn rewritten(
    image: &Image,
    made: &BTreeMap<Digest, Made>,
    top: Option<&LayerBlob>,
    format: Format,
    what: &str,
) -> Result<Option<(Bytes, Manifest)>, Error> {
    let (mut layers, mut diff_ids) = (Vec::new(), Vec::new());
    // What ordinary layers are made of has the tree of all last; they have theirs themselves.
    let tree = image.layers.last().filter(|last| top.is_none() && formats::is_top(&last.annotations));
    if let Some(Made::Another(layer, _)) = tree.and_then(|tree| made.get(&tree.digest)) {
        let config = rewrite::history_of_one(&image.config, image.layers.len(), what)?;
        let config = rewrite::config(&config, &[layer.diff_id], what)?;
        let (descriptor, layers) = (Descriptor::of(media_type::CONFIG, &config), [Some(layer.descriptor())]);
        let manifest = rewrite::manifest(&image.manifest, &descriptor, &layers, Top::All, what)?;
        return Ok(Some((config, manifest)));
    }
    let stack = &image.layers[..image.layers.len() - usize::from(tree.is_some())];
    let mut is_mapped = false;
    for old in stack {
        match made.get(&old.digest) {
            Some(Made::Another(layer, _)) => {
                layers.push(Some(layer.descriptor()));
                diff_ids.push(layer.diff_id);
            }
            Some(Made::Same(_)) | None => {
                is_mapped |= old.is_erofs();
                layers.push(None);
                diff_ids.push(old.diff_id);
            }
        }
    }
    if layers.iter().all(Option::is_none) {
        return Ok(None);
    }
    let mut config = image.config.clone();
    if let Some(top) = top {
        diff_ids.push(top.diff_id);
        config = rewrite::history(&config, what)?;
    }
    if tree.is_some() {
        config = rewrite::history_below(&config, image.layers.len(), what)?;
    }
    match format.feature() {
        Some(feature) => config = rewrite::feature(&config, feature, true, what)?,
        // What is asked for is for layers that are no more.
        None if !is_mapped && image.layers.iter().any(LayerBlob::is_erofs) => {
            config = rewrite::feature(&config, EROFS_FEATURE, false, what)?;
        }
        None => {}
    }
    let config = rewrite::config(&config, &diff_ids, what)?;
    let descriptor = Descriptor::of(media_type::CONFIG, &config);
    let top = match (top, tree) {
        (Some(top), _) => Top::More(Box::new(top.descriptor())),
        (None, Some(_)) => Top::Less,
        (None, None) => Top::Absent,
    };
    let manifest = rewrite::manifest(&image.manifest, &descriptor, &layers, top, what)?;
    Ok(Some((config, manifest)))
}

/// Returns those of the manifests that a root leads to, in the order they have; that is children first.
fn reachable(manifests: Vec<Manifest>, root: &Digest) -> Vec<Manifest> {
    let mut found = HashSet::from([*root]);
    // A parent comes after its children.
    for manifest in manifests.iter().rev() {
        if found.contains(&manifest.digest) {
            let children = manifest.children();
            found.extend(
                children.iter().filter(|child| is_manifest(&child.media_type)).map(|child| child.digest),
            );
        }
    }
    // One that is made of two is the same.
    let mut once = HashSet::new();
    manifests.into_iter().filter(|one| found.contains(&one.digest) && once.insert(one.digest)).collect()
}
