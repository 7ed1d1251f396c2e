"""What a model does not look up in the dicts of a batch is no feature, and nobody has to give it."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager
from fastrec.errors import InputError
from fastrec.program import Program

Batch = dict[str, Any]


class Columns:
    """A dict behind an object, as libraries of recommenders hand it around."""

    def __init__(self, columns: Batch) -> None:
        self.interaction = dict(columns.items())

    def __getitem__(self, name: str) -> Any:
        return self.interaction[name]


class Ranker(nn.Module):
    """A score of user and item, and something else that is done with the batch."""

    def __init__(self, also: Callable[[Any], Any] | None = None) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(50, 4), nn.Embedding(30, 4)
        self.also = also

    def forward(self, batch: Any) -> Tensor:
        score = (self.users(batch["user"]) * self.items(batch["item"])).sum(1)
        return score if self.also is None else score + self.also(batch)


def batch(rows: int = 6) -> Batch:
    draw = torch.Generator().manual_seed(rows)
    return {
        "user": torch.randint(50, (rows,), generator=draw),
        "label": torch.rand(rows, generator=draw),
        "item": torch.randint(30, (rows,), generator=draw),
        "source": "clicks",
    }


def names(program: Program) -> list[str]:
    return [feature.name.removeprefix("batch.") for feature in program.layout.features]


def nothing(_: Any) -> int:
    return 0


@pytest.mark.parametrize("also", [None, lambda x: x.get("item").sum() * 0, lambda x: "user" in x])
def test_what_is_not_looked_up_is_no_feature(also: Callable[[Batch], Any] | None) -> None:
    program = Program.read(Ranker(also), batch())
    assert names(program) == ["user", "item"]
    assert torch.equal(program.answers(program.flat(batch()))[0], program.model(batch()))


@pytest.mark.parametrize("kind", [Columns, OrderedDict, UserDict])
def test_so_it_is_in_other_dicts_and_objects_around_one(kind: Callable[[Batch], Any]) -> None:
    program = Program.read(Ranker(), kind(batch()))
    assert names(program) == ["user", "item"]
    assert len(program.flat(kind({**batch(), "more": 1}))) == 2


@pytest.mark.parametrize(
    "also",
    [
        lambda x: "weight" in x, lambda x: x.get("weight", 0), lambda x: x.pop("weight", 0), lambda x: x.setdefault("weight", 0),
    ],
)  # fmt: skip
def test_a_key_that_is_asked_for_in_vain_stays_away_and_the_others_do_not_matter(
    also: Callable[[Batch], Any],
) -> None:
    program = Program.read(Ranker(also), batch())
    assert names(program) == ["user", "item"]
    assert len(program.flat({**batch(), "more": 1})) == 2
    with pytest.raises(InputError, match="unexpected 'weight'"):
        program.flat({**batch(), "weight": torch.ones(6)})


def test_a_key_that_is_taken_out_is_read() -> None:
    program = Program.read(Ranker(lambda x: x.pop("label") * 0), batch())
    assert names(program) == ["user", "label", "item"]
    assert len(program.flat({**batch(), "more": 1})) == 3


@pytest.mark.parametrize(
    "also",
    [
        len, lambda x: sum(v.sum() for v in x.values() if isinstance(v, Tensor)), lambda x: [*x] and 0, lambda x: {**x}["user"] * 0, lambda x: dict(x)["user"] * 0, lambda x: dict(**x)["user"] * 0,
        lambda x: (x | {"more": 1})["more"] * 0, lambda x: x.copy()["user"] * 0, lambda x: x.update(a=1) or 0,
        lambda x: nothing(str(x)), lambda x: torch.rand(()),
    ],
)  # fmt: skip
def test_a_dict_that_other_keys_could_matter_to_is_read_whole(also: Callable[[Batch], Any]) -> None:
    program = Program.read(Ranker(also), batch())
    assert names(program) == ["user", "label", "item"]
    for other in ({**batch(), "more": torch.ones(6)}, {k: v for k, v in batch().items() if k != "label"}):
        with pytest.raises(InputError, match=r"unexpected 'more'|missing 'label'"):
            program.flat(other)


class Typed(Ranker):
    """Another answer to what is no plain dict."""

    def forward(self, batch: Any) -> Tensor:
        score = super().forward(batch)
        return score + batch["label"] if type(batch) is dict else score


def test_what_hides_from_being_looked_at_is_found_by_its_answer() -> None:
    assert names(Program.read(Typed(), batch())) == ["user", "label", "item"]


class Nested(Ranker):
    def forward(self, batch: Any) -> Tensor:
        return super().forward(batch["features"]) + sum(batch["more"].values()).sum()


def test_each_dict_is_looked_at_by_itself() -> None:
    given: dict[str, Any] = {
        "features": batch(),
        "more": {"a": torch.ones(2), "b": torch.ones(2)},
        "time": torch.ones(6),
    }
    program = Program.read(Nested(), given)
    assert names(program) == ["features.user", "features.item", "more.a", "more.b"]
    given["features"]["extra"] = 1
    assert len(program.flat(given)) == 4
    given["more"]["c"] = torch.ones(2)
    with pytest.raises(InputError, match=r"'batch.more': unexpected 'c'"):
        program.flat(given)


def test_batches_may_have_it_or_not_wherever_they_go(tmp_path: Path) -> None:
    model = Ranker().eval()
    settings: dict[str, Any] = {
        "backends": [Eager()],
        "batch_sizes": (1, 6),
        "seconds": 0.5,
        "progress": False,
    }
    fast = fastrec.compress(model, batch(), request_features=["user", "label"], **settings)
    assert "not read by the model, and so not asked of batches: 'batch.label'" in fast.report.notes
    fast.save(tmp_path / "made")
    loaded = fastrec.load(tmp_path / "made")
    given = {**batch(), "user": torch.full((6,), 7)}
    expected, read = model(given), {key: given[key] for key in ("item", "user")}
    for one in (fast, loaded):
        for batches in (given, read, {**read, "time": torch.ones(1)}, {**read, "label": None}):
            torch.testing.assert_close(one(batches), expected)
        with pytest.raises(InputError, match="missing 'item'"):
            one({"user": given["user"], "label": given["label"]})
    torch.testing.assert_close(fastrec.update(tmp_path / "made", model, batch=batch())(read), expected)
    with pytest.raises(InputError, match=r"no feature 'labels'; the batch has batch\.user, batch\.label"):
        fastrec.compress(model, batch(), request_features=["labels"], **settings)
