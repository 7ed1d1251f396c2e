"""What a graph computes lies between the ends that are told of it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.program import Program
from fastrec.techniques.pruning.bounds import intervals
from tests.zoo import ZOO, Entry
from tests.zoo.programs import captured


class _Checking(fx.Interpreter):
    """Runs a graph and compares every value with its ends."""

    def __init__(self, gm: fx.GraphModule, ends: dict[fx.Node, Any]) -> None:
        super().__init__(gm)
        self.ends, self.told = ends, 0

    def run_node(self, n: fx.Node) -> Any:
        found = super().run_node(n)
        if n in self.ends and found.numel():
            low, high = self.ends[n].low, self.ends[n].high
            assert bool(((found >= low) & (found <= high)).all()), n.format_node()
            self.told += n.op == "call_function" and bool((low.isfinite() | high.isfinite()).any())
        return found


@pytest.mark.parametrize("entry", [entry for entry in ZOO if entry.capturable], ids=lambda entry: entry.name)
def test_every_value_of_the_zoo_lies_between_its_ends(entry: Entry) -> None:
    program = captured(entry)
    gm: Any = program.model
    checking = _Checking(gm, intervals(gm, {}))
    with torch.no_grad():
        checking.run(*program.batch)


class Parts(nn.Module):
    """x (N, 3) in [-1, 2] by each operation that has ends."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.map, self.norm = nn.Linear(3, 5), nn.BatchNorm1d(5)
        assert self.norm.running_var is not None and self.norm.running_mean is not None
        self.norm.running_var.uniform_(0.5, 2.0)
        self.norm.running_mean.normal_()
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        y = self.norm(self.map(x))
        stacked = torch.stack([y, -y, 2 * y - 1], 1)
        return (
            torch.relu(y), torch.sigmoid(y) * y, torch.tanh(y) / 3, y.clamp(-0.1, 0.2), torch.softmax(y, 1),
            stacked.sum(1), stacked.mean(1), stacked.reshape(len(x), 15), stacked.transpose(1, 2),
            torch.cat([x, y], 1) - 4, y.masked_fill(y > 0, 0.0), y[:, 1:3], (y + 100) / (x[:, :1] + 50),
        )  # fmt: skip


def test_each_operation_keeps_its_ends() -> None:
    model = Parts().eval()
    x = 3 * torch.rand(500, 3, generator=torch.Generator().manual_seed(0)) - 1
    gm: Any = capture(Program.read(model, x)).model
    (name,) = (node.name for node in gm.graph.nodes if node.op == "placeholder")
    checking = _Checking(gm, intervals(gm, {name: (-1.0, 2.0)}))
    with torch.no_grad():
        checking.run(x)
    assert checking.told >= 20


def test_an_input_that_nothing_is_known_of_has_no_ends_but_those_of_what_cuts_it() -> None:
    model = nn.Sequential(nn.Linear(2, 3), nn.ReLU(), nn.Linear(3, 1)).eval()
    gm: Any = capture(Program.read(model, torch.randn(4, 2))).model
    ends = {node.name: end for node, end in intervals(gm, {}).items()}
    assert bool((ends["linear"].low == -torch.inf).all()) and bool((ends["linear"].high == torch.inf).all())
    assert bool((ends["relu"].low == 0).all()) and bool((ends["relu"].high == torch.inf).all())


def test_a_weight_of_zero_takes_nothing_from_an_end_that_is_infinite() -> None:
    model = nn.Linear(2, 2, bias=False).eval()
    with torch.no_grad():
        model.weight.copy_(torch.tensor([[0.0, 0.0], [1.0, 0.0]]))
    gm: Any = capture(Program.read(model, torch.randn(4, 2))).model
    (end,) = (end for node, end in intervals(gm, {}).items() if node.name == "linear")
    assert bool(end.fixed[0]) and not bool(end.fixed[1])
