//! One request to one endpoint: budget, credentials, redirects, retries.
//!
//! Promises: every request takes a permit of its host's budget and keeps it until its answer has arrived; a
//! credential goes to the endpoint it belongs to and, on a redirect, never to another origin; waiting always has
//! a limit. Which endpoint to ask and what to ask is left to the callers.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use tokio::sync::{OnceCell, Semaphore};

use crate::auth::{self, Authorizer, Scopes};
use crate::budget::{Limiter, Priority};
use crate::challenge::Challenge;
use crate::config::{Budgets, Config, HostConfig};
use crate::error::{Error, Fault};
use crate::hosts::{self, EndpointConfig, Scheme};
use crate::limits;
use crate::names::Host;
use crate::reply::{Answer, BodyError, Reply, is_temporary, message, throttle};
use crate::retry::Tries;
use crate::secret::Secret;
use crate::tls::{HttpClients, Proxy, TlsProblem, tls_problem};
use crate::urgency::Urgency;

/// What all requests share.
#[derive(Debug)]
pub(crate) struct Net {
    pub(crate) config: Config,
    clients: HttpClients,
    /// What hosts have of their own, by host and port as in URLs.
    budgets: HashMap<String, Budgets>,
    /// Held for a look-up only. By host and port as in URLs.
    limiters: Mutex<HashMap<String, Arc<Limiter>>>,
    /// How many want an eager background.
    pub(crate) eager: Arc<AtomicUsize>,
}

/// One place that may answer for a registry, and what we learned about it.
#[derive(Debug)]
pub(crate) struct Endpoint {
    pub(crate) config: EndpointConfig,
    plain_http_elsewhere: Vec<Host>,
    scheme: OnceCell<Scheme>,
    /// Let one request find out what the endpoint wants, so that 32 do not collect 32 refusals.
    first: Semaphore,
    /// Held for a look only.
    contact: Mutex<Contact>,
    /// Answers of any kind, since the start.
    answers: AtomicU64,
}

#[derive(Debug, Clone)]
enum Contact {
    Unknown,
    Open,
    Asked(Challenge),
}

/// A request to an endpoint, without what every request has.
#[derive(Debug, Clone)]
pub(crate) struct Call {
    pub(crate) method: Method,
    /// Path after the endpoint's prefix, with its query; or a whole URL that the endpoint gave us.
    pub(crate) target: Target,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    pub(crate) scopes: Scopes,
    pub(crate) urgency: Urgency,
    /// What errors call it.
    pub(crate) what: String,
}

#[derive(Debug, Clone)]
pub(crate) enum Target {
    Path(String),
    Url(Url),
}

/// A request for a token. Its URL and form hold secrets.
#[derive(Debug)]
pub(crate) struct TokenRequest {
    pub(crate) url: Url,
    pub(crate) headers: HeaderMap,
    pub(crate) form: Option<Secret>,
}

impl Endpoint {
    pub(crate) fn new(config: EndpointConfig, all: &Config) -> Self {
        let plain =
            all.hosts.iter().filter(|(_, host)| host.plain_http == Some(true)).map(|(name, _)| name.clone());
        Self {
            scheme: match config.scheme {
                Scheme::Ask => OnceCell::new(),
                known => OnceCell::new_with(Some(known)),
            },
            config,
            plain_http_elsewhere: plain.collect(),
            first: Semaphore::new(1),
            contact: Mutex::new(Contact::Unknown),
            answers: AtomicU64::new(0),
        }
    }

    pub(crate) fn host(&self) -> &Host {
        &self.config.host
    }

    pub(crate) fn answers(&self) -> u64 {
        self.answers.load(Ordering::Relaxed)
    }

    pub(crate) fn challenge(&self) -> Option<Challenge> {
        match self.contact() {
            Contact::Asked(challenge) => Some(challenge),
            Contact::Unknown | Contact::Open => None,
        }
    }

    pub(crate) fn set_challenge(&self, challenge: Challenge) {
        self.set_contact(Contact::Asked(challenge));
    }

    fn contact(&self) -> Contact {
        self.contact.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set_contact(&self, contact: Contact) {
        *self.contact.lock().unwrap_or_else(PoisonError::into_inner) = contact;
    }

    /// Whether a secret may go to a URL that this endpoint named: only over TLS, unless plain HTTP was allowed.
    pub(crate) fn may_send_secrets_to(&self, url: &Url) -> bool {
        let own = self.config.scheme == Scheme::Http && url.host_str() == parse_host(self.host()).as_deref();
        url.scheme() == "https" || own || self.may_be_plain(url)
    }

    fn may_be_plain(&self, url: &Url) -> bool {
        is_loopback(url) || self.is_plain_by_configuration(url)
    }

    fn is_plain_by_configuration(&self, url: &Url) -> bool {
        authority(url).parse::<Host>().is_ok_and(|host| self.plain_http_elsewhere.contains(&host))
    }

    /// Whether a redirect of ours may lead there: never from TLS to none that nobody allowed. That loopback hosts may
    /// do without is no leave for a server elsewhere to have this machine's own services asked.
    fn may_redirect_to(&self, from: &Url, to: &Url) -> bool {
        match to.scheme() {
            "https" => true,
            "http" if self.is_plain_by_configuration(to) => true,
            "http" if is_loopback(to) => is_loopback(from),
            "http" => from.scheme() == "http",
            _ => false,
        }
    }
}

/// A host's name as URLs have it.
fn parse_host(host: &Host) -> Option<String> {
    Url::parse(&format!("http://{host}")).ok()?.host_str().map(String::from)
}

/// Host and port of a URL, without a port that goes without saying.
fn authority(url: &Url) -> String {
    let host = url.host_str().unwrap_or_default();
    url.port().map_or(host.to_owned(), |port| format!("{host}:{port}"))
}

fn is_loopback(url: &Url) -> bool {
    authority(url).parse::<Host>().is_ok_and(|host| host.is_loopback())
}

impl Net {
    pub(crate) fn new(config: Config) -> Self {
        let own = |(name, host): (&Host, &HostConfig)| {
            let scheme = if host.plain_http == Some(true) { "http" } else { "https" };
            let url = Url::parse(&format!("{scheme}://{}", hosts::api_host(name))).ok()?;
            Some((authority(&url), host.budgets.clone()?))
        };
        let budgets = config.hosts.iter().filter_map(own).collect();
        let (limiters, eager) = (Mutex::default(), Arc::default());
        Self { config, clients: HttpClients::default(), budgets, limiters, eager }
    }

    /// Returns the budget of a host.
    pub(crate) fn limiter(&self, authority: &str) -> Arc<Limiter> {
        let mut limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(limiter) = limiters.get(authority) {
            return Arc::clone(limiter);
        }
        let limiter = Limiter::new(self.budgets(authority).clone(), Arc::clone(&self.eager));
        limiters.insert(authority.into(), Arc::clone(&limiter));
        limiter
    }

    /// Returns all budgets that were used, by host.
    pub(crate) fn limiters(&self) -> Vec<(String, Arc<Limiter>)> {
        let limiters = self.limiters.lock().unwrap_or_else(PoisonError::into_inner);
        limiters.iter().map(|(host, limiter)| (host.clone(), Arc::clone(limiter))).collect()
    }

    pub(crate) fn budgets(&self, authority: &str) -> &Budgets {
        self.budgets.get(authority).unwrap_or(&self.config.budgets)
    }

    pub(crate) fn endpoint_limiter(&self, endpoint: &Endpoint) -> Arc<Limiter> {
        let scheme = if endpoint.scheme.get() == Some(&Scheme::Http) { "http" } else { "https" };
        // Through a URL, so that a port which goes without saying makes no second budget.
        match Url::parse(&format!("{scheme}://{}", endpoint.host())) {
            Ok(url) => self.limiter(&authority(&url)),
            Err(_) => self.limiter(endpoint.host().as_str()),
        }
    }

    /// Sends one request once. The endpoint lends its certificates, no matter where the URL leads.
    async fn exchange(
        &self,
        endpoint: &Endpoint,
        request: reqwest::Request,
        urgency: &Urgency,
    ) -> Result<Reply, Trouble> {
        let authority = authority(request.url());
        let limiter = self.limiter(&authority);
        let proxy = if is_loopback(request.url()) { Proxy::None } else { Proxy::Environment };
        let client =
            self.clients.get(&endpoint.config.tls, proxy, limiter.budgets()).map_err(Trouble::Fatal)?;
        let permit = limiter.acquire_for(urgency).await;
        limiter.counters.requests.fetch_add(1, Ordering::Relaxed);
        let stall = limiter.budgets().stall;
        let url = request.url().clone();
        // For complaints only.
        let through = || self.clients.proxy(proxy, &url);
        match tokio::time::timeout(stall, client.execute(request)).await {
            Err(_) => Err(Trouble::Fault(limiter, Fault::Stalled(stall))),
            // Of plain HTTP only: for TLS the proxy says it before there is a connection.
            Ok(Ok(response)) if response.status() == StatusCode::PROXY_AUTHENTICATION_REQUIRED => {
                Err(Trouble::Fatal(Error::Denied {
                    what: format!("connecting to {authority}"),
                    host: through().map_or(authority, |proxy| format!("the proxy {proxy}")),
                    message: "it wants a user and a password, which go into the proxy's URL".into(),
                }))
            }
            Ok(Ok(response)) => Ok(Reply::new(response, limiter, permit, urgency.clone())),
            Ok(Err(error)) => match tls_problem(&error) {
                Some(problem) => Err(Trouble::Fatal(insecure(&authority, through().as_deref(), &problem))),
                None if error.is_connect() => {
                    Err(Trouble::Connect(limiter, Fault::connect(error, through())))
                }
                None => Err(Trouble::Fault(limiter, Fault::http(error))),
            },
        }
    }

    /// Asks a loopback host whether it speaks plain HTTP; any other is known.
    async fn scheme(&self, endpoint: &Endpoint, urgency: &Urgency) -> Result<&'static str, Error> {
        let ask = || async {
            let url = parse_url(&format!("http://{}{}/", endpoint.host(), endpoint.config.prefix))?;
            match self.exchange(endpoint, reqwest::Request::new(Method::GET, url), urgency).await {
                // What Go's and nginx's TLS listeners say to plain HTTP.
                Ok(reply) if reply.status() == StatusCode::BAD_REQUEST => Ok(Scheme::Https),
                Ok(_) => Ok(Scheme::Http),
                Err(Trouble::Connect(_, fault)) => Err(unreachable("first request", endpoint, fault)),
                Err(Trouble::Fault(_, fault @ Fault::Stalled(_))) => {
                    Err(unreachable("first request", endpoint, fault))
                }
                // TLS, or a server that was not up yet: tried as the one, and asked again the next time.
                Err(Trouble::Fault(..)) => Ok(Scheme::Ask),
                Err(Trouble::Fatal(error)) => Err(error),
            }
        };
        let scheme = match endpoint.scheme.get() {
            Some(known) => *known,
            None => ask().await?,
        };
        if scheme != Scheme::Ask {
            let _ = endpoint.scheme.set(scheme); // somebody else may have learned the same
        }
        Ok(match scheme {
            Scheme::Http => "http",
            Scheme::Https | Scheme::Ask => "https",
        })
    }

    async fn url(&self, endpoint: &Endpoint, call: &Call) -> Result<Url, Error> {
        let path = match &call.target {
            Target::Url(url) => return Ok(url.clone()),
            Target::Path(path) => path,
        };
        let scheme = self.scheme(endpoint, &call.urgency).await?;
        let mut url = parse_url(&format!("{scheme}://{}{}{path}", endpoint.host(), endpoint.config.prefix))?;
        if let Some(registry) = &endpoint.config.mirror_of {
            url.query_pairs_mut().append_pair("ns", registry.as_str());
        }
        Ok(url)
    }

    /// Sends a request until it has an answer that another try would not better.
    pub(crate) async fn open(
        &self,
        auth: &Authorizer,
        endpoint: &Endpoint,
        call: &Call,
        tries: &mut Tries,
    ) -> Result<Reply, Error> {
        let url = self.url(endpoint, call).await?;
        let own =
            parse_url(&format!("{}://{}", self.scheme(endpoint, &call.urgency).await?, endpoint.host()))?;
        let mut refused: Option<HeaderValue> = None;
        let mut refusals = 0;
        let mut learned = false;
        loop {
            let first = match endpoint.contact() {
                Contact::Unknown => endpoint.first.acquire().await.ok(),
                Contact::Open | Contact::Asked(_) => None,
            };
            let header = auth.header(self, endpoint, &call.scopes, refused.as_ref(), learned).await?;
            let result = self.follow(endpoint, &own, call, &url, header.as_ref()).await;
            if let Ok(reply) = &result {
                endpoint.answers.fetch_add(1, Ordering::Relaxed);
                if reply.status() == StatusCode::UNAUTHORIZED && reply.elsewhere.is_none() {
                    auth::learn(endpoint, reply.headers(), &call.what)?;
                } else if matches!(endpoint.contact(), Contact::Unknown) {
                    endpoint.set_contact(Contact::Open);
                }
            }
            drop(first);
            let reply = match result {
                Ok(reply) => reply,
                Err(Trouble::Fatal(error)) => return Err(error),
                // With no network at all a user must hear of it at once, not after all retries.
                Err(Trouble::Connect(_, fault)) if endpoint.answers() == 0 => {
                    return Err(unreachable(&call.what, endpoint, fault));
                }
                Err(Trouble::Connect(limiter, fault) | Trouble::Fault(limiter, fault)) => {
                    tries.again(&limiter, fault, None).await?;
                    continue;
                }
            };
            match reply.status() {
                status @ (StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN) if reply.elsewhere.is_none() => {
                    // Twice: a token may have been refused because it lacked a scope that is only now known. More often where there
                    // are more credentials; then also for a 403, which some registries say of an expired token.
                    let choices = auth.choices(endpoint, &call.scopes);
                    let asked = status == StatusCode::UNAUTHORIZED;
                    let most = if asked { 2 + choices } else { choices + choices.min(1) };
                    if refusals >= most || (!asked && header.is_none()) {
                        return Ok(reply);
                    }
                    refusals += 1;
                    refused = header.or(refused);
                    learned |= asked;
                }
                status if is_temporary(status) => {
                    let asked = throttle(&reply);
                    let limiter = Arc::clone(&reply.limiter);
                    drop(reply);
                    tries.again(&limiter, Fault::Status(status.as_u16()), asked).await?;
                }
                _ => return Ok(reply),
            }
        }
    }

    /// Sends a request once and follows redirects; what belongs to the endpoint stays with it.
    async fn follow(
        &self,
        endpoint: &Endpoint,
        own: &Url,
        call: &Call,
        url: &Url,
        auth: Option<&HeaderValue>,
    ) -> Result<Reply, Trouble> {
        let mut current = url.clone();
        for _ in 0..=limits::REDIRECTS {
            let home = current.origin() == own.origin();
            let mut request = reqwest::Request::new(call.method.clone(), current.clone());
            *request.headers_mut() = call.headers.clone();
            if home {
                request.headers_mut().extend(endpoint.config.headers.clone());
                if let Some(auth) = auth {
                    request.headers_mut().insert(header::AUTHORIZATION, auth.clone());
                }
            }
            if !call.body.is_empty() {
                *request.body_mut() = Some(call.body.clone().into());
            }
            let mut reply = self.exchange(endpoint, request, &call.urgency).await?;
            let follows = matches!(call.method, Method::GET | Method::HEAD)
                && matches!(reply.status().as_u16(), 301 | 302 | 303 | 307 | 308);
            if !follows {
                reply.elsewhere = (!home).then_some(current);
                return Ok(reply);
            }
            reply.limiter.counters.redirects.fetch_add(1, Ordering::Relaxed);
            let next = reply.headers().get(header::LOCATION).and_then(|location| location.to_str().ok());
            let next = next.and_then(|location| current.join(location).ok());
            let limiter = Arc::clone(&reply.limiter);
            let Some(next) = next else {
                return Err(Trouble::Fault(limiter, Fault::Answer("a redirect leads nowhere".into())));
            };
            if !endpoint.may_redirect_to(&current, &next) {
                let (from, to) = (current.scheme(), authority(&next));
                let why = format!(
                    "a redirect leads from {from} to {}://{to}; `plain_http = true` in [registry.{to:?}] allows it",
                    next.scheme()
                );
                return Err(Trouble::Fatal(Error::invalid(&call.what, why)));
            }
            current = next;
        }
        Err(Trouble::Fatal(Error::invalid(&call.what, "redirected too often")))
    }

    /// Sends a request and reads the whole answer, trying again as the tries allow.
    pub(crate) async fn fetch(
        &self,
        auth: &Authorizer,
        endpoint: &Endpoint,
        call: &Call,
        tries: &mut Tries,
        limit: u64,
    ) -> Result<Answer, Error> {
        loop {
            let mut reply = self.open(auth, endpoint, call, tries).await?;
            let (status, headers, url) = (reply.status(), reply.headers().clone(), reply.url().clone());
            let limit = if status.is_success() { limit } else { limits::ERROR_BODY };
            let limiter = Arc::clone(&reply.limiter);
            match reply.body(limit).await {
                Ok(body) => return Ok(Answer { status, headers, body, url }),
                Err(BodyError::TooLarge(_)) if !status.is_success() => {
                    return Ok(Answer { status, headers, body: Bytes::new(), url });
                }
                Err(BodyError::TooLarge(size)) => {
                    return Err(Error::TooLarge { what: call.what.clone(), size, limit });
                }
                Err(BodyError::Fault(fault)) => {
                    drop(reply);
                    tries.again(&limiter, fault, None).await?;
                }
            }
        }
    }

    /// Fetches a token; returns the body of the answer. Always as a reader would: whoever needs it next waits for it.
    pub(crate) async fn token(&self, endpoint: &Endpoint, wanted: TokenRequest) -> Result<Bytes, Error> {
        let host = authority(&wanted.url);
        let what = format!("token for {} from {host}", endpoint.host());
        let mut tries = Tries::new(&what, &host, self.budgets(&host).retries);
        let urgency = Urgency::from(Priority::Demand);
        loop {
            let method = if wanted.form.is_some() { Method::POST } else { Method::GET };
            let mut request = reqwest::Request::new(method, wanted.url.clone());
            *request.headers_mut() = wanted.headers.clone();
            if let Some(form) = &wanted.form {
                let form_type = HeaderValue::from_static("application/x-www-form-urlencoded");
                request.headers_mut().insert(header::CONTENT_TYPE, form_type);
                *request.body_mut() = Some(form.expose().to_owned().into());
            }
            let (limiter, fault, asked) = match self.exchange(endpoint, request, &urgency).await {
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Connect(limiter, fault) | Trouble::Fault(limiter, fault)) => {
                    (limiter, fault, None)
                }
                Ok(reply) if is_temporary(reply.status()) => {
                    let fault = Fault::Status(reply.status().as_u16());
                    (Arc::clone(&reply.limiter), fault, throttle(&reply))
                }
                Ok(mut reply) => {
                    let (status, limiter) = (reply.status(), Arc::clone(&reply.limiter));
                    match reply.body(limits::TOKEN).await {
                        Ok(body) if status.is_success() => {
                            limiter.counters.tokens.fetch_add(1, Ordering::Relaxed);
                            return Ok(body);
                        }
                        Ok(body) if status.is_client_error() => {
                            let message = message(&body, status);
                            return Err(Error::Denied { what, host, message });
                        }
                        Ok(_) => {
                            return Err(Error::invalid(what, format!("HTTP status {}", status.as_u16())));
                        }
                        Err(BodyError::TooLarge(size)) => {
                            return Err(Error::TooLarge { what, size, limit: limits::TOKEN });
                        }
                        Err(BodyError::Fault(fault)) => (limiter, fault, None),
                    }
                }
            };
            tries.again(&limiter, fault, asked).await?;
        }
    }

    /// Opens a URL that a redirect led to before: no credentials, no retries.
    pub(crate) async fn open_elsewhere(
        &self,
        endpoint: &Endpoint,
        call: &Call,
        url: &Url,
    ) -> Result<Reply, Trouble> {
        let mut request = reqwest::Request::new(call.method.clone(), url.clone());
        *request.headers_mut() = call.headers.clone();
        let mut reply = self.exchange(endpoint, request, &call.urgency).await?;
        reply.elsewhere = Some(url.clone());
        Ok(reply)
    }
}

/// Why one exchange had no answer.
pub(crate) enum Trouble {
    /// No connection.
    Connect(Arc<Limiter>, Fault),
    /// A connection that failed.
    Fault(Arc<Limiter>, Fault),
    /// Something that another try cannot better.
    Fatal(Error),
}

fn insecure(authority: &str, through: Option<&str>, problem: &TlsProblem) -> Error {
    if let Some(proxy) = through.filter(|proxy| proxy.starts_with("https:")) {
        let what = match problem {
            TlsProblem::Certificate(why) => format!("a certificate is not trusted: {why}"),
            TlsProblem::NoTls => "what answers does not speak TLS".into(),
        };
        return Error::config(
            format!("connecting to {authority} through the proxy {proxy}"),
            format!(
                "{what}; whether that is the proxy or the host cannot be told: try the proxy's URL with http"
            ),
        );
    }
    let why = match problem {
        TlsProblem::Certificate(why) => format!(
            "its certificate is not trusted: {why}; a private authority goes into `ca` of [registry.{authority:?}]"
        ),
        TlsProblem::NoTls => format!(
            "it does not speak TLS; `plain_http = true` in [registry.{authority:?}] allows to do without"
        ),
    };
    Error::config(format!("connecting to {authority}"), why)
}

fn unreachable(what: &str, endpoint: &Endpoint, fault: Fault) -> Error {
    Error::Unreachable { what: what.into(), host: endpoint.host().to_string(), source: Arc::new(fault) }
}

pub(crate) fn parse_url(text: &str) -> Result<Url, Error> {
    Url::parse(text).map_err(|error| Error::invalid("URL", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn budgets_are_found_under_the_name_that_urls_have() {
        let mut config = Config::isolated();
        let names = ["docker.io", "a.example:443", "b.example:5000", "[::1]:80"];
        for (n, name) in (1..).zip(names) {
            let budgets = Some(Budgets { in_flight: n, ..Budgets::default() });
            let plain_http = name.ends_with(":80").then_some(true);
            config
                .hosts
                .insert(name.parse().unwrap(), HostConfig { budgets, plain_http, ..HostConfig::default() });
        }
        let net = Net::new(config);
        let usual = Budgets::default().in_flight;
        for (authority, in_flight) in [
            ("registry-1.docker.io", 1),
            ("docker.io", usual),
            ("a.example", 2),
            ("b.example:5000", 3),
            ("b.example", usual),
            ("[::1]", 4),
        ] {
            assert_eq!(net.limiter(authority).budgets().in_flight, in_flight, "{authority}");
        }
    }
}
