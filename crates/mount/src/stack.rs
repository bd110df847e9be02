//! Whether an image can be mounted by a read path here, and an overlay on top of that: tried, not guessed.
//!
//! A container's root is an overlay over a mounted image. Stacks of file systems have a limit in the kernel, and one
//! below the store counts, so that each may work alone and both together not.

use std::fs::{self, File};
use std::io::{self, Write as _};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use format::IndexId;
use format::erofs::read::Image;
use rustix::fs::{Mode, OFlags};
use store::{ReadError, SegmentFile, Segments};
use sys::mount::{Detached, MountError, Overlay};

use crate::sample::{self, INDEX, Sample, whole};
use crate::{erofs, fuse};

/// How the image is read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Below {
    /// By the kernel's EROFS; its segments are whole.
    Erofs,
    /// Through a FUSE server in this process.
    Fuse,
}

/// What is on top of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Top {
    /// Nothing.
    Bare,
    /// An overlay that can be written to.
    Overlay,
}

/// Why it does not work.
#[derive(Debug, thiserror::Error)]
pub enum StackError {
    /// There is no place to try.
    #[error("preparing a trial in {}", dir.display())]
    Prepare {
        /// Where.
        dir: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// The image cannot be mounted by the kernel.
    #[error("mounting EROFS from files")]
    Erofs(#[source] MountError),
    /// The image cannot be mounted by FUSE.
    #[error("mounting by FUSE")]
    Fuse(#[source] fuse::MountError),
    /// No overlay on top of it.
    #[error("mounting an overlay on it")]
    Overlay(#[source] MountError),
    /// Nothing can be written to the overlay.
    #[error("writing to the overlay")]
    Write(#[source] io::Error),
    /// The read failed.
    #[error("reading through the mount")]
    Read(#[source] io::Error),
    /// What was read is not what is there.
    #[error("what was read is not what is there")]
    Wrong,
}

/// Mounts an image of one file in a directory, with something on top, reads it, and takes all away again.
pub fn stack(dir: &Path, below: Below, top: Top) -> Result<(), StackError> {
    let prepare = |dir: &Path, source| StackError::Prepare { dir: dir.to_owned(), source };
    sample::within(dir, "stack", "lower", prepare, |dir| {
        let sample = prepared(dir).map_err(|error| prepare(dir, error))?;
        run(dir, &sample, below, top)
    })
}

fn prepared(dir: &Path) -> io::Result<Sample> {
    for name in ["lower", "upper", "work"] {
        fs::create_dir(dir.join(name))?;
    }
    let sample = Sample::make(dir)?;
    sample.fill()?;
    Ok(sample)
}

fn run(dir: &Path, sample: &Sample, below: Below, top: Top) -> Result<(), StackError> {
    let prepare = |source| StackError::Prepare { dir: dir.to_owned(), source };
    let lower = dir.join("lower");
    let _served = match below {
        Below::Erofs => {
            let segments = File::open(sample.segments()).map_err(prepare)?;
            let mounted = erofs::mount(&sample.image(), &[sample.device(true)], &segments, None);
            mounted.and_then(|mounted| mounted.attach(&lower)).map_err(StackError::Erofs)?;
            None
        }
        Below::Fuse => {
            let image = Image::open(fs::read(sample.image()).map_err(prepare)?);
            let image = image.map_err(|error| prepare(io::Error::other(error)))?;
            let segment = One::open(sample).map_err(prepare)?;
            let server = fuse::Server::new(Arc::new(image), Arc::new(segment));
            Some(server.mount(&lower).map_err(StackError::Fuse)?)
        }
    };
    match top {
        Top::Bare => File::open(lower.join("file"))
            .and_then(|file| whole(&file))
            .map_err(StackError::Read)
            .and_then(|read| compare(&read, sample)),
        Top::Overlay => {
            let upper = Some((dir.join("upper"), dir.join("work")));
            let spec = Overlay { lower: vec![lower], upper, parameters: Vec::new() };
            let overlay = sys::mount::overlay(&spec).map_err(StackError::Overlay)?;
            let file = overlay.open("file").map_err(StackError::Overlay)?;
            compare(&whole(&file).map_err(StackError::Read)?, sample)?;
            write(&overlay).map_err(StackError::Write)
        }
    }
}

fn compare(read: &[u8], sample: &Sample) -> Result<(), StackError> {
    if read == sample.content() { Ok(()) } else { Err(StackError::Wrong) }
}

/// Adds a file to an overlay.
fn write(overlay: &Detached) -> io::Result<()> {
    let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
    File::from(rustix::fs::openat(overlay, "made", flags, Mode::RUSR | Mode::WUSR)?).write_all(b"new")
}

/// The sample's segment.
struct One(Arc<SegmentFile>);

impl One {
    fn open(sample: &Sample) -> io::Result<Self> {
        let file = File::open(sample.segment())?;
        let len = file.metadata()?.len();
        Ok(Self(Arc::new(SegmentFile::new(file, len))))
    }
}

impl Segments for One {
    fn local(&self, index: IndexId, segment: u32) -> Option<Arc<SegmentFile>> {
        ((index, segment) == (INDEX, 0)).then(|| self.0.clone())
    }

    fn fetch(&self, index: IndexId, segment: u32, _: Instant) -> Result<Arc<SegmentFile>, ReadError> {
        self.local(index, segment).ok_or(ReadError::Unknown { index, segment })
    }

    fn hint(&self, _: IndexId, _: Range<u32>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stack_leaves_nothing_and_ends_the_same_way_twice() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        for below in [Below::Erofs, Below::Fuse] {
            for top in [Top::Bare, Top::Overlay] {
                let (first, second) = (stack(dir.path(), below, top), stack(dir.path(), below, top));
                assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0, "{below:?} {top:?}");
                assert_eq!(first.is_ok(), second.is_ok(), "{below:?} {top:?}: {first:?} {second:?}");
                if let Err(why) = first {
                    testkit::skip!(
                        "no {top:?} on {below:?} here: {why}: {:?}",
                        std::error::Error::source(&why)
                    );
                }
            }
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = stack(Path::new("/nonexistent/x"), Below::Fuse, Top::Bare).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"), "{error}");
    }
}
