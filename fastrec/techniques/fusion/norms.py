"""A normalisation with fixed statistics is a scale and a shift, and folds into its neighbour (A3).

    batch_norm(x) = s * x + t           s = gamma / sqrt(var + eps),  t = beta - mean * s,  all (C,)

    backward:  batch_norm(W x + b)  =  (diag(s) W) x + (s * b + t)        linear, conv (out channels scaled)
    forward:   W batch_norm(x) + b  =  (W diag(s)) x + (W t + b)          every reader a linear
    else:      batch_norm(x)        =  s * x + t

The first where x is a linear or convolution that nothing else reads, the second where x is (N, C) and every
reader is a linear. New weights are computed in float64. Does not apply to statistics of the batch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .purity import writes

__all__ = ["fold_norms"]

aten = torch.ops.aten
_CONVS = (
    *(aten.conv1d.default, aten.conv2d.default, aten.conv3d.default),
    *(aten.conv1d.padding, aten.conv2d.padding, aten.conv3d.padding),
)


def fold_norms(gm: fx.GraphModule) -> list[Change]:
    """Folds batch normalisations; edits `gm` in place. Adds copies of the weights it scales."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        if not is_call(node, aten.batch_norm.default):
            continue
        affine = _affine(gm, node)
        source = node.args[0]
        if affine is None or not isinstance(source, fx.Node):
            continue
        scale, shift = affine
        changes.append(
            _fold_backward(gm, node, source, scale, shift)
            or _fold_forward(gm, node, source, scale, shift)
            or _as_affine(gm, node, source, scale, shift)
        )
    return changes


def _affine(gm: fx.GraphModule, node: fx.Node) -> tuple[Tensor, Tensor] | None:
    """Scale and shift in float64."""
    x, weight, bias, mean, variance, training, _, epsilon, *_ = node.args
    mu, var = constant(gm, mean), constant(gm, variance)
    if training or mu is None or var is None or not isinstance(epsilon, float) or not isinstance(x, fx.Node):
        return None
    gamma, beta = constant(gm, weight), constant(gm, bias)
    if (weight is not None and gamma is None) or (bias is not None and beta is None):
        return None
    scale = (var.double() + epsilon).rsqrt()
    if gamma is not None:
        scale = scale * gamma.double()
    shift = -mu.double() * scale
    return scale, shift if beta is None else shift + beta.double()


def _fold_backward(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, scale: Tensor, shift: Tensor
) -> Change | None:
    if not is_call(source, aten.linear.default, *_CONVS) or len(source.users) != 1:
        return None
    if is_call(source, aten.linear.default) and value(source).ndim != 2:
        return None
    weight, bias = _weights(gm, source)
    if weight is None:
        return None
    scaled = weight.double() * scale.reshape(-1, *(1 for _ in weight.shape[1:]))
    moved = shift if bias is None else bias.double() * scale + shift
    _replace_weights(gm, source, scaled, moved, weight.dtype)
    node.replace_all_uses_with(source)
    gm.graph.erase_node(node)
    return Change(
        "fold norms", node.name, f"into the weights of {source.name}", _bytes(scaled, moved, weight.dtype)
    )


def _fold_forward(
    gm: fx.GraphModule, node: fx.Node, source: fx.Node, scale: Tensor, shift: Tensor
) -> Change | None:
    readers = list(node.users)
    if value(source).ndim != 2 or not readers:
        return None
    if not all(is_call(user, aten.linear.default) and user.args[0] is node for user in readers):
        return None
    added = 0
    held = [_weights(gm, user) for user in readers]
    if any(weight is None for weight, _ in held):
        return None
    for user, (weight, bias) in zip(readers, held, strict=True):
        assert weight is not None
        wide = weight.double()
        moved = wide @ shift if bias is None else wide @ shift + bias.double()
        _replace_weights(gm, user, wide * scale, moved, weight.dtype)
        user.update_arg(0, source)
        added += _bytes(wide, moved, weight.dtype)
    gm.graph.erase_node(node)
    return Change(
        "fold norms", node.name, f"into the weights of {', '.join(user.name for user in readers)}", added
    )


def _as_affine(gm: fx.GraphModule, node: fx.Node, source: fx.Node, scale: Tensor, shift: Tensor) -> Change:
    x = value(source)
    shape = (1, -1, *(1 for _ in x.shape[2:])) if x.ndim > 2 else (-1,)
    parts = [
        add_constant(gm, f"{node.name}_{name}", part.reshape(shape).to(x.dtype))
        for name, part in (("scale", scale), ("shift", shift))
    ]
    with gm.graph.inserting_before(node):
        made = emit(gm, aten.add.Tensor, (emit(gm, aten.mul.Tensor, (source, parts[0])), parts[1]))
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return Change("fold norms", node.name, "a scale and a shift", _bytes(scale, shift, x.dtype))


def _weights(gm: fx.GraphModule, node: fx.Node) -> tuple[Tensor | None, Tensor | None]:
    """The constant weight and bias of a linear or convolution; no weight where they are not constant."""
    bias_node: Any = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    weight, bias = constant(gm, node.args[1]), constant(gm, bias_node)
    return (None, None) if bias_node is not None and bias is None else (weight, bias)


def _replace_weights(
    gm: fx.GraphModule, node: fx.Node, weight: Tensor, bias: Tensor, dtype: torch.dtype
) -> None:
    names = (f"{node.name}_weight", f"{node.name}_bias")
    made = [add_constant(gm, name, part.to(dtype)) for name, part in zip(names, (weight, bias), strict=True)]
    node.args = (node.args[0], *made, *node.args[3:])
    node.kwargs = {name: given for name, given in node.kwargs.items() if name != "bias"}


def _bytes(weight: Tensor, bias: Tensor, dtype: torch.dtype) -> int:
    return (weight.numel() + bias.numel()) * dtype.itemsize
