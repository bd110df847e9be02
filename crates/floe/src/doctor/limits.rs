//! What this process may have, and so the daemon and the keeper that it starts.

use std::fs;

use rustix::process::{Resource, getrlimit};
use rustix::thread::{CapabilitySet, capabilities};

use super::report::{Check, Group};

const GROUP: Group = Group::Limits;

/// Descriptors that the keeper asks for: one for each reader that waits, one for each mount.
const DESCRIPTORS: u64 = 1 << 20;
/// With fewer a daemon of many images refuses some.
const FEW: u64 = 4096;
/// With fewer it hardly serves one.
const TOO_FEW: u64 = 256;

/// Memory that the keeper locks, in bytes: a small process with its libraries.
const LOCKED: u64 = 16 << 20;

/// Looks at all limits.
pub(super) fn check(root: bool) -> Vec<Check> {
    let sets = capabilities(None).map(|sets| sets.effective).unwrap_or(CapabilitySet::empty());
    let number = |path: &str| fs::read_to_string(path).ok()?.trim().parse::<u64>().ok();
    let all = number("/proc/sys/fs/nr_open").unwrap_or(DESCRIPTORS);
    let hard = match sets.contains(CapabilitySet::SYS_RESOURCE) {
        true => all,
        false => getrlimit(Resource::Nofile).maximum.unwrap_or(all),
    };
    let mut checks = vec![descriptors(hard)];
    if !root {
        checks.push(namespaces(number));
        let why = "for the kernel's own read path, which needs root";
        checks.extend(["fanotify", "memlock", "oom"].map(|name| GROUP.skipped(name, why)));
        return checks;
    }
    checks.push(fanotify(
        number("/proc/sys/fs/fanotify/max_user_groups"),
        number("/proc/sys/fs/fanotify/max_user_marks"),
    ));
    let memory = match sets.contains(CapabilitySet::IPC_LOCK) {
        true => None,
        false => getrlimit(Resource::Memlock).maximum,
    };
    checks.push(memlock(memory));
    let score = fs::read_to_string("/proc/self/oom_score_adj").unwrap_or_default();
    checks.push(oom(score.trim(), sets.contains(CapabilitySet::SYS_RESOURCE)));
    checks
}

fn descriptors(hard: u64) -> Check {
    let found = format!("up to {hard} open files");
    let hint = "raise LimitNOFILE= of the unit that starts floe, or ulimit -Hn";
    match hard {
        ..TOO_FEW => GROUP.failed("open-files", found, hint),
        TOO_FEW..FEW => GROUP.warning("open-files", found, hint),
        _ => GROUP.ok("open-files", found),
    }
}

/// Looks for what keeps an ordinary user from having user namespaces; each is in some kernels only.
fn namespaces(number: impl Fn(&str) -> Option<u64>) -> Check {
    let off = [
        ("user/max_user_namespaces", 0, "sysctl user.max_user_namespaces=10000"),
        ("kernel/unprivileged_userns_clone", 0, "sysctl kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            1,
            "sysctl kernel.apparmor_restrict_unprivileged_userns=0",
        ),
    ];
    match off.iter().find(|(name, bad, _)| number(&format!("/proc/sys/{name}")) == Some(*bad)) {
        Some((name, bad, hint)) => GROUP.warning(
            "user-namespaces",
            format!("{} is {bad}: floe run needs root", name.replace('/', ".")),
            *hint,
        ),
        None => GROUP.ok("user-namespaces", "nothing forbids them, as far as the kernel says"),
    }
}

fn fanotify(groups: Option<u64>, marks: Option<u64>) -> Check {
    let (Some(groups), Some(marks)) = (groups, marks) else {
        return GROUP.skipped("fanotify", "this kernel has no such limits");
    };
    let found = format!("{groups} groups, {marks} marks for each user");
    match groups {
        // Each store has a keeper with one, and others use some.
        0..8 => GROUP.warning("fanotify", found, "sysctl fs.fanotify.max_user_groups=128"),
        _ => GROUP.ok("fanotify", found),
    }
}

fn memlock(most: Option<u64>) -> Check {
    match most {
        Some(most @ ..LOCKED) => GROUP.warning(
            "memlock",
            format!("{most} bytes can be locked; the keeper may be paged out"),
            "raise LimitMEMLOCK= of the unit that starts floe, or let it have CAP_IPC_LOCK",
        ),
        _ => GROUP.ok("memlock", "the keeper can lock its memory"),
    }
}

fn oom(score: &str, may_lower: bool) -> Check {
    match may_lower || score == "-1000" {
        true => GROUP.ok("oom", "the keeper can keep the out-of-memory killer off"),
        false => GROUP.warning(
            "oom",
            format!("the keeper can be killed for want of memory (oom_score_adj {score})"),
            "let floe have CAP_SYS_RESOURCE, or set OOMScoreAdjust=-1000 in its unit",
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    #[test]
    fn limits_have_edges() {
        let table = [
            (TOO_FEW - 1, State::Failed),
            (TOO_FEW, State::Warning),
            (FEW - 1, State::Warning),
            (FEW, State::Ok),
        ];
        for (hard, state) in table {
            assert_eq!(descriptors(hard).state, state, "{hard}");
        }
        assert_eq!(namespaces(|_| None).state, State::Ok);
        assert_eq!(namespaces(|_| Some(0)).state, State::Warning);
        assert_eq!(namespaces(|name| name.contains("apparmor").then_some(1)).state, State::Warning);
        assert_eq!(fanotify(Some(7), Some(1)).state, State::Warning);
        assert_eq!(fanotify(Some(8), Some(1)).state, State::Ok);
        assert_eq!(fanotify(None, None).state, State::Skipped);
        assert_eq!(memlock(Some(LOCKED - 1)).state, State::Warning);
        assert_eq!(memlock(Some(LOCKED)).state, State::Ok);
        assert_eq!(memlock(None).state, State::Ok);
        assert_eq!(oom("0", false).state, State::Warning);
        assert_eq!(oom("-1000", false).state, State::Ok);
        assert_eq!(oom("0", true).state, State::Ok);
    }
}
