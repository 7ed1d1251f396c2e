"""A filter in the frequency domain, read at one position, is a weighted sum of the steps (A9).

    irfft(rfft(x) * w)[:, p, c]  =  sum_t h[(p - t) mod T, c] x[:, t, c]        x (B, T, d), w (T // 2 + 1, d)
    h = irfft(rfft(e) * w)                                                      e = (1, 0, ..., 0) of T steps

A product of spectra is a circular convolution, and h its answer to an impulse, whatever the norms; it is computed in
float64. T d multiply-adds in place of two transforms of T log T, and no complex numbers, which few exporters know. It is the faster
everywhere that was measured (one thread, T = 16 to 512, d = 16 to 128, 1 and 64 rows): 3 against 12 us for (1, 16, 16),
42 against 634 for (64, 50, 64), 15 against 182 for (1, 512, 128). So nothing is left to choose.

When it does not apply: all positions are read (`filter_products`), or one per row; w depends on the input; transforms
that cut or pad.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, fx

from ...graph import add_constant, constant, emit, is_call, value
from ..base import Change
from .one_position import selection
from .purity import writes

__all__ = ["Filter", "filter_one_position", "find_filter"]

aten = torch.ops.aten
_DEFAULTS = (None, None, -1, None)


@dataclass(frozen=True)
class Filter:
    """Both transforms along `axis` of x, from the left, and the spectrum of the filter between them."""

    x: fx.Node
    axis: int
    spectrum: Tensor
    norms: tuple[str | None, str | None]


def filter_one_position(gm: fx.GraphModule) -> list[Change]:
    """Rewrites filters that are read at single positions; edits `gm` in place. Adds h for each of them."""
    if writes(gm):
        return []
    changes: list[Change] = []
    for node in list(gm.graph.nodes):
        found = find_filter(gm, node)
        if (
            found is None
            or not node.users
            or not all(_position(user, node) is not None for user in node.users)
        ):
            continue
        response = _response(found)
        for user in list(node.users):
            at = _position(user, node)
            assert at is not None
            changes.append(_rewrite(gm, user, found, response, at))
    return changes


def find_filter(gm: fx.GraphModule, node: fx.Node) -> Filter | None:
    """The filter that ends in this node, if there is one."""
    if not is_call(node, aten.fft_irfft.default):
        return None
    product, _, back, norm = _arguments(node)
    if not is_call(product, aten.mul.Tensor) or product.kwargs:
        return None
    for transform, factor in (product.args, product.args[::-1]):
        spectrum = constant(gm, factor)
        if spectrum is None or not is_call(transform, aten.fft_rfft.default):
            continue
        x, given, forth, first = _arguments(transform)
        rank = value(x).ndim
        length = value(x).shape[forth]
        whole = isinstance(length, int) and given in (None, length) and value(node).shape[back] == length
        if whole and forth % rank == back % rank and value(product).shape == value(transform).shape:
            return Filter(x, forth % rank, spectrum, (first, norm))
    return None


def _arguments(node: fx.Node) -> list[Any]:
    """Input, number of steps, dimension and norm."""
    return [*node.args, *_DEFAULTS[len(node.args) :]]


def _position(user: fx.Node, node: fx.Node) -> int | None:
    """Which step the user selects, if it does that alone."""
    part = selection(user)
    if part is None or not isinstance(part.at, int) or not is_call(user, aten.select.int, aten.slice.Tensor):
        return None
    return part.at if value(node).ndim + part.place.axis == _arguments(node)[2] % value(node).ndim else None


def _response(found: Filter) -> Tensor:
    """h, in float64, with one dimension for each of x."""
    rank, steps = value(found.x).ndim, int(value(found.x).shape[found.axis])
    impulse = torch.zeros([steps if axis == found.axis else 1 for axis in range(rank)], dtype=torch.float64)
    impulse.view(-1)[0] = 1.0
    spectrum = torch.fft.rfft(impulse, dim=found.axis, norm=found.norms[0]) * found.spectrum.to(
        torch.complex128
    )
    response: Tensor = torch.fft.irfft(spectrum, n=steps, dim=found.axis, norm=found.norms[1])
    return response


def _rewrite(gm: fx.GraphModule, user: fx.Node, found: Filter, response: Tensor, at: int) -> Change:
    steps = response.shape[found.axis]
    turned = response.index_select(found.axis, (at - torch.arange(steps)) % steps)
    held = turned.to(value(found.x).dtype).contiguous()
    with gm.graph.inserting_before(user):
        product = emit(gm, aten.mul.Tensor, (found.x, add_constant(gm, f"{user.name}_filter", held)))
        keep = is_call(user, aten.slice.Tensor)
        made = emit(gm, aten.sum.dim_IntList, (product, [found.axis], keep))
    user.replace_all_uses_with(made)
    gm.graph.erase_node(user)
    return Change(
        "filter one position", user.name, f"position {at} of {steps} is a weighted sum", held.nbytes
    )
