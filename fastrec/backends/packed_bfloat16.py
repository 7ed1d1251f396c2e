"""Linear maps in bfloat16 by oneDNN, with weights laid out for it once: what eager runs in place of `aten.linear`.

Beside that it takes 0.5 to 0.95 of the time, and, unlike it, adds up the products of a row in one order whatever the
number of rows: all but a single row, in wide maps, which is computed as two. One thread, microseconds, beside float32:

| weights     | rows | float32 | aten.linear | packed |
|-------------|------|---------|-------------|--------|
| 64 x 64     | 1    | 3       | 4           | 17     |
| 64 x 64     | 500  | 47      | 41          | 35     |
| 256 x 256   | 32   | 52      | 45          | 36     |
| 256 x 256   | 500  | 658     | 335         | 314    |
| 512 x 1,024 | 1    | 43      | 64          | 37     |
| 512 x 1,024 | 100  | 1118    | 533         | 503    |
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx

from ..graph import add_constant, constant, copy_graph, is_call, value

__all__ = ["bfloat16_linear", "pack_bfloat16"]

aten = torch.ops.aten


def _kernel(name: str) -> Callable[..., Tensor] | None:
    # torch may drop them one day, and some builds lack them.
    found: Callable[..., Tensor] | None = getattr(getattr(torch.ops.mkldnn, name, None), "default", None)
    return found


_PACK, _RUN = _kernel("_reorder_linear_weight"), _kernel("_linear_pointwise")


def pack_bfloat16(gm: fx.GraphModule) -> tuple[fx.GraphModule, int]:
    """The graph with its maps by constant bfloat16 matrices packed, and the bytes of the copies.

    `gm` itself, which is not changed, where it has none, or this torch lacks the kernels: then they run as written.
    """
    names = [node.name for node in gm.graph.nodes if _is_packable(gm, node)]
    if not names or _PACK is None or _RUN is None:
        return gm, 0
    made, size = copy_graph(gm), 0
    held: dict[fx.Node, fx.Node] = {}
    for node in list(made.graph.nodes):
        if node.name not in names:
            continue
        x, matrix, *rest = node.args
        weight = constant(made, matrix)
        assert weight is not None
        if matrix not in held:
            held[matrix] = add_constant(made, f"{matrix.target}_packed", _PACK(weight.contiguous()))
            size += weight.nbytes
        bias = rest[0] if rest else node.kwargs.get("bias")
        with made.graph.inserting_before(node):
            alone = _is_alike(*weight.shape, torch.get_num_threads())
            call = made.graph.call_function(bfloat16_linear, (x, held[matrix], bias, weight.shape[0], alone))
        call.meta.update(node.meta)
        node.replace_all_uses_with(call)
        made.graph.erase_node(node)
    for node in list(made.graph.nodes):
        if node.op == "get_attr" and not node.users:
            made.graph.erase_node(node)
    made.recompile()
    return made, size


def bfloat16_linear(x: Tensor, packed: Tensor, bias: Tensor | None, width: int, alone: bool) -> Tensor:
    """The map of x (..., I) by a packed weight (O, I), O = `width`, all bfloat16: (..., O).

    `alone` says that a single row may be computed as it is.
    """
    assert _RUN is not None
    count = x.numel()
    if not count:
        return x.new_empty(*x.shape[:-1], width)
    if alone or count != x.shape[-1]:
        return _RUN(x, packed, bias, "none", [], "")
    pair = _RUN(x.reshape(1, count).expand(2, count), packed, bias, "none", [], "")
    return pair[0].view(*x.shape[:-1], width)


def _is_packable(gm: fx.GraphModule, node: fx.Node) -> bool:
    if not is_call(node, aten.linear.default):
        return False
    weight = constant(gm, node.args[1])
    source: Any = node.args[0]
    return (
        weight is not None
        and weight.ndim == 2
        and weight.numel() > 0
        and {weight.dtype, value(source).dtype} == {torch.bfloat16}
    )


@functools.cache
def _is_alike(width: int, inner: int, threads: int) -> bool:  # noqa: ARG001 - kernels may differ by it
    """Whether a row alone is added up in the order it is in among others, in a map (inner) -> (width).

    Seen on sums that cancel, sum_i a_i b_i - sum_i a_p(i) b_p(i): what is left of them is the rounding of their order.
    """
    assert _PACK is not None and _RUN is not None
    generator = torch.Generator().manual_seed(0)
    half = inner // 2
    order = torch.randperm(half, generator=generator)
    left, row = (torch.randn(rows, half, generator=generator).bfloat16() for rows in (width, 1))
    rest = torch.zeros(1, inner - 2 * half, dtype=torch.bfloat16)
    weight = torch.cat([left, left[:, order], rest.expand(width, -1)], 1)
    x = torch.cat([row, -row[:, order], rest], 1)
    packed = _PACK(weight)
    one, many = (_RUN(x.expand(rows, inner).contiguous(), packed, None, "none", [], "") for rows in (1, 33))
    return torch.equal(one[0], many[0])
