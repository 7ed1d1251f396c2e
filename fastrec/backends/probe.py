"""A trial in a child process, of what may end a process.

A library that crashes on a graph (a segmentation fault, not an exception) would take the caller's service with
it. What is known to crash is tried in a child first.
"""

from __future__ import annotations

import subprocess
import sys

__all__ = ["crash_of"]


def crash_of(code: str, data: bytes, *arguments: str, seconds: float = 120.0) -> str | None:
    """How a child process running `code` ended, with `data` on its standard input; None if it ended well.

    An exception in the child counts as well: it will be met again, and named better, in this process. Where
    Python cannot be started anew (an embedded one), nothing is tried.
    """
    if not sys.executable:
        return None
    command = [sys.executable, "-c", code, *arguments]
    try:
        done = subprocess.run(command, input=data, capture_output=True, timeout=seconds, check=False)  # noqa: S603 - a fixed command of our own
    except subprocess.TimeoutExpired:
        return f"took longer than {seconds:.0f} s"
    return f"crashed (signal {-done.returncode})" if done.returncode < 0 else None
