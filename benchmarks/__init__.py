"""Benchmarks: the standard cases, the peers they are timed against, and `python -m benchmarks.run`."""
