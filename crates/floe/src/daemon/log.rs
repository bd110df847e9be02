//! The daemon's log: `daemon.log` beside its socket, which is the daemon's standard error.
//!
//! It is turned over when it has [`LIMIT`] bytes; of the older ones one is kept, `daemon.log.1`. A line that is the
//! same as the one before is counted instead of written. A daemon that is killed between the two steps of turning over
//! leaves the older file only, and the next one makes its own.

use std::fs::{File, OpenOptions};
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::Context;

/// Bytes after which the log is turned over: days of a daemon that has something to complain of, and little beside a
/// store. With the older one twice that.
pub const LIMIT: u64 = 8 << 20;

/// How long a line that comes again and again is only counted.
const COUNTING: Duration = Duration::from_secs(60);

/// Returns where the log of a store's daemon is.
pub fn path(root: &Path) -> anyhow::Result<PathBuf> {
    Ok(super::run_dir(root)?.join("daemon.log"))
}

/// Returns the log as the standard error of a daemon that is about to start.
pub fn open(root: &Path) -> anyhow::Result<Stdio> {
    let path = path(root)?;
    let dir = super::run_dir(root)?;
    crate::home::make_run(&dir)?;
    let opened = append(&path).and_then(|file| match file.metadata()?.len() {
        // By a daemon that ends before it has logged a line, over and over.
        LIMIT.. => turn(&path),
        _ => Ok(file),
    });
    Ok(opened.with_context(|| format!("opening {}", path.display()))?.into())
}

/// Where the daemon's log lines go: its standard error, which is turned over if it is the log.
pub struct Log {
    out: File,
    /// The log's name, if this is it and not what a user has chosen.
    path: Option<PathBuf>,
    /// Whether the process's standard error is moved along.
    with_stderr: bool,
    limit: u64,
    /// What of a line has come.
    line: Vec<u8>,
    /// What was written last, without its time; how often it has come again, and since when that was counted.
    last: Vec<u8>,
    again: u64,
    since: Instant,
}

impl Log {
    /// Returns the log of this process.
    pub fn stderr(root: &Path) -> anyhow::Result<Self> {
        let out = io::stderr().as_fd().try_clone_to_owned().context("sharing the standard error")?;
        let path = path(root)?;
        let mut log = Self::new(File::from(out), None, LIMIT);
        log.with_stderr = true;
        log.path = Some(path).filter(|path| is_same(&log.out, path));
        Ok(log)
    }

    fn new(out: File, path: Option<PathBuf>, limit: u64) -> Self {
        let (line, last) = (Vec::new(), Vec::new());
        Self { out, path, with_stderr: false, limit, line, last, again: 0, since: Instant::now() }
    }

    fn log(&mut self, line: &[u8]) -> io::Result<()> {
        // The time is the first word.
        let text = line.iter().position(|&byte| byte == b' ').map_or(line, |at| &line[at..]);
        if text == self.last {
            self.again += 1;
            return if self.since.elapsed() < COUNTING { Ok(()) } else { self.say_again() };
        }
        self.say_again()?;
        self.last.clear();
        self.last.extend_from_slice(text);
        self.out.write_all(line)?;
        // A log that cannot be turned over grows; the line is written.
        let _ = self.turn_if_long();
        Ok(())
    }

    fn say_again(&mut self) -> io::Result<()> {
        self.since = Instant::now();
        match std::mem::take(&mut self.again) {
            0 => Ok(()),
            times => self.out.write_all(format!("(the line above came {times} more times)\n").as_bytes()),
        }
    }

    fn turn_if_long(&mut self) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        if self.out.metadata()?.len() < self.limit {
            return Ok(());
        }
        let fresh = turn(path)?;
        if self.with_stderr {
            rustix::stdio::dup2_stderr(&fresh)?; // what a panic says goes there too
        }
        self.out = fresh;
        self.last.clear(); // so that what is counted from here on is in this file once
        Ok(())
    }
}

impl Write for Log {
    fn write(&mut self, text: &[u8]) -> io::Result<usize> {
        self.line.extend_from_slice(text);
        if text.ends_with(b"\n") {
            let line = std::mem::take(&mut self.line);
            // Who logs has something better to do than to fail because the log's disk is full.
            let _ = self.log(&line);
        }
        Ok(text.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = self.say_again(); // as for any line
    }
}

/// Gives the log its other name, in place of the older one, and begins anew.
fn turn(path: &Path) -> io::Result<File> {
    match std::fs::rename(path, path.with_extension("log.1")) {
        // Nothing has this name after an attempt that ended here, or when somebody has tidied up.
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => append(path),
    }
}

fn append(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(0o600).open(path)
}

fn is_same(file: &File, path: &Path) -> bool {
    let (Ok(ours), Ok(named)) = (file.metadata(), std::fs::metadata(path)) else { return false };
    (ours.dev(), ours.ino()) == (named.dev(), named.ino())
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Place {
        _dir: tempfile::TempDir,
        path: PathBuf,
    }

    impl Place {
        fn new() -> Self {
            let dir = tempfile::tempdir().unwrap();
            Self { path: dir.path().join("daemon.log"), _dir: dir }
        }

        fn log(&self, limit: u64) -> Log {
            Log::new(append(&self.path).unwrap(), Some(self.path.clone()), limit)
        }

        fn lines(&self, name: &str) -> Vec<String> {
            let text = std::fs::read_to_string(self.path.with_file_name(name)).unwrap_or_default();
            text.lines().map(str::to_owned).collect()
        }
    }

    #[test]
    fn no_file_has_much_more_than_the_limit_and_the_latest_lines_are_there() {
        let place = Place::new();
        let mut log = place.log(100);
        let line = |n: u32| format!("time line {n:05}");
        for n in 0..64 {
            writeln!(log, "{}", line(n)).unwrap();
        }
        let (older, newer) = (place.lines("daemon.log.1"), place.lines("daemon.log"));
        // 16 bytes a line: the seventh reaches the limit.
        assert_eq!(older, (56..63).map(line).collect::<Vec<_>>());
        assert_eq!(newer, [line(63)]);
        assert_eq!(std::fs::read_dir(place.path.parent().unwrap()).unwrap().count(), 2);
    }

    #[test]
    fn a_log_whose_name_is_gone_or_taken_goes_on() {
        let place = Place::new();
        let mut log = place.log(15);
        std::fs::remove_file(&place.path).unwrap();
        writeln!(log, "time into the void").unwrap();
        writeln!(log, "time here").unwrap();
        assert_eq!(place.lines("daemon.log"), ["time here"]);
        // The older one's name is a directory: nothing can be turned over, and nothing is lost.
        std::fs::create_dir_all(place.path.with_file_name("daemon.log.1/full")).unwrap();
        for n in 0..3 {
            writeln!(log, "time {n}").unwrap();
        }
        assert_eq!(place.lines("daemon.log"), ["time here", "time 0", "time 1", "time 2"]);
    }

    #[test]
    fn a_log_that_cannot_be_written_fails_nobody() {
        let mut log = Log::new(OpenOptions::new().write(true).open("/dev/full").unwrap(), None, LIMIT);
        for n in [1, 2, 2, 3] {
            writeln!(log, "time {n}").unwrap();
        }
    }

    #[test]
    fn what_comes_again_is_counted() {
        let place = Place::new();
        let mut log = place.log(LIMIT);
        for (n, text) in ["a b", "c", "c", "c", "c", "a b", "a b", "d"].into_iter().enumerate() {
            writeln!(log, "{n} {text}").unwrap();
        }
        let more = |times| format!("(the line above came {times} more times)");
        let wanted = ["0 a b", "1 c", &more(3), "5 a b", &more(1), "7 d"];
        assert_eq!(place.lines("daemon.log"), wanted);

        // For as long as it goes on it is told now and then.
        log.since = log.since.checked_sub(COUNTING).unwrap();
        writeln!(log, "8 d").unwrap();
        writeln!(log, "9 d").unwrap();
        assert_eq!(place.lines("daemon.log")[6..], [more(1)]);
    }
}
