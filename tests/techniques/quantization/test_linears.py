"""Linear maps in 8 bits: what is taken and what is left, how far off it is, and that no row sees another."""

from __future__ import annotations

import copy
import json
from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec.capture import capture
from fastrec.cost import per_candidate
from fastrec.errors import InputError, TechniqueError
from fastrec.graph import normalise
from fastrec.ops.linears import INT8_LINEAR
from fastrec.plain import from_plain, to_plain
from fastrec.program import Program
from fastrec.techniques import Applied, QuantizeLinears
from fastrec.techniques.quantization.calibration import sensitivities
from tests.checks import assert_unchanged, snapshot
from tests.techniques.fusion.rewrites import count

aten = torch.ops.aten


class Tower(nn.Module):
    """x (N, 40) -> (N, 3)."""

    def __init__(self, width: int = 96, depth: int = 3, seed: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers: list[nn.Module] = []
            last = 40
            for _ in range(depth):
                layers += [nn.Linear(last, width), nn.ReLU()]
                last = width
            self.layers = nn.Sequential(*layers, nn.Linear(last, 3))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


def draw(rows: int, seed: int = 0, width: int = 40) -> Tensor:
    return torch.randn(rows, width, generator=torch.Generator().manual_seed(seed))


def program_of(model: nn.Module, *batch: Tensor, calibration: tuple[tuple[Tensor, ...], ...] = ()) -> Program:
    return replace(capture(Program.read(model.eval(), batch)), calibration=calibration)


def quantised(program: Program, **settings: object) -> tuple[fx.GraphModule, Applied]:
    applied = QuantizeLinears(**{"least": 0, **settings}).apply(program)  # type: ignore[arg-type]
    assert isinstance(applied.model, fx.GraphModule)
    return applied.model, applied


def off(got: Tensor, right: Tensor) -> float:
    return float((got.double() - right).norm() / (right - right.mean(0)).norm())


@pytest.mark.parametrize("seed", range(5))
def test_a_tower_in_8_bits_is_within_3_hundredths(seed: int) -> None:
    model = Tower(seed=seed)
    graph, applied = quantised(program_of(model, draw(500, seed)))
    x = draw(2000, 100 + seed)
    with torch.no_grad():
        right = copy.deepcopy(model).double()(x.double())
        assert off(graph(x)[0], right) < 0.03
    assert count(graph, INT8_LINEAR) == 4 and count(graph, aten.linear.default) == 0
    assert [change.site for change in applied.changes] == ["linear", "linear_1", "linear_2", "linear_3"]
    for change in applied.changes:
        assert float(change.detail.split("output ")[1].split(" off")[0]) < 0.02


def test_relu_is_what_the_clamping_does() -> None:
    program = program_of(Tower(), draw(500))
    graph, _ = quantised(program)
    assert count(graph, aten.relu.default) == 0
    # A layer that stays reads the ReLU still.
    mixed, applied = quantised(program, without=("linear_1",))
    assert count(mixed, aten.relu.default) == 1
    assert [change.site for change in applied.changes] == ["linear", "linear_2", "linear_3"]
    x = draw(50, 3)
    kept = F.relu(
        F.linear(
            x,
            program.model.get_parameter("model.layers.0.weight"),
            program.model.get_parameter("model.layers.0.bias"),
        )
    )
    node = next(node for node in graph.graph.nodes if node.name == "linear_1")
    _, codes, scale, step, zero, bias = node.args
    held = [
        graph.get_buffer(codes.target),
        graph.get_buffer(scale.target),
        step,
        zero,
        program.model.get_parameter(bias.target),
    ]
    raw = F.linear(
        x,
        program.model.get_parameter("model.layers.0.weight"),
        program.model.get_parameter("model.layers.0.bias"),
    )
    assert zero == 0 and torch.equal(INT8_LINEAR(raw, *held), INT8_LINEAR(kept, *held))


def test_the_program_is_left_and_the_weights_take_a_quarter() -> None:
    model = Tower(width=256)
    program = program_of(model, draw(100))
    before = snapshot(program.model)
    state = torch.get_rng_state()
    graph, applied = quantised(program)
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(program.model, before)
    size = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    assert size < 0.28 * sum(parameter.nbytes for parameter in model.parameters())
    assert sum(change.added_bytes for change in applied.changes) < size
    assert per_candidate(program.with_model(graph)) == per_candidate(program)


def test_the_same_sites_and_numbers_each_time() -> None:
    first, second = (quantised(program_of(Tower(), draw(100))) for _ in range(2))
    assert first[1].changes == second[1].changes
    assert torch.equal(first[0](draw(7))[0], second[0](draw(7))[0])


def test_what_is_small_or_named_stays() -> None:
    program = program_of(Tower(), draw(100))
    _, applied = quantised(program, least=5000)
    assert [change.site for change in applied.changes] == ["linear_1", "linear_2"]
    assert {skip.site: skip.reason for skip in applied.skipped} == {
        "linear": "3,840 weights: under 5,000",
        "linear_3": "288 weights: under 5,000",
    }
    only, applied = quantised(program, only=("linear_2", "linear"), without=("linear",))
    assert [change.site for change in applied.changes] == ["linear_2"] and not applied.skipped
    assert QuantizeLinears(least=0, only=("linear_2",)).apply(program.with_model(only)).changes == ()


def test_names_of_no_layer() -> None:
    program = program_of(Tower(), draw(100))
    with pytest.raises(InputError, match=r"only=.* has 'liner'.* linear, linear_1"):
        QuantizeLinears(only=("liner",)).apply(program)
    _, applied = quantised(program, without=("liner",))
    assert [skip.site for skip in applied.skipped] == ["liner"] and len(applied.changes) == 4


@pytest.mark.parametrize(
    "settings",
    [
        {"only": ["linear"]},
        {"only": "linear"},
        {"without": (3,)},
        {"without": ("",)},
        {"least": -1},
        {"least": 1.5},
        {"least": True},
    ],
)
def test_settings_of_another_kind(settings: dict[str, object]) -> None:
    with pytest.raises(InputError, match=f"QuantizeLinears\\({next(iter(settings))}=...\\)"):
        QuantizeLinears(**settings)  # type: ignore[arg-type]


def test_settings_survive_json() -> None:
    given = QuantizeLinears(only=("linear", "linear_2"), without=("linear",), least=7)
    assert from_plain(QuantizeLinears, json.loads(json.dumps(to_plain(given, "s"))), "s") == given


def test_a_model_that_was_not_captured_has_its_modules_taken() -> None:
    applied = QuantizeLinears(without=("layers.0",)).apply(Program.read(Tower().eval(), (draw(40),)))
    assert [change.site for change in applied.changes] == ["layers.2", "layers.4"]
    assert [skip.site for skip in applied.skipped] == ["layers.6"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_that_is_not_finite_is_named(bad: float) -> None:
    broken = draw(50)
    broken[3, 5] = bad
    program = program_of(Tower(), draw(50), calibration=((draw(50),), (broken,)))
    with pytest.raises(
        TechniqueError, match=r"not finite at the input of linear .*1 of 4000.*without="
    ) as caught:
        quantised(program)
    assert caught.value.site == "linear" and caught.value.technique == "quantize_linears"
    every = ("linear", "linear_1", "linear_2", "linear_3")
    assert quantised(program, without=every)[0] is program.model


def test_weights_that_are_not_finite_stay() -> None:
    model = Tower()
    model.layers[6].weight.data[0, 0] = float("nan")
    graph, applied = quantised(program_of(model, draw(100)))
    assert [skip.reason for skip in applied.skipped] == ["its weights are not all finite"]
    assert len(applied.changes) == 3 and count(graph, aten.linear.default) == 1


def test_an_input_of_zeros_stays_exact_and_a_constant_column_does_no_harm() -> None:
    _, applied = quantised(program_of(Tower(), torch.zeros(20, 40)))
    assert applied.skipped[0].site == "linear" and "zero throughout" in applied.skipped[0].reason
    x = draw(500)
    x[:, 3], x[:, 4] = 2.5, 0.0
    model = Tower()
    graph, _ = quantised(program_of(model, x))
    with torch.no_grad():
        assert off(graph(x)[0], copy.deepcopy(model).double()(x.double())) < 0.03


def test_a_layer_that_8_bits_would_spoil_stays() -> None:
    class Spoilt(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(20, 8)

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(x)

    model = Spoilt()
    with torch.no_grad():
        model.layer.weight[:, 0] = 0.0
        model.layer.weight[:, 1:] = torch.randn(8, 19)
    # A column a million times the others, which the layer does not read.
    x = torch.randn(200, 20)
    x[:, 0] *= 1e6
    graph, applied = quantised(program_of(model, x))
    assert applied.changes == () and "8 bits would put its output" in applied.skipped[0].reason
    assert torch.isfinite(graph(x)[0]).all()


class _Products(nn.Module):
    """Products with constant matrices by other operators, on three dimensions, and one weight read twice."""

    def __init__(self) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(24, 24) / 5)
        self.tied = nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = torch.tanh(x @ self.matrix)
        return self.tied(torch.tanh(self.tied(y))).sum(1)


def test_products_of_any_name_and_a_shared_weight() -> None:
    torch.manual_seed(0)
    model = _Products()
    x = torch.randn(64, 5, 24)
    graph, applied = quantised(program_of(model, x))
    assert count(graph, INT8_LINEAR) == 3 and count(graph, aten.matmul.default) == 0
    codes = {node.args[1] for node in graph.graph.nodes if node.target is INT8_LINEAR}
    assert len(codes) == 2
    assert sorted(change.added_bytes for change in applied.changes)[0] == 0
    with torch.no_grad():
        assert off(graph(x)[0], copy.deepcopy(model).double()(x.double())) < 0.03


class _Computed(nn.Module):
    """A bias that the request gives."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.layer = nn.Linear(6, 16), nn.Linear(12, 16, bias=False)

    def forward(self, user: Tensor, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight, self.user(user).reshape(16)).relu()


def test_a_bias_that_is_computed() -> None:
    torch.manual_seed(0)
    model = _Computed().eval()
    exported = torch.export.export(model, (torch.randn(1, 6), torch.randn(9, 12)), strict=False)
    graph = exported.module(check_guards=False)
    program = capture(Program.read(Tower().eval(), (draw(4),)))
    given = (torch.randn(1, 6), torch.randn(9, 12))
    made, _ = quantised(replace(program, model=normalise(graph), batch=given))
    assert count(made, INT8_LINEAR) == 2
    with torch.no_grad():
        assert off(made(*given)[0], copy.deepcopy(model).double()(*[part.double() for part in given])) < 0.03


def test_a_graph_that_writes_in_place_is_left() -> None:
    class Writes(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(8, 8)

        def forward(self, x: Tensor) -> Tensor:
            y = self.layer(x)
            y[:, 0].zero_()
            return y

    program = program_of(Writes(), torch.randn(9, 8))
    graph, applied = quantised(program)
    assert (graph is program.model) == (not applied.changes)
    if not applied.changes:
        assert "in place" in applied.skipped[0].reason


def test_more_calibration_means_ranges_of_all_of_it() -> None:
    wide = draw(200, 5) * 4
    narrow = program_of(Tower(), draw(200))
    both = replace(narrow, calibration=((draw(200),), (wide,)))
    with torch.no_grad():
        right = Tower().double()(wide.double())
        assert off(quantised(both)[0](wide)[0], right) < 0.5 * off(quantised(narrow)[0](wide)[0], right)


def test_a_row_depends_on_no_other() -> None:
    graph, _ = quantised(program_of(Tower(), draw(200)))
    x = draw(300, 9)
    x[5], x[6] = 1e3, 1e30
    together = graph(x)[0]
    rng = torch.Generator().manual_seed(1)
    # What stays in float32 has its own rounding; every layer here is in integers.
    assert count(graph, INT8_LINEAR) == 4
    assert torch.equal(torch.cat([graph(row[None])[0] for row in x]), together)
    for _ in range(20):
        order = torch.randperm(300, generator=rng)
        parts = order.split(int(torch.randint(1, 200, (), generator=rng)))
        assert torch.equal(torch.cat([graph(x[part])[0] for part in parts]), together[order])


def test_alternatives_take_the_large_layers() -> None:
    technique = QuantizeLinears(least=0)
    changes = technique.apply(program_of(Tower(width=200), draw(100))).changes
    (other,) = technique.alternatives(changes).values()
    assert other == replace(technique, least=32768)
    large = [change.site for change in other.apply(program_of(Tower(width=200), draw(100))).changes]
    assert large == ["linear_1", "linear_2"]
    assert other.alternatives(changes) == {}
    assert technique.alternatives(changes[:1]) == {} and technique.alternatives(changes[1:3]) == {}
    assert technique.alternatives(()) == {}


def test_milder_settings_leave_the_layers_that_move_the_answer_most() -> None:
    program = program_of(Tower(depth=3), draw(200))
    technique = QuantizeLinears(least=0)
    milder = technique.milder(program, technique.apply(program).changes)
    moved = sensitivities(program)
    order = sorted(moved, key=lambda site: -moved[site])
    assert [setting.without for setting in milder] == [tuple(order[:k]) for k in (1, 2, 3)]  # type: ignore[attr-defined]
    assert technique.milder(program, ()) == ()
