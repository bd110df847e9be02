//! What the end-to-end tests share: a store of their own, the real binary with a deadline, and clean-up.
//!
//! Every [`Node`] is a machine in the small: a store below `/var/tmp`, a configuration, a home directory. Dropping
//! it ends its daemon and takes its mounts away, also after a failed assertion.
#![allow(dead_code, unreachable_pub, missing_docs, reason = "each test crate uses its part")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

pub mod containerd;
pub mod cri;
pub mod disk;
pub mod docker;
pub mod image;
pub mod metrics;
pub mod readers;
pub mod servers;
pub mod soci;
pub mod storage;
pub mod strike;
pub mod systemd;

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::mount::{MountFlags, UnmountFlags, mount, unmount};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open};
use serde_json::Value;
use tempfile::TempDir;

/// Longest time for one command. Nothing here takes a tenth of it; a machine under load must not fail a test.
pub const PATIENCE: Duration = Duration::from_secs(120);

/// The variables that lead to a machine's own proxies and credentials.
const FOREIGN: [&str; 11] = [
    "HTTP_PROXY",
    "HTTPS_PROXY",
    "ALL_PROXY",
    "NO_PROXY",
    "http_proxy",
    "https_proxy",
    "all_proxy",
    "no_proxy",
    "DOCKER_CONFIG",
    "REGISTRY_AUTH_FILE",
    "XDG_RUNTIME_DIR",
];

/// Writes the configuration of `docker login` in a directory: `user:password` for one host.
pub fn log_in(docker_config: &Path, host: &str, login: &str) {
    let auth = testkit::base64::encode(login.as_bytes());
    let auths = serde_json::json!({ "auths": { (host): { "auth": auth } } });
    fs::create_dir_all(docker_config).unwrap();
    fs::write(docker_config.join("config.json"), auths.to_string()).unwrap();
}

/// A machine in the small.
pub struct Node {
    dir: TempDir,
    names: AtomicU32,
}

/// How a command ended.
#[derive(Debug)]
pub struct Outcome {
    pub status: ExitStatus,
    pub stdout: Vec<u8>,
    pub stderr: String,
}

impl Outcome {
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|error| panic!("{error}: {self:?}"))
    }
}

/// Returns why images cannot be mounted here, if they cannot.
pub fn cannot_mount() -> Option<&'static str> {
    if !rustix::process::geteuid().is_root() {
        return Some("mounting needs root");
    }
    if File::options().read(true).write(true).open("/dev/fuse").is_err() {
        return Some("mounting needs /dev/fuse");
    }
    None
}

/// Returns where a program of this machine is.
pub fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs =
        std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into(), "/usr/bin".into()]);
    dirs.find_map(|dir| Some(dir.join(name)).filter(|file| file.exists()))
}

/// Returns a node, or ends the test loudly where images cannot be mounted.
#[macro_export]
macro_rules! node {
    () => {{
        if let Some(why) = support::cannot_mount() {
            testkit::skip!("{why}");
        }
        support::Node::new("")
    }};
    ($config:expr) => {{
        if let Some(why) = support::cannot_mount() {
            testkit::skip!("{why}");
        }
        support::Node::new($config)
    }};
}

/// Returns a node whose images are read by the kernel's own path, or ends the test loudly where there is none.
#[macro_export]
macro_rules! kernel_node {
    ($config:expr) => {{
        if let Some(why) = support::cannot_mount() {
            testkit::skip!("{why}");
        }
        if !support::disk::Kind::Ext4.can_be_made() {
            testkit::skip!("no file system can be made in a file");
        }
        let node = support::Node::on(support::disk::Kind::Ext4, 1 << 30, $config);
        if let Err(why) = mount::erofs::trial(&node.store()) {
            testkit::skip!("no read path of the kernel's own here: {why}");
        }
        node
    }};
}

impl Node {
    /// Returns an empty node with this configuration.
    pub fn new(config: &str) -> Self {
        // A store syncs what it keeps, and on a disk that others write to that can take minutes.
        Self::over(config, |store, _| {
            mount("floe-e2e", store, "tmpfs", MountFlags::empty(), c"size=1g,mode=700").unwrap();
        })
    }

    /// Returns one whose store has a file system of so many bytes to itself, on which the kernel's own path works.
    pub fn on(kind: disk::Kind, size: u64, config: &str) -> Self {
        Self::over(config, |store, backing| disk::make(kind, size, backing, store))
    }

    /// Returns one that reads images by way of `fuse`, or of `erofs`, the kernel's own; `config` is what else it is told.
    pub fn reading(path: &str, config: &str) -> Self {
        let config = format!("[mount]\npath = {path:?}\n{config}");
        if path == "erofs" { Self::on(disk::Kind::Ext4, 1 << 30, &config) } else { Self::new(&config) }
    }

    fn over(config: &str, mount: impl FnOnce(&Path, &Path)) -> Self {
        let dir = tempfile::Builder::new().prefix("floe-e2e.").tempdir_in("/var/tmp").unwrap();
        fs::create_dir(dir.path().join("home")).unwrap();
        fs::write(dir.path().join("config.toml"), config).unwrap();
        let store = dir.path().join("store");
        fs::create_dir(&store).unwrap();
        mount(&store, &dir.path().join("backing"));
        Self { dir, names: AtomicU32::new(0) }
    }

    /// Returns a place below the node's directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Returns the store's directory.
    pub fn store(&self) -> PathBuf {
        self.path("store")
    }

    /// Returns a name that was not given before.
    pub fn fresh(&self, what: &str) -> PathBuf {
        self.path(&format!("{what}-{}", self.names.fetch_add(1, Ordering::Relaxed)))
    }

    /// Returns an empty directory to mount at.
    pub fn mount_point(&self) -> PathBuf {
        let dir = self.fresh("mnt");
        fs::create_dir(&dir).unwrap();
        dir
    }

    /// Returns the command line, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_floe"));
        command.arg("--root").arg(self.store()).arg("--config").arg(self.path("config.toml")).args(args);
        self.isolate(&mut command);
        command
    }

    /// Keeps a command away from the machine's own settings.
    pub fn isolate(&self, command: &mut Command) {
        command.stdin(Stdio::null()).env("HOME", self.path("home")).env("NO_COLOR", "1");
        FOREIGN.iter().for_each(|name| {
            command.env_remove(name);
        });
    }

    /// Starts a command with its outputs going to files.
    pub fn spawn(&self, mut command: Command) -> Running {
        let (out, err) = (self.fresh("out"), self.fresh("err"));
        command.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        Running { child: command.spawn().unwrap(), out, err }
    }

    /// Runs a command line to its end.
    pub fn run(&self, args: &[&str]) -> Outcome {
        self.spawn(self.command(args)).end()
    }

    /// Runs a command line that must succeed; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert!(
            outcome.status.success(),
            "floe {args:?}: {}\n{}\nlog: {}",
            outcome.status,
            outcome.stderr,
            self.log()
        );
        outcome.text()
    }

    /// Runs a command line that must succeed; returns its JSON.
    pub fn json(&self, args: &[&str]) -> Value {
        let text = self.ok(&[&["--output", "json"], args].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("floe {args:?}: {error}: {text}"))
    }

    /// Runs a command line that must fail with exit code 1; returns what it complained.
    pub fn fails(&self, args: &[&str]) -> String {
        let outcome = self.run(args);
        assert_eq!(outcome.status.code(), Some(1), "floe {args:?}: {outcome:?}\nlog: {}", self.log());
        assert!(outcome.stderr.lines().any(|line| line.starts_with("floe: ")), "{}", outcome.stderr);
        outcome.stderr
    }

    /// Mounts an image without fetching in the background.
    pub fn mount(&self, image: &str) -> PathBuf {
        let dir = self.mount_point();
        self.ok(&["mount", "--no-background", image, dir.to_str().unwrap()]);
        dir
    }

    pub fn umount(&self, dir: &Path) {
        self.ok(&["umount", dir.to_str().unwrap()]);
    }

    pub fn status(&self) -> Value {
        self.json(&["status"])
    }

    /// Returns the bytes the daemon has received since its start.
    pub fn received(&self) -> u64 {
        self.status()["traffic"]["bytes"].as_u64().unwrap()
    }

    /// Returns the daemon's process, if one runs.
    pub fn daemon(&self) -> Option<Pid> {
        let outcome = self.run(&["--output", "json", "status"]);
        let status: Value = serde_json::from_slice(&outcome.stdout).ok()?;
        Pid::from_raw(i32::try_from(status["pid"].as_i64()?).ok()?)
    }

    /// Returns the keeper's process, if one runs.
    pub fn keeper(&self) -> Option<Pid> {
        self.processes()
            .into_iter()
            .find(|(_, words)| words.last().is_some_and(|word| word == "keeper"))
            .map(|found| found.0)
    }

    /// Returns the processes of this store, with their words.
    fn processes(&self) -> Vec<(Pid, Vec<String>)> {
        let root = self.store();
        let look = |entry: fs::DirEntry| {
            let pid = Pid::from_raw(entry.file_name().to_str()?.parse().ok()?)?;
            // First, for the words of a process whose page fault waits cannot be read before it goes on.
            if fs::read(entry.path().join("comm")).ok()? != b"floe\n" {
                return None;
            }
            let line = fs::read(entry.path().join("cmdline")).ok()?;
            let words: Vec<_> = line
                .split(|b| *b == 0)
                .map(|word| String::from_utf8_lossy(word).into_owned())
                .filter(|word| !word.is_empty())
                .collect();
            words
                .windows(2)
                .any(|pair| pair[0] == "--root" && Path::new(&pair[1]) == root)
                .then_some((pid, words))
        };
        fs::read_dir("/proc").unwrap().flatten().filter_map(look).collect()
    }

    /// Ends what is left of a store's processes: the keeper first, for it starts daemons, and then whoever it started.
    fn kill_all(&self) {
        loop {
            let mut processes = self.processes();
            if processes.is_empty() {
                return;
            }
            processes.sort_by_key(|(_, words)| words.last().is_none_or(|word| word != "keeper"));
            processes.into_iter().for_each(|(pid, _)| kill_and_wait(pid));
        }
    }

    /// Returns the process that has the store, while it lives.
    pub fn locked_by(&self) -> Option<Pid> {
        let pid = fs::read_to_string(self.store().join("LOCK")).ok()?.trim().parse().ok()?;
        let command = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
        let ours = String::from_utf8_lossy(&command).contains(self.store().to_str()?);
        Pid::from_raw(pid).filter(|_| ours)
    }

    /// Ends the daemon as its user would.
    pub fn stop(&self) {
        self.ok(&["daemon", "stop"]);
    }

    /// Ends the daemon without asking it.
    pub fn kill_daemon(&self) {
        let Some(pid) = self.daemon() else { return };
        kill_and_wait(pid);
    }

    /// Ends the daemon without asking it, and waits for the one that the keeper starts.
    pub fn replace_daemon(&self) {
        let before = self.daemon();
        self.kill_daemon();
        until("the keeper has started another daemon", || {
            self.daemon().is_some_and(|pid| Some(pid) != before)
        });
    }

    /// Returns what the daemon logged.
    pub fn log(&self) -> String {
        let run = floe::daemon::run_dir(&self.store()).unwrap();
        fs::read_to_string(run.join("daemon.log")).unwrap_or_default()
    }

    /// Returns how many files of any size are below a directory of the store.
    pub fn files(&self, dir: &str) -> usize {
        fn count(dir: &Path) -> usize {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            entries.map(|entry| if entry.path().is_dir() { count(&entry.path()) } else { 1 }).sum()
        }
        count(&self.store().join(dir))
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        if let Some(pid) = self.daemon() {
            let stopped = self.spawn(self.command(&["daemon", "stop"])).end();
            if !stopped.status.success() {
                kill_and_wait(pid);
            }
        }
        // One that has only just been started does not answer yet.
        self.kill_all();
        let run = floe::daemon::run_dir(&self.store()).unwrap();
        for id in floe::run::sweep(&self.store()) {
            eprintln!("swept run {id}");
        }
        unmount_below(&run);
        unmount_below(self.dir.path());
        let _ = fs::remove_dir_all(&run); // a test without daemon has none
    }
}

/// Takes every mount below a directory away, the last first.
pub fn unmount_below(dir: &Path) {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    for line in mounts.lines().rev() {
        let at = Path::new(line.split(' ').nth(4).unwrap());
        if at.starts_with(dir) {
            let _ = unmount(at, UnmountFlags::DETACH); // it may have gone with another
        }
    }
}

/// Returns the lines of the mount table that name a directory.
pub fn mounts_of(dir: &Path) -> Vec<String> {
    let mounts = fs::read_to_string("/proc/thread-self/mountinfo").unwrap();
    mounts.lines().filter(|line| line.contains(dir.to_str().unwrap())).map(str::to_owned).collect()
}

/// Sends SIGKILL and waits until the process is gone.
pub fn kill_and_wait(pid: Pid) {
    let Ok(fd) = pidfd_open(pid, PidfdFlags::empty()) else { return };
    let _ = kill_process(pid, Signal::KILL); // it may have ended by itself
    let mut fds = [PollFd::new(&fd, PollFlags::IN)];
    assert_eq!(poll(&mut fds, Some(&limit(PATIENCE))), Ok(1), "a killed process does not end");
}

fn limit(time: Duration) -> Timespec {
    time.try_into().unwrap()
}

/// A command that runs; killed when dropped.
pub struct Running {
    pub child: Child,
    out: PathBuf,
    err: PathBuf,
}

impl Running {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap()).unwrap()
    }

    pub fn signal(&self, signal: Signal) {
        kill_process(self.pid(), signal).unwrap();
    }

    /// Returns what it has complained so far.
    pub fn said(&self) -> String {
        lossy(&self.err)
    }

    /// Waits for the end.
    pub fn end(mut self) -> Outcome {
        let ended = self.child.try_wait().unwrap().is_some() || {
            let fd = pidfd_open(self.pid(), PidfdFlags::empty()).unwrap();
            let mut fds = [PollFd::new(&fd, PollFlags::IN)];
            poll(&mut fds, Some(&limit(PATIENCE))) == Ok(1)
        };
        if !ended {
            self.child.kill().unwrap();
        }
        let status = self.child.wait().unwrap();
        let outcome = Outcome { status, stdout: fs::read(&self.out).unwrap(), stderr: lossy(&self.err) };
        assert!(ended, "a command did not end in {PATIENCE:?}: {outcome:?}");
        outcome
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill(); // it may end just now
            let _ = self.child.wait();
        }
    }
}

fn lossy(path: &Path) -> String {
    String::from_utf8_lossy(&fs::read(path).unwrap()).into_owned()
}

/// Waits until something is so. Looks often, and without sleeping: each look must do some work of its own.
pub fn until(what: &str, mut so: impl FnMut() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !so() {
        assert!(Instant::now() < end, "{what} has not come true in {PATIENCE:?}");
        std::thread::yield_now();
    }
}

/// Runs a program of this machine that must succeed.
pub fn tool(command: &mut Command) -> String {
    let output = command.stdin(Stdio::null()).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {} {stderr}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Reads a file to its end, or the errno that stopped it.
pub fn read(path: &Path) -> std::io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    File::open(path)?.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// Returns the signal that ended a process.
pub fn killed_by(status: ExitStatus) -> Option<i32> {
    status.signal()
}
