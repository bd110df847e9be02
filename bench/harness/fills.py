"""Writing a segment and reading its first block through an EROFS mount: by way of the page cache, or past it on both sides."""
import mmap
import os
import shutil
import tempfile
import time

from harness import erofs
from harness.process import Failed, run

SEGMENT, BLOCK = 512 << 10, 4096
WAYS = {"buffered": (0, [b"ro"]), "direct": (os.O_DIRECT, [b"ro", b"directio"])}


def fills(home, count):
    """Returns for each way the seconds of `count` fills with the read that waits for each, and of all until they are on the disk."""
    place = tempfile.mkdtemp(prefix="fills.", dir=home)
    try:
        names = [str(number) for number in range(count)]
        os.mkdir(f"{place}/tree")
        for name in names:
            with open(f"{place}/tree/{name}", "wb") as file:
                file.write(os.urandom(SEGMENT))
        run(["mkfs.erofs", "-T0", "--quiet", "--chunksize=4096", f"--blobdev={place}/blob", f"{place}/image", f"{place}/tree"])
        with open(f"{place}/blob", "rb") as blob:
            content = blob.read()
        files = {}
        for name in names:
            with open(f"{place}/tree/{name}", "rb") as file:
                files[content.index(file.read(BLOCK))] = name
        return {way: _filled(place, files, content, *how) for way, how in WAYS.items()}
    finally:
        shutil.rmtree(place)


def _filled(place, files, content, flag, options):
    os.truncate(f"{place}/blob", 0)
    os.sync()
    segment = mmap.mmap(-1, SEGMENT)  # aligned, as O_DIRECT wants it
    waits, begin = [], time.perf_counter()
    with erofs.mounted(f"{place}/image", [f"{place}/blob"], place, "mnt", options) as point:
        blob = os.open(f"{place}/blob", os.O_WRONLY | flag)
        for offset, name in sorted(files.items()):
            segment[:] = content[offset:offset + SEGMENT]
            start = time.perf_counter()
            os.pwrite(blob, segment, offset)
            file = os.open(f"{point}/{name}", os.O_RDONLY)
            os.posix_fadvise(file, 0, 0, os.POSIX_FADV_RANDOM)
            read = os.pread(file, BLOCK, 0)
            os.close(file)
            waits.append(time.perf_counter() - start)
            if read != segment[:BLOCK]:
                raise Failed(f"{name}: what was read is not what was written")
        os.fsync(blob)
        os.close(blob)
    return waits, time.perf_counter() - begin
