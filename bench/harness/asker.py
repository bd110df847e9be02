"""A folder about which the kernel asks at every read, and is told yes: what one event per read costs.

`asker.c` is built here. The mark is on a bind mount of the folder, as Floe's is on one of the segments'.
"""
import os
import tempfile
from contextlib import contextmanager

from harness import machine
from harness.process import Child, run, until

HERE = os.path.dirname(os.path.abspath(__file__))
PACKAGES = ["gcc", "libc6-dev"]


@contextmanager
def asked(source, home):
    """Yields a mount point that shows `source`."""
    program = os.path.join(home, "asker")
    run(["gcc", "-O2", "-o", program, os.path.join(HERE, "asker.c")])
    point = tempfile.mkdtemp(prefix="asked.", dir=home)
    child = None
    try:
        run(["mount", "--bind", source, point])
        child = Child([program, point], stderr=f"{program}.log")

        def listens():
            if child.ended():
                raise child.complaint()
            return child.lines

        until(listens, f"asker on {point}", 10)
        yield point
    finally:
        if child:
            child.stop()
        machine.wipe(point)
