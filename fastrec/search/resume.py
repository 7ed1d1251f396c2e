"""Trials in a file, so that a search that was ended goes on where it was: one line for each, written as soon as it is over."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifact.tensors import digest_of
from ..backends import Backend
from ..budget import Budget
from ..errors import InputError
from ..measure import Evaluator, machine
from ..plain import to_plain
from ..program import Program
from ..recipe import Recipe
from ..tried import Tried
from .order import Trial

__all__ = ["Recorded", "fingerprint"]

SCHEMA = 1


class Recorded:
    """A trial that is not made twice: not where the file has it, and written there as soon as it was made; without a path known here alone.

    A line that was cut off as it was written is left out, and its trial made again. Raises `InputError` where the file is of another
    search, naming what differs, or is none of trials, and where it cannot be written.
    """

    def __init__(self, path: Path | None, of: dict[str, str], trial: Trial) -> None:
        self._path, self._trial = path, trial
        self._known: dict[str, Tried] = {}
        if path is None:
            return
        try:
            text = path.read_text(encoding="utf-8") if path.exists() else ""
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"resume={str(path)!r} cannot be read: {error}") from error
        lines = text.split("\n")
        whole = lines[:-1]  # whatever follows the last newline was cut off
        if not whole:
            self._write(json.dumps({"schema": SCHEMA, "of": of}) + "\n", "w")
            return
        self._check(whole[0], of)
        for number, line in enumerate(whole[1:], 2):
            key, seen = self._read(number, line)
            self._known[key] = seen
        if lines[-1]:
            self._write("\n".join([*whole, ""]), "w")

    def __call__(self, recipe: Recipe, best: Recipe) -> Tried:
        """What became, or becomes, of a recipe beside the best so far."""
        if not self.has(recipe, best):
            self.keep(recipe, best, self._trial(recipe, best))
        return self._known[_key(recipe, best)]

    def has(self, recipe: Recipe, best: Recipe) -> bool:
        """Whether that was made."""
        return _key(recipe, best) in self._known

    def keep(self, recipe: Recipe, best: Recipe, seen: Tried) -> None:
        """Notes what became of it, wherever that was made."""
        key = _key(recipe, best)
        if self._path is not None:
            self._write(json.dumps({"key": key, "tried": seen.to_plain()}, allow_nan=False) + "\n", "a")
        self._known[key] = seen

    def _check(self, line: str, of: dict[str, str]) -> None:
        head = self._parsed(1, line)
        if head.get("schema") != SCHEMA or not isinstance(head.get("of"), dict):
            raise InputError(
                f"resume={str(self._path)!r} is no file of trials of this version: give another one"
            )
        differs = sorted(name for name in {*of, *head["of"]} if of.get(name) != head["of"].get(name))
        if differs:
            raise InputError(
                f"resume={str(self._path)!r} has trials of another search ({', '.join(differs)} differ): give another file, or "
                "delete this one"
            )

    def _read(self, number: int, line: str) -> tuple[str, Tried]:
        data = self._parsed(number, line)
        key = data.get("key")
        if not isinstance(key, str):
            raise InputError(f"resume={str(self._path)!r}, line {number} is no trial: delete the file")
        return key, Tried.from_plain(data.get("tried"))

    def _parsed(self, number: int, line: str) -> dict[str, Any]:
        try:
            data = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InputError(f"resume={str(self._path)!r}, line {number} is no JSON: {error}") from error
        if not isinstance(data, dict):
            raise InputError(f"resume={str(self._path)!r}, line {number} is no object")
        return data

    def _write(self, text: str, mode: str) -> None:
        assert self._path is not None
        try:
            with self._path.open(mode, encoding="utf-8") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise InputError(f"resume={str(self._path)!r} cannot be written: {error}") from error


def _key(recipe: Recipe, best: Recipe) -> str:
    return hashlib.sha256(f"{recipe.to_json()}\n{best.to_json()}".encode()).hexdigest()


def fingerprint(
    program: Program,
    calibration: Sequence[Sequence[Tensor]],
    evaluate: Evaluator,
    budget: Budget,
    backends: Sequence[Backend],
    sizes: Sequence[int],
) -> dict[str, str]:
    """What the outcome of trials depends on, each as a digest or a word. Cost: one pass over the tensors."""
    here = machine()
    state = program.model.state_dict()
    return {
        "model": _digest([repr(program.model), *state], [t for t in state.values() if isinstance(t, Tensor)]),
        "calibration": _digest([], [tensor for flat in calibration for tensor in flat]),
        "evaluate": _digest(
            evaluate.metrics,
            [
                torch.from_numpy(np.ascontiguousarray(array))
                for array in (evaluate.labels, evaluate.rows, evaluate.groups)
                if array is not None
            ],
        ),
        "budget": json.dumps(to_plain(budget, "budget"), sort_keys=True),
        "backends": ", ".join(backend.label for backend in backends),
        "batch sizes": ", ".join(map(str, sizes)),
        "machine": f"{here.cpu}, {here.threads} threads, {here.libraries}",
    }


def _digest(words: Sequence[str], tensors: Sequence[Tensor]) -> str:
    told = [f"{tensor.dtype} {tuple(tensor.shape)} {digest_of(tensor.cpu())}" for tensor in tensors]
    return hashlib.sha256("\n".join([*words, *told]).encode()).hexdigest()
