"""`compress` of models that cannot be captured, their linear maps in 8 bits: drop-in, certified, refused by name."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec import Budget, InputError, TechniqueError, compress, pipeline
from fastrec.backends import Eager, OnnxRuntime
from fastrec.measure import evaluator
from fastrec.ops import layers
from fastrec.ops.packed_linears import PackedLinear
from fastrec.techniques import Fuse, PruneNeurons, QuantizeLinears, QuantizeTables, Recover

from .checks import assert_near, assert_same_structure, assert_unchanged, call, flat, snapshot
from .zoo import ZOO, Entry, make

UNCAPTURED = [entry for entry in ZOO if not entry.capturable]
INT8 = QuantizeLinears(least=0)


@pytest.fixture(autouse=True)
def one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def int8_serves(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether or not it is faster for models as small as these."""
    monkeypatch.setattr(pipeline, "worth_it", lambda result: True)


class Scorer(nn.Module):
    """A tower over ids and numbers, whose code reads a value; its answer holds a number that is no tensor."""

    def __init__(self, fewest: int = 0) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.items = nn.Embedding(50, 16)
            self.tower = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU())
            self.head = nn.Linear(32, 1)
        self.fewest = fewest

    def forward(self, ids: Tensor, x: Tensor) -> dict[str, Any]:
        if len(ids) < self.fewest:
            raise ValueError(f"takes {self.fewest} rows")
        h = torch.cat([self.items(ids), x], 1)
        if ids.sum().item() >= 0:
            h = self.tower(h)
        score = self.head(h).squeeze(1)
        return {"score": torch.sigmoid(score), "mean": float(score.sum().item()), "name": "scorer"}


def draw(rows: int, seed: int = 0) -> dict[str, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(0, 50, (rows,), generator=rng),
        "x": torch.randn(rows, 4, generator=rng),
    }


def compressed(model: nn.Module, **options: Any) -> fastrec.CompressedModel:
    given = {
        "recipe": INT8,
        "calibration": [draw(500, 5)],
        "backends": [Eager()],
        "batch_sizes": (8,),
        "seconds": 3,
        "progress": False,
    }
    return compress(model.eval(), draw(64), **(given | options))


def score(model: Any, batch: dict[str, Tensor]) -> Tensor:
    with torch.no_grad():
        found: Tensor = model(**batch)["score"]
    return found


@pytest.mark.parametrize(
    ("entry", "shared"),
    [(entry, False) for entry in UNCAPTURED] + [(e, True) for e in UNCAPTURED if e.name == "looping"],
    ids=lambda one: one.name if isinstance(one, Entry) else "one price" if one else "",
)
def test_the_zoo_answers_in_its_own_form_near_what_it_was(entry: Entry, shared: bool) -> None:
    model = make(entry)
    before = snapshot(model)
    batch = entry.batch(64, torch.Generator().manual_seed(4))
    fast = compress(
        model,
        batch,
        recipe=(Fuse(), INT8),
        batch_sizes=(8,),
        seconds=2,
        progress=False,
        request_features=("price",) if shared else None,
    )
    assert_unchanged(model, before)
    taken = [step for step in fast.report.steps if step.changes]
    # One writes to a tensor of its own, the other asks its layer's weight for a type.
    assert bool(taken) == (entry.name not in ("counting", "shortcut"))
    assert any(skip.rule == "fuse" and "not captured" in skip.reason for skip in fast.report.skipped)
    if taken:
        assert fast.report.status == "improved" and set(fast.sessions) == {"eager, modules"}
        assert any("edited its modules" in note for note in fast.report.notes)
        assert fast.recipe.techniques == (INT8,) and not fast.recipe.exact
    for rows in entry.sizes:
        given = entry.batch(rows, torch.Generator().manual_seed(rows + 7))
        if shared and rows:
            given["price"] = given["price"][:1].expand(rows).contiguous()
        right = call(model, given)
        args, kwargs = fast.original.call_of(given)
        answer = fast(*args, **kwargs)
        if entry.name != "looping":
            assert_same_structure(answer, right)
        assert_near(flat(answer), flat(right), 0.1 if rows >= 32 else 10.0)


def test_what_is_no_tensor_is_of_the_batch_that_was_asked() -> None:
    model = Scorer()
    fast = compressed(model)
    for rows in (0, 1, 8, 33):
        answer, right = fast(**draw(rows, 9)), model(**draw(rows, 9))
        assert list(answer) == list(right) and answer["name"] == "scorer"
        assert answer["mean"] == pytest.approx(right["mean"], abs=0.02 * rows)
        assert rows == 0 or answer["mean"] != 0.0
    assert not fast(**draw(8))["score"].requires_grad


@pytest.mark.parametrize("others", [(), (INT8,)])
def test_units_go_and_what_is_left_without_that_is_measured_beside(others: tuple[Any, ...]) -> None:
    model = Scorer().eval()
    before = snapshot(model)
    fast = compressed(model, recipe=(PruneNeurons(0.6), *others))
    assert_unchanged(model, before)
    assert {change.rule for change in fast.report.steps[0].changes} == {"prune neurons"}
    tried = {trial.session for trial in fast.report.trials if trial.p50}
    parts = ("prune_neurons", "quantize_linears") if others else ()
    assert tried == {"eager, modules", *(f"eager, modules, without {name}" for name in parts)}
    assert_near([score(fast, draw(200, 9))], [score(model, draw(200, 9))], 0.5)


class Plain(nn.Module):
    """ids (N, 2), numbers (N, 8) -> (N, 1): a table and a tower, which can be captured."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(500, 8)
        self.tower = nn.Sequential(
            nn.Linear(24, 64), nn.ReLU(), nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 1)
        )

    def forward(self, ids: Tensor, numbers: Tensor) -> Tensor:
        scores: Tensor = self.tower(torch.cat([self.table(ids).flatten(1), numbers], 1))
        return scores


@pytest.mark.parametrize("others", [(), (QuantizeTables(8, least_bytes=0),)])
def test_of_a_graph_what_is_left_without_what_was_cut_is_measured_beside_it(others: tuple[Any, ...]) -> None:
    rng = torch.Generator().manual_seed(1)
    batches = [
        (torch.randint(500, (64, 2), generator=rng), torch.randn(64, 8, generator=rng)) for _ in range(4)
    ]
    fast = compress(
        Plain().eval(), batches[0], recipe=(PruneNeurons(0.5), Recover(steps=5), Fuse(fold_bytes=0), *others),
        calibration=batches, backends=[Eager()], batch_sizes=(8,), seconds=60, progress=False,
    )  # fmt: skip
    tried = {trial.session for trial in fast.report.trials if trial.p50}
    parts = ("prune_neurons", "quantize_tables") if others else ()
    assert tried == {"eager", "eager, exact", *(f"eager, without {name}" for name in parts)}


def test_a_row_depends_on_no_other() -> None:
    fast = compressed(Scorer())
    batch = draw(100, 3)
    batch["x"][7], batch["x"][8] = 1e3, 1e30
    together = score(fast, batch)
    rng = torch.Generator().manual_seed(1)
    for _ in range(20):
        order = torch.randperm(100, generator=rng)
        parts = order.split(int(torch.randint(1, 60, (), generator=rng)))
        got = torch.cat([score(fast, {name: t[part] for name, t in batch.items()}) for part in parts])
        # The head is in integers too; the sigmoid alone may round by its place in memory.
        torch.testing.assert_close(got, together[order], rtol=1e-6, atol=1e-6)


class OfTheBatch(PackedLinear):
    """A kernel whose scale is the batch's."""

    def __call__(self, x: Tensor, bias: Tensor | None = None) -> Tensor:
        step = x.abs().max().clamp(min=1e-6) / 127
        return super().__call__((x / step).round() * step, bias)


def test_a_session_whose_rows_depend_on_their_neighbours_does_not_serve(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(layers, "pack", OfTheBatch)
    fast = compressed(Scorer())
    assert fast.report.status == "unchanged"
    (trial,) = fast.report.trials
    assert "neighbours" in trial.reason or "plain form" in trial.reason


@pytest.mark.parametrize("features", [None, ["x"]])
def test_rows_that_are_not_finite(features: list[str] | None) -> None:
    dirty = draw(8, 4)
    dirty["x"][3, 1] = float("nan")
    if features:
        dirty["x"] = dirty["x"][3:4].expand(8, -1).contiguous()
    model = Scorer()
    strict = compressed(model, request_features=features)
    with pytest.raises(InputError, match=r"feature 'x', row \d, position 1: got nan"):
        strict(**dirty)
    lax = compressed(model, request_features=features, on_nonfinite="propagate")
    clean = {name: tensor.nan_to_num(0.0) if name == "x" else tensor for name, tensor in dirty.items()}
    bad = score(lax, dirty).isnan()
    assert bad.tolist() == ([True] * 8 if features else [row == 3 for row in range(8)])
    torch.testing.assert_close(score(lax, dirty)[~bad], score(lax, clean)[~bad])
    assert lax(**clean)["mean"] == pytest.approx(model(**clean)["mean"], abs=0.2)


def test_one_row_goes_to_a_model_that_does_not_take_it() -> None:
    fast = compressed(Scorer(fewest=2))
    assert fast.report.status == "improved" and len(score(fast, draw(2))) == 2
    with pytest.raises(ValueError, match="takes 2 rows"):
        fast(**draw(1))


def test_without_the_original_what_serves_falls_back_on_itself() -> None:
    model = Scorer()
    fast = compressed(model, keep_original=False)
    held = {id(tensor) for tensor in fast.original.model.parameters()}
    assert id(model.tower[0].weight) not in held and id(model.items.weight) in held
    torch.testing.assert_close(
        score(fast, draw(9)), score(fast.original.function, draw(9)), rtol=1e-4, atol=1e-4
    )
    with pytest.raises(InputError, match="not captured"):
        compressed(model, request_features=["x"]).precompute({"ids": torch.arange(50)})


def test_the_loss_is_certified_or_nothing_serves() -> None:
    model = Scorer()
    batches = [draw(500, seed) for seed in range(8)]
    chances = torch.cat([score(model, batch) for batch in batches])
    labels = torch.bernoulli(chances, generator=torch.Generator().manual_seed(0))

    def under(budget: float, rows: int | None = None, **options: Any) -> fastrec.CompressedModel:
        few = [{name: tensor[:rows] for name, tensor in batch.items()} for batch in batches]
        of = labels.view(8, 500)[:, :rows].flatten()
        judge = evaluator(few, of, output="score")
        return compressed(model, evaluate=judge, budget=Budget({"auc": budget}), **options)

    fast = under(0.01)
    assert fast.report.status == "improved" and all(found.holds for found in fast.report.accuracy)
    refused = under(1e-7, 30)
    assert refused.report.status == "unchanged" and not any(step.changes for step in refused.report.steps)
    assert any("auc" in skip.reason for skip in refused.report.skipped)
    asked = under(0.05, request_features=["x"])
    assert asked.report.status == "improved" and all(found.holds for found in asked.report.accuracy)


class Rolling(nn.Module):
    """Answers with what it was asked before."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)
        self.last = 0.0

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x) + self.last
        self.last = float(y.mean().item())
        return y


class Noisy(nn.Module):
    """Draws numbers as it is called."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y + torch.rand_like(y)


@pytest.mark.parametrize("kind", [Rolling, Noisy])
def test_a_model_of_moods_is_left(kind: type[nn.Module]) -> None:
    with pytest.raises(TechniqueError, match="answers the same batch otherwise when asked again"):
        compress(kind().eval(), torch.randn(9, 8), recipe=INT8, seconds=1, progress=False)


def test_techniques_and_backends_of_graphs_alone_are_refused_or_skipped() -> None:
    with pytest.raises(TechniqueError, match="quantize_tables works on a captured graph"):
        compressed(Scorer(), recipe=(QuantizeTables(least_bytes=0), Fuse()))
    both = compressed(Scorer(), recipe=(QuantizeTables(least_bytes=0), INT8))
    assert [skip.rule for skip in both.report.skipped if "not captured" in skip.reason] == ["quantize_tables"]
    assert both.report.status == "improved"
    none = compressed(Scorer(), backends=[OnnxRuntime()])
    assert none.report.status == "unchanged" and any("runs it" in note for note in none.report.notes)


def test_calibration_that_does_not_fit_is_told() -> None:
    bad = draw(20)
    bad["x"][3, 0] = float("nan")
    with pytest.raises(InputError, match="calibration: feature 'x', row 3, position 0: got nan"):
        compressed(Scorer(), calibration=[bad])
    assert any(
        "fitted to 20 rows alone" in n for n in compressed(Scorer(), calibration=[draw(20)]).report.notes
    )
