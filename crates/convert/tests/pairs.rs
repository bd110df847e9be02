//! Images through every pair of formats: from each to each they show the same files, and where a tar is kept it comes back.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

mod common;
#[path = "common/formats.rs"]
#[allow(dead_code, reason = "its part")]
mod formats;
#[path = "common/rafs.rs"]
#[allow(dead_code, reason = "its part")]
mod rafs;
#[path = "../../format/tests/support/mod.rs"]
mod trees;

use std::io::Cursor;

use common::{PACKINGS, expected, pack};
use convert::recode::erofs::{self, ErofsError};
use convert::recode::nydus::{self, NydusError, Packing, Parts};
use convert::recode::{RecodeError, Recoding, Target};
use format::Digest;
use format::index::Codec;
use format::stargz::is_added;
use format::unpack::whole;
use formats::{check_chunked, check_estargz, made, unpacked};
use proptest::prelude::*;
use rafs::Bootstrap;
use testkit::arbitrary;
use testkit::dump::{Dump, difference};
use testkit::layers::{described, flatten, sensible};
use testkit::tar::{Archive, Entry, Variant};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Form {
    Oci,
    EStargz,
    ZstdChunked,
    Nydus,
    Erofs,
}

const FORMS: [Form; 5] = [Form::Oci, Form::EStargz, Form::ZstdChunked, Form::Nydus, Form::Erofs];

#[derive(Debug, Clone, PartialEq)]
struct Layer {
    form: Form,
    blob: Vec<u8>,
    /// What the tree of an image of Nydus is made of.
    parts: Option<Parts>,
    /// Whether it was a file system once: since then all of its directories are described.
    was_mapped: bool,
}

impl Layer {
    fn new(form: Form, blob: Vec<u8>, was_mapped: bool) -> Self {
        Self { form, blob, parts: None, was_mapped }
    }

    fn is_tar(&self) -> bool {
        !matches!(self.form, Form::Nydus | Form::Erofs)
    }

    /// Makes another layer of it as `floe convert` does: of what is no tar one is made first.
    fn to(&self, form: Form) -> Result<Self, RecodeError> {
        if self.form == form {
            return Ok(self.clone());
        }
        if !self.is_tar() {
            return self.plain().to(form);
        }
        let (tar, blob) = (unpacked(&self.blob), &self.blob[..]);
        let (expected, size) = (expected(&tar, blob), blob.len() as u64);
        let recoded = |target| made(&tar, blob, target, 1);
        let mut layer = Self::new(form, Vec::new(), self.was_mapped);
        match form {
            Form::Oci => layer.blob = recoded(Target::Gzip)?.blob,
            Form::EStargz => {
                let made = recoded(Target::EStargz)?;
                if self.form == Form::Oci {
                    check_estargz(&made, &tar);
                }
                layer.blob = made.blob;
            }
            Form::ZstdChunked => {
                let made = recoded(Target::ZstdChunked)?;
                if self.form == Form::Oci {
                    check_chunked(&made, &tar);
                }
                layer.blob = made.blob;
            }
            Form::Nydus => {
                let packing = Packing { level: Some(1), blob_size: size, threads: 1 };
                layer.parts = Some(nydus::pack(blob, &expected, &packing, &mut layer.blob)?.parts);
            }
            Form::Erofs => {
                let mut out = Cursor::new(Vec::new());
                erofs::image(blob, &expected, size, &mut out)?;
                (layer.blob, layer.was_mapped) = (out.into_inner(), true);
            }
        }
        Ok(layer)
    }

    /// Makes a tar of what is none.
    fn plain(&self) -> Self {
        let (file, size) = (tempfile::tempfile().unwrap(), self.blob.len() as u64);
        let mut out = Cursor::new(Vec::new());
        if self.form == Form::Erofs {
            erofs::unpack(&self.blob[..], &expected(&self.blob, &self.blob), size, &file, &mut out).unwrap();
        } else {
            let recoding = Recoding { target: Target::Gzip, level: Some(1), blob_size: size, threads: 1 };
            nydus::unpack(&self.blob[..], Digest::of(&self.blob), &recoding, &file, &mut out).unwrap();
        }
        Self::new(Form::Oci, out.into_inner(), self.was_mapped)
    }

    /// Returns the tar of an ordinary layer of it.
    fn tar(&self) -> Vec<u8> {
        unpacked(&self.to(Form::Oci).unwrap().blob)
    }
}

/// Makes another image of one. A layer that a format cannot hold stays, where it can.
fn converted(image: &[Layer], form: Form) -> Option<Vec<Layer>> {
    let layer = |layer: &Layer| match layer.to(form) {
        Ok(layer) => Some(layer),
        Err(RecodeError::Inexpressible { .. }) if matches!(form, Form::EStargz | Form::ZstdChunked) => {
            layer.is_tar().then(|| layer.clone())
        }
        Err(RecodeError::Erofs(ErofsError::Tree(_))) if form == Form::Erofs => {
            layer.is_tar().then(|| layer.clone())
        }
        Err(RecodeError::Nydus(NydusError::Tree(_))) if form == Form::Nydus => None,
        Err(error) => panic!("{:?} to {form:?}: {error}", layer.form),
    };
    image.iter().map(layer).collect()
}

/// Returns what an image shows.
fn shown(image: &[Layer]) -> Dump {
    if image.iter().any(|layer| layer.form == Form::Nydus) {
        return shown_by_nydus(image);
    }
    let tar = |layer: &Layer| if layer.is_tar() { unpacked(&layer.blob) } else { layer.plain().blob };
    let layers: Vec<_> = image.iter().map(|layer| read(&tar(layer))).collect();
    trees::dump(&trees::tree(&layers).unwrap(), &layers)
}

fn read(tar: &[u8]) -> trees::Layer {
    let mut layer = trees::read(tar, usize::MAX).unwrap();
    layer.members.retain(|(member, _)| !is_added(&member.path));
    layer
}

fn shown_by_nydus(image: &[Layer]) -> Dump {
    let digests = image.iter().map(|layer| Digest::of(&layer.blob));
    let parts = image.iter().map(|layer| layer.parts.as_ref().unwrap());
    let top = nydus::merge(&digests.clone().zip(parts).collect::<Vec<_>>()).unwrap().blob;
    let top = whole(Codec::Gzip, &top, u64::MAX).unwrap().unwrap();
    // A directory, the header of the bootstrap, and that.
    let len = std::str::from_utf8(&top[512 + 124..512 + 135]).unwrap();
    let bootstrap = &top[1024..1024 + usize::from_str_radix(len, 8).unwrap()];
    let blobs = digests.map(|digest| digest.hex()).zip(image.iter().map(|layer| layer.blob.clone()));
    Bootstrap::open(bootstrap, &blobs.collect()).dump()
}

fn same(found: &Dump, wanted: &Dump, way: &[Form]) {
    if let Some(text) = difference(found, wanted) {
        panic!("{way:?}\n{text}");
    }
}

/// Goes every way from an image of these layers; says how many of them stayed as they were on the first step of all.
fn every_way(layers: &[Vec<(Entry, Variant)>], tars: &[Vec<u8>], packing: &str) -> usize {
    let original: Vec<_> = tars.iter().map(|tar| Layer::new(Form::Oci, pack(packing, tar), false)).collect();
    let plain: Vec<Vec<Entry>> =
        layers.iter().map(|layer| layer.iter().map(|(entry, _)| entry.clone()).collect()).collect();
    let wanted = |image: &[Layer]| {
        let layers = image.iter().zip(&plain);
        let layers = layers.map(|(now, was)| if now.was_mapped { described(was) } else { was.clone() });
        flatten(&layers.collect::<Vec<_>>()).unwrap()
    };
    let direct = FORMS.map(|form| converted(&original, form));
    for (from, first) in FORMS.into_iter().zip(&direct) {
        let Some(first) = first else { continue };
        same(&shown(first), &wanted(first), &[from]);
        let firsts: Vec<_> = first.iter().map(Layer::tar).collect();
        for (to, direct) in FORMS.into_iter().zip(&direct) {
            let Some(second) = converted(first, to) else { continue };
            same(&shown(&second), &wanted(&second), &[from, to]);
            for (n, layer) in second.iter().enumerate() {
                let way = format!("layer {n}, {from:?} to {to:?}");
                // What is kept is the tar that there was, or that was made of what is none.
                if layer.is_tar() {
                    assert!(layer.tar() == firsts[n], "{way}");
                }
                if first[n].is_tar() {
                    assert!(firsts[n] == tars[n], "{way}");
                    // Nothing tells by which way it came. What stays stays in the format that it had.
                    let is_direct = direct.as_ref().is_none_or(|direct| direct[n] == *layer);
                    assert!(to == Form::Oci || layer.form != to || is_direct, "{way}");
                }
            }
        }
    }
    let stayed = |(form, image): (Form, &Option<Vec<Layer>>)| match image {
        Some(image) => image.iter().filter(|layer| layer.form != form).count(),
        None => original.len(),
    };
    FORMS.into_iter().zip(&direct).map(stayed).sum()
}

fn tars(layers: &[Vec<(Entry, Variant)>], tail: &[u8]) -> Vec<Vec<u8>> {
    let tar = |layer: &Vec<(Entry, Variant)>| {
        let mut archive = Archive::new();
        layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
        archive.finish();
        [&archive.tar, tail].concat()
    };
    layers.iter().map(tar).collect()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(96))]

    #[test]
    fn what_every_format_holds_goes_from_each_to_each(
        layers in prop::collection::vec(arbitrary::listed(0..12), 1..4),
        tail in prop::collection::vec(any::<u8>(), 0..700),
        way in 0..PACKINGS.len(),
    ) {
        prop_assert_eq!(every_way(&layers, &tars(&layers, &tail), PACKINGS[way]), 0);
    }

    #[test]
    fn what_some_format_holds_goes_from_each_to_each(
        layers in prop::collection::vec(arbitrary::layer(0..6), 1..4),
    ) {
        let layers = sensible(&layers, |(entry, _)| entry);
        let tars = tars(&layers, b"");
        // What only whoever reads the layers refuses is a matter of order: a whiteout behind what it makes room for.
        let read: Vec<_> = tars.iter().map(|tar| read(tar)).collect();
        if trees::tree(&read).is_ok() {
            every_way(&layers, &tars, "plain");
        }
    }
}
