"""Linear maps in bfloat16: what is taken and what is left, how far off it is, and that no number is rounded twice."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from fastrec import Budget, compress
from fastrec.backends import Eager
from fastrec.cost import per_candidate
from fastrec.errors import InputError, TechniqueError
from fastrec.graph import copy_graph, value
from fastrec.measure import evaluator
from fastrec.plain import from_plain, to_plain
from fastrec.program import Program
from fastrec.techniques import Applied, CastLinears, Fuse, QuantizeLinears, Skip
from tests.checks import assert_unchanged, snapshot
from tests.techniques.quantization.test_linears import Tower, draw, off, program_of

aten = torch.ops.aten
BF16 = torch.bfloat16


@pytest.fixture(autouse=True)
def able(monkeypatch: pytest.MonkeyPatch) -> None:
    """Products in bfloat16 are right on any processor, only not quick."""
    monkeypatch.setattr(CastLinears, "missing", lambda self: "")


def cast(program: Program, **settings: Any) -> tuple[fx.GraphModule, Applied]:
    applied = CastLinears(**{"least": 0, **settings}).apply(program)
    assert isinstance(applied.model, fx.GraphModule)
    return applied.model, applied


def in_bfloat16(graph: fx.GraphModule) -> list[str]:
    """The maps computed in bfloat16, by their names."""
    return [
        node.name
        for node in graph.graph.nodes
        if node.target is aten.linear.default and value(node).dtype is BF16
    ]


def casts(graph: fx.GraphModule, dtype: torch.dtype) -> int:
    return sum(node.target is aten.to.dtype and node.args[1] is dtype for node in graph.graph.nodes)


@pytest.mark.parametrize("seed", range(5))
def test_a_tower_is_within_a_hundredth_and_its_answer_stays_in_float32(seed: int) -> None:
    model = Tower(seed=seed)
    graph, applied = cast(program_of(model, draw(500, seed)))
    x = draw(2000, 100 + seed)
    with torch.no_grad():
        got, right = graph(x)[0], copy.deepcopy(model).double()(x.double())
    assert off(got, right) < 0.01 and got.dtype is torch.float32
    assert len(got.unique()) > 5000
    assert in_bfloat16(graph) == ["linear", "linear_1", "linear_2"]
    assert [change.site for change in applied.changes] == in_bfloat16(graph)
    for change in applied.changes:
        assert 0.0005 < float(change.detail.split("output ")[1].split(" off")[0]) < 0.005
    (skip,) = applied.skipped
    assert skip.site == "linear_3" and "answer" in skip.reason
    assert in_bfloat16(cast(program_of(model, draw(500, seed)), only=("linear_3",))[0]) == ["linear_3"]


def test_between_maps_and_relu_no_number_is_rounded_twice() -> None:
    graph, _ = cast(program_of(Tower(), draw(100)))
    assert (casts(graph, BF16), casts(graph, torch.float32)) == (1, 1)
    # As if each map gave its sums in float32, and the next rounded what ReLU made of them.
    model, x = Tower(), draw(300, 3)
    held: Tensor = x
    with torch.no_grad():
        for layer in model.layers[:-1]:
            if isinstance(layer, nn.Linear):
                weight, bias = layer.weight.bfloat16().double(), layer.bias.bfloat16().double()
                held = F.linear(held.bfloat16().double(), weight, bias)
            else:
                held = held.relu()
        right = model.layers[-1].double()(held.bfloat16().double())
        assert float((graph(x)[0] - right).abs().max()) < 1e-3 * float(right.std())


class Blocks(nn.Module):
    """A residual block of three maps of one input (N, L, d), whose moves and heads are those of attention."""

    def __init__(self) -> None:
        super().__init__()
        self.parts = nn.ModuleList(nn.Linear(32, 32) for _ in range(3))
        self.out, self.head = nn.Linear(32, 32), nn.Linear(32, 1)

    def forward(self, x: Tensor) -> Tensor:
        query, key, held = (part(x).unflatten(-1, (4, 8)).transpose(1, 2) for part in self.parts)
        weights = (query @ key.transpose(-1, -2)).softmax(-1)
        x = x + self.out((weights @ held).transpose(1, 2).flatten(2)).relu()
        return self.head(x.mean(1)).sigmoid()


def test_one_cast_for_all_that_read_a_value_and_the_rest_in_float32() -> None:
    torch.manual_seed(0)
    model, x = Blocks(), torch.randn(40, 6, 32)
    graph, applied = cast(program_of(model, x))
    assert len(applied.changes) == 4
    # One for three maps of x and one for what attention gives; each map's result is read in float32.
    assert (casts(graph, BF16), casts(graph, torch.float32)) == (2, 4)
    assert [skip.site for skip in applied.skipped] == ["linear_4"]
    with torch.no_grad():
        assert off(graph(x)[0], copy.deepcopy(model).double()(x.double())) < 0.01


class Tied(nn.Module):
    """One weight read twice, moves between its maps, and a bias that is computed."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.user = nn.Linear(24, 24), nn.Linear(24, 24)

    def forward(self, x: Tensor) -> Tensor:
        y = self.layer(x).reshape(-1, 3, 8).transpose(1, 2).reshape(-1, 24)
        return torch.tanh(self.layer(y) * self.user(x)).sum(1)


def test_moves_stay_rounded_and_a_shared_weight_is_rounded_once() -> None:
    torch.manual_seed(0)
    model, x = Tied(), torch.randn(64, 24)
    graph, applied = cast(program_of(model, x))
    assert (casts(graph, BF16), casts(graph, torch.float32)) == (1, 2)
    assert sorted(change.added_bytes for change in applied.changes) == [0, 1200, 1200]
    with torch.no_grad():
        assert off(graph(x)[0], copy.deepcopy(model).double()(x.double())) < 0.01


def test_the_program_is_left_and_the_weights_take_half() -> None:
    model = Tower(width=256)
    program = program_of(model, draw(100))
    before, state = snapshot(program.model), torch.get_rng_state()
    graph, applied = cast(program)
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(program.model, before)
    size = sum(tensor.nbytes for tensor in (*graph.parameters(), *graph.buffers()))
    assert size < 0.51 * sum(parameter.nbytes for parameter in model.parameters())
    assert sum(change.added_bytes for change in applied.changes) < size
    assert per_candidate(program.with_model(graph)) == per_candidate(program)


def test_what_is_small_or_named_stays() -> None:
    program = program_of(Tower(), draw(100))
    _, applied = cast(program, least=5000)
    assert [change.site for change in applied.changes] == ["linear_1", "linear_2"]
    assert {skip.site: skip.reason for skip in applied.skipped} == {
        "linear": "3,840 weights: under 5,000",
        "linear_3": "288 weights: under 5,000",
    }
    only, applied = cast(program, only=("linear_2", "linear"), without=("linear",))
    assert [change.site for change in applied.changes] == ["linear_2"] and not applied.skipped
    assert CastLinears(least=0, only=("linear_2",)).apply(program.with_model(only)).changes == ()


def test_what_is_in_integers_stays_there_and_the_other_way_round() -> None:
    program = program_of(Tower(), draw(100))
    some = QuantizeLinears(least=0, only=("linear_1",)).apply(program)
    graph, applied = cast(program.with_model(some.model))
    assert [change.site for change in applied.changes] == ["linear", "linear_2"]
    assert QuantizeLinears(least=0, only=("linear", "linear_3")).apply(program.with_model(graph)).changes[
        0
    ].site == ("linear_3")


def test_names_of_no_layer_and_settings_of_another_kind() -> None:
    program = program_of(Tower(), draw(100))
    with pytest.raises(InputError, match=r"CastLinears\(only=.* has 'liner'.* linear, linear_1"):
        CastLinears(only=("liner",)).apply(program)
    _, applied = cast(program, without=("liner",))
    assert [skip.site for skip in applied.skipped] == ["liner", "linear_3"]
    for settings in ({"only": ["linear"]}, {"without": (3,)}, {"least": -1}, {"least": True}):
        with pytest.raises(InputError, match=f"CastLinears\\({next(iter(settings))}=...\\)"):
            CastLinears(**settings)  # type: ignore[arg-type]
    given = CastLinears(only=("linear", "linear_2"), without=("linear",), least=7)
    assert from_plain(CastLinears, json.loads(json.dumps(to_plain(given, "s"))), "s") == given


def test_a_model_that_was_not_captured() -> None:
    program = Program.read(Tower().eval(), (draw(4),))
    with pytest.raises(TechniqueError, match="capture the program first"):
        CastLinears().apply(program)
    with pytest.raises(TechniqueError, match="capture the program first"):
        CastLinears().milder(program, ())


def test_a_processor_without_bfloat16_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"avx2": True, "avx512_bf16": False})
    program = program_of(Tower(), draw(100))
    applied = CastLinears(least=0).apply(program)
    assert applied.model is program.model and applied.changes == ()
    assert [skip.reason for skip in applied.skipped] == [
        "this processor does not multiply bfloat16 faster than float32"
    ]


def test_values_that_are_not_finite_are_left_out_of_what_is_reported() -> None:
    broken = draw(50)
    broken[3, 5], broken[4, 5] = torch.nan, torch.inf
    clean = program_of(Tower(), draw(50))
    _, applied = cast(replace(clean, calibration=((draw(50),), (broken,))))
    assert len(applied.changes) == 3
    assert all("nan" not in change.detail for change in applied.changes)
    _, applied = cast(replace(clean, calibration=((broken[3:5],),)))
    assert applied.skipped[0] == Skip(
        "cast linears", "linear", "no row of numbers in the calibration reaches it"
    )
    graph, _ = cast(clean)
    with torch.no_grad():
        got, right = graph(broken)[0], clean.model(broken)[0]
    assert torch.equal(got.isfinite().all(1), right.isfinite().all(1))


@pytest.mark.parametrize("weight", [torch.finfo(torch.float32).max, torch.nan])
def test_weights_that_bfloat16_does_not_hold_stay(weight: float) -> None:
    model = Tower()
    model.layers[4].weight.data[0, 0] = weight
    _, applied = cast(program_of(model, draw(100)))
    reasons = {skip.site: skip.reason for skip in applied.skipped}
    assert reasons["linear_2"] == "its weights are not all finite in bfloat16"
    assert [change.site for change in applied.changes] == ["linear", "linear_1"]


def test_a_layer_that_it_would_spoil_stays() -> None:
    model = nn.Sequential(nn.Linear(20, 8, bias=False), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        model[0].weight[:, 1] = model[0].weight[:, 0]
    # Two columns that cancel, thousands of times the others.
    x = torch.randn(200, 20)
    x[:, 0] = 4000 * (1 + torch.rand(200))
    x[:, 1] = -x[:, 0] * (1 + 2**-12)
    graph, applied = cast(program_of(model, x))
    assert applied.changes == () and "bfloat16 would put its output" in applied.skipped[0].reason
    assert torch.isfinite(graph(x)[0]).all()


def test_a_graph_that_writes_in_place_is_left() -> None:
    program = program_of(Tower(), draw(9))
    written = copy_graph(program.model)  # type: ignore[arg-type]  # a captured program
    next(node for node in written.graph.nodes if node.target is aten.relu.default).target = aten.relu_.default
    written.recompile()
    applied = CastLinears(least=0).apply(program.with_model(written))
    assert applied.model is written and "in place" in applied.skipped[0].reason


def test_alternatives_take_the_large_layers() -> None:
    technique, program = CastLinears(least=0), program_of(Tower(width=300), draw(100))
    changes = technique.apply(program).changes
    (other,) = technique.alternatives(changes).values()
    assert other == replace(technique, least=65536)
    assert [change.site for change in other.apply(program).changes] == ["linear_1", "linear_2"]
    assert other.alternatives(changes) == {} and technique.alternatives(()) == {}
    assert technique.alternatives(changes[:1]) == {} and technique.alternatives(changes[1:]) == {}


def test_milder_settings_leave_the_layers_that_move_the_answer_most() -> None:
    program = program_of(Tower(depth=4), draw(200))
    technique = CastLinears(least=0)
    milder = technique.milder(program, technique.apply(program).changes)
    moved = technique.sensitivities(program)
    assert all(0 < share < 0.01 for share in moved.values()) and len(moved) == 5
    order = sorted(set(moved) - {"linear_4"}, key=lambda site: -moved[site])
    assert [setting.without for setting in milder] == [tuple(order[:k]) for k in (1, 2, 3)]  # type: ignore[attr-defined]
    assert technique.milder(program, ()) == ()


def test_compressed_it_is_checked_certified_and_needs_no_calibration() -> None:
    model, held_out = Tower(width=256).eval(), [draw(500, seed) for seed in range(4)]
    with torch.no_grad():
        score = torch.cat([model(x) for x in held_out])[:, 0]
        labels = (score > score.median()).float()
    fast = compress(
        _First(model),
        held_out[0][:64],
        recipe=(Fuse(), CastLinears(least=0)),
        evaluate=evaluator(held_out, labels, ["auc"]),
        budget=Budget(max_loss={"auc": 0.01}),
        backends=[Eager()],
        batch_sizes=(1, 64),
        seconds=10,
        progress=False,
    )
    report = fast.report
    assert [step.technique for step in report.steps] == ["fuse", "cast_linears"]
    assert len(report.steps[1].changes) == 3 and all(one.holds for one in report.accuracy)
    assert not any("fitted" in note for note in report.notes)
    reasons = {trial.session: trial.reason for trial in report.trials}
    assert {"eager", "eager, exact"} <= set(reasons)
    assert reasons["eager"] in ("", "far behind the fastest")  # checked, and as fast as the machine has it
    with pytest.raises(InputError, match="nan"):
        fast(torch.full((3, 40), torch.nan))


class _First(nn.Module):
    """The first of a model's answers."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x)[:, 0]
