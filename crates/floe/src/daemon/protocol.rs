//! What commands and the daemon say to each other: one JSON document a line over a Unix socket.
//!
//! A client sends one [`Request`] line and reads [`Event`] lines until `done` or `failed`. What a request
//! holds (a mount for `floe run`) is let go when the client closes the connection, so a killed client
//! leaves nothing behind. Both ends are the same binary; [`VERSION`] is compared all the same, because an
//! old daemon may still run after an upgrade.

use std::path::PathBuf;

use format::{Digest, IndexId};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::engine::mounts::ReadPath;
use crate::engine::report::{Difference, ImageReport, MountTrace, Status, Timings};
use crate::exit;
use crate::snapshotter::register::Target;

/// Version of this protocol; a client tells a daemon of another version apart and says so.
pub const VERSION: u32 = 2;

/// Longest line either side accepts, in bytes: a status of thousands of images is a few megabytes.
pub const LINE: usize = 16 << 20;

/// One question.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Request {
    /// [`VERSION`] of the client.
    pub version: u32,
    /// What is asked.
    #[serde(flatten)]
    pub call: Call,
}

/// What can be asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "call", rename_all = "kebab-case")]
pub enum Call {
    /// Is anybody there? Replies [`Hello`].
    Ping,
    /// Unmount everything and end. Replies nothing.
    Stop,
    /// Could everything be left to a successor? Replies nothing, or why not.
    MayLeave,
    /// End and leave everything to a successor, which whoever asks starts. Replies nothing.
    HandOver,
    /// Fetch whole what is mounted. Replies [`Settled`].
    Settle {
        /// Also while containerd has snapshots.
        force: bool,
    },
    /// Everything there is to know. Replies [`Status`].
    Status,
    /// Who waited for what? Replies a list of [`MountTrace`].
    Trace {
        /// A directory or a canonical reference; all mounts if not said.
        of: Option<String>,
    },
    /// Make an image readable. Replies [`Opened`].
    Open {
        /// The reference as typed.
        image: String,
    },
    /// Mount an image at a directory of the user's. Replies [`Mounted`].
    Mount {
        /// The reference as typed.
        image: String,
        /// An absolute path.
        dir: PathBuf,
        /// How it is to be read; as configured if not said.
        path: Option<ReadPath>,
        /// Fetch the rest once mounted.
        background: bool,
    },
    /// Undo `Mount`. Replies nothing.
    Umount {
        /// The same absolute path.
        dir: PathBuf,
    },
    /// Hold a mount of an image for as long as the connection lives. Replies [`Mounted`], then waits for one
    /// [`Ready`] line and replies [`Told`].
    Hold {
        /// The reference as typed.
        image: String,
        /// How it is to be read; as configured if not said.
        path: Option<ReadPath>,
        /// Fetch the rest once ready.
        background: bool,
    },
    /// Fetch everything and prove it, or make it known to a containerd. Replies [`ImageReport`].
    Pull {
        /// The reference as typed.
        image: String,
        /// The containerd, if one is to know it.
        #[serde(default)]
        to: Option<Target>,
    },
    /// Make the index artifact. Replies [`Indexed`].
    Index {
        /// The reference as typed.
        image: String,
        /// Store it beside the image.
        push: bool,
        /// Write it to this OCI layout.
        out: Option<PathBuf>,
        /// A PEM file to sign with.
        sign: Option<PathBuf>,
        /// `recorded` or a file.
        profile: Option<PathBuf>,
    },
    /// What do starts of these images read? Replies a list with a profile's text for each, or nothing.
    Profiles {
        /// Digests of their manifests.
        manifests: Vec<Digest>,
    },
    /// Check everything again. Replies [`ImageReport`].
    Verify {
        /// The reference as typed.
        image: String,
        /// Believe no index at hand.
        rebuild: bool,
    },
    /// Compare two images. Tells [`Event::Differences`], then replies [`Compared`](crate::engine::report::Compared).
    Compare {
        /// The references as typed.
        images: [String; 2],
        /// Whether one is a copy of the other, perhaps in another format.
        as_copy: bool,
    },
    /// Fetch images whole and count what they share. Replies [`Sharing`](crate::engine::report::Sharing).
    Sharing {
        /// The references as typed.
        images: Vec<String>,
    },
    /// Make a segment whole. Replies [`Segment`].
    Segment {
        /// The layer.
        index: IndexId,
        /// The segment.
        number: u32,
    },
    /// Forget a reference. Replies nothing.
    Rm {
        /// The reference as typed.
        image: String,
    },
    /// Keep an image from being evicted. Replies nothing.
    Pin {
        /// The reference as typed.
        image: String,
    },
    /// Undo `Pin`. Replies nothing.
    Unpin {
        /// The reference as typed.
        image: String,
    },
    /// What is pinned? Replies [`Pinned`].
    Pinned,
    /// Free what nothing refers to. Replies [`Freed`].
    Gc {
        /// Only say what would be freed.
        dry_run: bool,
    },
}

/// One answer line.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "kebab-case")]
pub enum Event {
    /// How far a long call is.
    Progress(Progress),
    /// Something the user should read now.
    Notice {
        /// One line.
        text: String,
    },
    /// Some of the differences between two images; there may be more than fit into a reply.
    Differences {
        /// Further ones, in the order of their paths.
        differences: Vec<Difference>,
    },
    /// The call has succeeded; the reply depends on the call.
    Done {
        /// The reply.
        reply: serde_json::Value,
    },
    /// The call has failed.
    Failed(Failure),
}

/// How far a layer is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Progress {
    /// What is being done, one word: `index`, `stream`, `fetch`, `verify`.
    pub step: String,
    /// To which layer (short digest) or image.
    pub what: String,
    /// Bytes done.
    pub done: u64,
    /// Bytes in all.
    pub total: u64,
}

/// Why a call failed: the cause chain, outermost first.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// What we were doing, then why it failed.
    pub chain: Vec<String>,
    /// What the user can do.
    pub hint: Option<String>,
}

impl Failure {
    /// Returns what crosses the socket of an error.
    pub fn of(error: &anyhow::Error) -> Self {
        Self {
            chain: error.chain().map(ToString::to_string).collect(),
            hint: exit::hint_of(error).map(str::to_owned),
        }
    }

    /// Returns the error again, as if it had happened here.
    pub fn into_error(self) -> anyhow::Error {
        let mut causes = self.chain.into_iter().rev();
        let innermost = anyhow::Error::msg(causes.next().unwrap_or_else(|| "the daemon failed".into()));
        let error = causes.fold(innermost, anyhow::Error::context);
        match self.hint {
            Some(hint) => error.context(exit::Hint::new("the daemon could not do it", hint)),
            None => error,
        }
    }
}

/// Reply to `Ping`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Hello {
    /// [`VERSION`] of the daemon.
    pub version: u32,
    /// Its process.
    pub pid: u32,
    /// Whether a service manager starts the next one.
    #[serde(default)]
    pub managed: bool,
}

/// Reply to `Open`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Opened {
    /// The image's config, verbatim.
    #[serde(default)]
    pub config: String,
    /// What the image is and how it was opened.
    pub report: ImageReport,
    /// The metadata image: everything but the contents of files.
    pub meta: PathBuf,
}

/// Reply to `Mount` and `Hold`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Mounted {
    /// Where the merged, read-only tree is.
    pub dir: PathBuf,
    /// The image's config, verbatim.
    pub config: String,
    /// What the image is and how it was opened.
    pub report: ImageReport,
}

/// What a client that holds a mount says once its container is ready (or has ended).
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Ready {
    /// How long that took from the reply to `Hold`.
    pub running: std::time::Duration,
    /// Whether what was read so far is worth keeping as the image's profile.
    pub record: bool,
}

/// Reply to `Ready`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Told {
    /// Where the time went.
    pub timings: Timings,
    /// What is kept of the start, if anything is: files are still to be added.
    pub lesson: Option<Lesson>,
}

/// A profile without files. Whoever holds the mount looks which were read and says so by another one: the daemon must not wait in the kernel
/// for what it serves itself.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Lesson {
    /// The profile, as it is stored.
    pub profile: String,
    /// The image's tree.
    pub meta: PathBuf,
}

/// A profile with files, in answer to a [`Lesson`].
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Learned {
    /// The profile, as it is stored.
    pub profile: String,
}

/// Reply to `Index`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Indexed {
    /// What the image is.
    pub report: ImageReport,
    /// Digest of the artifact's manifest, where one was pushed or written.
    pub artifact: Option<format::Digest>,
    /// Bytes of all index blobs.
    pub bytes: u64,
}

/// Reply to `Segment`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Segment {
    /// The file that holds the whole segment.
    pub file: PathBuf,
}

/// Reply to `Pinned`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Pinned {
    /// References, canonical.
    pub images: Vec<String>,
}

/// Reply to `Settle`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Settled {
    /// Mounts; all of them are whole.
    pub mounts: usize,
    /// The references of those that cannot be read without a daemon nevertheless.
    pub served: Vec<String>,
    /// Snapshots of containerd's.
    pub snapshots: usize,
}

/// Reply to `Gc`.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Freed {
    /// What was or would be removed, and its size in bytes.
    pub items: Vec<(String, u64)>,
}

/// Writes one line.
pub fn send(to: &mut impl std::io::Write, message: &impl Serialize) -> std::io::Result<()> {
    let mut line = serde_json::to_vec(message)?;
    line.push(b'\n');
    to.write_all(&line)?;
    to.flush()
}

/// Reads one line, or nothing where the other side has closed.
pub fn receive<T: DeserializeOwned>(from: &mut impl std::io::BufRead) -> std::io::Result<Option<T>> {
    use std::io::{BufRead, Read};
    let mut line = Vec::new();
    from.by_ref().take(LINE as u64).read_until(b'\n', &mut line)?;
    match line.last() {
        None => Ok(None),
        Some(b'\n') => Ok(Some(serde_json::from_slice(&line)?)),
        Some(_) => {
            Err(std::io::Error::new(std::io::ErrorKind::UnexpectedEof, "a line was cut off or too long"))
        }
    }
}

const _: fn() = || {
    fn is_message<T: Serialize + DeserializeOwned>() {}
    is_message::<Status>();
    is_message::<Vec<MountTrace>>();
    is_message::<Timings>();
};
