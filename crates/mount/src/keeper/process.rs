//! The keeper's loop: one thread, no memory that grows but with what it holds.

use std::collections::{BTreeMap, VecDeque};
use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mm::{MlockAllFlags, mlockall};
use rustix::net::{
    AddressFamily, SendFlags, SocketAddrUnix, SocketFlags, SocketType, accept_with, bind, listen, socket_with,
};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use sys::fanotify::{Event, Group, Verdict as Answer};

use super::unserved::Unserved;
use super::waiting::Waiting;
use super::wire::{self, Asked, FromKeeper, ToKeeper, VERSION, Verdict};

/// Descriptors that we ask for: one for each reader that waits, one for each mount.
const DESCRIPTORS: u64 = 1 << 20;

/// Wait before a daemon that died is started again, doubled each time.
const BACKOFF: Duration = Duration::from_millis(100);
/// And at most so long: readers wait, and one start a second harms nobody.
const BACKOFF_MOST: Duration = Duration::from_secs(1);
/// A daemon that lived longer than this had begun well.
const LIVED: Duration = Duration::from_millis(100);
/// How long a daemon that somebody else starts is waited for.
const EXPECTED: Duration = Duration::from_secs(10);

/// Starts another daemon; called when the last one has died. Must return at once, with a descriptor of its process.
pub type Revive<'a> = dyn FnMut(&[String]) -> io::Result<OwnedFd> + 'a;

/// Runs a keeper that is reached at a socket, until it is told to end or has nothing to hold; calls `ready` once
/// it can be reached.
pub fn run(at: &Path, revive: &mut Revive<'_>, ready: impl FnOnce()) -> io::Result<()> {
    harden();
    let mut keeper = Keeper::new(listen_at(at)?);
    ready();
    let ended = keeper.serve(revive);
    let _ = fs::remove_file(at); // it would only refuse connections
    ended
}

/// Makes us the last to be hit when memory is short. What is refused is gone without.
fn harden() {
    if let Err(error) = mlockall(MlockAllFlags::CURRENT | MlockAllFlags::FUTURE) {
        tracing::warn!(%error, "cannot lock memory");
    }
    if let Err(error) = fs::write("/proc/self/oom_score_adj", "-1000") {
        tracing::warn!(%error, "cannot keep the out-of-memory killer off");
    }
    let all = Rlimit { current: Some(DESCRIPTORS), maximum: Some(DESCRIPTORS) };
    if setrlimit(Resource::Nofile, all).is_err() {
        let most = getrlimit(Resource::Nofile).maximum;
        let _ = setrlimit(Resource::Nofile, Rlimit { current: most, maximum: most }); // what we have will do
    }
}

fn listen_at(at: &Path) -> io::Result<OwnedFd> {
    let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let listener = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, flags, None)?;
    // Whoever starts us has looked whether somebody answers there.
    match fs::remove_file(at) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    bind(&listener, &SocketAddrUnix::new(at)?)?;
    fs::set_permissions(at, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
    listen(&listener, 16)?;
    Ok(listener)
}

/// A daemon that is connected.
struct Daemon {
    socket: OwnedFd,
    /// What it was not told yet for want of room in the socket: we never wait for it.
    replies: VecDeque<(FromKeeper, Option<OwnedFd>)>,
    since: Instant,
}

/// What is held for daemons to come.
pub(super) enum Held {
    /// The root of a mount that is watched.
    Mount(OwnedFd),
    /// A FUSE device.
    Other(OwnedFd),
}

/// When the next daemon is started.
#[derive(Default)]
struct Revival {
    at: Option<Instant>,
    wait: Duration,
    /// Somebody else starts it.
    expected: bool,
}

impl Revival {
    fn daemon_died(&mut self, now: Instant, lived: Duration) {
        if lived > LIVED {
            self.wait = Duration::ZERO;
        }
        let wait = if std::mem::take(&mut self.expected) { EXPECTED } else { self.wait };
        self.at = Some(now + wait);
        self.wait = (self.wait * 2).clamp(BACKOFF, BACKOFF_MOST);
    }

    /// There is one, whoever started it.
    fn daemon_came(&mut self) {
        self.at = None;
        // Who was to be followed is gone, even if nobody has heard that.
        self.expected = false;
    }
}

struct Keeper {
    listener: OwnedFd,
    /// Who has connected last and not said hello yet.
    caller: Option<OwnedFd>,
    daemon: Option<Daemon>,
    /// Made when the first mount is watched.
    group: Option<Group>,
    held: BTreeMap<String, Held>,
    waiting: Waiting<Event>,
    unserved: Unserved,
    deadline: Duration,
    /// How a daemon is started.
    command: Vec<String>,
    revival: Revival,
    /// The process of a daemon that was started and has not come yet.
    starting: Option<OwnedFd>,
    buffer: Vec<u8>,
}

/// What the loop does next.
#[derive(PartialEq, Eq)]
enum Next {
    GoOn,
    End,
}

impl Keeper {
    fn new(listener: OwnedFd) -> Self {
        Self {
            listener,
            caller: None,
            daemon: None,
            group: None,
            held: BTreeMap::new(),
            waiting: Waiting::default(),
            unserved: Unserved::default(),
            deadline: Duration::from_secs(300),
            command: Vec::new(),
            revival: Revival::default(),
            starting: None,
            buffer: Vec::new(),
        }
    }

    fn serve(&mut self, revive: &mut Revive<'_>) -> io::Result<()> {
        loop {
            let [called, asked, spoken, greeted, ended] = self.wait()?;
            if asked {
                self.take_events();
            }
            if (spoken && self.hear() == Next::End) || (greeted && self.hear_caller() == Next::End) {
                return Ok(());
            }
            if called {
                self.admit();
            }
            let now = Instant::now();
            if ended {
                // Before it came here; or it has found another one that will come.
                self.starting = None;
                self.revival.daemon_died(now, Duration::ZERO);
            }
            for event in self.waiting.overdue(now, self.deadline, self.is_served()) {
                tracing::warn!(path = %path_of(&event), "a reader's deadline has passed");
                self.answer(event, Answer::Deny);
            }
            self.unserved.refuse(now, self.deadline, &self.held);
            self.tell();
            if self.is_idle() {
                return Ok(());
            }
            if self.daemon.is_none() && self.revival.at.is_some_and(|at| now >= at) {
                self.revival.at = None;
                if self.command.is_empty() {
                    continue; // somebody else does
                }
                match revive(&self.command) {
                    Ok(process) => self.starting = Some(process),
                    Err(error) => {
                        tracing::error!(%error, "starting a daemon");
                        self.revival.daemon_died(now, Duration::ZERO);
                    }
                }
            }
        }
    }

    /// Says whether nobody needs us.
    fn is_idle(&self) -> bool {
        self.daemon.is_none() && self.caller.is_none() && self.held.is_empty() && self.waiting.is_empty()
    }

    /// Waits for something to happen; tells who is there: a new caller, the kernel, the daemon, the caller, the end of a
    /// daemon that has been started.
    fn wait(&self) -> io::Result<[bool; 5]> {
        let overdue = self.waiting.next_overdue(self.deadline, self.is_served());
        let revival = self.revival.at.filter(|_| self.daemon.is_none());
        let mut until = [overdue, revival, self.unserved.due(self.deadline)].into_iter().flatten().min();
        let now = Instant::now();
        if self.is_idle() {
            until = Some(now + EXPECTED); // who started us comes, or has died
        }
        let left = until.map(|until| until.saturating_duration_since(now));
        let limit = left.and_then(|left| Timespec::try_from(left).ok());
        let untold = self.waiting.untold().is_some();
        let mut fds = vec![PollFd::new(&self.listener, PollFlags::IN)];
        let group = self.group.as_ref().map(|group| {
            fds.push(PollFd::new(group, PollFlags::IN));
            fds.len() - 1
        });
        let daemon = self.daemon.as_ref().map(|daemon| {
            let full = !daemon.replies.is_empty() || untold;
            let flags = if full { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
            fds.push(PollFd::new(&daemon.socket, flags));
            fds.len() - 1
        });
        let caller = self.caller.as_ref().map(|caller| {
            fds.push(PollFd::new(caller, PollFlags::IN));
            fds.len() - 1
        });
        let starting = self.starting.as_ref().map(|process| {
            fds.push(PollFd::new(process, PollFlags::IN));
            fds.len() - 1
        });
        fds.extend(
            self.unserved.devices(&self.held).map(|device| PollFd::from_borrowed_fd(device, PollFlags::IN)),
        );
        match poll(&mut fds, limit.as_ref()) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        let ready = |n: Option<usize>, flags| n.is_some_and(|n: usize| fds[n].revents().intersects(flags));
        let any = PollFlags::IN | PollFlags::HUP | PollFlags::ERR;
        Ok([Some(0), group, daemon, caller, starting].map(|n| ready(n, any)))
    }

    fn is_served(&self) -> bool {
        self.daemon.is_some()
    }

    /// Reads what the kernel asks.
    fn take_events(&mut self) {
        let Some(group) = &self.group else { return };
        let now = Instant::now();
        match group.read() {
            Ok(events) => events.into_iter().for_each(|event| self.waiting.add(event, now)),
            // The kernel has denied what it could not hand over.
            Err(error) => tracing::error!(%error, "reading events"),
        }
    }

    /// Replies to the daemon and tells it of events it does not know, as far as it takes them.
    fn tell(&mut self) {
        let Some(daemon) = &mut self.daemon else { return };
        while let Some((reply, with)) = daemon.replies.front() {
            let with = with.as_ref().map(AsFd::as_fd);
            if wire::send(&daemon.socket, reply, with, SendFlags::DONTWAIT).is_err() {
                return;
            }
            daemon.replies.pop_front();
        }
        while let Some((id, event, since)) = self.waiting.untold() {
            let asked = FromKeeper::Asked(Asked {
                id,
                path: path_of(event),
                offset: event.offset,
                count: event.count,
                thread: event.thread,
                waited: since.elapsed(),
            });
            match wire::send(&daemon.socket, &asked, None, SendFlags::DONTWAIT) {
                Ok(()) => self.waiting.tell(id),
                // Full: later. Closed: noticed when it is listened to.
                Err(_) => return,
            }
        }
    }

    /// Takes note of a caller. There is one at a time: an older one that has not spoken is nobody.
    fn admit(&mut self) {
        let socket = match accept_with(&self.listener, SocketFlags::CLOEXEC) {
            Ok(socket) => socket,
            Err(error) => return tracing::warn!(%error, "accepting a daemon"),
        };
        match rustix::net::sockopt::socket_peercred(&socket) {
            Ok(peer) if peer.uid == rustix::process::geteuid() => {}
            _ => return tracing::warn!("a stranger was refused"),
        }
        self.caller = Some(socket);
    }

    /// Hears the caller's first word, and lets it in if it is a daemon.
    fn hear_caller(&mut self) -> Next {
        let Some(caller) = self.caller.take() else { return Next::GoOn };
        match wire::receive(&caller, &mut self.buffer) {
            Ok(Some((ToKeeper::End, _))) => return Next::End,
            Ok(Some((ToKeeper::Hello { version, deadline, revive }, _))) => {
                self.greet(caller, version, deadline, revive);
            }
            Ok(Some(_)) => tracing::warn!("a caller that did not say who it is was refused"),
            Ok(None) => {}
            Err(error) => tracing::warn!(%error, "listening to a caller"),
        }
        Next::GoOn
    }

    /// Hears one word of the daemon.
    fn hear(&mut self) -> Next {
        let Some(daemon) = &self.daemon else { return Next::GoOn };
        match wire::receive(&daemon.socket, &mut self.buffer) {
            Ok(Some((ToKeeper::End, _))) => return Next::End,
            Ok(Some((word, with))) => self.obey(word, with),
            Ok(None) => self.lose_daemon(),
            Err(error) => {
                tracing::warn!(%error, "listening to the daemon");
                self.lose_daemon();
            }
        }
        Next::GoOn
    }

    fn lose_daemon(&mut self) {
        let Some(daemon) = self.daemon.take() else { return };
        self.waiting.untell();
        let now = Instant::now();
        self.revival.daemon_died(now, now - daemon.since);
        self.unserved.daemon_died(now);
    }

    fn obey(&mut self, word: ToKeeper, with: Option<OwnedFd>) {
        let done = match (word, with) {
            (ToKeeper::Answer { id, verdict }, _) => {
                if let Some(event) = self.waiting.take(id) {
                    self.settle(event, verdict);
                }
                return;
            }
            (ToKeeper::Watch { name }, Some(root)) => self.watch(name, root),
            (ToKeeper::Keep { name }, Some(descriptor)) => {
                self.held.insert(name, Held::Other(descriptor));
                Ok(())
            }
            (ToKeeper::Fetch { name }, _) => match self.held.get(&name) {
                Some(Held::Other(held) | Held::Mount(held)) => match held.try_clone() {
                    Ok(copy) => return self.reply(FromKeeper::Done { errno: 0 }, Some(copy)),
                    Err(error) => Err(error),
                },
                None => Err(io::ErrorKind::NotFound.into()),
            },
            (ToKeeper::Release { name }, _) => self.release(&name),
            (ToKeeper::Watch { .. } | ToKeeper::Keep { .. }, None) => Err(rustix::io::Errno::BADF.into()),
            (ToKeeper::ExpectAnother, _) => return self.revival.expected = true,
            (ToKeeper::Hello { .. } | ToKeeper::End, _) => Ok(()), // heard before
        };
        let errno = done.err().map_or(0, |error: io::Error| {
            error.raw_os_error().unwrap_or(rustix::io::Errno::NOENT.raw_os_error())
        });
        self.reply(FromKeeper::Done { errno }, None);
    }

    /// Lets a daemon in. There is one per store (its lock), so an older one is dead.
    fn greet(&mut self, socket: OwnedFd, version: u32, deadline: Duration, revive: Vec<String>) {
        let held = self.held.keys().cloned().collect();
        let welcome = FromKeeper::Welcome { version: VERSION, pid: std::process::id(), held };
        if version != VERSION {
            let _ = wire::send(&socket, &welcome, None, SendFlags::DONTWAIT); // it sees that from our answer
            return;
        }
        self.deadline = deadline;
        self.command = revive;
        let now = Instant::now();
        self.revival.daemon_came();
        self.unserved.daemon_came(now, &self.held);
        self.starting = None;
        self.waiting.untell();
        self.daemon = Some(Daemon { socket, replies: [(welcome, None)].into(), since: now });
    }

    fn watch(&mut self, name: String, root: OwnedFd) -> io::Result<()> {
        if self.group.is_none() {
            self.group = Some(Group::new()?);
        }
        if let Some(group) = &self.group {
            group.watch_mount(&root)?;
        }
        self.held.insert(name, Held::Mount(root));
        Ok(())
    }

    fn release(&mut self, name: &str) -> io::Result<()> {
        match self.held.remove(name) {
            Some(Held::Mount(root)) => self.group.as_ref().map_or(Ok(()), |group| group.leave_mount(root)),
            Some(Held::Other(_)) => Ok(()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// Lets a reader go on as the daemon says.
    fn settle(&self, event: Event, verdict: Verdict) {
        match verdict {
            // Found bad and replaced: the daemon has filled another file of that name.
            Verdict::Whole if is_nameless(&event.file) => self.answer(event, Answer::Deny),
            Verdict::Whole => {
                if let Some(group) = &self.group
                    && let Err(error) = group.ignore(&event.file)
                {
                    tracing::debug!(%error, "every read of a segment goes on being asked about");
                }
                self.answer(event, Answer::Allow);
            }
            Verdict::Failed => self.answer(event, Answer::Deny),
        }
    }

    fn answer(&self, event: Event, answer: Answer) {
        if let Some(group) = &self.group
            && let Err(error) = group.answer(event, answer)
        {
            tracing::error!(%error, "answering the kernel");
        }
    }

    fn reply(&mut self, reply: FromKeeper, with: Option<OwnedFd>) {
        if let Some(daemon) = &mut self.daemon {
            daemon.replies.push_back((reply, with));
        }
    }
}

/// Whether a file has lost its name since it was opened.
fn is_nameless(file: &fs::File) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    file.metadata().is_ok_and(|found| found.nlink() == 0)
}

/// Returns the path of an event's file.
fn path_of(event: &Event) -> String {
    use std::os::fd::AsRawFd as _;
    let link = fs::read_link(format!("/proc/self/fd/{}", event.file.as_raw_fd()));
    link.map_or_else(|error| format!("? ({error})"), |path| path.to_string_lossy().into_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    use crate::keeper::{Client, Listener};
    use rustix::net::RecvFlags;
    use testkit::dice::Dice;

    struct Deaf;

    impl Listener for Deaf {
        fn asked(&self, _: Asked) {}
        fn lost(&self) {}
    }

    fn wait(revival: &Revival, now: Instant) -> Option<Duration> {
        revival.at.map(|at| at - now)
    }

    #[test]
    fn a_daemon_that_dies_young_again_and_again_is_waited_for() {
        let (mut revival, now) = (Revival::default(), Instant::now());
        let mut waits = Vec::new();
        for _ in 0..9 {
            revival.daemon_died(now, Duration::ZERO);
            waits.push(wait(&revival, now).unwrap());
            revival.daemon_came();
        }
        assert_eq!((waits[0], waits[1], waits[2]), (Duration::ZERO, BACKOFF, 2 * BACKOFF));
        assert_eq!(waits[8], BACKOFF_MOST);
        revival.daemon_died(now, 2 * LIVED);
        assert_eq!(wait(&revival, now), Some(Duration::ZERO));
    }

    /// The old daemon's end was heard of only after the next one had come: ten seconds were waited for that one's next.
    #[test]
    fn a_daemon_that_was_expected_and_has_come_is_expected_no_more() {
        let (mut revival, now) = (Revival { expected: true, ..Default::default() }, Instant::now());
        revival.daemon_came();
        assert_eq!(wait(&revival, now), None);
        revival.daemon_died(now, 2 * LIVED);
        assert_eq!(wait(&revival, now), Some(Duration::ZERO));
        revival.expected = true;
        revival.daemon_died(now, 2 * LIVED);
        assert_eq!(wait(&revival, now), Some(EXPECTED));
    }

    /// Whoever may connect is of our user; a program of ours that is broken must not take the mounts along.
    #[test]
    fn what_makes_no_sense_ends_a_connection_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let at = dir.path().join("keeper.sock");
        let mut keeper = Keeper::new(listen_at(&at).unwrap());
        let served = std::thread::spawn(move || keeper.serve(&mut |_| Err(io::ErrorKind::NotFound.into())));
        let connect = || Client::connect(&at, Duration::from_secs(9), Vec::new(), std::sync::Arc::new(Deaf));
        let (client, held) = connect().unwrap();
        assert!(held.is_empty());
        client.keep("mine", fs::File::open("/dev/null").unwrap()).unwrap();

        let words = [
            r#"{"say":"answer","id":7,"verdict":"whole"}"#,
            r#"{"say":"watch","name":"mine"}"#,
            r#"{"say":"release","name":"mine"}"#,
            r#"{"say":"hello","version":7,"deadline":{"secs":1,"nanos":0},"revive":["x"]}"#,
            r#"{"say":"hello","version":1,"deadline":1,"revive":[]}"#,
        ];
        let mut dice = Dice(3);
        for n in 0..200 {
            let mut bytes = words[n % words.len()].as_bytes().to_vec();
            if n >= words.len() {
                for _ in 0..=dice.below(8) {
                    let at = usize::try_from(dice.below(bytes.len() as u64)).unwrap();
                    bytes[at] = u8::try_from(dice.below(256)).unwrap();
                }
                bytes.truncate(1 + usize::try_from(dice.below(bytes.len() as u64)).unwrap());
            }
            let stranger = rustix::net::socket(AddressFamily::UNIX, SocketType::SEQPACKET, None).unwrap();
            rustix::net::connect(&stranger, &SocketAddrUnix::new(&at).unwrap()).unwrap();
            rustix::net::send(&stranger, &bytes, SendFlags::NOSIGNAL).unwrap();
            // Whatever it is answered, it is let go: then its word has been heard.
            while rustix::net::recv(&stranger, &mut [0_u8; 256][..], RecvFlags::empty()).unwrap().1 > 0 {}
            client.fetch("mine").unwrap();
        }
        drop(client);
        let (client, held) = connect().unwrap();
        assert_eq!(held, ["mine"]);
        client.end();
        served.join().unwrap().unwrap();
    }
}
