"""Guards: what a batch must hold before a fast graph may run on it.

A lookup by an id that its table does not have reads foreign memory in some kernels and another field's row in a
stacked table, so every id is compared with the size of the tables it reads. Which element of which input reaches
which table is found by running the arithmetic of the ids on positions in place of values.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, fx

from .bounds import EXACT, Array, Bounds, array, refuse_id, refuse_number
from .errors import IdOutOfRangeError
from .graph import VIEWS, constant, is_call, operator_name
from .inputs import Feature
from .program import Program
from .rows import take_rows
from .subgraphs import past, subgraph

__all__ = ["Bounds", "Guard", "extremes", "read_guard"]

aten = torch.ops.aten
NonFinite = Literal["raise", "propagate"]

# Up to so many numbers Python compares them with less disturbance to the call that follows: an array kernel
# costs 2 us by itself, and another 10 us by the code it has to fetch. The larger ones are left to torch, whose code
# the call needs anyway: numpy's would be fetched for the guard alone.
_FEW = 64
_MOVES = VIEWS | {"cat", "concat", "stack", "to", "_to_copy", "sym_size", "getitem", "mul", "floordiv"}
# (held, axis, places, ...): what is read at places along an axis, or written there.
_ALONG = (
    aten.index_select.default, aten.gather.default, aten.index_add.default, aten.index_copy.default,
    aten.scatter.src, aten.scatter.value, aten.scatter.reduce, aten.scatter.value_reduce, aten.scatter_add.default, aten.scatter_reduce.two,
)  # fmt: skip
_SHIFTS = frozenset(("add", "sub", "rsub"))


class Guard:
    """Checks flat batches: `guard(tensors)` returns nothing or raises.

    `bounds` gives for each feature the range of its ids, or None. Raises `IdOutOfRangeError` at an id that no
    table has and `InputError` at a float that is not finite, naming the feature and the row. Cost: 2 to 4 us for
    each feature, and one pass over the ids.
    """

    def __init__(
        self,
        features: Sequence[Feature],
        bounds: Sequence[Bounds | None],
        finite: Sequence[bool],
        computed: fx.GraphModule | None = None,
        sizes: Sequence[tuple[int, int]] = (),
        promised: Mapping[str, tuple[float, float]] = MappingProxyType({}),
    ) -> None:
        self.bounds = tuple(bounds)
        self.features = tuple(features)
        self._counted = any(feature.growing is not None for feature in features)
        self.finite = tuple(index for index, check in enumerate(finite) if check)
        self.computed, self.sizes = computed, tuple(sizes)
        names = [feature.name for feature in features]
        self.promised = tuple((names.index(name), *ends) for name, ends in promised.items())
        self._plain: list[tuple[int, int]] = []
        self._columns: list[tuple[int, Tensor, list[int]]] = []
        self._general: list[tuple[int, Bounds]] = []
        stacks: dict[tuple[Any, ...], list[tuple[int, int]]] = {}
        for index, (feature, bound) in enumerate(zip(features, bounds, strict=True)):
            if bound is None:
                continue
            natural = feature.dtype == torch.int64 and bool((bound.low == 0).all())
            if natural and bound.uniform:
                key = (feature.shape[1:], feature.role, feature.axis)
                stacks.setdefault(key, []).append((index, int(bound.high.flat[0])))
            elif natural:
                limits = torch.from_numpy(np.where(np.isinf(bound.high), 2**62, bound.high).astype(np.int64))
                self._columns.append((index, limits, limits.ravel().tolist()))
            else:
                self._general.append((index, bound))
        self._stacks: list[tuple[tuple[int, ...], Tensor]] = []
        for members in stacks.values():
            # Many features of one shape are compared as one array: a call costs more than its elements.
            if len(members) > 3 and features[members[0][0]].role == "rows":
                limits = torch.tensor([size for _, size in members])
                shape = (-1, *(1 for _ in features[members[0][0]].shape))
                self._stacks.append((tuple(index for index, _ in members), limits.reshape(shape)))
            else:
                self._plain += members

    def __call__(self, tensors: Sequence[Tensor]) -> None:
        """Raise at the first element that does not fit."""
        for index, size in self._plain:
            low, high = extremes(tensors[index])
            if high >= size or low < 0:
                self._refuse(index, tensors[index])
        for index, limits, listed in self._columns:
            ids = tensors[index]
            if ids.numel() == len(listed):
                numbers = ids.numpy(force=True).ravel().tolist()
                bad = any(map(operator.ge, numbers, listed)) or min(numbers) < 0
            else:
                bad = extremes(ids)[0] < 0 or bool(ids.ge(limits).any())
            if bad:
                self._refuse(index, ids)
        for members, limits in self._stacks:
            together = torch.stack([tensors[index] for index in members])
            if extremes(together)[0] < 0 or bool(together.ge(limits).any()):
                for index in members:
                    self._refuse(index, tensors[index])
        for index, bound in self._general:
            values = array(tensors[index])
            # Written so that NaN, which compares with nothing, does not pass.
            if not ((values > bound.low - 1) & (values < bound.high) | np.isinf(bound.high)).all():
                self._refuse(index, tensors[index])
        if self.computed is not None:
            self._check_computed(tensors)
        for index in self.finite:
            if not _seems_finite(tensors[index]):
                self._refuse_nonfinite(index, tensors[index])
        for index, lowest, highest in self.promised:
            if tensors[index].numel():
                least, most = torch.aminmax(tensors[index].detach())
                if not (least >= lowest and most <= highest):
                    self._refuse_outside(index, tensors[index], lowest, highest)

    def refuse_ids(self, tensors: Sequence[Tensor]) -> None:
        """Raises `IdOutOfRangeError` at the first bad id of a batch in whatever shape, where what its ids may be does not depend on it."""
        for index, tensor in enumerate(tensors):
            if tensor.layout is torch.strided and not tensor.is_complex():
                self._refuse(index, tensor)

    def _refuse(self, index: int, tensor: Tensor) -> None:
        """Raise for the first bad id of a feature, if it has one."""
        if (bound := self.bounds[index]) is not None:
            refuse_id(self.features[index], bound, tensor, self._counted)

    def _check_computed(self, tensors: Sequence[Tensor]) -> None:
        """Ids that the model computes: run what computes them."""
        assert self.computed is not None
        with torch.no_grad():
            results = self.computed(*tensors)
        for ids, (low, high) in zip(results, self.sizes, strict=True):
            if ids.numel() and (int(ids.min()) < low or int(ids.max()) >= high):
                bad = ((ids < low) | (ids >= high)).nonzero()[0].tolist()
                names = ", ".join(repr(feature.name) for feature in self.features)
                row = bad[0] if bad else 0
                raise IdOutOfRangeError(
                    f"row {row}: the id computed from {names} is {int(ids[tuple(bad)])}, expected {low} <= id < {high:,}. "
                    "Map unseen ids to a row of the table before the call.",
                    row=row,
                )

    def _refuse_nonfinite(self, index: int, tensor: Tensor) -> None:
        # Where a sum overflowed, the elements did not: none is bad.
        said = "expected finite numbers. Clean the batch, or compress with on_nonfinite='propagate'."
        refuse_number(self.features[index], tensor, ~tensor.isfinite(), said, self._counted)

    def _refuse_outside(self, index: int, tensor: Tensor, low: float, high: float) -> None:
        # A number that is none is the other checks' to refuse.
        said = (
            f"declared from {low:g} to {high:g}, which the model was compressed for. Clip it, or compress with the "
            "ranges that there are."
        )
        refuse_number(self.features[index], tensor, (tensor < low) | (tensor > high), said, self._counted)


def read_guard(
    captured: Program,
    nonfinite: NonFinite = "raise",
    promised: Mapping[str, tuple[float, float]] = MappingProxyType({}),
) -> Guard:
    """The guard of a captured program, from the lookups of its graph; of another one, for finite numbers alone.

    `promised` gives ranges of numeric features by name, to be checked as well. Features whose example holds numbers that are not finite are taken to allow them. Cost: a few small runs.
    """
    gm, features = captured.model, captured.layout.features
    if not isinstance(gm, fx.GraphModule):
        # Ids are the model's own to refuse: its tables are looked up by torch, which checks.
        asked = [nonfinite == "raise" and _allows_finite_only(t) for t in captured.flat(captured.batch)]
        return Guard(features, [None] * len(features), asked)
    tensors = _small(captured)
    low = [np.full(tuple(t.shape), -np.inf) for t in tensors]
    high = [np.full(tuple(t.shape), np.inf) for t in tensors]
    computed: list[fx.Node] = []
    sizes: list[tuple[int, int]] = []
    for ids, least, size, of_table in _lookups(gm):
        sources = [node for node in past([ids]) if node.op == "placeholder"]
        if not any(isinstance(node.meta["val"], Tensor) and _reads(node, ids) for node in sources):
            continue
        traced = _trace(gm, ids, tensors) if _is_affine(ids) else None
        if traced is None:
            if of_table:
                computed.append(ids)
                sizes.append((least, size))
            continue
        for index, positions, shifts in traced:
            np.maximum.at(low[index].reshape(-1), positions, least - shifts)
            np.minimum.at(high[index].reshape(-1), positions, size - shifts)
    bounds = [_bounds(f, a, b) for f, a, b in zip(features, low, high, strict=True)]
    finite = [
        nonfinite == "raise" and _allows_finite_only(tensor) and not _all_ids(bound)
        for tensor, bound in zip(captured.batch, bounds, strict=True)
    ]
    return Guard(features, bounds, finite, subgraph(gm, computed) if computed else None, sizes, promised)


def _allows_finite_only(tensor: Tensor) -> bool:
    """Whether a feature's example says that it holds finite numbers."""
    return tensor.is_floating_point() and bool(tensor.isfinite().all())


def extremes(tensor: Tensor) -> tuple[int, int]:
    """The least and the largest of whole numbers; zeros where there are none."""
    count = tensor.numel()
    if count > _FEW:
        low, high = torch.aminmax(tensor)
        return int(low), int(high)
    numbers = tensor.numpy(force=True).ravel().tolist()
    return (min(numbers), max(numbers)) if count else (0, 0)


def _seems_finite(tensor: Tensor) -> bool:
    """Whether all elements are finite; a sum that overflows is taken for one that is not."""
    if tensor.numel() <= _FEW:
        return math.isfinite(sum(array(tensor).ravel().tolist()))
    # Among numbers of which one is NaN both extremes are NaN.
    low, high = torch.aminmax(tensor.detach())
    return math.isfinite(low) and math.isfinite(high)


def _small(captured: Program) -> list[Tensor]:
    """The example cut to two rows."""
    rows = captured.layout.rows
    tensors = list(captured.batch)
    return tensors if rows is None else take_rows(captured.layout.features, tensors, torch.arange(2) % rows)


def _lookups(gm: fx.GraphModule) -> Iterator[tuple[fx.Node, int, int, bool]]:
    """The ids of each lookup, the range they must lie in, and whether it is one in a constant table.

    Of what is computed for each call, as the last place of a history, those are given whose number of places is known.
    """
    for node in gm.graph.nodes:
        if is_call(node, aten.one_hot.default):
            # Libraries that compare ids with all classes give zeros for one that is none.
            if node.args[1] > 0:
                yield node.args[0], 0, node.args[1], True
            continue
        if is_call(node, aten.embedding.default, aten.embedding_bag.default, aten.embedding_bag.padding_idx):
            found = [(node.args[0], node.args[1], 0, 0)]
        elif is_call(node, *_ALONG):
            found = [(node.args[0], node.args[2], node.args[1], 0)]
        elif is_call(node, aten.index.Tensor, aten.index_put.default):
            # A mask takes as many axes as it has.
            several = [] if any(map(_is_mask, node.args[1])) else node.args[1]
            found = [(node.args[0], ids, axis, -1) for axis, ids in enumerate(several)]
        else:
            continue
        for held, ids, axis, least in found:
            size = held.meta["val"].shape[axis]
            if isinstance(ids, fx.Node) and isinstance(size, int):
                table = constant(gm, held) is not None and axis == 0 and len(found) == 1
                yield ids, least * size, size, table


def _is_mask(ids: fx.Node | None) -> bool:
    return ids is not None and ids.meta["val"].dtype == torch.bool


def _reads(source: fx.Node, ids: fx.Node) -> bool:
    """Whether the ids depend on the values of an input, not only on its size."""
    reach = {source}
    for node in past([ids]):
        if operator_name(node) != "sym_size" and any(arg in reach for arg in node.all_input_nodes):
            reach.add(node)
    return ids in reach


def _is_affine(ids: fx.Node) -> bool:
    """Whether each id is one input element, moved, plus a constant."""
    varying: set[fx.Node] = set()
    for node in past([ids]):
        if node.op == "placeholder":
            varying.add(node)
        elif node.op == "call_function" and any(arg in varying for arg in node.all_input_nodes):
            name = operator_name(node)
            if name == "sym_size":
                continue
            numbers = isinstance(node.meta.get("val"), Tensor)
            if name in _SHIFTS:
                if sum(arg in varying for arg in node.all_input_nodes) != 1 or node.args[0] not in varying:
                    return False
                if len(node.args) > 2 or node.kwargs or name == "rsub":
                    return False
            elif name not in _MOVES or (numbers and name in ("mul", "floordiv")):
                return False
            varying.add(node)
    return True


def _trace(gm: fx.GraphModule, ids: fx.Node, tensors: list[Tensor]) -> list[tuple[int, Array, Array]] | None:
    """For each input: the positions that become ids, and the constant added to each.

    With zeros in place of every input the ids are the constants; with positions 1, 2, ... in place of one input,
    what is added to them says where they come from.
    """
    run = subgraph(gm, [ids])
    largest = max((tensor.numel() for tensor in tensors), default=0)
    if any(t.is_floating_point() and largest >= EXACT.get(t.dtype, 0) for t in tensors):
        return None
    zeros = [torch.zeros_like(tensor) for tensor in tensors]
    with torch.no_grad():
        base = run(*zeros)[0].flatten().long().numpy()
        found = []
        for index, tensor in enumerate(tensors):
            if tensor.dtype == torch.bool or (
                not tensor.is_floating_point() and torch.iinfo(tensor.dtype).max < largest
            ):
                continue
            probe = list(zeros)
            probe[index] = torch.arange(1, tensor.numel() + 1).reshape(tensor.shape).to(tensor.dtype)
            moved = run(*probe)[0].flatten().long().numpy() - base
            here = moved > 0
            if here.any():
                found.append((index, moved[here] - 1, base[here]))
    return found


def _bounds(feature: Feature, low: Array, high: Array) -> Bounds | None:
    """The bounds of a feature for any number of rows: those of all its rows together."""
    if np.isinf(high).all():
        return None
    limit = EXACT.get(feature.dtype)
    if limit is not None:
        high = np.where(np.isinf(high), high, np.minimum(high, limit))
    axis = feature.growing
    if axis is not None:
        low, high = low.max(axis=axis, keepdims=True), high.min(axis=axis, keepdims=True)
    return Bounds(low, high)


def _all_ids(bound: Bounds | None) -> bool:
    return bound is not None and not np.isinf(bound.high).any()
