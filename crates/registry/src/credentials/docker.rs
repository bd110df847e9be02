//! Credentials as docker, podman and skopeo keep them.
//!
//! Files, in this order: `$REGISTRY_AUTH_FILE` (then no other), `$XDG_RUNTIME_DIR/containers/auth.json`,
//! `$XDG_CONFIG_HOME/containers/auth.json`, `$DOCKER_CONFIG/config.json`, `~/.docker/config.json`. In each: a
//! helper for the host, an entry for the host or a namespace of it, the common helper.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use base64::Engine;
use serde::Deserialize;

use super::{Credential, Login, is_hub, program};
use crate::error::Error;
use crate::hosts::read;
use crate::names::{Host, RepositoryName};
use crate::secret::Secret;

/// Returns the files that are searched on this machine for this user.
pub(crate) fn standard_files(env: impl Fn(&str) -> Option<PathBuf>) -> Vec<PathBuf> {
    if let Some(file) = env("REGISTRY_AUTH_FILE") {
        return vec![file];
    }
    let home = env("HOME");
    let config = env("XDG_CONFIG_HOME").or_else(|| Some(home.as_ref()?.join(".config")));
    let docker = env("DOCKER_CONFIG").or_else(|| Some(home.as_ref()?.join(".docker")));
    let containers =
        [env("XDG_RUNTIME_DIR"), config].into_iter().flatten().map(|dir| dir.join("containers/auth.json"));
    containers.chain(docker.map(|dir| dir.join("config.json"))).collect()
}

/// Returns the credential for a repository of a host; a helper has so long.
pub(super) fn find(
    files: &[PathBuf],
    host: &Host,
    repository: Option<&RepositoryName>,
    time: Duration,
) -> Result<Option<Credential>, Error> {
    for path in files {
        let Some(text) = read(path)? else { continue };
        let bad = |why: String| Error::config(path.display().to_string(), why);
        // serde's message would quote the file, and with it a password.
        let file: AuthFile = serde_json::from_str(&text)
            .map_err(|error| bad(format!("not valid at line {} column {}", error.line(), error.column())))?;
        if let Some(found) = file.find(path, host, repository, time)? {
            return Ok(Some(found));
        }
    }
    Ok(None)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct AuthFile {
    #[serde(default)]
    auths: BTreeMap<String, Login>,
    #[serde(default)]
    cred_helpers: BTreeMap<String, String>,
    creds_store: Option<String>,
}

impl AuthFile {
    fn find(
        &self,
        path: &Path,
        host: &Host,
        repository: Option<&RepositoryName>,
        time: Duration,
    ) -> Result<Option<Credential>, Error> {
        let names = aliases(host);
        if let Some((key, helper)) =
            self.cred_helpers.iter().find(|(key, _)| names.contains(&bare(key).to_owned()))
        {
            return ask(helper, key, time);
        }
        let keys = names.iter().flat_map(|name| namespaces(name, repository));
        for wanted in keys {
            for (key, entry) in &self.auths {
                if bare(key) == wanted
                    && let Some(found) = entry.credential().map_err(|why| {
                        Error::config(path.display().to_string(), format!("entry {key:?}: {why}"))
                    })?
                {
                    return Ok(Some(found));
                }
            }
        }
        match &self.creds_store {
            // Docker stores the hub under the address of its first version.
            Some(helper) if is_hub(host) => ask(helper, "https://index.docker.io/v1/", time),
            Some(helper) => ask(helper, host.as_str(), time),
            None => Ok(None),
        }
    }
}

impl Login {
    pub(super) fn credential(&self) -> Result<Option<Credential>, &'static str> {
        let given = |secret: &Option<Secret>| secret.clone().filter(|secret| !secret.is_empty());
        if let Some(token) = given(&self.registrytoken) {
            return Ok(Some(Credential::Bearer(token)));
        }
        if let Some(token) = given(&self.identitytoken) {
            return Ok(Some(Credential::Identity(token)));
        }
        if let Some(auth) = given(&self.auth) {
            let decoded =
                base64::prelude::BASE64_STANDARD.decode(auth.expose()).map_err(|_| "auth is not base64")?;
            let text = String::from_utf8(decoded).map_err(|_| "auth is not text")?;
            let (user, password) = text.split_once(':').ok_or("auth has no colon")?;
            return Ok(Some(Credential::Password(user.into(), Secret::new(password.trim_end_matches('\0')))));
        }
        Ok(match (&self.username, given(&self.password)) {
            (Some(user), Some(password)) => Some(Credential::Password(user.clone(), password)),
            _ => None,
        })
    }
}

/// The names of Docker Hub.
pub(super) const HUB: [&str; 3] = ["docker.io", "index.docker.io", "registry-1.docker.io"];

/// The names under which a host may be in a file.
fn aliases(host: &Host) -> Vec<String> {
    match is_hub(host) {
        true => HUB.map(String::from).into(),
        false => vec![host.to_string()],
    }
}

/// A key without what Docker's first version put around the host.
pub(super) fn bare(key: &str) -> &str {
    let key = key.strip_prefix("https://").or_else(|| key.strip_prefix("http://")).unwrap_or(key);
    let key = key.trim_end_matches('/');
    key.strip_suffix("/v1").or_else(|| key.strip_suffix("/v2")).unwrap_or(key)
}

/// `host/a/b`, `host/a`, `host`: containers' `auth.json` may have an entry for each.
fn namespaces(host: &str, repository: Option<&RepositoryName>) -> Vec<String> {
    let full = repository.map_or(host.to_owned(), |repository| format!("{host}/{repository}"));
    let cuts = full.match_indices('/').map(|(at, _)| at).collect::<Vec<_>>();
    let shorter = cuts.iter().rev().map(|&at| full[..at].to_owned());
    std::iter::once(full.clone()).chain(shorter).collect()
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct HelperAnswer {
    username: String,
    secret: Secret,
}

/// Runs `docker-credential-<helper> get`.
fn ask(helper: &str, key: &str, time: Duration) -> Result<Option<Credential>, Error> {
    let program = format!("docker-credential-{helper}");
    let plain = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'-' | b'_' | b'.');
    if helper.is_empty() || !helper.bytes().all(plain) {
        return Err(Error::config(program, "the name may hold letters, digits, '-', '_' and '.'"));
    }
    run(Path::new(&program), key, time)
}

fn run(program: &Path, key: &str, time: Duration) -> Result<Option<Credential>, Error> {
    let bad = |why: String| Error::config(format!("credential helper {}", program.display()), why);
    let mut command = Command::new(program);
    command.arg("get");
    let program::Answer { output, status } = program::ask(command, key.as_bytes(), time).map_err(bad)?;
    if !status.success() {
        // The protocol has one way to say "none": this text.
        let none = String::from_utf8_lossy(&output).contains("credentials not found");
        return if none { Ok(None) } else { Err(bad(format!("failed: {status}"))) };
    }
    let answer: HelperAnswer =
        serde_json::from_slice(&output).map_err(|_| bad("printed something unexpected".into()))?;
    Ok(Some(match &*answer.username {
        "<token>" => Credential::Identity(answer.secret),
        _ => Credential::Password(answer.username, answer.secret),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lookup(json: &str, host: &str, repository: &str) -> Result<Option<Credential>, Error> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.json");
        std::fs::write(&path, json).unwrap();
        let files = [dir.path().join("missing"), path];
        find(&files, &host.parse().unwrap(), Some(&repository.parse().unwrap()), Duration::from_secs(60))
    }

    fn password(user: &str, password: &str) -> Option<Credential> {
        Some(Credential::Password(user.into(), Secret::new(password)))
    }

    #[test]
    fn files_are_searched_in_order() {
        let env = |set: &'static [(&str, &str)]| {
            standard_files(move |name| {
                set.iter().find(|(key, _)| *key == name).map(|(_, value)| value.into())
            })
        };
        assert_eq!(env(&[("HOME", "/h"), ("REGISTRY_AUTH_FILE", "/f")]), [PathBuf::from("/f")]);
        assert_eq!(
            env(&[("HOME", "/h"), ("XDG_RUNTIME_DIR", "/r")]),
            ["/r/containers/auth.json", "/h/.config/containers/auth.json", "/h/.docker/config.json"]
                .map(PathBuf::from)
        );
        assert_eq!(env(&[("DOCKER_CONFIG", "/d")]), [PathBuf::from("/d/config.json")]);
        assert!(env(&[]).is_empty());
    }

    #[test]
    fn entries() {
        // "dTpwOnc=" is u:p:w
        let json = r#"{"auths": {
            "a.example": {"auth": "dTpwOnc="},
            "a.example/team": {"username": "t", "password": "s"},
            "https://index.docker.io/v1/": {"username": "hub", "password": "x"},
            "id.example": {"auth": "dTpwOnc=", "identitytoken": "refresh"},
            "reg.example": {"registrytoken": "bearer"},
            "empty.example": {},
            "http://old.example:5000": {"username": "o", "password": "p"},
            "bad.example": {"auth": "!"}
        }, "HttpHeaders": {"x": "y"}}"#;
        assert_eq!(lookup(json, "a.example", "app").unwrap(), password("u", "p:w"));
        assert_eq!(lookup(json, "a.example", "team/app/x").unwrap(), password("t", "s"));
        assert_eq!(lookup(json, "a.example", "teams").unwrap(), password("u", "p:w"));
        assert_eq!(lookup(json, "registry-1.docker.io", "library/nginx").unwrap(), password("hub", "x"));
        assert_eq!(
            lookup(json, "id.example", "a").unwrap(),
            Some(Credential::Identity(Secret::new("refresh")))
        );
        assert_eq!(
            lookup(json, "reg.example", "a").unwrap(),
            Some(Credential::Bearer(Secret::new("bearer")))
        );
        assert_eq!(lookup(json, "old.example:5000", "a").unwrap(), password("o", "p"));
        assert_eq!(lookup(json, "old.example", "a").unwrap(), None);
        assert_eq!(lookup(json, "empty.example", "a").unwrap(), None);
        let error = lookup(json, "bad.example", "a").unwrap_err().to_string();
        assert!(error.contains("bad.example") && error.contains("base64"), "{error}");
    }

    #[test]
    fn a_broken_file_is_named_and_not_quoted() {
        let error = lookup(r#"{"auths": {"a": {"auth": ["hunter2"]}}}"#, "a.example", "a").unwrap_err();
        let text = format!("{error} {error:?}");
        assert!(text.contains("config.json") && !text.contains("hunter2"), "{text}");
    }

    #[test]
    fn helpers_cannot_name_other_programs() {
        for name in ["", "../x", "a b", "x;y"] {
            let json = format!(r#"{{"credsStore": {name:?}}}"#);
            assert!(matches!(lookup(&json, "a.example", "a"), Err(Error::Config { .. })), "{name}");
        }
        let error =
            lookup(r#"{"credHelpers": {"a.example": "no-such-helper"}}"#, "a.example", "a").unwrap_err();
        assert!(error.to_string().contains("docker-credential-no-such-helper"), "{error}");
        assert_eq!(
            lookup(r#"{"credHelpers": {"b.example": "no-such-helper"}}"#, "a.example", "a").unwrap(),
            None
        );
    }

    #[test]
    fn helpers_speak_over_pipes() {
        let dir = tempfile::tempdir().unwrap();
        let helper = |script: &str, time: Duration| {
            let path = dir.path().join("helper");
            testkit::program(&path, &format!("[ \"$*\" = get ] || exit 9\nread -r key\n{script}"));
            run(&path, "a.example", time)
        };
        let long = Duration::from_secs(60);
        let echo = r#"echo "{\"ServerURL\":\"$key\",\"Username\":\"$key\",\"Secret\":\"pw\"}""#;
        assert_eq!(helper(echo, long).unwrap(), password("a.example", "pw"));
        let token = r#"echo '{"Username":"<token>","Secret":"t"}'"#;
        assert_eq!(helper(token, long).unwrap(), Some(Credential::Identity(Secret::new("t"))));
        assert_eq!(helper("echo credentials not found in native keychain; exit 1", long).unwrap(), None);
        assert!(helper("exit 3", long).unwrap_err().to_string().contains("failed"));
        let error = helper("echo hunter2", long).unwrap_err();
        assert!(!format!("{error:?}").contains("hunter2"));
        let error = helper("sleep 600", Duration::from_millis(50)).unwrap_err().to_string();
        assert!(error.contains("no answer"), "{error}");
    }
}
