#!/usr/bin/env python3
"""Writes the tars that the vectors are made of: base.tar with every oddity, two layers above it, and big.tar with files of
several mebibytes, also as gzip of several members."""

import gzip
import sys
import tarfile

TIME = 1_600_000_000


def text(seed, length):
    """Bytes that pack well and are nowhere the same."""
    out, n = bytearray(), seed
    while len(out) < length:
        n = (n * 1103515245 + 12345) % 2**31
        out += b"%08x the same words again and again, so that it packs well\n" % n * (n % 17 + 5)
    return bytes(out[:length])


def noise(seed, length):
    """Bytes that do not pack."""
    out, n = bytearray(), seed
    for _ in range(length):
        n = (n * 6364136223846793005 + 1442695040888963407) % 2**64
        out.append(n >> 56)
    return bytes(out)


class Writer:
    def __init__(self, path):
        self.file = open(path, "wb")

    def add(self, name, kind=tarfile.REGTYPE, data=b"", mode=0o644, uid=0, gid=0, mtime=TIME, link="", dev=(0, 0), xattrs=None):
        info = tarfile.TarInfo(name)
        info.type, info.mode, info.uid, info.gid, info.mtime = kind, mode, uid, gid, mtime
        info.linkname, info.size = link, len(data)
        info.devmajor, info.devminor = dev
        for key, value in (xattrs or {}).items():
            info.pax_headers["SCHILY.xattr." + key] = value
        headers = bytearray(info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape"))
        if kind == tarfile.FIFOTYPE:
            # Python leaves the device number empty, which nydus-image takes for damage.
            headers[-512 + 329 : -512 + 345] = b"0000000\0" * 2
            headers[-512 + 148 : -512 + 156] = b" " * 8
            headers[-512 + 148 : -512 + 155] = b"%06o\0" % sum(headers[-512:])
        self.file.write(headers + data + b"\0" * (-len(data) % 512))

    def close(self):
        self.file.write(b"\0" * 1024)
        self.file.close()

    def dir(self, name, **more):
        self.add(name, tarfile.DIRTYPE, mode=more.pop("mode", 0o755), **more)


def base(path):
    w = Writer(path)
    w.dir("files", mtime=1)
    w.add("files/empty")
    w.add("files/one byte", data=b"1")
    w.add("files/block", data=text(1, 4096), mtime=TIME + 5)
    w.add("files/block and one", data=text(2, 4097), uid=1000, gid=1000)
    w.add("files/several chunks", data=text(3, 70_000), mode=0o4755)
    w.add("files/whole chunks", data=text(4, 32_768), mode=0o2755)
    w.add("files/noise", data=noise(5, 5_000), uid=4_000_000_000, gid=3_999_999_999)
    w.add("files/twin of block", data=text(1, 4096), mode=0o1600)
    w.add("files/ends like several", data=text(6, 16_384) + text(3, 70_000)[16_384:32_768])
    w.add("files/hard 1", data=text(7, 10_000), mode=0o640)
    w.add("files/hard 2", tarfile.LNKTYPE, link="files/hard 1", mode=0o640)
    w.add("another hard", tarfile.LNKTYPE, link="files/hard 1", mode=0o640)
    w.add("files/old.pyc", data=text(8, 100), mtime=1_234_567_890)
    w.dir("links")
    w.add("links/short", tarfile.SYMTYPE, link="../files/empty", mode=0o777)
    w.add("links/long", tarfile.SYMTYPE, link="x/" * 1_500 + "y", mode=0o777)
    w.add("links/longest", tarfile.SYMTYPE, link="z" * 4_095, mode=0o777)
    w.add("links/nowhere", tarfile.SYMTYPE, link="/../..", mode=0o777)
    w.dir("special", mode=0o1777, uid=70_000, gid=70_001)
    w.add("special/null", tarfile.CHRTYPE, dev=(1, 3), mode=0o666)
    w.add("special/big", tarfile.BLKTYPE, dev=(259, 1_000), mode=0o660, gid=6)
    w.add("special/pipe", tarfile.FIFOTYPE, mode=0o600)
    w.dir("xattrs", xattrs={"trusted.note": "on a directory"})
    w.add("xattrs/one", data=b"attr", xattrs={"user.key": "value"})
    w.add("xattrs/many", xattrs={f"user.number {n}": "v" * n * 20 for n in range(12)})
    w.add("xattrs/label", data=b"x", xattrs={"security.selinux": "system_u:object_r:bin_t:s0\0", "user.empty": ""})
    w.dir("names")
    w.add("names/n" + "a" * 254, data=b"longest")
    w.add("names/\udcff\udcfe not text", data=b"bytes")
    w.add("names/\xe4\u4e2d\U0001f980", data=b"utf-8")
    w.add("names/!before the dots", data=b"!")
    w.add("names/ blank", data=b" ")
    w.add("names/new\nline", data=b"\n")
    w.add("names/...", data=b"...")
    # Each directory is listed: nydus-image puts what lies in one that is not into another one.
    for depth in range(31):
        w.dir("deep" + "/d" * depth)
    w.add("deep" + "/d" * 30 + "/bottom", data=text(9, 5_000))
    w.dir("many")
    for n in range(250):
        w.add(f"many/file number {n:03} of a directory of several blocks", data=text(n % 30 + 100, n % 40 * 9))
    w.close()


def middle(path):
    w = Writer(path)
    w.dir("files", mode=0o700, uid=3)
    w.add("files/.wh.empty")
    w.add("files/block", data=text(20, 20_000), mtime=TIME + 9)
    w.add("files/.wh.hard 2")
    w.dir("special")
    w.add("special/.wh..wh..opq")
    w.add("special/only", data=text(1, 4096))
    w.dir("links")
    w.add("links/short", tarfile.SYMTYPE, link="elsewhere", mode=0o777)
    w.dir("added")
    w.add("added/a", data=text(21, 2_000))
    w.add("added/b", tarfile.LNKTYPE, link="added/a")
    w.close()


def top(path):
    w = Writer(path)
    w.add(".wh.deep")
    w.add("names", data=b"a file in place of a directory")
    w.dir("added", mode=0o711)
    w.add("added/c", data=text(3, 70_000))
    w.add("added/a", data=text(22, 17_000), xattrs={"user.top": "yes"})
    w.close()


def repeated(seed, length):
    """Bytes that pack to almost nothing, and are in each mebibyte others."""
    return b"".join(text(seed + n, 2_000) * 50 for n in range(length // 100_000 + 1))[:length]


def big(path):
    w = Writer(path)
    w.add("first", data=text(30, 100_000))
    w.add("large", data=text(31, 2_400_000))
    w.dir("names", mode=0o711)
    w.add("names/noise", data=noise(32, 3_000))
    w.add("names/large", data=repeated(80, 1_500_000), mode=0o755)
    w.add("names/twin", data=text(30, 100_000))
    w.add("names/again", data=repeated(80, 1_500_000)[: 1 << 20])
    w.add("last", data=b"the end")
    w.close()


for name, make in (("base", base), ("middle", middle), ("top", top), ("big", big)):
    make(f"{sys.argv[1]}/{name}.tar")

# As pigz and concatenation make them: a file goes on in the next member.
with open(f"{sys.argv[1]}/big.tar", "rb") as tar, open(f"{sys.argv[1]}/big.gz", "wb") as out:
    while part := tar.read(1_300_000):
        out.write(gzip.compress(part, 9, mtime=0))
with open(f"{sys.argv[1]}/base.tar", "rb") as tar, open(f"{sys.argv[1]}/base.gz", "wb") as out:
    out.write(gzip.compress(tar.read(), 9, mtime=0))
