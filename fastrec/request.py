"""The request: which features are the same in all rows of one call, and so are given, and used, once.

A call scores one request against N candidates. Features of the request are declared by name; the captured graph
then takes one row of each and spreads it over the candidates where the model first reads it. Rules of fusion move
the spreading behind whatever needs the request alone.
"""

from __future__ import annotations

import contextlib
import operator
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import groupby
from typing import Any

import torch
from torch import Tensor, fx

from .errors import InputError, RequestMismatchError
from .graph import copy_graph, emit, evaluate, is_call, sweep, value
from .inputs import Feature
from .program import Program
from .rows import alike, count_rows, take_rows
from .shapes import misfit

__all__ = ["Once", "ask"]

aten = torch.ops.aten
_REQUESTS = 8


class Once:
    """Batches as the graph of one request takes them, and back.

    Whole request features have one row in the graph; of a matrix with request columns every row is kept.
    """

    def __init__(self, features: Sequence[Feature], *, check: bool = True) -> None:
        self._features = tuple(features)
        self._whole = [
            (i, f.axis or 0) for i, f in enumerate(features) if f.request is True and f.role == "rows"
        ]
        self._mixed = [
            (i, _slice(f.request))
            for i, f in enumerate(features)
            if isinstance(f.request, tuple) and f.role == "rows"
        ]
        self.check = check
        self.candidates = tuple(
            replace(f, role="fixed") if f.request is True and f.role == "rows" else f for f in features
        )

    def __bool__(self) -> bool:
        return bool(self._whole or self._mixed)

    def one(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The flat batch with one row of each request feature.

        Raises `RequestMismatchError` where rows of one differ, unless they are not to be compared.
        """
        self._fit(tensors)
        return self.reduced(tensors)

    def several(self, tensors: Sequence[Tensor]) -> bool:
        """Whether rows have to be compared or left out: none of it for a single candidate."""
        return any(tensors[i].shape[axis] != 1 for i, axis in self._whole) or any(
            self.check and len(tensors[i]) > 1 for i, _ in self._mixed
        )

    def reduced(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """As `one`, of a batch whose numbers of rows are known to fit."""
        if self.check:
            for index, axis in self._whole:
                self._compare(index, tensors[index], axis)
            for index, columns in self._mixed:
                self._compare(index, tensors[index][:, columns], 0)
        return self.first(tensors)

    def _fit(self, tensors: Sequence[Tensor]) -> None:
        """Raises `InputError` for a request feature that has neither one row nor one for each candidate."""
        rows = None
        for index, axis in self._whole:
            tensor, feature = tensors[index], self._features[index]
            if tensor.dim() != len(feature.shape):
                raise misfit(feature, tensor)
            if tensor.shape[axis] == 1:
                continue
            rows = count_rows(self.candidates, tensors) if rows is None else rows
            if rows is not None and tensor.shape[axis] != rows:
                raise InputError(
                    f"feature {feature.name!r} has {tensor.shape[axis]} rows, expected {rows}, one for each candidate, "
                    "or a single one for all of them.",
                    feature=feature.name,
                )

    def first(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The flat batch with the first row of each request feature, whatever the others are; zeros where it has none."""
        made = list(tensors)
        for index, axis in self._whole:
            tensor = tensors[index]
            if tensor.shape[axis] > 1:
                made[index] = tensor.narrow(axis, 0, 1)
            elif tensor.shape[axis] == 0:
                # No answer reads it, and zero is an id of every table.
                made[index] = tensor.new_zeros([1 if k == axis else n for k, n in enumerate(tensor.shape)])
        return made

    def all(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The flat batch with request features repeated for every candidate, as the model takes it."""
        rows = count_rows(self.candidates, tensors)
        made = list(tensors)
        for index, axis in self._whole:
            if rows is not None and made[index].shape[axis] == 1 != rows:
                sizes = list(made[index].shape)
                sizes[axis] = rows
                # A copy: models may write into their inputs, and kernels want rows in memory.
                made[index] = made[index].expand(sizes).contiguous()
        return made

    def same(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The flat batch with its first row's request features in every row: one request's batch."""
        made = list(tensors)
        for index, axis in self._whole:
            if made[index].shape[axis]:
                made[index] = made[index].narrow(axis, 0, 1).expand_as(made[index]).contiguous()
        for index, columns in self._mixed:
            if len(made[index]):
                made[index] = made[index].clone()
                made[index][:, columns] = made[index][:1, columns].clone()
        return made

    def requests(self, tensors: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """The flat batch with each of its first rows in turn in front, where they are different requests."""
        rows = count_rows(self._features, tensors)
        count = min(rows or 1, _REQUESTS) if self.differing(tensors) else 1
        for start in range(count):
            order = (torch.arange(rows or 1) + start) % (rows or 1)
            yield take_rows(self._features, tensors, order) if count > 1 else list(tensors)

    def groups(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """The row numbers of each request in a flat batch that holds several, in order of their first rows."""
        rows = count_rows(self._features, tensors) or 0
        parts = [tensors[i].movedim(axis, 0) for i, axis in self._whole]
        parts += [tensors[i][:, columns] for i, columns in self._mixed]
        return alike(parts, rows)

    def agreeing(self, tensors: Sequence[Tensor]) -> dict[str, bool | tuple[int, ...]]:
        """Undeclared features whose rows all agree, as a declaration would have them: `name -> True | columns`."""
        found: dict[str, bool | tuple[int, ...]] = {}
        for feature, tensor in zip(self._features, tensors, strict=True):
            axis = feature.axis or 0
            if feature.role != "rows" or feature.request is not False or tensor.shape[axis] < 2:
                continue
            equal = _equal(tensor, tensor.narrow(axis, 0, 1))
            if bool(equal.all()):
                found[feature.name] = True
            elif tensor.dim() == 2 and axis == 0 and bool((columns := equal.all(0)).any()):
                found[feature.name] = tuple(columns.nonzero().flatten().tolist())
        return found

    def differing(self, tensors: Sequence[Tensor]) -> list[str]:
        """Names of declared features whose rows differ."""
        found = []
        parts = [(i, tensors[i], axis) for i, axis in self._whole] + [
            (i, tensors[i][:, c], 0) for i, c in self._mixed
        ]
        for index, tensor, axis in parts:
            try:
                self._compare(index, tensor, axis)
            except RequestMismatchError:
                found.append(self._features[index].name)
        return found

    def _compare(self, index: int, tensor: Tensor, axis: int) -> None:
        rows = tensor.shape[axis]
        if rows < 2 or tensor.stride(axis) == 0:
            return
        if torch.equal(tensor.narrow(axis, 1, rows - 1), tensor.narrow(axis, 0, rows - 1)):
            return
        first = tensor.narrow(axis, 0, 1)
        differ = ~_equal(tensor, first)
        if bool(differ.any()):
            place = differ.nonzero()[0].tolist()
            feature, row = self._features[index], place[axis]
            got, want = (
                tensor[tuple(place)].item(),
                first[tuple(0 if k == axis else p for k, p in enumerate(place))],
            )
            raise RequestMismatchError(
                f"feature {feature.name!r}, row {row}: got {got}, row 0 has {want.item()}, and request features are "
                "the same in all rows of one call. Call once per request, or compress without declaring it.",
                feature=feature.name,
                row=row,
            )


def _equal(tensor: Tensor, first: Tensor) -> Tensor:
    """Where the elements equal those of the first row; NaN equals NaN."""
    return tensor.eq(first) | (tensor.ne(tensor) & first.ne(first))


def _slice(columns: tuple[int, ...]) -> slice | list[int]:
    """Neighbouring columns as a slice, which is a view."""
    first, last = columns[0], columns[-1]
    return slice(first, last + 1) if last - first + 1 == len(columns) else list(columns)


def ask(captured: Program) -> Program:
    """The captured program of one request: whole request features have one row, spread where they are read.

    The layout calls them fixed, with one row, so that whatever counts, draws or checks rows leaves them alone. Of
    a matrix with request columns, row 0 of those is spread, and batches of no rows are left to the model. Its `origin`
    is the graph of one request as well. The program itself where nothing is declared.

    Raises `InputError` where every feature that counts rows belongs to the request.
    """
    features = captured.layout.features
    once = Once(features)
    if not once or captured.layout.rows is None:
        return captured
    assert isinstance(captured.model, fx.GraphModule)
    gm = copy_graph(captured.model)
    inputs = [node for node in gm.graph.nodes if node.op == "placeholder"]
    counting = [
        (node, feature)
        for node, feature in zip(inputs, features, strict=True)
        if feature.role not in ("fixed", "values")
        and not (feature.role == "rows" and feature.request is True)
    ]
    if not counting:
        raise InputError(
            "request_features: every feature that counts rows belongs to the request, and none is left to its candidates"
        )
    made: list[Feature] = []
    with gm.graph.inserting_before(inputs[-1].next):
        count = _count(gm, *min(counting, key=lambda found: found[1].role != "rows"))
        for node, feature in zip(inputs, features, strict=True):
            if feature.request is True and feature.role == "rows":
                _spread(gm, node, feature.axis or 0, count)
                shape = tuple(1 if k == feature.axis else n for k, n in enumerate(feature.shape))
                made.append(replace(feature, role="fixed", shape=shape))
            else:
                if isinstance(feature.request, tuple) and feature.role == "rows":
                    _spread_columns(gm, node, feature.request, count)
                made.append(feature)
    _revalue(gm)
    sweep(gm)
    exempt = captured.layout.exempt
    if any(isinstance(feature.request, tuple) and feature.role == "rows" for feature in features):
        exempt = tuple(sorted({0, *exempt}))  # there is no row 0 to spread
    layout = replace(captured.layout, features=tuple(made), exempt=exempt)

    def asked(flat: Sequence[Tensor]) -> tuple[Tensor, ...]:
        return tuple(once.one(once.same(flat)))

    calibration = [asked(given) for flat in captured.calibration for given in once.requests(flat)]
    return replace(
        captured,
        model=gm,
        layout=layout,
        batch=asked(captured.batch),
        calibration=tuple(calibration),
        origin=gm,
    )


def _count(gm: fx.GraphModule, node: fx.Node, feature: Feature) -> fx.Node:
    """The number of candidates, as `rows.count_rows` counts them."""
    size = emit(gm, aten.sym_size.int, (node, feature.axis or 0))
    if feature.role == "bounds":
        return emit(gm, operator.sub, (size, 1))
    return emit(gm, operator.floordiv, (size, feature.keys)) if feature.keys > 1 else size


def _spread(gm: fx.GraphModule, node: fx.Node, axis: int, count: fx.Node) -> None:
    """One row in place of all of them, spread over the candidates for its readers."""
    readers = list(node.users)
    node.meta["val"] = value(node).narrow(axis, 0, 1)
    sizes: list[Any] = [count if k == axis else n for k, n in enumerate(value(node).shape)]
    spread = emit(gm, aten.expand.default, (node, sizes))
    for user in readers:
        user.replace_input_with(node, spread)


def _spread_columns(gm: fx.GraphModule, node: fx.Node, columns: tuple[int, ...], count: fx.Node) -> None:
    """A matrix as its columns side by side, those of the request spread from row 0."""
    readers = [user for user in node.users if user is not count]
    row = emit(gm, aten.slice.Tensor, (node, 0, 0, 1))
    parts = []
    for mine, run in groupby(range(value(node).shape[1]), key=lambda k: k in columns):
        places = list(run)
        part = emit(gm, aten.slice.Tensor, (row if mine else node, 1, places[0], places[-1] + 1))
        if mine:
            part = emit(gm, aten.expand.default, (part, [count, len(places)]))
        parts.append(part)
    joined = emit(gm, aten.cat.default, (parts, 1))
    for user in readers:
        user.replace_input_with(node, joined)


def _revalue(gm: fx.GraphModule) -> None:
    """Values again from the inputs: rows are now counted by the candidates alone.

    What is spread lies in no order that a view could take, so views become reshapes.
    """
    for node in gm.graph.nodes:
        if is_call(node, aten.view.default):
            node.target = aten.reshape.default
        if node.op == "call_function":
            # Some kernels cannot be asked for their value; its size is what it was, as rows are spread again.
            with contextlib.suppress(RuntimeError):
                node.meta["val"] = evaluate(gm, node)
