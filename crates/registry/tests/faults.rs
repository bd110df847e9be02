//! What servers and networks do wrong, one by one, against the faulty in-memory server.
//!
//! No test waits for time to pass except where a retry does: waits between retries are set to a millisecond.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use format::Digest;
use registry::*;
use testkit::faulty::{Fault, Faulty, Guard};

/// A server with one image of one layer, `app:v1`.
struct Fixture {
    server: Faulty,
    layer: Bytes,
    layer_digest: Digest,
    manifest: Digest,
}

fn fixture() -> Fixture {
    let server = Faulty::start();
    let layer: Bytes = (0..300_000u32).map(|n| u8::try_from(n % 251).unwrap()).collect::<Vec<_>>().into();
    let config = format!(
        r#"{{"architecture":"amd64","os":"linux","rootfs":{{"type":"layers","diff_ids":["{}"]}}}}"#,
        Digest::of(b"tar")
    );
    let manifest = format!(
        r#"{{"schemaVersion":2,"mediaType":"{}","config":{{"mediaType":"{}","digest":"{}","size":{}}},"layers":[{{"mediaType":"application/vnd.oci.image.layer.v1.tar+gzip","digest":"{}","size":{}}}]}}"#,
        media_type::MANIFEST,
        media_type::CONFIG,
        Digest::of(config.as_bytes()),
        config.len(),
        Digest::of(&layer),
        layer.len(),
    );
    let digest = Digest::of(manifest.as_bytes());
    for name in ["v1".to_owned(), digest.to_string()] {
        server.put(&format!("/v2/app/manifests/{name}"), media_type::MANIFEST, manifest.as_bytes());
    }
    for blob in [layer.as_ref(), config.as_bytes()] {
        server.put(&format!("/v2/app/blobs/{}", Digest::of(blob)), "application/octet-stream", blob);
    }
    Fixture { server, layer_digest: Digest::of(&layer), layer, manifest: digest }
}

fn budgets() -> Budgets {
    Budgets {
        retry_min: Duration::from_millis(1),
        retry_max: Duration::from_millis(2),
        stall: Duration::from_millis(400),
        per_second: 100_000,
        ..Budgets::default()
    }
}

impl Fixture {
    fn config(&self) -> Config {
        let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
        let hosts = [(self.server.host().parse().unwrap(), plain)].into();
        Config { hosts, budgets: budgets(), ..Config::isolated() }
    }

    fn client(&self) -> Client {
        Client::new(self.config())
    }

    fn blob_path(&self) -> String {
        format!("/v2/app/blobs/{}", self.layer_digest)
    }

    async fn source(&self, client: &Client) -> Source {
        client.source(&format!("{}/app:v1", self.server.host()).parse().unwrap()).await.unwrap()
    }

    async fn read(&self, client: &Client, range: std::ops::Range<usize>) -> Result<Vec<u8>, Error> {
        let source = self.source(client).await;
        let size = self.layer.len() as u64;
        let mut reader = source.read_range(
            &self.layer_digest,
            size,
            range.start as u64..range.end as u64,
            Priority::Demand,
        );
        let mut bytes = Vec::new();
        while let Some(piece) = reader.chunk().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }

    /// Reads a range through a fault that comes a few times, and expects the right bytes all the same.
    async fn survives(&self, fault: Fault, times: u32, requests: usize) {
        let range = 1000..200_000;
        self.server.fault(&self.blob_path(), fault.clone(), times);
        let before = self.server.count(&self.blob_path());
        let bytes = self
            .read(&self.client(), range.clone())
            .await
            .unwrap_or_else(|error| panic!("{fault:?}: {error:?}"));
        assert_eq!(bytes, self.layer[range], "{fault:?}");
        assert_eq!(self.server.count(&self.blob_path()) - before, requests, "{fault:?}");
    }
}

fn status(code: u16, retry_after: Option<&str>) -> Fault {
    Fault::Status { code, retry_after: retry_after.map(Into::into) }
}

fn causes(error: &Error) -> String {
    let mut text = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(next) = cause {
        text += &format!(": {next}");
        cause = next.source();
    }
    text
}

#[tokio::test]
async fn an_image_is_resolved_and_checked() {
    let fixture = fixture();
    let client = fixture.client();
    let source = fixture.source(&client).await;
    let image = source.image(&Platform::parse("linux/amd64").unwrap()).await.unwrap();
    assert_eq!(image.manifest.digest, fixture.manifest);
    assert_eq!(image.layers.len(), 1);
    assert_eq!((image.layers[0].digest, image.layers[0].size), (fixture.layer_digest, 300_000));
    assert_eq!(*image.layers[0].diff_id.digest(), Digest::of(b"tar"));
    assert_eq!(fixture.server.count("/"), 2, "one request for the manifest, one for the config");
    assert_eq!(source.resolve().await.unwrap(), fixture.manifest);
}

#[tokio::test]
async fn ranges_survive_what_servers_do() {
    let fixture = fixture();
    fixture.survives(Fault::Close { after: 70_000 }, 2, 3).await;
    fixture.survives(Fault::Hangup, 1, 2).await;
    fixture.survives(Fault::Stall { after: 5 }, 1, 2).await;
    fixture.survives(Fault::IgnoreRange, 1, 1).await;
    fixture.survives(Fault::ShiftRange { by: 1 }, 1, 2).await;
    fixture.survives(Fault::ShortRange { len: 100_000 }, 1, 2).await;
    fixture.survives(Fault::Length { says: 77 }, 1, 2).await;
    fixture.survives(Fault::Length { says: 1 << 40 }, 1, 2).await;
    fixture.survives(Fault::Drip { piece: 999 }, 1, 1).await;
    for code in [408, 429, 500, 502, 503, 504] {
        fixture.survives(status(code, None), 3, 4).await;
    }
    fixture.survives(status(503, Some("0")), 1, 2).await;
    fixture.survives(status(429, Some("Sun, 06 Nov 1994 08:49:37 GMT")), 1, 2).await;
}

#[tokio::test]
async fn a_resumed_range_asks_only_for_what_is_missing() {
    let fixture = fixture();
    fixture.survives(Fault::Close { after: 70_000 }, 1, 2).await;
    let ranges: Vec<_> = fixture.server.seen().into_iter().filter_map(|seen| seen.range).collect();
    assert_eq!(ranges[0], 1000..200_000);
    assert!(ranges[1].start > 1000 && ranges[1].start <= 71_000 && ranges[1].end == 200_000, "{ranges:?}");
}

#[tokio::test]
async fn a_server_without_ranges_is_read_from_its_start_and_left() {
    let fixture = fixture();
    fixture.server.fault("/v2/app/blobs/", Fault::IgnoreRange, 100);
    let client = fixture.client();
    for range in [0..1, 299_999..300_000, 5..5, 0..300_000] {
        assert_eq!(
            fixture.read(&client, range.clone()).await.unwrap(),
            fixture.layer[range.clone()],
            "{range:?}"
        );
    }
    assert_eq!(client.stats()[&fixture.server.host()].ranges_ignored, 2);
}

#[tokio::test]
async fn a_fault_that_stays_is_an_error_that_names_the_thing() {
    let fixture = fixture();
    for (fault, cause) in [
        (Fault::Hangup, "sending request"),
        (Fault::Close { after: 10 }, "bod"),
        (Fault::ShiftRange { by: 9 }, "asked for byte"),
        (Fault::Length { says: 300_001 }, "300001"),
        (status(503, None), "503"),
    ] {
        fixture.server.fault(&fixture.blob_path(), fault.clone(), 6);
        let error = fixture.read(&fixture.client(), 10..100_000).await.unwrap_err();
        let text = causes(&error);
        assert!(
            text.contains(&fixture.layer_digest.to_string()) && text.contains(cause),
            "{fault:?}: {text}"
        );
        assert!(error.is_temporary(), "{fault:?}");
        let bytes = fixture.read(&fixture.client(), 10..20).await.unwrap();
        assert_eq!(bytes, fixture.layer[10..20], "and is forgotten");
    }
}

#[tokio::test]
async fn a_stall_ends_and_is_told() {
    let fixture = fixture();
    let mut config = fixture.config();
    (config.budgets.retries, config.budgets.stall) = (1, Duration::from_millis(50));
    fixture.server.fault(&fixture.blob_path(), Fault::Stall { after: 10 }, 10);
    let error = fixture.read(&Client::new(config), 0..100_000).await.unwrap_err();
    assert!(causes(&error).contains("nothing came for"), "{}", causes(&error));
}

#[tokio::test]
async fn impossible_ranges_are_refused_without_asking() {
    let fixture = fixture();
    let error = fixture.read(&fixture.client(), 0..300_001).await.unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    assert_eq!(fixture.server.count("/"), 0);
}

#[tokio::test]
async fn a_missing_blob_is_missing_at_once() {
    let fixture = fixture();
    let client = fixture.client();
    let source = fixture.source(&client).await;
    let error =
        source.read_range(&Digest::of(b"none"), 10, 0..10, Priority::Demand).chunk().await.unwrap_err();
    assert!(error.is_not_found(), "{error}");
    assert_eq!(fixture.server.count("/"), 1);
}

#[tokio::test]
async fn swapped_manifests_and_configs_are_found_out() {
    let fixture = fixture();
    let client = fixture.client();
    let source = fixture.source(&client).await;
    let platform = Platform::parse("amd64").unwrap();
    fixture.server.fault(
        "/v2/app/manifests/",
        Fault::Swap(br#"{"schemaVersion":2,"manifests":[]}"#.to_vec()),
        1,
    );
    let pinned = format!("{}/app@{}", fixture.server.host(), fixture.manifest);
    let pinned = client.source(&pinned.parse().unwrap()).await.unwrap();
    let error = pinned.image(&platform).await.unwrap_err();
    assert!(error.to_string().contains("has digest"), "{error}");
    // As long as the manifest says, so that only the digest can tell.
    let size = source.image(&platform).await.unwrap().config.len();
    fixture.server.fault("/v2/app/blobs/", Fault::Swap(vec![b' '; size]), 1);
    let error = source.image(&platform).await.unwrap_err();
    assert!(error.to_string().contains("has digest"), "{error}");
    source.image(&platform).await.unwrap();
}

#[tokio::test]
async fn large_manifests_are_not_read() {
    let fixture = fixture();
    let source = fixture.source(&fixture.client()).await;
    fixture.server.put("/v2/app/manifests/v1", media_type::MANIFEST, &vec![b' '; (4 << 20) + 1]);
    let error = source.image(&Platform::host()).await.unwrap_err();
    assert!(matches!(error, Error::TooLarge { limit: 4_194_304, .. }), "{error}");
}

#[tokio::test]
async fn a_redirect_within_the_registry_is_its_own_matter() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.server.fault(&fixture.blob_path(), Fault::Expiring { uses: 3, base: String::new() }, 100);
    for n in 0..6 {
        fixture.read(&client, n..n + 10).await.unwrap();
    }
    // Same origin: every read is resolved by the registry.
    assert_eq!(fixture.server.count(&fixture.blob_path()), 6);
}

#[tokio::test]
async fn a_redirect_to_another_origin_is_cached_and_gets_no_credentials() {
    let fixture = fixture();
    fixture.server.guard(Guard::Token { user: None, expires_in: 300, broken: None });
    let client = fixture.client();
    let base = fixture.server.host().replace("127.0.0.1", "http://localhost");
    fixture.server.fault(&fixture.blob_path(), Fault::Expiring { uses: 3, base }, 100);
    for n in 0..7 {
        assert_eq!(fixture.read(&client, n..n + 10).await.unwrap(), fixture.layer[n..n + 10]);
    }
    let seen = fixture.server.seen();
    let signed: Vec<_> = seen.iter().filter(|seen| seen.path.starts_with("/signed/")).collect();
    assert!(signed.iter().all(|seen| !seen.headers.contains_key("authorization")), "{signed:?}");
    assert_eq!(signed.len(), 7 + 2, "seven reads, two of which found the URL expired");
    // One refused for want of a token, then one per URL.
    assert_eq!(fixture.server.count(&fixture.blob_path()), 1 + 3);
    let stats = client.stats();
    assert_eq!(stats[&fixture.server.host()].redirects, 3);
    assert!(
        stats.contains_key(&fixture.server.host().replace("127.0.0.1", "localhost")),
        "its budget is its own"
    );
}

#[tokio::test]
async fn sixteen_readers_resolve_a_redirect_once() {
    let fixture = Arc::new(fixture());
    let client = fixture.client();
    let base = fixture.server.host().replace("127.0.0.1", "http://localhost");
    fixture.server.fault(&fixture.blob_path(), Fault::Expiring { uses: 100, base }, 100);
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..16 {
        let (fixture, client) = (Arc::clone(&fixture), client.clone());
        tasks.spawn(async move {
            assert_eq!(fixture.read(&client, n..n + 99).await.unwrap(), fixture.layer[n..n + 99])
        });
    }
    tasks.join_all().await;
    assert_eq!(fixture.server.count(&fixture.blob_path()), 1);
}

#[tokio::test]
async fn redirects_that_circle_or_lead_nowhere_end() {
    let fixture = fixture();
    fixture.server.fault(&fixture.blob_path(), Fault::Redirect(fixture.blob_path()), 100);
    let error = fixture.read(&fixture.client(), 0..10).await.unwrap_err();
    assert!(error.to_string().contains("redirected too often"), "{error}");
    let fixture = self::fixture();
    fixture.server.fault(&fixture.blob_path(), Fault::Redirect("http://[".into()), 100);
    let error = fixture.read(&fixture.client(), 0..10).await.unwrap_err();
    assert!(causes(&error).contains("leads nowhere"), "{}", causes(&error));
}

#[tokio::test]
async fn a_token_is_fetched_once_for_32_requests() {
    let fixture = Arc::new(fixture());
    fixture.server.guard(Guard::Token { user: None, expires_in: 300, broken: None });
    let client = fixture.client();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..32 {
        let (fixture, client) = (Arc::clone(&fixture), client.clone());
        tasks.spawn(async move {
            assert_eq!(fixture.read(&client, n..n + 99).await.unwrap(), fixture.layer[n..n + 99])
        });
    }
    tasks.join_all().await;
    assert_eq!(fixture.server.count("/token"), 1);
    assert_eq!(fixture.server.count(&fixture.blob_path()), 33, "and one request found out that it is needed");
    let query = fixture.server.seen().into_iter().find(|seen| seen.path == "/token").unwrap().query;
    assert_eq!(query, "service=test&scope=repository%3Aapp%3Apull");
    assert_eq!(client.stats()[&fixture.server.host()].tokens, 1);
}

#[tokio::test]
async fn a_refused_token_is_renewed() {
    let fixture = Arc::new(fixture());
    fixture.server.guard(Guard::Token { user: None, expires_in: 300, broken: None });
    let client = fixture.client();
    fixture.read(&client, 0..10).await.unwrap();
    fixture.server.revoke();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..8 {
        let (fixture, client) = (Arc::clone(&fixture), client.clone());
        tasks.spawn(async move { fixture.read(&client, n..n + 9).await.unwrap() });
    }
    tasks.join_all().await;
    assert_eq!(fixture.server.count("/token"), 2);
}

#[tokio::test]
async fn a_token_server_that_fails_is_told_to_all_and_asked_again_later() {
    for broken in ["", "{}", "{\"token\":\"\"}", "<html>", "{\"token\":\"a\\nb\"}"] {
        let fixture = fixture();
        let guard = |broken: Option<&str>| Guard::Token {
            user: None,
            expires_in: 300,
            broken: broken.map(Into::into),
        };
        fixture.server.guard(guard(Some(broken)));
        let client = fixture.client();
        let error = fixture.read(&client, 0..10).await.unwrap_err();
        assert!(matches!(error, Error::Invalid { .. }), "{broken}: {error}");
        fixture.server.guard(guard(None));
        fixture.read(&client, 0..10).await.unwrap();
    }
}

#[tokio::test]
async fn passwords_open_basic_and_token_servers() {
    let login = |fixture: &Fixture, user: &str| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("config.json");
        let auth = testkit::base64::encode(user.as_bytes());
        std::fs::write(&file, format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, fixture.server.host()))
            .unwrap();
        let config = Config { credentials: Some(vec![file]), ..fixture.config() };
        (dir, Client::new(config))
    };
    let token = Guard::Token { user: Some("me:secret".into()), expires_in: 300, broken: None };
    for guard in [Guard::Basic("me:secret".into()), token] {
        let fixture = fixture();
        fixture.server.guard(guard);
        let (_dir, good) = login(&fixture, "me:secret");
        fixture.read(&good, 0..10).await.unwrap();
        fixture.read(&good, 0..10).await.unwrap();
        for client in [login(&fixture, "me:wrong").1, fixture.client()] {
            let error = fixture.read(&client, 0..10).await.unwrap_err();
            assert!(matches!(error, Error::Denied { .. } | Error::Config { .. }), "{error}");
            assert!(!format!("{error:?}").contains("secret"));
        }
    }
}

#[tokio::test]
async fn a_password_that_has_changed_is_asked_for_again() {
    let fixture = fixture();
    let dir = tempfile::tempdir().unwrap();
    let (config, program) = (dir.path().join("config.yaml"), dir.path().join("node"));
    let host = fixture.server.host();
    let provider = format!(
        "name: node\n  matchImages: [\"{host}\"]\n  defaultCacheDuration: 12h\n  apiVersion: credentialprovider.kubelet.k8s.io/v1\n"
    );
    std::fs::write(&config, format!("kind: CredentialProviderConfig\nproviders:\n- {provider}")).unwrap();
    testkit::program(&program, "exec cat \"$0.says\"");
    let says = |password: &str| {
        let login = format!(r#"{{"auth": {{"{host}": {{"username": "me", "password": "{password}"}}}}}}"#);
        std::fs::write(dir.path().join("node.says"), login).unwrap();
    };
    let kubelet = registry::Kubelet { config, bin_dir: dir.path().to_owned() };
    let client = Client::new(Config { kubelet: Some(kubelet), ..fixture.config() });
    for password in ["old", "new"] {
        fixture.server.guard(Guard::Basic(format!("me:{password}")));
        says(password);
        fixture.read(&client, 0..10).await.unwrap();
    }
    // What was good goes on while it is: the program is not in the way of a reader.
    says("wrong");
    fixture.read(&client, 0..10).await.unwrap();
    fixture.server.guard(Guard::Basic("me:newer".into()));
    let error = fixture.read(&client, 0..10).await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
    says("newer");
    fixture.read(&client, 0..10).await.unwrap();
}

#[tokio::test]
async fn never_more_requests_in_flight_than_the_budget() {
    let fixture = Arc::new(fixture());
    let client = fixture.client();
    fixture.read(&client, 0..1).await.unwrap();
    fixture.server.hold();
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..64 {
        let (fixture, client) = (Arc::clone(&fixture), client.clone());
        tasks.spawn(async move { fixture.read(&client, n..n + 9).await.unwrap() });
    }
    let server = Arc::clone(&fixture);
    tokio::task::spawn_blocking(move || server.server.wait_for(16)).await.unwrap();
    assert_eq!(client.stats()[&fixture.server.host()].in_flight, 16);
    fixture.server.release();
    tasks.join_all().await;
    let stats = client.stats()[&fixture.server.host()];
    assert_eq!((fixture.server.peak(), stats.peak_in_flight, stats.in_flight), (16, 16, 0));
}

#[tokio::test]
async fn background_work_leaves_room_for_readers() {
    let fixture = Arc::new(fixture());
    let client = fixture.client();
    fixture.read(&client, 0..1).await.unwrap();
    fixture.server.hold();
    let source = fixture.source(&client).await;
    let mut tasks = tokio::task::JoinSet::new();
    for n in 0..40u64 {
        let (source, digest) = (source.clone(), fixture.layer_digest);
        tasks.spawn(async move {
            let mut reader = source.read_range(&digest, 300_000, n..n + 9, Priority::Background);
            while reader.chunk().await.unwrap().is_some() {}
        });
    }
    let server = Arc::clone(&fixture);
    tokio::task::spawn_blocking(move || server.server.wait_for(12)).await.unwrap();
    let reader = {
        let (fixture, client) = (Arc::clone(&fixture), client.clone());
        tokio::spawn(async move { fixture.read(&client, 0..5).await.unwrap() })
    };
    let server = Arc::clone(&fixture);
    tokio::task::spawn_blocking(move || server.server.wait_for(13)).await.unwrap();
    fixture.server.release();
    assert_eq!(reader.await.unwrap(), fixture.layer[0..5]);
    tasks.join_all().await;
}

#[tokio::test]
async fn retry_after_holds_all_requests_to_the_host() {
    let fixture = fixture();
    let client = fixture.client();
    fixture.server.fault(&fixture.blob_path(), status(429, Some("1")), 1);
    fixture.read(&client, 0..5).await.unwrap();
    let stats = client.stats()[&fixture.server.host()];
    assert_eq!((stats.throttled, stats.retries, stats.requests), (1, 1, 2));

    fixture.server.fault(&fixture.blob_path(), status(503, Some("86400")), 1);
    let error = fixture.read(&client, 0..5).await.unwrap_err();
    assert!(matches!(error, Error::Throttled { .. }), "{error}");
    assert!(client.stats()[&fixture.server.host()].held_for.is_some(), "and everybody can see it");
}

#[tokio::test]
async fn without_a_network_the_error_comes_at_once() {
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
    for scheme in [None, Some(true), Some(false)] {
        let host: Host = format!("127.0.0.1:{port}").parse().unwrap();
        let mut config = Config::isolated();
        config.hosts.insert(host.clone(), HostConfig { plain_http: scheme, ..HostConfig::default() });
        let source = Client::new(config).source(&format!("{host}/app").parse().unwrap()).await.unwrap();
        let error = source.image(&Platform::host()).await.unwrap_err();
        assert!(matches!(error, Error::Unreachable { .. }), "{error:?}");
        assert!(causes(&error).contains("refused"), "{}", causes(&error));
    }
}

#[tokio::test]
async fn a_loopback_host_is_asked_for_its_scheme_once() {
    let fixture = fixture();
    let client = Client::new(Config { budgets: budgets(), ..Config::isolated() });
    fixture.read(&client, 0..5).await.unwrap();
    fixture.read(&client, 5..9).await.unwrap();
    assert_eq!(fixture.server.seen().iter().filter(|seen| seen.path == "/v2/").count(), 1);
}

#[tokio::test]
async fn mirrors_come_first_and_the_registry_last() {
    let (mirror, registry) = (fixture(), fixture());
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("images.example");
    std::fs::create_dir(&place).unwrap();
    let text = format!(
        "server = \"http://{}\"\n[host.\"http://{}\"]\ncapabilities = [\"pull\", \"resolve\"]\n",
        registry.server.host(),
        mirror.server.host()
    );
    std::fs::write(place.join("hosts.toml"), text).unwrap();
    let config = Config { certs_dirs: vec![dir.path().into()], budgets: budgets(), ..Config::isolated() };
    let client = Client::new(config);
    let source = client.source(&"images.example/app:v1".parse().unwrap()).await.unwrap();
    let platform = Platform::parse("amd64").unwrap();
    source.image(&platform).await.unwrap();
    assert_eq!((mirror.server.count("/"), registry.server.count("/")), (2, 0));
    assert_eq!(mirror.server.seen()[0].query, "ns=images.example");

    mirror.server.fault("/", status(500, None), 2);
    source.image(&platform).await.unwrap();
    assert_eq!(registry.server.count("/v2/app/manifests/v1"), 1, "the mirror had one retry");
    assert_eq!(registry.server.count("/v2/app/blobs/"), 0, "and is asked again for the next thing");

    drop(mirror);
    let mut reader = source.read_range(&registry.layer_digest, 300_000, 7..9, Priority::Demand);
    assert_eq!(reader.chunk().await.unwrap().unwrap(), registry.layer[7..9]);
}

#[tokio::test]
async fn a_refusal_is_told_by_its_status_where_nothing_more_is_said() {
    let fixture = fixture();
    fixture.server.put("/v2/app/manifests/v1", "application/json", b"{}");
    fixture.server.fault("/v2/app/manifests/", status(403, None), 1);
    let source = fixture.source(&fixture.client()).await;
    let error = source.image(&Platform::host()).await.unwrap_err();
    assert!(matches!(&error, Error::Denied { message, .. } if message == "Forbidden"), "{error}");
}

#[tokio::test]
async fn a_registry_is_asked_in_both_ways_for_referrers_until_it_has_shown_which_it_has() {
    let fixture = fixture();
    let subject = fixture.manifest;
    let tag = format!("/v2/app/manifests/{}", subject.to_string().replace(':', "-"));
    let api = format!("/v2/app/referrers/{subject}");
    let counts = || (fixture.server.count(&api), fixture.server.count(&tag));
    // It has no such path, as it seems.
    let client = fixture.client();
    let source = fixture.source(&client).await;
    for asked in 1..=2 {
        assert_eq!(source.index_artifacts(&subject).await.unwrap(), []);
        assert_eq!(counts(), (1, asked));
    }
    // It has, and then the tag is not asked for.
    fixture.server.put(&api, media_type::INDEX, br#"{"schemaVersion":2,"manifests":[]}"#);
    let client = fixture.client();
    let source = fixture.source(&client).await;
    for asked in 2..=3 {
        assert_eq!(source.index_artifacts(&subject).await.unwrap(), []);
        assert_eq!(counts(), (asked, 3));
    }
    // What the tag answers does not matter then; and what the API refuses is not looked for elsewhere.
    let client = fixture.client();
    let source = fixture.source(&client).await;
    fixture.server.fault(&tag, status(403, None), 1);
    assert_eq!(source.index_artifacts(&subject).await.unwrap(), []);
    fixture.server.fault(&api, status(403, None), 1);
    assert!(source.index_artifacts(&subject).await.is_err());
    assert_eq!(counts(), (5, 4));
}

/// Any number of signatures may come before an index, and a registry gives a few of them at a time.
#[tokio::test]
async fn where_much_refers_to_an_image_each_type_is_asked_for_by_itself() {
    let fixture = fixture();
    let (server, subject) = (&fixture.server, fixture.manifest);
    let artifact = format!(
        r#"{{"schemaVersion":2,"artifactType":"{}","config":{{"mediaType":"{}","digest":"{}","size":2}},"layers":[],"subject":{{"mediaType":"{}","digest":"{subject}","size":1}}}}"#,
        media_type::FLOE_INDEX,
        media_type::EMPTY,
        Digest::of(b"{}"),
        media_type::MANIFEST,
    );
    let digest = Digest::of(artifact.as_bytes());
    server.put(&format!("/v2/app/manifests/{digest}"), media_type::MANIFEST, artifact.as_bytes());
    let list = |kind: &str, digest: &Digest| {
        let (size, manifest) = (artifact.len(), media_type::MANIFEST);
        format!(
            r#"{{"schemaVersion":2,"manifests":[{{"mediaType":"{manifest}","artifactType":"{kind}","digest":"{digest}","size":{size}}}]}}"#
        )
    };
    let (index, signature) =
        (list(media_type::FLOE_INDEX, &digest), list("application/x-signature", &Digest::of(b"x")));
    let api = format!("/v2/app/referrers/{subject}");
    let page = |n: usize| if n == 0 { api.clone() } else { format!("{api}?page={n}") };
    let pages_with_it_on = |on: usize| {
        for n in 0..80 {
            let content = if n == on { &index } else { &signature };
            server.put(&page(n), media_type::INDEX, content.as_bytes());
            server.header(&page(n), "Link", &format!("<{}>; rel=\"next\"", page(n + 1)));
        }
    };
    let found = async || {
        let (source, before) = (fixture.source(&fixture.client()).await, server.count(&api));
        let about = source.about(&subject).await.unwrap();
        let found: Vec<Digest> = about.indexes.iter().map(|index| index.digest).collect();
        (found, server.count(&api) - before)
    };
    // One that does not filter answers with the first page again, and is read on.
    pages_with_it_on(63);
    assert_eq!(found().await, (vec![digest], 65));
    pages_with_it_on(64);
    assert_eq!(found().await, (vec![], 65));
    // One that does is asked for what is wanted.
    let filtered = |kind: &str, content: &str| {
        let place = format!("{api}?artifactType={}", kind.replace('+', "%2B"));
        server.put(&place, media_type::INDEX, content.as_bytes());
        server.header(&place, "OCI-Filters-Applied", "artifactType");
    };
    filtered(media_type::FLOE_INDEX, &index);
    let others =
        [format::soci::INDEX_V1, media_type::CONFIG, media_type::NYDUS_IMAGE, media_type::NYDUS_CONFIG];
    others.iter().for_each(|kind| filtered(kind, r#"{"schemaVersion":2,"manifests":[]}"#));
    assert_eq!(found().await, (vec![digest], 6));
    // And where there is little, once.
    server.put(&api, media_type::INDEX, index.as_bytes());
    assert_eq!(found().await, (vec![digest], 1));
}
