//! Credentials of a node's kubelet: the programs it asks for an image's.
//!
//! The file that kubelet is given as `--image-credential-provider-config`, YAML or JSON
//! (`kubelet.config.k8s.io`, `CredentialProviderConfig`), names programs of `--image-credential-provider-bin-dir` and the
//! images each knows. A program is given a `CredentialProviderRequest` and prints a `CredentialProviderResponse`
//! (`credentialprovider.kubelet.k8s.io`; KEP 2133). Of several that know an image the first that has something counts;
//! kubelet would try them all.
//!
//! A provider that wants a token of a pod's service account (`tokenAttributes`) is left out: nobody here has one.

use std::collections::BTreeMap;
use std::process::Command;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::docker::{HUB, bare};
use super::{Credential, Found, is_hub, program};
use crate::config::Kubelet;
use crate::error::Error;
use crate::hosts::read;
use crate::names::{Host, RepositoryName};
use crate::secret::Secret;

/// Asking more often than this helps nobody: a registry that refuses what was said has it asked again at once.
const LEAST: Duration = Duration::from_secs(30);

/// Whoever says "for ever" is asked twice a day all the same.
const MOST: Duration = Duration::from_secs(12 * 3600);

/// Returns the credential for a repository of a host; a provider has so long. What goes wrong is added to `wrong`, and
/// the next provider asked: what one does not know another may, and a public image needs none.
pub(super) fn find(
    kubelet: &Kubelet,
    host: &Host,
    repository: Option<&RepositoryName>,
    time: Duration,
    wrong: &mut Vec<Error>,
) -> Option<Found> {
    let config = read_config(kubelet).map_err(|error| wrong.push(error)).ok()?;
    let hub = is_hub(host);
    let host = if hub { "docker.io" } else { host.as_str() };
    let image = repository.map_or(host.to_owned(), |repository| format!("{host}/{repository}"));
    config.providers.iter().filter(|provider| provider.knows(&image)).find_map(|provider| {
        if provider.token_attributes.is_some() {
            tracing::debug!(provider = %provider.name, "it wants a pod's token, and is left out");
            return None;
        }
        provider.ask(kubelet, &image, hub, time).unwrap_or_else(|error| {
            wrong.push(error);
            None
        })
    })
}

fn read_config(kubelet: &Kubelet) -> Result<ProviderConfig, Error> {
    let file = kubelet.config.display().to_string();
    // One that is named has to be there: without it a private image would be said not to exist.
    let text = read(&kubelet.config)?.ok_or_else(|| Error::config(&file, "there is no such file"))?;
    let config: ProviderConfig =
        serde_norway::from_str(&text).map_err(|error| Error::config(&file, error.to_string()))?;
    if config.kind != "CredentialProviderConfig" {
        return Err(Error::config(&file, format!("it is a {}, no CredentialProviderConfig", config.kind)));
    }
    Ok(config)
}

#[derive(Deserialize)]
struct ProviderConfig {
    kind: String,
    #[serde(default)]
    providers: Vec<Provider>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Provider {
    name: String,
    match_images: Vec<String>,
    default_cache_duration: Option<String>,
    api_version: String,
    #[serde(default)]
    args: Vec<String>,
    #[serde(default)]
    env: Vec<Variable>,
    token_attributes: Option<serde::de::IgnoredAny>,
}

#[derive(Deserialize)]
struct Variable {
    name: String,
    value: String,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Request<'a> {
    api_version: &'a str,
    kind: &'static str,
    image: &'a str,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Response {
    cache_duration: Option<String>,
    #[serde(default)]
    auth: Option<BTreeMap<String, Login>>,
}

#[derive(Deserialize)]
struct Login {
    #[serde(default)]
    username: String,
    password: Secret,
}

impl Provider {
    fn knows(&self, image: &str) -> bool {
        self.match_images.iter().any(|pattern| matches(pattern, image))
    }

    fn ask(&self, kubelet: &Kubelet, image: &str, hub: bool, time: Duration) -> Result<Option<Found>, Error> {
        let bad = |why: String| Error::config(format!("credential provider {}", self.name), why);
        // As kubelet has it: a file of that directory, and nothing else.
        if matches!(&*self.name, "" | "." | "..") || self.name.contains(['/', ' ']) {
            return Err(bad("the name is not that of a file in a directory".into()));
        }
        let mut command = Command::new(kubelet.bin_dir.join(&self.name));
        command.args(&self.args).envs(self.env.iter().map(|one| (&one.name, &one.value)));
        let request = Request { api_version: &self.api_version, kind: "CredentialProviderRequest", image };
        let request = serde_json::to_vec(&request).map_err(|error| bad(error.to_string()))?;
        let answer = program::ask(command, &request, time).map_err(bad)?;
        if !answer.status.success() {
            return Err(bad(format!("failed: {}", answer.status)));
        }
        // serde's message would quote the answer, and with it a password.
        let response: Response = serde_json::from_slice(&answer.output)
            .map_err(|_| bad("printed no CredentialProviderResponse".into()))?;
        let said = response.cache_duration.or_else(|| self.default_cache_duration.clone());
        let life = said.and_then(|text| duration(&text)).map(|life| life.clamp(LEAST, MOST));
        let mut logins = response.auth.unwrap_or_default().into_iter().rev(); // the more special comes later
        let login = logins.find(|(key, _)| matches(key, image) || hub && HUB.contains(&bare(key)));
        Ok(login.filter(|(_, login)| !login.password.is_empty()).map(|(_, login)| Found {
            credential: Credential::Password(login.username, login.password),
            life,
        }))
    }
}

/// Says whether an image, without scheme and tag, is one of a pattern: `*.example.com:5000/path`.
///
/// In the domain a `*` stands for what is between two dots, or a part of it; the port must be the same, none is one too, and
/// the path begins so.
fn matches(pattern: &str, image: &str) -> bool {
    let pattern =
        pattern.strip_prefix("https://").or_else(|| pattern.strip_prefix("http://")).unwrap_or(pattern);
    let (pattern_host, pattern_path) = pattern.split_once('/').unwrap_or((pattern, ""));
    let (image_host, image_path) = image.split_once('/').unwrap_or((image, ""));
    let (pattern_name, pattern_port) = with_port(pattern_host);
    let (image_name, image_port) = with_port(image_host);
    let (wanted, given): (Vec<_>, Vec<_>) =
        (pattern_name.split('.').collect(), image_name.split('.').collect());
    pattern_port == image_port
        && wanted.len() == given.len()
        && wanted.iter().zip(&given).all(|(wanted, given)| part_matches(wanted.as_bytes(), given.as_bytes()))
        && image_path.starts_with(pattern_path)
}

/// Splits a port off a host; an IPv6 address keeps its colons.
fn with_port(host: &str) -> (&str, Option<&str>) {
    match host.rsplit_once(':') {
        Some((name, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!name.contains(':') || name.ends_with(']')) =>
        {
            (name, Some(port))
        }
        _ => (host, None),
    }
}

/// Matches one part of a domain; each `*` stands for any bytes, also for none.
fn part_matches(pattern: &[u8], part: &[u8]) -> bool {
    let pieces: Vec<&[u8]> = pattern.split(|b| *b == b'*').collect();
    let [first, middle @ .., last] = &pieces[..] else { return pattern == part };
    let Some(mut rest) = part.strip_prefix(*first).and_then(|rest| rest.strip_suffix(*last)) else {
        return false;
    };
    for piece in middle.iter().filter(|piece| !piece.is_empty()) {
        let Some(at) = rest.windows(piece.len()).position(|window| window == *piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    true
}

/// Reads a duration as Go writes it: `12h`, `1h30m0s`, `0s`. What cannot be read is none.
fn duration(text: &str) -> Option<Duration> {
    let mut rest = text;
    let mut total = Duration::ZERO;
    while !rest.is_empty() {
        let digits = rest.bytes().take_while(|b| b.is_ascii_digit() || *b == b'.').count();
        let letters = rest[digits..].bytes().take_while(|b| !b.is_ascii_digit() && *b != b'.').count();
        let number: f64 = rest[..digits].parse().ok()?;
        let unit = match rest.get(digits..digits + letters)? {
            "h" => 3600.0,
            "m" => 60.0,
            "s" => 1.0,
            "ms" => 1e-3,
            _ => return None,
        };
        total = total.checked_add(Duration::try_from_secs_f64(number * unit).ok()?)?;
        rest = &rest[digits + letters..];
    }
    (!text.is_empty()).then_some(total)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn images_match_as_kubelet_has_it() {
        for (pattern, image, so) in [
            ("123.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-1.amazonaws.com/app", true),
            ("*.dkr.ecr.*.amazonaws.com", "123.dkr.ecr.eu-1.amazonaws.com/app", true),
            ("*.amazonaws.com", "123.dkr.ecr.eu-1.amazonaws.com/app", false),
            ("app*.k8s.io", "app-one.k8s.io/x", true),
            ("app*.k8s.io", "one-app.k8s.io/x", false),
            ("a*b*c.k8s.io", "axxbyyc.k8s.io/x", true),
            ("a*b*c.k8s.io", "ac.k8s.io/x", false),
            ("ab*ba.k8s.io", "aba.k8s.io/x", false),
            ("gcr.io", "gcr.io/project/app", true),
            ("gcr.io/project", "gcr.io/project/app", true),
            ("https://gcr.io/project/", "gcr.io/project/app", true),
            ("gcr.io/project/", "gcr.io/project-of-others/app", false),
            ("gcr.io/", "gcr.io/project/app", true),
            ("gcr.io/other", "gcr.io/project/app", false),
            ("registry.io:8080/path", "registry.io:8080/path/app", true),
            ("registry.io:8080", "registry.io/app", false),
            ("registry.io", "registry.io:8080/app", false),
            ("*", "registry.io/app", false),
            ("*", "localhost/app", true),
            ("[::1]:5000", "[::1]:5000/app", true),
            ("[::1]:5001", "[::1]:5000/app", false),
        ] {
            assert_eq!(matches(pattern, image), so, "{pattern} {image}");
        }
    }

    #[test]
    fn durations_are_those_of_go() {
        for (text, seconds) in
            [("12h", Some(43_200)), ("1h30m0s", Some(5400)), ("0s", Some(0)), ("1.5m", Some(90))]
        {
            assert_eq!(duration(text), seconds.map(Duration::from_secs), "{text}");
        }
        for bad in ["", "h", "5", "5 m", "-1s", "1d", "9999999999999999999h", "5\u{b5}s"] {
            assert_eq!(duration(bad), None, "{bad}");
        }
    }

    /// A node whose kubelet asks one program.
    struct Node(tempfile::TempDir);

    impl Node {
        fn new(config: &str) -> Self {
            let dir = tempfile::tempdir().unwrap();
            std::fs::write(dir.path().join("config.yaml"), config).unwrap();
            Self(dir)
        }

        fn provides(&self, name: &str, script: &str) {
            testkit::program(&self.0.path().join(name), script);
        }

        fn find(&self, host: &str, time: Duration) -> Result<Option<Found>, Error> {
            let dir = self.0.path();
            let kubelet = Kubelet { config: dir.join("config.yaml"), bin_dir: dir.to_owned() };
            let (host, repository) = (host.parse().unwrap(), "team/app".parse().unwrap());
            let mut wrong = Vec::new();
            let found = find(&kubelet, &host, Some(&repository), time, &mut wrong);
            wrong.into_iter().next().map_or(Ok(found), Err)
        }
    }

    const LONG: Duration = Duration::from_secs(60);

    const CONFIG: &str = r#"
apiVersion: kubelet.config.k8s.io/v1
kind: CredentialProviderConfig
providers:
  - name: wants-token
    matchImages: ["*.example"]
    defaultCacheDuration: "1h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    tokenAttributes: {serviceAccountTokenAudience: x, requireServiceAccount: true}
  - name: first
    matchImages: ["a.example", "*.private.example/team"]
    defaultCacheDuration: "1h"
    apiVersion: credentialprovider.kubelet.k8s.io/v1
    args: [get, credentials]
    env: [{name: REGION, value: eu}]
"#;

    #[test]
    fn a_provider_is_asked_as_kubelet_asks_it() {
        let node = Node::new(CONFIG);
        node.provides(
            "first",
            r#"cat >"$0.request"; [ "$* $REGION" = "get credentials eu" ] || exit 9
echo '{"kind": "CredentialProviderResponse", "cacheKeyType": "Registry", "cacheDuration": "10m", "auth":
  {"*.example": {"username": "u", "password": "wide"}, "a.example/team": {"username": "u", "password": "near"}}}'"#,
        );
        let found = node.find("a.example", LONG).unwrap().unwrap();
        assert_eq!(found.credential, Credential::Password("u".into(), Secret::new("near")));
        assert_eq!(found.life, Some(Duration::from_secs(600)));
        let request = std::fs::read(node.0.path().join("first.request")).unwrap();
        let request: serde_json::Value = serde_json::from_slice(&request).unwrap();
        assert_eq!(
            request,
            serde_json::json!({
                "apiVersion": "credentialprovider.kubelet.k8s.io/v1",
                "kind": "CredentialProviderRequest",
                "image": "a.example/team/app"
            })
        );
        assert_eq!(node.find("b.example", LONG).unwrap(), None, "nobody knows it");
    }

    #[test]
    fn what_a_provider_says_of_other_images_or_nothing_is_none() {
        let node = Node::new(CONFIG);
        for said in [
            r#"{"auth": null}"#,
            r#"{"auth": {"other.example": {"username": "u", "password": "p"}}}"#,
            r#"{"auth": {"a.example": {"username": "", "password": ""}}}"#,
        ] {
            node.provides("first", &format!("echo '{said}'"));
            assert_eq!(node.find("a.example", LONG).unwrap(), None, "{said}");
        }
        // Its own word is missing: what the configuration says counts, and neither is taken to extremes.
        for (said, life) in
            [("", 3600), (r#""cacheDuration": "0s","#, 30), (r#""cacheDuration": "900h","#, 43_200)]
        {
            let auth = r#""auth": {"a.example": {"username": "u", "password": "p"}}"#;
            node.provides("first", &format!("echo '{{{said} {auth}}}'"));
            let found = node.find("a.example", LONG).unwrap().unwrap();
            assert_eq!(found.life, Some(Duration::from_secs(life)), "{said}");
        }
    }

    #[test]
    fn docker_hub_goes_by_its_old_name_too() {
        let node = Node::new(&CONFIG.replace("a.example", "docker.io"));
        for key in ["docker.io", "index.docker.io", "https://index.docker.io/v1/"] {
            let login = r#"{"username": "u", "password": "p"}"#;
            node.provides("first", &format!(r#"echo '{{"auth": {{"{key}": {login}}}}}'"#));
            assert!(node.find("registry-1.docker.io", LONG).unwrap().is_some(), "{key}");
        }
    }

    #[test]
    fn one_that_fails_is_told_and_the_next_one_asked() {
        let second = "  - {name: second, matchImages: [a.example], apiVersion: v1}\n";
        let node = Node::new(&format!("{CONFIG}{second}"));
        node.provides("first", "exit 1");
        node.provides("second", r#"echo '{"auth": {"a.example": {"username": "u", "password": "p"}}}'"#);
        let dir = node.0.path();
        let kubelet = Kubelet { config: dir.join("config.yaml"), bin_dir: dir.to_owned() };
        let mut wrong = Vec::new();
        assert!(find(&kubelet, &"a.example".parse().unwrap(), None, LONG, &mut wrong).is_some());
        assert!(matches!(&wrong[..], [one] if one.to_string().contains("provider first")), "{wrong:?}");
    }

    #[test]
    fn what_goes_wrong_is_named_and_nothing_secret_is_quoted() {
        let node = Node::new(CONFIG);
        let error = |node: &Node, time| node.find("a.example", time).unwrap_err().to_string();
        assert!(error(&node, LONG).contains("credential provider first: cannot be run"));
        for (script, why) in [("exit 3", "failed"), ("echo hunter2", "no CredentialProviderResponse")] {
            node.provides("first", script);
            let said = error(&node, LONG);
            assert!(said.contains("credential provider first") && said.contains(why), "{said}");
            assert!(!said.contains("hunter2"), "{said}");
        }
        node.provides("first", "sleep 600");
        assert!(error(&node, Duration::from_millis(50)).contains("no answer"));

        let named = |config: &str| error(&Node::new(config), LONG);
        assert!(named("kind: Pod").contains("it is a Pod"));
        assert!(named("kind: [").contains("config.yaml"));
        for name in ["../first", "a/b", "..", "''"] {
            let said = named(&CONFIG.replace("name: first", &format!("name: {name}")));
            assert!(said.contains("not that of a file"), "{name}: {said}");
        }
        std::fs::remove_file(node.0.path().join("config.yaml")).unwrap();
        assert!(error(&node, LONG).contains("no such file"));
    }
}
