"""One request, many candidates: declared features are given once or repeated, checked, and never change the answer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fastrec import compress
from fastrec.backends import Eager
from fastrec.capture import capture
from fastrec.declared import Declared, read_program, read_request
from fastrec.errors import InputError, RequestMismatchError
from fastrec.inputs import Feature
from fastrec.program import Program
from fastrec.request import Once, ask
from fastrec.techniques.fusion import Fuse

from .checks import assert_as_good, call, double, flat, rolled_back
from .zoo import ZOO, Entry, make
from .zoo.programs import captured as captured_of
from .zoo.programs import program_of

DECLARED = [entry for entry in ZOO if entry.request]


def captured_with(model: Any, batch: Any, declared: Declared) -> tuple[Program, Program]:
    """The program of a model, and the captured one with its request features."""
    program = Program.read(model, batch)
    return program, as_declared(capture(program), declared)


def as_declared(captured: Program, declared: Declared) -> Program:
    """The captured program with its request features."""
    features = read_request(captured.layout.features, declared)
    return replace(captured, layout=replace(captured.layout, features=features))


def names(*given: str, request: Any = False) -> tuple[Feature, ...]:
    return tuple(Feature(name, torch.int64, (4, 3), 0, "rows", request=request) for name in given)


@pytest.mark.parametrize("entry", DECLARED, ids=lambda entry: entry.name)
def test_the_graph_of_one_request_answers_as_the_model_on_whole_rows(entry: Entry) -> None:
    program = program_of(entry)
    declared = as_declared(captured_of(entry), entry.request)
    once = Once(declared.layout.features)
    asked = ask(declared)
    applied = Fuse().apply(asked)
    assert not rolled_back(applied)
    for size in entry.sizes:
        if size in asked.layout.exempt:
            continue
        repeated = once.same(program.flat(entry.batch(size, torch.Generator().manual_seed(size))))
        args, kwargs = program.layout.arguments(repeated)
        original = flat(call(program.function, kwargs or args))
        exact = double(program.model, entry.entry, kwargs or args)
        given_once = once.one(repeated)
        for tensors in (repeated, given_once):
            for graph in (asked.model, applied.model):
                with torch.no_grad():
                    got = graph(*once.one(tensors))
                assert_as_good(list(got), original, exact)
        # And back: what was given once is what the model takes.
        assert all(torch.equal(a, b) for a, b in zip(once.all(given_once), repeated, strict=True))


class Mixed(nn.Module):
    """A matrix of ids, numbers, and a history."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(9, 4)
        self.head = nn.Linear(14, 1)

    def forward(self, x: Tensor, age: Tensor, history: Tensor) -> Tensor:
        rows = self.table(x).flatten(1)
        score: Tensor = self.head(torch.cat([rows, age, self.table(history).mean(1)], 1))
        return score.squeeze(1)


def mixed(rows: int = 4) -> tuple[Tensor, Tensor, Tensor]:
    """A batch of one request: column 1, age and history."""
    rng = torch.Generator().manual_seed(rows)
    x = torch.randint(9, (rows, 2), generator=rng)
    x[:, 1] = 3
    return x, torch.tensor([[0.5, float("nan")]]).repeat(rows, 1), torch.tensor([[1, 2, 8]]).repeat(rows, 1)


REQUEST: Declared = {"x": [1], "age": True, "history": True}


@pytest.mark.parametrize(
    ("place", "column", "name"), [(0, 1, "x"), (1, 0, "age"), (1, 1, "age"), (2, 2, "history")]
)
def test_rows_that_differ_are_refused_by_name_and_row(place: int, column: int, name: str) -> None:
    program, captured = captured_with(Mixed(), mixed(), REQUEST)
    once = Once(captured.layout.features)
    tensors = program.flat(mixed(7))
    first = once.one(tensors)  # not a number equals not a number
    assert [tensor.shape[0] for tensor in first] == [7, 1, 1]
    assert not once.differing(tensors)
    tensors[place][5, column] = 7
    with pytest.raises(RequestMismatchError) as caught:
        once.one(tensors)
    assert (caught.value.feature, caught.value.row) == (name, 5)
    assert repr(name) in str(caught.value) and "row 5" in str(caught.value) and "got 7" in str(caught.value)
    assert once.differing(tensors) == [name]


def test_rows_may_differ_where_nobody_compares() -> None:
    program, captured = captured_with(Mixed(), mixed(), REQUEST)
    tensors = program.flat(mixed(7))
    tensors[2][1:] = 0
    tensors[0][1:, 1] = 0
    first = Once(captured.layout.features, check=False).one(tensors)
    assert first[2].tolist() == [[1, 2, 8]]
    asked = ask(captured)
    fused = Fuse().apply(asked)
    assert not rolled_back(fused)
    expected = asked.model(*Once(captured.layout.features).one(program.flat(mixed(7))))
    # Row 0 is the request, of a matrix's columns too.
    for graph in (asked.model, fused.model):
        torch.testing.assert_close(graph(*first), expected, equal_nan=True)


def test_candidates_are_not_compared() -> None:
    program, captured = captured_with(Mixed(), mixed(), ("age", "history"))
    tensors = program.flat(mixed(7))
    tensors[0][3] = 0
    assert torch.equal(Once(captured.layout.features).one(tensors)[0], tensors[0])


def test_what_is_repeated_without_copies_is_not_compared() -> None:
    once = Once(names("user", request=True))
    assert once.one([torch.tensor([[1, 2, 3]]).expand(5, 3)])[0].tolist() == [[1, 2, 3]]


def test_a_batch_of_no_rows_has_a_request_of_zeros() -> None:
    once = Once(names("user", request=True))
    assert once.one([torch.zeros(0, 3, dtype=torch.int64)])[0].tolist() == [[0, 0, 0]]


@pytest.mark.parametrize(
    ("declared", "expected"),
    [
        (("a",), {"a": True}),
        (["b.c", "d[1]"], {"b.c": True, "d[1]": True}),
        (("b",), {"b.c": True, "b.e": True}),
        (("d",), {"d[0]": True, "d[1]": True}),
        (("e",), {"b.e": True}),
        ({"a": [0, 2]}, {"a": (0, 2)}),
        ({"a": [-1, 2, 2]}, {"a": (2,)}),
        ({"a": range(3)}, {"a": True}),
        ({"a": torch.Size([1])}, {"a": (1,)}),
        ({"a": True, "b": False}, {"a": True}),
        ({"a": []}, {}),
        ((), {}),
    ],
    ids=str,
)
def test_declarations(declared: Declared, expected: dict[str, Any]) -> None:
    features = read_request(names("a", "b.c", "b.e", "d[0]", "d[1]", "f.c"), declared)
    assert {feature.name: feature.request for feature in features if feature.request} == expected


@pytest.mark.parametrize(
    ("declared", "cure"),
    [
        ("a", "sequence of names"),
        (7, "sequence of names"),
        (("nobody",), "the batch has a, b.c, f.c"),
        ((7,), "the batch has a, b.c, f.c"),
        (("c",), "Give the full name"),
        ({"a": [3]}, "columns 0 to 2"),
        ({"a": [-4]}, "columns 0 to 2"),
        ({"a": [1.0]}, "columns 0 to 2"),
        ({"a": [True]}, "columns 0 to 2"),
        ({"a": "01"}, "True or columns"),
        ({"a": 1}, "True or columns"),
        ({"v": [0]}, "Declare all of it with True"),
        ({"wide": [0]}, "Declare all of it with True"),
    ],
    ids=str,
)
def test_bad_declarations_say_the_cure(declared: Any, cure: str) -> None:
    vector = Feature("v", torch.int64, (4,), 0, "rows")
    # A matrix whose columns are its rows has no columns to declare.
    turned = Feature("wide", torch.int64, (1, 4), 1, "rows")
    with pytest.raises(InputError, match="request_features") as caught:
        read_request((*names("a", "b.c", "f.c"), vector, turned), declared)
    assert cure in str(caught.value)


def test_a_request_without_candidates_is_refused() -> None:
    _, captured = captured_with(Mixed(), mixed(), ("x", "age", "history"))
    with pytest.raises(InputError, match="none is left to its candidates"):
        ask(captured)


def test_nothing_declared_is_the_captured_program_itself() -> None:
    _, captured = captured_with(Mixed(), mixed(), ())
    assert ask(captured) is captured
    assert not Once(captured.layout.features)


class Tagged(nn.Module):
    """A user, and the tags of an item end to end, cut by offsets, bounds, or lengths."""

    def __init__(self, cut: Callable[[Tensor], Tensor], last: bool) -> None:
        super().__init__()
        self.users, self.head = nn.Embedding(9, 4), nn.Linear(8, 2)
        self.tags = nn.EmbeddingBag(20, 4, mode="sum", include_last_offset=last)
        self.cut = cut

    def forward(self, user: Tensor, tags: Tensor, cutter: Tensor) -> Tensor:
        score: Tensor = self.head(torch.cat([self.users(user), self.tags(tags, self.cut(cutter))], 1))
        return score


LENGTHS = torch.tensor([2, 0, 3, 1, 1])
CUTTERS: dict[str, tuple[Tensor, Callable[[Tensor], Tensor], bool]] = {
    "starts": (LENGTHS.cumsum(0) - LENGTHS, lambda x: x, False),
    "bounds": (torch.cat([LENGTHS.new_zeros(1), LENGTHS.cumsum(0)]), lambda x: x, True),
    "lengths": (LENGTHS, lambda x: x.cumsum(0) - x, False),
}


@pytest.mark.parametrize("role", CUTTERS)
@pytest.mark.parametrize("declared", [("user",), ("user", "tags", "cutter"), ("tags", "cutter")], ids=str)
def test_jagged_features_count_rows_and_are_computed_for_each(role: str, declared: tuple[str, ...]) -> None:
    cutter, cut, last = CUTTERS[role]
    model = make(Entry("tagged", lambda: Tagged(cut, last), lambda n, r: ()))
    batch = (torch.full((5,), 4), torch.arange(7), cutter)
    program, captured = captured_with(model, batch, declared)
    assert [feature.role for feature in captured.layout.features] == ["rows", "values", role]
    asked = ask(captured)
    fused = Fuse().apply(asked)
    assert not rolled_back(fused)
    for graph in (asked.model, fused.model):
        got = graph(*Once(captured.layout.features).one(program.flat(batch)))
        assert_as_good(list(got), flat(call(model, batch)), double(model, "forward", batch))


class Given(nn.Module):
    """Takes one row of a user's matrix as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.head = nn.Linear(5, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        score: Tensor = self.head(torch.cat([user.expand(item.shape[0], -1), item], 1))
        return score


def test_what_the_model_itself_takes_once_is_left_to_it() -> None:
    batch = torch.randn(1, 3), torch.randn(4, 2)
    _, captured = captured_with(Given(), batch, {"user": [0, 1]})
    assert captured.layout.features[0].role == "fixed"
    assert ask(captured) is captured
    _, captured = captured_with(Given(), batch, {"user": [0, 1], "item": [1]})
    tensors = Once(captured.layout.features).same(list(batch))
    torch.testing.assert_close(ask(captured).model(*tensors), captured.model(*tensors))


class Outer(nn.Module):
    """Answers that follow the users together, not row by row."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        users = self.users(user)
        return (self.items(item) @ (users.t() @ users)).sum(1)


def test_a_feature_that_is_not_read_row_by_row_is_refused() -> None:
    batch = (torch.randint(9, (4,)), torch.randint(9, (4,)))
    with pytest.raises(InputError, match=r"'user' .* answers do not follow its rows"):
        read_program(Outer().eval(), batch, (), ["user"])


def test_as_many_rows_as_candidates_or_one() -> None:
    once = Once(names("user", request=True) + names("item"))
    for rows in (0, 3, 5):
        with pytest.raises(InputError, match=f"'user' has {rows} rows, expected 4"):
            once.one([torch.zeros(rows, 3), torch.zeros(4, 3)])
    with pytest.raises(InputError, match=r"'user' is \(3,\)"):
        once.one([torch.zeros(3), torch.zeros(4, 3)])
    assert once.one([torch.zeros(1, 3), torch.zeros(4, 3)])[0].shape == (1, 3)


class Writing(nn.Module):
    """Clamps its input in place."""

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        user.clamp_(max=5)
        return (user * item).sum(1)


def test_what_is_repeated_for_the_model_may_be_written_to() -> None:
    once = Once(names("user", request=True) + names("item"))
    user, item = once.all([torch.ones(1, 3), torch.ones(4, 3)])
    assert Writing()(user, item).tolist() == [3.0] * 4


def test_rows_of_an_example_that_differ_are_requests_of_their_own() -> None:
    once = Once(names("user", request=True) + names("item"))
    user, item = torch.arange(12).reshape(4, 3), torch.arange(4)[:, None].repeat(1, 3)
    found = [flat[0][0, 0].item() for flat in once.requests([user, item])]
    assert found == [0, 3, 6, 9]
    assert len(list(once.requests([user[:1].repeat(4, 1), item]))) == 1


def test_a_single_candidate_is_not_compared() -> None:
    once = Once(names("user", request=True) + names("x", request=(0, 2)))
    assert not once.several([torch.zeros(1, 3), torch.zeros(1, 3)])
    assert once.several([torch.zeros(1, 3), torch.zeros(2, 3)])
    assert once.several([torch.zeros(2, 3), torch.zeros(2, 3)])
    assert not Once(names("x", request=(0, 2)), check=False).several([torch.zeros(2, 3)])


class Hourly(nn.Module):
    """A user, an item, and one number for the whole batch."""

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(9, 4), nn.Embedding(9, 4)

    def forward(self, user: Tensor, item: Tensor, hour: Tensor) -> Tensor:
        return (self.users(user) * self.items(item)).sum(1) * hour.sin()


@pytest.mark.parametrize("declared", [["user", "hour"], ["hour"], {"user": True, "hour": True}])
def test_a_single_number_is_the_requests_anyway(declared: Declared) -> None:
    model = Hourly().eval()
    batch = {"user": torch.full((8,), 3), "item": torch.arange(8), "hour": torch.tensor(3.0)}
    fast = compress(
        model, batch, request_features=declared, seconds=0.5, batch_sizes=(8,), backends=[Eager()], progress=False
    )  # fmt: skip
    given = {**batch, "hour": torch.tensor(5.0)}
    torch.testing.assert_close(fast(**given), model(**given).detach())
    if "user" in declared:
        scorer = fast.precompute({"item": torch.arange(9)})
        got = scorer({"user": torch.tensor([3]), "hour": torch.tensor(5.0)}, list(range(8)))
        torch.testing.assert_close(got, model(**given).detach())


def test_a_single_number_has_no_columns() -> None:
    with pytest.raises(InputError, match=r"'hour' is .*only a matrix"):
        read_request((Feature("hour", torch.float32, ()),), {"hour": [0]})
