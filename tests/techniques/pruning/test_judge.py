"""What cuts are judged by."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from fastrec.graph import copy_graph
from fastrec.techniques.pruning.judge import Judge
from tests.techniques.fusion.rewrites import graph_of


class Scaled(nn.Module):
    """x (N, 2) -> 3 x, and numbers that no edit reaches."""

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * 3.0, x.argmax(1)


def test_answers_off_on_some_of_the_batches() -> None:
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(4, 2, generator=rng),) for _ in range(20)]
    gm = graph_of(Scaled(), *batches[0])
    judge = Judge(gm, batches)
    assert judge.off(gm) == 0.0
    ran = [batches[k * 20 // 8][0] for k in range(8)]
    for factor, far in ((2.0, 1 / 3), (math.nan, math.inf), (math.inf, math.inf)):
        other = copy_graph(gm)
        node = next(node for node in other.graph.nodes if node.target is torch.ops.aten.mul.Tensor)
        node.args = (node.args[0], factor)
        other.recompile()
        x = torch.cat(ran).flatten()
        spread = float(x.norm() / (x - x.mean()).norm())
        assert math.isclose(judge.off(other), far * spread, rel_tol=1e-5)
