//! What is told of mounts while they are read: status, traces and metrics.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::net::TcpListener;

use support::metrics::{address, ask, tells, value};
use support::{image, until};
use testkit::faulty::{Fault, Faulty};

#[test]
fn waits_and_faults_are_told_by_file_and_by_number() {
    let node = node!("[fetch]\nbackground = false\n");
    tells(&node, "127.0.0.1:0");
    let (server, image) = (Faulty::start(), image::simple(71, 3));
    image.put(&server, "app", "v1");
    image::refer(&server, &image, &image::index_of(&image.layers[0]).encode());
    let (tag, blob) =
        (format!("{}/app:v1", server.host()), image::blob_path("app", &image.layers[0].digest()));
    let at = node.mount(&tag);
    support::read(&at.join("data/1")).unwrap();
    server.fault(&blob, Fault::Status { code: 404, retry_after: None }, u32::MAX);
    support::read(&at.join("data/2")).unwrap_err();
    server.heal();

    let free = address(&node);
    let dir = at.to_str().unwrap();
    let traces = node.json(&["trace", dir]);
    assert_eq!(traces.as_array().unwrap().len(), 1, "{traces}");
    let trace = &traces[0];
    let paths: Vec<_> =
        trace["waits"].as_array().unwrap().iter().map(|wait| wait["path"].as_str().unwrap()).collect();
    assert!(
        paths.contains(&"/data/1") && paths.contains(&"/data/2") && !paths.contains(&"/data/0"),
        "{paths:?}"
    );
    let (here, all) = (trace["here"].as_u64().unwrap(), trace["segments"].as_u64().unwrap());
    assert!(0 < here && here < all, "{here} of {all}");
    assert!(trace["failed"].as_u64().unwrap() > 0, "{trace}");
    assert_eq!(node.json(&["trace", &tag]), traces, "by its image");
    let complaint = node.fails(&["trace", "/nowhere"]);
    assert!(complaint.contains("/nowhere") && complaint.contains("floe status"), "{complaint}");
    let said = node.ok(&["trace"]);
    assert!(said.contains("% here") && said.contains("failed") && said.contains("/data/1"), "{said}");

    let (head, page) = ask(free, "GET /metrics");
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("application/openmetrics-text"), "{head}");
    assert!(page.ends_with("# EOF\n"), "{page}");
    let host = server.host();
    let received = value(&page, &format!("floe_registry_received_bytes_total{{host=\"{host}\"}}"));
    assert_eq!(received, node.received() as f64);
    assert!(value(&page, "floe_wait_seconds_count") > 0.0, "{page}");
    assert!(value(&page, "floe_read_errors_total{errno=\"EIO\",reason=\"fetch\"}") > 0.0, "{page}");
    assert_eq!(value(&page, "floe_readers_waiting"), 0.0);
    assert!(value(&page, "floe_joins_total") >= 0.0);
    let mounts: f64 = ["erofs", "fuse", "plain"]
        .map(|path| value(&page, &format!("floe_mounts{{path=\"{path}\"}}")))
        .iter()
        .sum();
    assert_eq!(mounts, 1.0, "{page}");
    assert_eq!(value(&page, "floe_layers_streamed_total{reason=\"no-index\"}"), 0.0);
    assert_eq!(value(&page, "floe_store_held_bytes"), node.status()["room"]["held"].as_f64().unwrap());

    // A counter does not go back when a mount does.
    let before = value(&page, "floe_wait_seconds_count");
    node.umount(&at);
    until("the mount has gone", || {
        ["erofs", "fuse"].iter().all(|path| {
            value(&ask(free, "GET /metrics").1, &format!("floe_mounts{{path=\"{path}\"}}")) == 0.0
        })
    });
    assert!(value(&ask(free, "GET /metrics").1, "floe_wait_seconds_count") >= before);

    for (request, status) in [("GET /", "404"), ("POST /metrics", "405"), ("GET /metrics/x", "404")] {
        let (head, _) = ask(free, request);
        assert!(head.starts_with(&format!("HTTP/1.1 {status}")), "{request}: {head}");
    }
}

#[test]
fn an_address_that_is_taken_keeps_no_daemon_from_starting() {
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let node = node!("");
    tells(&node, &taken.local_addr().unwrap().to_string());
    node.ok(&["gc", "--dry-run"]);
    assert!(node.daemon().is_some());
}
