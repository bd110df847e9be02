//! What the tests with real servers share: images, and places to put them.

#![allow(dead_code, reason = "each test program uses a part")]

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};

use bytes::Bytes;
use format::{DiffId, Digest};
use registry::*;

/// An image of some layers; the bytes of a layer are neither tar nor compressed, which nobody here looks at.
pub(crate) struct Sample {
    pub(crate) layers: Vec<Bytes>,
    pub(crate) config: Bytes,
    pub(crate) manifest: Manifest,
}

/// Bytes that do not repeat early.
pub(crate) fn noise(len: usize, seed: u64) -> Bytes {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        bytes.extend_from_slice(&state.to_le_bytes());
    }
    bytes.truncate(len);
    bytes.into()
}

pub(crate) fn manifest(bytes: Vec<u8>, media_type: &str) -> Manifest {
    Manifest { digest: Digest::of(&bytes), media_type: media_type.into(), bytes: bytes.into() }
}

pub(crate) fn sample(architecture: &str, layers: Vec<Bytes>) -> Sample {
    let diff_ids: Vec<String> = layers.iter().map(|layer| diff_id(layer).to_string()).collect();
    let config = serde_json::json!({
        "architecture": architecture, "os": "linux", "config": {"Cmd": ["true"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    let config: Bytes = config.to_string().into_bytes().into();
    let parsed = ImageManifest {
        schema_version: 2,
        media_type: Some(media_type::MANIFEST.into()),
        artifact_type: None,
        config: Descriptor::of(media_type::CONFIG, &config),
        layers: layers
            .iter()
            .map(|layer| Descriptor::of("application/vnd.oci.image.layer.v1.tar+gzip", layer))
            .collect(),
        subject: None,
        annotations: Default::default(),
    };
    let manifest = manifest(serde_json::to_vec(&parsed).unwrap(), media_type::MANIFEST);
    Sample { layers, config, manifest }
}

pub(crate) fn diff_id(layer: &[u8]) -> DiffId {
    DiffId::new(Digest::of(&[b"tar of ", layer].concat()))
}

impl Sample {
    pub(crate) fn blobs(&self) -> impl Iterator<Item = Content> + '_ {
        self.layers.iter().chain([&self.config]).map(|bytes| Content::bytes(bytes.clone()))
    }
}

/// Somewhere an image can be.
pub(crate) enum Place {
    Registry(Repository),
    Layout(Layout, PathBuf),
}

impl Place {
    pub(crate) async fn put_blobs(&self, sample: &Sample) {
        for blob in sample.blobs() {
            match self {
                Self::Registry(repository) => drop(repository.push_blob(&blob, None).await.unwrap()),
                Self::Layout(layout, _) => layout.put_blob(&blob).await.unwrap(),
            }
        }
    }

    pub(crate) async fn put_manifest(&self, manifest: &Manifest, tag: Option<&str>) {
        match self {
            Self::Registry(repository) => {
                let pick = tag.map_or(Pick::Digest(manifest.digest), |tag| Pick::Tag(tag.parse().unwrap()));
                repository.push_manifest(manifest, &pick).await.unwrap();
            }
            // An entry without a name is an image too; a part of an image index gets none.
            Self::Layout(layout, _) => match tag {
                Some(tag) => {
                    let name = tag.parse().unwrap();
                    layout.put_manifest(manifest, manifest.descriptor(), Some(&name)).await.unwrap();
                }
                None => layout.put_blob(&Content::bytes(manifest.bytes.clone())).await.unwrap(),
            },
        }
    }

    pub(crate) async fn source(&self, client: &Client, name: &str) -> Source {
        let text = match self {
            Self::Registry(repository) => format!("docker://{repository}:{name}"),
            Self::Layout(_, path) => format!("oci:{}:{name}", path.display()),
        };
        client.source(&text.parse().unwrap()).await.unwrap()
    }
}

pub(crate) fn client() -> Client {
    Client::new(Config::isolated())
}

pub(crate) async fn embedded(dir: &Path) -> Server {
    Server::start(ServerConfig { dir: dir.into(), listen: "127.0.0.1:0".parse().unwrap(), rate: None })
        .await
        .unwrap()
}

/// Debian's docker-registry, stopped when dropped.
pub(crate) struct Debian {
    child: Child,
    pub(crate) host: String,
    pub(crate) lines: std::sync::mpsc::Receiver<String>,
    pub(crate) dir: tempfile::TempDir,
}

impl Debian {
    /// Starts it; `None` where it is not installed. `http` is more YAML for its `http` section.
    pub(crate) fn start(http: impl FnOnce(&Path) -> String) -> Option<Self> {
        let dir = tempfile::tempdir().unwrap();
        let config = format!(
            "version: 0.1\nlog:\n  level: info\nstorage:\n  filesystem:\n    rootdirectory: {0}/data\n  delete:\n    enabled: true\nhttp:\n  addr: 127.0.0.1:0\n{1}",
            dir.path().display(),
            http(dir.path())
        );
        std::fs::write(dir.path().join("config.yml"), config).unwrap();
        let mut child = Command::new("docker-registry")
            .arg("serve")
            .arg(dir.path().join("config.yml"))
            .env_clear()
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .ok()?;
        let (sender, lines) = std::sync::mpsc::channel();
        let outputs: [Box<dyn std::io::Read + Send>; 2] =
            [Box::new(child.stdout.take().unwrap()), Box::new(child.stderr.take().unwrap())];
        for output in outputs {
            let sender = sender.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(output).lines().map_while(Result::ok) {
                    let _ = sender.send(line); // the test may be over
                }
            });
        }
        drop(sender);
        let mut said = String::new();
        let host = loop {
            let line = lines.recv().unwrap_or_else(|_| panic!("docker-registry ended: {said}"));
            if let Some((_, rest)) = line.split_once("listening on 127.0.0.1:") {
                let port: String = rest.chars().take_while(char::is_ascii_digit).collect();
                break format!("127.0.0.1:{port}");
            }
            said += &format!("{line}\n");
        };
        Some(Self { child, host, lines, dir })
    }
}

impl Drop for Debian {
    fn drop(&mut self) {
        let _ = self.child.kill(); // it may have ended
        let _ = self.child.wait();
    }
}

pub(crate) fn have(program: &str) -> bool {
    Command::new(program).arg("--version").stdout(Stdio::null()).stderr(Stdio::null()).status().is_ok()
}

/// A proxy that cuts connections: the one that carries the last of so many bytes from the client, then the one that
/// carries the last of as many more as said next, and so on. Which connection that is, the client's pool decides.
pub(crate) struct Cutter {
    pub(crate) host: String,
}

/// Bytes until each of the cuts that are still to come.
type Cuts = Arc<Mutex<VecDeque<usize>>>;

impl Cutter {
    pub(crate) fn start(target: &str, cuts: &[usize]) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let host = listener.local_addr().unwrap().to_string();
        let (target, cuts) = (target.to_owned(), Cuts::new(Mutex::new(cuts.to_vec().into())));
        std::thread::spawn(move || {
            for client in listener.incoming().flatten() {
                let server = TcpStream::connect(&target).unwrap();
                let cuts = cuts.clone();
                let (from, to) = (server.try_clone().unwrap(), client.try_clone().unwrap());
                std::thread::spawn(move || forward(from, to, &Cuts::default()));
                std::thread::spawn(move || forward(client, server, &cuts));
            }
        });
        Self { host }
    }
}

/// Returns how many of these bytes pass before a cut, and whether it is reached.
fn pass(cuts: &Cuts, count: usize) -> (usize, bool) {
    let mut cuts = cuts.lock().unwrap();
    let Some(left) = cuts.front_mut() else { return (count, false) };
    let passing = count.min(*left);
    *left -= passing;
    let reached = *left == 0;
    if reached {
        cuts.pop_front();
    }
    (passing, reached)
}

fn forward(mut from: TcpStream, mut to: TcpStream, cuts: &Cuts) {
    let mut buffer = [0; 16 << 10];
    while let Ok(count) = from.read(&mut buffer)
        && count > 0
    {
        let (passing, reached) = pass(cuts, count);
        if to.write_all(&buffer[..passing]).is_err() || reached {
            break;
        }
    }
    let _ = from.shutdown(Shutdown::Both); // either may be closed already
    let _ = to.shutdown(Shutdown::Both);
}
