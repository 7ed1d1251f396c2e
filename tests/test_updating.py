"""An update: the recipe of an artifact on a new checkpoint, through the same gates, in one step or not at all."""

from __future__ import annotations

import copy
import hashlib
import os
import shutil
import signal
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn

from fastrec import (
    ArtifactNotFoundError,
    Budget,
    CompressedModel,
    Fuse,
    IdOutOfRangeError,
    InputError,
    Report,
    UpdateRefused,
    compress,
    load,
    pipeline,
    update,
    updating,
)
from fastrec.artifact import replacing
from fastrec.artifact.graphs import constants_of
from fastrec.backends import Eager, OnnxRuntime
from fastrec.journal import Journal
from fastrec.measure import Ratio, evaluator
from fastrec.memo import Memo
from fastrec.program import Program
from fastrec.recipe import Recipe
from fastrec.request import Once
from fastrec.rewriting import captured, read, rewritten
from fastrec.techniques import PruneNeurons, QuantizeLinears, QuantizeTables, Recover, Technique, fusion

from .checks import assert_unchanged, flat, snapshot
from .zoo import ZOO, Entry, foreign, make

TABLES = QuantizeTables(least_bytes=0)
INT8 = (Fuse(without=("fold_lookups",)), TABLES)
RECIPES: dict[str, tuple[Technique, ...]] = {
    "exact": (Fuse(),),
    "float16": (Fuse(without=("fold_lookups",)), QuantizeTables(bits=16, least_bytes=0)),
    "int8": INT8,
    "int8, folded": (Fuse(), TABLES),
    "int4": (Fuse(without=("fold_lookups",)), QuantizeTables(bits=4, least_bytes=0)),
    "int8, hot": (Fuse(without=("fold_lookups",)), QuantizeTables(hot=0.1, least_bytes=0)),
    "int8 everywhere": (*INT8, QuantizeLinears(least=0)),
    "fewer units": (PruneNeurons(0.5), Recover(steps=5), *INT8),
}


class Ranker(nn.Module):
    """Six tables, a price and a tower."""

    def __init__(self, rows: int = 300, width: int = 8) -> None:
        super().__init__()
        self.tables = nn.ModuleList(nn.Embedding(rows, width) for _ in range(6))
        self.tower = nn.Sequential(nn.Linear(6 * width + 1, 32), nn.ReLU(), nn.Linear(32, 1))

    def forward(self, ids: Tensor, price: Tensor) -> Tensor:
        rows = [table(ids[:, place]) for place, table in enumerate(self.tables)]
        return torch.sigmoid(self.tower(torch.cat([*rows, price[:, None]], 1))).squeeze(1)


def ranker(rows: int = 300) -> Ranker:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return Ranker(rows).eval()


def batch(rows: int, seed: int = 0, ids: int = 300) -> tuple[Tensor, Tensor]:
    rng = torch.Generator().manual_seed(seed)
    return torch.randint(ids, (rows, 6), generator=rng), torch.randn(rows, generator=rng)


def tomorrow(model: nn.Module, *, dense: bool = True, share: float = 0.02) -> Any:
    """The next checkpoint: some rows of the tables are others, and the dense weights."""
    new, rng = copy.deepcopy(model), torch.Generator().manual_seed(1)
    tables = {id(module.weight) for module in new.modules() if isinstance(module, nn.Embedding)}
    with torch.no_grad():
        for parameter in new.parameters():
            if id(parameter) in tables:
                rows = torch.randperm(len(parameter), generator=rng)[: max(1, int(share * len(parameter)))]
                rows = rows[rows > 0]
                parameter[rows] += 0.1 * torch.randn(len(rows), parameter.shape[1], generator=rng)
            elif dense and parameter.is_floating_point():
                parameter += 0.05 * torch.randn(parameter.shape, generator=rng)
    return new


@pytest.fixture(scope="module", autouse=True)
def approximate_serves(served_anyway: None) -> Iterator[None]:
    """What the recipe makes serves, whatever a clock would prefer, and torch has one thread, so that processes may be forked."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(
            pipeline, "preferred", lambda trials, *first: min((one.session for one in trials), key=len)
        )
        timed = updating.confirm
        faster = Ratio(2.0, 1.5, 3.0, 9)
        patch.setattr(updating, "confirm", lambda *given: replace(timed(*given), speedup=faster))
        yield
    torch.set_num_threads(threads)


def made(model: nn.Module, example: Any, recipe: Sequence[Technique], **settings: Any) -> CompressedModel:
    settings = {"backends": Eager(), "batch_sizes": (16,), "seconds": 0.5, "progress": False} | settings
    return compress(model, example, recipe=recipe, **settings)


@pytest.fixture(scope="module")
def artifacts(approximate_serves: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The ranker compressed by two recipes, not to be written to."""
    folder = tmp_path_factory.mktemp("artifacts")
    for name in ("exact", "int8"):
        made(ranker(), batch(64), RECIPES[name]).save(folder / name)
    return {path.name: path for path in folder.iterdir()}


Artifacts = dict[str, Path]


def updated(folder: Path, model: nn.Module, **settings: Any) -> CompressedModel:
    return update(folder, model, **{"seconds": 0.05, "progress": False} | settings)


def digests(folder: Path) -> dict[str, str]:
    """Every file beside and in a folder, and what it holds."""
    return {
        str(path.relative_to(folder.parent)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.parent.rglob("*")
        if path.is_file()
    }


def constants(program: Program | None) -> list[Tensor]:
    """All constants of a graph, in the order in which it reads them."""
    assert program is not None and isinstance(program.model, fx.GraphModule)
    return list(constants_of(program.model).values())


def afresh(model: nn.Module, example: Any, recipe: Sequence[Technique], traffic: Any = None) -> list[Tensor]:
    """The constants that the recipe makes of a model that nothing is known of."""
    work, memo, steps = Journal(0.0, 1e9), Memo(), Recipe(tuple(recipe))
    program = read(work, model, example, None, traffic)
    assert program is not None
    _, asked = captured(work, program, steps, memo)
    return constants(rewritten(asked, steps.techniques, memo))


def same_bits(one: CompressedModel, right: Sequence[Tensor]) -> bool:
    left = constants(one.program)
    return len(left) == len(right) > 0 and all(
        a.dtype is b.dtype and torch.equal(a, b) for a, b in zip(left, right, strict=True)
    )


@pytest.mark.parametrize(
    "entry",
    [e for e in ZOO if e.name in ("deepfm", "din", "bags", "jagged", "nested")],
    ids=lambda e: e.name,
)
def test_the_zoo_is_brought_up_to_a_new_checkpoint(entry: Entry, tmp_path: Path) -> None:
    model, rng = make(entry), torch.Generator().manual_seed(0)
    target = model if entry.entry == "forward" else getattr(model, entry.entry)
    fast = made(target, entry.batch(8, rng), (Fuse(),), request_features=entry.request, batch_sizes=(16,))
    fast.save(tmp_path / "a")
    new = tomorrow(model)
    before = snapshot(new)
    served = getattr(new, entry.entry)
    types = [foreign.Interaction, foreign.Keyed, foreign.Request, foreign.Answer]
    got = updated(tmp_path / "a", served, types=types)
    assert_unchanged(new, before)
    layout = got.original.layout
    once = Once(layout.features)
    for rows in (2, 33):
        given, named = got.call_of(entry.batch(rows, rng))
        # Of one request.
        args, kwargs = layout.arguments(once.all(once.same(layout.flatten(given, named))))
        with torch.no_grad():
            right = flat(served(*args, **kwargs))
        for one in (got, load(tmp_path / "a", types=types)):
            for new_answer, answer in zip(flat(one(*args, **kwargs)), right, strict=True):
                torch.testing.assert_close(new_answer, answer, rtol=1e-3, atol=1e-4)
    assert got.plan == fast.plan and got.report.updated is not None


@pytest.mark.parametrize("name", RECIPES)
def test_it_is_what_a_fresh_application_gives_to_the_last_bit(name: str, tmp_path: Path) -> None:
    recipe, model = RECIPES[name], ranker()
    traffic = [batch(256, seed) for seed in (2, 3)]
    fast = made(model, batch(64), recipe, calibration=traffic)
    fast.save(tmp_path / "a")
    assert fast.exact == (name == "exact")
    new = tomorrow(model)
    got = updated(tmp_path / "a", new, calibration=traffic)
    fresh = afresh(new, batch(64), recipe, traffic)
    assert same_bits(got, fresh)
    assert same_bits(load(tmp_path / "a"), fresh)
    assert got.exact == fast.exact and [type(t) for t in got.recipe] == [type(t) for t in recipe]


def test_only_rows_that_changed_are_coded_again(artifacts: Artifacts, tmp_path: Path) -> None:
    model = ranker()
    shutil.copytree(artifacts["int8"], tmp_path / "a")
    new = copy.deepcopy(model)
    with torch.no_grad():
        new.tables[2].weight[[5, 7]] *= 2
        new.tables[4].weight[9] = torch.nan_to_num(new.tables[4].weight[9]) + 1
    got = updated(tmp_path / "a", new)
    assert got.report.updated is not None
    assert (got.report.updated.rows, got.report.updated.rows_reused) == (1800, 1797)
    assert same_bits(got, afresh(new, batch(64), INT8))
    # Once more, from what was updated: nothing changed.
    again = updated(tmp_path / "a", new)
    assert again.report.updated is not None and again.report.updated.rows_reused == 1800
    assert same_bits(again, constants(got.program))


def test_rows_that_were_put_elsewhere_are_coded_again(artifacts: Artifacts, tmp_path: Path) -> None:
    model = ranker()
    shutil.copytree(artifacts["int8"], tmp_path / "a")
    new = copy.deepcopy(model)
    with torch.no_grad():
        # The same rows, two tables exchanged: by their place in the model none is as before.
        new.tables[0].weight.copy_(model.tables[1].weight)
        new.tables[1].weight.copy_(model.tables[0].weight)
    got = updated(tmp_path / "a", new)
    assert got.report.updated is not None and got.report.updated.rows_reused == 4 * 300
    assert same_bits(got, afresh(new, batch(64), INT8))


def test_folded_tables_are_taken_over_where_table_and_weights_are_as_before(tmp_path: Path) -> None:
    class Towers(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.user, self.item = nn.Embedding(40, 64), nn.Embedding(50, 64)
            self.left, self.right = nn.Linear(64, 256), nn.Linear(64, 256)

        def forward(self, user: Tensor, item: Tensor) -> Tensor:
            return (torch.relu(self.left(self.user(user))) * torch.relu(self.right(self.item(item)))).sum(1)

    torch.manual_seed(0)
    model = Towers().eval()
    pair = torch.arange(30), torch.arange(30)
    fast = made(model, pair, (Fuse(),))
    assert "fold lookups" in {change.rule for step in fast.report.steps for change in step.changes}
    fast.save(tmp_path / "a")
    new = copy.deepcopy(model)
    with torch.no_grad():
        new.right.weight += 0.1
    got = updated(tmp_path / "a", new)
    assert got.report.updated is not None
    assert (got.report.updated.folded, got.report.updated.folded_reused) == (2, 1)
    assert "1 of 2 folded tables taken over" in str(got.report)
    assert same_bits(got, afresh(new, pair, (Fuse(),)))
    with torch.no_grad():
        new.user.weight[3] += 1
    got = updated(tmp_path / "a", new)
    assert got.report.updated is not None and got.report.updated.folded_reused == 1
    assert same_bits(got, afresh(new, pair, (Fuse(),)))


@pytest.mark.parametrize("recipe", ["exact", "int8"])
def test_ids_that_were_appended_are_answered(recipe: str, artifacts: Artifacts, tmp_path: Path) -> None:
    model, longer = ranker(), ranker(rows=340)
    shutil.copytree(artifacts[recipe], tmp_path / "a")
    with pytest.raises(IdOutOfRangeError):
        load(tmp_path / "a")(torch.full((2, 6), 339), torch.zeros(2))
    with torch.no_grad():
        for old, table in zip(model.tables, longer.tables, strict=True):
            table.weight[:300] = old.weight
        longer.tower.load_state_dict(model.tower.state_dict())
    got = updated(tmp_path / "a", longer)
    if recipe == "int8":
        assert got.report.updated is not None
        assert (got.report.updated.rows, got.report.updated.rows_reused) == (6 * 340, 6 * 300)
    assert same_bits(got, afresh(longer, batch(64), RECIPES[recipe]))
    ids = torch.arange(300, 340)[:, None].expand(-1, 6).contiguous()
    for one in (got, load(tmp_path / "a")):
        torch.testing.assert_close(
            one(ids, torch.zeros(40)), longer(ids, torch.zeros(40)).detach(), rtol=0.05, atol=0.01
        )
        with pytest.raises(IdOutOfRangeError):
            one(torch.full((2, 6), 340), torch.zeros(2))


def test_the_loss_is_certified_again_by_what_was_allowed(tmp_path: Path) -> None:
    model = ranker()
    rows = [batch(2000, seed) for seed in range(10, 14)]
    labels = torch.bernoulli(
        torch.cat([model(*one) for one in rows]).detach(), generator=torch.Generator().manual_seed(0)
    )
    evaluate = evaluator(rows, labels, ["auc"])
    fast = made(model, batch(64), INT8, evaluate=evaluate, budget=Budget({"auc": 0.01}))
    assert not fast.exact
    fast.save(tmp_path / "a")
    before, new = digests(tmp_path / "a"), tomorrow(model)
    with pytest.raises(InputError, match="its loss of auc was certified: give evaluate"):
        updated(tmp_path / "a", new)
    assert digests(tmp_path / "a") == before
    got = updated(tmp_path / "a", new, evaluate=evaluate)
    (auc,) = got.report.accuracy
    assert auc.allowed == 0.01 and auc.verdict == "certified"
    assert auc.before == evaluate(new)["auc"] != evaluate(model)["auc"]
    before = digests(tmp_path / "a")
    with pytest.raises(UpdateRefused, match=r"auc .* 1e-09 allowed: (not certifiable|exceeded)") as caught:
        updated(tmp_path / "a", new, evaluate=evaluate, budget=Budget({"auc": 1e-9}))
    assert caught.value.path == str(tmp_path / "a") and "Cure: " in str(caught.value)
    assert digests(tmp_path / "a") == before


def test_what_was_fitted_to_traffic_asks_for_some(tmp_path: Path) -> None:
    made(ranker(), batch(64), RECIPES["int8 everywhere"], calibration=[batch(512, 3)]).save(tmp_path / "a")
    with pytest.raises(InputError, match="quantize_linears is fitted to traffic"):
        updated(tmp_path / "a", ranker())


class Renamed(Ranker):
    def forward(self, ids: Tensor, cost: Tensor) -> Tensor:
        return super().forward(ids, cost)


class Paired(Ranker):
    def forward(self, ids: Tensor, price: Tensor) -> tuple[Tensor, Tensor]:
        found = super().forward(ids, price)
        return found, found


class Leaning(Ranker):
    """Answers by the whole batch."""

    def forward(self, ids: Tensor, price: Tensor) -> Tensor:
        return super().forward(ids, price - price.mean())


class Deciding(Ranker):
    """Cannot be captured."""

    def forward(self, ids: Tensor, price: Tensor) -> Tensor:
        return super().forward(ids, price + (1.0 if float(price.sum()) > 0 else 0.0))


class Exact(Ranker):
    """Answers in float64."""

    def forward(self, ids: Tensor, price: Tensor) -> Any:
        return super().forward(ids, price).double()


class Diverged(Ranker):
    """Was trained until a weight was no number."""

    def __init__(self) -> None:
        super().__init__()
        with torch.no_grad():
            next(self.parameters())[3, 0] = torch.nan


class Bare(nn.Module):
    """Called alike, and has no tables."""

    def forward(self, ids: Tensor, price: Tensor) -> Tensor:
        return torch.sigmoid(ids.float().sum(1) * price)


@pytest.mark.parametrize(
    ("kind", "reason"),
    [
        (Renamed, "its arguments are ids, cost, expected ids, price"),
        (Paired, "its answer is a tuple of a tensor, a tensor, expected a tensor"),
        (Leaning, "depends on its neighbours|answers differ"),
        (Deciding, "the model was not captured"),
        (Bare, "its recipe cannot be applied|the recipe gives no"),
        (Exact, r"its answers are torch\.float64, expected torch\.float32"),
        (Diverged, "weight holds what is not a number"),
        (nn.Identity, "is not called as the one before"),
    ],
)
def test_another_model_is_refused_and_the_folder_stays(
    kind: type, reason: str, artifacts: Artifacts, tmp_path: Path
) -> None:
    shutil.copytree(artifacts["int8"], tmp_path / "a")
    before = digests(tmp_path / "a")
    with pytest.raises(UpdateRefused, match=reason) as caught:
        updated(tmp_path / "a", kind().eval())
    assert "was not updated" in str(caught.value) and "Cure: " in str(caught.value)
    assert digests(tmp_path / "a") == before


def test_arguments_that_are_called_otherwise_are_named_where_they_are_given_by_name(tmp_path: Path) -> None:
    ids, price = batch(64)
    made(ranker(), {"ids": ids, "price": price}, (Fuse(),)).save(tmp_path / "a")
    with pytest.raises(UpdateRefused, match=r"its arguments are ids, cost, expected ids, price .*Cure: call"):
        updated(tmp_path / "a", Renamed().eval())


@pytest.mark.parametrize("settings", [{}, {"keep_original": False}], ids=["", "without the original"])
def test_a_table_with_fewer_rows_than_the_example_asks_for_is_named(
    settings: dict[str, Any], tmp_path: Path
) -> None:
    made(ranker(), batch(64), INT8, **settings).save(tmp_path / "a")
    with pytest.raises(
        UpdateRefused, match=r"table 'tables\.0\.weight' has 20 rows, it had 300.*Cure: keep the rows"
    ):
        updated(tmp_path / "a", ranker(rows=20))
    got = updated(tmp_path / "a", ranker(rows=20), batch=batch(64, ids=20))
    with pytest.raises(IdOutOfRangeError):
        got(*batch(64))


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"model": 3}, "expected a torch module"),
        ({"calibration": 3}, "calibration takes batches, .*got a int"),
        ({"calibration": "x"}, "calibration takes batches, .*got a str"),
        ({"calibration": []}, "calibration has no batches"),
        ({"calibration": ["x"]}, "calibration batch 0: "),
        ({"batch": "x"}, "the batch holds no tensor: got str"),
        ({"batch": (torch.zeros(0, 6).long(), torch.zeros(0))}, "the batch is empty"),
    ],
)
def test_arguments_that_do_not_fit_are_errors_of_the_call(
    wrong: dict[str, Any], words: str, artifacts: Artifacts, tmp_path: Path
) -> None:
    shutil.copytree(artifacts["exact"], tmp_path / "a")
    before = digests(tmp_path / "a")
    with pytest.raises(InputError, match=words):
        updated(tmp_path / "a", **({"model": ranker()} | wrong))
    assert digests(tmp_path / "a") == before


def test_a_link_is_refused_before_anything_is_done(artifacts: Artifacts, tmp_path: Path) -> None:
    shutil.copytree(artifacts["exact"], tmp_path / "a")
    (tmp_path / "current").symlink_to(tmp_path / "a")
    with pytest.raises(UpdateRefused, match=rf"it is a link.*update {tmp_path / 'a'}"):
        updated(tmp_path / "current", ranker())


def test_what_was_saved_meanwhile_is_not_lost(artifacts: Artifacts, tmp_path: Path) -> None:
    shutil.copytree(artifacts["exact"], tmp_path / "a")

    def evaluate(model: Any) -> dict[str, float]:
        if not (tmp_path / "other").exists():
            updated(shutil.copytree(tmp_path / "a", tmp_path / "other"), tomorrow(ranker()))
            shutil.rmtree(tmp_path / "a")
            shutil.copytree(tmp_path / "other", tmp_path / "a")
        return {"auc": 0.5}

    with pytest.raises(UpdateRefused, match="another artifact was saved there meanwhile"):
        updated(tmp_path / "a", ranker(), evaluate=evaluate)
    assert load(tmp_path / "a").digest == load(tmp_path / "other").digest


def test_tables_that_no_longer_fit_are_refused(tmp_path: Path) -> None:
    model, budget = ranker(), Budget(bytes=40_000)
    fast = made(model, batch(64), INT8, budget=budget)
    assert fast.report.tables is not None and fast.report.tables.met
    fast.save(tmp_path / "a")
    got = updated(tmp_path / "a", tomorrow(model))
    assert got.report.tables is not None and got.report.tables.allowed == 40_000
    # The float tables are let go, so there is nothing that could be compared.
    assert got.report.updated is not None and got.report.updated.rows_reused == 0
    before = digests(tmp_path / "a")
    with pytest.raises(UpdateRefused, match=r"the tables take .*allowed"):
        updated(tmp_path / "a", ranker(rows=600))
    assert digests(tmp_path / "a") == before


def test_a_session_that_answers_otherwise_is_refused(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(artifacts["exact"], tmp_path / "a")
    before = digests(tmp_path / "a")
    monkeypatch.setattr("fastrec.sessions.verify", lambda *_: "answers differ from the original's by 1")
    with pytest.raises(UpdateRefused, match="eager: answers differ from the original's"):
        updated(tmp_path / "a", tomorrow(ranker()))
    assert digests(tmp_path / "a") == before


def test_where_a_session_is_slower_the_new_original_serves(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made(ranker(), batch(64), (Fuse(),), batch_sizes=(1, 16)).save(tmp_path / "a")
    timed, new = updating.confirm, tomorrow(ranker())

    def slower_at_16(rows: int, *given: Any) -> Any:
        found = timed(rows, *given)
        return (
            replace(found, speedup=Ratio(0.5, 0.4, 0.6, 9))
            if rows == 16
            else replace(found, speedup=Ratio(2, 1.5, 3, 9))
        )

    monkeypatch.setattr(updating, "confirm", slower_at_16)
    got = updated(tmp_path / "a", new)
    assert got.plan is not None and got.plan.names == ("eager", "original")
    assert any("slower than the new original, which serves there" in note for note in got.report.notes)
    torch.testing.assert_close(load(tmp_path / "a")(*batch(16)), new(*batch(16)).detach())


def test_what_served_nothing_faster_is_the_new_original(tmp_path: Path) -> None:
    made(ranker(), batch(64), (Fuse(),), backends=[]).save(tmp_path / "a")
    new = tomorrow(ranker())
    got = updated(tmp_path / "a", new)
    assert got.plan is None and got.report.status == "unchanged"
    torch.testing.assert_close(load(tmp_path / "a")(*batch(5)), new(*batch(5)).detach())


def test_the_original_stays_out_where_it_was_let_go(tmp_path: Path) -> None:
    made(ranker(), batch(64), INT8, keep_original=False).save(tmp_path / "a")
    size = (tmp_path / "a" / "tensors.safetensors").stat().st_size
    new = tomorrow(ranker())
    got = updated(tmp_path / "a", new)
    assert (tmp_path / "a" / "tensors.safetensors").stat().st_size == size
    assert same_bits(got, afresh(new, batch(64), INT8))


def test_a_model_that_was_not_captured_is_refused_by_name(tmp_path: Path) -> None:
    model = Deciding().eval()
    fast = made(model, batch(64), (QuantizeLinears(least=0),), backends=None, calibration=[batch(512, 3)])
    fast.save(tmp_path / "a")
    with pytest.raises(UpdateRefused, match="cannot be read without its model"):
        updated(tmp_path / "a", model)


def test_a_folder_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ArtifactNotFoundError):
        updated(tmp_path / "none", ranker())


def test_checks_and_requests_are_as_they_were(tmp_path: Path) -> None:
    model, rows = ranker(), batch(20)
    rows[0][:, 0] = rows[0][0, 0]
    fast = made(model, rows, (Fuse(),), request_features={"ids": [0]}, on_nonfinite="propagate")
    fast.save(tmp_path / "a")
    got = updated(tmp_path / "a", tomorrow(model))
    assert got.original.layout.features[0].request == (0,)
    assert got.guard is not None and got.guard.finite == () and got.separates == fast.separates
    made(model, batch(20), (Fuse(),), guards=False).save(tmp_path / "b")
    assert updated(tmp_path / "b", tomorrow(model)).guard is None


def test_the_backends_are_those_it_had(tmp_path: Path) -> None:
    made(ranker(), batch(64), INT8, backends=[OnnxRuntime()], batch_sizes=(16,)).save(tmp_path / "a")
    got = updated(tmp_path / "a", tomorrow(ranker()))
    assert [source.backend for source in got.sources.values()] == [OnnxRuntime()]
    assert load(tmp_path / "a").notes == ()
    assert torch.equal(load(tmp_path / "a")(*batch(9)), got(*batch(9)))


def test_the_report_says_so_and_travels(artifacts: Artifacts, tmp_path: Path) -> None:
    shutil.copytree(artifacts["int8"], tmp_path / "a")
    before = load(tmp_path / "a").digest
    got = updated(tmp_path / "a", tomorrow(ranker(), dense=False))
    assert got.report.updated is not None and got.report.updated.digest == before != got.digest
    assert f"updated from artifact {before[:12]}: " in str(got.report)
    assert Report.from_json(got.report.to_json()) == got.report == load(tmp_path / "a").report


def test_what_is_done_no_more_is_noted(
    artifacts: Artifacts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(artifacts["int8"], tmp_path / "a")
    assert not any("not to this one" in note for note in updated(tmp_path / "a", ranker()).report.notes)
    rules = tuple(
        tuple(rule for rule in phase if rule.__name__ != "stack_lookups") for phase in fusion.PHASES
    )
    monkeypatch.setattr(fusion, "PHASES", rules)
    got = updated(tmp_path / "a", ranker())
    assert any("and not to this one: pack columns, stack lookups" in note for note in got.report.notes)


def test_killed_in_the_middle_the_old_one_is_there(artifacts: Artifacts, tmp_path: Path) -> None:
    shutil.copytree(artifacts["int8"], tmp_path / "a")
    before, new = digests(tmp_path / "a"), tomorrow(ranker())
    for step in ("_sync", "_swap"):
        child = os.fork()
        if not child:
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(replacing, step, lambda *_: os.kill(os.getpid(), signal.SIGKILL))
                try:
                    updated(tmp_path / "a", new)
                finally:
                    os._exit(0)
        assert os.WTERMSIG(os.waitpid(child, 0)[1]) == signal.SIGKILL
        held = {name: digest for name, digest in digests(tmp_path / "a").items() if name in before}
        assert held == before
    got = updated(tmp_path / "a", new)
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert same_bits(load(tmp_path / "a"), constants(got.program))
