#!/usr/bin/env python3
"""Takes the bootstrap out of a blob that has one: boot.py BLOB OUTPUT."""

import subprocess
import sys

blob = open(sys.argv[1], "rb").read()
# From its end, where each tar header comes after what it is about.
at = len(blob)
while at > 0:
    header = blob[at - 512 : at]
    name, size = header[:100].rstrip(b"\0"), int(header[124:135], 8)
    at -= 512 + size
    if name == b"image.boot":
        packed = blob[at : at + size]
        plain = packed
        if not packed.startswith(b"SFAR"):  # that of version 5 is never packed
            plain = subprocess.run(["zstd", "-dc"], input=packed, stdout=subprocess.PIPE, check=True).stdout
        open(sys.argv[2], "wb").write(plain)
        break
else:
    raise SystemExit("there is none")
