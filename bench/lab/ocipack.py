#!/usr/bin/env python3
"""ocipack.py NAME TAG CONFIG_JSON LAYER…   (bottom to top)

Packs overlay upper directories $LAB/layers/LAYER as OCI gzip layers (whiteouts translated) into the layout
$LAB/images/NAME, reference TAG. A layer's blob is made once and hard-linked into each layout that has it.
"""
import hashlib
import json
import os
import stat
import subprocess
import sys
import tarfile

LAB = os.environ["LAB"]
MEDIA = "application/vnd.oci.image."


class Tee:
    """Counts and hashes what passes to the compressor."""

    def __init__(self, out):
        self.out, self.hash, self.size = out, hashlib.sha256(), 0

    def write(self, data):
        self.hash.update(data)
        self.size += len(data)
        self.out.write(data)
        return len(data)


def add_tree(tar, root, rel=""):
    """Adds what is below root/rel, in the order of names, and returns the number of entries."""
    entries = 0
    for name in sorted(os.listdir(os.path.join(root, rel))):
        path = os.path.join(rel, name)
        if path == ".done":  # images.sh's own mark
            continue
        full = os.path.join(root, path)
        st = os.lstat(full)
        if stat.S_ISSOCK(st.st_mode):
            continue
        entries += 1
        if stat.S_ISCHR(st.st_mode) and st.st_rdev == 0:  # overlay's whiteout -> OCI's
            tar.addfile(tarfile.TarInfo(os.path.join(rel, ".wh." + name)))
            continue
        info = tar.gettarinfo(full, arcname=path)
        for key in os.listxattr(full, follow_symlinks=False):
            if key == "security.capability" or key.startswith("user."):
                value = os.getxattr(full, key, follow_symlinks=False)
                info.pax_headers["SCHILY.xattr." + key] = value.decode("utf8", "surrogateescape")
        if info.isreg():
            with open(full, "rb") as data:
                tar.addfile(info, data)
        else:
            tar.addfile(info)
        if stat.S_ISDIR(st.st_mode):
            try:
                opaque = os.getxattr(full, "trusted.overlay.opaque") == b"y"
            except OSError:
                opaque = False
            if opaque:
                tar.addfile(tarfile.TarInfo(os.path.join(path, ".wh..wh..opq")))
            entries += add_tree(tar, root, path)
    return entries


def pack(layer):
    """Makes a layer's blob unless it is there, and returns its facts."""
    blob, meta = f"{LAB}/blobs/{layer}.tgz", f"{LAB}/blobs/{layer}.json"
    if os.path.exists(meta):
        with open(meta) as cached:
            return json.load(cached)
    with open(blob, "wb") as out:
        gzip = subprocess.Popen(["pigz", "-6", "-n"], stdin=subprocess.PIPE, stdout=out)
        tee = Tee(gzip.stdin)
        with tarfile.open(fileobj=tee, mode="w|", format=tarfile.PAX_FORMAT, bufsize=1 << 20) as tar:
            entries = add_tree(tar, f"{LAB}/layers/{layer}")
        gzip.stdin.close()
        if gzip.wait():
            sys.exit(f"ocipack.py: pigz failed on {layer}")
    digest = hashlib.sha256()
    with open(blob, "rb") as data:
        while piece := data.read(1 << 20):
            digest.update(piece)
    facts = dict(name=layer, digest="sha256:" + digest.hexdigest(), size=os.path.getsize(blob),
                 diffid="sha256:" + tee.hash.hexdigest(), tar=tee.size, entries=entries)
    dump(facts, meta)
    return facts


def dump(value, path):
    with open(path + ".part", "w") as out:
        json.dump(value, out)
    os.rename(path + ".part", path)


def put(layout, value):
    """Adds a JSON blob to the layout and returns its descriptor without a media type."""
    data = json.dumps(value).encode()
    digest = hashlib.sha256(data).hexdigest()
    with open(f"{layout}/blobs/sha256/{digest}", "wb") as out:
        out.write(data)
    return dict(digest="sha256:" + digest, size=len(data))


def main():
    name, tag, config, names = sys.argv[1], sys.argv[2], json.loads(sys.argv[3]), sys.argv[4:]
    layout = f"{LAB}/images/{name}"
    os.makedirs(layout + "/blobs/sha256", exist_ok=True)

    layers = [pack(n) for n in names]
    for layer in layers:
        blob = f"{layout}/blobs/sha256/{layer['digest'][7:]}"
        if not os.path.exists(blob):
            os.link(f"{LAB}/blobs/{layer['name']}.tgz", blob)
    when = "2026-01-01T00:00:00Z"
    image_config = put(layout, dict(
        created=when, architecture="amd64", os="linux", config=config,
        rootfs=dict(type="layers", diff_ids=[layer["diffid"] for layer in layers]),
        history=[dict(created=when, created_by="lab layer " + layer["name"]) for layer in layers]))
    manifest = put(layout, dict(
        schemaVersion=2, mediaType=MEDIA + "manifest.v1+json",
        config=dict(mediaType=MEDIA + "config.v1+json", **image_config),
        layers=[dict(mediaType=MEDIA + "layer.v1.tar+gzip", digest=layer["digest"], size=layer["size"]) for layer in layers]))
    dump(dict(schemaVersion=2, manifests=[dict(mediaType=MEDIA + "manifest.v1+json", **manifest,
                                               annotations={"org.opencontainers.image.ref.name": tag})]),
         layout + "/index.json")
    dump({"imageLayoutVersion": "1.0.0"}, layout + "/oci-layout")
    compressed, plain, entries = (sum(layer[key] for layer in layers) for key in ("size", "tar", "entries"))
    print(f"{name}:{tag}  {compressed / 1e6:.1f} MB gzip, {plain / 1e6:.1f} MB tar, {entries} entries, "
          f"{len(layers)} layers, {manifest['digest']}")


main()
