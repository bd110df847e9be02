//! Who we are to a registry, and where it is said: by pods, by kubelet's credential providers, then in docker's files.
//!
//! Everything is read anew each time a token is needed, so that `docker login` and a new password help a running
//! process. What a program is told goes to its standard input; nothing secret is ever in its arguments.

mod docker;
mod handed;
mod kubelet;
mod program;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::config::Kubelet;
use crate::error::Error;
use crate::limits;
use crate::names::{Host, RepositoryName};
use crate::secret::Secret;

pub(crate) use docker::standard_files;
pub use handed::{Handed, Login, Offer};

/// How to show who we are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Credential {
    /// Name and password.
    Password(String, Secret),
    /// An OAuth2 refresh token.
    Identity(Secret),
    /// A bearer token as it is sent to the registry.
    Bearer(Secret),
}

impl Credential {
    /// Returns its bytes.
    fn len(&self) -> usize {
        match self {
            Self::Password(user, secret) => user.len() + secret.expose().len(),
            Self::Identity(secret) | Self::Bearer(secret) => secret.expose().len(),
        }
    }
}

/// A credential, and how long it may be used without asking again where that was said.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) credential: Credential,
    pub(crate) life: Option<Duration>,
}

/// Where credentials come from, in the order in which they are asked.
#[derive(Debug)]
pub(crate) struct Sources {
    pub(crate) handed: Option<Arc<Handed>>,
    pub(crate) kubelet: Option<Kubelet>,
    pub(crate) files: Vec<PathBuf>,
}

impl Sources {
    /// Says that the node has none.
    pub(crate) fn is_empty(&self) -> bool {
        self.kubelet.is_none() && self.files.is_empty()
    }

    /// Returns the credentials that were handed over for a repository, in the order in which they are tried. They go before those of
    /// the node.
    pub(crate) fn handed(&self, host: &Host, repository: Option<&RepositoryName>) -> Vec<Credential> {
        match (&self.handed, repository) {
            (Some(handed), Some(repository)) => handed.find(host, repository),
            _ => Vec::new(),
        }
    }

    /// Returns the node's credential for a repository of a host. Blocks: files are read and a program may run.
    pub(crate) fn find(
        &self,
        host: &Host,
        repository: Option<&RepositoryName>,
    ) -> Result<Option<Found>, Error> {
        if let Some(kubelet) = &self.kubelet {
            let mut wrong = Vec::new();
            let found = kubelet::find(kubelet, host, repository, limits::HELPER_TIME, &mut wrong);
            wrong
                .iter()
                .for_each(|error| tracing::warn!(%host, "a credential provider is left aside: {error}"));
            if found.is_some() {
                return Ok(found);
            }
        }
        let found = docker::find(&self.files, host, repository, limits::HELPER_TIME)?;
        Ok(found.map(|credential| Found { credential, life: None }))
    }
}

/// Says whether a host is Docker Hub, which has more names than one.
fn is_hub(host: &Host) -> bool {
    docker::HUB.contains(&host.as_str())
}
