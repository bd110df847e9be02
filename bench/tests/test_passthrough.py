"""How apt is told to look for sources."""
import unittest

from harness import passthrough


class TestSourceList(unittest.TestCase):
    def test_binaries_become_sources(self):
        self.assertEqual(passthrough.source_list("deb http://a/debian b main\ndeb-src http://a/debian b main\n# deb x\n"),
                         "deb-src http://a/debian b main\ndeb-src http://a/debian b main\n# deb x\n")
        self.assertEqual(passthrough.source_list("Types: deb deb-src\nURIs: http://a\n"), "Types: deb-src\nURIs: http://a\n")
