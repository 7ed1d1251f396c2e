"""Nothing is printed, nothing stays changed, and errors come in one line."""

from __future__ import annotations

import logging
import sys
import warnings

import pytest

from fastrec.quiet import quiet, reason_of


def test_quiet(capfd: pytest.CaptureFixture[str]) -> None:
    before = (sys.stdout, sys.stderr, list(warnings.filters), logging.getLogger("torch.export").level)
    with pytest.raises(KeyError), quiet():
        print("a graph")
        print("a graph", file=sys.stderr)
        warnings.warn("a warning", stacklevel=1)
        logging.getLogger("torch.export").warning("a log line")
        raise KeyError
    assert capfd.readouterr() == ("", "")
    assert (sys.stdout, sys.stderr, list(warnings.filters), logging.getLogger("torch.export").level) == before


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ValueError("plain"), "ValueError: plain"),
        (ValueError(""), "ValueError"),
        (RuntimeError("\x1b[31mTraceback of it\x1b[0m\n\n  the reason\nmore"), "RuntimeError: the reason"),
    ],
)
def test_reason(error: Exception, said: str) -> None:
    assert reason_of(error) == said
