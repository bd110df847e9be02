//! The daemon and the keeper: who runs, and of which version.
//!
//! The daemon is asked who it is, and nothing else. The keeper is not even connected to: it would take us for a new
//! daemon. It is found in the table of processes.

use std::fs;
use std::path::Path;
use std::time::Duration;

use super::patience::within;
use super::report::{Check, Group};
use crate::daemon::client::{Address, Client};
use crate::daemon::protocol::Hello;
use crate::daemon::run_dir;

/// How long the daemon may take to say who it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// What the kernel adds to the name of a program's file that is gone: it was replaced.
const REPLACED: &str = " (deleted)";

const OLDER: &str = "floe daemon upgrade";

/// Looks for the daemon of a store.
pub(super) fn daemon(address: &Address) -> Check {
    let asked = address.clone();
    let answer = within(PATIENCE, move || -> anyhow::Result<Option<Hello>> {
        Client::connect_running(&asked)?.map(|mut client| client.hello()).transpose()
    });
    judge(answer, holder(&address.root), is_replaced)
}

/// What an answer means; `None` is no answer at all.
fn judge(
    answer: Option<anyhow::Result<Option<Hello>>>,
    holder: Option<u32>,
    is_replaced: impl Fn(u32) -> bool,
) -> Check {
    const GROUP: Group = Group::Store;
    let end = holder
        .map_or("floe daemon stop".to_owned(), |pid| format!("kill {pid}; the next command starts another"));
    match answer {
        Some(Ok(Some(hello))) => {
            let found = format!("process {}, protocol {}", hello.pid, hello.version);
            match is_replaced(hello.pid) {
                true => GROUP.warning("daemon", format!("{found}, of a program that was replaced"), OLDER),
                false => GROUP.ok("daemon", found),
            }
        }
        Some(Ok(None)) => match holder {
            Some(pid) => {
                let found = format!("process {pid} has the store and does not listen");
                GROUP.warning("daemon", found, format!("it may just be starting; if it stays so: kill {pid}"))
            }
            None => GROUP.ok("daemon", "none runs; the first command that needs one starts it"),
        },
        Some(Err(error)) if is_refusal(&error) => {
            GROUP.skipped("daemon", "it is another user's: sudo floe doctor")
        }
        Some(Err(error)) => GROUP.failed("daemon", format!("{error:#}"), end),
        None => GROUP.failed("daemon", format!("it does not answer in {} s", PATIENCE.as_secs()), end),
    }
}

fn is_refusal(error: &anyhow::Error) -> bool {
    let refused = |cause: &(dyn std::error::Error + 'static)| {
        cause
            .downcast_ref::<std::io::Error>()
            .is_some_and(|e| e.kind() == std::io::ErrorKind::PermissionDenied)
    };
    error.chain().any(refused)
}

/// Returns the process that has the store, if it lives.
fn holder(root: &Path) -> Option<u32> {
    let pid: u32 = fs::read_to_string(root.join("LOCK")).ok()?.trim().parse().ok()?;
    let words = words(pid)?;
    // Numbers are given out again: it must be a daemon of this store.
    is(&words, root, "daemon").then_some(pid)
}

/// Looks for the keeper of a store.
pub(super) fn keeper(root: &Path) -> Check {
    let watched = run_dir(root)
        .and_then(|run| Ok(fs::read_dir(run.join("watch"))?.flatten().count()))
        .unwrap_or_default(); // another user's, or there is none
    let found = fs::read_dir("/proc").into_iter().flatten().flatten();
    let mut pids = found.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let pid = pids.find(|pid| words(*pid).is_some_and(|words| is(&words, root, "keeper")));
    let locked = pid.and_then(|pid| status(pid, "VmLck:")).is_none_or(|kib| kib > 0);
    judge_keeper(pid, watched, locked, pid.is_some_and(is_replaced))
}

fn judge_keeper(pid: Option<u32>, watched: usize, locked: bool, replaced: bool) -> Check {
    const GROUP: Group = Group::Keeper;
    let holds = format!("watches {watched} mounts");
    match pid {
        None if watched == 0 => GROUP.ok("keeper", "none runs; mounts with missing parts start it"),
        None => GROUP.warning(
            "keeper",
            format!("none runs, and {watched} mounts have missing parts that cannot be read"),
            "floe gc --dry-run: any command starts the daemon, which starts another; mount what failed again",
        ),
        Some(pid) if replaced => GROUP.warning(
            "keeper",
            format!("process {pid}, of a program that was replaced; {holds}"),
            "it ends with the mounts that it watches; the next one is of this program",
        ),
        Some(pid) if !locked => GROUP.warning(
            "keeper",
            format!("process {pid}, whose memory is not locked; {holds}"),
            "let the daemon have CAP_IPC_LOCK or a higher memlock limit (LimitMEMLOCK= in its unit)",
        ),
        Some(pid) => GROUP.ok("keeper", format!("process {pid}, {holds}")),
    }
}

/// Returns the command line of a process, if it is one of ours by its name.
///
/// The command line is in the memory of the process, and waits with it: that of others is not asked for.
fn words(pid: u32) -> Option<Vec<Vec<u8>>> {
    let name = fs::read_to_string(format!("/proc/{pid}/comm")).ok()?;
    if !name.starts_with("floe") {
        return None;
    }
    let line = fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    Some(line.split(|byte| *byte == 0).filter(|word| !word.is_empty()).map(<[u8]>::to_vec).collect())
}

/// Says whether a command line is of this command for this store.
fn is(words: &[Vec<u8>], root: &Path, command: &str) -> bool {
    let root = root.as_os_str().as_encoded_bytes();
    let stored = words.windows(2).any(|pair| pair[0] == b"--root" && pair[1] == root);
    stored && words.iter().any(|word| word == command.as_bytes())
}

fn is_replaced(pid: u32) -> bool {
    fs::read_link(format!("/proc/{pid}/exe"))
        .is_ok_and(|file| file.as_os_str().as_encoded_bytes().ends_with(REPLACED.as_bytes()))
}

/// Returns a number of `/proc/PID/status`.
fn status(pid: u32, key: &str) -> Option<u64> {
    let text = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(key))?;
    line.split_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;
    use anyhow::anyhow;

    #[test]
    fn daemons_of_all_kinds() {
        let hello = || Some(Ok(Some(Hello { version: 2, pid: 7, managed: false })));
        assert_eq!(judge(hello(), Some(7), |_| false).state, State::Ok);
        let replaced = judge(hello(), Some(7), |pid| pid == 7);
        assert_eq!((replaced.state, replaced.hint.as_deref()), (State::Warning, Some(OLDER)));
        assert_eq!(judge(Some(Ok(None)), None, |_| false).state, State::Ok);
        assert_eq!(judge(Some(Ok(None)), Some(7), |_| false).state, State::Warning);
        let silent = judge(None, Some(7), |_| false);
        assert_eq!(silent.state, State::Failed);
        assert!(silent.hint.unwrap().contains("kill 7"));
        assert_eq!(judge(Some(Err(anyhow!("it speaks protocol 1"))), None, |_| false).state, State::Failed);
        let refused = anyhow::Error::new(std::io::Error::from(std::io::ErrorKind::PermissionDenied));
        assert_eq!(judge(Some(Err(refused.context("connecting"))), None, |_| false).state, State::Skipped);
    }

    #[test]
    fn keepers_of_all_kinds() {
        assert_eq!(judge_keeper(None, 0, true, false).state, State::Ok);
        assert_eq!(judge_keeper(None, 1, true, false).state, State::Warning);
        assert_eq!(judge_keeper(Some(7), 1, true, false).state, State::Ok);
        assert_eq!(judge_keeper(Some(7), 1, false, false).state, State::Warning);
        assert_eq!(judge_keeper(Some(7), 1, true, true).state, State::Warning);
    }

    #[test]
    fn command_lines_are_of_one_store() {
        let words: Vec<Vec<u8>> =
            ["/bin/floe", "--root", "/a", "keeper"].map(|w| w.as_bytes().to_vec()).into();
        assert!(is(&words, Path::new("/a"), "keeper"));
        assert!(!is(&words, Path::new("/a"), "daemon"));
        assert!(!is(&words, Path::new("/b"), "keeper"));
        assert!(status(std::process::id(), "VmSize:").is_some_and(|kib| kib > 0));
    }
}
