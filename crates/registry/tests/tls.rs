//! TLS with an authority of one's own, against Debian's docker-registry; certificates are made by openssl.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

mod support;

use registry::*;
use support::*;

async fn ask(config: Config, host: &str) -> Result<Vec<Tag>, Error> {
    let repository = Client::new(config).repository(&host.parse().unwrap(), &"app".parse().unwrap());
    repository.tags().await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_private_authority_is_trusted_where_configured_and_only_there() {
    let made = std::cell::Cell::new(false);
    let server = Debian::start(|dir| {
        made.set(testkit::certificates::make(dir, &["IP:127.0.0.1", "DNS:localhost"]));
        format!("  tls:\n    certificate: {0}/server.crt\n    key: {0}/server.key\n", dir.display())
    });
    let Some(server) = server else { testkit::skip!("docker-registry is not installed") };
    if !made.get() {
        testkit::skip!("openssl cannot make certificates here");
    }
    let ca = server.dir.path().join("ca.crt");

    // Nothing said: the port is found to speak TLS, and its certificate is not trusted, which is told at once.
    let error = ask(Config::isolated(), &server.host).await.unwrap_err();
    assert!(matches!(&error, Error::Config { why, .. } if why.contains("not trusted")), "{error:?}");

    // Our own configuration.
    let mut config = Config::isolated();
    config
        .hosts
        .insert(server.host.parse().unwrap(), HostConfig { ca: vec![ca.clone()], ..HostConfig::default() });
    let error = ask(config.clone(), &server.host).await.unwrap_err();
    assert!(error.is_not_found(), "connected, and there is no repository: {error:?}");

    // Docker's certs.d, then containerd's.
    let certs = tempfile::tempdir().unwrap();
    let place = certs.path().join(&server.host);
    std::fs::create_dir(&place).unwrap();
    std::fs::copy(&ca, place.join("ca.crt")).unwrap();
    let config = Config { certs_dirs: vec![certs.path().into()], ..Config::isolated() };
    assert!(ask(config.clone(), &server.host).await.unwrap_err().is_not_found());
    for (hosts_toml, trusted) in [("ca = \"ca.crt\"\n", true), ("skip_verify = true\n", true), ("", false)] {
        std::fs::write(
            place.join("hosts.toml"),
            format!("server = \"https://{}\"\n{hosts_toml}", server.host),
        )
        .unwrap();
        assert_eq!(
            ask(config.clone(), &server.host).await.unwrap_err().is_not_found(),
            trusted,
            "{hosts_toml}"
        );
    }
    std::fs::write(place.join("hosts.toml"), "ca = \"missing.crt\"\n").unwrap();
    assert!(matches!(ask(config, &server.host).await, Err(Error::Config { .. })));

    let log: Vec<String> = server.lines.try_iter().collect();
    assert!(log.iter().any(|line| line.contains("HTTP/2")), "no request came over HTTP/2: {log:#?}");
}
