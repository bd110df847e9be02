//! The OCI runtime: finding it, starting a container with it, ending one.
//!
//! The runtime only starts the container and is gone; the container's first process then belongs to us, so its
//! exit status comes from the kernel. runc 1.1 is tested; crun, which refuses hosts with cgroups of both
//! versions, is not.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, getpid, pidfd_open, pidfd_send_signal,
    set_child_subreaper, waitid,
};

use super::overlay;
use crate::exit::{Code, Coded, Hint};

/// Looked for in this order.
const NAMES: [&str; 2] = ["runc", "crun"];

/// Where administrators' programs are, also when a user's PATH does not say so.
const SBIN: [&str; 3] = ["/usr/local/sbin", "/usr/sbin", "/sbin"];

/// What is read of the runtime's log when it failed, in bytes.
const LOG: u64 = 1 << 20;

/// An OCI runtime and where it keeps its state.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Runtime {
    program: PathBuf,
    root: PathBuf,
}

/// Streams and files of a container that starts.
pub(super) struct Start<'a> {
    pub(super) id: &'a str,
    /// Holds `config.json`; the runtime's log and pid go there too.
    pub(super) bundle: &'a Path,
    /// The detached root and where `config.json` expects it.
    pub(super) root: (&'a OwnedFd, &'a Path),
    pub(super) stdio: [Stdio; 3],
    pub(super) console: Option<&'a Path>,
}

/// A container that was started. Ended and forgotten by the runtime when this goes.
#[derive(Debug)]
pub(super) struct Container {
    runtime: Runtime,
    id: String,
    pid: Pid,
    process: OwnedFd,
}

/// How the container's first process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It returned this.
    Returned(u8),
    /// This signal ended it.
    Signalled(u8),
}

impl Exit {
    /// Returns what a shell would report: the code, or 128 and the signal.
    pub fn code(self) -> u8 {
        match self {
            Self::Returned(code) => code,
            Self::Signalled(signal) => signal.saturating_add(128),
        }
    }
}

impl Runtime {
    /// Returns the runtime the user named, or the first one installed.
    pub(super) fn find(wanted: Option<&Path>, state: &Path) -> Result<Self> {
        let path = std::env::var_os("PATH").unwrap_or_default();
        Self::find_in(wanted, state, &path)
    }

    fn find_in(wanted: Option<&Path>, state: &Path, path: &OsStr) -> Result<Self> {
        let dirs: Vec<PathBuf> = std::env::split_paths(path).chain(SBIN.map(PathBuf::from)).collect();
        let look = |name: &Path| dirs.iter().map(|dir| dir.join(name)).find(|file| is_program(file));
        let (program, what) = match wanted {
            Some(name) if name.components().count() == 1 => (look(name), name.display().to_string()),
            Some(file) => (Some(file.to_owned()).filter(|file| is_program(file)), file.display().to_string()),
            None => (NAMES.iter().find_map(|name| look(Path::new(name))), NAMES.join(" and ")),
        };
        let program = program.ok_or_else(|| {
            let hint = "install an OCI runtime: apt-get install runc (or name one with --runtime PATH)";
            anyhow!("no such program").context(Hint::new(format!("looking for the OCI runtime {what}"), hint))
        })?;
        Ok(Self { program, root: state.join("runtime") })
    }

    /// Returns its file.
    pub(super) fn program(&self) -> &Path {
        &self.program
    }

    /// Returns what [`Runtime::recall`] needs to find this runtime again.
    pub(super) fn record(&self) -> Vec<u8> {
        [self.program.as_os_str().as_bytes(), self.root.as_os_str().as_bytes()].join(&0)
    }

    /// Returns the runtime that was recorded, if this is a record.
    pub(super) fn recall(record: &[u8]) -> Option<Self> {
        let (program, root) = record.split_at(record.iter().position(|byte| *byte == 0)?);
        let path = |bytes: &[u8]| PathBuf::from(OsString::from_vec(bytes.to_vec()));
        Some(Self { program: path(program), root: path(&root[1..]) })
    }

    /// Creates and starts a container whose root is seen by it alone.
    pub(super) fn start(&self, start: Start<'_>) -> Result<Container> {
        // The first process loses its parent when the runtime exits; it must come to us, or nobody learns how
        // it ended.
        set_child_subreaper(Some(getpid())).context("becoming the parent of containers")?;
        let (log, pid_file) = (start.bundle.join("runtime.log"), start.bundle.join("pid"));
        let [stdin, stdout, stderr] = start.stdio;
        let mut command = Command::new(&self.program);
        self.rootless(&mut command);
        command.arg("--root").arg(&self.root).arg("--log").arg(&log).args(["--log-format", "json"]);
        command.args(["run", "--detach"]).arg("--pid-file").arg(&pid_file).arg("--bundle").arg(start.bundle);
        if let Some(socket) = start.console {
            command.arg("--console-socket").arg(socket);
        }
        command.arg(start.id).stdin(stdin).stdout(stdout).stderr(stderr);
        let container = |pid| -> Result<Container> {
            let process = pidfd_open(pid, PidfdFlags::empty()).context("opening the container's process")?;
            Ok(Container { runtime: self.clone(), id: start.id.to_owned(), pid, process })
        };
        let started = in_own_mounts(start.root, &mut command)
            .with_context(|| format!("running {}", self.program.display()))
            .and_then(|status| if status.success() { Ok(()) } else { Err(explain(&read_log(&log))) })
            .and_then(|()| read_pid(&pid_file))
            .and_then(container);
        if started.is_err() {
            // A runtime that failed half way may have left a container; if not, it has nothing to delete.
            let _ = self.delete(start.id);
        }
        started
    }

    /// Kills what is left of a container and makes the runtime forget it. No such container: nothing to do.
    pub(super) fn delete(&self, id: &str) -> Result<()> {
        let output = self
            .command()
            .args(["delete", "--force", id])
            .output()
            .with_context(|| format!("running {}", self.program.display()))?;
        // crun, unlike runc, reports a container that is not there.
        let said = String::from_utf8_lossy(&output.stderr);
        if output.status.success() || said.contains("does not exist") || said.contains("No such file") {
            return Ok(());
        }
        Err(anyhow!("{}", said.trim().to_owned()).context(format!("deleting container {id}")))
    }

    fn command(&self) -> Command {
        let mut command = Command::new(&self.program);
        self.rootless(&mut command);
        command.arg("--root").arg(&self.root).stdin(Stdio::null());
        command
    }

    /// Tells runc what it cannot see in a user namespace: that cgroups are not ours. crun finds out.
    fn rootless(&self, command: &mut Command) {
        if crate::home::is_inside() && self.program.file_name() == Some(OsStr::new("runc")) {
            command.args(["--rootless", "true"]);
        }
    }
}

impl Container {
    pub(super) fn pid(&self) -> Pid {
        self.pid
    }

    /// Becomes readable when the first process has ended.
    pub(super) fn process(&self) -> &OwnedFd {
        &self.process
    }

    /// Sends a signal to the first process; one that has ended does not mind.
    pub(super) fn signal(&self, number: i32) -> Result<()> {
        let sent = match Signal::from_named_raw(number) {
            Some(signal) => pidfd_send_signal(&self.process, signal).map_err(io::Error::from),
            // Real-time signals have no safe name here; the runtime knows them by number.
            None => self.runtime.command().args(["kill", &self.id, &number.to_string()]).output().map(drop),
        };
        match sent {
            Err(error) if error.raw_os_error() != Some(rustix::io::Errno::SRCH.raw_os_error()) => {
                Err(error).with_context(|| format!("sending signal {number} to container {}", self.id))
            }
            _ => Ok(()),
        }
    }
}

impl Drop for Container {
    fn drop(&mut self) {
        if let Err(error) = self.runtime.delete(&self.id) {
            tracing::warn!(container = self.id, error = format!("{error:#}"), "the runtime still knows it");
        }
    }
}

/// Waits for a container's first process and returns how it ended.
pub(super) fn wait(process: &OwnedFd) -> Result<Exit> {
    loop {
        match waitid(WaitId::PidFd(std::os::fd::AsFd::as_fd(process)), WaitIdOptions::EXITED) {
            Ok(Some(status)) => {
                let byte = |number: i32| u8::try_from(number & 0xff).unwrap_or(u8::MAX);
                return match (status.exit_status(), status.terminating_signal()) {
                    (Some(code), _) => Ok(Exit::Returned(byte(code))),
                    (None, Some(signal)) => Ok(Exit::Signalled(byte(signal))),
                    (None, None) => Err(anyhow!("the container's process ended in an unknown way")),
                };
            }
            Ok(None) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("waiting for the container's process"),
        }
    }
}

/// Runs a command on a thread whose mount table is its own and shows `root` at its place.
///
/// The container copies that table, so its root lives exactly as long as the container, and not a moment in
/// the host's table: nothing to unmount, nothing to leak, whoever gets killed.
fn in_own_mounts(root: (&OwnedFd, &Path), command: &mut Command) -> Result<std::process::ExitStatus> {
    let (mount, at) = root;
    let work = || {
        sys::namespace::own_mounts().context("making a mount table for the container")?;
        overlay::attach(mount, at)
            .with_context(|| format!("mounting the container's root at {}", at.display()))?;
        Ok(command.status()?)
    };
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().name("start".into()).spawn_scoped(scope, work)?;
        thread.join().map_err(|_| anyhow!("the thread that starts the container panicked"))?
    })
}

fn is_program(file: &Path) -> bool {
    file.is_file() && rustix::fs::access(file, rustix::fs::Access::EXEC_OK).is_ok()
}

fn read_pid(file: &Path) -> Result<Pid> {
    let text = std::fs::read_to_string(file).with_context(|| format!("reading {}", file.display()))?;
    text.trim().parse().ok().and_then(Pid::from_raw).with_context(|| format!("{text:?} is not a pid"))
}

/// The messages of the runtime's log, last one last; whatever is no log line is left out.
fn read_log(log: &Path) -> Vec<String> {
    let mut text = String::new();
    if let Ok(file) = File::open(log) {
        let _ = file.take(LOG).read_to_string(&mut text); // half a log is better than none
    }
    text.lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter_map(|line| Some(line.get("msg")?.as_str()?.to_owned()))
        .collect()
}

/// Turns the runtime's last words into an error with Docker's exit codes.
fn explain(messages: &[String]) -> anyhow::Error {
    let Some(said) = messages.last() else {
        return anyhow!("the OCI runtime failed without a word");
    };
    let about_command =
        said.contains("exec: \"") || said.contains("executable file") || said.contains("exec user process");
    let code = match said {
        _ if !about_command => Code::NotStarted,
        said if said.contains("not found")
            || said.contains("no such file")
            || said.contains("No such file") =>
        {
            Code::NotFound
        }
        _ => Code::NotExecutable,
    };
    let error = anyhow!("{said}").context(Coded::new(code, "starting the container's process"));
    match code {
        Code::NotStarted if said.contains("cgroup") => error.context(Hint::new(
            "preparing the container's cgroup",
            "the runtime must be able to write to /sys/fs/cgroup; inside a container this needs --privileged",
        )),
        _ => error,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::exit::code_of;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn the_runtimes_last_words_decide_the_code() {
        let table = [
            (
                r#"runc run failed: unable to start container process: exec: "x": executable file not found in $PATH"#,
                Code::NotFound,
            ),
            (
                r#"runc run failed: unable to start container process: exec: "/x": stat /x: no such file or directory"#,
                Code::NotFound,
            ),
            (
                r#"runc run failed: unable to start container process: exec: "/x": permission denied"#,
                Code::NotExecutable,
            ),
            ("executable file `x` not found in $PATH: No such file or directory", Code::NotFound),
            ("runc run failed: error during container init: mkdir /x: not a directory", Code::NotStarted),
            ("runc run failed: unable to apply cgroup configuration", Code::NotStarted),
        ];
        for (said, code) in table {
            assert_eq!(code_of(&explain(&["first".into(), said.into()])), code, "{said}");
        }
        assert!(explain(&[]).to_string().contains("without a word"));
    }

    #[test]
    fn runtimes_are_found_by_name_path_and_order() {
        let dir = tempfile::tempdir().unwrap();
        let program = |name: &str, mode| {
            let file = dir.path().join(name);
            std::fs::write(&file, "").unwrap();
            std::fs::set_permissions(&file, std::fs::Permissions::from_mode(mode)).unwrap();
            file
        };
        let mine = program("mine", 0o755);
        let flat = program("flat", 0o644);
        let find =
            |wanted: Option<&Path>| Runtime::find_in(wanted, Path::new("/state"), dir.path().as_os_str());
        assert_eq!(find(Some(Path::new("mine"))).unwrap().program, mine);
        assert_eq!(find(Some(&mine)).unwrap().root, Path::new("/state/runtime"));
        for bad in [&flat, Path::new("flat"), Path::new("none"), dir.path()] {
            let mut shown = Vec::new();
            crate::exit::write_error(&find(Some(bad)).unwrap_err(), &mut shown).unwrap();
            let shown = String::from_utf8(shown).unwrap();
            assert!(shown.contains("apt-get install runc"), "{shown}");
        }
        let crun = program("crun", 0o755);
        let runc = program("runc", 0o755);
        assert_eq!(find(None).unwrap().program, runc);
        std::fs::remove_file(&runc).unwrap();
        let found = find(None).unwrap().program;
        assert!(found == crun || found.starts_with("/usr") || found.starts_with("/sbin"), "{found:?}");
    }

    #[test]
    fn a_recorded_runtime_is_found_again() {
        let runtime = Runtime { program: "/usr/sbin/runc".into(), root: "/run/floe/runtime".into() };
        assert_eq!(Runtime::recall(&runtime.record()), Some(runtime));
        assert_eq!(Runtime::recall(b""), None);
        assert_eq!(Runtime::recall(b"no separator"), None);
    }
}
