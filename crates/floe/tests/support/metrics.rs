//! The daemon's page for monitoring systems.

use std::fs;
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};

use super::Node;

/// Asks over HTTP; returns head and body.
pub fn ask(address: SocketAddr, request: &str) -> (String, String) {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: floe\r\nConnection: close\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    let (head, body) = text.split_once("\r\n\r\n").unwrap();
    (head.to_owned(), body.to_owned())
}

/// Returns the value of a line of the page.
pub fn value(page: &str, line: &str) -> f64 {
    let found = page.lines().find_map(|one| one.strip_prefix(line)?.strip_prefix(' '));
    found.unwrap_or_else(|| panic!("no {line} in\n{page}")).parse().unwrap()
}

/// Has the daemon of a node, which does not run yet, tell metrics.
pub fn tells(node: &Node, address: &str) {
    let file = node.path("config.toml");
    let before = fs::read_to_string(&file).unwrap();
    let root = node.store();
    let section = format!("[metrics]\nlisten = \"{address}\"\nroot = \"{}\"\n", root.display());
    fs::write(&file, before + &section).unwrap();
}

/// Returns where the daemon of a node tells them.
pub fn address(node: &Node) -> SocketAddr {
    let log = node.log();
    let (_, told) = log.split_once("telling metrics address=").unwrap();
    told.split_whitespace().next().unwrap().parse().unwrap()
}
