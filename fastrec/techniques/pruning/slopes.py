"""Gradients of a graph's answers by some of its values, on the calibration.

    g = d (r . y) / d x          y all float answers of a batch, r of -1 and 1, drawn with a fixed seed

so that E g^2 is the sum over the answers of their squared slopes, and no two of them cancel.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ..quantization.calibration import evenly, rows_kept

__all__ = ["slopes_of"]


def slopes_of(
    gm: fx.GraphModule, sources: Sequence[fx.Node], batches: Sequence[Sequence[Tensor]]
) -> dict[fx.Node, Tensor]:
    """Gradients (n, I) by the values of these nodes, of the same rows that `calibration.inputs_of` keeps. Cost: a run and its gradient for each batch."""
    wanted = list(dict.fromkeys(sources))
    kept: dict[fx.Node, list[Tensor]] = {node: [] for node in wanted}
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        run = _Watching(gm, wanted)
        with torch.enable_grad(), torch.random.fork_rng(devices=()):
            answers = [out for out in run.run(*batch) if out.is_floating_point() and out.requires_grad]
            signs = [torch.randint(0, 2, out.shape, generator=generator) * 2 - 1 for out in answers]
            total = sum((out * sign).sum() for out, sign in zip(answers, signs, strict=True))
            held = [run.seen[node] for node in wanted]
            found = torch.autograd.grad(total, held, allow_unused=True) if answers else [None] * len(held)
        for node, value, slope in zip(wanted, held, found, strict=True):
            rows = torch.zeros_like(value) if slope is None else slope
            width = rows.shape[-1]
            kept[node].append(evenly(rows.detach().reshape(-1, width), rows_kept(width, len(batches))))
    return {node: torch.cat(parts) for node, parts in kept.items()}


class _Watching(fx.Interpreter):
    """Runs a graph with gradients by the values of some nodes."""

    def __init__(self, gm: fx.GraphModule, wanted: Sequence[fx.Node]) -> None:
        super().__init__(gm)
        self.seen: dict[fx.Node, Tensor] = {}
        self._wanted = set(wanted)

    def run_node(self, n: fx.Node) -> Any:
        result = super().run_node(n)
        if n.op == "get_attr" and isinstance(result, Tensor):
            return result.detach()
        if n in self._wanted:
            # A value that no gradient reaches yet is where one starts.
            result = result if result.requires_grad else result.detach().requires_grad_()
            self.seen[n] = result
        return result
