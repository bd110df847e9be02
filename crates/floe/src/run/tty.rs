//! A terminal for the container: the runtime makes it and sends us the other side of it.

use std::io::{self, IoSliceMut, IsTerminal};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow};
use rustix::net::{RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, recvmsg};
use rustix::termios::{OptionalActions, Termios, tcgetattr, tcgetwinsize, tcsetattr, tcsetwinsize};

use crate::exit::misused;

/// Where the runtime sends the terminal to. The socket file goes with it.
pub(super) struct ConsoleSocket {
    listener: UnixListener,
    path: PathBuf,
}

impl ConsoleSocket {
    /// Listens at a path, which must be shorter than 108 bytes.
    pub(super) fn bind(path: PathBuf) -> Result<Self> {
        if !io::stdin().is_terminal() {
            return Err(misused("--tty needs a terminal as standard input"));
        }
        let listener =
            UnixListener::bind(&path).with_context(|| format!("listening on {}", path.display()))?;
        Ok(Self { listener, path })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Takes the terminal. The runtime has ended by then, so it was sent or never will be.
    pub(super) fn receive(self) -> Result<OwnedFd> {
        self.listener.set_nonblocking(true)?;
        let (stream, _) = self.listener.accept().context("the runtime sent no terminal")?;
        let mut name = [0; 4096]; // the terminal's name comes along; nobody needs it
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut control = RecvAncillaryBuffer::new(&mut space);
        recvmsg(&stream, &mut [IoSliceMut::new(&mut name)], &mut control, RecvFlags::CMSG_CLOEXEC)
            .context("receiving the container's terminal")?;
        control
            .drain()
            .find_map(|message| match message {
                RecvAncillaryMessage::ScmRights(mut fds) => fds.next(),
                _ => None,
            })
            .ok_or_else(|| anyhow!("the runtime sent no terminal"))
    }
}

impl Drop for ConsoleSocket {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path); // in a directory that does not outlive the machine's uptime
    }
}

/// Our terminal, passing every key on untouched; as it was before when this goes.
pub(super) struct RawTerminal {
    before: Termios,
}

impl RawTerminal {
    pub(super) fn enter() -> Result<Self> {
        let before = tcgetattr(io::stdin()).context("reading the terminal's settings")?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(io::stdin(), OptionalActions::Now, &raw).context("setting the terminal to raw")?;
        Ok(Self { before })
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin(), OptionalActions::Now, &self.before); // it is gone, or was never changed
    }
}

/// Gives the container's terminal the size of ours.
pub(super) fn copy_size(to: &impl AsFd) {
    if let Ok(size) = tcgetwinsize(io::stdin()) {
        let _ = tcsetwinsize(to, size); // a wrong size is ugly, not wrong
    }
}
