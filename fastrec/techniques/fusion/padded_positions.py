"""Of the padding of a request's history one position is computed, where all of it has equal rows.

    sum_{t pad} exp(s + M[i, t]) v  =  exp(s + log sum_{t pad} exp(M[i, t])) v       s = q_i k, (k, v) the rows of all padding

so a position i of an attention with constant mask M (T, T), whose keys and values have equal rows at padding, needs the
real positions and one of padding, or c of them, each with the mask log(sum_{t pad} exp(M[i, t]) / c). What acts position
by position is computed at those alone:

    f(x)[P]  =  f(x[P])             P = real, the first of padding, and what is read at the end

Rows are equal where the model puts a constant in the place of padding, `x * real`, before each attention. Where the
attention's mask is the request's and hides padding, -inf, keys and values may be anything: M[P, P] is its mask.
Of a history of which half is padding, an attention takes a quarter of the work, and the rest half.

When it does not apply: to a graph that writes in place, or a batch of histories; to an attention whose keys differ at
padding (positions added after the mask) and are not hidden, or hidden by -1e4 and the like; to attention written as
products and a softmax. What is read at all positions stays whole, with what it needs, but for a sum with weight 0 at
padding; so does what convolutions and recurrences read.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, ancestors, constant, emit, is_call, is_free, value
from ..base import Change
from .heads import attention_settings
from .moves import hoist
from .one_position import selection
from .padding import Padding, paddings
from .picked_positions import Picks, is_tensor, parts_at, places_of, rebuilds
from .positions import Part, Place, arguments
from .purity import is_pure, writes

__all__ = ["skip_padding"]

aten = torch.ops.aten
_ATTENTION = aten.scaled_dot_product_attention.default
# Beyond, exp(M) is no finite positive number, or the sum of a few is not.
_LARGEST = 60.0


def skip_padding(gm: fx.GraphModule) -> list[Change]:
    """Computes padding once; edits `gm` in place. Adds what masks of attentions weigh, as large as these."""
    if writes(gm):
        return []
    for padding in paddings(gm):
        readers = {node: reader for node in gm.graph.nodes if (reader := _reader(gm, node, padding))}
        region = _Region(gm, padding, readers).found() if readers else None
        if region is not None:
            added = _Writer(gm, padding, readers, region).write()
            detail = f"of {padding.steps} positions real ones and one of padding"
            # What other masks mask is looked for in the graph that this one leaves.
            return [Change("skip padding", next(iter(readers)).name, detail, added)]
    return []


@dataclass(frozen=True)
class _Reader:
    """An attention to positions of which padding counts as one; its mask as a constant (..., T), None if it hides it."""

    node: fx.Node
    mask: Tensor | None

    @property
    def keys(self) -> dict[fx.Node, Part]:
        """Its keys and values, and where their positions are."""
        return {node: Part(Place(-2), int(value(node).shape[-2]), 0) for node in arguments(self.node)[1:3]}


def _reader(gm: fx.GraphModule, node: fx.Node, padding: Padding) -> _Reader | None:
    if not is_call(node, _ATTENTION) or not is_pure(node) or set(node.kwargs) - {"scale"}:
        return None
    query, keys, values = arguments(node)[:3]
    if any(is_free(one) or value(one).shape[-2] != padding.steps for one in (keys, values)):
        return None
    given, _, causal = attention_settings(node)
    if isinstance(given, fx.Node) and constant(gm, given) is None:
        columns = Part(Place(-1), padding.steps, 0)
        hides = 0 if value(given).dtype == torch.bool else -math.inf
        shown = is_free(given) or causal or not padding.filled(given, columns, hides)
        return None if shown else _Reader(node, None)
    mask = _constant_mask(gm, query, given, causal, padding.steps)
    reader = _Reader(node, mask)
    equal = all(padding.equal(one, part) for one, part in reader.keys.items())
    return reader if mask is not None and equal else None


def _constant_mask(
    gm: fx.GraphModule, query: fx.Node, mask: fx.Node | None, causal: bool, steps: int
) -> Tensor | None:
    """What is added to the scores (..., 1 or rows, steps); None where its exponential would not be exact."""
    rows = value(query).shape[-2]
    held = constant(gm, mask)
    if causal:
        if mask is not None or not isinstance(rows, int):
            return None
        held = torch.ones(rows, steps, dtype=torch.bool).tril()
    elif held is None:
        held = torch.ones(1, steps, dtype=torch.bool)
    if held.dtype == torch.bool:
        held = torch.zeros(held.shape, dtype=value(query).dtype).masked_fill(~held, -math.inf)
    if held.ndim < 2:
        return None
    held = held.expand(*held.shape[:-1], steps)
    finite = held[held != -math.inf]
    return held if bool((finite.abs() <= _LARGEST).all()) else None


@dataclass
class _Found:
    """What is computed at the kept positions, of which arguments; what stays whole; and what reads it from outside."""

    inner: dict[fx.Node, Part] = field(default_factory=dict)
    read: dict[fx.Node, dict[fx.Node, Part]] = field(default_factory=dict)
    ends: dict[fx.Node, Part] = field(default_factory=dict)
    whole: set[fx.Node] = field(default_factory=set)


class _Region:
    """Looks for what can be computed at some positions, from what reads it back to the request."""

    def __init__(self, gm: fx.GraphModule, padding: Padding, readers: dict[fx.Node, _Reader]) -> None:
        self._gm, self._padding, self._readers = gm, padding, readers
        self._ends = dict(self._found_ends())

    def found(self) -> _Found | None:
        """The region; None where there is none, or it is not worth it."""
        # The mask is there already, to know the positions by.
        whole = {self._padding.bits, *ancestors([self._padding.bits])}
        while True:
            region = self._collect(whole)
            region.whole |= {node for node in region.inner if not self._closed(region, node)}
            if region.whole == whole:
                break
            whole = region.whole
        works = any(is_call(node, aten.linear.default) for node in region.inner)
        given = {argument for read in region.read.values() for argument in read}
        return region if works and not any(is_free(node) for node in given) else None

    def _found_ends(self) -> Iterator[tuple[fx.Node, Part]]:
        """What reads one position, or sums over all with weight 0 at padding."""
        for node in self._gm.graph.nodes:
            if not is_call(node, aten.select.int, aten.slice.Tensor, aten.sum.dim_IntList):
                continue
            source = arguments(node)[0]
            part = self._summed(node, source) if is_call(node, aten.sum.dim_IntList) else selection(node)
            if part is not None and part.steps == self._padding.steps and isinstance(part.at, int):
                yield node, part

    def _summed(self, node: fx.Node, source: fx.Node) -> Part | None:
        rank, dims = value(source).ndim, node.args[1]
        for dim in dims if isinstance(dims, (list, tuple)) else ():
            assert isinstance(dim, int)
            part = Part(Place(dim % rank - rank), self._padding.steps, 0)
            if value(source).shape[dim] == part.steps and self._padding.filled(source, part, 0):
                return part
        return None

    def _collect(self, whole: set[fx.Node]) -> _Found:
        found = _Found(whole=set(whole), ends=self._ends)
        left = [item for reader in self._readers.values() for item in reader.keys.items()]
        for node, part in self._ends.items():
            if ancestors([node]) & self._readers.keys():
                left.append((arguments(node)[0], replace(part, at=0)))
        while left:
            node, part = left.pop()
            if node in found.whole:
                continue
            if node in found.inner:
                if found.inner[node] != part:
                    found.whole.add(node)
                continue
            read = None if is_free(node) else self._read(node, part)
            if read and rebuilds(node):
                found.inner[node], found.read[node] = part, read
                left += read.items()
        found.inner = {n: found.inner[n] for n in self._gm.graph.nodes if n in found.inner}
        return found

    def _read(self, node: fx.Node, part: Part) -> dict[fx.Node, Part] | None:
        reader = self._readers.get(node)
        if reader is None or part.place.axis != -2:
            return parts_at(node, part)
        query = arguments(node)[0]
        return {query: part, **reader.keys}

    def _closed(self, found: _Found, node: fx.Node) -> bool:
        """Whether all that reads the node reads it at these positions, and parts of a tensor are of one computed there."""
        part = found.inner[node]
        if not all(is_tensor(argument) or argument in found.inner for argument in found.read[node]):
            return False
        for user in node.users:
            if user in found.inner:
                fits = found.read[user].get(node) == part
                fits = fits and not (user in self._readers and node in arguments(user)[3:])
            elif user in self._readers:
                fits = self._readers[user].keys.get(node) == part
                fits = fits and node not in (arguments(user)[0], *arguments(user)[3:])
            else:
                end = found.ends.get(user)
                fits = end is not None and end.place == part.place
            if not fits:
                return False
        return True


class _Writer:
    """Writes the region at the real positions, one of padding, and what is read."""

    def __init__(
        self, gm: fx.GraphModule, padding: Padding, readers: dict[fx.Node, _Reader], region: _Found
    ) -> None:
        self._gm, self._padding, self._readers = gm, padding, readers
        self._inner, self._read = region.inner, region.read
        self._ends = {n: part for n, part in region.ends.items() if arguments(n)[0] in region.inner}
        self._masks: list[tuple[Tensor, bool, fx.Node]] = []
        self._added = 0

    def write(self) -> int:
        """Edits the graph; the bytes that were added."""
        graph = self._gm.graph
        order = [n for n in graph.nodes if n in self._inner or n in self._readers or n in self._ends]
        hoist(self._gm, [self._padding.bits], order[0])
        with graph.inserting_before(order[0]):
            self._choose()
        for node in order:
            with graph.inserting_before(node):
                if node in self._readers:
                    self._attend(self._readers[node])
                elif node in self._inner:
                    self._picks.compute(node, self._inner[node], self._read[node])
                else:
                    self._end(node, self._ends[node])
        # An attention left without reader would stay: it counts as random, whatever its dropout.
        for node in reversed(order):
            if not node.users:
                graph.erase_node(node)
        return self._added

    def _emit(self, target: Any, *args: Any) -> fx.Node:
        return emit(self._gm, target, args)

    def _constant(self, name: str, tensor: Tensor) -> fx.Node:
        self._added += tensor.nbytes
        return add_constant(self._gm, name, tensor)

    def _choose(self) -> None:
        """The kept positions: real, or not after the first of padding, or read."""
        bits, steps = self._padding.bits, self._padding.steps
        most = torch.ones(steps, dtype=torch.int64)
        for node, part in self._ends.items():
            if isinstance(part.at, int) and not is_call(node, aten.sum.dim_IntList):
                most[part.at] = steps
        real, self._pad = self._real_and_pad(bits)
        self._seen = self._emit(aten.cumsum.default, self._pad, 0)
        first = self._emit(aten.le.Tensor, self._seen, self._constant(f"{bits.name}_most", most))
        self._kept = self._emit(aten.logical_or.default, first, real)
        self._picks = Picks(self._gm, places_of(self._gm, self._kept))
        axis = next(axis for axis in range(-value(bits).ndim, 0) if value(bits).shape[axis] == steps)
        _, self._pad_kept = self._real_and_pad(self._picks.pick(bits, axis))
        self._count = self._emit(aten.sum.default, self._pad_kept)

    def _real_and_pad(self, bits: fx.Node) -> tuple[fx.Node, fx.Node]:
        flat = self._emit(aten.reshape.default, bits, [-1])
        other = self._emit(aten.logical_not.default, flat)
        return (flat, other) if self._padding.real else (other, flat)

    def _attend(self, reader: _Reader) -> None:
        node, inner = reader.node, reader.node in self._inner
        query, keys, values = arguments(node)[:3]
        if inner:
            query = self._picks.at(query, self._inner[node])
        keys, values = (self._picks.at(one, reader.keys[one]) for one in (keys, values))
        mask = self._hiding(reader, inner) if reader.mask is None else self._weighing(reader.mask, inner)
        made = emit(self._gm, _ATTENTION, (query, keys, values, mask, 0.0, False), node.kwargs)
        if inner:
            self._picks.made[node] = made
        else:
            node.replace_all_uses_with(made)

    def _hiding(self, reader: _Reader, inner: bool) -> fx.Node:
        """A mask that hides padding, at the kept positions."""
        mask = reader.node.args[3]
        assert isinstance(mask, fx.Node)
        if inner and value(mask).shape[-2] == self._padding.steps:
            mask = self._picks.pick(mask, -2)
        return self._picks.pick(mask, -1)

    def _weighing(self, mask: Tensor, inner: bool) -> fx.Node:
        """A mask with the weight of all padding where it is kept."""
        rows = inner and mask.shape[-2] == self._padding.steps
        for known, some, made in self._masks:
            if some == rows and torch.equal(known, mask):
                return made
        if not mask.any():
            weight, added = (
                self._emit(aten.select.int, self._seen, 0, -1),
                self._constant("padding_mask", mask[..., :1, :1]),
            )
        elif rows and self._picks.is_fewer_than(self._padding.steps) and _is_causal(mask):
            weight, added = self._picks.pick(self._seen, -1), self._constant("padding_mask", mask)
            for axis in (-2, -1):
                added = self._emit(aten.slice.Tensor, added, axis, 0, self._picks.length)
        else:
            pad = self._emit(aten.to.dtype, self._pad, mask.dtype)
            weight = self._emit(aten.matmul.default, self._constant("padding_weights", mask.exp()), pad)
            added = self._constant("padding_mask", mask)
            if rows:
                weight, added = self._picks.pick(weight, -1), self._picks.pick(added, -2)
            added = self._picks.pick(added, -1)
        # Without padding it is 0 / 0, and not read.
        each = self._emit(aten.log.default, self._emit(aten.div.Tensor, weight, self._count))
        made = self._emit(
            aten.where.self, self._pad_kept, self._emit(aten.unsqueeze.default, each, -1), added
        )
        self._masks.append((mask, rows, made))
        return made

    def _end(self, node: fx.Node, part: Part) -> None:
        """What read the wide result reads the kept positions."""
        source, at = arguments(node)[0], part.at
        made = self._picks.made[source]
        if is_call(node, aten.sum.dim_IntList):
            node.replace_input_with(source, made)
            return
        assert isinstance(at, int)
        axis = part.place.axis
        if at not in (0, part.steps - 1):
            before = self._emit(aten.slice.Tensor, self._kept, 0, 0, at)
            place = self._emit(aten.sum.dim_IntList, before, [0], True)
            made, at = self._emit(aten.index_select.default, made, value(made).ndim + axis, place), 0
        made = self._emit(aten.select.int, made, axis, -1 if at else 0)
        if is_call(node, aten.slice.Tensor):
            made = self._emit(aten.unsqueeze.default, made, axis)
        node.replace_all_uses_with(made)


def _is_causal(mask: Tensor) -> bool:
    """Whether each position sees itself and those before, so that of any of them each sees these."""
    steps = mask.shape[-1]
    return torch.equal(mask, torch.full((steps, steps), -math.inf, dtype=mask.dtype).triu(1).expand_as(mask))
