//! Where a registry's requests go: mirrors, certificates, plain HTTP.
//!
//! Reads containerd's `certs.d/<host>/hosts.toml` and Docker's `certs.d/<host>/*.{crt,cert,key}`. Only says what
//! the files say; connecting is left to [`crate::transport`].

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use http::{HeaderMap, HeaderName, HeaderValue};
use reqwest::Url;
use serde::Deserialize;

use crate::config::Config;
use crate::error::Error;
use crate::limits;
use crate::names::Host;

/// What an endpoint may be asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Capability {
    /// Content by digest.
    Pull,
    /// Which digest a tag has.
    Resolve,
    /// Taking content in.
    Push,
    /// Listing artifacts; newer versions of containerd write it.
    Referrers,
}

/// What is known about the protocol of an endpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scheme {
    Http,
    Https,
    /// A loopback host of which nothing was said: it is asked.
    Ask,
}

/// How to make sure of a server, and to show who we are.
#[derive(Debug, Clone, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct TlsProfile {
    /// PEM files of authorities besides the system's.
    pub(crate) ca: Vec<PathBuf>,
    /// Certificate and key of ours; both may be in one file.
    pub(crate) client: Vec<(PathBuf, Option<PathBuf>)>,
    /// Trust any certificate. Only where a `hosts.toml` says so.
    pub(crate) skip_verify: bool,
}

/// One place that may answer for a registry.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct EndpointConfig {
    pub(crate) host: Host,
    pub(crate) scheme: Scheme,
    /// Path before `/<name>/…`: `/v2` as a rule.
    pub(crate) prefix: String,
    pub(crate) capabilities: Vec<Capability>,
    pub(crate) tls: TlsProfile,
    pub(crate) headers: HeaderMap,
    /// For a mirror: the registry meant, sent as `ns`.
    pub(crate) mirror_of: Option<Host>,
}

impl EndpointConfig {
    pub(crate) fn can(&self, capability: Capability) -> bool {
        self.capabilities.contains(&capability)
    }
}

const ALL: [Capability; 4] = [Capability::Pull, Capability::Resolve, Capability::Push, Capability::Referrers];

/// Returns where to ask for a registry's content, in order.
pub(crate) fn endpoints(config: &Config, registry: &Host) -> Result<Vec<EndpointConfig>, Error> {
    let Some(dir) = directory(config, registry) else {
        return Ok(vec![upstream(config, registry, TlsProfile::default())]);
    };
    match read(&dir.join("hosts.toml"))? {
        Some(text) => from_toml(config, registry, &dir, &text),
        None => Ok(vec![upstream(config, registry, docker_certificates(&dir)?)]),
    }
}

/// The directory for a host, under the names containerd tries: `host_5000_`, `host:5000`, `_default`.
fn directory(config: &Config, registry: &Host) -> Option<PathBuf> {
    let mut names = vec![registry.to_string(), "_default".into()];
    if let Some(port) = registry.port() {
        let name = registry.as_str().trim_end_matches(&format!(":{port}"));
        names.insert(0, format!("{name}_{port}_"));
    }
    let dirs = config.certs_dirs.iter().flat_map(|base| names.iter().map(move |name| base.join(name)));
    dirs.into_iter().find(|dir| dir.is_dir())
}

/// Where a registry is asked: Docker Hub is the one that is called otherwise than its host.
pub(crate) fn api_host(registry: &Host) -> Host {
    match registry.as_str() {
        "docker.io" => "registry-1.docker.io".parse().unwrap_or_else(|_| registry.clone()),
        _ => registry.clone(),
    }
}

/// The registry itself.
fn upstream(config: &Config, registry: &Host, tls: TlsProfile) -> EndpointConfig {
    let host = api_host(registry);
    let mut endpoint = EndpointConfig {
        scheme: Scheme::Https,
        prefix: "/v2".into(),
        capabilities: ALL.into(),
        tls,
        headers: HeaderMap::new(),
        mirror_of: None,
        host,
    };
    apply(config, registry, &mut endpoint, false);
    endpoint
}

/// Adds what our own configuration says about a host. It goes before a scheme that was only assumed.
fn apply(config: &Config, registry: &Host, endpoint: &mut EndpointConfig, written: bool) {
    let own = config.hosts.get(&endpoint.host).or_else(|| config.hosts.get(registry));
    endpoint.tls.ca.extend(own.iter().flat_map(|host| host.ca.iter().cloned()));
    endpoint.scheme = match own.and_then(|host| host.plain_http) {
        Some(true) => Scheme::Http,
        Some(false) => Scheme::Https,
        None if written => endpoint.scheme,
        None if endpoint.host.is_loopback() && endpoint.tls == TlsProfile::default() => Scheme::Ask,
        None => Scheme::Https,
    };
}

#[derive(Deserialize)]
struct HostsFile {
    server: Option<String>,
    #[serde(flatten)]
    upstream: HostSection,
    #[serde(default)]
    host: BTreeMap<String, toml::Spanned<HostSection>>,
}

/// Unknown keys are ignored, because containerd's set grows.
#[derive(Deserialize, Default)]
struct HostSection {
    capabilities: Option<Vec<String>>,
    ca: Option<OneOrMany>,
    client: Option<Client>,
    skip_verify: Option<bool>,
    #[serde(default)]
    header: BTreeMap<String, OneOrMany>,
    override_path: Option<bool>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum OneOrMany {
    One(String),
    Many(Vec<String>),
}

impl OneOrMany {
    fn list(&self) -> &[String] {
        match self {
            Self::One(one) => std::slice::from_ref(one),
            Self::Many(many) => many,
        }
    }
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Client {
    One(String),
    Files(Vec<String>),
    Pairs(Vec<(String, String)>),
}

pub(crate) fn from_toml(
    config: &Config,
    registry: &Host,
    dir: &Path,
    text: &str,
) -> Result<Vec<EndpointConfig>, Error> {
    let file = dir.join("hosts.toml");
    let bad = |why: String| Error::config(file.display().to_string(), why);
    let parsed: HostsFile = toml::from_str(text).map_err(|error| bad(error.to_string()))?;
    let mut sections: Vec<_> = parsed.host.into_iter().collect();
    // Mirrors are asked in the order in which they were written, which a table does not keep.
    sections.sort_by_key(|(_, section)| section.span().start);
    let mut endpoints = Vec::new();
    for (url, section) in sections {
        let mut endpoint = section_endpoint(config, registry, dir, &url, section.get_ref()).map_err(bad)?;
        endpoint.mirror_of = (endpoint.host != *registry).then(|| registry.clone());
        endpoints.push(endpoint);
    }
    endpoints.push(match &parsed.server {
        Some(url) => section_endpoint(config, registry, dir, url, &parsed.upstream).map_err(bad)?,
        None => {
            let mut own = upstream(config, registry, TlsProfile::default());
            let written =
                section_endpoint(config, registry, dir, own.host.as_str(), &parsed.upstream).map_err(bad)?;
            own.tls = written.tls;
            own.capabilities = written.capabilities;
            own.headers = written.headers;
            own
        }
    });
    Ok(endpoints)
}

fn section_endpoint(
    config: &Config,
    registry: &Host,
    dir: &Path,
    url: &str,
    section: &HostSection,
) -> Result<EndpointConfig, String> {
    let has_scheme = url.contains("://");
    let full = if has_scheme { url.to_owned() } else { format!("https://{url}") };
    let parsed = Url::parse(&full).map_err(|error| format!("{url:?}: {error}"))?;
    let scheme = match parsed.scheme() {
        "http" => Scheme::Http,
        "https" => Scheme::Https,
        other => return Err(format!("{url:?}: scheme {other:?} is neither http nor https")),
    };
    let host = parsed.host_str().unwrap_or_default();
    let host = parsed.port().map_or(host.to_owned(), |port| format!("{host}:{port}"));
    let path = parsed.path().trim_end_matches('/');
    let prefix = match path {
        _ if section.override_path == Some(true) => path.to_owned(),
        "" => "/v2".into(),
        _ if path.ends_with("/v2") => path.to_owned(),
        _ => format!("{path}/v2"),
    };
    let capabilities = match &section.capabilities {
        None => ALL.into(),
        Some(names) => names.iter().filter_map(|name| capability(name)).collect(),
    };
    let relative = |file: &String| dir.join(file);
    let mut headers = HeaderMap::new();
    for (name, values) in &section.header {
        for value in values.list() {
            let name = HeaderName::try_from(name).map_err(|_| format!("{name:?} is no header name"))?;
            // The value may be a credential, so it is not repeated.
            let mut value = HeaderValue::try_from(value).map_err(|_| format!("header {name}: bad value"))?;
            value.set_sensitive(true);
            headers.append(name, value);
        }
    }
    let mut endpoint = EndpointConfig {
        host: host.parse().map_err(|error| format!("{url:?}: {error}"))?,
        scheme,
        prefix,
        capabilities,
        tls: TlsProfile {
            ca: section.ca.iter().flat_map(OneOrMany::list).map(relative).collect(),
            client: match &section.client {
                None => Vec::new(),
                Some(Client::One(file)) => vec![(relative(file), None)],
                Some(Client::Files(files)) => files.iter().map(|file| (relative(file), None)).collect(),
                Some(Client::Pairs(pairs)) => pairs
                    .iter()
                    .map(|(cert, key)| (relative(cert), (!key.is_empty()).then(|| relative(key))))
                    .collect(),
            },
            skip_verify: section.skip_verify.unwrap_or(false),
        },
        headers,
        mirror_of: None,
    };
    apply(config, registry, &mut endpoint, has_scheme);
    Ok(endpoint)
}

fn capability(name: &str) -> Option<Capability> {
    match name {
        "pull" => Some(Capability::Pull),
        "resolve" => Some(Capability::Resolve),
        "push" => Some(Capability::Push),
        "referrers" => Some(Capability::Referrers),
        _ => None,
    }
}

/// Docker's convention: `*.crt` are authorities, `x.cert` with `x.key` is a certificate of ours.
fn docker_certificates(dir: &Path) -> Result<TlsProfile, Error> {
    let doing = || format!("listing {}", dir.display());
    let mut profile = TlsProfile::default();
    for entry in std::fs::read_dir(dir).map_err(|error| Error::io(doing(), error))? {
        let path = entry.map_err(|error| Error::io(doing(), error))?.path();
        match path.extension().and_then(|extension| extension.to_str()) {
            Some("crt") => profile.ca.push(path),
            Some("cert") => {
                let key = path.with_extension("key");
                profile.client.push((path, Some(key)));
            }
            _ => {}
        }
    }
    profile.ca.sort();
    profile.client.sort();
    Ok(profile)
}

/// Reads a small file whole; `None` if there is none.
pub(crate) fn read(path: &Path) -> Result<Option<String>, Error> {
    use std::io::Read;
    let doing = || format!("reading {}", path.display());
    let file = match std::fs::File::open(path) {
        Ok(file) => file,
        Err(error)
            if matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) =>
        {
            return Ok(None);
        }
        Err(error) => return Err(Error::io(doing(), error)),
    };
    let mut text = String::new();
    file.take(limits::CONFIG_FILE + 1)
        .read_to_string(&mut text)
        .map_err(|error| Error::io(doing(), error))?;
    match text.len() as u64 {
        size if size > limits::CONFIG_FILE => {
            Err(Error::TooLarge { what: path.display().to_string(), size, limit: limits::CONFIG_FILE })
        }
        _ => Ok(Some(text)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::HostConfig;

    fn host(text: &str) -> Host {
        text.parse().unwrap()
    }

    fn with_dir(name: &str, files: &[(&str, &str)]) -> (tempfile::TempDir, Config) {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir(dir.path().join(name)).unwrap();
        for (file, text) in files {
            std::fs::write(dir.path().join(name).join(file), text).unwrap();
        }
        let config = Config { certs_dirs: vec![dir.path().into()], ..Config::isolated() };
        (dir, config)
    }

    #[test]
    fn without_files_the_host_itself() {
        let mut config = Config::isolated();
        let one = |config: &Config, name: &str| endpoints(config, &host(name)).unwrap().remove(0);
        assert_eq!(one(&config, "docker.io").host.as_str(), "registry-1.docker.io");
        assert_eq!(one(&config, "a.example").scheme, Scheme::Https);
        assert_eq!(one(&config, "localhost:5000").scheme, Scheme::Ask);
        let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
        config.hosts.insert(host("a.example"), plain);
        config.hosts.insert(host("[::1]:1"), HostConfig { plain_http: Some(false), ..HostConfig::default() });
        assert_eq!(one(&config, "a.example").scheme, Scheme::Http);
        assert_eq!(one(&config, "[::1]:1").scheme, Scheme::Https);
    }

    #[test]
    fn mirrors_in_the_order_written() {
        let text = r#"
server = "https://real.example"
ca = "/etc/ca.pem"
[host."https://z.example:5000"]
capabilities = ["pull"]
ca = ["one.pem", "/two.pem"]
[host."https://z.example:5000".header]
x-key = ["a", "b"]
[host."http://a.example/path"]
skip_verify = true
[host."m.example/own"]
override_path = true
client = [["c.pem", "k.pem"], ["both.pem", ""]]
"#;
        let (dir, config) = with_dir("r.example:443", &[("hosts.toml", text)]);
        let found = endpoints(&config, &host("r.example:443")).unwrap();
        let base = dir.path().join("r.example:443");
        let names: Vec<_> = found.iter().map(|e| (e.host.as_str(), e.scheme, e.prefix.as_str())).collect();
        assert_eq!(
            names,
            [
                ("z.example:5000", Scheme::Https, "/v2"),
                ("a.example", Scheme::Http, "/path/v2"),
                ("m.example", Scheme::Https, "/own"),
                ("real.example", Scheme::Https, "/v2"),
            ]
        );
        assert_eq!(found[0].tls.ca, [base.join("one.pem"), "/two.pem".into()]);
        assert!(found[0].can(Capability::Pull) && !found[0].can(Capability::Resolve));
        assert_eq!(found[0].headers.get_all("x-key").iter().count(), 2);
        assert!(found[1].tls.skip_verify && found[1].can(Capability::Push));
        assert_eq!(found[1].mirror_of, Some(host("r.example:443")));
        assert_eq!(
            found[2].tls.client,
            [(base.join("c.pem"), Some(base.join("k.pem"))), (base.join("both.pem"), None)]
        );
        assert_eq!((found[3].mirror_of.clone(), found[3].tls.ca.clone()), (None, vec!["/etc/ca.pem".into()]));
    }

    #[test]
    fn docker_and_default_directories() {
        let (dir, config) =
            with_dir("r.example_5000_", &[("b.crt", ""), ("a.crt", ""), ("c.cert", ""), ("c.key", "")]);
        let found = endpoints(&config, &host("r.example:5000")).unwrap();
        let base = dir.path().join("r.example_5000_");
        assert_eq!(found[0].tls.ca, [base.join("a.crt"), base.join("b.crt")]);
        assert_eq!(found[0].tls.client, [(base.join("c.cert"), Some(base.join("c.key")))]);

        let (_dir, config) = with_dir("_default", &[("hosts.toml", "[host.\"http://127.0.0.1:1\"]\n")]);
        let found = endpoints(&config, &host("docker.io")).unwrap();
        assert_eq!(
            found.iter().map(|e| e.host.as_str()).collect::<Vec<_>>(),
            ["127.0.0.1:1", "registry-1.docker.io"]
        );
    }

    #[test]
    fn bad_files_are_named() {
        for text in [
            "server = 1",
            "[host.\"ftp://a\"]\n",
            "[host.\"a b\"]\n",
            "[host.\"a\".header]\n\"b c\" = \"d\"\n",
        ] {
            let (_dir, config) = with_dir("a.example", &[("hosts.toml", text)]);
            let error = endpoints(&config, &host("a.example")).unwrap_err().to_string();
            assert!(error.contains("hosts.toml"), "{error}");
        }
    }
}
