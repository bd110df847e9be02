//! The client: manifests, tags and lists of a registry. Blobs are in [`crate::blob`], writing in [`crate::push`].
//!
//! Promises: a manifest or config that it returns has its digest, and none larger than its limit is read. For
//! each question the registry's mirrors are asked first, in order; what one cannot answer, the next may.

use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use bytes::Bytes;
use format::{Digest, limits as sizes};
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};

use crate::auth::{Authorizer, Scopes};
use crate::blob::{AHEAD, RangeReader, Route};
use crate::budget::{Eager, HostStats, Priority};
use crate::config::Config;
use crate::credentials::{self, Sources};
use crate::error::Error;
use crate::hosts::{self, Capability};
use crate::limits;
use crate::manifest::{Descriptor, Manifest, media_type};
use crate::names::{Host, RepositoryName, Tag};
use crate::reference::ImageName;
use crate::reply::Answer;
use crate::retry::Tries;
use crate::transport::{Call, Endpoint, Net, Target};
use crate::urgency::Urgency;

/// What manifests we can read, best first.
const ACCEPT: [&str; 4] =
    [media_type::INDEX, media_type::MANIFEST, media_type::DOCKER_LIST, media_type::DOCKER_MANIFEST];

/// A client of all registries. Clones share connections, tokens and budgets.
#[derive(Debug, Clone)]
pub struct Client(pub(crate) Arc<Inner>);

#[derive(Debug)]
pub(crate) struct Inner {
    pub(crate) net: Net,
    pub(crate) auth: Authorizer,
    /// Held while a host's files are read: once per host.
    endpoints: Mutex<HashMap<Host, Arc<[Arc<Endpoint>]>>>,
    /// Held for a look-up only.
    routes: Mutex<HashMap<(Host, RepositoryName, Digest), Arc<Route>>>,
    /// Held while a fallback list of referrers is read, extended and written: the protocol has no lock, so at
    /// least this process must not overtake itself. No other lock is held meanwhile.
    pub(crate) fallback_lists: tokio::sync::Mutex<()>,
    /// Whether a host has a referrers API, and when it showed. Held for a look only.
    listing: Mutex<HashMap<Host, (bool, Instant)>>,
    /// Room for parts of long ranges that are fetched before somebody reads them.
    pub(crate) ahead: Arc<tokio::sync::Semaphore>,
}

impl Client {
    /// Returns a client with these settings.
    pub fn new(config: Config) -> Self {
        let files = config
            .credentials
            .clone()
            .unwrap_or_else(|| credentials::standard_files(|name| std::env::var_os(name).map(PathBuf::from)));
        let sources = Sources { handed: config.handed.clone(), kubelet: config.kubelet.clone(), files };
        Self(Arc::new(Inner {
            net: Net::new(config),
            auth: Authorizer::new(sources),
            endpoints: Mutex::default(),
            routes: Mutex::default(),
            fallback_lists: tokio::sync::Mutex::default(),
            listing: Mutex::default(),
            ahead: Arc::new(tokio::sync::Semaphore::new(AHEAD)),
        }))
    }

    /// Returns a repository of a registry. Nothing is sent.
    pub fn repository(&self, host: &Host, name: &RepositoryName) -> Repository {
        Repository { client: self.clone(), host: host.clone(), name: name.clone() }
    }

    /// Lets background work use the time in which readers wait for answers, for as long as the result lives.
    pub fn eager(&self) -> Eager {
        Eager::new(&self.0.net.eager)
    }

    /// Returns what every host was asked and gave, by host.
    pub fn stats(&self) -> BTreeMap<String, HostStats> {
        self.0.net.limiters().into_iter().map(|(host, limiter)| (host, limiter.stats())).collect()
    }

    /// Says whether a host has a referrers API, if it showed not too long ago.
    pub(crate) fn lists_referrers(&self, host: &Host) -> Option<bool> {
        let listing = self.0.listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.get(host).filter(|(_, seen)| seen.elapsed() < limits::LISTING).map(|(lists, _)| *lists)
    }

    /// Remembers whether a host has one.
    pub(crate) fn saw_listing(&self, host: &Host, lists: bool) {
        let mut listing = self.0.listing.lock().unwrap_or_else(PoisonError::into_inner);
        listing.insert(host.clone(), (lists, Instant::now()));
    }

    fn endpoints(&self, host: &Host) -> Result<Arc<[Arc<Endpoint>]>, Error> {
        let mut known = self.0.endpoints.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(endpoints) = known.get(host) {
            return Ok(Arc::clone(endpoints));
        }
        let config = &self.0.net.config;
        let made =
            hosts::endpoints(config, host)?.into_iter().map(|one| Arc::new(Endpoint::new(one, config)));
        let made: Arc<[_]> = made.collect();
        known.insert(host.clone(), Arc::clone(&made));
        Ok(made)
    }
}

/// A repository of a registry.
#[derive(Debug, Clone)]
pub struct Repository {
    pub(crate) client: Client,
    pub(crate) host: Host,
    pub(crate) name: RepositoryName,
}

/// Which manifest of a repository.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pick {
    /// The one that a tag leads to at the moment.
    Tag(Tag),
    /// The one with this digest.
    Digest(Digest),
}

impl Pick {
    /// Returns what an image's name leads to: its digest if it has one.
    pub fn of(image: &ImageName) -> Self {
        match (image.digest(), image.tag()) {
            (Some(digest), _) => Self::Digest(*digest),
            (None, tag) => Self::Tag(tag.cloned().unwrap_or_else(Tag::latest)),
        }
    }

    pub(crate) fn digest(&self) -> Option<&Digest> {
        match self {
            Self::Tag(_) => None,
            Self::Digest(digest) => Some(digest),
        }
    }
}

impl std::fmt::Display for Pick {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Tag(tag) => tag.fmt(f),
            Self::Digest(digest) => digest.fmt(f),
        }
    }
}

impl Repository {
    /// Returns the repository's name.
    pub fn name(&self) -> &RepositoryName {
        &self.name
    }

    /// Returns which manifest a tag or digest leads to now, without reading it where the registry can say.
    pub async fn resolve(&self, pick: &Pick) -> Result<Descriptor, Error> {
        let call = self.manifest_call(Method::HEAD, pick);
        let (endpoint, answer) = self.ask(Capability::Resolve, &call, 0).await?;
        if !answer.status.is_success() {
            return Err(answer.refusal(&endpoint, &call.what));
        }
        let digest = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let size = answer.header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        match (digest, size, answer.header(header::CONTENT_TYPE)) {
            (Some(digest), Some(size), Some(kind))
                if pick.digest().is_none_or(|wanted| *wanted == digest) =>
            {
                Ok(Descriptor::new(kind, digest, size))
            }
            _ => Ok(self.manifest(pick).await?.descriptor()),
        }
    }

    /// Returns what a name leads to in the registry itself, whatever its mirrors have.
    pub(crate) async fn has(&self, pick: &Pick) -> Result<Option<Digest>, Error> {
        let mut call = self.manifest_call(Method::HEAD, pick);
        call.scopes = Scopes::push(&self.name); // what follows needs it
        let (endpoint, answer) = self.ask(Capability::Push, &call, 0).await?;
        match answer.status {
            status if status.is_success() => {
                let digest = answer.header("docker-content-digest").and_then(|text| text.parse().ok());
                Ok(digest.or(pick.digest().copied()))
            }
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.refusal(&endpoint, &call.what)),
        }
    }

    /// Returns a manifest, checked.
    pub async fn manifest(&self, pick: &Pick) -> Result<Manifest, Error> {
        let capability = if pick.digest().is_some() { Capability::Pull } else { Capability::Resolve };
        self.manifest_of(pick, capability).await
    }

    /// Returns a manifest, checked, from an endpoint that can do something.
    pub(crate) async fn manifest_of(&self, pick: &Pick, capability: Capability) -> Result<Manifest, Error> {
        let call = self.manifest_call(Method::GET, pick);
        let (endpoint, answer) = self.ask(capability, &call, sizes::MANIFEST).await?;
        if !answer.status.is_success() {
            return Err(answer.refusal(&endpoint, &call.what));
        }
        // A tag has no digest of its own; what the registry says about the body must at least be true.
        let said = answer.header("docker-content-digest").and_then(|text| text.parse::<Digest>().ok());
        let wanted = pick.digest().copied().or(said);
        let kind = answer.header(header::CONTENT_TYPE).map(String::from);
        Manifest::verify(answer.body, wanted.as_ref(), kind.as_deref(), &call.what)
    }

    /// Returns a small blob whole, checked.
    pub async fn blob(
        &self,
        descriptor: &Descriptor,
        limit: u64,
        priority: Priority,
    ) -> Result<Bytes, Error> {
        let reader = self.read_range(&descriptor.digest, descriptor.size, 0..descriptor.size, priority);
        reader.verified(&descriptor.digest, limit).await
    }

    /// Reads a range of a blob of known size. Nothing is sent before the first piece is asked for.
    pub fn read_range(
        &self,
        blob: &Digest,
        size: u64,
        range: std::ops::Range<u64>,
        urgency: impl Into<Urgency>,
    ) -> RangeReader {
        RangeReader::remote(self.clone(), *blob, size, range, urgency.into())
    }

    /// Whether the registry has a blob in this repository.
    pub async fn blob_exists(&self, blob: &Digest) -> Result<bool, Error> {
        Ok(self.ask_for_blob(blob).await?.is_some())
    }

    /// Whether the registry has a blob in this repository, as long as it should be if the registry says how long it is.
    pub(crate) async fn has_blob(&self, blob: &Digest, size: u64) -> Result<bool, Error> {
        let Some(answer) = self.ask_for_blob(blob).await? else { return Ok(false) };
        let said = answer.header(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
        Ok(said.is_none_or(|said| said == size))
    }

    /// Returns what the registry says about a blob that it has.
    async fn ask_for_blob(&self, blob: &Digest) -> Result<Option<Answer>, Error> {
        let mut call = self.call(Method::HEAD, format!("blobs/{blob}"), format!("blob {blob} of {self}"));
        call.scopes = Scopes::push(&self.name); // whoever asks is about to send it
        let (endpoint, answer) = self.ask(Capability::Push, &call, 0).await?;
        match answer.status {
            status if status.is_success() => Ok(Some(answer)),
            StatusCode::NOT_FOUND => Ok(None),
            _ => Err(answer.refusal(&endpoint, &call.what)),
        }
    }

    /// Returns all tags, in the registry's order.
    pub async fn tags(&self) -> Result<Vec<Tag>, Error> {
        #[derive(serde::Deserialize)]
        struct Page {
            tags: Option<Vec<String>>,
        }
        let mut call = self.call(Method::GET, "tags/list".into(), format!("tags of {self}"));
        let mut tags = Vec::new();
        for _ in 0..limits::PAGES {
            let (endpoint, answer) = self.ask(Capability::Resolve, &call, sizes::MANIFEST).await?;
            if !answer.status.is_success() {
                return Err(answer.refusal(&endpoint, &call.what));
            }
            let page: Page = serde_json::from_slice(&answer.body)
                .map_err(|error| Error::invalid(&call.what, format!("not a list: {error}")))?;
            // Registries exist that hold names which are no tags; nobody can ask for those.
            tags.extend(page.tags.unwrap_or_default().iter().filter_map(|tag| tag.parse().ok()));
            if tags.len() > limits::TAGS {
                return Err(Error::TooLarge {
                    what: call.what,
                    size: tags.len() as u64,
                    limit: limits::TAGS as u64,
                });
            }
            match next_page(&answer) {
                Some(target) => call.target = target,
                None => return Ok(tags),
            }
        }
        Err(Error::invalid(call.what, format!("more than {} pages", limits::PAGES)))
    }

    pub(crate) fn call(&self, method: Method, path: String, what: String) -> Call {
        let mut headers = HeaderMap::new();
        // Content is addressed as it is stored; a proxy that compresses it would break lengths and ranges.
        headers.insert(header::ACCEPT_ENCODING, HeaderValue::from_static("identity"));
        Call {
            method,
            target: Target::Path(format!("/{}/{path}", self.name)),
            headers,
            body: Bytes::new(),
            scopes: Scopes::pull(&self.name),
            urgency: Priority::Demand.into(),
            what,
        }
    }

    fn manifest_call(&self, method: Method, pick: &Pick) -> Call {
        let joint = if pick.digest().is_some() { '@' } else { ':' };
        let mut call =
            self.call(method, format!("manifests/{pick}"), format!("manifest {self}{joint}{pick}"));
        for kind in ACCEPT {
            call.headers.append(header::ACCEPT, HeaderValue::from_static(kind));
        }
        call
    }

    /// Asks the endpoints in order. Only of the last is an answer taken that is no success.
    pub(crate) async fn ask(
        &self,
        capability: Capability,
        call: &Call,
        limit: u64,
    ) -> Result<(Arc<Endpoint>, Answer), Error> {
        let endpoints = self.endpoints(capability, &call.what)?;
        let Inner { net, auth, .. } = &*self.client.0;
        for (left, endpoint) in endpoints.iter().enumerate().map(|(n, one)| (endpoints.len() - 1 - n, one)) {
            let mut tries = self.tries(endpoint, &call.what, left == 0);
            match net.fetch(auth, endpoint, call, &mut tries, limit).await {
                Ok(answer) if left == 0 || answer.status.is_success() => {
                    return Ok((Arc::clone(endpoint), answer));
                }
                Ok(answer) => {
                    let status = answer.status.as_u16();
                    tracing::debug!(mirror = %endpoint.host(), what = %call.what, status, "asking the next");
                }
                Err(error) if left == 0 => return Err(error),
                Err(error) => tracing::info!(mirror = %endpoint.host(), %error, "asking the next"),
            }
        }
        Err(Error::not_found(&call.what)) // there is at least one endpoint, so this is not reached
    }

    /// The endpoints for a purpose, never none.
    pub(crate) fn endpoints(&self, capability: Capability, what: &str) -> Result<Vec<Arc<Endpoint>>, Error> {
        let all = self.client.endpoints(&self.host)?;
        let mut able: Vec<_> = all.iter().filter(|one| one.config.can(capability)).cloned().collect();
        if capability == Capability::Push {
            // Content goes to the registry itself; pushing to the first mirror that takes it would scatter it.
            able.retain(|one| one.config.mirror_of.is_none());
        }
        if able.is_empty() {
            let why = format!("hosts.toml names no host with the capability {capability:?}").to_lowercase();
            return Err(Error::config(what, why));
        }
        Ok(able)
    }

    /// Answers of all endpoints; none where the host's files cannot be read, which the next request will tell.
    pub(crate) fn answers(&self) -> u64 {
        let endpoints = self.client.endpoints(&self.host);
        endpoints.iter().flat_map(|all| all.iter()).map(|endpoint| endpoint.answers()).sum()
    }

    /// A mirror gets one more chance only: there is somebody else to ask.
    pub(crate) fn tries(&self, endpoint: &Endpoint, what: &str, last: bool) -> Tries {
        let retries = self.client.0.net.endpoint_limiter(endpoint).budgets().retries;
        Tries::new(what, endpoint.host().as_str(), if last { retries } else { retries.min(1) })
    }

    pub(crate) fn route(&self, blob: &Digest) -> Arc<Route> {
        let mut routes = self.client.0.routes.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (self.host.clone(), self.name.clone(), *blob);
        if routes.len() >= limits::ROUTES && !routes.contains_key(&key) {
            routes.clear(); // each is found again with one request
        }
        Arc::clone(routes.entry(key).or_default())
    }
}

impl std::fmt::Display for Repository {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.host, self.name)
    }
}

/// The next page of a list: `Link: </v2/…?last=…>; rel="next"`. Only the registry itself may name it.
pub(crate) fn next_page(answer: &Answer) -> Option<Target> {
    let link = answer.header(header::LINK)?;
    let (url, parameters) = link.trim().strip_prefix('<')?.split_once('>')?;
    if !parameters.replace('"', "").contains("rel=next") {
        return None;
    }
    let url = answer.url.join(url).ok()?;
    (url.origin() == answer.url.origin()).then_some(Target::Url(url))
}
