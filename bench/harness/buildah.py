"""Builds by buildah: with its overlay storage, and with Floe as the additional layer store of that.

The storage has never seen anything. buildah has no daemon; Floe's is up before the clock starts. The caller has mounts of its own.
"""
import os
from contextlib import contextmanager

from harness import floe, machine, registry
from harness.process import run

PACKAGES = ["buildah"]
KNOWS = "/var/lib/containers"  # where, besides its storage, buildah keeps what it knows of blobs; no option says where else


class Buildah:
    """buildah with overlay."""

    name, title = "buildah-overlay", "buildah, overlay"

    def __init__(self, home):
        self._root = os.path.join(home, self.name)

    @contextmanager
    def session(self):
        machine.retire(self._root)
        os.makedirs(self._root)
        try:
            with _knows_nothing(f"{self._root}/knows"), self._layers() as layers:
                yield Session(self._root, layers)
        finally:
            machine.retire(self._root)

    @contextmanager
    def _layers(self):
        yield ""


class Floe(Buildah):
    name, title = "buildah-floe", "buildah, Floe"

    def __init__(self, home, binary, path):
        super().__init__(home)
        self._binary, self._path = binary, path

    @contextmanager
    def _layers(self):
        layers = f"{self._root}/layers"
        with floe.fresh_store(self._binary, f"{self._root}.store", self._path, layers=layers) as store:
            store.command("gc", "--dry-run")  # starts the daemon
            yield f'[storage.options]\nadditionallayerstores = ["{layers}:ref"]\n'


class Session:
    """A storage."""

    def __init__(self, root, layers):
        self.root, self.log = root, f"{root}/log"
        files = {"storage.conf": f'[storage]\ndriver = "overlay"\nrunroot = "{root}/run"\ngraphroot = "{root}/graph"\n{layers}',
                 "registries.conf": f'[[registry]]\nlocation = "{registry.ADDRESS}"\ninsecure = true\n',
                 "containers.conf": '[containers]\nnetns = "host"\n',
                 "home/.config/containers/policy.json": '{"default": [{"type": "insecureAcceptAnything"}]}'}
        for name, text in files.items():
            os.makedirs(os.path.dirname(f"{root}/{name}"), exist_ok=True)
            with open(f"{root}/{name}", "w") as out:
                out.write(text)
        os.makedirs(f"{root}/tmp")
        self.env = {**os.environ, "HOME": f"{root}/home", "XDG_CONFIG_HOME": f"{root}/home/.config", "TMPDIR": f"{root}/tmp",
                    "CONTAINERS_STORAGE_CONF": f"{root}/storage.conf", "CONTAINERS_REGISTRIES_CONF": f"{root}/registries.conf",
                    "CONTAINERS_CONF": f"{root}/containers.conf"}

    def build(self, context, target):
        """Returns the command that builds."""
        return ["buildah", "bud", "--isolation", "chroot", "--tag", target, context]

    def push(self, _context, target):
        """Returns the command that pushes what was built."""
        return ["buildah", "push", "--quiet", target, f"docker://{target}"]


@contextmanager
def _knows_nothing(folder):
    """Hides what builds of this machine have left, and keeps what ours leave away from it."""
    os.makedirs(folder)
    os.makedirs(KNOWS, exist_ok=True)
    run(["mount", "--bind", folder, KNOWS])
    try:
        yield
    finally:
        run(["umount", "-l", KNOWS])
