//! Random images through the encoder, the parser and the builder, held against a plain model.

#[cfg(test)]
mod support;

use format::skeleton::{SkeletonReader, SkeletonWriter, restore};
use proptest::prelude::*;
use testkit::arbitrary;
use testkit::dump::difference;
use testkit::layers::{flatten, sensible};
use testkit::tar::{Archive, Entry, Variant};

fn archive(layer: &[(Entry, Variant)]) -> Archive {
    let mut archive = Archive::new();
    layer.iter().for_each(|(entry, variant)| archive.entry(entry, *variant));
    archive.finish();
    archive
}

/// Restores a tar from its skeleton and payload.
#[cfg(test)]
fn restored(layer: &support::Layer) -> Vec<u8> {
    let mut writer = SkeletonWriter::new().unwrap();
    writer.write(&layer.skeleton).unwrap();
    let (packed, facts) = writer.finish().unwrap();
    let mut tar = Vec::new();
    let reader = SkeletonReader::new(&packed, facts).unwrap();
    let read = |at: u64, buffer: &mut [u8]| {
        let at = usize::try_from(at).unwrap();
        buffer.copy_from_slice(&layer.space[at..at + buffer.len()]);
        Ok::<(), ()>(())
    };
    let sink = |bytes: &[u8]| {
        tar.extend_from_slice(bytes);
        Ok(())
    };
    let len = restore(reader, support::segment(), 1000, read, sink).unwrap();
    assert_eq!(len, tar.len() as u64);
    tar
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]

    #[test]
    fn trees_are_what_the_model_says(layers in prop::collection::vec(arbitrary::layer(0..30), 1..4)) {
        let layers = sensible(&layers, |(entry, _)| entry);
        let read: Vec<_> = layers.iter().map(|layer| support::read(&archive(layer).tar, usize::MAX).unwrap()).collect();
        let plain: Vec<Vec<Entry>> = layers.iter().map(|layer| layer.iter().map(|(e, _)| e.clone()).collect()).collect();
        let (found, wanted) = (support::tree(&read), flatten(&plain));
        // What only the builder refuses is a matter of order: a whiteout behind what it makes room for.
        if let (Ok(tree), Ok(wanted)) = (found, wanted) {
            let difference = difference(&support::dump(&tree, &read), &wanted);
            prop_assert!(difference.is_none(), "{}", difference.unwrap_or_default());
        }
    }

    #[test]
    fn skeleton_and_payload_give_the_tar_back(layer in arbitrary::layer(0..30), step in 1usize..3000) {
        let archive = archive(&layer);
        let whole = support::read(&archive.tar, usize::MAX).unwrap();
        prop_assert_eq!(&whole.skeleton, &archive.skeleton);
        prop_assert_eq!(&support::read(&archive.tar, step).unwrap(), &whole, "fed in pieces");
        let (members, layout) = support::read_skeleton(&archive.skeleton, step).unwrap();
        prop_assert_eq!((&members, &layout), (&whole.members, &whole.layout), "the skeleton alone says the same");
        prop_assert_eq!(restored(&whole), archive.tar);
    }

    #[test]
    fn damage_never_panics(layer in arbitrary::layer(1..8), at in any::<prop::sample::Index>(), flip in 1u8..=255, cut in any::<prop::sample::Index>()) {
        let mut tar = archive(&layer).tar;
        let at = at.index(tar.len());
        tar[at] ^= flip;
        if let Ok(layer) = support::read(&tar, 700) {
            let _ = support::tree(std::slice::from_ref(&layer));
            prop_assert_eq!(restored(&layer), tar.clone());
        }
        tar.truncate(cut.index(tar.len()));
        if let Ok(layer) = support::read(&tar, usize::MAX) {
            let _ = support::tree(std::slice::from_ref(&layer));
        }
    }
}
