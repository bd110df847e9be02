//! The configuration file, `/etc/floe/config.toml`. Everything has a default; no file is needed.
//!
//! ```toml
//! [registry."registry.example:5000"]
//! plain_http = true        # loopback hosts may speak plain HTTP anyway
//! ca = "/etc/floe/ca.pem"  # one more certificate authority for this host
//! trust = "registry"       # take unsigned indexes from this host, also for digests
//!
//! [trust]
//! keys = ["/etc/floe/keys/ci.pub"]       # ed25519 public keys (PEM) that may sign indexes
//! require = ["registry.example/prod/"]   # references that need a signed index even as a tag
//!
//! [fetch]
//! background = true        # fetch the rest once the image is ready
//! deadline_seconds = 300   # a read that cannot be served by then fails
//! ```

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::Context;
use serde::Deserialize;

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/floe/config.toml";

/// The whole file.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Config {
    /// Per registry host, as written in references: `host` or `host:port`.
    pub registry: BTreeMap<String, Host>,
    /// Whose indexes are believed.
    pub trust: Trust,
    /// What is fetched when.
    pub fetch: Fetch,
}

/// One registry host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Host {
    /// Speak HTTP without TLS.
    pub plain_http: bool,
    /// A PEM file with certificate authorities to trust besides the system's.
    pub ca: Option<PathBuf>,
    /// Whether unsigned indexes from this host are believed.
    pub trust: HostTrust,
}

/// Whether unsigned indexes from a host are believed.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum HostTrust {
    /// Only where the index cannot weaken what the reference promises: a bare tag under no policy.
    #[default]
    Auto,
    /// Always: whoever can write to this registry is trusted.
    Registry,
}

/// Whose indexes are believed.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Trust {
    /// Files with ed25519 public keys (PEM, SubjectPublicKeyInfo).
    pub keys: Vec<PathBuf>,
    /// Prefixes of references (`host/repository`) that need a signed index even as a bare tag.
    pub require: Vec<String>,
}

/// What is fetched when.
#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Fetch {
    /// Fetch the rest of an image in the background once it is ready.
    pub background: bool,
    /// Seconds after which a read that cannot be served fails: 1..=86,400.
    pub deadline_seconds: u32,
}

impl Default for Fetch {
    fn default() -> Self {
        Self { background: true, deadline_seconds: 300 }
    }
}

impl Fetch {
    /// Returns how long a reader waits at most.
    pub fn deadline(&self) -> Duration {
        Duration::from_secs(u64::from(self.deadline_seconds.clamp(1, 86_400)))
    }
}

impl Config {
    /// Reads the file; only the default path may be absent.
    pub fn load(path: Option<&Path>) -> anyhow::Result<Self> {
        let file = path.unwrap_or(Path::new(DEFAULT_PATH));
        let text = match std::fs::read_to_string(file) {
            Ok(text) => text,
            Err(e) if path.is_none() && e.kind() == std::io::ErrorKind::NotFound => {
                return Ok(Self::default());
            }
            Err(e) => return Err(e).with_context(|| format!("reading the configuration {}", file.display())),
        };
        toml::from_str(&text).with_context(|| format!("parsing the configuration {}", file.display()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_documented_example_parses_and_typos_do_not() {
        let doc = include_str!("config.rs");
        let example: String = doc
            .lines()
            .skip_while(|l| !l.contains("```toml"))
            .skip(1)
            .take_while(|l| !l.contains("```"))
            .map(|l| format!("{}\n", l.trim_start_matches("//!")))
            .collect();
        let config: Config = toml::from_str(&example).unwrap();
        assert_eq!(config.registry["registry.example:5000"].trust, HostTrust::Registry);
        assert_eq!(config.fetch.deadline(), Duration::from_secs(300));
        assert!(toml::from_str::<Config>("[fetch]\nbackgruond = true").is_err());
    }

    #[test]
    fn only_the_default_file_may_be_absent() {
        assert!(Config::load(Some(Path::new("/nonexistent/floe.toml"))).is_err());
    }
}
