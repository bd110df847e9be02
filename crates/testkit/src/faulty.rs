//! An HTTP/1.1 server in memory that counts what it is asked and misbehaves on demand.
//!
//! It knows nothing of registries: a test puts bytes under paths, and rules in front of them. It runs on threads
//! of its own and uses only the standard library, so that it shares no bug with what it tests.
//!
//! ```
//! let server = testkit::faulty::Faulty::start();
//! server.put("/v2/app/blobs/sha256:00", "application/octet-stream", b"content");
//! server.fault("/v2/app/blobs/", testkit::faulty::Fault::Close { after: 3 }, 1);
//! assert_eq!(server.count("/v2/app/blobs/"), 0);
//! ```

use std::collections::{BTreeMap, HashMap};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::ops::Range;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

mod uploads;

/// A way to misbehave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Fault {
    /// Sends so many bytes of the body, then nothing, and keeps the connection open.
    Stall {
        /// Bytes sent before.
        after: usize,
    },
    /// Sends so many bytes of the body, and the rest once the server is healed.
    Pause {
        /// Bytes sent before.
        after: usize,
    },
    /// Sends so many bytes of the body, then closes the connection.
    Close {
        /// Bytes sent before.
        after: usize,
    },
    /// Closes the connection instead of answering.
    Hangup,
    /// Says the content has this length in all headers, and sends what there is.
    Length {
        /// The lie.
        says: u64,
    },
    /// Answers a range with the whole content and status 200.
    IgnoreRange,
    /// Answers with a range that begins so many bytes later than asked.
    ShiftRange {
        /// The distance.
        by: u64,
    },
    /// Answers with fewer bytes of the range than asked, correctly said.
    ShortRange {
        /// How many at most.
        len: u64,
    },
    /// Has other content than the other requests saw.
    Swap(Vec<u8>),
    /// Answers with this status; perhaps with `Retry-After`.
    Status {
        /// The status.
        code: u16,
        /// The value of `Retry-After`.
        retry_after: Option<String>,
    },
    /// Redirects to this place: a URL, or a path on this server.
    Redirect(String),
    /// Redirects to a place on this server that serves so many requests and then answers 403.
    Expiring {
        /// How many requests.
        uses: u32,
        /// Where it seems to be: `http://host:port` of this server by whatever name, or nothing.
        base: String,
    },
    /// Sends the body in pieces of this many bytes, each in a packet of its own.
    Drip {
        /// Bytes per piece.
        piece: usize,
    },
}

/// A request that came in.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Seen {
    /// The method.
    pub method: String,
    /// The path without its query.
    pub path: String,
    /// The query.
    pub query: String,
    /// The range asked for, end exclusive.
    pub range: Option<Range<u64>>,
    /// All headers, with names in lower case.
    pub headers: BTreeMap<String, String>,
    /// The body.
    pub body: Vec<u8>,
}

/// Who may read, and how they show it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Guard {
    /// Everybody.
    #[default]
    None,
    /// Whoever knows this `user:password`.
    Basic(String),
    /// Whoever shows a token from `/token`. The token counts up: `token-1`, `token-2`; only the last is good.
    Token {
        /// What `user:password` the token server wants, if any.
        user: Option<String>,
        /// `expires_in` of its answers, in seconds.
        expires_in: u64,
        /// What it answers instead of a token.
        broken: Option<String>,
    },
}

#[derive(Debug, Clone)]
struct Content {
    kind: String,
    bytes: Arc<[u8]>,
    headers: Vec<(String, String)>,
}

#[derive(Debug)]
struct Rule {
    prefix: String,
    fault: Fault,
    left: u32,
}

#[derive(Debug, Default)]
struct State {
    content: HashMap<String, Content>,
    rules: Vec<Rule>,
    seen: Vec<Seen>,
    guard: Guard,
    tokens: u32,
    signed: HashMap<String, (String, u32)>,
    in_flight: u32,
    peak: u32,
    held: bool,
    takes: bool,
}

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    changed: Condvar,
    stopped: AtomicBool,
    address: SocketAddr,
}

/// The server; stops when dropped.
#[derive(Debug)]
pub struct Faulty(Arc<Shared>);

impl Faulty {
    /// Starts it on a free loopback port.
    ///
    /// # Panics
    /// If there is no such port.
    #[expect(clippy::expect_used, reason = "a test without its server can only fail")]
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a free loopback port");
        let address = listener.local_addr().expect("the listener's address");
        let shared = Arc::new(Shared {
            state: Mutex::default(),
            changed: Condvar::new(),
            stopped: AtomicBool::new(false),
            address,
        });
        let server = Arc::clone(&shared);
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                if server.stopped.load(Ordering::SeqCst) {
                    return;
                }
                let server = Arc::clone(&server);
                std::thread::spawn(move || {
                    let _ = server.serve(stream); // the client learns of it
                });
            }
        });
        Self(shared)
    }

    /// Returns `127.0.0.1:port`.
    pub fn host(&self) -> String {
        self.0.address.to_string()
    }

    /// Puts content under a path, which may have a query; without one it is for all queries that have no content of their own.
    pub fn put(&self, path: &str, kind: &str, bytes: &[u8]) {
        let content = Content { kind: kind.into(), bytes: bytes.into(), headers: Vec::new() };
        self.0.lock().content.insert(path.into(), content);
    }

    /// Takes what is pushed from here on, as a registry does: blobs in one piece, and manifests.
    pub fn take_uploads(&self) {
        self.0.lock().takes = true;
    }

    /// Adds a header to the answers for a path that was put.
    pub fn header(&self, path: &str, name: &str, value: &str) {
        if let Some(content) = self.0.lock().content.get_mut(path) {
            content.headers.push((name.into(), value.into()));
        }
    }

    /// Misbehaves for the next so many requests whose path begins so. Rules are tried in order of entry.
    pub fn fault(&self, prefix: &str, fault: Fault, times: u32) {
        self.0.lock().rules.push(Rule { prefix: prefix.into(), fault, left: times });
    }

    /// Behaves from now on: forgets all rules.
    pub fn heal(&self) {
        self.0.lock().rules.clear();
        self.0.changed.notify_all();
    }

    /// Sets who may read.
    pub fn guard(&self, guard: Guard) {
        self.0.lock().guard = guard;
    }

    /// Makes the token that was given last worthless.
    pub fn revoke(&self) {
        self.0.lock().tokens += 1;
    }

    /// Returns all requests so far.
    pub fn seen(&self) -> Vec<Seen> {
        self.0.lock().seen.clone()
    }

    /// Returns how many requests came for paths that begin so.
    pub fn count(&self, prefix: &str) -> usize {
        self.0.lock().seen.iter().filter(|seen| seen.path.starts_with(prefix)).count()
    }

    /// Returns the most requests that were in progress at once.
    pub fn peak(&self) -> u32 {
        self.0.lock().peak
    }

    /// Answers no request from now on until [`Faulty::release`].
    pub fn hold(&self) {
        self.0.lock().held = true;
    }

    /// Answers all requests that were held.
    pub fn release(&self) {
        self.0.lock().held = false;
        self.0.changed.notify_all();
    }

    /// Waits until so many requests are in progress.
    pub fn wait_for(&self, in_flight: u32) {
        let mut state = self.0.lock();
        while state.in_flight < in_flight {
            state = self.0.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Drop for Faulty {
    fn drop(&mut self) {
        self.0.stopped.store(true, Ordering::SeqCst);
        self.release();
        let _ = TcpStream::connect(self.0.address); // wakes the listener so that it sees the flag
    }
}

/// An answer before faults of its transfer.
struct Answer {
    status: u16,
    headers: Vec<(String, String)>,
    body: Vec<u8>,
    /// What the headers say instead of the body's length.
    says: Option<u64>,
    transfer: Option<Fault>,
}

impl Answer {
    fn status(status: u16) -> Self {
        Self { status, headers: Vec::new(), body: Vec::new(), says: None, transfer: None }
    }

    fn with(mut self, name: &str, value: impl Into<String>) -> Self {
        self.headers.push((name.into(), value.into()));
        self
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn serve(&self, stream: TcpStream) -> io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut writer = stream;
        // A handshake of TLS. Whoever tries that first knows by such an answer what to try next.
        if reader.fill_buf()?.first() == Some(&0x16) {
            return writer.write_all(b"HTTP/1.1 400 Status\r\nContent-Length: 0\r\n\r\n");
        }
        while let Some(seen) = read_request(&mut reader)? {
            let head_only = seen.method == "HEAD";
            let answer = {
                let mut state = self.lock();
                state.seen.push(seen.clone());
                state.in_flight += 1;
                state.peak = state.peak.max(state.in_flight);
                self.changed.notify_all();
                while state.held {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                state.answer(&seen)
            };
            let result = match answer {
                Some(answer) => self.send(&mut writer, answer, head_only),
                None => Err(io::ErrorKind::ConnectionAborted.into()),
            };
            self.lock().in_flight -= 1;
            result?;
        }
        Ok(())
    }

    fn send(&self, writer: &mut TcpStream, answer: Answer, head_only: bool) -> io::Result<()> {
        let length = answer.says.unwrap_or(answer.body.len() as u64);
        let mut head = format!("HTTP/1.1 {} Status\r\nContent-Length: {length}\r\n", answer.status);
        for (name, value) in &answer.headers {
            head += &format!("{name}: {value}\r\n");
        }
        writer.write_all(format!("{head}\r\n").as_bytes())?;
        if head_only {
            return Ok(());
        }
        let cut = |after: usize| &answer.body[..after.min(answer.body.len())];
        match answer.transfer {
            Some(Fault::Close { after }) => {
                writer.write_all(cut(after))?;
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Some(Fault::Stall { after }) => {
                writer.write_all(cut(after))?;
                // Until the client gives up or the server ends.
                writer.set_read_timeout(Some(Duration::from_millis(20)))?;
                while !self.stopped.load(Ordering::SeqCst) {
                    match writer.read(&mut [0; 16]) {
                        Ok(0) => break,
                        Err(error)
                            if !matches!(
                                error.kind(),
                                io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut
                            ) =>
                        {
                            break;
                        }
                        _ => {}
                    }
                }
                return Err(io::ErrorKind::ConnectionAborted.into());
            }
            Some(Fault::Pause { after }) => {
                writer.write_all(cut(after))?;
                let mut state = self.lock();
                while !state.rules.is_empty() && !self.stopped.load(Ordering::SeqCst) {
                    state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                drop(state);
                writer.write_all(&answer.body[cut(after).len()..])?;
            }
            Some(Fault::Drip { piece }) => {
                for piece in answer.body.chunks(piece.max(1)) {
                    writer.write_all(piece)?;
                    writer.flush()?;
                }
            }
            _ => writer.write_all(&answer.body)?,
        }
        // What was promised and not sent can only be shown by closing.
        if answer.says.is_some_and(|says| says != answer.body.len() as u64) {
            return Err(io::ErrorKind::ConnectionAborted.into());
        }
        Ok(())
    }
}

impl State {
    /// Returns the answer, or nothing where the connection is to be closed.
    fn answer(&mut self, seen: &Seen) -> Option<Answer> {
        if seen.path == "/token" {
            return Some(self.token(seen));
        }
        let signed = seen.path.strip_prefix("/signed/").map(|_| seen.path.clone());
        if signed.is_none()
            && let Some(refusal) = self.refuse(seen)
        {
            return Some(refusal);
        }
        let mut path = seen.path.clone();
        if let Some(signed) = signed {
            match self.signed.get_mut(&signed) {
                Some((target, left)) if *left > 0 => {
                    *left -= 1;
                    path = target.clone();
                }
                _ => return Some(Answer::status(403)),
            }
        }
        let rule = self.rules.iter_mut().find(|rule| rule.left > 0 && seen.path.starts_with(&rule.prefix));
        let fault = rule.map(|rule| {
            rule.left -= 1;
            rule.fault.clone()
        });
        match fault {
            Some(Fault::Hangup) => None,
            Some(Fault::Status { code, retry_after }) => {
                let answer = Answer::status(code);
                Some(match retry_after {
                    Some(value) => answer.with("Retry-After", value),
                    None => answer,
                })
            }
            Some(Fault::Redirect(to)) => Some(Answer::status(307).with("Location", to)),
            Some(Fault::Expiring { uses, base }) => {
                let place = format!("/signed/{}{path}", self.signed.len());
                self.signed.insert(place.clone(), (path, uses));
                Some(Answer::status(307).with("Location", format!("{base}{place}")))
            }
            other => Some(self.taken(seen).unwrap_or_else(|| self.content(seen, &path, other))),
        }
    }

    fn content(&self, seen: &Seen, path: &str, fault: Option<Fault>) -> Answer {
        let asked = self.content.get(&format!("{path}?{}", seen.query)).or_else(|| self.content.get(path));
        let Some(content) = asked else { return Answer::status(404) };
        let bytes: &[u8] = match &fault {
            Some(Fault::Swap(other)) => other,
            _ => &content.bytes,
        };
        let len = bytes.len() as u64;
        let total = if let Some(Fault::Length { says }) = fault { says } else { len };
        let mut answer = Answer::status(200);
        let range = seen.range.clone().filter(|_| fault != Some(Fault::IgnoreRange));
        match range {
            Some(range) if range.start >= len => {
                return Answer::status(416).with("Content-Range", format!("bytes */{total}"));
            }
            Some(range) => {
                let (mut start, mut end) = (range.start, range.end.min(len));
                match fault {
                    Some(Fault::ShiftRange { by }) => {
                        (start, end) = ((start + by).min(len - 1), (end + by).min(len))
                    }
                    Some(Fault::ShortRange { len }) => end = end.min(start + len),
                    _ => {}
                }
                answer =
                    Answer::status(206).with("Content-Range", format!("bytes {start}-{}/{total}", end - 1));
                answer.body = bytes[index(start)..index(end)].to_vec();
            }
            None => {
                answer.body = bytes.to_vec();
                answer.says = (total != len).then_some(total);
            }
        }
        answer = answer.with("Content-Type", &*content.kind);
        answer.headers.extend(content.headers.iter().cloned());
        answer.transfer = fault;
        answer
    }

    fn refuse(&self, seen: &Seen) -> Option<Answer> {
        let shown = seen.headers.get("authorization").map(String::as_str).unwrap_or_default();
        match &self.guard {
            Guard::None => None,
            Guard::Basic(user) => {
                let good = shown == format!("Basic {}", crate::base64::encode(user.as_bytes()));
                (!good).then(|| Answer::status(401).with("WWW-Authenticate", "Basic realm=\"test\""))
            }
            Guard::Token { .. } => {
                let good = self.tokens > 0 && shown == format!("Bearer token-{}", self.tokens);
                let host = seen.headers.get("host").map(String::as_str).unwrap_or_default();
                let challenge = format!("Bearer realm=\"http://{host}/token\",service=\"test\"");
                (!good).then(|| Answer::status(401).with("WWW-Authenticate", challenge))
            }
        }
    }

    fn token(&mut self, seen: &Seen) -> Answer {
        let Guard::Token { user, expires_in, broken } = self.guard.clone() else {
            return Answer::status(404);
        };
        if let Some(user) = user {
            let wanted = format!("Basic {}", crate::base64::encode(user.as_bytes()));
            if seen.headers.get("authorization") != Some(&wanted) {
                return Answer::status(401);
            }
        }
        let mut answer = Answer::status(200).with("Content-Type", "application/json");
        answer.body = match broken {
            Some(text) => text.into_bytes(),
            None => {
                self.tokens += 1;
                format!("{{\"token\":\"token-{}\",\"expires_in\":{expires_in}}}", self.tokens).into_bytes()
            }
        };
        answer
    }
}

fn index(n: u64) -> usize {
    usize::try_from(n).unwrap_or(usize::MAX)
}

fn read_request(reader: &mut impl BufRead) -> io::Result<Option<Seen>> {
    let mut line = String::new();
    if reader.read_line(&mut line)? == 0 {
        return Ok(None);
    }
    let mut words = line.split_ascii_whitespace();
    let (Some(method), Some(target)) = (words.next(), words.next()) else {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "no HTTP request"));
    };
    let (path, query) = target.split_once('?').unwrap_or((target, ""));
    let mut headers = BTreeMap::new();
    loop {
        let mut line = String::new();
        reader.read_line(&mut line)?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        headers.insert(name.to_ascii_lowercase(), value.trim().to_owned());
    }
    let mut body = vec![0; headers.get("content-length").and_then(|text| text.parse().ok()).unwrap_or(0)];
    reader.read_exact(&mut body)?;
    let range = headers.get("range").and_then(|text| {
        let (first, last) = text.strip_prefix("bytes=")?.split_once('-')?;
        Some(first.parse().ok()?..last.parse::<u64>().map_or(u64::MAX, |last| last + 1))
    });
    Ok(Some(Seen { method: method.into(), path: path.into(), query: query.into(), range, headers, body }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(server: &Faulty, head: &str) -> String {
        let mut stream = TcpStream::connect(server.host()).unwrap();
        stream.write_all(format!("{head}\r\n\r\n").as_bytes()).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let mut text = String::new();
        let _ = stream.read_to_string(&mut text);
        text
    }

    #[test]
    fn it_serves_counts_and_misbehaves() {
        let server = Faulty::start();
        server.put("/a", "text/plain", b"0123456789");
        assert!(ask(&server, "GET /a HTTP/1.1").ends_with("\r\n\r\n0123456789"));
        let part = ask(&server, "GET /a?x=1 HTTP/1.1\r\nRange: bytes=2-4");
        assert!(
            part.starts_with("HTTP/1.1 206")
                && part.contains("bytes 2-4/10")
                && part.ends_with("\r\n\r\n234"),
            "{part}"
        );
        assert!(ask(&server, "GET /b HTTP/1.1").starts_with("HTTP/1.1 404"));
        server.fault("/a", Fault::Close { after: 3 }, 1);
        assert!(ask(&server, "GET /a HTTP/1.1").ends_with("\r\n\r\n012"));
        server.fault("/a", Fault::IgnoreRange, 1);
        assert!(ask(&server, "GET /a HTTP/1.1\r\nRange: bytes=2-4").starts_with("HTTP/1.1 200"));
        server.fault("/a", Fault::Expiring { uses: 1, base: String::new() }, 1);
        assert!(ask(&server, "GET /a HTTP/1.1").contains("Location: /signed/0/a"));
        assert!(ask(&server, "GET /signed/0/a HTTP/1.1").ends_with("0123456789"));
        assert!(ask(&server, "GET /signed/0/a HTTP/1.1").starts_with("HTTP/1.1 403"));
        assert_eq!((server.count("/a"), server.count("/signed"), server.count("/")), (5, 2, 8));
        assert_eq!(server.seen()[1].range, Some(2..5));
    }
}
