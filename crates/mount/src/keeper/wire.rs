//! What daemon and keeper say to each other: one JSON document a packet, with at most one descriptor beside it.
//!
//! `SOCK_SEQPACKET` keeps packets whole. The two may be of different versions: a keeper lives as long as its
//! mounts. [`VERSION`] is compared first.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::net::{
    RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage,
    SendFlags, recvmsg, sendmsg,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

/// Version of this protocol.
pub(super) const VERSION: u32 = 1;

/// Longest packet: the names of a thousand mounts.
const PACKET: usize = 64 << 10;

/// From the daemon.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum ToKeeper {
    /// First word of a daemon. Answered by [`FromKeeper::Welcome`].
    Hello { version: u32, deadline: Duration, revive: Vec<String> },
    /// The answer to an event.
    Answer { id: u64, verdict: Verdict },
    /// Ask before reads through the mount whose root comes along.
    Watch { name: String },
    /// Hold the descriptor that comes along.
    Keep { name: String },
    /// Give a descriptor back, and hold it still.
    Fetch { name: String },
    /// Let go of a mount or a descriptor.
    Release { name: String },
    /// This daemon ends, and another one comes by itself.
    ExpectAnother,
    /// Let go of everything and end.
    End,
}

/// From the keeper.
#[derive(Debug, Serialize, Deserialize)]
#[serde(tag = "say", rename_all = "kebab-case")]
pub(super) enum FromKeeper {
    /// Answer to [`ToKeeper::Hello`]: the names of all that is held.
    Welcome { version: u32, pid: u32, held: Vec<String> },
    /// Somebody waits.
    Asked(Asked),
    /// A call has ended, with this errno or 0.
    Done { errno: i32 },
}

/// A reader that waits for bytes of a file.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Asked {
    /// Names it in the answer.
    pub id: u64,
    /// The file's path, as the kernel shows it to the keeper.
    pub path: String,
    /// First byte that is read.
    pub offset: u64,
    /// How many bytes.
    pub count: u64,
    /// The thread that waits.
    pub thread: i32,
    /// How long it has waited already.
    pub waited: Duration,
}

/// What becomes of a reader.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// The file is whole: it reads on, and nobody is asked about this file again.
    Whole,
    /// It gets `EIO`.
    Failed,
}

/// Sends a packet; `WouldBlock` if the other side has too much unread.
pub(super) fn send(
    socket: impl AsFd,
    message: &impl Serialize,
    with: Option<BorrowedFd<'_>>,
    flags: SendFlags,
) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let with = with.as_slice();
    if !with.is_empty() && !control.push(SendAncillaryMessage::ScmRights(with)) {
        return Err(io::Error::other("no room for a descriptor"));
    }
    loop {
        match sendmsg(&socket, &[IoSlice::new(&bytes)], &mut control, flags | SendFlags::NOSIGNAL) {
            Err(rustix::io::Errno::INTR) => {}
            sent => return sent.map(drop).map_err(Into::into),
        }
    }
}

/// Receives a packet, or nothing if the other side has closed.
pub(super) fn receive<T: DeserializeOwned>(
    socket: impl AsFd,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Option<OwnedFd>)>> {
    buffer.resize(PACKET, 0);
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = loop {
        let flags = RecvFlags::CMSG_CLOEXEC;
        match recvmsg(&socket, &mut [IoSliceMut::new(buffer)], &mut control, flags) {
            Err(rustix::io::Errno::INTR) => {}
            received => break received?,
        }
    };
    let mut with = None;
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(descriptors) = message {
            with = descriptors.last(); // one was sent; should there be more they are closed
        }
    }
    if received.bytes == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..received.bytes])?, with)))
}
