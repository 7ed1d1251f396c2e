"""Tables as sums of rows of small ones: what they hold, what it loses, and the distillation of it."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec.errors import InputError
from fastrec.measure import tensor_bytes
from fastrec.program import Program
from fastrec.techniques import ComposeTables, QuantizeLinears
from tests.checks import assert_unchanged, snapshot

from .coded import ROWS, Rows, captured, graph_of, held, traffic, trained

NAME = "model.table.weight"


@pytest.mark.parametrize("hot", [0.0, 0.1])
def test_a_row_is_the_sum_that_its_codes_say(hot: float) -> None:
    table, seen = trained(16), traffic(3)
    program = captured(Rows(table), seen)
    graph, made = graph_of(program, ComposeTables(1 / 4, hot=hot, least_bytes=0))
    (change,) = made.changes
    whole = held(graph, NAME, sums=True)
    ids = torch.arange(ROWS).view(-1, 3)
    found = graph(ids)[0].view(ROWS, 16)
    exact = (found == table).all(1)
    # Row 0, of zeros, is looked up most.
    assert int(exact.sum()) == (30 if hot else 1) and torch.equal(found[0], torch.zeros(16))
    torch.testing.assert_close(found[~exact], whole[~exact], rtol=1e-6, atol=1e-6)
    order = torch.randperm(ROWS, generator=torch.Generator().manual_seed(1)).view(-1, 3)
    assert torch.equal(graph(order)[0], found[order]) and graph(ids[:0])[0].shape == (0, 3, 16)
    torch.testing.assert_close(graph(ids[7:8])[0], found[ids[7:8]], rtol=1e-6, atol=1e-6)
    room = table.nbytes // 4 + (4 * ROWS + 4 * 16 * 31) * (hot > 0)
    assert 0.8 * room < change.added_bytes <= room
    assert change.added_bytes <= tensor_bytes(graph) <= change.added_bytes + 200
    counts = torch.bincount(torch.cat([ids.flatten() for (ids,) in seen]), minlength=ROWS).double()
    weights = (counts + counts.mean())[:, None]
    off = ((found - table).square() * weights).sum() / (table.square() * weights).sum()
    assert f"rows {float(off.sqrt()):.1%} off" in change.detail and off < 0.6**2


def test_a_table_that_is_such_a_sum_is_found() -> None:
    rng = torch.Generator().manual_seed(0)
    tops, steps = torch.randn(30, 8, generator=rng), torch.randn(10, 8, generator=rng)
    tops[2], steps[4] = 0, 0
    ids = torch.arange(ROWS)
    table = tops[ids // 10] + steps[ids % 10]
    program = captured(Rows(table), traffic(2))
    graph, made = graph_of(program, ComposeTables(0.14, learned=False, least_bytes=0))
    assert "sums of 2 of 40 rows" in made.changes[0].detail and made.changes[0].added_bytes == 4 * 8 * 40
    torch.testing.assert_close(graph(ids.view(-1, 2))[0], table[ids.view(-1, 2)], rtol=1e-5, atol=1e-5)
    # Row 24, the only one of zeros, is exactly that.
    assert torch.equal(graph(torch.tensor([[24, 24]]))[0], torch.zeros(1, 2, 8))
    # Learned codes find it as well, as it has codes that say so.
    graph, _ = graph_of(program, ComposeTables(0.5, least_bytes=0))
    assert float((graph(ids.view(-1, 2))[0].view(ROWS, 8) - table).norm()) < 0.3 * float(table.norm())


def test_arithmetic_codes_are_the_weighted_least_squares() -> None:
    rows, seen = 47, [(torch.arange(10).repeat(3).view(-1, 1),)]
    table = torch.randn(rows, 3, generator=torch.Generator().manual_seed(0)) + 2
    program = captured(Rows(table), seen)
    graph, made = graph_of(program, ComposeTables(0.45, learned=False, least_bytes=0))
    places = re.search(r"of (\d+) rows", made.changes[0].detail)
    assert places is not None
    divisor = next(r for r in range(1, rows) if -(-rows // r) + r == int(places[1]))
    counts = torch.bincount(seen[0][0].flatten(), minlength=rows).double()
    root = (counts + counts.mean()).sqrt()[:, None].numpy()
    ids, quotients = np.arange(rows), -(-rows // divisor)
    design = np.zeros((rows, quotients + divisor))
    design[ids, ids // divisor] = design[ids, quotients + ids % divisor] = 1
    best = design @ np.linalg.lstsq(root * design, root * table.double().numpy(), rcond=None)[0]
    np.testing.assert_allclose(graph(torch.arange(rows).view(-1, 1))[0][:, 0], best, atol=1e-4)


def test_what_stays_has_its_reason() -> None:
    program = captured(Rows(torch.randn(ROWS, 16, generator=torch.Generator().manual_seed(0))), traffic(1))
    for settings, reason in (
        ({"ratio": 1 / 64}, r"300 bytes leave no room for codes of its 300 rows: learned=False"),
        ({"ratio": 1 / 64, "learned": False}, "300 bytes are fewer than quotients and remainders of its 300 rows take"),
        ({"ratio": 1 / 8, "learned": False}, "a column would be off by (8|9)"),
    ):  # fmt: skip
        made = ComposeTables(least_bytes=0, **settings).apply(program)
        assert made.model is program.model and re.search(reason, made.skipped[0].reason), made.skipped


@pytest.mark.parametrize(
    "settings",
    [{"ratio": 0.0}, {"ratio": 1}, {"ratio": True}, {"ratio": float("nan")}, {"learned": 1}, {"hot": 1.5},
     {"hot": 0.1, "learned": False}],
)  # fmt: skip
def test_bad_settings_are_named(settings: Any) -> None:
    with pytest.raises(InputError, match=next(iter(settings))):
        ComposeTables(**settings)


def test_milder_settings_have_hot_rows_and_then_more_bytes() -> None:
    program = captured(Rows(trained(16)), traffic(1))

    def milder(technique: ComposeTables) -> list[tuple[float, float]]:
        return [
            (step.ratio, step.hot)
            for step in technique.milder(program, ())
            if isinstance(step, ComposeTables)
        ]

    assert milder(ComposeTables(1 / 16)) == [(1 / 16, 0.05), (1 / 8, 0), (1 / 4, 0)]
    assert milder(ComposeTables(1 / 4, learned=False)) == [(1 / 2, 0)]


class Scorer(nn.Module):
    """A table behind a tower that sees two columns of the first id, and all of the second; `steps` rounds what it answers."""

    def __init__(self, *, steps: bool = False) -> None:
        super().__init__()
        self.table = nn.Embedding.from_pretrained(trained(16), freeze=False)
        self.tower = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 1))
        with torch.no_grad():
            self.tower[0].weight[:, 2:16] = 0
        self.steps = steps

    def forward(self, ids: Tensor) -> Tensor:
        out: Tensor = self.tower(self.table(ids).flatten(1))
        return (out > 0).float() if self.steps else out


def scorer(**settings: Any) -> Program:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return captured(Scorer(**settings), traffic(2, batches=12, size=100))


def test_distilled_answers_are_nearer() -> None:
    program = scorer()
    plain, distilled = ComposeTables(1 / 8, least_bytes=0), ComposeTables(1 / 8, distil=60, least_bytes=0)
    (first, _), state, before = graph_of(program, plain), torch.get_rng_state(), snapshot(program.model)
    second, made = graph_of(program, distilled)
    assert torch.equal(torch.get_rng_state(), state)
    assert_unchanged(program.model, before)
    assert all(parameter.grad is None for parameter in program.model.parameters())
    # The same codes, other rows, the same result each time.
    codes = {name for name, tensor in first.named_buffers() if torch.equal(tensor, second.get_buffer(name))}
    assert codes == {name for name, _ in first.named_buffers()} - {"model_table_weight_codebook"}
    again, _ = graph_of(program, distilled)
    assert torch.equal(
        again.get_buffer("model_table_weight_codebook"), second.get_buffer("model_table_weight_codebook")
    )
    assert not any(tensor.requires_grad for tensor in second.buffers())

    def off(graph: nn.Module, batches: Any) -> float:
        answers = [torch.cat([each(ids)[0] for (ids,) in batches]) for each in (graph, program.model)]
        every = torch.cat([program.model(*batch)[0] for batch in program.calibration])
        return float(((answers[0] - answers[1]).square().mean() / every.var()).detach().sqrt())

    judges = program.calibration[3::4]
    text = f"answers {off(first, judges):.2%} of their spread off, distilled {off(second, judges):.2%}"
    assert text in made.changes[0].detail
    fresh = traffic(2, batches=4, size=500, seed=9)
    assert off(second, fresh) < 0.95 * off(first, fresh)
    # Rows of zeros stay so.
    padding = held(second, NAME, sums=True)[0]
    assert torch.equal(padding, torch.zeros(16))


def test_what_cannot_be_distilled_says_why() -> None:
    technique = ComposeTables(1 / 8, distil=4, least_bytes=0)
    made = graph_of(scorer(steps=True), technique)[1]
    assert len(made.changes) == 1 and "distilled" not in made.changes[0].detail
    (skip,) = made.skipped
    assert skip.site == "distillation" and "no gradient" in skip.reason
    program = scorer()
    coarse = program.with_model(QuantizeLinears(least=0).apply(program).model)
    assert "no gradient" in graph_of(coarse, technique)[1].skipped[-1].reason
    none = replace(program, calibration=((torch.zeros(0, 2, dtype=torch.long),),))
    assert "no answers" in graph_of(none, technique)[1].skipped[-1].reason
