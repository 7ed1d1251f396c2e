"""Uneven channels: made even where what gives them can, without changing an answer."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.graph import copy_graph, sweep
from fastrec.techniques import QuantizeLinears
from fastrec.techniques.quantization import calibration, layers, smoothing
from fastrec.techniques.quantization.smoothing import smooth
from tests.techniques.fusion.rewrites import count, graph_of

from .test_linears import program_of

aten = torch.ops.aten


class After(nn.Module):
    """A layer (N, 24) -> (N, 8) after something with one huge channel."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind = kind
        self.first, self.norm = nn.Linear(20, 24), nn.LayerNorm(24)
        self.layer, self.other = nn.Linear(24, 8), nn.Linear(24, 5)
        with torch.no_grad():
            giver = self.norm if "norm" in kind else self.first
            giver.weight[3] *= 40
            self.first.bias[3] = 10.0
            # The channel is huge, and no more is made of it than of the others.
            for reader in (self.layer, self.other):
                reader.weight[:, 3] /= 40

    def forward(self, x: Tensor) -> Tensor:
        y = self.first(x)
        if "norm" in self.kind:
            y = self.norm(y)
        if "relu" in self.kind:
            y = torch.relu(y)
        if "tanh" in self.kind:
            y = y + torch.tanh(y)
        last = torch.cat([self.layer(y), self.other(y)], 1)
        return torch.cat([last, y], 1) if "read" in self.kind else last


def draw(rows: int = 400, seed: int = 0) -> Tensor:
    return torch.randn(rows, 20, generator=torch.Generator().manual_seed(seed))


def evened(model: nn.Module) -> tuple[fx.GraphModule, fx.GraphModule, int]:
    before = graph_of(model, draw())
    after = copy_graph(before)
    sources = [node.args[0] for node in layers.layers_of(after)]
    changed = smooth(after, calibration.inputs_of(after, sources, [[draw()]]))
    sweep(after)
    return before, after, len(changed)


@pytest.mark.parametrize("kind", ["linear", "linear relu", "norm", "norm relu"])
def test_the_answer_is_bit_for_bit_the_same(kind: str) -> None:
    torch.manual_seed(0)
    before, after, changed = evened(After(kind))
    assert changed == 1
    assert torch.equal(before(draw(50, 1))[0], after(draw(50, 1))[0])


@pytest.mark.parametrize("kind", ["linear read", "norm read", "linear tanh", "linear relu read"])
def test_where_something_else_gives_or_reads_it_a_product_evens_it(kind: str) -> None:
    torch.manual_seed(0)
    before, after, changed = evened(After(kind))
    assert changed == 1 and count(after, aten.mul.Tensor) == count(before, aten.mul.Tensor) + 1
    assert torch.equal(before(draw(50, 1))[0], after(draw(50, 1))[0])


def test_a_product_has_to_halve_the_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "_HALF", 0.0)
    torch.manual_seed(0)
    before, after, changed = evened(After("linear read"))
    assert changed == 0 and str(after.graph) == str(before.graph)


def test_beside_many_outputs_a_product_may_gain_less(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(smoothing, "_HALF", 0.0)
    monkeypatch.setattr(smoothing, "_WIDE", 8)
    torch.manual_seed(0)
    before, after, changed = evened(After("linear read"))
    assert changed == 1
    assert torch.equal(before(draw(50, 1))[0], after(draw(50, 1))[0])


class _Tied(nn.Module):
    """One weight before and after."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(20, 20)
        with torch.no_grad():
            self.layer.weight[3] *= 100

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(torch.relu(self.layer(x)))


def test_a_weight_that_two_maps_share_stays_shared() -> None:
    torch.manual_seed(0)
    _, after, changed = evened(_Tied())
    assert changed == 0
    assert len({node.args[1] for node in layers.layers_of(after)}) == 1


def test_even_channels_are_left() -> None:
    torch.manual_seed(0)
    _, _, changed = evened(nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 3)))
    assert changed == 0


@pytest.mark.parametrize("kind", ["linear relu", "norm"])
def test_a_layer_with_one_huge_channel_is_nearer(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model = After(kind)
    x = draw(300, 2)
    with torch.no_grad():
        right = copy.deepcopy(model).double()(x.double())

    def off() -> tuple[float, str]:
        applied = QuantizeLinears(least=0).apply(program_of(model, draw()))
        got = applied.model(x)[0].detach().double()
        return float((got - right).norm() / right.norm()), " ".join(
            change.detail for change in applied.changes
        )

    even, said = off()
    assert said.count("channels made even") == 2
    monkeypatch.setattr(calibration, "smooth", lambda gm, seen: set())
    uneven, said = off()
    assert "channels made even" not in said and even < 0.03 and uneven > 3 * even
