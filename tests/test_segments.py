"""What hurts only rare items: seen in the report, and refused where the budget bounds every segment."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
import pytest
import torch
from torch import Tensor, fx, nn

import fastrec
from fastrec import Budget, InputError, Report, certify, compress, pipeline
from fastrec.backends import Eager
from fastrec.graph import add_constant, constant, copy_graph, is_call, sweep
from fastrec.measure import evaluator, popularity
from fastrec.program import Program
from fastrec.techniques import TECHNIQUES, Applied, Change, Technique

ITEMS, RARE, ROWS = 300, 200, 20_000


@dataclass(frozen=True)
class Forget(Technique):
    """Rows of a table from `first` on, which are the rare ones, become zeros."""

    name: ClassVar[str] = "forget"
    level: ClassVar[Literal["module", "graph"]] = "graph"

    first: int = RARE

    @property
    def exact(self) -> bool:
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:
        return (Forget(ITEMS - 1),)

    def apply(self, program: Program) -> Applied:
        assert isinstance(program.model, fx.GraphModule)
        gm, changes = copy_graph(program.model), []
        for node in list(gm.graph.nodes):
            table = constant(gm, node.args[0]) if is_call(node, torch.ops.aten.embedding.default) else None
            if table is not None:
                kept = table.clone()
                kept[self.first :] = 0
                node.args = (add_constant(gm, "kept", kept), *node.args[1:])
                changes.append(Change("forget", node.name))
        sweep(gm)
        return Applied(gm, tuple(changes))


class Taste(nn.Module):
    """The chance that a taste meets an item."""

    def __init__(self) -> None:
        super().__init__()
        self.items = nn.Embedding(ITEMS, 8)

    def forward(self, taste: Tensor, ids: Tensor) -> Tensor:
        return torch.sigmoid((taste * self.items(ids)).sum(1))


def made(rows: int = ROWS) -> tuple[Taste, dict[str, Tensor], Tensor]:
    """A model, rows of which one in thirty is of a rare item, and labels as it says."""
    torch.manual_seed(0)
    model = Taste().eval()
    rare = torch.rand(rows) < 1 / 30
    ids = torch.where(rare, torch.randint(RARE, ITEMS, (rows,)), torch.randint(0, RARE, (rows,)))
    batch = {"taste": torch.randn(rows, 8), "ids": ids}
    with torch.no_grad():
        return model, batch, torch.bernoulli(model(**batch))


def under(budget: Budget | None, rows: int = ROWS, **options: Any) -> fastrec.CompressedModel:
    model, batch, labels = made(rows)
    groups = {"item": np.where(batch["ids"] < RARE, "common", "rare")}
    judge = evaluator([batch], labels, segments=groups)
    return compress(
        model, {name: x[:64] for name, x in batch.items()}, recipe=Forget(), evaluate=judge, budget=budget,
        backends=[Eager()], batch_sizes=(8,), seconds=5, progress=False, **options,
    )  # fmt: skip


@pytest.fixture(autouse=True)
def _what_approximates_is_preferred(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipeline, "share", lambda *_: 0.1)
    monkeypatch.setattr(
        pipeline, "preferred", lambda trials, *first: min((t.session for t in trials if t.p50), key=len)
    )
    monkeypatch.setattr(pipeline, "worth_it", lambda result: True)


def test_what_hurts_only_the_tail_passes_the_budget_of_all_rows_and_the_report_shows_it() -> None:
    fast = under(Budget({"auc": 0.05}))
    assert fast.recipe.techniques == (Forget(),) and not fast.exact
    (whole,) = fast.report.accuracy
    assert whole.verdict == "certified" and whole.upper is not None and whole.upper < 0.05
    common, rare = fast.report.segments
    assert (common.segment, rare.segment) == ("common", "rare") and common.rows + rare.rows == ROWS
    assert common.value == 0.0 and rare.value is not None and rare.value > 0.2
    assert rare.verdict == "measured" and rare.after == pytest.approx(0.5, abs=0.05)
    assert "auc of item rare: " in str(fast.report)
    again = Report.from_json(fast.report.to_json(), techniques={**TECHNIQUES, "forget": Forget})
    assert again == fast.report


def test_a_bound_of_every_segment_refuses_it_by_name_and_takes_a_milder_setting() -> None:
    fast = under(Budget({"auc": 0.05}, segments={"auc": 0.05}))
    assert fast.recipe.techniques == (Forget(ITEMS - 1),)
    (refused,) = fast.report.refused
    assert refused.reason.startswith("Forget(first=200): auc of item rare: ") and "exceeded" in refused.reason
    assert [one.verdict for one in fast.report.segments] == ["certified", "certified"]


def test_a_bound_of_segments_alone_reports_the_loss_of_all_rows() -> None:
    fast = under(Budget(segments={"auc": 0.05}))
    assert fast.recipe.techniques == (Forget(ITEMS - 1),)
    assert [one.verdict for one in fast.report.accuracy] == ["measured"]


def test_segments_with_too_few_rows_never_pass_and_say_how_many_would_do() -> None:
    fast = under(Budget(segments={"auc": 0.4}), rows=3000)
    assert not fast.recipe.techniques and len(fast.report.refused) == 2
    for refused in fast.report.refused:
        assert "auc of item rare: " in refused.reason
        assert "too few rows: needs about" in refused.reason and "rows of it, got 1" in refused.reason


def test_what_serves_is_judged_by_segment_as_well(monkeypatch: pytest.MonkeyPatch) -> None:
    # As if the setting had been certified and its session loses more than its plain form did.
    monkeypatch.setattr(certify.Certifier, "settle", lambda self, t, p, memo, mend: (t, memo.apply(t, p), []))
    fast = under(Budget(segments={"auc": 0.05}))
    reasons = [trial.reason for trial in fast.report.trials if trial.session == "eager"]
    assert any(reason.startswith("auc of item rare: ") and "exceeded" in reason for reason in reasons)
    assert all(one.verdict == "exact" for one in fast.report.segments)
    assert not any(size.session == "eager" for size in fast.report.sizes)


def test_popularity_finds_the_tail_without_being_told_where_it_is() -> None:
    model, batch, labels = made()
    seen = np.random.default_rng(0).choice(batch["ids"].numpy(), ROWS)
    judge = evaluator([batch], labels, segments={"popularity": popularity(batch["ids"], seen, parts=20)})
    with torch.no_grad():
        before = judge.scores(model)
        model.items.weight[RARE:] = 0
        after = judge.scores(model)
    lost = {one.segment: one.loss.value for one in judge.by_segment(before, after) if one.loss is not None}
    (tail,) = [name for name in lost if name.endswith("(tail)")]
    assert lost[tail] > 0.1 and lost["1 (head)"] == 0.0
    assert max(value for name, value in lost.items() if name not in (tail, "unseen")) < 0.5 * lost[tail]


def test_a_bound_that_nobody_can_judge_says_so() -> None:
    model, batch, labels = made(200)
    for judge in (evaluator([batch], labels), lambda model: {"auc": 0.5}):
        with pytest.raises(InputError, match="evaluate names none"):
            compress(model, batch, evaluate=judge, budget=Budget(segments={"auc": 0.1}), progress=False)
    with pytest.raises(InputError, match=r"needs evaluate"):
        compress(model, batch, budget=Budget(segments={"auc": 0.1}), progress=False)
    with pytest.raises(InputError, match=r"names \['logloss'\]"):
        under(Budget(segments={"logloss": 0.1}), rows=200)
    for wrong in ({"auc": -1.0}, {"auc": float("inf")}, {"auc": True}, 0.002):
        with pytest.raises(InputError, match="segments"):
            Budget({"auc": 0.1}, segments=wrong)  # type: ignore[arg-type]
