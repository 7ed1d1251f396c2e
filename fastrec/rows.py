"""Which dimension of each input counts rows, found by trying, and batches of other rows.

A model's own code is the only authority on which dimension is the batch. A hypothesis ("dimension 0 of every
tensor", "dimension 1 of the candidates", "offsets cut the values") is tried by giving the model the same rows in
another order with one repeated: it holds when every answer follows its row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from itertools import combinations, pairwise
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from .inputs import Feature, Layout
from .trees import Branch, Tree

__all__ = ["Run", "alike", "count_rows", "find_rows", "take_rows"]

Run = Callable[[list[Tensor]], list[Tensor]]
_Cutter = Literal["starts", "bounds", "lengths"]

_TRIES = 64


def find_rows(layout: Layout, run: Run, tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> Layout:
    """The layout with each feature's role and the number of rows; unchanged if no hypothesis holds.

    `run` gives the model's flat outputs for flat inputs, `outputs` those for `tensors`. One where every answer
    follows its row is preferred to one where only the shapes do. Cost: one run per hypothesis, 64 at most.
    """
    shaped: Layout | None = None
    seen: set[tuple[Feature, ...]] = set()
    for features in _hypotheses(layout, tensors, outputs):
        if features in seen or (shaped is not None and any(feature.axis == 1 for feature in features)):
            continue
        if len(seen) == _TRIES:
            break
        seen.add(features)
        rows = count_rows(features, tensors)
        if not rows:
            continue
        order = torch.tensor([*range(rows - 1, -1, -1), 0])
        try:
            got = run(take_rows(features, tensors, order))
        except Exception:  # noqa: BLE001, S112 - a wrong guess may fail anywhere in a stranger's code
            continue
        axes = _grown(outputs, got, rows)
        if axes is None:
            continue
        found = replace(layout, features=features, rows=rows, output_axes=axes)
        if all(_follows(old, new, axis, order) for old, new, axis in zip(outputs, got, axes, strict=True)):
            return found
        shaped = shaped or replace(found, independent=False)
    return shaped or layout


def count_rows(features: Sequence[Feature], tensors: Sequence[Tensor]) -> int | None:
    """The number of rows of a flat batch, or None when no feature counts them."""
    for feature, tensor in zip(features, tensors, strict=True):
        if feature.role == "rows":
            return int(tensor.shape[feature.axis or 0])
        if feature.role == "starts":
            return int(tensor.shape[0])
        if feature.role == "bounds":
            return int(tensor.shape[0]) - 1
        if feature.role == "lengths":
            return int(tensor.shape[0]) // feature.keys
    return None


def take_rows(features: Sequence[Feature], tensors: Sequence[Tensor], rows: Tensor) -> list[Tensor]:
    """The flat batch of these rows (M,), in this order, repeats allowed; features that do not grow are kept."""
    cuts = {
        feature.name: _cut(feature, tensor, _total(features, tensors, feature.name), rows)
        for feature, tensor in zip(features, tensors, strict=True)
        if feature.role in ("starts", "bounds", "lengths")
    }
    taken = []
    for feature, tensor in zip(features, tensors, strict=True):
        if feature.role == "rows":
            tensor = tensor.index_select(feature.axis or 0, rows.to(tensor.device))
        elif feature.role == "values":
            tensor = tensor.index_select(0, cuts[feature.group][1])
        elif feature.role != "fixed":
            tensor = cuts[feature.name][0]
        taken.append(tensor)
    return taken


def alike(tensors: Sequence[Tensor], rows: int) -> list[Tensor]:
    """The numbers of the rows that hold the same bytes in all of these tensors (rows, ...), group by group, first rows first.

    Cost: a pass over the bytes, and a step for each run of rows that are the same.
    """
    keys = [x.contiguous().reshape(rows, -1).view(torch.uint8).numpy() for x in tensors if x.numel()]
    if not keys:
        return [torch.arange(rows)] if rows else []
    key = np.concatenate(keys, 1)
    starts = (key[1:] != key[:-1]).any(1).nonzero()[0] + 1
    found: dict[bytes, list[Tensor]] = {}
    for start, stop in pairwise([0, *starts.tolist(), rows]):
        found.setdefault(key[start].tobytes(), []).append(torch.arange(start, stop))
    return [torch.cat(runs) for runs in found.values()]


def _cut(feature: Feature, cutter: Tensor, total: int, rows: Tensor) -> tuple[Tensor, Tensor]:
    """The cutter of the chosen rows, and which values they are."""
    where = cutter.long()
    if feature.role == "lengths":
        lengths, starts = where, where.cumsum(0) - where
    else:
        ends = torch.cat([where, where.new_tensor([total])]) if feature.role == "starts" else where
        starts, lengths = ends[:-1], ends.diff()
    count = len(lengths) // feature.keys
    chosen = (torch.arange(feature.keys)[:, None] * count + rows[None]).flatten()
    lengths = lengths[chosen]
    ends = lengths.cumsum(0)
    begin = ends - lengths
    index = torch.arange(int(lengths.sum())) + (starts[chosen] - begin).repeat_interleave(lengths)
    if feature.role == "lengths":
        made = lengths
    elif feature.role == "starts":
        made = begin
    else:
        made = torch.cat([ends.new_zeros(1), ends])
    return made.to(cutter.dtype), index


def _total(features: Sequence[Feature], tensors: Sequence[Tensor], group: str) -> int:
    """How many values a cutter cuts."""
    sizes = (
        t.shape[0] for f, t in zip(features, tensors, strict=True) if f.group == group and f.role == "values"
    )
    return next(sizes, 0)


def _hypotheses(
    layout: Layout, tensors: Sequence[Tensor], outputs: Sequence[Tensor]
) -> Iterator[tuple[Feature, ...]]:
    base = _keyed(layout)
    known = count_rows(base, tensors)
    pairs = _counts(tensors, outputs) if known is None else [(known, 0)]
    for count, axis in pairs:
        plain = _along(base, tensors, count, axis)
        yield plain
        if axis == 0:
            yield from _jagged(plain, tensors, count)
    for count, axis in pairs:
        plain = _along(base, tensors, count, axis)
        grown = [i for i, feature in enumerate(plain) if feature.role == "rows"]
        for dropped in range(1, len(grown)):
            for left_out in combinations(grown, dropped):
                yield tuple(base[i] if i in left_out else feature for i, feature in enumerate(plain))


def _counts(tensors: Sequence[Tensor], outputs: Sequence[Tensor]) -> list[tuple[int, int]]:
    """Likely numbers of rows with the dimension that holds them, the likeliest first.

    A first dimension of 1 beside a longer second one is most often a single request with many candidates.
    """
    found: list[tuple[int, int]] = []
    for output in outputs:
        single = output.dim() >= 2 and output.shape[0] == 1 and output.shape[1] > 1
        if single and any(t.dim() >= 2 and t.shape[:2] == output.shape[:2] for t in tensors):
            found.append((output.shape[1], 1))
    found += [(tensor.shape[0], 0) for tensor in outputs if tensor.dim() >= 1]
    found += [(tensor.shape[0], 0) for tensor in tensors if tensor.dim() >= 1]
    found += [(tensor.shape[1], 1) for tensor in outputs if tensor.dim() >= 2]
    return [pair for pair in dict.fromkeys(found) if pair[0] > 0]


def _along(
    features: Sequence[Feature], tensors: Sequence[Tensor], count: int, axis: int
) -> tuple[Feature, ...]:
    """Every tensor whose size along `axis` is `count` grows there."""
    made = []
    for feature, tensor in zip(features, tensors, strict=True):
        fits = feature.role == "fixed" and tensor.dim() > axis and tensor.shape[axis] == count
        made.append(replace(feature, role="rows", axis=axis) if fits else feature)
    return tuple(made)


def _jagged(
    plain: tuple[Feature, ...], tensors: Sequence[Tensor], count: int
) -> Iterator[tuple[Feature, ...]]:
    """Hypotheses in which integer vectors cut values: each the values nearest to it, or the first the first and so on."""
    cutters: dict[int, tuple[_Cutter, int | None]] = {}
    for i, tensor in enumerate(tensors):
        cut = _cutter(tensor, count)
        if cut is not None:
            cutters[i] = cut

    def fits(i: int, j: int) -> bool:
        total = cutters[i][1]
        if tensors[j].dim() == 0:
            return False
        return (
            tensors[j].shape[0] == total
            if total is not None
            else tensors[j].shape[0] >= int(tensors[i].max())
        )

    def cut_by(values: dict[int, int]) -> tuple[Feature, ...]:
        made = list(plain)
        for j, i in values.items():
            made[i] = replace(plain[i], role=cutters[i][0], axis=None)
            made[j] = replace(plain[j], role="values", axis=None, group=plain[i].name)
        return tuple(made)

    values: dict[int, int] = {}
    for j, feature in enumerate(plain):
        if feature.role == "fixed" and (able := [i for i in cutters if i != j and fits(i, j)]):
            values[j] = min(able, key=lambda i, j=j: (abs(i - j), i))  # type: ignore[misc]  # mypy does not infer lambdas with defaults
    for i in set(cutters) - set(values.values()) - set(values):
        # As many values as rows: the values look like one more tensor of rows.
        able = [
            j for j, f in enumerate(plain) if j != i and f.role == "rows" and j not in cutters and fits(i, j)
        ]
        if able:
            values[min(able, key=lambda j, i=i: (abs(i - j), j))] = i  # type: ignore[misc]  # mypy does not infer lambdas with defaults
    values = {j: i for j, i in values.items() if j not in values.values()}
    if values:
        yield cut_by(values)

    vectors = [j for j, tensor in enumerate(tensors) if tensor.dim() == 1]
    # Lists of ids beside lists of offsets, whichever come first. An id vector may look like lengths, so every
    # split of the vectors into two equal runs is looked at.
    for half in range(len(vectors) // 2, 0, -1):
        for first, second in (
            (vectors[-2 * half : -half], vectors[-half:]),
            (vectors[-half:], vectors[-2 * half : -half]),
        ):
            if all(i in cutters and fits(i, j) for i, j in zip(first, second, strict=True)):
                yield cut_by(dict(zip(second, first, strict=True)))


def _cutter(tensor: Tensor, count: int) -> tuple[_Cutter, int | None] | None:
    """What an integer vector may cut values as, and how many values (None: not said)."""
    if tensor.dim() != 1 or tensor.is_floating_point() or tensor.dtype == torch.bool or tensor.shape[0] == 0:
        return None
    rising = int(tensor[0]) == 0 and bool((tensor.diff() >= 0).all())
    if rising and tensor.shape[0] == count + 1:
        return "bounds", int(tensor[-1])
    if rising and tensor.shape[0] == count:
        return "starts", None
    if tensor.shape[0] == count and int(tensor.min()) >= 0:
        return "lengths", int(tensor.sum())
    return None


def _keyed(layout: Layout) -> tuple[Feature, ...]:
    """The features with jagged tensors of keys, values and lengths marked as what they are."""
    features = list(layout.features)

    def visit(tree: Tree) -> None:
        if not isinstance(tree, Branch):
            return
        if tree.kind == "jagged":
            values, lengths = (child.index for child in tree.children if hasattr(child, "index"))
            features[lengths] = replace(features[lengths], role="lengths", keys=max(1, len(tree.extra)))
            features[values] = replace(features[values], role="values", group=features[lengths].name)
        for child in tree.children:
            visit(child)

    for tree in layout.trees:
        visit(tree)
    return tuple(features)


def _grown(old: Sequence[Tensor], new: Sequence[Tensor], rows: int) -> tuple[int | None, ...] | None:
    """The dimension along which each output went from `rows` to `rows + 1`; None if they do not fit."""
    if len(old) != len(new):
        return None
    axes: list[int | None] = []
    for before, after in zip(old, new, strict=True):
        if before.dim() != after.dim() or before.dtype != after.dtype:
            return None
        changed = [k for k, (a, b) in enumerate(zip(before.shape, after.shape, strict=True)) if a != b]
        if changed and (
            len(changed) > 1 or (before.shape[changed[0]], after.shape[changed[0]]) != (rows, rows + 1)
        ):
            return None
        axes.append(changed[0] if changed else None)
    return tuple(axes) if any(axis is not None for axis in axes) else None


def _follows(old: Tensor, new: Tensor, axis: int | None, order: Tensor) -> bool:
    """Whether each answer moved with its row, up to float rounding."""
    expected = old if axis is None else old.index_select(axis, order)
    if not old.dtype.is_floating_point:
        return torch.equal(expected, new)
    finite = expected[expected.isfinite()]
    scale = float(finite.abs().max()) if finite.numel() else 1.0
    return torch.allclose(new, expected, rtol=1e-4, atol=1e-5 * max(scale, 1e-30), equal_nan=True)
