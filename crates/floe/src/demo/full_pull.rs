//! What everybody does today, to compare with: a full pull with unpacking, then a start.
//!
//! Done as containerd 1.6 and later do it, with their defaults: three downloads at a time, each blob checked and
//! synced when complete; layers unpacked strictly in order, one as soon as it is there, while others still
//! come; diffIDs checked; files not synced; overlayfs over one directory per layer. Programs do the heavy work:
//! gzip (or pigz) and GNU tar, both faster than the Go code they stand for, so the comparison errs against us.

use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use format::{Digest, DigestHasher, limits};
use oci_spec::image::{ImageConfiguration, ImageManifest};
use rustix::fs::{CWD, FileType, Mode, XattrFlags, mknodat, setxattr};

use super::image::find;
use crate::run::{self, Options, Ready};

/// containerd's `max_concurrent_downloads`.
const DOWNLOADS: usize = 3;

/// A registry on loopback that says nothing for so long is broken.
const SILENCE: Duration = Duration::from_secs(60);

/// Longest header of an answer, in bytes.
const HEADER: u64 = 64 << 10;

/// What this is, for the reader of its numbers.
pub const DESCRIPTION: &str = "full pull, then start, as containerd does it: 3 downloads at a time, \
each layer checked, unpacked by gzip and GNU tar, overlayfs, runc";

/// An image in a registry on this machine that speaks plain HTTP.
#[derive(Debug, Clone)]
pub struct Source {
    /// Where the registry listens.
    pub registry: SocketAddr,
    /// The repository's name.
    pub repository: String,
    /// A tag or a digest of an image manifest.
    pub reference: String,
}

/// A pulled and unpacked image.
#[derive(Debug)]
pub struct Pulled {
    /// Its config.
    pub config: ImageConfiguration,
    /// The unpacked layers, topmost first.
    pub layers: Vec<PathBuf>,
    /// Bytes received as bodies.
    pub bytes: u64,
    /// Requests sent.
    pub requests: u64,
}

/// How the whole went.
#[derive(Debug)]
pub struct Measured {
    /// From the beginning of the pull to the end of the unpacking.
    pub pulled: Duration,
    /// From the beginning of the pull to ready, if it became ready.
    pub ready: Option<Duration>,
    /// Bytes received.
    pub bytes: u64,
    /// Requests sent.
    pub requests: u64,
    /// How the container ended.
    pub outcome: run::Outcome,
}

/// Pulls, unpacks into `dir` (which must not exist), runs until ready as `options` say, and removes `dir`.
pub fn measure(source: &Source, dir: &Path, options: Options) -> Result<Measured> {
    let began = Instant::now();
    let result = pull(source, dir).context("pulling the whole image").and_then(|image| {
        let pulled = began.elapsed();
        let lowers: Vec<&Path> = image.layers.iter().map(AsRef::as_ref).collect();
        let mut ready = None;
        let outcome =
            run::run_over(&lowers, &image.config, options, |now: Ready| ready = Some(now.at - began))?;
        Ok(Measured { pulled, ready, bytes: image.bytes, requests: image.requests, outcome })
    });
    if dir.exists() {
        fs::remove_dir_all(dir).with_context(|| format!("removing {}", dir.display()))?;
    }
    result
}

/// Pulls an image and unpacks it into `dir`, which must not exist. Needs root, to keep owners.
pub fn pull(source: &Source, dir: &Path) -> Result<Pulled> {
    fs::create_dir_all(dir.parent().unwrap_or(dir))?;
    fs::create_dir(dir).with_context(|| format!("creating {}", dir.display()))?;
    let client = Client { source, bytes: AtomicU64::new(0), requests: AtomicU64::new(0) };
    let manifest = client.document(&format!("manifests/{}", source.reference), limits::MANIFEST)?;
    let manifest: ImageManifest = serde_json::from_slice(&manifest).context("reading the manifest")?;
    let config = client.document(&format!("blobs/{}", manifest.config().digest()), limits::CONFIG)?;
    ensure!(
        Digest::of(&config).to_string() == manifest.config().digest().to_string(),
        "the config is not what the manifest names"
    );
    let config: ImageConfiguration = serde_json::from_slice(&config).context("reading the config")?;
    let layers = layers(&manifest, &config)?;
    let paths = fetch_and_unpack(&client, &layers, dir)?;
    Ok(Pulled {
        config,
        layers: paths,
        bytes: client.bytes.into_inner(),
        requests: client.requests.into_inner(),
    })
}

struct Layer {
    digest: Digest,
    size: u64,
    diff_id: Digest,
}

fn layers(manifest: &ImageManifest, config: &ImageConfiguration) -> Result<Vec<Layer>> {
    let diff_ids = config.rootfs().diff_ids();
    ensure!(manifest.layers().len() == diff_ids.len(), "manifest and config differ in the number of layers");
    ensure!((1..=limits::LAYERS).contains(&diff_ids.len()), "{} layers", diff_ids.len());
    let layer = |(blob, diff_id): (&oci_spec::image::Descriptor, &String)| -> Result<Layer> {
        Ok(Layer { digest: blob.digest().to_string().parse()?, size: blob.size(), diff_id: diff_id.parse()? })
    };
    manifest.layers().iter().zip(diff_ids).map(layer).collect()
}

/// Three threads fetch in order; this one unpacks in order. Returns the directories, topmost first.
fn fetch_and_unpack(client: &Client<'_>, layers: &[Layer], dir: &Path) -> Result<Vec<PathBuf>> {
    let next = AtomicUsize::new(0);
    let (fetched, arrivals): (Vec<Sender<_>>, Vec<Receiver<Result<File>>>) =
        layers.iter().map(|_| channel()).unzip();
    std::thread::scope(|scope| {
        for _ in 0..DOWNLOADS.min(layers.len()) {
            let (next, fetched) = (&next, fetched.clone());
            scope.spawn(move || {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let (Some(layer), Some(done)) = (layers.get(number), fetched.get(number)) else { return };
                    let file = client.layer(layer, &dir.join(layer.digest.hex()));
                    // Nobody listens any more: another layer failed, so the rest is not wanted.
                    if done.send(file.with_context(|| format!("fetching layer {}", layer.digest))).is_err() {
                        return;
                    }
                }
            });
        }
        drop(fetched);
        let mut paths = Vec::new();
        for (number, (layer, arrival)) in layers.iter().zip(arrivals).enumerate() {
            let blob = arrival.recv().map_err(|_| anyhow!("nobody fetched layer {}", layer.digest))??;
            let path = dir.join(format!("layer{number}"));
            unpack(blob, layer, &path, &dir.join(format!("names{number}")))
                .with_context(|| format!("unpacking layer {}", layer.digest))?;
            paths.insert(0, path);
        }
        Ok(paths)
    })
}

/// A client of one repository: HTTP/1.0, so bodies are never chunked and end with the connection.
struct Client<'a> {
    source: &'a Source,
    bytes: AtomicU64,
    requests: AtomicU64,
}

impl Client<'_> {
    fn document(&self, path: &str, limit: u64) -> Result<Vec<u8>> {
        let mut body = Vec::new();
        self.get(path)?.take(limit + 1).read_to_end(&mut body).with_context(|| format!("reading {path}"))?;
        ensure!(body.len() as u64 <= limit, "{path} is longer than {limit} bytes");
        self.bytes.fetch_add(body.len() as u64, Ordering::Relaxed);
        Ok(body)
    }

    /// Fetches a blob into a file, checks and syncs it, as containerd's content store does.
    fn layer(&self, layer: &Layer, path: &Path) -> Result<File> {
        let mut body = self.get(&format!("blobs/{}", layer.digest))?.take(layer.size + 1);
        let mut file = File::options().read(true).write(true).create_new(true).open(path)?;
        let (mut hasher, mut size, mut piece) = (DigestHasher::new(), 0, vec![0; 64 << 10]);
        loop {
            let length = body.read(&mut piece)?;
            if length == 0 {
                break;
            }
            self.bytes.fetch_add(length as u64, Ordering::Relaxed);
            hasher.update(&piece[..length]);
            file.write_all(&piece[..length])?;
            size += length as u64;
        }
        let found = hasher.finish();
        ensure!(
            size == layer.size && found == layer.digest,
            "got {size} bytes with digest {found}, not {} bytes",
            layer.size
        );
        file.sync_all()?;
        io::Seek::rewind(&mut file)?;
        Ok(file)
    }

    fn get(&self, path: &str) -> Result<impl Read + use<>> {
        let Source { registry, repository, .. } = self.source;
        let what = || format!("GET http://{registry}/v2/{repository}/{path}");
        let mut stream = TcpStream::connect_timeout(registry, SILENCE).with_context(what)?;
        stream.set_read_timeout(Some(SILENCE))?;
        stream.set_write_timeout(Some(SILENCE))?;
        let accept = "application/vnd.oci.image.manifest.v1+json, application/vnd.docker.distribution.manifest.v2+json, */*";
        write!(
            stream,
            "GET /v2/{repository}/{path} HTTP/1.0\r\nHost: {registry}\r\nAccept: {accept}\r\n\r\n"
        )?;
        self.requests.fetch_add(1, Ordering::Relaxed);
        let mut answer = BufReader::new(stream);
        let mut head = answer.by_ref().take(HEADER);
        let mut line = String::new();
        head.read_line(&mut line).with_context(what)?;
        let status = line.split_whitespace().nth(1).unwrap_or("nothing").to_owned();
        ensure!(status == "200", "{}: the registry answers {status}", what());
        while line.trim_end() != "" {
            line.clear();
            ensure!(head.read_line(&mut line)? > 0, "{}: the answer ends in its header", what());
        }
        Ok(answer)
    }
}

/// Unpacks a layer into a new directory, checking its diffID on the way.
fn unpack(blob: File, layer: &Layer, path: &Path, names: &Path) -> Result<()> {
    fs::create_dir(path)?;
    let mut inflate = decompressor(blob)?;
    let mut plain = inflate.stdout.take().context("the decompressor has no output")?;
    let mut tar = Command::new("tar")
        .args([
            "--extract",
            "--file=-",
            "--preserve-permissions",
            "--same-owner",
            "--numeric-owner",
            "--xattrs",
        ])
        .args(["--xattrs-include=*", "--verbose", "--quoting-style=escape", "--warning=no-timestamp"])
        .arg(format!("--index-file={}", names.display()))
        .arg("--directory")
        .arg(path)
        .stdin(Stdio::piped())
        .spawn()
        .context("running tar")?;
    let mut input = tar.stdin.take().context("tar has no input")?;
    let (mut hasher, mut piece) = (DigestHasher::new(), vec![0; 256 << 10]);
    let copied = loop {
        match plain.read(&mut piece) {
            Ok(0) => break Ok(()),
            Ok(length) => {
                hasher.update(&piece[..length]);
                // tar ends at the end mark; what may follow counts for the diffID only.
                match input.write_all(&piece[..length]) {
                    Err(error) if error.kind() != io::ErrorKind::BrokenPipe => break Err(error),
                    _ => {}
                }
            }
            Err(error) => break Err(error),
        }
    };
    drop((input, plain));
    let (inflated, unpacked) = (inflate.wait()?, tar.wait()?);
    copied?;
    ensure!(inflated.success(), "the decompressor failed: {inflated}");
    ensure!(unpacked.success(), "tar failed: {unpacked}");
    let found = hasher.finish();
    ensure!(found == layer.diff_id, "its diffID is {found}, the config says {}", layer.diff_id);
    resolve_whiteouts(path, names)
}

fn decompressor(mut blob: File) -> Result<Child> {
    let mut magic = [0; 4];
    let length = blob.read(&mut magic)?;
    io::Seek::rewind(&mut blob)?;
    let programs: &[&str] = match magic[..length] {
        [0x1f, 0x8b, ..] => &["unpigz", "gzip"],
        [0x28, 0xb5, 0x2f, 0xfd] => &["zstd"],
        _ => &["cat"],
    };
    let program = programs
        .iter()
        .find_map(find)
        .with_context(|| format!("{} is not installed", programs.join(" or ")))?;
    let mut command = Command::new(&program);
    if programs != ["cat"] {
        command.args(["-d", "-c"]);
    }
    command
        .stdin(blob)
        .stdout(Stdio::piped())
        .spawn()
        .with_context(|| format!("running {}", program.display()))
}

/// Turns the whiteouts tar has unpacked as files into overlayfs's own: a device 0:0, a mark on the directory.
fn resolve_whiteouts(root: &Path, names: &Path) -> Result<()> {
    for line in BufReader::new(File::open(names)?).split(b'\n') {
        let name = unescape(&line?);
        let file = name.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        if !file.starts_with(b".wh.")
            || name.starts_with(b"/")
            || name.split(|byte| *byte == b'/').any(|part| part == b"..")
        {
            continue;
        }
        let hidden = file[b".wh.".len()..].to_vec();
        let path = root.join(PathBuf::from(std::ffi::OsString::from_vec(name)));
        let dir = path.parent().unwrap_or(root);
        fs::remove_file(&path).with_context(|| format!("removing {}", path.display()))?;
        if hidden == b".wh..opq" {
            setxattr(dir, "trusted.overlay.opaque", b"y", XattrFlags::empty())
                .context("making a directory opaque")?;
        } else if hidden.starts_with(b".wh.") || hidden.is_empty() {
            bail!("{} is no whiteout", path.display());
        } else {
            let hidden = dir.join(PathBuf::from(std::ffi::OsString::from_vec(hidden)));
            mknodat(CWD, &hidden, FileType::CharacterDevice, Mode::empty(), 0)
                .context("making a whiteout")?;
        }
    }
    Ok(())
}

/// Undoes GNU tar's `--quoting-style=escape`.
fn unescape(text: &[u8]) -> Vec<u8> {
    let mut plain = Vec::new();
    let mut rest = text;
    while let [first, after @ ..] = rest {
        rest = after;
        if *first != b'\\' {
            plain.push(*first);
            continue;
        }
        let (byte, used) = match after {
            [a @ b'0'..=b'3', b @ b'0'..=b'7', c @ b'0'..=b'7', ..] => {
                ((a - b'0') << 6 | (b - b'0') << 3 | (c - b'0'), 3)
            }
            [b'n', ..] => (b'\n', 1),
            [b't', ..] => (b'\t', 1),
            [b'r', ..] => (b'\r', 1),
            [b'a', ..] => (7, 1),
            [b'b', ..] => (8, 1),
            [b'v', ..] => (11, 1),
            [b'f', ..] => (12, 1),
            [other, ..] => (*other, 1),
            [] => (b'\\', 0),
        };
        plain.push(byte);
        rest = &after[used..];
    }
    plain
}

#[cfg(test)]
#[path = "full_pull_tests.rs"]
mod tests;
