//! What can go wrong between us and a registry or layout, by what a caller can do about it.
//!
//! An error is cheap to clone, because all that wait for one request learn of its failure. No message holds a
//! secret: URLs are cut before their query, which may be a signature.

use std::sync::Arc;
use std::time::Duration;

/// The cause of an error.
pub type Cause = Arc<dyn std::error::Error + Send + Sync>;

/// Why an operation failed.
#[derive(Debug, Clone, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// It is not there; asking again gives the same answer until somebody pushes it.
    #[error("{what}: not found")]
    NotFound {
        /// The thing.
        what: String,
    },
    /// The registry wants other credentials.
    #[error("{what}: access denied by {host}: {message}")]
    Denied {
        /// The thing.
        what: String,
        /// Who refused.
        host: String,
        /// What the registry said, or what we know.
        message: String,
    },
    /// What came is not what its digest, its length or its format promise.
    #[error("{what}: {why}")]
    Invalid {
        /// The thing.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// Larger than any honest one.
    #[error("{what}: {size} bytes, the limit is {limit}")]
    TooLarge {
        /// The thing.
        what: String,
        /// Its size.
        size: u64,
        /// What is accepted.
        limit: u64,
    },
    /// The network or the registry failed after all retries; later may be better.
    #[error("{what}: {host} failed {tries} times")]
    Unavailable {
        /// What we were doing.
        what: String,
        /// Who failed.
        host: String,
        /// How often it was tried.
        tries: u32,
        /// The last failure.
        source: Cause,
    },
    /// No connection at all to a host that has not answered before.
    #[error("{what}: {host} cannot be reached")]
    Unreachable {
        /// What we were doing.
        what: String,
        /// Who does not answer.
        host: String,
        /// Why not.
        source: Cause,
    },
    /// The registry asked to wait longer than any reader would.
    #[error("{what}: {host} asks to come back in {} s", wait.as_secs())]
    Throttled {
        /// What we were doing.
        what: String,
        /// Who asked.
        host: String,
        /// How long.
        wait: Duration,
    },
    /// The registry refused the request for another reason.
    #[error("{what}: {host} answered {status}: {message}")]
    Refused {
        /// What we were doing.
        what: String,
        /// Who refused.
        host: String,
        /// The HTTP status.
        status: u16,
        /// What the registry said.
        message: String,
    },
    /// A form of image or registry that is not supported.
    #[error("{what}: not supported: {why}")]
    Unsupported {
        /// The thing.
        what: String,
        /// What is missing, and what would work.
        why: String,
    },
    /// The configuration is wrong.
    #[error("{what}: {why}")]
    Config {
        /// The file or setting.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A local file could not be read or written.
    #[error("{doing}")]
    Io {
        /// What we were doing to which file.
        doing: String,
        /// Why it failed.
        source: Arc<std::io::Error>,
    },
}

impl Error {
    pub(crate) fn not_found(what: impl Into<String>) -> Self {
        Self::NotFound { what: what.into() }
    }

    pub(crate) fn invalid(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Invalid { what: what.into(), why: why.into() }
    }

    pub(crate) fn config(what: impl Into<String>, why: impl Into<String>) -> Self {
        Self::Config { what: what.into(), why: why.into() }
    }

    pub(crate) fn io(doing: impl Into<String>, source: std::io::Error) -> Self {
        Self::Io { doing: doing.into(), source: Arc::new(source) }
    }

    /// Whether another registry, or the same one later, may answer better.
    pub fn is_temporary(&self) -> bool {
        matches!(self, Self::Unavailable { .. } | Self::Unreachable { .. } | Self::Throttled { .. })
    }

    /// Whether the thing is certainly not there.
    pub fn is_not_found(&self) -> bool {
        matches!(self, Self::NotFound { .. })
    }
}

/// A failure of one exchange, kept as the cause of the error that ends the retries.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Fault {
    #[error("HTTP status {0}")]
    Status(u16),
    #[error("nothing came for {} s", .0.as_secs_f32())]
    Stalled(Duration),
    #[error("the connection ended {0} bytes early")]
    Short(u64),
    #[error("{0}")]
    Answer(String),
    #[error("{0}")]
    Http(#[source] reqwest::Error),
    #[error("the proxy {proxy}, which the environment asks for, gives no connection")]
    Proxy {
        proxy: String,
        #[source]
        source: reqwest::Error,
    },
}

impl Fault {
    pub(crate) fn http(error: reqwest::Error) -> Self {
        Self::Http(error.without_url())
    }

    /// Returns why there is no connection, by way of a proxy or without.
    pub(crate) fn connect(error: reqwest::Error, proxy: Option<String>) -> Self {
        match proxy {
            Some(proxy) => Self::Proxy { proxy, source: error.without_url() },
            None => Self::http(error),
        }
    }
}
