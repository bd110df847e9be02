//! Ranges of blobs, read as a stream that survives what servers and networks do.
//!
//! Promises: the pieces that [`RangeReader::chunk`] returns are, in order, exactly as many bytes as the range
//! has, or there is an error. After an early end, a stall or a refusal it goes on where it stopped, within the
//! host's retries. A redirect is followed once per blob and remembered until it is refused.
//! A long range comes over several connections ([`parts`]).
//! The bytes are **not verified**: only a whole blob has a digest. Whoever uses them checks them.

mod parts;

use std::ops::Range;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Buf, Bytes};
use format::{Digest, DigestHasher};
use http::{HeaderValue, Method, StatusCode, header};
use reqwest::Url;
use tokio::sync::{Semaphore, SemaphorePermit};

use crate::client::{Inner, Repository};
use crate::error::{Error, Fault};
use crate::hosts::Capability;
use crate::layout::LocalRange;
use crate::limits;
use crate::reply::{BodyError, Reply, is_temporary, refusal, throttle};
use crate::retry::Tries;
use crate::transport::{Call, Endpoint, Trouble};
use crate::urgency::Urgency;
pub(crate) use parts::AHEAD;
use parts::{PART, Parts};

/// Reads a range of a blob piece by piece.
#[derive(Debug)]
pub struct RangeReader(Inside);

#[derive(Debug)]
enum Inside {
    Remote(Box<RemoteRange>),
    Parts(Box<Parts>),
    Local(LocalRange),
}

impl RangeReader {
    pub(crate) fn remote(
        repository: Repository,
        blob: Digest,
        size: u64,
        range: Range<u64>,
        urgency: Urgency,
    ) -> Self {
        let long = range.end.saturating_sub(range.start) > 2 * PART;
        let range = RemoteRange::new(repository, blob, size, range, urgency);
        Self(match long {
            true => Inside::Parts(Box::new(Parts::new(range))),
            false => Inside::Remote(Box::new(range)),
        })
    }

    pub(crate) fn local(range: LocalRange) -> Self {
        Self(Inside::Local(range))
    }

    /// Returns the next bytes, or nothing at the end of the range. Dropping the future loses nothing but time.
    pub async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        match &mut self.0 {
            Inside::Remote(remote) => remote.chunk().await,
            Inside::Parts(parts) => parts.chunk().await,
            Inside::Local(local) => local.chunk().await,
        }
    }

    /// Returns the whole range, which must be a whole blob of at most `limit` bytes, checked.
    pub async fn verified(mut self, digest: &Digest, limit: u64) -> Result<Bytes, Error> {
        let (what, size) = match &self.0 {
            Inside::Remote(remote) => (remote.what.clone(), remote.end - remote.next.min(remote.end)),
            Inside::Parts(parts) => (parts.what().to_owned(), parts.left()),
            Inside::Local(local) => (local.what().to_owned(), local.left()),
        };
        if size > limit {
            return Err(Error::TooLarge { what, size, limit });
        }
        let mut bytes = Vec::with_capacity(usize::try_from(size).unwrap_or_default());
        let mut hasher = DigestHasher::new();
        while let Some(piece) = self.chunk().await? {
            hasher.update(&piece);
            bytes.extend_from_slice(&piece);
        }
        match hasher.finish() {
            found if found == *digest => Ok(bytes.into()),
            found => Err(Error::invalid(what, format!("what came has digest {found}"))),
        }
    }
}

/// Where a blob's bytes come from, as far as we know.
#[derive(Debug)]
pub(crate) struct Route {
    /// Held for a look only.
    state: Mutex<RouteState>,
    /// Lets one reader find out, so that 16 ranges do not resolve the same redirect 16 times.
    first: Semaphore,
}

#[derive(Debug, Clone)]
enum RouteState {
    Unknown,
    Direct(Arc<Endpoint>),
    Elsewhere(Arc<Endpoint>, Url),
}

impl Default for Route {
    fn default() -> Self {
        Self { state: Mutex::new(RouteState::Unknown), first: Semaphore::new(1) }
    }
}

impl Route {
    fn get(&self) -> RouteState {
        self.state.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    fn set(&self, state: RouteState) {
        *self.state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// Forgets a URL, unless somebody already found a better one.
    fn forget(&self, url: &Url) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if matches!(&*state, RouteState::Elsewhere(_, known) if known == url) {
            *state = RouteState::Unknown;
        }
    }

    /// Returns what is known; with the right to find out if nothing is.
    async fn look(&self) -> (RouteState, Option<SemaphorePermit<'_>>) {
        match self.get() {
            RouteState::Unknown => {
                let first = self.first.acquire().await.ok(); // the semaphore is never closed
                (self.get(), first)
            }
            known => (known, None),
        }
    }
}

#[derive(Debug)]
struct RemoteRange {
    repository: Repository,
    what: String,
    route: Arc<Route>,
    blob: Digest,
    size: u64,
    next: u64,
    end: u64,
    urgency: Urgency,
    body: Option<Body>,
    tries: Option<Tries>,
    /// Bytes since the last failure.
    progress: u64,
}

/// An answer in progress.
#[derive(Debug)]
struct Body {
    reply: Reply,
    /// Whether it is the whole blob.
    whole: bool,
    /// Bytes of it that come before those we want: the server ignored the range.
    skip: u64,
}

impl RemoteRange {
    fn new(repository: Repository, blob: Digest, size: u64, range: Range<u64>, urgency: Urgency) -> Self {
        Self {
            what: format!("bytes {}..{} of blob {blob} of {repository}", range.start, range.end),
            route: repository.route(&blob),
            blob,
            size,
            next: range.start,
            end: range.end,
            urgency,
            body: None,
            tries: None,
            progress: 0,
            repository,
        }
    }

    async fn chunk(&mut self) -> Result<Option<Bytes>, Error> {
        if self.next > self.end || self.end > self.size {
            return Err(Error::invalid(
                &self.what,
                format!("no such range: the blob has {} bytes", self.size),
            ));
        }
        loop {
            if self.next == self.end {
                self.body = None; // gives the permit back
                return Ok(None);
            }
            let Some(body) = &mut self.body else {
                self.body = Some(self.open().await?);
                continue;
            };
            let fault = match body.reply.chunk().await {
                Ok(Some(mut piece)) => {
                    let skipped = body.skip.min(piece.len() as u64);
                    body.skip -= skipped;
                    // Both fit: they are at most the piece's length.
                    piece.advance(usize::try_from(skipped).unwrap_or(piece.len()));
                    piece.truncate(usize::try_from(self.end - self.next).unwrap_or(usize::MAX));
                    if piece.is_empty() {
                        continue;
                    }
                    self.next += piece.len() as u64;
                    self.progress += piece.len() as u64;
                    return Ok(Some(piece));
                }
                Ok(None) => Fault::Short(self.end - self.next),
                Err(fault) => fault,
            };
            let limiter = Arc::clone(&body.reply.limiter);
            self.body = None;
            if std::mem::take(&mut self.progress) >= limits::PROGRESS
                && let Some(tries) = &mut self.tries
            {
                tries.reset();
            }
            match &mut self.tries {
                Some(tries) => tries.again(&limiter, fault, None).await?,
                None => return Err(Error::invalid(&self.what, fault.to_string())), // open() always sets it
            }
        }
    }

    /// Asks for what is still missing until a server begins to give it.
    async fn open(&mut self) -> Result<Body, Error> {
        let mut call = self.repository.call(Method::GET, format!("blobs/{}", self.blob), self.what.clone());
        call.urgency = self.urgency.clone();
        let whole = self.next == 0 && self.end == self.size;
        if !whole {
            let range = HeaderValue::try_from(format!("bytes={}-{}", self.next, self.end - 1));
            call.headers.extend(range.ok().map(|range| (header::RANGE, range)));
        }
        loop {
            let reply = self.reply(&call).await?;
            match self.begin(&reply, whole) {
                Ok(skip) => {
                    let whole = reply.status() != StatusCode::PARTIAL_CONTENT;
                    return Ok(Body { reply, whole, skip });
                }
                Err(fault) => {
                    let limiter = Arc::clone(&reply.limiter);
                    if let Some(url) = &reply.elsewhere {
                        self.route.forget(url);
                    }
                    drop(reply);
                    self.again(&limiter, fault, None).await?;
                }
            }
        }
    }

    /// Returns how many bytes to skip, if the answer holds what we asked for.
    fn begin(&self, reply: &Reply, whole: bool) -> Result<u64, Fault> {
        let text = |name| reply.headers().get(name).and_then(|value: &HeaderValue| value.to_str().ok());
        let wrong_size =
            |size: u64| Fault::Answer(format!("the server says {size} bytes, the manifest {}", self.size));
        match reply.status() {
            StatusCode::PARTIAL_CONTENT => {
                let range = text(header::CONTENT_RANGE).and_then(content_range);
                let Some((start, total)) = range else {
                    return Err(Fault::Answer("a partial answer without a range that can be read".into()));
                };
                if start != self.next {
                    return Err(Fault::Answer(format!("asked for byte {}, got {start}", self.next)));
                }
                total.filter(|&total| total != self.size).map_or(Ok(0), |total| Err(wrong_size(total)))
            }
            // Also a server that knows no ranges: it sends all, and we stop when we have what we want.
            status if status.is_success() => {
                let length = text(header::CONTENT_LENGTH).and_then(|text| text.parse::<u64>().ok());
                if let Some(length) = length.filter(|&length| length != self.size) {
                    return Err(wrong_size(length));
                }
                if !whole {
                    reply.limiter.counters.ranges_ignored.fetch_add(1, Ordering::Relaxed);
                }
                Ok(self.next)
            }
            StatusCode::RANGE_NOT_SATISFIABLE => {
                Err(Fault::Answer("the server says the blob is shorter".into()))
            }
            status => Err(Fault::Status(status.as_u16())),
        }
    }

    /// Returns an answer with some content, by the way we know or one that is found.
    async fn reply(&mut self, call: &Call) -> Result<Reply, Error> {
        loop {
            let route = Arc::clone(&self.route);
            let (state, _first) = route.look().await;
            let (endpoint, url) = match state {
                RouteState::Unknown => return self.find(call, None).await,
                RouteState::Direct(endpoint) => return self.find(call, Some(endpoint)).await,
                RouteState::Elsewhere(endpoint, url) => (endpoint, url),
            };
            let client = self.repository.client.clone();
            let result = client.0.net.open_elsewhere(&endpoint, call, &url).await;
            match result {
                Ok(reply) if reply.status().is_success() => return Ok(reply),
                Ok(reply) if is_temporary(reply.status()) => {
                    let (asked, limiter) = (throttle(&reply), Arc::clone(&reply.limiter));
                    let fault = Fault::Status(reply.status().as_u16());
                    drop(reply);
                    self.again(&limiter, fault, asked).await?;
                }
                // Expired, or never meant for this range: the registry names a new place.
                Ok(reply) => {
                    tracing::debug!(what = %call.what, status = reply.status().as_u16(), "resolving a redirect again");
                    route.forget(&url);
                    drop((reply, _first));
                    return self.find(call, Some(endpoint)).await;
                }
                Err(Trouble::Fatal(error)) => return Err(error),
                Err(Trouble::Connect(limiter, fault) | Trouble::Fault(limiter, fault)) => {
                    route.forget(&url);
                    self.again(&limiter, fault, None).await?;
                }
            }
        }
    }

    /// Asks the registry or its mirrors, and remembers which of them had it and where that led.
    async fn find(&mut self, call: &Call, known: Option<Arc<Endpoint>>) -> Result<Reply, Error> {
        let mut endpoints = self.repository.endpoints(Capability::Pull, &call.what)?;
        if let Some(known) = &known {
            endpoints.sort_by_key(|one| !Arc::ptr_eq(one, known)); // stable: the rest stays in order
        }
        let client = self.repository.client.clone();
        let Inner { net, auth, .. } = &*client.0;
        let count = endpoints.len();
        for (n, endpoint) in endpoints.into_iter().enumerate() {
            let last = n + 1 == count;
            let mut other;
            let tries = match last {
                true => self.tries.get_or_insert_with(|| self.repository.tries(&endpoint, &call.what, true)),
                false => {
                    other = self.repository.tries(&endpoint, &call.what, false);
                    &mut other
                }
            };
            let error = match net.open(auth, &endpoint, call, tries).await {
                Ok(mut reply) => match reply.status() {
                    status if status.is_success() || status == StatusCode::RANGE_NOT_SATISFIABLE => {
                        let answered = Arc::clone(&endpoint);
                        self.route.set(match &reply.elsewhere {
                            Some(url) => RouteState::Elsewhere(endpoint, url.clone()),
                            None => RouteState::Direct(endpoint),
                        });
                        self.tries.get_or_insert_with(|| self.repository.tries(&answered, &call.what, true));
                        return Ok(reply);
                    }
                    // The place that we were sent to refuses; the registry may name another next time.
                    _ if reply.elsewhere.is_some() && last => return Ok(reply),
                    status => match reply.body(limits::ERROR_BODY).await {
                        Ok(body) => refusal(status, &body, &endpoint, &call.what),
                        Err(BodyError::TooLarge(_) | BodyError::Fault(_)) => {
                            refusal(status, &[], &endpoint, &call.what)
                        }
                    },
                },
                Err(error) => error,
            };
            if last {
                return Err(error);
            }
            tracing::info!(mirror = %endpoint.host(), %error, "asking the next");
        }
        Err(Error::not_found(&call.what)) // there is at least one endpoint, so this is not reached
    }

    async fn again(
        &mut self,
        limiter: &Arc<crate::budget::Limiter>,
        fault: Fault,
        asked: Option<std::time::Duration>,
    ) -> Result<(), Error> {
        let repository = &self.repository;
        let what = &self.what;
        let tries = self
            .tries
            .get_or_insert_with(|| Tries::new(what, repository.host.as_str(), limiter.budgets().retries));
        tries.again(limiter, fault, asked).await
    }
}

/// Start and total of `bytes 0-99/1000`; the total may be unknown.
fn content_range(text: &str) -> Option<(u64, Option<u64>)> {
    let (range, total) = text.trim().strip_prefix("bytes ")?.split_once('/')?;
    let (first, last) = range.split_once('-')?;
    let (first, last): (u64, u64) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
    let total = match total.trim() {
        "*" => None,
        number => Some(number.parse().ok()?),
    };
    (first <= last && total.is_none_or(|total| last < total)).then_some((first, total))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn content_ranges() {
        assert_eq!(content_range("bytes 0-99/1000"), Some((0, Some(1000))));
        assert_eq!(content_range("bytes 5-5/*"), Some((5, None)));
        assert_eq!(content_range("bytes 0-999/1000"), Some((0, Some(1000))));
        for bad in
            ["", "bytes */1000", "bytes 9-5/1000", "bytes 0-1000/1000", "0-9/10", "bytes 0-9", "bytes a-b/c"]
        {
            assert_eq!(content_range(bad), None, "{bad}");
        }
    }
}
