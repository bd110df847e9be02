//! Images of Nydus: the last layer has the tree of all, the others are blobs that it takes its bytes from.
//!
//! That layer, the bootstrap, is read whole before anything of it is believed, and has the digest and the diffID that the
//! image says; what it says of the blobs is checked by its chunks' hashes as they arrive. So its index is as good as the
//! layer, and is believed wherever the image is. A blob has no files: its index says so. That it is one only the manifest
//! says, which may say it of somebody else's layer; so where layers are shared with images nobody here is asked about, it
//! counts as a table of contents does.

use std::io::Read;
use std::time::Instant;

use anyhow::{Context, bail};
use format::index::{BlobAt, Codec};
use format::layer::Layer;
use format::nydus::boot_file;
use format::nydus::bootstrap::{Blob, Bootstrap};
use format::nydus::index::{MakeError, Whose, layer as layer_of, nothing};
use format::nydus::meta::BlobMeta;
use format::payload::SegmentSize;
use format::skeleton::MadeError;
use format::unpack::Unpacked;
use format::{DiffId, Digest, Hashed, limits};
use registry::{Priority, Source};

use super::Engine;
use super::asker::Question;
use super::found::{FoundLayer, Place};
use super::layers::{NotSigned, segment_size};
use super::line::Line;
use super::open::Resolved;
use super::part::Part;
use super::report::IndexOrigin;
use super::role::Role;

impl Engine {
    /// Opens the layers of an image of Nydus that have no index; returns why not, for the first that could not be.
    pub(super) fn read_nydus(
        &self,
        source: &Source,
        image: &Resolved,
        asked: &Question<'_>,
        line: &Line,
        layers: &mut [Option<FoundLayer>],
    ) -> anyhow::Result<Option<String>> {
        for (place, layer) in image.layers.iter().zip(layers) {
            let (Some(role), None) = (place.role.filter(|role| role.is_nydus()), &layer) else { continue };
            if asked.by_blob {
                // Nobody knows how long its tar is, and a bootstrap alone knows no place to have its blobs from.
                return Ok(Some("layers of Nydus are not to be had by themselves".into()));
            }
            let read = match role {
                _ if !role.is_certain(self.rule.judge_unsigned(asked.asked), asked) => {
                    Err(NotSigned::Shared.into())
                }
                Role::Blob => self.without_files(place),
                _ => self.read_bootstrap(source, place, image, line),
            };
            match read.and_then(|made| self.take_made(place, made, IndexOrigin::Contents, place.size)) {
                Ok(found) => *layer = Some(found),
                Err(error) => return Ok(Some(format!("layer {}: {error:#}", place.blob))),
            }
        }
        Ok(None)
    }

    fn without_files(&self, place: &Place) -> anyhow::Result<Layer> {
        let table = Role::Blob.table(&place.blob);
        let whose = whose(place, Codec::Plain, &[], &[], segment_size(place.size));
        Ok(nothing(&Whose { table, ..whose })?)
    }

    /// Fetches a bootstrap, and makes the layer of the tree that it has.
    fn read_bootstrap(
        &self,
        source: &Source,
        place: &Place,
        image: &Resolved,
        line: &Line,
    ) -> anyhow::Result<Layer> {
        let (places, longest) = (&image.layers, image.longest_bootstrap());
        if place.size > longest {
            bail!("the bootstrap has {} bytes, and may have {longest}", place.size);
        }
        let part = Part { source, place, line };
        let read = self.read_part(part, 0..place.size, |packed| Tar::read(packed, place, longest));
        let Tar { tar, codec } = read.context("fetching the bootstrap")??;
        let bootstrap = Bootstrap::open(boot_file(&tar)?).context("reading the bootstrap")?;
        let blobs = blobs_of(bootstrap.blobs(), places)?;
        let needed = bootstrap.blobs().iter().filter(|blob| blob.needs_meta()).map(|blob| blob.meta.plain);
        if needed.fold(0, u64::saturating_add) > limits::CONTENTS {
            bail!("the tables of its blobs are longer than {} bytes", limits::CONTENTS);
        }
        let metas: Vec<_> = (bootstrap.blobs().iter())
            .map(|blob| self.meta(source, blob, places, line))
            .collect::<anyhow::Result<_>>()?;
        let lacks = |error: &MakeError| matches!(error, MakeError::Made(MadeError::Space(_)));
        let segment = segment_size(blobs.iter().map(|blob| blob.size).sum());
        let made =
            segment.enough(lacks, |size| layer_of(&bootstrap, &whose(place, codec, &blobs, &metas, size)));
        let made = made.context("reading the bootstrap")?;
        tracing::info!(layer = %place.blob, index = %made.id(), "index from a bootstrap of Nydus");
        Ok(made)
    }

    /// Returns what a blob says of its chunks, or one beside it, where only that says where they are.
    fn meta(
        &self,
        source: &Source,
        blob: &Blob,
        places: &[Place],
        line: &Line,
    ) -> anyhow::Result<Option<BlobMeta>> {
        if !blob.needs_meta() {
            return Ok(None);
        }
        let (at, begun) = (layer(&blob.meta.blob, places)?, Instant::now());
        let range = BlobMeta::range(blob);
        if range.start > range.end || range.end > at.size || range.end - range.start > limits::CONTENTS {
            bail!("the tables of blob {} are out of range", at.digest);
        }
        let bytes = self.net.part(source, &at.digest, at.size, range, Priority::Demand);
        let bytes = bytes.with_context(|| format!("fetching the tables of blob {}", at.digest))?;
        line.seen(bytes.len() as u64, begun.elapsed());
        let meta = BlobMeta::open(blob, &bytes);
        Ok(Some(meta.with_context(|| format!("reading the tables of blob {}", at.digest))?))
    }
}

/// What a layer with a bootstrap is unpacked.
struct Tar {
    tar: Vec<u8>,
    codec: Codec,
}

impl Tar {
    /// Unpacks what should be this layer as it arrives.
    fn read(packed: impl Read, place: &Place, longest: u64) -> anyhow::Result<Self> {
        let (mut packed, mut begin) = (Hashed::new(packed), Vec::new());
        (&mut packed).take(4).read_to_end(&mut begin)?;
        let codec = codec(&begin);
        let mut tar = Vec::new();
        let mut plain = Hashed::new(Unpacked::new(codec, begin.chain(&mut packed))?.take(longest + 1));
        let unpacked = plain.read_to_end(&mut tar);
        let diff_id = plain.finish().map(|(digest, _)| DiffId::new(digest));
        let (blob, size) = packed.finish()?;
        if (blob, size) != (place.blob, place.size) {
            bail!("the bootstrap's blob should be {}, but is {blob}", place.blob);
        }
        if unpacked? as u64 > longest {
            bail!("the bootstrap is longer than {longest} bytes");
        }
        match diff_id? {
            found if found == place.diff_id => Ok(Self { tar, codec }),
            found => bail!("the bootstrap is {found}, where the image says {}", place.diff_id),
        }
    }
}

/// Returns the blobs of a bootstrap as the image has them. One that is a tar.gz is a layer of another image in the
/// repository: how long it is only the bootstrap says.
fn blobs_of(blobs: &[Blob], places: &[Place]) -> anyhow::Result<Vec<BlobAt>> {
    let blob = |blob: &Blob| match blob.is_tar_gz() {
        true => Ok(BlobAt { digest: blob.id, size: blob.packed_size }),
        false => layer(&blob.id, places),
    };
    blobs.iter().map(blob).collect()
}

/// Returns a blob as the image has it.
fn layer(blob: &Digest, places: &[Place]) -> anyhow::Result<BlobAt> {
    let place = places.iter().find(|place| place.blob == *blob);
    let place = place.with_context(|| format!("blob {blob} is not among the image's layers"))?;
    Ok(BlobAt { digest: place.blob, size: place.size })
}

fn whose<'a>(
    place: &Place,
    codec: Codec,
    blobs: &'a [BlobAt],
    metas: &'a [Option<BlobMeta>],
    segment: SegmentSize,
) -> Whose<'a> {
    Whose {
        blob: place.blob,
        size: place.size,
        codec,
        diff_id: place.diff_id,
        table: Role::Bootstrap.table(&place.blob),
        blobs,
        metas,
        segment,
    }
}

/// Bootstraps are tars in gzip, or plain.
fn codec(blob: &[u8]) -> Codec {
    match blob {
        [0x1f, 0x8b, ..] => Codec::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Codec::Zstd,
        _ => Codec::Plain,
    }
}
