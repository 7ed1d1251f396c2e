"""The serving form of a known catalogue."""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fastrec.capture import capture
from fastrec.declared import read_request
from fastrec.errors import IdOutOfRangeError, InputError
from fastrec.guards import read_guard
from fastrec.program import Program
from fastrec.request import Once, ask
from fastrec.rows import take_rows
from fastrec.serving.scorer import Scorer, precompute
from fastrec.techniques import Fuse
from tests.checks import assert_as_good, assert_same_structure, flat
from tests.zoo import ZOO, make

SIZE = 40
DECLARED: dict[str, Any] = {
    "wide_deep": {"user": True, "dense": [0, 2]},
    "deepfm": {"x": [0, 1, 4]},
    "dcnv2": {"sparse": [1, 3, 4], "dense": True},
    "dlrm": {"dense": [0, 3]},
    "xdeepfm": {"x": [0, 1]},
    "autoint": {"x": [4, 0]},
    "fibinet": ["user", "city"],
    "nfm": {"x": [1]},
    "pairwise_fm": ["args[1]", "args[2]"],
    "mmoe": {"x": [0, 3]},
    "din": ["user", "history"],
    "sasrec": [],
    "sasrec_rows": ["history"],
    "caser": ["history", "user"],
    "interest": ["history"],
    "factors": ["user"],
    "two_tower": ["user"],
    "picture": ["brand"],
    "words": ["attention_mask"],
    "shared": ["source"],
    "predicted": ["user_id"],
    "nested": ["request.user"],
}


@dataclass
class Known:
    """A model, one request, a catalogue and its scorer."""

    program: Program
    request: dict[str, Tensor]
    candidates: dict[str, Tensor]
    batch: list[Tensor]
    scorer: Scorer

    def original(self, rows: Tensor, *, wide: bool = False) -> tuple[list[Tensor], Any]:
        """The model's own flat outputs for these rows, and its answer."""
        tensors = take_rows(self.program.layout.features, self.batch, rows)
        program = self.program
        if wide:
            program = program.with_model(copy.deepcopy(program.model).double())
            tensors = [tensor.double() if tensor.is_floating_point() else tensor for tensor in tensors]
        outputs, _ = program.run(tensors)
        return outputs, program.layout.result(outputs)


def known(
    target: nn.Module | Callable[..., Any], batch: Any, declared: Any, *, fuse: bool = True, **settings: Any
) -> Known:
    """Everything, with the request of the batch's first row and its rows as the catalogue."""
    program = Program.read(target, batch)
    features = read_request(program.layout.features, declared)
    program = replace(program, layout=replace(program.layout, features=features))
    asked = ask(capture(program))
    fast = asked.with_model(Fuse().apply(asked).model) if fuse else asked
    tensors = Once(features).same(program.flat(batch))
    request, candidates = {}, {}
    for feature, tensor in zip(features, tensors, strict=True):
        mixed = isinstance(feature.request, tuple)
        if mixed:
            chosen = torch.zeros(tensor.shape[1], dtype=torch.bool)
            chosen[list(feature.request)] = True  # type: ignore[arg-type]
            request[feature.name] = tensor[:1, chosen]
            candidates[feature.name] = tensor[:, ~chosen]
        elif feature.role == "fixed":
            request[feature.name] = tensor
        elif feature.request:
            request[feature.name] = tensor.narrow(feature.axis or 0, 0, 1)
        else:
            candidates[feature.name] = tensor
    scorer = precompute(program, fast, candidates, guard=read_guard(asked), **settings)
    return Known(program, request, candidates, tensors, scorer)


@functools.cache
def of_zoo(name: str, fuse: bool = True) -> Known:
    entry = next(entry for entry in ZOO if entry.name == name)
    model = make(entry)
    batch = entry.batch(SIZE, torch.Generator().manual_seed(3))
    return known(getattr(model, entry.entry), batch, DECLARED[name], fuse=fuse)


def check(case: Known, rows: Tensor) -> None:
    answer = case.scorer(case.request, rows)
    outputs, expected = case.original(rows)
    assert_same_structure(answer, expected)
    assert_as_good(flat(answer), outputs, case.original(rows, wide=True)[0])


@pytest.mark.parametrize("name", DECLARED)
def test_answers_are_the_models(name: str) -> None:
    case = of_zoo(name)
    for rows in ([3], [7, 7, 0, 39, 7], list(range(SIZE)), list(range(SIZE))[::-1]):
        check(case, torch.tensor(rows))


@pytest.mark.parametrize("name", ["deepfm", "din", "two_tower", "sasrec", "shared", "nested"])
def test_no_rows_are_an_empty_answer(name: str) -> None:
    case = of_zoo(name)
    assert_same_structure(case.scorer(case.request, []), case.original(torch.zeros(0, dtype=torch.long))[1])


@pytest.mark.parametrize("name", ["deepfm", "din", "two_tower", "sasrec", "wide_deep"])
def test_a_graph_that_was_not_rewritten_has_sides_too(name: str) -> None:
    check(of_zoo(name, fuse=False), torch.tensor([5, 1, 5]))


@pytest.mark.parametrize(
    "name", ["deepfm", "dlrm", "din", "sasrec", "sasrec_rows", "factors", "predicted", "interest"]
)
def test_best_of_all(name: str) -> None:
    case = of_zoo(name)
    scores = case.original(torch.arange(SIZE))[0][0].flatten()
    for k in (1, 5, SIZE):
        values, rows = case.scorer.topk(case.request, k)
        best = scores.sort(descending=True, stable=True)
        # Two rows of one candidate are rounded differently in different places of a batch.
        apart = (scores[rows] - best.values[:k]).abs()[rows != best.indices[:k]]
        assert not len(apart) or float(apart.max()) <= 2 * torch.finfo(scores.dtype).eps * float(
            scores.abs().max()
        )
        torch.testing.assert_close(values, scores[rows])
        assert len(rows.unique()) == k


class Dot(nn.Module):
    """One vector against many, with a sigmoid at the end and a second answer."""

    def __init__(self, size: int = 600) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(20, 8), nn.Embedding(size, 8)

    def forward(self, user: Tensor, item: Tensor) -> dict[str, Tensor]:
        u, v = self.users(user), self.items(item)
        logit = (u * v).sum(-1)
        return {"logit": logit, "click": logit.sigmoid(), "vector": v}


class Mixing(nn.Module):
    """Nothing depends on the candidates alone but their features."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1))

    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        score: Tensor = self.layer(torch.maximum(a, b)).squeeze(-1)
        return score


class Ranked(nn.Module):
    """Each answer depends on all candidates of its call, and on its place among them."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(50, 6)
        self.places = nn.Linear(1, 6)
        self.user = nn.Linear(3, 6)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        v = self.items(item)
        v = v - v.mean(0, keepdim=True) + self.places(torch.arange(len(item), dtype=v.dtype)[:, None])
        return (torch.softmax(v, 0) * self.user(user)).sum(-1) / len(item)


@functools.cache
def dot(rows: int = 600, limit_bytes: int = 1 << 30) -> Known:
    torch.manual_seed(0)
    batch = {"user": torch.full((rows,), 3), "item": torch.arange(rows) % 600}
    return known(Dot().eval(), batch, ["user"], limit_bytes=limit_bytes)


def test_the_score_is_named_where_there_are_several() -> None:
    case = dot()
    logit = case.original(torch.arange(600))[0][0]
    best = logit.sort(descending=True, stable=True).indices[:10]
    for output in ("logit", "click", 0, 1, "output.click"):
        assert torch.equal(case.scorer.topk(case.request, 10, output=output)[1], best)
    for output in (None, "vector", 2, "none", 7):
        with pytest.raises(InputError, match="logit"):
            case.scorer.topk(case.request, 10, output=output)


def test_equal_scores_are_ordered_by_row() -> None:
    case = dot(2400)
    values, rows = case.scorer.topk(case.request, 12, "logit")
    best = case.original(torch.arange(600))[0][0].sort(descending=True, stable=True).indices[:3]
    assert rows.tolist() == [int(row) + 600 * k for row in best for k in range(4)]
    assert torch.equal(values, values[::4].repeat_interleave(4))


def test_scores_that_rounding_makes_equal() -> None:
    """A sigmoid that ends at 1 for most: what is equal is in the order of rows."""
    model = Dot().eval()
    with torch.no_grad():
        model.users.weight.mul_(1000)
    case = known(model, dict(dot().program.batch), ["user"])
    click = case.original(torch.arange(600))[0][1]
    assert int((click == 1).sum()) > 20
    assert torch.equal(
        case.scorer.topk(case.request, 20, "click")[1], click.sort(descending=True, stable=True).indices[:20]
    )


def test_candidates_scored_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fastrec.serving.scorer._CHUNK_BYTES", 1)
    monkeypatch.setattr("fastrec.serving.scorer._FEWEST", 7)
    for name in ("deepfm", "din", "sasrec"):
        case = of_zoo.__wrapped__(name)
        check(case, torch.arange(SIZE))
        scores = case.original(torch.arange(SIZE))[0][0].flatten()
        assert torch.equal(
            case.scorer.topk(case.request, 9)[1], scores.sort(descending=True, stable=True).indices[:9]
        )


@pytest.mark.parametrize("fuse", [False, True])
def test_nothing_but_features_to_precompute(fuse: bool) -> None:
    case = known(Mixing().eval(), (torch.randn(1, 4).repeat(9, 1), torch.randn(9, 4)), ["a"], fuse=fuse)
    check(case, torch.tensor([8, 0, 8]))
    assert (
        case.scorer.topk(case.request, 2)[1].tolist()
        == case.original(torch.arange(9))[0][0].topk(2).indices.tolist()
    )


@pytest.mark.parametrize("fuse", [False, True])
def test_candidates_that_see_each_other(fuse: bool) -> None:
    torch.manual_seed(1)
    case = known(
        Ranked().eval(), (torch.randn(1, 3).repeat(30, 1), torch.randint(50, (30,))), ["user"], fuse=fuse
    )
    for rows in ([2, 9, 4], list(range(30)), [1]):
        check(case, torch.tensor(rows))
    scores = case.original(torch.arange(30))[0][0]
    assert torch.equal(
        case.scorer.topk(case.request, 30)[1], scores.sort(descending=True, stable=True).indices
    )


def test_rows_that_the_graph_does_not_stand_for() -> None:
    class Squeezed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.items, self.user = nn.Embedding(30, 4), nn.Linear(2, 4)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (self.user(user) * self.items(item)).sum(-1, keepdim=True).squeeze()

    case = known(Squeezed().eval(), (torch.randn(1, 2).repeat(12, 1), torch.randint(30, (12,))), ["user"])
    for rows in ([4], [4, 5]):
        check(case, torch.tensor(rows))


def test_memory_is_what_is_held() -> None:
    case = dot()
    # The vectors (600, 8) and the ids (600,).
    assert case.scorer.resident_bytes == 600 * 8 * 4 + 600 * 8
    assert "600 candidates" in repr(case.scorer) and "(600, 8)" in repr(case.scorer)
    mixed = known(Mixing().eval(), (torch.randn(1, 4).repeat(9, 1), torch.randn(9, 4)), ["a"]).scorer
    assert mixed.resident_bytes == 2 * 9 * 4 * 4


def test_the_limit_is_kept_before_anything_is_computed(monkeypatch: pytest.MonkeyPatch) -> None:
    needed = 600 * 8 * 4 + 600 * 8
    dot(limit_bytes=needed)

    def never(*_: Any) -> Any:
        raise AssertionError("computed")

    monkeypatch.setattr("fastrec.serving.scorer._run_items", never)
    with pytest.raises(InputError, match=rf"{needed:,} bytes.*allowed are {needed - 1:,}"):
        dot(limit_bytes=needed - 1)


def test_the_callers_tensors_stay_theirs() -> None:
    case = dot.__wrapped__()
    before = case.scorer.topk(case.request, 5, "logit")
    case.candidates["item"].zero_()
    after = case.scorer.topk(case.request, 5, "logit")
    assert torch.equal(before[1], after[1])


@pytest.mark.parametrize(
    ("rows", "place"),
    [([0, 600], 1), (torch.tensor([-1]), 0), ([5, 6, 2**40], 2)],
    ids=["high", "negative", "far"],
)
def test_rows_outside_the_catalogue(rows: Any, place: int) -> None:
    with pytest.raises(IdOutOfRangeError, match=f"position {place}") as caught:
        dot().scorer({"user": torch.tensor([1])}, rows)
    assert caught.value.row == place


@pytest.mark.parametrize("rows", [[0.5], [[1]], torch.tensor([True]), torch.tensor(3)])
def test_rows_are_whole_numbers_in_a_vector(rows: Any) -> None:
    with pytest.raises(InputError, match="rows is a vector"):
        dot().scorer({"user": torch.tensor([1])}, rows)


@pytest.mark.parametrize("k", [0, -1, 601, 2.0, True])
def test_k_is_a_number_of_candidates(k: Any) -> None:
    with pytest.raises(InputError, match="from 1 to the 600"):
        dot().scorer.topk({"user": torch.tensor([1])}, k, "logit")


@pytest.mark.parametrize(
    ("request_", "text"),
    [
        ({}, "missing feature 'user'"),
        ({"user": torch.tensor([1]), "item": torch.tensor([1])}, "'item' is not of the request"),
        ({"usr": torch.tensor([1])}, "'usr' is none of"),
        ((torch.tensor([1]), torch.tensor([1])), "1 features .'user'., got 2"),
        ({"user": torch.tensor([1, 2])}, r"'user' is .2,., expected .1."),
        ({"user": torch.tensor([1.0])}, "dtype torch.float32"),
        (3, "a mapping or a tuple"),
    ],
)
def test_requests_that_do_not_fit(request_: Any, text: str) -> None:
    scorer = dot().scorer
    for call in (lambda: scorer(request_, [0]), lambda: scorer.topk(request_, 1, "logit")):
        with pytest.raises(InputError, match=text):
            call()


def test_forms_of_a_request() -> None:
    case = of_zoo("nested")
    expected = flat(case.scorer(case.request, [1, 2]))
    person, age = case.request["request.user.id"], case.request["request.user.age"]
    for given in (
        (person, age),
        [person.int(), age],
        {"user": {"age": age, "id": person}},
        {"id": person, "age": age},
    ):
        assert all(map(torch.equal, flat(case.scorer(given, [1, 2])), expected))
    one = dot()
    expected = flat(one.scorer({"user": torch.tensor([3])}, [1, 2]))
    assert all(map(torch.equal, flat(one.scorer(torch.tensor([3]), [1, 2])), expected))


def test_a_matrix_of_both_sides_may_be_given_whole() -> None:
    case = of_zoo("deepfm")
    whole = case.batch[0][:1].clone()
    expected = case.scorer(case.request, [3, 1])
    # Columns of the other side are not looked at.
    whole[:, [2, 3, 5, 6, 7]] = -5
    assert torch.equal(case.scorer({"x": whole}, [3, 1]), expected)


def test_ids_are_checked_on_both_sides() -> None:
    case = dot()
    with pytest.raises(IdOutOfRangeError, match="'user', row 0: got id 20"):
        case.scorer({"user": torch.tensor([20])}, [0])
    batch = {"user": torch.full((600,), 3), "item": torch.arange(600)}
    batch["item"][71] = 600
    program = Program.read(Dot().eval(), {"user": torch.full((4,), 3), "item": torch.arange(4)})
    program = replace(
        program, layout=replace(program.layout, features=read_request(program.layout.features, ["user"]))
    )
    asked = ask(capture(program))
    with pytest.raises(IdOutOfRangeError, match="'item', row 71: got id 600") as caught:
        precompute(program, asked, {"item": batch["item"]}, guard=read_guard(asked))
    assert caught.value.row == 71


def test_numbers_are_checked_on_both_sides() -> None:
    case = known(Mixing().eval(), (torch.randn(1, 4).repeat(9, 1), torch.randn(9, 4)), ["a"])
    with pytest.raises(InputError, match="'a', row 0, position 0: got nan"):
        case.scorer({"a": torch.full((1, 4), torch.nan)}, [0])
    asked = ask(capture(case.program))
    bad = torch.randn(9, 4)
    bad[5, 2] = torch.inf
    with pytest.raises(InputError, match="'b', row 5, position 2: got inf"):
        precompute(case.program, asked, {"b": bad}, guard=read_guard(asked))


@pytest.mark.parametrize(
    ("candidates", "text"),
    [
        ({"b": torch.randn(0, 4)}, "empty"),
        ({"b": torch.randn(9, 3)}, r"'b' is .9, 3., expected .N, 4."),
        ({"a": torch.randn(9, 4)}, "'a' is not of the candidates"),
    ],
)
def test_catalogues_that_do_not_fit(candidates: Any, text: str) -> None:
    case = known(Mixing().eval(), (torch.randn(1, 4).repeat(9, 1), torch.randn(9, 4)), ["a"])
    with pytest.raises(InputError, match=text):
        precompute(case.program, ask(capture(case.program)), candidates)


def test_candidates_of_one_row_each() -> None:
    case = known(Mixing().eval(), (torch.randn(1, 4).repeat(9, 1), torch.randn(9, 4)), ["a"])
    scorer = precompute(case.program, ask(capture(case.program)), torch.randn(1, 4))
    assert scorer.candidates == 1 and scorer.topk(case.request, 1)[1].tolist() == [0]


def test_cosine_similarity_over_towers_keeps_vectors_alone() -> None:
    class Cosine(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Linear(3, 5), nn.Linear(4, 5)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (F.normalize(self.user(user), dim=-1) * F.normalize(self.item(item), dim=-1)).sum(-1)

    case = known(Cosine().eval(), (torch.randn(1, 3).repeat(20, 1), torch.randn(20, 4)), ["user"])
    check(case, torch.arange(20))
    assert case.scorer.resident_bytes == 20 * (5 + 4) * 4


def test_seen_rows_are_left_out_of_the_best() -> None:
    case = dot()
    request = {"user": torch.tensor([1])}
    size = case.scorer.candidates
    scores, rows = case.scorer.topk(request, size, "logit")
    for seen in (rows[::2], rows[::2].tolist()):
        found = case.scorer.topk(request, len(rows[1::2]), "logit", seen=seen)
        assert torch.equal(found[1], rows[1::2]) and torch.allclose(found[0], scores[1::2])
    assert torch.equal(case.scorer.topk(request, 3, "logit", seen=[])[1], rows[:3])
    found = case.scorer.topk(request, 3, "logit", seen=rows[1:])
    assert found[1].tolist() == [int(rows[0]), -1, -1] and found[0].isneginf().tolist() == [False, True, True]
    assert case.scorer.topk(request, 2, "logit", seen=rows)[1].tolist() == [-1, -1]
    with pytest.raises(IdOutOfRangeError, match=f"seen, position 1: got {size}"):
        case.scorer.topk(request, 2, "logit", seen=[0, size])


def test_what_fills_lists_of_seen_rows_is_none() -> None:
    case, request = dot(), {"user": torch.tensor([1])}
    rows = case.scorer.topk(request, 5, "logit")[1]
    for seen in (
        torch.tensor([-1, int(rows[0]), -1]),
        [-1, int(rows[0])],
        torch.tensor([-1, -1, int(rows[0])]).int(),
    ):
        assert torch.equal(case.scorer.topk(request, 4, "logit", seen=seen)[1], rows[1:])
    for seen, place in (([-1, 3, 600], 2), ([-1, -2], 1)):
        with pytest.raises(IdOutOfRangeError, match=f"seen, position {place}"):
            case.scorer.topk(request, 4, "logit", seen=seen)


class Popular(nn.Module):
    """The score is the candidate's own, whoever asks."""

    def forward(self, user: Tensor, sold: Tensor) -> Tensor:
        return sold


def test_scores_that_are_the_catalogues_own_stay_as_they_are() -> None:
    sold = torch.randn(50, generator=torch.Generator().manual_seed(0))
    case = known(Popular().eval(), {"user": torch.ones(50, 2), "sold": sold.clone()}, ["user"])
    best = sold.sort(descending=True).indices
    assert torch.equal(case.scorer.topk(case.request, 3, seen=best[:2])[1], best[2:5])
    values, rows = case.scorer.topk(case.request, 3)
    assert torch.equal(rows, best[:3])
    values.add_(1)  # the caller's
    assert torch.equal(case.scorer.topk(case.request, 3)[0], sold[best[:3]])


def test_answers_may_be_written_to_and_learned_from() -> None:
    case, weight = dot(), torch.ones(3, requires_grad=True)
    for seen in (None, [4, 7], list(range(598))):
        values, rows = case.scorer.topk(case.request, 3, "logit", seen=seen)
        assert not values.is_inference() and not rows.is_inference()
        values.add_(1.0)
        (values.nan_to_num(neginf=0.0) * weight).sum().backward()


def test_a_request_with_a_gradient_has_an_answer_without() -> None:
    case = known(Mixing().eval(), (torch.randn(1, 4).repeat(9, 1), torch.randn(9, 4)), ["a"])
    request = {"a": torch.randn(1, 4, requires_grad=True)}
    assert not case.scorer.topk(request, 3)[0].requires_grad and not case.scorer(request, [1]).requires_grad
