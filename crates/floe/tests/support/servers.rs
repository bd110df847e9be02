//! Registries for the tests: Debian's docker-registry, and the embedded one inside this process; and a proxy.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex, mpsc};

use super::image::TestImage;
use super::{Node, PATIENCE};

/// Debian's docker-registry on a free port; ends when dropped.
pub struct DockerRegistry {
    child: Child,
    storage: PathBuf,
    pub host: String,
}

impl DockerRegistry {
    /// Starts one over a directory; nothing where it is not installed.
    pub fn start(dir: &Path) -> Option<Self> {
        Self::start_with(dir, "")
    }

    /// Starts one that speaks TLS, with the certificate of [`testkit::certificates`] in its directory.
    pub fn start_tls(dir: &Path) -> Option<Self> {
        let tls =
            format!("  tls:\n    certificate: {0}/server.crt\n    key: {0}/server.key\n", dir.display());
        Self::start_with(dir, &tls)
    }

    fn start_with(dir: &Path, http: &str) -> Option<Self> {
        let program = super::program("docker-registry")?;
        fs::create_dir_all(dir).unwrap();
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n{http}",
            storage.display()
        );
        fs::write(&config, text).unwrap();
        let mut child = Command::new(program)
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let (found, wait) = mpsc::channel();
        // Reads to the end, so that the registry never waits for its log.
        std::thread::spawn(move || {
            for line in lines.map_while(Result::ok) {
                if let Some((_, rest)) = line.split_once("listening on ") {
                    let end = rest
                        .find(|c: char| !c.is_ascii_digit() && c != '.' && c != ':')
                        .unwrap_or(rest.len());
                    let _ = found.send(rest[..end].to_owned()); // only the first is waited for
                }
            }
        });
        let host = wait.recv_timeout(PATIENCE);
        let mut started = Self { child, storage, host: String::new() };
        started.host = host.expect("docker-registry did not say where it listens");
        Some(started)
    }

    /// Removes a blob, as its collection of garbage does.
    pub fn lose(&self, digest: &format::Digest) {
        let hex = digest.hex();
        let blobs = self.storage.join("docker/registry/v2/blobs/sha256");
        fs::remove_dir_all(blobs.join(&hex[..2]).join(&hex)).unwrap();
    }
}

impl Drop for DockerRegistry {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended by itself
        let _ = self.child.wait();
    }
}

/// The embedded registry; ends when dropped.
pub struct Embedded {
    runtime: tokio::runtime::Runtime,
    pub server: Option<registry::Server>,
    dir: PathBuf,
    address: SocketAddr,
}

impl Embedded {
    pub fn start(dir: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let any = SocketAddr::from(([127, 0, 0, 1], 0));
        let mut embedded = Self { runtime, server: None, dir: dir.to_owned(), address: any };
        embedded.up();
        embedded
    }

    /// Starts one below a node's directory that has an image and its index, made by another node; returns the reference.
    pub fn with_index(node: &Node, image: &TestImage) -> (Self, String) {
        let registry = Self::start(&node.path("registry"));
        let reference = format!("{}/app:v1", registry.host());
        image.push(&reference);
        Node::new("").ok(&["index", "--push", &reference]);
        (registry, reference)
    }

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn stats(&self) -> registry::ServerStats {
        self.server.as_ref().unwrap().stats()
    }

    /// Returns a blob as it lies there.
    pub fn content(&self, digest: &format::Digest) -> Vec<u8> {
        fs::read(self.dir.join("blobs/sha256").join(digest.hex())).unwrap()
    }

    /// Puts other bytes in the place of a blob.
    pub fn corrupt(&self, digest: &format::Digest, bytes: &[u8]) {
        fs::write(self.dir.join("blobs/sha256").join(digest.hex()), bytes).unwrap();
    }

    /// Removes a blob from a repository.
    pub fn lose(&self, repository: &str, digest: &format::Digest) {
        let blobs = self.dir.join("repositories").join(repository).join("_blobs");
        fs::remove_file(blobs.join(digest.hex())).unwrap();
    }

    /// Sends at most so many bytes per second from now on.
    pub fn rate(&self, rate: Option<u64>) {
        self.server.as_ref().unwrap().set_rate(rate);
    }

    /// Goes away, connections and all.
    pub fn down(&mut self) {
        self.server = None;
        // Aborted tasks close their sockets when the runtime next turns; a new one is sure not to share them.
        let fresh =
            tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        std::mem::replace(&mut self.runtime, fresh).shutdown_timeout(PATIENCE);
    }

    /// Comes back at the same address.
    pub fn up(&mut self) {
        let config = registry::ServerConfig { dir: self.dir.clone(), listen: self.address, rate: None };
        let server = self.runtime.block_on(registry::Server::start(config)).unwrap();
        self.address = server.address();
        self.server = Some(server);
    }
}

/// An HTTP proxy that leads every name to one server and keeps what it was asked for.
pub struct HttpProxy {
    pub host: String,
    shared: Arc<ProxyState>,
}

struct ProxyState {
    server: String,
    /// A status instead of a connection; zero for none.
    refusal: AtomicU16,
    asked: Mutex<Vec<String>>,
}

impl HttpProxy {
    pub fn start(server: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let shared = Arc::new(ProxyState {
            server: server.to_owned(),
            refusal: AtomicU16::default(),
            asked: Mutex::default(),
        });
        let state = shared.clone();
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let state = state.clone();
                std::thread::spawn(move || state.serve(client));
            }
        });
        Self { host, shared }
    }

    /// Answers every request with a status from here on.
    pub fn refuse(&self, status: u16) {
        self.shared.refusal.store(status, Ordering::Relaxed);
    }

    /// Returns method and target of what was asked since the last time.
    pub fn asked(&self) -> Vec<String> {
        std::mem::take(&mut *self.shared.asked.lock().unwrap())
    }
}

impl ProxyState {
    fn serve(&self, mut client: TcpStream) -> io::Result<()> {
        let mut head = Vec::new();
        let mut byte = [0];
        while !head.ends_with(b"\r\n\r\n") {
            client.read_exact(&mut byte)?;
            head.extend_from_slice(&byte);
        }
        let text = String::from_utf8_lossy(&head);
        let mut words = text.split(' ').map(str::to_owned);
        let (method, target) = (words.next().unwrap(), words.next().unwrap());
        self.asked.lock().unwrap().push(format!("{method} {target}"));
        match self.refusal.load(Ordering::Relaxed) {
            0 => {}
            status => return write!(client, "HTTP/1.1 {status} Refused\r\nContent-Length: 0\r\n\r\n"),
        }
        let mut server = TcpStream::connect(&self.server)?;
        match method.as_str() {
            "CONNECT" => client.write_all(b"HTTP/1.1 200 Connected\r\n\r\n")?,
            _ => server.write_all(&head)?, // servers understand a whole URL where a path would do
        }
        let (from, to) = (server.try_clone()?, client.try_clone()?);
        let back = std::thread::spawn(move || forward(from, to));
        forward(client, server);
        drop(back);
        Ok(())
    }
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let _ = io::copy(&mut from, &mut to); // either side may go at any time
    let _ = to.shutdown(Shutdown::Write);
}
