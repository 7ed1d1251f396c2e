"""What calibration sees, and what it says of each layer."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.errors import TechniqueError
from fastrec.program import Program
from fastrec.techniques import QuantizeLinears
from fastrec.techniques.quantization.calibration import calibrate, inputs_of, sensitivities
from fastrec.techniques.quantization.layers import layers_of, named

from .test_linears import Tower, draw, program_of


def test_rows_of_every_batch_are_looked_at() -> None:
    program = program_of(Tower(), draw(50))
    assert isinstance(program.model, fx.GraphModule)
    source = layers_of(program.model)[0].args[0]
    assert isinstance(source, fx.Node)
    # One row among the last of many large batches.
    batches = [[draw(5000, seed)] for seed in range(4)]
    batches[3][0][4999] = 30.0
    rows = inputs_of(program.model, [source], batches)[source]
    assert len(rows) == 2048 and float(rows.max()) == 30.0


def test_a_batch_without_rows_gives_no_range() -> None:
    program = program_of(Tower(), draw(50))
    assert isinstance(program.model, fx.GraphModule)
    layers, skips = calibrate(program.model, layers_of(program.model), [[draw(0)]])
    assert not layers and {skip.reason for skip in skips} == {"no row of the calibration reaches it"}


def test_one_row_is_enough() -> None:
    program = program_of(Tower(), draw(50))
    assert len(QuantizeLinears(least=0).apply(replace(program, calibration=((draw(1),),))).changes) == 4


def test_sensitivities_are_those_of_each_layer_alone() -> None:
    program = program_of(Tower(), draw(300))
    found = sensitivities(program)
    assert list(found) == ["linear", "linear_1", "linear_2", "linear_3"]
    right = program.model(*program.batch)[0].detach()
    for site, moved in found.items():
        alone = QuantizeLinears(least=0, only=(site,)).apply(program).model(*program.batch)[0].detach()
        assert moved == pytest.approx(float((alone - right).norm() / (right - right.mean()).norm()), rel=1e-4)
    assert sensitivities(program, ["linear_2"]) == {"linear_2": found["linear_2"]}


class _Branches(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.much, self.little = nn.Linear(40, 8), nn.Linear(40, 8)

    def forward(self, x: Tensor) -> Tensor:
        return torch.tanh(self.little(x)) * 1e-3 + torch.tanh(self.much(x))


def test_a_layer_that_matters_more_is_more_sensitive() -> None:
    torch.manual_seed(0)
    little, much = sensitivities(program_of(_Branches(), draw(300))).values()
    assert 100 * little < much < 0.05


def test_sensitivities_want_a_captured_graph() -> None:
    with pytest.raises(TechniqueError, match="capture the program first"):
        sensitivities(Program.read(Tower().eval(), (draw(4),)))


def test_the_graph_given_is_not_renamed() -> None:
    program = program_of(Tower(), draw(4))
    assert isinstance(program.model, fx.GraphModule)
    code = program.model.code
    assert named(program.model) is not program.model and program.model.code == code
