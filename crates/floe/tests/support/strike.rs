//! Death at a chosen step: strace kills a process when one of its threads is about to make a system call of some kind for the
//! n-th time. Whoever goes through all kinds and all n has seen every state that a killed process can leave.

use std::process::Command;

use rustix::process::Pid;

use super::{Node, Running, program, until};

/// What changes something on disk, or mounts something. Not every machine has all of these calls.
pub const STEPS: [&str; 20] = [
    "mkdir",
    "mkdirat",
    "rename",
    "renameat",
    "renameat2",
    "unlink",
    "unlinkat",
    "rmdir",
    "chmod",
    "fchmodat",
    "chown",
    "fchownat",
    "ftruncate",
    "pwrite64",
    "fsync",
    "fdatasync",
    "mount",
    "umount2",
    "move_mount",
    "fsmount",
];

/// Returns why nobody can be struck here, if nobody can.
pub fn cannot_strike() -> Option<String> {
    program("strace").is_none().then(|| "there is no strace".to_owned())
}

/// A process that dies at a step, unless this is dropped before.
pub struct Strike(
    #[expect(dead_code, reason = "it ends when dropped, and lets go what still lives")] Running,
);

impl Strike {
    /// Begins to count the system calls of some kinds in a process, for each thread and kind by themselves.
    pub fn at(node: &Node, victim: Pid, kinds: &[&str], count: u64) -> Self {
        let kinds = kinds.iter().map(|kind| format!("?{kind}")).collect::<Vec<_>>().join(",");
        let mut command = Command::new("strace");
        command.args(["-f", "-o", "/dev/null", "-e", &format!("trace={kinds}")]);
        command.args(["-e", &format!("inject={kinds}:signal=KILL:when={count}")]);
        command.args(["-p", &victim.as_raw_pid().to_string()]);
        let strace = node.spawn(command);
        until("strace is on the process", || strace.said().contains("attached"));
        Self(strace)
    }
}
