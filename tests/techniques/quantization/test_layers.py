"""Which layers 8 bits are for, and what is left with which reason."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.errors import InputError, TechniqueError
from fastrec.techniques import QuantizeLinears
from fastrec.techniques.quantization.calibration import sensitivities
from fastrec.techniques.quantization.layers import layers_of, limits, unfit, uses
from tests.techniques.fusion.rewrites import count, graph_of

from .test_integers import CONVS, pictures, seeded
from .test_linears import program_of, quantised

aten = torch.ops.aten


class Various(nn.Module):
    """A wide layer, narrow groups, one of a channel each, a linear map."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.narrow = nn.Conv2d(6, 12, 3, padding=1), nn.Conv2d(12, 12, 3, groups=3)
        self.single, self.linear = nn.Conv2d(12, 12, 3, groups=12), nn.Linear(12, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(torch.tanh(self.single(self.narrow(torch.tanh(self.wide(x))))).sum((2, 3)))


def test_narrow_groups_stay_and_single_channels_do_not() -> None:
    torch.manual_seed(0)
    _, applied = quantised(program_of(Various(), pictures(100)))
    assert [change.site for change in applied.changes] == ["conv2d", "conv2d_2", "linear"]
    assert {skip.site: skip.reason for skip in applied.skipped} == {
        "conv2d_1": "3 groups of 4: under 32 channels integers take longer"
    }
    # Named, it is known as well.
    _, applied = quantised(program_of(Various(), pictures(100)), only=("conv2d_1",))
    assert applied.changes == () and [skip.site for skip in applied.skipped] == ["conv2d_1"]


def test_weights_count_where_they_are_used() -> None:
    program = program_of(Various(), pictures(100))
    wide, narrow, single, linear = layers_of(graph_of(Various(), pictures(4)))
    assert [uses(node) for node in (wide, narrow, single, linear)] == [
        6 * 12 * 9 * 9 * 8, 4 * 12 * 9 * 7 * 6, 12 * 9 * 5 * 4, 48
    ]  # fmt: skip
    _, applied = quantised(program, least=4096)
    assert [change.site for change in applied.changes] == ["conv2d"]
    assert {skip.site: skip.reason for skip in applied.skipped} == {
        "conv2d_1": "3 groups of 4: under 32 channels integers take longer",
        "conv2d_2": "2,160 multiply-adds a row: under 4,096",
        "linear": "48 weights: under 4,096",
    }


def test_names_of_convolutions() -> None:
    program = program_of(Various(), pictures(100))
    _, applied = quantised(program, without=("conv2d",))
    assert [change.site for change in applied.changes] == ["conv2d_2", "linear"]
    with pytest.raises(
        InputError, match=r"no linear map or convolution .* conv2d, conv2d_1, conv2d_2, linear"
    ):
        QuantizeLinears(only=("conv",)).apply(program)
    assert list(sensitivities(program)) == ["conv2d", "conv2d_2", "linear"]


class Others(nn.Module):
    """Convolutions that are none of one or two dimensions by constant weights of float32, on a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.cube = nn.ConvTranspose2d(6, 6, 3, padding=1), nn.Conv3d(1, 2, 3, padding=1)
        self.plain, self.filters = nn.Conv2d(6, 6, 3, padding=1), nn.Parameter(torch.randn(6, 6, 1))

    def forward(self, x: Tensor) -> Tensor:
        own = F.conv1d(x.flatten(2), self.filters.exp())
        wide = F.conv2d(x.double(), self.plain.weight.double()).float().sum((2, 3))
        return own.sum((1, 2)) + (self.up(x) + self.cube(x[:, None]).sum(1)).sum((1, 2, 3)) + wide.sum(1)


def test_other_convolutions_are_none_of_its_business() -> None:
    torch.manual_seed(0)
    program = program_of(Others(), pictures(50))
    graph, applied = quantised(program)
    assert graph is program.model and applied.skipped == ()


@pytest.mark.parametrize("where", ["weight", "bias"])
def test_weights_that_are_not_finite_stay(where: str) -> None:
    model = seeded(nn.Conv2d(6, 12, 3))
    getattr(model[0], where).data[0] = float("inf")
    _, applied = quantised(program_of(model, pictures(50)))
    assert applied.changes == () and "finite" in applied.skipped[0].reason


def test_sums_that_may_pass_32_bits_stay() -> None:
    graph = graph_of(seeded(nn.Conv2d(700, 1, (7, 7))), torch.randn(2, 700, 7, 7))
    (node,) = layers_of(graph)
    assert unfit(graph, node) == "34,300 products in a sum: their codes may pass 32 bits"
    graph = graph_of(seeded(nn.Conv2d(670, 1, (7, 7))), torch.randn(2, 670, 7, 7))
    assert unfit(graph, layers_of(graph)[0]) == ""


def test_zeros_have_no_range() -> None:
    model = seeded(nn.Conv2d(6, 12, 3), nn.ReLU())
    _, applied = quantised(program_of(model, 0 * pictures(50)))
    assert "input is zero throughout" in applied.skipped[0].reason
    with torch.no_grad():
        model[0].bias.fill_(-1e9)
    graph, applied = quantised(program_of(model, pictures(50)))
    assert "output is zero throughout" in applied.skipped[0].reason and count(graph, *CONVS) == 1
    _, applied = quantised(program_of(model, pictures(50), calibration=((pictures(0),),)))
    assert "no row" in applied.skipped[0].reason


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_that_is_not_finite_is_named(bad: float) -> None:
    broken = pictures(50)
    broken[:, 2] = bad
    with pytest.raises(TechniqueError, match=r"not finite at the input of conv2d .*without="):
        quantised(program_of(seeded(nn.Conv2d(6, 12, 3)), broken))


@pytest.mark.parametrize(
    ("clamp", "ends"),
    [
        (F.relu, (0.0, float("inf"))),
        (F.relu6, (0.0, 6.0)),
        (F.hardtanh, (-1.0, 1.0)),
        (lambda x: F.hardtanh(x, -0.25, 3.0), (-0.25, 3.0)),
        (lambda x: x.clamp(0, 6), (0.0, 6.0)),
        (lambda x: x.clamp(max=2.5), (-float("inf"), 2.5)),
        (lambda x: x.clamp(x.amin(1, keepdim=True), 3 * x), None),
        (torch.tanh, None),
    ],
)
def test_the_ends_of_clamps(clamp: object, ends: tuple[float, float] | None) -> None:
    class Clamp(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return clamp(x) + 1  # type: ignore[operator]

    graph = graph_of(Clamp(), torch.randn(5, 4))
    (last,) = [node for node in graph.graph.nodes if node.target is aten.add.Tensor]
    found = limits(last.args[0])
    assert found == ends
