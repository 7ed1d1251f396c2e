"""Examples in a short form."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from torch import nn

import fastrec
from fastrec.backends import OnnxRuntime

EXAMPLES = Path(__file__).parents[2] / "examples"


def shortened(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[fastrec.CompressedModel]:
    """What the example compresses, from now on at one size, by one backend, in seconds."""
    made: list[fastrec.CompressedModel] = []
    compress = fastrec.compress

    def short(*args: Any, **options: Any) -> fastrec.CompressedModel:
        options |= {"batch_sizes": (rows,), "seconds": 5, "backends": OnnxRuntime(), "progress": False}
        made.append(compress(*args, **options))
        return made[-1]

    monkeypatch.setattr(fastrec, "compress", short)
    return made


def low(minilm: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Callable[[], nn.Module]:
    """Towers of two layers, from now on of short titles."""
    monkeypatch.setattr(minilm, "LENGTH", 8)

    def tower() -> nn.Module:
        made = minilm.Tower()
        made.encoder.encoder.layer = made.encoder.encoder.layer[:2]
        return made

    return tower


def briefly(monkeypatch: pytest.MonkeyPatch, told: ModuleType) -> None:
    """From now on calls are timed a few times, however long that takes."""
    timed = told.interleaved
    monkeypatch.setattr(
        told, "interleaved", lambda calls, inputs, **_: timed(calls, inputs, rounds=6, warmup=1)
    )


def cells(text: str) -> list[list[str]]:
    """What stands in the rows of a table in Markdown, all of one length."""
    head, _, *rows = (
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in text.splitlines()
        if line.startswith("|")
    )
    assert rows and all(len(row) == len(head) for row in rows)
    return rows
