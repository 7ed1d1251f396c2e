"""What returns its argument unchanged is removed.

    dropout(x) = x  (evaluation)      x * 1 = x + 0 = x      to(x, dtype of x) = x      cat([x]) = x
    view(x, shape of x) = x           view(view(x)) = view(x)         transpose(transpose(x)) = x
    contiguous(x) = clone(x) = x      (memory order is no part of the answer)
    size of a result = the same size of an input                      (so that no result is made for its size alone)

When it does not apply: to a graph that writes in place, where a copy has a purpose; to a copy of an input or a
constant that is itself an output, which a caller may write into.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import is_call, value
from ..base import Change
from .id_columns import size
from .moves import allow_strides, reads_strides
from .purity import writes

__all__ = ["remove_no_ops"]

aten = torch.ops.aten
_DROPOUTS = (
    aten.dropout.default,
    aten.feature_dropout.default,
    aten.alpha_dropout.default,
    aten.feature_alpha_dropout.default,
)
_COPIES = (
    aten.clone.default,
    aten.contiguous.default,
    aten.alias.default,
    aten.detach.default,
    aten.lift_fresh_copy.default,
)
_CASTS = (aten.to.dtype, aten.to.dtype_layout, aten.to.device, aten._to_copy.default, aten.type_as.default)
_SHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.expand.default,
    aten.squeeze.default,
    aten.squeeze.dim,
    aten.squeeze.dims,
)
_RESHAPES = (
    aten.view.default,
    aten.reshape.default,
    aten.flatten.using_ints,
    aten.unsqueeze.default,
    aten.squeeze.dim,
)


def remove_no_ops(gm: fx.GraphModule) -> list[Change]:
    """Removes calls that return their first argument; edits `gm` in place. No constants are added."""
    if writes(gm) or reads_strides(gm):
        return []
    changes = _read_sizes(gm)
    strided = False
    for node in list(gm.graph.nodes):
        source = _same_as(node)
        if source is None:
            if is_call(node, aten.view.default, aten.reshape.default) and is_call(node.args[0], *_RESHAPES):
                changes.append(Change("remove no ops", node.name, "a view of a view is one view"))
                node.update_arg(0, node.args[0].args[0])
                node.target = aten.reshape.default
            continue
        if source.op != "call_function" and any(user.op == "output" for user in node.users):
            continue
        strided = strided or is_call(node, *_COPIES)
        changes.append(Change("remove no ops", node.name, f"{_name(node)} changes nothing"))
        node.replace_all_uses_with(source)
        gm.graph.erase_node(node)
    if strided:
        allow_strides(gm)
    return changes


def _read_sizes(gm: fx.GraphModule) -> list[Change]:
    """Sizes are read off the inputs."""
    homes: dict[str, tuple[fx.Node, int]] = {}
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        if node.op == "placeholder" and isinstance(node.meta.get("val"), Tensor):
            for axis, dim in enumerate(value(node).shape):
                if isinstance(dim, torch.SymInt):
                    homes.setdefault(str(dim.node.expr), (node, axis))
        elif is_call(node, aten.sym_size.int) and isinstance(node.meta["val"], torch.SymInt):
            home = homes.get(str(node.meta["val"].node.expr))
            if home is not None and node.args != home:
                changes.append(Change("remove no ops", node.name, "a size of an input"))
                node.args = home
    return changes


def _same_as(node: fx.Node) -> fx.Node | None:
    """The argument that the node returns as it is, if it does."""
    if node.op != "call_function" or not node.args or not isinstance(node.meta.get("val"), Tensor):
        return None
    source: Any = node.args[0]
    if is_call(node, aten.cat.default, aten.concat.default):
        return source[0] if len(source) == 1 else None
    if not isinstance(source, fx.Node) or not isinstance(source.meta.get("val"), Tensor):
        return None
    old, new = value(source), value(node)
    if old.dtype != new.dtype or old.device != new.device:
        return None
    if is_call(node, *_DROPOUTS):
        return source if node.args[2] is False else None
    if is_call(node, *_COPIES, *_CASTS):
        return source
    if is_call(node, aten.transpose.int) and is_call(source, aten.transpose.int):
        inner = source.args[0]
        assert isinstance(inner, fx.Node)
        dims = [{axis % old.ndim for axis in call.args[1:3]} for call in (node, source)]  # type: ignore[operator]  # a node's target is called
        return inner if dims[0] == dims[1] else None
    if [size(dim) for dim in old.shape] != [size(dim) for dim in new.shape]:
        return None
    if is_call(node, *_SHAPES):
        return source
    if is_call(node, aten.slice.Tensor):
        step = node.args[4] if len(node.args) > 4 else 1
        return source if step == 1 else None
    if is_call(node, aten.mul.Tensor, aten.div.Tensor) and node.args[1] in (1, 1.0) and not node.kwargs:
        return source if not isinstance(node.args[1], fx.Node) else None
    if is_call(node, aten.add.Tensor, aten.sub.Tensor) and not isinstance(node.args[1], fx.Node):
        return source if node.args[1] == 0 else None
    return None


def _name(node: fx.Node) -> str:
    return (
        str(getattr(node.target, "_schema", node.target))
        .partition("(")[0]
        .removeprefix("aten::")
        .partition(".")[0]
    )
