//! Makes of an image another one whose layers are in another format.
//!
//! Promises: of every platform each layer is written anew once, wherever it occurs, and only if it has not been before: what
//! the destination's own name leads to says which layer each of its layers was made of, and so does the note of a conversion
//! that was killed ([`note`]). A layer that the format cannot hold stays, and why is told. All else of configs, manifests and
//! indexes stays ([`rewrite`]).
//! Of an image of Nydus that has no other beside it ordinary layers are made of its blobs; the layer with the tree of all goes. Where
//! they are not what the image shows, one layer is made of that tree.
//! A format that has the tree of all layers in one more is for whoever knows it: there no layer can stay, and the originals
//! are kept beside what is made. A layer is whole in a file
//! without a name before it is sent, so whoever is killed leaves nothing; and as in a copy, nothing is named at the
//! destination before all that it names is there. How layers are written this crate does not know: that is [`Recode`]'s.
//!
//! ```text
//! source ─► own manifests, configs ─► which layers ─► each: there already? ─► reused
//!                                                        else read ─► Recode ─► file ─► destination, note
//!           what stays ─► destination      all compared, if asked ─► manifests, children first ─► the name
//! ```

mod formats;
mod image;
mod layers;
mod note;
mod prior;
mod rewrite;
mod stream;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fmt;
use std::io::{Read, Seek, Write};
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use format::{DiffId, Digest};
use serde::Serialize;

use crate::client::Client;
use crate::content::Content;
use crate::copy::plan::Plan;
use crate::copy::target::Target;
use crate::copy::{Blobs, Sums, Watch};
use crate::error::{Cause, Error};
use crate::manifest::{LayerBlob, Manifest};
use crate::reference::Reference;
use crate::scratch;
use crate::source::Source;
pub use formats::Format;
pub(crate) use formats::is_top;
use image::{Images, Outcome};
use layers::{Layers, Made};
use note::Note;
use prior::Prior;
pub use rewrite::CONVERTED_FROM;

/// What to make of an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Conversion {
    /// The format of the layers.
    pub format: Format,
    /// In which order their files are.
    pub order: FileOrder,
    /// What becomes of the images they are made of.
    pub originals: Originals,
    /// Whether to read at the destination what was made, and compare it with the source.
    pub verify: bool,
}

impl Conversion {
    /// Refuses a destination at which it could only fail at its end: before anything is read.
    pub fn check(to: &Reference, verify: bool) -> Result<(), Error> {
        let refused = |why: &str| Err(Error::Unsupported { what: to.to_string(), why: why.into() });
        if to.digest().is_some() {
            return refused("the digest of what is made is not known before; name a tag");
        }
        match to {
            Reference::Archive(_) if verify => refused(
                "an archive that is being written cannot be read again; verify a conversion to oci:DIR",
            ),
            _ => Ok(()),
        }
    }
}

/// In which order the files of layers are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileOrder {
    /// In that of the layer it is made of.
    AsBefore,
    /// Those first that [`Recode::order`] knows of. So layers are made anew that have the format, but another order; ordinary
    /// ones stay where nothing comes first.
    ByRecoder,
}

/// What becomes of images when others are made of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Originals {
    /// They are not at the destination.
    LeftOut,
    /// They are listed before those that are made of them.
    Kept,
}

/// A layer that is being written: a file that is empty and nobody else's.
pub trait Draft: Read + Write + Seek + Send {}

impl<D: Read + Write + Seek + Send> Draft for D {}

/// Who writes layers anew. All of it blocks.
pub trait Recode: fmt::Debug + Send + Sync {
    /// Returns what tells the order in which the files of a layer are written from others, if some come first.
    fn order(&self, layer: &DiffId) -> Option<Digest> {
        let _ = layer;
        None
    }

    /// Reads a layer's blob to its end, compares it with its digests, and writes it anew, on so many threads. The same
    /// layer is always made into the same bytes.
    fn recode(
        &self,
        layer: &LayerBlob,
        threads: usize,
        blob: &mut dyn Read,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError>;

    /// Reads a layer and what was made of it to their ends, compares both with their digests, and the files in the one with those
    /// in the other.
    fn compare(
        &self,
        layer: (&LayerBlob, &mut (dyn Read + Send)),
        made: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError>;

    /// Looks at the last bytes of a layer that was made before, and says which part of it is wanted so that it can be under
    /// a [top](Self::top).
    fn wants(&self, made: &LayerBlob, tail: &[u8]) -> Result<Range<u64>, RecodeError> {
        let _ = (made, tail);
        Ok(0..0)
    }

    /// Takes in that part.
    fn recall(&self, made: &LayerBlob, part: &[u8]) -> Result<(), RecodeError> {
        let _ = (made, part);
        Ok(())
    }

    /// Makes the layer that goes on top of layers that were made or recalled, bottom first.
    fn top(&self, layers: &[Digest]) -> Result<TopLayer, RecodeError> {
        let _ = layers;
        Err(RecodeError::Inexpressible("the format has no layer of its own".into()))
    }

    /// Reads the layer on top of others to its end, compares it with its digests, and what it says with what these others say: each of
    /// them was compared before.
    fn compare_top(
        &self,
        layers: &[Digest],
        top: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let _ = (layers, top);
        Err(RecodeError::Inexpressible("the format has no layer of its own".into()))
    }

    /// Says why the layers of an image of Nydus, of which the last has the tree, cannot be written anew one by one, if they
    /// cannot.
    fn apart(&self, layers: &[LayerBlob], open: &mut Open<'_>) -> Result<Option<String>, RecodeError> {
        let _ = (layers, open);
        Ok(None)
    }

    /// Writes one layer of all layers of such an image, as [`recode`](Self::recode) does of one.
    fn together(
        &self,
        layers: &[LayerBlob],
        threads: usize,
        open: &mut Open<'_>,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        let _ = (layers, threads, open, out);
        Err(RecodeError::Inexpressible("the format has no layer of several".into()))
    }

    /// Compares what was made of all layers of such an image with them.
    fn compare_together(
        &self,
        layers: &[LayerBlob],
        open: &mut Open<'_>,
        made: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let _ = (layers, open, made);
        Err(RecodeError::Inexpressible("the format has no layer of several".into()))
    }
}

/// Opens a range of one of an image's layers. What was opened before ends there.
pub type Open<'a> = dyn FnMut(&Digest, Range<u64>) -> Box<dyn Read> + 'a;

/// Last bytes of a layer by which it is told what else of it is wanted.
pub const LAYER_TAIL: u64 = 4096;

/// A layer that holds the tree of all others.
#[derive(Debug, Clone)]
pub struct TopLayer {
    /// The blob.
    pub blob: Bytes,
    /// The digest of its tar.
    pub diff_id: DiffId,
}

/// A layer that was written anew.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recoded {
    /// The digest of the blob.
    pub digest: Digest,
    /// Its length.
    pub size: u64,
    /// The digest of its tar.
    pub diff_id: DiffId,
    /// What its descriptor has to say.
    pub annotations: BTreeMap<String, String>,
}

/// Why a layer was not written anew.
#[derive(Debug, thiserror::Error)]
pub enum RecodeError {
    /// The format cannot hold it; it can stay as it is.
    #[error("{0}")]
    Inexpressible(String),
    /// What has to be kept meanwhile could not be, in [a file](crate::scratch()).
    #[error("keeping it in a file")]
    Kept(#[source] std::io::Error),
    /// It failed.
    #[error(transparent)]
    Failed(Cause),
}

impl RecodeError {
    /// Returns what becomes of it, where it is about this.
    fn about(self, what: String) -> Error {
        match self {
            Self::Inexpressible(why) => Error::invalid(what, why),
            Self::Kept(error) => Error::io(format!("keeping {what} in {}", scratch::dir().display()), error),
            Self::Failed(cause) => Error::invalid(what, stream::because(&cause)),
        }
    }
}

/// What a conversion came to.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Converted {
    /// The digest of the manifest or index that is named.
    pub digest: Digest,
    /// What it is.
    pub media_type: String,
    /// Manifests that are there: the named one, and those below it.
    pub manifests: usize,
    /// The layers of all platforms, each once.
    pub layers: Vec<ConvertedLayer>,
    /// Layers that were read again and compared with the source.
    pub verified: usize,
    /// Blobs that were sent.
    pub sent: usize,
    /// Their bytes.
    pub bytes: u64,
    /// Blobs that the registry took from its other repository.
    pub mounted: usize,
    /// Blobs that were there.
    pub existed: usize,
}

/// What became of a layer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct ConvertedLayer {
    /// The blob it was.
    pub from: Digest,
    /// Its length.
    pub from_size: u64,
    /// The blob it is.
    pub to: Digest,
    /// Its length.
    pub to_size: u64,
    /// How it became that.
    pub how: How,
    /// Why it was kept.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub why: Option<String>,
}

/// How a layer came to the destination.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum How {
    /// It was written anew.
    Recoded,
    /// It was made before.
    Reused,
    /// It stayed as it was.
    Kept,
}

/// Layers that hold the tree of all others, by the digests of the manifests they are for.
type Tops = BTreeMap<Digest, LayerBlob>;

/// What a conversion works with.
struct Work {
    source: Source,
    target: Target,
    conversion: Conversion,
    recode: Arc<dyn Recode>,
    watch: Arc<dyn Watch>,
}

/// What another image is made of: looked at once, so that a tag that moves meanwhile, or an archive on standard input, is one
/// image from the first look to the last byte.
#[derive(Debug)]
pub struct Original {
    source: Source,
    plan: Plan,
}

impl Original {
    /// Returns where it is.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// Returns the manifests of its images.
    pub fn images(&self) -> impl Iterator<Item = &Manifest> {
        self.plan.manifests.iter().filter(|manifest| !manifest.is_index())
    }

    /// Returns the format of their layers.
    pub fn format(&self) -> Result<Format, Error> {
        formats::of_source(&self.plan)
    }
}

impl Client {
    /// Looks at what another image is to be made of.
    pub async fn original(&self, from: &Reference, watch: &dyn Watch) -> Result<Original, Error> {
        let source = self.source(from).await?;
        let plan = Plan::own_of(&source, watch).await?;
        Ok(Original { source, plan })
    }

    /// Makes another image of one, and names it.
    pub async fn convert(
        &self,
        original: &Original,
        to: &Reference,
        conversion: Conversion,
        recode: Arc<dyn Recode>,
        watch: Arc<dyn Watch>,
    ) -> Result<Converted, Error> {
        Conversion::check(to, conversion.verify)?;
        let Original { source, plan } = original;
        let images = Images::of(source, plan, conversion, &recode, &*watch).await?;
        let target = Target::open(self, to).await?;
        let mut prior = match to {
            Reference::Archive(_) => Prior::none(conversion.format),
            _ => Prior::of(&self.source(to).await?, conversion.format).await?,
        };
        let work = Work { source: source.clone(), target, conversion, recode, watch };
        let note = Note::of(&work.target, &*work.watch, &mut prior).await;
        let layers = Layers::new(&work, prior, &note, &images);
        let (made, mut sums) = note.during(layers.make()).await?;
        if !conversion.verify {
            note.tell(&made);
        }
        let tops = match conversion.format.has_top() {
            true => work.tops(&images, &made, &mut sums).await?,
            false => Tops::new(),
        };
        let outcome = images.assemble(plan, &made, &tops, conversion, &*work.watch)?;
        work.carry(&outcome, plan, &mut sums).await?;
        let verified = match conversion.verify {
            true => match work.verify(&images, &made, &tops).await {
                Ok(count) => count,
                Err(error) => {
                    // What was noted may be what is wrong: the next conversion makes it anew.
                    if matches!(error, Error::Invalid { .. }) {
                        note.forget().await;
                    }
                    return Err(error);
                }
            },
            false => 0,
        };
        let named = Plan::made(outcome.manifests, outcome.root);
        let root = named.root_manifest()?;
        let converted = Converted {
            digest: root.digest,
            media_type: root.media_type.clone(),
            manifests: named.manifests.len(),
            layers: images.report(&made),
            verified,
            sent: sums.sent,
            bytes: sums.bytes,
            mounted: sums.mounted,
            existed: sums.existed,
        };
        work.target.name(&named).await?;
        note.forget().await;
        Ok(converted)
    }
}

impl Work {
    /// Brings what stays, and the configs.
    async fn carry(&self, outcome: &Outcome, plan: &Plan, sums: &mut Sums) -> Result<(), Error> {
        for config in &outcome.configs {
            let content = Content::bytes(config.clone());
            sums.count(content.size(), self.target.put(&content, &self.source).await?);
        }
        let blobs = outcome.carried(plan)?.into_iter().cloned().collect();
        *sums += Blobs::of(&self.source, &self.target, &self.watch, blobs).carry().await?;
        Ok(())
    }

    /// Makes and sends the layers on top of the others, by the digests of the images' manifests.
    async fn tops(
        &self,
        images: &Images,
        made: &BTreeMap<Digest, Made>,
        sums: &mut Sums,
    ) -> Result<Tops, Error> {
        let mut tops = Tops::new();
        for (image, layers) in images.stacks(made)? {
            let what = format!("the layer on top of what {image} becomes");
            let TopLayer { blob, diff_id } = stream::top(self.recode.clone(), layers, what).await?;
            let content = Content::bytes(blob);
            let top = formats::top(*content.digest(), content.size(), diff_id);
            sums.count(content.size(), self.target.put(&content, &self.source).await?);
            tops.insert(image, top);
        }
        Ok(tops)
    }

    /// Reads what was made from the destination and compares it with what it was made of; says of how many layers.
    async fn verify(
        &self,
        images: &Images,
        made: &BTreeMap<Digest, Made>,
        tops: &Tops,
    ) -> Result<usize, Error> {
        let mut count = 0;
        for layer in images.wanted() {
            let Some(Made::Another(there, how)) = made.get(&layer.digest) else { continue };
            // What was made just now is known, and its bytes are compared with its digest.
            let is_told = self.conversion.format.has_top() && *how == How::Reused;
            if is_told && !stream::recall(&self.recode, &self.target, there).await? {
                let what = format!("layer {}, which was made of {}", there.digest, layer.digest);
                return Err(Error::invalid(what, "it is not what was made"));
            }
            let made = self.target.read(there)?;
            match images.below(layer) {
                Some(layers) => {
                    let of = (&self.source, layers);
                    stream::compare_together(self.recode.clone(), of, (**there).clone(), made).await?;
                }
                None => {
                    let whole = 0..layer.size;
                    let from = self.source.read_range(&layer.digest, layer.size, whole, stream::PRIORITY);
                    let both = [layer.clone(), (**there).clone()];
                    stream::compare(self.recode.clone(), both, [from, made]).await?;
                }
            }
            count += 1;
        }
        let stacks = if tops.is_empty() { Vec::new() } else { images.stacks(made)? };
        for (image, layers) in stacks {
            let Some(top) = tops.get(&image) else { continue };
            let there = self.target.read(top)?;
            stream::compare_top(self.recode.clone(), layers, top.clone(), there).await?;
        }
        Ok(count)
    }
}
