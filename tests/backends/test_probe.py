"""A child that dies tells so, and takes nobody with it."""

from __future__ import annotations

import pytest

from fastrec.backends.probe import crash_of


@pytest.mark.parametrize(
    ("code", "said"),
    [
        ("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)", "crashed (signal 11)"),
        ("raise ValueError", None),
        ("import sys; assert sys.stdin.buffer.read() == b'data' and sys.argv[1] == 'x'; sys.exit(0)", None),
        ("while True: pass", "took longer than 1 s"),
    ],
)
def test_how_it_ended(code: str, said: str | None) -> None:
    assert crash_of(code, b"data", "x", seconds=1.0) == said
