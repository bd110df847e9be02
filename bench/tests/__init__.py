"""Tests of the bench itself; run them with bench/selftest."""
