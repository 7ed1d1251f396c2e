"""A filter in the frequency domain of short sequences, all of which is read, is two products with constant matrices.

    irfft(rfft(x) * w)  =  I [R u - J v; R v + J u],    [R; J] = F x,    w = u + i v         x (..., T, d), w (T // 2 + 1, d)

F (2 (T // 2 + 1), T) holds the cosines and sines of rfft, I (T, 2 (T // 2 + 1)) those of irfft, norms included; both are
computed in float64 and serve every filter of that length. The work is 4 T^2 d multiply-adds in place of T d log T.

Of the three ways to filter all positions, one thread, torch 2.13, microseconds for (1, T, 64) / (64, T, 64):

    T                            16        50         128          200          512
    two transforms           21 / 201  19 /  674   26 / 1269    46 / 2821    91 /  8972
    these products           25 / 136  33 / 1816   77 / 3847   144 / 8436   803 / 51439
    circulant products, d    30 / 208 144 /  626  248 / 2614   654 / 5972  6531 / 36619

widths of 16 and 128 alike; one position is best a sum (`filters`). So transforms win, but only torch has them: OpenVINO and
Inductor take no complex numbers, ONNX Runtime's transform takes 10 times as long. A whole FMLP-Rec of two layers, width
64, 1 / 32 rows, T = 50: transforms in eager 204 / 6512, products in Inductor 88 / 2044, in ONNX Runtime 122 / 3286;
T = 200: 396 / 14245 against 405 / 21442. So up to T = 256 they are written, and `Fuse.alternatives` has the graph with its transforms
measured beside them; above, transforms stay. Circulant products, d matrices of T^2 for each filter, win nowhere by more than the noise.

When it does not apply: longer sequences; another axis than the last but one; w depends on the input; transforms that
cut or pad.
"""

from __future__ import annotations

import torch
from torch import Tensor, fx

from ...graph import add_constant, emit, value
from ..base import Change
from .filters import Filter, find_filter
from .purity import writes

__all__ = ["multiply_filters"]

aten = torch.ops.aten
_LONGEST = 256


def multiply_filters(gm: fx.GraphModule) -> list[Change]:
    """Rewrites filters of all positions; edits `gm` in place. Adds 8 T^2 numbers for each length, and 2 T d for each filter."""
    if writes(gm):
        return []
    changes: list[Change] = []
    shared: dict[tuple[object, ...], tuple[fx.Node, fx.Node]] = {}
    for node in list(gm.graph.nodes):
        found = find_filter(gm, node)
        if found is None or not node.users or not _fits(found):
            continue
        x, steps = value(found.x), int(value(found.x).shape[-2])
        key = (steps, found.norms, x.dtype)
        added = 0
        if key not in shared:
            matrices = [part.to(x.dtype).contiguous() for part in _matrices(steps, *found.norms)]
            forth, back = (add_constant(gm, f"transform_{steps}", matrix) for matrix in matrices)
            shared[key] = forth, back
            added = sum(matrix.nbytes for matrix in matrices)
        added += _rewrite(gm, node, found, *shared[key])
        changes.append(Change("multiply filters", node.name, f"{steps} steps by two matrices", added))
    return changes


def _fits(found: Filter) -> bool:
    x = value(found.x)
    steps = x.shape[-2] if x.ndim > 1 else 0
    return (
        found.axis == x.ndim - 2
        and isinstance(steps, int)
        and 1 < steps <= _LONGEST
        and found.spectrum.ndim > 1
        and found.spectrum.shape[-2] == steps // 2 + 1
    )


def _matrices(steps: int, first: str | None, last: str | None) -> tuple[Tensor, Tensor]:
    """F and I of the docstring, in float64."""
    spectra = torch.fft.rfft(torch.eye(steps, dtype=torch.float64), dim=0, norm=first)
    units = torch.eye(steps // 2 + 1, dtype=torch.complex128)
    inverses = [torch.fft.irfft(unit, n=steps, dim=0, norm=last) for unit in (units, 1j * units)]
    return torch.cat([spectra.real, spectra.imag]), torch.cat(inverses, 1)


def _rewrite(gm: fx.GraphModule, node: fx.Node, found: Filter, forth: fx.Node, back: fx.Node) -> int:
    """Puts the products in the node's place; the bytes of the spectrum's two parts."""
    dtype, count = value(found.x).dtype, found.spectrum.shape[-2]
    u, v = (part.to(dtype).contiguous() for part in (found.spectrum.real, found.spectrum.imag))
    real, imaginary = (add_constant(gm, f"{node.name}_filter", part) for part in (u, v))
    with gm.graph.inserting_before(node):
        both = emit(gm, aten.matmul.default, (forth, found.x))
        r = emit(gm, aten.slice.Tensor, (both, -2, 0, count))
        j = emit(gm, aten.slice.Tensor, (both, -2, count, 2 * count))

        def times(part: fx.Node, by: fx.Node) -> fx.Node:
            return emit(gm, aten.mul.Tensor, (part, by))

        first = emit(gm, aten.sub.Tensor, (times(r, real), times(j, imaginary)))
        second = emit(gm, aten.add.Tensor, (times(r, imaginary), times(j, real)))
        made = emit(gm, aten.matmul.default, (back, emit(gm, aten.cat.default, ([first, second], -2))))
    node.replace_all_uses_with(made)
    gm.graph.erase_node(node)
    return u.nbytes + v.nbytes
