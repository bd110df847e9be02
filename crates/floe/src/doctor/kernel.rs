//! The read paths, the overlay on top, and which path is chosen.

use std::error::Error;
use std::io;
use std::path::Path;

use mount::erofs::TrialError;
use mount::stack::{Below, StackError, Top, stack};

use super::patience::{TRIAL, within};
use super::report::{Check, Group, Reading};
use crate::engine::mounts::ReadPath;

/// The first kernel with all that a mount by FUSE and a container need.
const OLDEST: (u32, u32) = (5, 12);

const GROUP: Group = Group::Kernel;

/// Looks at the kernel's version. What it can do is tried.
pub(super) fn version() -> Check {
    let system = rustix::system::uname();
    judge_version(&system.release().to_string_lossy(), &system.machine().to_string_lossy())
}

/// Says whether the kernel reads our images itself, and so shows their owners shifted. FUSE could since 6.12, but then no longer
/// says who asks, and names of trusted attributes are told to root only.
pub(crate) fn shifts_owners() -> bool {
    is_linux((6, 14))
}

/// Says whether the kernel is of this version or a later one.
pub fn is_linux(oldest: (u32, u32)) -> bool {
    numbers(&rustix::system::uname().release().to_string_lossy()).is_some_and(|this| this >= oldest)
}

/// Returns the first two numbers of a version.
fn numbers(release: &str) -> Option<(u32, u32)> {
    let mut numbers = release.split(|c: char| !c.is_ascii_digit()).map(|digits| digits.parse().ok());
    Some((numbers.next()??, numbers.next()??))
}

fn judge_version(release: &str, machine: &str) -> Check {
    let found = format!("Linux {release} {machine}");
    match numbers(release) {
        Some(this) if this < OLDEST => {
            GROUP.failed("version", found, "use Linux 5.12 or later; 6.14 lets the kernel read images itself")
        }
        _ => GROUP.ok("version", found),
    }
}

/// How a trial ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Trial {
    Works,
    /// What was found, and the remedy.
    Fails(String, &'static str),
    /// Why it was not made.
    NotMade(&'static str),
}

/// What was tried.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Tried {
    erofs: Trial,
    erofs_overlay: Trial,
    fuse: Trial,
    fuse_overlay: Trial,
}

const NEEDS_ROOT: &str = "needs root: sudo floe doctor";
const NOT_BELOW: &str = "there is nothing to put it on";

impl Tried {
    /// Tries everything in a directory.
    pub(super) fn out(dir: Result<&Path, &io::Error>, root: bool) -> Self {
        let dir = match dir {
            Ok(dir) => dir,
            Err(error) => {
                let fails = Trial::Fails(format!("nothing can be tried: {error}"), PLACE_HINT);
                let on_top = Trial::NotMade(NOT_BELOW);
                return Self {
                    erofs: if root { fails.clone() } else { Trial::NotMade(NEEDS_ROOT) },
                    erofs_overlay: on_top.clone(),
                    fuse: fails,
                    fuse_overlay: on_top,
                };
            }
        };
        let tried = |below, top| {
            trial(dir, move |dir| stack(dir, below, top).map_err(|e| (chain(&e), stack_hint(&e))))
        };
        let on_top = |under: &Trial, below| match under {
            Trial::Works if root => tried(below, Top::Overlay),
            Trial::Works => Trial::NotMade(NEEDS_ROOT),
            _ => Trial::NotMade(NOT_BELOW),
        };
        let erofs = match root {
            true => trial(dir, |dir| mount::erofs::trial(dir).map_err(|e| (chain(&e), erofs_hint(&e)))),
            false => Trial::NotMade(NEEDS_ROOT),
        };
        let fuse = match mount::fuse::available() {
            Ok(()) => tried(Below::Fuse, Top::Bare),
            Err(why) => Trial::Fails(chain(&why), FUSE_HINT),
        };
        let erofs_overlay = on_top(&erofs, Below::Erofs);
        let fuse_overlay = on_top(&fuse, Below::Fuse);
        Self { erofs, erofs_overlay, fuse, fuse_overlay }
    }
}

/// Tries something on a thread of its own whose mounts nobody else sees, so that none can be left.
fn trial(
    dir: &Path,
    work: impl FnOnce(&Path) -> Result<(), (String, &'static str)> + Send + 'static,
) -> Trial {
    let dir = dir.to_owned();
    let run = move || {
        // Without the right to do so nothing of ours is mounted by this thread either.
        let _ = sys::namespace::own_mounts();
        work(&dir)
    };
    match within(TRIAL, run) {
        Some(Ok(())) => Trial::Works,
        Some(Err((found, hint))) => Trial::Fails(found, hint),
        None => Trial::Fails(
            format!("no answer in {} s", TRIAL.as_secs()),
            "the kernel or its disk is stuck: dmesg may say at what",
        ),
    }
}

const FUSE_HINT: &str = "modprobe fuse; in a container pass --device /dev/fuse; for users other than root chmod 666 /dev/fuse and install fusermount3 (Debian: fuse3)";
const PRIVILEGE_HINT: &str =
    "run floe as root of the machine; in a container that takes --privileged (CAP_SYS_ADMIN)";
const PLACE_HINT: &str = "choose a store that can be written to with --root DIR";

fn erofs_hint(error: &TrialError) -> &'static str {
    match error {
        TrialError::Prepare { .. } => PLACE_HINT,
        TrialError::Group(_) => PRIVILEGE_HINT,
        TrialError::Watch(_) => "use Linux 6.14 or later, and a store on ext4, XFS or btrfs (--root DIR)",
        TrialError::Mount(_) => {
            "modprobe erofs; it takes Linux 6.12 or later with CONFIG_EROFS_FS_BACKED_BY_FILE"
        }
        TrialError::Shown => "use a later release of this kernel; images are read through FUSE meanwhile",
        TrialError::NotAsked | TrialError::Wrong | TrialError::Read(_) => {
            "this kernel cannot be trusted with it: set path = \"fuse\" in [mount], and report its version"
        }
    }
}

fn stack_hint(error: &StackError) -> &'static str {
    match error {
        StackError::Prepare { .. } => PLACE_HINT,
        StackError::Erofs(_) => "modprobe erofs; see the check above",
        StackError::Fuse(_) => FUSE_HINT,
        StackError::Overlay(_) | StackError::Write(_) => {
            "modprobe overlay; the store must be on a local file system, itself no overlay (a volume, in a container)"
        }
        StackError::Read(_) | StackError::Wrong => "dmesg may say more; report the kernel's version",
    }
}

/// An error and its causes in one line, none said twice.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text.replace('\n', " ")
}

/// Says what the trials mean for who wants this path.
pub(super) fn judge(tried: &Tried, wanted: ReadPath) -> (Vec<Check>, Reading) {
    let works = |trial: &Trial| *trial == Trial::Works;
    let not_stopped = |trial: &Trial| matches!(trial, Trial::Works | Trial::NotMade(NEEDS_ROOT));
    // Whether a container can be started without the other.
    let kernels = works(&tried.erofs) && not_stopped(&tried.erofs_overlay) && wanted != ReadPath::Fuse;
    let servers = works(&tried.fuse)
        && not_stopped(&tried.fuse_overlay)
        && matches!(wanted, ReadPath::Auto | ReadPath::Fuse);
    let on_top = "a container's root on top works";
    let mut overlay = check("overlay-erofs", &tried.erofs_overlay, servers, on_top);
    // `auto` takes the kernel's path if that works without an overlay.
    overlay.hint = overlay.hint.map(|hint| match servers {
        true => format!("set path = \"fuse\" in [mount]; or {hint}"),
        false => hint,
    });
    let checks = vec![
        check(
            "erofs",
            &tried.erofs,
            servers,
            "read by the kernel, which asks before it reads what is missing",
        ),
        overlay,
        check("fuse", &tried.fuse, kernels, "read through a FUSE server"),
        check("overlay-fuse", &tried.fuse_overlay, kernels, on_top),
    ];
    (checks, reading(tried, wanted))
}

/// What fails is a warning where something else does.
fn check(name: &'static str, trial: &Trial, other: bool, good: &str) -> Check {
    match trial {
        Trial::Works => GROUP.ok(name, good),
        Trial::Fails(found, hint) if other => GROUP.warning(name, found, *hint),
        Trial::Fails(found, hint) => GROUP.failed(name, found, *hint),
        Trial::NotMade(why) => GROUP.skipped(name, *why),
    }
}

/// Chooses as the daemon will.
fn reading(tried: &Tried, wanted: ReadPath) -> Reading {
    let why_not = |trial: &Trial| match trial {
        Trial::Works => String::new(),
        Trial::Fails(found, _) => found.clone(),
        Trial::NotMade(why) => (*why).to_owned(),
    };
    let by = |path, why: &str| Reading { path: Some(path), why: why.to_owned() };
    let tell = |path: ReadPath, trial: &Trial| match trial {
        Trial::Works => Reading { path: Some(path), why: "the configuration says so, and it works".into() },
        trial => {
            Reading { path: None, why: format!("the configuration asks for {path}: {}", why_not(trial)) }
        }
    };
    match (wanted, &tried.erofs, &tried.fuse) {
        (ReadPath::Auto, Trial::Works, _) => by(ReadPath::Erofs, "tried, and it works"),
        (ReadPath::Auto, erofs, Trial::Works) => Reading {
            path: Some(ReadPath::Fuse),
            why: format!("because the kernel's own path does not work: {}", why_not(erofs)),
        },
        (ReadPath::Auto, _, fuse) => Reading { path: None, why: why_not(fuse) },
        (ReadPath::Fuse, _, fuse) => tell(ReadPath::Fuse, fuse),
        (path, erofs, _) => tell(path, erofs),
    }
}

#[cfg(test)]
mod tests {
    use super::super::report::State;
    use super::*;

    fn fails() -> Trial {
        Trial::Fails("it does not work".into(), "mend it")
    }

    fn tried(erofs: Trial, erofs_overlay: Trial, fuse: Trial, fuse_overlay: Trial) -> Tried {
        Tried { erofs, erofs_overlay, fuse, fuse_overlay }
    }

    fn states(checks: &[Check]) -> Vec<State> {
        checks.iter().map(|check| check.state).collect()
    }

    #[test]
    fn one_path_that_works_is_enough() {
        use State::{Failed, Ok, Skipped, Warning};
        let none = || Trial::NotMade(NOT_BELOW);
        let works = || Trial::Works;
        let table = [
            (tried(works(), works(), works(), works()), [Ok; 4], Some(ReadPath::Erofs)),
            (tried(fails(), none(), works(), works()), [Warning, Skipped, Ok, Ok], Some(ReadPath::Fuse)),
            (tried(works(), works(), fails(), none()), [Ok, Ok, Warning, Skipped], Some(ReadPath::Erofs)),
            (tried(fails(), none(), fails(), none()), [Failed, Skipped, Failed, Skipped], None),
            (tried(works(), fails(), works(), works()), [Ok, Warning, Ok, Ok], Some(ReadPath::Erofs)),
            (tried(works(), fails(), works(), fails()), [Ok, Failed, Ok, Failed], Some(ReadPath::Erofs)),
        ];
        for (tried, wanted, path) in table {
            let (checks, reading) = judge(&tried, ReadPath::Auto);
            assert_eq!((states(&checks), reading.path), (wanted.to_vec(), path), "{tried:?}");
            assert!(
                checks.iter().all(|c| c.hint.is_some() == matches!(c.state, Failed | Warning)),
                "{checks:?}"
            );
        }
    }

    #[test]
    fn a_path_that_was_asked_for_must_work_itself() {
        let broken = tried(fails(), Trial::NotMade(NOT_BELOW), Trial::Works, Trial::Works);
        for wanted in [ReadPath::Erofs, ReadPath::Plain] {
            let (checks, reading) = judge(&broken, wanted);
            assert_eq!((checks[0].state, reading.path), (State::Failed, None));
            assert!(reading.why.contains("it does not work"), "{}", reading.why);
        }
        let (checks, reading) = judge(&broken, ReadPath::Fuse);
        assert_eq!((checks[0].state, reading.path), (State::Warning, Some(ReadPath::Fuse)));
        let other = tried(Trial::Works, Trial::Works, fails(), Trial::NotMade(NOT_BELOW));
        assert_eq!(judge(&other, ReadPath::Fuse).0[2].state, State::Failed);
    }

    #[test]
    fn an_ordinary_user_reads_through_fuse_and_is_told_why() {
        let (root, none) = (Trial::NotMade(NEEDS_ROOT), Trial::NotMade(NEEDS_ROOT));
        let (checks, reading) = judge(&tried(root.clone(), root, Trial::Works, none), ReadPath::Auto);
        assert!(!states(&checks).contains(&State::Failed));
        assert_eq!(reading.path, Some(ReadPath::Fuse));
        assert!(reading.why.contains("needs root"), "{}", reading.why);
    }

    #[test]
    fn old_kernels_are_told_apart() {
        for (release, good) in [
            ("6.18.0-rc1", true),
            ("5.12.0", true),
            ("5.11.99", false),
            ("5.4-generic", false),
            ("4.18.0-553.el8", false),
            ("10.0", true),
            ("odd", true),
        ] {
            let state = judge_version(release, "x86_64").state;
            assert_eq!(state == State::Ok, good, "{release}");
        }
    }
}
