"""The torture image: every oddity of tars, each in a layer of its own. What is in it says crates/testkit/src/torture.rs.

Small, and made anew each time: its bytes follow the code.
"""
import hashlib
import json
import os
import shutil
import tempfile

from harness.process import talk

PROJECT = os.path.normpath(os.path.join(os.path.dirname(os.path.abspath(__file__)), "..", ".."))
MEDIA = "application/vnd.oci.image."
TAG = "v1"

# The image, and the layers that it is without.
IMAGES = {"torture": (), "torture-apart": ("links-to-lower-layers",)}


def build(name, layout):
    """Makes the image in a layout, which is nobody else's."""
    shutil.rmtree(layout, ignore_errors=True)
    os.makedirs(f"{layout}/blobs/sha256")
    with tempfile.TemporaryDirectory() as tars:
        talk(["cargo", "run", "--release", "--locked", "--quiet", "--package", "testkit", "--example", "torture", "--", tars], cwd=PROJECT)
        layers = [put(layout, "layer.v1.tar", read(f"{tars}/{tar}")) for tar in sorted(os.listdir(tars))
                  if tar[3:].removesuffix(".tar") not in IMAGES[name]]
    rootfs = dict(type="layers", diff_ids=[layer["digest"] for layer in layers])  # nothing is packed
    config = put(layout, "config.v1+json", dump(dict(architecture="amd64", os="linux", config={}, rootfs=rootfs)))
    manifest = put(layout, "manifest.v1+json", dump(dict(
        schemaVersion=2, mediaType=MEDIA + "manifest.v1+json", config=config, layers=layers)))
    manifest["annotations"] = {"org.opencontainers.image.ref.name": TAG}
    write(f"{layout}/oci-layout", dump({"imageLayoutVersion": "1.0.0"}))
    write(f"{layout}/index.json", dump(dict(schemaVersion=2, manifests=[manifest])))


def put(layout, kind, data):
    """Adds a blob to a layout and returns its descriptor."""
    digest = hashlib.sha256(data).hexdigest()
    write(f"{layout}/blobs/sha256/{digest}", data)
    return dict(mediaType=MEDIA + kind, digest="sha256:" + digest, size=len(data))


def dump(value):
    return json.dumps(value).encode()


def read(path):
    with open(path, "rb") as file:
        return file.read()


def write(path, data):
    with open(path, "wb") as file:
        file.write(data)
