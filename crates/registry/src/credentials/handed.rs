//! Credentials that are handed over for single repositories: those of pods, which kubelet sends along when it has an
//! image pulled.
//!
//! What is offered counts while it is tried, and is kept once the pull that it came with has succeeded. That need not mean that a registry
//! has seen it: a mirror may have answered, or a repository be open to everybody. So the latest ones of a repository are kept, not the
//! last, and are tried one after the other. They are kept in a file that is its owner's alone, so that a daemon that is started anew has
//! them; whoever opens us chooses a place that does not outlive a boot.

use std::collections::HashMap;
use std::fs;
use std::io::Write;
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};

use super::{Credential, docker, is_hub};
use crate::error::Error;
use crate::limits;
use crate::names::{Host, RepositoryName};
use crate::reference::ImageName;
use crate::secret::Secret;

/// How many are kept of one repository.
const KEPT: usize = 3;

/// What clients of registries are given to show who they are, as docker's files and the container runtime interface have it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Login {
    /// `user:password` in Base64.
    pub auth: Option<Secret>,
    /// Who it is.
    pub username: Option<String>,
    /// What only they know.
    pub password: Option<Secret>,
    /// An OAuth2 refresh token.
    pub identitytoken: Option<Secret>,
    /// A token that is sent to the registry as it is.
    pub registrytoken: Option<Secret>,
}

/// What has been handed over.
#[derive(Debug)]
pub struct Handed {
    file: PathBuf,
    /// Held while the file is written, too.
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// The latest last.
    kept: Vec<Entry>,
    offered: Vec<(u64, Entry)>,
    /// The number of the last offer.
    last: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Entry {
    repository: String,
    credential: Credential,
}

/// A credential that is being tried. Dropped, it is forgotten.
#[derive(Debug)]
pub struct Offer {
    handed: Arc<Handed>,
    number: u64,
}

impl Handed {
    /// Returns what an earlier process has kept in a file, which need not be there.
    pub fn open(file: &Path) -> Arc<Self> {
        let kept = match fs::read(file) {
            Ok(text) => serde_json::from_slice::<Vec<Written>>(&text)
                .map(|entries| entries.into_iter().filter_map(Written::read).collect())
                .map_err(|_| "it is not what was written".to_owned()),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(error) => Err(error.to_string()),
        };
        let kept = kept.unwrap_or_else(|why| {
            tracing::warn!(file = %file.display(), "credentials of pods are forgotten: {why}");
            Vec::new()
        });
        Arc::new(Self { file: file.to_owned(), state: State { kept, ..State::default() }.into() })
    }

    /// Takes what is said of an image into account while it is tried; nothing if there is nothing in it. `server` is the registry that it
    /// is for, where that is said.
    pub fn offer(self: &Arc<Self>, image: &ImageName, login: &Login, server: &str) -> Option<Offer> {
        let host = docker::bare(server);
        let host = host.split_once('/').map_or(host, |(host, _)| host);
        let is_for = |host: Host| host == *image.host() || is_hub(&host) && is_hub(image.host());
        if !host.is_empty() && !host.parse().is_ok_and(is_for) {
            return None;
        }
        let credential = login.credential().ok().flatten()?;
        if credential.len() > limits::CREDENTIAL {
            return None;
        }
        let repository = key(image.host(), image.repository());
        let mut state = self.state();
        state.last += 1;
        let number = state.last;
        state.offered.push((number, Entry { repository, credential }));
        Some(Offer { handed: self.clone(), number })
    }

    /// Says whether there is something for an image.
    pub fn has(&self, image: &ImageName) -> bool {
        !self.find(image.host(), image.repository()).is_empty()
    }

    /// Returns what there is for a repository: what was kept, the latest first, then what is being tried.
    pub(super) fn find(&self, host: &Host, repository: &RepositoryName) -> Vec<Credential> {
        let wanted = key(host, repository);
        let state = self.state();
        let offered = state.offered.iter().rev().map(|(_, entry)| entry);
        let its = state.kept.iter().rev().chain(offered).filter(|entry| entry.repository == wanted);
        let mut found: Vec<Credential> = Vec::new();
        for entry in its {
            if !found.contains(&entry.credential) {
                found.push(entry.credential.clone());
            }
        }
        found.truncate(2 * KEPT);
        found
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn write(&self, kept: &[Entry]) -> Result<(), Error> {
        let failed = |error| Error::io(format!("keeping credentials in {}", self.file.display()), error);
        let written: Vec<_> = kept.iter().map(Written::of).collect();
        let text = serde_json::to_vec(&written).map_err(|error| failed(error.into()))?;
        let new = self.file.with_extension("new");
        let _ = fs::remove_file(&new); // what a killed process left; its mode need not be ours
        let mut file =
            fs::File::options().write(true).create_new(true).mode(0o600).open(&new).map_err(failed)?;
        file.write_all(&text).map_err(failed)?;
        fs::rename(&new, &self.file).map_err(failed)
    }
}

impl Offer {
    /// Keeps it, as the latest of its repository.
    pub fn accept(self) -> Result<(), Error> {
        let mut state = self.handed.state();
        let offer = state.offered.iter().find(|(number, _)| *number == self.number);
        let Some((_, entry)) = offer.cloned() else { return Ok(()) };
        if state.kept.last() == Some(&entry) {
            return Ok(());
        }
        state.kept.retain(|kept| *kept != entry);
        let of_its = state.kept.iter().filter(|kept| kept.repository == entry.repository).count();
        if of_its >= KEPT {
            state.forget_of(|kept| kept.repository == entry.repository);
        } else if state.kept.len() >= limits::HANDED {
            // Whoever has filled the table makes room, unless he has as many hosts.
            let mut counts = HashMap::new();
            state.kept.iter().for_each(|kept| *counts.entry(kept.host().to_owned()).or_insert(0) += 1);
            let fullest = counts.into_iter().max_by_key(|(_, count)| *count).map(|(host, _)| host);
            state.forget_of(|kept| Some(kept.host()) == fullest.as_deref());
        }
        state.kept.push(entry);
        self.handed.write(&state.kept)
    }
}

impl State {
    /// Forgets the oldest of some.
    fn forget_of(&mut self, of: impl Fn(&Entry) -> bool) {
        if let Some(at) = self.kept.iter().position(of) {
            self.kept.remove(at);
        }
    }
}

impl Entry {
    fn host(&self) -> &str {
        self.repository.split_once('/').map_or("", |(host, _)| host)
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.handed.state().offered.retain(|(number, _)| *number != self.number);
    }
}

fn key(host: &Host, repository: &RepositoryName) -> String {
    let host = if is_hub(host) { docker::HUB[0] } else { host.as_str() };
    format!("{host}/{repository}")
}

/// An entry as it is kept: the only place where secrets are written.
#[derive(Serialize, Deserialize)]
struct Written {
    repository: String,
    kind: Kind,
    user: String,
    secret: String,
}

#[derive(Serialize, Deserialize)]
enum Kind {
    Password,
    Identity,
    Bearer,
}

impl Written {
    fn of(entry: &Entry) -> Self {
        let (kind, user, secret) = match &entry.credential {
            Credential::Password(user, secret) => (Kind::Password, user.clone(), secret),
            Credential::Identity(secret) => (Kind::Identity, String::new(), secret),
            Credential::Bearer(secret) => (Kind::Bearer, String::new(), secret),
        };
        Self { repository: entry.repository.clone(), kind, user, secret: secret.expose().to_owned() }
    }

    fn read(self) -> Option<Entry> {
        let secret = Secret::new(self.secret);
        let credential = match self.kind {
            Kind::Password => Credential::Password(self.user, secret),
            Kind::Identity => Credential::Identity(secret),
            Kind::Bearer => Credential::Bearer(secret),
        };
        Some(Entry { repository: self.repository, credential })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;
    use crate::reference::Reference;

    fn image(name: &str) -> ImageName {
        match name.parse().unwrap() {
            Reference::Registry(name) => name,
            other => panic!("{other}"),
        }
    }

    fn login(password: &str) -> Login {
        Login { username: Some("pod".into()), password: Some(Secret::new(password)), ..Login::default() }
    }

    fn found(handed: &Handed, name: &str) -> Vec<String> {
        let image = image(name);
        let found = handed.find(image.host(), image.repository());
        let password = |found: Credential| match found {
            Credential::Password(_, secret) => secret.expose().to_owned(),
            other => panic!("{other:?}"),
        };
        found.into_iter().map(password).collect()
    }

    const APP: &str = "registry.example/team/app:v1";

    #[test]
    fn what_was_accepted_is_kept_and_what_was_not_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("credentials");
        let handed = Handed::open(&file);
        let first = handed.offer(&image(APP), &login("first"), "").unwrap();
        assert_eq!(found(&handed, APP), ["first"]);
        drop(first);
        assert!(found(&handed, APP).is_empty());
        handed.offer(&image(APP), &login("good"), "https://registry.example/v2/").unwrap().accept().unwrap();
        assert_eq!(fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

        // What is being tried stands back.
        let other = handed.offer(&image(APP), &login("other"), "registry.example").unwrap();
        assert_eq!(found(&handed, APP), ["good", "other"]);
        drop(other);
        assert_eq!(found(&handed, APP), ["good"]);

        assert!(handed.has(&image(APP)) && !handed.has(&image("registry.example/other")));

        // It is this repository's, for whoever opens it next, too.
        let next = Handed::open(&file);
        let digest = format!("registry.example/team/app@{}", format::Digest::of(b""));
        assert_eq!(found(&next, &digest), ["good"]);
        for other in ["registry.example/team", "registry.example/team/app/b", "other.example/team/app"] {
            assert!(found(&next, other).is_empty(), "{other}");
        }
        fs::write(&file, "[{}]").unwrap();
        assert!(found(&Handed::open(&file), APP).is_empty());
    }

    #[test]
    fn what_is_for_another_registry_or_says_nothing_is_not_taken() {
        let dir = tempfile::tempdir().unwrap();
        let handed = Handed::open(&dir.path().join("credentials"));
        for server in ["other.example", "https://other.example/v2/", "registry.example:5000", "a b"] {
            assert!(handed.offer(&image(APP), &login("x"), server).is_none(), "{server}");
        }
        assert!(handed.offer(&image(APP), &Login::default(), "").is_none());
        let hub = handed.offer(&image("nginx"), &login("x"), "https://index.docker.io/v1/");
        assert_eq!(found(&handed, "registry-1.docker.io/library/nginx"), ["x"]);
        drop(hub);
    }

    #[test]
    fn no_pod_drives_another_ones_out() {
        let dir = tempfile::tempdir().unwrap();
        let handed = Handed::open(&dir.path().join("credentials"));
        let keep = |name: &str, password: &str| {
            handed.offer(&image(name), &login(password), "").unwrap().accept().unwrap();
        };
        ["a", "b", "a", "c", "d"].iter().for_each(|password| keep(APP, password));
        assert_eq!(found(&handed, APP), ["d", "c", "a"]);
        (0..=limits::HANDED).for_each(|n| keep(&format!("greedy.example/{n}"), "x"));
        assert_eq!(found(&handed, APP), ["d", "c", "a"]);
        assert!(handed.offer(&image(APP), &login(&"x".repeat(limits::CREDENTIAL)), "").is_none());
    }

    #[test]
    fn there_is_room_for_so_many_and_the_latest_stay() {
        let dir = tempfile::tempdir().unwrap();
        let handed = Handed::open(&dir.path().join("credentials"));
        let keep = |name: &str| handed.offer(&image(name), &login("x"), "").unwrap().accept().unwrap();
        (0..=limits::HANDED).for_each(|n| keep(&format!("registry.example/{n}")));
        assert!(found(&handed, "registry.example/0").is_empty());
        assert_eq!(found(&handed, &format!("registry.example/{}", limits::HANDED)), ["x"]);
    }
}
