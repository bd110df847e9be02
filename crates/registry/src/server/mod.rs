//! The embedded registry: `floe registry DIR`.
//!
//! Speaks the distribution specification 1.1 over HTTP/1.1: pull with ranges, push in one piece or many, tags,
//! referrers, deletion. Has no TLS and no users: it is meant for a loopback address, a demo, a test, a laptop.
//!
//! Promises: nothing gets a name before its digest was checked and its bytes are durable; no request can name a
//! path outside the directory; the bytes sent per second never exceed the configured rate, over all connections.

mod body;
mod handle;
mod request;
mod shape;
mod storage;
mod upload;

use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};

use crate::error::Error;
use handle::Registry;
use shape::Shaper;
use storage::Storage;

/// Connections served at once; more wait in the listen queue.
const CONNECTIONS: usize = 512;

/// Time for the head of a request. Idle connections count too, so it is long.
const HEAD_TIME: Duration = Duration::from_secs(120);

/// Settings of the embedded registry.
#[derive(Debug, Clone)]
pub struct ServerConfig {
    /// Where everything is kept.
    pub dir: PathBuf,
    /// Address and port; port 0 means any.
    pub listen: SocketAddr,
    /// Bytes of content sent per second, over all connections together. None: as fast as it goes.
    pub rate: Option<u64>,
}

/// What the server did since its start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct ServerStats {
    /// Requests of any kind.
    pub requests: u64,
    /// Reads of manifests, by tag or digest.
    pub manifests: u64,
    /// Reads of blobs, whole or by range.
    pub blobs: u64,
    /// Reads of blobs by range.
    pub ranges: u64,
    /// Bytes of content sent.
    pub bytes_sent: u64,
    /// Bytes of content received.
    pub bytes_received: u64,
}

#[derive(Debug, Default)]
pub(super) struct Counters {
    requests: AtomicU64,
    manifests: AtomicU64,
    blobs: AtomicU64,
    ranges: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
}

/// A running registry; stops when dropped.
#[derive(Debug)]
pub struct Server {
    address: SocketAddr,
    registry: Arc<Registry>,
    accepting: JoinHandle<()>,
}

impl Server {
    /// Opens the directory and begins to listen. Must be called on a tokio runtime.
    pub async fn start(config: ServerConfig) -> Result<Self, Error> {
        let dir = config.dir.clone();
        let storage =
            crate::layout::blocking("opening the registry's directory", move || Storage::open(&dir)).await?;
        let doing = |error| Error::io(format!("listening on {}", config.listen), error);
        let listener = TcpListener::bind(config.listen).await.map_err(doing)?;
        let address = listener.local_addr().map_err(doing)?;
        let registry = Arc::new(Registry::new(storage, Shaper::new(config.rate)));
        let accepting = tokio::spawn(accept(listener, Arc::clone(&registry)));
        Ok(Self { address, registry, accepting })
    }

    /// Returns the address it listens on.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Changes the rate from now on.
    pub fn set_rate(&self, rate: Option<u64>) {
        self.registry.shaper().set_rate(rate);
    }

    /// Returns what it did so far.
    pub fn stats(&self) -> ServerStats {
        let counters = self.registry.counters();
        let read = |n: &AtomicU64| n.load(Relaxed);
        ServerStats {
            requests: read(&counters.requests),
            manifests: read(&counters.manifests),
            blobs: read(&counters.blobs),
            ranges: read(&counters.ranges),
            bytes_sent: read(&counters.bytes_sent),
            bytes_received: read(&counters.bytes_received),
        }
    }

    /// Serves until the process ends or the listener fails for good.
    pub async fn wait(mut self) {
        let _ = (&mut self.accepting).await; // it ends with the runtime
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.accepting.abort(); // takes the connections along
    }
}

async fn accept(listener: TcpListener, registry: Arc<Registry>) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        while connections.try_join_next().is_some() {}
        match listener.accept().await {
            Ok((stream, _)) => {
                let registry = Arc::clone(&registry);
                connections.spawn(async move {
                    serve(stream, registry).await;
                    drop(place);
                });
            }
            // Out of descriptors, as a rule: some connection will end.
            Err(error) => {
                tracing::warn!(%error, "accepting a connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
}

async fn serve(stream: TcpStream, registry: Arc<Registry>) {
    let _ = stream.set_nodelay(true); // only slower without
    let service = service_fn(move |request| {
        let registry = Arc::clone(&registry);
        async move { Ok::<_, std::convert::Infallible>(registry.answer(request).await) }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .serve_connection(TokioIo::new(stream), service);
    if let Err(error) = connection.await {
        tracing::debug!(%error, "a connection ended early");
    }
}
