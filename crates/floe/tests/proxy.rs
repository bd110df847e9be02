//! `HTTPS_PROXY`, `HTTP_PROXY` and `NO_PROXY`: what goes through the proxy, what does not, and what a refusal looks like.
//!
//! The proxy leads every name to one registry, so `registry.test` needs no DNS. 0.0.0.0 is this machine too, but not a
//! loopback address, for which no proxy is ever asked.
#![allow(missing_docs, reason = "a test crate has no public surface")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "helpers of tests fail the test"
)]

mod support;

use support::image;
use support::servers::{DockerRegistry, Embedded, HttpProxy};
use support::{Node, Outcome};

/// Pulls with this proxy in the environment of the command, and so of the daemon that it starts.
fn pull(node: &Node, reference: &str, variable: &str, proxy: &str) -> Outcome {
    let mut command = node.command(&["pull", reference]);
    command.env(variable, format!("http://user:secret@{proxy}")).env("NO_PROXY", "0.0.0.0,elsewhere.test");
    node.spawn(command).end()
}

#[test]
fn tls_goes_through_the_proxy_except_where_no_proxy_says() {
    let node = node!();
    let dir = node.path("registry");
    let Some(plain) = DockerRegistry::start(&dir) else {
        testkit::skip!("docker-registry is not installed");
    };
    if !testkit::certificates::make(&dir, &["DNS:registry.test", "IP:0.0.0.0"]) {
        testkit::skip!("openssl cannot make certificates here");
    }
    image::simple(1, 1).push(&format!("{}/app:v1", plain.host));
    drop(plain);
    let registry = DockerRegistry::start_tls(&dir).unwrap();
    let direct = registry.host.replace("127.0.0.1", "0.0.0.0");
    let ca = dir.join("ca.crt");
    let config =
        ["registry.test", &direct].map(|host| format!("[registry.{host:?}]\nca = {ca:?}\n")).concat();
    let proxy = HttpProxy::start(&registry.host);

    let node = Node::new(&config);
    let outcome = pull(&node, "registry.test/app:v1", "HTTPS_PROXY", &proxy.host);
    assert!(outcome.status.success(), "{outcome:?}\n{}", node.log());
    let asked = proxy.asked();
    assert!(!asked.is_empty() && asked.iter().all(|one| one == "CONNECT registry.test:443"), "{asked:?}");

    let outcome = pull(&node, &format!("{direct}/app:v1"), "HTTPS_PROXY", &proxy.host);
    assert!(outcome.status.success(), "{outcome:?}\n{}", node.log());
    assert!(proxy.asked().is_empty(), "NO_PROXY names this host");

    // One that gives no connection is named, and its password is not.
    for status in [403, 407, 502] {
        let node = Node::new(&config);
        proxy.refuse(status);
        let complaint = pull(&node, "registry.test/app:v1", "HTTPS_PROXY", &proxy.host).stderr;
        let name = format!("the proxy http://{}", proxy.host);
        assert!(complaint.contains(&name) && complaint.contains("registry.test"), "{status}: {complaint}");
        assert!(!complaint.contains("secret") && !node.log().contains("secret"), "{complaint}");
        assert_eq!(proxy.asked().len(), 1, "{status}: asking again helps nobody");
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string();
    let complaint = pull(&Node::new(&config), "registry.test/app:v1", "HTTPS_PROXY", &nobody).stderr;
    assert!(complaint.contains(&format!("the proxy http://{nobody}")), "{complaint}");
    assert!(complaint.contains("refused"), "{complaint}");
}

#[test]
fn plain_http_goes_through_its_own_proxy() {
    let node = node!("[registry.\"registry.test:5000\"]\nplain_http = true\n");
    let registry = Embedded::start(&node.path("registry"));
    image::simple(1, 1).push(&format!("{}/app:v1", registry.host()));
    let proxy = HttpProxy::start(&registry.host());

    proxy.refuse(407);
    let complaint = pull(&node, "registry.test:5000/app:v1", "HTTP_PROXY", &proxy.host).stderr;
    assert!(complaint.contains(&format!("the proxy http://{}", proxy.host)), "{complaint}");
    assert!(complaint.contains("password") && !complaint.contains("secret"), "{complaint}");
    proxy.refuse(0);
    proxy.asked();
    let outcome = pull(&node, "registry.test:5000/app:v1", "HTTP_PROXY", &proxy.host);
    assert!(outcome.status.success(), "{outcome:?}\n{}", node.log());
    let asked = proxy.asked();
    assert!(!asked.is_empty(), "nothing went through the proxy");
    assert!(asked.iter().all(|one| one.starts_with("GET http://registry.test:5000/v2/")), "{asked:?}");

    // A loopback host is this machine: never through a proxy, whatever the environment says.
    let outcome = pull(&node, &format!("{}/app:v1", registry.host()), "HTTP_PROXY", &proxy.host);
    assert!(outcome.status.success(), "{outcome:?}\n{}", node.log());
    assert!(proxy.asked().is_empty());
}
