//! What the engine tells: about images, mounts and where the time of a start went.

use std::collections::BTreeMap;
use std::time::Duration;

use format::compare::Change;
use format::{DiffId, Digest, IndexId};
use serde::{Deserialize, Serialize};

use super::read_path::ReadPath;

/// How an image was opened and what of it is here.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct ImageReport {
    /// The reference, canonical.
    pub reference: String,
    /// Digest of the manifest of our platform.
    pub manifest: Digest,
    /// One line: lazy or full and why.
    pub why: String,
    /// The layers, bottom first.
    pub layers: Vec<LayerReport>,
    /// Where the time of opening went.
    pub opening: Opening,
}

impl ImageReport {
    /// Returns the bytes of all compressed layers.
    pub fn compressed(&self) -> u64 {
        self.layers.iter().map(|layer| layer.size).sum()
    }

    /// Returns the bytes that other layers had.
    pub fn taken(&self) -> u64 {
        self.layers.iter().map(|layer| layer.taken).sum()
    }

    /// Says whether every segment of every layer is on this node.
    pub fn complete(&self) -> bool {
        self.layers.iter().all(|layer| layer.local == layer.segments)
    }
}

/// One layer of an image.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct LayerReport {
    /// Digest of the blob.
    pub blob: Digest,
    /// Length of the blob, in bytes.
    pub size: u64,
    /// Digest of the plain tar.
    pub diff_id: DiffId,
    /// Identity of the index.
    pub index: IndexId,
    /// Where the index came from.
    pub origin: IndexOrigin,
    /// Length of the encoded index, in bytes.
    pub index_size: u64,
    /// Segments in all.
    pub segments: u32,
    /// Segments on this node.
    pub local: u32,
    /// Bytes of these that were copied from other layers, since the layer was opened.
    #[serde(default)]
    pub taken: u64,
    /// Whether the layer's plain tar was hashed here and matched its diffID.
    pub proved: bool,
}

/// Where a layer's index came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum IndexOrigin {
    /// It was in the store.
    Local,
    /// An artifact beside the image had it.
    Registry,
    /// The layer itself has a table of contents.
    Contents,
    /// A SOCI index beside the image had a table of it.
    Soci,
    /// The layer was streamed and the index built on the way.
    Streamed,
}

/// Where the time of opening an image went.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Opening {
    /// From reference to manifest and config.
    pub resolve: Duration,
    /// Until every layer had an index: looked up, fetched or built.
    pub index: Duration,
    /// From indexes to a mounted tree.
    pub mount: Duration,
}

/// How two images compare; the differences themselves are told before.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Compared {
    /// The references, canonical.
    pub images: [String; 2],
    /// Paths in either of them that were compared.
    pub entries: u64,
    /// Bytes of the files that both have under the same path, hard links once.
    pub bytes: u64,
    /// Paths that were left out because formats add them.
    pub left_out: u64,
    /// Bytes, of each of the two, of which the indexes could not tell whether they are equal.
    pub read: u64,
    /// Layers of either whose index was believed, and not proved here by the layer itself.
    pub believed: u64,
    /// What a node that has the first would fetch for the second, where that was asked for.
    pub upgrade: Option<Upgrade>,
}

/// A path that two images do not have alike.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Difference {
    /// From the root of the images, printable.
    pub path: String,
    /// Which of them has it.
    #[serde(rename = "difference")]
    pub sign: Sign,
    /// In what it differs; empty where only one has it.
    #[serde(rename = "what")]
    pub changes: Vec<Change>,
}

/// Which of two images has a path.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Sign {
    /// The second.
    Added,
    /// The first.
    Removed,
    /// Both, and it differs.
    Changed,
}

/// What a node that has all of one image would fetch for another one.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Upgrade {
    /// Layers of the other.
    pub layers: u32,
    /// Their blobs, in bytes.
    pub layer_bytes: u64,
    /// Layers whose blobs the one does not have.
    pub new_layers: u32,
    /// Those blobs, in bytes.
    pub new_layer_bytes: u64,
    /// Of those, what is fetched: all but the segments whose chunks are here.
    pub fetched: u64,
    /// Contents in chunks that no layer of the one has, in bytes.
    pub new_chunk_bytes: u64,
    /// About what these take in the blobs: their share of each layer's contents.
    pub new_chunk_packed: u64,
}

/// What images take, by what they share.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Sharing {
    /// The references, canonical.
    pub images: Vec<String>,
    /// Bytes of all files of all layers, each image by itself.
    pub logical: u64,
    /// What is left of that, from the coarsest way of sharing to the finest.
    pub schemes: Vec<Scheme>,
}

/// A way to share.
#[derive(Debug, Clone, Copy, Serialize, Deserialize)]
pub struct Scheme {
    /// What is kept once.
    pub unit: Unit,
    /// How many different ones there are.
    pub pieces: u64,
    /// Bytes of files in them.
    pub unique: u64,
}

/// What is kept once.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Unit {
    /// Whole layers.
    Layers,
    /// Whole files.
    Files,
    /// The chunks of layers' indexes.
    Chunks,
    /// Chunks whose ends the content decides about.
    ContentDefinedChunks,
}

/// Where the time of a start went.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Timings {
    /// How the image was opened.
    pub report: ImageReport,
    /// How it is read.
    pub path: ReadPath,
    /// From the mount to ready.
    pub running: Duration,
    /// Of `running`, how long at least one reader waited.
    pub waiting: Duration,
    /// The files that were waited for, longest first.
    pub waits: Vec<Wait>,
    /// What went over the network until ready.
    pub traffic: Traffic,
}

impl Timings {
    /// Returns the time from the start to ready.
    pub fn total(&self) -> Duration {
        let Opening { resolve, index, mount } = self.report.opening;
        resolve + index + mount + self.running
    }
}

/// A file that somebody waited for.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Wait {
    /// Path in the image, printable.
    pub path: String,
    /// How often.
    pub times: u64,
    /// How long in all.
    pub waited: Duration,
}

/// What went over the network.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub struct Traffic {
    /// Bytes received in response bodies.
    pub bytes: u64,
    /// Requests sent.
    pub requests: u64,
    /// Requests repeated after a fault.
    pub retries: u64,
}

impl std::ops::Sub for Traffic {
    type Output = Self;
    fn sub(self, earlier: Self) -> Self {
        Self {
            bytes: self.bytes - earlier.bytes,
            requests: self.requests - earlier.requests,
            retries: self.retries - earlier.retries,
        }
    }
}

/// Why a layer was streamed instead of being lazy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Fallback {
    /// Nobody has made an index of it.
    #[default]
    NoIndex,
    /// There is one, and no trusted key has signed it where that is asked for.
    Unsigned,
    /// There is one that cannot be had, cannot be read, or is of something else.
    Unusable,
    /// The registry did not say whether there is one.
    NoAnswer,
    /// The layer is a file system, of which there is none before it is here.
    FileSystem,
}

impl Fallback {
    pub(super) const ALL: [Self; 5] =
        [Self::NoIndex, Self::Unsigned, Self::Unusable, Self::NoAnswer, Self::FileSystem];

    /// Returns a word for it.
    pub(super) fn word(self) -> &'static str {
        match self {
            Self::NoIndex => "no-index",
            Self::Unsigned => "unsigned",
            Self::Unusable => "unusable",
            Self::NoAnswer => "no-answer",
            Self::FileSystem => "file-system",
        }
    }
}

impl std::fmt::Display for Fallback {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::NoIndex => "no index anywhere",
            Self::Unsigned => "the index is not signed as it must be",
            Self::Unusable => "the index cannot be used",
            Self::NoAnswer => "the registry did not say whether there is an index",
            Self::FileSystem => "an EROFS file system is read whole once",
        })
    }
}

/// Reply to `floe status`.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Status {
    /// Process of the daemon.
    pub pid: u32,
    /// Images that are open, by reference.
    pub images: BTreeMap<String, ImageReport>,
    /// Mounts: where, and of which reference.
    pub mounts: Vec<MountReport>,
    /// Traffic since the daemon started.
    pub traffic: Traffic,
    /// Bytes copied from other layers instead of being fetched, since the daemon started.
    #[serde(default)]
    pub taken: u64,
    /// Layers streamed since the daemon started because no index could be used, by reason.
    #[serde(default)]
    pub fallbacks: BTreeMap<Fallback, u64>,
    /// What the store takes and may take.
    #[serde(default)]
    pub room: RoomReport,
    /// References that are pinned.
    #[serde(default)]
    pub pinned: Vec<String>,
    /// What an administrator has to look at: layers that did not prove, damaged files.
    pub alerts: Vec<String>,
}

/// What the store takes, in bytes, and what it may take.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RoomReport {
    /// What all segments have.
    pub held: u64,
    /// The most they may have, where that is limited.
    pub quota: Option<u64>,
    /// What is free on the store's disk.
    pub free: u64,
    /// What is kept free.
    pub reserve: u64,
    /// Layers evicted since the daemon started.
    pub evicted_layers: u64,
    /// What they had.
    pub evicted_bytes: u64,
    /// Why what no reader waits for is paused, if it is.
    pub paused: Option<String>,
}

/// One mount.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountReport {
    /// Where: a directory of the user's, or one of the daemon's own where containers stand on it.
    pub dir: String,
    /// The reference it was mounted by.
    pub reference: String,
    /// Segments that are here, of all.
    #[serde(default)]
    pub here: u64,
    /// All segments.
    #[serde(default)]
    pub segments: u64,
    /// How it is read at this moment.
    pub path: ReadPath,
    /// Whether a segment was found damaged since: it may show the damage until it is mounted anew.
    #[serde(default)]
    pub stale: bool,
    /// Read requests from the kernel.
    pub reads: u64,
    /// Of those, how many had to wait for a segment.
    pub misses: u64,
    /// Of those, how many wait at this moment.
    #[serde(default)]
    pub waiting: u64,
    /// How many ended in an error.
    #[serde(default)]
    pub failed: u64,
    /// How long readers waited in all.
    pub waited: Duration,
}

/// Reply to `floe trace`: a mount, and the files that were waited for there.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MountTrace {
    /// The mount.
    #[serde(flatten)]
    pub mount: MountReport,
    /// The files, longest first.
    pub waits: Vec<Wait>,
}
