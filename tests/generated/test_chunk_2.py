"""A part of the generated models: see `check`."""

from .check import chunk

test_generated = chunk(2)
