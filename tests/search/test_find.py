"""Recipes found for a budget, by trials of a real model on a clock that says what is fast."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import cloudpickle
import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import pipeline
from fastrec.backends import Eager, Session
from fastrec.certify import Certifier, Judgement
from fastrec.compressed import CompressedModel
from fastrec.errors import BackendError, InputError
from fastrec.measure import Samples, evaluator
from fastrec.memo import Memo
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.report import Report
from fastrec.search import Task, Worker, find, trials
from fastrec.techniques import TECHNIQUES, QuantizeTables
from fastrec.tried import Tried

KINDS = ("fuse", "quantize_tables", "quantize_linears")
SPEED = {"QuantizeTables": 1.5, "QuantizeLinears": 2.0}


class Ranker(nn.Module):
    """ids (N, 2) and numbers (N, 4) -> probability (N,)."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.tower = nn.Sequential(
            nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        joined = torch.cat([self.table(ids).flatten(1), numbers], 1)
        return torch.sigmoid(self.tower(joined)).squeeze(1)


def rows(count: int, seed: int) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(50, (count, 2), generator=draw), torch.randn(count, 4, generator=draw)


def compared(rows: int, calls: Mapping[str, Any], batches: Any, seconds: float, first: int = 0) -> Samples:
    """What calls would take if each technique did what `SPEED` says."""
    taken = {}
    for label, call in calls.items():
        call(batches(rows, first))
        fast = [factor for name, factor in SPEED.items() if name in label]
        taken[label] = np.full(40, (2e-3 if label == "original" else 1e-3) / float(np.prod(fast)))
    return Samples(taken)


@pytest.fixture(autouse=True, scope="module")
def _quick() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(trials, "compared", compared)
        patch.setattr(find, "TECHNIQUES", {name: TECHNIQUES[name] for name in KINDS})
        patch.setattr(pipeline, "share", lambda *_: 0.1)
        patch.setattr(pipeline, "worth_it", lambda result: True)
        patch.setattr(pipeline, "preferred", lambda trials, *first: trials[0].session)
        yield


def judged(count: int = 6000, seed: int = 1) -> tuple[Ranker, Any]:
    torch.manual_seed(0)
    model = Ranker().eval()
    given = rows(count, seed)
    with torch.no_grad():
        labels = torch.rand(count, generator=torch.Generator().manual_seed(2)) < model(*given)
    return model, evaluator(zip(*(x.split(1000) for x in given), strict=True), labels.float())


def found(model: nn.Module, evaluate: Any, budget: fastrec.Budget, **settings: Any) -> CompressedModel:
    return fastrec.compress(
        model, rows(64, 3), calibration=[rows(256, seed) for seed in range(4, 8)], evaluate=evaluate, budget=budget,
        batch_sizes=(1, 16), progress=False, **({"backends": [Eager()]} | settings),
    )  # fmt: skip


@pytest.fixture(scope="module")
def searched(tmp_path_factory: pytest.TempPathFactory) -> tuple[CompressedModel, Path]:
    path = tmp_path_factory.mktemp("search") / "trials.jsonl"
    return found(*judged(), fastrec.Budget({"auc": 0.05}), resume=path), path


def test_what_is_fast_together_is_found_certified_and_serves(searched: tuple[CompressedModel, Path]) -> None:
    fast, _ = searched
    report = fast.report
    names = [technique.name for technique in fast.recipe]
    assert report.status == "improved" and not fast.exact
    assert "quantize_tables" in names and "quantize_linears" in names
    assert report.accuracy[0].verdict == "certified"
    assert report.accuracy[0].rows == 3000, "the half that no trial has seen"
    assert report.searched[0].accuracy[0].rows == 3000
    assert {one.outcome for one in report.searched} >= {"kept", "slower"}
    kept = [one for one in report.searched if one.outcome == "kept"]
    assert report.pareto and max(one.speedup.value for one in kept if one.speedup) == pytest.approx(6.0)


def test_the_report_of_a_search_survives_json(searched: tuple[CompressedModel, Path]) -> None:
    report = searched[0].report
    assert Report.from_json(report.to_json()) == report
    assert "searched" in str(report)


def test_a_search_that_is_over_is_not_made_again(
    searched: tuple[CompressedModel, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, path = searched
    monkeypatch.setattr(trials.Trials, "_tried", lambda *_: pytest.fail("a trial was made again"))
    again = found(*judged(), fastrec.Budget({"auc": 0.05}), resume=path)
    assert again.recipe == fast.recipe
    assert again.report.searched == fast.report.searched
    batch = rows(16, 9)
    assert torch.equal(again(*batch), fast(*batch))


def test_another_search_does_not_go_on_with_these_trials(searched: tuple[CompressedModel, Path]) -> None:
    with pytest.raises(InputError, match="budget differ"):
        found(*judged(), fastrec.Budget({"auc": 0.04}), resume=searched[1])


def test_too_few_rows_are_not_certifiable_and_what_is_exact_serves() -> None:
    fast = found(*judged(400), fastrec.Budget({"auc": 1e-6}))
    assert fast.report.status == "not_certifiable"
    assert fast.exact
    assert "could be certified" in fast.report.headline
    assert {one.outcome for one in fast.report.searched} <= {"refused", "nothing to do"}


def test_numbers_alone_certify_nothing() -> None:
    fast = found(judged()[0], lambda model: {"auc": 0.7}, fastrec.Budget({"auc": 0.05}))
    assert fast.report.status == "not_certifiable"
    assert any("one number per model" in note for note in fast.report.notes)
    assert not fast.report.searched


def test_a_call_that_takes_longer_than_allowed_misses_the_budget() -> None:
    fast = found(*judged(), fastrec.Budget(p95_ms=1e-6), seconds=1e-3)
    assert fast.report.status == "budget_missed"
    assert not fast.report.met
    assert "may be 1e-06 ms" in str(fast.report)
    fast = found(*judged(), fastrec.Budget({"auc": 0.05}, p95_ms=1e6), seconds=1e-3)
    assert fast.report.met
    assert {one.outcome for one in fast.report.searched} == {"not tried"}


def test_the_smallest_may_be_asked_for_in_place_of_the_fastest() -> None:
    fast = found(*judged(), fastrec.Budget({"auc": 0.05}, minimize="bytes"))
    sizes = [one.bytes for one in fast.report.searched if one.outcome in ("kept", "slower") and one.bytes]
    kept = [one.bytes for one in fast.report.searched if one.outcome == "kept" and one.bytes]
    assert min(kept) == min(sizes)
    assert fast.report.memory.after_bytes < fast.report.memory.before_bytes


def test_the_given_model_is_left_as_it_was(searched: tuple[CompressedModel, Path]) -> None:
    model, evaluate = judged()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    found(model, evaluate, fastrec.Budget({"auc": 0.05}), seconds=1e-3)
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_trials_are_kept_for_a_search_alone(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="keeps the trials of a search"):
        fastrec.compress(Ranker(), rows(4, 0), resume=tmp_path / "trials.jsonl")
    with pytest.raises(InputError, match="give max_loss"):
        fastrec.compress(Ranker(), rows(4, 0), budget=fastrec.Budget(bytes=5, minimize="bytes"))
    with pytest.raises(
        InputError, match=r"minimize='bytes'\) says what is to be least.*give max_loss as well"
    ):
        fastrec.Budget(minimize="bytes")


def test_where_the_best_is_not_certified_on_other_rows_the_next_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # As if the rows that no trial has seen refused one of both.
    right = Certifier.of

    def of(self: Certifier, program: Program) -> Judgement:
        judged = right(self, program)
        coded = any("int8_linear" in str(node.target) for node in program.model.graph.nodes)  # type: ignore[union-attr]
        final = self._evaluate.rows[0] > 0  # type: ignore[union-attr]  # the second half
        return (
            replace(judged, accuracy=(replace(judged.accuracy[0], verdict="exceeded"),))
            if coded and final
            else judged
        )

    monkeypatch.setattr(Certifier, "of", of)
    fast = found(*judged(), fastrec.Budget({"auc": 0.05}))
    assert [type(one) for one in fast.recipe if not one.exact] == [QuantizeTables]
    assert not fast.exact
    assert any("not certified on the rows that no trial has seen" in note for note in fast.report.notes)


WITH = {
    1: {"QuantizeTables": 1.5, "QuantizeLinears": 0.5},
    16: {"QuantizeTables": 1.2, "QuantizeLinears": 3.0},
}


TECHNIQUE = {"QuantizeTables": "quantize_tables", "QuantizeLinears": "quantize_linears"}


def by_rows(rows: int, calls: Mapping[str, Any], batches: Any, seconds: float, first: int = 0) -> Samples:
    """What calls would take if linear maps in integers were slower at one row and faster at many."""
    taken = {}
    for label in calls:
        fast = [
            factor
            for name, factor in WITH[rows].items()
            if name in label and f"without {TECHNIQUE[name]}" not in label
        ]
        taken[label] = np.full(40, (2e-3 if label == "original" else 1e-3) / float(np.prod(fast)))
    return Samples(taken)


def test_each_part_serves_the_numbers_of_rows_that_it_helps(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(trials, "compared", by_rows)
    part = "eager, without quantize_linears"
    monkeypatch.setattr(
        pipeline, "preferred", lambda trials, *first: part if trials[0].rows == 1 else trials[0].session
    )
    fast = found(*judged(), fastrec.Budget({"auc": 0.05}))
    assert [type(one).__name__ for one in fast.recipe if not one.exact] == [*WITH[1]]
    best = max(one.speedup.value for one in fast.report.searched if one.speedup)
    assert best == pytest.approx((2 * 1.5 * 2 * 1.2 * 3.0) ** 0.5)
    assert [size.session for size in fast.report.sizes] == [part, "eager"]
    assert fast.report.accuracy[0].verdict == "certified"
    fast.save(tmp_path / "saved")
    again = fastrec.load(tmp_path / "saved")
    for batch in (rows(1, 9), rows(16, 9)):
        assert torch.equal(again(*batch), fast(*batch))
    assert not torch.equal(fast(*rows(1, 9)), fast.session(16)(*rows(1, 9))[0]), "two forms serve"


def test_a_part_that_is_not_certified_is_dropped_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    part = "eager, without quantize_linears"
    names: list[list[str]] = []

    def preferred(trials: Any, *first: Any) -> str:
        names.append([trial.session for trial in trials])
        return part if part in names[-1] and trials[0].rows == 1 else trials[0].session

    right = Certifier.judge

    def judge(self: Certifier, run: Any, *, exact: bool = False) -> Judgement:
        found = right(self, run, exact=exact)
        served = getattr(run, "args", (None,))[0]
        bad = isinstance(served, CompressedModel) and served.plan is not None and part in served.plan.names
        return replace(found, failed="as if it lost too much") if bad else found

    monkeypatch.setattr(pipeline, "preferred", preferred)
    monkeypatch.setattr(Certifier, "judge", judge)
    fast = found(*judged(), fastrec.Budget({"auc": 0.05}))
    assert [size.session for size in fast.report.sizes] == ["eager", "eager"] and not fast.exact
    assert part in names[0] and part not in names[-1]
    assert any(trial.session == part and "lost too much" in trial.reason for trial in fast.report.trials)


@dataclass(frozen=True)
class Floats(Eager):
    """As torch, but for linear maps in integers, which it cannot run; takes four fifths of the time."""

    name: ClassVar[str] = "floats"

    def compile(self, program: Program) -> Session:
        if any("int8_linear" in str(node.target) for node in program.model.graph.nodes):  # type: ignore[union-attr]
            raise BackendError("has no integers", backend=self.name)
        return super().compile(program)


def test_what_leads_and_cannot_run_the_whole_leaves_it_to_the_others(monkeypatch: pytest.MonkeyPatch) -> None:
    timed: set[str] = set()

    def quicker(rows: int, calls: Mapping[str, Any], batches: Any, seconds: float, first: int = 0) -> Samples:
        timed.update(calls)
        samples = by_rows(rows, calls, batches, seconds, first)
        return Samples(
            {
                label: times * (0.8 if label.startswith("floats") else 1.0)
                for label, times in samples.seconds.items()
            }
        )

    monkeypatch.setattr(trials, "compared", quicker)
    fast = found(*judged(), fastrec.Budget({"auc": 0.05}), backends=[Floats(), Eager()])
    assert [type(one).__name__ for one in fast.recipe if not one.exact] == [*WITH[1]]
    both = "QuantizeTables(bits=16), QuantizeLinears()"
    assert {label for label in timed if label.endswith(both)} == {
        f"eager: {both}",
        f"floats, without quantize_linears: {both}",
    }, "without quantize_tables it is the best until then, which is timed as that"


class Moved:
    """Workers with trials of their own, made from the task as it comes out at the other end."""

    def __init__(self, count: int) -> None:
        self.made: list[list[Recipe]] = [[] for _ in range(count)]
        self.left = False

    @contextmanager
    def open(self, task: Task, notes: list[str], seconds: float) -> Iterator[Sequence[Worker]]:
        assert 0 < seconds < 0.3 * 300
        notes.append("workers were opened")
        yield [self._worker(cloudpickle.loads(cloudpickle.dumps(task)), made) for made in self.made]
        self.left = True

    def _worker(self, task: Task, made: list[Recipe]) -> Worker:
        own = task.trials(Memo())

        def worker(recipe: Recipe, best: Recipe) -> Future[Tried]:
            made.append(recipe)
            future: Future[Tried] = Future()
            future.set_result(own(recipe, best))
            return future

        return worker


def test_workers_find_what_this_process_finds(
    searched: tuple[CompressedModel, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast, path = searched
    workers = Moved(2)
    mine = tmp_path / "trials.jsonl"
    again = found(*judged(), fastrec.Budget({"auc": 0.05}), workers=workers, resume=mine)
    assert again.recipe == fast.recipe
    assert [replace(one, seconds=0.0) for one in again.report.searched] == [
        replace(one, seconds=0.0) for one in fast.report.searched
    ]
    assert all(workers.made) and workers.left
    assert "workers were opened" in again.report.notes
    batch = rows(16, 9)
    assert torch.equal(again(*batch), fast(*batch))
    # The file is that of a search without workers, and goes on as such.
    assert mine.read_text().splitlines()[0] == path.read_text().splitlines()[0]
    monkeypatch.setattr(trials.Trials, "_tried", lambda *_: pytest.fail("a trial was made again"))
    assert found(*judged(), fastrec.Budget({"auc": 0.05}), resume=mine).recipe == fast.recipe


def test_workers_are_of_a_search_alone() -> None:
    with pytest.raises(InputError, match="make the trials of a search"):
        fastrec.compress(Ranker(), rows(4, 0), workers=Moved(1))
    with pytest.raises(InputError, match="workers takes what opens them"):
        fastrec.compress(Ranker(), rows(4, 0), workers=2)  # type: ignore[arg-type]
