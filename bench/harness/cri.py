"""Starts as kubelet makes them: PullImage, RunPodSandbox, CreateContainer, StartContainer.

containerd's CRI with overlayfs, with Floe's snapshotter, and with SOCI's. Daemons, containerd, the connection to it and the sandbox's image are there
before the clock starts, as on a node that has run pods. kubelet.py asks; it does nothing else, and does not count.
"""
import os
import subprocess
import time
from contextlib import suppress

from harness import containerd, machine, ready, registry, soci, through
from harness.process import Child, Failed, until

PACKAGES = ["python3-grpcio", "busybox-static"]
SANDBOX = "pause"  # the image of the lab that sandboxes run
PYTHON = "/usr/bin/python3"  # Debian's, whatever runs the bench
KUBELET = os.path.join(os.path.dirname(os.path.abspath(__file__)), "kubelet.py")
CONFIG = """\
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "{sandbox}"
restrict_oom_score_adj = true
[plugins."io.containerd.grpc.v1.cri".containerd]
snapshotter = "{snapshotter}"
disable_snapshot_annotations = false
[plugins."io.containerd.grpc.v1.cri".cni]
bin_dir = "{root}/cni"
conf_dir = "{root}/cni"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."{host}"]
endpoint = ["http://{registry}"]
"""


class Pods:
    """Makes of a session of containerd's one through CRI."""

    PODS = True
    HOST = registry.ADDRESS  # what the names of images begin with
    _kubelet = None

    def more(self):
        config = CONFIG.format(root=self._root, sandbox=self._sandbox(), snapshotter=self.SNAPSHOTTER, host=self.HOST, registry=registry.ADDRESS)
        return super().more() + config

    def up(self):
        self._kubelet = Child([PYTHON, KUBELET, f"{self._root}/socket", self._sandbox()], stderr=self._log, stdin=subprocess.PIPE)
        self._said("up", 60)

    def to_ready(self):
        start = time.monotonic()
        self._kubelet.tell(self.reference())
        end = ready.wait(self._kubelet, self._image.ready, self._deadline)
        self._pulled = self._said("pulled", 1) - start
        return start, end

    def close(self):
        if self._kubelet:
            self._kubelet.tell("end")
            with suppress(Failed):
                self._kubelet.wait(20)  # what it does not take away, machine.retire ends
            self._kubelet.stop()
        super().close()
        machine.release("k8s.io")

    def _sandbox(self):
        return f"{self.HOST}/{SANDBOX}:v1"

    def _said(self, what, seconds):
        """Waits for a line of kubelet's and returns when it came."""
        def when():
            if found := next((at for at, text in list(self._kubelet.lines) if text == what), None):
                return found
            if self._kubelet.ended():
                raise self._kubelet.complaint()
            return None

        return until(when, f"kubelet.py to say {what}", seconds)


class PlainSession(Pods, containerd.Session):
    pass


class FloeSession(Pods, through.Session):
    pass


class SociSession(Pods, soci.Session):
    HOST = registry.TLS


class Plain(containerd.Containerd):
    name, title, SESSION = "cri-containerd", "CRI of containerd, full pull", PlainSession


class Floe(through.Through):
    SESSION = FloeSession
    TITLES = {"cri-first": "CRI with Floe, no index anywhere", "cri-index": "CRI with Floe, index in the registry",
              "cri-profile": "CRI with Floe, index and profile"}


class Soci(soci.Soci):
    """CRI does not tell it how large a layer is; of one without index it then asks for a manifest by the layer's digest. Registries say that there is none,
    and containerd fetches the layer. docker-registry answers 500, at which SOCI would try eight times more: 8 s for each such layer."""
    name, title, SESSION = "cri-soci", "CRI with SOCI, index in the registry", SociSession
    MORE = "[http]\nMaxRetries = -1\n"


NAMES = [Plain.name, *Floe.TITLES, Soci.name]
