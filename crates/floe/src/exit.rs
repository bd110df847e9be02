//! Exit codes and how an error is shown: the one place that chooses either.
//!
//! | code | meaning |
//! |---|---|
//! | 0 | done |
//! | 1 | failed |
//! | 2 | misused: the command line or the configuration does not make sense |
//! | 3 | `floe doctor` found that images cannot be started here |
//! | 4 | `floe diff` or `floe check` found a difference |
//! | 125 | `floe run` failed before the container's process ran |
//! | 126 | `floe run` found the command but could not execute it |
//! | 127 | `floe run` did not find the command in the image |
//! | 130 | `floe copy`, `convert` or `optimize` was interrupted, and has tidied up |
//! | 128+n | the container's process was ended by signal n |
//! | other | `floe run` passes on what the container's process returned |
//!
//! 125, 126 and 127 are what `docker run` and `podman run` return, so scripts keep working.

use std::fmt;
use std::io::{self, Write};

/// An exit code with a meaning.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Code {
    /// All done.
    Done,
    /// Something went wrong.
    Failed,
    /// The command line or the configuration does not make sense.
    Misused,
    /// Images cannot be started on this machine.
    Unable,
    /// Two images are not the same.
    Differ,
    /// A container could not be started.
    NotStarted,
    /// The container's command exists but cannot be executed.
    NotExecutable,
    /// The container's command does not exist.
    NotFound,
    /// The user has ended it, and it has tidied up.
    Interrupted,
    /// What a container returned.
    Container(u8),
}

impl Code {
    /// Returns the number the process exits with.
    pub const fn number(self) -> u8 {
        match self {
            Self::Done => 0,
            Self::Failed => 1,
            Self::Misused => 2,
            Self::Unable => 3,
            Self::Differ => 4,
            Self::NotStarted => 125,
            Self::NotExecutable => 126,
            Self::NotFound => 127,
            Self::Interrupted => 130,
            Self::Container(code) => code,
        }
    }
}

impl From<Code> for std::process::ExitCode {
    fn from(code: Code) -> Self {
        code.number().into()
    }
}

/// Context of an `anyhow` error: what we were doing, and what the user can do about it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Hint {
    what: String,
    hint: String,
}

impl Hint {
    /// Returns a context that shows `what` in the chain of causes and `hint` at its end.
    pub fn new(what: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { what: what.into(), hint: hint.into() }
    }
}

impl fmt::Display for Hint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Context of an `anyhow` error that also decides the exit code.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Coded {
    what: String,
    code: Code,
}

impl Coded {
    /// Returns a context that shows `what` in the chain of causes and exits with `code`.
    pub fn new(code: Code, what: impl Into<String>) -> Self {
        Self { what: what.into(), code }
    }
}

impl fmt::Display for Coded {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.what)
    }
}

/// Returns an error that says the user asked for something that makes no sense.
pub fn misused(what: impl Into<String>) -> anyhow::Error {
    anyhow::Error::msg(Coded::new(Code::Misused, what))
}

/// Returns the exit code an error asks for: that of its outermost [`Coded`], else [`Code::Failed`].
pub fn code_of(error: &anyhow::Error) -> Code {
    error.downcast_ref::<Coded>().map_or(Code::Failed, |coded| coded.code)
}

/// Returns what the user can do about an error, if anybody said.
pub fn hint_of(error: &anyhow::Error) -> Option<&str> {
    error.downcast_ref::<Hint>().map(|hint| &*hint.hint)
}

/// Writes an error, its causes and its hint, one per line.
pub fn write_error(error: &anyhow::Error, out: &mut dyn Write) -> io::Result<()> {
    writeln!(out, "floe: {error}")?;
    let mut above = error.to_string();
    for cause in error.chain().skip(1) {
        // Several libraries repeat their cause in their own text; saying it twice helps nobody.
        let cause = cause.to_string();
        if !above.ends_with(&cause) {
            writeln!(out, "  because: {cause}")?;
        }
        above = cause;
    }
    if let Some(hint) = hint_of(error) {
        writeln!(out, "  hint: {hint}")?;
    }
    Ok(())
}

/// Shows an error on stderr and returns the code to exit with.
pub fn report(error: &anyhow::Error) -> Code {
    let _ = write_error(error, &mut io::stderr().lock()); // there is nowhere left to complain
    code_of(error)
}

#[cfg(test)]
mod tests {
    use super::*;
    use anyhow::{Context, anyhow};

    fn shown(error: &anyhow::Error) -> String {
        let mut out = Vec::new();
        write_error(error, &mut out).unwrap();
        String::from_utf8(out).unwrap()
    }

    #[test]
    fn numbers_are_stable() {
        let table = [
            (Code::Done, 0),
            (Code::Failed, 1),
            (Code::Misused, 2),
            (Code::Unable, 3),
            (Code::Differ, 4),
            (Code::NotStarted, 125),
            (Code::NotExecutable, 126),
            (Code::NotFound, 127),
            (Code::Interrupted, 130),
            (Code::Container(143), 143),
        ];
        for (code, number) in table {
            assert_eq!(code.number(), number);
        }
    }

    #[test]
    fn an_error_shows_its_causes_and_its_hint() {
        let error = anyhow!("no such file")
            .context(Hint::new("finding runc", "apt-get install runc"))
            .context("running the image");
        assert_eq!(
            shown(&error),
            "floe: running the image\n  because: finding runc\n  because: no such file\n  hint: apt-get install runc\n"
        );
        assert_eq!(code_of(&error), Code::Failed);
    }

    #[test]
    fn a_cause_already_told_is_not_repeated() {
        let error = Err::<(), _>(anyhow!("disk full")).context("writing: disk full").unwrap_err();
        assert_eq!(shown(&error), "floe: writing: disk full\n");
    }

    #[test]
    fn the_code_is_found_under_other_context() {
        let error = misused("volume \"x\" has no destination").context("reading the command line");
        assert_eq!(code_of(&error), Code::Misused);
        let error = anyhow!("x").context(Coded::new(Code::NotStarted, "starting")).context("running");
        assert_eq!(code_of(&error), Code::NotStarted);
    }
}
