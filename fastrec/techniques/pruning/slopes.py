"""Gradients of a model's answers by what some of its maps are given, on the calibration.

    g = d (r . y) / d x          y all float answers of a batch, r of -1 and 1, drawn with a fixed seed

so that E g^2 is the sum over the answers of their squared slopes, and no two of them cancel.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import torch
from torch import Tensor, fx

from ...errors import TechniqueError
from ...program import Program
from ...quiet import reason_of
from ...trees import describe
from ..quantization.calibration import evenly, rows_kept
from ..quantization.linear_modules import flat_batches
from .heard import hear

__all__ = ["module_slopes", "slopes_of"]


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
            answers = run.run(*batch)
            held = [run.seen[node] for node in wanted]
            found = _by(answers, held, generator)
        for node, rows in zip(wanted, found, strict=True):
            width = rows.shape[-1]
            kept[node].append(evenly(rows.reshape(-1, width), rows_kept(width, len(batches))))
    return {node: torch.cat(parts) for node, parts in kept.items()}


def module_slopes(program: Program, names: Collection[str]) -> dict[str, tuple[Tensor, Tensor]]:
    """Rows (n, I) that these maps of a model that could not be captured are given, and gradients (n, I) by them.

    Maps that no row reaches are left out. Raises `TechniqueError` where no gradient can be had. Cost: a run and its gradient
    for each batch.
    """
    batches = flat_batches(program)
    private = program.private()
    held: list[tuple[str, Tensor]] = []

    def note(name: str, x: Tensor) -> Tensor:
        # A copy, as the model may write to its own; a value that no gradient reaches yet is where one starts.
        copied = x.clone() if x.requires_grad else x.clone().detach().requires_grad_()
        held.append((name, copied))
        return copied

    hear(private.model, names, note)
    kept: dict[str, list[tuple[Tensor, Tensor]]] = {}
    generator = torch.Generator().manual_seed(0)
    for batch in batches:
        held.clear()
        try:
            args, kwargs = private.layout.arguments(batch)
            with torch.enable_grad(), torch.random.fork_rng(devices=()):
                answers: list[tuple[str, Tensor]] = []
                describe(private.function(*args, **kwargs), "output", answers)
                found = _by([answer for _, answer in answers], [x for _, x in held], generator)
        except TechniqueError:
            raise
        except Exception as error:  # whatever autograd, or a stranger's model under it, raises
            raise TechniqueError(
                f"the model's answers have no gradients, take by='activation': {reason_of(error)}",
                technique="prune_neurons",
            ) from error
        for name in dict.fromkeys(name for name, _ in held):
            pairs = [(x, slope) for (other, x), slope in zip(held, found, strict=True) if other == name]
            width = pairs[0][0].shape[-1]
            x, slope = (
                torch.cat([one.detach().reshape(-1, width) for one in side])
                for side in zip(*pairs, strict=True)
            )
            most = rows_kept(width, len(batches))
            kept.setdefault(name, []).append((evenly(x, most), evenly(slope, most)))
    return {
        name: (torch.cat([x for x, _ in parts]), torch.cat([g for _, g in parts]))
        for name, parts in kept.items()
    }


def _by(answers: Sequence[Tensor], held: Sequence[Tensor], generator: torch.Generator) -> list[Tensor]:
    """The gradients by these values, zeros where there are none."""
    answers = [out for out in answers if out.is_floating_point() and out.requires_grad]
    if not answers:
        raise TechniqueError(
            "no answer is a number with a gradient by its hidden units: take by='activation'",
            technique="prune_neurons",
        )
    signs = [torch.randint(0, 2, out.shape, generator=generator) * 2 - 1 for out in answers]
    total = torch.stack([(out * sign).sum() for out, sign in zip(answers, signs, strict=True)]).sum()
    found = torch.autograd.grad(total, list(held), allow_unused=True)
    return [
        torch.zeros_like(x) if slope is None else slope.detach() for x, slope in zip(held, found, strict=True)
    ]


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
