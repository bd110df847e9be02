//! What a start of an image reads, in order: recorded once, fetched first the next time.
//!
//! A profile is a hint. A wrong one costs bytes and never correctness, so it needs no signature.

mod files;

use std::collections::HashSet;
use std::ops::Range;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use format::{DiffId, IndexId};
use serde::{Deserialize, Serialize};
use store::{ReadError, SegmentFile, Segments};

pub(crate) use files::with_files_read;

/// Media type of a profile in an index artifact.
pub const MEDIA_TYPE: &str = "application/vnd.floe.profile.v1+json";

/// Entries a profile may have: a start that reads more than 64 GiB is not helped by an order.
const ENTRIES: usize = 65_536;

/// Files a profile may name.
const FILES: usize = 16_384;

/// Bytes that these may take in JSON: with all segments it is less than what the store keeps, and what is read of a registry's.
const FILE_BYTES: usize = 2 << 20;

/// The segments a start read, in the order of the first read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Profile {
    version: u32,
    /// The layers the numbers below count, bottom first.
    layers: Vec<IndexId>,
    /// Layer number and segment.
    segments: Vec<(u16, u32)>,
    /// The digests of the same layers' tars. What does not depend on an index is told by these: files.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    diff_ids: Vec<DiffId>,
    /// The files a start read, in the order of the first read, as far as that is known.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    files: Vec<ReadFile>,
}

/// A file of which a start has read something.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ReadFile {
    /// Number of the layer that has it.
    pub layer: u16,
    /// From the root, without a leading slash.
    pub path: String,
    /// Its length.
    pub size: u64,
    /// How many bytes of it were read, by the kernel's reckoning: whole pages, and what it read ahead.
    pub read: u64,
}

/// Why bytes are not a profile.
#[derive(Debug, thiserror::Error)]
pub enum ProfileError {
    /// Not the JSON it should be.
    #[error("parsing a profile")]
    Json(#[from] serde_json::Error),
    /// Made by a newer program.
    #[error("profile version {0} is not known")]
    Version(u32),
    /// Names layers it does not list, or more segments than any start reads.
    #[error("a profile contradicts itself or is too long")]
    Nonsense,
}

impl Profile {
    /// Returns the profile of these reads.
    pub fn new(layers: Vec<IndexId>, reads: &[(IndexId, u32)]) -> Self {
        let number = |id| layers.iter().position(|layer| *layer == id).and_then(|n| u16::try_from(n).ok());
        let segments =
            reads.iter().filter_map(|(id, segment)| Some((number(*id)?, *segment))).take(ENTRIES).collect();
        Self { version: 1, layers, segments, diff_ids: Vec::new(), files: Vec::new() }
    }

    /// Returns it with the digests of its layers' tars.
    pub fn of(mut self, diff_ids: Vec<DiffId>) -> Self {
        self.diff_ids = diff_ids;
        self
    }

    /// Returns it with as many of these files as it may have.
    pub fn with_files(mut self, mut files: Vec<ReadFile>) -> Self {
        let mut bytes = 0_usize;
        let fits = |file: &ReadFile| {
            // What JSON escapes takes up to six bytes.
            bytes +=
                100 + file.path.chars().map(|c| if c < ' ' { 6 } else { c.len_utf8() + 1 }).sum::<usize>();
            bytes <= FILE_BYTES
        };
        let fitting = files.iter().take(FILES).map(fits).take_while(|fits| *fits).count();
        files.truncate(fitting);
        self.files = files;
        self
    }

    /// Returns what of it is so of every image with the same files.
    pub fn of_files(self) -> Self {
        Self { layers: Vec::new(), segments: Vec::new(), ..self }
    }

    /// Says whether it is of a start by the index of any layer.
    pub fn has_layers(&self) -> bool {
        !self.layers.is_empty()
    }

    /// Says whether it knows any of these layers.
    pub fn knows(&self, layers: &[IndexId]) -> bool {
        self.layers.iter().any(|layer| layers.contains(layer))
    }

    /// Returns the files that were read, in order.
    pub fn files(&self) -> &[ReadFile] {
        &self.files
    }

    /// Returns the digests of the layers' tars; there are as many where there are files.
    pub fn diff_ids(&self) -> &[DiffId] {
        &self.diff_ids
    }

    /// Parses a profile from outside.
    pub fn parse(bytes: &[u8]) -> Result<Self, ProfileError> {
        let profile: Self = serde_json::from_slice(bytes)?;
        let known = |(layer, _): &(u16, u32)| usize::from(*layer) < profile.layers.len();
        match profile.version {
            1 if profile.segments.len() <= ENTRIES
                && profile.segments.iter().all(known)
                && profile.files.len() <= FILES
                && profile.files.iter().all(|file| usize::from(file.layer) < profile.diff_ids.len()) =>
            {
                Ok(profile)
            }
            1 => Err(ProfileError::Nonsense),
            version => Err(ProfileError::Version(version)),
        }
    }

    /// Returns the profile as it is stored and shipped.
    pub fn to_json(&self) -> Result<Vec<u8>, ProfileError> {
        Ok(serde_json::to_vec(self)?)
    }

    /// Returns what to fetch, in order.
    pub fn reads(&self) -> impl Iterator<Item = (IndexId, u32)> + '_ {
        self.segments.iter().map(|(layer, segment)| (self.layers[usize::from(*layer)], *segment))
    }
}

/// Notes which segments are read first, on the way to where they come from.
pub struct Recorder {
    inner: Arc<dyn Segments>,
    touched: Mutex<Touched>,
}

#[derive(Default)]
struct Touched {
    seen: HashSet<(IndexId, u32)>,
    order: Vec<(IndexId, u32)>,
}

impl Recorder {
    /// Returns a recorder in front of a source of segments.
    pub fn new(inner: Arc<dyn Segments>) -> Self {
        Self { inner, touched: Mutex::default() }
    }

    /// Returns the reads so far, each segment once, in order.
    pub fn reads(&self) -> Vec<(IndexId, u32)> {
        self.touched.lock().unwrap_or_else(PoisonError::into_inner).order.clone()
    }

    fn touch(&self, index: IndexId, segment: u32) {
        let mut touched = self.touched.lock().unwrap_or_else(PoisonError::into_inner);
        if touched.order.len() < ENTRIES && touched.seen.insert((index, segment)) {
            touched.order.push((index, segment));
        }
    }
}

impl Segments for Recorder {
    fn local(&self, index: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        self.touch(index, segment);
        self.inner.local(index, segment)
    }

    fn fetch(&self, index: IndexId, segment: u32, deadline: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        self.touch(index, segment);
        self.inner.fetch(index, segment, deadline)
    }

    fn hint(&self, index: IndexId, segments: Range<u32>) {
        self.inner.hint(index, segments);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn profiles_survive_the_way_and_bad_ones_do_not() {
        let [a, b, c] = [1, 2, 3].map(|n| IndexId::from_bytes([n; 32]));
        let profile = Profile::new(vec![a, b], &[(b, 7), (a, 0), (c, 1)]);
        let back = Profile::parse(&profile.to_json().unwrap()).unwrap();
        assert_eq!(
            back.reads().collect::<Vec<_>>(),
            [(b, 7), (a, 0)],
            "a layer that is not listed is left out"
        );
        assert!(Profile::parse(br#"{"version":1,"layers":[],"segments":[[0,1]]}"#).is_err());
        let file = |layer| ReadFile { layer, path: "etc/a b".into(), size: 7, read: 5 };
        assert!(profile.knows(&[c, b]) && !profile.knows(&[c]));
        let named =
            profile.clone().of(vec![DiffId::new(format::Digest::of(b"tar"))]).with_files(vec![file(0)]);
        assert_eq!(Profile::parse(&named.to_json().unwrap()).unwrap(), named);
        let files = Profile::parse(&named.clone().of_files().to_json().unwrap()).unwrap();
        assert_eq!((files.files(), files.diff_ids()), (named.files(), named.diff_ids()));
        assert!(named.has_layers() && !files.has_layers() && !files.knows(&[a, b]));
        let wrong = profile.clone().with_files(vec![file(0)]);
        assert!(Profile::parse(&wrong.to_json().unwrap()).is_err(), "a file of no layer");
        assert!(matches!(
            Profile::parse(br#"{"version":2,"layers":[],"segments":[]}"#),
            Err(ProfileError::Version(2))
        ));
        assert!(Profile::parse(b"{").is_err());
        let long = ReadFile { layer: 0, path: "\u{1}".repeat(4000), size: 7, read: 5 };
        let most = profile.with_files(vec![long; FILES]);
        assert!(most.to_json().unwrap().len() < FILE_BYTES && most.files.len() > 80, "{}", most.files.len());
    }
}
