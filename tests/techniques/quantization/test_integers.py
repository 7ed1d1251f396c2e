"""Layers put into 8 bits: how far off convolutions are, what is handed on as codes, which clamps go, what is held once."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.cost import per_candidate
from fastrec.graph import constant
from fastrec.ops.convolutions import INT8_CONVOLUTION
from fastrec.ops.linears import INT8_LINEAR
from fastrec.program import Program
from fastrec.techniques import Fuse
from tests.checks import assert_unchanged, snapshot
from tests.techniques.fusion.rewrites import count
from tests.zoo import ZOO, make

from .test_linears import off, program_of, quantised

aten = torch.ops.aten
CONVS = (aten.conv1d.default, aten.conv1d.padding, aten.conv2d.default, aten.conv2d.padding)
# Where the operator has what: input, weight, range of the input, range of the results.
X, WEIGHT, GIVEN, OUTPUT = 0, 1, slice(4, 6), slice(6, 8)


def pictures(rows: int, seed: int = 0, channels: int = 6) -> Tensor:
    return torch.randn(rows, channels, 9, 8, generator=torch.Generator().manual_seed(seed))


def double(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return copy.deepcopy(model).double()(x.double())


def convolutions(graph: fx.GraphModule) -> list[fx.Node]:
    return [node for node in graph.graph.nodes if node.target is INT8_CONVOLUTION]


def seeded(*layers: nn.Module) -> nn.Sequential:
    """The layers with weights of their own."""
    rng = torch.Generator().manual_seed(3)
    model = nn.Sequential(*layers)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=rng) / parameter[0].numel() ** 0.5)
    return model


SETTINGS: list[dict[str, Any]] = [
    {"padding": 1},
    {"padding": "same", "bias": False},
    {"padding": "valid", "stride": 2, "dilation": 2},
    {"padding": 2, "groups": 6},
    {"padding": "same", "groups": 6, "dilation": 2, "bias": False},
    {"padding": 1, "padding_mode": "circular"},
]


@pytest.mark.parametrize("dims", [1, 2])
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_a_convolution_in_8_bits_is_within_3_hundredths(settings: dict[str, Any], dims: int) -> None:
    model = seeded((nn.Conv1d, nn.Conv2d)[dims - 1](6, 12, 3, **settings))
    x = pictures(200) if dims == 2 else pictures(200).flatten(2)
    program = program_of(model, x)
    before = snapshot(program.model)
    graph, applied = quantised(program)
    assert_unchanged(program.model, before)
    assert count(graph, INT8_CONVOLUTION) == 1 and count(graph, *CONVS) == 0
    assert [change.rule for change in applied.changes] == ["quantize linears"]
    assert per_candidate(program.with_model(graph)) == per_candidate(program)
    fresh = pictures(300, 7) if dims == 2 else pictures(300, 7).flatten(2)
    assert off(graph(fresh)[0], double(model, fresh)) < 0.03
    assert float(applied.changes[0].detail.split("output ")[1].split(" off")[0]) < 0.02
    assert quantised(program.with_model(graph))[1].changes == ()


def test_codes_are_handed_on_and_clamps_are_what_codes_do() -> None:
    model = seeded(
        nn.Conv2d(6, 12, 3), nn.ReLU(), nn.Conv2d(12, 12, 3, padding=1, groups=12), nn.ReLU6(), nn.Conv2d(12, 8, 1), nn.Hardtanh(0.0, 0.5)
    )  # fmt: skip
    graph, _ = quantised(program_of(model, pictures(200)))
    assert count(graph, aten.relu.default, aten.hardtanh.default, aten.relu6.default) == 0
    first, second, third = convolutions(graph)
    assert (second.args[X], third.args[X]) == (first, second)
    assert first.args[OUTPUT] == second.args[GIVEN] and second.args[OUTPUT] == third.args[GIVEN]
    assert second.args[GIVEN][1] == 0
    y = graph(pictures(300, 7))[0]
    assert off(y, double(model, pictures(300, 7))) < 0.05
    assert float(y.abs().max()) <= 0.5 * (1 + 1e-6)


def test_a_clamp_that_others_see_stays_for_them() -> None:
    class Read(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = seeded(nn.Conv2d(6, 6, 3, padding=1)), seeded(nn.Conv2d(6, 6, 3, padding=1))

        def forward(self, x: Tensor) -> Tensor:
            y = self.a(x)
            z = F.relu(y)
            return self.b(z) + z + y

    graph, _ = quantised(program_of(Read(), pictures(200)))
    # What the second convolution does by itself, the sum does not.
    assert count(graph, aten.relu.default) == 1
    first, second = convolutions(graph)
    assert second.args[X] is first and first.args[OUTPUT][1] > 0
    assert off(graph(pictures(300, 7))[0], double(Read(), pictures(300, 7))) < 0.03


def test_a_clamp_inside_the_range_stays() -> None:
    model = seeded(nn.Conv2d(6, 6, 3), nn.Hardtanh(-0.1, 2.0), nn.Conv2d(6, 6, 1))
    model[2].weight.data.abs_()
    graph, _ = quantised(program_of(model, pictures(200)))
    first, second = convolutions(graph)
    scale, zero = second.args[GIVEN]
    ends = -zero * scale, (255 - zero) * scale
    assert (second.args[X] is first) == (ends[0] >= -0.1 - scale / 2 and ends[1] <= 2.0 + scale / 2)
    assert off(graph(pictures(300, 7))[0], double(model, pictures(300, 7))) < 0.03


def test_a_sum_around_a_block_keeps_its_floats() -> None:
    entry = next(entry for entry in ZOO if entry.name == "cover")
    program = program_of(make(entry), *entry.batch(200, torch.Generator().manual_seed(1)))
    program = replace(program, model=Fuse().apply(program).model)
    graph, applied = quantised(program)
    assert count(graph, *CONVS, aten.linear.default) == 0
    assert count(graph, INT8_CONVOLUTION) == 9 and count(graph, INT8_LINEAR) == 1
    assert not applied.skipped
    # Of 2 ReLUs behind sums, each read by the sum around the next block or alone, what the sums read stays.
    assert count(graph, aten.hardtanh.default) == 0 and count(graph, aten.add.Tensor) == 2
    handed = {node for node in convolutions(graph) if node.args[X] in convolutions(graph)}
    for node in handed:
        assert node.args[X].args[OUTPUT] == node.args[GIVEN]
    assert len(handed) == 4


class Twice(nn.Module):
    """One convolution for two pictures."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = seeded(nn.Conv2d(6, 12, 3))

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return self.layer(x).relu().sum((2, 3)) * self.layer(3 * y).relu().sum((2, 3))


def test_a_weight_read_twice_is_held_once() -> None:
    graph, applied = quantised(program_of(Twice(), pictures(100), pictures(100, 1)))
    one, other = convolutions(graph)
    assert one.args[WEIGHT] is other.args[WEIGHT] and one.args[GIVEN] != other.args[GIVEN]
    # A bias is in units of the range: each has its own.
    assert sorted(change.added_bytes for change in applied.changes) == [12 * 4, 12 * 4 + 12 * 4 + 12 * 54]


def test_a_filter_of_zeros_gives_its_bias() -> None:
    model = seeded(nn.Conv2d(6, 8, 3), nn.ReLU())
    with torch.no_grad():
        model[0].weight[2], model[0].weight[3] = 0.0, 1e-13
        model[0].bias[2], model[0].bias[3] = 0.75, 1.5
    graph, _ = quantised(program_of(model, pictures(200)))
    (node,) = convolutions(graph)
    y = graph(pictures(9, 3))[0]
    step = node.args[OUTPUT][0]
    assert (y[:, 2] - 0.75).abs().max() <= step and (y[:, 3] - 1.5).abs().max() <= step
    shift = constant(graph, node.args[3])
    assert shift is not None and int(shift.abs().max()) <= 2**30


def test_a_row_depends_on_no_other() -> None:
    model = seeded(
        nn.Conv2d(6, 12, 3, padding=1), nn.ReLU(), nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 3, (7, 6)), nn.Flatten()
    )  # fmt: skip
    graph, _ = quantised(program_of(model, pictures(200)))
    x = pictures(120, 9)
    x[5], x[6] = 1e3, 1e30
    together = graph(x)[0]
    assert together.isfinite().all()
    assert torch.equal(torch.cat([graph(row[None])[0] for row in x]), together)
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        order = torch.randperm(120, generator=rng)
        parts = order.split(int(torch.randint(1, 90, (), generator=rng)))
        assert torch.equal(torch.cat([graph(x[part])[0] for part in parts]), together[order])


def test_more_than_the_calibration_saw_is_cut_off_by_channels_alike() -> None:
    program = program_of(seeded(nn.Conv2d(6, 8, 3), nn.ReLU()), pictures(200))
    graph, _ = quantised(program)
    (node,) = convolutions(graph)
    scale, zero = node.args[OUTPUT]
    far = graph(pictures(4) * 1e6)[0]
    assert far.unique().min() >= -zero * scale and float(far.max()) == pytest.approx((255 - zero) * scale)


def calibrated(program: Program, *batches: tuple[Tensor, ...]) -> Program:
    return replace(program, calibration=batches)


def test_calibration_sees_all_batches_and_places() -> None:
    program = program_of(seeded(nn.Conv2d(6, 8, 3), nn.ReLU()), pictures(20))
    wide = pictures(200, 5) * 5
    graph, _ = quantised(calibrated(program, (pictures(200),), (wide,)))
    narrow, _ = quantised(calibrated(program, (pictures(200),)))
    right = double(seeded(nn.Conv2d(6, 8, 3), nn.ReLU()), wide)
    assert off(graph(wide)[0], right) < 0.5 * off(narrow(wide)[0], right)
