"""Rows of a table scored by one artifact, opened once in each process: calls of whole requests, and rows that cannot be set aside."""

from __future__ import annotations

import functools
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..artifact import Manifest
from ..artifact.folder import opened, refuse_other
from ..artifact.layouts import Classes, layout_of
from ..compressed import load
from ..errors import FastrecError, InputError
from ..rows import alike, take_rows
from ..trees import Branch, Leaf, Tree, tensors_of
from .columns import Bad, Columns
from .sifting import sift
from .tables import Array, length

__all__ = ["Output", "Scoring", "outputs_of", "scoring"]

# Answers of these have no value for "none": they are given as floats, exact up to 2^53.
_GIVEN = {"float32": np.float32, "float16": np.float32, "bfloat16": np.float32}
_OPENING = threading.Lock()


@dataclass(frozen=True)
class Output:
    """One answer for each row: its name, dtype as it is given, sizes for one row, and where it is among the model's answers."""

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    place: int
    axis: int

    @property
    def wide(self) -> torch.dtype:
        """The dtype, as torch has it."""
        return torch.float32 if self.dtype == np.float32 else torch.float64


def outputs_of(folder: str, digest: str, types: Sequence[type], prefix: str) -> tuple[Output, ...]:
    """What the model of an artifact gives for each row; what does not count rows is left out. Nothing is loaded.

    Raises `ArtifactError` where the artifact is another, `InputError` where no answer is a row's.
    """
    with opened(folder, verify=False) as files:
        _refuse_other(folder, files.digest, digest)
        manifest: Manifest = files.manifest
        layout = layout_of(dict(manifest.layout), Classes(types), files.where("manifest.json"))
    if layout.rows is None or not layout.independent:
        raise InputError(
            "the model's answers are not each a row's own, so rows of a table cannot be scored one beside another: "
            "call the model with batches of your own"
        )
    example = manifest.example
    if example is None or not example.answers:
        raise InputError(
            f"the artifact at {folder} has no drawn batch, so the form of its answers is not known: score with the model itself"
        )
    answers = next(iter(example.answers.values())).tensors
    found = []
    names = _names(layout.outputs, prefix)
    for place, (one, axis) in enumerate(zip(answers, layout.output_axes, strict=True)):
        if axis is not None:
            shape = tuple(size for k, size in enumerate(one["shape"]) if k != axis)
            dtype = np.dtype(_GIVEN.get(one["dtype"], np.float64))
            found.append(Output(names[place], dtype, shape, place, axis))
    if len({one.name for one in found}) < len(found):
        raise InputError(f"two answers of the model have one name: {', '.join(one.name for one in found)}")
    return tuple(found)


def scoring(
    folder: str,
    digest: str,
    types: tuple[type, ...],
    verify: bool,
    columns: tuple[tuple[str, str | tuple[str, ...]], ...],
    output: str,
) -> Scoring:
    """What scores with this artifact in this process: opened at the first call, the same at each other. Raises as `Scoring`."""
    # Threads that begin together open one model, not one each.
    with _OPENING:
        return _opened(folder, digest, types, verify, columns, output)


@functools.lru_cache(maxsize=4)
def _opened(
    folder: str, digest: str, types: tuple[type, ...], verify: bool,
    columns: tuple[tuple[str, str | tuple[str, ...]], ...], output: str,
) -> Scoring:  # fmt: skip
    return Scoring(folder, digest, types, verify, dict(columns), output)


class Scoring:
    """A compressed model, how its features are read from tables, and what it gives for each row.

    Raises `ArtifactError` where the artifact of the folder is not that of the digest, and as `fastrec.load`.
    """

    def __init__(
        self,
        folder: str,
        digest: str,
        types: tuple[type, ...],
        verify: bool,
        columns: Mapping[str, str | Sequence[str]],
        output: str,
    ) -> None:
        self.outputs = outputs_of(folder, digest, types, output)
        self.model = load(folder, types=types, verify=verify)
        # What was opened is what counts: another one may have taken its place since.
        _refuse_other(folder, self.model.digest, digest)
        self._layout, self._guard = self.model.original.layout, self.model.guard
        self._once = self.model.once
        features = self._layout.features
        bounds = self._guard.bounds if self._guard is not None else (None,) * len(features)
        self.columns = Columns(self._layout, bounds, columns)
        self._shared = frozenset(
            f.name for i, f in enumerate(features)
            if i in self.columns.fixed or (f.request is True and f.role == "rows")
        )  # fmt: skip

    def __call__(self, table: Any, rows: int) -> tuple[dict[str, Array], Bad]:
        """The answers (n, ...) to all rows of a table by name, NaN in those that are bad, and these; calls of `rows` rows at the most."""
        n = length(table)
        made = {one.name: np.full((n, *one.shape), np.nan, one.dtype) for one in self.outputs}
        flat, bad = self.columns.read(table)
        good = np.ones(n, bool)
        good[sorted(bad)] = False
        for request in self._requests(flat, torch.from_numpy(good.nonzero()[0])):
            for start in range(0, len(request), rows):
                chosen = request[start : start + rows]
                kept, answers = self._sifted(flat, chosen, bad)
                for one in self.outputs if answers else ():
                    answer = answers[one.place].movedim(one.axis, 0)
                    made[one.name][kept.numpy()] = answer.to(one.wide).numpy(force=True)
        for one in self.outputs:
            odd = np.unique(np.isnan(made[one.name]).nonzero()[0])
            # Those that are bad have no answer; an answer that is none is bad too.
            for row in odd:
                bad.setdefault(int(row), ("", f"{one.name} is not a number"))
        return made, bad

    def _requests(self, flat: list[Tensor], rows: Tensor) -> list[Tensor]:
        """The rows of each call: all, or those that agree in what is the same in all rows of a call, first rows first."""
        shared = []
        for index, feature in enumerate(self.columns.features):
            whole = index in self.columns.fixed or (feature.request is True and feature.role == "rows")
            if feature.role == "rows" and (whole or isinstance(feature.request, tuple)):
                taken = flat[index].movedim(feature.axis or 0, 0)[rows]
                shared.append(taken if whole else taken[:, list(feature.request)])  # type: ignore[arg-type]  # columns then
        return [rows[request] for request in alike(shared, len(rows))]

    def _sifted(self, flat: list[Tensor], rows: Tensor, bad: Bad) -> tuple[Tensor, list[Tensor]]:
        """The rows that could be scored, and the answers to them; nothing is checked beforehand, as most calls are clean."""
        checks = [self._checked, self._answers] if self._guard is not None else [self._answers]
        last: Exception = InputError("no row was asked for")
        for check in [None, *checks]:
            if check is not None:
                given, known = rows, dict(bad)
                rows = sift(lambda some, check=check: check(flat, some), rows, bad, self._shared)  # type: ignore[misc]  # mypy does not infer lambdas with defaults
                if not len(rows) and len(given) > 1 and not isinstance(last, InputError):
                    # What fails for every row is no row's fault.
                    bad.clear()
                    bad.update(known)
                    raise last
            if not len(rows):
                return rows, []
            try:
                return rows, self._answers(flat, rows)
            except FastrecError as error:
                if not isinstance(error, InputError):
                    raise
                last = error
            except Exception as error:  # noqa: BLE001 - whatever a stranger's model raises; if no row is to blame it is raised below
                last = error
        raise last

    def _taken(self, flat: list[Tensor], rows: Tensor) -> list[Tensor]:
        """The flat batch of one call."""
        taken = take_rows(self.columns.features, flat, rows)
        return [x[0] if index in self.columns.fixed else x for index, x in enumerate(taken)]

    def _checked(self, flat: list[Tensor], rows: Tensor) -> None:
        assert self._guard is not None
        taken = self._taken(flat, rows)
        self._guard(self._once.first(taken) if self._once else taken)

    def _answers(self, flat: list[Tensor], rows: Tensor) -> list[Tensor]:
        taken = self._taken(flat, rows)
        args, kwargs = self._layout.arguments(self._once.first(taken) if self._once else taken)
        return tensors_of(self.model(*args, **kwargs))


def _refuse_other(folder: str, found: str, expected: str) -> None:
    cure = "Make a new scorer, and score all rows with that, so that none are of two models."
    refuse_other(folder, found, expected, meant="this scorer was made for", cure=cure)


def _names(tree: Tree, prefix: str) -> list[str]:
    if isinstance(tree, Leaf):
        return [prefix]
    if isinstance(tree, Branch):
        parts = [
            _names(child, f"{prefix}_{key}") for key, child in zip(tree.keys, tree.children, strict=True)
        ]
        return [name for part in parts for name in part]
    return []
