"""Tables that a session of ONNX Runtime reads where they are.

A constant that is handed to a session, its own or from outside, is copied into it as it is made. One that is an input of the
model is read in place, so large tables are given with every call: that costs 1 us for each, and W processes that map one file
hold them once.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

__all__ = ["LARGE", "is_lent", "tables_as_inputs"]

LARGE = 1 << 20
"""From how many bytes a table is an input."""


def is_lent(uses: Iterable[tuple[str, int]], size: int) -> bool:
    """Whether a constant of this many bytes becomes an input: rows of it are gathered, and nothing else reads it.

    `uses` gives the type of each node that reads it, and as which argument. Whatever else reads a constant may want it at hand:
    weights of products are packed as the session is made.
    """
    found = list(uses)
    return size >= LARGE and bool(found) and all(use == ("Gather", 0) for use in found)


def tables_as_inputs(proto: bytes, constants: Mapping[str, Tensor]) -> tuple[bytes, tuple[str, ...]]:
    """The ONNX model with its large tables as inputs under their names, and these."""
    import onnx

    if all(tensor.nbytes < LARGE for tensor in constants.values()):
        return proto, ()
    made = onnx.ModelProto.FromString(proto)
    uses: dict[str, list[tuple[str, int]]] = {}
    for node in _nodes(made.graph):
        for place, name in enumerate(node.input):
            uses.setdefault(name, []).append((node.op_type, place))
    lent = [
        held
        for held in made.graph.initializer
        if held.name in constants and is_lent(uses.get(held.name, ()), constants[held.name].nbytes)
    ]
    given = {value.name for value in made.graph.input}
    for held in lent:
        made.graph.initializer.remove(held)
        if held.name not in given:
            kind = onnx.helper.make_tensor_value_info(held.name, held.data_type, list(held.dims))
            made.graph.input.append(kind)
    return made.SerializeToString(), tuple(held.name for held in lent)


def _nodes(graph: Any) -> Iterable[Any]:
    """The nodes of a graph and of those inside them."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)
