//! HTTP clients, one per way to make sure of a server.
//!
//! Roots are the system's plus those configured. Redirects are not followed here: [`crate::transport`] must see
//! them, to keep credentials from going along.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use hyper_util::client::proxy::matcher::Matcher;
use reqwest::Url;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime, pem::PemObject};
use rustls::{ClientConfig, DigitallySignedStruct, InvalidMessage, RootCertStore, SignatureScheme};

use crate::config::Budgets;
use crate::error::Error;
use crate::hosts::{TlsProfile, read};

/// The clients made so far; those with equal profiles share connections.
#[derive(Debug)]
pub(crate) struct HttpClients {
    /// Held while a client is made, which reads certificate files: rare and short.
    made: Mutex<BTreeMap<(TlsProfile, Proxy, Duration), reqwest::Client>>,
    /// What the HTTP library asks too, so that an error names the proxy that was used.
    environment: Matcher,
}

impl Default for HttpClients {
    fn default() -> Self {
        Self { made: Mutex::default(), environment: Matcher::from_system() }
    }
}

/// Whether the environment's proxies apply.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Proxy {
    /// As `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY` say.
    Environment,
    /// Never, because the host is this machine: what curl and Go's programs do.
    None,
}

impl HttpClients {
    pub(crate) fn get(
        &self,
        profile: &TlsProfile,
        proxy: Proxy,
        budgets: &Budgets,
    ) -> Result<reqwest::Client, Error> {
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        let key = (profile.clone(), proxy, budgets.connect);
        if let Some(client) = made.get(&key) {
            return Ok(client.clone());
        }
        let client = build(profile, proxy, budgets)?;
        made.insert(key, client.clone());
        Ok(client)
    }

    /// Returns the proxy that requests for a URL go through, without the password it may have.
    pub(crate) fn proxy(&self, proxy: Proxy, url: &Url) -> Option<String> {
        let uri = url.as_str().parse().ok()?;
        let through = match proxy {
            Proxy::Environment => self.environment.intercept(&uri)?,
            Proxy::None => return None,
        };
        let (uri, scheme) = (through.uri(), through.uri().scheme_str().unwrap_or("http"));
        let port = uri.port_u16().map_or(String::new(), |port| format!(":{port}"));
        Some(format!("{scheme}://{}{port}", uri.host()?))
    }
}

fn build(profile: &TlsProfile, proxy: Proxy, budgets: &Budgets) -> Result<reqwest::Client, Error> {
    let bad = |error: &dyn std::fmt::Display| Error::config("setting up HTTPS", error.to_string());
    let builder = reqwest::Client::builder()
        .tls_backend_preconfigured(tls(profile)?)
        .redirect(reqwest::redirect::Policy::none())
        .user_agent(concat!("floe/", env!("CARGO_PKG_VERSION")))
        .connect_timeout(budgets.connect)
        .referer(false)
        // One stream of a shared connection must not be slower than a connection of its own.
        .http2_adaptive_window(true)
        .tcp_nodelay(true);
    let builder = match proxy {
        Proxy::Environment => builder,
        Proxy::None => builder.no_proxy(),
    };
    builder.build().map_err(|error| bad(&error))
}

fn tls(profile: &TlsProfile) -> Result<ClientConfig, Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let bad = |error: &dyn std::fmt::Display| Error::config("setting up TLS", error.to_string());
    let versions =
        ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions();
    let builder = versions.map_err(|error| bad(&error))?;
    let builder = if profile.skip_verify {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(TrustAll(provider)))
    } else {
        builder.with_root_certificates(roots(profile)?)
    };
    let mut config = match profile.client.first() {
        None => builder.with_no_client_auth(),
        Some((cert, key)) => {
            let key = key.as_ref().unwrap_or(cert);
            let chain = certificates(cert)?;
            let key = PrivateKeyDer::from_pem_slice(required(key)?.as_bytes()).map_err(|error| {
                Error::config(key.display().to_string(), format!("no private key: {error}"))
            })?;
            builder
                .with_client_auth_cert(chain, key)
                .map_err(|error| Error::config(cert.display().to_string(), error.to_string()))?
        }
    };
    config.alpn_protocols = vec![b"h2".into(), b"http/1.1".into()];
    Ok(config)
}

fn roots(profile: &TlsProfile) -> Result<RootCertStore, Error> {
    let mut store = RootCertStore::empty();
    let system = rustls_native_certs::load_native_certs();
    for error in &system.errors {
        tracing::warn!(%error, "reading the system's certificate authorities");
    }
    store.add_parsable_certificates(system.certs);
    for path in &profile.ca {
        for certificate in certificates(path)? {
            store.add(certificate).map_err(|error| {
                Error::config(path.display().to_string(), format!("no certificate authority: {error}"))
            })?;
        }
    }
    Ok(store)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let bad = |why: String| Error::config(path.display().to_string(), why);
    let text = required(path)?;
    let list: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
    match list {
        Ok(list) if !list.is_empty() => Ok(list),
        Ok(_) => Err(bad("holds no certificate in PEM form".into())),
        Err(error) => Err(bad(error.to_string())),
    }
}

fn required(path: &Path) -> Result<String, Error> {
    read(path)?.ok_or_else(|| Error::config(path.display().to_string(), "does not exist"))
}

/// For `skip_verify = true` of a `hosts.toml`: believes every certificate, checks only that its key signed.
#[derive(Debug)]
struct TrustAll(Arc<CryptoProvider>);

impl ServerCertVerifier for TrustAll {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(
            message,
            cert,
            signed,
            &self.0.signature_verification_algorithms,
        )
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

/// Why there is no TLS with a server; trying again cannot help, and the user must learn of it at once.
pub(crate) enum TlsProblem {
    /// Its certificate is not to be trusted, for this reason.
    Certificate(String),
    /// What it says is not TLS.
    NoTls,
}

/// Returns the problem if that is why a request failed.
pub(crate) fn tls_problem(error: &(dyn std::error::Error + 'static)) -> Option<TlsProblem> {
    let mut cause = Some(error);
    while let Some(error) = cause {
        match error.downcast_ref() {
            Some(rustls::Error::InvalidCertificate(problem)) => {
                return Some(TlsProblem::Certificate(problem.to_string()));
            }
            // The first byte of a record is its type: any other protocol is found out by it.
            Some(rustls::Error::InvalidMessage(InvalidMessage::InvalidContentType)) => {
                return Some(TlsProblem::NoTls);
            }
            _ => {}
        }
        // An io::Error hides what it wraps from `source`, naming that error's own source instead.
        let wrapped = error.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        cause = match wrapped {
            Some(inner) => Some(inner as &(dyn std::error::Error + 'static)),
            None => error.source(),
        };
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_that_are_waited_for_differently_have_clients_of_their_own() {
        let clients = HttpClients::default();
        for (seconds, made) in [(10, 1), (10, 1), (1, 2)] {
            let budgets = Budgets { connect: Duration::from_secs(seconds), ..Budgets::default() };
            clients.get(&TlsProfile::default(), Proxy::None, &budgets).unwrap();
            assert_eq!(clients.made.lock().unwrap().len(), made);
        }
    }
}
