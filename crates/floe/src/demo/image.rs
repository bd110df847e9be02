//! The image `floe demo` starts: Debian, Python with NumPy and friends, and an application of one file.
//!
//! Made from Debian's own packages, because an image made up for a demo proves nothing. Three gzip layers in an
//! OCI layout: a minimal Debian, what installing Python changed, the application. Built once into a cache
//! directory and then reused; a build that was interrupted leaves nothing that looks finished.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context, Result, anyhow, bail};
use format::{DiffId, Digest, DigestHasher};
use rustix::fs::{FlockOperation, flock};
use serde_json::json;

use super::layer;
use crate::exit::Hint;

/// Changes whenever the recipe does, so that nobody shows an old image with a new program.
const RECIPE: &str = "python-1";

/// The tag in the layout.
pub const TAG: &str = "demo";

/// What the application prints when it is ready.
pub const READY: &str = "READY";

/// On top of a minimal Debian: well-known modules, most with native code.
const PACKAGES: [&str; 5] =
    ["python3", "python3-numpy", "python3-pil", "python3-cryptography", "python3-requests"];

/// Imports as a small web service does, computes a little, and says so.
const APPLICATION: &str = r#"import argparse, asyncio, hashlib, http.server, json, logging, sqlite3, ssl, time

began = time.perf_counter()
import numpy as np
import requests
from cryptography.hazmat.primitives import hashes
from PIL import Image

a = np.linspace(0.0, 1.0, 250_000).reshape(500, 500)
digest = hashes.Hash(hashes.SHA256())
digest.update(np.linalg.svd(a[:64, :64])[1].tobytes())
image = Image.fromarray((a * 255).astype("uint8"))
table = sqlite3.connect(":memory:")
table.execute("create table t (x)")
print(f"imported in {time.perf_counter() - began:.2f} s: numpy {np.__version__}, requests {requests.__version__}", flush=True)
print("READY", flush=True)
"#;

/// Returns the OCI layout of the demo image below `cache`, making it first if need be. Needs root to make it.
///
/// `say` hears what takes so long.
pub fn ensure(cache: &Path, say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    let layout = cache.join(format!("demo-{RECIPE}"));
    if layout.exists() {
        return Ok(layout);
    }
    fs::create_dir_all(cache).with_context(|| format!("creating {}", cache.display()))?;
    let lock = File::create(cache.join("demo.lock")).context("opening the lock of the demo image")?;
    flock(&lock, FlockOperation::LockExclusive).context("waiting for another demo to make the image")?;
    if layout.exists() {
        return Ok(layout); // somebody else made it while we waited
    }
    if !rustix::process::geteuid().is_root() {
        return Err(anyhow!("this is not root").context(Hint::new(
            "making the demo image from Debian packages",
            "sudo floe demo, or floe demo --image REF for an image of yours",
        )));
    }
    let build = cache.join("demo-build");
    remove_tree(&build)?;
    fs::create_dir(&build).with_context(|| format!("creating {}", build.display()))?;
    let result = make(&build, say).context("making the demo image").and_then(|()| {
        fs::rename(build.join("layout"), &layout).with_context(|| format!("naming {}", layout.display()))
    });
    // The trees are of no further use, whether the image came to be or not.
    remove_tree(&build)?;
    result.map(|()| layout)
}

fn remove_tree(path: &Path) -> Result<()> {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(error).with_context(|| format!("removing {}", path.display()))
        }
        _ => Ok(()),
    }
}

fn make(build: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let (base, full, app) = (build.join("base"), build.join("full"), build.join("app"));
    install(&base, &full, say)?;
    fs::create_dir_all(app.join("app"))?;
    let main = app.join("app/main.py");
    fs::write(&main, APPLICATION)?;
    fs::set_permissions(&main, fs::Permissions::from_mode(0o644))?;

    let layout = build.join("layout");
    let blobs = layout.join("blobs/sha256");
    fs::create_dir_all(&blobs)?;
    say("packing its layers");
    let layers = [(base.as_path(), None), (full.as_path(), Some(base.as_path())), (app.as_path(), None)]
        .into_iter()
        .map(|(top, base)| pack(top, base, &blobs))
        .collect::<Result<Vec<_>>>()?;
    write_layout(&layout, &layers)
}

/// Makes two trees in one go: a minimal Debian, and the same with Python installed.
fn install(base: &Path, full: &Path, say: &mut dyn FnMut(&str)) -> Result<()> {
    let mmdebstrap = find_mmdebstrap(say)?;
    say("making an image from Debian packages; this takes a minute or two, once");
    // Runs when the minimal system is complete. The copy keeps times, so that what is the same can be told. Hooks
    // run as root on this machine: they get no command whose harm depends on a variable being set.
    let snapshot = r#"cp --archive --one-file-system "$1" "$FLOE_DEMO_BASE""#;
    // Inside the new system. Never from outside with mmdebstrap's APT_CONFIG: that says nothing of where dpkg is to
    // install, so it would change the machine this runs on. A chroot that fails, fails before anything happens.
    let python =
        format!(r#"chroot "$1" apt-get --yes --no-install-recommends install {}"#, PACKAGES.join(" "));
    let output = Command::new(mmdebstrap)
        .args(["--mode=root", "--variant=minbase", "--include=ca-certificates"])
        .arg(format!("--customize-hook={snapshot}"))
        .arg(format!("--customize-hook={python}"))
        .arg(suite())
        .arg(full)
        .env("FLOE_DEMO_BASE", base)
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("running mmdebstrap")?;
    if output.status.success() {
        return drop_package_lists(base);
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let last: Vec<&str> = said.lines().rev().take(8).collect();
    Err(anyhow!("{}", last.into_iter().rev().collect::<Vec<_>>().join("\n")).context(Hint::new(
        "running mmdebstrap",
        "it needs a Debian mirror; floe demo --image REF uses an image of yours instead",
    )))
}

/// Removes from the copy what mmdebstrap removes from its own tree at the end. The package lists are larger than
/// all the rest, and no part of an image.
fn drop_package_lists(base: &Path) -> Result<()> {
    for dir in ["var/lib/apt/lists", "var/cache/apt", "tmp"] {
        for entry in
            fs::read_dir(base.join(dir)).with_context(|| format!("reading {dir} of the new system"))?
        {
            let entry = entry?;
            let path = entry.path();
            if entry.file_type()?.is_dir() { fs::remove_dir_all(&path) } else { fs::remove_file(&path) }
                .with_context(|| format!("removing {}", path.display()))?;
        }
    }
    Ok(())
}

/// The host's own release if it is a Debian, for its mirror then surely has it.
fn suite() -> String {
    let release = fs::read_to_string("/etc/os-release").unwrap_or_default();
    let field = |key: &str| {
        let line = release.lines().find_map(|line| line.strip_prefix(key)?.strip_prefix('='))?;
        Some(line.trim_matches('"').to_owned())
    };
    match (field("ID").as_deref(), field("VERSION_CODENAME")) {
        (Some("debian"), Some(name)) => name,
        _ => "bookworm".into(),
    }
}

fn find_mmdebstrap(say: &mut dyn FnMut(&str)) -> Result<PathBuf> {
    if let Some(found) = find("mmdebstrap") {
        return Ok(found);
    }
    let hint = "apt-get install mmdebstrap, or floe demo --image REF for an image of yours";
    let apt = find("apt-get").ok_or_else(|| {
        anyhow!("no mmdebstrap and no apt-get").context(Hint::new("looking for mmdebstrap", hint))
    })?;
    say("installing mmdebstrap by apt-get");
    let output = Command::new(apt)
        .args(["install", "--yes", "--no-install-recommends", "mmdebstrap"])
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .output()
        .context("running apt-get")?;
    match find("mmdebstrap") {
        Some(found) if output.status.success() => Ok(found),
        _ => Err(anyhow!("{}", String::from_utf8_lossy(&output.stderr).trim().to_owned())
            .context(Hint::new("installing mmdebstrap", hint))),
    }
}

/// Looks for a program where a root shell would.
pub(super) fn find(program: impl AsRef<OsStr>) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .chain(["/usr/local/bin", "/usr/bin", "/bin", "/usr/sbin", "/sbin"].map(PathBuf::from))
        .map(|dir| dir.join(program.as_ref()))
        .find(|file| file.is_file())
}

/// One layer of the layout.
struct Packed {
    digest: Digest,
    size: u64,
    diff_id: DiffId,
}

/// Packs what `top` has and `base` has not as a blob, by its digest.
fn pack(top: &Path, base: Option<&Path>, blobs: &Path) -> Result<Packed> {
    let gzip =
        find("pigz").or_else(|| find("gzip")).ok_or_else(|| anyhow!("neither pigz nor gzip is installed"))?;
    let unnamed = blobs.join("unnamed");
    let mut child = Command::new(gzip)
        .args(["-6", "-n", "-c"])
        .stdin(Stdio::piped())
        .stdout(File::create(&unnamed)?)
        .spawn()
        .context("running gzip")?;
    let stdin = child.stdin.take().context("gzip has no input")?;
    let mut plain = Hashing { hasher: DigestHasher::new(), out: BufWriter::with_capacity(1 << 18, stdin) };
    let written = layer::write(top, base, &mut plain).and_then(|()| plain.flush());
    let Hashing { hasher, out } = plain;
    drop(out); // the end of its input
    let status = child.wait()?;
    written.with_context(|| format!("packing {}", top.display()))?;
    if !status.success() {
        bail!("gzip failed: {status}");
    }
    let (digest, size) = digest_of(&unnamed)?;
    fs::rename(&unnamed, blobs.join(digest.hex()))?;
    Ok(Packed { digest, size, diff_id: DiffId::new(hasher.finish()) })
}

struct Hashing<W> {
    hasher: DigestHasher,
    out: W,
}

impl<W: Write> Write for Hashing<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let length = self.out.write(bytes)?;
        self.hasher.update(&bytes[..length]);
        Ok(length)
    }
    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}

fn digest_of(file: &Path) -> Result<(Digest, u64)> {
    let mut file = File::open(file)?;
    let (mut hasher, mut size, mut piece) = (DigestHasher::new(), 0, vec![0; 1 << 18]);
    loop {
        let length = file.read(&mut piece)?;
        if length == 0 {
            return Ok((hasher.finish(), size));
        }
        hasher.update(&piece[..length]);
        size += length as u64;
    }
}

fn write_layout(layout: &Path, layers: &[Packed]) -> Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    let history =
        ["a minimal Debian", "Python with NumPy, Pillow, cryptography and requests", "the application"]
            .map(|what| json!({ "created_by": what }));
    let diff_ids: Vec<String> = layers.iter().map(|layer| layer.diff_id.to_string()).collect();
    let config = json!({
        "created": "1970-01-01T00:00:00Z",
        "architecture": architecture,
        "os": "linux",
        "config": {
            "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "PYTHONDONTWRITEBYTECODE=1"],
            "Cmd": ["python3", "/app/main.py"],
            "WorkingDir": "/app",
        },
        "rootfs": { "type": "layers", "diff_ids": diff_ids },
        "history": history,
    });
    let config = write_blob(layout, &config)?;
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.manifest.v1+json",
        "config": { "mediaType": "application/vnd.oci.image.config.v1+json", "digest": config.0.to_string(), "size": config.1 },
        "layers": layers.iter().map(|layer| json!({
            "mediaType": "application/vnd.oci.image.layer.v1.tar+gzip",
            "digest": layer.digest.to_string(),
            "size": layer.size,
        })).collect::<Vec<_>>(),
    });
    let manifest = write_blob(layout, &manifest)?;
    let index = json!({
        "schemaVersion": 2,
        "mediaType": "application/vnd.oci.image.index.v1+json",
        "manifests": [{
            "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "digest": manifest.0.to_string(),
            "size": manifest.1,
            "annotations": { "org.opencontainers.image.ref.name": TAG },
            "platform": { "architecture": architecture, "os": "linux" },
        }],
    });
    fs::write(layout.join("oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#)?;
    fs::write(layout.join("index.json"), serde_json::to_vec(&index)?)?;
    Ok(())
}

fn write_blob(layout: &Path, document: &serde_json::Value) -> Result<(Digest, usize)> {
    let bytes = serde_json::to_vec(document)?;
    let digest = Digest::of(&bytes);
    fs::write(layout.join("blobs/sha256").join(digest.hex()), &bytes)?;
    Ok((digest, bytes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_layout_is_whole_and_true() {
        let dir = tempfile::tempdir().unwrap();
        let (top, layout) = (dir.path().join("top"), dir.path().join("layout"));
        fs::create_dir_all(top.join("app")).unwrap();
        fs::create_dir_all(layout.join("blobs/sha256")).unwrap();
        fs::write(top.join("app/main.py"), APPLICATION).unwrap();
        let packed = pack(&top, None, &layout.join("blobs/sha256")).unwrap();
        let mut plain = Vec::new();
        layer::write(&top, None, &mut plain).unwrap();
        assert_eq!(packed.diff_id, DiffId::new(Digest::of(&plain)));
        write_layout(&layout, &[packed]).unwrap();

        let read = |digest: &str| {
            let raw = fs::read(layout.join("blobs/sha256").join(&digest["sha256:".len()..])).unwrap();
            assert_eq!(Digest::of(&raw).to_string(), digest);
            raw
        };
        let index: oci_spec::image::ImageIndex =
            serde_json::from_slice(&fs::read(layout.join("index.json")).unwrap()).unwrap();
        let manifest = read(index.manifests()[0].digest().as_ref());
        let manifest: oci_spec::image::ImageManifest = serde_json::from_slice(&manifest).unwrap();
        let config = read(manifest.config().digest().as_ref());
        let config: oci_spec::image::ImageConfiguration = serde_json::from_slice(&config).unwrap();
        assert_eq!(manifest.layers().len(), config.rootfs().diff_ids().len());
        let blob = read(manifest.layers()[0].digest().as_ref());
        assert_eq!(manifest.layers()[0].size(), blob.len() as u64);
        assert!(!layout.join("blobs/sha256/unnamed").exists());
    }

    #[test]
    fn the_application_says_what_is_waited_for() {
        assert!(APPLICATION.contains(&format!("print(\"{READY}\"")));
    }
}
