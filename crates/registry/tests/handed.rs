//! Credentials that are handed over for single repositories: which are tried, in which order, and who is left in peace.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::sync::Arc;

use format::Digest;
use registry::*;
use testkit::faulty::{Fault, Faulty, Guard};

const BLOB: &[u8] = b"a layer";

/// A registry with one blob, and a client that pods' credentials are handed to, on a node that has its own.
struct Fixture {
    server: Faulty,
    handed: Arc<Handed>,
    client: Client,
    _dir: tempfile::TempDir,
}

impl Fixture {
    fn new(node: &str) -> Self {
        let (server, dir) = (Faulty::start(), tempfile::tempdir().unwrap());
        server.put(&path(), "application/octet-stream", BLOB);
        let handed = Handed::open(&dir.path().join("handed"));
        let file = dir.path().join("config.json");
        let auth = testkit::base64::encode(node.as_bytes());
        std::fs::write(&file, format!(r#"{{"auths":{{"{}":{{"auth":"{auth}"}}}}}}"#, server.host())).unwrap();
        let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
        let hosts = [(server.host().parse().unwrap(), plain)].into();
        let config = Config {
            hosts,
            credentials: Some(vec![file]),
            handed: Some(handed.clone()),
            ..Config::isolated()
        };
        Self { server, handed, client: Client::new(config), _dir: dir }
    }

    fn offer(&self, password: &str) -> Offer {
        let login =
            Login { username: Some("pod".into()), password: Some(Secret::new(password)), ..Login::default() };
        let Reference::Registry(image) = format!("docker://{}/app:v1", self.server.host()).parse().unwrap()
        else {
            panic!("it is in a registry");
        };
        self.handed.offer(&image, &login, "").unwrap()
    }

    async fn read(&self) -> Result<(), Error> {
        let source = self.client.source(&format!("{}/app:v1", self.server.host()).parse().unwrap()).await?;
        let (digest, len) = (Digest::of(BLOB), BLOB.len() as u64);
        let mut reader = source.read_range(&digest, len, 0..len, Priority::Demand);
        while reader.chunk().await?.is_some() {}
        Ok(())
    }
}

fn path() -> String {
    format!("/v2/app/blobs/{}", Digest::of(BLOB))
}

/// The ways in which a registry wants a password.
fn guards(user: &str) -> [Guard; 2] {
    [Guard::Basic(user.into()), Guard::Token { user: Some(user.into()), expires_in: 300, broken: None }]
}

#[tokio::test]
async fn a_wrong_one_hides_neither_another_pods_nor_the_nodes() {
    for user in ["pod:good", "node:own"] {
        for guard in guards(user) {
            let fixture = Fixture::new("node:own");
            fixture.server.guard(guard);
            fixture.offer("good").accept().unwrap();
            fixture.read().await.unwrap();
            // Where everybody is let in, or a mirror answers, a pull succeeds with whatever there is.
            for wrong in ["wrong", "worse"] {
                fixture.offer(wrong).accept().unwrap();
            }
            let _tried = fixture.offer("bad");
            fixture.read().await.unwrap();
            fixture.server.revoke();
            fixture.read().await.unwrap();
        }
    }
}

#[tokio::test]
async fn what_is_being_tried_is_reached_behind_what_has_expired() {
    for guard in guards("pod:new") {
        let fixture = Fixture::new("node:own");
        for old in ["old", "older", "oldest"] {
            fixture.offer(old).accept().unwrap();
        }
        fixture.server.guard(guard);
        let error = fixture.read().await.unwrap_err();
        assert!(matches!(error, Error::Denied { .. }), "{error}");
        let offer = fixture.offer("new");
        fixture.read().await.unwrap();
        offer.accept().unwrap();
        fixture.server.revoke();
        fixture.read().await.unwrap();
    }
}

#[tokio::test]
async fn a_403_is_a_refusal_where_there_is_another() {
    let fixture = Fixture::new("node:own");
    fixture.server.guard(Guard::Basic("pod:good".into()));
    fixture.offer("good").accept().unwrap();
    fixture.read().await.unwrap();
    // It expires, and the registry says so in its own way.
    fixture.server.guard(Guard::None);
    fixture.server.fault(&path(), Fault::Status { code: 403, retry_after: None }, 1);
    fixture.read().await.unwrap();
    let shown = fixture.server.seen().pop().unwrap().headers.remove("authorization").unwrap();
    assert_eq!(shown, format!("Basic {}", testkit::base64::encode(b"node:own")));
    // Without another it is an answer.
    let alone = Fixture::new("node:own");
    alone.server.guard(Guard::Basic("node:own".into()));
    alone.read().await.unwrap();
    alone.server.guard(Guard::None);
    alone.server.fault(&path(), Fault::Status { code: 403, retry_after: None }, 1);
    let error = alone.read().await.unwrap_err();
    assert!(matches!(error, Error::Denied { .. }), "{error}");
}
