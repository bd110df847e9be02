//! Whether this kernel and the file system of the store can do all that the kernel's own read path needs: tried, not
//! guessed from a version.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::fanotify::{Group, Verdict};
use sys::mount::MountError;

use super::{WatchPoint, mount};
use crate::sample::{self, Sample, whole};

/// A length in the middle of a page, in the middle of the segment.
const CUT: usize = 6144;

/// How long the kernel may take over an event. It takes microseconds.
const PATIENCE: Duration = Duration::from_secs(2);

/// Why the kernel's own read path cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TrialError {
    /// There is no place to try.
    #[error("preparing a trial in {}", dir.display())]
    Prepare {
        /// Where.
        dir: PathBuf,
        /// The system's word.
        source: io::Error,
    },
    /// No group for events before content is read.
    #[error("asking for events before content is read (fanotify, CAP_SYS_ADMIN)")]
    Group(#[source] io::Error),
    /// No such events on this file system, or in this kernel.
    #[error("watching a mount for reads (FAN_PRE_ACCESS: Linux 6.14; ext4, XFS, btrfs)")]
    Watch(#[source] io::Error),
    /// No EROFS from files.
    #[error("mounting EROFS from files (Linux 6.12, CONFIG_EROFS_FS_BACKED_BY_FILE)")]
    Mount(#[source] MountError),
    /// What is missing reads as something: `erofs_fileio_ki_complete` of that kernel takes a short read for a whole one.
    #[error("the kernel shows what is missing as if it were there")]
    Shown,
    /// The kernel read what is missing without asking.
    #[error("the kernel did not ask before it read what is missing")]
    NotAsked,
    /// What was read is not what is there.
    #[error("what was read is not what is there")]
    Wrong,
    /// The read failed.
    #[error("reading through the mount")]
    Read(#[source] io::Error),
}

/// Mounts an image of one file in a directory, reads it before and after its segment is there, and takes all away
/// again. Takes a few milliseconds.
pub fn trial(dir: &Path) -> Result<(), TrialError> {
    let prepare = |dir: &Path, source| TrialError::Prepare { dir: dir.to_owned(), source };
    sample::within(dir, "trial", "watch", prepare, |dir| {
        let trial = Trial::new(dir).map_err(|error| prepare(dir, error))?;
        trial.run()
    })
}

struct Trial<'a> {
    dir: &'a Path,
    sample: Sample,
}

impl<'a> Trial<'a> {
    /// Writes an image, and an empty segment.
    fn new(dir: &'a Path) -> io::Result<Self> {
        let sample = Sample::make(dir)?;
        File::create(sample.segment())?;
        Ok(Self { dir, sample })
    }

    fn run(&self) -> Result<(), TrialError> {
        let prepare = |source| TrialError::Prepare { dir: self.dir.to_owned(), source };
        let segments = File::open(self.sample.segments()).map_err(prepare)?;
        let group = Group::new().map_err(TrialError::Group)?;
        let point = WatchPoint::create(&self.sample.segments(), &self.dir.join("watch"), false);
        let point = point.map_err(prepare)?;
        let read = |whole, point| {
            let devices = [self.sample.device(whole)];
            let mounted = mount(&self.sample.image(), &devices, &segments, point);
            let mounted = mounted.and_then(|mounted| Ok((mounted.open("file")?, mounted)));
            mounted.map_err(TrialError::Mount)
        };
        // Nobody is asked yet, as after the death of the keeper: what is missing, or cut off, must be an error.
        for there in [0, CUT] {
            self.sample.cut(there).map_err(prepare)?;
            for point in [Some(&point), None] {
                let (file, _mounted) = read(point.is_none(), point)?;
                if whole(&file).is_ok() {
                    return Err(TrialError::Shown);
                }
            }
        }
        self.sample.cut(0).map_err(prepare)?;
        group.watch_mount(point.root()).map_err(TrialError::Watch)?;
        let (file, _mounted) = read(false, Some(&point))?;
        std::thread::scope(|scope| {
            let reader = scope.spawn(|| whole(&file));
            let asked = self.fill_when_asked(&group, || reader.is_finished());
            // Nobody waits for ever, whatever went wrong.
            drop(group);
            let read = reader.join().unwrap_or_else(|_| Err(io::Error::other("the reader panicked")));
            asked?;
            self.compare(read)
        })?;
        let (file, _mounted) = read(true, None)?;
        self.compare(whole(&file))
    }

    fn fill_when_asked(&self, group: &Group, over: impl Fn() -> bool) -> Result<(), TrialError> {
        let begun = Instant::now();
        while begun.elapsed() < PATIENCE {
            let mut fds = [PollFd::new(group, PollFlags::IN)];
            let tick = Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
            let _ = poll(&mut fds, Some(&tick)); // an interrupted wait is a short one
            if let Some(event) = group.read().map_err(TrialError::Group)?.into_iter().next() {
                let filled = self.sample.fill();
                let verdict = if filled.is_ok() { Verdict::Allow } else { Verdict::Deny };
                let _ = group.ignore(&event.file); // asked again, it would be answered by the end of the group
                group.answer(event, verdict).map_err(TrialError::Group)?;
                let prepare = |source| TrialError::Prepare { dir: self.dir.to_owned(), source };
                return filled.map_err(prepare);
            }
            if over() {
                break;
            }
        }
        Err(TrialError::NotAsked)
    }

    fn compare(&self, read: io::Result<Vec<u8>>) -> Result<(), TrialError> {
        match read {
            Ok(read) if read == self.sample.content() => Ok(()),
            Ok(_) => Err(TrialError::Wrong),
            Err(error) => Err(TrialError::Read(error)),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    #[test]
    fn a_trial_leaves_nothing_and_ends_the_same_way_twice() {
        let dir = tempfile::tempdir_in("/var/tmp").unwrap();
        let (first, second) = (trial(dir.path()), trial(dir.path()));
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
        assert_eq!(first.is_ok(), second.is_ok());
        if let Err(why) = first {
            testkit::skip!(
                "no read path of the kernel's own here: {why}: {:?}",
                std::error::Error::source(&why)
            );
        }
    }

    #[test]
    fn a_directory_that_is_not_there_is_named() {
        let error = trial(Path::new("/nonexistent/x")).unwrap_err();
        assert!(error.to_string().contains("/nonexistent/x"), "{error}");
    }
}
