"""What rules share that compute some positions of a request alone, chosen by its values.

    f(x)[..., P, ...]  =  f(x[..., P, ...])        P (L,) places; f element by element, or acting along other dimensions

`nonzero` gives the places, L is a free size, and what the request gives is read by `index_select`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx
from torch._dynamo.source import ConstantSource
from torch._subclasses.fake_tensor import FakeTensor
from torch.fx.experimental.symbolic_shapes import DimDynamic, StatelessSymbolicContext

from ...graph import emit, is_call, operator_name, value
from .positions import Part, arguments, parts_read
from .sizes import Sizes, shape_of, writable

__all__ = ["POSITION_MOVES", "Picks", "is_mask", "is_tensor", "parts_at", "places_of", "rebuilds"]

aten = torch.ops.aten
POSITION_MOVES = frozenset(
    (
        "select",
        "squeeze",
        "unsqueeze",
        "transpose",
        "permute",
        "view",
        "reshape",
        "flatten",
        "expand",
        "to",
        "_to_copy",
    )
)
"""Names of operators that give the elements of one tensor, in another order or type."""

_SIZED = frozenset(("view", "reshape", "flatten", "unflatten", "expand", "expand_as", "squeeze"))
_PRIMES = (7, 11, 13, 17, 19, 23, 29, 31, 37, 41, 43, 47)


def is_tensor(node: Any) -> bool:
    """Whether the node's value is one tensor."""
    return isinstance(node, fx.Node) and isinstance(node.meta.get("val"), Tensor)


def is_mask(node: Any) -> bool:
    """Whether the node holds zeros and ones, cast from a mask."""
    while is_tensor(node) and value(node).dtype != torch.bool and operator_name(node) in POSITION_MOVES:
        node = node.args[0]
    return is_tensor(node) and value(node).dtype == torch.bool


def parts_at(node: fx.Node, part: Part) -> dict[fx.Node, Part] | None:
    """Where the arguments have the positions of the result, each at its own place; None where they are mixed."""
    if is_call(node, aten.scaled_dot_product_attention.default) and len(node.args) > 5 and node.args[5]:
        return None
    parts = parts_read(node, part)
    if parts is None:
        return None
    found: dict[fx.Node, Part] = {}
    for argument, mine in zip(arguments(node), parts, strict=True):
        if mine is None:
            continue
        plain = isinstance(mine, Part) and mine.place.plain and (mine.steps, mine.at) == (part.steps, 0)
        if not plain or found.setdefault(argument, mine) != mine:
            return None
        held = argument.meta["val"]
        for tensor in held if isinstance(held, (list, tuple)) else (held,):
            if not isinstance(tensor, Tensor) or tensor.shape[mine.place.axis] != part.steps:
                return None
    # Read whole as well, it has to stay whole.
    whole = [a for a, mine in zip(arguments(node), parts, strict=True) if mine is None]
    return None if found.keys() & set(whole) else found


def rebuilds(node: fx.Node) -> bool:
    """Whether a call can be written with another number of positions."""
    return operator_name(node) not in _SIZED or writable(shape_of(node))


def places_of(gm: fx.GraphModule, chosen: fx.Node) -> fx.Node:
    """The places (L,) where a mask (T,) is true, L a new free size; emitted at the insertion point."""
    places = gm.graph.call_function(aten.nonzero.default, (chosen,))
    places.meta["val"] = _of_free_length(gm, value(chosen), places.name)
    return emit(gm, aten.select.int, (places, 1, 0))


def _of_free_length(gm: fx.GraphModule, like: Tensor, name: str) -> Tensor:
    """The value of places whose number is not known: a size of its own, which nothing is compared to."""
    assert isinstance(like, FakeTensor)
    taken = {
        int(n.node.hint) if isinstance(n, torch.SymInt) and n.node.has_hint() else n
        for node in gm.graph.nodes
        if isinstance(node.meta.get("val"), Tensor)
        for n in value(node).shape
    }
    # The positions are that many at most, which some that are cut off are asked.
    steps = int(like.numel())
    fitting = [n for n in (*_PRIMES, *range(steps - 1, 1, -1)) if n < steps and n not in taken]
    length = next(iter(fitting), next((n for n in _PRIMES if n not in taken), 101))
    context: Any = StatelessSymbolicContext(dynamic_sizes=[DimDynamic.DYNAMIC, DimDynamic.STATIC])
    example = torch.zeros(length, 1, dtype=torch.int64)
    made: Tensor = like.fake_mode.from_tensor(example, source=ConstantSource(name), symbolic_context=context)
    return made


class Picks:
    """Writes nodes at the places alone; `made` holds what each has become, `length` gives the number of places."""

    def __init__(self, gm: fx.GraphModule, places: fx.Node) -> None:
        self.made: dict[fx.Node, fx.Node] = {}
        self._gm, self._places = gm, places
        self._sizes = Sizes(gm)
        self._picked: dict[tuple[fx.Node, int], fx.Node] = {}
        with gm.graph.inserting_after(places):
            self.length = emit(gm, aten.sym_size.int, (places, 0))

    def is_fewer_than(self, steps: int) -> bool:
        """Whether the number of places stands for one below `steps`: of few positions none is left for it."""
        return bool(self.length.meta["val"].node.hint < steps)

    def pick(self, node: fx.Node, axis: int) -> fx.Node:
        """A node computed at all positions, read at the places; `axis` counts from the right."""
        if (node, axis) not in self._picked:
            args = (node, value(node).ndim + axis, self._places)
            self._picked[node, axis] = emit(self._gm, aten.index_select.default, args)
        return self._picked[node, axis]

    def at(self, node: fx.Node, part: Part) -> fx.Node:
        """A node at the places: as computed there, or read there."""
        return self.made[node] if node in self.made else self.pick(node, part.place.axis)

    def compute(self, node: fx.Node, part: Part, read: dict[fx.Node, Part]) -> None:
        """Emits a call at the places, of what it reads at them."""
        given = {argument: self.at(argument, mine) for argument, mine in read.items()}
        if operator_name(node) in _SIZED:
            shape: list[Any] = list(shape_of(node))
            shape[part.place.axis] = 1
            shape = self._sizes.all(shape)
            shape[part.place.axis] = self.length
            target = aten.expand if operator_name(node).startswith("expand") else aten.reshape
            source = arguments(node)[0]
            self.made[node] = emit(self._gm, target.default, (given.get(source, source), shape))
        else:
            args, kwargs = fx.map_arg((node.args, node.kwargs), lambda old: given.get(old, old))
            self.made[node] = emit(self._gm, node.target, args, kwargs)
