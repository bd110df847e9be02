//! What a user may ask of a run, each option parsed at the door.

use std::fmt;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context, Result};

use super::ready::ReadyWhen;
use crate::exit::{Code, Coded, misused};

/// The network of a container.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Net {
    /// The host's network, with its name and its resolver.
    #[default]
    Host,
    /// A network of its own with nothing but loopback.
    None,
}

impl FromStr for Net {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "host" => Ok(Self::Host),
            "none" => Ok(Self::None),
            _ => Err(format!("{text:?} is no network: use host or none")),
        }
    }
}

impl fmt::Display for Net {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Host => "host",
            Self::None => "none",
        })
    }
}

/// A directory or file of the host seen inside the container: `SRC:DST[:ro]`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Volume {
    /// Path on the host; absolute once [`Volume::check`] has seen it.
    pub source: PathBuf,
    /// Absolute path in the container.
    pub destination: PathBuf,
    /// The container may not write to it.
    pub read_only: bool,
}

impl FromStr for Volume {
    type Err = String;
    fn from_str(text: &str) -> Result<Self, String> {
        let parts: Vec<&str> = text.split(':').collect();
        let (source, destination, read_only) = match parts[..] {
            [source, destination] | [source, destination, "rw"] => (source, destination, false),
            [source, destination, "ro"] => (source, destination, true),
            [_, _, mode] => return Err(format!("volume {text:?}: mode {mode:?} is neither ro nor rw")),
            _ => return Err(format!("volume {text:?} is not SRC:DST or SRC:DST:ro")),
        };
        if source.is_empty() {
            return Err(format!("volume {text:?} has no source"));
        }
        if !destination.starts_with('/') || Path::new(destination) == Path::new("/") {
            return Err(format!("volume {text:?}: the destination must be an absolute path below /"));
        }
        Ok(Self { source: source.into(), destination: destination.into(), read_only })
    }
}

impl Volume {
    /// Returns the volume with an absolute source that exists. A missing one is an error, not a new directory.
    pub fn check(&self) -> Result<Self> {
        let source = std::fs::canonicalize(&self.source).with_context(|| {
            Coded::new(Code::Misused, format!("looking for the volume {}", self.source.display()))
        })?;
        Ok(Self { source, ..self.clone() })
    }
}

/// Where one of the container's output streams goes.
#[derive(Debug, Default)]
pub enum Output {
    /// To the same stream of this process.
    #[default]
    Pass,
    /// Nowhere.
    Discard,
    /// Into this file or pipe.
    To(OwnedFd),
}

/// Where the container's input comes from.
#[derive(Debug, Default)]
pub enum Input {
    /// From this process's.
    #[default]
    Pass,
    /// There is none.
    Null,
    /// From this file or pipe.
    From(OwnedFd),
}

impl From<File> for Output {
    fn from(file: File) -> Self {
        Self::To(file.into())
    }
}

/// Everything a run needs besides the image.
#[derive(Debug)]
pub struct Options {
    /// The store; the run's own directory is `run/<id>` in it.
    pub store: PathBuf,
    /// Where the runtime keeps its state, normally where sockets are. Must be gone after a reboot.
    pub state: PathBuf,
    /// The OCI runtime; otherwise runc or crun is looked for.
    pub runtime: Option<PathBuf>,
    /// Replaces the image's Entrypoint and drops its Cmd.
    pub entrypoint: Option<Vec<String>>,
    /// Replaces the image's Cmd.
    pub args: Vec<String>,
    /// `NAME=value`, or `NAME` to pass ours on.
    pub env: Vec<String>,
    /// Replaces the image's User.
    pub user: Option<String>,
    /// Replaces the image's WorkingDir.
    pub workdir: Option<PathBuf>,
    /// The container's name for itself.
    pub hostname: Option<String>,
    /// Its network.
    pub net: Net,
    /// What it sees of the host's files.
    pub volumes: Vec<Volume>,
    /// It gets a terminal; ours becomes its.
    pub tty: bool,
    /// Its standard input.
    pub stdin: Input,
    /// Its standard output.
    pub stdout: Output,
    /// Its standard error.
    pub stderr: Output,
    /// When it counts as ready.
    pub ready: Option<ReadyWhen>,
    /// How long it may take to become ready; then it is stopped and the run fails.
    pub ready_timeout: Option<Duration>,
    /// Stop it once it is ready, and call that success.
    pub exit_when_ready: bool,
    /// How long it has to end after its stop signal before it is killed. Docker's ten seconds by default.
    pub stop_timeout: Duration,
}

impl Options {
    /// Returns the defaults for a store.
    pub fn new(store: impl Into<PathBuf>) -> Self {
        Self {
            store: store.into(),
            state: crate::home::run(),
            runtime: None,
            entrypoint: None,
            args: Vec::new(),
            env: Vec::new(),
            user: None,
            workdir: None,
            hostname: None,
            net: Net::default(),
            volumes: Vec::new(),
            tty: false,
            stdin: Input::default(),
            stdout: Output::default(),
            stderr: Output::default(),
            ready: None,
            ready_timeout: None,
            exit_when_ready: false,
            stop_timeout: Duration::from_secs(10),
        }
    }

    /// Refuses combinations that make no sense.
    pub(super) fn check(&self) -> Result<()> {
        if self.exit_when_ready && self.ready.is_none() {
            return Err(misused("--exit-when-ready needs --ready to say when that is"));
        }
        if let Some(name) = &self.hostname {
            // The kernel takes 64 bytes; names that are no names confuse resolvers.
            let valid = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_');
            if name.is_empty() || name.len() > 64 || !name.bytes().all(valid) {
                return Err(misused(format!("{name:?} cannot be a host name")));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn volumes_are_parsed_at_the_door() {
        let volume = |source: &str, destination: &str, read_only| {
            Ok(Volume { source: source.into(), destination: destination.into(), read_only })
        };
        assert_eq!("/a:/b".parse(), volume("/a", "/b", false));
        assert_eq!("/a:/b:rw".parse(), volume("/a", "/b", false));
        assert_eq!("./a:/b/c:ro".parse(), volume("./a", "/b/c", true));
        for bad in ["", "/a", ":/b", "/a:", "/a:b", "/a:/", "/a:/b:", "/a:/b:rx", "/a:/b:ro:z"] {
            assert!(bad.parse::<Volume>().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_missing_source_is_not_created() {
        let dir = tempfile::tempdir().unwrap();
        let volume: Volume = format!("{}/none:/x", dir.path().display()).parse().unwrap();
        assert_eq!(crate::exit::code_of(&volume.check().unwrap_err()), Code::Misused);
        assert!(!dir.path().join("none").exists());
    }

    #[test]
    fn networks_are_two() {
        assert_eq!("host".parse(), Ok(Net::Host));
        assert_eq!("none".parse(), Ok(Net::None));
        assert!("bridge".parse::<Net>().is_err());
    }

    #[test]
    fn nonsense_is_refused_before_anything_happens() {
        let mut options = Options::new("/nowhere");
        assert!(options.check().is_ok());
        options.exit_when_ready = true;
        assert!(options.check().is_err());
        options.ready = Some(ReadyWhen::Exit);
        assert!(options.check().is_ok());
        for (name, good) in [("a", true), ("a-b.c_1", true), ("", false), ("a b", false), ("ä", false)] {
            options.hostname = Some(name.into());
            assert_eq!(options.check().is_ok(), good, "{name:?}");
        }
        options.hostname = Some("x".repeat(65));
        assert!(options.check().is_err());
    }
}
