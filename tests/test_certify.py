"""An approximate recipe: its sessions follow its own numbers, rows stay apart, and exact forms compete with it."""

from __future__ import annotations

import gc
import weakref
from dataclasses import dataclass
from typing import ClassVar, Literal

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import Budget, IdOutOfRangeError, InputError, MeasurementError, Report, compress, pipeline
from fastrec.backends import Eager, Session
from fastrec.graph import add_constant, constant, copy_graph, is_call, sweep
from fastrec.measure import evaluator
from fastrec.program import Program
from fastrec.techniques import TECHNIQUES, Applied, Change, Fuse, Technique

aten = torch.ops.aten


@dataclass(frozen=True)
class Round(Technique):
    """Weights of linear layers to so many decimals."""

    name: ClassVar[str] = "round"
    level: ClassVar[Literal["module", "graph"]] = "graph"
    fitted: ClassVar[bool] = True

    decimals: int = 2

    @property
    def exact(self) -> bool:
        return False

    def milder(self, program: Program, changes: tuple[Change, ...]) -> tuple[Technique, ...]:
        return (Round(4), Round(6))

    def apply(self, program: Program) -> Applied:
        assert isinstance(program.model, torch.fx.GraphModule)
        gm, changes = copy_graph(program.model), []
        for node in list(gm.graph.nodes):
            weight = constant(gm, node.args[1]) if is_call(node, aten.linear.default) else None
            if weight is not None:
                rounded = add_constant(gm, "rounded", weight.round(decimals=self.decimals))
                node.args = (node.args[0], rounded, *node.args[2:])
                changes.append(Change("round", node.name))
        sweep(gm)
        return Applied(gm, tuple(changes))


@dataclass(frozen=True)
class Off(Eager):
    """Answers off by what no plain form would explain."""

    name: ClassVar[str] = "off"

    by: float = 0.5

    def compile(self, program: Program) -> Session:
        right, by = super().compile(program), self.by

        class Wrong(Session):
            def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                return tuple(answer + by for answer in right(*tensors))

        return Wrong()


@dataclass(frozen=True)
class Dynamic(Eager):
    """Scales by the largest number of the whole batch before rounding."""

    name: ClassVar[str] = "dynamic"

    def compile(self, program: Program) -> Session:
        right = super().compile(program)

        class Scaled(Session):
            def __call__(self, *tensors: Tensor) -> tuple[Tensor, ...]:
                step = tensors[0].abs().max().clamp(min=1e-6) / 127
                return right((tensors[0] / step).round() * step, *tensors[1:])

        return Scaled()


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()


def run(*backends: Eager) -> fastrec.CompressedModel:
    batch = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    return compress(
        model(),
        batch,
        recipe=(Fuse(), Round()),
        backends=backends,
        batch_sizes=(4,),
        seconds=5,
        progress=False,
    )


def test_the_exact_form_competes_and_the_difference_is_that_of_who_serves() -> None:
    report = run(Eager()).report
    assert {trial.session for trial in report.trials} == {"eager", "eager, exact"}
    assert [step.exact for step in report.steps] == [True, False]
    if report.status == "improved":
        assert report.fidelity is not None
        assert report.fidelity.exact == report.sizes[0].session.endswith("exact")


def test_a_session_that_strays_from_the_plain_form_does_not_serve() -> None:
    reasons = {trial.session: trial.reason for trial in run(Off()).report.trials}
    assert "from the plain form's by 0.5" in reasons["off"]
    assert "from the original's by 0.5" in reasons["off, exact"]


def test_a_row_whose_answer_depends_on_its_neighbours_does_not_serve() -> None:
    reasons = {trial.session: trial.reason for trial in run(Dynamic()).report.trials}
    assert "depends on its neighbours" in reasons["dynamic"] or "plain form" in reasons["dynamic"]
    assert "differ" in reasons["dynamic, exact"]


class Towers(nn.Module):
    """A user and an item, and the chance that they meet."""

    def __init__(self) -> None:
        super().__init__()
        self.user, self.item = nn.Linear(6, 16), nn.Linear(4, 16)
        self.top = nn.Linear(16, 1)

    def forward(self, user: Tensor, item: Tensor) -> Tensor:
        return torch.sigmoid(self.top(torch.relu(self.user(user) + self.item(item)))).squeeze(1)


def labelled(rows: int = 4000) -> tuple[Towers, list[dict[str, Tensor]], Tensor]:
    torch.manual_seed(3)
    model = Towers().eval()
    batches = [
        {"user": torch.randn(50, 6)[torch.arange(500) // 10], "item": torch.randn(500, 4)}
        for _ in range(rows // 500)
    ]
    with torch.no_grad():
        chance = torch.cat([model(**batch) for batch in batches])
    return model, batches, torch.bernoulli(chance)


def under(
    budget: Budget | None, evaluate: object, decimals: int = 0, **options: object
) -> fastrec.CompressedModel:
    model, batches, _ = labelled()
    return compress(
        model,
        batches[0],
        recipe=(Fuse(), Round(decimals)),
        evaluate=evaluate,  # type: ignore[arg-type]
        budget=budget,
        backends=[Eager()],
        batch_sizes=(8,),
        seconds=5,
        progress=False,
        **options,  # type: ignore[arg-type]
    )


@pytest.mark.parametrize("request_features", [None, ["user"]])
def test_a_budget_takes_the_first_setting_whose_loss_is_certified(request_features: list[str] | None) -> None:
    _, batches, labels = labelled()
    fast = under(Budget({"auc": 1e-3}), evaluator(batches, labels), request_features=request_features)
    chosen = fast.recipe.techniques[1]
    assert fast.report.recipe == fast.recipe
    assert chosen in (Round(4), Round(6)) and len(fast.report.steps[1].changes) > 1
    assert any(skip.rule == "round" and "exceeded" in skip.reason for skip in fast.report.skipped)
    for found in fast.report.accuracy:
        assert found.metric == "auc" and found.holds and found.upper is not None and found.upper <= 1e-3
    again = Report.from_json(fast.report.to_json(), techniques={**TECHNIQUES, "round": Round})
    assert again.accuracy == fast.report.accuracy


def test_with_too_few_rows_nothing_approximate_serves_and_the_report_says_how_many() -> None:
    _, batches, labels = labelled()
    few = {name: tensor[:150] for name, tensor in batches[0].items()}
    fast = under(Budget({"auc": 1e-3}), evaluator([few], labels[:150]), decimals=3)
    assert not fast.report.steps[1].changes and [t.name for t in fast.recipe] == ["fuse"]
    assert fast.report.fidelity is None or fast.report.fidelity.exact
    assert any("not certifiable: needs about" in skip.reason for skip in fast.report.skipped)


def test_one_number_per_model_certifies_nothing() -> None:
    fast = under(None, lambda model: {"auc": 0.5}, decimals=6)
    assert not fast.report.steps[1].changes
    assert any("fastrec.measure.evaluator" in skip.reason for skip in fast.report.skipped)


def test_a_calibration_that_does_not_fit_or_is_thin_is_told() -> None:
    class Lookup(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table, self.top = nn.Embedding(50, 8), nn.Linear(9, 1)

        def forward(self, ids: Tensor, price: Tensor) -> Tensor:
            return self.top(torch.cat([self.table(ids), price], 1))

    def run(ids: list[int], price: float = 1.0) -> fastrec.CompressedModel:
        torch.manual_seed(0)
        calibration = [{"ids": torch.tensor(ids), "price": torch.full((len(ids), 1), price)}]
        return compress(
            Lookup().eval(), {"ids": torch.arange(6), "price": torch.rand(6, 1)}, recipe=Round(2), calibration=calibration,
            backends=[Eager()], batch_sizes=(4,), seconds=3, progress=False,
        )  # fmt: skip

    with pytest.raises(IdOutOfRangeError, match="calibration: feature 'ids', row 1: got id 50"):
        run([1, 50])
    with pytest.raises(InputError, match="calibration: feature 'price', row 0, position 0: got nan"):
        run([1, 2], float("nan"))
    assert any("fitted to 3 rows alone" in note for note in run([1, 2, 3]).report.notes)
    with pytest.raises(InputError, match="calibration batch 0: missing feature 'price'"):
        compress(
            Lookup().eval(), {"ids": torch.arange(6), "price": torch.rand(6, 1)}, calibration=[{"ids": torch.arange(3)}],
            seconds=1, progress=False,
        )  # fmt: skip


def test_a_budget_that_nobody_can_judge_says_so() -> None:
    _, batches, labels = labelled()
    with pytest.raises(InputError, match="needs evaluate"):
        under(Budget({"auc": 1e-3}), None)
    with pytest.raises(InputError, match=r"names .*ndcg.*, and evaluate gives .*auc"):
        under(Budget({"ndcg": 1e-3}), evaluator(batches, labels))
    with pytest.raises(MeasurementError, match="one for every row"):
        under(None, evaluator(batches, labels[:3]))
    for wrong in ({}, {"auc": -1.0}, {"auc": float("nan")}, {"auc": True}):
        with pytest.raises(InputError, match="max_loss"):
            Budget(wrong)


def test_without_the_original_what_serves_falls_back_on_itself() -> None:
    model, batches, _ = labelled()
    whole = weakref.ref(model.top.weight)
    fast = compress(
        model, batches[0], recipe=Round(2), backends=[Eager()], batch_sizes=(8,), seconds=5, progress=False,
        keep_original=False,
    )  # fmt: skip
    if fast.report.status == "improved":
        answer = fast(**{name: tensor[:8] for name, tensor in batches[0].items()})
        del model
        gc.collect()
        assert whole() is None or any(session.endswith("exact") for session in fast.sessions)
        again = fast.original.function(**{name: tensor[:8] for name, tensor in batches[0].items()})
        assert torch.allclose(answer, again, atol=1e-6)


def test_a_scorer_of_an_approximate_model_agrees_with_what_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    # Whatever is faster: where the exact form serves, its scorer is exact, as `test_served_form` sees.
    monkeypatch.setattr(pipeline, "preferred", lambda trials, *first: "eager")
    monkeypatch.setattr(pipeline, "worth_it", lambda result: True)
    model, batches, _ = labelled()
    fast = compress(
        model, batches[0], recipe=Round(1), request_features=["user"], backends=[Eager()], batch_sizes=(8,), seconds=5,
        progress=False,
    )  # fmt: skip
    items, user = batches[1]["item"], batches[0]["user"][:1]
    assert fast.program is not None
    with torch.no_grad():
        right = fast.program.run([user, items])[0][0]
        original = model(user.expand(500, -1), items)
    scores, rows = fast.precompute({"item": items}).topk({"user": user}, 5)
    assert torch.allclose(scores, right.topk(5).values, atol=1e-6)
    assert rows.tolist() == right.topk(5).indices.tolist()
    assert not torch.allclose(right, original, atol=1e-4)
