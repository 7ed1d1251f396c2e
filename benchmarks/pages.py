"""Benchmarks of settings on trained models: their arguments, their record, and the page that shows it."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch

from fastrec.plain import dumps, to_plain

__all__ = ["ROOT", "results", "run"]

ROOT = Path(__file__).parent.parent


def results(name: str) -> Path:
    """The folder of a benchmark's records, one for each machine."""
    return ROOT / "benchmarks" / "results" / name


def run(
    text: str | None,
    name: str,
    schema: int,
    measure: Callable[[float, Sequence[str]], Any],
    show: Callable[[Any], None],
) -> None:
    """Measures as the command line says, writes the record, and shows the whole of it on the page."""
    parser = argparse.ArgumentParser(description=text)
    parser.add_argument("--seconds", type=float, default=2.0, help="for each size of each setting")
    parser.add_argument("--only", nargs="*", default=(), help="settings that hold one of these words")
    parser.add_argument("--out", type=Path, help="where to write, the results folder if not given")
    given = parser.parse_args()
    torch.set_num_threads(1)
    found = measure(given.seconds, given.only)
    path = given.out or results(name) / f"{found.machine.slug}.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(dumps({"schema": schema, **to_plain(found, name)}) + "\n")
    if not given.only and given.out is None:
        show(found)
