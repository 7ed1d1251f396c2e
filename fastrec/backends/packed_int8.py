"""Linear maps in 8-bit integers by a packed kernel, in graphs that torch runs node by node."""

from __future__ import annotations

from torch import fx

from ..graph import constant, copy_graph, is_call
from ..ops.linears import INT8_LINEAR
from ..ops.packed_linears import PackedLinear, pack, packed_linear

__all__ = ["pack_int8", "packed_of"]


def pack_int8(gm: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """The graph with such maps packed, to be run in torch, and the bytes of what was packed.

    Maps whose weight is computed, and those the kernel does not stand for on this machine, stay as they are. `gm` is
    not changed, and comes back itself where nothing was packed.
    """
    maps = {node.name: packed_of(gm, node) for node in gm.graph.nodes if is_call(node, INT8_LINEAR)}
    found = {name: packed for name, packed in maps.items() if isinstance(packed, PackedLinear)}
    if not found:
        return gm, 0
    made = copy_graph(gm)
    for index, node in enumerate([node for node in made.graph.nodes if node.name in found]):
        name = f"packed_{index}"
        setattr(made, name, found[node.name])
        with made.graph.inserting_before(node):
            held = made.graph.create_node("get_attr", name)
            x, bias = node.args[0], node.args[5] if len(node.args) > 5 else node.kwargs.get("bias")
            call = made.graph.call_function(packed_linear, (held, x, bias))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        made.graph.erase_node(node)
    made.graph.eliminate_dead_code()
    made.recompile()
    return made, sum(packed.nbytes for packed in found.values())


def packed_of(gm: fx.GraphModule, node: fx.Node) -> PackedLinear | str:
    """An 8-bit linear map of the graph, packed, or why it cannot be."""
    weight, scale = constant(gm, node.args[1]), constant(gm, node.args[2])
    step, zero = node.args[3:5]
    if weight is None or scale is None:
        return "the weight of an 8-bit linear map is computed"
    assert isinstance(step, float) and isinstance(zero, int)
    return pack(weight, scale, step, zero)
