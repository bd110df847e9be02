"""Readers of a whole file tree: the workloads of bench/fuse, and whether two trees are the same."""
import hashlib
import json
import os
import shutil
import stat
import subprocess
import tempfile
import time
from contextlib import contextmanager

from harness.process import Failed, run

FILES = 64  # fio opens all of them in each reader
NAMES = 4000  # bytes that fio takes for all names together
TSC, PROJECT = "/app/node_modules/typescript/bin/tsc", "/app/node_modules/rxjs/src/tsconfig.cjs.json"
SMALLEST = 64 << 10  # bytes; so that a random 4 KiB read has something to choose from


def identity(root):
    """Returns the number of entries and a digest of every name, mode, owner, size and link target of a tree."""
    digest, entries = hashlib.sha256(), 0
    for at, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(folders + names):
            path = os.path.join(at, name)
            st = os.lstat(path)
            size = st.st_size if stat.S_ISREG(st.st_mode) else 0  # a folder's is the file system's own affair
            target = os.readlink(path) if stat.S_ISLNK(st.st_mode) else ""
            facts = (os.path.relpath(path, root), st.st_mode, st.st_uid, st.st_gid, size, target)
            digest.update(repr(facts).encode("utf8", "surrogateescape"))
            entries += 1
    return entries, digest.hexdigest()


@contextmanager
def copy(root, home):
    """Copies a tree, with owners, times and extended attributes, into a folder of its own below `home`; yields it."""
    into = tempfile.mkdtemp(prefix="tree.", dir=home)
    try:
        run(["cp", "-a", f"{root}/.", into])
        yield into
    finally:
        shutil.rmtree(into)


def files(root, smallest=0):
    """Returns the regular files of the tree of at least so many bytes, in the order of their names."""
    found = []
    for at, folders, names in os.walk(root):
        folders.sort()
        for name in sorted(names):
            path = os.path.join(at, name)
            st = os.lstat(path)
            if stat.S_ISREG(st.st_mode) and st.st_size >= smallest:
                found.append(os.path.relpath(path, root))
    return found


def large_files(root):
    """Returns some files of the tree for random reads, spread evenly over its larger ones."""
    found = [path for path in files(root, SMALLEST) if ":" not in path]  # fio separates names by ':'
    if not found:
        raise Failed(f"{root} has no file of {SMALLEST} bytes or more")
    count = FILES
    while len(":".join(some := found[::max(1, len(found) // count)][:count])) > NAMES:
        count = count * 3 // 4
    return some


def find(root, readers):
    """Returns the seconds until every reader has walked the names."""
    return _together(["find", "."], root, readers)


def tar(root, readers):
    """Returns the seconds until every reader has read everything. The pipe is there because tar skips data for /dev/null."""
    return _together(["sh", "-c", "tar cf - . | cat >/dev/null"], root, readers)


def has_tsc(root):
    return os.path.exists(f"{root}{TSC}") and os.path.exists(f"{root}{PROJECT}")


def tsc(root, readers):
    """Returns the seconds until every reader has checked the types of RxJS, with the image's own compiler."""
    return _together(["chroot", root, "/usr/bin/node", TSC, "--noEmit", "--incremental", "false", "-p", PROJECT], root, readers)


def reads(kind, root, readers, files, seconds):
    """Returns the 4 KiB reads per second of all readers together, `kind` as fio's rw: for some seconds, or, for 0, each block
    once. fio must not drop the files from the cache first."""
    span = ["--time_based", f"--runtime={seconds}"] if seconds else []
    output = run(["fio", "--name=reads", "--readonly", f"--rw={kind}", "--bs=4k", "--ioengine=psync", "--invalidate=0",
                  f"--numjobs={readers}", "--group_reporting", *span, "--allow_file_create=0",
                  "--file_service_type=random" if kind == "randread" else "--file_service_type=sequential",
                  f"--openfiles={len(files)}", f"--filename={':'.join(files)}", "--output-format=json"], cwd=root)
    return json.loads(output[output.index("{"):])["jobs"][0]["read"]["iops"]


def _together(command, root, readers):
    start = time.monotonic()
    running = [subprocess.Popen(command, cwd=root, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) for _ in range(readers)]
    errors = [process.communicate()[1] for process in running]
    seconds = time.monotonic() - start
    for process, error in zip(running, errors):
        if process.returncode:
            raise Failed(f"{' '.join(command)} in {root}: exit {process.returncode}: {error.decode(errors='replace')[-500:]}")
    return seconds
