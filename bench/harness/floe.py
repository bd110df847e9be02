"""Floe's command line as the bench uses it. Nothing else in the bench knows it.

Systems, each starting from a store that has never seen anything; they differ in what the registry holds beside the
image. Each has a repository of its own, so that no index made for one is found by another:

- `floe-first`    the image alone: streamed and indexed on the way;
- `floe-index`    the image and its index artifact;
- `floe-profile`  the same, with the profile of one earlier run shipped in the artifact;
- `floe-estargz`, `floe-zstdchunked`   no index, but the image is converted: lazy by the tables of its layers;
- `floe-nydus`    the same, by the tree in its last layer; started by digest, as the name stands for the original too;
- `floe-FORMAT-ordered`   made by `floe optimize` instead, from what an earlier run has recorded; `floe-oci-ordered` is an
  ordinary image with its index.
"""
import json
import os
import time
from contextlib import closing, contextmanager

from harness import machine, procfs, ready, registry
from harness.process import Child, Failed, run, talk

HERE = os.path.dirname(os.path.abspath(__file__))
PROJECT = os.path.normpath(os.path.join(HERE, "..", ".."))
PACKAGES = ["runc", "fuse3"]
CONFIG = f'[registry."{registry.ADDRESS}"]\nplain_http = true\n'


def build():
    """Builds floe in release and returns the path of the binary."""
    command = ["cargo", "build", "--release", "--locked", "--package", "floe", "--bin", "floe"]
    talk(command, cwd=PROJECT)
    for line in run([*command, "--message-format=json"], cwd=PROJECT).splitlines():  # built already: this only asks where
        message = json.loads(line)
        if message.get("reason") == "compiler-artifact" and message["target"]["name"] == "floe" and message.get("executable"):
            return message["executable"]
    raise Failed("cargo did not say where it put floe")


# What `floe convert` is told to make, by the system that reads it.
FORMATS = {"floe-estargz": "estargz", "floe-zstdchunked": "zstdchunked", "floe-nydus": "nydus"}
ORDERED = {f"{name}-ordered": format_ for name, format_ in (FORMATS | {"floe-oci": "oci"}).items()}  # and `floe optimize`
NYDUS = "application/vnd.nydus.image.manifest.v1+json"  # what an image index calls such an image


class Floe:
    """One of the systems."""

    TITLES = {"floe-first": "Floe, no index anywhere", "floe-index": "Floe, index in the registry",
              "floe-profile": "Floe, index and profile", "floe-estargz": "Floe, converted to eStargz",
              "floe-zstdchunked": "Floe, converted to zstd:chunked", "floe-nydus": "Floe, converted to Nydus",
              "floe-estargz-ordered": "Floe, optimized eStargz", "floe-zstdchunked-ordered": "Floe, optimized zstd:chunked",
              "floe-nydus-ordered": "Floe, optimized Nydus", "floe-oci-ordered": "Floe, optimized, index in the registry"}

    def __init__(self, name, binary, home, deadline, path):
        self.name, self.title = name, self.TITLES[name]
        self.repositories = (name,)
        self._digests = {}  # of images that no tag leads to
        self._deadline = deadline
        self._binary = binary
        self._path = path
        self._root = os.path.join(home, name)

    def prepare(self, images, registry_):
        """Pushes the images, and what the system finds beside them, over the link as it is before it is shaped."""
        for image in images:
            if format_ := (FORMATS | ORDERED).get(self.name):
                source = f"oci:{image.layout}:{image.tag}"
                with fresh_store(self._binary, self._root, self._path) as store:
                    if self.name in ORDERED:
                        self._record(store, source, image)
                    store.command("optimize" if self.name in ORDERED else "convert", source, self._reference(image), "--format", format_)
                    if format_ == "oci":
                        store.command("index", self._reference(image), "--push")
                if format_ == "nydus":
                    self._digests[image.name] = registry_.entry(self._reference(image).removeprefix("docker://"), NYDUS)
                continue
            registry_.push(image, f"{self.name}/{image.name}")
            if self._ships("first"):
                continue
            with fresh_store(self._binary, self._root, self._path) as store:
                profile = []
                if self._ships("profile"):
                    self._record(store, self._reference(image), image)
                    profile = ["--profile"]  # what the run just recorded
                store.command("index", self._reference(image), *profile, "--push")

    def _record(self, store, reference, image):
        """Runs an image, and leaves in the store what that has read."""
        with closing(_Session(store, reference, image.ready, self._deadline)) as session:
            session.to_ready()
            session.finish()

    @contextmanager
    def session(self, image):
        """A store that has never seen anything; no daemon runs, `floe run` starts it."""
        with fresh_store(self._binary, self._root, self._path) as store:
            with closing(_Session(store, self._reference(image), image.ready, self._deadline)) as session:
                yield session

    def _ships(self, what):
        """Says whether the registry holds this beside the image: first, index or profile."""
        return self.name.endswith(f"-{what}")

    def _reference(self, image):
        digest = self._digests.get(image.name)
        return f"docker://{registry.ADDRESS}/{self.name}/{image.name}" + (f"@{digest}" if digest else f":{image.tag}")


@contextmanager
def fresh_store(binary, root, path="auto", containerd=None, layers=None):
    """A store that has never seen anything, and beside it an empty directory to mount on; its daemon serves containerd at a socket,
    and shows layers to buildah in a directory, if one is given."""
    places = (root, f"{root}.mnt")
    for place in places:
        machine.retire(place)
        os.makedirs(place)
    try:
        with closing(_Store(binary, *places, path, containerd, layers)) as store:
            yield store
    finally:
        for place in reversed(places):
            machine.retire(place)


def mounted_root(home):
    """Returns the root of the store of `mounted`."""
    return os.path.join(home, "floe-mounted")


@contextmanager
def mounted(binary, home, image, path="auto"):
    """Pulls an image of the lab and mounts it, everything local; yields the mount point."""
    with fresh_store(binary, mounted_root(home), path) as store:
        reference = f"oci:{image.layout}:{image.tag}"
        store.command("pull", reference)
        store.command("mount", reference, store.point)
        try:
            yield store.point
        finally:
            store.command("umount", store.point)
    machine.bury(home)


class _Store:
    """One store of floe's, and the commands on it."""

    def __init__(self, binary, root, point, path, containerd, layers):
        self.binary, self.root, self.point = binary, root, point
        self.log = f"{root}.log"  # beside the store: a store wants a directory of its own
        self.timings = f"{root}.timings"
        self.config = f"{root}.toml"
        with open(self.config, "w") as out:
            out.write(CONFIG)
            if containerd or layers:  # their layers are shared, so an unsigned index has to be trusted
                out.write('trust = "registry"\n')
            if containerd:
                out.write(f'[containerd]\nsocket = "{containerd}"\nroot = "{root}"\n')
            if layers:
                out.write(f'[layers]\ndir = "{layers}"\nroot = "{root}"\n')
            out.write(f'[mount]\npath = "{path}"\n')

    def argv(self, *words):
        return [self.binary, "--root", self.root, "--config", self.config, *words]

    def command(self, *words):
        return run(self.argv(*words))

    def status(self):
        return json.loads(self.command("status", "--output", "json"))

    def mount_report(self):
        """Returns what the daemon says of the one mount."""
        return self.status()["mounts"][0]

    def close(self):
        if self.pids():
            self.command("daemon", "stop")

    def pids(self):
        """Returns floe's own processes on this store: daemon and commands. Not runc, not the container."""
        return [pid for pid in procfs.processes(self.root) if _executable(pid) == os.path.realpath(self.binary)]


class _Session:
    def __init__(self, store, reference, ready_, deadline):
        self._store, self._reference, self._ready, self._deadline = store, reference, ready_, deadline
        self._child = None

    def to_ready(self):
        """Runs the image; returns the moments of the start and of READY."""
        argv = self._store.argv("run", "--net", "host", "--ready", self._ready, "--exit-when-ready",
                                f"--timings={self._store.timings}", "--output", "json", self._reference)
        start = time.monotonic()
        self._child = Child(argv, stderr=self._store.log)
        end = ready.wait(self._child, self._ready, self._deadline)
        return start, end

    def finish(self):
        """Waits for the command's end and returns the timings it wrote."""
        if self._child.wait(60):
            raise self._child.complaint()
        with open(self._store.timings) as timings:
            return json.load(timings)

    def pids(self):
        return self._store.pids()

    def cpu_seconds(self):
        others = [pid for pid in self.pids() if pid != self._child.pid]
        return self._child.cpu_seconds() + sum(procfs.cpu_seconds(pid) for pid in others)

    def close(self):
        if self._child:
            self._child.stop()


def _executable(pid):
    try:
        return os.readlink(f"/proc/{pid}/exe")
    except OSError:
        return None
