"""How far answers are from those of the original, as a number to descend.

probabilities   - t log p - (1 - t) log(1 - p)         t the original's, so that the slope by a logit is p - t
numbers         (y - t)^2 / var t                      so that every output counts the same
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, fx
from torch.nn import functional

from ...graph import VIEWS, is_call, operator_name

__all__ = ["Answer", "answers_of", "off"]

aten = torch.ops.aten
_TINY = 1e-6


class Answer:
    """One output that is learned: its place, whether it is a probability, and how the original's vary."""

    def __init__(self, place: int, probability: bool, told: Sequence[Sequence[Tensor]]) -> None:
        self.place, self.probability = place, probability
        everything = torch.cat([batch[place].flatten().double() for batch in told])
        self.variance = float(everything.var(unbiased=False)) or 1.0


def answers_of(gm: fx.GraphModule, told: Sequence[Sequence[Tensor]]) -> list[Answer]:
    """The float outputs of a graph, whose originals on all batches are `told`."""
    given: Any = gm.graph.output_node().args[0]
    return [
        Answer(place, _is_probability(node), told)
        for place, node in enumerate(given)
        if told and told[0][place].is_floating_point()
    ]


def off(answers: Sequence[Answer], got: Sequence[Tensor], told: Sequence[Tensor]) -> Tensor:
    """The loss of one batch, all outputs together."""
    parts = []
    for answer in answers:
        y, t = got[answer.place], told[answer.place]
        if answer.probability:
            entropy = functional.binary_cross_entropy(t.clamp(_TINY, 1 - _TINY), t)
            parts.append(functional.binary_cross_entropy(y.clamp(_TINY, 1 - _TINY), t) - entropy)
        else:
            parts.append((y - t).square().mean() / answer.variance)
    return torch.stack(parts).sum()


def _is_probability(node: Any) -> bool:
    while isinstance(node, fx.Node) and operator_name(node) in VIEWS:
        node = node.args[0]
    return is_call(node, aten.sigmoid.default)
