"""Linear maps as modules: which are taken, that everything else of a model stays right, and what is never touched."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.errors import InputError, TechniqueError
from fastrec.ops.layers import Int8Linear
from fastrec.program import Program
from fastrec.techniques import Applied, QuantizeLinears
from fastrec.techniques.quantization.linear_modules import module_sensitivities
from tests.checks import assert_near, assert_unchanged, snapshot
from tests.zoo import ZOO, make

from .test_linears import Tower, draw


def program_of(model: nn.Module, *batch: Tensor, calibration: tuple[Any, ...] = ()) -> Program:
    return replace(Program.read(model.eval(), batch), calibration=calibration)


def quantised(program: Program, **settings: object) -> Applied:
    return QuantizeLinears(**{"least": 0, **settings}).apply(program)  # type: ignore[arg-type]


def reasons(applied: Applied) -> dict[str, str]:
    return {skip.site: skip.reason for skip in applied.skipped}


class Around(nn.Module):
    """One layer and whatever is done with it."""

    def __init__(self, use: Callable[[nn.Module, Tensor], Tensor], **layers: nn.Module) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 16)
        for name, layer in layers.items():
            setattr(self, name, layer)
        self._use = use

    def forward(self, x: Tensor) -> Tensor:
        return self._use(self, x)


def test_the_zoos_layers_are_taken_or_left_with_a_reason() -> None:
    entry = next(entry for entry in ZOO if entry.name == "held")
    model = make(entry)
    program = Program.read(model, entry.batch(64, torch.Generator().manual_seed(4)))
    before = snapshot(model)
    applied = quantised(program)
    assert_unchanged(model, before)
    assert [c.site for c in applied.changes] == ["first", "listed", "twin", "other", "out", "patched"]
    # Tied to one another: one weight's codes.
    assert {c.site: c.added_bytes for c in applied.changes}["other"] == 0
    found = reasons(applied)
    assert "Doubled" in found["doubled"] and "Parametrized" in found["normed"]
    assert found["hooked"] == "it has hooks" and "read by more than its own call" in found["read"]
    made: Any = applied.model
    # The same one under both names and in the list, and the table that a layer was tied to is still there.
    assert made.again is made.first is made.steps[1][0] and isinstance(made.first, Int8Linear)
    assert made.items.weight is model.items.weight and made.read.weight is model.read.weight
    assert made.twin.codes is made.other.codes
    batch = program.flat(entry.batch(200, torch.Generator().manual_seed(7)))
    assert_near(program.with_model(made).answers(batch), program.answers(batch), 0.05)


def test_the_float_weights_are_gone() -> None:
    model = Tower(width=256)
    applied = quantised(program_of(model, draw(200)))
    size = sum(tensor.nbytes for tensor in (*applied.model.parameters(), *applied.model.buffers()))
    assert size < 0.28 * sum(parameter.nbytes for parameter in model.parameters())
    x = draw(500, 3)
    with torch.no_grad():
        assert_near([applied.model(x)], [model(x)], 0.05)


def test_it_is_the_graphs_arithmetic_at_the_graphs_ranges() -> None:
    x = draw(300)
    applied = quantised(program_of(Tower(), x))
    assert [change.site for change in applied.changes] == ["layers.0", "layers.2", "layers.4", "layers.6"]
    assert all(float(c.detail.split("output ")[1].split(" off")[0]) < 0.02 for c in applied.changes)
    together = applied.model(draw(50, 9))
    assert torch.equal(torch.cat([applied.model(row[None]) for row in draw(50, 9)]), together)


def test_names_and_sizes_choose() -> None:
    program = program_of(Tower(), draw(100))
    assert [c.site for c in quantised(program, least=5000).changes] == ["layers.2", "layers.4"]
    assert [c.site for c in quantised(program, only=("layers.0",)).changes] == ["layers.0"]
    assert reasons(quantised(program, without=("liner",)))["liner"].startswith("to be left as it is")
    with pytest.raises(InputError, match=r"'liner'.* it has layers.0, layers.2"):
        quantised(program, only=("liner",))
    done = program.with_model(quantised(program, only=("layers.0",)).model)
    assert [c.site for c in quantised(done).changes] == ["layers.2", "layers.4", "layers.6"]


def test_calibration_is_all_of_the_batches() -> None:
    wide = draw(200, 5) * 4
    narrow = quantised(program_of(Tower(), draw(200))).model
    both = quantised(program_of(Tower(), draw(200), calibration=((draw(200),), (wide,)))).model
    with torch.no_grad():
        right = Tower()(wide)
        assert (both(wide) - right).norm() < 0.5 * (narrow(wide) - right).norm()


def test_a_layer_called_in_a_loop_has_a_range_of_all_its_calls() -> None:
    def looped(self: Any, x: Tensor) -> Tensor:
        for _ in range(40):
            x = torch.tanh(self.layer(x)) / 4 + x * 0.9
        return x

    torch.manual_seed(0)
    model = Around(looped)
    x = torch.randn(4000, 16) * 5
    applied = quantised(program_of(model, x))
    with torch.no_grad():
        assert_near([applied.model(x)], [model(x)], 0.1)


@pytest.mark.parametrize(
    ("use", "reason"),
    [
        (lambda self, x: self.layer(x) + F.linear(x, self.layer.weight), "its weight is read"),
        (lambda self, x: self.layer(x.to(self.layer.weight.dtype)), "its weight is read"),
        (lambda self, x: self.layer(x) + self.layer.bias, "its bias is read"),
        (lambda self, x: x + 1, "no row of the calibration reaches it"),
        (lambda self, x: self.layer(x * 0), "zero throughout"),
        (
            lambda self, x: torch.func.functional_call(self.layer, {"weight": x[:1].t() @ x[:1]}, (x,)),
            "another at each call",
        ),
    ],
)
def test_what_is_left_says_why(use: Callable[[Any, Tensor], Tensor], reason: str) -> None:
    model = Around(use)
    program = program_of(model, torch.randn(50, 16))
    applied = quantised(program)
    assert applied.model is program.model and reason in reasons(applied)["layer"]


def test_a_layer_that_computes_in_another_precision_is_left() -> None:
    def mixed(self: Any, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            y: Tensor = self.layer(x)
        return y.float()

    assert "bfloat16" in reasons(quantised(program_of(Around(mixed), torch.randn(50, 16))))["layer"]
    half = Around(lambda self, x: self.layer(x.double()).float())
    half.layer.double()
    assert "float64" in reasons(quantised(program_of(half, torch.randn(50, 16))))["layer"]


def test_a_patched_forward_is_left() -> None:
    model = Around(lambda self, x: self.layer(x))
    model.layer.forward = lambda x: x * 2  # type: ignore[method-assign]  # as people do
    assert "forward" in reasons(quantised(program_of(model, torch.randn(50, 16))))["layer"]


def test_attention_that_reads_its_maps_is_left() -> None:
    block = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True)
    model = nn.TransformerEncoder(block, 1, enable_nested_tensor=False)
    program = program_of(model, torch.randn(20, 5, 16))
    applied = quantised(program)
    x = torch.randn(7, 5, 16)
    with torch.no_grad():
        assert_near([applied.model(x)], [model(x)], 0.1)
    assert set(reasons(applied)) | {c.site for c in applied.changes} == {
        "layers.0.self_attn.out_proj",
        "layers.0.linear1",
        "layers.0.linear2",
    }


def test_a_weight_read_where_the_calibration_never_was_is_what_the_codes_stand_for() -> None:
    def rarely(self: Any, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight) if len(x) == 3 else self.layer(x)

    model = Around(rarely)
    applied = quantised(replace(Program.read(model.eval(), (torch.randn(50, 16),))))
    x = torch.randn(3, 16)
    with torch.no_grad():
        assert [c.site for c in applied.changes] == ["layer"]
        assert_near([applied.model(x)], [model(x)], 0.05)


def test_a_model_that_writes_to_its_tensors_is_left() -> None:
    class Counting(nn.Module):
        calls: Tensor

        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(16, 16)
            self.register_buffer("calls", torch.zeros(()))

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            y: Tensor = self.layer(x)
            return y

    program = program_of(Counting(), torch.randn(50, 16))
    applied = quantised(program)
    assert applied.model is program.model and "writes to its own tensor 'calls'" in reasons(applied)[""]
    assert float(program.model.calls) == 0  # type: ignore[arg-type]  # a buffer


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_calibration_that_is_not_finite_is_named(bad: float) -> None:
    broken = draw(50)
    broken[3, 5] = bad
    program = program_of(Tower(), draw(50), calibration=((draw(50),), (broken,)))
    with pytest.raises(TechniqueError, match=r"not finite at the input of layers.0 .*without=") as caught:
        quantised(program)
    assert caught.value.site == "layers.0"


def test_milder_settings_leave_the_layers_that_move_the_answer_most() -> None:
    program = program_of(Tower(), draw(200))
    technique = QuantizeLinears(least=0)
    changes = technique.apply(program).changes
    moved = module_sensitivities(program, {change.site for change in changes})
    order = sorted(moved, key=lambda site: -moved[site])
    milder = technique.milder(program, changes)
    assert [setting.without for setting in milder] == [tuple(order[:k]) for k in (1, 2, 3)]  # type: ignore[attr-defined]
    assert all(0 < share < 0.1 for share in moved.values())
    assert technique.sensitivities(program) == moved
