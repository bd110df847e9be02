//! Registries for the tests: Debian's docker-registry, and the embedded one inside this process.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::SocketAddr;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc;

use super::PATIENCE;

/// Debian's docker-registry on a free port; ends when dropped.
pub struct DockerRegistry {
    child: Child,
    pub host: String,
}

impl DockerRegistry {
    /// Starts one over a directory; nothing where it is not installed.
    pub fn start(dir: &Path) -> Option<Self> {
        let program = super::program("docker-registry")?;
        fs::create_dir_all(dir).unwrap();
        let config = dir.join("config.yml");
        let storage = dir.join("storage");
        let text = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {}\nhttp:\n  addr: 127.0.0.1:0\n",
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
        let mut started = Self { child, host: String::new() };
        started.host = host.expect("docker-registry did not say where it listens");
        Some(started)
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
    dir: std::path::PathBuf,
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

    pub fn host(&self) -> String {
        self.address.to_string()
    }

    pub fn stats(&self) -> registry::ServerStats {
        self.server.as_ref().unwrap().stats()
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
