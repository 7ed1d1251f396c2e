"""Element-wise work on channels needs no reshape around it.

    reshape(f(reshape(x, (-1, C))), shape of x)  =  f(x)        x (..., C)

for f that acts element by element and whose other arguments are numbers or constants (C,) or (1,): a reshape that keeps
the last dimension leaves each element in its channel. This is how BatchNorm1d is applied to the positions of a
sequence, once it is a scale and a shift.

When it does not apply: to a graph that writes in place; where f, on its way, is read by something else.
"""

from __future__ import annotations

import torch
from torch import fx

from ...graph import constant, evaluate, is_call
from ..base import Change
from .pointwise import is_pointwise
from .purity import writes
from .sizes import shape_of

__all__ = ["drop_channel_reshapes"]

aten = torch.ops.aten
_RESHAPES = (aten.view.default, aten.reshape.default, aten.flatten.using_ints, aten.unflatten.int)


def drop_channel_reshapes(gm: fx.GraphModule) -> list[Change]:
    """Removes pairs of reshapes around element-wise operators; edits `gm` in place. No constants are added."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        chain = _chain(gm, node)
        if not chain:
            continue
        first, *_, last = (*chain, chain[-1])
        before = _varying(gm, first)
        assert before is not None
        source = before.args[0]
        assert isinstance(source, fx.Node)
        first.replace_input_with(before, source)
        for call in chain:
            call.meta["val"] = evaluate(gm, call)
        node.replace_all_uses_with(last)
        gm.graph.erase_node(node)
        changes.append(Change("drop channel reshapes", node.name, f"{last.name} acts on each channel alone"))
    return changes


def _chain(gm: fx.GraphModule, node: fx.Node) -> list[fx.Node]:
    """The element-wise calls between the reshape `node` and another that it undoes, in order."""
    if not is_call(node, *_RESHAPES):
        return []
    found: list[fx.Node] = []
    call = node.args[0]
    while isinstance(call, fx.Node) and is_pointwise(call) and len(call.users) == 1:
        found.insert(0, call)
        varying = _varying(gm, call)
        if varying is None or shape_of(varying) != shape_of(call):
            return []
        call = varying
    if not is_call(call, *_RESHAPES) or not isinstance(call, fx.Node) or not found:
        return []
    source = call.args[0]
    assert isinstance(source, fx.Node)
    shapes = [shape_of(source), shape_of(call)]
    same = shape_of(node) == shapes[0] and all(shape and shape[-1] == shapes[0][-1] for shape in shapes)
    return found if same else []


def _varying(gm: fx.GraphModule, call: fx.Node) -> fx.Node | None:
    """The one argument that is no constant of channels, if there is one."""
    varying = [arg for arg in call.all_input_nodes if (held := constant(gm, arg)) is None or held.ndim > 1]
    return varying[0] if len(varying) == 1 else None
