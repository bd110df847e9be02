//! The command side of the socket: finds the daemon of a store, or starts it.

use std::ffi::OsStr;
use std::io::{BufReader, PipeReader, Read};
use std::os::unix::fs::OpenOptionsExt;
use std::os::unix::net::UnixStream;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use serde::de::DeserializeOwned;

use super::protocol::{self, Call, Event, Failure, Hello, Request};
use super::{log, socket_path};
use crate::exit::Hint;

/// How long a service manager may take to start the next daemon.
const MANAGER: Duration = Duration::from_secs(30);

/// How often it is looked for.
const AGAIN: Duration = Duration::from_millis(20);

/// Where the store and its configuration are; enough to find or start the daemon.
#[derive(Debug, Clone)]
pub struct Address {
    /// Directory of the store.
    pub root: PathBuf,
    /// Configuration file, where one was named.
    pub config: Option<PathBuf>,
}

/// One connection.
pub struct Client {
    writer: UnixStream,
    reader: BufReader<UnixStream>,
}

impl Client {
    /// Connects to the daemon of a store, starting one if there is none.
    pub fn connect(address: &Address) -> anyhow::Result<Self> {
        if let Some(client) = Self::connect_running(address)? {
            return Ok(client);
        }
        // Of several commands at once one starts it; the others wait and then find it.
        let _one = starting(&address.root)?;
        if let Some(client) = Self::connect_running(address)? {
            return Ok(client);
        }
        if !crate::install::start(&address.root)? {
            start(address, None)?;
        }
        match Self::connect_running(address)? {
            Some(client) => Ok(client),
            None => bail!("the daemon of {} ended as soon as it had started", address.root.display()),
        }
    }

    /// Connects to the daemon of a store if it runs.
    pub fn connect_running(address: &Address) -> anyhow::Result<Option<Self>> {
        let socket = socket_path(&address.root)?;
        let writer = match UnixStream::connect(&socket) {
            Ok(stream) => stream,
            Err(e)
                if matches!(
                    e.kind(),
                    std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused
                ) =>
            {
                return Ok(None);
            }
            Err(e) => return Err(doing(format!("connecting to the daemon at {}", socket.display()), e)),
        };
        // The socket may lie where `--listen` put it, and others may write there: what answers decides what we run.
        if let Some(uid) = super::stranger(&writer).context("asking who the daemon is")? {
            bail!("what listens at {} is uid {uid}, and no daemon of ours", socket.display());
        }
        let reader = BufReader::new(writer.try_clone().context("sharing the daemon's socket")?);
        Ok(Some(Self { writer, reader }))
    }

    /// Asks and waits for the reply; progress and notices go to `talk`.
    pub fn call<R: DeserializeOwned>(
        &mut self,
        call: Call,
        talk: &mut dyn FnMut(Event),
    ) -> anyhow::Result<R> {
        self.send(&Request { version: protocol::VERSION, call })?;
        self.reply(talk)
    }

    /// Sends one line.
    pub fn send(&mut self, message: &impl serde::Serialize) -> anyhow::Result<()> {
        protocol::send(&mut self.writer, message).context("asking the daemon")
    }

    /// Waits for the reply to what was sent.
    pub fn reply<R: DeserializeOwned>(&mut self, talk: &mut dyn FnMut(Event)) -> anyhow::Result<R> {
        loop {
            match protocol::receive(&mut self.reader).context("reading the daemon's answer")? {
                None => bail!("the daemon ended before it answered; the next that needs one starts another"),
                Some(Event::Done { reply }) => {
                    return serde_json::from_value(reply).context("reading the daemon's reply");
                }
                Some(Event::Failed(failure)) => return Err(failure.into_error()),
                Some(event) => talk(event),
            }
        }
    }

    /// Ends the daemon and waits until it has ended.
    pub fn stop(mut self) -> anyhow::Result<()> {
        let pid = self.hello()?.pid;
        let () = self.call(Call::Stop, &mut |_| ())?;
        drop(self);
        wait_gone(pid)
    }

    /// Replaces the daemon of a store by this program, if one runs.
    pub fn upgrade(address: &Address) -> anyhow::Result<()> {
        let _one = starting(&address.root)?;
        let Some(mut client) = Self::connect_running(address)? else { return Ok(()) };
        let Hello { managed, pid, .. } = client.hello()?;
        let own = exe().context("finding this program's own file")?;
        let theirs = std::fs::read_link(format!("/proc/{pid}/exe")).map(in_place).unwrap_or_default();
        if managed && theirs != own {
            bail!(anyhow::anyhow!("the service runs {}", theirs.display()).context(Hint::new(
                "replacing the daemon by this program",
                "floe install puts this program in its place"
            )));
        }
        let usual = socket_path(&address.root)?;
        let listen = std::fs::read_link(&usual).ok(); // where `--listen` put it
        client.hand_over()?;
        if managed {
            return await_managed(address);
        }
        start(address, listen.as_deref())
    }

    /// Has the daemon leave everything to its successor, and waits until it has ended.
    pub fn hand_over(mut self) -> anyhow::Result<()> {
        let pid = self.hello()?.pid;
        let () = self.call(Call::HandOver, &mut |_| ())?;
        drop(self);
        wait_gone(pid)
    }

    /// Asks the daemon who it is.
    pub fn hello(&mut self) -> anyhow::Result<Hello> {
        self.call(Call::Ping, &mut |_| ())
    }
}

/// Returns the lock under which a daemon is started; let go when dropped.
pub fn starting(root: &Path) -> anyhow::Result<std::fs::File> {
    let dir = super::run_dir(root)?;
    let path = dir.join("start.lock");
    crate::home::make_run(&dir)?;
    let mut options = std::fs::File::options();
    let opened = options.create(true).truncate(false).write(true).mode(0o600).open(&path);
    let taken = opened.and_then(|file| file.lock().map(|()| file));
    taken.map_err(|error| doing(format!("locking {}", path.display()), error))
}

/// Runs this program with other words as a process that outlives this one and says with a byte that it answers. What it
/// says besides goes to the daemon's log.
pub fn launch(address: &Address, words: &[&OsStr]) -> anyhow::Result<(Child, PipeReader)> {
    let (ready, notify) = std::io::pipe().context("making a pipe")?;
    let mut command = Command::new(exe().context("finding this program's own file")?);
    command.arg("--root").arg(&address.root);
    if let Some(config) = &address.config {
        command.arg("--config").arg(config);
    }
    for name in super::manager::VARIABLES {
        command.env_remove(name);
    }
    command.args(words).current_dir("/").process_group(0);
    command.stdin(Stdio::null()).stdout(Stdio::from(notify)).stderr(log::open(&address.root)?);
    let child = command.spawn()?;
    Ok((child, ready)) // our end of its pipe goes with the command
}

/// Returns this program's file, or what has taken its place.
pub fn exe() -> std::io::Result<PathBuf> {
    std::env::current_exe().map(in_place)
}

/// Returns a running program's file, or what has taken its place: the kernel says of one that was replaced that it is deleted.
fn in_place(exe: PathBuf) -> PathBuf {
    use std::os::unix::ffi::{OsStrExt, OsStringExt};
    match exe.as_os_str().as_bytes().strip_suffix(b" (deleted)") {
        Some(there) if !exe.exists() => std::ffi::OsString::from_vec(there.to_vec()).into(),
        _ => exe,
    }
}

/// Starts a daemon that outlives this process, and waits until it answers.
fn start(address: &Address, listen: Option<&Path>) -> anyhow::Result<()> {
    let mut words: Vec<&OsStr> = vec![OsStr::new("daemon"), OsStr::new("--notify")];
    let mut socket = std::ffi::OsString::from("unix:");
    if let Some(listen) = listen {
        socket.push(listen);
        words.extend([OsStr::new("--listen"), &socket]);
    }
    let (mut child, mut ready) = launch(address, &words).context("starting the daemon")?;

    // One byte: it answers. End of file: it has ended, and its log says why.
    if ready.read(&mut [0]).context("waiting for the daemon")? == 1 {
        return Ok(());
    }
    let status = child.wait().context("waiting for the daemon")?;
    // Somebody else's daemon may have taken the lock a moment before ours: then theirs answers.
    if Client::connect_running(address)?.is_some() {
        return Ok(());
    }
    let said = std::fs::read_to_string(log::path(&address.root)?).unwrap_or_default();
    Err(complaint(&said).into_error().context(format!("the daemon did not start ({status})")))
}

/// Waits for the daemon that the service manager starts in place of one that has ended.
fn await_managed(address: &Address) -> anyhow::Result<()> {
    let until = Instant::now() + MANAGER;
    while Client::connect_running(address)?.is_none() {
        if Instant::now() > until {
            return Err(anyhow::anyhow!("none answers after {} s", MANAGER.as_secs()).context(Hint::new(
                "waiting for the daemon that the service manager starts",
                "systemctl status floe says more",
            )));
        }
        std::thread::sleep(AGAIN);
    }
    Ok(())
}

/// Returns the last error in a log, as [`crate::exit::write_error`] wrote it there.
fn complaint(log: &str) -> Failure {
    let lines: Vec<&str> = log.lines().collect();
    let begin = lines.iter().rposition(|line| line.starts_with("floe: ")).unwrap_or(lines.len());
    let mut failure = Failure { chain: Vec::new(), hint: None };
    for line in &lines[begin..] {
        match line.split_once(": ") {
            Some(("floe" | "  because", cause)) => failure.chain.push(cause.to_owned()),
            Some(("  hint", hint)) => failure.hint = Some(hint.to_owned()),
            _ => {}
        }
    }
    if failure.chain.is_empty() {
        failure.chain.push("it left no message".into());
    }
    failure
}

/// Returns what we were doing, with advice where only root may.
fn doing(what: String, error: std::io::Error) -> anyhow::Error {
    let root = rustix::process::geteuid().is_root();
    match error.kind() {
        std::io::ErrorKind::PermissionDenied if !root => anyhow::Error::new(error).context(Hint::new(
            what,
            "it is another user's: sudo floe …, or have a store of your own with --root DIR",
        )),
        _ => anyhow::Error::new(error).context(what),
    }
}

/// Waits until a daemon that was told to stop has ended.
fn wait_gone(pid: u32) -> anyhow::Result<()> {
    let pid = i32::try_from(pid)
        .ok()
        .and_then(rustix::process::Pid::from_raw)
        .context("the daemon's process number")?;
    let fd = match rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
        Err(rustix::io::Errno::SRCH) => return Ok(()),
        fd => fd.context("watching the daemon")?,
    };
    let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
    let limit = rustix::event::Timespec { tv_sec: 30, tv_nsec: 0 };
    match rustix::event::poll(&mut fds, Some(&limit)).context("waiting for the daemon to end")? {
        0 => bail!("the daemon was told to stop and has not ended in 30 s"),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_complaint_of_a_log_is_told() {
        let log = "2026 INFO serving\nfloe: old\n2026 INFO serving\nfloe: opening: the store\n  because: no\n  hint: do: it\n";
        let told = complaint(log);
        assert_eq!(
            (told.chain, told.hint),
            (vec!["opening: the store".into(), "no".into()], Some("do: it".into()))
        );
        assert_eq!(complaint("").chain, ["it left no message"]);
    }
}
