//! Long ranges come over several connections: in order, whole, and through the same faults as short ones.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test that cannot go on fails")]

use std::time::Duration;

use bytes::Bytes;
use format::Digest;
use registry::*;
use testkit::faulty::{Fault, Faulty};

/// Three parts and a bit.
const LEN: usize = 25 << 20;

struct Fixture {
    server: Faulty,
    blob: Bytes,
    path: String,
}

fn fixture() -> Fixture {
    // No two places look alike, so bytes of another part are noticed.
    let words =
        (0..u32::try_from(LEN / 4).unwrap()).flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes());
    let blob: Bytes = words.collect::<Vec<_>>().into();
    let path = format!("/v2/app/blobs/{}", Digest::of(&blob));
    let server = Faulty::start();
    server.put(&path, "application/octet-stream", &blob);
    Fixture { server, blob, path }
}

impl Fixture {
    fn client(&self) -> Client {
        let plain = HostConfig { plain_http: Some(true), ..HostConfig::default() };
        let budgets = Budgets {
            retry_min: Duration::from_millis(1),
            retry_max: Duration::from_millis(2),
            stall: Duration::from_millis(400),
            ..Budgets::default()
        };
        let hosts = [(self.server.host().parse().unwrap(), plain)].into();
        Client::new(Config { hosts, budgets, ..Config::isolated() })
    }

    fn reader(&self, client: &Client, range: std::ops::Range<usize>) -> RangeReader {
        let repository = client.repository(&self.server.host().parse().unwrap(), &"app".parse().unwrap());
        let range = range.start as u64..range.end as u64;
        repository.read_range(&Digest::of(&self.blob), LEN as u64, range, Priority::Demand)
    }

    async fn read(&self, client: &Client, range: std::ops::Range<usize>) -> Result<Vec<u8>, Error> {
        let mut reader = self.reader(client, range);
        let mut bytes = Vec::new();
        while let Some(piece) = reader.chunk().await? {
            bytes.extend_from_slice(&piece);
        }
        Ok(bytes)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_are_fetched_side_by_side_and_come_in_order() {
    let fixture = fixture();
    let client = fixture.client();
    for range in [0..LEN, 1..LEN - 1, 3..(16 << 20) + 4] {
        assert!(
            fixture.read(&client, range.clone()).await.unwrap() == fixture.blob[range.clone()],
            "{range:?}"
        );
    }
    assert_eq!(fixture.server.count(&fixture.path), 4 + 4 + 3);
    let mut asked: Vec<_> =
        fixture.server.seen()[..4].iter().map(|seen| seen.range.clone().unwrap()).collect();
    asked.sort_by_key(|range| range.start);
    assert!(asked.windows(2).all(|pair| pair[0].end == pair[1].start), "{asked:?}");
    assert_eq!((asked[0].start, asked[3].end), (0, LEN as u64));
    assert!(fixture.server.peak() >= 2, "one after the other");
}

#[tokio::test(flavor = "multi_thread")]
async fn readers_share_the_room_for_what_is_fetched_ahead() {
    let fixture = fixture();
    let client = fixture.client();
    let reads = (0..4).map(|_| fixture.read(&client, 0..LEN));
    for bytes in futures(reads).await {
        assert!(bytes.unwrap() == fixture.blob);
    }
    assert!(fixture.server.peak() <= 6, "{} in flight", fixture.server.peak());
}

/// Runs a few futures side by side on one task.
async fn futures<F: Future>(all: impl Iterator<Item = F>) -> Vec<F::Output> {
    let mut all: Vec<_> = all.map(|future| (Box::pin(future), None)).collect();
    std::future::poll_fn(|context| {
        for (future, output) in all.iter_mut().filter(|(_, output)| output.is_none()) {
            if let std::task::Poll::Ready(ready) = future.as_mut().poll(context) {
                *output = Some(ready);
            }
        }
        if all.iter().all(|(_, output)| output.is_some()) {
            std::task::Poll::Ready(())
        } else {
            std::task::Poll::Pending
        }
    })
    .await;
    all.into_iter().filter_map(|(_, output)| output).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_without_ranges_is_asked_once() {
    let fixture = fixture();
    fixture.server.fault(&fixture.path, Fault::IgnoreRange, 100);
    assert!(fixture.read(&fixture.client(), 0..LEN).await.unwrap() == fixture.blob);
    assert_eq!(fixture.server.count(&fixture.path), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn parts_survive_what_servers_do() {
    let fixture = fixture();
    for fault in [
        Fault::Close { after: 70_000 },
        Fault::Hangup,
        Fault::Stall { after: 5 },
        Fault::ShiftRange { by: 1 },
        Fault::Status { code: 503, retry_after: None },
    ] {
        fixture.server.fault(&fixture.path, fault.clone(), 5);
        assert!(fixture.read(&fixture.client(), 0..LEN).await.unwrap() == fixture.blob, "{fault:?}");
        fixture.server.heal();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_that_cannot_be_had_is_an_error_and_nothing_goes_on_behind() {
    let fixture = fixture();
    let client = fixture.client();
    let mut reader = fixture.reader(&client, 0..LEN);
    let mut received = reader.chunk().await.unwrap().unwrap().len();
    fixture.server.fault(&fixture.path, Fault::Status { code: 404, retry_after: None }, 1000);
    let error = loop {
        match reader.chunk().await {
            Ok(Some(piece)) => received += piece.len(),
            Ok(None) => panic!("{received} bytes are no whole blob"),
            Err(error) => break error,
        }
    };
    assert!(error.to_string().contains("blob"), "{error}");
    assert!(received < LEN);

    fixture.server.heal();
    let mut reader = fixture.reader(&client, 0..LEN);
    reader.chunk().await.unwrap();
    drop(reader);
    while client.stats()[&fixture.server.host()].in_flight > 0 {
        tokio::task::yield_now().await;
    }
}
