//! Bytes as an index file: what is accepted encodes to itself, and opening it is bounded.
#![no_main]

use std::ops::Range;

use format::index::Index;
use format::layer::Layer;
use format::skeleton::{SkeletonFacts, SkeletonReader};

libfuzzer_sys::fuzz_target!(|data: &[u8]| {
    let Some((mode, file)) = data.split_first() else { return };
    let mut file = file.to_vec();
    if mode & 1 == 1 {
        let _ = agree(&mut file, mode & 2 == 2);
    }
    let Ok(index) = Index::decode(&file) else { return };
    assert!(index.encode() == file, "an accepted index encodes to itself");
    let (id, segments) = (index.id(), index.facts().segments());
    let Ok(layer) = Layer::open(index) else { return };
    assert_eq!((layer.id(), layer.segments()), (id, segments));
    for n in 0..segments {
        let span = layer.span(n).expect("every segment has a span");
        assert!(span.segments.contains(&n) && !span.parts.is_empty());
        for part in &span.parts {
            let blob = layer.source().blob_at(part.blob).expect("a part is in a blob that the index names");
            assert!(part.range.start < part.range.end && part.range.end <= blob.size);
        }
        assert!(layer.segment_len(n) > 0 && layer.segment_len(n) <= layer.facts().segment.bytes());
    }
});

/// Makes the hashes right: that of the file, and, if asked for, those in the facts.
fn agree(file: &mut [u8], facts: bool) -> Option<()> {
    if facts {
        let [of_facts, of_skeleton, of_chunks] = [1, 2, 3].map(|kind| section(file, kind));
        let (at, skeleton, chunks) = (of_facts?.start, of_skeleton?, of_chunks?);
        let len = u64::from_le_bytes(*file.get(at + 52..)?.first_chunk()?);
        let hash = hash_of_skeleton(&file[skeleton], len)?;
        file.get_mut(at + 60..at + 92)?.copy_from_slice(hash.as_bytes());
        let hash = *blake3::hash(&file[chunks]).as_bytes();
        file.get_mut(at + 96..at + 128)?.copy_from_slice(&hash);
    }
    let hash = *blake3::hash(file.get(44..)?).as_bytes();
    file[12..44].copy_from_slice(&hash);
    Some(())
}

/// Returns where the stored bytes of a section are.
fn section(file: &[u8], kind: u32) -> Option<Range<usize>> {
    let count = u32::from_le_bytes(*file.get(44..)?.first_chunk()?).min(64) as usize;
    let row =
        file.get(48..)?.as_chunks::<32>().0.iter().take(count).find(|row| row[..4] == kind.to_le_bytes())?;
    let word = |at: usize| row[at..].first_chunk().map(|b| u64::from_le_bytes(*b));
    let (start, len) = (usize::try_from(word(8)?).ok()?, usize::try_from(word(16)?).ok()?);
    let range = start..start.checked_add(len)?;
    file.get(range.clone()).map(|_| range)
}

fn hash_of_skeleton(packed: &[u8], len: u64) -> Option<blake3::Hash> {
    let mut reader = SkeletonReader::new(packed, SkeletonFacts { len, hash: [0; 32] }).ok()?;
    let mut hasher = blake3::Hasher::new();
    while let Ok(Some(chunk)) = reader.chunk() {
        hasher.update(chunk);
    }
    Some(hasher.finalize())
}
