"""Rows that are not finite are answered by the original, the others as in a clean batch."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from fastrec.errors import InputError
from fastrec.inputs import Feature, Layout
from fastrec.nonfinite import Apart, spoilt_notes
from fastrec.program import Program
from fastrec.trees import Leaf

NAN, INF = float("nan"), float("inf")


def layout(request: bool | tuple[int, ...] = False, **options: object) -> Layout:
    features = (
        Feature("x", torch.float32, (64, 3), 0, "rows", request=request),
        Feature("ids", torch.int64, (64,), 0, "rows"),
    )
    made = {"rows": 64, "output_axes": (0,)} | options
    return Layout(features, ("x", "ids"), 2, (Leaf(0), Leaf(1)), **made)  # type: ignore[arg-type]


def original(flat: list[Tensor]) -> list[Tensor]:
    return [flat[0].sum(1) + flat[1]]


def coarse(flat: list[Tensor]) -> list[Tensor]:
    """As int8 kernels do: what is not finite comes out as a number."""
    return [flat[0].nan_to_num(0.46, 1.0, -1.0).clamp(-1, 1).sum(1) + flat[1]]


def batch() -> list[Tensor]:
    return [torch.randn(64, 3, generator=torch.Generator().manual_seed(0)), torch.arange(64)]


def test_bad_rows_are_the_originals_and_the_others_as_in_a_clean_run() -> None:
    clean = batch()
    dirty = [clean[0].clone(), clean[1]]
    dirty[0][[3, 17, 60], [0, 1, 2]] = torch.tensor([NAN, INF, -INF])
    (answer,) = Apart(layout())(dirty, coarse, original)
    good = torch.ones(64, dtype=torch.bool)
    good[[3, 17, 60]] = False
    assert torch.equal(answer[good], coarse(clean)[0][good])
    assert answer[3].isnan() and answer[17] == INF and answer[60] == -INF


def test_a_clean_batch_is_the_sessions_alone() -> None:
    def never(flat: list[Tensor]) -> list[Tensor]:
        raise AssertionError

    (answer,) = Apart(layout())(batch(), coarse, never)
    assert torch.equal(answer, coarse(batch())[0])


@pytest.mark.parametrize(
    "options", [{"request": True}, {"request": (1,)}, {"independent": False}, {"output_axes": (None,)}]
)
def test_what_is_not_one_rows_alone_goes_to_the_original_whole(options: dict[str, object]) -> None:
    dirty = batch()
    if options.get("request") is True:
        dirty[0] = dirty[0][:1]
    dirty[0][0, 1] = NAN
    (answer,) = Apart(layout(**options))(dirty, coarse, original)  # type: ignore[arg-type]
    assert torch.equal(answer.nan_to_num(7), original(dirty)[0].nan_to_num(7))


def test_a_bad_number_outside_the_requests_columns_is_its_rows() -> None:
    dirty = batch()
    dirty[0][5, 0] = NAN
    (answer,) = Apart(layout((1,)))(dirty, coarse, original)
    assert int(answer.isnan().sum()) == 1 and answer[5].isnan()


class Scores(nn.Module):
    """The rows of a table, summed, and a mask that holds what a mask holds."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.register_buffer("mask", torch.tensor([0.0, -INF]))

    def forward(self, ids: Tensor) -> Tensor:
        return self.table(ids).sum(1)  # type: ignore[no-any-return]


def spoilt_at(*places: int, value: float = NAN) -> nn.Module:
    model = Scores().eval()
    with torch.no_grad():
        model.table.weight[list(places), 1] = value
    return model


@pytest.mark.parametrize(
    ("model", "ids", "told"),
    [
        (spoilt_at(), range(8), []),
        (
            spoilt_at(8),
            range(8),
            [
                "'table.weight' of the model holds NaN or infinity: look at how it was trained. No answer to the example is NaN, others may be"
            ],
        ),
        (
            spoilt_at(2, 3),
            range(8),
            [
                "'table.weight' of the model holds NaN or infinity: look at how it was trained. 2 of 8 numbers in its answers to the example are NaN"
            ],
        ),
    ],
)
def test_weights_that_are_no_numbers_are_told(model: nn.Module, ids: range, told: list[str]) -> None:
    assert spoilt_notes(Program.read(model, torch.tensor(ids))) == told


class Rooted(nn.Module):
    """Not a number below zero."""

    def forward(self, x: Tensor) -> Tensor:
        return x.sqrt()


def test_answers_that_are_none_are_told_but_where_the_batch_is_none_itself() -> None:
    assert spoilt_notes(Program.read(Rooted(), torch.tensor([1.0, -1.0, 4.0]))) == [
        "1 of 3 numbers in its answers to the example are NaN, though the batch and its weights hold none"
    ]
    assert spoilt_notes(Program.read(Rooted(), torch.tensor([1.0, NAN, 4.0]))) == []


@pytest.mark.parametrize(
    ("model", "batch", "cure"),
    [
        (spoilt_at(*range(9)), torch.arange(8), "'table.weight' of the model holds NaN or infinity"),
        (Rooted(), torch.full((8,), NAN), "the batch holds NaN: give one without"),
        (Rooted(), -torch.ones(8), "look at what it computes"),
    ],
)
def test_a_model_of_which_no_answer_is_a_number_is_refused(
    model: nn.Module, batch: Tensor, cure: str
) -> None:
    with pytest.raises(InputError, match=rf"NaN alone \(8 of 8 numbers\).*{cure}"):
        spoilt_notes(Program.read(model, batch))
