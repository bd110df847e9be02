//! When a container counts as ready: it printed something, a port answers, or it ended.
//!
//! The moment is taken where it is noticed, so it does not depend on who is told when.

use std::fmt;
use std::fs::File;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd};
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

/// Between two attempts on a port. Short beside every start, long beside a refused connect on loopback.
const BETWEEN: Duration = Duration::from_millis(3);

/// What one attempt on a port may take. Loopback answers at once or is overwhelmed.
const ATTEMPT: Duration = Duration::from_millis(500);

/// Longest text to look for, in bytes.
const TEXT: usize = 4096;

/// What makes a container ready.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ReadyWhen {
    /// A line on standard output contains this text.
    Line(String),
    /// This TCP port on loopback accepts a connection.
    Port(u16),
    /// It ends.
    Exit,
}

impl FromStr for ReadyWhen {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            None if text == "exit" => Ok(Self::Exit),
            Some(("port", number)) => match number.parse() {
                Ok(port) if port > 0 => Ok(Self::Port(port)),
                _ => Err(format!("{number:?} is not a port: use 1 to 65535")),
            },
            Some(("line", "")) => Err("line: needs a text to look for".into()),
            Some(("line", line)) if line.len() > TEXT => Err(format!("line: takes at most {TEXT} bytes")),
            Some(("line", line)) if line.contains('\n') => Err("line: looks for text within one line".into()),
            Some(("line", line)) => Ok(Self::Line(line.into())),
            _ => Err(format!("{text:?} is not line:TEXT, port:N or exit")),
        }
    }
}

impl fmt::Display for ReadyWhen {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Line(text) => write!(f, "line:{text}"),
            Self::Port(port) => write!(f, "port:{port}"),
            Self::Exit => f.write_str("exit"),
        }
    }
}

/// The moment a container became ready.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Ready {
    /// When it was noticed.
    pub at: Instant,
}

/// Finds a text in a stream that arrives in pieces.
#[derive(Debug, Clone)]
pub(super) struct Search {
    text: Vec<u8>,
    /// The end of what came before, shorter than the text: a match may have begun there.
    tail: Vec<u8>,
}

impl Search {
    pub(super) fn new(text: &str) -> Self {
        Self { text: text.as_bytes().to_vec(), tail: Vec::new() }
    }

    /// Takes the next bytes and says whether the text ended in them. It holds no line end, so neither does a match.
    pub(super) fn feed(&mut self, bytes: &[u8]) -> bool {
        let keep = self.text.len().saturating_sub(1);
        // Only matches across the border need the copy; those inside are looked for in place.
        let mut border = std::mem::take(&mut self.tail);
        border.extend_from_slice(&bytes[..bytes.len().min(keep)]);
        let found = contains(&border, &self.text) || contains(bytes, &self.text);
        let recent = if bytes.len() >= keep { bytes } else { &border };
        self.tail = recent[recent.len().saturating_sub(keep)..].to_vec();
        found
    }
}

fn contains(bytes: &[u8], text: &[u8]) -> bool {
    let Some(first) = text.first() else { return true };
    let mut rest = bytes;
    while let Some(at) = rest.iter().position(|byte| byte == first) {
        rest = &rest[at..];
        if rest.starts_with(text) {
            return true;
        }
        rest = &rest[1..];
    }
    false
}

/// Waits until a port answers; `None` when `until` becomes readable or hangs up first.
///
/// With `network` the calling thread moves there for good: give it a thread of its own.
pub(super) fn wait_for_port(
    port: u16,
    network: Option<File>,
    until: BorrowedFd<'_>,
) -> Result<Option<Ready>> {
    if let Some(network) = network {
        move_into_link_name_space(network.as_fd(), Some(LinkNameSpaceType::Network))
            .context("entering the container's network")?;
    }
    let pause = Timespec { tv_sec: 0, tv_nsec: i64::from(BETWEEN.subsec_nanos()) };
    loop {
        if answers(port) {
            return Ok(Some(Ready { at: Instant::now() }));
        }
        let mut ended = [PollFd::new(&until, PollFlags::IN)];
        match poll(&mut ended, Some(&pause)) {
            Ok(0) | Err(rustix::io::Errno::INTR) => {}
            Ok(_) => return Ok(None),
            Err(error) => return Err(error).context("waiting for the container"),
        }
    }
}

/// Says whether somebody accepts connections on this port of loopback.
pub(super) fn answers(port: u16) -> bool {
    [SocketAddr::from((Ipv4Addr::LOCALHOST, port)), SocketAddr::from((Ipv6Addr::LOCALHOST, port))].iter().any(
        |address| match TcpStream::connect_timeout(address, ATTEMPT) {
            // A port of the ephemeral range can be connected to itself while nobody listens.
            Ok(stream) => stream.local_addr().ok() != stream.peer_addr().ok(),
            Err(_) => false,
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::net::TcpListener;

    #[test]
    fn conditions_are_parsed_at_the_door() {
        for good in ["line:READY", "line:a:b", "line: ", "port:1", "port:65535", "exit"] {
            assert_eq!(good.parse::<ReadyWhen>().unwrap().to_string(), good);
        }
        for bad in
            ["", "line", "line:", "line:a\nb", "port:", "port:0", "port:65536", "port:x", "exit:0", "http:80"]
        {
            assert!(bad.parse::<ReadyWhen>().is_err(), "{bad:?}");
        }
        assert!(format!("line:{}", "x".repeat(4096)).parse::<ReadyWhen>().is_ok());
        assert!(format!("line:{}", "x".repeat(4097)).parse::<ReadyWhen>().is_err());
    }

    #[test]
    fn a_text_is_found_however_it_is_cut() {
        let stream = b"aaREREADREADYb";
        for size in 1..=stream.len() {
            let mut search = Search::new("READY");
            let found: Vec<bool> = stream.chunks(size).map(|piece| search.feed(piece)).collect();
            let expected = (stream.len() - 2) / size; // the piece with the final Y
            assert_eq!(found.iter().position(|found| *found), Some(expected), "pieces of {size}");
        }
        for (text, stream, found) in [("R", "xR", true), ("READY", "READ\nY", false), ("aab", "aaab", true)] {
            for size in 1..=stream.len() {
                let mut search = Search::new(text);
                let any = stream.as_bytes().chunks(size).any(|piece| search.feed(piece));
                assert_eq!(any, found, "{text} in {stream:?} by {size}");
            }
        }
    }

    #[test]
    fn a_listening_port_answers() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(answers(port));
        let (never, _open) = std::io::pipe().unwrap();
        assert!(wait_for_port(port, None, never.as_fd()).unwrap().is_some());
        drop(listener);
        assert!(!answers(port));
    }

    #[test]
    fn waiting_ends_with_the_container() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let (ended, open) = std::io::pipe().unwrap();
        drop(open);
        assert_eq!(wait_for_port(port, None, ended.as_fd()).unwrap(), None);
    }
}
