"""`check_compressed`: models of the zoo pass, and whatever is broken in one of them is caught and named."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from fastrec import CompressedModel, InputError, compress, pipeline
from fastrec.backends import Eager
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables
from fastrec.testing import check_compressed
from tests import pages
from tests.zoo import ZOO, Entry, make

NAMES = (
    "deepfm",
    "dlrm_lists",
    "din",
    "bags",
    "shared",
    "jagged",
    "nested",
    "counting",
    "unreadable",
    "mmoe",
)
INT8 = [Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()]


@pytest.fixture(scope="module", autouse=True)
def approximate_first(served_anyway: None) -> Iterator[None]:
    """What approximates serves where there is such a session, whatever the clock says."""

    def chosen(trials: list[Any], *_: object) -> str:
        names = [trial.session for trial in trials if trial.p50 is not None]
        return next((name for name in names if not name.endswith("exact")), names[0])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "share", lambda *_: 0.02)
        patch.setattr(pipeline, "preferred", chosen)
        yield


def made(entry: Entry, **options: Any) -> tuple[Any, CompressedModel, list[Any]]:
    torch.set_num_threads(1)
    model = make(entry)
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    batches = [entry.batch(rows, torch.Generator().manual_seed(rows)) for rows in (5, 40)]
    if "recipe" in options:
        options["calibration"] = batches
    fast = compress(
        target, batches[0], batch_sizes=(1, 33), seconds=1, backends=Eager(), progress=False, **options
    )
    return target, fast, batches


@pytest.mark.parametrize("entry", [e for e in ZOO if e.name in NAMES], ids=lambda entry: entry.name)
def test_models_of_every_form_of_batch_pass(entry: Entry) -> None:
    check_compressed(*made(entry))


@pytest.mark.parametrize("mode", ["raise", "propagate"])
def test_int8_passes_within_what_the_report_saw_and_not_within_less(mode: str) -> None:
    model, fast, batches = made(next(e for e in ZOO if e.name == "din"), recipe=INT8, on_nonfinite=mode)
    assert not fast.exact
    check_compressed(model, fast, batches)
    check_compressed(model, fast, batches, atol=0.1)
    with pytest.raises(AssertionError, match=r"which differ by .*; allowed is atol 0 \+ rtol 1e-09 times"):
        check_compressed(model, fast, batches, rtol=1e-9)
    seen = fast.report.fidelity
    assert seen is not None
    fast.report = replace(fast.report, fidelity=replace(seen, max_abs=0.0))
    with pytest.raises(AssertionError, match="4 times what the report saw"):
        check_compressed(model, fast, batches)


class Ranker(nn.Module):
    """An id, numbers, and the user of the request; two answers."""

    def __init__(self) -> None:
        super().__init__()
        self.item, self.user = nn.Embedding(50, 8), nn.Embedding(30, 8)
        self.head = nn.Linear(19, 1)

    def forward(self, user: Tensor, item: Tensor, dense: Tensor) -> dict[str, Tensor]:
        x = torch.cat([self.user(user), self.item(item), dense], 1)
        score = self.head(x).squeeze(1)
        return {"score": score, "click": score > 0}


def batch_of(rows: int) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(rows)
    user = torch.randint(30, (1,), generator=rng).repeat(rows)
    return {
        "user": user,
        "item": torch.randint(50, (rows,), generator=rng),
        "dense": torch.randn(rows, 3, generator=rng),
    }


@pytest.fixture(scope="module")
def ranker(approximate_first: None) -> tuple[Ranker, CompressedModel]:
    torch.manual_seed(0)
    model = Ranker().eval()
    fast = compress(
        model,
        batch_of(8),
        request_features=["user"],
        batch_sizes=(8,),
        seconds=1,
        backends=Eager(),
        progress=False,
    )
    assert fast.plan is not None and fast.exact
    return model, fast


BATCHES = [batch_of(8), batch_of(40)]
Answer = dict[str, Tensor]
Break = Callable[[Ranker, Answer, dict[str, Tensor]], Any]


def moved(answer: Answer, by: Tensor | float) -> Answer:
    return answer | {"score": answer["score"] + by}


def by_sum(model: Ranker, answer: Answer, batch: dict[str, Tensor]) -> Answer:
    """A scale that is taken from the whole batch, beyond what real batches hold."""
    return moved(answer, 1e-2 * float(bool((batch["dense"].abs() > 100).any())))


def by_size(model: Ranker, answer: Answer, batch: dict[str, Tensor]) -> Answer:
    return moved(answer, 0.1 * (len(batch["item"]) == 2))


def written(model: Ranker, answer: Answer, batch: dict[str, Tensor]) -> Answer:
    with torch.no_grad():
        model.head.bias.add_(1e-6)
    return answer


def drawn(model: Ranker, answer: Answer, batch: dict[str, Tensor]) -> Answer:
    torch.rand(1), np.random.rand(), random.random()
    return answer


def raced(model: Ranker, answer: Answer, batch: dict[str, Tensor]) -> Answer:
    raced_calls.append(1)
    return moved(answer, 1e-7 * (len(raced_calls) > 120))


raced_calls: list[int] = []
BROKEN: dict[str, tuple[Break, str]] = {
    "keys": (lambda m, a, b: {"click": a["click"], "score": a["score"]}, "batch 0: got a dict of 'click', 'score', expected a dict of 'score', 'click'"),
    "container": (lambda m, a, b: (a["score"], a["click"]), "batch 0: got a tuple of 2, expected a dict"),
    "shape": (lambda m, a, b: a | {"score": a["score"][:, None]}, r"batch 0, answer.score: got shape \(8, 1\), expected \(8,\)"),
    "dtype": (lambda m, a, b: a | {"score": a["score"].double()}, "answer.score: got torch.float64, expected torch.float32"),
    "values": (lambda m, a, b: moved(a, 1e-3), "output 0.*which differ by 0.001; allowed is float rounding"),
    "booleans": (lambda m, a, b: a | {"click": ~a["click"]}, "output 1.*allowed is nothing, as these are no floats"),
    "one size": (by_size, "2 rows of a batch, output 0.*differ by 0.1"),
    "neighbours": (by_sum, r"row 0, output 0: its answer moves by 0.01 beside rows of 1000"),
    "the model": (written, "changed tensor 'head.bias'"),
    "random states": (drawn, "changed Python's random state, numpy's random state, torch's random state"),
    "threads": (raced, "thread . of 8, call .*: the answer is not bit for bit"),
}  # fmt: skip


@pytest.mark.parametrize("what", BROKEN)
def test_what_is_broken_is_caught(
    what: str, ranker: tuple[Ranker, CompressedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fast = ranker
    change, words = BROKEN[what]
    inner = fast.forward
    kept = model.head.bias.detach().clone()
    raced_calls.clear()
    monkeypatch.setattr(fast, "forward", lambda **batch: change(model, inner(**batch), batch), raising=False)
    try:
        with pytest.raises(AssertionError, match=words):
            check_compressed(model, fast, BATCHES)
    finally:
        with torch.no_grad():
            model.head.bias.copy_(kept)


def test_a_call_that_fails_is_told(
    ranker: tuple[Ranker, CompressedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fast = ranker
    inner = fast.forward

    def no_rows(**batch: Tensor) -> Any:
        if not len(batch["item"]):
            raise ZeroDivisionError("no rows")
        return inner(**batch)

    monkeypatch.setattr(fast, "forward", no_rows, raising=False)
    with pytest.raises(
        AssertionError, match="0 rows of a batch: the compressed model raised ZeroDivisionError: no rows"
    ):
        check_compressed(model, fast, BATCHES)


@pytest.mark.parametrize(
    ("clamp", "words"),
    [
        (
            "user",
            "feature 'user': id 30 of a table that has 0 <= id < 30 was answered, expected IdOutOfRangeError",
        ),
        (
            "item",
            "feature 'item', row 1: id 50 of a table that has 0 <= id < 50 was answered, expected IdOutOfRangeError",
        ),
        ("dense", "feature 'dense', row 1: a NaN was answered, expected InputError naming feature and row"),
    ],
)
def test_ids_and_nan_that_pass_a_guard_are_caught(
    clamp: str, words: str, ranker: tuple[Ranker, CompressedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fast = ranker
    inner = fast.forward

    def clamped(**batch: Tensor) -> Any:
        tensor = batch[clamp]
        safe = (
            tensor.clamp(0, 29)
            if clamp == "user"
            else tensor.clamp(0, 49)
            if clamp == "item"
            else tensor.nan_to_num()
        )
        return inner(**batch | {clamp: safe})

    monkeypatch.setattr(fast, "forward", clamped, raising=False)
    with pytest.raises(AssertionError, match=words):
        check_compressed(model, fast, BATCHES)


def test_a_refusal_has_to_name_the_row(
    ranker: tuple[Ranker, CompressedModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, fast = ranker
    inner = fast.forward

    def renamed(**batch: Tensor) -> Any:
        try:
            return inner(**batch)
        except InputError as error:
            error.row = 0
            raise

    monkeypatch.setattr(fast, "forward", renamed, raising=False)
    with pytest.raises(AssertionError, match=r"'item', row 1: .* naming feature 'item' and row 0, expected"):
        check_compressed(model, fast, BATCHES)


def test_a_nan_that_reaches_other_rows_is_caught() -> None:
    model, fast, batches = made(next(e for e in ZOO if e.name == "dlrm"), on_nonfinite="propagate")
    inner = fast.forward

    def spread(*args: Any, **kwargs: Any) -> Any:
        answer = inner(*args, **kwargs)
        return answer + 0.1 if bool(answer.isnan().any()) else answer

    fast.forward = spread  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="row 1: with a NaN the answers of other rows change"):
        check_compressed(model, fast, batches)


def test_wrong_arguments_are_refused_by_name(ranker: tuple[Ranker, CompressedModel]) -> None:
    model, fast = ranker
    for arguments, words in (
        ((model, model, BATCHES), "fast is a Ranker"),
        ((model, fast, BATCHES[0]), r"a list of batches: \[batch\]"),
        ((model, fast, []), "batches is empty"),
    ):
        with pytest.raises(InputError, match=words):
            check_compressed(*arguments)  # type: ignore[arg-type]
    with pytest.raises(InputError, match="atol is -1"):
        check_compressed(model, fast, BATCHES, atol=-1)


def test_the_text_of_the_page(ranker: tuple[Ranker, CompressedModel]) -> None:
    model, fast = ranker
    test = pages.run("docs/reliability.md", "check_compressed")["test_the_served_model"]
    test(model, fast, BATCHES)
    with pytest.raises(InputError, match="batches is empty"):
        test(model, fast, [])
