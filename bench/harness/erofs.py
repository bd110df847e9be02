"""The same tree as other EROFS mounts, from files, without a loop device: in one file, with its data in one file, and of a store's own
files by hand."""
import ctypes
import os
import struct
from contextlib import contextmanager

from harness.process import Failed, run

PACKAGES = ["erofs-utils"]
FSOPEN, FSCONFIG, FSMOUNT, MOVE_MOUNT = 430, 431, 432, 429  # asm-generic/unistd.h; the same on every architecture
SET_FLAG, SET_STRING, CREATE = 0, 1, 6  # enum fsconfig_command, linux/mount.h
EMPTY_PATH = 4  # MOVE_MOUNT_F_EMPTY_PATH
DEVICES, SUPER, TABLE, SLOT = 86, 1024, 1152, 128  # offsets of docs/FORMAT.md: their number in the superblock; the table


@contextmanager
def one_file(source, home):
    """Makes one uncompressed image of a tree, the ends of files beside their inodes, and mounts it; yields the mount point."""
    with _made(source, home, "one", []) as point:
        yield point


@contextmanager
def data_file(source, home):
    """The same with the bytes of all files in one further file."""
    with _made(source, home, "data", ["--chunksize=4096", f"--blobdev={home}/data.blob"]) as point:
        yield point


@contextmanager
def by_hand(root, home):
    """Mounts the one image that is in a store of Floe's once more, as anybody could; yields the mount point."""
    metas = [os.path.join(root, "meta", name) for name in os.listdir(os.path.join(root, "meta")) if not name.endswith(".sum")]
    if len(metas) != 1:
        raise Failed(f"{root}/meta has {len(metas)} images, and not one")
    with mounted(metas[0], [f"{root}/device/{index}/{segment}" for index, segment in _devices(metas[0])], home, "hand") as point:
        yield point


def _devices(meta):
    """Returns what the device table of an image of Floe's names: an index, and the number of a segment."""
    with open(meta, "rb") as image:
        head = image.read(SUPER + DEVICES + 2)
        image.seek(TABLE)
        slots = [image.read(SLOT) for _ in range(struct.unpack_from("<H", head, SUPER + DEVICES)[0])]
    return [(slot[:32].hex(), struct.unpack_from("<I", slot, 32)[0]) for slot in slots]


@contextmanager
def _made(source, home, name, options):
    file, blob = os.path.join(home, f"{name}.erofs"), os.path.join(home, f"{name}.blob")
    try:
        run(["mkfs.erofs", "-T0", "--quiet", *options, file, source])
        devices = [blob] if os.path.exists(blob) else []
        run(["sync", file, *devices])
        with mounted(file, devices, home, name) as point:
            yield point
    finally:
        for path in (file, blob):
            if os.path.exists(path):
                os.remove(path)


@contextmanager
def mounted(file, devices, home, name, flags=(b"ro", b"directio")):
    """Mounts by the calls that take any number of devices; mount(2) takes a page of options."""
    point = os.path.join(home, f"{name}.mnt")
    os.makedirs(point, exist_ok=True)
    context = _call(FSOPEN, b"erofs", 1)
    try:
        for key, value in [("source", file), *(("device", device) for device in devices)]:
            _call(FSCONFIG, context, SET_STRING, key.encode(), value.encode(), 0)
        for flag in flags:
            _call(FSCONFIG, context, SET_FLAG, flag, None, 0)
        _call(FSCONFIG, context, CREATE, None, None, 0)
        mount = _call(FSMOUNT, context, 1, 0)
    finally:
        os.close(context)
    try:
        _call(MOVE_MOUNT, mount, b"", -100, point.encode(), EMPTY_PATH)
        os.close(mount)
        yield point
    finally:
        run(["umount", point])
        os.rmdir(point)


def _call(number, *arguments):
    libc = ctypes.CDLL(None, use_errno=True)
    words = [argument if argument is None or isinstance(argument, bytes) else ctypes.c_long(argument) for argument in arguments]
    result = libc.syscall(ctypes.c_long(number), *words)
    if result < 0:
        raise Failed(f"system call {number}: {os.strerror(ctypes.get_errno())}")
    return result
