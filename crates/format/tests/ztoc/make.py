#!/usr/bin/env python3
"""make.py   writes layer.gz to standard output."""
import io
import sys
import tarfile
import zlib


def text(seed, length):
    """Bytes that compress to about half."""
    out = b""
    while len(out) < length:
        seed = (seed * 6364136223846793005 + 1442695040888963407) % 2**64
        out += b"%x " % (seed >> 44)
    return out[:length]


plain = io.BytesIO()
archive = tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT)


def add(name, kind=tarfile.REGTYPE, data=b"", **fields):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.mtime, member.mode = kind, len(data), 1600000000, 0o644
    for field, value in fields.items():
        setattr(member, field, value)
    archive.addfile(member, io.BytesIO(data))


add("d/", tarfile.DIRTYPE, mode=0o1755, uid=1, gid=2)
add("d/long", data=text(1, 20000), mode=0o4755, pax_headers={"SCHILY.xattr.user.a": "b"}, mtime=1600000000.5)
add("d/empty")
add("d/hard", tarfile.LNKTYPE, linkname="d/long")
add("d/soft", tarfile.SYMTYPE, linkname="long", mode=0o777)
add("d/null", tarfile.CHRTYPE, devmajor=1, devminor=3)
add("d/disk", tarfile.BLKTYPE, devmajor=8, devminor=17)
add("d/pipe", tarfile.FIFOTYPE)
add("d/" + "n" * 150, data=b"a long name")
for n in range(12):
    add(f"d/{n}", data=text(100 + n, n * 100))
add("last", data=text(99, 7000))
archive.close()

tar = plain.getvalue()
packer, raw = zlib.compressobj(6, zlib.DEFLATED, -15), b""
for at in range(0, len(tar), 6000):  # a block each, since spans begin between blocks
    raw += packer.compress(tar[at : at + 6000]) + packer.flush(zlib.Z_BLOCK)
raw += packer.flush()
header, lengths = b"\x1f\x8b\x08\0\0\0\0\0\0\xff", (zlib.crc32(tar), len(tar))
sys.stdout.buffer.write(header + raw + b"".join(n.to_bytes(4, "little") for n in lengths))
