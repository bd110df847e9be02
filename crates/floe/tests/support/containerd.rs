//! The containerds of several Debians, with a node's daemon as their snapshotter; and the service itself, asked by hand.

use std::collections::HashMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use containerd::services::snapshots::v1 as api;
use tonic::transport::Channel;
use tonic::{Code, Request};

use super::{Node, Outcome, until};

/// The snapshotter names that the tests' containerd knows; all of them are the one daemon.
pub const NAMES: [&str; 2] = ["floe", "stargz"];

/// Whose containerd: this machine's, or one that `scripts/containerd-versions` has unpacked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Release {
    Installed,
    Trixie,
    Sid,
}

/// Who fetches the images of pods.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Puller {
    /// CRI itself.
    Cri,
    /// containerd's transfer service, which does so for 2 unless it is told things that are for CRI only.
    Transfer,
}

/// Makes a test for each release of a function that takes one.
#[macro_export]
macro_rules! each_release {
    ($($test:ident),+ $(,)?) => {$(
        mod $test {
            use super::support::containerd::Release;

            #[test]
            fn installed() {
                super::$test(Release::Installed);
            }

            #[test]
            fn trixie() {
                super::$test(Release::Trixie);
            }

            #[test]
            fn sid() {
                super::$test(Release::Sid);
            }
        }
    )+};
}

impl Release {
    /// Returns where its files are as they would be in `/`, unless that is where they are.
    pub fn root(self) -> Option<PathBuf> {
        let name = match self {
            Self::Installed => return None,
            Self::Trixie => "trixie",
            Self::Sid => "sid",
        };
        let cache = std::env::var_os("XDG_CACHE_HOME").filter(|dir| !dir.is_empty()).map(PathBuf::from);
        let cache = cache.or_else(|| Some(PathBuf::from(std::env::var_os("HOME")?).join(".cache")));
        Some(cache.unwrap_or_default().join("floe-check").join(name))
    }

    /// Returns where one of its programs is.
    pub fn program(self, name: &str) -> Option<PathBuf> {
        match self.root() {
            None => super::program(name),
            Some(root) => Some(root.join("usr/bin").join(name)).filter(|file| file.exists()),
        }
    }

    /// Returns why it cannot run containers here, if it cannot.
    pub fn cannot_run(self) -> Option<String> {
        let missing = self.program("containerd").is_none() || super::program("runc").is_none();
        missing.then(|| match self {
            Self::Installed => "there is no containerd, or no runc".to_owned(),
            _ => format!("there is no containerd of {self:?} (scripts/containerd-versions), or no runc"),
        })
    }

    /// Returns who fetches the images of pods where nothing else is asked for.
    fn puller(self) -> Puller {
        if self == Self::Sid { Puller::Transfer } else { Puller::Cri }
    }

    /// Returns the configuration by which images of pods are lazy, and this one is what sandboxes run.
    fn for_pods(self, puller: Puller, sandbox: &str, cni: &Path) -> String {
        let cni = cni.display();
        match self {
            Self::Installed | Self::Trixie => {
                let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
                format!(
                    "version = 2\n[{cri}]\nsandbox_image = \"{sandbox}\"\nrestrict_oom_score_adj = true\n\
                     [{cri}.containerd]\nsnapshotter = \"floe\"\ndisable_snapshot_annotations = false\n\
                     [{cri}.cni]\nbin_dir = \"{cni}\"\nconf_dir = \"{cni}\"\n"
                )
            }
            Self::Sid => {
                let (images, pods) = ["images", "runtime"]
                    .map(|part| format!("plugins.\"io.containerd.cri.v1.{part}\""))
                    .into();
                let (annotated, unpacked) = match puller {
                    Puller::Cri => ("disable_snapshot_annotations = false\n", String::new()),
                    Puller::Transfer => ("", ["overlayfs", "floe"].map(unpacked_by).concat()),
                };
                format!(
                    "version = 3\n[{images}]\nsnapshotter = \"floe\"\n{annotated}\
                     [{images}.pinned_images]\nsandbox = \"{sandbox}\"\n\
                     [{pods}]\nrestrict_oom_score_adj = true\n\
                     [{pods}.cni]\nbin_dirs = [\"{cni}\"]\nconf_dir = \"{cni}\"\n{unpacked}"
                )
            }
        }
    }
}

/// A containerd of its own root, state and socket; ends when dropped, and its containers with it.
pub struct Containerd<'a> {
    release: Release,
    node: &'a Node,
    child: Option<Child>,
    dir: PathBuf,
}

impl<'a> Containerd<'a> {
    /// Starts the node's daemon, which believes the registry of this image, and a containerd beside it.
    pub fn start(release: Release, node: &'a Node, reference: &str) -> Self {
        Self::start_with(release, node, &trusting(reference))
    }

    /// Starts both with more in the node's configuration.
    pub fn start_with(release: Release, node: &'a Node, more: &str) -> Self {
        let theirs = "version = 2\ndisabled_plugins = [\"io.containerd.grpc.v1.cri\"]\n";
        Self::start_as(release, node, more, theirs)
    }

    /// Starts both, with kubelet's interface: its images are lazy, and this one is what sandboxes run.
    pub fn start_for_pods(release: Release, node: &'a Node, reference: &str) -> Self {
        Self::start_for_pods_of(release, release.puller(), node, reference)
    }

    /// Starts both, with the one or the other who fetches images.
    pub fn start_for_pods_of(release: Release, puller: Puller, node: &'a Node, reference: &str) -> Self {
        let theirs = release.for_pods(puller, reference, &node.path("cni"));
        Self::start_as(release, node, &trusting(reference), &theirs)
    }

    fn start_as(release: Release, node: &'a Node, more: &str, theirs: &str) -> Self {
        let dir = node.path("containerd");
        fs::create_dir_all(&dir).unwrap();
        let config = node.path("config.toml");
        let ours = format!(
            "{more}[containerd]\nsocket = \"{0}/floe.sock\"\nroot = \"{1}\"\n\
             image_service = \"{0}/images.sock\"\naddress = \"{0}/socket\"\n",
            dir.display(),
            node.store().display()
        );
        fs::write(&config, fs::read_to_string(&config).unwrap() + &ours).unwrap();
        // One of them is known to show owners shifted; of the other, clients change all owners.
        let (socket, store) = (dir.join("floe.sock"), node.store());
        let plugin = |name| floe::install::proxy(name, &socket, &store, name == "floe");
        let text = format!(
            "root = \"{0}/root\"\nstate = \"{0}/state\"\n{theirs}\
             [plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{0}/opt\"\n\
             [grpc]\naddress = \"{0}/socket\"\n{1}",
            dir.display(),
            NAMES.map(plugin).concat()
        );
        fs::write(dir.join("config.toml"), text).unwrap();
        node.ok(&["gc", "--dry-run"]); // starts the daemon
        let mut started = Self { release, node, child: None, dir };
        started.up();
        started
    }

    pub fn up(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.dir.join("log")).unwrap();
        let mut command = self.command("containerd");
        command.arg("--config").arg(self.dir.join("config.toml"));
        self.child = Some(command.stdout(Stdio::null()).stderr(log).spawn().unwrap());
        until("containerd answers", || self.ctr(&["version"]).status.success());
    }

    /// Starts it anew, with another snapshotter for the images of pods, which its configuration names first.
    pub fn images_by(&mut self, old: &str, new: &str) {
        let file = self.dir.join("config.toml");
        let config = fs::read_to_string(&file).unwrap();
        let line = |name| format!("\nsnapshotter = \"{name}\"\n");
        assert!(config.contains(&line(old)), "{config}");
        self.kill();
        fs::write(&file, config.replacen(&line(old), &line(new), 1)).unwrap();
        self.up();
    }

    /// Ends without a chance to tidy up.
    pub fn kill(&mut self) {
        if let Some(mut child) = self.child.take() {
            let _ = child.kill(); // it may have ended by itself
            let _ = child.wait();
        }
    }

    pub fn socket(&self) -> PathBuf {
        self.dir.join("socket")
    }

    /// Returns where kubelet asks for images, so that Floe hears it.
    pub fn images(&self) -> PathBuf {
        self.dir.join("images.sock")
    }

    /// Runs `ctr` to its end.
    pub fn ctr(&self, args: &[&str]) -> Outcome {
        let mut command = self.command("ctr");
        command.arg("--address").arg(self.socket()).args(args);
        self.node.spawn(command).end()
    }

    /// Returns a program of the release, ready to run.
    fn command(&self, name: &str) -> Command {
        self.beside(&self.release.program(name).unwrap())
    }

    /// Returns a program, ready to run; what it looks for by itself, a shim, is of the release too.
    pub fn beside(&self, program: &Path) -> Command {
        let containerd = self.release.program("containerd").unwrap();
        let path = std::env::var_os("PATH").unwrap_or_default();
        let dirs = containerd.parent().map(Path::to_owned).into_iter().chain(std::env::split_paths(&path));
        let mut command = Command::new(program);
        self.node.isolate(&mut command);
        command.env("PATH", std::env::join_paths(dirs).unwrap());
        command.env("CONTAINERD_NAMESPACE", self.namespace());
        command
    }

    /// Returns a namespace that no other test has: runc keeps containers by namespace and name, whatever containerd they are of.
    pub fn namespace(&self) -> String {
        self.dir.parent().unwrap().file_name().unwrap().to_str().unwrap().to_owned()
    }

    /// Runs `ctr` that must succeed; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let outcome = self.ctr(args);
        let log = || fs::read_to_string(self.dir.join("log")).unwrap_or_default();
        assert!(outcome.status.success(), "ctr {args:?}: {outcome:?}\n{}\n{}", log(), self.node.log());
        outcome.text()
    }

    /// Makes an image known by `floe pull`.
    pub fn pull(&self, reference: &str) {
        self.pull_as("floe", reference);
    }

    /// Makes an image known to one of the snapshotters.
    pub fn pull_as(&self, snapshotter: &str, reference: &str) {
        let outcome = self.try_pull_as(snapshotter, reference);
        assert!(outcome.status.success(), "{outcome:?}\n{}", self.node.log());
    }

    pub fn try_pull_as(&self, snapshotter: &str, reference: &str) -> Outcome {
        let to = format!("containerd={}", self.socket().display());
        let mut command = self.node.command(&["pull", "--to", &to, reference]);
        command.env("CONTAINERD_SNAPSHOTTER", snapshotter).env("CONTAINERD_NAMESPACE", self.namespace());
        self.node.spawn(command).end()
    }

    /// Returns the names of a snapshotter's snapshots, as containerd knows them.
    pub fn snapshots(&self, snapshotter: &str) -> Vec<String> {
        let listed = self.ok(&["snapshots", "--snapshotter", snapshotter, "ls"]);
        listed.lines().skip(1).filter_map(|line| line.split_whitespace().next()).map(str::to_owned).collect()
    }

    /// Has everything collected that nothing keeps, at once. It looks at a snapshotter only where something was removed.
    pub fn collect(&self) {
        // A list of what containerd knows to be none would ask no daemon.
        let probe = |verb| ["snapshots", "--snapshotter", "floe", verb, "probe"];
        until("a daemon serves containerd", || self.ctr(&probe("prepare")).status.success());
        self.ok(&probe("rm"));
        let lease = self.ok(&["leases", "create"]);
        self.ok(&["leases", "rm", "--sync", lease.trim()]);
    }

    /// Has a daemon serve it: it has none that would start another, or that is doing so.
    pub fn revive(&self) {
        self.node.run(&["gc", "--dry-run"]); // whether that may be done or not
        self.collect();
    }

    /// Returns a client of the node's service.
    pub fn service(&self) -> Service {
        Service::at(&self.dir.join("floe.sock"))
    }
}

/// Returns the configuration by which the transfer service unpacks into a snapshotter.
fn unpacked_by(snapshotter: &str) -> String {
    let arch = if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" };
    format!(
        "[[plugins.\"io.containerd.transfer.v1.local\".unpack_config]]\n\
         platform = \"linux/{arch}\"\nsnapshotter = \"{snapshotter}\"\n"
    )
}

/// Returns the configuration of a daemon that believes the registry of an image.
fn trusting(reference: &str) -> String {
    format!("[registry.\"{}\"]\ntrust = \"registry\"\n", reference.split_once('/').unwrap().0)
}

impl Drop for Containerd<'_> {
    fn drop(&mut self) {
        for line in String::from_utf8_lossy(&self.ctr(&["tasks", "ls", "-q"]).stdout).lines() {
            let _ = self.ctr(&["tasks", "rm", "-f", line]);
        }
        self.kill();
        // Shims outlive their containerd.
        for pid in fs::read_dir("/proc").unwrap().flatten() {
            let words = fs::read(pid.path().join("cmdline")).unwrap_or_default();
            if String::from_utf8_lossy(&words).contains(&*self.socket().to_string_lossy())
                && let Some(pid) = pid.file_name().to_str().and_then(|name| name.parse().ok())
                && let Some(pid) = rustix::process::Pid::from_raw(pid)
            {
                super::kill_and_wait(pid);
            }
        }
        // What runc and the cgroups keep of a namespace is empty by now.
        let groups = fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path());
        for dir in groups.chain(["/sys/fs/cgroup".into(), "/run/containerd/runc".into()]) {
            let own = dir.join(self.namespace());
            let _ = fs::remove_dir(own.join("buildkit")); // most never had one
            let _ = fs::remove_dir(own);
        }
    }
}

/// The snapshot service, asked as containerd does.
pub struct Service {
    runtime: tokio::runtime::Runtime,
    client: api::snapshots_client::SnapshotsClient<Channel>,
}

impl Service {
    pub fn at(socket: &Path) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let channel = runtime.block_on(floe::snapshotter::register::connect(socket)).unwrap();
        Self { runtime, client: api::snapshots_client::SnapshotsClient::new(channel) }
    }

    pub fn prepare(&mut self, key: &str, parent: &str, labels: &[(&str, &str)]) -> Result<Vec<String>, Code> {
        let labels = labels.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let asked = api::PrepareSnapshotRequest {
            snapshotter: "floe".into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        let answer = self.runtime.block_on(self.client.prepare(Request::new(asked)));
        Ok(shown(answer.map_err(|status| status.code())?.into_inner().mounts))
    }

    /// Makes a snapshot to look at.
    pub fn view(&mut self, key: &str, parent: &str) -> Result<Vec<String>, Code> {
        let asked = api::ViewSnapshotRequest {
            snapshotter: "floe".into(),
            key: key.into(),
            parent: parent.into(),
            labels: HashMap::new(),
        };
        let answer = self.runtime.block_on(self.client.view(Request::new(asked)));
        Ok(shown(answer.map_err(|status| status.code())?.into_inner().mounts))
    }

    /// Returns the kind and the parent of a snapshot.
    pub fn stat(&mut self, key: &str) -> Result<(api::Kind, String), Code> {
        let asked = api::StatSnapshotRequest { snapshotter: "floe".into(), key: key.into() };
        let answer = self.runtime.block_on(self.client.stat(Request::new(asked)));
        let info = answer.map_err(|status| status.code())?.into_inner().info.unwrap();
        Ok((info.kind(), info.parent))
    }

    /// Returns what somebody has to mount who uses a snapshot.
    pub fn mounts(&mut self, key: &str) -> Result<Vec<String>, Code> {
        let asked = api::MountsRequest { snapshotter: "floe".into(), key: key.into() };
        let answer = self.runtime.block_on(self.client.mounts(Request::new(asked)));
        Ok(shown(answer.map_err(|status| status.code())?.into_inner().mounts))
    }

    pub fn commit(&mut self, name: &str, key: &str, parent: &str) -> Result<(), Code> {
        let asked = api::CommitSnapshotRequest {
            snapshotter: "floe".into(),
            name: name.into(),
            key: key.into(),
            parent: parent.into(),
            ..Default::default()
        };
        let answer = self.runtime.block_on(self.client.commit(Request::new(asked)));
        answer.map(|_| ()).map_err(|status| status.code())
    }

    pub fn remove(&mut self, key: &str) -> Result<(), Code> {
        let asked = api::RemoveSnapshotRequest { snapshotter: "floe".into(), key: key.into() };
        let answer = self.runtime.block_on(self.client.remove(Request::new(asked)));
        answer.map(|_| ()).map_err(|status| status.code())
    }

    /// Has what is left of removed snapshots taken away.
    pub fn clean_up(&mut self) -> Result<(), Code> {
        let asked = api::CleanupRequest { snapshotter: "floe".into() };
        let answer = self.runtime.block_on(self.client.cleanup(Request::new(asked)));
        answer.map(|_| ()).map_err(|status| status.code())
    }

    /// Returns the names of what passes a filter.
    pub fn list(&mut self, filters: &[&str]) -> Result<Vec<String>, Code> {
        let filters = filters.iter().map(|filter| (*filter).to_owned()).collect();
        let asked = api::ListSnapshotsRequest { snapshotter: "floe".into(), filters };
        self.runtime.block_on(async {
            let mut pages =
                self.client.list(Request::new(asked)).await.map_err(|status| status.code())?.into_inner();
            let mut names = Vec::new();
            while let Some(page) = pages.message().await.map_err(|status| status.code())? {
                names.extend(page.info.into_iter().map(|info| info.name));
            }
            Ok(names)
        })
    }

    /// Changes a label; without value it goes.
    pub fn label(&mut self, name: &str, key: &str, value: &str) -> Result<Vec<String>, Code> {
        let info = api::Info {
            name: name.into(),
            labels: [(key.to_owned(), value.to_owned())].into(),
            ..Default::default()
        };
        let mask = prost_types::FieldMask { paths: vec![format!("labels.{key}")] };
        let asked = api::UpdateSnapshotRequest {
            snapshotter: "floe".into(),
            info: Some(info),
            update_mask: Some(mask),
        };
        let answer = self.runtime.block_on(self.client.update(Request::new(asked)));
        let info = answer.map_err(|status| status.code())?.into_inner().info.unwrap();
        let mut labels: Vec<_> =
            info.labels.into_iter().map(|(key, value)| format!("{key}={value}")).collect();
        labels.sort();
        Ok(labels)
    }

    pub fn usage(&mut self, key: &str) -> Result<i64, Code> {
        let asked = api::UsageRequest { snapshotter: "floe".into(), key: key.into() };
        let answer = self.runtime.block_on(self.client.usage(Request::new(asked)));
        answer.map(|usage| usage.into_inner().size).map_err(|status| status.code())
    }
}

fn shown(mounts: Vec<containerd::types::Mount>) -> Vec<String> {
    let shown = |mount: containerd::types::Mount| {
        format!("{} {} {}", mount.r#type, mount.source, mount.options.join(","))
    };
    mounts.into_iter().map(shown).collect()
}
