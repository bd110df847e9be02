"""The parts of `bench/run` and `bench/fuse`, one noun per file. Python's standard library only."""
