//! What several targets need: inputs that get past checksums, or there would be nothing but checksums to test.

use std::io;

use convert::{BuildError, Expected, IndexBuilder, Options};
use format::index::Index;
use format::payload::SegmentSize;
use format::{DiffId, Digest};

/// Gives every block of a tar that could be a header the checksum of one.
pub fn seal(tar: &mut [u8]) {
    for block in tar.as_chunks_mut::<512>().0 {
        if block.iter().any(|b| *b != 0) {
            block[148..156].fill(b' ');
            let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
        }
    }
}

/// Takes numbers off the front of an input; zeros once it is used up.
pub struct Dice<'a>(pub &'a [u8]);

impl<'a> Dice<'a> {
    pub fn byte(&mut self) -> u8 {
        self.0.split_off_first().copied().unwrap_or(0)
    }

    pub fn word(&mut self) -> u16 {
        u16::from_le_bytes([self.byte(), self.byte()])
    }

    /// At most as many bytes as there are.
    pub fn bytes(&mut self, n: usize) -> &'a [u8] {
        self.0.split_off(..n.min(self.0.len())).unwrap_or_default()
    }
}

/// An index and the segments that came by while it was made.
pub struct Built {
    pub index: Index,
    pub segments: Vec<Vec<u8>>,
}

/// Builds the index of a blob that comes in pieces of the lengths `cut` gives; of `diff_id`, or of the one it has.
pub fn build(blob: &[u8], diff_id: Option<DiffId>, cut: impl Fn(usize) -> usize) -> Result<Built, String> {
    let run = |diff_id| -> Result<Built, BuildError> {
        let mut segments = Vec::new();
        let sink = |number: u32, bytes: &[u8]| -> io::Result<()> {
            assert_eq!(number as usize, segments.len());
            segments.push(bytes.to_vec());
            Ok(())
        };
        let segment = SegmentSize::from_bits(16).expect("allowed");
        let options = Options { segment, blob_size: blob.len() as u64 };
        let mut builder = IndexBuilder::new(options, sink)?;
        let (mut rest, mut n) = (blob, 0);
        while !rest.is_empty() {
            let (now, later) = rest.split_at(cut(n).clamp(1, rest.len()));
            builder.push(now)?;
            (rest, n) = (later, n + 1);
        }
        let (index, proved) = builder.finish(&Expected { blob: Digest::of(blob), diff_id })?;
        assert_eq!(proved.index(), index.id());
        Ok(Built { index, segments })
    };
    let unknown = DiffId::new(Digest::of(b"unknown"));
    match run(diff_id.unwrap_or(unknown)) {
        Err(BuildError::DiffId { found, .. }) if diff_id.is_none() => run(found),
        result => {
            assert!(
                result.is_err() || diff_id.is_some(),
                "an index under a diffID that the layer does not have"
            );
            result
        }
    }
    .map_err(|error| format!("{error:?}"))
}
