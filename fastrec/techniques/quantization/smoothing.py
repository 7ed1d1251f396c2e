"""Uneven channels made even before they are rounded: scale moves from the activations into the weights.

    W (x)  =  (W diag(s)) (x / s)        s_j = max|x_j|^a / max_i|W_ij|^(1-a)

One step of codes serves all channels of an activation, so a channel a hundred times the others leaves them few codes;
a weight's column takes up the factor with less harm. `x / s` costs nothing where what gives x can give it divided:

    relu(V z + c) / s  =  relu((V / s) z + c / s)        a linear map, with ReLU or without
    (g * norm(z) + b) / s  =  (g / s) * norm(z) + b / s        a layer norm over the channels, likewise

and is one product with a vector elsewhere (fields joined to numbers of another size, the sum around a block).

The s_j are powers of two, so the graph in float32 gives bit for bit what it gave. It is done where the readers' output
in 8 bits is nearer by a tenth with it, or, where it costs a product, half as far off; three quarters as far where a
thousand outputs or more are computed of x, beside which a product is little. When it does not apply: no linear
map by a constant weight reads x, or only by one that other maps share.

Source: Xiao et al., "SmoothQuant" (2023), equation 4.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call
from .ranges import best_range, ranges

__all__ = ["smooth"]

aten = torch.ops.aten

_STRENGTHS = (0.5, 0.75)
# Channels more even than this are left alone: there is little to gain.
_UNEVEN = 4.0
_BETTER = 0.9
# A product of its own has to halve an error that is worth it.
_HALF, _NEAR = 0.5, 0.01
_WIDE, _THREE_QUARTERS = 1024, 0.75
_MOST = 20


def smooth(gm: fx.GraphModule, seen: dict[fx.Node, Tensor]) -> set[fx.Node]:
    """Evens the channels of these activations where it helps; edits `gm` and the rows `seen` of each, in place.

    Gives those it has changed. Cost: some products of each layer with these rows, where channels are uneven.
    """
    changed = set()
    for source, x in list(seen.items()):
        weights = {
            reader: weight
            for reader in source.users
            if (weight := constant(gm, reader.args[1] if len(reader.args) > 1 else None)) is not None
            and _reads(source, reader, weight)
        }
        peaks = x.abs().amax(0) if len(x) else x.new_zeros(0)
        alive = peaks[peaks > 0]
        if not weights or not len(alive) or not bool(peaks.isfinite().all()):
            continue
        if float(alive.max()) <= _UNEVEN * float(alive.median()):
            continue
        giver = _giver(gm, source) if len(weights) == len(source.users) else None
        scales = [_scales(peaks, torch.cat(list(weights.values())), strength) for strength in _STRENGTHS]
        errors = [_error(x / s, {reader: weight * s for reader, weight in weights.items()}) for s in scales]
        before = _error(x, weights)
        wide = sum(len(weight) for weight in weights.values()) >= _WIDE
        part = (_THREE_QUARTERS if wide else _HALF) * (before > _NEAR)
        wanted = before * (_BETTER if giver is not None else part)
        if not min(errors) < wanted:
            continue
        s = scales[errors.index(min(errors))]
        even = source
        if giver is not None:
            _divide(gm, giver, s)
        else:
            with gm.graph.inserting_after(source):
                even = emit(gm, aten.mul.Tensor, (source, add_constant(gm, f"{source.name}_even", 1 / s)))
        for reader, weight in weights.items():
            held = add_constant(gm, f"{reader.name}_evened", weight * s)
            reader.args = (even, held, *reader.args[2:])
        seen[even] = x / s
        changed.add(even)
    return changed


def _reads(source: fx.Node, reader: fx.Node, weight: Tensor | None) -> bool:
    return (
        is_call(reader, aten.linear.default)
        and reader.args[0] is source
        and reader.all_input_nodes.count(source) == 1
        and weight is not None
        and weight.ndim == 2
        and weight.dtype is torch.float32
        and len(reader.args[1].users) == 1  # type: ignore[union-attr]  # an argument of a node is of any type
        and bool(weight.isfinite().all())
    )


def _giver(gm: fx.GraphModule, source: fx.Node) -> fx.Node | None:
    """The node whose constants can take up the scale of `source`."""
    node: Any = source
    if is_call(node, aten.relu.default):
        node = node.args[0]
        if not isinstance(node, fx.Node) or len(node.users) != 1:
            return None
    places = _places(node)
    if places is None:
        return None
    held = [constant(gm, node.args[k]) for k in places if len(node.args) > k and node.args[k] is not None]
    alike = all(one is not None and one.dtype is torch.float32 for one in held)
    tied = is_call(node, aten.linear.default) and len(node.args[1].users) > 1
    return node if alike and not tied else None


def _places(node: fx.Node) -> tuple[int, int] | None:
    """Where a call that can give its channels divided holds its weight and its bias."""
    if node.kwargs:
        return None
    if is_call(node, aten.linear.default):
        return 1, 2
    if is_call(node, aten.layer_norm.default) and len(node.args[1]) == 1 and len(node.args) > 2:  # type: ignore[arg-type]  # an argument of a node is of any type
        return None if node.args[2] is None else (2, 3)
    return None


def _scales(peaks: Tensor, weight: Tensor, strength: float) -> Tensor:
    """Powers of two, 1 for channels that are zero on either side."""
    columns = weight.abs().amax(0)
    s = peaks.pow(strength) / columns.pow(1 - strength)
    s = torch.where((peaks > 0) & (columns > 0), s, torch.ones_like(s))
    return torch.exp2(s.log2().round().clamp(-_MOST, _MOST))


def _error(x: Tensor, readers: Mapping[fx.Node, Tensor]) -> float:
    tried = ranges(x)
    found = [best_range(x, weight, tried=tried) for weight in readers.values()]
    return math.hypot(*[made.error for made in found if made is not None])


def _divide(gm: fx.GraphModule, giver: fx.Node, s: Tensor) -> None:
    places = _places(giver)
    assert places is not None
    args = list(giver.args)
    for k in places:
        if len(args) > k and (held := constant(gm, args[k])) is not None:
            shape = (-1, 1) if held.ndim == 2 else (-1,)
            args[k] = add_constant(gm, f"{giver.name}_evened", held / s.reshape(shape))
    giver.args = tuple(args)
