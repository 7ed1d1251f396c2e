"""What all tests of examples take."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from types import ModuleType

import pytest

from .support import EXAMPLES


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


@pytest.fixture
def with_pandas() -> None:
    for package in ("pandas", "sklearn"):
        pytest.importorskip(package)
