"""The machine: packages, cold caches, leftovers, and the facts that belong beside a number."""
import ctypes
import os
import platform
import shutil
import signal
import stat
import tempfile
from contextlib import contextmanager, suppress

from harness import procfs
from harness.process import Failed, run, talk, until

GRAVES = "retired"
POLICY = "/usr/sbin/policy-rc.d"
CLONE_NEWNS = 0x00020000


def need_root():
    if os.geteuid():
        raise Failed("root is needed: namespaces, mounts and dropping caches")


def install(packages):
    """Installs the Debian packages that are missing, without letting them start services."""
    known = run(["dpkg-query", "-W", "-f", "${Package} ${db:Status-Status}\n"]).splitlines()
    missing = [name for name in packages if f"{name} installed" not in known]
    if not missing:
        return
    ours = not os.path.exists(POLICY)
    if ours:
        with open(POLICY, "w") as policy:
            policy.write("#!/bin/sh\nexit 101\n")
        os.chmod(POLICY, 0o755)
    try:
        talk(["apt-get", "-q", "update"])
        talk(["apt-get", "-qy", "-o", "DPkg::Lock::Timeout=300", "install", "--no-install-recommends", *missing],
             env={**os.environ, "DEBIAN_FRONTEND": "noninteractive"})
    finally:
        if ours:
            os.unlink(POLICY)


def own_mounts():
    """Gives this process, and what it starts from here on, mounts of its own: what is mounted elsewhere stays, what is mounted here goes with us."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS):
        raise Failed(f"a mount namespace of its own: {os.strerror(ctypes.get_errno())}")
    run(["mount", "--make-rprivate", "/"])


def drop_caches():
    """Writes out what is dirty, then forgets clean pages, names and inodes."""
    os.sync()
    with open("/proc/sys/vm/drop_caches", "w") as drop:
        drop.write("3\n")


def retire(root):
    """As `wipe`, but empties the files and keeps their inodes, in a folder beside it, until `bury`.

    ext4 passes over inodes that were freed in the last minutes, one by one at every creation (`recently_deleted`, fs/ext4/ialloc.c):
    who makes thousands of files just after thousands were removed waits 0.3 to 0.5 ms for each, instead of 0.02.
    """
    end_all(root)
    if not os.path.exists(root):
        return
    for at, _, names in os.walk(root):
        for name in names:
            path = os.path.join(at, name)
            st = os.lstat(path)
            if stat.S_ISREG(st.st_mode) and st.st_size:
                os.truncate(path, 0)
    grave = f"{os.path.dirname(root)}/{GRAVES}"
    os.makedirs(grave, exist_ok=True)
    os.rename(root, tempfile.mkdtemp(dir=grave))


def bury(home):
    """Removes what was retired there."""
    shutil.rmtree(f"{home}/{GRAVES}", ignore_errors=True)


def wipe(root):
    """Ends every process that has `root` in its arguments, with its descendants (a container is its shim's child), unmounts
    what is mounted below it, and removes it."""
    end_all(root)
    if os.path.exists(root):
        shutil.rmtree(root)


def end_all(root):
    """Ends every process that has `root` in its arguments, with its descendants, and unmounts what is mounted below it."""
    for pid in procfs.with_descendants(procfs.processes(root)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            pass  # it ended meanwhile
    until(lambda: not procfs.processes(root), f"the end of all that uses {root}", 20)
    for path in reversed(mounts(root)):
        run(["umount", "-l", path])
    if left := mounts(root):
        raise Failed(f"still mounted: {', '.join(left)}")  # rmtree would go through it


def release(namespace):
    """Removes the folders that runc and the cgroups keep of a namespace of containerd's, where they are empty."""
    groups = [entry.path for entry in os.scandir("/sys/fs/cgroup") if entry.is_dir()]
    for folder in [*groups, "/sys/fs/cgroup", "/run/containerd/runc"]:
        for place in (f"{folder}/{namespace}/buildkit", f"{folder}/{namespace}"):
            with suppress(OSError):  # somebody else's containers are in it, or it is not there
                os.rmdir(place)


@contextmanager
def ext4_in_memory(point, size=8 << 30):
    """An ext4 on a file in a tmpfs, mounted at `point`; its pages are there once more, as an ext4 on a disk's would be."""
    wipe(point)
    below = f"{point}.tmpfs"
    wipe(below)
    os.makedirs(point)
    os.makedirs(below)
    run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", below])
    try:
        disk = os.path.join(below, "disk")
        with open(disk, "wb") as file:
            file.truncate(size)
        run(["mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0", disk])
        run(["mount", "-o", "loop,noatime", disk, point])
        yield point
    finally:
        wipe(point)
        wipe(below)


def mounts(root):
    """Returns the mount points below a folder in the order they were mounted."""
    with open("/proc/self/mounts") as table:
        points = [line.split()[1].encode().decode("unicode_escape") for line in table]
    return [point for point in points if point == root or point.startswith(root + "/")]


def facts(commands):
    """Returns what a reader of the numbers must know; `commands` maps a name to a command that prints a version."""
    with open("/proc/cpuinfo") as cpuinfo:
        model = next((line.partition(":")[2].strip() for line in cpuinfo if line.startswith("model name")), "unknown")
    with open("/proc/meminfo") as meminfo:
        memory = next(int(line.split()[1]) * 1024 for line in meminfo if line.startswith("MemTotal"))
    versions = {name: run(command).strip().splitlines()[0] for name, command in commands.items()}
    return dict(kernel=platform.release(), cpus=os.cpu_count(), cpu=model, memory=memory, versions=versions)
