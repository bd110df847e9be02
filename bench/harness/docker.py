"""Builds by Docker, whose BuildKit is built in: with containerd's overlayfs, and with Floe as a snapshotter that is called stargz.

Docker and containerd are Debian sid's, unpacked into the lab. Both are up before the clock starts, as is Floe's daemon, on folders that have never
seen anything. BuildKit leaves a base unfetched only if its snapshotter has that name.
"""
import json
import os
from contextlib import closing, contextmanager

from harness import floe, later, machine, registry
from harness.process import Child, run, until

PACKAGES = ["runc"]
LATER = ["containerd", "docker.io", "docker-cli", "docker-buildx"]
NAMESPACE = "floe-bench"  # of containerd's, and the cgroup
CONTAINERD = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime"]
[plugins."io.containerd.internal.v1.opt"]
path = "{root}/opt"
[grpc]
address = "{root}/socket"
[ttrpc]
address = "{root}/socket.ttrpc"
"""
PLUGIN = """\
[proxy_plugins.stargz]
type = "snapshot"
address = "{socket}"
[proxy_plugins.stargz.exports]
enable_remote_snapshot_annotations = "true"
"""


class Docker:
    """Docker with containerd's overlayfs."""

    name, title = "docker-overlayfs", "Docker, overlayfs"
    SNAPSHOTTER = "overlayfs"

    def __init__(self, home, programs):
        self._root, self._programs = os.path.join(home, self.name), programs

    @contextmanager
    def session(self):
        machine.retire(self._root)
        os.makedirs(self._root)
        try:
            with self._snapshotter() as plugin, closing(Session(self._root, self._programs, self.SNAPSHOTTER, plugin)) as session:
                yield session
        finally:
            machine.retire(self._root)
            machine.release(NAMESPACE)

    @contextmanager
    def _snapshotter(self):
        yield ""


class Floe(Docker):
    name, title = "docker-floe", "Docker, Floe"
    SNAPSHOTTER = "stargz"

    def __init__(self, home, programs, binary, path):
        super().__init__(home, programs)
        self._binary, self._path = binary, path

    @contextmanager
    def _snapshotter(self):
        socket = f"{self._root}/floe.sock"
        with floe.fresh_store(self._binary, f"{self._root}.store", self._path, socket) as store:
            store.command("gc", "--dry-run")  # starts the daemon
            yield PLUGIN.format(socket=socket)


class Session:
    """A containerd and a dockerd."""

    def __init__(self, root, programs, snapshotter, plugin):
        self.root, self.log = root, f"{root}/log"
        self._daemons = []
        self.env = {**os.environ, "PATH": later.path(programs), "DOCKER_CONFIG": f"{root}/client", "BUILDKIT_PROGRESS": "plain"}
        self._docker = ["docker", "--host", f"unix://{root}/docker.sock"]
        os.makedirs(f"{root}/client/cli-plugins")
        os.symlink(f"{programs}/usr/libexec/docker/cli-plugins/docker-buildx", f"{root}/client/cli-plugins/docker-buildx")
        with open(f"{root}/containerd.toml", "w") as out:
            out.write(CONTAINERD.format(root=root) + plugin)
        # What would change the machine's network is off.
        config = {"hosts": [f"unix://{root}/docker.sock"], "data-root": f"{root}/docker", "exec-root": f"{root}/docker.state", "pidfile": f"{root}/docker.pid",
                  "containerd": f"{root}/socket", "containerd-namespace": NAMESPACE, "containerd-plugins-namespace": NAMESPACE,
                  "cgroup-parent": f"/{NAMESPACE}", "storage-driver": snapshotter, "features": {"containerd-snapshotter": True},
                  "insecure-registries": [registry.ADDRESS], "bridge": "none", "iptables": False, "ip6tables": False, "userland-proxy": False}
        with open(f"{root}/daemon.json", "w") as out:
            json.dump(config, out)
        try:
            self._start("containerd", "--config", f"{root}/containerd.toml", "--log-level", "warn")
            until(lambda: os.path.exists(f"{root}/socket"), "containerd's socket", 20)
            self._start("dockerd", "--config-file", f"{root}/daemon.json", "--log-level", "warn")
            until(self._answers, f"dockerd (its log is {self.log})", 60, 0.1)
            run([*self._docker, "version"], env=self.env)
        except BaseException:
            self.close()
            raise

    def build(self, context, _target):
        """Returns the command that builds and keeps the result to itself."""
        return self._build("type=cacheonly", context)

    def push(self, context, target):
        """Returns the command that pushes what was built."""
        return self._build(f"type=image,name={target},push=true,store=false", context)

    def close(self):
        for daemon in reversed(self._daemons):
            daemon.stop(30)  # dockerd takes its own mounts away

    def _build(self, output, context):
        return [*self._docker, "build", "--network=none", "--provenance=false", "--output", output, context]

    def _start(self, *words):
        self._daemons.append(Child(words, stderr=self.log, env=self.env))

    def _answers(self):
        if self._daemons[-1].ended():
            raise self._daemons[-1].complaint()
        return os.path.exists(f"{self.root}/docker.sock")
