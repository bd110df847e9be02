"""A lazy peer to measure beside: the SOCI snapshotter of Debian sid, with its defaults, background fetcher included.

Its index is made with `soci create` and pushed with `soci push` beforehand. A start is `soci image rpull`, then `ctr run --snapshotter soci`.
Daemon and containerd are up before the clock starts; what counts is the sum of both and of their commands.

0.4.1 asks for its index, and for layers too small to have one, by HTTPS only. So the image's name here has the port of the registry that has a
certificate, and everything that can be asked for in the clear, as the other systems do, is: rpull and the reads of layers.
"""
import os
from contextlib import closing, contextmanager

from harness import containerd, floe, machine, procfs, registry
from harness.process import Child, Failed, run, until

PACKAGES = ["openssl", "fuse3"]  # of this Debian
LATER = ["soci-snapshotter"]  # of sid
HOME = "/var/lib/soci-snapshotter-grpc"  # no option says where its content store and the command's notes are
IN_THE_CLEAR = f'[[resolver.host."{registry.TLS}".mirrors]]\nhost = "{registry.ADDRESS}"\ninsecure = true\n'
PLUGIN = '[proxy_plugins.soci]\ntype = "snapshot"\naddress = "{0}/soci.sock"\n[proxy_plugins.soci.exports]\nenable_remote_snapshot_annotations = "true"\n'


class Soci:
    """SOCI through ctr."""

    name = "soci"
    title = "containerd with SOCI, index in the registry"
    MORE = ""  # configuration

    def __init__(self, home, deadline, programs, name=None):
        self.name = name or self.name
        self.repositories = (self.name,)
        self._home, self._deadline, self._programs = os.path.join(home, self.name), deadline, programs
        self._certificate = None

    def prepare(self, images, registry_):
        """Pushes the images, and the index of each."""
        self._certificate = registry_.certificate
        for image in images:
            registry_.push(image, f"{self.name}/{image.name}")
            with _home(self._home), closing(containerd.Session(self._home, image, self._deadline)) as session:
                plain = f"{registry.ADDRESS}/{self.name}/{image.name}:{image.tag}"
                run([*session.ctr, "image", "pull", "--plain-http", plain])
                soci = [f"{self._programs}/usr/bin/soci", *session.ctr[1:]]
                run([*soci, "create", plain])
                run([*soci, "push", "--plain-http", plain])

    @contextmanager
    def session(self, image):
        """Daemon and containerd that have never seen anything."""
        with _home(self._home), self._service() as daemon:
            with closing(self.SESSION(self._home, image, self._deadline, daemon, self._programs, self.name)) as session:
                yield session

    @contextmanager
    def _service(self):
        home = self._home
        with open(f"{home}/soci.toml", "w") as out:
            out.write(IN_THE_CLEAR + self.MORE)
        os.makedirs(f"{home}/hosts/{registry.TLS}")
        with open(f"{home}/hosts/{registry.TLS}/hosts.toml", "w") as out:
            out.write(f'[host."http://{registry.ADDRESS}"]\ncapabilities = ["pull", "resolve"]\n')
        argv = [f"{self._programs}/usr/bin/soci-snapshotter-grpc", "--root", f"{home}/store", "--address", f"{home}/soci.sock",
                "--config", f"{home}/soci.toml", "--log-level", "warn"]
        daemon = Child(argv, stderr=f"{home}/soci.log", env={**os.environ, "SSL_CERT_FILE": self._certificate})
        try:
            until(lambda: os.path.exists(f"{home}/soci.sock") or daemon.ended(), "SOCI's socket", 20)
            if daemon.ended():
                raise daemon.complaint()
            yield daemon
        finally:
            daemon.stop()


class Session(containerd.Session):
    SNAPSHOTTER = "soci"

    def __init__(self, root, image, deadline, daemon, programs, repository):
        self._soci, self._hosts = daemon, f"{root}/hosts"
        self._command = [f"{programs}/usr/bin/soci", "--address", f"{root}/socket", "image", "rpull"]
        self._repository = repository
        super().__init__(root, image, deadline, PLUGIN.format(root))

    def rest(self):
        super().rest()
        self._used = procfs.cpu_seconds(self._soci.pid, children=True)

    def reference(self):
        return f"{registry.TLS}/{self._repository}/{self._image.name}:{self._image.tag}"

    def pull(self, reference):
        return self.start([*self._command, "--hosts-dir", self._hosts, reference])

    def pids(self):
        return [*super().pids(), self._soci.pid]

    def cpu_seconds(self):
        return super().cpu_seconds() + procfs.cpu_seconds(self._soci.pid, children=True) - self._used


Soci.SESSION = Session


class ByFloe(floe.Floe):
    """Floe, with no index but SOCI's."""

    TITLES = {"floe-soci": "Floe, SOCI's index in the registry"}

    def __init__(self, name, binary, home, deadline, path, programs):
        super().__init__(name, binary, home, deadline, path)
        self._maker = Soci(os.path.join(home, "maker"), deadline, programs, name)

    def prepare(self, images, registry_):
        self._maker.prepare(images, registry_)


@contextmanager
def _home(root):
    """An empty folder that is, as long as it is used, also where SOCI's programs look."""
    machine.retire(root)
    if os.path.islink(HOME) and os.readlink(HOME).startswith(f"{os.path.dirname(root)}/"):
        os.unlink(HOME)  # a killed bench left it
    if os.path.lexists(HOME):
        raise Failed(f"{HOME} is there: this machine has a SOCI of its own, whose state the bench would get into")
    os.makedirs(f"{root}/store")
    os.symlink(f"{root}/store", HOME)
    try:
        yield
    finally:
        os.unlink(HOME)
        machine.retire(root)
