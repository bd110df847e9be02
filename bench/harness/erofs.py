"""One uncompressed EROFS file of a tree, mounted from the file, without a loop device."""
import ctypes
import os
from contextlib import contextmanager

from harness.process import Failed, run

PACKAGES = ["erofs-utils"]
MS_RDONLY = 1


@contextmanager
def mounted(source, home):
    """Makes the image and mounts it; yields the mount point."""
    file, point = os.path.join(home, "one.erofs"), os.path.join(home, "one.mnt")
    os.makedirs(point, exist_ok=True)
    run(["mkfs.erofs", "-T0", "--quiet", file, source])
    run(["sync", file])
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.mount(file.encode(), point.encode(), b"erofs", MS_RDONLY, b"directio"):
        raise Failed(f"mounting {file}: {os.strerror(ctypes.get_errno())}")
    try:
        yield point
    finally:
        run(["umount", point])
        os.rmdir(point)
        os.remove(file)
