//! Docker with a containerd's images, whose snapshotter is a node's daemon; and BuildKit, which it has built in.

use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use rustix::process::{Pid, Signal, kill_process};

use super::containerd::{Containerd, Release};
use super::{Node, Outcome, until};

/// Returns why no Docker can run here, if none can.
pub fn cannot_run() -> Option<String> {
    let missing = || program("usr/sbin/dockerd").is_none() || program("usr/bin/docker").is_none();
    Release::Sid
        .cannot_run()
        .or_else(|| missing().then(|| "there is no Docker of Sid (scripts/containerd-versions)".to_owned()))
}

fn program(path: &str) -> Option<PathBuf> {
    Some(Release::Sid.root()?.join(path)).filter(|file| file.exists())
}

/// A dockerd beside a containerd, of its own root, state and socket; ends when dropped.
pub struct Docker<'a> {
    node: &'a Node,
    containerd: &'a Containerd<'a>,
    child: Child,
    dir: PathBuf,
}

impl<'a> Docker<'a> {
    /// Starts one whose images are of one of the containerd's snapshotters.
    pub fn start(node: &'a Node, containerd: &'a Containerd<'a>, snapshotter: &str) -> Self {
        let dir = node.path("docker");
        let plugins = dir.join("client/cli-plugins");
        fs::create_dir_all(&plugins).unwrap();
        let buildx = program("usr/libexec/docker/cli-plugins/docker-buildx").unwrap();
        std::os::unix::fs::symlink(buildx, plugins.join("docker-buildx")).unwrap();
        // What would change this machine's network is off.
        let config = serde_json::json!({
            "hosts": [format!("unix://{}", dir.join("socket").display())],
            "data-root": dir.join("root"),
            "exec-root": dir.join("state"),
            "pidfile": dir.join("pid"),
            "containerd": containerd.socket(),
            "containerd-namespace": containerd.namespace(),
            "containerd-plugins-namespace": containerd.namespace(),
            "cgroup-parent": format!("/{}", containerd.namespace()),
            "storage-driver": snapshotter,
            "features": { "containerd-snapshotter": true },
            "bridge": "none",
            "iptables": false,
            "ip6tables": false,
            "userland-proxy": false,
        });
        fs::write(dir.join("daemon.json"), config.to_string()).unwrap();
        let log = fs::File::create(dir.join("log")).unwrap();
        let mut command = containerd.beside(&program("usr/sbin/dockerd").unwrap());
        command.arg("--config-file").arg(dir.join("daemon.json"));
        let child = command.stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let mut started = Self { node, containerd, child, dir };
        until("dockerd answers", || {
            let ended = started.child.try_wait().unwrap();
            assert!(ended.is_none(), "dockerd: {ended:?}\n{}", started.log());
            started.docker(&["version"]).status.success()
        });
        started
    }

    /// Runs `docker` to its end.
    pub fn docker(&self, args: &[&str]) -> Outcome {
        self.node.spawn(self.command(args)).end()
    }

    /// Returns a command of `docker`, ready to run.
    pub fn command(&self, args: &[&str]) -> Command {
        let mut command = self.containerd.beside(&program("usr/bin/docker").unwrap());
        command.env("DOCKER_CONFIG", self.dir.join("client")).env("BUILDKIT_PROGRESS", "plain");
        command.arg("--host").arg(format!("unix://{}", self.dir.join("socket").display())).args(args);
        command
    }

    /// Runs `docker` that must succeed; returns what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        self.must(args, self.docker(args))
    }

    /// Returns what a command printed that must have succeeded.
    pub fn must(&self, args: &[&str], outcome: Outcome) -> String {
        let log = || format!("{}\n{}", self.log(), self.node.log());
        assert!(outcome.status.success(), "docker {args:?}: {outcome:?}\n{}", log());
        outcome.text()
    }

    /// Returns what dockerd logged.
    pub fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }

    /// Makes a directory to build from, of a Dockerfile and files beside it.
    pub fn context(&self, name: &str, dockerfile: &str, files: &[(&str, &str)]) -> PathBuf {
        let dir = self.dir.join("contexts").join(name);
        fs::create_dir_all(&dir).unwrap();
        for (file, text) in [("Dockerfile", dockerfile)].iter().chain(files) {
            fs::write(dir.join(file), text).unwrap();
        }
        dir
    }
}

impl Drop for Docker<'_> {
    fn drop(&mut self) {
        // It takes its own mounts away when it is asked to end.
        if let Some(pid) = i32::try_from(self.child.id()).ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::TERM); // it may have ended by itself
        }
        let _ = self.child.wait();
    }
}
