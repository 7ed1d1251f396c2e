"""Units that nothing can wake go exactly, and ranges that were declared are held."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager
from fastrec.capture import capture
from fastrec.errors import InputError
from fastrec.program import Program
from fastrec.techniques import Applied, Fuse, PruneDead, QuantizeLinears
from tests.checks import assert_as_good, double, flat

IN_RANGE = PruneDead(ranges={"dense": (0.0, 1.0)})


class Tower(nn.Module):
    """ids (N,), dense (N, 4) -> (N, 1) by way of 64 and 48 units, of which some are dead."""

    def __init__(self, asleep: int = 20, unread: int = 10) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(100, 8)
        self.first, self.second = nn.Linear(12, 64), nn.Linear(64, 48)
        self.norm, self.last = nn.BatchNorm1d(48), nn.Linear(48, 1)
        assert self.norm.running_mean is not None
        with torch.no_grad():
            self.norm.running_mean.normal_()
            self.first.bias[:asleep] = -30.0
            self.last.weight[0, :unread] = 0.0

    def forward(self, ids: Tensor, dense: Tensor) -> Tensor:
        x = torch.relu(self.first(torch.cat([self.table(ids), dense], 1)))
        return self.last(torch.relu(self.norm(self.second(x))))


def batch(rows: int = 9, high: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(rows)
    return torch.randint(0, 100, (rows,), generator=generator), high * torch.rand(
        rows, 4, generator=generator
    )


def captured(model: nn.Module, given: Any) -> Program:
    return capture(Program.read(model.eval(), given))


def said(applied: Applied) -> list[str]:
    """Why the whole model stays."""
    return [skip.reason for skip in applied.skipped if not skip.site]


def test_units_that_no_row_and_no_number_in_range_wakes_go_and_the_answer_stays() -> None:
    model = Tower(unread=16).eval()
    applied = IN_RANGE.apply(captured(model, batch()))
    first, second = applied.changes
    assert first.detail.startswith("64 -> 48 units: 16 that are one number")
    assert second.detail.startswith(
        "48 -> 32 units: 0 that are one number whatever is asked, 16 that nobody reads"
    )
    for rows in (1, 2, 33):
        with torch.no_grad():
            got = list(applied.model(*batch(rows)))
            assert_as_good(got, flat(model(*batch(rows))), double(model, "forward", batch(rows)))


def test_without_a_declared_range_numbers_may_be_any() -> None:
    applied = PruneDead().apply(captured(Tower(unread=0), batch()))
    assert applied.changes == ()
    assert said(applied) == ["no unit is dead within what is known of its inputs"]


def test_where_nothing_is_dead_it_says_so() -> None:
    awake = captured(Tower(asleep=0, unread=0), batch())
    assert said(IN_RANGE.apply(awake)) == ["no unit is dead"]
    answers = captured(nn.Linear(4, 8), torch.randn(3, 4))
    assert said(PruneDead().apply(answers)) == [
        "none of its hidden units can go: PruneNeurons says why of each"
    ]
    rows = captured(nn.Embedding(9, 4), torch.arange(3))
    assert said(PruneDead().apply(rows)) == ["no hidden units of linear maps were found"]
    integers = awake.with_model(QuantizeLinears(least=0).apply(awake).model)
    assert said(PruneDead().apply(integers)) == ["its linear maps are in 8 bits already: put PruneDead first"]


def test_what_a_unit_always_is_goes_into_the_bias_of_its_readers() -> None:
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 32), nn.Sigmoid(), nn.Linear(32, 1)).eval()
    with torch.no_grad():
        model[0].weight[:16] = 0.0  # sigmoid(bias), whatever x is
    x = torch.randn(5, 4)
    applied = PruneDead().apply(captured(model, x))
    # What float32 makes of it is not known to the last bit: it is no number that a bias could take in.
    assert applied.changes == ()
    held = nn.Sequential(nn.Linear(4, 32), nn.ReLU6(), nn.Linear(32, 1)).eval()
    with torch.no_grad():
        held[0].weight[:16] = 0.0
        held[0].bias[:8], held[0].bias[8:16] = 9.0, -1.0  # 6 and 0
    applied = PruneDead().apply(captured(held, x))
    (change,) = applied.changes
    assert change.detail.startswith("32 -> 16 units: 16")
    assert torch.allclose(applied.model(x)[0], held(x), atol=1e-5)


def test_too_few_for_a_narrower_kernel_stay_with_their_reason() -> None:
    applied = PruneDead(ranges={"dense": (0.0, 1.0)}).apply(captured(Tower(asleep=10, unread=0), batch()))
    assert applied.changes == ()
    assert (
        applied.skipped[0].reason
        == "10 of its 64 units are dead: too few for a width that is a multiple of 16"
    )
    (change,) = (
        PruneDead(ranges={"dense": (0.0, 1.0)}, step=1)
        .apply(captured(Tower(asleep=10, unread=0), batch()))
        .changes
    )
    assert change.detail.startswith("64 -> 54 units")


def test_a_map_all_of_whose_units_are_dead_keeps_one() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)).eval()
    with torch.no_grad():
        model[0].weight.zero_()
        model[0].bias.fill_(-1.0)
    x = torch.randn(3, 4)
    applied = PruneDead(step=1).apply(captured(model, x))
    assert applied.changes[0].detail.startswith("8 -> 1 units")
    assert torch.equal(applied.model(x)[0], model(x))


def test_a_reader_of_two_groups_is_told_of_both() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.a, self.b, self.last = nn.Linear(4, 32), nn.Linear(4, 32), nn.Linear(68, 1)
            with torch.no_grad():
                for map_ in (self.a, self.b):
                    map_.bias[8:24], map_.weight[8:24] = -1.0, 0.0

        def forward(self, x: Tensor) -> Tensor:
            return self.last(torch.cat([torch.relu(self.a(x)), x, torch.relu(self.b(x))], 1))

    model, x = Two().eval(), torch.randn(6, 4)
    applied = PruneDead().apply(captured(model, x))
    assert len(applied.changes) == 2
    assert torch.allclose(applied.model(x)[0], model(x), atol=1e-6)


def test_numbers_outside_what_was_declared_are_refused() -> None:
    fast = fastrec.compress(
        Tower(), batch(64), recipe=[IN_RANGE, Fuse()], backends=[Eager()], batch_sizes=(8,), seconds=3,
        progress=False,
    )  # fmt: skip
    assert torch.allclose(fast(*batch()), fast.original.function(*batch()), atol=1e-5)
    with pytest.raises(
        InputError, match=r"feature 'dense', row 0, position .*: got .*, declared from 0 to 1"
    ):
        fast(*batch(9, high=50.0))
    again = fastrec.Recipe.from_json(fast.recipe.to_json())
    assert again == fast.recipe


@pytest.mark.parametrize(
    "ranges",
    [
        {"dense": (1.0, 0.0)},
        {"dense": (0.0, float("inf"))},
        {"dense": 1.0},
        {3: (0.0, 1.0)},
        [("dense", 0, 1)],
    ],
)
def test_ranges_that_are_none_are_refused(ranges: Any) -> None:
    with pytest.raises(InputError, match=r"PruneDead\(ranges=...\) takes a mapping"):
        PruneDead(ranges=ranges)


def test_settings_are_read_back_as_they_were_given() -> None:
    given = {"dense": [0, 1]}
    technique: Any = PruneDead(ranges=given)  # type: ignore[arg-type]  # as people write it
    assert technique == IN_RANGE and technique.ranges["dense"] == (0.0, 1.0)
    assert isinstance(technique.ranges["dense"][0], float)
    recipe = fastrec.Recipe((technique,))
    assert fastrec.Recipe.from_json(recipe.to_json()) == recipe
    given["dense"][1] = 9
    assert technique == IN_RANGE


def test_ranges_are_of_numbers_and_not_of_ids() -> None:
    said = "names 'ids', which holds int64: ranges are of floating-point numbers; ids lie between what their tables have"
    with pytest.raises(InputError, match=re.escape(said)) as caught:
        PruneDead(ranges={"ids": (0, 99)}).apply(captured(Tower(), batch()))
    assert caught.value.feature == "ids"


def test_an_input_that_is_none_is_named() -> None:
    with pytest.raises(InputError, match="names 'other', which is no input of this model: it has ids, dense"):
        PruneDead(ranges={"other": (0.0, 1.0)}).apply(captured(Tower(), batch()))


def test_ranges_of_several_techniques_meet() -> None:
    wide = PruneDead(ranges={"dense": (0.0, 2.0)})
    assert fastrec.Recipe((IN_RANGE, wide)).promised == {"dense": (0.0, 1.0)}
    fast = fastrec.compress(
        Tower(), batch(64), recipe=[IN_RANGE, wide, Fuse()], backends=[Eager()], batch_sizes=(8,), seconds=3,
        progress=False,
    )  # fmt: skip
    with pytest.raises(InputError, match="declared from 0 to 1"):
        fast(*batch(9, high=1.9))
    with pytest.raises(InputError, match="no number is in both"):
        _ = fastrec.Recipe((IN_RANGE, PruneDead(ranges={"dense": (2.0, 3.0)}))).promised


def test_a_batch_that_is_given_outside_its_range_is_named() -> None:
    with pytest.raises(InputError, match="the example batch: feature 'dense', row 0"):
        fastrec.compress(
            Tower(), batch(64, high=9.0), recipe=[IN_RANGE], backends=[Eager()], seconds=3, progress=False
        )
    with pytest.raises(InputError, match="calibration: feature 'dense', row 0"):
        fastrec.compress(
            Tower(), batch(64), calibration=[batch(64, high=9.0)], recipe=[IN_RANGE], backends=[Eager()], seconds=3,
            progress=False,
        )  # fmt: skip
