//! Answers of servers: their bodies within limits, and what their refusals mean.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use reqwest::Url;

use crate::budget::{Limiter, Permit, Priority};
use crate::error::{Error, Fault};
use crate::limits;
use crate::retry::retry_after;
use crate::transport::Endpoint;
use crate::urgency::Urgency;

/// An answer whose body is still to come. The permit lives as long.
#[derive(Debug)]
pub(crate) struct Reply {
    response: reqwest::Response,
    pub(crate) limiter: Arc<Limiter>,
    /// Where it came from, if a redirect led to another origin.
    pub(crate) elsewhere: Option<Url>,
    permit: Permit,
    urgency: Urgency,
}

/// A whole answer.
#[derive(Debug)]
pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) headers: HeaderMap,
    pub(crate) body: Bytes,
    /// The URL that answered.
    pub(crate) url: Url,
}

pub(crate) enum BodyError {
    TooLarge(u64),
    Fault(Fault),
}

impl Reply {
    pub(crate) fn new(
        response: reqwest::Response,
        limiter: Arc<Limiter>,
        permit: Permit,
        urgency: Urgency,
    ) -> Self {
        Self { response, limiter, elsewhere: None, permit, urgency }
    }

    pub(crate) fn url(&self) -> &Url {
        self.response.url()
    }

    pub(crate) fn status(&self) -> StatusCode {
        self.response.status()
    }

    pub(crate) fn headers(&self) -> &HeaderMap {
        self.response.headers()
    }

    /// Returns the next piece of the body; fails after the budget's time without one. Background work lets
    /// readers go first here too, since requests that were begun share one line.
    pub(crate) async fn chunk(&mut self) -> Result<Option<Bytes>, Fault> {
        if self.permit.priority() == Priority::Background {
            tokio::select! {
                biased;
                () = self.urgency.hurried() => self.permit.hurry(),
                () = self.limiter.give_way() => {}
            }
        }
        let stall = self.limiter.budgets().stall;
        match tokio::time::timeout(stall, self.response.chunk()).await {
            Err(_) => Err(Fault::Stalled(stall)),
            Ok(Err(error)) => Err(Fault::http(error)),
            Ok(Ok(piece)) => {
                self.permit.arrives();
                let len = piece.as_ref().map_or(0, |piece| piece.len() as u64);
                self.limiter.counters.bytes.fetch_add(len, Ordering::Relaxed);
                Ok(piece)
            }
        }
    }

    /// Returns the whole body, if it is not larger than the limit.
    pub(crate) async fn body(&mut self, limit: u64) -> Result<Bytes, BodyError> {
        if let Some(size) = self.response.content_length().filter(|&size| size > limit) {
            return Err(BodyError::TooLarge(size));
        }
        let mut body = Vec::new();
        while let Some(piece) = self.chunk().await.map_err(BodyError::Fault)? {
            let size = (body.len() + piece.len()) as u64;
            if size > limit {
                return Err(BodyError::TooLarge(size));
            }
            body.extend_from_slice(&piece);
        }
        Ok(body.into())
    }
}

impl Answer {
    /// Returns the error that this answer means.
    pub(crate) fn refusal(&self, endpoint: &Endpoint, what: &str) -> Error {
        refusal(self.status, &self.body, endpoint, what)
    }

    /// Returns a header's value if it is plain text.
    pub(crate) fn header(&self, name: impl header::AsHeaderName) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

pub(crate) fn refusal(status: StatusCode, body: &[u8], endpoint: &Endpoint, what: &str) -> Error {
    let (what, host) = (what.to_owned(), endpoint.host().to_string());
    match status {
        StatusCode::NOT_FOUND => Error::NotFound { what },
        StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
            Error::Denied { what, host, message: message(body, status) }
        }
        _ => Error::Refused { what, host, status: status.as_u16(), message: message(body, status) },
    }
}

/// What the registry says in its error body, cut short; for want of that, what the status means.
pub(crate) fn message(body: &[u8], status: StatusCode) -> String {
    #[derive(serde::Deserialize)]
    struct Body {
        errors: Vec<Item>,
    }
    #[derive(serde::Deserialize)]
    struct Item {
        code: Option<String>,
        message: Option<String>,
    }
    let parsed = serde_json::from_slice::<Body>(body).ok();
    let first = parsed.as_ref().and_then(|body| body.errors.first());
    let text = first
        .and_then(|item| item.message.as_deref().filter(|text| !text.is_empty()).or(item.code.as_deref()));
    let text = text.or(status.canonical_reason()).unwrap_or("no reason given");
    text.chars().filter(|c| !c.is_control()).take(200).collect()
}

pub(crate) fn is_temporary(status: StatusCode) -> bool {
    matches!(status.as_u16(), 408 | 429 | 500 | 502 | 503 | 504)
}

/// The wait that a server asked for, made known to all its requests.
pub(crate) fn throttle(reply: &Reply) -> Option<Duration> {
    let asked = retry_after(reply.headers());
    if matches!(reply.status(), StatusCode::TOO_MANY_REQUESTS | StatusCode::SERVICE_UNAVAILABLE) {
        reply.limiter.counters.throttled.fetch_add(1, Ordering::Relaxed);
        reply.limiter.hold(asked.unwrap_or_default().min(limits::RETRY_AFTER));
    }
    asked
}
