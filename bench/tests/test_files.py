"""What is new of a layer's files."""
import io
import os
import tarfile
import tempfile
import unittest

from harness import files


def layer(dir_, name, members):
    path = os.path.join(dir_, name)
    with tarfile.open(path, "w:gz") as tar:
        for number, content in enumerate(members):
            info = tarfile.TarInfo(str(number))
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
        link = tarfile.TarInfo("link")
        link.type, link.linkname = tarfile.LNKTYPE, "0"
        tar.addfile(link)
    return path


class TestFiles(unittest.TestCase):
    def test_what_is_known_counts_once_and_only_in_the_whole(self):
        with tempfile.TemporaryDirectory() as dir_:
            known = files.all_of([layer(dir_, "a", [b"one", b""]), layer(dir_, "b", [b"two"])])
            self.assertEqual(len(known), 2)
            self.assertEqual(files.new(layer(dir_, "c", [b"one", b"three", b"three", b"", b"four"]), known), (17, 9))
            self.assertEqual(files.new(layer(dir_, "d", [b"four", b"fives"]), known), (9, 5))
