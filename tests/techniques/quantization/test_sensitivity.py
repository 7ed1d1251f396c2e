"""How far answers move by an edit of a copy of the graph."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, fx, nn

from fastrec.techniques.quantization.sensitivity import moved_by
from tests.checks import assert_unchanged, snapshot
from tests.techniques.fusion.rewrites import graph_of


class Sum(nn.Module):
    """Two terms, and a number that no edit reaches."""

    def forward(self, x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
        return x + y, x - 1.0


def scale(factor: float, gm: fx.GraphModule) -> None:
    node = next(node for node in gm.graph.nodes if node.target is torch.ops.aten.add.Tensor)
    node.kwargs = {"alpha": factor}
    gm.recompile()


def test_each_edit_moves_a_copy_and_only_that() -> None:
    rng = torch.Generator().manual_seed(0)
    batches = [(torch.randn(n, 4, generator=rng), torch.randn(n, 4, generator=rng)) for n in (3, 50)]
    gm = graph_of(Sum(), *batches[1])
    before, code = snapshot(gm), gm.code
    found = moved_by(gm, batches, {"none": lambda _: None, "half": partial(scale, 0.5)})
    assert gm.code == code
    assert_unchanged(gm, before)
    x, y = (torch.cat(parts).flatten() for parts in zip(*batches, strict=True))
    spread = (x + y - (x + y).mean()).norm()
    assert found["none"] == 0.0
    assert abs(found["half"] - float((0.5 * y).norm() / spread)) < 1e-6
