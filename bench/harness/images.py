"""The lab's images: how each is built, and by what one knows that its container is ready."""
import json
import os
from dataclasses import dataclass

from harness import torture
from harness.process import Failed, talk

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPT = os.path.join(HERE, "..", "lab", "images.sh")
PORT = 8088

# nginx answers on a port, the others print a line and end. bulk is only read, pause is what sandboxes of pods run, torture is converted.
READY = {"nginx": f"port:{PORT}", "node": "line:READY", "pysci-v1": "line:READY", "pysci-v2": "line:READY", "pytf": "line:READY",
         "readall": "line:READY", "bulk": None, "pause": None, **dict.fromkeys(torture.IMAGES)}


@dataclass(frozen=True)
class Image:
    """A built image in an OCI layout."""
    name: str
    tag: str
    layout: str
    digest: str
    layers: tuple

    @property
    def ready(self):
        return READY[self.name]

    @property
    def size(self):
        """Returns the bytes of the compressed layers."""
        return sum(layer["size"] for layer in self.layers)


def build(names, lab):
    """Builds what is not there yet."""
    for name in names:
        if name not in READY:
            raise Failed(f"no image {name!r}; there are {', '.join(READY)}")
    for name in torture.IMAGES.keys() & set(names):
        torture.build(name, f"{lab}/images/{name}")
    missing = [name for name in names if not os.path.exists(f"{lab}/images/{name}/index.json")]
    if missing:
        talk(["nice", "-n", "10", SCRIPT, *missing], env={**os.environ, "LAB": lab})
    return [load(name, lab) for name in names]


def load(name, lab):
    layout = f"{lab}/images/{name}"
    with open(f"{layout}/index.json") as index:
        entry = json.load(index)["manifests"][0]
    with open(f"{layout}/blobs/sha256/{entry['digest'].removeprefix('sha256:')}") as manifest:
        layers = json.load(manifest)["layers"]
    return Image(name, entry["annotations"]["org.opencontainers.image.ref.name"], layout, entry["digest"], tuple(layers))
