"""The full pull to compare with: containerd with its overlayfs snapshotter, driven by ctr.

A private containerd (own root, state, socket and configuration), so nothing on the machine is touched and every round begins
with nothing. `ctr image pull` fetches all layers, then unpacks them; containerd decompresses with unpigz where it is
installed, and the lab installs it: that is its faster way.
"""
import os
import time
from contextlib import closing, contextmanager

from harness import machine, procfs, ready, registry
from harness.process import Child, run, until

PACKAGES = ["containerd", "runc", "pigz"]
VERSIONS = {"containerd": ["containerd", "--version"], "runc": ["runc", "--version"]}
CONFIG = """\
version = 2
root = "{root}/root"
state = "{root}/state"
disabled_plugins = [{disabled}"io.containerd.internal.v1.opt", "io.containerd.snapshotter.v1.btrfs",
  "io.containerd.snapshotter.v1.zfs", "io.containerd.snapshotter.v1.aufs", "io.containerd.snapshotter.v1.devmapper"]
[grpc]
address = "{root}/socket"
"""


class Containerd:
    name = "containerd"
    title = "containerd, full pull"
    repositories = ()  # of its own: none, it pulls the plain image

    def __init__(self, home, deadline):
        self._root = os.path.join(home, self.name)
        self._deadline = deadline

    def prepare(self, images, registry_):
        """Nothing: the images are in the registry."""

    @contextmanager
    def session(self, image):
        """A containerd that has never seen anything."""
        machine.retire(self._root)
        os.makedirs(self._root)
        try:
            with closing(self.SESSION(self._root, image, self._deadline)) as session:
                yield session
        finally:
            machine.retire(self._root)


class Session:
    """A containerd on a root of its own, and one image pulled and run there."""

    SNAPSHOTTER = "overlayfs"
    PODS = False  # whether it has CRI

    def __init__(self, root, image, deadline, more=""):
        """`more` is added to its configuration."""
        self._root, self._image, self._deadline, self._more = root, image, deadline, more
        self._log = f"{root}/log"
        self.ctr = ["ctr", "--address", f"{root}/socket"]
        self._clients = []
        self._pulled = None
        config = f"{root}/config.toml"
        with open(config, "w") as out:
            disabled = "" if self.PODS else '"io.containerd.grpc.v1.cri", '
            out.write(CONFIG.format(root=root, disabled=disabled) + self.more())
        self._daemon = Child(["containerd", "--config", config, "--log-level", "warn"], stderr=self._log)
        try:
            until(lambda: os.path.exists(f"{root}/socket"), "containerd's socket", 20)
            run([*self.ctr, "version"], deadline=30)
            self.up()
            self.rest()
        except BaseException:
            self.close()
            raise

    def more(self):
        """Returns what is added to the configuration."""
        return self._more

    def up(self):
        """What else has to be there before the clock starts."""

    def rest(self):
        """CPU counts from here on."""
        self._before = procfs.cpu_seconds(self._daemon.pid, children=True)

    def to_ready(self):
        """Pulls and runs; returns the moments of the start and of READY."""
        reference = self.reference()
        start = time.monotonic()
        pull = self.pull(reference)
        if pull.wait(self._deadline):
            raise pull.complaint()
        pulled = time.monotonic()
        container = self._client("run", "--rm", "--net-host", "--snapshotter", self.SNAPSHOTTER, reference, "bench")
        end = ready.wait(container, self._image.ready, self._deadline)
        self._pulled = pulled - start
        return start, end

    def reference(self):
        return f"{registry.ADDRESS}/{self._image.name}:{self._image.tag}"

    def pull(self, reference):
        """Starts to pull."""
        return self._client("image", "pull", "--plain-http", "--snapshotter", self.SNAPSHOTTER, reference)

    def finish(self):
        """Returns what else is known of the run."""
        return dict(pull_seconds=self._pulled)

    def pids(self):
        """Returns the processes that count: the daemon and ctr, which does the fetching. Not the shim, not the container."""
        return [self._daemon.pid] + [client.pid for client in self._clients]

    def cpu_seconds(self):
        daemon = procfs.cpu_seconds(self._daemon.pid, children=True) - self._before  # its children are the unpigz
        return daemon + sum(client.cpu_seconds() for client in self._clients)

    def close(self):
        for client in self._clients:
            client.stop(1)  # ctr passes the signal on; a container that stays is ended with its shim by machine.wipe
        self._daemon.stop()

    def _client(self, *words):
        return self.start([*self.ctr, *words])

    def start(self, argv, **options):
        """Starts a command that counts."""
        client = Child(argv, stderr=self._log, **options)
        self._clients.append(client)
        return client


Containerd.SESSION = Session
