//! Debian's buildah and podman, with a storage of their own and a node's daemon as their additional layer store.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use format::Digest;
use registry::Pick;
use serde_json::Value;

use super::image::{client, name};
use super::{Node, Outcome};

/// Returns why containers cannot be built and run here, if they cannot.
pub fn cannot_run() -> Option<&'static str> {
    let missing =
        ["buildah", "podman", "runc", "conmon"].into_iter().any(|name| super::program(name).is_none());
    missing.then_some("there is no buildah, podman, runc or conmon")
}

/// A storage; what is mounted in it goes with its node.
pub struct Storage<'a> {
    node: &'a Node,
    dir: PathBuf,
}

impl<'a> Storage<'a> {
    /// Starts the node's daemon, which believes the registry of this image, with a storage that looks layers up there.
    pub fn start(node: &'a Node, reference: &str) -> Self {
        let host = reference.split_once('/').unwrap().0;
        Self::start_with(node, reference, &format!("[registry.\"{host}\"]\ntrust = \"registry\"\n"))
    }

    /// The same, with more in the node's configuration.
    pub fn start_with(node: &'a Node, reference: &str, more: &str) -> Self {
        let dir = node.path("containers");
        fs::create_dir_all(dir.join("context")).unwrap();
        let started = Self { node, dir };
        let config = node.path("config.toml");
        let ours = format!(
            "{more}[layers]\ndir = \"{}\"\nroot = \"{}\"\n",
            started.names().display(),
            node.store().display()
        );
        fs::write(&config, fs::read_to_string(&config).unwrap() + &ours).unwrap();
        let storage = format!(
            "[storage]\ndriver = \"overlay\"\nrunroot = \"{0}/run\"\ngraphroot = \"{0}/graph\"\n\
             [storage.options]\nadditionallayerstores = [\"{1}:ref\"]\n",
            started.dir.display(),
            started.names().display()
        );
        let host = reference.split_once('/').unwrap().0;
        let registries = format!("[[registry]]\nlocation = \"{host}\"\ninsecure = true\n");
        let containers = format!(
            "[containers]\ndefault_ulimits = [\"nofile=1024:1024\", \"nproc=1024:1024\"]\nnetns = \"host\"\nlog_driver = \"k8s-file\"\n\
             [engine]\nruntime = \"runc\"\ncgroup_manager = \"cgroupfs\"\nevents_logger = \"none\"\n\
             tmp_dir = \"{0}/tmp\"\nstatic_dir = \"{0}/static\"\nvolume_path = \"{0}/volumes\"\n",
            started.dir.display()
        );
        let policy = r#"{"default":[{"type":"insecureAcceptAnything"}]}"#;
        for (file, text) in [
            ("storage.conf", &*storage),
            ("registries.conf", &registries),
            ("containers.conf", &containers),
            ("home/.config/containers/policy.json", policy),
        ] {
            started.file(&format!("../{file}"), text);
        }
        node.ok(&["gc", "--dry-run"]); // starts the daemon
        started
    }

    /// Returns where layers are shown.
    pub fn names(&self) -> PathBuf {
        self.node.path("layers")
    }

    /// Returns where a layer of an image is shown.
    pub fn layer(&self, reference: &str, digest: &str) -> PathBuf {
        self.names().join(BASE64.encode(reference)).join(digest)
    }

    /// Writes a file where images are built from.
    pub fn file(&self, path: &str, text: &str) {
        let path = self.dir.join("context").join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }

    pub fn buildah(&self, args: &[&str]) -> Outcome {
        self.tool("buildah", args)
    }

    pub fn podman(&self, args: &[&str]) -> Outcome {
        self.tool("podman", args)
    }

    /// Makes a container of buildah's.
    pub fn container(&self, reference: &str) -> Container<'_> {
        let made = self.buildah(&["from", reference]);
        assert!(made.status.success(), "{made:?}\n{}", self.node.log());
        Container { storage: self, name: made.text().trim().to_owned() }
    }

    /// Runs a container of podman's that must succeed; returns what it printed. It takes podman 20 s where process 1 waits for no
    /// orphans.
    pub fn run(&self, reference: &str, words: &[&str]) -> String {
        let base = ["run", "--rm", "--network=host", reference];
        let ran = self.podman(&[&base[..], words].concat());
        assert!(ran.status.success(), "{words:?}: {ran:?}\n{}", self.node.log());
        ran.text()
    }

    fn tool(&self, name: &str, args: &[&str]) -> Outcome {
        self.node.spawn(self.command(name, args)).end()
    }

    /// Returns a command of one of the tools, ready to run.
    pub fn command(&self, name: &str, args: &[&str]) -> Command {
        let mut command = Command::new(super::program(name).unwrap());
        self.node.isolate(&mut command);
        let home = self.dir.join("home");
        command.args(args).current_dir(self.dir.join("context"));
        command.env("HOME", &home).env("XDG_CONFIG_HOME", home.join(".config")).env("TMPDIR", &self.dir);
        for (variable, file) in [
            ("CONTAINERS_STORAGE_CONF", "storage.conf"),
            ("CONTAINERS_REGISTRIES_CONF", "registries.conf"),
            ("CONTAINERS_CONF", "containers.conf"),
        ] {
            command.env(variable, self.dir.join(file));
        }
        command
    }

    /// Returns how many bytes of layers the storage has unpacked.
    pub fn layers_taken(&self) -> u64 {
        fn below(dir: &Path) -> u64 {
            let entries = fs::read_dir(dir).into_iter().flatten().flatten();
            let size = |entry: fs::DirEntry| {
                let metadata = entry.metadata().unwrap(); // of a link itself
                if metadata.is_dir() { below(&entry.path()) } else { metadata.blocks() * 512 }
            };
            entries.map(size).sum()
        }
        below(&self.dir.join("graph/overlay"))
    }

    /// Returns the digests of the layers that a registry has for a reference, bottom first.
    pub fn layers_of(&self, reference: &str) -> Vec<Digest> {
        let name = name(reference);
        let manifest = tokio::runtime::Runtime::new().unwrap().block_on(async {
            let repository = client().repository(name.host(), name.repository());
            repository.manifest(&Pick::of(&name)).await.unwrap()
        });
        let manifest: Value = serde_json::from_slice(&manifest.bytes).unwrap();
        let digest = |layer: &Value| layer["digest"].as_str().unwrap().parse().unwrap();
        manifest["layers"].as_array().unwrap().iter().map(digest).collect()
    }
}

/// A container of buildah's; removed when dropped.
pub struct Container<'a> {
    storage: &'a Storage<'a>,
    name: String,
}

impl Container<'_> {
    /// Runs something that must succeed in it; returns what it printed.
    pub fn run(&self, words: &[&str]) -> String {
        let base = ["run", "--isolation", "chroot", &self.name, "--"];
        let ran = self.storage.buildah(&[&base[..], words].concat());
        assert!(ran.status.success(), "{words:?}: {ran:?}\n{}", self.storage.node.log());
        ran.text()
    }
}

impl Drop for Container<'_> {
    fn drop(&mut self) {
        self.storage.buildah(&["rm", &self.name]);
    }
}
