//! What a user can say about registries. The binary reads it from TOML; every field has a default that works.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;

use crate::credentials::Handed;
use crate::names::Host;

/// Settings of a [`Client`](crate::Client).
#[derive(Debug, Clone, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Config {
    /// Settings of single hosts.
    pub hosts: BTreeMap<Host, HostConfig>,
    /// Directories with one directory per host: containerd's `hosts.toml`, or Docker's `*.crt`. The first
    /// that has one for the host counts.
    pub certs_dirs: Vec<PathBuf>,
    /// Files with credentials in Docker's format, searched in this order. None: the usual ones.
    pub credentials: Option<Vec<PathBuf>>,
    /// Where this node's kubelet gets its credentials; asked before the files.
    pub kubelet: Option<Kubelet>,
    /// Credentials of single repositories that are handed over; asked before all others.
    #[serde(skip)]
    pub handed: Option<Arc<Handed>>,
    /// Budgets of every host that has none of its own.
    pub budgets: Budgets,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            hosts: BTreeMap::new(),
            certs_dirs: ["/etc/containerd/certs.d", "/etc/containers/certs.d", "/etc/docker/certs.d"]
                .map(PathBuf::from)
                .into(),
            credentials: None,
            kubelet: None,
            handed: None,
            budgets: Budgets::default(),
        }
    }
}

impl Config {
    /// Returns settings that read nothing from the machine: no credentials, no `certs.d`.
    pub fn isolated() -> Self {
        Self { certs_dirs: Vec::new(), credentials: Some(Vec::new()), ..Self::default() }
    }
}

/// The credential providers of a node's kubelet: what it is given on its command line.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Kubelet {
    /// `--image-credential-provider-config`.
    pub config: PathBuf,
    /// `--image-credential-provider-bin-dir`.
    pub bin_dir: PathBuf,
}

/// Settings of one host.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct HostConfig {
    /// Whether the host speaks HTTP without TLS. Not said: a loopback host is asked, any other must have TLS.
    pub plain_http: Option<bool>,
    /// PEM files with certificate authorities that are trusted for this host, besides the system's.
    pub ca: Vec<PathBuf>,
    /// Budgets of this host.
    pub budgets: Option<Budgets>,
}

/// How much of a host's attention we take.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Budgets {
    /// Requests whose answer has not fully arrived.
    pub in_flight: u32,
    /// Of these, how many may be in the background, so that a reader finds room at once.
    pub background: u32,
    /// Requests begun in any one second.
    pub per_second: u32,
    /// Retries of one request or range.
    pub retries: u32,
    /// Wait before the first retry; it doubles with each.
    #[serde(with = "seconds")]
    pub retry_min: Duration,
    /// Longest wait before a retry, unless the registry asks for more.
    #[serde(with = "seconds")]
    pub retry_max: Duration,
    /// Time without any progress after which a request counts as failed.
    #[serde(with = "seconds")]
    pub stall: Duration,
    /// Time to establish a connection.
    #[serde(with = "seconds")]
    pub connect: Duration,
}

impl Default for Budgets {
    fn default() -> Self {
        Self {
            in_flight: 16,
            background: 12,
            per_second: 100,
            retries: 5,
            retry_min: Duration::from_millis(200),
            retry_max: Duration::from_secs(20),
            // Object stores answer a cold first byte in some seconds, never in twenty.
            stall: Duration::from_secs(20),
            connect: Duration::from_secs(10),
        }
    }
}

impl Budgets {
    /// Returns the same with every count at least one, so that nothing waits forever.
    pub(crate) fn sane(mut self) -> Self {
        self.in_flight = self.in_flight.max(1);
        self.background = self.background.clamp(1, self.in_flight);
        self.per_second = self.per_second.max(1);
        self
    }
}

/// Durations are written as seconds, whole or not.
mod seconds {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error};

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(from: D) -> Result<Duration, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Number {
            Whole(u64),
            Real(f64),
        }
        match Number::deserialize(from)? {
            Number::Whole(seconds) => Ok(Duration::from_secs(seconds)),
            Number::Real(seconds) => Duration::try_from_secs_f64(seconds).map_err(D::Error::custom),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn toml_with_defaults() {
        let config: Config = toml::from_str(
            "[hosts.\"localhost:5000\"]\nplain_http = true\nca = [\"/a.pem\"]\n[budgets]\nin_flight = 4\nstall = 0.5\nretry_max = 3\n",
        )
        .unwrap();
        let host = &config.hosts[&"localhost:5000".parse().unwrap()];
        assert_eq!(host.plain_http, Some(true));
        assert_eq!(config.budgets.in_flight, 4);
        assert_eq!(config.budgets.per_second, 100);
        assert_eq!(config.budgets.stall, Duration::from_millis(500));
        assert_eq!(config.budgets.clone().sane().background, 4);
        assert!(!config.certs_dirs.is_empty());
        assert!(toml::from_str::<Config>("[hosts.\"a/b\"]\n").is_err());
        assert!(toml::from_str::<Config>("[budgets]\nstall = -1.0\n").is_err());
        assert!(toml::from_str::<Config>("no_such = 1\n").is_err());
    }
}
