//! Starts without the registry: what is here starts soon, whatever way the network has of not being there; and of what
//! is not here that is said.
//!
//! The limit on time is that of a connection, ten seconds, which a start waited for once; the margin is for machines
//! under load.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use std::fs;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt};
use support::Node;
use support::image;
use support::servers::Embedded;
use testkit::faulty::Faulty;

/// Less than a connection may take.
const SOON: Duration = Duration::from_secs(9);

/// An address whose packets are dropped: a listener that accepts nobody and whose queue is full.
struct Hole {
    _sockets: Vec<OwnedFd>,
}

impl Hole {
    fn at(address: SocketAddr) -> Self {
        let socket =
            || socket_with(AddressFamily::INET, SocketType::STREAM, SocketFlags::NONBLOCK, None).unwrap();
        let listener = socket();
        sockopt::set_socket_reuseaddr(&listener, true).unwrap();
        bind(&listener, &address).unwrap();
        listen(&listener, 0).unwrap();
        let mut sockets = vec![listener];
        // The queue holds one more than it was asked to; those that find it full stay in limbo.
        for _ in 0..4 {
            let client = socket();
            let _ = connect(&client, &address); // in progress, as it will be for ever
            sockets.push(client);
        }
        assert!(
            TcpStream::connect_timeout(&address, Duration::from_millis(200)).is_err(),
            "the listener's queue is not full"
        );
        Self { _sockets: sockets }
    }
}

/// Mounts, and returns what is said about how.
fn why(node: &Node, reference: &str) -> String {
    let begun = Instant::now();
    let at = node.mount(reference);
    let took = begun.elapsed();
    assert!(took < SOON, "{took:?}");
    assert_eq!(fs::read(at.join("data/0")).unwrap(), image::noise(1000, 1_500_000));
    let report = node.json(&["inspect", reference]);
    node.umount(&at);
    report["why"].as_str().unwrap().to_owned()
}

#[test]
fn what_is_here_starts_soon_where_packets_vanish() {
    let node = node!();
    let mut registry = Embedded::start(&node.path("registry"));
    let reference = format!("{}/app:v1", registry.host());
    image::simple(1, 1).push(&reference);
    node.ok(&["pull", &reference]);
    assert!(!why(&node, &reference).contains("last seen"));

    registry.down();
    let _hole = Hole::at(registry.host().parse().unwrap());
    // By the daemon that had answers from this registry, and by one that never had.
    let told = why(&node, &reference);
    assert!(told.contains("has not answered"), "{told}");
    assert!(node.log().contains("as it was last seen"), "{}", node.log());
    node.stop();
    let told = why(&node, &reference);
    assert!(told.starts_with("lazy") && told.contains("has not answered"), "{told}");

    // Nothing of it is here: a word at once, and an error in the end.
    let second = Node::new("");
    let point = second.mount_point();
    let complaint = second.fails(&["mount", &reference, point.to_str().unwrap()]);
    let words = ["waiting for it", "cannot be reached", "network", &registry.host()];
    let places: Vec<_> = words.iter().map(|word| complaint.find(word)).collect();
    assert!(places.iter().all(Option::is_some) && places[0] < places[1], "{complaint}");
}

#[test]
fn what_is_here_starts_soon_where_nobody_listens_or_answers() {
    let node = node!();
    let server = Faulty::start();
    let image = image::simple(1, 1);
    image.put(&server, "app", "v1");
    let reference = format!("{}/app:v1", server.host());
    node.ok(&["pull", &reference]);

    server.hold();
    let told = why(&node, &reference);
    assert!(told.contains("has not answered"), "{told}");
    server.release();
    assert!(!why(&node, &reference).contains("last seen"));

    drop(server);
    node.stop();
    let told = why(&node, &reference);
    assert!(told.contains("cannot be reached"), "{told}");
}
