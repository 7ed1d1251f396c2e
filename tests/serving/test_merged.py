"""Several requests in one call, each answered as by itself."""

from __future__ import annotations

import copy
import functools
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager, ModelSession, OnnxRuntime, Source
from fastrec.capture import capture
from fastrec.compressed import CompressedModel
from fastrec.declared import read_request
from fastrec.errors import IdOutOfRangeError, InputError, RequestMismatchError
from fastrec.graph import operator_name
from fastrec.guards import read_guard
from fastrec.plan import Plan
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.request import Once, ask
from fastrec.rows import take_rows
from fastrec.serving import Merged
from fastrec.serving.joined import Joiner
from fastrec.serving.ragged import ask_several, pick_late
from fastrec.techniques import Fuse, QuantizeTables, Technique
from fastrec.trees import tensors_of
from tests.checks import assert_same_structure
from tests.zoo import ZOO, make

from .test_scorer import DECLARED

RAGGED = [name for name in DECLARED if name not in ("sasrec", "dlrm", "xdeepfm", "fibinet", "nfm", "shared")]


@dataclass(frozen=True)
class Case:
    """A model, its batches, and what stands for it."""

    program: Program
    fast: CompressedModel
    merged: Merged

    def request(self, rows: int, seed: int) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """One request of so many candidates, as the model is called with it: its own features on every row."""
        features = self.program.layout.features
        once = Once(features)
        rng = torch.Generator().manual_seed(seed)
        flat = self.program.flat(self.program.batch)
        chosen = torch.randint(self.program.layout.rows or 1, (rows + 1,), generator=rng)
        flat = once.same(take_rows(features, flat, chosen))
        return self.program.layout.arguments(take_rows(features, flat, torch.arange(rows)))

    def check(self, sizes: Sequence[int]) -> None:
        """That requests with so many candidates are answered together as each is alone."""
        calls = [self.request(rows, seed) for seed, rows in enumerate(sizes)]
        answers = self.merged.score_many([batch_of(call) for call in calls])
        assert len(answers) == len(calls)
        for answer, (args, kwargs) in zip(answers, calls, strict=True):
            expected = self.fast(*args, **kwargs)
            assert_same_structure(answer, expected)
            for new, old in zip(tensors_of(answer), tensors_of(expected), strict=True):
                torch.testing.assert_close(new, old, rtol=1e-4, atol=1e-5)


def batch_of(call: tuple[tuple[Any, ...], dict[str, Any]]) -> Any:
    args, kwargs = call
    return kwargs or (args if len(args) > 1 else args[0])


def stand(
    target: nn.Module | Callable[..., Any],
    batch: Any,
    declared: Any,
    *recipe: Technique,
    way: str | None = None,
) -> Case:
    """What `compress` would give, by eager, without measuring."""
    recipe = recipe or (Fuse(),)
    program = Program.read(target, batch)
    features = read_request(program.layout.features, declared)
    program = replace(program, layout=replace(program.layout, features=features))
    once = Once(features)
    try:
        asked = ask(capture(program))
    except fastrec.FastrecError:
        fast = CompressedModel(program, {}, None, None, once)
        fast.recipe = Recipe(recipe)
        return Case(program, fast, Merged(fast, way=way, seconds=0.2, at=(2, 3)))
    program = replace(program, layout=replace(program.layout, exempt=asked.layout.exempt))
    made = asked
    for technique in recipe:
        made = made.with_model(technique.apply(made).model)
    fast = CompressedModel(
        program, {"eager": Eager().compile(made)}, Plan((1,), ("eager",)), read_guard(asked), once
    )
    fast.sources, fast.program, fast.recipe = {"eager": Source(Eager(), made)}, made, Recipe(recipe)
    fast.exact = all(technique.exact for technique in recipe)
    return Case(program, fast, Merged(fast, way=way, seconds=0.2, at=(2, 3)))


@functools.cache
def of_zoo(name: str, way: str | None = "ragged, eager", declared: Any = True) -> Case:
    entry = next(entry for entry in ZOO if entry.name == name)
    batch = entry.batch(12, torch.Generator().manual_seed(3))
    return stand(getattr(make(entry), entry.entry), batch, DECLARED[name] if declared else (), way=way)


@pytest.mark.parametrize("name", RAGGED)
def test_each_request_is_answered_as_by_itself(name: str) -> None:
    of_zoo(name).check([3, 1, 7, 2, 2])


@pytest.mark.parametrize("name", ["two_tower", "din", "deepfm", "mmoe"])
def test_request_features_repeated_for_a_whole_batch(name: str) -> None:
    case = of_zoo(name, "whole batch")
    assert case.merged.way == "whole batch" and not case.merged.reason
    case.check([3, 1, 7, 2, 2])


@pytest.mark.parametrize("name", ["two_tower", "din", "wide_deep", "dcnv2"])
@given(sizes=st.lists(st.integers(0, 6), min_size=1, max_size=6))
@settings(max_examples=25, deadline=None)
def test_any_numbers_of_candidates(name: str, sizes: list[int]) -> None:
    of_zoo(name).check(sizes)


def ragged_of(name: str) -> tuple[Program, Joiner]:
    program = of_zoo(name).program
    joiner = Joiner(program.layout, Once(program.layout.features))
    return pick_late(ask_several(capture(program), joiner)), joiner


def test_a_tower_of_the_request_is_computed_once_for_each() -> None:
    several, _ = ragged_of("two_tower")
    assert isinstance(several.model, torch.fx.GraphModule)
    nodes = list(several.model.graph.nodes)
    picks = [node for node in nodes if operator_name(node) == "index_select"]
    # What is picked is what the tower ends in, and nothing else.
    assert [tuple(node.meta["val"].shape[1:]) for node in picks] == [(8,)]
    users, items, _ = (str(node.meta["val"].shape[0]) for node in nodes if node.op == "placeholder")
    linears = [str(node.meta["val"].shape[0]) for node in nodes if operator_name(node) == "linear"]
    assert linears == [users] * 3 + [items] * 2


class Meeting(nn.Module):
    """A history that meets the candidate at each of its positions, in one linear map, and a sum over them."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.meet, self.out = nn.Linear(3 * width, 24), nn.Linear(24, 1)

    def forward(self, history: Tensor, item: Tensor) -> Tensor:
        spread = item[:, None].expand_as(history)
        score: Tensor = self.out(self.meet(torch.cat([spread, history, spread * history], -1)).relu()).sum(
            (1, 2)
        )
        return score


@pytest.mark.parametrize(("width", "split"), [(16, True), (4, False)])
def test_a_linear_map_of_both_reads_the_request_at_its_own_rows(width: int, split: bool) -> None:
    torch.manual_seed(0)
    batch = (torch.randn(9, 5, width), torch.randn(9, width))
    case = stand(Meeting(width).eval(), batch, ["history"], way="ragged, eager")
    case.check([2, 1, 4])
    joiner = Joiner(case.program.layout, Once(case.program.layout.features))
    several = pick_late(ask_several(capture(case.program), joiner)).model
    assert isinstance(several, torch.fx.GraphModule)
    nodes = list(several.graph.nodes)
    histories = nodes[[node.op for node in nodes].index("placeholder")].meta["val"].shape[0]
    linears = [node.meta["val"].shape[0] == histories for node in nodes if operator_name(node) == "linear"]
    assert any(linears) == split


class Across(nn.Module):
    """What `work` does to the request's rows, in a sum with the candidates'."""

    def __init__(self, work: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.work = work

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return (self.work(user) * item).sum(-1)


@pytest.mark.parametrize(
    ("name", "work"),
    [
        ("places", lambda u: u + 0 * torch.arange(len(u))[:, None]),
        ("number of rows", lambda u: u * (len(u) / len(u))),
        ("zeros", lambda u: u + torch.zeros(len(u), 4)),
        ("two of each", lambda u: torch.cat([u, u])[: len(u)]),
    ],
)
def test_work_across_rows_is_left_to_the_candidates(name: str, work: Callable[[Tensor], Tensor]) -> None:
    batch = (torch.randn(5, 4), torch.randn(5, 4))
    stand(Across(work).eval(), batch, ["user"], way="ragged, eager").check([2, 1, 4])


class Reading(nn.Module):
    """A user's table row, and two numbers of the item."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.out = nn.Embedding(9, 4), nn.Linear(6, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        score: Tensor = self.out(torch.cat([self.table(user), item], 1)).squeeze(1)
        return score


@functools.cache
def reading() -> Case:
    torch.manual_seed(0)
    return stand(Reading().eval(), (torch.arange(6), torch.randn(6, 2)), ["user"], way="ragged, eager")


@pytest.mark.parametrize("repeated", [True, False])
def test_requests_given_as_one_batch(repeated: bool) -> None:
    case = reading()
    users, items, offsets = torch.tensor([3, 7, 1, 5]), torch.randn(7, 2), [0, 2, 2, 6, 7]
    owner = torch.tensor([0, 0, 2, 2, 2, 2, 3])
    answer = case.merged((users[owner] if repeated else users, items), offsets)
    expected = torch.cat([case.fast(users[r : r + 1], items[owner == r]) for r in (0, 2, 3)])
    torch.testing.assert_close(answer, expected)


def test_no_candidates_at_all() -> None:
    case = reading()
    assert case.merged((torch.tensor([3, 7]), torch.zeros(0, 2)), [0, 0, 0]).shape == (0,)
    assert case.merged.score_many([]) == []


@pytest.mark.parametrize(
    "offsets", [[0, 2], [0, 3, 2, 7], [1, 7], [0], [0.0, 7.0], [[0, 7]], 7, None, "abc", ["a"]]
)
def test_offsets_that_do_not_fit_are_refused(offsets: Any) -> None:
    with pytest.raises(InputError, match="offsets"):
        reading().merged((torch.tensor([3]), torch.zeros(7, 2)), offsets)


def test_rows_of_a_request_that_differ_are_refused() -> None:
    case = reading()
    with pytest.raises(RequestMismatchError, match="'user', row 2"):
        case.merged((torch.tensor([3, 3, 4, 1]), torch.zeros(4, 2)), [0, 3, 4])
    with pytest.raises(InputError, match="expected 2, one for each request, or 4"):
        case.merged((torch.tensor([3, 3, 4]), torch.zeros(4, 2)), [0, 3, 4])
    with pytest.raises(IdOutOfRangeError):
        case.merged((torch.tensor([3, 9]), torch.zeros(4, 2)), [0, 3, 4])
    with pytest.raises(InputError, match=r"'user' is \(\)"):
        case.merged((torch.tensor(3), torch.zeros(4, 2)), [0, 4])


def test_what_is_wrong_with_one_request_is_its_own() -> None:
    case = reading()
    good = [(torch.tensor([user]), torch.randn(3, 2)) for user in (1, 2)]
    bad: list[tuple[Any, type[Exception]]] = [
        ((torch.tensor([9]), torch.randn(3, 2)), IdOutOfRangeError),
        ((torch.tensor([1, 2]), torch.randn(2, 2)), RequestMismatchError),
        ((torch.tensor([1]), torch.full((2, 2), torch.nan)), InputError),
        ((torch.tensor([1]), torch.randn(2, 3)), InputError),
        ((torch.tensor(1), torch.randn(2, 2)), InputError),
        ((torch.tensor([1.0]), torch.randn(2, 2)), InputError),
        ((torch.tensor([1]), torch.randn(2)), InputError),
        ({"user": torch.tensor([1])}, InputError),
        ("nonsense", InputError),
        ((torch.tensor([1]), torch.randn(2, 2).to_sparse()), InputError),
        ((torch.tensor([1]), torch.randn(2, 2, device="meta")), InputError),
    ]
    for one, kind in bad:
        answers = case.merged.score_many([good[0], one, good[1]], return_errors=True)
        assert isinstance(answers[1], kind), one
        for place, request in ((0, good[0]), (2, good[1])):
            torch.testing.assert_close(answers[place], case.fast(*request))
        with pytest.raises(kind) as caught:
            case.merged.score_many([good[0], one])
        assert caught.value.__notes__ == ["in request 1 of 2"]


def test_what_is_no_request_says_what_was_given() -> None:
    case = reading()
    good = (torch.tensor([1]), torch.randn(3, 2))
    none, text, answer = case.merged.score_many([None, "abc", good], return_errors=True)
    torch.testing.assert_close(answer, case.fast(*good))
    for error, got in ((none, "NoneType"), (text, "str 'abc'")):
        assert isinstance(error, InputError) and f"got one argument, {got}, expected 2: 'user'" in str(error)


@pytest.mark.parametrize("given", [None, 3, "abc", {"user": torch.tensor([1])}, torch.tensor([1])])
def test_one_request_is_no_list_of_requests(given: Any) -> None:
    with pytest.raises(InputError, match=f"a list of requests.*got one {type(given).__name__}"):
        reading().merged.score_many(given)


def test_what_no_guard_finds_is_its_own_too() -> None:
    case = reading()
    bare = copy.copy(case.fast)
    bare._guard = None
    good, bad = (torch.tensor([1]), torch.randn(3, 2)), (torch.tensor([9]), torch.randn(3, 2))
    answers = Merged(bare, way="ragged, eager").score_many([good, bad, good], return_errors=True)
    assert isinstance(answers[1], Exception)
    for place in (0, 2):
        torch.testing.assert_close(answers[place], case.fast(*good))


def test_rows_without_request_features_are_joined() -> None:
    case = of_zoo("two_tower", "rows", declared=False)
    case.check([4, 1, 3])


def test_what_is_not_merged_says_why() -> None:
    offsets = of_zoo("dlrm", None)
    assert offsets.merged.way == "one by one" and "'lS_o' are cut by offsets" in offsets.merged.reason
    entry = next(entry for entry in ZOO if entry.name == "sasrec")
    batch = entry.batch(5, torch.Generator().manual_seed(3))
    single = stand(make(entry), batch, ["history"])
    assert single.merged.way == "one by one" and "one row in every batch" in single.merged.reason
    for case in (offsets, single):
        case.check([3, 1])
    with pytest.raises(InputError, match="call score_many"):
        offsets.merged((torch.zeros(1),), [0, 1])
    with pytest.raises(InputError, match="no way 'ragged, eager'"):
        of_zoo("dlrm")
    with pytest.raises(InputError, match=r"no way 'zzz'.*there is one by one, .*whole batch"):
        reading().fast.merged(way="zzz")
    assert reading().fast.merged(way="one by one").reason == "it was asked for"


@pytest.mark.parametrize("at", [(0, 5), (2,), (2.0, 5), (True, 1)])
def test_numbers_that_are_none_are_refused(at: Any) -> None:
    with pytest.raises(InputError, match="at takes"):
        Merged(reading().fast, at=at)


class Ranked(nn.Module):
    """Scores less the mean of all."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        score = (user * item).sum(1)
        return score - score.mean()


def test_rows_that_see_one_another_are_not_merged() -> None:
    case = stand(Ranked().eval(), (torch.randn(6, 3), torch.randn(6, 3)), ["user"])
    assert case.merged.way == "one by one" and "depends on the other rows" in case.merged.reason
    case.check([3, 2, 4])


def test_a_model_that_was_not_captured_is_called_with_whole_batches() -> None:
    class Branching(nn.Module):
        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            if bool((item > 100).any()):
                return item.sum(1)
            return (user * item).sum(1)

    case = stand(Branching().eval(), (torch.randn(6, 3), torch.randn(6, 3)), ["user"], way="whole batch")
    case.check([3, 2, 4])


def test_tables_in_fewer_bits_are_merged_as_they_are() -> None:
    entry = next(entry for entry in ZOO if entry.name == "two_tower")
    batch = entry.batch(12, torch.Generator().manual_seed(3))
    recipe = (Fuse(), QuantizeTables(least_bytes=0))
    case = stand(make(entry), batch, DECLARED["two_tower"], *recipe, way="ragged, eager")
    assert not case.fast.exact
    case.check([3, 1, 5])


def test_the_way_that_serves_is_measured() -> None:
    case = of_zoo("din", None)
    names = {trial.session for trial in case.merged.trials}
    assert names == {"ragged, eager", "whole batch"} and case.merged.way in names | {"one by one"}
    assert (case.merged.way == "one by one") == bool(case.merged.reason)


def test_a_saved_model_merges_without_its_original(tmp_path: Path) -> None:
    entry = next(entry for entry in ZOO if entry.name == "din")
    batch = entry.batch(12, torch.Generator().manual_seed(3))
    made = fastrec.compress(
        make(entry), batch, request_features=DECLARED["din"], backends=[OnnxRuntime()], batch_sizes=(4,),
        seconds=2, budget=None, progress=False,
    )  # fmt: skip
    made.save(tmp_path / "model")
    loaded = fastrec.load(tmp_path / "model")
    merged = loaded.merged(way="ragged, onnxruntime", backends=[OnnxRuntime()])
    Case(of_zoo("din").program, loaded, merged).check([3, 1, 7])


def test_a_process_that_was_forked_asks_the_model_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    case = reading()
    monkeypatch.setattr(os, "getpid", lambda: -1)
    monkeypatch.setattr(case.fast, "_threads", 2)
    answer = case.merged.score_many([(torch.tensor([1]), torch.randn(3, 2))], return_errors=True)[0]
    assert isinstance(answer, fastrec.ForkSafetyError)


def test_sessions_of_the_original_alone_are_merged() -> None:
    program = reading().program
    fast = CompressedModel(program, {}, None, None, Once(program.layout.features))
    fast.recipe = Recipe((Fuse(),))
    assert isinstance(fast._fallback._session, ModelSession)  # type: ignore[attr-defined]
    for way in ("ragged, eager", "whole batch"):
        Case(program, fast, Merged(fast, way=way)).check([3, 1, 2])
