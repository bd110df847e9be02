//! `floe convert`: an image whose layers are in another format. The command does it itself, as `floe copy` does; here is
//! what connects the registry's part of it, images, with the converter's, layers.

mod erofs;
mod nydus;
mod unpacked;

use std::fmt::Write as _;
use std::fs::File;
use std::io::Read;
use std::sync::Arc;

use convert::Expected;
use convert::compare::{Side, compare};
use convert::recode::nydus::Stored;
use convert::recode::{self, First, Order, Recoding, Target};
use format::index::BlobAt;
use format::{DiffId, Digest};
use registry::{
    Conversion, Converted, ConvertedLayer, Draft, FileOrder, Format, How, LayerBlob, Open, Original,
    Originals, Recode, RecodeError, Recoded, Reference,
};
use serde::Serialize;

use unpacked::Unpacked;

use super::optimize::Orders;
use super::transfer::{self, Bars};
use super::{Session, show};
use crate::cli;
use crate::engine::parse;
use crate::exit::{Code, misused};
use crate::origin::Net;

/// What is printed of a conversion.
#[derive(Serialize)]
struct Report {
    source: String,
    destination: String,
    #[serde(flatten)]
    converted: Converted,
}

pub(super) fn convert(session: &Session, args: &cli::Convert) -> anyhow::Result<Code> {
    let (to, recoder) = (parse(&args.made.to)?, recoder(args.format, args.made.level, Arc::default())?);
    Conversion::check(&to, args.made.verify)?;
    let conversion = conversion(&args.made, args.format, FileOrder::AsBefore);
    let net = Net::new(&session.config, None)?;
    let original = looked_at(&net, &parse(&args.made.from)?)?;
    made(session, &net, &original, (&args.made, &to), conversion, recoder)
}

/// Looks at what another image is to be made of.
pub(super) fn looked_at(net: &Net, from: &Reference) -> anyhow::Result<Original> {
    let bars = Bars::new("looking");
    let found = net.run(transfer::until_ended("looking", async {
        let found = net.client().original(from, &bars).await;
        found.map_err(|error| transfer::advised(error, format!("looking at {from}")))
    }));
    bars.clear();
    found
}

/// Returns what is to be made.
pub(super) fn conversion(args: &cli::Made, format: cli::LayerFormat, order: FileOrder) -> Conversion {
    Conversion {
        format: match format {
            cli::LayerFormat::Estargz => Format::EStargz,
            cli::LayerFormat::Zstdchunked => Format::ZstdChunked,
            cli::LayerFormat::Oci => Format::Oci,
            cli::LayerFormat::Erofs => Format::Erofs,
            cli::LayerFormat::Nydus => Format::Nydus,
        },
        order,
        // An image of Nydus alone under a name is none for most who ask for that.
        originals: match args.keep_original || format == cli::LayerFormat::Nydus {
            true => Originals::Kept,
            false => Originals::LeftOut,
        },
        verify: args.verify,
    }
}

/// Converts an image.
pub(super) fn made(
    session: &Session,
    net: &Net,
    original: &Original,
    (args, to): (&cli::Made, &Reference),
    conversion: Conversion,
    recoder: Arc<dyn Recode>,
) -> anyhow::Result<Code> {
    let from = parse(&args.from)?;
    let bars = Arc::new(Bars::new("converting"));
    let converted = net.run(transfer::until_ended("converting", async {
        let converted = net.client().convert(original, to, conversion, recoder, bars.clone()).await;
        converted.map_err(|error| transfer::advised(error, format!("converting {from} to {to}")))
    }));
    bars.clear();
    let report = Report { source: from.to_string(), destination: to.to_string(), converted: converted? };
    transfer::print(session, to, &report, shown)?;
    Ok(Code::Done)
}

/// Writes layers anew.
#[derive(Debug)]
struct Recoder {
    target: Target,
    level: Option<i32>,
    orders: Arc<Orders>,
}

/// Returns who writes layers in a format, at a level.
pub(super) fn recoder(
    format: cli::LayerFormat,
    level: Option<i32>,
    orders: Arc<Orders>,
) -> anyhow::Result<Arc<dyn Recode>> {
    let refused = |error: recode::RecodeError| misused(format!("--level: {error}"));
    let target = match format {
        cli::LayerFormat::Estargz => Target::EStargz,
        cli::LayerFormat::Zstdchunked => Target::ZstdChunked,
        cli::LayerFormat::Oci => Target::Gzip,
        cli::LayerFormat::Erofs => return Ok(Arc::new(Unpacked(erofs::Mapper::new(level)?))),
        cli::LayerFormat::Nydus => {
            return Ok(Arc::new(Unpacked(nydus::Packer::new(level, orders).map_err(refused)?)));
        }
    };
    let recoder = Recoder { target, level, orders };
    recoder.recoding(0, 1).check().map_err(refused)?;
    Ok(Arc::new(Unpacked(recoder)))
}

impl Recoder {
    fn recoding(&self, blob_size: u64, threads: usize) -> Recoding {
        Recoding { target: self.target, level: self.level, blob_size, threads }
    }
}

impl Recode for Recoder {
    fn order(&self, layer: &DiffId) -> Option<Digest> {
        self.orders.files(layer).map(First::digest)
    }

    fn recode(
        &self,
        layer: &LayerBlob,
        threads: usize,
        blob: &mut dyn Read,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        let recoding = self.recoding(layer.size, threads);
        let made = match layer.is_nydus() {
            true => recode::nydus::unpack(blob, layer.digest, &recoding, &spool()?, out),
            false => in_order(self.orders.files(&layer.diff_id), layer.is_ordinary(), |order| {
                recode::recode_in_order(blob, &expected(layer), &recoding, order, out)
            })?,
        };
        let recode::Recoded { digest, size, diff_id, annotations } = made.map_err(told)?;
        Ok(Recoded { digest, size, diff_id, annotations })
    }

    fn compare(
        &self,
        layer: (&LayerBlob, &mut (dyn Read + Send)),
        made: (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        if layer.0.is_nydus() {
            let ((layer, blob), made) = (layer, (expected(made.0), made.1));
            let recoding = self.recoding(layer.size, 1);
            let compared = recode::nydus::compare_unpacked(blob, layer.digest, &recoding, &spool()?, made);
            return compared.map_err(told);
        }
        let first = self.orders.files(&layer.0.diff_id);
        compare(side(layer), first, side(made)).map_err(|error| RecodeError::Failed(Arc::new(error)))
    }

    fn apart(&self, layers: &[LayerBlob], open: &mut Open<'_>) -> Result<Option<String>, RecodeError> {
        stored(layers, open, recode::nydus::apart)
    }

    fn together(
        &self,
        layers: &[LayerBlob],
        threads: usize,
        open: &mut Open<'_>,
        out: &mut dyn Draft,
    ) -> Result<Recoded, RecodeError> {
        let (recoding, file) = (self.recoding(0, threads), spool()?);
        let made = stored(layers, open, |stored| recode::nydus::together(stored, &recoding, &file, out))?;
        let recode::Recoded { digest, size, diff_id, annotations } = made;
        Ok(Recoded { digest, size, diff_id, annotations })
    }

    fn compare_together(
        &self,
        layers: &[LayerBlob],
        open: &mut Open<'_>,
        (made, there): (&LayerBlob, &mut (dyn Read + Send)),
    ) -> Result<(), RecodeError> {
        let (file, made) = (spool()?, (expected(made), made.size, there));
        stored(layers, open, |stored| recode::nydus::compare_together(stored, &file, made))
    }
}

/// Does something with the layers of an image of Nydus.
fn stored<T>(
    layers: &[LayerBlob],
    open: &mut Open<'_>,
    work: impl FnOnce(Stored<'_, '_>) -> Result<T, recode::RecodeError>,
) -> Result<T, RecodeError> {
    let none = || RecodeError::Inexpressible("the image has no layers".to_owned());
    let (top, blobs) = layers.split_last().ok_or_else(none)?;
    let blobs: Vec<_> = blobs.iter().map(|layer| BlobAt { digest: layer.digest, size: layer.size }).collect();
    work(Stored { top: expected(top), top_size: top.size, blobs: &blobs, open }).map_err(told)
}

/// Returns a file for what has to be kept meanwhile.
fn spool() -> Result<File, RecodeError> {
    registry::scratch().map_err(RecodeError::Kept)
}

/// Does something with an order, and with a file for the layer's tar, if files come first in it.
fn in_order<T>(
    first: Option<&First>,
    only: bool,
    work: impl FnOnce(Option<Order<'_>>) -> T,
) -> Result<T, RecodeError> {
    let Some(first) = first else { return Ok(work(None)) };
    let spool = spool()?;
    Ok(work(Some(Order { first, spool: &spool, only })))
}

/// Says which errors are about what is in a layer.
fn told(error: recode::RecodeError) -> RecodeError {
    match error {
        recode::RecodeError::Inexpressible { .. }
        | recode::RecodeError::Limit { .. }
        | recode::RecodeError::NothingFirst => RecodeError::Inexpressible(error.to_string()),
        recode::RecodeError::Spool(error) => RecodeError::Kept(error),
        error => RecodeError::Failed(Arc::new(error)),
    }
}

fn expected(layer: &LayerBlob) -> Expected {
    Expected { blob: layer.digest, diff_id: layer.diff_id }
}

fn side<R>((layer, blob): (&LayerBlob, R)) -> Side<R> {
    Side { blob, expected: expected(layer), size: layer.size }
}

fn shown(report: &Report) -> String {
    let Report { destination, converted, .. } = report;
    let Converted { digest, manifests, layers, verified, sent, bytes, mounted, existed, .. } = converted;
    let count = |how| layers.iter().filter(|layer| layer.how == how).count();
    let mut text = format!(
        "{destination}\n  digest    {digest}\n  manifests {manifests}\n  \
         blobs     {sent} sent ({}), {mounted} mounted from another repository, {existed} were there\n  \
         layers    {} recoded, {} reused, {} kept, {verified} verified\n",
        show::bytes(*bytes),
        count(How::Recoded),
        count(How::Reused),
        count(How::Kept),
    );
    for ConvertedLayer { from, from_size, to, to_size, how, why } in layers {
        let (name, before) = (&from.hex()[..12], show::bytes(*from_size));
        // Writing to a string cannot fail.
        let _ = match (how, why) {
            (How::Kept, why) => {
                let why = why.as_deref().unwrap_or("it stays");
                writeln!(text, "    {name} {before:>9}, kept: {why}")
            }
            (how, _) => {
                let (to, after) = (&to.hex()[..12], show::bytes(*to_size));
                let how = if *how == How::Reused { "reused" } else { "recoded" };
                writeln!(text, "    {name} {before:>9} -> {to} {after:>9}, {how}")
            }
        };
    }
    text
}
