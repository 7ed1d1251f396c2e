"""The reference operators as Inductor knows them: a map of codes is a linear map between the codes' numbers.

    q = clamp(round(x / x_scale) + x_zero, 0, 255)        fused with what is in front of it
    y = linear(dequantize(q), dequantize(weight), bias)   found again by the compiler, as a product of codes

What comes of it, one product of packed codes with exact sums, is the compiler's own form for quantised models. The zero is
taken off in float32, which rounds by 2^-24 of the largest sum there can be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import fx
from torch.nn import functional

from ..errors import BackendError
from ..graph import add_constant, constant, copy_graph, is_call, value
from ..ops.linears import CODES, INT8_LINEAR
from ..places import named
from .packed_int8 import packed_of

__all__ = ["as_known"]

aten = torch.ops.aten

# Codes that a processor multiplies at a time: the generated product is a hundred times slower where a row is no multiple.
_QUAD = 4


def as_known(gm: fx.GraphModule, backend: str) -> tuple[fx.GraphModule, int]:
    """The graph with 8-bit linear maps in that form, and how many there are; `gm` is not changed.

    Raises `BackendError` where oneDNN's product of codes is wrong on this processor, a weight is computed, or the rows
    that reach a map may be none though the batch has some: the generated product divides by their number.
    """
    names = [node.name for node in gm.graph.nodes if is_call(node, INT8_LINEAR)]
    if not names:
        return gm, 0
    # Registers the operators that the compiler looks for.
    import torch.ao.quantization.fx._decomposed  # noqa: F401 - it registers its operators

    made = copy_graph(gm)
    for node in list(made.graph.nodes):
        if node.name in names:
            if reason := _unfit(made, node):
                raise BackendError(f"{reason} (at {named(node)})", backend=backend)
            _replace(made, node)
    made.recompile()
    return made, len(names)


def _unfit(gm: fx.GraphModule, node: fx.Node) -> str:
    """Why the compiler may not have this map, or nothing."""
    x = node.args[0]
    assert isinstance(x, fx.Node)
    if not all(_as_many(size) for size in value(x).shape[:-1]):
        return "the number of rows of an 8-bit linear map is computed"
    packed = packed_of(gm, node)
    return packed if isinstance(packed, str) else ""


def _as_many(size: int | torch.SymInt) -> bool:
    """Whether a size is zero only where one of the batch is."""
    if not isinstance(size, torch.SymInt):
        return size > 0
    expression: Any = size.node.expr
    parts = expression.args if expression.is_Mul else (expression,)
    return all(part.is_Symbol or (part.is_Integer and part > 0) for part in parts)


def _replace(gm: fx.GraphModule, node: fx.Node) -> None:
    x, held, scale, step, zero = node.args[:5]
    bias = node.args[5] if len(node.args) > 5 else node.kwargs.get("bias")
    weight = constant(gm, held)
    assert weight is not None and isinstance(step, float)
    held_step = add_constant(gm, f"{node.name}_step", torch.tensor(step))
    zeros = add_constant(gm, f"{node.name}_zeros", torch.zeros(len(weight), dtype=torch.int64))
    inner = weight.shape[1]
    short = -inner % _QUAD if inner >= _QUAD else 0
    if short:
        held = add_constant(gm, f"{node.name}_padded", functional.pad(weight, (0, short)))
    decomposed = torch.ops.quantized_decomposed
    low, high = CODES
    with gm.graph.inserting_before(node):

        def call(target: Any, *args: Any) -> fx.Node:
            return gm.graph.call_function(target, args)

        if short:
            # Whatever it is, its weights are zero; joined before it is rounded, both are done many numbers at a time.
            x = call(aten.cat.default, [x, call(aten.slice.Tensor, x, -1, 0, short)], -1)
        shifted = call(aten.add.Tensor, call(aten.round.default, call(aten.div.Tensor, x, held_step)), zero)
        codes = call(aten.to.dtype, call(aten.clamp.default, shifted, low, high), torch.uint8)
        numbers = call(decomposed.dequantize_per_tensor.default, codes, step, zero, low, high, torch.uint8)
        weights = call(
            decomposed.dequantize_per_channel.default, held, scale, zeros, 0, -128, 127, torch.int8
        )
        if isinstance(bias, fx.Node) and value(bias).ndim > 1:
            bias = call(aten.reshape.default, bias, [-1])
        y = call(aten.linear.default, numbers, weights, bias)
    y.meta.update(node.meta)
    node.replace_all_uses_with(y)
    gm.graph.erase_node(node)
