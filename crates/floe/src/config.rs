//! The configuration file, `/etc/floe/config.toml`. Everything has a default; no file is needed.
//!
//! ```toml
//! [registry."registry.example:5000"]
//! plain_http = true        # loopback hosts may speak plain HTTP anyway
//! ca = "/etc/floe/ca.pem"  # one more certificate authority for this host
//! trust = "registry"       # take unsigned indexes from this host, also for digests
//! [registry."registry.example:5000".budgets]
//! in_flight = 16           # requests under way at once, 1..=256
//! background = 12          # of these, how many for what nobody waits for yet, 1..=256
//! per_second = 100         # requests begun in any one second, 1..=10000
//! retries = 5              # of one request or range, 0..=20; progress begins them anew
//! retry_min = 0.2          # seconds before the first retry, doubled with each, 0..=3600
//! retry_max = 20           # and at most so many, unless the registry asks for more, 0..=3600
//! stall = 20               # seconds without a byte after which a request is given up, 0.1..=3600
//! connect = 10             # seconds to establish a connection, 0.1..=3600
//!
//! [trust]
//! keys = ["/etc/floe/keys/ci.pub"]       # ed25519 public keys (PEM) that may sign indexes
//! require = ["registry.example/prod/"]   # references that need a signed index even as a tag
//!
//! [fetch]
//! background = true        # fetch the rest once the image is ready
//! deadline_seconds = 300   # a read that cannot be served by then fails
//!
//! [mount]
//! path = "auto"            # how images are read: auto, erofs, plain or fuse
//!
//! [store]
//! quota = "50 GiB"         # the most that segments may take, 1 MiB or more; without it there is no quota.
//!                          # Indexes and trees, one or two per cent, come on top
//! reserve = "10 GiB"       # kept free on the store's disk; without it 5 % of the disk, at most 10 GiB
//!
//! [kubelet]                # this node's kubelet: credentials come from its providers first, then from docker's files
//! config = "/etc/kubernetes/credential-providers.yaml"  # its --image-credential-provider-config
//! bin_dir = "/usr/libexec/credential-providers"         # its --image-credential-provider-bin-dir
//!
//! [metrics]
//! listen = "127.0.0.1:9464"  # where GET /metrics tells a Prometheus; unless said, nowhere. Whoever reaches it may ask
//! root = "/var/lib/floe"     # the store whose daemon tells; /var/lib/floe, unless it says so
//!
//! [containerd]
//! socket = "/run/floe/containerd.sock"   # where the daemon is a snapshotter for containerd; it then ends only when told
//! root = "/var/lib/floe"   # the store whose daemon it is; /var/lib/floe, unless it says so
//! image_service = "/run/floe/images.sock"       # for kubelet's --image-service-endpoint: what it says of pods' secrets is heard
//! address = "/run/containerd/containerd.sock"   # where what is asked there is handed on to; there, unless it says so
//!
//! [layers]
//! dir = "/run/floe/layers" # where buildah, podman and CRI-O look layers up; the daemon then ends only when told
//! root = "/var/lib/floe"   # the store whose daemon shows them; /var/lib/floe, unless it says so
//! ```
//!
//! Sizes are bytes, or a whole number with B, kB, MB, GB, TB, KiB, MiB, GiB or TiB. When the store exceeds its quota, or its
//! disk has less than the reserve free, layers that nobody uses and nobody has pinned are evicted, the least recently used
//! first; if that is not enough, what no reader waits for pauses.
//!
//! A storage host that a registry redirects to is a host of its own, with a section of its own.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::size::Size;
use anyhow::Context;
use serde::de::Error as _;
use serde::{Deserialize, Deserializer};

use crate::engine::mounts::ReadPath;

/// Where the file is unless `--config` says otherwise.
pub const DEFAULT_PATH: &str = "/etc/floe/config.toml";

/// Two segments of the usual size; less is a typing error.
const LEAST_QUOTA: u64 = 1 << 20;

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
    /// How images are mounted.
    pub mount: Mount,
    /// How much room the store takes.
    pub store: Store,
    /// Telling what happens.
    pub metrics: Metrics,
    /// The node's kubelet, whose credentials are used.
    #[serde(deserialize_with = "kubelet")]
    pub kubelet: Option<registry::Kubelet>,
    /// Serving containerd.
    pub containerd: Containerd,
    /// Serving containers/storage.
    pub layers: Layers,
}

/// How images are mounted.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Mount {
    /// By which way processes read them, where a command does not say.
    pub path: ReadPath,
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
    /// How much of the host's attention is taken; what is not said is as usual.
    #[serde(deserialize_with = "bounded")]
    pub budgets: registry::Budgets,
}

/// Reads budgets that neither stop all requests nor send thousands.
fn bounded<'de, D: Deserializer<'de>>(from: D) -> Result<registry::Budgets, D::Error> {
    let budgets = registry::Budgets::deserialize(from)?;
    let counts = [
        ("in_flight", budgets.in_flight, 1..=256),
        ("background", budgets.background, 1..=256),
        ("per_second", budgets.per_second, 1..=10_000),
        ("retries", budgets.retries, 0..=20),
    ];
    for (key, count, range) in counts {
        if !range.contains(&count) {
            return Err(D::Error::custom(format!("{key} = {count} is not in {range:?}")));
        }
    }
    let times = [
        ("retry_min", budgets.retry_min, 0.0..=3600.0),
        ("retry_max", budgets.retry_max, 0.0..=3600.0),
        ("stall", budgets.stall, 0.1..=3600.0),
        ("connect", budgets.connect, 0.1..=3600.0),
    ];
    for (key, time, range) in times {
        let seconds = time.as_secs_f64();
        if !range.contains(&seconds) {
            return Err(D::Error::custom(format!("{key} = {seconds} is not in {range:?} seconds")));
        }
    }
    Ok(budgets)
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

/// How much room the store takes.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Store {
    /// The most that segments may take, 1 MiB or more.
    #[serde(deserialize_with = "some")]
    pub quota: Option<Size>,
    /// What is kept free on the store's disk.
    pub reserve: Option<Size>,
}

/// How a monitoring system finds us.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Metrics {
    /// Address and port; without one there is nothing.
    pub listen: Option<std::net::SocketAddr>,
    /// The store whose daemon tells.
    #[serde(deserialize_with = "absolute")]
    pub root: Option<PathBuf>,
}

impl Metrics {
    /// Returns the address if the daemon of this store tells there: of the daemons of a machine one.
    pub fn listen_of(&self, root: &Path) -> anyhow::Result<Option<std::net::SocketAddr>> {
        if_meant("metrics", self.listen, self.root.as_deref(), root)
    }
}

/// How containerd finds us.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Containerd {
    /// The socket of the snapshotter, an absolute path; without one there is none.
    #[serde(deserialize_with = "absolute")]
    pub socket: Option<PathBuf>,
    /// The store whose daemon serves there.
    #[serde(deserialize_with = "absolute")]
    pub root: Option<PathBuf>,
    /// The socket of the image service, an absolute path; without one there is none.
    #[serde(deserialize_with = "absolute")]
    pub image_service: Option<PathBuf>,
    /// containerd's own socket.
    #[serde(deserialize_with = "absolute")]
    pub address: Option<PathBuf>,
}

impl Containerd {
    /// Returns the socket if the daemon of this store serves there: of the daemons of a machine one.
    pub fn socket_of(&self, root: &Path) -> anyhow::Result<Option<&Path>> {
        if_meant("containerd", self.socket.as_deref(), self.root.as_deref(), root)
    }

    /// Returns the socket at which the daemon of this store hears kubelet.
    pub fn image_service_of(&self, root: &Path) -> anyhow::Result<Option<&Path>> {
        if_meant("containerd", self.image_service.as_deref(), self.root.as_deref(), root)
    }

    /// Returns containerd's own socket.
    pub fn address(&self) -> &Path {
        self.address.as_deref().unwrap_or(Path::new(crate::snapshotter::register::ADDRESS))
    }
}

/// How containers/storage, and so buildah, podman and CRI-O, find layers.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Layers {
    /// The directory in which they are shown, an absolute path; without one there is none.
    #[serde(deserialize_with = "absolute")]
    pub dir: Option<PathBuf>,
    /// The store whose daemon shows them.
    #[serde(deserialize_with = "absolute")]
    pub root: Option<PathBuf>,
}

impl Layers {
    /// Returns the directory if the daemon of this store shows layers: of the daemons of a machine one.
    pub fn dir_of(&self, root: &Path) -> anyhow::Result<Option<&Path>> {
        if_meant("layers", self.dir.as_deref(), self.root.as_deref(), root)
    }
}

/// Returns a setting of a section if it is for this store: the one that the section names, or the usual one. A daemon that
/// leaves it to another store's says so, for whoever started it may be waiting for it.
fn if_meant<T>(
    section: &str,
    setting: Option<T>,
    named: Option<&Path>,
    root: &Path,
) -> anyhow::Result<Option<T>> {
    let usual = Path::new(crate::home::STORE);
    let meant = match named {
        Some(named) => crate::daemon::run_dir(named)? == crate::daemon::run_dir(root)?,
        None => root == usual,
    };
    if setting.is_some() && !meant {
        let (theirs, ours) = (named.unwrap_or(usual).display(), root.display());
        tracing::info!(
            "[{section}] is left to the daemon of {theirs}: root = \"{ours}\" in it would make it this one's"
        );
    }
    Ok(setting.filter(|_| meant))
}

/// Reads a path that means the same wherever it is read.
fn absolute<'de, D: Deserializer<'de>>(from: D) -> Result<Option<PathBuf>, D::Error> {
    let path = PathBuf::deserialize(from)?;
    if !path.is_absolute() {
        return Err(D::Error::custom(format!("{} is not an absolute path", path.display())));
    }
    Ok(Some(path))
}

/// Reads where kubelet's programs are: paths that mean the same wherever they are read.
fn kubelet<'de, D: Deserializer<'de>>(from: D) -> Result<Option<registry::Kubelet>, D::Error> {
    let kubelet = registry::Kubelet::deserialize(from)?;
    for path in [&kubelet.config, &kubelet.bin_dir] {
        if !path.is_absolute() {
            return Err(D::Error::custom(format!("{} is not an absolute path", path.display())));
        }
    }
    Ok(Some(kubelet))
}

/// Reads a quota under which something can be kept.
fn some<'de, D: Deserializer<'de>>(from: D) -> Result<Option<Size>, D::Error> {
    let quota = Size::deserialize(from)?;
    if quota.bytes() < LEAST_QUOTA {
        return Err(D::Error::custom("quota is 1 MiB or more; leave it out for none"));
    }
    Ok(Some(quota))
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
        assert_eq!(config.registry["registry.example:5000"].budgets, registry::Budgets::default());
        let bytes = |size: Option<Size>| size.map(Size::bytes);
        assert_eq!(bytes(config.store.quota), Some(50 << 30));
        assert_eq!(bytes(config.store.reserve), Some(10 << 30));
        assert!(toml::from_str::<Config>("[fetch]\nbackgruond = true").is_err());
    }

    #[test]
    fn a_quota_holds_something_and_a_reserve_may_be_nothing() {
        let store = |text: &str| {
            toml::from_str::<Config>(&format!("[store]\n{text}"))
                .map(|config| (config.store.quota.map(Size::bytes), config.store.reserve.map(Size::bytes)))
                .map_err(|error| error.to_string())
        };
        assert_eq!(store(""), Ok((None, None)));
        assert_eq!(store("quota = 1048576\nreserve = 0"), Ok((Some(1 << 20), Some(0))));
        for (bad, complaint) in [
            ("quota = 1048575", "1 MiB or more"),
            ("quota = 0", "1 MiB or more"),
            ("quota = \"50 GB of it\"", "no size"),
            ("quota = true", "50 GiB"),
            ("reserve = -1", "negative"),
            ("reserve = 1.5", "50 GiB"),
            ("reserve = \"2000000 TiB\"", "1 EiB"),
            ("qouta = 1048576", "qouta"),
        ] {
            let error = store(bad).unwrap_err();
            assert!(error.contains(complaint), "{bad}: {error}");
        }
    }

    #[test]
    fn budgets_have_bounds_and_complaints_name_the_key() {
        let host = |line: &str| {
            toml::from_str::<Config>(&format!("[registry.\"a.example\".budgets]\n{line}\n"))
                .map(|config| config.registry["a.example"].budgets.clone())
                .map_err(|error| error.to_string())
        };
        assert_eq!(host("").unwrap(), registry::Budgets::default());
        for (key, good, bad) in [
            ("in_flight", ["1", "256"], ["0", "257"]),
            ("background", ["1", "256"], ["0", "257"]),
            ("per_second", ["1", "10000"], ["0", "10001"]),
            ("retries", ["0", "20"], ["21", "-1"]),
            ("retry_min", ["0", "3600"], ["3600.5", "-1"]),
            ("retry_max", ["0.01", "3600"], ["3601", "nan"]),
            ("stall", ["0.1", "3600"], ["0.09", "inf"]),
            ("connect", ["0.1", "3600"], ["0", "3601"]),
        ] {
            for value in good {
                host(&format!("{key} = {value}")).unwrap();
            }
            for value in bad {
                let error = host(&format!("{key} = {value}")).unwrap_err();
                assert!(error.contains(key), "{error}");
            }
        }
        let budgets = host("in_flight = 3\nretries = 0\nstall = 0.5").unwrap();
        assert_eq!((budgets.in_flight, budgets.retries, budgets.stall), (3, 0, Duration::from_millis(500)));
        assert_eq!(budgets.per_second, registry::Budgets::default().per_second);
        assert!(host("in_fligth = 3").unwrap_err().contains("in_fligth"));
    }

    #[test]
    fn only_the_default_file_may_be_absent() {
        assert!(Config::load(Some(Path::new("/nonexistent/floe.toml"))).is_err());
    }
}
