"""libfuse's own example passthrough_hp, to measure beside: what a FUSE server costs that does nothing but pass through.

It is built from Debian's source package in a folder of the lab's. apt reads source lists of ours, which are the machine's own
with `deb-src` for `deb`, so the machine's package state is not touched. None of its code is part of this project.
"""
import glob
import os
import re
import resource
import shutil
import tempfile
from contextlib import contextmanager

from harness import machine
from harness.process import Child, Failed, run, until

PACKAGES = ["fuse3", "libfuse3-dev", "g++", "pkg-config", "dpkg-dev"]


def source_list(text):
    """Returns an apt list or .sources file with sources in the place of binaries."""
    text = re.sub(r"^deb(?=[ \t])", "deb-src", text, flags=re.MULTILINE)
    return re.sub(r"^Types:.*$", "Types: deb-src", text, flags=re.MULTILINE)


def build(home):
    """Builds it unless that was done, and returns the path of the program."""
    program = os.path.join(home, "passthrough_hp")
    if os.path.exists(program):
        return program
    machine.install(PACKAGES)
    shutil.rmtree(home, ignore_errors=True)
    parts = os.path.join(home, "sources")
    os.makedirs(parts)
    os.makedirs(os.path.join(home, "lists", "partial"))
    for path in ["/etc/apt/sources.list", *glob.glob("/etc/apt/sources.list.d/*.list"), *glob.glob("/etc/apt/sources.list.d/*.sources")]:
        if os.path.exists(path):
            suffix = ".sources" if path.endswith(".sources") else ".list"
            with open(path) as known, open(os.path.join(parts, os.path.basename(path).split(".")[0] + suffix), "w") as ours:
                ours.write(source_list(known.read()))
    options = {"Dir::Etc::sourcelist": "/dev/null", "Dir::Etc::sourceparts": parts, "Dir::State::lists": f"{home}/lists",
               "Dir::Cache::pkgcache": "", "Dir::Cache::srcpkgcache": "", "APT::Sandbox::User": "root"}
    apt = ["apt-get", "-q"] + [word for key, value in options.items() for word in ("-o", f"{key}={value}")]
    run([*apt, "update"], cwd=home)
    run([*apt, "source", "fuse3"], cwd=home)
    source = glob.glob(f"{home}/fuse3-*/example/passthrough_hp.cc")
    if len(source) != 1:
        raise Failed(f"the source package of fuse3 has no example/passthrough_hp.cc: {source}")
    flags = run(["pkg-config", "--cflags", "--libs", "fuse3"]).split()
    run(["g++", "-O2", "-std=c++17", "-o", program + ".part", source[0], *flags, "-lpthread"])
    os.rename(program + ".part", program)
    return program


def need_descriptors(entries):
    """Makes sure that it may open a tree of so many entries: it holds a descriptor for each that the kernel knows."""
    wanted = entries + 1000  # readers' open files, and the program's own
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, wanted))  # what we start inherits it
        except (OSError, ValueError) as cause:
            raise Failed(f"passthrough_hp needs {wanted} descriptors for {entries} entries; this machine allows {hard} ({cause}): "
                         "measure a subfolder of both trees") from cause


@contextmanager
def mounted(program, source):
    """Mounts a folder through it, with its defaults, and yields the mount point."""
    point = tempfile.mkdtemp(prefix="passthrough_hp.")
    log = tempfile.NamedTemporaryFile(prefix="passthrough_hp.", suffix=".log")
    child = None
    try:
        child = Child([program, "--foreground", source, point], stderr=log.name)

        def ready():
            if child.ended():
                raise child.complaint()
            return os.path.ismount(point)

        until(ready, f"passthrough_hp on {point}", 20)
        yield point
    finally:
        for path in machine.mounts(point):
            run(["umount", "-l", path])
        if child:
            child.stop()
        log.close()
        os.rmdir(point)
