"""Tables in so many bytes: what matters least becomes coarsest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec.capture import capture
from fastrec.cost import table_bytes
from fastrec.errors import InputError
from fastrec.program import Program
from fastrec.techniques import FitTables, Fuse

ROWS, WIDTH = 200, 16


class Two(nn.Module):
    """Two tables of one size; of the second little reaches the answer."""

    def __init__(self) -> None:
        super().__init__()
        self.loud, self.quiet = nn.Embedding(ROWS, WIDTH), nn.Embedding(ROWS, WIDTH)
        self.top = nn.Linear(2 * WIDTH, 1)
        self.top.weight.data[:, WIDTH:] *= 1e-4

    def forward(self, ids: Tensor) -> Tensor:
        return self.top(torch.cat([self.loud(ids[:, 0]), self.quiet(ids[:, 1])], 1))


def captured() -> Program:
    torch.manual_seed(0)
    batches = tuple((torch.randint(ROWS, (64, 2)),) for _ in range(3))
    return replace(capture(Program.read(Two().eval(), batches[0][0])), calibration=batches)


def fitted(program: Program, limit: int) -> tuple[fx.GraphModule, FitTables]:
    technique = FitTables(limit)
    model = technique.apply(program).model
    assert isinstance(model, fx.GraphModule)
    return model, technique


def test_what_matters_least_becomes_coarsest() -> None:
    program = captured()
    assert isinstance(program.model, fx.GraphModule)
    full = table_bytes(program.model)
    assert full == 2 * ROWS * WIDTH * 4
    ids = torch.randint(ROWS, (64, 2))
    right = program.model(ids)[0].detach()
    off, sites = [], []
    for share in (0.9, 0.7, 0.4, 0.2):
        graph, technique = fitted(program, int(share * full))
        assert table_bytes(graph) <= share * full
        sites.append({change.site for change in technique.apply(program).changes})
        off.append(float((graph(ids)[0].detach() - right).abs().max()))
    # While the quiet table alone saves enough, the loud one stays.
    quiet, both = {"model.quiet.weight"}, {"model.quiet.weight", "model.loud.weight"}
    assert sites == [quiet, quiet, both, both]
    assert off == sorted(off) and off[1] < 1e-3 * float(right.std()) < off[3]


def test_a_limit_that_nothing_reaches_gives_the_smallest_and_says_so() -> None:
    program = captured()
    applied = FitTables(10).apply(program)
    assert isinstance(applied.model, fx.GraphModule)
    assert table_bytes(applied.model) < 0.25 * 2 * ROWS * WIDTH * 4
    assert any("no form is small enough" in skip.reason for skip in applied.skipped)


def test_what_is_small_enough_stays_as_it_is() -> None:
    program = captured()
    applied = FitTables(1 << 20).apply(program)
    assert applied.model is program.model and not applied.changes
    assert [skip.reason for skip in applied.skipped] == [f"the tables take {2 * ROWS * WIDTH * 4:,} bytes"]
    # Milder settings go as far as the tables do.
    limits = [
        technique.bytes
        for technique in FitTables(10_000).milder(program, ())
        if isinstance(technique, FitTables)
    ]
    assert limits == [12_500, 16_000, 20_000]


def test_fused_tables_fit_as_well() -> None:
    program = captured()
    program = program.with_model(Fuse().apply(program).model)
    graph, _ = fitted(program, 8_000)
    assert table_bytes(graph) <= 8_000


@pytest.mark.parametrize("wrong", [-1, 1.5, True, None])
def test_wrong_settings_are_named(wrong: object) -> None:
    with pytest.raises(InputError, match=r"FitTables\(bytes=...\) takes a whole number"):
        FitTables(bytes=wrong)  # type: ignore[arg-type]
