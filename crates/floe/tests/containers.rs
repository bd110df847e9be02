//! `floe run` over lazily fetched images: exit codes, readiness, what a start reads and how that is shipped.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::sync::Arc;

use serde_json::json;
use support::Node;
use support::image;
use support::servers::Embedded;
use testkit::faulty::Faulty;

macro_rules! needs_runc {
    () => {
        if support::program("runc").is_none() {
            testkit::skip!("there is no runc");
        }
    };
}

#[test]
fn a_container_starts_lazily_and_its_profile_travels() {
    let node = node!();
    needs_runc!();
    let config = json!({ "Cmd": ["sh", "-c", "cat /etc/name; wc -c </data/0; echo READY; exit 7"], "Env": ["PATH=/bin"] });
    let Some(image) = image::runnable(&config) else { testkit::skip!("there is no busybox") };
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    node.ok(&["index", "--push", &reference]);

    let run = ["run", "--no-background", "--timings", "--ready", "line:READY", &reference];
    let second = Node::new("");
    let outcome = second.run(&run);
    assert_eq!(outcome.status.code(), Some(7), "{outcome:?}");
    assert_eq!(outcome.text(), "tested\n1500000\nREADY\n");
    assert!(outcome.stderr.contains("lazy: the registry has the index"), "{outcome:?}");
    assert!(outcome.stderr.lines().any(|line| line.starts_with("ready ")), "{outcome:?}");
    assert!(second.received() < image.packed(), "the file that nobody reads stays where it is");
    assert_eq!(second.files("profile"), 1);
    assert_eq!(second.files("run"), 0);

    // The recorded profile goes beside the image; a third node fetches by it, without reading anything itself.
    second.ok(&["index", "--profile", "--push", &reference]);
    let third = Node::new("");
    let outcome = third.run(&run);
    assert_eq!(
        (outcome.status.code(), outcome.text().as_str()),
        (Some(7), "tested\n1500000\nREADY\n"),
        "{outcome:?}"
    );
    let fourth = Node::new("");
    let idle = ["run", "--no-background", "--ready", "exit", &reference, "--", "/bin/true"];
    assert_eq!(fourth.run(&idle).status.code(), Some(0));
    let here = || {
        let report = fourth.json(&["inspect", &reference]);
        report["layers"][1]["local"].as_u64().unwrap()
    };
    // `/bin/true` reads nothing of the second layer: what comes of it comes by the profile.
    support::until("the profile's segments are here", || here() > 0);
}

#[test]
fn exit_codes_are_the_containers_own() {
    let node = node!();
    needs_runc!();
    let Some(image) = image::runnable(&json!({ "Env": ["PATH=/bin"] })) else {
        testkit::skip!("there is no busybox")
    };
    let registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image.push(&reference);
    for (command, code) in
        [("exit 0", 0), ("exit 3", 3), ("sh -c 'kill -15 $$'; exit $?", 143), ("exit 255", 255)]
    {
        let outcome = node.run(&["run", &reference, "--", "sh", "-c", command]);
        assert_eq!(outcome.status.code(), Some(code), "{command}: {outcome:?}");
    }
    assert_eq!(node.run(&["run", &reference, "--", "no-such-program"]).status.code(), Some(127));
    assert_eq!(node.run(&["run", &reference, "--", "/etc/name"]).status.code(), Some(126));
    assert_eq!(node.run(&["run", "--ready", "nonsense", &reference]).status.code(), Some(2));
    let outcome = node.run(&[
        "run",
        "--ready",
        "line:UP",
        "--exit-when-ready",
        &reference,
        "--",
        "sh",
        "-c",
        "echo UP; sleep 600",
    ]);
    assert_eq!(outcome.status.code(), Some(0), "{outcome:?}");

    let outcome = node.run(&["run", "--runtime", "/nonexistent/runc", &reference, "--", "true"]);
    assert_eq!(outcome.status.code(), Some(125), "{outcome:?}");
    assert!(outcome.stderr.contains("/nonexistent/runc") && outcome.stderr.contains("hint: "), "{outcome:?}");
    assert_eq!(node.files("run"), 0);
}

#[test]
fn two_runs_at_once_stream_the_image_once() {
    let node = node!();
    needs_runc!();
    let Some(image) = image::runnable(&json!({ "Env": ["PATH=/bin"] })) else {
        testkit::skip!("there is no busybox")
    };
    let server = Arc::new(Faulty::start());
    image.put(&server, "app", "v1");
    let reference = format!("{}/app:v1", server.host());
    node.ok(&["status"]);
    let runs: Vec<_> = (0..2)
        .map(|n| {
            node.spawn(node.command(&[
                "run",
                &reference,
                "--",
                "sh",
                "-c",
                &format!("wc -c </data/1; exit {n}"),
            ]))
        })
        .collect();
    for (n, run) in runs.into_iter().enumerate() {
        let outcome = run.end();
        assert_eq!(outcome.status.code(), i32::try_from(n).ok(), "{outcome:?}");
        assert_eq!(outcome.text(), "4000000\n");
    }
    for layer in &image.layers {
        let path = image::blob_path("app", &layer.digest());
        let asked: u64 = server
            .seen()
            .iter()
            .filter(|seen| seen.method == "GET" && seen.path == path)
            .map(|seen| seen.range.as_ref().map_or(layer.blob.len() as u64, |range| range.end - range.start))
            .sum();
        assert_eq!(asked, layer.blob.len() as u64, "each byte is asked for once");
    }
}
