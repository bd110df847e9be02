//! Showing registries who we are: Basic and Bearer (distribution's token specification).
//!
//! Promises: one request for a token per scope, whoever waits for it; a token is used until shortly before its
//! end and replaced as soon as a registry refuses it; a failure is told to all that waited and then forgotten.
//! That no credential goes to another host is kept by [`crate::transport`], which asks here per endpoint.

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use base64::Engine;
use http::{HeaderMap, HeaderValue, header};
use reqwest::Url;
use serde::Deserialize;
use tokio::time::Instant;

use crate::challenge::{self, Challenge};
use crate::credentials::{Credential, Found, Sources};
use crate::error::Error;
use crate::limits;
use crate::names::RepositoryName;
use crate::secret::Secret;
use crate::transport::{Endpoint, Net, TokenRequest};

/// What a request needs the right to do, as in `repository:library/nginx:pull`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Scopes {
    list: BTreeSet<String>,
    /// Whose credential to use where a file has several for one host.
    repository: Option<RepositoryName>,
}

impl Scopes {
    pub(crate) fn pull(repository: &RepositoryName) -> Self {
        Self { list: [format!("repository:{repository}:pull")].into(), repository: Some(repository.clone()) }
    }

    pub(crate) fn push(repository: &RepositoryName) -> Self {
        Self {
            list: [format!("repository:{repository}:pull,push")].into(),
            repository: Some(repository.clone()),
        }
    }

    pub(crate) fn delete(repository: &RepositoryName) -> Self {
        Self {
            list: [format!("repository:{repository}:pull,push,delete")].into(),
            repository: Some(repository.clone()),
        }
    }

    /// Adds what is needed to mount a blob from another repository.
    pub(crate) fn and_pull(mut self, other: &RepositoryName) -> Self {
        self.list.insert(format!("repository:{other}:pull"));
        self
    }

    /// Adds what a registry said it wants.
    pub(crate) fn and(mut self, asked: Option<&str>) -> Self {
        self.list.extend(asked.iter().flat_map(|text| text.split_ascii_whitespace()).map(String::from));
        self
    }
}

/// Where credentials and tokens come from.
#[derive(Debug)]
pub(crate) struct Authorizer {
    sources: Arc<Sources>,
    /// Held for a look-up only.
    slots: Mutex<HashMap<Key, Arc<Slot>>>,
}

#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    /// The host, and for Bearer where and for whom its tokens are.
    place: String,
    scopes: Scopes,
}

/// One authorization, fetched by one task at a time.
#[derive(Debug, Default)]
struct Slot {
    /// Held while a token is fetched: this *is* the single flight. A task that is cancelled lets the next one
    /// try. No other lock is taken under it.
    state: tokio::sync::Mutex<SlotState>,
    /// How many fetches have ended, to tell who waited for one from who came after it.
    ended: AtomicU64,
}

#[derive(Debug, Default)]
struct SlotState {
    grant: Option<Grant>,
    failure: Option<Error>,
}

#[derive(Debug, Clone)]
struct Grant {
    header: HeaderValue,
    until: Instant,
    /// What it was got with, of what was handed over.
    by: Option<Credential>,
}

impl Authorizer {
    pub(crate) fn new(sources: Sources) -> Self {
        Self { sources: Arc::new(sources), slots: Mutex::default() }
    }

    /// Returns the `Authorization` for a request; `refused` is one that the registry did not accept, `learned` says that it has said what it
    /// wants for this request.
    pub(crate) async fn header(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        scopes: &Scopes,
        refused: Option<&HeaderValue>,
        learned: bool,
    ) -> Result<Option<HeaderValue>, Error> {
        let Some(challenge) = endpoint.challenge() else { return Ok(None) };
        let place = match &challenge {
            Challenge::Basic => endpoint.host().to_string(),
            Challenge::Bearer { realm, service, .. } => {
                format!("{} {realm} {}", endpoint.host(), service.as_deref().unwrap_or_default())
            }
        };
        let scopes = match &challenge {
            // One password serves all, except that files may have one per namespace.
            Challenge::Basic => Scopes { list: BTreeSet::new(), repository: scopes.repository.clone() },
            Challenge::Bearer { scope, .. } if learned && refused.is_some() => {
                scopes.clone().and(scope.as_deref())
            }
            Challenge::Bearer { .. } => scopes.clone(),
        };
        let slot = self.slot(Key { place, scopes: scopes.clone() });
        let seen = slot.ended.load(Ordering::Acquire);
        let mut state = slot.state.lock().await;
        if let Some(grant) = &state.grant
            && grant.until > Instant::now()
            && refused != Some(&grant.header)
        {
            return Ok(Some(grant.header.clone()));
        }
        if slot.ended.load(Ordering::Acquire) > seen
            && let Some(failure) = &state.failure
        {
            return Err(failure.clone());
        }
        let by = state.grant.as_ref().filter(|grant| refused == Some(&grant.header));
        let by = by.and_then(|grant| grant.by.clone());
        let result = self.obtain(net, endpoint, &challenge, &scopes, by.as_ref()).await;
        state.grant = result.as_ref().ok().cloned();
        state.failure = result.as_ref().err().cloned();
        slot.ended.fetch_add(1, Ordering::Release);
        result.map(|grant| Some(grant.header))
    }

    fn slot(&self, key: Key) -> Arc<Slot> {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        if slots.len() >= limits::TOKENS && !slots.contains_key(&key) {
            slots.clear(); // they are fetched again; a least-recently-used order would be more than it is worth
        }
        Arc::clone(slots.entry(key).or_default())
    }

    /// Asks with what was handed over, one after the other, and with what the node has; first with what comes after the one
    /// that was `refused`.
    async fn obtain(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        challenge: &Challenge,
        scopes: &Scopes,
        refused: Option<&Credential>,
    ) -> Result<Grant, Error> {
        let handed = self.sources.handed(endpoint.host(), scopes.repository.as_ref());
        let from = handed.iter().position(|one| Some(one) == refused).map_or(0, |at| at + 1);
        let (before, after) = handed.split_at(from);
        let ask = |credential: &Credential| {
            let found = Found { credential: credential.clone(), life: None };
            self.ask(net, endpoint, challenge, scopes, Some(found))
        };
        let mut said = None;
        for credential in after {
            match ask(credential).await {
                Ok(grant) => return Ok(Grant { by: Some(credential.clone()), ..grant }),
                Err(error) => said = Some(passing(error)?),
            }
        }
        let asked = match self.credential(endpoint, scopes).await {
            Ok(None) if !handed.is_empty() => None,
            Ok(found) => Some(self.ask(net, endpoint, challenge, scopes, found).await),
            Err(error) => Some(Err(error)),
        };
        match asked {
            // Whatever is wrong with the node's, there are others.
            Some(Err(error)) if !before.is_empty() => said = Some(error),
            Some(result) => return result,
            None => {}
        }
        for credential in before {
            match ask(credential).await {
                Ok(grant) => return Ok(Grant { by: Some(credential.clone()), ..grant }),
                Err(error) => said = Some(passing(error)?),
            }
        }
        Err(said.unwrap_or_else(|| Error::invalid("credentials", "there are none")))
    }

    /// Returns how many credentials there may be for a repository besides the node's.
    pub(crate) fn choices(&self, endpoint: &Endpoint, scopes: &Scopes) -> u32 {
        let handed = self.sources.handed(endpoint.host(), scopes.repository.as_ref());
        u32::try_from(handed.len()).unwrap_or(u32::MAX)
    }

    async fn ask(
        &self,
        net: &Net,
        endpoint: &Endpoint,
        challenge: &Challenge,
        scopes: &Scopes,
        found: Option<Found>,
    ) -> Result<Grant, Error> {
        let life = found.as_ref().and_then(|found| found.life).unwrap_or(limits::CREDENTIAL_LIFE);
        let credential = found.map(|found| found.credential);
        let denied = |message: &str| Error::Denied {
            what: format!("credentials for {}", endpoint.host()),
            host: endpoint.host().to_string(),
            message: message.into(),
        };
        let until = Instant::now() + life;
        match (challenge, credential) {
            (_, Some(Credential::Bearer(token))) => Ok(Grant { header: bearer(&token)?, until, by: None }),
            (Challenge::Basic, Some(Credential::Password(user, password))) => {
                Ok(Grant { header: basic(&user, &password)?, until, by: None })
            }
            (Challenge::Basic, Some(Credential::Identity(_))) => {
                Err(denied("there is an identity token, but the registry wants a password"))
            }
            (Challenge::Basic, None) => {
                Err(denied("none found; `docker login` or `skopeo login` stores them"))
            }
            (Challenge::Bearer { realm, service, .. }, credential) => {
                let request = token_request(realm, service.as_deref(), scopes, credential.as_ref())?;
                let begun = Instant::now();
                let body = net.token(endpoint, request).await?;
                let what = || format!("token from {}", realm.host_str().unwrap_or_default());
                let answer: TokenAnswer = serde_json::from_slice(&body).map_err(|_| {
                    Error::invalid(what(), "the answer is not what the token specification says")
                })?;
                let token =
                    [answer.token, answer.access_token].into_iter().flatten().find(|token| !token.is_empty());
                let token = token.ok_or_else(|| Error::invalid(what(), "the answer holds no token"))?;
                let life = answer.expires_in.map_or(limits::TOKEN_LIFE, Duration::from_secs);
                Ok(Grant { header: bearer(&token)?, until: begun + usable(life), by: None })
            }
        }
    }

    async fn credential(&self, endpoint: &Endpoint, scopes: &Scopes) -> Result<Option<Found>, Error> {
        if self.sources.is_empty() {
            return Ok(None);
        }
        let (sources, host) = (Arc::clone(&self.sources), endpoint.host().clone());
        let repository = scopes.repository.clone();
        let found = tokio::task::spawn_blocking(move || sources.find(&host, repository.as_ref())).await;
        found.map_err(|error| Error::io("looking for credentials", std::io::Error::other(error)))?
    }
}

/// Returns an error that another credential may not have; any other ends the asking.
fn passing(error: Error) -> Result<Error, Error> {
    match error {
        Error::Denied { .. } | Error::Invalid { .. } => Ok(error),
        error => Err(error),
    }
}

/// How long a token is used: to a little before its end, because the request takes time too.
fn usable(life: Duration) -> Duration {
    let life = life.clamp(limits::TOKEN_LIFE, Duration::from_secs(24 * 3600));
    life - (life / 4).min(Duration::from_secs(15))
}

fn token_request(
    realm: &Url,
    service: Option<&str>,
    scopes: &Scopes,
    credential: Option<&Credential>,
) -> Result<TokenRequest, Error> {
    match credential {
        Some(Credential::Identity(token)) => {
            let joined = scopes.list.iter().map(String::as_str).collect::<Vec<_>>().join(" ");
            let mut form = vec![
                ("grant_type", "refresh_token"),
                ("client_id", "floe"),
                ("refresh_token", token.expose()),
                ("scope", &joined),
            ];
            form.extend(service.map(|service| ("service", service)));
            // Built as the query of a URL that is never sent: the encoding is the same.
            let mut url = realm.clone();
            url.query_pairs_mut().clear().extend_pairs(form);
            Ok(TokenRequest {
                url: realm.clone(),
                headers: HeaderMap::new(),
                form: url.query().map(Secret::new),
            })
        }
        _ => {
            let mut url = realm.clone();
            {
                let mut query = url.query_pairs_mut();
                query.extend_pairs(service.map(|service| ("service", service)));
                query.extend_pairs(scopes.list.iter().map(|scope| ("scope", scope)));
            }
            let mut headers = HeaderMap::new();
            if let Some(Credential::Password(user, password)) = credential {
                url.query_pairs_mut().append_pair("account", user);
                headers.insert(header::AUTHORIZATION, basic(user, password)?);
            }
            Ok(TokenRequest { url, headers, form: None })
        }
    }
}

#[derive(Deserialize)]
struct TokenAnswer {
    token: Option<Secret>,
    access_token: Option<Secret>,
    expires_in: Option<u64>,
}

fn basic(user: &str, password: &Secret) -> Result<HeaderValue, Error> {
    let pair = base64::prelude::BASE64_STANDARD.encode(format!("{user}:{}", password.expose()));
    sensitive(format!("Basic {pair}"))
}

fn bearer(token: &Secret) -> Result<HeaderValue, Error> {
    sensitive(format!("Bearer {}", token.expose()))
}

fn sensitive(text: String) -> Result<HeaderValue, Error> {
    let value = HeaderValue::try_from(text);
    let mut value =
        value.map_err(|_| Error::invalid("credentials", "they hold characters that no header can"))?;
    value.set_sensitive(true);
    Ok(value)
}

/// Learns from a 401 what the registry wants. Fails if it wants nothing that we can give.
pub(crate) fn learn(endpoint: &Endpoint, headers: &HeaderMap, what: &str) -> Result<(), Error> {
    let texts = headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| value.to_str().ok());
    let denied = |message: &str| Error::Denied {
        what: what.into(),
        host: endpoint.host().to_string(),
        message: message.into(),
    };
    let found =
        challenge::choose(texts).ok_or_else(|| denied("it asks for credentials in a way we do not know"))?;
    if let Challenge::Bearer { realm, .. } = &found
        && !endpoint.may_send_secrets_to(realm)
    {
        return Err(denied("its token server has no TLS"));
    }
    endpoint.set_challenge(found);
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_are_renewed_before_they_end() {
        for (life, used) in [(0, 45), (60, 45), (300, 285), (1_000_000, 86_385)] {
            assert_eq!(usable(Duration::from_secs(life)), Duration::from_secs(used), "{life}");
        }
    }

    #[test]
    fn token_requests() {
        let realm = Url::parse("https://auth.example/token?x=1").unwrap();
        let name = |text: &str| text.parse::<RepositoryName>().unwrap();
        let scopes =
            Scopes::push(&name("a/b")).and_pull(&name("c")).and(Some("repository:c:pull repository:d:pull"));
        let request = token_request(&realm, Some("svc"), &scopes, None).unwrap();
        assert_eq!(
            request.url.as_str(),
            "https://auth.example/token?x=1&service=svc&scope=repository%3Aa%2Fb%3Apull%2Cpush&scope=repository%3Ac%3Apull&scope=repository%3Ad%3Apull"
        );
        assert!(request.headers.is_empty() && request.form.is_none());

        let password = Credential::Password("u".into(), Secret::new("p"));
        let request = token_request(&realm, None, &Scopes::pull(&name("c")), Some(&password)).unwrap();
        assert_eq!(request.headers[header::AUTHORIZATION], "Basic dTpw");
        assert!(request.headers[header::AUTHORIZATION].is_sensitive());

        let identity = Credential::Identity(Secret::new("s&t"));
        let request = token_request(&realm, Some("svc"), &Scopes::pull(&name("c")), Some(&identity)).unwrap();
        assert_eq!(request.url, realm);
        assert_eq!(
            request.form.unwrap().expose(),
            "grant_type=refresh_token&client_id=floe&refresh_token=s%26t&scope=repository%3Ac%3Apull&service=svc"
        );
    }
}
