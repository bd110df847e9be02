"""Floe as a snapshotter of containerd: `floe pull --to containerd`, then `ctr run`.

Daemon and containerd are up before the clock starts, as services are. What counts is the sum of both and of their commands.
"""
import os
from contextlib import closing, contextmanager

from harness import containerd, floe, machine, procfs, registry


class Through(floe.Floe):
    """One of three systems, as those of `floe.Floe`."""

    TITLES = {"ctr-first": "containerd with Floe, no index anywhere", "ctr-index": "containerd with Floe, index in the registry",
              "ctr-profile": "containerd with Floe, index and profile"}

    @contextmanager
    def session(self, image):
        root = f"{self._root}.containerd"
        socket = f"{root}/floe.sock"
        machine.retire(root)
        os.makedirs(root)
        try:
            with floe.fresh_store(self._binary, self._root, self._path, socket) as store:
                store.command("gc", "--dry-run")  # starts the daemon
                plugin = f'[proxy_plugins.floe]\ntype = "snapshot"\naddress = "{socket}"\n'
                reference = self._reference(image).removeprefix("docker://")
                with closing(self.SESSION(root, image, self._deadline, plugin, store, reference)) as session:
                    yield session
        finally:
            machine.retire(root)


class Session(containerd.Session):
    SNAPSHOTTER = "floe"

    def __init__(self, root, image, deadline, plugin, store, reference):
        self.store, self._reference, self.socket = store, reference, f"{root}/socket"
        super().__init__(root, image, deadline, plugin)

    def rest(self):
        super().rest()
        self._used = sum(procfs.cpu_seconds(pid) for pid in self.store.pids())

    def reference(self):
        return self._reference

    def pull(self, reference):
        return self.start(self.store.argv("pull", "--to", f"containerd={self.socket}", reference))

    def pids(self):
        return list({*super().pids(), *self.store.pids()})

    def cpu_seconds(self):
        daemon = {*self.store.pids()} - {client.pid for client in self._clients}
        return super().cpu_seconds() + sum(procfs.cpu_seconds(pid) for pid in daemon) - self._used


Through.SESSION = Session
