"""Commands called in this process, and a folder with a module of the caller's in it."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from fastrec.cli.app import app
from tests.artifact.conftest import Saved, one_thread, saved

__all__ = ["Result", "Saved", "one_thread", "saved"]

MODULE = """
import os
import sys
import torch
from tests.artifact.conftest import batch, ranker

print("the module is read")
os.write(2, b"")
CALLED = []

def build():
    print("built")
    CALLED.append(1)
    return {"model": ranker(), "batch": batch(20), "request_features": ["user"]}

def pair():
    return ranker(), batch(20)

def other():
    model = ranker()
    torch.nn.init.zeros_(model.users.weight)
    return model, batch(20)

def fails():
    raise RuntimeError("there is no file of weights")

def strange():
    return {"model": ranker(), "batch": batch(2), "modle": 1}

def half():
    return {"model": ranker()}

def nothing():
    return 3

NUMBER = 3
"""


@dataclass(frozen=True)
class Result:
    """What a command gave."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> dict[str, Any]:
        """Standard output as the one object that it has to be."""
        found = json.loads(self.out)
        assert isinstance(found, dict)
        return found


@pytest.fixture
def fastrec() -> Callable[..., Result]:
    """Runs the command line."""

    def run(*given: object) -> Result:
        result = CliRunner().invoke(app, [str(one) for one in given], prog_name="fastrec")
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return Result(result.exit_code, result.stdout, result.stderr)

    return run


@pytest.fixture
def mine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The current directory, with a module of the caller's that only it leads to."""
    (tmp_path / "callers_own.py").write_text(MODULE)
    monkeypatch.chdir(tmp_path)
    before = list(sys.path)
    yield tmp_path
    assert sys.path == before
    sys.modules.pop("callers_own", None)
