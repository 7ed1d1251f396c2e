"""Slopes of answers by what maps are given: in graphs and in modules, and what they must not do to a model."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec.errors import TechniqueError
from fastrec.program import Program
from fastrec.techniques.pruning.graph_units import GraphUnits
from fastrec.techniques.pruning.module_units import ModuleUnits
from fastrec.techniques.pruning.slopes import module_slopes
from tests.checks import assert_unchanged, snapshot

from .masks import captured
from .models import Mlp, made, numbers


def test_slopes_of_one_answer_are_the_weights_that_read_it() -> None:
    model: Any = Mlp(5, act=torch.tanh).eval()
    x = numbers(30)
    program = captured(model, x)
    found = GraphUnits(program)
    ((seen, slopes),) = found.sloped(found.groups[:1]).values()
    with torch.no_grad():
        torch.testing.assert_close(seen, torch.tanh(model.maps[0](x)))
    torch.testing.assert_close(slopes.abs(), model.maps[1].weight.detach().abs().expand(30, 5))
    # Signs are drawn, so that slopes of several answers do not cancel: here one for each row.
    assert {1.0, -1.0} == {float(sign) for sign in (slopes / model.maps[1].weight).detach().sign()[:, 0]}


@pytest.mark.parametrize("name", ["mlp", "siamese", "tasks"])
def test_modules_have_the_slopes_of_the_graph(name: str) -> None:
    model, batch = made(name)
    graph = GraphUnits(captured(model, *batch(40)))
    whole = Program.read(model, batch(40) if len(batch(40)) > 1 else batch(40)[0])
    before = snapshot(model)
    modules = ModuleUnits(whole)
    # Maps of one weight are one module: their rows come one after the other.
    first = next(iter(graph.sloped([one for one in graph.groups if not one.reason]).values()))
    other = next(iter(modules.sloped([one for one in modules.groups if not one.reason]).values()))
    torch.testing.assert_close(other[0][:40], first[0][:40])
    torch.testing.assert_close(other[1][:40], first[1][:40])
    assert_unchanged(model, before)


def test_batches_are_looked_at_alike() -> None:
    model: Any = Mlp(5).eval()
    x, y = numbers(900), numbers(1900, seed=2)
    program = replace(Program.read(model, x[:4]), calibration=(x, y))
    ((seen, slopes),) = module_slopes(program, {"maps.1"}).values()
    assert seen.shape == slopes.shape and 1000 < len(seen) <= 2048


class Answering(nn.Module):
    """Ids of the best, or numbers that no gradient reaches."""

    def __init__(self, ids: bool) -> None:
        super().__init__()
        self.up, self.down, self.ids = nn.Linear(6, 8), nn.Linear(8, 5), ids

    def forward(self, x: Tensor) -> Tensor:
        if self.ids:
            return self.down(torch.relu(self.up(x))).argmax(1)  # type: ignore[no-any-return]
        with torch.no_grad():
            return self.down(torch.relu(self.up(x)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("ids", [True, False])
def test_answers_without_gradients_are_refused(ids: bool) -> None:
    program = Program.read(Answering(ids).eval(), numbers(9))
    with pytest.raises(TechniqueError, match="take by='activation'"):
        module_slopes(program, {"down"})


def test_no_gradient_is_left_behind_and_values_may_be_written_to() -> None:
    class Writing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up, self.down = nn.Linear(6, 8), nn.Linear(8, 5)

        def forward(self, x: Tensor) -> Tensor:
            h = torch.relu_(self.up(x))
            y: Tensor = self.down(h)
            h.mul_(2)
            return y

    model = Writing().eval()
    program = Program.read(model, numbers(9))
    state = torch.random.get_rng_state()
    ((_, slopes),) = module_slopes(program, {"down"}).values()
    assert slopes.shape == (9, 8) and bool(slopes.any())
    assert all(parameter.grad is None for parameter in model.parameters())
    assert torch.equal(torch.random.get_rng_state(), state)
