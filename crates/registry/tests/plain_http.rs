//! HTTP without TLS: only with a loopback host, or one of which the configuration says so; and no redirect leads from
//! TLS to it unasked.
//!
//! 0.0.0.0 is this machine too, but no loopback address: a host elsewhere, as far as the client can know.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;

use format::Digest;
use registry::*;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
use support::*;
use testkit::faulty::Faulty;

fn elsewhere(host: &str) -> String {
    host.replace("127.0.0.1", "0.0.0.0")
}

fn plain(config: &mut Config, host: &str) {
    let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
    config.hosts.insert(host.parse().unwrap(), plain);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_host_that_is_neither_loopback_nor_configured_must_speak_tls() {
    let dir = tempfile::tempdir().unwrap();
    let server = embedded(dir.path()).await;
    let host = elsewhere(&server.address().to_string());
    let ask = async |config| {
        let source = Client::new(config).source(&format!("{host}/app").parse().unwrap()).await.unwrap();
        source.image(&Platform::host()).await.unwrap_err()
    };
    let error = ask(Config::isolated()).await;
    let key = format!("`plain_http = true` in [registry.\"{host}\"]");
    assert!(matches!(&error, Error::Config { why, .. } if why.contains(&key)), "{error:?}");
    assert_eq!(server.stats().requests, 0, "nothing was asked without TLS");

    let mut config = Config::isolated();
    plain(&mut config, &host);
    assert!(ask(config).await.is_not_found(), "it answers, and there is no image");
}

/// A server with TLS that redirects every request to the same path elsewhere.
fn redirecting(dir: &Path, to: String) -> String {
    let chain = CertificateDer::pem_file_iter(dir.join("server.crt")).unwrap().map(Result::unwrap).collect();
    let key = PrivateKeyDer::from_pem_file(dir.join("server.key")).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ServerConfig::builder_with_provider(provider);
    let builder = builder.with_safe_default_protocol_versions().unwrap().with_no_client_auth();
    let config = Arc::new(builder.with_single_cert(chain, key).unwrap());
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let host = listener.local_addr().unwrap().to_string();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let Ok(session) = rustls::ServerConnection::new(config.clone()) else { continue };
            let mut reader = BufReader::new(rustls::StreamOwned::new(session, stream));
            let head: Vec<String> =
                reader.by_ref().lines().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
            let Some(path) = head.first().and_then(|line| line.split(' ').nth(1)) else { continue };
            let answer = format!(
                "HTTP/1.1 307 Elsewhere\r\nLocation: {to}{path}\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
            );
            let _ = reader.get_mut().write_all(answer.as_bytes()); // the client may have gone
            reader.get_mut().conn.send_close_notify();
            let _ = reader.get_mut().flush();
        }
    });
    host
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_redirect_leads_from_tls_to_none_only_where_that_is_allowed() {
    let dir = tempfile::tempdir().unwrap();
    if !testkit::certificates::make(dir.path(), &["IP:127.0.0.1", "IP:0.0.0.0"]) {
        testkit::skip!("openssl cannot make certificates here");
    }
    let storage = Faulty::start();
    let blob = Digest::of(b"content");
    storage.put(&format!("/v2/app/blobs/{blob}"), "application/octet-stream", b"content");
    let (near, far) = (storage.host(), elsewhere(&storage.host()));

    // From a registry at this machine or not, to storage at this machine or not, which is configured or not.
    for (registry_is_near, to, configured, allowed) in [
        (true, &near, false, true),
        (true, &far, false, false),
        (true, &far, true, true),
        (false, &near, false, false),
        (false, &near, true, true),
        (false, &far, false, false),
        (false, &far, true, true),
    ] {
        let case = format!("{registry_is_near} {to} {configured}");
        let registry = redirecting(dir.path(), format!("http://{to}"));
        let registry = if registry_is_near { registry } else { elsewhere(&registry) };
        let mut config = Config::isolated();
        let ca = HostConfig { ca: vec![dir.path().join("ca.crt")], ..HostConfig::default() };
        config.hosts.insert(registry.parse().unwrap(), ca);
        if configured {
            plain(&mut config, to);
        }
        let before = storage.seen().len();
        let repository = Client::new(config).repository(&registry.parse().unwrap(), &"app".parse().unwrap());
        let read = repository.read_range(&blob, 7, 0..7, Priority::Demand).verified(&blob, 7).await;
        if allowed {
            assert_eq!(read.unwrap(), "content", "{case}");
        } else {
            let error = read.unwrap_err();
            let key = format!("http://{to}; `plain_http = true` in [registry.\"{to}\"]");
            assert!(!error.is_temporary() && error.to_string().contains(&key), "{case}: {error}");
            assert_eq!(storage.seen().len(), before, "{case}: it was asked all the same");
        }
    }
}
