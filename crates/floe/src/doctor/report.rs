//! What was found, for people and for machines.
//!
//! The names of groups, checks, states and keys are stable: programs read them.

use std::fmt::Write;

use serde::Serialize;

use crate::engine::mounts::ReadPath;
use crate::exit::Code;

/// What a check is about. In the order in which they are shown.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Group {
    /// What the kernel can do.
    Kernel,
    /// The directory of the store, its disk and its daemon.
    Store,
    /// What processes may have.
    Limits,
    /// What starts containers.
    Runtime,
    /// The way to registries.
    Network,
    /// The configuration file.
    Configuration,
    /// The process that outlives the daemon.
    Keeper,
}

impl Group {
    const fn name(self) -> &'static str {
        match self {
            Self::Kernel => "kernel",
            Self::Store => "store",
            Self::Limits => "limits",
            Self::Runtime => "runtime",
            Self::Network => "network",
            Self::Configuration => "configuration",
            Self::Keeper => "keeper",
        }
    }

    /// Returns a check that found nothing wrong.
    pub(super) fn ok(self, name: &'static str, found: impl Into<String>) -> Check {
        Check { group: self, name, state: State::Ok, found: found.into(), hint: None }
    }

    /// Returns one that found what makes things worse, but stops nothing.
    pub(super) fn warning(
        self,
        name: &'static str,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Check {
        let (found, hint) = (found.into(), Some(hint.into()));
        Check { group: self, name, state: State::Warning, found, hint }
    }

    /// Returns one that found what keeps images from starting.
    pub(super) fn failed(
        self,
        name: &'static str,
        found: impl Into<String>,
        hint: impl Into<String>,
    ) -> Check {
        let (found, hint) = (found.into(), Some(hint.into()));
        Check { group: self, name, state: State::Failed, found, hint }
    }

    /// Returns one that did not end in time.
    pub(super) fn stuck(self, name: &'static str) -> Check {
        let found = format!("no answer in {} s", super::patience::TRIAL.as_secs());
        self.failed(name, found, "the kernel or a disk is stuck: dmesg may say at what")
    }

    /// Returns one that was not made, and why.
    pub(super) fn skipped(self, name: &'static str, why: impl Into<String>) -> Check {
        Check { group: self, name, state: State::Skipped, found: why.into(), hint: None }
    }
}

/// How a check ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum State {
    /// Nothing is wrong.
    Ok,
    /// Images start, but something is worse than it could be.
    Warning,
    /// No image starts before this is mended.
    Failed,
    /// It was not made.
    Skipped,
}

impl State {
    const fn name(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Warning => "warning",
            Self::Failed => "FAILED",
            Self::Skipped => "skipped",
        }
    }
}

/// One thing that was looked at.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What it belongs to.
    pub group: Group,
    /// Its name within the group.
    pub name: &'static str,
    /// How it ended.
    pub state: State,
    /// What was found, in one line.
    pub found: String,
    /// The remedy.
    pub hint: Option<String>,
}

/// How images will be read.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Reading {
    /// Nothing if they cannot be read.
    pub path: Option<ReadPath>,
    /// Why that and no other.
    pub why: String,
}

/// What all checks together say.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Verdict {
    /// Images can be started.
    Able,
    /// They cannot.
    Unable,
    /// Nothing is in the way as far as this user may look.
    Unknown,
}

/// Everything that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Report {
    /// Of the program that looked.
    pub version: &'static str,
    /// Whether nothing was installed yet.
    pub pre: bool,
    /// Who looked.
    pub user: u32,
    /// What comes of it.
    pub verdict: Verdict,
    /// How images will be read.
    pub reading: Reading,
    /// By group.
    pub checks: Vec<Check>,
}

impl Report {
    /// Puts together what was found by this user.
    pub(super) fn new(pre: bool, checks: Vec<Check>, reading: Reading) -> Self {
        Self::of(rustix::process::geteuid().as_raw(), pre, checks, reading)
    }

    fn of(user: u32, pre: bool, mut checks: Vec<Check>, reading: Reading) -> Self {
        checks.sort_by_key(|check| check.group);
        let verdict = match checks.iter().any(|check| check.state == State::Failed) {
            true => Verdict::Unable,
            false if user == 0 => Verdict::Able,
            false => Verdict::Unknown,
        };
        Self { version: env!("CARGO_PKG_VERSION"), pre, user, verdict, reading, checks }
    }

    /// Returns the code to exit with.
    pub fn code(&self) -> Code {
        if self.verdict == Verdict::Unable { Code::Unable } else { Code::Done }
    }

    /// Returns it as people read it.
    pub fn text(&self) -> String {
        let mut text = String::new();
        let mut group = None;
        for check in &self.checks {
            if group.replace(check.group) != Some(check.group) {
                let _ = writeln!(text, "{}", check.group.name()); // to a String: cannot fail
            }
            let _ = writeln!(text, "  {:<8} {:<14} {}", check.state.name(), check.name, check.found);
            if let Some(hint) = &check.hint {
                let _ = writeln!(text, "{:26}hint: {hint}", "");
            }
        }
        let _ = match self.reading.path {
            Some(path) => writeln!(text, "images are read by: {path} ({})", self.reading.why),
            None => writeln!(text, "images cannot be read: {}", self.reading.why),
        };
        let count = |state| self.checks.iter().filter(|check| check.state == state).count();
        let noted = format!("{} failed, {} warnings", count(State::Failed), count(State::Warning));
        let _ = match self.verdict {
            Verdict::Able => writeln!(text, "images can be started here ({noted})"),
            Verdict::Unable => writeln!(text, "images cannot be started here ({noted})"),
            Verdict::Unknown => writeln!(
                text,
                "nothing that user {} can see is in the way ({noted}); sudo floe doctor sees more",
                self.user
            ),
        };
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn report(user: u32, checks: Vec<Check>) -> Report {
        let why = "the kernel asks before it reads what is missing".to_owned();
        Report::of(user, false, checks, Reading { path: Some(ReadPath::Erofs), why })
    }

    fn some() -> Vec<Check> {
        vec![
            Group::Runtime.failed("program", "looking for runc: no such program", "apt-get install runc"),
            Group::Kernel.ok("version", "Linux 6.18.0"),
            Group::Kernel.warning("overlay-fuse", "too deep", "mount a volume"),
            Group::Keeper.skipped("keeper", "nothing is installed yet"),
        ]
    }

    #[test]
    fn people_read_groups_states_and_hints() {
        let wanted = "\
kernel
  ok       version        Linux 6.18.0
  warning  overlay-fuse   too deep
                          hint: mount a volume
runtime
  FAILED   program        looking for runc: no such program
                          hint: apt-get install runc
keeper
  skipped  keeper         nothing is installed yet
images are read by: erofs (the kernel asks before it reads what is missing)
images cannot be started here (1 failed, 1 warnings)
";
        assert_eq!(report(0, some()).text(), wanted);
    }

    #[test]
    fn programs_read_stable_keys() {
        let json = serde_json::to_value(report(0, some())).unwrap();
        let keys = |value: &serde_json::Value| -> Vec<String> {
            value.as_object().unwrap().keys().cloned().collect()
        };
        let mut top = keys(&json);
        top.sort();
        assert_eq!(top, ["checks", "pre", "reading", "user", "verdict", "version"]);
        assert_eq!(json["verdict"], "unable");
        assert_eq!(json["reading"]["path"], "erofs");
        assert_eq!(
            json["checks"][2],
            serde_json::json!({
                "group": "runtime",
                "name": "program",
                "state": "failed",
                "found": "looking for runc: no such program",
                "hint": "apt-get install runc",
            })
        );
        assert!(json["checks"][0]["hint"].is_null());
    }

    #[test]
    fn what_failed_decides_and_warnings_do_not() {
        let mut checks = some();
        assert_eq!(report(0, checks.clone()).code(), Code::Unable);
        checks.remove(0);
        assert_eq!(
            (report(0, checks.clone()).verdict, report(0, checks.clone()).code()),
            (Verdict::Able, Code::Done)
        );
        let user = report(1000, checks);
        assert_eq!((user.verdict, user.code()), (Verdict::Unknown, Code::Done));
        assert!(user.text().contains("sudo floe doctor sees more"));
    }
}
