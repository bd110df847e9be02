//! Serves the page of metrics over HTTP, to whoever can reach the address.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::Context;
use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::header::CONTENT_TYPE;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;

use crate::engine::Engine;

/// What the page is, as Prometheus knows it.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Connections at once; a node has one or two who look.
const CONNECTIONS: usize = 16;

/// How long a connection may take, or the address be taken: by a daemon that is just ending.
const PATIENCE: Duration = Duration::from_secs(10);

/// How often it is tried again.
const AGAIN: Duration = Duration::from_millis(500);

/// Serves the page until the process ends, on a thread of its own. What fails is logged: nobody's container waits for it.
pub fn serve(engine: &Arc<Engine>, address: SocketAddr) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("starting the thread that tells metrics")?;
    let engine = Arc::downgrade(engine);
    let run = move || {
        if let Err(error) = runtime.block_on(accept(&engine, address)) {
            tracing::error!(%address, %error, "metrics are not told");
        }
    };
    std::thread::Builder::new()
        .name("metrics".into())
        .spawn(run)
        .context("starting the thread that tells metrics")?;
    Ok(())
}

async fn accept(engine: &Weak<Engine>, address: SocketAddr) -> std::io::Result<()> {
    let listener = listen(address).await?;
    tracing::info!(address = %listener.local_addr()?, "telling metrics");
    let room = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let permit = Arc::clone(&room).acquire_owned().await;
        let (stream, _) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::debug!(%error, "accepting a connection");
                tokio::time::sleep(AGAIN).await; // no descriptor is free, perhaps
                continue;
            }
        };
        let engine = engine.clone();
        tokio::spawn(async move {
            let answer = service_fn(|request| std::future::ready(answer(&engine, &request)));
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(PATIENCE).keep_alive(false);
            let served = http.serve_connection(TokioIo::new(stream), answer);
            if let Ok(Err(error)) = tokio::time::timeout(PATIENCE, served).await {
                tracing::debug!(%error, "a connection for metrics");
            }
            drop(permit);
        });
    }
}

async fn listen(address: SocketAddr) -> std::io::Result<TcpListener> {
    let until = tokio::time::Instant::now() + PATIENCE;
    loop {
        match TcpListener::bind(address).await {
            Err(error)
                if error.kind() == std::io::ErrorKind::AddrInUse && tokio::time::Instant::now() < until =>
            {
                tokio::time::sleep(AGAIN).await;
            }
            bound => return bound,
        }
    }
}

fn answer(engine: &Weak<Engine>, request: &Request<Incoming>) -> Result<Response<Full<Bytes>>, Infallible> {
    let refused = |status: StatusCode| {
        let mut response = Response::new(Full::from(format!("{status}\n")));
        *response.status_mut() = status;
        response
    };
    if request.uri().path() != "/metrics" {
        return Ok(refused(StatusCode::NOT_FOUND));
    }
    if request.method() != Method::GET {
        return Ok(refused(StatusCode::METHOD_NOT_ALLOWED));
    }
    let Some(engine) = engine.upgrade() else { return Ok(refused(StatusCode::SERVICE_UNAVAILABLE)) };
    Ok(match engine.metrics() {
        Ok(page) => {
            let mut response = Response::new(Full::from(page));
            response
                .headers_mut()
                .insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(OPEN_METRICS));
            response
        }
        Err(error) => {
            tracing::warn!("telling metrics: {error:#}");
            refused(StatusCode::INTERNAL_SERVER_ERROR)
        }
    })
}
