//! The container's standard streams, pumped through pipes.
//!
//! The container never gets our own descriptors: the runtime gives its streams to the container's user, and
//! that would change the owner of the user's log file or terminal. A pipe also lets us look for a line.
//! Nothing is buffered: what arrives is written on before more is read.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// What one read takes: the size of a pipe.
const PIECE: usize = 64 << 10;

/// Between two looks at a terminal that is somebody else's at the moment.
const BACKGROUND: Timespec = Timespec { tv_sec: 0, tv_nsec: 100_000_000 };

/// A thread that copies one stream.
pub(super) struct Pump {
    thread: Option<JoinHandle<()>>,
    /// Its end tells the thread to stop.
    stop: Option<io::PipeWriter>,
}

/// Which way a stream goes: what is left in it when the container ends matters on the way out only.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Way {
    In,
    Out,
}

impl Pump {
    /// Copies the container's output until it ends, showing each piece to `seen` after it was written.
    pub(super) fn output(
        from: OwnedFd,
        to: OwnedFd,
        seen: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        Self::start(Way::Out, from, to, seen)
    }

    /// Copies our input to the container until either ends.
    pub(super) fn input(from: OwnedFd, to: OwnedFd) -> io::Result<Self> {
        Self::start(Way::In, from, to, |_| {})
    }

    fn start(
        way: Way,
        from: OwnedFd,
        to: OwnedFd,
        mut seen: impl FnMut(&[u8]) + Send + 'static,
    ) -> io::Result<Self> {
        let (stopped, stop) = io::pipe()?;
        let name = if way == Way::In { "stdin" } else { "output" };
        let thread = std::thread::Builder::new().name(name.into()).spawn(move || {
            copy(way, &mut File::from(from), &mut File::from(to), stopped.as_fd(), &mut seen)
        })?;
        Ok(Self { thread: Some(thread), stop: Some(stop) })
    }

    /// Copies what is there already, then ends.
    pub(super) fn finish(self) {
        drop(self);
    }
}

impl Drop for Pump {
    fn drop(&mut self) {
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join(); // a panic was shown when it happened
        }
    }
}

fn copy(way: Way, from: &mut File, to: &mut File, stopped: BorrowedFd<'_>, seen: &mut impl FnMut(&[u8])) {
    // The container's own terminal, seen from our side, is one too; but reading that stops nobody.
    let ours = way == Way::In && rustix::termios::isatty(&from);
    let mut piece = vec![0; PIECE];
    loop {
        match next(way, from.as_fd(), stopped, ours) {
            Next::Read => {}
            Next::Stop => return,
        }
        let length = match from.read(&mut piece) {
            Ok(0) => return,
            Ok(length) => length,
            Err(error) if matches!(error.kind(), io::ErrorKind::Interrupted | io::ErrorKind::WouldBlock) => {
                continue;
            }
            Err(_) => return, // a terminal whose other side is gone says EIO: its way to say end
        };
        // The reader is gone: closing our side is how the writer learns that.
        if write_all(to, &piece[..length]).is_err() {
            return;
        }
        seen(&piece[..length]);
    }
}

enum Next {
    Read,
    Stop,
}

/// Waits until there is something to read. When told to stop, output that is there is still read.
fn next(way: Way, from: BorrowedFd<'_>, stopped: BorrowedFd<'_>, ours: bool) -> Next {
    loop {
        let mut fds = [PollFd::new(&from, PollFlags::IN), PollFd::new(&stopped, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) => {}
            Err(rustix::io::Errno::INTR) => continue,
            Err(_) => return Next::Stop,
        }
        let (readable, stop) = (!fds[0].revents().is_empty(), !fds[1].revents().is_empty());
        match (readable, stop) {
            // Reading a terminal from the background would stop this whole process.
            (true, false) if ours && !in_foreground(from) => {
                let mut fds = [PollFd::new(&stopped, PollFlags::IN)];
                let _ = poll(&mut fds, Some(&BACKGROUND)); // interrupted or not, the next round looks again
            }
            (_, true) if way == Way::In => return Next::Stop,
            (true, _) => return Next::Read,
            (false, true) => return Next::Stop,
            (false, false) => {}
        }
    }
}

fn in_foreground(terminal: BorrowedFd<'_>) -> bool {
    match rustix::termios::tcgetpgrp(terminal) {
        Ok(group) => group == rustix::process::getpgrp(),
        Err(_) => true, // no job control on it, so nobody stops us
    }
}

/// Our own output may be in non-blocking mode, set by whoever shares it.
fn write_all(to: &mut File, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        match to.write(bytes) {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(length) => bytes = &bytes[length..],
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                let mut fds = [PollFd::new(&*to, PollFlags::OUT)];
                match poll(&mut fds, None) {
                    Ok(_) | Err(rustix::io::Errno::INTR) => {}
                    Err(error) => return Err(error.into()),
                }
            }
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::mpsc::channel;

    #[test]
    fn a_pump_copies_at_once_and_to_the_end() {
        let (from, mut into) = io::pipe().unwrap();
        let (mut out, to) = io::pipe().unwrap();
        let (sender, seen) = channel();
        let pump =
            Pump::output(from.into(), to.into(), move |bytes| sender.send(bytes.to_vec()).unwrap()).unwrap();
        into.write_all(b"no line end").unwrap();
        assert_eq!(seen.recv().unwrap(), b"no line end");
        into.write_all(b", more").unwrap();
        drop(into);
        pump.finish();
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "no line end, more");
    }

    #[test]
    fn a_stopped_pump_takes_what_is_there() {
        let (from, mut into) = io::pipe().unwrap();
        let (mut out, to) = io::pipe().unwrap();
        into.write_all(b"last words").unwrap();
        let pump = Pump::output(from.into(), to.into(), |_| {}).unwrap();
        pump.finish(); // the writing side is still open, as with a child that outlives its parent
        let mut text = String::new();
        out.read_to_string(&mut text).unwrap();
        assert_eq!(text, "last words");
        drop(into);
    }

    #[test]
    fn the_writer_learns_that_nobody_reads() {
        let (from, mut into) = io::pipe().unwrap();
        let (out, to) = io::pipe().unwrap();
        drop(out);
        let pump = Pump::output(from.into(), to.into(), |_| {}).unwrap();
        into.write_all(b"x").unwrap();
        let error = loop {
            if let Err(error) = into.write_all(b"y") {
                break error;
            }
        };
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
        pump.finish();
    }
}
